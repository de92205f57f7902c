//! Old versions: pins (K1 to K3 of `docs/versions.md`), tags, branches, restores, collections, over a store that keeps versions.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::limits::MAX_PINS;
use pagewire_proto::pb::moment::At;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, pb};
use pagewire_versioned_memory::{VersionedMemoryOptions, VersionedMemoryStore};
use tonic::Status;

use crate::harness::{
    Client, LONG_TTL, Opened, PATIENCE, TestCommit, TestServer, committed, page, reason,
};

const NAME: &str = "a.db";

/// A server that keeps versions for so long; `None` for ever.
async fn server(retention: Option<Duration>) -> TestServer {
    let options = VersionedMemoryOptions {
        retention,
        ..VersionedMemoryOptions::default()
    };
    let store = VersionedMemoryStore::with_options(options).unwrap();
    TestServer::in_process_over(Arc::new(store), LONG_TTL).await
}

fn at(at: At) -> Option<pb::Moment> {
    Some(pb::Moment { at: Some(at) })
}

impl Client {
    async fn pin(
        &mut self,
        database: &Opened,
        moment: At,
        pin_sequence: u64,
    ) -> Result<u64, Status> {
        let request = pb::FindVersionRequest {
            session_id: self.session.to_wire(),
            database_id: database.id.clone(),
            at: at(moment),
            pin: true,
            pin_sequence,
        };
        let found = self.calls.find_version(request).await?.into_inner().found;
        Ok(found.unwrap().snapshot.unwrap().version)
    }

    /// What the client still reads.
    async fn reads(&mut self, database: &Opened, floor: u64, pins: &[u64], pin_sequence: u64) {
        self.heartbeat(vec![pb::DatabaseFloor {
            database_id: database.id.clone(),
            oldest_open_version: floor,
            pinned_versions: pins.to_vec(),
            pin_sequence,
        }])
        .await;
    }

    async fn open_read_only(&mut self) -> Opened {
        let request = self.open_request(NAME, pb::OpenMode::ReadOnly);
        self.open_with(request).await.unwrap()
    }

    async fn has(&mut self, database: &Opened, version: u64) -> bool {
        match self.read(database, version, &[1]).await {
            Ok(pages) => {
                // Never other bytes (K2).
                assert_eq!(pages[0].content, page(1, version as u8).content);
                true
            }
            Err(status) => {
                assert_eq!(Reason::of(&status), Reason::VersionGone, "{status:?}");
                false
            }
        }
    }
}

/// A writer with versions 1 to 5, page 1 of each filled with its number, all of which it keeps readable.
struct Scene {
    writer: Client,
    database: Opened,
    epoch: u64,
    head: u64,
}

impl Scene {
    async fn new(server: &TestServer) -> Self {
        let mut writer = server.client().await;
        let database = writer.open(NAME).await;
        let epoch = writer.acquire(&database).await;
        let mut scene = Self {
            writer,
            database,
            epoch,
            head: 0,
        };
        for _ in 0..5 {
            scene.commit().await;
        }
        scene
    }

    async fn commit(&mut self) {
        let next = self.head + 1;
        let commit = TestCommit::new(&self.database, self.head, self.epoch, next as u8);
        assert_eq!(
            self.writer.commit(&commit).await.unwrap(),
            committed(&[next])
        );
        self.head = next;
    }

    /// The writer reads nothing old any more, and the store drops what it does not have to keep.
    async fn forget(&mut self) {
        self.writer.reads(&self.database, self.head, &[], 0).await;
        self.collect().await;
    }

    async fn collect(&mut self) {
        // What a heartbeat lets go the store is told a moment later.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let request = pb::CollectGarbageRequest::default();
        while self
            .writer
            .calls
            .collect_garbage(request.clone())
            .await
            .unwrap()
            .into_inner()
            .more
        {}
    }
}

#[tokio::test(start_paused = true)]
async fn k1_a_version_that_is_found_is_pinned_until_a_heartbeat_that_knows_of_it_lets_go() {
    let server = server(Some(Duration::ZERO)).await;
    let mut scene = Scene::new(&server).await;
    let mut reader = server.client().await;
    let database = reader.open_read_only().await;
    assert_eq!(reader.pin(&database, At::Version(2), 1).await.unwrap(), 2);
    assert_eq!(reader.pin(&database, At::Version(3), 2).await.unwrap(), 3);
    scene.forget().await;
    assert!(!reader.has(&database, 1).await && !reader.has(&database, 4).await);
    for (pins, sequence, why) in [
        (&[][..], 0, "it says nothing about pins"),
        (&[2][..], 1, "the second call came later"),
        (&[2, 3][..], 2, "both are named"),
    ] {
        reader.reads(&database, 0, pins, sequence).await;
        scene.collect().await;
        assert!(
            reader.has(&database, 2).await && reader.has(&database, 3).await,
            "{why}"
        );
    }
    reader.reads(&database, 0, &[3], 2).await;
    scene.collect().await;
    assert!(!reader.has(&database, 2).await && reader.has(&database, 3).await);
    reader.reads(&database, 0, &[], 2).await;
    scene.collect().await;
    assert!(!reader.has(&database, 3).await);
    assert!(reader.has(&database, 5).await, "the head");
}

#[tokio::test(start_paused = true)]
async fn k1_the_end_of_a_session_or_of_an_open_lets_go() {
    let server = server(Some(Duration::ZERO)).await;
    let mut scene = Scene::new(&server).await;
    let mut readers = Vec::new();
    for version in [2, 3, 4] {
        let mut reader = server.client().await;
        let database = reader.open_read_only().await;
        reader
            .pin(&database, At::Version(version), 1)
            .await
            .unwrap();
        readers.push((reader, database));
    }
    scene.forget().await;
    let database = scene.database.clone();
    for version in [2, 3, 4] {
        assert!(
            scene.writer.has(&database, version).await,
            "for somebody else"
        );
    }
    readers[0].0.goodbye().await;
    let close = Request::CloseDatabase(pb::CloseDatabase {
        database_id: database.id.clone(),
        open_sequence: 0,
        hot_pages: Vec::new(),
    });
    readers[1].0.send(close);
    readers[1].0.heartbeat(Vec::new()).await;
    scene.collect().await;
    for (version, kept) in [(2, false), (3, false), (4, true)] {
        assert_eq!(
            scene.writer.has(&database, version).await,
            kept,
            "{version}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn k1_a_pin_that_comes_too_late_is_refused_and_holds_nothing_up() {
    let server = server(Some(Duration::ZERO)).await;
    let mut scene = Scene::new(&server).await;
    let mut reader = server.client().await;
    let database = reader.open_read_only().await;
    scene.forget().await;
    for moment in [At::Version(2), At::TimeUnixMs(0), At::Version(9)] {
        let refused = reader.pin(&database, moment, 1).await;
        assert_eq!(reason(refused), Reason::VersionGone);
    }
    let nothing = At::Tag("nothing".to_owned());
    assert_eq!(
        reason(reader.pin(&database, nothing, 1).await),
        Reason::TagNotFound
    );
    assert_eq!(
        reason(reader.pin(&database, At::Version(5), 0).await),
        Reason::Invalid
    );
    // The store still hears of floors and pins.
    assert_eq!(reader.pin(&database, At::Version(5), 1).await.unwrap(), 5);
    scene.commit().await;
    reader.reads(&database, 6, &[5], 1).await;
    scene.forget().await;
    assert!(reader.has(&database, 5).await);
}

#[tokio::test(start_paused = true)]
async fn an_open_at_a_moment_pins_it_shows_its_pages_and_takes_no_lease() {
    let server = server(Some(Duration::ZERO)).await;
    let mut scene = Scene::new(&server).await;
    scene.writer.release(&scene.database, scene.epoch, false);
    scene.writer.heartbeat(Vec::new()).await;
    let mut reader = server.client().await;
    let request = pb::OpenDatabaseRequest {
        at: at(At::Version(3)),
        pin_sequence: 1,
        want_lease: true,
        want_page_bytes: 4096,
        ..reader.open_request(NAME, pb::OpenMode::ReadOnly)
    };
    let opened = reader.open_with(request.clone()).await.unwrap();
    assert_eq!(opened.head, 5);
    let found = opened.answer.found.clone().unwrap();
    assert_eq!(found.snapshot.unwrap().version, 3);
    assert_eq!(opened.answer.lease, None);
    assert_eq!(opened.answer.pages[0].content, page(1, 3).content);
    scene.epoch = scene.writer.acquire(&scene.database).await;
    scene.forget().await;
    assert!(reader.has(&opened, 3).await);

    // What can't be pinned leaves nothing open.
    let mut other = server.client().await;
    let late = pb::OpenDatabaseRequest {
        session_id: other.session.to_wire(),
        at: at(At::Version(2)),
        ..request.clone()
    };
    assert_eq!(reason(other.open_with(late).await), Reason::VersionGone);
    assert_eq!(reason(other.head(&opened).await), Reason::DatabaseNotOpen);
    for wrong in [
        pb::OpenDatabaseRequest {
            mode: pb::OpenMode::ReadWrite.into(),
            ..request.clone()
        },
        pb::OpenDatabaseRequest {
            pin_sequence: 0,
            ..request
        },
    ] {
        assert_eq!(reason(reader.open_with(wrong).await), Reason::Invalid);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_has_a_limited_number_of_pins() {
    let server = server(None).await;
    let mut scene = Scene::new(&server).await;
    while scene.head < MAX_PINS as u64 + 1 {
        scene.commit().await;
    }
    let mut reader = server.client().await;
    let database = reader.open_read_only().await;
    for version in 1..=MAX_PINS as u64 {
        reader
            .pin(&database, At::Version(version), version)
            .await
            .unwrap();
    }
    let last = MAX_PINS as u64 + 1;
    assert_eq!(
        reason(reader.pin(&database, At::Version(last), last).await),
        Reason::Limit
    );
    // One that it has takes no place; one that it lets go leaves one.
    reader.pin(&database, At::Version(7), last).await.unwrap();
    let pins: Vec<_> = (2..last).collect();
    reader.reads(&database, 0, &pins, last).await;
    assert_eq!(
        reader
            .pin(&database, At::Version(last), last + 1)
            .await
            .unwrap(),
        last
    );
}

#[tokio::test(start_paused = true)]
async fn a_read_only_open_neither_tags_nor_untags() {
    let server = server(None).await;
    let mut scene = Scene::new(&server).await;
    let mut reader = server.client().await;
    let database = reader.open_read_only().await;
    let set = |client: &Client| pb::SetTagRequest {
        session_id: client.session.to_wire(),
        database_id: database.id.clone(),
        tag: "v1".into(),
        at: at(At::Version(1)),
        replace: false,
    };
    let delete = |client: &Client| pb::DeleteTagRequest {
        session_id: client.session.to_wire(),
        database_id: database.id.clone(),
        tag: "v1".into(),
    };
    let (by_reader, by_writer) = (set(&reader), set(&scene.writer));
    assert_eq!(
        reason(reader.calls.set_tag(by_reader).await),
        Reason::DatabaseNotOpen
    );
    scene.writer.calls.set_tag(by_writer).await.unwrap();
    let (by_reader, by_writer) = (delete(&reader), delete(&scene.writer));
    assert_eq!(
        reason(reader.calls.delete_tag(by_reader).await),
        Reason::DatabaseNotOpen
    );
    let answer = scene.writer.calls.delete_tag(by_writer).await.unwrap();
    assert!(answer.into_inner().existed);
}

#[tokio::test(start_paused = true)]
async fn a_branch_takes_no_name_that_another_has_and_no_other_takes_its() {
    let server = server(None).await;
    let scene = Scene::new(&server).await;
    let branch = |name: &str, id: DatabaseId| pb::CreateBranchRequest {
        session_id: scene.writer.session.to_wire(),
        database_id: scene.database.id.clone(),
        at: at(At::Version(3)),
        name: name.into(),
        branch_id: id.to_wire(),
    };
    let mut calls = scene.writer.calls.clone();
    let id = DatabaseId::random().unwrap();
    // An open that creates the name, a removal and two branches at the same time: whatever the open has, it keeps.
    for round in 0..50 {
        let name = format!("b{round}.db");
        let ids = [DatabaseId::random().unwrap(), DatabaseId::random().unwrap()];
        let mut opener = server.client().await;
        let (mut first, mut second, mut removing) = (calls.clone(), calls.clone(), calls.clone());
        let create = opener.open_request(&name, pb::OpenMode::Create);
        let delete = pb::DeleteDatabaseRequest { name: name.clone() };
        let (one, other, opened, _) = tokio::join!(
            first.create_branch(branch(&name, ids[0])),
            second.create_branch(branch(&name, ids[1])),
            opener.open_with(create),
            removing.delete_database(delete)
        );
        for refused in [one, other].into_iter().filter(Result::is_err) {
            assert_eq!(reason(refused), Reason::NameTaken);
        }
        let opened = opened.unwrap();
        // What it has open is what it was told: nobody removed it, and no branch took its place.
        assert_eq!(opener.head(&opened).await.unwrap(), opened.head);
        let is_branch = ids.iter().any(|id| id.to_wire() == opened.id);
        assert_eq!(opened.head, u64::from(is_branch));
        let again = opener.open(&name).await;
        assert_eq!(again.id, opened.id);
    }
    let made = calls.create_branch(branch("c.db", id)).await.unwrap();
    let again = calls.create_branch(branch("c.db", id)).await.unwrap();
    assert_eq!(made.get_ref(), again.get_ref());
    assert_eq!(made.get_ref().head.unwrap().version, 1);
    let taken = calls.create_branch(branch(NAME, DatabaseId::random().unwrap()));
    assert_eq!(reason(taken.await), Reason::NameTaken);
}

#[tokio::test(start_paused = true)]
async fn a_restore_warns_subscribers_as_any_commit() {
    let server = server(None).await;
    let mut scene = Scene::new(&server).await;
    let mut reader = server.client().await;
    let database = reader.open_read_only().await;
    reader.send(Request::Subscribe(pb::Subscribe {
        database_id: database.id.clone(),
        known_version: 5,
        strict: false,
        subscription: 1,
        want_page_1: false,
    }));
    reader.news().await;
    let mut restore = TestCommit::new(&scene.database, 5, scene.epoch, 0);
    restore.databases[0].restore_version = 2;
    restore.batches[0].pages.clear();
    let answer = scene.writer.commit(&restore).await.unwrap();
    assert_eq!(answer, committed(&[6]));
    let pb::session_response::Message::Published(published) =
        tokio::time::timeout(PATIENCE, reader.news()).await.unwrap()
    else {
        panic!("not told");
    };
    assert_eq!(published.changes.unwrap().pages, [1]);
    let pages = reader.read(&database, 6, &[1]).await.unwrap();
    assert_eq!(pages[0].content, page(1, 2).content);
}
