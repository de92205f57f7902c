//! The SQLite of this process: the VFS made known to it, its own random numbers seeded, and what the library logs.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};

use rusqlite::{Connection, OpenFlags, ffi};

use crate::content;

/// How the library says that the outcome of this very commit is unknown; of an earlier one it says "an earlier commit".
const OUTCOME_UNKNOWN: &str = "not known whether the commit was applied";
const LIBRARY: &str = "pagewire: ";

thread_local! {
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Once in a process, before the first connection.
pub fn prepare(seed: u64) {
    #[expect(unsafe_code, reason = "SQLite is C")]
    // SAFETY: SQLite is not in use yet; the arguments are those that SQLite documents for these options.
    unsafe {
        ffi::sqlite3_config(
            ffi::SQLITE_CONFIG_LOG,
            log as *const c_void,
            std::ptr::null::<c_void>(),
        );
        rusqlite::auto_extension::register_auto_extension(entry_point).expect("register");
    }
    drop(Connection::open_in_memory().expect("a connection in memory"));
    #[expect(unsafe_code, reason = "SQLite is C")]
    // SAFETY: as above; no connection is needed.
    unsafe {
        let seed = (seed as u32 | 1).cast_signed();
        ffi::sqlite3_test_control(
            ffi::SQLITE_TESTCTRL_PRNG_SEED,
            seed,
            std::ptr::null::<c_void>(),
        );
        ffi::sqlite3_randomness(0, std::ptr::null_mut());
    }
}

#[expect(unsafe_code, reason = "SQLite is C")]
// SAFETY: called by SQLite with a message that is a C string.
unsafe extern "C" fn log(_: *mut c_void, _: c_int, message: *const c_char) {
    // SAFETY: as above.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    if let Some(said) = message.strip_prefix(LIBRARY) {
        let _ = LOGGED.try_with(|logged| logged.borrow_mut().push(said.to_owned()));
    }
}

#[expect(unsafe_code, reason = "an extension's entry point is C")]
// SAFETY: called by SQLite, which passes what the entry point of an extension is promised.
unsafe extern "C" fn entry_point(
    db: *mut ffi::sqlite3,
    message: *mut *mut c_char,
    api: *const ffi::sqlite3_api_routines,
) -> c_int {
    // SAFETY: passed on as it is; the library declares the same C types under its own names.
    unsafe { pagewire::pagewire_auto_init(db.cast(), message, api.cast()) }
}

/// What the library has logged on this thread since the last time.
pub fn take_log() -> Vec<String> {
    LOGGED.with(|logged| std::mem::take(&mut *logged.borrow_mut()))
}

/// Whether the library said that nobody knows what became of the commit.
pub fn says_unknown(logged: &[String]) -> bool {
    logged.iter().any(|said| said.contains(OUTCOME_UNKNOWN))
}

/// Opens a URI for reading and writing.
pub fn open(uri: &str) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(
        uri,
        OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_URI,
    )?;
    content::register(&connection)?;
    Ok(connection)
}

/// A plain one, which nothing happens to.
pub fn open_plain() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    content::register(&connection)?;
    Ok(connection)
}
