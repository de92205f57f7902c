//! The service of a proxy: each call goes on to the real server, unless a fault strikes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};

use pagewire_proto::pb;
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::pb::page_service_server::PageService;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::MESSAGE_BYTES;
use super::faults::{Call, Commits, Fault, Lost, News, Passed};

/// See the file's header.
#[derive(Clone)]
pub(super) struct CallRelay {
    pub(super) channel: Channel,
    pub(super) faults: Arc<Mutex<VecDeque<(Call, Fault)>>>,
    pub(super) losses: Arc<Mutex<Vec<Lost>>>,
    pub(super) strike: mpsc::Sender<Call>,
    pub(super) open: watch::Receiver<bool>,
    pub(super) news: Arc<Mutex<News>>,
    pub(super) cut: watch::Receiver<u64>,
    pub(super) commits: Arc<Mutex<Commits>>,
    pub(super) passed: Arc<Mutex<Vec<Passed>>>,
    pub(super) acquires: Arc<Mutex<Vec<pb::AcquireLeaseRequest>>>,
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

    fn passes_on(&self, what: Passed) {
        self.passed.lock().expect("passed").push(what);
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
            Some(Fault::UnknownCall) => {
                self.strikes(call);
                return Err(Status::unimplemented(""));
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
                Fault::AnswerBroken
                | Fault::AnswerSilent
                | Fault::FlippedBit
                | Fault::WrongPages
                | Fault::SetBack,
            ) => {}
        }
        self.passes_on(Passed::Call(call));
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
            Some(fault @ (Fault::FlippedBit | Fault::WrongPages | Fault::SetBack)) => {
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

fn is_welcome(message: &pb::SessionResponse) -> bool {
    use pb::session_response::Message;
    matches!(message.message, Some(Message::Welcome(_)))
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
    panic!("{fault:?} is for another call");
}

fn set_back(answer: &mut pb::AcquireLeaseResponse, _: &Fault) {
    use pb::acquire_lease_response::Outcome;
    let Some(Outcome::Granted(pb::LeaseGrant {
        head: Some(head), ..
    })) = &mut answer.outcome
    else {
        panic!("a grant was to be set back");
    };
    head.version = 1;
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
                relay.commits.lock().expect("commits").see_session(&message);
                let news = Lost::of_request(&message);
                if relay.is_lost(news) {
                    return;
                }
                if let Some(news) = news {
                    relay.passes_on(Passed::News(news));
                }
                if up.send(message).await.is_err() {
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
                let Some(mut answer) = answer else { return };
                if let Ok(answer) = &mut answer {
                    relay.commits.lock().expect("commits").see_answer(answer);
                }
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
                if answer.as_ref().is_ok_and(is_welcome) {
                    relay.passes_on(Passed::Welcome);
                }
                if let Some(news) = answer.as_ref().ok().and_then(Lost::of_response) {
                    relay.passes_on(Passed::News(news));
                }
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
        let asked = request.get_ref().clone();
        self.acquires.lock().expect("acquires").push(asked);
        unary!(self, Call::Acquire, acquire_lease, request, set_back)
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
        let mut messages = collect(request.into_inner()).await?;
        for message in &mut messages {
            self.commits.lock().expect("commits").see(message);
        }
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
                let Some(Ok(mut message)) = message else {
                    return;
                };
                relay.commits.lock().expect("commits").see(&mut message);
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
