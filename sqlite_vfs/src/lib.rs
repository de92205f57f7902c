//! The SQLite VFS of Pagewire: an unmodified SQLite on pages that live in a page server.
//!
//! A guest in a stranger's process: it never panics out, prints, exits or installs global hooks. `ffi` is the only folder
//! that meets SQLite's C interface; everything behind it is safe code that knows pages, snapshots and transactions.
//!
//! ```text
//! ffi/        C call -> safe call
//! connection/ which snapshot, which overlay, when it is a commit
//! file/       journals and temporary bytes, private to the process
//! database/   one database of this process: lease, head, commits
//! cache/      (database, page, version) -> bytes
//! prefetch/   which pages SQLite will read next
//! client/     domain request -> gRPC call, deadlines, the session
//! ```

mod cache;
mod client;
mod clock;
mod compression;
mod connection;
mod database;
mod endpoint;
mod error;
#[allow(unsafe_code)]
mod ffi;
mod file;
mod prefetch;
mod process;
mod settings;
#[cfg(feature = "simulation")]
pub mod simulation;

/// What the fuzz targets in `proto/fuzz` reach; not there in any other build.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::cache::disk::fuzzing as disk_cache;
    pub use crate::connection::header;
    pub use crate::error::{Error, Result};
    pub use crate::ffi::check_name;
    pub use crate::prefetch::{Came, Pages, Prefetcher, btree};
    pub use crate::settings::{ConnectionSettings, ProcessSettings};
}

pub use client::counters::{CallCount, CallKind};
pub use ffi::{ApiRoutines, pagewire_auto_init, sqlite3_extension_init, sqlite3_pagewire_init};
/// Every variable of the environment that the VFS reads, for programs that look for misspelt ones.
pub use settings::VARIABLES;

/// Counts of calls of this process, by kind: what the table-valued function `pagewire_rpc` shows.
pub fn rpc_count(kind: CallKind) -> CallCount {
    client::counters::COUNTERS.read(kind)
}

/// The entry point for `sqlite3_auto_extension`, for Rust programs that bring a SQLite of their own: registers the VFS and,
/// with each new connection, the functions and tables of Pagewire.
///
/// With rusqlite:
///
/// ```no_run
/// # #[allow(unsafe_code)]
/// # fn main() -> rusqlite::Result<()> {
/// // SAFETY: the two signatures differ only in the Rust names of SQLite's opaque types.
/// let init: rusqlite::auto_extension::RawAutoExtension = unsafe { std::mem::transmute(pagewire::AUTO_EXTENSION) };
/// // SAFETY: the entry point is made for this.
/// unsafe { rusqlite::auto_extension::register_auto_extension(init)? };
/// // The first connection registers the VFS.
/// rusqlite::Connection::open_in_memory()?;
/// let db = rusqlite::Connection::open("file:app.db?vfs=pagewire")?;
/// # Ok(())
/// # }
/// ```
pub const AUTO_EXTENSION: unsafe extern "C" fn(
    *mut ffi::Sqlite3,
    *mut *mut std::ffi::c_char,
    *const ApiRoutines,
) -> std::ffi::c_int = pagewire_auto_init;
