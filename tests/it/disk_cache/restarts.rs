//! What a new process pays for what an earlier one has read: exact round trips.

use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;

use super::{ALL, CacheDir, all, count, end, fill, guest, open, status, trips, truth};

/// Reads everything until nothing has to be asked for any more: what did not fit into the queue of one process the next one adds.
fn warm(cache: &CacheDir, server: &PageServer, settings: &[(&str, &str)], rows: u64) {
    for turn in 0.. {
        assert!(turn < 10, "it does not get warm");
        let mut guest = cache.guest(settings);
        open(&mut guest, server, &[]);
        all(&mut guest, rows);
        let misses = count(&mut guest, "disk_misses");
        end(guest);
        if misses == 0 && turn > 0 {
            return;
        }
    }
}

fn fresh<'a>(
    cache: &CacheDir,
    server: &PageServer,
    settings: &[(&str, &str)],
    more: impl IntoIterator<Item = &'a str>,
) -> Guest {
    let mut guest = cache.guest(settings);
    let more: Vec<_> = more.into_iter().collect();
    open(&mut guest, server, &more);
    guest
}

/// A database of so many bytes.
fn large(mib: u64) {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    // The memory of a process is no help.
    let settings = [
        ("PAGEWIRE_CACHE_BYTES", "4194304"),
        ("PAGEWIRE_CACHE_DIR_BYTES", "4294967296"),
    ];
    let rows = mib * 256 * 37;
    let mut maker = guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, rows);
    let pages: u64 = maker.ok("main", "PRAGMA page_count")[0]
        .parse()
        .expect("a number");
    assert!(pages * 4096 > mib << 20, "{pages} pages");
    let truth = all(&mut maker, rows);
    end(maker);
    warm(&cache, &server, &settings, rows);

    // The lease comes with the open, and nobody has written since: nothing else has to be asked.
    let mut again = fresh(&cache, &server, &settings, []);
    assert_eq!(all(&mut again, rows), truth);
    assert_eq!(trips(&mut again), "open 1");
    assert!(count(&mut again, "disk_hits") > pages * 9 / 10);
    end(again);
    // Who has no lease asks once for each transaction anyway, and SQLite reads the schema in one of its own.
    let mut reader = fresh(&cache, &server, &settings, ["mode=ro"]);
    assert_eq!(all(&mut reader, rows), truth);
    assert_eq!(trips(&mut reader), "open 1, begin 2");
    end(reader);

    // Another machine writes.
    let change = |from: &str, to: &str| {
        let mut other = guest(&[]);
        open(&mut other, &server, &[]);
        let change = format!("UPDATE t SET v = replace(v, '{from}', '{to}') WHERE i = 20000");
        other.ok("main", &change);
        let truth = all(&mut other, rows);
        end(other);
        truth
    };
    let changed = change("0", "x");
    assert_ne!(changed, truth);
    // One call tells what has changed, and that is all that is read. The row lies on one page; page 1 came with the open.
    let mut again = fresh(&cache, &server, &settings, []);
    assert_eq!(all(&mut again, rows), changed);
    let spent = trips(&mut again);
    // Of the large one a call ahead was seen besides, for which nobody waited.
    let waited = spent
        .strip_suffix(", 1 reads ahead")
        .filter(|_| mib >= 1024);
    assert_eq!(waited.unwrap_or(&spent), "open 1, begin 1, read 1");
    let misses = count(&mut again, "disk_misses");
    assert!(misses == 1 || (mib >= 1024 && misses <= 2), "{misses}");
    end(again);
    // The next one has that too. For a reader the call is the one with which its transaction begins.
    let mut again = fresh(&cache, &server, &settings, []);
    assert_eq!(all(&mut again, rows), changed);
    assert_eq!(trips(&mut again), "open 1");
    end(again);
    let changed_again = change("x", "y");
    assert_ne!(changed_again, changed);
    let mut reader = fresh(&cache, &server, &settings, ["mode=ro"]);
    assert_eq!(all(&mut reader, rows), changed_again);
    let spent = trips(&mut reader);
    let waited = spent
        .strip_suffix(", 1 reads ahead")
        .filter(|_| mib >= 1024);
    assert_eq!(waited.unwrap_or(&spent), "open 1, begin 2, read 1");
}

#[test]
fn a_restarted_process_reads_64_mib_warm_after_at_most_one_round_trip() {
    large(64);
}

#[test]
#[ignore = "some minutes in the release profile, 4 GiB of memory and 2 GiB of disk"]
fn a_restarted_process_reads_1_gib_warm_after_at_most_one_round_trip() {
    large(1024);
}

#[test]
fn what_a_process_writes_is_warm_for_the_next_one() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut first = cache.guest(&[]);
    open(&mut first, &server, &[]);
    fill(&mut first, 20_000);
    for i in 0..50 {
        first.ok(
            "main",
            &format!("UPDATE t SET v = v || {i} WHERE i % 50 = {i}"),
        );
    }
    let truth = first.ok("main", ALL);
    end(first);
    let mut second = cache.guest(&[]);
    open(&mut second, &server, &[]);
    assert_eq!(second.ok("main", ALL), truth);
    assert_eq!(trips(&mut second), "open 1");
}

#[test]
fn q4_changes_that_are_not_told_any_more_are_read_anew() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut maker = guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, 20_000);
    warm(&cache, &server, &[], 20_000);
    // More versions than a store looks through for one answer.
    for i in 0..4_100 {
        maker.ok(
            "main",
            &format!(
                "UPDATE t SET v = 'changed {i}' WHERE i = {}",
                i % 20_000 + 1
            ),
        );
    }
    end(maker);
    let truth = truth(&server);
    let mut again = cache.guest(&[]);
    open(&mut again, &server, &[]);
    assert_eq!(again.ok("main", ALL), truth);
    assert!(count(&mut again, "disk_misses") > 0);
    end(again);
    // And then it is warm.
    let mut again = cache.guest(&[]);
    open(&mut again, &server, &[]);
    assert_eq!(again.ok("main", ALL), truth);
    assert_eq!(trips(&mut again), "open 1");
}

#[test]
fn q4_a_restore_is_found_out_by_the_one_call() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut first = cache.guest(&[]);
    open(&mut first, &server, &[]);
    fill(&mut first, 10_000);
    let old: u64 = first.ok("main", "PRAGMA pagewire_version")[0]
        .parse()
        .expect("a number");
    let before = first.ok("main", ALL);
    first.ok("main", "UPDATE t SET v = upper(v) || 'x'");
    first.ok("main", ALL);
    end(first);
    let mut other = guest(&[]);
    open(&mut other, &server, &[]);
    other.ok("main", &format!("SELECT pagewire_restore({old})"));
    end(other);
    for turn in 0..3 {
        let mut again = cache.guest(&[]);
        open(&mut again, &server, &[]);
        assert_eq!(again.ok("main", ALL), before);
        // Whether the server tells the pages or says "all": the next process has what this one has read.
        assert!(
            turn == 0 || trips(&mut again) == "open 1",
            "turn {turn}: {}",
            trips(&mut again)
        );
        assert_eq!(again.ok("main", "PRAGMA integrity_check"), ["ok"]);
        end(again);
    }
}

#[test]
fn old_versions_and_branches_are_right_beside_the_newest_one() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut first = cache.guest(&[]);
    open(&mut first, &server, &[]);
    fill(&mut first, 5_000);
    let mut seen = Vec::new();
    for turn in 0..5 {
        first.ok(
            "main",
            &format!("UPDATE t SET v = v || 'turn {turn}' WHERE i % 5 = {turn}"),
        );
        let version = first.ok("main", "PRAGMA pagewire_version")[0].clone();
        seen.push((version, first.ok("main", ALL)));
    }
    first.ok(
        "main",
        &format!("SELECT pagewire_branch('branch.db', {})", seen[1].0),
    );
    end(first);
    // Twice: by what was on disk, and by what the first readers added.
    for _ in 0..2 {
        for (version, there) in seen.iter().rev().chain(&seen) {
            let mut looker = cache.guest(&[]);
            open(&mut looker, &server, &[&format!("at={version}")]);
            assert_eq!(looker.ok("main", ALL), *there, "at version {version}");
            end(looker);
        }
        let mut branch = cache.guest(&[]);
        let uri = pagewire_tests::connection::uri(&server.endpoint(), "branch.db", &[]);
        branch.open("main", &uri).expect("open");
        assert_eq!(branch.ok("main", ALL), seen[1].1);
        branch.ok("main", "UPDATE t SET v = v || 'only here' WHERE i = 77");
        branch.ok(
            "main",
            "UPDATE t SET v = substr(v, 1, length(v) - 9) WHERE i = 77",
        );
        end(branch);
        let mut newest = cache.guest(&[]);
        open(&mut newest, &server, &[]);
        assert_eq!(newest.ok("main", ALL), seen[4].1);
        end(newest);
    }
}

#[test]
fn the_status_says_where_it_is_and_what_it_was_good_for() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut first = cache.guest(&[]);
    open(&mut first, &server, &[]);
    assert_eq!(
        status(&mut first, "disk_cache"),
        cache.path().to_str().expect("a path")
    );
    fill(&mut first, 5_000);
    first.ok("main", ALL);
    end(first);
    assert_eq!(cache.files(".pages").len(), 1);
    assert_eq!(cache.files(".changes").len(), 1);
    let mut off = cache.guest(&[]);
    open(&mut off, &server, &["cache_dir="]);
    assert_eq!(status(&mut off, "disk_cache"), "none");
    off.ok("main", ALL);
    end(off);
    // Set for one connection, in a process without.
    let mut one = guest(&[]);
    open(
        &mut one,
        &server,
        &[&format!("cache_dir={}", cache.path().display())],
    );
    one.ok("main", ALL);
    assert!(count(&mut one, "disk_hits") > 0 && count(&mut one, "disk_misses") == 0);
    assert_eq!(trips(&mut one), "open 1");
}
