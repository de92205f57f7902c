//! The memory store with gates before commits and removals and after questions about changes, with floors and reads that fail, and
//! with an earlier server whose leases may still be trusted.
//! Everything else is the memory store's.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pagewire_memory::MemoryStore;
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, PageNumber, PageSize, Snapshot, StagingId, Version,
};
use pagewire_server::layer::Layer;
use pagewire_server::store::{
    Capabilities, Commit, CommitOutcome, PageStore, PageWrite, StoreError, StoredPage,
};
use tokio::sync::Semaphore;

#[derive(Debug)]
pub struct GatedStore {
    pub inner: Arc<MemoryStore>,
    /// What `begin_service` answers.
    pub quarantine: Duration,
    /// A commit passes with each permit.
    pub gate: Semaphore,
    /// A permit for each commit that has arrived at the gate.
    pub arrived: Semaphore,
    /// Whether `end_service` was called.
    pub ended: Semaphore,
    /// A question about changes is answered with each permit; the answer is from before the wait.
    pub changes: Semaphore,
    /// A permit for each question about changes that has been answered and waits.
    pub asked: Semaphore,
    /// The outcome of the next commit is not known; whether it is applied.
    pub unknown: Mutex<Option<bool>>,
    /// Other servers may serve the same content.
    pub shared: AtomicBool,
    /// Floors are refused.
    pub protect_fails: AtomicBool,
    /// How often the store was told of floors.
    pub protects: AtomicUsize,
    /// Pages are refused.
    pub reads_fail: AtomicBool,
    /// Pages are read with each permit.
    pub reads: Semaphore,
    /// A removal passes with each permit.
    pub removals: Semaphore,
    /// A permit for each removal that has arrived.
    pub removing: Semaphore,
    /// Pages are staged with each permit.
    pub staging: Semaphore,
    /// Bytes of pages that wait to be staged.
    pub staging_bytes: AtomicUsize,
    /// Stagings that were begun and not dropped; a commit that consumes one does not count.
    pub stagings: Mutex<HashSet<StagingId>>,
    /// A permit for each staging that was dropped.
    pub dropped: Semaphore,
}

impl GatedStore {
    pub fn new(quarantine: Duration, open: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: Arc::new(MemoryStore::new().unwrap()),
            quarantine,
            gate: Semaphore::new(if open { 1000 } else { 0 }),
            arrived: Semaphore::new(0),
            ended: Semaphore::new(0),
            changes: Semaphore::new(1000),
            asked: Semaphore::new(0),
            unknown: Mutex::default(),
            shared: AtomicBool::new(false),
            protect_fails: AtomicBool::new(false),
            protects: AtomicUsize::new(0),
            reads_fail: AtomicBool::new(false),
            reads: Semaphore::new(100_000),
            removals: Semaphore::new(1000),
            removing: Semaphore::new(0),
            staging: Semaphore::new(100_000),
            staging_bytes: AtomicUsize::new(0),
            stagings: Mutex::default(),
            dropped: Semaphore::new(0),
        })
    }
}

#[tonic::async_trait]
impl Layer for GatedStore {
    fn inner(&self) -> &dyn PageStore {
        &*self.inner
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            exclusive: !self.shared.load(Ordering::Relaxed),
            ..self.inner.capabilities()
        }
    }

    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        self.inner.begin_service(lease_ttl).await?;
        Ok(self.quarantine)
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        self.ended.add_permits(1);
        self.inner.end_service().await
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        self.removing.add_permits(1);
        self.removals.acquire().await.unwrap().forget();
        self.inner.remove(name).await
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        let answer = self.inner.changes(database, since).await;
        self.asked.add_permits(1);
        self.changes.acquire().await.unwrap().forget();
        answer
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        if self.reads_fail.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("the gate is closed".to_owned()));
        }
        self.reads.acquire().await.unwrap().forget();
        self.inner.read(database, version, pages).await
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        self.protects.fetch_add(1, Ordering::Relaxed);
        if self.protect_fails.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("the gate is closed".to_owned()));
        }
        self.inner.protect(database, floor, pins).await
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        let bytes = pages.iter().map(|page| page.content.len()).sum();
        self.staging_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.staging.acquire().await.unwrap().forget();
        self.staging_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.stagings.lock().unwrap().insert(staging);
        self.inner.stage(database, staging, page_size, pages).await
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        let answer = self.inner.discard(staging).await;
        self.stagings.lock().unwrap().remove(&staging);
        self.dropped.add_permits(1);
        answer
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        self.arrived.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
        let unknown = self.unknown.lock().unwrap().take();
        if unknown != Some(false) {
            let outcome = self.inner.commit(commit).await;
            if unknown.is_none() {
                return outcome;
            }
        }
        Err(StoreError::Internal("the medium failed".to_owned()))
    }
}
