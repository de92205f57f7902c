//! Pages that come compressed: fewer bytes, the same pages, and only where somebody wants them so.

use pagewire_tests::connection::{assert_sound, open, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;

/// Reads everything in a process of its own: what it saw, and the bytes that came for it.
fn read_all(server: &PageServer, settings: &[(&str, &str)]) -> (Vec<String>, u64) {
    let mut guest = Guest::start(settings);
    guest.open("probe", ":memory:").expect("open");
    let endpoint = uri(&server.endpoint(), "t.db", &["mode=ro"]);
    guest.open("main", &endpoint).expect("open");
    let mut seen = guest.ok(
        "main",
        "SELECT count(*), sum(length(v)), sum(length(b)), hex(max(b)) FROM t",
    );
    seen.extend(guest.ok("main", "PRAGMA integrity_check"));
    let received = guest.ok("probe", "SELECT sum(bytes_received) FROM pagewire_rpc");
    (seen, received[0].parse().expect("a number"))
}

#[test]
fn pages_come_compressed_where_that_is_wanted_and_are_the_same() {
    for page_size in [512, 4096, 65_536] {
        let server = PageServer::versioned();
        let connection = open(&server.endpoint(), "t.db");
        connection
            .execute_batch(&format!(
                "PRAGMA page_size = {page_size};
                 CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT, b BLOB);
                 WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                   INSERT INTO t SELECT i, 'the row of number ' || i || ', with words that come again', NULL FROM n;
                 -- What can't be made smaller comes as it is.
                 INSERT INTO t SELECT NULL, NULL, randomblob(200000);"
            ))
            .expect("fill");
        assert_sound(&connection);
        let (plain, plain_bytes) = read_all(&server, &[("PAGEWIRE_COMPRESSION", "off")]);
        let (compressed, compressed_bytes) = read_all(&server, &[("PAGEWIRE_COMPRESSION", "lz4")]);
        assert_eq!(plain, compressed, "{page_size}");
        assert_eq!(plain.last().map(String::as_str), Some("ok"));
        // 200,000 of them are random.
        assert!(plain_bytes > 700_000, "{page_size}: {plain_bytes}");
        let text_bytes = plain_bytes - 200_000;
        assert!(
            compressed_bytes < 200_000 * 11 / 10 + text_bytes / 2,
            "{page_size}: {compressed_bytes} of {plain_bytes}"
        );
        // On one machine the bytes cost less than the work.
        let unset_bytes = read_all(&server, &[]).1;
        assert!(
            unset_bytes > plain_bytes / 10 * 9,
            "{page_size}: {unset_bytes}"
        );
    }
}

#[test]
fn a_setting_that_is_none_is_refused() {
    let server = PageServer::memory();
    let mut guest = Guest::start(&[("PAGEWIRE_COMPRESSION", "zip")]);
    let refused = guest.open("main", &uri(&server.endpoint(), "t.db", &[]));
    let refused = refused.expect_err("it was taken");
    assert!(
        format!("{refused:?}")
            .contains("PAGEWIRE_COMPRESSION is \\\"zip\\\", must be auto, lz4 or off"),
        "{refused:?}"
    );
}
