//! Readers: snapshots of their own, 0 or 1 round trips to begin, told by push, and never a commit missed that was acknowledged.

use std::time::{Duration, Instant};

use pagewire_tests::connection::{
    code, cost, last_error, number, open, open_uri, register, rows, uri,
};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::server::{PageServer, VersionedStore};
use rusqlite::Connection;

const CANTOPEN: i32 = 14;

/// A table with one row that counts up.
fn counter(server: &PageServer) -> Connection {
    let writer = open(&server.endpoint(), "t.db");
    writer
        .execute_batch("CREATE TABLE t(n INT); INSERT INTO t VALUES(0)")
        .expect("create");
    writer
}

fn write(writer: &Connection) {
    writer.execute("UPDATE t SET n = n + 1", []).expect("write");
}

/// The newest version, as the writer knows it.
fn newest(writer: &Connection) -> String {
    rows(writer, "SELECT pagewire_version() FROM t").expect("version")[0].clone()
}

/// A process that reads `t.db`, and asks its counters on a connection that has no database: a SELECT begins a transaction.
struct Reader(Guest);

impl Reader {
    fn start(server: &PageServer, parameters: &[&str]) -> Self {
        let mut guest = Guest::start(&[]);
        guest.open("probe", ":memory:").expect("open");
        guest
            .open("main", &uri(&server.endpoint(), "t.db", parameters))
            .expect("open");
        Self(guest)
    }

    fn read(&mut self) -> i64 {
        let rows = self.0.ok("main", "SELECT n FROM t");
        rows[0].parse().expect("a number")
    }

    fn round_trips(&mut self) -> i64 {
        let rows = self.0.ok("probe", "SELECT sum(count) FROM pagewire_rpc");
        rows[0].parse().expect("a number")
    }

    fn cost(&mut self, action: impl FnOnce(&mut Self)) -> i64 {
        let before = self.round_trips();
        action(self);
        self.round_trips() - before
    }

    /// Waits until a pragma that costs nothing answers this.
    fn wait_for(&mut self, pragma: &str, wanted: &str) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.0.ok("main", &format!("PRAGMA {pragma}"));
            if answer == [wanted] {
                return;
            }
            assert!(
                Instant::now() < until,
                "{pragma} is {answer:?}, not {wanted}"
            );
            std::thread::yield_now();
        }
    }

    /// A reader that is subscribed and has everything cached.
    fn subscribed(server: &PageServer, parameters: &[&str]) -> Self {
        let mut reader = Self::start(server, &[parameters, &["subscribe=always"]].concat());
        reader.read();
        reader.wait_for("pagewire_subscription", "strict");
        reader.read();
        reader
    }
}

#[test]
fn a_read_only_open_on_a_store_without_versions_is_refused_with_the_reason() {
    let server = PageServer::memory();
    drop(counter(&server));
    register();
    for parameter in ["mode=ro", "immutable=1", "nolock=1", "at=1"] {
        let opened = open_uri(&uri(&server.endpoint(), "t.db", &[parameter]));
        let error = opened
            .and_then(|connection| {
                connection.query_row("SELECT n FROM t", [], |row| row.get::<_, i64>(0))
            })
            .expect_err(parameter);
        assert_eq!(code(&error) & 0xff, CANTOPEN, "{parameter}: {error}");
        let reason = last_error(&open(&server.endpoint(), "other.db"));
        assert!(
            reason.contains("keeps no old versions"),
            "{parameter}: {reason}"
        );
    }
    // Reading with the right to write is as before.
    let reader = open_uri(&uri(&server.endpoint(), "t.db", &["mode=rw"])).expect("open");
    assert_eq!(number(&reader, "SELECT n FROM t"), 0);
}

pagewire_tests::on_versioned_stores! {
    a_strict_reader_without_lease_and_subscription_asks_once_per_transaction
    a_warm_read_with_a_live_strict_subscription_costs_nothing
    a_reader_that_asks_again_and_again_is_subscribed_after_three_times
    the_lag_of_a_replica_is_one_push
    p4_a_strict_subscriber_sees_every_commit_that_was_acknowledged_before_it_began
    the_writer_pays_no_round_trip_for_its_readers
    s5_a_subscriber_that_does_not_read_is_not_waited_for_any_longer
    a_subscriber_that_stands_still_delays_a_commit_for_its_window_and_no_longer
    s7_a_bounded_reader_asks_nothing_while_it_is_fresh
    s7_a_bounded_subscriber_is_told_and_not_waited_for
    a_bounded_reader_is_never_staler_than_it_said
    readers_of_one_process_have_snapshots_of_their_own
    readers_neither_wait_for_a_writer_nor_keep_it_waiting
    an_immutable_connection_keeps_one_version_for_life
    d2_while_a_commit_of_its_own_process_is_under_way_a_reader_asks
    a_reader_that_is_killed_holds_up_no_commit_for_long
}

fn a_strict_reader_without_lease_and_subscription_asks_once_per_transaction(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let mut reader = Reader::start(&server, &["mode=ro", "subscribe=never"]);
    reader.read();
    for turn in 1..8 {
        write(&writer);
        // One question, and the page that changed: page 1, which always does, comes with the answer.
        assert_eq!(reader.cost(|reader| assert_eq!(reader.read(), turn)), 2);
        assert_eq!(reader.cost(|reader| assert_eq!(reader.read(), turn)), 1);
    }
}

fn a_warm_read_with_a_live_strict_subscription_costs_nothing(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let _writer = counter(&server);
    let mut reader = Reader::subscribed(&server, &["mode=ro"]);
    let spent = reader.cost(|reader| {
        for _ in 0..20 {
            reader.read();
        }
        reader.0.ok("main", "BEGIN");
        reader.read();
        reader.0.ok("main", "COMMIT");
    });
    assert_eq!(spent, 0);
}

fn a_reader_that_asks_again_and_again_is_subscribed_after_three_times(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let _writer = counter(&server);
    let mut reader = Reader::start(&server, &["mode=ro"]);
    // The first read is two transactions: one for the schema.
    reader.read();
    assert_eq!(
        reader.0.ok("main", "PRAGMA pagewire_subscription"),
        ["none"]
    );
    reader.read();
    reader.wait_for("pagewire_subscription", "strict");
    let begins = "SELECT count FROM pagewire_rpc WHERE kind = 'begin'";
    assert_eq!(reader.0.ok("probe", begins), ["3"]);
    assert_eq!(reader.cost(|reader| assert_eq!(reader.read(), 0)), 0);
}

fn the_lag_of_a_replica_is_one_push(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let mut reader = Reader::subscribed(&server, &["mode=ro"]);
    for turn in 1..50 {
        write(&writer);
        // The push is on its way: nothing is asked for it.
        let before = reader.round_trips();
        let version = newest(&writer);
        reader.wait_for("pagewire_version", &version);
        assert_eq!(reader.round_trips(), before);
        // The page that changed is fetched, nothing else: page 1 came with the push.
        assert_eq!(reader.cost(|reader| assert_eq!(reader.read(), turn)), 1);
        assert_eq!(reader.cost(|reader| assert_eq!(reader.read(), turn)), 0);
    }
}

fn p4_a_strict_subscriber_sees_every_commit_that_was_acknowledged_before_it_began(
    store: VersionedStore,
) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let mut readers: Vec<_> = (0..3)
        .map(|_| Reader::subscribed(&server, &["mode=ro"]))
        .collect();
    for turn in 1..300 {
        write(&writer);
        let who = turn as usize % readers.len();
        assert_eq!(readers[who].read(), turn, "reader {who}");
    }
}

fn the_writer_pays_no_round_trip_for_its_readers(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let mut readers = [
        Reader::subscribed(&server, &["mode=ro"]),
        Reader::subscribed(&server, &["mode=ro"]),
    ];
    for turn in 1..20 {
        assert_eq!(cost(&writer, write), 1);
        for reader in &mut readers {
            assert_eq!(reader.read(), turn);
        }
    }
}

fn s5_a_subscriber_that_does_not_read_is_not_waited_for_any_longer(store: VersionedStore) {
    let server = PageServer::on(store, &["--lease-ttl-ms", "20000"]);
    let writer = counter(&server);
    let mut reader = Reader::subscribed(&server, &["mode=ro"]);
    for _ in 0..20 {
        write(&writer);
    }
    reader.wait_for("pagewire_subscription", "none");
    // Stopped, it would hold every commit up for a TTL if it were still waited for.
    reader.0.pause();
    let began = Instant::now();
    write(&writer);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    reader.0.resume();
    assert_eq!(reader.read(), 21);
}

fn a_subscriber_that_stands_still_delays_a_commit_for_its_window_and_no_longer(
    store: VersionedStore,
) {
    let server = PageServer::on(store, &["--lease-ttl-ms", "1000"]);
    let writer = counter(&server);
    let mut reader = Reader::subscribed(&server, &["mode=ro"]);
    reader.0.pause();
    write(&writer);
    let began = Instant::now();
    write(&writer);
    assert!(
        began.elapsed() < Duration::from_millis(900),
        "{:?}",
        began.elapsed()
    );
    reader.0.resume();
    // Whatever it believed before, it has run out.
    assert_eq!(reader.read(), 2);
}

fn s7_a_bounded_reader_asks_nothing_while_it_is_fresh(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let bounded = ["mode=ro", "consistency=bounded", "max_staleness_ms=60000"];
    let mut reader = Reader::start(&server, &bounded);
    reader.read();
    let spent = reader.cost(|reader| {
        for _ in 0..20 {
            assert_eq!(reader.read(), 0);
        }
    });
    assert_eq!(spent, 0);
    // It is not told, so it does not know yet; a strict one of the same process asks, and tells the process.
    write(&writer);
    assert_eq!(reader.cost(|reader| assert_eq!(reader.read(), 0)), 0);
    let strict = uri(&server.endpoint(), "t.db", &["mode=ro", "subscribe=never"]);
    reader.0.open("strict", &strict).expect("open");
    assert_eq!(reader.0.ok("strict", "SELECT n FROM t"), ["1"]);
    assert_eq!(reader.read(), 1);
}

fn s7_a_bounded_subscriber_is_told_and_not_waited_for(store: VersionedStore) {
    let server = PageServer::on(store, &["--lease-ttl-ms", "20000"]);
    let writer = counter(&server);
    let mut reader = Reader::start(
        &server,
        &[
            "mode=ro",
            "consistency=bounded",
            "max_staleness_ms=60000",
            "subscribe=always",
        ],
    );
    reader.read();
    reader.wait_for("pagewire_subscription", "bounded");
    for turn in 1..=5 {
        write(&writer);
        let version = newest(&writer);
        reader.wait_for("pagewire_version", &version);
        assert_eq!(reader.cost(|reader| assert_eq!(reader.read(), turn)), 1);
    }
    reader.0.pause();
    let began = Instant::now();
    write(&writer);
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    reader.0.resume();
}

fn a_bounded_reader_is_never_staler_than_it_said(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let bounded = ["mode=ro", "consistency=bounded", "max_staleness_ms=200"];
    let mut reader = Reader::start(&server, &[&bounded[..], &["subscribe=never"]].concat());
    reader.read();
    for turn in 1..5 {
        write(&writer);
        let written = Instant::now();
        while reader.read() != turn {
            assert!(
                written.elapsed() < Duration::from_millis(1000),
                "turn {turn}"
            );
        }
    }
}

fn readers_of_one_process_have_snapshots_of_their_own(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let uri = uri(&server.endpoint(), "t.db", &["mode=ro"]);
    let mut readers = Vec::new();
    for turn in 0..6 {
        let reader = open_uri(&uri).expect("open");
        reader.execute_batch("BEGIN").expect("begin");
        assert_eq!(number(&reader, "SELECT n FROM t"), turn);
        readers.push(reader);
        write(&writer);
    }
    for turn in [3, 0, 5] {
        readers[turn].execute_batch("COMMIT").expect("commit");
        assert_eq!(number(&readers[turn], "SELECT n FROM t"), 6);
    }
    for turn in [1, 2, 4] {
        assert_eq!(number(&readers[turn], "SELECT n FROM t"), turn as i64);
    }
}

fn readers_neither_wait_for_a_writer_nor_keep_it_waiting(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let mut reader = Reader::start(&server, &["mode=ro"]);
    reader.0.ok("main", "PRAGMA busy_timeout = 0");
    writer
        .execute_batch("BEGIN EXCLUSIVE; UPDATE t SET n = 7")
        .expect("begin");
    assert_eq!(reader.read(), 0);
    reader.0.ok("main", "BEGIN");
    assert_eq!(reader.read(), 0);
    assert_eq!(
        cost(&writer, |writer| writer
            .execute_batch("COMMIT")
            .expect("commit")),
        1
    );
    assert_eq!(reader.read(), 0);
    reader.0.ok("main", "COMMIT");
    assert_eq!(reader.read(), 7);
    let acquired = reader.0.ok(
        "probe",
        "SELECT count FROM pagewire_rpc WHERE kind = 'acquire'",
    );
    assert_eq!(acquired, ["0"], "a reader took a lease");
}

fn an_immutable_connection_keeps_one_version_for_life(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let writer = counter(&server);
    let immutable = open_uri(&uri(&server.endpoint(), "t.db", &["immutable=1"])).expect("open");
    assert_eq!(number(&immutable, "SELECT n FROM t"), 0);
    for _ in 0..20 {
        write(&writer);
    }
    writer.execute_batch("VACUUM").expect("vacuum");
    assert_eq!(number(&immutable, "SELECT n FROM t"), 0);
}

fn d2_while_a_commit_of_its_own_process_is_under_way_a_reader_asks(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    let proxy = Proxy::new(&server.endpoint());
    drop(counter(&server));
    register();
    let open_here = |more: &[&str]| {
        let uri = uri(
            &proxy.endpoint(),
            "t.db",
            &[&["timeout_ms=4000"], more].concat(),
        );
        open_uri(&uri).expect("open")
    };
    let writer = open_here(&[]);
    write(&writer);
    let strict = open_here(&["mode=ro", "subscribe=always"]);
    let bounded = open_here(&["mode=ro", "consistency=bounded", "max_staleness_ms=60000"]);
    let probe = Connection::open_in_memory().expect("probe");
    for reader in [&strict, &bounded] {
        assert_eq!(number(reader, "SELECT n FROM t"), 1);
    }
    let begins = || {
        number(
            &probe,
            "SELECT count FROM pagewire_rpc WHERE kind = 'begin'",
        )
    };
    assert_eq!(
        cost(&probe, |_| assert_eq!(
            number(&strict, "SELECT n FROM t"),
            1
        )),
        0
    );
    let mut elsewhere = Reader::start(&server, &["mode=ro"]);
    // It is applied, and its process does not hear of it.
    proxy.arm(Call::Commit, Fault::AnswerSilent);
    let commit = std::thread::spawn(move || {
        write(&writer);
        writer
    });
    proxy.wait_for_strike(Call::Commit);
    assert_eq!(elsewhere.read(), 2);
    for reader in [&strict, &bounded] {
        let before = begins();
        assert_eq!(number(reader, "SELECT n FROM t"), 2);
        assert!(begins() > before, "it did not ask");
    }
    let writer = commit.join().expect("settled by its id");
    assert_eq!(number(&writer, "SELECT n FROM t"), 2);
    for reader in [&strict, &bounded] {
        assert_eq!(number(reader, "SELECT n FROM t"), 2);
    }
}

fn a_reader_that_is_killed_holds_up_no_commit_for_long(store: VersionedStore) {
    let server = PageServer::on(store, &["--lease-ttl-ms", "20000"]);
    let writer = counter(&server);
    let mut reader = Reader::subscribed(&server, &["mode=ro"]);
    reader.0.kill();
    let began = Instant::now();
    write(&writer);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}
