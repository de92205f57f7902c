//! The disk cache: what a process has read is warm for the next one, and nothing that happens to its files or processes makes a
//! wrong answer. The invariants (Q1 to Q9) are in `sqlite_vfs/src/cache/disk/mod.rs`.

mod crashes;
mod isolation;
mod restarts;
mod trouble;

use std::path::{Path, PathBuf};

use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;

const NAME: &str = "disk.db";

/// A sum to which each row of `t` adds: its length, and characters from its beginning and its middle.
const ALL: &str = "SELECT count(*), sum(i), sum(length(v) * (i % 89 + 1)), sum((unicode(substr(v, i % 90 + 1)) \
                   + 3 * unicode(substr(v, i % 7 + 1)) + 7 * unicode(substr(v, i % 9 + 6))) * (i % 997 + 1)) FROM t";

/// A directory for a cache, which its processes make.
struct CacheDir(tempfile::TempDir);

impl CacheDir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    /// A process that uses it, with a connection to no server on which counting costs nothing.
    fn guest(&self, more: &[(&str, &str)]) -> Guest {
        let path = self.path();
        let mut settings = vec![("PAGEWIRE_CACHE_DIR", path.to_str().expect("a path"))];
        settings.extend_from_slice(more);
        guest(&settings)
    }

    /// The files that end so.
    fn files(&self, ending: &str) -> Vec<PathBuf> {
        files(&self.path(), ending)
    }
}

fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let files = std::fs::read_dir(directory).expect("the cache").flatten();
    let mut files: Vec<_> = files
        .map(|file| file.path())
        .filter(|path| path.to_string_lossy().ends_with(ending))
        .collect();
    files.sort();
    files
}

fn guest(settings: &[(&str, &str)]) -> Guest {
    let mut guest = Guest::start(settings);
    guest.open("probe", ":memory:").expect("open");
    guest
}

fn open(guest: &mut Guest, server: &PageServer, more: &[&str]) {
    guest
        .open("main", &uri(&server.endpoint(), NAME, more))
        .expect("open");
}

/// Closes everything: what is cached is on disk when the process has ended.
fn end(mut guest: Guest) {
    guest.close("main").expect("close");
    drop(guest);
}

/// Rows of one statement, which has to end in time.
const PART: u64 = 500_000;

/// A table of so many rows of 100 bytes, 37 to a page of 4 KiB.
fn fill(guest: &mut Guest, rows: u64) {
    guest.ok("main", "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT)");
    for first in (1..=rows).step_by(PART as usize) {
        let last = rows.min(first + PART - 1);
        let part = format!(
            "WITH RECURSIVE n(i) AS (VALUES({first}) UNION ALL SELECT i + 1 FROM n WHERE i < {last})
             INSERT INTO t SELECT i, printf('%0100d', i * 7919) FROM n"
        );
        guest.ok("main", &part);
    }
}

/// What a reader sees of so many rows, in one transaction.
fn all(guest: &mut Guest, rows: u64) -> Vec<String> {
    guest.ok("main", "BEGIN");
    let parts = (1..=rows).step_by(PART as usize);
    let seen = parts.map(|first| {
        let part = format!("{ALL} WHERE i BETWEEN {first} AND {}", first + PART - 1);
        guest.ok("main", &part).remove(0)
    });
    let seen = seen.collect();
    guest.ok("main", "COMMIT");
    seen
}

/// Round trips of the process so far that somebody waited for, by kind, and the others that brought pages.
fn trips(guest: &mut Guest) -> String {
    let counts = guest.ok(
        "probe",
        "SELECT group_concat(kind || ' ' || count, ', ') FROM pagewire_rpc WHERE count > 0",
    );
    let ahead = guest.ok(
        "probe",
        "SELECT background FROM pagewire_rpc WHERE kind = 'read'",
    );
    match ahead[0].as_str() {
        "0" => counts[0].clone(),
        ahead => format!("{}, {ahead} reads ahead", counts[0]),
    }
}

/// A row of `pagewire_status`.
fn status(guest: &mut Guest, key: &str) -> String {
    let sql = format!("SELECT value FROM pagewire_status WHERE key = '{key}'");
    guest.ok("main", &sql).pop().unwrap_or_default()
}

fn count(guest: &mut Guest, key: &str) -> u64 {
    status(guest, key).parse().expect("a number")
}

/// What a process without a disk cache reads.
fn truth(server: &PageServer) -> Vec<String> {
    let mut plain = guest(&[]);
    open(&mut plain, server, &["mode=ro"]);
    plain.ok("main", ALL)
}
