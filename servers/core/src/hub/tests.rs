//! Closing against opening on another task. Needs threads: what is shown takes two steps that nothing else can part.

use std::sync::Barrier;

use async_trait::async_trait;
use pagewire_proto::{
    Changes, DatabaseName, Epoch, Incarnation, PageNumber, PageSize, Snapshot, StagingId, Version,
};

use super::*;
use crate::arrival::is_next;
use crate::lease::Request;
use crate::store::{
    Capabilities, Commit, CommitOutcome, DatabaseEntry, PageWrite, Resolution, Resolve, StoredPage,
};

const DATABASE: DatabaseId = DatabaseId::from_bytes([7; 16]);
const ROUNDS: u64 = 5000;

/// A store that cannot be reached: the tables of the hub need none.
#[derive(Debug)]
struct Unreachable;

fn unreachable<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("no store".to_owned()))
}

#[async_trait]
impl PageStore for Unreachable {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "unreachable".to_owned(),
            durable: false,
            versions: false,
            branches: false,
            exclusive: true,
            retention: None,
        }
    }
    fn incarnation(&self) -> Incarnation {
        Incarnation::from_bytes([1; 16])
    }
    async fn begin_service(&self, _: Duration) -> Result<Duration, StoreError> {
        unreachable()
    }
    async fn end_service(&self) -> Result<(), StoreError> {
        unreachable()
    }
    async fn lookup(&self, _: &DatabaseName, _: bool) -> Result<DatabaseId, StoreError> {
        unreachable()
    }
    async fn list(&self, _: &str, _: &str, _: usize) -> Result<Vec<DatabaseEntry>, StoreError> {
        unreachable()
    }
    async fn remove(&self, _: &DatabaseName) -> Result<DatabaseId, StoreError> {
        unreachable()
    }
    async fn head(&self, _: DatabaseId) -> Result<Snapshot, StoreError> {
        unreachable()
    }
    async fn changes(&self, _: DatabaseId, _: Version) -> Result<(Snapshot, Changes), StoreError> {
        unreachable()
    }
    async fn read(
        &self,
        _: DatabaseId,
        _: Version,
        _: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        unreachable()
    }
    async fn protect(
        &self,
        _: DatabaseId,
        _: Option<Version>,
        _: &[Version],
    ) -> Result<(), StoreError> {
        unreachable()
    }
    async fn fence(&self, _: DatabaseId) -> Result<Epoch, StoreError> {
        unreachable()
    }
    async fn stage(
        &self,
        _: DatabaseId,
        _: StagingId,
        _: PageSize,
        _: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        unreachable()
    }
    async fn discard(&self, _: StagingId) -> Result<(), StoreError> {
        unreachable()
    }
    async fn commit(&self, _: Commit) -> Result<CommitOutcome, StoreError> {
        unreachable()
    }
    async fn resolve(&self, _: Resolve) -> Result<Resolution, StoreError> {
        unreachable()
    }
}

fn hub() -> Arc<Hub> {
    let settings = Settings {
        lease_ttl: Duration::from_secs(600),
        ..Settings::default()
    };
    Hub::new(Arc::new(Unreachable), settings, Duration::ZERO)
}

/// What the client of an open with this number is told: the lease under this epoch, from this version on.
fn open_and_take(hub: &Hub, session: &Session, number: u64) {
    let open = hub.register_open(session, DATABASE, true, number, Version::new(number));
    let database = open.unwrap().database;
    let mut lease = database.lease.lock();
    let now = Instant::now();
    if matches!(lease.request(session.id, Version::ZERO, now), Request::Turn) {
        assert!(lease.grant(session.id, Epoch::new(number), now));
        let mut state = session.state.lock();
        state.leases.insert(DATABASE, Epoch::new(number));
    }
}

/// What is missing of the open that came last.
fn missing(session: &Session) -> Option<&'static str> {
    let Some(open) = session.open(DATABASE) else {
        return Some("the open");
    };
    let held = open.database.lease.lock().epoch_of(session.id);
    if held.is_none() || session.state.lock().leases.get(&DATABASE).copied() != held {
        return Some("the lease");
    }
    (!open.database.readers.lock().has_floor(session.id)).then_some("the floor")
}

/// The close of an open is handled by the task of the stream, the next open of the database by another: a close that was
/// interrupted half-way took the lease and the floor of the new open, which its client went on to trust.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_close_takes_nothing_of_an_open_that_comes_meanwhile() {
    let hub = hub();
    let id = SessionId::random().unwrap();
    let session = hub.session_for_hello(id).unwrap();
    let runtime = tokio::runtime::Handle::current();
    open_and_take(&hub, &session, 1);
    let database = session.open(DATABASE).unwrap().database;
    std::thread::scope(|scope| {
        // A close that takes the session first and the lease later stops between the two.
        let mut lease = database.lease.lock();
        let closing = scope.spawn(|| {
            let _runtime = runtime.enter();
            hub.close_database(&session, DATABASE, 1);
        });
        // A right one shows nothing before it has the lease: then this waits in vain.
        let begun = std::time::Instant::now();
        while session.open(DATABASE).is_some() && begun.elapsed() < Duration::from_millis(200) {
            std::thread::yield_now();
        }
        let opened = hub.register_open(&session, DATABASE, true, 2, Version::new(2));
        assert!(opened.is_ok());
        let now = Instant::now();
        assert!(matches!(
            lease.request(session.id, Version::ZERO, now),
            Request::Held { .. }
        ));
        drop(lease);
        assert!(closing.join().is_ok());
    });
    assert_eq!(missing(&session), None);
}

/// The same for the end of a session whose process comes back with the same id.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_end_of_a_session_takes_nothing_of_the_next_one_with_its_id() {
    let hub = hub();
    let id = SessionId::random().unwrap();
    let runtime = tokio::runtime::Handle::current();
    let start = Barrier::new(2);
    let old = Mutex::new(hub.session_for_hello(id).unwrap());
    open_and_take(&hub, &old.lock(), 1);
    let mut found = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _runtime = runtime.enter();
            for _ in 1..ROUNDS {
                let session = Arc::clone(&old.lock());
                start.wait();
                hub.end_session(&session, End::Dead);
                start.wait();
                start.wait();
            }
        });
        for round in 1..ROUNDS {
            start.wait();
            let session = loop {
                let session = hub.session_for_hello(id).unwrap();
                if !Arc::ptr_eq(&session, &old.lock()) {
                    break session;
                }
            };
            open_and_take(&hub, &session, round + 1);
            start.wait();
            found.extend(missing(&session).map(|what| (round, what)));
            *old.lock() = session;
            start.wait();
        }
    });
    assert_eq!(found, []);
}

/// Two Hellos of a session are handled by two tasks: what the store said to the older one is nothing to the session once the newer one is here.
#[tokio::test]
async fn peer7_a_hello_that_was_overtaken_takes_nothing() {
    let hub = hub();
    let session = hub.session_for_hello(SessionId::random().unwrap()).unwrap();
    open_and_take(&hub, &session, 1);
    session.state.lock().hello = 6;
    hub.bring(&session, 5, &[]);
    assert_eq!(missing(&session), None);
    hub.bring(&session, 6, &[]);
    assert_eq!(missing(&session), Some("the lease"));
}

/// A Hello that was refused may have brought leases that the client never heard of: what is here is not what it believes.
#[tokio::test]
async fn peer7_nothing_is_believed_behind_a_hello_that_had_no_welcome() {
    let hub = hub();
    let session = hub.session_for_hello(SessionId::random().unwrap()).unwrap();
    let mut state = session.state.lock();
    (state.hello, state.answered) = (7, 6);
    assert!(!is_next(&state, 8) && !is_next(&state, 7));
    state.answered = 7;
    assert!(is_next(&state, 8) && !is_next(&state, 9));
}
