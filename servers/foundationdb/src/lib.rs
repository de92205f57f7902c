//! The FoundationDB page store: versions, branches, tags and epochs in a FoundationDB cluster, for any number of page servers.
//!
//! docs/foundationdb.md says which transaction does what. In one sentence each: everything of an installation lies under one directory
//! of the cluster (`keys.rs`, `values.rs`); a commit is one transaction (`commit.rs`), and what is too large for it is written ahead
//! (`staging.rs`); a read is a range read for each run of pages (`read.rs`, `runs.rs`); collections never disturb a commit (`collect.rs`); page servers
//! know of each other by a row each (`servers.rs`).
//!
//! Needs the client library at run time and nothing to be built: without it [`FoundationDbStore::open`] says what is missing.

mod age;
mod audit;
mod collect;
mod commit;
mod engine;
mod flatten;
mod history;
pub mod keys;
mod known;
mod names;
mod network;
mod peers;
mod read;
mod removed;
mod runs;
mod segments;
mod servers;
mod staging;
pub mod values;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use foundationdb::directory::{Directory as _, DirectoryError, DirectoryLayer};
use pagewire_proto::limits::MAX_READ_PAGES;
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, PageNumber, PageSize, Snapshot,
    StagingId, TagName, Version, VersionEntry,
};
use pagewire_server::clock::Clock;
use pagewire_server::peers::Peers;
use pagewire_server::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseEntry, Description, PageStore,
    PageWrite, Resolution, Resolve, StoreError, StoredPage,
};
use parking_lot::Mutex;

use engine::{Engine, Fail, Read, transact};
use keys::{Key, ServerId, Space};
use staging::Staging;

/// How long versions are kept unless somebody says otherwise.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// How often a server says that it lives.
const BEAT: Duration = Duration::from_secs(1);

/// How a [`FoundationDbStore`] is opened.
#[derive(Clone, Debug)]
pub struct FoundationDbOptions {
    /// The directory of the cluster under which everything lies: one for each installation.
    pub directory: Vec<String>,
    /// The client library; `None` for the one that the system has.
    pub library: Option<PathBuf>,
    /// How long a version is kept after the next one was made; `None` for ever.
    pub retention: Option<Duration>,
    /// For the times of versions.
    pub clock: Clock,
    /// Largest commit that is one transaction, in bytes of pages as they are stored: well under the 10 MB of the cluster.
    pub commit_bytes: usize,
    /// Pages of a staging that wait in the memory of the server, in bytes.
    pub staging_buffer_bytes: usize,
    /// For how long a call is repeated while the cluster does not answer.
    pub patience: Duration,
    /// A server that says nothing for so long is dead: what it wrote ahead and what its sessions read need not be kept.
    pub dead_after: Duration,
    /// How long a name to which nobody commits is kept after it, or the lease of its database, was taken last.
    pub unborn_after: Duration,
    /// For how long, by the clock of the cluster, the commit of a dropped version and the id of a removed database are known. What the contract asks for
    /// (C14, V4), and not less but in tests.
    pub remembered: Duration,
    /// How often this server looks for what is not kept any more.
    pub collect_every: Duration,
}

impl Default for FoundationDbOptions {
    fn default() -> Self {
        Self {
            directory: vec!["pagewire".to_owned()],
            library: None,
            retention: Some(DEFAULT_RETENTION),
            clock: Clock::wall(),
            commit_bytes: 4 << 20,
            staging_buffer_bytes: 1 << 20,
            patience: Duration::from_secs(10),
            dead_after: Duration::from_secs(60),
            unborn_after: Duration::from_secs(24 * 3600),
            remembered: age::REMEMBERED,
            collect_every: Duration::from_secs(15),
        }
    }
}

/// A store in a cluster. See the top of this file.
#[derive(Debug)]
pub struct FoundationDbStore(Arc<Inner>);

/// What the calls share.
pub(crate) struct Inner {
    /// For what goes on behind a call.
    this: Weak<Inner>,
    engine: Engine,
    options: FoundationDbOptions,
    incarnation: Incarnation,
    server: ServerId,
    stagings: Mutex<HashMap<StagingId, Arc<tokio::sync::Mutex<Staging>>>>,
    /// Attempts that came to nothing, to be deleted.
    abandoned: Mutex<Vec<(DatabaseId, u64)>>,
    dropping: tokio::sync::Mutex<()>,
    /// See [`staging::BegunAttempts`].
    begun_attempts: staging::BegunAttempts,
    /// Attempts that this server began.
    attempts: AtomicU64,
    beats: AtomicU64,
    lease_ttl_ms: AtomicU64,
    /// The service has ended: nothing is said about this server any more.
    ended: tokio::sync::Mutex<bool>,
    seen: Mutex<servers::Seen>,
    /// See [`collect::Steps`].
    steps: AtomicU32,
    known: known::KnownHeads,
    /// Segments that cannot be flattened because of damage (FLAT6).
    unflattened: Mutex<HashSet<(DatabaseId, Version)>>,
    peering: peers::Peering,
    /// What the cluster was told last of what sessions here read.
    said: Mutex<servers::Said>,
    collecting: tokio::sync::Mutex<collect::Pass>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        network::stop_at_exit();
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FoundationDbStore")
            .field("options", &self.options)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

impl FoundationDbStore {
    /// Opens the installation in the cluster of a cluster file, or makes it.
    pub async fn open(cluster_file: &Path) -> Result<Self, StoreError> {
        Self::open_with(cluster_file, FoundationDbOptions::default()).await
    }

    /// As [`FoundationDbStore::open`], with other options. A runtime of tokio has to live for as long as the store.
    pub async fn open_with(
        cluster_file: &Path,
        options: FoundationDbOptions,
    ) -> Result<Self, StoreError> {
        network::start(options.library.as_deref())?;
        let path = cluster_file.to_str();
        let named = path.ok_or_else(|| {
            let path = cluster_file.display();
            StoreError::Unavailable(format!("cluster file {path}: the path is not UTF-8"))
        })?;
        if let Err(why) = std::fs::metadata(cluster_file) {
            return Err(StoreError::Unavailable(format!(
                "cluster file {named}: {why}"
            )));
        }
        let database = foundationdb::Database::from_path(named).map_err(|error| {
            StoreError::Unavailable(format!("cluster file {named}: {error} ({})", error.code()))
        })?;
        let mut engine = Engine {
            database,
            space: Arc::new(Space::new(&[])),
            patience: options.patience,
            asked: Arc::default(),
        };
        engine.space = Arc::new(space(&engine, &options.directory).await?);
        let incarnation = names::incarnation(&engine, &options.directory.join("/")).await?;
        let server = *Incarnation::random()
            .map_err(names::no_randomness)?
            .as_bytes();
        let inner = Arc::new_cyclic(|this| Inner {
            this: Weak::clone(this),
            engine,
            incarnation,
            server,
            stagings: Mutex::default(),
            abandoned: Mutex::default(),
            dropping: tokio::sync::Mutex::default(),
            begun_attempts: Arc::default(),
            attempts: AtomicU64::default(),
            beats: AtomicU64::default(),
            lease_ttl_ms: AtomicU64::default(),
            ended: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            steps: AtomicU32::default(),
            known: known::KnownHeads::default(),
            unflattened: Mutex::default(),
            peering: peers::Peering::default(),
            said: Mutex::default(),
            collecting: tokio::sync::Mutex::default(),
            options,
        });
        // Before anything of this server is in the cluster.
        inner.beat().await?;
        tokio::spawn(live(Arc::downgrade(&inner)));
        tokio::spawn(tidy(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// What is wrong in the cluster, a sentence each; nothing may be under way meanwhile. For tests.
    #[doc(hidden)]
    pub async fn audit(&self) -> Result<Vec<String>, StoreError> {
        self.0.audit().await
    }

    /// Transactions of the cluster begun so far, repetitions included, and how many of them, about, said that this server lives. For tests.
    #[doc(hidden)]
    pub fn transactions(&self) -> (u64, u64) {
        let begun = self.0.engine.asked.begun.load(Ordering::Relaxed);
        (begun, self.0.beats.load(Ordering::Relaxed))
    }

    /// Rows and ranges that were read in the cluster so far. For tests.
    #[doc(hidden)]
    pub fn reads(&self) -> u64 {
        self.0.engine.asked.reads.load(Ordering::Relaxed)
    }

    /// Rows that the ranges of [`FoundationDbStore::reads`] had. For tests.
    #[doc(hidden)]
    pub fn rows_read(&self) -> u64 {
        self.0.engine.asked.rows.load(Ordering::Relaxed)
    }

    /// In how many segments a page of the newest version is looked for at most. For tests.
    #[doc(hidden)]
    pub async fn depth(&self, database: DatabaseId) -> Result<usize, StoreError> {
        self.0.depth(database).await
    }

    /// How many ends of segments, and how many segments to flatten, wait for a collection. For tests.
    #[doc(hidden)]
    pub async fn to_do(&self) -> Result<(usize, usize), StoreError> {
        self.0.to_do().await
    }

    /// How many page servers have a row. For tests.
    #[doc(hidden)]
    pub async fn live_servers(&self) -> Result<usize, StoreError> {
        transact!(self.0.engine, |txn| {
            let servers = txn.space.servers();
            Ok(txn.keys(&servers, usize::MAX, Read::Loose).await?.len())
        })
    }

    /// How many of those rows are damaged. For tests.
    #[doc(hidden)]
    pub async fn damaged_servers(&self) -> Result<usize, StoreError> {
        self.0.damaged_servers().await
    }

    /// Collects what dead servers left of a database, as it would be with a list of servers from before there were others. For tests.
    #[doc(hidden)]
    pub async fn collect_unaware(&self, database: DatabaseId) -> Result<bool, StoreError> {
        let alone = HashSet::from([self.0.server]);
        self.0.drop_of_the_dead(database, &alone).await
    }

    /// Flips a bit in the row of a page, as a medium might. For tests.
    #[doc(hidden)]
    pub async fn damage(
        &self,
        database: DatabaseId,
        page: PageNumber,
        version: Version,
    ) -> Result<bool, StoreError> {
        transact!(self.0.engine, |txn| {
            let range = txn.space.page(database, page, version, version);
            let rows = txn.scan(&range, 1, true, Read::Firm).await?;
            Ok(rows.first().is_some_and(|row| txn.damage(row)))
        })
    }

    /// As [`FoundationDbStore::damage`], of the row that says how a version was made. For tests.
    #[doc(hidden)]
    pub async fn damage_record(
        &self,
        database: DatabaseId,
        version: Version,
    ) -> Result<bool, StoreError> {
        self.damage_row(&Key::Record(database, version)).await
    }

    /// As [`FoundationDbStore::damage`], of the row of a removed database. For tests.
    #[doc(hidden)]
    pub async fn damage_removed(&self, database: DatabaseId) -> Result<bool, StoreError> {
        self.damage_row(&Key::Removed(database)).await
    }

    /// As [`FoundationDbStore::damage`], of the rows of all other page servers. For tests.
    #[doc(hidden)]
    pub async fn damage_servers(&self) -> Result<bool, StoreError> {
        transact!(self.0.engine, |txn| {
            let own = txn.space.encode(&Key::Server(self.0.server));
            let servers = txn.space.servers();
            let rows = txn.scan(&servers, usize::MAX, false, Read::Firm).await?;
            let others = rows.iter().filter(|row| row.key != own);
            Ok(others.fold(false, |any, row| any | txn.damage(row)))
        })
    }

    async fn damage_row(&self, key: &Key) -> Result<bool, StoreError> {
        transact!(self.0.engine, |txn| {
            let row = txn.stored(key, Read::Firm).await?;
            Ok(row.is_some_and(|row| txn.damage(&row)))
        })
    }

    /// One step of flattening a database: to which of how many segments below it has come. For tests.
    #[doc(hidden)]
    pub async fn flatten_once(
        &self,
        database: DatabaseId,
    ) -> Result<Option<(u32, usize)>, StoreError> {
        self.0.flatten_once(database).await
    }

    /// Ends two segments at once; whether the later one was repeated. For tests.
    #[doc(hidden)]
    pub async fn end_together(
        &self,
        segments: [(DatabaseId, Version); 2],
    ) -> Result<bool, StoreError> {
        self.0.end_together(segments).await
    }

    /// The row of a removed database. For tests.
    #[doc(hidden)]
    pub async fn removed(
        &self,
        database: DatabaseId,
    ) -> Result<Option<values::Removed>, StoreError> {
        let key = Key::Removed(database);
        transact!(self.0.engine, |txn| {
            txn.row(&key, Read::Loose, values::Removed::decode).await
        })
    }

    /// Forgets a removed database as who saw this row of it. For tests.
    #[doc(hidden)]
    pub async fn forget_as_seen(
        &self,
        database: DatabaseId,
        removed: values::Removed,
    ) -> Result<bool, StoreError> {
        self.0.forget_removed(database, removed).await
    }

    /// Makes the steps of a collection as small as they get, until some of them were done. For tests.
    #[doc(hidden)]
    pub fn smallest_steps(&self) {
        self.0.smallest_steps();
    }

    /// Has a version looked at as one that has lost a reader. For tests.
    #[doc(hidden)]
    pub async fn lose_reader(
        &self,
        database: DatabaseId,
        version: Version,
    ) -> Result<(), StoreError> {
        self.0.lose_reader(database, version).await
    }
}

/// Says that the server lives, for as long as it does.
async fn live(store: Weak<Inner>) {
    loop {
        let Some(ttl) = store.upgrade().map(|store| store.lease_ttl()) else {
            return;
        };
        let often = match ttl.is_zero() {
            true => BEAT,
            false => BEAT.min(ttl / 4),
        };
        tokio::time::sleep(often).await;
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = store.beat().await {
            tracing::warn!(%error, "the cluster does not hear that this server lives");
        }
    }
}

/// Collects what is not kept, for as long as the store is there.
async fn tidy(store: Weak<Inner>) {
    let Some(every) = store.upgrade().map(|store| store.options.collect_every) else {
        return;
    };
    let mut pass = collect::Pass::default();
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

/// The prefix of a directory, which comes into being where it is not there.
async fn space(engine: &Engine, directory: &[String]) -> Result<Space, StoreError> {
    let layer = DirectoryLayer::default();
    transact!(engine, |txn| {
        let opened = layer.create_or_open(txn.raw(), directory, None, Some(b"pagewire"));
        let opened = opened.await.map_err(|error| match error {
            DirectoryError::FdbError(error) => Fail::Cluster(error),
            error => Fail::Answer(StoreError::Unavailable(format!(
                "directory {}: {error:?}",
                directory.join("/")
            ))),
        })?;
        let prefix = opened.bytes().map_err(|error| {
            StoreError::Unavailable(format!("directory {}: {error:?}", directory.join("/")))
        })?;
        Ok(Space::new(prefix))
    })
}

#[async_trait]
impl PageStore for FoundationDbStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "foundationdb".to_owned(),
            durable: true,
            versions: true,
            branches: true,
            // Any number of servers may stand on one cluster.
            exclusive: false,
            retention: self.0.options.retention,
        }
    }

    fn incarnation(&self) -> Incarnation {
        self.0.incarnation
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        Some(Arc::clone(&self.0) as Arc<dyn Peers>)
    }

    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        let wait = self.0.begin_service(lease_ttl).await?;
        tokio::spawn(peers::read_mail(Arc::downgrade(&self.0)));
        Ok(wait)
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        self.0.end_service().await
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
        self.0.remove(name).await
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        transact!(self.0.engine, |txn| {
            let row = txn.database(database, Read::Loose).await?;
            Ok(row.head.snapshot)
        })
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        // One transaction, so that both are of one moment.
        transact!(self.0.engine, |txn| {
            let head = txn.database(database, Read::Loose).await?.head.snapshot;
            let changes = txn.changes(database, head.version, since).await?;
            Ok((head, changes))
        })
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        // What a call may ask for at most is one transaction, and far from its 5 s; a cluster that did not do as many within them is asked for fewer.
        let mut most = 2 * MAX_READ_PAGES;
        let mut answer = Vec::with_capacity(pages.len());
        loop {
            let rest = &pages[answer.len()..];
            answer.extend(transact!(self.0.engine, |txn| {
                most = most.div_ceil(2);
                txn.pages(database, version, &rest[..rest.len().min(most)])
                    .await
            })?);
            if answer.len() >= pages.len() {
                return Ok(answer);
            }
            most *= 2;
        }
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        self.0.protect(database, floor, pins).await
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        self.0.fence(database).await
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        self.0.stage(database, staging, page_size, pages).await
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        self.0.discard(staging).await;
        Ok(())
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        self.0.commit(commit).await
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        self.0.resolve(&resolve).await
    }

    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        self.0.find(database, moment).await
    }

    async fn versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        self.0.versions(database, before, tagged_only, limit).await
    }

    async fn diff(
        &self,
        database: DatabaseId,
        from: Version,
        to: Version,
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        self.0.diff(database, from, to, after, limit).await
    }

    async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        self.0.set_tag(database, tag, moment, replace).await
    }

    async fn delete_tag(&self, database: DatabaseId, tag: &TagName) -> Result<bool, StoreError> {
        self.0.delete_tag(database, tag).await
    }

    async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        self.0.branch(source, moment, branch, name).await
    }

    async fn describe(&self, database: DatabaseId) -> Result<Description, StoreError> {
        self.0.describe(database).await
    }

    async fn collect(&self, database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        let mut pass = self.0.collecting.lock().await;
        self.0.collect_step(database, &mut pass).await
    }
}
