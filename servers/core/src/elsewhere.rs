//! News of versions that other page servers make: bounded subscriptions on a store that several servers stand on.
//!
//! A server hears of a foreign commit only afterwards ([`Peers::moved_on`]), so strict subscriptions are not offered there: nobody could be
//! warned (S2 of `docs/versions.md`). A bounded one promises less: what the client knows is what was the newest when it sent the last
//! heartbeat that was acknowledged (S7).
//!
//! * **ELSE1** Before a heartbeat of a session with subscriptions is acknowledged, the store is asked for the heads of those databases, after
//!   the heartbeat has come, and what is new stands on the stream before the acknowledgement. Without an answer of the store there is none.
//! * **ELSE2** A Subscribe is answered with a head that was read since the last acknowledgement on the stream: otherwise the client would
//!   take a later heartbeat for proof of an older head.
//! * **ELSE3** Beside that, one task for each database with subscribers waits for the store to tell that it has moved on, and publishes at
//!   once. It decides nothing: where it is late, or lost, ELSE1 holds all the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::try_join_all;
use pagewire_proto::{Version, pb};
use tonic::Status;

use crate::database::Database;
use crate::hub::{Hub, spawn_detached};
use crate::session::Session;
use crate::status;
use crate::store::StoreError;

/// How long the store is left alone when it did not tell.
const PAUSE: Duration = Duration::from_secs(1);
/// How often a subscriber that came meanwhile is told in one go.
const ROUNDS: usize = 4;

/// The heads of a session's databases are on their way.
struct Looking(Arc<Session>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.state.lock().looking = false;
    }
}

impl Hub {
    /// Whether others make versions that this server can tell of afterwards.
    pub(crate) fn tells_of_others(&self) -> bool {
        !self.pushes() && self.store.peers().is_some()
    }

    /// Acknowledges a heartbeat, if others know that this server lives (PEER3), when its news are on the stream (ELSE1).
    pub(crate) fn acknowledge(self: &Arc<Self>, session: &Arc<Session>, sequence: u64) {
        let subscribed: Vec<_> = match self.tells_of_others() {
            false => Vec::new(),
            true => {
                let mut state = session.state.lock();
                let subscribed = state.subscribed.iter();
                let opens = subscribed.filter_map(|id| state.opens.get(id));
                let subscribed: Vec<_> = opens.map(|open| Arc::clone(&open.database)).collect();
                if !subscribed.is_empty() && std::mem::replace(&mut state.looking, true) {
                    // The store is slow: a later heartbeat is acknowledged.
                    return;
                }
                subscribed
            }
        };
        if subscribed.is_empty() {
            self.push_acknowledgement(session, sequence);
            return;
        }
        let (hub, looking) = (Arc::clone(self), Looking(Arc::clone(session)));
        spawn_detached(async move {
            let looks = subscribed.iter().map(|database| hub.catch_up(database));
            match try_join_all(looks).await {
                Ok(_) => hub.push_acknowledgement(&looking.0, sequence),
                Err(error) => {
                    let error = error.message();
                    tracing::debug!(error, "a heartbeat is not acknowledged");
                }
            }
        });
    }

    fn push_acknowledgement(&self, session: &Session, sequence: u64) {
        if self.may_acknowledge() {
            let mut state = session.state.lock();
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
