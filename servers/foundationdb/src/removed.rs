//! Databases that go: what is left of removed ones, and names to which nobody ever committed.
//!
//! ```text
//!                remove, or unborn for long                  nothing stands on it               an hour since the removal
//!   there (Head) ----------------------------> Removed: rows ------------------> Removed: Nothing -----------------------------------> nothing
//! ```
//! * **REM1** A removed database without anything that stands on it has no rows but `Removed`, which keeps its id from being given to a
//!   branch for as long as a call that makes one may come late (V4).
//! * **REM2** A name without a commit goes when nobody has taken it, or the lease of its database, for
//!   [`crate::FoundationDbOptions::unborn_after`], and no session has it open at any server: this is judged by rows that the transaction which takes it away
//!   reads firmly, so that an open, a grant and a first commit come before, or find it gone.

use std::collections::HashSet;

use futures_util::future::try_join;
use pagewire_proto::{DatabaseId, DatabaseName, Version};
use pagewire_server::store::{Collected, StoreError};
use tokio::time::Instant;

use crate::Inner;
use crate::age::Now;
use crate::collect::{Failures, Pass, STEP_TIME, STEP_VERSIONS, Steps, add};
use crate::engine::{Fail, Read, Txn, decode, transact};
use crate::keys::{Key, OF_A_DATABASE, OF_ITS_VERSIONS, Range, ServerId, Sum};
use crate::segments::{LINKS, Links, NO_SEGMENT};
use crate::values::{Database, Left, Removed};

/// Removed databases that one look takes.
const LOOK: usize = 64;

impl Inner {
    /// What is left of removed databases: all of it goes when nothing stands on it, and until then what no branch reads. Some of them;
    /// the pass remembers where the next call goes on. Whether anything was done.
    pub(crate) async fn collect_removed(
        &self,
        living: &HashSet<ServerId>,
        pass: &mut Pass,
        freed: &mut Collected,
        failures: &mut Failures,
    ) -> Result<bool, StoreError> {
        let begun = Instant::now();
        let mut any = false;
        loop {
            let mut range = self.engine.space.removed();
            if let Some(after) = &pass.removed_after {
                range = range.after(after);
            }
            let (rows, now) = transact!(self.engine, |txn| {
                let rows = txn.scan(&range, LOOK, false, Read::Loose);
                try_join(rows, txn.now(&self.options)).await
            })?;
            for (index, row) in rows.iter().enumerate() {
                let space = &self.engine.space;
                if let Some(Key::Removed(database)) = space.decode(&row.key) {
                    let done = match decode(space, row, Removed::decode) {
                        Ok(removed) if removed.left == Left::Nothing => {
                            match now.is_long_after(removed.time_ms, removed.cluster) {
                                true => self.forget_removed(database, removed).await,
                                false => Ok(false),
                            }
                        }
                        Ok(_) => self.collect_one_removed(database, living, freed).await,
                        Err(error) => Err(error),
                    };
                    // Whatever became of it: the others have their turn.
                    pass.removed_after = Some(row.key.clone());
                    any |= failures.or_later(done, format_args!("removed database {database}"))?;
                }
                if begun.elapsed() >= STEP_TIME && (index + 1 < rows.len() || rows.len() == LOOK) {
                    return Ok(any);
                }
            }
            if rows.len() < LOOK {
                pass.removed_after = None;
                return Ok(any);
            }
        }
    }

    async fn collect_one_removed(
        &self,
        database: DatabaseId,
        living: &HashSet<ServerId>,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let mut any = self.drop_of_the_dead(database, living).await?;
        let cleared = transact!(self.engine, |txn| {
            txn.clear_removed(database, self.steps(txn)).await
        });
        any |= self.paced(cleared.map(|step| step.map(|step| add(freed, step)).is_some()))?;
        let swept = self.sweep_some(database, freed).await;
        Ok(any | self.paced(swept)?)
    }

    /// Forgets that a database was removed, as this row of it says, when that is long ago (V4); whether it did.
    pub(crate) async fn forget_removed(
        &self,
        database: DatabaseId,
        removed: Removed,
    ) -> Result<bool, StoreError> {
        transact!(self.engine, |txn| {
            let key = Key::Removed(database);
            let found = txn.row(&key, Read::Firm, Removed::decode);
            let (found, now) = try_join(found, txn.now(&self.options)).await?;
            // It may have been forgotten, made and removed again since it was seen.
            let goes =
                found == Some(removed) && now.is_long_after(removed.time_ms, removed.cluster);
            if goes {
                txn.delete(&key);
                txn.clear_rows(database);
            }
            Ok(goes)
        })
    }

    /// Takes a name away to which nobody ever committed (REM2); whether it did. A look at the row before says that it may be.
    pub(crate) async fn drop_unborn(
        &self,
        database: DatabaseId,
        row: &Database,
    ) -> Result<bool, StoreError> {
        let now_ms = self.options.clock.now_ms();
        if !self.is_unborn(row, now_ms) {
            return Ok(false);
        }
        let dropped = transact!(self.engine, |txn| {
            let row = txn.row(&Key::Head(database), Read::Firm, Database::decode);
            let Some(row) = row.await?.filter(|row| self.is_unborn(row, now_ms)) else {
                return Ok(false);
            };
            // Its sessions are protected at version 0 from the open on.
            let open = txn.space.protections(database);
            let open = txn.first(&open, Read::Firm).await?.is_some();
            // A grant makes an epoch, and says in the head that the name is in use.
            txn.epoch(database, Read::Firm).await?;
            if open || txn.named(&row.name, Read::Firm).await? != Some(database) {
                return Ok(false);
            }
            let now = txn.now(&self.options).await?;
            txn.take_away(database, &row.name, now);
            Ok(true)
        })?;
        if dropped {
            self.forget(database);
        }
        Ok(dropped)
    }

    fn is_unborn(&self, row: &Database, now_ms: u64) -> bool {
        let after_ms = u64::try_from(self.options.unborn_after.as_millis()).unwrap_or(u64::MAX);
        row.head.snapshot.version == Version::ZERO
            && row.created_ms.saturating_add(after_ms) <= now_ms
    }
}

impl Txn {
    /// Removes a database of which name and head were read firmly. Its rows go with the collection.
    pub(crate) fn take_away(&self, database: DatabaseId, name: &DatabaseName, now: Now) {
        self.delete(&Key::Name(name.clone()));
        self.delete(&Key::Head(database));
        self.delete(&Key::Epoch(database));
        let removed = Removed {
            time_ms: now.time_ms,
            cluster: now.cluster,
            left: Left::All,
        };
        self.put(&Key::Removed(database), &removed.encode());
    }

    /// Drops all rows of a database that nothing stands on.
    fn clear_rows(&self, database: DatabaseId) {
        for kind in OF_A_DATABASE {
            self.delete_range(&self.space.of(kind, database));
        }
        self.delete_range(&self.space.attempts(database));
    }

    /// Drops what is left of a removed database; `None` where nothing is to be done now.
    async fn clear_removed(
        &self,
        database: DatabaseId,
        steps: Steps,
    ) -> Result<Option<Collected>, Fail> {
        let most = steps.of(STEP_VERSIONS);
        let mut step = Collected::default();
        let key = Key::Removed(database);
        let removed = self.row(&key, Read::Firm, Removed::decode).await?;
        let Some(removed) = removed.filter(|removed| removed.left != Left::Nothing) else {
            return Ok(None);
        };
        let mut links = Links::of_a_transaction(steps);
        // Firmly: see COL2.
        let children = self.space.children(database);
        let child = self.first(&children, Read::Firm).await?;
        let mut segments = self.space.segments(database);
        if child.is_none() {
            let segments = self.segments_of(&segments, most).await?;
            let pages = self.sum(&Key::Sum(database, Sum::Pages)).await?;
            let mut bases = self.end_segments(&segments).await?;
            bases.retain(|(base, _)| *base != database);
            self.readers_gone(bases, &mut links).await?;
            if segments.len() < most {
                self.clear_rows(database);
                let left = Left::Nothing;
                self.put(&key, &Removed { left, ..removed }.encode());
                step.pages = u64::try_from(pages).unwrap_or(0);
            }
            return Ok(Some(step));
        }
        match removed.left {
            // Those that are left are stood on. When that goes they go too, without another look at all of them.
            Left::Segments(NO_SEGMENT) => return Ok(None),
            // The segments before it were looked at since its versions went; nothing of that while those are there.
            Left::Segments(next) => {
                segments.begin = self.space.encode(&Key::Segment(database, next));
            }
            Left::All | Left::Nothing => {
                for kind in OF_ITS_VERSIONS {
                    self.delete_range(&self.space.of(kind, database));
                }
            }
        }
        // Each is looked at by itself.
        let most = steps.of(LINKS);
        let segments = self.segments_of(&segments, most).await?;
        let next = match segments.last() {
            Some((_, first)) if segments.len() == most => first.next(),
            _ => NO_SEGMENT,
        };
        let segments = segments.into_iter().collect();
        self.readers_gone(segments, &mut links).await?;
        let left = Left::Segments(next);
        self.put(&key, &Removed { left, ..removed }.encode());
        self.sweep(database);
        Ok(Some(step))
    }

    /// Some segments.
    async fn segments_of(
        &self,
        range: &Range,
        most: usize,
    ) -> Result<Vec<(DatabaseId, Version)>, Fail> {
        let keys = self.keys(range, most, Read::Loose).await?;
        let segment = |key| match key {
            Key::Segment(database, first) => Some((database, first)),
            _ => None,
        };
        Ok(keys.into_iter().filter_map(segment).collect())
    }
}
