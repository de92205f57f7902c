//! Table-valued functions: `pagewire_rpc` and `pagewire_status`. Eponymous, read-only, without constraints.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::functions::{main_connection, result_text};
use super::registration::Registration;
use super::types::{Context, IndexInfo, Module, Sqlite3, Value, Vtab, VtabCursor, code};
use crate::client::counters::{COUNTERS, CallKind};
use crate::error::{Error, Kind, Result};

/// A value of a row.
enum Cell {
    Text(String),
    Number(u64),
}

type Rows = Vec<Vec<Cell>>;

/// A table: its declaration, and how its rows are made when it is scanned.
struct Table {
    name: &'static CStr,
    declaration: &'static CStr,
    rows: unsafe fn(&Registration, *mut Sqlite3) -> Rows,
}

const TABLES: &[Table] = &[
    Table {
        name: c"pagewire_rpc",
        declaration: c"CREATE TABLE x(kind TEXT, count INTEGER, background INTEGER, bytes_sent INTEGER, bytes_received INTEGER)",
        rows: rpc_rows,
    },
    Table { name: c"pagewire_status", declaration: c"CREATE TABLE x(key TEXT, value TEXT)", rows: status_rows },
];

/// What `xConnect` gets.
struct Source {
    registration: &'static Registration,
    table: &'static Table,
}

#[repr(C)]
struct OurTable {
    base: Vtab,
    source: *const Source,
    db: *mut Sqlite3,
}

#[repr(C)]
struct OurCursor {
    base: VtabCursor,
    rows: Rows,
    at: usize,
}

static MODULE: Module = Module {
    version: 0,
    create: None,
    connect: Some(connect),
    best_index: Some(best_index),
    disconnect: Some(disconnect),
    destroy: None,
    open: Some(open),
    close: Some(close),
    filter: Some(filter),
    next: Some(next),
    eof: Some(eof),
    column: Some(column),
    rowid: Some(rowid),
    others: [0; 10],
};

/// Makes the tables known to a connection.
///
/// # Safety
/// `db` is an open connection of the registration's SQLite library.
pub unsafe fn register(registration: &'static Registration, db: *mut Sqlite3) -> Result<()> {
    for table in TABLES {
        let create = registration.api().create_module_v2;
        let create = create
            .ok_or_else(|| Error::new(Kind::CantOpen, "this SQLite has no virtual tables"))?;
        let source = Box::into_raw(Box::new(Source {
            registration,
            table,
        }));
        // SAFETY: promised by the caller. SQLite calls the destructor also when it fails.
        let rc = unsafe {
            create(
                db,
                table.name.as_ptr(),
                &MODULE,
                source.cast(),
                Some(free_source),
            )
        };
        if rc != code::OK {
            return Err(Error::new(
                Kind::CantOpen,
                format!("sqlite3_create_module failed with {rc}"),
            ));
        }
    }
    Ok(())
}

unsafe extern "C" fn free_source(source: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `register`; SQLite calls this once.
    drop(unsafe { Box::from_raw(source.cast::<Source>()) });
}

unsafe extern "C" fn connect(
    db: *mut Sqlite3,
    source: *mut c_void,
    _: c_int,
    _: *const *const c_char,
    out: *mut *mut Vtab,
    _: *mut *mut c_char,
) -> c_int {
    let source = source.cast_const().cast::<Source>();
    // SAFETY: SQLite passes what `register` gave, and a place for the table.
    unsafe {
        let Some(declare) = (*source).registration.api().declare_vtab else {
            return code::ERROR;
        };
        let rc = declare(db, (*source).table.declaration.as_ptr());
        if rc == code::OK {
            let base = Vtab {
                module: std::ptr::null(),
                reference_count: 0,
                error_message: std::ptr::null_mut(),
            };
            *out = Box::into_raw(Box::new(OurTable { base, source, db })).cast();
        }
        rc
    }
}

unsafe extern "C" fn disconnect(table: *mut Vtab) -> c_int {
    // SAFETY: made by `connect`; SQLite calls this once.
    drop(unsafe { Box::from_raw(table.cast::<OurTable>()) });
    code::OK
}

unsafe extern "C" fn best_index(_: *mut Vtab, info: *mut IndexInfo) -> c_int {
    // SAFETY: SQLite passes a structure to be filled.
    unsafe {
        (*info).estimated_cost = 100.0;
    }
    code::OK
}

unsafe extern "C" fn open(_: *mut Vtab, out: *mut *mut VtabCursor) -> c_int {
    let base = VtabCursor {
        vtab: std::ptr::null_mut(),
    };
    // SAFETY: SQLite passes a place for the cursor.
    unsafe {
        *out = Box::into_raw(Box::new(OurCursor {
            base,
            rows: Rows::new(),
            at: 0,
        }))
        .cast()
    };
    code::OK
}

unsafe extern "C" fn close(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: made by `open`; SQLite calls this once.
    drop(unsafe { Box::from_raw(cursor.cast::<OurCursor>()) });
    code::OK
}

unsafe extern "C" fn filter(
    cursor: *mut VtabCursor,
    _: c_int,
    _: *const c_char,
    _: c_int,
    _: *mut *mut Value,
) -> c_int {
    // SAFETY: SQLite passes a cursor of `open` on a table of `connect`, and holds the connection's mutex.
    unsafe {
        let cursor = &mut *cursor.cast::<OurCursor>();
        let table = &*cursor.base.vtab.cast::<OurTable>();
        let source = &*table.source;
        let rows = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (source.table.rows)(source.registration, table.db)
        }));
        cursor.at = 0;
        match rows {
            Ok(rows) => cursor.rows = rows,
            Err(_) => return code::ERROR,
        }
    }
    code::OK
}

unsafe extern "C" fn next(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: SQLite passes a cursor of `open`.
    unsafe { (*cursor.cast::<OurCursor>()).at += 1 };
    code::OK
}

unsafe extern "C" fn eof(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: SQLite passes a cursor of `open`.
    let cursor = unsafe { &*cursor.cast::<OurCursor>() };
    c_int::from(cursor.at >= cursor.rows.len())
}

unsafe extern "C" fn column(cursor: *mut VtabCursor, context: *mut Context, index: c_int) -> c_int {
    // SAFETY: SQLite passes a cursor of `open` that is not at its end.
    unsafe {
        let cursor = &*cursor.cast::<OurCursor>();
        let table = &*cursor.base.vtab.cast::<OurTable>();
        let registration = (*table.source).registration;
        let row = cursor.rows.get(cursor.at);
        let cell = usize::try_from(index)
            .ok()
            .and_then(|index| row?.get(index));
        match cell {
            Some(Cell::Text(text)) => result_text(registration, context, text),
            Some(Cell::Number(number)) => {
                if let Some(result) = registration.api().result_int64 {
                    result(context, i64::try_from(*number).unwrap_or(i64::MAX));
                }
            }
            None => {}
        }
    }
    code::OK
}

unsafe extern "C" fn rowid(cursor: *mut VtabCursor, out: *mut i64) -> c_int {
    // SAFETY: SQLite passes a cursor of `open`, and a place for the answer.
    unsafe { out.write(i64::try_from((*cursor.cast::<OurCursor>()).at).unwrap_or(i64::MAX)) };
    code::OK
}

/// # Safety
/// None: it touches no connection.
unsafe fn rpc_rows(_: &Registration, _: *mut Sqlite3) -> Rows {
    let row = |kind: &CallKind| {
        let count = COUNTERS.read(*kind);
        vec![
            Cell::Text(kind.name().to_owned()),
            Cell::Number(count.count),
            Cell::Number(count.background),
            Cell::Number(count.bytes_sent),
            Cell::Number(count.bytes_received),
        ]
    };
    CallKind::ALL.iter().map(row).collect()
}

/// # Safety
/// `db` is a connection of the registration's library, whose mutex the caller holds.
unsafe fn status_rows(registration: &Registration, db: *mut Sqlite3) -> Rows {
    let mut rows = vec![(
        "library",
        format!("libpagewire {}", env!("CARGO_PKG_VERSION")),
    )];
    // SAFETY: promised by the caller.
    let connection = unsafe { main_connection(registration, db) };
    match &connection {
        Some(connection) => rows.extend(connection.lock().status()),
        None => rows.push((
            "database",
            "the main database is not on Pagewire".to_owned(),
        )),
    }
    if let Some(error) = registration.last_error() {
        rows.push(("last_error", error));
    }
    rows.into_iter()
        .map(|(key, value)| vec![Cell::Text(key.to_owned()), Cell::Text(value)])
        .collect()
}
