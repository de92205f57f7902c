//! Commits: first everything that can refuse one (C4, C5, C6, C15), then the rows of the new versions.

use std::collections::{BTreeMap, HashSet};

use heed::RwTxn;
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{CommitId, PageCount, PageNumber, Snapshot};
use pagewire_server::store::{CommitOutcome, DatabaseCommit, StoreError};

use crate::committer::{Committer, Done, EncodedCommit};
use crate::engine::WriteError;
use crate::keys::Key;
use crate::operations::checked;
use crate::stagings::{EncodedPage, Pages};
use crate::values::{
    CHANGES_CHUNK, Changed, GONE, Head, INLINE_CHANGES, Record, encode_pages, encode_staged,
};

/// Where the content of a page of a commit is.
#[derive(Debug)]
enum Source {
    Here(EncodedPage),
    /// In the rows of the staging with this serial number.
    Staged(u64),
}

/// What a commit makes of a database, with everything that had to be read for it.
struct Plan {
    part: DatabaseCommit,
    head: Head,
    pages: BTreeMap<PageNumber, Source>,
    /// Pages of the base that go away.
    gone: Vec<PageNumber>,
    /// Stagings that have rows.
    spilled: Vec<u64>,
    /// Staged pages that this commit does not use.
    unused: Vec<Key>,
}

impl Committer {
    pub(crate) fn commit(
        &mut self,
        txn: &mut RwTxn<'_>,
        commit: EncodedCommit,
    ) -> Done<CommitOutcome> {
        let parts = || commit.databases.iter().map(|(part, _)| part);
        let versions: Vec<_> = parts().map(|part| part.base.next()).collect();
        let distinct: HashSet<_> = parts().map(|part| part.database).collect();
        if distinct.len() != versions.len() || versions.is_empty() {
            let why = "a commit names no database, or one twice";
            return Ok(Err(StoreError::Limit(why.to_owned())));
        }
        let mut heads = Vec::with_capacity(versions.len());
        for part in parts() {
            heads.push(checked!(self.engine.head(txn, part.database)));
        }
        if checked!(self.was_applied(txn, &commit)) {
            return Ok(Ok(CommitOutcome::Committed(versions)));
        }
        for (index, (part, head)) in parts().zip(&heads).enumerate() {
            let head = head.snapshot.version;
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
        let mut plans = Vec::with_capacity(versions.len());
        for ((part, pages), head) in commit.databases.into_iter().zip(heads) {
            // Stagings are taken by now: an error gives up the transaction, and with it puts them back.
            plans.push(self.plan(txn, part, pages, head)?);
        }
        self.dirty = true;
        let time_ms = (self.options.clock)();
        for plan in plans {
            self.apply(txn, commit.id, time_ms, plan)?;
        }
        Ok(Ok(CommitOutcome::Committed(versions)))
    }

    /// Whether every version that it would make was made by it (C6).
    fn was_applied(&self, txn: &RwTxn<'_>, commit: &EncodedCommit) -> Result<bool, StoreError> {
        for (part, _) in &commit.databases {
            let record = self.engine.record(txn, part.database, part.base.next())?;
            if record.is_none_or(|record| record.commit != commit.id) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn plan(
        &mut self,
        txn: &RwTxn<'_>,
        part: DatabaseCommit,
        own: Pages,
        head: Head,
    ) -> Result<Plan, StoreError> {
        let same_size = head.snapshot.page_size == Some(part.page_size);
        let mut plan = Plan {
            gone: match same_size && part.page_count < head.snapshot.page_count {
                true => self
                    .engine
                    .pages_beyond(txn, part.database, &head, part.page_count)?,
                false => Vec::new(),
            },
            part,
            head,
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
                for number in self.engine.staged_pages(txn, staging.serial)? {
                    plan.add(number, Source::Staged(staging.serial));
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

    fn apply(
        &self,
        txn: &mut RwTxn<'_>,
        id: CommitId,
        time_ms: u64,
        plan: Plan,
    ) -> Result<(), WriteError> {
        let engine = &self.engine;
        let database = plan.part.database;
        let version = plan.part.base.next();
        for serial in plan.spilled {
            engine.delete(txn, &Key::Staging(serial).encode())?;
        }
        for key in plan.unused {
            engine.delete(txn, &key.encode())?;
        }
        let same_size = plan.head.snapshot.page_size == Some(plan.part.page_size);
        let mut changed: Vec<_> = plan.pages.keys().copied().collect();
        changed.extend(&plan.gone);
        for number in plan.gone {
            engine.put(txn, &Key::Page(database, number, version), &GONE)?;
        }
        for (number, source) in plan.pages {
            let key = Key::Page(database, number, version);
            match source {
                Source::Here(page) => engine.put_summed(txn, &key, &page.body, page.crc)?,
                Source::Staged(serial) => engine.put(txn, &key, &encode_staged(serial))?,
            }
        }
        let page_count = plan.part.page_count;
        let head = Head {
            snapshot: Snapshot {
                version,
                page_size: (page_count > PageCount::ZERO).then_some(plan.part.page_size),
                page_count,
            },
            since: if same_size { plan.head.since } else { version },
        };
        let changed = match changed.len() {
            _ if !same_size => Changed::All,
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
        let record = Record {
            commit: id,
            time_ms,
            head,
            changed,
        };
        engine.put(txn, &Key::Record(database, version), &record.encode())?;
        engine.put(txn, &Key::Head(database), &head.encode())
    }
}

impl Plan {
    /// The last one holds; what is beyond the page count is not kept.
    fn add(&mut self, number: PageNumber, source: Source) {
        let unused = match self.part.page_count.has(number) {
            true => self.pages.insert(number, source),
            false => Some(source),
        };
        if let Some(Source::Staged(serial)) = unused {
            self.unused.push(Key::Staged(serial, number));
        }
    }
}
