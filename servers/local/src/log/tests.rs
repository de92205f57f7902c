//! The log below the committer: places that the engine has not, and what is due.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire_server::store::StoreError;

use super::MOST_AGE;
use crate::LocalOptions;
use crate::engine::{Engine, WriteError};
use crate::faults::{Faults, Place};
use crate::keys::Key;

fn open(directory: &Path) -> (Engine, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let options = LocalOptions {
        faults: Some(Arc::clone(&faults)),
        ..LocalOptions::default()
    };
    (Engine::open(directory, &options).unwrap(), faults)
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
    let txn = engine.read().unwrap();
    let row = engine.get(&txn, &Key::Format).unwrap().unwrap();
    assert_eq!(row.len(), 10);
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
