//! The memory page store: the smallest correct store, and the oracle for tests of others.
//!
//! Keeps the head of every database and bounded pre-images for versions that are protected. Never touches a disk;
//! everything is gone with the process, and the next one is another incarnation.
//!
//! Locks are taken in this order: the directory of names, databases in the order of their ids, stagings. No lock is held
//! across an await.

mod database;
pub mod staging;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, Epoch, Incarnation, PageNumber, PageSize, Snapshot,
    StagingId, Version,
};
use pagewire_server::store::{
    Capabilities, Commit, CommitOutcome, DatabaseEntry, PageStore, PageWrite, Resolution, Resolve,
    StoreError, StoredPage,
};
use parking_lot::{Mutex, RwLock};

use database::{Database, NextVersion, Usage};
use staging::Stagings;

/// How much a [`MemoryStore`] keeps beside the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Bytes of pre-images that all databases keep for protected versions. Beyond it the database that has the most of them
    /// gives up its oldest versions, whoever commits: their readers get `VersionGone`.
    pub pre_image_bytes: u64,
    /// Records of versions that a database keeps although they are younger than the time that C14 promises: a bound
    /// for a database with very many commits. What is beyond is answered as unknown.
    pub records: usize,
    /// Records that keep their list of changed pages.
    pub changes: usize,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self {
            pre_image_bytes: 256 << 20,
            records: 1 << 18,
            changes: 4096,
        }
    }
}

/// Pages in memory. See the top of this file.
#[derive(Debug)]
pub struct MemoryStore {
    incarnation: Incarnation,
    limits: MemoryLimits,
    usage: Arc<Usage>,
    directory: RwLock<Directory>,
    stagings: Mutex<Stagings>,
}

#[derive(Debug, Default)]
struct Directory {
    /// By the text of the name.
    names: BTreeMap<String, (DatabaseName, DatabaseId)>,
    databases: HashMap<DatabaseId, Arc<RwLock<Database>>>,
}

impl MemoryStore {
    /// An empty store with the usual limits.
    pub fn new() -> Result<Self, StoreError> {
        Self::with_limits(MemoryLimits::default())
    }

    /// An empty store.
    pub fn with_limits(limits: MemoryLimits) -> Result<Self, StoreError> {
        Ok(Self {
            incarnation: Incarnation::random().map_err(no_randomness)?,
            limits,
            usage: Arc::default(),
            directory: RwLock::default(),
            stagings: Mutex::default(),
        })
    }

    fn database(&self, id: DatabaseId) -> Result<Arc<RwLock<Database>>, StoreError> {
        let directory = self.directory.read();
        let found = directory.databases.get(&id).cloned();
        found.ok_or(StoreError::DatabaseNotFound)
    }

    /// The one who keeps much gives up: a commit elsewhere must not pay for it. Takes one lock at a time.
    fn keep_to_limit(&self) {
        while let Some(largest) = self.usage.largest_beyond(self.limits.pre_image_bytes) {
            // Removed at this moment: what it had is about to be free.
            let Ok(database) = self.database(largest) else {
                return;
            };
            database.write().give_up_oldest();
        }
    }
}

#[async_trait]
impl PageStore for MemoryStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "memory".to_owned(),
            durable: false,
            versions: false,
            branches: false,
            exclusive: true,
            retention: None,
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
        if let Some((_, id)) = self.directory.read().names.get(name.as_str()) {
            return Ok(*id);
        }
        if !create {
            return Err(StoreError::DatabaseNotFound);
        }
        let id = DatabaseId::random().map_err(no_randomness)?;
        let mut directory = self.directory.write();
        // Another call may have been faster.
        if let Some((_, id)) = directory.names.get(name.as_str()) {
            return Ok(*id);
        }
        let database = Database::new(id, self.limits, Arc::clone(&self.usage));
        directory
            .names
            .insert(name.as_str().to_owned(), (name.clone(), id));
        directory
            .databases
            .insert(id, Arc::new(RwLock::new(database)));
        Ok(id)
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        let from = if after >= prefix {
            Bound::Excluded(after)
        } else {
            Bound::Included(prefix)
        };
        let directory = self.directory.read();
        let entries = directory
            .names
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter_map(|(_, (name, id))| {
                let head = directory.databases.get(id)?.read().head();
                (head.version > Version::ZERO).then(|| DatabaseEntry {
                    name: name.clone(),
                    database: *id,
                    head,
                })
            });
        Ok(entries.take(limit).collect())
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        let mut directory = self.directory.write();
        let (_, id) = directory
            .names
            .remove(name.as_str())
            .ok_or(StoreError::DatabaseNotFound)?;
        if let Some(database) = directory.databases.remove(&id) {
            database.write().remove();
        }
        self.stagings.lock().drop_database(id);
        Ok(id)
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        let database = self.database(database)?;
        let database = database.read();
        database.check_exists()?;
        Ok(database.head())
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        let database = self.database(database)?;
        let database = database.read();
        database.check_exists()?;
        Ok((database.head(), database.changes(since)))
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        let database = self.database(database)?;
        let database = database.read();
        database.check_exists()?;
        database.check_readable(version)?;
        Ok(pages
            .iter()
            .map(|page| database.page(*page, version))
            .collect())
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        let database = self.database(database)?;
        let mut database = database.write();
        database.check_exists()?;
        for pin in pins {
            database.check_readable(*pin)?;
        }
        // A pin keeps what came after it too: this store cannot drop from the middle.
        database.protect(floor.into_iter().chain(pins.iter().copied()).min());
        Ok(())
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let database = self.database(database)?;
        let mut database = database.write();
        database.check_exists()?;
        Ok(database.fence())
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        // Held to the end, or a database removed meanwhile would leave a staging that nobody drops.
        let directory = self.directory.read();
        if !directory.databases.contains_key(&database) {
            return Err(StoreError::DatabaseNotFound);
        }
        self.stagings
            .lock()
            .add(staging, database, page_size, pages)
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        self.stagings.lock().take(staging);
        Ok(())
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        if commit.databases.is_empty() {
            return Err(StoreError::Limit("a commit names no database".to_owned()));
        }
        let mut by_id = BTreeMap::new();
        for part in &commit.databases {
            let database = self.database(part.database)?;
            if by_id.insert(part.database, database).is_some() {
                return Err(StoreError::Limit(
                    "a commit names a database twice".to_owned(),
                ));
            }
        }
        // In the order of ids, so that two commits never wait for each other; all of them, so that no reader sees a part.
        let mut locked: BTreeMap<_, _> = by_id
            .iter()
            .map(|(id, database)| (*id, database.write()))
            .collect();
        for database in locked.values() {
            database.check_exists()?;
        }
        if commit.databases.iter().any(|part| part.restore.is_some()) {
            return Err(StoreError::Unsupported("versions"));
        }
        let versions: Vec<_> = commit
            .databases
            .iter()
            .map(|part| part.base.next())
            .collect();
        let repeated = commit
            .databases
            .iter()
            .all(|part| locked[&part.database].made_by(part.base.next(), commit.id));
        if repeated {
            return Ok(CommitOutcome::Committed(versions));
        }
        for (index, part) in commit.databases.iter().enumerate() {
            let database = &locked[&part.database];
            let head = database.head().version;
            if head != part.base {
                return Ok(CommitOutcome::Conflict { index, head });
            }
            let current = database.epoch();
            if current != part.epoch {
                return Ok(CommitOutcome::LeaseLost { index, current });
            }
        }
        let mut stagings = self.stagings.lock();
        stagings.check(&commit.databases)?;
        for part in commit.databases {
            if let Some(database) = locked.get_mut(&part.database) {
                database.apply(NextVersion {
                    id: commit.id,
                    page_size: part.page_size,
                    page_count: part.page_count,
                    pages: stagings.pages_of(part),
                });
            }
        }
        drop(stagings);
        drop(locked);
        self.keep_to_limit();
        Ok(CommitOutcome::Committed(versions))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        let Some((first, base, epoch)) = resolve.participants.first() else {
            return Err(StoreError::Limit("a commit names no database".to_owned()));
        };
        let database = self.database(*first)?;
        let mut database = database.write();
        database.check_exists()?;
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
        drop(database);
        let current = resolve.participants.iter().map(|(id, _, _)| {
            let database = self.database(*id).ok();
            database.map_or(Epoch::NONE, |database| database.read().epoch())
        });
        Ok(Resolution::Aborted {
            current: current.collect(),
        })
    }
}

fn no_randomness(error: pagewire_proto::Invalid) -> StoreError {
    StoreError::Unavailable(error.to_string())
}
