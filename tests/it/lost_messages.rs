//! What becomes of leases and opens whose message was lost. The session goes on all the while, so that no lapse mends anything: a
//! server that believes in what its client does not know of would believe in it for ever.

use std::time::{Duration, Instant};

use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Lost, Proxy};
use pagewire_tests::server::PageServer;

const TTL: &[&str] = &["--lease-ttl-ms", "4000"];
/// More than one TTL, for which a commit may have to wait after a stream broke, on a loaded machine too.
const SOON: Duration = Duration::from_secs(25);

/// A process behind the proxy and one that talks to the server itself, with `t.db` open in both.
struct Scene {
    server: PageServer,
    proxy: Proxy,
    near: Guest,
    far: Guest,
}

impl Scene {
    fn new() -> Self {
        let server = PageServer::start("memory", TTL);
        let proxy = Proxy::new(&server.endpoint());
        let mut near = Guest::start(&[]);
        let mut far = Guest::start(&[("PAGEWIRE_TIMEOUT_MS", "2000")]);
        near.open("t", &uri(&server.endpoint(), "t.db", &[]))
            .expect("open");
        near.ok("t", "PRAGMA busy_timeout = 50000");
        near.ok("t", "CREATE TABLE t(who TEXT)");
        far.open("t", &uri(&proxy.endpoint(), "t.db", &[]))
            .expect("open");
        far.ok("t", "SELECT count(*) FROM t");
        // So that the session goes on when t.db is closed.
        far.open("kept", &uri(&proxy.endpoint(), "kept.db", &[]))
            .expect("open");
        far.ok("kept", "CREATE TABLE k(v INT)");
        Self {
            server,
            proxy,
            near,
            far,
        }
    }

    /// `near` gets to write soon, whatever became of the lease that `far` had or was to have.
    fn assert_near_writes(&mut self, what: &str) {
        let began = Instant::now();
        self.near.ok("t", "INSERT INTO t VALUES('near')");
        let took = began.elapsed();
        assert!(took < SOON, "{what}: it took {took:?}");
        assert!(self.proxy.has_lost_all(), "{what}: nothing was lost");
    }

    fn assert_far_goes_on(&mut self) {
        self.far.ok("t", "PRAGMA busy_timeout = 20000");
        self.far.ok("t", "INSERT INTO t VALUES('far')");
        let all = "SELECT group_concat(who) FROM t";
        assert_eq!(self.near.ok("t", all), self.far.ok("t", all));
        self.far.ok("kept", "INSERT INTO k VALUES(1)");
    }
}

fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let began = Instant::now();
    while !attempt() {
        assert!(
            began.elapsed() < SOON,
            "{what} did not come within {SOON:?}"
        );
    }
}

#[test]
fn a_close_whose_message_was_lost_is_repeated() {
    let mut scene = Scene::new();
    scene.near.close("t").expect("close");
    scene.proxy.lose(Lost::Close);
    scene.far.close("t").expect("close");
    eventually("the close", || scene.server.delete("t.db").is_ok());
    assert!(scene.proxy.has_lost_all());
    // The other database of the session was not closed with it.
    let refused = scene.server.delete("kept.db").expect_err("it is open");
    assert!(refused.contains("open in 1 session"), "{refused}");
    scene.far.ok("kept", "INSERT INTO k VALUES(1)");
}

/// The repeated close names the open that it is for: a newer one stays.
#[test]
fn a_close_that_is_repeated_does_not_undo_a_later_open() {
    let mut scene = Scene::new();
    scene.proxy.lose(Lost::Close);
    scene.far.close("t").expect("close");
    let again = uri(&scene.proxy.endpoint(), "t.db", &[]);
    scene.far.open("t", &again).expect("open");
    scene.far.ok("t", "SELECT count(*) FROM t");
    eventually("the loss", || scene.proxy.has_lost_all());
    scene.near.close("t").expect("close");
    // The stream is back, and with it the repeated close, when a lease has come by it.
    scene.assert_session_is_back();
    let refused = scene.server.delete("t.db").expect_err("it is open");
    assert!(refused.contains("open in 1 session"), "{refused}");
    scene.far.ok("t", "INSERT INTO t VALUES('far')");
}

impl Scene {
    fn assert_session_is_back(&mut self) {
        let far = &mut self.far;
        eventually("the session", || {
            far.ok(
                "kept",
                "SELECT value FROM pagewire_status WHERE key = 'trusted'",
            ) == ["true"]
        });
    }
}

#[test]
fn a_release_whose_message_was_lost_is_made_good_by_the_next_stream() {
    let mut scene = Scene::new();
    scene.far.ok("t", "PRAGMA busy_timeout = 20000");
    scene.far.ok("t", "INSERT INTO t VALUES('far')");
    // Recalled while nobody writes: it is released at once.
    scene.proxy.lose(Lost::Release);
    scene.assert_near_writes("a lost release");
    scene.assert_far_goes_on();
}

#[test]
fn a_recall_that_was_lost_is_repeated_on_the_next_stream() {
    let mut scene = Scene::new();
    scene.far.ok("t", "PRAGMA busy_timeout = 20000");
    scene.far.ok("t", "INSERT INTO t VALUES('far')");
    scene.proxy.lose(Lost::Recall);
    scene.assert_near_writes("a lost recall");
    scene.assert_far_goes_on();
}

#[test]
fn a_lease_that_was_granted_by_a_message_that_was_lost_is_given_back() {
    let mut scene = Scene::new();
    scene.near.ok("t", "BEGIN IMMEDIATE");
    let told = scene.far.sql("t", "INSERT INTO t VALUES('far')");
    assert_eq!(told.expect_err("near is writing").code & 0xff, 5);
    // Its ticket is in the queue, and it does not come back for it.
    scene.proxy.lose(Lost::Granted);
    scene.near.ok("t", "COMMIT");
    scene.assert_near_writes("a lost grant");
    scene.assert_far_goes_on();
}

#[test]
fn a_lease_whose_grant_was_the_answer_that_was_lost_is_given_back() {
    for fault in [Fault::AnswerSilent, Fault::AnswerBroken, Fault::Empty] {
        let mut scene = Scene::new();
        scene.near.ok("t", "INSERT INTO t VALUES('near')");
        scene.proxy.arm(Call::Acquire, fault.clone());
        // An answer that broke off is asked for again in silence.
        let told = scene.far.sql("t", "INSERT INTO t VALUES('far')");
        scene.proxy.wait_for_strike(Call::Acquire);
        assert!(
            told.is_ok() || !matches!(fault, Fault::AnswerBroken),
            "{told:?}"
        );
        scene.assert_near_writes("a lost answer");
        scene.assert_far_goes_on();
    }
}

/// The answer of an open brings the lease along.
#[test]
fn a_lease_that_came_with_an_open_whose_answer_was_lost_is_given_back() {
    for fault in [Fault::AnswerSilent, Fault::AnswerBroken] {
        let mut scene = Scene::new();
        scene.near.close("t").expect("close");
        scene.far.close("t").expect("close");
        scene.proxy.arm(Call::Open, fault);
        let again = uri(&scene.proxy.endpoint(), "t.db", &[]);
        // It may fail now, or at the first use, or not at all.
        if scene.far.open("t", &again).is_ok() {
            let _ = scene.far.sql("t", "SELECT count(*) FROM t");
        }
        scene.proxy.wait_for_strike(Call::Open);
        let itself = uri(&scene.server.endpoint(), "t.db", &[]);
        scene.near.open("t", &itself).expect("open");
        scene.near.ok("t", "PRAGMA busy_timeout = 50000");
        scene.assert_near_writes("a lost open");
        scene.far.close("t").expect("close");
        scene.far.open("t", &again).expect("open");
        scene.assert_far_goes_on();
    }
}

#[test]
fn an_answer_that_cant_be_understood_settles_nothing() {
    // The commit, or the question after it, is answered with nothing: what was applied is found out all the same.
    for (commit, resolve) in [
        (Fault::Empty, None),
        (Fault::AnswerBroken, Some(Fault::Empty)),
        (Fault::RequestBroken, Some(Fault::Empty)),
    ] {
        let mut scene = Scene::new();
        scene.far.ok("t", "PRAGMA busy_timeout = 20000");
        scene.far.ok("t", "BEGIN IMMEDIATE");
        scene.far.ok("t", "INSERT INTO t VALUES('far')");
        scene.proxy.arm(Call::Commit, commit.clone());
        if let Some(resolve) = &resolve {
            scene.proxy.arm(Call::Resolve, resolve.clone());
        }
        let told = scene.far.sql("t", "COMMIT");
        scene.proxy.wait_for_strike(Call::Commit);
        let _ = scene.far.sql("t", "ROLLBACK");
        let there = scene.near.ok("t", "SELECT count(*) FROM t") == ["1"];
        match &told {
            Ok(_) => assert!(there, "{commit:?} {resolve:?}"),
            Err(failure) => assert!(
                failure
                    .message
                    .contains("not known whether the commit was applied"),
                "{commit:?} {resolve:?}: {failure:?}"
            ),
        }
        // Settled before anything else: it is there for good, or never.
        let after = scene.far.ok("t", "SELECT count(*) FROM t") == ["1"];
        assert_eq!(after, there, "{commit:?} {resolve:?}");
        scene.assert_far_goes_on();
        let count = 1 + usize::from(there);
        assert_eq!(
            scene.near.ok("t", "SELECT count(*) FROM t"),
            [count.to_string()]
        );
    }
}

/// A commit over two databases of which nobody knows what became, and the second one detached from the connection.
fn unsettled_over_two() -> (Scene, String) {
    let mut scene = Scene::new();
    scene.near.close("t").expect("close");
    let second = uri(&scene.proxy.endpoint(), "second.db", &[]);
    scene.far.ok("t", &format!("ATTACH '{second}' AS second"));
    scene.far.ok("t", "CREATE TABLE second.s(v INT)");
    scene.far.ok("t", "BEGIN");
    scene.far.ok("t", "INSERT INTO t VALUES('far')");
    scene.far.ok("t", "INSERT INTO second.s VALUES(1)");
    scene.proxy.arm(Call::Commit, Fault::AnswerBroken);
    // Until its deadline no question is answered.
    for _ in 0..400 {
        scene.proxy.arm(Call::Resolve, Fault::RequestBroken);
    }
    let told = scene.far.sql("t", "COMMIT").expect_err("nobody answered");
    assert!(
        told.message
            .contains("not known whether the commit was applied"),
        "{told:?}"
    );
    let _ = scene.far.sql("t", "ROLLBACK");
    scene.far.ok("t", "DETACH second");
    (scene, second)
}

#[test]
fn a_database_that_was_opened_for_one_question_is_closed_after_it() {
    let (mut scene, second) = unsettled_over_two();
    scene.proxy.disarm();
    // Nobody in the process has second.db open, and the question is answered only where it is.
    eventually("the settlement", || {
        scene.far.sql("t", "SELECT count(*) FROM t").is_ok()
    });
    assert_eq!(scene.far.ok("t", "SELECT who FROM t"), ["far"]);
    scene.far.open("second", &second).expect("open");
    assert_eq!(scene.far.ok("second", "SELECT v FROM s"), ["1"]);
    scene.far.close("second").expect("close");
    eventually("the close", || scene.server.delete("second.db").is_ok());
    scene.far.ok("t", "INSERT INTO t VALUES('far')");
}

#[test]
fn an_open_for_one_question_leaves_other_opens_alone() {
    let (mut scene, second) = unsettled_over_two();
    // The question is asked anew, and the database opened for good right behind it.
    scene.proxy.disarm();
    eventually("the settlement", || {
        scene.far.sql("t", "SELECT who FROM t") == Ok(vec!["far".to_owned()])
    });
    scene.far.open("second", &second).expect("open");
    assert_eq!(scene.far.ok("second", "SELECT v FROM s"), ["1"]);
    scene.far.ok("second", "INSERT INTO s VALUES(2)");
    // Whatever the question has closed by now, this is not it.
    scene.far.ok("t", "INSERT INTO t VALUES('far')");
    let refused = scene.server.delete("second.db").expect_err("it is open");
    assert!(refused.contains("open in 1 session"), "{refused}");
}
