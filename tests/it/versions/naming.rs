//! Tags and branches.

use pagewire_tests::connection::{assert_sound, code, number, open, open_uri, rows, uri};
use pagewire_tests::server::{PageServer, VersionedStore};

use super::{READONLY, all, at, counted, run, text};

pagewire_tests::on_versioned_stores! {
    tags_name_versions_and_say_what_is_wrong_with_them
    a_tag_moves_where_that_is_said_and_its_old_version_is_as_any_other
    what_has_effects_can_not_hide_in_a_schema
    a_branch_is_a_database_of_its_own
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
