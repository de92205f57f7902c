//! The session of one client process: when it was last heard, its stream, and everything that ends with it.
//!
//! Decides nothing about leases: the mirror of them here lets Welcome and the lease news of a stream agree.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::{Changes, DatabaseId, Epoch, PageSize, SessionId, StagingId, pb};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;

use crate::database::Database;
use crate::deadlock::Waits;
use crate::memory::{Account, AnswerCharge};
use crate::process::Process;

/// Messages that may wait for a slow client on its stream; more break the stream, and Welcome tells the truth afterwards.
pub(crate) const STREAM_QUEUE: usize = 1024;
/// Stagings that a session may have for one database: as many as one commit can name. The oldest goes first.
pub(crate) const STAGINGS_PER_DATABASE: usize = pagewire_proto::limits::MAX_STAGINGS;

/// News on its way to a client.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) response: Result<pb::SessionResponse, Status>,
    /// Until the transport has sent it.
    pub(crate) charge: Option<AnswerCharge>,
}

/// Charges of the news that the transport has taken out of the queue, and not put into a frame yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct TakenNews(Arc<Mutex<Vec<AnswerCharge>>>);

impl TakenNews {
    pub(crate) fn put(&self, charge: Option<AnswerCharge>) {
        self.0.lock().extend(charge);
    }

    /// Everything that was taken is in the next frame: the encoder gives out what it has before it takes more.
    pub(crate) fn take(&self) -> Vec<AnswerCharge> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Where news goes.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    queue: mpsc::Sender<News>,
    account: Arc<Account>,
}

impl Outbound {
    pub(crate) fn new(account: Arc<Account>) -> (Self, mpsc::Receiver<News>) {
        let (queue, news) = mpsc::channel(STREAM_QUEUE);
        (Self { queue, account }, news)
    }

    /// Of the connection that the stream came by.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// False where the client does not read: there is no place in the queue, or no memory.
    pub(crate) fn try_send(&self, mut response: pb::SessionResponse) -> bool {
        let charge = loop {
            match self.charge(&response) {
                Some(charge) => break charge,
                None if lessen(&mut response) => {}
                None => return false,
            }
        };
        let news = News {
            response: Ok(response),
            charge: Some(charge),
        };
        self.queue.try_send(news).is_ok()
    }

    fn charge(&self, response: &pb::SessionResponse) -> Option<AnswerCharge> {
        let bytes = size_of::<News>() + response.encoded_len();
        self.account.try_news(bytes).ok()
    }

    /// Ends the stream with a status, if the client reads.
    pub(crate) fn end(&self, status: Status) {
        // It may be gone.
        let _ = self.queue.try_send(News {
            response: Err(status),
            charge: None,
        });
    }

    /// The client has gone.
    pub(crate) async fn closed(&self) {
        self.queue.closed().await;
    }
}

/// Says the same with fewer bytes: a page that comes along, and which pages have changed, may be left out. False where nothing can be.
fn lessen(response: &mut pb::SessionResponse) -> bool {
    use pb::session_response::Message;
    if let Some(Message::Published(published)) = &mut response.message
        && published.page_1.take().is_some()
    {
        return true;
    }
    if let Some(Message::LeaseGranted(granted)) = &mut response.message
        && let Some(grant) = &mut granted.grant
        && !std::mem::take(&mut grant.pages).is_empty()
    {
        return true;
    }
    let changes = match &mut response.message {
        Some(Message::Subscribed(subscribed)) => &mut subscribed.changes,
        Some(Message::Published(published)) => &mut published.changes,
        Some(Message::LeaseGranted(pb::LeaseGranted {
            grant: Some(grant), ..
        })) => &mut grant.changes,
        _ => return false,
    };
    match changes {
        Some(changes) if !changes.all => {
            *changes = Changes::All.into();
            true
        }
        _ => false,
    }
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) state: Mutex<SessionState>,
}

/// What changes in a session.
#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) last_heard: Instant,
    /// Set once, before anything is taken away: nothing is given to the session afterwards.
    pub(crate) ended: bool,
    pub(crate) process: Option<Process>,
    /// Its client wants pages compressed.
    pub(crate) wants_lz4: bool,
    /// `None` while the stream is broken.
    pub(crate) stream: Option<Stream>,
    pub(crate) streams_so_far: u64,
    /// The number of the newest Hello that was taken (PEER7); 0 where the client does not count.
    pub(crate) hello: u64,
    /// The number of the newest Hello whose Welcome was sent.
    pub(crate) answered: u64,
    pub(crate) opens: HashMap<DatabaseId, Open>,
    pub(crate) opens_so_far: u64,
    /// Mirror of the lease table, changed under the lock of the lease.
    pub(crate) leases: HashMap<DatabaseId, Epoch>,
    /// Databases with a barrier of this session, and the stream that was broken when the lease was taken.
    pub(crate) barriers: HashMap<DatabaseId, u64>,
    /// Databases with a subscription of the present stream, which ends with it.
    pub(crate) subscribed: HashSet<DatabaseId>,
    /// Databases for which a task is on its way that answers the Subscribe of this session.
    pub(crate) answering: HashSet<DatabaseId>,
    /// The heads of the databases that it has subscribed to are on their way (ELSE1).
    pub(crate) looking: bool,
    /// Heartbeats acknowledged so far.
    pub(crate) acknowledgements: u64,
    /// The Prepare, by its database and subscription, that the client has to answer before it is strict again (U-6).
    pub(crate) silent: Option<(DatabaseId, u64)>,
    /// Of its transactions for leases.
    pub(crate) waits: Waits,
    /// Old versions that the session has pinned, in all databases.
    pub(crate) pins: usize,
    /// By the id that the client chose.
    pub(crate) stagings: HashMap<StagingId, Staging>,
    pub(crate) stagings_so_far: u64,
}

/// A database that the session has open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) database: Arc<Database>,
    pub(crate) writable: bool,
    /// Of the newest open that was seen: a close that it overtook is ignored.
    pub(crate) sequence: u64,
    /// The number of the call that opened it, as long as no other call relies on it.
    pub(crate) opened: Option<u64>,
}

/// Pages uploaded ahead. The store knows them under an id of the server, so that no session can name another's.
#[derive(Clone, Debug)]
pub(crate) struct Staging {
    pub(crate) stored: StagingId,
    pub(crate) database: DatabaseId,
    pub(crate) page_size: PageSize,
    pub(crate) order: u64,
    /// One of those that the server has.
    pub(crate) _place: Arc<OwnedSemaphorePermit>,
}

/// The stream of a session.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) outbound: Outbound,
    /// Ends the task of the stream, with a status or in silence.
    pub(crate) stop: oneshot::Sender<Option<Status>>,
}

impl Session {
    pub(crate) fn new(id: SessionId, now: Instant) -> Self {
        Self {
            id,
            state: Mutex::new(SessionState {
                last_heard: now,
                ended: false,
                process: None,
                wants_lz4: false,
                stream: None,
                streams_so_far: 0,
                hello: 0,
                answered: 0,
                opens: HashMap::new(),
                opens_so_far: 0,
                leases: HashMap::new(),
                barriers: HashMap::new(),
                subscribed: HashSet::new(),
                answering: HashSet::new(),
                looking: false,
                acknowledgements: 0,
                silent: None,
                waits: Waits::default(),
                pins: 0,
                stagings: HashMap::new(),
                stagings_so_far: 0,
            }),
        }
    }

    /// Whether the session can act.
    pub(crate) fn is_live(&self, now: Instant, ttl: Duration) -> bool {
        self.state.lock().is_live(now, ttl)
    }

    /// What the session has open under this id.
    pub(crate) fn open(&self, database: DatabaseId) -> Option<Open> {
        self.state.lock().opens.get(&database).cloned()
    }

    /// Sends news on the stream, if there is one.
    pub(crate) fn push(&self, message: pb::session_response::Message) {
        self.state.lock().push(message);
    }
}

impl SessionState {
    pub(crate) fn is_live(&self, now: Instant, ttl: Duration) -> bool {
        !self.ended && now < self.last_heard + ttl
    }

    /// Whether a Hello of it was answered: before that it is not known what it has.
    pub(crate) fn has_begun(&self) -> bool {
        self.streams_so_far > 0
    }

    /// Sends news on the stream. A client that does not read loses the stream: it will hear the truth in Welcome.
    pub(crate) fn push(&mut self, message: pb::session_response::Message) {
        let Some(stream) = &self.stream else {
            return;
        };
        let response = pb::SessionResponse {
            message: Some(message),
        };
        if !stream.outbound.try_send(response)
            && let Some(stream) = self.stream.take()
        {
            // The task of the stream sees it and settles what a broken stream means.
            drop(stream.stop);
        }
    }

    /// Ends the stream, if there is one.
    pub(crate) fn stop_stream(&mut self, status: Option<Status>) {
        if let Some(stream) = self.stream.take() {
            // The task may have ended by itself.
            let _ = stream.stop.send(status);
        }
    }

    /// Ends the subscription to the database: its client has given it up.
    pub(crate) fn unsubscribe(&mut self, session: SessionId, database: &Database) {
        if self.subscribed.remove(&database.id) {
            database.subscriptions.lock().remove_session(session);
            database.answered.notify_one();
        }
    }

    /// The client has answered a Prepare of this subscription, in time or not: it is there (U-6).
    pub(crate) fn answers(&mut self, database: DatabaseId, subscription: u64) {
        if self.silent == Some((database, subscription)) {
            self.silent = None;
        }
    }

    /// The client has begun another stream, and so given up all subscriptions.
    pub(crate) fn unsubscribe_all(&mut self, session: SessionId) {
        for id in std::mem::take(&mut self.subscribed) {
            if let Some(open) = self.opens.get(&id) {
                open.database.subscriptions.lock().remove_session(session);
                open.database.answered.notify_one();
            }
        }
    }

    /// Takes the stagings of a database out, or all of them; returns their ids in the store.
    pub(crate) fn take_stagings(&mut self, database: Option<DatabaseId>) -> Vec<StagingId> {
        let mut taken = Vec::new();
        self.stagings.retain(|_, staging| {
            let goes = database.is_none_or(|database| staging.database == database);
            if goes {
                taken.push(staging.stored);
            }
            !goes
        });
        taken
    }

    /// Makes room for one more staging of the database: returns the oldest where there are as many as may be.
    pub(crate) fn make_room_for_staging(&mut self, database: DatabaseId) -> Option<StagingId> {
        let mut of_database: Vec<_> = self
            .stagings
            .iter()
            .filter(|(_, staging)| staging.database == database)
            .map(|(id, staging)| (staging.order, *id))
            .collect();
        if of_database.len() < STAGINGS_PER_DATABASE {
            return None;
        }
        of_database.sort_unstable_by_key(|(order, _)| *order);
        let (_, oldest) = *of_database.first()?;
        self.stagings.remove(&oldest).map(|staging| staging.stored)
    }
}
