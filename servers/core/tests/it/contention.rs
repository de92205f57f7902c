//! Many clients increment one counter while their streams break: no acknowledged increment is lost, none is applied twice.
//!
//! W12, W13: locks and leases that nobody checks lose commits. `SEED=n` repeats a run.

use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::pb;
use pagewire_proto::pb::resolve_commit_response::Outcome as Resolved;
use pagewire_proto::status::Reason;

use crate::harness::{Client, CommitAnswer, Opened, PAGE_SIZE, TestCommit, TestServer, page_of};

const TTL: Duration = Duration::from_millis(1500);
const NAME: &str = "counter.db";
const CLIENTS: u64 = 4;
const INCREMENTS: u64 = 25;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn counter(page: &pb::PageContent) -> u64 {
    match page.content.get(..8) {
        Some(bytes) => u64::from_le_bytes(bytes.try_into().unwrap()),
        None => 0,
    }
}

fn counter_page(value: u64) -> pb::PageContent {
    let mut content = vec![0; PAGE_SIZE as usize];
    content[..8].copy_from_slice(&value.to_le_bytes());
    page_of(1, Bytes::from(content))
}

/// One increment under a lease; whether it was applied.
async fn increment(client: &mut Client, database: &Opened, random: &mut Random) -> bool {
    let Ok(grant) = client
        .try_acquire(database, random.below(1000) as u32)
        .await
    else {
        return false;
    };
    let head = grant.head.unwrap().version;
    let value = match head {
        0 => 0,
        _ => counter(&client.read(database, head, &[1]).await.unwrap()[0]),
    };
    assert_eq!(value, head, "each version is one increment");
    let trouble = random.below(6);
    if trouble == 0 {
        client.break_stream();
        tokio::time::sleep(Duration::from_millis(random.below(600))).await;
    }
    let mut commit = TestCommit::new(database, head, grant.epoch, 0);
    commit.batches[0].pages = vec![counter_page(value + 1)];
    let applied = if trouble == 1 {
        // The answer is lost, before or after the store was reached.
        let mut calls = client.calls.clone();
        let messages = commit.messages(client.session);
        let wait = Duration::from_millis(random.below(3));
        let call = calls.commit(tokio_stream::iter(messages));
        let _ = tokio::time::timeout(wait, call).await;
        match client.resolve(&commit).await {
            Resolved::Committed(_) => true,
            Resolved::Aborted(_) => false,
            Resolved::Unknown(unknown) => panic!("{}", unknown.reason),
        }
    } else {
        match client.commit(&commit).await {
            Ok(CommitAnswer::Committed(_)) => true,
            Ok(CommitAnswer::LeaseLost(_)) => false,
            // Which of the two a store says first is its own choice.
            Ok(CommitAnswer::Conflict(_)) if client.stream.is_none() => false,
            Ok(CommitAnswer::Conflict(conflict)) => panic!("{conflict:?} under a lease"),
            // It lapsed while the stream was broken: nothing was applied.
            Err(status) => {
                assert_eq!(Reason::of(&status), Reason::SessionUnknown);
                false
            }
        }
    };
    if client.stream.is_none() {
        if !client.connect().await.resumed {
            client.open(NAME).await;
        }
        client.keep_alive(TTL / 4);
    }
    client.release(database, grant.epoch, random.below(2) == 0);
    applied
}

async fn one_client(mut client: Client, database: Opened, seed: u64) -> u64 {
    let mut random = Random(seed);
    let mut applied = 0;
    client.keep_alive(TTL / 4);
    while applied < INCREMENTS {
        applied += u64::from(increment(&mut client, &database, &mut random).await);
    }
    client.goodbye().await;
    applied
}

#[tokio::test(start_paused = true)]
async fn no_increment_is_lost_or_applied_twice_while_streams_break_and_answers_are_lost() {
    #[expect(
        clippy::disallowed_methods,
        reason = "a failed seed is repeated by hand"
    )]
    let seeds = match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap()..=seed.parse().unwrap(),
        Err(_) => 1..=5_u64,
    };
    for seed in seeds {
        println!("SEED={seed}");
        let server = TestServer::in_process(TTL).await;
        let mut running = Vec::new();
        for number in 0..CLIENTS {
            let mut client = server.client().await;
            let database = client.open(NAME).await;
            let seed = seed * CLIENTS + number;
            running.push(tokio::spawn(one_client(client, database, seed)));
        }
        let mut applied = 0;
        for client in running {
            applied += client.await.unwrap();
        }
        assert_eq!(applied, CLIENTS * INCREMENTS);
        let mut reader = server.client().await;
        let database = reader.open(NAME).await;
        assert_eq!(database.head, applied);
        let page = &reader.read(&database, applied, &[1]).await.unwrap()[0];
        assert_eq!(counter(page), applied);
    }
}
