//! A server that is stopped, gone, or talks nonsense: an SQLite error within the deadline, no crash, and recovery.

use std::time::{Duration, Instant};

use pagewire_tests::connection::{
    assert_sound, code, last_error, number, open_uri, outcome_is_unknown, register, rows, uri,
};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::server::PageServer;
use pagewire_tests::wire::{Relay, Wire};
use rusqlite::Connection;

const TIMEOUT_MS: u64 = 1500;
const TTL_MS: u64 = 1000;
const SHORT_TTL: &[&str] = &["--lease-ttl-ms", "1000"];
/// What a statement may take on a loaded machine. A COMMIT waits for its answer until its lease is surely over (the TTL and
/// a second), and a second for what became of it; everything else waits to the deadline that was set.
const PATIENCE: Duration = Duration::from_millis(TTL_MS + 1000 + 1000 + TIMEOUT_MS + 1500);
const IOERR: i32 = 10;
const BUSY: i32 = 5;
const CANTOPEN: i32 = 14;

fn connect(endpoint: &str, name: &str) -> rusqlite::Result<Connection> {
    register();
    open_uri(&uri(endpoint, name, &[&format!("timeout_ms={TIMEOUT_MS}")]))
}

/// Opens and asks for something, as every program does first.
fn open_and_ask(endpoint: &str) -> rusqlite::Result<i64> {
    connect(endpoint, "t.db")?.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

fn timed<T>(what: &str, action: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let result = action();
    let took = began.elapsed();
    assert!(took < PATIENCE, "{what} took {took:?}");
    result
}

/// One of the codes that an application understands as "the database can't be reached".
fn assert_unreachable(error: &rusqlite::Error) {
    let primary = code(error) & 0xff;
    assert!(
        [IOERR, CANTOPEN, BUSY].contains(&primary),
        "{error} ({})",
        code(error)
    );
}

fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let began = Instant::now();
    while !attempt() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{what} did not come within 30 s"
        );
    }
}

#[test]
fn a_stopped_server_is_an_error_within_the_deadline_and_the_connection_recovers() {
    let server = PageServer::start("memory", SHORT_TTL);
    let connection = connect(&server.endpoint(), "t.db").expect("open");
    connection
        .execute_batch("CREATE TABLE t(v TEXT); INSERT INTO t VALUES('before')")
        .expect("create");
    server.pause();
    let told = timed("INSERT", || {
        connection.execute("INSERT INTO t VALUES('meanwhile')", [])
    });
    let error = told.expect_err("nobody was there");
    let unknown = outcome_is_unknown(&connection);
    assert_unreachable(&error);
    let again = timed("a second INSERT", || {
        connection.execute("INSERT INTO t VALUES('meanwhile too')", [])
    });
    assert_unreachable(&again.expect_err("nobody is there"));
    server.resume();
    eventually("recovery without opening anew", || {
        timed("INSERT", || {
            connection.execute("INSERT INTO t VALUES('after')", [])
        })
        .is_ok()
    });
    let there = number(&connection, "SELECT count(*) FROM t WHERE v = 'meanwhile'");
    assert!(
        there <= i64::from(unknown),
        "{there} rows, unknown outcome: {unknown}"
    );
    assert_eq!(
        number(&connection, "SELECT count(*) FROM t WHERE v = 'after'"),
        1
    );
    assert_eq!(
        number(&connection, "SELECT count(*) FROM t WHERE v = 'before'"),
        1
    );
    assert_sound(&connection);
}

#[test]
fn l1_opening_on_a_stopped_server_ends_within_the_deadline() {
    let server = PageServer::start("memory", SHORT_TTL);
    server.pause();
    let error = timed("open", || open_and_ask(&server.endpoint())).expect_err("nobody answers");
    assert_unreachable(&error);
    server.resume();
    eventually("an answer", || open_and_ask(&server.endpoint()).is_ok());
}

#[test]
fn opening_without_a_server_is_cantopen_and_names_the_endpoint() {
    let relay = Relay::new("127.0.0.1:1");
    let endpoint = relay.endpoint();
    drop(relay);
    let error = timed("open", || open_and_ask(&endpoint)).expect_err("nobody is there");
    assert_eq!(code(&error) & 0xff, CANTOPEN, "{error}");
    let said = last_error(&Connection::open_in_memory().expect("memory"));
    assert!(
        said.contains(&endpoint),
        "{said:?} does not name {endpoint}"
    );
    assert!(said.contains("t.db"), "{said:?} does not name the database");
}

#[test]
fn a_server_that_was_killed_and_came_back_has_everything_and_the_connection_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = PageServer::start(&format!("local:{}", dir.path().display()), SHORT_TTL);
    let connection = connect(&server.endpoint(), "t.db").expect("open");
    connection
        .execute_batch("CREATE TABLE t(v TEXT); INSERT INTO t VALUES('before')")
        .expect("create");
    server.kill();
    let error = timed("INSERT", || {
        connection.execute("INSERT INTO t VALUES('meanwhile')", [])
    })
    .expect_err("nobody is there");
    assert_unreachable(&error);
    server.restart();
    eventually("recovery without opening anew", || {
        connection
            .execute("INSERT INTO t VALUES('after')", [])
            .is_ok()
    });
    assert_eq!(
        number(&connection, "SELECT count(*) FROM t WHERE v = 'before'"),
        1
    );
    assert_eq!(
        number(&connection, "SELECT count(*) FROM t WHERE v = 'after'"),
        1
    );
    assert_sound(&connection);
}

#[test]
fn w19_what_was_acknowledged_survives_a_killed_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = PageServer::start(
        &format!("local:{}", dir.path().display()),
        &["--lease-ttl-ms", "500"],
    );
    let mut acknowledged = 0;
    for turn in 0..10 {
        let connection = connect(&server.endpoint(), "t.db").expect("open");
        connection
            .busy_timeout(Duration::from_secs(10))
            .expect("busy timeout");
        connection
            .execute_batch("CREATE TABLE IF NOT EXISTS t(turn INT)")
            .expect("create");
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), acknowledged);
        for _ in 0..=turn % 3 {
            connection
                .execute("INSERT INTO t VALUES(?1)", [turn])
                .expect("insert");
            acknowledged += 1;
        }
        server.kill();
        server.restart();
    }
    let connection = connect(&server.endpoint(), "t.db").expect("open");
    assert_eq!(number(&connection, "SELECT count(*) FROM t"), acknowledged);
    assert_sound(&connection);
}

#[test]
fn a_memory_server_that_restarted_is_another_store_and_gets_no_old_pages() {
    let mut server = PageServer::start("memory", SHORT_TTL);
    let connection = connect(&server.endpoint(), "t.db").expect("open");
    connection
        .execute_batch("CREATE TABLE t(v TEXT); INSERT INTO t VALUES('before')")
        .expect("create");
    server.kill();
    server.restart();
    // Another client comes first and makes a database of that name.
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    other.ok("main", "PRAGMA busy_timeout = 10000");
    other.ok("main", "CREATE TABLE quite_another(x)");
    other.ok("main", "INSERT INTO quite_another VALUES(1)");
    for _ in 0..3 {
        let told = timed("INSERT", || {
            connection.execute("INSERT INTO t VALUES('after')", [])
        });
        told.expect_err("the table is gone with the store");
    }
    assert_eq!(
        other.ok("main", "SELECT name FROM sqlite_schema"),
        ["quite_another"]
    );
    assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
    let anew = connect(&server.endpoint(), "t.db").expect("open");
    assert_eq!(number(&anew, "SELECT count(*) FROM quite_another"), 1);
}

fn nonsense() -> Vec<Wire> {
    let settings_frame = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let huge_frame = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let noise = (0..20_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    vec![
        Wire::Silent,
        Wire::Closed,
        Wire::Nonsense(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno".to_vec()),
        Wire::Nonsense(noise),
        Wire::Nonsense(vec![0; 100_000]),
        Wire::Nonsense([settings_frame.as_slice(), &huge_frame].concat()),
        Wire::Nonsense([settings_frame.as_slice(), b"%s%n%d\0\xff"].concat()),
    ]
}

#[test]
fn opening_on_nonsense_ends_with_an_error_and_the_next_try_succeeds_when_it_is_over() {
    let server = PageServer::start("memory", SHORT_TTL);
    let relay = Relay::new(server.address());
    for wire in nonsense() {
        relay.set(wire.clone());
        let error = timed("open", || open_and_ask(&relay.endpoint())).expect_err("nonsense");
        assert_unreachable(&error);
    }
    relay.cut();
    eventually("an answer", || open_and_ask(&relay.endpoint()).is_ok());
}

#[test]
fn nonsense_in_the_middle_of_a_connection_is_an_error_and_no_row_is_wrong_afterwards() {
    let server = PageServer::start("memory", SHORT_TTL);
    let relay = Relay::new(server.address());
    let connection = connect(&relay.endpoint(), "t.db").expect("open");
    connection
        .execute_batch("CREATE TABLE t(v TEXT); INSERT INTO t VALUES('before')")
        .expect("create");
    let mut sure = vec!["before".to_owned()];
    let mut unsure = Vec::new();
    for (turn, wire) in nonsense().into_iter().enumerate() {
        relay.set(wire);
        let v = format!("during {turn}");
        let told = timed("INSERT", || {
            connection.execute("INSERT INTO t VALUES(?1)", [&v])
        });
        assert_unreachable(&told.expect_err("nonsense"));
        if outcome_is_unknown(&connection) {
            unsure.push(v);
        }
        relay.cut();
        let v = format!("after {turn}");
        eventually("recovery", || {
            match connection.execute("INSERT INTO t VALUES(?1)", [&v]) {
                Ok(_) => true,
                Err(error) => {
                    assert!(
                        !outcome_is_unknown(&connection),
                        "{error}: a commit was sent"
                    );
                    false
                }
            }
        });
        sure.push(v);
    }
    let there = rows(&connection, "SELECT v FROM t").expect("rows");
    for v in &sure {
        assert_eq!(
            there.iter().filter(|row| *row == v).count(),
            1,
            "{v} in {there:?}"
        );
    }
    for row in there.iter().filter(|row| !sure.contains(row)) {
        assert!(
            unsure.contains(row),
            "{row} is there, and its INSERT failed with a definite error"
        );
    }
    assert_sound(&connection);
}

#[test]
fn a_cut_connection_is_mended_without_an_error() {
    let server = PageServer::start("memory", SHORT_TTL);
    let relay = Relay::new(server.address());
    let connection = connect(&relay.endpoint(), "t.db").expect("open");
    connection
        .busy_timeout(Duration::from_secs(5))
        .expect("busy timeout");
    connection
        .execute_batch("CREATE TABLE t(v INT)")
        .expect("create");
    for turn in 0..10 {
        relay.cut();
        connection
            .execute("INSERT INTO t VALUES(?1)", [turn])
            .expect("insert");
    }
    assert_eq!(number(&connection, "SELECT count(*) FROM t"), 10);
}

#[test]
fn l2_a_call_that_hangs_while_the_connection_lives_ends_at_its_deadline() {
    let server = PageServer::start("memory", SHORT_TTL);
    let proxy = Proxy::new(&server.endpoint());
    let writer = connect(&server.endpoint(), "t.db").expect("open");
    writer
        .execute_batch("CREATE TABLE t(v INT); INSERT INTO t VALUES(1)")
        .expect("create");
    for call in [Call::Open, Call::Begin, Call::Acquire] {
        let mut guest = Guest::start(&[]);
        if call == Call::Open {
            proxy.arm(call, Fault::RequestSilent);
        }
        let uri = uri(
            &proxy.endpoint(),
            "t.db",
            &[&format!("timeout_ms={TIMEOUT_MS}")],
        );
        let opened = timed("open", || guest.open("main", &uri));
        if opened.is_ok() {
            timed("SELECT", || guest.sql("main", "SELECT count(*) FROM t")).ok();
            if call != Call::Open {
                writer
                    .execute("INSERT INTO t VALUES(1)", [])
                    .expect("insert");
                proxy.arm(call, Fault::RequestSilent);
            }
            timed("SELECT", || guest.sql("main", "SELECT count(*) FROM t")).ok();
            timed("INSERT", || guest.sql("main", "INSERT INTO t VALUES(2)")).ok();
        }
        proxy.wait_for_strike(call);
        guest.open("again", &uri).expect("open");
        guest.ok("again", "SELECT count(*) FROM t");
        assert!(guest.is_alive());
    }
}

/// The server has such a database open for the session, which does not know of it and would never close it.
#[test]
fn an_open_whose_answer_was_lost_does_not_hold_the_database_for_ever() {
    let server = PageServer::start("memory", SHORT_TTL);
    let proxy = Proxy::new(&server.endpoint());
    connect(&server.endpoint(), "t.db")
        .expect("open")
        .execute_batch("CREATE TABLE t(v INT)")
        .expect("create");
    let at_proxy = |name| {
        let timeout = format!("timeout_ms={TIMEOUT_MS}");
        uri(&proxy.endpoint(), name, &[&timeout])
    };
    let mut guest = Guest::start(&[]);
    guest.open("kept", &at_proxy("kept.db")).expect("open");
    guest.ok("kept", "CREATE TABLE t(v INT)");
    proxy.arm(Call::Open, Fault::AnswerSilent);
    let lost = timed("open", || {
        guest.open("lost", &at_proxy("t.db"))?;
        guest.sql("lost", "SELECT count(*) FROM t")
    });
    assert!(lost.is_err(), "{lost:?}");
    proxy.wait_for_strike(Call::Open);
    eventually("the delete", || server.delete("t.db").is_ok());
    let refused = server.delete("kept.db").expect_err("it is open");
    assert!(refused.contains("open in 1 session"), "{refused}");
    guest.ok("kept", "INSERT INTO t VALUES(1)");
}
