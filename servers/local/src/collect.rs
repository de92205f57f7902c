//! The collector: drops versions that nothing keeps, and the rows that only they read (docs/versions.md, K and G).
//!
//! It runs on the committer's thread: in steps of a bounded number of rows, a small one within each transaction of something
//! else, larger ones of their own when nothing else is to be done. What it decides it decides on the rows that its own
//! transaction sees, and pins, tags and branches pass through the same thread: G1 is the order of that thread.
//!
//! # States
//! ```text
//!                    nothing keeps it              rows that it read looked at
//!   kept (Record) ------------------> past (Past) ---------------------------> past, its rows gone
//!                                        |                                       | COMMIT_RECORD_TTL
//!                                        +--------------------------------------> nothing
//! ```
//! * **COL1** A version is readable if and only if it has a row `Record` (or is 0). `Record` turns into `Past` in the same
//!   transaction in which the rows that it alone read become garbage, or in an earlier one than the one that drops them (G2).
//! * **COL2** The row of a page with version w, followed by one with version w' (or by the end of its segment), is read by the
//!   versions from w to w' exclusive that have a `Record` or a `Child`. It is dropped if there is none, whatever was believed
//!   before: [`Committer::examine`] is the only place that deletes a row of a page of a database (G3). A mark that a page went away
//!   is dropped also when no older row of the page is left in its segment: it hides nothing.
//! * **COL3** What is garbage is found again: when version v is dropped, rows die only among those of pages that changed after v
//!   up to the next version with a record. Where that is v+1 its list has them (`Due` where it is long); in all other
//!   cases, and where a list does not say, the row `Sweep` demands that all rows of the database are looked at. Both go in the
//!   transaction that finishes the work, and are looked for at the next opening (G4).
//! * **COL4** While `Due` is there no other version of the database is dropped: the list that it needs stays.
//! * **COL5** What is remembered here beside rows (cursors, queues) can be forgotten at any time: [`Collector::reset`].

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Bound;

use heed::RwTxn;
use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::{COMMIT_RECORD_TTL, Collected, StoreError};

use crate::committer::Committer;
use crate::engine::{Engine, WriteError, check, corrupt};
use crate::keys::Key;
use crate::rows::KIND_AT;
use crate::segments::{Flattening, body_len};
use crate::values::{Changed, Database, Due, PageBody, Past, Record};

/// What sessions read: never on disk (V7).
#[derive(Debug, Default)]
pub(crate) struct Protected {
    pub(crate) floor: Option<Version>,
    pub(crate) pins: BTreeSet<Version>,
}

/// A sweep under way.
#[derive(Debug)]
struct Sweep {
    database: DatabaseId,
    /// The last row that was looked at.
    after: Option<Vec<u8>>,
    /// More became garbage behind it.
    again: bool,
}

/// What the collector remembers. See COL5.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    pub(crate) protected: HashMap<DatabaseId, Protected>,
    /// Versions up to this one are dropped, or kept for a reason of their own.
    passed: HashMap<DatabaseId, Version>,
    /// Pages of a `Due` that were looked at.
    due: HashMap<DatabaseId, usize>,
    /// When there may be something to drop in a database.
    times: HashMap<DatabaseId, u64>,
    by_time: BTreeSet<(u64, DatabaseId)>,
    sweeps: VecDeque<Sweep>,
    flattenings: VecDeque<Flattening>,
    /// The rows have to be asked what is to be done.
    forgotten: bool,
    retention_ms: Option<u64>,
    /// What the step under way works on, and what is left alone because that came to an error.
    current: Option<DatabaseId>,
    damaged: HashSet<DatabaseId>,
}

/// What a step did, for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    Nothing,
    Dropped,
    Swept,
    Flattened,
}

impl Collector {
    pub(crate) fn new(retention_ms: Option<u64>) -> Self {
        Self {
            forgotten: true,
            retention_ms,
            ..Self::default()
        }
    }

    /// Forgets everything that rows say.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            protected: std::mem::take(&mut self.protected),
            damaged: std::mem::take(&mut self.damaged),
            ..Self::new(self.retention_ms)
        };
    }

    /// Nothing can be written any more.
    pub(crate) fn stop(&mut self) {
        self.reset();
        self.forgotten = false;
    }

    /// A database got a version at a time: the one before goes when that is over.
    pub(crate) fn committed(&mut self, database: DatabaseId, time_ms: u64) {
        if let Some(retention_ms) = self.retention_ms {
            self.schedule(database, time_ms.saturating_add(retention_ms));
        }
    }

    /// Something that kept a version of a database does not any more.
    pub(crate) fn look_again(&mut self, database: DatabaseId) {
        self.passed.remove(&database);
        if self.retention_ms.is_some() {
            self.schedule(database, 0);
        }
    }

    /// Sessions read other versions of a database than before.
    pub(crate) fn protect(&mut self, database: DatabaseId, protected: Protected) {
        let keeps_none = protected.floor.is_none() && protected.pins.is_empty();
        let before = match keeps_none {
            true => self.protected.remove(&database),
            false => self.protected.insert(database, protected),
        };
        let before = before.unwrap_or_default();
        let pins = self.protected.get(&database).map(|now| &now.pins);
        let unpinned = |pin: &Version| pins.is_none_or(|pins| !pins.contains(pin));
        if before.pins.iter().any(unpinned) {
            self.look_again(database);
        } else if self.retention_ms.is_some() {
            // The floor may be higher: what comes next after those that were passed is to be looked at.
            self.schedule(database, 0);
        }
    }

    pub(crate) fn removed(&mut self, database: DatabaseId) {
        self.unschedule(database);
        self.protected.remove(&database);
        self.passed.remove(&database);
        self.due.remove(&database);
    }

    fn schedule(&mut self, database: DatabaseId, time_ms: u64) {
        if self.damaged.contains(&database) {
            return;
        }
        match self.times.get(&database) {
            Some(earlier) if *earlier <= time_ms => return,
            Some(later) => self.by_time.remove(&(*later, database)),
            None => false,
        };
        self.times.insert(database, time_ms);
        self.by_time.insert((time_ms, database));
    }

    fn unschedule(&mut self, database: DatabaseId) {
        if let Some(time_ms) = self.times.remove(&database) {
            self.by_time.remove(&(time_ms, database));
        }
    }

    fn is_due(&self, database: DatabaseId, now_ms: u64) -> bool {
        self.times
            .get(&database)
            .is_some_and(|time| *time <= now_ms)
    }

    pub(crate) fn flatten(&mut self, database: DatabaseId, first: Version) {
        let flattening = Flattening::new(database, first);
        self.flattenings.push_back(flattening);
    }

    fn is_swept(&self, database: DatabaseId) -> bool {
        self.sweeps.iter().any(|sweep| sweep.database == database)
    }

    /// Milliseconds until there is something to do; `None` for never.
    pub(crate) fn idle_ms(&self, now_ms: u64) -> Option<u64> {
        if self.forgotten || !self.sweeps.is_empty() || !self.flattenings.is_empty() {
            return Some(0);
        }
        let (time_ms, _) = self.by_time.first()?;
        Some(time_ms.saturating_sub(now_ms))
    }
}

impl Committer {
    /// Demands that all rows of pages of a database are looked at.
    pub(crate) fn sweep(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: DatabaseId,
    ) -> Result<(), WriteError> {
        self.engine.put(txn, &Key::Sweep(database), &[])?;
        let mut sweeps = self.collector.sweeps.iter_mut();
        match sweeps.find(|sweep| sweep.database == database) {
            Some(sweep) => sweep.again = true,
            None => self.collector.sweeps.push_back(Sweep {
                database,
                after: None,
                again: false,
            }),
        }
        Ok(())
    }

    /// Asks the rows what is to be done (COL5).
    fn remember(&mut self, txn: &RwTxn<'_>) -> Result<(), StoreError> {
        if !std::mem::take(&mut self.collector.forgotten) {
            return Ok(());
        }
        let engine = std::sync::Arc::clone(&self.engine);
        let mut found = Vec::new();
        let heads = Key::heads();
        let [_, due, sweep, flatten] = Key::to_do();
        for prefix in [heads, due, sweep, flatten] {
            engine.scan(txn, Bound::Included(&prefix), &prefix, |key, _| {
                found.extend(Key::decode(key));
                Ok(true)
            })?;
        }
        for key in found {
            match key {
                Key::Sweep(id) | Key::Flatten(id, _) if self.collector.damaged.contains(&id) => {}
                Key::Head(database) if self.collector.retention_ms.is_some() => {
                    self.collector.schedule(database, 0);
                }
                // Also where nothing is dropped any more.
                Key::Due(database) => self.collector.schedule(database, 0),
                Key::Sweep(database) => self.collector.sweeps.push_back(Sweep {
                    database,
                    after: None,
                    again: false,
                }),
                Key::Flatten(database, first) => self.collector.flatten(database, first),
                _ => {}
            }
        }
        Ok(())
    }

    /// One step, of one database or of whatever comes first, within a transaction of something else.
    ///
    /// Damage among the dead must not keep the living from committing: what a step did before an error is undone, and its
    /// database left alone until the store is opened anew.
    pub(crate) fn collect_step(
        &mut self,
        txn: &mut RwTxn<'_>,
        only: Option<DatabaseId>,
        rows: usize,
    ) -> Result<(Did, Collected), WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let mut nested = engine.nested(txn)?;
        match self.step(&mut nested, only, rows) {
            Ok(done) => {
                nested.commit()?;
                self.dirty |= done.0 != Did::Nothing;
                Ok(done)
            }
            Err(WriteError::Refused(error)) => {
                drop(nested);
                let database = self.collector.current.take();
                tracing::warn!(%error, ?database, "cannot be collected");
                self.collector.reset();
                self.collector.damaged.extend(database);
                Ok((Did::Nothing, Collected::default()))
            }
            Err(error) => Err(error),
        }
    }

    fn step(
        &mut self,
        txn: &mut RwTxn<'_>,
        only: Option<DatabaseId>,
        rows: usize,
    ) -> Result<(Did, Collected), WriteError> {
        self.remember(txn)?;
        let now_ms = self.options.clock.now_ms();
        let mut freed = Collected::default();
        let due = match only {
            Some(database) => self.collector.is_due(database, now_ms).then_some(database),
            None => {
                let first = self.collector.by_time.first();
                first.filter(|(time, _)| *time <= now_ms).map(|(_, id)| *id)
            }
        };
        let fits = |database| only.is_none_or(|only| only == database);
        let mut sweeps = self.collector.sweeps.iter();
        let sweep = sweeps.position(|sweep| fits(sweep.database));
        let mut flattenings = self.collector.flattenings.iter();
        let flattening = flattenings.position(|work| fits(work.database));
        self.collector.current = due;
        let did = if let Some(database) = due {
            self.drop_some(txn, database, now_ms, rows, &mut freed)?;
            Did::Dropped
        } else if let Some(index) = sweep {
            self.sweep_some(txn, index, rows, &mut freed)?;
            Did::Swept
        } else if let Some(index) = flattening {
            if let Some(mut work) = self.collector.flattenings.remove(index) {
                self.collector.current = Some(work.database);
                if !self.flatten_step(txn, &mut work, rows)? {
                    self.collector.flattenings.push_front(work);
                }
            }
            Did::Flattened
        } else {
            Did::Nothing
        };
        freed.more = match only {
            Some(database) => {
                self.collector.is_due(database, now_ms)
                    || self.collector.is_swept(database)
                    || self
                        .collector
                        .flattenings
                        .iter()
                        .any(|w| w.database == database)
            }
            None => self.collector.idle_ms(now_ms) == Some(0),
        };
        Ok((did, freed))
    }

    /// Drops versions of a database that nothing keeps, oldest first.
    fn drop_some(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: DatabaseId,
        now_ms: u64,
        mut rows: usize,
        freed: &mut Collected,
    ) -> Result<(), WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        self.collector.unschedule(database);
        let Some(found) = engine.row(txn, &Key::Head(database), Database::decode)? else {
            // Removed: all of it is garbage, which is seen to elsewhere.
            return Ok(());
        };
        if let Some(due) = engine.row(txn, &Key::Due(database), Due::decode)? {
            self.look_at_due(txn, database, due, rows, freed)?;
            self.collector.schedule(database, 0);
            return Ok(());
        }
        let now_ms = now_ms.max(found.time_ms);
        let next_at = loop {
            if rows == 0 {
                break Some(0);
            }
            rows -= 1;
            let passed = self.collector.passed.get(&database).copied();
            let from = passed.unwrap_or_default().next();
            let records = Key::records_of(database);
            let Some(version) = engine.oldest_version(txn, &records, from)? else {
                break None;
            };
            if version >= found.head.snapshot.version {
                break None;
            }
            match self.is_kept(txn, database, version, now_ms)? {
                Keeps::Until(time) => break time,
                Keeps::ForItself => {
                    self.collector.passed.insert(database, version);
                }
                Keeps::Nothing => {
                    // Before the version goes: what only stood under it may be an older one, which is then looked at again.
                    self.collector.passed.insert(database, version);
                    rows = rows
                        .saturating_sub(self.drop_version(txn, database, version, now_ms, freed)?);
                    if engine.get(txn, &Key::Due(database))?.is_some() {
                        break Some(0);
                    }
                }
            }
        };
        let next_at = match next_at {
            Some(0) => Some(0),
            later => {
                let past = self.drop_past(txn, database, now_ms, rows)?;
                later.into_iter().chain(past).min()
            }
        };
        if let Some(time) = next_at {
            self.collector.schedule(database, time);
        }
        Ok(())
    }

    /// What keeps a version that is not the head (V2).
    fn is_kept(
        &self,
        txn: &RwTxn<'_>,
        database: DatabaseId,
        version: Version,
        now_ms: u64,
    ) -> Result<Keeps, StoreError> {
        let Some(retention_ms) = self.collector.retention_ms else {
            return Ok(Keeps::Until(None));
        };
        if let Some(ended_ms) = self.engine.ended_ms(txn, database, version)? {
            let until = ended_ms.saturating_add(retention_ms);
            if until > now_ms {
                return Ok(Keeps::Until(Some(until)));
            }
        }
        let protected = self.collector.protected.get(&database);
        if protected.is_some_and(|p| p.floor.is_some_and(|floor| floor <= version)) {
            return Ok(Keeps::Until(None));
        }
        let tagged = Key::tagged(database, version);
        let children = [
            Key::children_of(database),
            version.get().to_be_bytes().to_vec(),
        ]
        .concat();
        let mut for_itself = protected.is_some_and(|p| p.pins.contains(&version));
        for prefix in [tagged, children] {
            self.engine
                .scan(txn, Bound::Included(&prefix), &prefix, |_, _| {
                    for_itself = true;
                    Ok(false)
                })?;
        }
        Ok(match for_itself {
            true => Keeps::ForItself,
            false => Keeps::Nothing,
        })
    }

    /// Makes a version unreadable, and looks at the rows that it read (COL1, COL3). Answers how many.
    fn drop_version(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: DatabaseId,
        version: Version,
        now_ms: u64,
        freed: &mut Collected,
    ) -> Result<usize, WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let Some(record) = engine.record(txn, database, version)? else {
            return Ok(0);
        };
        engine.delete(txn, &Key::Record(database, version).encode())?;
        for chunk in chunks_of(&record) {
            engine.delete(txn, &Key::Changed(database, version, chunk).encode())?;
        }
        if !is_over(record.time_ms, now_ms) {
            let past = Past {
                commit: record.commit,
                time_ms: record.time_ms,
            };
            engine.put(txn, &Key::Past(database, version), &past.encode())?;
        }
        let before = Version::new(version.get().saturating_sub(1));
        if let Some(mut before_it) = engine.record(txn, database, before)? {
            before_it.ended_ms = record.time_ms;
            engine.put(txn, &Key::Record(database, before), &before_it.encode())?;
        }
        let key = Key::Head(database);
        if let Some(mut row) = engine.row(txn, &key, Database::decode)? {
            row.versions = row.versions.saturating_sub(1);
            engine.put(txn, &key, &row.encode())?;
        }
        freed.versions += 1;
        let mut looked_at = 4;
        match engine
            .record(txn, database, version.next())?
            .map(|r| r.changed)
        {
            Some(Changed::Inline(pages)) => {
                looked_at += pages.len();
                for number in pages {
                    self.examine_at(txn, database, number, version, freed)?;
                }
            }
            Some(Changed::Chunks(_)) => {
                let due = Due { dropped: version };
                engine.put(txn, &Key::Due(database), &due.encode())?;
                self.collector.due.remove(&database);
            }
            Some(Changed::All) | None => self.sweep(txn, database)?,
        }
        self.reader_gone(txn, database, version)?;
        Ok(looked_at)
    }

    /// Some pages of a list that is too long for one step.
    fn look_at_due(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: DatabaseId,
        due: Due,
        rows: usize,
        freed: &mut Collected,
    ) -> Result<(), WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let pages = engine.changed_chunks(txn, database, due.dropped.next())?;
        let done = self.collector.due.get(&database).copied().unwrap_or(0);
        let end = pages.len().min(done + rows);
        for number in pages.get(done..end).unwrap_or_default() {
            self.examine_at(txn, database, *number, due.dropped, freed)?;
        }
        if end < pages.len() {
            self.collector.due.insert(database, end);
        } else {
            self.collector.due.remove(&database);
            engine.delete(txn, &Key::Due(database).encode())?;
        }
        Ok(())
    }

    /// Drops what is left of records when it need not be known any more (C14). Answers when there is more.
    fn drop_past(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: DatabaseId,
        now_ms: u64,
        rows: usize,
    ) -> Result<Option<u64>, WriteError> {
        let prefix = Key::past_of(database);
        let mut over = Vec::new();
        let mut next = None;
        self.engine
            .scan(txn, Bound::Included(&prefix), &prefix, |key, row| {
                let past = Past::decode(check(key, row)?);
                let past = past.ok_or_else(|| corrupt(key, "not what is left of a record"))?;
                let until = past.time_ms.saturating_add(ttl_ms()).saturating_add(1);
                next = Some(until.max(1));
                if is_over(past.time_ms, now_ms) && over.len() < rows {
                    over.push(key.to_vec());
                    return Ok(true);
                }
                Ok(false)
            })?;
        if over.len() < rows {
            // The last one that was looked at is the first that stays, if it does.
            let stays = next.filter(|until| *until > now_ms);
            for key in &over {
                self.engine.delete(txn, key)?;
            }
            return Ok(stays);
        }
        for key in &over {
            self.engine.delete(txn, key)?;
        }
        Ok(Some(0))
    }

    /// Looks at the row that a version reads of a page.
    fn examine_at(
        &mut self,
        txn: &mut RwTxn<'_>,
        database: DatabaseId,
        number: PageNumber,
        version: Version,
        freed: &mut Collected,
    ) -> Result<(), WriteError> {
        let prefix = page_prefix(database, number);
        if let Some(written) = self.engine.newest_version(txn, &prefix, version)? {
            self.examine(txn, database, number, written, freed)?;
        }
        // The mark that hid it may hide nothing any more.
        let next = self.engine.oldest_version(txn, &prefix, version.next())?;
        if let Some(next) = next {
            self.examine(txn, database, number, next, freed)?;
        }
        Ok(())
    }

    /// Drops the row of a page if nobody reads it: the only place that does (COL2).
    fn examine(
        &self,
        txn: &mut RwTxn<'_>,
        database: DatabaseId,
        number: PageNumber,
        written: Version,
        freed: &mut Collected,
    ) -> Result<(), WriteError> {
        let engine = &self.engine;
        let prefix = page_prefix(database, number);
        let segment_end = engine.next_segment(txn, database, written)?;
        let next = engine.oldest_version(txn, &prefix, written.next())?;
        let end = next.map_or(segment_end, |next| next.min(segment_end));
        let key = Key::Page(database, number, written).encode();
        let Some((_, row)) = engine.seek(txn, &key, &key)? else {
            return Ok(());
        };
        let gone = row.get(KIND_AT) == Some(&0);
        if engine.is_row_read(txn, database, number, written, end)? {
            if !gone {
                return Ok(());
            }
            let segments = Key::segments_of(database);
            let first = engine.newest_version(txn, &segments, written)?;
            let before = Version::new(written.get().saturating_sub(1));
            let older = engine.newest_version(txn, &prefix, before)?;
            if older.is_some() && older >= first {
                return Ok(());
            }
        }
        let staged = staged_of(engine, txn, &key, row, number)?;
        let bytes = match &staged {
            Some((_, bytes)) => *bytes,
            None => body_len(row),
        };
        engine.delete(txn, &key)?;
        if let Some((key, _)) = staged {
            engine.delete(txn, &key.encode())?;
        }
        if !gone {
            engine.use_less(txn, database, 1, bytes)?;
            freed.pages += 1;
            freed.bytes += bytes;
        }
        Ok(())
    }

    /// Looks at some rows of a database.
    fn sweep_some(
        &mut self,
        txn: &mut RwTxn<'_>,
        index: usize,
        rows: usize,
        freed: &mut Collected,
    ) -> Result<(), WriteError> {
        let engine = std::sync::Arc::clone(&self.engine);
        let Some(sweep) = self.collector.sweeps.get_mut(index) else {
            return Ok(());
        };
        let database = sweep.database;
        self.collector.current = Some(database);
        let prefix = Key::pages_of(database);
        let from = sweep.after.take().unwrap_or_else(|| prefix.clone());
        let mut found = Vec::new();
        engine.scan(txn, Bound::Excluded(&from), &prefix, |key, _| {
            found.push(key.to_vec());
            Ok(found.len() < rows)
        })?;
        match found.last() {
            Some(last) if found.len() >= rows => sweep.after = Some(last.clone()),
            _ if sweep.again => sweep.again = false,
            _ => {
                self.collector.sweeps.remove(index);
                engine.delete(txn, &Key::Sweep(database).encode())?;
            }
        }
        for key in found {
            let Some(Key::Page(_, number, written)) = Key::decode(&key) else {
                return Err(corrupt(&key, "not a key of this store").into());
            };
            self.examine(txn, database, number, written, freed)?;
        }
        Ok(())
    }
}

/// What keeps a version.
enum Keeps {
    Nothing,
    /// A tag, a pin, or what stands on it: says nothing of later ones.
    ForItself,
    /// As all later ones, until this time or for as long as nobody says otherwise.
    Until(Option<u64>),
}

impl Engine {
    /// When a version ceased to be the head, as far as that is known.
    pub(crate) fn ended_ms(
        &self,
        txn: &heed::RoTxn<'_>,
        database: DatabaseId,
        version: Version,
    ) -> Result<Option<u64>, StoreError> {
        if let Some(Record { ended_ms: 1.., .. }) = self.record(txn, database, version)? {
            let record = self.record(txn, database, version)?;
            return Ok(record.map(|record| record.ended_ms));
        }
        Ok(self
            .past(txn, database, version.next())?
            .map(|next| next.time_ms))
    }
}

/// The staged row to which a row of a page points, and its length.
fn staged_of(
    engine: &Engine,
    txn: &heed::RoTxn<'_>,
    key: &[u8],
    row: &[u8],
    number: PageNumber,
) -> Result<Option<(Key, u64)>, StoreError> {
    // A damaged row points to nothing: it goes, and what it may have pointed to stays.
    let Ok(body) = check(key, row) else {
        return Ok(None);
    };
    let Some(PageBody::Staged(serial)) = PageBody::decode(body) else {
        return Ok(None);
    };
    let staged = Key::Staged(serial, number);
    let encoded = staged.encode();
    let found = engine.seek(txn, &encoded, &encoded)?;
    Ok(Some((staged, found.map_or(0, |(_, row)| body_len(row)))))
}

fn page_prefix(database: DatabaseId, number: PageNumber) -> Vec<u8> {
    let mut key = Key::Page(database, number, Version::ZERO).encode();
    key.truncate(key.len() - 8);
    key
}

fn chunks_of(record: &Record) -> std::ops::Range<u32> {
    match record.changed {
        Changed::Chunks(pages) => 0..pages.div_ceil(crate::values::CHANGES_CHUNK as u32),
        Changed::All | Changed::Inline(_) => 0..0,
    }
}

fn ttl_ms() -> u64 {
    u64::try_from(COMMIT_RECORD_TTL.as_millis()).unwrap_or(u64::MAX)
}

/// Whether the record of a time need not be kept any more.
fn is_over(time_ms: u64, now_ms: u64) -> bool {
    time_ms.saturating_add(ttl_ms()) < now_ms
}
