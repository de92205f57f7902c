//! What the tests commit and check: every version of a database writes all of its pages with its own number.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, PageCount, PageNumber, PageSize, StagingId, Version,
};
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseCommit, PageStore, PageWrite, StoreError,
};
use pagewire_shadow::testing::{Medium, TestKeyValue};
use pagewire_shadow::{ShadowOptions, ShadowStore};

/// Pages of every version.
pub(crate) const PAGES: u32 = 6;

/// A server on an installation.
pub(crate) struct Server {
    pub(crate) kv: Arc<TestKeyValue>,
    pub(crate) store: Arc<ShadowStore>,
}

/// What nobody reads goes with the next collection, however young.
pub(crate) fn greedy() -> ShadowOptions {
    ShadowOptions {
        keep_replaced: Duration::ZERO,
        abandoned_after: Duration::ZERO,
        ..ShadowOptions::default()
    }
}

pub(crate) async fn server(medium: &Arc<Medium>) -> Server {
    server_with(medium, ShadowOptions::default()).await
}

pub(crate) async fn server_with(medium: &Arc<Medium>, options: ShadowOptions) -> Server {
    server_in(TestKeyValue::new(medium), options).await
}

/// Its time is that of the test, which may be paused.
pub(crate) async fn server_in(kv: Arc<TestKeyValue>, options: ShadowOptions) -> Server {
    let start = tokio::time::Instant::now();
    let options = ShadowOptions {
        since_boot: Arc::new(move || start.elapsed()),
        ..options
    };
    let store = ShadowStore::open_with(Arc::clone(&kv) as _, options);
    let store = Arc::new(store.await.unwrap());
    Server { kv, store }
}

pub(crate) fn name(text: &str) -> DatabaseName {
    DatabaseName::try_from(text).unwrap()
}

pub(crate) fn number(page: u32) -> PageNumber {
    PageNumber::try_from(page).unwrap()
}

/// Bytes that cannot be compressed away, of one version and page.
pub(crate) fn content(size: PageSize, page: u32, version: u64) -> Bytes {
    let mut state = version * 1_000_003 + u64::from(page) * 101 + 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..size.get()).map(byte).collect()
}

pub(crate) fn writes(
    size: PageSize,
    pages: impl Iterator<Item = u32>,
    version: u64,
) -> Vec<PageWrite> {
    let write = |page| PageWrite {
        number: number(page),
        content: content(size, page, version),
    };
    pages.map(write).collect()
}

/// The commit of all pages of the next version of a database.
pub(crate) fn part(database: DatabaseId, base: u64, epoch: Epoch) -> DatabaseCommit {
    DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: PageSize::MIN,
        page_count: PageCount::try_from(PAGES).unwrap(),
        stagings: Vec::new(),
        pages: writes(PageSize::MIN, 1..=PAGES, base + 1),
        restore: None,
    }
}

pub(crate) fn commit_of(databases: Vec<DatabaseCommit>) -> Commit {
    Commit {
        id: CommitId::random().unwrap(),
        databases,
    }
}

impl Server {
    pub(crate) async fn database(&self, text: &str) -> DatabaseId {
        self.store.lookup(&name(text), true).await.unwrap()
    }

    pub(crate) async fn fence(&self, database: DatabaseId) -> Epoch {
        self.store.fence(database).await.unwrap()
    }

    pub(crate) async fn commit(
        &self,
        parts: Vec<DatabaseCommit>,
    ) -> Result<CommitOutcome, StoreError> {
        self.store.commit(commit_of(parts)).await
    }

    /// A commit of all pages that has to succeed.
    pub(crate) async fn commits(&self, parts: &[(DatabaseId, u64, Epoch)]) {
        let versions = parts.iter().map(|(_, base, _)| Version::new(base + 1));
        let expected = CommitOutcome::Committed(versions.collect());
        let parts = parts
            .iter()
            .map(|(id, base, epoch)| part(*id, *base, *epoch));
        assert_eq!(self.commit(parts.collect()).await.unwrap(), expected);
    }

    /// A commit whose pages are staged first, some of them in a staging that is given up.
    pub(crate) async fn commit_staged(
        &self,
        database: DatabaseId,
        base: u64,
        epoch: Epoch,
    ) -> Result<CommitOutcome, StoreError> {
        let (dead, living) = (StagingId::random().unwrap(), StagingId::random().unwrap());
        for (staging, version) in [(dead, base + 900), (living, base + 1)] {
            let pages = writes(PageSize::MIN, 1..=PAGES, version);
            self.store
                .stage(database, staging, PageSize::MIN, pages)
                .await?;
        }
        self.store.discard(dead).await?;
        let part = DatabaseCommit {
            stagings: vec![living],
            pages: Vec::new(),
            ..part(database, base, epoch)
        };
        self.commit(vec![part]).await
    }

    pub(crate) async fn head(&self, database: DatabaseId) -> u64 {
        self.store.head(database).await.unwrap().version.get()
    }

    /// The head is whole; which it is.
    pub(crate) async fn check(&self, database: DatabaseId) -> u64 {
        let head = self.head(database).await;
        self.check_at(database, head).await.unwrap();
        head
    }

    /// A version is whole, or gone.
    pub(crate) async fn check_at(
        &self,
        database: DatabaseId,
        version: u64,
    ) -> Result<(), StoreError> {
        let numbers: Vec<_> = (1..=PAGES).map(number).collect();
        let pages = self
            .store
            .read(database, Version::new(version), &numbers)
            .await?;
        for (number, page) in numbers.iter().zip(pages) {
            let right = match version {
                0 => Bytes::new(),
                _ => content(PageSize::MIN, number.get(), version),
            };
            assert!(
                page.content == right && page.version.get() == version,
                "page {number} at version {version} is of version {}",
                page.version
            );
        }
        Ok(())
    }

    /// Collects until nothing more is found.
    pub(crate) async fn collect_all(&self) {
        for _ in 0..3 {
            while self.store.collect(None).await.unwrap().more {}
        }
    }
}
