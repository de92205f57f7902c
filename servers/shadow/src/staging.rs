//! Pages that were uploaded ahead of their commit: what does not fit into memory is in segments that nobody has named yet. Which
//! segments belong to a staging is known to this process alone, so they are gone with it (C15) and collected like any other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use pagewire_proto::{DatabaseId, PageNumber, PageSize, StagingId};
use pagewire_server::store::{PageWrite, StoreError};

use crate::cells::Entry;
use crate::segment::{Blobs, INDEX_ENTRY_BYTES, Index, StoredBlob};

/// Bytes of a staging that are kept in memory; beyond it they become a segment.
pub(crate) const BUFFER_BYTES: usize = 4 << 20;

/// All stagings of a server.
#[derive(Debug, Default)]
pub(crate) struct Stagings(HashMap<StagingId, Staging>);

#[derive(Clone, Debug)]
pub(crate) struct Staging {
    database: DatabaseId,
    page_size: PageSize,
    /// Older ones first.
    pub segments: Vec<(Entry, Arc<Index>)>,
    /// Newer than all segments.
    pub pages: Blobs,
    bytes: usize,
}

impl Stagings {
    /// Adds pages; a page that is there already is replaced. Answers what has to become a segment.
    pub(crate) fn add(
        &mut self,
        id: StagingId,
        database: DatabaseId,
        page_size: PageSize,
        pages: Vec<(PageNumber, StoredBlob)>,
    ) -> Result<Option<Blobs>, StoreError> {
        let staging = self.0.entry(id).or_insert_with(|| Staging {
            database,
            page_size,
            segments: Vec::new(),
            pages: BTreeMap::new(),
            bytes: 0,
        });
        if (staging.database, staging.page_size) != (database, page_size) {
            return Err(StoreError::StagingUnknown(id));
        }
        for (number, blob) in pages {
            staging.bytes += weight(&blob);
            if let Some(old) = staging.pages.insert(number.get(), blob) {
                staging.bytes -= weight(&old);
            }
        }
        if staging.bytes < BUFFER_BYTES {
            return Ok(None);
        }
        // Stays until its segment is there: a commit that comes in between has them from here.
        Ok(Some(staging.pages.clone()))
    }

    /// Pages have become segments; those that were replaced meanwhile stay.
    pub(crate) fn spilled(
        &mut self,
        id: StagingId,
        segments: Vec<(Entry, Arc<Index>)>,
        spilled: &Blobs,
    ) {
        let Some(staging) = self.0.get_mut(&id) else {
            return;
        };
        staging.pages.retain(|page, blob| {
            let same = spilled
                .get(page)
                .is_some_and(|old| old.bytes.as_ptr() == blob.bytes.as_ptr());
            !same
        });
        staging.bytes = staging.pages.values().map(weight).sum();
        staging.segments.extend(segments);
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
                let found = self.0.get(id).filter(|staging| {
                    (staging.database, staging.page_size) == (database, page_size)
                        && seen.insert(*id)
                });
                found.cloned().ok_or(StoreError::StagingUnknown(*id))
            })
            .collect()
    }

    /// Forgets a staging.
    pub(crate) fn forget(&mut self, id: StagingId) {
        self.0.remove(&id);
    }

    /// Forgets the stagings of a database.
    pub(crate) fn drop_database(&mut self, database: DatabaseId) {
        self.0.retain(|_, staging| staging.database != database);
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
