//! The SQLite VFS of Pagewire.
