//! A write lease that was lost before its commit, asked for again.
//!
//! A lease ends with its session. That lapses where the process was held up for longer than the TTL (a busy machine, one that slept), where the server
//! was, and where it was started again. Mostly nobody else has written by then, and nothing of the transaction is lost: its pages
//! are here, and its base is the newest version.
//!
//! ```text
//! lost --asked for--> granted, the head is the base --> the commit goes on, under the new epoch
//!       |         \--> granted, the head is a later one --> failed (nothing was applied)
//!       \--another writes, or no answer before the deadline--> failed (nothing was applied)
//! ```
//! * **G1** It is asked for only while no attempt of the commit may still be applied: before the first, after one that was refused, and after one that
//!   was resolved as aborted.
//! * **G2** What makes it right is what makes any commit right (P3): the store compares base and epoch in the transaction that makes the
//!   version. Whoever gets a lease and has the newest version of a database as his base has missed nothing of it, whatever he had before.
//! * **G3** Nobody is waited for who writes: he is about to make the version that ends this transaction, and says at once that he keeps the lease.
//!   So two that have lost theirs do not wait for each other either. Whoever has it and does not write gives it back, as to anybody.
//! * **G4** What was staged went with the session, or with the lease: the commit carries everything itself.
//! * **G5** A database without a commit has another identity when it is opened anew (D8): the commit is for that one.
//! * **G6** All databases that the transaction has locked for writing take part in the commit, or nothing is asked for. G2 holds for each database
//!   alone: one that was only read under its write lock is compared by nobody, and may have been changed once that lock was lost.
//! * **G7** For the same reason no commit goes on, with or without a lease that was lost, where one of a database that is not written is known
//!   to be lost. One that was lost and is not known to be is beyond this: the server compares what takes part. Nor are databases known as those of
//!   one transaction that two connections share by SQLite's `cache=shared`, which says only whose the first of them was.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::{Epoch, Version};
use tokio::time::Instant;

use super::Database;
use super::lease::{BeginWrite, WriterId};
use super::write::{ACQUIRE_WAIT, Request};
use crate::client::{Acquired, CommitAttempt, Membership};
use crate::error::{Error, Kind, Result};

/// How often leases are asked for again that are lost once more before the attempt begins.
const MAX_REGAINS: usize = 3;
const WAS_ONLY_READ: &str = "a database that it has only read may have been changed";

/// Begins an attempt under the leases of its parts, and has those again that were lost. Whether there were such.
pub(super) fn begin_attempt(
    databases: &[Arc<Database>],
    writers: &[WriterId],
    attempt: &mut CommitAttempt,
    deadline: Instant,
) -> Result<bool> {
    for tries in 0..=MAX_REGAINS {
        databases.iter().for_each(|it| it.state.commit_begins());
        // From here on no open changes what has the name (D8): identity and epoch belong together.
        let epochs: Option<Vec<Epoch>> = databases
            .iter()
            .zip(writers)
            .map(|(database, writer)| database.state.writer_epoch(*writer))
            .collect();
        if let Some(epochs) = epochs {
            if let Err(error) = check_all_are_locked(databases, writers) {
                databases.iter().for_each(|it| it.state.commit_pauses());
                return Err(error);
            }
            attempt.epochs = epochs;
            // G5. Nobody else has the parts between two attempts; if somebody had, it would be a copy of references.
            for (database, part) in databases
                .iter()
                .zip(Arc::make_mut(&mut attempt.parts).iter_mut())
            {
                part.id = database.state.id();
            }
            return Ok(tries > 0);
        }
        databases.iter().for_each(|it| it.state.commit_pauses());
        check_all_take_part(databases, writers)?;
        attempt.with_stagings = false;
        for ((database, writer), part) in databases.iter().zip(writers).zip(attempt.parts.iter()) {
            database.regain(*writer, part.base, deadline)?;
        }
    }
    let again = Error::busy("it was lost again and again");
    Err(lease_lost(&databases[0], &again))
}

/// G7.
fn check_all_are_locked(databases: &[Arc<Database>], writers: &[WriterId]) -> Result<()> {
    check_transactions(databases, writers, |transaction| {
        transaction.is_none_or(Membership::are_all_locked)
    })
}

/// G6.
fn check_all_take_part(databases: &[Arc<Database>], writers: &[WriterId]) -> Result<()> {
    check_transactions(databases, writers, |transaction| {
        let locked = transaction.and_then(Membership::databases);
        locked.is_some_and(|locked| locked <= databases.len())
    })
}

fn check_transactions(
    databases: &[Arc<Database>],
    writers: &[WriterId],
    may_commit: impl Fn(Option<&Membership>) -> bool,
) -> Result<()> {
    for (database, writer) in databases.iter().zip(writers) {
        if !may_commit(database.state.transaction_of(*writer).as_deref()) {
            return Err(lease_lost(database, &Error::busy(WAS_ONLY_READ)));
        }
    }
    Ok(())
}

impl Database {
    /// The epoch under which the writer may commit on this base: that of its lease, or of another one that it gets now (G2).
    pub(super) fn regain(
        &self,
        writer: WriterId,
        base: Version,
        deadline: Instant,
    ) -> Result<Epoch> {
        self.try_regain(writer, base, deadline)
            .map_err(|error| match error.kind {
                // Nothing of this transaction can be waited for.
                Kind::Busy | Kind::BusySnapshot | Kind::CantOpen => lease_lost(self, &error),
                kind => Error::new(
                    kind,
                    format!("{error}; the write lease was lost, nothing was applied"),
                ),
            })
    }

    fn try_regain(&self, writer: WriterId, base: Version, deadline: Instant) -> Result<Epoch> {
        let session = &self.client.core.session;
        loop {
            self.state.check()?;
            if let Some(epoch) = self.state.writer_epoch(writer) {
                return Ok(epoch);
            }
            let Some(transaction) = self.state.transaction_of(writer) else {
                return Err(Error::new(
                    Kind::Bug,
                    "a lease is asked for again outside of a write transaction",
                ));
            };
            let begin = self
                .state
                .begin_write(session, writer, &transaction, base)?;
            let known = match begin {
                // By an open that brought the lease.
                BeginWrite::Ready => continue,
                BeginWrite::Acquire(known) => known,
                BeginWrite::Settle(_) => {
                    return Err(Error::busy("an earlier commit is not settled"));
                }
            };
            // Without a number: who does not wait for a writer is in no circle of those who do.
            let request = Request {
                known,
                transaction: 0,
                patience: Instant::now() + ACQUIRE_WAIT,
                // G3.
                patience_with_writers: Duration::ZERO,
                claim: None,
            };
            return match self.acquire(&request, deadline)? {
                Acquired::Granted(grant, _) => {
                    let state = &self.state;
                    state.begin_write_with(session, writer, &transaction, base, &grant)
                }
                Acquired::Pending | Acquired::Deadlock(_) => {
                    Err(Error::busy("another process is writing"))
                }
            };
        }
    }
}

/// Another may have written, or does.
fn lease_lost(database: &Database, why: &Error) -> Error {
    Error::io(format!(
        "{}: the write lease was lost, nothing was applied: run the transaction again ({why})",
        database.describe()
    ))
}
