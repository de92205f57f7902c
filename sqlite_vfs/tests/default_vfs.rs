//! Who is SQLite's default VFS: never anybody but the one that the application chose last.
//!
//! Bug: an automatic extension runs with every connection, and registered the VFS as the default one each time. An
//! application that had made another VFS the default lost it with its next `sqlite3_open`, and its files went elsewhere.

#![expect(
    unsafe_code,
    reason = "registering a VFS is possible only through SQLite's C interface"
)]

use std::ffi::CStr;
use std::ptr;

use rusqlite::{Connection, ffi};

fn default_vfs() -> String {
    // SAFETY: a null name asks for the default VFS, which is never freed and has a name.
    unsafe { CStr::from_ptr((*ffi::sqlite3_vfs_find(ptr::null())).zName) }
        .to_str()
        .unwrap()
        .to_owned()
}

/// One test, since the default VFS is a setting of the whole process.
#[test]
fn connections_leave_the_default_that_the_application_chose() {
    // SAFETY: the two signatures differ only in the Rust names of SQLite's opaque types.
    let init: rusqlite::auto_extension::RawAutoExtension =
        unsafe { std::mem::transmute(pagewire::AUTO_EXTENSION) };
    // SAFETY: the entry point is made for this.
    unsafe { rusqlite::auto_extension::register_auto_extension(init) }.unwrap();
    drop(Connection::open_in_memory().unwrap());
    assert_eq!(default_vfs(), "pagewire", "the first connection registers");

    // SAFETY: a copy of the operating system's VFS under another name, which lives as long as the process.
    unsafe {
        let mut chosen = *ffi::sqlite3_vfs_find(c"unix".as_ptr());
        chosen.zName = c"chosen".as_ptr();
        chosen.pNext = ptr::null_mut();
        let chosen = Box::leak(Box::new(chosen));
        assert_eq!(ffi::sqlite3_vfs_register(chosen, 1), ffi::SQLITE_OK);
    }
    drop(Connection::open_in_memory().unwrap());
    assert_eq!(default_vfs(), "chosen");

    // sqlite3_shutdown makes the operating system's VFS the default again, and forgets the automatic extensions.
    // SAFETY: no connection is open.
    unsafe {
        assert_eq!(ffi::sqlite3_shutdown(), ffi::SQLITE_OK);
        assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
    }
    assert_eq!(default_vfs(), "unix");
    // SAFETY: as above.
    unsafe { rusqlite::auto_extension::register_auto_extension(init) }.unwrap();
    drop(Connection::open_in_memory().unwrap());
    assert_eq!(default_vfs(), "pagewire", "a restart of SQLite");
}
