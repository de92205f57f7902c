//! SQL functions. `SCHEMA` is the name of an attached database, `main` if it is left out; `AT` a version, a time, an age or a tag.
//!
//! | function | does | answers |
//! |---|---|---|
//! | `pagewire_last_error()` | | what the last error was and what to do next |
//! | `pagewire_version()` | | the version that the transaction reads |
//! | `pagewire_tag(NAME [, AT [, SCHEMA]])` | names a version, the one that is looked at if AT is left out or NULL; refused where the tag names another one | the version |
//! | `pagewire_move_tag(NAME [, AT [, SCHEMA]])` | the same, and takes the tag from the version that has it, in one step | the version |
//! | `pagewire_untag(NAME [, SCHEMA])` | removes a tag | 1, or 0 if there was none |
//! | `pagewire_branch(NEW_NAME [, AT [, SCHEMA]])` | makes a database from a version | the version |
//! | `pagewire_restore(AT [, SCHEMA])` | makes an old version the newest one, as a commit | the new version |
//!
//! Those that have effects can't be used in triggers, views and the like (SQLITE_DIRECTONLY). Errors: SQLITE_READONLY for tags and
//! restores on a read-only connection, SQLITE_BUSY where another writes for too long, SQLITE_ERROR with the reason otherwise.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::Arc;

use parking_lot::Mutex;

use super::boundary::{Op, code_of};
use super::handle::{FileKind, Handle};
use super::registration::Registration;
use super::types::{
    Context, ScalarFunction, Sqlite3, TRANSIENT, Value, code, fcntl, function_flag,
};
use crate::client::IfTaken;
use crate::connection::Connection;
use crate::error::{Error, Kind, Result};
use crate::process::ClientKey;

/// SQLite libraries in one process that can have the functions.
const NUMBERS: usize = 8;

/// A function of a registration finds it by its own number: asking `sqlite3_user_data` needs the table of the right library,
/// which is just what is not known yet.
macro_rules! numbered {
    ($function:ident) => {
        [
            $function::<0>,
            $function::<1>,
            $function::<2>,
            $function::<3>,
            $function::<4>,
            $function::<5>,
            $function::<6>,
            $function::<7>,
        ]
    };
}

/// A function: its name, the least and the largest number of its arguments, and whether it has effects.
struct Function {
    name: &'static CStr,
    arguments: (c_int, c_int),
    has_effects: bool,
    numbered: [ScalarFunction; NUMBERS],
}

const FUNCTIONS: &[Function] = &[
    Function {
        name: c"pagewire_last_error",
        arguments: (0, 0),
        has_effects: false,
        numbered: numbered!(last_error),
    },
    Function {
        name: c"pagewire_version",
        arguments: (0, 0),
        has_effects: false,
        numbered: numbered!(version),
    },
    Function {
        name: c"pagewire_tag",
        arguments: (1, 3),
        has_effects: true,
        numbered: numbered!(tag),
    },
    Function {
        name: c"pagewire_move_tag",
        arguments: (1, 3),
        has_effects: true,
        numbered: numbered!(move_tag),
    },
    Function {
        name: c"pagewire_untag",
        arguments: (1, 2),
        has_effects: true,
        numbered: numbered!(untag),
    },
    Function {
        name: c"pagewire_branch",
        arguments: (1, 3),
        has_effects: true,
        numbered: numbered!(branch),
    },
    Function {
        name: c"pagewire_restore",
        arguments: (1, 2),
        has_effects: true,
        numbered: numbered!(restore),
    },
];

/// Makes the functions known to a connection.
///
/// # Safety
/// `db` is an open connection of the registration's SQLite library.
pub unsafe fn register(registration: &'static Registration, db: *mut Sqlite3) -> Result<()> {
    let create = registration.api().create_function_v2;
    let create =
        create.ok_or_else(|| Error::new(Kind::CantOpen, "this SQLite has no create_function"))?;
    for function in FUNCTIONS {
        let Some(body) = function.numbered.get(registration.number) else {
            // A ninth SQLite library in one process goes without them; the pragmas and tables are there.
            return Ok(());
        };
        let flags = match function.has_effects {
            true => function_flag::UTF8 | function_flag::DIRECTONLY,
            false => function_flag::UTF8,
        };
        let (least, most) = function.arguments;
        for count in least..=most {
            // SAFETY: promised by the caller.
            let rc = unsafe {
                create(
                    db,
                    function.name.as_ptr(),
                    count,
                    flags,
                    std::ptr::null_mut(),
                    Some(*body),
                    None,
                    None,
                    None,
                )
            };
            if rc != code::OK {
                return Err(not_made("sqlite3_create_function", rc));
            }
        }
    }
    Ok(())
}

/// What SQLite answered where a function or a table was made known.
pub fn not_made(call: &str, rc: c_int) -> Error {
    let kind = if rc == code::NOMEM {
        Kind::NoMemory
    } else {
        Kind::CantOpen
    };
    Error::new(kind, format!("{call} failed with {rc}"))
}

/// The Pagewire connection behind the main database of a SQLite connection, if it is one.
///
/// # Safety
/// As for [`connection_of`].
pub unsafe fn main_connection(
    registration: &Registration,
    db: *mut Sqlite3,
) -> Option<Arc<Mutex<Connection>>> {
    // SAFETY: promised by the caller.
    unsafe { handle_of(registration, db, c"main") }.and_then(connection_behind)
}

/// The Pagewire connection behind a database of a SQLite connection, `main` if no name is given.
///
/// # Safety
/// `db` is an open connection of the registration's SQLite library, whose mutex the caller holds.
pub unsafe fn connection_of(
    registration: &Registration,
    db: *mut Sqlite3,
    schema: Option<&str>,
) -> Result<Arc<Mutex<Connection>>> {
    let schema = schema.unwrap_or("main");
    let none = || {
        Error::new(
            Kind::Refused,
            format!("there is no database {schema:?} on Pagewire in this connection"),
        )
    };
    let name = CString::new(schema).map_err(|_| none())?;
    // SAFETY: promised by the caller.
    let handle = unsafe { handle_of(registration, db, &name) }.ok_or_else(none)?;
    handle.check()?;
    connection_behind(handle).ok_or_else(none)
}

/// # Safety
/// As for [`connection_of`]; the handle lives as long as the caller holds the mutex.
unsafe fn handle_of<'a>(
    registration: &Registration,
    db: *mut Sqlite3,
    schema: &CStr,
) -> Option<&'a Handle> {
    let mut handle: *const Handle = std::ptr::null();
    // SAFETY: our operation writes a pointer; other VFSes do not know it and leave it null.
    let rc = unsafe {
        registration.api().file_control?(
            db,
            schema.as_ptr(),
            fcntl::PAGEWIRE_HANDLE,
            std::ptr::from_mut(&mut handle).cast(),
        )
    };
    if rc != code::OK {
        return None;
    }
    // SAFETY: the handle lives until xClose, which needs the mutex that the caller holds.
    unsafe { handle.as_ref() }
}

fn connection_behind(handle: &Handle) -> Option<Arc<Mutex<Connection>>> {
    match handle.kind {
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
            let Some(connection) = connection else {
                return registration.last_error(None);
            };
            let connection = connection.try_lock()?;
            let own = connection.last_error().map(|own| own.message.clone());
            own.or_else(|| registration.last_error(Some(&connection.settings().client())))
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

/// What a function answers.
enum Answer {
    Flag(bool),
    Version(pagewire_proto::Version),
}

/// The text of a value; `None` for NULL.
///
/// # Safety
/// `value` is an argument of a running function, or of xFilter, of the registration's library.
pub unsafe fn text_of(registration: &Registration, value: *mut Value) -> Option<String> {
    // SAFETY: promised by the caller; the text is copied before the value can change.
    unsafe {
        let text = registration.api().value_text?(value);
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// Runs a function that may have effects and fail; `schema_at` is the place of its argument that names the database.
///
/// # Safety
/// Called by SQLite for a function that the registration of this number has made.
unsafe fn run<const NUMBER: usize>(
    context: *mut Context,
    count: c_int,
    values: *mut *mut Value,
    schema_at: usize,
    body: impl FnOnce(&mut Connection, &[Option<String>], bool) -> Result<Answer>,
) {
    let Some(registration) = Registration::numbered(NUMBER) else {
        return;
    };
    let client = Cell::new(None);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // SAFETY: the context and the values belong to the library of the registration; SQLite passes `count` values.
        let (db, autocommit, arguments) = unsafe {
            let missing = || Error::new(Kind::Bug, "this SQLite lacks a function");
            let db = registration.api().context_db_handle.ok_or_else(missing)?(context);
            let autocommit = registration.api().get_autocommit.ok_or_else(missing)?(db) != 0;
            let arguments: Vec<_> = (0..usize::try_from(count).unwrap_or(0))
                .map(|index| text_of(registration, *values.add(index)))
                .collect();
            (db, autocommit, arguments)
        };
        let schema = arguments.get(schema_at).and_then(Option::as_deref);
        // SAFETY: as above; SQLite holds the mutex of the connection while a function runs.
        let connection = unsafe { connection_of(registration, db, schema) }?;
        let mut connection = connection.lock();
        client.set(Some(connection.settings().client()));
        let outcome = body(&mut connection, &arguments, autocommit);
        if let Err(error) = &outcome {
            connection.note_error(error);
        }
        outcome
    }));
    let outcome = outcome.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "a bug in pagewire")));
    // SAFETY: the context is that of the running function.
    unsafe {
        match outcome {
            Ok(answer) => {
                let number = match answer {
                    Answer::Flag(flag) => i64::from(flag),
                    Answer::Version(version) => i64::try_from(version.get()).unwrap_or(i64::MAX),
                };
                if let Some(result) = registration.api().result_int64 {
                    result(context, number);
                }
            }
            Err(error) => result_error(registration, context, &error, client.take()),
        }
    }
}

/// # Safety
/// `context` is that of a running function of the registration's library.
unsafe fn result_error(
    registration: &Registration,
    context: *mut Context,
    error: &Error,
    client: Option<ClientKey>,
) {
    let rc = code_of(Op::Own, error.kind);
    #[cfg(feature = "simulation")]
    crate::simulation::failed(error);
    registration.log(rc, &error.message, client);
    let api = registration.api();
    let (Some(message), Some(set_code), Ok(length)) = (
        api.result_error,
        api.result_error_code,
        c_int::try_from(error.message.len()),
    ) else {
        return;
    };
    // SAFETY: SQLite copies the message; the code comes after it, since the message sets one of its own.
    unsafe {
        message(context, error.message.as_ptr().cast::<c_char>(), length);
        set_code(context, rc);
    }
}

fn argument(arguments: &[Option<String>], index: usize) -> Option<&str> {
    arguments.get(index).and_then(Option::as_deref)
}

fn required<'a>(arguments: &'a [Option<String>], what: &str) -> Result<&'a str> {
    argument(arguments, 0).ok_or_else(|| Error::new(Kind::Refused, format!("{what} is NULL")))
}

unsafe extern "C" fn tag<const NUMBER: usize>(
    context: *mut Context,
    count: c_int,
    values: *mut *mut Value,
) {
    // SAFETY: SQLite calls the function that was registered.
    unsafe {
        run::<NUMBER>(context, count, values, 2, |connection, arguments, _| {
            let name = required(arguments, "the name of the tag")?;
            let version = connection.tag(name, argument(arguments, 1), IfTaken::Refuse)?;
            Ok(Answer::Version(version))
        });
    }
}

unsafe extern "C" fn move_tag<const NUMBER: usize>(
    context: *mut Context,
    count: c_int,
    values: *mut *mut Value,
) {
    // SAFETY: SQLite calls the function that was registered.
    unsafe {
        run::<NUMBER>(context, count, values, 2, |connection, arguments, _| {
            let name = required(arguments, "the name of the tag")?;
            let version = connection.tag(name, argument(arguments, 1), IfTaken::Move)?;
            Ok(Answer::Version(version))
        });
    }
}

unsafe extern "C" fn untag<const NUMBER: usize>(
    context: *mut Context,
    count: c_int,
    values: *mut *mut Value,
) {
    // SAFETY: SQLite calls the function that was registered.
    unsafe {
        run::<NUMBER>(context, count, values, 1, |connection, arguments, _| {
            let name = required(arguments, "the name of the tag")?;
            connection.untag(name).map(Answer::Flag)
        });
    }
}

unsafe extern "C" fn branch<const NUMBER: usize>(
    context: *mut Context,
    count: c_int,
    values: *mut *mut Value,
) {
    // SAFETY: SQLite calls the function that was registered.
    unsafe {
        run::<NUMBER>(context, count, values, 2, |connection, arguments, _| {
            let name = required(arguments, "the name of the branch")?;
            let version = connection.branch(name, argument(arguments, 1))?;
            Ok(Answer::Version(version))
        });
    }
}

unsafe extern "C" fn restore<const NUMBER: usize>(
    context: *mut Context,
    count: c_int,
    values: *mut *mut Value,
) {
    // SAFETY: SQLite calls the function that was registered.
    unsafe {
        run::<NUMBER>(
            context,
            count,
            values,
            1,
            |connection, arguments, autocommit| {
                let at = required(arguments, "the version to restore")?;
                if !autocommit {
                    return Err(Error::new(
                        Kind::Refused,
                        "a restore is a transaction of its own: end the one that is open",
                    ));
                }
                connection.restore(at).map(Answer::Version)
            },
        );
    }
}
