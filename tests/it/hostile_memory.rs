//! P7: what clients can make the server hold is bounded, however many they are and whatever they send, and others are served.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use pagewire_proto::pb;
use pagewire_tests::connection::{assert_sound, open_uri, register, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;
use prost::Message;
use rusqlite::Connection;
use tokio::net::TcpStream;

const MIB: usize = 1 << 20;
/// `memory_bytes` of the server.
const MEMORY: usize = 160 * MIB;
const SETTINGS: &[&str] = &["--memory-mib", "160", "--max-connections", "200"];
/// What a server takes that serves nobody, with what its allocator keeps in each thread.
const BASE: usize = 64 * MIB;
/// How long each attack goes on.
const ATTACK: Duration = Duration::from_secs(12);
/// The victim's statements end within this, long before they would fail (15 s), on two cores that do nothing but attack and are
/// attacked, without optimization.
const IN_TIME: Duration = Duration::from_secs(10);

/// A database of another tenant, in use.
struct Victim {
    connection: Connection,
    /// In a process of its own: it asks the server what is new, and for every page of that.
    reader: Guest,
    rows: i64,
}

impl Victim {
    fn new(server: &PageServer) -> Self {
        register();
        let endpoint = server.endpoint();
        let connection = open_uri(&uri(&endpoint, "victim.db", &[])).expect("open");
        connection
            .execute_batch("CREATE TABLE t(v BLOB)")
            .expect("create");
        let mut reader = Guest::start(&[]);
        reader
            .open("main", &uri(&endpoint, "victim.db", &[]))
            .expect("open");
        Self {
            connection,
            reader,
            rows: 0,
        }
    }

    /// A commit and a read; the slower of the two.
    fn work(&mut self) -> Duration {
        let began = Instant::now();
        self.connection
            .execute("INSERT INTO t VALUES(randomblob(20000))", [])
            .expect("commit");
        let commit = began.elapsed();
        self.rows += 1;
        let began = Instant::now();
        let newest = "SELECT rowid || ':' || length(hex(v)) FROM t ORDER BY rowid DESC LIMIT 1";
        let expected = format!("{}:40000", self.rows);
        assert_eq!(self.reader.ok("main", newest), [expected]);
        commit.max(began.elapsed())
    }
}

/// Attacks while the victim works, and judges.
fn under_attack(server: &PageServer, attack: impl Future<Output = ()> + Send + 'static) {
    let mut victim = Victim::new(server);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let attacking = runtime.spawn(attack);
    let began = Instant::now();
    let (mut most, mut slowest) = (0, Duration::ZERO);
    while began.elapsed() < ATTACK {
        slowest = slowest.max(victim.work());
        most = most.max(server.resident_bytes());
    }
    assert!(
        !attacking.is_finished(),
        "{:?}",
        runtime.block_on(attacking)
    );
    runtime.shutdown_background();
    println!(
        "resident {} MiB at most, slowest statement {slowest:?}, {} statements",
        most / MIB as u64,
        victim.rows
    );
    assert!(most < (MEMORY + BASE) as u64, "{} MiB", most / MIB as u64);
    assert!(slowest < IN_TIME, "{slowest:?}");
    victim.work();
    assert_sound(&victim.connection);
}

/// A connection whose every frame the test decides.
async fn connect(address: &str) -> SendRequest<Bytes> {
    let socket = TcpStream::connect(address).await.expect("connect");
    let (send, connection) = h2::client::handshake(socket).await.expect("handshake");
    tokio::spawn(async move {
        // Ends with the server, or with the test.
        let _ = connection.await;
    });
    send
}

fn call(
    connection: &mut SendRequest<Bytes>,
    method: &str,
    end: bool,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let request = http::Request::post(format!("http://server/pagewire.v1.PageService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("request");
    connection.send_request(request, end)
}

/// As much of the bytes as the server takes.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let capacity = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
        let capacity = capacity.transpose()?.unwrap_or(0);
        if capacity == 0 {
            return Ok(());
        }
        stream.send_data(bytes.split_to(capacity.min(bytes.len())), false)?;
    }
    Ok(())
}

/// A length prefix, and what is sent of the message.
fn begun(claimed: usize, sent: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(sent + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(claimed).expect("four bytes"));
    // A field that nobody knows, as long as the message.
    bytes.put_slice(&[0xfa, 0x7f, 0xff, 0xff, 0x7f]);
    bytes.resize(sent + 5, 7);
    bytes.freeze()
}

fn message(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).expect("four bytes"));
    message.encode(&mut bytes).expect("encode");
    bytes.freeze()
}

const METHODS: &[&str] = &[
    "Commit",
    "StagePages",
    "Session",
    "ReadPages",
    "ResolveCommit",
    "OpenDatabase",
    "BeginSnapshot",
];

/// 150 connections with 100 calls each, which claim 2 MiB, or a gigabyte, and send all but the last byte of 2 MiB: 30 GB.
#[test]
fn p7_half_sent_messages_by_the_thousand_are_bounded_and_others_are_served() {
    let server = PageServer::start("memory", SETTINGS);
    let address = server.address().to_owned();
    let half = begun(2 * MIB, 2 * MIB - 1);
    let gigabyte = begun(1 << 30, 2 * MIB - 1);
    let taken = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let attack = {
        let (taken, stop) = (Arc::clone(&taken), Arc::clone(&stop));
        async move {
            for index in 0..150 {
                let mut connection = connect(&address).await;
                for number in 0..100 {
                    let (half, gigabyte) = (half.clone(), gigabyte.clone());
                    let (taken, stop) = (Arc::clone(&taken), Arc::clone(&stop));
                    let mut connection = connection.clone();
                    tokio::spawn(async move {
                        while !stop.load(Ordering::Relaxed) {
                            let Ok(ready) = connection.clone().ready().await else {
                                return;
                            };
                            connection = ready;
                            let method = METHODS[(index + number) % METHODS.len()];
                            let Ok((answer, mut stream)) = call(&mut connection, method, false)
                            else {
                                return;
                            };
                            let bytes = if number % 5 == 0 { &gigabyte } else { &half };
                            if send(&mut stream, bytes.clone()).await.is_ok() {
                                taken.fetch_add(1, Ordering::Relaxed);
                            }
                            // Held until the server ends it.
                            let _ = answer.await;
                        }
                    });
                }
                connection = connection.ready().await.expect("connection");
                drop(connection);
            }
            std::future::pending().await
        }
    };
    under_attack(&server, attack);
    stop.store(true, Ordering::Relaxed);
    let taken = taken.load(Ordering::Relaxed);
    assert!(
        taken > 20,
        "only {taken} messages were sent as far: no attack"
    );
}

/// 60 connections that ask for 4 MiB a hundred times each, and take nothing of it: 24 GB, twice that with what was read.
#[test]
fn p7_answers_that_nobody_takes_are_bounded_and_others_are_served() {
    let server = PageServer::start("memory", SETTINGS);
    register();
    let connection = open_uri(&uri(&server.endpoint(), "large.db", &[])).expect("open");
    connection
        .execute_batch("CREATE TABLE t(v BLOB); INSERT INTO t VALUES(zeroblob(6000000))")
        .expect("fill");
    connection
        .execute("UPDATE t SET v = randomblob(6000000)", [])
        .expect("fill");
    drop(connection);
    let address = server.address().to_owned();
    let attack = async move {
        for index in 0..60u8 {
            let address = address.clone();
            tokio::spawn(async move {
                take_nothing(&address, index).await.expect("attack");
            });
        }
        std::future::pending().await
    };
    under_attack(&server, attack);
}

async fn take_nothing(address: &str, index: u8) -> Result<(), h2::Error> {
    let session_id = Bytes::from(vec![index + 1; 16]);
    let mut connection = connect(address).await;
    let (_news, mut session) = call(&mut connection, "Session", false)?;
    let hello = |message_| pb::SessionRequest {
        message: Some(message_),
    };
    let first = hello(pb::session_request::Message::Hello(pb::Hello {
        protocol_major: 1,
        session_id: session_id.clone(),
        ..Default::default()
    }));
    send(&mut session, message(&first)).await?;
    let open = pb::OpenDatabaseRequest {
        session_id: session_id.clone(),
        name: "large.db".into(),
        mode: pb::OpenMode::ReadOnly.into(),
        ..Default::default()
    };
    let mut opened: pb::OpenDatabaseResponse =
        unary(&mut connection, "OpenDatabase", &open).await?;
    let read = pb::ReadPagesRequest {
        session_id,
        database_id: std::mem::take(&mut opened.database_id),
        version: opened.head.expect("head").version,
        pages: (1..=1024).collect(),
    };
    let mut held = Vec::new();
    for number in 0.. {
        if held.len() < 100 {
            let mut ready = connection.clone().ready().await?;
            let (answer, mut stream) = call(&mut ready, "ReadPages", false)?;
            send(&mut stream, message(&read)).await?;
            stream.send_data(Bytes::new(), true)?;
            // Never looked at: what comes stays where it is.
            held.push((answer, stream));
        } else {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        if number % 50 == 0 {
            let beat = hello(pb::session_request::Message::Heartbeat(pb::Heartbeat {
                sequence: number,
                ..Default::default()
            }));
            send(&mut session, message(&beat)).await?;
        }
    }
    Ok(())
}

async fn unary<Answer: Message + Default>(
    connection: &mut SendRequest<Bytes>,
    method: &str,
    request: &impl Message,
) -> Result<Answer, h2::Error> {
    let mut ready = connection.clone().ready().await?;
    let (answer, mut stream) = call(&mut ready, method, false)?;
    send(&mut stream, message(request)).await?;
    stream.send_data(Bytes::new(), true)?;
    let mut body: RecvStream = answer.await?.into_body();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(Answer::decode(&bytes[5..]).expect("an answer"))
}
