//! The few SQLite calls that rusqlite does not offer in the form that a shell needs: the text of a
//! result exactly as SQLite writes it, the tail and the offset of a statement, completeness.
//!
//! All unsafe code of the shell is here. It never keeps a pointer beyond the borrow of the
//! connection or of the row that it came from.

#![expect(
    unsafe_code,
    reason = "sqlite3_column_text, sqlite3_complete and file controls have no safe form in rusqlite"
)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use rusqlite::types::Value;
use rusqlite::{Connection, ffi};

/// What SQLite says of a failed call.
#[derive(Debug, Clone)]
pub(super) struct SqlFailure {
    /// The primary result code.
    pub code: i32,
    /// `sqlite3_errmsg`.
    pub message: String,
    /// Byte offset of the culprit in the statement's text, when SQLite knows it.
    pub offset: Option<usize>,
}

/// The storage class of a result cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Null,
    Integer,
    Real,
    Text,
    Blob,
}

/// How a statement explains itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Explain {
    No,
    Bytecode,
    QueryPlan,
}

/// A prepared statement that keeps its connection borrowed.
pub(super) struct Query<'c> {
    stmt: *mut ffi::sqlite3_stmt,
    connection: &'c Connection,
}

impl Drop for Query<'_> {
    fn drop(&mut self) {
        // SAFETY: `stmt` came from sqlite3_prepare_v2 and is finalized only here.
        unsafe { ffi::sqlite3_finalize(self.stmt) };
    }
}

/// Compiles the first statement of `sql`; says how many bytes it took. `None` is a blank or a comment.
pub(super) fn prepare<'c>(
    connection: &'c Connection,
    sql: &[u8],
) -> Result<(Option<Query<'c>>, usize), SqlFailure> {
    let mut stmt = ptr::null_mut();
    let mut tail: *const c_char = ptr::null();
    let start = sql.as_ptr().cast::<c_char>();
    let length = c_int::try_from(sql.len()).map_err(|_| SqlFailure {
        code: ffi::SQLITE_TOOBIG,
        message: "string or blob too big".to_owned(),
        offset: None,
    })?;
    // SAFETY: the connection is open while it is borrowed; SQLite reads at most `length` bytes of
    // `sql` and sets `tail` to a place in them.
    let code = unsafe {
        ffi::sqlite3_prepare_v2(
            connection.handle(),
            start,
            length,
            &raw mut stmt,
            &raw mut tail,
        )
    };
    if code != ffi::SQLITE_OK {
        return Err(failure(connection, code));
    }
    let used = (tail as usize)
        .saturating_sub(start as usize)
        .min(sql.len());
    let query = (!stmt.is_null()).then_some(Query { stmt, connection });
    Ok((query, used))
}

fn failure(connection: &Connection, code: c_int) -> SqlFailure {
    // SAFETY: the handle is open; the message is copied before any other call can change it.
    unsafe {
        let handle = connection.handle();
        let offset = ffi::sqlite3_error_offset(handle);
        SqlFailure {
            code: code & 0xff,
            message: text_of(ffi::sqlite3_errmsg(handle)),
            offset: usize::try_from(offset).ok(),
        }
    }
}

/// Copies a string of SQLite; empty for NULL.
///
/// # Safety
/// `text` is NULL or ends with a zero byte and stays unchanged during the call.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller promises a terminated string.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

impl Query<'_> {
    /// Runs to the next row; false at the end.
    pub(super) fn step(&mut self) -> Result<bool, SqlFailure> {
        // SAFETY: `stmt` lives as long as `self`, and nobody else steps it.
        match unsafe { ffi::sqlite3_step(self.stmt) } {
            ffi::SQLITE_ROW => Ok(true),
            ffi::SQLITE_DONE => Ok(false),
            code => Err(failure(self.connection, code)),
        }
    }

    /// How many columns a row has; 0 for a statement without result.
    pub(super) fn column_count(&self) -> usize {
        // SAFETY: `stmt` lives as long as `self`.
        usize::try_from(unsafe { ffi::sqlite3_column_count(self.stmt) }).unwrap_or(0)
    }

    /// The name of a column.
    pub(super) fn column_name(&self, column: usize) -> String {
        // SAFETY: SQLite answers NULL for a column that does not exist; the name is copied at once.
        unsafe { text_of(ffi::sqlite3_column_name(self.stmt, index(column))) }
    }

    /// All column names.
    pub(super) fn column_names(&self) -> Vec<String> {
        (0..self.column_count())
            .map(|column| self.column_name(column))
            .collect()
    }

    /// The storage class of a cell of the current row.
    pub(super) fn class(&self, column: usize) -> Class {
        // SAFETY: SQLite answers SQLITE_NULL for what is not there.
        match unsafe { ffi::sqlite3_column_type(self.stmt, index(column)) } {
            ffi::SQLITE_INTEGER => Class::Integer,
            ffi::SQLITE_FLOAT => Class::Real,
            ffi::SQLITE_TEXT => Class::Text,
            ffi::SQLITE_BLOB => Class::Blob,
            _ => Class::Null,
        }
    }

    /// The cell as SQLite writes it, up to its first zero byte as a C program would print it; `None` for NULL.
    pub(super) fn text(&mut self, column: usize) -> Option<&[u8]> {
        // SAFETY: the string is terminated by SQLite and stays until the next call on this
        // statement, which needs `&mut self` and so ends the borrow.
        unsafe {
            let text = ffi::sqlite3_column_text(self.stmt, index(column));
            (!text.is_null()).then(|| CStr::from_ptr(text.cast()).to_bytes())
        }
    }

    /// The bytes of the cell.
    pub(super) fn blob(&mut self, column: usize) -> &[u8] {
        // SAFETY: sqlite3_column_bytes right after sqlite3_column_blob is the length of that blob,
        // which stays until the next call on this statement (needs `&mut self`).
        unsafe {
            let start = ffi::sqlite3_column_blob(self.stmt, index(column)).cast::<u8>();
            let length = ffi::sqlite3_column_bytes(self.stmt, index(column));
            match usize::try_from(length) {
                Ok(length) if !start.is_null() => std::slice::from_raw_parts(start, length),
                _ => &[],
            }
        }
    }

    /// The cell as a number.
    pub(super) fn real(&self, column: usize) -> f64 {
        // SAFETY: SQLite answers 0.0 for what is not there.
        unsafe { ffi::sqlite3_column_double(self.stmt, index(column)) }
    }

    /// The cell as an integer.
    pub(super) fn integer(&self, column: usize) -> i64 {
        // SAFETY: SQLite answers 0 for what is not there.
        unsafe { ffi::sqlite3_column_int64(self.stmt, index(column)) }
    }

    /// Whether this is an EXPLAIN.
    pub(super) fn explain(&self) -> Explain {
        // SAFETY: `stmt` lives as long as `self`.
        match unsafe { ffi::sqlite3_stmt_isexplain(self.stmt) } {
            1 => Explain::Bytecode,
            2 => Explain::QueryPlan,
            _ => Explain::No,
        }
    }

    /// A performance counter of this statement (`SQLITE_STMTSTATUS_*`).
    pub(super) fn counter(&self, kind: c_int) -> c_int {
        // SAFETY: `stmt` lives as long as `self`; 0 means do not reset.
        unsafe { ffi::sqlite3_stmt_status(self.stmt, kind, 0) }
    }

    /// The names of the parameters in order; a nameless one is `?N`.
    pub(super) fn parameter_names(&self) -> Vec<String> {
        // SAFETY: `stmt` lives as long as `self`; a nameless parameter answers NULL.
        let count = unsafe { ffi::sqlite3_bind_parameter_count(self.stmt) };
        (1..=count)
            .map(|number| {
                // SAFETY: as above; the name is copied at once.
                let name = unsafe { text_of(ffi::sqlite3_bind_parameter_name(self.stmt, number)) };
                if name.is_empty() {
                    format!("?{number}")
                } else {
                    name
                }
            })
            .collect()
    }

    /// Binds parameter `number` (from 1).
    pub(super) fn bind(&mut self, number: usize, value: &Value) -> Result<(), SqlFailure> {
        let number = index(number);
        // SAFETY: SQLITE_TRANSIENT makes SQLite copy the bytes before the call returns.
        let code = unsafe {
            match value {
                Value::Null => ffi::sqlite3_bind_null(self.stmt, number),
                Value::Integer(integer) => ffi::sqlite3_bind_int64(self.stmt, number, *integer),
                Value::Real(real) => ffi::sqlite3_bind_double(self.stmt, number, *real),
                Value::Text(text) => ffi::sqlite3_bind_text(
                    self.stmt,
                    number,
                    text.as_ptr().cast(),
                    index(text.len()),
                    ffi::SQLITE_TRANSIENT(),
                ),
                Value::Blob(blob) => ffi::sqlite3_bind_blob(
                    self.stmt,
                    number,
                    blob.as_ptr().cast(),
                    index(blob.len()),
                    ffi::SQLITE_TRANSIENT(),
                ),
            }
        };
        if code == ffi::SQLITE_OK {
            Ok(())
        } else {
            Err(failure(self.connection, code))
        }
    }

    /// Binds text that need not be UTF-8.
    pub(super) fn bind_text(&mut self, number: usize, text: &[u8]) -> Result<(), SqlFailure> {
        // SAFETY: SQLITE_TRANSIENT makes SQLite copy the bytes before the call returns.
        let code = unsafe {
            ffi::sqlite3_bind_text(
                self.stmt,
                index(number),
                text.as_ptr().cast(),
                index(text.len()),
                ffi::SQLITE_TRANSIENT(),
            )
        };
        if code == ffi::SQLITE_OK {
            Ok(())
        } else {
            Err(failure(self.connection, code))
        }
    }

    /// Makes the statement ready to run again.
    pub(super) fn reset(&mut self) {
        // SAFETY: `stmt` lives as long as `self`. The code repeats that of the last step.
        unsafe { ffi::sqlite3_reset(self.stmt) };
    }
}

/// SQLite checks the range itself: what does not fit becomes a column that does not exist.
fn index(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

/// Whether `sql` ends a statement (`sqlite3_complete`).
pub(super) fn is_complete(sql: &[u8]) -> bool {
    let text: Vec<u8> = sql.iter().copied().take_while(|byte| *byte != 0).collect();
    // SAFETY: the bytes end with a zero and outlive the call.
    CString::new(text).is_ok_and(|sql| unsafe { ffi::sqlite3_complete(sql.as_ptr()) } != 0)
}

/// All keywords of this SQLite.
pub(super) fn keywords() -> Vec<String> {
    // SAFETY: SQLite lends static text of the length that it states, for each index below the count.
    unsafe {
        (0..ffi::sqlite3_keyword_count())
            .filter_map(|number| {
                let (mut name, mut length): (*const c_char, c_int) = (ptr::null(), 0);
                let code = ffi::sqlite3_keyword_name(number, &raw mut name, &raw mut length);
                let length = usize::try_from(length).ok()?;
                if code != ffi::SQLITE_OK || name.is_null() {
                    return None;
                }
                let bytes = std::slice::from_raw_parts(name.cast::<u8>(), length);
                Some(String::from_utf8_lossy(bytes).into_owned())
            })
            .collect()
    }
}

/// Makes reals print with 15 significant digits, as every `sqlite3` shell before 3.53 did.
pub(super) fn print_reals_with_15_digits(connection: &Connection) {
    let mut digits: c_int = 0;
    // SAFETY: this option takes an int and an int pointer; an older SQLite answers SQLITE_ERROR.
    unsafe {
        let digits = &raw mut digits;
        ffi::sqlite3_db_config(
            connection.handle(),
            ffi::SQLITE_DBCONFIG_FP_DIGITS,
            15 as c_int,
            digits,
        );
    }
}

/// The stack of VFS names under `schema`, as the file control tells it.
pub(super) fn vfs_name(connection: &Connection, schema: &str) -> Option<String> {
    let schema = CString::new(schema).ok()?;
    let mut name: *mut c_char = ptr::null_mut();
    // SAFETY: SQLITE_FCNTL_VFSNAME stores a string of sqlite3_malloc in `name`, which we free.
    unsafe {
        let code = ffi::sqlite3_file_control(
            connection.handle(),
            schema.as_ptr(),
            ffi::SQLITE_FCNTL_VFSNAME,
            (&raw mut name).cast(),
        );
        let text = (code == ffi::SQLITE_OK && !name.is_null()).then(|| text_of(name));
        ffi::sqlite3_free(name.cast());
        text
    }
}

/// What `.vfsinfo` prints of a VFS.
pub(super) struct VfsFacts {
    pub name: String,
    pub version: c_int,
    pub file_bytes: c_int,
    pub path_bytes: c_int,
}

/// The VFS of `schema`, as the file control tells it.
pub(super) fn vfs_facts(connection: &Connection, schema: &str) -> Option<VfsFacts> {
    let schema = CString::new(schema).ok()?;
    let mut vfs: *mut ffi::sqlite3_vfs = ptr::null_mut();
    // SAFETY: SQLITE_FCNTL_VFS_POINTER stores a registered VFS, which outlives its connections.
    unsafe {
        ffi::sqlite3_file_control(
            connection.handle(),
            schema.as_ptr(),
            ffi::SQLITE_FCNTL_VFS_POINTER,
            (&raw mut vfs).cast(),
        );
        vfs.as_ref().map(|vfs| VfsFacts {
            name: text_of(vfs.zName),
            version: vfs.iVersion,
            file_bytes: vfs.szOsFile,
            path_bytes: vfs.mxPathname,
        })
    }
}

/// Loads an extension library; the error is SQLite's text.
pub(super) fn load_extension(
    connection: &Connection,
    file: &str,
    entry: Option<&str>,
) -> Result<(), String> {
    let file = CString::new(file).map_err(|_| "file name with a zero byte".to_owned())?;
    let entry = entry
        .map(CString::new)
        .transpose()
        .map_err(|_| "entry point with a zero byte".to_owned())?;
    let mut message: *mut c_char = ptr::null_mut();
    // SAFETY: the user asked for this library by name; the strings outlive the call and the
    // message is sqlite3_malloc'ed, copied and freed here.
    unsafe {
        let handle = connection.handle();
        ffi::sqlite3_enable_load_extension(handle, 1);
        let code = ffi::sqlite3_load_extension(
            handle,
            file.as_ptr(),
            entry.as_ref().map_or(ptr::null(), |entry| entry.as_ptr()),
            &raw mut message,
        );
        ffi::sqlite3_enable_load_extension(handle, 0);
        let text = text_of(message);
        ffi::sqlite3_free(message.cast());
        if code == ffi::SQLITE_OK {
            Ok(())
        } else {
            Err(text)
        }
    }
}

/// A counter of the connection (`SQLITE_DBSTATUS_*`): its current and its highest value.
pub(super) fn connection_counter(connection: &Connection, kind: c_int) -> (c_int, c_int) {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: both pointers are ours for the length of the call.
    unsafe {
        ffi::sqlite3_db_status(
            connection.handle(),
            kind,
            &raw mut current,
            &raw mut highest,
            0,
        );
    }
    (current, highest)
}

/// Bytes of memory that SQLite uses in this process: now and at most.
pub(super) fn memory_bytes() -> (i64, i64) {
    // SAFETY: both calls only read counters.
    unsafe { (ffi::sqlite3_memory_used(), ffi::sqlite3_memory_highwater(0)) }
}

/// Seconds of processor time of this process: in user and in system mode.
pub(super) fn processor_seconds() -> (f64, f64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage fills the struct that we own; zeroed is a valid value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime), seconds(usage.ru_stime))
}
