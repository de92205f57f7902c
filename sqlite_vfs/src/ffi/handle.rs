//! What lies in the memory that SQLite gives for a file.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::busy::{BusyHandler, Owed};
use super::registration::Registration;
use super::types::{File, IoMethods};
use crate::connection::Connection;
use crate::error::{Error, Kind, Result};
use crate::file::journal::SuperJournal;
use crate::process::{ClientKey, Process};

/// The file object: SQLite's part first, then a pointer to ours.
#[repr(C)]
pub struct PagewireFile {
    pub base: File,
    pub handle: *mut Handle,
}

/// An open file.
pub struct Handle {
    pub kind: FileKind,
    pub process: &'static Process,
    pub registration: &'static Registration,
    /// As SQLite has told it.
    pub busy: Cell<Option<BusyHandler>>,
    /// What the last try for the write lock has waited.
    pub owed: Cell<Option<Owed>>,
    /// Set after a bug; the file refuses work until it is closed.
    pub broken: AtomicBool,
}

/// Which file it is.
pub enum FileKind {
    /// A main database, with the address of its journal's name.
    Main(Arc<Mutex<Connection>>, usize),
    /// The journal of a connection.
    Journal(Arc<Mutex<Connection>>),
    /// A super-journal.
    Super(Arc<Mutex<SuperJournal>>),
}

impl Handle {
    /// Puts a handle into SQLite's file object.
    ///
    /// # Safety
    /// `file` points to at least `size_of::<PagewireFile>()` bytes that SQLite keeps until xClose.
    pub unsafe fn install(self, file: *mut File, methods: &'static IoMethods) {
        let file = file.cast::<PagewireFile>();
        // SAFETY: promised by the caller.
        unsafe {
            (*file).handle = Box::into_raw(Box::new(self));
            (*file).base.methods = methods;
        }
    }

    /// The handle of a file object.
    ///
    /// # Safety
    /// `install` was called for it, and xClose not yet; SQLite serialises the calls on one file.
    pub unsafe fn of<'a>(file: *mut File) -> &'a Handle {
        // SAFETY: promised by the caller.
        unsafe { &*(*file.cast::<PagewireFile>()).handle }
    }

    /// Refuses a file after a bug, and one that crossed a fork.
    pub fn check(&self) -> Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(Error::new(
                Kind::Bug,
                "the connection met a bug before: close it",
            ));
        }
        self.process.check_not_forked()
    }

    /// Remembers an error at the connection, and answers whose it is.
    pub fn note(&self, error: &Error) -> Option<ClientKey> {
        if error.kind == Kind::Bug {
            self.broken.store(true, Ordering::Relaxed);
        }
        let (FileKind::Main(connection, _) | FileKind::Journal(connection)) = &self.kind else {
            return None;
        };
        let mut connection = connection.try_lock()?;
        if matches!(self.kind, FileKind::Main(..)) {
            connection.note_error(error);
        }
        Some(connection.settings().client())
    }
}
