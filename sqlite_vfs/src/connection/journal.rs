//! The journal of a connection: private to it, and gone with its transaction (K5 of `mod.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Connection, State};
use crate::error::Result;
use crate::file::spool::Spool;

/// See the file's header.
#[derive(Default)]
pub(super) struct Journal {
    content: Spool,
    open_handles: usize,
    /// Whether SQLite has read what its transaction wrote, as it does to roll back.
    was_read: bool,
}

/// What the journal says of a FCNTL_SYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RollsBack {
    /// It is a commit, since nothing of the journal was read.
    No,
    /// It may be a rollback, or a commit after a ROLLBACK TO.
    Seen,
    /// There is no journal in use: `journal_mode=MEMORY`.
    Unknown,
}

impl Connection {
    /// Whether the journal exists, to be asked without locking the connection.
    pub fn journal_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.journal_exists)
    }

    /// xOpen of the journal.
    pub fn open_journal(&mut self) {
        if matches!(self.state, State::Failed { .. }) {
            // A new journal is a new transaction: from here on nothing may be dropped in silence (K4).
            self.failure_is_over();
        }
        self.journal.get_or_insert_default().open_handles += 1;
        self.journal_exists.store(true, Ordering::SeqCst);
    }

    /// xOpen of an existing journal for reading, when SQLite cleans up a super-journal. `false` if there is none.
    pub fn open_journal_for_reading(&mut self) -> bool {
        match &mut self.journal {
            Some(journal) => {
                journal.open_handles += 1;
                true
            }
            None => false,
        }
    }

    /// xClose of the journal: its content stays until it is deleted.
    pub fn close_journal(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.open_handles = journal.open_handles.saturating_sub(1);
        }
    }

    /// The bytes of the journal, if it exists.
    pub fn journal(&mut self) -> Option<&mut Spool> {
        self.journal.as_mut().map(|journal| &mut journal.content)
    }

    /// xRead of the journal: how many bytes there were; `None` if there is no journal.
    pub fn read_journal(&mut self, out: &mut [u8], offset: u64) -> Result<Option<usize>> {
        let Some(journal) = &mut self.journal else {
            return Ok(None);
        };
        journal.was_read = true;
        journal.content.read(out, offset).map(Some)
    }

    /// xWrite of the journal. Deleted while it is open, what is written goes nowhere, as in a file system.
    pub fn write_journal(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let Some(journal) = &mut self.journal else {
            return Spool::default().write(bytes, 0);
        };
        if offset == 0 {
            // The header of a new journal, or the end of one.
            journal.was_read = false;
        }
        journal.content.write(bytes, offset)
    }

    /// Whether SQLite may be rolling back: it has read its journal, or keeps that where we don't see it.
    pub(super) fn may_roll_back(&self) -> RollsBack {
        match &self.journal {
            Some(journal) if journal.was_read => RollsBack::Seen,
            Some(journal) if journal.open_handles > 0 => RollsBack::No,
            // One that was closed is left from another journal mode.
            Some(_) | None => RollsBack::Unknown,
        }
    }

    /// xDelete of the journal; `false` if there is none.
    pub fn delete_journal(&mut self) -> bool {
        self.journal_exists.store(false, Ordering::SeqCst);
        self.journal.take().is_some()
    }

    pub(super) fn drop_journal(&mut self) {
        match &mut self.journal {
            Some(journal) if journal.open_handles > 0 => journal.content = Spool::Empty,
            _ => {
                self.delete_journal();
            }
        }
    }
}
