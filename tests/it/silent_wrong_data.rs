//! Ways in which such systems were seen to give wrong data and say OK; each keeps the letter and number of its finding.

use std::time::Duration;

use pagewire_tests::connection::{assert_sound, code, number, open, open_uri, register, rows, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

fn run(connection: &Connection, sql: &str) {
    connection
        .execute_batch(sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn tables(connection: &Connection) -> Vec<String> {
    rows(connection, "SELECT name FROM sqlite_schema ORDER BY name").expect("schema")
}

/// A table whose rows fill some megabytes, with a known sum.
const MANY: &str = "CREATE TABLE many(i INTEGER PRIMARY KEY, n INT, filler TEXT);
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
      INSERT INTO many SELECT i, 1, printf('%0300d', i) FROM n;";

#[test]
fn w1_two_databases_in_one_process_do_not_share_page_1() {
    let server = PageServer::memory();
    let (one, two) = (
        open(&server.endpoint(), "a/one.db"),
        open(&server.endpoint(), "b/two.db"),
    );
    run(
        &one,
        "CREATE TABLE only_in_one(a); INSERT INTO only_in_one VALUES(1)",
    );
    assert!(tables(&two).is_empty());
    run(
        &two,
        "CREATE TABLE only_in_two(b, c); INSERT INTO only_in_two VALUES(1, 2)",
    );
    run(&one, "INSERT INTO only_in_one VALUES(2)");
    assert_eq!(tables(&one), ["only_in_one"]);
    assert_eq!(tables(&two), ["only_in_two"]);
    drop((one, two));
    // One after the other.
    for (name, table) in [
        ("b/two.db", "only_in_two"),
        ("a/one.db", "only_in_one"),
        ("b/two.db", "only_in_two"),
    ] {
        let connection = open(&server.endpoint(), name);
        run(&connection, &format!("INSERT INTO {table} DEFAULT VALUES"));
        assert_eq!(tables(&connection), [table]);
        assert_sound(&connection);
    }
}

#[test]
fn w1_an_attached_database_that_exists_keeps_its_schema() {
    let server = PageServer::memory();
    run(
        &open(&server.endpoint(), "old.db"),
        "CREATE TABLE old(x); INSERT INTO old VALUES('kept')",
    );
    let connection = open(&server.endpoint(), "main.db");
    run(&connection, "CREATE TABLE mine(y)");
    connection
        .execute("ATTACH ?1 AS old", [uri(&server.endpoint(), "old.db", &[])])
        .expect("attach");
    run(
        &connection,
        "BEGIN; INSERT INTO mine VALUES(1); INSERT INTO old.old VALUES('added'); COMMIT",
    );
    assert_eq!(tables(&connection), ["mine"]);
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&server.endpoint(), "old.db", &[]))
        .expect("open");
    assert_eq!(other.ok("main", "SELECT x FROM old"), ["kept", "added"]);
}

#[test]
fn w2_a_process_that_opens_again_sees_the_schema_that_another_made_meanwhile() {
    let server = PageServer::memory();
    let a = open(&server.endpoint(), "t.db");
    run(&a, "CREATE TABLE from_a(x)");
    drop(a);
    let mut b = Guest::start(&[]);
    b.open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    b.ok("main", "CREATE TABLE from_b(y)");
    b.ok("main", "INSERT INTO from_b VALUES(1)");
    b.close("main").expect("close");
    let a = open(&server.endpoint(), "t.db");
    run(&a, "INSERT INTO from_a VALUES(1)");
    assert_eq!(tables(&a), ["from_a", "from_b"]);
    b.open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    assert_eq!(b.ok("main", "SELECT y FROM from_b"), ["1"]);
    assert_sound(&a);
}

#[test]
fn w3_two_processes_that_sort_do_not_get_each_others_rows() {
    let server = PageServer::memory();
    let mut guests = [Guest::start(&[]), Guest::start(&[])];
    for (who, guest) in guests.iter_mut().enumerate() {
        guest
            .open(
                "main",
                &uri(&server.endpoint(), &format!("sort{who}.db"), &[]),
            )
            .expect("open");
        guest.ok("main", "PRAGMA cache_size = 10");
        guest.ok("main", "CREATE TABLE t(k INT, v TEXT)");
        let fill = format!(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
             INSERT INTO t SELECT i * 7919 % 20011, 'owner {who} row ' || i FROM n"
        );
        guest.ok("main", &fill);
    }
    for _ in 0..3 {
        for guest in &mut guests {
            let sort = "SELECT count(*), min(o), max(o) FROM (SELECT DISTINCT substr(v, 1, 7) AS o, v FROM t ORDER BY v, k)";
            guest.begin_sql("main", sort);
        }
        for (who, guest) in guests.iter_mut().enumerate() {
            let answer = guest.answer().expect("sort");
            assert_eq!(answer, [format!("20000|owner {who}|owner {who}")]);
        }
    }
}

#[test]
fn w4_a_temporary_table_and_a_distinct_do_not_share_a_file() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "t.db");
    run(&connection, MANY);
    for pragma in ["cache_size = 5", "temp.cache_size = 5"] {
        rows(&connection, &format!("PRAGMA {pragma}")).expect("pragma");
    }
    run(&connection, "CREATE TEMP TABLE copy AS SELECT * FROM many");
    let sql = "SELECT count(*) FROM (SELECT DISTINCT filler || n FROM copy ORDER BY filler DESC)";
    for _ in 0..3 {
        assert_eq!(number(&connection, sql), 3000);
        run(&connection, "UPDATE copy SET n = n + 1");
    }
    assert_eq!(number(&connection, "SELECT sum(n) FROM copy"), 12_000);
    assert_eq!(
        rows(&connection, "PRAGMA temp.integrity_check").expect("check"),
        ["ok"]
    );
    assert_sound(&connection);
}

#[test]
fn w5_a_client_killed_in_a_transaction_larger_than_its_cache_leaves_the_old_version() {
    let server = PageServer::memory();
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let own = open(&server.endpoint(), "t.db");
    run(&own, MANY);
    own.busy_timeout(Duration::from_secs(20))
        .expect("busy timeout");
    for turn in 0..4 {
        let mut victim = Guest::start(&[("PAGEWIRE_OVERLAY_BYTES", "100000")]);
        victim.open("main", &uri).expect("open");
        victim.ok("main", "PRAGMA busy_timeout = 20000");
        victim.ok("main", "PRAGMA cache_size = 10");
        victim.ok("main", "BEGIN");
        victim.ok("main", "UPDATE many SET n = 7, filler = filler || filler");
        if turn % 2 == 1 {
            victim.ok("main", "DELETE FROM many WHERE i % 2");
        }
        victim.kill();
        assert_eq!(number(&own, "SELECT sum(n) FROM many"), 3000);
        assert_sound(&own);
        run(&own, "UPDATE many SET n = n WHERE i = 1");
    }
}

#[test]
fn w6_a_commit_of_many_megabytes_is_one_version_and_one_round_trip() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "t.db");
    run(&connection, "CREATE TABLE t(i INTEGER PRIMARY KEY, b BLOB)");
    let before = number(&connection, "SELECT sum(count) FROM pagewire_rpc");
    run(
        &connection,
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 24)
           INSERT INTO t SELECT i, CAST(replace(hex(zeroblob(125000)), '00', printf('%04d', i)) AS BLOB) FROM n",
    );
    assert_eq!(
        number(&connection, "SELECT sum(count) FROM pagewire_rpc") - before,
        1
    );
    let mut other = Guest::start(&[]);
    other
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    assert_eq!(
        other.ok("main", "SELECT count(*), sum(length(b)) FROM t"),
        ["24|12000000"]
    );
    assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
}

#[test]
fn w7_a_client_killed_in_mid_commit_leaves_all_or_nothing_in_every_journal_mode() {
    let server = PageServer::memory();
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let own = open(&server.endpoint(), "t.db");
    run(&own, MANY);
    own.busy_timeout(Duration::from_secs(20))
        .expect("busy timeout");
    let mut expected = vec![1];
    for (turn, mode) in ["MEMORY", "DELETE", "TRUNCATE", "PERSIST"]
        .iter()
        .cycle()
        .take(12)
        .enumerate()
    {
        let mut victim = Guest::start(&[]);
        victim.open("main", &uri).expect("open");
        victim.ok("main", &format!("PRAGMA journal_mode = {mode}"));
        victim.ok("main", "PRAGMA busy_timeout = 20000");
        let n = turn as i64 + 10;
        victim.ok("main", "BEGIN IMMEDIATE");
        victim.ok("main", &format!("UPDATE many SET n = {n}"));
        victim.begin_sql("main", "COMMIT");
        // Anywhere in it: the kill races with the commit on purpose, both outcomes are right.
        victim.kill();
        expected.push(n);
        let seen = rows(&own, "SELECT DISTINCT n FROM many").expect("read");
        assert_eq!(seen.len(), 1, "torn in mode {mode}: {seen:?}");
        assert!(
            expected.contains(&seen[0].parse().expect("a number")),
            "{seen:?}"
        );
        assert_sound(&own);
    }
}

#[test]
fn w8_a_writer_reads_its_own_spilled_pages() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "t.db");
    run(&connection, MANY);
    rows(&connection, "PRAGMA cache_size = 5").expect("pragma");
    run(&connection, "BEGIN; UPDATE many SET n = i");
    assert_eq!(
        number(&connection, "SELECT sum(n) FROM many"),
        3000 * 3001 / 2
    );
    run(&connection, "UPDATE many SET n = n + 1");
    assert_eq!(
        number(&connection, "SELECT sum(n) FROM many"),
        3000 * 3001 / 2 + 3000
    );
    run(&connection, "COMMIT");
    assert_eq!(
        number(&connection, "SELECT sum(n) FROM many"),
        3000 * 3001 / 2 + 3000
    );
    assert_sound(&connection);
}

#[test]
fn w9_nobody_sees_the_spilled_pages_of_a_running_transaction() {
    let server = PageServer::memory();
    let writer = open(&server.endpoint(), "t.db");
    run(&writer, MANY);
    let near = open(&server.endpoint(), "t.db");
    let mut far = Guest::start(&[]);
    far.open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    rows(&writer, "PRAGMA cache_size = 5").expect("pragma");
    run(&writer, "BEGIN");
    for step in 0..10 {
        run(
            &writer,
            &format!("UPDATE many SET n = n + 1, filler = 'x' || filler WHERE i % 10 = {step}"),
        );
        assert_eq!(number(&near, "SELECT sum(n) FROM many"), 3000);
        assert_eq!(
            far.ok("main", "SELECT sum(n), sum(length(filler)) FROM many"),
            ["3000|900000"]
        );
    }
    run(&writer, "COMMIT");
    assert_eq!(number(&near, "SELECT sum(n) FROM many"), 6000);
    assert_eq!(
        far.ok("main", "SELECT sum(n), sum(length(filler)) FROM many"),
        ["6000|903000"]
    );
}

#[test]
fn w14_a_connection_sees_what_it_and_its_neighbours_have_committed() {
    let server = PageServer::memory();
    register();
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let (one, two) = (open_uri(&uri).expect("open"), open_uri(&uri).expect("open"));
    run(&one, "CREATE TABLE t(n INT); INSERT INTO t VALUES(0)");
    for turn in 1..=50 {
        let (writer, reader) = if turn % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        run(writer, "UPDATE t SET n = n + 1");
        assert_eq!(number(writer, "SELECT n FROM t"), turn);
        assert_eq!(number(reader, "SELECT n FROM t"), turn);
    }
}

#[test]
fn w15_small_pages_work_past_the_second_statement() {
    let server = PageServer::memory();
    for size in [512, 1024, 2048] {
        let connection = open(&server.endpoint(), &format!("size{size}.db"));
        rows(&connection, &format!("PRAGMA page_size = {size}")).expect("pragma");
        run(&connection, MANY);
        run(
            &connection,
            "CREATE INDEX many_f ON many(filler); DELETE FROM many WHERE i % 2",
        );
        let mut other = Guest::start(&[]);
        other
            .open(
                "main",
                &uri(&server.endpoint(), &format!("size{size}.db"), &[]),
            )
            .expect("open");
        assert_eq!(other.ok("main", "PRAGMA page_size"), [size.to_string()]);
        assert_eq!(other.ok("main", "SELECT sum(n) FROM many"), ["1500"]);
        assert_eq!(other.ok("main", "PRAGMA integrity_check"), ["ok"]);
    }
}

#[test]
fn w17_size_and_pages_are_of_one_moment_while_the_database_grows_and_shrinks() {
    let server = PageServer::memory();
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let own = open(&server.endpoint(), "t.db");
    rows(&own, "PRAGMA auto_vacuum = FULL").expect("pragma");
    run(&own, "CREATE TABLE t(i INTEGER PRIMARY KEY, filler TEXT)");
    own.busy_timeout(Duration::from_secs(20))
        .expect("busy timeout");
    let mut other = Guest::start(&[]);
    other.open("main", &uri).expect("open");
    other.ok("main", "PRAGMA busy_timeout = 20000");
    let mut reader = Guest::start(&[]);
    reader.open("main", &uri).expect("open");
    for turn in 0..120 {
        reader.begin_sql("main", "PRAGMA integrity_check");
        let sql = match turn % 4 {
            0 => format!(
                "INSERT INTO t SELECT NULL, printf('%0*d', 900 + {turn}, i) FROM
                 (WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 120) SELECT i FROM n)"
            ),
            1 => "DELETE FROM t WHERE i % 3".to_owned(),
            2 => "UPDATE t SET filler = filler || filler WHERE i % 5 = 0".to_owned(),
            _ => "DELETE FROM t WHERE length(filler) > 1500 OR i % 2".to_owned(),
        };
        if turn % 3 == 0 {
            other.ok("main", &sql);
        } else {
            run(&own, &sql);
        }
        assert_eq!(
            reader.answer().expect("integrity_check"),
            ["ok"],
            "turn {turn}"
        );
    }
    run(&own, "VACUUM");
    assert_eq!(reader.ok("main", "PRAGMA integrity_check"), ["ok"]);
    assert_sound(&own);
}

#[test]
fn w18_a_write_through_a_read_only_open_is_refused() {
    let server = PageServer::versioned();
    run(&open(&server.endpoint(), "t.db"), "CREATE TABLE t(x)");
    let reader = open_uri(&uri(&server.endpoint(), "t.db", &["mode=ro"])).expect("open");
    let error = reader
        .execute("INSERT INTO t VALUES(1)", [])
        .expect_err("read-only");
    assert_eq!(code(&error) & 0xff, 8, "{error}");
    assert_eq!(number(&reader, "SELECT count(*) FROM t"), 0);
}

#[test]
fn opening_a_missing_database_without_the_right_to_create_it_is_cantopen_and_makes_none() {
    let server = PageServer::memory();
    register();
    for mode in ["mode=rw", "mode=ro"] {
        let opened = open_uri(&uri(&server.endpoint(), "missing.db", &[mode]));
        let error = opened
            .and_then(|c| rows(&c, "SELECT * FROM sqlite_schema"))
            .expect_err("there is none");
        assert_eq!(code(&error) & 0xff, 14, "{mode}: {error}");
    }
}

#[test]
fn w20_a_database_that_was_never_written_reads_as_empty() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "empty.db");
    assert!(tables(&connection).is_empty());
    assert_eq!(number(&connection, "PRAGMA page_count"), 0);
    assert_sound(&connection);
    // Pages that were allocated and freed in one transaction are holes, which backup reads.
    rows(&connection, "PRAGMA cache_size = 5").expect("pragma");
    run(&connection, "BEGIN");
    run(&connection, MANY);
    run(
        &connection,
        "CREATE TABLE after_it(x); INSERT INTO after_it VALUES(1); DROP TABLE many; COMMIT",
    );
    let mut copy = open(&server.endpoint(), "copy.db");
    rusqlite::backup::Backup::new(&connection, &mut copy)
        .and_then(|backup| backup.run_to_completion(100, Duration::ZERO, None))
        .expect("backup");
    assert_eq!(tables(&copy), ["after_it"]);
    assert_sound(&copy);
    assert_sound(&connection);
}

#[test]
fn u5_connections_of_one_process_have_their_own_endpoints() {
    let servers = [PageServer::memory(), PageServer::memory()];
    let connections = [
        open(&servers[0].endpoint(), "t.db"),
        open(&servers[1].endpoint(), "t.db"),
    ];
    run(&connections[0], "CREATE TABLE first(x)");
    run(&connections[1], "CREATE TABLE second(x)");
    assert_eq!(tables(&connections[0]), ["first"]);
    assert_eq!(tables(&connections[1]), ["second"]);
    let across = uri(&servers[1].endpoint(), "t.db", &[]);
    connections[0]
        .execute("ATTACH ?1 AS far", [&across])
        .expect("reading over two endpoints is fine");
    assert_eq!(
        number(&connections[0], "SELECT count(*) FROM far.second"),
        0
    );
    let both = connections[0].execute_batch(
        "BEGIN; INSERT INTO main.first VALUES(1); INSERT INTO far.second VALUES(1); COMMIT",
    );
    both.expect_err("one commit can't be atomic over two servers");
    if !connections[0].is_autocommit() {
        run(&connections[0], "ROLLBACK");
    }
    assert_eq!(
        number(
            &connections[0],
            "SELECT (SELECT count(*) FROM first) + (SELECT count(*) FROM far.second)"
        ),
        0
    );
}

/// Found by SQLite's own trans.test. The schema cookie of a commit is derived from its version, and it was the one that SQLite
/// had in the middle of the transaction: a statement prepared there ran on a schema that was never committed, and read pages of
/// other tables ("database disk image is malformed", or rows of a table that is gone).
/// No schema cookie stands for two schemas, over all versions of a database.
fn assert_cookies_tell_schemas_apart(server: &PageServer, name: &str, newest: i64) {
    let mut schemas = std::collections::HashMap::new();
    for version in 1..=newest {
        let at = format!("at={version}");
        let old = open_uri(&uri(&server.endpoint(), name, &[&at])).expect("open");
        let cookie = number(&old, "PRAGMA schema_version");
        let schema: String = old
            .query_row(
                "SELECT group_concat(name || coalesce(sql, ''), ';') FROM sqlite_schema",
                [],
                |row| row.get(0),
            )
            .expect("schema");
        let known = schemas.entry(cookie).or_insert_with(|| schema.clone());
        assert_eq!(*known, schema, "cookie {cookie} at version {version}");
    }
}

/// SQLite takes in the cookie that a commit was given when it looks at the change counter next. Until then it counts from its own.
#[test]
fn b5_no_cookie_comes_twice_where_sqlite_does_not_look_in_exclusive_mode() {
    let server = PageServer::versioned();
    let connection = open(&server.endpoint(), "t.db");
    run(
        &connection,
        "CREATE TABLE t(x); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2);
         PRAGMA locking_mode=EXCLUSIVE; CREATE TABLE a(x);
         BEGIN; CREATE INDEX i1 ON t(x); CREATE INDEX i2 ON t(x); COMMIT;
         INSERT INTO t VALUES(3); CREATE TABLE b(x); INSERT INTO t VALUES(4);
         BEGIN; CREATE TABLE c(x); CREATE TABLE d(x); CREATE TABLE e(x); COMMIT; INSERT INTO t VALUES(5)",
    );
    drop(connection);
    assert_cookies_tell_schemas_apart(&server, "t.db", 10);
    let connection = open(&server.endpoint(), "t.db");
    assert_eq!(
        number(&connection, "SELECT count(*) FROM t INDEXED BY i2"),
        5
    );
    assert_sound(&connection);
}

#[test]
fn b5_no_cookie_comes_twice_where_sqlite_does_not_look_under_an_open_cursor() {
    let server = PageServer::versioned();
    let connection = open(&server.endpoint(), "t.db");
    run(
        &connection,
        "CREATE TABLE t(x); INSERT INTO t VALUES(1); INSERT INTO t VALUES(2);",
    );
    {
        let mut cursor = connection.prepare("SELECT x FROM t").expect("prepare");
        let mut rows = cursor.query([]).expect("query");
        assert!(rows.next().expect("row").is_some());
        run(
            &connection,
            "CREATE TABLE a(x);
             BEGIN; CREATE TABLE c(x); CREATE TABLE d(x); COMMIT; INSERT INTO a VALUES(1)",
        );
    }
    run(&connection, "CREATE TABLE e(x)");
    drop(connection);
    assert_cookies_tell_schemas_apart(&server, "t.db", 7);
}

#[test]
fn b5_a_statement_prepared_within_a_transaction_learns_of_the_schema_that_was_committed() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "t.db");
    run(&connection, "CREATE TABLE kept(x)");
    for changes_before in 0..3 {
        run(&connection, "BEGIN");
        for change in 0..changes_before {
            run(
                &connection,
                &format!("CREATE TABLE kept_{changes_before}_{change}(x)"),
            );
        }
        run(
            &connection,
            "CREATE TABLE gone(x); INSERT INTO gone VALUES('of a table that is gone')",
        );
        let mut statement = connection.prepare("SELECT x FROM gone").expect("prepare");
        let found: String = statement.query_row([], |row| row.get(0)).expect("a row");
        assert_eq!(found, "of a table that is gone");
        run(&connection, "DROP TABLE gone; COMMIT");
        let error = statement
            .query_row([], |row| row.get::<_, String>(0))
            .expect_err("there is no such table");
        assert!(
            error.to_string().contains("no such table: gone"),
            "{changes_before}: {error}"
        );
    }
    assert_sound(&connection);
}
