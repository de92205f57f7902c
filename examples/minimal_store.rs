//! The smallest backend that is right: trait `PageStore` over a `Mutex` and a map, one file. Keeps every version of every database in
//! memory, as whole as a persistent map would; sessions, leases and the protocol are `servers/core`'s, so it earns *leased*.
//!
//! `cargo run -p pagewire-examples --bin minimal-store -- ADDR:PORT`
#![cfg_attr(rustfmt, rustfmt_skip)] // Wide lines: each call in one look.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pagewire_proto::{Changes, CommitId, DatabaseId, DatabaseName, Epoch, Incarnation, PageCount, PageNumber, PageSize, Snapshot, StagingId, Version};
use pagewire_server::store::{Capabilities, Commit, CommitOutcome, DatabaseEntry, PageStore, PageWrite, Resolution, Resolve, StoreError, StoredPage};
use pagewire_server::{Server, bind_tcp};

type Pages = BTreeMap<PageNumber, StoredPage>;

/// A version: what it is, what made it, and all of its pages.
#[derive(Clone, Debug)]
struct Made { head: Snapshot, by: Option<CommitId>, pages: Pages }

/// Index in `versions` is the version.
#[derive(Debug)]
struct Database { name: DatabaseName, epoch: Epoch, versions: Vec<Made> }

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, DatabaseId>,
    databases: HashMap<DatabaseId, Database>,
    stagings: HashMap<StagingId, (DatabaseId, PageSize, Vec<PageWrite>)>,
}

#[derive(Debug)]
struct MinimalStore { incarnation: Incarnation, state: Mutex<State> }

impl MinimalStore {
    /// Every call is a transaction: it has this lock from beginning to end.
    fn state(&self) -> MutexGuard<'_, State> { self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) }
}

impl State {
    fn database(&mut self, id: DatabaseId) -> Result<&mut Database, StoreError> { self.databases.get_mut(&id).ok_or(StoreError::DatabaseNotFound) }
}

impl Database {
    fn head(&self) -> &Made { &self.versions[self.versions.len() - 1] }

    fn maker(&self, version: Version) -> Option<CommitId> {
        let made = self.versions.get(usize::try_from(version.get()).ok()?);
        made.and_then(|made| made.by)
    }
}

#[async_trait]
impl PageStore for MinimalStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "minimal".to_owned(), durable: false, versions: false, branches: false, exclusive: true, retention: None }
    }
    fn incarnation(&self) -> Incarnation { self.incarnation }
    async fn begin_service(&self, _lease_ttl: Duration) -> Result<Duration, StoreError> { Ok(Duration::ZERO) }
    async fn end_service(&self) -> Result<(), StoreError> { Ok(()) }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        let mut state = self.state();
        match state.names.get(name.as_str()) {
            Some(id) => return Ok(*id),
            None if !create => return Err(StoreError::DatabaseNotFound),
            None => {}
        }
        let id = DatabaseId::random().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let empty = Made { head: Snapshot::EMPTY, by: None, pages: Pages::new() };
        state.names.insert(name.as_str().to_owned(), id);
        state.databases.insert(id, Database { name: name.clone(), epoch: Epoch::NONE, versions: vec![empty] });
        Ok(id)
    }

    async fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<DatabaseEntry>, StoreError> {
        let state = self.state();
        let named = state.names.iter().filter(|(name, _)| name.starts_with(prefix) && name.as_str() > after);
        let entries = named.filter_map(|(_, id)| {
            let database = state.databases.get(id)?;
            Some(DatabaseEntry { name: database.name.clone(), database: *id, head: database.head().head })
        });
        Ok(entries.filter(|entry| entry.head.version > Version::ZERO).take(limit).collect())
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        let mut state = self.state();
        let id = state.names.remove(name.as_str()).ok_or(StoreError::DatabaseNotFound)?;
        state.databases.remove(&id);
        state.stagings.retain(|_, (database, ..)| *database != id);
        Ok(id)
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> { Ok(self.state().database(database)?.head().head) }
    async fn changes(&self, database: DatabaseId, _since: Version) -> Result<(Snapshot, Changes), StoreError> {
        Ok((self.head(database).await?, Changes::All))
    }

    async fn read(&self, database: DatabaseId, version: Version, pages: &[PageNumber]) -> Result<Vec<StoredPage>, StoreError> {
        let mut state = self.state();
        let index = usize::try_from(version.get()).unwrap_or(usize::MAX);
        let made = state.database(database)?.versions.get(index).ok_or(StoreError::VersionGone { version })?;
        let nothing = StoredPage { content: Bytes::new(), version: Version::ZERO };
        Ok(pages.iter().map(|page| made.pages.get(page).unwrap_or(&nothing).clone()).collect())
    }

    async fn protect(&self, database: DatabaseId, _floor: Option<Version>, _pins: &[Version]) -> Result<(), StoreError> {
        // Every version is kept.
        self.state().database(database).map(|_| ())
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let mut state = self.state();
        let epoch = &mut state.database(database)?.epoch;
        *epoch = Epoch::new(epoch.get() + 1);
        Ok(*epoch)
    }

    async fn stage(&self, database: DatabaseId, staging: StagingId, page_size: PageSize, pages: Vec<PageWrite>) -> Result<(), StoreError> {
        let mut state = self.state();
        state.database(database)?;
        state.stagings.entry(staging).or_insert((database, page_size, Vec::new())).2.extend(pages);
        Ok(())
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        self.state().stagings.remove(&staging);
        Ok(())
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let mut state = self.state();
        let versions: Vec<_> = commit.databases.iter().map(|part| part.base.next()).collect();
        let mut repeated = true;
        for part in &commit.databases {
            repeated &= state.database(part.database)?.maker(part.base.next()) == Some(commit.id);
        }
        if repeated { return Ok(CommitOutcome::Committed(versions)); }
        let mut all = Vec::new();
        for (index, part) in commit.databases.iter().enumerate() {
            let database = state.database(part.database)?;
            let (base, current) = (database.head().clone(), database.epoch);
            if base.head.version != part.base { return Ok(CommitOutcome::Conflict { index, head: base.head.version }); }
            if current != part.epoch { return Ok(CommitOutcome::LeaseLost { index, current }); }
            let version = part.base.next();
            let mut pages = if base.head.page_size == Some(part.page_size) { base.pages } else { Pages::new() };
            let mut writes = Vec::new();
            for id in &part.stagings {
                let staged = state.stagings.get(id).filter(|(database, size, _)| (*database, *size) == (part.database, part.page_size));
                writes.extend(staged.ok_or(StoreError::StagingUnknown(*id))?.2.clone());
            }
            writes.extend(part.pages.clone());
            for write in writes {
                let zeros = || Bytes::from(vec![0; part.page_size.bytes()]);
                let content = if write.content.is_empty() { zeros() } else { Bytes::copy_from_slice(&write.content) };
                pages.insert(write.number, StoredPage { content, version });
            }
            pages.retain(|number, _| part.page_count.has(*number));
            let page_size = (part.page_count > PageCount::ZERO).then_some(part.page_size);
            all.push(Made { head: Snapshot { version, page_size, page_count: part.page_count }, by: Some(commit.id), pages });
        }
        for (part, made) in commit.databases.iter().zip(all) {
            part.stagings.iter().for_each(|id| drop(state.stagings.remove(id)));
            state.database(part.database)?.versions.push(made);
        }
        Ok(CommitOutcome::Committed(versions))
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        let mut state = self.state();
        let Some((first, base, epoch)) = resolve.participants.first().copied() else {
            return Err(StoreError::Limit("a commit names no database".to_owned()));
        };
        let database = state.database(first)?;
        match database.maker(base.next()) {
            Some(id) if id == resolve.id => {
                let versions = resolve.participants.iter().map(|(_, base, _)| base.next());
                return Ok(Resolution::Committed(versions.collect()));
            }
            None if database.epoch == epoch => database.epoch = Epoch::new(epoch.get() + 1),
            _ => {}
        }
        let epochs = resolve.participants.iter().map(|(id, ..)| state.databases.get(id).map_or(Epoch::NONE, |d| d.epoch));
        Ok(Resolution::Aborted { current: epochs.collect() })
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7240".to_owned());
    let store = MinimalStore { incarnation: Incarnation::random()?, state: Mutex::default() };
    let (listener, address) = bind_tcp(&address).await?;
    let server = Server::builder(Arc::new(store)).build().await?;
    println!("listening on {address}");
    server.serve_tcp(listener, async { drop(tokio::signal::ctrl_c().await) }).await?;
    Ok(())
}
