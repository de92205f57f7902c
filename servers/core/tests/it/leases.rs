//! The write lease through the protocol: hand-over, recall, tickets.

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use tokio::time::Instant;

use crate::gate::GatedStore;
use crate::harness::{
    Client, LONG_TTL, Opened, TestCommit, TestServer, acquired, committed, page, reason,
};

pub fn recall(database: &Opened, epoch: u64) -> News {
    News::LeaseRecall(pb::LeaseRecall {
        database_id: database.id.clone(),
        epoch,
    })
}

/// The epoch of a grant that came on the stream.
async fn granted(client: &mut Client, database: &Opened) -> u64 {
    match client.news().await {
        News::LeaseGranted(granted) => {
            assert_eq!(granted.database_id, database.id);
            granted.grant.unwrap().epoch
        }
        other => panic!("no grant but {other:?}"),
    }
}

/// Two clients with the database open; the first has the lease.
pub async fn two(server: &TestServer) -> (Client, Client, Opened, u64) {
    let mut holder = server.client().await;
    let mut other = server.client().await;
    let database = holder.open("a.db").await;
    assert_eq!(other.open("a.db").await.id, database.id);
    let epoch = holder.acquire(&database).await;
    (holder, other, database, epoch)
}

fn waiting_acquire(
    client: &Client,
    database: &Opened,
) -> tokio::task::JoinHandle<Result<pb::LeaseGrant, u32>> {
    let request = client.acquire_request(database, 1000);
    let mut calls = client.calls.clone();
    tokio::spawn(async move { acquired(calls.acquire_lease(request).await.unwrap().into_inner()) })
}

#[tokio::test]
async fn the_holder_gets_the_same_epoch_again() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    assert!(epoch > 0);
    assert_eq!(client.acquire(&database).await, epoch);
}

#[tokio::test]
async fn a_waiting_call_is_answered_when_the_holder_gives_the_lease_back() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut holder, other, database, epoch) = two(&server).await;
    let waiting = waiting_acquire(&other, &database);
    assert_eq!(holder.news().await, recall(&database, epoch));
    holder.release(&database, epoch, false);
    let grant = waiting.await.unwrap().unwrap();
    assert!(grant.epoch > epoch);
    assert_eq!(grant.head.unwrap().version, 0);
}

#[tokio::test(start_paused = true)]
async fn keep_answers_waiters_at_once_and_the_holder_is_not_asked_again() {
    let server = TestServer::in_process(LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    let begun = Instant::now();
    let waiting = waiting_acquire(&other, &database);
    assert_eq!(holder.news().await, recall(&database, epoch));
    holder.send(Request::KeepLease(pb::KeepLease {
        database_id: database.id.clone(),
        epoch,
        transaction: 0,
    }));
    assert_eq!(waiting.await.unwrap(), Err(1));
    assert_eq!(other.try_acquire(&database, 1000).await, Err(1));
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    // Its next news is the answer to this, not another recall.
    holder.heartbeat(Vec::new()).await;
    holder.release(&database, epoch, false);
    assert!(granted(&mut other, &database).await > epoch);
}

fn keep(client: &Client, database: &Opened, epoch: u64) {
    client.send(Request::KeepLease(pb::KeepLease {
        database_id: database.id.clone(),
        epoch,
        transaction: 0,
    }));
}

/// A call that waits for one that writes, too.
fn acquire_from_writer(
    client: &Client,
    database: &Opened,
    kept_wait_ms: u32,
) -> tokio::task::JoinHandle<Result<pb::LeaseGrant, u32>> {
    let mut request = client.acquire_request(database, 1000);
    request.kept_wait_ms = kept_wait_ms;
    let mut calls = client.calls.clone();
    tokio::spawn(async move { acquired(calls.acquire_lease(request).await.unwrap().into_inner()) })
}

/// It was told at once that the holder writes, and had its grant by the stream, or when it asked again.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_writer_is_answered_when_that_gives_the_lease_back() {
    let server = TestServer::in_process(LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    let waiting = acquire_from_writer(&other, &database, 500);
    assert_eq!(holder.news().await, recall(&database, epoch));
    keep(&holder, &database, epoch);
    holder.heartbeat(Vec::new()).await;
    let begun = Instant::now();
    holder.release(&database, epoch, false);
    let grant = waiting.await.unwrap().unwrap();
    assert!(grant.epoch > epoch);
    assert!(begun.elapsed() < Duration::from_millis(100));
    // The answer was the grant: none comes on the stream.
    other.heartbeat(Vec::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_writer_is_waited_for_as_long_as_was_said_and_the_ticket_keeps_its_place() {
    let server = TestServer::in_process(LONG_TTL).await;
    let (mut holder, mut second, database, epoch) = two(&server).await;
    let mut third = server.client().await;
    third.open("a.db").await;
    let begun = Instant::now();
    let waiting = acquire_from_writer(&second, &database, 100);
    assert_eq!(holder.news().await, recall(&database, epoch));
    keep(&holder, &database, epoch);
    assert_eq!(third.try_acquire(&database, 0).await, Err(2));
    assert_eq!(waiting.await.unwrap(), Err(1));
    let took = begun.elapsed();
    assert!(
        (Duration::from_millis(90)..Duration::from_millis(200)).contains(&took),
        "{took:?}"
    );
    holder.release(&database, epoch, false);
    assert!(granted(&mut second, &database).await > epoch);
}

/// What a session gets with the lease that says which version it has pages of.
async fn pages_along(client: &mut Client, database: &Opened, known: u64, since: u64) -> Vec<u32> {
    let mut request = client.acquire_request(database, 0);
    (request.known_version, request.pages_since) = (known, since);
    let answer = client.calls.acquire_lease(request).await.unwrap();
    let grant = acquired(answer.into_inner()).unwrap();
    let head = grant.head.unwrap();
    for page in &grant.pages {
        assert_eq!(page.crc32, crc32fast::hash(&page.content));
        assert!(since < page.version && page.version <= head.version);
    }
    grant.pages.iter().map(|page| page.number).collect()
}

#[tokio::test]
async fn with_a_grant_come_the_pages_that_were_written_since_as_many_as_may() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    let commit = |base: u64, pages: std::ops::RangeInclusive<u32>| {
        let mut commit = TestCommit::new(&database, base, epoch, base as u8 + 1);
        commit.databases[0].page_count = 200;
        commit.batches[0].pages = pages.map(|number| page(number, base as u8 + 1)).collect();
        commit
    };
    for (base, pages) in [(0, 1..=200), (1, 3..=5), (2, 5..=6)] {
        let made = client.commit(&commit(base, pages)).await.unwrap();
        assert_eq!(made, committed(&[base + 1]));
    }
    // Those that were changed since one version, for one who knows of all changes or of some.
    for known in [1, 2, 3] {
        assert_eq!(
            pages_along(&mut client, &database, known, 1).await,
            [3, 4, 5, 6],
            "known: {known}"
        );
    }
    assert_eq!(pages_along(&mut client, &database, 3, 2).await, [5, 6]);
    // Nobody asked, or there is nothing.
    assert_eq!(pages_along(&mut client, &database, 2, 0).await, [0; 0]);
    assert_eq!(pages_along(&mut client, &database, 3, 3).await, [0; 0]);
    // 64 KiB at most.
    assert_eq!(
        client.commit(&commit(3, 1..=200)).await.unwrap(),
        committed(&[4])
    );
    let most = pagewire_proto::limits::MAX_GRANT_PAGE_BYTES / crate::harness::PAGE_SIZE as usize;
    let first: Vec<u32> = (1..=200).take(most).collect();
    assert!(first.len() < 200);
    assert_eq!(pages_along(&mut client, &database, 3, 3).await, first);
}

#[tokio::test]
async fn the_pages_come_with_a_grant_on_the_stream_too() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    let first = TestCommit::new(&database, 0, epoch, 1);
    assert_eq!(holder.commit(&first).await.unwrap(), committed(&[1]));
    let mut request = other.acquire_request(&database, 0);
    (request.known_version, request.pages_since) = (1, 1);
    let answer = other.calls.acquire_lease(request).await.unwrap();
    assert_eq!(acquired(answer.into_inner()), Err(1));
    let second = TestCommit::new(&database, 1, epoch, 2);
    assert_eq!(holder.commit(&second).await.unwrap(), committed(&[2]));
    assert_eq!(holder.news().await, recall(&database, epoch));
    holder.release(&database, epoch, false);
    let News::LeaseGranted(granted) = other.news().await else {
        panic!("no grant");
    };
    let grant = granted.grant.unwrap();
    assert_eq!(grant.head.unwrap().version, 2);
    let mut written = page(1, 2);
    written.version = 2;
    assert_eq!(grant.pages, [written]);
}

/// A store that hangs on one read: the grant came after 30 s, with an error, and nobody had the lease meanwhile.
#[tokio::test(start_paused = true)]
async fn no_grant_waits_for_pages_that_the_store_does_not_have_at_hand() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    for base in [0, 1] {
        let commit = TestCommit::new(&database, base, epoch, base as u8 + 1);
        assert_eq!(
            holder.commit(&commit).await.unwrap(),
            committed(&[base + 1])
        );
    }
    store.reads.forget_permits(usize::MAX);
    // By the answer of a call.
    let begun = Instant::now();
    assert_eq!(pages_along(&mut holder, &database, 1, 1).await, [0; 0]);
    // And by the stream.
    let mut request = other.acquire_request(&database, 0);
    (request.known_version, request.pages_since) = (1, 1);
    let answer = other.calls.acquire_lease(request).await.unwrap();
    assert_eq!(acquired(answer.into_inner()), Err(1));
    assert_eq!(holder.news().await, recall(&database, epoch));
    holder.release(&database, epoch, false);
    let News::LeaseGranted(granted) = other.news().await else {
        panic!("no grant");
    };
    assert_eq!(granted.grant.unwrap().pages, []);
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(100), "{took:?}");
    // Where they are at hand they come.
    store.reads.add_permits(1000);
    assert_eq!(pages_along(&mut other, &database, 1, 1).await, [1]);
}

#[tokio::test]
async fn the_lease_goes_round_in_the_order_of_the_tickets() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut holder, mut second, database, epoch) = two(&server).await;
    let mut third = server.client().await;
    third.open("a.db").await;
    assert_eq!(second.try_acquire(&database, 0).await, Err(1));
    assert_eq!(third.try_acquire(&database, 0).await, Err(2));
    assert_eq!(
        second.try_acquire(&database, 0).await,
        Err(1),
        "keeps its place"
    );
    assert_eq!(holder.news().await, recall(&database, epoch));
    holder.release(&database, epoch, true);
    let epoch = granted(&mut second, &database).await;
    // The third waits already: the second gives it back at the end of its transaction.
    assert_eq!(second.news().await, recall(&database, epoch));
    second.release(&database, epoch, false);
    let epoch = granted(&mut third, &database).await;
    assert_eq!(
        third.news().await,
        recall(&database, epoch),
        "the first wanted it back"
    );
    third.release(&database, epoch, false);
    assert!(granted(&mut holder, &database).await > epoch);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_that_is_not_renewed_is_passed_over() {
    let server = TestServer::in_process(LONG_TTL).await;
    let (mut holder, mut second, database, epoch) = two(&server).await;
    let mut third = server.client().await;
    third.open("a.db").await;
    assert_eq!(second.try_acquire(&database, 0).await, Err(1));
    assert_eq!(holder.news().await, recall(&database, epoch));
    tokio::time::advance(Duration::from_millis(1500)).await;
    assert_eq!(third.try_acquire(&database, 0).await, Err(2));
    tokio::time::advance(Duration::from_millis(600)).await;
    holder.release(&database, epoch, false);
    granted(&mut third, &database).await;
    second.heartbeat(Vec::new()).await;
}

#[tokio::test]
async fn a_grant_whose_waiting_call_went_away_comes_on_the_stream() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    let waiting = waiting_acquire(&other, &database);
    assert_eq!(holder.news().await, recall(&database, epoch));
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    holder.release(&database, epoch, false);
    assert!(granted(&mut other, &database).await > epoch);
}

#[tokio::test]
async fn a_released_epoch_counts_although_its_message_is_still_under_way() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let old = client.acquire(&database).await;
    let mut request = client.acquire_request(&database, 0);
    request.released_epoch = old;
    let answer = client.calls.acquire_lease(request).await.unwrap();
    let new = acquired(answer.into_inner()).unwrap().epoch;
    assert!(new > old);
    // The late message is about another epoch.
    client.release(&database, old, true);
    client.heartbeat(Vec::new()).await;
    assert_eq!(client.acquire(&database).await, new);
}

#[tokio::test]
async fn an_open_takes_a_free_lease_along_and_no_place_in_the_queue() {
    let server = TestServer::start(LONG_TTL).await;
    let mut first = server.client().await;
    let mut request = first.open_request("a.db", pb::OpenMode::Create);
    request.want_lease = true;
    let opened = first.open_with(request).await.unwrap();
    let grant = opened.answer.lease.clone().unwrap();
    let commit = TestCommit::new(&opened, 0, grant.epoch, 1);
    assert_eq!(first.commit(&commit).await.unwrap(), committed(&[1]));

    let mut second = server.client().await;
    let mut request = second.open_request("a.db", pb::OpenMode::ReadWrite);
    request.want_lease = true;
    let opened = second.open_with(request).await.unwrap();
    assert_eq!(opened.answer.lease, None);
    assert_eq!(opened.head, 1);
    first.heartbeat(Vec::new()).await;

    let mut reader = server.client().await;
    let mut request = reader.open_request("a.db", pb::OpenMode::ReadOnly);
    request.want_lease = true;
    assert_eq!(reader.open_with(request).await.unwrap().answer.lease, None);
}

#[tokio::test]
async fn a_lone_session_resumes_with_its_lease() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    client.break_stream();
    let welcome = client.connect().await;
    assert!(welcome.resumed);
    assert_eq!(
        welcome.leases,
        [pb::HeldLease {
            database_id: database.id.clone(),
            epoch
        }]
    );
    let commit = TestCommit::new(&database, 0, epoch, 1);
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
}

#[tokio::test]
async fn a_recall_that_was_lost_with_the_stream_is_sent_on_the_next() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    assert_eq!(other.try_acquire(&database, 0).await, Err(1));
    // The second stream replaces the first, which never broke: nothing is taken.
    let first = holder.stream.take();
    assert_eq!(holder.connect().await.leases.len(), 1);
    assert_eq!(holder.news().await, recall(&database, epoch));
    drop(first);
}

/// The release at the end of the transaction may have been in the stream that broke.
#[tokio::test]
async fn a_lease_that_was_kept_is_asked_for_again_on_the_next_stream() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    assert_eq!(other.try_acquire(&database, 0).await, Err(1));
    assert_eq!(holder.news().await, recall(&database, epoch));
    holder.send(Request::KeepLease(pb::KeepLease {
        database_id: database.id.clone(),
        epoch,
        transaction: 0,
    }));
    holder.heartbeat(Vec::new()).await;
    let first = holder.stream.take();
    assert_eq!(holder.connect().await.leases.len(), 1);
    assert_eq!(other.try_acquire(&database, 0).await, Err(1));
    assert_eq!(holder.news().await, recall(&database, epoch));
    drop(first);
}

/// A second call of the session gave the lease back while the first was still being answered.
#[tokio::test(start_paused = true)]
async fn an_epoch_that_was_given_back_meanwhile_is_not_answered() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    store.changes.forget_permits(usize::MAX);
    store.asked.forget_permits(usize::MAX);
    let waiting = waiting_acquire(&client, &database);
    store.asked.acquire().await.unwrap().forget();
    client.release(&database, epoch, false);
    client.heartbeat(Vec::new()).await;
    store.changes.add_permits(1000);
    let grant = waiting.await.unwrap().unwrap();
    assert!(grant.epoch > epoch, "{} after {epoch}", grant.epoch);
}

/// A lease of a database that the session has closed would never be asked back or given back.
#[tokio::test(start_paused = true)]
async fn a_database_that_is_closed_while_a_call_waits_for_its_lease_gets_none() {
    let server = TestServer::in_process(LONG_TTL).await;
    let (mut holder, mut other, database, epoch) = two(&server).await;
    let request = other.acquire_request(&database, 1000);
    let mut calls = other.calls.clone();
    let waiting = tokio::spawn(async move { calls.acquire_lease(request).await });
    assert_eq!(holder.news().await, recall(&database, epoch));
    other.send(Request::CloseDatabase(pb::CloseDatabase {
        database_id: database.id.clone(),
        open_sequence: 0,
        ..Default::default()
    }));
    other.heartbeat(Vec::new()).await;
    holder.release(&database, epoch, false);
    assert_eq!(reason(waiting.await.unwrap()), Reason::DatabaseNotOpen);
    let again = holder.try_acquire(&database, 0).await;
    assert!(again.is_ok(), "somebody has the lease: {again:?}");
}

#[tokio::test]
async fn a_read_only_open_gets_no_lease() {
    let server = TestServer::start(LONG_TTL).await;
    let mut writer = server.client().await;
    let database = writer.open("a.db").await;
    let epoch = writer.acquire(&database).await;
    let commit = TestCommit::new(&database, 0, epoch, 1);
    writer.commit(&commit).await.unwrap();
    let mut reader = server.client().await;
    let request = reader.open_request("a.db", pb::OpenMode::ReadOnly);
    let database = reader.open_with(request).await.unwrap();
    let request = reader.acquire_request(&database, 0);
    let refused = reader.calls.acquire_lease(request).await;
    assert_eq!(reason(refused), Reason::DatabaseNotOpen);
    let commit = TestCommit::new(&database, 1, epoch, 2);
    let refused = reader.commit(&commit).await;
    assert_eq!(reason(refused), Reason::DatabaseNotOpen);
}
