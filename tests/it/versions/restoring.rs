//! Restores: a commit like any other, after which nothing stale is believed.

use pagewire_tests::connection::{assert_sound, code, number, open, open_uri, rows, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::{PageServer, VersionedStore};

use super::{all, at, counted, run, text};

pagewire_tests::on_versioned_stores! {
    t4_no_page_and_no_schema_of_one_version_is_taken_for_that_of_another
    a_restore_is_a_commit_that_everybody_notices_and_nothing_is_lost
    a_restore_costs_the_question_and_one_commit
    a_restore_brings_another_page_size_back
    a_restore_waits_for_the_writer_and_then_says_busy
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
