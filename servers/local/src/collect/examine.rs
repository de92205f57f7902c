//! Rows of pages: looking at them, and dropping those that no version reads (COL2).

use std::ops::Bound;

use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::{Collected, StoreError};

use crate::committer::Committer;
use crate::engine::{Engine, WriteError, check, corrupt};
use crate::keys::Key;
use crate::rows::KIND_AT;
use crate::segments::body_len;
use crate::transaction::WriteTxn;
use crate::values::PageBody;

impl Committer {
    /// Looks at the row that a version reads of a page.
    pub(super) fn examine_at(
        &mut self,
        txn: &mut WriteTxn<'_>,
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
        txn: &mut WriteTxn<'_>,
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
            // Bug: a page that is read was dropped for ever. Cause: a flipped bit had made a row that says that there is no page of its row. Fix: that is
            // believed only of a row that is whole.
            check(&key, row)?;
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
            engine.use_less(txn, database, written, bytes)?;
            freed.pages += 1;
            freed.bytes += bytes;
        }
        Ok(())
    }

    /// Looks at some rows of a database.
    pub(super) fn sweep_some(
        &mut self,
        txn: &mut WriteTxn<'_>,
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
