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
//! client/     domain request -> gRPC call, deadlines, the session
//! ```

mod cache;
mod client;
mod clock;
mod connection;
mod database;
mod error;
#[allow(unsafe_code)]
mod ffi;
mod file;
mod process;
mod settings;

pub use client::counters::{CallCount, CallKind};
pub use ffi::{ApiRoutines, pagewire_auto_init, sqlite3_extension_init, sqlite3_pagewire_init};

/// Counts of calls of this process, by kind: what the table-valued function `pagewire_rpc` shows.
pub fn rpc_count(kind: CallKind) -> CallCount {
    client::counters::COUNTERS.read(kind)
}
