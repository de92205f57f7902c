//! A page server over a store: builder, listeners, health, reflection, and the orderly end.
//!
//! ```text
//! serving ── shutdown ──▶ draining: Draining and recalls on the streams, commits end ── quiet or grace over ──▶ closed
//! ```
//! Only a server that nobody trusts any more tells its store so ([`PageStore::end_service`]); after any other end the
//! next server waits until the leases of this one cannot be trusted.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pagewire_proto::{FILE_DESCRIPTOR_SET, pb};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OnceCell, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::service::Routes;

use crate::connections::Connections;
use crate::hub::{End, Hub};
use crate::memory::Memory;
use crate::service::Service;
use crate::settings::Settings;
use crate::store::{PageStore, StoreError};

/// Finds peers that vanished without a word and have no session.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// How long connections may take to end after everything else has.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How often the end looks whether anybody still trusts this server.
const QUIET_CHECK: Duration = Duration::from_millis(10);

/// Why a server could not be built or could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings are wrong; all problems together.
    #[error("{}", .0.join("; "))]
    Settings(Vec<String>),
    /// The store could not begin or end its service.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The reflection service could not be made.
    #[error("the reflection service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Makes a [`Server`].
#[derive(Debug)]
pub struct ServerBuilder {
    store: Arc<dyn PageStore>,
    settings: Settings,
}

impl ServerBuilder {
    /// How long a session and its leases live without a heartbeat.
    pub fn lease_ttl(mut self, lease_ttl: Duration) -> Self {
        self.settings.lease_ttl = lease_ttl;
        self
    }

    /// All settings at once.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Begins the service of the store. Needs a Tokio runtime.
    pub async fn build(self) -> Result<Server, ServeError> {
        let problems = self.settings.problems();
        if !problems.is_empty() {
            return Err(ServeError::Settings(problems));
        }
        let wait = self.store.begin_service(self.settings.lease_ttl).await?;
        let quarantine = match self.store.peers() {
            // Nothing becomes visible but under a lease whose claim nobody else can be trusted for any more (PEER3).
            Some(_) => Duration::ZERO,
            None => wait,
        };
        if !quarantine.is_zero() {
            tracing::info!(
                wait_ms = u64::try_from(quarantine.as_millis()).unwrap_or(u64::MAX),
                "commits wait until leases of an earlier server cannot be trusted any more"
            );
        }
        let (health, health_service) = tonic_health::server::health_reporter();
        health
            .set_serving::<pb::page_service_server::PageServiceServer<Service>>()
            .await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let max_connections = self.settings.max_connections;
        let memory = Memory::new(self.settings.memory_bytes, max_connections);
        #[cfg(feature = "simulation")]
        let older = self.settings.older.clone();
        let hub = Hub::new(self.store, self.settings, quarantine);
        let routes = Routes::new(Service::grpc(Arc::clone(&hub)))
            .add_service(health_service)
            .add_service(reflection);
        let connections = Connections::new(routes, memory, max_connections);
        #[cfg(feature = "simulation")]
        let connections = connections.of_release(older);
        Ok(Server {
            hub,
            connections,
            health,
            closed: Arc::default(),
        })
    }
}

/// A page server. Clones share the sessions, so that it can serve several listeners at once.
#[derive(Clone)]
pub struct Server {
    hub: Arc<Hub>,
    connections: Connections,
    health: tonic_health::server::HealthReporter,
    closed: Arc<OnceCell<()>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("hub", &self.hub).finish()
    }
}

impl Server {
    /// A server over this store.
    pub fn builder(store: Arc<dyn PageStore>) -> ServerBuilder {
        ServerBuilder {
            store,
            settings: Settings::default(),
        }
    }

    /// Serves a TCP listener until `shutdown`, then ends in order ([`Server::close`]).
    pub async fn serve_tcp(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let incoming = TcpListenerStream::new(listener).map(|accepted| {
            accepted.inspect(|socket| {
                let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE);
                // A lease or a commit is one small packet that somebody waits for.
                let set = socket
                    .set_nodelay(true)
                    .and_then(|()| SockRef::from(socket).set_tcp_keepalive(&keepalive));
                if let Err(error) = set {
                    tracing::debug!(%error, "a socket did not take its settings");
                }
            })
        });
        self.serve_incoming(incoming, shutdown).await
    }

    /// Serves a unix socket until `shutdown`, then ends in order ([`Server::close`]).
    pub async fn serve_unix(
        self,
        listener: UnixListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        self.serve_incoming(UnixListenerStream::new(listener), shutdown)
            .await
    }

    /// Serves one connection within the process until it ends; [`Server::close`] is the caller's.
    pub async fn serve_stream<IO>(self, stream: IO) -> Result<(), ServeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (_running, stop) = watch::channel(false);
        self.connections.serve(stream, stop).await;
        Ok(())
    }

    /// Ends in order: asks for the leases, lets commits end, waits at most the grace time, ends all sessions and the service of
    /// the store. Repeating it does nothing.
    pub async fn close(&self) -> Result<(), ServeError> {
        self.closed
            .get_or_try_init(|| async { self.close_once().await })
            .await
            .copied()
    }

    async fn close_once(&self) -> Result<(), ServeError> {
        self.health
            .set_not_serving::<pb::page_service_server::PageServiceServer<Service>>()
            .await;
        let quiet = self.hub.drain().await;
        if quiet {
            self.hub.store.end_service().await?;
        } else {
            tracing::warn!(
                "stopped while clients may still trust their leases: the next server on this store waits for them"
            );
        }
        Ok(())
    }

    async fn serve_incoming<IO>(
        self,
        incoming: impl tokio_stream::Stream<Item = std::io::Result<IO>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stop, _) = watch::channel(false);
        // Connections go on while it drains: running transactions may end.
        let ending = async {
            shutdown.await;
            self.close().await
        };
        let closed = tokio::select! {
            () = self.connections.serve_all(incoming, &stop) => None,
            closed = ending => Some(closed),
        };
        stop.send_replace(true);
        let ended = stop.closed();
        match closed {
            // No connection comes any more; those that are there go on until their clients have done.
            None => {
                ended.await;
                self.close().await
            }
            Some(closed) => {
                // What is still open then is closed with the runtime.
                let _ = tokio::time::timeout(LAST_ANSWERS, ended).await;
                closed
            }
        }
    }
}

/// Binds a unix socket; a file that a dead server left behind is removed, a living one is not disturbed.
pub async fn bind_unix(path: &Path) -> std::io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// Binds a TCP address and says which port it became.
pub async fn bind_tcp(address: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Hub {
    pub(crate) fn draining_message(&self) -> pb::session_response::Message {
        pb::session_response::Message::Draining(pb::Draining {
            grace_ms: u32::try_from(self.settings.grace.as_millis()).unwrap_or(u32::MAX),
        })
    }

    /// Asks for everything back and ends all sessions. True where nobody trusts this server any more.
    async fn drain(self: &Arc<Self>) -> bool {
        self.draining.store(true, Ordering::Release);
        for session in self.all_sessions() {
            session.push(self.draining_message());
        }
        for database in self.all_databases() {
            self.ask_back(&database);
            self.wind_down(&database);
        }
        let quiet = async {
            while !self.is_quiet() {
                tokio::time::sleep(QUIET_CHECK).await;
            }
        };
        // Also a session that says nothing more is over by then, if the grace is as long as the TTL.
        let quiet = tokio::time::timeout(self.settings.grace, quiet)
            .await
            .is_ok();
        for session in self.all_sessions() {
            self.end_session(&session, End::Drained);
        }
        self.ended.send_replace(true);
        // What the store was given, it finishes.
        let mut commits = self.commits.subscribe();
        let ended = commits.wait_for(|count| *count == 0);
        quiet
            && tokio::time::timeout(self.settings.grace, ended)
                .await
                .is_ok()
    }

    /// No lease, no barrier, no strict subscription, no commit.
    fn is_quiet(&self) -> bool {
        let now = tokio::time::Instant::now();
        *self.commits.borrow() == 0
            && now >= self.visible_from
            && self.all_databases().iter().all(|database| {
                self.end_silent(database);
                let trusted = database.subscriptions.lock().has_strict();
                let mut lease = database.lease.lock();
                !trusted && lease.holder().is_none() && lease.barrier(now).is_none()
            })
    }
}
