//! Databases that are open: by whom, under which name, from which version on, and what is left when they are closed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pagewire_proto::DatabaseName;
use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;
use pagewire_server::store::{PageStore as _, StoreError};
use tokio::time::Instant;

use crate::gate::GatedStore;
use crate::harness::{
    Client, LONG_TTL, Opened, PAGE_SIZE, TestCommit, TestServer, committed, page, reason,
};

const TTL: Duration = Duration::from_secs(5);

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
            ..Default::default()
        }));
        client.heartbeat(Vec::new()).await;
        assert_eq!(client.head(&database).await.is_ok(), open);
    }
}

#[tokio::test]
async fn the_pages_named_with_a_close_come_with_the_next_open() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    let mut commit = TestCommit::new(&database, 0, epoch, 1);
    commit.databases[0].page_count = 9;
    commit.batches[0].pages = (1..10).map(|number| page(number, 1)).collect();
    client.commit(&commit).await.unwrap();
    let mut stranger = server.client().await;
    for (session, hot_pages) in [
        // Nobody's business who has not opened it.
        (&mut stranger, vec![2, 3]),
        // Page 1 is there anyway; the others are in no database, or of no use twice.
        (&mut client, vec![8, 1, 5, 0, 10, u32::MAX, 8, 6]),
    ] {
        session.send(Request::CloseDatabase(pb::CloseDatabase {
            database_id: database.id.clone(),
            open_sequence: 0,
            hot_pages,
        }));
        session.heartbeat(Vec::new()).await;
    }
    for (room, expected) in [
        (0, vec![]),
        (1, vec![1]),
        (3, vec![1, 8, 5]),
        (8, vec![1, 8, 5, 6]),
    ] {
        let mut request = client.open_request("a.db", pb::OpenMode::ReadWrite);
        request.want_page_bytes = room * PAGE_SIZE;
        let opened = client.open_with(request).await.unwrap();
        let pages: Vec<u32> = opened.answer.pages.iter().map(|page| page.number).collect();
        assert_eq!(pages, expected, "room for {room} pages");
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
    for (fails, want_page_bytes) in [("floors", 0), ("pages", 4096)] {
        let store = GatedStore::new(Duration::ZERO, true);
        let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
        let mut client = server.client().await;
        let database = client.open("a.db").await;
        let epoch = client.acquire(&database).await;
        let commit = TestCommit::new(&database, 0, epoch, 1);
        client.commit(&commit).await.unwrap();
        client.send(Request::CloseDatabase(pb::CloseDatabase {
            database_id: database.id.clone(),
            open_sequence: 0,
            ..Default::default()
        }));
        client.heartbeat(Vec::new()).await;
        let failing = match fails {
            "floors" => &store.protect_fails,
            _ => &store.reads_fail,
        };
        failing.store(true, Ordering::Release);
        let request = pb::OpenDatabaseRequest {
            want_page_bytes,
            want_lease: true,
            ..client.open_request("a.db", pb::OpenMode::Create)
        };
        let refused = client.open_with(request).await.map(|_| ());
        assert_eq!(reason(refused), Reason::Unavailable, "{fails}");
        failing.store(false, Ordering::Release);
        let refused = client.head(&database).await;
        assert_eq!(reason(refused), Reason::DatabaseNotOpen, "{fails}");
        // Its floor is gone too, and nobody has to wait for the lease.
        let mut other = server.client().await;
        let again = other.open("a.db").await;
        other.acquire(&again).await;
        client.goodbye().await;
    }
}

/// A client that gave an open up does not know what it left behind: its floor pinned versions for as long as the session lived.
#[tokio::test]
async fn an_open_whose_answer_was_lost_is_closed_by_the_next_heartbeat() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let mut opened = Vec::new();
    for (name, open_sequence) in [
        ("kept.db", 1),
        ("lost.db", 2),
        ("asked.db", 0),
        ("new.db", 4),
    ] {
        let request = pb::OpenDatabaseRequest {
            open_sequence,
            ..client.open_request(name, pb::OpenMode::Create)
        };
        opened.push(client.open_with(request).await.unwrap());
    }
    let open = async |client: &mut Client, opened: &[Opened]| {
        let mut open = Vec::new();
        for database in opened {
            open.push(client.head(database).await.is_ok());
        }
        open
    };
    let floors = vec![pb::DatabaseFloor {
        database_id: opened[0].id.clone(),
        oldest_open_version: 0,
        ..Default::default()
    }];
    // Open number 2 is still under way, as far as the client knows.
    for settled in [0, 1] {
        client.heartbeat_after_opens(floors.clone(), settled).await;
        let expected = [true, true, settled == 0, true];
        assert_eq!(open(&mut client, &opened).await, expected, "{settled}");
    }
    client.heartbeat_after_opens(floors, 3).await;
    assert_eq!(open(&mut client, &opened).await, [true, false, false, true]);
}

/// A removal in a store that hangs blocked every open of every name.
#[tokio::test(start_paused = true)]
async fn a_removal_that_hangs_holds_up_nobody_but_those_who_want_the_name() {
    let store = GatedStore::new(Duration::ZERO, true);
    store.removals.forget_permits(1000);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut first = server.client().await;
    let dropped = first.open("dropped.db").await;
    let deleted = first.open("deleted.db").await;
    let epoch = first.acquire(&deleted).await;
    let commit = TestCommit::new(&deleted, 0, epoch, 1);
    first.commit(&commit).await.unwrap();
    first.goodbye().await;
    let mut second = server.client().await;
    second.keep_alive(TTL);
    let mut calls = second.calls.clone();
    let delete = tokio::spawn(async move {
        calls
            .delete_database(pb::DeleteDatabaseRequest {
                name: "deleted.db".into(),
            })
            .await
    });
    store.removing.acquire_many(2).await.unwrap().forget();

    let begun = Instant::now();
    second.open("other.db").await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    for name in ["dropped.db", "deleted.db"] {
        let begun = Instant::now();
        let request = second.open_request(name, pb::OpenMode::Create);
        let refused = second.open_with(request).await.map(|_| ());
        assert_eq!(reason(refused), Reason::Unavailable, "{name}");
        assert!(begun.elapsed() < Duration::from_secs(31), "{name}");
    }
    assert_eq!(reason(delete.await.unwrap()), Reason::Unavailable);
    // What was removed at last is not what is opened then.
    store.removals.add_permits(1000);
    for old in [&dropped, &deleted] {
        let name = if old.id == dropped.id {
            "dropped.db"
        } else {
            "deleted.db"
        };
        let again = second.open(name).await;
        assert_ne!(again.id, old.id, "{name}");
        assert_eq!(again.head, 0, "{name}");
    }
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

/// Found by reading: the server that saw the last of its own sessions go asked the store for the head, and removed the name; what another
/// server had committed between the two was acknowledged and gone.
#[tokio::test(start_paused = true)]
async fn a_name_without_a_commit_stays_where_another_server_may_have_it_open() {
    let store = GatedStore::new(Duration::ZERO, true);
    store.shared.store(true, Ordering::Relaxed);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut client = server.client().await;
    let empty = client.open("empty.db").await;
    client.goodbye().await;
    let mut other = server.client().await;
    let missing = other.open_request("empty.db", pb::OpenMode::ReadWrite);
    let refused = other.open_with(missing).await;
    assert_eq!(reason(refused), Reason::DatabaseNotFound);
    tokio::time::sleep(TTL).await;
    let name = DatabaseName::try_from("empty.db").unwrap();
    let kept = store.inner.lookup(&name, false).await;
    assert_eq!(kept.unwrap().to_wire(), empty.id);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_was_removed_elsewhere_is_forgotten_after_its_last_session() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    let commit = TestCommit::new(&database, 0, epoch, 1);
    client.commit(&commit).await.unwrap();
    let name = DatabaseName::try_from("a.db").unwrap();
    store.inner.remove(&name).await.unwrap();
    client.goodbye().await;
    tokio::time::sleep(TTL).await;
    let told = store.protects.load(Ordering::Relaxed);
    assert!(told > 0);
    tokio::time::sleep(TTL).await;
    let asked_again = store.protects.load(Ordering::Relaxed) - told;
    assert_eq!(asked_again, 0, "the sweeper goes on asking for it");
}
