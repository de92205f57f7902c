//! Staging: what a large transaction has written goes to the server while SQLite goes on, so that its COMMIT carries the rest.
//!
//! ```text
//!   Quiet --written > bound, enough unsent--> UnderWay --answered--> Quiet ...
//!     ^                                          | no answer, or refused: the pages are unsent again
//!     +------- another try, another staging -----+
//!                                                \-- no use to try again --> GivenUp: the rest is for COMMIT
//! ```
//! * **G1** COMMIT leaves a page out only if a call that carried its newest content was answered, and it names that call's staging.
//! * **G2** One call at a time. A staging whose call got no answer takes no other: the pages go into the next one, which COMMIT names
//!   after it. So the original of a lost call may still arrive, at any time: what it brings is overridden.
//! * **G3** Every call but the first of a staging says that it continues one: a staging that the server has dropped is never begun anew
//!   without what it had.
//! * **G4** A page that was sent and is cut off by a truncation must not come back: all stagings are dropped, all pages unsent.
//! * **G5** A transaction below the bound stages nothing.
//! * **G6** Staging never fails a transaction. Nobody waits for it longer than for one call with its deadline.
//! * **G7** Pages that SQLite spills again and again are not sent again and again: those written last are kept back, and all calls
//!   together carry at most twice what the transaction has written. Beyond that the rest is for COMMIT.
//! * **G8** However a transaction ends, its stagings end with it: by the commit that names them, or by a message in the background.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::limits::MAX_STAGINGS;
use pagewire_proto::status::Reason;
use pagewire_proto::{PageNumber, StagingId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::overlay::Overlay;
use crate::client::StagePages;
use crate::database::Database;
use crate::error::CallError;

/// Failed calls in a row after which COMMIT is left to carry the rest.
const MAX_FAILURES: u32 = 3;
/// Bytes of pages in one call, for the bound of which they are an eighth.
const LEAST_CALL_BYTES: u64 = 64 << 10;
const MOST_CALL_BYTES: u64 = 8 << 20;
/// Calls' worth of pages that may wait before SQLite has to.
const QUEUE_CALLS: u64 = 2;
/// Calls' worth of pages that are kept back because they were written last (G7).
const KEPT_BACK_CALLS: u64 = 1;
/// How much of what was written may be sent in all (G7).
const MOST_SENT: u64 = 2;

/// How a connection stages.
#[derive(Clone, Copy)]
pub struct StageLimits {
    /// Bytes of pages that COMMIT carries itself.
    pub bound: u64,
    /// Deadline of a call, without its transfer.
    pub timeout: Duration,
}

impl StageLimits {
    fn call_bytes(self) -> u64 {
        (self.bound / 8).clamp(LEAST_CALL_BYTES, MOST_CALL_BYTES)
    }
}

/// What the server has of a transaction. See the file's header.
#[derive(Default)]
pub struct Stager {
    /// Set by the first call.
    database: Option<Arc<Database>>,
    /// Those that COMMIT names, in this order.
    stagings: Vec<StagingId>,
    /// The last of them takes further calls (G2).
    last_goes_on: bool,
    phase: Phase,
    failures: u32,
    sent_bytes: u64,
}

#[derive(Default)]
enum Phase {
    #[default]
    Quiet,
    UnderWay(Call),
    GivenUp,
}

struct Call {
    indexes: Vec<u32>,
    begins_staging: bool,
    deadline: Instant,
    answer: oneshot::Receiver<Result<(), CallError>>,
}

impl Call {
    /// How it ended, if it has or somebody waits.
    fn outcome(&mut self, database: &Database, wait: bool) -> Option<Result<(), CallError>> {
        use oneshot::error::TryRecvError;
        match self.answer.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Closed) => Some(Err(abandoned())),
            Err(TryRecvError::Empty) if !wait => None,
            Err(TryRecvError::Empty) => database
                .wait_for_staging(&mut self.answer)
                .or(Some(Err(abandoned()))),
        }
    }
}

impl Stager {
    /// After a write: sends what has to be sent, takes an answer that has come, and waits for one where too much waits.
    pub fn go_on(overlay: &mut Overlay, database: &Arc<Database>, limits: StageLimits) {
        if overlay.written_bytes() <= limits.bound {
            return;
        }
        let one = limits.call_bytes();
        let is_too_much = overlay.stager.sent_bytes + one > MOST_SENT * overlay.written_bytes();
        // The first call finds the bound unsent: that much may wait at first, and less the longer it goes on.
        let too_long = limits
            .bound
            .saturating_sub(overlay.stager.sent_bytes / 2)
            .saturating_add(QUEUE_CALLS * one)
            .max((KEPT_BACK_CALLS + 1 + QUEUE_CALLS) * one);
        let must_wait = !is_too_much && overlay.unsent_bytes() > too_long;
        if let Phase::UnderWay(call) = &mut overlay.stager.phase {
            let Some(outcome) = call.outcome(database, must_wait) else {
                return;
            };
            Self::ended(overlay, outcome);
        }
        let may_send = matches!(overlay.stager.phase, Phase::Quiet) && !is_too_much;
        if may_send && overlay.unsent_bytes() >= (KEPT_BACK_CALLS + 1) * one {
            Self::send(overlay, database, limits);
        }
    }

    fn send(overlay: &mut Overlay, database: &Arc<Database>, limits: StageLimits) {
        let Some(page_size) = overlay.unit() else {
            return;
        };
        let stager = &mut overlay.stager;
        let begins_staging = !stager.last_goes_on;
        let staging = match stager.stagings.last() {
            Some(last) if stager.last_goes_on => *last,
            _ => match StagingId::random() {
                Ok(id) if stager.stagings.len() < MAX_STAGINGS => id,
                _ => {
                    stager.phase = Phase::GivenUp;
                    return;
                }
            },
        };
        let indexes = overlay.take_unsent(limits.call_bytes());
        let pages = indexes
            .iter()
            .filter_map(|index| {
                Some((
                    PageNumber::try_from(index.checked_add(1)?).ok()?,
                    overlay.source(*index)?,
                ))
            })
            .collect();
        let call = StagePages {
            database: database.state.id(),
            staging,
            continues: !begins_staging,
            page_size,
            pages,
            spill: overlay.spill_file(),
        };
        let (answer, deadline) = database.stage(call, limits.timeout);
        let stager = &mut overlay.stager;
        stager.sent_bytes += limits.call_bytes();
        stager.database.get_or_insert_with(|| Arc::clone(database));
        if begins_staging {
            stager.stagings.push(staging);
        }
        stager.phase = Phase::UnderWay(Call {
            indexes,
            begins_staging,
            deadline,
            answer,
        });
    }

    /// The call under way has ended.
    fn ended(overlay: &mut Overlay, outcome: Result<(), CallError>) {
        let Phase::UnderWay(call) = std::mem::take(&mut overlay.stager.phase) else {
            return;
        };
        let Err(error) = outcome else {
            overlay.stager.last_goes_on = true;
            overlay.stager.failures = 0;
            return;
        };
        overlay.give_back(&call.indexes);
        if error.reason == Reason::StagingUnknown {
            Self::start_again(overlay);
        }
        let stager = &mut overlay.stager;
        stager.last_goes_on = false;
        stager.failures += 1;
        if call.begins_staging
            && let Some(nothing_in_it) = stager.stagings.pop()
            && let Some(database) = &stager.database
        {
            database.drop_stagings(&[nothing_in_it]);
        }
        let is_worth_it = match error.reason {
            // The deadline has passed: the next one would too.
            Reason::Unavailable | Reason::Draining => Instant::now() < call.deadline,
            Reason::StagingUnknown => true,
            _ => false,
        };
        if !is_worth_it || stager.failures >= MAX_FAILURES {
            stager.phase = Phase::GivenUp;
        }
    }

    /// Before COMMIT: takes the answer of the call under way. Whatever is not sent afterwards is for the commit.
    pub fn settle(overlay: &mut Overlay, database: &Arc<Database>) {
        if let Phase::UnderWay(call) = &mut overlay.stager.phase {
            let outcome = call.outcome(database, true).unwrap_or(Err(abandoned()));
            Self::ended(overlay, outcome);
        }
    }

    /// What COMMIT has to name.
    pub fn stagings(&self) -> &[StagingId] {
        &self.stagings
    }

    /// G4: nothing counts as sent any more.
    pub fn start_again(overlay: &mut Overlay) {
        let mut fresh = Stager::default();
        fresh.failures = overlay.stager.failures;
        fresh.sent_bytes = overlay.stager.sent_bytes;
        if matches!(overlay.stager.phase, Phase::GivenUp) {
            fresh.phase = Phase::GivenUp;
        }
        // Dropping the old one tells the server.
        overlay.stager = fresh;
        overlay.forget_sent();
    }

    /// The commit that named them was applied: the server has dropped them (G8).
    pub fn consumed(&mut self) {
        self.stagings.clear();
    }
}

impl Drop for Stager {
    fn drop(&mut self) {
        // Ends the call under way.
        self.phase = Phase::Quiet;
        if let Some(database) = &self.database
            && !self.stagings.is_empty()
        {
            database.drop_stagings(&self.stagings);
        }
    }
}

/// The task of the call is gone with the runtime.
fn abandoned() -> CallError {
    CallError {
        reason: Reason::Unavailable,
        explicit: false,
        may_be_done: true,
        message: "the call was given up".to_owned(),
    }
}
