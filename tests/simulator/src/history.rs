//! What the clients did and saw, as they tell it.

use parking_lot::Mutex;

use crate::counts::{Event, count};
use crate::finding::{Finding, Kind};

/// A list: a database and a key.
pub type Key = (usize, i64);

/// What a transaction did with a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It saw this.
    Read(Key, Vec<u64>),
    /// It added a value that nobody else adds.
    Append(Key, u64),
    /// It asked something else, and was answered. The same question has the same answer for the rest of the transaction.
    Saw(String, String),
}

/// What became of it, as its client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Committed.
    Ok,
    /// Certainly not.
    Aborted,
    /// Nobody knows, or nobody was told: its process was killed.
    Unknown,
}

/// One transaction.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Process of the client.
    pub client: usize,
    /// Before it began and after it had ended, in simulated nanoseconds; no end where nobody was told.
    pub begun: u64,
    /// See above.
    pub ended: Option<u64>,
    /// See there.
    pub outcome: Outcome,
    /// In order.
    pub steps: Vec<Step>,
    /// It may see what was the newest so many nanoseconds before it began.
    pub staleness: u64,
    /// What was told of its failure.
    pub error: Option<String>,
}

/// The transactions of a simulation.
#[derive(Default)]
pub struct History {
    /// In the order in which they began.
    pub transactions: Vec<Transaction>,
    /// What is wrong whatever else happened.
    pub violations: Vec<Finding>,
}

static HISTORY: Mutex<History> = Mutex::new(History {
    transactions: Vec::new(),
    violations: Vec::new(),
});

/// A transaction begins. What is known of it when its process is killed is in the history.
pub fn begin(client: usize, begun: u64, staleness: u64) -> usize {
    let mut history = HISTORY.lock();
    history.transactions.push(Transaction {
        client,
        begun,
        ended: None,
        outcome: Outcome::Unknown,
        steps: Vec::new(),
        staleness,
        error: None,
    });
    history.transactions.len() - 1
}

/// It did something; an append is told before it is tried.
pub fn step(transaction: usize, step: Step) {
    HISTORY.lock().transactions[transaction].steps.push(step);
}

/// It ended.
pub fn end(transaction: usize, ended: u64, outcome: Outcome, error: Option<String>) {
    count(match outcome {
        Outcome::Ok => Event::Committed,
        Outcome::Aborted => Event::Aborted,
        Outcome::Unknown => Event::Unknown,
    });
    let mut history = HISTORY.lock();
    let transaction = &mut history.transactions[transaction];
    transaction.ended = (outcome != Outcome::Unknown).then_some(ended);
    transaction.outcome = outcome;
    transaction.error = error;
}

/// Something is wrong.
pub fn violation(kind: Kind, what: String) {
    HISTORY.lock().violations.push(kind.finding(what));
}

/// All of it.
pub fn take() -> History {
    std::mem::take(&mut *HISTORY.lock())
}
