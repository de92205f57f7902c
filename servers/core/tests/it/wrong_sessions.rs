//! Servers that are wrong in one way each in what they do with sessions and leases, or after a death: the suite has to say so, by the rule that
//! the fault breaks. A right server is behind a door that lets some messages not through, or adds some; or stands on a store that forgets.
//!
//! The rules of stores have theirs in `servers/memory` and `servers/versioned_memory`, e01 in `servers/memory/tests/it/endpoint.rs`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{Stream, StreamExt as _};
use pagewire_memory::MemoryStore;
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::pb::page_service_server::{PageService, PageServiceServer};
use pagewire_proto::pb::session_request::Message as Said;
use pagewire_proto::pb::session_response::Message as Heard;
use pagewire_proto::{DatabaseId, DatabaseName, Epoch, pb};
use pagewire_server::conformance::Verdict;
use pagewire_server::conformance::endpoint::{Endpoint, Restart, Tier, Trialled, earned};
use pagewire_server::layer::Layer;
use pagewire_server::store::{Capabilities, PageStore, StoreError};
use pagewire_server::{Server, bind_tcp};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

const TTL: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A session that has lapsed is answered all the same.
    SessionsNeverEnd,
    /// The holder does not hear that somebody wants its lease.
    NobodyIsRecalled,
    /// Who waits does not hear that the lease is kept.
    KeepIsNotHeard,
    /// A session that comes back has nothing.
    StreamsAreNotResumed,
    /// A stream that breaks counts as a farewell, so the next version need not wait.
    BrokenStreamsAreFarewells,
}

/// The rules that have to notice.
const NOTICED_BY: &[(Fault, &str)] = &[
    (Fault::SessionsNeverEnd, "s01"),
    (Fault::NobodyIsRecalled, "l01"),
    (Fault::KeepIsNotHeard, "l02"),
    (Fault::StreamsAreNotResumed, "l03"),
    (Fault::BrokenStreamsAreFarewells, "l04"),
];

/// A page server that asks another one.
struct Door {
    calls: PageServiceClient<Channel>,
    fault: Option<Fault>,
    /// The newest answer for each database.
    heads: Mutex<HashMap<Vec<u8>, pb::BeginSnapshotResponse>>,
}

/// What of a client gets through.
fn said(fault: Option<Fault>, message: &pb::SessionRequest) -> bool {
    let is_keep = matches!(message.message, Some(Said::KeepLease(_)));
    !(is_keep && fault == Some(Fault::KeepIsNotHeard))
}

/// What of the server gets through.
fn heard(fault: Option<Fault>, message: &mut pb::SessionResponse) -> bool {
    match (&mut message.message, fault) {
        (Some(Heard::LeaseRecall(_)), Some(Fault::NobodyIsRecalled)) => false,
        (Some(Heard::Welcome(welcome)), Some(Fault::StreamsAreNotResumed)) => {
            welcome.resumed = false;
            welcome.leases.clear();
            true
        }
        _ => true,
    }
}

/// As long as the client sends something.
fn whole<T: Send + 'static>(messages: Streaming<T>) -> impl Stream<Item = T> + Send {
    messages.filter_map(|message| std::future::ready(message.ok()))
}

type SessionStream = UnboundedReceiverStream<Result<pb::SessionResponse, Status>>;

impl Door {
    async fn pass_session(
        &self,
        request: Request<Streaming<pb::SessionRequest>>,
    ) -> Result<Response<SessionStream>, Status> {
        let fault = self.fault;
        let mut messages = request.into_inner();
        let (to_server, from_client) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if said(fault, &message) {
                    let _ = to_server.send(message);
                }
            }
            if fault == Some(Fault::BrokenStreamsAreFarewells) {
                let farewell = Said::Goodbye(pb::Goodbye::default());
                let _ = to_server.send(pb::SessionRequest {
                    message: Some(farewell),
                });
            }
        });
        let messages = UnboundedReceiverStream::new(from_client);
        let mut answers = self.calls.clone().session(messages).await?.into_inner();
        let (to_client, from_server) = mpsc::unbounded_channel();
        // Reads on to the end, so that what is on its way to the server arrives although the client is gone.
        tokio::spawn(async move {
            while let Ok(Some(mut answer)) = answers.message().await {
                if heard(fault, &mut answer) {
                    let _ = to_client.send(Ok(answer));
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(from_server)))
    }

    async fn pass_question(
        &self,
        request: Request<pb::BeginSnapshotRequest>,
    ) -> Result<Response<pb::BeginSnapshotResponse>, Status> {
        let request = request.into_inner();
        let database = request.database_id.to_vec();
        let answer = self.calls.clone().begin_snapshot(request).await;
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                self.heads.lock().insert(database, answer.clone());
                Ok(Response::new(answer))
            }
            Err(refused) if self.fault == Some(Fault::SessionsNeverEnd) => {
                let known = self.heads.lock().get(&database).cloned();
                known.map(Response::new).ok_or(refused)
            }
            Err(refused) => Err(refused),
        }
    }
}

/// All calls: some are looked at, the others go through as they are.
macro_rules! page_service {
    ($($call:ident: $request:ident -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl PageService for Door {
            type SessionStream = SessionStream;
            type CommitEachStream = Streaming<pb::CommitResponse>;

            async fn session(
                &self,
                request: Request<Streaming<pb::SessionRequest>>,
            ) -> Result<Response<SessionStream>, Status> {
                self.pass_session(request).await
            }

            async fn begin_snapshot(
                &self,
                request: Request<pb::BeginSnapshotRequest>,
            ) -> Result<Response<pb::BeginSnapshotResponse>, Status> {
                self.pass_question(request).await
            }

            async fn commit(
                &self,
                request: Request<Streaming<pb::CommitRequest>>,
            ) -> Result<Response<pb::CommitResponse>, Status> {
                self.calls.clone().commit(whole(request.into_inner())).await
            }

            async fn commit_each(
                &self,
                request: Request<Streaming<pb::CommitRequest>>,
            ) -> Result<Response<Self::CommitEachStream>, Status> {
                self.calls.clone().commit_each(whole(request.into_inner())).await
            }

            async fn stage_pages(
                &self,
                request: Request<Streaming<pb::StagePagesRequest>>,
            ) -> Result<Response<pb::StagePagesResponse>, Status> {
                self.calls.clone().stage_pages(whole(request.into_inner())).await
            }

            $(
                async fn $call(
                    &self,
                    request: Request<pb::$request>,
                ) -> Result<Response<pb::$response>, Status> {
                    self.calls.clone().$call(request.into_inner()).await
                }
            )*
        }
    };
}

page_service! {
    open_database: OpenDatabaseRequest -> OpenDatabaseResponse;
    read_pages: ReadPagesRequest -> ReadPagesResponse;
    acquire_lease: AcquireLeaseRequest -> AcquireLeaseResponse;
    resolve_commit: ResolveCommitRequest -> ResolveCommitResponse;
    find_version: FindVersionRequest -> FindVersionResponse;
    list_versions: ListVersionsRequest -> ListVersionsResponse;
    diff_versions: DiffVersionsRequest -> DiffVersionsResponse;
    set_tag: SetTagRequest -> SetTagResponse;
    delete_tag: DeleteTagRequest -> DeleteTagResponse;
    create_branch: CreateBranchRequest -> CreateBranchResponse;
    describe_database: DescribeDatabaseRequest -> DescribeDatabaseResponse;
    collect_garbage: CollectGarbageRequest -> CollectGarbageResponse;
    list_databases: ListDatabasesRequest -> ListDatabasesResponse;
    delete_database: DeleteDatabaseRequest -> DeleteDatabaseResponse;
}

fn rule(name: &str) -> &'static str {
    Endpoint::rules()
        .find(|rule| rule.starts_with(name))
        .unwrap()
}

/// Tries a rule on a right server behind a door.
async fn trial(fault: Option<Fault>, name: &str) -> Trialled {
    let store = Arc::new(MemoryStore::new().unwrap());
    let server = Server::builder(store).lease_ttl(TTL).build().await.unwrap();
    let (listener, right) = bind_tcp("127.0.0.1:0").await.unwrap();
    let serving = tokio::spawn(server.serve_tcp(listener, std::future::pending()));
    let channel = Channel::from_shared(format!("http://{right}")).unwrap();
    let door = Door {
        calls: PageServiceClient::new(channel.connect().await.unwrap()),
        fault,
        heads: Mutex::default(),
    };
    let (listener, address) = bind_tcp("127.0.0.1:0").await.unwrap();
    let incoming = TcpListenerStream::new(listener);
    let door = tonic::transport::Server::builder().add_service(PageServiceServer::new(door));
    let open = tokio::spawn(door.serve_with_incoming(incoming));
    let endpoint = Endpoint::new(format!("http://{address}"), None);
    let trial = endpoint.try_rule(rule(name), 1).await;
    open.abort();
    serving.abort();
    trial
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_wrong_about_sessions_are_caught_by_name() {
    for (fault, name) in NOTICED_BY {
        let right = trial(None, name).await;
        assert!(
            matches!(right.outcome, Ok(Verdict::Kept)),
            "{name}: {:?}",
            right.outcome
        );
        let wrong = trial(Some(*fault), name).await;
        let violation = wrong
            .outcome
            .expect_err(&format!("{fault:?} passed {name}"));
        assert!(!wrong.exchanges.is_empty());
        println!("{fault:?} by {}: {violation}", wrong.rule);
    }
}

/// What a server that calls itself durable forgets when it dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forgets {
    Nothing,
    /// That leases of the one before may still be trusted.
    Trust,
    /// Which epochs there were.
    Epochs,
    /// Everything: it was in memory.
    Content,
}

/// A store that its process can lose, and does or does not.
#[derive(Debug)]
struct Mortal {
    right: MemoryStore,
    forgets: Forgets,
    /// The longest TTL under which leases were granted that may still be trusted.
    trusted: Mutex<Duration>,
    /// What is taken off of epochs.
    forgotten: Mutex<HashMap<DatabaseId, u64>>,
    /// So many removals are refused: a server that was killed may have the database open, for all that is known.
    refuses: AtomicU32,
}

#[async_trait]
impl Layer for Mortal {
    fn inner(&self) -> &dyn PageStore {
        &self.right
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: true,
            ..self.right.capabilities()
        }
    }

    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        let mut trusted = self.trusted.lock();
        let before = *trusted;
        *trusted = before.max(lease_ttl);
        Ok(match self.forgets {
            Forgets::Trust => Duration::ZERO,
            _ => before,
        })
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        let less = |times: u32| times.checked_sub(1);
        let relaxed = Ordering::Relaxed;
        match self.refuses.fetch_update(relaxed, relaxed, less) {
            Ok(_) => Err(StoreError::Unavailable("it is open elsewhere".to_owned())),
            Err(_) => self.right.remove(name).await,
        }
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let epoch = self.right.fence(database).await?;
        let forgotten = self.forgotten.lock().get(&database).copied();
        Ok(Epoch::new(epoch.get() - forgotten.unwrap_or(0)))
    }

    async fn commit(
        &self,
        mut commit: pagewire_server::store::Commit,
    ) -> Result<pagewire_server::store::CommitOutcome, StoreError> {
        for part in &mut commit.databases {
            let forgotten = self.forgotten.lock().get(&part.database).copied();
            part.epoch = Epoch::new(part.epoch.get() + forgotten.unwrap_or(0));
        }
        self.right.commit(commit).await
    }
}

/// A server that can be killed and started again at its address.
struct Machine {
    store: Mutex<Arc<Mortal>>,
    process: Mutex<Option<Runtime>>,
    address: SocketAddr,
}

impl Machine {
    fn store(forgets: Forgets) -> Arc<Mortal> {
        Arc::new(Mortal {
            right: MemoryStore::new().unwrap(),
            forgets,
            trusted: Mutex::default(),
            forgotten: Mutex::default(),
            refuses: AtomicU32::new(0),
        })
    }

    async fn start(&self) -> Result<(), StoreError> {
        let failed = |error: &dyn std::fmt::Display| StoreError::Internal(error.to_string());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let (store, address) = (Arc::clone(&self.store.lock()), self.address);
        let begun = runtime.spawn(async move {
            let server = Server::builder(store).lease_ttl(TTL).build().await.unwrap();
            let listener = loop {
                // What is left of the one before may still have it.
                match bind_tcp(&address.to_string()).await {
                    Ok((listener, _)) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            tokio::spawn(server.serve_tcp(listener, std::future::pending()));
        });
        *self.process.lock() = Some(runtime);
        begun.await.map_err(|error| failed(&error))
    }
}

struct Power(Arc<Machine>);

#[async_trait]
impl Restart for Power {
    async fn restart(&self) -> Result<(), StoreError> {
        if let Some(process) = self.0.process.lock().take() {
            process.shutdown_background();
        }
        let store = Arc::clone(&self.0.store.lock());
        store.refuses.store(3, Ordering::Relaxed);
        match store.forgets {
            Forgets::Nothing | Forgets::Trust => {}
            Forgets::Content => *self.0.store.lock() = Machine::store(Forgets::Content),
            Forgets::Epochs => {
                for entry in store.right.list("", "", 1000).await? {
                    let newest = store.right.fence(entry.database).await?;
                    store.forgotten.lock().insert(entry.database, newest.get());
                }
            }
        }
        self.0.start().await
    }
}

/// What becomes of some rules, and the tiers that they earn together.
async fn after_a_death(forgets: Forgets) -> (Vec<Trialled>, Vec<Tier>) {
    let (free, address) = bind_tcp("127.0.0.1:0").await.unwrap();
    drop(free);
    let machine = Arc::new(Machine {
        store: Mutex::new(Machine::store(forgets)),
        process: Mutex::new(None),
        address,
    });
    machine.start().await.unwrap();
    let power = Box::new(Power(Arc::clone(&machine)));
    let endpoint = Endpoint::new(format!("http://{address}"), Some(power));
    // Only then what a killed server had open is left for the end.
    let endpoint = endpoint.on_a_shared_store(Duration::from_secs(5));
    let welcome = endpoint.welcome().await.unwrap();
    let mut trials = Vec::new();
    for name in ["c01", "c07", "d01"] {
        trials.push(endpoint.try_rule(rule(name), 1).await);
    }
    let tiers = earned(&trials, &welcome);
    let store = Arc::clone(&machine.store.lock());
    let left = async || store.right.list("", "", 1000).await.unwrap().len();
    if forgets == Forgets::Nothing {
        assert!(left().await > 0, "nobody waits for those of c07 and d01");
    }
    endpoint.finish().await.unwrap();
    assert_eq!(left().await, 0, "databases of the rules");
    if let Some(process) = machine.process.lock().take() {
        process.shutdown_background();
    }
    (trials, tiers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_forget_when_they_die_are_not_durable() {
    for (forgets, noticed_by) in [
        (Forgets::Nothing, None),
        (Forgets::Trust, Some("d01")),
        (Forgets::Epochs, Some("d01")),
        (Forgets::Content, Some("c07")),
    ] {
        let (trials, tiers) = after_a_death(forgets).await;
        let is_durable = tiers.contains(&Tier::Durable);
        assert_eq!(is_durable, noticed_by.is_none(), "{forgets:?}: {trials:?}");
        for trial in &trials {
            println!("{forgets:?}: {}: {:?}", trial.rule, trial.outcome);
            match noticed_by {
                None => assert!(trial.outcome.is_ok(), "{trial:?}"),
                Some(name) if trial.rule.starts_with(name) => {
                    assert!(trial.outcome.is_err(), "{forgets:?} passed {name}");
                    assert!(!trial.exchanges.is_empty());
                }
                Some(_) => {}
            }
        }
    }
}

/// Rules of sessions each notice at least one of the faults; e01 has its own in `servers/memory`.
#[test]
fn every_rule_of_sessions_has_a_fault_that_it_notices() {
    let of_sessions = Endpoint::rules().filter(|rule| {
        let number = &rule[1..];
        matches!(&rule[..1], "s" | "l" | "d") && number.starts_with('0')
    });
    let of_sessions: Vec<_> = of_sessions.collect();
    assert_eq!(of_sessions.len(), 6, "{of_sessions:?}");
    for rule in of_sessions {
        let noticed = NOTICED_BY.iter().any(|(_, name)| rule.starts_with(name));
        assert!(noticed != rule.starts_with("d01"), "{rule}");
    }
}
