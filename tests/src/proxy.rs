//! A page service that passes every call on to the real server and loses single requests or answers on purpose.
//!
//! A fault is armed by name and strikes once. "After it was applied" is a moment of its own. The proxy never makes an
//! answer up, apart from the ones that a test arms as nonsense.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::pb::page_service_server::{PageService, PageServiceServer};
use pagewire_proto::status::Reason;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

const MESSAGE_BYTES: usize = 64 << 20;

/// Which call a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// OpenDatabase
    Open,
    /// BeginSnapshot
    Begin,
    /// ReadPages
    Read,
    /// AcquireLease
    Acquire,
    /// StagePages
    Stage,
    /// Commit
    Commit,
    /// ResolveCommit
    Resolve,
    /// The calls about old versions, tags and branches.
    History,
}

/// What happens to the call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The server carries it out; the caller gets the error of a broken connection.
    AnswerBroken,
    /// The server carries it out; the caller never hears of it.
    AnswerSilent,
    /// The server never sees it; the caller gets the error of a broken connection.
    RequestBroken,
    /// The server never sees it, and the caller never hears of it.
    RequestSilent,
    /// The caller gets the error of a broken connection at once, and the server sees the call so much later.
    RequestLate(Duration),
    /// Passed on so much later.
    Delay(Duration),
    /// The server never sees it; the caller gets the status that a server sends for the reason.
    Refused(Reason),
    /// ReadPages: one bit of the first page's content is another.
    FlippedBit,
    /// ReadPages: pages that nobody asked for, in the place of the right ones.
    WrongPages,
    /// Any: an answer with nothing in it.
    Empty,
}

/// What happens to the news of subscriptions on all session streams, until it is set anew. Their order stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct News {
    /// Each message of the server, heartbeats included, waits so long before it is passed on.
    pub delay: Duration,
    /// News comes twice.
    pub twice: bool,
}

/// A message on the session stream. One that is lost takes the stream with it, as on any connection that breaks: the next one
/// resumes the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// CloseDatabase
    Close,
    /// ReleaseLease
    Release,
    /// LeaseGranted
    Granted,
    /// LeaseRecall
    Recall,
}

impl Lost {
    fn of_request(message: &pb::SessionRequest) -> Option<Self> {
        use pb::session_request::Message;
        match &message.message {
            Some(Message::CloseDatabase(_)) => Some(Lost::Close),
            Some(Message::ReleaseLease(_)) => Some(Lost::Release),
            _ => None,
        }
    }

    fn of_response(message: &pb::SessionResponse) -> Option<Self> {
        use pb::session_response::Message;
        match &message.message {
            Some(Message::LeaseGranted(_)) => Some(Lost::Granted),
            Some(Message::LeaseRecall(_)) => Some(Lost::Recall),
            _ => None,
        }
    }
}

/// A proxy on a port of its own.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    faults: Arc<Mutex<VecDeque<(Call, Fault)>>>,
    losses: Arc<Mutex<Vec<Lost>>>,
    struck: mpsc::Receiver<Call>,
    gate: watch::Sender<bool>,
    news: Arc<Mutex<News>>,
    cuts: watch::Sender<u64>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Proxy {
    /// In front of `upstream` (`http://127.0.0.1:PORT`).
    pub fn new(upstream: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .expect("bind");
        let address = listener.local_addr().expect("address").to_string();
        let channel = {
            let _inside = runtime.enter();
            Endpoint::from_shared(upstream.to_owned())
                .expect("endpoint")
                .connect_lazy()
        };
        let faults = Arc::new(Mutex::new(VecDeque::new()));
        let losses = Arc::new(Mutex::new(Vec::new()));
        let (strike, struck) = mpsc::channel();
        let (gate, open) = watch::channel(true);
        let news = Arc::new(Mutex::new(News::default()));
        let (cuts, cut) = watch::channel(0);
        let relay = CallRelay {
            channel,
            faults: Arc::clone(&faults),
            losses: Arc::clone(&losses),
            strike,
            open,
            news: Arc::clone(&news),
            cut,
        };
        let service = PageServiceServer::new(relay)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        let incoming = TcpListenerStream::new(listener).map(|accepted| {
            // As a page server does: otherwise a small answer waits for the acknowledgement of the one before.
            accepted.inspect(|stream| drop(stream.set_nodelay(true)))
        });
        runtime.spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        Self {
            address,
            faults,
            losses,
            struck,
            gate,
            news,
            cuts,
            runtime: Some(runtime),
        }
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets `fault` strike the next `call`, once.
    pub fn arm(&self, call: Call, fault: Fault) {
        self.faults.lock().expect("faults").push_back((call, fault));
    }

    /// Loses the next such message, once, and breaks the session stream in its place.
    pub fn lose(&self, news: Lost) {
        self.losses.lock().expect("losses").push(news);
    }

    /// Whether every message that was to be lost is lost.
    pub fn has_lost_all(&self) -> bool {
        self.losses.lock().expect("losses").is_empty()
    }

    /// Waits until an armed fault has struck. After `AnswerBroken` and `AnswerSilent` the server has answered by then.
    pub fn wait_for_strike(&self, call: Call) {
        let struck = self
            .struck
            .recv_timeout(Duration::from_secs(30))
            .expect("the fault never struck");
        assert_eq!(struck, call);
    }

    /// Forgets what is armed and has not struck.
    pub fn disarm(&self) {
        self.faults.lock().expect("faults").clear();
    }

    /// Whether every armed fault has struck.
    pub fn is_disarmed(&self) -> bool {
        self.faults.lock().expect("faults").is_empty()
    }

    /// From now on nothing passes, in either direction, heartbeats included; nothing is lost either.
    pub fn black_out(&self) {
        self.gate.send_replace(false);
    }

    /// Sets what happens to news.
    pub fn set_news(&self, news: News) {
        *self.news.lock().expect("news") = news;
    }

    /// Breaks every session stream that there is, in both directions. What was under way is lost.
    pub fn cut_sessions(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Ends a black-out.
    pub fn lift(&self) {
        self.gate.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct CallRelay {
    channel: Channel,
    faults: Arc<Mutex<VecDeque<(Call, Fault)>>>,
    losses: Arc<Mutex<Vec<Lost>>>,
    strike: mpsc::Sender<Call>,
    open: watch::Receiver<bool>,
    news: Arc<Mutex<News>>,
    cut: watch::Receiver<u64>,
}

fn broken() -> Status {
    // No `pagewire-reason`: as the transport says it.
    Status::unavailable("the proxy broke the connection")
}

async fn passes(mut open: watch::Receiver<bool>) {
    // The sender lives as long as the runtime that drives this.
    let _ = open.wait_for(|open| *open).await;
}

impl CallRelay {
    fn client(&self) -> PageServiceClient<Channel> {
        PageServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    fn armed(&self, call: Call) -> Option<Fault> {
        let mut faults = self.faults.lock().expect("faults");
        let index = faults.iter().position(|(armed, _)| *armed == call)?;
        faults.remove(index).map(|(_, fault)| fault)
    }

    fn is_lost(&self, news: Option<Lost>) -> bool {
        let mut losses = self.losses.lock().expect("losses");
        match losses.iter().position(|lost| Some(*lost) == news) {
            Some(index) => {
                losses.remove(index);
                true
            }
            None => false,
        }
    }

    fn strikes(&self, call: Call) {
        // The test may have stopped listening.
        let _ = self.strike.send(call);
    }

    /// One call with whatever is armed for it; `forward` makes the real one.
    async fn relay<A, F>(
        &self,
        call: Call,
        forward: F,
        spoil: fn(&mut A, &Fault),
    ) -> Result<Response<A>, Status>
    where
        A: Default + Send + 'static,
        F: Future<Output = Result<Response<A>, Status>> + Send + 'static,
    {
        passes(self.open.clone()).await;
        let fault = self.armed(call);
        match &fault {
            None => {}
            Some(Fault::RequestBroken) => {
                self.strikes(call);
                return Err(broken());
            }
            Some(Fault::RequestSilent) => {
                self.strikes(call);
                return std::future::pending().await;
            }
            Some(Fault::RequestLate(delay)) => {
                let delay = *delay;
                let late = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _ = forward.await;
                    late.strikes(call);
                });
                return Err(broken());
            }
            Some(Fault::Refused(reason)) => {
                self.strikes(call);
                return Err(reason.status("refused by the proxy"));
            }
            Some(Fault::Empty) => {
                self.strikes(call);
                return Ok(Response::new(A::default()));
            }
            Some(Fault::Delay(delay)) => {
                self.strikes(call);
                tokio::time::sleep(*delay).await;
            }
            Some(
                Fault::AnswerBroken | Fault::AnswerSilent | Fault::FlippedBit | Fault::WrongPages,
            ) => {}
        }
        let mut answer = forward.await;
        passes(self.open.clone()).await;
        match &fault {
            Some(Fault::AnswerBroken) => {
                self.strikes(call);
                return Err(broken());
            }
            Some(Fault::AnswerSilent) => {
                self.strikes(call);
                return std::future::pending().await;
            }
            Some(fault @ (Fault::FlippedBit | Fault::WrongPages)) => {
                if let Ok(answer) = &mut answer {
                    spoil(answer.get_mut(), fault);
                }
                self.strikes(call);
            }
            _ => {}
        }
        answer
    }
}

fn is_news(message: &pb::SessionResponse) -> bool {
    use pb::session_response::Message;
    matches!(
        message.message,
        Some(
            Message::Subscribed(_)
                | Message::Prepare(_)
                | Message::Published(_)
                | Message::PrepareAborted(_)
        )
    )
}

fn leave<A>(_: &mut A, fault: &Fault) {
    panic!("{fault:?} is for ReadPages");
}

fn spoil_pages(answer: &mut pb::ReadPagesResponse, fault: &Fault) {
    for page in &mut answer.pages {
        match fault {
            Fault::WrongPages => page.number += 1,
            _ => {
                let mut content = page.content.to_vec();
                if let Some(byte) = content.last_mut() {
                    *byte ^= 1;
                }
                page.content = content.into();
            }
        }
    }
}

/// All messages of a client stream; a stream that breaks off is passed on as one that does.
async fn collect<M>(mut stream: Streaming<M>) -> Result<Vec<M>, Status> {
    let mut messages = Vec::new();
    while let Some(message) = stream.next().await {
        messages.push(message?);
    }
    Ok(messages)
}

macro_rules! unary {
    ($self:ident, $call:expr, $method:ident, $request:ident, $spoil:expr) => {{
        let mut client = $self.client();
        $self
            .relay($call, async move { client.$method($request).await }, $spoil)
            .await
    }};
}

#[tonic::async_trait]
impl PageService for CallRelay {
    type SessionStream = ReceiverStream<Result<pb::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        passes(self.open.clone()).await;
        let (metadata, extensions, mut inbound) = request.into_parts();
        let (up, upstream) = tokio::sync::mpsc::channel(16);
        let open = self.open.clone();
        let relay = self.clone();
        // Both directions end together.
        let (alive, mut other_is_dead) = watch::channel(());
        let mut cut = self.cut.clone();
        cut.mark_unchanged();
        let mut cut_upstream = cut.clone();
        tokio::spawn(async move {
            let _alive = alive;
            loop {
                let message = tokio::select! {
                    message = inbound.next() => message,
                    _ = cut_upstream.changed() => None,
                };
                let Some(Ok(message)) = message else { return };
                passes(open.clone()).await;
                if relay.is_lost(Lost::of_request(&message)) || up.send(message).await.is_err() {
                    return;
                }
            }
        });
        let request = Request::from_parts(metadata, extensions, ReceiverStream::new(upstream));
        let mut answers = self.client().session(request).await?.into_inner();
        let (down, downstream) = tokio::sync::mpsc::channel(16);
        let open = self.open.clone();
        let faults = Arc::clone(&self.news);
        let relay = self.clone();
        tokio::spawn(async move {
            loop {
                let answer = tokio::select! {
                    answer = answers.next() => answer,
                    _ = other_is_dead.changed() => None,
                    // The client went away: so does its stream to the server.
                    () = down.closed() => None,
                    _ = cut.changed() => None,
                };
                let Some(answer) = answer else { return };
                passes(open.clone()).await;
                let is_lost = answer
                    .as_ref()
                    .is_ok_and(|answer| relay.is_lost(Lost::of_response(answer)));
                if is_lost {
                    return;
                }
                let faults = *faults.lock().expect("news");
                tokio::time::sleep(faults.delay).await;
                let times = match &answer {
                    Ok(answer) if faults.twice && is_news(answer) => 2,
                    _ => 1,
                };
                for _ in 0..times {
                    if down.send(answer.clone()).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(downstream)))
    }

    async fn open_database(
        &self,
        request: Request<pb::OpenDatabaseRequest>,
    ) -> Result<Response<pb::OpenDatabaseResponse>, Status> {
        unary!(self, Call::Open, open_database, request, leave)
    }

    async fn begin_snapshot(
        &self,
        request: Request<pb::BeginSnapshotRequest>,
    ) -> Result<Response<pb::BeginSnapshotResponse>, Status> {
        unary!(self, Call::Begin, begin_snapshot, request, leave)
    }

    async fn read_pages(
        &self,
        request: Request<pb::ReadPagesRequest>,
    ) -> Result<Response<pb::ReadPagesResponse>, Status> {
        unary!(self, Call::Read, read_pages, request, spoil_pages)
    }

    async fn acquire_lease(
        &self,
        request: Request<pb::AcquireLeaseRequest>,
    ) -> Result<Response<pb::AcquireLeaseResponse>, Status> {
        unary!(self, Call::Acquire, acquire_lease, request, leave)
    }

    async fn stage_pages(
        &self,
        request: Request<Streaming<pb::StagePagesRequest>>,
    ) -> Result<Response<pb::StagePagesResponse>, Status> {
        let messages = collect(request.into_inner()).await?;
        let mut client = self.client();
        let forward = async move { client.stage_pages(tokio_stream::iter(messages)).await };
        self.relay(Call::Stage, forward, leave).await
    }

    async fn commit(
        &self,
        request: Request<Streaming<pb::CommitRequest>>,
    ) -> Result<Response<pb::CommitResponse>, Status> {
        let messages = collect(request.into_inner()).await?;
        let mut client = self.client();
        let forward = async move { client.commit(tokio_stream::iter(messages)).await };
        self.relay(Call::Commit, forward, leave).await
    }

    type CommitEachStream = ReceiverStream<Result<pb::CommitResponse, Status>>;

    /// Each message as a call of Commit would be treated; a broken one breaks the stream.
    async fn commit_each(
        &self,
        request: Request<Streaming<pb::CommitRequest>>,
    ) -> Result<Response<Self::CommitEachStream>, Status> {
        let mut inbound = request.into_inner();
        let (up, upstream) = tokio::sync::mpsc::channel(1);
        let (down, downstream) = tokio::sync::mpsc::channel(1);
        let relay = self.clone();
        tokio::spawn(async move {
            // One answer stream for the whole of them, as for a client that talks to the server itself.
            let mut upstream = Some(ReceiverStream::new(upstream));
            let answers = Arc::new(tokio::sync::Mutex::new(None));
            loop {
                let message = tokio::select! {
                    message = inbound.next() => message,
                    () = down.closed() => None,
                };
                let Some(Ok(message)) = message else { return };
                let (up, answers, begin) = (up.clone(), Arc::clone(&answers), upstream.take());
                let mut client = relay.client();
                let forward = async move {
                    let mut answers = answers.lock().await;
                    // The server ends its side after an error.
                    let _ = up.send(message).await;
                    if let Some(upstream) = begin {
                        *answers = Some(client.commit_each(upstream).await?.into_inner());
                    }
                    let stream = answers.as_mut().ok_or_else(broken)?;
                    let answer = stream.message().await?;
                    Ok(Response::new(answer.ok_or_else(broken)?))
                };
                let answer = relay.relay(Call::Commit, forward, leave).await;
                let failed = answer.is_err();
                if down.send(answer.map(Response::into_inner)).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(downstream)))
    }

    async fn resolve_commit(
        &self,
        request: Request<pb::ResolveCommitRequest>,
    ) -> Result<Response<pb::ResolveCommitResponse>, Status> {
        unary!(self, Call::Resolve, resolve_commit, request, leave)
    }

    async fn list_databases(
        &self,
        request: Request<pb::ListDatabasesRequest>,
    ) -> Result<Response<pb::ListDatabasesResponse>, Status> {
        self.client().list_databases(request).await
    }

    async fn delete_database(
        &self,
        request: Request<pb::DeleteDatabaseRequest>,
    ) -> Result<Response<pb::DeleteDatabaseResponse>, Status> {
        self.client().delete_database(request).await
    }

    async fn find_version(
        &self,
        request: Request<pb::FindVersionRequest>,
    ) -> Result<Response<pb::FindVersionResponse>, Status> {
        unary!(self, Call::History, find_version, request, leave)
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        unary!(self, Call::History, list_versions, request, leave)
    }

    async fn diff_versions(
        &self,
        request: Request<pb::DiffVersionsRequest>,
    ) -> Result<Response<pb::DiffVersionsResponse>, Status> {
        unary!(self, Call::History, diff_versions, request, leave)
    }

    async fn set_tag(
        &self,
        request: Request<pb::SetTagRequest>,
    ) -> Result<Response<pb::SetTagResponse>, Status> {
        unary!(self, Call::History, set_tag, request, leave)
    }

    async fn delete_tag(
        &self,
        request: Request<pb::DeleteTagRequest>,
    ) -> Result<Response<pb::DeleteTagResponse>, Status> {
        unary!(self, Call::History, delete_tag, request, leave)
    }

    async fn create_branch(
        &self,
        request: Request<pb::CreateBranchRequest>,
    ) -> Result<Response<pb::CreateBranchResponse>, Status> {
        unary!(self, Call::History, create_branch, request, leave)
    }

    async fn describe_database(
        &self,
        request: Request<pb::DescribeDatabaseRequest>,
    ) -> Result<Response<pb::DescribeDatabaseResponse>, Status> {
        unary!(self, Call::History, describe_database, request, leave)
    }

    async fn collect_garbage(
        &self,
        request: Request<pb::CollectGarbageRequest>,
    ) -> Result<Response<pb::CollectGarbageResponse>, Status> {
        unary!(self, Call::History, collect_garbage, request, leave)
    }
}
