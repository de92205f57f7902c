//! The write lock of a connection: how it waits for the lease, and how the lease goes on to the next process.
//!
//! ```text
//! xLock(SHARED) of one that writes as a rule -- early acquire -- granted --> Held, unclaimed --> xLock(RESERVED): writing
//!       |                                  \-- pending: a ticket --> xLock(RESERVED): waits for the push, then as below
//!       |                                            |             \-> reads first, or ends: nobody of this connection claims it (W4)
//!       +-- that would not ask for its snapshot      \-- no answer: the habit is over
//!           (lease, trusting subscription, bounded): none
//! xLock(RESERVED) -- lease here, head is the snapshot ---------------------------------------> writing
//!       |       \-- acquire -- granted, head is the snapshot --------------------------------> writing
//!       |                  \-- granted, a later head --> BUSY_SNAPSHOT --> xSleep ends at once --> xLock(SHARED), xLock(RESERVED): writing
//!       |                  \-- pending --> BUSY --> xSleep, until the grant comes --> the same
//! end of the write -- recalled: the lease goes back, on the wire before xUnlock returns
//!                 \-- kept, but others write too: the next recall is listened for
//! ```
//! * **W1** Nobody sleeps while the lease is there for him. Who waits in xLock or in the pauses of SQLite's busy handler goes on as soon as it comes:
//!   the call is answered with it, or the push ends the wait. Every such wait has a bound, and a pause takes no longer than SQLite wants.
//!   Of those who pause one goes on for each lease that comes, and for each writer of this process that ends and leaves the lease here: the others would
//!   find it taken, and have counted a pause.
//! * **W2** A lease that goes back is on its way when the callback returns, and a recall is heard between transactions: this thread may not call again
//!   for long, and the idle thread of the runtime looks only now and then.
//!   Where nobody else has written for a while it costs nothing: no thread is woken.
//! * **W3** What is waited for within xLock is either so short that SQLite's busy handler need not know of it, or counted. And what it has counted has
//!   passed: pauses that ended because the lease came, which somebody else then took, are made up for by the next one (B1 of `ffi/busy.rs`).
//! * **W4** The early acquire is a guess and decides nothing: the transaction begins by D2, as if the lease had come with an open; the ticket is
//!   the one that xLock(RESERVED) would file, at the same place (L-4 of `servers/core/src/lease.rs`); where it does not come in time, or fails, nobody hears
//!   of it. Nor does it cost a reader what he was promised: it takes the place of the question for the snapshot, so there is none where that would not
//!   be asked (D2); it waits for no transaction of another process, and for a holder that does not answer a moment at most; and a guess that was wrong is
//!   made less often (`connection/habit.rs`). A transaction that holds another database never asks early: it might wait for one that waits for it.
//! * **W6** A lease that came by push, early, or for a snapshot that was old waits for its writer, `CLAIM_TIME` after a recall at most, as long as a connection of this
//!   process *wants* it: from a try for the write lock, or an early ticket, to its success, or for as long as the server keeps tickets. One that asked
//!   early wants it no longer once it has read a page, or has ended. Then a recall is answered as at any other time; but what another one wants stays.
//! * **W5** Pages that come along with a grant were read at its head. They are put into the cache after its changes were taken in, and say nothing
//!   about any other page; a grant that is not believed in (S3, D6) brings none. A grant whose head is below one that was known before the call is of
//!   a store that was set back: the database is lost (D5), as after any question for the head.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::{Epoch, Version};
use tokio::time::Instant;

use super::lease::{BeginWrite, CLAIM_TIME, WriteEnded, WriterId};
use super::{Database, tokio_sleep, tokio_timeout};
use crate::client::{Acquired, LeaseRequest, Membership, Owner};
use crate::clock::Moment;
use crate::error::{Error, Kind, Result};
use crate::settings::{ConnectionSettings, Consistency};

/// Longest wait in one xLock for a holder that does not answer: SQLite's busy handler is told of it (`ffi/busy.rs`).
pub(super) const ACQUIRE_WAIT: Duration = Duration::from_millis(1000);
/// The same where it is not known whether anything will be written: longer than a recall and its answer take on most ways.
const EARLY_WAIT: Duration = Duration::from_millis(50);
/// Longest time for a call of which nobody hears whether it failed.
const EARLY_TIMEOUT: Duration = Duration::from_millis(1000);
/// How long xLock waits for a holder that says that it is writing: transactions are short, the first pauses of SQLite's busy
/// handler are not much shorter.
const GRANT_WAIT: Duration = Duration::from_millis(25);

/// What became of a request for the lease by a transaction that only begins (W4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Early {
    /// There was none.
    #[default]
    NotAsked,
    /// The lease is here.
    Came,
    /// It has a ticket.
    Waits,
    /// No answer.
    Failed,
}

/// A request for the lease.
pub(super) struct Request {
    /// The newest known version.
    pub(super) known: Version,
    /// Of one that holds something already; 0 for none.
    pub(super) transaction: u64,
    /// For a holder that does not answer.
    pub(super) patience: Instant,
    /// For one that is writing.
    pub(super) patience_with_writers: Duration,
    /// How long the lease may go unused although others want it; `None` where somebody writes with it at once, or never.
    pub(super) claim: Option<Duration>,
}

impl Database {
    /// Asks for the lease for a transaction that begins, and will probably write (W4).
    pub fn acquire_early(
        &self,
        writer: WriterId,
        owner: Option<Owner>,
        settings: &ConnectionSettings,
    ) -> Early {
        let core = &self.client.core;
        // Without trust the lease would spare nothing (D2), and the server may be out of reach.
        if settings.consistency != Consistency::Strict
            || core.transactions.is_writing(owner)
            || !core.session.is_trusted()
        {
            return Early::NotAsked;
        }
        let Some(known) = self.state.may_acquire_early() else {
            return Early::NotAsked;
        };
        let begun = Instant::now();
        // What it takes in vain is added to what the transaction may take.
        let deadline = begun + settings.timeout.min(EARLY_TIMEOUT);
        let request = Request {
            known,
            transaction: 0,
            patience: deadline.min(begun + EARLY_WAIT),
            // Who may only be going to read waits for nobody's transaction.
            patience_with_writers: Duration::ZERO,
            claim: Some(CLAIM_TIME),
        };
        // One that comes by push from now on is claimed too.
        self.state.waits_early(writer);
        let came = self.acquire_or_wait(&request, deadline);
        if let Some(epoch) = self.state.is_recalled_and_idle() {
            // The recall came first (D7): it has found nobody to wait for.
            self.give_back_later(epoch);
        }
        match came {
            Ok(Acquired::Granted(..)) => Early::Came,
            Ok(Acquired::Pending) => Early::Waits,
            Ok(Acquired::Deadlock(_)) | Err(_) => {
                self.claim_ends(writer);
                Early::Failed
            }
        }
    }

    /// Whoever asked early reads first, or has ended its transaction (W4).
    pub fn claim_ends(&self, writer: WriterId) {
        self.write_ended(self.state.claim_ends(writer, &self.client.core.session));
    }

    /// Makes the connection the one writer. `Busy` files a ticket that outlives a sleeping busy handler. With `has_ticket` there is one since the transaction
    /// began.
    pub fn begin_write(
        &self,
        writer: WriterId,
        owner: Option<Owner>,
        snapshot: Version,
        has_ticket: bool,
        timeout: Duration,
    ) -> Result<()> {
        let state = Arc::downgrade(&self.state);
        let is_locked = move || {
            let state = state.upgrade();
            state.is_some_and(|state| state.writer_epoch(writer).is_some())
        };
        let transactions = &self.client.core.transactions;
        let transaction = Arc::new(transactions.join(owner, is_locked));
        let outcome = self.try_begin_write(writer, &transaction, snapshot, has_ticket, timeout);
        if outcome.is_err()
            && let Some(epoch) = self.state.is_recalled_and_idle()
        {
            // The busy handler may bring the connection back; if not, others shall not wait for it.
            self.give_back_later(epoch);
        }
        outcome
    }

    fn give_back_later(&self, epoch: Epoch) {
        let state = Arc::clone(&self.state);
        self.client
            .spawn(state.give_back_unclaimed(epoch, Arc::clone(&self.client.core)));
    }

    fn try_begin_write(
        &self,
        writer: WriterId,
        transaction: &Arc<Membership>,
        snapshot: Version,
        mut has_ticket: bool,
        timeout: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let patience = Instant::now() + ACQUIRE_WAIT;
        let patience_with_writers = Instant::now() + GRANT_WAIT;
        let session = &self.client.core.session;
        let (was_told, mut has_waited) = (has_ticket, false);
        loop {
            // Before the look: the push may come behind it.
            let granted = self.state.granted.notified();
            match self
                .state
                .begin_write(session, writer, transaction, snapshot)?
            {
                BeginWrite::Ready => return Ok(()),
                BeginWrite::Settle(unsettled) => self.settle(&unsettled, deadline)?,
                // It is asked once only.
                BeginWrite::Acquire(..) if has_waited => {
                    return Err(Error::busy(format!(
                        "{}: another process is writing",
                        self.describe()
                    )));
                }
                // The server was asked a moment ago, and the lease comes by push.
                BeginWrite::Acquire(..) if has_ticket => {
                    has_ticket = false;
                    let rest = patience_with_writers.saturating_duration_since(Instant::now());
                    let _ = self.client.wait(tokio_timeout(rest, granted));
                }
                BeginWrite::Acquire(known) => {
                    let request = Request {
                        known,
                        transaction: transaction.number_of_holder(),
                        patience,
                        patience_with_writers: patience_with_writers
                            .saturating_duration_since(Instant::now()),
                        // With a later head SQLite has to begin anew before it writes.
                        claim: Some(CLAIM_TIME),
                    };
                    let asked = match self.acquire_or_wait(&request, deadline) {
                        // Somebody has it, as the server said a moment ago: that it is slow to say so again makes no I/O error of it.
                        Err(error)
                            if was_told && error.kind == Kind::Io && Instant::now() >= deadline =>
                        {
                            Acquired::Pending
                        }
                        asked => asked?,
                    };
                    match asked {
                        Acquired::Granted(grant, _) => {
                            self.state.begin_write_with(
                                session,
                                writer,
                                transaction,
                                snapshot,
                                &grant,
                            )?;
                            return Ok(());
                        }
                        Acquired::Deadlock(transactions) => {
                            return Err(Error::new(
                                Kind::Deadlock,
                                format!(
                                    "{}: {transactions} transactions wait for each other's databases: roll this one back and \
                                     run it again",
                                    self.describe()
                                ),
                            ));
                        }
                        // It may have come by push since.
                        Acquired::Pending => has_waited = true,
                    }
                }
            }
        }
    }

    /// Asks for the lease. A server may answer before it is there: then the push is waited for.
    fn acquire_or_wait(&self, request: &Request, deadline: Instant) -> Result<Acquired> {
        let until = Instant::now() + request.patience_with_writers;
        // Before the call: the push may be there before its answer.
        let granted = self.state.granted.notified();
        let acquired = self.acquire(request, deadline)?;
        if matches!(acquired, Acquired::Pending) && !self.state.lease_is_here() {
            let rest = until.saturating_duration_since(Instant::now());
            if !rest.is_zero() {
                let _ = self.client.wait(tokio_timeout(rest, granted));
            }
        }
        Ok(acquired)
    }

    pub(super) fn acquire(&self, request: &Request, deadline: Instant) -> Result<Acquired> {
        let core = &self.client.core;
        self.state.acquire_begins();
        let outcome = loop {
            let doubts = self.state.doubts();
            let outcome = self.call(deadline, || {
                // Asked again, both may be others: what the old identity gave back says nothing of the new one (D8). The identity is looked at
                // first: should it change in between, the server is asked for one that it does not know, and says so.
                let id = self.state.id();
                let asked = LeaseRequest {
                    known: request.known,
                    released: self.state.given_back(),
                    wait: wait_at_server(request.patience, deadline, Instant::now()),
                    kept_wait: request.patience_with_writers,
                    transaction: request.transaction,
                    pages_since: self.state.has_pages_of().min(request.known),
                };
                core.acquire_lease(id, asked, deadline)
            });
            match outcome {
                Ok(Acquired::Granted(grant, pages)) => {
                    // As after any question for the head: with the lease none is asked any more.
                    if let Err(error) = self.refuse_older(request.known, grant.head.version) {
                        break Err(error);
                    }
                    let unclaimed_until = request.claim.map(|claim| Moment::now().after(claim));
                    match self.state.lease_acquired(&grant, doubts, unclaimed_until) {
                        Ok(true) => {
                            // W5.
                            for page in pages {
                                let head = grant.head.version;
                                self.state.page_came(&self.client.cache, page, head);
                            }
                            break Ok(Acquired::Granted(grant, Vec::new()));
                        }
                        Ok(false) if Instant::now() < deadline => {}
                        Ok(false) => break Ok(Acquired::Pending),
                        Err(error) => break Err(error),
                    }
                }
                other => break other,
            }
        };
        self.state.acquire_ends(&core.session);
        outcome
    }

    /// The connection is the writer no more.
    pub fn end_write(&self, writer: WriterId) {
        self.write_ended(self.state.end_write(writer, &self.client.core.session));
    }

    /// W2.
    fn write_ended(&self, ended: WriteEnded) {
        match ended {
            WriteEnded::GaveBack => self.client.flush(),
            WriteEnded::Contended => self.client.listen(),
            WriteEnded::Quiet => {}
        }
    }

    /// A pause of SQLite's busy handler, which ends when the lease comes (W1), but not before the least time (W3).
    pub fn await_lease(&self, least: Duration, most: Duration) {
        if !least.is_zero() {
            self.client.wait(tokio_sleep(least));
        }
        let until = Instant::now() + most.saturating_sub(least);
        loop {
            let came = self.state.paused.notified();
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() || self.state.lease_is_here() {
                return;
            }
            let _ = self.client.wait(tokio_timeout(rest, came));
        }
    }
}

/// How long the server may wait for another holder before it answers that there is one. Half of the time until the deadline at most: an
/// answer that comes behind it would be a server that does not answer, which is an I/O error, where the lock is merely held (busy).
fn wait_at_server(patience: Instant, deadline: Instant, now: Instant) -> Duration {
    let left = deadline.saturating_duration_since(now);
    patience.saturating_duration_since(now).min(left / 2)
}

#[cfg(test)]
mod tests {
    use pagewire_proto::{
        Changes, DatabaseId, DatabaseName, LeaseGrant, PageCount, PageSize, Snapshot,
    };

    use super::*;
    use crate::database::DatabaseState;

    fn head(version: u64) -> Snapshot {
        Snapshot {
            version: Version::new(version),
            page_size: PageSize::try_from(4096).ok(),
            page_count: PageCount::try_from(1).expect("a count"),
        }
    }

    fn grant(epoch: u64, version: u64) -> LeaseGrant {
        LeaseGrant {
            epoch: Epoch::new(epoch),
            head: head(version),
            changes: Changes::Pages(Vec::new()),
        }
    }

    /// At version 3, and epoch 5 was given back.
    fn state() -> DatabaseState {
        let name = DatabaseName::try_from("a.db").expect("a name");
        let state = DatabaseState::new(name, DatabaseId::from_bytes([7; 16]), head(3));
        state.remember_released(Epoch::new(5));
        state
    }

    /// The answer of a call that was slower than the push, its recall and the release: nothing is certain by it, and its pages are left out.
    #[test]
    fn w5_a_grant_that_was_given_back_already_is_not_believed_in() {
        let state = state();
        let comes = |epoch| {
            let taken = state.lease_acquired(&grant(epoch, 3), state.doubts(), None);
            assert_eq!(state.lease_is_here(), epoch > 5);
            taken.expect("the database is there")
        };
        assert!(!comes(4));
        assert!(!comes(5));
        assert!(comes(6));
    }

    #[test]
    fn a_pushed_grant_of_a_store_that_was_set_back_is_given_back() {
        let state = state();
        assert!(state.take_pushed_lease(&grant(6, 3)));
        // What it has it has, however late the push of that comes.
        assert!(state.take_pushed_lease(&grant(6, 2)));
        assert!(state.lease_is_here());
        let doubts = state.doubts();
        assert!(!state.take_pushed_lease(&grant(7, 2)));
        assert!(!state.lease_is_here());
        assert_eq!(state.given_back(), Epoch::new(7));
        // The next transaction asks.
        assert!(state.doubts() > doubts);
        assert!(!state.take_pushed_lease(&grant(7, 3)));
        assert!(state.take_pushed_lease(&grant(8, 3)));
    }

    #[test]
    fn a_server_is_not_asked_to_wait_until_its_answer_comes_too_late() {
        let now = Instant::now();
        let after = |ms| now + Duration::from_millis(ms);
        let wait_ms = |patience, deadline, at| {
            wait_at_server(after(patience), after(deadline), after(at)).as_millis()
        };
        assert_eq!(wait_ms(1000, 30_000, 0), 1000);
        assert_eq!(wait_ms(1000, 746, 0), 373);
        assert_eq!(wait_ms(1000, 1010, 0), 505);
        assert_eq!(wait_ms(1000, 30_000, 600), 400);
        assert_eq!(wait_ms(1000, 746, 600), 73);
        assert_eq!(wait_ms(1000, 746, 800), 0);
    }
}
