//! The other page servers of an installation: the list of those that serve, and which of them has the claim of a database.
//!
//! # The list
//! The installation names the servers that serve, each under an id that it has taken for this time in the list only.
//!
//! ```text
//!              join                        another asks: a wish, or whether it lives
//!   unlisted ------> listed, heard ---------------------------------------------------> listed, asked
//!     ^  ^              |   ^                                                              |    |
//!     |  |   leave: end |   |   answer: one beat more, and the questions are taken away    |    |  no beat for `silence` by
//!     |  +--------------+   +--------------------------------------------------------------+    |  the clock of one who watched
//!     |                                                                                         v
//!     +--- resume: its sessions have ended --- lost <------- it finds that it is not there --- gone
//! ```
//! * **S1** A server that serves looks at its entry all the time. A look that began at p and finds nothing asked, and an answer that was sent at p
//!   and taken, say that it is *heard* at p. It acknowledges heartbeats until p + TTL / 2 (PEER3), so that a client trusts its
//!   leases until p + 3/2 TTL at most. Reading is not enough for it where somebody asks.
//! * **S2** An entry is taken out only where somebody has asked, and who watches has seen no answer since for 3/2 TTL and a [margin](silence);
//!   in one swap with the look that sees it so. A look that finds nothing asked began before the question, so by then nobody trusts a lease of it.
//! * **S3** An id that has gone from the list never comes back: who finds that it is not there takes another one, after all of its sessions
//!   have ended (PEER4). So what is found dead stays dead, however old that finding is when it is used.
//! * **S4** Time is each server's own, of a clock that counts suspended time. No time of another server is compared with anything.
//!
//! # The claim of a database
//! Its root names the server that has claimed it. The claim counts for as long as that id is in the list.
//!
//! ```text
//!   nobody, or gone --- claim: swap the root ---> ours --- give back, to the first who wished for it: swap the root ---> another's
//!                                                   ^                                                                      |
//!                                                   +--- the other gives it back, or is gone and we claim <--- wish -------+
//! ```
//! * **S5** Only the server that has a claim, while it is in the list, changes it; anybody may when it is not. So a claim is known here
//!   without asking from the swap that made it until it is given back, or this server finds that it is gone from the list. One at a time
//!   claims or gives back a database here; of a swap that was given up and happens late, the next fence finds out (S6).
//! * **S6** A fence looks at the claim in the root that it swaps, and is refused where another id has it. A server that slept while its claim
//!   went to another one gets no epoch, so that none of its sessions commits beside the holders of the other one.
//! * **S7** The root is read before the list is asked whether its claimant is there: a server is in the list before it claims.
//! * **S8** Nothing depends on a wish that gets lost: whoever wants a database asks again while it is wanted, and looks at its root meanwhile.
//!
//! Absent on purpose: calls of a commit, or of a lease that stays here. A server alone reads one unchanged key in each fifth of
//! a TTL, and writes nothing; the first lease of a database costs a look at its root and a swap.

mod claims;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::{DatabaseId, Incarnation};
use pagewire_server::peers::PeerNews;
use pagewire_server::store::StoreError;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::cells::{self, Installation, Service, Wish};
use crate::kv::{Tag, Unchanged, Value};
use crate::roots::harmless;
use crate::{Inner, keys, no_randomness};

/// Looks in a lease TTL, so that one that is late does no harm.
const LOOKS: u32 = 5;
/// The same while claims change hands, within bounds.
const EAGER_LOOKS: u32 = 50;
const EAGER: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// How long it stays so: who has given a claim away often wants it back soon.
const EAGER_FOR: Duration = Duration::from_secs(2);
/// A server that has said nothing for so long is asked whether it lives.
const ASK_AFTER: Duration = Duration::from_secs(60);

/// How long an entry that is asked has to be without an answer.
fn silence(lease_ttl_ms: u64) -> Duration {
    let lease_ttl = Duration::from_millis(lease_ttl_ms);
    // The margin is for clocks of different speed.
    lease_ttl + lease_ttl / 2 + lease_ttl / 4
}

/// What this server knows of the others.
#[derive(Debug)]
pub(crate) struct Peering {
    state: Mutex<State>,
    /// There is a reason to look sooner.
    wake: Arc<Notify>,
    /// There is a reason to try for wishes sooner.
    wished: Arc<Notify>,
    /// One at a time enters the list or leaves it.
    entering: tokio::sync::Mutex<()>,
    send: UnboundedSender<PeerNews>,
    receive: tokio::sync::Mutex<UnboundedReceiver<PeerNews>>,
}

impl Default for Peering {
    fn default() -> Self {
        let (send, receive) = unbounded_channel();
        Self {
            state: Mutex::default(),
            wake: Arc::default(),
            wished: Arc::default(),
            entering: tokio::sync::Mutex::default(),
            send,
            receive: tokio::sync::Mutex::new(receive),
        }
    }
}

/// Where this server stands. See the state machine.
#[derive(Debug, Default)]
enum Standing {
    /// It does not serve.
    #[default]
    Away,
    /// It serves, and joins with its next look.
    Unlisted,
    /// Since when it is known to the others that it lives (S1).
    Listed { id: Bytes, heard: Duration },
    /// Its sessions have to end first.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    standing: Standing,
    lease_ttl: Duration,
    /// The installation as it was seen last.
    seen: Option<(Tag, Arc<Installation>)>,
    /// Others that were in the list then.
    others: HashMap<Bytes, Watched>,
    /// Claims that this server has (S5).
    own: HashSet<DatabaseId>,
    /// Who wishes for a database, in their order.
    wanted: HashMap<DatabaseId, Vec<Bytes>>,
    /// Claims of others that somebody here wants.
    wishes: HashMap<DatabaseId, Wished>,
    eager_until: Duration,
}

#[derive(Debug)]
struct Watched {
    beat: u64,
    /// Since when it is the last one.
    since: Duration,
    /// Since when it is that and somebody has asked.
    asked: Option<Duration>,
}

#[derive(Debug)]
struct Wished {
    of: Bytes,
    /// When that server was told.
    told: Duration,
    /// When somebody wanted it last.
    wanted: Duration,
}

impl State {
    fn id(&self) -> Option<&Bytes> {
        match &self.standing {
            Standing::Listed { id, .. } => Some(id),
            Standing::Away | Standing::Unlisted | Standing::Lost => None,
        }
    }

    fn hear(&mut self, own: &Bytes, at: Duration) {
        if let Standing::Listed { id, heard } = &mut self.standing
            && id == own
        {
            *heard = at.max(*heard);
        }
    }

    /// Everything that came from being in the list.
    fn stand(&mut self, standing: Standing) {
        self.standing = standing;
        self.seen = None;
        self.own.clear();
        self.wanted.clear();
        self.wishes.clear();
    }

    /// The others as they are in the list at this moment.
    fn watch(&mut self, cell: &Installation, own: &[u8], now: Duration) {
        let mut before = std::mem::take(&mut self.others);
        for service in cell.services.iter().filter(|service| service.id != own) {
            let known = before.remove(&service.id);
            let known = known.filter(|known| known.beat == service.beat);
            let mut watched = known.unwrap_or(Watched {
                beat: service.beat,
                since: now,
                asked: None,
            });
            watched.asked = service.is_asked().then(|| watched.asked.unwrap_or(now));
            self.others.insert(service.id.clone(), watched);
        }
    }

    /// S2.
    fn is_dead(&self, service: &Service, now: Duration) -> bool {
        let watched = self.others.get(&service.id);
        let watched = watched.filter(|watched| watched.beat == service.beat);
        let asked = watched.and_then(|watched| watched.asked);
        service.is_asked()
            && asked.is_some_and(|asked| now >= asked + silence(service.lease_ttl_ms))
    }

    /// Whether to ask a server that nobody wishes anything of.
    fn is_quiet(&self, service: &Service, now: Duration) -> bool {
        let watched = self.others.get(&service.id);
        let watched = watched.filter(|watched| watched.beat == service.beat);
        !service.is_asked() && watched.is_some_and(|watched| now >= watched.since + ASK_AFTER)
    }
}

impl Service {
    fn is_asked(&self) -> bool {
        self.asked || !self.wishes.is_empty()
    }
}

fn entry_of<'a>(cell: &'a mut Installation, id: &[u8]) -> Option<&'a mut Service> {
    cell.services.iter_mut().find(|service| service.id == id)
}

impl Peering {
    /// Under which id this server is in the list, as far as it knows.
    pub(crate) fn id(&self) -> Option<Bytes> {
        self.state.lock().id().cloned()
    }

    /// The claim of a database that was removed, or is not ours any more.
    pub(crate) fn forget(&self, database: DatabaseId) {
        let mut state = self.state.lock();
        state.own.remove(&database);
        state.wishes.remove(&database);
    }

    /// When to look next.
    fn pause(&self, now: Duration) -> Duration {
        let state = self.state.lock();
        let eager = !state.wishes.is_empty() || !state.wanted.is_empty() || now < state.eager_until;
        match (&state.standing, eager) {
            (Standing::Away | Standing::Lost, _) => Duration::from_secs(3600),
            (_, true) => (state.lease_ttl / EAGER_LOOKS).clamp(EAGER.0, EAGER.1),
            (_, false) => state.lease_ttl / LOOKS,
        }
    }

    fn tell(&self, news: PeerNews) {
        // Without a receiver nobody serves.
        let _ = self.send.send(news);
    }
}

impl Inner {
    fn since_boot(&self) -> Duration {
        (self.options.since_boot)()
    }

    /// Looks at the list for as long as the store is there.
    pub(crate) fn begin_looking(&self) {
        let this = self.this.clone();
        let wake = Arc::clone(&self.peering.wake);
        let mut pause = Duration::ZERO;
        self.behind(async move {
            loop {
                let _ = tokio::time::timeout(pause, wake.notified()).await;
                let Some(inner) = this.upgrade() else { return };
                if let Err(error) = inner.look().await {
                    tracing::debug!(%error, "the list of servers was not seen");
                }
                pause = inner.peering.pause(inner.since_boot());
            }
        });
    }

    /// Tries for the claims that somebody here wants. Beside the looks: a database that is out of reach keeps no heartbeat waiting (S1).
    pub(crate) fn begin_wishing(&self) {
        let this = self.this.clone();
        let wished = Arc::clone(&self.peering.wished);
        let mut pause = Duration::ZERO;
        self.behind(async move {
            loop {
                let _ = tokio::time::timeout(pause, wished.notified()).await;
                let Some(inner) = this.upgrade() else { return };
                inner.try_for_wishes().await;
                pause = inner.peering.pause(inner.since_boot());
            }
        });
    }

    // ------------------------------------------------------------------------------------------------------ the list

    /// Begins to serve. For how long leases of the others may be trusted.
    pub(crate) async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        let _entering = self.peering.entering.lock().await;
        self.join(lease_ttl).await
    }

    /// Enters the list under a new id. The caller has `entering`.
    async fn join(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        let id = Incarnation::random().map_err(no_randomness)?.to_wire();
        let ttl_ms = u64::try_from(lease_ttl.as_millis()).unwrap_or(u64::MAX);
        let before = self.peering.id();
        let (mut wait_ms, mut heard) = (0, Duration::ZERO);
        self.update_installation(|cell| {
            cell.services
                .retain(|service| service.id != id && Some(&service.id) != before.as_ref());
            let others = cell.services.iter();
            wait_ms = others.map(|s| s.lease_ttl_ms).max().unwrap_or(0);
            // The sooner it is known which of them are dead, the sooner their claims are free.
            cell.services
                .iter_mut()
                .for_each(|other| other.asked = true);
            cell.services.push(Service {
                id: id.clone(),
                lease_ttl_ms: ttl_ms,
                ..Service::default()
            });
            heard = self.since_boot();
            true
        })
        .await?;
        {
            let mut state = self.peering.state.lock();
            state.stand(Standing::Listed { id, heard });
            state.lease_ttl = lease_ttl;
        }
        self.peering.wake.notify_one();
        Ok(Duration::from_millis(wait_ms))
    }

    /// Comes back after all sessions have ended.
    async fn join_again(&self) -> Result<(), StoreError> {
        let _entering = self.peering.entering.lock().await;
        let lease_ttl = {
            let state = self.peering.state.lock();
            match state.standing {
                Standing::Unlisted => state.lease_ttl,
                Standing::Away | Standing::Listed { .. } | Standing::Lost => return Ok(()),
            }
        };
        self.join(lease_ttl).await.map(|_| ())
    }

    /// Leaves the list, and takes the dead along.
    pub(crate) async fn end_service(&self) -> Result<(), StoreError> {
        let _entering = self.peering.entering.lock().await;
        // From here on nothing is granted or acknowledged.
        let own = {
            let mut state = self.peering.state.lock();
            let own = state.id().cloned().unwrap_or_default();
            state.stand(Standing::Away);
            own
        };
        let left = self.update_installation(|cell| {
            let (state, now) = (self.peering.state.lock(), self.since_boot());
            cell.services
                .retain(|service| service.id != own && !state.is_dead(service, now));
            true
        });
        left.await.map(|_| ())
    }

    /// Looks at the list and does what is to be done about it.
    async fn look(&self) -> Result<(), StoreError> {
        let (own, seen) = {
            let state = self.peering.state.lock();
            match &state.standing {
                Standing::Away | Standing::Lost => return Ok(()),
                Standing::Unlisted => (None, None),
                Standing::Listed { id, .. } => (Some(id.clone()), state.seen.clone()),
            }
        };
        let Some(own) = own else {
            return self.join_again().await;
        };
        let began = self.since_boot();
        let cell = self.seen_installation(seen).await?;
        let now = self.since_boot();
        let entry = cell.services.iter().find(|service| service.id == own);
        let (dead, quiet) = {
            let mut state = self.peering.state.lock();
            state.watch(&cell, &own, now);
            let others = || cell.services.iter().filter(|service| service.id != own);
            let dead = others().any(|service| state.is_dead(service, now));
            (dead, others().any(|service| state.is_quiet(service, now)))
        };
        match entry {
            None => self.has_gone(&own),
            Some(entry) if entry.is_asked() => self.answer(&own).await?,
            Some(_) => self.peering.state.lock().hear(&own, began),
        }
        if dead || quiet {
            self.update_installation(|cell| {
                let (state, now) = (self.peering.state.lock(), self.since_boot());
                let before = cell.services.len();
                cell.services
                    .retain(|service| service.id == own || !state.is_dead(service, now));
                let mut changed = cell.services.len() < before;
                for service in cell.services.iter_mut().filter(|s| s.id != own) {
                    if state.is_quiet(service, now) {
                        service.asked = true;
                        changed = true;
                    }
                }
                changed
            })
            .await?;
        }
        Ok(())
    }

    /// The installation as it is.
    async fn seen_installation(
        &self,
        seen: Option<(Tag, Arc<Installation>)>,
    ) -> Result<Arc<Installation>, StoreError> {
        let key = keys::INSTALLATION;
        let value = match &seen {
            None => Ok(self.kv.get(key).await.map_err(harmless)?),
            Some((tag, _)) => self.kv.get_if_changed(key, tag).await.map_err(harmless)?,
        };
        let value = match (value, seen) {
            (Err(Unchanged), Some((_, cell))) => return Ok(cell),
            (Err(Unchanged), None) => None,
            (Ok(value), _) => value,
        };
        let Value { content, tag } = value.ok_or_else(installation_is_gone)?;
        let cell: Arc<Installation> = Arc::new(cells::decode(key, &content)?);
        self.peering.state.lock().seen = Some((tag, Arc::clone(&cell)));
        Ok(cell)
    }

    /// Says that this server lives, and takes in what was wished for (S1).
    async fn answer(&self, own: &Bytes) -> Result<(), StoreError> {
        let (mut wishes, mut is_there, mut at) = (Vec::new(), false, Duration::ZERO);
        let answered = self.update_installation(|cell| {
            let entry = entry_of(cell, own);
            is_there = entry.is_some();
            let Some(entry) = entry.filter(|entry| entry.is_asked()) else {
                // Answered by a swap before, of which that was not heard.
                return false;
            };
            at = self.since_boot();
            // More than once where it is not known whether they are taken away.
            wishes.append(&mut entry.wishes);
            entry.asked = false;
            entry.beat += 1;
            true
        });
        let answered = answered.await;
        {
            let mut state = self.peering.state.lock();
            if state.id() != Some(own) {
                return Ok(());
            }
            if answered.is_ok() && is_there {
                state.hear(own, at);
            }
            if !wishes.is_empty() {
                state.eager_until = self.since_boot() + EAGER_FOR;
            }
        }
        for wish in wishes {
            self.take_in(&wish)?;
        }
        answered?;
        if !is_there {
            self.has_gone(own);
        }
        Ok(())
    }

    fn take_in(&self, wish: &Wish) -> Result<(), StoreError> {
        let database = crate::roots::database_id(&wish.database)?;
        {
            let mut state = self.peering.state.lock();
            let wanted = state.wanted.entry(database).or_default();
            if !wanted.contains(&wish.server) {
                wanted.push(wish.server.clone());
            }
        }
        self.peering.tell(PeerNews::Wanted(database));
        Ok(())
    }

    /// This server is not in the list any more: others took it for dead.
    fn has_gone(&self, own: &Bytes) {
        {
            let mut state = self.peering.state.lock();
            if state.id() != Some(own) {
                return;
            }
            state.stand(Standing::Lost);
        }
        self.peering.tell(PeerNews::Lost);
    }
}

pub(crate) fn installation_is_gone() -> StoreError {
    StoreError::Corrupt("the installation is gone from under its server".to_owned())
}
