//! Pages on their way into stagings: the invariants M-7 and M-8.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use tokio::task::JoinHandle;
use tokio::time::Duration;

use crate::gate::GatedStore;
use crate::harness::{Client, LONG_TTL, Opened, TestServer, page_of};

const LARGE_PAGE: u32 = 65_536;
const MIB: usize = 1 << 20;

/// A call that stages so many large pages.
fn stage(client: &Client, database: &Opened, pages: u32) -> JoinHandle<bool> {
    let content = Bytes::from(vec![7; LARGE_PAGE as usize]);
    let request = pb::StagePagesRequest {
        header: Some(pb::StagePagesHeader {
            session_id: client.session.to_wire(),
            database_id: database.id.clone(),
            staging_id: Bytes::from(vec![1; 16]),
            page_size: LARGE_PAGE,
            continues: false,
        }),
        pages: (1..=pages)
            .map(|number| page_of(number, content.clone()))
            .collect(),
    };
    let mut calls = client.calls.clone();
    tokio::spawn(async move {
        let answer = calls.stage_pages(tokio_stream::iter([request])).await;
        answer.is_ok()
    })
}

/// A store that takes no pages before it gets its permits back.
fn closed_store() -> (Arc<GatedStore>, usize) {
    let store = GatedStore::new(Duration::ZERO, true);
    let permits = store.staging.available_permits();
    store.staging.forget_permits(permits);
    (store, permits)
}

async fn until(mut reached: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if reached() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come to that");
}

#[tokio::test]
async fn m7_pages_of_calls_that_were_cancelled_are_bounded_until_the_store_takes_them() {
    let (store, permits) = closed_store();
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let waiting = || store.staging_bytes.load(Ordering::Relaxed);
    for call in 1..=100 {
        let under_way = stage(&client, &database, 16);
        if call <= 60 {
            until(|| waiting() >= call * MIB).await;
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        under_way.abort();
    }
    assert!((60 * MIB..=64 * MIB).contains(&waiting()), "{}", waiting());
    store.staging.add_permits(permits);
    assert!(stage(&client, &database, 16).await.unwrap());
    until(|| waiting() == 0).await;
}

#[tokio::test]
async fn m8_pages_that_come_into_a_staging_after_it_was_dropped_are_dropped_again() {
    let (store, _) = closed_store();
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let under_way = stage(&client, &database, 1);
    until(|| store.staging_bytes.load(Ordering::Relaxed) > 0).await;
    under_way.abort();
    client.send(Request::DropStagings(pb::DropStagings {
        staging_ids: vec![Bytes::from(vec![1; 16])],
    }));
    client.heartbeat(Vec::new()).await;
    store.dropped.acquire().await.unwrap().forget();
    store.staging.add_permits(1);
    tokio::time::timeout(Duration::from_secs(10), store.dropped.acquire())
        .await
        .expect("nobody dropped what came late")
        .unwrap()
        .forget();
    assert!(store.stagings.lock().unwrap().is_empty());
}
