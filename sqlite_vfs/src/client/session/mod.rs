//! The session of this process with one endpoint: one stream that is always driven, heartbeats, pushes, trust.
//!
//! ```text
//! Connecting --Welcome--> Up --stream broken--> Connecting ...      --goodbye--> Over
//!      \--refused--> Refused --after a pause--> Connecting
//! ```
//! * **S1** What the process believes about leases holds only while `now < trusted_until`, which is the sending of the last
//!   acknowledged heartbeat plus the TTL less a margin. The server counts from receipt, so it forgets later.
//! * **S2** A session that the server does not resume has lost its opens and floors, and its leases but for S3: every database is told before `Up` is
//!   announced, and is opened anew by its next call.
//!   Also one that an earlier server of the endpoint welcomes again: what was opened with the one in between it does not know.
//! * **S3** A lease that Welcome does not list is lost. One that it lists goes on, also in a session that begins: Hello names what the
//!   process believes in, and a server takes over what another one granted (PEER5 of `servers/core/src/peers.rs`).
//! * **S4** Another incarnation ends every database of the old one: its versions mean something else now.
//! * **S5** A Hello gives up all subscriptions: every database is told before it is sent.

mod stream;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pagewire_proto::pb::session_request::Message as Outgoing;
use pagewire_proto::{DatabaseId, Epoch, Incarnation, SessionId, StagingId, pb, version};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::counters::{COUNTERS, CallKind};
use crate::clock::Moment;
use crate::compression::Encodings;
use crate::error::{Error, Kind, Result};
pub(super) use stream::{nonsense, run};

/// What the server said in its Welcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// How long a lease lives without a heartbeat.
    pub lease_ttl: Duration,
    /// Identity of the store's content.
    pub incarnation: Incarnation,
    /// For people.
    pub server_name: String,
    /// For people.
    pub store_name: String,
    /// Old versions stay readable for a retention time.
    pub versions: bool,
    /// Strict subscribers are told of a commit before it becomes visible.
    pub strict_push: bool,
    /// The server has the call CommitEach.
    pub commit_each: bool,
    /// Pages of requests may come in these.
    pub encodings: Encodings,
}

#[derive(Clone, Debug)]
enum Phase {
    Connecting { last_failure: Option<String> },
    Up(Arc<Welcome>),
    Refused(Error),
    Over,
}

/// The way to the server of a stream that stands.
struct Outbox {
    sender: mpsc::Sender<pb::SessionRequest>,
    /// Of the protocol, as the Welcome of this stream says.
    minor: u32,
}

/// See the file's header.
pub struct Session {
    id: SessionId,
    phase: watch::Sender<Phase>,
    trusted_until: AtomicU64,
    /// When the newest heartbeat was sent that was acknowledged.
    acknowledged: AtomicU64,
    /// How often the session was begun anew, the first time included: opens, floors and pins of the one before are gone.
    lapses: AtomicU64,
    pins: Mutex<PinCalls>,
    /// Subscribes so far.
    subscriptions: AtomicU64,
    /// Of leases, that any server has told; 0 before the first one has.
    longest_ttl_ms: AtomicU64,
    /// Welcomes so far: a grant of a call that began under an earlier stream says nothing any more.
    streams: AtomicU64,
    /// Hellos so far that may have reached a server, answered or not.
    hellos: AtomicU64,
    /// Heartbeats sent so far.
    beats: AtomicU64,
    /// Closes of which it is not known that the server has them: open sequence, and the heartbeats sent before.
    closes: Mutex<HashMap<DatabaseId, (u64, u64)>>,
    incarnation: Mutex<Option<Incarnation>>,
    /// Which server of the endpoint sent the newest Welcome.
    welcomed_by: Mutex<Option<usize>>,
    outbox: Mutex<Option<Outbox>>,
    goodbye: AtomicBool,
    goodbye_wanted: Notify,
}

impl Session {
    pub(super) fn new() -> Result<Self> {
        let id =
            SessionId::random().map_err(|error| Error::new(Kind::CantOpen, error.to_string()))?;
        Ok(Self {
            id,
            phase: watch::Sender::new(Phase::Connecting { last_failure: None }),
            trusted_until: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            lapses: AtomicU64::new(0),
            pins: Mutex::new(PinCalls::default()),
            subscriptions: AtomicU64::new(0),
            longest_ttl_ms: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            hellos: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            closes: Mutex::new(HashMap::new()),
            incarnation: Mutex::new(None),
            welcomed_by: Mutex::new(None),
            outbox: Mutex::new(None),
            goodbye: AtomicBool::new(false),
            goodbye_wanted: Notify::new(),
        })
    }

    /// Chosen by us.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Whether leases may be believed in now (S1).
    pub fn is_trusted(&self) -> bool {
        Moment::now().0 < self.trusted_until.load(Ordering::Acquire)
    }

    /// How often the session was welcomed.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Acquire)
    }

    /// When the newest heartbeat was sent that was acknowledged: all news from before it have been taken in.
    pub fn acknowledged(&self) -> Moment {
        Moment(self.acknowledged.load(Ordering::Acquire))
    }

    /// How often the session was begun anew.
    pub fn lapses(&self) -> u64 {
        self.lapses.load(Ordering::Acquire)
    }

    /// In which session a pin was set by a call that began after so many lapses: the later one only if nothing was there before.
    pub fn lapses_of_pin(&self, before: u64) -> u64 {
        let first = before == 0 && self.hellos.load(Ordering::Acquire) == 1;
        if first { self.lapses() } else { before }
    }

    /// A call that pins goes out: no heartbeat lets go of what it pins while the answer is waited for (K1).
    pub fn pin_begins(&self) -> PinCall<'_> {
        let mut pins = self.pins.lock();
        pins.begun += 1;
        let sequence = pins.begun;
        pins.under_way.insert(sequence);
        PinCall {
            session: self,
            sequence,
        }
    }

    /// Whether an answer to a call that began after so many Welcomes can be believed. The first Welcome may come while the first
    /// open is under way; any other makes what was granted before it worth nothing (S3).
    pub fn is_same_stream(&self, before: u64) -> bool {
        let now = self.streams();
        now == before || (before == 0 && now == 1 && self.hellos.load(Ordering::Acquire) == 1)
    }

    /// Whether the stream stands.
    pub fn is_up(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Up(_))
    }

    /// What the server said, if the session stands.
    pub fn current_welcome(&self) -> Option<Arc<Welcome>> {
        match &*self.phase.borrow() {
            Phase::Up(welcome) => Some(Arc::clone(welcome)),
            Phase::Connecting { .. } | Phase::Refused(_) | Phase::Over => None,
        }
    }

    /// How long a commit has to be waited for: longer than any lease of another may be trusted.
    pub fn commit_patience(&self) -> Duration {
        self.current_welcome().map_or(Duration::ZERO, |welcome| {
            welcome.lease_ttl + Duration::from_secs(1)
        })
    }

    /// The same by the longest TTL that was told so far, also while the session is begun anew: a server that was started again trusts the leases
    /// of before.
    pub fn longest_patience(&self) -> Duration {
        let longest = Duration::from_millis(self.longest_ttl_ms.load(Ordering::Relaxed));
        longest + Duration::from_secs(1)
    }

    /// Waits until the session stands or is refused.
    pub async fn welcome(&self, deadline: Instant) -> Result<Arc<Welcome>> {
        let mut phase = self.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Up(welcome) => return Ok(Arc::clone(welcome)),
                Phase::Refused(error) => return Err(error.clone()),
                Phase::Over => return Err(Error::io("the session was closed")),
                Phase::Connecting { .. } => {}
            }
            let changed = tokio::time::timeout_at(deadline, phase.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                let reason = match &*phase.borrow() {
                    Phase::Connecting {
                        last_failure: Some(failure),
                    } => failure.clone(),
                    _ => "no answer before the deadline".to_owned(),
                };
                return Err(Error::new(
                    Kind::CantOpen,
                    format!("can't reach the page server: {reason}"),
                ));
            }
        }
    }

    /// Gives a lease back; the message is on its way when this returns, or the lease ends with the stream.
    pub fn release_lease(&self, id: DatabaseId, epoch: Epoch, wants_back: bool) {
        self.send(
            CallKind::Release,
            Outgoing::ReleaseLease(pb::ReleaseLease {
                database_id: id.to_wire(),
                epoch: epoch.get(),
                wants_back,
            }),
        );
    }

    /// Tells that a recalled lease is in use, by this transaction.
    pub fn keep_lease(&self, id: DatabaseId, epoch: Epoch, transaction: u64) {
        let message = pb::KeepLease {
            database_id: id.to_wire(),
            epoch: epoch.get(),
            transaction,
        };
        self.send(CallKind::Release, Outgoing::KeepLease(message));
    }

    pub(crate) fn close_database(&self, id: DatabaseId, open_sequence: u64, hot_pages: Vec<u32>) {
        // Until it is sent no heartbeat proves that it was taken.
        self.closes.lock().insert(id, (open_sequence, u64::MAX));
        self.send_close(id, open_sequence, hot_pages);
        let before = self.beats.load(Ordering::Acquire);
        if let Some(close) = self.closes.lock().get_mut(&id)
            && close.0 == open_sequence
        {
            close.1 = before;
        }
    }

    /// The number of the next subscription.
    pub fn next_subscription(&self) -> u64 {
        self.subscriptions.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Sends a message about a subscription; `false` if there is no stream that could take it.
    pub fn send_news(&self, message: Outgoing) -> bool {
        self.send(CallKind::Push, message)
    }

    /// Closes what was opened for one question.
    pub(crate) fn close_borrowed(&self, id: DatabaseId) {
        self.send_close(id, 0, Vec::new());
    }

    fn send_close(&self, id: DatabaseId, open_sequence: u64, hot_pages: Vec<u32>) {
        let message = pb::CloseDatabase {
            database_id: id.to_wire(),
            open_sequence,
            hot_pages,
        };
        self.send(CallKind::Close, Outgoing::CloseDatabase(message));
    }

    /// The heartbeat with this number was taken, and so was everything sent before it.
    fn beat_taken(&self, sequence: u64) {
        self.closes
            .lock()
            .retain(|_, (_, before)| *before >= sequence);
    }

    /// A new stream stands: what was sent on the old one may be lost. A session that was not resumed has nothing open.
    fn repeat_closes(&self, resumed: bool) {
        if !resumed {
            self.closes.lock().clear();
            return;
        }
        let closes: Vec<_> = self
            .closes
            .lock()
            .iter()
            .map(|(id, (open, _))| (*id, *open))
            .collect();
        for (id, open_sequence) in closes {
            self.send_close(id, open_sequence, Vec::new());
        }
    }

    pub(super) fn say_goodbye(&self) {
        self.goodbye.store(true, Ordering::SeqCst);
        self.trusted_until.store(0, Ordering::Release);
        self.goodbye_wanted.notify_one();
    }

    pub(super) async fn goodbye_taken(&self, patience: Duration) {
        let mut phase = self.phase.subscribe();
        let over = phase.wait_for(|phase| !matches!(phase, Phase::Up(_)));
        let _ = tokio::time::timeout(patience, over).await;
    }

    /// Tells that what was staged belongs to no transaction any more. Not to a server that may end the stream by it: there it stays until the next
    /// commit of its database, its close, the end of the session, or until there are too many.
    pub(crate) fn drop_stagings(&self, stagings: &[StagingId]) {
        let message = pb::DropStagings {
            staging_ids: stagings.iter().map(|id| id.to_wire()).collect(),
        };
        self.send_since(
            version::LEAVES_OUT_UNKNOWN,
            CallKind::Release,
            Outgoing::DropStagings(message),
        );
    }

    fn send(&self, kind: CallKind, message: Outgoing) -> bool {
        self.send_since(0, kind, message)
    }

    /// The same for what servers before a minor version are not sent.
    fn send_since(&self, minor: u32, kind: CallKind, message: Outgoing) -> bool {
        let message = pb::SessionRequest {
            message: Some(message),
        };
        // The version is that of the very stream which takes the message: a server may be replaced by an older one at any time.
        let outbox = self.outbox.lock();
        if outbox.as_ref().is_some_and(|outbox| outbox.minor < minor) {
            #[cfg(feature = "simulation")]
            crate::simulation::withheld();
            return false;
        }
        COUNTERS.background(kind);
        COUNTERS.bytes(kind, message.encoded_len(), 0);
        // What a stream does not take is made good by the next one: it tells which leases the server believes in, closes are
        // repeated, subscriptions end with their stream, and a lapsed session has nothing.
        outbox
            .as_ref()
            .is_some_and(|outbox| outbox.sender.try_send(message).is_ok())
    }
}

/// Calls that pin a version.
#[derive(Debug, Default)]
struct PinCalls {
    begun: u64,
    under_way: BTreeSet<u64>,
}

/// A call that pins, until its pin is known to its database or nobody waits for the answer any more.
pub struct PinCall<'a> {
    session: &'a Session,
    /// Goes with the call.
    pub sequence: u64,
}

impl Drop for PinCall<'_> {
    fn drop(&mut self) {
        self.session.pins.lock().under_way.remove(&self.sequence);
    }
}
