//! PEER6 and PEER7: sessions that go to another server with their leases, that come back, and those that never hear what became of it.

use std::time::Duration;

use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use pagewire_proto::{SessionId, pb};
use tokio::time::Instant;

use super::table::{DELAY, Peer, SILENCE, two_that_move};
use super::{TTL, id, lease_at_last};
use crate::harness::{Client, Opened, Stream, TestCommit, committed};

/// A Hello with this number that lists the lease.
fn hello(session: SessionId, number: u64, leases: &[(&Opened, u64)]) -> Request {
    let leases = leases.iter().map(|(database, epoch)| pb::BelievedLease {
        database_id: database.id.clone(),
        epoch: *epoch,
        oldest_open_version: 0,
    });
    Request::Hello(pb::Hello {
        protocol_major: 1,
        session_id: session.to_wire(),
        client_name: "test".into(),
        leases: leases.collect(),
        number,
        ..pb::Hello::default()
    })
}

/// The client says Hello to the server, with these leases; those that it has there.
async fn goes(
    client: &mut Client,
    peer: &Peer,
    number: u64,
    leases: &[(&Opened, u64)],
) -> pb::Welcome {
    client.calls = peer.server.calls().await;
    client.stream = None;
    let mut stream = Stream::begin(&mut client.calls).await;
    stream.send(hello(client.session, number, leases));
    let Some(News::Welcome(welcome)) = stream.next().await.unwrap() else {
        panic!("the first message is not Welcome");
    };
    client.stream = Some(stream);
    welcome
}

fn listed(welcome: &pb::Welcome) -> Vec<u64> {
    welcome.leases.iter().map(|lease| lease.epoch).collect()
}

/// A session that numbers its Hellos and has the lease at the server, with one commit.
async fn holder(peer: &Peer) -> (Client, Opened, u64) {
    let mut client = peer.client().await;
    client.goodbye().await;
    client.session = SessionId::random().unwrap();
    assert!(!goes(&mut client, peer, 1, &[]).await.resumed);
    let a = client.open("a").await;
    let epoch = client.acquire(&a).await;
    let commit = TestCommit::new(&a, 0, epoch, 1);
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    (client, a, epoch)
}

/// Makes the next version with the lease; how long that took.
async fn commits(client: &mut Client, database: &Opened, grant: &pb::LeaseGrant) -> Duration {
    let base = grant.head.unwrap().version;
    let begun = Instant::now();
    let commit = TestCommit::new(database, base, grant.epoch, 7);
    let made = client.commit(&commit).await.unwrap();
    assert_eq!(made, committed(&[base + 1]));
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn peer5_a_session_takes_its_lease_along_and_nobody_waits() {
    let (table, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    let welcome = goes(&mut here, &other, 2, &[(&a, epoch)]).await;
    assert_eq!((welcome.resumed, listed(&welcome)), (false, vec![epoch]));
    assert_eq!(table.claimant(id(&a)), Some(1));
    let begun = Instant::now();
    let commit = TestCommit::new(&a, 1, epoch, 2);
    assert_eq!(here.commit(&commit).await.unwrap(), committed(&[2]));
    assert!(begun.elapsed() < DELAY, "{:?}", begun.elapsed());
}

/// Bug (F2): the server that a session had left listed the lease again when it came back, from memory. Damage: the client trusts it and reads what is
/// not the newest any more. Fix: PEER7.
#[tokio::test(start_paused = true)]
async fn peer7_a_session_that_comes_back_finds_nothing_that_others_were_granted_meanwhile() {
    let (_, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    let welcome = goes(&mut here, &other, 2, &[(&a, epoch)]).await;
    assert_eq!(listed(&welcome), [epoch]);
    here.break_stream();
    let mut next = other.client().await;
    next.keep_alive(TTL / 4);
    let b = next.open("a").await;
    let grant = lease_at_last(&mut next, &b).await;
    assert!(grant.epoch > epoch);
    // The server that it left has not missed it: it is resumed there, and has nothing.
    let welcome = goes(&mut here, &one, 3, &[(&a, epoch)]).await;
    assert_eq!((welcome.resumed, listed(&welcome)), (true, vec![]));
    commits(&mut next, &b, &grant).await;
}

#[tokio::test(start_paused = true)]
async fn peer7_a_session_that_goes_to_and_fro_keeps_what_nobody_else_was_granted() {
    let (table, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    for round in 0..6_u64 {
        let peer = if round % 2 == 0 { &other } else { &one };
        let welcome = goes(&mut here, peer, 2 + round, &[(&a, epoch)]).await;
        assert_eq!(listed(&welcome), [epoch], "round {round}");
        let claimant = usize::from(round % 2 == 0);
        assert_eq!(table.claimant(id(&a)), Some(claimant));
        let commit = TestCommit::new(&a, 1 + round, epoch, 2);
        assert_eq!(here.commit(&commit).await.unwrap(), committed(&[2 + round]));
    }
}

/// What it does not list when it comes back, it has given back elsewhere.
#[tokio::test(start_paused = true)]
async fn peer7_a_lease_that_is_not_listed_on_the_way_back_is_nobodys() {
    let (_, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    goes(&mut here, &other, 2, &[(&a, epoch)]).await;
    here.release(&a, epoch, false);
    let welcome = goes(&mut here, &one, 3, &[]).await;
    assert_eq!((welcome.resumed, listed(&welcome)), (true, vec![]));
    here.keep_alive(TTL / 4);
    // So it has to ask again, and is granted another.
    assert!(lease_at_last(&mut here, &a).await.epoch > epoch);
}

/// A Hello to the server that was left, on a slow way.
#[tokio::test(start_paused = true)]
async fn peer7_a_late_hello_moves_nothing_back() {
    let (table, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    let session = here.session;
    assert_eq!(
        listed(&goes(&mut here, &other, 3, &[(&a, epoch)]).await),
        [epoch]
    );
    here.keep_alive(TTL / 4);
    // The server that was left has forgotten the session.
    tokio::time::sleep(2 * TTL).await;
    let mut late = Stream::begin(&mut one.server.calls().await).await;
    late.send(hello(session, 2, &[(&a, epoch)]));
    let Some(News::Welcome(welcome)) = late.next().await.unwrap() else {
        panic!("no Welcome");
    };
    assert_eq!(listed(&welcome), [0; 0]);
    assert_eq!(table.claimant(id(&a)), Some(1));
    let commit = TestCommit::new(&a, 1, epoch, 2);
    assert_eq!(here.commit(&commit).await.unwrap(), committed(&[2]));
}

#[tokio::test(start_paused = true)]
async fn peer7_a_hello_that_was_overtaken_is_refused() {
    let (_, one, _other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    let session = here.session;
    goes(&mut here, &one, 5, &[(&a, epoch)]).await;
    for number in [0, 1, 4, 5] {
        let mut late = Stream::begin(&mut one.server.calls().await).await;
        late.send(hello(session, number, &[(&a, epoch)]));
        let refused = late.next().await.expect_err("a Welcome");
        assert_eq!(Reason::of(&refused), Reason::Invalid);
    }
    let commit = TestCommit::new(&a, 1, epoch, 2);
    assert_eq!(here.commit(&commit).await.unwrap(), committed(&[2]));
}

/// A stream that broke, and nothing else: no question, and no store that has to be there.
#[tokio::test(start_paused = true)]
async fn peer7_a_session_that_was_nowhere_else_is_resumed_without_a_question() {
    let (_, one, _other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    let member = &one.store.member;
    member.takes.acquire_many(10_000).await.unwrap().forget();
    let begun = Instant::now();
    let welcome = goes(&mut here, &one, 2, &[(&a, epoch)]).await;
    assert_eq!((welcome.resumed, listed(&welcome)), (true, vec![epoch]));
    assert!(begun.elapsed() < DELAY);
    assert_eq!(member.taken.available_permits(), 0);
}

/// Another session had the lease at this server, went away with it and gave it back there: what is believed of that here is in nobody's way.
#[tokio::test(start_paused = true)]
async fn peer5_what_a_server_believes_of_one_that_left_stands_in_nobodys_way() {
    let (_, one, other) = two_that_move().await;
    let (mut gone, a, epoch) = holder(&one).await;
    // The server that it leaves hears its heartbeats for a while.
    gone.keep_alive(TTL / 4);
    let left = gone.stream.take();
    goes(&mut gone, &other, 2, &[(&a, epoch)]).await;
    gone.release(&a, epoch, false);
    let (mut next, b) = {
        let mut client = other.client().await;
        client.goodbye().await;
        client.session = SessionId::random().unwrap();
        goes(&mut client, &other, 1, &[]).await;
        let b = client.open("a").await;
        (client, b)
    };
    let grant = lease_at_last(&mut next, &b).await;
    let welcome = goes(&mut next, &one, 2, &[(&b, grant.epoch)]).await;
    assert_eq!(listed(&welcome), [grant.epoch]);
    assert!(commits(&mut next, &b, &grant).await < DELAY);
    drop(left);
}

/// Bug (F3): a lease that the store had moved for a session which did not wait for the answer was free at once. Damage: the next holder's commit is
/// visible while the client still trusts what it has from the server before. Fix: PEER6.
#[tokio::test(start_paused = true)]
async fn peer6_a_take_over_of_which_the_session_never_hears_is_waited_for() {
    let (table, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    here.heartbeat(Vec::new()).await;
    let trusted_until = Instant::now() + TTL;
    let member = &other.store.member;
    member.takes.acquire_many(10_000).await.unwrap().forget();
    let stream = Stream::begin(&mut other.server.calls().await).await;
    stream.send(hello(here.session, 2, &[(&a, epoch)]));
    // The store has done it, and the client gives up.
    member.taken.acquire().await.unwrap().forget();
    assert_eq!(table.claimant(id(&a)), Some(1));
    drop(stream);
    let mut next = other.client().await;
    next.keep_alive(TTL / 4);
    let b = next.open("a").await;
    let grant = lease_at_last(&mut next, &b).await;
    assert!(Instant::now() < trusted_until, "the lease is free before");
    commits(&mut next, &b, &grant).await;
    assert!(Instant::now() >= trusted_until, "before its trust is over");
    assert!(Instant::now() < trusted_until + TTL / 4);
}

/// The same where the server refuses the session after the store has moved its lease.
#[tokio::test(start_paused = true)]
async fn peer6_a_session_that_is_refused_after_its_take_over_is_waited_for() {
    let (table, one, other) = two_that_move().await;
    let (here, a, epoch) = holder(&one).await;
    let trusted_until = Instant::now() + TTL;
    let member = &other.store.member;
    member.takes.acquire_many(10_000).await.unwrap().forget();
    let mut stream = Stream::begin(&mut other.server.calls().await).await;
    // Silent for almost so long that it acknowledges nothing any more.
    member.falls_silent();
    tokio::time::sleep(TTL - TTL / 8).await;
    let asked = Instant::now();
    stream.send(hello(here.session, 2, &[(&a, epoch)]));
    member.taken.acquire().await.unwrap().forget();
    tokio::time::sleep(TTL / 4).await;
    member.takes.add_permits(10_000);
    let refused = stream.next().await.expect_err("a Welcome");
    assert_eq!(Reason::of(&refused), Reason::Unavailable);
    assert_eq!(table.claimant(id(&a)), Some(1));
    assert!(
        Instant::now() >= trusted_until,
        "of this session it is over"
    );
    member.speaks_again();
    let mut next = other.client().await;
    next.keep_alive(TTL / 4);
    let b = next.open("a").await;
    let grant = lease_at_last(&mut next, &b).await;
    commits(&mut next, &b, &grant).await;
    assert!(Instant::now() >= asked + TTL);
}

/// A server that others do not hear asks for nothing: what the store moved to it nobody would serve.
#[tokio::test(start_paused = true)]
async fn peer6_a_server_that_acknowledges_nothing_asks_for_nothing() {
    let (table, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    here.keep_alive(TTL / 4);
    other.store.member.falls_silent();
    tokio::time::sleep(TTL + TTL / 8).await;
    let mut stream = Stream::begin(&mut other.server.calls().await).await;
    stream.send(hello(here.session, 2, &[(&a, epoch)]));
    let refused = stream.next().await.expect_err("a Welcome");
    assert_eq!(Reason::of(&refused), Reason::Unavailable);
    assert_eq!(table.claimant(id(&a)), Some(0));
    assert_eq!(other.store.member.taken.available_permits(), 0);
    assert!(TTL < SILENCE);
    let commit = TestCommit::new(&a, 1, epoch, 2);
    assert_eq!(here.commit(&commit).await.unwrap(), committed(&[2]));
}

/// A Hello that lists what is not its own holds nobody up for longer than the store takes to say so.
#[tokio::test(start_paused = true)]
async fn peer6_a_guard_falls_when_the_store_says_that_nothing_was_moved() {
    let (_, one, _other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    let mut stream = Stream::begin(&mut one.server.calls().await).await;
    let stranger = SessionId::random().unwrap();
    stream.send(hello(stranger, 1, &[(&a, epoch)]));
    let Some(News::Welcome(welcome)) = stream.next().await.unwrap() else {
        panic!("no Welcome");
    };
    assert_eq!(listed(&welcome), [0; 0]);
    let begun = Instant::now();
    let commit = TestCommit::new(&a, 1, epoch, 2);
    assert_eq!(here.commit(&commit).await.unwrap(), committed(&[2]));
    assert!(begun.elapsed() < DELAY, "{:?}", begun.elapsed());
}

/// The session hears of it at the second attempt, at the same server: what it could not hear of at the first does not cost it the lease.
#[tokio::test(start_paused = true)]
async fn peer6_a_session_that_asks_again_has_its_lease() {
    let (_, one, other) = two_that_move().await;
    let (mut here, a, epoch) = holder(&one).await;
    let member = &other.store.member;
    member.takes.acquire_many(10_000).await.unwrap().forget();
    let stream = Stream::begin(&mut other.server.calls().await).await;
    stream.send(hello(here.session, 2, &[(&a, epoch)]));
    member.taken.acquire().await.unwrap().forget();
    drop(stream);
    member.takes.add_permits(10_000);
    let welcome = goes(&mut here, &other, 3, &[(&a, epoch)]).await;
    assert_eq!(listed(&welcome), [epoch]);
    let commit = TestCommit::new(&a, 1, epoch, 2);
    assert_eq!(here.commit(&commit).await.unwrap(), committed(&[2]));
}
