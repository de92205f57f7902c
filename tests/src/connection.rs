//! The SQLite of this process with the VFS made known to it, and what tests ask of a connection.

use std::sync::Once;

use rusqlite::{Connection, OpenFlags};

/// How the library says that the outcome of this very commit is unknown; of an earlier one it says "an earlier commit".
pub const OUTCOME_UNKNOWN: &str = "not known whether the commit was applied";

/// Makes the VFS known to the SQLite that rusqlite bundles. Any number of times.
pub fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        #[expect(unsafe_code, reason = "an extension's entry point is C")]
        // SAFETY: the entry point does what SQLite's documentation asks of one.
        unsafe {
            rusqlite::auto_extension::register_auto_extension(entry_point).expect("register");
        }
        // Automatic extensions run when a connection is opened; the VFS has to be there before the first real one.
        drop(Connection::open_in_memory().expect("a connection in memory"));
    });
}

#[expect(unsafe_code, reason = "an extension's entry point is C")]
// SAFETY: called by SQLite, which passes what the entry point of an extension is promised.
unsafe extern "C" fn entry_point(
    db: *mut rusqlite::ffi::sqlite3,
    message: *mut *mut std::ffi::c_char,
    api: *const rusqlite::ffi::sqlite3_api_routines,
) -> std::ffi::c_int {
    // SAFETY: passed on as it is; the library declares the same C types under its own names.
    unsafe { pagewire::pagewire_auto_init(db.cast(), message, api.cast()) }
}

/// The URI of a database: `name` on `endpoint`, with more parameters (`"timeout_ms=500"`).
pub fn uri(endpoint: &str, name: &str, more: &[&str]) -> String {
    let mut uri = format!("file:{name}?vfs=pagewire&endpoint={endpoint}");
    for parameter in more {
        uri.push('&');
        uri.push_str(parameter);
    }
    uri
}

/// Opens a URI (a plain one too: the torture program's oracle) for reading and writing.
pub fn open_uri(uri: &str) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(
        uri,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_URI,
    )
}

/// A database on a server, opened by this process.
pub fn open(endpoint: &str, name: &str) -> Connection {
    register();
    open_uri(&uri(endpoint, name, &[])).expect("open")
}

/// Rows of a query, columns separated by `|`, as the shell shows them.
pub fn rows(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let mut line = String::new();
        for column in 0..columns {
            if column > 0 {
                line.push('|');
            }
            line.push_str(&show(row.get_ref(column)?));
        }
        lines.push(line);
    }
    Ok(lines)
}

/// The one value of a query.
pub fn number(connection: &Connection, sql: &str) -> i64 {
    connection
        .query_row(sql, [], |row| row.get(0))
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Panics unless the database is sound.
pub fn assert_sound(connection: &Connection) {
    assert_eq!(
        rows(connection, "PRAGMA integrity_check").expect("integrity_check"),
        ["ok"]
    );
}

/// Round trips of this process that somebody waited for.
pub fn round_trips(connection: &Connection) -> i64 {
    number(connection, "SELECT sum(count) FROM pagewire_rpc")
}

/// Round trips that `action` cost.
pub fn cost(connection: &Connection, action: impl FnOnce(&Connection)) -> i64 {
    let before = round_trips(connection);
    action(connection);
    round_trips(connection) - before
}

/// What the library says about its last error in this process.
pub fn last_error(connection: &Connection) -> String {
    let text: Option<String> = connection
        .query_row("SELECT pagewire_last_error()", [], |row| row.get(0))
        .expect("pagewire_last_error");
    text.unwrap_or_default()
}

/// Whether the library says that nobody knows if the COMMIT that has just failed was applied. Only then may it have been.
pub fn outcome_is_unknown(connection: &Connection) -> bool {
    last_error(connection).contains(OUTCOME_UNKNOWN)
}

/// SQLite's extended result code of an error; 0 for errors of rusqlite itself.
pub fn code(error: &rusqlite::Error) -> i32 {
    error.sqlite_error().map_or(0, |error| error.extended_code)
}

fn show(value: rusqlite::types::ValueRef<'_>) -> String {
    use rusqlite::types::ValueRef;
    match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => format!("{number:?}"),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        ValueRef::Blob(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("x'{hex}'")
        }
    }
}
