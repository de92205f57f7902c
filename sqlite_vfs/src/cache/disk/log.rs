//! The change log of one database as a file (Q3).

use std::io::{Read as _, Write as _};
use std::path::Path;

use pagewire_proto::{PageNumber, Version};

use super::slot::{checksum, field};
use super::{ChangeLog, Identity, directory};
use crate::cache::MAX_LOGGED_PAGES;

const MAGIC: &[u8; 16] = b"pagewire log 1\n\0";
/// Magic, the digest of the identity, since, head, number of pages.
const HEADER_BYTES: usize = 16 + 32 + 8 + 8 + 4;
/// A page and the version that changed it last.
const PAGE_BYTES: usize = 12;
const SUM_BYTES: usize = 16;
/// Largest file that is read.
const MAX_BYTES: u64 = (HEADER_BYTES + MAX_LOGGED_PAGES * PAGE_BYTES + SUM_BYTES) as u64;
/// A log that ends so many versions before ours is given up for ours: the server would hardly bridge the gap.
const WORTH_BRIDGING: u64 = 2048;

/// What becomes of a log in the file that ends before ours begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The next process may ask what happened in between: ours would make all older slots worthless.
    MayBeBridged,
    /// The server has said that it can't tell.
    GiveUp,
}

/// The log in the file, if there is one for this identity.
pub fn load(path: &Path, identity: &Identity) -> Option<ChangeLog> {
    let file = directory::open(path).ok()??;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).ok()?;
    decode(&bytes, identity)
}

/// Brings the file up to what is known here, and keeps what it knows beyond that.
pub fn save(path: &Path, identity: &Identity, mut log: ChangeLog, gap: Gap) -> Result<(), String> {
    if let Some(found) = load(path, identity) {
        let there = found.head();
        if found.since() <= log.since() && there >= log.head() {
            return Ok(());
        }
        let behind = log.head().get().saturating_sub(there.get());
        let may_be_bridged = gap == Gap::MayBeBridged && behind <= WORTH_BRIDGING;
        if !log.join(&found) && (there >= log.head() || may_be_bridged) {
            return Ok(());
        }
    }
    if size(&log) > directory::largest_file() {
        // The one that is there stays, and with it what it vouches for.
        return Ok(());
    }
    let mut fresh = directory::temporary(path)?;
    fresh
        .write_all(&encode(&log, identity))
        .and_then(|()| fresh.persist(path).map_err(|error| error.error))
        .map(drop)
        .map_err(|error| format!("can't write {}: {error}", path.display()))
}

/// Bytes of the file of a log.
pub fn size(log: &ChangeLog) -> u64 {
    (HEADER_BYTES + log.changed_at.len() * PAGE_BYTES + SUM_BYTES) as u64
}

pub(super) fn encode(log: &ChangeLog, identity: &Identity) -> Vec<u8> {
    let pages = log.changed_at.len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + pages * PAGE_BYTES + SUM_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&identity.digest());
    bytes.extend_from_slice(&log.since().get().to_le_bytes());
    bytes.extend_from_slice(&log.head().get().to_le_bytes());
    bytes.extend_from_slice(&(pages as u32).to_le_bytes());
    for (page, version) in &log.changed_at {
        bytes.extend_from_slice(&page.get().to_le_bytes());
        bytes.extend_from_slice(&version.get().to_le_bytes());
    }
    let sum = checksum(identity.seed(), &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

pub(super) fn decode(bytes: &[u8], identity: &Identity) -> Option<ChangeLog> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
    let (header, pages) = body.split_at_checked(HEADER_BYTES)?;
    let count = u32::from_le_bytes(field(header, HEADER_BYTES - 4)) as usize;
    let is_whole = &header[..16] == MAGIC
        && header[16..48] == identity.digest()
        && pages.len() == count.checked_mul(PAGE_BYTES)?
        && sum == checksum(identity.seed(), body);
    if !is_whole {
        return None;
    }
    let since = Version::new(u64::from_le_bytes(field(header, 48)));
    let head = Version::new(u64::from_le_bytes(field(header, 56)));
    let mut log = ChangeLog::new(since);
    if head < since {
        return None;
    }
    log.head = head;
    for entry in pages.chunks_exact(PAGE_BYTES) {
        let page = PageNumber::try_from(u32::from_le_bytes(field(entry, 0))).ok()?;
        let version = Version::new(u64::from_le_bytes(field(entry, 4)));
        if version > head {
            return None;
        }
        log.changed_at.insert(page, version);
    }
    Some(log)
}
