//! Lanes: streams of CommitEach that are kept open, each for one commit at a time.
//!
//! ```text
//! (none) ── commit ──▶ in use ── answer ──▶ idle ── commit ──▶ in use
//!                        └── error, deadline, end of the stream ──▶ dropped
//! ```
//! A commit by a lane is one packet of the message alone in each direction; a call of its own has headers both ways, and a stream that is set
//! up and taken down on both sides. What went wrong on a lane says as much as what went wrong with a call: the commit is settled
//! by its id (P5). A lane that the server or a broken connection has closed meanwhile is noticed before anything is sent on it, as a rule;
//! otherwise the outcome is unknown, as with a call on a connection that is just breaking.

use pagewire_proto::pb;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::connect::Stub;

/// Idle lanes that are kept: as many writers at a time as a process has, as a rule.
const KEPT: usize = 8;

/// The idle lanes of a client.
#[derive(Default)]
pub(super) struct Lanes(Mutex<Vec<Lane>>);

struct Lane {
    requests: mpsc::Sender<pb::CommitRequest>,
    answers: Streaming<pb::CommitResponse>,
}

impl Lanes {
    /// Makes a commit that is one message. Whoever stops waiting drops its lane, and with it nothing else.
    pub(super) async fn commit(
        &self,
        stub: &Stub,
        mut message: pb::CommitRequest,
    ) -> Result<pb::CommitResponse, Status> {
        while let Some(mut lane) = self.take() {
            match lane.requests.try_send(message) {
                Ok(()) => {
                    let answer = next(&mut lane.answers).await?;
                    self.keep(lane);
                    return Ok(answer);
                }
                // Closed meanwhile.
                Err(unsent) => message = unsent.into_inner(),
            }
        }
        let (requests, outbound) = mpsc::channel(1);
        // There is room for one. It goes out together with the headers.
        let _ = requests.try_send(message);
        let call = stub
            .clone()
            .commit_each(ReceiverStream::new(outbound))
            .await?;
        let mut answers = call.into_inner();
        let answer = next(&mut answers).await?;
        self.keep(Lane { requests, answers });
        Ok(answer)
    }

    /// Drops the idle ones: their connection is of another time.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    fn take(&self) -> Option<Lane> {
        self.0.lock().pop()
    }

    fn keep(&self, lane: Lane) {
        let mut idle = self.0.lock();
        if idle.len() < KEPT {
            idle.push(lane);
        }
    }
}

async fn next(answers: &mut Streaming<pb::CommitResponse>) -> Result<pb::CommitResponse, Status> {
    let answer = answers.message().await?;
    // Without a reason of the protocol, as the transport says it: nobody knows whether it was applied.
    answer.ok_or_else(|| Status::unavailable("the server ended the stream of commits"))
}
