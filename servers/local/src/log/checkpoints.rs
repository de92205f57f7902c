//! The thread in which checkpoints are made, beside commits (states in `log.rs`).

use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;

use super::Shared;
use super::files::{self, MOST_LENGTH};
use super::slots::{Checkpoint, Slots};
use crate::engine::{ReadTxn, WriteError};
use crate::faults::Place;

/// Keeps the engine from pages of a transaction (LOG3).
pub(super) struct Pin(pub(super) ReadTxn<'static>);

/// A checkpoint that was begun.
pub(super) struct Job {
    pub(super) checkpoint: Checkpoint,
    pub(super) pin: Pin,
    /// The log file that is free afterwards was too short.
    pub(super) grow: bool,
}

/// The thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) slots: Slots,
    /// Of this thread alone (LOG9).
    pub(super) data: File,
}

impl Worker {
    /// Until nobody can begin one any more, or one failed: the next sync would succeed with what this one lost (LOG9).
    pub(super) fn run(&self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            // Whoever waits for it must not wait for ever.
            let free = 1 - job.checkpoint.file;
            let made = std::panic::catch_unwind(AssertUnwindSafe(|| {
                self.make(&job.checkpoint)?;
                Ok(if job.grow { self.grow(free) } else { None })
            }));
            let made = made.unwrap_or_else(|_| Err("a checkpoint panicked".to_owned()));
            let mut state = self.shared.state.lock();
            let is_made = made.is_ok();
            match made {
                Ok(grown) => {
                    state.pin = Some(job.pin);
                    state.work_before = 0;
                    if state.mark.is_some_and(|mark| mark <= job.checkpoint.number) {
                        state.mark = None;
                    }
                    if let Some(length) = grown {
                        state.files.lengths[free] = length;
                    }
                }
                Err(why) => {
                    tracing::error!(
                        why,
                        "a checkpoint failed: nothing is written until the store is opened anew"
                    );
                    state.fail(why);
                    // Nothing is committed any more: what is pinned does no harm.
                    drop(job.pin);
                }
            }
            state.is_under_way = false;
            self.shared.ended.notify_all();
            if !is_made {
                return;
            }
        }
    }

    /// Everything up to it is durable, then the slots say so, one after the other (LOG4).
    fn make(&self, checkpoint: &Checkpoint) -> Result<(), String> {
        if let Err(error) = self.pass(Place::BeforeDataSync).and_then(|()| {
            let synced = self.data.sync_data();
            synced.map_err(|error| error.to_string())
        }) {
            self.shared.is_unreadable.store(true, Ordering::Release);
            return Err(format!("cannot sync data.mdb: {error}"));
        }
        self.pass(Place::BeforeSlots)?;
        self.write(0, checkpoint)?;
        self.pass(Place::BetweenSlots)?;
        self.write(1, checkpoint)?;
        self.pass(Place::AfterSlots)
    }

    /// Unless anything failed meanwhile, in the committer: what it was told by its own open file counts here too (LOG9).
    fn write(&self, slot: usize, checkpoint: &Checkpoint) -> Result<(), String> {
        if let Some(why) = &self.shared.state.lock().failed {
            return Err(why.clone());
        }
        let written = self.slots.write(slot, checkpoint);
        written.map_err(|error| format!("cannot write to the file `checkpoint`: {error}"))
    }

    /// Makes the free log file longer. Where that fails it stays as it is.
    fn grow(&self, free: usize) -> Option<u64> {
        let (file, length) = {
            let state = self.shared.state.lock();
            let file = state.files.files[free].try_clone().ok()?;
            (file, state.files.lengths[free])
        };
        let longer = (2 * length).min(MOST_LENGTH);
        let told = self.shared.faults.as_ref().and_then(|it| it.free_bytes());
        let free_bytes = told.or_else(|| {
            let disk = rustix::fs::fstatvfs(&file).ok()?;
            Some(disk.f_bavail.saturating_mul(disk.f_frsize))
        })?;
        if longer <= length || free_bytes < 16 * longer {
            return None;
        }
        match files::extend(&file, longer) {
            Ok(()) => Some(longer),
            Err(error) => {
                tracing::warn!(%error, "the log stays as it is");
                None
            }
        }
    }

    fn pass(&self, place: Place) -> Result<(), String> {
        match self.shared.faults.as_ref().map(|faults| faults.pass(place)) {
            Some(Err(WriteError::Medium(why))) => Err(why),
            Some(Err(WriteError::Refused(error))) => Err(error.to_string()),
            None | Some(Ok(())) => Ok(()),
        }
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pin({})", self.0.id())
    }
}
