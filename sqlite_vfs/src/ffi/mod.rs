//! The C interface of SQLite: the only unsafe folder. A trampoline converts and calls; it decides nothing.

mod api;
mod boundary;
mod busy;
mod entry;
mod functions;
mod handle;
mod io_methods;
mod names;
mod os;
mod registration;
#[cfg(test)]
mod stand_in;
mod table;
mod tables;
mod types;
mod vfs;

pub use api::ApiRoutines;
pub use entry::{pagewire_auto_init, sqlite3_extension_init, sqlite3_pagewire_init};
#[cfg(feature = "fuzzing")]
pub use names::check as check_name;
pub use os::{ForkLocal, boot_time_ns, process_id};
pub use types::Sqlite3;
