//! Dropping versions: which ones nothing keeps, and what becomes of their records (COL1, COL3, COL4).

use std::ops::Bound;

use pagewire_proto::{DatabaseId, Version};
use pagewire_server::store::{COMMIT_RECORD_TTL, Collected, StoreError};

use crate::committer::Committer;
use crate::engine::{Engine, WriteError, check, corrupt};
use crate::keys::Key;
use crate::transaction::WriteTxn;
use crate::values::{Changed, Database, Due, Past, Record};

impl Committer {
    /// Drops versions of a database that nothing keeps, oldest first.
    pub(super) fn drop_some(
        &mut self,
        txn: &mut WriteTxn<'_>,
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
        txn: &WriteTxn<'_>,
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
        txn: &mut WriteTxn<'_>,
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
        txn: &mut WriteTxn<'_>,
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
        txn: &mut WriteTxn<'_>,
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
