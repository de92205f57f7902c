//! News of versions that other page servers make: bounded subscriptions on a store that several servers stand on.
//!
//! A server hears of a foreign commit only afterwards ([`Peers::moved_on`]), so strict subscriptions are not offered there: nobody could be
//! warned (S2 of `docs/versions.md`). A bounded one promises less: what the client knows is what was the newest when it sent the last
//! heartbeat that was acknowledged (S7).
//!
//! * **ELSE1** Before a heartbeat of a session with subscriptions is acknowledged, the store is asked for the heads of those databases, after
//!   the heartbeat has come, and what is new stands on the stream before the acknowledgement. Where the store does not answer soon, or has no
//!   such database any more, the end of that subscription stands there instead: no database keeps the acknowledgement from the others, or
//!   from the leases of the session. A subscription that was accepted meanwhile is looked at as well; one that was not is ELSE2's.
//! * **ELSE2** A Subscribe is answered with a head that was read since the last acknowledgement on the stream: otherwise the client would
//!   take a later heartbeat for proof of an older head.
//! * **ELSE3** Beside that, one task for each database with subscribers waits for the store to tell that it has moved on, and publishes at
//!   once. It decides nothing: where it is late, or lost, ELSE1 holds all the same.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use pagewire_proto::{DatabaseId, Version, pb};
use tonic::Status;

use crate::database::Database;
use crate::hub::{Hub, spawn_detached};
use crate::session::{Session, SessionState};
use crate::status;
use crate::store::StoreError;

/// How long the store is left alone when it did not tell.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a subscriber, or a subscription, that came meanwhile is looked at in one go.
const ROUNDS: usize = 4;

/// The heads of a session's databases are on their way.
struct Looking(Arc<Session>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.state.lock().looking = false;
    }
}

/// Subscriptions of a session that were accepted, by their numbers, beside those that were looked at.
fn accepted_beside(
    state: &SessionState,
    session: &Session,
    looked: &HashSet<(DatabaseId, u64)>,
) -> Vec<(Arc<Database>, u64)> {
    let subscribed = state.subscribed.iter();
    let opens = subscribed.filter_map(|id| state.opens.get(id));
    let accepted = opens.filter_map(|open| {
        let number = open.database.subscriptions.lock().accepted(session.id)?;
        Some((Arc::clone(&open.database), number))
    });
    accepted
        .filter(|(database, number)| !looked.contains(&(database.id, *number)))
        .collect()
}

impl Hub {
    /// Whether others make versions that this server can tell of afterwards.
    pub(crate) fn tells_of_others(&self) -> bool {
        !self.pushes() && self.store.peers().is_some()
    }

    /// Acknowledges a heartbeat, if others know that this server lives (PEER3), when its news are on the stream (ELSE1).
    pub(crate) fn acknowledge(self: &Arc<Self>, session: &Arc<Session>, sequence: u64) {
        if !self.tells_of_others() {
            self.push_acknowledgement(&mut session.state.lock(), sequence);
            return;
        }
        let mut looked = HashSet::new();
        let first = {
            let mut state = session.state.lock();
            let accepted = accepted_beside(&state, session, &looked);
            if accepted.is_empty() {
                self.push_acknowledgement(&mut state, sequence);
                return;
            }
            if std::mem::replace(&mut state.looking, true) {
                // The store is slow: a later heartbeat is acknowledged.
                return;
            }
            accepted
        };
        let (hub, looking) = (Arc::clone(self), Looking(Arc::clone(session)));
        spawn_detached(async move {
            let session = &looking.0;
            let mut accepted = first;
            for _ in 0..ROUNDS {
                let looks = accepted
                    .iter()
                    .map(|(database, number)| hub.catch_up_or_end(session, database, *number));
                join_all(looks).await;
                looked.extend(
                    accepted
                        .iter()
                        .map(|(database, number)| (database.id, *number)),
                );
                let mut state = session.state.lock();
                accepted = accepted_beside(&state, session, &looked);
                if accepted.is_empty() {
                    // In the critical section that finds no other: the next one is accepted behind the acknowledgement.
                    hub.push_acknowledgement(&mut state, sequence);
                    return;
                }
            }
            tracing::debug!("a heartbeat is not acknowledged: its session subscribes all the time");
        });
    }

    /// Tells the session what is new in a database, or that its subscription is over.
    async fn catch_up_or_end(&self, session: &Arc<Session>, database: &Database, number: u64) {
        // Far less than what a client waits for an acknowledgement.
        let patience = self.settings.lease_ttl / 4;
        let error = match tokio::time::timeout(patience, self.catch_up(database)).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.message().to_owned(),
            Err(_) => "the store takes long".to_owned(),
        };
        tracing::debug!(error, "a subscription ends: what is new is not known");
        self.end_subscription(session, database, number);
    }

    fn push_acknowledgement(&self, state: &mut SessionState, sequence: u64) {
        if self.may_acknowledge() {
            state.acknowledgements += 1;
            state.push(pb::session_response::Message::HeartbeatAck(
                pb::HeartbeatAck { sequence },
            ));
        }
    }

    /// Tells the subscribers of a database what is new; the newest version.
    async fn catch_up(&self, database: &Database) -> Result<Version, Status> {
        let head = self.bounded(self.store.head(database.id)).await?.version;
        for _ in 0..ROUNDS {
            if database.subscriptions.lock().behind(head).is_none() {
                return Ok(head);
            }
            // Not under the order of commits, which may wait for a barrier: who knows less than what is told is told once more.
            self.publish(database, head, None).await;
        }
        Err(status::of_store(StoreError::Unavailable(
            "subscribers come and go".to_owned(),
        )))
    }

    /// Begins to tell the subscribers of a database what others do (ELSE3), unless somebody does.
    pub(crate) fn follow(self: &Arc<Self>, database: &Arc<Database>) {
        let Some(peers) = self.store.peers().filter(|_| !self.pushes()) else {
            return;
        };
        if database.followed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (hub, database) = (Arc::downgrade(self), Arc::downgrade(database));
        spawn_detached(async move {
            let mut known = Version::ZERO;
            loop {
                let id = {
                    let (Some(hub), Some(database)) = (hub.upgrade(), database.upgrade()) else {
                        return;
                    };
                    if !database.has_subscribers() {
                        database.followed.store(false, Ordering::Release);
                        // One may have come in between, and found it followed.
                        if !database.has_subscribers()
                            || database.followed.swap(true, Ordering::AcqRel)
                        {
                            return;
                        }
                    }
                    match hub.catch_up(&database).await {
                        Ok(head) => known = known.max(head),
                        Err(error) => {
                            let error = error.message();
                            tracing::debug!(error, "news of other servers have to wait");
                        }
                    }
                    database.id
                };
                if let Err(error) = peers.moved_on(id, known).await {
                    tracing::debug!(%error, "news of other servers have to wait");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
    }
}
