//! What keeps versions: tags, branches, and what sessions read. All of it passes through the committer, in one order with
//! what the collector drops (K1, G1).

use heed::RoTxn;
use pagewire_proto::limits::MAX_TAGS;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Moment, PageCount, Snapshot, TagName, Version, VersionEntry,
};
use pagewire_server::store::StoreError;

use crate::collect::Protected;
use crate::committer::{Committer, Done};
use crate::keys::Key;
use crate::operations::checked;
use crate::segments::Begun;
use crate::transaction::WriteTxn;
use crate::values::{Base, Changed, Database, Head, Origin, Record};

impl Committer {
    pub(crate) fn set_tag(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Done<VersionEntry> {
        let now_ms = self.options.clock.now_ms();
        let record = checked!(self.engine.find(txn, database, moment, now_ms));
        let version = record.head.snapshot.version;
        match checked!(self.engine.tagged(txn, database, tag)) {
            Some(named) if named == version => {}
            Some(named) if !replace => {
                let taken = format!("tag {tag} names version {named}");
                return Ok(Err(StoreError::NameTaken(taken)));
            }
            before => {
                if before.is_none() && checked!(self.has_all_tags(txn, database)) {
                    let many = format!("a database has at most {MAX_TAGS} tags");
                    return Ok(Err(StoreError::Limit(many)));
                }
                self.dirty = true;
                if let Some(named) = before {
                    let key = Key::Tagged(database, named, tag.clone());
                    self.engine.delete(txn, &key.encode())?;
                    self.collector.look_again(database);
                }
                let body = version.get().to_be_bytes();
                let by_version = Key::Tagged(database, version, tag.clone());
                self.engine
                    .put(txn, &Key::Tag(database, tag.clone()), &body)?;
                self.engine.put(txn, &by_version, &[])?;
            }
        }
        Ok(self.engine.entry(txn, database, &record))
    }

    fn has_all_tags(&self, txn: &WriteTxn<'_>, database: DatabaseId) -> Result<bool, StoreError> {
        let prefix = Key::tags_of(database);
        let mut tags = 0;
        self.engine
            .scan(txn, std::ops::Bound::Included(&prefix), &prefix, |_, _| {
                tags += 1;
                Ok(tags < MAX_TAGS)
            })?;
        Ok(tags >= MAX_TAGS)
    }

    pub(crate) fn delete_tag(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
        tag: &TagName,
    ) -> Done<bool> {
        checked!(self.engine.head(txn, database));
        let Some(version) = checked!(self.engine.tagged(txn, database, tag)) else {
            return Ok(Ok(false));
        };
        self.dirty = true;
        self.engine
            .delete(txn, &Key::Tag(database, tag.clone()).encode())?;
        let by_version = Key::Tagged(database, version, tag.clone());
        self.engine.delete(txn, &by_version.encode())?;
        self.collector.look_again(database);
        Ok(Ok(true))
    }

    pub(crate) fn branch(
        &mut self,
        txn: &mut WriteTxn<'_>,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: DatabaseName,
    ) -> Done<VersionEntry> {
        let engine = std::sync::Arc::clone(&self.engine);
        let taken = |what: String| Ok(Err(StoreError::NameTaken(what)));
        let there = checked!(engine.row(txn, &Key::Head(branch), Database::decode));
        if let Some(there) = there {
            let origin = checked!(engine.row(txn, &Key::Origin(branch), Origin::decode));
            let Some(origin) = origin.filter(|o| o.database == source && there.name == name) else {
                return taken(format!("database {} has the id of the branch", there.name));
            };
            let record = engine.record(txn, source, origin.snapshot.version);
            return Ok(match checked!(record) {
                Some(record) => engine.entry(txn, source, &record),
                None => Ok(origin.entry()),
            });
        }
        if checked!(engine.named(txn, &name)).is_some() {
            return taken(format!("there is a database {name}"));
        }
        // Also where it was removed long ago and other branches stand on it: their pages lie under its id.
        if checked!(engine.get(txn, &Key::Removed(branch))).is_some()
            || checked!(engine.has_history(txn, branch))
        {
            return taken(format!("branch {name} was removed"));
        }
        let now_ms = self.options.clock.now_ms();
        let record = checked!(engine.find(txn, source, moment, now_ms));
        let from = record.head;
        let first = Version::ZERO.next();
        let page_count: PageCount = from.snapshot.page_count;
        let head = Head {
            snapshot: Snapshot {
                version: first,
                ..from.snapshot
            },
            since: first,
            lasting: page_count,
        };
        let origin = Origin {
            database: source,
            snapshot: from.snapshot,
            time_ms: record.time_ms,
            pages_changed: record.pages_changed,
            restored_from: record.restored_from,
        };
        let made = Record {
            // Of no commit: whoever asks for one that made version 1 hears that it was another.
            commit: CommitId::from_bytes(*branch.as_bytes()),
            time_ms: now_ms,
            ended_ms: 0,
            restored_from: Version::ZERO,
            pages_changed: 0,
            head,
            changed: Changed::All,
        };
        let row = Database {
            head,
            time_ms: now_ms,
            created_ms: now_ms,
            versions: 1,
            name: name.clone(),
        };
        let base = Base {
            database: source,
            head: from,
            reach: page_count,
        };
        let begun = checked!(Begun::on(&engine, txn, base));
        let entry = checked!(engine.entry(txn, source, &record));
        self.dirty = true;
        engine.put(txn, &Key::Name(name), branch.as_bytes())?;
        engine.put(txn, &Key::Head(branch), &row.encode())?;
        engine.put(txn, &Key::Origin(branch), &origin.encode())?;
        engine.put(txn, &Key::Record(branch, first), &made.encode())?;
        self.begin_segment(txn, branch, first, begun)?;
        Ok(Ok(entry))
    }

    /// Takes what is said in place of what was said before, unless a pinned version is gone (C10).
    pub(crate) fn protect(
        &mut self,
        txn: &RoTxn<'_>,
        database: DatabaseId,
        floor: Option<Version>,
        pins: Vec<Version>,
    ) -> Result<(), StoreError> {
        self.engine.head(txn, database)?;
        for pin in &pins {
            self.engine.version(txn, database, *pin)?;
        }
        let protected = Protected {
            floor,
            pins: pins.into_iter().collect(),
        };
        self.collector.protect(database, protected);
        Ok(())
    }
}
