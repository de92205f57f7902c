//! The journal of a connection: private to it, and gone with its transaction (K5 of `mod.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Connection, State};
use crate::file::spool::Spool;

/// See the file's header.
#[derive(Default)]
pub(super) struct Journal {
    content: Spool,
    open_handles: usize,
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
