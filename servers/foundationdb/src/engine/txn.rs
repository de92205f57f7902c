//! One transaction: rows with checksums, read firmly or loosely, and what is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use foundationdb::future::{FdbKeyValue, FdbValues};
use foundationdb::options::{ConflictRangeType, MutationType, StreamingMode, TransactionOption};
use foundationdb::{FdbResult, KeySelector, RangeOption, Transaction};
use pagewire_server::store::StoreError;

use super::trouble::{self, Trouble};
use super::{Asked, Fail};
use crate::keys::{Key, Range, Space};
use crate::values::decode_u64;

/// Bytes of a range that are asked for together.
const RANGE_BYTES: usize = 1 << 20;
/// What a storage server answers at most at a time, in bytes (`REPLY_BYTE_LIMIT` of FoundationDB), but for the row that goes beyond.
const ANSWER_BYTES: usize = 80_000;

/// How a row is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// The transaction fails if somebody changes it before the commit.
    Firm,
    /// It does not.
    Loose,
}

/// One transaction.
pub(crate) struct Txn {
    pub(super) transaction: Transaction,
    pub(crate) space: Arc<Space>,
    pub(super) asked: Arc<Asked>,
    pub(super) writes: AtomicBool,
    /// Rows that were read.
    read: AtomicU64,
    trouble: Option<Arc<Trouble>>,
    /// The round before was too late.
    pub(super) too_late: bool,
}

/// A row as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: Vec<u8>,
    pub(crate) stored: Vec<u8>,
}

impl Row {
    pub(crate) fn of(row: &FdbKeyValue) -> Self {
        Self {
            key: row.key().to_vec(),
            stored: row.value().to_vec(),
        }
    }
}

impl Txn {
    pub(super) fn begin(transaction: Transaction, space: Arc<Space>, asked: Arc<Asked>) -> Self {
        asked.begun.fetch_add(1, Ordering::Relaxed);
        let trouble = trouble::now();
        let txn = Self {
            transaction,
            space,
            asked,
            writes: AtomicBool::new(false),
            read: AtomicU64::new(0),
            trouble,
            too_late: false,
        };
        if txn.trouble.as_ref().is_some_and(|t| t.begins_too_late()) {
            // Which the cluster has forgotten.
            txn.claims_since(1);
        }
        txn
    }

    /// Whether the round before came to nothing because it was too late: this one should do less.
    pub(crate) fn follows_one_too_late(&self) -> bool {
        self.too_late
    }

    /// The version of the cluster that this transaction reads. Asked for once.
    pub(crate) async fn cluster_version(&self) -> Result<u64, Fail> {
        let version = self.transaction.get_read_version().await?;
        Ok(u64::try_from(version).unwrap_or(0))
    }

    /// Fails if what it claims was changed after a version of the cluster that this process knows of, instead of after the newest one, which would have
    /// to be asked for. Such a transaction reads nothing: it would find what was there then.
    pub(crate) fn claims_since(&self, version: i64) {
        self.transaction.set_read_version(version);
    }

    fn reads_one_more(&self) {
        self.asked.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// So many rows came.
    fn has_read(&self, rows: u64) -> FdbResult<()> {
        let before = self.read.fetch_add(rows, Ordering::Relaxed);
        let trouble = self.trouble.as_ref();
        trouble.map_or(Ok(()), |t| t.reads(before, rows))
    }

    /// One range read, counted.
    async fn range(&self, asked: &RangeOption<'_>, nth: usize, read: Read) -> FdbResult<FdbValues> {
        self.reads_one_more();
        let counted = &*self.asked;
        let waiting = counted.one_more_waits();
        if let Some(trouble) = &self.trouble {
            trouble.pause().await;
        }
        let got = self.transaction.get_range(asked, nth, read == Read::Loose);
        let got = got.await?;
        drop(waiting);
        let bytes = |row: &FdbKeyValue| row.key().len() + row.value().len();
        let bytes = got.iter().map(bytes).sum::<usize>() as u64;
        counted.rows.fetch_add(got.len() as u64, Ordering::Relaxed);
        counted.bytes.fetch_add(bytes, Ordering::Relaxed);
        counted.largest.fetch_max(bytes, Ordering::Relaxed);
        self.has_read(got.len() as u64)?;
        Ok(got)
    }

    /// The body of a row. Asked for at once.
    pub(crate) fn get<'t>(
        &'t self,
        key: &Key,
        read: Read,
    ) -> impl Future<Output = Result<Option<Bytes>, Fail>> + Send + use<'t> {
        let encoded = self.space.encode(key);
        self.reads_one_more();
        let got = self.transaction.get(&encoded, read == Read::Loose);
        async move {
            let got = got.await?;
            self.has_read(1)?;
            match got {
                Some(stored) => {
                    let body = check(&self.space, &encoded, &stored)?;
                    Ok(Some(Bytes::copy_from_slice(body)))
                }
                None => Ok(None),
            }
        }
    }

    /// A row as it is stored, whether or not it is damaged.
    pub(crate) async fn stored(&self, key: &Key, read: Read) -> Result<Option<Row>, Fail> {
        let key = self.space.encode(key);
        self.reads_one_more();
        let got = self.transaction.get(&key, read == Read::Loose).await?;
        Ok(got.map(|stored| Row {
            key,
            stored: stored.to_vec(),
        }))
    }

    /// A row, decoded. Asked for at once.
    pub(crate) fn row<'t, T, D>(
        &'t self,
        key: &Key,
        read: Read,
        decode: D,
    ) -> impl Future<Output = Result<Option<T>, Fail>> + Send + use<'t, T, D>
    where
        T: Send,
        D: FnOnce(&[u8]) -> Option<T> + Send,
    {
        let (key, body) = (key.clone(), self.get(key, read));
        async move {
            let body = body.await?;
            let decoded = body.map(|body| decode(&body).ok_or_else(|| senseless(&key)));
            Ok(decoded.transpose()?)
        }
    }

    /// A number in a row of its own; 0 where there is none.
    pub(crate) async fn number(&self, key: &Key, read: Read) -> Result<u64, Fail> {
        Ok(self.row(key, read, decode_u64).await?.unwrap_or(0))
    }

    /// A sum. See [`Txn::add`].
    pub(crate) async fn sum(&self, key: &Key) -> Result<i64, Fail> {
        self.reads_one_more();
        let got = self.transaction.get(&self.space.encode(key), true).await?;
        match got.as_deref() {
            None => Ok(0),
            Some(stored) => {
                let bytes = stored.try_into().map_err(|_| senseless(key))?;
                Ok(i64::from_le_bytes(bytes))
            }
        }
    }

    /// Adds to a sum, which conflicts with nobody.
    pub(crate) fn add(&self, key: &Key, change: i64) {
        if change != 0 {
            self.writes.store(true, Ordering::Relaxed);
            let (key, change) = (self.space.encode(key), change.to_le_bytes());
            self.transaction.atomic_op(&key, &change, MutationType::Add);
        }
    }

    /// Writes a row.
    pub(crate) fn put(&self, key: &Key, body: &[u8]) {
        self.writes.store(true, Ordering::Relaxed);
        let key = self.space.encode(key);
        let sum = sum(&key, body);
        self.transaction
            .set(&key, &[&sum.to_be_bytes(), body].concat());
    }

    /// Writes a row on which nobody decides anything, so that it conflicts with nobody.
    pub(crate) fn put_quietly(&self, key: &Key, body: &[u8]) -> Result<(), Fail> {
        let quiet = TransactionOption::NextWriteNoWriteConflictRange;
        self.transaction.set_option(quiet)?;
        self.put(key, body);
        Ok(())
    }

    /// Writes a row with a checksum that may be wrong.
    pub(crate) fn put_as_it_is(&self, key: &[u8], stored: &[u8]) {
        self.writes.store(true, Ordering::Relaxed);
        self.transaction.set(key, stored);
    }

    /// Flips a bit of a row, as a medium might; whether it has one.
    pub(crate) fn damage(&self, row: &Row) -> bool {
        let mut stored = row.stored.clone();
        let Some(last) = stored.last_mut() else {
            return false;
        };
        *last ^= 0x10;
        self.put_as_it_is(&row.key, &stored);
        true
    }

    /// The transaction itself, for somebody who writes with it.
    pub(crate) fn raw(&self) -> &Transaction {
        self.writes.store(true, Ordering::Relaxed);
        &self.transaction
    }

    /// Drops a row.
    pub(crate) fn delete(&self, key: &Key) {
        self.delete_encoded(&self.space.encode(key));
    }

    pub(crate) fn delete_encoded(&self, key: &[u8]) {
        self.writes.store(true, Ordering::Relaxed);
        self.transaction.clear(key);
    }

    /// Drops all rows of a range.
    pub(crate) fn delete_range(&self, range: &Range) {
        self.writes.store(true, Ordering::Relaxed);
        self.transaction.clear_range(&range.begin, &range.end);
    }

    /// Fails if somebody changes this row before the commit, or has changed it since the version that this transaction reads.
    pub(crate) fn claim(&self, key: &[u8]) -> Result<(), Fail> {
        let end = [key, &[0]].concat();
        let kind = ConflictRangeType::Read;
        Ok(self.transaction.add_conflict_range(key, &end, kind)?)
    }

    /// As [`Txn::claim`], for all rows of a range, those that are not there too.
    pub(crate) fn claim_range(&self, range: &Range) -> Result<(), Fail> {
        let kind = ConflictRangeType::Read;
        let (begin, end) = (&range.begin, &range.end);
        Ok(self.transaction.add_conflict_range(begin, end, kind)?)
    }

    /// Rows of a range, at most as many, from its beginning or, backwards, from its end.
    pub(crate) async fn scan(
        &self,
        range: &Range,
        limit: usize,
        backwards: bool,
        read: Read,
    ) -> Result<Vec<Row>, Fail> {
        let mut rows = Vec::new();
        if range.begin >= range.end || limit == 0 {
            return Ok(rows);
        }
        let mut option = Some(RangeOption {
            begin: KeySelector::first_greater_or_equal(range.begin.as_slice()),
            end: KeySelector::first_greater_or_equal(range.end.as_slice()),
            limit: (limit < usize::MAX).then_some(limit),
            target_bytes: RANGE_BYTES,
            mode: StreamingMode::WantAll,
            reverse: backwards,
            ..RangeOption::default()
        });
        let mut iteration = 1;
        while let Some(asked) = option.take() {
            let got = self.range(&asked, iteration, read).await?;
            rows.extend(got.iter().map(Row::of));
            if rows.len() < limit {
                option = asked.next_range(&got);
            }
            iteration += 1;
        }
        Ok(rows)
    }

    /// The keys of a range, decoded. Their rows should be small.
    pub(crate) async fn keys(
        &self,
        range: &Range,
        limit: usize,
        read: Read,
    ) -> Result<Vec<Key>, Fail> {
        let rows = self.scan(range, limit, false, read).await?;
        rows.iter().map(|row| self.key(row)).collect()
    }

    /// The last key of a range.
    pub(crate) async fn last(&self, range: &Range, read: Read) -> Result<Option<Key>, Fail> {
        let rows = self.scan(range, 1, true, read).await?;
        rows.first().map(|row| self.key(row)).transpose()
    }

    /// The first key of a range.
    pub(crate) async fn first(&self, range: &Range, read: Read) -> Result<Option<Key>, Fail> {
        let rows = self.scan(range, 1, false, read).await?;
        rows.first().map(|row| self.key(row)).transpose()
    }

    pub(crate) fn key(&self, row: &Row) -> Result<Key, Fail> {
        let key = self.space.decode(&row.key);
        Ok(key.ok_or_else(|| corrupt(&self.space, &row.key, "not a key of this store"))?)
    }

    /// The body of a row of a scan.
    pub(crate) fn body<'r>(&self, row: &'r Row) -> Result<&'r [u8], Fail> {
        Ok(check(&self.space, &row.key, &row.stored)?)
    }

    /// A row of a scan, decoded.
    pub(crate) fn decode<T>(
        &self,
        row: &Row,
        decode: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<T, Fail> {
        Ok(self::decode(&self.space, row, decode)?)
    }

    /// The last rows of a range, at most as many, backwards from its end by one range read, which is one answer of a storage server: there are more where it
    /// had no room for so many. A single row always has room. Loosely.
    pub(crate) async fn last_rows(&self, range: &Range, limit: usize) -> Result<FdbValues, Fail> {
        let option = RangeOption {
            begin: KeySelector::first_greater_or_equal(range.begin.as_slice()),
            end: KeySelector::first_greater_or_equal(range.end.as_slice()),
            limit: Some(limit),
            // Without it the client would ask again and again, until there are as many.
            target_bytes: if limit > 1 { ANSWER_BYTES } else { 0 },
            mode: StreamingMode::Exact,
            reverse: true,
            ..RangeOption::default()
        };
        Ok(self.range(&option, 1, Read::Loose).await?)
    }

    /// Tells when a row changes: the answer comes after this transaction is committed.
    pub(crate) fn watch(
        &self,
        key: &Key,
    ) -> impl Future<Output = FdbResult<()>> + Send + Sync + Unpin + use<> {
        self.writes.store(true, Ordering::Relaxed);
        self.transaction.watch(&self.space.encode(key))
    }
}

/// The body of a row whose checksum is right.
pub(crate) fn check<'r>(
    space: &Space,
    key: &[u8],
    stored: &'r [u8],
) -> Result<&'r [u8], StoreError> {
    if let Some((stored, body)) = stored.split_first_chunk()
        && u32::from_be_bytes(*stored) == sum(key, body)
    {
        return Ok(body);
    }
    Err(corrupt(space, key, "checksum differs"))
}

/// A row of a scan, decoded.
pub(crate) fn decode<T>(
    space: &Space,
    row: &Row,
    decode: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<T, StoreError> {
    let decoded = decode(check(space, &row.key, &row.stored)?);
    decoded.ok_or_else(|| corrupt(space, &row.key, "not in the format of this store"))
}

/// Says that the row of a key is damaged.
pub(crate) fn corrupt(space: &Space, key: &[u8], problem: &str) -> StoreError {
    let what = space.decode(key);
    let what = what.map_or_else(|| format!("a row {key:02x?}"), |key| key.to_string());
    StoreError::Corrupt(format!("{what}: {problem}"))
}

/// A body that has its checksum and still makes no sense.
pub(crate) fn senseless(key: &Key) -> StoreError {
    StoreError::Corrupt(format!("{key}: not in the format of this store"))
}

/// Of the key and the body, so that a body in the place of another is damage too.
fn sum(key: &[u8], body: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(body);
    sum.update(key);
    sum.finalize()
}
