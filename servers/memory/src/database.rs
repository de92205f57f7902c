//! One database: its pages, the records of its versions and its epoch. Never locks anything; the caller does.
//!
//! A page is found under (number, version that wrote it). The page as of a version is the newest at or before it, one seek.
//! What a commit replaces is a pre-image, noted in `replaced` in the order of the replacing versions: it is dropped as soon
//! as no readable version needs it. `None` marks a page that a shrink or a change of the page size took away.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{
    Changes, CommitId, DatabaseId, Epoch, PageCount, PageNumber, PageSize, Snapshot, Version,
};
use pagewire_server::store::{COMMIT_RECORD_TTL, StoreError, StoredPage};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::MemoryLimits;

/// Bytes of pre-images in all databases of a store, and which database has the most.
#[derive(Debug, Default)]
pub(crate) struct Usage(Mutex<Sizes>);

#[derive(Debug, Default)]
struct Sizes {
    total: u64,
    /// Of the databases that have any.
    by_size: BTreeSet<(u64, DatabaseId)>,
}

impl Usage {
    fn change(&self, id: DatabaseId, from: u64, to: u64) {
        if from == to {
            return;
        }
        let mut sizes = self.0.lock();
        sizes.total = sizes.total - from + to;
        sizes.by_size.remove(&(from, id));
        if to > 0 {
            sizes.by_size.insert((to, id));
        }
    }

    /// The database with the most pre-images, where all together are more than this.
    pub(crate) fn largest_beyond(&self, limit: u64) -> Option<DatabaseId> {
        let sizes = self.0.lock();
        let largest = sizes.by_size.last().map(|(_, id)| *id);
        largest.filter(|_| sizes.total > limit)
    }
}

/// A version that is about to be made.
#[derive(Debug)]
pub(crate) struct NextVersion {
    pub(crate) id: CommitId,
    pub(crate) page_size: PageSize,
    pub(crate) page_count: PageCount,
    /// Of full length, none beyond the page count.
    pub(crate) pages: BTreeMap<PageNumber, Bytes>,
}

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Database {
    id: DatabaseId,
    limits: MemoryLimits,
    usage: Arc<Usage>,
    removed: bool,
    head: Snapshot,
    epoch: Epoch,
    floor: Option<Version>,
    /// Versions below it may lack pre-images.
    oldest_readable: Version,
    pages: BTreeMap<(PageNumber, Version), Option<Bytes>>,
    replaced: VecDeque<Replaced>,
    pre_image_bytes: u64,
    /// What the store was told of `pre_image_bytes` last.
    counted_bytes: u64,
    /// Of consecutive versions up to the head.
    records: VecDeque<Record>,
}

#[derive(Debug)]
struct Replaced {
    by: Version,
    number: PageNumber,
    version: Version,
    bytes: u64,
}

#[derive(Debug)]
struct Record {
    id: CommitId,
    made: Instant,
    /// `None` where any page may have changed, or where it is not kept any more.
    changed: Option<Vec<PageNumber>>,
}

impl Database {
    pub(crate) fn new(id: DatabaseId, limits: MemoryLimits, usage: Arc<Usage>) -> Self {
        Self {
            id,
            limits,
            usage,
            removed: false,
            head: Snapshot::EMPTY,
            epoch: Epoch::NONE,
            floor: None,
            oldest_readable: Version::ZERO,
            pages: BTreeMap::new(),
            replaced: VecDeque::new(),
            pre_image_bytes: 0,
            counted_bytes: 0,
            records: VecDeque::new(),
        }
    }

    /// Frees everything; whoever still holds the database finds that it does not exist.
    pub(crate) fn remove(&mut self) {
        self.pre_image_bytes = 0;
        self.count();
        *self = Self {
            removed: true,
            ..Self::new(self.id, self.limits, Arc::clone(&self.usage))
        };
    }

    pub(crate) fn check_exists(&self) -> Result<(), StoreError> {
        match self.removed {
            true => Err(StoreError::DatabaseNotFound),
            false => Ok(()),
        }
    }

    pub(crate) fn head(&self) -> Snapshot {
        self.head
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn fence(&mut self) -> Epoch {
        self.epoch = Epoch::new(self.epoch.get() + 1);
        self.epoch
    }

    pub(crate) fn check_readable(&self, version: Version) -> Result<(), StoreError> {
        if (self.oldest_readable..=self.head.version).contains(&version) {
            Ok(())
        } else {
            Err(StoreError::VersionGone { version })
        }
    }

    /// The page as of a readable version.
    pub(crate) fn page(&self, number: PageNumber, version: Version) -> StoredPage {
        let mut found = self
            .pages
            .range((number, Version::ZERO)..=(number, version));
        match found.next_back() {
            Some(((_, version), Some(content))) => StoredPage {
                content: content.clone(),
                version: *version,
            },
            Some((_, None)) | None => StoredPage {
                content: Bytes::new(),
                version: Version::ZERO,
            },
        }
    }

    pub(crate) fn protect(&mut self, floor: Option<Version>) {
        self.floor = floor;
        self.drop_unprotected();
    }

    /// The commit that made a version of which the record is kept.
    pub(crate) fn maker(&self, version: Version) -> Option<CommitId> {
        self.record(version).map(|record| record.id)
    }

    pub(crate) fn made_by(&self, version: Version, id: CommitId) -> bool {
        self.maker(version) == Some(id)
    }

    pub(crate) fn changes(&self, since: Version) -> Changes {
        if since > self.head.version {
            return Changes::All;
        }
        let mut pages = BTreeSet::new();
        for version in since.get() + 1..=self.head.version.get() {
            let record = self.record(Version::new(version));
            let Some(changed) = record.and_then(|record| record.changed.as_ref()) else {
                return Changes::All;
            };
            pages.extend(changed);
            if pages.len() > MAX_CHANGED_PAGES {
                return Changes::All;
            }
        }
        Changes::Pages(pages.into_iter().collect())
    }

    /// Makes the next version.
    pub(crate) fn apply(&mut self, next: NextVersion) {
        let version = self.head.version.next();
        let new_size = self.head.page_size != Some(next.page_size);
        let kept = match new_size {
            true => PageCount::ZERO,
            false => next.page_count,
        };
        let mut changed: Vec<_> = next.pages.keys().copied().collect();
        if self.head.page_count > kept {
            let gone = self.pages_beyond(kept);
            changed.extend(gone.iter().filter(|page| !next.pages.contains_key(page)));
            for number in gone {
                self.put(number, version, None);
            }
        }
        for (number, content) in next.pages {
            self.put(number, version, Some(content));
        }
        self.head = Snapshot {
            version,
            page_size: (next.page_count > PageCount::ZERO).then_some(next.page_size),
            page_count: next.page_count,
        };
        let changed = (!new_size && changed.len() <= MAX_CHANGED_PAGES).then_some(changed);
        self.add_record(Record {
            id: next.id,
            made: Instant::now(),
            changed,
        });
        self.drop_unprotected();
    }

    /// Pages of the head beyond a count.
    fn pages_beyond(&self, count: PageCount) -> Vec<PageNumber> {
        let Ok(first) = PageNumber::try_from(count.get().saturating_add(1)) else {
            return Vec::new();
        };
        let mut gone: Vec<PageNumber> = Vec::new();
        // Versions of one page follow each other, so the last one seen of a page is the newest.
        for ((number, _), content) in self.pages.range((first, Version::ZERO)..) {
            if gone.last() == Some(number) {
                gone.pop();
            }
            if content.is_some() {
                gone.push(*number);
            }
        }
        gone
    }

    fn put(&mut self, number: PageNumber, version: Version, content: Option<Bytes>) {
        let mut older = self.pages.range((number, Version::ZERO)..(number, version));
        if let Some(((_, replaced), pre_image)) = older.next_back() {
            let bytes = pre_image.as_ref().map_or(0, Bytes::len) as u64;
            let replaced = Replaced {
                by: version,
                number,
                version: *replaced,
                bytes,
            };
            // A page that goes and comes back in one commit (another page size) replaces only once.
            if !self.pages.contains_key(&(number, version)) {
                self.pre_image_bytes += bytes;
                self.replaced.push_back(replaced);
            }
        }
        self.pages.insert((number, version), content);
    }

    fn drop_unprotected(&mut self) {
        let head = self.head.version;
        let floor = self.floor.map_or(head, |floor| floor.min(head));
        self.oldest_readable = self.oldest_readable.max(floor);
        while let Some(replaced) = self.replaced.front()
            && replaced.by <= self.oldest_readable
        {
            let bytes = replaced.bytes;
            self.pages.remove(&(replaced.number, replaced.version));
            // With nothing before it, the mark of a page that went away says nothing.
            if let Some(None) = self.pages.get(&(replaced.number, replaced.by)) {
                self.pages.remove(&(replaced.number, replaced.by));
            }
            self.replaced.pop_front();
            self.pre_image_bytes -= bytes;
        }
        self.count();
    }

    /// Gives up the oldest version that is kept only for its readers.
    pub(crate) fn give_up_oldest(&mut self) {
        if let Some(oldest) = self.replaced.front() {
            self.oldest_readable = self.oldest_readable.max(oldest.by);
            self.drop_unprotected();
        }
    }

    fn count(&mut self) {
        self.usage
            .change(self.id, self.counted_bytes, self.pre_image_bytes);
        self.counted_bytes = self.pre_image_bytes;
    }

    fn record(&self, version: Version) -> Option<&Record> {
        let back = self.head.version.get().checked_sub(version.get())?;
        let index = (self.records.len() as u64).checked_sub(back + 1)?;
        self.records.get(usize::try_from(index).ok()?)
    }

    fn add_record(&mut self, record: Record) {
        let now = record.made;
        self.records.push_back(record);
        if let Some(index) = self.records.len().checked_sub(self.limits.changes + 1) {
            self.records[index].changed = None;
        }
        let too_old = |r: &mut Record| now.duration_since(r.made) > COMMIT_RECORD_TTL;
        while self.records.len() > self.limits.records
            || (self.records.len() > 1 && self.records.front_mut().is_some_and(too_old))
        {
            self.records.pop_front();
        }
    }
}
