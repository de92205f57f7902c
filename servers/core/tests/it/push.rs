//! Subscriptions, S1 to S7 of `docs/versions.md`: who is warned of a commit and waited for, and who hears what in which order.

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::gate::GatedStore;
use crate::harness::{
    Client, CommitAnswer, LONG_TTL, Opened, PAGE_SIZE, TestCommit, TestServer, committed, page,
    reason,
};

const TTL: Duration = Duration::from_secs(5);
const NAME: &str = "a.db";

impl Client {
    pub fn subscribe(&self, database: &Opened, number: u64, strict: bool) {
        self.send(Request::Subscribe(pb::Subscribe {
            database_id: database.id.clone(),
            known_version: 0,
            strict,
            subscription: number,
            want_page_1: false,
        }));
    }

    /// The head with which a subscription begins, or `None` where it is refused or has ended.
    pub async fn subscribed(&mut self, number: u64) -> Option<u64> {
        match self.news().await {
            News::Subscribed(answer) => {
                assert_eq!(answer.subscription, number);
                answer.accepted.then(|| answer.head.unwrap().version)
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn prepared(&mut self) -> pb::Prepare {
        match self.news().await {
            News::Prepare(prepare) => prepare,
            other => panic!("{other:?}"),
        }
    }

    pub async fn published(&mut self) -> pb::Published {
        match self.news().await {
            News::Published(published) => published,
            other => panic!("{other:?}"),
        }
    }

    pub fn acknowledge(&self, prepare: &pb::Prepare) {
        self.send(Request::PrepareAck(pb::PrepareAck {
            database_id: prepare.database_id.clone(),
            subscription: prepare.subscription,
            version: prepare.version,
        }));
    }

    pub fn unsubscribe(&self, database: &Opened, number: u64) {
        self.send(Request::Unsubscribe(pb::Unsubscribe {
            database_id: database.id.clone(),
            subscription: number,
        }));
    }

    /// Commits while the test goes on.
    pub fn committing(&self, commit: &TestCommit) -> Committing {
        let (mut calls, messages) = (self.calls.clone(), commit.messages(self.session));
        Committing(tokio::spawn(async move {
            let answer = calls.commit(tokio_stream::iter(messages)).await?;
            Ok((answer.into_inner().outcome.unwrap(), Instant::now()))
        }))
    }
}

/// A commit on its way.
pub struct Committing(JoinHandle<Result<(CommitAnswer, Instant), Status>>);

impl Committing {
    /// Also after the server had nothing else to do for a while.
    pub async fn waits(&self) -> bool {
        tokio::time::sleep(Duration::from_millis(50)).await;
        !self.0.is_finished()
    }

    pub async fn answer(self) -> Result<CommitAnswer, Status> {
        self.0.await.unwrap().map(|(answer, _)| answer)
    }

    pub async fn answered_at(self) -> Instant {
        self.0.await.unwrap().unwrap().1
    }
}

/// A database at version 1, its writer, and clients that have it open read-only.
pub struct Scene {
    pub writer: Client,
    pub database: Opened,
    pub epoch: u64,
    pub readers: Vec<Client>,
}

impl Scene {
    pub async fn new(server: &TestServer, readers: usize) -> Self {
        let mut writer = server.client().await;
        let database = writer.open(NAME).await;
        let epoch = writer.acquire(&database).await;
        let first = TestCommit::new(&database, 0, epoch, 1);
        assert_eq!(writer.commit(&first).await.unwrap(), committed(&[1]));
        let mut scene = Self {
            writer,
            database,
            epoch,
            readers: Vec::new(),
        };
        for _ in 0..readers {
            let mut reader = server.client().await;
            let request = reader.open_request(NAME, pb::OpenMode::ReadOnly);
            reader.open_with(request).await.unwrap();
            scene.readers.push(reader);
        }
        scene
    }

    /// All readers are strict subscribers, with subscription 1.
    pub async fn strict(server: &TestServer, readers: usize) -> Self {
        let mut scene = Self::new(server, readers).await;
        for reader in &mut scene.readers {
            reader.subscribe(&scene.database, 1, true);
            assert_eq!(reader.subscribed(1).await, Some(1));
        }
        scene
    }

    pub fn commit(&self, base: u64) -> TestCommit {
        TestCommit::new(&self.database, base, self.epoch, base as u8)
    }
}

#[tokio::test(start_paused = true)]
async fn s2_no_version_is_shown_before_every_strict_subscriber_has_answered() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::strict(&server, 3).await;
    let begun = Instant::now();
    let committing = scene.writer.committing(&scene.commit(1));
    let mut warnings = Vec::new();
    for reader in &mut scene.readers {
        let prepare = reader.prepared().await;
        assert_eq!((prepare.subscription, prepare.version), (1, 2));
        warnings.push(prepare);
    }
    for (answered, prepare) in warnings.iter().enumerate() {
        assert!(committing.waits().await, "{answered} have answered");
        let reader = &mut scene.readers[0];
        assert_eq!(reader.head(&scene.database).await.unwrap(), 1);
        let list = reader.calls.list_databases(pb::ListDatabasesRequest {
            limit: 1,
            ..Default::default()
        });
        let listed = list.await.unwrap().into_inner().databases;
        assert_eq!(listed[0].head.unwrap().version, 1);
        scene.readers[answered].acknowledge(prepare);
    }
    assert_eq!(committing.answer().await.unwrap(), committed(&[2]));
    assert!(begun.elapsed() < TTL, "nobody's window was waited for");
    for reader in &mut scene.readers {
        let published = reader.published().await;
        assert_eq!(published.subscription, 1);
        assert_eq!(
            published.head,
            Some(pb::Snapshot {
                version: 2,
                page_size: PAGE_SIZE,
                page_count: 1
            })
        );
        assert_eq!(
            published.changes,
            Some(pb::Changes {
                all: false,
                pages: vec![1]
            })
        );
    }
}

#[tokio::test(start_paused = true)]
async fn s2_whoever_gives_a_subscription_up_is_not_waited_for() {
    for how in [
        "unsubscribe",
        "close",
        "goodbye",
        "hello",
        "another subscribe",
    ] {
        let server = TestServer::in_process(LONG_TTL).await;
        let mut scene = Scene::strict(&server, 1).await;
        let begun = Instant::now();
        let committing = scene.writer.committing(&scene.commit(1));
        let reader = &mut scene.readers[0];
        reader.prepared().await;
        match how {
            "unsubscribe" => reader.unsubscribe(&scene.database, 1),
            "close" => reader.send(Request::CloseDatabase(pb::CloseDatabase {
                database_id: scene.database.id.clone(),
                open_sequence: 0,
                hot_pages: Vec::new(),
            })),
            "goodbye" => reader.goodbye().await,
            "hello" => assert!(reader.connect().await.resumed),
            _ => reader.subscribe(&scene.database, 2, true),
        }
        assert_eq!(committing.answer().await.unwrap(), committed(&[2]), "{how}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{how}");
        if how == "another subscribe" {
            // In the order of commits (S4): it knows the version already.
            assert_eq!(reader.subscribed(2).await, Some(2));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn s2_a_broken_stream_is_waited_for_until_its_window_is_over() {
    let server = TestServer::in_process(TTL).await;
    let mut scene = Scene::strict(&server, 1).await;
    scene.writer.keep_alive(TTL / 4);
    tokio::time::advance(TTL / 2).await;
    scene.readers[0].heartbeat(Vec::new()).await;
    let trusted_until = Instant::now() + TTL;
    tokio::time::advance(TTL / 4).await;
    scene.readers[0].break_stream();
    let at = scene
        .writer
        .committing(&scene.commit(1))
        .answered_at()
        .await;
    assert!(at >= trusted_until, "{:?} too early", trusted_until - at);
    assert!(at < trusted_until + Duration::from_millis(100));
    let next = Instant::now();
    let at = scene
        .writer
        .committing(&scene.commit(2))
        .answered_at()
        .await;
    assert!(at < next + Duration::from_millis(100));
}

/// It may be trusted by what it was told before the Prepare, not by the heartbeats that it goes on sending (U-4).
#[tokio::test(start_paused = true)]
async fn s2_a_subscriber_that_lives_and_never_answers_delays_one_commit_by_one_ttl() {
    let server = TestServer::in_process(TTL).await;
    let mut scene = Scene::strict(&server, 1).await;
    scene.writer.keep_alive(TTL / 4);
    scene.readers[0].keep_alive(TTL / 4);
    tokio::time::sleep(TTL).await;
    let begun = Instant::now();
    let committing = scene.writer.committing(&scene.commit(1));
    let at = committing.answered_at().await;
    assert!(at > begun + TTL / 2 && at <= begun + TTL + Duration::from_millis(100));
    let begun = Instant::now();
    let at = scene
        .writer
        .committing(&scene.commit(2))
        .answered_at()
        .await;
    assert!(at < begun + Duration::from_millis(100));
    // It is told that it is not waited for any more, and nothing else.
    let mut news = Vec::new();
    let reader = &mut scene.readers[0];
    loop {
        match reader.news().await {
            News::HeartbeatAck(_) if news.len() == 2 => break,
            News::HeartbeatAck(_) => {}
            other => news.push(other),
        }
    }
    assert!(matches!(&news[0], News::Prepare(prepare) if prepare.version == 2));
    assert!(matches!(&news[1], News::Subscribed(end) if !end.accepted && end.subscription == 1));
}

#[tokio::test(start_paused = true)]
async fn the_session_that_commits_is_told_and_not_warned() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::new(&server, 0).await;
    scene.writer.subscribe(&scene.database, 7, true);
    assert_eq!(scene.writer.subscribed(7).await, Some(1));
    let commit = scene.commit(1);
    assert_eq!(scene.writer.commit(&commit).await.unwrap(), committed(&[2]));
    assert_eq!(scene.writer.published().await.head.unwrap().version, 2);
    // Its repetition makes nothing new.
    assert_eq!(scene.writer.commit(&commit).await.unwrap(), committed(&[2]));
    scene.writer.heartbeat(Vec::new()).await;
}

#[tokio::test(start_paused = true)]
async fn s3_a_prepare_of_a_commit_that_is_refused_is_ended() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::strict(&server, 1).await;
    let mut commit = scene.commit(1);
    commit.databases[0].staging_ids = vec![vec![9; 16].into()];
    let committing = scene.writer.committing(&commit);
    let reader = &mut scene.readers[0];
    let prepare = reader.prepared().await;
    reader.acknowledge(&prepare);
    assert_eq!(reason(committing.answer().await), Reason::StagingUnknown);
    let News::PrepareAborted(aborted) = reader.news().await else {
        panic!("the Prepare is not ended");
    };
    assert_eq!((aborted.subscription, aborted.version), (1, 2));
    // It is trusted again: the next commit warns it again.
    let committing = scene.writer.committing(&scene.commit(1));
    let reader = &mut scene.readers[0];
    let prepare = reader.prepared().await;
    assert!(committing.waits().await);
    reader.acknowledge(&prepare);
    assert_eq!(committing.answer().await.unwrap(), committed(&[2]));
}

#[tokio::test(start_paused = true)]
async fn s4_a_subscribe_is_answered_in_the_order_of_commits() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut scene = Scene::new(&server, 1).await;
    store.arrived.acquire().await.unwrap().forget();
    store.gate.forget_permits(usize::MAX);
    let committing = scene.writer.committing(&scene.commit(1));
    store.arrived.acquire().await.unwrap().forget();
    let reader = &mut scene.readers[0];
    reader.subscribe(&scene.database, 1, true);
    reader.heartbeat(Vec::new()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    reader.heartbeat(Vec::new()).await;
    store.gate.add_permits(1);
    assert_eq!(committing.answer().await.unwrap(), committed(&[2]));
    assert_eq!(reader.subscribed(1).await, Some(2));
}

#[tokio::test(start_paused = true)]
async fn s5_a_subscriber_that_does_not_read_loses_its_stream_and_nobody_else_anything() {
    let mut server = TestServer::in_process(LONG_TTL).await;
    // So that the transport takes in little of what is not read.
    server.window = Some(1 << 10);
    let mut scene = Scene::new(&server, 2).await;
    for reader in &mut scene.readers {
        reader.subscribe(&scene.database, 1, false);
        reader.subscribed(1).await;
    }
    // More than the queue holds.
    const COMMITS: u64 = 1200;
    for base in 1..COMMITS {
        let commit = scene.commit(base);
        scene.writer.commit(&commit).await.unwrap();
        let published = scene.readers[1].published().await;
        assert_eq!(published.head.unwrap().version, base + 1);
    }
    let stream = scene.readers[0].stream.as_mut().unwrap();
    let mut heard = 1;
    while let Ok(Some(News::Published(published))) = stream.next().await {
        heard += 1;
        assert_eq!(
            published.head.unwrap().version,
            heard,
            "no gap before the end"
        );
    }
    assert!(heard < COMMITS);
    assert!(scene.readers[0].connect().await.resumed);
}

#[tokio::test(start_paused = true)]
async fn a_commit_to_two_databases_waits_for_the_subscribers_of_both() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::strict(&server, 1).await;
    let second = scene.writer.open("b.db").await;
    let second_epoch = scene.writer.acquire(&second).await;
    let mut other = server.client().await;
    other.open("b.db").await;
    other.subscribe(&second, 1, true);
    assert_eq!(other.subscribed(1).await, Some(0));
    let mut both = scene.commit(1);
    let of_second = TestCommit::new(&second, 0, second_epoch, 1);
    both.databases.extend(of_second.databases);
    both.batches.push(pb::PageBatch {
        database_index: 1,
        pages: vec![page(1, 1)],
    });
    let committing = scene.writer.committing(&both);
    let reader = &mut scene.readers[0];
    let (of_first, of_second) = (reader.prepared().await, other.prepared().await);
    assert_eq!((of_first.version, of_second.version), (2, 1));
    other.acknowledge(&of_second);
    assert!(committing.waits().await);
    assert_eq!(other.head(&second).await.unwrap(), 0);
    reader.acknowledge(&of_first);
    assert_eq!(committing.answer().await.unwrap(), committed(&[2, 1]));
    assert_eq!(reader.published().await.head.unwrap().version, 2);
    assert_eq!(other.published().await.head.unwrap().version, 1);
}

#[tokio::test(start_paused = true)]
async fn two_writers_that_subscribe_to_each_other_do_not_wait_for_each_other() {
    let server = TestServer::in_process(LONG_TTL).await;
    let (mut left, mut right) = (server.client().await, server.client().await);
    let (a, b) = (left.open("a.db").await, right.open("b.db").await);
    left.open("b.db").await;
    right.open("a.db").await;
    let epochs = (left.acquire(&a).await, right.acquire(&b).await);
    left.subscribe(&b, 1, true);
    right.subscribe(&a, 1, true);
    left.subscribed(1).await;
    right.subscribed(1).await;
    let begun = Instant::now();
    for base in 0..20 {
        let of_left = left.committing(&TestCommit::new(&a, base, epochs.0, 1));
        let of_right = right.committing(&TestCommit::new(&b, base, epochs.1, 1));
        let (to_left, to_right) = (left.prepared().await, right.prepared().await);
        left.acknowledge(&to_left);
        right.acknowledge(&to_right);
        assert_eq!(of_left.answer().await.unwrap(), committed(&[base + 1]));
        assert_eq!(of_right.answer().await.unwrap(), committed(&[base + 1]));
        left.published().await;
        right.published().await;
    }
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_client_vanished_while_subscribers_were_asked_goes_on() {
    let server = TestServer::in_process(LONG_TTL).await;
    let mut scene = Scene::strict(&server, 1).await;
    let committing = scene.writer.committing(&scene.commit(1));
    let reader = &mut scene.readers[0];
    let prepare = reader.prepared().await;
    committing.0.abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    reader.acknowledge(&prepare);
    assert_eq!(reader.published().await.head.unwrap().version, 2);
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_may_wait_for_the_lease_of_the_one_that_commits() {
    let server = TestServer::in_process(LONG_TTL).await;
    let scene = Scene::new(&server, 0).await;
    let mut next = server.client().await;
    next.open(NAME).await;
    next.subscribe(&scene.database, 1, true);
    assert_eq!(next.subscribed(1).await, Some(1));
    assert_eq!(next.try_acquire(&scene.database, 0).await, Err(1));
    let committing = scene.writer.committing(&scene.commit(1));
    let prepare = next.prepared().await;
    next.acknowledge(&prepare);
    assert_eq!(committing.answer().await.unwrap(), committed(&[2]));
    next.published().await;
    scene.writer.release(&scene.database, scene.epoch, false);
    let grant = match next.news().await {
        News::LeaseGranted(granted) => granted.grant.unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(grant.head.unwrap().version, 2);
}
