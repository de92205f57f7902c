//! Rules of sessions and leases: two sessions that want the same database.

use std::time::{Duration, Instant};

use pagewire_proto::pb::acquire_lease_response::Outcome as Acquired;
use pagewire_proto::pb::commit_response::Outcome as Committed;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::{
    CommitChecksum, CommitId, DatabaseId, DatabaseName, Page, PageNumber, SessionId, Version, pb,
};

use super::Endpoint;
use super::wire::Wire;
use crate::conformance::fixture::{SIZE, content, ensure};
use crate::conformance::{Outcome, Verdict, Violation};
use crate::store::StoreError;

/// Nothing on the stream of a right server takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// A database that several sessions have open.
struct Shared {
    name: String,
    id: bytes::Bytes,
}

impl Shared {
    async fn new(endpoint: &Endpoint, wire: &Wire) -> Result<Self, Violation> {
        let name = format!("conformance/{}/shared", DatabaseId::random()?);
        let id = open(wire, &name).await?;
        let known = DatabaseId::try_from(&id[..])?;
        let name_of = DatabaseName::try_from(name.as_str())?;
        endpoint.names.lock().insert(known, name_of);
        Ok(Self { name, id })
    }
}

async fn open(wire: &Wire, name: &str) -> Result<bytes::Bytes, Violation> {
    let request = pb::OpenDatabaseRequest {
        session_id: wire.id.to_wire(),
        name: name.to_owned(),
        mode: pb::OpenMode::Create.into(),
        open_sequence: 1,
        ..pb::OpenDatabaseRequest::default()
    };
    let answer = wire.calls.clone().open_database(request.clone()).await;
    Ok(wire.noted(&request, answer)?.database_id)
}

async fn acquire(wire: &Wire, database: &Shared, wait_ms: u32) -> Result<Acquired, Violation> {
    let request = pb::AcquireLeaseRequest {
        session_id: wire.id.to_wire(),
        database_id: database.id.clone(),
        wait_ms,
        ..pb::AcquireLeaseRequest::default()
    };
    let answer = wire.calls.clone().acquire_lease(request.clone()).await;
    let answer = wire.noted(&request, answer)?;
    answer
        .outcome
        .ok_or_else(|| Violation("AcquireLease answered without an outcome".to_owned()))
}

async fn granted(wire: &Wire, database: &Shared, wait_ms: u32) -> Result<u64, Violation> {
    match acquire(wire, database, wait_ms).await? {
        Acquired::Granted(grant) => Ok(grant.epoch),
        other => Err(Violation(format!(
            "a lease that nobody else has is not granted: {other:?}"
        ))),
    }
}

/// Commits page 1 on a base.
async fn commit(
    wire: &Wire,
    database: &Shared,
    base: u64,
    epoch: u64,
) -> Result<Committed, Violation> {
    let page = Page {
        number: PageNumber::FIRST,
        content: content(SIZE, 1, base + 1),
        version: Version::ZERO,
    };
    let page = page.to_wire();
    let mut checksum = CommitChecksum::default();
    checksum.add(page.crc32);
    let request = pb::CommitRequest {
        header: Some(pb::CommitHeader {
            session_id: wire.id.to_wire(),
            commit_id: CommitId::random()?.to_wire(),
            databases: vec![pb::CommitDatabase {
                database_id: database.id.clone(),
                base_version: base,
                epoch,
                page_size: SIZE.get(),
                page_count: 1,
                ..pb::CommitDatabase::default()
            }],
        }),
        batches: vec![pb::PageBatch {
            database_index: 0,
            pages: vec![page],
        }],
        finish: Some(checksum.finish()),
    };
    let shown = request.header.clone();
    let answer = wire
        .calls
        .clone()
        .commit(tokio_stream::iter([request]))
        .await;
    let answer = wire.noted(&shown, answer)?;
    answer
        .outcome
        .ok_or_else(|| Violation("Commit answered without an outcome".to_owned()))
}

async fn head(wire: &Wire, database: &Shared) -> Result<u64, StoreError> {
    let request = pb::BeginSnapshotRequest {
        session_id: wire.id.to_wire(),
        database_id: database.id.clone(),
        known_version: 0,
        want_page_1: false,
    };
    let answer = wire.calls.clone().begin_snapshot(request.clone()).await;
    let answer = wire.noted(&request, answer)?;
    Ok(answer.head.unwrap_or_default().version)
}

fn is_committed(outcome: &Committed, version: u64) -> bool {
    matches!(outcome, Committed::Committed(made) if made.versions == [version])
}

async fn recall(wire: &Wire, database: &Shared, epoch: u64) -> Result<(), Violation> {
    let expected = pb::LeaseRecall {
        database_id: database.id.clone(),
        epoch,
    };
    let news = wire.news(PATIENCE).await;
    ensure!(
        news == Some(News::LeaseRecall(expected)),
        "another session wants the lease, and the holder of epoch {epoch} heard {news:?} instead of a recall"
    );
    Ok(())
}

/// The ticket comes to its turn: the new epoch.
async fn next_grant(wire: &Wire, above: u64) -> Result<u64, Violation> {
    let news = wire.news(PATIENCE).await;
    let Some(News::LeaseGranted(granted)) = &news else {
        return Err(Violation(format!(
            "the lease was given back, and the session with the ticket heard {news:?} instead of LeaseGranted"
        )));
    };
    let epoch = granted.grant.as_ref().map_or(0, |grant| grant.epoch);
    ensure!(
        epoch > above,
        "after epoch {above} epoch {epoch} was granted"
    );
    Ok(epoch)
}

fn pending(acquired: &Acquired) -> Result<(), Violation> {
    ensure!(
        matches!(acquired, Acquired::Pending(_)),
        "two sessions have the lease of one database: {acquired:?}"
    );
    Ok(())
}

/// Heartbeats are acknowledged and keep a session; one that says nothing for a TTL is forgotten.
pub(super) async fn s01(endpoint: &Endpoint) -> Outcome {
    let living = endpoint.session().await?;
    let ttl = Duration::from_millis(u64::from(living.welcome.lease_ttl_ms));
    ensure!(!ttl.is_zero(), "lease_ttl_ms is 0");
    living.settled().await?;
    let silent = endpoint.session_as(SessionId::random()?, false).await?;
    let database = Shared::new(endpoint, &living).await?;
    let epoch = granted(&living, &database, 0).await?;
    let made = commit(&living, &database, 0, epoch).await?;
    ensure!(is_committed(&made, 1), "the first commit answered {made:?}");
    ensure!(
        open(&silent, &database.name).await? == database.id,
        "a name has two ids"
    );
    tokio::time::sleep(ttl * 5 / 2).await;
    ensure!(
        head(&living, &database).await? == 1,
        "the head is another one"
    );
    let answer = head(&silent, &database).await;
    ensure!(
        answer.is_err(),
        "a session that was silent for two and a half TTLs is answered {answer:?}"
    );
    Ok(Verdict::Kept)
}

/// Wanted, recalled, given back, granted; the epoch of before is worth nothing.
pub(super) async fn l01(endpoint: &Endpoint) -> Outcome {
    let (one, other) = (endpoint.session().await?, endpoint.session().await?);
    let database = Shared::new(endpoint, &one).await?;
    open(&other, &database.name).await?;
    let first = granted(&one, &database, 0).await?;
    let again = granted(&one, &database, 0).await?;
    ensure!(
        first == again,
        "a session that has the lease with epoch {first} got {again}"
    );
    let made = commit(&one, &database, 0, first).await?;
    ensure!(
        is_committed(&made, 1),
        "a commit with the lease answered {made:?}"
    );
    pending(&acquire(&other, &database, 0).await?)?;
    recall(&one, &database, first).await?;
    one.send(Request::ReleaseLease(pb::ReleaseLease {
        database_id: database.id.clone(),
        epoch: first,
        wants_back: false,
    }));
    let second = next_grant(&other, first).await?;
    for (wire, epoch) in [(&one, first), (&one, second), (&other, first)] {
        let refused = commit(wire, &database, 1, epoch).await?;
        ensure!(
            matches!(refused, Committed::LeaseLost(_)),
            "a commit with epoch {epoch} of a session that has not got it answered {refused:?}"
        );
    }
    let made = commit(&other, &database, 1, second).await?;
    ensure!(
        is_committed(&made, 2),
        "the commit of the new holder answered {made:?}"
    );
    ensure!(
        head(&one, &database).await? == 2,
        "the commit is not to be seen"
    );
    Ok(Verdict::Kept)
}

/// KeepLease: whoever waits is told before its time is up, and keeps its ticket.
pub(super) async fn l02(endpoint: &Endpoint) -> Outcome {
    let (one, other) = (endpoint.session().await?, endpoint.session().await?);
    let database = Shared::new(endpoint, &one).await?;
    open(&other, &database.name).await?;
    let first = granted(&one, &database, 0).await?;
    let asked = Instant::now();
    let waits = acquire(&other, &database, 1000);
    let keeps = async {
        recall(&one, &database, first).await?;
        one.send(Request::KeepLease(pb::KeepLease {
            database_id: database.id.clone(),
            epoch: first,
            transaction: 0,
        }));
        Ok::<_, Violation>(())
    };
    let (answer, kept) = futures_util::future::join(waits, keeps).await;
    kept?;
    pending(&answer?)?;
    ensure!(
        asked.elapsed() < Duration::from_millis(900),
        "the holder keeps its lease, and who waits was told after {:?}",
        asked.elapsed()
    );
    let made = commit(&one, &database, 0, first).await?;
    ensure!(
        is_committed(&made, 1),
        "a commit with a lease that was kept answered {made:?}"
    );
    one.send(Request::ReleaseLease(pb::ReleaseLease {
        database_id: database.id.clone(),
        epoch: first,
        wants_back: false,
    }));
    next_grant(&other, first).await?;
    Ok(Verdict::Kept)
}

/// A session goes on where its stream broke.
pub(super) async fn l03(endpoint: &Endpoint) -> Outcome {
    let mut first = endpoint.session().await?;
    let database = Shared::new(endpoint, &first).await?;
    let epoch = granted(&first, &database, 0).await?;
    let id = first.id;
    first.broken = true;
    drop(first);
    let resumed = endpoint.session_as(id, true).await?;
    let held = pb::HeldLease {
        database_id: database.id.clone(),
        epoch,
    };
    ensure!(
        resumed.welcome.resumed && resumed.welcome.leases == [held],
        "a session whose stream broke was welcomed with {:?}",
        resumed.welcome
    );
    let made = commit(&resumed, &database, 0, epoch).await?;
    ensure!(
        is_committed(&made, 1),
        "a commit after the resumption answered {made:?}"
    );
    Ok(Verdict::Kept)
}

/// The barrier: a lease may move at once from a broken stream, the next version may not.
pub(super) async fn l04(endpoint: &Endpoint) -> Outcome {
    let (mut lost, other) = (endpoint.session().await?, endpoint.session().await?);
    let database = Shared::new(endpoint, &lost).await?;
    open(&other, &database.name).await?;
    let first = granted(&lost, &database, 0).await?;
    let made = commit(&lost, &database, 0, first).await?;
    ensure!(is_committed(&made, 1), "the first commit answered {made:?}");
    // The holder trusts its lease for a TTL, less a margin, from here on.
    let trusted_from = Instant::now();
    lost.settled().await?;
    let ttl = Duration::from_millis(u64::from(lost.welcome.lease_ttl_ms));
    lost.broken = true;
    drop(lost);
    let deadline = Instant::now() + ttl * 3;
    let second = loop {
        match acquire(&other, &database, 1000).await? {
            Acquired::Granted(grant) => break grant.epoch,
            Acquired::Pending(_) if Instant::now() < deadline => {}
            Acquired::Pending(_) | Acquired::Deadlock(_) => {
                return Err(Violation(
                    "the lease of a session that is gone for three TTLs is not granted".to_owned(),
                ));
            }
        }
    };
    ensure!(
        second > first,
        "after epoch {first} epoch {second} was granted"
    );
    let made = commit(&other, &database, 1, second).await?;
    ensure!(
        is_committed(&made, 2),
        "the commit of the next holder answered {made:?}"
    );
    let margin = ttl / 8;
    ensure!(
        trusted_from.elapsed() + margin >= ttl,
        "a holder that was lost may trust its lease for {ttl:?}, and the next version was visible after {:?}",
        trusted_from.elapsed()
    );
    Ok(Verdict::Kept)
}

/// A server that was killed may have given out leases: the next one lets nothing become visible before they have run out.
pub(super) async fn d01(endpoint: &Endpoint) -> Outcome {
    if endpoint.restart.is_none() {
        return Ok(Verdict::NotTried("the server cannot be restarted here"));
    }
    let first = endpoint.session().await?;
    if !first.welcome.store.as_ref().is_some_and(|s| s.durable) {
        return Ok(Verdict::NotTried("a restart leaves nothing of the store"));
    }
    let database = Shared::new(endpoint, &first).await?;
    let epoch = granted(&first, &database, 0).await?;
    let made = commit(&first, &database, 0, epoch).await?;
    ensure!(is_committed(&made, 1), "the first commit answered {made:?}");
    let trusted_from = Instant::now();
    first.settled().await?;
    endpoint.kill().await?;
    let ttl = Duration::from_millis(u64::from(first.welcome.lease_ttl_ms));
    drop(first);
    let deadline = Instant::now() + super::RESTART_PATIENCE;
    let next = loop {
        match endpoint.session().await {
            Err(_) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            session => break session?,
        }
    };
    open(&next, &database.name).await?;
    let second = loop {
        match acquire(&next, &database, 1000).await? {
            Acquired::Granted(grant) => break grant.epoch,
            Acquired::Pending(_) if Instant::now() < deadline => {}
            Acquired::Deadlock(_) => {
                return Err(Violation(
                    "a session that waits for one lease and holds none was told of a deadlock"
                        .to_owned(),
                ));
            }
            Acquired::Pending(_) => {
                return Err(Violation(
                    "the lease of a server that died is not granted by the next one".to_owned(),
                ));
            }
        }
    };
    ensure!(
        second > epoch,
        "before a death epoch {epoch} was granted, after it {second}"
    );
    let made = commit(&next, &database, 1, second).await?;
    ensure!(
        is_committed(&made, 2),
        "the first commit after a death answered {made:?}"
    );
    ensure!(
        trusted_from.elapsed() + ttl / 8 >= ttl,
        "leases of a server that died may be trusted for {ttl:?}, and the next version was visible after {:?}",
        trusted_from.elapsed()
    );
    Ok(Verdict::Kept)
}
