//! Commits: one transaction that reads the heads and the epochs, judges, and makes the versions.
//!
//! What does not fit into it is written ahead before (`staging.rs`), in transactions of its own; the one that makes the versions names the
//! attempts. It is the only one that anybody can see, and its conflict ranges are: read, the heads, the epochs, the attempts and
//! a restored record; written, the same and the new records. Page rows are written without any: only a head makes them count.
//!
//! * **M1** C4, C5 and C6 are decided on rows that the same transaction read firmly. A round that is repeated decides anew; so a
//!   commit whose answer was lost finds its own id in the record of its version.
//! * **M2** A head changes only in a commit, which writes the record of its version, and with its removal, which takes the epoch away; but for one
//!   without any version (REM2).
//! * **M3** Who made the newest version of a database some moments ago need not ask for it (`known.rs`): the transaction reads nothing. It has the
//!   epoch and the record of the version that it makes in its conflict ranges, from before the version of the cluster that made the newest one: by M2
//!   whoever has fenced, committed or removed since, through whatever server, makes it fail, and it is judged by M1 from its beginning. *From before*, since
//!   transactions of one batch have one version of the cluster: a fence that came right behind that commit has the same. What is
//!   known decides only that a version is made, never that none is.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use futures_util::future::{try_join, try_join_all};
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{
    CommitId, DatabaseId, Epoch, PageCount, PageNumber, Snapshot, StagingId, Version,
};
use pagewire_server::store::{Commit, CommitOutcome, DatabaseCommit, StoreError};
use tokio::sync::OwnedMutexGuard;

use crate::Inner;
use crate::engine::{Fail, Read, Rounds, Txn, transact};
use crate::keys::{Key, OWN, Sum, layer_of};
use crate::known::Known;
use crate::staging::{Ahead, Pages, Staging, encode, weight};
use crate::values::{
    CHANGES_CHUNK, Changed, Database, Head, INLINE_CHANGES, MAX_CUTS, Record, encode_pages,
};

/// Pages beyond a shrink of which it is asked whether they are there.
const ASKED_FOR: usize = 1024;
/// Pages that are copied from one attempt to another together.
const COPIED_PAGES: usize = 256;

/// What a commit makes of a database.
struct Part {
    /// Without its pages.
    commit: DatabaseCommit,
    own: Pages,
    /// Pages that go into the transaction: its own, and staged ones that were not written ahead.
    pages: Pages,
    /// What was written ahead, in the order of the layers.
    layers: Vec<Ahead>,
    /// Serial numbers among them that only this commit knows of.
    made: Vec<u64>,
}

/// A staging in use, or its absence.
type Named = Result<OwnedMutexGuard<Staging>, StagingId>;

impl Inner {
    pub(crate) async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let Commit { id, databases } = commit;
        let distinct: HashSet<_> = databases.iter().map(|part| part.database).collect();
        if distinct.len() != databases.len() || databases.is_empty() {
            let why = "a commit names no database, or one twice";
            return Err(StoreError::Limit(why.to_owned()));
        }
        let mut parts = Vec::with_capacity(databases.len());
        for mut commit in databases {
            let pages = std::mem::take(&mut commit.pages);
            let own = encode(pages, commit.page_size).await?;
            parts.push(Part {
                commit,
                own,
                pages: Pages::new(),
                layers: Vec::new(),
                made: Vec::new(),
            });
        }
        let named = self.named(&parts).await;
        let unknown = named
            .iter()
            .flatten()
            .find_map(|staging| staging.as_ref().err());
        let result = match unknown {
            Some(staging) => self.refuse(id, &parts, *staging).await,
            None => {
                let prepared = self.prepare(id, &mut parts, &named).await;
                match prepared {
                    Ok(None) => self.flip(id, &parts).await,
                    Ok(Some(outcome)) => Ok(outcome),
                    Err(error) => Err(error),
                }
            }
        };
        let committed = matches!(result, Ok(CommitOutcome::Committed(_)));
        for part in &parts {
            for serial in part.made.iter().filter(|_| !committed) {
                self.abandon(part.commit.database, *serial);
            }
        }
        if committed {
            for (part, mut stagings) in parts.iter().zip(named) {
                for staging in stagings.iter_mut().flatten() {
                    // What was written ahead and did not become part of the version.
                    if let Some(ahead) = staging.ahead.take()
                        && !part.layers.iter().any(|layer| layer.serial == ahead.serial)
                    {
                        self.abandon(part.commit.database, ahead.serial);
                    }
                }
                let mut known = self.stagings.lock();
                for id in &part.commit.stagings {
                    known.remove(id);
                }
            }
        }
        result
    }

    /// The stagings of each part, which nobody else may use meanwhile. One that is named twice is known once.
    async fn named(&self, parts: &[Part]) -> Vec<Vec<Named>> {
        let places = parts.iter().enumerate().flat_map(|(index, part)| {
            let ids = part.commit.stagings.iter().enumerate();
            ids.map(move |(place, id)| (*id, index, place))
        });
        // In one order, so that two commits never wait for each other.
        let mut places: Vec<_> = places.collect();
        places.sort_unstable_by_key(|(id, ..)| *id.as_bytes());
        let unknown = |part: &Part| part.commit.stagings.iter().map(|id| Err(*id)).collect();
        let mut named: Vec<Vec<Named>> = parts.iter().map(unknown).collect();
        let mut last = None;
        for (id, index, place) in places {
            let commit = &parts[index].commit;
            if last.replace(id) != Some(id)
                && let Some(staging) = self.staging(id, commit.database, commit.page_size).await
            {
                named[index][place] = Ok(staging);
            }
        }
        named
    }

    /// The answer where a staging is not known: what the heads and epochs say comes first.
    async fn refuse(
        &self,
        id: CommitId,
        parts: &[Part],
        staging: StagingId,
    ) -> Result<CommitOutcome, StoreError> {
        transact!(self.engine, |txn| {
            match txn.judge(id, parts).await?.1 {
                Some(outcome) => Ok(outcome),
                None => Err(StoreError::StagingUnknown(staging).into()),
            }
        })
    }

    /// Brings everything that does not fit into one transaction into the cluster; or an outcome that is certain before.
    async fn prepare(
        &self,
        id: CommitId,
        parts: &mut [Part],
        named: &[Vec<Named>],
    ) -> Result<Option<CommitOutcome>, StoreError> {
        let mut fits = true;
        let mut bytes = 0;
        for (part, stagings) in parts.iter_mut().zip(named) {
            part.collect(stagings);
            fits &= part.layers_fit();
            bytes += weight(&part.pages);
        }
        if fits && bytes <= self.options.commit_bytes {
            return Ok(None);
        }
        let outcome = transact!(self.engine, |txn| Ok(txn.judge(id, parts).await?.1))?;
        if outcome.is_some() {
            return Ok(outcome);
        }
        for part in parts {
            if !part.layers_fit() {
                self.copy_layers(part).await?;
            }
            if bytes > self.options.commit_bytes && !part.pages.is_empty() {
                let (database, version) = (part.commit.database, part.commit.base.next());
                let mut ahead = None;
                let pages = std::mem::take(&mut part.pages);
                let written = self
                    .write_ahead(database, &mut ahead, Some(version), &pages)
                    .await;
                if let Some(ahead) = ahead {
                    part.made.push(ahead.serial);
                    part.layers.push(ahead);
                }
                written?;
            }
        }
        Ok(None)
    }

    /// Writes ahead anew what was written ahead for another version, or in another order.
    async fn copy_layers(&self, part: &mut Part) -> Result<(), StoreError> {
        let (database, version) = (part.commit.database, part.commit.base.next());
        let mut ahead = None;
        let layers = std::mem::take(&mut part.layers);
        let count = part.commit.page_count;
        let copied = self.copy_all(database, &layers, count, &mut ahead, version);
        let copied = copied.await;
        // Whether all of it was copied or not: who fails gives up what was made.
        if let Some(ahead) = ahead {
            part.made.push(ahead.serial);
            part.layers.push(ahead);
        }
        copied
    }

    /// Copies what holds of some layers, up to the first error.
    async fn copy_all(
        &self,
        database: DatabaseId,
        layers: &[Ahead],
        count: PageCount,
        to: &mut Option<Ahead>,
        version: Version,
    ) -> Result<(), StoreError> {
        for (index, layer) in layers.iter().enumerate() {
            let later = &layers[index + 1..];
            let lasting = |page: &&PageNumber| {
                let again = later.iter().any(|layer| layer.pages.contains_key(page));
                !again && count.has(**page)
            };
            let pages: Vec<_> = layer.pages.keys().filter(lasting).copied().collect();
            for pages in pages.chunks(COPIED_PAGES) {
                self.copy_pages(database, layer, pages, to, version).await?;
            }
        }
        Ok(())
    }

    async fn copy_pages(
        &self,
        database: DatabaseId,
        from: &Ahead,
        pages: &[PageNumber],
        to: &mut Option<Ahead>,
        version: Version,
    ) -> Result<(), StoreError> {
        let bodies = transact!(self.engine, |txn| {
            let body = |page: &PageNumber| {
                let key = Key::Page(database, *page, from.version, layer_of(from.serial));
                async move { txn.get(&key, Read::Loose).await }
            };
            try_join_all(pages.iter().map(body)).await
        })?;
        let mut copied = Pages::new();
        for (page, body) in pages.iter().zip(bodies) {
            let lost = || StoreError::Unavailable("what was written ahead is gone".to_owned());
            copied.insert(*page, body.ok_or_else(lost)?);
        }
        self.write_ahead(database, to, Some(version), &copied).await
    }

    /// The transaction that makes the versions.
    async fn flip(&self, id: CommitId, parts: &[Part]) -> Result<CommitOutcome, StoreError> {
        let mut known = self.known_of(parts);
        let mut rounds = Rounds::new(&self.engine)?;
        let (outcome, made) = loop {
            // Only in the first round.
            let done = self.flip_once(rounds.txn(), id, parts, known.take()).await;
            if let Some(flipped) = rounds.settle(done).await {
                break flipped?;
            }
        };
        if let (Some((row, epoch)), Some(at)) = (made, rounds.committed())
            && let [part] = parts
        {
            self.known.put(part.commit.database, at, row, epoch);
        }
        Ok(outcome)
    }

    /// What is known of the database of a commit that has to ask for nothing else (M3).
    fn known_of(&self, parts: &[Part]) -> Option<Known> {
        let [part] = parts else { return None };
        let commit = &part.commit;
        let known = self.known.take(commit.database)?;
        let head = &known.row.head.snapshot;
        let fits = head.version == commit.base && known.epoch == commit.epoch;
        // What goes away with a shrink, and what was written ahead, may have to be asked for.
        let asks_nothing = commit.page_count >= head.page_count && part.layers.is_empty();
        (fits && asks_nothing && commit.restore.is_none()).then_some(known)
    }

    /// One round: the outcome, and, where it makes a version of one database, its row and epoch.
    async fn flip_once(
        &self,
        txn: &Txn,
        id: CommitId,
        parts: &[Part],
        known: Option<Known>,
    ) -> Result<(CommitOutcome, Option<(Database, Epoch)>), Fail> {
        let now_ms = self.options.clock.now_ms();
        let bases = match (known, parts) {
            (Some(known), [part]) => {
                txn.claims_since(known.at - 1);
                let (database, made) = (part.commit.database, part.commit.base.next());
                for key in [Key::Epoch(database), Key::Record(database, made)] {
                    txn.claim(&txn.space.encode(&key))?;
                }
                vec![known.row]
            }
            _ => {
                let (bases, outcome) = txn.judge(id, parts).await?;
                if let Some(outcome) = outcome {
                    return Ok((outcome, None));
                }
                bases
            }
        };
        for part in parts {
            for layer in &part.layers {
                if !layer.is_open(txn, part.commit.database).await? {
                    let gone = "what was written ahead counted as abandoned".to_owned();
                    return Err(StoreError::Unavailable(gone).into());
                }
            }
        }
        let mut made = None;
        for (part, base) in parts.iter().zip(bases) {
            let restored = txn.restored(part).await?;
            let gone = txn.gone(part, &base.head).await?;
            let row = txn.apply(id, now_ms, part, base, restored, gone).await?;
            made = (parts.len() == 1).then_some((row, part.commit.epoch));
        }
        let versions = parts.iter().map(|part| part.commit.base.next());
        Ok((CommitOutcome::Committed(versions.collect()), made))
    }
}

impl Part {
    /// Puts together the pages that were not written ahead. The last one of a page holds.
    fn collect(&mut self, stagings: &[Named]) {
        for staging in stagings.iter().flatten() {
            if let Some(ahead) = &staging.ahead {
                self.pages.retain(|page, _| !ahead.pages.contains_key(page));
                self.layers.push(ahead.clone());
            }
            let buffered = staging.buffered.iter();
            let buffered = buffered.map(|(page, body)| (*page, Bytes::clone(body)));
            self.pages.extend(buffered);
        }
        self.pages.append(&mut self.own);
        let count = self.commit.page_count;
        self.pages.retain(|page, _| count.has(*page));
    }

    /// Whether the layers are of the version that is to be made, each above the one before.
    fn layers_fit(&self) -> bool {
        let version = self.commit.base.next();
        self.layers.iter().all(|layer| layer.version == version)
            && self.layers.is_sorted_by_key(|layer| layer.serial)
    }
}

impl Txn {
    /// The databases as they are, and the outcome that is certain: C6, then C4 and C5 of the first one at fault.
    async fn judge(
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
    async fn restored(&self, part: &Part) -> Result<Option<Head>, Fail> {
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
    async fn gone(&self, part: &Part, old: &Head) -> Result<(Vec<PageNumber>, usize), Fail> {
        let (count, before) = (part.commit.page_count.get(), old.snapshot.page_count.get());
        if old.snapshot.page_size != Some(part.commit.page_size) || before <= count {
            return Ok((Vec::new(), 0));
        }
        let all = (count + 1..=before).take(MAX_CHANGED_PAGES);
        let all: Vec<_> = all.filter_map(|n| PageNumber::try_from(n).ok()).collect();
        let many = (before - count) as usize;
        if old.dense || many > ASKED_FOR {
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
    async fn apply(
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
