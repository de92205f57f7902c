//! The log in a store that is open: what the engine refuses is taken back, a medium that fails ends everything, and the file does not grow by
//! more than what is pinned (LOG8 to LOG10 in `src/log.rs`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire_local::faults::{Fault, Faults, Place};
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{CommitId, PageNumber, PageSize, StagingId, Version};
use pagewire_server::store::{Commit, PageStore, PageWrite, Resolution, Resolve, StoreError};

use crate::bench::{SIZE, commit, commit_part, content, database, part, read, try_commit};

const FILES: [&str; 4] = ["data.mdb", "checkpoint", "log.0", "log.1"];

fn options(faults: &Arc<Faults>) -> LocalOptions {
    LocalOptions {
        retention: Some(Duration::ZERO),
        // Only beside commits.
        collect_after_quiet: Some(Duration::from_secs(3600)),
        faults: Some(Arc::clone(faults)),
        ..LocalOptions::default()
    }
}

fn open(directory: &Path, faults: &Arc<Faults>) -> Result<LocalStore, StoreError> {
    LocalStore::open_with(directory, options(faults))
}

/// What a kill would leave at this moment, opened.
fn as_killed(directory: &Path) -> (tempfile::TempDir, LocalStore) {
    let copy = tempfile::tempdir().unwrap();
    for name in FILES {
        std::fs::copy(directory.join(name), copy.path().join(name)).unwrap();
    }
    let store = open(copy.path(), &Arc::default()).unwrap();
    (copy, store)
}

fn bytes(directory: &Path) -> [Vec<u8>; 4] {
    FILES.map(|name| std::fs::read(directory.join(name)).unwrap())
}

/// DIR3. Bug: a second process that got the lock, since the file `LOCK` had been removed, put roots back and wrote slots and a record into the
/// files of the store that was open, before it was refused for the engine's lock. Damage: the first went on from an old root. Fix: what is
/// open is locked by itself, before anything is written.
#[tokio::test]
async fn dir3_what_is_open_is_not_written_to_by_an_opening_that_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let store = open(directory.path(), &faults).unwrap();
    let db = database(&store, "a").await;
    // Nothing else writes meanwhile.
    faults.hold(Some(Place::BeforeDataSync));
    for base in 0..5 {
        commit(&store, db, base, 20, 1..=20).await;
    }
    for _ in 0..2 {
        std::fs::remove_file(directory.path().join("LOCK")).unwrap();
        let before = bytes(directory.path());
        let refused = open(directory.path(), &Arc::default());
        assert!(
            matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("another process")),
            "{refused:?}"
        );
        assert!(before == bytes(directory.path()), "it was written to");
        let base = head(&store, db).await;
        commit(&store, db, base, 20, 1..=20).await;
    }
    faults.hold(None);
    drop(store);
    let store = open(directory.path(), &Arc::default()).unwrap();
    assert_eq!(head(&store, db).await, 7);
    assert_eq!(read(&store, db, 7, 3).await, content(SIZE, 3, 7));
}

async fn head(store: &LocalStore, db: crate::bench::Db) -> u64 {
    store.head(db.0).await.unwrap().version.get()
}

#[tokio::test]
async fn log8_what_the_engine_refused_after_it_was_logged_does_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let store = open(directory.path(), &faults).unwrap();
    let db = database(&store, "a").await;
    commit(&store, db, 0, 20, 1..=20).await;
    let large = || part(db, SIZE, 1, 4000, 1..=4000);
    let small = || part(db, SIZE, 1, 20, 1..=20);
    for (place, part) in [(Place::AfterLog, small()), (Place::AfterMark, large())] {
        faults.arm(place, Fault::NoRoom, 0);
        let full = try_commit(&store, part).await;
        assert!(matches!(full, Err(StoreError::Full(_))), "{full:?}");
        let (_copy, killed) = as_killed(directory.path());
        assert_eq!(head(&killed, db).await, 1, "{place:?}");
    }
    // The next one has its number and its place.
    let mut other = part(db, SIZE, 1, 30, 1..=30);
    other.page_count = 30.try_into().unwrap();
    commit_part(&store, other).await;
    let (_copy, killed) = as_killed(directory.path());
    assert_eq!(head(&killed, db).await, 2);
    let pages = store.head(db.0).await.unwrap().page_count.get();
    assert_eq!(pages, 30);
    commit_part(&store, part(db, SIZE, 2, 4000, 1..=4000)).await;
    commit(&store, db, 3, 4000, 7..=7).await;
    let (_copy, killed) = as_killed(directory.path());
    assert_eq!(head(&killed, db).await, 4);
    for (number, stamp) in [(7, 4), (8, 3), (4000, 3)] {
        assert_eq!(
            read(&killed, db, 4, number).await,
            content(SIZE, number, stamp)
        );
    }
}

/// Stagings that do not fit a record, and the commit that names them.
#[tokio::test]
async fn log7_large_stagings_are_there_after_a_kill_once_their_commit_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let options = LocalOptions {
        staging_buffer_bytes: 4 << 20,
        ..options(&faults)
    };
    let store = LocalStore::open_with(directory.path(), options).unwrap();
    let db = database(&store, "a").await;
    let size = PageSize::try_from(4096).unwrap();
    let staging = StagingId::random().unwrap();
    for first in (1..=2048_u32).step_by(256) {
        let pages = (first..first + 256).map(|number| PageWrite {
            number: PageNumber::try_from(number).unwrap(),
            content: content(size, number, 1),
        });
        let stage = store.stage(db.0, staging, size, pages.collect());
        stage.await.unwrap();
    }
    assert!(faults.passed(Place::AfterMark) > 0, "none was large");
    let mut whole = part(db, size, 0, 2048, std::iter::empty());
    whole.stagings.push(staging);
    commit_part(&store, whole).await;
    let (_copy, killed) = as_killed(directory.path());
    for number in 1..=2048 {
        let page = read(&killed, db, 1, number).await;
        assert_eq!(page, content(size, number, 1), "page {number}");
    }
}

#[tokio::test]
async fn log9_after_a_failed_sync_of_the_data_nothing_is_written_or_read() {
    for (place, reads) in [
        (Place::BeforeDataSync, false),
        (Place::BeforeSlots, true),
        (Place::BetweenSlots, true),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        let store = open(directory.path(), &faults).unwrap();
        let db = database(&store, "a").await;
        faults.arm(place, Fault::Fail, 0);
        let mut base = 0;
        let error = loop {
            match try_commit(&store, part(db, SIZE, base, 200, 1..=200)).await {
                Ok(_) => base += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::Internal(_)), "{error:?}");
        let fence = store.fence(db.0).await;
        assert!(matches!(fence, Err(StoreError::Internal(_))), "{fence:?}");
        let page = [PageNumber::FIRST];
        let page = store.read(db.0, Version::new(base), &page).await;
        match reads {
            true => assert_eq!(page.unwrap()[0].content, content(SIZE, 1, base)),
            false => assert!(matches!(page, Err(StoreError::Internal(_))), "{page:?}"),
        }
        drop(store);
        let store = open(directory.path(), &Arc::default()).unwrap();
        assert_eq!(head(&store, db).await, base, "{place:?}");
        assert_eq!(read(&store, db, base, 200).await, content(SIZE, 200, base));
    }
}

/// LOG9. Bug: a commit that is durable was told to be none. Cause: the transaction that writes reads too, and was not refused after a checkpoint
/// had failed in the background where it wrote nothing. Damage: pages that the cache lost are read as they were before, and the asker
/// does its commit again. Fix: it is refused like reads, and each group looks first.
#[tokio::test]
async fn log9_after_a_checkpoint_failed_in_the_background_no_question_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let store = open(directory.path(), &faults).unwrap();
    let db = database(&store, "a").await;
    let part = part(db, SIZE, 0, 20, 1..=20);
    let id = CommitId::random().unwrap();
    let databases = vec![part];
    store.commit(Commit { id, databases }).await.unwrap();
    let resolve = Resolve {
        id,
        participants: vec![(db.0, Version::ZERO, db.1)],
    };
    let told = store.resolve(resolve.clone()).await.unwrap();
    assert_eq!(told, Resolution::Committed(vec![Version::new(1)]));
    // For its age, while nothing is asked.
    faults.arm(Place::BeforeDataSync, Fault::Fail, 0);
    let failed = async {
        while store.head(db.0).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let failed = tokio::time::timeout(Duration::from_secs(30), failed).await;
    assert!(failed.is_ok(), "no checkpoint was begun");
    let told = store.resolve(resolve).await;
    assert!(matches!(told, Err(StoreError::Internal(_))), "{told:?}");
}

/// LOG6: what fails in an opening is told, and the next one begins where that did.
#[tokio::test]
async fn log6_an_opening_whose_medium_fails_is_refused_and_loses_nothing() {
    for (place, after) in [
        (Place::AfterReplay, 0),
        (Place::BeforeSlots, 0),
        (Place::BetweenSlots, 0),
        (Place::AfterRun, 0),
        (Place::BeforeSlots, 1),
        (Place::BetweenSlots, 1),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), &Arc::default()).unwrap();
        let db = database(&store, "a").await;
        for base in 0..10 {
            commit(&store, db, base, 20, 1..=20).await;
        }
        let copy = tempfile::tempdir().unwrap();
        for name in FILES {
            std::fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
        }
        let faults = Arc::new(Faults::default());
        faults.arm(place, Fault::Fail, after);
        let refused = open(copy.path(), &faults);
        assert!(
            matches!(refused, Err(StoreError::Unavailable(_))),
            "{place:?}: {refused:?}"
        );
        let store = open(copy.path(), &Arc::default()).unwrap();
        assert_eq!(head(&store, db).await, 10, "{place:?}");
        assert_eq!(read(&store, db, 10, 20).await, content(SIZE, 20, 10));
        let problems = store.audit(false).unwrap();
        assert!(problems.is_empty(), "{problems:#?}");
    }
}

/// LOG10: what a checkpoint pins bounds what the file grows by, however much is written.
#[tokio::test]
async fn log10_the_file_grows_by_what_is_pinned_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let options = LocalOptions {
        checkpoint_bytes: 1 << 20,
        ..options(&faults)
    };
    let store = LocalStore::open_with(directory.path(), options).unwrap();
    let db = database(&store, "a").await;
    let size = || {
        let file = std::fs::metadata(directory.path().join("data.mdb"));
        file.unwrap().len() >> 20
    };
    let mut sizes = Vec::new();
    for base in 0..2000 {
        commit(
            &store,
            db,
            base,
            100,
            (1..=100).filter(|n| n % 10 == base as u32 % 10),
        )
        .await;
        // On a machine in load a checkpoint may take as long as many commits, which are pinned meanwhile.
        while base % 20 == 19
            && faults.passed(Place::AfterSlots) < faults.passed(Place::BeforeDataSync)
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if base % 500 == 499 {
            sizes.push(size());
        }
    }
    println!("{sizes:?} MiB");
    assert!(sizes[3] <= sizes[0] + 4 && sizes[3] <= 24, "{sizes:?} MiB");
}

/// LOG10: what was written is in the engine's file, synced, a while after the last commit.
#[tokio::test]
async fn log10_a_store_that_is_left_alone_needs_no_log() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let store = open(directory.path(), &faults).unwrap();
    let db = database(&store, "a").await;
    commit(&store, db, 0, 20, 1..=20).await;
    let settled = async {
        while faults.passed(Place::AfterSlots) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(30), settled).await;
    assert!(settled.is_ok(), "no checkpoint was made");
    // Not one after the other without need.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(faults.passed(Place::AfterSlots), 1);
}

/// LOG5: a store that was copied while it was closed is one of its own, and so is the copy: both go on, and are not put together again.
#[tokio::test]
async fn log5_a_copy_of_a_closed_store_goes_on_by_itself_and_does_not_mix() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(one.path(), &Arc::default()).unwrap();
    let db = database(&store, "a").await;
    commit(&store, db, 0, 20, 1..=20).await;
    drop(store);
    for name in FILES {
        std::fs::copy(one.path().join(name), other.path().join(name)).unwrap();
    }
    for (directory, commits) in [(one.path(), 3), (other.path(), 5)] {
        let store = open(directory, &Arc::default()).unwrap();
        let db = database(&store, "a").await;
        for base in 1..=commits {
            commit(&store, db, base, 20, 1..=20).await;
        }
        let (_copy, killed) = as_killed(directory);
        assert_eq!(head(&killed, db).await, commits + 1);
    }
    let mixed = tempfile::tempdir().unwrap();
    for name in FILES {
        for from in FILES {
            let home = if from == name { &other } else { &one };
            std::fs::copy(home.path().join(from), mixed.path().join(from)).unwrap();
        }
        match open(mixed.path(), &Arc::default()) {
            // Of a closed store nothing is in the log.
            Ok(store) => {
                assert!(name.starts_with("log."), "{name}");
                assert_eq!(head(&store, db).await, 4);
            }
            Err(error) => assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}"),
        }
    }
}
