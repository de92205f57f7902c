//! The floor of every call: a unary gRPC service that answers with as many bytes as it is asked for.
//!
//! It knows nothing of pages, sessions or stores. Its clients are in `callers.rs`.

use std::convert::Infallible;
use std::io::Write as _;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::Bytes;
use pagewire_server::{bind_tcp, bind_unix};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tonic::codegen::tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::codegen::tokio_stream::{self, StreamExt as _};
use tonic::codegen::{Body, BoxFuture, Service, StdError, http};
use tonic::server::{Grpc as ServerGrpc, NamedService, UnaryService};
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// Larger than any message that a workload makes.
pub const MESSAGE_BYTES: usize = 64 << 20;
/// As the page server sets them.
const WINDOW_BYTES: u32 = 16 << 20;
const FRAME_BYTES: u32 = 1 << 20;
/// Of the only method.
pub const PATH: &str = "/pagewire.bench.Echo/Echo";
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
pub fn serve(listen: &str, nodelay: bool) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not start")?
        .block_on(async {
            match listen.strip_prefix("unix:") {
                Some(path) => {
                    let listener = bind_unix(std::path::Path::new(path)).await?;
                    announce(listen)?;
                    router()
                        .serve_with_incoming(UnixListenerStream::new(listener))
                        .await?;
                }
                None => {
                    let (listener, address) = bind_tcp(listen).await?;
                    announce(&address.to_string())?;
                    serve_tcp(listener, nodelay).await?;
                }
            }
            Ok(())
        })
}

/// Serves a TCP listener until the runtime ends.
pub async fn serve_tcp(listener: TcpListener, nodelay: bool) -> anyhow::Result<()> {
    let incoming = TcpListenerStream::new(listener).map(|accepted| {
        accepted.and_then(|socket| {
            socket.set_nodelay(nodelay)?;
            Ok(socket)
        })
    });
    Ok(router().serve_with_incoming(incoming).await?)
}

/// Serves one connection within the process.
pub async fn serve_pipe(pipe: DuplexStream) -> anyhow::Result<()> {
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(pipe));
    Ok(router().serve_with_incoming(incoming).await?)
}

fn router() -> Router {
    tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .add_service(Echo)
}

fn announce(address: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "pagewire listening on {address} store=echo")?;
    stdout.flush()?;
    Ok(())
}

/// How much goes to and fro.
#[derive(Clone, Debug)]
pub struct EchoRequest {
    /// What is sent.
    pub payload: Bytes,
    /// What the answer has to have.
    pub answer_bytes: usize,
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
