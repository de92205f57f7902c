//! A page service that passes every call on to the real server and loses single requests or answers on purpose.
//!
//! A fault is armed by name and strikes once. "After it was applied" is a moment of its own. The proxy never makes an
//! answer up, apart from the ones that a test arms as nonsense.

mod faults;
mod relay;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::pb::page_service_server::PageServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};

pub use faults::{Call, Commits, Fault, Lost, News, Passed};
use relay::CallRelay;

const MESSAGE_BYTES: usize = 64 << 20;

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
    commits: Arc<Mutex<Commits>>,
    passed: Arc<Mutex<Vec<Passed>>>,
    acquires: Arc<Mutex<Vec<pb::AcquireLeaseRequest>>>,
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
        let commits = Arc::default();
        let passed = Arc::default();
        let acquires = Arc::default();
        let relay = CallRelay {
            channel,
            faults: Arc::clone(&faults),
            losses: Arc::clone(&losses),
            strike,
            open,
            news: Arc::clone(&news),
            cut,
            commits: Arc::clone(&commits),
            passed: Arc::clone(&passed),
            acquires: Arc::clone(&acquires),
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
            commits,
            passed,
            acquires,
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

    /// What became of the pages of commits since this was asked last.
    pub fn take_commits(&self) -> Commits {
        let mut commits = self.commits.lock().expect("commits");
        let before = *commits;
        (commits.calls, commits.raw, commits.lz4, commits.deltas) = (0, 0, 0, 0);
        commits.drops = 0;
        before
    }

    /// What was passed on since this was asked last, in order.
    pub fn take_passed(&self) -> Vec<Passed> {
        std::mem::take(&mut *self.passed.lock().expect("passed"))
    }

    /// The requests for a lease since the last time.
    pub fn take_acquires(&self) -> Vec<pb::AcquireLeaseRequest> {
        std::mem::take(&mut *self.acquires.lock().expect("acquires"))
    }

    /// Sets what it does to commits.
    pub fn set_commits(&self, change: impl FnOnce(&mut Commits)) {
        change(&mut self.commits.lock().expect("commits"));
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
