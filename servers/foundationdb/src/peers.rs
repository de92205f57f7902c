//! The other page servers: claims, wishes and their news, as rows with a bell for each server that it watches.
//!
//! * A claim is a row (database -> server), changed only in transactions that read it firmly.
//! * A server is *silent* from the sending of its last beat that the cluster took. It acknowledges heartbeats for at most one lease TTL of
//!   silence, so that nobody trusts it for longer than two. Another takes its claim after it has itself watched an unchanged
//!   counter for two TTLs and a margin; and a server that was silent for two TTLs takes it that all of its claims are gone (PEER3, PEER4).
//! * A *grant* is a row too, written with the epoch that it is for: the server, the session, and for how long an earlier holder may trust the
//!   lease. Another server takes the session over, and its lease with it, in a transaction that finds the grant, its epoch and the
//!   claim of the server that granted it unchanged and the number of its Hello above that of the grant, and changes the claim and the number (PEER7); and a server makes an epoch for a grant only in a transaction
//!   that finds its claim unchanged. So of two servers that believe they may grant a lease the first one keeps the other out (PEER5).
//! * All of this is counted by each server's own clock, which counts suspended time.
//!
//! A message is a row for its receiver and a rise of its bell, in one transaction; the receiver deletes what it has read. One that was lost
//! costs a wait: whoever wants a database asks again.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::{try_join, try_join3};
use pagewire_proto::{DatabaseId, Epoch, SessionId, Version};
use pagewire_server::peers::{Claim, Fence, PeerNews, Peers};
use pagewire_server::store::StoreError;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Inner;
use crate::engine::{Fail, Read, Txn, transact};
use crate::keys::{Key, Message, ServerId};
use crate::servers::Listed;
use crate::values::{Grant, Server};

/// What another server waits beyond two lease TTLs.
const MARGIN: Duration = Duration::from_secs(1);
/// How often messages are looked for although the bell was not heard.
const LOOK: Duration = Duration::from_secs(5);

/// What this server knows of claims.
#[derive(Debug)]
pub(crate) struct Peering {
    /// Claims that it has.
    own: Mutex<HashSet<DatabaseId>>,
    /// Who wants a database, in the order of their wishes.
    wanted: Mutex<HashMap<DatabaseId, Vec<ServerId>>>,
    /// Counters of others whose claims were wanted, and since when they are unchanged.
    silent: Mutex<HashMap<ServerId, (u64, Duration)>>,
    beats: Mutex<Beats>,
    lost: AtomicBool,
    /// How often that was so.
    losses: AtomicU64,
    send: UnboundedSender<PeerNews>,
    receive: tokio::sync::Mutex<UnboundedReceiver<PeerNews>>,
}

#[derive(Debug, Default)]
struct Beats {
    /// When the last beat was sent that the cluster took.
    sent: Option<Duration>,
    /// Until when nothing is claimed: somebody may trust a lease of before the silence.
    quiet_until: Duration,
}

impl Default for Peering {
    fn default() -> Self {
        let (send, receive) = unbounded_channel();
        Self {
            own: Mutex::default(),
            wanted: Mutex::default(),
            silent: Mutex::default(),
            beats: Mutex::default(),
            lost: AtomicBool::new(false),
            losses: AtomicU64::new(0),
            send,
            receive: tokio::sync::Mutex::new(receive),
        }
    }
}

/// Time since the machine started, with the time in which it slept.
#[cfg(target_os = "linux")]
fn since_start() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Time since the machine started.
#[cfg(not(target_os = "linux"))]
fn since_start() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// How long a server has to be silent before another takes its claims.
pub(crate) fn silence(lease_ttl_ms: u64) -> Duration {
    match lease_ttl_ms {
        // It never served.
        0 => Duration::ZERO,
        _ => 2 * Duration::from_millis(lease_ttl_ms) + MARGIN,
    }
}

impl Peering {
    /// When a beat is sent.
    pub(crate) fn beginning() -> Duration {
        since_start()
    }

    /// The cluster took a beat.
    pub(crate) fn took(&self, sent: Duration, lease_ttl: Duration) {
        let mut beats = self.beats.lock();
        let before = beats.sent.replace(sent);
        let Some(before) = before else { return };
        if lease_ttl.is_zero() || since_start().saturating_sub(before) <= 2 * lease_ttl {
            return;
        }
        beats.quiet_until = before + 2 * lease_ttl + MARGIN;
        drop(beats);
        self.own.lock().clear();
        self.wanted.lock().clear();
        self.losses.fetch_add(1, Ordering::Release);
        self.lost.store(true, Ordering::Release);
        // Without a receiver nobody serves.
        let _ = self.send.send(PeerNews::Lost);
    }

    /// How often this server was silent for so long that others may have taken it for dead.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    fn is_heard(&self, lease_ttl: Duration) -> bool {
        let sent = self.beats.lock().sent;
        lease_ttl.is_zero() || sent.is_some_and(|sent| since_start() <= sent + lease_ttl)
    }

    fn claims_nothing(&self) -> bool {
        self.lost.load(Ordering::Acquire) || since_start() < self.beats.lock().quiet_until
    }

    /// Whether a server has said nothing for so long that nobody trusts it.
    fn is_dead(&self, id: ServerId, row: Option<Server>) -> bool {
        let Some(row) = row else {
            // It has ended, or was seen to be dead by somebody who waited for longer.
            return true;
        };
        let now = since_start();
        let mut silent = self.silent.lock();
        let (counter, since) = silent.entry(id).or_insert((row.counter, now));
        if *counter != row.counter {
            (*counter, *since) = (row.counter, now);
        }
        now >= *since + silence(row.lease_ttl_ms)
    }
}

impl Txn {
    /// Leaves a message for a server.
    fn tell(&self, to: ServerId, message: Message, database: DatabaseId, from: ServerId) {
        self.put(&Key::Mail(to, message, database, from), &[]);
        self.add(&Key::Bell(to), 1);
    }

    /// The newest grant of a database.
    async fn granted(&self, database: DatabaseId) -> Result<Option<Grant>, Fail> {
        self.row(&Key::Grant(database), Read::Firm, Grant::decode)
            .await
    }

    /// The holder goes on with another epoch.
    pub(crate) async fn granted_again(
        &self,
        database: DatabaseId,
        before: Epoch,
        now: Epoch,
    ) -> Result<(), Fail> {
        let granted = self.granted(database).await?;
        if let Some(grant) = granted.filter(|grant| grant.epoch == before) {
            let grant = Grant {
                epoch: now,
                ..grant
            };
            self.put(&Key::Grant(database), &grant.encode());
        }
        Ok(())
    }

    async fn claimant(&self, database: DatabaseId) -> Result<Option<ServerId>, Fail> {
        let decode = |body: &[u8]| ServerId::try_from(body).ok();
        self.row(&Key::Claim(database), Read::Firm, decode).await
    }
}

impl Inner {
    pub(crate) fn lease_ttl(&self) -> Duration {
        Duration::from_millis(self.lease_ttl_ms.load(Ordering::Relaxed))
    }

    /// Reads the messages for this server, and answers when there may be more.
    async fn read_mail(&self) -> Result<impl Future<Output = ()> + use<>, StoreError> {
        let range = self.engine.space.mail(self.server);
        let (keys, bell) = transact!(self.engine, |txn| {
            let keys = txn.keys(&range, usize::MAX, Read::Firm).await?;
            for key in &keys {
                txn.delete(key);
            }
            Ok((keys, txn.watch(&Key::Bell(self.server))))
        })?;
        for key in keys {
            let Key::Mail(_, message, database, from) = key else {
                continue;
            };
            if message == Message::Wanted {
                let mut wanted = self.peering.wanted.lock();
                let wishes = wanted.entry(database).or_default();
                if !wishes.contains(&from) {
                    wishes.push(from);
                }
            }
            let news = match message {
                Message::Wanted => PeerNews::Wanted(database),
                Message::Granted => PeerNews::Granted(database),
            };
            let _ = self.peering.send.send(news);
        }
        Ok(async move {
            // Heard, or broken: in both cases it is time to look.
            let _ = tokio::time::timeout(LOOK, bell).await;
        })
    }
}

/// Reads the messages for a server for as long as it is there.
pub(crate) async fn read_mail(store: Weak<Inner>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        let bell = inner.read_mail().await;
        drop(inner);
        match bell {
            Ok(bell) => bell.await,
            Err(error) => {
                tracing::debug!(%error, "messages of other servers have to wait");
                tokio::time::sleep(MARGIN).await;
            }
        }
    }
}

#[async_trait]
impl Peers for Inner {
    async fn claim(&self, database: DatabaseId) -> Result<Claim, StoreError> {
        if self.peering.claims_nothing() {
            return Ok(Claim::Elsewhere);
        }
        // Nobody takes the claim of a server that is heard, but with a session of it; `fence` finds that out.
        if self.peering.own.lock().contains(&database) && self.peering.is_heard(self.lease_ttl()) {
            return Ok(Claim::Claimed);
        }
        let claim = transact!(self.engine, |txn| {
            let (_, claimant) = try_join(txn.lasting(database), txn.claimant(database)).await?;
            let other = match claimant {
                Some(other) if other != self.server => other,
                Some(_) => return Ok(Claim::Claimed),
                None => {
                    txn.put(&Key::Claim(database), &self.server);
                    return Ok(Claim::Claimed);
                }
            };
            let is_dead = match txn.server(other, Read::Firm).await? {
                Some(Listed { server: None, .. }) => false,
                row => self.peering.is_dead(other, row.and_then(|row| row.server)),
            };
            if is_dead {
                txn.put(&Key::Claim(database), &self.server);
                return Ok(Claim::Claimed);
            }
            txn.tell(other, Message::Wanted, database, self.server);
            Ok(Claim::Elsewhere)
        })?;
        if claim == Claim::Claimed && !self.peering.claims_nothing() {
            self.peering.own.lock().insert(database);
        }
        Ok(claim)
    }

    fn moves_leases(&self) -> bool {
        true
    }

    async fn fence(
        &self,
        database: DatabaseId,
        session: SessionId,
        hello: u64,
        guard: Duration,
    ) -> Result<Fence, StoreError> {
        let fenced = transact!(self.engine, |txn| {
            // The head loosely: see `Inner::fence` in `names.rs`.
            let there = txn.database(database, Read::Loose);
            let epoch = txn.epoch(database, Read::Firm);
            let (row, epoch, claimant) = try_join3(there, epoch, txn.claimant(database)).await?;
            if claimant != Some(self.server) {
                return Ok(Fence::Elsewhere);
            }
            txn.is_wanted_still(database, row, self.options.clock.now_ms())?;
            let epoch = txn.advance(database, epoch);
            // A claim that was being given back when its call was given up may not go after the grant.
            txn.put(&Key::Claim(database), &self.server);
            let grant = Grant {
                server: self.server,
                session,
                hello,
                epoch,
                // Rounded up.
                guard_ms: u64::try_from(guard.as_micros().div_ceil(1000)).unwrap_or(u64::MAX),
            };
            txn.put(&Key::Grant(database), &grant.encode());
            Ok(Fence::Advanced(epoch))
        })?;
        if fenced == Fence::Elsewhere {
            self.peering.own.lock().remove(&database);
        }
        Ok(fenced)
    }

    async fn take_over(
        &self,
        database: DatabaseId,
        session: SessionId,
        hello: u64,
        epoch: Epoch,
    ) -> Result<Option<Duration>, StoreError> {
        if self.peering.claims_nothing() {
            return Ok(None);
        }
        // A round whose answer was lost may have been applied, and others may have gone on from there.
        let may_be_moved = AtomicBool::new(false);
        let guard = transact!(self.engine, |txn| {
            let current = txn.epoch(database, Read::Firm);
            let rows = try_join(txn.granted(database), txn.claimant(database));
            let (current, (granted, claimant)) = try_join(current, rows).await?;
            let granted = granted.filter(|grant| {
                let is_newest = match grant.server == self.server {
                    // The earlier round of this call.
                    true if may_be_moved.load(Ordering::Relaxed) => hello >= grant.hello,
                    _ => hello > grant.hello,
                };
                grant.session == session
                    && is_newest
                    && grant.epoch == epoch
                    && current == epoch
                    && claimant == Some(grant.server)
            });
            let Some(grant) = granted else {
                return Ok(None);
            };
            let guard = Duration::from_millis(grant.guard_ms);
            let grant = Grant {
                server: self.server,
                hello,
                ..grant
            };
            txn.put(&Key::Grant(database), &grant.encode());
            txn.put(&Key::Claim(database), &self.server);
            may_be_moved.store(true, Ordering::Relaxed);
            Ok(Some(guard))
        })?;
        let moved = guard.is_some() || may_be_moved.load(Ordering::Relaxed);
        // Silent meanwhile: another may have taken it.
        if moved && (guard.is_none() || self.peering.claims_nothing()) {
            let lost = "a lease was moved here, and is not here any more";
            return Err(StoreError::Unavailable(lost.to_owned()));
        }
        if moved {
            self.peering.own.lock().insert(database);
        }
        Ok(guard)
    }

    fn is_wanted(&self, database: DatabaseId) -> bool {
        self.peering.wanted.lock().contains_key(&database)
    }

    async fn give_back(&self, database: DatabaseId) -> Result<(), StoreError> {
        let wishes = self.peering.wanted.lock().remove(&database);
        let Some((next, others)) = wishes.as_deref().and_then(<[_]>::split_first) else {
            return Ok(());
        };
        // Before the cluster is told: nothing is granted on it any more.
        self.peering.own.lock().remove(&database);
        transact!(self.engine, |txn| {
            if txn.claimant(database).await? == Some(self.server) {
                txn.put(&Key::Claim(database), next);
                txn.tell(*next, Message::Granted, database, self.server);
                for other in others {
                    txn.tell(*next, Message::Wanted, database, *other);
                }
            }
            Ok(())
        })
    }

    async fn open_elsewhere(&self, database: DatabaseId) -> Result<usize, StoreError> {
        transact!(self.engine, |txn| {
            let range = txn.space.protections(database);
            let mut open = 0;
            for key in txn.keys(&range, usize::MAX, Read::Loose).await? {
                if let Key::Protect(_, server, 0) = key
                    && server != self.server
                    // What the dead protected goes with the collection.
                    && txn.server(server, Read::Loose).await?.is_some()
                {
                    open += 1;
                }
            }
            Ok(open)
        })
    }

    async fn news(&self) -> PeerNews {
        let next = self.peering.receive.lock().await.recv().await;
        match next {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    async fn moved_on(&self, database: DatabaseId, known: Version) -> Result<(), StoreError> {
        let watch = transact!(self.engine, |txn| {
            let head = txn.database(database, Read::Loose).await?.head.snapshot;
            Ok((head.version <= known).then(|| txn.watch(&Key::Head(database))))
        })?;
        if let Some(watch) = watch {
            // Heard, or broken: in both cases it is time to look.
            let _ = tokio::time::timeout(LOOK, watch).await;
        }
        Ok(())
    }

    fn may_acknowledge(&self) -> bool {
        !self.peering.lost.load(Ordering::Acquire) && self.peering.is_heard(self.lease_ttl())
    }

    fn resume(&self) {
        self.peering.lost.store(false, Ordering::Release);
    }
}
