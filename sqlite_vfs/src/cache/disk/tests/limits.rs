//! Q6 to Q9: what is left out, how large it gets, whose it is; and what a hit costs.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::cache::disk::log::{Gap, load, save};

/// Bytes that the files of a directory take.
fn room_taken(directory: &Path) -> u64 {
    let files = fs::read_dir(directory).unwrap().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.blocks() * 512)
        .sum()
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
    // Its log may just have been saved.
    let is_right = ["can't list", "can't make a file"].map(|reason| warning.contains(reason));
    assert!(is_right.contains(&true), "{warning}");
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
                // Files are looked at one after the other: one that made room meanwhile is counted beside what took its place.
                let taken = room_taken(folder.path());
                let taken = if taken > LIMIT {
                    room_taken(folder.path())
                } else {
                    taken
                };
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
fn q7_what_another_process_is_making_is_left_to_it_until_it_is_forgotten() {
    let folder = TempDir::new().unwrap();
    let large = attach(&cache(folder.path(), LIMIT), 1, 4096).unwrap();
    // Somebody has to make room.
    fs::write(large.slots.path(), vec![1; LIMIT as usize]).unwrap();
    let now = fs::metadata(large.slots.path()).unwrap();
    let now = now.modified().unwrap();
    let others = [30, 90].map(|age| {
        let path = folder.path().join(format!(".making-{age}"));
        let file = fs::File::create_new(&path).unwrap();
        file.set_len(1).unwrap();
        file.set_modified(now - Duration::from_secs(age)).unwrap();
        path
    });
    let cache = cache(folder.path(), LIMIT);
    let file = attach(&cache, 2, 4096).unwrap();
    file.offer(page(1), version(1), version(1), &content(1, 1, 4096));
    cache.writer.stop(Duration::from_secs(10));
    assert!(cache.warning().is_none());
    assert!(room_taken(folder.path()) <= LIMIT);
    assert_eq!(others.map(|other| other.exists()), [true, false]);
}

/// Bug: whoever died after he had removed the pages left their log, and nobody removed it: some twenty of these took all of the smallest limit.
#[test]
fn q7_a_log_whose_pages_are_gone_is_removed_when_it_is_forgotten() {
    let folder = TempDir::new().unwrap();
    let large = attach(&cache(folder.path(), LIMIT), 1, 4096).unwrap();
    // Somebody has to make room.
    fs::write(large.slots.path(), vec![1; LIMIT as usize]).unwrap();
    let now = fs::metadata(large.slots.path()).unwrap();
    let now = now.modified().unwrap();
    let logs = [(30, false), (90, true), (90, false)].map(|(age, has_pages)| {
        let stem = format!("{age:032x}-{:016x}", u8::from(has_pages));
        let path = folder.path().join(format!("{stem}.changes"));
        if has_pages {
            fs::write(path.with_extension("pages"), [1]).unwrap();
        }
        let file = fs::File::create_new(&path).unwrap();
        file.set_len(1).unwrap();
        file.set_modified(now - Duration::from_secs(age)).unwrap();
        path
    });
    let cache = cache(folder.path(), LIMIT);
    let file = attach(&cache, 2, 4096).unwrap();
    file.offer(page(1), version(1), version(1), &content(1, 1, 4096));
    cache.writer.stop(Duration::from_secs(10));
    assert!(cache.warning().is_none());
    assert_eq!(logs.map(|log| log.exists()), [true, true, false]);
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

/// In the environment of the process that the next test starts.
const IS_LIMITED: &str = "PAGEWIRE_TEST_FILES_ARE_LIMITED";
const NAME: &str = "cache::disk::tests::limits::q6_a_log_that_is_larger_than_files_may_be_is_left_out_and_ends_no_process";

#[test]
fn q6_a_log_that_is_larger_than_files_may_be_is_left_out_and_ends_no_process() {
    if std::env::var_os(IS_LIMITED).is_none() {
        // The limit is one of a whole process, so another one has it: 64 KiB.
        let done = std::process::Command::new("bash")
            .args(["-c", "ulimit -f 64 && exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg(NAME)
            .env(IS_LIMITED, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success(), "{}: {said}", done.status);
        assert!(said.contains("1 passed"), "{said}");
        return;
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("log");
    let log_of = |pages: u32| {
        let mut log = ChangeLog::new(version(1));
        log.head = version(u64::from(pages));
        let changed = (1..=pages).map(|number| (page(number), version(u64::from(number))));
        log.changed_at.extend(changed);
        log
    };
    save(&path, &identity(1, 4096), log_of(100), Gap::GiveUp).unwrap();
    save(&path, &identity(1, 4096), log_of(10_000), Gap::GiveUp).unwrap();
    let kept = load(&path, &identity(1, 4096)).unwrap();
    assert_eq!(kept.head(), version(100));
}
