//! Databases that go away below a connection that had them open: what else the connection has goes on.

use std::time::{Duration, Instant};

use pagewire_tests::connection::{OUTCOME_UNKNOWN, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::server::PageServer;

const SHORT_TTL: &[&str] = &["--lease-ttl-ms", "1000"];
const TTL: Duration = Duration::from_millis(1000);
const IOERR: i32 = 10;

fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let began = Instant::now();
    while !attempt() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{what} did not come within 30 s"
        );
    }
}

/// The other database was held up until the application opened it anew.
#[test]
fn f7_an_unsettled_commit_over_a_removed_database_does_not_hold_the_other_one_up() {
    for removed in ["first.db", "second.db"] {
        for (fault, rows) in [(Fault::AnswerSilent, 2), (Fault::RequestSilent, 1)] {
            let server = PageServer::start("memory", SHORT_TTL);
            let proxy = Proxy::new(&server.endpoint());
            let mut guest = Guest::start(&[]);
            let at_proxy = |name| uri(&proxy.endpoint(), name, &["timeout_ms=1500"]);
            guest.open("main", &at_proxy("first.db")).expect("open");
            let attach = format!("ATTACH '{}' AS second", at_proxy("second.db"));
            guest.ok("main", &attach);
            for schema in ["main", "second"] {
                guest.ok("main", &format!("CREATE TABLE {schema}.{schema}_t(v)"));
                guest.ok("main", &format!("INSERT INTO {schema}_t VALUES(1)"));
            }
            guest.ok("main", "BEGIN");
            guest.ok("main", "INSERT INTO main_t VALUES(2)");
            guest.ok("main", "INSERT INTO second_t VALUES(2)");
            proxy.arm(Call::Commit, fault.clone());
            guest.begin_sql("main", "COMMIT");
            proxy.wait_for_strike(Call::Commit);
            proxy.black_out();
            let failure = guest.answer().expect_err("nobody knows");
            assert!(failure.message.contains(OUTCOME_UNKNOWN), "{failure:?}");
            // Not before the session has lapsed.
            eventually("the delete", || server.delete(removed).is_ok());
            proxy.lift();
            let kept = if removed == "first.db" {
                "second_t"
            } else {
                "main_t"
            };
            // Some errors are in order until the connection to the server stands again.
            guest.sql("main", "ROLLBACK").ok();
            let count = format!("SELECT count(*) FROM {kept}");
            let mut seen = Err("never asked".to_owned());
            eventually("the other database", || {
                seen = guest.sql("main", &count).map_err(|failure| failure.message);
                seen.is_ok()
            });
            assert_eq!(
                seen,
                Ok(vec![rows.to_string()]),
                "without {removed} after {fault:?}"
            );
            guest.ok("main", &format!("INSERT INTO {kept} VALUES(3)"));
            assert_eq!(guest.ok("main", &count), [(rows + 1).to_string()]);
        }
    }
}

/// A guest with a database open that nobody has committed to, and whose session has lapsed: so its name is gone.
fn lapsed(server: &PageServer, meanwhile: impl FnOnce(&mut Guest)) -> Guest {
    let mut guest = Guest::start(&[]);
    guest
        .open("main", &uri(&server.endpoint(), "new.db", &[]))
        .expect("open");
    assert_eq!(
        guest.ok("main", "SELECT count(*) FROM sqlite_schema"),
        ["0"]
    );
    let id = guest.ok("main", "PRAGMA pagewire_database_id");
    guest.pause();
    let mut other = Guest::start(&[]);
    other
        .open("clock", &uri(&server.endpoint(), "clock.db", &[]))
        .expect("open");
    other.ok("clock", "CREATE TABLE t(v)");
    let began = Instant::now();
    while began.elapsed() < 3 * TTL {
        other.ok("clock", "INSERT INTO t VALUES(1)");
    }
    meanwhile(&mut other);
    guest.resume();
    assert_eq!(guest.ok("main", "PRAGMA pagewire_database_id"), id);
    guest
}

/// The name had gone with the session, and the connection was told that its database was removed and created again.
#[test]
fn a_connection_to_a_database_without_a_commit_goes_on_after_its_session_lapsed() {
    let server = PageServer::start("memory", SHORT_TTL);
    let mut guest = lapsed(&server, |_| {});
    guest.ok("main", "CREATE TABLE t(v)");
    guest.ok("main", "INSERT INTO t VALUES(1)");
    assert_eq!(guest.ok("main", "SELECT v FROM t"), ["1"]);
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&server.endpoint(), "new.db", &[]))
        .expect("open");
    assert_eq!(other.ok("main", "SELECT v FROM t"), ["1"]);
}

/// What another one has put there is not what this connection has open.
#[test]
fn a_database_that_another_process_made_meanwhile_is_not_taken_for_the_empty_one() {
    let server = PageServer::start("memory", SHORT_TTL);
    let mut guest = lapsed(&server, |other| {
        other
            .open("new", &uri(&server.endpoint(), "new.db", &[]))
            .expect("open");
        other.ok("new", "CREATE TABLE theirs(v)");
    });
    let failure = guest.sql("main", "CREATE TABLE t(v)").expect_err("another");
    assert_eq!(failure.code & 0xff, IOERR, "{failure:?}");
    assert!(failure.message.contains("created again"), "{failure:?}");
    guest
        .open("again", &uri(&server.endpoint(), "new.db", &[]))
        .expect("open");
    assert_eq!(
        guest.ok("again", "SELECT name FROM sqlite_schema"),
        ["theirs"]
    );
}
