//! A test for each invariant of the disk cache that needs no server, by its letter and number; the others are in `tests/it/disk_cache`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use pagewire_proto::Changes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const LIMIT: u64 = 16 << 20;

fn page(number: u32) -> PageNumber {
    PageNumber::try_from(number).unwrap()
}

fn version(number: u64) -> Version {
    Version::new(number)
}

fn size(bytes: u32) -> PageSize {
    PageSize::try_from(bytes).unwrap()
}

fn identity(database: u8, page_bytes: u32) -> Identity {
    Identity {
        incarnation: Incarnation::from_bytes([1; 16]),
        database: DatabaseId::from_bytes([database; 16]),
        scope: [3; 32],
        page_size: size(page_bytes),
    }
}

/// What a page had from a version on: all of it says which page and which version.
fn content(number: u32, from: u64, page_bytes: usize) -> Bytes {
    let word = (u64::from(number) << 32 | from).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bytes = word.to_le_bytes();
    (0..page_bytes).map(|at| bytes[at % 8]).collect()
}

fn entry(number: u32, from: u64, upto: u64, page_bytes: usize) -> Entry {
    Entry {
        content: content(number, from, page_bytes),
        from: version(from),
        upto: version(upto),
    }
}

fn slots(path: &Path, identity: &Identity) -> SlotFile {
    SlotFile::open(path, identity, LIMIT).unwrap()
}

fn log(since: u64, head: u64, changed: &[(u32, u64)]) -> ChangeLog {
    let mut log = ChangeLog::new(version(since));
    for (number, at) in changed {
        log.advance(version(*at), &Changes::Pages(vec![page(*number)]));
    }
    log.advance(version(head), &Changes::Pages(Vec::new()));
    log
}

fn cache(directory: &Path, bytes: u64) -> DiskCache {
    let settings = DiskSettings {
        directory: directory.to_owned(),
        bytes,
    };
    DiskCache::new(settings, "http://here", None)
}

/// The files of a database whose newest version is 1, in a directory of its own.
fn attach(cache: &DiskCache, database: u8, page_bytes: u32) -> Option<Arc<DiskFile>> {
    let log = Arc::new(RwLock::new(ChangeLog::new(version(1))));
    let attached = cache.attach(
        Incarnation::from_bytes([1; 16]),
        DatabaseId::from_bytes([database; 16]),
        size(page_bytes),
        CacheKey(u64::from(database)),
        log,
    );
    attached.map(|(file, _)| file)
}

/// Bytes that the files of a directory take.
fn room_taken(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}

/// Panics if anything is answered that was not written: `versions` of each of the pages.
fn assert_true_or_nothing(
    file: &SlotFile,
    pages: u32,
    versions: &[u64],
    page_bytes: usize,
) -> usize {
    let mut found = 0;
    for number in 1..=pages {
        if let Found::Page(entry) = file.read(page(number)) {
            let from = entry.from.get();
            assert!(versions.contains(&from), "page {number} of version {from}");
            assert_eq!(entry.content, content(number, from, page_bytes));
            found += 1;
        }
    }
    found
}

#[test]
fn q1_what_is_of_another_is_not_answered() {
    let folder = TempDir::new().unwrap();
    let (one, other) = (identity(1, 512), identity(2, 512));
    let (here, there) = (folder.path().join("one"), folder.path().join("other"));
    slots(&here, &one)
        .write(page(1), &entry(1, 1, 1, 512))
        .unwrap();
    // The whole file under the name of another.
    fs::copy(&here, &there).unwrap();
    assert!(matches!(
        slots(&there, &other).read(page(1)),
        Found::Nothing
    ));
    // A slot of it in the file of another.
    let bytes = fs::read(&here).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&there).unwrap();
    file.write_all_at(&bytes[4096..], 4096).unwrap();
    assert!(matches!(
        slots(&there, &other).read(page(1)),
        Found::Damaged
    ));
    // A slot in the place of another page.
    let file = fs::OpenOptions::new().write(true).open(&here).unwrap();
    file.write_all_at(&bytes[4096..], 4096 + 552).unwrap();
    assert!(matches!(slots(&here, &one).read(page(2)), Found::Damaged));
    assert!(matches!(slots(&here, &one).read(page(1)), Found::Page(_)));
    // Its log.
    let path = folder.path().join("log");
    log::save(&path, &one, log(1, 2, &[]), log::Gap::MayBeBridged).unwrap();
    assert!(log::load(&path, &one).is_some() && log::load(&path, &other).is_none());
}

#[test]
fn q1_each_part_of_the_identity_has_files_of_its_own() {
    let base = identity(1, 512);
    let mut all = vec![base; 5];
    all[1].incarnation = Incarnation::from_bytes([9; 16]);
    all[2].database = DatabaseId::from_bytes([9; 16]);
    all[3].scope = [9; 32];
    all[4].page_size = size(1024);
    let names: std::collections::HashSet<_> = all.iter().map(Identity::file_name).collect();
    let seeds: std::collections::HashSet<_> = all.iter().map(Identity::seed).collect();
    assert_eq!((names.len(), seeds.len()), (5, 5));
    let folder = TempDir::new().unwrap();
    let settings = || DiskSettings {
        directory: folder.path().to_owned(),
        bytes: LIMIT,
    };
    let scopes: std::collections::HashSet<_> = [
        ("http://a", None),
        ("http://a", Some("")),
        ("http://a", Some("b")),
        ("http://a", Some("c")),
        ("http://ab", None),
        ("http://a,http://b", None),
    ]
    .map(|(endpoint, token)| DiskCache::new(settings(), endpoint, token).scope)
    .into();
    assert_eq!(scopes.len(), 6);
}

#[test]
fn q2_of_a_torn_write_the_old_page_the_new_one_or_nothing_is_left() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pages");
    let whose = identity(1, 512);
    let file = slots(&path, &whose);
    for old in [0, 4] {
        let new = slot::encode(whose.seed(), page(1), &entry(1, 5, 6, 512));
        for sector in [1, 7, 64, 512] {
            // Some of its sectors have arrived, in any order: a prefix, a suffix, one in the middle.
            let count = new.len().div_ceil(sector);
            for first in 0..count {
                for last in [first + 1, count] {
                    let raw = fs::OpenOptions::new().write(true).open(&path).unwrap();
                    raw.write_all_at(&vec![0; new.len()], 4096).unwrap();
                    if old > 0 {
                        file.write(page(1), &entry(1, old, old, 512)).unwrap();
                    }
                    let part = first * sector..(last * sector).min(new.len());
                    raw.write_all_at(&new[part.clone()], 4096 + part.start as u64)
                        .unwrap();
                    assert_true_or_nothing(&file, 1, &[old, 5], 512);
                }
            }
        }
    }
}

#[test]
fn q2_many_writers_of_one_slot_and_its_readers_need_no_lock() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pages");
    let whose = identity(1, 4096);
    slots(&path, &whose);
    let done = AtomicBool::new(false);
    let found = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for writer in 1..=2 {
            let (path, done, found) = (&path, &done, &found);
            scope.spawn(move || {
                // A file handle of its own, as another process has.
                let file = slots(path, &whose);
                for turn in 0..20_000 {
                    if found.load(Ordering::Relaxed) > 3_000 && turn > 2_000 {
                        break;
                    }
                    let from = 1 + (turn * 2 + writer) % 7;
                    file.write(page(1), &entry(1, from, 8, 4096)).unwrap();
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            let file = slots(&path, &whose);
            while !done.load(Ordering::Relaxed) {
                let seen = assert_true_or_nothing(&file, 1, &[1, 2, 3, 4, 5, 6, 7], 4096);
                found.fetch_add(seen as u64, Ordering::Relaxed);
            }
        });
    });
    assert!(found.into_inner() > 0, "nothing was ever read whole");
}

#[test]
fn q3_a_slot_answers_beyond_its_own_versions_only_where_a_log_says_so() {
    let folder = TempDir::new().unwrap();
    let file = slots(&folder.path().join("pages"), &identity(1, 512));
    file.write(page(7), &entry(7, 3, 5, 512)).unwrap();
    let Found::Page(found) = file.read(page(7)) else {
        panic!("not found");
    };
    let holds = |at, log: &ChangeLog| DiskPage(found.clone()).holds(page(7), version(at), log);
    let known = log(4, 9, &[(7, 8), (8, 6)]);
    assert!(!holds(2, &known) && holds(3, &known) && holds(5, &known));
    assert!(holds(7, &log(4, 7, &[(8, 6)])) && !holds(8, &known));
    assert!(
        !holds(10, &log(4, 9, &[])),
        "nothing is known of version 10"
    );
    assert!(
        !holds(7, &log(6, 9, &[])),
        "nor of version 6 by a log from 6 on"
    );
}

#[test]
fn q3_a_log_that_is_saved_keeps_what_others_have_saved() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    let whose = identity(1, 512);
    let save = |log| log::save(&path, &whose, log, log::Gap::MayBeBridged).unwrap();
    let span = || {
        let log = log::load(&path, &whose).unwrap();
        (log.since().get(), log.head().get())
    };
    save(log(5, 9, &[(1, 6)]));
    assert_eq!(span(), (5, 9));
    // One of the same time, and one that is behind.
    save(log(8, 12, &[(2, 10)]));
    assert_eq!(span(), (5, 12));
    save(log(5, 7, &[]));
    assert_eq!(span(), (5, 12));
    let merged = log::load(&path, &whose).unwrap();
    assert!(!merged.unchanged(page(1), version(5), version(12)));
    assert!(!merged.unchanged(page(2), version(9), version(12)));
    assert!(merged.unchanged(page(3), version(5), version(12)));
    // After a gap: the gap may be bridged by the next process, unless it is too wide.
    save(log(100, 101, &[]));
    assert_eq!(span(), (5, 12));
    save(log(5000, 5001, &[]));
    assert_eq!(span(), (5000, 5001));
    save(log(20, 30, &[]));
    assert_eq!(span(), (5000, 5001), "one that is older and apart");
    let newer = log(5010, 5011, &[]);
    log::save(&path, &whose, newer, log::Gap::GiveUp).unwrap();
    assert_eq!(span(), (5010, 5011), "the server can't bridge it");
}

#[test]
fn q4_logs_are_joined_without_a_gap_only() {
    let mut now = log(10, 12, &[(1, 11)]);
    assert!(!now.join(&log(3, 9, &[])));
    assert_eq!(now.since(), version(10));
    assert!(now.join(&log(3, 10, &[(2, 5), (1, 4)])));
    assert_eq!((now.since(), now.head()), (version(3), version(12)));
    assert!(now.unchanged(page(2), version(5), version(12)));
    assert!(!now.unchanged(page(2), version(4), version(12)));
    assert!(!now.unchanged(page(1), version(10), version(12)));
    assert!(now.unchanged(page(3), version(3), version(12)));
}

/// Files with pages 1 to 3 in versions 1 and 2, and a log.
fn small(folder: &Path) -> (Vec<u8>, Vec<u8>) {
    let whose = identity(1, 512);
    let path = folder.join("small");
    let file = slots(&path, &whose);
    for number in 1..=3 {
        file.write(page(number), &entry(number, 1, 2, 512)).unwrap();
    }
    let pages = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    (pages, log::encode(&log(1, 6, &[(1, 4), (3, 6)]), &whose))
}

/// Opens files with these bytes and reads everything: Q5.
fn assert_harmless(folder: &Path, pages: &[u8]) -> usize {
    let path = folder.join("harmed");
    let mut file = fs::OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).open(&path);
    let mut file = file.unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .unwrap();
    file.write_all(pages).unwrap();
    match SlotFile::open(&path, &identity(1, 512), LIMIT) {
        Ok(file) => assert_true_or_nothing(&file, 4, &[1], 512),
        // Bits of the number of the format.
        Err(reason) => {
            assert!(reason.contains("format"), "{reason}");
            0
        }
    }
}

fn assert_log_harmless(bytes: &[u8], whole: &[u8]) {
    if let Some(log) = log::decode(bytes, &identity(1, 512)) {
        assert_eq!(bytes, whole, "a damaged log counts");
        assert!(!log.unchanged(page(1), version(3), version(6)));
    }
}

#[test]
fn q5_no_bit_of_the_files_makes_a_wrong_answer() {
    let folder = TempDir::new().unwrap();
    let (pages, log) = small(folder.path());
    assert_eq!(assert_harmless(folder.path(), &pages), 3);
    let header = 0..256;
    for bit in header.chain(4096 * 8..pages.len() * 8) {
        let mut harmed = pages.clone();
        harmed[bit / 8] ^= 1 << (bit % 8);
        let found = assert_harmless(folder.path(), &harmed);
        assert!(found < 3, "bit {bit} is not covered");
    }
    for bit in 0..log.len() * 8 {
        let mut harmed = log.clone();
        harmed[bit / 8] ^= 1 << (bit % 8);
        assert_log_harmless(&harmed, &log);
    }
}

#[test]
fn q5_no_prefix_of_the_files_makes_a_wrong_answer() {
    let folder = TempDir::new().unwrap();
    let (pages, log) = small(folder.path());
    for length in (0..128).chain(4000..pages.len()) {
        let found = assert_harmless(folder.path(), &pages[..length]);
        let whole = length.saturating_sub(4096) / 552;
        assert_eq!(found, whole, "of {length} bytes");
    }
    for length in 0..log.len() {
        assert_log_harmless(&log[..length], &log);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn q5_no_damage_to_the_files_makes_a_wrong_answer(
        damage in proptest::collection::vec((any::<u32>(), any::<u32>(), 1..1200_usize, any::<u8>(), 0..4), 1..5),
        tail in 0..64_usize,
    ) {
        let folder = TempDir::new().unwrap();
        let (whole, whole_log) = small(folder.path());
        let (mut pages, mut log) = (whole.clone(), whole_log.clone());
        for (at, from, length, byte, kind) in damage {
            for bytes in [&mut pages, &mut log] {
                let length = length.min(bytes.len());
                let at = at as usize % (bytes.len() - length + 1);
                let from = from as usize % (bytes.len() - length + 1);
                match kind {
                    0 => bytes[at..at + length].fill(byte),
                    1 => bytes.copy_within(from..from + length, at),
                    2 => bytes[at] = byte,
                    _ => bytes[at..at + length].iter_mut().for_each(|old| *old = old.wrapping_add(byte)),
                }
            }
        }
        pages.extend(vec![0x5a; tail]);
        assert_harmless(folder.path(), &pages);
        assert_log_harmless(&log, &whole_log);
    }

    #[test]
    fn q5_arbitrary_bytes_are_never_a_page_or_a_log(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(!matches!(slot::decode(1, size(512), bytes.clone()), slot::Content::Page(..)));
        prop_assert!(log::decode(&bytes, &identity(1, 512)).is_none());
    }
}

#[test]
fn q6_too_many_pages_are_left_out_and_nobody_waits() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path(), 1 << 30);
    let file = attach(&cache, 1, 65536).unwrap();
    let bytes = content(1, 1, 65536);
    let begun = std::time::Instant::now();
    for number in 1..=4_000 {
        file.offer(page(number), version(1), version(1), &bytes);
    }
    let offered = begun.elapsed();
    drop(cache);
    let count = DISK.read();
    assert_eq!(count.written + count.dropped, 4_000);
    assert!(offered < Duration::from_secs(20), "{offered:?}");
    assert!(count.written >= 200, "what waits is written at the end");
}

#[test]
fn q6_a_file_that_cannot_be_written_is_read_on_with_one_warning() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path(), LIMIT);
    let file = attach(&cache, 1, 512).unwrap();
    file.slots.write(page(1), &entry(1, 1, 1, 512)).unwrap();
    assert!(cache.warning().is_none());
    // The directory is gone: no room can be looked up for the next page.
    let elsewhere = folder.path().with_extension("moved");
    fs::rename(folder.path(), &elsewhere).unwrap();
    file.offer(page(2), version(1), version(1), &content(2, 1, 512));
    cache.writer.stop(Duration::from_secs(10));
    let warning = cache.warning().expect("a warning");
    assert!(warning.contains("can't list"), "{warning}");
    assert!(cache.warning().is_none(), "said once");
    assert!(cache.describe(Some(&file)).contains("only read"));
    assert!(file.read(page(1)).is_some() && file.read(page(2)).is_none());
    fs::rename(&elsewhere, folder.path()).unwrap();
}

#[test]
fn q6_a_file_that_was_removed_is_not_filled_any_more() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path(), LIMIT);
    let file = attach(&cache, 1, 512).unwrap();
    fs::remove_file(file.slots.path()).unwrap();
    file.offer(page(2), version(1), version(1), &content(2, 1, 512));
    cache.writer.stop(Duration::from_secs(10));
    assert!(file.read(page(2)).is_none() && !file.takes_pages());
    assert!(cache.warning().is_none(), "somebody wanted it so");
}

#[test]
fn q7_the_files_of_all_databases_stay_within_the_limit() {
    let folder = TempDir::new().unwrap();
    let written = || DISK.read().written;
    for (turn, database) in [1, 2, 3, 1, 1].into_iter().enumerate() {
        let cache = cache(folder.path(), LIMIT);
        let file = attach(&cache, database, 4096).unwrap();
        let before = written();
        for part in 0..12 {
            // Scattered, so that a slot takes more room than it has bytes.
            for number in 0..500 {
                let number = 1 + (part * 500 + number) * 7919 % 20_000;
                file.offer(
                    page(number),
                    version(1),
                    version(1),
                    &content(number, 1, 4096),
                );
            }
            while !cache.writer.is_idle() {
                std::thread::yield_now();
                let taken = room_taken(folder.path());
                assert!(taken <= LIMIT, "{taken} bytes of {LIMIT}");
            }
        }
        drop(cache);
        let is_new = turn < 3;
        assert!(
            !is_new || written() > before + 1_000,
            "the newest database finds room"
        );
        assert!(room_taken(folder.path()) > LIMIT / 4, "and it is used");
    }
}

#[test]
fn q7_a_lower_limit_counts_for_files_that_are_there() {
    let folder = TempDir::new().unwrap();
    let large = cache(folder.path(), 4 * LIMIT);
    let file = attach(&large, 1, 4096).unwrap();
    for number in 1..=10_000 {
        file.slots
            .write(page(number), &entry(number, 1, 1, 4096))
            .unwrap();
    }
    drop((file, large));
    assert!(room_taken(folder.path()) > 2 * LIMIT);
    let small = cache(folder.path(), LIMIT);
    let file = attach(&small, 1, 4096).unwrap();
    file.offer(page(1), version(1), version(1), &content(1, 1, 4096));
    drop((file, small));
    assert!(room_taken(folder.path()) <= LIMIT);
}

#[test]
fn q7_who_reads_more_than_there_is_room_for_leaves_most_of_what_is_there() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path(), LIMIT);
    let file = attach(&cache, 1, 4096).unwrap();
    let count = (LIMIT / 4 * 3 - 4096) / 4136;
    let fill = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            file.offer(
                page(number),
                version(1),
                version(1),
                &content(number, 1, 4096),
            );
            if number % 1_000 == 0 {
                while !cache.writer.is_idle() {
                    std::thread::yield_now();
                }
            }
        }
        while !cache.writer.is_idle() {
            std::thread::yield_now();
        }
    };
    let count = count as u32;
    fill(1..count + 1);
    fill(count + 1..2 * count + 1);
    let left = (1..=count).filter(|number| file.read(page(*number)).is_some());
    let left = left.count() as u32;
    assert!(left > count / 4 * 3 && left < count, "{left} of {count}");
}

#[test]
fn q8_what_somebody_else_could_have_written_is_not_read() {
    let folder = TempDir::new().unwrap();
    let directory = folder.path().join("made/by us");
    let make = || cache(&directory, LIMIT);
    let file = attach(&make(), 1, 512).unwrap();
    let path = file.slots.path().to_owned();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
    let set =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let refused = |reason: &str| {
        let cache = make();
        assert!(attach(&cache, 1, 512).is_none());
        let warning = cache.warning().expect("a warning");
        assert!(warning.contains(reason), "{warning}");
        assert!(cache.describe(None).starts_with("off: "));
    };
    set(&path, 0o640);
    refused("only its owner");
    set(&path, 0o600);
    set(&directory, 0o770);
    refused("others may write");
    set(&directory, 0o700);
    let moved = folder.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    symlink(&moved, &path).unwrap();
    refused("can't open");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refused("can't open");
    fs::remove_dir(&path).unwrap();
    fs::rename(&moved, &path).unwrap();
    assert!(attach(&make(), 1, 512).is_some());
    let mut bytes = fs::read(&path).unwrap();
    bytes[16] = 2;
    fs::write(&path, &bytes).unwrap();
    refused("format 2");
}

#[test]
fn q9_a_history_that_is_discarded_is_not_answered() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path(), LIMIT);
    let file = attach(&cache, 1, 512).unwrap();
    file.offer(page(1), version(1), version(1), &content(1, 1, 512));
    cache.writer.stop(Duration::from_secs(10));
    assert!(file.read(page(1)).is_some());
    file.discard();
    assert!(file.read(page(1)).is_none());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_hit_and_a_miss_are_one_system_call_each() {
    let folder = TempDir::new().unwrap();
    let file = slots(&folder.path().join("pages"), &identity(1, 4096));
    for number in (1..=1_000).step_by(2) {
        file.write(page(number), &entry(number, 1, 1, 4096))
            .unwrap();
    }
    let calls = || -> u64 {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io.lines().find(|line| line.starts_with("syscr:")).unwrap();
        line["syscr:".len()..].trim().parse().unwrap()
    };
    let nothing = calls();
    let nothing = calls() - nothing;
    let before = calls();
    let found = (1..=1_000).filter(|number| matches!(file.read(page(*number)), Found::Page(_)));
    assert_eq!(found.count(), 500);
    assert_eq!(calls() - before - nothing, 1_000);
}

#[test]
fn what_another_process_keeps_writing_is_newer_or_stays() {
    let folder = TempDir::new().unwrap();
    let cache = cache(folder.path(), LIMIT);
    let file = attach(&cache, 1, 512).unwrap();
    let put = |from, upto| {
        file.offer(
            page(1),
            version(from),
            version(upto),
            &content(1, from, 512),
        );
        while !cache.writer.is_idle() {
            std::thread::yield_now();
        }
        let (from, upto, _) = file.read(page(1)).unwrap().into_parts();
        (from.get(), upto.get())
    };
    assert_eq!(put(3, 5), (3, 5));
    assert_eq!(
        put(1, 2),
        (3, 5),
        "what is looked at takes no place of newer content"
    );
    assert_eq!(put(7, 9), (7, 9));
    assert_eq!(
        put(7, 12),
        (7, 12),
        "nobody here knows whether version 10 has changed it"
    );
    file.log
        .write()
        .advance(version(20), &Changes::Pages(Vec::new()));
    assert_eq!(put(7, 15), (7, 12), "the log says so");
}
