//! What it costs that the write lease goes to and fro between two processes which both want it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Lost, Passed, Proxy};
use pagewire_tests::server::{PageServer, target_dir};

/// SQLITE_BUSY_SNAPSHOT.
const BUSY_SNAPSHOT: i32 = 517;

/// How long a call waits for a holder that is writing: `GRANT_WAIT` of the library.
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
    let began = Instant::now();
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
    // The lease comes with the snapshot, and with the pages that the other one has written.
    let [acquires, commits, begins, reads, opens, resolves] =
        std::array::from_fn(|kind| after[kind] - before[kind]);
    let each = i64::try_from(TRANSACTIONS).expect("a count");
    assert_eq!([commits, opens, resolves], [each, 0, 0], "{spent:?}");
    // Where a process that has nothing to do takes so long for a recall, the lease comes later, and by push.
    let late = i64::try_from(began.elapsed().as_millis() / WAIT.as_millis()).expect("a count");
    assert!((each..=each + late).contains(&acquires), "{spent:?}");
    assert!(reads <= late, "{spent:?}");
    // Until it is known that they write from the beginning.
    assert!(begins <= 4 + late, "{spent:?}");
    let late = usize::try_from(late).expect("a count");
    for (what, least, more) in [
        (Passed::News(Lost::Recall), TRANSACTIONS, 0),
        (Passed::News(Lost::Release), TRANSACTIONS, 0),
        (Passed::Call(Call::Acquire), TRANSACTIONS, late),
        // The answer to the acquire is the grant.
        (Passed::News(Lost::Granted), 0, late),
    ] {
        let passed = count(&passed, what);
        let expected = least..=least + more;
        assert!(expected.contains(&passed), "{passed} {what:?} in {spent:?}");
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
    let reads = waited(&mut writers, "read");
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
    // One asks for each hand-over, and the answer is the lease. Only a transaction that takes longer than `WAIT` is asked for again: as often
    // as that goes into the whole time at most, once with the snapshot and once for the write lock, since one of the two is waiting at a time.
    let again = usize::try_from(took.as_millis() / WAIT.as_millis()).expect("a count");
    let reads = waited(&mut writers, "read") - reads;
    println!("{reads} reads");
    assert!(
        acquires <= recalls + 2 + again,
        "{acquires} acquires for {recalls} hand-overs in {took:?}"
    );
    // Where the grant came late and by push, what was written has to be read.
    let late = i64::try_from(again).expect("a count");
    assert!(reads <= late, "{reads} reads in {took:?}");
}

/// SQLite's busy handler pauses up to 100 ms at a time. Whoever was in such a pause when the lease came slept on.
#[test]
fn whoever_waits_in_a_pause_of_the_busy_handler_goes_on_when_the_lease_comes() {
    const ROUNDS: usize = 9;
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut writers = two_writers(&proxy);
    let [holder, waiter] = &mut writers;
    let insert = "INSERT INTO t(who) VALUES('x')";
    let (mut at_hand, mut waited_for) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // What a hand-over takes on this machine, where nobody has to be waited for.
        holder.ok("main", insert);
        let begun = Instant::now();
        waiter.ok("main", insert);
        at_hand.push(begun.elapsed());
        holder.ok("main", "BEGIN IMMEDIATE");
        holder.ok("main", insert);
        waiter.begin_sql("main", insert);
        // By then it pauses 50 or 100 ms at a time, and is asked for the end at another moment of its pause each time.
        #[expect(
            clippy::disallowed_methods,
            reason = "that it has paused for long is what is under test"
        )]
        std::thread::sleep(Duration::from_millis(500 + 17 * round as u64));
        holder.ok("main", "COMMIT");
        let begun = Instant::now();
        waiter.answer().expect("its turn");
        waited_for.push(begun.elapsed());
    }
    at_hand.sort();
    waited_for.sort();
    println!("at hand {at_hand:?}, waited for {waited_for:?}");
    let most = at_hand[ROUNDS / 2] + Duration::from_millis(20);
    assert!(waited_for[ROUNDS / 2] < most, "{waited_for:?}, {most:?}");
}

/// Transactions that write from their beginning, in turns: a habit of both.
fn make_a_habit(writers: &mut [Guest; 2]) {
    for turn in 0..6 {
        writers[turn % 2].ok("main", "INSERT INTO t(who) VALUES('x')");
    }
}

/// Who has the habit to write asks for the lease when its transaction begins. If that only reads after all, the lease goes back to whoever writes,
/// and what is read stays what it was.
#[test]
fn a_lease_that_came_early_and_is_not_written_with_holds_up_nobody() {
    const ROUNDS: usize = 5;
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut took = Vec::new();
    for round in 0..ROUNDS {
        // Others each time: a guess that was wrong is not made again so soon.
        let mut writers = two_writers(&proxy);
        make_a_habit(&mut writers);
        let insert = "INSERT INTO t(who) VALUES('x')";
        let acquires = waited(&mut writers, "acquire");
        let [reader, writer] = &mut writers;
        reader.ok("main", "BEGIN");
        let before = reader.ok("main", "SELECT count(*) FROM t");
        let begun = Instant::now();
        for _ in 0..3 {
            writer.ok("main", insert);
        }
        took.push(begun.elapsed());
        assert_eq!(reader.ok("main", "SELECT count(*) FROM t"), before);
        reader.ok("main", "COMMIT");
        // It reads as anybody does from now on.
        for _ in 0..3 {
            reader.ok("main", "SELECT count(*) FROM t");
        }
        let spent = waited(&mut writers, "acquire") - acquires;
        assert_eq!(
            spent, 2,
            "one by the reader, and one by the writer, in round {round}"
        );
    }
    // A recall waits a quarter of a second for whoever wants the lease.
    let least = took.iter().min().expect("a round");
    assert!(*least < Duration::from_millis(200), "{took:?}");
}

/// A transaction that only reads, of a connection that has the habit to write, waited for another's transaction. If its ticket was served while it read, the next
/// one who wanted to write waited a quarter of a second for it.
#[test]
fn whoever_only_reads_waits_for_no_writer_and_no_writer_waits_for_it() {
    const ROUNDS: usize = 7;
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut written = Vec::new();
    for _ in 0..ROUNDS {
        let mut writers = two_writers(&proxy);
        make_a_habit(&mut writers);
        let [reader, writer] = &mut writers;
        let count = "SELECT count(*) FROM t";
        let insert = "INSERT INTO t(who) VALUES('x')";
        writer.ok("main", "BEGIN IMMEDIATE");
        writer.ok("main", insert);
        reader.ok("main", "BEGIN");
        proxy.take_acquires();
        let before = reader.ok("main", count);
        let asked: Vec<_> = proxy
            .take_acquires()
            .iter()
            .map(|asked| (asked.wait_ms, asked.kept_wait_ms))
            .collect();
        let [(wait, kept_wait)] = asked[..] else {
            panic!("{asked:?}");
        };
        assert!(wait <= 50 && kept_wait == 0, "{wait} {kept_wait}");
        // The lease goes to the reader's ticket.
        writer.ok("main", "COMMIT");
        let begun = Instant::now();
        writer.ok("main", insert);
        written.push(begun.elapsed());
        assert_eq!(reader.ok("main", count), before);
        reader.ok("main", "COMMIT");
    }
    // What it would wait it would wait each time.
    let least = written.iter().min().expect("a round");
    assert!(*least < Duration::from_millis(200), "{written:?}");
}

/// "0 round trips" of a transaction that only reads is said for whoever has a live subscription, and for one that is bounded.
#[test]
fn whoever_reads_without_asking_does_not_ask_for_the_lease_either() {
    let server = PageServer::versioned();
    let bounded = ["consistency=bounded", "max_staleness_ms=60000"];
    for parameters in [&["subscribe=always"][..], &bounded[..]] {
        let mut writers = [Guest::start(&[]), Guest::start(&[])];
        for writer in &mut writers {
            let uri = uri(&server.endpoint(), "t.db", parameters);
            writer.open("probe", ":memory:").expect("open");
            writer.open("main", &uri).expect("open");
            writer.ok("main", "PRAGMA busy_timeout = 30000");
            writer.ok(
                "main",
                "CREATE TABLE IF NOT EXISTS t(i INTEGER PRIMARY KEY, who TEXT)",
            );
        }
        // Whoever asks once is subscribed, if that is wanted.
        writers[1].ok("main", "INSERT INTO t(who) VALUES('x')");
        writers[0].ok("main", "SELECT count(*) FROM t");
        if parameters.len() == 1 {
            let begun = Instant::now();
            loop {
                let answer = writers[0].ok("main", "PRAGMA pagewire_subscription");
                if answer == ["strict"] {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(10), "{answer:?}");
            }
        }
        make_a_habit(&mut writers);
        let kinds = ["acquire", "begin"];
        let before = kinds.map(|kind| waited(&mut writers, kind));
        writers[0].ok("main", "SELECT count(*) FROM t");
        let after = kinds.map(|kind| waited(&mut writers, kind));
        assert_eq!(after, before, "{parameters:?}");
    }
}

/// So many threads of each process insert a row at a time for three seconds, with this busy timeout: how long after its beginning each insert was refused.
fn crowd(processes: usize, threads: usize, timeout: Duration) -> Vec<Duration> {
    let server = PageServer::memory();
    let uri = uri(&server.endpoint(), "t.db", &[]);
    let mut first = Guest::start(&[]);
    first.open("main", &uri).expect("open");
    first.ok("main", "CREATE TABLE t(i INTEGER PRIMARY KEY, who TEXT)");
    let running: Vec<_> = (0..processes)
        .map(|_| {
            Command::new(target_dir().join("pagewire-guest"))
                .args(["crowd", &uri, &threads.to_string()])
                .args([&timeout.as_millis().to_string(), "3000"])
                .stdout(Stdio::piped())
                .spawn()
                .expect("start the guest")
        })
        .collect();
    let (mut written, mut refused) = (Vec::new(), Vec::new());
    for process in running {
        let ended = process.wait_with_output().expect("wait");
        assert!(ended.status.success());
        for line in String::from_utf8(ended.stdout).expect("text").lines() {
            let (what, number) = line.split_once(' ').expect("two words");
            let number: u64 = number.parse().expect("a number");
            match what {
                "written" => written.push(number),
                _ => refused.push(Duration::from_micros(number)),
            }
        }
    }
    refused.sort();
    println!(
        "written {written:?}, {} refused, the first of them after {:?}",
        refused.len(),
        refused.first()
    );
    assert_eq!(written.len(), processes * threads);
    let rows = written.iter().sum::<u64>().to_string();
    assert_eq!(first.ok("main", "SELECT count(*) FROM t"), [rows]);
    refused
}

/// SQLite's busy handler counts its pauses, whatever they took. Where they ended as the lease came, and another thread of the process was quicker,
/// "database is locked" was told after some milliseconds.
#[test]
fn no_thread_of_a_crowd_is_told_that_the_database_is_busy_before_its_timeout_has_passed() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    // Of 200 ms: 1, 2, 5, 10, 15, 20, 25, 25, 25, 50 and 22.
    const LAST_PAUSE: Duration = Duration::from_millis(22);
    // Of two threads alone the one that pauses goes on at each end of the other's write, and mostly finds the next one: its pauses end the soonest.
    for (processes, threads) in [(1, 2), (2, 6)] {
        let mut early = crowd(processes, threads, TIMEOUT);
        early.retain(|after| *after < TIMEOUT - LAST_PAUSE);
        assert!(early.is_empty(), "{processes} of {threads}: {early:?}");
    }
}

/// Waits until the library has heard of a recall: nobody calls, so its own thread listens.
fn recall_is_heard(proxy: &Proxy) {
    let begun = Instant::now();
    while count(&proxy.take_passed(), Passed::News(Lost::Recall)) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "no recall");
        std::thread::yield_now();
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "nothing tells that it has come from the proxy to the library"
    )]
    std::thread::sleep(Duration::from_millis(20));
}

/// A connection that asked early and does not write ended the claim of another one of its process, which had to begin anew with the lease that had come for it.
#[test]
fn whoever_does_not_write_ends_nobody_else_s_claim() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let [mut first, _] = two_writers(&proxy);
    // With a subscription it would not ask early.
    let unsubscribed = uri(&proxy.endpoint(), "t.db", &["subscribe=never"]);
    let mut second = Guest::start(&[]);
    for connection in ["main", "other"] {
        second.open(connection, &unsubscribed).expect("open");
        second.ok(connection, "PRAGMA busy_timeout = 30000");
    }
    let mut third = Guest::start(&[]);
    third
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    third.ok("main", "PRAGMA busy_timeout = 30000");
    let insert = |who: &str| format!("INSERT INTO t(who) VALUES('{who}')");
    third.ok("main", &insert("third before"));
    for _ in 0..3 {
        first.ok("main", &insert("first"));
        second.ok("other", &insert("a habit"));
    }
    // A snapshot that is old when its transaction wants to write.
    second.ok("main", "BEGIN");
    second.ok("main", "SELECT count(*) FROM t");
    first.ok("main", &insert("first"));
    // It asks early and has the lease. Page 1 is no page that it reads.
    second.ok("other", "BEGIN");
    second.ok("other", "PRAGMA schema_version");
    // So long nobody claims it that it goes back.
    first.ok("main", &insert("first"));
    let refused = second
        .sql("main", &insert("second, too late"))
        .expect_err("its snapshot is old");
    assert_eq!(refused.code, BUSY_SNAPSHOT);
    second.ok("main", "ROLLBACK");
    proxy.take_passed();
    third.begin_sql("main", &insert("third"));
    recall_is_heard(&proxy);
    second.ok("other", "COMMIT");
    second.ok("main", &insert("second"));
    third.answer().expect("its turn");
    let last = "SELECT group_concat(who) FROM (SELECT who FROM t ORDER BY i DESC LIMIT 2)";
    assert_eq!(first.ok("main", last), ["third,second"]);
}

/// The lease comes with a version that is newer than the snapshot, so SQLite has to begin anew. A recall that was heard in between, by another
/// thread of the process, took the lease away again, and the turn was lost.
#[test]
fn whoever_has_to_begin_anew_keeps_the_turn_for_which_the_lease_came() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut writers = two_writers(&proxy);
    let [first, second] = &mut writers;
    let mut third = Guest::start(&[]);
    third
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    third.ok("main", "PRAGMA busy_timeout = 30000");
    let insert = |who: &str| format!("INSERT INTO t(who) VALUES('{who}')");
    third.ok("main", &insert("third before"));
    // A snapshot that is old when its transaction wants to write.
    second.ok("main", "BEGIN");
    second.ok("main", "SELECT count(*) FROM t");
    first.ok("main", &insert("first"));
    let refused = second
        .sql("main", &insert("second, too late"))
        .expect_err("its snapshot is old");
    assert_eq!(refused.code, BUSY_SNAPSHOT);
    second.ok("main", "ROLLBACK");
    proxy.take_passed();
    third.begin_sql("main", &insert("third"));
    recall_is_heard(&proxy);
    second.ok("main", &insert("second"));
    third.answer().expect("its turn");
    let last = "SELECT group_concat(who) FROM (SELECT who FROM t ORDER BY i DESC LIMIT 2)";
    assert_eq!(first.ok("main", last), ["third,second"]);
}

/// The lease takes the place of the question for the head, by which it is found that a store was set back: what was cached of the other history was read on.
#[test]
fn a_lease_with_an_older_version_than_was_seen_is_of_a_store_that_was_set_back() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut writers = two_writers(&proxy);
    make_a_habit(&mut writers);
    proxy.arm(Call::Acquire, Fault::SetBack);
    // It has the habit to write, so it asks for the lease.
    let refused = writers[0]
        .sql("main", "SELECT count(*) FROM t")
        .expect_err("set back");
    assert!(proxy.is_disarmed());
    assert!(refused.message.contains("was set back"), "{refused:?}");
}
