//! The engine: LMDB through `heed`, rows with checksums, and the directory that only one process may have open.
//!
//! The only file of the store that opens the engine (unsafe, because it maps a file into memory). A row is crc32 (4 bytes,
//! big-endian) over the body and then the key, crc32 of the key alone, and the body: a row that was moved to another key differs too (C16).
//!
//! * **KEY1** The engine's tree has no checksums. A bit of a key that flips would hide its row, and an older one would be read in its place: so
//!   where not the very row is found that was asked for, the keys on both sides of its place have to be right, by their own checksums
//!   and in their order. Damage to the pages above keys is found where it leads to a place out of order, and not where it leads
//!   to another tree.
//!
//! * **DIR1** While the file `NEW` is in the directory nothing was ever acknowledged: what lies there is of a store whose making was cut
//!   off, and it is made anew. It is durable before the engine's file is made, and gone, durably, before the store is open.
//! * **DIR2** A file that was cut short is refused, never mapped (`truncation.rs`).
//!
//! Every write transaction ends in two syncs of LMDB (data, then its root), in that order; a reader sees a transaction
//! only after both.
//!
//! * **READ1** What a reader sees is durable, and whoever begins later sees no less. LMDB alone does not keep this: its readers load the
//!   number of the last transaction, T, and then one of two roots, by whether T is odd. Where a reader is held up between the two
//!   while T + 1 ends and T + 2 writes its root, over that of T, it has a root that is not durable yet, or half of one, and
//!   the next reader is given T + 1. So a commit says its number before it begins, and a reader that finds more
//!   than T + 1 begins again.

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use heed::types::Bytes as Raw;
use heed::{EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};
use pagewire_server::store::StoreError;

use crate::keys::Key;
use crate::truncation;

/// The format that this program writes. It reads this one only.
pub(crate) const FORMAT: u32 = 3;
/// Length of the checksums of a row.
pub(crate) const SUM_LEN: usize = 8;
/// Read transactions at the same time: more than there are threads that read.
const MAX_READERS: u32 = 2048;

/// The engine's file.
const ROWS_FILE: &str = "data.mdb";
/// There while a store is made.
const MAKING_FILE: &str = "NEW";

type Rows = heed::Database<Raw, Raw>;

/// The open engine. Dropped last of all that uses it, since it holds the directory.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) env: heed::Env<WithoutTls>,
    pub(crate) rows: Rows,
    pub(crate) directory: File,
    /// The number of the last transaction whose commit began (READ1).
    pub(crate) committing: AtomicUsize,
    /// Held to the end of the process or of the engine; declared last, so that it is given back after the engine closed.
    _lock: File,
}

/// A key and its row, checksum and all.
pub(crate) type Row<'t> = (&'t [u8], &'t [u8]);

/// A transaction that reads.
pub(crate) type ReadTxn<'a> = RoTxn<'a, WithoutTls>;

impl Engine {
    /// Opens the engine in a directory, which is made where it does not exist.
    pub(crate) fn open(directory: &Path, map_bytes: usize) -> Result<Self, StoreError> {
        let failed = |what: &'static str| {
            move |error: std::io::Error| {
                StoreError::Unavailable(format!("{what} {}: {error}", directory.display()))
            }
        };
        std::fs::create_dir_all(directory).map_err(failed("cannot make the directory"))?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join("LOCK"))
            .map_err(failed("cannot write to the directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Unavailable(format!(
                    "{} is open in another process: stop that one, or name another directory",
                    directory.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(failed("cannot lock")(error)),
        }
        let held = File::open(directory).map_err(failed("cannot open"))?;
        begin_making(directory, &held).map_err(failed("cannot make files in"))?;
        if let Ok(file) = File::open(directory.join(ROWS_FILE))
            && let Some(why) = truncation::find(&file).map_err(failed("cannot read"))?
        {
            return Err(StoreError::Corrupt(format!(
                "{}: {why}; put back a copy of the directory",
                directory.join(ROWS_FILE).display()
            )));
        }
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(map_bytes).max_readers(MAX_READERS);
        // SAFETY: the files are changed by nobody else while they are mapped: the lock above is exclusive among processes of
        // this program, heed refuses a second opening in this one, and the directory belongs to the store.
        #[expect(unsafe_code, reason = "the one place where the engine maps its file")]
        let env =
            unsafe { options.open(directory) }.map_err(|error| open_failed(directory, &error))?;
        let mut txn = env.write_txn().map_err(|e| open_failed(directory, &e))?;
        let rows = env
            .create_database(&mut txn, None)
            .map_err(|e| open_failed(directory, &e))?;
        txn.commit().map_err(|e| open_failed(directory, &e))?;
        // The names of the files have to be as durable as what is in them.
        held.sync_all().map_err(failed("cannot sync"))?;
        if let Some(parent) = directory
            .canonicalize()
            .ok()
            .as_deref()
            .and_then(Path::parent)
        {
            File::open(parent)
                .and_then(|parent| parent.sync_all())
                .map_err(failed("cannot sync the parent of"))?;
        }
        Ok(Self {
            env,
            rows,
            directory: held,
            committing: AtomicUsize::new(0),
            _lock: lock,
        })
    }

    /// The store is made: everything that it has to have from the beginning is durable (DIR1).
    pub(crate) fn end_making(&self, directory: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(directory.join(MAKING_FILE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.directory.sync_all(),
        }
    }

    /// A transaction that sees what is durable now. Short: it holds back the space of everything replaced meanwhile.
    pub(crate) fn read(&self) -> Result<ReadTxn<'_>, StoreError> {
        loop {
            let txn = self.env.read_txn().map_err(read_failed)?;
            // Between the copy of the root and the look at who may have written it.
            fence(Ordering::SeqCst);
            if self.committing.load(Ordering::SeqCst) <= txn.id() + 1 {
                return Ok(txn);
            }
        }
    }

    /// The one transaction that writes; waits for another.
    pub(crate) fn write(&self) -> Result<RwTxn<'_>, StoreError> {
        self.env.write_txn().map_err(read_failed)
    }

    /// A transaction within one: its end without a commit undoes it alone.
    pub(crate) fn nested<'t>(&'t self, txn: &'t mut RwTxn<'_>) -> Result<RwTxn<'t>, StoreError> {
        self.env.nested_write_txn(txn).map_err(read_failed)
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
        txn: &mut RwTxn<'_>,
        key: &Key,
        body: &[u8],
    ) -> Result<(), WriteError> {
        self.put_summed(txn, key, body, crc32fast::hash(body))
    }

    /// Writes a row whose crc32, of the body alone, is known.
    pub(crate) fn put_summed(
        &self,
        txn: &mut RwTxn<'_>,
        key: &Key,
        body: &[u8],
        body_crc: u32,
    ) -> Result<(), WriteError> {
        let key = key.encode();
        let sum = sum(&key, body_crc, body.len());
        let put = self
            .rows
            .put_reserved(txn, &key, body.len() + SUM_LEN, |row| {
                row.write_all(&sum.to_be_bytes())?;
                row.write_all(&crc32fast::hash(&key).to_be_bytes())?;
                row.write_all(body)
            });
        put.map_err(|error| self.write_failed(error))
    }

    /// Drops a row, if it is there.
    pub(crate) fn delete(&self, txn: &mut RwTxn<'_>, key: &[u8]) -> Result<(), WriteError> {
        let deleted = self.rows.delete(txn, key);
        deleted.map_err(|error| self.write_failed(error))?;
        Ok(())
    }
}

/// Takes away what a making left that was cut off, and says that one begins where there is no store (DIR1).
fn begin_making(directory: &Path, held: &File) -> std::io::Result<()> {
    let (making, rows) = (directory.join(MAKING_FILE), directory.join(ROWS_FILE));
    if making.try_exists()? {
        if rows.try_exists()? {
            std::fs::remove_file(&rows)?;
        }
    } else if rows.try_exists()? {
        return Ok(());
    } else {
        File::create(&making)?;
    }
    held.sync_all()
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
fn check_key(key: &[u8], row: &[u8]) -> Result<(), StoreError> {
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

fn sum(key: &[u8], body_crc: u32, body_len: usize) -> u32 {
    let mut sum = crc32fast::Hasher::new_with_initial_len(body_crc, body_len as u64);
    sum.update(key);
    sum.finalize()
}

fn open_failed(directory: &Path, error: &heed::Error) -> StoreError {
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

    /// Where a sync costs nothing, so that many commits pass while a reader is held up.
    fn fast_directory() -> PathBuf {
        let shared_memory = Path::new("/dev/shm");
        if shared_memory.is_dir() {
            shared_memory.to_owned()
        } else {
            std::env::temp_dir()
        }
    }

    /// More threads than processors, so that readers are held up between any two instructions.
    #[test]
    fn read1_whoever_begins_later_sees_no_less() {
        let directory = tempfile::tempdir_in(fast_directory()).expect("a directory");
        let engine = Engine::open(directory.path(), 1 << 30).expect("an engine");
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
                    println!("{number} commits");
                    break;
                }
            }
        });
    }
}
