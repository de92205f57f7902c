//! Old versions: looked at, named, branched from, restored, and kept for as long as somebody looks.

use pagewire_tests::connection::{
    assert_sound, code, cost, last_error, number, open, open_uri, register, rows, uri,
};
use pagewire_tests::process::Guest;
use pagewire_tests::server::{PageServer, VersionedStore};
use rusqlite::Connection;

const ERROR: i32 = 1;
const READONLY: i32 = 8;
const CANTOPEN: i32 = 14;

fn run(connection: &Connection, sql: &str) {
    connection
        .execute_batch(sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn all(connection: &Connection, sql: &str) -> Vec<String> {
    rows(connection, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn text(connection: &Connection, sql: &str) -> String {
    all(connection, sql).join(";")
}

/// A database whose version n + 1 has the one row n, for n up to `last`.
fn counted(server: &PageServer, last: i64) -> Connection {
    let writer = open(&server.endpoint(), "t.db");
    run(&writer, "CREATE TABLE t(n INT)");
    for n in 1..=last {
        let sql = match n {
            1 => "INSERT INTO t VALUES(1)".to_owned(),
            _ => format!("UPDATE t SET n = {n}"),
        };
        run(&writer, &sql);
    }
    writer
}

fn at(server: &PageServer, moment: &str) -> Connection {
    register();
    let moment = format!("at={}", moment.replace(' ', "%20").replace('+', "%2B"));
    open_uri(&uri(&server.endpoint(), "t.db", &[&moment])).expect(&moment)
}

pagewire_tests::on_versioned_stores! {
    a_version_a_time_an_age_and_a_tag_are_opened_by_uri
    the_first_open_of_a_process_may_be_of_an_old_version
    a_connection_looks_at_one_version_after_the_other_and_at_the_newest_again
    looking_costs_one_call_and_reading_what_is_cached_costs_none
    a_write_to_an_old_version_says_read_only_and_changes_nothing
    a_transaction_or_a_statement_that_runs_keeps_the_version
    attached_databases_look_each_for_itself
    t4_no_page_and_no_schema_of_one_version_is_taken_for_that_of_another
    a_restore_is_a_commit_that_everybody_notices_and_nothing_is_lost
    a_restore_costs_the_question_and_one_commit
    a_restore_brings_another_page_size_back
    a_restore_waits_for_the_writer_and_then_says_busy
    tags_name_versions_and_say_what_is_wrong_with_them
    a_tag_moves_where_that_is_said_and_its_old_version_is_as_any_other
    what_has_effects_can_not_hide_in_a_schema
    a_branch_is_a_database_of_its_own
    the_list_of_versions_is_streamed
    the_pages_that_differ_between_two_moments_are_listed
    what_is_known_of_a_database_is_told
    k1_a_version_that_is_looked_at_outlives_its_retention_and_goes_when_it_is_left
    k2_after_its_session_lapsed_a_reader_holds_its_version_again_or_says_that_it_is_gone
}

fn a_version_a_time_an_age_and_a_tag_are_opened_by_uri(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    assert_eq!(number(&at(&server, "3"), "SELECT n FROM t"), 2);
    run(&writer, "SELECT pagewire_tag('before', 4)");
    assert_eq!(number(&at(&server, "before"), "SELECT n FROM t"), 3);
    let newest = at(&server, "0 seconds ago");
    assert_eq!(number(&newest, "SELECT n FROM t"), 5);
    let time = text(
        &writer,
        "SELECT time FROM pagewire_versions WHERE version = 6",
    );
    let same = at(&server, &time);
    let looked = text(&same, "PRAGMA pagewire_at");
    let (version, found) = looked.split_once(' ').expect("version and time");
    assert!(version.parse::<u64>().expect("a version") >= 6, "{looked}");
    assert_eq!(found, time);
    for wrong in [
        "99",
        "no-such-tag",
        "1 year ago",
        "1999-01-01T00:00:00Z",
        "-5%",
    ] {
        let wrong = format!("at={}", wrong.replace(' ', "%20").replace("5%", "5%25:"));
        let error = open_uri(&uri(&server.endpoint(), "t.db", &[&wrong])).expect_err(&wrong);
        assert_eq!(code(&error) & 0xff, CANTOPEN, "{wrong}: {error}");
    }
}

fn the_first_open_of_a_process_may_be_of_an_old_version(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    let mut guest = Guest::start(&[]);
    guest.open("probe", ":memory:").expect("open");
    guest
        .open("main", &uri(&server.endpoint(), "t.db", &["at=3"]))
        .expect("open");
    run(&writer, "UPDATE t SET n = 100");
    assert_eq!(guest.ok("main", "SELECT n FROM t"), ["2"]);
    let calls = "SELECT kind, count FROM pagewire_rpc WHERE count > 0";
    // A small database comes whole with the open.
    assert_eq!(guest.ok("probe", calls), ["open|1"]);
    // The same process writes beside it.
    guest
        .open("head", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    drop(writer);
    guest.ok("head", "PRAGMA busy_timeout = 5000");
    guest.ok("head", "UPDATE t SET n = n + 1");
    assert_eq!(guest.ok("head", "SELECT n FROM t"), ["101"]);
    assert_eq!(guest.ok("main", "SELECT n FROM t"), ["2"]);
}

fn a_connection_looks_at_one_version_after_the_other_and_at_the_newest_again(
    store: VersionedStore,
) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 9);
    let look = open(&server.endpoint(), "t.db");
    assert_eq!(text(&look, "PRAGMA pagewire_at"), "");
    for version in [3, 8, 2, 9, 4] {
        let answer = text(&look, &format!("PRAGMA pagewire_at = '{version}'"));
        assert!(answer.starts_with(&format!("{version} 20")), "{answer}");
        assert_eq!(text(&look, "PRAGMA pagewire_at"), answer);
        assert_eq!(number(&look, "SELECT n FROM t"), version - 1);
        assert_eq!(
            text(&look, "SELECT pagewire_version() FROM t"),
            version.to_string()
        );
    }
    for head in ["head", "", "HEAD"] {
        run(&writer, "UPDATE t SET n = n + 1");
        all(&look, "PRAGMA pagewire_at = 5");
        assert_eq!(number(&look, "SELECT n FROM t"), 4);
        assert_eq!(text(&look, &format!("PRAGMA pagewire_at = '{head}'")), "");
        assert_eq!(
            number(&look, "SELECT n FROM t"),
            number(&writer, "SELECT n FROM t")
        );
    }
    run(&look, "UPDATE t SET n = 1000");
    assert_eq!(number(&writer, "SELECT n FROM t"), 1000);
}

fn looking_costs_one_call_and_reading_what_is_cached_costs_none(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let _writer = counted(&server, 9);
    let look = open(&server.endpoint(), "t.db");
    all(&look, "PRAGMA pagewire_at = 5");
    number(&look, "SELECT n FROM t");
    assert_eq!(
        cost(&look, |look| drop(all(look, "PRAGMA pagewire_at = 5"))),
        1
    );
    assert_eq!(cost(&look, |look| drop(all(look, "PRAGMA pagewire_at"))), 0);
    let read = |look: &Connection| run(look, "BEGIN; SELECT n FROM t; SELECT n FROM t; COMMIT");
    assert_eq!(cost(&look, read), 0);
}

fn a_write_to_an_old_version_says_read_only_and_changes_nothing(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    let look = open(&server.endpoint(), "t.db");
    all(&look, "PRAGMA pagewire_at = 3");
    for (connection, who) in [(&look, "pragma"), (&at(&server, "3"), "uri")] {
        for sql in [
            "UPDATE t SET n = 77",
            "CREATE TABLE u(x)",
            "BEGIN IMMEDIATE; UPDATE t SET n = 77",
            "VACUUM",
            "SELECT pagewire_restore('2')",
        ] {
            let error = connection.execute_batch(sql).expect_err(sql);
            assert_eq!(code(&error) & 0xff, READONLY, "{who}: {sql}: {error}");
            let _ = connection.execute_batch("ROLLBACK");
        }
        assert_eq!(number(connection, "SELECT n FROM t"), 2, "{who}");
    }
    let reason = last_error(&look);
    assert!(reason.contains("looks at version 3"), "{reason}");
    assert_eq!(number(&writer, "SELECT n FROM t"), 5);
    assert_eq!(
        text(&writer, "SELECT max(version) FROM pagewire_versions"),
        "6"
    );
}

fn a_transaction_or_a_statement_that_runs_keeps_the_version(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let look = counted(&server, 5);
    run(&look, "BEGIN; SELECT n FROM t");
    let error = rows(&look, "PRAGMA pagewire_at = 3").expect_err("inside a transaction");
    assert_eq!(code(&error), ERROR);
    assert!(
        error.to_string().contains("inside a transaction"),
        "{error}"
    );
    let error = rows(&look, "SELECT pagewire_restore(3)").expect_err("inside a transaction");
    assert!(error.to_string().contains("transaction"), "{error}");
    assert_eq!(number(&look, "SELECT n FROM t"), 5);
    run(&look, "COMMIT");
    for wrong in ["99", "nobody", "3 fortnights ago", "2026-99-01T00:00:00Z"] {
        let error = rows(&look, &format!("PRAGMA pagewire_at = '{wrong}'")).expect_err(wrong);
        assert!(code(&error) & 0xff != 0, "{wrong}: {error}");
        assert_eq!(text(&look, "PRAGMA pagewire_at"), "", "{wrong}");
    }
}

fn attached_databases_look_each_for_itself(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let connection = counted(&server, 5);
    for (schema, more) in [("old", &["at=3"][..]), ("now", &[])] {
        let uri = uri(&server.endpoint(), "t.db", more);
        connection
            .execute(&format!("ATTACH ?1 AS {schema}"), [&uri])
            .expect("attach");
    }
    let all_three = "SELECT main.t.n, old.t.n, now.t.n FROM main.t, old.t, now.t";
    assert_eq!(text(&connection, all_three), "5|2|5");
    all(&connection, "PRAGMA now.pagewire_at = 5");
    assert_eq!(text(&connection, all_three), "5|2|4");
    all(&connection, "PRAGMA pagewire_at = 2");
    assert_eq!(text(&connection, all_three), "1|2|4");
    all(&connection, "PRAGMA main.pagewire_at = head");
    run(&connection, "UPDATE main.t SET n = 6");
    assert_eq!(text(&connection, all_three), "6|2|4");
    let newest = text(
        &connection,
        "SELECT max(version) FROM pagewire_versions('old')",
    );
    assert_eq!(newest, "7");
    let error = rows(&connection, "SELECT * FROM pagewire_versions('nobody')").expect_err("none");
    assert!(error.to_string().contains("nobody"), "{error}");
}

fn t4_no_page_and_no_schema_of_one_version_is_taken_for_that_of_another(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = open(&server.endpoint(), "t.db");
    run(&writer, "CREATE TABLE a(x); INSERT INTO a VALUES('a')");
    run(&writer, "CREATE TABLE b(y); INSERT INTO b VALUES('b')");
    let before = text(&writer, "SELECT pagewire_version() FROM a");
    run(&writer, "CREATE TABLE c(z); INSERT INTO c VALUES('c')");
    let idle = open(&server.endpoint(), "t.db");
    assert_eq!(text(&idle, "SELECT z FROM c"), "c");
    let mut elsewhere = Guest::start(&[]);
    elsewhere
        .open("main", &uri(&server.endpoint(), "t.db", &["mode=ro"]))
        .expect("open");
    assert_eq!(elsewhere.ok("main", "SELECT z FROM c"), ["c"]);
    // The schema goes back and then forward by as many steps, to another one.
    run(&writer, &format!("SELECT pagewire_restore({before})"));
    run(
        &writer,
        "CREATE TABLE other(p, q); INSERT INTO other VALUES(1, 2)",
    );
    for sql in ["SELECT z FROM c", "INSERT INTO c VALUES('lost')"] {
        let error = rows(&idle, sql).expect_err("there is no such table");
        assert!(error.to_string().contains("no such table: c"), "{error}");
    }
    let failure = elsewhere.sql("main", "SELECT z FROM c").expect_err("none");
    assert!(failure.message.contains("no such table: c"), "{failure:?}");
    assert_eq!(elsewhere.ok("main", "SELECT p, q FROM other"), ["1|2"]);
    assert_eq!(text(&idle, "SELECT x, y, p, q FROM a, b, other"), "a|b|1|2");
    assert_sound(&idle);
}

fn a_restore_is_a_commit_that_everybody_notices_and_nothing_is_lost(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 9);
    let mut elsewhere = Guest::start(&[]);
    elsewhere
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    assert_eq!(elsewhere.ok("main", "SELECT n FROM t"), ["9"]);
    let other = open(&server.endpoint(), "t.db");
    assert_eq!(number(&other, "SELECT n FROM t"), 9);
    let restored = |sql: &str| text(&writer, sql);
    assert_eq!(restored("SELECT pagewire_restore(4)"), "11");
    assert_eq!(elsewhere.ok("main", "SELECT n FROM t"), ["3"]);
    assert_eq!(number(&other, "SELECT n FROM t"), 3);
    assert_eq!(number(&writer, "SELECT n FROM t"), 3);
    let from = "SELECT restored_from FROM pagewire_versions WHERE version = 11";
    assert_eq!(text(&writer, from), "4");
    // Forward again, and on from there, in another process.
    assert_eq!(restored("SELECT pagewire_restore('10')"), "12");
    elsewhere.ok("main", "PRAGMA busy_timeout = 5000");
    elsewhere.ok("main", "UPDATE t SET n = n + 1");
    assert_eq!(number(&writer, "SELECT n FROM t"), 10);
    for version in 2..=10 {
        let old = at(&server, &version.to_string());
        assert_eq!(number(&old, "SELECT n FROM t"), version - 1);
    }
    // What is there already needs no version.
    assert_eq!(restored("SELECT pagewire_restore(13)"), "13");
    assert_sound(&writer);
}

fn a_restore_costs_the_question_and_one_commit(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 9);
    let calls = "SELECT kind, count FROM pagewire_rpc WHERE count > 0 AND kind <> 'read'";
    let before = all(&writer, calls);
    run(&writer, "SELECT pagewire_restore(4)");
    let more = |kind: &str, by: i64| {
        let count = |calls: &[String]| -> i64 {
            let row = calls
                .iter()
                .find_map(|row| row.strip_prefix(&format!("{kind}|")));
            row.map_or(0, |count| count.parse().expect("a number"))
        };
        assert_eq!(count(&all(&writer, calls)), count(&before) + by, "{kind}");
    };
    more("find", 1);
    more("commit", 1);
    for kind in ["open", "begin", "acquire", "history"] {
        more(kind, 0);
    }
}

fn a_restore_brings_another_page_size_back(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 9);
    run(&writer, "PRAGMA page_size = 8192; VACUUM");
    assert_eq!(number(&writer, "PRAGMA page_size"), 8192);
    let other = open(&server.endpoint(), "t.db");
    assert_eq!(number(&other, "SELECT n FROM t"), 9);
    run(&writer, "SELECT pagewire_restore(5)");
    assert_eq!(number(&other, "SELECT n FROM t"), 4);
    assert_eq!(number(&writer, "SELECT n FROM t"), 4);
    run(&other, "UPDATE t SET n = 5");
    assert_sound(&writer);
    assert_sound(&other);
}

fn a_restore_waits_for_the_writer_and_then_says_busy(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    let other = open_uri(&uri(&server.endpoint(), "t.db", &["timeout_ms=300"])).expect("open");
    run(&writer, "BEGIN IMMEDIATE");
    let error = rows(&other, "SELECT pagewire_restore(3)").expect_err("another writes");
    assert_eq!(code(&error) & 0xff, 5, "{error}");
    run(&writer, "COMMIT");
    run(&other, "SELECT pagewire_restore(3)");
    assert_eq!(number(&writer, "SELECT n FROM t"), 2);
}

fn tags_name_versions_and_say_what_is_wrong_with_them(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    assert_eq!(text(&writer, "SELECT pagewire_tag('here')"), "6");
    assert_eq!(text(&writer, "SELECT pagewire_tag('there', 3)"), "3");
    assert_eq!(text(&writer, "SELECT pagewire_tag('again', 'there')"), "3");
    assert_eq!(
        text(&writer, "SELECT pagewire_tag('there', 3, 'main')"),
        "3"
    );
    let tagged = "SELECT version, tag FROM pagewire_versions WHERE tag IS NOT NULL";
    assert_eq!(all(&writer, tagged), ["6|here", "3|again, there"]);
    for (sql, reason) in [
        (
            "SELECT pagewire_tag('there', 4)",
            "tag there names version 3 already: pagewire_move_tag('there', ...) moves it",
        ),
        ("SELECT pagewire_tag('head')", "head"),
        ("SELECT pagewire_tag('17')", "digits"),
        ("SELECT pagewire_tag('')", "empty"),
        ("SELECT pagewire_tag(NULL)", "NULL"),
        ("SELECT pagewire_tag('x', 'nobody')", "nobody"),
        ("SELECT pagewire_tag('x', 99)", "99"),
        ("SELECT pagewire_tag('x', 3, 'aux')", "aux"),
        ("SELECT pagewire_tag()", "arguments"),
    ] {
        let error = rows(&writer, sql).expect_err(sql);
        assert!(error.to_string().contains(reason), "{sql}: {error}");
    }
    assert_eq!(text(&writer, "SELECT pagewire_untag('there')"), "1");
    assert_eq!(text(&writer, "SELECT pagewire_untag('there')"), "0");
    run(&writer, "PRAGMA pagewire_at = again");
    assert_eq!(number(&writer, "SELECT n FROM t"), 2);
    // A connection that looks at an old version names that one.
    assert_eq!(text(&writer, "SELECT pagewire_tag('seen')"), "3");
    let reader = open_uri(&uri(&server.endpoint(), "t.db", &["mode=ro"])).expect("open");
    for sql in ["SELECT pagewire_tag('x')", "SELECT pagewire_untag('seen')"] {
        let error = rows(&reader, sql).expect_err(sql);
        assert_eq!(code(&error) & 0xff, READONLY, "{sql}: {error}");
    }
}

fn a_tag_moves_where_that_is_said_and_its_old_version_is_as_any_other(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    // A tag that is not there yet is made.
    assert_eq!(text(&writer, "SELECT pagewire_move_tag('t', 3)"), "3");
    assert_eq!(text(&writer, "SELECT pagewire_move_tag('t')"), "6");
    assert_eq!(text(&writer, "SELECT pagewire_move_tag('t', 't')"), "6");
    assert_eq!(
        text(&writer, "SELECT pagewire_move_tag('t', 2, 'main')"),
        "2"
    );
    let tagged = "SELECT version, tag FROM pagewire_versions WHERE tag IS NOT NULL";
    assert_eq!(all(&writer, tagged), ["2|t"]);
    assert_eq!(number(&at(&server, "t"), "SELECT n FROM t"), 1);
    // What can't be done leaves it where it is.
    for sql in [
        "SELECT pagewire_move_tag('t', 99)",
        "SELECT pagewire_move_tag('head', 2)",
        "SELECT pagewire_move_tag(NULL)",
    ] {
        rows(&writer, sql).expect_err(sql);
    }
    let reader = open_uri(&uri(&server.endpoint(), "t.db", &["mode=ro"])).expect("open");
    let error = rows(&reader, "SELECT pagewire_move_tag('t', 3)").expect_err("read-only");
    assert_eq!(code(&error) & 0xff, READONLY, "{error}");
    assert_eq!(all(&writer, tagged), ["2|t"]);
}

fn what_has_effects_can_not_hide_in_a_schema(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    for function in [
        "pagewire_tag('x')",
        "pagewire_move_tag('x')",
        "pagewire_untag('x')",
        "pagewire_branch('x.db')",
        "pagewire_restore(2)",
    ] {
        run(&writer, &format!("CREATE VIEW trap AS SELECT {function}"));
        let error = rows(&writer, "SELECT * FROM trap").expect_err(function);
        assert!(
            error.to_string().contains("unsafe use"),
            "{function}: {error}"
        );
        run(&writer, "DROP VIEW trap");
    }
}

fn a_branch_is_a_database_of_its_own(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 9);
    assert_eq!(text(&writer, "SELECT pagewire_branch('branch.db', 4)"), "4");
    let branch = open(&server.endpoint(), "branch.db");
    assert_eq!(number(&branch, "SELECT n FROM t"), 3);
    run(&branch, "UPDATE t SET n = -1; CREATE TABLE own(x)");
    run(&writer, "UPDATE t SET n = 100");
    assert_eq!(number(&branch, "SELECT n FROM t"), -1);
    assert_eq!(number(&writer, "SELECT n FROM t"), 100);
    let parent = "SELECT value FROM pagewire_info WHERE key LIKE 'parent%' AND key <> 'parent_database_id' ORDER BY key";
    assert_eq!(all(&branch, parent), ["t.db", "4"]);
    let error = rows(&writer, "SELECT pagewire_branch('branch.db')").expect_err("taken");
    assert!(error.to_string().contains("branch.db"), "{error}");
    // Where no version is given it is the one that is read.
    assert_eq!(text(&writer, "SELECT pagewire_branch('now.db')"), "11");
    assert_eq!(
        number(&open(&server.endpoint(), "now.db"), "SELECT n FROM t"),
        100
    );
    assert_sound(&branch);
}

fn the_list_of_versions_is_streamed(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 350);
    let lists = "SELECT count FROM pagewire_rpc WHERE kind = 'history'";
    let versions = all(&writer, "SELECT version FROM pagewire_versions");
    let wanted: Vec<String> = (1..=351).rev().map(|version| version.to_string()).collect();
    assert_eq!(versions, wanted);
    assert_eq!(number(&writer, lists), 2);
    assert_eq!(
        all(
            &writer,
            "SELECT version, page_count, size FROM pagewire_versions LIMIT 2"
        ),
        ["351|2|8192", "350|2|8192"]
    );
    assert_eq!(
        number(&writer, lists),
        3,
        "a LIMIT of two fetched more than one list"
    );
    let sorted = "SELECT count(*) FROM pagewire_versions WHERE time LIKE '20__-__-__T__:__:__.___Z' AND pages_changed > 0";
    assert_eq!(number(&writer, sorted), 351);
    let ascending = "SELECT version FROM pagewire_versions ORDER BY version LIMIT 2";
    assert_eq!(all(&writer, ascending), ["1", "2"]);
}

fn the_pages_that_differ_between_two_moments_are_listed(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    run(&writer, "SELECT pagewire_tag('then', 3)");
    assert_eq!(
        all(&writer, "SELECT page FROM pagewire_diff(3, 3)"),
        Vec::<String>::new()
    );
    assert!(all(&writer, "SELECT page FROM pagewire_diff(3, 5)").contains(&"2".to_owned()));
    let same = all(
        &writer,
        "SELECT page FROM pagewire_diff('then', 'head', 'main')",
    );
    assert_eq!(same, all(&writer, "SELECT page FROM pagewire_diff(3, 6)"));
    let error = rows(&writer, "SELECT page FROM pagewire_diff(3)").expect_err("one moment");
    assert!(error.to_string().contains("two versions"), "{error}");
    // Arguments may come from another table.
    let joined =
        "SELECT count(*) > 0 FROM (SELECT 3 AS a) AS moments, pagewire_diff(moments.a, 'head')";
    assert_eq!(number(&writer, joined), 1);
}

fn what_is_known_of_a_database_is_told(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counted(&server, 5);
    let info = "SELECT value FROM pagewire_info WHERE key = ?1";
    let value = |key: &str| -> String {
        writer
            .query_row(info, [key], |row| row.get(0))
            .unwrap_or_else(|error| panic!("{key}: {error}"))
    };
    assert_eq!(value("version"), "6");
    assert_eq!(value("versions_kept"), "6");
    assert_eq!(value("oldest_version"), "1");
    assert_eq!(value("page_size"), "4096");
    assert!(value("stored_pages").parse::<u64>().expect("a number") >= 2);
}

fn k1_a_version_that_is_looked_at_outlives_its_retention_and_goes_when_it_is_left(
    store: VersionedStore,
) {
    let server = PageServer::on(store, &["--retention", "100ms", "--lease-ttl-ms", "400"]);
    let writer = counted(&server, 3);
    let look = at(&server, "3");
    let moved = open_uri(&uri(&server.endpoint(), "t.db", &["at=2"])).expect("open");
    run(&writer, "PRAGMA busy_timeout = 5000");
    // The session's floor moves on, time passes, everything that nobody holds goes.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let gone = |version: i64| {
        let kept = format!("SELECT count(*) FROM pagewire_versions WHERE version = {version}");
        number(&writer, &kept) == 0
    };
    while !gone(4) {
        run(&writer, "UPDATE t SET n = n + 1");
        assert!(
            std::time::Instant::now() < until,
            "version 4 is never dropped"
        );
    }
    assert_eq!(number(&look, "SELECT n FROM t"), 2);
    assert_eq!(number(&moved, "SELECT n FROM t"), 1);
    assert!(!gone(3) && !gone(2));
    // The one that is left goes; the other stays.
    all(&moved, "PRAGMA pagewire_at = 3");
    while !gone(2) {
        run(&writer, "UPDATE t SET n = n + 1");
        assert!(
            std::time::Instant::now() < until,
            "version 2 is never dropped"
        );
    }
    assert!(!gone(3));
    assert_eq!(number(&moved, "SELECT n FROM t"), 2);
    let error = rows(&look, "PRAGMA pagewire_at = 2").expect_err("it is gone");
    assert!(error.to_string().contains('2'), "{error}");
    // K3: nobody gets a neighbour in silence.
    assert!(open_uri(&uri(&server.endpoint(), "t.db", &["at=4"])).is_err());
}

fn k2_after_its_session_lapsed_a_reader_holds_its_version_again_or_says_that_it_is_gone(
    store: VersionedStore,
) {
    let server = PageServer::on(store, &["--lease-ttl-ms", "500"]);
    let writer = counted(&server, 5);
    let mut guest = Guest::start(&[]);
    guest
        .open("main", &uri(&server.endpoint(), "t.db", &["at=3"]))
        .expect("open");
    assert_eq!(guest.ok("main", "SELECT n FROM t"), ["2"]);
    guest.pause();
    run(&writer, "UPDATE t SET n = 10");
    #[expect(clippy::disallowed_methods, reason = "a lapse is under test")]
    std::thread::sleep(std::time::Duration::from_millis(1500));
    guest.resume();
    assert_eq!(guest.ok("main", "SELECT n FROM t"), ["2"]);
    assert_eq!(guest.ok("main", "PRAGMA integrity_check"), ["ok"]);
}
