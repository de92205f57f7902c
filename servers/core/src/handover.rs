//! How a lease changes hands: recall, move, fence, grant, and the barrier that commits wait for.
//!
//! The lease table of the database decides who is next; epochs come from [`crate::store::PageStore::fence`] and nowhere
//! else, and the fence and the new holder are one step under the `turn` of the database.

use std::sync::Arc;

use pagewire_proto::{DatabaseId, Epoch, LeaseGrant, SessionId, Version, pb};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::database::Database;
use crate::hub::{End, Hub, spawn_detached};
use crate::lease::Turn;
use crate::service::pages_along;
use crate::session::Session;
use crate::status;
use crate::store::StoreError;

/// What a step of [`Hub::serve_turns`] came to.
enum Step {
    Granted,
    /// The ticket went away, or it is to be told on its stream and needs a grant for that.
    Again,
    /// Another page server has the database: its news begin another turn, as does whoever asks again.
    Elsewhere,
}

impl Hub {
    /// Brings a wanted lease on its way: asks the holder, or takes it from one whose stream is broken; grants a free one.
    pub(crate) fn settle(self: &Arc<Self>, database: &Arc<Database>) {
        let now = Instant::now();
        let holder = {
            let mut lease = database.lease.lock();
            if !lease.is_wanted(now) {
                return;
            }
            lease.holder()
        };
        let Some((holder, epoch)) = holder else {
            self.advance(database);
            return;
        };
        match self.live_session(holder) {
            Some(session) => self.ask_or_take(database, &session, epoch, now),
            // Lapsed: the sweep would find it too, but somebody waits.
            None => self.end_lapsed(holder),
        }
    }

    fn ask_or_take(
        self: &Arc<Self>,
        database: &Arc<Database>,
        holder: &Arc<Session>,
        epoch: Epoch,
        now: Instant,
    ) {
        let (broken, process) = {
            let state = holder.state.lock();
            if !state.has_begun() {
                // It is being brought here, and its Hello looks afterwards who waits.
                return;
            }
            (state.stream.is_none(), state.process)
        };
        if !broken {
            self.recall(database, holder);
            return;
        }
        if process.is_some_and(|process| process.is_dead()) {
            self.end_session(holder, End::Dead);
            return;
        }
        let taken = {
            let mut lease = database.lease.lock();
            let mut state = holder.state.lock();
            let trusted_until = state.last_heard + self.settings.lease_ttl;
            let taken = state.stream.is_none()
                && lease.epoch_of(holder.id) == Some(epoch)
                && trusted_until > now
                && lease.take(holder.id, trusted_until, state.streams_so_far);
            if taken {
                state.leases.remove(&database.id);
                let broken = state.streams_so_far;
                state.barriers.insert(database.id, broken);
            }
            taken
        };
        if taken {
            tracing::debug!(%epoch, "took a lease from a session whose stream is broken");
            self.advance(database);
        }
    }

    /// Asks the holder for the lease, once a holding.
    fn recall(&self, database: &Database, holder: &Session) {
        let mut lease = database.lease.lock();
        let mut state = holder.state.lock();
        if lease.epoch_of(holder.id).is_none() || state.stream.is_none() {
            return;
        }
        if let Some((_, epoch)) = lease.recall(Instant::now()) {
            state.push(recalled(database.id, epoch));
        }
    }

    /// Asks for a lease back because the server stops.
    pub(crate) fn ask_back(&self, database: &Database) {
        let holder = database.lease.lock().holder();
        let Some(session) = holder.and_then(|(holder, _)| self.live_session(holder)) else {
            return;
        };
        let mut lease = database.lease.lock();
        let mut state = session.state.lock();
        if lease.epoch_of(session.id).is_some()
            && let Some((_, epoch)) = lease.recall_unasked()
        {
            state.push(recalled(database.id, epoch));
        }
    }

    /// The holder gives the lease back.
    pub(crate) fn release(
        self: &Arc<Self>,
        database: &Arc<Database>,
        session: &Session,
        epoch: Epoch,
        wants_back: bool,
    ) {
        let stagings = {
            let mut lease = database.lease.lock();
            if !lease.release(session.id, epoch, wants_back, Instant::now()) {
                return;
            }
            let mut state = session.state.lock();
            state.leases.remove(&database.id);
            // They belong to a transaction under this epoch, which cannot commit any more.
            state.take_stagings(Some(database.id))
        };
        self.discard(stagings);
        database.notify();
        self.advance(database);
    }

    /// The holder keeps the lease until its transaction ends.
    pub(crate) fn keep(
        &self,
        database: &Database,
        session: SessionId,
        epoch: Epoch,
        transaction: u64,
    ) {
        if database.lease.lock().keep(session, epoch, transaction) {
            database.notify();
        }
    }

    /// Gives a free lease to the first ticket, in a task of its own: a caller that goes away tears nothing.
    /// What it comes to: whether the claim of another server stands in the way.
    pub(crate) fn advance(self: &Arc<Self>, database: &Arc<Database>) -> JoinHandle<bool> {
        let (hub, database) = (Arc::clone(self), Arc::clone(database));
        tokio::spawn(async move { hub.serve_turns(&database).await })
    }

    async fn serve_turns(self: &Arc<Self>, database: &Arc<Database>) -> bool {
        let _turn = database.turn.lock().await;
        let mut unused_epoch = None;
        loop {
            if self.is_draining() {
                return false;
            }
            let next = database.lease.lock().next_turn(Instant::now());
            let Some(turn) = next else { return false };
            match self.serve(database, turn, &mut unused_epoch).await {
                Ok(Step::Granted) => return false,
                Ok(Step::Elsewhere) => return true,
                Ok(Step::Again) => {}
                Err(error) => {
                    tracing::warn!(error = error.message(), "a lease could not be granted");
                    // Its call finds the ticket gone and says so.
                    database.lease.lock().drop_ticket(turn.session);
                    database.notify();
                }
            }
        }
    }

    /// Serves the first ticket. An epoch that it was not given in the end serves its next turn.
    async fn serve(
        self: &Arc<Self>,
        database: &Arc<Database>,
        turn: Turn,
        unused_epoch: &mut Option<(Epoch, SessionId)>,
    ) -> Result<Step, Status> {
        let Some(session) = self.live_session(turn.session) else {
            database.lease.lock().drop_ticket(turn.session);
            return Ok(Step::Again);
        };
        // One that was made for another session is not for this one, and beside other servers the claim may have gone since (PEER1).
        let unused = unused_epoch
            .filter(|(_, session)| *session == turn.session && self.store.peers().is_none());
        let epoch = match unused {
            Some((epoch, _)) => epoch,
            None => match self.bounded(self.fence(database, &session)).await? {
                Some(epoch) => epoch,
                None => return Ok(Step::Elsewhere),
            },
        };
        *unused_epoch = Some((epoch, turn.session));
        // A waiting call asks the store itself, with what it knows.
        let news = match turn.waiting {
            true => None,
            false => Some(self.news_for(database, &session, epoch, turn).await?),
        };
        {
            let mut lease = database.lease.lock();
            let now = Instant::now();
            let still_waiting = lease.next_turn(now).is_some_and(|now| now.waiting);
            if news.is_none() && !still_waiting {
                return Ok(Step::Again);
            }
            let mut state = session.state.lock();
            // A lease of a database that is not open would never be given back.
            if state.ended || !state.opens.contains_key(&database.id) {
                lease.drop_ticket(session.id);
                return Ok(Step::Again);
            }
            if lease.next_turn(now).map(|turn| turn.session) != Some(session.id) {
                return Ok(Step::Again);
            }
            if !lease.grant(session.id, epoch, now) {
                *unused_epoch = None;
                return Err(status::of_store(StoreError::Internal(format!(
                    "the store gave out epoch {epoch} again"
                ))));
            }
            state.leases.insert(database.id, epoch);
            state.waits.granted(database.id);
            if let (Some(grant), false) = (news, still_waiting) {
                state.push(granted(database.id, grant));
            }
        }
        *unused_epoch = None;
        database.notify();
        if !turn.waiting {
            // Others may wait already: the new holder gives it back at the end of its transaction.
            self.settle(database);
        }
        Ok(Step::Granted)
    }

    /// Tells a session on its stream of a lease whose waiting call went away.
    pub(crate) fn push_grant(
        self: &Arc<Self>,
        database: &Arc<Database>,
        session: &Arc<Session>,
        known: Version,
    ) {
        let (hub, database, session) =
            (Arc::clone(self), Arc::clone(database), Arc::clone(session));
        spawn_detached(async move {
            let Some(epoch) = database.lease.lock().epoch_of(session.id) else {
                return;
            };
            // Without the news the session learns of the lease when it asks again, or by a recall.
            if let Ok(grant) = hub.grant_for(&database, epoch, known).await {
                let lease = database.lease.lock();
                if lease.epoch_of(session.id) == Some(epoch) {
                    session.push(granted(database.id, grant.into()));
                }
            }
            hub.settle(&database);
        });
    }

    /// The grant for one that is told on its stream, with the pages that it would like.
    async fn news_for(
        &self,
        database: &Database,
        session: &Session,
        epoch: Epoch,
        turn: Turn,
    ) -> Result<pb::LeaseGrant, Status> {
        let grant = self.grant_for(database, epoch, turn.known).await?;
        let account = {
            let state = session.state.lock();
            let stream = state.stream.as_ref();
            stream.map(|stream| Arc::clone(stream.outbound.account()))
        };
        let along = match account {
            Some(account) if turn.pages_since > Version::ZERO => {
                let (known, since) = ((turn.known, &grant), turn.pages_since);
                pages_along(self, &account, session, database, known, since).await
            }
            _ => None,
        };
        let mut news = pb::LeaseGrant::from(grant);
        // From here on they count as news.
        news.pages = along.map(|along| along.pages).unwrap_or_default();
        Ok(news)
    }

    /// The lease as the session is told of it: read after the fence, so that it has every commit of earlier holders.
    pub(crate) async fn grant_for(
        &self,
        database: &Database,
        epoch: Epoch,
        known: Version,
    ) -> Result<LeaseGrant, Status> {
        let (head, changes) = self.bounded(self.store.changes(database.id, known)).await?;
        database.note_page_size(head);
        Ok(LeaseGrant {
            epoch,
            head,
            changes,
        })
    }

    /// The client has taken in the Welcome of this stream: commits wait no longer for what it may have trusted before (L-8).
    pub(crate) fn welcomed(&self, session: &Session, stream: u64) {
        let mut databases = Vec::new();
        {
            let mut state = session.state.lock();
            let state = &mut *state;
            state.barriers.retain(|id, broken| {
                if *broken < stream {
                    databases.extend(state.opens.get(id).map(|open| Arc::clone(&open.database)));
                }
                *broken >= stream
            });
        }
        if databases.is_empty() {
            return;
        }
        for database in databases {
            database.lease.lock().welcomed(session.id, stream);
        }
        self.barriers.send_replace(());
    }

    /// Waits until nobody can trust what a commit to these databases would make untrue.
    pub(crate) async fn pass_barriers(&self, databases: &[Arc<Database>]) {
        #[cfg(feature = "defects")]
        if crate::defects::is_off(crate::defects::Defect::Barriers) {
            return;
        }
        let mut lifted = self.barriers.subscribe();
        loop {
            let now = Instant::now();
            let until = databases
                .iter()
                .filter_map(|database| database.lease.lock().barrier(now))
                .max()
                .map_or(self.visible_from, |barrier| barrier.max(self.visible_from));
            if until <= now {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = lifted.changed() => {}
            }
        }
    }
}

fn recalled(database: DatabaseId, epoch: Epoch) -> pb::session_response::Message {
    pb::session_response::Message::LeaseRecall(pb::LeaseRecall {
        database_id: database.to_wire(),
        epoch: epoch.get(),
    })
}

fn granted(database: DatabaseId, grant: pb::LeaseGrant) -> pb::session_response::Message {
    pb::session_response::Message::LeaseGranted(pb::LeaseGranted {
        database_id: database.to_wire(),
        grant: Some(grant),
    })
}
