//! What it costs that the write lease goes to and fro between two processes which both want it.

use std::time::{Duration, Instant};

use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Lost, Passed, Proxy};
use pagewire_tests::server::PageServer;

/// How long one that was told of a running transaction waits for the push: `GRANT_WAIT` of the library.
const WAIT: Duration = Duration::from_millis(25);

/// Two processes that have written once each, so that what they have to know is cached.
fn two_writers(proxy: &Proxy) -> [Guest; 2] {
    let uri = uri(&proxy.endpoint(), "t.db", &[]);
    let mut writers = [Guest::start(&[]), Guest::start(&[])];
    for writer in &mut writers {
        writer.open("probe", ":memory:").expect("open");
        writer.open("main", &uri).expect("open");
        writer.ok("main", "PRAGMA busy_timeout = 30000");
        writer.ok(
            "main",
            "CREATE TABLE IF NOT EXISTS t(i INTEGER PRIMARY KEY, who TEXT)",
        );
        writer.ok("main", "INSERT INTO t(who) VALUES('first')");
    }
    writers
}

/// Calls of both processes that somebody waited for, by kind.
fn waited(writers: &mut [Guest; 2], kind: &str) -> i64 {
    let sql = format!("SELECT count FROM pagewire_rpc WHERE kind = '{kind}'");
    let counts = writers.each_mut().map(|writer| {
        let count: i64 = writer.ok("probe", &sql)[0].parse().expect("a number");
        count
    });
    counts.iter().sum()
}

fn count(passed: &[Passed], what: Passed) -> usize {
    passed.iter().filter(|passed| **passed == what).count()
}

#[test]
fn n_transactions_in_turns_cost_one_recall_one_release_one_acquire_and_one_commit_each() {
    const TRANSACTIONS: usize = 50;
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut writers = two_writers(&proxy);
    let kinds = ["acquire", "commit", "begin", "read", "open", "resolve"];
    let before = kinds.map(|kind| waited(&mut writers, kind));
    proxy.take_passed();
    for turn in 0..TRANSACTIONS {
        writers[turn % 2].ok("main", "INSERT INTO t(who) VALUES('in turn')");
    }
    let passed = proxy.take_passed();
    let after = kinds.map(|kind| waited(&mut writers, kind));
    let spent: Vec<_> = kinds
        .iter()
        .zip(
            before
                .iter()
                .zip(&after)
                .map(|(before, after)| after - before),
        )
        .collect();
    println!("{spent:?}");
    // The page that the other one has written, and no more; the news of it come by the subscription, or by a begin where that is late.
    let [acquires, commits, begins, reads, opens, resolves] =
        std::array::from_fn(|kind| after[kind] - before[kind]);
    let each = i64::try_from(TRANSACTIONS).expect("a count");
    assert_eq!([acquires, commits, reads], [each; 3], "{spent:?}");
    assert_eq!([opens, resolves], [0; 2], "{spent:?}");
    assert!(begins <= each, "{spent:?}");
    for (what, most) in [
        (Passed::News(Lost::Recall), TRANSACTIONS),
        (Passed::News(Lost::Release), TRANSACTIONS),
        (Passed::Call(Call::Acquire), TRANSACTIONS),
        // The answer to the acquire is the grant.
        (Passed::News(Lost::Granted), 0),
    ] {
        assert_eq!(count(&passed, what), most, "{what:?} in {spent:?}");
    }
    let rows = (TRANSACTIONS + 2).to_string();
    assert_eq!(writers[0].ok("main", "SELECT count(*) FROM t"), [rows]);
}

#[test]
fn of_two_writers_at_once_each_hand_over_is_one_recall_and_the_waiting_one_hardly_asks() {
    const TRANSACTIONS: usize = 100;
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut writers = two_writers(&proxy);
    proxy.take_passed();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for writer in &mut writers {
            scope.spawn(move || {
                for _ in 0..TRANSACTIONS {
                    for sql in [
                        "BEGIN IMMEDIATE",
                        "INSERT INTO t(who) VALUES('eager')",
                        "COMMIT",
                    ] {
                        writer.ok("main", sql);
                    }
                }
            });
        }
    });
    let passed = proxy.take_passed();
    let [recalls, releases, acquires, grants] = [
        Passed::News(Lost::Recall),
        Passed::News(Lost::Release),
        Passed::Call(Call::Acquire),
        Passed::News(Lost::Granted),
    ]
    .map(|what| count(&passed, what));
    let took = began.elapsed();
    println!(
        "{took:?}: {recalls} recalls, {releases} releases, {acquires} acquires, {grants} grants pushed"
    );
    assert!(recalls > 0, "they never met");
    assert!(recalls <= 2 * TRANSACTIONS, "{recalls} recalls");
    assert_eq!(releases, recalls);
    assert!(grants <= recalls, "{grants} grants for {recalls}");
    // One asks for each hand-over. Who hears that a transaction is running waits for the push, and asks again when SQLite's busy handler brings
    // it back: once in `WAIT` at most, of which one of the two is waiting at a time.
    let again = usize::try_from(took.as_millis() / WAIT.as_millis()).expect("a count");
    assert!(
        acquires <= 2 * TRANSACTIONS + again,
        "{acquires} acquires for {recalls} hand-overs in {took:?}"
    );
}
