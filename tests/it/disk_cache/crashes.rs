//! kill -9 at any moment: the next process reads what is true, and what was there is not lost for ever.

use std::time::Duration;

use pagewire_tests::random::Random;
use pagewire_tests::server::PageServer;

use super::{ALL, CacheDir, count, end, fill, guest, open, trips, truth};

fn pause(microseconds: u64) {
    std::thread::park_timeout(Duration::from_micros(microseconds));
}

#[test]
fn q2_processes_killed_while_pages_are_written_leave_what_is_true() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut maker = guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, 60_000);
    end(maker);
    let truth = truth(&server);
    let mut random = Random::start();
    for _ in 0..25 {
        let mut victim = cache.guest(&[]);
        open(&mut victim, &server, &[]);
        victim.begin_sql("main", ALL);
        pause(random.below(150_000));
        victim.kill();
    }
    let mut next = cache.guest(&[]);
    open(&mut next, &server, &[]);
    assert_eq!(next.ok("main", ALL), truth);
    assert!(
        count(&mut next, "disk_hits") > 0,
        "the killed have left nothing"
    );
    end(next);
    let mut warm = cache.guest(&[]);
    open(&mut warm, &server, &[]);
    assert_eq!(warm.ok("main", ALL), truth);
    assert_eq!(trips(&mut warm), "open 1");
}

#[test]
fn q3_processes_killed_while_they_write_and_save_logs_leave_what_is_true() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut maker = cache.guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, 5_000);
    end(maker);
    let mut random = Random::start();
    for turn in 0..6 {
        let mut victim = cache.guest(&[]);
        open(&mut victim, &server, &[]);
        victim.ok("main", "PRAGMA busy_timeout = 20000");
        // A log is saved every 1024 versions, and when the database is closed.
        let until = 900 + random.below(300);
        for i in 0..until {
            let row = random.below(5_000) + 1;
            victim.ok(
                "main",
                &format!("UPDATE t SET v = 'turn {turn} {i}' || substr(v, 1, 60) WHERE i = {row}"),
            );
        }
        match turn % 3 {
            0 => victim.kill(),
            1 => {
                // Killed in the middle of a commit, or of closing.
                victim.begin_sql("main", "UPDATE t SET v = v || 'x' WHERE i % 3 = 0");
                pause(random.below(20_000));
                victim.kill();
            }
            _ => end(victim),
        }
        let mut reader = cache.guest(&[]);
        open(&mut reader, &server, &["mode=ro"]);
        let seen = reader.ok("main", ALL);
        assert_eq!(seen, truth(&server), "turn {turn}");
        assert_eq!(reader.ok("main", "PRAGMA integrity_check"), ["ok"]);
        end(reader);
    }
}
