//! What a transaction does beside what was asked for is bounded, and a lone writer pays for no sync but its own (GRP4, GRP5).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire_local::faults::Faults;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_server::store::PageStore;

use crate::bench::{collect, commit, database, name};

fn open(directory: &Path, quiet: Duration) -> (LocalStore, Arc<Faults>) {
    open_quiet_for(directory, Some(quiet))
}

fn open_quiet_for(directory: &Path, quiet: Option<Duration>) -> (LocalStore, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let options = LocalOptions {
        retention: Some(Duration::ZERO),
        collect_after_quiet: quiet,
        faults: Some(Arc::clone(&faults)),
        ..LocalOptions::default()
    };
    (LocalStore::open_with(directory, options).unwrap(), faults)
}

#[tokio::test]
async fn grp4_what_is_collected_beside_a_commit_is_bounded_and_the_rest_is_owed() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path(), Duration::from_secs(3600));
    let db = database(&store, "a").await;
    let pages = 12_000;
    commit(&store, db, 0, pages, 1..=pages).await;
    commit(&store, db, 1, pages, 1..=pages).await;
    let mut left = store.describe(db.0).await.unwrap().pages;
    let most = 4096 + 64;
    assert!(
        left >= u64::from(2 * pages) - most,
        "one commit dropped {} rows beside",
        u64::from(2 * pages) - left
    );
    let mut base = 2;
    while left > u64::from(pages) {
        commit(&store, db, base, pages, [1].into_iter()).await;
        let now = store.describe(db.0).await.unwrap().pages;
        assert!(left - now <= most, "one commit dropped {} rows", left - now);
        left = now;
        base += 1;
        assert!(base < 20, "what is owed is not paid: {left} rows are left");
    }
    collect(&store).await;
}

/// What `serve --check never` promises: neither by itself, nor beside commits, of however much.
#[tokio::test]
async fn grp5_where_collection_is_off_only_what_is_asked_for_is_collected() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open_quiet_for(directory.path(), None);
    let (db, dead) = (database(&store, "a").await, database(&store, "b").await);
    let pages = 3000;
    commit(&store, dead, 0, pages, 1..=pages).await;
    store.remove(&name("b")).await.unwrap();
    let before = store.audit(true).unwrap();
    for base in 0..12 {
        commit(&store, db, base, pages, 1..=pages).await;
    }
    // Time enough for a step, if one is taken.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!before.is_empty(), "nothing is there to be collected");
    assert_eq!(store.audit(true).unwrap(), before);
    let versions = store.describe(db.0).await.unwrap();
    assert_eq!(versions.pages, u64::from(12 * pages));
    collect(&store).await;
    assert_eq!(store.audit(true).unwrap(), Vec::<String>::new());
    let left = store.describe(db.0).await.unwrap().pages;
    assert_eq!(left, u64::from(pages));
}

#[tokio::test]
async fn grp5_a_lone_writer_pays_for_no_sync_but_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults) = open(directory.path(), Duration::from_secs(3600));
    let (db, dead) = (database(&store, "a").await, database(&store, "b").await);
    commit(&store, db, 0, 200, 1..=200).await;
    commit(&store, dead, 0, 6000, 1..=6000).await;
    store.remove(&name("b")).await.unwrap();
    let before = faults.durable();
    for base in 1..=20 {
        commit(&store, db, base, 200, 1..=3).await;
        // Time enough for a step, if one is taken.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(faults.durable() - before, 20);
    assert!(
        !store.audit(true).unwrap().is_empty(),
        "nothing was left to collect"
    );
    drop(store);
    // Where nobody writes it goes on by itself.
    let (store, _) = open(directory.path(), Duration::from_millis(1));
    let clean = async {
        while !store.audit(true).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let cleaned = tokio::time::timeout(Duration::from_secs(60), clean).await;
    assert!(cleaned.is_ok(), "{:?}", store.audit(true));
}
