//! SQLite may fail after its commit point, FCNTL_SYNC, when the transaction is durable already. Then it is truly rolled back, or
//! the connection says that it was not, and does nothing more.

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
