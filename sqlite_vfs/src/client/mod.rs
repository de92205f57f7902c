//! Domain request -> call: one client for each endpoint and credential of the process.
//!
//! A call has a deadline. One that may be repeated is repeated while the transport fails and time is left. Everything that
//! comes back is validated here; nothing behind this folder sees a protocol message.

mod body;
mod commit;
pub mod counters;
mod gather;
mod history;
mod link;
mod news;
mod runtime;
mod session;
mod stage;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use pagewire_proto::limits::MAX_MESSAGE_BYTES;
use pagewire_proto::pb;
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, Epoch, LeaseGrant, Moment, Page, PageNumber, Snapshot,
    Version, VersionEntry,
};
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use body::PromptEnd;
pub use commit::{CommitAttempt, CommitPage, CommitPart, CommitResult, Settled};
use counters::{COUNTERS, CallKind};
use gather::Gathering;
pub use history::{Description, VersionList};
pub use link::Link;
pub use runtime::Runtime;
pub use session::{PinCall, Session};
pub use stage::{PageSource, StagePages};

use crate::cache::PageCache;
use crate::database::{Database, DatabaseState, Looked};
use crate::error::{CallError, Error, Kind, Result};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest pause between two attempts of a call.
const MAX_BACKOFF: Duration = Duration::from_millis(250);
/// How long a DeleteDatabase waits for the CloseDatabase that this process sent before it.
const CLOSE_ARRIVES_WITHIN: Duration = Duration::from_millis(250);
/// Pages wanted along with an open, so that they cost no other round trip: a small database comes whole, and of a table of 1,000,000
/// rows of 100 bytes all interior pages, which are 63 of 4 KiB.
const OPEN_PAGE_BYTES: u32 = 384 << 10;

type Stub = PageServiceClient<InterceptedService<PromptEnd, Bearer>>;

/// Adds the credential to each call.
#[derive(Clone)]
struct Bearer(Option<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// A client with the runtime that drives it. Dropping it says goodbye to the server.
pub struct Client {
    /// Everything that tasks of the runtime may hold too.
    pub core: Arc<Core>,
    /// Pages of all databases of the client. Tasks of the runtime may hold it too.
    pub cache: Arc<PageCache>,
    runtime: Runtime,
    slots: Mutex<HashMap<DatabaseName, Arc<Slot>>>,
}

/// Where the one [`Database`] of a name lies; locked while it is being opened.
type Slot = Mutex<Weak<Database>>;

/// A client without its runtime.
pub struct Core {
    /// As it was set.
    pub endpoint: String,
    stub: Stub,
    /// The session of this process with the endpoint.
    pub session: Session,
    known: Arc<Mutex<Known>>,
    /// What is known of the way to the server.
    pub link: Link,
}

/// Databases of a client, under one lock: a recall is either for a database that is open, or remembered for the open that it
/// has overtaken.
#[derive(Default)]
struct Known {
    open: HashMap<DatabaseId, Weak<DatabaseState>>,
    /// The newest epoch released of each database that was ever open: its message may still be under way when the database is
    /// opened again.
    released: HashMap<DatabaseId, Epoch>,
    /// Opens so far.
    opens: u64,
    /// Of them, those that have not become an entry of `open` yet, and never may.
    under_way: BTreeSet<u64>,
    /// Databases that are open for one question.
    borrowed: usize,
}

impl Known {
    fn release(&mut self, id: DatabaseId, epoch: Epoch) {
        let newest = self.released.entry(id).or_default();
        *newest = epoch.max(*newest);
    }

    /// Up to which number opens have ended: a database that the server has open by one of them, and that is not in `open`, is one
    /// whose answer was lost. 0 while nothing can be said.
    fn settled_opens(&self) -> u64 {
        if self.borrowed > 0 {
            return 0;
        }
        self.under_way
            .first()
            .map_or(self.opens, |oldest| oldest - 1)
    }
}

/// An open whose database is not known to the heartbeats yet. It ends when this is dropped.
pub struct OpenUnderWay {
    known: Arc<Mutex<Known>>,
    /// `None` for an open beside all others.
    sequence: Option<u64>,
}

impl OpenUnderWay {
    fn begin(core: &Core) -> Self {
        let known = Arc::clone(&core.known);
        let sequence = {
            let mut known = known.lock();
            known.opens += 1;
            let sequence = known.opens;
            known.under_way.insert(sequence);
            sequence
        };
        Self {
            known,
            sequence: Some(sequence),
        }
    }

    fn borrow(core: &Core) -> Self {
        let known = Arc::clone(&core.known);
        known.lock().borrowed += 1;
        Self {
            known,
            sequence: None,
        }
    }

    fn sequence(&self) -> u64 {
        self.sequence.unwrap_or(0)
    }
}

impl Drop for OpenUnderWay {
    fn drop(&mut self) {
        let mut known = self.known.lock();
        match self.sequence {
            Some(sequence) => {
                known.under_way.remove(&sequence);
            }
            None => known.borrowed -= 1,
        }
    }
}

/// What an open gives.
pub struct Opened {
    /// The identity behind the name.
    pub id: DatabaseId,
    /// The newest version at that moment.
    pub head: Snapshot,
    /// The lease, if it was free.
    pub lease: Option<LeaseGrant>,
    /// Pages of the head.
    pub pages: Vec<Page>,
    /// Which open of the session it was.
    pub open_sequence: u64,
    /// To be kept until the database is subscribed to, or closed again.
    pub under_way: OpenUnderWay,
    /// With a moment: its version. The pages are those of it.
    pub found: Option<VersionEntry>,
}

/// How an AcquireLease ended.
pub enum Acquired {
    /// The lease is ours.
    Granted(LeaseGrant),
    /// Another session has it; our ticket is in the queue.
    Pending,
}

impl Client {
    /// A client of the endpoint. Nothing is connected before the first call.
    pub fn new(endpoint: &str, token: Option<&str>, cache_bytes: u64) -> Result<Self> {
        let runtime = Runtime::start()?;
        let channel = runtime.block_on(async { connect_lazily(endpoint) })?;
        let bearer = match token {
            None => None,
            Some(token) => Some(format!("Bearer {token}").parse().map_err(|_| {
                Error::new(
                    Kind::CantOpen,
                    "the token is not printable ASCII".to_owned(),
                )
            })?),
        };
        let stub = PageServiceClient::with_interceptor(PromptEnd(channel), Bearer(bearer))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let core = Arc::new(Core {
            endpoint: endpoint.to_owned(),
            stub,
            session: Session::new()?,
            known: Arc::default(),
            link: Link::default(),
        });
        runtime.spawn(session::run(Arc::downgrade(&core)));
        Ok(Self {
            core,
            cache: Arc::new(PageCache::new(cache_bytes)),
            runtime,
            slots: Mutex::new(HashMap::new()),
        })
    }

    /// The database of the name, opened if it is not open yet, and its version of the moment if there is one. Two connections of
    /// a process share one: its write lock and its knowledge of the lease are per process.
    pub fn database_named(
        self: &Arc<Self>,
        name: &DatabaseName,
        mode: pb::OpenMode,
        at: Option<&Moment>,
        timeout: Duration,
    ) -> Result<(Arc<Database>, Option<Looked>)> {
        let slot = {
            let mut slots = self.slots.lock();
            // A slot that only this map has is not locked by anybody.
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_none_or(|open| open.strong_count() > 0)
            });
            Arc::clone(slots.entry(name.clone()).or_default())
        };
        let deadline = std::time::Instant::now() + timeout;
        let Some(mut open) = slot.try_lock_for(timeout) else {
            return Err(Error::new(
                Kind::CantOpen,
                format!(
                    "{name} at {}: another thread is still opening it",
                    self.core.endpoint
                ),
            ));
        };
        let timeout = deadline.saturating_duration_since(std::time::Instant::now());
        if let Some(database) = open.upgrade()
            && database.state.check().is_ok()
        {
            database.allow(mode, timeout)?;
            let looked = at.map(|at| database.look_at(at, timeout)).transpose()?;
            return Ok((database, looked));
        }
        let (database, looked) = Database::open(Arc::clone(self), name, mode, at, timeout)?;
        *open = Arc::downgrade(&database);
        Ok((database, looked))
    }

    /// Removes a database and all of its versions; `false` if there is none. Refused while anybody has it open.
    pub fn delete_database(&self, name: &DatabaseName, timeout: Duration) -> Result<bool> {
        let slot = self.slots.lock().get(name).cloned();
        if slot.is_some_and(|slot| slot.lock().strong_count() > 0) {
            return Err(Error::io(format!(
                "{name} at {}: a connection of this process has it open; close it before deleting",
                self.core.endpoint
            )));
        }
        let begun = Instant::now();
        self.wait(self.core.delete_database(name, begun, begun + timeout))
            .map_err(|error| Error::from(error).within(name.as_str()))
    }

    /// Runs a call of [`Core`] to its end.
    pub fn wait<F>(&self, call: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        self.runtime.block_on(call)
    }

    /// Starts a task beside the calls.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Starts a task that makes progress whether somebody calls or not: somebody will ask for its result soon.
    pub fn spawn_urgent(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn_urgent(task);
    }

    /// Makes pushes for a database reach it. Returns the newest epoch of it that this client has released.
    pub fn subscribe(&self, database: &Arc<DatabaseState>) -> Epoch {
        let mut known = self.core.known.lock();
        known.open.insert(database.id(), Arc::downgrade(database));
        known
            .released
            .get(&database.id())
            .copied()
            .unwrap_or_default()
    }

    /// The database has taken another identity: pushes for that one reach it from now on.
    pub fn resubscribe(&self, database: &Arc<DatabaseState>, before: DatabaseId) {
        let mut known = self.core.known.lock();
        let is_ours =
            |open: &Weak<DatabaseState>| std::ptr::eq(open.as_ptr(), Arc::as_ptr(database));
        if known.open.get(&before).is_some_and(is_ours) {
            known.open.remove(&before);
        }
        known.open.insert(database.id(), Arc::downgrade(database));
    }

    /// The opposite of [`Client::subscribe`]; tells the server that nobody here has the database open, and what the
    /// next one will want first.
    pub fn unsubscribe(
        &self,
        database: &Arc<DatabaseState>,
        open_sequence: u64,
        hot_pages: Vec<u32>,
    ) {
        let mut known = self.core.known.lock();
        known.release(database.id(), database.released());
        let is_ours =
            |open: &Weak<DatabaseState>| std::ptr::eq(open.as_ptr(), Arc::as_ptr(database));
        if known.open.get(&database.id()).is_some_and(is_ours) {
            known.open.remove(&database.id());
        }
        drop(known);
        self.core
            .session
            .close_database(database.id(), open_sequence, hot_pages);
    }

    /// The database of the name, if a connection of this process has it open.
    pub fn database_if_open(&self, name: &DatabaseName) -> Option<Arc<Database>> {
        let slot = self.slots.lock().get(name).cloned()?;
        // Locked while it is being opened: then it is not open yet.
        slot.try_lock()?.upgrade()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.core.session.say_goodbye();
        if self.core.session.is_up() {
            // Bounded: a server that does not answer learns it by the broken stream.
            self.runtime
                .block_on(self.core.session.goodbye_taken(Duration::from_millis(250)));
        }
    }
}

fn connect_lazily(endpoint: &str) -> Result<Channel> {
    let wrong = |error: tonic::transport::Error| {
        Error::new(Kind::CantOpen, format!("endpoint {endpoint:?}: {error}"))
    };
    let tune = |endpoint: Endpoint| {
        endpoint
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(16 << 20)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
    };
    if let Some(path) = endpoint.strip_prefix("unix:") {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(|socket| TokioIo::new(Gathering::new(socket)))
            }
        });
        let named = Endpoint::from_static("http://pagewire.invalid");
        return Ok(tune(named).connect_with_connector_lazy(connector));
    }
    let parsed = Endpoint::from_shared(endpoint.to_owned()).map_err(wrong)?;
    #[cfg(feature = "simulation")]
    if let Some(world) = crate::simulation::world() {
        let connector = tower::service_fn(move |uri: http::Uri| {
            let connecting =
                world.connect(uri.authority().map_or("", |authority| authority.as_str()));
            async move { Ok::<_, std::io::Error>(TokioIo::new(Gathering::new(connecting.await?))) }
        });
        return Ok(tune(parsed).connect_with_connector_lazy(connector));
    }
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // What the scheme means is decided by the endpoint.
    http.enforce_http(false);
    let connector = tower::service_fn(move |uri: http::Uri| {
        let connecting = tower::Service::call(&mut http, uri);
        async move {
            let socket = connecting.await?.into_inner();
            Ok::<_, <HttpConnector as tower::Service<http::Uri>>::Error>(TokioIo::new(
                Gathering::new(socket),
            ))
        }
    });
    Ok(tune(parsed).connect_with_connector_lazy(connector))
}

impl Core {
    /// The database that a push is for. If it is not open here, or not yet, its lease up to the epoch is given back: the answer to
    /// an open that brings the lease may have been overtaken by the recall, and must not be believed any more.
    pub(crate) fn database_or_release(
        &self,
        id: DatabaseId,
        epoch: Epoch,
    ) -> Option<Arc<DatabaseState>> {
        let mut known = self.known.lock();
        let open = known.open.get(&id).and_then(Weak::upgrade);
        if open.is_none() {
            known.release(id, epoch);
            drop(known);
            self.session.release_lease(id, epoch, false);
        }
        open
    }

    /// The database of the id, if it is open here.
    pub(crate) fn database_if_known(&self, id: DatabaseId) -> Option<Arc<DatabaseState>> {
        self.known.lock().open.get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn all_databases(&self) -> Vec<(DatabaseId, Arc<DatabaseState>)> {
        self.opens_for_heartbeat().0
    }

    /// Every database that is open here, and up to which number opens have ended ([`Known::settled_opens`]), at one moment.
    pub(crate) fn opens_for_heartbeat(&self) -> (Vec<(DatabaseId, Arc<DatabaseState>)>, u64) {
        let known = self.known.lock();
        let open = known
            .open
            .iter()
            .filter_map(|(id, weak)| Some((*id, weak.upgrade()?)))
            .collect();
        (open, known.settled_opens())
    }

    /// One attempt that somebody waits for, bounded by the deadline.
    async fn once<Q, A, F, Fut>(
        &self,
        kind: CallKind,
        deadline: Instant,
        request: Q,
        call: F,
    ) -> std::result::Result<A, CallError>
    where
        Q: Message,
        A: Message,
        F: FnOnce(Stub, Q) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        COUNTERS.waited(kind);
        self.attempt(kind, deadline, request, call).await
    }

    async fn attempt<Q, A, F, Fut>(
        &self,
        kind: CallKind,
        deadline: Instant,
        request: Q,
        call: F,
    ) -> std::result::Result<A, CallError>
    where
        Q: Message,
        A: Message,
        F: FnOnce(Stub, Q) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let begun = Instant::now();
        let sent = request.encoded_len();
        match tokio::time::timeout_at(deadline, call(self.stub.clone(), request)).await {
            Ok(Ok(response)) => {
                let answer = response.into_inner();
                COUNTERS.bytes(kind, sent, answer.encoded_len());
                Ok(answer)
            }
            Ok(Err(status)) => {
                COUNTERS.bytes(kind, sent, 0);
                Err(CallError::from_status(&status))
            }
            Err(_) => Err(CallError::timeout(begun.elapsed())),
        }
    }

    /// Repeats an idempotent call while the transport fails and time is left.
    async fn repeat<Q, A, F, Fut>(
        &self,
        kind: CallKind,
        deadline: Instant,
        request: Q,
        call: F,
    ) -> std::result::Result<A, CallError>
    where
        Q: Message + Clone,
        A: Message,
        F: Fn(Stub, Q) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let mut backoff = Duration::from_millis(5);
        loop {
            match self.once(kind, deadline, request.clone(), &call).await {
                Err(error) if error.is_transient() && Instant::now() + backoff < deadline => {
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                outcome => return outcome,
            }
        }
    }

    /// Opens a database by name; the first open of a process goes out together with the Hello of its session.
    pub async fn open_database(
        &self,
        name: &DatabaseName,
        mode: pb::OpenMode,
        want_lease: bool,
        look: Option<(&Moment, &PinCall<'_>)>,
        deadline: Instant,
    ) -> std::result::Result<Opened, OpenError> {
        let under_way = OpenUnderWay::begin(self);
        self.open_as(name, mode, want_lease, look, under_way, deadline)
            .await
    }

    /// Opens a database for one question, beside all other opens: its close leaves those alone.
    pub async fn borrow_database(
        &self,
        name: &DatabaseName,
        deadline: Instant,
    ) -> std::result::Result<Opened, OpenError> {
        let under_way = OpenUnderWay::borrow(self);
        let mode = pb::OpenMode::ReadWrite;
        self.open_as(name, mode, false, None, under_way, deadline)
            .await
    }

    async fn open_as(
        &self,
        name: &DatabaseName,
        mode: pb::OpenMode,
        want_lease: bool,
        look: Option<(&Moment, &PinCall<'_>)>,
        under_way: OpenUnderWay,
        deadline: Instant,
    ) -> std::result::Result<Opened, OpenError> {
        let request = pb::OpenDatabaseRequest {
            session_id: self.session.id().to_wire(),
            name: name.as_str().to_owned(),
            mode: mode.into(),
            want_lease,
            want_page_bytes: OPEN_PAGE_BYTES,
            open_sequence: under_way.sequence(),
            at: look.map(|(at, _)| at.clone().into()),
            pin_sequence: look.map_or(0, |(_, pin)| pin.sequence),
        };
        let open = self.repeat(
            CallKind::Open,
            deadline,
            request,
            |mut stub, request| async move { stub.open_database(request).await },
        );
        let welcome = self.session.welcome(deadline);
        tokio::pin!(open, welcome);
        let answer = tokio::select! {
            // A refusal of the session says more than the refusal of the call that follows from it.
            biased;
            refused = async { welcome.as_mut().await.err() } => match refused {
                Some(error) => return Err(OpenError::Refused(error)),
                None => open.await,
            },
            answer = &mut open => {
                if answer.is_ok() {
                    welcome.await.map_err(OpenError::Refused)?;
                }
                answer
            }
        }
        .map_err(OpenError::Call)?;
        Opened::from_wire(answer, look.is_some(), under_way)
            .map_err(|error| OpenError::Refused(error.within(name.as_str())))
    }

    /// Removes a database; `false` if there is none, which is also what a repeated call finds.
    async fn delete_database(
        &self,
        name: &DatabaseName,
        begun: Instant,
        deadline: Instant,
    ) -> std::result::Result<bool, CallError> {
        use pagewire_proto::status::Reason;
        loop {
            let request = pb::DeleteDatabaseRequest {
                name: name.as_str().to_owned(),
            };
            let answer = self
                .repeat(
                    CallKind::Delete,
                    deadline,
                    request,
                    |mut stub, request| async move { stub.delete_database(request).await },
                )
                .await;
            match answer {
                Ok(_) => return Ok(true),
                Err(error) if error.reason == Reason::DatabaseNotFound => return Ok(false),
                // It may have been this process that had it open: CloseDatabase goes by the stream of the session and can
                // arrive after this call.
                Err(error)
                    if error.reason == Reason::Limit && begun.elapsed() < CLOSE_ARRIVES_WITHIN =>
                {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The newest version, and what changed since one that is known.
    pub async fn begin_snapshot(
        &self,
        id: DatabaseId,
        known: Version,
        deadline: Instant,
    ) -> std::result::Result<(Snapshot, Changes), CallError> {
        let request = pb::BeginSnapshotRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            known_version: known.get(),
        };
        let answer = self
            .repeat(
                CallKind::Begin,
                deadline,
                request,
                |mut stub, request| async move { stub.begin_snapshot(request).await },
            )
            .await?;
        valid(
            answer
                .head
                .try_into()
                .and_then(|head| Ok((head, answer.changes.try_into()?))),
        )
    }

    /// Pages at a version; at least the first one asked for, perhaps fewer than all.
    pub async fn read_pages(
        &self,
        id: DatabaseId,
        snapshot: Snapshot,
        pages: Vec<PageNumber>,
        deadline: Instant,
    ) -> std::result::Result<Vec<Page>, CallError> {
        let request = self.read_request(id, snapshot, &pages);
        let answer = self
            .repeat(
                CallKind::Read,
                deadline,
                request,
                |mut stub, request| async move { stub.read_pages(request).await },
            )
            .await?;
        pages_of(answer, &pages, snapshot)
    }

    /// The same for pages that nobody waits for yet; not repeated, since whoever needs them asks himself.
    pub async fn read_pages_ahead(
        &self,
        id: DatabaseId,
        snapshot: Snapshot,
        pages: &[PageNumber],
        deadline: Instant,
    ) -> std::result::Result<Vec<Page>, CallError> {
        let request = self.read_request(id, snapshot, pages);
        COUNTERS.background(CallKind::Read);
        let sent = self.link.sent(std::time::Instant::now());
        let answer = self
            .attempt(
                CallKind::Read,
                deadline,
                request,
                |mut stub, request| async move { stub.read_pages(request).await },
            )
            .await?;
        let pages = pages_of(answer, pages, snapshot)?;
        let bytes = pages.iter().map(|page| page.content.len() as u64).sum();
        self.link.arrived(&sent, bytes, std::time::Instant::now());
        Ok(pages)
    }

    fn read_request(
        &self,
        id: DatabaseId,
        snapshot: Snapshot,
        pages: &[PageNumber],
    ) -> pb::ReadPagesRequest {
        pb::ReadPagesRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            version: snapshot.version.get(),
            pages: pages.iter().map(|page| page.get()).collect(),
        }
    }

    /// Asks for the write lease.
    pub async fn acquire_lease(
        &self,
        id: DatabaseId,
        known: Version,
        released: Epoch,
        wait: Duration,
        deadline: Instant,
    ) -> std::result::Result<Acquired, CallError> {
        let request = pb::AcquireLeaseRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            known_version: known.get(),
            released_epoch: released.get(),
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
        };
        let answer = self
            .repeat(
                CallKind::Acquire,
                deadline,
                request,
                |mut stub, request| async move { stub.acquire_lease(request).await },
            )
            .await?;
        use pb::acquire_lease_response::Outcome;
        match answer.outcome {
            Some(Outcome::Granted(grant)) => Ok(Acquired::Granted(valid(grant.try_into())?)),
            Some(Outcome::Pending(_)) => Ok(Acquired::Pending),
            None => valid(Err(pagewire_proto::Invalid::missing("outcome"))),
        }
    }
}

/// Why an open gave nothing.
pub enum OpenError {
    /// The call failed.
    Call(CallError),
    /// The session was refused, or the answer is nonsense.
    Refused(Error),
}

impl Opened {
    fn from_wire(
        wire: pb::OpenDatabaseResponse,
        looks: bool,
        under_way: OpenUnderWay,
    ) -> Result<Self> {
        let head: Snapshot = wire.head.try_into()?;
        let found = match looks {
            false => None,
            true => Some(VersionEntry::try_from(wire.found)?),
        };
        let read = found.as_ref().map_or(head, |found| found.snapshot);
        let mut pages = Vec::with_capacity(wire.pages.len());
        for page in wire.pages {
            let page = Page::from_wire(page, read.page_size)?;
            if page.version > read.version {
                return Err(Error::from(pagewire_proto::Invalid::new(
                    "pages",
                    format!("page {} is of a later version", page.number),
                )));
            }
            pages.push(page);
        }
        Ok(Self {
            id: DatabaseId::try_from(&wire.database_id[..])?,
            head,
            lease: wire.lease.map(LeaseGrant::try_from).transpose()?,
            pages,
            open_sequence: under_way.sequence(),
            under_way,
            found,
        })
    }
}

/// The pages of an answer, which are the first of those asked for.
fn pages_of(
    answer: pb::ReadPagesResponse,
    pages: &[PageNumber],
    snapshot: Snapshot,
) -> std::result::Result<Vec<Page>, CallError> {
    if answer.pages.is_empty() || answer.pages.len() > pages.len() {
        return valid(Err(pagewire_proto::Invalid::new(
            "pages",
            format!("{} pages for {} asked", answer.pages.len(), pages.len()),
        )));
    }
    let mut received = Vec::with_capacity(answer.pages.len());
    for (wire, asked) in answer.pages.into_iter().zip(pages) {
        let page = valid(Page::from_wire(wire, snapshot.page_size))?;
        if page.number != *asked || page.version > snapshot.version {
            return valid(Err(pagewire_proto::Invalid::new(
                "pages",
                format!(
                    "page {} of version {} for page {asked} at {}",
                    page.number, page.version, snapshot.version
                ),
            )));
        }
        received.push(page);
    }
    Ok(received)
}

/// An answer that breaks the protocol is an error that repeating does not mend.
fn valid<T>(
    value: std::result::Result<T, pagewire_proto::Invalid>,
) -> std::result::Result<T, CallError> {
    value.map_err(|invalid| CallError {
        reason: pagewire_proto::status::Reason::Internal,
        explicit: false,
        message: format!("the server's answer is not valid: {invalid}"),
    })
}
