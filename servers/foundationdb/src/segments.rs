//! What versions stand on (docs/versions.md, "Branches and restores"): how a segment begins, and how it ends.
//!
//! Versions of a database from a row `Segment` on, up to the next such row, are a *segment*. What it has no row of a page for it takes from
//! its base: a version of another segment, which a row `Child` there tells of.
//!
//! * **SEG1** A row `Child(d, v, c, f)` is there if and only if the row `Segment(c, f)` names (d, v) as its base.
//! * **SEG2** What a segment began with never changes: rows that it gets later at its first version (`flatten.rs`) have what the base had.
//! * **SEG3** A segment that no version, kept or stood on, reads has no row `Segment`, but for a while: one transaction follows a chain of them for
//!   [`LINKS`] links, or fewer where the cluster is slow, and what is left of it is a row `Unread`, which the next collection goes on with. So however deep a branch is, dropping it
//!   takes bounded transactions.
//! * **SEG4** The depth in a row `Segment` is at least the number of segments below it. With [`MAX_DEPTH`] or more there is a row `Flatten`.
//! * **SEG5** Who takes a reader from a segment and leaves it because it has another claims the row of that other: of two that take one each, at
//!   once, the later one looks again, and finds that its was the last.

use std::collections::BTreeSet;

use futures_util::future::{try_join, try_join_all};
use pagewire_proto::{DatabaseId, PageCount, Version};
use pagewire_server::store::StoreError;
use tokio::time::Instant;

use crate::Inner;
use crate::collect::{Failures, Pass, STEP_TIME, Steps};
use crate::engine::{Fail, Read, Rounds, Txn, transact};
use crate::keys::{Key, Range};
use crate::values::{Head, Record, Segment};

/// Segments that one stands on, at most, once the collection has caught up (B2): a page is looked for in so many places and one.
pub(crate) const MAX_DEPTH: u32 = 8;
/// Segments that one transaction ends of a chain that nobody reads any more, or looks at because of that: each costs a few reads one after the other.
pub(crate) const LINKS: usize = 32;
/// Rows `Unread` that one look takes.
const UNREAD: usize = 16;

/// The end of all versions, where no segment begins.
pub(crate) const NO_SEGMENT: Version = Version::new(i64::MAX as u64);

/// What reads a segment: a version that is kept, or stood on.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) version: Version,
    pub(crate) head: Head,
    /// The row that says so, which no commit changes.
    row: Key,
}

/// How many more segments a transaction may go down.
pub(crate) struct Links(usize);

impl Links {
    pub(crate) fn of_a_transaction(steps: Steps) -> Self {
        Self(steps.of(LINKS))
    }

    fn take_one(&mut self) -> bool {
        let some = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        some
    }
}

impl Inner {
    /// Goes on with chains that nobody reads any more (SEG3); the pass remembers where the next call goes on. Whether anything was done.
    pub(crate) async fn end_unread(
        &self,
        pass: &mut Pass,
        failures: &mut Failures,
    ) -> Result<bool, StoreError> {
        let begun = Instant::now();
        let mut any = false;
        loop {
            let mut range = self.engine.space.unread();
            if let Some(after) = &pass.unread_after {
                range = range.after(after);
            }
            let found = transact!(self.engine, |txn| {
                txn.keys(&range, UNREAD, Read::Loose).await
            })?;
            for key in &found {
                let done = self.end_one_unread(key).await.map(|()| true);
                let done = self.paced(done);
                // Whatever became of it: the others have their turn.
                pass.unread_after = Some(self.engine.space.encode(key));
                any |= failures.or_later(done, key)?;
                if begun.elapsed() >= STEP_TIME {
                    return Ok(any);
                }
            }
            if found.len() < UNREAD {
                pass.unread_after = None;
                return Ok(any);
            }
        }
    }

    async fn end_one_unread(&self, key: &Key) -> Result<(), StoreError> {
        transact!(self.engine, |txn| {
            // Firmly: of two servers that go on with it one is enough.
            if let Key::Unread(database, version) = key
                && txn.get(key, Read::Firm).await?.is_some()
            {
                txn.delete(key);
                let mut links = Links::of_a_transaction(self.steps(txn));
                txn.reader_gone(*database, *version, &mut links).await?;
            }
            Ok(())
        })
    }
}

impl Inner {
    /// Ends two segments in transactions that both look before either is committed; whether the later one was repeated. For tests.
    pub(crate) async fn end_together(
        &self,
        [one, two]: [(DatabaseId, Version); 2],
    ) -> Result<bool, StoreError> {
        let end = async |txn: &Txn, segment| {
            let bases = txn.end_segments(&[segment]).await?;
            let mut links = Links::of_a_transaction(self.steps(txn));
            txn.readers_gone(bases, &mut links).await
        };
        let (mut first, mut second) = (Rounds::new(&self.engine)?, Rounds::new(&self.engine)?);
        let mut ended = end(first.txn(), one).await;
        let mut later = end(second.txn(), two).await;
        while first.settle(ended).await.transpose()?.is_none() {
            ended = end(first.txn(), one).await;
        }
        let mut repeated = false;
        while second.settle(later).await.transpose()?.is_none() {
            repeated = true;
            later = end(second.txn(), two).await;
        }
        Ok(repeated)
    }

    /// Has a version looked at as one that has lost a reader. For tests.
    pub(crate) async fn lose_reader(
        &self,
        database: DatabaseId,
        version: Version,
    ) -> Result<(), StoreError> {
        transact!(self.engine, |txn| {
            txn.put(&Key::Unread(database, version), &[]);
            Ok(())
        })
    }

    /// How many versions have lost a reader and were not looked at, and how many segments are to be flattened. For tests.
    pub(crate) async fn to_do(&self) -> Result<(usize, usize), StoreError> {
        transact!(self.engine, |txn| {
            let (unread, flatten) = (txn.space.unread(), txn.space.flatten());
            let unread = txn.keys(&unread, usize::MAX, Read::Loose);
            let flatten = txn.keys(&flatten, usize::MAX, Read::Loose);
            let (unread, flatten) = try_join(unread, flatten).await?;
            Ok((unread.len(), flatten.len()))
        })
    }
}

impl Txn {
    /// A segment that would stand on a version.
    pub(crate) async fn standing_on(
        &self,
        database: DatabaseId,
        head: Head,
        reach: PageCount,
    ) -> Result<Segment, Fail> {
        let below = self.segment(database, &head).await?;
        Ok(Segment {
            depth: below.map_or(0, |below| below.depth).saturating_add(1),
            database,
            head,
            reach,
        })
    }

    /// A version begins a segment.
    pub(crate) fn begin_segment(
        &self,
        database: DatabaseId,
        first: Version,
        base: Option<&Segment>,
    ) {
        let body = base.map(Segment::encode).unwrap_or_default();
        self.put(&Key::Segment(database, first), &body);
        if let Some(base) = base {
            self.put(&child_of(base, database, first), &[]);
            if base.depth >= MAX_DEPTH {
                self.put(&Key::Flatten(base.depth, database, first), &[]);
            }
        }
    }

    /// A version has lost a reader: its record, or what stood on it. Where it was the last one of its segment that goes too, and
    /// with it what that stood on has lost a reader (SEG3).
    pub(crate) async fn reader_gone(
        &self,
        database: DatabaseId,
        version: Version,
        links: &mut Links,
    ) -> Result<(), Fail> {
        let (mut database, mut version) = (database, version);
        loop {
            let until = Range {
                begin: self.space.segments(database).begin,
                end: self.space.encode(&Key::Segment(database, version.next())),
            };
            let Some(Key::Segment(_, first)) = self.last(&until, Read::Loose).await? else {
                return Ok(());
            };
            let end = self.segment_end(database, first).await?;
            let reader = self.newest_reader(database, end).await?;
            if let Some(reader) = reader.filter(|reader| reader.version >= first) {
                // SEG5. Whoever takes this one away too, now, would find in its turn the one that goes here.
                return self.claim(&self.space.encode(&reader.row));
            }
            let Some(base) = self.end_segment(database, first).await? else {
                return Ok(());
            };
            (database, version) = base;
            if !links.take_one() {
                self.put(&Key::Unread(database, version), &[]);
                return Ok(());
            }
        }
    }

    /// As [`Txn::reader_gone`] of several versions; those for which there is no time in this transaction have their turn in others.
    pub(crate) async fn readers_gone(
        &self,
        versions: BTreeSet<(DatabaseId, Version)>,
        links: &mut Links,
    ) -> Result<(), Fail> {
        for (database, version) in versions {
            match links.take_one() {
                true => self.reader_gone(database, version, links).await?,
                false => self.put(&Key::Unread(database, version), &[]),
            }
        }
        Ok(())
    }

    /// Drops segments that nobody reads; what they stood on. Their rows are read together.
    pub(crate) async fn end_segments(
        &self,
        segments: &[(DatabaseId, Version)],
    ) -> Result<BTreeSet<(DatabaseId, Version)>, Fail> {
        let each = segments
            .iter()
            .map(|(database, first)| self.end_segment(*database, *first));
        Ok(try_join_all(each).await?.into_iter().flatten().collect())
    }

    /// Drops a segment that nobody reads; what it stood on.
    pub(crate) async fn end_segment(
        &self,
        database: DatabaseId,
        first: Version,
    ) -> Result<Option<(DatabaseId, Version)>, Fail> {
        let key = Key::Segment(database, first);
        let segment = self.row(&key, Read::Firm, Segment::decode).await?;
        self.delete(&key);
        self.sweep(database);
        let Some(base) = segment.flatten() else {
            return Ok(None);
        };
        self.delete(&child_of(&base, database, first));
        // Kept or dropped as any other from now on; if it has no record already its rows may be garbage.
        self.sweep(base.database);
        Ok(Some((base.database, base.head.snapshot.version)))
    }

    /// The first version of the segment after the one that begins with a version; the end of all versions where there is none.
    pub(crate) async fn segment_end(
        &self,
        database: DatabaseId,
        first: Version,
    ) -> Result<Version, Fail> {
        let after = Range {
            begin: self.space.encode(&Key::Segment(database, first.next())),
            end: self.space.segments(database).end,
        };
        match self.first(&after, Read::Loose).await? {
            Some(Key::Segment(_, next)) => Ok(next),
            _ => Ok(NO_SEGMENT),
        }
    }

    /// The newest version before another that is kept or stood on.
    pub(crate) async fn newest_reader(
        &self,
        database: DatabaseId,
        before: Version,
    ) -> Result<Option<Reader>, Fail> {
        let records = Range {
            begin: self.space.records(database).begin,
            end: self.space.encode(&Key::Record(database, before)),
        };
        let children = Range {
            begin: self.space.children(database).begin,
            end: self.space.children_of(database, before).begin,
        };
        let record = self.scan(&records, 1, true, Read::Loose);
        let child = self.last(&children, Read::Loose);
        let (record, child) = try_join(record, child).await?;
        let mut newest = None;
        if let Some(row) = record.first() {
            let head = self.decode(row, Record::decode)?.head;
            let version = head.snapshot.version;
            let row = Key::Record(database, version);
            newest = Some(Reader { version, head, row });
        }
        if let Some(Key::Child(_, version, child, first)) = child
            && newest
                .as_ref()
                .is_none_or(|record| record.version < version)
        {
            let row = Key::Child(database, version, child, first);
            let key = Key::Segment(child, first);
            let segment = self.row(&key, Read::Loose, Segment::decode).await?;
            if let Some(Segment { head, .. }) = segment.flatten() {
                newest = Some(Reader { version, head, row });
            }
        }
        Ok(newest)
    }
}

/// The row that says that a segment stands on its base.
pub(crate) fn child_of(base: &Segment, child: DatabaseId, first: Version) -> Key {
    Key::Child(base.database, base.head.snapshot.version, child, first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::MOST_HALVINGS;

    #[test]
    fn links_get_fewer_with_the_steps() {
        let many = |steps: Steps| {
            let mut links = Links::of_a_transaction(steps);
            std::iter::from_fn(|| links.take_one().then_some(())).count()
        };
        assert_eq!(many(Steps::halved(0)), LINKS);
        assert_eq!(many(Steps::halved(2)), LINKS / 4);
        assert_eq!(many(Steps::halved(MOST_HALVINGS)), 2);
    }
}
