//! Leases: one writer, fenced; they move when the holder dies, closes or sleeps too long, and their loss is told.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pagewire_tests::connection::{assert_sound, number, open, rows, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::Proxy;
use pagewire_tests::server::PageServer;

const BUSY: i32 = 5;
const IOERR: i32 = 10;

/// Two processes at one database, the first one with the lease.
fn two_processes(server: &PageServer) -> (Guest, Guest) {
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let mut first = Guest::start(&[]);
    first.open("main", &uri).expect("open");
    first.ok("main", "CREATE TABLE t(who TEXT)");
    let mut second = Guest::start(&[]);
    second.open("main", &uri).expect("open");
    second.ok("main", "PRAGMA busy_timeout = 15000");
    (first, second)
}

#[test]
fn l5_a_database_that_another_process_writes_to_opens_and_waits_its_turn() {
    let server = PageServer::memory();
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "BEGIN IMMEDIATE");
    first.ok("main", "INSERT INTO t VALUES('first')");
    assert_eq!(
        second.ok("main", "SELECT count(*) FROM t"),
        ["0"],
        "readers never wait"
    );
    second.begin_sql("main", "INSERT INTO t VALUES('second')");
    first.ok("main", "COMMIT");
    second.answer().expect("its turn came");
    assert_eq!(first.ok("main", "SELECT who FROM t"), ["first", "second"]);
}

#[test]
fn l6_after_a_kill_on_the_same_host_the_lease_moves_before_its_ttl_is_over() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "20000"]);
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "BEGIN IMMEDIATE");
    first.ok("main", "INSERT INTO t VALUES('never committed')");
    first.kill();
    let began = Instant::now();
    second.ok("main", "INSERT INTO t VALUES('second')");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it took {:?}",
        began.elapsed()
    );
    assert_eq!(second.ok("main", "SELECT who FROM t"), ["second"]);
}

#[test]
fn l8_of_two_writers_at_full_speed_both_get_on_and_none_is_refused_at_its_commit() {
    const ENOUGH: u32 = 150;
    let server = PageServer::memory();
    let (mut first, mut second) = two_processes(&server);
    // Who can't write is told when he begins, not after he has done his work.
    first.ok("main", "BEGIN IMMEDIATE");
    first.ok("main", "INSERT INTO t VALUES('first')");
    second.ok("main", "PRAGMA busy_timeout = 0");
    let refused = second.sql("main", "BEGIN IMMEDIATE").expect_err("busy");
    assert_eq!(refused.code & 0xff, BUSY, "{refused:?}");
    first.ok("main", "COMMIT");
    let over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let writers = [&mut first, &mut second].map(|guest| {
            let over = &over;
            scope.spawn(move || {
                guest.ok("main", "PRAGMA busy_timeout = 15000");
                let mut done = 0;
                while !over.load(Ordering::Relaxed) {
                    for sql in ["BEGIN IMMEDIATE", "INSERT INTO t VALUES('x')", "COMMIT"] {
                        guest.ok("main", sql);
                    }
                    done += 1;
                    if done == ENOUGH {
                        over.store(true, Ordering::Relaxed);
                    }
                }
                done
            })
        });
        writers.map(|writer| writer.join().expect("a writer"))
    });
    let [less, more] = [done[0].min(done[1]), done[0].max(done[1])];
    assert!(less >= more / 3, "one got {more} done, the other {less}");
    let rows = (1 + done[0] + done[1]).to_string();
    assert_eq!(first.ok("main", "SELECT count(*) FROM t"), [rows]);
}

#[test]
fn a_process_that_closed_its_database_is_not_waited_for() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "20000"]);
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "INSERT INTO t VALUES('first')");
    first.close("main").expect("close");
    let began = Instant::now();
    second.ok("main", "INSERT INTO t VALUES('second')");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        began.elapsed()
    );
}

/// The lease moves while the stream of its holder is broken; the commit of the next one waited a TTL although the holder was back.
#[test]
fn l8_a_holder_whose_stream_broke_and_came_back_is_not_waited_for() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "20000"]);
    let proxy = Proxy::new(&server.endpoint());
    let mut first = Guest::start(&[]);
    first
        .open("main", &uri(&proxy.endpoint(), "t.db", &[]))
        .expect("open");
    first.ok("main", "PRAGMA busy_timeout = 15000");
    first.ok("main", "CREATE TABLE t(who TEXT)");
    let mut second = Guest::start(&[]);
    second
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    second.ok("main", "PRAGMA busy_timeout = 15000");
    let began = Instant::now();
    for _ in 0..10 {
        first.ok("main", "INSERT INTO t VALUES('first')");
        proxy.cut_sessions();
        second.ok("main", "INSERT INTO t VALUES('second')");
    }
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it took {:?}",
        began.elapsed()
    );
    assert_eq!(first.ok("main", "SELECT count(*) FROM t"), ["20"]);
}

/// A holder that slept past its lease in mid-transaction while another one wrote.
fn sleeper(server: &PageServer) -> (Guest, Guest) {
    let (mut first, mut second) = two_processes(server);
    first.ok("main", "BEGIN IMMEDIATE");
    first.ok("main", "INSERT INTO t VALUES('the sleeper')");
    first.pause();
    second.ok("main", "INSERT INTO t VALUES('meanwhile')");
    first.resume();
    (first, second)
}

#[test]
fn l4_a_lease_lost_while_the_process_slept_is_told_and_nothing_of_it_is_committed() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "1000"]);
    let (mut first, mut second) = sleeper(&server);
    let told = first
        .sql("main", "COMMIT")
        .expect_err("the lease is another's");
    // W16: a plain BUSY here would leave the transaction open, and the COMMIT repeated.
    assert_ne!(told.code, BUSY, "{told:?}");
    assert_eq!(second.ok("main", "SELECT who FROM t"), ["meanwhile"]);
    // The connection is none the worse for it.
    first.sql("main", "ROLLBACK").ok();
    first.ok("main", "PRAGMA busy_timeout = 15000");
    first.ok("main", "INSERT INTO t VALUES('the sleeper again')");
    assert_eq!(
        first.ok("main", "SELECT who FROM t"),
        ["meanwhile", "the sleeper again"]
    );
    assert_eq!(first.ok("main", "PRAGMA integrity_check"), ["ok"]);
}

#[test]
fn w16_a_commit_that_failed_for_a_lost_lease_never_says_ok_when_it_is_repeated() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "1000"]);
    let (mut first, mut second) = sleeper(&server);
    for _ in 0..3 {
        first
            .sql("main", "COMMIT")
            .expect_err("it can't be committed");
    }
    assert_eq!(second.ok("main", "SELECT who FROM t"), ["meanwhile"]);
    assert_eq!(first.ok("main", "SELECT who FROM t"), ["meanwhile"]);
}

/// Bug: "disk I/O error" at the COMMIT of a transaction that had lasted while the machine was loaded (SQLite's `sort-13.1`, 100,000 statements).
/// Cause: a process, or a server, that is held up for longer than the TTL loses its leases, and the commit was refused for it, whoever had written
/// meanwhile. Damage: a transaction undone for a mere delay. Fix: the lease is asked for again (`database/regain.rs`).
#[test]
fn g2_a_writer_that_slept_past_its_lease_commits_where_nobody_wrote_meanwhile() {
    for store in ["memory", "versioned-memory"] {
        let server = PageServer::start(store, &["--lease-ttl-ms", "1000"]);
        let (mut first, mut second) = two_processes(&server);
        first.ok("main", "BEGIN IMMEDIATE");
        first.ok("main", "INSERT INTO t VALUES('the sleeper')");
        first.pause();
        // The lease has moved, and its new holder makes no version.
        second.ok("main", "BEGIN IMMEDIATE");
        second.ok("main", "ROLLBACK");
        first.resume();
        first.ok("main", "COMMIT");
        assert_eq!(second.ok("main", "SELECT who FROM t"), ["the sleeper"]);
        second.ok("main", "INSERT INTO t VALUES('the other')");
        first.ok("main", "INSERT INTO t VALUES('the sleeper again')");
        assert_eq!(
            second.ok("main", "SELECT who FROM t"),
            ["the sleeper", "the other", "the sleeper again"]
        );
        assert_eq!(first.ok("main", "PRAGMA integrity_check"), ["ok"]);
    }
}

/// G3: whoever writes is not waited for, and makes the version that ends the other's transaction.
#[test]
fn g3_a_writer_that_slept_past_its_lease_does_not_wait_for_one_who_writes() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "1000"]);
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "BEGIN IMMEDIATE");
    first.ok("main", "INSERT INTO t VALUES('the sleeper')");
    first.pause();
    second.ok("main", "BEGIN IMMEDIATE");
    second.ok("main", "INSERT INTO t VALUES('the other')");
    first.resume();
    let began = Instant::now();
    let told = first.sql("main", "COMMIT").expect_err("another writes");
    // It is told so; its deadline is 15 s.
    let waited = began.elapsed();
    assert!(waited < Duration::from_secs(8), "COMMIT took {waited:?}");
    assert_eq!(told.code & 0xff, IOERR, "{told:?}");
    let why = first.ok("main", "SELECT pagewire_last_error()").join("");
    assert!(why.contains("another process is writing"), "{why}");
    assert!(why.contains("run the transaction again"), "{why}");
    second.ok("main", "COMMIT");
    assert_eq!(first.ok("main", "SELECT who FROM t"), ["the other"]);
}

/// The same for a server that was held up: each of its sessions has lapsed. G5: what had no commit has another identity.
#[test]
fn g5_a_server_that_was_held_up_past_the_ttl_costs_no_transaction() {
    let server = PageServer::start("versioned-memory", &["--lease-ttl-ms", "1000"]);
    let connection = open(&server.endpoint(), "first.db");
    let second = uri(&server.endpoint(), "second.db", &[]);
    connection
        .execute("ATTACH ?1 AS second", [second])
        .expect("attach");
    for turn in 0..2 {
        connection
            .execute_batch(
                "BEGIN; CREATE TABLE IF NOT EXISTS main.t(i); CREATE TABLE IF NOT EXISTS second.t(i);
                 INSERT INTO main.t VALUES(1); INSERT INTO second.t VALUES(1)",
            )
            .expect("write");
        server.pause();
        #[expect(
            clippy::disallowed_methods,
            reason = "that it takes long is what is under test"
        )]
        std::thread::sleep(Duration::from_millis(1500));
        server.resume();
        connection.execute_batch("COMMIT").expect("commit");
        for name in ["first.db", "second.db"] {
            let other = open(&server.endpoint(), name);
            assert_eq!(number(&other, "SELECT count(*) FROM t"), turn + 1, "{name}");
            assert_sound(&other);
        }
    }
}

#[test]
fn a_reader_that_slept_past_the_ttl_sees_what_was_committed_meanwhile() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "1000"]);
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "INSERT INTO t VALUES('first')");
    first.pause();
    second.ok("main", "INSERT INTO t VALUES('second')");
    first.resume();
    assert_eq!(first.ok("main", "SELECT who FROM t"), ["first", "second"]);
}

#[test]
fn l3_the_first_statement_after_a_long_pause_succeeds() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "500"]);
    let connection = open(&server.endpoint(), "t.db");
    connection
        .execute_batch("CREATE TABLE t(i)")
        .expect("create");
    #[expect(clippy::disallowed_methods, reason = "idling is what is under test")]
    std::thread::sleep(Duration::from_secs(4));
    connection
        .execute("INSERT INTO t VALUES(1)", [])
        .expect("insert after idling");
    assert_eq!(number(&connection, "SELECT count(*) FROM t"), 1);
}

/// SQLite's busy handler counts its pauses, twelve in 200 ms, and each try waited up to two seconds for a holder that does not answer (or one of
/// another server): a lock waited for more than 20 seconds. What a try has waited is counted now. Told by calls, not by time: of
/// the second try nobody is asked.
#[test]
fn a_holder_that_does_not_answer_is_not_waited_for_longer_than_the_busy_timeout_and_one_try() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "60000"]);
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "INSERT INTO t VALUES('first')");
    first.pause();
    second.ok("main", "PRAGMA busy_timeout = 200");
    let asked = "SELECT count FROM pagewire_rpc WHERE kind = 'acquire'";
    let before = calls(&second.ok("main", asked));
    let refused = second
        .sql("main", "INSERT INTO t VALUES('second')")
        .expect_err("the first one has the lease");
    assert_eq!(refused.code & 0xff, BUSY, "{refused:?}");
    assert_eq!(calls(&second.ok("main", asked)) - before, 1);
    // With time for it the lock waits, be it for many tries.
    second.ok("main", "PRAGMA busy_timeout = 600000");
    second.begin_sql("main", "INSERT INTO t VALUES('second')");
    first.resume();
    second.answer().expect("its turn came");
}

/// Regression. With a `timeout_ms` below a second (and one that is not much longer) the server was asked to wait for another holder until
/// behind the deadline, so a lock that is held was a server that does not answer: SQLITE_IOERR_LOCK, which no application tries again.
#[test]
fn a_lock_that_is_held_is_busy_and_no_i_o_error_also_with_a_short_timeout() {
    let server = PageServer::start("memory", &["--lease-ttl-ms", "60000"]);
    let (mut first, _) = two_processes(&server);
    first.ok("main", "INSERT INTO t VALUES('first')");
    first.pause();
    for timeout_ms in ["300", "746", "1000"] {
        let timeout = format!("timeout_ms={timeout_ms}");
        let uri = uri(&server.endpoint(), "t.db", &[&timeout]);
        let mut second = Guest::start(&[]);
        second.open("main", &uri).expect("open");
        second.ok("main", "PRAGMA busy_timeout = 0");
        let refused = second
            .sql("main", "INSERT INTO t VALUES('second')")
            .expect_err("the first one has the lease");
        assert_eq!(
            refused.code & 0xff,
            BUSY,
            "timeout_ms={timeout_ms}: {refused:?}"
        );
    }
    first.resume();
}

fn calls(rows: &[String]) -> i64 {
    rows.first()
        .map_or(0, |row| row.parse().expect("a number of calls"))
}

#[test]
fn an_exclusive_locking_mode_keeps_others_out_until_close_and_not_longer() {
    let server = PageServer::memory();
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "PRAGMA locking_mode = EXCLUSIVE");
    for turn in 0..3 {
        first.ok("main", &format!("INSERT INTO t VALUES('{turn}')"));
    }
    second.ok("main", "PRAGMA busy_timeout = 300");
    let refused = second
        .sql("main", "INSERT INTO t VALUES('second')")
        .expect_err("the other is exclusive");
    assert_eq!(refused.code & 0xff, BUSY, "{refused:?}");
    first.close("main").expect("close");
    second.ok("main", "PRAGMA busy_timeout = 10000");
    second.ok("main", "INSERT INTO t VALUES('second')");
    assert_eq!(second.ok("main", "SELECT count(*) FROM t"), ["4"]);
}

#[test]
fn two_transactions_that_wait_for_each_other_do_not_hang() {
    let server = PageServer::memory();
    let (mut first, mut second) = two_processes(&server);
    for (guest, name) in [(&mut first, "other"), (&mut second, "other")] {
        guest.ok("main", "PRAGMA busy_timeout = 2000");
        guest
            .open(name, &uri(&server.endpoint(), "other.db", &[]))
            .expect("open");
        guest.ok(name, "PRAGMA busy_timeout = 2000");
    }
    first.ok("other", "CREATE TABLE t(who TEXT)");
    first.ok("main", "BEGIN IMMEDIATE");
    second.ok("other", "BEGIN IMMEDIATE");
    first.begin_sql("other", "INSERT INTO t VALUES('first')");
    second.begin_sql("main", "INSERT INTO t VALUES('second')");
    let answers = [first.answer(), second.answer()];
    for failure in answers.iter().filter_map(|answer| answer.as_ref().err()) {
        assert_eq!(failure.code & 0xff, BUSY, "{failure:?}");
    }
    assert!(answers.iter().any(Result::is_err), "both can't have it");
    first.ok("main", "ROLLBACK");
    second.ok("other", "ROLLBACK");
    first.ok("other", "INSERT INTO t VALUES('first')");
    second.ok("main", "INSERT INTO t VALUES('second')");
}

/// Adds a row to `main` and then one to `other`, in one transaction, and begins anew where it is told to. How often it was.
fn insert_into_both(guest: &mut Guest, both_have_begun: &Barrier) -> u32 {
    let mut refused = 0;
    let mut first_try = true;
    loop {
        guest.ok("main", "BEGIN");
        guest.ok("main", "INSERT INTO main.t VALUES('main')");
        if std::mem::take(&mut first_try) {
            both_have_begun.wait();
        }
        match guest.sql("main", "INSERT INTO other.t VALUES('other')") {
            Ok(_) => {
                guest.ok("main", "COMMIT");
                return refused;
            }
            Err(failure) => {
                assert_eq!(failure.code, BUSY, "{failure:?}");
                assert!(
                    failure.message.contains("wait for each other"),
                    "{failure:?}"
                );
                refused += 1;
                guest.ok("main", "ROLLBACK");
            }
        }
    }
}

/// Without help each waits for the other until its busy timeout has passed.
#[test]
fn of_two_transactions_that_wait_for_each_other_one_is_busy_at_once_and_the_other_goes_on() {
    let server = PageServer::memory();
    let endpoint = server.endpoint();
    let names = ["a.db", "b.db"];
    for name in names {
        let connection = open(&endpoint, name);
        connection
            .execute_batch("CREATE TABLE t(database TEXT)")
            .expect("create");
    }
    let start = |main: &str, other: &str| {
        let mut guest = Guest::start(&[]);
        guest
            .open("main", &uri(&endpoint, main, &[]))
            .expect("open");
        guest.ok("main", "PRAGMA busy_timeout = 45000");
        let other = uri(&endpoint, other, &[]);
        guest.ok("main", &format!("ATTACH '{other}' AS other"));
        guest
    };
    let mut guests = [start("a.db", "b.db"), start("b.db", "a.db")];
    let both_have_begun = Barrier::new(2);
    let began = Instant::now();
    let refused: u32 = std::thread::scope(|scope| {
        let threads = guests.each_mut().map(|guest| {
            let both_have_begun = &both_have_begun;
            scope.spawn(move || insert_into_both(guest, both_have_begun))
        });
        threads
            .map(|thread| thread.join().expect("a guest"))
            .iter()
            .sum()
    });
    assert_eq!(refused, 1, "one of them, once");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it took {:?}",
        began.elapsed()
    );
    for name in names {
        let connection = open(&endpoint, name);
        assert_eq!(number(&connection, "SELECT count(*) FROM t"), 2);
        assert_sound(&connection);
    }
}

#[test]
fn one_server_keeps_many_databases_apart_while_one_of_them_is_locked() {
    let server = PageServer::memory();
    let (mut first, mut second) = two_processes(&server);
    first.ok("main", "BEGIN IMMEDIATE");
    second
        .open("other", &uri(&server.endpoint(), "other.db", &[]))
        .expect("open");
    second.ok("other", "PRAGMA busy_timeout = 0");
    second.ok("other", "CREATE TABLE mine(x)");
    first.ok("main", "COMMIT");
    let own = open(&server.endpoint(), "other.db");
    assert_eq!(
        rows(&own, "SELECT name FROM sqlite_schema").expect("schema"),
        ["mine"]
    );
    assert_sound(&own);
}
