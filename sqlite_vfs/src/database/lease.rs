//! The write lease of a database, as far as this process has it.
//!
//! ```text
//!            open, acquire, push                     end of a write after a recall, recall while idle
//! lease None ------------------> Held{epoch} -------------------------------------------------------> None
//!                                  |  ^   recall during a write: Held{recalled}
//!                                  +--+   lost, session anew: None (a writer may have it again at its commit: `regain.rs`)
//!
//!      push, early acquire                       xLock(RESERVED)
//! None -------------------> Held{unclaimed_until} ---------------> Held, writing
//!                                  | recalled, and: its time is over, or who asked early (`write.rs`) has read, or ended its transaction,
//!                                  +--> None                                and nobody else of the process wants it
//! ```
//! The invariants (D1, D6, D7) are those of `state.rs`. How a connection waits for the lease is in `write.rs`.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::limits::TICKET_TTL_MS;
use pagewire_proto::{Epoch, LeaseGrant, Page, Version, pb};

use super::DatabaseState;
use super::state::{Inner, Unsettled};
use crate::client::{Core, Membership, Session};
use crate::clock::Moment;
use crate::error::{Error, Result};

/// How long a lease that came by push, or early, waits for the connection that wanted it: SQLite's busy handler sleeps up to 100 ms.
pub(super) const CLAIM_TIME: Duration = Duration::from_millis(250);
/// For how long a recall says that others write too: their next one is listened for.
const CONTENDED_FOR: Duration = Duration::from_secs(1);
/// How long what a writer has in its cache counts as what its next transaction uses.
const FRESH_FOR: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lease {
    None,
    Held {
        epoch: Epoch,
        recalled: bool,
        unclaimed_until: Option<Moment>,
    },
}

/// A connection, as the writer of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WriterId(pub u64);

/// What follows from the end of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteEnded {
    /// The release is to go out.
    GaveBack,
    /// The lease is kept, and others have wanted it a moment ago.
    Contended,
    /// Nothing.
    Quiet,
}

/// What a connection that wants to write has to do.
#[derive(Debug)]
pub enum BeginWrite {
    /// Nothing: it is the writer.
    Ready,
    /// Ask for the lease, naming the newest known version.
    Acquire(Version),
    /// Settle this commit first.
    Settle(Unsettled),
}

impl DatabaseState {
    /// The newest epoch given back; one at or below it is never taken for held (D6).
    pub fn released(&self) -> Epoch {
        let inner = self.inner.lock();
        match inner.lease {
            // The database is being closed: the lease goes with it.
            Lease::Held { epoch, .. } => inner.released.max(epoch),
            Lease::None => inner.released,
        }
    }

    /// The lease, for a server that does not know it.
    pub(crate) fn believed_lease(&self) -> Option<pb::BelievedLease> {
        let inner = self.inner.lock();
        match inner.lease {
            // One without a commit goes with the session that made its name.
            Lease::Held { epoch, .. } if inner.head.version > Version::ZERO => {
                Some(pb::BelievedLease {
                    database_id: self.id().to_wire(),
                    epoch: epoch.get(),
                    oldest_open_version: inner.floor().get(),
                })
            }
            Lease::Held { .. } | Lease::None => None,
        }
    }

    /// The same while it stays open.
    pub(super) fn given_back(&self) -> Epoch {
        self.inner.lock().released
    }

    /// Epochs that an earlier open of the database has given back.
    pub fn remember_released(&self, epoch: Epoch) {
        let mut inner = self.inner.lock();
        inner.released = inner.released.max(epoch);
    }

    /// D1: makes the connection the writer if its snapshot is the newest version and the lease is there.
    pub fn begin_write(
        &self,
        session: &Session,
        writer: WriterId,
        transaction: &Arc<Membership>,
        snapshot: Version,
    ) -> Result<BeginWrite> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        if let Some(unsettled) = &inner.unsettled {
            return Ok(BeginWrite::Settle(unsettled.clone()));
        }
        inner.wants(writer);
        if inner.writer.is_some_and(|(other, _)| other != writer) {
            inner.waiting_until = Moment::now().after(Duration::from_millis(TICKET_TTL_MS));
            return Err(Error::busy(format!(
                "{}: another connection of this process is writing",
                self.name
            )));
        }
        match inner.lease {
            Lease::Held {
                epoch, recalled, ..
            } if session.is_trusted() && inner.head_is_certain => {
                if inner.head.version != snapshot {
                    return Err(Error::snapshot_is_old(
                        self.name.as_str(),
                        snapshot,
                        inner.head.version,
                    ));
                }
                self.claim(&mut inner, session, (writer, transaction), epoch, recalled);
                Ok(BeginWrite::Ready)
            }
            Lease::Held { .. } | Lease::None => Ok(BeginWrite::Acquire(inner.head.version)),
        }
    }

    /// The newest known version, for asking before it is known whether anything is written: where nobody here
    /// has the lease, writes, or has to be waited for, and the transaction would ask for its snapshot in any case (D2).
    pub(super) fn may_acquire_early(&self) -> Option<Version> {
        let inner = self.inner.lock();
        let may = inner.gone.is_none()
            && inner.unsettled.is_none()
            && !inner.committing
            && inner.writer.is_none()
            && inner.lease == Lease::None
            && !inner.subscription.is_trusting()
            && !inner.subscription.is_warned();
        may.then_some(inner.head.version)
    }

    /// Who asked early has a ticket in the queue.
    pub(super) fn waits_early(&self, writer: WriterId) {
        self.inner.lock().wants(writer);
    }

    /// The connection will not write after all. A lease that came for it waits no longer, unless it is wanted by another one: then it may be that one's.
    pub(super) fn claim_ends(&self, writer: WriterId, session: &Session) -> WriteEnded {
        let mut inner = self.inner.lock();
        inner.wanting.retain(|(other, _)| *other != writer);
        if inner.is_wanted() {
            return WriteEnded::Quiet;
        }
        let Lease::Held {
            epoch,
            recalled,
            unclaimed_until: Some(_),
        } = inner.lease
        else {
            return WriteEnded::Quiet;
        };
        inner.lease = Lease::Held {
            epoch,
            recalled,
            unclaimed_until: None,
        };
        if !recalled || inner.writer.is_some() {
            return WriteEnded::Quiet;
        }
        self.give_back(&mut inner, session);
        WriteEnded::GaveBack
    }

    /// Whether a connection that wants to write finds the lease here.
    pub(super) fn lease_is_here(&self) -> bool {
        let inner = self.inner.lock();
        matches!(inner.lease, Lease::Held { .. }) && inner.writer.is_none()
    }

    /// As of which version the cache has what writers use; version 0 where that is long ago. A guess.
    pub(super) fn has_pages_of(&self) -> Version {
        let inner = self.inner.lock();
        match inner.wrote_at {
            Some((version, at)) if Moment::now() < at.after(FRESH_FOR) => {
                version.min(inner.head.version)
            }
            Some(_) | None => Version::ZERO,
        }
    }

    /// An acquire call goes out (D7).
    pub fn acquire_begins(&self) {
        self.inner.lock().acquiring += 1;
    }

    /// The acquire call has ended; a grant that it brought was taken over before.
    pub fn acquire_ends(&self, session: &Session) {
        let mut inner = self.inner.lock();
        inner.acquiring -= 1;
        let known = match inner.lease {
            Lease::Held { epoch, .. } => epoch.max(inner.released),
            Lease::None => inner.released,
        };
        if inner.acquiring == 0 && inner.recalled > known {
            // Granted, recalled, and the grant itself never arrived.
            inner.released = inner.recalled;
            session.release_lease(self.id(), inner.recalled, false);
        }
    }

    /// Whether the lease has to go back soon although nobody is writing.
    pub fn is_recalled_and_idle(&self) -> Option<Epoch> {
        let inner = self.inner.lock();
        match inner.lease {
            Lease::Held {
                epoch,
                recalled: true,
                ..
            } if inner.writer.is_none() => Some(epoch),
            Lease::Held { .. } | Lease::None => None,
        }
    }

    /// Takes over a lease that the server granted to a call. `false` if something has happened since the call began that makes
    /// the answer worth nothing: the stream was made anew, perhaps without this lease (S3), or a commit became uncertain; or the lease was given back (D6).
    ///
    /// With `unclaimed_until` nobody writes with it yet, and a recall waits so long for that.
    pub fn lease_acquired(
        &self,
        grant: &LeaseGrant,
        doubts: u64,
        unclaimed_until: Option<Moment>,
    ) -> Result<bool> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        if inner.doubts != doubts {
            return Ok(false);
        }
        let taken = self.take_lease(&mut inner, grant, unclaimed_until);
        if taken {
            inner.become_certain(doubts);
        }
        Ok(taken)
    }

    /// Makes the connection the writer with a lease that a call has just granted, trusted or not: the commit checks the
    /// epoch, and the head of the grant was the newest a moment ago.
    pub fn begin_write_with(
        &self,
        session: &Session,
        writer: WriterId,
        transaction: &Arc<Membership>,
        snapshot: Version,
        grant: &LeaseGrant,
    ) -> Result<Epoch> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        if inner.writer.is_some_and(|(other, _)| other != writer) {
            return Err(Error::busy(format!(
                "{}: another connection of this process is writing",
                self.name
            )));
        }
        match inner.lease {
            Lease::Held {
                epoch, recalled, ..
            } if epoch == grant.epoch => {
                if inner.head.version != snapshot {
                    return Err(Error::snapshot_is_old(
                        self.name.as_str(),
                        snapshot,
                        inner.head.version,
                    ));
                }
                self.claim(&mut inner, session, (writer, transaction), epoch, recalled);
                Ok(epoch)
            }
            Lease::Held { .. } | Lease::None => Err(Error::busy(format!(
                "{}: the write lease moved on",
                self.name
            ))),
        }
    }

    fn claim(
        &self,
        inner: &mut Inner,
        session: &Session,
        (writer, transaction): (WriterId, &Arc<Membership>),
        epoch: Epoch,
        recalled: bool,
    ) {
        // Of a lease that a writer has again (`regain.rs`) nobody was told so yet.
        let is_told = inner.writer.is_some_and(|(_, began)| began == epoch);
        if recalled && !is_told {
            // Those who wait for an answer learn that a transaction is running.
            session.keep_lease(self.id(), epoch, transaction.number());
        }
        inner.lease = Lease::Held {
            epoch,
            recalled,
            unclaimed_until: None,
        };
        inner.writer = Some((writer, epoch));
        inner.transaction = Some(Arc::clone(transaction));
        inner.wanting.retain(|(other, _)| *other != writer);
    }

    /// The connection is the writer no more; a recalled lease goes back now.
    pub(super) fn end_write(&self, writer: WriterId, session: &Session) -> WriteEnded {
        let mut inner = self.inner.lock();
        if !inner.writer.is_some_and(|(current, _)| current == writer) {
            return WriteEnded::Quiet;
        }
        inner.writer = None;
        inner.transaction = None;
        let now = Moment::now();
        inner.wrote_at = Some((inner.head.version, now));
        match inner.lease {
            Lease::Held { recalled: true, .. } => {
                self.give_back(&mut inner, session);
                WriteEnded::GaveBack
            }
            Lease::Held { .. } => {
                self.paused.notify_one();
                if now < inner.recalled_at.after(CONTENDED_FOR) {
                    WriteEnded::Contended
                } else {
                    WriteEnded::Quiet
                }
            }
            Lease::None => WriteEnded::Quiet,
        }
    }

    /// The epoch of the writer, as long as the lease under which it began is still believed in.
    pub fn writer_epoch(&self, writer: WriterId) -> Option<Epoch> {
        let inner = self.inner.lock();
        match (inner.writer, inner.lease) {
            (Some((current, began)), Lease::Held { epoch, .. })
                if current == writer && began == epoch =>
            {
                Some(epoch)
            }
            _ => None,
        }
    }

    /// The transaction of the writer, be its lease there or not.
    pub(super) fn transaction_of(&self, writer: WriterId) -> Option<Arc<Membership>> {
        let inner = self.inner.lock();
        let is_writer = inner.writer.is_some_and(|(current, _)| current == writer);
        inner.transaction.clone().filter(|_| is_writer)
    }

    /// Whether a connection of this process is writing.
    pub fn has_writer(&self) -> bool {
        self.inner.lock().writer.is_some()
    }

    /// The epoch after a commit was resolved as aborted; 0 if the lease is not ours any more.
    pub fn epoch_advanced(&self, epoch: Epoch) {
        Self::take_epoch(&mut self.inner.lock(), epoch);
    }

    pub(super) fn take_epoch(inner: &mut Inner, now: Epoch) {
        if let Lease::Held {
            epoch,
            recalled,
            unclaimed_until,
        } = inner.lease
            && now != epoch
        {
            inner.released = inner.released.max(epoch);
            inner.lease = if now > inner.released {
                if let Some((_, began)) = &mut inner.writer
                    && *began == epoch
                {
                    *began = now;
                }
                Lease::Held {
                    epoch: now,
                    recalled,
                    unclaimed_until,
                }
            } else {
                Lease::None
            };
        }
    }

    fn take_lease(
        &self,
        inner: &mut Inner,
        grant: &LeaseGrant,
        unclaimed_until: Option<Moment>,
    ) -> bool {
        if grant.epoch <= inner.released {
            return false;
        }
        match inner.lease {
            Lease::Held { epoch, .. } if epoch >= grant.epoch => {}
            Lease::Held { .. } | Lease::None => {
                let recalled = grant.epoch <= inner.recalled;
                inner.lease = Lease::Held {
                    epoch: grant.epoch,
                    recalled,
                    unclaimed_until,
                };
            }
        }
        self.advance(inner, grant.head, &grant.changes);
        true
    }

    fn give_back(&self, inner: &mut Inner, session: &Session) {
        if let Lease::Held { epoch, .. } = inner.lease {
            inner.lease = Lease::None;
            inner.released = inner.released.max(epoch);
            session.release_lease(self.id(), epoch, Moment::now() < inner.waiting_until);
        }
    }

    /// A lease came by push for a ticket of ours.
    pub(crate) fn lease_granted(
        self: &Arc<Self>,
        grant: LeaseGrant,
        pages: Vec<Page>,
        core: &Arc<Core>,
    ) {
        if self.take_pushed_lease(&grant) {
            // W5 of `write.rs`.
            for page in pages {
                self.page_came(core.cache(), page, grant.head.version);
            }
            self.granted.notify_waiters();
            self.paused.notify_one();
        } else {
            core.session.release_lease(self.id(), grant.epoch, false);
        }
    }

    /// Whether it is ours now. If not, what was pushed has to be given back.
    pub(super) fn take_pushed_lease(&self, grant: &LeaseGrant) -> bool {
        let mut inner = self.inner.lock();
        let has_it = matches!(inner.lease, Lease::Held { epoch, .. } if epoch >= grant.epoch);
        if grant.head.version < inner.head.version && !has_it && grant.epoch > inner.released {
            // Of a store that was set back, which a call that asks finds out (`refuse_older`): who held it would read pages of
            // another history without asking. So the next transaction asks.
            inner.lease = Lease::None;
            inner.released = grant.epoch;
            inner.doubt();
            return false;
        }
        let unclaimed_until = inner.is_wanted().then(|| Moment::now().after(CLAIM_TIME));
        let taken = self.take_lease(&mut inner, grant, unclaimed_until);
        if taken {
            inner.head_is_certain = inner.unsettled.is_none();
        }
        taken
    }

    /// Another session wants the lease.
    pub(crate) fn lease_recalled(self: &Arc<Self>, recalled: Epoch, core: &Arc<Core>) {
        let mut inner = self.inner.lock();
        inner.recalled_at = Moment::now();
        let (epoch, unclaimed_until) = match inner.lease {
            Lease::Held {
                epoch,
                unclaimed_until,
                ..
            } if epoch == recalled => (epoch, unclaimed_until),
            Lease::Held { epoch, .. } if epoch > recalled => return,
            Lease::Held { .. } | Lease::None if inner.acquiring > 0 => {
                inner.recalled = inner.recalled.max(recalled);
                return;
            }
            Lease::Held { .. } | Lease::None => {
                inner.released = inner.released.max(recalled);
                core.session.release_lease(self.id(), recalled, false);
                return;
            }
        };
        inner.lease = Lease::Held {
            epoch,
            recalled: true,
            unclaimed_until,
        };
        if inner.writer.is_some() {
            let transaction = inner.transaction.as_ref();
            let number = transaction.map_or(0, |transaction| transaction.number());
            core.session.keep_lease(self.id(), epoch, number);
            return;
        }
        if unclaimed_until.is_some_and(|until| Moment::now() < until) {
            tokio::spawn(Arc::clone(self).give_back_unclaimed(epoch, Arc::clone(core)));
            return;
        }
        self.give_back(&mut inner, &core.session);
    }

    /// Gives a recalled lease back unless somebody is writing with it.
    pub async fn give_back_unclaimed(self: Arc<Self>, recalled: Epoch, core: Arc<Core>) {
        tokio::time::sleep(CLAIM_TIME).await;
        self.give_back_if_idle(recalled, &core.session);
    }

    fn give_back_if_idle(&self, recalled: Epoch, session: &Session) {
        let mut inner = self.inner.lock();
        let still =
            matches!(inner.lease, Lease::Held { epoch, recalled: true, .. } if epoch == recalled);
        if still && inner.writer.is_none() {
            self.give_back(&mut inner, session);
        }
    }

    /// The server took the lease away.
    pub(crate) fn lease_lost(&self, lost: Epoch) {
        let mut inner = self.inner.lock();
        if matches!(inner.lease, Lease::Held { epoch, .. } if epoch <= lost) {
            inner.lease = Lease::None;
            inner.released = inner.released.max(lost);
        }
    }

    /// Gives back a lease that nobody here believes in.
    pub(crate) fn refuse(&self, epoch: Epoch, session: &Session) {
        let mut inner = self.inner.lock();
        let is_held = matches!(inner.lease, Lease::Held { epoch: held, .. } if held >= epoch);
        if !is_held {
            inner.released = inner.released.max(epoch);
            session.release_lease(self.id(), epoch, false);
        }
    }
}

impl Inner {
    /// The connection wants the lease: from a try for the write lock to its success, or as long as the server keeps its ticket.
    fn wants(&mut self, writer: WriterId) {
        let now = Moment::now();
        let until = now.after(Duration::from_millis(TICKET_TTL_MS));
        self.wanting
            .retain(|(other, until)| *other != writer && now < *until);
        self.wanting.push((writer, until));
    }

    fn is_wanted(&self) -> bool {
        let now = Moment::now();
        self.wanting.iter().any(|(_, until)| now < *until)
    }
}
