//! What is served beside the pages, on what kinds of sockets, and the end of the server.

use std::time::Duration;

use pagewire_proto::SessionId;
use pagewire_proto::pb;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use tokio::time::Instant;

use crate::gate::GatedStore;
use crate::harness::{LONG_TTL, TestCommit, TestServer, committed, reason};

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
