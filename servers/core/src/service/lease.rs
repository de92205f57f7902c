//! AcquireLease: a place in the queue, a short wait, an answer.
//!
//! ```text
//! ask ── free, first ── fence ──────────────────────────────▶ grant, with the pages that were asked for ── still the holder? ── answer
//!   └── queued ── the holder is asked ── it gives the lease back ──┘ ▲                                         └─ no ── ask
//!                                    └── it keeps it: until kept_wait, it is given back ──┘
//!                                                 └── not in time ── pending: the grant goes to the stream
//! ```
//! A wait only puts off the answer: the ticket is filed before it, does not age during it, and is served in its turn (L-4, L-5 of `lease.rs`), whether a call
//! waits or not. Pages are read at the head of the grant, after the fence, and before the look whether the lease is still there: what the
//! store takes for them makes no grant true for longer. It may take some milliseconds; then the grant goes without them.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::limits::MAX_ACQUIRE_WAIT_MS;
use pagewire_proto::status::Reason;
use pagewire_proto::{Epoch, LeaseGrant, Version, pb};
use tokio::time::Instant;
use tonic::Status;

use super::opened_for_writing;
use super::read::{Along, pages_along};
use crate::database::Database;
use crate::hub::{Hub, spawn_detached};
use crate::lease::Request;
use crate::memory::{Account, AnswerCharge};
use crate::session::Session;
use crate::status;

/// How soon a lease that a session of another server has is asked for again: its news wake nobody here.
const CLAIM_AGAIN: Duration = Duration::from_millis(100);

/// What became of a request for the lease.
pub(super) enum Outcome {
    Granted(LeaseGrant, Option<Along>),
    Pending {
        ahead: u32,
    },
    /// So many transactions wait for each other, and this one is to end.
    Deadlock {
        transactions: u32,
    },
}

pub(super) async fn acquire_lease(
    hub: &Arc<Hub>,
    account: &Arc<Account>,
    request: pb::AcquireLeaseRequest,
) -> Result<(pb::AcquireLeaseResponse, Option<AnswerCharge>), Status> {
    let session = hub.session(&request.session_id).await?;
    let open = opened_for_writing(&session, &request.database_id)?;
    let database = open.database;
    let released = Epoch::new(request.released_epoch);
    let held = database.lease.lock().epoch_of(session.id);
    if let Some(held) = held
        && held <= released
    {
        // Its ReleaseLease is still under way on the stream, and will find another epoch.
        hub.release(&database, &session, held, false);
    }
    let wait = Duration::from_millis(u64::from(request.wait_ms.min(MAX_ACQUIRE_WAIT_MS)));
    let known = Version::new(request.known_version);
    let kept_wait = Duration::from_millis(u64::from(request.kept_wait_ms));
    let asking = Asking {
        known,
        wait,
        kept_wait: kept_wait.min(wait),
        transaction: request.transaction,
        pages: (request.pages_since > 0).then(|| Wanted {
            since: Version::new(request.pages_since).min(known),
            account: Arc::clone(account),
        }),
    };
    let outcome = acquire(hub, &session, &database, asking).await?;
    let mut charge = None;
    let answer = pb::AcquireLeaseResponse {
        outcome: Some(match outcome {
            Outcome::Granted(grant, along) => {
                let mut grant = pb::LeaseGrant::from(grant);
                if let Some(along) = along {
                    (grant.pages, charge) = (along.pages, Some(along.charge));
                }
                pb::acquire_lease_response::Outcome::Granted(grant)
            }
            Outcome::Pending { ahead } => {
                pb::acquire_lease_response::Outcome::Pending(pb::LeasePending { ahead })
            }
            Outcome::Deadlock { transactions } => {
                pb::acquire_lease_response::Outcome::Deadlock(pb::LeaseDeadlock { transactions })
            }
        }),
    };
    Ok((answer, charge))
}

/// A request for the lease.
pub(super) struct Asking {
    /// What the session knows about the database.
    pub(super) known: Version,
    /// For another holder.
    pub(super) wait: Duration,
    /// For another holder that says that it is writing; at most `wait`.
    pub(super) kept_wait: Duration,
    /// That holds something already; 0 for none.
    pub(super) transaction: u64,
    /// Pages along with the grant.
    pub(super) pages: Option<Wanted>,
}

/// Pages that a session would like with its grant.
pub(super) struct Wanted {
    /// Those that were written after this version.
    since: Version,
    /// For their memory.
    account: Arc<Account>,
}

/// Asks for the lease and waits at most so long for another holder; for a free lease as long as the store takes.
pub(super) async fn acquire(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    database: &Arc<Database>,
    asking: Asking,
) -> Result<Outcome, Status> {
    let Asking {
        known,
        wait,
        kept_wait,
        transaction,
        pages,
    } = asking;
    let begun = Instant::now();
    let (deadline, kept_deadline) = (begun + wait, begun + kept_wait);
    let fence_deadline = deadline + hub.settings.store_wait;
    let mut is_elsewhere = false;
    let mut changed = database.changed.subscribe();
    let mut waiting: Option<Waiting<'_>> = None;
    loop {
        if hub.is_draining() {
            return Err(status::draining());
        }
        changed.mark_unchanged();
        let answer = {
            let mut lease = database.lease.lock();
            {
                let state = session.state.lock();
                if state.ended {
                    return Err(status::session_unknown());
                }
                // Closed since the call began: it gets no lease that nothing would give back.
                if !state.opens.contains_key(&database.id) {
                    return Err(status::not_open());
                }
            }
            let answer = lease.request(session.id, known, Instant::now());
            let since = pages.as_ref().map_or(Version::ZERO, |wanted| wanted.since);
            lease.wants_pages(session.id, since);
            if waiting.is_none() && !matches!(answer, Request::Held { .. }) {
                lease.begin_wait(session.id);
                waiting = Some(Waiting {
                    hub,
                    session,
                    database,
                    known,
                    transaction,
                    answered: false,
                });
                if transaction != 0 {
                    let mut state = session.state.lock();
                    state
                        .waits
                        .ask(transaction, database.id, Instant::now(), deadline);
                }
            }
            answer
        };
        match answer {
            Request::Held { epoch } => {
                let grant = hub.grant_for(database, epoch, known).await?;
                let along = match &pages {
                    Some(wanted) => {
                        let Wanted { since, account } = wanted;
                        pages_along(hub, account, session, database, (known, &grant), *since).await
                    }
                    None => None,
                };
                // Given back or taken while the store was asked: the answer would be trusted beside the next holder's.
                if database.lease.lock().epoch_of(session.id) != Some(epoch) {
                    continue;
                }
                if let Some(waiting) = &mut waiting {
                    waiting.answered = true;
                }
                return Ok(Outcome::Granted(grant, along));
            }
            Request::Turn => {
                let turns = hub.advance(database);
                // A lease that a session of another server has is waited for no longer than the caller wants, however long that server,
                // or the store, takes to say so again.
                let until = if is_elsewhere {
                    deadline
                } else {
                    fence_deadline
                };
                let Ok(turns) = tokio::time::timeout_at(until, turns).await else {
                    if is_elsewhere {
                        return Ok(Outcome::Pending { ahead: 0 });
                    }
                    return Err(Reason::Unavailable.status("the store did not fence the lease"));
                };
                if turns.unwrap_or(false) {
                    // A session of another server has it; that server was asked for it.
                    is_elsewhere = true;
                    let now = Instant::now();
                    if now >= deadline {
                        return Ok(Outcome::Pending { ahead: 0 });
                    }
                    let again = deadline.min(now + CLAIM_AGAIN);
                    let _ = tokio::time::timeout_at(again, changed.changed()).await;
                    continue;
                }
                if !database.lease.lock().concerns(session.id) {
                    return Err(Reason::Unavailable.status("the lease could not be granted"));
                }
            }
            Request::Queued { ahead, kept } => {
                hub.settle(database);
                if transaction != 0
                    && let Some(transactions) = hub.deadlock(session, transaction)
                {
                    session.state.lock().waits.end(transaction);
                    return Ok(Outcome::Deadlock { transactions });
                }
                let until = if kept { kept_deadline } else { deadline };
                if Instant::now() >= until {
                    return Ok(Outcome::Pending { ahead });
                }
                // Then one more look, for the answer.
                let _ = tokio::time::timeout_at(until, changed.changed()).await;
            }
        }
    }
}

/// A call that waits for the lease: its ticket does not age, and a grant that it did not answer goes to the stream.
struct Waiting<'a> {
    hub: &'a Arc<Hub>,
    session: &'a Arc<Session>,
    database: &'a Arc<Database>,
    known: Version,
    transaction: u64,
    answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let held = {
            let mut lease = self.database.lease.lock();
            lease.end_wait(self.session.id, Instant::now());
            let mut state = self.session.state.lock();
            state.waits.asked(self.transaction, Instant::now());
            lease.epoch_of(self.session.id).is_some()
        };
        if !held {
            return;
        }
        if self.answered {
            // Others may wait already: the new holder gives it back at the end of its transaction.
            let (hub, database) = (Arc::clone(self.hub), Arc::clone(self.database));
            spawn_detached(async move { hub.settle(&database) });
        } else {
            self.hub.push_grant(self.database, self.session, self.known);
        }
    }
}
