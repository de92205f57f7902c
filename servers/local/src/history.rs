//! Questions about old versions: which one a moment means, which there are, what differs, what is kept (V1).
//!
//! All of them are answered from one transaction that reads. The version of a time is found by halving the range of versions;
//! gaps cost a seek each, and the number of versions does not matter.

use std::collections::BTreeSet;
use std::ops::Bound;

use heed::RoTxn;
use pagewire_proto::{DatabaseId, Moment, PageNumber, TagName, UnixMillis, Version, VersionEntry};
use pagewire_server::store::{Description, Parent, StoreError};

use crate::engine::{Engine, check, corrupt, senseless};
use crate::keys::Key;
use crate::values::{Changed, Database, Origin, Record, Usage};

/// Versions whose lists of changed pages are put together for a difference: beyond, all pages are compared.
const MAX_LISTS: u64 = 1024;
/// Pages in those lists.
const MAX_LISTED: usize = 1 << 20;

impl Engine {
    /// The kept version that a moment means.
    pub(crate) fn find(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        moment: &Moment,
        now_ms: u64,
    ) -> Result<Record, StoreError> {
        let head = self.database(txn, database)?;
        let version = match moment {
            Moment::Version(version) => *version,
            Moment::Tag(tag) => self
                .tagged(txn, database, tag)?
                .ok_or_else(|| StoreError::TagNotFound(tag.clone()))?,
            Moment::Time(UnixMillis(time)) => {
                // A time before 1970 is before every version.
                let time = u64::try_from(*time).ok();
                self.at_time(txn, database, &head, time)?
            }
            Moment::Age(age) => {
                let time = now_ms.max(head.time_ms).checked_sub(*age);
                self.at_time(txn, database, &head, time)?
            }
        };
        let record = self.record(txn, database, version)?;
        record.ok_or(StoreError::VersionGone { version })
    }

    /// The newest version made at or before a time (K3): an error where that one is known not to be kept.
    fn at_time(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        head: &Database,
        time_ms: Option<u64>,
    ) -> Result<Version, StoreError> {
        let gone = |version| StoreError::VersionGone { version };
        let time_ms = time_ms.ok_or(gone(Version::ZERO))?;
        let prefixes = [Key::records_of(database), Key::past_of(database)];
        // What is known up to `low` was made in time, what is known from `high` on was not.
        let (mut low, mut high) = (0, head.head.snapshot.version.get() + 1);
        let mut best = Version::ZERO;
        while high - low > 1 {
            let middle = Version::new(low + (high - low) / 2);
            let mut known = None;
            for prefix in &prefixes {
                known = known.max(self.newest_version(txn, prefix, middle)?);
            }
            let made = match known.filter(|version| version.get() > low) {
                Some(version) => self.past(txn, database, version)?.map(|p| (version, p)),
                None => None,
            };
            match made {
                Some((version, past)) if past.time_ms > time_ms => high = version.get(),
                Some((version, _)) => {
                    best = version;
                    low = middle.get();
                }
                None => low = middle.get(),
            }
        }
        if best == Version::ZERO {
            return Err(gone(best));
        }
        match self.ended_ms(txn, database, best)? {
            // The next one was made in time too, and nothing is left of it.
            Some(ended_ms) if ended_ms <= time_ms => Err(gone(best.next())),
            _ => Ok(best),
        }
    }

    pub(crate) fn tagged(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        tag: &TagName,
    ) -> Result<Option<Version>, StoreError> {
        let number = |body: &[u8]| Some(u64::from_be_bytes(body.try_into().ok()?));
        let found = self.row(txn, &Key::Tag(database, tag.clone()), number)?;
        Ok(found.map(Version::new))
    }

    pub(crate) fn entry(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        record: &Record,
    ) -> Result<VersionEntry, StoreError> {
        let version = record.head.snapshot.version;
        let prefix = Key::tagged(database, version);
        let mut tags = Vec::new();
        self.scan(txn, Bound::Included(&prefix), &prefix, |key, _| {
            let Some(Key::Tagged(_, _, tag)) = Key::decode(key) else {
                return Err(corrupt(key, "not a key of this store"));
            };
            tags.push(tag);
            Ok(true)
        })?;
        Ok(VersionEntry {
            snapshot: record.head.snapshot,
            time: millis(record.time_ms),
            pages_changed: record.pages_changed,
            tags,
            restored_from: (record.restored_from > Version::ZERO).then_some(record.restored_from),
        })
    }

    /// Kept versions before one, newest first.
    pub(crate) fn entries(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        let head = self.head(txn, database)?.snapshot.version;
        let prefix = match tagged_only {
            true => Key::tagged_of(database),
            false => Key::records_of(database),
        };
        let mut entries = Vec::new();
        let mut before = before.unwrap_or(head.next());
        while entries.len() < limit {
            let Some(last) = before.get().checked_sub(1).map(Version::new) else {
                break;
            };
            let Some(version) = self.newest_version(txn, &prefix, last)? else {
                break;
            };
            let record = self.record(txn, database, version)?;
            let record = record.ok_or_else(|| senseless(&Key::Record(database, version)))?;
            entries.push(self.entry(txn, database, &record)?);
            before = version;
        }
        Ok(entries)
    }

    /// Pages after one whose rows are not the same in two kept versions, in order.
    pub(crate) fn diff(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        versions: [Version; 2],
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let [from, to] = versions.map(|version| self.version(txn, database, version));
        let (from, to) = (from?, to?);
        let older = self.chain(txn, database, from)?;
        let newer = self.chain(txn, database, to)?;
        let first = after.map_or(1, |page| page.get() + 1);
        let last = from.snapshot.page_count.max(to.snapshot.page_count).get();
        let [low, high] = [versions[0].min(versions[1]), versions[0].max(versions[1])];
        let candidates = self.listed(txn, database, low, high)?;
        let candidates: Box<dyn Iterator<Item = PageNumber>> = match &candidates {
            Some(listed) => Box::new(listed.iter().copied().filter(|page| Some(*page) > after)),
            None => Box::new((first..=last).filter_map(|page| PageNumber::try_from(page).ok())),
        };
        let mut differing = Vec::new();
        for number in candidates {
            if differing.len() >= limit {
                break;
            }
            let rows = [&older, &newer].map(|chain| self.locate(txn, chain, number));
            let [one, two] = rows;
            let (one, two) = (one?, two?);
            if one.map(|(_, (key, _))| key) != two.map(|(_, (key, _))| key) {
                differing.push(number);
            }
        }
        Ok(differing)
    }

    /// Pages that any version after one, up to another, changed; `None` where that is not known, or too much.
    fn listed(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        low: Version,
        high: Version,
    ) -> Result<Option<BTreeSet<PageNumber>>, StoreError> {
        let mut listed = BTreeSet::new();
        if high.get() - low.get() > MAX_LISTS {
            return Ok(None);
        }
        for version in (low.get() + 1..=high.get()).map(Version::new) {
            match self.record(txn, database, version)?.map(|r| r.changed) {
                Some(Changed::Inline(pages)) => listed.extend(pages),
                Some(Changed::Chunks(_)) => {
                    listed.extend(self.changed_chunks(txn, database, version)?);
                }
                Some(Changed::All) | None => return Ok(None),
            }
            if listed.len() > MAX_LISTED {
                return Ok(None);
            }
        }
        Ok(Some(listed))
    }

    pub(crate) fn describe(
        &self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
    ) -> Result<Description, StoreError> {
        let row = self.database(txn, database)?;
        let usages = Key::usages_of(database);
        let mut usage = Usage::default();
        self.scan(txn, Bound::Included(&usages), &usages, |key, row| {
            let of_one = Usage::decode(check(key, row)?);
            let of_one = of_one.ok_or_else(|| corrupt(key, "not a size"))?;
            usage.pages += of_one.pages;
            usage.bytes += of_one.bytes;
            Ok(true)
        })?;
        let parent = match self.row(txn, &Key::Origin(database), Origin::decode)? {
            Some(origin) => Some(Parent {
                database: origin.database,
                name: self
                    .row(txn, &Key::Head(origin.database), Database::decode)?
                    .map(|parent| parent.name),
                version: origin.snapshot.version,
            }),
            None => None,
        };
        let records = Key::records_of(database);
        let oldest = self.oldest_version(txn, &records, Version::ZERO)?;
        Ok(Description {
            head: row.head.snapshot,
            created: millis(row.created_ms),
            parent,
            oldest: oldest.unwrap_or_default(),
            versions: row.versions,
            pages: usage.pages,
            bytes: usage.bytes,
        })
    }
}

impl Origin {
    /// What is known of the version that a branch was made from, without its tags.
    pub(crate) fn entry(&self) -> VersionEntry {
        VersionEntry {
            snapshot: self.snapshot,
            time: millis(self.time_ms),
            pages_changed: self.pages_changed,
            tags: Vec::new(),
            restored_from: (self.restored_from > Version::ZERO).then_some(self.restored_from),
        }
    }
}

pub(crate) fn millis(time_ms: u64) -> UnixMillis {
    UnixMillis(i64::try_from(time_ms).unwrap_or(i64::MAX))
}
