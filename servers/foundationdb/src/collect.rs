//! The collection: drops versions that nothing keeps, and the rows that only they read (docs/versions.md, K and G).
//!
//! Each step is a transaction of its own, bounded in what it reads and writes, and any server may make any step: what is under way is in
//! rows. It never disturbs a commit: what a commit reads firmly (heads, epochs, attempts that are open) is only read here, loosely.
//!
//! # States of a version
//! ```text
//!                    nothing keeps it              rows that it read looked at
//!   kept (Record) ------------------> past (Past) ---------------------------> past, its rows gone
//!                                        |                                       | an hour (C14, `age.rs`)
//!                                        +--------------------------------------> nothing
//! ```
//! * **COL1** A version is readable if and only if it has a row `Record` (or is 0); that goes in the transaction in which the first of its
//!   rows goes, or in an earlier one (G2).
//! * **COL2** What keeps a version is read firmly in the transaction that drops it, and what makes something keep a version reads its record
//!   firmly: of a tag, a branch, a restore or a pin and a collection the later one fails and looks again (G1).
//! * **COL3** The row of a page with version w, followed by one with version w', is read by the kept versions from w to w' exclusive, within
//!   its segment, that no cut keeps from it. Without one it goes. A loose look is enough: versions without a record never get one again,
//!   and rows that come meanwhile are of versions above all that are dropped.
//! * **COL4** What is garbage is found again: when version v is dropped, rows die only among those of pages that changed in v+1. If that has a
//!   list they are looked at at once, or from `Due` on; otherwise `Sweep` demands a look at all rows. Both go with the last look (G4).
//!   While `Due` is there no other version of the database is dropped: the list that it needs stays.
//! * **COL5** A row of a page is claimed before it is deleted: of two that delete it one fails, so that sums stay right.

mod expiry;
mod steps;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::time::Duration;

use futures_util::future::try_join;
use pagewire_proto::DatabaseId;
use pagewire_server::store::{Collected, StoreError};
use tokio::time::Instant;

use crate::Inner;
use crate::engine::{Fail, Read, Row, Txn, decode, transact};
use crate::keys::{Key, ServerId};
use crate::values::Database;
use expiry::Walk;
#[cfg(test)]
pub(crate) use steps::MOST_HALVINGS;
pub(crate) use steps::{StepPace, Steps};

/// Databases that one step of all looks at.
const STEP_DATABASES: usize = 32;
/// Transactions that one step spends on a database.
pub(crate) const STEP_TRANSACTIONS: usize = 16;
/// Versions that one transaction looks at.
pub(crate) const STEP_VERSIONS: usize = 128;
/// Pages that one transaction looks at because a version was dropped.
const STEP_PAGES: usize = 512;
/// Rows that one transaction of a sweep looks at: of the largest pages 4 MiB.
pub(crate) const STEP_ROWS: usize = 64;
/// Old records that one transaction drops.
pub(crate) const STEP_PAST: usize = 512;

/// Time after which a step of several databases leaves the rest to the next one.
pub(crate) const STEP_TIME: Duration = Duration::from_secs(2);
/// Databases of one step that may be passed by because the cluster could not: with more of them it is the cluster that is the trouble.
const STEP_FAILURES: usize = 3;

/// How far a look at all databases has come.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// The last key of a head that was looked at.
    after: Option<Vec<u8>>,
    /// The last key of a removed database that was looked at, where there are more.
    pub(crate) removed_after: Option<Vec<u8>>,
    /// The last key of a version that has lost a reader that was looked at, where there are more.
    pub(crate) unread_after: Option<Vec<u8>>,
    /// The last key of a segment that is to be flattened and could not be, where there may be more.
    pub(crate) flatten_after: Option<Vec<u8>>,
    /// Databases whose versions were not all looked at since there are too many that are kept for themselves, and the last key of those that were.
    walks: HashMap<DatabaseId, Vec<u8>>,
    /// Something was done since the first.
    did: bool,
}

/// What a step could not do. It has its turn again in a later one, and holds up nothing else.
#[derive(Debug, Default)]
pub(crate) struct Failures(usize);

impl Failures {
    /// Whether anything was done. An error of one thing is told and left to a later step, and is one of the step only where the cluster
    /// cannot do several: then it is the cluster that is the trouble.
    pub(crate) fn or_later(
        &mut self,
        done: Result<bool, StoreError>,
        what: impl std::fmt::Display,
    ) -> Result<bool, StoreError> {
        let error = match done {
            Ok(did) => return Ok(did),
            Err(error) => error,
        };
        tracing::warn!(%error, %what, "cannot be collected now");
        // Damage says nothing of the cluster.
        if !matches!(error, StoreError::Corrupt(_)) {
            self.0 += 1;
            if self.0 >= STEP_FAILURES {
                return Err(error);
            }
        }
        Ok(false)
    }
}

impl Inner {
    /// One step, of one database or of some.
    pub(crate) async fn collect_step(
        &self,
        only: Option<DatabaseId>,
        pass: &mut Pass,
    ) -> Result<Collected, StoreError> {
        let mut freed = Collected::default();
        let living = self.living().await?;
        let mut failures = Failures::default();
        let dropped = self.drop_abandoned().await;
        let dropped = failures.or_later(dropped, "what was written ahead")?;
        if let Some(database) = only {
            let row = transact!(self.engine, |txn| txn.database(database, Read::Loose).await)?;
            freed.more = self
                .collect_database(database, &row, &living, &mut pass.walks, &mut freed)
                .await?;
            return Ok(freed);
        }
        pass.did |= dropped;
        if pass.after.is_none() {
            let dropped = self.drop_post(&living).await.map(|()| false);
            failures.or_later(dropped, "the post of servers that are gone")?;
        }
        // In each step: they must not wait for a look at all databases, which may be many.
        let ended = self.end_unread(pass, &mut failures).await;
        pass.did |= failures.or_later(ended, "segments that nobody reads")?;
        if pass.after.is_none() || pass.removed_after.is_some() {
            let removed = self
                .collect_removed(&living, pass, &mut freed, &mut failures)
                .await;
            pass.did |= failures.or_later(removed, "removed databases")?;
        }
        // After those that go, which need none.
        let flattened = self.flatten_some(pass, &mut failures).await;
        pass.did |= failures.or_later(flattened, "segments that are to be flattened")?;
        let mut range = self.engine.space.heads();
        if let Some(after) = &pass.after {
            range = range.after(after);
        }
        let rows = transact!(self.engine, |txn| {
            txn.scan(&range, STEP_DATABASES, false, Read::Loose).await
        })?;
        let begun = Instant::now();
        let mut looked_at = None;
        for (index, row) in rows.iter().enumerate() {
            if let Some(Key::Head(database)) = self.engine.space.decode(&row.key) {
                let space = &self.engine.space;
                let collected = match decode(space, row, Database::decode) {
                    Ok(head) => {
                        let walks = &mut pass.walks;
                        self.collect_database(database, &head, &living, walks, &mut freed)
                            .await
                    }
                    Err(error) => Err(error),
                };
                let collected = failures.or_later(collected, database);
                if collected.is_err() {
                    // The next step goes on behind it: else as many as this one bears would hold up the others for ever.
                    pass.after = Some(row.key.clone());
                }
                pass.did |= collected?;
            }
            looked_at = Some(index);
            if begun.elapsed() >= STEP_TIME {
                break;
            }
        }
        let is_last = looked_at.is_none_or(|index| index + 1 == rows.len());
        pass.after = match looked_at.and_then(|index| rows.get(index)) {
            Some(last) if rows.len() == STEP_DATABASES || !is_last => Some(last.key.clone()),
            _ => None,
        };
        let goes_on = pass.after.is_some()
            || pass.removed_after.is_some()
            || pass.unread_after.is_some()
            || pass.flatten_after.is_some();
        freed.more = goes_on || std::mem::take(&mut pass.did);
        if !freed.more {
            // Of databases that were removed: a walk that was left is something that was done.
            pass.walks.clear();
        }
        Ok(freed)
    }

    /// Some transactions for one database; whether anything was done.
    async fn collect_database(
        &self,
        database: DatabaseId,
        row: &Database,
        living: &HashSet<ServerId>,
        walks: &mut HashMap<DatabaseId, Vec<u8>>,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let mut any = self.drop_of_the_dead(database, living).await?;
        if self.drop_unborn(database, row).await? {
            return Ok(true);
        }
        let begun = Instant::now();
        let mut walk = Walk::begun_at(begun, walks.remove(&database));
        for _ in 0..STEP_TRANSACTIONS {
            let did = self.paced(self.collect_some(database, &mut walk, freed).await)?;
            any |= did;
            if !did {
                break;
            }
            if begun.elapsed() >= STEP_TIME {
                // The next step of this database goes on there, else it would come no further.
                walks.extend(walk.after().map(|after| (database, after)));
                break;
            }
        }
        Ok(any)
    }

    /// What is most urgent; whether anything was done.
    async fn collect_some(
        &self,
        database: DatabaseId,
        walk: &mut Walk,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        Ok(self.look_at_due(database, freed).await?
            || self.drop_versions(database, walk, freed).await?
            || self.drop_past(database).await?
            || self.sweep_some(database, freed).await?)
    }

    /// Drops the bells and messages of servers that are gone.
    async fn drop_post(&self, living: &HashSet<ServerId>) -> Result<(), StoreError> {
        let post = transact!(self.engine, |txn| {
            let range = txn.space.post();
            txn.keys(&range, STEP_PAST, Read::Loose).await
        })?;
        let server = |key| match key {
            Key::Bell(server) | Key::Mail(server, ..) => Some(server),
            _ => None,
        };
        let servers: HashSet<_> = post.into_iter().filter_map(server).collect();
        for server in servers.difference(living).copied() {
            transact!(self.engine, |txn| {
                if txn.is_gone(server, living).await? {
                    txn.delete(&Key::Bell(server));
                    txn.delete_range(&txn.space.mail(server));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Drops what servers left that are dead: what they wrote ahead, and what their sessions read.
    pub(crate) async fn drop_of_the_dead(
        &self,
        database: DatabaseId,
        living: &HashSet<ServerId>,
    ) -> Result<bool, StoreError> {
        let dead = transact!(self.engine, |txn| {
            let range = txn.space.protections(database);
            let protections = txn.scan(&range, usize::MAX, false, Read::Firm);
            let attempts = txn.attempts(database, Read::Loose);
            let (protections, attempts) = try_join(protections, attempts).await?;
            for row in protections {
                if let Key::Protect(_, server, _) = txn.key(&row)?
                    && txn.is_gone(server, living).await?
                {
                    txn.delete_encoded(&row.key);
                }
            }
            let mut dead = Vec::new();
            for (serial, attempt) in attempts {
                let own = attempt.server == self.server;
                let helped = attempt.doomed && !own;
                // A5. Its number was there before its row.
                let left = own && !self.begun_attempts.lock().contains(&attempt.number);
                if helped || left || txn.is_gone(attempt.server, living).await? {
                    dead.push(serial);
                }
            }
            Ok(dead)
        })?;
        for serial in &dead {
            self.drop_attempt(database, *serial).await?;
        }
        Ok(!dead.is_empty())
    }
}

impl Txn {
    /// Whether a server that was not among the living has no row: one that has begun since they were listed, or has come back, has one.
    /// Firmly: it may be beginning now.
    async fn is_gone(&self, server: ServerId, living: &HashSet<ServerId>) -> Result<bool, Fail> {
        if living.contains(&server) {
            return Ok(false);
        }
        let row = self.server(server, Read::Firm).await?;
        Ok(row.is_none())
    }
}

pub(crate) fn add(freed: &mut Collected, step: Collected) {
    freed.versions += step.versions;
    freed.pages += step.pages;
    freed.bytes += step.bytes;
}

/// What the body of a row takes.
pub(crate) fn body_len(row: &Row) -> u64 {
    // After its checksum.
    row.stored.len().saturating_sub(4) as u64
}

/// Collects what is not kept, for as long as the store is there.
pub(crate) async fn tidy(store: Weak<Inner>) {
    let Some(every) = store.upgrade().map(|store| store.options.collect_every) else {
        return;
    };
    let mut pass = Pass::default();
    loop {
        tokio::time::sleep(every).await;
        loop {
            let Some(store) = store.upgrade() else { return };
            match store.collect_step(None, &mut pass).await {
                Ok(step) if step.more => {}
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(%error, "a collection has to wait");
                    break;
                }
            }
            drop(store);
            tokio::task::yield_now().await;
        }
    }
}
