//! What the committer does to names, epochs, stagings and leases of the whole store. Commits are in `apply.rs`.

use std::time::Duration;

use pagewire_proto::{DatabaseId, DatabaseName, Epoch, PageSize, StagingId, Version};
use pagewire_server::store::{Resolution, Resolve, StoreError};
use tokio::time::Instant;

use crate::committer::{Committer, Done};
use crate::engine::{WriteError, senseless};
use crate::garbage::Garbage;
use crate::keys::Key;
use crate::stagings::Pages;
use crate::transaction::WriteTxn;
use crate::values::{Database, Head};

/// Continues with the value, or answers the error: it left no trace.
macro_rules! checked {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Ok(Err(error)),
        }
    };
}
pub(crate) use checked;

impl Committer {
    pub(crate) fn create(
        &mut self,
        txn: &mut WriteTxn<'_>,
        name: DatabaseName,
    ) -> Done<DatabaseId> {
        if let Some(id) = checked!(self.engine.named(txn, &name)) {
            return Ok(Ok(id));
        }
        let random = DatabaseId::random();
        let id = checked!(random.map_err(|e| StoreError::Unavailable(e.to_string())));
        self.dirty = true;
        let row = Database {
            head: Head::EMPTY,
            time_ms: 0,
            created_ms: 0,
            versions: 0,
            name: name.clone(),
        };
        self.engine.put(txn, &Key::Name(name), id.as_bytes())?;
        self.engine.put(txn, &Key::Head(id), &row.encode())?;
        Ok(Ok(id))
    }

    pub(crate) fn remove(
        &mut self,
        txn: &mut WriteTxn<'_>,
        name: DatabaseName,
    ) -> Done<DatabaseId> {
        let found = checked!(self.engine.named(txn, &name));
        let id = checked!(found.ok_or(StoreError::DatabaseNotFound));
        self.dirty = true;
        self.engine.delete(txn, &Key::Name(name).encode())?;
        self.engine.delete(txn, &Key::Head(id).encode())?;
        self.engine.put(txn, &Key::Removed(id), &[])?;
        self.doomed.push(Garbage::Database(id));
        self.collector.removed(id);
        for (staging_id, staging) in self.stagings.take_database(id) {
            if staging.spilled {
                self.doomed.push(Garbage::Staging(staging.serial));
            }
            self.consumed.push((staging_id, staging));
        }
        Ok(Ok(id))
    }

    pub(crate) fn epoch(&self, database: DatabaseId) -> Epoch {
        let count = self.fences.get(&database).copied().unwrap_or(0);
        Epoch::new(u64::from(self.generation) << 32 | u64::from(count))
    }

    /// Needs no sync: epochs of this opening are above all earlier ones by the generation, which is durable (C12).
    pub(crate) fn fence(&mut self, txn: &WriteTxn<'_>, database: DatabaseId) -> Done<Epoch> {
        checked!(self.engine.head(txn, database));
        let count = self.fences.entry(database).or_default();
        let next = count.checked_add(1);
        let exhausted = || StoreError::Limit("no epochs are left: open the store anew".to_owned());
        *count = checked!(next.ok_or_else(exhausted));
        Ok(Ok(self.epoch(database)))
    }

    pub(crate) fn resolve(&mut self, txn: &WriteTxn<'_>, resolve: &Resolve) -> Done<Resolution> {
        let Some((first, base, epoch)) = resolve.participants.first().copied() else {
            let error = StoreError::Limit("a commit names no database".to_owned());
            return Ok(Err(error));
        };
        let head = checked!(self.engine.head(txn, first));
        if base.next() <= head.snapshot.version {
            match checked!(self.engine.past(txn, first, base.next())) {
                None => {
                    let why = format!("the record of version {} is not kept any more", base.next());
                    return Ok(Ok(Resolution::Unknown(why)));
                }
                Some(past) if past.commit == resolve.id => {
                    let versions = resolve.participants.iter().map(|p| Version::next(p.1));
                    return Ok(Ok(Resolution::Committed(versions.collect())));
                }
                Some(_) => {}
            }
        } else if self.epoch(first) == epoch {
            checked!(self.fence(txn, first)?);
        }
        let current = resolve.participants.iter().map(|p| self.epoch(p.0));
        let current = current.collect();
        Ok(Ok(Resolution::Aborted { current }))
    }

    pub(crate) fn stage(
        &mut self,
        txn: &WriteTxn<'_>,
        database: DatabaseId,
        id: StagingId,
        page_size: PageSize,
        pages: Pages,
    ) -> Done<()> {
        checked!(self.engine.head(txn, database));
        if self.stagings.buffered_bytes() > 2 * self.options.staging_buffer_bytes {
            let full = "staged pages cannot be written, and no more are kept in memory";
            return Ok(Err(StoreError::Full(full.to_owned())));
        }
        let (generation, serials) = (self.generation, &mut self.serials);
        let exhausted =
            || StoreError::Limit("no stagings are left: open the store anew".to_owned());
        let next = checked!(serials.checked_add(1).ok_or_else(exhausted));
        let serial = || {
            *serials = next;
            u64::from(generation) << 32 | u64::from(next)
        };
        Ok(self.stagings.add(id, database, page_size, pages, serial))
    }

    pub(crate) fn discard(&mut self, id: StagingId) {
        if let Some(staging) = self.stagings.take(id)
            && staging.spilled
        {
            self.garbage.push_back(Garbage::Staging(staging.serial));
        }
    }

    /// Rows of everything that is buffered.
    pub(crate) fn write_buffered(&self, txn: &mut WriteTxn<'_>) -> Result<(), WriteError> {
        for staging in self.stagings.buffered() {
            if !staging.spilled {
                let key = Key::Staging(staging.serial);
                self.engine.put(txn, &key, staging.database.as_bytes())?;
            }
            for (number, page) in &staging.buffered {
                let key = Key::Staged(staging.serial, *number);
                self.engine.put_summed(txn, &key, &page.body, page.crc)?;
            }
        }
        Ok(())
    }

    pub(crate) fn begin_service(
        &mut self,
        txn: &mut WriteTxn<'_>,
        ttl: Duration,
    ) -> Done<Duration> {
        let ended = match checked!(self.engine.get(txn, &Key::Service)) {
            None => 0,
            Some(body) => {
                let body = <[u8; 8]>::try_from(body).map_err(|_| senseless(&Key::Service));
                u64::from_be_bytes(checked!(body))
            }
        };
        // What was not ended goes on counting: this process may die while it is still trusted.
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        self.dirty = true;
        let body = ttl_ms.max(ended).to_be_bytes();
        self.engine.put(txn, &Key::Service, &body)?;
        let wait = Duration::from_millis(ended);
        self.service = Some((Instant::now(), wait));
        Ok(Ok(wait))
    }

    pub(crate) fn end_service(&mut self, txn: &mut WriteTxn<'_>) -> Done<()> {
        match self.service.take() {
            Some((began, wait)) if began.elapsed() >= wait => {
                self.dirty = true;
                self.engine.put(txn, &Key::Service, &[0; 8])?;
            }
            // An earlier process may be trusted longer than this one lived, and this one says nothing about it.
            Some(_) | None => {}
        }
        Ok(Ok(()))
    }
}
