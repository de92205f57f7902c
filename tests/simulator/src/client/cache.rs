//! The disk caches of clients: folders that outlive the processes that use them.
//!
//! A process that was killed leaves all that it had written. Where its machine was killed too, each sector that was written since the process
//! before it began, and each new file, is there or not: the library syncs none of it. And bits turn over. Whatever is left may only cost
//! reads: what is answered from it is looked at by the checks that everything has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::counts::{Event, count};
use crate::machine;
use crate::plan::{self, Caches};
use crate::random::Random;

const SECTOR: usize = 512;

/// What is in a folder.
type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Of each folder, what was in it when a process began.
static BEFORE: Mutex<BTreeMap<String, Files>> = Mutex::new(BTreeMap::new());
/// Places whose machine was killed since.
static LOST: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// The folder that the client processes of a place use, in the working directory.
fn folder(place: usize) -> Option<String> {
    match plan::get().caches {
        Caches::None => None,
        Caches::Each => Some(format!("{}-{place}", machine::disk::CACHES)),
        Caches::One => Some(machine::disk::CACHES.to_owned()),
    }
}

/// The same as the setting wants it: an absolute path, which is the same in each run.
pub fn setting(place: usize) -> Option<String> {
    folder(place).map(|folder| format!("/proc/self/cwd/{folder}"))
}

/// The machine of a place was killed.
pub fn lost_power(place: usize) {
    LOST.lock().insert(place);
}

/// A process begins at a place.
pub fn process_begins(place: usize, random: &mut Random) {
    let Some(folder) = folder(place) else { return };
    let power_was_lost = LOST.lock().remove(&place);
    let mut files = content(&folder);
    if !files.is_empty() {
        count(Event::CacheKept);
    }
    let mut all = BEFORE.lock();
    let before = all.entry(folder).or_default();
    // Others may be writing to a folder that all of them use.
    if power_was_lost && plan::get().caches == Caches::Each && tear(before, &mut files, random) {
        count(Event::CacheTorn);
    }
    if random.percent(25) && turn_bits_over(&mut files, random) {
        count(Event::CacheDamaged);
    }
    *before = files;
}

fn content(folder: &str) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Ok(bytes) = fs::read(entry.path()) {
            files.insert(entry.path(), bytes);
        }
    }
    files
}

/// What a loss of power leaves; whether that is less than there was.
fn tear(before: &Files, files: &mut Files, random: &mut Random) -> bool {
    let mut is_torn = false;
    let none = Vec::new();
    files.retain(|path, now| {
        let old = before.get(path);
        if old.is_none() && random.percent(30) {
            is_torn = true;
            let _ = fs::remove_file(path);
            return false;
        }
        let torn = torn(old.unwrap_or(&none), now, random);
        if torn != *now {
            is_torn = true;
            let _ = fs::write(path, &torn);
            *now = torn;
        }
        true
    });
    is_torn
}

/// Each sector, and the length, as it was or as it is.
fn torn(old: &[u8], now: &[u8], random: &mut Random) -> Vec<u8> {
    let mut torn = now.to_vec();
    for (number, sector) in torn.chunks_mut(SECTOR).enumerate() {
        let begin = number * SECTOR;
        let was: Vec<u8> = (begin..begin + sector.len())
            .map(|at| old.get(at).copied().unwrap_or(0))
            .collect();
        if was != *sector && random.percent(40) {
            sector.copy_from_slice(&was);
        }
    }
    if now.len() > old.len() && random.percent(30) {
        let more = random.below((now.len() - old.len()) as u64);
        torn.truncate(old.len() + usize::try_from(more).unwrap_or(0));
    }
    torn
}

/// Whether there was a bit to turn over.
fn turn_bits_over(files: &mut Files, random: &mut Random) -> bool {
    let paths: Vec<_> = files.keys().cloned().collect();
    if paths.is_empty() {
        return false;
    }
    for _ in 0..random.between(1, 30) {
        let path = random.one_of(&paths);
        let Some(bytes) = files.get_mut(path).filter(|bytes| !bytes.is_empty()) else {
            continue;
        };
        let at = usize::try_from(random.below(bytes.len() as u64)).unwrap_or(0);
        bytes[at] ^= 1 << random.below(8);
        let _ = fs::write(path, bytes);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_is_torn_as_a_whole_and_what_was_not_written_stays() {
        let (old, now) = (vec![1; 2 * SECTOR], {
            let mut now = vec![1; SECTOR];
            now.extend(vec![2; 3 * SECTOR]);
            now
        });
        let mut images = BTreeSet::new();
        for seed in 0..200 {
            let torn = torn(&old, &now, &mut Random::new(seed));
            assert_eq!(torn[..SECTOR], old[..SECTOR]);
            assert!(torn.len() >= old.len());
            for sector in torn.chunks_exact(SECTOR) {
                assert!(sector.iter().all(|byte| *byte == sector[0]));
            }
            images.insert(torn.chunks(SECTOR).map(|it| it[0]).collect::<Vec<_>>());
        }
        assert!(images.contains(&vec![1, 2, 2, 2]) && images.contains(&vec![1, 1, 0, 2]));
    }
}
