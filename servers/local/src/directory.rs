//! A directory of a store: who may have it open, the mark of a making, and which files have to be there.
//!
//! * **DIR1** While the file `NEW` is in the directory nothing was ever acknowledged: what lies there is of a store whose making was cut
//!   off, and it is made anew. It is durable before the first file is made, and gone, durably, before the store is open.
//! * **DIR2** A file that was cut short, or is missing, is refused, never mapped (`truncation.rs`, `log/opening.rs`).
//! * **DIR3** What is open is not opened by another process, and not written to by one that is refused. The lock on `LOCK` tells in time who else makes a
//!   store; but that file is empty, lies there always, and is removed or replaced by people. So what it protects is locked too: the
//!   engine's file, whatever its name is by then. Another program of the engine's (which holds no lock of ours, but the engine's own) is looked
//!   for before anything is written, and once more when the engine is open.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pagewire_server::store::StoreError;
use rustix::process::{Flock, FlockOffsetType, FlockType};

use crate::engine::Engine;
use crate::log::files;

/// There while a store is made.
pub(crate) const MAKING_FILE: &str = "NEW";
/// The engine's file.
pub(crate) const ROWS_FILE: &str = "data.mdb";
pub(crate) const SLOTS_FILE: &str = "checkpoint";
/// What a store has, the engine's file first.
pub(crate) const FILES: [&str; 4] = [ROWS_FILE, SLOTS_FILE, files::NAMES[0], files::NAMES[1]];
/// The engine's own lock file: the first byte is locked for as long as it is open (LMDB, `mdb_env_excl_lock`).
const ENGINE_LOCK_FILE: &str = "lock.mdb";

impl Engine {
    /// The store is made: everything that it has to have from the beginning is durable (DIR1).
    pub(crate) fn end_making(&self, directory: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(directory.join(MAKING_FILE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.directory.sync_all(),
        }
    }
}

pub(crate) fn lock(directory: &Path) -> Result<File, StoreError> {
    let unavailable = |what: &str, error: std::io::Error| {
        StoreError::Unavailable(format!("{what} {}: {error}", directory.display()))
    };
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(directory.join("LOCK"))
        .map_err(|error| unavailable("cannot write to the directory", error))?;
    hold(directory, &lock)?;
    Ok(lock)
}

/// Locks a file of the directory, for as long as it is open (DIR3).
pub(crate) fn hold(directory: &Path, file: &File) -> Result<(), StoreError> {
    let directory = directory.display();
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(StoreError::Unavailable(format!(
            "{directory} is open in another process: stop that one, or name another directory"
        ))),
        Err(TryLockError::Error(error)) => Err(StoreError::Unavailable(format!(
            "cannot lock {directory}: {error}"
        ))),
    }
}

/// Locks the engine's file, which has to have its name still: one who makes a store takes away what another left (DIR3).
pub(crate) fn hold_rows(directory: &Path, file: &File) -> Result<(), StoreError> {
    hold(directory, file)?;
    let places = file
        .metadata()
        .and_then(|held| Ok((held, std::fs::metadata(directory.join(ROWS_FILE))?)));
    match places {
        Ok((held, named)) if (held.dev(), held.ino()) == (named.dev(), named.ino()) => Ok(()),
        _ => Err(StoreError::Unavailable(format!(
            "{} is being made by another process: stop that one, or name another directory",
            directory.display()
        ))),
    }
}

/// Looks whether another program has the engine open (DIR3). Not this process, which holds the engine's file: what it had locked itself
/// would be let go here.
pub(crate) fn refuse_other_program(directory: &Path) -> Result<(), StoreError> {
    let mut options = File::options();
    let Ok(file) = options
        .read(true)
        .write(true)
        .open(directory.join(ENGINE_LOCK_FILE))
    else {
        // There is none, or the engine will say why it cannot have it.
        return Ok(());
    };
    let wanted = Flock {
        start: 0,
        length: 1,
        pid: None,
        typ: FlockType::WriteLock,
        offset_type: FlockOffsetType::Set,
    };
    match rustix::process::fcntl_getlk(&file, &wanted) {
        Ok(Some(_)) => Err(other_program(directory)),
        // A file system without such locks has a second look.
        Ok(None) | Err(_) => Ok(()),
    }
}

pub(crate) fn other_program(directory: &Path) -> StoreError {
    StoreError::Unavailable(format!(
        "another program has {ENGINE_LOCK_FILE} in {} open: stop it first",
        directory.display()
    ))
}

/// Takes away what a making left that was cut off, and says that one begins where there is no store (DIR1). Answers whether one begins.
pub(crate) fn begin_making(directory: &Path, held: &File) -> Result<bool, StoreError> {
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
        let mut making = None;
        if there.first() == Some(&ROWS_FILE) {
            // Who makes it may go on (DIR3).
            let rows = File::open(directory.join(ROWS_FILE)).map_err(failed)?;
            hold(directory, &rows)?;
            making = Some(rows);
        }
        for name in there {
            std::fs::remove_file(directory.join(name)).map_err(failed)?;
        }
        drop(making);
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

pub(crate) fn missing(directory: &Path, name: &str) -> StoreError {
    StoreError::Corrupt(format!(
        "{}: it is missing, and other files of a store are there; put back a copy of the whole directory",
        directory.join(name).display()
    ))
}
