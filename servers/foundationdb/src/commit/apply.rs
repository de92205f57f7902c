//! What a commit does in the transaction that makes its versions: it is judged (M1), and then applied.

use std::collections::BTreeSet;

use futures_util::future::{try_join, try_join_all};
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{CommitId, DatabaseId, Epoch, PageCount, PageNumber, Snapshot, Version};
use pagewire_server::store::{CommitOutcome, StoreError};

use super::Part;
use crate::engine::{Fail, Read, Txn};
use crate::keys::{Key, OWN, Sum};
use crate::values::{
    CHANGES_CHUNK, Changed, Database, Head, INLINE_CHANGES, MAX_CUTS, Record, encode_pages,
};

/// Pages beyond a shrink of which it is asked whether they are there.
const ASKED_FOR: usize = 1024;
/// As many bytes as those have at most: they are read in the transaction that makes the version.
const ASKED_FOR_BYTES: usize = 4 << 20;

impl Txn {
    /// The databases as they are, and the outcome that is certain: C6, then C4 and C5 of the first one at fault.
    pub(super) async fn judge(
        &self,
        id: CommitId,
        parts: &[Part],
    ) -> Result<(Vec<Database>, Option<CommitOutcome>), Fail> {
        let state = |part: &Part| {
            let database = part.commit.database;
            try_join(
                self.database(database, Read::Firm),
                self.epoch(database, Read::Firm),
            )
        };
        let states: Vec<(Database, Epoch)> = try_join_all(parts.iter().map(state)).await?;
        let mut repeated = true;
        for (part, (base, _)) in parts.iter().zip(&states) {
            let made = part.commit.base.next();
            repeated = repeated && made <= base.head.snapshot.version && {
                let past = self.past(part.commit.database, made, Read::Loose).await?;
                past.is_some_and(|past| past.commit == id)
            };
        }
        let mut outcome = None;
        if repeated {
            let versions = parts.iter().map(|part| part.commit.base.next());
            outcome = Some(CommitOutcome::Committed(versions.collect()));
        }
        for (index, (part, (base, current))) in parts.iter().zip(&states).enumerate() {
            let head = base.head.snapshot.version;
            if outcome.is_some() {
                break;
            }
            if head != part.commit.base {
                outcome = Some(CommitOutcome::Conflict { index, head });
            } else if *current != part.commit.epoch {
                let current = *current;
                outcome = Some(CommitOutcome::LeaseLost { index, current });
            }
        }
        Ok((states.into_iter().map(|(base, _)| base).collect(), outcome))
    }

    /// The version that a part restores: kept, and nothing else is in the part (V5).
    pub(super) async fn restored(&self, part: &Part) -> Result<Option<Head>, Fail> {
        let commit = &part.commit;
        let Some(from) = commit.restore else {
            return Ok(None);
        };
        if from == Version::ZERO {
            return Err(StoreError::VersionGone { version: from }.into());
        }
        let head = self.version(commit.database, from, Read::Firm).await?;
        let snapshot = head.snapshot;
        let same_size = snapshot
            .page_size
            .is_none_or(|size| size == commit.page_size);
        let nothing_else = part.layers.is_empty() && part.pages.is_empty();
        if !same_size || snapshot.page_count != commit.page_count || !nothing_else {
            return Err(StoreError::Limit(format!(
                "a restore of version {from} has other pages than that"
            ))
            .into());
        }
        Ok(Some(head))
    }

    /// The pages that go away with a shrink: the first ones, and how many. They are asked for only where some may never have been
    /// written, and they are not too many.
    pub(super) async fn gone(
        &self,
        part: &Part,
        old: &Head,
    ) -> Result<(Vec<PageNumber>, usize), Fail> {
        let (count, before) = (part.commit.page_count.get(), old.snapshot.page_count.get());
        if old.snapshot.page_size != Some(part.commit.page_size) || before <= count {
            return Ok((Vec::new(), 0));
        }
        let all = (count + 1..=before).take(MAX_CHANGED_PAGES);
        let all: Vec<_> = all.filter_map(|n| PageNumber::try_from(n).ok()).collect();
        let many = (before - count) as usize;
        let most = ASKED_FOR.min(ASKED_FOR_BYTES / part.commit.page_size.bytes());
        if old.dense || many > most {
            return Ok((all, many));
        }
        let database = part.commit.database;
        let found = self.locate(database, old.clone(), &all).await?;
        let there = all
            .into_iter()
            .zip(found)
            .filter(|(_, found)| found.is_some());
        let there: Vec<_> = there.map(|(page, _)| page).collect();
        let many = there.len();
        Ok((there, many))
    }

    /// Makes the next version of a database: its row.
    pub(super) async fn apply(
        &self,
        id: CommitId,
        now_ms: u64,
        part: &Part,
        base: Database,
        restored: Option<Head>,
        gone: (Vec<PageNumber>, usize),
    ) -> Result<Database, Fail> {
        let (database, page_count) = (part.commit.database, part.commit.page_count);
        let version = part.commit.base.next();
        let old = &base.head;
        let same_size = old.snapshot.page_size == Some(part.commit.page_size);
        let shrinks = same_size && page_count < old.snapshot.page_count;
        let mut head = Head {
            snapshot: Snapshot {
                version,
                page_size: (page_count > PageCount::ZERO).then_some(part.commit.page_size),
                page_count,
            },
            since: version,
            based: false,
            dense: match &restored {
                Some(from) => from.dense,
                None => part.is_dense(old, same_size),
            },
            cuts: Vec::new(),
        };
        let beyond = self.write_pages(part, head.snapshot)?;
        // What a segment that begins here stands on; `None` where none begins.
        let segment = match restored {
            Some(from) => Some(Some(self.standing_on(database, from, page_count).await?)),
            None if !same_size => Some(None),
            None => {
                head.cuts = old.cuts.clone();
                if shrinks || beyond {
                    head.cuts.retain(|(_, count)| *count < page_count);
                    head.cuts.push((version, page_count));
                }
                let reach = page_count.min(old.snapshot.page_count);
                match head.cuts.len() > MAX_CUTS {
                    true => Some(Some(self.standing_on(database, old.clone(), reach).await?)),
                    false => None,
                }
            }
        };
        match &segment {
            None => (head.since, head.based) = (old.since, old.based),
            Some(base) => {
                head.based = base.is_some();
                head.cuts.clear();
                if beyond {
                    head.cuts.push((version, page_count));
                }
                self.begin_segment(database, version, base.as_ref());
            }
        }
        let (changed, pages_changed) = match (&segment, part.changed(gone)) {
            (None, changed) => changed,
            // Everything may be another in a segment that begins.
            (Some(_), _) => (None, old.snapshot.page_count.max(page_count).get() as usize),
        };
        let changed = match changed {
            None => Changed::All,
            Some(pages) if pages.len() > INLINE_CHANGES => {
                for (chunk, pages) in (0..).zip(pages.chunks(CHANGES_CHUNK)) {
                    let key = Key::Changed(database, version, chunk);
                    self.put_quietly(&key, &encode_pages(pages))?;
                }
                Changed::Chunks(pages.len() as u32)
            }
            Some(pages) => Changed::Inline(pages),
        };
        // Never before that of the version before (K4).
        let time_ms = now_ms.max(base.time_ms);
        let record = Record {
            commit: id,
            time_ms,
            ended_ms: 0,
            restored_from: part.commit.restore.unwrap_or(Version::ZERO),
            pages_changed: pages_changed as u64,
            head: head.clone(),
            changed,
        };
        let created_ms = match part.commit.base {
            Version::ZERO => time_ms,
            _ => base.created_ms,
        };
        let row = Database {
            head,
            time_ms,
            created_ms,
            name: base.name,
        };
        self.add_version(database, &row, &record);
        Ok(row)
    }

    /// The rows of a new version.
    pub(crate) fn add_version(&self, database: DatabaseId, row: &Database, record: &Record) {
        let version = row.head.snapshot.version;
        self.put(&Key::Record(database, version), &record.encode());
        self.put(&Key::Made(database, row.time_ms, version), &[]);
        self.put(&Key::Head(database), &row.encode());
        self.add(&Key::Sum(database, Sum::Versions), 1);
    }

    /// Writes the pages of a part and makes what was written ahead count; whether some of that is beyond the page count.
    fn write_pages(&self, part: &Part, made: Snapshot) -> Result<bool, Fail> {
        let (database, version) = (part.commit.database, made.version);
        let (mut pages, mut bytes) = (part.pages.len(), 0);
        for (number, body) in &part.pages {
            bytes += body.len();
            self.put_quietly(&Key::Page(database, *number, version, OWN), body)?;
        }
        let (mut beyond, mut again) = (false, false);
        let mut seen: BTreeSet<&PageNumber> = part.pages.keys().collect();
        for layer in &part.layers {
            self.delete(&Key::Attempt(database, layer.serial));
            self.delete_range(&self.space.written(database, layer.serial));
            pages += layer.pages.len();
            bytes += layer.pages.values().map(|len| *len as usize).sum::<usize>();
            for page in layer.pages.keys() {
                beyond |= !made.page_count.has(*page);
                again |= !seen.insert(page);
            }
        }
        if beyond || again {
            // Rows that no version shows, from the first moment on.
            self.sweep(database);
        }
        self.add(&Key::Sum(database, Sum::Pages), pages as i64);
        self.add(&Key::Sum(database, Sum::Bytes), bytes as i64);
        Ok(beyond)
    }

    /// Demands that all page rows of a database are looked at.
    pub(crate) fn sweep(&self, database: DatabaseId) {
        self.put(&Key::Sweep(database), &[]);
    }
}

impl Part {
    /// Pages that are written.
    fn written(&self) -> BTreeSet<PageNumber> {
        let layers = self.layers.iter().flat_map(|layer| layer.pages.keys());
        let written = self.pages.keys().chain(layers).copied();
        let count = self.commit.page_count;
        written.filter(|page| count.has(*page)).collect()
    }

    /// Whether every page of the new version was written at some time.
    fn is_dense(&self, old: &Head, same_size: bool) -> bool {
        let (dense, before) = match same_size {
            true => (old.dense, old.snapshot.page_count.get()),
            false => (true, 0),
        };
        let new = self
            .written()
            .into_iter()
            .filter(|page| page.get() > before);
        let wanted = self.commit.page_count.get().saturating_sub(before);
        dense && new.count() == wanted as usize
    }

    /// The pages that it changes, `None` where they are too many to be named, and how many.
    fn changed(&self, gone: (Vec<PageNumber>, usize)) -> (Option<Vec<PageNumber>>, usize) {
        let (gone, many) = gone;
        let mut changed = self.written();
        let total = changed.len() + many;
        if total > MAX_CHANGED_PAGES {
            return (None, total);
        }
        changed.extend(gone);
        (Some(changed.into_iter().collect()), total)
    }
}
