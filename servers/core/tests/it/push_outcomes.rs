//! Subscriptions where it is not plain what became of a commit, of an answer or of the server (S6, S7 of `docs/versions.md`).

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::resolve_commit_response::Outcome as Resolved;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use tokio::time::Instant;

use crate::gate::GatedStore;
use crate::harness::{LONG_TTL, TestCommit, TestServer, committed, reason};
use crate::push::Scene;

#[tokio::test(start_paused = true)]
async fn s6_after_an_unknown_outcome_nobody_is_trusting_until_it_is_known() {
    for applied in [false, true] {
        let store = GatedStore::new(Duration::ZERO, true);
        let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
        let mut scene = Scene::strict(&server, 1).await;
        scene.writer.subscribe(&scene.database, 5, true);
        scene.writer.subscribed(5).await;
        *store.unknown.lock().unwrap() = Some(applied);
        let commit = scene.commit(1);
        let committing = scene.writer.committing(&commit);
        let reader = &mut scene.readers[0];
        let prepare = reader.prepared().await;
        reader.acknowledge(&prepare);
        assert_eq!(reason(committing.answer().await), Reason::Internal);
        assert_eq!(reader.subscribed(1).await, None, "ended");
        // The one that commits may hear that it is settled before it hears of the end: it is warned first.
        let prepare = scene.writer.prepared().await;
        scene.writer.acknowledge(&prepare);
        assert_eq!(scene.writer.subscribed(5).await, None);

        reader.subscribe(&scene.database, 2, true);
        let settled_by_the_head = applied.then_some(2);
        assert_eq!(reader.subscribed(2).await, settled_by_the_head);
        reader.subscribe(&scene.database, 3, false);
        let head = if applied { 2 } else { 1 };
        assert_eq!(reader.subscribed(3).await, Some(head), "waits for nobody");
        match scene.writer.resolve(&commit).await {
            Resolved::Committed(_) => assert!(applied),
            Resolved::Aborted(_) => assert!(!applied),
            Resolved::Unknown(unknown) => panic!("{}", unknown.reason),
        }
        reader.subscribe(&scene.database, 4, true);
        assert_eq!(reader.subscribed(4).await, Some(head), "known");
    }
}

/// Who is told "committed" by ResolveCommit is the first: the others are told before (S2, S7).
#[tokio::test(start_paused = true)]
async fn s7_the_answer_about_a_lost_commit_comes_after_its_publication() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut scene = Scene::new(&server, 1).await;
    let reader = &mut scene.readers[0];
    reader.subscribe(&scene.database, 1, false);
    reader.subscribed(1).await;
    *store.unknown.lock().unwrap() = Some(true);
    let commit = TestCommit::new(&scene.database, 1, scene.epoch, 2);
    assert_eq!(reason(scene.writer.commit(&commit).await), Reason::Internal);
    reader.heartbeat(Vec::new()).await;
    let resolved = scene.writer.resolve(&commit).await;
    assert!(matches!(resolved, Resolved::Committed(_)));
    assert_eq!(reader.published().await.head.unwrap().version, 2);
}

#[tokio::test(start_paused = true)]
async fn s7_what_was_answered_before_a_heartbeat_is_published_before_its_acknowledgement() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::new(&server, 1).await;
    let reader = &mut scene.readers[0];
    reader.subscribe(&scene.database, 1, false);
    reader.subscribed(1).await;
    for base in 1..50 {
        let commit = TestCommit::new(&scene.database, base, scene.epoch, 2);
        let answer = scene.writer.commit(&commit).await.unwrap();
        assert_eq!(answer, committed(&[base + 1]), "nobody is waited for");
        reader.send(Request::Heartbeat(pb::Heartbeat::default()));
        assert_eq!(reader.published().await.head.unwrap().version, base + 1);
        assert!(matches!(reader.news().await, News::HeartbeatAck(_)));
    }
}

/// The next server on the store may let a commit be seen at once if this one says that nobody trusts it any more.
#[tokio::test(start_paused = true)]
async fn a_server_that_stops_ends_the_subscriptions_before_it_says_that_nobody_trusts_it() {
    for answers in [true, false] {
        let store = GatedStore::new(Duration::ZERO, true);
        let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
        let mut scene = Scene::strict(&server, 1).await;
        scene.writer.release(&scene.database, scene.epoch, false);
        scene.writer.heartbeat(Vec::new()).await;
        let begun = Instant::now();
        let closing = tokio::spawn(async move {
            server.close().await;
            server
        });
        let reader = &mut scene.readers[0];
        assert!(matches!(reader.news().await, News::Draining(_)));
        let prepare = reader.prepared().await;
        assert_eq!(prepare.version, 2);
        if answers {
            reader.acknowledge(&prepare);
            assert_eq!(reader.subscribed(1).await, None);
            reader.subscribe(&scene.database, 2, true);
            assert_eq!(
                reader.subscribed(2).await,
                None,
                "not of a server that stops"
            );
        }
        closing.await.unwrap();
        let said_so = store.ended.available_permits() == 1;
        assert_eq!(said_so, answers);
        assert_eq!(begun.elapsed() < Duration::from_secs(1), answers);
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_without_subscribers_asks_the_store_nothing_more() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut scene = Scene::new(&server, 1).await;
    let asked = store.asked.available_permits();
    let commit = scene.commit(1);
    scene.writer.commit(&commit).await.unwrap();
    assert_eq!(store.asked.available_permits(), asked);
    // With one it is asked once.
    scene.readers[0].subscribe(&scene.database, 1, false);
    scene.readers[0].subscribed(1).await;
    let commit = scene.commit(2);
    scene.writer.commit(&commit).await.unwrap();
    assert_eq!(store.asked.available_permits(), asked + 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_open_can_not_be_subscribed_to_and_news_of_others_are_ignored() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::strict(&server, 1).await;
    let mut stranger = server.client().await;
    stranger.subscribe(&scene.database, 3, true);
    assert_eq!(stranger.subscribed(3).await, None);
    let committing = scene.writer.committing(&scene.commit(1));
    let reader = &mut scene.readers[0];
    let prepare = reader.prepared().await;
    for wrong in [
        pb::Prepare {
            version: 3,
            ..prepare.clone()
        },
        pb::Prepare {
            subscription: 2,
            ..prepare.clone()
        },
    ] {
        reader.acknowledge(&wrong);
    }
    stranger.acknowledge(&prepare);
    stranger.unsubscribe(&scene.database, 1);
    reader.unsubscribe(&scene.database, 2);
    assert!(committing.waits().await);
    reader.acknowledge(&prepare);
    assert_eq!(committing.answer().await.unwrap(), committed(&[2]));
}
