//! What all calls share: the tables of sessions and databases, and what happens when a session ends or a lease changes hands.
//!
//! The lease table of a database decides; this file asks the store for epochs, tells the streams, and keeps the two tables
//! in step. Every wait has a bound; nothing here is per call kind.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, DatabaseName, SessionId, StagingId, Version};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

use crate::database::Database;
use crate::lease::Lease;
use crate::process::{Host, Process};
use crate::session::{Open, Session, SessionState};
use crate::settings::Settings;
use crate::status;
use crate::store::{PageStore, StoreError};

/// How long a call waits for the Hello of its session, which travels on another stream.
const HELLO_WAIT: Duration = Duration::from_secs(1);
/// When to look whether the process behind a broken stream is dead: the kernel closes its sockets before it leaves `/proc`.
const DEATH_CHECKS_MS: [u64; 8] = [0, 2, 5, 10, 20, 40, 60, 80];

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) store: Arc<dyn PageStore>,
    pub(crate) settings: Settings,
    pub(crate) host: Option<Host>,
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
    /// Changes with each new session.
    arrivals: watch::Sender<()>,
    databases: Mutex<HashMap<DatabaseId, Arc<Database>>>,
    open_count: AtomicUsize,
    /// Read by opens, written by deletes: a database is not deleted while it is being opened.
    pub(crate) names: tokio::sync::RwLock<()>,
    /// Before it nothing may become visible: holders of leases of an earlier server may still trust them.
    pub(crate) visible_from: Instant,
    /// Changes when a barrier falls before its time.
    pub(crate) barriers: watch::Sender<()>,
    /// Set once.
    pub(crate) draining: AtomicBool,
    /// Bytes of pages that uploads keep in memory now.
    pub(crate) upload_bytes: AtomicUsize,
    /// Commits that were read completely and are not answered yet.
    pub(crate) commits: watch::Sender<usize>,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It said goodbye.
    Goodbye,
    /// Its process is dead.
    Dead,
    /// It was not heard for the lease TTL.
    Lapsed,
    /// The server stops.
    Drained,
}

/// Starts a task that nobody waits for, also from a `drop`: where the runtime has ended there is nothing left to do.
pub(crate) fn spawn_detached(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}

impl Hub {
    pub(crate) fn new(
        store: Arc<dyn PageStore>,
        settings: Settings,
        quarantine: Duration,
    ) -> Arc<Self> {
        let hub = Arc::new(Self {
            store,
            settings,
            host: Host::read(),
            sessions: Mutex::default(),
            arrivals: watch::Sender::new(()),
            databases: Mutex::default(),
            open_count: AtomicUsize::new(0),
            names: tokio::sync::RwLock::default(),
            visible_from: Instant::now() + quarantine,
            barriers: watch::Sender::new(()),
            draining: AtomicBool::new(false),
            upload_bytes: AtomicUsize::new(0),
            commits: watch::Sender::new(0),
        });
        hub.spawn_sweeper();
        hub
    }

    /// An answer of the store, or an error where it takes too long. Not for commits.
    pub(crate) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(self.settings.store_wait, call).await {
            Ok(result) => result.map_err(status::of_store),
            Err(_) => Err(Reason::Unavailable.status(format!(
                "the store did not answer within {} ms",
                self.settings.store_wait.as_millis()
            ))),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    // ------------------------------------------------------------------------------------------------ sessions

    /// The session of a call; waits for its Hello.
    pub(crate) async fn session(&self, id: &[u8]) -> Result<Arc<Session>, Status> {
        let id = SessionId::try_from(id)?;
        let mut arrivals = self.arrivals.subscribe();
        let deadline = Instant::now() + HELLO_WAIT;
        loop {
            if let Some(session) = self.live_session(id) {
                return Ok(session);
            }
            if !matches!(
                tokio::time::timeout_at(deadline, arrivals.changed()).await,
                Ok(Ok(()))
            ) {
                return Err(match self.is_draining() {
                    true => status::draining(),
                    false => status::session_unknown(),
                });
            }
        }
    }

    /// The session, if it can act now.
    pub(crate) fn live_session(&self, id: SessionId) -> Option<Arc<Session>> {
        let session = self.sessions.lock().get(&id).cloned()?;
        session
            .is_live(Instant::now(), self.settings.lease_ttl)
            .then_some(session)
    }

    /// The session to which a Hello belongs: the one that lives, or a new one.
    pub(crate) fn session_for_hello(
        self: &Arc<Self>,
        id: SessionId,
    ) -> Result<(Arc<Session>, bool), Status> {
        let now = Instant::now();
        if let Some(session) = self.live_session(id) {
            return Ok((session, true));
        }
        let lapsed = self.sessions.lock().get(&id).cloned();
        if let Some(lapsed) = lapsed {
            self.end_session(&lapsed, End::Lapsed);
        }
        if self.is_draining() {
            return Err(status::draining());
        }
        let mut sessions = self.sessions.lock();
        if let Some(session) = sessions.get(&id) {
            return Ok((Arc::clone(session), true));
        }
        if sessions.len() >= self.settings.max_sessions {
            return Err(Reason::Limit.status(format!(
                "{} sessions are open, no more are allowed",
                self.settings.max_sessions
            )));
        }
        let session = Arc::new(Session::new(id, now));
        sessions.insert(id, Arc::clone(&session));
        Ok((session, false))
    }

    /// A new session can be found: wakes the calls that came before their Hello.
    pub(crate) fn announce_session(&self) {
        self.arrivals.send_replace(());
    }

    pub(crate) fn all_sessions(&self) -> Vec<Arc<Session>> {
        self.sessions.lock().values().cloned().collect()
    }

    /// Ends a session: what it has is given to others at once, for it trusts nothing any more.
    pub(crate) fn end_session(self: &Arc<Self>, session: &Arc<Session>, end: End) {
        let (opens, stagings) = {
            let mut state = session.state.lock();
            let still_live = state.is_live(Instant::now(), self.settings.lease_ttl);
            if state.ended || (end == End::Lapsed && still_live) {
                return;
            }
            state.ended = true;
            state.leases.clear();
            state.stop_stream(match end {
                End::Goodbye => None,
                End::Dead | End::Lapsed => Some(status::session_unknown()),
                End::Drained => Some(status::draining()),
            });
            (std::mem::take(&mut state.opens), state.take_stagings(None))
        };
        tracing::debug!(?end, databases = opens.len(), "a session ended");
        for Open { database, .. } in opens.values() {
            let mut lease = database.lease.lock();
            forget(database, session.id, &mut lease, &mut session.state.lock());
        }
        {
            // After that: a new session with this id would lose what it is given meanwhile.
            let mut sessions = self.sessions.lock();
            if sessions
                .get(&session.id)
                .is_some_and(|known| Arc::ptr_eq(known, session))
            {
                sessions.remove(&session.id);
            }
        }
        for Open { database, .. } in opens.values() {
            self.forgotten(database);
        }
        self.discard(stagings);
    }

    /// Ends a session that was found to have lapsed.
    pub(crate) fn end_lapsed(self: &Arc<Self>, id: SessionId) {
        let session = self.sessions.lock().get(&id).cloned();
        if let Some(session) = session {
            self.end_session(&session, End::Lapsed);
        }
    }

    /// The session has no connection to the database any more.
    pub(crate) fn close_database(
        self: &Arc<Self>,
        session: &Arc<Session>,
        id: DatabaseId,
        sequence: u64,
    ) {
        self.close_where(session, id, |open| open.sequence <= sequence);
    }

    /// Takes an open back that could not be answered, unless another open of the database came meanwhile.
    pub(crate) fn undo_open(self: &Arc<Self>, session: &Arc<Session>, id: DatabaseId, opened: u64) {
        self.close_where(session, id, |open| open.opened == Some(opened));
    }

    /// Closes the database where it is open and `closes` says so.
    ///
    /// One step under the locks of the lease and of the session: an open of the same database, which comes on another task,
    /// finds all of the old one or nothing of it. Otherwise the close would take the lease and the floor of the new open,
    /// whose client trusts them.
    fn close_where(
        self: &Arc<Self>,
        session: &Arc<Session>,
        id: DatabaseId,
        closes: impl FnOnce(&Open) -> bool,
    ) {
        let Some(Open { database, .. }) = session.open(id) else {
            return;
        };
        let stagings = {
            let mut lease = database.lease.lock();
            let mut state = session.state.lock();
            // Closed and opened in between it is another one, which `closes` judges; its lease is of the same database.
            let same = |open: &Open| Arc::ptr_eq(&open.database, &database);
            if !state
                .opens
                .get(&id)
                .is_some_and(|open| same(open) && closes(open))
            {
                return;
            }
            state.opens.remove(&id);
            forget(&database, session.id, &mut lease, &mut state);
            state.take_stagings(Some(id))
        };
        self.forgotten(&database);
        self.discard(stagings);
    }

    /// After a session has forgotten the database: others may go on.
    fn forgotten(self: &Arc<Self>, database: &Arc<Database>) {
        database.sessions.fetch_sub(1, Ordering::AcqRel);
        self.open_count.fetch_sub(1, Ordering::AcqRel);
        self.barriers.send_replace(());
        database.notify();
        self.schedule_protect(database);
        self.settle(database);
    }

    /// A message came on the stream with this number. False where the session has ended, or another stream replaced it.
    pub(crate) fn heard(&self, session: &Session, stream: u64) -> bool {
        let now = Instant::now();
        let mut state = session.state.lock();
        let counts = state.streams_so_far == stream && state.is_live(now, self.settings.lease_ttl);
        if counts {
            state.last_heard = now;
        }
        counts
    }

    /// Whether messages of the stream with this number still count.
    pub(crate) fn is_current(&self, session: &Session, stream: u64) -> bool {
        let state = session.state.lock();
        state.streams_so_far == stream && state.is_live(Instant::now(), self.settings.lease_ttl)
    }

    /// The stream with this number has ended without a goodbye: that proves nothing about the process behind it.
    pub(crate) fn stream_broken(self: &Arc<Self>, session: &Arc<Session>, stream: u64) {
        let (process, leased) = {
            let mut state = session.state.lock();
            if state.ended || state.streams_so_far != stream {
                return;
            }
            state.stream = None;
            let leased: Vec<_> = state
                .leases
                .keys()
                .filter_map(|id| state.opens.get(id))
                .map(|open| Arc::clone(&open.database))
                .collect();
            (state.process, leased)
        };
        tracing::debug!(leases = leased.len(), "the stream of a session broke");
        for database in &leased {
            self.settle(database);
        }
        if let Some(process) = process {
            self.spawn_death_checks(session, stream, process);
        }
    }

    fn spawn_death_checks(self: &Arc<Self>, session: &Arc<Session>, stream: u64, process: Process) {
        let (hub, session) = (Arc::clone(self), Arc::clone(session));
        tokio::spawn(async move {
            for wait_ms in DEATH_CHECKS_MS {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                {
                    let state = session.state.lock();
                    if state.ended || state.streams_so_far != stream {
                        return;
                    }
                }
                if process.is_dead() {
                    hub.end_session(&session, End::Dead);
                    return;
                }
            }
        });
    }

    // ------------------------------------------------------------------------------------------------ databases

    /// Notes that the session has the database open, what it may do with it, and that it reads this version.
    pub(crate) fn register_open(
        &self,
        session: &Session,
        id: DatabaseId,
        writable: bool,
        sequence: u64,
        floor: Version,
    ) -> Result<Open, Status> {
        let mut databases = self.databases.lock();
        let mut state = session.state.lock();
        if state.ended {
            return Err(status::session_unknown());
        }
        state.opens_so_far += 1;
        let opened = state.opens_so_far;
        if let Some(open) = state.opens.get_mut(&id) {
            open.writable |= writable;
            open.sequence = open.sequence.max(sequence);
            open.opened = None;
            return Ok(open.clone());
        }
        for (count, most, whose) in [
            (
                state.opens.len(),
                self.settings.max_open_databases,
                "in this session",
            ),
            (
                self.open_count.load(Ordering::Acquire),
                self.settings.max_open_databases_in_total,
                "on this server",
            ),
        ] {
            if count >= most {
                return Err(Reason::Limit.status(format!(
                    "{count} databases are open {whose}, no more are allowed"
                )));
            }
        }
        let database = databases
            .entry(id)
            .or_insert_with(|| Arc::new(Database::new(id)));
        let open = Open {
            database: Arc::clone(database),
            writable,
            sequence,
            opened: Some(opened),
        };
        state.opens.insert(id, open.clone());
        database.floors.lock().insert(session.id, floor);
        database.sessions.fetch_add(1, Ordering::AcqRel);
        self.open_count.fetch_add(1, Ordering::AcqRel);
        Ok(open)
    }

    /// Sessions that have the database open.
    pub(crate) fn sessions_of(&self, id: DatabaseId) -> usize {
        self.databases
            .lock()
            .get(&id)
            .map_or(0, |database| database.sessions.load(Ordering::Acquire))
    }

    pub(crate) fn all_databases(&self) -> Vec<Arc<Database>> {
        self.databases.lock().values().cloned().collect()
    }

    /// Tells the store the oldest version that anybody reads, where that has changed.
    pub(crate) async fn protect(&self, database: &Database) -> Result<(), Status> {
        let mut told = database.protected.lock().await;
        database.protect_scheduled.store(false, Ordering::Release);
        let floor = database.floor();
        if *told != floor {
            self.bounded(self.store.protect(database.id, floor, &[]))
                .await?;
            *told = floor;
        }
        Ok(())
    }

    /// The same, for floors that rise: nobody waits for it.
    pub(crate) fn schedule_protect(self: &Arc<Self>, database: &Arc<Database>) {
        if database.protect_scheduled.swap(true, Ordering::AcqRel) {
            return;
        }
        let (hub, database) = (Arc::clone(self), Arc::clone(database));
        tokio::spawn(async move {
            if let Err(error) = hub.protect(&database).await {
                tracing::debug!(
                    error = error.message(),
                    "a floor was not taken by the store"
                );
            }
        });
    }

    /// Drops stagings in the store; nobody waits for it.
    pub(crate) fn discard(&self, stagings: Vec<StagingId>) {
        if stagings.is_empty() {
            return;
        }
        let store = Arc::clone(&self.store);
        spawn_detached(async move {
            for staging in stagings {
                if let Err(error) = store.discard(staging).await {
                    tracing::warn!(%error, "a staging was not dropped");
                }
            }
        });
    }

    /// Removes names that were given out and never committed to, unless somebody has opened them again.
    pub(crate) fn drop_unborn(self: &Arc<Self>, unborn: Vec<(DatabaseName, DatabaseId)>) {
        let hub = Arc::clone(self);
        spawn_detached(async move {
            for (name, id) in unborn {
                if let Err(error) = hub.drop_if_unborn(&name, id).await {
                    tracing::debug!(
                        error = error.message(),
                        "a name without a commit was not dropped"
                    );
                }
            }
        });
    }

    async fn drop_if_unborn(&self, name: &DatabaseName, id: DatabaseId) -> Result<(), Status> {
        // An open has the lock from its lookup until the table knows of it, and a call under way keeps the table's entry.
        let _names = self.names.write().await;
        let in_use = self.databases.lock().contains_key(&id);
        if in_use || self.bounded(self.store.lookup(name, false)).await? != id {
            return Ok(());
        }
        let head = self.bounded(self.store.head(id)).await?;
        if head.version == Version::ZERO {
            self.store.remove(name).await.map_err(status::of_store)?;
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------------- sweep

    fn spawn_sweeper(self: &Arc<Self>) {
        let hub = Arc::downgrade(self);
        let every = (self.settings.lease_ttl / 16)
            .clamp(Duration::from_millis(5), Duration::from_millis(100));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(hub) = hub.upgrade() else { return };
                hub.sweep();
            }
        });
    }

    /// Ends sessions that were not heard, and forgets databases that nobody has open.
    fn sweep(self: &Arc<Self>) {
        let now = Instant::now();
        for session in self.all_sessions() {
            if !session.is_live(now, self.settings.lease_ttl) {
                self.end_session(&session, End::Lapsed);
                continue;
            }
            let broken = {
                let state = session.state.lock();
                state.process.filter(|_| state.stream.is_none())
            };
            // It may die long after its stream broke; its leases and barriers end with it.
            if broken.is_some_and(Process::is_dead) {
                self.end_session(&session, End::Dead);
            }
        }
        let mut unborn = Vec::new();
        self.databases.lock().retain(|_, database| {
            // A session or a call that has it holds another reference.
            if Arc::strong_count(database) > 1 || !database.lease.lock().is_idle(now) {
                return true;
            }
            let unprotected = database
                .protected
                .try_lock()
                .is_ok_and(|told| told.is_none());
            if !unprotected {
                // The store did not take it the last time.
                self.schedule_protect(database);
            }
            if unprotected && let Some(name) = database.unborn.lock().take() {
                unborn.push((name, database.id));
            }
            !unprotected
        });
        if !unborn.is_empty() {
            self.drop_unborn(unborn);
        }
    }
}

/// The session has nothing to do with the database any more: its lease, ticket, barrier and floor go.
fn forget(database: &Database, session: SessionId, lease: &mut Lease, state: &mut SessionState) {
    lease.remove(session);
    state.leases.remove(&database.id);
    database.floors.lock().remove(&session);
}

#[cfg(test)]
mod tests;
