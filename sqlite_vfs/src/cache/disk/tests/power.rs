//! Loss of power (Q2, Q3, Q5): nothing of the cache is ever synced, so that afterwards the disk may have of each sector of a file any
//! content that it ever had, or none that anybody wrote; each length; and under each name any file that ever had it, or none. Whatever that
//! makes, opening the cache gives pages as they were or pages to be read again, without a panic, soon.
//!
//! Small caches are filled by the real thread, process after process, with versions, page sizes, incarnations, replaced and removed files. Within each,
//! behind pages that were written, and after each the directory is looked at, sector by sector: what was seen is what may be left. `PAGEWIRE_LONG_TESTS=1` makes it long, `SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::*;

const SECTOR: usize = 512;
/// A process with the disk cache has opened it and looked at everything within this, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(10);

/// Small and repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, most: usize) -> usize {
        self.next() as usize % most
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// A database as the server has it: which pages each version changed, from version 1 on.
struct Truth {
    incarnation: u8,
    database: u8,
    pages: u32,
    changed: Vec<BTreeSet<u32>>,
}

impl Truth {
    fn new(incarnation: u8, database: u8, pages: u32) -> Self {
        Self {
            incarnation,
            database,
            pages,
            changed: vec![(1..=pages).collect()],
        }
    }

    fn head(&self) -> u64 {
        self.changed.len() as u64
    }

    fn commit(&mut self, random: &mut Random) {
        let count = 1 + random.below(3);
        let pages = (0..count).map(|_| 1 + random.below(self.pages as usize) as u32);
        self.changed.push(pages.collect());
    }

    /// The newest version up to `at` that changed the page.
    fn last_change(&self, number: u32, at: u64) -> u64 {
        let mut versions = self.changed[..at as usize].iter();
        versions.rposition(|pages| pages.contains(&number)).unwrap() as u64 + 1
    }

    /// No two databases, and no two incarnations, have anything in common.
    fn content(&self, number: u32, from: u64, page_bytes: usize) -> Bytes {
        let whose = u32::from(self.incarnation) << 24 | u32::from(self.database) << 16;
        content(whose | number, from, page_bytes)
    }

    /// What a process knows that has come when the version was `since`.
    fn log(&self, since: u64) -> ChangeLog {
        let mut log = ChangeLog::new(version(since));
        for (at, pages) in (1_u64..).zip(&self.changed) {
            if at > since {
                let pages = pages.iter().map(|number| page(*number)).collect();
                log.advance(version(at), &Changes::Pages(pages));
            }
        }
        log
    }

    fn assert_log(&self, log: &ChangeLog) {
        assert!(log.head().get() <= self.head(), "a version that never was");
        for number in 1..=self.pages {
            for at in 1..=log.head().get() {
                for known in 1..=at {
                    let is_true = self.last_change(number, at) <= known;
                    let is_said = log.unchanged(page(number), version(known), version(at));
                    assert!(is_true || !is_said, "page {number}: {known} to {at}");
                }
            }
        }
    }
}

/// Attaches one database of a truth.
fn come(
    cache: &DiskCache,
    truth: &Truth,
    page_bytes: u32,
    since: u64,
) -> (Arc<DiskFile>, Option<ChangeLog>) {
    let attached = cache.attach(
        Incarnation::from_bytes([truth.incarnation; 16]),
        DatabaseId::from_bytes([truth.database; 16]),
        size(page_bytes),
        CacheKey(u64::from(truth.database) << 32 | u64::from(page_bytes)),
        Arc::new(RwLock::new(truth.log(since))),
    );
    attached.unwrap_or_else(|| panic!("off: {}", cache.trouble.reason()))
}

/// A process: it opens a database, reads some pages and commits, and ends with all of it written. `seen` is told whenever something may be there
/// that will be overwritten: a slot by another page, a log by the next one.
fn process(
    directory: &Path,
    bytes: u64,
    truth: &mut Truth,
    page_bytes: u32,
    random: &mut Random,
    mut seen: impl FnMut(),
) -> u64 {
    let before = DISK.read().written;
    let cache = cache(directory, bytes);
    // It may have been suspended since, with what it knew then.
    let known = 1 + random.below(truth.head() as usize) as u64;
    let (file, _) = come(&cache, truth, page_bytes, known);
    if random.one_in(2) {
        truth.commit(random);
        *file.log.write() = truth.log(known);
    }
    if random.one_in(8) {
        file.log_is_too_old();
    }
    for _ in 0..1 + random.below(6) {
        let number = 1 + random.below(truth.pages as usize) as u32;
        let upto = match random.one_in(4) {
            true => 1 + random.below(truth.head() as usize) as u64,
            false => truth.head(),
        };
        let from = truth.last_change(number, upto);
        let content = truth.content(number, from, page_bytes as usize);
        file.offer(page(number), version(from), version(upto), &content);
        // Else it is written together with the next one, which is as good.
        if random.one_in(4) {
            let begun = Instant::now();
            while !cache.writer.is_idle() {
                assert!(begun.elapsed() < SOON, "it never ends to write");
                std::thread::yield_now();
            }
            seen();
        }
    }
    file.detach();
    cache.writer.stop(Duration::from_secs(60));
    seen();
    DISK.read().written - before
}

/// Everything true: answers how many pages were found, and whether the log was.
fn look(cache: &DiskCache, truth: &Truth, page_bytes: u32) -> (usize, bool) {
    let (file, found) = come(cache, truth, page_bytes, truth.head());
    let mut logs = vec![truth.log(truth.head())];
    if let Some(log) = &found {
        truth.assert_log(log);
        let mut joined = truth.log(truth.head());
        joined.join(log);
        truth.assert_log(&joined);
        logs.extend([log.clone(), joined]);
    }
    let mut pages = 0;
    for number in 1..=truth.pages + 1 {
        let Some(there) = file.read(page(number)) else {
            continue;
        };
        pages += 1;
        for at in 1..=truth.head() {
            let held = logs
                .iter()
                .any(|log| there.holds(page(number), version(at), log));
            if held {
                let right =
                    truth.content(number, truth.last_change(number, at), page_bytes as usize);
                assert!(
                    there.0.content == right,
                    "page {number} of version {at} is wrong"
                );
            }
        }
    }
    (pages, found.is_some())
}

/// A file, under whatever names, with all that each of its sectors was seen to be.
struct Seen {
    /// Held, so that no other file gets its number.
    _file: File,
    sectors: Vec<Vec<(usize, Vec<u8>)>>,
    lengths: Vec<usize>,
}

/// What was seen of a directory, moment by moment.
#[derive(Default)]
struct Recording {
    moment: usize,
    files: BTreeMap<u64, Seen>,
    /// Which files had a name; the last one now, where there is one.
    names: BTreeMap<String, Vec<Option<u64>>>,
}

impl Recording {
    fn look(&mut self, directory: &Path) {
        self.moment += 1;
        let mut now = BTreeMap::new();
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            assert!(is_name_of_ours(&name), "{name} was left");
            let number = entry.metadata().unwrap().ino();
            now.insert(name, number);
            let bytes = fs::read(entry.path()).unwrap();
            let seen = self.files.entry(number).or_insert_with(|| Seen {
                _file: File::open(entry.path()).unwrap(),
                sectors: Vec::new(),
                lengths: Vec::new(),
            });
            seen.lengths.push(bytes.len());
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if seen.sectors.len() == index {
                    // What was never written is zeros.
                    seen.sectors.push(vec![(0, vec![0; SECTOR])]);
                }
                let mut whole = sector.to_vec();
                whole.resize(SECTOR, 0);
                let known = &mut seen.sectors[index];
                if known.last().is_none_or(|(_, last)| *last != whole) {
                    known.push((self.moment, whole));
                }
            }
        }
        for name in now.keys() {
            self.names.entry(name.clone()).or_default();
        }
        for (name, had) in &mut self.names {
            let has = now.get(name).copied();
            if had.last() != Some(&has) {
                had.push(has);
            }
        }
    }

    /// One of the disks that a loss of power now may leave.
    fn cut(&self, directory: &Path, random: &mut Random) {
        fs::create_dir(directory).unwrap();
        let all: Vec<u64> = self.files.keys().copied().collect();
        let lasts = random.one_in(8);
        for (name, had) in &self.names {
            let number = match random.below(8) {
                _ if lasts => *had.last().unwrap(),
                0..5 => *had.last().unwrap(),
                // One that is gone, or none yet.
                5 | 6 => *random.of(had),
                // Of another name.
                _ => Some(*random.of(&all)),
            };
            if let Some(number) = number {
                self.put(&directory.join(name), number, random);
            }
        }
        if random.one_in(4) {
            // One that was being made.
            let number = *random.of(&all);
            self.put(&directory.join(".making-x"), number, random);
        }
    }

    fn put(&self, path: &Path, number: u64, random: &mut Random) {
        let seen = &self.files[&number];
        let mut bytes = Vec::with_capacity(seen.sectors.len() * SECTOR);
        // None, some or many sectors that nobody has written.
        let trash = *random.of(&[usize::MAX, usize::MAX, 64, 8]);
        // Sectors of one moment beside each other, of some, or of as many as there are sectors.
        let change = *random.of(&[usize::MAX, 16, 4, 1]);
        let mut at = self.moment - random.below(2);
        for sector in &seen.sectors {
            if random.one_in(change) {
                at = random.below(self.moment + 1);
            }
            let of_then = sector.partition_point(|(moment, _)| *moment <= at);
            let start = bytes.len();
            bytes.extend_from_slice(&sector[of_then.saturating_sub(1)].1);
            if random.one_in(trash) {
                match random.below(3) {
                    0 => bytes[start..].fill(0),
                    1 => bytes[start..]
                        .iter_mut()
                        .for_each(|byte| *byte = random.next() as u8),
                    // Another sector of its file.
                    _ => {
                        let other = random.below(start / SECTOR + 1) * SECTOR;
                        bytes.copy_within(other..other + SECTOR, start);
                    }
                }
            }
        }
        if trash < usize::MAX && random.one_in(2) && bytes.len() > 80 * SECTOR {
            // Slots of 552 bytes lie in the same part of a sector again after 69 of these: whole ones, in the place of others.
            let from = random.below(bytes.len() / SECTOR - 75) * SECTOR;
            bytes.copy_within(from..from + 5 * SECTOR, from + 69 * SECTOR);
        }
        let length = match random.below(4) {
            0 | 1 => *seen.lengths.last().unwrap(),
            2 => *random.of(&seen.lengths),
            _ => random.below(bytes.len() + SECTOR),
        };
        bytes.resize(length, 0);
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        std::io::Write::write_all(&mut file.unwrap(), &bytes).unwrap();
    }
}

/// Databases with their page sizes, in a cache of so many bytes.
struct Plan {
    bytes: u64,
    truths: Vec<(Truth, Vec<u32>)>,
    processes: usize,
    images: usize,
}

fn home() -> TempDir {
    match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn lose_power(mut plan: Plan, random: &mut Random) {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    // Those of the thread that writes, too.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        hook(info);
    }));
    let home = home();
    let directory = home.path().join("cache");
    fs::DirBuilder::new().create(&directory).unwrap();
    let mut recording = Recording::default();
    let mut written = 0;
    for _ in 0..plan.processes {
        let count = plan.truths.len();
        let (truth, sizes) = &mut plan.truths[random.below(count)];
        let page_bytes = *random.of(sizes);
        let seen = || recording.look(&directory);
        written += process(&directory, plan.bytes, truth, page_bytes, random, seen);
    }
    let gone = recording.names.values().flatten().flatten().count();
    println!(
        "{written} pages written, {} moments, {} files under {} names, {gone} times",
        recording.moment,
        recording.files.len(),
        recording.names.len()
    );
    // A process that is killed loses nothing that it wrote: there is something that a loss of power may take.
    let all = |directory: &Path, random: &mut Random, goes_on: bool| {
        let begun = Instant::now();
        let cache = cache(directory, plan.bytes);
        let (mut pages, mut logs) = (0, 0);
        for (truth, sizes) in &plan.truths {
            for page_bytes in sizes {
                let (found, has_log) = look(&cache, truth, *page_bytes);
                pages += found;
                logs += usize::from(has_log);
            }
        }
        if goes_on {
            let (truth, sizes) = random.of(&plan.truths);
            let (file, _) = come(&cache, truth, sizes[0], truth.head());
            for number in 1..=truth.pages {
                let from = truth.last_change(number, truth.head());
                let content = truth.content(number, from, sizes[0] as usize);
                file.offer(page(number), version(from), version(truth.head()), &content);
            }
            file.detach();
        }
        cache.writer.stop(Duration::from_secs(60));
        assert_eq!(cache.warning(), None);
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        (pages, logs)
    };
    let (pages, logs) = all(&directory, random, false);
    println!("at the end {pages} pages and {logs} logs are there");
    assert!(pages > 4 && logs > 1);
    let (mut hits, mut logs, mut empty) = (0, 0, 0);
    let is_long = std::env::var_os("PAGEWIRE_LONG_TESTS").is_some();
    let images = plan.images * if is_long { 400 } else { 1 };
    for turn in 0..images {
        let path = home.path().join("cut");
        recording.cut(&path, random);
        let found = all(&path, random, turn % 4 == 0);
        hits += found.0;
        logs += found.1;
        empty += usize::from(found.0 == 0);
        if turn % 4 == 0 {
            // What was written over it.
            all(&path, random, false);
        }
        assert_eq!(PANICS.load(Ordering::SeqCst), 0);
        fs::remove_dir_all(&path).unwrap();
    }
    println!("{images} disks: {hits} pages and {logs} logs were found, nothing on {empty}");
    assert!(
        hits > images && logs > images / 10,
        "nothing was found that could be wrong"
    );
}

#[expect(clippy::disallowed_methods, reason = "repeats a run")]
fn random() -> Random {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 0x5eed);
    println!("SEED={seed}");
    Random(seed | 1)
}

#[test]
fn q5_a_loss_of_power_leaves_pages_as_they_were_or_to_be_read_again() {
    let truths = vec![
        (Truth::new(1, 1, 12), vec![512, 8192]),
        (Truth::new(1, 2, 90), vec![512]),
        (Truth::new(2, 1, 12), vec![512]),
    ];
    let plan = Plan {
        // Each of these files has its place only beside few of the others.
        bytes: 160 << 10,
        truths,
        processes: 120,
        images: 250,
    };
    lose_power(plan, &mut random());
}

/// Files of which parts are given back to the file system while they are used (Q7).
#[test]
fn q7_a_loss_of_power_while_files_make_room_leaves_pages_as_they_were() {
    let truths = vec![
        (Truth::new(1, 1, 60), vec![65_536]),
        (Truth::new(1, 2, 60), vec![65_536]),
    ];
    let plan = Plan {
        bytes: 4 << 20,
        truths,
        processes: 40,
        images: 20,
    };
    lose_power(plan, &mut random());
}
