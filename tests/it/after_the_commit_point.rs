//! SQLite may fail after its commit point, FCNTL_SYNC, when the transaction is durable already. Then it is truly rolled back, or
//! the connection says that it was not, and does nothing more.

use pagewire_proto::status::Reason;
use pagewire_tests::connection::{
    assert_sound, code, cost, last_error, open_uri, register, rows, uri,
};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::server::PageServer;
use pagewire_tests::shim::{self, Failing};
use rusqlite::Connection;

const IOERR: i32 = 10;

/// A connection by the VFS that fails on purpose.
fn connect(endpoint: &str) -> Connection {
    register();
    shim::register();
    let through =
        uri(endpoint, "t.db", &["timeout_ms=3000"]).replace("vfs=pagewire", "vfs=failing");
    open_uri(&through).expect("open")
}

/// What another process finds.
fn elsewhere(server: &PageServer, sql: &str) -> Vec<String> {
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
    other.ok("main", sql)
}

fn fails(connection: &Connection, sql: &str, failing: Failing) {
    shim::arm(failing);
    let error = connection.execute_batch(sql).expect_err("it was armed");
    assert_eq!(code(&error) & 0xff, IOERR, "{error}");
    assert!(shim::is_disarmed(), "the fault never struck");
}

const SCHEMA: &str = "SELECT name FROM sqlite_schema";

#[test]
fn the_first_transaction_of_an_empty_database_is_rolled_back_after_its_commit_point() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        let server = PageServer::memory();
        let connection = connect(&server.endpoint());
        rows(&connection, &format!("PRAGMA journal_mode={mode}")).expect("journal mode");
        for turn in [1, 2] {
            fails(
                &connection,
                "CREATE TABLE t AS SELECT 1 AS v",
                Failing::Sync,
            );
            assert_eq!(
                rows(&connection, SCHEMA).expect("schema").len(),
                0,
                "{mode}"
            );
            assert_eq!(elsewhere(&server, SCHEMA).len(), 0, "{mode}");
            // Empty, and not as if nothing had been: two versions have been made each time.
            let version = rows(&connection, "PRAGMA pagewire_version").expect("version");
            assert_eq!(version, [(2 * turn).to_string()], "{mode}");
            assert_eq!(elsewhere(&server, "PRAGMA page_count"), ["0"], "{mode}");
        }
        // A new connection, to which SQLite leaves the choice of the page size.
        let connection = match mode {
            "TRUNCATE" | "MEMORY" => connect(&server.endpoint()),
            _ => connection,
        };
        rows(&connection, "PRAGMA page_size=8192").expect("page size");
        let sized = rows(&connection, "PRAGMA page_size").expect("page size");
        connection
            .execute_batch("CREATE TABLE t AS SELECT 2 AS v")
            .expect("it goes on");
        assert_eq!(elsewhere(&server, "SELECT v FROM t"), ["2"], "{mode}");
        assert_eq!(elsewhere(&server, "PRAGMA page_size"), sized, "{mode}");
        assert_sound(&connection);
    }
}

#[test]
fn a_later_transaction_is_rolled_back_after_its_commit_point() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        for locking in ["NORMAL", "EXCLUSIVE"] {
            let server = PageServer::memory();
            let connection = connect(&server.endpoint());
            rows(&connection, &format!("PRAGMA journal_mode={mode}")).expect("journal mode");
            rows(&connection, &format!("PRAGMA locking_mode={locking}")).expect("locking mode");
            connection
                .execute_batch(
                    "CREATE TABLE t(v TEXT);
                     INSERT INTO t VALUES('first'); INSERT INTO t VALUES(printf('%020000d', 7))",
                )
                .expect("create");
            // Pages that change, come, and go.
            let sql = "BEGIN; DELETE FROM t WHERE length(v) > 100; UPDATE t SET v = 'x';
                       CREATE TABLE more AS SELECT randomblob(9000); COMMIT";
            fails(&connection, sql, Failing::Sync);
            if !connection.is_autocommit() {
                connection.execute_batch("ROLLBACK").expect("rollback");
            }
            let all = "SELECT group_concat(substr(v, -5)) FROM t";
            assert_eq!(
                rows(&connection, all).expect("all"),
                ["first,00007"],
                "{mode} {locking}"
            );
            assert_eq!(elsewhere(&server, all), ["first,00007"], "{mode} {locking}");
            assert_eq!(elsewhere(&server, SCHEMA), ["t"], "{mode} {locking}");
            let spent = cost(&connection, |connection| {
                connection
                    .execute("INSERT INTO t VALUES('again')", [])
                    .expect("it goes on");
            });
            assert_eq!(spent, 1, "{mode} {locking}");
            assert_eq!(elsewhere(&server, "SELECT count(*) FROM t"), ["3"]);
            assert_sound(&connection);
        }
    }
}

/// Two thirds of its rows are gone, and what is left lies on pages up to its end.
const SPARSE: &str = "CREATE TABLE t(v TEXT);
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 200)
      INSERT INTO t SELECT printf('%0600d', i) FROM n;
    DELETE FROM t WHERE rowid % 3 > 0";
const SUM: &str = "SELECT count(*), sum(v) FROM t";

/// SQLite cuts the file after everything else, so its journal has nothing of what lies beyond the new size: in the version that the
/// rollback made those pages were missing, "database disk image is malformed".
#[test]
fn what_a_commit_cut_off_is_there_again_after_its_rollback() {
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"] {
        for page_size in [4096, 1024, 16_384] {
            let server = PageServer::memory();
            let connection = connect(&server.endpoint());
            rows(&connection, &format!("PRAGMA journal_mode={mode}")).expect("journal mode");
            connection.execute_batch(SPARSE).expect("create");
            let pages = rows(&connection, "PRAGMA page_count").expect("page count");
            let vacuum = format!("PRAGMA page_size={page_size}; VACUUM");
            fails(&connection, &vacuum, Failing::Sync);
            for sql in [SUM, "PRAGMA page_count", "PRAGMA integrity_check"] {
                let seen = rows(&connection, sql).expect(sql);
                assert_eq!(elsewhere(&server, sql), seen, "{mode} {page_size} {sql}");
            }
            assert_eq!(elsewhere(&server, "PRAGMA page_count"), pages, "{mode}");
            assert_eq!(elsewhere(&server, SUM), ["66|6633"], "{mode}");
            connection.execute_batch(&vacuum).expect("it goes on");
            assert_ne!(elsewhere(&server, "PRAGMA page_count"), pages, "{mode}");
            assert_eq!(elsewhere(&server, SUM), ["66|6633"], "{mode}");
            assert_sound(&connection);
        }
    }
}

/// Without a super-journal one database is committed after the other: here the first one becomes smaller, and the second one fails.
#[test]
fn what_the_first_of_two_databases_cut_off_is_there_again_when_the_second_one_fails() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let connection = connect(&proxy.endpoint());
    rows(&connection, "PRAGMA auto_vacuum=FULL").expect("auto vacuum");
    connection.execute_batch(SPARSE).expect("create");
    let second = uri(&proxy.endpoint(), "second.db", &["timeout_ms=3000"])
        .replace("vfs=pagewire", "vfs=failing");
    connection
        .execute("ATTACH ?1 AS second", [&second])
        .expect("attach");
    connection
        .execute_batch("CREATE TABLE second.u(v TEXT)")
        .expect("create");
    rows(&connection, "PRAGMA journal_mode=MEMORY").expect("journal mode");
    let pages = rows(&connection, "PRAGMA page_count").expect("page count");
    proxy.arm(Call::Commit, Fault::Delay(std::time::Duration::ZERO));
    proxy.arm(
        Call::Commit,
        Fault::Refused(pagewire_proto::status::Reason::StoreFull),
    );
    let sql = "BEGIN; DELETE FROM t WHERE rowid % 2; INSERT INTO u VALUES('x'); COMMIT";
    connection.execute_batch(sql).expect_err("it was armed");
    assert!(proxy.is_disarmed(), "the fault never struck");
    if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").expect("rollback");
    }
    for sql in [SUM, "PRAGMA page_count", "PRAGMA integrity_check"] {
        let seen = rows(&connection, sql).expect(sql);
        assert_eq!(elsewhere(&server, sql), seen, "{sql}");
    }
    assert_eq!(elsewhere(&server, "PRAGMA page_count"), pages);
    assert_eq!(elsewhere(&server, SUM), ["66|6633"]);
    connection
        .execute_batch(&sql.replace("BEGIN;", "BEGIN IMMEDIATE;"))
        .expect("it goes on");
    assert_eq!(elsewhere(&server, "SELECT count(*) FROM t"), ["33"]);
    assert_sound(&connection);
}

/// The connection refuses, says so, and harms nothing; a new one goes on with what is there.
fn assert_refuses(server: &PageServer, connection: Connection) {
    for sql in [
        "SELECT count(*) FROM t",
        "INSERT INTO t VALUES('not this one')",
        "BEGIN IMMEDIATE",
    ] {
        let error = rows(&connection, sql).expect_err(sql);
        assert_eq!(code(&error) & 0xff, IOERR, "{sql}: {error}");
        let said = last_error(&connection);
        for part in ["t.db", "after it had been committed as version 2", "close"] {
            assert!(said.contains(part), "{sql}: {said}");
        }
    }
    assert_eq!(elsewhere(server, "SELECT v FROM t"), ["first", "x"]);
    // Nobody has to wait for it.
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    other.ok("main", "PRAGMA busy_timeout = 10000");
    other.ok("main", "INSERT INTO t VALUES('by another')");
    drop(connection);
    let connection = connect(&server.endpoint());
    assert_eq!(
        rows(&connection, "SELECT v FROM t").expect("rows"),
        ["first", "x", "by another"]
    );
    assert_sound(&connection);
}

#[test]
fn a_rollback_that_cant_be_carried_out_leaves_a_connection_that_refuses() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let connection = connect(&proxy.endpoint());
    connection
        .execute_batch("CREATE TABLE t AS SELECT 'first' AS v")
        .expect("create");
    // The commit passes; of its rollback no answer comes back, nor of any question what became of it.
    proxy.arm(Call::Commit, Fault::Delay(std::time::Duration::ZERO));
    for _ in 0..5 {
        proxy.arm(Call::Commit, Fault::RequestBroken);
    }
    fails(&connection, "INSERT INTO t VALUES('x')", Failing::Sync);
    assert_refuses(&server, connection);
}

/// A journal that stays after the commit would be hot for the connection alone, and be played back over what others have
/// committed meanwhile (T2).
#[test]
fn a_journal_that_cant_be_deleted_after_the_commit_is_never_played_back() {
    let server = PageServer::memory();
    let connection = connect(&server.endpoint());
    connection
        .execute_batch("CREATE TABLE t AS SELECT 'first' AS v")
        .expect("create");
    fails(
        &connection,
        "INSERT INTO t VALUES('x')",
        Failing::JournalDelete,
    );
    assert_refuses(&server, connection);
}

/// The super-journal of a local main database is a local file, of which the databases on Pagewire know nothing: each commits by itself. SQLite
/// finds nothing to roll back with in one that went well before another did not.
#[test]
fn k6_beside_a_local_main_database_one_that_stays_committed_says_so() {
    register();
    let server = PageServer::versioned();
    let proxy = Proxy::new(&server.endpoint());
    let directory = tempfile::tempdir().expect("a directory");
    let local = directory.path().join("local.db");
    let local = format!("file:{}?vfs=unix", local.display());
    let connection = open_uri(&local).expect("open");
    let attach = |uri: &str, name: &str| {
        let sql = format!("ATTACH '{uri}' AS {name}; CREATE TABLE {name}.t(n)");
        connection.execute_batch(&sql).expect("attach");
    };
    attach(&uri(&server.endpoint(), "t.db", &[]), "x");
    attach(
        &uri(&proxy.endpoint(), "other.db", &["timeout_ms=3000"]),
        "y",
    );
    connection
        .execute_batch(
            "CREATE TABLE t(n);
             BEGIN; INSERT INTO t VALUES(1); INSERT INTO x.t VALUES(1); INSERT INTO y.t VALUES(1)",
        )
        .expect("a transaction");
    proxy.arm(Call::Commit, Fault::Refused(Reason::StoreFull));
    connection.execute_batch("COMMIT").expect_err("refused");
    assert!(proxy.is_disarmed(), "the fault never struck");
    if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").expect("rollback");
    }
    let count = |name: &str| rows(&connection, &format!("SELECT count(*) FROM {name}.t"));
    assert_eq!(count("main").expect("local"), ["0"]);
    assert_eq!(count("y").expect("rolled back"), ["0"]);
    assert_eq!(elsewhere(&server, "SELECT count(*) FROM t"), ["1"]);
    count("x").expect_err("it was told that it had failed");
    let said = rows(&connection, "PRAGMA x.pagewire_last_error").expect("said");
    assert!(said.concat().contains("close the connection"), "{said:?}");
}
