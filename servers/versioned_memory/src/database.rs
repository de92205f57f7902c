//! One database: its kept versions as persistent maps that share what they have in common, the records of its commits, its
//! tags and its epoch. Never locks anything; the caller does.
//!
//! A version *is* its map, so that nothing has to be found out to read one, to branch from it, to restore it or to drop it:
//! the counters of references know what is still needed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use pagewire_proto::limits::{MAX_CHANGED_PAGES, MAX_TAGS};
use pagewire_proto::{
    Changes, CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageCount, PageNumber, PageSize,
    Snapshot, TagName, UnixMillis, Version, VersionEntry,
};
use pagewire_server::store::{COMMIT_RECORD_TTL, StoreError, StoredPage};
use rpds::RedBlackTreeMapSync;

/// Versions over which changes are collected: beyond, forgetting is cheaper than the answer.
const MAX_CHANGES_SPAN: u64 = 4096;

/// What is kept under a database, or in all of them.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pages: AtomicU64,
    bytes: AtomicU64,
}

impl Usage {
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// A page that a version wrote. Counts itself for as long as any version of any database has it.
#[derive(Debug)]
pub(crate) struct Written {
    content: Bytes,
    version: Version,
    /// The segment that wrote it: see [`Pages`].
    segment: u64,
    usage: Arc<Usage>,
}

impl Written {
    fn new(content: Bytes, version: Version, segment: u64, usage: Arc<Usage>) -> Arc<Self> {
        usage.pages.fetch_add(1, Ordering::Relaxed);
        usage
            .bytes
            .fetch_add(content.len() as u64, Ordering::Relaxed);
        Arc::new(Self {
            content,
            version,
            segment,
            usage,
        })
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let bytes = self.content.len() as u64;
        self.usage.pages.fetch_sub(1, Ordering::Relaxed);
        self.usage.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The pages of a version. A branch and a restore begin a segment: what another segment wrote is answered as written by the
/// first version of this one, since the numbers of the others mean nothing here (B1).
#[derive(Clone, Debug)]
struct Pages {
    map: RedBlackTreeMapSync<PageNumber, Arc<Written>>,
    segment: u64,
    since: Version,
}

impl Pages {
    fn page(&self, number: PageNumber) -> StoredPage {
        match self.map.get(&number) {
            Some(written) => StoredPage {
                content: written.content.clone(),
                version: match written.segment == self.segment {
                    true => written.version,
                    false => self.since,
                },
            },
            None => StoredPage {
                content: Bytes::new(),
                version: Version::ZERO,
            },
        }
    }

    /// Pages beyond a count.
    fn beyond(&self, count: PageCount) -> BTreeSet<PageNumber> {
        match PageNumber::try_from(count.get().saturating_add(1)) {
            Ok(first) => self.map.range(first..).map(|(number, _)| *number).collect(),
            Err(_) => BTreeSet::new(),
        }
    }

    /// Pages that are not the same, in order.
    fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = PageNumber> + 'a {
        let numbers: BTreeSet<_> = self.map.keys().chain(other.map.keys()).copied().collect();
        numbers.into_iter().filter(
            |number| match (self.map.get(number), other.map.get(number)) {
                (Some(one), Some(two)) => !Arc::ptr_eq(one, two),
                (None, None) => false,
                _ => true,
            },
        )
    }
}

/// A version that is kept.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    snapshot: Snapshot,
    pages: Pages,
    made: UnixMillis,
    /// When the next version was made; `None` for the head.
    ended: Option<UnixMillis>,
    /// Which pages differ from the version before; `None` where they are too many to be named.
    changed: Option<Arc<[PageNumber]>>,
    pages_changed: u64,
    restored_from: Option<Version>,
}

impl Kept {
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    pub(crate) fn page(&self, number: PageNumber) -> StoredPage {
        self.pages.page(number)
    }

    /// Pages that differ from another version of the same database, in order.
    pub(crate) fn differing<'a>(
        &'a self,
        other: &'a Self,
    ) -> impl Iterator<Item = PageNumber> + 'a {
        self.pages.differing(&other.pages)
    }
}

/// What a branch was made from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) database: DatabaseId,
    pub(crate) entry: VersionEntry,
}

/// A version that is about to be made by a commit.
#[derive(Debug)]
pub(crate) struct NextVersion {
    pub(crate) id: CommitId,
    pub(crate) page_size: PageSize,
    pub(crate) page_count: PageCount,
    pub(crate) content: Content,
}

/// What it has.
#[derive(Debug)]
pub(crate) enum Content {
    /// The pages of its base and these: of full length, none beyond the page count.
    Pages(BTreeMap<PageNumber, Bytes>),
    /// The pages of a kept version, under a new segment.
    Restore(Version, u64),
}

/// See the top of this file.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) name: DatabaseName,
    pub(crate) origin: Option<Origin>,
    head: Snapshot,
    epoch: Epoch,
    created: UnixMillis,
    /// The head among them, unless that is version 0.
    kept: BTreeMap<Version, Kept>,
    records: BTreeMap<Version, (CommitId, UnixMillis)>,
    tags: BTreeMap<TagName, Version>,
    floor: Option<Version>,
    pins: BTreeSet<Version>,
    usage: Arc<Usage>,
    /// Of the first segment, which a database has without a branch or a restore.
    segment: u64,
}

impl Database {
    pub(crate) fn new(name: DatabaseName, segment: u64) -> Self {
        Self {
            name,
            origin: None,
            head: Snapshot::EMPTY,
            epoch: Epoch::NONE,
            created: UnixMillis::default(),
            kept: BTreeMap::new(),
            records: BTreeMap::new(),
            tags: BTreeMap::new(),
            floor: None,
            pins: BTreeSet::new(),
            usage: Arc::default(),
            segment,
        }
    }

    /// A database whose version 1 is a kept version of another.
    pub(crate) fn branch(
        name: DatabaseName,
        maker: CommitId,
        segment: u64,
        origin: Origin,
        source: &Kept,
        now: UnixMillis,
    ) -> Self {
        let mut branch = Self::new(name, segment);
        branch.origin = Some(origin);
        let first = Version::ZERO.next();
        branch.add(
            maker,
            Kept {
                snapshot: Snapshot {
                    version: first,
                    ..source.snapshot
                },
                pages: Pages {
                    map: source.pages.map.clone(),
                    segment,
                    since: first,
                },
                made: now,
                ended: None,
                changed: None,
                pages_changed: 0,
                restored_from: None,
            },
        );
        branch
    }

    pub(crate) fn head(&self) -> Snapshot {
        self.head
    }

    pub(crate) fn created(&self) -> UnixMillis {
        self.created
    }

    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    pub(crate) fn kept_versions(&self) -> impl DoubleEndedIterator<Item = Version> {
        self.kept.keys().copied()
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn fence(&mut self) -> Epoch {
        self.epoch = Epoch::new(self.epoch.get() + 1);
        self.epoch
    }

    pub(crate) fn protect(
        &mut self,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        for pin in pins {
            self.version(*pin)?;
        }
        self.floor = floor;
        self.pins = pins.iter().copied().collect();
        Ok(())
    }

    /// A kept version. Version 0, which has no pages, needs no keeping.
    pub(crate) fn version(&self, version: Version) -> Result<Kept, StoreError> {
        if version == Version::ZERO {
            return Ok(self.empty());
        }
        let kept = self.kept.get(&version).cloned();
        kept.ok_or(StoreError::VersionGone { version })
    }

    fn empty(&self) -> Kept {
        Kept {
            snapshot: Snapshot::EMPTY,
            pages: Pages {
                map: RedBlackTreeMapSync::new_sync(),
                segment: self.segment,
                since: Version::ZERO,
            },
            made: UnixMillis::default(),
            ended: None,
            changed: None,
            pages_changed: 0,
            restored_from: None,
        }
    }

    /// The commit that made a version of which the record is kept.
    pub(crate) fn maker(&self, version: Version) -> Option<CommitId> {
        self.records.get(&version).map(|(id, _)| *id)
    }

    /// What differs from a version: all of it where a version in between is not kept, or too much was changed.
    pub(crate) fn changes(&self, since: Version) -> Changes {
        let head = self.head.version;
        if since > head || head.get() - since.get() > MAX_CHANGES_SPAN {
            return Changes::All;
        }
        let mut pages = BTreeSet::new();
        for version in since.get() + 1..=head.get() {
            let kept = self.kept.get(&Version::new(version));
            let Some(changed) = kept.and_then(|kept| kept.changed.as_ref()) else {
                return Changes::All;
            };
            pages.extend(changed.iter());
            if pages.len() > MAX_CHANGED_PAGES {
                return Changes::All;
            }
        }
        Changes::Pages(pages.into_iter().collect())
    }

    /// Makes the next version.
    ///
    /// Answers when it was made.
    pub(crate) fn apply(
        &mut self,
        next: NextVersion,
        now: UnixMillis,
    ) -> Result<UnixMillis, StoreError> {
        let base = self.version(self.head.version)?;
        let version = self.head.version.next();
        let same_size = self.head.page_size == Some(next.page_size);
        let mut pages = base.pages.clone();
        let (changed, restored_from): (BTreeSet<_>, _) = match next.content {
            Content::Restore(from, segment) => {
                pages = Pages {
                    map: self.version(from)?.pages.map,
                    segment,
                    since: version,
                };
                (base.pages.differing(&pages).collect(), Some(from))
            }
            Content::Pages(written) => {
                let kept = match same_size {
                    true => next.page_count,
                    false => PageCount::ZERO,
                };
                let mut changed = pages.beyond(kept);
                for number in &changed {
                    pages.map.remove_mut(number);
                }
                changed.extend(written.keys());
                for (number, content) in written {
                    let usage = Arc::clone(&self.usage);
                    let page = Written::new(content, version, pages.segment, usage);
                    pages.map.insert_mut(number, page);
                }
                (changed, None)
            }
        };
        let nameable = same_size && changed.len() <= MAX_CHANGED_PAGES;
        self.add(
            next.id,
            Kept {
                snapshot: Snapshot {
                    version,
                    page_size: (next.page_count > PageCount::ZERO).then_some(next.page_size),
                    page_count: next.page_count,
                },
                pages,
                made: now,
                ended: None,
                pages_changed: changed.len() as u64,
                changed: nameable.then(|| changed.into_iter().collect()),
                restored_from,
            },
        );
        Ok(self.kept.get(&version).map_or(now, |kept| kept.made))
    }

    /// Adds a version, at a time that is not before that of the one before (K4).
    fn add(&mut self, maker: CommitId, mut next: Kept) {
        match self.kept.get_mut(&self.head.version) {
            Some(head) => {
                next.made = next.made.max(head.made);
                head.ended = Some(next.made);
            }
            None => self.created = next.made,
        }
        self.head = next.snapshot;
        self.records.insert(self.head.version, (maker, next.made));
        self.kept.insert(self.head.version, next);
    }

    /// The kept version of a moment. A moment before the first version is of version 0, of which nothing is known.
    pub(crate) fn find(&self, moment: &Moment, now: UnixMillis) -> Result<&Kept, StoreError> {
        let gone = |version| StoreError::VersionGone { version };
        let head = self.kept.get(&self.head.version);
        let head = head.ok_or(gone(Version::ZERO))?;
        let time = match moment {
            Moment::Version(version) => return self.kept.get(version).ok_or(gone(*version)),
            Moment::Tag(tag) => {
                let version = self.tags.get(tag);
                let version = version.ok_or_else(|| StoreError::TagNotFound(tag.clone()))?;
                return self.kept.get(version).ok_or(gone(*version));
            }
            Moment::Time(time) => *time,
            Moment::Age(age) => {
                let age = i64::try_from(*age).unwrap_or(i64::MAX);
                UnixMillis(now.max(head.made).0.saturating_sub(age))
            }
        };
        let mut newest_first = self.kept.iter().rev();
        let found = newest_first.find(|(_, kept)| kept.made <= time);
        let (version, kept) = found.ok_or(gone(Version::ZERO))?;
        match kept.ended {
            // The one that was the head at that time came later, and is not kept.
            Some(ended) if ended <= time => Err(gone(version.next())),
            _ => Ok(kept),
        }
    }

    pub(crate) fn entry(&self, kept: &Kept) -> VersionEntry {
        let version = kept.snapshot.version;
        let tags = self.tags.iter().filter(|(_, named)| **named == version);
        VersionEntry {
            snapshot: kept.snapshot,
            time: kept.made,
            pages_changed: kept.pages_changed,
            tags: tags.map(|(tag, _)| tag.clone()).collect(),
            restored_from: kept.restored_from,
        }
    }

    /// Kept versions before one, newest first.
    pub(crate) fn entries(
        &self,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Vec<VersionEntry> {
        let before = before.unwrap_or(self.head.version.next());
        let entries = self.kept.range(..before).rev();
        let entries = entries.map(|(_, kept)| self.entry(kept));
        let entries = entries.filter(|entry| !tagged_only || !entry.tags.is_empty());
        entries.take(limit).collect()
    }

    pub(crate) fn set_tag(
        &mut self,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
        now: UnixMillis,
    ) -> Result<VersionEntry, StoreError> {
        let version = self.find(moment, now)?.snapshot.version;
        match self.tags.get(tag) {
            Some(named) if *named != version && !replace => {
                return Err(StoreError::NameTaken(format!(
                    "tag {tag} names version {named}"
                )));
            }
            None if self.tags.len() >= MAX_TAGS => {
                return Err(StoreError::Limit(format!(
                    "a database has at most {MAX_TAGS} tags"
                )));
            }
            _ => {}
        }
        self.tags.insert(tag.clone(), version);
        Ok(self.entry(self.find(&Moment::Version(version), now)?))
    }

    pub(crate) fn delete_tag(&mut self, tag: &TagName) -> bool {
        self.tags.remove(tag).is_some()
    }

    /// When the next version is too old that is not yet.
    pub(crate) fn next_old(&self, now: UnixMillis, retention: i64) -> Option<UnixMillis> {
        let ended = self.kept.values().filter_map(|kept| kept.ended);
        let mut old = ended.map(|ended| UnixMillis(ended.0.saturating_add(retention)));
        old.find(|time| *time > now)
    }

    /// Takes out versions that nothing keeps, oldest first, at most as many; and whether there are more.
    pub(crate) fn take_unkept(
        &mut self,
        now: UnixMillis,
        retention: Option<i64>,
        stood_on: impl Fn(&Version) -> bool,
        limit: usize,
    ) -> (Vec<Kept>, bool) {
        let now = now.max(
            self.kept
                .get(&self.head.version)
                .map_or(now, |head| head.made),
        );
        let tagged: BTreeSet<_> = self.tags.values().copied().collect();
        let within =
            |ended: UnixMillis| retention.is_none_or(|r| ended.0.saturating_add(r) > now.0);
        let old = self.kept.iter();
        let old = old.take_while(|(_, kept)| kept.ended.is_some_and(|ended| !within(ended)));
        let unkept = old.filter(|(version, _)| {
            self.floor.is_none_or(|floor| **version < floor)
                && !self.pins.contains(version)
                && !tagged.contains(version)
                && !stood_on(version)
        });
        let mut unkept: Vec<_> = unkept
            .map(|(version, _)| *version)
            .take(limit + 1)
            .collect();
        let more = unkept.len() > limit;
        unkept.truncate(limit);
        let taken = unkept
            .iter()
            .filter_map(|version| self.kept.remove(version));
        let taken = taken.collect();
        let ttl = COMMIT_RECORD_TTL.as_millis() as i64;
        while let Some(oldest) = self.records.first_entry()
            && oldest.get().1.0.saturating_add(ttl) < now.0
            && !self.kept.contains_key(oldest.key())
        {
            oldest.remove();
        }
        (taken, more)
    }
}
