//! Faults by name, armed by tests: the places at which a crash or a failing medium means something of its own, how often each
//! was passed, and a disk that says to have other room than it has.
//!
//! An unarmed place costs nothing but the look at an option that is not set.

use pagewire_server::store::StoreError;
use parking_lot::{Condvar, Mutex};

use crate::engine::WriteError;

/// A place in the committer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Commits are in the transaction, which is not committed.
    BeforeCommit,
    /// The log has a transaction, the engine does not.
    AfterLog,
    /// The log has the mark of a large transaction, the engine does not have that.
    AfterMark,
    /// A checkpoint was begun.
    BeforeDataSync,
    /// Everything before a checkpoint is synced, and no slot says so.
    BeforeSlots,
    /// One slot names a checkpoint, the other one that before it.
    BetweenSlots,
    /// Both slots name a checkpoint, the one before it still has its pages and its log.
    AfterSlots,
    /// At an opening: the engine has what the log had, no slot says so.
    AfterReplay,
    /// At an opening: the engine has the row of the new run, the slots say that the log is closed.
    AfterRun,
    /// Commits are durable, nobody was told.
    AfterCommit,
    /// Staged pages are in a transaction, which is not committed.
    BeforeSpill,
    /// Staged pages are durable and still invisible.
    AfterSpill,
    /// Rows of the dead are dropped in a transaction, which is not committed.
    BeforeCollect,
    /// Some rows of the dead are gone, others are not.
    AfterCollect,
    /// Versions are dropped in a transaction, which is not committed.
    BeforeDrop,
    /// Some versions are gone, and rows that only they read may not be.
    AfterDrop,
    /// Rows that no version reads are dropped in a transaction, which is not committed.
    BeforeSweep,
    /// Some of them are gone, others are not.
    AfterSweep,
    /// Pages of what a segment stands on are copied in a transaction, which is not committed.
    BeforeFlatten,
    /// Some of them are copied, or all, and what the segment stood on has lost a reader.
    AfterFlatten,
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The medium fails.
    Fail,
    /// The process dies without a word.
    Die,
    /// The disk is full: what the engine answers when it finds no room before its root is written.
    NoRoom,
    /// Reads have all places: what the log answers when no checkpoint can be begun.
    Busy,
}

/// What tests want to happen, and what they want to know.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
    /// Another place is held, or none.
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Strikes once.
    armed: Option<(Place, Fault, u32)>,
    passed: Vec<Place>,
    /// Nobody gets past it.
    held: Option<Place>,
    free_bytes: Option<u64>,
}

impl Faults {
    /// The fault strikes when the place was passed as often as `after`.
    pub fn arm(&self, place: Place, fault: Fault, after: u32) {
        self.state.lock().armed = Some((place, fault, after));
    }

    /// Whoever comes to this place waits there, before anything that is armed strikes; `None` lets all go on.
    pub fn hold(&self, place: Option<Place>) {
        self.state.lock().held = place;
        self.released.notify_all();
    }

    /// The disk says to have as many bytes free; `None` for what it has.
    pub fn set_free_bytes(&self, bytes: Option<u64>) {
        self.state.lock().free_bytes = bytes;
    }

    /// How often a place was passed.
    pub fn passed(&self, place: Place) -> usize {
        let passed = &self.state.lock().passed;
        passed.iter().filter(|at| **at == place).count()
    }

    /// How many transactions became durable: each costs the same syncs.
    pub fn durable(&self) -> usize {
        let passed = &self.state.lock().passed;
        passed.iter().filter(|at| at.is_after()).count()
    }

    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.state.lock().free_bytes
    }

    pub(crate) fn pass(&self, place: Place) -> Result<(), WriteError> {
        let mut state = self.state.lock();
        while state.held == Some(place) {
            self.released.wait(&mut state);
        }
        match state.armed {
            Some((at, fault, 0)) if at == place => {
                state.armed = None;
                match fault {
                    Fault::Fail => Err(WriteError::Medium(format!("armed to fail: {place:?}"))),
                    Fault::Die => std::process::abort(),
                    Fault::NoRoom => Err(WriteError::Refused(StoreError::Full(format!(
                        "armed to find no room: {place:?}"
                    )))),
                    Fault::Busy => Err(WriteError::Refused(StoreError::Unavailable(format!(
                        "armed to be busy: {place:?}"
                    )))),
                }
            }
            Some((at, fault, after)) if at == place => {
                state.armed = Some((at, fault, after - 1));
                state.passed.push(place);
                Ok(())
            }
            _ => {
                state.passed.push(place);
                Ok(())
            }
        }
    }
}

impl Place {
    fn is_after(self) -> bool {
        matches!(
            self,
            Self::AfterCommit
                | Self::AfterSpill
                | Self::AfterCollect
                | Self::AfterDrop
                | Self::AfterSweep
                | Self::AfterFlatten
        )
    }
}
