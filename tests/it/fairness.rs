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
/// Nothing that is read stays.
const CACHE: (&str, &str) = ("PAGEWIRE_CACHE_BYTES", "4194304");
/// All of a transaction goes out with its COMMIT.
const AT_ONCE: &[(&str, &str)] = &[
    ("PAGEWIRE_STAGE_BYTES", "4294967296"),
    ("PAGEWIRE_OVERLAY_BYTES", "4294967296"),
    CACHE,
];
/// It goes out in many calls while it is written.
const STAGED: &[(&str, &str)] = &[("PAGEWIRE_STAGE_BYTES", "4194304"), CACHE];
/// Of 4,000 bytes each, in the database of which one is looked up at a time.
const ROWS_TO_READ: u64 = 4 * 2_621;

/// The large tenants, each within a transaction.
fn large(server: &PageServer, name: &str, settings: &[(&str, &str)]) -> Vec<Guest> {
    let mut guests: Vec<_> = (0..LARGE).map(|_| Guest::start(settings)).collect();
    for (index, guest) in guests.iter_mut().enumerate() {
        let name = format!("{name}{index}.db");
        guest
            .open("main", &uri(&server.endpoint(), &name, &[]))
            .expect("open");
        guest.ok("main", "CREATE TABLE t(i INTEGER PRIMARY KEY, v BLOB)");
        guest.ok("main", "BEGIN");
    }
    guests
}

fn fill(rows: u64) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO t SELECT i, randomblob(4000) FROM n"
    )
}

/// Those who shall not be held up.
struct Small {
    writer: Connection,
    /// With a cache that is small beside what it reads.
    reader: Guest,
    next: u64,
}

impl Small {
    fn new(server: &PageServer) -> Self {
        let writer = open(&server.endpoint(), "small.db");
        writer
            .execute_batch("CREATE TABLE t(i INTEGER PRIMARY KEY)")
            .expect("create");
        let mut reader = Guest::start(&[CACHE]);
        let uri = uri(&server.endpoint(), "read.db", &[]);
        reader.open("main", &uri).expect("open");
        reader.open("plain", ":memory:").expect("open");
        reader.ok("main", "CREATE TABLE t(i INTEGER PRIMARY KEY, v BLOB)");
        reader.ok("main", &fill(ROWS_TO_READ));
        reader.ok("main", "PRAGMA cache_size = 10");
        Self {
            writer,
            reader,
            next: 0,
        }
    }

    fn commit(&self) {
        let done = self.writer.execute("INSERT INTO t DEFAULT VALUES", []);
        done.expect("a small commit");
    }

    /// A row far from the last ones.
    fn read(&mut self) {
        self.next = (self.next + 6_619) % ROWS_TO_READ;
        let row = self.next + 1;
        let sql = format!("SELECT length(v) FROM t WHERE i = {row}");
        assert_eq!(self.reader.ok("main", &sql), ["4000"]);
    }

    fn read_calls(&mut self) -> u64 {
        let sql = "SELECT sum(count) FROM pagewire_rpc WHERE kind = 'read'";
        self.reader.ok("plain", sql)[0].parse().expect("a number")
    }
}

/// What small commits and cold reads were like beside the large ones.
#[derive(Debug)]
struct Beside {
    /// Commits and reads that were answered before the first large one was.
    before_the_first: usize,
    /// Those that were answered before the last large one was.
    before_the_last: usize,
    /// Of those reads, how many asked the server.
    calls: u64,
    /// The slowest of the commits.
    slowest_commit: Duration,
    /// The slowest of the reads.
    slowest_read: Duration,
    /// Until the last large one was answered.
    last: Duration,
}

/// Runs a statement in all large ones at once, and small commits and reads one after the other until the last of those is answered.
fn beside(large: &mut [Guest], sql: &str, small: &mut Small) -> Beside {
    let calls = small.read_calls();
    let answered = AtomicUsize::new(0);
    let began = Instant::now();
    let (mut before, mut slowest) = ([0; 2], [Duration::ZERO; 2]);
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
        let count = |before: &mut [usize; 2]| {
            let answered = answered.load(Ordering::SeqCst);
            before[0] += usize::from(answered == 0);
            before[1] += usize::from(answered < LARGE);
        };
        while answered.load(Ordering::SeqCst) < threads.len() {
            let asked = Instant::now();
            small.commit();
            let committed = Instant::now();
            count(&mut before);
            small.read();
            count(&mut before);
            slowest[0] = slowest[0].max(committed.duration_since(asked));
            slowest[1] = slowest[1].max(committed.elapsed());
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
        calls: small.read_calls() - calls,
        slowest_commit: slowest[0],
        slowest_read: slowest[1],
        last,
    }
}

fn assert_fair(what: &str, beside: &Beside) {
    println!("{what}: {beside:?}");
    assert!(beside.before_the_first >= 5, "{what}: {beside:?}");
    assert!(beside.before_the_last >= 10, "{what}: {beside:?}");
    assert!(beside.calls >= 5, "{what}: {beside:?}");
    assert!(
        beside.slowest_commit < beside.last / 2,
        "{what}: {beside:?}"
    );
    assert!(beside.slowest_read < beside.last / 2, "{what}: {beside:?}");
}

fn on(server: &PageServer) {
    let fill = fill(MIB_EACH << 8);
    let mut guests = large(server, "large", AT_ONCE);
    let mut small = Small::new(server);
    for guest in &mut guests {
        guest.ok("main", &fill);
    }
    let committing = beside(&mut guests, "COMMIT", &mut small);
    let scanning = beside(&mut guests, "SELECT sum(length(v)) FROM t", &mut small);
    drop(guests);
    let mut guests = large(server, "staged", STAGED);
    let staging = beside(&mut guests, &fill, &mut small);
    for guest in &mut guests {
        guest.ok("main", "COMMIT");
    }
    assert_fair("commits", &committing);
    assert_fair("scans", &scanning);
    assert_fair("stagings", &staging);
    assert!(number(&small.writer, "SELECT count(*) FROM t") >= 20);
    assert_sound(&small.writer);
}

#[test]
fn small_commits_and_reads_are_answered_beside_large_commits_scans_and_stagings_on_the_memory_store()
 {
    on(&PageServer::memory());
}

#[test]
fn small_commits_and_reads_are_answered_beside_large_commits_scans_and_stagings_on_the_local_store()
{
    let folder = tempfile::tempdir().expect("a folder");
    on(&PageServer::local(folder.path()));
}
