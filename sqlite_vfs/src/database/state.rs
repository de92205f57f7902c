//! What this process knows of one database: the newest version, and when that is enough to begin.
//!
//! Shared by its connections and by the session's task; it holds no connection to anything, so a task may drop it. The write
//! lease is in `lease.rs`, open snapshots in `pins.rs`, what the server tells in `subscription.rs`.
//!
//! * **D1** At most one connection of the process is the writer.
//! * **D2** A transaction begins without asking only if no commit of this process is under way or unsettled, the head is
//!   certain, and one of these holds: the lease is held and trusted; a strict subscription is trusting (`docs/versions.md`, S1);
//!   for a bounded reader, the head was the newest one at most so long ago (S7).
//! * **D3** `head` only rises. `log` is complete from its `since` up to `head`.
//! * **D4** The floor told to the server is never above an open snapshot, nor above what a transaction may still begin with;
//!   versions that a connection looks at below it are told one by one.
//! * **D5** Once `gone`, for ever gone: its versions have lost their meaning. Connections have to be opened anew.
//! * **D7** A recall that overtakes the grant it is for is remembered while an acquire is under way, and answered with a
//!   release otherwise.
//! * **D6** An epoch at or below `released` is never taken for held again.
//! * **D8** The identity is what versions belong to. Only a database that never had one takes another: the name of a database without a
//!   commit goes with the session that made it, and who asks for it again gets a new one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use pagewire_proto::pb::session_request::Message as Outgoing;
use pagewire_proto::{
    Changes, CommitId, CommitParticipant, DatabaseId, DatabaseName, Epoch, Page, Snapshot, Version,
    pb,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::disk::Bridged;
use super::lease::{Lease, WriterId};
use super::pins::{Pin, Pins};
use super::subscription::{News, Outcome, Subscription};
use crate::cache::disk::DiskFile;
use crate::cache::{CacheKey, ChangeLog, PageCache};
use crate::client::{Membership, Session};
use crate::clock::Moment;
use crate::error::{Error, Kind, Result};
use crate::settings::{Consistency, SubscribeWhen};

/// See the file's header.
pub struct DatabaseState {
    /// As it was opened.
    pub name: DatabaseName,
    /// Its identity; see D8.
    id: Mutex<DatabaseId>,
    /// For the page cache.
    pub key: CacheKey,
    /// What changed when.
    pub log: Arc<RwLock<ChangeLog>>,
    /// Its files, once they are wanted: `None` in it where they can't be used.
    pub(super) disk: OnceLock<Option<Arc<DiskFile>>>,
    /// What is known of versions before those of `log`, with a gap in between. Only where there are files.
    earlier: Mutex<Option<ChangeLog>>,
    pub(super) inner: Mutex<Inner>,
    /// Signalled when a lease comes by push.
    pub granted: Notify,
    /// Signalled to one of those who pause when the lease is there for him.
    pub(super) paused: Notify,
    /// Signalled when a Prepare has ended.
    pub told: Notify,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) gone: Option<String>,
    pub(super) head: Snapshot,
    pub(super) head_is_certain: bool,
    /// Rises whenever the head becomes uncertain: an answer to an earlier question does not make it certain again.
    pub(super) doubts: u64,
    pub(super) lease: Lease,
    pub(super) released: Epoch,
    /// Acquire calls under way, and the newest epoch recalled meanwhile (D7).
    pub(super) acquiring: usize,
    pub(super) recalled: Epoch,
    /// When another session wanted the lease last.
    pub(super) recalled_at: Moment,
    /// The newest version when a connection of this process stopped writing last, and when that was.
    pub(super) wrote_at: Option<(Version, Moment)>,
    /// The writer, with the epoch under which it began.
    pub(super) writer: Option<(WriterId, Epoch)>,
    /// The transaction of the writer.
    pub(super) transaction: Option<Arc<Membership>>,
    pub(super) committing: bool,
    pub(super) unsettled: Option<Unsettled>,
    pub(super) pins: Pins,
    pub(super) subscription: Subscription,
    /// When the newest question was sent whose answer was the head.
    asked_at: Moment,
    /// Until when a connection of this process counts as waiting for the write lock.
    pub(super) waiting_until: Moment,
    /// Connections of this process for which a lease that comes is claimed, and until when: each has a ticket, or tries again.
    pub(super) wanting: Vec<(WriterId, Moment)>,
}

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
    /// Wait a moment for the end of a Prepare, then look again.
    Await,
    /// Settle this commit first.
    Settle(Unsettled),
}

impl DatabaseState {
    /// A database as it was just opened.
    pub fn new(name: DatabaseName, id: DatabaseId, head: Snapshot) -> Self {
        static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
        Self {
            name,
            id: Mutex::new(id),
            key: CacheKey(NEXT_KEY.fetch_add(1, Ordering::Relaxed)),
            log: Arc::new(RwLock::new(ChangeLog::new(head.version))),
            disk: OnceLock::new(),
            earlier: Mutex::new(None),
            inner: Mutex::new(Inner {
                gone: None,
                head,
                head_is_certain: true,
                doubts: 0,
                lease: Lease::None,
                released: Epoch::NONE,
                acquiring: 0,
                recalled: Epoch::NONE,
                recalled_at: Moment::default(),
                wrote_at: None,
                writer: None,
                transaction: None,
                committing: false,
                unsettled: None,
                pins: Pins::default(),
                subscription: Subscription::default(),
                asked_at: Moment::default(),
                waiting_until: Moment::default(),
                wanting: Vec::new(),
            }),
            granted: Notify::new(),
            paused: Notify::new(),
            told: Notify::new(),
        }
    }

    /// Its identity.
    pub fn id(&self) -> DatabaseId {
        *self.id.lock()
    }

    /// Becomes the database that has the name now, if neither this one nor that one was ever committed to (D8).
    pub fn adopt(&self, id: DatabaseId, head: Snapshot) -> bool {
        let mut inner = self.inner.lock();
        let is_nothing = inner.gone.is_none()
            && inner.unsettled.is_none()
            && !inner.committing
            && inner.head.version == Version::ZERO
            && head.version == Version::ZERO;
        if !is_nothing {
            return false;
        }
        // Epochs begin anew with the identity: those of the old one say nothing.
        inner.lease = Lease::None;
        inner.released = Epoch::NONE;
        inner.recalled = Epoch::NONE;
        inner.wrote_at = None;
        if let Some((_, began)) = &mut inner.writer {
            *began = Epoch::NONE;
        }
        inner.subscription.ends();
        inner.asked_at = Moment::default();
        inner.doubt();
        *self.id.lock() = id;
        true
    }

    /// How often the head became uncertain: to be read before a question whose answer may make it certain.
    pub fn doubts(&self) -> u64 {
        self.inner.lock().doubts
    }

    /// The newest version known.
    pub fn head(&self) -> Snapshot {
        self.inner.lock().head
    }

    /// An error once the database has lost its meaning (D5).
    pub fn check(&self) -> Result<()> {
        self.inner.lock().check(&self.name)
    }

    /// D2. A reader does not wait for what became of a commit: it asks. With `may_await` it is told where news that would save
    /// asking is on its way.
    pub fn begin(
        self: &Arc<Self>,
        session: &Session,
        consistency: Consistency,
        only_reads: bool,
        may_await: bool,
    ) -> Result<Begin> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        if let Some(unsettled) = inner.unsettled.as_ref().filter(|_| !only_reads) {
            return Ok(Begin::Settle(unsettled.clone()));
        }
        let ask = Begin::Ask(inner.head.version, inner.doubts);
        if !inner.head_is_certain || inner.committing || inner.unsettled.is_some() {
            return Ok(ask);
        }
        if matches!(inner.lease, Lease::Held { .. }) && session.is_trusted() {
            return Ok(Begin::Ready(self.pin_head(&mut inner)));
        }
        let is_new_enough = match consistency {
            Consistency::Strict => {
                if may_await && inner.subscription.is_warned() && session.is_trusted() {
                    return Ok(Begin::Await);
                }
                inner.subscription.is_trusting() && session.is_trusted()
            }
            Consistency::Bounded(most) => Moment::now() < inner.known_at(session).after(most),
        };
        if is_new_enough {
            inner.subscription.used();
            return Ok(Begin::Ready(self.pin_head(&mut inner)));
        }
        Ok(ask)
    }

    /// A transaction is about to ask; subscribes where that saves asking again and again.
    pub fn asks(&self, session: &Session, consistency: Consistency, when: SubscribeWhen) {
        let strict = consistency == Consistency::Strict;
        let is_possible = session
            .current_welcome()
            .is_some_and(|welcome| welcome.strict_push || !strict);
        let mut inner = self.inner.lock();
        let now = Moment::now();
        if !inner.subscription.asked(now, strict, when) || !is_possible {
            return;
        }
        if let Some(subscription) = inner.subscription.number() {
            self.unsubscribe(session, subscription);
        }
        let subscription = session.next_subscription();
        let sent = session.send_news(Outgoing::Subscribe(pb::Subscribe {
            database_id: self.id().to_wire(),
            known_version: inner.head.version.get(),
            strict,
            subscription,
            want_page_1: true,
        }));
        if sent {
            let doubts = inner.doubts;
            inner.subscription.sent(subscription, strict, now, doubts);
        } else {
            inner.subscription.ends();
        }
    }

    /// How far a subscription is, for people.
    pub fn subscription(&self) -> &'static str {
        self.inner.lock().subscription.describe()
    }

    fn unsubscribe(&self, session: &Session, subscription: u64) {
        session.send_news(Outgoing::Unsubscribe(pb::Unsubscribe {
            database_id: self.id().to_wire(),
            subscription,
        }));
    }

    /// Takes over the answer to [`Begin::Ask`], asked at `asked_at`, and pins the newest version.
    pub fn begin_with(
        self: &Arc<Self>,
        head: Snapshot,
        changes: &Changes,
        doubts: u64,
        asked_at: Moment,
    ) -> Result<Pin> {
        let mut inner = self.inner.lock();
        inner.check(&self.name)?;
        self.advance(&mut inner, head, changes);
        inner.become_certain(doubts);
        inner.asked_at = inner.asked_at.max(asked_at);
        Ok(self.pin_head(&mut inner))
    }

    /// A page came with the news of a version, at which it holds.
    pub(crate) fn page_came(&self, cache: &PageCache, page: Page, at: Version) {
        // Of a database that has lost its meaning nothing is read any more.
        // The rest of the message is not kept with it.
        let content = bytes::Bytes::copy_from_slice(&page.content);
        cache.put(self.key, page.number, page.version, at, content);
    }

    /// A commit is under way: nobody begins without asking.
    pub fn commit_begins(&self) {
        self.inner.lock().committing = true;
    }

    /// The commit was not applied so far, and never will be unless it is sent again.
    pub fn commit_pauses(&self) {
        self.inner.lock().committing = false;
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

    /// D3. The changes are complete from some version at or below our head.
    pub(super) fn advance(&self, inner: &mut Inner, head: Snapshot, changes: &Changes) {
        if head.version > inner.head.version {
            let forgotten = self.log.write().advance(head.version, changes);
            inner.head = head;
            if let Some(Some(file)) = self.disk.get() {
                file.head_moved(head.version);
                if let Some(forgotten) = forgotten {
                    self.knows_of_earlier(forgotten);
                }
            }
        }
    }

    /// Keeps what is known of earlier versions until the gap is bridged (Q4 of `cache/disk/mod.rs`).
    pub(super) fn knows_of_earlier(&self, log: ChangeLog) {
        let mut earlier = self.earlier.lock();
        // The oldest one bridges more: what was asked since its end covers the others.
        if earlier
            .as_ref()
            .is_none_or(|there| log.head() < there.head())
        {
            *earlier = Some(log);
        }
    }

    /// Takes it out, to be joined, or to ask what has changed since.
    pub(super) fn take_earlier(&self) -> Option<ChangeLog> {
        self.earlier.lock().take()
    }

    /// Makes an earlier log count where there is no gap. One that goes beyond the head known here proves nothing before the
    /// server has answered as late a one (Q9).
    pub(super) fn join_if_known(&self, earlier: &ChangeLog) -> bool {
        earlier.head() <= self.head().version && self.log.write().join(earlier)
    }

    /// Makes an earlier log count: the changes are those from its head up to `head`.
    pub(super) fn join(&self, mut earlier: ChangeLog, head: Version, changes: &Changes) -> Bridged {
        if head < earlier.head() {
            return Bridged::OtherHistory;
        }
        if earlier.advance(head, changes).is_some() {
            return Bridged::TooOld;
        }
        match self.log.write().join(&earlier) {
            true => Bridged::Joined,
            false => Bridged::TooOld,
        }
    }

    /// What the server tells of a subscription.
    pub(crate) fn told(&self, number: u64, news: News, session: &Session) {
        let mut inner = self.inner.lock();
        let warned = inner.subscription.is_warned();
        match inner.subscription.told(number, news, Moment::now()) {
            Outcome::Quiet => {}
            Outcome::Advance(head, changes) => self.advance(&mut inner, head, &changes),
            Outcome::AdvanceAndEnd(head, changes) => {
                self.advance(&mut inner, head, &changes);
                self.unsubscribe(session, number);
            }
            Outcome::Begin(head, changes, doubts) => {
                self.advance(&mut inner, head, &changes);
                inner.become_certain(doubts);
            }
            Outcome::Acknowledge(version) => {
                session.send_news(Outgoing::PrepareAck(pb::PrepareAck {
                    database_id: self.id().to_wire(),
                    subscription: number,
                    version: version.get(),
                }));
            }
            Outcome::End => self.unsubscribe(session, number),
        }
        let over = warned && !inner.subscription.is_warned();
        drop(inner);
        if over {
            self.told.notify_waiters();
        }
    }

    /// The stream of the session is lost: nothing is told any more.
    pub(crate) fn subscription_ends(&self) {
        self.inner.lock().subscription.ends();
        self.told.notify_waiters();
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

    /// The database behind the name is another one now, or the store lost its content (S4).
    pub(crate) fn store_was_replaced(&self) {
        self.lose("the server has another store now");
    }

    /// D5.
    pub fn lose(&self, reason: &str) {
        let mut inner = self.inner.lock();
        inner.lease = Lease::None;
        inner.subscription.ends();
        inner.gone.get_or_insert_with(|| reason.to_owned());
    }
}

impl Inner {
    /// When the head known here was the newest one for sure.
    fn known_at(&self, session: &Session) -> Moment {
        // News from before a heartbeat that was answered have been taken in; so has what Subscribed said.
        let told = self.subscription.open_since();
        let told = told.map(|since| since.max(session.acknowledged()));
        self.asked_at.max(told.unwrap_or_default())
    }

    pub(super) fn doubt(&mut self) {
        self.head_is_certain = false;
        self.doubts += 1;
    }

    pub(super) fn become_certain(&mut self, doubts: u64) {
        self.head_is_certain |= self.doubts == doubts;
    }

    pub(super) fn check(&self, name: &DatabaseName) -> Result<()> {
        match &self.gone {
            None => Ok(()),
            Some(reason) => Err(Error::new(
                Kind::Io,
                format!("{name}: {reason}: close the connection and open it again"),
            )),
        }
    }
}
