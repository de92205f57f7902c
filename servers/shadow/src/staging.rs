//! Pages that were uploaded ahead of their commit: what does not fit into memory is in segments that nobody has named yet. Which
//! segments belong to a staging is known to this process alone, so they are gone with it (C15) and collected like any other.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use pagewire_proto::{DatabaseId, PageNumber, PageSize, StagingId};
use pagewire_server::store::{PageWrite, StoreError};

use crate::cells::Entry;
use crate::segment::{Blobs, INDEX_ENTRY_BYTES, Index, StoredBlob};

/// Bytes of a staging that are kept in memory; beyond it they become a segment.
pub(crate) const BUFFER_BYTES: usize = 4 << 20;

/// All stagings of a server.
///
/// * **STG1** What they have in memory together is within `most` bytes, apart from what is becoming segments at the moment, and within twice
///   as many with that: an upload that would make it more is refused. Who makes it more than `most` makes a segment of the largest first,
///   which has at least as many bytes as came.
/// * **STG2** A staging has all that it acknowledged, or is unknown: one whose pages were dropped takes none any more and can't be committed, until
///   it is discarded.
#[derive(Debug)]
pub(crate) struct Stagings {
    most: usize,
    by_id: HashMap<StagingId, Staging>,
    /// Those that have something in memory which is not becoming a segment.
    by_bytes: BTreeSet<(usize, StagingId)>,
    /// Of all of them.
    bytes: usize,
    /// Of those in `by_bytes`.
    at_rest: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Staging {
    database: DatabaseId,
    page_size: PageSize,
    /// Older ones first.
    pub segments: Vec<(Entry, Arc<Index>)>,
    /// Newer than all segments.
    pub pages: Blobs,
    bytes: usize,
    /// They are becoming segments.
    spilling: bool,
    /// What it had was dropped (STG2).
    lost: bool,
}

/// Pages in memory that have to become segments.
#[derive(Debug)]
pub(crate) struct Spill {
    pub staging: StagingId,
    pub database: DatabaseId,
    pub page_size: PageSize,
    pub pages: Blobs,
}

impl Stagings {
    /// None, of which so many bytes may be kept in memory.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            by_id: HashMap::new(),
            by_bytes: BTreeSet::new(),
            bytes: 0,
            at_rest: 0,
        }
    }

    /// Adds pages; a page that is there already is replaced. Answers what has to become a segment, be it of another staging: the caller
    /// says [`Stagings::spilled`] when it is one, and [`Stagings::spill_is_over`] in any case.
    pub(crate) fn add(
        &mut self,
        id: StagingId,
        database: DatabaseId,
        page_size: PageSize,
        pages: Vec<(PageNumber, StoredBlob)>,
    ) -> Result<Option<Spill>, StoreError> {
        let known = self.by_id.get(&id);
        if known.is_some_and(|known| !known.is_of(database, page_size)) {
            return Err(StoreError::StagingUnknown(id));
        }
        let added: usize = pages.iter().map(|(_, blob)| weight(blob)).sum();
        if self.bytes + added > self.most.saturating_mul(2) {
            return Err(StoreError::Unavailable(
                "the uploads of all clients wait for the store below".to_owned(),
            ));
        }
        self.by_id.entry(id).or_insert_with(|| Staging {
            database,
            page_size,
            segments: Vec::new(),
            pages: BTreeMap::new(),
            bytes: 0,
            spilling: false,
            lost: false,
        });
        self.change(id, |staging| {
            for (number, blob) in pages {
                staging.bytes += weight(&blob);
                if let Some(old) = staging.pages.insert(number.get(), blob) {
                    staging.bytes -= weight(&old);
                }
            }
        });
        let is_full = |s: &Staging| s.bytes >= BUFFER_BYTES && !s.spilling;
        if self.by_id.get(&id).is_some_and(is_full) {
            return Ok(self.begin_spill(id));
        }
        if self.at_rest <= self.most {
            return Ok(None);
        }
        let largest = self.by_bytes.last().map(|(_, id)| *id);
        Ok(largest.and_then(|id| self.begin_spill(id)))
    }

    /// What stays until its segment is there: a commit that comes in between has it from here.
    fn begin_spill(&mut self, id: StagingId) -> Option<Spill> {
        self.change(id, |staging| {
            staging.spilling = true;
            Spill {
                staging: id,
                database: staging.database,
                page_size: staging.page_size,
                pages: staging.pages.clone(),
            }
        })
    }

    /// Pages have become segments; those that were replaced meanwhile stay.
    pub(crate) fn spilled(
        &mut self,
        id: StagingId,
        segments: Vec<(Entry, Arc<Index>)>,
        spilled: &Blobs,
    ) {
        self.change(id, |staging| {
            if staging.lost {
                return;
            }
            staging.pages.retain(|page, blob| {
                let same = spilled
                    .get(page)
                    .is_some_and(|old| old.bytes.as_ptr() == blob.bytes.as_ptr());
                !same
            });
            staging.bytes = staging.pages.values().map(weight).sum();
            staging.segments.extend(segments);
        });
    }

    /// However it went.
    pub(crate) fn spill_is_over(&mut self, id: StagingId) {
        self.change(id, |staging| staging.spilling = false);
    }

    /// Changes a staging, and what is counted of it.
    fn change<T>(&mut self, id: StagingId, change: impl FnOnce(&mut Staging) -> T) -> Option<T> {
        let mut staging = self.take(id)?;
        let changed = change(&mut staging);
        self.bytes += staging.bytes;
        if staging.bytes > 0 && !staging.spilling {
            self.by_bytes.insert((staging.bytes, id));
            self.at_rest += staging.bytes;
        }
        self.by_id.insert(id, staging);
        Some(changed)
    }

    fn take(&mut self, id: StagingId) -> Option<Staging> {
        let staging = self.by_id.remove(&id)?;
        self.bytes -= staging.bytes;
        if self.by_bytes.remove(&(staging.bytes, id)) {
            self.at_rest -= staging.bytes;
        }
        Some(staging)
    }

    /// The stagings that a commit names; each has to be there once, for the database and the page size.
    pub(crate) fn named(
        &self,
        ids: &[StagingId],
        database: DatabaseId,
        page_size: PageSize,
    ) -> Result<Vec<Staging>, StoreError> {
        let mut seen = HashSet::new();
        ids.iter()
            .map(|id| {
                let found = self.by_id.get(id);
                let found =
                    found.filter(|staging| staging.is_of(database, page_size) && seen.insert(*id));
                found.cloned().ok_or(StoreError::StagingUnknown(*id))
            })
            .collect()
    }

    /// Forgets a staging.
    pub(crate) fn forget(&mut self, id: StagingId) {
        self.take(id);
    }

    /// Forgets the stagings of a database that is removed: no staging is ever of its id again.
    pub(crate) fn drop_database(&mut self, database: DatabaseId) {
        for id in self.of(database) {
            self.forget(id);
        }
    }

    fn of(&self, database: DatabaseId) -> Vec<StagingId> {
        let of = self.by_id.iter().filter(|(_, s)| s.database == database);
        of.map(|(id, _)| *id).collect()
    }

    /// Drops what the stagings of a database have (STG2).
    pub(crate) fn lose_database(&mut self, database: DatabaseId) {
        for id in self.of(database) {
            self.change(id, |staging| {
                staging.segments.clear();
                staging.pages.clear();
                staging.bytes = 0;
                staging.lost = true;
            });
        }
    }
}

impl Staging {
    /// Whether it may be added to and committed there.
    fn is_of(&self, database: DatabaseId, page_size: PageSize) -> bool {
        !self.lost && (self.database, self.page_size) == (database, page_size)
    }
}

/// Full pages of a message, ready to be stored.
pub(crate) fn blobs(pages: Vec<PageWrite>) -> Vec<(PageNumber, StoredBlob)> {
    pages
        .into_iter()
        .map(|page| (page.number, StoredBlob::new(&page.content)))
        .collect()
}

/// Pages of zeros count too.
fn weight(blob: &StoredBlob) -> usize {
    blob.bytes.len() + INDEX_ENTRY_BYTES
}
