//! The page cache is the process's: what one connection has read costs the others nothing.

use std::time::{Duration, Instant};

use pagewire_tests::connection::{cost, number, open, open_uri, register, rows, uri};
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

const ALL: &str = "SELECT sum(length(v)) FROM t";

/// Until then each transaction asks whether what is cached is the newest. It is asked for after a few of them, and comes by itself.
fn read_until_it_is_subscribed(connection: &Connection) {
    let began = Instant::now();
    while rows(connection, "PRAGMA pagewire_subscription").expect("a word") != ["strict"] {
        number(connection, "SELECT count(*) FROM sqlite_schema");
        assert!(began.elapsed() < Duration::from_secs(20), "no subscription");
    }
}

#[test]
fn what_one_connection_has_read_a_second_one_of_the_process_reads_without_a_call() {
    let server = PageServer::memory();
    let maker = open(&server.endpoint(), "shared.db");
    maker
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             CREATE INDEX t_v ON t(v);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
               INSERT INTO t SELECT i, printf('%0100d', i) FROM n;",
        )
        .expect("fill");
    // A client of its own: what the maker has written is not in its cache.
    let uri = uri(&server.endpoint(), "shared.db", &["token=readers"]);
    let first = open_uri(&uri).expect("open");
    let cold = cost(&first, |c| assert_eq!(number(c, ALL), 2_000_000));
    assert!(cold > 3, "{cold} calls: it was not cold");
    let second = open_uri(&uri).expect("open");
    read_until_it_is_subscribed(&second);
    // Its own cache of SQLite is empty, the schema too is read anew.
    for sql in [ALL, "SELECT count(*) FROM t WHERE i % 7 = 3"] {
        let spent = cost(&second, |c| {
            rows(c, sql).expect(sql);
        });
        assert_eq!(spent, 0, "{sql}");
    }
    // In threads, with connections of their own, one of which comes when the first ones have closed.
    drop((first, second));
    let keeps = open_uri(&uri).expect("open");
    number(&keeps, ALL);
    read_until_it_is_subscribed(&keeps);
    let spent = cost(&keeps, |_| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    register();
                    let own = open_uri(&uri).expect("open");
                    for _ in 0..3 {
                        assert_eq!(number(&own, ALL), 2_000_000);
                    }
                });
            }
        });
    });
    assert_eq!(spent, 0);
}
