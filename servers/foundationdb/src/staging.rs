//! Pages that wait for their commit: first in the memory of this server, then written ahead into the cluster.
//!
//! An *attempt* is what is written ahead: page rows of a version that is not made yet, in a layer of their own, so that to make them part of
//! the version takes one small transaction and no copy, and to read them later takes no more than any other row.
//!
//! ```text
//!            begin: row Attempt(serial) {version: head + 1}           the transaction that makes that version
//!   nothing ------------------------------------------------> open --------------------------------------------> part of it
//!                                                              |          deletes the row Attempt
//!                                                              | doom: {doomed}
//!                                                              v
//!                                                           doomed ---- its rows, some at a time, then the row Attempt ----> nothing
//! ```
//! * **A1** While the row `Attempt` is there nobody counts its page rows (R2); it goes with the version's making, or after the last of them.
//! * **A2** A transaction that writes ahead, and the one that makes the version, read the row firmly and want it to be open, and of
//!   that version. Who deletes rows has first doomed it. So no version is made of what somebody has begun to delete.
//! * **A3** The pages of an attempt are listed in rows `Written`, each in the transaction of its pages: what the dead left is found.
//! * **A4** The later of two attempts on a database has the greater serial number, and its layer is above.
//! * **A5** An attempt whose server is dead, or does not work with it any more, is ended by the collection.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::try_join;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use pagewire_proto::{DatabaseId, PageNumber, PageSize, StagingId, Version};
use pagewire_server::store::{PageWrite, StoreError};
use tokio::sync::OwnedMutexGuard;

use crate::Inner;
use crate::engine::{Fail, Read, Txn, transact};
use crate::keys::{Key, MAX_SERIAL, layer_of};
use crate::values::{Attempt, decode_pages, encode_page, encode_pages};

/// Bytes of pages in one transaction that writes ahead.
const BATCH_BYTES: usize = 1 << 20;
/// Pages in one: what is deleted together later.
const BATCH_PAGES: usize = 1024;
/// Such transactions under way for one attempt.
const BATCHES: usize = 4;
/// Bytes from which on work with pages leaves the thread of the caller.
const HEAVY_BYTES: usize = 256 << 10;

/// Pages as they are stored, by number.
pub(crate) type Pages = BTreeMap<PageNumber, Bytes>;

/// A staging of this server.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) database: DatabaseId,
    pub(crate) page_size: PageSize,
    /// Pages that were not written ahead; they are newer than those that were.
    pub(crate) buffered: Pages,
    bytes: usize,
    pub(crate) ahead: Option<Ahead>,
}

/// An attempt of this server.
#[derive(Clone, Debug)]
pub(crate) struct Ahead {
    pub(crate) serial: u64,
    pub(crate) version: Version,
    /// Its pages, with the length of their bodies.
    pub(crate) pages: BTreeMap<PageNumber, u32>,
    chunks: u32,
    _begun: Arc<Begun>,
}

/// The numbers of this server's attempts that somebody still works with: any other of its own ends with the collection, as when the call
/// that began it was given up in the middle.
pub(crate) type BegunAttempts = Arc<parking_lot::Mutex<HashSet<u64>>>;

/// An attempt that somebody works with.
#[derive(Debug)]
struct Begun {
    number: u64,
    all: BegunAttempts,
}

impl Begun {
    fn new(number: u64, all: &BegunAttempts) -> Self {
        all.lock().insert(number);
        Self {
            number,
            all: Arc::clone(all),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.all.lock().remove(&self.number);
    }
}

impl Ahead {
    /// The attempt on a database as the row says it must be.
    pub(crate) async fn is_open(&self, txn: &Txn, database: DatabaseId) -> Result<bool, Fail> {
        let key = Key::Attempt(database, self.serial);
        let row = txn.row(&key, Read::Firm, Attempt::decode).await?;
        Ok(row.is_some_and(|row| row.version == self.version && !row.doomed))
    }
}

/// Bodies of pages, in another thread where that takes long.
pub(crate) async fn encode(pages: Vec<PageWrite>, size: PageSize) -> Result<Pages, StoreError> {
    let bytes: usize = pages.iter().map(|page| page.content.len()).sum();
    let encode = move || {
        let zeros = vec![0; size.bytes()];
        let body = |page: PageWrite| {
            let content = match page.content.is_empty() {
                true => &zeros[..],
                false => &page.content[..],
            };
            (page.number, Bytes::from(encode_page(content, size)))
        };
        // The last of a page holds.
        pages.into_iter().map(body).collect::<Pages>()
    };
    if bytes < HEAVY_BYTES {
        return Ok(encode());
    }
    let done = tokio::task::spawn_blocking(encode).await;
    done.map_err(|e| StoreError::Internal(format!("work in another thread was lost: {e}")))
}

/// What pages take in a transaction, with their keys.
pub(crate) fn weight(pages: &Pages) -> usize {
    pages.values().map(|body| body.len() + 64).sum()
}

impl Inner {
    pub(crate) async fn stage(
        &self,
        database: DatabaseId,
        id: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        let known = self.stagings.lock().get(&id).map(Arc::clone);
        let entry = match known {
            Some(entry) => entry,
            None => {
                transact!(self.engine, |txn| txn.database(database, Read::Loose).await)?;
                let new = Staging {
                    database,
                    page_size,
                    buffered: Pages::new(),
                    bytes: 0,
                    ahead: None,
                };
                let mut stagings = self.stagings.lock();
                let entry = stagings.entry(id);
                Arc::clone(entry.or_insert_with(|| Arc::new(tokio::sync::Mutex::new(new))))
            }
        };
        let mut staging = entry.lock_owned().await;
        if (staging.database, staging.page_size) != (database, page_size) {
            return Err(StoreError::StagingUnknown(id));
        }
        for (number, body) in encode(pages, page_size).await? {
            staging.bytes += body.len() + 64;
            if let Some(old) = staging.buffered.insert(number, body) {
                staging.bytes -= old.len() + 64;
            }
        }
        if staging.bytes > self.options.staging_buffer_bytes {
            let Staging {
                buffered, ahead, ..
            } = &mut *staging;
            self.write_ahead(database, ahead, None, buffered).await?;
            buffered.clear();
            staging.bytes = 0;
        }
        Ok(())
    }

    /// The staging, for as long as nobody else may have it.
    pub(crate) async fn staging(
        &self,
        id: StagingId,
        database: DatabaseId,
        page_size: PageSize,
    ) -> Option<OwnedMutexGuard<Staging>> {
        let entry = Arc::clone(self.stagings.lock().get(&id)?);
        let staging = entry.lock_owned().await;
        let fits = (staging.database, staging.page_size) == (database, page_size);
        fits.then_some(staging)
    }

    /// Drops a staging; what was written ahead goes behind it.
    pub(crate) async fn discard(&self, id: StagingId) {
        let entry = self.stagings.lock().remove(&id);
        if let Some(entry) = entry {
            let mut staging = entry.lock().await;
            staging.buffered.clear();
            if let Some(ahead) = staging.ahead.take() {
                self.abandon(staging.database, ahead.serial);
            }
        }
    }

    /// Drops the stagings of a database.
    pub(crate) fn drop_stagings(&self, database: DatabaseId) {
        let mut stagings = self.stagings.lock();
        // One that is in use is of a call that will find the database gone.
        stagings.retain(|_, staging| {
            let other = staging
                .try_lock()
                .map(|staging| staging.database != database);
            other.unwrap_or(true)
        });
    }

    /// Writes pages ahead, in an attempt that begins where there is none.
    pub(crate) async fn write_ahead(
        &self,
        database: DatabaseId,
        ahead: &mut Option<Ahead>,
        version: Option<Version>,
        pages: &Pages,
    ) -> Result<(), StoreError> {
        let ahead = match ahead {
            Some(ahead) => ahead,
            None => ahead.insert(self.begin_attempt(database, version).await?),
        };
        let mut batches = Vec::new();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for (number, body) in pages {
            if bytes + body.len() > BATCH_BYTES || batch.len() >= BATCH_PAGES {
                batches.push(std::mem::take(&mut batch));
                bytes = 0;
            }
            bytes += body.len() + 64;
            batch.push((*number, body.clone()));
        }
        batches.push(batch);
        let first = ahead.chunks;
        ahead.chunks += batches.len() as u32;
        let of = &*ahead;
        let writes = (first..).zip(&batches);
        let writes = writes.map(|(chunk, batch)| self.write_batch(database, of, chunk, batch));
        let writes: Vec<_> = writes.collect();
        let mut writes = stream::iter(writes).buffer_unordered(BATCHES);
        while let Some(()) = writes.try_next().await? {}
        drop(writes);
        for (number, body) in batches.into_iter().flatten() {
            ahead.pages.insert(number, body.len() as u32);
        }
        Ok(())
    }

    async fn begin_attempt(
        &self,
        database: DatabaseId,
        version: Option<Version>,
    ) -> Result<Ahead, StoreError> {
        let number = self.attempts.fetch_add(1, Ordering::Relaxed);
        // Before its row is there.
        let begun_by = Begun::new(number, &self.begun_attempts);
        // Of an earlier round, whose answer may have been lost: it may have begun the attempt, and nobody else would ever end it.
        let tried = parking_lot::Mutex::new(None);
        let begun = transact!(self.engine, |txn| {
            let key = Key::Serial(database);
            let before = *tried.lock();
            if let Some((serial, version)) = before {
                let row = Key::Attempt(database, serial);
                let row = txn.row(&row, Read::Firm, Attempt::decode).await?;
                if row.is_some_and(|row| (row.server, row.number) == (self.server, number)) {
                    return Ok((serial, version));
                }
            }
            let there = txn.database(database, Read::Loose);
            let (there, last) = try_join(there, txn.number(&key, Read::Firm)).await?;
            let serial = last + 1;
            if serial >= MAX_SERIAL {
                let many = "a database has had too many large commits".to_owned();
                return Err(StoreError::Limit(many).into());
            }
            let version = version.unwrap_or(there.head.snapshot.version.next());
            let attempt = Attempt {
                version,
                server: self.server,
                number,
                doomed: false,
            };
            *tried.lock() = Some((serial, version));
            txn.put(&key, &serial.to_be_bytes());
            txn.put(&Key::Attempt(database, serial), &attempt.encode());
            Ok((serial, version))
        });
        let (serial, version) = begun?;
        Ok(Ahead {
            serial,
            version,
            pages: BTreeMap::new(),
            chunks: 0,
            _begun: Arc::new(begun_by),
        })
    }

    async fn write_batch(
        &self,
        database: DatabaseId,
        ahead: &Ahead,
        chunk: u32,
        batch: &[(PageNumber, Bytes)],
    ) -> Result<(), StoreError> {
        let pages: Vec<_> = batch.iter().map(|(number, _)| *number).collect();
        transact!(self.engine, |txn| {
            if !ahead.is_open(txn, database).await? {
                let gone = "what was written ahead counted as abandoned".to_owned();
                return Err(StoreError::Unavailable(gone).into());
            }
            for (number, body) in batch {
                let layer = layer_of(ahead.serial);
                let key = Key::Page(database, *number, ahead.version, layer);
                txn.put_quietly(&key, body)?;
            }
            let written = Key::Written(database, ahead.serial, chunk);
            txn.put_quietly(&written, &encode_pages(&pages))?;
            Ok(())
        })
    }

    /// Gives an attempt up: its rows go behind it.
    pub(crate) fn abandon(&self, database: DatabaseId, serial: u64) {
        self.abandoned.lock().push((database, serial));
        let Some(this) = self.this.upgrade() else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = this.drop_abandoned().await {
                    tracing::debug!(%error, "what was written ahead is left to the collection");
                }
            });
        }
    }

    /// Deletes what was given up; whether there was anything.
    pub(crate) async fn drop_abandoned(&self) -> Result<bool, StoreError> {
        // Who asks whether anything is left waits for those that are under way.
        let _one = self.dropping.lock().await;
        let mut any = false;
        loop {
            let next = self.abandoned.lock().pop();
            let Some((database, serial)) = next else {
                return Ok(any);
            };
            any = true;
            if let Err(error) = self.drop_attempt(database, serial).await {
                // Behind the others, which may go.
                self.abandoned.lock().insert(0, (database, serial));
                return Err(error);
            }
        }
    }

    /// Deletes the rows of an attempt, some at a time, unless it has become part of a version (A2) or is another server's that lives.
    pub(crate) async fn drop_attempt(
        &self,
        database: DatabaseId,
        serial: u64,
    ) -> Result<(), StoreError> {
        let key = Key::Attempt(database, serial);
        let written = self.engine.space.written(database, serial);
        loop {
            let more = transact!(self.engine, |txn| {
                let Some(attempt) = txn.row(&key, Read::Firm, Attempt::decode).await? else {
                    return Ok(false);
                };
                if !attempt.doomed {
                    // It may have come back since it was seen to be dead.
                    let of = attempt.server;
                    if attempt.server != self.server && txn.server(of, Read::Firm).await?.is_some()
                    {
                        return Ok(false);
                    }
                    let doomed = Attempt {
                        doomed: true,
                        ..attempt
                    };
                    txn.put(&key, &doomed.encode());
                    return Ok(true);
                }
                let rows = txn.scan(&written, 1, false, Read::Loose).await?;
                let Some(row) = rows.first() else {
                    txn.delete(&key);
                    return Ok(false);
                };
                for number in txn.decode(row, decode_pages)? {
                    let layer = layer_of(serial);
                    txn.delete(&Key::Page(database, number, attempt.version, layer));
                }
                txn.delete_encoded(&row.key);
                Ok(true)
            })?;
            if !more {
                return Ok(());
            }
        }
    }
}
