//! Sessions: beginning, resuming, lapsing, and how many there may be.

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;
use pagewire_proto::{SessionId, limits};
use pagewire_server::Settings;
use tokio::time::Instant;

use crate::harness::{LONG_TTL, Stream, TestServer, reason};

const TTL: Duration = Duration::from_secs(5);

#[tokio::test]
async fn welcome_says_what_the_server_accepts_and_what_the_store_can_do() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    client.goodbye().await;
    let welcome = client.connect().await;
    assert!(!welcome.resumed, "goodbye ended the session");
    assert_eq!(welcome.protocol_major, 1);
    assert_eq!(welcome.incarnation.len(), 16);
    assert_eq!(welcome.lease_ttl_ms, 30_000);
    assert_eq!(
        welcome.limits.unwrap().max_read_pages as usize,
        limits::MAX_READ_PAGES
    );
    let store = welcome.store.unwrap();
    assert_eq!(
        (store.store_name.as_str(), store.durable),
        ("memory", false)
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_overtakes_its_hello_waits_for_it() {
    let server = TestServer::in_process(TTL).await;
    let session = SessionId::random().unwrap();
    let request = pb::OpenDatabaseRequest {
        session_id: session.to_wire(),
        name: "a.db".into(),
        mode: pb::OpenMode::Create.into(),
        ..Default::default()
    };
    let mut calls = server.calls().await;
    let early = tokio::spawn({
        let (mut calls, request) = (calls.clone(), request.clone());
        async move { calls.open_database(request).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!early.is_finished());
    let stream = Stream::begin(&mut calls).await;
    stream.send(Request::Hello(pb::Hello {
        protocol_major: 1,
        session_id: session.to_wire(),
        ..Default::default()
    }));
    assert!(early.await.unwrap().is_ok());

    let begun = Instant::now();
    let unknown = pb::OpenDatabaseRequest {
        session_id: SessionId::random().unwrap().to_wire(),
        ..request
    };
    assert_eq!(
        reason(calls.open_database(unknown).await),
        Reason::SessionUnknown
    );
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_a_good_hello_is_refused() {
    let server = TestServer::start(LONG_TTL).await;
    let client = server.client().await;
    let mut calls = server.calls().await;
    let hello = client.hello();
    let cases = [
        (
            Request::Heartbeat(pb::Heartbeat::default()),
            Reason::Invalid,
        ),
        (
            Request::Hello(pb::Hello {
                protocol_major: 2,
                ..hello.clone()
            }),
            Reason::ProtocolVersion,
        ),
        (
            Request::Hello(pb::Hello {
                session_id: vec![1; 15].into(),
                ..hello.clone()
            }),
            Reason::Invalid,
        ),
        (
            Request::Hello(pb::Hello {
                client_name: "x".repeat(129),
                ..hello.clone()
            }),
            Reason::Invalid,
        ),
    ];
    for (first, expected) in cases {
        let mut stream = Stream::begin(&mut calls).await;
        stream.send(first);
        assert_eq!(reason(stream.next().await), expected);
    }
    let mut stream = Stream::begin(&mut calls).await;
    stream.send(Request::Hello(pb::Hello {
        protocol_major: 7,
        protocol_minor: 3,
        ..hello
    }));
    let message = stream.next().await.unwrap_err().message().to_owned();
    assert!(
        message.contains("7.3") && message.contains("1.0"),
        "{message}"
    );
}

#[tokio::test]
async fn a_second_stream_replaces_the_first() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let mut first = client.stream.take().unwrap();
    assert!(client.connect().await.resumed);
    assert_eq!(first.next().await.unwrap(), None);
    client.heartbeat(Vec::new()).await;
}

#[tokio::test(start_paused = true)]
async fn heartbeats_keep_a_session_and_other_calls_do_not() {
    let server = TestServer::in_process(TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    for _ in 0..10 {
        tokio::time::sleep(TTL / 3).await;
        client.heartbeat(Vec::new()).await;
    }
    let heard = Instant::now();
    while heard.elapsed() < TTL - Duration::from_millis(600) {
        client.head(&database).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(reason(client.head(&database).await), Reason::SessionUnknown);
    let welcome = client.connect().await;
    assert!(!welcome.resumed);
    assert_eq!(
        reason(client.head(&database).await),
        Reason::DatabaseNotOpen
    );
}

#[tokio::test]
<<<<<<< HEAD
async fn a_database_of_another_session_is_not_open_in_this_one() {
    let server = TestServer::start(LONG_TTL).await;
    let mut owner = server.client().await;
    let database = owner.open("a.db").await;
    let epoch = owner.acquire(&database).await;
    let commit = TestCommit::new(&database, 0, epoch, 1);
    owner.commit(&commit).await.unwrap();

    let mut other = server.client().await;
    assert_eq!(reason(other.head(&database).await), Reason::DatabaseNotOpen);
    assert_eq!(
        reason(other.read(&database, 1, &[1]).await),
        Reason::DatabaseNotOpen
    );
    let request = other.acquire_request(&database, 0);
    assert_eq!(
        reason(other.calls.acquire_lease(request).await),
        Reason::DatabaseNotOpen
    );
    assert_eq!(reason(other.commit(&commit).await), Reason::DatabaseNotOpen);
    let request = pb::ResolveCommitRequest {
        session_id: other.session.to_wire(),
        commit_id: commit.id.to_wire(),
        participants: vec![pb::CommitParticipant {
            database_id: database.id.clone(),
            base_version: 0,
            epoch,
        }],
    };
    assert_eq!(
        reason(other.calls.resolve_commit(request).await),
        Reason::DatabaseNotOpen
    );
}

#[tokio::test]
async fn a_database_without_a_commit_is_found_only_by_those_who_create() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    for round in ["missing", "created by somebody, never committed"] {
        for mode in [pb::OpenMode::ReadOnly, pb::OpenMode::ReadWrite] {
            let request = client.open_request("a.db", mode);
            let refused = client.open_with(request).await.map(|opened| opened.id);
            assert_eq!(reason(refused), Reason::DatabaseNotFound, "{round}");
        }
        server.client().await.open("a.db").await;
    }
    let listed = client
        .calls
        .list_databases(pb::ListDatabasesRequest {
            limit: 10,
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(listed.into_inner().databases, []);
}

/// Whoever may open could fill the store with names for ever.
#[tokio::test(start_paused = true)]
async fn a_name_without_a_commit_is_dropped_with_the_last_session_that_has_it_open() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut first = server.client().await;
    let mut second = server.client().await;
    let empty = first.open("empty.db").await;
    assert_eq!(second.open("empty.db").await.id, empty.id);
    let full = first.open("full.db").await;
    let epoch = first.acquire(&full).await;
    let commit = TestCommit::new(&full, 0, epoch, 1);
    first.commit(&commit).await.unwrap();
    let name = |name: &str| DatabaseName::try_from(name).unwrap();
    first.goodbye().await;
    tokio::time::sleep(TTL).await;
    let kept = store.inner.lookup(&name("empty.db"), false).await;
    assert_eq!(kept.unwrap().to_wire(), empty.id, "somebody has it open");
    second.goodbye().await;
    tokio::time::sleep(TTL).await;
    let gone = store.inner.lookup(&name("empty.db"), false).await;
    assert!(
        matches!(gone, Err(StoreError::DatabaseNotFound)),
        "{gone:?}"
    );
    let kept = store.inner.lookup(&name("full.db"), false).await;
    assert_eq!(kept.unwrap().to_wire(), full.id);
}

#[tokio::test]
async fn a_close_that_was_overtaken_by_an_open_is_ignored() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let mut request = client.open_request("a.db", pb::OpenMode::Create);
    request.open_sequence = 2;
    let database = client.open_with(request).await.unwrap();
    for (open_sequence, open) in [(1, true), (2, false)] {
        client.send(Request::CloseDatabase(pb::CloseDatabase {
            database_id: database.id.clone(),
            open_sequence,
        }));
        client.heartbeat(Vec::new()).await;
        assert_eq!(client.head(&database).await.is_ok(), open);
    }
}

#[tokio::test]
async fn a_version_stays_readable_until_the_floors_of_all_sessions_are_above_it() {
    let server = TestServer::start(LONG_TTL).await;
    let mut writer = server.client().await;
    let database = writer.open("a.db").await;
    let epoch = writer.acquire(&database).await;
    writer
        .commit(&TestCommit::new(&database, 0, epoch, 1))
        .await
        .unwrap();
    let mut reader = server.client().await;
    let request = reader.open_request("a.db", pb::OpenMode::ReadOnly);
    assert_eq!(reader.open_with(request).await.unwrap().head, 1);
    for base in 1..4 {
        let commit = TestCommit::new(&database, base, epoch, base as u8 + 1);
        assert_eq!(
            writer.commit(&commit).await.unwrap(),
            committed(&[base + 1])
        );
    }
    let floor = |version| {
        vec![pb::DatabaseFloor {
            database_id: database.id.clone(),
            oldest_open_version: version,
            ..Default::default()
        }]
    };
    writer.heartbeat(floor(4)).await;
    // Floors only rise.
    reader.heartbeat(floor(1)).await;
    reader.heartbeat(floor(0)).await;
    let pages = reader.read(&database, 1, &[1]).await.unwrap();
    assert_eq!(pages[0].content[0], 1);
    reader.heartbeat(floor(4)).await;
    // The store is told in the background, and drops it with the next commit at the latest.
    let gone = async {
        let mut base = 4;
        loop {
            writer
                .commit(&TestCommit::new(&database, base, epoch, 9))
                .await
                .unwrap();
            base += 1;
            match reader.read(&database, 1, &[1]).await {
                Ok(pages) => assert_eq!(pages[0].content[0], 1),
                Err(status) => break Reason::of(&status),
            }
        }
    };
    assert_eq!(gone.await, Reason::VersionGone);
}

/// The client was told that nothing is open, so it will never close it.
#[tokio::test]
async fn an_open_that_fails_after_it_was_noted_leaves_nothing_open() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    client.send(Request::CloseDatabase(pb::CloseDatabase {
        database_id: database.id.clone(),
        open_sequence: 0,
    }));
    client.heartbeat(Vec::new()).await;
    store.protect_fails.store(true, Ordering::Release);
    let request = client.open_request("a.db", pb::OpenMode::Create);
    let refused = client.open_with(request).await.map(|_| ());
    assert_eq!(reason(refused), Reason::Unavailable);
    let refused = client.head(&database).await;
    assert_eq!(reason(refused), Reason::DatabaseNotOpen);
}

#[tokio::test]
=======
>>>>>>> 6000541 (Server: hub.rs and the longest tests are split by table: sessions, opens, names, sweep)
async fn sessions_and_open_databases_are_limited() {
    let server = TestServer::with(Settings {
        max_sessions: 2,
        max_open_databases: 2,
        max_open_databases_in_total: 3,
        ..Settings::default()
    })
    .await;
    let mut first = server.client().await;
    let mut second = server.client().await;
    let mut calls = server.calls().await;
    let mut third = Stream::begin(&mut calls).await;
    let session_id = SessionId::random().unwrap().to_wire();
    third.send(Request::Hello(pb::Hello {
        session_id,
        ..first.hello()
    }));
    assert_eq!(reason(third.next().await), Reason::Limit);

    for name in ["a", "b", "a"] {
        first.open(name).await;
    }
    let request = first.open_request("c", pb::OpenMode::Create);
    assert_eq!(
        reason(first.open_with(request).await.map(|_| ())),
        Reason::Limit
    );
    second.open("a").await;
    let request = second.open_request("d", pb::OpenMode::Create);
    assert_eq!(
        reason(second.open_with(request).await.map(|_| ())),
        Reason::Limit
    );
    first.goodbye().await;
    second.open("d").await;
    server.client().await;
}
