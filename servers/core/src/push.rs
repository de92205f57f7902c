//! News of versions: who subscribes, and the two phases of a commit that others may not have heard of.
//!
//! ```text
//! commits lock ── barriers ── prepare: Prepare n to strict subscribers ── answered, or windows over ── store.commit
//!    committed: Published n ── answer        refused: PrepareAborted n ── answer        unknown: subscriptions end ── answer
//! ```
//! The table of a database ([`crate::subscription`]) decides; this file sends, waits and asks the store. S1 to S7 are in
//! `docs/versions.md`. A commit without subscribers looks at an empty table twice and waits for nothing.
//!
//! Messages about a subscription are put on the stream in the critical section that changes the table (the session's state, then
//! the table), so their order on the stream is that of the changes. Nobody waits for an answer while holding a lock that the
//! answer needs: streams take no `commits` lock, so two commits can't wait for each other through their subscribers.

use std::sync::Arc;

use bytes::Bytes;
use pagewire_proto::limits::MAX_PUSHED_PAGES;
use pagewire_proto::{Changes, DatabaseId, Epoch, SessionId, Version, pb};
use tokio::time::Instant;

use crate::database::Database;
use crate::hub::{Hub, spawn_detached};
use crate::service::page_beside;
use crate::session::{Session, SessionState};
use crate::store::{CommitOutcome, StoreError};
use crate::subscription::{Answered, Asked, Expired, Subscriber};

type News = pb::session_response::Message;

impl Hub {
    // ------------------------------------------------------------------------------------------------- subscribing

    /// A Subscribe came on the stream with this number.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        session: &Arc<Session>,
        stream: u64,
        id: DatabaseId,
        asked: Asked,
    ) {
        let unanswered = {
            let mut state = session.state.lock();
            if state.ended || state.streams_so_far != stream {
                return;
            }
            let offered = match asked.strict {
                true => self.pushes(),
                false => self.pushes() || self.tells_of_others(),
            } && !self.is_draining();
            let Some(open) = state.opens.get(&id).cloned().filter(|_| offered) else {
                state.push(ended(id, asked.number));
                return;
            };
            if asked.strict && state.silent.is_some() {
                // It replaces the one before all the same.
                state.unsubscribe(session.id, &open.database);
                refuse_silent(&mut state, id, asked);
                return;
            }
            state.subscribed.insert(id);
            open.database.subscriptions.lock().ask(session, asked);
            // It replaces one that a commit may wait for.
            open.database.answered.notify_one();
            // U-7
            state.answering.insert(id).then_some(open.database)
        };
        if let Some(database) = unanswered {
            let (hub, session) = (Arc::clone(self), Arc::clone(session));
            // Made here, so that it ends also where the task never begins.
            let answering = Answering {
                session,
                database: database.id,
                over: false,
            };
            spawn_detached(async move { hub.answer_subscribe(&database, answering).await });
        }
    }

    /// What all commits to this store become known to this server before they are visible, so that it can warn of them.
    pub(crate) fn pushes(&self) -> bool {
        self.store.capabilities().exclusive
    }

    /// Answers the Subscribe of a session under the order of commits (S4), and the one that has replaced it meanwhile.
    async fn answer_subscribe(
        self: &Arc<Self>,
        database: &Arc<Database>,
        mut answering: Answering,
    ) {
        let session = Arc::clone(&answering.session);
        let _order = database.commits.lock().await;
        loop {
            let (asked, acknowledgements) = {
                let mut state = session.state.lock();
                let asked = database.subscriptions.lock().asked(&session);
                match asked {
                    Some(asked) => (asked, state.acknowledgements),
                    None => return answering.end(&mut state),
                }
            };
            // Before the head is read: an epoch that was given out only afterwards says nothing about that head.
            let granted = database.lease.lock().last_epoch();
            let news = self
                .bounded(self.store.changes(database.id, asked.known))
                .await;
            let mut state = session.state.lock();
            let mut subscriptions = database.subscriptions.lock();
            let too_old = state.acknowledgements != acknowledgements && self.tells_of_others();
            // ELSE2
            if subscriptions.asked(&session) != Some(asked) || too_old {
                continue;
            }
            answering.end(&mut state);
            if asked.strict && state.silent.is_some() {
                subscriptions.remove(session.id, asked.number);
                state.subscribed.remove(&database.id);
                return refuse_silent(&mut state, database.id, asked);
            }
            let news = news.ok().filter(|(head, _)| {
                !self.is_draining()
                    && (!asked.strict || subscriptions.is_settled(head.version, granted))
            });
            match news {
                Some((head, changes))
                    if subscriptions.accept(session.id, asked.number, head.version) =>
                {
                    database.note_page_size(head);
                    state.push(News::Subscribed(pb::Subscribed {
                        database_id: database.id.to_wire(),
                        subscription: asked.number,
                        head: Some(head.into()),
                        changes: Some(changes.into()),
                        accepted: true,
                    }));
                    self.follow(database);
                }
                _ => {
                    subscriptions.remove(session.id, asked.number);
                    state.subscribed.remove(&database.id);
                    state.push(ended(database.id, asked.number));
                }
            }
            return;
        }
    }

    /// The client has ended the subscription; as an answer to a warning it counts as one.
    pub(crate) fn unsubscribe(&self, session: &Session, id: DatabaseId, number: u64) {
        let mut state = session.state.lock();
        state.answers(id, number);
        let Some(open) = state.opens.get(&id) else {
            return;
        };
        let database = Arc::clone(&open.database);
        if database.subscriptions.lock().remove(session.id, number) {
            state.subscribed.remove(&id);
            database.answered.notify_one();
        }
    }

    /// The client has answered a Prepare.
    pub(crate) fn prepare_acknowledged(
        &self,
        session: &Session,
        id: DatabaseId,
        number: u64,
        version: Version,
    ) {
        let mut state = session.state.lock();
        state.answers(id, number);
        let Some(open) = state.opens.get(&id) else {
            return;
        };
        let database = Arc::clone(&open.database);
        let answered = database
            .subscriptions
            .lock()
            .answer(session.id, number, version);
        match answered {
            Answered::Ignored => return,
            Answered::Stays => {}
            Answered::Ended => {
                state.subscribed.remove(&id);
                state.push(ended(id, number));
            }
        }
        database.answered.notify_one();
    }

    // ----------------------------------------------------------------------------------------------------- commits

    /// Warns the strict subscribers of a commit that is about to be given to the store. The caller has the `commits` locks.
    ///
    /// `can_apply` where it has all of its leases: without them it can only repeat one that was applied.
    pub(crate) fn prepare<'a>(
        &'a self,
        databases: &'a [Arc<Database>],
        bases: &'a [(Version, Epoch)],
        committing: SessionId,
        can_apply: bool,
    ) -> Prepared<'a> {
        for (database, (base, _)) in databases.iter().zip(bases).filter(|_| can_apply) {
            for subscriber in database.subscribers() {
                if subscriber.session.id != committing {
                    self.warn(database, &subscriber, Some(base.next()), false);
                }
            }
        }
        Prepared {
            hub: self,
            databases,
            bases,
            concluded: !can_apply,
        }
    }

    /// Tells a strict subscriber not to begin without asking.
    fn warn(
        &self,
        database: &Database,
        subscriber: &Subscriber,
        version: Option<Version>,
        ends: bool,
    ) {
        let mut state = subscriber.session.state.lock();
        // Of a client that was not heard for so long it is over now.
        let until = state.last_heard + self.settings.lease_ttl;
        let mut subscriptions = database.subscriptions.lock();
        if let Some(version) = subscriptions.warn(subscriber, version, until, ends) {
            state.push(News::Prepare(pb::Prepare {
                database_id: database.id.to_wire(),
                subscription: subscriber.number,
                version: version.get(),
            }));
        }
    }

    /// Ends all strict subscriptions to the database: at once where the client waits for news, after its answer otherwise (U-3).
    pub(crate) fn wind_down(&self, database: &Database) {
        for subscriber in database.subscribers() {
            self.warn(database, &subscriber, None, true);
        }
        self.end_silent(database);
    }

    /// Ends the subscriptions that did not answer in time, or wait for nothing but their end.
    pub(crate) fn end_silent(&self, database: &Database) {
        let now = Instant::now();
        for subscriber in database.subscribers() {
            let mut state = subscriber.session.state.lock();
            let expired = database.subscriptions.lock().expire(&subscriber, now);
            if let Some(expired) = expired {
                if expired == Expired::Silent {
                    state.silent = Some((database.id, subscriber.number));
                }
                state.subscribed.remove(&database.id);
                state.push(ended(database.id, subscriber.number));
            }
        }
    }

    /// Tells everybody who has not heard of it of the version, and of those before it. The caller has the `commits` lock.
    ///
    /// `page_1` is that of this version, where it is at hand.
    pub(crate) async fn publish(
        &self,
        database: &Database,
        version: Version,
        page_1: Option<Bytes>,
    ) {
        let Some(since) = database.subscriptions.lock().behind(version) else {
            return;
        };
        let Ok((head, changes)) = self.bounded(self.store.changes(database.id, since)).await else {
            self.wind_down(database);
            self.end_bounded(database);
            return;
        };
        let changes = match changes {
            Changes::Pages(pages) if pages.len() > MAX_PUSHED_PAGES => Changes::All,
            changes => changes,
        };
        let page_1 = page_1
            .filter(|_| head.version == version)
            .and_then(|content| page_beside(head, &changes, version, content));
        for subscriber in database.subscribers() {
            let mut state = subscriber.session.state.lock();
            let mut subscriptions = database.subscriptions.lock();
            if subscriptions.publish(&subscriber, since, head.version) {
                state.push(News::Published(pb::Published {
                    database_id: database.id.to_wire(),
                    subscription: subscriber.number,
                    head: Some(head.into()),
                    changes: Some(changes.clone().into()),
                    page_1: page_1.clone().filter(|_| subscriber.wants_page_1),
                }));
            }
        }
    }

    /// Ends a subscription that is not strict, of which nothing more can be told for now.
    pub(crate) fn end_subscription(&self, session: &Session, database: &Database, number: u64) {
        let mut state = session.state.lock();
        if database.subscriptions.lock().remove(session.id, number) {
            state.subscribed.remove(&database.id);
            state.push(ended(database.id, number));
        }
    }

    /// Ends the subscriptions that are not strict: what they missed can't be told any more.
    fn end_bounded(&self, database: &Database) {
        for subscriber in database.subscribers() {
            let mut state = subscriber.session.state.lock();
            let mut subscriptions = database.subscriptions.lock();
            if !subscriber.strict && subscriptions.remove(subscriber.session.id, subscriber.number)
            {
                state.subscribed.remove(&database.id);
                state.push(ended(database.id, subscriber.number));
            }
        }
    }
}

/// A task on its way that answers the Subscribe of a session (U-7).
struct Answering {
    session: Arc<Session>,
    database: DatabaseId,
    over: bool,
}

impl Answering {
    /// In the critical section that finds nothing more to answer: what comes afterwards gets a task of its own.
    fn end(&mut self, state: &mut SessionState) {
        state.answering.remove(&self.database);
        self.over = true;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        // As by a panic of the store.
        if !self.over {
            self.session.state.lock().answering.remove(&self.database);
        }
    }
}

/// A commit that its subscribers were warned of, on its way to the store.
///
/// Dropped without a conclusion, as by a panic of the store, its outcome is not known.
#[must_use]
pub(crate) struct Prepared<'a> {
    hub: &'a Hub,
    databases: &'a [Arc<Database>],
    /// Base and epoch of each database.
    bases: &'a [(Version, Epoch)],
    concluded: bool,
}

impl Prepared<'_> {
    /// Waits until no strict subscriber but the one that commits can begin a transaction on the base without asking (S2).
    pub(crate) async fn answered(&self) {
        #[cfg(feature = "defects")]
        if crate::defects::is_off(crate::defects::Defect::PrepareAnswers) {
            return;
        }
        for database in self.databases {
            loop {
                let until = database.subscriptions.lock().awaited();
                let Some(until) = until else { break };
                // One that is answered in between has left a permit.
                tokio::select! {
                    () = tokio::time::sleep_until(until) => self.hub.end_silent(database),
                    () = database.answered.notified() => {}
                }
            }
        }
    }

    /// Tells the subscribers what became of the commit, before its client is told (S7).
    ///
    /// With page 1 of each database, where the commit has brought one.
    pub(crate) async fn conclude(
        mut self,
        outcome: &Result<CommitOutcome, StoreError>,
        pages_1: Vec<Option<Bytes>>,
    ) {
        match outcome {
            Ok(CommitOutcome::Committed(versions)) => {
                self.concluded = true;
                let made = self.databases.iter().zip(versions);
                for ((database, version), page_1) in made.zip(pages_1) {
                    self.hub.publish(database, *version, page_1).await;
                }
                // Whoever knew the version before, from its repetition.
                self.abort();
            }
            // Not known: the drop sees to it.
            Err(StoreError::Internal(_)) => {}
            Ok(CommitOutcome::Conflict { .. } | CommitOutcome::LeaseLost { .. })
            | Err(
                StoreError::DatabaseNotFound
                | StoreError::VersionGone { .. }
                | StoreError::TagNotFound(_)
                | StoreError::NameTaken(_)
                | StoreError::StagingUnknown(_)
                | StoreError::Limit(_)
                | StoreError::Full(_)
                | StoreError::Corrupt(_)
                | StoreError::Unavailable(_)
                | StoreError::Unsupported(_),
            ) => {
                self.concluded = true;
                self.abort();
            }
        }
    }

    /// Ends what is left of the warnings: the commit made no new version.
    fn abort(&self) {
        for (database, (base, _)) in self.databases.iter().zip(self.bases) {
            let version = base.next();
            for subscriber in database.subscribers() {
                let mut state = subscriber.session.state.lock();
                let mut subscriptions = database.subscriptions.lock();
                if subscriptions.abort(&subscriber, version) {
                    state.push(News::PrepareAborted(pb::PrepareAborted {
                        database_id: database.id.to_wire(),
                        subscription: subscriber.number,
                        version: version.get(),
                    }));
                }
            }
        }
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if self.concluded {
            return;
        }
        for (database, &(base, epoch)) in self.databases.iter().zip(self.bases) {
            database.subscriptions.lock().unsettle(base.next(), epoch);
            self.hub.wind_down(database);
        }
    }
}

/// Refuses a strict Subscribe, and asks the client to show that it answers (U-6).
fn refuse_silent(state: &mut SessionState, database: DatabaseId, asked: Asked) {
    state.silent = Some((database, asked.number));
    state.push(ended(database, asked.number));
    state.push(News::Prepare(pb::Prepare {
        database_id: database.to_wire(),
        subscription: asked.number,
        version: asked.known.next().get(),
    }));
}

/// The subscription is refused, or has ended.
fn ended(database: DatabaseId, number: u64) -> News {
    News::Subscribed(pb::Subscribed {
        database_id: database.to_wire(),
        subscription: number,
        accepted: false,
        ..Default::default()
    })
}
