//! The session stream: Hello, heartbeats, lease news, and what its end means.
//!
//! The task of a stream never waits for the store: heartbeats are answered while a disk is slow.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_core::Stream;
use pagewire_proto::limits::{MAX_BELIEVED_LEASES, MAX_PEER_NAME_BYTES, MAX_STAGINGS};
use pagewire_proto::status::Reason;
use pagewire_proto::{
    DatabaseId, Epoch, Invalid, SessionId, StagingId, Version, capability, pb, version,
};
use tokio::sync::oneshot;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::wire_limits;
use crate::arrival::{Caller, Leases, Listed, is_next};
use crate::hub::{End, Hub};
use crate::memory::Account;
use crate::session::{Outbound, Session, Stream as SessionStream, TakenNews};
use crate::status;
use crate::store::Capabilities;
use crate::subscription::Asked;

/// How long a stream may be open without its Hello.
const FIRST_MESSAGE_WAIT: Duration = Duration::from_secs(10);
/// Longest boot id that is compared.
const MAX_BOOT_ID_BYTES: usize = 64;

type Responses = Pin<Box<dyn Stream<Item = Result<pb::SessionResponse, Status>> + Send + 'static>>;

/// Serves a stream in a task of its own; the answer begins at once, for the client may wait for it before its Hello.
pub(super) fn serve(
    hub: &Arc<Hub>,
    account: Arc<Account>,
    inbound: Streaming<pb::SessionRequest>,
) -> Response<Responses> {
    let (outbound, news) = Outbound::new(account);
    let hub = Arc::clone(hub);
    tokio::spawn(async move { run(&hub, inbound, outbound).await });
    let taken = TakenNews::default();
    let responses: Responses = {
        let taken = taken.clone();
        Box::pin(ReceiverStream::new(news).map(move |news| {
            taken.put(news.charge);
            news.response
        }))
    };
    let mut response = Response::new(responses);
    response.extensions_mut().insert(taken);
    response
}

/// A stream that belongs to a session now.
struct Attached {
    session: Arc<Session>,
    number: u64,
    stopped: oneshot::Receiver<Option<Status>>,
}

/// What a message means for the stream.
enum Next {
    GoOn,
    /// The session has said goodbye, or does not listen to this stream any more.
    End,
}

async fn run(hub: &Arc<Hub>, mut inbound: Streaming<pb::SessionRequest>, outbound: Outbound) {
    let attached = match begin(hub, &mut inbound, &outbound).await {
        Ok(attached) => attached,
        Err(status) => {
            outbound.end(status);
            return;
        }
    };
    let Attached {
        session,
        number,
        mut stopped,
    } = attached;
    loop {
        let message = tokio::select! {
            biased;
            stop = &mut stopped => {
                match stop {
                    Ok(Some(status)) => outbound.end(status),
                    Ok(None) => {}
                    // The client did not read its news.
                    Err(_) => hub.stream_broken(&session, number),
                }
                return;
            }
            message = inbound.message() => message,
            () = outbound.closed() => Ok(None),
        };
        let Ok(Some(message)) = message else {
            hub.stream_broken(&session, number);
            return;
        };
        match receive(hub, &session, number, message) {
            Ok(Next::GoOn) => {}
            Ok(Next::End) => return,
            Err(status) => {
                outbound.end(status);
                hub.stream_broken(&session, number);
                return;
            }
        }
    }
}

async fn begin(
    hub: &Arc<Hub>,
    inbound: &mut Streaming<pb::SessionRequest>,
    outbound: &Outbound,
) -> Result<Attached, Status> {
    let first = tokio::time::timeout(FIRST_MESSAGE_WAIT, inbound.message())
        .await
        .map_err(|_| Reason::Invalid.status("hello: did not come: send it first"))??;
    let Some(pb::session_request::Message::Hello(hello)) = first.and_then(|first| first.message)
    else {
        return Err(Reason::Invalid.status("hello: must be the first message of the stream"));
    };
    let id = check(&hello)?;
    let listed = listed(&hello)?;
    // Before the store is asked, too: what it moves here is for this server to serve (PEER6).
    heard_by_others(hub)?;
    let losses = hub.losses.load(Ordering::Acquire);
    let leases = match hub.live_session(id) {
        _ if hub.movable().is_none() => Leases::AsBefore,
        Some(session) if is_next(&session.state.lock(), hello.number) => Leases::AsBefore,
        Some(_) | None => {
            let caller = Caller {
                session: id,
                hello: hello.number,
            };
            Leases::Only(hub.confirm(caller, listed).await)
        }
    };
    attach(hub, &hello, id, leases, losses, outbound)
}

/// The client trusts a Welcome as it does an acknowledgement (PEER3).
fn heard_by_others(hub: &Hub) -> Result<(), Status> {
    match hub.may_acknowledge() {
        true => Ok(()),
        false => Err(Reason::Unavailable
            .status("this server does not reach its store: others may serve its databases")),
    }
}

/// The session of a Hello that is valid.
fn check(hello: &pb::Hello) -> Result<SessionId, Status> {
    version::check("client", hello.protocol_major, hello.protocol_minor)?;
    if hello.client_name.len() > MAX_PEER_NAME_BYTES {
        return Err(Invalid::new(
            "client_name",
            format!("is longer than {MAX_PEER_NAME_BYTES} bytes"),
        )
        .into());
    }
    Ok(SessionId::try_from(&hello.session_id[..])?)
}

/// The leases that the client believes in.
fn listed(hello: &pb::Hello) -> Result<Vec<Listed>, Status> {
    if hello.leases.len() > MAX_BELIEVED_LEASES {
        let count = hello.leases.len();
        let problem = format!("{count} leases, at most {MAX_BELIEVED_LEASES} are allowed");
        return Err(Invalid::new("leases", problem).into());
    }
    let read = |lease: &pb::BelievedLease| {
        Ok(Listed {
            database: DatabaseId::try_from(&lease.database_id[..])?,
            epoch: Epoch::new(lease.epoch),
            floor: Version::new(lease.oldest_open_version),
        })
    };
    hello.leases.iter().map(read).collect()
}

fn attach(
    hub: &Arc<Hub>,
    hello: &pb::Hello,
    id: SessionId,
    leases: Leases,
    losses: u64,
    outbound: &Outbound,
) -> Result<Attached, Status> {
    heard_by_others(hub)?;
    let process = hello
        .process
        .as_ref()
        .filter(|identity| identity.boot_id.len() <= MAX_BOOT_ID_BYTES)
        .and_then(|identity| hub.host.as_ref()?.process(identity));
    let wants_lz4 = hello
        .capabilities
        .iter()
        .any(|name| name == capability::LZ4);
    #[cfg(feature = "simulation")]
    let wants_lz4 = wants_lz4 && !hub.settings.older.lacks_capability(capability::LZ4);
    loop {
        let session = hub.session_for_hello(id)?;
        let now = tokio::time::Instant::now();
        let as_believed = {
            let mut state = session.state.lock();
            if !state.is_live(now, hub.settings.lease_ttl) {
                continue;
            }
            let before = state.hello;
            if before > hello.number || (before == hello.number && before != 0) {
                return Err(overtaken());
            }
            // Otherwise another Hello came in between.
            let as_believed = is_next(&state, hello.number);
            state.hello = hello.number;
            // It does not lapse while it is given what its client trusts.
            state.last_heard = now;
            as_believed
        };
        match &leases {
            Leases::Only(confirmed) => hub.bring(&session, hello.number, confirmed),
            Leases::AsBefore if !as_believed && hub.movable().is_some() => {
                hub.bring(&session, hello.number, &[]);
            }
            Leases::AsBefore => {}
        }
        let (stop, stopped) = oneshot::channel();
        let (number, resumed) = {
            let mut state = session.state.lock();
            if !state.is_live(now, hub.settings.lease_ttl) {
                // It ended in between.
                continue;
            }
            if state.hello != hello.number {
                return Err(overtaken());
            }
            // What the store said before may be another server's by now. A loss that comes after this finds the session and ends it (PEER4).
            if hub.losses.load(Ordering::Acquire) != losses {
                return Err(Reason::Unavailable.status("this server was silent for too long"));
            }
            let resumed = state.has_begun();
            state.stop_stream(None);
            state.unsubscribe_all(id);
            state.last_heard = now;
            state.process = process;
            state.wants_lz4 = wants_lz4;
            state.streams_so_far += 1;
            state.stream = Some(SessionStream {
                outbound: outbound.clone(),
                stop,
            });
            let held = state
                .leases
                .iter()
                .map(|(database, epoch)| pb::HeldLease {
                    database_id: database.to_wire(),
                    epoch: epoch.get(),
                })
                .collect();
            let number = state.streams_so_far;
            state.answered = hello.number;
            // Before the lock goes: no news can come before Welcome.
            state.push(pb::session_response::Message::Welcome(welcome(
                hub, number, resumed, held,
            )));
            if hub.is_draining() {
                state.push(hub.draining_message());
            }
            (number, resumed)
        };
        hub.announce_session();
        if let Leases::Only(confirmed) = leases {
            hub.brought(confirmed);
        }
        if resumed {
            ask_again(hub, &session);
        }
        tracing::debug!(client = %hello.client_name.escape_debug(), resumed, "a session stream began");
        return Ok(Attached {
            session,
            number,
            stopped,
        });
    }
}

/// The client has sent another Hello since, and waits for this one no more (PEER7).
fn overtaken() -> Status {
    Reason::Invalid.status("hello: a later one of the session has come")
}

/// A recall that went to the broken stream may be lost.
fn ask_again(hub: &Arc<Hub>, session: &Session) {
    let databases: Vec<_> = {
        let state = session.state.lock();
        state
            .leases
            .keys()
            .filter_map(|id| state.opens.get(id))
            .map(|open| Arc::clone(&open.database))
            .collect()
    };
    for database in databases {
        database.lease.lock().forget_recall(session.id);
        hub.settle(&database);
    }
}

fn capabilities(store: &Capabilities) -> impl Iterator<Item = &'static str> {
    // To read a base is a look into memory or a file where the content belongs to one server. Where several share it, it would be a round trip
    // to the store before each commit, for bytes that take the shorter way between a client and its server.
    let deltas = store.exclusive.then_some(capability::PAGE_DELTAS);
    let always = [capability::COMMIT_EACH, capability::REQUEST_LZ4];
    always.into_iter().chain(deltas)
}

fn welcome(hub: &Hub, stream: u64, resumed: bool, leases: Vec<pb::HeldLease>) -> pb::Welcome {
    let store = hub.store.capabilities();
    let capabilities = capabilities(&store);
    #[cfg(feature = "simulation")]
    let capabilities = capabilities.filter(|name| !hub.settings.older.lacks_capability(name));
    let capabilities = capabilities.map(str::to_owned).collect();
    #[cfg(feature = "simulation")]
    let store = match hub.settings.older.lacks_history() {
        true => Capabilities {
            versions: false,
            branches: false,
            ..store
        },
        false => store,
    };
    pb::Welcome {
        protocol_major: version::MAJOR,
        #[cfg(not(feature = "simulation"))]
        protocol_minor: version::MINOR,
        #[cfg(feature = "simulation")]
        protocol_minor: hub.settings.older.minor(),
        incarnation: hub.store.incarnation().to_wire(),
        lease_ttl_ms: hub.settings.lease_ttl_ms(),
        resumed,
        leases,
        limits: Some(wire_limits(hub)),
        store: Some(pb::StoreCapabilities {
            store_name: store.name,
            durable: store.durable,
            versions: store.versions,
            branches: store.branches,
            strict_push: hub.pushes(),
            retention_ms: store.retention.map_or(0, |time| {
                u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
            }),
        }),
        server_name: concat!("pagewire ", env!("CARGO_PKG_VERSION")).to_owned(),
        capabilities,
        stream,
    }
}

fn receive(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    stream: u64,
    message: pb::SessionRequest,
) -> Result<Next, Status> {
    use pb::session_request::Message;
    let message = message.message;
    #[cfg(feature = "simulation")]
    let message = hub.settings.older.message(message);
    let live = match message {
        // Only these say that the client still counts its window from now on.
        Some(Message::Heartbeat(_)) => hub.heard(session, stream),
        _ => hub.is_current(session, stream),
    };
    if !live {
        return Err(status::session_unknown());
    }
    #[cfg(feature = "simulation")]
    if message.is_none() && hub.settings.older.protocol_1_1 {
        return Err(Invalid::missing("message").into());
    }
    let Some(message) = message else {
        // Of a later minor version, and not for us: the session goes on without.
        return Ok(Next::GoOn);
    };
    match message {
        Message::Hello(_) => {
            return Err(Reason::Invalid.status("hello: only the first message may be one"));
        }
        Message::Heartbeat(heartbeat) => heartbeat_came(hub, session, stream, heartbeat)?,
        Message::ReleaseLease(release) => {
            if let Some(open) = session.open(DatabaseId::try_from(&release.database_id[..])?) {
                let epoch = Epoch::new(release.epoch);
                hub.release(&open.database, session, epoch, release.wants_back);
            }
        }
        Message::KeepLease(keep) => {
            if let Some(open) = session.open(DatabaseId::try_from(&keep.database_id[..])?) {
                let epoch = Epoch::new(keep.epoch);
                hub.keep(&open.database, session.id, epoch, keep.transaction);
            }
        }
        Message::CloseDatabase(close) => {
            let database = DatabaseId::try_from(&close.database_id[..])?;
            // Only of what the session may see.
            if session.open(database).is_some() {
                hub.hot.name(database, &close.hot_pages);
            }
            hub.close_database(session, database, close.open_sequence);
        }
        Message::Subscribe(subscribe) => {
            let database = DatabaseId::try_from(&subscribe.database_id[..])?;
            let asked = Asked {
                number: subscribe.subscription,
                strict: subscribe.strict,
                wants_page_1: subscribe.want_page_1,
                known: Version::new(subscribe.known_version),
            };
            hub.subscribe(session, stream, database, asked);
        }
        Message::Unsubscribe(unsubscribe) => {
            let database = DatabaseId::try_from(&unsubscribe.database_id[..])?;
            hub.unsubscribe(session, database, unsubscribe.subscription);
        }
        Message::PrepareAck(ack) => {
            let database = DatabaseId::try_from(&ack.database_id[..])?;
            let version = Version::new(ack.version);
            hub.prepare_acknowledged(session, database, ack.subscription, version);
        }
        Message::DropStagings(drop) => drop_stagings(hub, session, &drop)?,
        Message::Goodbye(pb::Goodbye {}) => {
            hub.end_session(session, End::Goodbye);
            return Ok(Next::End);
        }
    }
    Ok(Next::GoOn)
}

fn drop_stagings(hub: &Hub, session: &Session, drop: &pb::DropStagings) -> Result<(), Status> {
    if drop.staging_ids.len() > MAX_STAGINGS {
        return Err(Invalid::new(
            "staging_ids",
            format!(
                "{} stagings, at most {MAX_STAGINGS} are allowed",
                drop.staging_ids.len()
            ),
        )
        .into());
    }
    let mut dropped = Vec::with_capacity(drop.staging_ids.len());
    for id in &drop.staging_ids {
        let id = StagingId::try_from(&id[..])?;
        let staging = session.state.lock().stagings.remove(&id);
        dropped.extend(staging.map(|staging| staging.stored));
    }
    hub.discard(dropped);
    Ok(())
}

fn heartbeat_came(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    stream: u64,
    heartbeat: pb::Heartbeat,
) -> Result<(), Status> {
    if heartbeat.stream == stream {
        hub.welcomed(session, stream);
    }
    hub.acknowledge(session, heartbeat.sequence);
    let mut listed = HashSet::new();
    for floor in heartbeat.floors {
        let id = DatabaseId::try_from(&floor.database_id[..])?;
        let Some(open) = session.open(id) else {
            continue;
        };
        listed.insert(id);
        let changed = {
            let mut state = session.state.lock();
            let mut readers = open.database.readers.lock();
            let raised = readers.raise(session.id, Version::new(floor.oldest_open_version));
            let released = match floor.pin_sequence {
                0 => 0,
                settled => readers.release(session.id, settled, &floor.pinned_versions),
            };
            state.pins -= released;
            raised || released > 0
        };
        if changed && !open.database.protect_scheduled.load(Ordering::Acquire) {
            hub.schedule_protect(&open.database);
        }
    }
    hub.close_unlisted(session, &listed, heartbeat.settled_opens);
    Ok(())
}
