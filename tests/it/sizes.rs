//! Open and the first query cost the same whatever the size of the database: calls, and bytes but for the interior pages on one path.

use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;

const NAME: &str = "sized.db";
const PAGE: i64 = 4096;

/// What an open and a first query cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    calls: i64,
    received: i64,
}

/// A small table, an index on it, and a large table with rows of half a page; about so many bytes.
fn fill(server: &PageServer, mib: i64) {
    let mut maker = Guest::start(&[]);
    maker
        .open("main", &uri(&server.endpoint(), NAME, &[]))
        .expect("open");
    maker.ok("main", "CREATE TABLE settings(k TEXT PRIMARY KEY, v TEXT)");
    maker.ok("main", "INSERT INTO settings VALUES('a', 'x'), ('b', 'y')");
    maker.ok("main", "CREATE TABLE t(i INTEGER PRIMARY KEY, v BLOB)");
    let rows = mib * 512;
    for first in (1..=rows).step_by(25_600) {
        let last = rows.min(first + 25_599);
        let part = format!(
            "WITH RECURSIVE n(i) AS (VALUES({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {last})
             INSERT INTO t SELECT i, zeroblob(2000) FROM n"
        );
        maker.ok("main", &part);
    }
    let pages: i64 = maker.ok("main", "PRAGMA page_count")[0]
        .parse()
        .expect("a number");
    assert!(pages * PAGE >= mib << 20, "{pages} pages");
    // It is killed, not closed: it leaves no hot list.
    maker.kill();
}

/// Opens the database in a new process and asks one thing.
fn first(server: &PageServer, sql: &str, expected: &str) -> (Cost, Guest) {
    let mut guest = Guest::start(&[]);
    guest.open("probe", ":memory:").expect("open");
    guest
        .open("main", &uri(&server.endpoint(), NAME, &[]))
        .expect("open");
    assert_eq!(guest.ok("main", sql), [expected]);
    let spent = "SELECT sum(count) + sum(background) FILTER (WHERE kind = 'read'), \
                 sum(bytes_received) FILTER (WHERE kind IN ('open', 'read', 'begin')) FROM pagewire_rpc";
    let spent = guest.ok("probe", spent).remove(0);
    let (calls, received) = spent.split_once('|').expect("two numbers");
    let cost = Cost {
        calls: calls.parse().expect("a number"),
        received: received.parse().expect("a number"),
    };
    (cost, guest)
}

/// The costs in a database of so many MiB: of a query of a small table without a hot list, and of one row of the large table with
/// what a process left that had asked for one.
fn costs(mib: i64) -> [Cost; 2] {
    let server = PageServer::memory();
    fill(&server, mib);
    let (small, guest) = first(&server, "SELECT v FROM settings WHERE k = 'b'", "y");
    drop(guest);
    let point = |row: i64| format!("SELECT length(v) FROM t WHERE i = {row}");
    let (_, mut before) = first(&server, &point(mib * 300), "2000");
    before.close("main").expect("close");
    before.close("probe").expect("close");
    drop(before);
    let (hot, _) = first(&server, &point(mib * 300 + 1), "2000");
    println!("{mib} MiB: small table {small:?}, row of the large one {hot:?}");
    [small, hot]
}

fn assert_flat(mib: i64) {
    let [small, hot] = costs(1);
    let [small_of_large, hot_of_large] = costs(mib);
    assert!(small.calls <= 3 && hot.calls <= 3, "{small:?} {hot:?}");
    assert_eq!(small.calls, small_of_large.calls);
    assert_eq!(hot.calls, hot_of_large.calls);
    // Numbers of pages and versions have a byte or two more.
    let more = small_of_large.received - small.received;
    assert!((0..64).contains(&more), "{small:?} {small_of_large:?}");
    // The path to a row has one interior page more for each factor of some 450: at most two here.
    let more = hot_of_large.received - hot.received;
    assert!((0..3 * PAGE).contains(&more), "{hot:?} {hot_of_large:?}");
}

#[test]
fn open_and_the_first_query_cost_the_same_at_1_and_at_100_mb() {
    assert_flat(100);
}

#[test]
#[ignore = "some minutes, and 3 GiB of memory"]
fn open_and_the_first_query_cost_the_same_at_1_mb_and_at_1_gb() {
    assert_flat(1024);
}
