//! Pages that wait for their commit, as the committer knows them.
//!
//! They are buffered in memory, and written to the engine ("spilled") when all buffers together are too large: in
//! transactions of their own, under the serial number of their staging, where no reader looks. Serial numbers are never used
//! twice, so that a later staging cannot touch what an earlier one left. A commit then points to the rows instead of
//! copying them. The row `Staging` says that nobody has named it yet: it is dropped in the transaction of the commit, so
//! that what has it after a restart belongs to the dead.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use pagewire_proto::{DatabaseId, PageNumber, PageSize, StagingId};
use pagewire_server::store::{PageWrite, StoreError};

use crate::values::encode_page;

/// A page ready to be written.
#[derive(Debug)]
pub(crate) struct EncodedPage {
    pub(crate) body: Vec<u8>,
    /// Of the body, computed where there is time for it.
    pub(crate) crc: u32,
}

/// Pages by number; of a page that is named twice the last one.
pub(crate) type Pages = BTreeMap<PageNumber, EncodedPage>;

/// A staging.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) serial: u64,
    pub(crate) database: DatabaseId,
    pub(crate) page_size: PageSize,
    /// Whether there are rows of it.
    pub(crate) spilled: bool,
    /// Newer than the rows.
    pub(crate) buffered: Pages,
}

/// All stagings.
#[derive(Debug, Default)]
pub(crate) struct Stagings {
    live: HashMap<StagingId, Staging>,
    buffered_bytes: usize,
}

/// Encodes pages: work for the caller's thread, not for the committer's.
pub(crate) fn encode(pages: Vec<PageWrite>, size: PageSize) -> Pages {
    static ZEROS: [u8; PageSize::MAX.bytes()] = [0; PageSize::MAX.bytes()];
    let encode = |page: PageWrite| {
        let content = match page.content.is_empty() {
            true => &ZEROS[..size.bytes()],
            false => &page.content,
        };
        let body = encode_page(content, size);
        let crc = crc32fast::hash(&body);
        (page.number, EncodedPage { body, crc })
    };
    pages.into_iter().map(encode).collect()
}

/// Bytes that pages take in memory and on the medium.
pub(crate) fn bytes_of(pages: &Pages) -> usize {
    pages.values().map(EncodedPage::bytes).sum()
}

impl EncodedPage {
    fn bytes(&self) -> usize {
        self.body.len() + 64
    }
}

impl Stagings {
    /// Adds pages, under a new serial number where there is no such staging.
    pub(crate) fn add(
        &mut self,
        id: StagingId,
        database: DatabaseId,
        page_size: PageSize,
        pages: Pages,
        serial: impl FnOnce() -> u64,
    ) -> Result<(), StoreError> {
        let staging = self.live.entry(id).or_insert_with(|| Staging {
            serial: serial(),
            database,
            page_size,
            spilled: false,
            buffered: Pages::new(),
        });
        if (staging.database, staging.page_size) != (database, page_size) {
            return Err(StoreError::StagingUnknown(id));
        }
        for (number, page) in pages {
            self.buffered_bytes += page.bytes();
            if let Some(old) = staging.buffered.insert(number, page) {
                self.buffered_bytes -= old.bytes();
            }
        }
        Ok(())
    }

    /// The staging, if it is for this database and page size.
    pub(crate) fn get(
        &self,
        id: StagingId,
        database: DatabaseId,
        page_size: PageSize,
    ) -> Result<&Staging, StoreError> {
        let staging = self.live.get(&id);
        let fits = |s: &&Staging| (s.database, s.page_size) == (database, page_size);
        staging.filter(fits).ok_or(StoreError::StagingUnknown(id))
    }

    /// Takes a staging out.
    pub(crate) fn take(&mut self, id: StagingId) -> Option<Staging> {
        let staging = self.live.remove(&id)?;
        self.buffered_bytes -= bytes_of(&staging.buffered);
        Some(staging)
    }

    /// Undoes [`Stagings::take`], where what took it came to nothing.
    pub(crate) fn put_back(&mut self, id: StagingId, staging: Staging) {
        if let Entry::Vacant(place) = self.live.entry(id) {
            self.buffered_bytes += bytes_of(&staging.buffered);
            place.insert(staging);
        }
    }

    /// Takes out all stagings of a database.
    pub(crate) fn take_database(&mut self, database: DatabaseId) -> Vec<(StagingId, Staging)> {
        let of_it = |(_, staging): &(&StagingId, &Staging)| staging.database == database;
        let ids: Vec<_> = self.live.iter().filter(of_it).map(|(id, _)| *id).collect();
        let taken = ids.into_iter();
        taken.filter_map(|id| Some((id, self.take(id)?))).collect()
    }

    /// Bytes in all buffers.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// Those that have buffered pages.
    pub(crate) fn buffered(&self) -> impl Iterator<Item = &Staging> {
        self.live.values().filter(|s| !s.buffered.is_empty())
    }

    /// All buffered pages are in rows now.
    pub(crate) fn spilled(&mut self) {
        self.buffered_bytes = 0;
        for staging in self.live.values_mut() {
            if !staging.buffered.is_empty() {
                staging.buffered.clear();
                staging.spilled = true;
            }
        }
    }
}
