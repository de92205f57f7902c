//! A table of claims that the test sees into, and servers at it: their messages take time and get lost.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use pagewire_memory::MemoryStore;
use pagewire_proto::{DatabaseId, Epoch, SessionId, Snapshot, Version};
use pagewire_server::layer::Layer;
use pagewire_server::peers::{Claim, Fence, PeerNews, Peers};
use pagewire_server::store::{Capabilities, PageStore, StoreError};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::TTL;
use crate::harness::{Client, TestServer};

/// When a silent server counts as dead.
pub(super) const SILENCE: Duration = Duration::from_secs(7);
/// How long a message takes.
pub(super) const DELAY: Duration = Duration::from_millis(30);

/// What all servers see: who has claimed what.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) claims: Mutex<HashMap<DatabaseId, usize>>,
    pub(super) members: Mutex<Vec<Weak<Member>>>,
    /// Each message is lost of which this is a multiple of the number; 0: none.
    pub(super) loses: AtomicU64,
    pub(super) messages: AtomicU64,
    /// Fences of servers that did not have the claim.
    pub(super) unclaimed_fences: AtomicUsize,
    /// Grants are remembered, and sessions take them along.
    pub(super) moves_leases: AtomicBool,
    pub(super) grants: Mutex<HashMap<DatabaseId, Grant>>,
}

/// What is remembered of a grant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) server: usize,
    pub(super) session: SessionId,
    pub(super) hello: u64,
    pub(super) epoch: Epoch,
    pub(super) guard: Duration,
}

/// A server to the others.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) table: Arc<Table>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) number: usize,
    pub(super) wanted: Mutex<HashMap<DatabaseId, Vec<usize>>>,
    pub(super) silent_since: Mutex<Option<Instant>>,
    pub(super) lost: AtomicBool,
    /// A claim goes to the next one with each permit.
    pub(super) gives: Semaphore,
    /// A permit for each claim that is on its way.
    pub(super) giving: Semaphore,
    /// The answer to a take-over comes with each permit.
    pub(super) takes: Semaphore,
    /// A permit for each take-over that waits for its answer, and is done.
    pub(super) taken: Semaphore,
    pub(super) send: UnboundedSender<PeerNews>,
    pub(super) receive: tokio::sync::Mutex<UnboundedReceiver<PeerNews>>,
}

impl Table {
    pub(super) fn join(self: &Arc<Self>, store: &Arc<MemoryStore>) -> Arc<Member> {
        let (send, receive) = unbounded_channel();
        let mut members = self.members.lock().unwrap();
        let member = Arc::new(Member {
            table: Arc::clone(self),
            store: Arc::clone(store),
            number: members.len(),
            wanted: Mutex::default(),
            silent_since: Mutex::default(),
            lost: AtomicBool::new(false),
            gives: Semaphore::new(10_000),
            giving: Semaphore::new(0),
            takes: Semaphore::new(10_000),
            taken: Semaphore::new(0),
            send,
            receive: tokio::sync::Mutex::new(receive),
        });
        members.push(Arc::downgrade(&member));
        member
    }

    pub(super) fn member(&self, number: usize) -> Arc<Member> {
        self.members.lock().unwrap()[number].upgrade().unwrap()
    }

    pub(super) fn tell(
        &self,
        to: usize,
        news: PeerNews,
        about: impl FnOnce(&Member) + Send + 'static,
    ) {
        let count = self.messages.fetch_add(1, Ordering::SeqCst) + 1;
        let loses = self.loses.load(Ordering::SeqCst);
        if loses > 0 && count.is_multiple_of(loses) {
            return;
        }
        let member = self.member(to);
        tokio::spawn(async move {
            tokio::time::sleep(DELAY).await;
            about(&member);
            let _ = member.send.send(news);
        });
    }

    pub(super) fn claimant(&self, database: DatabaseId) -> Option<usize> {
        self.claims.lock().unwrap().get(&database).copied()
    }
}

impl Member {
    pub(super) fn silence(&self) -> Duration {
        let since = *self.silent_since.lock().unwrap();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// From now on the others hear nothing of it.
    pub(super) fn falls_silent(&self) {
        *self.silent_since.lock().unwrap() = Some(Instant::now());
    }

    pub(super) fn speaks_again(&self) {
        let silence = self.silence();
        *self.silent_since.lock().unwrap() = None;
        if silence > SILENCE {
            self.lost.store(true, Ordering::SeqCst);
            self.wanted.lock().unwrap().clear();
            let _ = self.send.send(PeerNews::Lost);
        }
    }
}

#[tonic::async_trait]
impl Peers for Member {
    async fn claim(&self, database: DatabaseId) -> Result<Claim, StoreError> {
        if self.lost.load(Ordering::SeqCst) {
            return Ok(Claim::Elsewhere);
        }
        let other = self.table.claimant(database);
        match other.filter(|other| *other != self.number) {
            Some(other) if self.table.member(other).silence() <= SILENCE => {
                let wish = self.number;
                let told = move |member: &Member| {
                    let mut wanted = member.wanted.lock().unwrap();
                    let wishes = wanted.entry(database).or_default();
                    if !wishes.contains(&wish) {
                        wishes.push(wish);
                    }
                };
                self.table.tell(other, PeerNews::Wanted(database), told);
                Ok(Claim::Elsewhere)
            }
            _ => {
                self.table
                    .claims
                    .lock()
                    .unwrap()
                    .insert(database, self.number);
                Ok(Claim::Claimed)
            }
        }
    }

    fn moves_leases(&self) -> bool {
        self.table.moves_leases.load(Ordering::SeqCst)
    }

    async fn fence(
        &self,
        database: DatabaseId,
        session: SessionId,
        hello: u64,
        guard: Duration,
    ) -> Result<Fence, StoreError> {
        if !self.moves_leases() {
            return Ok(Fence::Plain);
        }
        if self.table.claimant(database) != Some(self.number) {
            return Ok(Fence::Elsewhere);
        }
        let epoch = self.store.fence(database).await?;
        let grant = Grant {
            server: self.number,
            session,
            hello,
            epoch,
            guard,
        };
        self.table.grants.lock().unwrap().insert(database, grant);
        Ok(Fence::Advanced(epoch))
    }

    async fn take_over(
        &self,
        database: DatabaseId,
        session: SessionId,
        hello: u64,
        epoch: Epoch,
    ) -> Result<Option<Duration>, StoreError> {
        let guard = {
            let mut claims = self.table.claims.lock().unwrap();
            let mut grants = self.table.grants.lock().unwrap();
            let grant = grants.get_mut(&database).filter(|grant| {
                (grant.session, grant.epoch) == (session, epoch)
                    && hello > grant.hello
                    && claims.get(&database) == Some(&grant.server)
            });
            grant.map(|grant| {
                (grant.server, grant.hello) = (self.number, hello);
                claims.insert(database, self.number);
                grant.guard
            })
        };
        self.taken.add_permits(1);
        self.takes.acquire().await.unwrap().forget();
        Ok(guard)
    }

    fn is_wanted(&self, database: DatabaseId) -> bool {
        self.wanted.lock().unwrap().contains_key(&database)
    }

    async fn give_back(&self, database: DatabaseId) -> Result<(), StoreError> {
        let wishes = self.wanted.lock().unwrap().remove(&database);
        let next = wishes.and_then(|wishes| wishes.first().copied());
        self.giving.add_permits(1);
        self.gives.acquire().await.unwrap().forget();
        if let Some(next) = next
            && self.table.claimant(database) == Some(self.number)
        {
            self.table.claims.lock().unwrap().insert(database, next);
            self.table.tell(next, PeerNews::Granted(database), |_| {});
        }
        Ok(())
    }

    async fn news(&self) -> PeerNews {
        self.receive.lock().await.recv().await.unwrap()
    }

    fn may_acknowledge(&self) -> bool {
        !self.lost.load(Ordering::SeqCst) && self.silence() <= TTL
    }

    fn resume(&self) {
        self.lost.store(false, Ordering::SeqCst);
    }
}

/// The store as one of the servers has it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) inner: Arc<MemoryStore>,
    pub(super) member: Arc<Member>,
    /// A fence is answered with each permit.
    pub(super) fences: Semaphore,
    /// A permit for each fence that waits for its answer.
    pub(super) fenced: Semaphore,
    /// Databases whose heads are never answered.
    pub(super) headless: Mutex<HashSet<DatabaseId>>,
    /// A floor is taken with each permit.
    pub(super) floors: Semaphore,
    /// Floors that came, taken or not.
    pub(super) told: Mutex<Vec<Option<u64>>>,
}

#[tonic::async_trait]
impl Layer for Shared {
    fn inner(&self) -> &dyn PageStore {
        &*self.inner
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            exclusive: false,
            ..PageStore::capabilities(&*self.inner)
        }
    }

    fn peers(&self) -> Option<Arc<dyn Peers>> {
        Some(Arc::clone(&self.member) as Arc<dyn Peers>)
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        if self.headless.lock().unwrap().contains(&database) {
            std::future::pending::<()>().await;
        }
        self.inner().head(database).await
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        self.told.lock().unwrap().push(floor.map(Version::get));
        self.floors.acquire().await.unwrap().forget();
        self.inner().protect(database, floor, pins).await
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        if self.member.table.claimant(database) != Some(self.member.number) {
            let fences = &self.member.table.unclaimed_fences;
            fences.fetch_add(1, Ordering::SeqCst);
        }
        let epoch = self.inner().fence(database).await;
        self.fenced.add_permits(1);
        self.fences.acquire().await.unwrap().forget();
        epoch
    }
}

/// A page server among others.
pub(super) struct Peer {
    pub(super) server: TestServer,
    pub(super) store: Arc<Shared>,
}

impl Peer {
    pub(super) async fn client(&self) -> Client {
        self.server.client().await
    }
}

pub(super) async fn peers(count: usize) -> (Arc<Table>, Vec<Peer>) {
    let table = Arc::new(Table::default());
    let inner = Arc::new(MemoryStore::new().unwrap());
    let mut peers = Vec::new();
    for _ in 0..count {
        let store = Arc::new(Shared {
            inner: Arc::clone(&inner),
            member: table.join(&inner),
            fences: Semaphore::new(10_000),
            fenced: Semaphore::new(0),
            headless: Mutex::default(),
            floors: Semaphore::new(10_000),
            told: Mutex::default(),
        });
        let server = TestServer::in_process_over(Arc::clone(&store) as _, TTL).await;
        peers.push(Peer { server, store });
    }
    (table, peers)
}

/// Two servers of a store with which sessions take their leases along.
pub(super) async fn two_that_move() -> (Arc<Table>, Peer, Peer) {
    let (table, one, other) = two().await;
    table.moves_leases.store(true, Ordering::SeqCst);
    (table, one, other)
}

pub(super) async fn two() -> (Arc<Table>, Peer, Peer) {
    let (table, mut peers) = peers(2).await;
    let (other, one) = (peers.pop().unwrap(), peers.pop().unwrap());
    (table, one, other)
}
