//! Questions to the rows, in any transaction: what a reader sees, and what the committer sees of its own work.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;
use heed::RoTxn;
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{Changes, DatabaseId, DatabaseName, PageCount, PageNumber, Version};
use pagewire_server::store::{StoreError, StoredPage};

use crate::engine::{Engine, Row, SUM_LEN, check, corrupt, senseless};
use crate::keys::Key;
use crate::values::{Base, Changed, Database, Head, PageBody, Past, Record, Segment, decode_pages};

/// Versions over which changes are collected: beyond, forgetting is cheaper than the answer.
const MAX_CHANGES_SPAN: u64 = 4096;
/// Where the body of a page says of which kind it is: after the checksum of the row.
pub(crate) const KIND_AT: usize = SUM_LEN;

/// Whether the row of a page has one, or says that there is none from that version on.
///
/// Bug: a page was read as one that is not there. Cause: a bit of its row's kind had flipped, which was believed before the checksum was looked at, and
/// without content it never was. Fix: a row that says that there is nothing is checked; others are where their content is read.
fn is_there(key: &[u8], row: &[u8]) -> Result<bool, StoreError> {
    let there = row.get(KIND_AT) != Some(&0);
    if !there {
        check(key, row)?;
    }
    Ok(there)
}

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

    /// A database that was not removed.
    pub(crate) fn database(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
    ) -> Result<Database, StoreError> {
        let found = self.row(txn, &Key::Head(database), Database::decode)?;
        found.ok_or(StoreError::DatabaseNotFound)
    }

    pub(crate) fn head(&self, txn: &RoTxn<'_>, database: DatabaseId) -> Result<Head, StoreError> {
        Ok(self.database(txn, database)?.head)
    }

    pub(crate) fn record(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<Option<Record>, StoreError> {
        self.row(txn, &Key::Record(database, version), Record::decode)
    }

    /// A row, decoded.
    pub(crate) fn row<T>(
        &self,
        txn: &RoTxn<'_>,
        key: &Key,
        decode: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let row = self.get(txn, key)?;
        row.map(|body| decode(body).ok_or_else(|| senseless(key)))
            .transpose()
    }

    /// The commit that made a version, and when, as long as that is known: of kept versions, and of others for a while (C14).
    pub(crate) fn past(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<Option<Past>, StoreError> {
        if let Some(record) = self.record(txn, database, version)? {
            let Record {
                commit, time_ms, ..
            } = record;
            return Ok(Some(Past { commit, time_ms }));
        }
        self.row(txn, &Key::Past(database, version), Past::decode)
    }

    /// What the pages of a version need; `VersionGone` where it is not kept.
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

    /// The newest version at or before one that has a row under a prefix of (prefix, version).
    pub(crate) fn newest_version(
        &self,
        txn: &RoTxn<'_>,
        prefix: &[u8],
        at: Version,
    ) -> Result<Option<Version>, StoreError> {
        // Longer than any key of that version.
        let key = [prefix, &at.get().to_be_bytes(), &[0xff; 160]].concat();
        let found = self.seek(txn, &key, prefix)?;
        Ok(found.and_then(|(key, _)| version_in(key, prefix.len())))
    }

    /// The oldest version from one on that has such a row.
    pub(crate) fn oldest_version(
        &self,
        txn: &RoTxn<'_>,
        prefix: &[u8],
        from: Version,
    ) -> Result<Option<Version>, StoreError> {
        let key = [prefix, &from.get().to_be_bytes()].concat();
        let mut found = None;
        self.scan(txn, Bound::Included(&key), prefix, |key, _| {
            found = version_in(key, prefix.len());
            Ok(false)
        })?;
        Ok(found)
    }

    /// Whether anything lies under the id of a database, be it one that was removed.
    pub(crate) fn has_history(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
    ) -> Result<bool, StoreError> {
        let mut found = false;
        for prefix in [
            Key::segments_of(database),
            Key::children_of(database),
            Key::pages_of(database),
        ] {
            self.scan(txn, Bound::Included(&prefix), &prefix, |_, _| {
                found = true;
                Ok(false)
            })?;
        }
        Ok(found)
    }

    /// The segment of a version and what that stands on, and so on.
    pub(crate) fn chain(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        head: Head,
    ) -> Result<Vec<Base>, StoreError> {
        let mut chain = vec![Base {
            database,
            head,
            reach: head.snapshot.page_count,
        }];
        while let Some(link) = chain.last() {
            let key = Key::Segment(link.database, link.head.since);
            let Some(base) = self.row(txn, &key, Segment::decode)?.and_then(|s| s.base) else {
                break;
            };
            chain.push(base);
        }
        Ok(chain)
    }

    /// The row that has a page, and the version to answer for it: nothing from below the segment of the version asked.
    pub(crate) fn locate<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        chain: &[Base],
        number: PageNumber,
    ) -> Result<Option<(Version, Row<'t>)>, StoreError> {
        for (depth, link) in chain.iter().enumerate() {
            let head = &link.head;
            if !link.reach.has(number) || !head.snapshot.page_count.has(number) {
                return Ok(None);
            }
            let newest = Key::Page(link.database, number, head.snapshot.version).encode();
            // Every version of the page begins alike.
            let prefix = &newest[..newest.len() - 8];
            if let Some((key, row)) = self.seek(txn, &newest, prefix)? {
                let version = version_in(key, prefix.len());
                let version = version.ok_or_else(|| corrupt(key, "not a key of this store"))?;
                if version > head.since || (version == head.since && head.lasting.has(number)) {
                    let there = is_there(key, row)?;
                    // Numbers of versions below mean nothing here (B1).
                    let version = match depth {
                        0 => version,
                        _ => chain[0].head.since,
                    };
                    return Ok(there.then_some((version, (key, row))));
                }
            }
            if !head.lasting.has(number) {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// A page as of the version at the top of a chain.
    pub(crate) fn page(
        &self,
        txn: &RoTxn<'_>,
        chain: &[Base],
        number: PageNumber,
    ) -> Result<StoredPage, StoreError> {
        let Some((version, (key, row))) = self.locate(txn, chain, number)? else {
            return Ok(StoredPage {
                content: Bytes::new(),
                version: Version::ZERO,
            });
        };
        let body = self.content_row(txn, key, row)?;
        let content = PageBody::decode(body).and_then(|body| body.content());
        let content = content.ok_or_else(|| corrupt(key, "cannot be decompressed"))?;
        Ok(StoredPage { content, version })
    }

    /// The body that has the content of a row of a page: its own, or that of the staged row to which it points.
    pub(crate) fn content_row<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        key: &[u8],
        row: &'t [u8],
    ) -> Result<&'t [u8], StoreError> {
        let body = check(key, row)?;
        let page = PageBody::decode(body).ok_or_else(|| corrupt(key, "not a page"))?;
        let (PageBody::Staged(serial), Some(Key::Page(_, number, _))) = (page, Key::decode(key))
        else {
            return Ok(body);
        };
        let damaged = |problem: &str| corrupt(key, problem);
        let staged = self.get(txn, &Key::Staged(serial, number));
        let staged = staged.map_err(|error| match error {
            StoreError::Corrupt(_) => damaged("its staged content: checksum differs"),
            error => error,
        })?;
        staged.ok_or_else(|| damaged("its staged content is not there"))
    }

    /// Pages beyond a count that the head has, from the last on.
    pub(crate) fn pages_beyond(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        head: &Head,
        count: PageCount,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let pages = Key::pages_of(database);
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
            if version >= head.since && is_there(key, row)? {
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
                    let chunks = self.changed_chunks(txn, database, version)?;
                    if chunks.len() != count as usize {
                        return Err(senseless(&Key::Record(database, version)));
                    }
                    pages.extend(chunks);
                }
            }
            if pages.len() > MAX_CHANGED_PAGES {
                return Ok(Changes::All);
            }
        }
        Ok(Changes::Pages(pages.into_iter().collect()))
    }

    /// The changed pages of a version whose record has no room for them.
    pub(crate) fn changed_chunks(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let prefix = Key::changed_of(database, version);
        let mut pages = Vec::new();
        self.scan(txn, Bound::Included(&prefix), &prefix, |key, row| {
            let chunk = decode_pages(check(key, row)?);
            pages.extend(chunk.ok_or_else(|| corrupt(key, "not a list of pages"))?);
            Ok(true)
        })?;
        Ok(pages)
    }

    /// Numbers of the pages of a staging, each with the length of its body.
    pub(crate) fn staged_pages(
        &self,
        txn: &RoTxn<'_>,
        serial: u64,
    ) -> Result<Vec<(PageNumber, usize)>, StoreError> {
        let prefix = Key::staged(serial);
        let mut pages = Vec::new();
        self.scan(txn, Bound::Included(&prefix), &prefix, |key, row| {
            match Key::decode(key) {
                Some(Key::Staged(_, page)) => pages.push((page, row.len().saturating_sub(SUM_LEN))),
                _ => return Err(corrupt(key, "not a key of this store")),
            }
            Ok(true)
        })?;
        Ok(pages)
    }
}

/// The version that a key has after a prefix.
fn version_in(key: &[u8], prefix: usize) -> Option<Version> {
    let bytes = key.get(prefix..prefix + 8)?.try_into().ok()?;
    Some(Version::new(u64::from_be_bytes(bytes)))
}
