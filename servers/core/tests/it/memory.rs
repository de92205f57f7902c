//! What a call may make the server hold, frame by frame: the invariants M-1 to M-6 as a peer sees them.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use pagewire_proto::status::{REASON_KEY, Reason};
use pagewire_proto::{CommitId, SessionId, pb};
use pagewire_server::{Server, Settings};
use prost::Message as _;
use tokio::time::{Duration, Instant};

use crate::harness::{self, LONG_TTL, TestCommit, memory, page_of};

const MIB: usize = 1 << 20;

/// Four pools of 8 MiB, of which a connection may have 2 MiB.
async fn server() -> Server {
    server_with(32 * MIB).await
}

/// With so many bytes in the four pools together.
async fn server_with(shared_bytes: usize) -> Server {
    let settings = Settings {
        lease_ttl: LONG_TTL,
        max_connections: 4,
        memory_bytes: 4 * Settings::CONNECTION_BYTES + shared_bytes,
        ..Settings::default()
    };
    let server = Server::builder(memory()).settings(settings);
    server.build().await.unwrap()
}

/// A connection whose every frame the test decides; the task ends with it.
async fn connect(server: &Server) -> (SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    connect_with(server, &h2::client::Builder::new()).await
}

async fn connect_with(
    server: &Server,
    http2: &h2::client::Builder,
) -> (SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(server.clone().serve_stream(far));
    let (send, connection) = http2.handshake(near).await.unwrap();
    let ended = tokio::spawn(async move {
        let _ = connection.await;
    });
    (send, ended)
}

struct Call {
    answer: ResponseFuture,
    body: SendStream<Bytes>,
}

impl Call {
    async fn begin(connection: &SendRequest<Bytes>, method: &str) -> Self {
        let mut connection = connection.clone().ready().await.unwrap();
        let uri = format!("http://server/pagewire.v1.PageService/{method}");
        let request = http::Request::post(uri)
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (answer, body) = connection.send_request(request, false).unwrap();
        Self { answer, body }
    }

    async fn send(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            self.body.reserve_capacity(bytes.len());
            let capacity = std::future::poll_fn(|context| self.body.poll_capacity(context)).await;
            let part = capacity.unwrap().unwrap().min(bytes.len());
            self.body.send_data(bytes.split_to(part), false).unwrap();
        }
    }

    /// The prefix of a message, and so much of it.
    async fn send_part(&mut self, length: usize, sent: usize) {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(length as u32);
        // One field that nobody knows, to the end of the message.
        let rest = length - 5;
        bytes.put_slice(&[
            0xfa,
            0x7f,
            rest as u8 | 0x80,
            (rest >> 7) as u8 | 0x80,
            (rest >> 14) as u8,
        ]);
        bytes.resize(5 + sent.max(5), 7);
        self.send(bytes.freeze()).await;
    }

    /// The reason of a refusal.
    async fn refused(self) -> Reason {
        let answer = self.answer.await.unwrap();
        let reason = answer.headers().get(REASON_KEY).expect("not refused");
        let reason = reason.to_str().unwrap();
        let known = Reason::ALL.iter().find(|known| known.as_str() == reason);
        *known.unwrap()
    }
}

async fn unary<Answer: prost::Message + Default>(
    connection: &SendRequest<Bytes>,
    method: &str,
    request: &impl prost::Message,
) -> Answer {
    let mut call = Call::begin(connection, method).await;
    call.send(framed(request)).await;
    call.body.send_data(Bytes::new(), true).unwrap();
    let mut body: RecvStream = call.answer.await.unwrap().into_body();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    Answer::decode(&bytes[5..]).unwrap()
}

fn framed(request: &impl prost::Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(request.encoded_len() as u32);
    request.encode(&mut bytes).unwrap();
    bytes.freeze()
}

#[tokio::test(start_paused = true)]
async fn m2_a_message_without_memory_waits_and_is_told_to_come_again() {
    let server = server().await;
    let (connection, _) = connect(&server).await;
    let mut first = Call::begin(&connection, "Commit").await;
    first.send_part(2 * MIB, MIB).await;
    let begun = Instant::now();
    let mut second = Call::begin(&connection, "ReadPages").await;
    second.send_part(MIB, 1000).await;
    assert_eq!(second.refused().await, Reason::Overloaded);
    assert!(begun.elapsed() >= Duration::from_secs(5));
    assert!(begun.elapsed() < Duration::from_secs(6));
    // A small one, and one on another connection, find what is kept for them.
    let request = pb::ListDatabasesRequest {
        limit: 1,
        ..Default::default()
    };
    let _: pb::ListDatabasesResponse = unary(&connection, "ListDatabases", &request).await;
    let (other, _) = connect(&server).await;
    let mut third = Call::begin(&other, "ReadPages").await;
    third.send_part(MIB, MIB).await;
    third.body.send_data(Bytes::new(), true).unwrap();
    assert_eq!(third.refused().await, Reason::Invalid);
}

/// Half a message could be held for ever: only uploads had a limit.
#[tokio::test(start_paused = true)]
async fn m5_a_message_that_stands_still_ends_its_call_and_its_memory_comes_back() {
    let server = server().await;
    let (connection, _) = connect(&server).await;
    for method in ["ReadPages", "Commit", "StagePages", "OpenDatabase"] {
        for sent in [0, 5, MIB, 2 * MIB] {
            if sent == 2 * MIB && method != "ReadPages" && method != "OpenDatabase" {
                // Is refused for what it is.
                continue;
            }
            // Also one that is complete, and whose call is not ended.
            let begun = Instant::now();
            let mut call = Call::begin(&connection, method).await;
            if sent > 0 {
                call.send_part(2 * MIB, sent).await;
            }
            assert_eq!(call.refused().await, Reason::Unavailable, "{method}");
            assert!(begun.elapsed() >= Duration::from_secs(15), "{method}");
            assert!(begun.elapsed() < Duration::from_secs(16), "{method}");
        }
    }
}

/// The stream of a session on a connection of its own making, and a database that is open in it.
struct RawSession {
    calls: Call,
    news: RecvStream,
    came: BytesMut,
    session_id: Bytes,
    database_id: Bytes,
}

impl RawSession {
    async fn begin(connection: &SendRequest<Bytes>) -> Self {
        let session_id = Bytes::from(vec![1; 16]);
        let mut calls = Call::begin(connection, "Session").await;
        let hello = pb::session_request::Message::Hello(pb::Hello {
            protocol_major: 1,
            session_id: session_id.clone(),
            ..Default::default()
        });
        calls.send(framed(&said(hello))).await;
        let news = (&mut calls.answer).await.unwrap().into_body();
        let open = pb::OpenDatabaseRequest {
            session_id: session_id.clone(),
            name: "a.db".into(),
            mode: pb::OpenMode::Create.into(),
            ..Default::default()
        };
        let opened: pb::OpenDatabaseResponse = unary(connection, "OpenDatabase", &open).await;
        let mut session = Self {
            calls,
            news,
            came: BytesMut::new(),
            session_id,
            database_id: opened.database_id,
        };
        let welcome = session.next().await;
        assert!(matches!(welcome, pb::session_response::Message::Welcome(_)));
        session
    }

    /// The next news.
    async fn next(&mut self) -> pb::session_response::Message {
        loop {
            if let [_, length @ ..] = &self.came[..]
                && let Some(length) = length.first_chunk()
            {
                let end = 5 + u32::from_be_bytes(*length) as usize;
                if self.came.len() >= end {
                    let message = self.came.split_to(end);
                    let response = pb::SessionResponse::decode(&message[5..]).unwrap();
                    return response.message.unwrap();
                }
            }
            let chunk = self.news.data().await.expect("the stream ended");
            let chunk = chunk.expect("the stream broke");
            let flow = self.news.flow_control();
            flow.release_capacity(chunk.len()).unwrap();
            self.came.extend_from_slice(&chunk);
        }
    }

    async fn beat(&mut self, sequence: u64) {
        let heartbeat = pb::session_request::Message::Heartbeat(pb::Heartbeat {
            sequence,
            ..Default::default()
        });
        self.calls.send(framed(&said(heartbeat))).await;
    }

    /// Version 1: one page of the largest size.
    async fn commit_one_page(&self, connection: &SendRequest<Bytes>) {
        const LARGEST: u32 = 65_536;
        let acquire = pb::AcquireLeaseRequest {
            session_id: self.session_id.clone(),
            database_id: self.database_id.clone(),
            ..Default::default()
        };
        let acquired = unary(connection, "AcquireLease", &acquire).await;
        let epoch = harness::acquired(acquired).unwrap().epoch;
        let commit = TestCommit {
            id: CommitId::random().unwrap(),
            databases: vec![pb::CommitDatabase {
                database_id: self.database_id.clone(),
                epoch,
                page_size: LARGEST,
                page_count: 1,
                ..Default::default()
            }],
            batches: vec![pb::PageBatch {
                database_index: 0,
                pages: vec![page_of(1, vec![7; LARGEST as usize].into())],
            }],
        };
        let mut call = Call::begin(connection, "Commit").await;
        for message in commit.messages(SessionId::from_bytes([1; 16])) {
            call.send(framed(&message)).await;
        }
        call.body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(call.answer.await.unwrap().headers().get(REASON_KEY), None);
    }

    /// 1024 empty pages of a version that is empty: more than 10 KiB.
    fn read(&self) -> pb::ReadPagesRequest {
        pb::ReadPagesRequest {
            session_id: self.session_id.clone(),
            database_id: self.database_id.clone(),
            version: 0,
            pages: (1..=1024).collect(),
        }
    }
}

fn said(message: pb::session_request::Message) -> pb::SessionRequest {
    pb::SessionRequest {
        message: Some(message),
    }
}

/// News were charged to the part of the answers: with that taken, by reads in flight, the stream of the reader's own session broke,
/// and with it went its leases.
#[tokio::test(start_paused = true)]
async fn m6_answers_that_are_not_taken_break_no_session_stream_and_keep_no_small_answer_back() {
    // A page of the largest size, as read and as sent, beside the rest of an answer: so much is kept for a connection.
    const ANSWER: usize = 144 << 10;
    const ANSWERS: usize = 15;
    // A quarter of a quarter: nothing is left between the answers.
    let server = server_with(16 * ANSWERS * ANSWER).await;
    let mut narrow = h2::client::Builder::new();
    narrow
        .initial_window_size(1 << 10)
        .initial_connection_window_size(16 << 20);
    let (connection, _) = connect_with(&server, &narrow).await;
    let mut session = RawSession::begin(&connection).await;
    session.commit_one_page(&connection).await;
    let read = pb::ReadPagesRequest {
        version: 1,
        pages: vec![1],
        ..session.read()
    };
    let mut held = Vec::new();
    loop {
        let mut call = Call::begin(&connection, "ReadPages").await;
        call.send(framed(&read)).await;
        call.body.send_data(Bytes::new(), true).unwrap();
        let answer = (&mut call.answer).await.unwrap();
        if let Some(reason) = answer.headers().get(REASON_KEY) {
            assert_eq!(reason, Reason::Overloaded.as_str());
            break;
        }
        held.push((call, answer));
    }
    assert_eq!(held.len(), ANSWERS + 1, "one of its own, and its part");
    for sequence in 1..=300 {
        session.beat(sequence).await;
        let acknowledged = session.next().await;
        let expected = pb::HeartbeatAck { sequence };
        assert_eq!(
            acknowledged,
            pb::session_response::Message::HeartbeatAck(expected)
        );
    }
    let begin = pb::BeginSnapshotRequest {
        session_id: session.session_id.clone(),
        database_id: session.database_id.clone(),
        known_version: 0,
        want_page_1: false,
    };
    let begun: pb::BeginSnapshotResponse = unary(&connection, "BeginSnapshot", &begin).await;
    assert_eq!(begun.head.unwrap().version, 1);
}

/// What is not read is bounded all the same: by the floor of news, and the part of the pool.
#[tokio::test(start_paused = true)]
async fn m6_a_client_that_takes_no_news_loses_its_stream() {
    let server = server().await;
    let mut narrow = h2::client::Builder::new();
    narrow.initial_window_size(1 << 10);
    let (connection, _) = connect_with(&server, &narrow).await;
    let mut session = RawSession::begin(&connection).await;
    for sequence in 1..=5000 {
        let heartbeat = pb::session_request::Message::Heartbeat(pb::Heartbeat {
            sequence,
            ..Default::default()
        });
        let sent = session
            .calls
            .body
            .send_data(framed(&said(heartbeat)), false);
        if sent.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut heard = 0;
    while let Some(Ok(chunk)) = session.news.data().await {
        heard += chunk.len();
        session
            .news
            .flow_control()
            .release_capacity(chunk.len())
            .unwrap();
    }
    assert!(heard < 5000 * 9, "{heard} bytes, all of it");
}

#[tokio::test(start_paused = true)]
async fn m5_a_client_that_does_not_take_its_answers_loses_its_connection() {
    let server = server().await;
    let (writing, _) = connect(&server).await;
    let session = RawSession::begin(&writing).await;
    let list = pb::ListDatabasesRequest {
        limit: 1,
        ..Default::default()
    };
    let (taking, _) = connect(&server).await;
    let (stuck, mut lost) = connect(&server).await;
    // More than the 64 KiB that a client without a word about windows lets come.
    let read = session.read();
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut call = Call::begin(&stuck, "ReadPages").await;
        call.send(framed(&read)).await;
        call.body.send_data(Bytes::new(), true).unwrap();
        held.push(call.answer.await.unwrap());
    }
    let begun = Instant::now();
    tokio::select! {
        _ = &mut lost => {}
        () = tokio::time::sleep(Duration::from_secs(100)) => panic!("the connection lives"),
    }
    assert!(begun.elapsed() > Duration::from_secs(55));
    let _: pb::ListDatabasesResponse = unary(&taking, "ListDatabases", &list).await;
}
