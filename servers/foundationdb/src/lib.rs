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
#[doc(hidden)]
pub mod hooks;
pub mod keys;
mod known;
mod names;
mod network;
mod options;
mod pace;
mod peers;
mod read;
mod removed;
mod runs;
mod segments;
mod servers;
mod staging;
pub mod values;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use foundationdb::directory::{Directory as _, DirectoryError, DirectoryLayer};
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, PageNumber, PageSize, Snapshot,
    StagingId, TagName, Version, VersionEntry,
};
use pagewire_server::peers::Peers;
use pagewire_server::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseEntry, Description, PageStore,
    PageWrite, Resolution, Resolve, StoreError, StoredPage,
};
use parking_lot::Mutex;

use engine::{Engine, Fail, Read, transact};
use keys::{ServerId, Space};
pub use options::{DEFAULT_RETENTION, FoundationDbOptions};
use staging::Staging;

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
    step_pace: collect::StepPace,
    known: known::KnownHeads,
    pace: pace::Pace,
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
            step_pace: collect::StepPace::default(),
            known: known::KnownHeads::default(),
            pace: pace::Pace::default(),
            unflattened: Mutex::default(),
            peering: peers::Peering::default(),
            said: Mutex::default(),
            collecting: tokio::sync::Mutex::default(),
            options,
        });
        // Before anything of this server is in the cluster.
        inner.beat().await?;
        tokio::spawn(servers::live(Arc::downgrade(&inner)));
        tokio::spawn(collect::tidy(Arc::downgrade(&inner)));
        Ok(Self(inner))
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
        self.0.read(database, version, pages).await
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
