//! Several page servers on one store: which of them may give the lease of a database to its sessions.
//!
//! The lease table of a database (`lease.rs`) knows the sessions of its own server. Where a store says that there are others
//! ([`PageStore::peers`](crate::store::PageStore::peers)) a server *claims* a database before it grants its lease, keeps the claim for as long as nobody else wants it, and hands it
//! over when no session of its own holds, or may still trust, the lease.
//!
//! ```text
//!                claim: Claimed                           Wanted                    lease idle: give_back
//!   elsewhere ------------------> claimed ----------------------------> wanted back --------------------> elsewhere
//!       |  claim: Elsewhere          ^                                  (holder is recalled)
//!       +--- Granted: claim again ---+
//! ```
//! * **PEER1** A lease is granted only while the database is claimed, under an epoch of a fence made since.
//! * **PEER2** A claim is given back only while the lease is idle: no holder and no barrier. So whoever claims next owes nobody a wait.
//! * **PEER3** Heartbeats are acknowledged only while [`Peers::may_acknowledge`]. A claim of a server that is silent passes to another only
//!   when nobody can trust a lease of it any more: the trust of a client is counted from what was acknowledged.
//! * **PEER4** A server that was silent for so long ends all of its sessions before it acknowledges anything again, and tells its store anew
//!   what the next ones read.
//!
//! Fences and epochs are what makes a commit right (C5, C12), with claims or without. Claims make what a holder reads without asking
//! right (P4), and let a lease move between the sessions of different servers as between those of one.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::DatabaseId;

use crate::hub::{End, Hub, spawn_detached};
use crate::store::StoreError;
use tokio::time::Instant;

/// How often a lease that is wanted elsewhere is looked at whether it is idle.
const LOOK: Duration = Duration::from_millis(20);

/// How often is looked whether this server is still there.
const IDLE: Duration = Duration::from_secs(1);

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// This server may grant the lease until it gives the claim back.
    Claimed,
    /// Another server has it and was told of the wish. [`PeerNews::Granted`] follows; claiming again does no harm and finds out
    /// when the other one is dead.
    Elsewhere,
}

/// What other servers want or have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerNews {
    /// Another server wants a claim of this one.
    Wanted(DatabaseId),
    /// Another server has handed a claim over.
    Granted(DatabaseId),
    /// This server was silent for so long that others may have taken its claims (PEER4). Nothing may be acknowledged before
    /// [`Peers::resume`].
    Lost,
}

/// The other page servers on the same store. Durations are counted by clocks that count suspended time.
#[async_trait]
pub trait Peers: Send + Sync + std::fmt::Debug + 'static {
    /// Claims a database for this server. Answers soon, also where another one has it; may be repeated.
    async fn claim(&self, database: DatabaseId) -> Result<Claim, StoreError>;

    /// Whether another server wants a claim of this one.
    fn is_wanted(&self, database: DatabaseId) -> bool;

    /// Hands a claim over to a server that wants it, if there is one. Only while the lease is idle (PEER2).
    async fn give_back(&self, database: DatabaseId) -> Result<(), StoreError>;

    /// The next news. Ends with the store; only one caller waits at a time. What is not heard of is lost, and nothing but time with it.
    async fn news(&self) -> PeerNews;

    /// Whether others know that this server lives, so that heartbeats of its sessions may be acknowledged (PEER3).
    fn may_acknowledge(&self) -> bool;

    /// All sessions have ended after [`PeerNews::Lost`].
    fn resume(&self);
}

impl Hub {
    /// Listens to the other servers, where there are any, for as long as the hub is there.
    pub(crate) fn listen_to_peers(self: &Arc<Self>) {
        if let Some(peers) = self.store.peers() {
            let hub = Arc::downgrade(self);
            spawn_detached(async move { listen(&hub, &*peers).await });
        }
    }

    /// Whether the lease of a database may be granted here now (PEER1). The caller has the `turn` of the database.
    pub(crate) async fn claim(
        &self,
        database: &crate::database::Database,
    ) -> Result<bool, StoreError> {
        let Some(peers) = self.store.peers() else {
            return Ok(true);
        };
        // Sessions of other servers that came before those of this one.
        if peers.is_wanted(database.id) && database.lease.lock().is_unheld(Instant::now()) {
            peers.give_back(database.id).await?;
        }
        Ok(peers.claim(database.id).await? == Claim::Claimed)
    }

    /// Whether heartbeats may be acknowledged (PEER3).
    pub(crate) fn may_acknowledge(&self) -> bool {
        self.store
            .peers()
            .is_none_or(|peers| peers.may_acknowledge())
    }
}

async fn listen(hub: &Weak<Hub>, peers: &dyn Peers) {
    let mut wanted = HashSet::new();
    loop {
        // Not for ever: the hub may be gone, and the store wants to go with it.
        let patience = match wanted.is_empty() {
            true => IDLE,
            false => LOOK,
        };
        let news = tokio::time::timeout(patience, peers.news()).await.ok();
        let Some(hub) = hub.upgrade() else { return };
        match news {
            Some(PeerNews::Wanted(id)) => {
                wanted.insert(id);
                if let Some(database) = hub.known(id) {
                    hub.ask_back(&database);
                }
            }
            Some(PeerNews::Granted(id)) => {
                if let Some(database) = hub.known(id) {
                    drop(hub.advance(&database));
                }
            }
            Some(PeerNews::Lost) => {
                tracing::warn!(
                    "other servers may have taken the leases of this one: its sessions end"
                );
                hub.losses.fetch_add(1, Ordering::Release);
                for session in hub.all_sessions() {
                    hub.end_session(&session, End::Dead);
                }
                peers.resume();
            }
            None => {}
        }
        for id in wanted.clone() {
            if !peers.is_wanted(id) || hub.yielded(peers, id).await {
                wanted.remove(&id);
            }
        }
    }
}

impl Hub {
    /// Hands a claim over if the lease is idle here; whether that is done.
    async fn yielded(&self, peers: &dyn Peers, id: DatabaseId) -> bool {
        let given = match self.known(id) {
            None => peers.give_back(id).await,
            Some(database) => {
                // No grant begins meanwhile.
                let Ok(_turn) = database.turn.try_lock() else {
                    return false;
                };
                if !database.lease.lock().is_unheld(Instant::now()) {
                    return false;
                }
                peers.give_back(id).await
            }
        };
        if let Err(error) = &given {
            tracing::debug!(%error, "a lease that another server wants stays here for now");
        }
        given.is_ok()
    }
}
