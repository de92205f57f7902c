//! Transactions of the cluster: the loop that repeats them, and what their errors mean for a store. What one can do is in `engine/txn.rs`.
//!
//! A body that runs in [`transact`] is repeated from its beginning whenever the cluster asks for it: it decides nothing on what an earlier
//! round read, and keeps nothing of it. Whether a round whose answer was lost was applied is never guessed: the next round
//! finds out by what it reads (a commit by its id), and where there is none the answer is [`StoreError::Internal`].

pub(crate) mod trouble;
mod txn;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foundationdb::options::TransactionOption;
use foundationdb::{Database, FdbError, Transaction, TransactionCommitError, TransactionCommitted};
use pagewire_server::store::StoreError;
use parking_lot::Mutex;

use crate::keys::Space;
use trouble::Lost;
pub(crate) use txn::{Read, Row, Txn, corrupt, decode, senseless};

/// `transaction_too_old`: it read for longer than 5 s.
pub(crate) const TOO_OLD: i32 = 1007;
/// `commit_unknown_result`.
const UNKNOWN: i32 = 1021;
/// `transaction_timed_out`: whether it was applied is not known.
const TIMED_OUT: i32 = 1031;
/// `transaction_too_large`.
const TOO_LARGE: i32 = 2101;

/// The cluster, as one installation sees it.
pub(crate) struct Engine {
    pub(crate) database: Database,
    pub(crate) space: Arc<Space>,
    /// For how long a call is repeated.
    pub(crate) patience: Duration,
    /// What was asked of it so far.
    pub(crate) asked: Arc<Asked>,
}

/// How much was asked of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Transactions begun.
    pub(crate) begun: AtomicU64,
    /// Rows and ranges read.
    pub(crate) reads: AtomicU64,
    /// Rows that the ranges had.
    pub(crate) rows: AtomicU64,
    /// The bytes of those, keys and values.
    pub(crate) bytes: AtomicU64,
    /// Bytes of the largest answer since somebody looked.
    pub(crate) largest: AtomicU64,
    /// Rounds that may have been applied although their answer was lost.
    pub(crate) unknown: AtomicU64,
    /// Ranges that are waited for now.
    waiting: AtomicU64,
    /// As many as that at most since somebody looked.
    pub(crate) at_once: AtomicU64,
}

/// One range that is waited for; not any more when it is dropped.
struct Waiting<'a>(&'a Asked);

impl Asked {
    fn one_more_waits(&self) -> Waiting<'_> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        self.at_once.fetch_max(waiting, Ordering::Relaxed);
        Waiting(self)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a round ended.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The cluster says so; perhaps it is to be repeated.
    Cluster(FdbError),
    /// The store does: the answer.
    Answer(StoreError),
}

impl From<FdbError> for Fail {
    fn from(error: FdbError) -> Self {
        Self::Cluster(error)
    }
}

impl From<StoreError> for Fail {
    fn from(error: StoreError) -> Self {
        Self::Answer(error)
    }
}

/// Runs a body in transactions until one of them is committed, or needs none since nothing was written.
macro_rules! transact {
    ($engine:expr, |$txn:ident| $body:expr) => {{
        let mut attempt = $crate::engine::Rounds::new(&$engine)?;
        loop {
            let outcome: Result<_, $crate::engine::Fail> = {
                let $txn = attempt.txn();
                async { $body }.await
            };
            if let Some(outcome) = attempt.settle(outcome).await {
                break outcome;
            }
        }
    }};
}
pub(crate) use transact;

/// What a call takes away, across its rounds. The answer of a round that did so may have been lost: what a later one finds in its place
/// came afterwards, and is not what the call was about.
pub(crate) struct Target<T>(Mutex<Option<T>>);

impl<T: Copy + PartialEq> Target<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// What this round has to take away of what it found; `None` where there was nothing to begin with, or it is gone.
    pub(crate) fn find(&self, found: Option<T>) -> Option<T> {
        let mut first = self.0.lock();
        if first.is_none() {
            *first = found;
        }
        found.filter(|_| *first == found)
    }

    /// What the first round that found anything found.
    pub(crate) fn first(&self) -> Option<T> {
        *self.0.lock()
    }
}

/// The rounds of a call.
pub(crate) struct Rounds {
    /// `None` when the last round is over.
    txn: Option<Txn>,
    /// A round may have been applied although its answer was lost.
    maybe_applied: bool,
    /// The version of the cluster that the last round has made.
    committed: Option<i64>,
}

impl Rounds {
    pub(crate) fn new(engine: &Engine) -> Result<Self, StoreError> {
        let begin = || {
            let transaction = engine.database.create_trx()?;
            let patience = i32::try_from(engine.patience.as_millis()).unwrap_or(i32::MAX);
            // Over all rounds.
            transaction.set_option(TransactionOption::Timeout(patience))?;
            Ok(transaction)
        };
        let transaction = begin().map_err(unavailable)?;
        let (space, asked) = (Arc::clone(&engine.space), Arc::clone(&engine.asked));
        Ok(Self {
            txn: Some(Txn::begin(transaction, space, asked)),
            maybe_applied: false,
            committed: None,
        })
    }

    /// The transaction of this round.
    pub(crate) fn txn(&self) -> &Txn {
        match &self.txn {
            Some(txn) => txn,
            None => unreachable!("a call goes on after its last round"),
        }
    }

    /// The version of the cluster in which what the last round wrote is there; `None` where it wrote nothing, or failed.
    pub(crate) fn committed(&self) -> Option<i64> {
        self.committed
    }

    /// Ends a round; `None` where there is another one.
    pub(crate) async fn settle<T>(
        &mut self,
        outcome: Result<T, Fail>,
    ) -> Option<Result<T, StoreError>> {
        let txn = self.txn.take()?;
        let wrote = txn.writes.load(Ordering::Relaxed);
        let (space, asked) = (txn.space, txn.asked);
        let mut too_late = false;
        let next = match outcome {
            Err(Fail::Answer(error)) => return Some(Err(error)),
            Ok(value) if !wrote => return Some(Ok(value)),
            Ok(value) => match commit(txn.transaction).await {
                Committed::Yes(committed) => {
                    self.committed = committed.committed_version().ok();
                    return Some(Ok(value));
                }
                Committed::Lost(transaction) => {
                    self.maybe_applied = true;
                    asked.unknown.fetch_add(1, Ordering::Relaxed);
                    trouble::interruption().await;
                    transaction.on_error(FdbError::from_code(UNKNOWN)).await
                }
                Committed::Late => {
                    asked.unknown.fetch_add(1, Ordering::Relaxed);
                    self.maybe_applied = true;
                    Err(FdbError::from_code(TIMED_OUT))
                }
                Committed::No(error) => {
                    let why = FdbError::from_code(error.code());
                    too_late = why.code() == TOO_OLD;
                    if why.is_maybe_committed() || why.code() == TIMED_OUT {
                        self.maybe_applied = true;
                        asked.unknown.fetch_add(1, Ordering::Relaxed);
                    }
                    if why.code() == TOO_LARGE {
                        let why = "a transaction is larger than the cluster takes".to_owned();
                        return Some(Err(StoreError::Internal(why)));
                    }
                    error.on_error().await
                }
            },
            Err(Fail::Cluster(error)) => {
                too_late = error.code() == TOO_OLD;
                txn.transaction.on_error(error).await
            }
        };
        match next {
            Ok(transaction) => {
                let mut txn = Txn::begin(transaction, space, asked);
                txn.too_late = too_late;
                self.txn = Some(txn);
                None
            }
            Err(error) if self.maybe_applied => Some(Err(StoreError::Internal(format!(
                "the outcome is not known: {error}"
            )))),
            Err(error) => Some(Err(unavailable(error))),
        }
    }
}

/// What the cluster says of a transaction.
enum Committed {
    Yes(TransactionCommitted),
    No(TransactionCommitError),
    /// A test has lost the answer.
    Lost(Transaction),
    /// A test holds it back.
    Late,
}

async fn commit(transaction: Transaction) -> Committed {
    let lost = trouble::next_answer();
    if lost == Some(Lost::NotApplied) {
        return Committed::Lost(transaction);
    }
    let Some(transaction) = trouble::unless_late(transaction) else {
        return Committed::Late;
    };
    match transaction.commit().await {
        Ok(committed) if lost == Some(Lost::Applied) => Committed::Lost(committed.reset()),
        Ok(committed) => Committed::Yes(committed),
        Err(error) => Committed::No(error),
    }
}

/// An error after which nothing was applied.
pub(crate) fn unavailable(error: FdbError) -> StoreError {
    StoreError::Unavailable(format!("FoundationDB: {error} ({})", error.code()))
}

#[cfg(test)]
mod tests;
