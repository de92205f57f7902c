//! StagePages calls in the background of a transaction.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::StagingId;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Database, SLOWEST_TRANSFER};
use crate::client::StagePages;
use crate::client::counters::{COUNTERS, CallKind};
use crate::error::CallError;

impl Database {
    /// Sends a call; whoever gives up the receiver ends it. Returns its deadline too.
    pub fn stage(
        &self,
        call: StagePages,
        timeout: Duration,
    ) -> (oneshot::Receiver<Result<(), CallError>>, Instant) {
        let bytes = call.pages.len() as u64 * u64::from(call.page_size.get());
        let deadline = Instant::now() + timeout + Duration::from_secs(bytes / SLOWEST_TRANSFER);
        let (mut sender, answer) = oneshot::channel();
        let core = Arc::clone(&self.client.core);
        COUNTERS.background(CallKind::Stage);
        self.client.spawn(async move {
            let staging = call.staging;
            tokio::select! {
                outcome = core.stage_pages(call, deadline) => {
                    // Nobody may want to know any more.
                    let _ = sender.send(outcome);
                    return;
                }
                () = sender.closed() => {}
            }
            // Its transaction has ended. The server may have begun the staging after the message that dropped it.
            core.session.drop_stagings(&[staging]);
        });
        (answer, deadline)
    }

    /// Waits for a call that was sent by [`Database::stage`]; `None` if its task is gone.
    pub fn wait_for_staging(
        &self,
        answer: &mut oneshot::Receiver<Result<(), CallError>>,
    ) -> Option<Result<(), CallError>> {
        COUNTERS.waited_after_all(CallKind::Stage);
        self.client.wait(answer).ok()
    }

    /// Tells the server, in the background, that these belong to no transaction any more.
    pub fn drop_stagings(&self, stagings: &[StagingId]) {
        self.client.core.session.drop_stagings(stagings);
    }
}
