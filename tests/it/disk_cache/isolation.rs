//! Whose pages: another store, another database of the name, another credential, another process.

use std::time::{Duration, Instant};

use pagewire_tests::connection::uri;
use pagewire_tests::server::PageServer;

use super::{ALL, CacheDir, NAME, count, end, fill, guest, open};

#[test]
fn q1_a_store_that_lost_its_content_is_not_answered_from_the_old_one() {
    let mut server = PageServer::memory();
    let cache = CacheDir::new();
    let mut seen = Vec::new();
    for turn in 1..=3 {
        let mut guest = cache.guest(&[]);
        open(&mut guest, &server, &[]);
        fill(&mut guest, 2_000 * turn);
        seen.push(guest.ok("main", ALL));
        end(guest);
        let mut again = cache.guest(&[]);
        open(&mut again, &server, &[]);
        assert_eq!(again.ok("main", ALL), seen[turn as usize - 1]);
        assert_eq!(count(&mut again, "disk_misses"), 0);
        end(again);
        server.kill();
        server.restart();
    }
    assert_eq!(cache.files(".pages").len(), 3);
}

#[test]
fn q1_a_process_that_lives_through_the_loss_of_a_store_reads_nothing_of_it_afterwards() {
    let mut server = PageServer::memory();
    let cache = CacheDir::new();
    let mut guest = cache.guest(&[("PAGEWIRE_CACHE_BYTES", "0")]);
    open(&mut guest, &server, &[]);
    fill(&mut guest, 4_000);
    guest.ok("main", ALL);
    server.kill();
    server.restart();
    let mut other = cache.guest(&[]);
    open(&mut other, &server, &[]);
    fill(&mut other, 1_000);
    let truth = other.ok("main", ALL);
    end(other);
    let deadline = Instant::now() + Duration::from_secs(30);
    // Until it has noticed it may fail, but what it answers is not of the new store.
    while let Ok(rows) = guest.sql("main", ALL) {
        assert_ne!(rows, truth);
        assert!(Instant::now() < deadline, "it never notices");
    }
    guest.close("main").expect("close");
    open(&mut guest, &server, &[]);
    assert_eq!(guest.ok("main", ALL), truth);
}

#[test]
fn q1_a_database_made_again_under_the_name_is_another_one() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    for rows in [4_000, 3_000, 5_000] {
        let mut guest = cache.guest(&[]);
        open(&mut guest, &server, &[]);
        fill(&mut guest, rows);
        let truth = guest.ok("main", ALL);
        end(guest);
        let mut again = cache.guest(&[]);
        open(&mut again, &server, &[]);
        assert_eq!(again.ok("main", ALL), truth);
        end(again);
        server.delete(NAME).unwrap();
    }
}

#[test]
fn q1_credentials_and_databases_have_files_of_their_own() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut maker = guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, 4_000);
    let truth = maker.ok("main", ALL);
    end(maker);
    for (turn, more) in [&[][..], &["token=a"], &["token=b"]]
        .into_iter()
        .enumerate()
    {
        for expected in [true, false] {
            let mut guest = cache.guest(&[]);
            open(&mut guest, &server, more);
            assert_eq!(guest.ok("main", ALL), truth);
            let missed = count(&mut guest, "disk_misses") > 0;
            assert_eq!(missed, expected, "{more:?} after {turn} others");
            end(guest);
        }
        assert_eq!(cache.files(".pages").len(), turn + 1);
    }
    let mut other = cache.guest(&[]);
    let uri = uri(&server.endpoint(), "other.db", &[]);
    other.open("main", &uri).expect("open");
    fill(&mut other, 1_000);
    assert_eq!(other.ok("main", "SELECT count(*) FROM t"), ["1000"]);
    end(other);
    assert_eq!(cache.files(".pages").len(), 4);
}

#[test]
fn q2_two_processes_share_it_while_a_third_writes() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut writer = cache.guest(&[]);
    open(&mut writer, &server, &[]);
    writer.ok(
        "main",
        "CREATE TABLE t(i INTEGER PRIMARY KEY, n INTEGER, v TEXT)",
    );
    writer.ok(
        "main",
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
         INSERT INTO t SELECT i, 1000, printf('%0200d', i) FROM n",
    );
    // Almost nothing is in memory: what is right has to come from the files.
    let settings = [("PAGEWIRE_CACHE_BYTES", "100000")];
    let mut readers = [cache.guest(&settings), cache.guest(&settings)];
    open(&mut readers[0], &server, &["mode=ro"]);
    open(&mut readers[1], &server, &["subscribe=always"]);
    let sum = "SELECT sum(n), count(DISTINCT v) FROM t";
    for turn in 0..150_u64 {
        let (from, to) = (turn * 37 % 3000 + 1, turn * 101 % 3000 + 1);
        for reader in &mut readers {
            reader.begin_sql("main", sum);
        }
        writer.ok("main", "BEGIN IMMEDIATE");
        writer.ok(
            "main",
            &format!("UPDATE t SET n = n - {turn} WHERE i = {from}"),
        );
        writer.ok(
            "main",
            &format!("UPDATE t SET n = n + {turn} WHERE i = {to}"),
        );
        writer.ok("main", "COMMIT");
        for reader in &mut readers {
            assert_eq!(
                reader.answer(),
                Ok(vec!["3000000|3000".to_owned()]),
                "turn {turn}"
            );
        }
        // What was acknowledged is seen.
        let row = format!("SELECT n FROM t WHERE i = {to}");
        let truth = writer.ok("main", &row);
        for reader in &mut readers {
            assert_eq!(reader.ok("main", &row), truth, "turn {turn}");
        }
        if turn % 50 == 49 {
            // One goes, and another one comes with what is on disk.
            let mut next = cache.guest(&settings);
            open(&mut next, &server, &["mode=ro"]);
            end(std::mem::replace(&mut readers[0], next));
        }
    }
    let hits: u64 = readers
        .iter_mut()
        .map(|reader| count(reader, "disk_hits"))
        .sum();
    assert!(hits > 5_000, "only {hits} pages came from the files");
}

#[test]
fn q9_a_store_that_was_set_back_without_a_word_is_noticed_while_it_is_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, backup) = (folder.path().join("store"), folder.path().join("backup"));
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let _ = std::fs::remove_dir_all(to);
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(copied.expect("run cp").success());
    };
    for versions_since in [0, 1, 5] {
        let _ = std::fs::remove_dir_all(&store);
        let cache = CacheDir::new();
        let mut server = PageServer::local(&store);
        let mut maker = guest(&[]);
        open(&mut maker, &server, &[]);
        fill(&mut maker, 4_000);
        end(maker);
        server.kill();
        copy(&store, &backup);
        server.restart();
        // Versions that will be no more, read by one process after another.
        for turn in 0..10 {
            let mut guest = cache.guest(&[]);
            open(&mut guest, &server, &[]);
            let change = format!("UPDATE t SET v = 'lost {turn}' || v WHERE i % 10 = {turn}");
            guest.ok("main", &change);
            guest.ok("main", ALL);
            end(guest);
        }
        server.kill();
        copy(&backup, &store);
        server.restart();
        let mut other = guest(&[]);
        open(&mut other, &server, &[]);
        for turn in 0..versions_since {
            other.ok(
                "main",
                &format!("UPDATE t SET v = 'kept {turn}' || v WHERE i % 7 = {turn}"),
            );
        }
        let truth = other.ok("main", ALL);
        end(other);
        for more in [&["mode=ro"][..], &[]] {
            let mut guest = cache.guest(&[]);
            open(&mut guest, &server, more);
            assert_eq!(
                guest.ok("main", ALL),
                truth,
                "{versions_since} versions, {more:?}"
            );
            end(guest);
        }
        // From then on it is a cache of the new history.
        let mut again = cache.guest(&[]);
        open(&mut again, &server, &[]);
        assert_eq!(again.ok("main", ALL), truth);
        assert_eq!(super::trips(&mut again), "open 1");
    }
}
