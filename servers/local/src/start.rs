//! Opening a directory: the lock, the mark of a making, what the last process left, and the log of this run (LOG6).
//!
//! * **DIR1** While the file `NEW` is in the directory nothing was ever acknowledged: what lies there is of a store whose making was cut
//!   off, and it is made anew. It is durable before the first file is made, and gone, durably, before the store is open.
//! * **DIR2** A file that was cut short, or is missing, is refused, never mapped (`truncation.rs`, `log/opening.rs`).

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use heed::RoTxn;
use pagewire_proto::Incarnation;
use pagewire_server::store::StoreError;

use crate::LocalOptions;
use crate::engine::{Engine, Env, FORMAT, Rows, check, map, open_failed, sums};
use crate::faults::Place;
use crate::keys::Key;
use crate::log::Log;
use crate::log::files::{self, Files};
use crate::log::opening::{self, Found, NotFound};
use crate::log::record;
use crate::log::slots::{Checkpoint, Slots};
use crate::roots::Roots;

/// There while a store is made.
const MAKING_FILE: &str = "NEW";
/// The engine's file.
const ROWS_FILE: &str = "data.mdb";
const SLOTS_FILE: &str = "checkpoint";
/// What a store has, the engine's file first.
const FILES: [&str; 4] = [ROWS_FILE, SLOTS_FILE, files::NAMES[0], files::NAMES[1]];

/// What an opening works with.
struct Opening<'d> {
    directory: &'d Path,
    data: Arc<File>,
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
        let open = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create(is_new);
            match options.open(directory.join(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => Err(missing(directory, name)),
                opened => opened.map_err(failed("cannot open files in")),
            }
        };
        let opening = Opening {
            directory,
            data: Arc::new(open(ROWS_FILE)?),
            slots: Slots {
                file: open(SLOTS_FILE)?,
                format: FORMAT,
            },
            options,
        };
        let found = match is_new {
            true => None,
            false => Some(opening.find()?),
        };
        let (env, rows, log) = opening.finish(found)?;
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
}

impl Opening<'_> {
    fn failed(&self, error: std::io::Error) -> StoreError {
        let directory = self.directory.display();
        StoreError::Unavailable(format!("cannot open the store in {directory}: {error}"))
    }

    fn engine_failed(&self, error: heed::Error) -> StoreError {
        open_failed(self.directory, &error)
    }

    /// What there is, with its roots put back.
    fn find(&self) -> Result<Found, StoreError> {
        let found = opening::find(self.directory, &self.slots, &self.data);
        let found = found.map_err(|error| match error {
            NotFound::Io(error) => self.failed(error),
            NotFound::Refused(error) => error,
        })?;
        if !found.is_marked {
            let put_back = found.base.roots.write(&self.data);
            put_back.map_err(|error| self.failed(error))?;
        }
        Ok(found)
    }

    /// Opens the engine, does again what the log has, and begins the log of this run.
    fn finish(&self, found: Option<Found>) -> Result<(Env, Rows, Log), StoreError> {
        let env = map(self.directory, self.options.map_bytes)?;
        // Before the first transaction (LOG3).
        let pin = env.clone().static_read_txn();
        let pin = pin.map_err(|error| self.engine_failed(error))?;
        let rows = {
            let mut txn = env.write_txn().map_err(|e| self.engine_failed(e))?;
            let rows = env.create_database(&mut txn, None);
            let rows: Rows = rows.map_err(|e| self.engine_failed(e))?;
            txn.commit().map_err(|e| self.engine_failed(e))?;
            rows
        };
        if let Some(found) = &found {
            self.check_run(&pin, rows, found.base.run)?;
            self.settle(&env, rows, found)?;
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
        let checkpoint = Checkpoint {
            number: env.info().last_txn_id as u64,
            run,
            is_closed: false,
            file: files.file,
            previous: files.previous,
            lengths: files.lengths,
            roots: Roots::read(&self.data).map_err(|error| self.failed(error))?,
        };
        self.write(&checkpoint)?;
        let pinned = env.clone().static_read_txn();
        drop(pin);
        let log = pinned.map_err(|e| self.engine_failed(e)).and_then(|pin| {
            let slots = Slots {
                file: self.slots.file.try_clone().map_err(|e| self.failed(e))?,
                format: FORMAT,
            };
            let log = Log::new(files, slots, Arc::clone(&self.data), pin, self.options);
            log.map_err(|error| self.failed(error))
        })?;
        Ok((env, rows, log))
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
            roots: Roots::read(&self.data).map_err(|error| self.failed(error))?,
            ..found.base.clone()
        })
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

fn lock(directory: &Path) -> Result<File, StoreError> {
    let unavailable = |what: &str, error: std::io::Error| {
        StoreError::Unavailable(format!("{what} {}: {error}", directory.display()))
    };
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("LOCK"))
        .map_err(|error| unavailable("cannot write to the directory", error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable(format!(
            "{} is open in another process: stop that one, or name another directory",
            directory.display()
        ))),
        Err(TryLockError::Error(error)) => Err(unavailable("cannot lock", error)),
    }
}

/// Takes away what a making left that was cut off, and says that one begins where there is no store (DIR1). Answers whether one begins.
fn begin_making(directory: &Path, held: &File) -> Result<bool, StoreError> {
    let failed = |error: std::io::Error| {
        let directory = directory.display();
        StoreError::Unavailable(format!("cannot make files in {directory}: {error}"))
    };
    let is_there = |name: &str| directory.join(name).try_exists().map_err(failed);
    let is_making = is_there(MAKING_FILE)?;
    let mut there = Vec::new();
    for name in FILES {
        if is_there(name)? {
            there.push(name);
        }
    }
    if is_making {
        for name in there {
            std::fs::remove_file(directory.join(name)).map_err(failed)?;
        }
    } else if there.first() == Some(&ROWS_FILE) {
        return Ok(false);
    } else if there.is_empty() {
        File::create(directory.join(MAKING_FILE)).map_err(failed)?;
    } else {
        return Err(missing(directory, ROWS_FILE));
    }
    held.sync_all().map_err(failed)?;
    Ok(true)
}

fn missing(directory: &Path, name: &str) -> StoreError {
    StoreError::Corrupt(format!(
        "{}: it is missing, and other files of a store are there; put back a copy of the whole directory",
        directory.join(name).display()
    ))
}
