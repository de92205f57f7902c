//! Trouble that a test makes for the transactions of a call: answers of commits that get lost, and a cluster that is too slow. Without a test
//! there is none.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foundationdb::{FdbError, FdbResult, Transaction};
use parking_lot::Mutex;
use tokio::sync::Notify;

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
#[derive(Debug, Default)]
pub struct Trouble {
    /// One commit of the cluster after the other.
    lost: Mutex<VecDeque<Option<Lost>>>,
    /// So many transactions read a version that the cluster has forgotten.
    too_old: AtomicU64,
    /// Rows that a transaction reads within the time of the cluster, where they are bounded.
    most_rows: Option<u64>,
    /// Transactions that read more.
    too_late: AtomicU64,
    /// How much longer each read of a range takes.
    pause: Duration,
    /// Such reads so far.
    pauses: AtomicU64,
    /// The next round after a lost answer waits for the test.
    between: Option<Between>,
    /// The first commit lands when the test says so.
    late: Option<Arc<Late>>,
}

/// What goes on between a lost answer and the next round.
#[derive(Debug, Default)]
struct Between {
    lost: Notify,
    go_on: Notify,
}

/// A commit that the cluster takes long after its caller has given up.
#[derive(Debug, Default)]
struct Late {
    land: Notify,
    landed: Notify,
    held: Mutex<Held>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Held {
    #[default]
    Nothing,
    Back,
    Landed(bool),
}

impl Trouble {
    /// The answers of the first commits get lost, or come.
    pub fn lost(answers: &[Option<Lost>]) -> Self {
        let lost = answers.iter().copied().collect();
        Self {
            lost: Mutex::new(lost),
            ..Self::default()
        }
    }

    /// The answer of the first commit gets lost, and the next round begins when [`Trouble::go_on`] says so.
    pub fn interrupted(lost: Lost) -> Self {
        Self {
            between: Some(Between::default()),
            ..Self::lost(&[Some(lost)])
        }
    }

    /// The first commit is said to be of unknown outcome, and lands when [`Trouble::land`] says so.
    pub fn late() -> Self {
        Self {
            late: Some(Arc::default()),
            ..Self::default()
        }
    }

    /// The first so many transactions last too long.
    pub fn too_old(times: u64) -> Self {
        Self {
            too_old: AtomicU64::new(times),
            ..Self::default()
        }
    }

    /// Each transaction that reads more rows than that lasts too long.
    pub fn slow(most_rows: u64) -> Self {
        Self {
            most_rows: Some(most_rows),
            ..Self::default()
        }
    }

    /// Each read of a range takes so much longer.
    pub fn pausing(pause: Duration) -> Self {
        Self {
            pause,
            ..Self::default()
        }
    }

    /// Waits for the lost answer of an interrupted call.
    pub async fn interruption(&self) {
        if let Some(between) = &self.between {
            between.lost.notified().await;
        }
    }

    /// Lets an interrupted call go on.
    pub fn go_on(&self) {
        if let Some(between) = &self.between {
            between.go_on.notify_one();
        }
    }

    /// Lets a late commit come to the cluster: whether it was applied, `None` where none was held back.
    pub async fn land(&self) -> Option<bool> {
        let late = self.late.as_ref()?;
        if *late.held.lock() == Held::Nothing {
            return None;
        }
        late.land.notify_one();
        late.landed.notified().await;
        match *late.held.lock() {
            Held::Landed(applied) => Some(applied),
            Held::Nothing | Held::Back => None,
        }
    }

    /// Reads of ranges that took longer.
    pub fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::Relaxed)
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
        let most_rows = self.most_rows.unwrap_or(u64::MAX);
        if before + rows <= most_rows {
            return Ok(());
        }
        if before <= most_rows {
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

    /// A range is read.
    pub(super) async fn pause(&self) {
        if !self.pause.is_zero() {
            self.pauses.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.pause).await;
        }
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

/// Keeps a commit for later, where it has to be late; `None` where it was kept.
pub(super) fn unless_late(transaction: Transaction) -> Option<Transaction> {
    let late = now().and_then(|trouble| trouble.late.clone());
    let Some(late) = late.filter(|late| *late.held.lock() == Held::Nothing) else {
        return Some(transaction);
    };
    *late.held.lock() = Held::Back;
    tokio::spawn(async move {
        late.land.notified().await;
        let applied = transaction.commit().await.is_ok();
        *late.held.lock() = Held::Landed(applied);
        late.landed.notify_one();
    });
    None
}

/// An answer was lost, and the next round has not begun.
pub(super) async fn interruption() {
    if let Some(trouble) = now()
        && let Some(between) = &trouble.between
    {
        between.lost.notify_one();
        between.go_on.notified().await;
    }
}
