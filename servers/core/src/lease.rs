//! The write lease of one database: who has it, who waits for it, and from when on a commit may become visible.
//!
//! A pure, synchronous state machine. Time is a parameter; epochs come from the store; nothing here waits, sends or logs.
//!
//! ```text
//!                 request: files a ticket                    grant(epoch of a fence)
//!   Free ───────────────────────────────▶ Free, tickets ───────────────────────────────▶ Held
//!    ▲                                       ▲                                            │ │
//!    │ no ticket                             │ tickets                                    │ │ recall (once a holding)
//!    └───────────────────────────────────────┴── release · remove · take (with barrier) ──┘ ▼
//!                                                                              Held, recalled ──keep──▶ Held, kept
//! ```
//!
//! Invariants, cited by the tests:
//! * **L-1** At most one session holds the lease.
//! * **L-2** The epoch of a grant is above the epoch of every earlier grant; that of a lease that comes with its session from another server
//!   is not below.
//! * **L-3** A session has at most one ticket, and the holder has none.
//! * **L-4** Tickets are served in the order in which they were filed; renewing keeps the place.
//! * **L-5** A ticket that was not renewed for its TTL is never served; one with a waiting call does not age.
//! * **L-6** A holding is recalled at most once on each stream of its session, and only while somebody waits.
//! * **L-7** A lease taken from a session that may still trust it leaves a barrier; one given back leaves none.
//! * **L-8** A barrier of a session falls with its time, when the session is known to trust nothing, or when it has taken in the Welcome of a
//!   stream that began after the lease was taken, which does not list it; never otherwise. A Hello is not enough: until its client
//!   has read the answer it goes on trusting what it had.
//! * **L-9** A message about an epoch that is not the present one changes nothing.
//! * **L-10** Before the store is asked whether a lease is that of a session which says so, there is a guard for as long as the session may trust it: commits of
//!   others wait for it as for a barrier. It falls with its time, when the store has said that nothing has moved, or when the session has the
//!   lease here; never because nobody waits for the answer any more.

use std::collections::VecDeque;
use std::time::Duration;

use pagewire_proto::limits::TICKET_TTL_MS;
use pagewire_proto::{Epoch, SessionId, Version};
use tokio::time::Instant;

const TICKET_TTL: Duration = Duration::from_millis(TICKET_TTL_MS);

/// The lease of one database.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    holder: Option<Holder>,
    tickets: VecDeque<Ticket>,
    barriers: Vec<Barrier>,
    /// Until when an earlier holder at another server may trust the lease that was taken over from there, or was asked for (L-10).
    guarded_until: Option<Instant>,
    last_epoch: Epoch,
}

#[derive(Debug)]
struct Holder {
    session: SessionId,
    epoch: Epoch,
    /// What the session said to know when it asked; a new ticket of it starts from there.
    known: Version,
    recall: Recall,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recall {
    NotSent,
    Sent,
    /// Until this transaction ends; 0 where the holder did not say which.
    Kept {
        transaction: u64,
    },
}

#[derive(Debug)]
struct Ticket {
    session: SessionId,
    known: Version,
    /// The pages written since are wanted with the grant; version 0 for none.
    pages_since: Version,
    expires: Instant,
    /// Calls of the session that wait for it now.
    callers: u32,
}

#[derive(Debug)]
struct Barrier {
    session: SessionId,
    until: Instant,
    /// The stream of the session that was broken when the lease was taken.
    stream: u64,
}

/// The answer to a request for the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The session has it.
    Held {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Nobody has it and the session is the first in the queue: fence, then grant.
    Turn,
    /// The session has a ticket.
    Queued {
        /// Sessions served before, the holder included.
        ahead: u32,
        /// The holder has said that a write transaction is running.
        kept: bool,
    },
}

/// A ticket whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Who.
    pub(crate) session: SessionId,
    /// What it knows about the database.
    pub(crate) known: Version,
    /// The pages written since are wanted with the grant; version 0 for none.
    pub(crate) pages_since: Version,
    /// A call waits for it; otherwise it is told on its stream.
    pub(crate) waiting: bool,
}

impl Lease {
    /// The holder and its epoch.
    pub(crate) fn holder(&self) -> Option<(SessionId, Epoch)> {
        self.holder
            .as_ref()
            .map(|holder| (holder.session, holder.epoch))
    }

    /// The epoch of the session, if it has the lease.
    pub(crate) fn epoch_of(&self, session: SessionId) -> Option<Epoch> {
        self.holder
            .as_ref()
            .filter(|holder| holder.session == session)
            .map(|holder| holder.epoch)
    }

    /// The newest epoch that was granted: the store refuses all older ones.
    pub(crate) fn last_epoch(&self) -> Epoch {
        self.last_epoch
    }

    /// The session has the lease or a ticket.
    pub(crate) fn concerns(&self, session: SessionId) -> bool {
        self.epoch_of(session).is_some() || self.place(session).is_some()
    }

    /// Nobody has it and nobody waits.
    pub(crate) fn is_free(&mut self, now: Instant) -> bool {
        self.expire(now);
        self.holder.is_none() && self.tickets.is_empty()
    }

    /// Nothing would be lost if this state were forgotten.
    pub(crate) fn is_idle(&mut self, now: Instant) -> bool {
        self.is_free(now) && self.barrier(now).is_none()
    }

    /// Nobody has it, and nobody may still trust that he has.
    pub(crate) fn is_unheld(&mut self, now: Instant) -> bool {
        self.holder.is_none() && self.barrier(now).is_none()
    }

    /// Somebody waits.
    pub(crate) fn is_wanted(&mut self, now: Instant) -> bool {
        self.expire(now);
        !self.tickets.is_empty()
    }

    /// Asks for the lease: files a ticket or renews the one that is there (L-3, L-4).
    pub(crate) fn request(&mut self, session: SessionId, known: Version, now: Instant) -> Request {
        if let Some(epoch) = self.epoch_of(session) {
            return Request::Held { epoch };
        }
        self.expire(now);
        let place = match self.place(session) {
            Some(place) => {
                let ticket = &mut self.tickets[place];
                ticket.expires = now + TICKET_TTL;
                ticket.known = known;
                place
            }
            None => self.file(session, known, now),
        };
        match &self.holder {
            None if place == 0 => Request::Turn,
            holder => Request::Queued {
                ahead: u32::try_from(place)
                    .unwrap_or(u32::MAX)
                    .saturating_add(u32::from(holder.is_some())),
                kept: holder
                    .as_ref()
                    .is_some_and(|holder| matches!(holder.recall, Recall::Kept { .. })),
            },
        }
    }

    /// The session would like the pages that were written since with its grant.
    pub(crate) fn wants_pages(&mut self, session: SessionId, since: Version) {
        if let Some(place) = self.place(session) {
            self.tickets[place].pages_since = since;
        }
    }

    /// A call of the session begins to wait: its ticket does not age meanwhile (L-5).
    pub(crate) fn begin_wait(&mut self, session: SessionId) {
        if let Some(place) = self.place(session) {
            self.tickets[place].callers += 1;
        }
    }

    /// A call of the session has stopped waiting.
    pub(crate) fn end_wait(&mut self, session: SessionId, now: Instant) {
        if let Some(place) = self.place(session) {
            let ticket = &mut self.tickets[place];
            ticket.callers = ticket.callers.saturating_sub(1);
            ticket.expires = now + TICKET_TTL;
        }
    }

    /// Drops the ticket of a session.
    pub(crate) fn drop_ticket(&mut self, session: SessionId) {
        self.tickets.retain(|ticket| ticket.session != session);
    }

    /// The ticket to be served, if nobody has the lease.
    pub(crate) fn next_turn(&mut self, now: Instant) -> Option<Turn> {
        if self.holder.is_some() {
            return None;
        }
        self.expire(now);
        self.tickets.front().map(|ticket| Turn {
            session: ticket.session,
            known: ticket.known,
            pages_since: ticket.pages_since,
            waiting: ticket.callers > 0,
        })
    }

    /// Gives the lease to the first ticket, if that is still the one of the session. The epoch is a new one of the store.
    ///
    /// False, and nothing changed, where the ticket is gone or an epoch is not above all earlier ones (L-1, L-2).
    pub(crate) fn grant(&mut self, session: SessionId, epoch: Epoch, now: Instant) -> bool {
        let first = self.next_turn(now).map(|turn| turn.session);
        if first != Some(session) || epoch <= self.last_epoch {
            return false;
        }
        let Some(ticket) = self.tickets.pop_front() else {
            return false;
        };
        self.last_epoch = epoch;
        self.holder = Some(Holder {
            session,
            epoch,
            known: ticket.known,
            recall: Recall::NotSent,
        });
        true
    }

    /// Until then nothing may become visible, for a session may trust the lease that the store is asked about (L-10). What was so before, for
    /// [`Lease::lift_guard`]. The caller has the `turn` of the database until then.
    pub(crate) fn guard(&mut self, until: Instant) -> Option<Instant> {
        let before = self.guarded_until;
        self.guarded_until = before.max(Some(until));
        before
    }

    /// The store has not moved the lease: what was guarded before is guarded still, and no more (L-10).
    pub(crate) fn lift_guard(&mut self, before: Option<Instant>) {
        self.guarded_until = before;
    }

    /// The store says that the lease is that of the session under this epoch, be it from another server or from this one; an earlier holder may
    /// trust it until then. This takes the place of the guard of the question, for the holder needs none against himself.
    ///
    /// False, and nothing changed, where another has it here, or an epoch above it is known (L-1, L-2).
    pub(crate) fn take_over(
        &mut self,
        session: SessionId,
        epoch: Epoch,
        guarded_until: Instant,
    ) -> bool {
        match &self.holder {
            Some(holder) if holder.session != session || holder.epoch != epoch => return false,
            None if epoch < self.last_epoch => return false,
            Some(_) | None => {}
        }
        self.guarded_until = Some(guarded_until);
        // It was taken from the session, and comes back to it.
        self.barriers.retain(|barrier| barrier.session != session);
        if self.holder.is_some() {
            return true;
        }
        self.drop_ticket(session);
        self.last_epoch = epoch;
        self.holder = Some(Holder {
            session,
            epoch,
            known: Version::ZERO,
            recall: Recall::NotSent,
        });
        true
    }

    /// Whether the holder has to be asked now to give the lease back; says so once a holding (L-6).
    pub(crate) fn recall(&mut self, now: Instant) -> Option<(SessionId, Epoch)> {
        if !self.is_wanted(now) {
            return None;
        }
        self.recall_unasked()
    }

    /// The same where the server itself wants the lease back.
    pub(crate) fn recall_unasked(&mut self) -> Option<(SessionId, Epoch)> {
        let holder = self.holder.as_mut()?;
        if holder.recall != Recall::NotSent {
            return None;
        }
        holder.recall = Recall::Sent;
        Some((holder.session, holder.epoch))
    }

    /// The recall of an earlier stream, or what the holder answered after it, may not have arrived: ask again on the new one.
    ///
    /// Also where the lease was kept: the release at the end of the transaction may be lost, and no other recall would ever
    /// bring it. A holder that still writes says again that it keeps it.
    pub(crate) fn forget_recall(&mut self, session: SessionId) {
        if let Some(holder) = &mut self.holder
            && holder.session == session
        {
            holder.recall = Recall::NotSent;
        }
    }

    /// The holder keeps the lease until its transaction ends.
    pub(crate) fn keep(&mut self, session: SessionId, epoch: Epoch, transaction: u64) -> bool {
        match &mut self.holder {
            Some(holder) if holder.session == session && holder.epoch == epoch => {
                holder.recall = Recall::Kept { transaction };
                true
            }
            _ => false,
        }
    }

    /// The holder, and the transaction until whose end it keeps the lease, where it has said so.
    pub(crate) fn kept_for(&self) -> Option<(SessionId, u64)> {
        let holder = self.holder.as_ref()?;
        match holder.recall {
            Recall::Kept { transaction } if transaction != 0 => Some((holder.session, transaction)),
            Recall::NotSent | Recall::Sent | Recall::Kept { .. } => None,
        }
    }

    /// The holder gives the lease back, and may queue again at the end.
    pub(crate) fn release(
        &mut self,
        session: SessionId,
        epoch: Epoch,
        wants_back: bool,
        now: Instant,
    ) -> bool {
        match &self.holder {
            Some(holder) if holder.session == session && holder.epoch == epoch => {
                let known = holder.known;
                self.holder = None;
                if wants_back {
                    self.file(session, known, now);
                }
                true
            }
            _ => false,
        }
    }

    /// Takes the lease from a holder whose newest stream, this one, is broken, and that may still trust it until then (L-7).
    pub(crate) fn take(&mut self, session: SessionId, trusted_until: Instant, stream: u64) -> bool {
        if self.epoch_of(session).is_none() {
            return false;
        }
        self.holder = None;
        match self
            .barriers
            .iter_mut()
            .find(|barrier| barrier.session == session)
        {
            Some(barrier) => {
                barrier.until = barrier.until.max(trusted_until);
                barrier.stream = barrier.stream.max(stream);
            }
            None => self.barriers.push(Barrier {
                session,
                until: trusted_until,
                stream,
            }),
        }
        true
    }

    /// The session has taken in the Welcome of this stream: it trusts nothing that was taken from it before (L-8).
    pub(crate) fn welcomed(&mut self, session: SessionId, stream: u64) {
        self.barriers
            .retain(|barrier| barrier.session != session || barrier.stream >= stream);
    }

    /// The session is gone, closed the database, or said goodbye: it trusts nothing any more (L-8).
    pub(crate) fn remove(&mut self, session: SessionId) {
        if self.epoch_of(session).is_some() {
            self.holder = None;
        }
        self.drop_ticket(session);
        self.barriers.retain(|barrier| barrier.session != session);
    }

    /// The store has advanced the epoch under the holder, who goes on with the new one.
    pub(crate) fn advance_epoch(&mut self, session: SessionId, from: Epoch, to: Epoch) -> bool {
        match &mut self.holder {
            Some(holder)
                if holder.session == session && holder.epoch == from && to > self.last_epoch =>
            {
                holder.epoch = to;
                self.last_epoch = to;
                true
            }
            _ => false,
        }
    }

    /// Until when no commit may become visible.
    pub(crate) fn barrier(&mut self, now: Instant) -> Option<Instant> {
        self.barriers.retain(|barrier| barrier.until > now);
        self.guarded_until = self.guarded_until.filter(|until| *until > now);
        let barriers = self.barriers.iter().map(|barrier| barrier.until);
        barriers.max().max(self.guarded_until)
    }

    fn file(&mut self, session: SessionId, known: Version, now: Instant) -> usize {
        self.tickets.push_back(Ticket {
            session,
            known,
            pages_since: Version::ZERO,
            expires: now + TICKET_TTL,
            callers: 0,
        });
        self.tickets.len() - 1
    }

    fn place(&self, session: SessionId) -> Option<usize> {
        self.tickets
            .iter()
            .position(|ticket| ticket.session == session)
    }

    fn expire(&mut self, now: Instant) {
        self.tickets
            .retain(|ticket| ticket.callers > 0 || ticket.expires > now);
    }
}

#[cfg(test)]
mod tests;
