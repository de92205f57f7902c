//! The files that SQLite sees, as safe objects: what is a byte range there is a page number here.

pub mod journal;
pub mod read_buffer;
pub mod spool;
