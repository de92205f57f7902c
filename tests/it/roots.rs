//! What the first statements on many small tables cost: their roots are named by the schema, and come along with one another.

use pagewire_tests::connection::{number, open, open_uri, uri};
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

/// So many tables of a few rows, each with an index: twice as many roots, which are leaves. Beside them so much else that the
/// database does not come whole with its open.
fn small_tables(server: &PageServer, tables: u32) {
    let connection = open(&server.endpoint(), "small.db");
    let each = |table| {
        format!(
            "CREATE TABLE t{table}(i INTEGER PRIMARY KEY, k TEXT, v TEXT);
             CREATE INDEX t{table}_k ON t{table}(k);
             INSERT INTO t{table} VALUES(1, 'a', 'x'), (2, 'b', 'y'), (3, 'c', 'z');"
        )
    };
    let all: String = (0..tables).map(each).collect();
    connection
        .execute_batch(&format!(
            "BEGIN; {all} CREATE TABLE large(v BLOB); INSERT INTO large VALUES(zeroblob(4000000)); COMMIT"
        ))
        .expect("fill");
}

/// A client of its own, with an empty cache and the schema loaded.
fn open_cold(server: &PageServer, name: &str) -> Connection {
    let token = format!("token={name}");
    let connection = open_uri(&uri(&server.endpoint(), "small.db", &[&token])).expect("open");
    number(&connection, "SELECT count(*) FROM sqlite_schema");
    connection
}

/// Calls that read, and pages that came by them.
fn reads() -> (u64, u64) {
    let read = pagewire::rpc_count(pagewire::CallKind::Read);
    (read.count + read.background, read.bytes_received / 4096)
}

/// Calls and pages that an action costs.
fn spent(action: impl FnOnce()) -> (u64, u64) {
    let before = reads();
    action();
    let after = reads();
    (after.0 - before.0, after.1 - before.1)
}

/// Looks a row up by the index of a table.
fn look_up(connection: &Connection, table: u32) {
    let sql = format!("SELECT length(v) FROM t{table} WHERE k = 'b'");
    assert_eq!(number(connection, &sql), 1);
}

fn prefetch(connection: &Connection, key: &str) -> i64 {
    let sql = format!("SELECT CAST(value AS INT) FROM pagewire_status WHERE key = '{key}'");
    number(connection, &sql)
}

#[test]
fn the_first_statements_on_twenty_tables_cost_a_call_for_many_roots() {
    let server = PageServer::memory();
    small_tables(&server, 20);
    let cold = open_cold(&server, "each");
    let (calls, pages) = spent(|| (0..20).for_each(|table| look_up(&cold, table)));
    // Forty by themselves: the first, and then sixteen more with each of those that follow.
    assert_eq!(calls, 4);
    assert!((40..=41).contains(&pages), "{pages} pages");
    // In one transaction, and in whatever order.
    let cold = open_cold(&server, "at-once");
    let (calls, pages) = spent(|| {
        cold.execute_batch("BEGIN").expect("begin");
        (0..20).for_each(|table| look_up(&cold, table * 7 % 20));
        cold.execute_batch("COMMIT").expect("commit");
    });
    assert!(calls <= 6 && pages <= 41, "{calls} calls, {pages} pages");
}

#[test]
fn of_a_large_schema_few_roots_come_for_nothing_and_they_are_counted() {
    let server = PageServer::memory();
    small_tables(&server, 300);
    let cold = open_cold(&server, "few");
    let before = prefetch(&cold, "prefetch_waste");
    // By rowid: one root.
    let (calls, pages) = spent(|| {
        for row in [1, 2, 3, 1, 2] {
            let sql = format!("SELECT length(v) FROM t100 WHERE i = {row}");
            assert_eq!(number(&cold, &sql), 1);
        }
    });
    assert_eq!((calls, pages), (1, 1));
    // Two more, and sixteen with each of them.
    let (calls, pages) = spent(|| {
        look_up(&cold, 100);
        look_up(&cold, 200);
    });
    assert_eq!((calls, pages), (2, 34));
    assert_eq!(prefetch(&cold, "prefetch_waste") - before, 31);
    // They are in the cache, though nobody wanted them then.
    let (calls, _) = spent(|| look_up(&cold, 105));
    assert_eq!(calls, 0);
}

/// Bug: roots that had come along held the room of what is read ahead until the transaction ended, with each turn more of it.
#[test]
fn roots_that_came_along_hold_no_room_when_others_come() {
    let server = PageServer::memory();
    small_tables(&server, 300);
    let cold = open_cold(&server, "room");
    let waste = || prefetch(&cold, "prefetch_waste");
    cold.execute_batch("BEGIN").expect("begin");
    // The second root that is waited for brings sixteen along.
    look_up(&cold, 100);
    let before = waste();
    look_up(&cold, 200);
    assert_eq!(waste() - before, 16);
    cold.execute_batch("COMMIT").expect("commit");
}

/// A root that others change is asked for again and again: it brings nothing along a second time.
#[test]
fn a_root_that_others_change_brings_others_along_once() {
    let server = PageServer::memory();
    small_tables(&server, 40);
    let writer = open(&server.endpoint(), "small.db");
    let reader = open_cold(&server, "reader");
    look_up(&reader, 0);
    let (_, pages) = spent(|| {
        for turn in 0..10 {
            writer
                .execute_batch(&format!("UPDATE t7 SET v = {turn}"))
                .expect("update");
            assert_eq!(
                number(&reader, "SELECT CAST(v AS INT) FROM t7 WHERE i = 2"),
                turn
            );
        }
    });
    assert!(pages <= 10 + 3 * 17, "{pages} pages");
}
