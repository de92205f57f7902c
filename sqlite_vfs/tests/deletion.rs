//! xDelete without a server: which names ask for a database, and which never leave the process.

#![expect(
    unsafe_code,
    reason = "xDelete is reached only through SQLite's C interface"
)]

use std::ffi::{CStr, c_int};

use rusqlite::{Connection, ffi};

fn delete(name: &CStr) -> c_int {
    // SAFETY: the VFS is registered and lives for ever; xDelete takes any C string.
    unsafe {
        let vfs = ffi::sqlite3_vfs_find(c"pagewire".as_ptr());
        (*vfs).xDelete.unwrap()(vfs, name.as_ptr(), 0)
    }
}

/// One test, since the settings of the process are read once.
#[test]
fn only_the_name_of_a_database_is_asked_of_the_server() {
    // SAFETY: no other thread runs yet. Port 1 answers nobody.
    unsafe {
        std::env::set_var("PAGEWIRE_ENDPOINT", "http://127.0.0.1:1");
        std::env::set_var("PAGEWIRE_TIMEOUT_MS", "50");
    }
    // SAFETY: the two signatures differ only in the Rust names of SQLite's opaque types.
    let init: rusqlite::auto_extension::RawAutoExtension =
        unsafe { std::mem::transmute(pagewire::AUTO_EXTENSION) };
    // SAFETY: the entry point is made for this.
    unsafe { rusqlite::auto_extension::register_auto_extension(init) }.unwrap();
    drop(Connection::open_in_memory().unwrap());

    for beside in [c"x.db-journal", c"x.db-wal", c"x.db-mj00A1B2C9F"] {
        assert_eq!(delete(beside), ffi::SQLITE_IOERR_DELETE_NOENT, "{beside:?}");
    }
    // Not "there is none": nobody was there to say so.
    assert_eq!(delete(c"x.db"), ffi::SQLITE_IOERR_DELETE);
    assert_eq!(
        delete(c"/tmp/x.db"),
        ffi::SQLITE_IOERR_DELETE,
        "a local path"
    );
}
