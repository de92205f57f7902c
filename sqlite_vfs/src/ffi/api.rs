//! The part of `sqlite3_api_routines` (sqlite3ext.h) that Pagewire uses, written down so that no SQLite header or
//! binding generator is needed to build.
//!
//! The table only ever grows at its end, so offsets hold for every SQLite. `filename_journal` came with 3.31.0 and is the
//! newest entry used; nothing behind it may be read without asking `libversion_number` first.

// The meaning of each entry is SQLite's documentation of `sqlite3_<name>`.
#![allow(missing_docs, clippy::type_complexity)]

use std::ffi::{c_char, c_int, c_void};
use std::mem::offset_of;

use super::types::{
    AutoExtension, Context, Destructor, Module, ScalarFunction, Sqlite3, Value, Vfs,
};

/// The functions that a SQLite library hands to an extension.
#[repr(C)]
pub struct ApiRoutines {
    _until_declare_vtab: [usize; 50],
    pub declare_vtab: Option<unsafe extern "C" fn(*mut Sqlite3, *const c_char) -> c_int>,
    _until_free: [usize; 7],
    pub free: Option<unsafe extern "C" fn(*mut c_void)>,
    _until_get_autocommit: [usize; 1],
    pub get_autocommit: Option<unsafe extern "C" fn(*mut Sqlite3) -> c_int>,
    _until_libversion_number: [usize; 6],
    pub libversion_number: Option<unsafe extern "C" fn() -> c_int>,
    _until_result_error: [usize; 12],
    pub result_error: Option<unsafe extern "C" fn(*mut Context, *const c_char, c_int)>,
    _until_result_int64: [usize; 2],
    pub result_int64: Option<unsafe extern "C" fn(*mut Context, i64)>,
    pub result_null: Option<unsafe extern "C" fn(*mut Context)>,
    pub result_text: Option<unsafe extern "C" fn(*mut Context, *const c_char, c_int, Destructor)>,
    _until_user_data: [usize; 15],
    pub user_data: Option<unsafe extern "C" fn(*mut Context) -> *mut c_void>,
    _until_value_bytes: [usize; 1],
    pub value_bytes: Option<unsafe extern "C" fn(*mut Value) -> c_int>,
    _until_value_text: [usize; 5],
    pub value_text: Option<unsafe extern "C" fn(*mut Value) -> *const c_char>,
    _until_create_module_v2: [usize; 9],
    pub create_module_v2: Option<
        unsafe extern "C" fn(
            *mut Sqlite3,
            *const c_char,
            *const Module,
            *mut c_void,
            Option<unsafe extern "C" fn(*mut c_void)>,
        ) -> c_int,
    >,
    _until_file_control: [usize; 7],
    pub file_control:
        Option<unsafe extern "C" fn(*mut Sqlite3, *const c_char, c_int, *mut c_void) -> c_int>,
    _until_vfs_find: [usize; 13],
    pub vfs_find: Option<unsafe extern "C" fn(*const c_char) -> *mut Vfs>,
    pub vfs_register: Option<unsafe extern "C" fn(*mut Vfs, c_int) -> c_int>,
    _until_result_error_code: [usize; 3],
    pub result_error_code: Option<unsafe extern "C" fn(*mut Context, c_int)>,
    _until_context_db_handle: [usize; 2],
    pub context_db_handle: Option<unsafe extern "C" fn(*mut Context) -> *mut Sqlite3>,
    _until_create_function_v2: [usize; 12],
    pub create_function_v2: Option<
        unsafe extern "C" fn(
            *mut Sqlite3,
            *const c_char,
            c_int,
            c_int,
            *mut c_void,
            Option<ScalarFunction>,
            Option<ScalarFunction>,
            Option<unsafe extern "C" fn(*mut Context)>,
            Option<unsafe extern "C" fn(*mut c_void)>,
        ) -> c_int,
    >,
    _until_log: [usize; 4],
    pub log: Option<unsafe extern "C" fn(c_int, *const c_char, ...)>,
    _until_uri_parameter: [usize; 21],
    pub uri_parameter: Option<unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char>,
    _until_auto_extension: [usize; 2],
    pub auto_extension: Option<unsafe extern "C" fn(Option<AutoExtension>) -> c_int>,
    _until_malloc64: [usize; 4],
    pub malloc64: Option<unsafe extern "C" fn(u64) -> *mut c_void>,
    _until_filename_journal: [usize; 49],
    pub filename_journal: Option<unsafe extern "C" fn(*const c_char) -> *const c_char>,
}

// Position of each entry in the table of sqlite3ext.h.
const _: () = {
    assert!(offset_of!(ApiRoutines, declare_vtab) == 50 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, free) == 58 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, get_autocommit) == 60 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, libversion_number) == 67 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, result_error) == 80 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, result_int64) == 83 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, result_null) == 84 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, result_text) == 85 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, user_data) == 101 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, value_bytes) == 103 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, value_text) == 109 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, create_module_v2) == 119 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, file_control) == 127 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, vfs_find) == 141 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, vfs_register) == 142 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, result_error_code) == 146 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, context_db_handle) == 149 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, create_function_v2) == 162 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, log) == 167 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, uri_parameter) == 189 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, auto_extension) == 192 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, malloc64) == 197 * size_of::<usize>());
    assert!(offset_of!(ApiRoutines, filename_journal) == 247 * size_of::<usize>());
};
