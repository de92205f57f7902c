//! Page 1 beside what was asked for: with the news of a version, and with the answer to a question about the head.

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;

use crate::gate::GatedStore;
use crate::harness::{Client, LONG_TTL, TestCommit, TestServer, committed, page, page_of, reason};
use crate::push::Scene;

fn subscribe(client: &Client, scene: &Scene, want_page_1: bool) {
    client.send(Request::Subscribe(pb::Subscribe {
        database_id: scene.database.id.clone(),
        known_version: 0,
        strict: false,
        subscription: 1,
        want_page_1,
    }));
}

async fn begin(client: &mut Client, scene: &Scene, known: u64) -> pb::BeginSnapshotResponse {
    let request = pb::BeginSnapshotRequest {
        session_id: client.session.to_wire(),
        database_id: scene.database.id.clone(),
        known_version: known,
        want_page_1: true,
    };
    let answer = client.calls.begin_snapshot(request).await.unwrap();
    answer.into_inner()
}

fn written(number: u32, fill: u8, version: u64) -> Option<pb::PageContent> {
    let page = page(number, fill);
    Some(pb::PageContent { version, ..page })
}

#[tokio::test(start_paused = true)]
async fn page_1_comes_with_the_news_where_it_was_wanted_and_has_changed() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::new(&server, 2).await;
    for (reader, wants) in scene.readers.iter().zip([true, false]) {
        subscribe(reader, &scene, wants);
    }
    for reader in &mut scene.readers {
        reader.subscribed(1).await;
    }
    let commit = scene.commit(1);
    scene.writer.commit(&commit).await.unwrap();
    let expected = written(1, 1, 2);
    assert_eq!(scene.readers[0].published().await.page_1, expected);
    assert_eq!(scene.readers[1].published().await.page_1, None);
    // A commit without it.
    let mut other = TestCommit::new(&scene.database, 2, scene.epoch, 9);
    other.databases[0].page_count = 2;
    other.batches[0].pages = vec![page(2, 9)];
    scene.writer.commit(&other).await.unwrap();
    assert_eq!(scene.readers[0].published().await.page_1, None);

    let mut reader = server.client().await;
    reader.open("a.db").await;
    assert_eq!(begin(&mut reader, &scene, 1).await.page_1, expected);
    assert_eq!(begin(&mut reader, &scene, 0).await.page_1, expected);
    for known in [2, 3] {
        let answer = begin(&mut reader, &scene, known).await;
        assert_eq!(answer.page_1, None, "nothing new since {known}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_page_1_does_not_come_along() {
    const LARGE: u32 = 16 << 10;
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::new(&server, 1).await;
    subscribe(&scene.readers[0], &scene, true);
    scene.readers[0].subscribed(1).await;
    let mut commit = scene.commit(1);
    commit.databases[0].page_size = LARGE;
    commit.batches[0].pages = vec![page_of(1, vec![5; LARGE as usize].into())];
    scene.writer.commit(&commit).await.unwrap();
    assert_eq!(scene.readers[0].published().await.page_1, None);
    let mut reader = server.client().await;
    reader.open("a.db").await;
    let answer = begin(&mut reader, &scene, 1).await;
    assert_eq!((answer.head.unwrap().version, answer.page_1), (2, None));
}

/// The answer to it is that of the first one, and what it brings is nowhere stored.
#[tokio::test(start_paused = true)]
async fn what_the_repetition_of_a_commit_brings_is_shown_to_nobody() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut scene = Scene::new(&server, 1).await;
    subscribe(&scene.readers[0], &scene, true);
    scene.readers[0].subscribed(1).await;
    *store.unknown.lock().unwrap() = Some(true);
    let mut commit = scene.commit(1);
    assert_eq!(reason(scene.writer.commit(&commit).await), Reason::Internal);
    commit.batches[0].pages = vec![page(1, 66)];
    let answer = scene.writer.commit(&commit).await.unwrap();
    assert_eq!(answer, committed(&[2]));
    let published = scene.readers[0].published().await;
    assert_eq!(published.head.unwrap().version, 2);
    assert_eq!(published.page_1, None);
}
