//! The disk under the simulated machines: real files, in a folder of this operating-system process, of which is known beside them what a loss
//! of power would leave. What is written and synced is learnt from the functions of the C library ([`super::symbols`]).
//!
//! * **DISK1** A sector that was written since its file was last synced has, after a loss of power, any of the contents that it had
//!   since: sectors are whole, and each is by itself. So has the length.
//! * **DISK2** A sync covers what was written before it began. A write to a file that was opened to sync each write covers itself when it
//!   returns.
//! * **DISK3** What a sync that failed should have covered is covered by no later one, unless it is written again, and can be read all the same. Each
//!   open file is told of it once, as on Linux: one that was opened later is not.
//! * **DISK4** Without a loss of power all that was written is there, and no more of it durable than before.
//! * **DISK5** A name that was made, or taken away, since its folder was last synced is there or not after a loss of power, whatever was done to
//!   what it names. The engine's lock file (`lock.mdb`), which is written through a map, is not known.
//! * **DISK6** What makes a file longer may find no room; what is written again does too where the disk writes nothing in place (btrfs, ZFS).
//! * **DISK7** What changes a file or a name in a way that is not learnt, by another function or by none, is noticed when the next process starts,
//!   and at the end.
//!
//! A process that was killed has its files open for ever: the next one gets a copy of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::ProcessId;
use crate::counts::{Event, count};
use crate::random::Random;

const SECTOR: usize = 512;
const LOCK_FILE: &str = "lock.mdb";

/// How well a process's disk does.
#[derive(Clone, Debug)]
pub struct DiskWeather {
    /// For everything below, and for how long it takes.
    pub random: Random,
    /// Of a hundred writes that need room, those that find none.
    pub full_percent: u64,
    /// Nothing is written in place (DISK6).
    pub copies_on_write: bool,
    /// Of a thousand syncs, those that fail.
    pub failing_per_mille: u64,
    /// What happens where one fails, or where what is written again finds no room.
    pub failed: fn(ProcessId),
}

/// What a sector had, and when.
#[derive(Debug)]
struct Was<T> {
    at: u64,
    /// DISK3.
    lost: bool,
    value: T,
}

/// A file.
#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    /// Whole sectors; those beyond the end are zeros.
    durable: Vec<u8>,
    durable_length: usize,
    /// Since they were durable, oldest first.
    sectors: BTreeMap<usize, Vec<Was<Vec<u8>>>>,
    lengths: Vec<Was<usize>>,
    /// Syncs of it that failed.
    failures: u64,
}

/// A file that was taken away.
#[derive(Debug)]
struct Removed {
    at: u64,
    path: PathBuf,
    content: Content,
}

#[derive(Debug, Default)]
struct Disk {
    root: PathBuf,
    /// Which copy is in use.
    copies: u64,
    files: BTreeMap<PathBuf, Content>,
    /// What was in the folder when it was last synced.
    names: BTreeSet<PathBuf>,
    /// Since then, oldest first.
    removed: Vec<Removed>,
    /// Of open files: how many failures of its syncs each knows (DISK3).
    known_failures: BTreeMap<c_int, (PathBuf, u64)>,
    weather: BTreeMap<ProcessId, DiskWeather>,
    /// Writes so far.
    writes: u64,
}

static DISK: Mutex<Option<Disk>> = Mutex::new(None);

fn with<T>(body: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    DISK.lock().as_mut().map(body)
}

/// Bytes that have to be free in memory for a disk to be there: a container may have 64 MiB of it.
const ENOUGH_BYTES: u64 = 1 << 30;

/// Where the folders of operating-system processes may be: in memory, or where there is little of it, on a disk.
fn parents() -> [PathBuf; 2] {
    [PathBuf::from("/dev/shm"), std::env::temp_dir()]
}

fn has_enough(folder: &Path) -> bool {
    rustix::fs::statvfs(folder)
        .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= ENOUGH_BYTES)
}

/// The folder of an operating-system process. As long for each of them, and those inside never see it: the working directory is what
/// differs between two runs of a seed.
fn folder_of(parent: &Path, pid: u32) -> PathBuf {
    parent.join(format!("pagewire-simulator-{pid:010}"))
}

/// Where the disk caches of clients are, beside what is known: they are files as any other (`client/cache.rs`).
pub const CACHES: &str = "cache";

/// This process has a folder of its own from now on, in which it is.
pub fn begin_folder() -> std::io::Result<PathBuf> {
    let pid = std::process::id();
    super::child::aside(|| remove_of(pid));
    let [memory, disk] = parents();
    let parent = if has_enough(&memory) { memory } else { disk };
    let root = folder_of(&parent, pid);
    std::fs::create_dir(&root)?;
    let root = root.canonicalize()?;
    std::env::set_current_dir(&root)?;
    Ok(root)
}

/// As a process does that was killed.
#[cfg(test)]
pub fn leave_something_of(pid: u32) {
    for name in ["store", "cache-0", "cache-1"] {
        let folder = folder_of(&parents()[0], pid).join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("data"), name).expect("a file");
    }
}

/// There is a disk in it.
pub fn begin() -> std::io::Result<()> {
    let root = begin_folder()?;
    *DISK.lock() = Some(Disk {
        root,
        ..Disk::default()
    });
    Ok(())
}

/// Takes away what a process that has ended has left.
pub fn remove_of(pid: u32) {
    for parent in parents() {
        let _ = std::fs::remove_dir_all(folder_of(&parent, pid));
    }
}

/// What is in the folder that was not learnt (DISK7).
pub fn unseen() -> Option<String> {
    with(|disk| {
        let folder = disk.folder();
        let checked = names_in(&folder).and_then(|there| disk.check(&folder, &there));
        checked.err().map(|error| error.to_string())
    })
    .flatten()
}

/// How the disk treats a process.
pub fn set_weather(process: ProcessId, weather: DiskWeather) {
    with(|disk| disk.weather.insert(process, weather));
}

/// The folder for the next process, with what the one before it has left, with or without a loss of power. Relative to the working
/// directory.
pub fn next_folder(random: &mut Random, power_was_lost: bool) -> std::io::Result<PathBuf> {
    let mut disk = DISK.lock();
    match disk.as_mut() {
        Some(disk) => disk.next(random, power_was_lost),
        None => Err(std::io::Error::other("there is no disk")),
    }
}

/// Where the disk is; `None` for who moves its files at this moment, which is nobody that is simulated (M1).
fn root() -> Option<PathBuf> {
    Some(DISK.try_lock()?.as_ref()?.root.clone())
}

/// Of an open file, if it is on the disk.
pub fn path_of(fd: c_int) -> Option<PathBuf> {
    let root = root()?;
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    is_known(&root, &path).then_some(path)
}

fn is_known(root: &Path, path: &Path) -> bool {
    let Ok(within) = path.strip_prefix(root) else {
        return false;
    };
    let is_cache = within.to_string_lossy().starts_with(CACHES);
    !is_cache && path.file_name().is_some_and(|name| name != LOCK_FILE)
}

/// What a path names, if it is on the disk.
pub fn place_of(path: &Path) -> Option<PathBuf> {
    let root = root()?;
    let path = root.join(path);
    is_known(&root, &path).then_some(path)
}

/// A file was opened.
pub fn opened(fd: c_int, path: &Path) {
    with(|disk| {
        let known = disk.files.get(path).map_or(0, |content| content.failures);
        disk.known_failures.insert(fd, (path.to_owned(), known));
    });
}

/// Whether a write up to there finds room.
pub fn has_room(path: &Path, end: usize) -> bool {
    let process = super::process();
    let refused = with(|disk| {
        let grows = disk.files.get(path).is_none_or(|it| it.now.len() < end);
        let weather = disk.weather.get_mut(&process)?;
        let needs_room = grows || weather.copies_on_write;
        let is_full = needs_room && weather.random.percent(weather.full_percent);
        is_full.then_some((grows, weather.failed))
    });
    match refused.flatten() {
        None => true,
        Some((true, _)) => {
            count(Event::DiskFull);
            false
        }
        Some((false, failed)) => {
            super::trace(format_args!("what is written again finds no room"));
            count(Event::DiskFullInPlace);
            failed(process);
            false
        }
    }
}

/// Something was written, which is not durable yet. Answers its number.
pub fn written(path: &Path, offset: usize, bytes: &[u8]) -> u64 {
    with(|disk| {
        disk.writes += 1;
        let at = disk.writes;
        let content = disk.files.entry(path.to_owned()).or_default();
        content.write(at, offset, bytes);
        at
    })
    .unwrap_or(0)
}

/// A file has another length, which is not durable yet.
pub fn truncated(path: &Path, length: usize) {
    with(|disk| {
        disk.writes += 1;
        let at = disk.writes;
        let content = disk.files.entry(path.to_owned()).or_default();
        content.truncate(at, length);
    });
}

/// A write up to there that is synced by itself takes its time, before which it may be there or not.
pub fn sync_write(path: &Path, write: u64, end: usize) {
    pause();
    let lies = crate::defect::disk_lies();
    with(|disk| {
        if let Some(content) = disk.files.get_mut(path).filter(|_| !lies) {
            content.sync(|at| at == write);
            // A length that another write made is part of it.
            content.durable_length = content.durable_length.max(end);
        }
    });
    pause();
}

/// A file was taken away.
pub fn removed(path: &Path) {
    with(|disk| {
        disk.writes += 1;
        disk.removed.push(Removed {
            at: disk.writes,
            path: path.to_owned(),
            content: disk.files.remove(path).unwrap_or_default(),
        });
    });
}

/// A sync of a file or of the folder. `false` where it fails, or one failed that this open file was not told of.
pub fn sync(fd: c_int, path: &Path) -> bool {
    let until = with(|disk| disk.writes).unwrap_or(0);
    // That of the folder that it is in says nothing of names that are known.
    let folder = with(|disk| disk.folder());
    let names = (folder.as_deref() == Some(path)).then(|| names_in(path));
    pause();
    let process = super::process();
    let failed = with(|disk| {
        let weather = disk.weather.get_mut(&process)?;
        let fails = weather.random.below(1000) < weather.failing_per_mille;
        let failed = weather.failed;
        let is_told = match disk.files.get_mut(path) {
            None => fails,
            Some(content) => {
                if fails {
                    content.lose(until);
                }
                let now = content.failures;
                let (of, known) = disk.known_failures.entry(fd).or_default();
                let is_told = fails || of == path && *known < now;
                (*of, *known) = (path.to_owned(), now);
                is_told
            }
        };
        is_told.then_some(failed)
    });
    if let Some(failed) = failed.flatten() {
        super::trace(format_args!("a sync fails"));
        count(Event::SyncFailed);
        failed(process);
        return false;
    }
    if crate::defect::disk_lies() {
        pause();
        return true;
    }
    with(|disk| {
        if let Some(content) = disk.files.get_mut(path) {
            content.sync(|at| at <= until);
        }
        if let Some(Ok(names)) = names {
            disk.sync_names(names, until);
        }
    });
    pause();
    true
}

/// In their order; without the file that is not known.
fn names_in(folder: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() != LOCK_FILE {
            names.insert(entry.path());
        }
    }
    Ok(names)
}

impl Disk {
    /// The one that is in use.
    fn folder(&self) -> PathBuf {
        self.root.join(self.copies.to_string())
    }

    fn sync_names(&mut self, names: BTreeSet<PathBuf>, until: u64) {
        self.names = names;
        self.removed.retain(|it| it.at > until);
    }

    /// See [`next_folder`].
    fn next(&mut self, random: &mut Random, power_was_lost: bool) -> std::io::Result<PathBuf> {
        let before = self.folder();
        self.copies += 1;
        let (relative, next) = (PathBuf::from(self.copies.to_string()), self.folder());
        std::fs::create_dir(&next)?;
        if self.copies == 1 {
            return Ok(relative);
        }
        let moved = |path: &Path| {
            path.file_name()
                .map_or(next.clone(), |name| next.join(name))
        };
        let there = names_in(&before)?;
        self.check(&before, &there)?;
        let mut files = std::mem::take(&mut self.files);
        let mut kept: BTreeMap<PathBuf, Content> = there
            .iter()
            .map(|path| (path.clone(), files.remove(path).unwrap_or_default()))
            .collect();
        let removed = std::mem::take(&mut self.removed);
        let names = std::mem::take(&mut self.names);
        if power_was_lost {
            kept = lose_names(kept, removed, &names, random);
            for content in kept.values_mut() {
                let before = content.now.clone();
                content.lose_power(random);
                if content.now != before {
                    count(Event::PowerTore);
                }
            }
            self.names = kept.keys().map(|path| moved(path)).collect();
        } else {
            let lock = before.join(LOCK_FILE);
            if lock.exists() {
                std::fs::copy(lock, next.join(LOCK_FILE))?;
            }
            self.names = names.iter().map(|path| moved(path)).collect();
            let removed = removed.into_iter();
            self.removed = removed
                .map(|it| Removed {
                    path: moved(&it.path),
                    ..it
                })
                .collect();
        }
        for (path, content) in kept {
            let path = moved(&path);
            std::fs::write(&path, &content.now)?;
            self.files.insert(path, content);
        }
        std::fs::remove_dir_all(before)?;
        Ok(relative)
    }

    /// DISK7.
    fn check(&self, folder: &Path, there: &BTreeSet<PathBuf>) -> std::io::Result<()> {
        let unseen = |path: &Path, how: &str| {
            let path = path.display();
            Err(std::io::Error::other(format!(
                "{path} was {how} in a way that is not seen"
            )))
        };
        for path in there {
            let is_known = match self.files.get(path) {
                Some(content) => content.now == std::fs::read(path)?,
                // Whoever makes a file need not write to it.
                None => std::fs::metadata(path)?.len() == 0,
            };
            if !is_known {
                return unseen(path, "written");
            }
        }
        let known = self.files.keys().chain(&self.names);
        for path in known.filter(|path| path.starts_with(folder) && !there.contains(*path)) {
            let is_known = self.removed.iter().any(|it| it.path == *path);
            if !is_known || self.files.contains_key(path) {
                return unseen(path, "taken away");
            }
        }
        Ok(())
    }
}

/// DISK5: what is there after a loss of power, of what is there before it, of what was taken away, and of what was there at the last sync.
fn lose_names(
    there: BTreeMap<PathBuf, Content>,
    removed: Vec<Removed>,
    durable: &BTreeSet<PathBuf>,
    random: &mut Random,
) -> BTreeMap<PathBuf, Content> {
    let mut states: BTreeMap<PathBuf, Vec<Option<Content>>> = BTreeMap::new();
    for it in removed {
        let states = states.entry(it.path).or_default();
        states.extend([Some(it.content), None]);
    }
    for (path, content) in there {
        let states = states.entry(path.clone()).or_default();
        if states.is_empty() && !durable.contains(&path) {
            states.push(None);
        }
        states.push(Some(content));
    }
    let mut kept = BTreeMap::new();
    for (path, mut states) in states {
        let chosen = match states.len() {
            1 => 0,
            _ if crate::defect::disk_lies() => 0,
            count => usize::try_from(random.below(count as u64)).unwrap_or(0),
        };
        if let Some(content) = states.swap_remove(chosen) {
            kept.insert(path, content);
        }
    }
    kept
}

/// A text without how much room the file system really has, which is other every time: the store tells it where a write found none.
pub fn without_room(text: String) -> String {
    const TOLD: &str = " bytes are free";
    match text.split_once(TOLD) {
        Some((before, after)) => {
            let before = before.trim_end_matches(|byte: char| byte.is_ascii_digit());
            format!("{before}some{TOLD}{after}")
        }
        None => text,
    }
}

fn pause() {
    let process = super::process();
    let us = with(|disk| {
        let random = &mut disk.weather.get_mut(&process)?.random;
        let slow = random.percent(2);
        let us = random.between(20, 1_000);
        Some(if slow { us * 50 } else { us })
    });
    if let Some(us) = us.flatten() {
        super::sleep_ns(us * 1_000);
    }
}

fn sector(of: &[u8], index: usize) -> Vec<u8> {
    let mut sector = vec![0; SECTOR];
    if let Some(rest) = of.get(index * SECTOR..) {
        let length = rest.len().min(SECTOR);
        sector[..length].copy_from_slice(&rest[..length]);
    }
    sector
}

fn put(image: &mut Vec<u8>, index: usize, sector: &[u8]) {
    let end = (index + 1) * SECTOR;
    if image.len() < end {
        image.resize(end, 0);
    }
    image[index * SECTOR..end].copy_from_slice(sector);
}

impl Content {
    fn write(&mut self, at: u64, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if end > self.now.len() {
            self.now.resize(end, 0);
            self.lengths.push(Was {
                at,
                lost: false,
                value: end,
            });
        }
        self.now[offset..end].copy_from_slice(bytes);
        self.touch(at, offset, end);
    }

    fn truncate(&mut self, at: u64, length: usize) {
        let before = self.now.len();
        self.now.resize(length, 0);
        self.lengths.push(Was {
            at,
            lost: false,
            value: length,
        });
        // What is cut off reads as zeros where the file grows again.
        self.touch(at, length, before);
    }

    fn touch(&mut self, at: u64, from: usize, end: usize) {
        for index in from / SECTOR..end.div_ceil(SECTOR) {
            let value = sector(&self.now, index);
            self.sectors.entry(index).or_default().push(Was {
                at,
                lost: false,
                value,
            });
        }
    }

    /// What those writes left is durable.
    fn sync(&mut self, covers: impl Fn(u64) -> bool) {
        if let Some(length) = settle(&mut self.lengths, &covers) {
            self.durable_length = length;
        }
        let durable = &mut self.durable;
        self.sectors.retain(|index, was| {
            if let Some(value) = settle(was, &covers) {
                put(durable, *index, &value);
            }
            !was.is_empty()
        });
    }

    /// DISK3.
    fn lose(&mut self, until: u64) {
        self.failures += 1;
        for was in self.sectors.values_mut().flatten() {
            was.lost |= was.at <= until;
        }
        for was in &mut self.lengths {
            was.lost |= was.at <= until;
        }
    }

    /// DISK1.
    fn lose_power(&mut self, random: &mut Random) {
        let how = match crate::defect::disk_lies() {
            true => 0,
            false => random.below(3),
        };
        let mut choose = |count: usize| match how {
            // 0 is what is durable.
            0 => 0,
            1 => count,
            _ => usize::try_from(random.below(count as u64 + 1)).unwrap_or(0),
        };
        let mut image = std::mem::take(&mut self.durable);
        let mut length = self.durable_length;
        if let Some(chosen) = choose(self.lengths.len()).checked_sub(1) {
            length = self.lengths[chosen].value;
        }
        for (index, was) in &self.sectors {
            if let Some(chosen) = choose(was.len()).checked_sub(1) {
                put(&mut image, *index, &was[chosen].value);
            }
        }
        image.resize(length, 0);
        *self = Self {
            now: image.clone(),
            durable: image,
            durable_length: length,
            ..Self::default()
        };
    }
}

/// The newest that is covered, if it can be: it and the older ones are not loose any more.
fn settle<T>(was: &mut Vec<Was<T>>, covers: &impl Fn(u64) -> bool) -> Option<T> {
    let newest = was.iter().rposition(|was| covers(was.at))?;
    if was[newest].lost {
        return None;
    }
    was.drain(..=newest).next_back().map(|newest| newest.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that a file may have after a loss of power, as the first bytes of its sectors.
    fn images(make: impl Fn() -> Content) -> std::collections::BTreeSet<Vec<u8>> {
        (0..200)
            .map(|seed| {
                let mut content = make();
                content.lose_power(&mut Random::new(seed));
                assert_eq!(content.now.len(), content.durable_length);
                let sectors = content.now.chunks(SECTOR);
                sectors.map(|sector| sector[0]).collect()
            })
            .collect()
    }

    fn sectors(value: u8, count: usize) -> Vec<u8> {
        vec![value; count * SECTOR]
    }

    #[test]
    fn disk1_a_sector_has_what_it_had_since_the_sync_and_each_by_itself() {
        let found = images(|| {
            let mut content = Content::default();
            content.write(1, 0, &sectors(1, 2));
            content.sync(|_| true);
            content.write(2, 0, &sectors(2, 2));
            content.write(3, SECTOR, &sectors(3, 1));
            content
        });
        let expected = [1, 2].map(|a| [1, 2, 3].map(|b| vec![a, b]));
        assert_eq!(found, expected.into_iter().flatten().collect());
    }

    #[test]
    fn disk2_a_sync_covers_what_came_before_it_and_no_more() {
        let found = images(|| {
            let mut content = Content::default();
            content.write(1, 0, &sectors(1, 1));
            content.write(2, 0, &sectors(2, 1));
            content.sync(|at| at <= 1);
            content
        });
        assert_eq!(found, [vec![1], vec![2]].into());
    }

    #[test]
    fn disk3_what_a_failed_sync_has_lost_is_durable_once_it_is_written_again() {
        let lost = || {
            let mut content = Content::default();
            content.write(1, 0, &sectors(1, 1));
            content.sync(|_| true);
            content.write(2, 0, &sectors(2, 1));
            content.lose(2);
            content.sync(|_| true);
            content
        };
        assert_eq!(images(lost), [vec![1], vec![2]].into());
        let again = || {
            let mut content = lost();
            content.write(3, 0, &sectors(2, 1));
            content.sync(|_| true);
            content
        };
        assert_eq!(images(again), [vec![2]].into());
    }

    /// The folder of the first process, with two files in it that are durable, their names too.
    fn begun() -> (tempfile::TempDir, Disk, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let mut disk = Disk {
            root: home.path().to_owned(),
            ..Disk::default()
        };
        let folder = disk.next(&mut Random::new(1), false).unwrap();
        let folder = disk.root.join(folder);
        for name in ["a", "b"] {
            make(&mut disk, &folder.join(name), b"first");
        }
        disk.files.values_mut().for_each(|it| it.sync(|_| true));
        let names = names_in(&folder).unwrap();
        disk.sync_names(names, 0);
        (home, disk, folder)
    }

    fn make(disk: &mut Disk, path: &Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
        disk.writes += 1;
        let content = disk.files.entry(path.to_owned()).or_default();
        content.write(disk.writes, 0, bytes);
    }

    fn remove(disk: &mut Disk, path: &Path) {
        std::fs::remove_file(path).unwrap();
        disk.writes += 1;
        let (at, content) = (disk.writes, disk.files.remove(path).unwrap());
        let path = path.to_owned();
        disk.removed.push(Removed { at, path, content });
    }

    /// What may be there after a loss of power, by name.
    fn folders(change: impl Fn(&mut Disk, &Path)) -> BTreeSet<Vec<(String, Vec<u8>)>> {
        (0..50)
            .map(|seed| {
                let (_home, mut disk, folder) = begun();
                change(&mut disk, &folder);
                let next = disk.next(&mut Random::new(seed), true).unwrap();
                let names = names_in(&disk.root.join(next)).unwrap();
                assert_eq!(names, disk.names);
                let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
                let there = names.iter();
                there
                    .map(|path| (name(path), std::fs::read(path).unwrap()))
                    .collect()
            })
            .collect()
    }

    fn folder(names: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
        let names = names.iter();
        names
            .map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec()))
            .collect()
    }

    #[test]
    fn disk5_a_name_is_there_or_not_until_its_folder_is_synced() {
        let [a, b]: [(&str, &[u8]); 2] = [("a", b"first"), ("b", b"first")];
        let made = |disk: &mut Disk, at: &Path| {
            make(disk, &at.join("c"), b"third");
            disk.files.values_mut().for_each(|it| it.sync(|_| true));
        };
        let found = folders(made);
        assert_eq!(
            found,
            [folder(&[a, b]), folder(&[a, b, ("c", b"third")])].into()
        );
        let removed = |disk: &mut Disk, at: &Path| remove(disk, &at.join("b"));
        assert_eq!(folders(removed), [folder(&[a]), folder(&[a, b])].into());
        let made_again = |disk: &mut Disk, at: &Path| {
            removed(disk, at);
            make(disk, &at.join("b"), b"later");
            disk.files.values_mut().for_each(|it| it.sync(|_| true));
        };
        let later = ("b", &b"later"[..]);
        assert_eq!(
            folders(made_again),
            [folder(&[a]), folder(&[a, b]), folder(&[a, later])].into()
        );
        let synced = |disk: &mut Disk, at: &Path| {
            made(disk, at);
            removed(disk, at);
            let until = disk.writes;
            let names = names_in(at).unwrap();
            remove(disk, &at.join("a"));
            disk.sync_names(names, until);
        };
        let third = ("c", &b"third"[..]);
        assert_eq!(
            folders(synced),
            [folder(&[third]), folder(&[a, third])].into()
        );
    }

    #[test]
    fn disk7_what_is_done_behind_its_back_is_noticed_by_the_next_process() {
        use rustix::fs::{Mode, OFlags};
        let open = |path: &Path| rustix::fs::open(path, OFlags::RDWR, Mode::empty()).unwrap();
        let second = |path: &Path| path.with_file_name("b");
        type Way<'w> = (&'w str, &'w dyn Fn(&Path));
        let ways: [Way<'_>; 9] = [
            ("pwrite", &|path| {
                rustix::io::pwrite(open(path), b"x", 2).unwrap();
            }),
            ("pwritev", &|path| {
                let parts = [std::io::IoSlice::new(b"x")];
                rustix::io::pwritev(open(path), &parts, 2).unwrap();
            }),
            ("write", &|path| std::fs::write(path, b"other").unwrap()),
            ("fallocate", &|path| {
                rustix::fs::fallocate(open(path), rustix::fs::FallocateFlags::empty(), 0, 64)
                    .unwrap();
            }),
            ("ftruncate", &|path| {
                rustix::fs::ftruncate(open(path), 2).unwrap();
            }),
            ("rename", &|path| {
                std::fs::write(path, b"other").unwrap();
                std::fs::rename(path, second(path)).unwrap();
            }),
            ("rename to a new name", &|path| {
                std::fs::rename(path, path.with_file_name("new")).unwrap();
            }),
            ("unlink", &|path| std::fs::remove_file(path).unwrap()),
            ("link", &|path| {
                std::fs::hard_link(path, path.with_file_name("new")).unwrap();
            }),
        ];
        for (way, done) in ways {
            let (_home, mut disk, folder) = begun();
            done(&folder.join("a"));
            let next = disk.next(&mut Random::new(1), false);
            let told = next.is_err_and(|error| error.to_string().contains("is not seen"));
            assert!(told, "{way} is not noticed");
        }
        let (_home, mut disk, _) = begun();
        disk.next(&mut Random::new(1), false).unwrap();
    }

    #[test]
    fn what_was_cut_off_does_not_come_back_where_the_file_grows_again() {
        let found = images(|| {
            let mut content = Content::default();
            content.write(1, 0, &sectors(1, 2));
            content.sync(|_| true);
            content.truncate(2, SECTOR);
            content.truncate(3, 2 * SECTOR);
            content.sync(|_| true);
            content
        });
        assert_eq!(found, [vec![1, 0]].into());
    }
}
