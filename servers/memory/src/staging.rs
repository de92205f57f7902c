//! Pages that were uploaded ahead of their commit, never visible to a reader; and what a commit makes of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use pagewire_proto::{DatabaseId, PageNumber, PageSize, StagingId};
use pagewire_server::store::{DatabaseCommit, PageWrite, StoreError};

/// All stagings of a store.
#[derive(Debug, Default)]
pub struct Stagings(HashMap<StagingId, Staging>);

#[derive(Debug)]
struct Staging {
    database: DatabaseId,
    page_size: PageSize,
    pages: BTreeMap<PageNumber, Bytes>,
}

impl Stagings {
    /// Adds pages; a page that is there already is replaced.
    pub fn add(
        &mut self,
        id: StagingId,
        database: DatabaseId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        let staging = self.0.entry(id).or_insert_with(|| Staging {
            database,
            page_size,
            pages: BTreeMap::new(),
        });
        if (staging.database, staging.page_size) != (database, page_size) {
            return Err(StoreError::StagingUnknown(id));
        }
        let own = |page: PageWrite| (page.number, own(page.content, page_size));
        staging.pages.extend(pages.into_iter().map(own));
        Ok(())
    }

    /// Fails unless all that these name are there, each once, for the database and the page size.
    pub fn check(&self, parts: &[DatabaseCommit]) -> Result<(), StoreError> {
        let mut seen = HashSet::new();
        for part in parts {
            for id in &part.stagings {
                let fits = self.0.get(id).is_some_and(|staging| {
                    (staging.database, staging.page_size) == (part.database, part.page_size)
                });
                if !fits || !seen.insert(*id) {
                    return Err(StoreError::StagingUnknown(*id));
                }
            }
        }
        Ok(())
    }

    /// All pages that a commit writes to a database: the last one holds, none is beyond the page count (C8). The stagings
    /// that it names are gone with this.
    pub fn pages_of(&mut self, part: DatabaseCommit) -> BTreeMap<PageNumber, Bytes> {
        let mut pages = BTreeMap::new();
        for id in part.stagings {
            pages.extend(self.take(id));
        }
        for page in part.pages {
            pages.insert(page.number, own(page.content, part.page_size));
        }
        pages.retain(|number, _| part.page_count.has(*number));
        pages
    }

    /// The pages of a staging, which is gone with this; none if there is no such staging.
    pub fn take(&mut self, id: StagingId) -> BTreeMap<PageNumber, Bytes> {
        self.0.remove(&id).map_or_else(BTreeMap::new, |s| s.pages)
    }

    /// Drops the stagings of a database.
    pub fn drop_database(&mut self, database: DatabaseId) {
        self.0.retain(|_, staging| staging.database != database);
    }
}

/// The page in memory of its own, of full length: what comes from the wire is a slice of a message, which a single kept
/// page would keep as a whole.
fn own(content: Bytes, page_size: PageSize) -> Bytes {
    static ZEROS: [u8; PageSize::MAX.bytes()] = [0; PageSize::MAX.bytes()];
    if content.is_empty() {
        Bytes::from_static(&ZEROS[..page_size.bytes()])
    } else {
        Bytes::copy_from_slice(&content)
    }
}
