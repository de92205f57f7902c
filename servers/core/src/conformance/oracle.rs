//! The model of the random test: a full copy of every version. Slow and obvious; knows nothing of how stores work.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use pagewire_proto::{
    CommitId, DatabaseId, Epoch, PageCount, PageNumber, PageSize, Snapshot, StagingId, TagName,
    Version,
};

use crate::store::{Commit, DatabaseCommit, StoredPage};

/// A version as a whole.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) head: Snapshot,
    pages: BTreeMap<PageNumber, Written>,
    /// The version whose pages it took.
    pub(super) restored_from: Option<u64>,
    /// Minutes of the trial in which it was made.
    pub(super) made: u64,
    /// It need not be readable, or did not need to be for a moment.
    pub(super) loose: bool,
}

/// A page, and what may be told to be the version that wrote it.
#[derive(Clone, Debug)]
struct Written {
    content: Bytes,
    low: Version,
    high: Version,
}

/// A database: index is the version.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) id: DatabaseId,
    pub(super) epoch: Option<Epoch>,
    pub(super) largest_epoch: Epoch,
    pub(super) versions: Vec<Copy>,
    /// Index is the version less one.
    pub(super) makers: Vec<CommitId>,
    pub(super) floor: Option<u64>,
    /// From it on all versions are protected.
    oldest: u64,
    /// The largest floor that a session behind a server has told.
    told: u64,
    pub(super) pins: BTreeSet<u64>,
    pub(super) tags: BTreeMap<TagName, u64>,
}

/// What a session behind a server may have protected of a database.
#[derive(Clone, Debug)]
pub(super) struct Protected {
    database: DatabaseId,
    from: u64,
    pins: BTreeSet<u64>,
}

impl Protected {
    pub(super) fn has(&self, database: DatabaseId, version: u64) -> bool {
        self.database == database && (version >= self.from || self.pins.contains(&version))
    }
}

/// Staged pages.
#[derive(Clone, Debug)]
pub(super) struct Staged {
    pub(super) database: DatabaseId,
    pub(super) page_size: PageSize,
    pub(super) pages: Vec<(PageNumber, Bytes)>,
}

/// In the order of their making, so that a seed gives the same history whatever the ids are.
pub(super) type Stagings = Vec<(StagingId, Staged)>;

/// The staging with this id.
pub(super) fn staging(stagings: &Stagings, id: StagingId) -> Option<&Staged> {
    let mut found = stagings.iter().filter(|(other, _)| *other == id);
    found.next().map(|(_, staged)| staged)
}

impl Copy {
    fn empty() -> Self {
        Self {
            head: Snapshot::EMPTY,
            pages: BTreeMap::new(),
            restored_from: None,
            made: 0,
            loose: false,
        }
    }

    /// A page of this version, as of the newest version that may be told to have written it.
    pub(super) fn page(&self, number: PageNumber) -> StoredPage {
        match self.pages.get(&number) {
            Some(written) => StoredPage {
                content: written.content.clone(),
                version: written.high,
            },
            None => StoredPage {
                content: Bytes::new(),
                version: Version::ZERO,
            },
        }
    }

    /// Whether a store may answer this.
    pub(super) fn fits(&self, number: PageNumber, page: &StoredPage) -> bool {
        match self.pages.get(&number) {
            Some(right) => {
                right.content == page.content && (right.low..=right.high).contains(&page.version)
            }
            None => *page == self.page(number),
        }
    }
}

impl Model {
    pub(super) fn new(id: DatabaseId) -> Self {
        Self {
            id,
            epoch: None,
            largest_epoch: Epoch::NONE,
            versions: vec![Copy::empty()],
            makers: Vec::new(),
            floor: None,
            oldest: 0,
            told: 0,
            pins: BTreeSet::new(),
            tags: BTreeMap::new(),
        }
    }

    /// A branch from a version of this one (V4).
    pub(super) fn branch(&self, from: u64, id: DatabaseId, maker: CommitId, now: u64) -> Self {
        let mut branch = Self::new(id);
        let source = &self.versions[from as usize];
        let first = Version::new(1);
        let pages = source.pages.iter().map(|(number, written)| {
            let content = written.content.clone();
            let (low, high) = (first, first);
            (*number, Written { content, low, high })
        });
        branch.versions.push(Copy {
            head: Snapshot {
                version: first,
                ..source.head
            },
            pages: pages.collect(),
            made: now,
            ..Copy::empty()
        });
        branch.makers.push(maker);
        branch.rise();
        branch
    }

    /// Whether a version has to be kept, where stores keep what was the head within so many minutes; `None` for ever (V2).
    pub(super) fn has_to_keep(&self, version: u64, now: u64, minutes: Option<u64>) -> bool {
        let replaced = self
            .versions
            .get(version as usize + 1)
            .map(|next| next.made);
        version >= self.oldest
            || self.pins.contains(&version)
            || self.tags.values().any(|named| *named == version)
            || minutes.is_none_or(|minutes| replaced.is_none_or(|made| made + minutes > now))
    }

    /// What did not have to be kept for a moment may be gone for ever.
    pub(super) fn loosen(&mut self, now: u64, minutes: Option<u64>) {
        for version in 0..=self.head() {
            if !self.has_to_keep(version, now, minutes) {
                self.versions[version as usize].loose = true;
            }
        }
    }

    /// Restored versions that these versions may take their pages from, directly or through others (V2).
    ///
    /// A version takes its pages from the one before it, up to one with another page size, and a restored one from the version that it
    /// was restored from; a store that copied the pages instead goes on with the version before it all the same.
    pub(super) fn stood_on(&self, kept: &BTreeSet<u64>) -> BTreeSet<u64> {
        let mut stood_on = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut next: Vec<_> = kept.iter().copied().collect();
        while let Some(version) = next.pop() {
            if version == 0 || !seen.insert(version) {
                continue;
            }
            let before = version - 1;
            match self.versions[version as usize].restored_from {
                Some(from) => {
                    stood_on.insert(from);
                    next.push(from);
                    // Copied into the same line of versions, if it is one.
                    if !(from + 1..=before).any(|between| self.begins_anew(between)) {
                        next.push(before);
                    }
                }
                None if !self.begins_anew(version) => next.push(before),
                None => {}
            }
        }
        stood_on
    }

    /// Whether nothing of the version before is in this one, as its page size says (C8).
    fn begins_anew(&self, version: u64) -> bool {
        let size = |version: u64| self.versions[version as usize].head.page_size;
        match (size(version - 1), size(version)) {
            (None, _) => true,
            (Some(before), Some(now)) => before != now,
            // All pages went away, and their marks may lie with those of the version before.
            (Some(_), None) => false,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.makers.len() as u64
    }

    pub(super) fn newest(&self) -> Snapshot {
        self.versions[self.makers.len()].head
    }

    pub(super) fn protect(&mut self, floor: Option<u64>) {
        self.floor = floor;
        self.told = self.told.max(floor.unwrap_or(0));
        self.rise();
    }

    /// A session behind a server tells before a collection that it reads the head, where it asked for no floor.
    pub(super) fn tell(&mut self) {
        self.told = self.told.max(self.floor.unwrap_or(self.head()));
    }

    /// Nobody protects anything after a restart. Answers what was protected before.
    pub(super) fn restart(&mut self) -> Protected {
        self.epoch = None;
        let before = Protected {
            database: self.id,
            from: self.told,
            pins: std::mem::take(&mut self.pins),
        };
        self.protect(None);
        // The next session begins there.
        self.told = self.head();
        before
    }

    fn rise(&mut self) {
        let head = self.head();
        self.oldest = self.oldest.max(self.floor.unwrap_or(head).min(head));
    }

    pub(super) fn fenced(&mut self, epoch: Epoch) {
        self.epoch = Some(epoch);
        self.largest_epoch = self.largest_epoch.max(epoch);
    }

    /// What the commit makes of this database (C8).
    pub(super) fn apply(
        &mut self,
        id: CommitId,
        part: &DatabaseCommit,
        stagings: &Stagings,
        now: u64,
    ) {
        let version = Version::new(self.head() + 1);
        let base = &self.versions[self.makers.len()];
        let mut pages = match base.head.page_size {
            Some(size) if size == part.page_size => base.pages.clone(),
            _ => BTreeMap::new(),
        };
        let staged = part.stagings.iter();
        let staged = staged.filter_map(|id| staging(stagings, *id));
        let staged = staged.flat_map(|staged| staged.pages.clone());
        let own = part.pages.iter();
        let own = own.map(|page| (page.number, page.content.clone()));
        for (number, content) in staged.chain(own) {
            let content = match content.is_empty() {
                true => Bytes::from(vec![0; part.page_size.bytes()]),
                false => content,
            };
            let (low, high) = (version, version);
            pages.insert(number, Written { content, low, high });
        }
        pages.retain(|number, _| part.page_count.has(*number));
        let restored_from = part.restore.map(Version::get);
        if let Some(from) = restored_from {
            let restored = self.versions[from as usize].pages.iter();
            // Where the content is that of the base it may be told to be older (V5).
            let low = |number, content: &Bytes| match base.pages.get(number) {
                Some(page) if page.content == content => page.low,
                _ => version,
            };
            let restored = restored.map(|(number, page)| {
                let content = page.content.clone();
                let (low, high) = (low(number, &content), version);
                (*number, Written { content, low, high })
            });
            pages = restored.collect();
        }
        let head = Snapshot {
            version,
            page_size: (part.page_count > PageCount::ZERO).then_some(part.page_size),
            page_count: part.page_count,
        };
        self.versions.push(Copy {
            head,
            pages,
            restored_from,
            made: now,
            loose: false,
        });
        self.makers.push(id);
        self.rise();
    }
}

/// Whether the commit was applied to every one of its databases (C6).
pub(super) fn was_applied(commit: &Commit, models: &[Model]) -> bool {
    commit.databases.iter().all(|part| {
        let model = models.iter().find(|model| model.id == part.database);
        let base = part.base.get() as usize;
        model.is_some_and(|model| model.makers.get(base) == Some(&commit.id))
    })
}
