//! Connections: how many there may be, what HTTP/2 lets each of them do, and how they end.
//!
//! Never makes a listener wait: behind a full server a client hears so at once, instead of standing in a queue of the kernel.

use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tonic::service::Routes;

use crate::memory::{ANSWER_WAIT, Account, Memory};
use crate::metered;
use crate::wakes::Calls;

/// Calls of one connection at a time; SQLite connections in a process share one.
const STREAMS: u32 = 256;
/// All headers of a call together: a token of an identity provider has two to four kilobytes.
const HEADER_BYTES: u32 = 8 << 10;
/// What the transport collects for a stream before it sends; what is charged may be more.
const SEND_BYTES: usize = 64 << 10;
/// Streams that a peer opened and broke off before anybody looked at them; with more the connection ends.
const RESET_STREAMS: usize = 32;
/// A listener that cannot accept has no file descriptor left, as a rule: trying again at once changes nothing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What serves connections.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    routes: Routes,
    memory: Arc<Memory>,
    /// For one connection each.
    places: Arc<Semaphore>,
    #[cfg(feature = "simulation")]
    older: Arc<crate::older::Older>,
}

impl Connections {
    pub(crate) fn new(routes: Routes, memory: Arc<Memory>, max_connections: usize) -> Self {
        Self {
            routes: routes.prepare(),
            memory,
            places: Arc::new(Semaphore::new(max_connections.min(Semaphore::MAX_PERMITS))),
            #[cfg(feature = "simulation")]
            older: Arc::default(),
        }
    }

    /// The same of an older release.
    #[cfg(feature = "simulation")]
    pub(crate) fn of_release(self, older: crate::older::Older) -> Self {
        Self {
            older: Arc::new(older),
            ..self
        }
    }

    /// Serves what comes in, each connection in a task of its own, until `stop` says so; nothing is accepted afterwards, and calls
    /// under way end. Each task has a receiver of `stop` for as long as it lives.
    pub(crate) async fn serve_all<IO>(
        &self,
        incoming: impl tokio_stream::Stream<Item = std::io::Result<IO>>,
        stop: &watch::Sender<bool>,
    ) where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        tokio::pin!(incoming);
        let mut stopped = stop.subscribe();
        loop {
            let accepted = tokio::select! {
                _ = stopped.wait_for(|stopped| *stopped) => return,
                accepted = incoming.next() => accepted,
            };
            match accepted {
                None => return,
                Some(Ok(io)) => self.admit(io, stop.subscribe()),
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit<IO>(&self, io: IO, stop: watch::Receiver<bool>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!("a connection was refused: max_connections are open");
            return;
        };
        let connections = self.clone();
        tokio::spawn(async move {
            connections.serve(io, stop).await;
            drop(place);
        });
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve<IO>(&self, io: IO, mut stop: watch::Receiver<bool>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let account = self.memory.open_account();
        let service = {
            let (routes, account) = (self.routes.clone(), Arc::clone(&account));
            #[cfg(feature = "simulation")]
            let older = Arc::clone(&self.older);
            service_fn(move |request| {
                #[cfg(feature = "simulation")]
                let request = {
                    let mut request = request;
                    older.route(&mut request);
                    request
                };
                metered::call(routes.clone(), Arc::clone(&account), request)
            })
        };
        let connection = settings(&account).serve_connection(TokioIo::new(io), service);
        tokio::pin!(connection);
        let mut looks = tokio::time::interval(ANSWER_WAIT / 4);
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    return;
                }
                // An error means that nobody is left to say stop.
                _ = stop.wait_for(|stopped| *stopped), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = looks.tick() => {
                    if account.is_overdue(Instant::now()) {
                        tracing::warn!("a connection was closed: its client does not take its answers");
                        return;
                    }
                }
            }
        }
    }
}

/// A window also bounds what a flood of tiny frames costs: the transport ends a connection whose frames outweigh their content by it.
fn settings(account: &Account) -> http2::Builder<Calls> {
    let window = account.window_bytes();
    let mut http2 = http2::Builder::new(Calls);
    http2
        .timer(TokioTimer::new())
        .initial_connection_window_size(small(window))
        // Half: a stream that nobody reads does not keep the heartbeats out.
        .initial_stream_window_size(small(window / 2))
        .max_frame_size(small(account.frame_bytes()))
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .max_send_buf_size(SEND_BYTES)
        .max_pending_accept_reset_streams(RESET_STREAMS);
    http2
}

fn small(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
