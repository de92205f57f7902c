//! Opening a directory that is held (`directory.rs`): what the last process left, and the log of this run (LOG6).

#[cfg(test)]
mod tests;

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

    /// Goes through the tree before the engine does, where that is asked for, and looks at the roots in any case (`tree.rs`).
    fn check_tree(&self, roots: &Roots) -> Result<(), StoreError> {
        let damaged = |why: &str| {
            let path = self.directory.join(ROWS_FILE);
            let path = path.display();
            let what = format!("{path} is damaged: {why}; put back a copy of the whole directory");
            Err(StoreError::Corrupt(what))
        };
        if let Some(why) = tree::find_in_roots(roots) {
            return damaged(&why);
        }
        if self.options.check_bytes == 0 {
            tracing::warn!(
                directory = %self.directory.display(),
                "the tree of the store is not checked: if it is damaged, rows may be missing, or older ones be read in their place, a commit may overwrite \
                 others, and the process may end; take a copy of the directory first, export what is needed, and write nothing"
            );
        }
        let length = self.data.metadata().map_err(|error| self.failed(error))?;
        if length.len() > self.options.check_bytes {
            return Ok(());
        }
        let found = tree::find(&self.data, roots, self.options.stop.as_deref());
        match found.map_err(|error| self.failed(error))? {
            None => Ok(()),
            Some(why) => damaged(&why),
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
