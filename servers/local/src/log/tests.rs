//! The log below the committer: places that the engine has not, and what is due.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire_server::store::StoreError;

use super::MOST_AGE;
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
