//! Table-valued functions, eponymous and read-only; what their rows are is in `tables.rs`.
//!
//! Arguments are hidden columns behind the others; rows are taken one by one, so that a LIMIT saves calls. A table whose first
//! column falls from row to row is told between which values of it SQLite wants rows.

use std::ffi::{CStr, c_char, c_int, c_void};

use super::boundary::{Op, code_of};
use super::functions::{main_connection, result_text, text_of};
use super::registration::Registration;
use super::tables::TABLES;
use super::types::{
    Context, IndexInfo, Module, Sqlite3, Value, Vtab, VtabCursor, code, constraint,
};
use crate::error::{Error, Kind, Result};

/// A value of a row.
pub enum Cell {
    Null,
    Text(String),
    Number(u64),
}

pub type Row = Vec<Cell>;

/// Rows, made as they are taken.
pub type Rows = Box<dyn Iterator<Item = Result<Row>>>;

/// The arguments of a table, in the order of its hidden columns; `None` for NULL and for those that were left out.
pub type Arguments = [Option<String>];

/// A table: its declaration, and how its rows are made when it is scanned.
pub struct Table {
    pub name: &'static CStr,
    pub declaration: &'static CStr,
    /// Columns before the hidden ones, and how many of those there are.
    pub columns: c_int,
    pub arguments: usize,
    /// The first column falls from row to row. Behind the arguments come the largest and the smallest value that are wanted of it.
    pub falls: bool,
    /// Called with the mutex of the SQLite connection held.
    pub rows: unsafe fn(&'static Registration, *mut Sqlite3, &Arguments) -> Result<Rows>,
}

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
    row: Option<Row>,
    number: i64,
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
            return Err(super::functions::not_made("sqlite3_create_module", rc));
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

/// The operators that make a constraint an argument: equality with a hidden column, and for a first column that falls its
/// largest and its smallest value.
fn constraints(table: &Table) -> Vec<(c_int, &'static [u8])> {
    let hidden = (0..table.arguments).map(|hidden| table.columns + hidden as c_int);
    let mut all: Vec<_> = hidden
        .map(|column| (column, &[constraint::EQ][..]))
        .collect();
    if table.falls {
        all.push((0, &[constraint::EQ, constraint::LE, constraint::LT]));
        all.push((0, &[constraint::EQ, constraint::GE, constraint::GT]));
    }
    all
}

/// Which arguments there are goes to xFilter as bits.
unsafe extern "C" fn best_index(table: *mut Vtab, info: *mut IndexInfo) -> c_int {
    // SAFETY: SQLite passes a table of `connect`, and a structure to be filled with as many constraints and places as it says.
    unsafe {
        let table = (*(*table.cast::<OurTable>()).source).table;
        let info = &mut *info;
        let count = usize::try_from(info.constraint_count).unwrap_or(0);
        let mut given = 0;
        info.index_number = 0;
        let wanted = constraints(table);
        let count_wanted = wanted.len();
        for (argument, (column, operators)) in wanted.into_iter().enumerate() {
            let mut is_named = false;
            let mut usable = None;
            for index in 0..count {
                let constraint = &*info.constraints.add(index);
                if constraint.column == column && operators.contains(&constraint.op) {
                    is_named = true;
                    // A constraint can be one argument only.
                    let free = (*info.constraint_usage.add(index)).argument == 0;
                    if constraint.usable != 0 && free {
                        usable.get_or_insert(index);
                    }
                }
            }
            let is_hidden = argument < table.arguments;
            match usable {
                Some(index) => {
                    given += 1;
                    let usage = &mut *info.constraint_usage.add(index);
                    usage.argument = given;
                    // What only saves rows SQLite checks itself.
                    usage.omit = u8::from(is_hidden);
                    info.index_number |= 1 << argument;
                    let op = (*info.constraints.add(index)).op;
                    if !is_hidden && op == constraint::EQ {
                        // Largest and smallest at once.
                        info.index_number |= 1 << count_wanted;
                    }
                }
                // Its value is not known in this plan: another one has to be found.
                None if is_named && is_hidden => return code::CONSTRAINT,
                None => {}
            }
        }
        if table.falls && info.order_by_count == 1 {
            let order = &*info.order_by;
            info.order_by_consumed = c_int::from(order.column == 0 && order.descending != 0);
        }
        info.estimated_cost = if given > 0 { 10.0 } else { 100.0 };
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
            rows: Box::new(std::iter::empty()),
            row: None,
            number: 0,
        }))
        .cast()
    };
    code::OK
}

unsafe extern "C" fn close(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: made by `open`; SQLite calls this once.
    let cursor = unsafe { Box::from_raw(cursor.cast::<OurCursor>()) };
    drop_guarded(cursor);
    code::OK
}

unsafe extern "C" fn filter(
    cursor: *mut VtabCursor,
    given: c_int,
    _: *const c_char,
    count: c_int,
    values: *mut *mut Value,
) -> c_int {
    // SAFETY: SQLite passes a cursor of `open` on a table of `connect` with as many values as it says, and holds the
    // connection's mutex.
    unsafe {
        let cursor = &mut *cursor.cast::<OurCursor>();
        let table = cursor.base.vtab.cast::<OurTable>();
        // No reference to the table itself: a message may be put into it while the rows are made.
        let (source, db) = (&*(*table).source, (*table).db);
        let mut values = (0..usize::try_from(count).unwrap_or(0))
            .map(|index| text_of(source.registration, *values.add(index)));
        let wanted = constraints(source.table).len();
        let mut arguments: Vec<_> = (0..wanted)
            .map(|argument| match given & 1 << argument {
                0 => None,
                _ => values.next().flatten(),
            })
            .collect();
        if given & 1 << wanted != 0
            && let [.., most, least] = &mut arguments[..]
        {
            match most {
                Some(most) => *least = Some(most.clone()),
                None => *most = least.clone(),
            }
        }
        let rows = guarded(cursor.base.vtab, || {
            (source.table.rows)(source.registration, db, &arguments)
        });
        cursor.number = 0;
        match rows {
            Ok(rows) => drop_guarded(std::mem::replace(&mut cursor.rows, rows)),
            Err(rc) => return rc,
        }
        advance(cursor)
    }
}

/// Rows hold what their database needs, and the last to let go of it ends more than itself: no panic of that leaves.
fn drop_guarded<T>(value: T) {
    // There is nobody to tell.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(value)));
}

/// Runs what may fail; the message goes to the table, where SQLite looks for it.
///
/// # Safety
/// `table` is a table of `connect`.
unsafe fn guarded<T>(
    table: *mut Vtab,
    body: impl FnOnce() -> Result<T>,
) -> std::result::Result<T, c_int> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a bug in pagewire")));
    outcome.map_err(|error| {
        let rc = code_of(Op::Own, error.kind);
        #[cfg(feature = "simulation")]
        crate::simulation::failed(&error);
        // SAFETY: promised by the caller. A message that SQLite has not taken yet is its own to free.
        unsafe {
            let ours = &*table.cast::<OurTable>();
            let registration = (*ours.source).registration;
            let client = main_connection(registration, ours.db)
                .and_then(|connection| Some(connection.try_lock()?.settings().client()));
            registration.log(rc, &error.message, client);
            if let (Some(free), false) = (registration.api().free, (*table).error_message.is_null())
            {
                free((*table).error_message.cast());
            }
            (*table).error_message = registration.allocate_text(&error.message);
        }
        rc
    })
}

/// # Safety
/// `cursor` is one of `open`.
unsafe fn advance(cursor: &mut OurCursor) -> c_int {
    let rows = &mut cursor.rows;
    // SAFETY: SQLite has put the table into the cursor.
    match unsafe { guarded(cursor.base.vtab, || rows.next().transpose()) } {
        Ok(row) => {
            cursor.row = row;
            cursor.number += 1;
            code::OK
        }
        Err(rc) => {
            cursor.row = None;
            rc
        }
    }
}

unsafe extern "C" fn next(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: SQLite passes a cursor of `open`.
    unsafe { advance(&mut *cursor.cast::<OurCursor>()) }
}

unsafe extern "C" fn eof(cursor: *mut VtabCursor) -> c_int {
    // SAFETY: SQLite passes a cursor of `open`.
    c_int::from(unsafe { &*cursor.cast::<OurCursor>() }.row.is_none())
}

unsafe extern "C" fn column(cursor: *mut VtabCursor, context: *mut Context, index: c_int) -> c_int {
    // SAFETY: SQLite passes a cursor of `open` that is not at its end.
    unsafe {
        let cursor = &*cursor.cast::<OurCursor>();
        let table = cursor.base.vtab.cast::<OurTable>();
        let registration = (*(*table).source).registration;
        let row = cursor.row.as_ref();
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
            // NULL is what SQLite takes where nothing is said.
            Some(Cell::Null) | None => {}
        }
    }
    code::OK
}

unsafe extern "C" fn rowid(cursor: *mut VtabCursor, out: *mut i64) -> c_int {
    // SAFETY: SQLite passes a cursor of `open`, and a place for the answer.
    unsafe { out.write((*cursor.cast::<OurCursor>()).number) };
    code::OK
}
