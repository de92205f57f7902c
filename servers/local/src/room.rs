//! Room: what is kept free, what a full disk refuses, and what goes on (design: a full disk is a refused commit, no more).
//!
//! Room is what the file has of free pages, and what it can grow by: to the largest size that it was opened with, and into what the disk has
//! free. All of it is an estimate, since others write to the disk too and free pages lie scattered; so what the engine meets in
//! mid-work counts, and the estimate only sees to it that it is met rarely.
//!
//! * **ROOM1** What brings pages or names is refused with `Full` while less than the reserve would be left, before anything of it is
//!   written. All else goes on: reads, fences, removals, the end of tags and pins, collection.
//! * **ROOM2** So the reserve belongs to what makes room: the engine copies pages in order to delete from them.
//! * **ROOM3** Flattening takes room before it gives any: it waits until there is more than the reserve, and keeps nobody waiting.
//! * **ROOM4** Where the engine finds no room in mid-work its transaction is given up with nothing applied. That is neither damage nor a failed
//!   medium: the next one may succeed, without the store being opened anew. Collection tries again with fewer rows, then after a while.
//!   It is sound for as long as the root was not being written: what the transaction wrote were free pages, all others are in the log or were
//!   synced before, and the engine writes the root only after that. A write that failed at the root leaves the engine refusing, by which it
//!   is told apart. It may be in the log by then, and is taken back there (LOG8).
//!   What a *sync* answers is no such thing, whatever it says: after one that failed nothing is written, nor read (LOG9). Of the engine it does not show
//!   which of both it was, so its file is synced once more.
//! * **ROOM5** Where room is short collection goes first: nothing is dropped beside commits, whose transaction might be the
//!   one that finds no room, and a step of its own follows each group.
//! * **ROOM6** What was freed since the last checkpoint is no room (LOG3). Where room is short, or short for what a transaction brings, a checkpoint is
//!   made before it, so that there is no less of it than the engine has by itself.

use std::sync::atomic::{Ordering, fence};

use heed::{MdbError, RoTxn, RwTxn};
use pagewire_server::store::StoreError;

use crate::engine::{Engine, WriteError};
use crate::faults::Faults;
use crate::log::files::is_no_room;

/// Bytes that are left for what makes room: some hundred rows of a collection and the pages above them, copied.
const RESERVE_BYTES: u64 = 32 << 20;
/// The reserve is no more than this part of the largest size: tests open small ones.
const RESERVE_SHARE: u64 = 8;
/// Bytes beyond the reserve below which room is short.
const SHORT_BYTES: u64 = 16 << 20;

impl Engine {
    /// Whether there is room for as many bytes of rows beside the reserve (ROOM1).
    pub(crate) fn check_room(
        &self,
        txn: &RoTxn<'_>,
        bytes: u64,
        faults: Option<&Faults>,
    ) -> Result<(), StoreError> {
        // Overflow pages and copies of inner pages: at most twice.
        let needed = bytes.saturating_mul(2).saturating_add(self.reserve());
        let (in_file, to_limit) = self.file_room(txn)?;
        let in_file = in_file.saturating_sub(self.log.pinned_bytes());
        let disk = self.disk_room(faults);
        if in_file.saturating_add(to_limit) < needed {
            return Err(self.file_full());
        }
        match disk {
            Some(disk) if in_file.saturating_add(disk) < needed => {
                Err(StoreError::Full(disk_full(disk)))
            }
            // A file system that does not tell is written to until it refuses.
            _ => Ok(()),
        }
    }

    /// Whether collection has to go first (ROOM5).
    pub(crate) fn is_short_of_room(
        &self,
        txn: &RoTxn<'_>,
        faults: Option<&Faults>,
    ) -> Result<bool, StoreError> {
        let some = SHORT_BYTES.min(self.reserve());
        Ok(self.check_room(txn, some / 2, faults).is_err())
    }

    fn largest_size(&self) -> u64 {
        self.env.info().map_size as u64
    }

    fn reserve(&self) -> u64 {
        RESERVE_BYTES.min(self.largest_size() / RESERVE_SHARE)
    }

    /// Bytes of free pages in the file, and what it may grow by until it has its largest size.
    fn file_room(&self, txn: &RoTxn<'_>) -> Result<(u64, u64), StoreError> {
        let told =
            |error| StoreError::Internal(format!("the size of the tree is not told: {error}"));
        let tree = self.rows.stat(txn).map_err(told)?;
        let page = u64::from(tree.page_size);
        let used = (tree.branch_pages + tree.leaf_pages + tree.overflow_pages + 2) as u64 * page;
        let size = (self.env.info().last_page_number as u64 + 1) * page;
        Ok((
            size.saturating_sub(used),
            self.largest_size().saturating_sub(size.max(used)),
        ))
    }

    fn disk_room(&self, faults: Option<&Faults>) -> Option<u64> {
        let told = faults.and_then(Faults::free_bytes);
        told.or_else(|| {
            let disk = rustix::fs::fstatvfs(&self.directory).ok()?;
            Some(disk.f_bavail.saturating_mul(disk.f_frsize))
        })
    }

    fn file_full(&self) -> StoreError {
        StoreError::Full(format!(
            "the file has its largest size, {} bytes: nothing was applied; remove databases, branches or tags, or open the store with a larger size",
            self.largest_size()
        ))
    }

    /// What a write came to that is not one of the root.
    pub(crate) fn write_failed(&self, error: heed::Error) -> WriteError {
        match error {
            heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull) => {
                WriteError::Refused(self.file_full())
            }
            heed::Error::Io(error) if self.is_for_room(&error) => {
                let disk = self.disk_room(None).unwrap_or(0);
                WriteError::Refused(StoreError::Full(format!("{}: {error}", disk_full(disk))))
            }
            error => WriteError::Medium(error.to_string()),
        }
    }

    /// Makes a transaction of the tree visible, which the log has (READ1); a large one, which it has not, durable (LOG7).
    pub(crate) fn commit_to_tree(&self, txn: RwTxn<'_>, is_large: bool) -> Result<(), WriteError> {
        self.committing.store(txn.id(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if is_large {
            self.set_syncs(true)?;
        }
        let committed = txn.commit();
        if is_large {
            self.set_syncs(false)?;
        }
        let Err(error) = committed else {
            return Ok(());
        };
        let why = error.to_string();
        match self.write_failed(error) {
            // The root was being written (ROOM4).
            WriteError::Refused(_) if self.env.write_txn().is_err() => Err(WriteError::Medium(why)),
            failed => Err(failed),
        }
    }

    fn is_for_room(&self, error: &std::io::Error) -> bool {
        match error.kind() {
            kind if is_no_room(kind) => true,
            // The engine says that the medium failed where a write was cut short by a full disk.
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                let disk = self.disk_room(None);
                disk.is_some_and(|free| free < RESERVE_BYTES / RESERVE_SHARE)
            }
            _ => false,
        }
    }
}

fn disk_full(free: u64) -> String {
    format!(
        "{free} bytes are free on the disk, {RESERVE_BYTES} are kept for safety: nothing was applied; make room on the disk, or remove databases, branches or tags"
    )
}
