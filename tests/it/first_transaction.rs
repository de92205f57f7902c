//! The first transaction of a database that fails leaves an empty database or a whole one, and the connection sees which (K8 of
//! `sqlite_vfs/src/connection/mod.rs`).
//!
//! Found by SQLite's own index4.test on a loaded machine: "file is not a database". SQLite recognises its cache by the change counter, and
//! remembers the counter that it writes. Its rollback restores the one before together with page 1, from the journal; the first
//! transaction has no page 1 to restore, so the counter of what was rolled back stayed, and the cache held an empty page 1. A version
//! that brought this counter then looked like what was in the cache: the transaction itself, whose COMMIT had got no answer
//! but was applied, or that of another client.

use pagewire_proto::status::Reason;
use pagewire_tests::connection::{
    assert_sound, code, number, open_uri, outcome_is_unknown, register, rows, uri,
};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

const IOERR: i32 = 10;
const FULL: i32 = 13;
const ROWS: i64 = 400;
const SCHEMA: &str = "SELECT count(*) FROM sqlite_schema";
const COUNT: &str = "SELECT count(*) FROM t";
const MODES: [&str; 4] = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"];

/// A database that is not there yet, behind a proxy.
struct Scene {
    server: PageServer,
    proxy: Proxy,
    connection: Connection,
}

impl Scene {
    /// `spills`: the transaction does not fit into SQLite's cache.
    fn new(mode: &str, spills: bool) -> Self {
        register();
        let server = PageServer::memory();
        let proxy = Proxy::new(&server.endpoint());
        let connection =
            open_uri(&uri(&proxy.endpoint(), "t.db", &["timeout_ms=3000"])).expect("open");
        rows(&connection, &format!("PRAGMA journal_mode={mode}")).expect("journal mode");
        rows(
            &connection,
            &format!("PRAGMA cache_size={}", if spills { 20 } else { 2000 }),
        )
        .expect("cache size");
        Self {
            server,
            proxy,
            connection,
        }
    }

    /// What another process finds that asks the server itself.
    fn elsewhere(&self, sql: &str) -> Vec<String> {
        let mut other = self.other();
        assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
        other.ok("main", sql)
    }

    fn other(&self) -> Guest {
        let mut other = Guest::start(&[]);
        other
            .open("main", &uri(&self.server.endpoint(), "t.db", &[]))
            .expect("open");
        other.ok("main", "PRAGMA busy_timeout = 10000");
        other
    }

    /// The first transaction fails with this code.
    fn fails(&self, expected: i32) {
        let error = self
            .connection
            .execute_batch(&first(7))
            .expect_err("it was armed");
        assert_eq!(code(&error) & 0xff, expected, "{error}");
        assert!(self.proxy.is_disarmed(), "the fault never struck");
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").expect("rollback");
        }
    }

    /// Its outcome is unknown until the connection begins anew.
    fn ends_unknown(&self, commit: Fault) {
        self.proxy.arm(Call::Commit, commit);
        self.proxy
            .arm(Call::Resolve, Fault::Refused(Reason::Invalid));
        self.fails(IOERR);
        assert!(outcome_is_unknown(&self.connection));
    }

    /// The connection writes, and everybody sees what it has written.
    fn goes_on(&self, before: i64) {
        self.connection
            .execute("INSERT INTO t VALUES(-1, 'afterwards')", [])
            .expect("write again");
        assert_eq!(number(&self.connection, COUNT), before + 1);
        assert_eq!(self.elsewhere(COUNT), [(before + 1).to_string()]);
        assert_sound(&self.connection);
    }
}

/// Makes the table and fills about 70 pages, on each of which is `value`.
fn first(value: u32) -> String {
    format!(
        "BEGIN; CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
         WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
           INSERT INTO t SELECT i, printf('%0600d', {value}) FROM n;
         COMMIT"
    )
}

#[test]
fn one_that_was_applied_without_an_answer_is_there_as_a_whole() {
    for mode in MODES {
        for spills in [false, true] {
            let scene = Scene::new(mode, spills);
            scene.ends_unknown(Fault::AnswerBroken);
            assert_eq!(number(&scene.connection, SCHEMA), 1, "{mode} {spills}");
            assert_eq!(number(&scene.connection, COUNT), ROWS, "{mode} {spills}");
            assert_sound(&scene.connection);
            scene.goes_on(ROWS);
        }
    }
}

#[test]
fn one_that_never_arrived_leaves_an_empty_database() {
    for mode in MODES {
        for spills in [false, true] {
            let scene = Scene::new(mode, spills);
            scene.ends_unknown(Fault::RequestBroken);
            assert_eq!(number(&scene.connection, SCHEMA), 0, "{mode} {spills}");
            scene.connection.execute_batch(&first(8)).expect("again");
            scene.goes_on(ROWS);
        }
    }
}

#[test]
fn one_that_was_refused_is_not_taken_for_that_of_another_client() {
    for mode in MODES {
        // Looked at in between, while it is empty, or not.
        for looks in [false, true] {
            let scene = Scene::new(mode, true);
            scene
                .proxy
                .arm(Call::Commit, Fault::Refused(Reason::StoreFull));
            scene.fails(FULL);
            if looks {
                assert_eq!(number(&scene.connection, SCHEMA), 0);
            }
            // As many pages.
            let mut other = scene.other();
            for sql in first(8).split(';') {
                other.ok("main", sql.trim());
            }
            assert_eq!(number(&scene.connection, COUNT), ROWS, "{mode} {looks}");
            let sum = number(&scene.connection, "SELECT sum(v) FROM t");
            assert_eq!(sum, 8 * ROWS, "{mode} {looks}");
            scene.goes_on(ROWS);
        }
    }
}

/// SQLite counts on from the counter that it remembers: here to 2, which the next version of another client has. What it had in its cache
/// was taken for that version, without an error, and its next COMMIT would have undone the other's.
#[test]
fn after_one_that_failed_the_commit_of_another_client_is_seen() {
    for mode in MODES {
        for failures in 1..=2 {
            let scene = Scene::new(mode, false);
            for _ in 0..failures {
                scene
                    .proxy
                    .arm(Call::Commit, Fault::Refused(Reason::StoreFull));
                scene.fails(FULL);
            }
            scene
                .connection
                .execute_batch(&first(7))
                .expect("the next attempt");
            let mut other = scene.other();
            for turn in 1..=failures + 1 {
                // As many pages.
                other.ok(
                    "main",
                    &format!("UPDATE t SET v = printf('%0600d', 10 + {turn})"),
                );
                let sum = number(&scene.connection, "SELECT sum(v) FROM t");
                assert_eq!(sum, (10 + turn) * ROWS, "{mode} {failures}");
            }
            scene.goes_on(ROWS);
        }
    }
}

/// SQLite fails in the middle of its COMMIT, when page 1 is written, and pagewire is told of nothing but the end of the lock.
#[test]
fn one_that_two_databases_could_not_commit_together_leaves_both_empty() {
    for mode in MODES {
        let scene = Scene::new(mode, false);
        let second = uri(&scene.proxy.endpoint(), "second.db", &["timeout_ms=3000"]);
        scene
            .connection
            .execute("ATTACH ?1 AS second", [&second])
            .expect("attach");
        scene
            .proxy
            .arm(Call::Commit, Fault::Refused(Reason::StoreFull));
        let sql = "BEGIN; CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT); CREATE TABLE second.t(v TEXT); COMMIT";
        scene
            .connection
            .execute_batch(sql)
            .expect_err("it was armed");
        assert!(scene.proxy.is_disarmed(), "the fault never struck");
        if !scene.connection.is_autocommit() {
            scene
                .connection
                .execute_batch("ROLLBACK")
                .expect("rollback");
        }
        let mut other = scene.other();
        other.ok("main", "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT)");
        assert_eq!(number(&scene.connection, COUNT), 0, "{mode}");
        scene.goes_on(0);
    }
}

/// In exclusive locking mode nothing is settled before the lock goes: until then the connection may refuse, and sees no half.
#[test]
fn in_exclusive_locking_mode_it_is_empty_or_whole_too() {
    for mode in MODES {
        for fault in [Fault::AnswerBroken, Fault::RequestBroken] {
            let there = matches!(fault, Fault::AnswerBroken);
            let scene = Scene::new(mode, true);
            rows(&scene.connection, "PRAGMA locking_mode=EXCLUSIVE").expect("locking mode");
            scene.ends_unknown(fault);
            for sql in [SCHEMA, "CREATE TABLE more(v)", SCHEMA] {
                if let Err(error) = rows(&scene.connection, sql) {
                    assert_eq!(code(&error) & 0xff, IOERR, "{mode} {sql}: {error}");
                }
            }
            rows(&scene.connection, "PRAGMA locking_mode=NORMAL").expect("locking mode");
            // The first statement is the one that unlocks.
            let _ = rows(&scene.connection, SCHEMA);
            assert_eq!(
                number(&scene.connection, SCHEMA),
                i64::from(there),
                "{mode}"
            );
            if !there {
                scene.connection.execute_batch(&first(8)).expect("again");
            }
            scene.goes_on(ROWS);
        }
    }
}

/// Most of it is staged when its COMMIT fails, or before.
#[test]
fn one_that_was_staged_leaves_an_empty_database_or_a_whole_one() {
    let faults = [
        Fault::AnswerBroken,
        Fault::RequestBroken,
        Fault::Refused(Reason::StoreFull),
    ];
    for mode in MODES {
        for (commit, stage) in faults
            .iter()
            .flat_map(|commit| [None, Some(Fault::AnswerBroken)].map(|stage| (commit, stage)))
        {
            let server = PageServer::memory();
            let proxy = Proxy::new(&server.endpoint());
            let mut guest = Guest::start(&[
                ("PAGEWIRE_STAGE_BYTES", "65536"),
                ("PAGEWIRE_OVERLAY_BYTES", "50000"),
                ("PAGEWIRE_TIMEOUT_MS", "1500"),
            ]);
            guest
                .open("main", &uri(&proxy.endpoint(), "t.db", &[]))
                .expect("open");
            guest.open("plain", ":memory:").expect("open");
            guest.ok("main", &format!("PRAGMA journal_mode={mode}"));
            guest.ok("main", "PRAGMA cache_size=20");
            if let Some(stage) = stage {
                proxy.arm(Call::Stage, stage);
            }
            proxy.arm(Call::Commit, commit.clone());
            proxy.arm(Call::Resolve, Fault::Refused(Reason::Invalid));
            let sql = first(7);
            let statements: Vec<_> = sql.split(';').map(str::trim).collect();
            let (last, others) = statements.split_last().expect("statements");
            for sql in others {
                guest.ok("main", sql);
            }
            guest.sql("main", last).expect_err("COMMIT fails");
            proxy.disarm();
            let staged = "SELECT count + background FROM pagewire_rpc WHERE kind = 'stage'";
            assert_ne!(guest.ok("plain", staged), ["0"]);
            let tables = guest.ok("main", SCHEMA);
            let there = matches!(commit, Fault::AnswerBroken);
            assert_eq!(tables, [u32::from(there).to_string()], "{mode} {commit:?}");
            if !there {
                for sql in first(8).split(';') {
                    guest.ok("main", sql.trim());
                }
            }
            assert_eq!(guest.ok("main", COUNT), [ROWS.to_string()], "{mode}");
            assert_eq!(guest.ok("main", "PRAGMA integrity_check"), ["ok"]);
            let mut other = Guest::start(&[]);
            other
                .open("main", &uri(&server.endpoint(), "t.db", &[]))
                .expect("open");
            assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
            assert_eq!(other.ok("main", COUNT), [ROWS.to_string()]);
        }
    }
}

/// A client whose temporary files may not be large: what does not fit into its memory can't be put anywhere.
fn cramped(server: &PageServer, mode: &str, overlay_bytes: &str) -> Guest {
    let limit = ["sh", "-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"];
    let mut guest = Guest::start_under(&limit, &[("PAGEWIRE_OVERLAY_BYTES", overlay_bytes)]);
    guest
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    guest.ok("main", &format!("PRAGMA journal_mode={mode}"));
    guest.ok("main", "PRAGMA cache_size=2000");
    guest
}

/// `Err` where one of the statements fails; the transaction is over then.
fn all(guest: &mut Guest, sql: &str) -> Result<(), ()> {
    for sql in sql.split(';').map(str::trim) {
        if guest.sql("main", sql).is_err() {
            let _ = guest.sql("main", "ROLLBACK");
            return Err(());
        }
    }
    Ok(())
}

/// Another client makes the first version, with as many pages.
fn made_elsewhere(server: &PageServer) {
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    all(&mut other, &first(8)).expect("the other client");
}

/// SQLite has written page 1, or tried to, when another page finds no room: its rollback cuts the file to nothing.
#[test]
fn k8_one_that_found_no_room_is_not_taken_for_that_of_another_client() {
    for mode in MODES {
        for overlay_bytes in ["20000", "1"] {
            let server = PageServer::memory();
            let mut guest = cramped(&server, mode, overlay_bytes);
            all(&mut guest, &first(7)).expect_err("no room");
            made_elsewhere(&server);
            assert_eq!(guest.ok("main", SCHEMA), ["1"], "{mode} {overlay_bytes}");
            assert_eq!(guest.ok("main", COUNT), [ROWS.to_string()]);
        }
    }
}

/// The part of one database went well, that of another one did not.
#[test]
fn k8_the_other_database_of_a_transaction_that_found_no_room_is_as_it_was() {
    for mode in MODES {
        let server = PageServer::memory();
        let mut guest = cramped(&server, mode, "400000");
        let second = uri(&server.endpoint(), "second.db", &[]);
        guest.ok("main", &format!("ATTACH '{second}' AS second"));
        let small = first(7);
        let small = small.strip_suffix("COMMIT").expect("its end");
        let large =
            "CREATE TABLE second.t(v); INSERT INTO second.t SELECT randomblob(900000); COMMIT";
        all(&mut guest, &format!("{small}{large}")).expect_err("no room");
        made_elsewhere(&server);
        assert_eq!(guest.ok("main", SCHEMA), ["1"], "{mode}");
        assert_eq!(guest.ok("main", COUNT), [ROWS.to_string()]);
    }
}

/// Of the connection's own commits nothing is to be told (SQLite, `PRAGMA data_version`): found by SQLite's pragma3.test.
#[test]
fn k8_one_that_succeeds_leaves_the_cache_as_it_is() {
    for mode in MODES {
        let server = PageServer::versioned();
        register();
        let connection = open_uri(&uri(&server.endpoint(), "t.db", &[])).expect("open");
        let asked = |sql: &str| rows(&connection, sql).expect("rows");
        asked(&format!("PRAGMA journal_mode={mode}"));
        let before = asked("PRAGMA data_version");
        connection.execute_batch(&first(7)).expect("commit");
        assert_eq!(asked("PRAGMA data_version"), before, "{mode}");
        asked("INSERT INTO t(v) VALUES('8')");
        assert_eq!(asked("PRAGMA data_version"), before, "{mode}");
        // Over several databases too.
        let second = uri(&server.endpoint(), "second.db", &[]);
        asked(&format!("ATTACH '{second}' AS second"));
        let of_second = asked("PRAGMA second.data_version");
        let both = "BEGIN; CREATE TABLE second.t AS SELECT 1 AS v; INSERT INTO main.t(v) VALUES('10'); COMMIT";
        connection.execute_batch(both).expect("commit");
        assert_eq!(asked("PRAGMA second.data_version"), of_second, "{mode}");
        assert_eq!(asked("PRAGMA main.data_version"), before, "{mode}");
        // What another connection commits is told as ever.
        made_larger_elsewhere(&server);
        assert_ne!(asked("PRAGMA data_version"), before, "{mode}");
        assert_eq!(asked(COUNT), [(ROWS + 3).to_string()], "{mode}");
    }
}

fn made_larger_elsewhere(server: &PageServer) {
    let other = open_uri(&uri(&server.endpoint(), "t.db", &["token=other"])).expect("open");
    rows(&other, "INSERT INTO t(v) VALUES('9')").expect("insert");
}
