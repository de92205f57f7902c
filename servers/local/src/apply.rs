//! Commits: first everything that can refuse one (C4, C5, C6, C15, V5), then the rows of the new versions.
//!
//! A restore of few pages writes them anew. One of many, or of nobody knows how many, begins a segment that stands on the
//! restored version, whatever its size.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{Changes, CommitId, DatabaseId, PageCount, PageNumber, Snapshot, Version};
use pagewire_server::store::{CommitOutcome, DatabaseCommit, StoreError};

use crate::committer::{Committer, Done, EncodedCommit};
use crate::engine::WriteError;
use crate::keys::Key;
use crate::operations::checked;
use crate::segments::Begun;
use crate::stagings::{EncodedPage, Pages};
use crate::transaction::WriteTxn;
use crate::values::{
    Base, CHANGES_CHUNK, Changed, Database, GONE, Head, INLINE_CHANGES, Record, Usage,
    encode_pages, encode_staged,
};

/// Pages that a restore writes anew: for more it begins a segment.
const COPIED_BY_RESTORE: usize = 256;

/// Where the content of a page of a commit is.
#[derive(Debug)]
enum Source {
    Here(EncodedPage),
    /// In the rows of the staging with this serial number; the length of the body there.
    Staged(u64, usize),
}

/// What a commit makes of a database, with everything that had to be read for it.
struct Plan {
    part: DatabaseCommit,
    base: Database,
    /// The segment that begins with it, if one does.
    segment: Option<Begun>,
    /// What the rows of its segment take.
    had: Usage,
    pages: BTreeMap<PageNumber, Source>,
    /// Pages of the base that go away, of which there are rows.
    gone: Vec<PageNumber>,
    /// Pages of the base that may go away with it, of which there are none: they are somewhere below.
    sunk: std::ops::RangeInclusive<u32>,
    /// Stagings that have rows.
    spilled: Vec<u64>,
    /// Staged pages that this commit does not use.
    unused: Vec<Key>,
}

impl Committer {
    pub(crate) fn commit(
        &mut self,
        txn: &mut WriteTxn<'_>,
        commit: EncodedCommit,
    ) -> Done<CommitOutcome> {
        let parts = || commit.databases.iter().map(|(part, _)| part);
        let versions: Vec<_> = parts().map(|part| part.base.next()).collect();
        let distinct: HashSet<_> = parts().map(|part| part.database).collect();
        if distinct.len() != versions.len() || versions.is_empty() {
            let why = "a commit names no database, or one twice";
            return Ok(Err(StoreError::Limit(why.to_owned())));
        }
        let mut bases = Vec::with_capacity(versions.len());
        for part in parts() {
            bases.push(checked!(self.engine.database(txn, part.database)));
        }
        if checked!(self.was_applied(txn, &commit)) {
            return Ok(Ok(CommitOutcome::Committed(versions)));
        }
        for (index, (part, base)) in parts().zip(&bases).enumerate() {
            let head = base.head.snapshot.version;
            if head != part.base {
                return Ok(Ok(CommitOutcome::Conflict { index, head }));
            }
            let current = self.epoch(part.database);
            if current != part.epoch {
                return Ok(Ok(CommitOutcome::LeaseLost { index, current }));
            }
        }
        let mut named = HashSet::new();
        for part in parts() {
            for id in &part.stagings {
                let (database, page_size) = (part.database, part.page_size);
                checked!(self.stagings.get(*id, database, page_size));
                if !named.insert(*id) {
                    return Ok(Err(StoreError::StagingUnknown(*id)));
                }
            }
        }
        for (part, own) in &commit.databases {
            checked!(self.check_restore(txn, part, own));
        }
        let mut plans = Vec::with_capacity(versions.len());
        let consumed = self.consumed.len();
        for ((part, pages), base) in commit.databases.into_iter().zip(bases) {
            let plan = match part.restore {
                Some(from) => self.plan_restore(txn, part, from, base),
                None => self.plan(txn, part, pages, base),
            };
            match plan {
                Ok(plan) => plans.push(plan),
                Err(error) => {
                    // Nothing was written yet: the others of the group have nothing to do with it (GRP2).
                    for (id, staging) in self.consumed.drain(consumed..) {
                        self.stagings.put_back(id, staging);
                    }
                    return Ok(Err(error));
                }
            }
        }
        self.dirty = true;
        let now_ms = self.options.clock.now_ms();
        for plan in plans {
            self.apply(txn, commit.id, now_ms, plan)?;
        }
        Ok(Ok(CommitOutcome::Committed(versions)))
    }

    /// Whether every version that it would make was made by it (C6).
    fn was_applied(&self, txn: &WriteTxn<'_>, commit: &EncodedCommit) -> Result<bool, StoreError> {
        for (part, _) in &commit.databases {
            let past = self.engine.past(txn, part.database, part.base.next())?;
            if past.is_none_or(|past| past.commit != commit.id) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A restore is of a version that is kept, and of nothing else.
    fn check_restore(
        &self,
        txn: &WriteTxn<'_>,
        part: &DatabaseCommit,
        own: &Pages,
    ) -> Result<(), StoreError> {
        let Some(from) = part.restore else {
            return Ok(());
        };
        if from == Version::ZERO {
            return Err(StoreError::VersionGone { version: from });
        }
        let restored = self.engine.version(txn, part.database, from)?.snapshot;
        let same_size = restored.page_size.is_none_or(|size| size == part.page_size);
        let nothing_else = part.stagings.is_empty() && own.is_empty();
        if !same_size || restored.page_count != part.page_count || !nothing_else {
            return Err(StoreError::Limit(format!(
                "a restore of version {from} has other pages than that"
            )));
        }
        Ok(())
    }

    fn plan(
        &mut self,
        txn: &WriteTxn<'_>,
        part: DatabaseCommit,
        own: Pages,
        base: Database,
    ) -> Result<Plan, StoreError> {
        let head = &base.head;
        let same_size = head.snapshot.page_size == Some(part.page_size);
        let shrinks = same_size && part.page_count < head.snapshot.page_count;
        let mut plan = Plan {
            gone: match shrinks {
                true => self
                    .engine
                    .pages_beyond(txn, part.database, head, part.page_count)?,
                false => Vec::new(),
            },
            sunk: match shrinks && self.engine.chain(txn, part.database, *head)?.len() > 1 {
                true => {
                    part.page_count.get() + 1..=head.lasting.min(head.snapshot.page_count).get()
                }
                #[expect(clippy::reversed_empty_ranges, reason = "none")]
                false => 1..=0,
            },
            had: match same_size {
                true => self.engine.usage(txn, part.database, head.since)?,
                false => Usage::default(),
            },
            segment: (!same_size).then_some(Begun::ALONE),
            part,
            base,
            pages: BTreeMap::new(),
            spilled: Vec::new(),
            unused: Vec::new(),
        };
        for id in std::mem::take(&mut plan.part.stagings) {
            let Some(mut staging) = self.stagings.take(id) else {
                return Err(StoreError::StagingUnknown(id));
            };
            if staging.spilled {
                plan.spilled.push(staging.serial);
                for (number, bytes) in self.engine.staged_pages(txn, staging.serial)? {
                    plan.add(number, Source::Staged(staging.serial, bytes));
                }
            }
            let buffered = std::mem::take(&mut staging.buffered);
            for (number, page) in &buffered {
                // A copy, so that the staging can be put back if the transaction comes to nothing.
                let page = EncodedPage {
                    body: page.body.clone(),
                    crc: page.crc,
                };
                plan.add(*number, Source::Here(page));
            }
            staging.buffered = buffered;
            self.consumed.push((id, staging));
        }
        for (number, page) in own {
            plan.add(number, Source::Here(page));
        }
        Ok(plan)
    }

    fn plan_restore(
        &mut self,
        txn: &WriteTxn<'_>,
        part: DatabaseCommit,
        from: Version,
        base: Database,
    ) -> Result<Plan, StoreError> {
        let (database, head) = (part.database, base.head);
        let restored = self.engine.version(txn, database, from)?;
        let mut plan = Plan {
            had: self.engine.usage(txn, database, head.since)?,
            part,
            base,
            segment: None,
            pages: BTreeMap::new(),
            gone: Vec::new(),
            #[expect(clippy::reversed_empty_ranges, reason = "none")]
            sunk: 1..=0,
            spilled: Vec::new(),
            unused: Vec::new(),
        };
        let changes = match restored.since == head.since {
            true => self
                .engine
                .changes(txn, database, head.snapshot.version, from)?,
            false => Changes::All,
        };
        let Changes::Pages(changed) = changes else {
            plan.segment = Some(self.restored(txn, database, restored)?);
            return Ok(plan);
        };
        if changed.len() > COPIED_BY_RESTORE {
            plan.segment = Some(self.restored(txn, database, restored)?);
            return Ok(plan);
        }
        let old = self.engine.chain(txn, database, restored)?;
        let new = self.engine.chain(txn, database, head)?;
        for number in changed {
            match self.engine.locate(txn, &old, number)? {
                Some((_, (key, row))) => {
                    let body = self.engine.content_row(txn, key, row)?.to_vec();
                    let crc = crc32fast::hash(&body);
                    plan.add(number, Source::Here(EncodedPage { body, crc }));
                }
                None if self.engine.locate(txn, &new, number)?.is_some() => plan.gone.push(number),
                None => {}
            }
        }
        Ok(plan)
    }

    /// A segment that has the pages of a version of its database.
    fn restored(
        &self,
        txn: &WriteTxn<'_>,
        database: DatabaseId,
        head: Head,
    ) -> Result<Begun, StoreError> {
        let reach = head.snapshot.page_count;
        let base = Base {
            database,
            head,
            reach,
        };
        Begun::on(&self.engine, txn, base)
    }

    fn apply(
        &mut self,
        txn: &mut WriteTxn<'_>,
        id: CommitId,
        now_ms: u64,
        plan: Plan,
    ) -> Result<(), WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let engine = &*engine;
        let (database, page_count) = (plan.part.database, plan.part.page_count);
        let version = plan.part.base.next();
        for serial in plan.spilled {
            engine.delete(txn, &Key::Staging(serial).encode())?;
        }
        for key in plan.unused {
            engine.delete(txn, &key.encode())?;
        }
        let mut changed: BTreeSet<_> = plan.pages.keys().chain(&plan.gone).copied().collect();
        let sunk = plan.sunk.clone().count();
        let mut nameable = plan.segment.is_none();
        match sunk > MAX_CHANGED_PAGES {
            true => nameable = false,
            false => changed.extend(plan.sunk.filter_map(|n| PageNumber::try_from(n).ok())),
        }
        self.owed = self.owed.saturating_add(2 * plan.pages.len());
        for number in plan.gone {
            engine.put(txn, &Key::Page(database, number, version), &GONE)?;
        }
        let (pages, mut bytes) = (plan.pages.len(), 0);
        for (number, source) in plan.pages {
            let key = Key::Page(database, number, version);
            match source {
                Source::Here(page) => {
                    bytes += page.body.len();
                    engine.put_summed(txn, &key, &page.body, page.crc)?;
                }
                Source::Staged(serial, body) => {
                    bytes += body;
                    engine.put(txn, &key, &encode_staged(serial))?;
                }
            }
        }
        let old = &plan.base.head;
        let head = Head {
            snapshot: Snapshot {
                version,
                page_size: (page_count > PageCount::ZERO).then_some(plan.part.page_size),
                page_count,
            },
            since: plan.segment.map_or(old.since, |_| version),
            lasting: match plan.segment {
                Some(_) => page_count,
                None => old.lasting.min(page_count),
            },
        };
        let had = plan.segment.map_or(plan.had, |_| Usage::default());
        let more = Usage {
            pages: pages as u64,
            bytes: bytes as u64,
        };
        engine.use_more(txn, (database, head.since), had, more)?;
        // Everything may be another in a segment that begins, and so is told of all of it.
        let pages_changed = match (nameable, plan.segment) {
            (true, _) => changed.len(),
            (false, None) => changed.len().max(sunk),
            (false, Some(_)) => old.snapshot.page_count.max(page_count).get() as usize,
        };
        let changed: Vec<_> = changed.into_iter().collect();
        let changed = match changed.len() {
            _ if !nameable => Changed::All,
            length if length > MAX_CHANGED_PAGES => Changed::All,
            length if length > INLINE_CHANGES => {
                for (chunk, pages) in (0..).zip(changed.chunks(CHANGES_CHUNK)) {
                    let key = Key::Changed(database, version, chunk);
                    engine.put(txn, &key, &encode_pages(pages))?;
                }
                Changed::Chunks(length as u32)
            }
            _ => Changed::Inline(changed),
        };
        if let Some(begun) = plan.segment {
            self.begin_segment(txn, database, version, begun)?;
        }
        // Never before that of the version before (K4).
        let time_ms = now_ms.max(plan.base.time_ms);
        let record = Record {
            commit: id,
            time_ms,
            ended_ms: 0,
            restored_from: plan.part.restore.unwrap_or(Version::ZERO),
            pages_changed: pages_changed as u64,
            head,
            changed,
        };
        let created_ms = match plan.part.base {
            Version::ZERO => time_ms,
            _ => plan.base.created_ms,
        };
        let row = Database {
            head,
            time_ms,
            created_ms,
            versions: plan.base.versions + 1,
            name: plan.base.name,
        };
        engine.put(txn, &Key::Record(database, version), &record.encode())?;
        engine.put(txn, &Key::Head(database), &row.encode())?;
        self.collector.committed(database, time_ms);
        Ok(())
    }
}

impl Plan {
    /// The last one holds; what is beyond the page count is not kept.
    fn add(&mut self, number: PageNumber, source: Source) {
        let unused = match self.part.page_count.has(number) {
            true => self.pages.insert(number, source),
            false => Some(source),
        };
        if let Some(Source::Staged(serial, _)) = unused {
            self.unused.push(Key::Staged(serial, number));
        }
    }
}
