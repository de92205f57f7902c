//! The C API of the FoundationDB client, version 730, as far as the crate `foundationdb` calls it: each function finds itself in a
//! library that [`load`] has opened at run time.
//!
//! Never links the library and reads no header: a machine without FoundationDB builds and runs everything else. A function that
//! is called before [`load`] has succeeded answers an error, or nothing; it never reaches for a library by itself.

// The names are those of the C API.
#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
// Functions of C: what each asks of its caller is in the manual of the client API, to which the crate `foundationdb` keeps.
#![allow(
    unsafe_code,
    missing_docs,
    clippy::missing_safety_doc,
    clippy::too_many_arguments
)]

mod library;
mod options;

use std::os::raw::{c_char, c_double, c_int, c_void};

pub use library::{NotLoaded, load};
pub use options::*;

pub const FDB_API_VERSION: u32 = 730;

pub type fdb_error_t = c_int;
pub type fdb_bool_t = c_int;

macro_rules! opaque {
    ($($name:ident as $alias:ident;)*) => {$(
        /// An object of the library, known only by its address.
        #[repr(C)]
        pub struct $name {
            _nothing: [u8; 0],
        }
        pub type $alias = $name;
    )*};
}

opaque! {
    FDB_future as FDBFuture;
    FDB_result as FDBResult;
    FDB_cluster as FDBCluster;
    FDB_database as FDBDatabase;
    FDB_tenant as FDBTenant;
    FDB_transaction as FDBTransaction;
}

/// A key in the memory of a future.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct FDBKey {
    pub key: *const u8,
    pub key_length: c_int,
}

/// A key and its value in the memory of a future.
#[repr(C, packed(4))]
#[derive(Clone, Copy)]
pub struct FDBKeyValue {
    pub key: *const u8,
    pub key_length: c_int,
    pub value: *const u8,
    pub value_length: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct FDBKeySelector {
    pub key: FDBKey,
    pub orEqual: fdb_bool_t,
    pub offset: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct FDBGetRangeReqAndResult {
    pub begin: FDBKeySelector,
    pub end: FDBKeySelector,
    pub data: *mut FDBKeyValue,
    pub m_size: c_int,
    pub m_capacity: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct FDBMappedKeyValue {
    pub key: FDBKey,
    pub value: FDBKey,
    pub getRange: FDBGetRangeReqAndResult,
    pub buffer: [u8; 32],
}

pub type FDBCallback = Option<unsafe extern "C" fn(*mut FDBFuture, *mut c_void)>;

library::functions! {
    fn fdb_get_error(code: fdb_error_t) -> *const c_char;
    fn fdb_error_predicate(predicate: c_int, code: fdb_error_t) -> fdb_bool_t;
    fn fdb_select_api_version_impl(runtime: c_int, header: c_int) -> fdb_error_t;
    fn fdb_get_max_api_version() -> c_int;
    fn fdb_network_set_option(option: FDBNetworkOption, value: *const u8, length: c_int) -> fdb_error_t;
    fn fdb_setup_network() -> fdb_error_t;
    fn fdb_run_network() -> fdb_error_t;
    fn fdb_stop_network() -> fdb_error_t;

    fn fdb_future_destroy(future: *mut FDBFuture) -> ();
    fn fdb_future_is_ready(future: *mut FDBFuture) -> fdb_bool_t;
    fn fdb_future_set_callback(future: *mut FDBFuture, callback: FDBCallback, parameter: *mut c_void) -> fdb_error_t;
    fn fdb_future_get_error(future: *mut FDBFuture) -> fdb_error_t;
    fn fdb_future_get_int64(future: *mut FDBFuture, out: *mut i64) -> fdb_error_t;
    fn fdb_future_get_key(future: *mut FDBFuture, out: *mut *const u8, length: *mut c_int) -> fdb_error_t;
    fn fdb_future_get_value(future: *mut FDBFuture, present: *mut fdb_bool_t, out: *mut *const u8, length: *mut c_int) -> fdb_error_t;
    fn fdb_future_get_keyvalue_array(future: *mut FDBFuture, out: *mut *const FDBKeyValue, count: *mut c_int, more: *mut fdb_bool_t) -> fdb_error_t;
    fn fdb_future_get_mappedkeyvalue_array(future: *mut FDBFuture, out: *mut *const FDBMappedKeyValue, count: *mut c_int, more: *mut fdb_bool_t) -> fdb_error_t;
    fn fdb_future_get_key_array(future: *mut FDBFuture, out: *mut *const FDBKey, count: *mut c_int) -> fdb_error_t;
    fn fdb_future_get_string_array(future: *mut FDBFuture, out: *mut *mut *const c_char, count: *mut c_int) -> fdb_error_t;

    fn fdb_create_database(path: *const c_char, out: *mut *mut FDBDatabase) -> fdb_error_t;
    fn fdb_database_destroy(database: *mut FDBDatabase) -> ();
    fn fdb_database_set_option(database: *mut FDBDatabase, option: FDBDatabaseOption, value: *const u8, length: c_int) -> fdb_error_t;
    fn fdb_database_open_tenant(database: *mut FDBDatabase, name: *const u8, length: c_int, out: *mut *mut FDBTenant) -> fdb_error_t;
    fn fdb_database_create_transaction(database: *mut FDBDatabase, out: *mut *mut FDBTransaction) -> fdb_error_t;
    fn fdb_database_get_main_thread_busyness(database: *mut FDBDatabase) -> c_double;
    fn fdb_database_get_client_status(database: *mut FDBDatabase) -> *mut FDBFuture;
    fn fdb_tenant_create_transaction(tenant: *mut FDBTenant, out: *mut *mut FDBTransaction) -> fdb_error_t;
    fn fdb_tenant_destroy(tenant: *mut FDBTenant) -> ();

    fn fdb_transaction_destroy(transaction: *mut FDBTransaction) -> ();
    fn fdb_transaction_cancel(transaction: *mut FDBTransaction) -> ();
    fn fdb_transaction_reset(transaction: *mut FDBTransaction) -> ();
    fn fdb_transaction_set_option(transaction: *mut FDBTransaction, option: FDBTransactionOption, value: *const u8, length: c_int) -> fdb_error_t;
    fn fdb_transaction_set_read_version(transaction: *mut FDBTransaction, version: i64) -> ();
    fn fdb_transaction_get_read_version(transaction: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_get(transaction: *mut FDBTransaction, key: *const u8, length: c_int, snapshot: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_get_key(transaction: *mut FDBTransaction, key: *const u8, length: c_int, or_equal: fdb_bool_t, offset: c_int, snapshot: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_get_addresses_for_key(transaction: *mut FDBTransaction, key: *const u8, length: c_int) -> *mut FDBFuture;
    fn fdb_transaction_get_range(
        transaction: *mut FDBTransaction,
        begin: *const u8, begin_length: c_int, begin_or_equal: fdb_bool_t, begin_offset: c_int,
        end: *const u8, end_length: c_int, end_or_equal: fdb_bool_t, end_offset: c_int,
        limit: c_int, target_bytes: c_int, mode: FDBStreamingMode, iteration: c_int,
        snapshot: fdb_bool_t, reverse: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_get_mapped_range(
        transaction: *mut FDBTransaction,
        begin: *const u8, begin_length: c_int, begin_or_equal: fdb_bool_t, begin_offset: c_int,
        end: *const u8, end_length: c_int, end_or_equal: fdb_bool_t, end_offset: c_int,
        mapper: *const u8, mapper_length: c_int,
        limit: c_int, target_bytes: c_int, mode: FDBStreamingMode, iteration: c_int,
        snapshot: fdb_bool_t, reverse: fdb_bool_t) -> *mut FDBFuture;
    fn fdb_transaction_set(transaction: *mut FDBTransaction, key: *const u8, key_length: c_int, value: *const u8, value_length: c_int) -> ();
    fn fdb_transaction_atomic_op(transaction: *mut FDBTransaction, key: *const u8, key_length: c_int, parameter: *const u8, parameter_length: c_int, operation: FDBMutationType) -> ();
    fn fdb_transaction_clear(transaction: *mut FDBTransaction, key: *const u8, key_length: c_int) -> ();
    fn fdb_transaction_clear_range(transaction: *mut FDBTransaction, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int) -> ();
    fn fdb_transaction_watch(transaction: *mut FDBTransaction, key: *const u8, length: c_int) -> *mut FDBFuture;
    fn fdb_transaction_commit(transaction: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_get_committed_version(transaction: *mut FDBTransaction, out: *mut i64) -> fdb_error_t;
    fn fdb_transaction_get_approximate_size(transaction: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_get_versionstamp(transaction: *mut FDBTransaction) -> *mut FDBFuture;
    fn fdb_transaction_get_estimated_range_size_bytes(transaction: *mut FDBTransaction, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int) -> *mut FDBFuture;
    fn fdb_transaction_get_range_split_points(transaction: *mut FDBTransaction, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int, chunk: i64) -> *mut FDBFuture;
    fn fdb_transaction_on_error(transaction: *mut FDBTransaction, code: fdb_error_t) -> *mut FDBFuture;
    fn fdb_transaction_add_conflict_range(transaction: *mut FDBTransaction, begin: *const u8, begin_length: c_int, end: *const u8, end_length: c_int, kind: FDBConflictRangeType) -> fdb_error_t;
}

/// What the crate `foundationdb` asks which of its parts a version of the API has. Everything up to 7.3 is there, and nothing that ended
/// before it.
#[macro_export]
macro_rules! if_cfg_api_versions {
    (min = $min:tt, max = $max:tt => { $($then:tt)* } else { $($else:tt)* }) => {{ $($else)* }};
    (min = $min:tt, max = $max:tt => $($then:tt)*) => {};
    (min = 740 => $($then:tt)*) => { compile_error!("the API of 7.4 is not declared"); };
    (min = $min:tt => { $($then:tt)* } else { $($else:tt)* }) => {{ $($then)* }};
    (min = $min:tt => $($then:tt)*) => { $($then)* };
}
