//! What a reader sees: a version, the row that has a page of it, the pages that changed.
//!
//! A page is the newest row (database, page, version, layer) at or before the version asked: one range read, backwards, for a run of pages (`runs.rs`). What
//! that row still has to be asked is read beside it, not before it: whether the version is kept (its `Record`), and
//! whether the row was written ahead by an attempt that came to nothing (`Attempt`, nearly always an empty range). Only a page that its
//! segment does not have costs another round, for each segment below.
//!
//! * **R1** All of an answer is read in one transaction: a version of which the record is there has all of its rows there.
//! * **R2** A row of a layer counts only if its attempt has no row `Attempt`: that row goes in the transaction that makes the version, or
//!   after the last row of the attempt.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::future::{try_join, try_join_all, try_join3};
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{Changes, DatabaseId, PageNumber, Version};
use pagewire_server::store::{StoreError, StoredPage};

use crate::engine::{Fail, Read, Row, Txn, corrupt, senseless};
use crate::keys::{Key, Range, serial_of};
use crate::values::{
    Attempt, Changed, Database, Head, PageBody, Past, Record, Segment, decode_pages,
};

/// Versions over which changes are collected: beyond, forgetting is cheaper than the answer.
const MAX_CHANGES_SPAN: u64 = 1024;
/// Rows of a page that are looked at together where the two newest ones count for nothing.
const PASSED_BY: usize = 8;

/// The attempts under way or abandoned on a database, by serial number.
pub(crate) type Attempts = BTreeMap<u64, Attempt>;

/// The row that has a page, and the version to answer for it.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) version: Version,
    pub(crate) row: Row,
}

/// What some rows of a page tell of it.
enum Counts {
    /// This one is shown, as that version wrote it.
    Shown(Version, Row),
    /// None is.
    Not,
    /// All of them are of attempts: it is before this one, if there is any.
    Before(Vec<u8>),
}

impl Txn {
    /// A database that was not removed.
    pub(crate) async fn database(&self, id: DatabaseId, read: Read) -> Result<Database, Fail> {
        let found = self.row(&Key::Head(id), read, Database::decode).await?;
        Ok(found.ok_or(StoreError::DatabaseNotFound)?)
    }

    pub(crate) async fn record(
        &self,
        database: DatabaseId,
        version: Version,
        read: Read,
    ) -> Result<Option<Record>, Fail> {
        let key = Key::Record(database, version);
        self.row(&key, read, Record::decode).await
    }

    /// The commit that made a version, and when, as long as that is known: of kept versions, and of others for a while (C14).
    pub(crate) async fn past(
        &self,
        database: DatabaseId,
        version: Version,
        read: Read,
    ) -> Result<Option<Past>, Fail> {
        let key = Key::Past(database, version);
        let past = self.row(&key, read, Past::decode);
        let (record, past) = try_join(self.record(database, version, read), past).await?;
        Ok(match record {
            Some(record) => Some(Past {
                commit: record.commit,
                time_ms: record.time_ms,
                dropped: 0,
            }),
            None => past,
        })
    }

    /// What the pages of a version need; `VersionGone` where it is not kept.
    pub(crate) async fn version(
        &self,
        database: DatabaseId,
        version: Version,
        read: Read,
    ) -> Result<Head, Fail> {
        let there = self.database(database, Read::Loose);
        let record = self.record(database, version, read);
        let (_, record) = try_join(there, record).await?;
        match record {
            Some(record) => Ok(record.head),
            None if version == Version::ZERO => Ok(Head::EMPTY),
            None => Err(StoreError::VersionGone { version }.into()),
        }
    }

    pub(crate) async fn attempts(
        &self,
        database: DatabaseId,
        read: Read,
    ) -> Result<Attempts, Fail> {
        let range = self.space.attempts(database);
        let rows = self.scan(&range, usize::MAX, false, read).await?;
        let each = rows.iter().map(|row| match self.key(row)? {
            Key::Attempt(_, serial) => Ok((serial, self.decode(row, Attempt::decode)?)),
            key => Err(senseless(&key).into()),
        });
        each.collect()
    }

    /// What a segment stands on.
    pub(crate) async fn segment(
        &self,
        database: DatabaseId,
        head: &Head,
    ) -> Result<Option<Segment>, Fail> {
        if !head.based {
            return Ok(None);
        }
        let key = Key::Segment(database, head.since);
        let segment = self.row(&key, Read::Loose, Segment::decode).await?;
        Ok(segment.flatten())
    }

    /// Pages as of a version, in their order. All of them may be asked for at once.
    pub(crate) async fn pages(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, Fail> {
        let (head, attempts, rows) = try_join3(
            self.version(database, version, Read::Loose),
            self.attempts(database, Read::Loose),
            self.newest_rows(database, pages, version),
        )
        .await?;
        let rows = (attempts, rows);
        let found = self.settle(database, head, pages, rows, usize::MAX).await?;
        let content = |found: Option<Found>| match found {
            Some(found) => Ok(StoredPage {
                content: self.content(&found.row)?,
                version: found.version,
            }),
            None => Ok(StoredPage {
                content: Bytes::new(),
                version: Version::ZERO,
            }),
        };
        found.into_iter().map(content).collect()
    }

    /// The rows that have the pages of a version.
    pub(crate) async fn locate(
        &self,
        database: DatabaseId,
        head: Head,
        pages: &[PageNumber],
    ) -> Result<Vec<Option<Found>>, Fail> {
        self.locate_within(database, head, pages, usize::MAX).await
    }

    /// Those of them that are in one of so many segments, from that of the version downwards.
    pub(crate) async fn locate_within(
        &self,
        database: DatabaseId,
        head: Head,
        pages: &[PageNumber],
        segments: usize,
    ) -> Result<Vec<Option<Found>>, Fail> {
        let attempts = self.attempts(database, Read::Loose);
        let newest = self.newest_rows(database, pages, head.snapshot.version);
        let rows = try_join(attempts, newest).await?;
        self.settle(database, head, pages, rows, segments).await
    }

    /// Goes down the segments until each page is found or known not to be.
    async fn settle(
        &self,
        mut database: DatabaseId,
        mut head: Head,
        pages: &[PageNumber],
        (mut attempts, mut rows): (Attempts, Vec<Option<Row>>),
        mut segments: usize,
    ) -> Result<Vec<Option<Found>>, Fail> {
        let mut found = vec![None; pages.len()];
        let mut open: Vec<_> = (0..pages.len()).collect();
        // What comes from below is answered as written by the first version of the segment (B1).
        let mut written_above = None;
        // What the segment stands on, where it was asked for already.
        let mut next: Option<Option<Segment>> = None;
        loop {
            let mut below = Vec::new();
            let wanted: Vec<_> = open.iter().map(|index| pages[*index]).collect();
            let shown = self.shown(database, &head, &wanted, &attempts, rows);
            for (index, shown) in open.into_iter().zip(shown.await?) {
                let page = pages[index];
                match shown {
                    Some((written, row)) => {
                        found[index] = Some(Found {
                            version: written_above.unwrap_or(written),
                            row,
                        });
                    }
                    None if head.shows_below(page) => below.push(index),
                    None => {}
                }
            }
            segments = segments.saturating_sub(1);
            if below.is_empty() || segments == 0 {
                return Ok(found);
            }
            let segment = match next.take() {
                Some(segment) => segment,
                None => self.segment(database, &head).await?,
            };
            let Some(segment) = segment else {
                return Ok(found);
            };
            below.retain(|index| segment.reach.has(pages[*index]));
            written_above = written_above.or(Some(head.since));
            (database, head, open) = (segment.database, segment.head, below);
            let asked: Vec<_> = open.iter().map(|index| pages[*index]).collect();
            let newest = self.newest_rows(database, &asked, head.snapshot.version);
            let under = self.attempts(database, Read::Loose);
            // What is further below beside it: who had to go down once may have to again, and each segment is one round then.
            let further = self.segment(database, &head);
            let read = try_join3(under, newest, further).await?;
            (attempts, rows) = (read.0, read.1);
            next = Some(read.2);
        }
    }

    /// The rows that a version shows of pages in its segment, given the newest ones that there are. Of all pages that have a row of an attempt there what is
    /// before it is looked for at once.
    async fn shown(
        &self,
        database: DatabaseId,
        head: &Head,
        pages: &[PageNumber],
        attempts: &Attempts,
        newest: Vec<Option<Row>>,
    ) -> Result<Vec<Option<(Version, Row)>>, Fail> {
        let mut shown = vec![None; pages.len()];
        // Indexes of pages that are not known yet, and what there is of them.
        let newest = newest.into_iter().map(|row| row.into_iter().collect());
        let mut open: Vec<(usize, Vec<Row>)> = newest.enumerate().collect();
        // Nearly always the next one counts, and more of each would be as many times what was asked for.
        let mut most = 1;
        loop {
            let mut passed_by = Vec::new();
            for (index, rows) in open {
                match self.first_that_counts(head, pages[index], attempts, rows)? {
                    Counts::Shown(version, row) => shown[index] = Some((version, row)),
                    Counts::Not => {}
                    Counts::Before(end) => passed_by.push((index, end)),
                }
            }
            if passed_by.is_empty() {
                return Ok(shown);
            }
            let before = passed_by.into_iter().map(|(index, end)| async move {
                let rows = self.rows_before(database, pages[index], end, most).await?;
                Ok::<_, Fail>((index, rows))
            });
            open = try_join_all(before).await?;
            most = PASSED_BY;
        }
    }

    /// The last rows of a page before one of them, some or none.
    async fn rows_before(
        &self,
        database: DatabaseId,
        page: PageNumber,
        end: Vec<u8>,
        most: usize,
    ) -> Result<Vec<Row>, Fail> {
        let all = self
            .space
            .page(database, page, Version::ZERO, Version::ZERO);
        let range = Range {
            begin: all.begin,
            end,
        };
        let mut rows = self.last_rows(&range, most).await?;
        if rows.is_empty() && rows.more() {
            rows = self.last_rows(&range, 1).await?;
        }
        Ok(rows.iter().map(Row::of).collect())
    }

    /// What a version shows of a page, as far as some rows of it tell, the newest first.
    fn first_that_counts(
        &self,
        head: &Head,
        page: PageNumber,
        attempts: &Attempts,
        rows: Vec<Row>,
    ) -> Result<Counts, Fail> {
        let mut before = Counts::Not;
        for row in rows {
            let Key::Page(_, _, written, layer) = self.key(&row)? else {
                return Err(corrupt(&self.space, &row.key, "not a page").into());
            };
            if serial_of(layer).is_some_and(|serial| attempts.contains_key(&serial)) {
                before = Counts::Before(row.key);
                continue;
            }
            return Ok(match head.shows(page, written, layer) {
                true => Counts::Shown(written, row),
                false => Counts::Not,
            });
        }
        Ok(before)
    }

    /// The content of a row of a page.
    fn content(&self, row: &Row) -> Result<Bytes, Fail> {
        let content = PageBody::decode(self.body(row)?).and_then(|body| body.content());
        let damaged = || corrupt(&self.space, &row.key, "cannot be decompressed");
        Ok(content.ok_or_else(damaged)?)
    }

    /// The pages that differ between a version and the head.
    pub(crate) async fn changes(
        &self,
        database: DatabaseId,
        head: Version,
        since: Version,
    ) -> Result<Changes, Fail> {
        if since > head || head.get() - since.get() > MAX_CHANGES_SPAN {
            return Ok(Changes::All);
        }
        Ok(match self.listed(database, since, head).await? {
            Some(pages) if pages.len() <= MAX_CHANGED_PAGES => {
                Changes::Pages(pages.into_iter().collect())
            }
            _ => Changes::All,
        })
    }

    /// Pages that any version after one, up to another, changed; `None` where that is not known.
    pub(crate) async fn listed(
        &self,
        database: DatabaseId,
        low: Version,
        high: Version,
    ) -> Result<Option<BTreeSet<PageNumber>>, Fail> {
        let range = Range {
            begin: self.space.encode(&Key::Record(database, low.next())),
            end: self.space.encode(&Key::Record(database, high.next())),
        };
        let rows = self.scan(&range, usize::MAX, false, Read::Loose).await?;
        let mut pages = BTreeSet::new();
        if rows.len() as u64 != high.get().saturating_sub(low.get()) {
            return Ok(None);
        }
        for row in rows {
            let record = self.decode(&row, Record::decode)?;
            let version = record.head.snapshot.version;
            match record.changed {
                Changed::All => return Ok(None),
                Changed::Inline(changed) => pages.extend(changed),
                Changed::Chunks(count) => {
                    let chunks = self
                        .changed_chunks(database, version, 0, usize::MAX)
                        .await?;
                    if chunks.len() != count as usize {
                        return Err(senseless(&Key::Record(database, version)).into());
                    }
                    pages.extend(chunks);
                }
            }
        }
        Ok(Some(pages))
    }

    /// Chunks, from one on, of the changed pages of a version whose record has no room for them.
    pub(crate) async fn changed_chunks(
        &self,
        database: DatabaseId,
        version: Version,
        from: u32,
        limit: usize,
    ) -> Result<Vec<PageNumber>, Fail> {
        let range = Range {
            begin: self.space.encode(&Key::Changed(database, version, from)),
            end: self.space.changed(database, version).end,
        };
        let rows = self.scan(&range, limit, false, Read::Loose).await?;
        let mut pages = Vec::new();
        for row in rows {
            pages.extend(self.decode(&row, decode_pages)?);
        }
        Ok(pages)
    }
}
