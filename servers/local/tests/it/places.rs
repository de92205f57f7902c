//! A medium that fails at each named place: nothing is acknowledged that is not there, nothing is written after it, and the
//! store opens again.

use std::sync::Arc;

use pagewire_local::faults::{Fault, Faults, Place};
use pagewire_server::store::{CommitOutcome, PageStore, StoreError};

use crate::scene::{WRITERS, check, commit, database, open};

#[tokio::test]
async fn after_a_failure_at_any_place_the_store_is_whole_and_refuses_until_opened_anew() {
    for place in [
        Place::BeforeCommit,
        Place::AfterCommit,
        Place::BeforeSpill,
        Place::AfterSpill,
        Place::AfterLog,
        Place::BeforeSlots,
        Place::BetweenSlots,
        Place::AfterSlots,
    ] {
        let directory = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        let store = open(directory.path(), Some(Arc::clone(&faults)));
        let mut acknowledged = [0; 3];
        let mut databases = Vec::new();
        for group in WRITERS {
            let mut writer = Vec::new();
            for index in group {
                let id = database(&store, *index).await;
                writer.push((*index, id, store.fence(id).await.unwrap()));
            }
            databases.push(writer);
        }
        faults.arm(place, Fault::Fail, 4);
        let error = 'failed: loop {
            for (writer, databases) in databases.iter().enumerate() {
                match commit(&store, databases, acknowledged[writer]).await {
                    Ok(CommitOutcome::Committed(_)) => acknowledged[writer] += 1,
                    Ok(outcome) => panic!("{place:?}: {outcome:?}"),
                    Err(error) => break 'failed error,
                }
            }
        };
        assert!(
            matches!(error, StoreError::Internal(_)),
            "{place:?}: {error:?}"
        );
        for (writer, databases) in databases.iter().enumerate() {
            let again = commit(&store, databases, acknowledged[writer]).await;
            assert!(matches!(again, Err(StoreError::Internal(_))), "{again:?}");
            let fence = store.fence(databases[0].1).await;
            assert!(matches!(fence, Err(StoreError::Internal(_))), "{fence:?}");
        }
        // What is durable can still be read.
        check(&store).await;
        drop(store);
        let store = open(directory.path(), None);
        let heads = check(&store).await;
        for (writer, group) in WRITERS.iter().enumerate() {
            let head = heads[group[0]];
            let acknowledged = acknowledged[writer];
            assert!(
                head == acknowledged || head == acknowledged + 1,
                "{place:?}: {acknowledged} acknowledged, {head} there"
            );
            let mut databases = Vec::new();
            for index in *group {
                let id = database(&store, *index).await;
                databases.push((*index, id, store.fence(id).await.unwrap()));
            }
            let outcome = commit(&store, &databases, head).await.unwrap();
            assert!(
                matches!(outcome, CommitOutcome::Committed(_)),
                "{outcome:?}"
            );
        }
    }
}
