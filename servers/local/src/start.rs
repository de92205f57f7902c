//! Opening a directory that is held (`directory.rs`): what the last process left, and the log of this run (LOG6).

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use heed::{MdbError, RoTxn};
use pagewire_proto::Incarnation;
use pagewire_server::store::StoreError;

use crate::LocalOptions;
use crate::directory::{
    ROWS_FILE, SLOTS_FILE, begin_making, hold_rows, lock, missing, other_program,
    refuse_other_program,
};
use crate::engine::{Engine, Env, FORMAT, Rows, check, map, map_again, open_failed, sums};
use crate::faults::Place;
use crate::keys::Key;
use crate::log::Log;
use crate::log::files::{self, Files, is_no_room};
use crate::log::opening::{self, Found, NotFound};
use crate::log::record;
use crate::log::slots::{Checkpoint, Slots};
use crate::roots::{self, Roots};
use crate::{tree, truncation};

/// Bytes by which the file may be larger than its largest size while the log is done again: the last record may be of what found no room, and
/// another order of free pages may need some more.
const HEADROOM: usize = 64 << 20;

/// Bytes free below which a disk is full.
const FULL_BYTES: u64 = 4 << 20;

/// What an opening works with.
struct Opening<'d> {
    directory: &'d Path,
    held: &'d File,
    data: File,
    slots: Slots,
    options: &'d LocalOptions,
}

impl Engine {
    /// Opens the engine in a directory, which is made where it does not exist.
    pub(crate) fn open(directory: &Path, options: &LocalOptions) -> Result<Self, StoreError> {
        let failed = |what: &'static str| {
            move |error: std::io::Error| {
                StoreError::Unavailable(format!("{what} {}: {error}", directory.display()))
            }
        };
        std::fs::create_dir_all(directory).map_err(failed("cannot make the directory"))?;
        let lock = lock(directory)?;
        let held = File::open(directory).map_err(failed("cannot open"))?;
        let is_new = begin_making(directory, &held)?;
        let opening = Opening::new(directory, &held, is_new, options)?;
        let (env, rows, log) = opening.open(is_new)?;
        let data = opening.data;
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
            log,
            env,
            rows,
            faults: options.faults.clone(),
            directory: held,
            committing: AtomicUsize::new(0),
            _locks: [data, lock],
        })
    }
}

impl<'d> Opening<'d> {
    fn new(
        directory: &'d Path,
        held: &'d File,
        is_new: bool,
        options: &'d LocalOptions,
    ) -> Result<Self, StoreError> {
        let open = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create(is_new);
            match options.open(directory.join(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => Err(missing(directory, name)),
                opened => opened.map_err(|error| {
                    let directory = directory.display();
                    StoreError::Unavailable(format!("cannot open files in {directory}: {error}"))
                }),
            }
        };
        let data = open(ROWS_FILE)?;
        hold_rows(directory, &data)?;
        refuse_other_program(directory)?;
        let file = match open(SLOTS_FILE) {
            Err(missing @ StoreError::Corrupt(_)) => {
                return Err(older(directory, &data, options).unwrap_or(missing));
            }
            opened => opened?,
        };
        Ok(Self {
            directory,
            held,
            data,
            slots: Slots {
                file,
                format: FORMAT,
            },
            options,
        })
    }

    fn open(&self, is_new: bool) -> Result<(Env, Rows, Log), StoreError> {
        let found = match is_new {
            true => None,
            false => Some(self.find()?),
        };
        self.finish(found)
    }

    fn failed(&self, error: std::io::Error) -> StoreError {
        let directory = self.directory.display();
        StoreError::Unavailable(format!("cannot open the store in {directory}: {error}"))
    }

    fn engine_failed(&self, error: heed::Error) -> StoreError {
        let is_for_room = match &error {
            heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull) => true,
            // The engine says that the medium failed where a write was cut short by a full disk.
            heed::Error::Io(error) => is_no_room(error.kind()) || self.is_disk_full(),
            _ => false,
        };
        match is_for_room {
            true => StoreError::Unavailable(format!(
                "there is no room to open the store in {}: make room on the disk, or open it with a larger size; nothing is lost ({error})",
                self.directory.display()
            )),
            false => open_failed(self.directory, &error),
        }
    }

    fn is_disk_full(&self) -> bool {
        let disk = rustix::fs::fstatvfs(self.held);
        disk.is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < FULL_BYTES)
    }

    /// What there is, with its roots put back, durably.
    fn find(&self) -> Result<Found, StoreError> {
        let found = opening::find(self.directory, &self.slots, &self.data);
        let found = found.map_err(|error| match error {
            NotFound::Io(error) => self.failed(error),
            NotFound::Refused(error) => error,
        })?;
        self.check_tree(&found.base.roots)?;
        // Of a marked transaction they are what is there, and in the cache alone where the sync of it failed. Of another the disk may have
        // one that the cache has not, of a transaction that never was: it goes before a page of that is written (LOG6, LOG7).
        let put_back = found.base.roots.write(&self.data);
        let put_back = put_back.and_then(|()| self.data.sync_data());
        put_back.map_err(|error| self.failed(error))?;
        Ok(found)
    }

    /// Goes through the tree before the engine does, where that is asked for (`tree.rs`).
    fn check_tree(&self, roots: &Roots) -> Result<(), StoreError> {
        let length = self.data.metadata().map_err(|error| self.failed(error))?;
        if length.len() > self.options.check_bytes {
            return Ok(());
        }
        let found = tree::find(&self.data, roots);
        match found.map_err(|error| self.failed(error))? {
            None => Ok(()),
            Some(why) => Err(StoreError::Corrupt(format!(
                "{} is damaged: {why}; put back a copy of the whole directory",
                self.directory.join(ROWS_FILE).display()
            ))),
        }
    }

    /// Opens the engine, does again what the log has, and begins the log of this run.
    fn finish(&self, found: Option<Found>) -> Result<(Env, Rows, Log), StoreError> {
        let map_bytes = self.options.map_bytes;
        let env = map(self.directory, map_bytes.saturating_add(HEADROOM))?;
        let pin = || env.clone().static_read_txn();
        // Before the first transaction (LOG3).
        let mut pinned = pin().map_err(|error| self.engine_failed(error))?;
        if let Some(found) = &found {
            self.check_reached(&pinned, &found.base)?;
        }
        let rows = {
            let mut txn = env.write_txn().map_err(|e| self.engine_failed(e))?;
            let rows = env.create_database(&mut txn, None);
            let rows: Rows = rows.map_err(|e| self.engine_failed(e))?;
            txn.commit().map_err(|e| self.engine_failed(e))?;
            rows
        };
        if let Some(found) = &found {
            self.check_run(&pinned, rows, found.base.run)?;
            self.settle(&env, rows, found)?;
            // What the slots name now: what only S has may be used again.
            let newer = pin().map_err(|error| self.engine_failed(error))?;
            drop(std::mem::replace(&mut pinned, newer));
        }
        // It is in no log: the slots allow for one such transaction (LOG5).
        let run = random()?;
        let mut txn = env.write_txn().map_err(|e| self.engine_failed(e))?;
        let (key, body) = (Key::Run.encode(), run.to_be_bytes());
        let sums = sums(&key, crc32fast::hash(&body), body.len());
        let row = [&sums[..], &body].concat();
        let put = rows.put(&mut txn, &key, &row).and_then(|()| txn.commit());
        put.map_err(|e| self.engine_failed(e))?;
        self.pass(Place::AfterRun)?;
        let [first, second] = files::NAMES.map(|name| {
            let mut options = File::options();
            options.read(true).write(true).create(true);
            options.open(self.directory.join(name))
        });
        let files = first.and_then(|first| Files::begin([first, second?], run));
        let files = files.map_err(|error| self.failed(error))?;
        // Slots that need the log must not be there before its names are.
        self.held.sync_all().map_err(|error| self.failed(error))?;
        self.write(&Checkpoint {
            number: env.info().last_txn_id as u64,
            run,
            is_closed: false,
            file: files.file,
            previous: files.previous,
            lengths: files.lengths,
            roots: self.roots()?,
        })?;
        // Nothing is written in between.
        drop(pinned);
        map_again(&env, map_bytes).map_err(|error| self.engine_failed(error))?;
        let newer = pin().map_err(|error| self.engine_failed(error))?;
        let slots = Slots {
            file: self.slots.file.try_clone().map_err(|e| self.failed(e))?,
            format: FORMAT,
        };
        // Not duplicates, of which one is told what another missed (LOG9).
        let open = || File::open(self.directory.join(ROWS_FILE)).map_err(|e| self.failed(e));
        let log = Log::new(files, slots, [open()?, open()?], newer, self.options);
        let log = log.map_err(|error| self.failed(error))?;
        Ok((env, rows, log))
    }

    /// The engine takes the number of the last transaction from its lock file where that is in use: one of another time, with none of its roots.
    fn check_reached(&self, txn: &RoTxn<'_>, base: &Checkpoint) -> Result<(), StoreError> {
        match txn.id() as u64 == base.number {
            true => Ok(()),
            false => Err(other_program(self.directory)),
        }
    }

    /// LOG5.
    fn check_run(&self, txn: &RoTxn<'_>, rows: Rows, run: u64) -> Result<(), StoreError> {
        let key = Key::Run.encode();
        let row = rows.get(txn, &key).map_err(|e| self.engine_failed(e))?;
        match row.map(|row| check(&key, row)).transpose()? {
            Some(body) if body == run.to_be_bytes() => Ok(()),
            _ => Err(StoreError::Corrupt(format!(
                "{}: it is of another copy than the file `checkpoint` beside it; put back a copy of the whole directory",
                self.directory.join(ROWS_FILE).display()
            ))),
        }
    }

    /// Does again what is after the base. Then the slots say that the log is not needed any more.
    fn settle(&self, env: &Env, rows: Rows, found: &Found) -> Result<(), StoreError> {
        for record in &found.records {
            let senseless = || {
                let number = record.number;
                StoreError::Corrupt(format!(
                    "the log's record of transaction {number} makes no sense"
                ))
            };
            let body = found.body(record).map_err(|error| self.failed(error))?;
            let mut body = &body[..];
            let mut txn = env.write_txn().map_err(|e| self.engine_failed(e))?;
            if txn.id() as u64 != record.number {
                return Err(senseless());
            }
            while let Some((key, row)) = record::next_change(&mut body).map_err(|()| senseless())? {
                let done = match row {
                    Some(row) => rows.put(&mut txn, key, row),
                    None => rows.delete(&mut txn, key).map(|_| ()),
                };
                done.map_err(|e| self.engine_failed(e))?;
            }
            txn.commit().map_err(|e| self.engine_failed(e))?;
        }
        self.pass(Place::AfterReplay)?;
        if found.base.is_closed {
            return Ok(());
        }
        self.write(&Checkpoint {
            number: env.info().last_txn_id as u64,
            is_closed: true,
            previous: 0,
            roots: self.roots()?,
            ..found.base.clone()
        })
    }

    /// Those of the engine, which is open.
    fn roots(&self) -> Result<Roots, StoreError> {
        let page_bytes = roots::page_bytes(&self.data);
        let read = page_bytes.and_then(|page_bytes| Roots::read(&self.data, page_bytes));
        read.map_err(|error| self.failed(error))
    }

    /// Makes a checkpoint, in this thread.
    fn write(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let synced = self.data.sync_data();
        synced.map_err(|error| self.failed(error))?;
        self.pass(Place::BeforeSlots)?;
        let write = |slot| {
            let written = self.slots.write(slot, checkpoint);
            written.map_err(|error| self.failed(error))
        };
        write(0)?;
        self.pass(Place::BetweenSlots)?;
        write(1)
    }

    fn pass(&self, place: Place) -> Result<(), StoreError> {
        match self
            .options
            .faults
            .as_ref()
            .map(|faults| faults.pass(place))
        {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(self.failed(std::io::Error::other(format!("{error:?}")))),
        }
    }
}

fn random() -> Result<u64, StoreError> {
    let random = Incarnation::random().map_err(|e| StoreError::Unavailable(e.to_string()))?;
    let [a, b, c, d, e, f, g, h, ..] = *random.as_bytes();
    Ok(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// What a store is refused with that has no log because it was made before there was one. Nothing of it is written.
fn older(directory: &Path, data: &File, options: &LocalOptions) -> Option<StoreError> {
    let has_log = |name: &&str| directory.join(name).exists();
    if files::NAMES.iter().any(has_log) {
        return None;
    }
    let roots = Roots::read(data, roots::page_bytes(data).ok()?).ok()?;
    if truncation::find(data, &roots).ok()?.is_some() {
        return None;
    }
    let env = map(directory, options.map_bytes).ok()?;
    let txn = env.read_txn().ok()?;
    let rows: Rows = env.open_database(&txn, None).ok()??;
    let key = Key::Format.encode();
    let format = check(&key, rows.get(&txn, &key).ok()??).ok()?;
    let format = u32::from_be_bytes(format.try_into().ok()?);
    (format < FORMAT).then(|| other_format(directory, format))
}

/// Refuses what another program wrote.
pub(crate) fn other_format(directory: &Path, format: u32) -> StoreError {
    let age = match format < FORMAT {
        true => "an older",
        false => "a newer",
    };
    StoreError::Unavailable(format!(
        "{} has format {format}, this program reads format {FORMAT}: use the program that wrote it, {age} one",
        directory.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{FILES, MAKING_FILE};

    /// The roots of an empty file, whose pages have another size than those of the machine.
    fn made_elsewhere(page_bytes: usize) -> Vec<u8> {
        let mut file = vec![0; 2 * page_bytes];
        for (number, page) in (0_u64..).zip(file.chunks_mut(page_bytes)) {
            page[..8].copy_from_slice(&number.to_ne_bytes());
            page[10..12].copy_from_slice(&8_u16.to_ne_bytes());
            let (magic, version) = (0xBEEF_C0DE_u32, heed_data_version());
            page[16..20].copy_from_slice(&magic.to_ne_bytes());
            page[20..24].copy_from_slice(&version.to_ne_bytes());
            page[32..40].copy_from_slice(&(1_u64 << 30).to_ne_bytes());
            page[40..44].copy_from_slice(&(page_bytes as u32).to_ne_bytes());
            page[44..46].copy_from_slice(&8_u16.to_ne_bytes());
            page[80..88].copy_from_slice(&u64::MAX.to_ne_bytes());
            page[128..136].copy_from_slice(&u64::MAX.to_ne_bytes());
            page[136..144].copy_from_slice(&1_u64.to_ne_bytes());
        }
        file
    }

    /// As the engine that is linked in writes it.
    fn heed_data_version() -> u32 {
        let directory = tempfile::tempdir().unwrap();
        drop(map(directory.path(), 1 << 20).unwrap());
        let made = std::fs::read(directory.path().join(ROWS_FILE)).unwrap();
        u32::from_ne_bytes(made[20..24].try_into().unwrap())
    }

    /// A row with the checksum of its key, long enough for pages of its own.
    fn row(key: &[u8; 8]) -> Vec<u8> {
        let sum = crc32fast::hash(key).to_be_bytes();
        [&[0; 4], &sum[..], &key.repeat(100)].concat()
    }

    /// LOG3, TREE1 to TREE6: the size of a page is that of the file, wherever it was made.
    #[test]
    fn log3_roots_are_put_back_where_the_pages_of_the_file_have_them() {
        let options = LocalOptions::default();
        for page_bytes in [512, 16 << 10] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path();
            std::fs::write(path.join(ROWS_FILE), made_elsewhere(page_bytes)).unwrap();
            let held = File::open(path).unwrap();
            let opening = Opening::new(path, &held, true, &options).unwrap();
            let (env, rows, mut log) = opening.open(true).unwrap();
            assert_eq!(
                rows.stat(&env.read_txn().unwrap()).unwrap().page_size as usize,
                page_bytes
            );
            for number in 0..40_u64 {
                let mut txn = env.write_txn().unwrap();
                let mut changes = record::Changes::new();
                let key = number.to_be_bytes();
                rows.put(&mut txn, &key, &row(&key)).unwrap();
                changes.put(&key, &[], &row(&key));
                let id = txn.id() as u64;
                log.append(&env, id, changes).unwrap();
                txn.commit().unwrap();
                log.committed(&env, id, false).unwrap();
                if number == 20 {
                    log.checkpoint(&env).unwrap();
                }
            }
            let copy = tempfile::tempdir().unwrap();
            for name in FILES {
                std::fs::copy(path.join(name), copy.path().join(name)).unwrap();
            }
            log.close(&env);
            let held = File::open(copy.path()).unwrap();
            let opening = Opening::new(copy.path(), &held, false, &options).unwrap();
            let (env, rows, mut log) = opening.open(false).unwrap();
            let txn = env.read_txn().unwrap();
            for number in 0..40_u64 {
                let key = number.to_be_bytes();
                assert_eq!(rows.get(&txn, &key).unwrap().unwrap(), row(&key));
            }
            drop(txn);
            log.close(&env);
        }
    }

    /// DIR3: what is made by one that goes on is not taken away by another, though the file that tells of it is gone.
    #[test]
    fn dir3_what_is_being_made_is_not_made_anew_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let engine = Engine::open(path, &LocalOptions::default()).unwrap();
        std::fs::remove_file(path.join("LOCK")).unwrap();
        let refused = Engine::open(path, &LocalOptions::default());
        assert!(
            matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("another process")),
            "{refused:?}"
        );
        assert!(FILES.iter().all(|name| path.join(name).exists()));
        engine.end_making(path).unwrap();
        drop(engine);
        drop(Engine::open(path, &LocalOptions::default()).unwrap());
    }

    /// LOG3: a file of other pages is another file, into which nothing is put.
    #[test]
    fn log3_a_file_of_other_pages_is_refused_before_anything_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        drop(Engine::open(path, &LocalOptions::default()).unwrap());
        let mut other = made_elsewhere(16 << 10);
        other.resize(1 << 20, 0);
        std::fs::write(path.join(ROWS_FILE), &other).unwrap();
        // Of one that was not made to its end nothing is kept.
        std::fs::remove_file(path.join(MAKING_FILE)).unwrap();
        let refused = Engine::open(path, &LocalOptions::default());
        assert!(matches!(&refused, Err(StoreError::Corrupt(why)) if why.contains("16384")));
        assert!(std::fs::read(path.join(ROWS_FILE)).unwrap() == other);
    }
}
