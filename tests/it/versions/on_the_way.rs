//! Calls of history that something on the way does not know: a proxy, or a server of an older release that has taken the place of a newer one.

use std::time::{Duration, Instant};

use pagewire_proto::status::Reason;
use pagewire_tests::connection::{open_uri, register, rows, uri};
use pagewire_tests::proxy::{Call, Fault, Passed, Proxy};
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

use super::{all, run, text};

const TAG: &str = "SELECT pagewire_tag('here')";
const BRANCH: &str = "SELECT pagewire_branch('b.db')";
const TAGS: &str = "SELECT group_concat(tag) FROM pagewire_versions";
const NO_VERSIONS: &str = "keeps no old versions (start it with";
const NOT_KNOWN: &str = "it is not known whether this was done";

/// A database of one version, through one proxy or several.
fn through(endpoint: &str, timeout_ms: u64) -> Connection {
    register();
    let timeout = format!("timeout_ms={timeout_ms}");
    let connection = open_uri(&uri(endpoint, "t.db", &[&timeout])).expect("open");
    run(&connection, "CREATE TABLE t(n INT)");
    connection
}

fn refused(connection: &Connection, sql: &str) -> String {
    rows(connection, sql).expect_err(sql).to_string()
}

fn calls_of_history(proxy: &Proxy) -> usize {
    let passed = proxy.take_passed();
    let history = |passed: &&Passed| matches!(passed, Passed::Call(Call::History));
    passed.iter().filter(history).count()
}

/// Bug: what a proxy said while it did not reach its server was told at once as a store that keeps no old versions. The damage: at=, tags and branches
/// failed where everything else waited.
#[test]
fn a_call_that_a_proxy_does_not_know_for_a_moment_is_asked_again() {
    let server = PageServer::versioned();
    let proxy = Proxy::new(&server.endpoint());
    let connection = through(&proxy.endpoint(), 20_000);
    for (sql, told) in [(TAG, "1"), (TAGS, "here"), (BRANCH, "1")] {
        for _ in 0..3 {
            proxy.arm(Call::History, Fault::UnknownCall);
        }
        assert_eq!(text(&connection, sql), told, "{sql}");
        assert!(proxy.is_disarmed(), "{sql}");
    }
}

#[test]
fn a_proxy_that_never_passes_a_call_on_is_named_when_the_time_is_over() {
    let server = PageServer::versioned();
    let proxy = Proxy::new(&server.endpoint());
    let connection = through(&proxy.endpoint(), 1000);
    for sql in [TAG, TAGS, BRANCH] {
        for _ in 0..100 {
            proxy.arm(Call::History, Fault::UnknownCall);
        }
        let told = refused(&connection, sql);
        proxy.disarm();
        assert!(told.contains("the proxy in between"), "{sql}: {told}");
        assert!(!told.contains(NO_VERSIONS), "{sql}: {told}");
    }
    assert_eq!(calls_of_history(&proxy), 0);
    assert_eq!(text(&connection, TAG), "1");
}

/// A server is left where its stream breaks too (E1): the call goes on with the next one.
#[test]
fn where_there_is_another_server_the_call_goes_on_there() {
    let server = PageServer::versioned();
    let (first, second) = (
        Proxy::new(&server.endpoint()),
        Proxy::new(&server.endpoint()),
    );
    let both = format!("{},{}", first.endpoint(), second.endpoint());
    let connection = through(&both, 20_000);
    for _ in 0..1000 {
        first.arm(Call::History, Fault::UnknownCall);
    }
    let first = std::thread::spawn(move || {
        first.wait_for_strike(Call::History);
        first.wait_for_strike(Call::History);
        drop(first);
    });
    assert_eq!(text(&connection, TAG), "1");
    first.join().expect("the first proxy");
    assert_eq!(calls_of_history(&second), 1);
}

/// What F11 of docs/simulation.md was about.
#[test]
fn a_call_that_a_server_of_an_older_release_has_not_is_told_at_once() {
    let server = PageServer::versioned();
    let proxy = Proxy::new(&server.endpoint());
    proxy.set_commits(|commits| commits.keeps_no_versions = true);
    let connection = through(&proxy.endpoint(), 20_000);
    for sql in [TAG, TAGS, BRANCH] {
        proxy.arm(Call::History, Fault::UnknownCall);
        let begun = Instant::now();
        let told = refused(&connection, sql);
        assert!(told.contains(NO_VERSIONS), "{sql}: {told}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{sql}");
    }
    assert_eq!(calls_of_history(&proxy), 0);
}

/// Bug: a tag or a branch whose answer was lost, and which a server without such calls was asked for again, was told as something that the server does
/// not support, though it had been made.
#[test]
fn what_may_have_been_done_is_not_told_as_unsupported() {
    let server = PageServer::versioned();
    let proxy = Proxy::new(&server.endpoint());
    proxy.set_commits(|commits| commits.keeps_no_versions = true);
    let connection = through(&proxy.endpoint(), 20_000);
    for sql in [TAG, BRANCH, "SELECT pagewire_untag('here')"] {
        proxy.arm(Call::History, Fault::AnswerBroken);
        proxy.arm(Call::History, Fault::UnknownCall);
        let told = refused(&connection, sql);
        assert!(proxy.is_disarmed(), "{sql}");
        assert!(told.contains(NOT_KNOWN), "{sql}: {told}");
        assert!(!told.contains(NO_VERSIONS), "{sql}: {told}");
    }
    // Also with a session that was begun anew in between.
    proxy.arm(Call::History, Fault::AnswerBroken);
    proxy.arm(Call::History, Fault::Refused(Reason::DatabaseNotOpen));
    proxy.arm(Call::History, Fault::UnknownCall);
    let told = refused(&connection, TAG);
    assert!(proxy.is_disarmed());
    assert!(told.contains(NOT_KNOWN), "{told}");
    assert_eq!(all(&connection, TAGS), ["here"]);
    // What was never carried out is told as it is.
    proxy.arm(Call::History, Fault::Refused(Reason::Overloaded));
    proxy.arm(Call::History, Fault::UnknownCall);
    let told = refused(&connection, TAG);
    assert!(proxy.is_disarmed());
    assert!(told.contains(NO_VERSIONS), "{told}");
}
