//! The table of open databases: who has what open, from which version on, and what ends with an open.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, SessionId, StagingId, Version};
use tonic::Status;

use super::{Hub, spawn_detached};
use crate::database::Database;
use crate::lease::Lease;
use crate::session::{Open, Session, SessionState};
use crate::status;

impl Hub {
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
        database.readers.lock().enter(session.id, floor);
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

    /// Whether the table has the database: somebody has it open, or a call for it is under way.
    pub(super) fn is_known(&self, id: DatabaseId) -> bool {
        self.databases.lock().contains_key(&id)
    }

    /// The database, where the table has it.
    pub(crate) fn known(&self, id: DatabaseId) -> Option<Arc<Database>> {
        self.databases.lock().get(&id).cloned()
    }

    /// The database in the table, which the sweep drops again where nobody opens it.
    pub(crate) fn known_or_new(&self, id: DatabaseId) -> Arc<Database> {
        let mut databases = self.databases.lock();
        let database = databases.entry(id);
        Arc::clone(database.or_insert_with(|| Arc::new(Database::new(id))))
    }

    pub(crate) fn all_databases(&self) -> Vec<Arc<Database>> {
        self.databases.lock().values().cloned().collect()
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

    /// Closes what opens up to this number have left open and the client does not have: their answers were lost.
    pub(crate) fn close_unlisted(
        self: &Arc<Self>,
        session: &Arc<Session>,
        listed: &HashSet<DatabaseId>,
        settled: u64,
    ) {
        if settled == 0 {
            return;
        }
        let unlisted: Vec<_> = {
            let state = session.state.lock();
            // As a rule the client has what it was given.
            if state.opens.len() == listed.len() {
                return;
            }
            let unlisted = state
                .opens
                .iter()
                .filter(|(id, open)| open.sequence <= settled && !listed.contains(id));
            unlisted.map(|(id, _)| *id).collect()
        };
        for id in unlisted {
            self.close_where(session, id, |open| open.sequence <= settled);
        }
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
    pub(super) fn forgotten(self: &Arc<Self>, database: &Arc<Database>) {
        database.sessions.fetch_sub(1, Ordering::AcqRel);
        self.open_count.fetch_sub(1, Ordering::AcqRel);
        self.barriers.send_replace(());
        database.notify();
        self.schedule_protect(database);
        self.settle(database);
    }
}

/// The session has nothing to do with the database any more: its lease, ticket, barrier, subscription, floor and pins go.
pub(super) fn forget(
    database: &Database,
    session: SessionId,
    lease: &mut Lease,
    state: &mut SessionState,
) {
    lease.remove(session);
    state.leases.remove(&database.id);
    state.barriers.remove(&database.id);
    state.unsubscribe(session, database);
    state.pins -= database.readers.lock().leave(session);
}
