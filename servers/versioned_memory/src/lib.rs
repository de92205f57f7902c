//! The versioned memory page store: every version of every database in memory, with tags, branches and restores.
//!
//! The reference for stores with versions: simple before fast. Everything is behind one lock, a version is a persistent map
//! (`database.rs`), and what no version has any more frees itself. Never touches a disk; everything is gone with the process,
//! and the next one is another incarnation.
//!
//! * **OLD1** A version that nothing keeps goes by time: with a commit, or with the next call of any kind to any database, which drops at
//!   most [`STEP_OLD`] of them and waits for nobody to do so. A call that has nothing to drop looks at a clock and a number.

mod database;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{
    Changes, CommitId, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, PageNumber, PageSize,
    Snapshot, StagingId, TagName, UnixMillis, Version, VersionEntry,
};
use pagewire_server::clock::Clock;
use pagewire_server::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseCommit, DatabaseEntry, Description,
    PageStore, PageWrite, Parent, Resolution, Resolve, StoreError, StoredPage,
};
use parking_lot::RwLock;

use database::{Database, Origin};
use state::State;

/// Versions that one step of a collection drops.
const STEP_VERSIONS: usize = 256;
/// Versions that a call drops beside what it is for (OLD1).
const STEP_OLD: usize = 64;

/// How a [`VersionedMemoryStore`] keeps versions.
#[derive(Clone, Debug, Default)]
pub struct VersionedMemoryOptions {
    /// How long a version is kept after the next one was made; `None` for ever.
    pub retention: Option<Duration>,
    /// For the times of versions.
    pub clock: Clock,
}

/// All versions in memory. See the top of this file.
#[derive(Debug)]
pub struct VersionedMemoryStore {
    incarnation: Incarnation,
    options: VersionedMemoryOptions,
    state: RwLock<State>,
    /// When there may be something to drop, as `State::next_due`.
    next_due: AtomicI64,
}

impl VersionedMemoryStore {
    /// An empty store that keeps every version for ever.
    pub fn new() -> Result<Self, StoreError> {
        Self::with_options(VersionedMemoryOptions::default())
    }

    /// An empty store.
    pub fn with_options(options: VersionedMemoryOptions) -> Result<Self, StoreError> {
        Ok(Self {
            incarnation: Incarnation::random().map_err(no_randomness)?,
            options,
            state: RwLock::default(),
            next_due: AtomicI64::new(i64::MAX),
        })
    }

    fn now(&self) -> UnixMillis {
        UnixMillis(i64::try_from(self.options.clock.now_ms()).unwrap_or(i64::MAX))
    }

    fn retention_ms(&self) -> Option<i64> {
        let retention = self.options.retention;
        retention.map(|r| i64::try_from(r.as_millis()).unwrap_or(i64::MAX))
    }

    /// Drops some of what is too old by now (OLD1).
    fn drop_old(&self) {
        let Some(retention) = self.retention_ms() else {
            return;
        };
        let now = self.now();
        if now.0 < self.next_due.load(Ordering::Relaxed) {
            return;
        }
        // Whoever has the lock now is followed by a call that may do it.
        let Some(mut state) = self.state.try_write() else {
            return;
        };
        let old = state.take_old(now, retention, STEP_OLD);
        self.note_due(&state);
        drop(state);
        drop(old);
    }

    fn note_due(&self, state: &State) {
        let next = state.next_due().map_or(i64::MAX, |due| due.0);
        self.next_due.store(next, Ordering::Relaxed);
    }

    /// What kept versions of a database may not any more.
    fn look_again(&self, state: &mut State, id: DatabaseId) {
        if self.options.retention.is_some() {
            state.look_again(id, self.now());
            self.note_due(state);
        }
    }

    fn check(state: &State, commit: &Commit) -> Result<Option<CommitOutcome>, StoreError> {
        if commit.databases.is_empty() {
            return Err(StoreError::Limit("a commit names no database".to_owned()));
        }
        let mut distinct = BTreeSet::new();
        for part in &commit.databases {
            state.database(part.database)?;
            if !distinct.insert(part.database) {
                let twice = "a commit names a database twice";
                return Err(StoreError::Limit(twice.to_owned()));
            }
        }
        let made = |part: &DatabaseCommit| {
            let database = state.databases.get(&part.database);
            database.and_then(|d| d.maker(part.base.next())) == Some(commit.id)
        };
        if commit.databases.iter().all(made) {
            let versions = commit.databases.iter().map(|part| part.base.next());
            return Ok(Some(CommitOutcome::Committed(versions.collect())));
        }
        for (index, part) in commit.databases.iter().enumerate() {
            let database = state.database(part.database)?;
            let head = database.head().version;
            if head != part.base {
                return Ok(Some(CommitOutcome::Conflict { index, head }));
            }
            let current = database.epoch();
            if current != part.epoch {
                return Ok(Some(CommitOutcome::LeaseLost { index, current }));
            }
        }
        for part in &commit.databases {
            let Some(from) = part.restore else {
                continue;
            };
            let from = state.database(part.database)?.version(from)?.snapshot();
            let size = Some(part.page_size);
            if from.page_count != part.page_count
                || (from.page_size.is_some() && from.page_size != size)
                || !part.stagings.is_empty()
                || !part.pages.is_empty()
            {
                return Err(StoreError::Limit(format!(
                    "a restore of version {} has other pages than that",
                    from.version
                )));
            }
        }
        state.stagings.check(&commit.databases)?;
        Ok(None)
    }
}

#[async_trait]
impl PageStore for VersionedMemoryStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "versioned-memory".to_owned(),
            durable: false,
            exclusive: true,
            versions: true,
            branches: true,
            retention: self.options.retention,
        }
    }

    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    async fn begin_service(&self, _lease_ttl: Duration) -> Result<Duration, StoreError> {
        // No earlier process ever served this incarnation.
        Ok(Duration::ZERO)
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        self.drop_old();
        if let Some(id) = self.state.read().names.get(name.as_str()) {
            return Ok(*id);
        }
        if !create {
            return Err(StoreError::DatabaseNotFound);
        }
        let id = DatabaseId::random().map_err(no_randomness)?;
        let mut state = self.state.write();
        // Another call may have been faster.
        if let Some(id) = state.names.get(name.as_str()) {
            return Ok(*id);
        }
        let database = Database::new(name.clone(), state.new_segment());
        state.add(id, database);
        Ok(id)
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        let from = match after >= prefix {
            true => Bound::Excluded(after),
            false => Bound::Included(prefix),
        };
        let state = self.state.read();
        let entries = state
            .names
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter_map(|(_, id)| {
                let database = state.databases.get(id)?;
                let head = database.head();
                (head.version > Version::ZERO).then(|| DatabaseEntry {
                    name: database.name.clone(),
                    database: *id,
                    head,
                })
            });
        Ok(entries.take(limit).collect())
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        self.drop_old();
        let now = self.now();
        let mut state = self.state.write();
        let (id, removed) = state.remove(name, now)?;
        if let Some(origin) = removed.as_ref().and_then(|d| d.origin.as_ref()) {
            self.look_again(&mut state, origin.database);
        }
        drop(state);
        // All of its pages: too long for the others to wait.
        drop(removed);
        Ok(id)
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        self.drop_old();
        Ok(self.state.read().database(database)?.head())
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        self.drop_old();
        let state = self.state.read();
        let database = state.database(database)?;
        Ok((database.head(), database.changes(since)))
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        self.drop_old();
        let kept = self.state.read().database(database)?.version(version)?;
        Ok(pages.iter().map(|number| kept.page(*number)).collect())
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        self.drop_old();
        let mut state = self.state.write();
        state.database_mut(database)?.protect(floor, pins)?;
        self.look_again(&mut state, database);
        Ok(())
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        Ok(self.state.write().database_mut(database)?.fence())
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        let mut state = self.state.write();
        state.database(database)?;
        state.stagings.add(staging, database, page_size, pages)
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        self.state.write().stagings.take(staging);
        Ok(())
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let now = self.now();
        let retention = self.retention_ms();
        let mut unkept = Vec::new();
        let mut state = self.state.write();
        if let Some(outcome) = Self::check(&state, &commit)? {
            return Ok(outcome);
        }
        let mut versions = Vec::with_capacity(commit.databases.len());
        for part in commit.databases {
            let id = part.database;
            versions.push(part.base.next());
            let next = state.next_version(commit.id, part)?;
            let made = state.database_mut(id)?.apply(next, now)?;
            if let Some(retention) = retention {
                unkept.push(state.take_unkept(id, now, Some(retention), STEP_VERSIONS)?);
                // The one before it.
                state.look_again(id, UnixMillis(made.0.saturating_add(retention)));
            }
        }
        self.note_due(&state);
        drop(state);
        drop(unkept);
        Ok(CommitOutcome::Committed(versions))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        let Some((first, base, epoch)) = resolve.participants.first() else {
            return Err(StoreError::Limit("a commit names no database".to_owned()));
        };
        let mut state = self.state.write();
        let database = state.database_mut(*first)?;
        if base.next() <= database.head().version {
            match database.maker(base.next()) {
                None => {
                    return Ok(Resolution::Unknown(format!(
                        "the record of version {} is not kept any more",
                        base.next()
                    )));
                }
                Some(id) if id == resolve.id => {
                    let versions = resolve.participants.iter().map(|(_, base, _)| base.next());
                    return Ok(Resolution::Committed(versions.collect()));
                }
                Some(_) => {}
            }
        } else if database.epoch() == *epoch {
            database.fence();
        }
        let epoch = |id| state.databases.get(id).map_or(Epoch::NONE, Database::epoch);
        let current = resolve.participants.iter().map(|(id, _, _)| epoch(id));
        Ok(Resolution::Aborted {
            current: current.collect(),
        })
    }

    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        let state = self.state.read();
        let database = state.database(database)?;
        Ok(database.entry(database.find(moment, self.now())?))
    }

    async fn versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        let state = self.state.read();
        let database = state.database(database)?;
        Ok(database.entries(before, tagged_only, limit))
    }

    async fn diff(
        &self,
        database: DatabaseId,
        from: Version,
        to: Version,
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let (from, to) = {
            let state = self.state.read();
            let database = state.database(database)?;
            (database.version(from)?, database.version(to)?)
        };
        let pages = from.differing(&to).filter(|number| Some(*number) > after);
        Ok(pages.take(limit).collect())
    }

    async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        let mut state = self.state.write();
        let entry = state
            .database_mut(database)?
            .set_tag(tag, moment, replace, self.now())?;
        // It may have been moved.
        self.look_again(&mut state, database);
        Ok(entry)
    }

    async fn delete_tag(&self, database: DatabaseId, tag: &TagName) -> Result<bool, StoreError> {
        let mut state = self.state.write();
        let existed = state.database_mut(database)?.delete_tag(tag);
        self.look_again(&mut state, database);
        Ok(existed)
    }

    async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        let now = self.now();
        let mut state = self.state.write();
        let taken = |what: &str| Err(StoreError::NameTaken(format!("there is a database {what}")));
        if let Some(there) = state.databases.get(&branch) {
            return match &there.origin {
                Some(origin) if origin.database == source && there.name == *name => {
                    Ok(origin.entry.clone())
                }
                _ => taken(&format!("with the id of the branch, {}", there.name)),
            };
        }
        if state.names.contains_key(name.as_str()) {
            return taken(name.as_str());
        }
        if state.was_removed(branch) {
            let removed = format!("branch {name} was removed");
            return Err(StoreError::NameTaken(removed));
        }
        let database = state.database(source)?;
        let kept = database.find(moment, now)?.clone();
        let entry = database.entry(&kept);
        let origin = Origin {
            database: source,
            entry: entry.clone(),
        };
        let maker = CommitId::from_bytes(*branch.as_bytes());
        let segment = state.new_segment();
        let made = Database::branch(name.clone(), maker, segment, origin, &kept, now);
        state.add(branch, made);
        Ok(entry)
    }

    async fn describe(&self, database: DatabaseId) -> Result<Description, StoreError> {
        self.drop_old();
        let state = self.state.read();
        let database = state.database(database)?;
        let parent = database.origin.as_ref().map(|origin| Parent {
            database: origin.database,
            name: state
                .databases
                .get(&origin.database)
                .map(|parent| parent.name.clone()),
            version: origin.entry.snapshot.version,
        });
        Ok(Description {
            head: database.head(),
            created: database.created(),
            parent,
            oldest: database.kept_versions().next().unwrap_or(Version::ZERO),
            versions: database.kept_versions().count() as u64,
            pages: database.usage().pages(),
            bytes: database.usage().bytes(),
        })
    }

    async fn collect(&self, database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        let (now, retention) = (self.now(), self.retention_ms());
        let mut collected = Collected::default();
        let mut state = self.state.write();
        let ids = match database {
            Some(id) => vec![id],
            None => state.databases.keys().copied().collect(),
        };
        for id in ids {
            let room = STEP_VERSIONS - collected.versions as usize;
            let (unkept, more) = state.take_unkept(id, now, retention, room)?;
            let usage = state.database(id)?.usage();
            let (pages, bytes) = (usage.pages(), usage.bytes());
            collected.versions += unkept.len() as u64;
            drop(unkept);
            let usage = state.database(id)?.usage();
            collected.pages += pages - usage.pages();
            collected.bytes += bytes - usage.bytes();
            collected.more |= more;
        }
        Ok(collected)
    }
}

fn no_randomness(error: pagewire_proto::Invalid) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
