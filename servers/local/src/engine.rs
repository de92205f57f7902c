//! The engine: LMDB through `heed`, and rows with checksums.
//!
//! The only file of the store that opens the engine (unsafe, because it maps a file into memory). A row is crc32 (4 bytes,
//! big-endian) over the body and then the key, crc32 of the key alone, and the body: a row that was moved to another key differs too (C16).
//!
//! * **KEY1** The engine's tree has no checksums. A bit of a key that flips would hide its row, and an older one would be read in its place: so
//!   where not the very row is found that was asked for, the keys on both sides of its place have to be right, by their own checksums
//!   and in their order. Damage to the pages above keys is found where it leads to a place out of order, and not where it leads
//!   to another tree.
//!
//! * **READ1** What a reader sees is durable, and whoever begins later sees no less. LMDB alone does not keep this: its readers load the
//!   number of the last transaction, T, and then one of two roots, by whether T is odd. Where a reader is held up between the two
//!   while T + 1 ends and T + 2 writes its root, over that of T, it has a root of which the next reader is not told yet: that one
//!   is given T + 1. It may have half of one, and where T + 2 is large, one that is not durable (LOG7; of the others the log
//!   has the record, LOG1). So a commit says its number before the engine writes anything of it, and a reader that finds more than
//!   T + 1 begins again.
//!
//! The engine syncs nothing: `log.rs` says what makes a transaction durable, and that a reader sees it only then.

use std::fs::File;
use std::io::Write;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use heed::types::Bytes as Raw;
use heed::{EnvFlags, EnvOpenOptions, FlagSetMode, MdbError, RoTxn, WithoutTls};
use pagewire_server::store::StoreError;

use crate::faults::{Faults, Place};
use crate::keys::Key;
use crate::log::Log;
use crate::log::record::Changes;
use crate::transaction::{Recorder, WriteTxn};

/// The format that this program writes. It reads this one only.
pub(crate) const FORMAT: u32 = 4;
/// Length of the checksums of a row.
pub(crate) const SUM_LEN: usize = 8;
/// Read transactions at the same time: more than there are threads that read.
const MAX_READERS: u32 = 2048;

pub(crate) type Rows = heed::Database<Raw, Raw>;
pub(crate) type Env = heed::Env<WithoutTls>;

/// The open engine. Dropped last of all that uses it, since it holds the directory.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) log: Log,
    pub(crate) env: Env,
    pub(crate) rows: Rows,
    pub(crate) faults: Option<Arc<Faults>>,
    pub(crate) directory: File,
    /// The number of the last transaction whose commit began (READ1).
    pub(crate) committing: AtomicUsize,
    /// Held to the end of the process or of the engine (DIR3); declared last, so that they are given back after the engine closed.
    pub(crate) _locks: [File; 2],
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.log.close(&self.env);
    }
}

/// A key and its row, checksum and all.
pub(crate) type Row<'t> = (&'t [u8], &'t [u8]);

/// A transaction that reads.
pub(crate) type ReadTxn<'a> = RoTxn<'a, WithoutTls>;

impl Engine {
    /// A transaction that sees what is durable now (READ1). Short: it holds back the space of everything replaced meanwhile.
    pub(crate) fn read(&self) -> Result<ReadTxn<'_>, StoreError> {
        loop {
            let txn = self.env.read_txn().map_err(read_failed)?;
            self.check_readable()?;
            // Between the copy of the root and the look at who may have written it.
            fence(Ordering::SeqCst);
            if self.committing.load(Ordering::SeqCst) <= txn.id() + 1 {
                return Ok(txn);
            }
        }
    }

    /// Whether what is read is what was committed (LOG9).
    fn check_readable(&self) -> Result<(), StoreError> {
        match self.log.is_unreadable() {
            true => Err(StoreError::Internal(
                "the medium failed, and may have lost pages: open the store anew when it is repaired".to_owned(),
            )),
            false => Ok(()),
        }
    }

    /// The one transaction that writes; waits for another. It reads too, and is refused where reads are.
    pub(crate) fn write(&self) -> Result<WriteTxn<'_>, StoreError> {
        let txn = self.env.write_txn().map_err(read_failed)?;
        self.check_readable()?;
        Ok(WriteTxn {
            txn,
            changes: Recorder::Whole(Changes::new()),
        })
    }

    /// A transaction within one: its end without a commit undoes it alone.
    pub(crate) fn nested<'t>(
        &'t self,
        txn: &'t mut WriteTxn<'_>,
    ) -> Result<WriteTxn<'t>, StoreError> {
        Ok(WriteTxn {
            txn: self
                .env
                .nested_write_txn(&mut txn.txn)
                .map_err(read_failed)?,
            changes: Recorder::part(&mut txn.changes),
        })
    }

    /// Makes a transaction durable, then visible; of one within another, a part of that.
    pub(crate) fn commit(&self, txn: WriteTxn<'_>) -> Result<(), WriteError> {
        let WriteTxn { txn, changes } = txn;
        let changes = match changes {
            Recorder::Whole(changes) => changes,
            Recorder::Part(part) => {
                txn.commit().map_err(|error| self.write_failed(error))?;
                part.keep();
                return Ok(());
            }
        };
        if changes.is_empty() {
            return Ok(());
        }
        let (number, is_large) = (txn.id() as u64, changes.is_large());
        self.log.append(&self.env, number, changes)?;
        let passed = match (&self.faults, is_large) {
            (None, _) => Ok(()),
            (Some(faults), false) => faults.pass(Place::AfterLog),
            (Some(faults), true) => faults.pass(Place::AfterMark),
        };
        match passed.and_then(|()| self.commit_to_tree(txn, is_large)) {
            Ok(()) => {}
            Err(WriteError::Refused(error)) => {
                self.log.take_back(is_large)?;
                return Err(WriteError::Refused(error));
            }
            Err(WriteError::Medium(why)) if is_large => return Err(self.log.lose(why)),
            Err(WriteError::Medium(why)) => return Err(self.log.fail(why)),
        }
        let reached = self.env.info().last_txn_id as u64;
        if reached != number {
            let why = format!("the log is at {number}, the engine at {reached}");
            return Err(self.log.fail(why));
        }
        self.log.committed(&self.env, number, is_large)?;
        match is_large {
            // The root is in the file alone until then (LOG7).
            true => match self.log.checkpoint(&self.env) {
                // Then it is made before the next one.
                Err(WriteError::Refused(_)) => Ok(()),
                made => made,
            },
            false => Ok(()),
        }
    }

    /// Lets the engine sync a commit by itself, data before root, or not at all.
    pub(crate) fn set_syncs(&self, syncs: bool) -> Result<(), WriteError> {
        let mode = match syncs {
            true => FlagSetMode::Disable,
            false => FlagSetMode::Enable,
        };
        // SAFETY: only the committer's thread comes here, between commits; what a lack of syncs may lose is in the log.
        #[expect(unsafe_code, reason = "how the engine's syncs are turned on")]
        let set = unsafe { self.env.set_flags(EnvFlags::NO_SYNC, mode) };
        set.map_err(|error| WriteError::Medium(error.to_string()))
    }

    /// The body of a row, if there is one.
    pub(crate) fn get<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        key: &Key,
    ) -> Result<Option<&'t [u8]>, StoreError> {
        let bytes = key.encode();
        match self.rows.get(txn, &bytes).map_err(read_failed)? {
            Some(row) => check(&bytes, row).map(Some),
            None => {
                self.seek(txn, &bytes, &[])?;
                Ok(None)
            }
        }
    }

    /// The newest row at or before a key that begins with a prefix, with its key. Its checksum is not looked at.
    pub(crate) fn seek<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        key: &[u8],
        prefix: &[u8],
    ) -> Result<Option<Row<'t>>, StoreError> {
        let found = self.rows.get_lower_than_or_equal_to(txn, key);
        let found = found.map_err(read_failed)?;
        if found.is_none_or(|(there, _)| there != key) {
            let next = self.rows.get_greater_than(txn, key);
            let next = next.map_err(read_failed)?;
            let in_order = found.is_none_or(|(before, _)| before < key)
                && next.is_none_or(|(after, _)| after > key);
            if !in_order {
                return Err(corrupt(key, "the tree of the store is out of order there"));
            }
            for (key, row) in found.into_iter().chain(next) {
                check_key(key, row)?;
            }
        }
        Ok(found.filter(|(key, _)| key.starts_with(prefix)))
    }

    /// Keys and rows from a bound on that begin with a prefix, until the function says `false`.
    pub(crate) fn scan<'t>(
        &self,
        txn: &'t RoTxn<'_>,
        from: Bound<&[u8]>,
        prefix: &[u8],
        mut each: impl FnMut(&'t [u8], &'t [u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let range = (from, Bound::Unbounded);
        let rows = self.rows.range(txn, &range).map_err(read_failed)?;
        for row in rows {
            let (key, row) = row.map_err(read_failed)?;
            check_key(key, row)?;
            if !key.starts_with(prefix) || !each(key, row)? {
                break;
            }
        }
        Ok(())
    }

    /// Writes a row.
    pub(crate) fn put(
        &self,
        txn: &mut WriteTxn<'_>,
        key: &Key,
        body: &[u8],
    ) -> Result<(), WriteError> {
        self.put_summed(txn, key, body, crc32fast::hash(body))
    }

    /// Writes a row whose crc32, of the body alone, is known.
    pub(crate) fn put_summed(
        &self,
        txn: &mut WriteTxn<'_>,
        key: &Key,
        body: &[u8],
        body_crc: u32,
    ) -> Result<(), WriteError> {
        let key = key.encode();
        let sums = sums(&key, body_crc, body.len());
        let put = self
            .rows
            .put_reserved(&mut txn.txn, &key, body.len() + SUM_LEN, |row| {
                row.write_all(&sums)?;
                row.write_all(body)
            });
        put.map_err(|error| self.write_failed(error))?;
        txn.changes.changes().put(&key, &sums, body);
        Ok(())
    }

    /// Drops a row, if it is there.
    pub(crate) fn delete(&self, txn: &mut WriteTxn<'_>, key: &[u8]) -> Result<(), WriteError> {
        let deleted = self.rows.delete(&mut txn.txn, key);
        // One that changes nothing has no number in the engine, and must have none in the log.
        if deleted.map_err(|error| self.write_failed(error))? {
            txn.changes.changes().delete(key);
        }
        Ok(())
    }
}

/// Why a write was not done.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// The store is at fault, or the request; the transaction is as good as never begun once it is aborted.
    Refused(StoreError),
    /// The medium failed: nothing may be written any more (C17). A full one is not failed: see `room.rs`.
    Medium(String),
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// The body of a row whose checksum is right.
pub(crate) fn check<'t>(key: &[u8], row: &'t [u8]) -> Result<&'t [u8], StoreError> {
    if let Some((stored, body)) = row.split_first_chunk::<SUM_LEN>()
        && let Some(stored) = stored.first_chunk()
        && u32::from_be_bytes(*stored) == sum(key, crc32fast::hash(body), body.len())
    {
        return Ok(body);
    }
    Err(corrupt(key, "checksum differs"))
}

/// Whether a row lies under the key that it was written under (KEY1).
pub(crate) fn check_key(key: &[u8], row: &[u8]) -> Result<(), StoreError> {
    let stored = row.get(4..).and_then(|rest| rest.first_chunk());
    match stored.map(|stored| u32::from_be_bytes(*stored)) {
        Some(stored) if stored == crc32fast::hash(key) => Ok(()),
        _ => Err(corrupt(key, "checksum of the key differs")),
    }
}

/// Says that the row of a key is damaged.
pub(crate) fn corrupt(key: &[u8], problem: &str) -> StoreError {
    let what = Key::decode(key).map_or_else(|| format!("a row {key:02x?}"), |key| key.to_string());
    StoreError::Corrupt(format!("{what}: {problem}"))
}

/// A body that has its checksum and still makes no sense.
pub(crate) fn senseless(key: &Key) -> StoreError {
    StoreError::Corrupt(format!("{key}: not in the format of this store"))
}

/// What a row begins with.
pub(crate) fn sums(key: &[u8], body_crc: u32, body_len: usize) -> [u8; SUM_LEN] {
    let [of_row, of_key] = [sum(key, body_crc, body_len), crc32fast::hash(key)];
    let mut sums = [0; SUM_LEN];
    sums[..4].copy_from_slice(&of_row.to_be_bytes());
    sums[4..].copy_from_slice(&of_key.to_be_bytes());
    sums
}

fn sum(key: &[u8], body_crc: u32, body_len: usize) -> u32 {
    let mut sum = crc32fast::Hasher::new_with_initial_len(body_crc, body_len as u64);
    sum.update(key);
    sum.finalize()
}

/// Maps the engine's file, and syncs nothing (`log.rs`).
pub(crate) fn map(directory: &Path, map_bytes: usize) -> Result<Env, StoreError> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(map_bytes).max_readers(MAX_READERS);
    // SAFETY: the files are changed by nobody else while they are mapped: the directory's lock is exclusive among processes of
    // this program, heed refuses a second opening in this one, and the directory belongs to the store. What is not synced is in the
    // log, and the tree is opened from a root below which everything was.
    #[expect(unsafe_code, reason = "the one place where the engine maps its file")]
    let env = unsafe { options.flags(EnvFlags::NO_SYNC).open(directory) };
    env.map_err(|error| open_failed(directory, &error))
}

/// Maps the engine's file anew, with this largest size, or as it is where it is larger. Nobody may have a transaction.
pub(crate) fn map_again(env: &Env, map_bytes: usize) -> heed::Result<()> {
    // SAFETY: an opening calls it, which alone has the engine, between transactions.
    #[expect(unsafe_code, reason = "how the largest size is changed")]
    unsafe {
        env.resize(map_bytes)
    }
}

pub(crate) fn open_failed(directory: &Path, error: &heed::Error) -> StoreError {
    let why = format!("cannot open the store in {}: {error}", directory.display());
    match error {
        heed::Error::Mdb(MdbError::Invalid | MdbError::VersionMismatch | MdbError::Corrupted) => {
            StoreError::Corrupt(why)
        }
        _ => StoreError::Unavailable(why),
    }
}

fn read_failed(error: heed::Error) -> StoreError {
    match error {
        heed::Error::Mdb(MdbError::ReadersFull) => {
            StoreError::Unavailable("too many reads at the same time".to_owned())
        }
        heed::Error::Mdb(MdbError::Corrupted | MdbError::PageNotFound) => {
            StoreError::Corrupt(format!("the tree of the store is damaged: {error}"))
        }
        error => StoreError::Internal(format!("the store cannot be read: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::{Engine, Key};
    use crate::LocalOptions;

    /// Where a sync costs nothing, so that many commits pass while a reader is held up; a container may have 64 MiB of that.
    fn fast_directory() -> PathBuf {
        let memory = Path::new("/dev/shm");
        match rustix::fs::statvfs(memory) {
            Ok(disk) if disk.f_bavail.saturating_mul(disk.f_frsize) >= 1 << 30 => memory.to_owned(),
            _ => std::env::temp_dir(),
        }
    }

    /// What the other test meets by chance: a reader of T, while T + 2 may have written the root that it copied.
    #[test]
    fn read1_a_reader_that_a_commit_may_have_overtaken_twice_begins_again() {
        let directory = tempfile::tempdir_in(fast_directory()).expect("a directory");
        let engine = Engine::open(directory.path(), &LocalOptions::default()).expect("an engine");
        let mut txn = engine.write().expect("a transaction");
        let number = txn.txn.id();
        let written = engine.put(&mut txn, &Key::Format, &[1]);
        assert!(written.is_ok() && engine.committing.load(Ordering::SeqCst) < number);
        assert!(engine.commit(txn).is_ok());
        assert_eq!(engine.committing.load(Ordering::SeqCst), number);
        engine.committing.store(number + 2, Ordering::SeqCst);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| engine.read().expect("a transaction").id());
            #[expect(clippy::disallowed_methods, reason = "nothing tells that it goes on")]
            std::thread::sleep(Duration::from_millis(50));
            assert!(
                !reader.is_finished(),
                "it was given what may be half a root"
            );
            engine.committing.store(number + 1, Ordering::SeqCst);
            assert_eq!(reader.join().expect("a number"), number);
        });
    }

    /// More threads than processors, so that readers are held up between any two instructions.
    #[test]
    fn read1_whoever_begins_later_sees_no_less() {
        let directory = tempfile::tempdir_in(fast_directory()).expect("a directory");
        let options = LocalOptions {
            map_bytes: 1 << 30,
            ..LocalOptions::default()
        };
        let engine = Engine::open(directory.path(), &options).expect("an engine");
        let key = Key::Format;
        let greatest = AtomicUsize::new(0);
        let end = Instant::now() + Duration::from_secs(4);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while Instant::now() < end {
                        let before = greatest.load(Ordering::SeqCst);
                        let txn = engine.read().expect("a transaction");
                        let row = engine.get(&txn, &key).expect("no damage");
                        let seen = row.map_or(0, |row| {
                            usize::from_be_bytes(row.try_into().expect("a number"))
                        });
                        drop(txn);
                        assert!(seen >= before, "{seen} was seen after {before}");
                        greatest.fetch_max(seen, Ordering::SeqCst);
                    }
                });
            }
            for number in 1_usize.. {
                let mut txn = engine.write().expect("a transaction");
                let written = engine.put(&mut txn, &key, &number.to_be_bytes());
                assert!(written.is_ok(), "{written:?}");
                let committed = engine.commit(txn);
                assert!(committed.is_ok(), "{committed:?}");
                if Instant::now() > end {
                    break;
                }
            }
        });
    }
}
