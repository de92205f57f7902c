//! A transaction larger than one COMMIT should carry is uploaded while SQLite writes it, and is none the worse for what is lost
//! on the way (`sqlite_vfs/src/connection/staging.rs`).

use std::time::{Duration, Instant};

use pagewire_proto::status::Reason;
use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Commits, Fault, Lost, Passed, Proxy};
use pagewire_tests::server::PageServer;

/// What a COMMIT carries itself in these tests, so that small transactions are large.
const BOUND: u64 = 512 << 10;
const ROWS: u32 = 1500;

/// A guest behind a proxy whose transactions are staged from `BOUND` on, beside a plain SQLite that does the same.
struct Scene {
    server: PageServer,
    proxy: Proxy,
    guest: Guest,
}

impl Scene {
    fn new() -> Self {
        Self::with(PageServer::memory())
    }

    fn with(server: PageServer) -> Self {
        Self::behind(server, |_| {})
    }

    /// With what the proxy does to Welcome.
    fn behind(server: PageServer, change: impl FnOnce(&mut Commits)) -> Self {
        let proxy = Proxy::new(&server.endpoint());
        proxy.set_commits(change);
        let bound = BOUND.to_string();
        let mut guest = Guest::start(&[
            ("PAGEWIRE_STAGE_BYTES", &bound),
            ("PAGEWIRE_OVERLAY_BYTES", "200000"),
            ("PAGEWIRE_TIMEOUT_MS", "3000"),
        ]);
        guest
            .open("main", &uri(&proxy.endpoint(), "t.db", &[]))
            .expect("open");
        guest.open("plain", "file::memory:").expect("open");
        let mut scene = Self {
            server,
            proxy,
            guest,
        };
        scene.both("PRAGMA cache_size = 100");
        scene.both("PRAGMA page_size = 4096");
        scene.both("CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT, w TEXT)");
        scene.both("CREATE INDEX t_v ON t(v)");
        scene
    }

    fn both(&mut self, sql: &str) {
        self.guest.ok("main", sql);
        self.guest.ok("plain", sql);
    }

    /// Rows of about 700 bytes, so that `ROWS` of them are two times the bound and more.
    fn insert(&mut self, from: u32, count: u32) {
        self.both(&format!(
            "WITH RECURSIVE n(i) AS (VALUES({from}) UNION ALL SELECT i + 1 FROM n WHERE i < {from} + {count} - 1)
             INSERT INTO t SELECT i, printf('%0100d', i * 7919 % 10007), printf('%0600d', i) FROM n"
        ));
    }

    /// `field` of the calls of a kind so far.
    fn rpc(&mut self, field: &str, kind: &str) -> u64 {
        let sql = format!("SELECT {field} FROM pagewire_rpc WHERE kind = '{kind}'");
        self.guest.ok("plain", &sql)[0].parse().expect("a number")
    }

    fn staged(&mut self) -> u64 {
        self.rpc("count + background", "stage")
    }

    /// A process that asks the server itself finds what plain SQLite has.
    fn assert_same(&mut self) {
        let sql = "SELECT count(*), sum(i), sum(length(v)), group_concat(v || w) FROM t";
        let right = self.guest.ok("plain", sql);
        assert_eq!(self.guest.ok("main", sql), right);
        let mut other = Guest::start(&[]);
        other
            .open("main", &uri(&self.server.endpoint(), "t.db", &[]))
            .expect("open");
        assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
        assert_eq!(other.ok("main", sql), right);
    }

    /// A transaction that writes most of its pages more than once.
    fn rewriting_transaction(&mut self) {
        self.both("BEGIN");
        self.insert(1, ROWS);
        self.both("UPDATE t SET w = printf('%0600d', i + 1) WHERE i % 3 = 0");
        self.both("UPDATE t SET v = printf('%0100d', i) WHERE i % 2 = 0");
        self.both("DELETE FROM t WHERE i % 5 = 0");
        self.insert(ROWS + 1, ROWS / 2);
        self.both("UPDATE t SET w = printf('%0600d', i + 2) WHERE i % 7 = 0");
        self.both("COMMIT");
    }
}

#[test]
fn a_transaction_up_to_the_bound_is_one_call_and_stages_nothing() {
    let mut scene = Scene::new();
    let before = scene.rpc("count", "commit");
    scene.both("BEGIN");
    scene.insert(1, 300);
    scene.both("COMMIT");
    assert_eq!(scene.rpc("count", "commit") - before, 1);
    assert_eq!(scene.staged(), 0);
    // And by default up to 64 MiB.
    let mut usual = Guest::start(&[]);
    usual
        .open("main", &uri(&scene.server.endpoint(), "usual.db", &[]))
        .expect("open");
    usual.open("plain", ":memory:").expect("open");
    usual.ok("main", "CREATE TABLE t AS SELECT randomblob(62000000)");
    let calls =
        "SELECT kind, count + background FROM pagewire_rpc WHERE kind IN ('stage', 'commit')";
    assert_eq!(usual.ok("plain", calls), ["stage|0", "commit|1"]);
}

#[test]
fn a_larger_transaction_is_staged_and_its_commit_is_one_call_with_the_rest() {
    let mut scene = Scene::new();
    let commits = scene.rpc("count + background", "commit");
    let carried = scene.rpc("bytes_sent", "commit");
    scene.both("BEGIN");
    scene.insert(1, 6 * ROWS);
    assert_eq!(scene.rpc("count + background", "commit"), commits);
    scene.both("COMMIT");
    assert_eq!(scene.rpc("count + background", "commit"), commits + 1);
    let carried = scene.rpc("bytes_sent", "commit") - carried;
    let staged = scene.rpc("bytes_sent", "stage");
    assert!(staged > 10 * BOUND, "{staged} bytes were staged");
    assert!(
        carried < staged / 8,
        "COMMIT carried {carried} bytes, {staged} had been staged"
    );
    scene.assert_same();
}

#[test]
fn pages_written_more_than_once_and_savepoints_are_right() {
    let mut scene = Scene::new();
    scene.rewriting_transaction();
    assert!(scene.staged() > 3);
    scene.assert_same();
    // Over pages that are there, with savepoints whose rollback writes old images again.
    scene.both("BEGIN");
    scene.both("UPDATE t SET w = w || 'a'");
    scene.both("SAVEPOINT s");
    scene.both("DELETE FROM t WHERE i % 2");
    scene.insert(20_000, ROWS);
    scene.both("ROLLBACK TO s");
    scene.both("UPDATE t SET v = v || 'b' WHERE i % 3 = 0");
    scene.both("RELEASE s");
    scene.both("COMMIT");
    scene.assert_same();
    scene.both("DELETE FROM t WHERE i % 4 < 3");
    let before = scene.staged();
    scene.both("PRAGMA page_size = 8192");
    scene.both("VACUUM");
    assert!(scene.staged() >= before);
    scene.assert_same();
}

#[test]
fn a_rollback_drops_what_was_staged_and_costs_nothing() {
    let mut scene = Scene::new();
    scene.insert(1, 10);
    let others = "(SELECT sum(count) FROM pagewire_rpc WHERE kind <> 'stage')";
    let waited = scene.rpc(others, "stage");
    let dropped = scene.rpc("background", "release");
    scene.both("BEGIN");
    scene.insert(11, ROWS);
    assert!(scene.staged() > 0);
    scene.both("ROLLBACK");
    // One message that nobody waits for; one more where a call was under way.
    let dropped = scene.rpc("background", "release") - dropped;
    assert!((1..=2).contains(&dropped), "{dropped}");
    assert_eq!(scene.rpc(others, "stage"), waited);
    scene.assert_same();
    scene.both("DELETE FROM t");
    scene.rewriting_transaction();
    scene.assert_same();
}

#[test]
fn a_call_that_is_lost_is_made_good_whatever_was_lost() {
    for fault in [
        Fault::AnswerBroken,
        Fault::RequestBroken,
        Fault::Empty,
        Fault::AnswerSilent,
        Fault::RequestSilent,
        Fault::Refused(Reason::StagingUnknown),
        Fault::Refused(Reason::Unsupported),
        Fault::Refused(Reason::StoreFull),
        Fault::Refused(Reason::Internal),
    ] {
        let mut scene = Scene::new();
        // One after another, so that first calls and continuing ones are struck.
        scene.proxy.arm(Call::Stage, fault.clone());
        scene.proxy.arm(Call::Stage, Fault::Delay(Duration::ZERO));
        scene.proxy.arm(Call::Stage, Fault::Delay(Duration::ZERO));
        scene.proxy.arm(Call::Stage, fault.clone());
        scene.rewriting_transaction();
        scene.proxy.wait_for_strike(Call::Stage);
        scene.assert_same();
    }
}

/// The original of a call that was taken for lost arrives after newer content of the same pages was staged, and before the COMMIT,
/// which carries none of them.
#[test]
fn a_call_that_arrives_late_brings_nothing_back() {
    for earlier_calls in [0, 1, 3] {
        let mut scene = Scene::new();
        for _ in 0..earlier_calls {
            scene.proxy.arm(Call::Stage, Fault::Delay(Duration::ZERO));
        }
        scene
            .proxy
            .arm(Call::Stage, Fault::RequestLate(Duration::from_secs(3)));
        scene.both("BEGIN");
        scene.insert(1, ROWS);
        scene.both("UPDATE t SET w = printf('%0600d', -i), v = 'new ' || v");
        // So that what was updated has been left alone for long, and is staged again.
        scene.insert(ROWS + 1, 2 * ROWS);
        for _ in 0..=earlier_calls {
            scene.proxy.wait_for_strike(Call::Stage);
        }
        scene.both("COMMIT");
        scene.assert_same();
    }
}

#[test]
fn a_commit_whose_stagings_are_gone_carries_everything_itself() {
    let mut scene = Scene::new();
    let before = scene.rpc("count", "commit");
    scene
        .proxy
        .arm(Call::Commit, Fault::Refused(Reason::StagingUnknown));
    scene.both("BEGIN");
    scene.insert(1, ROWS);
    assert!(scene.staged() > 0);
    scene.both("COMMIT");
    scene.proxy.wait_for_strike(Call::Commit);
    assert_eq!(scene.rpc("count", "commit") - before, 2);
    scene.assert_same();
}

#[test]
fn a_staged_commit_whose_answer_or_request_was_lost_is_applied_once() {
    for fault in [Fault::AnswerBroken, Fault::RequestBroken] {
        let mut scene = Scene::new();
        scene.proxy.arm(Call::Commit, fault);
        scene.rewriting_transaction();
        scene.proxy.wait_for_strike(Call::Commit);
        scene.assert_same();
    }
}

#[test]
fn g4_a_staged_transaction_goes_on_over_a_restart_of_the_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = format!("local:{}", dir.path().display());
    let mut scene = Scene::with(PageServer::start(&store, &["--lease-ttl-ms", "1000"]));
    scene.insert(1, 10);
    scene.guest.ok("main", "BEGIN");
    let more = |from: u32| {
        format!(
            "WITH RECURSIVE n(i) AS (VALUES({from}) UNION ALL SELECT i + 1 FROM n WHERE i < {from} + {ROWS})
             INSERT INTO t SELECT i, 'x', printf('%0600d', i) FROM n"
        )
    };
    scene.guest.ok("main", &more(100));
    assert!(scene.staged() > 0);
    scene.server.kill();
    scene.server.restart();
    // Its lease and its stagings are gone; nobody else has written, and everything is here.
    scene.guest.ok("main", &more(100_000));
    scene.guest.ok("main", "COMMIT");
    scene.guest.ok("plain", &more(100));
    scene.guest.ok("plain", &more(100_000));
    scene.assert_same();
    scene.both("DELETE FROM t");
    scene.rewriting_transaction();
    scene.assert_same();
}

#[test]
fn a_staged_transaction_that_lost_its_lease_fails_and_leaves_nothing() {
    let mut scene = Scene::with(PageServer::start("memory", &["--lease-ttl-ms", "1500"]));
    scene.insert(1, 10);
    scene.guest.ok("main", "BEGIN");
    scene.guest.ok(
        "main",
        "WITH RECURSIVE n(i) AS (VALUES(100) UNION ALL SELECT i + 1 FROM n WHERE i < 4000)
         INSERT INTO t SELECT i, 'x', printf('%0600d', i) FROM n",
    );
    assert!(scene.staged() > 0);
    scene.guest.pause();
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&scene.server.endpoint(), "t.db", &[]))
        .expect("open");
    other.ok("main", "PRAGMA busy_timeout = 20000");
    other.ok("main", "DELETE FROM t WHERE i = 1");
    scene.guest.resume();
    let failure = scene
        .guest
        .sql("main", "COMMIT")
        .expect_err("the lease is another's");
    assert_ne!(failure.code, 5, "{failure:?}");
    let _ = scene.guest.sql("main", "ROLLBACK");
    scene.guest.ok("plain", "DELETE FROM t WHERE i = 1");
    scene.assert_same();
}

#[test]
fn attached_databases_stage_each_for_itself_and_commit_together() {
    let mut scene = Scene::new();
    let second = uri(&scene.proxy.endpoint(), "second.db", &[]);
    scene
        .guest
        .ok("main", &format!("ATTACH '{second}' AS second"));
    scene.guest.ok("plain", "ATTACH ':memory:' AS second");
    scene.both("PRAGMA second.cache_size = 100");
    scene.both("CREATE TABLE second.u(i INTEGER PRIMARY KEY, v TEXT)");
    let commits = scene.rpc("count", "commit");
    for fault in [None, Some(Fault::AnswerBroken)] {
        if let Some(fault) = fault {
            scene.proxy.arm(Call::Stage, fault.clone());
            scene.proxy.arm(Call::Commit, fault);
        }
        scene.both("DELETE FROM t");
        scene.both("DELETE FROM second.u");
        let staged = scene.staged();
        scene.both("BEGIN");
        scene.insert(1, ROWS);
        scene.both("INSERT INTO second.u SELECT i, w || w FROM t");
        scene.both("UPDATE t SET w = w || 'x'");
        scene.both("COMMIT");
        assert!(scene.staged() > staged + 3);
        scene.assert_same();
        let sum = "SELECT count(*), sum(i), group_concat(v) FROM second.u";
        let right = scene.guest.ok("plain", sum);
        let mut other = Guest::start(&[]);
        let alone = uri(&scene.server.endpoint(), "second.db", &[]);
        other.open("main", &alone).expect("open");
        let sum = sum.replace("second.", "");
        assert_eq!(other.ok("main", &sum), right);
        assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
    }
    assert!(scene.rpc("count", "commit") >= commits + 6);
}

/// A server of protocol 1.0 may not know DropStagings, and ended the session's stream by it: calls failed with I/O errors until the next Welcome.
#[test]
fn a_server_of_protocol_1_0_is_sent_no_message_that_it_may_not_know() {
    for (is_1_0, is_told) in [(false, true), (true, false)] {
        let mut scene = Scene::behind(PageServer::memory(), |welcome| welcome.is_1_0 = is_1_0);
        scene.both("BEGIN");
        scene.insert(1, ROWS);
        assert!(scene.staged() > 0);
        scene.both("ROLLBACK");
        scene.both("INSERT INTO t VALUES(1, 'one', 'row')");
        scene.assert_same();
        // What goes by the stream comes in order: behind this nothing is on the way.
        scene.proxy.take_passed();
        scene.guest.close("main").expect("close");
        let deadline = Instant::now() + Duration::from_secs(30);
        let close = Passed::News(Lost::Close);
        while !scene.proxy.take_passed().contains(&close) {
            assert!(Instant::now() < deadline, "the close never came");
            std::thread::yield_now();
        }
        let drops = scene.proxy.take_commits().drops;
        assert_eq!(drops > 0, is_told, "protocol 1.0: {is_1_0}, {drops}");
    }
}
