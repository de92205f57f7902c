//! Hostile clients (N1 to N8): every wrong value is refused by name, and the server serves on.

use bytes::Bytes;
use pagewire_proto::pb;
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;
use pagewire_server::Settings;

use crate::harness::{
    Client, LONG_TTL, Opened, PATIENCE, TestCommit, TestServer, committed, page, reason,
};

async fn victim(server: &TestServer) -> (Client, Opened, u64) {
    let mut client = server.client().await;
    let database = client.open("tenant/a.db").await;
    let epoch = client.acquire(&database).await;
    let commit = TestCommit::new(&database, 0, epoch, 1);
    client.commit(&commit).await.unwrap();
    (client, database, epoch)
}

#[tokio::test]
async fn n1_n2_page_numbers_and_counts_out_of_range_are_refused() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, _) = victim(&server).await;
    for (pages, expected) in [
        (vec![], Reason::Invalid),
        (vec![0], Reason::Invalid),
        (vec![u32::MAX], Reason::Invalid),
        (vec![1; 1025], Reason::Limit),
    ] {
        assert_eq!(reason(client.read(&database, 1, &pages).await), expected);
    }
    for version in [2, u64::MAX] {
        let refused = client.read(&database, version, &[1]).await;
        assert_eq!(reason(refused), Reason::VersionGone);
    }
    let pages = client.read(&database, 1, &[u32::MAX - 1]).await.unwrap();
    assert!(pages[0].content.is_empty());
}

#[tokio::test]
async fn n3_a_page_at_the_end_of_the_world_costs_one_page() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = victim(&server).await;
    let mut commit = TestCommit::new(&database, 1, epoch, 2);
    commit.databases[0].page_count = u32::MAX - 1;
    commit.batches[0].pages = vec![page(u32::MAX - 1, 3)];
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[2]));
    let pages = client
        .read(&database, 2, &[1, 2, u32::MAX - 1])
        .await
        .unwrap();
    let lengths: Vec<_> = pages.iter().map(|page| page.content.len()).collect();
    assert_eq!(lengths, [512, 0, 512]);
    let mut commit = TestCommit::new(&database, 2, epoch, 2);
    commit.databases[0].page_count = u32::MAX;
    assert_eq!(reason(client.commit(&commit).await), Reason::Invalid);
}

#[tokio::test]
async fn names_that_are_not_names_are_refused_in_every_call() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let long = "x".repeat(401);
    for name in [
        "",
        "../etc/passwd",
        "/a",
        "a//b",
        "a\0b",
        "a\nb",
        long.as_str(),
    ] {
        let request = client.open_request(name, pb::OpenMode::Create);
        let refused = client.open_with(request).await.map(|_| ());
        assert_eq!(reason(refused), Reason::Invalid, "{name:?}");
        let request = pb::DeleteDatabaseRequest { name: name.into() };
        let refused = client.calls.delete_database(request).await;
        assert_eq!(reason(refused), Reason::Invalid, "{name:?}");
    }
    for limit in [0, 1001, u32::MAX] {
        let request = pb::ListDatabasesRequest {
            limit,
            ..Default::default()
        };
        let refused = client.calls.list_databases(request).await;
        assert_eq!(reason(refused), Reason::Invalid, "{limit}");
    }
    let request = pb::ListDatabasesRequest {
        prefix: long,
        limit: 1,
        ..Default::default()
    };
    assert_eq!(
        reason(client.calls.list_databases(request).await),
        Reason::Invalid
    );
    for mode in [0, 4, -1, i32::MAX, i32::MIN] {
        let mut request = client.open_request("a", pb::OpenMode::Create);
        request.mode = mode;
        assert_eq!(
            reason(client.open_with(request).await.map(|_| ())),
            Reason::Invalid
        );
    }
}

#[tokio::test]
async fn ids_of_other_lengths_are_refused_in_every_call() {
    let server = TestServer::start(LONG_TTL).await;
    let (client, database, epoch) = victim(&server).await;
    let mut calls = client.calls.clone();
    let good = client.session.to_wire();
    for bad in [
        Bytes::new(),
        Bytes::from(vec![1; 15]),
        Bytes::from(vec![1; 1 << 20]),
    ] {
        for (session_id, database_id) in [
            (bad.clone(), database.id.clone()),
            (good.clone(), bad.clone()),
        ] {
            let read = pb::ReadPagesRequest {
                session_id: session_id.clone(),
                database_id: database_id.clone(),
                version: 1,
                pages: vec![1],
            };
            assert_eq!(reason(calls.read_pages(read).await), Reason::Invalid);
            let begin = pb::BeginSnapshotRequest {
                session_id: session_id.clone(),
                database_id: database_id.clone(),
                known_version: 0,
                want_page_1: false,
            };
            assert_eq!(reason(calls.begin_snapshot(begin).await), Reason::Invalid);
            let acquire = pb::AcquireLeaseRequest {
                session_id: session_id.clone(),
                database_id: database_id.clone(),
                ..Default::default()
            };
            assert_eq!(reason(calls.acquire_lease(acquire).await), Reason::Invalid);
            let resolve = pb::ResolveCommitRequest {
                session_id: session_id.clone(),
                commit_id: good.clone(),
                participants: vec![pb::CommitParticipant {
                    database_id: database_id.clone(),
                    base_version: 0,
                    epoch,
                }],
            };
            assert_eq!(reason(calls.resolve_commit(resolve).await), Reason::Invalid);
            let stage = pb::StagePagesRequest {
                header: Some(pb::StagePagesHeader {
                    session_id: session_id.clone(),
                    database_id: database_id.clone(),
                    staging_id: good.clone(),
                    page_size: 512,
                    continues: false,
                }),
                pages: Vec::new(),
            };
            let refused = calls.stage_pages(tokio_stream::iter([stage])).await;
            assert_eq!(reason(refused), Reason::Invalid);
        }
    }
}

#[tokio::test]
async fn commit_headers_out_of_range_are_refused() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = victim(&server).await;
    let good = TestCommit::new(&database, 1, epoch, 2);
    let changed = |change: &dyn Fn(&mut TestCommit)| {
        let mut commit = good.clone();
        change(&mut commit);
        commit
    };
    let commits = [
        ("no database", changed(&|commit| commit.databases.clear())),
        (
            "twice",
            changed(&|commit| commit.databases.push(commit.databases[0].clone())),
        ),
        (
            "too many",
            changed(&|commit| commit.databases = vec![commit.databases[0].clone(); 127]),
        ),
        (
            "pages of an empty version",
            changed(&|commit| commit.databases[0].page_count = 0),
        ),
        (
            "page size 0",
            changed(&|commit| commit.databases[0].page_size = 0),
        ),
        (
            "page size 513",
            changed(&|commit| commit.databases[0].page_size = 513),
        ),
        (
            "page size 128 KiB",
            changed(&|commit| commit.databases[0].page_size = 1 << 17),
        ),
        (
            "stagings",
            changed(&|commit| {
                commit.databases[0].staging_ids = vec![Bytes::from(vec![0; 16]); 65];
            }),
        ),
    ];
    for (what, commit) in commits {
        assert_eq!(
            reason(client.commit(&commit).await),
            Reason::Invalid,
            "{what}"
        );
    }
    assert_eq!(client.commit(&good).await.unwrap(), committed(&[2]));
}

#[tokio::test]
async fn a_message_larger_than_the_limit_is_refused_and_the_connection_lives() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = victim(&server).await;
    let mut commit = TestCommit::new(&database, 1, epoch, 2);
    commit.batches[0].pages = vec![page(1, 1); (2 << 20) / 512 + 1];
    assert!(client.commit(&commit).await.is_err());
    assert_eq!(client.head(&database).await.unwrap(), 1);
    client.heartbeat(Vec::new()).await;
}

/// An empty element costs two bytes on the wire and forty times as much in memory, before anything is checked.
#[tokio::test]
async fn a_list_of_millions_of_empty_elements_is_not_even_decoded() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, _) = victim(&server).await;
    let request = pb::ResolveCommitRequest {
        session_id: client.session.to_wire(),
        commit_id: client.session.to_wire(),
        participants: vec![pb::CommitParticipant::default(); 1 << 20],
    };
    let refused = client.calls.resolve_commit(request).await.unwrap_err();
    // By the transport: with a reason it would have been decoded.
    assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused:?}");
    assert_eq!(client.head(&database).await.unwrap(), 1);
}

#[tokio::test]
async fn the_floors_of_as_many_databases_as_a_session_may_open_fit_into_a_heartbeat() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, _) = victim(&server).await;
    let floor = pb::DatabaseFloor {
        database_id: database.id.clone(),
        oldest_open_version: u64::MAX,
        ..Default::default()
    };
    client.heartbeat(vec![floor; 65_536]).await;
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_closed_and_its_place_is_free_again_later() {
    let server = TestServer::with(Settings {
        max_connections: 2,
        ..Settings::default()
    })
    .await;
    let mut first = server.client().await;
    let second = server.client().await;
    let listing = || pb::ListDatabasesRequest {
        limit: 1,
        ..Default::default()
    };
    let refused = match server.try_channel().await {
        Ok(channel) => PageServiceClient::new(channel)
            .list_databases(listing())
            .await
            .is_err(),
        Err(_) => true,
    };
    assert!(refused, "a third connection");
    first.heartbeat(Vec::new()).await;
    drop(second);
    let served = async {
        loop {
            if let Ok(channel) = server.try_channel().await
                && PageServiceClient::new(channel)
                    .list_databases(listing())
                    .await
                    .is_ok()
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, served)
        .await
        .expect("the place is not free again");
}

/// N4: no message of one session changes what another has.
#[tokio::test]
async fn n4_messages_about_the_lease_of_another_session_change_nothing() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut owner, database, epoch) = victim(&server).await;
    let mut thief = server.client().await;
    for open in [false, true] {
        if open {
            thief.open("tenant/a.db").await;
        }
        thief.release(&database, epoch, true);
        thief.send(Request::KeepLease(pb::KeepLease {
            database_id: database.id.clone(),
            epoch,
            transaction: 0,
        }));
        let floors = vec![pb::DatabaseFloor {
            database_id: database.id.clone(),
            oldest_open_version: u64::MAX,
            ..Default::default()
        }];
        thief.heartbeat(floors).await;
        thief.send(Request::CloseDatabase(pb::CloseDatabase {
            database_id: database.id.clone(),
            open_sequence: 0,
            ..Default::default()
        }));
        thief.heartbeat(Vec::new()).await;
    }
    owner.heartbeat(Vec::new()).await;
    assert_eq!(owner.acquire(&database).await, epoch);
    let commit = TestCommit::new(&database, 1, epoch, 2);
    assert_eq!(owner.commit(&commit).await.unwrap(), committed(&[2]));
}

#[tokio::test]
async fn bad_messages_on_the_session_stream_break_only_the_stream() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let short = Bytes::from(vec![1; 3]);
    for message in [
        Some(Request::Hello(client.hello())),
        Some(Request::ReleaseLease(pb::ReleaseLease {
            database_id: short.clone(),
            ..Default::default()
        })),
        Some(Request::Heartbeat(pb::Heartbeat {
            sequence: 1,
            floors: vec![pb::DatabaseFloor {
                database_id: short,
                oldest_open_version: 1,
                ..Default::default()
            }],
            settled_opens: 0,
            stream: 7,
        })),
    ] {
        let stream = client.stream.as_mut().unwrap();
        stream
            .outbound
            .send(pb::SessionRequest { message })
            .unwrap();
        let refused = loop {
            match stream.next().await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert_eq!(reason(refused), Reason::Invalid);
        assert!(client.connect().await.resumed);
    }
}

/// Epochs are small numbers: asking about a commit with a guessed one must not advance it under its holder.
#[tokio::test]
async fn n4_a_question_with_the_epoch_of_another_session_takes_no_lease() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut owner, database, epoch) = victim(&server).await;
    let mut thief = server.client().await;
    thief.open("tenant/a.db").await;
    let request = pb::ResolveCommitRequest {
        session_id: thief.session.to_wire(),
        commit_id: thief.session.to_wire(),
        participants: vec![pb::CommitParticipant {
            database_id: database.id.clone(),
            base_version: 1,
            epoch,
        }],
    };
    let refused = thief.calls.resolve_commit(request).await;
    assert_eq!(reason(refused), Reason::Unavailable);
    let commit = TestCommit::new(&database, 1, epoch, 2);
    assert_eq!(owner.commit(&commit).await.unwrap(), committed(&[2]));
}
