//! The limit of a directory (Q7): what its files take, and which of them make room.
//!
//! Files are sparse, so what counts is the room that they take, not their length. It is looked up whenever this process has filled one more
//! *step* of it.

use std::fs::{DirEntry, File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FallocateFlags, fallocate};

use super::directory::TEMPORARY;
use super::slots::HEADER_BYTES;
use crate::settings::DiskSettings;

/// A step is so much of the limit: by that much each further process may be beyond it.
pub const STEP_SHARE: u64 = 64;
/// Smallest piece that is taken out of a file.
const LEAST_PIECE: u64 = 1 << 20;
/// `st_blocks` counts these (stat(2)).
const BLOCK_BYTES: u64 = 512;
/// A file that was to be renamed long ago was left by a process that died, as it takes a few milliseconds.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Largest file of pages: with the step that is being filled and a log, old and new, it stays within the limit.
pub fn most_for_one(limit: u64) -> u64 {
    limit / 4 * 3
}

/// Largest log.
pub fn most_for_log(limit: u64) -> u64 {
    limit / 16
}

/// What this process may still fill before it looks again.
pub struct Room<'a> {
    settings: &'a DiskSettings,
    left: u64,
}

struct Taken {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl<'a> Room<'a> {
    /// Looks with the first page.
    pub fn new(settings: &'a DiskSettings) -> Self {
        Self { settings, left: 0 }
    }

    /// Before so many bytes of `own` are filled.
    pub fn take(&mut self, bytes: u64, own: &Path) -> Result<(), String> {
        if self.left < bytes {
            let step = (self.settings.bytes / STEP_SHARE).max(bytes);
            make_room(self.settings, own, step)?;
            self.left = step;
        }
        self.left -= bytes;
        Ok(())
    }
}

/// Makes the files take less than the limit by a step and the largest log.
fn make_room(settings: &DiskSettings, own: &Path, step: u64) -> Result<(), String> {
    let directory = &settings.directory;
    let cannot = |error| format!("can't list {}: {error}", directory.display());
    let mut files: Vec<Taken> = std::fs::read_dir(directory)
        .map_err(cannot)?
        .filter_map(|entry| taken(&entry.ok()?))
        .collect();
    let now = files.iter().map(|file| file.used).max();
    if let Some(now) = now {
        files.retain(|file| !is_forgotten(file, now));
    }
    let mut excess = files
        .iter()
        .map(|file| file.bytes)
        .sum::<u64>()
        .saturating_add(step)
        .saturating_sub(settings.bytes);
    // Its own last, then the one that was used last.
    files.sort_by_key(|file| (file.path == own, file.used));
    for file in files {
        if excess == 0 {
            return Ok(());
        }
        excess = excess.saturating_sub(shrink(&file, excess.max(step)));
    }
    Ok(())
}

fn taken(entry: &DirEntry) -> Option<Taken> {
    let path = entry.path();
    let name = entry.file_name();
    let name = name.to_str()?;
    let is_ours = name.starts_with(TEMPORARY) || super::is_name_of_ours(name);
    let metadata = entry.metadata().ok()?;
    if !is_ours || !metadata.is_file() {
        return None;
    }
    Some(Taken {
        bytes: room_of(&metadata),
        used: metadata.modified().ok()?,
        path,
    })
}

fn room_of(metadata: &Metadata) -> u64 {
    metadata.blocks().saturating_mul(BLOCK_BYTES)
}

/// Removes what a process left that died while it made a file, or between the removals of two.
fn is_forgotten(file: &Taken, now: SystemTime) -> bool {
    let age = now.duration_since(file.used).unwrap_or_default();
    let is_left = is_being_made(&file.path)
        || is_log(&file.path) && !file.path.with_extension("pages").exists();
    is_left && age > FORGOTTEN && std::fs::remove_file(&file.path).is_ok()
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "changes")
}

/// Whether it has no name of its own yet.
fn is_being_made(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(TEMPORARY))
}

/// Takes at least so many bytes out of a file, or all; returns how many. A process that has it open finds slots in which there is
/// nothing, or notices before it writes the next one that the file is gone.
fn shrink(file: &Taken, bytes: u64) -> u64 {
    if is_being_made(&file.path) {
        // Its maker would find it gone when it gives it its name.
        return 0;
    }
    if is_log(&file.path) {
        // Without it most of what the pages are worth is lost, and it is small beside them.
        return 0;
    }
    if file.bytes > bytes.saturating_add(LEAST_PIECE)
        && let Some(freed) = punch(&file.path, bytes)
    {
        return freed;
    }
    let log = file.path.with_extension("changes");
    let beside = std::fs::metadata(&log).map_or(0, |metadata| room_of(&metadata));
    match std::fs::remove_file(&file.path) {
        Err(_) => 0,
        Ok(()) if std::fs::remove_file(&log).is_ok() => file.bytes + beside,
        Ok(()) => file.bytes,
    }
}

/// Gives the room of a part of the file back. The part is another one each time.
fn punch(path: &Path, bytes: u64) -> Option<u64> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path).ok()?;
    let before = file.metadata().ok()?;
    let (room, length) = (room_of(&before), before.len());
    let piece = bytes.max(LEAST_PIECE);
    let mut freed = 0;
    let mut at = start(&file, length)?;
    // Round the file once at most: it may have holes already.
    let mut passed = 0;
    while freed < bytes && passed < length {
        if at >= length {
            at = HEADER_BYTES;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, flags, at, piece).ok()?;
        at += piece;
        passed += piece;
        let now = room_of(&file.metadata().ok()?);
        freed = room.saturating_sub(now);
    }
    Some(freed)
}

/// Somewhere in the file, by a number that no two moments have in common.
fn start(file: &File, length: u64) -> Option<u64> {
    let modified = file.metadata().ok()?.mtime_nsec().unsigned_abs();
    let body = length.checked_sub(HEADER_BYTES).filter(|body| *body > 0)?;
    let place = modified.wrapping_mul(0x9e37_79b9_7f4a_7c15) % body;
    // Whole blocks of the file system: less is only filled with zeros.
    Some(HEADER_BYTES + place / HEADER_BYTES * HEADER_BYTES)
}
