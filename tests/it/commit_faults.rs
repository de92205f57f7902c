//! A commit whose request or answer is lost is applied once or not at all, and the application is told the truth.

use std::time::{Duration, Instant};

use pagewire_tests::connection::{
    OUTCOME_UNKNOWN, assert_sound, last_error, number, open_uri, register, rows, uri,
};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

const TIMEOUT_MS: u64 = 4000;

/// A database behind a proxy with the lease held, and the way past the proxy.
struct Scene {
    server: PageServer,
    proxy: Proxy,
    connection: Connection,
}

impl Scene {
    fn new() -> Self {
        Self::with(PageServer::start("memory", &["--lease-ttl-ms", "1500"]))
    }

    fn with(server: PageServer) -> Self {
        register();
        let proxy = Proxy::new(&server.endpoint());
        let connection = open_uri(&uri(
            &proxy.endpoint(),
            "t.db",
            &[&format!("timeout_ms={TIMEOUT_MS}")],
        ))
        .expect("open");
        connection
            .execute_batch("CREATE TABLE t(v TEXT); INSERT INTO t VALUES('first')")
            .expect("create");
        Self {
            server,
            proxy,
            connection,
        }
    }

    /// What another process sees that asks the server itself.
    fn count_elsewhere(&self, database: &str, v: &str) -> usize {
        let mut other = Guest::start(&[]);
        other
            .open("main", &uri(&self.server.endpoint(), database, &[]))
            .expect("open");
        assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
        other
            .ok("main", &format!("SELECT v FROM t WHERE v = '{v}'"))
            .len()
    }

    /// Commits `v`, compares what the application was told with what is there, and goes on working.
    fn commit_and_judge(&self, sql: &str, v: &str) -> rusqlite::Result<()> {
        let began = Instant::now();
        let told = self.connection.execute_batch(sql);
        let said = last_error(&self.connection);
        let waited = began.elapsed();
        assert!(
            waited < Duration::from_millis(3 * TIMEOUT_MS),
            "COMMIT took {waited:?}"
        );
        let there = self.count_elsewhere("t.db", v);
        match &told {
            Ok(()) => assert_eq!(there, 1, "COMMIT said OK"),
            Err(error) if said.contains(OUTCOME_UNKNOWN) => assert!(there <= 1, "{error}: {said}"),
            Err(error) => assert_eq!(there, 0, "COMMIT said {error}: {said}"),
        }
        assert!(
            self.proxy.is_disarmed(),
            "the fault never struck: this has shown nothing"
        );
        if told.is_err() && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").expect("rollback");
        }
        // Without opening anew: what the connection sees is what is there, once, and it can write again.
        assert_eq!(
            number(
                &self.connection,
                &format!("SELECT count(*) FROM t WHERE v = '{v}'")
            ) as usize,
            there
        );
        self.connection
            .execute("INSERT INTO t VALUES('afterwards')", [])
            .expect("write again");
        assert_eq!(
            self.count_elsewhere("t.db", v),
            there,
            "it changed after it was settled"
        );
        assert_eq!(self.count_elsewhere("t.db", "afterwards"), 1);
        assert_sound(&self.connection);
        told
    }
}

const EXPLICIT: &str = "BEGIN; INSERT INTO t VALUES('x'); COMMIT";
const AUTOCOMMIT: &str = "INSERT INTO t VALUES('x')";

#[test]
fn a_commit_whose_answer_broke_off_is_applied_once_and_says_ok() {
    for sql in [EXPLICIT, AUTOCOMMIT] {
        let scene = Scene::new();
        scene.proxy.arm(Call::Commit, Fault::AnswerBroken);
        scene
            .commit_and_judge(sql, "x")
            .expect("the server can be asked what became of it");
    }
}

#[test]
fn a_commit_whose_answer_never_comes_is_applied_once() {
    let scene = Scene::new();
    scene.proxy.arm(Call::Commit, Fault::AnswerSilent);
    // Either settled in time or said to be unknown: judged inside.
    let _ = scene.commit_and_judge(EXPLICIT, "x");
}

#[test]
fn a_commit_whose_request_broke_off_is_told_truly() {
    for sql in [EXPLICIT, AUTOCOMMIT] {
        let scene = Scene::new();
        scene.proxy.arm(Call::Commit, Fault::RequestBroken);
        let _ = scene.commit_and_judge(sql, "x");
    }
}

#[test]
fn a_commit_whose_request_never_arrives_is_told_truly() {
    let scene = Scene::new();
    scene.proxy.arm(Call::Commit, Fault::RequestSilent);
    let _ = scene.commit_and_judge(EXPLICIT, "x");
}

#[test]
fn a_commit_that_arrives_after_it_was_settled_is_not_applied_a_second_time() {
    let scene = Scene::new();
    scene
        .proxy
        .arm(Call::Commit, Fault::RequestLate(Duration::from_millis(700)));
    let told = scene.connection.execute_batch(EXPLICIT);
    let said = last_error(&scene.connection);
    // The original reaches the server only now.
    scene.proxy.wait_for_strike(Call::Commit);
    let there = scene.count_elsewhere("t.db", "x");
    match told {
        Ok(()) => assert_eq!(there, 1),
        Err(error) if said.contains(OUTCOME_UNKNOWN) => assert!(there <= 1, "{error}"),
        Err(error) => assert_eq!(there, 0, "COMMIT said {error}: {said}"),
    }
    assert_sound(&scene.connection);
}

#[test]
fn a_lost_answer_and_a_lost_answer_to_the_question_after_it() {
    let scene = Scene::new();
    scene.proxy.arm(Call::Commit, Fault::AnswerBroken);
    scene.proxy.arm(Call::Resolve, Fault::AnswerBroken);
    // Where the commit itself is repeated nobody asks: then the second fault is still armed, and is used up here.
    let told = scene.connection.execute_batch(EXPLICIT);
    let there = scene.count_elsewhere("t.db", "x");
    assert_eq!(there, 1);
    if let Err(error) = told {
        let said = last_error(&scene.connection);
        assert!(said.contains(OUTCOME_UNKNOWN), "{error}: {said}");
    }
}

#[test]
fn a_commit_over_two_databases_whose_answer_broke_off_is_whole_in_both() {
    for fault in [
        Fault::AnswerBroken,
        Fault::RequestBroken,
        Fault::AnswerSilent,
        Fault::RequestSilent,
    ] {
        let scene = Scene::new();
        let second = uri(
            &scene.proxy.endpoint(),
            "second.db",
            &[&format!("timeout_ms={TIMEOUT_MS}")],
        );
        scene
            .connection
            .execute("ATTACH ?1 AS second", [&second])
            .expect("attach");
        scene
            .connection
            .execute_batch("CREATE TABLE second.t(v TEXT)")
            .expect("create");
        scene.proxy.arm(Call::Commit, fault.clone());
        let sql = "BEGIN; INSERT INTO main.t VALUES('x'); INSERT INTO second.t VALUES('x'); COMMIT";
        let told = scene.commit_and_judge(sql, "x");
        let (first, second) = (
            scene.count_elsewhere("t.db", "x"),
            scene.count_elsewhere("second.db", "x"),
        );
        assert_eq!(
            first, second,
            "half of a commit after {fault:?}, which said {told:?}"
        );
    }
}

#[test]
fn on_the_local_store_a_lost_answer_is_settled_after_the_server_was_killed_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let store = format!("local:{}", dir.path().display());
    let mut scene = Scene::with(PageServer::start(&store, &["--lease-ttl-ms", "1000"]));
    scene.proxy.arm(Call::Commit, Fault::AnswerSilent);
    let (told, said) = std::thread::scope(|scope| {
        let connection = std::mem::replace(
            &mut scene.connection,
            Connection::open_in_memory().expect("memory"),
        );
        let committing = scope.spawn(move || {
            let told = connection.execute_batch(EXPLICIT);
            let said = last_error(&connection);
            (told, said)
        });
        scene.proxy.wait_for_strike(Call::Commit);
        scene.server.kill();
        scene.server.restart();
        committing.join().expect("the committing thread")
    });
    assert_eq!(
        scene.count_elsewhere("t.db", "x"),
        1,
        "the server had made it durable"
    );
    if let Err(error) = told {
        assert!(
            said.contains(OUTCOME_UNKNOWN),
            "COMMIT said {error}: {said}"
        );
    }
}

#[test]
fn w21_a_commit_whose_answer_was_lost_while_another_client_committed() {
    let scene = Scene::new();
    scene.proxy.arm(Call::Commit, Fault::AnswerSilent);
    let (told, said) = std::thread::scope(|scope| {
        let connection = &scene.connection;
        // The connection itself is not Sync: the thread opens its own and takes the lease of this process.
        let endpoint = scene.proxy.endpoint();
        let committing = scope.spawn(move || {
            let own = open_uri(&uri(
                &endpoint,
                "t.db",
                &[&format!("timeout_ms={TIMEOUT_MS}")],
            ))
            .expect("open");
            own.busy_timeout(Duration::from_secs(5))
                .expect("busy timeout");
            let told = own.execute_batch(EXPLICIT);
            (told, last_error(&own))
        });
        scene.proxy.wait_for_strike(Call::Commit);
        // Applied, the answer lost, and now nothing passes until another process has committed.
        scene.proxy.black_out();
        let mut other = Guest::start(&[]);
        other
            .open("main", &uri(&scene.server.endpoint(), "t.db", &[]))
            .expect("open");
        other.ok("main", "PRAGMA busy_timeout = 20000");
        other.ok("main", "INSERT INTO t VALUES('by another')");
        scene.proxy.lift();
        let told = committing.join().expect("the committing thread");
        assert!(connection.is_autocommit());
        told
    });
    assert_eq!(
        scene.count_elsewhere("t.db", "x"),
        1,
        "applied once, COMMIT said {told:?}: {said}"
    );
    assert_eq!(scene.count_elsewhere("t.db", "by another"), 1);
    if let Err(error) = told {
        assert!(
            said.contains(OUTCOME_UNKNOWN),
            "COMMIT said {error}: {said}"
        );
    }
    assert_eq!(number(&scene.connection, "SELECT count(*) FROM t"), 3);
    scene
        .connection
        .busy_timeout(Duration::from_secs(10))
        .expect("busy timeout");
    scene
        .connection
        .execute("INSERT INTO t VALUES('afterwards')", [])
        .expect("write again");
    assert_sound(&scene.connection);
}

#[test]
fn calls_that_may_be_repeated_are_repeated_in_silence() {
    let scene = Scene::new();
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&scene.server.endpoint(), "t.db", &[]))
        .expect("open");
    for fault in [Fault::AnswerBroken, Fault::RequestBroken] {
        for call in [Call::Acquire, Call::Begin] {
            // Another writer in between: the connection has to ask for everything again.
            other.ok("main", "PRAGMA busy_timeout = 10000");
            other.ok("main", "INSERT INTO t VALUES('elsewhere')");
            scene.proxy.arm(call, fault.clone());
            scene
                .connection
                .busy_timeout(Duration::from_secs(10))
                .expect("busy timeout");
            number(&scene.connection, "SELECT count(*) FROM t");
            scene
                .connection
                .execute("INSERT INTO t VALUES('here')", [])
                .expect("insert");
        }
    }
    assert_eq!(
        number(&scene.connection, "SELECT count(*) FROM t WHERE v = 'here'"),
        4
    );
    assert_eq!(
        number(
            &scene.connection,
            "SELECT count(*) FROM t WHERE v = 'elsewhere'"
        ),
        4
    );
}

#[test]
fn a_page_that_is_not_what_was_asked_for_is_an_error_and_never_a_row() {
    for fault in [Fault::FlippedBit, Fault::WrongPages, Fault::Empty] {
        let scene = Scene::new();
        scene
            .connection
            .execute_batch(
                "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                   INSERT INTO t SELECT printf('%0200d', i) FROM n",
            )
            .expect("fill");
        // Another process: nothing cached.
        let mut cold = Guest::start(&[("PAGEWIRE_CACHE_BYTES", "0")]);
        cold.open("main", &uri(&scene.proxy.endpoint(), "t.db", &[]))
            .expect("open");
        cold.ok("main", "SELECT count(*) FROM sqlite_schema");
        scene.proxy.arm(Call::Read, fault.clone());
        let sum = "SELECT count(*), sum(length(v)), sum(CAST(v AS INT)) FROM t";
        let right = rows(&scene.connection, sum).expect("sum");
        match cold.sql("main", sum) {
            // The library may have asked a second time.
            Ok(told) => assert_eq!(told, right, "{fault:?}"),
            Err(failure) => assert!(
                [10, 11].contains(&(failure.code & 0xff)),
                "{fault:?}: {failure:?}"
            ),
        }
        assert!(
            scene.proxy.is_disarmed(),
            "the fault never struck: this has shown nothing"
        );
        assert_eq!(cold.ok("main", sum), right, "after {fault:?}");
    }
}
