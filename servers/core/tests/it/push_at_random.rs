//! P4 with readers that trust their subscriptions: no transaction begins on version n-1 after anybody was shown version n.
//!
//! Writers commit; readers subscribe, begin, are slow to read their stream, forget to answer, lose their stream, lapse. A reader
//! keeps exactly the state of the client in `docs/versions.md`. Time is paused, so minutes take seconds. `SEED=n` repeats a run.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use tokio::time::Instant;

use crate::harness::{Client, CommitAnswer, Opened, TestCommit, TestServer};

const TTL: Duration = Duration::from_secs(5);
/// What a client takes off its window.
const MARGIN: Duration = Duration::from_millis(200);
const NAME: &str = "a.db";
const READERS: u64 = 5;
const WRITERS: u64 = 2;
const COMMITS: u64 = 60;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// What all know, beside the server.
#[derive(Default)]
struct World {
    /// The newest version that anybody was shown.
    shown: AtomicU64,
    commits: AtomicU64,
    begun_by_trust: AtomicU64,
    done: AtomicBool,
}

impl World {
    fn show(&self, version: u64) {
        self.shown.fetch_max(version, Ordering::SeqCst);
    }
}

/// The state of a strict subscription at the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    None,
    Asked,
    Trusting { known: u64 },
    Warned,
}

struct Reader {
    client: Client,
    database: Opened,
    number: u64,
    state: State,
    heartbeats: HashMap<u64, Instant>,
    sequence: u64,
    /// When the last acknowledged heartbeat, or Hello, was sent.
    acknowledged: Instant,
}

impl Reader {
    async fn new(server: &TestServer) -> Self {
        let acknowledged = Instant::now();
        let mut client = server.client().await;
        let request = client.open_request(NAME, pb::OpenMode::ReadOnly);
        let database = client.open_with(request).await.unwrap();
        Self {
            client,
            database,
            number: 0,
            state: State::None,
            heartbeats: HashMap::new(),
            sequence: 0,
            acknowledged,
        }
    }

    fn window_is_open(&self) -> bool {
        Instant::now() < self.acknowledged + TTL - MARGIN
    }

    fn send(&self, message: Request) {
        if let Some(stream) = &self.client.stream {
            // The server may have ended it.
            let _ = stream.outbound.send(pb::SessionRequest {
                message: Some(message),
            });
        }
    }

    /// A transaction begins: by trust where that is allowed. False where the session has lapsed.
    async fn begin(&mut self, world: &World) -> bool {
        let must_see = world.shown.load(Ordering::SeqCst);
        let version = match self.state {
            State::Trusting { known } if self.window_is_open() => {
                assert!(
                    known >= must_see,
                    "begins by trust at {known} after {must_see} was shown"
                );
                world.begun_by_trust.fetch_add(1, Ordering::Relaxed);
                known
            }
            _ => match self.client.head(&self.database).await {
                Ok(head) => head,
                Err(_) => return false,
            },
        };
        assert!(version >= must_see, "{version} after {must_see}");
        world.show(version);
        true
    }

    /// Reads what has come, or one message of it.
    async fn listen(&mut self, random: &mut Random) -> bool {
        while let Some(stream) = &mut self.client.stream {
            let message = match tokio::time::timeout(
                Duration::from_millis(1),
                stream.inbound.message(),
            )
            .await
            {
                Err(_) => return true,
                Ok(Ok(Some(message))) => message.message.unwrap(),
                Ok(_) => return false,
            };
            self.take(message, random);
            if random.one_in(3) {
                return true;
            }
        }
        false
    }

    fn take(&mut self, news: News, random: &mut Random) {
        match news {
            News::HeartbeatAck(ack) => {
                let sent = self.heartbeats.remove(&ack.sequence).unwrap();
                self.acknowledged = self.acknowledged.max(sent);
            }
            News::Subscribed(answer) if answer.subscription == self.number => {
                self.state = match answer.accepted {
                    true => State::Trusting {
                        known: answer.head.unwrap().version,
                    },
                    false => State::None,
                };
            }
            News::Prepare(prepare)
                if prepare.subscription != self.number || self.state == State::None =>
            {
                // Of one that has ended: answered all the same (U-6).
                self.send(Request::Unsubscribe(pb::Unsubscribe {
                    database_id: prepare.database_id,
                    subscription: prepare.subscription,
                }));
            }
            News::Prepare(prepare) => {
                assert!(matches!(self.state, State::Trusting { .. }), "warned twice");
                self.state = State::Warned;
                match random.below(20) {
                    0 => {}
                    1 => {
                        self.send(Request::Unsubscribe(pb::Unsubscribe {
                            database_id: self.database.id.clone(),
                            subscription: self.number,
                        }));
                        self.state = State::None;
                    }
                    _ => self.send(Request::PrepareAck(pb::PrepareAck {
                        database_id: prepare.database_id,
                        subscription: prepare.subscription,
                        version: prepare.version,
                    })),
                }
            }
            News::Published(published) if published.subscription == self.number => {
                assert_ne!(self.state, State::Asked);
                if self.state != State::None {
                    self.state = State::Trusting {
                        known: published.head.unwrap().version,
                    };
                }
            }
            News::PrepareAborted(_) => panic!("no commit is refused here"),
            // Of a subscription before the present one.
            News::Subscribed(_) | News::Published(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn heartbeat(&mut self) {
        self.sequence += 1;
        self.heartbeats.insert(self.sequence, Instant::now());
        self.send(Request::Heartbeat(pb::Heartbeat {
            sequence: self.sequence,
            ..Default::default()
        }));
    }

    /// A new stream, after the old one broke or in its place. False where the session has lapsed meanwhile.
    async fn reconnect(&mut self) -> bool {
        self.state = State::None;
        self.heartbeats.clear();
        let sent = Instant::now();
        let resumed = self.client.connect().await.resumed;
        self.acknowledged = sent;
        resumed
    }

    /// One thing that a client does. False where a new session is needed.
    async fn step(&mut self, world: &World, random: &mut Random) -> bool {
        match random.below(12) {
            0..=4 => self.begin(world).await,
            5 | 6 => self.listen(random).await || self.reconnect().await,
            7 => {
                if self.client.stream.is_some() {
                    self.heartbeat();
                }
                true
            }
            8 | 9 => {
                if self.state == State::None && self.client.stream.is_some() {
                    self.number += 1;
                    self.send(Request::Subscribe(pb::Subscribe {
                        database_id: self.database.id.clone(),
                        known_version: 0,
                        strict: true,
                        subscription: self.number,
                        want_page_1: false,
                    }));
                    self.state = State::Asked;
                }
                true
            }
            10 => {
                // Rarely so long that the window ends.
                let most = if random.one_in(10) { 7000 } else { 300 };
                tokio::time::sleep(Duration::from_millis(random.below(most))).await;
                true
            }
            _ if random.one_in(15) => {
                self.client.break_stream();
                true
            }
            _ => true,
        }
    }
}

async fn read(server: Arc<TestServer>, world: Arc<World>, mut random: Random) {
    while !world.done.load(Ordering::Relaxed) {
        let mut reader = Reader::new(&server).await;
        while reader.step(&world, &mut random).await {
            tokio::time::sleep(Duration::from_millis(random.below(60))).await;
            if world.done.load(Ordering::Relaxed) {
                break;
            }
        }
    }
}

async fn write(server: Arc<TestServer>, world: Arc<World>, mut random: Random) {
    let mut client = server.client().await;
    client.keep_alive(TTL / 4);
    let database = client.open(NAME).await;
    while world.commits.load(Ordering::SeqCst) < COMMITS {
        let Ok(grant) = client.try_acquire(&database, 1000).await else {
            continue;
        };
        let mut head = grant.head.unwrap().version;
        assert!(head >= world.shown.load(Ordering::SeqCst));
        world.show(head);
        for _ in 0..=random.below(3) {
            let pause = random.below(400);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let commit = TestCommit::new(&database, head, grant.epoch, head as u8);
            let answer = client.commit(&commit).await.unwrap();
            let CommitAnswer::Committed(made) = answer else {
                panic!("{answer:?}");
            };
            head = made.versions[0];
            world.show(head);
            world.commits.fetch_add(1, Ordering::SeqCst);
        }
        client.release(&database, grant.epoch, false);
    }
    world.done.store(true, Ordering::Relaxed);
}

#[tokio::test(start_paused = true)]
#[expect(
    clippy::disallowed_methods,
    reason = "the seed of one run, to see it again"
)]
async fn p4_no_one_begins_by_trust_before_what_anyone_was_shown() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=2).collect(),
    };
    for seed in seeds {
        println!("SEED={seed}");
        let server = Arc::new(TestServer::in_process(TTL).await);
        let world = Arc::new(World::default());
        {
            let mut first = server.client().await;
            let database = first.open(NAME).await;
            let epoch = first.acquire(&database).await;
            let commit = TestCommit::new(&database, 0, epoch, 1);
            first.commit(&commit).await.unwrap();
            world.show(1);
            first.goodbye().await;
        }
        let mut tasks = Vec::new();
        for n in 0..READERS + WRITERS {
            let random = Random(seed * 1_000_003 + n);
            let (server, world) = (Arc::clone(&server), Arc::clone(&world));
            tasks.push(match n < WRITERS {
                true => tokio::spawn(write(server, world, random)),
                false => tokio::spawn(read(server, world, random)),
            });
        }
        for task in tasks {
            task.await.unwrap();
        }
        let by_trust = world.begun_by_trust.load(Ordering::Relaxed);
        println!("{by_trust} transactions began by trust");
        assert!(by_trust > COMMITS, "{by_trust}: the test shows nothing");
    }
}
