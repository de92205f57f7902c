//! A server on a loopback port and clients whose every message the test decides.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pagewire_memory::MemoryStore;
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use pagewire_proto::{CommitChecksum, CommitId, SessionId, limits, pb};
use pagewire_server::store::PageStore;
use pagewire_server::{Server, Settings};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Long enough that nothing lapses by accident on a busy machine.
pub const LONG_TTL: Duration = Duration::from_secs(30);
/// Nothing in these tests takes so long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const PAGE_SIZE: u32 = 512;

pub struct TestServer {
    server: Server,
    place: Place,
    /// How many bytes of a stream clients of a server in the process take in before they read; the transport's default if `None`.
    pub window: Option<u32>,
}

/// Where clients connect.
enum Place {
    Loopback {
        address: SocketAddr,
        stop: Option<oneshot::Sender<()>>,
        serving: JoinHandle<()>,
    },
    /// Through pipes in memory: time can be paused, for nothing is outside of the runtime.
    InProcess,
}

impl TestServer {
    pub async fn start(lease_ttl: Duration) -> Self {
        Self::with(Settings {
            lease_ttl,
            ..Settings::default()
        })
        .await
    }

    pub async fn with(settings: Settings) -> Self {
        let server = Server::builder(memory())
            .settings(settings)
            .build()
            .await
            .unwrap();
        let (listener, address) = pagewire_server::bind_tcp("127.0.0.1:0").await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = server.clone().serve_tcp(listener, async {
            let _ = stopped.await;
        });
        let place = Place::Loopback {
            address,
            stop: Some(stop),
            serving: tokio::spawn(async move { serving.await.unwrap() }),
        };
        Self {
            server,
            place,
            window: None,
        }
    }

    /// For tests with paused time.
    pub async fn in_process(lease_ttl: Duration) -> Self {
        Self::in_process_over(memory(), lease_ttl).await
    }

    pub async fn in_process_over(store: Arc<dyn PageStore>, lease_ttl: Duration) -> Self {
        let server = Server::builder(store)
            .lease_ttl(lease_ttl)
            .build()
            .await
            .unwrap();
        Self {
            server,
            place: Place::InProcess,
            window: None,
        }
    }

    /// What a shutdown does, without a listener.
    pub async fn close(&self) {
        self.server.close().await.unwrap();
    }

    pub fn begin_shutdown(&mut self) {
        let Place::Loopback { stop, .. } = &mut self.place else {
            panic!("serves no listener");
        };
        stop.take().unwrap().send(()).unwrap();
    }

    pub async fn stopped(self) {
        let Place::Loopback { serving, .. } = self.place else {
            panic!("serves no listener");
        };
        tokio::time::timeout(PATIENCE, serving)
            .await
            .expect("the server does not stop")
            .unwrap();
    }

    /// A connection that the server may refuse.
    pub async fn try_channel(&self) -> Result<Channel, tonic::transport::Error> {
        let Place::Loopback { address, .. } = &self.place else {
            panic!("serves no listener");
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        endpoint.connect().await
    }

    pub async fn channel(&self) -> Channel {
        match &self.place {
            Place::Loopback { .. } => self.try_channel().await.unwrap(),
            Place::InProcess => {
                let server = self.server.clone();
                Endpoint::from_static("http://in-process")
                    .initial_stream_window_size(self.window)
                    .connect_with_connector(tower::service_fn(move |_| {
                        let (near, far) = tokio::io::duplex(1 << 20);
                        tokio::spawn(server.clone().serve_stream(far));
                        async { Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(near)) }
                    }))
                    .await
                    .unwrap()
            }
        }
    }

    pub async fn calls(&self) -> PageServiceClient<Channel> {
        let channel = self.channel().await;
        PageServiceClient::new(channel)
            .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(usize::MAX)
    }

    /// A client with a session of its own.
    pub async fn client(&self) -> Client {
        self.client_with(None).await
    }

    pub async fn client_with(&self, process: Option<pb::ProcessIdentity>) -> Client {
        let mut client = Client {
            calls: self.calls().await,
            session: SessionId::random().unwrap(),
            process,
            stream: None,
            sequence: 0,
        };
        let welcome = client.connect().await;
        assert!(!welcome.resumed);
        client
    }
}

pub fn memory() -> Arc<dyn PageStore> {
    Arc::new(MemoryStore::new().unwrap())
}

/// A stream with its two directions.
pub struct Stream {
    pub outbound: mpsc::UnboundedSender<pb::SessionRequest>,
    pub inbound: Streaming<pb::SessionResponse>,
}

impl Stream {
    pub async fn begin(calls: &mut PageServiceClient<Channel>) -> Self {
        let (outbound, requests) = mpsc::unbounded_channel();
        let inbound = calls
            .session(UnboundedReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        Self { outbound, inbound }
    }

    pub fn send(&self, message: Request) {
        self.outbound
            .send(pb::SessionRequest {
                message: Some(message),
            })
            .unwrap();
    }

    /// The next news, or how the stream ended.
    pub async fn next(&mut self) -> Result<Option<News>, Status> {
        let next = tokio::time::timeout(PATIENCE, self.inbound.message())
            .await
            .expect("no news")?;
        Ok(next.map(|response| response.message.unwrap()))
    }
}

pub struct Client {
    pub calls: PageServiceClient<Channel>,
    pub session: SessionId,
    pub process: Option<pb::ProcessIdentity>,
    pub stream: Option<Stream>,
    sequence: u64,
}

/// A database that a client has open.
#[derive(Clone, Debug)]
pub struct Opened {
    pub id: Bytes,
    pub head: u64,
    pub answer: pb::OpenDatabaseResponse,
}

impl Client {
    pub fn hello(&self) -> pb::Hello {
        pb::Hello {
            protocol_major: 1,
            protocol_minor: 0,
            session_id: self.session.to_wire(),
            client_name: "test".into(),
            process: self.process.clone(),
            capabilities: Vec::new(),
            leases: Vec::new(),
            number: 0,
        }
    }

    /// Begins or resumes the session.
    pub async fn connect(&mut self) -> pb::Welcome {
        let mut stream = Stream::begin(&mut self.calls).await;
        stream.send(Request::Hello(self.hello()));
        let Some(News::Welcome(welcome)) = stream.next().await.unwrap() else {
            panic!("the first message is not Welcome");
        };
        self.stream = Some(stream);
        welcome
    }

    /// Sends heartbeats until the stream ends; nobody may wait for their answers.
    pub fn keep_alive(&self, every: Duration) {
        let outbound = self.stream.as_ref().unwrap().outbound.clone();
        tokio::spawn(async move {
            let heartbeat = pb::SessionRequest {
                message: Some(Request::Heartbeat(pb::Heartbeat::default())),
            };
            while outbound.send(heartbeat.clone()).is_ok() {
                tokio::time::sleep(every).await;
            }
        });
    }

    /// Ends the stream without a word, as a broken connection does.
    pub fn break_stream(&mut self) {
        self.stream = None;
    }

    /// Ends the session, and waits until the server has taken it.
    pub async fn goodbye(&mut self) {
        self.send(Request::Goodbye(pb::Goodbye {}));
        let mut stream = self.stream.take().unwrap();
        while stream.next().await.unwrap().is_some() {}
    }

    pub fn send(&self, message: Request) {
        self.stream.as_ref().unwrap().send(message);
    }

    /// The next news on the stream.
    pub async fn news(&mut self) -> News {
        let stream = self.stream.as_mut().unwrap();
        stream.next().await.unwrap().expect("the stream ended")
    }

    /// Whatever was sent before has been taken in by the server; there was no other news.
    pub async fn heartbeat(&mut self, floors: Vec<pb::DatabaseFloor>) {
        self.heartbeat_after_opens(floors, 0).await;
    }

    pub async fn heartbeat_after_opens(
        &mut self,
        floors: Vec<pb::DatabaseFloor>,
        settled_opens: u64,
    ) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(Request::Heartbeat(pb::Heartbeat {
            sequence,
            floors,
            settled_opens,
            stream: 0,
        }));
        assert_eq!(
            self.news().await,
            News::HeartbeatAck(pb::HeartbeatAck { sequence })
        );
    }

    pub async fn open_with(&mut self, request: pb::OpenDatabaseRequest) -> Result<Opened, Status> {
        let answer = self.calls.open_database(request).await?.into_inner();
        Ok(Opened {
            id: answer.database_id.clone(),
            head: answer.head.unwrap().version,
            answer,
        })
    }

    pub fn open_request(&self, name: &str, mode: pb::OpenMode) -> pb::OpenDatabaseRequest {
        pb::OpenDatabaseRequest {
            session_id: self.session.to_wire(),
            name: name.into(),
            mode: mode.into(),
            want_lease: false,
            want_page_bytes: 0,
            open_sequence: 0,
            at: None,
            pin_sequence: 0,
        }
    }

    pub async fn open(&mut self, name: &str) -> Opened {
        let request = self.open_request(name, pb::OpenMode::Create);
        self.open_with(request).await.unwrap()
    }

    pub fn acquire_request(&self, database: &Opened, wait_ms: u32) -> pb::AcquireLeaseRequest {
        pb::AcquireLeaseRequest {
            session_id: self.session.to_wire(),
            database_id: database.id.clone(),
            known_version: 0,
            released_epoch: 0,
            wait_ms,
            ..Default::default()
        }
    }

    /// The grant, or the number of sessions ahead.
    pub async fn try_acquire(
        &mut self,
        database: &Opened,
        wait_ms: u32,
    ) -> Result<pb::LeaseGrant, u32> {
        let request = self.acquire_request(database, wait_ms);
        acquired(
            self.calls
                .acquire_lease(request)
                .await
                .unwrap()
                .into_inner(),
        )
    }

    pub async fn acquire(&mut self, database: &Opened) -> u64 {
        self.try_acquire(database, 1000)
            .await
            .expect("the lease is pending")
            .epoch
    }

    pub fn release(&self, database: &Opened, epoch: u64, wants_back: bool) {
        self.send(Request::ReleaseLease(pb::ReleaseLease {
            database_id: database.id.clone(),
            epoch,
            wants_back,
        }));
    }

    pub async fn commit(&mut self, commit: &TestCommit) -> Result<CommitAnswer, Status> {
        self.commit_stream(commit.messages(self.session)).await
    }

    pub async fn commit_stream(
        &mut self,
        messages: Vec<pb::CommitRequest>,
    ) -> Result<CommitAnswer, Status> {
        let answer = self.calls.commit(tokio_stream::iter(messages)).await?;
        Ok(answer.into_inner().outcome.unwrap())
    }

    /// Opens a stream of CommitEach on which all of these messages wait, and says what it answers until it ends.
    pub async fn commit_each(
        &mut self,
        messages: Vec<pb::CommitRequest>,
    ) -> tonic::Streaming<pb::CommitResponse> {
        use tokio_stream::StreamExt as _;
        let open_end = tokio_stream::iter(messages).chain(tokio_stream::pending());
        self.calls.commit_each(open_end).await.unwrap().into_inner()
    }

    pub async fn read(
        &mut self,
        database: &Opened,
        version: u64,
        pages: &[u32],
    ) -> Result<Vec<pb::PageContent>, Status> {
        let request = pb::ReadPagesRequest {
            session_id: self.session.to_wire(),
            database_id: database.id.clone(),
            version,
            pages: pages.to_vec(),
        };
        Ok(self.calls.read_pages(request).await?.into_inner().pages)
    }

    pub async fn head(&mut self, database: &Opened) -> Result<u64, Status> {
        let request = pb::BeginSnapshotRequest {
            session_id: self.session.to_wire(),
            database_id: database.id.clone(),
            known_version: 0,
            want_page_1: false,
        };
        let answer = self.calls.begin_snapshot(request).await?.into_inner();
        Ok(answer.head.unwrap().version)
    }

    pub async fn resolve(&mut self, commit: &TestCommit) -> pb::resolve_commit_response::Outcome {
        let request = pb::ResolveCommitRequest {
            session_id: self.session.to_wire(),
            commit_id: commit.id.to_wire(),
            participants: commit
                .databases
                .iter()
                .map(|database| pb::CommitParticipant {
                    database_id: database.database_id.clone(),
                    base_version: database.base_version,
                    epoch: database.epoch,
                })
                .collect(),
        };
        let answer = self.calls.resolve_commit(request).await.unwrap();
        answer.into_inner().outcome.unwrap()
    }
}

pub type CommitAnswer = pb::commit_response::Outcome;

pub fn committed(versions: &[u64]) -> CommitAnswer {
    CommitAnswer::Committed(pb::Committed {
        versions: versions.to_vec(),
    })
}

pub fn acquired(answer: pb::AcquireLeaseResponse) -> Result<pb::LeaseGrant, u32> {
    match answer.outcome.unwrap() {
        pb::acquire_lease_response::Outcome::Granted(grant) => Ok(grant),
        pb::acquire_lease_response::Outcome::Pending(pending) => Err(pending.ahead),
        outcome @ pb::acquire_lease_response::Outcome::Deadlock(_) => panic!("{outcome:?}"),
    }
}

/// A commit that can be sent as often as a test likes.
#[derive(Clone)]
pub struct TestCommit {
    pub id: CommitId,
    pub databases: Vec<pb::CommitDatabase>,
    pub batches: Vec<pb::PageBatch>,
}

impl TestCommit {
    /// Page 1 of one database, filled with `fill`.
    pub fn new(database: &Opened, base: u64, epoch: u64, fill: u8) -> Self {
        Self {
            id: CommitId::random().unwrap(),
            databases: vec![pb::CommitDatabase {
                database_id: database.id.clone(),
                base_version: base,
                epoch,
                page_size: PAGE_SIZE,
                page_count: 1,
                staging_ids: Vec::new(),
                restore_version: 0,
            }],
            batches: vec![pb::PageBatch {
                database_index: 0,
                pages: vec![page(1, fill)],
            }],
        }
    }

    pub fn messages(&self, session: SessionId) -> Vec<pb::CommitRequest> {
        let mut checksum = CommitChecksum::default();
        for page in self.batches.iter().flat_map(|batch| &batch.pages) {
            checksum.add(page.crc32);
        }
        let mut messages = vec![pb::CommitRequest {
            header: Some(pb::CommitHeader {
                session_id: session.to_wire(),
                commit_id: self.id.to_wire(),
                databases: self.databases.clone(),
            }),
            batches: Vec::new(),
            finish: None,
        }];
        messages.extend(self.batches.iter().map(|batch| pb::CommitRequest {
            header: None,
            batches: vec![batch.clone()],
            finish: None,
        }));
        messages.last_mut().unwrap().finish = Some(checksum.finish());
        messages
    }
}

pub fn page(number: u32, fill: u8) -> pb::PageContent {
    page_of(number, Bytes::from(vec![fill; PAGE_SIZE as usize]))
}

pub fn page_of(number: u32, content: Bytes) -> pb::PageContent {
    let number = pagewire_proto::PageNumber::try_from(number).unwrap();
    pagewire_proto::Page {
        number,
        content,
        version: pagewire_proto::Version::ZERO,
    }
    .to_wire()
}

/// The reason of a refusal.
pub fn reason<T: std::fmt::Debug>(refused: Result<T, Status>) -> Reason {
    let status = refused.expect_err("was not refused");
    assert!(Reason::is_explicit(&status), "{status:?}");
    Reason::of(&status)
}
