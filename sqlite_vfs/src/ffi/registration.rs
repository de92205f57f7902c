//! One registration for each SQLite library in the process: its API table, its own VFS object, its operating system VFS.
//!
//! The table belongs to the registration, never to the process: two SQLite libraries can live side by side (H10).

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int};
use std::thread::ThreadId;

use parking_lot::Mutex;

use super::api::ApiRoutines;
use super::types::{Vfs, code};
use super::vfs;
use crate::error::{Error, Kind, Result};
use crate::process::ClientKey;
use crate::settings::ProcessSettings;

/// The name of the VFS.
pub const VFS_NAME: &CStr = c"pagewire";
/// The oldest SQLite whose API table is long enough.
const OLDEST_SQLITE: c_int = 3_031_000;

/// See the file's header. Lives for ever: SQLite keeps pointers to it.
pub struct Registration {
    api: *const ApiRoutines,
    /// The VFS of the operating system, for temporary files and everything that is not storage.
    pub os_vfs: *mut Vfs,
    /// Its place in the list of registrations.
    pub number: usize,
    vfs: *mut Vfs,
    /// The newest first: of each client one, and of each thread one that is nobody's.
    last_errors: Mutex<VecDeque<LastError>>,
}

/// So many are kept: of the clients that had one last.
const LAST_ERRORS: usize = 64;

/// The newest error of a client. A process may serve many tenants, each with a credential of his own, and an error has names in it: it is for
/// connections of the same endpoint and credential.
struct LastError {
    message: String,
    /// Unknown where it came before its settings were read, or is nobody's.
    client: Option<ClientKey>,
    thread: ThreadId,
}

/// Who wants the VFS to be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody loads the extension.
    Load,
    /// SQLite runs the automatic extension for a new connection.
    EachConnection,
}

// SAFETY: the API table and the VFS objects are written once, before they are shared; SQLite itself calls them from any
// thread.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

static REGISTRATIONS: Mutex<Vec<&'static Registration>> = Mutex::new(Vec::new());

impl Registration {
    /// The functions of the SQLite library.
    pub fn api(&self) -> &ApiRoutines {
        // SAFETY: SQLite hands out a pointer to a static table.
        unsafe { &*self.api }
    }

    /// Makes the VFS known to the SQLite library of the table, once.
    ///
    /// # Safety
    /// `api` is null, or the table that SQLite handed to an entry point.
    pub unsafe fn ensure(api: *const ApiRoutines, by: Caller) -> Result<&'static Registration> {
        let no_table = || {
            Error::new(
                Kind::CantOpen,
                "this SQLite was built without extension loading",
            )
        };
        // SAFETY: promised by the caller.
        let table = unsafe { api.as_ref() }.ok_or_else(no_table)?;
        let missing = || {
            Error::new(
                Kind::CantOpen,
                "this SQLite lacks a function that pagewire needs",
            )
        };
        // SAFETY: the function takes nothing and has been in the table since 2004.
        let version = unsafe { table.libversion_number.ok_or_else(missing)?() };
        if version < OLDEST_SQLITE {
            return Err(Error::new(
                Kind::CantOpen,
                format!(
                    "this is SQLite {}.{}.{}, pagewire needs 3.31.0 or later",
                    version / 1_000_000,
                    version / 1000 % 1000,
                    version % 1000
                ),
            ));
        }
        let mut all = REGISTRATIONS.lock();
        // SAFETY: a null name asks for the default VFS.
        let default = unsafe { table.vfs_find.ok_or_else(missing)?(std::ptr::null()) };
        let registration = match all.iter().find(|known| std::ptr::eq(known.api, api)) {
            Some(known) => *known,
            None => {
                if default.is_null() {
                    return Err(Error::new(
                        Kind::CantOpen,
                        "this SQLite has no VFS for temporary files",
                    ));
                }
                // SAFETY: `default` is a VFS of SQLite, which is never freed.
                let vfs = Box::into_raw(Box::new(unsafe { vfs::object(default) }));
                let registration: &'static Registration = Box::leak(Box::new(Registration {
                    api,
                    os_vfs: default,
                    number: all.len(),
                    vfs,
                    last_errors: Mutex::default(),
                }));
                // Nothing of the registration is written behind this: the pointer would not be good for it any more.
                // SAFETY: the object was just made, and nobody has seen it.
                unsafe { (*vfs).app_data = std::ptr::from_ref(registration).cast_mut().cast() };
                all.push(registration);
                registration
            }
        };
        // SAFETY: the name is a C string.
        let present = unsafe { table.vfs_find.ok_or_else(missing)?(VFS_NAME.as_ptr()) };
        // An automatic extension runs with every connection: it must not take back the default that the application has
        // chosen since. Loading the extension is a wish of its own.
        let make_default = ProcessSettings::default_vfs_wanted();
        let loaded_again =
            by == Caller::Load && make_default && present == registration.vfs && default != present;
        if present.is_null() || loaded_again {
            // SAFETY: the object is complete and lives for ever.
            let rc = unsafe {
                table.vfs_register.ok_or_else(missing)?(registration.vfs, c_int::from(make_default))
            };
            if rc != code::OK {
                return Err(Error::new(
                    Kind::CantOpen,
                    format!("sqlite3_vfs_register failed with {rc}"),
                ));
            }
        }
        Ok(registration)
    }

    /// Whether the VFS of this SQLite library is ours. Where a program links the static library and loads the extension as well, or loads
    /// two files of it, it is that of the copy that came first. Functions and tables of another copy would take its handles for their own.
    pub fn has_the_vfs(&self) -> bool {
        // SAFETY: the name is a C string.
        let present = self
            .api()
            .vfs_find
            .map(|find| unsafe { find(VFS_NAME.as_ptr()) });
        present == Some(self.vfs)
    }

    /// Logs an error of a client's by `sqlite3_log` and keeps it for `pagewire_last_error()`.
    pub fn log(&self, rc: c_int, message: &str, client: Option<ClientKey>) {
        self.say(rc, message);
        let last = LastError {
            message: message.to_owned(),
            client,
            thread: std::thread::current().id(),
        };
        let mut errors = self.last_errors.lock();
        errors.retain(|old| {
            old.client != last.client || (old.client.is_none() && old.thread != last.thread)
        });
        errors.push_front(last);
        errors.truncate(LAST_ERRORS);
    }

    /// Logs what is no error: nothing has failed.
    pub fn warn(&self, message: &str) {
        self.say(code::WARNING, message);
    }

    fn say(&self, rc: c_int, message: &str) {
        // SQLite's text ends at the first NUL.
        let text = format!("pagewire: {message}").replace('\0', " ");
        if let (Some(log), Ok(text)) = (self.api().log, std::ffi::CString::new(text)) {
            // SAFETY: the message is an argument of "%s", never the format (T20).
            unsafe { log(rc, c"%s".as_ptr(), text.as_ptr()) };
        }
    }

    /// The newest error that a connection of this client may see: its own, or one that is nobody's and came up in this thread. The
    /// host's connections elsewhere (`None`) see any.
    pub fn last_error(&self, client: Option<&ClientKey>) -> Option<String> {
        let thread = std::thread::current().id();
        let may_see = |last: &&LastError| match (client, &last.client) {
            (None, _) => true,
            (Some(client), Some(of)) => client == of,
            (Some(_), None) => last.thread == thread,
        };
        let errors = self.last_errors.lock();
        let last = errors.iter().find(may_see);
        last.map(|last| last.message.clone())
    }

    /// A copy of a text in SQLite's own memory, or null.
    pub fn allocate_text(&self, text: &str) -> *mut c_char {
        let Some(malloc) = self.api().malloc64 else {
            return std::ptr::null_mut();
        };
        let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
        // SAFETY: `malloc64` returns null or that many bytes.
        unsafe {
            let place = malloc(bytes.len() as u64 + 1).cast::<u8>();
            if !place.is_null() {
                place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
                place.add(bytes.len()).write(0);
            }
            place.cast()
        }
    }

    /// The registration of a VFS object of ours.
    ///
    /// # Safety
    /// `vfs` is an object made by [`vfs::object`].
    pub unsafe fn of<'a>(vfs: *mut Vfs) -> &'a Registration {
        // SAFETY: `app_data` was set to a leaked registration.
        unsafe { &*(*vfs).app_data.cast::<Registration>() }
    }

    /// The registration with this number.
    pub fn numbered(number: usize) -> Option<&'static Registration> {
        REGISTRATIONS.lock().get(number).copied()
    }
}
