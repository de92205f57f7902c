//! The methods of the VFS itself: names, opening, deleting, and what is passed on to the operating system's VFS.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::boundary::{Op, guarded};
use super::handle::{FileKind, Handle, PagewireFile};
use super::io_methods::METHODS;
use super::names;
use super::registration::{Registration, VFS_NAME};
use super::types::{File, Vfs, code, open_flag};
use crate::connection::commit_group;
use crate::error::{Error, Kind, Result};
use crate::process::{ClientKey, Process};
use crate::settings::ConnectionSettings;

/// The VFS object of a registration, which is put into `app_data` by the caller.
///
/// # Safety
/// `os` is a VFS of the same SQLite library that lives for ever.
pub unsafe fn object(os: *mut Vfs) -> Vfs {
    // SAFETY: promised by the caller.
    let os = unsafe { &*os };
    // Files of the operating system's VFS are opened in the same memory (T12).
    let size = usize::try_from(os.os_file_size)
        .unwrap_or(0)
        .max(size_of::<PagewireFile>())
        .next_multiple_of(8);
    Vfs {
        version: os.version.min(3),
        os_file_size: c_int::try_from(size).unwrap_or(c_int::MAX),
        max_pathname: c_int::try_from(names::MAX_PATHNAME)
            .unwrap_or(c_int::MAX)
            .max(os.max_pathname),
        next: std::ptr::null_mut(),
        name: VFS_NAME.as_ptr(),
        app_data: std::ptr::null_mut(),
        open: Some(open),
        delete: Some(delete),
        access: Some(access),
        full_pathname: Some(full_pathname),
        dl_open: os.dl_open.map(|_| dl_open as _),
        dl_error: os.dl_error.map(|_| dl_error as _),
        dl_sym: os.dl_sym.map(|_| dl_sym as _),
        dl_close: os.dl_close.map(|_| dl_close as _),
        randomness: os.randomness.map(|_| randomness as _),
        sleep: os.sleep.map(|_| sleep as _),
        current_time: os.current_time.map(|_| current_time as _),
        get_last_error: os.get_last_error.map(|_| get_last_error as _),
        current_time_int64: if os.version >= 2 {
            os.current_time_int64.map(|_| current_time_int64 as _)
        } else {
            None
        },
        set_system_call: None,
        get_system_call: None,
        next_system_call: None,
    }
}

/// `SQLITE_ACCESS_READWRITE`: whether something can be read and written.
const ACCESS_READWRITE: c_int = 1;

/// # Safety
/// `name` is null or a C string.
unsafe fn text<'a>(name: *const c_char) -> Result<&'a str> {
    if name.is_null() {
        return Ok("");
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(name) }
        .to_str()
        .map_err(|_| Error::new(Kind::CantOpen, "the database name is not UTF-8"))
}

unsafe extern "C" fn open(
    vfs: *mut Vfs,
    name: *const c_char,
    file: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes the VFS that was registered, and a file object of `os_file_size` bytes.
    let registration: &'static Registration = unsafe { Registration::of(vfs) };
    let ours =
        open_flag::MAIN_DB | open_flag::MAIN_JOURNAL | open_flag::SUPER_JOURNAL | open_flag::WAL;
    if name.is_null() || flags & ours == 0 {
        // SAFETY: as above; temporary files never leave the machine.
        return unsafe { open_temporary(registration, name, file, flags, out_flags) };
    }
    // SAFETY: as above. Until it is filled, xClose must not be called (T18).
    unsafe { (*file).methods = std::ptr::null() };
    let client = Cell::new(None);
    guarded(
        registration,
        Op::Open,
        |_| client.take(),
        || {
            let process = Process::current();
            // SAFETY: SQLite passes a C string.
            let text = unsafe { text(name) }?;
            let kind = if flags & open_flag::MAIN_DB != 0 {
                // SAFETY: the name of a main database has its URI parameters behind it.
                unsafe { open_main(registration, process, name, text, flags, &client) }?
            } else if flags & open_flag::SUPER_JOURNAL != 0 {
                open_super_or_child(process, text, flags)?
            } else if flags & open_flag::MAIN_JOURNAL != 0 {
                let owner = process.journals.lock().owner(name as usize);
                let Some(connection) = owner else {
                    return Err(Error::new(
                        Kind::CantOpen,
                        format!("{text:?} is the journal of no open database"),
                    ));
                };
                let missing = connection.lock().journal().is_none();
                if missing && flags & open_flag::CREATE == 0 {
                    return Err(Error::new(
                        Kind::CantOpen,
                        format!("there is no journal {text:?}"),
                    ));
                }
                connection.lock().open_journal();
                FileKind::Journal(connection)
            } else {
                return Err(Error::new(
                    Kind::CantOpen,
                    format!("{text:?}: WAL is not possible on remote pages"),
                ));
            };
            let read_only = matches!(&kind, FileKind::Main(connection, _) if connection.lock().settings().read_only);
            if !out_flags.is_null() {
                let mut given = flags;
                if read_only {
                    given =
                        given & !(open_flag::READWRITE | open_flag::CREATE) | open_flag::READONLY;
                }
                // SAFETY: SQLite passes null or a place for the flags.
                unsafe { out_flags.write(given) };
            }
            let handle = Handle {
                kind,
                process,
                registration,
                busy: Cell::default(),
                owed: Cell::default(),
                broken: AtomicBool::new(false),
            };
            // SAFETY: the file object is large enough, see `object`.
            unsafe { handle.install(file, &METHODS) };
            Ok(code::OK)
        },
    )
}

/// # Safety
/// The arguments are those of xOpen.
unsafe fn open_temporary(
    registration: &Registration,
    name: *const c_char,
    file: *mut File,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: the operating system's VFS gets what SQLite gave, with itself as the VFS.
    unsafe {
        match (*registration.os_vfs).open {
            Some(open) => open(registration.os_vfs, name, file, flags, out_flags),
            None => {
                // As any file that was not opened (T18).
                (*file).methods = std::ptr::null();
                code::CANTOPEN
            }
        }
    }
}

/// # Safety
/// `name` is the name that SQLite gave to xOpen for a main database.
///
/// `client` is told whose it is as soon as that is known.
unsafe fn open_main(
    registration: &'static Registration,
    process: &'static Process,
    name: *const c_char,
    text: &str,
    flags: c_int,
    client: &Cell<Option<ClientKey>>,
) -> Result<FileKind> {
    let api = registration.api();
    let parameter = |key: &str| {
        let key = std::ffi::CString::new(key).ok()?;
        // SAFETY: as promised; the answer is null or a C string that lives as long as the name.
        unsafe {
            let value = api.uri_parameter?(name, key.as_ptr());
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
        }
    };
    let journal_address = match api.filename_journal {
        // SAFETY: as promised.
        Some(journal) => unsafe { journal(name) as usize },
        None => 0,
    };
    let process_settings = process.settings.as_ref().map_err(Clone::clone)?;
    let settings = ConnectionSettings::new(
        process_settings,
        text,
        parameter,
        flags & open_flag::READONLY != 0,
        flags & open_flag::CREATE != 0,
    )?;
    client.set(Some(settings.client()));
    let connection = process.open(settings)?;
    if let Some(warning) = connection.database().disk_warning() {
        registration.warn(&warning);
    }
    let flag = connection.journal_flag();
    let connection = Arc::new(Mutex::new(connection));
    process.journals.lock().register(
        journal_address,
        format!("{text}-journal"),
        &connection,
        flag,
    );
    Ok(FileKind::Main(connection, journal_address))
}

/// A super-journal, or (when SQLite cleans one up) a child journal opened for reading.
fn open_super_or_child(process: &Process, text: &str, flags: c_int) -> Result<FileKind> {
    let mut journals = process.journals.lock();
    if flags & open_flag::CREATE != 0 {
        return Ok(FileKind::Super(journals.create_super_journal(text)));
    }
    if let Some(journal) = journals.super_journal(text) {
        return Ok(FileKind::Super(journal));
    }
    match journals.live_journal_named(text) {
        Some(connection) => {
            drop(journals);
            if !connection.lock().open_journal_for_reading() {
                return Err(Error::new(
                    Kind::CantOpen,
                    format!("there is no journal {text:?}"),
                ));
            }
            Ok(FileKind::Journal(connection))
        }
        None => Err(Error::new(
            Kind::CantOpen,
            format!("there is no super-journal {text:?}"),
        )),
    }
}

unsafe extern "C" fn delete(vfs: *mut Vfs, name: *const c_char, sync_directory: c_int) -> c_int {
    // SAFETY: SQLite passes the VFS that was registered.
    let registration = unsafe { Registration::of(vfs) };
    let client = Cell::new(None);
    guarded(
        registration,
        Op::Delete,
        |_| client.take(),
        || {
            let process = Process::current();
            // SAFETY: SQLite passes a C string.
            let text = unsafe { text(name) }?;
            if let Some(connection) = process.journals.lock().owner(name as usize) {
                let existed = connection.lock().delete_journal();
                return Ok(if existed {
                    code::OK
                } else {
                    code::IOERR_DELETE_NOENT
                });
            }
            let journal = process.journals.lock().super_journal(text);
            let Some(journal) = journal else {
                // SQLite itself deletes only what it has made beside a database, and that never leaves the process.
                let existed = !names::is_beside_a_database(text)
                    && process.delete_database(&names::check(text)?)?;
                return Ok(if existed {
                    code::OK
                } else {
                    code::IOERR_DELETE_NOENT
                });
            };
            if sync_directory != 0 {
                // The commit point of a transaction over several databases. If it fails the super-journal stays, or SQLite would
                // take the transaction for committed and not roll back.
                let members: Vec<_> = std::mem::take(&mut journal.lock().members)
                    .iter()
                    .filter_map(std::sync::Weak::upgrade)
                    .collect();
                commit_group(&members).inspect_err(|error| {
                    for member in &members {
                        let mut member = member.lock();
                        member.note_error(error);
                        client.set(Some(member.settings().client()));
                    }
                })?;
            }
            process.journals.lock().remove_super_journal(text);
            Ok(code::OK)
        },
    )
}

unsafe extern "C" fn access(
    vfs: *mut Vfs,
    name: *const c_char,
    flags: c_int,
    answer: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes the VFS that was registered.
    let registration = unsafe { Registration::of(vfs) };
    if !answer.is_null() {
        // SAFETY: SQLite passes a place for the answer, which is defined after an error too.
        unsafe { answer.write(0) };
    }
    if flags == ACCESS_READWRITE && !name.is_null() {
        // SQLite asks so of a directory only (`PRAGMA temp_store_directory`), and temporary files are the operating system's.
        let os = registration.os_vfs;
        let mut found = 0;
        // SAFETY: it is there for as long as ours, and the name goes on as it is.
        let rc = unsafe {
            (*os)
                .access
                .map_or(code::ERROR, |method| method(os, name, flags, &mut found))
        };
        if !answer.is_null() {
            // SAFETY: as above.
            unsafe { answer.write(found) };
        }
        return rc;
    }
    guarded(
        registration,
        Op::Access,
        |_| None,
        || {
            // SAFETY: SQLite passes a C string.
            let text = unsafe { text(name) }?;
            let there = Process::current()
                .journals
                .lock()
                .exists(name as usize, text);
            if !answer.is_null() {
                // SAFETY: SQLite passes a place for the answer.
                unsafe { answer.write(c_int::from(there)) };
            }
            Ok(code::OK)
        },
    )
}

unsafe extern "C" fn full_pathname(
    vfs: *mut Vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite passes the VFS that was registered.
    let registration = unsafe { Registration::of(vfs) };
    guarded(
        registration,
        Op::FullPathname,
        |_| None,
        || {
            // SAFETY: SQLite passes a C string.
            let text = unsafe { text(name) }?;
            names::check(text)?;
            if out.is_null() {
                return Err(Error::new(Kind::Bug, "SQLite gave no place for a name"));
            }
            if text.len() >= usize::try_from(room).unwrap_or(0) {
                return Err(Error::new(
                    Kind::CantOpen,
                    format!("the database name {text:?} is too long"),
                ));
            }
            // SAFETY: SQLite passes `room` bytes, and there are enough of them.
            unsafe {
                out.cast::<u8>()
                    .copy_from_nonoverlapping(text.as_ptr(), text.len());
                out.add(text.len()).write(0);
            }
            Ok(code::OK)
        },
    )
}

/// xSleep: the operating system's, unless a busy handler is being made to give up, or waits for a lease.
unsafe extern "C" fn sleep(vfs: *mut Vfs, microseconds: c_int) -> c_int {
    if super::busy::passes_over_sleep(microseconds) {
        return microseconds;
    }
    // SAFETY: SQLite passes the VFS that was registered.
    let registration = unsafe { Registration::of(vfs) };
    let waited = guarded(
        registration,
        Op::Own,
        |_| None,
        || Ok(c_int::from(super::busy::pause_for_lease(microseconds))),
    );
    if waited == 1 {
        return microseconds;
    }
    // SAFETY: SQLite passes the VFS that was registered.
    unsafe {
        let os = Registration::of(vfs).os_vfs;
        (*os).sleep.map_or(0, |method| method(os, microseconds))
    }
}

/// Passes a method on to the operating system's VFS.
macro_rules! pass_on {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty, $otherwise:expr;)*) => {$(
        unsafe extern "C" fn $name(vfs: *mut Vfs, $($argument: $type),*) -> $answer {
            // SAFETY: SQLite passes the VFS that was registered; the arguments go on as they are.
            unsafe {
                let os = Registration::of(vfs).os_vfs;
                match (*os).$name {
                    Some(method) => method(os, $($argument),*),
                    None => $otherwise,
                }
            }
        }
    )*};
}

pass_on! {
    dl_open(name: *const c_char) -> *mut c_void, std::ptr::null_mut();
    dl_error(room: c_int, message: *mut c_char) -> (), ();
    dl_sym(library: *mut c_void, symbol: *const c_char) -> Option<unsafe extern "C" fn()>, None;
    dl_close(library: *mut c_void) -> (), ();
    randomness(room: c_int, out: *mut c_char) -> c_int, 0;
    current_time(now: *mut f64) -> c_int, code::ERROR;
    get_last_error(room: c_int, message: *mut c_char) -> c_int, 0;
    current_time_int64(now: *mut i64) -> c_int, code::ERROR;
}
