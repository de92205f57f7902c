//! Trouble that a test makes for the transactions of a call: answers of commits that get lost, and a cluster that is too slow. Without a test
//! there is none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foundationdb::{FdbError, FdbResult};
use parking_lot::Mutex;

use super::TOO_OLD;

tokio::task_local! {
    static TROUBLE: Arc<Trouble>;
}

/// What became of a commit of the cluster whose answer got lost (`commit_unknown_result`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was applied.
    Applied,
    /// It was not.
    NotApplied,
}

/// What happens to the transactions of one call.
#[derive(Debug)]
pub struct Trouble {
    /// One commit of the cluster after the other.
    lost: Mutex<VecDeque<Option<Lost>>>,
    /// So many transactions read a version that the cluster has forgotten.
    too_old: AtomicU64,
    /// Rows that a transaction reads within the time of the cluster.
    most_rows: u64,
    /// Transactions that read more.
    too_late: AtomicU64,
}

impl Trouble {
    fn new(lost: VecDeque<Option<Lost>>, too_old: u64, most_rows: u64) -> Self {
        Self {
            lost: Mutex::new(lost),
            too_old: AtomicU64::new(too_old),
            most_rows,
            too_late: AtomicU64::new(0),
        }
    }

    /// The answers of the first commits get lost, or come.
    pub fn lost(answers: &[Option<Lost>]) -> Self {
        Self::new(answers.iter().copied().collect(), 0, u64::MAX)
    }

    /// The first so many transactions last too long.
    pub fn too_old(times: u64) -> Self {
        Self::new(VecDeque::new(), times, u64::MAX)
    }

    /// Each transaction that reads more rows than that lasts too long.
    pub fn slow(most_rows: u64) -> Self {
        Self::new(VecDeque::new(), 0, most_rows)
    }

    /// Commits that were not begun of those that it was made for.
    pub fn left(&self) -> usize {
        self.lost.lock().len()
    }

    /// How many transactions lasted too long because of the rows that they read: each would have taken the 5 s of the cluster.
    pub fn too_late(&self) -> u64 {
        self.too_late.load(Ordering::Relaxed)
    }

    /// A transaction that had read so many rows has read some more.
    pub(super) fn reads(&self, before: u64, rows: u64) -> FdbResult<()> {
        if before + rows <= self.most_rows {
            return Ok(());
        }
        if before <= self.most_rows {
            self.too_late.fetch_add(1, Ordering::Relaxed);
        }
        Err(FdbError::from_code(TOO_OLD))
    }

    /// Whether the transaction that begins reads a version that the cluster has forgotten.
    pub(super) fn begins_too_late(&self) -> bool {
        let less = |times: u64| times.checked_sub(1);
        let relaxed = Ordering::Relaxed;
        self.too_old.fetch_update(relaxed, relaxed, less).is_ok()
    }

    /// Runs a call in this trouble.
    pub(crate) fn during<F: Future>(
        self: &Arc<Self>,
        call: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        TROUBLE.scope(Arc::clone(self), call)
    }
}

/// The trouble of the call that runs.
pub(super) fn now() -> Option<Arc<Trouble>> {
    TROUBLE.try_with(Arc::clone).ok()
}

/// What becomes of the commit of the cluster that comes now, where its answer gets lost.
pub(super) fn next_answer() -> Option<Lost> {
    now()?.lost.lock().pop_front()?
}
