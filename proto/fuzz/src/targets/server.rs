//! A page server in memory, or on the local store, and two connections that call all of its methods with whatever the bytes say, in any order and however broken.
//!
//! * It does not panic, no answer says INTERNAL or CORRUPT, and each is one that a client takes.
//! * A client beside them reads what it has committed, its lease is good for the next commit, and a new client is served.
//!
//! The bytes are frames, see [`Frame`]. What no mutation finds is filled in: `<-database no 0>` in a message stands for the id in the first
//! answer of OpenDatabase and so on, and a checksum of 0 for the right one. Time is that of the runtime: nothing waits for real.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::HeaderMap;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_memory::MemoryStore;
use pagewire_proto::codec::{Bounded, within_bounds};
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use pagewire_proto::{
    CommitChecksum, DatabaseId, DatabaseName, Epoch, Moment, PageSize, SessionId, StagingId,
    TagName, Version, VersionEntry, pb,
};
use pagewire_server::Server;
use pagewire_server::layer::Layer;
use pagewire_server::store::{
    Collected, Commit, CommitOutcome, PageStore, PageWrite, Resolution, Resolve, StoreError,
};
use pagewire_versioned_memory::VersionedMemoryStore;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// What can be called; a frame names it by its place.
const METHODS: [&str; 22] = [
    "pagewire.v1.PageService/Session",
    "pagewire.v1.PageService/OpenDatabase",
    "pagewire.v1.PageService/BeginSnapshot",
    "pagewire.v1.PageService/ReadPages",
    "pagewire.v1.PageService/AcquireLease",
    "pagewire.v1.PageService/StagePages",
    "pagewire.v1.PageService/Commit",
    "pagewire.v1.PageService/CommitEach",
    "pagewire.v1.PageService/ResolveCommit",
    "pagewire.v1.PageService/FindVersion",
    "pagewire.v1.PageService/ListVersions",
    "pagewire.v1.PageService/DiffVersions",
    "pagewire.v1.PageService/SetTag",
    "pagewire.v1.PageService/DeleteTag",
    "pagewire.v1.PageService/CreateBranch",
    "pagewire.v1.PageService/DescribeDatabase",
    "pagewire.v1.PageService/CollectGarbage",
    "pagewire.v1.PageService/ListDatabases",
    "pagewire.v1.PageService/DeleteDatabase",
    "pagewire.v1.PageService/Nothing",
    "grpc.health.v1.Health/Check",
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
];
/// Most frames of an input.
const MOST_FRAMES: usize = 64;
/// An answer that is not there by then is not waited for.
const ANSWER_WAIT: Duration = Duration::from_millis(5);
/// After that the sessions of the attackers have ended; twice the TTL.
const ALL_OVER: Duration = Duration::from_secs(10);
/// Nothing that an honest client asks for takes so long.
const PATIENCE: Duration = Duration::from_secs(120);
const PAGE_SIZE: u32 = 512;

/// A part of the input: a byte that says what to do, the length in two (little end first), and the bytes that are sent.
struct Frame<'a> {
    method: usize,
    /// By which connection.
    attacker: usize,
    /// The call stays open, and takes the next frame of its method.
    goes_on: bool,
    /// The bytes are sent without the length that gRPC puts before a message.
    is_raw: bool,
    content: &'a [u8],
}

impl<'a> Frame<'a> {
    fn next(bytes: &mut &'a [u8]) -> Option<Self> {
        let ([what, low, high], rest) = bytes.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (content, rest) = rest.split_at(length);
        *bytes = rest;
        Some(Self {
            method: usize::from(what & 0x1f) % METHODS.len(),
            attacker: usize::from(what >> 5 & 1),
            goes_on: what & 0x40 != 0,
            is_raw: what & 0x80 != 0,
            content,
        })
    }
}

/// See the file's header. The first byte says which store it is.
pub fn server(bytes: &[u8]) {
    let Some((store, mut frames)) = bytes.split_first() else {
        return;
    };
    let mut directory = None;
    let store: Arc<dyn PageStore> = match store % 3 {
        0 => Arc::new(MemoryStore::new().expect("a store")),
        1 => Arc::new(VersionedMemoryStore::new().expect("a store")),
        _ => {
            let directory = directory.insert(in_memory());
            Arc::new(Local(open(directory.path())))
        }
    };
    let frames: Vec<Frame> = std::iter::from_fn(|| Frame::next(&mut frames))
        .take(MOST_FRAMES)
        .collect();
    count_panics();
    let before = PANICS.get();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(attack(store, frames));
    drop(runtime);
    assert_eq!(PANICS.get(), before, "a task has panicked");
}

/// A folder in memory, for thousands of stores.
fn in_memory() -> tempfile::TempDir {
    let memory = tempfile::tempdir_in("/dev/shm");
    memory.or_else(|_| tempfile::tempdir()).expect("a folder")
}

fn open(directory: &Path) -> LocalStore {
    let options = LocalOptions {
        map_bytes: 64 << 20,
        ..LocalOptions::default()
    };
    LocalStore::open_with(directory, options).expect("a store")
}

/// The local store under a clock that goes on by itself where nothing is to be done: what its own thread does is something.
#[derive(Debug)]
struct Local(LocalStore);

/// While it lives the runtime believes that a thread of its own is at work, and the clock stands.
fn hold_the_clock() -> std::sync::mpsc::Sender<()> {
    let (held, until) = std::sync::mpsc::channel();
    tokio::task::spawn_blocking(move || until.recv());
    held
}

/// The calls that are answered by the store's thread.
macro_rules! held {
    ($(async fn $call:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait::async_trait]
        impl Layer for Local {
            fn inner(&self) -> &dyn PageStore {
                &self.0
            }

            $(async fn $call(&self, $($argument: $type),*) -> Result<$answer, StoreError> {
                let _held = hold_the_clock();
                self.0.$call($($argument),*).await
            })*
        }
    };
}

held! {
    async fn begin_service(lease_ttl: Duration) -> Duration;
    async fn end_service() -> ();
    async fn lookup(name: &DatabaseName, create: bool) -> DatabaseId;
    async fn remove(name: &DatabaseName) -> DatabaseId;
    async fn protect(database: DatabaseId, floor: Option<Version>, pins: &[Version]) -> ();
    async fn fence(database: DatabaseId) -> Epoch;
    async fn stage(database: DatabaseId, staging: StagingId, page_size: PageSize, pages: Vec<PageWrite>) -> ();
    async fn discard(staging: StagingId) -> ();
    async fn commit(commit: Commit) -> CommitOutcome;
    async fn resolve(resolve: Resolve) -> Resolution;
    async fn set_tag(database: DatabaseId, tag: &TagName, moment: &Moment, replace: bool) -> VersionEntry;
    async fn delete_tag(database: DatabaseId, tag: &TagName) -> bool;
    async fn branch(source: DatabaseId, moment: &Moment, branch: DatabaseId, name: &DatabaseName) -> VersionEntry;
    async fn collect(database: Option<DatabaseId>) -> Collected;
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// A runtime keeps to itself that a task has panicked.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let _ = PANICS.try_with(|count| count.set(count.get() + 1));
            told(info);
        }));
    });
}

async fn attack(store: Arc<dyn PageStore>, frames: Vec<Frame<'_>>) {
    let server = Server::builder(store).build().await.expect("a server");
    let mut victim = Honest::begin(&server, "victim.db").await;
    victim.commit(0).await;
    let learnt = Arc::new(Learnt::default());
    let mut attackers = Vec::new();
    for _ in 0..2 {
        attackers.push(Attacker::connect(&server, &learnt).await);
    }
    for frame in frames {
        attackers[frame.attacker].send(&frame).await;
        tokio::time::sleep(ANSWER_WAIT).await;
    }
    victim.read(1).await;
    victim.commit(1).await;
    drop(attackers);
    tokio::time::sleep(ALL_OVER).await;
    victim.read(2).await;
    victim.commit(2).await;
    let mut new = Honest::begin(&server, "new.db").await;
    new.commit(0).await;
    new.read(1).await;
}

/// What the answers have told the attackers.
#[derive(Default)]
struct Learnt {
    databases: Mutex<Vec<Bytes>>,
}

impl Learnt {
    /// The message with the ids that it asks for.
    fn fill_in(&self, message: &[u8]) -> Vec<u8> {
        const BEFORE: &[u8] = b"<-database no ";
        let mut message = message.to_vec();
        let databases = self.databases.lock().expect("no panic");
        for at in 0..message.len().saturating_sub(15) {
            let place = &mut message[at..at + 16];
            if let Some([number, b'>']) = place.strip_prefix(BEFORE)
                && let Some(id) = databases.get(usize::from(number.wrapping_sub(b'0')))
                && id.len() == 16
            {
                place.copy_from_slice(id);
            }
        }
        message
    }
}

struct Attacker {
    connection: SendRequest<Bytes>,
    open: HashMap<usize, Call>,
    learnt: Arc<Learnt>,
}

struct Call {
    stream: SendStream<Bytes>,
    checksum: CommitChecksum,
}

impl Attacker {
    async fn connect(server: &Server, learnt: &Arc<Learnt>) -> Self {
        let (near, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(server.clone().serve_stream(far));
        let (connection, driver) = h2::client::handshake(near).await.expect("a connection");
        // Ends when the server ends it, or with the attacker.
        tokio::spawn(driver);
        Self {
            connection,
            open: HashMap::new(),
            learnt: Arc::clone(learnt),
        }
    }

    async fn send(&mut self, frame: &Frame<'_>) {
        let mut call = match self.open.remove(&frame.method) {
            Some(call) => call,
            None => match self.begin(frame.method).await {
                Some(call) => call,
                // The server has cut the connection.
                None => return,
            },
        };
        let filled = self.learnt.fill_in(frame.content);
        let bytes = if frame.is_raw {
            filled
        } else {
            let message = call.with_checksums(METHODS[frame.method], filled);
            let length = u32::try_from(message.len()).expect("a short one");
            [&[0], &length.to_be_bytes()[..], &message].concat()
        };
        let is_sent = call.stream.send_data(bytes.into(), !frame.goes_on).is_ok();
        if frame.goes_on && is_sent {
            self.open.insert(frame.method, call);
        }
    }

    async fn begin(&mut self, method: usize) -> Option<Call> {
        let method = METHODS[method];
        let ready = tokio::time::timeout(ANSWER_WAIT, self.connection.clone().ready()).await;
        let mut connection = ready.ok()?.ok()?;
        let request = http::Request::post(format!("http://server/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let (answer, stream) = connection.send_request(request, false).ok()?;
        tokio::spawn(take(method, answer, Arc::clone(&self.learnt)));
        Some(Call {
            stream,
            checksum: CommitChecksum::default(),
        })
    }
}

impl Call {
    /// The message with the right checksums in place of those that are 0.
    fn with_checksums(&mut self, method: &str, message: Vec<u8>) -> Vec<u8> {
        let fill = |page: &mut pb::PageContent| {
            if page.crc32 == 0 {
                page.crc32 = crc32fast::hash(&page.content);
            }
        };
        if method.ends_with("/StagePages")
            && let Ok(mut stage) = pb::StagePagesRequest::decode(&message[..])
        {
            stage.pages.iter_mut().for_each(fill);
            return stage.encode_to_vec();
        }
        if method.contains("/Commit")
            && let Ok(mut commit) = pb::CommitRequest::decode(&message[..])
        {
            for page in commit.batches.iter_mut().flat_map(|batch| &mut batch.pages) {
                fill(page);
                self.checksum.add(page.crc32);
            }
            if let Some(finish) = &mut commit.finish
                && finish.crc32 == 0
            {
                *finish = std::mem::take(&mut self.checksum).finish();
            }
            return commit.encode_to_vec();
        }
        message
    }
}

/// Takes an answer and judges it. A call that was cut off has none.
async fn take(method: &str, answer: ResponseFuture, learnt: Arc<Learnt>) {
    let Ok(response) = answer.await else {
        return;
    };
    judge_status(method, response.headers());
    let mut body = response.into_body();
    let mut begun = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let Ok(chunk) = chunk else {
            return;
        };
        // The stream may be over.
        let _ = body.flow_control().release_capacity(chunk.len());
        begun.extend_from_slice(&chunk);
        while let Some((head, rest)) = begun.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if rest.len() < length {
                break;
            }
            assert_eq!(head[0], 0, "compressed");
            begun.advance(5);
            let message = begun.split_to(length).freeze();
            judge_message(method, message, &learnt);
        }
    }
    assert!(begun.is_empty(), "{method} answers with half a message");
    if let Ok(Some(trailers)) = body.trailers().await {
        judge_status(method, &trailers);
    }
}

fn judge_status(method: &str, headers: &HeaderMap) {
    let Some(status) = tonic::Status::from_header_map(headers) else {
        return;
    };
    if Reason::is_explicit(&status) {
        let reason = Reason::of(&status);
        assert_eq!(reason.code(), status.code(), "{method}: {status:?}");
        let is_ours = matches!(reason, Reason::Internal | Reason::Corrupt);
        assert!(!is_ours, "{method}: {status:?}");
    }
}

fn judge_message(method: &str, message: Bytes, learnt: &Learnt) {
    match method.rsplit_once('/').expect("a method").1 {
        "Session" => drop(taken::<pb::SessionResponse>(message)),
        "OpenDatabase" => {
            let opened = taken::<pb::OpenDatabaseResponse>(message);
            let mut databases = learnt.databases.lock().expect("no panic");
            databases.push(opened.database_id);
        }
        "BeginSnapshot" => drop(taken::<pb::BeginSnapshotResponse>(message)),
        "ReadPages" => {
            for page in taken::<pb::ReadPagesResponse>(message).pages {
                let is_raw = page.encoding == i32::from(pb::PageEncoding::Raw);
                assert!(!is_raw || page.crc32 == crc32fast::hash(&page.content));
            }
        }
        "AcquireLease" => drop(taken::<pb::AcquireLeaseResponse>(message)),
        "StagePages" => drop(taken::<pb::StagePagesResponse>(message)),
        "Commit" | "CommitEach" => drop(taken::<pb::CommitResponse>(message)),
        "ResolveCommit" => drop(taken::<pb::ResolveCommitResponse>(message)),
        "FindVersion" => drop(taken::<pb::FindVersionResponse>(message)),
        "ListVersions" => drop(taken::<pb::ListVersionsResponse>(message)),
        "DiffVersions" => drop(taken::<pb::DiffVersionsResponse>(message)),
        "SetTag" => drop(taken::<pb::SetTagResponse>(message)),
        "DeleteTag" => drop(taken::<pb::DeleteTagResponse>(message)),
        "CreateBranch" => drop(taken::<pb::CreateBranchResponse>(message)),
        "DescribeDatabase" => drop(taken::<pb::DescribeDatabaseResponse>(message)),
        "CollectGarbage" => drop(taken::<pb::CollectGarbageResponse>(message)),
        "ListDatabases" => drop(taken::<pb::ListDatabasesResponse>(message)),
        "DeleteDatabase" => drop(taken::<pb::DeleteDatabaseResponse>(message)),
        "Check" | "ServerReflectionInfo" => {}
        other => panic!("{other} has answered"),
    }
}

/// What a client would make of it.
fn taken<M: Bounded>(message: Bytes) -> M {
    assert_eq!(within_bounds(&message, M::FIELDS), Ok(()));
    M::decode(message).expect("what the server sends can be decoded")
}

/// A client that does what it shall.
struct Honest {
    calls: PageServiceClient<Channel>,
    session: SessionId,
    database: Bytes,
    epoch: u64,
}

impl Honest {
    async fn begin(server: &Server, name: &str) -> Self {
        let server = server.clone();
        let connector = tower::service_fn(move |_| {
            let (near, far) = tokio::io::duplex(1 << 20);
            tokio::spawn(server.clone().serve_stream(far));
            async { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(near)) }
        });
        let endpoint = Endpoint::from_static("http://server");
        let channel = in_time(endpoint.connect_with_connector(connector)).await;
        let mut calls = PageServiceClient::new(channel.expect("a connection"));
        let session = SessionId::random().expect("randomness");
        let hello = pb::Hello {
            protocol_major: 1,
            session_id: session.to_wire(),
            ..Default::default()
        };
        let (outbound, requests) = mpsc::unbounded_channel();
        let say = move |message| {
            let message = Some(message);
            outbound.send(pb::SessionRequest { message }).is_ok()
        };
        say(Request::Hello(hello));
        let stream = calls.session(UnboundedReceiverStream::new(requests));
        let mut news = in_time(stream).await.expect("a session").into_inner();
        let welcome = in_time(news.message()).await.expect("an answer");
        let welcome = welcome.and_then(|welcome| welcome.message);
        assert!(matches!(welcome, Some(News::Welcome(_))), "{welcome:?}");
        tokio::spawn(async move {
            let mut beat = tokio::time::interval(Duration::from_secs(1));
            loop {
                let message = tokio::select! {
                    _ = beat.tick() => Request::Heartbeat(pb::Heartbeat::default()),
                    recall = news.message() => match recall.ok().flatten().and_then(|news| news.message) {
                        Some(News::LeaseRecall(recall)) => Request::KeepLease(pb::KeepLease {
                            database_id: recall.database_id,
                            epoch: recall.epoch,
                            transaction: 0,
                        }),
                        Some(News::HeartbeatAck(_)) => continue,
                        other => panic!("an honest client is told {other:?}"),
                    },
                };
                if !say(message) {
                    return;
                }
            }
        });
        let open = pb::OpenDatabaseRequest {
            session_id: session.to_wire(),
            name: name.into(),
            mode: pb::OpenMode::Create.into(),
            want_lease: true,
            ..Default::default()
        };
        let opened = in_time(calls.open_database(open)).await.expect("opens");
        let opened = opened.into_inner();
        Self {
            calls,
            session,
            database: opened.database_id,
            epoch: opened.lease.expect("nobody else has the lease").epoch,
        }
    }

    /// Page 1 of a version.
    fn content(&self, version: u64) -> Bytes {
        vec![version as u8; PAGE_SIZE as usize].into()
    }

    async fn read(&mut self, version: u64) {
        let read = pb::ReadPagesRequest {
            session_id: self.session.to_wire(),
            database_id: self.database.clone(),
            version,
            pages: vec![1],
        };
        let answer = in_time(self.calls.read_pages(read)).await.expect("reads");
        let pages = answer.into_inner().pages;
        assert_eq!(pages.len(), 1);
        assert_eq!(pages[0].content, self.content(version));
    }

    /// Makes the version after `base`.
    async fn commit(&mut self, base: u64) {
        let content = self.content(base + 1);
        let crc32 = crc32fast::hash(&content);
        let mut checksum = CommitChecksum::default();
        checksum.add(crc32);
        let header = pb::CommitHeader {
            session_id: self.session.to_wire(),
            commit_id: vec![base as u8; 16].into(),
            databases: vec![pb::CommitDatabase {
                database_id: self.database.clone(),
                base_version: base,
                epoch: self.epoch,
                page_size: PAGE_SIZE,
                page_count: 1,
                ..Default::default()
            }],
        };
        let page = pb::PageContent {
            number: 1,
            content,
            crc32,
            ..Default::default()
        };
        let request = pb::CommitRequest {
            header: Some(header),
            batches: vec![pb::PageBatch {
                database_index: 0,
                pages: vec![page],
            }],
            finish: Some(checksum.finish()),
        };
        let answer = in_time(self.calls.commit(tokio_stream::iter([request]))).await;
        let outcome = answer.expect("commits").into_inner().outcome;
        let versions = vec![base + 1];
        let committed = pb::commit_response::Outcome::Committed(pb::Committed { versions });
        assert_eq!(outcome, Some(committed));
    }
}

async fn in_time<T>(call: impl Future<Output = T>) -> T {
    let answer = tokio::time::timeout(PATIENCE, call).await;
    answer.expect("an honest client waits for ever")
}
