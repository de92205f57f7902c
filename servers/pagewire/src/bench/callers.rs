//! Clients of the echo: who drives the runtime of a call, what carries it, and how the connection is set.
//!
//! `EchoClient::new` is as the VFS calls: a current-thread runtime that the calling thread drives, with the VFS's settings of the
//! connection. The others are what it could have been, for the workload `calls`.

use std::sync::mpsc::{self, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

use super::echo::{EchoRequest, MESSAGE_BYTES, PATH, serve_pipe};

/// Threads of a runtime that has some: as many as the server has that `pagewire shell` starts in its process.
const THREADS: usize = 2;
/// Bytes that a pipe within the process holds: more than a small call has.
const PIPE_BYTES: usize = 1 << 20;

/// How the connection of a client is set.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// HTTP/2's windows, of a call and of the connection: bytes that may be on their way to the client.
    pub window_bytes: u32,
    /// The largest frame that the server may send.
    pub frame_bytes: u32,
    /// A small packet goes out at once; without, Nagle's algorithm keeps it until the one before it was acknowledged.
    pub nodelay: bool,
}

impl Tuning {
    /// As the VFS sets its own (`sqlite_vfs/src/client/connect.rs`).
    pub const AS_IT_IS: Self = Self {
        window_bytes: 16 << 20,
        frame_bytes: 64 << 10,
        nodelay: true,
    };

    fn of(self, endpoint: Endpoint) -> Endpoint {
        endpoint
            .tcp_nodelay(self.nodelay)
            .connect_timeout(Duration::from_secs(3))
            .initial_stream_window_size(self.window_bytes)
            .initial_connection_window_size(self.window_bytes)
            .max_frame_size(self.frame_bytes)
    }
}

/// Who serves a pipe within the process.
#[derive(Clone, Copy, Debug)]
pub enum ServedBy {
    /// Threads of a runtime of its own.
    Threads,
    /// The thread that calls, while it waits for the answer.
    Caller,
}

/// The calls of one connection, whoever drives its runtime.
#[derive(Clone)]
struct Calls(Grpc<Channel>);

impl Calls {
    fn over(channel: Channel) -> Self {
        Self(
            Grpc::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
    }

    /// Connects with the first call.
    fn to(runtime: &Runtime, endpoint: &str, tuning: Tuning) -> anyhow::Result<Self> {
        let endpoint = tuning.of(Endpoint::from_shared(endpoint.to_owned())?);
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Ok(Self::over(channel))
    }

    async fn call(&mut self, request: &EchoRequest) -> anyhow::Result<()> {
        self.0
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = http::uri::PathAndQuery::from_static(PATH);
        let message = Request::new(request.payload.clone());
        let answer = self.0.unary(message, path, ProstCodec::default()).await?;
        let answer: Bytes = answer.into_inner();
        anyhow::ensure!(
            answer.len() == request.answer_bytes,
            "the echo answered {} bytes instead of {}",
            answer.len(),
            request.answer_bytes
        );
        Ok(())
    }
}

/// A client whose calls are driven by the thread that makes them, together with the threads of the runtime if it has some.
pub struct EchoClient {
    runtime: Runtime,
    calls: Calls,
    /// What serves a pipe; ends after the client.
    _server: Option<Runtime>,
}

impl EchoClient {
    /// As the VFS does it.
    pub fn new(endpoint: &str) -> anyhow::Result<Self> {
        Self::tuned(endpoint, Tuning::AS_IT_IS)
    }

    /// With a connection that is set otherwise.
    pub fn tuned(endpoint: &str, tuning: Tuning) -> anyhow::Result<Self> {
        Self::on(current_thread()?, endpoint, tuning)
    }

    /// With threads that read and write the socket; the calling thread has the call itself.
    pub fn with_threads(endpoint: &str) -> anyhow::Result<Self> {
        Self::on(threads()?, endpoint, Tuning::AS_IT_IS)
    }

    fn on(runtime: Runtime, endpoint: &str, tuning: Tuning) -> anyhow::Result<Self> {
        let calls = Calls::to(&runtime, endpoint, tuning)?;
        Ok(Self {
            runtime,
            calls,
            _server: None,
        })
    }

    /// With an echo in this process, at the other end of a pipe of memory.
    pub fn in_process(served_by: ServedBy) -> anyhow::Result<Self> {
        let runtime = current_thread()?;
        let server = match served_by {
            ServedBy::Threads => Some(threads()?),
            ServedBy::Caller => None,
        };
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        server.as_ref().unwrap_or(&runtime).spawn(serve_pipe(far));
        let mut near = Some(near);
        let connector = tower::service_fn(move |_: http::Uri| {
            let near = near.take().map(TokioIo::new);
            async move { near.ok_or_else(|| std::io::Error::other("a pipe is connected once")) }
        });
        let endpoint = Tuning::AS_IT_IS.of(Endpoint::from_static("http://echo.invalid"));
        let channel = runtime.block_on(async { endpoint.connect_with_connector_lazy(connector) });
        Ok(Self {
            runtime,
            calls: Calls::over(channel),
            _server: server,
        })
    }

    /// One call.
    pub fn call(&mut self, request: &EchoRequest) -> anyhow::Result<()> {
        self.runtime.block_on(self.calls.call(request))
    }

    /// So many calls, and so many of them under way at a time.
    pub fn call_many(
        &mut self,
        request: &EchoRequest,
        calls: usize,
        at_once: usize,
    ) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut under_way = JoinSet::new();
            for _ in 0..calls {
                if under_way.len() >= at_once {
                    one_of(&mut under_way).await?;
                }
                let (mut connection, request) = (self.calls.clone(), request.clone());
                under_way.spawn(async move { connection.call(&request).await });
            }
            while !under_way.is_empty() {
                one_of(&mut under_way).await?;
            }
            Ok(())
        })
    }
}

async fn one_of(under_way: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    match under_way.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

/// A client whose calls are made by a thread of its own: the caller sends what he wants over a channel and blocks on the answer.
pub struct Worker {
    /// Ends the thread when it is dropped.
    requests: Option<UnboundedSender<(EchoRequest, SyncSender<anyhow::Result<()>>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    pub fn start(endpoint: &str) -> anyhow::Result<Self> {
        let runtime = current_thread()?;
        let mut calls = Calls::to(&runtime, endpoint, Tuning::AS_IT_IS)?;
        let (requests, mut wanted) = unbounded_channel::<(EchoRequest, SyncSender<_>)>();
        let thread = std::thread::Builder::new()
            .name("bench-worker".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    while let Some((request, answer)) = wanted.recv().await {
                        // Who asked waits for it.
                        let _ = answer.send(calls.call(&request).await);
                    }
                });
            })?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
        })
    }

    /// One call.
    pub fn call(&mut self, request: &EchoRequest) -> anyhow::Result<()> {
        let ended = || anyhow!("the worker has ended");
        let (answer, answered) = mpsc::sync_channel(1);
        let requests = self.requests.as_ref().ok_or_else(ended)?;
        requests
            .send((request.clone(), answer))
            .map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn current_thread() -> anyhow::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime could not start")
}

fn threads() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("the runtime could not start")
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::bench::echo::serve_tcp;

    /// An echo on a thread of its own, for as long as the test runs.
    fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            current_thread().unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                serve_tcp(listener, true).await
            })
        });
        format!("http://{address}")
    }

    /// Answered with other bytes than it expects.
    fn wrong() -> EchoRequest {
        EchoRequest {
            answer_bytes: 17,
            ..EchoRequest::new(8192, 16)
        }
    }

    #[test]
    fn every_way_to_call_is_answered_and_tells_a_wrong_answer() {
        let endpoint = echo();
        let nagle = Tuning {
            nodelay: false,
            ..Tuning::AS_IT_IS
        };
        for mut client in [
            EchoClient::new(&endpoint).unwrap(),
            EchoClient::tuned(&endpoint, nagle).unwrap(),
            EchoClient::with_threads(&endpoint).unwrap(),
            EchoClient::in_process(ServedBy::Threads).unwrap(),
            EchoClient::in_process(ServedBy::Caller).unwrap(),
        ] {
            client.call(&EchoRequest::new(8192, 16)).unwrap();
            // More than the pipe holds.
            client.call(&EchoRequest::new(0, 3 << 20)).unwrap();
            client.call(&wrong()).unwrap_err();
        }
        let mut worker = Worker::start(&endpoint).unwrap();
        worker.call(&EchoRequest::new(8192, 16)).unwrap();
        worker.call(&wrong()).unwrap_err();
    }

    #[test]
    fn many_calls_are_all_answered_and_a_wrong_answer_is_told() {
        let mut client = EchoClient::in_process(ServedBy::Caller).unwrap();
        let request = EchoRequest::new(0, 100_000);
        client.call_many(&request, 20, 8).unwrap();
        client.call_many(&request, 3, 8).unwrap();
        client.call_many(&wrong(), 1, 8).unwrap_err();
    }

    /// What a client says to a server that listens only: the value of each of its settings, and by how much it opens the window of
    /// the connection (RFC 9113, sections 3.4, 6.5 and 6.9).
    fn said(tuning: Tuning) -> (Vec<(u16, u32)>, u32) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let calling = std::thread::spawn(move || {
            let mut client = EchoClient::tuned(&endpoint, tuning).unwrap();
            client.call(&EchoRequest::new(0, 16)).unwrap_err();
        });
        let (mut socket, _) = listener.accept().unwrap();
        drop(listener);
        // Empty settings: without them the client waits with its call.
        socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
        socket.read_exact(&mut [0; 24]).unwrap();
        let (mut settings, mut more) = (Vec::new(), 0);
        loop {
            let mut head = [0; 9];
            socket.read_exact(&mut head).unwrap();
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut body = vec![0; length];
            socket.read_exact(&mut body).unwrap();
            match head[3] {
                4 => settings.extend(body.chunks_exact(6).map(|setting| {
                    let value = setting[2..].try_into().unwrap();
                    (
                        u16::from_be_bytes([setting[0], setting[1]]),
                        u32::from_be_bytes(value),
                    )
                })),
                8 => more = u32::from_be_bytes(body[..4].try_into().unwrap()),
                // The call itself.
                _ => break,
            }
        }
        drop(socket);
        calling.join().unwrap();
        (settings, more)
    }

    #[test]
    fn windows_and_frames_reach_the_server() {
        let (settings, more) = said(Tuning::AS_IT_IS);
        assert!(settings.contains(&(4, 16 << 20)), "{settings:?}");
        assert!(settings.contains(&(5, 64 << 10)), "{settings:?}");
        assert_eq!(more, (16 << 20) - 65_535);
        let (settings, more) = said(Tuning {
            window_bytes: 65_535,
            frame_bytes: 16 << 10,
            nodelay: true,
        });
        assert!(settings.contains(&(4, 65_535)), "{settings:?}");
        assert!(settings.contains(&(5, 16 << 10)), "{settings:?}");
        assert_eq!(more, 0);
    }
}
