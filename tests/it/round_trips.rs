//! Round trips are the budget: exact counts, by the counters that users have too (`pagewire_rpc`).

use pagewire_tests::connection::{assert_sound, cost, number, open, rows, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

/// A table with rows, everything cached, the lease held.
fn warm(server: &PageServer) -> Connection {
    let connection = open(&server.endpoint(), "warm.db");
    connection
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
               INSERT INTO t SELECT i, printf('%0100d', i) FROM n;",
        )
        .expect("fill");
    assert_eq!(
        number(&connection, "SELECT count(*) FROM t WHERE length(v) = 100"),
        5000
    );
    connection
}

fn batch(sql: &str) -> impl FnOnce(&Connection) + '_ {
    move |connection| {
        connection
            .execute_batch(sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

#[test]
fn reading_the_counters_costs_nothing() {
    let server = PageServer::memory();
    let connection = warm(&server);
    assert_eq!(cost(&connection, |_| {}), 0);
    let kinds =
        rows(&connection, "SELECT kind FROM pagewire_rpc WHERE count > 0").expect("pagewire_rpc");
    assert!(kinds.contains(&"commit".to_owned()), "{kinds:?}");
    let moved = rows(
        &connection,
        "SELECT bytes_sent > 400000 FROM pagewire_rpc WHERE kind = 'commit'",
    );
    assert_eq!(
        moved.expect("pagewire_rpc"),
        ["1"],
        "a commit of half a megabyte was counted as less"
    );
}

#[test]
fn an_autocommit_insert_with_the_lease_held_costs_one() {
    let server = PageServer::memory();
    let connection = warm(&server);
    for _ in 0..3 {
        assert_eq!(
            cost(&connection, batch("INSERT INTO t(v) VALUES('one more')")),
            1
        );
    }
}

#[test]
fn a_transaction_of_a_thousand_rows_costs_one() {
    let server = PageServer::memory();
    let connection = warm(&server);
    let spent = cost(&connection, |connection| {
        connection.execute_batch("BEGIN").expect("begin");
        for row in 0..1000 {
            connection
                .execute("INSERT INTO t(v) VALUES(?1)", [format!("row {row}")])
                .expect("insert");
        }
        connection.execute_batch("COMMIT").expect("commit");
    });
    assert_eq!(spent, 1);
}

#[test]
fn a_commit_over_two_attached_databases_costs_one() {
    let server = PageServer::memory();
    let connection = warm(&server);
    let second = uri(&server.endpoint(), "second.db", &[]);
    connection
        .execute("ATTACH ?1 AS second", [&second])
        .expect("attach");
    connection
        .execute_batch("CREATE TABLE second.t(i INTEGER PRIMARY KEY, v TEXT)")
        .expect("create");
    for _ in 0..3 {
        let both =
            "BEGIN; INSERT INTO main.t(v) VALUES('a'); INSERT INTO second.t(v) VALUES('b'); COMMIT";
        assert_eq!(cost(&connection, batch(both)), 1);
    }
    assert_eq!(number(&connection, "SELECT count(*) FROM second.t"), 3);
}

#[test]
fn a_warm_read_by_the_lease_holder_costs_nothing() {
    let server = PageServer::memory();
    let connection = warm(&server);
    assert_eq!(
        cost(&connection, |c| assert_eq!(
            number(c, "SELECT i FROM t WHERE i = 4321"),
            4321
        )),
        0
    );
    assert_eq!(
        cost(&connection, |c| assert_eq!(
            number(c, "SELECT count(*) FROM t"),
            5000
        )),
        0
    );
    assert_eq!(
        cost(&connection, batch("BEGIN; SELECT count(*) FROM t; COMMIT")),
        0
    );
}

#[test]
fn c2_pragmas_and_preparing_cost_nothing() {
    let server = PageServer::memory();
    let connection = warm(&server);
    for pragma in [
        "user_version",
        "table_info(t)",
        "page_count",
        "freelist_count",
        "journal_mode",
        "encoding",
    ] {
        let spent = cost(&connection, |c| {
            rows(c, &format!("PRAGMA {pragma}")).expect("pragma");
        });
        assert_eq!(spent, 0, "PRAGMA {pragma}");
    }
}

#[test]
fn begin_immediate_and_commit_without_writes_cost_nothing() {
    let server = PageServer::memory();
    let connection = warm(&server);
    assert_eq!(cost(&connection, batch("BEGIN IMMEDIATE; COMMIT")), 0);
    assert_eq!(cost(&connection, batch("BEGIN EXCLUSIVE; COMMIT")), 0);
}

#[test]
fn a_rollback_costs_nothing() {
    let server = PageServer::memory();
    let connection = warm(&server);
    assert_eq!(
        cost(&connection, batch("BEGIN; UPDATE t SET v = 'x'; ROLLBACK")),
        0
    );
    assert_eq!(
        number(&connection, "SELECT count(*) FROM t WHERE v = 'x'"),
        0
    );
}

#[test]
fn a_rollback_after_the_cache_has_spilled_costs_nothing() {
    let server = PageServer::memory();
    let connection = warm(&server);
    rows(&connection, "PRAGMA cache_size = 10").expect("pragma");
    let sql = "BEGIN; UPDATE t SET v = v || v; SAVEPOINT s; DELETE FROM t WHERE i % 2; ROLLBACK TO s; ROLLBACK";
    assert_eq!(cost(&connection, batch(sql)), 0);
    assert_eq!(number(&connection, "SELECT sum(length(v)) FROM t"), 500_000);
    assert_sound(&connection);
}

/// SQLite takes a free page into use without an entry in its journal, so a rollback leaves there what was spilled. That looked like
/// content: ROLLBACK made a version, and the connection refused everything afterwards, since nobody had committed it.
#[test]
fn t1_a_rollback_after_a_spill_into_free_pages_makes_no_version() {
    let server = PageServer::versioned();
    let connection = warm(&server);
    rows(&connection, "PRAGMA cache_size = 10").expect("pragma");
    let versions = "SELECT count(*) FROM pagewire_versions";
    for mode in ["NORMAL", "EXCLUSIVE"] {
        rows(&connection, &format!("PRAGMA locking_mode = {mode}")).expect("pragma");
        for journal in ["DELETE", "MEMORY"] {
            rows(&connection, &format!("PRAGMA journal_mode = {journal}")).expect("pragma");
            batch("UPDATE t SET v = v || v; DELETE FROM t WHERE i % 10; BEGIN IMMEDIATE; COMMIT")(
                &connection,
            );
            assert!(number(&connection, "PRAGMA freelist_count") > 50);
            let before = number(&connection, versions);
            let sum = number(&connection, "SELECT sum(length(v) + i) FROM t");
            let rolled_back = "BEGIN; INSERT INTO t(v) SELECT randomblob(500) FROM t, (SELECT 1 UNION SELECT 2); ROLLBACK";
            let spent = cost(&connection, batch(rolled_back));
            assert_eq!(spent, 0, "{mode} {journal}");
            assert_eq!(number(&connection, versions), before, "{mode} {journal}");
            assert_eq!(number(&connection, "SELECT sum(length(v) + i) FROM t"), sum);
            assert_sound(&connection);
            batch("INSERT INTO t(v) SELECT zeroblob(100) FROM t, t AS u LIMIT 5000")(&connection);
            assert_eq!(
                number(&connection, versions),
                before + 1,
                "{mode} {journal}"
            );
            assert_sound(&connection);
        }
    }
}

#[test]
fn a_transaction_that_spills_costs_one() {
    let server = PageServer::memory();
    let connection = warm(&server);
    rows(&connection, "PRAGMA cache_size = 10").expect("pragma");
    assert_eq!(cost(&connection, batch("UPDATE t SET v = v || v")), 1);
    assert_eq!(
        number(&connection, "SELECT sum(length(v)) FROM t"),
        1_000_000
    );
}

#[test]
fn c4_temporary_tables_sorts_and_journals_cost_nothing() {
    let server = PageServer::memory();
    let connection = warm(&server);
    for pragma in ["cache_size = 10", "temp.cache_size = 10"] {
        rows(&connection, &format!("PRAGMA {pragma}")).expect("pragma");
    }
    let spent = cost(&connection, |connection| {
        batch(
            "CREATE TEMP TABLE copy AS SELECT * FROM t ORDER BY v DESC; CREATE INDEX temp.copy_v ON copy(v)",
        )(connection);
        assert_eq!(
            number(
                connection,
                "SELECT count(*) FROM (SELECT DISTINCT v || i FROM t)"
            ),
            5000
        );
        assert_eq!(
            number(connection, "SELECT i FROM t ORDER BY v DESC LIMIT 1"),
            5000
        );
        batch("BEGIN; UPDATE copy SET v = 'x'; ROLLBACK; DROP TABLE copy")(connection);
    });
    assert_eq!(spent, 0);
}

#[test]
fn c4_building_an_index_and_vacuum_cost_one_commit_each() {
    let server = PageServer::memory();
    let connection = warm(&server);
    assert_eq!(cost(&connection, batch("CREATE INDEX t_v ON t(v)")), 1);
    batch("DELETE FROM t WHERE i % 3")(&connection);
    assert_eq!(cost(&connection, batch("VACUUM")), 1);
    assert_sound(&connection);
}

#[test]
fn loading_costs_nothing_and_open_with_the_first_query_at_most_three() {
    let server = PageServer::memory();
    let connection = warm(&server);
    // A schema of ordinary size.
    for table in 0..20 {
        batch(&format!(
            "CREATE TABLE more{table}(a INTEGER PRIMARY KEY, b TEXT, c REAL)"
        ))(&connection);
    }
    drop(connection);
    let mut other = Guest::start(&[]);
    other.open("probe", ":memory:").expect("open");
    assert_eq!(
        other.ok("probe", "SELECT sum(count) FROM pagewire_rpc"),
        ["0"]
    );
    other
        .open("main", &uri(&server.endpoint(), "warm.db", &[]))
        .expect("open");
    assert_eq!(other.ok("main", "SELECT v FROM t WHERE i = 1").len(), 1);
    let spent: i64 = other.ok("probe", "SELECT sum(count) FROM pagewire_rpc")[0]
        .parse()
        .expect("a number");
    let kinds = other.ok(
        "main",
        "SELECT kind, count FROM pagewire_rpc WHERE count > 0",
    );
    assert!((1..=3).contains(&spent), "{kinds:?}");
}

/// SQLite's own copy of page 1 may have an older schema cookie than the store (`OwnCookie` in the VFS), and a rollback writes that copy back.
#[test]
fn t1_a_rollback_after_a_spill_costs_nothing_where_sqlite_has_a_cookie_of_its_own() {
    let server = PageServer::versioned();
    let spilled_rollback = "PRAGMA cache_size = 10; BEGIN; UPDATE t SET v = v || v; DELETE FROM t WHERE i % 2; ROLLBACK";
    let versions = "SELECT count(*) FROM pagewire_versions";
    let connection = warm(&server);
    {
        let mut cursor = connection.prepare("SELECT v FROM t").expect("prepare");
        let mut open_rows = cursor.query([]).expect("query");
        assert!(open_rows.next().expect("row").is_some());
        batch("CREATE TABLE a(x)")(&connection);
        let before = number(&connection, versions);
        assert_eq!(cost(&connection, batch(spilled_rollback)), 0);
        assert_eq!(number(&connection, versions), before);
    }
    assert_sound(&connection);
    batch("PRAGMA locking_mode = EXCLUSIVE; CREATE TABLE b(x)")(&connection);
    let before = number(&connection, versions);
    assert_eq!(cost(&connection, batch(spilled_rollback)), 0);
    assert_eq!(number(&connection, versions), before);
    batch("INSERT INTO b VALUES(1); PRAGMA locking_mode = NORMAL")(&connection);
    assert_eq!(number(&connection, "SELECT count(*) FROM b"), 1);
    assert_eq!(number(&connection, "SELECT sum(length(v)) FROM t"), 500_000);
    assert_sound(&connection);
}
