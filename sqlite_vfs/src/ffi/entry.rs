//! The entry points that SQLite looks for, and the one for hosts that link the library.

use std::ffi::{c_char, c_int};

use super::api::ApiRoutines;
use super::registration::{Caller, Registration};
use super::types::{Sqlite3, code};
use super::{functions, table};
use crate::error::{Kind, Result};

/// Entry point of the loadable extension, found by the file name `libpagewire.so`.
///
/// Registers the VFS with the SQLite library that calls, and its functions with this and every later connection. Loading
/// twice, without a server, or with a wrong setting does no harm: nothing is connected before a database is opened. So does loading another
/// copy of the library, or loading it into a program that links it: the one that came first stays.
///
/// # Safety
/// Called by SQLite, or with the arguments that SQLite would give.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_pagewire_init(
    db: *mut Sqlite3,
    message: *mut *mut c_char,
    api: *const ApiRoutines,
) -> c_int {
    // SAFETY: promised by the caller.
    unsafe { run(message, api, || load(db, api)) }
}

/// The same entry point under the name that SQLite tries first.
///
/// # Safety
/// As for [`sqlite3_pagewire_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_extension_init(
    db: *mut Sqlite3,
    message: *mut *mut c_char,
    api: *const ApiRoutines,
) -> c_int {
    // SAFETY: promised by the caller.
    unsafe { sqlite3_pagewire_init(db, message, api) }
}

/// For `sqlite3_auto_extension`, in programs that link this library: registers the VFS, and its functions with each new
/// connection. Answers SQLITE_OK, where a loadable extension has to answer SQLITE_OK_LOAD_PERMANENTLY.
///
/// # Safety
/// Called by SQLite, or with the arguments that SQLite would give.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pagewire_auto_init(
    db: *mut Sqlite3,
    message: *mut *mut c_char,
    api: *const ApiRoutines,
) -> c_int {
    // SAFETY: promised by the caller.
    unsafe {
        run(message, api, || {
            let registration = Registration::ensure(api, Caller::EachConnection)?;
            if registration.has_the_vfs() {
                functions::register(registration, db)?;
                table::register(registration, db)?;
            }
            Ok(code::OK)
        })
    }
}

/// # Safety
/// As for [`sqlite3_pagewire_init`].
unsafe fn load(db: *mut Sqlite3, api: *const ApiRoutines) -> Result<c_int> {
    // SAFETY: promised by the caller.
    unsafe {
        let registration = Registration::ensure(api, Caller::Load)?;
        if !registration.has_the_vfs() {
            // That of another copy of this library stays, with all that belongs to it. A connection that has not got its functions does not get ours.
            registration.warn("another copy of this library is in the program: its VFS and its functions stay, and this copy adds none; load only one");
            return Ok(code::OK_LOAD_PERMANENTLY);
        }
        functions::register(registration, db)?;
        table::register(registration, db)?;
        if let Some(auto_extension) = registration.api().auto_extension {
            // SQL functions belong to a connection: without this they would vanish after `.open` (U3).
            auto_extension(Some(pagewire_auto_init));
        }
        // SQLite must never unload a library that has registered a VFS (T17).
        Ok(code::OK_LOAD_PERMANENTLY)
    }
}

/// # Safety
/// `message` is null or a place for a pointer, `api` null or SQLite's table.
unsafe fn run(
    message: *mut *mut c_char,
    api: *const ApiRoutines,
    body: impl FnOnce() -> Result<c_int>,
) -> c_int {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    let (rc, text) = match outcome {
        Ok(Ok(rc)) => return rc,
        // sqlite3_open() answers it as its own, and leaves no connection behind.
        Ok(Err(error)) if error.kind == Kind::NoMemory => (code::NOMEM, error.message),
        Ok(Err(error)) => (code::ERROR, error.message),
        Err(_) => (
            code::ERROR,
            "a bug in pagewire while it was loaded".to_owned(),
        ),
    };
    // SAFETY: promised by the caller; the message is freed by SQLite with sqlite3_free.
    unsafe {
        if let Some(malloc) = api.as_ref().and_then(|api| api.malloc64)
            && !message.is_null()
        {
            let place = malloc(text.len() as u64 + 1).cast::<u8>();
            if !place.is_null() {
                place.copy_from_nonoverlapping(text.as_ptr(), text.len());
                place.add(text.len()).write(0);
                *message = place.cast();
            }
        }
    }
    rc
}
