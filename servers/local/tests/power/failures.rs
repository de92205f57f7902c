//! Calls that fail: a full disk, and syncs that answer an error and leave in the cache what the disk does not have (LOG8, LOG9 in `src/log.rs`,
//! ROOM4 in `src/room.rs`).

use std::path::Path;
use std::time::Duration;

use pagewire_local::LocalStore;
use pagewire_server::store::{CommitOutcome, PageStore, StoreError};

use crate::bench::{Db, SIZE, database, part, try_commit};
use crate::log::until;
use crate::recorder::{Call, DATA, Disk, Errno, FILES, Failing, LOGS, Recording, SLOTS};
use crate::{PAGES, check, home, is_long, open, open_keeping, open_with, random};

/// What was acknowledged is there, as the disk may be at the end, and as the files show it.
async fn nothing_is_lost(recording: &Recording, path: &Path, seed: u64) {
    let end = recording.len();
    for disk in [Disk::Nothing, Disk::Everything, Disk::Sectors(seed)] {
        recording.image(end, disk).write(path);
        let store = open_keeping(path, None);
        let store = store.unwrap_or_else(|error| panic!("{disk:?}: {error:?}"));
        check(&store, &recording.acknowledged(end)).await;
        drop(store);
        std::fs::remove_dir_all(path).unwrap();
    }
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Done,
    NotApplied,
    Unknown,
}

async fn attempt(store: &LocalStore, db: Db, base: u64, count: u32) -> Told {
    match try_commit(store, part(db, SIZE, base, count, 1..=count)).await {
        Ok(CommitOutcome::Committed(_)) => Told::Done,
        Ok(other) => panic!("{other:?}"),
        Err(StoreError::Full(_) | StoreError::Unavailable(_)) => Told::NotApplied,
        Err(StoreError::Internal(_)) => Told::Unknown,
        Err(other) => panic!("{other:?}"),
    }
}

/// LOG9, ROOM4: a sync of the engine's that failed is no full disk, whatever it says. Told to both open files, as Linux does, it ends the store; told to the engine
/// alone, nothing of what was acknowledged was to be synced by it.
#[tokio::test]
async fn log9_a_failed_sync_of_a_large_commit_loses_nothing_that_was_acknowledged() {
    for error in [Errno::NOSPC, Errno::IO] {
        // Which one fails: that before the mark, the engine's own, that after it.
        for (after, times) in [(0, 1), (1, 1), (1, 2)] {
            println!("{error:?}, {times} after {after}");
            let home = home();
            let directory = home.path().join("store");
            drop(open(&directory).unwrap());
            let recording = Recording::begin(&directory);
            // No checkpoint but that of the large one.
            let store = open_with(&directory, None, 1 << 40).unwrap();
            let (a, b) = (database(&store, "a").await, database(&store, "other").await);
            until(&store, a, 0, 5, &recording).await;
            recording.fail(Failing {
                after,
                times,
                ..Failing::next(&[DATA], Call::Sync, error)
            });
            let told = attempt(&store, b, 0, 3000).await;
            assert_ne!(told, Told::Done);
            let mut head = 5;
            let next = attempt(&store, a, head, PAGES).await;
            if (after, times, error) == (1, 1, Errno::NOSPC) {
                assert_eq!((told, next), (Told::NotApplied, Told::Done));
                head += 1;
                recording.acknowledge("a", head);
                assert_eq!(attempt(&store, b, 0, 3000).await, Told::Done);
                until(&store, a, head, head + 5, &recording).await;
                head += 5;
            } else {
                assert_eq!((told, next), (Told::Unknown, Told::Unknown));
                // An EIO of the engine alone is not said to be one of a sync.
                let reads = store.head(a.0).await;
                assert!(matches!(reads, Err(StoreError::Internal(_))), "{reads:?}");
            }
            let is_asked_again = (after, error) == (1, Errno::NOSPC);
            assert_eq!(
                recording.left_to_fail(),
                if is_asked_again { 0 } else { times - 1 }
            );
            recording.end();
            drop(store);
            nothing_is_lost(&recording, &home.path().join("again"), head).await;
        }
    }
}

/// LOG9. Bug: a checkpoint that was under way named as durable what was not. Cause: committer and thread of checkpoints had one open file, to
/// which a write that failed in the background is told once, and the committer was told. Damage: both slots believe what the disk does not
/// have. Fix: an open file for each, and a look at what the other was told before each slot.
#[tokio::test]
async fn log9_what_the_committer_was_told_ends_the_checkpoint_under_way() {
    for is_told_to_both in [true, false] {
        let home = home();
        let directory = home.path().join("store");
        drop(open(&directory).unwrap());
        let recording = Recording::begin(&directory);
        let store = open_with(&directory, None, 1).unwrap();
        let (a, b) = (database(&store, "a").await, database(&store, "other").await);
        recording.hold(Some(DATA));
        let mut head = 0;
        while !recording.is_held() {
            until(&store, a, head, head + 1, &recording).await;
            head += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        until(&store, a, head, head + 3, &recording).await;
        let slots = std::fs::read(directory.join(FILES[SLOTS])).unwrap();
        match is_told_to_both {
            true => recording.lose(DATA, Errno::IO),
            // Whatever the one that is under way is told.
            false => recording.fail(Failing::next(&[DATA], Call::Sync, Errno::IO)),
        }
        // It has all synced before its mark.
        assert_eq!(attempt(&store, b, 0, 3000).await, Told::Unknown);
        assert!(recording.is_held());
        recording.hold(None);
        // Waits for the thread.
        drop(store);
        recording.end();
        let after = std::fs::read(directory.join(FILES[SLOTS])).unwrap();
        assert!(slots == after, "a slot was written");
        nothing_is_lost(&recording, &home.path().join("again"), head).await;
    }
}

/// LOG8: where the log itself cannot be written for want of room, nothing was applied, and commits go on with room.
#[tokio::test]
async fn log8_a_disk_without_room_for_a_record_refuses_one_commit() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = Recording::begin(&directory);
    let store = open_with(&directory, None, 1 << 40).unwrap();
    let a = database(&store, "a").await;
    let mut images = Vec::new();
    for head in 0..4 {
        recording.fail(Failing::next(&LOGS, Call::Write, Errno::NOSPC));
        assert_eq!(attempt(&store, a, head, 200).await, Told::NotApplied);
        assert_eq!(recording.left_to_fail(), 0);
        images.push((recording.moment(), head));
        assert_eq!(attempt(&store, a, head, 200).await, Told::Done);
    }
    recording.end();
    drop(store);
    for (moment, head) in images {
        // What is next to the first of both is under way there.
        for (disk, moment) in [(Disk::Everything, moment - 1), (Disk::Nothing, moment)] {
            let path = home.path().join("again");
            recording.image(moment, disk).write(&path);
            let store = open_keeping(&path, None).unwrap();
            let there = store.head(a.0).await.unwrap().version.get();
            assert_eq!(there, head, "{disk:?}: what was refused is there");
            drop(store);
            std::fs::remove_dir_all(&path).unwrap();
        }
    }
}

/// LOG8, LOG6: an opening that finds no room for what the log has says what to do, and loses nothing.
#[tokio::test]
async fn log8_an_opening_without_room_says_so_and_the_next_one_has_all() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = Recording::begin(&directory);
    let store = open_with(&directory, None, 1 << 40).unwrap();
    let a = database(&store, "a").await;
    until(&store, a, 0, 5, &recording).await;
    let moment = recording.moment();
    recording.end();
    drop(store);
    let again = home.path().join("again");
    recording.image(moment, Disk::Everything).write(&again);
    let opening = Recording::begin(&again);
    opening.fail(Failing {
        // Not the roots.
        from_offset: 8192,
        ..Failing::next(&[DATA], Call::Write, Errno::NOSPC)
    });
    let refused = open(&again);
    assert_eq!(opening.left_to_fail(), 0);
    opening.end();
    assert!(
        matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("make room")),
        "{refused:?}"
    );
    let store = open_keeping(&again, None).unwrap();
    check(&store, &recording.acknowledged(moment)).await;
}

/// LOG10: a log file that cannot grow stays as it is, and commits go on.
#[tokio::test]
async fn log10_a_log_file_that_finds_no_room_to_grow_stays_as_long_as_it_is() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = Recording::begin(&directory);
    let store = open_with(&directory, None, 1 << 40).unwrap();
    let db = database(&store, "a").await;
    let is_grown = || {
        let length = |log: &usize| directory.join(FILES[*log]).metadata().unwrap().len();
        LOGS.iter().any(|log| length(log) > 2 << 20)
    };
    recording.fail(Failing {
        from_offset: 2 << 20,
        times: 1000,
        ..Failing::next(&LOGS, Call::Write, Errno::NOSPC)
    });
    // Each by itself is more than half of a log file, however slow they are.
    for head in 0..20 {
        assert_eq!(attempt(&store, db, head, 2000).await, Told::Done);
    }
    // Waits for the thread of checkpoints. Until it has taken back the part that it wrote before there was no room, the file is longer.
    drop(store);
    assert!(
        !is_grown(),
        "{} failures were left",
        recording.left_to_fail()
    );
    assert!(recording.left_to_fail() < 1000, "none was tried");
    recording.end();
    // What was written of a file that did not grow was taken back.
    assert!(recording.told().lengths > 0);
    let store = open(&directory).unwrap();
    assert_eq!(store.head(db.0).await.unwrap().version.get(), 20);
}

/// Commits, small ones and a large one, until nothing is written any more. Answers what is there of each for certain, and at most.
async fn as_far_as_it_goes(store: &LocalStore, recording: &Recording) -> Option<[(u64, u64); 2]> {
    let mut heads = [(0, 0); 2];
    let names = ["a", "large"];
    let mut databases = Vec::new();
    for name in names {
        let id = store.lookup(&crate::bench::name(name), true).await.ok()?;
        databases.push((id, store.fence(id).await.ok()?));
    }
    for step in 0..24 {
        let (which, count) = match step % 8 {
            5 if heads[1].0 == 0 => (1, 3000),
            _ => (0, PAGES),
        };
        let head = &mut heads[which];
        match attempt(store, databases[which], head.0, count).await {
            Told::Done => {
                *head = (head.0 + 1, head.0 + 1);
                recording.acknowledge(names[which], head.0);
            }
            Told::NotApplied => {}
            Told::Unknown => {
                head.1 = head.0 + 1;
                break;
            }
        }
    }
    Some(heads)
}

/// Whose calls fail.
const FAILING_FILES: [&[usize]; 4] = [&[], &[DATA], &[SLOTS], &LOGS];

/// C17 with LOG9: one call fails, or all from there on, anywhere in an opening, in commits and in checkpoints. What was acknowledged is there; what was refused is not.
#[tokio::test]
async fn log9_a_call_that_fails_anywhere_loses_nothing_that_was_acknowledged() {
    let home = home();
    let mut random = random();
    let mut failed = 0;
    let turns = if is_long() { 400 } else { 16 };
    for turn in 0..turns {
        let directory = home.path().join(format!("{turn}"));
        drop(open(&directory).unwrap());
        let recording = Recording::begin(&directory);
        let call = [Call::Write, Call::Sync][turn % 2];
        let failing = Failing {
            files: FAILING_FILES[turn / 2 % 4],
            call: Some(call),
            from_offset: 0,
            after: random.next() as usize % [40, 200, 30, 30][turn / 2 % 4],
            times: [1, 2, usize::MAX][turn / 8 % 3],
            error: [Errno::NOSPC, Errno::IO][random.next() as usize % 2],
        };
        println!("{failing:?}");
        recording.fail(failing);
        let opened = open(&directory);
        let heads = match &opened {
            Ok(store) => as_far_as_it_goes(store, &recording).await,
            Err(_) => None,
        };
        failed += usize::from(recording.left_to_fail() < failing.times);
        recording.end();
        drop(opened);
        let again = home.path().join("again");
        nothing_is_lost(&recording, &again, random.next()).await;
        // As a kill leaves it.
        if let Some(heads) = heads {
            recording
                .image(recording.len(), Disk::Everything)
                .write(&again);
            let store = open_keeping(&again, None).unwrap();
            for (label, (least, most)) in ["a", "large"].into_iter().zip(heads) {
                let id = store
                    .lookup(&crate::bench::name(label), false)
                    .await
                    .unwrap();
                let there = store.head(id).await.unwrap().version.get();
                assert!(
                    (least..=most).contains(&there),
                    "{label}: {there}, not {least} to {most}"
                );
            }
            drop(store);
            std::fs::remove_dir_all(&again).unwrap();
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
    println!("{failed} of {turns} failed");
    assert!(failed > turns / 3);
}
