//! An endpoint that names several servers: clients go on with the next one, and lose nothing by it (`sqlite_vfs/src/client/way.rs`).
//!
//! Two relays in front of one server are two servers of one store, without a store that several servers can have.

use std::time::{Duration, Instant};

use pagewire_tests::connection::{
    assert_sound, code, last_error, number, open_uri, outcome_is_unknown, register, uri,
};
use pagewire_tests::proxy::{Call, Fault, News, Passed, Proxy};
use pagewire_tests::server::PageServer;
use pagewire_tests::wire::{Relay, Wire};
use rusqlite::Connection;

/// Longer than a move takes on a loaded machine.
const TIMEOUT_MS: u64 = 20_000;

struct Scene {
    // Before the server, which they are in front of.
    first: Relay,
    second: Relay,
    server: PageServer,
}

impl Scene {
    fn new() -> Self {
        register();
        let server = PageServer::start("versioned-memory", &["--lease-ttl-ms", "1000"]);
        Self {
            first: Relay::new(server.address()),
            second: Relay::new(server.address()),
            server,
        }
    }

    fn connect(&self) -> Connection {
        let endpoint = format!("{},{}", self.first.endpoint(), self.second.endpoint());
        open_uri(&uri(
            &endpoint,
            "t.db",
            &[&format!("timeout_ms={TIMEOUT_MS}")],
        ))
        .expect("open")
    }
}

fn in_use(connection: &Connection) -> String {
    connection
        .query_row(
            "SELECT value FROM pagewire_status WHERE key = 'endpoint_in_use'",
            [],
            |row| row.get(0),
        )
        .expect("the status")
}

/// Writes until the endpoint in use is this one: how many commits are acknowledged, and of how many nobody knows.
fn write_until(connection: &Connection, endpoint: &str) -> (i64, i64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let (mut acknowledged, mut unknown) = (0, 0);
    while in_use(connection) != endpoint {
        assert!(Instant::now() < deadline, "nobody went to {endpoint}");
        match connection.execute("INSERT INTO t VALUES('on the way')", []) {
            Ok(_) => acknowledged += 1,
            Err(_) => unknown += i64::from(outcome_is_unknown(connection)),
        }
    }
    (acknowledged, unknown)
}

#[test]
fn the_first_server_that_answers_is_taken() {
    let scene = Scene::new();
    scene.first.set(Wire::Closed);
    let connection = scene.connect();
    connection.execute_batch("CREATE TABLE t(v)").expect("make");
    assert_eq!(in_use(&connection), scene.second.endpoint());
}

#[test]
fn e1_a_writer_goes_on_with_the_next_server_and_back_and_keeps_every_commit() {
    let scene = Scene::new();
    let connection = scene.connect();
    connection.execute_batch("CREATE TABLE t(v)").expect("make");
    assert_eq!(in_use(&connection), scene.first.endpoint());
    let (mut acknowledged, mut unknown) = (0, 0);
    for (broken, next) in [
        (&scene.first, &scene.second),
        (&scene.second, &scene.first),
        (&scene.first, &scene.second),
    ] {
        next.set(Wire::Relay);
        broken.set(Wire::Closed);
        let written = write_until(&connection, &next.endpoint());
        acknowledged += written.0;
        unknown += written.1;
    }
    let there = number(&connection, "SELECT count(*) FROM t");
    let possible = acknowledged..=acknowledged + unknown;
    assert!(possible.contains(&there), "{there} rows of {possible:?}");
    assert_sound(&connection);
    let beside = open_uri(&uri(&scene.server.endpoint(), "t.db", &["mode=ro"])).expect("open");
    assert_eq!(number(&beside, "SELECT count(*) FROM t"), there);
}

/// A server that is silent, as behind a cut cable: calls that wait for it do not wait until their deadline.
#[test]
fn e2_a_call_to_a_silent_server_goes_on_with_the_next_one() {
    let scene = Scene::new();
    let connection = scene.connect();
    connection.execute_batch("CREATE TABLE t(v)").expect("make");
    scene.first.set(Wire::Silent);
    let begun = Instant::now();
    // Reads are made again elsewhere; the lease is trusted no longer, so this asks.
    let mut asked = 0;
    while in_use(&connection) != scene.second.endpoint() {
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), 0);
        asked += 1;
        assert!(begun.elapsed() < Duration::from_millis(TIMEOUT_MS));
    }
    assert!(asked > 0);
    connection
        .execute("INSERT INTO t VALUES(1)", [])
        .expect("a write");
}

/// E3: a cut connection alone moves nobody.
#[test]
fn e3_a_broken_stream_alone_moves_nobody() {
    let scene = Scene::new();
    let connection = scene.connect();
    connection.execute_batch("CREATE TABLE t(v)").expect("make");
    for _ in 0..3 {
        scene.first.cut();
        let deadline = Instant::now() + Duration::from_secs(20);
        while connection.execute("INSERT INTO t VALUES(1)", []).is_err() {
            assert!(Instant::now() < deadline, "no recovery");
        }
    }
    assert_eq!(in_use(&connection), scene.first.endpoint());
}

/// E4: a server of another store is none of ours.
#[test]
fn e4_a_server_of_another_store_ends_what_is_open() {
    let scene = Scene::new();
    let other = PageServer::memory();
    let endpoint = format!("{},{}", scene.first.endpoint(), other.endpoint());
    let connection = open_uri(&uri(&endpoint, "t.db", &["timeout_ms=3000"])).expect("open");
    connection.execute_batch("CREATE TABLE t(v)").expect("make");
    scene.first.set(Wire::Closed);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut said = String::new();
    while !said.contains("another store") {
        assert!(Instant::now() < deadline, "{said}");
        let Err(error) = connection.execute("INSERT INTO t VALUES(1)", []) else {
            panic!("a commit went into another store");
        };
        assert_eq!(code(&error) & 0xff, 10, "{error}");
        said = last_error(&connection);
    }
}

/// Bug: a session that came to a server which knew it still settled its commit there while its Hello was under way. The one advanced the epoch, the
/// other listed the lease under the one before, and the lease was lost with the transaction, in about four moves of ten.
#[test]
fn p5_a_commit_in_doubt_is_settled_behind_the_welcome_of_the_next_server() {
    register();
    let server = PageServer::start("versioned-memory", &["--lease-ttl-ms", "1000"]);
    let (first, second) = (
        Proxy::new(&server.endpoint()),
        Proxy::new(&server.endpoint()),
    );
    let endpoint = format!("{},{}", first.endpoint(), second.endpoint());
    let mut connection = open_uri(&uri(
        &endpoint,
        "t.db",
        &[&format!("timeout_ms={TIMEOUT_MS}")],
    ))
    .expect("open");
    connection.execute_batch("CREATE TABLE t(v)").expect("make");
    assert_eq!(in_use(&connection), first.endpoint());
    // The Welcome takes longer than any pause between two attempts to settle.
    second.set_news(News {
        delay: Duration::from_millis(600),
        ..News::default()
    });
    // One that was applied and one that never came.
    for (fault, from, to) in [
        (Fault::AnswerSilent, &first, &second),
        (Fault::RequestSilent, &second, &first),
    ] {
        to.take_passed();
        from.arm(Call::Commit, fault.clone());
        std::thread::scope(|scope| {
            let connection = &mut connection;
            let write = scope.spawn(move || connection.execute("INSERT INTO t VALUES(1)", []));
            from.wait_for_strike(Call::Commit);
            from.black_out();
            write.join().expect("no panic").expect("a write");
        });
        assert_eq!(in_use(&connection), to.endpoint());
        let passed = to.take_passed();
        let of = |what| passed.iter().position(|passed| *passed == what);
        let (welcome, resolve) = (of(Passed::Welcome), of(Passed::Call(Call::Resolve)));
        assert!(resolve.is_some(), "{fault:?}: nothing was settled");
        assert!(welcome < resolve && welcome.is_some(), "{passed:?}");
        from.lift();
        first.set_news(News {
            delay: Duration::from_millis(600),
            ..News::default()
        });
        second.set_news(News::default());
    }
    assert_eq!(number(&connection, "SELECT count(*) FROM t"), 2);
    assert_sound(&connection);
}
