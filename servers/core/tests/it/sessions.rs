//! Sessions: beginning, resuming, lapsing, what ends with them, and the end of the server.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseName, SessionId, limits};
use pagewire_server::Settings;
use pagewire_server::store::{PageStore as _, StoreError};
use tokio::time::Instant;

use crate::gate::GatedStore;
use crate::harness::{LONG_TTL, Stream, TestCommit, TestServer, committed, reason};

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

#[tokio::test]
async fn a_database_that_is_open_is_not_deleted_and_one_made_anew_is_another() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    client
        .commit(&TestCommit::new(&database, 0, epoch, 1))
        .await
        .unwrap();
    let delete = pb::DeleteDatabaseRequest {
        name: "a.db".into(),
    };
    let mut calls = server.calls().await;
    let refused = calls.delete_database(delete.clone()).await.unwrap_err();
    assert_eq!(Reason::of(&refused), Reason::Limit);
    assert!(
        refused.message().contains("open in 1 session"),
        "{}",
        refused.message()
    );
    client.goodbye().await;
    let deleted = calls.delete_database(delete.clone()).await.unwrap();
    assert_eq!(deleted.into_inner().database_id, database.id);
    assert_eq!(
        reason(calls.delete_database(delete).await),
        Reason::DatabaseNotFound
    );
    client.connect().await;
    let again = client.open("a.db").await;
    assert_ne!(again.id, database.id);
    assert_eq!(again.head, 0);
}

#[tokio::test]
async fn listing_goes_on_after_the_last_name_in_byte_order() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    for name in ["b/2", "a/1", "b/1", "b/10"] {
        let database = client.open(name).await;
        let epoch = client.acquire(&database).await;
        client
            .commit(&TestCommit::new(&database, 0, epoch, 1))
            .await
            .unwrap();
    }
    let mut names = Vec::new();
    loop {
        let request = pb::ListDatabasesRequest {
            prefix: "b/".into(),
            after: names.last().cloned().unwrap_or_default(),
            limit: 2,
        };
        let page = client
            .calls
            .list_databases(request)
            .await
            .unwrap()
            .into_inner();
        names.extend(page.databases.into_iter().map(|entry| entry.name));
        if !page.more {
            break;
        }
    }
    assert_eq!(names, ["b/1", "b/10", "b/2"]);
}

#[tokio::test]
async fn a_server_that_stops_asks_for_its_leases_and_is_gone_soon() {
    let mut server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    server.begin_shutdown();
    assert_eq!(
        client.news().await,
        News::Draining(pb::Draining { grace_ms: 5000 })
    );
    assert!(matches!(client.news().await, News::LeaseRecall(_)));
    // A running transaction ends.
    let commit = TestCommit::new(&database, 0, epoch, 1);
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    let request = client.acquire_request(&database, 0);
    let mut second = client.calls.clone();
    client.release(&database, epoch, false);
    let refused = Reason::of(&second.acquire_lease(request).await.unwrap_err());
    // The second where the connection has ended already.
    assert!(
        [Reason::Draining, Reason::Unavailable].contains(&refused),
        "{refused:?}"
    );
    let stream = client.stream.as_mut().unwrap();
    assert_eq!(reason(stream.next().await), Reason::Draining);
    server.stopped().await;
}

/// Only a server that nobody trusts any more spares the next one its wait.
#[tokio::test(start_paused = true)]
async fn the_store_is_told_of_the_end_only_where_nobody_trusts_a_lease() {
    for released in [true, false] {
        let store = GatedStore::new(Duration::ZERO, true);
        let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
        let mut client = server.client().await;
        let database = client.open("a.db").await;
        let epoch = client.acquire(&database).await;
        if released {
            client.release(&database, epoch, false);
            client.heartbeat(Vec::new()).await;
        }
        let begun = Instant::now();
        server.close().await;
        server.close().await;
        assert_eq!(store.ended.available_permits(), usize::from(released));
        assert_eq!(
            begun.elapsed() < Duration::from_secs(1),
            released,
            "the grace time"
        );
    }
}

/// A lease that moved from a broken stream is trusted by its old holder until the barrier falls.
#[tokio::test(start_paused = true)]
async fn a_barrier_is_trust_as_well_when_the_server_stops() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut holder = server.client().await;
    let mut other = server.client().await;
    let database = holder.open("a.db").await;
    other.open("a.db").await;
    holder.acquire(&database).await;
    holder.break_stream();
    let epoch = other.acquire(&database).await;
    other.release(&database, epoch, false);
    other.heartbeat(Vec::new()).await;
    server.close().await;
    assert_eq!(store.ended.available_permits(), 0);
}

#[tokio::test]
async fn health_and_reflection_are_served_beside_the_pages() {
    let server = TestServer::start(LONG_TTL).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel().await);
    let request = tonic_health::pb::HealthCheckRequest {
        service: "pagewire.v1.PageService".into(),
    };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(
        answer.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol(
            "pagewire.v1.PageService".into(),
        )),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    assert!(
        matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_unix_socket_serves_as_well_and_a_dead_servers_file_is_replaced() {
    let directory = std::env::temp_dir().join(format!("pagewire-{}", SessionId::random().unwrap()));
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("s");
    drop(pagewire_server::bind_unix(&path).await.unwrap());
    assert!(path.exists(), "what a dead server leaves behind");
    let listener = pagewire_server::bind_unix(&path).await.unwrap();
    assert!(
        pagewire_server::bind_unix(&path).await.is_err(),
        "a living one is not disturbed"
    );
    let server = pagewire_server::Server::builder(crate::harness::memory())
        .build()
        .await
        .unwrap();
    let serving = tokio::spawn(server.serve_unix(listener, std::future::pending()));
    let socket = path.clone();
    let channel = tonic::transport::Endpoint::from_static("http://unix")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                tokio::net::UnixStream::connect(socket)
                    .await
                    .map(hyper_util::rt::TokioIo::new)
            }
        }))
        .await
        .unwrap();
    let mut calls = pb::page_service_client::PageServiceClient::new(channel);
    let listed = calls.list_databases(pb::ListDatabasesRequest {
        limit: 1,
        ..Default::default()
    });
    assert!(!listed.await.unwrap().into_inner().more);
    serving.abort();
    std::fs::remove_dir_all(&directory).unwrap();
}
