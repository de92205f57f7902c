//! [`Served`]: a store under test behind a page server of its own, seen through gRPC, so that every rule of stores runs through it
//! too, those that need a clock, damage, or a death of the store included.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::SessionId;
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use super::remote::{Names, RemoteStore, wrong};
use super::wire::{Exchanges, Wire, connect};
use crate::conformance::{Damage, StoreUnderTest};
use crate::store::{PageStore, StoreError};
use crate::{Server, bind_tcp};

/// What a loaded machine may take for a heartbeat; and after a death nothing is visible for so long.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// What is left of a server that was killed is gone after this.
const DEATH_PATIENCE: Duration = Duration::from_secs(30);

/// A store behind a page server. See the top of this file.
#[derive(Debug)]
pub struct Served<S> {
    store: S,
    names: Names,
    exchanges: Exchanges,
    encodes: bool,
    lease_ttl: Duration,
    killed_is_believed_for: Duration,
    process: Mutex<Option<Process>>,
}

/// A page server that can be killed: all of its tasks are in a runtime of its own.
#[derive(Debug)]
struct Process {
    runtime: Runtime,
    store: Arc<dyn PageStore>,
    /// Who has the store beside the server: this, and whoever is trying it.
    others: usize,
}

impl<S> Served<S> {
    /// The store, to be tried through a server.
    pub fn new(store: S) -> Self {
        Self {
            store,
            names: Names::default(),
            exchanges: Arc::new(Mutex::new(VecDeque::new())),
            encodes: false,
            lease_ttl: LEASE_TTL,
            killed_is_believed_for: Duration::ZERO,
            process: Mutex::new(None),
        }
    }

    /// The same, with pages of commits as deltas and compressed, wherever that makes them smaller.
    pub fn with_encodings(store: S) -> Self {
        let mut served = Self::new(store);
        served.encodes = true;
        served
    }

    /// The same, where several servers may stand on the store: what one had that was killed is free after some times the TTL of a lease, and
    /// at the latest after [`StoreUnderTest::killed_is_believed_for`].
    pub fn on_a_shared_store(
        store: S,
        lease_ttl: Duration,
        killed_is_believed_for: Duration,
    ) -> Self {
        let mut served = Self::new(store);
        served.lease_ttl = lease_ttl;
        served.killed_is_believed_for = killed_is_believed_for;
        served
    }

    async fn serve(&self, store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(failed)?;
        let others = Arc::strong_count(&store);
        let served = Arc::clone(&store);
        let lease_ttl = self.lease_ttl;
        let serving = runtime.spawn(async move {
            let server = Server::builder(served).lease_ttl(lease_ttl);
            let server = server.build().await.map_err(failed)?;
            let (listener, address) = bind_tcp("127.0.0.1:0").await.map_err(failed)?;
            tokio::spawn(server.serve_tcp(listener, std::future::pending()));
            Ok::<_, StoreError>(address)
        });
        *self.process.lock() = Some(Process {
            runtime,
            store,
            others,
        });
        let address = serving.await.map_err(failed)??;
        let calls = connect(&format!("http://{address}")).await?;
        let session = SessionId::random().map_err(wrong)?;
        let wire = Wire::begin(calls, session, true, Arc::clone(&self.exchanges)).await?;
        let mut remote = RemoteStore::new(wire, Arc::clone(&self.names))?;
        remote.encodes = self.encodes;
        Ok(Arc::new(remote))
    }

    /// Kills the server, where there is one: its store, which nothing of it has any more.
    async fn kill(&self) -> Result<Option<Arc<dyn PageStore>>, StoreError> {
        let process = self.process.lock().take();
        let Some(process) = process else {
            return Ok(None);
        };
        let (store, others) = (process.store, process.others);
        process.runtime.shutdown_background();
        let deadline = tokio::time::Instant::now() + DEATH_PATIENCE;
        while Arc::strong_count(&store) > others {
            if tokio::time::Instant::now() > deadline {
                return Err(failed(
                    "something of a server that was killed has its store",
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Some(store))
    }

    fn inner(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        let process = self.process.lock();
        let process = process.as_ref().map(|process| Arc::clone(&process.store));
        process.ok_or(StoreError::Unsupported(
            "a look inside before the first open",
        ))
    }
}

impl<S> Drop for Served<S> {
    fn drop(&mut self) {
        if let Some(process) = self.process.lock().take() {
            process.runtime.shutdown_background();
        }
    }
}

#[async_trait]
impl<S: StoreUnderTest> StoreUnderTest for Served<S> {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        drop(self.kill().await?);
        self.serve(self.store.open().await?).await
    }

    fn can_restart(&self) -> bool {
        self.store.can_restart()
    }

    async fn reopen(&self, store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        // The server first: a session that says goodbye would make it an orderly end.
        let inner = self.kill().await?;
        let inner = inner.ok_or(StoreError::Unsupported("a death before the first open"))?;
        drop(store);
        self.serve(self.store.reopen(inner).await?).await
    }

    async fn open_with_retention(
        &self,
        retention: Duration,
    ) -> Result<Option<Arc<dyn PageStore>>, StoreError> {
        drop(self.kill().await?);
        match self.store.open_with_retention(retention).await? {
            Some(store) => self.serve(store).await.map(Some),
            None => Ok(None),
        }
    }

    fn killed_is_believed_for(&self) -> Duration {
        self.killed_is_believed_for
    }

    fn advance_clock(&self, by: Duration) {
        self.store.advance_clock(by);
    }

    async fn audit(&self, _store: &Arc<dyn PageStore>) -> Result<Vec<String>, StoreError> {
        self.store.audit(&self.inner()?).await
    }

    fn behind_a_server(&self) -> bool {
        true
    }

    async fn damage(
        &self,
        _store: &Arc<dyn PageStore>,
        damage: Damage,
    ) -> Result<bool, StoreError> {
        self.store.damage(&self.inner()?, damage).await
    }
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Internal(error.to_string())
}
