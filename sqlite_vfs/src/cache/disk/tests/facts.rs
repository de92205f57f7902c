//! Q1 to Q5: what files say, whatever was done to them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use proptest::prelude::*;

use super::*;

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
