//! Questions to the rows, in any transaction: what a reader sees, and what the committer sees of its own work.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;
use heed::RoTxn;
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{Changes, DatabaseId, DatabaseName, PageCount, PageNumber, Version};
use pagewire_server::store::{StoreError, StoredPage};

use crate::engine::{Engine, check, corrupt, senseless};
use crate::keys::Key;
use crate::values::{Changed, Head, PageBody, Record, decode_pages};

/// Versions over which changes are collected: beyond, forgetting is cheaper than the answer.
const MAX_CHANGES_SPAN: u64 = 4096;
/// Where the body of a page says of which kind it is: after the checksum of the row.
const KIND_AT: usize = 4;

impl Engine {
    pub(crate) fn named(
        &self,
        txn: &RoTxn<'_>,
        name: &DatabaseName,
    ) -> Result<Option<DatabaseId>, StoreError> {
        let key = Key::Name(name.clone());
        let row = self.get(txn, &key)?;
        row.map(|body| DatabaseId::try_from(body).map_err(|_| senseless(&key)))
            .transpose()
    }

    pub(crate) fn head(&self, txn: &RoTxn<'_>, database: DatabaseId) -> Result<Head, StoreError> {
        let key = Key::Head(database);
        let row = self.get(txn, &key)?.ok_or(StoreError::DatabaseNotFound)?;
        Head::decode(row).ok_or_else(|| senseless(&key))
    }

    pub(crate) fn record(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<Option<Record>, StoreError> {
        let key = Key::Record(database, version);
        let row = self.get(txn, &key)?;
        row.map(|body| Record::decode(body).ok_or_else(|| senseless(&key)))
            .transpose()
    }

    /// What the pages of a version need; `VersionGone` where there is no such version.
    pub(crate) fn version(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<Head, StoreError> {
        let head = self.head(txn, database)?;
        if head.snapshot.version == version {
            return Ok(head);
        }
        if version == Version::ZERO {
            return Ok(Head::EMPTY);
        }
        match self.record(txn, database, version)? {
            Some(record) if version < head.snapshot.version => Ok(record.head),
            _ => Err(StoreError::VersionGone { version }),
        }
    }

    /// A page as of a version.
    pub(crate) fn page(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        at: &Head,
        number: PageNumber,
    ) -> Result<StoredPage, StoreError> {
        let nothing = StoredPage {
            content: Bytes::new(),
            version: Version::ZERO,
        };
        if !at.snapshot.page_count.has(number) {
            return Ok(nothing);
        }
        let newest = Key::Page(database, number, at.snapshot.version).encode();
        // Every version of the page begins alike.
        let prefix = &newest[..newest.len() - 8];
        let Some((key, row)) = self.seek(txn, &newest, prefix)? else {
            return Ok(nothing);
        };
        let Some(Key::Page(_, _, version)) = Key::decode(key) else {
            return Err(corrupt(key, "not a key of this store"));
        };
        if version < at.since {
            return Ok(nothing);
        }
        let body = PageBody::decode(check(key, row)?).ok_or_else(|| corrupt(key, "not a page"))?;
        let content = match body {
            PageBody::Gone => return Ok(nothing),
            PageBody::Staged(serial) => {
                let staged = Key::Staged(serial, number);
                let damaged = |problem: &str| corrupt(key, problem);
                let row = self.get(txn, &staged).map_err(|error| match error {
                    StoreError::Corrupt(_) => damaged("its staged content: checksum differs"),
                    error => error,
                })?;
                let row = row.ok_or_else(|| damaged("its staged content is not there"))?;
                PageBody::decode(row).and_then(|body| body.content())
            }
            body => body.content(),
        };
        let content = content.ok_or_else(|| corrupt(key, "cannot be decompressed"))?;
        Ok(StoredPage { content, version })
    }

    /// Pages beyond a count that the head has, from the last on.
    pub(crate) fn pages_beyond(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        head: &Head,
        count: PageCount,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let [pages, _, _] = Key::rows_of(database);
        let mut found = Vec::new();
        let mut last = head.snapshot.page_count.get();
        while last > count.get() {
            let Ok(number) = PageNumber::try_from(last) else {
                break;
            };
            let key = Key::Page(database, number, Version::new(u64::MAX)).encode();
            let Some((key, row)) = self.seek(txn, &key, &pages)? else {
                break;
            };
            let Some(Key::Page(_, number, version)) = Key::decode(key) else {
                return Err(corrupt(key, "not a key of this store"));
            };
            if count.has(number) {
                break;
            }
            if version >= head.since && row.get(KIND_AT) != Some(&0) {
                found.push(number);
            }
            last = number.get() - 1;
        }
        Ok(found)
    }

    /// The pages that differ between a version and the head.
    pub(crate) fn changes(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        head: Version,
        since: Version,
    ) -> Result<Changes, StoreError> {
        if since > head || head.get() - since.get() > MAX_CHANGES_SPAN {
            return Ok(Changes::All);
        }
        let mut pages = BTreeSet::new();
        for version in since.get() + 1..=head.get() {
            let version = Version::new(version);
            let Some(record) = self.record(txn, database, version)? else {
                return Ok(Changes::All);
            };
            match record.changed {
                Changed::All => return Ok(Changes::All),
                Changed::Inline(changed) => pages.extend(changed),
                Changed::Chunks(count) => {
                    let [_, _, mut prefix] = Key::rows_of(database);
                    prefix.extend(version.get().to_be_bytes());
                    let mut read = 0;
                    self.scan(txn, Bound::Included(&prefix), &prefix, |key, row| {
                        let chunk = decode_pages(check(key, row)?)
                            .ok_or_else(|| corrupt(key, "not a list of pages"))?;
                        read += chunk.len();
                        pages.extend(chunk);
                        Ok(true)
                    })?;
                    if read != count as usize {
                        return Err(senseless(&Key::Record(database, version)));
                    }
                }
            }
            if pages.len() > MAX_CHANGED_PAGES {
                return Ok(Changes::All);
            }
        }
        Ok(Changes::Pages(pages.into_iter().collect()))
    }

    /// Numbers of the pages of a staging.
    pub(crate) fn staged_pages(
        &self,
        txn: &RoTxn<'_>,
        serial: u64,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let prefix = Key::staged(serial);
        let mut pages = Vec::new();
        self.scan(txn, Bound::Included(&prefix), &prefix, |key, _| {
            match Key::decode(key) {
                Some(Key::Staged(_, page)) => pages.push(page),
                _ => return Err(corrupt(key, "not a key of this store")),
            }
            Ok(true)
        })?;
        Ok(pages)
    }

    /// The staging whose page has the content of a row of a page, if it is one.
    pub(crate) fn points_to(key: &[u8], row: &[u8]) -> Option<Key> {
        let Some(Key::Page(_, number, _)) = Key::decode(key) else {
            return None;
        };
        match PageBody::decode(check(key, row).ok()?)? {
            PageBody::Staged(serial) => Some(Key::Staged(serial, number)),
            _ => None,
        }
    }
}
