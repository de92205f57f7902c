//! Commits whose answer was lost and one of whose databases is gone: the others are not held up for ever.

use pagewire_proto::pb;
use pagewire_proto::pb::resolve_commit_response::Outcome as Resolved;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;

use crate::harness::{
    Client, CommitAnswer, LONG_TTL, Opened, TestCommit, TestServer, committed, page, reason,
};

/// Two databases at version 1 with their leases, and a commit over both.
struct Scene {
    server: TestServer,
    client: Client,
    databases: [Opened; 2],
    epochs: [u64; 2],
    commit: TestCommit,
}

const NAMES: [&str; 2] = ["a.db", "b.db"];

impl Scene {
    async fn new() -> Self {
        let server = TestServer::start(LONG_TTL).await;
        let mut client = server.client().await;
        let databases = [client.open(NAMES[0]).await, client.open(NAMES[1]).await];
        let mut epochs = [0; 2];
        for (database, epoch) in databases.iter().zip(&mut epochs) {
            *epoch = client.acquire(database).await;
            let first = TestCommit::new(database, 0, *epoch, 1);
            assert_eq!(client.commit(&first).await.unwrap(), committed(&[1]));
        }
        let mut commit = TestCommit::new(&databases[0], 1, epochs[0], 2);
        let second = TestCommit::new(&databases[1], 1, epochs[1], 2);
        commit.databases.extend(second.databases);
        commit.batches.push(pb::PageBatch {
            database_index: 1,
            pages: vec![page(1, 2)],
        });
        Self {
            server,
            client,
            databases,
            epochs,
            commit,
        }
    }

    async fn close(&mut self, index: usize) {
        self.client.send(Request::CloseDatabase(pb::CloseDatabase {
            database_id: self.databases[index].id.clone(),
            open_sequence: 0,
            hot_pages: Vec::new(),
        }));
        self.client.heartbeat(Vec::new()).await;
    }

    async fn delete(&mut self, index: usize) {
        self.close(index).await;
        let request = pb::DeleteDatabaseRequest {
            name: NAMES[index].into(),
        };
        let mut calls = self.server.calls().await;
        calls.delete_database(request).await.unwrap();
    }
}

/// The application could not use the database that was left until it opened it anew.
#[tokio::test]
async fn f7_a_commit_is_settled_although_one_of_its_databases_was_removed() {
    for removed in [0, 1] {
        let kept = 1 - removed;
        let mut scene = Scene::new().await;
        assert_eq!(
            scene.client.commit(&scene.commit).await.unwrap(),
            committed(&[2, 2])
        );
        scene.delete(removed).await;
        let made = Resolved::Committed(pb::Committed {
            versions: vec![2, 2],
        });
        assert_eq!(scene.client.resolve(&scene.commit).await, made, "{removed}");

        let mut scene = Scene::new().await;
        scene.delete(removed).await;
        let Resolved::Aborted(aborted) = scene.client.resolve(&scene.commit).await else {
            panic!("without {removed} it is not aborted");
        };
        assert_eq!(aborted.epochs[removed], 0);
        assert!(aborted.epochs[kept] > scene.epochs[kept], "{aborted:?}");
        // For ever, under the old epoch and under the new one.
        for epoch in [scene.epochs[kept], aborted.epochs[kept]] {
            scene.commit.databases[kept].epoch = epoch;
            let delayed = scene.client.commit(&scene.commit).await;
            assert_eq!(reason(delayed), Reason::DatabaseNotOpen);
            scene.client.open(NAMES[removed]).await;
        }
        let kept_database = &scene.databases[kept];
        let old = TestCommit::new(kept_database, 1, scene.epochs[kept], 3);
        assert!(matches!(
            scene.client.commit(&old).await.unwrap(),
            CommitAnswer::LeaseLost(_)
        ));
        let next = TestCommit::new(kept_database, 1, aborted.epochs[kept], 3);
        assert_eq!(scene.client.commit(&next).await.unwrap(), committed(&[2]));
    }
}

/// Only what is gone for ever is left out: one that is there has to be asked too, and may be asked only by who has it open.
#[tokio::test]
async fn f7_a_database_that_is_there_and_not_open_is_not_left_out() {
    for closed in [0, 1] {
        let mut scene = Scene::new().await;
        scene.close(closed).await;
        let request = pb::ResolveCommitRequest {
            session_id: scene.client.session.to_wire(),
            commit_id: scene.commit.id.to_wire(),
            participants: scene
                .commit
                .databases
                .iter()
                .map(|named| pb::CommitParticipant {
                    database_id: named.database_id.clone(),
                    base_version: named.base_version,
                    epoch: named.epoch,
                })
                .collect(),
        };
        let refused = scene.client.calls.resolve_commit(request).await;
        assert_eq!(reason(refused), Reason::DatabaseNotOpen);
    }
}
