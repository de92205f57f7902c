//! Pages that were uploaded ahead of their commit. Never visible to a reader.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use pagewire_proto::{DatabaseId, PageNumber, PageSize, StagingId};
use pagewire_server::store::StoreError;

/// All stagings of a store.
#[derive(Debug, Default)]
pub(crate) struct Stagings(HashMap<StagingId, Staging>);

#[derive(Debug)]
struct Staging {
    database: DatabaseId,
    page_size: PageSize,
    pages: BTreeMap<PageNumber, Bytes>,
}

impl Stagings {
    /// Adds pages; a page that is there already is replaced.
    pub(crate) fn add(
        &mut self,
        id: StagingId,
        database: DatabaseId,
        page_size: PageSize,
        pages: Vec<(PageNumber, Bytes)>,
    ) -> Result<(), StoreError> {
        let staging = self.0.entry(id).or_insert_with(|| Staging {
            database,
            page_size,
            pages: BTreeMap::new(),
        });
        if (staging.database, staging.page_size) != (database, page_size) {
            return Err(StoreError::StagingUnknown(id));
        }
        staging.pages.extend(pages);
        Ok(())
    }

    /// Fails unless each is there once, for the database and the page size.
    pub(crate) fn check(
        &self,
        named: impl Iterator<Item = (StagingId, DatabaseId, PageSize)>,
    ) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        for (id, database, page_size) in named {
            let fits = self.0.get(&id).is_some_and(|staging| {
                (staging.database, staging.page_size) == (database, page_size)
            });
            if !fits || !seen.insert(id) {
                return Err(StoreError::StagingUnknown(id));
            }
        }
        Ok(())
    }

    /// The pages of a staging, which is gone with this; none if there is no such staging.
    pub(crate) fn take(&mut self, id: StagingId) -> BTreeMap<PageNumber, Bytes> {
        self.0.remove(&id).map_or_else(BTreeMap::new, |s| s.pages)
    }

    /// Drops the stagings of a database.
    pub(crate) fn drop_database(&mut self, database: DatabaseId) {
        self.0.retain(|_, staging| staging.database != database);
    }
}
