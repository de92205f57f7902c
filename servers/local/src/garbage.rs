//! Rows that nobody can reach any more: of removed databases, and of stagings that were never committed.
//!
//! They are dropped a few at a time. What is left after a crash is found again by the rows `Staging` and `Removed`, which go
//! last. Of a removed database the history goes here, and its segments where nothing stands on them; its pages, on which
//! branches may stand, are left to a sweep (`collect.rs`), then and whenever a branch goes (B3).

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use heed::RoTxn;
use pagewire_proto::{DatabaseId, Version};
use pagewire_server::store::{Collected, StoreError};

use crate::collect::Did;
use crate::committer::{Committer, Done, MOST_BESIDE};
use crate::engine::{Engine, WriteError};
use crate::faults::Place;
use crate::keys::Key;
use crate::operations::checked;
use crate::transaction::WriteTxn;

/// Rows that a transaction of something else looks at beside, at least.
const ROWS_BESIDE: usize = 64;
/// Rows that a transaction of its own looks at, at least.
const ROWS_BY_ITSELF: usize = 512;

/// Something dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Garbage {
    Staging(u64),
    Database(DatabaseId),
}

impl Garbage {
    /// What earlier processes left.
    pub(crate) fn find(engine: &Engine, txn: &RoTxn<'_>) -> Result<VecDeque<Self>, StoreError> {
        let mut found = VecDeque::new();
        let [removed, ..] = Key::to_do();
        for prefix in [Key::stagings(), removed] {
            engine.scan(txn, Bound::Included(&prefix), &prefix, |key, _| {
                match Key::decode(key) {
                    Some(Key::Staging(serial)) => found.push_back(Self::Staging(serial)),
                    Some(Key::Removed(database)) => found.push_back(Self::Database(database)),
                    _ => {}
                }
                Ok(true)
            })?;
        }
        Ok(found)
    }

    /// The row that says that this is dead.
    fn mark(self) -> Key {
        match self {
            Self::Staging(serial) => Key::Staging(serial),
            Self::Database(database) => Key::Removed(database),
        }
    }

    /// Keys of rows of it, up to a limit; `None` where it is not dead after all.
    fn keys(
        self,
        engine: &Engine,
        txn: &RoTxn<'_>,
        limit: usize,
    ) -> Result<Option<Vec<Vec<u8>>>, StoreError> {
        if engine.get(txn, &self.mark())?.is_none() {
            return Ok(None);
        }
        let mut keys = Vec::new();
        let prefixes = match self {
            Self::Staging(serial) => vec![Key::staged(serial)],
            Self::Database(database) => Key::history_of(database).to_vec(),
        };
        for prefix in prefixes {
            engine.scan(txn, Bound::Included(&prefix), &prefix, |key, _| {
                if keys.len() < limit {
                    keys.push(key.to_vec());
                }
                Ok(keys.len() < limit)
            })?;
        }
        Ok(Some(keys))
    }
}

impl Committer {
    /// Milliseconds until there is something dead, or something to collect; `None` for never.
    pub(crate) fn collection_in_ms(&self) -> Option<u64> {
        self.options.collect_after_quiet?;
        let work_ms = match self.garbage.is_empty() {
            false => Some(0),
            true => self.collector.idle_ms(self.options.clock.now_ms()),
        };
        work_ms.map(|work_ms| work_ms.max(self.collector.paused_ms()))
    }

    /// Drops a few rows in a transaction that is made anyway: more where more was written (GRP4).
    pub(crate) fn collect_some(&mut self, txn: &mut WriteTxn<'_>) -> Result<(), WriteError> {
        if self.short_of_room || self.collector.is_kept_apart() {
            return Ok(());
        }
        if self.collection_in_ms() != Some(0) {
            // Nothing is there to pay with.
            if self.collector.paused_ms() == 0 {
                self.owed = 0;
            }
            return Ok(());
        }
        let rows = self.pay(ROWS_BESIDE);
        if self.garbage.is_empty() {
            self.collect_step(txn, None, rows)?;
            return Ok(());
        }
        self.bury(txn, rows)
    }

    /// How many rows are looked at now: at least some, and what is owed, within a bound.
    fn pay(&mut self, least: usize) -> usize {
        let rows = self
            .collector
            .fitting(least.max(self.owed).min(MOST_BESIDE));
        self.owed = self.owed.saturating_sub(rows);
        rows
    }

    /// A step that somebody asked for, of everything or of a database.
    pub(crate) fn collect(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: Option<DatabaseId>,
    ) -> Done<Collected> {
        let rows = self.collector.fitting(ROWS_BY_ITSELF);
        if let Some(database) = database {
            checked!(self.engine.head(txn, database));
        } else if !self.garbage.is_empty() {
            self.bury(txn, rows)?;
            checked!(self.collector.no_room());
            return Ok(Ok(Collected {
                more: true,
                ..Collected::default()
            }));
        }
        let (did, mut freed) = self.collect_step(txn, database, rows)?;
        // What cannot be collected must not pass for collected (V6): it is told when nothing else is left.
        let hindrance = self.collector.hindrance(database);
        if did == Did::Nothing {
            checked!(self.collector.no_room());
            freed.more = self.collector.forgotten();
            if !freed.more {
                checked!(hindrance);
            }
        } else {
            freed.more |= hindrance.is_err();
        }
        Ok(Ok(freed))
    }

    /// Drops many rows in a transaction of its own.
    pub(crate) fn collect_by_itself(&mut self) {
        let engine = Arc::clone(&self.engine);
        let rows = self.pay(ROWS_BY_ITSELF);
        let collected = (|| {
            let faults = self.options.faults.as_deref();
            let mut txn = Self::begin(&engine, 0, faults)?;
            self.short_of_room = engine.is_short_of_room(&txn, faults)?;
            self.dirty = false;
            let (before, after) = match self.garbage.is_empty() {
                false => {
                    self.bury(&mut txn, rows)?;
                    (Place::BeforeCollect, Place::AfterCollect)
                }
                true => match self.collect_step(&mut txn, None, rows)?.0 {
                    Did::Nothing => return Ok(()),
                    Did::Dropped => (Place::BeforeDrop, Place::AfterDrop),
                    Did::Swept => (Place::BeforeSweep, Place::AfterSweep),
                    Did::Flattened => (Place::BeforeFlatten, Place::AfterFlatten),
                },
            };
            match self.dirty {
                true => self.commit_txn(txn, before, after),
                false => Ok(()),
            }
        })();
        self.end_burial(collected.is_ok());
        match collected {
            Ok(()) => self.collector.found_room(),
            Err(WriteError::Refused(error)) => self.set_aside(error),
            Err(error) => {
                let error = self.note(error);
                tracing::warn!(%error, "what is dead stays until the store is opened anew");
                self.garbage.clear();
                self.collector.stop();
            }
        }
    }

    /// Does a step in a transaction of its own within one of something else, so that an error concerns nobody else.
    pub(crate) fn guarded<T>(
        &mut self,
        txn: &mut WriteTxn<'_>,
        step: impl FnOnce(&mut Self, &mut WriteTxn<'_>) -> Result<T, WriteError>,
    ) -> Result<Option<T>, WriteError> {
        let engine = Arc::clone(&self.engine);
        let mut nested = engine.nested(txn)?;
        match step(self, &mut nested) {
            Ok(done) => {
                engine.commit(nested)?;
                Ok(Some(done))
            }
            Err(WriteError::Refused(error)) => {
                drop(nested);
                self.set_aside(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// What a step met was no fault of the medium: a full disk is waited for (ROOM4), and a place for a checkpoint (LOG10); of damage its database
    /// is left alone until the store is opened anew (COL6).
    fn set_aside(&mut self, error: StoreError) {
        self.collector.reset();
        if let StoreError::Full(_) | StoreError::Unavailable(_) = error {
            tracing::warn!(%error, "collection waits");
            self.collector.found_no_room(error);
            return;
        }
        let database = self.collector.current.take();
        tracing::warn!(%error, ?database, "cannot be collected");
        match self.garbage.front() {
            Some(Garbage::Database(dead)) if Some(*dead) == database => {
                self.garbage.pop_front();
            }
            // Of no database: it stays until the store is opened anew, and holds up nothing.
            Some(Garbage::Staging(_)) if database.is_none() => {
                self.garbage.pop_front();
                return;
            }
            _ => {}
        }
        self.collector.set_aside(database, error);
    }

    /// Drops some rows of what is dead.
    fn bury(&mut self, txn: &mut WriteTxn<'_>, rows: usize) -> Result<(), WriteError> {
        let buried = self.guarded(txn, |this, txn| this.bury_some(txn, rows))?;
        self.dirty |= buried.is_some();
        // Not before that is durable: what is not durably gone is still to be dropped.
        if buried == Some(true) {
            self.buried = self.garbage.front().copied();
        }
        Ok(())
    }

    /// The transaction is durable, or it is given up.
    pub(crate) fn end_burial(&mut self, durable: bool) {
        let buried = self.buried.take().filter(|_| durable);
        if buried.is_some() && self.garbage.front().copied() == buried {
            self.garbage.pop_front();
        }
    }

    /// Whether that was all of it.
    fn bury_some(&mut self, txn: &mut WriteTxn<'_>, limit: usize) -> Result<bool, WriteError> {
        let Some(garbage) = self.garbage.front().copied() else {
            return Ok(false);
        };
        self.collector.current = match garbage {
            Garbage::Database(database) => Some(database),
            Garbage::Staging(_) => None,
        };
        let Some(keys) = garbage.keys(&self.engine, txn, limit)? else {
            return Ok(true);
        };
        for key in &keys {
            self.engine.delete(txn, key)?;
        }
        if keys.len() < limit {
            if let Garbage::Database(database) = garbage {
                self.free_segments(txn, database)?;
                self.sweep(txn, database)?;
            }
            self.engine.delete(txn, &garbage.mark().encode())?;
        }
        Ok(keys.len() < limit)
    }

    /// Lets go of the segments of a removed database, newest first, since they may stand on older ones.
    fn free_segments(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
    ) -> Result<(), WriteError> {
        let prefix = Key::segments_of(database);
        let mut before = u64::MAX;
        while let Some(last) = before.checked_sub(1) {
            let found = self
                .engine
                .newest_version(txn, &prefix, Version::new(last))?;
            let Some(first) = found else {
                break;
            };
            self.reader_gone(txn, database, first)?;
            before = first.get();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use pagewire_proto::{CommitId, DatabaseName, PageCount, PageNumber, PageSize, StagingId};
    use pagewire_server::store::{Commit, DatabaseCommit, PageStore, PageWrite};

    use super::*;
    use crate::{LocalOptions, LocalStore};

    fn keys(store: &LocalStore) -> Vec<Key> {
        let txn = store.engine.read().unwrap();
        let mut keys = Vec::new();
        let all = store.engine.scan(&txn, Bound::Unbounded, &[], |key, _| {
            keys.push(Key::decode(key).unwrap());
            Ok(true)
        });
        all.unwrap();
        keys
    }

    fn open(directory: &std::path::Path) -> LocalStore {
        let options = LocalOptions {
            staging_buffer_bytes: 0,
            ..LocalOptions::default()
        };
        LocalStore::open_with(directory, options).unwrap()
    }

    async fn stage(store: &LocalStore, id: DatabaseId, pages: u32) -> StagingId {
        let staging = StagingId::random().unwrap();
        let pages = (1..=pages).map(|number| PageWrite {
            number: PageNumber::try_from(number).unwrap(),
            content: Bytes::from(vec![number as u8 | 1; 512]),
        });
        let stage = store.stage(id, staging, PageSize::MIN, pages.collect());
        stage.await.unwrap();
        staging
    }

    /// Asks until nothing is left but what every store has.
    async fn until_clean(store: &LocalStore) {
        let mine = [Key::Format, Key::Incarnation, Key::Generation, Key::Run];
        let clean = async {
            while keys(store) != mine {
                let nobody = StagingId::random().unwrap();
                store.discard(nobody).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let limit = std::time::Duration::from_secs(20);
        let cleaned = tokio::time::timeout(limit, clean).await;
        assert!(cleaned.is_ok(), "left: {:?}", &keys(store)[4..]);
    }

    #[tokio::test]
    async fn nothing_is_left_of_the_dead_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let name = DatabaseName::try_from("a").unwrap();
        let id = store.lookup(&name, true).await.unwrap();
        let epoch = store.fence(id).await.unwrap();
        // More rows than one transaction drops; overlapping, so that some are not used.
        let stagings = vec![stage(&store, id, 3000).await, stage(&store, id, 2000).await];
        let part = DatabaseCommit {
            database: id,
            base: Version::ZERO,
            epoch,
            page_size: PageSize::MIN,
            page_count: PageCount::try_from(2500).unwrap(),
            stagings,
            restore: None,
            pages: Vec::new(),
        };
        let commit = Commit {
            id: CommitId::random().unwrap(),
            databases: vec![part],
        };
        store.commit(commit).await.unwrap();
        let staged = |keys: Vec<Key>| {
            let staged = keys.iter().filter(|key| matches!(key, Key::Staged(..)));
            staged.count()
        };
        assert_eq!(staged(keys(&store)), 2500, "each page of the version, once");
        let dead = stage(&store, id, 3000).await;
        stage(&store, id, 10).await;
        store.discard(dead).await.unwrap();
        store.remove(&name).await.unwrap();
        drop(store);
        until_clean(&open(directory.path())).await;
    }

    #[tokio::test]
    async fn what_dies_while_the_store_is_open_is_dropped_without_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path());
        let name = DatabaseName::try_from("a").unwrap();
        let id = store.lookup(&name, true).await.unwrap();
        let dead = stage(&store, id, 300).await;
        stage(&store, id, 300).await;
        store.discard(dead).await.unwrap();
        store.remove(&name).await.unwrap();
        until_clean(&store).await;
    }
}
