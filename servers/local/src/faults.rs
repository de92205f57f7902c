//! Faults by name, armed by tests: the places at which a crash or a failing medium means something of its own.
//!
//! An unarmed place costs nothing but the look at an option that is not set.

use parking_lot::Mutex;

/// A place in the committer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Commits are in the transaction, which is not committed.
    BeforeCommit,
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
}

/// The armed fault, which strikes once.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Option<(Place, Fault, u32)>>);

impl Faults {
    /// The fault strikes when the place was passed as often as `after`.
    pub fn arm(&self, place: Place, fault: Fault, after: u32) {
        *self.0.lock() = Some((place, fault, after));
    }

    pub(crate) fn pass(&self, place: Place) -> Result<(), String> {
        let mut armed = self.0.lock();
        match *armed {
            Some((at, fault, 0)) if at == place => {
                *armed = None;
                match fault {
                    Fault::Fail => Err(format!("armed to fail: {place:?}")),
                    Fault::Die => std::process::abort(),
                }
            }
            Some((at, fault, after)) if at == place => {
                *armed = Some((at, fault, after - 1));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
