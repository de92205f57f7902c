//! What is told of the versions of a database.

use pagewire_tests::connection::{number, rows};
use pagewire_tests::server::{PageServer, VersionedStore};

use super::{all, counted, run};

pagewire_tests::on_versioned_stores! {
    the_list_of_versions_is_streamed
    the_pages_that_differ_between_two_moments_are_listed
    what_is_known_of_a_database_is_told
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
