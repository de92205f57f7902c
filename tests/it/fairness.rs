//! A tenant that commits or reads much does not hold up the others: their calls are answered in between, whatever the machine is
//! busy with. Told by the order of the answers, and by what one of them took beside what the large ones took.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pagewire_tests::connection::{assert_sound, number, open, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

/// Large ones at once, each with a database of its own.
const LARGE: usize = 3;
const MIB_EACH: u64 = 48;
/// All of a transaction goes out with its COMMIT, and nothing that is read stays.
const SETTINGS: &[(&str, &str)] = &[
    ("PAGEWIRE_STAGE_BYTES", "4294967296"),
    ("PAGEWIRE_OVERLAY_BYTES", "4294967296"),
    ("PAGEWIRE_CACHE_BYTES", "4194304"),
];

/// The large tenants, each within a transaction that has written all that it is going to.
fn large(server: &PageServer) -> Vec<Guest> {
    let mut guests: Vec<_> = (0..LARGE).map(|_| Guest::start(SETTINGS)).collect();
    for (index, guest) in guests.iter_mut().enumerate() {
        let name = format!("large{index}.db");
        guest
            .open("main", &uri(&server.endpoint(), &name, &[]))
            .expect("open");
        guest.ok("main", "CREATE TABLE t(v BLOB)");
        guest.ok("main", "BEGIN");
        let rows = MIB_EACH << 8;
        let fill = format!(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             INSERT INTO t SELECT randomblob(4000) FROM n"
        );
        guest.ok("main", &fill);
    }
    guests
}

fn small(server: &PageServer) -> Connection {
    let small = open(&server.endpoint(), "small.db");
    small
        .execute_batch("CREATE TABLE t(i INTEGER PRIMARY KEY)")
        .expect("create");
    small
}

/// What small commits were like beside the large ones.
#[derive(Debug)]
struct Beside {
    /// Answered before the first large one was.
    before_the_first: usize,
    /// Answered before the last large one was.
    before_the_last: usize,
    /// The slowest of them.
    slowest: Duration,
    /// Until the last large one was answered.
    last: Duration,
}

/// Runs a statement in all large ones at once, and small commits one after the other until the last of those is answered.
fn beside(large: &mut [Guest], sql: &str, small: &Connection) -> Beside {
    let answered = AtomicUsize::new(0);
    let began = Instant::now();
    let (mut before, mut slowest) = ([0; 2], Duration::ZERO);
    let last = std::thread::scope(|scope| {
        let threads: Vec<_> = large
            .iter_mut()
            .map(|guest| {
                scope.spawn(|| {
                    guest.ok("main", sql);
                    let end = began.elapsed();
                    answered.fetch_add(1, Ordering::SeqCst);
                    end
                })
            })
            .collect();
        while answered.load(Ordering::SeqCst) < threads.len() {
            let asked = Instant::now();
            small
                .execute("INSERT INTO t DEFAULT VALUES", [])
                .expect("a small commit");
            slowest = slowest.max(asked.elapsed());
            let answered = answered.load(Ordering::SeqCst);
            before[0] += usize::from(answered == 0);
            before[1] += usize::from(answered < threads.len());
        }
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a large one"))
            .max()
            .expect("a large one")
    });
    Beside {
        before_the_first: before[0],
        before_the_last: before[1],
        slowest,
        last,
    }
}

fn assert_fair(what: &str, beside: &Beside) {
    println!("{what}: {beside:?}");
    assert!(beside.before_the_first >= 5, "{what}: {beside:?}");
    assert!(beside.before_the_last >= 10, "{what}: {beside:?}");
    assert!(beside.slowest < beside.last / 2, "{what}: {beside:?}");
}

fn on(server: &PageServer) {
    let mut guests = large(server);
    let small = small(server);
    let committing = beside(&mut guests, "COMMIT", &small);
    let scanning = beside(&mut guests, "SELECT sum(length(v)) FROM t", &small);
    assert_fair("commits", &committing);
    assert_fair("scans", &scanning);
    assert!(number(&small, "SELECT count(*) FROM t") >= 20);
    assert_sound(&small);
}

#[test]
fn small_commits_are_answered_beside_large_commits_and_scans_on_the_memory_store() {
    on(&PageServer::memory());
}

#[test]
fn small_commits_are_answered_beside_large_commits_and_scans_on_the_local_store() {
    let folder = tempfile::tempdir().expect("a folder");
    on(&PageServer::local(folder.path()));
}
