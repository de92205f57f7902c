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
//!   when nobody can trust a lease of it any more: the trust of a client is counted from what was acknowledged. So a server that begins
//!   waits for nobody: what `begin_service` answers is for servers that know of no others.
//! * **PEER4** A server that was silent for so long ends all of its sessions before it acknowledges anything again, and tells its store anew
//!   what the next ones read.
//!
//! * **PEER5** A session that comes from another server keeps the leases that it has from there, under the epochs that it has: the store takes
//!   the claim and changes nothing else, in one step with the proof that the lease was granted to this session, that no later Hello of it was
//!   confirmed, that no epoch was made since and that nobody else has claimed the database. A server that grants makes the epoch in one step with the proof that the claim
//!   is its own. What an earlier holder may still trust (a barrier) goes with the grant, and is waited for again.
//! * **PEER6**, **PEER7** What a server waits for when it asks for such a lease and never hears of it, and how a session goes to and fro: `arrival.rs`.
//!
//! Fences and epochs are what makes a commit right (C5, C12), with claims or without. Claims make what a holder reads without asking
//! right (P4), and let a lease move between the sessions of different servers as between those of one.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{DatabaseId, Epoch, SessionId, Version};

use crate::hub::{End, Hub, spawn_detached};
use crate::session::Session;
use crate::store::StoreError;
use tokio::time::Instant;

/// How often a lease that is wanted elsewhere is looked at whether it is idle.
const LOOK: Duration = Duration::from_millis(20);

/// How often the newest version is looked at where a store does not tell of it.
const MOVED_ON: Duration = Duration::from_secs(1);

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

/// What became of an epoch for a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The new epoch.
    Advanced(Epoch),
    /// Another server has the claim now; nothing was changed.
    Elsewhere,
    /// Grants are not remembered here: [`crate::store::PageStore::fence`] makes the epoch.
    Plain,
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

    /// Whether grants are remembered, so that sessions can take their leases along (PEER5). The same for the life of the store.
    fn moves_leases(&self) -> bool {
        false
    }

    /// Advances the epoch of a database that was claimed, for a grant to this session, and remembers the grant (PEER5). `hello` is the number
    /// of its newest Hello here (PEER7), `guard` for how long an earlier holder may still trust the lease.
    async fn fence(
        &self,
        _database: DatabaseId,
        _session: SessionId,
        _hello: u64,
        _guard: Duration,
    ) -> Result<Fence, StoreError> {
        Ok(Fence::Plain)
    }

    /// Claims a database with the lease that a session has from this or another server under this epoch, for a Hello with this number (PEER5, PEER7).
    /// For how long from now on an earlier holder may still trust the lease. `None`: it is not that of the session any more, or a Hello
    /// with this number or a larger one was confirmed; nothing was changed, also by no earlier round of this call (PEER6). After an error it
    /// may have been.
    async fn take_over(
        &self,
        _database: DatabaseId,
        _session: SessionId,
        _hello: u64,
        _epoch: Epoch,
    ) -> Result<Option<Duration>, StoreError> {
        Ok(None)
    }

    /// Whether another server wants a claim of this one.
    fn is_wanted(&self, database: DatabaseId) -> bool;

    /// Hands a claim over to a server that wants it, if there is one. Only while the lease is idle (PEER2), and never while
    /// the database is being claimed.
    async fn give_back(&self, database: DatabaseId) -> Result<(), StoreError>;

    /// How many other servers have sessions that have a database open, as far as the store knows: of one that died it may be told for a while.
    async fn open_elsewhere(&self, _database: DatabaseId) -> Result<usize, StoreError> {
        Ok(0)
    }

    /// Answers when the newest version of the database may be above this one, and after some seconds anyway.
    async fn moved_on(&self, _database: DatabaseId, _known: Version) -> Result<(), StoreError> {
        tokio::time::sleep(MOVED_ON).await;
        Ok(())
    }

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

    /// An epoch for a grant to the session; `None` where the lease may not be granted here (PEER1). The caller has the `turn` of the database.
    pub(crate) async fn fence(
        &self,
        database: &crate::database::Database,
        session: &Session,
    ) -> Result<Option<Epoch>, StoreError> {
        if !self.claim(database).await? {
            return Ok(None);
        }
        if let Some(peers) = self.store.peers() {
            let now = Instant::now();
            let trusted = database.lease.lock().barrier(now);
            let trusted = trusted.map_or(self.visible_from, |until| until.max(self.visible_from));
            let guard = trusted.saturating_duration_since(now);
            let hello = session.state.lock().hello;
            match peers.fence(database.id, session.id, hello, guard).await? {
                Fence::Advanced(epoch) => return Ok(Some(epoch)),
                Fence::Elsewhere => return Ok(None),
                Fence::Plain => {}
            }
        }
        self.store.fence(database.id).await.map(Some)
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
        // Also one that nobody has open: whoever opens it meanwhile finds the same turn.
        let database = self.known_or_new(id);
        let given = {
            // No grant begins meanwhile.
            let Ok(_turn) = database.turn.try_lock() else {
                return false;
            };
            if !database.lease.lock().is_unheld(Instant::now()) {
                return false;
            }
            peers.give_back(id).await
        };
        if let Err(error) = &given {
            tracing::debug!(%error, "a lease that another server wants stays here for now");
        }
        given.is_ok()
    }
}
