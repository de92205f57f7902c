//! Commit over one or several databases, and what became of it if the answer was lost (P5).
//!
//! ```text
//! sent --Committed--> applied
//!  |  \--Conflict, refused--> failed (nothing was applied)
//!  |  \--LeaseLost, session or open unknown--> lease asked for again (`regain.rs`) --had--> sent again with a new id
//!  |                                                                             \--> failed (nothing was applied)
//!  |  \--StagingUnknown--> sent again with a new id, all pages in the call
//!  |  \--EncodingRefused--> sent again with a new id, all pages raw
//!  \--no answer--> in question --ResolveCommit--> applied | aborted | record gone
//!                      |                              aborted: sent again with a new id, under leases that are still ours or are had again
//!                      \--deadline--> unsettled: the error says so; settled before anything else begins
//! ```

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::status::Reason;
use pagewire_proto::{Changes, CommitId, Epoch, PageCount, PageNumber, Snapshot};
use tokio::time::Instant;

use super::lease::WriterId;
use super::regain::begin_attempt;
use super::state::Unsettled;
use super::{Database, REOPEN_PAUSE, SLOWEST_TRANSFER, open_for_question, tokio_sleep};
use crate::client::{
    Client, CommitAttempt, CommitPart, CommitResult, Opened, PageSource, Settled, is_held_up,
};
use crate::compression::Encodings;
use crate::error::{CallError, Error, Kind, Result};

/// What one connection adds to a commit.
pub struct CommitMember {
    /// Its database.
    pub database: Arc<Database>,
    /// The connection.
    pub writer: WriterId,
    /// The version on which the transaction was made.
    pub base: Snapshot,
    /// Its pages.
    pub part: CommitPart,
}

/// How long it is asked at least what became of a commit.
const SHORTEST_QUESTION: Duration = Duration::from_secs(1);
/// How often a commit that was resolved as aborted is sent again.
const MAX_RESENDS: usize = 3;
/// How often the deadline of a commit may be set further for an attempt that is sent again: a server that was started again, and once more for what
/// comes at once after that.
const MAX_EXTENSIONS: u32 = 2;

/// Commits all members or none, and returns their new snapshots.
pub fn commit(members: Vec<CommitMember>, timeout: Duration) -> Result<Vec<Snapshot>> {
    let Some(first) = members.first() else {
        return Ok(Vec::new());
    };
    let client = Arc::clone(&first.database.client);
    for member in &members {
        member.database.state.check()?;
        if !Arc::ptr_eq(&member.database.client, &client) {
            return Err(Error::io(format!(
                "{} and {} are on different endpoints: a transaction can't be atomic over both",
                first.database.describe(),
                member.database.describe()
            )));
        }
    }
    let mut databases = Vec::with_capacity(members.len());
    let mut writers = Vec::with_capacity(members.len());
    let mut parts = Vec::with_capacity(members.len());
    let mut bases = Vec::with_capacity(members.len());
    for member in members {
        databases.push(member.database);
        writers.push(member.writer);
        parts.push(member.part);
        bases.push(member.base);
    }
    let patience = timeout.max(client.core.session.commit_patience());
    let mut attempt = CommitAttempt {
        id: new_id()?,
        epochs: vec![Epoch::NONE; parts.len()],
        parts: Arc::new(parts),
        with_stagings: true,
        encodings: client.core.encodings(),
        states: databases
            .iter()
            .map(|database| Arc::clone(&database.state))
            .collect(),
    };
    let transfer = Duration::from_secs(attempt.byte_size() / SLOWEST_TRANSFER);
    let begun = Instant::now();
    // No page is moved for a lease.
    let regained = begin_attempt(&databases, &writers, &mut attempt, begun + patience)?;
    let mut time = Time {
        patience: patience + transfer,
        transfer,
        deadline: begun + patience + transfer,
        extensions: MAX_EXTENSIONS,
    };
    if regained {
        time.has_enough_for_one_more(&client);
    }
    let outcome = settle_attempt(&databases, &writers, &mut attempt, time);
    match outcome {
        Ok(()) => Ok(applied(&databases, &bases, &attempt.parts)),
        Err(Failure::NotApplied(error)) => {
            for database in &databases {
                database.state.commit_failed(None);
            }
            Err(error)
        }
        Err(Failure::Unknown(error, may_be_settled)) => {
            let unsettled = may_be_settled.then(|| Unsettled {
                id: attempt.id,
                participants: attempt.participants(),
                names: databases
                    .iter()
                    .map(|database| database.state.name.clone())
                    .collect(),
            });
            for database in &databases {
                database.state.commit_failed(unsettled.clone());
            }
            Err(error)
        }
    }
}

/// One deadline for the commit and for the question what became of it; the question gets a second of its own.
struct Time {
    /// Of the whole commit.
    patience: Duration,
    /// For the pages of it.
    transfer: Duration,
    deadline: Instant,
    /// How often it may still be set further (P6).
    extensions: u32,
}

impl Time {
    /// An attempt whose answer can't come before its deadline would make an unknown outcome of a certain one: a server that was started
    /// again holds every commit back for as long as a lease of before may be trusted.
    fn has_enough_for_one_more(&mut self, client: &Client) {
        let Some(left) = self.extensions.checked_sub(1) else {
            return;
        };
        let enough = client.core.session.longest_patience() + self.transfer;
        if Instant::now() + enough > self.deadline {
            (self.deadline, self.extensions) = (Instant::now() + enough, left);
        }
    }
}

enum Failure {
    NotApplied(Error),
    /// And whether asking again may tell more.
    Unknown(Error, bool),
}

fn settle_attempt(
    databases: &[Arc<Database>],
    writers: &[WriterId],
    attempt: &mut CommitAttempt,
    mut time: Time,
) -> std::result::Result<(), Failure> {
    let client = &databases[0].client;
    // G1: nothing is under way now.
    let again = |attempt: &mut CommitAttempt, time: &mut Time| {
        attempt.id = new_id()?;
        begin_attempt(databases, writers, attempt, time.deadline)?;
        time.has_enough_for_one_more(client);
        Ok(())
    };
    let mut was_held_up = false;
    for _ in 0..=MAX_RESENDS {
        let answer = client.wait(client.core.commit(attempt, time.deadline));
        // Where this process was held up past its deadline, another one.
        if !was_held_up && is_held_up(time.deadline) {
            (time.deadline, was_held_up) = (Instant::now() + time.patience, true);
        }
        let error = match answer {
            Ok(CommitResult::Committed(_)) => return Ok(()),
            Ok(CommitResult::Conflict { index, head }) => {
                let database = &databases[index];
                let base = attempt.parts[index].base;
                return Err(Failure::NotApplied(Error::snapshot_is_old(
                    &database.describe(),
                    base,
                    head,
                )));
            }
            Ok(CommitResult::LeaseLost { index }) => {
                databases[index].state.lease_lost(attempt.epochs[index]);
                again(attempt, &mut time).map_err(Failure::NotApplied)?;
                continue;
            }
            Err(error) => error,
        };
        if was_refused(&error) {
            if error.reason == Reason::StagingUnknown && attempt.with_stagings {
                // The server may drop a staging whenever it likes. Nothing was applied, and everything is here.
                attempt.with_stagings = false;
                attempt.id = new_id().map_err(Failure::NotApplied)?;
                continue;
            }
            if error.may_be_of_an_encoding() && attempt.encodings != Encodings::NONE {
                // Nothing was applied, and raw pages every server takes.
                attempt.encodings = Encodings::NONE;
                attempt.id = new_id().map_err(Failure::NotApplied)?;
                continue;
            }
            if error.wants_reopen() {
                // Which of the opens, or the session with all of them: the leases went with what it was.
                for (database, epoch) in databases.iter().zip(&attempt.epochs) {
                    database.state.lease_lost(*epoch);
                }
                again(attempt, &mut time).map_err(Failure::NotApplied)?;
                continue;
            }
            return Err(Failure::NotApplied(
                Error::from(error).within(&databases[0].describe()),
            ));
        }
        // The request, or its answer, was lost.
        match resolve(
            databases,
            attempt,
            time.deadline.max(Instant::now() + SHORTEST_QUESTION),
        ) {
            Ok(Settled::Committed(_)) => return Ok(()),
            Ok(Settled::Aborted(epochs)) => {
                for (database, epoch) in databases.iter().zip(&epochs) {
                    database.state.epoch_advanced(*epoch);
                }
                if Instant::now() >= time.deadline {
                    return Err(Failure::NotApplied(Error::io(format!(
                        "{}: no answer within the deadline ({}); the commit was not applied",
                        databases[0].describe(),
                        error.message
                    ))));
                }
                // A lease of ours may be another one than that under which the transaction began: with an open on the way.
                again(attempt, &mut time).map_err(Failure::NotApplied)?;
            }
            Ok(Settled::Unknown(reason)) => {
                return Err(Failure::Unknown(unknown(&databases[0], &reason), false));
            }
            Err(resolve_error) => {
                let reason = format!("{}; then: {resolve_error}", error.message);
                let may_be_settled = databases[0].state.check().is_ok();
                return Err(Failure::Unknown(
                    unknown(&databases[0], &reason),
                    may_be_settled,
                ));
            }
        }
    }
    Err(Failure::NotApplied(Error::io(format!(
        "{}: the commit was lost {} times on its way; it was not applied",
        databases[0].describe(),
        MAX_RESENDS + 1
    ))))
}

fn resolve(
    databases: &[Arc<Database>],
    attempt: &CommitAttempt,
    deadline: Instant,
) -> Result<Settled> {
    let client = &databases[0].client;
    let participants = attempt.participants();
    loop {
        match client.wait(client.core.resolve(attempt.id, &participants, deadline)) {
            Err(error) if error.wants_reopen() && Instant::now() + REOPEN_PAUSE < deadline => {
                // The question is answered only where all of them are open, but for those that were removed.
                let mut reopened = Ok(());
                let mut any = false;
                for database in databases {
                    let one = database.reopen_as_before(deadline);
                    any |= one.is_ok();
                    reopened = reopened.and(one);
                }
                if !any {
                    reopened?;
                }
                client.wait(tokio_sleep(REOPEN_PAUSE));
            }
            Err(error) => return Err(Error::from(error).within(&databases[0].describe())),
            Ok(settled) => return Ok(settled),
        }
    }
}

impl Database {
    /// Settles a commit of an earlier transaction before anything else begins.
    pub(super) fn settle(&self, unsettled: &Unsettled, deadline: Instant) -> Result<()> {
        let core = &self.client.core;
        let own = unsettled
            .participants
            .iter()
            .position(|part| part.database == self.state.id());
        let mut borrowed = Vec::new();
        let settled = self.ask_with_all_open(unsettled, deadline, &mut borrowed);
        for opened in borrowed {
            core.session.close_borrowed(opened.id);
        }
        let settled = settled.map_err(|error| {
            Error::new(
                Kind::OutcomeUnknown,
                format!("{error}; it is still not known whether an earlier commit was applied"),
            )
        })?;
        let epoch = match (&settled, own) {
            (Settled::Aborted(epochs), Some(own)) => Some(epochs[own]),
            _ => None,
        };
        self.state.settled(unsettled.id, epoch);
        Ok(())
    }

    fn ask_with_all_open(
        &self,
        unsettled: &Unsettled,
        deadline: Instant,
        borrowed: &mut Vec<Opened>,
    ) -> Result<Settled> {
        let core = &self.client.core;
        loop {
            match self
                .client
                .wait(core.resolve(unsettled.id, &unsettled.participants, deadline))
            {
                Err(error) if error.wants_reopen() && Instant::now() + REOPEN_PAUSE < deadline => {
                    self.reopen_as_before(deadline)?;
                    self.open_participants(unsettled, deadline, borrowed)?;
                    self.client.wait(tokio_sleep(REOPEN_PAUSE));
                }
                Err(error) => return Err(Error::from(error).within(&self.describe())),
                Ok(settled) => return Ok(settled),
            }
        }
    }

    /// The other databases of an unsettled commit have to be open too. One that no connection of this process has any more is
    /// opened for the question alone.
    fn open_participants(
        &self,
        unsettled: &Unsettled,
        deadline: Instant,
        borrowed: &mut Vec<Opened>,
    ) -> Result<()> {
        for (part, name) in unsettled.participants.iter().zip(&unsettled.names) {
            if part.database == self.state.id() {
                continue;
            }
            match self.client.database_if_open(name) {
                Some(open) if open.state.id() == part.database => {
                    open.reopen_as_before(deadline)?
                }
                _ => {
                    // The server leaves out what is gone, also where another has its name now.
                    borrowed.extend(open_for_question(&self.client, name, deadline)?);
                }
            }
        }
        Ok(())
    }
}

fn applied(databases: &[Arc<Database>], bases: &[Snapshot], parts: &[CommitPart]) -> Vec<Snapshot> {
    let mut heads = Vec::with_capacity(parts.len());
    for ((database, base), part) in databases.iter().zip(bases).zip(parts) {
        let head = Snapshot {
            version: part.base.next(),
            page_size: (part.page_count > PageCount::ZERO).then_some(part.page_size),
            page_count: part.page_count,
        };
        database.state.commit_applied(head, &changed(base, part));
        for page in &part.pages {
            if let PageSource::Memory(content) = &page.source {
                database.put(page.number, head.version, head.version, content.clone());
            }
        }
        heads.push(head);
    }
    heads
}

/// What differs from the base, pages that are gone included: if they come again they are others.
fn changed(base: &Snapshot, part: &CommitPart) -> Changes {
    let gone = base.page_count.get().saturating_sub(part.page_count.get());
    let same_size = base.page_size.is_none_or(|size| size == part.page_size);
    if part.restore.is_some() || !same_size || gone as usize > MAX_CHANGED_PAGES {
        return Changes::All;
    }
    let written = part.pages.iter().map(|page| page.number);
    let cut_off = (part.page_count.get()..base.page_count.get())
        .filter_map(|last| PageNumber::try_from(last + 1).ok());
    Changes::Pages(written.chain(cut_off).collect())
}

/// Whether the server said that the commit was not and will not be applied.
fn was_refused(error: &CallError) -> bool {
    error.explicit
        && match error.reason {
            // The last one says that nothing was applied, but it may be soon: it is settled and sent again.
            Reason::Internal | Reason::Unavailable | Reason::Draining | Reason::Overloaded => false,
            Reason::ProtocolVersion
            | Reason::SessionUnknown
            | Reason::DatabaseNotFound
            | Reason::DatabaseNotOpen
            | Reason::VersionGone
            | Reason::TagNotFound
            | Reason::NameTaken
            | Reason::StagingUnknown
            | Reason::EncodingRefused
            | Reason::Invalid
            | Reason::Limit
            | Reason::Corrupt
            | Reason::StoreFull
            | Reason::Unsupported => true,
        }
}

fn unknown(database: &Database, reason: &str) -> Error {
    Error::new(
        Kind::OutcomeUnknown,
        format!(
            "{}: it is not known whether the commit was applied ({reason}): look before running it again",
            database.describe()
        ),
    )
}

fn new_id() -> Result<CommitId> {
    CommitId::random().map_err(|error| Error::io(error.to_string()))
}
