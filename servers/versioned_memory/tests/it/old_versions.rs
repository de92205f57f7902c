//! Versions that are too old go by time, whoever calls, a bounded number at once (OLD1).

use std::time::Duration;

use pagewire_proto::{CommitId, DatabaseId, DatabaseName, Epoch, PageCount, PageSize, Version};
use pagewire_server::clock::ManualClock;
use pagewire_server::store::{Commit, DatabaseCommit, PageStore};
use pagewire_versioned_memory::{VersionedMemoryOptions, VersionedMemoryStore};

const HOUR: Duration = Duration::from_secs(3600);

async fn database(store: &VersionedMemoryStore, name: &str) -> (DatabaseId, Epoch) {
    let name = DatabaseName::try_from(name).unwrap();
    let id = store.lookup(&name, true).await.unwrap();
    (id, store.fence(id).await.unwrap())
}

async fn commit(store: &VersionedMemoryStore, (database, epoch): (DatabaseId, Epoch), base: u64) {
    let part = DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: PageSize::MIN,
        page_count: PageCount::try_from(1).unwrap(),
        stagings: Vec::new(),
        pages: Vec::new(),
        restore: None,
    };
    let (id, databases) = (CommitId::random().unwrap(), vec![part]);
    store.commit(Commit { id, databases }).await.unwrap();
}

#[tokio::test]
async fn old1_versions_go_by_time_without_a_commit_or_a_collection() {
    let clock = ManualClock::default();
    let store = VersionedMemoryStore::with_options(VersionedMemoryOptions {
        retention: Some(HOUR),
        clock: clock.clock(),
    });
    let store = store.unwrap();
    let (db, other) = (database(&store, "a").await, database(&store, "b").await);
    for base in 0..300 {
        commit(&store, db, base).await;
    }
    let pin = [Version::new(7)];
    store.protect(db.0, None, &pin).await.unwrap();
    let kept = async || store.versions(db.0, None, false, 1000).await.unwrap().len();
    assert_eq!(kept().await, 300);
    clock.advance(HOUR * 2);
    // Calls to another database do as well; none of them does much.
    let mut before = 300;
    for _ in 0..6 {
        store.head(other.0).await.unwrap();
        let now = kept().await;
        assert!(
            before - now <= 64,
            "one call dropped {} versions",
            before - now
        );
        before = now;
    }
    assert_eq!(before, 2, "the head and what is pinned are left");
    // What kept one and does not any more lets it go too.
    store.protect(db.0, None, &[]).await.unwrap();
    store.head(db.0).await.unwrap();
    assert_eq!(kept().await, 1);
}
