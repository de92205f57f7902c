//! P4 under faults: a strict reader never begins with less than what was acknowledged before, and nobody ever sees what was not
//! committed; whatever is delayed, doubled, cut or killed. `SEED=n` repeats the choices.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use pagewire_tests::connection::{open, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{News, Proxy};
use pagewire_tests::random::Random;
use pagewire_tests::server::{PageServer, VersionedStore};

const READ: &str = "SELECT a.n, b.n FROM t AS a, t AS b WHERE a.i = 1 AND b.i = 2";
const WRITE: &str = "UPDATE t SET n = n + 1";

/// How much of a long run is done: `PAGEWIRE_LONG_TESTS=1` for all of it.
fn rounds(short: u64, long: u64) -> u64 {
    match std::env::var_os("PAGEWIRE_LONG_TESTS") {
        Some(_) => long,
        None => short,
    }
}

fn create(endpoint: &str) {
    let connection = open(endpoint, "t.db");
    connection
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, n INT, filler TEXT);
             INSERT INTO t VALUES(1, 0, zeroblob(5000)), (2, 0, zeroblob(5000))",
        )
        .expect("create");
}

fn reader(endpoint: &str, parameters: &[&str]) -> Guest {
    let mut guest = Guest::start(&[]);
    guest
        .open("main", &uri(endpoint, "t.db", parameters))
        .expect("open");
    guest
}

/// Both rows, which every transaction writes together.
fn read(guest: &mut Guest) -> Result<i64, String> {
    let rows = guest.sql("main", READ).map_err(|failure| failure.message)?;
    let (one, two) = rows[0].split_once('|').expect("two columns");
    assert_eq!(one, two, "half of a transaction");
    Ok(one.parse().expect("a number"))
}

pagewire_tests::on_versioned_stores! {
    p4_no_strict_reader_is_behind_while_its_news_is_delayed_doubled_and_cut
    p4_readers_at_full_speed_are_never_behind_an_acknowledgement
}

fn p4_no_strict_reader_is_behind_while_its_news_is_delayed_doubled_and_cut(store: VersionedStore) {
    let mut random = Random::start();
    let server = PageServer::on(store, &["--lease-ttl-ms", "600"]);
    create(&server.endpoint());
    let proxies = [
        Proxy::new(&server.endpoint()),
        Proxy::new(&server.endpoint()),
        Proxy::new(&server.endpoint()),
    ];
    let mut readers: Vec<_> = proxies
        .iter()
        .map(|proxy| reader(&proxy.endpoint(), &["mode=ro", "subscribe=always"]))
        .collect();
    let mut writer = reader(&server.endpoint(), &[]);
    for turn in 1..=rounds(150, 3000) as i64 {
        let who = random.below(3) as usize;
        match random.below(8) {
            0 => proxies[who].cut_sessions(),
            1 | 2 => proxies[who].set_news(News {
                delay: Duration::from_millis(random.below(40)),
                twice: random.below(2) == 0,
            }),
            3 => proxies[who].set_news(News::default()),
            _ => {}
        }
        writer.ok("main", WRITE);
        let who = random.below(3) as usize;
        assert_eq!(read(&mut readers[who]), Ok(turn), "reader {who}");
    }
}

fn p4_readers_at_full_speed_are_never_behind_an_acknowledgement(store: VersionedStore) {
    let mut random = Random::start();
    let server = PageServer::on(store, &["--lease-ttl-ms", "1000"]);
    create(&server.endpoint());
    let acknowledged = AtomicI64::new(0);
    let begun = AtomicI64::new(0);
    let over = AtomicBool::new(false);
    let proxy = Proxy::new(&server.endpoint());
    let direct = server.endpoint();
    let strict = ["mode=ro"];
    let bounded = ["mode=ro", "consistency=bounded", "max_staleness_ms=100"];
    let kinds: [(&str, &[&str], bool); 4] = [
        (&direct, &strict, true),
        (&proxy.endpoint(), &strict, true),
        (&direct, &["mode=ro", "subscribe=never"], true),
        (&proxy.endpoint(), &bounded, false),
    ];
    std::thread::scope(|scope| {
        let threads: Vec<_> = kinds
            .iter()
            .map(|(endpoint, parameters, is_strict)| {
                let (acknowledged, begun, over) = (&acknowledged, &begun, &over);
                scope.spawn(move || {
                    let mut guest = reader(endpoint, parameters);
                    let (mut reads, mut last) = (0, 0);
                    while !over.load(Ordering::SeqCst) {
                        // The side channel: what the writer was told before this transaction begins.
                        let least = acknowledged.load(Ordering::SeqCst);
                        let seen = read(&mut guest).expect("read");
                        let most = begun.load(Ordering::SeqCst);
                        assert!(
                            !is_strict || seen >= least,
                            "{seen}, {least} was acknowledged"
                        );
                        assert!(seen <= most && seen >= last, "{last}, {seen}, {most}");
                        last = seen;
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        let mut writer = reader(&direct, &[]);
        for turn in 1..=rounds(400, 20_000) as i64 {
            if turn % 50 == 0 {
                match random.below(3) {
                    0 => proxy.cut_sessions(),
                    1 => proxy.set_news(News {
                        delay: Duration::from_millis(random.below(5)),
                        twice: true,
                    }),
                    _ => proxy.set_news(News::default()),
                }
            }
            begun.store(turn, Ordering::SeqCst);
            writer.ok("main", WRITE);
            acknowledged.store(turn, Ordering::SeqCst);
        }
        over.store(true, Ordering::SeqCst);
        for thread in threads {
            let reads: u64 = thread.join().expect("a reader");
            assert!(reads > 10, "a reader read {reads} times");
        }
    });
}

#[test]
fn p4_holds_while_readers_writers_and_the_server_are_killed() {
    let mut random = Random::start();
    let dir = tempfile::tempdir().expect("a folder");
    let store = format!("local:{}", dir.path().display());
    let mut server = PageServer::start(&store, &["--lease-ttl-ms", "400"]);
    create(&server.endpoint());
    let endpoint = server.endpoint();
    // With the right to write, so that every store will do.
    let start = |parameters: &[&str]| {
        let mut guest = reader(&endpoint, parameters);
        guest.ok("main", "PRAGMA busy_timeout = 20000");
        guest
    };
    let mut readers = [start(&["subscribe=always"]), start(&[])];
    let mut writer = start(&[]);
    let (mut acknowledged, mut begun) = (0, 0);
    for _ in 0..rounds(120, 2000) {
        match random.below(24) {
            0 => {
                // In mid-commit, as often as not.
                begun += 1;
                writer.begin_sql("main", WRITE);
                if random.below(2) == 0 {
                    std::thread::yield_now();
                }
                writer.kill();
                writer = start(&[]);
            }
            1 => {
                let who = random.below(2) as usize;
                readers[who].kill();
                readers[who] = start(&["subscribe=always"]);
            }
            2 => {
                server.kill();
                server.restart();
            }
            _ => {}
        }
        begun += 1;
        match writer.sql("main", WRITE) {
            Ok(_) => acknowledged += 1,
            // The server was killed under it: applied or not, and the next one says which.
            Err(failure) => assert_ne!(failure.code & 0xff, 11, "{failure:?}"),
        }
        for guest in &mut readers {
            let until = Instant::now() + Duration::from_secs(20);
            let seen = loop {
                match read(guest) {
                    Ok(seen) => break seen,
                    Err(_) if Instant::now() < until => {}
                    Err(message) => panic!("{message}"),
                }
            };
            assert!(
                seen >= acknowledged && seen <= begun,
                "{seen}: {acknowledged} were acknowledged, {begun} begun"
            );
            acknowledged = acknowledged.max(seen);
        }
    }
}
