//! SQLite's C structures and numbers as far as a VFS meets them (sqlite3.h). They go no further than `ffi/`.

use std::ffi::{c_char, c_int, c_void};

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
        }
    )*};
}

opaque! {
    /// `sqlite3`
    Sqlite3;
    /// `sqlite3_context`
    Context;
    /// `sqlite3_value`
    Value;
}

/// How SQLite frees a text result; `SQLITE_TRANSIENT` makes it copy.
pub type Destructor = isize;
/// `SQLITE_TRANSIENT`
pub const TRANSIENT: Destructor = -1;

/// `xFunc` of a scalar function.
pub type ScalarFunction = unsafe extern "C" fn(*mut Context, c_int, *mut *mut Value);
/// The argument of `sqlite3_auto_extension`, with its true signature.
pub type AutoExtension =
    unsafe extern "C" fn(*mut Sqlite3, *mut *mut c_char, *const super::api::ApiRoutines) -> c_int;

/// `sqlite3_file`
#[repr(C)]
pub struct File {
    pub methods: *const IoMethods,
}

/// `sqlite3_io_methods`, version 1: neither shared memory nor mmap is offered.
#[repr(C)]
pub struct IoMethods {
    pub version: c_int,
    pub close: unsafe extern "C" fn(*mut File) -> c_int,
    pub read: unsafe extern "C" fn(*mut File, *mut c_void, c_int, i64) -> c_int,
    pub write: unsafe extern "C" fn(*mut File, *const c_void, c_int, i64) -> c_int,
    pub truncate: unsafe extern "C" fn(*mut File, i64) -> c_int,
    pub sync: unsafe extern "C" fn(*mut File, c_int) -> c_int,
    pub file_size: unsafe extern "C" fn(*mut File, *mut i64) -> c_int,
    pub lock: unsafe extern "C" fn(*mut File, c_int) -> c_int,
    pub unlock: unsafe extern "C" fn(*mut File, c_int) -> c_int,
    pub check_reserved_lock: unsafe extern "C" fn(*mut File, *mut c_int) -> c_int,
    pub file_control: unsafe extern "C" fn(*mut File, c_int, *mut c_void) -> c_int,
    pub sector_size: unsafe extern "C" fn(*mut File) -> c_int,
    pub device_characteristics: unsafe extern "C" fn(*mut File) -> c_int,
}

/// `sqlite3_vfs`, version 3.
#[repr(C)]
pub struct Vfs {
    pub version: c_int,
    pub os_file_size: c_int,
    pub max_pathname: c_int,
    pub next: *mut Vfs,
    pub name: *const c_char,
    pub app_data: *mut c_void,
    pub open: Option<
        unsafe extern "C" fn(*mut Vfs, *const c_char, *mut File, c_int, *mut c_int) -> c_int,
    >,
    pub delete: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int) -> c_int>,
    pub access: Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_int) -> c_int>,
    pub full_pathname:
        Option<unsafe extern "C" fn(*mut Vfs, *const c_char, c_int, *mut c_char) -> c_int>,
    pub dl_open: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *mut c_void>,
    pub dl_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char)>,
    pub dl_sym: Option<
        unsafe extern "C" fn(
            *mut Vfs,
            *mut c_void,
            *const c_char,
        ) -> Option<unsafe extern "C" fn()>,
    >,
    pub dl_close: Option<unsafe extern "C" fn(*mut Vfs, *mut c_void)>,
    pub randomness: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    pub sleep: Option<unsafe extern "C" fn(*mut Vfs, c_int) -> c_int>,
    pub current_time: Option<unsafe extern "C" fn(*mut Vfs, *mut f64) -> c_int>,
    pub get_last_error: Option<unsafe extern "C" fn(*mut Vfs, c_int, *mut c_char) -> c_int>,
    pub current_time_int64: Option<unsafe extern "C" fn(*mut Vfs, *mut i64) -> c_int>,
    pub set_system_call: Option<
        unsafe extern "C" fn(*mut Vfs, *const c_char, Option<unsafe extern "C" fn()>) -> c_int,
    >,
    pub get_system_call:
        Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> Option<unsafe extern "C" fn()>>,
    pub next_system_call: Option<unsafe extern "C" fn(*mut Vfs, *const c_char) -> *const c_char>,
}

/// `sqlite3_vtab`
#[repr(C)]
pub struct Vtab {
    pub module: *const Module,
    pub reference_count: c_int,
    pub error_message: *mut c_char,
}

/// `sqlite3_vtab_cursor`
#[repr(C)]
pub struct VtabCursor {
    pub vtab: *mut Vtab,
}

/// `sqlite3_index_constraint`
#[repr(C)]
pub struct IndexConstraint {
    pub column: c_int,
    pub op: u8,
    pub usable: u8,
    pub term_offset: c_int,
}

/// `sqlite3_index_constraint_usage`
#[repr(C)]
pub struct IndexConstraintUsage {
    pub argument: c_int,
    pub omit: u8,
}

/// `sqlite3_index_orderby`
#[repr(C)]
pub struct IndexOrderBy {
    pub column: c_int,
    pub descending: u8,
}

/// `SQLITE_INDEX_CONSTRAINT_*`
pub mod constraint {
    pub const EQ: u8 = 2;
    pub const GT: u8 = 4;
    pub const LE: u8 = 8;
    pub const LT: u8 = 16;
    pub const GE: u8 = 32;
}

/// `sqlite3_index_info`, as far as 3.8.2.
#[repr(C)]
pub struct IndexInfo {
    pub constraint_count: c_int,
    pub constraints: *const IndexConstraint,
    pub order_by_count: c_int,
    pub order_by: *const IndexOrderBy,
    pub constraint_usage: *mut IndexConstraintUsage,
    pub index_number: c_int,
    pub index_string: *mut c_char,
    pub free_index_string: c_int,
    pub order_by_consumed: c_int,
    pub estimated_cost: f64,
    pub estimated_rows: i64,
}

type Connect = unsafe extern "C" fn(
    *mut Sqlite3,
    *mut c_void,
    c_int,
    *const *const c_char,
    *mut *mut Vtab,
    *mut *mut c_char,
) -> c_int;

/// `sqlite3_module`, version 0.
#[repr(C)]
pub struct Module {
    pub version: c_int,
    pub create: Option<Connect>,
    pub connect: Option<Connect>,
    pub best_index: Option<unsafe extern "C" fn(*mut Vtab, *mut IndexInfo) -> c_int>,
    pub disconnect: Option<unsafe extern "C" fn(*mut Vtab) -> c_int>,
    pub destroy: Option<unsafe extern "C" fn(*mut Vtab) -> c_int>,
    pub open: Option<unsafe extern "C" fn(*mut Vtab, *mut *mut VtabCursor) -> c_int>,
    pub close: Option<unsafe extern "C" fn(*mut VtabCursor) -> c_int>,
    pub filter: Option<
        unsafe extern "C" fn(
            *mut VtabCursor,
            c_int,
            *const c_char,
            c_int,
            *mut *mut Value,
        ) -> c_int,
    >,
    pub next: Option<unsafe extern "C" fn(*mut VtabCursor) -> c_int>,
    pub eof: Option<unsafe extern "C" fn(*mut VtabCursor) -> c_int>,
    pub column: Option<unsafe extern "C" fn(*mut VtabCursor, *mut Context, c_int) -> c_int>,
    pub rowid: Option<unsafe extern "C" fn(*mut VtabCursor, *mut i64) -> c_int>,
    /// xUpdate to xRollbackTo: a read-only table has none of them.
    pub others: [usize; 10],
}

/// Flags of `sqlite3_create_function_v2`.
pub mod function_flag {
    use super::c_int;
    pub const UTF8: c_int = 1;
    /// Not from triggers, views and the like: whoever writes a schema must not have effects in who opens it.
    pub const DIRECTONLY: c_int = 0x80000;
}

/// Result codes.
pub mod code {
    use super::c_int;
    pub const OK: c_int = 0;
    pub const ERROR: c_int = 1;
    pub const BUSY: c_int = 5;
    pub const READONLY: c_int = 8;
    pub const IOERR: c_int = 10;
    pub const NOMEM: c_int = 7;
    pub const NOTFOUND: c_int = 12;
    pub const FULL: c_int = 13;
    pub const CANTOPEN: c_int = 14;
    pub const CONSTRAINT: c_int = 19;
    pub const WARNING: c_int = 28;
    pub const OK_LOAD_PERMANENTLY: c_int = 256;
    pub const BUSY_SNAPSHOT: c_int = BUSY | 2 << 8;
    pub const IOERR_READ: c_int = IOERR | 1 << 8;
    pub const IOERR_SHORT_READ: c_int = IOERR | 2 << 8;
    pub const IOERR_WRITE: c_int = IOERR | 3 << 8;
    pub const IOERR_FSYNC: c_int = IOERR | 4 << 8;
    pub const IOERR_TRUNCATE: c_int = IOERR | 6 << 8;
    pub const IOERR_FSTAT: c_int = IOERR | 7 << 8;
    pub const IOERR_UNLOCK: c_int = IOERR | 8 << 8;
    pub const IOERR_DELETE: c_int = IOERR | 10 << 8;
    pub const IOERR_ACCESS: c_int = IOERR | 13 << 8;
    pub const IOERR_CHECKRESERVEDLOCK: c_int = IOERR | 14 << 8;
    pub const IOERR_LOCK: c_int = IOERR | 15 << 8;
    pub const IOERR_CLOSE: c_int = IOERR | 16 << 8;
    pub const IOERR_DELETE_NOENT: c_int = IOERR | 23 << 8;
    /// `SQLITE_IOERR_DATA`: a page does not have its checksum.
    pub const IOERR_DATA: c_int = IOERR | 32 << 8;
}

/// Flags of `xOpen`.
pub mod open_flag {
    use super::c_int;
    pub const READONLY: c_int = 0x1;
    pub const READWRITE: c_int = 0x2;
    pub const CREATE: c_int = 0x4;
    pub const MAIN_DB: c_int = 0x100;
    pub const MAIN_JOURNAL: c_int = 0x800;
    pub const SUPER_JOURNAL: c_int = 0x4000;
    pub const WAL: c_int = 0x80000;
}

/// `SQLITE_FCNTL_*`
pub mod fcntl {
    use super::c_int;
    pub const LOCKSTATE: c_int = 1;
    pub const LAST_ERRNO: c_int = 4;
    pub const SIZE_HINT: c_int = 5;
    pub const CHUNK_SIZE: c_int = 6;
    pub const OVERWRITE: c_int = 11;
    pub const VFSNAME: c_int = 12;
    pub const POWERSAFE_OVERWRITE: c_int = 13;
    pub const PRAGMA: c_int = 14;
    pub const BUSYHANDLER: c_int = 15;
    pub const HAS_MOVED: c_int = 20;
    pub const SYNC: c_int = 21;
    pub const COMMIT_PHASETWO: c_int = 22;
    /// The address of the connection, told when it has opened the file.
    pub const PDB: c_int = 30;
    pub const BEGIN_ATOMIC_WRITE: c_int = 31;
    pub const COMMIT_ATOMIC_WRITE: c_int = 32;
    pub const ROLLBACK_ATOMIC_WRITE: c_int = 33;
    /// Ours: puts a `*const Handle` into the argument. Numbers below 100 belong to SQLite.
    pub const PAGEWIRE_HANDLE: c_int = 7240;
}

/// `SQLITE_IOCAP_*`
pub mod iocap {
    use super::c_int;
    pub const SAFE_APPEND: c_int = 0x200;
    pub const SEQUENTIAL: c_int = 0x400;
    pub const POWERSAFE_OVERWRITE: c_int = 0x1000;
    pub const BATCH_ATOMIC: c_int = 0x4000;
}
