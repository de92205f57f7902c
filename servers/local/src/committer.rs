//! The committer: one thread that does everything that changes the store, in one order.
//!
//! It takes of what waits (`queue.rs`: commits of many databases, and names, epochs, stagings, questions after lost commits), does it in one
//! transaction of the engine, one after another, each against what those before it left, makes that durable with one sync, and
//! only then answers all: group commit. Readers never come here.
//!
//! * **GRP1** Nothing is answered before it is durable.
//! * **GRP2** An operation looks at everything it needs before it writes anything: a refused one leaves no trace in the transaction of
//!   the others, and damage that it meets is its own. Only a full disk and a failed medium concern a whole group, of which nothing
//!   is applied then.
//! * **GRP3** After a failure of the medium nothing is written any more (C17), nor answered from what the transaction that writes reads. After a full disk everything goes on (`room.rs`).
//! * **GRP4** What is collected beside a group is bounded by [`MOST_BESIDE`], whatever the group wrote. The rest is owed: later groups pay
//!   it, and where much is owed each group is followed by a step. As much is paid in a group as it can write rows of 4 KiB.
//! * **GRP5** Collection by itself waits until nothing was written for `quiet`, so that a lone writer pays for no sync but its own; not
//!   where room is short or much is owed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageSize, StagingId, TagName, Version,
    VersionEntry,
};
use pagewire_server::store::{
    Collected, CommitOutcome, DatabaseCommit, Resolution, Resolve, StoreError,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::LocalOptions;
use crate::collect::Collector;
use crate::engine::{Engine, WriteError};
use crate::faults::{Faults, Place};
use crate::garbage::Garbage;
use crate::queue::{Queue, Waits};
use crate::stagings::{Pages, Staging, Stagings, bytes_of};
use crate::transaction::WriteTxn;

/// Rows that are looked at in one transaction beside something else.
pub(crate) const MOST_BESIDE: usize = 4096;
/// Rows owed from which on a group is followed by a step of its own.
const MUCH_OWED: usize = 64 << 10;

/// How long the committer waits at least, and at most, where there will be something to collect.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the committer does.
#[derive(Debug)]
pub(crate) enum Command {
    Create(DatabaseName, Reply<DatabaseId>),
    Remove(DatabaseName, Reply<DatabaseId>),
    Fence(DatabaseId, Reply<Epoch>),
    Stage(DatabaseId, StagingId, PageSize, Pages, Reply<()>),
    Discard(StagingId, Reply<()>),
    Commit(EncodedCommit, Reply<CommitOutcome>),
    Resolve(Resolve, Reply<Resolution>),
    BeginService(Duration, Reply<Duration>),
    EndService(Reply<()>),
    Protect(DatabaseId, Option<Version>, Vec<Version>, Reply<()>),
    SetTag(DatabaseId, TagName, Moment, bool, Reply<VersionEntry>),
    DeleteTag(DatabaseId, TagName, Reply<bool>),
    Branch(
        DatabaseId,
        Moment,
        DatabaseId,
        DatabaseName,
        Reply<VersionEntry>,
    ),
    Collect(Option<DatabaseId>, Reply<Collected>),
}

/// A commit whose pages are encoded.
#[derive(Debug)]
pub(crate) struct EncodedCommit {
    pub(crate) id: CommitId,
    /// Without their pages, which are beside them.
    pub(crate) databases: Vec<(DatabaseCommit, Pages)>,
}

/// The state of the thread.
#[derive(Debug)]
pub(crate) struct Committer {
    pub(crate) engine: Arc<Engine>,
    pub(crate) options: LocalOptions,
    /// Of this opening of the store: the upper half of epochs and serial numbers.
    pub(crate) generation: u32,
    /// How often databases were fenced since the opening.
    pub(crate) fences: HashMap<DatabaseId, u32>,
    pub(crate) stagings: Stagings,
    pub(crate) serials: u32,
    pub(crate) garbage: VecDeque<Garbage>,
    pub(crate) collector: Collector,
    /// Rows that are to be looked at for those that were written (GRP4).
    pub(crate) owed: usize,
    /// When something was written last.
    pub(crate) busy_at: Instant,
    /// See ROOM5.
    pub(crate) short_of_room: bool,
    /// What the current transaction drops the last of.
    pub(crate) buried: Option<Garbage>,
    /// Stagings that the current transaction consumes.
    pub(crate) consumed: Vec<(StagingId, Staging)>,
    /// What the current transaction makes garbage of.
    pub(crate) doomed: Vec<Garbage>,
    /// Whether the current transaction has anything to make durable.
    pub(crate) dirty: bool,
    /// Since when service began, and how long earlier leases may be trusted from then on.
    pub(crate) service: Option<(tokio::time::Instant, Duration)>,
    /// Why nothing is written any more.
    pub(crate) dead: Option<String>,
}

/// What there is to do.
enum Woken {
    Command(Box<Command>),
    Collect,
    Checkpoint,
    End,
}

impl Woken {
    fn command(command: Command) -> Self {
        Self::Command(Box::new(command))
    }
}

/// An answer that waits for the transaction: sent as it is, or replaced by the error.
type Held = Box<dyn FnOnce(Option<StoreError>)>;

impl Committer {
    /// Works until nobody can send any more.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let mut queue = Queue::default();
        loop {
            let disconnected = loop {
                match commands.try_recv() {
                    Ok(command) => queue.push(command),
                    Err(TryRecvError::Empty) => break false,
                    Err(TryRecvError::Disconnected) => break true,
                }
            };
            if queue.is_empty() {
                if disconnected {
                    return;
                }
                match self.wait(commands) {
                    Woken::Command(command) => queue.push(*command),
                    Woken::Collect => {
                        if self.work_in_ms() == Some(0) {
                            self.collect_by_itself();
                        }
                    }
                    Woken::Checkpoint => {
                        let begun = self.engine.log.begin_if_old(&self.engine.env);
                        if let Err(error) = begun {
                            self.note(error);
                        }
                    }
                    Woken::End => return,
                }
                continue;
            }
            let (group, bytes) = queue.next_group();
            self.do_group(group, bytes);
            if self.stagings.buffered_bytes() > self.options.staging_buffer_bytes {
                self.spill();
            }
            if self.is_pressed() && self.work_in_ms() == Some(0) {
                self.collect_by_itself();
            }
        }
    }

    /// Whether collection waits for no quiet (GRP5).
    fn is_pressed(&self) -> bool {
        self.short_of_room || self.owed > MUCH_OWED
    }

    /// Milliseconds until there is something to collect; `None` for never.
    fn work_in_ms(&self) -> Option<u64> {
        let never = self.options.collect_after_quiet == Duration::MAX;
        match self.dead.is_some() || never {
            true => None,
            false => self.collection_in_ms(),
        }
    }

    /// Waits for a command, until there may be something to collect and it is quiet, or until a checkpoint is due.
    fn wait(&self, commands: &Receiver<Command>) -> Woken {
        let collection = self.collection_in();
        let checkpoint = match self.dead {
            Some(_) => None,
            None => self.engine.log.due_in(),
        };
        let wait = match (collection, checkpoint) {
            (None, None) => {
                return commands.recv().map_or(Woken::End, Woken::command);
            }
            (Some(wait), None) | (None, Some(wait)) => wait,
            (Some(one), Some(other)) => one.min(other),
        };
        match commands.recv_timeout(wait) {
            Ok(command) => Woken::command(command),
            Err(RecvTimeoutError::Disconnected) => Woken::End,
            Err(RecvTimeoutError::Timeout) if checkpoint == Some(wait) => Woken::Checkpoint,
            Err(RecvTimeoutError::Timeout) => Woken::Collect,
        }
    }

    /// How long until there may be something to collect and it is quiet; `None` for ever.
    fn collection_in(&self) -> Option<Duration> {
        let work_ms = self.work_in_ms()?;
        let quiet = match self.is_pressed() {
            true => Duration::ZERO,
            false => {
                let quiet = self.options.collect_after_quiet;
                quiet.saturating_sub(self.busy_at.elapsed())
            }
        };
        Some(match work_ms {
            0 => quiet,
            // The clock may be set while this waits.
            later => Duration::from_millis(later)
                .clamp(SHORTEST_WAIT, LONGEST_WAIT)
                .max(quiet),
        })
    }

    /// The one transaction that writes, so many bytes of rows. Where room for it is short nothing is pinned but what it stands on (ROOM6).
    pub(crate) fn begin<'e>(
        engine: &'e Engine,
        bytes: usize,
        faults: Option<&Faults>,
    ) -> Result<WriteTxn<'e>, WriteError> {
        let txn = engine.write()?;
        let has_room = |txn: &WriteTxn<'_>| {
            let is_short = engine.is_short_of_room(txn, faults)?;
            Ok::<_, StoreError>(!is_short && engine.check_room(txn, bytes as u64, faults).is_ok())
        };
        if engine.log.pinned_bytes() == 0 || has_room(&txn)? {
            return Ok(txn);
        }
        drop(txn);
        engine.log.checkpoint(&engine.env)?;
        Ok(engine.write()?)
    }

    /// Does a group in one transaction, or in some more where an operation spoils one.
    fn do_group(&mut self, group: Vec<Command>, bytes: usize) {
        let (mut rest, mut bytes) = (group, bytes);
        while !rest.is_empty() {
            rest = self.do_in_one(rest, bytes);
            bytes = rest.iter().map(Command::bytes).sum();
        }
    }

    /// Answers what was not looked at: what comes after the operation that spoiled the transaction.
    fn do_in_one(&mut self, group: Vec<Command>, bytes: usize) -> Vec<Command> {
        // A checkpoint may have failed since the last one, beside commits (LOG9).
        if self.dead.is_none()
            && let Err(error) = self.engine.log.check()
        {
            self.note(error);
        }
        if let Some(why) = &self.dead {
            let error = dead(why);
            for command in group {
                match command {
                    // Reads go on, and nothing is dropped any more.
                    Command::Protect(database, floor, pins, reply) => {
                        let engine = Arc::clone(&self.engine);
                        let done = engine
                            .read()
                            .and_then(|txn| self.protect(&txn, database, floor, pins));
                        let _ = reply.send(done);
                    }
                    command => command.refuse(error.clone()),
                }
            }
            return Vec::new();
        }
        let engine = Arc::clone(&self.engine);
        let faults = self.options.faults.clone();
        let mut txn = match Self::begin(&engine, bytes, faults.as_deref()) {
            Ok(txn) => txn,
            Err(error) => {
                let error = self.note(error);
                group.into_iter().for_each(|c| c.refuse(error.clone()));
                return Vec::new();
            }
        };
        let mut room = engine
            .check_room(&txn, bytes as u64, faults.as_deref())
            .err();
        if room.is_some() && group.len() > 1 {
            // One that finds no room must not keep out the others: room is asked for each.
            room = None;
            self.short_of_room = true;
        } else {
            let short = engine.is_short_of_room(&txn, faults.as_deref());
            self.short_of_room = room.is_some() || short.unwrap_or(true);
        }
        let each = self.short_of_room && group.len() > 1;
        self.dirty = false;
        if bytes > 0 {
            self.busy_at = Instant::now();
        }
        let mut taken = 0;
        let mut answers: Vec<Held> = Vec::with_capacity(group.len());
        let mut rest = group.into_iter();
        for command in rest.by_ref() {
            let own = command.bytes();
            if each && own > 0 {
                let needed = (taken + own) as u64;
                room = engine.check_room(&txn, needed, faults.as_deref()).err();
            }
            if let (Some(full), true) = (&room, own > 0) {
                command.refuse(full.clone());
                continue;
            }
            taken += own;
            let (held, broken) = self.execute(&mut txn, command);
            answers.push(held);
            if let Some(error) = broken {
                drop(txn);
                self.fail(error, answers);
                return rest.collect();
            }
        }
        if self.dirty {
            self.busy_at = Instant::now();
        }
        match self.finish(txn) {
            Ok(()) => {
                self.end_burial(true);
                self.consumed.clear();
                self.garbage.extend(self.doomed.drain(..));
                answers.into_iter().for_each(|answer| answer(None));
            }
            Err(error) => self.fail(error, answers),
        }
        Vec::new()
    }

    /// Makes the transaction durable, if it has anything. What it read is not answered where it may have been lost meanwhile.
    fn finish(&mut self, mut txn: WriteTxn<'_>) -> Result<(), WriteError> {
        if !self.dirty {
            return self.engine.log.check();
        }
        // A little in each transaction, so that the dead are buried under constant load too.
        self.collect_some(&mut txn)?;
        self.commit_txn(txn, Place::BeforeCommit, Place::AfterCommit)
    }

    /// The only place where a transaction of the committer becomes durable.
    pub(crate) fn commit_txn(
        &self,
        txn: WriteTxn<'_>,
        before: Place,
        after: Place,
    ) -> Result<(), WriteError> {
        self.pass(before)?;
        self.engine.commit(txn)?;
        self.pass(after)
    }

    fn pass(&self, place: Place) -> Result<(), WriteError> {
        match &self.options.faults {
            Some(faults) => faults.pass(place),
            None => Ok(()),
        }
    }

    /// The transaction is gone: nothing of it was applied, or, where the medium failed, nobody knows.
    fn fail(&mut self, error: WriteError, answers: Vec<Held>) {
        for (id, staging) in std::mem::take(&mut self.consumed) {
            self.stagings.put_back(id, staging);
        }
        self.doomed.clear();
        self.end_burial(false);
        self.collector.reset();
        if let WriteError::Refused(full @ StoreError::Full(_)) = &error {
            self.collector.found_no_room(full.clone());
        }
        let error = self.note(error);
        let others = match &error {
            StoreError::Internal(_) | StoreError::Full(_) => error.clone(),
            _ => interrupted(),
        };
        let mut answers = answers.into_iter().rev();
        if let Some(culprit) = answers.next() {
            culprit(Some(error));
        }
        answers.for_each(|answer| answer(Some(others.clone())));
    }

    /// Remembers a failure of the medium, and says what to answer.
    pub(crate) fn note(&mut self, error: WriteError) -> StoreError {
        match error {
            WriteError::Refused(error) => error,
            WriteError::Medium(why) => {
                tracing::error!(
                    why,
                    "the medium failed: nothing is written until the store is opened anew"
                );
                let error = dead(&why);
                self.dead = Some(why);
                error
            }
        }
    }

    /// Does one operation in the transaction. An error beside the answer means that the transaction cannot be used.
    fn execute(&mut self, txn: &mut WriteTxn<'_>, command: Command) -> (Held, Option<WriteError>) {
        match command {
            Command::Create(name, reply) => held(reply, self.create(txn, name)),
            Command::Remove(name, reply) => held(reply, self.remove(txn, name)),
            Command::Fence(database, reply) => held(reply, self.fence(txn, database)),
            Command::Stage(database, id, size, pages, reply) => {
                held(reply, self.stage(txn, database, id, size, pages))
            }
            Command::Discard(id, reply) => {
                self.discard(id);
                held(reply, Ok(Ok(())))
            }
            Command::Commit(commit, reply) => held(reply, self.commit(txn, commit)),
            Command::Resolve(resolve, reply) => held(reply, self.resolve(txn, &resolve)),
            Command::BeginService(ttl, reply) => held(reply, self.begin_service(txn, ttl)),
            Command::EndService(reply) => held(reply, self.end_service(txn)),
            Command::Protect(database, floor, pins, reply) => {
                held(reply, Ok(self.protect(txn, database, floor, pins)))
            }
            Command::SetTag(database, tag, moment, replace, reply) => {
                held(reply, self.set_tag(txn, database, &tag, &moment, replace))
            }
            Command::DeleteTag(database, tag, reply) => {
                held(reply, self.delete_tag(txn, database, &tag))
            }
            Command::Branch(source, moment, branch, name, reply) => {
                held(reply, self.branch(txn, source, &moment, branch, name))
            }
            Command::Collect(database, reply) => held(reply, self.collect(txn, database)),
        }
    }

    /// Writes all buffered pages of stagings to the engine. If that fails they stay where they are.
    fn spill(&mut self) {
        let engine = Arc::clone(&self.engine);
        let spilled = (|| {
            let bytes = self.stagings.buffered_bytes();
            let faults = self.options.faults.clone();
            let mut txn = Self::begin(&engine, bytes, faults.as_deref())?;
            engine.check_room(&txn, bytes as u64, faults.as_deref())?;
            self.write_buffered(&mut txn)?;
            self.commit_txn(txn, Place::BeforeSpill, Place::AfterSpill)
        })();
        match spilled {
            Ok(()) => {
                self.busy_at = Instant::now();
                self.stagings.spilled();
            }
            Err(error) => {
                let error = self.note(error);
                tracing::warn!(%error, "staged pages stay in memory");
            }
        }
    }
}

/// What an operation of the committer comes to: the inner error left no trace, the outer one spoils the transaction.
pub(crate) type Done<T> = Result<Result<T, StoreError>, WriteError>;

fn held<T: 'static>(reply: Reply<T>, done: Done<T>) -> (Held, Option<WriteError>) {
    let (answer, broken) = match done {
        Ok(answer) => (answer, None),
        Err(error) => (Err(interrupted()), Some(error)),
    };
    let send = move |failure: Option<StoreError>| {
        // Nobody may be waiting any more: what was done stays done.
        let _ = reply.send(failure.map_or(answer, Err));
    };
    (Box::new(send), broken)
}

fn interrupted() -> StoreError {
    StoreError::Unavailable("the transaction was given up, nothing was applied".to_owned())
}

fn dead(why: &str) -> StoreError {
    StoreError::Internal(format!(
        "the medium failed ({why}): open the store anew when it is repaired"
    ))
}

impl Waits for Command {
    fn bytes(&self) -> usize {
        match self {
            Self::Commit(commit, _) => {
                let pages = commit.databases.iter();
                256 + pages.map(|(_, pages)| bytes_of(pages)).sum::<usize>()
            }
            Self::Stage(.., pages, _) => bytes_of(pages),
            Self::Create(..) | Self::Branch(..) | Self::SetTag(..) => 256,
            _ => 0,
        }
    }

    /// A staging is dropped after what was staged into it, also where nobody waits for that any more.
    fn is_of_bulk(&self) -> bool {
        matches!(self, Self::Stage(..) | Self::Discard(..))
    }
}

impl Command {
    /// Answers with an error, nothing done.
    fn refuse(self, error: StoreError) {
        // Nobody may be waiting any more.
        let _ = match self {
            Self::Create(_, reply) | Self::Remove(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Fence(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Stage(.., reply) | Self::Discard(_, reply) | Self::EndService(reply) => {
                reply.send(Err(error)).is_ok()
            }
            Self::Commit(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Resolve(_, reply) => reply.send(Err(error)).is_ok(),
            Self::BeginService(_, reply) => reply.send(Err(error)).is_ok(),
            Self::Protect(.., reply) => reply.send(Err(error)).is_ok(),
            Self::SetTag(.., reply) | Self::Branch(.., reply) => reply.send(Err(error)).is_ok(),
            Self::DeleteTag(.., reply) => reply.send(Err(error)).is_ok(),
            Self::Collect(_, reply) => reply.send(Err(error)).is_ok(),
        };
    }
}
