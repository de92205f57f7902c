//! The model of the random test: a full copy of every version. Slow and obvious; knows nothing of how stores work.

use std::collections::BTreeMap;

use bytes::Bytes;
use pagewire_proto::{
    CommitId, DatabaseId, Epoch, PageCount, PageNumber, PageSize, Snapshot, StagingId, Version,
};

use crate::store::{Commit, DatabaseCommit, StoredPage};

/// A version as a whole.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) head: Snapshot,
    pages: BTreeMap<PageNumber, StoredPage>,
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
    floor: Option<u64>,
    /// From it on all versions have to be readable.
    pub(super) oldest: u64,
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
    /// A page of this version.
    pub(super) fn page(&self, number: PageNumber) -> StoredPage {
        let nothing = StoredPage {
            content: Bytes::new(),
            version: Version::ZERO,
        };
        self.pages.get(&number).cloned().unwrap_or(nothing)
    }
}

impl Model {
    pub(super) fn new(id: DatabaseId) -> Self {
        Self {
            id,
            epoch: None,
            largest_epoch: Epoch::NONE,
            versions: vec![Copy {
                head: Snapshot::EMPTY,
                pages: BTreeMap::new(),
            }],
            makers: Vec::new(),
            floor: None,
            oldest: 0,
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
        self.rise();
    }

    /// Nobody protects anything after a restart.
    pub(super) fn restart(&mut self) {
        self.epoch = None;
        self.protect(None);
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
    pub(super) fn apply(&mut self, id: CommitId, part: &DatabaseCommit, stagings: &Stagings) {
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
            pages.insert(number, StoredPage { content, version });
        }
        pages.retain(|number, _| part.page_count.has(*number));
        let head = Snapshot {
            version,
            page_size: (part.page_count > PageCount::ZERO).then_some(part.page_size),
            page_count: part.page_count,
        };
        self.versions.push(Copy { head, pages });
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
