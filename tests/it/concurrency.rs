//! Several processes and threads on one database: one writer at a time, nothing lost, snapshots whole.

use std::process::{Child, Command};
use std::time::Duration;

use pagewire_tests::connection::{assert_sound, code, number, open, open_uri, register, rows, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::{PageServer, target_dir};

const BUSY: i32 = 5;

fn incrementer(uri: &str, times: u32) -> Child {
    Command::new(target_dir().join("pagewire-guest"))
        .args(["increment", uri, &times.to_string()])
        .spawn()
        .expect("start the guest")
}

#[test]
fn w13_ten_thousand_increments_by_two_processes_lose_none() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "counter.db");
    connection
        .execute_batch("CREATE TABLE counter(n INT); INSERT INTO counter VALUES(0)")
        .expect("create");
    let uri = uri(&server.endpoint(), "counter.db", &[]);
    let mut processes = [incrementer(&uri, 5000), incrementer(&uri, 5000)];
    for process in &mut processes {
        assert!(process.wait().expect("wait").success());
    }
    assert_eq!(number(&connection, "SELECT n FROM counter"), 10_000);
    assert_sound(&connection);
}

#[test]
fn threads_of_one_process_and_another_process_lose_no_increment() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "counter.db");
    connection
        .execute_batch("CREATE TABLE counter(n INT); INSERT INTO counter VALUES(0)")
        .expect("create");
    let uri = uri(&server.endpoint(), "counter.db", &[]);
    let mut other = incrementer(&uri, 300);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let own = open_uri(&uri).expect("open");
                own.busy_timeout(Duration::from_secs(60))
                    .expect("busy timeout");
                for _ in 0..300 {
                    own.execute("UPDATE counter SET n = n + 1", [])
                        .expect("increment");
                }
            });
        }
    });
    assert!(other.wait().expect("wait").success());
    assert_eq!(number(&connection, "SELECT n FROM counter"), 1200);
}

#[test]
fn w12_begin_immediate_never_succeeds_twice() {
    let server = PageServer::memory();
    let uri = uri(&server.endpoint(), "w12.db", &[]);
    let mut guests = [Guest::start(&[]), Guest::start(&[])];
    for guest in &mut guests {
        guest.open("main", &uri).expect("open");
        guest.ok("main", "PRAGMA busy_timeout = 0");
    }
    guests[0].ok("main", "CREATE TABLE t(who INT)");
    let (mut both_tried, mut committed) = (0, 0);
    for turn in 0..300 {
        for guest in &mut guests {
            guest.begin_sql("main", "BEGIN IMMEDIATE");
        }
        let answers = [guests[0].answer(), guests[1].answer()];
        let begun: Vec<usize> = (0..2).filter(|&who| answers[who].is_ok()).collect();
        assert!(
            begun.len() < 2,
            "both are in BEGIN IMMEDIATE in turn {turn}"
        );
        for answer in answers.iter().filter_map(|answer| answer.as_ref().err()) {
            assert_eq!(answer.code & 0xff, BUSY, "{answer:?}");
            both_tried += 1;
        }
        for who in begun {
            guests[who].ok("main", &format!("INSERT INTO t VALUES({who})"));
            // The other one still can't.
            let refused = guests[1 - who]
                .sql("main", "BEGIN IMMEDIATE")
                .expect_err("a second writer");
            assert_eq!(refused.code & 0xff, BUSY, "{refused:?}");
            guests[who].ok("main", "COMMIT");
            committed += 1;
        }
    }
    assert!(
        both_tried > 0 && committed > 0,
        "{both_tried} refusals, {committed} commits"
    );
    let connection = open(&server.endpoint(), "w12.db");
    assert_eq!(number(&connection, "SELECT count(*) FROM t"), committed);
    assert_sound(&connection);
}

#[test]
fn w12_two_connections_of_one_process_exclude_each_other() {
    let server = PageServer::memory();
    let (one, two) = (
        open(&server.endpoint(), "t.db"),
        open(&server.endpoint(), "t.db"),
    );
    one.execute_batch("CREATE TABLE t(i)").expect("create");
    two.busy_timeout(Duration::ZERO).expect("busy timeout");
    one.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES(1)")
        .expect("begin");
    let refused = two
        .execute_batch("BEGIN IMMEDIATE")
        .expect_err("a second writer");
    assert_eq!(code(&refused) & 0xff, BUSY);
    assert_eq!(number(&two, "SELECT count(*) FROM t"), 0);
    one.execute_batch("COMMIT").expect("commit");
    two.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES(2); COMMIT")
        .expect("after the first");
    assert_eq!(number(&one, "SELECT count(*) FROM t"), 2);
}

#[test]
fn a_waiting_writer_gets_its_turn_while_the_other_goes_on_writing() {
    let server = PageServer::memory();
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let mut busy = Guest::start(&[]);
    busy.open("main", &uri).expect("open");
    busy.ok("main", "CREATE TABLE t(i)");
    busy.ok("main", "PRAGMA busy_timeout = 20000");
    let mut waiting = Guest::start(&[]);
    waiting.open("main", &uri).expect("open");
    waiting.ok("main", "PRAGMA busy_timeout = 20000");
    waiting.begin_sql("main", "INSERT INTO t VALUES('the one that waits')");
    for turn in 0..50 {
        busy.ok("main", &format!("INSERT INTO t VALUES({turn})"));
    }
    waiting.answer().expect("its turn within the busy timeout");
}

#[test]
fn a_reader_keeps_its_snapshot_while_others_commit() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "t.db");
    connection
        .execute_batch("CREATE TABLE t(i); INSERT INTO t VALUES(1)")
        .expect("create");
    let mut reader = Guest::start(&[]);
    reader
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    reader.ok("main", "BEGIN");
    assert_eq!(reader.ok("main", "SELECT count(*) FROM t"), ["1"]);
    for turn in 0..20 {
        connection
            .execute("INSERT INTO t VALUES(?1)", [turn])
            .expect("a reader blocks no writer");
    }
    assert_eq!(reader.ok("main", "SELECT count(*) FROM t"), ["1"]);
    reader.ok("main", "COMMIT");
    assert_eq!(reader.ok("main", "SELECT count(*) FROM t"), ["21"]);
}

#[test]
fn a_transaction_that_read_an_old_snapshot_cannot_write_over_a_newer_one() {
    let server = PageServer::memory();
    let connection = open(&server.endpoint(), "t.db");
    connection
        .execute_batch("CREATE TABLE t(i); INSERT INTO t VALUES(1)")
        .expect("create");
    let mut reader = Guest::start(&[]);
    reader
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    reader.ok("main", "PRAGMA busy_timeout = 3000");
    reader.ok("main", "BEGIN");
    reader.ok("main", "SELECT count(*) FROM t");
    connection
        .execute("UPDATE t SET i = i + 1", [])
        .expect("update");
    let refused = reader
        .sql("main", "UPDATE t SET i = i + 1")
        .expect_err("an old snapshot");
    assert_eq!(refused.code & 0xff, BUSY, "{refused:?}");
    reader.ok("main", "ROLLBACK");
    reader.ok("main", "UPDATE t SET i = i + 1");
    connection
        .busy_timeout(Duration::from_secs(5))
        .expect("busy timeout");
    assert_eq!(number(&connection, "SELECT i FROM t"), 3);
}

#[test]
fn w10_snapshots_of_a_database_that_changes_fast_are_whole() {
    let server = PageServer::memory();
    register();
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let writer = open(&server.endpoint(), "t.db");
    writer
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, n INT, filler TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 200)
               INSERT INTO t SELECT i, 100, printf('%0400d', i) FROM n",
        )
        .expect("create");
    let mut reader = Guest::start(&[]);
    reader.open("main", &uri).expect("open");
    for turn in 0..300 {
        reader.begin_sql("main", "SELECT sum(n), count(*) FROM t");
        let (one, two) = (1 + turn * 7 % 200, 1 + (turn * 13 + 100) % 200);
        writer
            .execute_batch(&format!(
                "BEGIN; UPDATE t SET n = n - 1 WHERE i = {one}; UPDATE t SET n = n + 1 WHERE i = {two}; COMMIT"
            ))
            .expect("a transfer");
        assert_eq!(reader.answer().expect("read"), ["20000|200"], "turn {turn}");
    }
    assert_eq!(
        rows(&writer, "SELECT sum(n) FROM t").expect("sum"),
        ["20000"]
    );
}

#[test]
fn w11_a_reader_that_ends_does_not_end_the_snapshot_of_another() {
    let server = PageServer::memory();
    let writer = open(&server.endpoint(), "t.db");
    writer
        .execute_batch("CREATE TABLE t(i); INSERT INTO t VALUES(1)")
        .expect("create");
    let (one, two) = (
        open(&server.endpoint(), "t.db"),
        open(&server.endpoint(), "t.db"),
    );
    one.execute_batch("BEGIN").expect("begin");
    two.execute_batch("BEGIN").expect("begin");
    assert_eq!(
        (
            number(&one, "SELECT sum(i) FROM t"),
            number(&two, "SELECT sum(i) FROM t")
        ),
        (1, 1)
    );
    writer.execute_batch("UPDATE t SET i = 10").expect("update");
    one.execute_batch("COMMIT").expect("commit");
    drop(one);
    writer
        .execute_batch("UPDATE t SET i = 100")
        .expect("update");
    assert_eq!(number(&two, "SELECT sum(i) FROM t"), 1);
    two.execute_batch("COMMIT").expect("commit");
    assert_eq!(number(&two, "SELECT sum(i) FROM t"), 100);
}
