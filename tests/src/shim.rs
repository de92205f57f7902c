//! A VFS of SQLite above Pagewire's, `failing`, that passes everything on and fails on purpose after the commit point.
//!
//! A fault is armed for the thread that arms it, and strikes its next call of the kind, once.

use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::sync::OnceLock;

use rusqlite::ffi;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// xSync of a main database: after FCNTL_SYNC has made a version, before the journal goes.
    Sync,
    /// xDelete of a journal, which stays: SQLite takes it for hot.
    JournalDelete,
}

thread_local! {
    static ARMED: Cell<Option<Failing>> = const { Cell::new(None) };
}

/// Lets the next call of the kind on this thread fail with SQLITE_IOERR.
pub fn arm(failing: Failing) {
    ARMED.set(Some(failing));
}

/// Forgets what is armed and has not struck.
pub fn disarm() {
    ARMED.set(None);
}

/// Whether what was armed has struck.
pub fn is_disarmed() -> bool {
    ARMED.get().is_none()
}

fn strikes(failing: Failing) -> bool {
    let strikes = ARMED.get() == Some(failing);
    if strikes {
        ARMED.set(None);
    }
    strikes
}

struct Shim {
    real: *mut ffi::sqlite3_vfs,
    own: ffi::sqlite3_vfs,
    methods: OnceLock<ffi::sqlite3_io_methods>,
}

#[expect(
    unsafe_code,
    reason = "the pointers are to what is never freed and never changed"
)]
// SAFETY: the VFS of SQLite's list and the shim itself live as long as the process; `real` is only read.
unsafe impl Send for Shim {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Shim {}

static SHIM: OnceLock<&'static Shim> = OnceLock::new();

/// Makes the VFS `failing` known; Pagewire's has to be known already.
pub fn register() {
    SHIM.get_or_init(|| {
        #[expect(unsafe_code, reason = "a VFS is C")]
        // SAFETY: SQLite's documented calls; the VFS found stays for ever, and so does the one registered.
        unsafe {
            let real = ffi::sqlite3_vfs_find(c"pagewire".as_ptr());
            assert!(!real.is_null(), "Pagewire's VFS is not registered");
            let mut own = *real;
            own.zName = c"failing".as_ptr();
            own.pNext = std::ptr::null_mut();
            own.xOpen = Some(open);
            own.xDelete = Some(delete);
            let shim = Box::leak(Box::new(Shim {
                real,
                own,
                methods: OnceLock::new(),
            }));
            let rc = ffi::sqlite3_vfs_register(&raw mut shim.own, 0);
            assert_eq!(rc, ffi::SQLITE_OK);
            shim
        }
    });
}

fn shim() -> &'static Shim {
    SHIM.get().expect("called through the registered VFS")
}

#[expect(unsafe_code, reason = "a VFS is C")]
// SAFETY: called by SQLite as the documentation of sqlite3_vfs says.
unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let shim = shim();
    // SAFETY: everything is passed on as it came; the file is as large as the real VFS wants it, since szOsFile was copied.
    unsafe {
        let real = (*shim.real).xOpen.expect("xOpen");
        let rc = real(shim.real, name, file, flags, out_flags);
        if rc == ffi::SQLITE_OK && flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
            let methods = shim.methods.get_or_init(|| ffi::sqlite3_io_methods {
                xSync: Some(sync),
                ..*(*file).pMethods
            });
            (*file).pMethods = methods;
        }
        rc
    }
}

#[expect(unsafe_code, reason = "a VFS is C")]
// SAFETY: called by SQLite for a file that `open` has opened.
unsafe extern "C" fn sync(_file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // The real one does nothing: FCNTL_SYNC is the commit point.
    match strikes(Failing::Sync) {
        true => ffi::SQLITE_IOERR_FSYNC,
        false => ffi::SQLITE_OK,
    }
}

#[expect(unsafe_code, reason = "a VFS is C")]
// SAFETY: called by SQLite as the documentation of sqlite3_vfs says.
unsafe extern "C" fn delete(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    sync_dir: c_int,
) -> c_int {
    if strikes(Failing::JournalDelete) {
        return ffi::SQLITE_IOERR_DELETE;
    }
    let shim = shim();
    // SAFETY: passed on as it came.
    unsafe { (*shim.real).xDelete.expect("xDelete")(shim.real, name, sync_dir) }
}
