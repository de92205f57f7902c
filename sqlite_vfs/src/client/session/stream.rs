//! The task that keeps a session up: one stream after the other, with heartbeats out and pushes in.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pagewire_proto::limits::MAX_BELIEVED_LEASES;
use pagewire_proto::pb::session_request::Message as Outgoing;
use pagewire_proto::pb::session_response::Message as Incoming;
use pagewire_proto::{DatabaseId, Epoch, Incarnation, capability, pb, version};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{Outbox, Phase, Session, Welcome};
use crate::client::Core;
use crate::client::counters::{COUNTERS, CallKind};
use crate::client::news::news;
use crate::clock::Moment;
use crate::compression::Encodings;
use crate::error::{CallError, Error, was_never_sent};

const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// How long a server is waited for that may be gone, where there are others.
const PATIENCE_BESIDE_OTHERS: Duration = Duration::from_secs(3);
/// Messages waiting for a stream that does not take them: the stream is broken long before.
const OUTBOX: usize = 4096;

/// The task that keeps the session up for as long as the client lives.
pub(in crate::client) async fn run(weak: Weak<Core>) {
    let mut backoff = Duration::from_millis(10);
    // Streams since the last that stood.
    let mut failures = 0;
    loop {
        let Some(core) = weak.upgrade() else { return };
        let begun = Instant::now();
        let streams = core.session.streams();
        let outcome = one_stream(&core).await;
        *core.session.outbox.lock() = None;
        // S5. Nothing can be subscribed to before there is an outbox again.
        for (_, database) in core.all_databases() {
            database.subscription_ends();
        }
        if core.session.goodbye.load(Ordering::SeqCst) {
            core.session.phase.send_replace(Phase::Over);
            return;
        }
        let stood = core.session.streams() != streams;
        failures = if stood { 0 } else { failures + 1 };
        let all_were_tried = failures % core.way.len() == 0;
        let phase = phase_after(outcome, &core.way.server().endpoint, all_were_tried);
        // E2: before calls go on that have waited for the session.
        if !stood {
            core.way.go_on();
        }
        core.session.phase.send_replace(phase);
        if !all_were_tried {
            continue;
        }
        if begun.elapsed() > Duration::from_secs(1) {
            backoff = Duration::from_millis(10);
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = core.session.goodbye_wanted.notified() => {
                core.session.phase.send_replace(Phase::Over);
                return;
            }
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// What follows from the end of a stream. A session that has lapsed is no refusal: the next stream begins a new one.
fn phase_after(
    outcome: std::result::Result<(), CallError>,
    endpoint: &str,
    is_final: bool,
) -> Phase {
    match outcome {
        Ok(()) => Phase::Connecting {
            last_failure: Some("the stream ended".to_owned()),
        },
        // What one server refuses another may take.
        Err(error)
            if is_final && error.explicit && !error.is_transient() && !error.wants_reopen() =>
        {
            Phase::Refused(Error::from(error).within(endpoint))
        }
        Err(error) => Phase::Connecting {
            last_failure: Some(error.message),
        },
    }
}

async fn one_stream(core: &Arc<Core>) -> std::result::Result<(), CallError> {
    let session = &core.session;
    let (sender, receiver) = mpsc::channel(OUTBOX);
    // Rising whether it is answered or not: a server sees whether there was another in between that may have reached anybody (PEER7). One that
    // never left this process has not.
    let number = session.hellos.fetch_add(1, Ordering::AcqRel) + 1;
    let hello = pb::SessionRequest {
        message: Some(Outgoing::Hello(hello(core, number))),
    };
    COUNTERS.background(CallKind::Session);
    COUNTERS.bytes(CallKind::Session, hello.encoded_len(), 0);
    let _ = sender.try_send(hello);
    let sent_at = Moment::now();
    let mut stub = core.way.server().stub.clone();
    let patience = match core.way.len() {
        1 => Duration::from_secs(10),
        _ => PATIENCE_BESIDE_OTHERS,
    };
    let mut stream = tokio::select! {
        response = stub.session(ReceiverStream::new(receiver)) => {
            let response = response.inspect_err(|status| {
                if was_never_sent(status) {
                    session.hellos.fetch_sub(1, Ordering::AcqRel);
                }
            });
            response.map_err(|status| CallError::from_status(&status))?.into_inner()
        }
        // A proxy may take the stream and never answer.
        () = tokio::time::sleep(patience) => return Err(CallError::timeout(patience)),
        () = session.goodbye_wanted.notified() => return Ok(()),
    };
    let first = tokio::select! {
        first = next(&mut stream) => first?,
        () = tokio::time::sleep(patience) => return Err(CallError::timeout(patience)),
        () = session.goodbye_wanted.notified() => return Ok(()),
    };
    let Some(Incoming::Welcome(wire)) = first else {
        return Err(nonsense("the server did not begin with a Welcome"));
    };
    COUNTERS.bytes(CallKind::Session, 0, wire.encoded_len());
    let Accepted {
        welcome,
        minor,
        resumed,
        stream: number,
        unwanted,
    } = accept(core, wire)?;
    let ttl = welcome.lease_ttl;
    *session.outbox.lock() = Some(Outbox {
        sender: sender.clone(),
        minor,
    });
    for (id, epoch) in unwanted {
        // Also remembered as released, unless the database is open and has asked for it again meanwhile.
        if let Some(database) = core.database_or_release(id, epoch) {
            database.refuse(epoch, session);
        }
    }
    session.repeat_closes(resumed);
    trust(session, sent_at, ttl);
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    session.longest_ttl_ms.fetch_max(ttl_ms, Ordering::Relaxed);
    session.phase.send_replace(Phase::Up(welcome));
    up(core, stream, number, sender, ttl).await
}

/// Heartbeats out, pushes in, until the stream breaks or goodbye was said.
async fn up(
    core: &Arc<Core>,
    mut stream: Streaming<pb::SessionResponse>,
    number: u64,
    sender: mpsc::Sender<pb::SessionRequest>,
    ttl: Duration,
) -> std::result::Result<(), CallError> {
    let session = &core.session;
    let mut beat = tokio::time::interval(ttl / 4);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut under_way: HashMap<u64, Moment> = HashMap::new();
    let mut last_heard = Instant::now();
    // With others in reach nobody waits for a silent one until its leases are free.
    let silence = match core.way.len() {
        1 => ttl * 2,
        _ => ttl,
    };
    loop {
        tokio::select! {
            message = next(&mut stream) => {
                last_heard = Instant::now();
                match message? {
                    None => return Ok(()),
                    Some(Incoming::HeartbeatAck(ack)) => {
                        if let Some(sent_at) = under_way.remove(&ack.sequence) {
                            trust(session, sent_at, ttl);
                            session.acknowledged.fetch_max(sent_at.0, Ordering::AcqRel);
                            session.beat_taken(ack.sequence);
                        }
                        under_way.retain(|sequence, _| *sequence > ack.sequence);
                    }
                    Some(message) => news(core, message)?,
                }
            }
            _ = beat.tick() => {
                if last_heard.elapsed() > silence {
                    // A peer that is silent for so long is gone, whatever TCP says.
                    return Err(CallError::timeout(last_heard.elapsed()));
                }
                let sequence = session.beats.fetch_add(1, Ordering::AcqRel) + 1;
                let message = pb::SessionRequest { message: Some(Outgoing::Heartbeat(heartbeat(core, number, sequence))) };
                COUNTERS.background(CallKind::Heartbeat);
                COUNTERS.bytes(CallKind::Heartbeat, message.encoded_len(), 0);
                under_way.insert(sequence, Moment::now());
                let _ = sender.try_send(message);
            }
            () = session.goodbye_wanted.notified() => {
                let goodbye = pb::SessionRequest { message: Some(Outgoing::Goodbye(pb::Goodbye {})) };
                let _ = sender.try_send(goodbye);
                // The server ends the stream when it has taken the goodbye.
                while let Ok(Some(_)) = next(&mut stream).await {}
                return Ok(());
            }
        }
    }
}

fn trust(session: &Session, sent_at: Moment, ttl: Duration) {
    if session.goodbye.load(Ordering::SeqCst) {
        return;
    }
    // The margin covers clocks that do not run at quite the same rate.
    let until = sent_at.after(ttl).before(ttl / 8);
    session.trusted_until.fetch_max(until.0, Ordering::AcqRel);
}

/// S2, S3 and S4.
fn accept(core: &Arc<Core>, wire: pb::Welcome) -> std::result::Result<Accepted, CallError> {
    version::check("server", wire.protocol_major, wire.protocol_minor).map_err(|invalid| {
        CallError {
            reason: pagewire_proto::status::Reason::ProtocolVersion,
            explicit: true,
            may_be_done: false,
            message: invalid.problem,
        }
    })?;
    let invalid = |invalid: pagewire_proto::Invalid| nonsense(&invalid.to_string());
    let incarnation = Incarnation::try_from(&wire.incarnation[..]).map_err(invalid)?;
    if wire.lease_ttl_ms < 50 {
        return Err(nonsense("a lease TTL below 50 ms can't be kept"));
    }
    let mut held: HashMap<DatabaseId, Epoch> = HashMap::new();
    for lease in &wire.leases {
        held.insert(
            DatabaseId::try_from(&lease.database_id[..]).map_err(invalid)?,
            Epoch::new(lease.epoch),
        );
    }
    // Everything is valid: now it counts.
    let session = &core.session;
    #[cfg(feature = "simulation")]
    tell_expired_leases(core, &held);
    let server = core.way.index();
    let resumed = session.welcomed_by.lock().replace(server) == Some(server) && wire.resumed;
    let before = session.incarnation.lock().replace(incarnation);
    let other = before.is_some_and(|before| before != incarnation);
    if !resumed {
        session.trusted_until.store(0, Ordering::Release);
        session.lapses.fetch_add(1, Ordering::AcqRel);
    }
    session.streams.fetch_add(1, Ordering::AcqRel);
    let mut unwanted = Vec::new();
    for (id, database) in core.all_databases() {
        if other {
            database.store_was_replaced();
        } else if let Some(epoch) = database.session_says(held.remove(&id)) {
            unwanted.push((id, epoch));
        }
    }
    // What the server believes that we have and nobody here knows of: its release was lost with the old stream.
    unwanted.extend(held);
    let (minor, stream) = (wire.protocol_minor, wire.stream);
    let store = wire.store.unwrap_or_default();
    let has = |name: &str| wire.capabilities.iter().any(|known| known == name);
    #[cfg(feature = "simulation")]
    let has = |name: &str| has(name) && !crate::simulation::is_older();
    let commit_each = has(capability::COMMIT_EACH);
    let encodings = Encodings {
        lz4: has(capability::REQUEST_LZ4),
        deltas: has(capability::PAGE_DELTAS),
    };
    let welcome = Arc::new(Welcome {
        lease_ttl: Duration::from_millis(u64::from(wire.lease_ttl_ms)),
        incarnation,
        server_name: wire.server_name,
        store_name: store.store_name,
        versions: store.versions,
        strict_push: store.strict_push,
        commit_each,
        encodings,
    });
    Ok(Accepted {
        welcome,
        minor,
        resumed,
        stream,
        unwanted,
    })
}

/// Of those that this process had, and did not hear from its server for as long as they live.
#[cfg(feature = "simulation")]
fn tell_expired_leases(core: &Core, held: &HashMap<DatabaseId, Epoch>) {
    let was_trusted = core.session.trusted_until.load(Ordering::Acquire) > 0;
    if was_trusted && !core.session.is_trusted() {
        let databases = core.all_databases().into_iter();
        let expired = databases
            .filter(|(id, database)| database.believed_lease().is_some() && !held.contains_key(id));
        crate::simulation::leases_expired(expired.count());
    }
}

/// What follows from a Welcome.
struct Accepted {
    welcome: Arc<Welcome>,
    /// Of the server's protocol.
    minor: u32,
    resumed: bool,
    /// As the server counts them.
    stream: u64,
    /// Leases to be given back as soon as something can be sent.
    unwanted: Vec<(DatabaseId, Epoch)>,
}

/// `stream` says that its Welcome has been taken in: no database begins a transaction by what it does not list (S3).
fn heartbeat(core: &Core, stream: u64, sequence: u64) -> pb::Heartbeat {
    // Read before the pins: a call that ends in between has its pin among them.
    let pin_sequence = {
        let pins = core.session.pins.lock();
        let first = pins.under_way.first();
        first.map_or(pins.begun, |under_way| under_way - 1)
    };
    let (open, settled_opens) = core.opens_for_heartbeat();
    let floors = open
        .into_iter()
        .map(|(id, database)| pb::DatabaseFloor {
            database_id: id.to_wire(),
            oldest_open_version: database.floor().get(),
            pinned_versions: database.held_versions(),
            pin_sequence,
        })
        .collect();
    #[cfg(feature = "simulation")]
    let stream = match crate::simulation::is_older() {
        true => 0,
        false => stream,
    };
    pb::Heartbeat {
        sequence,
        floors,
        settled_opens,
        stream,
    }
}

async fn next(
    stream: &mut Streaming<pb::SessionResponse>,
) -> std::result::Result<Option<Incoming>, CallError> {
    match stream.message().await {
        Ok(Some(pb::SessionResponse {
            message: Some(message),
        })) => Ok(Some(message)),
        // A message of a later minor version: not for us.
        Ok(Some(pb::SessionResponse { message: None })) => {
            Ok(Some(Incoming::HeartbeatAck(pb::HeartbeatAck {
                sequence: 0,
            })))
        }
        Ok(None) => Ok(None),
        Err(status) => Err(CallError::from_status(&status)),
    }
}

pub(in crate::client) fn nonsense(what: &str) -> CallError {
    CallError {
        reason: pagewire_proto::status::Reason::Internal,
        explicit: false,
        may_be_done: true,
        message: format!("the server's answer is not valid: {what}"),
    }
}

fn hello(core: &Core, number: u64) -> pb::Hello {
    let leases = core.all_databases().into_iter();
    let mut capabilities = Vec::new();
    if core.compression.is_wanted_with(&core.way.server().endpoint) {
        capabilities.push(capability::LZ4.to_owned());
    }
    let hello = pb::Hello {
        protocol_major: version::MAJOR,
        protocol_minor: version::MINOR,
        session_id: core.session.id.to_wire(),
        client_name: concat!("libpagewire/", env!("CARGO_PKG_VERSION")).to_owned(),
        process: process_identity(),
        capabilities,
        leases: leases
            .filter_map(|(_, database)| database.believed_lease())
            .take(MAX_BELIEVED_LEASES)
            .collect(),
        number,
    };
    #[cfg(feature = "simulation")]
    if crate::simulation::is_older() {
        return of_an_older_client(core, hello);
    }
    hello
}

/// Without what came later. One that goes from server to server counts its Hellos.
#[cfg(feature = "simulation")]
fn of_an_older_client(core: &Core, hello: pb::Hello) -> pb::Hello {
    let counts = core.way.len() > 1;
    pb::Hello {
        protocol_minor: 0,
        capabilities: Vec::new(),
        leases: if counts { hello.leases } else { Vec::new() },
        number: if counts { hello.number } else { 0 },
        ..hello
    }
}

/// Best effort: without it a killed process costs others one TTL.
fn process_identity() -> Option<pb::ProcessIdentity> {
    #[cfg(feature = "simulation")]
    if crate::simulation::world().is_some() {
        // Its machine is another one, and the kernel knows nothing of it.
        return None;
    }
    use std::os::unix::fs::MetadataExt;
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let pid_namespace = std::fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may have anything in it.
    let after_name = stat.rsplit_once(')')?.1;
    let start_time_ticks = after_name.split_whitespace().nth(19)?.parse().ok()?;
    Some(pb::ProcessIdentity {
        boot_id: boot_id.trim().to_owned(),
        pid_namespace,
        pid: std::process::id(),
        start_time_ticks,
    })
}

#[cfg(test)]
mod tests {
    use pagewire_proto::status::Reason;

    use super::*;

    /// Bug: while a server was restarted, or its way was cut, each connect that was refused raised the number of the Hello. When the client was back the
    /// server took it for one that had been elsewhere, and leases that no Hello lists (of databases without a version, and beyond the most that it may
    /// list) were lost.
    #[tokio::test]
    async fn peer7_a_hello_that_no_connection_took_is_none() {
        let status = async |port: u16| {
            let endpoint = format!("http://127.0.0.1:{port}");
            let mut stub = crate::client::connect::stub(&endpoint, None).unwrap();
            let (_sender, receiver) = mpsc::channel(1);
            stub.session(ReceiverStream::new(receiver))
                .await
                .unwrap_err()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Taken, and then dropped: it may have been read.
        let dropping = async {
            loop {
                let (mut taken, _) = listener.accept().await.unwrap();
                let mut some = [0; 24];
                let _ = tokio::io::AsyncReadExt::read_exact(&mut taken, &mut some).await;
            }
        };
        let dropped = tokio::select! {
            dropped = status(port) => dropped,
            () = dropping => unreachable!("it accepts for ever"),
        };
        assert!(!was_never_sent(&dropped), "{dropped:?}");
        drop(listener);
        let refused = status(port).await;
        assert!(was_never_sent(&refused), "{refused:?}");
    }

    /// Bug: a session that had lapsed counted as refused until the next stream was up, and calls in between failed with an I/O
    /// error instead of waiting for it.
    #[test]
    fn s2_a_session_that_has_lapsed_is_not_refused() {
        let after = |reason, explicit| {
            let message = String::new();
            let error = CallError {
                reason,
                explicit,
                may_be_done: false,
                message,
            };
            phase_after(Err(error), "http://nowhere", true)
        };
        for reason in [
            Reason::SessionUnknown,
            Reason::Draining,
            Reason::Unavailable,
        ] {
            assert!(
                matches!(after(reason, true), Phase::Connecting { .. }),
                "{reason:?}"
            );
        }
        for reason in [Reason::ProtocolVersion, Reason::Invalid] {
            assert!(
                matches!(after(reason, true), Phase::Refused(_)),
                "{reason:?}"
            );
        }
        assert!(matches!(
            phase_after(Ok(()), "http://nowhere", true),
            Phase::Connecting { .. }
        ));
    }
}
