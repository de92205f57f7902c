//! A session with an endpoint: the stream, its heartbeats, and the last exchanges for people who want to know what went wrong.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, SessionId, limits, pb, version};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint as Address};

use crate::store::StoreError;

/// No call of a right server takes longer: it may wait for a barrier of two lease TTLs.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
/// Exchanges that are kept for a report.
const EXCHANGES: usize = 4;
/// Of each exchange.
const EXCHANGE_CHARACTERS: usize = 300;

pub(super) type Calls = PageServiceClient<Channel>;

/// The newest exchanges, as text.
pub(super) type Exchanges = Arc<Mutex<VecDeque<String>>>;

/// A session that lives until it is dropped.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) calls: Calls,
    pub(super) id: SessionId,
    pub(super) welcome: pb::Welcome,
    outbound: mpsc::UnboundedSender<pb::SessionRequest>,
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    exchanges: Exchanges,
    /// It ends without a word, as a broken connection does.
    pub(super) broken: bool,
}

/// What the session reads of a database, as each heartbeat says it.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) floor: u64,
    pub(super) pins: Vec<u64>,
    /// Of the newest call that pinned; 0 where none did.
    pub(super) pin_sequence: u64,
}

#[derive(Debug, Default)]
struct Shared {
    readings: Mutex<HashMap<DatabaseId, Reading>>,
    sequences: Mutex<(u64, u64)>,
    acknowledged: Notify,
    /// What came on the stream beside acknowledgements.
    news: Mutex<VecDeque<News>>,
    came: Notify,
    ended: std::sync::atomic::AtomicBool,
}

/// A connection to an endpoint.
pub(super) async fn connect(endpoint: &str) -> Result<Calls, StoreError> {
    let address = Address::from_shared(endpoint.to_owned())
        .map_err(|error| StoreError::Limit(format!("{endpoint}: {error}")))?
        .connect_timeout(Duration::from_secs(5))
        .timeout(CALL_DEADLINE);
    let channel = address.connect().await.map_err(|error| {
        StoreError::Unavailable(format!("no page server answers at {endpoint}: {error}"))
    })?;
    Ok(PageServiceClient::new(channel)
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(usize::MAX))
}

impl Wire {
    /// Begins a session, or resumes the one with this id.
    pub(super) async fn begin(
        mut calls: Calls,
        id: SessionId,
        heartbeats: bool,
        exchanges: Exchanges,
    ) -> Result<Self, StoreError> {
        let (outbound, requests) = mpsc::unbounded_channel();
        let hello = pb::Hello {
            protocol_major: version::MAJOR,
            protocol_minor: version::MINOR,
            session_id: id.to_wire(),
            client_name: "pagewire conformance".to_owned(),
            process: None,
            capabilities: Vec::new(),
            leases: Vec::new(),
            number: 0,
        };
        note(&exchanges, &hello, &"(stream)");
        send(&outbound, Request::Hello(hello));
        // The answer to the stream may come with its first message only.
        let mut inbound = tokio::time::timeout(
            CALL_DEADLINE,
            calls.session(UnboundedReceiverStream::new(requests)),
        )
        .await
        .map_err(|_| StoreError::Unavailable("the session stream was not answered".to_owned()))?
        .map_err(of_status)?
        .into_inner();
        let first = tokio::time::timeout(CALL_DEADLINE, inbound.message()).await;
        let first = first
            .map_err(|_| StoreError::Unavailable("Hello was not answered".to_owned()))?
            .map_err(of_status)?;
        let Some(News::Welcome(welcome)) = first.and_then(|first| first.message) else {
            return Err(StoreError::Internal(
                "the first message of the session stream is not Welcome".to_owned(),
            ));
        };
        note(&exchanges, &"Hello", &welcome);
        let shared = Arc::new(Shared::default());
        let every = Duration::from_millis(u64::from(welcome.lease_ttl_ms.max(30)) / 4);
        let driver = tokio::spawn({
            let (shared, outbound) = (Arc::clone(&shared), outbound.clone());
            async move {
                let mut ticks = tokio::time::interval(every);
                loop {
                    tokio::select! {
                        _ = ticks.tick(), if heartbeats => {
                            heartbeat(&shared, &outbound);
                        }
                        message = inbound.message() => match message {
                            Ok(Some(message)) => shared.take(message),
                            Ok(None) | Err(_) => break,
                        },
                    }
                }
                shared
                    .ended
                    .store(true, std::sync::atomic::Ordering::Release);
                shared.came.notify_one();
                shared.acknowledged.notify_waiters();
            }
        });
        Ok(Self {
            calls,
            id,
            welcome,
            outbound,
            shared,
            driver,
            exchanges,
            broken: false,
        })
    }

    pub(super) fn send(&self, message: Request) {
        note(&self.exchanges, &message, &"(stream)");
        send(&self.outbound, message);
    }

    pub(super) fn readings(&self) -> &Mutex<HashMap<DatabaseId, Reading>> {
        &self.shared.readings
    }

    /// Everything that was sent before has been taken in. A server may acknowledge a heartbeat before it takes in what that
    /// says, but messages are taken in order: who answers a second one has taken in the first.
    pub(super) async fn settled(&self) -> Result<(), StoreError> {
        let acknowledged = async {
            heartbeat(&self.shared, &self.outbound);
            let sequence = heartbeat(&self.shared, &self.outbound);
            loop {
                let notified = self.shared.acknowledged.notified();
                if self.shared.sequences.lock().1 >= sequence {
                    return true;
                }
                if self.ended() {
                    return false;
                }
                notified.await;
            }
        };
        match tokio::time::timeout(CALL_DEADLINE, acknowledged).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Unavailable(
                "the session stream ended".to_owned(),
            )),
            Err(_) => Err(StoreError::Unavailable(
                "a heartbeat was not acknowledged".to_owned(),
            )),
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.shared.ended.load(std::sync::atomic::Ordering::Acquire)
    }

    /// The next message on the stream that is no acknowledgement; `None` if none comes in this time.
    pub(super) async fn news(&self, patience: Duration) -> Option<News> {
        let next = async {
            loop {
                let came = self.shared.came.notified();
                if let Some(news) = self.shared.news.lock().pop_front() {
                    note(&self.exchanges, &"(stream)", &news);
                    return Some(news);
                }
                if self.ended() {
                    return None;
                }
                came.await;
            }
        };
        tokio::time::timeout(patience, next).await.ok().flatten()
    }

    /// Notes a call with its answer, which is turned into what a store says.
    pub(super) fn noted<T: std::fmt::Debug>(
        &self,
        request: &dyn std::fmt::Debug,
        answer: Result<tonic::Response<T>, Status>,
    ) -> Result<T, StoreError> {
        match answer {
            Ok(answer) => {
                let answer = answer.into_inner();
                note(&self.exchanges, request, &answer);
                Ok(answer)
            }
            Err(status) => {
                let said = format!("{:?} {}", Reason::of(&status), status.message());
                note(&self.exchanges, request, &said);
                Err(of_status(status))
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.broken {
            self.driver.abort();
            return;
        }
        send(&self.outbound, Request::Goodbye(pb::Goodbye {}));
        // The driver ends with the stream, which the server ends after the goodbye; it is not waited for longer than this.
        let driver = self.driver.abort_handle();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(Duration::from_millis(500)).await;
                driver.abort();
            });
        }
    }
}

impl Shared {
    fn take(&self, message: pb::SessionResponse) {
        match message.message {
            Some(News::HeartbeatAck(ack)) => {
                let mut sequences = self.sequences.lock();
                sequences.1 = sequences.1.max(ack.sequence);
                drop(sequences);
                self.acknowledged.notify_waiters();
            }
            Some(news) => {
                self.news.lock().push_back(news);
                self.came.notify_one();
            }
            None => {}
        }
    }
}

fn heartbeat(shared: &Shared, outbound: &mpsc::UnboundedSender<pb::SessionRequest>) -> u64 {
    let readings = shared.readings.lock();
    let floors = readings
        .iter()
        .map(|(database, reading)| pb::DatabaseFloor {
            database_id: database.to_wire(),
            oldest_open_version: reading.floor,
            pinned_versions: reading.pins.clone(),
            pin_sequence: reading.pin_sequence,
        });
    let mut sequences = shared.sequences.lock();
    sequences.0 += 1;
    let message = pb::Heartbeat {
        sequence: sequences.0,
        floors: floors.collect(),
        ..pb::Heartbeat::default()
    };
    send(outbound, Request::Heartbeat(message));
    sequences.0
}

fn send(outbound: &mpsc::UnboundedSender<pb::SessionRequest>, message: Request) {
    // Where the stream has ended the next call says so.
    let _ = outbound.send(pb::SessionRequest {
        message: Some(message),
    });
}

pub(super) fn note(
    exchanges: &Exchanges,
    request: &dyn std::fmt::Debug,
    answer: &dyn std::fmt::Debug,
) {
    let short = |what: &dyn std::fmt::Debug| {
        let text = format!("{what:?}");
        match text.char_indices().nth(EXCHANGE_CHARACTERS) {
            Some((at, _)) => format!("{} ...", &text[..at]),
            None => text,
        }
    };
    let mut exchanges = exchanges.lock();
    if exchanges.len() == EXCHANGES {
        exchanges.pop_front();
    }
    exchanges.push_back(format!("{} -> {}", short(request), short(answer)));
}

/// What a store would have said.
pub(super) fn of_status(status: Status) -> StoreError {
    let message = status.message().to_owned();
    if !Reason::is_explicit(&status) && status.code() == tonic::Code::Unimplemented {
        return StoreError::Unsupported("a call that this tier has not");
    }
    match Reason::of(&status) {
        Reason::DatabaseNotFound | Reason::DatabaseNotOpen => StoreError::DatabaseNotFound,
        Reason::VersionGone => StoreError::VersionGone {
            version: pagewire_proto::Version::ZERO,
        },
        Reason::StagingUnknown => {
            StoreError::StagingUnknown(pagewire_proto::StagingId::from_bytes([0; 16]))
        }
        Reason::Limit | Reason::Invalid => StoreError::Limit(message),
        Reason::StoreFull => StoreError::Full(message),
        Reason::Corrupt => StoreError::Corrupt(message),
        Reason::Unsupported => StoreError::Unsupported("a call that this server has not"),
        Reason::NameTaken => StoreError::NameTaken(message),
        // The call that named the tag says which.
        Reason::TagNotFound => StoreError::Internal(message),
        Reason::Unavailable | Reason::Draining | Reason::Overloaded => {
            StoreError::Unavailable(message)
        }
        Reason::Internal
        | Reason::SessionUnknown
        | Reason::ProtocolVersion
        // Whoever sends raw pages never hears it; whoever does not looks for it.
        | Reason::EncodingRefused => {
            StoreError::Internal(message)
        }
    }
}
