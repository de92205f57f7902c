//! The hot list: what one process has read makes the first reads of the next one cheap.

use pagewire_tests::connection::{open, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;

const ROWS: i64 = 1_000_000;

/// A table of 1,000,000 rows of 100 bytes on pages of 4 KiB: a root, some sixty interior pages and 27,000 leaves.
fn million(server: &PageServer) {
    fill(server, ROWS);
}

fn fill(server: &PageServer, rows: i64) {
    let connection = open(&server.endpoint(), "million.db");
    connection
        .execute_batch(&format!(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
               INSERT INTO t SELECT i, printf('%0100d', i) FROM n;",
        ))
        .expect("fill");
}

/// A process that has the schema loaded.
fn fresh(server: &PageServer) -> Guest {
    let mut guest = Guest::start(&[]);
    guest.open("probe", ":memory:").expect("open");
    guest
        .open("main", &uri(&server.endpoint(), "million.db", &[]))
        .expect("open");
    guest.ok("main", "SELECT count(*) FROM sqlite_schema");
    guest
}

/// Round trips of the process so far, and pages' bytes.
fn spent(guest: &mut Guest) -> (i64, i64) {
    let mut ask = |sql: &str| -> i64 { guest.ok("probe", sql)[0].parse().expect("a number") };
    (
        ask("SELECT sum(count) FROM pagewire_rpc"),
        ask("SELECT sum(bytes_received) FROM pagewire_rpc WHERE kind IN ('read', 'open')"),
    )
}

fn cost(guest: &mut Guest, sql: &str) -> i64 {
    let (before, _) = spent(guest);
    assert_eq!(guest.ok("main", sql), ["100"]);
    spent(guest).0 - before
}

#[test]
fn a_cold_point_read_in_a_million_rows_costs_three_without_it_and_one_with_it() {
    let server = PageServer::memory();
    million(&server);
    let point = |i: i64| format!("SELECT length(v) FROM t WHERE i = {i}");
    // Nobody has read anything yet that was not written by the same process.
    let mut first = fresh(&server);
    assert_eq!(cost(&mut first, &point(777_777)), 3);
    // Reads all over the table, and says at its end what it has gone by.
    for part in 0..400 {
        assert_eq!(first.ok("main", &point(part * 2_477 + 1)), ["100"]);
    }
    first.close("main").expect("close");
    first.close("probe").expect("close");
    let mut second = fresh(&server);
    assert!(
        spent(&mut second).1 < 400 << 10,
        "the list is bounded by what is wanted"
    );
    for i in [123_456, 987_654, 1, 500_000] {
        assert_eq!(cost(&mut second, &point(i)), 1, "row {i}");
    }
}

#[test]
fn opening_and_loading_the_schema_costs_one() {
    let server = PageServer::memory();
    fill(&server, 50_000);
    let mut guest = Guest::start(&[]);
    guest.open("probe", ":memory:").expect("open");
    guest
        .open("main", &uri(&server.endpoint(), "million.db", &[]))
        .expect("open");
    guest.ok("main", "SELECT count(*) FROM sqlite_schema");
    // The open brings page 1 and the lease; the session's first exchange goes out with it.
    assert_eq!(spent(&mut guest).0, 1);
}
