//! Collection: expires versions and records, raises the horizon, deletes what is below it and not named (I7); carries out and forgets
//! decisions whose owners died (I6); ends removals and makings of databases that were broken off (I9).
//!
//! Any number of servers could collect at once, although one at a time does (`upkeep.rs`), and each may die, or sleep for as long as it likes, between any two calls: what it has
//! found to be garbage stays garbage.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use futures_util::future::join_all;
use pagewire_proto::{DatabaseId, DatabaseName};
use pagewire_server::store::{Collected, StoreError};

use crate::Inner;
use crate::cells::{Entry, Mark, NameCell, Root, State};
use crate::keys::{self, SegmentId};
use crate::roots::{Change, Loaded, harmless};
use crate::store::Removal;
use crate::upkeep::Claimed;

/// A database that is being made has no name yet for so long at the most, whatever else may be taken for abandoned.
const CREATION_TAKES: Duration = Duration::from_secs(1);
/// Keys that one step lists.
const STEP_KEYS: usize = 1000;
/// Decisions that one step forgets.
const STEP_DECISIONS: usize = 64;
/// Deletions under way.
const DELETES: usize = 16;
/// Marks of a root in the time of which what is abandoned is left alone.
const MARKS: i64 = 8;

/// How far a pass through everything has come.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// The last root that was looked at.
    root: String,
    /// Roots that follow it.
    next: VecDeque<String>,
    /// The last segment of the one that comes next.
    segment: String,
    /// All roots have been looked at.
    at_decisions: bool,
}

impl Cursor {
    /// The database under way is left to the next pass. False where there is none.
    pub(crate) fn pass_over(&mut self) -> bool {
        self.segment.clear();
        match self.next.pop_front() {
            Some(root) => {
                self.root = root;
                true
            }
            None => false,
        }
    }
}

impl Inner {
    /// Everything of one database.
    pub(crate) async fn collect_database(
        &self,
        database: DatabaseId,
        claimed: &mut Claimed,
    ) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        let mut after = String::new();
        while self
            .sweep(database, &mut after, &mut collected, claimed)
            .await?
        {}
        Ok(collected)
    }

    /// The next step through everything there is.
    pub(crate) async fn collect_next(
        &self,
        cursor: &mut Cursor,
        claimed: &mut Claimed,
    ) -> Result<Collected, StoreError> {
        let mut collected = Collected::default();
        if cursor.next.is_empty() && !cursor.at_decisions {
            let roots = self.kv.list(keys::ROOTS, &cursor.root, STEP_KEYS).await;
            cursor.next = roots.map_err(harmless)?.into();
            cursor.at_decisions = cursor.next.is_empty();
        }
        let Some(key) = cursor.next.front() else {
            collected.more = self.forget_decisions().await?;
            if !collected.more {
                *cursor = Cursor::default();
            }
            return Ok(collected);
        };
        if let Some(database) = keys::database_of(key) {
            if cursor.segment.is_empty() {
                self.end_what_broke_off(database).await?;
            }
            let mut after = std::mem::take(&mut cursor.segment);
            let swept = self.sweep(database, &mut after, &mut collected, claimed);
            match swept.await {
                Ok(true) => {
                    cursor.segment = after;
                    collected.more = true;
                    return Ok(collected);
                }
                Ok(false) => {}
                // Part of a commit that is under way, or gone: the next pass looks at it.
                Err(StoreError::Unavailable(_) | StoreError::DatabaseNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        cursor.pass_over();
        collected.more = true;
        Ok(collected)
    }

    /// Expires what the root keeps and raises the horizon; a swap only where something changes.
    async fn expire(&self, database: DatabaseId) -> Result<Collected, StoreError> {
        let slot = self.slot(database);
        let writing = slot.writing.lock().await;
        let now = self.now_ms();
        let patience = i64::try_from(self.options.abandoned_after.as_millis()).unwrap_or(i64::MAX);
        let expired = self.update(database, true, |_, root, state| {
            let (versions, before) = (readable(state), segments(state));
            let mut changed = false;
            if state.is_removed() {
                // Nobody can commit to it any more.
                changed |= !(state.entries.is_empty()
                    && state.history.is_empty()
                    && state.archives.is_empty());
                state.entries.clear();
                state.history.clear();
                state.archives.clear();
            } else {
                changed |= state.expire(&self.keep(Some(&slot)), now);
            }
            changed |= raise_horizon(root, now, patience);
            let after: HashSet<_> = segments(state).into_iter().map(|(id, ..)| id).collect();
            let mut collected = Collected {
                versions: versions.saturating_sub(readable(state)),
                ..Collected::default()
            };
            for (_, pages, bytes) in before.iter().filter(|(id, ..)| !after.contains(id)) {
                collected.pages += pages;
                collected.bytes += bytes;
            }
            Ok(match changed {
                true => Change::Swap(collected),
                false => Change::Keep(collected),
            })
        });
        let expired = expired.await;
        drop(writing);
        expired
    }

    /// Deletes garbage among the next keys of a database. Whether there are more.
    async fn sweep(
        &self,
        database: DatabaseId,
        after: &mut String,
        collected: &mut Collected,
        claimed: &mut Claimed,
    ) -> Result<bool, StoreError> {
        let prefix = keys::segments(database);
        // The list comes first: what is listed was put before the root was read.
        let listed = self.kv.list(&prefix, after, STEP_KEYS).await;
        let listed = listed.map_err(harmless)?;
        let mut loaded = self.fetch_any(database).await?;
        let mut named = self.named(database, &loaded).await?;
        let unnamed = |named: &HashSet<SegmentId>| {
            let mut ids = listed.iter().map(|key| keys::segment_of(database, key));
            ids.any(|id| id.is_some_and(|id| !named.contains(&id)))
        };
        // What has no garbage needs no horizon, and a root in which nothing expires is not swapped.
        let stale = loaded.root.intent.is_some() || self.expires(database, &loaded);
        if after.is_empty() && (stale || unnamed(&named) || listed.len() == STEP_KEYS) {
            self.still_claimed(claimed).await?;
            let expired = self.expire(database).await?;
            collected.versions += expired.versions;
            collected.pages += expired.pages;
            collected.bytes += expired.bytes;
            loaded = self.fetch_any(database).await?;
            named = self.named(database, &loaded).await?;
        }
        let horizon = loaded.root.horizon;
        let mut garbage = Vec::new();
        for key in &listed {
            let id = keys::segment_of(database, key);
            if id.is_some_and(|id| id.generation < horizon && !named.contains(&id)) {
                garbage.push(key.clone());
            }
        }
        for keys in garbage.chunks(DELETES) {
            self.still_claimed(claimed).await?;
            for deleted in join_all(keys.iter().map(|key| self.kv.delete(key))).await {
                deleted.map_err(|error| self.failure(error))?;
            }
        }
        match listed.last() {
            Some(last) if listed.len() == STEP_KEYS => {
                *after = last.clone();
                Ok(true)
            }
            _ => {
                if listed.is_empty() && loaded.state.is_removed() {
                    self.delete_removed(database, &loaded).await?;
                }
                Ok(false)
            }
        }
    }

    /// Whether there is something in the root that nobody needs any more.
    fn expires(&self, database: DatabaseId, loaded: &Loaded) -> bool {
        if loaded.state.is_removed() {
            return false;
        }
        let keep = self.keep(Some(&self.slot(database)));
        State::clone(&loaded.state).expire(&keep, self.now_ms())
    }

    /// Everything that the root names, whatever becomes of its intent, and what its archives name.
    async fn named(
        &self,
        database: DatabaseId,
        loaded: &Loaded,
    ) -> Result<HashSet<SegmentId>, StoreError> {
        let intent = loaded.root.intent.iter();
        let states = intent.filter_map(|intent| intent.state.as_ref());
        let mut named = HashSet::new();
        let mut seen = HashSet::new();
        for state in states.chain(&loaded.root.state) {
            named.extend(state.named());
            for part in &state.archives {
                if seen.insert(part.id()) {
                    // One that is not there is an error: nothing may be deleted then.
                    let archive = self.read_archive(database, part).await?;
                    named.extend(archive.entries.iter().map(Entry::id));
                }
            }
        }
        Ok(named)
    }

    /// The root of a removed database goes when everything else has gone and no call that was given up can come late (K4).
    async fn delete_removed(
        &self,
        database: DatabaseId,
        loaded: &Loaded,
    ) -> Result<(), StoreError> {
        const LATE_MS: i64 = 3_600_000;
        if self.now_ms().saturating_sub(loaded.state.removed_ms) > LATE_MS {
            let deleted = self.kv.delete(&keys::root(database)).await;
            deleted.map_err(|error| self.failure(error))?;
            self.roots.remove(&database);
        }
        Ok(())
    }

    /// A removed database gives its name back; one that nobody can find by its name is removed, and one that was never committed to and
    /// has not been leased for long.
    async fn end_what_broke_off(&self, database: DatabaseId) -> Result<(), StoreError> {
        let loaded = match self.fetch_any(database).await {
            Ok(loaded) => loaded,
            Err(StoreError::DatabaseNotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        let Ok(name) = DatabaseName::try_from(loaded.state.name.as_str()) else {
            return Ok(());
        };
        if loaded.state.is_removed() {
            return self.free_name(&name, database).await;
        }
        let state = &loaded.state;
        let now = self.now_ms();
        let is_over = |since: i64, patience: Duration| {
            i128::from(now.saturating_sub(since))
                >= i128::try_from(patience.as_millis()).unwrap_or(i128::MAX)
        };
        // What is told here may be over by then: it is judged again by the swap.
        let unborn_since = state.created_ms.max(state.fenced_ms);
        if state.version == 0 && is_over(unborn_since, self.options.unborn_after) {
            let which = Removal::Unborn(state.epoch());
            self.mark_removed(database, which).await?;
            return match self.fetch_any(database).await {
                Ok(loaded) if loaded.state.is_removed() => self.free_name(&name, database).await,
                Ok(_) | Err(StoreError::DatabaseNotFound) => Ok(()),
                Err(error) => Err(error),
            };
        }
        let patience = self.options.abandoned_after.max(CREATION_TAKES);
        if state.is_used() || !is_over(state.created_ms, patience) {
            return Ok(());
        }
        let found = self.name_cell(&name).await?;
        if found
            .is_some_and(|(_, cell): (_, NameCell)| cell.database[..] == database.as_bytes()[..])
        {
            return Ok(());
        }
        self.mark_removed(database, Removal::Unused).await
    }

    /// Decisions whose owners died are carried out and forgotten. Whether there are more.
    async fn forget_decisions(&self) -> Result<bool, StoreError> {
        let listed = self.kv.list(keys::TRANSACTIONS, "", STEP_DECISIONS).await;
        let listed = listed.map_err(harmless)?;
        let mut forgotten = false;
        for key in &listed {
            let Some(transaction) = keys::transaction_of(key) else {
                continue;
            };
            match self.forget(&transaction).await {
                Ok(()) => forgotten = true,
                Err(StoreError::Unavailable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten && listed.len() == STEP_DECISIONS)
    }
}

/// How many versions of a state are readable.
pub(crate) fn readable(state: &State) -> u64 {
    let own = (state.version + 1).saturating_sub(state.oldest);
    let archived = state.archives.iter().map(|part| part.last + 1 - part.first);
    archived.fold(own, u64::saturating_add)
}

/// The segments of a state with their pages and bytes.
pub(crate) fn segments(state: &State) -> Vec<(SegmentId, u64, u64)> {
    let mut seen = HashSet::new();
    let entries = state.entries.iter().filter(|entry| seen.insert(entry.id()));
    let segment = |e: &Entry| (e.id(), u64::from(e.pages), e.total_bytes());
    entries.map(segment).collect()
}

/// Raises the horizon to the generation that the root had when everything abandoned by now was put.
pub(crate) fn raise_horizon(root: &mut Root, now: i64, patience: i64) -> bool {
    let since = now.saturating_sub(patience);
    let past = root.marks.iter().rposition(|mark| mark.time_ms <= since);
    let mut changed = false;
    if let Some(index) = past {
        root.horizon = root.horizon.max(root.marks[index].generation);
        root.marks.drain(..=index);
        changed = true;
    }
    let last = root.marks.last().map_or(i64::MIN, |mark| mark.time_ms);
    if now.saturating_sub(last) > patience / MARKS {
        root.marks.push(Mark {
            generation: root.generation,
            time_ms: now,
        });
        changed = true;
    }
    if patience == 0 {
        root.horizon = root.horizon.max(root.generation);
    }
    changed
}
