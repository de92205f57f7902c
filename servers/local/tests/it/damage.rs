//! Damage stays with the database that it belongs to (C16, GRP2, COL6).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire_local::keys::Key;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{PageNumber, StagingId, Version};
use pagewire_server::store::{PageStore, PageWrite, StoreError};

use crate::bench::{SIZE, commit, database, name, part, read, try_commit};
use crate::scene::{damage, row_places};

/// The row of a staging: two checksums and the id of its database.
const STAGING_BYTES: usize = 24;

fn open(directory: &Path) -> LocalStore {
    let options = LocalOptions {
        retention: Some(Duration::ZERO),
        // Only beside commits, and when the tests ask.
        collect_after_quiet: Some(Duration::from_secs(3600)),
        ..LocalOptions::default()
    };
    LocalStore::open_with(directory, options).unwrap()
}

#[tokio::test]
async fn col6_damage_of_a_removed_database_keeps_nobody_from_committing_or_collecting() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (dead, live) = (
        database(&store, "dead").await,
        database(&store, "live").await,
    );
    commit(&store, dead, 0, 20, 1..=20).await;
    commit(&store, live, 0, 20, 1..=20).await;
    let other = database(&store, "other").await;
    commit(&store, other, 0, 20, 1..=20).await;
    store.remove(&name("dead")).await.unwrap();
    drop(store);
    // It stands on nothing: its row is two checksums and nothing else.
    damage(directory.path(), &Key::Segment(dead.0, Version::new(1)), 8);
    let mut head = 1;
    for _ in 0..2 {
        let store = open(directory.path());
        let live = (live.0, store.fence(live.0).await.unwrap());
        for _ in 0..5 {
            commit(&store, live, head, 20, 1..=20).await;
            head += 1;
        }
        // Not there the second time.
        let _ = store.remove(&name("other")).await;
        // All others are collected, and what is not is told.
        let told = loop {
            match store.collect(None).await {
                Ok(collected) => assert!(collected.more, "damage passed for collected"),
                Err(error) => break error,
            }
        };
        let StoreError::Corrupt(why) = told else {
            panic!("{told:?}");
        };
        let about = format!("the segment of database {} from version 1 on", dead.0);
        assert!(why.contains(&about), "{why}");
        let described = store.describe(live.0).await.unwrap();
        assert_eq!((described.versions, described.pages), (1, 20));
        let left = Key::Removed(other.0).to_string();
        let problems = store.audit(true);
        assert!(!format!("{problems:?}").contains(&left), "{problems:?}");
    }
}

/// C16: one bit makes a page one that is not there, in the byte that says of which kind a row is. Nobody believes it: who reads, who cuts, who collects.
#[tokio::test]
async fn c16_a_page_that_a_flipped_bit_takes_for_none_is_refused_and_stays() {
    const KIND_AT: usize = 8;
    let directory = tempfile::tempdir().unwrap();
    let keeping = LocalStore::open(directory.path()).unwrap();
    let db = database(&keeping, "a").await;
    commit(&keeping, db, 0, 20, 1..=20).await;
    commit(&keeping, db, 1, 2, 1..=1).await;
    commit(&keeping, db, 2, 20, 3..=20).await;
    let right = read(&keeping, db, 3, 3).await;
    drop(keeping);
    let number = PageNumber::try_from(3).unwrap();
    let key = Key::Page(db.0, number, Version::new(3));
    let flip = |from: u8, to: u8| {
        let path = directory.path().join("data.mdb");
        let mut bytes = std::fs::read(&path).unwrap();
        let places = row_places(&bytes, &key, KIND_AT + 1 + SIZE.bytes());
        assert!(!places.is_empty(), "it is not there");
        for place in places {
            assert_eq!(bytes[place + KIND_AT], from);
            bytes[place + KIND_AT] = to;
        }
        std::fs::write(&path, bytes).unwrap();
    };
    flip(2, 0);
    let store = open(directory.path());
    let db = (db.0, store.fence(db.0).await.unwrap());
    let is_damage = |error: StoreError| matches!(error, StoreError::Corrupt(_));
    let answer = store.read(db.0, Version::new(3), &[number]).await;
    assert!(answer.is_err_and(is_damage));
    let cut = try_commit(&store, part(db, SIZE, 3, 2, 1..=1)).await;
    assert!(cut.is_err_and(is_damage));
    let collected = loop {
        match store.collect(None).await {
            Ok(collected) if collected.more => {}
            other => break other,
        }
    };
    assert!(collected.is_err_and(is_damage));
    drop(store);
    flip(0, 2);
    let store = open(directory.path());
    assert_eq!(read(&store, db, 3, 3).await, right);
}

/// What a process left staged when it died: a row of it that is damaged stays, and everything behind it is collected.
///
/// Bug: a staging belongs to no database that could be set aside, so it was first in the row of the dead for ever. Damage: nothing
/// was collected any more. Fix: it is passed over until the store is opened anew.
#[tokio::test]
async fn col6_damage_of_a_dead_staging_keeps_nobody_from_collecting() {
    let directory = tempfile::tempdir().unwrap();
    let at_once = |directory: &Path| {
        let options = LocalOptions {
            staging_buffer_bytes: 0,
            retention: Some(Duration::ZERO),
            collect_after_quiet: Some(Duration::from_secs(3600)),
            ..LocalOptions::default()
        };
        LocalStore::open_with(directory, options).unwrap()
    };
    let store = at_once(directory.path());
    let live = database(&store, "live").await;
    commit(&store, live, 0, 20, 1..=20).await;
    let mut staged = Vec::new();
    for _ in 0..2 {
        let staging = StagingId::random().unwrap();
        let page = PageWrite {
            number: PageNumber::FIRST,
            content: bytes::Bytes::from(vec![7; SIZE.bytes()]),
        };
        store
            .stage(live.0, staging, SIZE, vec![page])
            .await
            .unwrap();
        staged.push(staging);
    }
    let other = database(&store, "other").await;
    commit(&store, other, 0, 20, 1..=20).await;
    store.remove(&name("other")).await.unwrap();
    drop(store);
    let bytes = std::fs::read(directory.path().join("data.mdb")).unwrap();
    // The upper half says which opening of the store it was.
    let serials = (0..4_u64).flat_map(|opening| (0..10).map(move |count| (opening << 32) + count));
    let is_there =
        |serial: &u64| !row_places(&bytes, &Key::Staging(*serial), STAGING_BYTES).is_empty();
    let marks: Vec<_> = serials.filter(is_there).collect();
    assert_eq!(marks.len(), staged.len());
    damage(directory.path(), &Key::Staging(marks[0]), STAGING_BYTES);
    let store = at_once(directory.path());
    let live = (live.0, store.fence(live.0).await.unwrap());
    for base in 1..6 {
        commit(&store, live, base, 20, 1..=20).await;
    }
    while store.collect(None).await.unwrap().more {}
    let described = store.describe(live.0).await.unwrap();
    assert_eq!((described.versions, described.pages), (1, 20));
    let problems = format!("{:?}", store.audit(true));
    for gone in [Key::Removed(other.0), Key::Staging(marks[1])] {
        assert!(!problems.contains(&gone.to_string()), "{problems}");
    }
}

/// The size of a segment is read before anything is written: the others of the group have nothing to do with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grp2_damage_that_a_commit_meets_is_not_of_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (bad, good) = (
        database(&store, "bad").await,
        database(&store, "good").await,
    );
    commit(&store, bad, 0, 20, 1..=20).await;
    commit(&store, good, 0, 20, 1..=20).await;
    drop(store);
    damage(directory.path(), &Key::Usage(bad.0, Version::new(1)), 24);
    let store = Arc::new(open(directory.path()));
    let bad = (bad.0, store.fence(bad.0).await.unwrap());
    let good = (good.0, store.fence(good.0).await.unwrap());
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let others: Vec<_> = (0..3)
        .map(|_| {
            let (store, done) = (Arc::clone(&store), Arc::clone(&done));
            tokio::spawn(async move {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let refused = try_commit(&store, part(bad, SIZE, 1, 20, 1..=20)).await;
                    assert!(
                        matches!(refused, Err(StoreError::Corrupt(_))),
                        "{refused:?}"
                    );
                }
            })
        })
        .collect();
    for base in 1..40 {
        commit(&store, good, base, 20, 1..=20).await;
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for other in others {
        other.await.unwrap();
    }
    // What was there of it can be read.
    assert_eq!(read(&store, bad, 1, 7).await.len(), SIZE.bytes());
}
