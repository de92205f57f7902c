//! What the tests of room, damage, steps and versions do with a store: databases of pages that cannot be compressed, each
//! with the number and the version that wrote it.

use bytes::Bytes;
use pagewire_local::LocalStore;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageCount, PageNumber, PageSize, Version,
};
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseCommit, PageStore, PageWrite, StoreError,
};

pub(crate) const SIZE: PageSize = PageSize::MIN;
/// A database and the epoch of its lease.
pub(crate) type Db = (DatabaseId, Epoch);

pub(crate) fn name(name: &str) -> DatabaseName {
    DatabaseName::try_from(name).unwrap()
}

pub(crate) fn content(size: PageSize, number: u32, stamp: u64) -> Bytes {
    let mut state = stamp * 1_000_003 + u64::from(number) + 1;
    let mut content = Vec::with_capacity(size.bytes());
    while content.len() < size.bytes() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend(state.to_le_bytes());
    }
    Bytes::from(content)
}

pub(crate) async fn database(store: &LocalStore, label: &str) -> Db {
    let id = store.lookup(&name(label), true).await.unwrap();
    (id, store.fence(id).await.unwrap())
}

/// A commit on a base that writes pages with the number of its version.
pub(crate) fn part(
    (database, epoch): Db,
    size: PageSize,
    base: u64,
    count: u32,
    pages: impl Iterator<Item = u32>,
) -> DatabaseCommit {
    let pages = pages.map(|number| PageWrite {
        number: PageNumber::try_from(number).unwrap(),
        content: content(size, number, base + 1),
    });
    DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: size,
        page_count: PageCount::try_from(count).unwrap(),
        stagings: Vec::new(),
        pages: pages.collect(),
        restore: None,
    }
}

pub(crate) async fn try_commit(
    store: &LocalStore,
    part: DatabaseCommit,
) -> Result<CommitOutcome, StoreError> {
    let id = CommitId::random().unwrap();
    let databases = vec![part];
    store.commit(Commit { id, databases }).await
}

pub(crate) async fn commit_part(store: &LocalStore, part: DatabaseCommit) {
    let outcome = try_commit(store, part).await.unwrap();
    assert!(
        matches!(outcome, CommitOutcome::Committed(_)),
        "{outcome:?}"
    );
}

pub(crate) async fn commit(
    store: &LocalStore,
    db: Db,
    base: u64,
    count: u32,
    pages: impl Iterator<Item = u32>,
) {
    commit_part(store, part(db, SIZE, base, count, pages)).await;
}

/// Makes an old version the new head.
pub(crate) async fn restore(store: &LocalStore, db: Db, base: u64, from: u64, count: u32) {
    let mut part = part(db, SIZE, base, count, std::iter::empty());
    part.restore = Some(Version::new(from));
    commit_part(store, part).await;
}

pub(crate) async fn branch(store: &LocalStore, source: DatabaseId, label: &str) -> Db {
    let id = DatabaseId::random().unwrap();
    let name = name(label);
    let branch = store.branch(source, &Moment::Age(0), id, &name).await;
    branch.unwrap();
    (id, store.fence(id).await.unwrap())
}

/// To its end, after which all rows belong together.
pub(crate) async fn collect(store: &LocalStore) {
    while store.collect(None).await.unwrap().more {}
    let problems = store.audit(true).unwrap();
    assert!(problems.is_empty(), "{problems:#?}");
}

/// What a page of a version is.
pub(crate) async fn read(store: &LocalStore, db: Db, version: u64, number: u32) -> Bytes {
    let pages = [PageNumber::try_from(number).unwrap()];
    let read = store.read(db.0, Version::new(version), &pages).await;
    read.unwrap().remove(0).content
}
