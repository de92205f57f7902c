//! The calls of [`PageStore`]: names and the service here, everything else in the file of its matter.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, Epoch, Incarnation, PageNumber, PageSize, Snapshot,
    StagingId, Version,
};
use pagewire_server::peers::Peers;
use pagewire_server::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseEntry, PageStore, PageWrite,
    Resolution, Resolve, StoreError, StoredPage,
};

use parking_lot::Mutex;

use crate::cells::{self, Mark, NameCell, Root, State};
use crate::commit::{WHOLE_BYTES, check_exists};
use crate::keys;
use crate::kv::{KeyValueError, Swap, Tag};
use crate::roots::{ATTEMPTS, Change, harmless, wait};
use crate::segment;
use crate::slots::Protection;
use crate::staging::{Spill, Stagings, blobs};
use crate::{Inner, ShadowStore, no_randomness};

/// Databases of a list that are looked at together.
const LOOKS: usize = 16;

/// Which databases a removal is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Whatever is in it: somebody has asked for it.
    Any,
    /// Only one that was never leased or committed to, at the moment of the removal.
    Unused,
    /// Only one that was never committed to, and whose epoch is still this one at the moment of the removal.
    Unborn(Epoch),
}

impl Removal {
    fn is_meant_for(self, state: &State) -> bool {
        match self {
            Self::Any => true,
            Self::Unused => !state.is_used(),
            Self::Unborn(epoch) => state.version == 0 && state.epoch() == epoch,
        }
    }
}

/// However it ends, also where its caller goes away: what is still in memory can be tried again.
struct SpillUnderWay<'a>(&'a Mutex<Stagings>, StagingId);

impl Drop for SpillUnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().spill_is_over(self.1);
    }
}

#[async_trait]
impl PageStore for ShadowStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: format!("shadow:{}", self.0.kv.name()),
            durable: self.0.kv.durable(),
            versions: false,
            branches: false,
            // Any number of servers may stand on one store of keys.
            exclusive: false,
            retention: None,
        }
    }

    fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        self.0.begin_service(lease_ttl).await
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        self.0.end_service().await
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        Some(Arc::clone(&self.0) as Arc<dyn Peers>)
    }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        self.0.lookup(name, create).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        self.0.list(prefix, after, limit).await
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        let Some((_, cell)) = self.0.name_cell(name).await? else {
            return Err(StoreError::DatabaseNotFound);
        };
        let database = crate::roots::database_id(&cell.database)?;
        self.0.fetch(database).await?;
        let slot = self.0.slot(database);
        let writing = slot.writing.lock().await;
        self.0.mark_removed(database, Removal::Any).await?;
        drop(writing);
        *slot.protection.lock() = Protection::default();
        self.0.peering.forget(database);
        self.0.stagings.lock().drop_database(database);
        // From here on the database is gone; that its name says so is left to the next who looks for it.
        if let Err(error) = self.0.free_name(name, database).await {
            tracing::debug!(%error, "the name of a removed database is left to the collection");
        }
        Ok(database)
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        self.0.fetch(database).await?.state.snapshot()
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        self.0.changes(database, since).await
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        self.0.read(database, version, pages).await
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        let slot = self.0.slot(database);
        // After a commit that has looked at the floor before, so that what is the head from here on stays.
        let writing = slot.writing.lock().await;
        let loaded = self.0.known(database).await?;
        for pin in pins {
            loaded.state.check_readable(*pin)?;
        }
        {
            let mut protection = slot.protection.lock();
            protection.floor = floor;
            protection.pins = pins.to_vec();
        }
        drop(writing);
        Ok(())
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let slot = self.0.slot(database);
        let _writing = slot.writing.lock().await;
        let now = self.0.now_ms();
        self.0
            .update(database, false, |_, root, state| {
                check_exists(state)?;
                self.0.check_claim(database, &root.claim)?;
                state.epoch += 1;
                state.fenced_ms = now;
                Ok(Change::Swap(state.epoch()))
            })
            .await
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        self.0.known(database).await?;
        let staged = self
            .0
            .stagings
            .lock()
            .add(staging, database, page_size, blobs(pages))?;
        let Some(spill) = staged else {
            return Ok(());
        };
        let of = spill.database;
        match self.0.spill(spill).await {
            // Another one, that was removed by another server, or whose root is damaged: kept here as the largest it would be tried again by
            // everybody, until there is room for nothing else.
            Err(StoreError::DatabaseNotFound | StoreError::Corrupt(_)) if of != database => {
                self.0.stagings.lock().lose_database(of);
                Ok(())
            }
            // What is wrong with another one is for those who stage and commit there: these pages are in memory.
            Err(error) if of != database => {
                tracing::warn!(%error, "a staging of another database could not be written ahead");
                Ok(())
            }
            spilled => spilled,
        }
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        // Its segments are left to the collection: a commit whose outcome is not known may have named them.
        self.0.stagings.lock().forget(staging);
        Ok(())
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        self.0.commit(commit).await
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        self.0.resolve(resolve).await
    }

    async fn collect(&self, database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        self.0.collect(database).await
    }
}

impl Inner {
    /// Makes segments of what a staging has in memory.
    async fn spill(&self, spill: Spill) -> Result<(), StoreError> {
        let _under_way = SpillUnderWay(&self.stagings, spill.staging);
        let loaded = self.known(spill.database).await?;
        let built = segment::build(spill.pages.clone(), spill.page_size, loaded.root.generation)?;
        let indexes: Vec<_> = built.iter().map(|b| b.index.0.clone()).collect();
        let entries = self.put_segments(spill.database, built).await?;
        let segments = entries.into_iter().zip(indexes);
        let segments = segments.map(|(entry, index)| (entry, Arc::new(segment::Index(index))));
        let segments = segments.collect();
        let mut stagings = self.stagings.lock();
        stagings.spilled(spill.staging, segments, &spill.pages);
        Ok(())
    }

    /// The cell of a name that a database has, and its tag.
    pub(crate) async fn name_cell(
        &self,
        name: &DatabaseName,
    ) -> Result<Option<(Tag, NameCell)>, StoreError> {
        let found = self.name_cell_or_free(name).await?;
        Ok(found.filter(|(_, cell)| !cell.database.is_empty()))
    }

    async fn name_cell_or_free(
        &self,
        name: &DatabaseName,
    ) -> Result<Option<(Tag, NameCell)>, StoreError> {
        let key = keys::name(name);
        let value = self.kv.get(&key).await.map_err(harmless)?;
        value
            .map(|value| Ok((value.tag, cells::decode(&key, &value.content)?)))
            .transpose()
    }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        let mut made = None;
        let mut last_error = None;
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            let found = self.name_cell_or_free(name).await?;
            if let Some((_, cell)) = &found
                && !cell.database.is_empty()
            {
                let database = crate::roots::database_id(&cell.database)?;
                match self.fetch(database).await {
                    Ok(_) => {
                        self.drop_made(made.filter(|made| *made != database)).await;
                        return Ok(database);
                    }
                    // Removed, and its name not given back (I9).
                    Err(StoreError::DatabaseNotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            if !create {
                return Err(StoreError::DatabaseNotFound);
            }
            let database = match made {
                Some(database) => database,
                None => self.make_root(name).await?,
            };
            made = Some(database);
            let cell = NameCell {
                database: database.to_wire(),
                serial: found.as_ref().map_or(0, |(_, cell)| cell.serial) + 1,
            };
            let tag = found.map(|(tag, _)| tag);
            let key = keys::name(name);
            let swap = self.kv.swap(&key, tag.as_ref(), cells::encode(&cell));
            match swap.await {
                Ok(Swap::Done(_)) => return Ok(database),
                Ok(Swap::Lost) => {}
                Err(KeyValueError::Unavailable(why)) => last_error = Some(why),
                Err(error) => return Err(harmless(error)),
            }
        }
        Err(StoreError::Unavailable(last_error.unwrap_or_else(|| {
            format!("others change the name {name} all the time")
        })))
    }

    /// A database that no name leads to yet.
    async fn make_root(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        let mut last_error = None;
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            // A new one each time: what became of the one before is left to the collection.
            let database = DatabaseId::random().map_err(no_randomness)?;
            let key = keys::root(database);
            let root = cells::encode(&self.first_root(name));
            match self.kv.swap(&key, None, root).await {
                Ok(Swap::Done(_)) => return Ok(database),
                Ok(Swap::Lost) => {}
                Err(KeyValueError::Unavailable(why)) => last_error = Some(why),
                Err(error) => return Err(self.failure(error)),
            }
        }
        Err(StoreError::Unavailable(last_error.unwrap_or_default()))
    }

    fn first_root(&self, name: &DatabaseName) -> Root {
        let now = self.now_ms();
        Root {
            generation: 1,
            horizon: 0,
            marks: vec![Mark {
                generation: 1,
                time_ms: now,
            }],
            state: Some(State {
                name: name.as_str().to_owned(),
                created_ms: now,
                ..State::default()
            }),
            intent: None,
            claim: bytes::Bytes::new(),
        }
    }

    /// A root that was made for a name which somebody else has got; what is not dropped is collected.
    async fn drop_made(&self, made: Option<DatabaseId>) {
        if let Some(database) = made
            && let Err(error) = self.mark_removed(database, Removal::Unused).await
        {
            tracing::debug!(%error, "a database without a name is left to the collection");
        }
    }

    /// The removal: everything that works by the id ends with it.
    pub(crate) async fn mark_removed(
        &self,
        database: DatabaseId,
        which: Removal,
    ) -> Result<(), StoreError> {
        let now = self.now_ms().max(1);
        self.update(database, false, |_, root, state| {
            // In the state that is swapped: what the caller saw may be over, and a swap that was lost is tried on another root.
            if state.is_removed() || !which.is_meant_for(state) {
                return Ok(Change::Keep(()));
            }
            // Nothing of it can be named any more, not even by whoever put it a moment ago.
            root.horizon = root.generation;
            root.marks.clear();
            *state = State {
                name: std::mem::take(&mut state.name),
                epoch: state.epoch,
                removed_ms: now,
                ..State::default()
            };
            Ok(Change::Swap(()))
        })
        .await
    }

    /// Takes the name away from a database that was removed.
    pub(crate) async fn free_name(
        &self,
        name: &DatabaseName,
        database: DatabaseId,
    ) -> Result<(), StoreError> {
        let Some((tag, cell)) = self.name_cell(name).await? else {
            return Ok(());
        };
        if cell.database[..] != database.as_bytes()[..] {
            return Ok(());
        }
        let free = NameCell {
            database: bytes::Bytes::new(),
            serial: cell.serial + 1,
        };
        let key = keys::name(name);
        let swap = self.kv.swap(&key, Some(&tag), cells::encode(&free));
        // Lost: somebody else has done it.
        swap.await.map(|_| ()).map_err(|error| self.failure(error))
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        let key_prefix = keys::name_prefix(prefix);
        let mut key_after = match after {
            "" => String::new(),
            after => keys::name_prefix(after),
        };
        let mut entries = Vec::new();
        while entries.len() < limit {
            let wanted = limit - entries.len();
            let listed = self.kv.list(&key_prefix, &key_after, wanted).await;
            let listed = listed.map_err(harmless)?;
            let looks: Vec<_> = listed.iter().map(|key| self.listed(key)).collect();
            let looked: Vec<_> = stream::iter(looks).buffered(LOOKS).try_collect().await?;
            entries.extend(looked.into_iter().flatten());
            match listed.last() {
                Some(last) if listed.len() == wanted => key_after = last.clone(),
                _ => break,
            }
        }
        Ok(entries)
    }

    /// The database of a key of a name, if it was ever committed to.
    async fn listed(&self, key: &str) -> Result<Option<DatabaseEntry>, StoreError> {
        let Some(name) = keys::name_of(key) else {
            return Ok(None);
        };
        let Some((_, cell)) = self.name_cell(&name).await? else {
            return Ok(None);
        };
        let database = crate::roots::database_id(&cell.database)?;
        let loaded = match self.fetch(database).await {
            Ok(loaded) => loaded,
            Err(StoreError::DatabaseNotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let head = loaded.state.snapshot()?;
        let born = head.version > Version::ZERO;
        Ok(born.then_some(DatabaseEntry {
            name,
            database,
            head,
        }))
    }
}

// Small segments are what a commit may take along; both are counted in the cache.
const _: () = assert!(WHOLE_BYTES < segment::SEGMENT_BYTES as u64);
