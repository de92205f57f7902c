//! The way to a server: a channel that connects when it is first used, and the credential of each call.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use pagewire_proto::limits::MAX_MESSAGE_BYTES;
use pagewire_proto::pb::page_service_client::PageServiceClient;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::body::PromptEnd;
use super::gather::Gathering;
use crate::error::{Error, Kind, Result};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The largest frame that the server may send: what one write of it and one read of ours move. With the 16 KiB that HTTP/2 begins with, a scan
/// had four times as many of both. Another answer waits behind one frame: 5 ms at 100 Mbit/s.
const FRAME_BYTES: u32 = 64 << 10;

/// The calls of the protocol.
pub(super) type Stub = PageServiceClient<InterceptedService<PromptEnd, Bearer>>;

/// Adds the credential to each call.
#[derive(Clone)]
pub(super) struct Bearer(Option<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// The calls to an endpoint, with a credential. Nothing is connected before the first one. Has to be called inside the runtime.
pub(super) fn stub(endpoint: &str, token: Option<&str>) -> Result<Stub> {
    let bearer = match token {
        None => None,
        Some(token) => Some(format!("Bearer {token}").parse().map_err(|_| {
            Error::new(
                Kind::CantOpen,
                "the token is not printable ASCII".to_owned(),
            )
        })?),
    };
    let channel = PromptEnd(connect_lazily(endpoint)?);
    Ok(PageServiceClient::with_interceptor(channel, Bearer(bearer))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

fn connect_lazily(endpoint: &str) -> Result<Channel> {
    let wrong = |error: tonic::transport::Error| {
        Error::new(Kind::CantOpen, format!("endpoint {endpoint:?}: {error}"))
    };
    let tune = |endpoint: Endpoint| {
        endpoint
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
    };
    if let Some(path) = endpoint.strip_prefix("unix:") {
        let path = path.to_owned();
        let connector = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(|socket| TokioIo::new(Gathering::new(socket)))
            }
        });
        let named = Endpoint::from_static("http://pagewire.invalid");
        return Ok(tune(named).connect_with_connector_lazy(connector));
    }
    let parsed = Endpoint::from_shared(endpoint.to_owned()).map_err(wrong)?;
    #[cfg(feature = "simulation")]
    if let Some(world) = crate::simulation::world() {
        let connector = tower::service_fn(move |uri: http::Uri| {
            let connecting =
                world.connect(uri.authority().map_or("", |authority| authority.as_str()));
            async move { Ok::<_, std::io::Error>(TokioIo::new(Gathering::new(connecting.await?))) }
        });
        return Ok(tune(parsed).connect_with_connector_lazy(connector));
    }
    let mut http = HttpConnector::new();
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_TIMEOUT));
    // What the scheme means is decided by the endpoint.
    http.enforce_http(false);
    let connector = tower::service_fn(move |uri: http::Uri| {
        let connecting = tower::Service::call(&mut http, uri);
        async move {
            let socket = connecting.await?.into_inner();
            Ok::<_, <HttpConnector as tower::Service<http::Uri>>::Error>(TokioIo::new(
                Gathering::new(socket),
            ))
        }
    });
    Ok(tune(parsed).connect_with_connector_lazy(connector))
}
