//! A session of one command: open, ask, close. Its heartbeats go on by themselves, and it ends with a goodbye.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::pb::session_response::Message as News;
use pagewire_proto::{Moment, SessionId, VersionEntry, pb, version};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use super::{Client, refusal, timely};

/// A session with one database open.
pub(super) struct Session {
    pub(super) calls: Client,
    pub(super) id: Bytes,
    pub(super) database: Bytes,
    pub(super) head: pb::Snapshot,
    outbound: mpsc::UnboundedSender<pb::SessionRequest>,
    pins: u64,
}

impl Session {
    /// Begins a session and opens a database that exists.
    pub(super) async fn open(
        mut calls: Client,
        name: &str,
        mode: pb::OpenMode,
    ) -> anyhow::Result<Self> {
        let (id, outbound, _) = begin(&mut calls, "pagewire db").await?;
        let opened = calls
            .open_database(timely(pb::OpenDatabaseRequest {
                session_id: id.clone(),
                name: name.to_owned(),
                mode: mode.into(),
                open_sequence: 1,
                ..Default::default()
            }))
            .await
            .map_err(refusal)
            .with_context(|| format!("database {name}"))?
            .into_inner();
        Ok(Self {
            calls,
            id,
            database: opened.database_id,
            head: opened.head.unwrap_or_default(),
            outbound,
            pins: 0,
        })
    }

    /// The moment, or the newest version.
    pub(super) fn moment(&self, at: Option<Moment>) -> Option<pb::Moment> {
        Some(match at {
            Some(at) => at.into(),
            None => pb::Moment {
                at: Some(pb::moment::At::Version(self.head.version)),
            },
        })
    }

    /// Finds the version of a moment; it stays readable while the session lives.
    pub(super) async fn find(&mut self, at: Option<Moment>) -> anyhow::Result<VersionEntry> {
        self.pins += 1;
        let request = pb::FindVersionRequest {
            session_id: self.id.clone(),
            database_id: self.database.clone(),
            at: self.moment(at),
            pin: true,
            pin_sequence: self.pins,
        };
        let found = self.calls.find_version(timely(request)).await;
        Ok(found.map_err(refusal)?.into_inner().found.try_into()?)
    }

    /// Ends the session; without it the server would wait for its time to be over.
    pub(super) async fn end(self) {
        end(&self.outbound).await;
    }
}

/// Begins a session: its id, the way to its stream, and what the server says of itself. Its heartbeats go on while the way is held.
pub(crate) async fn begin(
    calls: &mut Client,
    client_name: &str,
) -> anyhow::Result<(
    Bytes,
    mpsc::UnboundedSender<pb::SessionRequest>,
    pb::Welcome,
)> {
    let id = SessionId::random()?.to_wire();
    let (outbound, requests) = mpsc::unbounded_channel();
    send(
        &outbound,
        Request::Hello(pb::Hello {
            protocol_major: version::MAJOR,
            protocol_minor: version::MINOR,
            session_id: id.clone(),
            client_name: client_name.to_owned(),
            process: None,
            capabilities: Vec::new(),
            leases: Vec::new(),
            // It stays where it is.
            number: 0,
        }),
    );
    let mut inbound = calls
        .session(UnboundedReceiverStream::new(requests))
        .await
        .map_err(refusal)?
        .into_inner();
    let first = inbound.message().await.map_err(refusal)?;
    let Some(News::Welcome(welcome)) = first.and_then(|first| first.message) else {
        bail!("the server did not answer with a welcome");
    };
    let every = Duration::from_millis(u64::from(welcome.lease_ttl_ms / 3).max(1));
    tokio::spawn(stay(outbound.clone(), inbound, every));
    Ok((id, outbound, welcome))
}

/// Ends a session.
pub(crate) async fn end(outbound: &mpsc::UnboundedSender<pb::SessionRequest>) {
    send(outbound, Request::Goodbye(pb::Goodbye {}));
    // Until the task of the stream has seen its end, so that the goodbye has been read.
    let _ = tokio::time::timeout(Duration::from_secs(1), outbound.closed()).await;
}

fn send(outbound: &mpsc::UnboundedSender<pb::SessionRequest>, message: Request) {
    // Where the stream has ended the next call says why.
    let _ = outbound.send(pb::SessionRequest {
        message: Some(message),
    });
}

/// Keeps the session alive until its stream ends. Nothing that the server tells matters to a session without lease and cache.
async fn stay(
    outbound: mpsc::UnboundedSender<pb::SessionRequest>,
    mut inbound: Streaming<pb::SessionResponse>,
    every: Duration,
) {
    let mut ticks = tokio::time::interval(every);
    let mut sequence = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                sequence += 1;
                // Floors stay where the open put them: one command is short.
                let heartbeat = pb::Heartbeat { sequence, ..Default::default() };
                send(&outbound, Request::Heartbeat(heartbeat));
            }
            news = inbound.message() => {
                if !matches!(news, Ok(Some(_))) {
                    return;
                }
            }
        }
    }
}
