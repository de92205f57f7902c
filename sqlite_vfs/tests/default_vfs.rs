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

    // The operating system's VFS is a choice like any other.
    // SAFETY: the VFS lives for ever.
    unsafe {
        let unix = ffi::sqlite3_vfs_find(c"unix".as_ptr());
        assert_eq!(ffi::sqlite3_vfs_register(unix, 1), ffi::SQLITE_OK);
    }
    drop(Connection::open_in_memory().unwrap());
    assert_eq!(default_vfs(), "unix");

    // Loading the extension is a wish of its own.
    let db = Connection::open_in_memory().unwrap();
    let mut message = ptr::null_mut();
    // SAFETY: the entry point gets what SQLite would give it; the table is taken from an automatic extension of the same
    // library.
    let rc = unsafe { load(db.handle(), &mut message) };
    assert_eq!(rc, ffi::SQLITE_OK_LOAD_PERMANENTLY);
    assert_eq!(default_vfs(), "pagewire");
}

static API: std::sync::atomic::AtomicPtr<ffi::sqlite3_api_routines> =
    std::sync::atomic::AtomicPtr::new(ptr::null_mut());

unsafe extern "C" fn keep_api(
    _: *mut ffi::sqlite3,
    _: *mut *mut std::ffi::c_char,
    api: *const ffi::sqlite3_api_routines,
) -> std::ffi::c_int {
    API.store(api.cast_mut(), std::sync::atomic::Ordering::SeqCst);
    ffi::SQLITE_OK
}

/// # Safety
/// `db` is an open connection.
unsafe fn load(db: *mut ffi::sqlite3, message: *mut *mut std::ffi::c_char) -> std::ffi::c_int {
    // SAFETY: the entry point only keeps the table.
    unsafe {
        ffi::sqlite3_auto_extension(Some(keep_api));
        drop(Connection::open_in_memory().unwrap());
        let api = API.load(std::sync::atomic::Ordering::SeqCst);
        pagewire::sqlite3_pagewire_init(db.cast(), message, api.cast_const().cast())
    }
}
