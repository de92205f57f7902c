//! Old versions: which one a moment means, which there are, what differs (V1), tags (V3) and branches (V4).

use std::collections::BTreeSet;

use futures_util::future::{try_join, try_join_all, try_join3};
use pagewire_proto::limits::MAX_TAGS;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Moment, PageCount, PageNumber, PageSize, Snapshot, TagName,
    UnixMillis, Version, VersionEntry,
};
use pagewire_server::store::{Description, Parent, StoreError};

use crate::Inner;
use crate::engine::{Fail, Read, Target, Txn, transact};
use crate::keys::{FROM_BELOW, Key, Range, Sum};
use crate::read::Found;
use crate::values::{Changed, Database, Head, Origin, Record, decode_u64};

/// Versions whose lists of changed pages are put together for a difference: beyond, all pages are compared.
const MAX_LISTS: u64 = 1024;
/// Versions of a list that are looked at together.
const LOOKS: usize = 128;
/// Pages that are compared in one transaction, at most.
const COMPARED: usize = 512;
/// As many bytes as those have at most, of each of the two versions.
const COMPARED_BYTES: usize = 2 << 20;

impl Txn {
    /// The kept version that a moment means.
    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
        now_ms: u64,
        read: Read,
    ) -> Result<Record, Fail> {
        let head = self.database(database, Read::Loose).await?;
        let gone = |version| Fail::from(StoreError::VersionGone { version });
        let time_ms = match moment {
            Moment::Version(version) => {
                let record = self.record(database, *version, read).await?;
                return record.ok_or(gone(*version));
            }
            Moment::Tag(tag) => {
                let version = self.tagged(database, tag, read).await?;
                let version = version.ok_or_else(|| StoreError::TagNotFound(tag.clone()))?;
                let record = self.record(database, version, read).await?;
                return record.ok_or(gone(version));
            }
            // A time before 1970 is before every version.
            Moment::Time(UnixMillis(time)) => u64::try_from(*time).ok(),
            Moment::Age(age) => now_ms.max(head.time_ms).checked_sub(*age),
        };
        let time_ms = time_ms.ok_or(gone(Version::ZERO))?;
        let made = self.space.made_until(database, time_ms);
        let Some(Key::Made(_, _, version)) = self.last(&made, Read::Loose).await? else {
            return Err(gone(Version::ZERO));
        };
        match self.record(database, version, read).await? {
            // The next one was made in time too, and nothing is left of it (K3).
            Some(record) if record.ended_ms > 0 && record.ended_ms <= time_ms => {
                Err(gone(version.next()))
            }
            Some(record) => Ok(record),
            None => Err(gone(version)),
        }
    }

    async fn tagged(
        &self,
        database: DatabaseId,
        tag: &TagName,
        read: Read,
    ) -> Result<Option<Version>, Fail> {
        let key = Key::Tag(database, tag.clone());
        let version = self.row(&key, read, decode_u64).await?;
        Ok(version.map(Version::new))
    }

    async fn entry(&self, database: DatabaseId, record: &Record) -> Result<VersionEntry, Fail> {
        let range = self.space.tagged_of(database, record.head.snapshot.version);
        let tags = self.keys(&range, usize::MAX, Read::Loose).await?;
        Ok(entry(record, tags.into_iter()))
    }
}

/// What is known of a version, with the tags of it among the keys.
fn entry(record: &Record, keys: impl Iterator<Item = Key>) -> VersionEntry {
    let version = record.head.snapshot.version;
    let tags = keys.filter_map(|key| match key {
        Key::Tagged(_, named, tag) if named == version => Some(tag),
        _ => None,
    });
    VersionEntry {
        snapshot: record.head.snapshot,
        time: millis(record.time_ms),
        pages_changed: record.pages_changed,
        tags: tags.collect(),
        restored_from: (record.restored_from > Version::ZERO).then_some(record.restored_from),
    }
}

impl Inner {
    pub(crate) async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        transact!(self.engine, |txn| {
            let now_ms = self.options.clock.now_ms();
            let record = txn.find(database, moment, now_ms, Read::Loose).await?;
            txn.entry(database, &record).await
        })
    }

    /// Some at a time, each in a transaction of their own: they may be many.
    pub(crate) async fn versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        let (mut before, tags) = transact!(self.engine, |txn| {
            let head = txn.database(database, Read::Loose).await?;
            let before = before.unwrap_or(head.head.snapshot.version.next());
            let tags = txn.space.tagged(database);
            Ok((before, txn.keys(&tags, usize::MAX, Read::Loose).await?))
        })?;
        let named = tags.iter().filter_map(|key| match key {
            Key::Tagged(_, version, _) if *version < before => Some(*version),
            _ => None,
        });
        let mut tagged: Vec<_> = named.collect::<BTreeSet<_>>().into_iter().collect();
        let mut records = Vec::new();
        while records.len() < limit {
            let most = LOOKS.min(limit - records.len());
            let some = match tagged_only {
                true => {
                    let last = tagged.split_off(tagged.len().saturating_sub(most));
                    self.records_of(database, &last).await?
                }
                false => self.records_before(database, before, most).await?,
            };
            let is_last = match (tagged_only, some.last()) {
                (true, _) => tagged.is_empty(),
                (false, Some(last)) => {
                    before = last.head.snapshot.version;
                    some.len() < most
                }
                (false, None) => true,
            };
            records.extend(some);
            if is_last {
                break;
            }
        }
        let entries = records.iter().map(|r| entry(r, tags.iter().cloned()));
        Ok(entries.collect())
    }

    /// Those of some versions that are kept, the last one first.
    async fn records_of(
        &self,
        database: DatabaseId,
        versions: &[Version],
    ) -> Result<Vec<Record>, StoreError> {
        transact!(self.engine, |txn| {
            let versions = versions.iter().rev();
            let each = versions.map(|version| txn.record(database, *version, Read::Loose));
            // If it was removed meanwhile the list is no short one.
            let there = txn.database(database, Read::Loose);
            let (records, _) = try_join(try_join_all(each), there).await?;
            Ok(records.into_iter().flatten().collect())
        })
    }

    /// The newest ones below a version, at most as many, the newest first.
    async fn records_before(
        &self,
        database: DatabaseId,
        before: Version,
        most: usize,
    ) -> Result<Vec<Record>, StoreError> {
        transact!(self.engine, |txn| {
            let range = Range {
                begin: txn.space.records(database).begin,
                end: txn.space.encode(&Key::Record(database, before)),
            };
            let rows = txn.scan(&range, most, true, Read::Loose);
            // If it was removed meanwhile the list is no short one.
            let (rows, _) = try_join(rows, txn.database(database, Read::Loose)).await?;
            let each = rows.iter().map(|row| txn.decode(row, Record::decode));
            each.collect::<Result<Vec<_>, _>>()
        })
    }

    /// Each comparison is a transaction of its own: all pages may have to be compared.
    pub(crate) async fn diff(
        &self,
        database: DatabaseId,
        from: Version,
        to: Version,
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let (low, high) = (from.min(to), from.max(to));
        let (last, most, listed) = transact!(self.engine, |txn| {
            let from = txn.version(database, from, Read::Loose);
            let to = txn.version(database, to, Read::Loose);
            let (from, to) = try_join(from, to).await?;
            let last = from.snapshot.page_count.max(to.snapshot.page_count).get();
            let sizes = [from.snapshot.page_size, to.snapshot.page_size];
            let size = sizes.into_iter().flatten().max().unwrap_or(PageSize::MAX);
            let listed = match high.get() - low.get() <= MAX_LISTS {
                true => txn.listed(database, low, high).await?,
                false => None,
            };
            let most = COMPARED.min(COMPARED_BYTES / size.bytes());
            Ok((last, most, listed))
        })?;
        let first = after.map_or(1, |page| page.get() + 1);
        let mut candidates: Box<dyn Iterator<Item = PageNumber> + Send> = match listed {
            Some(listed) => Box::new(listed.into_iter().filter(move |page| Some(*page) > after)),
            None => Box::new((first..=last).filter_map(|page| PageNumber::try_from(page).ok())),
        };
        let mut differing = Vec::new();
        while differing.len() < limit {
            let pages: Vec<_> = candidates.by_ref().take(most).collect();
            if pages.is_empty() {
                break;
            }
            let some = transact!(self.engine, |txn| {
                let rows = async |version| {
                    let head = txn.version(database, version, Read::Loose).await?;
                    txn.locate(database, head, &pages).await
                };
                let (one, two) = try_join(rows(from), rows(to)).await?;
                let mut differ = Vec::new();
                for ((one, two), page) in one.iter().zip(&two).zip(&pages) {
                    if !txn.is_same(one.as_ref(), two.as_ref())? {
                        differ.push(*page);
                    }
                }
                Ok(differ)
            })?;
            differing.extend(some);
        }
        differing.truncate(limit);
        Ok(differing)
    }

    pub(crate) async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        transact!(self.engine, |txn| {
            let now_ms = self.options.clock.now_ms();
            // Firmly: a collection that drops the version comes before or sees the tag (G1).
            let record = txn.find(database, moment, now_ms, Read::Firm).await?;
            let version = record.head.snapshot.version;
            match txn.tagged(database, tag, Read::Firm).await? {
                Some(named) if named == version => {}
                Some(named) if !replace => {
                    let taken = format!("tag {tag} names version {named}");
                    return Err(StoreError::NameTaken(taken).into());
                }
                before => {
                    let tags = txn.space.tags(database);
                    if before.is_none()
                        && txn.keys(&tags, MAX_TAGS, Read::Loose).await?.len() >= MAX_TAGS
                    {
                        let many = format!("a database has at most {MAX_TAGS} tags");
                        return Err(StoreError::Limit(many).into());
                    }
                    if let Some(named) = before {
                        txn.delete(&Key::Tagged(database, named, tag.clone()));
                    }
                    let body = version.get().to_be_bytes();
                    txn.put(&Key::Tag(database, tag.clone()), &body);
                    txn.put(&Key::Tagged(database, version, tag.clone()), &[]);
                }
            }
            txn.entry(database, &record).await
        })
    }

    pub(crate) async fn delete_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
    ) -> Result<bool, StoreError> {
        let target = Target::new();
        transact!(self.engine, |txn| {
            let there = txn.database(database, Read::Loose);
            let tagged = txn.tagged(database, tag, Read::Firm);
            let (_, tagged) = try_join(there, tagged).await?;
            let Some(version) = target.find(tagged) else {
                return Ok(target.first().is_some());
            };
            txn.delete(&Key::Tag(database, tag.clone()));
            txn.delete(&Key::Tagged(database, version, tag.clone()));
            Ok(true)
        })
    }

    pub(crate) async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        transact!(self.engine, |txn| {
            let taken = |what: String| Err(Fail::from(StoreError::NameTaken(what)));
            let there = txn.row(&Key::Head(branch), Read::Firm, Database::decode);
            let origin = txn.row(&Key::Origin(branch), Read::Firm, Origin::decode);
            let named = txn.named(name, Read::Firm);
            let (there, origin, named) = try_join3(there, origin, named).await?;
            if let Some(there) = there {
                let origin = origin.filter(|o| o.database == source && there.name == *name);
                let Some(origin) = origin else {
                    return taken(format!("database {} has the id of the branch", there.name));
                };
                let version = origin.snapshot.version;
                return match txn.record(source, version, Read::Loose).await? {
                    Some(record) => txn.entry(source, &record).await,
                    None => Ok(origin.entry()),
                };
            }
            if named.is_some() {
                return taken(format!("there is a database {name}"));
            }
            // Its rows may still be there, others may stand on them, and this may be the call that made it, come late (REM1).
            if txn.get(&Key::Removed(branch), Read::Firm).await?.is_some() {
                return taken(format!("branch {name} was removed"));
            }
            let now_ms = self.options.clock.now_ms();
            // Firmly: see `set_tag`.
            let record = txn.find(source, moment, now_ms, Read::Firm).await?;
            txn.make_branch(source, &record, branch, name, now_ms)
                .await?;
            txn.entry(source, &record).await
        })
    }

    pub(crate) async fn describe(&self, database: DatabaseId) -> Result<Description, StoreError> {
        transact!(self.engine, |txn| {
            let row = txn.database(database, Read::Loose).await?;
            let sum = |sum| {
                let key = Key::Sum(database, sum);
                async move { Ok::<_, Fail>(u64::try_from(txn.sum(&key).await?).unwrap_or(0)) }
            };
            let sums = try_join3(sum(Sum::Versions), sum(Sum::Pages), sum(Sum::Bytes));
            let (versions, pages, bytes) = sums.await?;
            let origin = txn.row(&Key::Origin(database), Read::Loose, Origin::decode);
            let parent = match origin.await? {
                Some(origin) => {
                    let key = Key::Head(origin.database);
                    let parent = txn.row(&key, Read::Loose, Database::decode).await?;
                    Some(Parent {
                        database: origin.database,
                        name: parent.map(|parent| parent.name),
                        version: origin.snapshot.version,
                    })
                }
                None => None,
            };
            let records = txn.space.records(database);
            let oldest = match txn.first(&records, Read::Loose).await? {
                Some(Key::Record(_, version)) => version,
                _ => Version::ZERO,
            };
            Ok(Description {
                head: row.head.snapshot,
                created: millis(row.created_ms),
                parent,
                oldest,
                versions,
                pages,
                bytes,
            })
        })
    }
}

impl Txn {
    /// Whether two versions have the same row for a page, or one of them a copy of that of the other.
    fn is_same(&self, one: Option<&Found>, two: Option<&Found>) -> Result<bool, Fail> {
        let (Some(one), Some(two)) = (one, two) else {
            return Ok(one.is_none() && two.is_none());
        };
        let is_copy = |found: &Found| {
            let key = self.key(&found.row)?;
            Ok::<_, Fail>(matches!(key, Key::Page(.., FROM_BELOW)))
        };
        if one.row.key == two.row.key || !(is_copy(one)? || is_copy(two)?) {
            return Ok(one.row.key == two.row.key);
        }
        Ok(self.body(&one.row)? == self.body(&two.row)?)
    }

    /// A database that stands on a version of another.
    async fn make_branch(
        &self,
        source: DatabaseId,
        from: &Record,
        branch: DatabaseId,
        name: &DatabaseName,
        now_ms: u64,
    ) -> Result<(), Fail> {
        let first = Version::ZERO.next();
        let reach: PageCount = from.head.snapshot.page_count;
        let head = Head {
            snapshot: Snapshot {
                version: first,
                ..from.head.snapshot
            },
            since: first,
            based: true,
            dense: from.head.dense,
            cuts: Vec::new(),
        };
        let origin = Origin {
            database: source,
            snapshot: from.head.snapshot,
            time_ms: from.time_ms,
            pages_changed: from.pages_changed,
            restored_from: from.restored_from,
        };
        let record = Record {
            // Of no commit: whoever asks for one that made version 1 hears that it was another.
            commit: CommitId::from_bytes(*branch.as_bytes()),
            time_ms: now_ms,
            ended_ms: 0,
            restored_from: Version::ZERO,
            pages_changed: 0,
            head: head.clone(),
            changed: Changed::All,
        };
        let row = Database {
            head,
            time_ms: now_ms,
            created_ms: now_ms,
            name: name.clone(),
        };
        let base = self.standing_on(source, from.head.clone(), reach).await?;
        self.put(&Key::Name(name.clone()), branch.as_bytes());
        self.put(&Key::Origin(branch), &origin.encode());
        self.add_version(branch, &row, &record);
        self.begin_segment(branch, first, Some(&base));
        Ok(())
    }
}

impl Origin {
    /// What is known of the version that a branch was made from, without its tags.
    fn entry(&self) -> VersionEntry {
        VersionEntry {
            snapshot: self.snapshot,
            time: millis(self.time_ms),
            pages_changed: self.pages_changed,
            tags: Vec::new(),
            restored_from: (self.restored_from > Version::ZERO).then_some(self.restored_from),
        }
    }
}

fn millis(time_ms: u64) -> UnixMillis {
    UnixMillis(i64::try_from(time_ms).unwrap_or(i64::MAX))
}
