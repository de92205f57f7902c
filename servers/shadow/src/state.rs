//! What a state of a database says, and how a version is made of the one before: pure functions, no calls.
//!
//! A version has the pages of the entries that are of it; of two entries with a page the later one in the list holds.
//! Nothing that a version reads is changed by a later one: what a version takes away gets `removed`, what it cuts is
//! removed and named again with other bounds. So a state says everything about every version from `oldest` to the head.
//!
//! A root has room for so many entries of old versions. Where readers keep more, the entries of the oldest ones move to an *archive*, a
//! value under a key of its own that never changes: all entries of some consecutive versions, in their order. It goes as a whole when
//! none of its versions is read any more. The head is in no archive, so what a merge changes is not either.

use bytes::Bytes;
use pagewire_proto::{CommitId, Epoch, PageCount, PageSize, Snapshot, Version};
use pagewire_server::store::{COMMIT_RECORD_TTL, StoreError};

use crate::cells::{Archive, ArchivePart, Entry, HistoryPart, Record, State};
use crate::keys::SegmentId;

/// Records that a root has itself; beyond twice as many the older ones move to the history.
pub(crate) const INLINE_RECORDS: usize = 128;
/// Archives that a root names at most: some 160 KiB of it, and two million replaced segments. Beyond it a commit finds the store
/// full: C10 holds, whatever it takes.
const MAX_ARCHIVES: usize = 4096;

/// What counts up stays below it, or was not written here: with a million a second in 292,000 years. So nothing that adds to it overflows.
pub(crate) const END: u64 = 1 << 63;
/// The same of the bytes of a segment, 16 TiB: no store takes such a value.
const MOST_SEGMENT_BYTES: u64 = 1 << 44;

/// A version that is about to be made.
#[derive(Debug)]
pub(crate) struct NextVersion {
    pub commit: CommitId,
    pub page_size: PageSize,
    pub page_count: PageCount,
    /// Older ones first.
    pub entries: Vec<Entry>,
    /// Segments of live entries whose pages are in `entries` too.
    pub absorbed: Vec<SegmentId>,
    /// Where the older records went, if they had to.
    pub history: Option<HistoryPart>,
    /// Where the entries of the oldest versions went, if they had to.
    pub archive: Option<ArchivePart>,
    pub time_ms: i64,
}

/// What is kept beside the head.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    /// The oldest version that a session of this server may begin to read.
    pub floor: Option<u64>,
    /// Single versions that sessions of this server read.
    pub pins: Vec<u64>,
    /// Versions replaced after this time are kept for sessions of other servers.
    pub replaced_after_ms: i64,
}

impl State {
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        snapshot(self.version, self.page_size, self.page_count)
    }

    /// `Corrupt` for numbers that no state has, whatever its checksum says: they would be found where they do harm.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.snapshot()?;
        let corrupt = |what: &str| Err(StoreError::Corrupt(format!("a root with {what}")));
        if self.version.max(self.epoch).max(self.oldest) >= END {
            return corrupt("a version or an epoch that no database comes to");
        }
        // Each version makes one.
        if self.records.len() as u64 > self.version {
            return corrupt("more records than versions");
        }
        let histories = self.history.iter().map(|part| (part.first, part.last));
        let archives = self.archives.iter().map(|part| (part.first, part.last));
        for (first, last) in histories.chain(archives) {
            if first > last || last >= END {
                return corrupt("versions that are not from one to another");
            }
        }
        let is_too_long = |entry: &Entry| entry.bytes >= MOST_SEGMENT_BYTES;
        match self.entries.iter().any(is_too_long) {
            true => corrupt("a segment that is longer than any value"),
            false => Ok(()),
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch::new(self.epoch)
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed_ms != 0
    }

    /// What was ever leased or committed to has an owner, whatever the clocks say.
    pub(crate) fn is_used(&self) -> bool {
        self.version > 0 || self.epoch > 0
    }

    pub(crate) fn check_readable(&self, version: Version) -> Result<(), StoreError> {
        let own = (self.oldest..=self.version).contains(&version.get());
        match own || self.archive_of(version.get()).is_some() {
            true => Ok(()),
            false => Err(StoreError::VersionGone { version }),
        }
    }

    /// The archive that has the entries of a version.
    pub(crate) fn archive_of(&self, version: u64) -> Option<&ArchivePart> {
        if version >= self.oldest {
            return None;
        }
        self.archives.iter().find(|part| part.has(version))
    }

    /// Entries of a version, the ones that hold first.
    pub(crate) fn entries_of(&self, version: u64) -> impl Iterator<Item = &Entry> {
        entries_of(&self.entries, version)
    }

    /// The record of a version that the root has itself.
    pub(crate) fn record(&self, version: u64) -> Option<&Record> {
        let back = self.version.checked_sub(version)?;
        let index = (self.records.len() as u64).checked_sub(back + 1)?;
        self.records.get(usize::try_from(index).ok()?)
    }

    /// The first version of which the root has the record itself, or that of the version to come.
    pub(crate) fn first_record(&self) -> u64 {
        self.version + 1 - self.records.len() as u64
    }

    /// The page count of a version, if it is known without a call.
    pub(crate) fn size_of(&self, version: u64) -> Option<(u32, u32)> {
        match version {
            0 => Some((0, 0)),
            version => self.record(version).map(|r| (r.page_size, r.page_count)),
        }
    }

    /// Records to be moved to the history by the next commit.
    pub(crate) fn overflowing_records(&self) -> Option<&[Record]> {
        (self.records.len() >= 2 * INLINE_RECORDS).then(|| &self.records[..INLINE_RECORDS])
    }

    /// Entries to be moved to an archive by the next commit, and its versions: the older half of those that a root has room for.
    pub(crate) fn overflowing_entries(
        &self,
        keep: &Keep,
        room: usize,
    ) -> Result<Option<(u64, u64, Archive)>, StoreError> {
        let room = room.max(1);
        let is_removed = |entry: &&Entry| !entry.is_live();
        if self.entries.iter().filter(is_removed).count() < 2 * room {
            return Ok(None);
        }
        let mut kept = self.clone();
        kept.give_up(keep);
        let mut removed: Vec<_> = kept.entries.iter().map(|e| e.removed).collect();
        removed.retain(|version| *version > 0);
        if removed.len() < 2 * room {
            return Ok(None);
        }
        if kept.archives.len() >= MAX_ARCHIVES {
            let oldest = kept.archives.first().map_or(0, |part| part.first);
            return Err(StoreError::Full(format!(
                "readers keep all versions from {oldest} to {}: no more can be kept",
                self.version
            )));
        }
        let first = kept.oldest;
        let (_, next, _) = removed.select_nth_unstable(room);
        let next = *next;
        let needed = |entry: &Entry| entry.added < next;
        kept.entries.retain(needed);
        let entries = kept.entries;
        Ok(Some((first, next - 1, Archive { entries })))
    }

    /// Makes the next version (C8).
    pub(crate) fn apply(&mut self, next: NextVersion, keep: &Keep) {
        let version = self.version + 1;
        let count = next.page_count.get();
        let same_size = self.page_size == next.page_size.get();
        let mut entries = Vec::with_capacity(self.entries.len() + next.entries.len());
        for mut entry in std::mem::take(&mut self.entries) {
            let absorbed = next.absorbed.contains(&entry.id());
            if !entry.is_live() || (same_size && !absorbed && entry.last <= count) {
                entries.push(entry);
                continue;
            }
            let cut = (same_size && !absorbed && entry.first <= count).then(|| Entry {
                added: version,
                last: count,
                ..entry.clone()
            });
            entry.removed = version;
            entries.push(entry);
            entries.extend(cut);
        }
        entries.extend(next.entries.into_iter().map(|entry| Entry {
            added: version,
            written: version,
            newest: version,
            last: entry.last.min(count),
            ..entry
        }));
        self.entries = entries;
        self.version = version;
        self.page_size = if count > 0 { next.page_size.get() } else { 0 };
        self.page_count = count;
        if self.created_ms == 0 {
            self.created_ms = next.time_ms;
        }
        if let Some(part) = next.history {
            let moved = part.last + 1 - part.first;
            self.records
                .drain(..(moved as usize).min(self.records.len()));
            self.history.push(part);
        }
        if let Some(part) = next.archive {
            self.oldest = self.oldest.max(part.last + 1);
            self.archives.push(part);
        }
        let last_ms = self
            .records
            .last()
            .map_or(i64::MIN, |record| record.time_ms);
        let time_ms = next.time_ms.max(last_ms);
        self.records.push(Record {
            commit: Bytes::copy_from_slice(next.commit.as_bytes()),
            time_ms,
            page_size: self.page_size,
            page_count: self.page_count,
        });
        self.expire(keep, time_ms);
    }

    /// Gives up versions that nobody reads any more and records that nobody may ask for. Whether anything went.
    pub(crate) fn expire(&mut self, keep: &Keep, now_ms: i64) -> bool {
        let before = (
            self.oldest,
            self.entries.len(),
            self.records.len(),
            self.history.len(),
            self.archives.len(),
        );
        self.give_up(keep);
        let ttl_ms = i64::try_from(COMMIT_RECORD_TTL.as_millis()).unwrap_or(i64::MAX);
        let expired = now_ms.saturating_sub(ttl_ms);
        self.history.retain(|part| part.time_ms >= expired);
        if self.history.is_empty() {
            // The record of the head stays, whatever its age: a commit may still be settled by it.
            let last = self.records.len().saturating_sub(1);
            let old = self.records[..last].iter();
            let old = old.take_while(|record| record.time_ms < expired).count();
            self.records.drain(..old);
        }
        before
            != (
                self.oldest,
                self.entries.len(),
                self.records.len(),
                self.history.len(),
                self.archives.len(),
            )
    }

    /// Gives up the versions that nobody reads: those below everything that is read, and archives in which nothing is.
    fn give_up(&mut self, keep: &Keep) {
        let floor = keep.floor.unwrap_or(self.version).min(self.version);
        let newer = self.records.iter().rev();
        let recent = newer.take_while(|record| record.time_ms > keep.replaced_after_ms);
        // Version n was replaced when the record of n + 1 was made.
        let for_others = self.version - (recent.count() as u64).min(self.version);
        let floor = floor.min(for_others);
        let is_read = |part: &ArchivePart| {
            part.last >= floor || keep.pins.iter().any(|version| part.has(*version))
        };
        self.archives.retain(is_read);
        // Those before it are in archives, or gone.
        let pins = keep.pins.iter().filter(|version| **version >= self.oldest);
        let pinned = pins.min().copied().unwrap_or(self.version);
        self.oldest = self.oldest.max(floor.min(pinned));
        let oldest = self.oldest;
        self.entries.retain(|e| e.is_live() || e.removed > oldest);
    }

    /// Every segment, part of the history and archive that the state names; not what its archives name.
    pub(crate) fn named(&self) -> impl Iterator<Item = SegmentId> {
        let entries = self.entries.iter().map(Entry::id);
        let history = self.history.iter().map(HistoryPart::id);
        let archives = self.archives.iter().map(ArchivePart::id);
        entries.chain(history).chain(archives)
    }

    /// Takes the pages from `first` to `last` out of a live entry, for the versions from the head on; what is left of it stays
    /// where it is in the order.
    pub(crate) fn cut_out(&mut self, index: usize, first: u32, last: u32) {
        let head = self.version;
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let whole = entry.clone();
        // What the head alone ever had need not be kept for anybody.
        let gone = entry.added == head;
        entry.removed = head;
        let mut left = Vec::new();
        if whole.first < first {
            left.push(Entry {
                added: head,
                last: first - 1,
                ..whole.clone()
            });
        }
        if whole.last > last {
            left.push(Entry {
                added: head,
                first: last + 1,
                ..whole
            });
        }
        let from = if gone { index } else { index + 1 };
        self.entries.splice(from..index + 1, left);
    }
}

impl HistoryPart {
    pub(crate) fn id(&self) -> SegmentId {
        SegmentId {
            generation: self.generation,
            random: self.random,
        }
    }
}

impl ArchivePart {
    pub(crate) fn id(&self) -> SegmentId {
        SegmentId {
            generation: self.generation,
            random: self.random,
        }
    }

    fn has(&self, version: u64) -> bool {
        (self.first..=self.last).contains(&version)
    }
}

/// Entries of a version among those of several, the ones that hold first.
pub(crate) fn entries_of(entries: &[Entry], version: u64) -> impl Iterator<Item = &Entry> {
    entries.iter().rev().filter(move |e| e.is_of(version))
}

/// The numbers as a snapshot; `Corrupt` where they can't be one.
pub(crate) fn snapshot(version: u64, size: u32, count: u32) -> Result<Snapshot, StoreError> {
    let corrupt = |error: pagewire_proto::Invalid| StoreError::Corrupt(error.to_string());
    let page_size = match size {
        0 => None,
        size => Some(PageSize::try_from(size).map_err(corrupt)?),
    };
    Ok(Snapshot {
        version: Version::new(version),
        page_size,
        page_count: PageCount::try_from(count).map_err(corrupt)?,
    })
}
