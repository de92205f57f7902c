//! The session of this process with one endpoint: one stream that is always driven, heartbeats, pushes, trust.
//!
//! ```text
//! Connecting --Welcome--> Up --stream broken--> Connecting ...      --goodbye--> Over
//!      \--refused--> Refused --after a pause--> Connecting
//! ```
//! * **S1** What the process believes about leases holds only while `now < trusted_until`, which is the sending of the last
//!   acknowledged heartbeat plus the TTL less a margin. The server counts from receipt, so it forgets later.
//! * **S2** A session that the server does not resume has lost its leases, opens and floors: every database is told before `Up` is
//!   announced, and is opened anew by its next call.
//! * **S3** A lease that Welcome does not list is lost.
//! * **S4** Another incarnation ends every database of the old one: its versions mean something else now.
//! * **S5** A Hello gives up all subscriptions: every database is told before it is sent.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pagewire_proto::pb::session_request::Message as Outgoing;
use pagewire_proto::pb::session_response::Message as Incoming;
use pagewire_proto::{DatabaseId, Epoch, Incarnation, SessionId, StagingId, pb, version};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::Core;
use super::counters::{COUNTERS, CallKind};
use super::news::news;
use crate::clock::Moment;
use crate::error::{CallError, Error, Kind, Result};

const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// Messages waiting for a stream that does not take them: the stream is broken long before.
const OUTBOX: usize = 4096;

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
}

#[derive(Clone, Debug)]
enum Phase {
    Connecting { last_failure: Option<String> },
    Up(Arc<Welcome>),
    Refused(Error),
    Over,
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
    /// Welcomes so far: a grant of a call that began under an earlier stream says nothing any more.
    streams: AtomicU64,
    /// Hellos so far, answered or not.
    hellos: AtomicU64,
    /// Heartbeats sent so far.
    beats: AtomicU64,
    /// Closes of which it is not known that the server has them: open sequence, and the heartbeats sent before.
    closes: Mutex<HashMap<DatabaseId, (u64, u64)>>,
    incarnation: Mutex<Option<Incarnation>>,
    outbox: Mutex<Option<mpsc::Sender<pb::SessionRequest>>>,
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
            streams: AtomicU64::new(0),
            hellos: AtomicU64::new(0),
            beats: AtomicU64::new(0),
            closes: Mutex::new(HashMap::new()),
            incarnation: Mutex::new(None),
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

    /// Tells that a recalled lease is in use.
    pub fn keep_lease(&self, id: DatabaseId, epoch: Epoch) {
        let message = pb::KeepLease {
            database_id: id.to_wire(),
            epoch: epoch.get(),
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

    /// Tells that what was staged belongs to no transaction any more.
    pub(crate) fn drop_stagings(&self, stagings: &[StagingId]) {
        let message = pb::DropStagings {
            staging_ids: stagings.iter().map(|id| id.to_wire()).collect(),
        };
        self.send(CallKind::Release, Outgoing::DropStagings(message));
    }

    fn send(&self, kind: CallKind, message: Outgoing) -> bool {
        let message = pb::SessionRequest {
            message: Some(message),
        };
        COUNTERS.background(kind);
        COUNTERS.bytes(kind, message.encoded_len(), 0);
        // What a stream does not take is made good by the next one: it tells which leases the server believes in, closes are
        // repeated, subscriptions end with their stream, and a lapsed session has nothing.
        let outbox = self.outbox.lock();
        outbox
            .as_ref()
            .is_some_and(|outbox| outbox.try_send(message).is_ok())
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

/// The task that keeps the session up for as long as the client lives.
pub(super) async fn run(weak: Weak<Core>) {
    let mut backoff = Duration::from_millis(10);
    loop {
        let Some(core) = weak.upgrade() else { return };
        let begun = Instant::now();
        let outcome = one_stream(&core).await;
        *core.session.outbox.lock() = None;
        // S5. Nothing can be subscribed to before there is an outbox again.
        for (_, database) in core.all_databases() {
            database.subscription_ends();
        }
        if core.session.goodbye.load(Ordering::SeqCst) {
            core.session.phase.send_replace(Phase::Over);
            return;
        }
        match outcome {
            Ok(()) => {
                core.session.phase.send_replace(Phase::Connecting {
                    last_failure: Some("the stream ended".to_owned()),
                });
            }
            Err(error) if error.explicit && !error.is_transient() => {
                core.session
                    .phase
                    .send_replace(Phase::Refused(Error::from(error).within(&core.endpoint)));
            }
            Err(error) => {
                core.session.phase.send_replace(Phase::Connecting {
                    last_failure: Some(error.message),
                });
            }
        }
        if begun.elapsed() > Duration::from_secs(1) {
            backoff = Duration::from_millis(10);
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = core.session.goodbye_wanted.notified() => {
                core.session.phase.send_replace(Phase::Over);
                return;
            }
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

async fn one_stream(core: &Arc<Core>) -> std::result::Result<(), CallError> {
    let session = &core.session;
    let (sender, receiver) = mpsc::channel(OUTBOX);
    let hello = pb::SessionRequest {
        message: Some(Outgoing::Hello(hello(session.id))),
    };
    COUNTERS.background(CallKind::Session);
    COUNTERS.bytes(CallKind::Session, hello.encoded_len(), 0);
    session.hellos.fetch_add(1, Ordering::AcqRel);
    let _ = sender.try_send(hello);
    let sent_at = Moment::now();
    let mut stub = core.stub.clone();
    let patience = Duration::from_secs(10);
    let mut stream = tokio::select! {
        response = stub.session(ReceiverStream::new(receiver)) => {
            response.map_err(|status| CallError::from_status(&status))?.into_inner()
        }
        // A proxy may take the stream and never answer.
        () = tokio::time::sleep(patience) => return Err(CallError::timeout(patience)),
        () = session.goodbye_wanted.notified() => return Ok(()),
    };
    let first = tokio::select! {
        first = next(&mut stream) => first?,
        () = tokio::time::sleep(patience) => return Err(CallError::timeout(patience)),
        () = session.goodbye_wanted.notified() => return Ok(()),
    };
    let Some(Incoming::Welcome(wire)) = first else {
        return Err(nonsense("the server did not begin with a Welcome"));
    };
    COUNTERS.bytes(CallKind::Session, 0, wire.encoded_len());
    let Accepted {
        welcome,
        resumed,
        unwanted,
    } = accept(core, wire)?;
    let ttl = welcome.lease_ttl;
    *session.outbox.lock() = Some(sender.clone());
    for (id, epoch) in unwanted {
        // Also remembered as released, unless the database is open and has asked for it again meanwhile.
        if let Some(database) = core.database_or_release(id, epoch) {
            database.refuse(epoch, session);
        }
    }
    session.repeat_closes(resumed);
    trust(session, sent_at, ttl);
    session.phase.send_replace(Phase::Up(welcome));
    up(core, stream, sender, ttl).await
}

/// Heartbeats out, pushes in, until the stream breaks or goodbye was said.
async fn up(
    core: &Arc<Core>,
    mut stream: Streaming<pb::SessionResponse>,
    sender: mpsc::Sender<pb::SessionRequest>,
    ttl: Duration,
) -> std::result::Result<(), CallError> {
    let session = &core.session;
    let mut beat = tokio::time::interval(ttl / 4);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut under_way: HashMap<u64, Moment> = HashMap::new();
    let mut last_heard = Instant::now();
    loop {
        tokio::select! {
            message = next(&mut stream) => {
                last_heard = Instant::now();
                match message? {
                    None => return Ok(()),
                    Some(Incoming::HeartbeatAck(ack)) => {
                        if let Some(sent_at) = under_way.remove(&ack.sequence) {
                            trust(session, sent_at, ttl);
                            session.acknowledged.fetch_max(sent_at.0, Ordering::AcqRel);
                            session.beat_taken(ack.sequence);
                        }
                        under_way.retain(|sequence, _| *sequence > ack.sequence);
                    }
                    Some(message) => news(core, message)?,
                }
            }
            _ = beat.tick() => {
                if last_heard.elapsed() > ttl * 2 {
                    // A peer that is silent for so long is gone, whatever TCP says.
                    return Err(CallError::timeout(last_heard.elapsed()));
                }
                let sequence = session.beats.fetch_add(1, Ordering::AcqRel) + 1;
                let message = pb::SessionRequest { message: Some(Outgoing::Heartbeat(heartbeat(core, sequence))) };
                COUNTERS.background(CallKind::Heartbeat);
                COUNTERS.bytes(CallKind::Heartbeat, message.encoded_len(), 0);
                under_way.insert(sequence, Moment::now());
                let _ = sender.try_send(message);
            }
            () = session.goodbye_wanted.notified() => {
                let goodbye = pb::SessionRequest { message: Some(Outgoing::Goodbye(pb::Goodbye {})) };
                let _ = sender.try_send(goodbye);
                // The server ends the stream when it has taken the goodbye.
                while let Ok(Some(_)) = next(&mut stream).await {}
                return Ok(());
            }
        }
    }
}

fn trust(session: &Session, sent_at: Moment, ttl: Duration) {
    if session.goodbye.load(Ordering::SeqCst) {
        return;
    }
    // The margin covers clocks that do not run at quite the same rate.
    let until = sent_at.after(ttl).before(ttl / 8);
    session.trusted_until.fetch_max(until.0, Ordering::AcqRel);
}

/// S2, S3 and S4.
fn accept(core: &Arc<Core>, wire: pb::Welcome) -> std::result::Result<Accepted, CallError> {
    version::check("server", wire.protocol_major, wire.protocol_minor).map_err(|invalid| {
        CallError {
            reason: pagewire_proto::status::Reason::ProtocolVersion,
            explicit: true,
            message: invalid.problem,
        }
    })?;
    let invalid = |invalid: pagewire_proto::Invalid| nonsense(&invalid.to_string());
    let incarnation = Incarnation::try_from(&wire.incarnation[..]).map_err(invalid)?;
    if wire.lease_ttl_ms < 50 {
        return Err(nonsense("a lease TTL below 50 ms can't be kept"));
    }
    let mut held: HashMap<DatabaseId, Epoch> = HashMap::new();
    for lease in &wire.leases {
        held.insert(
            DatabaseId::try_from(&lease.database_id[..]).map_err(invalid)?,
            Epoch::new(lease.epoch),
        );
    }
    // Everything is valid: now it counts.
    let session = &core.session;
    let before = session.incarnation.lock().replace(incarnation);
    let other = before.is_some_and(|before| before != incarnation);
    if !wire.resumed {
        session.trusted_until.store(0, Ordering::Release);
        session.lapses.fetch_add(1, Ordering::AcqRel);
    }
    session.streams.fetch_add(1, Ordering::AcqRel);
    let mut unwanted = Vec::new();
    for (id, database) in core.all_databases() {
        if other {
            database.store_was_replaced();
        } else if let Some(epoch) = database.session_says(held.remove(&id)) {
            unwanted.push((id, epoch));
        }
    }
    // What the server believes that we have and nobody here knows of: its release was lost with the old stream.
    unwanted.extend(held);
    let resumed = wire.resumed;
    let store = wire.store.unwrap_or_default();
    let welcome = Arc::new(Welcome {
        lease_ttl: Duration::from_millis(u64::from(wire.lease_ttl_ms)),
        incarnation,
        server_name: wire.server_name,
        store_name: store.store_name,
        versions: store.versions,
        strict_push: store.strict_push,
    });
    Ok(Accepted {
        welcome,
        resumed,
        unwanted,
    })
}

/// What follows from a Welcome.
struct Accepted {
    welcome: Arc<Welcome>,
    resumed: bool,
    /// Leases to be given back as soon as something can be sent.
    unwanted: Vec<(DatabaseId, Epoch)>,
}

fn heartbeat(core: &Core, sequence: u64) -> pb::Heartbeat {
    // Read before the pins: a call that ends in between has its pin among them.
    let pin_sequence = {
        let pins = core.session.pins.lock();
        let first = pins.under_way.first();
        first.map_or(pins.begun, |under_way| under_way - 1)
    };
    let (open, settled_opens) = core.opens_for_heartbeat();
    let floors = open
        .into_iter()
        .map(|(id, database)| pb::DatabaseFloor {
            database_id: id.to_wire(),
            oldest_open_version: database.floor().get(),
            pinned_versions: database.held_versions(),
            pin_sequence,
        })
        .collect();
    pb::Heartbeat {
        sequence,
        floors,
        settled_opens,
    }
}

async fn next(
    stream: &mut Streaming<pb::SessionResponse>,
) -> std::result::Result<Option<Incoming>, CallError> {
    match stream.message().await {
        Ok(Some(pb::SessionResponse {
            message: Some(message),
        })) => Ok(Some(message)),
        // A message of a later minor version: not for us.
        Ok(Some(pb::SessionResponse { message: None })) => {
            Ok(Some(Incoming::HeartbeatAck(pb::HeartbeatAck {
                sequence: 0,
            })))
        }
        Ok(None) => Ok(None),
        Err(status) => Err(CallError::from_status(&status)),
    }
}

pub(super) fn nonsense(what: &str) -> CallError {
    CallError {
        reason: pagewire_proto::status::Reason::Internal,
        explicit: false,
        message: format!("the server's answer is not valid: {what}"),
    }
}

fn hello(id: SessionId) -> pb::Hello {
    pb::Hello {
        protocol_major: version::MAJOR,
        protocol_minor: version::MINOR,
        session_id: id.to_wire(),
        client_name: concat!("libpagewire/", env!("CARGO_PKG_VERSION")).to_owned(),
        process: process_identity(),
        capabilities: Vec::new(),
    }
}

/// Best effort: without it a killed process costs others one TTL.
fn process_identity() -> Option<pb::ProcessIdentity> {
    #[cfg(feature = "simulation")]
    if crate::simulation::world().is_some() {
        // Its machine is another one, and the kernel knows nothing of it.
        return None;
    }
    use std::os::unix::fs::MetadataExt;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let pid_namespace = std::fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may have anything in it.
    let after_name = stat.rsplit_once(')')?.1;
    let start_time_ticks = after_name.split_whitespace().nth(19)?.parse().ok()?;
    Some(pb::ProcessIdentity {
        boot_id: boot_id.trim().to_owned(),
        pid_namespace,
        pid: std::process::id(),
        start_time_ticks,
    })
}
