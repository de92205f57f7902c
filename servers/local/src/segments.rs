//! What versions stand on (docs/versions.md, "Branches and restores"), on disk and in the committer.
//!
//! Versions of a database from a row `Segment` on, up to the next such row, are a *segment*. Its rows of pages have versions
//! within it. What it has no row for it takes from its base: a (database, version) that a row `Child` there tells of. So:
//!
//! * **SEG1** A row `Child(d, v, c, f)` is there if and only if the row `Segment(c, f)` names (d, v) as its base.
//! * **SEG2** What segment f of c began with never changes: rows that it gets later at version f (flattening) have what the base had.
//!   That is why a page beyond the smallest page count since f (`Head::lasting`) is gone whether it is at f or below.
//! * **SEG3** A segment that no version, kept or child, reads has no row `Segment`, except the one of the head.
//!
//! * **SEG4** The row `Usage` of a segment counts its rows with content, exactly, and is there for as long as there is one.
//!
//! Flattening: a segment that stands on more than [`MAX_DEPTH`] others gets rows of its own for what those next below it have, up to
//! where one is larger than all above it together, and from then on stands on that. It goes on in steps; the row `Flatten` says that
//! it is not at its end; what was copied is right at any time (SEG2), so that a step needs to know nothing of the one before.
//!
//! * **SEG5** No more is copied than segments have that are left behind, counted by segment (links of one database are segments of
//!   their own), and the last and largest one is among them only where it has no more than all above it. A page is so copied as often as
//!   the segment that has it doubles.
//! * **SEG6** A step looks at so many pages as it is told and copies at most a page more than [`STEP_BYTES`]. A database is gone through
//!   once, however many links are of it.

use std::ops::Bound;

use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::StoreError;

use crate::committer::Committer;
use crate::engine::{Engine, SUM_LEN, WriteError, corrupt};
use crate::keys::Key;
use crate::transaction::WriteTxn;
use crate::values::{Base, Segment, Usage};

/// Segments that a page is looked for in, at most, once flattening has caught up.
pub(crate) const MAX_DEPTH: usize = 8;
/// Segments that are left when one is flattened, at most.
const FLAT_DEPTH: usize = 4;
/// Bytes that a step copies.
pub(crate) const STEP_BYTES: usize = 1 << 20;

/// A flattening under way.
#[derive(Debug)]
pub(crate) struct Flattening {
    pub(crate) database: DatabaseId,
    pub(crate) first: Version,
    /// The chain when it began: another one means to begin anew.
    chain: Vec<Base>,
    /// How many of the links below the segment are copied.
    merged: usize,
    /// The link whose database is gone through, and the last page.
    at: (usize, Option<PageNumber>),
}

/// A segment that is about to begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    base: Option<Base>,
    /// It stands on too many others.
    deep: bool,
}

impl Begun {
    /// It stands on nothing.
    pub(crate) const ALONE: Self = Self {
        base: None,
        deep: false,
    };

    /// It stands on a version.
    pub(crate) fn on(
        engine: &Engine,
        txn: &heed::RoTxn<'_>,
        base: Base,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            base: Some(base),
            deep: engine.chain(txn, base.database, base.head)?.len() >= MAX_DEPTH,
        })
    }
}

impl Flattening {
    pub(crate) fn new(database: DatabaseId, first: Version) -> Self {
        Self {
            database,
            first,
            chain: Vec::new(),
            merged: 0,
            at: (0, None),
        }
    }
}

impl Engine {
    /// Whether any version from one to another, exclusive, is kept or stood on.
    pub(crate) fn is_read(
        &self,
        txn: &heed::RoTxn<'_>,
        database: DatabaseId,
        from: Version,
        end: Version,
    ) -> Result<bool, StoreError> {
        let Some(last) = end.get().checked_sub(1).map(Version::new) else {
            return Ok(false);
        };
        for prefix in [Key::records_of(database), Key::children_of(database)] {
            if self.newest_version(txn, &prefix, last)? >= Some(from) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a version that reads the row of a page from one version on, up to another, exclusive, is kept or stood on.
    ///
    /// A row of the first version of a segment is read only up to the smallest page count since then, which falls: so
    /// the oldest reader has the largest.
    pub(crate) fn is_row_read(
        &self,
        txn: &heed::RoTxn<'_>,
        database: DatabaseId,
        number: PageNumber,
        written: Version,
        end: Version,
    ) -> Result<bool, StoreError> {
        if !self.is_read(txn, database, written, end)? {
            return Ok(false);
        }
        let segments = Key::segments_of(database);
        if self.newest_version(txn, &segments, written)? != Some(written) {
            return Ok(true);
        }
        let records = Key::records_of(database);
        if let Some(oldest) = self.oldest_version(txn, &records, written)?
            && oldest < end
            && let Some(record) = self.record(txn, database, oldest)?
            && record.head.lasting.has(number)
        {
            return Ok(true);
        }
        let children = Key::children_of(database);
        let Some(oldest) = self.oldest_version(txn, &children, written)? else {
            return Ok(false);
        };
        let prefix = [&children[..], &oldest.get().to_be_bytes()].concat();
        let mut lasting = None;
        self.scan(txn, Bound::Included(&prefix), &prefix, |key, _| {
            if let Some(Key::Child(_, _, child, first)) = Key::decode(key) {
                let segment = self.row(txn, &Key::Segment(child, first), Segment::decode)?;
                lasting = segment.and_then(|s| s.base).map(|base| base.head.lasting);
            }
            // All children of a version stand on the same.
            Ok(false)
        })?;
        Ok(oldest < end && lasting.is_some_and(|lasting| lasting.has(number)))
    }

    /// The first version of the segment after a version; the end of all versions where there is none.
    pub(crate) fn next_segment(
        &self,
        txn: &heed::RoTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<Version, StoreError> {
        let prefix = Key::segments_of(database);
        let next = self.oldest_version(txn, &prefix, version.next())?;
        Ok(next.unwrap_or(Version::new(u64::MAX)))
    }

    /// What the rows of pages of a segment take.
    pub(crate) fn usage(
        &self,
        txn: &heed::RoTxn<'_>,
        database: DatabaseId,
        first: Version,
    ) -> Result<Usage, StoreError> {
        let usage = self.row(txn, &Key::Usage(database, first), Usage::decode)?;
        Ok(usage.unwrap_or_default())
    }

    /// Rows of pages of a segment came to be, beside what it had.
    pub(crate) fn use_more(
        &self,
        txn: &mut WriteTxn<'_>,
        (database, first): (DatabaseId, Version),
        had: Usage,
        more: Usage,
    ) -> Result<(), WriteError> {
        if more.pages == 0 {
            return Ok(());
        }
        let usage = Usage {
            pages: had.pages + more.pages,
            bytes: had.bytes + more.bytes,
        };
        self.put(txn, &Key::Usage(database, first), &usage.encode())
    }

    /// A row of a page that a version wrote is gone.
    pub(crate) fn use_less(
        &self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
        written: Version,
        bytes: u64,
    ) -> Result<(), WriteError> {
        let usages = Key::usages_of(database);
        let Some(first) = self.newest_version(txn, &usages, written)? else {
            return Ok(());
        };
        let usage = self.usage(txn, database, first)?;
        let key = Key::Usage(database, first);
        match usage.pages.checked_sub(1) {
            None | Some(0) => self.delete(txn, &key.encode()),
            Some(pages) => {
                let bytes = usage.bytes.saturating_sub(bytes);
                self.put(txn, &key, &Usage { pages, bytes }.encode())
            }
        }
    }
}

impl Committer {
    /// The version that is made begins a segment, which reads nothing: see GRP2.
    pub(crate) fn begin_segment(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
        first: Version,
        begun: Begun,
    ) -> Result<(), WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let segment = Segment { base: begun.base };
        engine.put(txn, &Key::Segment(database, first), &segment.encode())?;
        let Some(base) = begun.base else {
            return Ok(());
        };
        engine.put(txn, &child_of(&base, database, first), &[])?;
        if begun.deep {
            engine.put(txn, &Key::Flatten(database, first), &[])?;
            self.collector.flatten(database, first);
        }
        Ok(())
    }

    /// A version has lost a reader: its record, or what stood on it. Where it was the last one of its segment that goes too
    /// (SEG3), and with it what that stood on has lost a reader.
    pub(crate) fn reader_gone(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<(), WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let (mut database, mut version) = (database, version);
        loop {
            let prefix = Key::segments_of(database);
            let Some(first) = engine.newest_version(txn, &prefix, version)? else {
                return Ok(());
            };
            let next = engine.next_segment(txn, database, first)?;
            if engine.is_read(txn, database, first, next)? {
                return Ok(());
            }
            let key = Key::Segment(database, first);
            let segment = engine.row(txn, &key, Segment::decode)?;
            engine.delete(txn, &key.encode())?;
            self.sweep(txn, database)?;
            let Some(base) = segment.and_then(|segment| segment.base) else {
                return Ok(());
            };
            engine.delete(txn, &child_of(&base, database, first).encode())?;
            (database, version) = (base.database, base.head.snapshot.version);
            self.child_gone(txn, database, version)?;
        }
    }

    /// Nothing stands on a version any more, or less than before.
    fn child_gone(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<(), WriteError> {
        match self.engine.record(txn, database, version)? {
            // Kept or dropped as any other from now on.
            Some(_) => self.collector.look_again(database),
            None => self.sweep(txn, database)?,
        }
        Ok(())
    }

    /// A step of a flattening; whether it is at its end.
    pub(crate) fn flatten_step(
        &mut self,
        txn: &mut WriteTxn<'_>,
        work: &mut Flattening,
        rows: usize,
    ) -> Result<bool, WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let (database, first) = (work.database, work.first);
        let mark = Key::Flatten(database, first).encode();
        let key = Key::Segment(database, first);
        let base = engine.row(txn, &key, Segment::decode)?.and_then(|s| s.base);
        let Some(base) = base else {
            // The segment went, and everything with it.
            engine.delete(txn, &mark)?;
            return Ok(true);
        };
        let mut chain = engine.chain(txn, base.database, base.head)?;
        chain[0].reach = base.reach;
        if chain.len() < MAX_DEPTH {
            engine.delete(txn, &mark)?;
            return Ok(true);
        }
        if chain != work.chain {
            work.merged = self.worth_merging(txn, &chain)?;
            work.chain = chain;
            work.at = (0, None);
        }
        if self.copy_some(txn, work, rows)? {
            return Ok(false);
        }
        let (merged, rest) = work.chain.split_at(work.merged);
        let below = rest.first().map(|below| Base {
            // What the copied ones did not let through is not let through now.
            reach: merged.iter().fold(below.reach, |reach, link| {
                reach.min(link.reach).min(link.head.lasting)
            }),
            ..*below
        });
        engine.delete(txn, &child_of(&base, database, first).encode())?;
        if let Some(below) = &below {
            engine.put(txn, &child_of(below, database, first), &[])?;
        }
        engine.put(txn, &key, &Segment { base: below }.encode())?;
        engine.delete(txn, &mark)?;
        // What was copied and no version reads.
        self.sweep(txn, database)?;
        let version = base.head.snapshot.version;
        self.child_gone(txn, base.database, version)?;
        self.reader_gone(txn, base.database, version)?;
        Ok(true)
    }

    /// How many links, from the top, are copied (SEG5).
    fn worth_merging(&self, txn: &WriteTxn<'_>, chain: &[Base]) -> Result<usize, WriteError> {
        let mut above = 0;
        for (index, link) in chain.iter().enumerate() {
            let rows = self.engine.usage(txn, link.database, link.head.since)?;
            let visible = link.reach.min(link.head.snapshot.page_count).get();
            let size = rows.pages.min(u64::from(visible));
            if index > 0 && size > above && chain.len() - index <= FLAT_DEPTH {
                return Ok(index);
            }
            above += size;
        }
        Ok(chain.len())
    }

    /// Copies pages of the merged links into the segment; whether there are more.
    fn copy_some(
        &mut self,
        txn: &mut WriteTxn<'_>,
        work: &mut Flattening,
        rows: usize,
    ) -> Result<bool, WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let merged = &work.chain[..work.merged];
        let mut copied = Usage::default();
        let mut looked_at = 0;
        let more = loop {
            let Some(link) = merged.get(work.at.0) else {
                break false;
            };
            let mut above = merged[..work.at.0].iter();
            if above.any(|above| above.database == link.database) {
                // All pages of a database are gone through once.
                work.at = (work.at.0 + 1, None);
                continue;
            }
            let Some(number) = next_page(&engine, txn, link.database, work.at.1)? else {
                work.at = (work.at.0 + 1, None);
                continue;
            };
            if looked_at >= rows || copied.bytes >= STEP_BYTES as u64 {
                break true;
            }
            looked_at += 1;
            work.at.1 = Some(number);
            let mine = Key::Page(work.database, number, work.first);
            if engine.get(txn, &mine)?.is_some() {
                continue;
            }
            if let Some((_, (key, row))) = engine.locate(txn, merged, number)? {
                let body = engine.content_row(txn, key, row)?.to_vec();
                engine.put(txn, &mine, &body)?;
                copied.pages += 1;
                copied.bytes += body.len() as u64;
            }
        };
        let had = engine.usage(txn, work.database, work.first)?;
        engine.use_more(txn, (work.database, work.first), had, copied)?;
        Ok(more)
    }
}

/// The next page after one of which a database has a row.
fn next_page(
    engine: &Engine,
    txn: &heed::RoTxn<'_>,
    database: DatabaseId,
    after: Option<PageNumber>,
) -> Result<Option<PageNumber>, StoreError> {
    let prefix = Key::pages_of(database);
    let from = match after {
        Some(page) => Key::Page(database, page, Version::new(u64::MAX)).encode(),
        None => prefix.clone(),
    };
    let mut found = None;
    engine.scan(txn, Bound::Excluded(&from), &prefix, |key, _| {
        let Some(Key::Page(_, page, _)) = Key::decode(key) else {
            return Err(corrupt(key, "not a key of this store"));
        };
        found = Some(page);
        Ok(false)
    })?;
    Ok(found)
}

fn child_of(base: &Base, child: DatabaseId, first: Version) -> Key {
    Key::Child(base.database, base.head.snapshot.version, child, first)
}

/// What a row of a page takes: itself, or the staged one to which it points.
pub(crate) fn body_len(row: &[u8]) -> u64 {
    row.len().saturating_sub(SUM_LEN) as u64
}
