//! A transaction that writes, and what of it goes into the log.

use std::ops::Deref;

use heed::RwTxn;

use crate::engine::ReadTxn;
use crate::log::record::{Changes, Savepoint};

/// The one transaction that writes, or one within it.
pub(crate) struct WriteTxn<'t> {
    pub(crate) txn: RwTxn<'t>,
    pub(crate) changes: Recorder<'t>,
}

/// Where changes are recorded.
pub(crate) enum Recorder<'t> {
    Whole(Changes),
    Part(Part<'t>),
}

/// Of a transaction within one: its end without a commit takes back what it recorded, and no more.
pub(crate) struct Part<'t> {
    all: &'t mut Changes,
    before: Savepoint,
    is_kept: bool,
}

impl<'t> Recorder<'t> {
    pub(crate) fn part(changes: &'t mut Recorder<'_>) -> Self {
        let all = changes.changes();
        let before = all.savepoint();
        Self::Part(Part {
            all,
            before,
            is_kept: false,
        })
    }

    pub(crate) fn changes(&mut self) -> &mut Changes {
        match self {
            Self::Whole(changes) => changes,
            Self::Part(part) => part.all,
        }
    }
}

impl Part<'_> {
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.all.undo_to(self.before);
        }
    }
}

impl<'t> Deref for WriteTxn<'t> {
    type Target = ReadTxn<'t>;

    fn deref(&self) -> &Self::Target {
        &self.txn
    }
}
