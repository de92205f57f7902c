//! What this process knows of one database: the newest version, the write lease, open snapshots.
//!
//! Shared by its connections and by the session's task; it holds no connection to anything, so a task may drop it.
//!
//! ```text
//!            open, acquire, push                     end of a write after a recall, recall while idle
//! lease None ------------------> Held{epoch} -------------------------------------------------------> None
//!                                  |  ^   recall during a write: Held{recalled}
//!                                  +--+   lost, session anew: None
//! ```
//! * **D1** At most one connection of the process is the writer.
//! * **D2** A transaction begins without asking only if: the lease is held and trusted (S1), no commit of this process is
//!   under way or unsettled, and the head is certain.
//! * **D3** `head` only rises. `log` is complete from its `since` up to `head`.
//! * **D4** The floor told to the server is never above an open snapshot, nor above what a transaction may still begin with.
//! * **D5** Once `gone`, for ever gone: its versions have lost their meaning. Connections have to be opened anew.
//! * **D7** A recall that overtakes the grant it is for is remembered while an acquire is under way, and answered with a
//!   release otherwise.
//! * **D6** An epoch at or below `released` is never taken for held again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pagewire_proto::limits::TICKET_TTL_MS;
use pagewire_proto::{
    Changes, CommitId, CommitParticipant, DatabaseId, DatabaseName, Epoch, LeaseGrant, Snapshot,
    Version,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::cache::{CacheKey, ChangeLog};
use crate::client::{Core, Session};
use crate::clock::Moment;
use crate::error::{Error, Kind, Result};

/// How long a lease that came by push waits for the connection that wanted it: SQLite's busy handler sleeps up to 100 ms.
const CLAIM_TIME: Duration = Duration::from_millis(250);

/// See the file's header.
pub struct DatabaseState {
    /// As it was opened.
    pub name: DatabaseName,
    /// Its identity.
    pub id: DatabaseId,
    /// For the page cache.
    pub key: CacheKey,
    /// What changed when.
    pub log: RwLock<ChangeLog>,
    inner: Mutex<Inner>,
    /// Signalled when a lease comes by push.
    pub granted: Notify,
}

#[derive(Debug)]
struct Inner {
    gone: Option<String>,
    head: Snapshot,
    head_is_certain: bool,
    /// Rises whenever the head becomes uncertain: an answer to an earlier question does not make it certain again.
    doubts: u64,
    lease: Lease,
    released: Epoch,
    /// Acquire calls under way, and the newest epoch recalled meanwhile (D7).
    acquiring: usize,
    recalled: Epoch,
    /// The writer, with the epoch under which it began.
    writer: Option<(WriterId, Epoch)>,
    committing: bool,
    unsettled: Option<Unsettled>,
    pins: BTreeMap<Version, usize>,
    /// Until when a connection of this process counts as waiting for the write lock.
    waiting_until: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
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

/// A commit whose outcome is not known.
#[derive(Clone, Debug)]
pub struct Unsettled {
    /// The commit.
    pub id: CommitId,
    /// All of its databases.
    pub participants: Vec<CommitParticipant>,
    /// Their names, in the same order.
    pub names: Vec<DatabaseName>,
}

/// What a connection that wants to begin has to do.
pub enum Begin {
    /// Nothing: the snapshot is pinned.
    Ready(Pin),
    /// Ask the server what is new since this version; the doubts say whether the answer is certain.
    Ask(Version, u64),
    /// Settle this commit first.
    Settle(Unsettled),
}

/// What a connection that wants to write has to do.
#[derive(Debug)]
pub enum BeginWrite {
    /// Nothing: it is the writer.
    Ready,
    /// Ask for the lease, naming the newest known version and the newest released epoch.
    Acquire(Version, Epoch),
    /// Settle this commit first.
    Settle(Unsettled),
}

impl DatabaseState {
    /// A database as it was just opened.
    pub fn new(name: DatabaseName, id: DatabaseId, head: Snapshot) -> Self {
        static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
        Self {
            name,
            id,
            key: CacheKey(NEXT_KEY.fetch_add(1, Ordering::Relaxed)),
            log: RwLock::new(ChangeLog::new(head.version)),
            inner: Mutex::new(Inner {
                gone: None,
                head,
                head_is_certain: true,
                doubts: 0,
                lease: Lease::None,
                released: Epoch::NONE,
                acquiring: 0,
                recalled: Epoch::NONE,
                writer: None,
                committing: false,
                unsettled: None,
                pins: BTreeMap::new(),
                waiting_until: Moment(0),
            }),
            granted: Notify::new(),
        }
    }

    /// The oldest version that must stay readable for this process (D4).
    pub fn floor(&self) -> Version {
        let inner = self.inner.lock();
        let oldest = inner.pins.keys().next().copied();
        oldest.map_or(inner.head.version, |oldest| oldest.min(inner.head.version))
    }

    /// How often the head became uncertain: to be read before a question whose answer may make it certain.
    pub fn doubts(&self) -> u64 {
        self.inner.lock().doubts
    }

    /// The newest epoch given back; one at or below it is never taken for held (D6).
    pub fn released(&self) -> Epoch {
        let inner = self.inner.lock();
        match inner.lease {
            // The database is being closed: the lease goes with it.
            Lease::Held { epoch, .. } => inner.released.max(epoch),
            Lease::None => inner.released,
        }
    }

    /// Epochs that an earlier open of the database has given back.
    pub fn remember_released(&self, epoch: Epoch) {
        let mut inner = self.inner.lock();
        inner.released = inner.released.max(epoch);
    }

    /// The newest version known.
    pub fn head(&self) -> Snapshot {
        self.inner.lock().head
    }

    /// An error once the database has lost its meaning (D5).
    pub fn check(&self) -> Result<()> {
        self.inner.lock().check(&self.name)
    }

    /// D2.
    pub fn begin(self: &Arc<Self>, session: &Session) -> Result<Begin> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        if let Some(unsettled) = &inner.unsettled {
            return Ok(Begin::Settle(unsettled.clone()));
        }
        let may_trust =
            inner.head_is_certain && !inner.committing && matches!(inner.lease, Lease::Held { .. });
        if may_trust && session.is_trusted() {
            Ok(Begin::Ready(self.pin_head(&mut inner)))
        } else {
            Ok(Begin::Ask(inner.head.version, inner.doubts))
        }
    }

    /// Takes over the answer to [`Begin::Ask`] and pins the newest version.
    pub fn begin_with(
        self: &Arc<Self>,
        head: Snapshot,
        changes: &Changes,
        doubts: u64,
    ) -> Result<Pin> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        self.advance(&mut inner, head, changes);
        inner.become_certain(doubts);
        Ok(self.pin_head(&mut inner))
    }

    /// Pins the newest version known, for a connection that never locks.
    pub fn pin_known_head(self: &Arc<Self>) -> Pin {
        let mut inner = self.inner.lock();
        self.pin_head(&mut inner)
    }

    /// Pins a version that is the newest one or was so a moment ago, and that the floor still covers.
    pub fn pin(self: &Arc<Self>, snapshot: Snapshot) -> Pin {
        *self.inner.lock().pins.entry(snapshot.version).or_default() += 1;
        Pin {
            state: Arc::clone(self),
            snapshot,
        }
    }

    fn pin_head(self: &Arc<Self>, inner: &mut Inner) -> Pin {
        *inner.pins.entry(inner.head.version).or_default() += 1;
        Pin {
            state: Arc::clone(self),
            snapshot: inner.head,
        }
    }

    /// D1: makes the connection the writer if its snapshot is the newest version and the lease is there.
    pub fn begin_write(
        &self,
        session: &Session,
        writer: WriterId,
        snapshot: Version,
    ) -> Result<BeginWrite> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        if let Some(unsettled) = &inner.unsettled {
            return Ok(BeginWrite::Settle(unsettled.clone()));
        }
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
                self.claim(&mut inner, session, writer, epoch, recalled);
                Ok(BeginWrite::Ready)
            }
            Lease::Held { .. } | Lease::None => {
                Ok(BeginWrite::Acquire(inner.head.version, inner.released))
            }
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
            session.release_lease(self.id, inner.recalled, false);
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
    /// the answer worth nothing: the stream was made anew, perhaps without this lease (S3), or a commit became uncertain.
    pub fn lease_acquired(&self, grant: &LeaseGrant, doubts: u64) -> Result<bool> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        if inner.doubts != doubts {
            return Ok(false);
        }
        self.take_lease(&mut inner, grant, None);
        inner.become_certain(doubts);
        Ok(true)
    }

    /// Makes the connection the writer with a lease that a call has just granted, trusted or not: the commit checks the
    /// epoch, and the head of the grant was the newest a moment ago.
    pub fn begin_write_with(
        &self,
        session: &Session,
        writer: WriterId,
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
                self.claim(&mut inner, session, writer, epoch, recalled);
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
        writer: WriterId,
        epoch: Epoch,
        recalled: bool,
    ) {
        if recalled && inner.writer.is_none() {
            // Those who wait for an answer learn that a transaction is running.
            session.keep_lease(self.id, epoch);
        }
        inner.lease = Lease::Held {
            epoch,
            recalled,
            unclaimed_until: None,
        };
        inner.writer = Some((writer, epoch));
    }

    /// The connection is the writer no more; a recalled lease goes back now.
    pub fn end_write(&self, writer: WriterId, session: &Session) {
        let mut inner = self.inner.lock();
        if !inner.writer.is_some_and(|(current, _)| current == writer) {
            return;
        }
        inner.writer = None;
        if matches!(inner.lease, Lease::Held { recalled: true, .. }) {
            self.give_back(&mut inner, session);
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

    /// Whether a connection of this process is writing.
    pub fn has_writer(&self) -> bool {
        self.inner.lock().writer.is_some()
    }

    /// A commit is under way: nobody begins without asking.
    pub fn commit_begins(&self) {
        self.inner.lock().committing = true;
    }

    /// The commit was applied and made this version.
    pub fn commit_applied(&self, head: Snapshot, changes: &Changes) {
        let mut inner = self.inner.lock();
        inner.committing = false;
        self.advance(&mut inner, head, changes);
    }

    /// The commit was not applied, or nobody knows.
    pub fn commit_failed(&self, unsettled: Option<Unsettled>) {
        let mut inner = self.inner.lock();
        inner.committing = false;
        inner.doubt();
        inner.unsettled = unsettled;
    }

    /// An unsettled commit was settled, or never will be.
    pub fn settled(&self, id: CommitId, epoch: Option<Epoch>) {
        let mut inner = self.inner.lock();
        if inner
            .unsettled
            .as_ref()
            .is_some_and(|unsettled| unsettled.id == id)
        {
            inner.unsettled = None;
            inner.doubt();
        }
        if let Some(epoch) = epoch {
            Self::take_epoch(&mut inner, epoch);
        }
    }

    /// The epoch after a commit was resolved as aborted; 0 if the lease is not ours any more.
    pub fn epoch_advanced(&self, epoch: Epoch) {
        Self::take_epoch(&mut self.inner.lock(), epoch);
    }

    fn take_epoch(inner: &mut Inner, now: Epoch) {
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
            session.release_lease(self.id, epoch, Moment::now() < inner.waiting_until);
        }
    }

    /// D3. The changes are complete from some version at or below our head.
    fn advance(&self, inner: &mut Inner, head: Snapshot, changes: &Changes) {
        if head.version > inner.head.version {
            self.log.write().advance(head.version, changes);
            inner.head = head;
        }
    }

    // What the session's task tells.

    /// A lease came by push for a ticket of ours.
    pub(crate) fn lease_granted(self: &Arc<Self>, grant: LeaseGrant, core: &Arc<Core>) {
        let taken = {
            let mut inner = self.inner.lock();
            let unclaimed_until = Some(Moment::now().after(CLAIM_TIME));
            let taken = self.take_lease(&mut inner, &grant, unclaimed_until);
            if taken {
                inner.head_is_certain = inner.unsettled.is_none();
            }
            taken
        };
        if taken {
            self.granted.notify_waiters();
        } else {
            core.session.release_lease(self.id, grant.epoch, false);
        }
    }

    /// Another session wants the lease.
    pub(crate) fn lease_recalled(self: &Arc<Self>, recalled: Epoch, core: &Arc<Core>) {
        let mut inner = self.inner.lock();
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
                core.session.release_lease(self.id, recalled, false);
                return;
            }
        };
        inner.lease = Lease::Held {
            epoch,
            recalled: true,
            unclaimed_until,
        };
        if inner.writer.is_some() {
            core.session.keep_lease(self.id, epoch);
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

    /// What the session says after its stream was made anew (S3). Returns a lease that the server believes in and nobody here
    /// does: its release was lost with the old stream.
    pub(crate) fn session_says(&self, held: Option<Epoch>) -> Option<Epoch> {
        let mut inner = self.inner.lock();
        inner.doubt();
        match inner.lease {
            Lease::Held { epoch, .. } if held == Some(epoch) => None,
            Lease::Held { epoch, .. } => {
                inner.lease = Lease::None;
                inner.released = inner.released.max(epoch);
                held.filter(|held| *held <= inner.released)
            }
            Lease::None => held.filter(|held| *held <= inner.released || inner.acquiring == 0),
        }
    }

    /// Gives back a lease that nobody here believes in.
    pub(crate) fn refuse(&self, epoch: Epoch, session: &Session) {
        let mut inner = self.inner.lock();
        let is_held = matches!(inner.lease, Lease::Held { epoch: held, .. } if held >= epoch);
        if !is_held {
            inner.released = inner.released.max(epoch);
            session.release_lease(self.id, epoch, false);
        }
    }

    /// The database behind the name is another one now, or the store lost its content (S4).
    pub(crate) fn store_was_replaced(&self) {
        self.lose("the server has another store now");
    }

    /// D5.
    pub fn lose(&self, reason: &str) {
        let mut inner = self.inner.lock();
        inner.lease = Lease::None;
        inner.gone.get_or_insert_with(|| reason.to_owned());
    }
}

impl Inner {
    fn doubt(&mut self) {
        self.head_is_certain = false;
        self.doubts += 1;
    }

    fn become_certain(&mut self, doubts: u64) {
        self.head_is_certain |= self.doubts == doubts;
    }

    fn check(&self, name: &DatabaseName) -> Result<()> {
        match &self.gone {
            None => Ok(()),
            Some(reason) => Err(Error::new(
                Kind::Io,
                format!("{name}: {reason}: close the connection and open it again"),
            )),
        }
    }
}

/// An open snapshot: while it lives the server keeps the version.
pub struct Pin {
    state: Arc<DatabaseState>,
    snapshot: Snapshot,
}

impl Pin {
    /// The version and its size.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut inner = self.state.inner.lock();
        if let Some(count) = inner.pins.get_mut(&self.snapshot.version) {
            *count -= 1;
            if *count == 0 {
                inner.pins.remove(&self.snapshot.version);
            }
        }
    }
}
