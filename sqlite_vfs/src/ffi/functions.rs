//! SQL functions: `pagewire_last_error()` and `pagewire_version()`.

use std::ffi::{c_char, c_int};
use std::sync::Arc;

use parking_lot::Mutex;

use super::handle::{FileKind, Handle};
use super::registration::Registration;
use super::types::{Context, ScalarFunction, Sqlite3, TRANSIENT, Value, code, fcntl};
use crate::connection::Connection;
use crate::error::{Error, Kind, Result};

const UTF8: c_int = 1;

/// A function of a registration finds it by its own number: asking `sqlite3_user_data` needs the table of the right library,
/// which is just what is not known yet.
const NUMBERED: [(ScalarFunction, ScalarFunction); 8] = [
    (last_error::<0>, version::<0>),
    (last_error::<1>, version::<1>),
    (last_error::<2>, version::<2>),
    (last_error::<3>, version::<3>),
    (last_error::<4>, version::<4>),
    (last_error::<5>, version::<5>),
    (last_error::<6>, version::<6>),
    (last_error::<7>, version::<7>),
];

/// Makes the functions known to a connection.
///
/// # Safety
/// `db` is an open connection of the registration's SQLite library.
pub unsafe fn register(registration: &'static Registration, db: *mut Sqlite3) -> Result<()> {
    let Some((last_error, version)) = NUMBERED.get(registration.number) else {
        // A ninth SQLite library in one process goes without them; the pragmas and tables are there.
        return Ok(());
    };
    for (name, function) in [
        (c"pagewire_last_error", last_error),
        (c"pagewire_version", version),
    ] {
        let create = registration.api().create_function_v2;
        let create = create
            .ok_or_else(|| Error::new(Kind::CantOpen, "this SQLite has no create_function"))?;
        // SAFETY: promised by the caller.
        let rc = unsafe {
            create(
                db,
                name.as_ptr(),
                0,
                UTF8,
                std::ptr::null_mut(),
                Some(*function),
                None,
                None,
                None,
            )
        };
        if rc != code::OK {
            return Err(Error::new(
                Kind::CantOpen,
                format!("sqlite3_create_function failed with {rc}"),
            ));
        }
    }
    Ok(())
}

/// The Pagewire connection behind the main database of a SQLite connection, if it is one.
///
/// # Safety
/// `db` is an open connection of the registration's SQLite library, whose mutex the caller holds.
pub unsafe fn main_connection(
    registration: &Registration,
    db: *mut Sqlite3,
) -> Option<Arc<Mutex<Connection>>> {
    let mut handle: *const Handle = std::ptr::null();
    // SAFETY: our operation writes a pointer; other VFSes do not know it and leave it null.
    let rc = unsafe {
        registration.api().file_control?(
            db,
            c"main".as_ptr(),
            fcntl::PAGEWIRE_HANDLE,
            std::ptr::from_mut(&mut handle).cast(),
        )
    };
    if rc != code::OK {
        return None;
    }
    // SAFETY: the handle lives until xClose, which needs the mutex that the caller holds.
    match unsafe { handle.as_ref() }?.kind {
        FileKind::Main(ref connection, _) => Some(Arc::clone(connection)),
        FileKind::Journal(_) | FileKind::Super(_) => None,
    }
}

/// # Safety
/// Called by SQLite for a function that the registration of this number has made.
unsafe fn with_connection<const NUMBER: usize>(
    context: *mut Context,
    answer: impl FnOnce(&Registration, Option<Arc<Mutex<Connection>>>) -> Option<String>,
) {
    let Some(registration) = Registration::numbered(NUMBER) else {
        return;
    };
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: the context belongs to the library of the registration.
        let connection = unsafe {
            let db = registration
                .api()
                .context_db_handle
                .map(|db_of| db_of(context));
            db.and_then(|db| main_connection(registration, db))
        };
        answer(registration, connection)
    }));
    // SAFETY: as above.
    unsafe {
        match outcome {
            Ok(Some(text)) => result_text(registration, context, &text),
            Ok(None) | Err(_) => {
                if let Some(null) = registration.api().result_null {
                    null(context);
                }
            }
        }
    }
}

/// # Safety
/// `context` is that of a running function of the registration's library.
pub unsafe fn result_text(registration: &Registration, context: *mut Context, text: &str) {
    let (Some(result), Ok(length)) = (registration.api().result_text, c_int::try_from(text.len()))
    else {
        return;
    };
    // SAFETY: SQLite copies the bytes.
    unsafe { result(context, text.as_ptr().cast::<c_char>(), length, TRANSIENT) };
}

unsafe extern "C" fn last_error<const NUMBER: usize>(
    context: *mut Context,
    _: c_int,
    _: *mut *mut Value,
) {
    // SAFETY: SQLite calls the function that was registered.
    unsafe {
        with_connection::<NUMBER>(context, |registration, connection| {
            let own = connection
                .and_then(|connection| Some(connection.try_lock()?.last_error()?.message.clone()));
            own.or_else(|| registration.last_error())
        });
    }
}

unsafe extern "C" fn version<const NUMBER: usize>(
    context: *mut Context,
    _: c_int,
    _: *mut *mut Value,
) {
    // SAFETY: SQLite calls the function that was registered.
    unsafe {
        with_connection::<NUMBER>(context, |_, connection| {
            Some(connection?.try_lock()?.snapshot()?.version.to_string())
        });
    }
}
