//! The core of the VFS without SQLite: what the callbacks of `ffi/` call, for a simulator that makes transactions of its own.
//!
//! Nothing of the product is made here: each method is the one that a callback converts its arguments for. What a callback does beside
//! that (errors as numbers, busy handlers, journals) is not reached.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::client::Owner;
use crate::connection::{self, Connection};
use crate::process::Process;
use crate::settings::ConnectionSettings;

pub use crate::connection::{LockLevel, ReadOutcome};
pub use crate::error::{Error, Result};

/// An open main database.
pub struct PageFile(Arc<Mutex<Connection>>);

impl PageFile {
    /// xOpen, with the parameters of the URI. Files with the same `owner`, which is not 0, are of one transaction of the application.
    pub fn open(
        name: &str,
        parameters: &[(&str, String)],
        read_only: bool,
        owner: usize,
    ) -> Result<Self> {
        let process = Process::current();
        let process_settings = process.settings.as_ref().map_err(Clone::clone)?;
        let parameter = |key: &str| {
            let mut given = parameters.iter();
            given.find(|(name, _)| *name == key).map(|it| it.1.clone())
        };
        let settings =
            ConnectionSettings::new(process_settings, name, parameter, read_only, !read_only)?;
        let mut connection = process.open(settings)?;
        connection.belongs_to(Owner(owner));
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// xLock.
    pub fn lock(&self, level: LockLevel) -> Result<()> {
        self.0.lock().lock(level)
    }

    /// xUnlock. Without a commit before it this is a rollback.
    pub fn unlock(&self, level: LockLevel) {
        self.0.lock().unlock(level);
    }

    /// The lock that it has.
    pub fn level(&self) -> LockLevel {
        self.0.lock().level()
    }

    /// xRead.
    pub fn read(&self, out: &mut [u8], offset: u64) -> Result<ReadOutcome> {
        self.0.lock().read(&mut out.into(), offset)
    }

    /// xWrite.
    pub fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.lock().write(bytes, offset)
    }

    /// xTruncate.
    pub fn truncate(&self, size: u64) -> Result<()> {
        self.0.lock().truncate(size)
    }

    /// xFileSize.
    pub fn byte_size(&self) -> u64 {
        self.0.lock().byte_size()
    }

    /// The version that is read.
    pub fn version(&self) -> Option<u64> {
        let snapshot = self.0.lock().snapshot();
        snapshot.map(|snapshot| snapshot.version.get())
    }

    /// FCNTL_SYNC: the commit of this database alone.
    pub fn commit(&self) -> Result<()> {
        self.0.lock().sync()
    }

    /// FCNTL_COMMIT_PHASETWO: the transaction is not rolled back any more.
    pub fn is_over(&self) {
        self.0.lock().transaction_is_over();
    }
}

/// The deletion of a super-journal: the commit of all of them, or of none.
pub fn commit_together(files: &[&PageFile]) -> Result<()> {
    let members: Vec<_> = files.iter().map(|file| Arc::clone(&file.0)).collect();
    connection::commit_group(&members)
}
