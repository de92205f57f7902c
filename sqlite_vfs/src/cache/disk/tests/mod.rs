//! A test for each invariant of the disk cache that needs no server, by its letter and number; the others are in `tests/it/disk_cache`.

mod facts;
mod limits;
mod power;

use std::path::Path;

use pagewire_proto::Changes;
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
