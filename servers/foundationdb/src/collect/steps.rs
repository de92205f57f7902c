//! How much one transaction of a collection looks at: less where the cluster cannot do that within its time.
//!
//! * **STEP1** A transaction of which the cluster says `transaction_too_old` looks at a quarter in its next round, and what comes to nothing at all
//!   at a quarter in the next call: no failing step is repeated as it was.
//! * **STEP2** Twice as much again only after [`GROWS_AFTER`] that were done: one that is too large takes the cluster's 5 s. One that found nothing to
//!   do counts where it looked at as much as it may.
//! * **STEP3** What the smallest one looks at does not depend on what a version has: a list of changed pages that is too long for one transaction is
//!   looked at from `Due` on, a part at a time.

use parking_lot::Mutex;

use crate::Inner;
use crate::engine::Txn;
use pagewire_server::store::StoreError;

/// How often steps are halved at most.
pub(crate) const MOST_HALVINGS: u32 = 6;
/// So many transactions of a size have to be done before one of twice that is tried.
const GROWS_AFTER: u32 = 16;

/// How much one transaction looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Steps {
    halvings: u32,
}

impl Steps {
    #[cfg(test)]
    pub(crate) fn halved(halvings: u32) -> Self {
        Self { halvings }
    }

    /// At least 2: the last row of a sweep is not judged.
    pub(crate) fn of(self, usual: usize) -> usize {
        (usual >> self.halvings).max(2)
    }
}

/// How large steps are now. Another collection may change it at any time: it is a guess at what the cluster can do.
#[derive(Debug, Default)]
pub(crate) struct StepPace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    steps: Steps,
    /// Transactions of this size that were done.
    done: u32,
}

impl StepPace {
    fn steps(&self) -> Steps {
        self.0.lock().steps
    }

    fn too_large(&self) {
        let mut state = self.0.lock();
        state.steps.halvings = (state.steps.halvings + 2).min(MOST_HALVINGS);
        state.done = 0;
    }

    pub(super) fn done(&self) {
        let mut state = self.0.lock();
        state.done += 1;
        if state.done >= GROWS_AFTER {
            state.steps.halvings = state.steps.halvings.saturating_sub(1);
            state.done = 0;
        }
    }

    fn smallest(&self) {
        let steps = Steps {
            halvings: MOST_HALVINGS,
        };
        *self.0.lock() = State { steps, done: 0 };
    }
}

impl Inner {
    /// How much this round looks at. To be asked once in each.
    pub(crate) fn steps(&self, txn: &Txn) -> Steps {
        if txn.follows_one_too_late() {
            self.step_pace.too_large();
        }
        self.step_pace.steps()
    }

    /// What came of a transaction: as it is, and as what it says of how much the next ones should look at.
    pub(crate) fn paced(&self, done: Result<bool, StoreError>) -> Result<bool, StoreError> {
        match &done {
            Ok(true) => self.step_pace.done(),
            Err(StoreError::Unavailable(_) | StoreError::Internal(_)) => self.step_pace.too_large(),
            Ok(false) | Err(_) => {}
        }
        done
    }

    /// Makes steps as small as they get, until some of them were done. For tests.
    pub(crate) fn smallest_steps(&self) {
        self.step_pace.smallest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::{STEP_ROWS, STEP_VERSIONS};

    #[test]
    fn steps_get_smaller_and_never_too_small() {
        let of = |halvings, usual| Steps::halved(halvings).of(usual);
        assert_eq!(of(0, STEP_VERSIONS), STEP_VERSIONS);
        assert_eq!(of(2, STEP_VERSIONS), STEP_VERSIONS / 4);
        // A sweep that looks at one row judges none, and would never end.
        assert_eq!(of(MOST_HALVINGS, STEP_ROWS), 2);
    }

    #[test]
    fn step2_a_size_is_left_for_a_larger_one_after_many_that_were_done() {
        let pace = StepPace::default();
        pace.too_large();
        pace.too_large();
        assert_eq!(pace.steps().of(128), 8);
        let done = |times| (0..times).for_each(|_| pace.done());
        done(GROWS_AFTER - 1);
        assert_eq!(pace.steps().of(128), 8);
        done(1);
        assert_eq!(pace.steps().of(128), 16);
        // One that is too large begins the count anew.
        done(GROWS_AFTER - 1);
        pace.too_large();
        done(1);
        assert_eq!(pace.steps().of(128), 4);
        done(GROWS_AFTER * (MOST_HALVINGS + 1));
        assert_eq!(pace.steps().of(128), 128);
        (0..9).for_each(|_| pace.too_large());
        assert_eq!(pace.steps().of(128), 128 >> MOST_HALVINGS);
    }
}
