//! Subscribers that do not answer, or change their mind all the time: what they may cost others (U-6, U-7 of `subscription.rs`).

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_response::Message as News;
use tokio::time::Instant;

use crate::gate::GatedStore;
use crate::harness::{Client, LONG_TTL, TestServer};
use crate::push::Scene;

const TTL: Duration = Duration::from_secs(5);

/// The next news that is not an answer to a heartbeat.
async fn news(client: &mut Client) -> News {
    loop {
        match client.news().await {
            News::HeartbeatAck(_) => {}
            other => return other,
        }
    }
}

async fn refused_and_asked(client: &mut Client, number: u64) -> pb::Prepare {
    let refused = news(client).await;
    assert!(
        matches!(&refused, News::Subscribed(answer) if !answer.accepted && answer.subscription == number),
        "{refused:?}"
    );
    match news(client).await {
        News::Prepare(prepare) if prepare.subscription == number => prepare,
        other => panic!("{other:?}"),
    }
}

/// One TTL for each commit, for ever: it had only to subscribe again.
#[tokio::test(start_paused = true)]
async fn u6_a_client_that_never_answers_delays_one_commit_however_often_it_subscribes() {
    let server = TestServer::in_process(TTL).await;
    let scene = Scene::strict(&server, 1).await;
    scene.writer.keep_alive(TTL / 4);
    scene.readers[0].keep_alive(TTL / 4);
    for base in 1..=10 {
        let begun = Instant::now();
        let commit = scene.commit(base);
        let at = scene.writer.committing(&commit).answered_at().await;
        let delay = at - begun;
        assert_eq!(base == 1, delay > TTL / 2, "commit {base}: {delay:?}");
        scene.readers[0].subscribe(&scene.database, base + 1, true);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn u6_a_client_that_slept_is_strict_again_when_it_has_answered() {
    for how in ["late", "asked", "asked, unsubscribes", "another stream"] {
        let server = TestServer::in_process(TTL).await;
        let mut scene = Scene::strict(&server, 1).await;
        scene.writer.keep_alive(TTL / 4);
        scene.readers[0].keep_alive(TTL / 4);
        let commit = scene.commit(1);
        scene.writer.committing(&commit).answered_at().await;
        let reader = &mut scene.readers[0];
        let News::Prepare(prepare) = news(reader).await else {
            panic!("it is warned");
        };
        assert!(matches!(news(reader).await, News::Subscribed(end) if !end.accepted));
        match how {
            "late" => reader.acknowledge(&prepare),
            "another stream" => {
                assert!(reader.connect().await.resumed);
                reader.keep_alive(TTL / 4);
                reader.subscribe(&scene.database, 2, true);
                let prepare = refused_and_asked(reader, 2).await;
                reader.acknowledge(&prepare);
            }
            _ => {
                reader.subscribe(&scene.database, 2, true);
                let prepare = refused_and_asked(reader, 2).await;
                // Not strict before it has answered; bounded at any time.
                reader.subscribe(&scene.database, 3, false);
                assert!(matches!(news(reader).await, News::Subscribed(answer) if answer.accepted));
                match how {
                    "asked" => reader.acknowledge(&prepare),
                    _ => reader.unsubscribe(&scene.database, 2),
                }
            }
        }
        reader.subscribe(&scene.database, 4, true);
        let answer = news(reader).await;
        assert!(
            matches!(&answer, News::Subscribed(answer) if answer.accepted && answer.subscription == 4),
            "{how}: {answer:?}"
        );
        let committing = scene.writer.committing(&scene.commit(2));
        let News::Prepare(prepare) = news(&mut scene.readers[0]).await else {
            panic!("it is strict");
        };
        assert!(committing.waits().await, "{how}");
        scene.readers[0].acknowledge(&prepare);
        committing.answer().await.unwrap();
    }
}

/// Each pair left a task that waited for the commit.
#[tokio::test(start_paused = true)]
async fn u7_subscribes_that_come_and_go_during_a_commit_leave_one_task() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut scene = Scene::new(&server, 1).await;
    store.arrived.acquire().await.unwrap().forget();
    store.gate.forget_permits(usize::MAX);
    let committing = scene.writer.committing(&scene.commit(1));
    store.arrived.acquire().await.unwrap().forget();
    let reader = &mut scene.readers[0];
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    reader.heartbeat(Vec::new()).await;
    let before = tasks();
    for number in 1..=500 {
        reader.subscribe(&scene.database, number, number % 3 != 0);
        if number != 500 {
            reader.unsubscribe(&scene.database, number);
        }
    }
    reader.heartbeat(Vec::new()).await;
    let more = tasks() - before;
    assert_eq!(more, 1, "tasks for 500 subscribes");
    store.gate.add_permits(1);
    committing.answer().await.unwrap();
    assert_eq!(reader.subscribed(500).await, Some(2));
    reader.heartbeat(Vec::new()).await;
    assert!(tasks() < before, "it has ended, and the commit with it");
    // The next one is answered too.
    reader.subscribe(&scene.database, 501, true);
    assert_eq!(reader.subscribed(501).await, Some(2));
}
