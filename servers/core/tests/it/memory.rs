//! What a call may make the server hold, frame by frame: the invariants M-1 to M-5 as a peer sees them.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use pagewire_proto::pb;
use pagewire_proto::status::{REASON_KEY, Reason};
use pagewire_server::{Server, Settings};
use tokio::time::{Duration, Instant};

use crate::harness::{LONG_TTL, memory};

const MIB: usize = 1 << 20;

/// Four pools of 8 MiB, of which a connection may have 2 MiB.
async fn server() -> Server {
    let settings = Settings {
        lease_ttl: LONG_TTL,
        max_connections: 4,
        memory_bytes: 4 * Settings::CONNECTION_BYTES + 32 * MIB,
        ..Settings::default()
    };
    let server = Server::builder(memory()).settings(settings);
    server.build().await.unwrap()
}

/// A connection whose every frame the test decides; the task ends with it.
async fn connect(server: &Server) -> (SendRequest<Bytes>, tokio::task::JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    tokio::spawn(server.clone().serve_stream(far));
    let (send, connection) = h2::client::handshake(near).await.unwrap();
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

#[tokio::test(start_paused = true)]
async fn m5_a_client_that_does_not_take_its_answers_loses_its_connection() {
    let server = server().await;
    let (writing, _) = connect(&server).await;
    let session_id = Bytes::from(vec![1; 16]);
    let mut session = Call::begin(&writing, "Session").await;
    let hello = pb::session_request::Message::Hello(pb::Hello {
        protocol_major: 1,
        session_id: session_id.clone(),
        ..Default::default()
    });
    let hello = pb::SessionRequest {
        message: Some(hello),
    };
    session.send(framed(&hello)).await;
    let open = pb::OpenDatabaseRequest {
        session_id: session_id.clone(),
        name: "a.db".into(),
        mode: pb::OpenMode::Create.into(),
        ..Default::default()
    };
    let opened: pb::OpenDatabaseResponse = unary(&writing, "OpenDatabase", &open).await;
    let list = pb::ListDatabasesRequest {
        limit: 1,
        ..Default::default()
    };
    let (taking, _) = connect(&server).await;
    let (stuck, mut lost) = connect(&server).await;
    // More than the 64 KiB that a client without a word about windows lets come: 200 empty pages of a version that is empty.
    let read = pb::ReadPagesRequest {
        session_id,
        database_id: opened.database_id,
        version: 0,
        pages: (1..=1024).collect(),
    };
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
