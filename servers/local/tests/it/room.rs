//! A full disk refuses what writes pages, with a sentence that says what to do, and nothing else; with room commits go on, in the store
//! that is open (ROOM1 to ROOM5 in `room.rs`).

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pagewire_local::faults::{Fault, Faults, Place};
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{Moment, StagingId, TagName, Version};
use pagewire_server::store::{PageStore, StoreError};

use crate::bench::{
    SIZE, branch, collect, commit, content, database, name, part, read, try_commit,
};

fn open(directory: &Path, options: LocalOptions) -> (LocalStore, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let options = LocalOptions {
        retention: Some(Duration::ZERO),
        faults: Some(Arc::clone(&faults)),
        ..options
    };
    let store = LocalStore::open_with(directory, options).unwrap();
    (store, faults)
}

fn is_full<T: std::fmt::Debug>(answer: Result<T, StoreError>, advice: &str) {
    match answer {
        Err(StoreError::Full(why)) => assert!(why.contains(advice), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn room1_a_full_disk_refuses_pages_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults) = open(directory.path(), LocalOptions::default());
    let (db, other) = (database(&store, "a").await, database(&store, "b").await);
    commit(&store, db, 0, 100, 1..=100).await;
    commit(&store, other, 0, 100, 1..=100).await;
    let tag = TagName::try_from("t").unwrap();
    let head = Moment::Age(0);
    store.set_tag(db.0, &tag, &head, false).await.unwrap();
    faults.set_free_bytes(Some(16 << 20));
    let advice = "make room on the disk";
    let again = || part(db, SIZE, 1, 100, 1..=100);
    is_full(try_commit(&store, again()).await, advice);
    let staging = StagingId::random().unwrap();
    let pages = again().pages;
    is_full(store.stage(db.0, staging, SIZE, pages).await, advice);
    is_full(store.lookup(&name("c"), true).await, advice);
    let id = pagewire_proto::DatabaseId::random().unwrap();
    is_full(store.branch(db.0, &head, id, &name("c")).await, advice);
    // All else goes on.
    assert_eq!(read(&store, db, 1, 7).await, content(SIZE, 7, 1));
    store.fence(other.0).await.unwrap();
    store
        .protect(db.0, Some(Version::new(1)), &[])
        .await
        .unwrap();
    assert!(store.delete_tag(db.0, &tag).await.unwrap());
    store.remove(&name("b")).await.unwrap();
    collect(&store).await;
    is_full(try_commit(&store, again()).await, advice);
    faults.set_free_bytes(None);
    commit(&store, db, 1, 100, 1..=100).await;
    assert_eq!(read(&store, db, 2, 7).await, content(SIZE, 7, 2));
}

/// What is removed is not given back to the disk: it is room all the same.
#[tokio::test]
async fn room1_what_is_collected_is_room_on_a_full_disk() {
    let directory = tempfile::tempdir().unwrap();
    let (store, faults) = open(directory.path(), LocalOptions::default());
    let (db, other) = (database(&store, "a").await, database(&store, "b").await);
    commit(&store, db, 0, 100, 1..=100).await;
    let size = pagewire_proto::PageSize::try_from(65536).unwrap();
    for base in 0..5 {
        let pages = base as u32 * 160 + 1..=base as u32 * 160 + 160;
        let part = part(other, size, base, 800, pages);
        crate::bench::commit_part(&store, part).await;
    }
    faults.set_free_bytes(Some(0));
    is_full(
        try_commit(&store, part(db, SIZE, 1, 100, 1..=9)).await,
        "make room on the disk",
    );
    store.remove(&name("b")).await.unwrap();
    collect(&store).await;
    commit(&store, db, 1, 100, 1..=9).await;
}

/// Flattening takes room before it gives any: in a full file it waits, is not taken for damage, and keeps nobody from committing.
#[tokio::test]
async fn room3_flattening_waits_for_room_and_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let options = || LocalOptions {
        map_bytes: 16 << 20,
        ..LocalOptions::default()
    };
    let (mut store, _) = open(directory.path(), options());
    let main = database(&store, "main").await;
    commit(&store, main, 0, 2000, 1..=2000).await;
    let mut last = main;
    for step in 1..=6 {
        last = branch(&store, last.0, &format!("b{step}")).await;
        commit(&store, last, 1, 2000, 1..=500).await;
    }
    let filler = database(&store, "filler").await;
    for base in 0.. {
        let pages = base as u32 * 500 + 1..=base as u32 * 500 + 500;
        let part = part(filler, SIZE, base, 40_000, pages);
        if try_commit(&store, part).await.is_err() {
            break;
        }
    }
    // A name has room where pages have none.
    for step in 7..=9 {
        last = branch(&store, last.0, &format!("b{step}")).await;
    }
    for _ in 0..2 {
        let told = loop {
            match store.collect(None).await {
                Ok(collected) => assert!(collected.more, "waiting passed for the end"),
                told => break told,
            }
        };
        is_full(told, "largest size");
        let depth = store.depth(last.0).unwrap();
        assert!(depth > 8, "there was room to flatten");
        assert_eq!(read(&store, last, 1, 7).await.len(), SIZE.bytes());
        last = branch(&store, last.0, &format!("again{depth}")).await;
        drop(store);
        store = open(directory.path(), options()).0;
    }
    store.remove(&name("filler")).await.unwrap();
    // What is dropped in a transaction is room in the next but one.
    while !matches!(store.collect(None).await, Ok(c) if !c.more) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let depth = store.depth(last.0).unwrap();
    assert!(depth <= 8, "a page is looked for in {depth} places");
    let db = (last.0, store.fence(last.0).await.unwrap());
    commit(&store, db, 1, 2000, 1..=9).await;
    collect(&store).await;
}

#[tokio::test]
async fn room4_no_room_in_mid_work_gives_up_one_transaction() {
    let directory = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        collect_after_quiet: Some(Duration::ZERO),
        ..LocalOptions::default()
    };
    let (store, faults) = open(directory.path(), options);
    let db = database(&store, "a").await;
    commit(&store, db, 0, 300, 1..=300).await;
    faults.arm(Place::BeforeCommit, Fault::NoRoom, 0);
    is_full(
        try_commit(&store, part(db, SIZE, 1, 300, 1..=300)).await,
        "no room",
    );
    assert_eq!(store.head(db.0).await.unwrap().version, Version::new(1));
    commit(&store, db, 1, 300, 1..=300).await;
    // Collection by itself goes on after it too.
    let collects = [Place::BeforeDrop, Place::BeforeCollect];
    let faults_of = |fault| collects.map(|place| (place, fault));
    for (place, fault) in [faults_of(Fault::NoRoom), faults_of(Fault::Busy)].concat() {
        store.protect(db.0, Some(Version::ZERO), &[]).await.unwrap();
        let other = database(&store, "b").await;
        commit(&store, other, 0, 2000, 1..=2000).await;
        let head = store.head(db.0).await.unwrap().version.get();
        commit(&store, db, head, 300, 1..=300).await;
        faults.arm(place, fault, 0);
        store.protect(db.0, None, &[]).await.unwrap();
        store.remove(&name("b")).await.unwrap();
        let clean = async {
            while store.describe(db.0).await.unwrap().pages > 300
                || !store.audit(true).unwrap().is_empty()
            {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let cleaned = tokio::time::timeout(Duration::from_secs(60), clean).await;
        assert!(
            cleaned.is_ok(),
            "{place:?} {fault:?}: {:?}",
            store.audit(true)
        );
        // It is no damage, which would stay until the store is opened anew.
        collect(&store).await;
    }
}

#[tokio::test]
async fn room5_where_room_is_short_collection_waits_for_no_quiet() {
    let directory = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        collect_after_quiet: Some(Duration::from_secs(3600)),
        ..LocalOptions::default()
    };
    let (store, faults) = open(directory.path(), options);
    let (db, other) = (database(&store, "a").await, database(&store, "b").await);
    commit(&store, db, 0, 20, 1..=20).await;
    commit(&store, other, 0, 3000, 1..=3000).await;
    store.remove(&name("b")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!store.audit(true).unwrap().is_empty(), "it did not wait");
    faults.set_free_bytes(Some(1 << 20));
    // Whatever is asked next tells that room is short.
    store.fence(db.0).await.unwrap();
    let clean = async {
        while !store.audit(true).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let cleaned = tokio::time::timeout(Duration::from_secs(60), clean).await;
    assert!(cleaned.is_ok(), "{:?}", store.audit(true));
}

/// On a file system that is full: the engine meets it, whatever was estimated.
#[test]
fn room4_a_disk_that_is_full_in_mid_commit_is_only_full() {
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=24m none \"$PAGEWIRE_TEST_DIRECTORY\" && echo mounted && exec \"$0\" \"$@\"";
    let child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["room::child", "--exact", "--ignored", "--nocapture"])
        .env("PAGEWIRE_TEST_DIRECTORY", directory.path())
        .output();
    let told = child.map(|child| {
        let told = [child.stdout, child.stderr].concat();
        String::from_utf8_lossy(&told).into_owned()
    });
    match told {
        Ok(told) if told.contains("mounted") => assert!(told.contains("went on"), "{told}"),
        other => println!("not tried, a file system cannot be mounted here: {other:?}"),
    }
}

#[tokio::test]
#[ignore = "the process of the test above"]
async fn child() {
    #[expect(clippy::disallowed_methods, reason = "how the test says where")]
    let directory = std::env::var("PAGEWIRE_TEST_DIRECTORY").unwrap();
    let directory = Path::new(&directory);
    let (store, faults) = open(&directory.join("store"), LocalOptions::default());
    // Nothing is refused on an estimate.
    faults.set_free_bytes(Some(u64::MAX));
    let (db, other) = (database(&store, "a").await, database(&store, "b").await);
    commit(&store, other, 0, 4000, 1..=4000).await;
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    let (mut base, mut refused) = (0, 0);
    while refused < 3 {
        let first = base as u32 * 700 + 1;
        let part = part(db, SIZE, base, 1_000_000, first..=first + 699);
        match try_commit(&store, part).await {
            Ok(_) => base += 1,
            Err(StoreError::Full(why)) => {
                println!("{why}");
                refused += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
        assert!(base < 1000, "the disk is never full");
    }
    assert_eq!(store.head(db.0).await.unwrap().version, Version::new(base));
    assert_eq!(read(&store, db, base, 7).await, content(SIZE, 7, 1));
    std::fs::remove_file(&ballast).unwrap();
    commit(&store, db, base, 1_000_000, 1..=700).await;
    store.remove(&name("b")).await.unwrap();
    collect(&store).await;
    drop(store);
    let (store, _) = open(&directory.join("store"), LocalOptions::default());
    assert_eq!(
        read(&store, db, base + 1, 7).await,
        content(SIZE, 7, base + 1)
    );
    assert!(store.audit(true).unwrap().is_empty());
    println!("went on");
}
