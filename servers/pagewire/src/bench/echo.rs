//! The floor of every call: a unary gRPC service that answers with as many bytes as it is asked for, and its client.
//!
//! It knows nothing of pages, sessions or stores. The client is driven as the VFS drives its own: a current-thread runtime,
//! entered by the calling thread.

use std::convert::Infallible;
use std::io::Write as _;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use pagewire_server::{bind_tcp, bind_unix};
use tonic::codegen::tokio_stream::StreamExt as _;
use tonic::codegen::tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc as ServerGrpc, NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Larger than any message that a workload makes.
const MESSAGE_BYTES: usize = 64 << 20;
/// As the page server and the VFS set them.
const WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;
const PATH: &str = "/pagewire.bench.Echo/Echo";
/// The request begins with the size of the answer.
const HEADER_BYTES: usize = 4;

#[derive(Clone)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "pagewire.bench.Echo";
}

impl<B> Service<http::Request<B>> for Echo
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = ServerGrpc::new(ProstCodec::default())
                .apply_max_message_size_config(Some(MESSAGE_BYTES), Some(MESSAGE_BYTES));
            Ok(grpc.unary(Answer, request).await)
        })
    }
}

struct Answer;

impl UnaryService<Bytes> for Answer {
    type Response = Bytes;
    type Future = BoxFuture<Response<Bytes>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        Box::pin(async move { answer(&request.into_inner()).map(Response::new) })
    }
}

fn answer(request: &Bytes) -> Result<Bytes, Status> {
    let size = request
        .first_chunk::<HEADER_BYTES>()
        .map(|size| u32::from_le_bytes(*size) as usize)
        .filter(|size| *size <= MESSAGE_BYTES)
        .ok_or_else(|| Status::invalid_argument("the size of the answer is missing"))?;
    Ok(Bytes::from(vec![0x5a; size]))
}

/// Serves until the process is ended; says where on standard output, as `pagewire serve` does.
pub fn serve(listen: &str) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not start")?
        .block_on(async {
            let router = tonic::transport::Server::builder()
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES)
                .tcp_nodelay(true)
                .add_service(Echo);
            match listen.strip_prefix("unix:") {
                Some(path) => {
                    let listener = bind_unix(std::path::Path::new(path)).await?;
                    announce(listen)?;
                    router
                        .serve_with_incoming(UnixListenerStream::new(listener))
                        .await?;
                }
                None => {
                    let (listener, address) = bind_tcp(listen).await?;
                    announce(&address.to_string())?;
                    let incoming = TcpListenerStream::new(listener).map(|accepted| {
                        accepted.and_then(|socket| {
                            socket.set_nodelay(true)?;
                            Ok(socket)
                        })
                    });
                    router.serve_with_incoming(incoming).await?;
                }
            }
            Ok(())
        })
}

fn announce(address: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "pagewire listening on {address} store=echo")?;
    stdout.flush()?;
    Ok(())
}

/// A client of the echo service.
pub struct EchoClient {
    runtime: tokio::runtime::Runtime,
    grpc: tonic::client::Grpc<Channel>,
}

impl EchoClient {
    /// Connects with the first call.
    pub fn new(endpoint: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("the runtime could not start")?;
        let endpoint = Endpoint::from_shared(endpoint.to_owned())?
            .tcp_nodelay(true)
            .connect_timeout(Duration::from_secs(3))
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES);
        let channel = runtime.block_on(async { endpoint.connect_lazy() });
        Ok(Self {
            runtime,
            grpc: tonic::client::Grpc::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        })
    }

    /// One call.
    pub fn call(&mut self, request: &EchoRequest) -> anyhow::Result<()> {
        let answer: Bytes = self.runtime.block_on(async {
            self.grpc
                .ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(PATH);
            let message = Request::new(request.payload.clone());
            let answer = self
                .grpc
                .unary(message, path, ProstCodec::default())
                .await?;
            Ok::<_, Status>(answer.into_inner())
        })?;
        anyhow::ensure!(
            answer.len() == request.answer_bytes,
            "the echo answered {} bytes instead of {}",
            answer.len(),
            request.answer_bytes
        );
        Ok(())
    }
}

/// How much goes to and fro.
#[derive(Clone, Debug)]
pub struct EchoRequest {
    payload: Bytes,
    answer_bytes: usize,
}

impl EchoRequest {
    /// A request and an answer of these sizes.
    pub fn new(request_bytes: usize, answer_bytes: usize) -> Self {
        let mut payload = vec![0xa5; request_bytes.max(HEADER_BYTES)];
        let size = u32::try_from(answer_bytes).unwrap_or(u32::MAX);
        payload[..HEADER_BYTES].copy_from_slice(&size.to_le_bytes());
        Self {
            payload: payload.into(),
            answer_bytes,
        }
    }
}
