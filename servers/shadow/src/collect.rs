//! Collection: expires versions and records, raises the horizon, deletes what is below it and not named (I7); carries out and forgets
//! decisions whose owners died (I6); ends removals and makings of databases that were broken off (I9).
//!
//! Any number of servers may collect at once, and each may die, or sleep for as long as it likes, between any two calls: what it has
//! found to be garbage stays garbage.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use pagewire_proto::{DatabaseId, DatabaseName};
use pagewire_server::store::{Collected, StoreError};

use crate::Inner;
use crate::cells::{Entry, Mark, NameCell, Root, State};
use crate::keys::{self, SegmentId};
use crate::roots::{Change, Loaded, harmless};

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

/// How far the collection of everything has come.
#[derive(Debug, Default)]
pub(crate) struct Cursor {
    /// The last root that was looked at.
    root: String,
    /// The last segment of the one after it.
    segment: String,
}

impl Inner {
    pub(crate) async fn collect(
        &self,
        database: Option<DatabaseId>,
    ) -> Result<Collected, StoreError> {
        match database {
            Some(database) => self.collect_database(database).await,
            None => self.collect_next().await,
        }
    }

    /// Everything of one database.
    pub(crate) async fn collect_database(
        &self,
        database: DatabaseId,
    ) -> Result<Collected, StoreError> {
        let mut collected = self.expire(database).await?;
        let mut after = String::new();
        loop {
            let more = self.sweep(database, &mut after, &mut collected).await?;
            if !more {
                return Ok(collected);
            }
        }
    }

    /// The next step through everything there is.
    async fn collect_next(&self) -> Result<Collected, StoreError> {
        let mut cursor = self.collecting.lock().await;
        let roots = self.kv.list(keys::ROOTS, &cursor.root, 1).await;
        let Some(key) = roots.map_err(harmless)?.pop() else {
            *cursor = Cursor::default();
            self.forget_decisions().await?;
            return Ok(Collected::default());
        };
        let mut collected = Collected {
            more: true,
            ..Collected::default()
        };
        if let Some(database) = keys::database_of(&key) {
            if cursor.segment.is_empty() {
                self.end_what_broke_off(database).await?;
                match self.expire(database).await {
                    Ok(expired) => {
                        collected = Collected {
                            more: true,
                            ..expired
                        }
                    }
                    // Part of a commit that is under way, or gone: the next round looks at it.
                    Err(StoreError::Unavailable(_) | StoreError::DatabaseNotFound) => {
                        cursor.root = key;
                        return Ok(collected);
                    }
                    Err(error) => return Err(error),
                }
            }
            let mut after = std::mem::take(&mut cursor.segment);
            if self.sweep(database, &mut after, &mut collected).await? {
                cursor.segment = after;
                return Ok(collected);
            }
        }
        cursor.root = key;
        Ok(collected)
    }

    /// Expires what the root keeps and raises the horizon; a swap only where something changes.
    async fn expire(&self, database: DatabaseId) -> Result<Collected, StoreError> {
        let slot = self.slot(database);
        let _writing = slot.writing.lock().await;
        let now = self.now_ms();
        let patience = i64::try_from(self.options.abandoned_after.as_millis()).unwrap_or(i64::MAX);
        self.update(database, true, |_, root, state| {
            let (oldest, before) = (state.oldest, segments(state));
            let mut changed = false;
            if state.is_removed() {
                // Nobody can commit to it any more.
                changed |= !state.entries.is_empty() || !state.history.is_empty();
                state.entries.clear();
                state.history.clear();
            } else {
                changed |= state.expire(self.keep(Some(&slot)), now);
            }
            changed |= raise_horizon(root, now, patience);
            let after: HashSet<_> = segments(state).into_iter().map(|(id, ..)| id).collect();
            let mut collected = Collected {
                versions: state.oldest - oldest,
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
        })
        .await
    }

    /// Deletes garbage among the next keys of a database. Whether there are more.
    async fn sweep(
        &self,
        database: DatabaseId,
        after: &mut String,
        _collected: &mut Collected,
    ) -> Result<bool, StoreError> {
        let prefix = keys::segments(database);
        // The list comes first: what is listed was put before the root was read.
        let listed = self.kv.list(&prefix, after, STEP_KEYS).await;
        let listed = listed.map_err(harmless)?;
        let loaded = self.fetch_any(database).await?;
        let named = named(&loaded);
        let horizon = loaded.root.horizon;
        let mut garbage = Vec::new();
        for key in &listed {
            let id = keys::segment_of(database, key);
            if id.is_some_and(|id| id.generation < horizon && !named.contains(&id)) {
                garbage.push(key.clone());
            }
        }
        for keys in garbage.chunks(DELETES) {
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

    /// A removed database gives its name back; one that nobody can find by its name is removed.
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
        let patience = self.options.abandoned_after.max(CREATION_TAKES).as_millis();
        let age = self.now_ms().saturating_sub(loaded.state.created_ms);
        // What was ever leased or committed to has an owner, whatever the clocks say.
        let is_used = loaded.state.version > 0 || loaded.state.epoch > 0;
        if is_used || i128::from(age) < i128::try_from(patience).unwrap_or(i128::MAX) {
            return Ok(());
        }
        let found = self.name_cell(&name).await?;
        if found
            .is_some_and(|(_, cell): (_, NameCell)| cell.database[..] == database.as_bytes()[..])
        {
            return Ok(());
        }
        self.mark_removed(database).await
    }

    /// Decisions whose owners died are carried out and forgotten.
    async fn forget_decisions(&self) -> Result<(), StoreError> {
        let listed = self.kv.list(keys::TRANSACTIONS, "", STEP_DECISIONS).await;
        for key in listed.map_err(harmless)? {
            let Some(transaction) = keys::transaction_of(&key) else {
                continue;
            };
            match self.forget(&transaction).await {
                Ok(()) | Err(StoreError::Unavailable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Everything that the root names, whatever becomes of its intent.
fn named(loaded: &Loaded) -> HashSet<SegmentId> {
    let intent = loaded.root.intent.iter();
    let states = intent.filter_map(|intent| intent.state.as_ref());
    let states = states.chain(&loaded.root.state);
    states.flat_map(State::named).collect()
}

/// The segments of a state with their pages and bytes.
fn segments(state: &State) -> Vec<(SegmentId, u64, u64)> {
    let mut seen = HashSet::new();
    let entries = state.entries.iter().filter(|entry| seen.insert(entry.id()));
    let segment = |e: &Entry| (e.id(), u64::from(e.pages), e.total_bytes());
    entries.map(segment).collect()
}

/// Raises the horizon to the generation that the root had when everything abandoned by now was put.
fn raise_horizon(root: &mut Root, now: i64, patience: i64) -> bool {
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
