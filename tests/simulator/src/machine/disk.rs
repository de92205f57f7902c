//! The disk under the simulated machines: real files, in a folder of this operating-system process, of which is known beside them what a loss
//! of power would leave. What is written and synced is learnt from the functions of the C library ([`super::symbols`]).
//!
//! * **DISK1** A sector that was written since its file was last synced has, after a loss of power, any of the contents that it had
//!   since: sectors are whole, and each is by itself. So has the length.
//! * **DISK2** A sync covers what was written before it began. A write to a file that was opened to sync each write covers itself when it
//!   returns.
//! * **DISK3** What a sync that failed should have covered is covered by no later one, unless it is written again, and can be read all the same.
//! * **DISK4** Without a loss of power all that was written is there, and no more of it durable than before.
//! * **DISK5** The names of files are durable at once, and the engine's lock file (`lock.mdb`), which is written through a map, is not known.
//!
//! A process that was killed has its files open for ever: the next one gets a copy of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::ProcessId;
use crate::random::Random;

const SECTOR: usize = 512;
const LOCK_FILE: &str = "lock.mdb";

/// How well a process's disk does.
#[derive(Clone, Debug)]
pub struct DiskWeather {
    /// For everything below, and for how long it takes.
    pub random: Random,
    /// Of a hundred writes that are not synced by themselves, those that find no room.
    pub full_percent: u64,
    /// Of a thousand syncs, those that fail.
    pub failing_per_mille: u64,
    /// What then happens.
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
}

#[derive(Debug, Default)]
struct Disk {
    root: PathBuf,
    /// Which copy is in use.
    copies: u64,
    files: BTreeMap<PathBuf, Content>,
    weather: BTreeMap<ProcessId, DiskWeather>,
    /// Writes so far.
    writes: u64,
}

static DISK: Mutex<Option<Disk>> = Mutex::new(None);

fn with<T>(body: impl FnOnce(&mut Disk) -> T) -> Option<T> {
    DISK.lock().as_mut().map(body)
}

/// The folder of an operating-system process. As long for each of them, and those inside never see it: the working directory is what
/// differs between two runs of a seed.
fn folder_of(pid: u32) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = match memory.is_dir() {
        true => memory.to_owned(),
        false => std::env::temp_dir(),
    };
    parent.join(format!("pagewire-simulator-{pid:010}"))
}

/// This process has a disk from now on.
pub fn begin() -> std::io::Result<()> {
    remove_of(std::process::id());
    let root = folder_of(std::process::id());
    std::fs::create_dir(&root)?;
    let root = root.canonicalize()?;
    std::env::set_current_dir(&root)?;
    *DISK.lock() = Some(Disk {
        root,
        ..Disk::default()
    });
    Ok(())
}

/// Takes away what a process that has ended has left.
pub fn remove_of(pid: u32) {
    let _ = std::fs::remove_dir_all(folder_of(pid));
}

/// How the disk treats a process.
pub fn set_weather(process: ProcessId, weather: DiskWeather) {
    with(|disk| disk.weather.insert(process, weather));
}

/// The folder for the next process, with what the one before it has left, with or without a loss of power. Relative to the working
/// directory.
pub fn next_folder(random: &mut Random, power_was_lost: bool) -> std::io::Result<PathBuf> {
    let mut disk = DISK.lock();
    let Some(disk) = disk.as_mut() else {
        return Err(std::io::Error::other("there is no disk"));
    };
    let before = disk.root.join(disk.copies.to_string());
    disk.copies += 1;
    let relative = PathBuf::from(disk.copies.to_string());
    let next = disk.root.join(&relative);
    std::fs::create_dir(&next)?;
    if disk.copies == 1 {
        return Ok(relative);
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&before)? {
        names.push(entry?.file_name());
    }
    names.sort();
    for name in names {
        let (old, new) = (before.join(&name), next.join(&name));
        let there = std::fs::read(&old)?;
        if name == LOCK_FILE {
            if !power_was_lost {
                std::fs::write(new, there)?;
            }
            continue;
        }
        let mut content = disk.files.remove(&old).unwrap_or_default();
        if content.now != there {
            return Err(std::io::Error::other(format!(
                "{} was written in a way that is not seen",
                old.display()
            )));
        }
        if power_was_lost {
            content.lose_power(random);
        }
        std::fs::write(&new, &content.now)?;
        disk.files.insert(new, content);
    }
    disk.files.retain(|path, _| !path.starts_with(&before));
    std::fs::remove_dir_all(before)?;
    Ok(relative)
}

/// Of an open file, if it is on the disk.
pub fn path_of(fd: i32) -> Option<PathBuf> {
    let root = with(|disk| disk.root.clone())?;
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let is_ours = path.starts_with(&root) && path.file_name()? != LOCK_FILE;
    is_ours.then_some(path)
}

/// Whether a write or a change of the length finds room.
pub fn has_room() -> bool {
    let process = super::process();
    with(|disk| {
        let Some(weather) = disk.weather.get_mut(&process) else {
            return true;
        };
        !weather.random.percent(weather.full_percent)
    })
    .unwrap_or(true)
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
    with(|disk| {
        if let Some(content) = disk.files.get_mut(path) {
            content.sync(|at| at == write);
            // A length that another write made is part of it.
            content.durable_length = content.durable_length.max(end);
        }
    });
    pause();
}

/// A sync. `false` where it fails.
pub fn sync(path: &Path) -> bool {
    let until = with(|disk| disk.writes).unwrap_or(0);
    pause();
    let process = super::process();
    let failed = with(|disk| {
        let weather = disk.weather.get_mut(&process)?;
        if weather.random.below(1000) >= weather.failing_per_mille {
            return None;
        }
        Some(weather.failed)
    });
    if let Some(failed) = failed.flatten() {
        super::trace(format_args!("a sync fails"));
        with(|disk| {
            if let Some(content) = disk.files.get_mut(path) {
                content.lose(until);
            }
        });
        failed(process);
        return false;
    }
    with(|disk| {
        if let Some(content) = disk.files.get_mut(path) {
            content.sync(|at| at <= until);
        }
    });
    pause();
    true
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
        for was in self.sectors.values_mut().flatten() {
            was.lost |= was.at <= until;
        }
        for was in &mut self.lengths {
            was.lost |= was.at <= until;
        }
    }

    /// DISK1.
    fn lose_power(&mut self, random: &mut Random) {
        let how = random.below(3);
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
