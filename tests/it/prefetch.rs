//! Reading ahead: what a cold read costs in calls and in bytes, however scattered its pages lie.
//!
//! A call is counted whether somebody waited for it or not, so the counts hardly depend on who is faster.

use std::sync::atomic::{AtomicU64, Ordering};

use pagewire_tests::connection::{assert_sound, code, number, open, open_uri, rows, uri};
use pagewire_tests::delay::delayed;
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

/// Until when something that is under way has come.
const WAIT: std::time::Duration = std::time::Duration::from_secs(20);

/// What has been read from the server.
#[derive(Clone, Copy, Debug)]
struct Reads {
    /// Calls, those included that nobody waited for.
    calls: i64,
    /// Times that somebody waited.
    waited: i64,
    /// Bytes that came.
    bytes: i64,
}

fn reads() -> Reads {
    let read = pagewire::rpc_count(pagewire::CallKind::Read);
    let number = |count: u64| i64::try_from(count).expect("a count");
    Reads {
        calls: number(read.count + read.background),
        waited: number(read.count),
        bytes: number(read.bytes_received),
    }
}

/// What an action costs.
fn spent<T>(action: impl FnOnce() -> T) -> (T, Reads) {
    let before = reads();
    let answer = action();
    let after = reads();
    let spent = Reads {
        calls: after.calls - before.calls,
        waited: after.waited - before.waited,
        bytes: after.bytes - before.bytes,
    };
    (answer, spent)
}

/// A connection with a client of its own, whose cache is empty, and with the schema loaded.
fn open_cold(endpoint: &str, name: &str) -> Connection {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let token = format!("token=cold-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let connection = open_uri(&uri(endpoint, name, &[&token])).expect("open");
    number(&connection, "SELECT count(*) FROM sqlite_schema");
    connection
}

/// A table whose rows were inserted in random order, half of them deleted again and others put in their place.
fn scattered(server: &PageServer, rows: u32) -> Connection {
    let connection = open(&server.endpoint(), "scattered.db");
    connection
        .execute_batch(&format!(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT, w INTEGER);
             CREATE TABLE other(v TEXT);
             BEGIN;
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
               INSERT INTO t SELECT (i * 2654435761) % 4294967296, printf('%0100d', i), i * 7919 % {rows} FROM n;
             DELETE FROM t WHERE w % 2 = 0;
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows} / 8)
               INSERT INTO other SELECT printf('%0100d', i) FROM n;
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
               INSERT OR IGNORE INTO t SELECT (i * 2246822519) % 4294967296, printf('%0100d', i), i * 7919 % {rows} FROM n;
             CREATE INDEX t_w ON t(w);
             COMMIT;"
        ))
        .expect("fill");
    connection
}

fn pages_of(connection: &Connection) -> i64 {
    number(connection, "PRAGMA page_count")
}

/// Calls for a scan of so many pages in one go: the first few while the window grows, then one for each 32 pages or more.
fn calls_for(pages: i64) -> i64 {
    16 + pages / 24
}

/// A table whose rows overflow, each with 100 kB: 25 pages or so.
fn with_blobs(server: &PageServer, rows: u32) -> Connection {
    let connection = open(&server.endpoint(), "blobs.db");
    connection
        .execute_batch(&format!(
            "CREATE TABLE b(i INTEGER PRIMARY KEY, v BLOB);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
               INSERT INTO b SELECT i, randomblob(100000) FROM n;"
        ))
        .expect("fill");
    connection
}

#[test]
fn a_scan_of_scattered_rows_costs_a_call_for_many_pages() {
    let server = PageServer::memory();
    let writer = scattered(&server, 40_000);
    let pages = pages_of(&writer);
    let expected = number(&writer, "SELECT sum(length(v)) FROM t");
    for order in ["ASC", "DESC"] {
        let cold = open_cold(&server.endpoint(), "scattered.db");
        let sql =
            format!("SELECT sum(length(v)) FROM (SELECT v FROM t NOT INDEXED ORDER BY i {order})");
        let (sum, spent) = spent(|| number(&cold, &sql));
        assert_eq!(sum, expected);
        assert!(pages > 2_000, "{pages}");
        assert!(spent.bytes > 1_500 * 4096, "{order}: {spent:?}");
        assert!(spent.bytes < pages * 4_200, "{order}: {spent:?} of {pages}");
        assert!(
            spent.calls <= calls_for(pages),
            "{order}: {spent:?} of {pages}"
        );
    }
}

#[test]
fn a_scan_of_an_index_costs_a_call_for_many_pages() {
    let server = PageServer::memory();
    let writer = scattered(&server, 40_000);
    let expected = number(&writer, "SELECT sum(w) FROM t");
    let cold = open_cold(&server.endpoint(), "scattered.db");
    let (sum, spent) = spent(|| number(&cold, "SELECT sum(w) FROM t INDEXED BY t_w"));
    assert_eq!(sum, expected);
    assert!(spent.bytes < 300 * 4_200, "{spent:?}");
    assert!(spent.calls <= calls_for(200), "{spent:?}");
}

#[test]
fn rows_looked_up_by_an_index_cost_a_call_for_many_pages() {
    let server = PageServer::memory();
    let writer = scattered(&server, 40_000);
    for order in ["ASC", "DESC"] {
        let sql = format!(
            "SELECT sum(length(v)) FROM (SELECT v FROM t INDEXED BY t_w WHERE w BETWEEN 20000 AND 20500 ORDER BY w {order})"
        );
        let expected = number(&writer, &sql);
        let cold = open_cold(&server.endpoint(), "scattered.db");
        let (sum, spent) = spent(|| number(&cold, &sql));
        assert_eq!(sum, expected);
        let pages = spent.bytes / 4096;
        assert!(pages > 300, "{order}: {spent:?}");
        // The window is earned row by row, and the rows wait for the interior pages above them.
        assert!(
            spent.calls <= 16 + pages / 8,
            "{order}: {spent:?} for {pages} pages"
        );
        // Some hundred rows, each on a page of its own, and what lies ahead when the last one is read.
        assert!(pages < 1_100, "{order}: {spent:?}");
    }
}

#[test]
fn overflow_chains_cost_a_call_for_many_pages() {
    let server = PageServer::memory();
    let writer = with_blobs(&server, 100);
    let pages = pages_of(&writer);
    let cold = open_cold(&server.endpoint(), "blobs.db");
    let (sum, spent) = spent(|| number(&cold, "SELECT sum(length(hex(v))) FROM b"));
    assert_eq!(sum, 20_000_000);
    assert!(spent.bytes < pages * 4_200, "{spent:?} of {pages}");
    assert!(spent.calls <= calls_for(pages) + 16, "{spent:?} of {pages}");
}

#[test]
fn one_row_of_100_kb_costs_a_few_calls() {
    let server = PageServer::memory();
    drop(with_blobs(&server, 100));
    let cold = open_cold(&server.endpoint(), "blobs.db");
    let (length, spent) = spent(|| number(&cold, "SELECT length(hex(v)) FROM b WHERE i = 50"));
    assert_eq!(length, 200_000);
    // The root, the leaf, and the 25 pages in a window that grows.
    assert!(spent.calls <= 8, "{spent:?}");
    assert!(spent.bytes < 30 * 4_200, "{spent:?}");
}

#[test]
fn the_beginning_of_each_row_does_not_fetch_the_rest() {
    let server = PageServer::memory();
    let writer = open(&server.endpoint(), "blobs.db");
    writer
        .execute_batch(
            "CREATE TABLE b(i INTEGER PRIMARY KEY, a TEXT, v BLOB);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 100)
               INSERT INTO b SELECT i, printf('%05000d', i), randomblob(95000) FROM n;",
        )
        .expect("fill");
    let pages = pages_of(&writer);
    let cold = open_cold(&server.endpoint(), "blobs.db");
    // The first overflow pages of each row have the column.
    let (sum, spent) = spent(|| number(&cold, "SELECT sum(a) FROM b"));
    assert_eq!(sum, 5050);
    assert!(spent.bytes < pages * 4096 / 3, "{spent:?} of {pages}");
    assert!(spent.calls < 60, "{spent:?} of {pages}");
}

#[test]
fn chains_over_scattered_free_pages_are_followed_side_by_side() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "free.db");
    // The free pages that the blobs get are those of every second small row's page, the last one freed first.
    connection
        .execute_batch(
            "CREATE TABLE small(i INTEGER PRIMARY KEY, v TEXT);
             CREATE TABLE b(i INTEGER PRIMARY KEY, v BLOB);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
               INSERT INTO small SELECT i, printf('%03000d', i) FROM n;
             DELETE FROM small WHERE (i * 7919) % 2999 % 2 = 0;
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 60)
               INSERT INTO b SELECT i, randomblob(80000) FROM n;",
        )
        .expect("fill");
    drop(connection);
    let cold = open_cold(&server.endpoint(), "free.db");
    let (sum, spent) = spent(|| number(&cold, "SELECT sum(length(hex(v))) FROM b"));
    assert_eq!(sum, 60 * 160_000);
    let pages = spent.bytes / 4096;
    assert!((1_200..1_800).contains(&pages), "{spent:?}");
    // One page a call would be 1,200: here a call has pages of several chains.
    assert!(spent.calls < 400, "{spent:?}");
}

#[test]
fn integrity_check_create_index_and_vacuum_cost_a_call_for_many_pages() {
    let server = PageServer::memory();
    let writer = scattered(&server, 40_000);
    drop(writer);
    for sql in [
        "PRAGMA integrity_check",
        "CREATE INDEX t_v ON t(v)",
        "VACUUM",
    ] {
        let cold = open_cold(&server.endpoint(), "scattered.db");
        let pages = pages_of(&cold);
        let (_, spent) = spent(|| rows(&cold, sql).expect(sql));
        assert!(spent.bytes > 1_500 * 4096, "{sql}: {spent:?}");
        assert!(spent.bytes < pages * 4_400, "{sql}: {spent:?} of {pages}");
        assert!(
            spent.calls <= 2 * calls_for(pages),
            "{sql}: {spent:?} of {pages}"
        );
    }
    assert_sound(&open_cold(&server.endpoint(), "scattered.db"));
}

#[test]
fn a_backup_costs_a_call_for_many_pages() {
    let server = PageServer::memory();
    let writer = scattered(&server, 20_000);
    let pages = pages_of(&writer);
    let cold = open_cold(&server.endpoint(), "scattered.db");
    let mut copy = Connection::open_in_memory().expect("open");
    let ((), spent) = spent(|| {
        let backup = rusqlite::backup::Backup::new(&cold, &mut copy).expect("backup");
        backup.step(-1).expect("step");
    });
    assert_sound(&copy);
    assert!(spent.bytes < pages * 4_300, "{spent:?} of {pages}");
    assert!(spent.calls <= calls_for(pages), "{spent:?} of {pages}");
}

#[test]
fn point_reads_fetch_hardly_anything_that_they_do_not_use() {
    let server = PageServer::memory();
    let writer = open(&server.endpoint(), "points.db");
    writer
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
               INSERT INTO t SELECT i, printf('%0100d', i) FROM n;",
        )
        .expect("fill");
    let cold = open_cold(&server.endpoint(), "points.db");
    let (mut at, mut leaves) = (88_172_645_463_325_252u64, std::collections::HashSet::new());
    let (_, spent) = spent(|| {
        for _ in 0..500 {
            at ^= at << 13;
            at ^= at >> 7;
            at ^= at << 17;
            let i = at % 100_000 + 1;
            // 35 rows or so share a leaf.
            leaves.insert(i / 35);
            let sql = format!("SELECT length(v) FROM t WHERE i = {i}");
            assert_eq!(number(&cold, &sql), 100);
        }
    });
    let needed = i64::try_from(leaves.len()).expect("a count") + 10;
    assert!(
        spent.bytes < needed * 4_150 * 11 / 10,
        "{spent:?}, {needed} pages needed"
    );
}

#[test]
fn a_cold_point_read_costs_a_call_for_each_level() {
    let server = PageServer::memory();
    let writer = open(&server.endpoint(), "points.db");
    writer
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
               INSERT INTO t SELECT i, printf('%0100d', i) FROM n;",
        )
        .expect("fill");
    let cold = open_cold(&server.endpoint(), "points.db");
    let (_, spent) = spent(|| number(&cold, "SELECT length(v) FROM t WHERE i = 77777"));
    assert_eq!((spent.calls, spent.waited), (3, 3), "{spent:?}");
}

/// Bug: how long the way is was not known before something had been read ahead, so the first scan of a process began with four pages, as
/// beside its server, and was a round trip later than one that knew.
#[test]
fn over_a_long_way_the_first_scan_of_a_process_begins_with_more() {
    let server = PageServer::memory();
    drop(scattered(&server, 20_000));
    let far = delayed(&server.endpoint(), std::time::Duration::from_millis(20));
    let cold = open_cold(&far, "scattered.db");
    let mut statement = cold
        .prepare("SELECT length(v) FROM t NOT INDEXED")
        .expect("prepare");
    // The rows of two leaves at least, and not the beginning of a fourth one.
    let (_, spent) = spent(|| {
        let mut rows = statement.query([]).expect("query");
        for _ in 0..50 {
            rows.next().expect("row").expect("more rows");
        }
    });
    let pages = spent.bytes / 4096;
    assert!((30..120).contains(&pages), "{spent:?}: {pages} pages");
}

fn prefetch(connection: &Connection, key: &str) -> i64 {
    let sql = format!("SELECT value FROM pagewire_status WHERE key = '{key}'");
    rows(connection, &sql).expect("status")[0]
        .parse()
        .expect("a number")
}

/// F4: pages that were fetched ahead, and are neither read nor given up.
fn lying_ahead(connection: &Connection) -> i64 {
    let of = |key| prefetch(connection, key);
    of("prefetched_pages") - of("prefetch_hits") - of("prefetch_waste")
}

/// Bug: what a scan that was broken off had fetched stayed beside the cache until its connection was closed. Some idle connections
/// took all the room, and nobody's scan was read ahead any more.
#[test]
fn f6_a_scan_that_is_broken_off_leaves_nothing_ahead_and_its_connection_scans_on() {
    let server = PageServer::memory();
    drop(scattered(&server, 40_000));
    let cold = open_cold(&server.endpoint(), "scattered.db");
    // A connection of the same process that is not asked: reading the status begins no transaction.
    let probe = open(&server.endpoint(), "other.db");
    for round in 0..4 {
        let least = round * 900_000_000_i64;
        let sql = format!("SELECT length(v) FROM t NOT INDEXED WHERE i > {least}");
        let mut statement = cold.prepare(&sql).expect("prepare");
        let mut rows = statement.query([]).expect("query");
        for _ in 0..5_000 {
            rows.next().expect("row").expect("more rows");
        }
        let until = std::time::Instant::now() + WAIT;
        while lying_ahead(&probe) == 0 {
            // What was asked for is on its way, unless this reader has caught up with it.
            rows.next().expect("row").expect("more rows");
            assert!(std::time::Instant::now() < until, "nothing is read ahead");
        }
        drop(rows);
        drop(statement);
        let until = std::time::Instant::now() + WAIT;
        while lying_ahead(&probe) != 0 {
            let left = lying_ahead(&probe);
            assert!(std::time::Instant::now() < until, "{left} pages stay");
            std::thread::yield_now();
        }
    }
}

/// Bug: a read that had waited for a page on its way, in vain, began a call of its own with a whole deadline.
#[test]
fn a_read_waits_once_for_its_deadline_when_its_page_was_on_its_way() {
    const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
    let server = PageServer::memory();
    drop(scattered(&server, 40_000));
    let cold = open_uri(&uri(
        &server.endpoint(),
        "scattered.db",
        &["token=cold", &format!("timeout_ms={}", TIMEOUT.as_millis())],
    ))
    .expect("open");
    let mut statement = cold
        .prepare("SELECT length(v) FROM t NOT INDEXED")
        .expect("prepare");
    let mut rows = statement.query([]).expect("query");
    for _ in 0..5_000 {
        rows.next().expect("row").expect("more rows");
    }
    server.pause();
    let late = reads().waited;
    let failed = loop {
        let begun = std::time::Instant::now();
        match rows.next() {
            Ok(row) => drop(row.expect("the server stands still before the end of the table")),
            Err(error) => break (error, begun.elapsed()),
        }
    };
    server.resume();
    let (error, took) = failed;
    assert_eq!(code(&error) & 0xff, 10, "{error}");
    assert!(reads().waited - late >= 2, "it waited for none on its way");
    assert!(took >= TIMEOUT / 2 && took < TIMEOUT * 3 / 2, "{took:?}");
}

/// Bug: page 1 and the root of the first table counted as a run of pages; see `prefetch/tests.rs` of the VFS.
#[test]
fn the_first_scan_of_a_table_that_was_loaded_in_one_go_reads_all_that_it_fetches() {
    let server = PageServer::memory();
    let writer = open(&server.endpoint(), "loaded.db");
    writer
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 6000)
               INSERT INTO t SELECT i, printf('%01000d', i) FROM n;",
        )
        .expect("fill");
    // The writer is still there, and has left no hot list.
    let cold = open_cold(&server.endpoint(), "loaded.db");
    let keys = ["prefetched_pages", "prefetch_waste"];
    let before = keys.map(|key| prefetch(&cold, key));
    number(&cold, "SELECT sum(length(v)) FROM t");
    let [fetched, waste] = [0, 1].map(|key| prefetch(&cold, keys[key]) - before[key]);
    assert!(fetched > 1_400, "{fetched}");
    assert_eq!(waste, 0, "of {fetched}");
}

#[test]
fn what_was_fetched_ahead_is_counted() {
    let server = PageServer::memory();
    drop(scattered(&server, 20_000));
    let cold = open_cold(&server.endpoint(), "scattered.db");
    let before = prefetch(&cold, "prefetched_pages");
    number(&cold, "SELECT sum(length(v)) FROM t NOT INDEXED");
    let fetched = prefetch(&cold, "prefetched_pages") - before;
    assert!(fetched > 500, "{fetched}");
    let (hits, waste) = (
        prefetch(&cold, "prefetch_hits"),
        prefetch(&cold, "prefetch_waste"),
    );
    assert!(hits > fetched * 9 / 10, "{hits} of {fetched}");
    assert!(waste < fetched / 10, "{waste} of {fetched}");
}
