//! The log below the committer: places that the engine has not, and what is due.

use std::io::BufRead;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use pagewire_server::store::StoreError;

use super::MOST_AGE;
use super::record::Changes;
use crate::LocalOptions;
use crate::engine::{Engine, WriteError};
use crate::faults::{Fault, Faults, Place};
use crate::keys::Key;
use crate::transaction::{Recorder, WriteTxn};

fn open(directory: &Path) -> (Engine, Arc<Faults>) {
    open_with(directory, LocalOptions::default())
}

fn open_with(directory: &Path, options: LocalOptions) -> (Engine, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let options = LocalOptions {
        faults: Some(Arc::clone(&faults)),
        ..options
    };
    (Engine::open(directory, &options).unwrap(), faults)
}

/// A store as the disk may have it: `data.mdb` from one directory, all else from another.
fn put_together(data: &Path, others: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, from) in [
        ("data.mdb", data),
        ("checkpoint", others),
        ("log.0", others),
        ("log.1", others),
    ] {
        std::fs::copy(from.join(name), directory.path().join(name)).unwrap();
    }
    directory
}

fn length_of_row(engine: &Engine) -> usize {
    let txn = engine.read().unwrap();
    engine.get(&txn, &Key::Format).unwrap().unwrap().len()
}

fn commit(engine: &Engine, bytes: usize) -> Result<(), WriteError> {
    let mut txn = engine.write()?;
    engine.put(&mut txn, &Key::Format, &vec![7; bytes])?;
    engine.commit(txn)
}

/// LOG10, LOG7: where reads have all places of the engine no checkpoint can pin anything. That fails nothing: small commits go on, and a
/// large one lets the next wait for a place.
#[test]
fn log10_a_checkpoint_that_finds_no_place_to_pin_is_made_later() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, faults) = open(directory.path());
    engine.end_making(directory.path()).unwrap();
    commit(&engine, 10).unwrap();
    let mut reads = Vec::new();
    while let Ok(txn) = engine.env.read_txn() {
        reads.push(txn);
    }
    assert!(reads.len() > 1000);
    // More than half of a log file.
    for _ in 0..15 {
        commit(&engine, 100_000).unwrap();
    }
    commit(&engine, 3 << 20).unwrap();
    assert_eq!(faults.passed(Place::BeforeDataSync), 0);
    let refused = commit(&engine, 10);
    assert!(
        matches!(
            &refused,
            Err(WriteError::Refused(StoreError::Unavailable(_)))
        ),
        "{refused:?}"
    );
    drop(reads);
    commit(&engine, 10).unwrap();
    assert!(faults.passed(Place::AfterSlots) > 0);
    drop(engine);
    let (engine, _) = open(directory.path());
    assert_eq!(length_of_row(&engine), 10);
}

/// LOG9. Bug: a checkpoint whose sync failed while a commit was in the log was followed by one, for that commit. Cause: neither who begins
/// one nor the thread looked at the failure, of which the kernel tells once. Damage: the next sync says that what was lost is there, both
/// slots believe it, and acknowledged commits are gone. Fix: none follows one that failed.
#[test]
fn log9_no_checkpoint_follows_one_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        checkpoint_bytes: 1,
        ..LocalOptions::default()
    };
    let (engine, faults) = open_with(directory.path(), options);
    engine.end_making(directory.path()).unwrap();
    // What the disk has of it if no later sync wrote anything.
    let disk = put_together(directory.path(), directory.path());
    let slots = std::fs::read(disk.path().join("checkpoint")).unwrap();
    faults.hold(Some(Place::BeforeDataSync));
    faults.arm(Place::BeforeDataSync, Fault::Fail, 0);
    commit(&engine, 10).unwrap();
    {
        let mut txn = engine.write().unwrap();
        engine.put(&mut txn, &Key::Format, &[7; 20]).unwrap();
        let WriteTxn { txn, changes } = txn;
        let Recorder::Whole(changes) = changes else {
            panic!("it is one within another");
        };
        let number = txn.id() as u64;
        engine.log.append(&engine.env, number, changes).unwrap();
        let log = &engine.log;
        assert!(log.shared.state.lock().is_under_way, "none was begun");
        faults.hold(None);
        let ended = log.wait(&mut log.shared.state.lock());
        assert!(matches!(ended, Err(WriteError::Medium(_))), "{ended:?}");
        engine.commit_to_tree(txn, false).unwrap();
        // The log has it.
        engine.log.committed(&engine.env, number, false).unwrap();
    }
    let next = commit(&engine, 30);
    assert!(next.is_err(), "it is written to");
    let shared = Arc::clone(&engine.log.shared);
    drop(engine);
    assert!(!shared.state.lock().is_under_way);
    assert_eq!(faults.passed(Place::BeforeDataSync), 0);
    assert_eq!(faults.passed(Place::AfterSlots), 0);
    assert!(slots == std::fs::read(directory.path().join("checkpoint")).unwrap());
    let again = put_together(disk.path(), directory.path());
    let (engine, _) = open(again.path());
    assert_eq!(length_of_row(&engine), 20);
}

/// LOG10: a commit is not in the log alone for longer because others follow it without a pause.
#[tokio::test(start_paused = true)]
async fn log10_age_counts_under_constant_load_too() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, faults) = open(directory.path());
    commit(&engine, 10).unwrap();
    tokio::time::advance(MOST_AGE / 2).await;
    commit(&engine, 10).unwrap();
    assert_eq!(faults.passed(Place::BeforeDataSync), 0);
    tokio::time::advance(MOST_AGE / 2 + Duration::from_millis(1)).await;
    commit(&engine, 10).unwrap();
    let waited = engine.log.checkpoint(&engine.env);
    assert!(waited.is_ok() && faults.passed(Place::AfterSlots) == 1);
}

/// LOG8: what the engine found no room for, in a process that was killed before it took that back, is done again, and the store opens.
#[test]
fn log8_an_opening_does_again_what_the_engine_found_no_room_for() {
    let directory = tempfile::tempdir().unwrap();
    let small = || LocalOptions {
        map_bytes: 1 << 20,
        ..LocalOptions::default()
    };
    let (engine, _) = open_with(directory.path(), small());
    engine.end_making(directory.path()).unwrap();
    commit(&engine, 10).unwrap();
    let txn = engine.write().unwrap();
    let (key, body) = (Key::Format.encode(), vec![7; 1_200_000]);
    let mut changes = Changes::new();
    let sums = crate::engine::sums(&key, crc32fast::hash(&body), body.len());
    changes.put(&key, &sums, &body);
    assert!(!changes.is_large());
    let number = txn.id() as u64;
    engine.log.append(&engine.env, number, changes).unwrap();
    drop(txn);
    let full = commit(&engine, body.len());
    assert!(
        matches!(&full, Err(WriteError::Refused(StoreError::Full(_)))),
        "it has room: {full:?}"
    );
    let killed = put_together(directory.path(), directory.path());
    for _ in 0..2 {
        let (engine, _) = open_with(killed.path(), small());
        assert_eq!(length_of_row(&engine), body.len());
        // No more than it has.
        let size = engine.env.info().map_size;
        assert!(size < 2 << 20, "{size}");
    }
}

/// LOG3, DIR3: a program that only looks at the engine's file keeps its lock file, with the number of a root that an opening takes back. What
/// it looks at stays as it is.
#[test]
fn log3_an_engine_that_does_not_begin_with_the_root_that_was_put_back_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, _) = open(directory.path());
    engine.end_making(directory.path()).unwrap();
    commit(&engine, 10).unwrap();
    commit(&engine, 20).unwrap();
    let killed = put_together(directory.path(), directory.path());
    let mut other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["log::tests::other_program", "--exact", "--ignored"])
        .arg("--nocapture")
        .env("PAGEWIRE_TEST_DIRECTORY", killed.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufReader::new(other.stdout.take().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|line| line.contains("it is open")));
    let bytes = || {
        let files = ["data.mdb", "checkpoint", "log.0", "log.1"];
        files.map(|name| std::fs::read(killed.path().join(name)).unwrap())
    };
    let before = bytes();
    let refused = Engine::open(killed.path(), &LocalOptions::default());
    assert!(
        matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("lock.mdb")),
        "{refused:?}"
    );
    assert!(before == bytes(), "it was written to");
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    let (engine, _) = open(killed.path());
    assert_eq!(length_of_row(&engine), 20);
}

#[test]
#[ignore = "the process of the test above"]
fn other_program() {
    #[expect(clippy::disallowed_methods, reason = "how the test says where")]
    let directory = std::env::var("PAGEWIRE_TEST_DIRECTORY").unwrap();
    let env = crate::engine::map(directory.as_ref(), 1 << 30).unwrap();
    println!("it is open");
    // Until the test has seen what it came for.
    std::io::stdin().lines().for_each(drop);
    drop(env);
}
