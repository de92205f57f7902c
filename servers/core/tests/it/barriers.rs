//! Leases that move without having been given back: how a broken stream differs from a dead process, and what waits for it.

use std::process::{Command, Stdio};
use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;
use tokio::time::Instant;

use crate::harness::{CommitAnswer, LONG_TTL, TestCommit, TestServer, committed, reason};
use crate::leases::{recall, two};

const TTL: Duration = Duration::from_secs(5);

/// A broken stream proves nothing about the process behind it.
#[tokio::test(start_paused = true)]
async fn a_broken_stream_moves_the_lease_at_once_but_no_commit_before_the_old_trust_has_passed() {
    let server = TestServer::in_process(TTL).await;
    let (mut holder, mut other, database, old) = two(&server).await;
    let commit = TestCommit::new(&database, 0, old, 1);
    assert_eq!(holder.commit(&commit).await.unwrap(), committed(&[1]));
    tokio::time::advance(Duration::from_millis(1000)).await;
    holder.heartbeat(Vec::new()).await;
    other.heartbeat(Vec::new()).await;
    let trusted_until = Instant::now() + TTL;
    tokio::time::advance(Duration::from_millis(700)).await;
    holder.break_stream();

    let new = other.acquire(&database).await;
    assert!(new > old);
    assert!(
        Instant::now() < trusted_until - Duration::from_secs(3),
        "it moved at once"
    );
    let attempt = TestCommit::new(&database, 1, new, 2);
    let mut writer = other.calls.clone();
    let messages = attempt.messages(other.session);
    let committing = tokio::spawn(async move {
        let answer = writer.commit(tokio_stream::iter(messages)).await.unwrap();
        (answer.into_inner().outcome.unwrap(), Instant::now())
    });
    while Instant::now() < trusted_until - Duration::from_millis(10) {
        assert_eq!(other.head(&database).await.unwrap(), 1, "not visible yet");
        tokio::time::sleep(Duration::from_millis(100)).await;
        other.heartbeat(Vec::new()).await;
    }
    let (answer, at) = committing.await.unwrap();
    assert_eq!(answer, committed(&[2]));
    assert!(at >= trusted_until, "{:?} too early", trusted_until - at);
    assert!(at < trusted_until + Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_resumes_learns_that_its_lease_moved_and_cannot_commit_with_it() {
    let server = TestServer::in_process(TTL).await;
    let (mut holder, mut other, database, old) = two(&server).await;
    holder.break_stream();
    let new = other.acquire(&database).await;
    let welcome = holder.connect().await;
    assert!(welcome.resumed);
    assert_eq!(welcome.leases, []);
    let commit = TestCommit::new(&database, 0, old, 1);
    assert_eq!(
        holder.commit(&commit).await.unwrap(),
        CommitAnswer::LeaseLost(pb::CommitLeaseLost {
            database_index: 0,
            current_epoch: new
        })
    );
}

#[tokio::test(start_paused = true)]
async fn goodbye_close_and_release_leave_no_barrier() {
    let server = TestServer::in_process(TTL).await;
    let mut head = 0;
    for how in ["goodbye", "close", "release"] {
        let (holder, mut other, database, epoch) = two(&server).await;
        let begun = Instant::now();
        match how {
            "goodbye" => holder.send(Request::Goodbye(pb::Goodbye {})),
            "close" => holder.send(Request::CloseDatabase(pb::CloseDatabase {
                database_id: database.id.clone(),
                open_sequence: 0,
                ..Default::default()
            })),
            _ => holder.release(&database, epoch, false),
        }
        let new = other.acquire(&database).await;
        let commit = TestCommit::new(&database, head, new, 1);
        head += 1;
        assert_eq!(
            other.commit(&commit).await.unwrap(),
            committed(&[head]),
            "{how}"
        );
        assert!(begun.elapsed() < Duration::from_millis(100), "{how}");
        other.goodbye().await;
    }
}

#[tokio::test(start_paused = true)]
async fn goodbye_after_a_broken_stream_lifts_the_barrier() {
    let server = TestServer::in_process(TTL).await;
    let (mut holder, mut other, database, _) = two(&server).await;
    holder.break_stream();
    let new = other.acquire(&database).await;
    let begun = Instant::now();
    holder.connect().await;
    holder.send(Request::Goodbye(pb::Goodbye {}));
    let commit = TestCommit::new(&database, 0, new, 1);
    assert_eq!(other.commit(&commit).await.unwrap(), committed(&[1]));
    assert!(begun.elapsed() < Duration::from_millis(100));
}

/// The next writer waited for the rest of the window although nobody trusted it any more.
#[tokio::test(start_paused = true)]
async fn l8_a_barrier_falls_when_the_old_holder_has_taken_in_that_its_lease_is_gone() {
    let server = TestServer::in_process(TTL).await;
    let (mut holder, mut other, database, _) = two(&server).await;
    holder.break_stream();
    let new = other.acquire(&database).await;
    let begun = Instant::now();
    let committing = other.committing(&TestCommit::new(&database, 0, new, 1));
    let welcome = holder.connect().await;
    assert_eq!((welcome.resumed, welcome.stream), (true, 2));
    // None of these says that its client has read the Welcome.
    for stream in [0, 1, 3] {
        holder.send(Request::Heartbeat(pb::Heartbeat {
            stream,
            ..Default::default()
        }));
        holder.news().await;
        assert!(committing.waits().await, "{stream}");
    }
    holder.send(Request::Heartbeat(pb::Heartbeat {
        stream: welcome.stream,
        ..Default::default()
    }));
    assert_eq!(committing.answer().await.unwrap(), committed(&[1]));
    assert!(begun.elapsed() < TTL / 2, "{:?}", begun.elapsed());
}

fn identity_of(pid: u32) -> pb::ProcessIdentity {
    use std::os::unix::fs::MetadataExt as _;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    pb::ProcessIdentity {
        boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap(),
        pid_namespace: std::fs::metadata("/proc/self/ns/pid").unwrap().ino(),
        pid,
        start_time_ticks: fields
            .split_ascii_whitespace()
            .nth(19)
            .unwrap()
            .parse()
            .unwrap(),
    }
}

/// With a TTL longer than the patience of the test: L6, after kill -9 the TTL does not have to pass.
async fn dead_process_leaves_no_barrier(dies_after_the_break: Duration) {
    let server = TestServer::start(LONG_TTL).await;
    let mut child = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut holder = server.client_with(Some(identity_of(child.id()))).await;
    let mut other = server.client().await;
    let database = holder.open("a.db").await;
    other.open("a.db").await;
    let old = holder.acquire(&database).await;
    holder.break_stream();
    let new = other.acquire(&database).await;
    assert!(new > old);
    let commit = TestCommit::new(&database, 0, new, 1);
    tokio::time::sleep(dies_after_the_break).await;
    // Killed when the lease has moved already, and not reaped: a zombie is dead.
    child.kill().unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), other.commit(&commit)).await;
    assert_eq!(
        answer.expect("waits for the dead").unwrap(),
        committed(&[1])
    );
    child.wait().unwrap();
    let refused = holder.head(&database).await;
    assert_eq!(reason(refused), Reason::SessionUnknown);
}

#[tokio::test]
async fn a_dead_process_of_this_host_leaves_no_barrier() {
    dead_process_leaves_no_barrier(Duration::ZERO).await;
}

#[tokio::test]
async fn a_process_that_dies_long_after_its_stream_broke_lifts_its_barrier() {
    dead_process_leaves_no_barrier(Duration::from_millis(500)).await;
}

#[tokio::test(start_paused = true)]
async fn a_living_process_with_a_broken_stream_keeps_its_barrier() {
    let server = TestServer::in_process(TTL).await;
    let mut holder = server
        .client_with(Some(identity_of(std::process::id())))
        .await;
    let heard = Instant::now();
    let mut other = server.client().await;
    let database = holder.open("a.db").await;
    other.open("a.db").await;
    holder.acquire(&database).await;
    tokio::time::advance(Duration::from_millis(1000)).await;
    other.heartbeat(Vec::new()).await;
    holder.break_stream();
    let new = other.acquire(&database).await;
    let commit = TestCommit::new(&database, 0, new, 1);
    assert_eq!(other.commit(&commit).await.unwrap(), committed(&[1]));
    assert!(heard.elapsed() >= TTL);
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_is_silent_on_a_living_stream_loses_the_lease_with_its_window() {
    let server = TestServer::in_process(TTL).await;
    let (mut holder, mut other, database, old) = two(&server).await;
    let heard = Instant::now();
    let new = loop {
        // Its answer may come after a grant: nobody reads it.
        other.send(Request::Heartbeat(pb::Heartbeat::default()));
        match other.try_acquire(&database, 1000).await {
            Ok(grant) => break grant.epoch,
            Err(ahead) => assert_eq!(ahead, 1),
        }
    };
    assert!(new > old);
    assert!(heard.elapsed() >= TTL - Duration::from_millis(1));
    assert!(heard.elapsed() < TTL + Duration::from_millis(300));
    // Nobody trusts anything: no barrier.
    let begun = Instant::now();
    let commit = TestCommit::new(&database, 0, new, 1);
    assert_eq!(other.commit(&commit).await.unwrap(), committed(&[1]));
    assert!(begun.elapsed() < Duration::from_millis(100));
    assert_eq!(holder.news().await, recall(&database, old));
    let stream = holder.stream.as_mut().unwrap();
    assert_eq!(reason(stream.next().await), Reason::SessionUnknown);
}
