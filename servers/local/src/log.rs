//! The log: what makes a commit durable with one sync, so that the engine needs none of its own.
//!
//! The engine runs without syncs. What a transaction of it puts and deletes is first appended to the log and synced, then committed to the
//! engine, which only writes to the cache of the operating system. Now and then everything so far is synced in the background: a
//! *checkpoint*. Opening goes back to the last checkpoint and does again what the log has since.
//!
//! # Files
//! * `data.mdb`: the engine's. It never writes to a page that its root, or the root of an open read transaction, reaches; a
//!   freed page is used again only when no reader is as old as the transaction that freed it (LMDB, `mdb_page_alloc`, `mdb_find_oldest`). Its
//!   two roots are the first two pages, transaction T in the place T & 1 (`mdb_env_write_meta`), and are all that is ever written in place.
//! * `log.0`, `log.1`: records, one for each transaction, at multiples of 4 KiB, in one file until a checkpoint begins, then in the other. They
//!   are as long as they will be, and written once, before they are used: overwriting needs no sync of the file system's own tables.
//! * `checkpoint`: two slots, each with the number of a transaction S, both roots as they were then, and which log file has what is after S.
//!
//! A record has the number of its transaction in the engine, the *run* (a random number of this opening of the store), its length, CRC-32 of its body, of
//! its header, and that of the record before it.
//!
//! # States
//! ```text
//!             begin: roots of T copied, T pinned, the log goes on in the other file
//!   Settled(S) ------------------------------------------------------------------> UnderWay(S, T)
//!       ^                                                                             | data.mdb synced
//!       |   S let go, its log file free                                               | slot 0 := T, synced
//!       +-----------------------------------------------------------------------------+ slot 1 := T, synced
//!
//!   Opening: slots -> records after S -> roots of S put back, synced -> engine opened, S pinned -> records done again -> checkpoint, closed
//!            -> a new run in the engine and in the log files -> checkpoint, serving
//! ```
//! A failed write or sync leads from any of them to Failed, where nothing is written, until the store is opened anew.
//!
//! # Invariants
//! * **LOG1** A record is durable before its transaction is committed to the engine: nothing is answered, and nothing is shown to a reader,
//!   that a loss of power takes back. (Committing first would show it before: pages of a version that is gone afterwards, and whose number another gets.)
//! * **LOG2** A record is written when the one before it is durable, into blocks of its own, which are not written again while a slot
//!   needs them. So at most one can be torn, the last one, of which nobody was told; one that is not whole *and has whole ones behind
//!   it* was acknowledged and is damaged: the store is refused (Corrupt), nothing behind it is dropped in silence.
//! * **LOG3** While a slot names S a read transaction of S is open: no page that S reaches is written. With its roots put back S is
//!   there, whatever else was written to the file or lost, in any order; what is free in S may have any content.
//! * **LOG4** S is let go, and its log file written anew, when *both* slots name a later one. So each whole slot can be opened from: one of them may be
//!   torn or damaged at any time. A slot is written when the data that it names is synced, and the second when the first is.
//! * **LOG5** Numbers in the log are those of the engine, one by one; no transaction is without one. A root of the engine in the file with a higher number than
//!   the last record tells that the log has lost one (it was cut short, is an older copy, or its last record is damaged);
//!   one that is lower than S, that the file is an older copy than the checkpoint. Both are refused. The run is a row of the engine,
//!   in the slots, and in the header of each log file: files of different stores, copies or times do not go together, and are refused.
//!   What was never acknowledged tells nothing: of a run that is closed a torn record, or a mark without its transaction, may be left.
//! * **LOG6** Opening is one path, after a stop, a kill and a loss of power. It can end anywhere and begin again: until its checkpoint is
//!   in a slot it writes only roots, and pages that S does not reach. What it builds on it first makes durable: after a sync that failed the cache
//!   of the operating system has what the disk may not have, so slots, roots and the last record are written again, as they are, and synced. So are
//!   the names of the log files, before a slot needs them. What is written again in place has the same bytes, so that a sector may be the old or the
//!   new one. And the disk may have what the cache has not, a root whose write failed: so roots are
//!   synced before any page is written.
//! * **LOG7** A transaction that does not fit a record (stagings, large groups) is announced by a *mark* in the log with its number T; then
//!   the engine commits it with syncs of its own, data before root, and a checkpoint of T is made before anything else. If the mark is the last record and
//!   the file has the root T, T is whole and is the base; if it has not, T never was. What the log alone has is synced before the mark. Where
//!   reads have all places (LOG10) it is answered before that checkpoint, and until then mark and root are all that tells of it.
//! * **LOG8** What the engine refuses after it was logged (no room: `room.rs`) is taken back in the log, durably, before that is
//!   answered; the next record takes its number and its place. So is a record that itself finds no room. Where the process dies before that an
//!   opening finds the record, and has to do it: so while it does again what the log has the engine's file may be larger than its largest size.
//! * **LOG9** After a failed sync, and a failed write that was not for want of room, nothing is written, nor where a slot finds no room
//!   (LOG4 has to have both): no checkpoint follows one that failed, since
//!   an error is told once to each open file, and the next sync of it succeeds. So committer and thread of checkpoints, which sync `data.mdb` at the same
//!   time, have it open each by itself, and no slot is written after either was told. After a failed sync of `data.mdb` nothing
//!   is read either: pages that were committed since the last checkpoint may have been lost from the cache, and older ones be read in their
//!   place. A sync that the engine makes for a large transaction, and whose failure it does not tell from that of a write, is asked for once more.
//! * **LOG10** A checkpoint begins when half of a log file is used, when as much was written as the store was opened with (16 MiB), or [`MOST_AGE`] after
//!   the first commit since: so the file grows by what is pinned meanwhile and no more, and a store that is left alone needs no log. A
//!   commit waits for one only when the log file is full, or has a mark. Where reads have all places of the engine none can begin: then it is
//!   made later, and a commit that would have to wait for it is refused. Where room is short one is made before each transaction, so that
//!   nothing is pinned (ROOM6).
//!
//! # Attacked
//! * *Loss of power in a commit.* Before the sync of the log ends: the record is torn or whole, nobody was told; LOG2. After it: it is done
//!   again. Pages of the engine are there in any part: LOG3.
//! * *In a checkpoint.* Data is synced with everything up to T and perhaps more: S is whole and the log behind it too. Slot 0 torn: slot 1
//!   has S. Slot 0 has T, slot 1 torn or S: T, whose log is the other file. In none of these was a page of S or of T written, nor their log.
//! * *In an opening.* Slots first get what they have; roots are put back by each opening; doing again starts over from S. The first
//!   transaction of the new run is in no log: between it and the slots the file may have a root S + 1 beside a slot that says *closed*, and no other.
//! * *Roots are torn or reordered.* They are not believed: the slots have them. Only their numbers are evidence (LOG5): a root
//!   with number n was written when record n was durable, or after the mark n.
//! * *The free list.* It is a tree of the engine like the other, reached from its root: LOG3 is of it too. Its head in memory is of a
//!   transaction, and is read anew by the next.
//! * *Long readers* hold back the same pages as ever. *The engine's lock file* is made anew by the only process that has the directory; where another
//!   program keeps it open it has the number of a root that was taken back, and the opening is refused.
//! * *A sync fails while others go on.* The thread of checkpoints is told: a commit may be in the log by then, and is answered; it begins no checkpoint.
//!   The committer is told: the thread sees it before each slot, and is told by its own open file. What reads meanwhile is in README.md, "What is not".
//! * *The log's last record rots before a restart.* Like a torn one: only the root of the engine tells (LOG5), if it was written back in time. It is exposed
//!   until the checkpoint has ended that begins [`MOST_AGE`] after it, or after the one that is under way then: with that the record is not needed.

mod checkpoints;
pub(crate) mod files;
pub(crate) mod opening;
pub(crate) mod record;
pub(crate) mod slots;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use heed::{Env, MdbError, WithoutTls};
use pagewire_server::store::StoreError;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::time::Instant;

use crate::LocalOptions;
use crate::engine::{ReadTxn, WriteError};
use crate::faults::Faults;
use crate::roots::{self, Roots};
use checkpoints::{Job, Pin, Worker};
use files::{Files, NotWritten};
use record::Changes;
use slots::{Checkpoint, Slots};

/// How long a commit is in the log alone (LOG10).
pub(crate) const MOST_AGE: Duration = Duration::from_secs(2);
/// Where the next look at a checkpoint under way is enough.
const NEXT_LOOK: Duration = Duration::from_millis(20);

/// The log of an open store.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    /// The engine's file, opened by itself: what was told to the thread of checkpoints is told here too (LOG9).
    data: File,
    /// Size of a page of that.
    page_bytes: u64,
    /// Bytes that the engine writes, about, from one checkpoint to the next (LOG10). As many are pinned.
    checkpoint_bytes: u64,
    /// Ends with this.
    jobs: Option<Sender<Job>>,
    worker: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// A checkpoint ended.
    ended: Condvar,
    /// See LOG9.
    is_unreadable: AtomicBool,
    faults: Option<Arc<Faults>>,
}

#[derive(Debug)]
struct State {
    files: Files,
    /// What the slots name.
    pin: Option<Pin>,
    /// Of the last transaction of the engine.
    number: u64,
    /// Since the last checkpoint began: when the first transaction was, and what all wrote.
    since: Option<Instant>,
    work: u64,
    /// The same of the one that is under way.
    work_before: u64,
    /// The last record is a mark of this transaction: nothing is written behind it (LOG7).
    mark: Option<u64>,
    is_under_way: bool,
    failed: Option<String>,
}

impl Log {
    /// Of a store that is opened, whose slots name what is pinned, and whose files are those of this run, with nothing in them. The engine's
    /// file for the thread of checkpoints, and for the committer, neither of which is a duplicate of the other.
    pub(crate) fn new(
        files: Files,
        slots: Slots,
        [checkpoints, data]: [File; 2],
        pin: ReadTxn<'static>,
        options: &LocalOptions,
    ) -> std::io::Result<Self> {
        let number = pin.id() as u64;
        let page_bytes = roots::page_bytes(&data)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                files,
                pin: Some(Pin(pin)),
                number,
                since: None,
                work: 0,
                work_before: 0,
                mark: None,
                is_under_way: false,
                failed: None,
            }),
            ended: Condvar::new(),
            is_unreadable: AtomicBool::new(false),
            faults: options.faults.clone(),
        });
        let (jobs, received) = channel();
        let worker = Worker {
            shared: Arc::clone(&shared),
            slots,
            data: checkpoints,
        };
        let worker = std::thread::Builder::new()
            .name("pagewire-checkpoint".to_owned())
            .spawn(move || worker.run(&received))?;
        Ok(Self {
            shared,
            data,
            page_bytes,
            checkpoint_bytes: options.checkpoint_bytes,
            jobs: Some(jobs),
            worker: Some(worker),
        })
    }

    /// What the engine committed may be lost from the cache (LOG9).
    pub(crate) fn is_unreadable(&self) -> bool {
        self.shared.is_unreadable.load(Ordering::Acquire)
    }

    /// Whether anything may be written: whoever does not append is not told otherwise (LOG9).
    pub(crate) fn check(&self) -> Result<(), WriteError> {
        self.writable().map(drop)
    }

    /// Bytes of the engine's file, about, that are free and cannot be used before the next checkpoint.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        let state = self.shared.state.lock();
        state.work + state.work_before
    }

    /// Makes a transaction durable, or its mark, before it is committed to the engine (LOG1, LOG7).
    pub(crate) fn append(
        &self,
        env: &Env<WithoutTls>,
        number: u64,
        changes: Changes,
    ) -> Result<(), WriteError> {
        let mut state = self.writable()?;
        if state.mark.is_some() || !state.files.has_room(&changes) {
            // The only wait of a commit for a checkpoint (LOG10).
            self.wait(&mut state)?;
            let is_full = !state.files.has_room(&changes);
            if (state.mark.is_some() || is_full) && !self.begin(&mut state, env, false, is_full)? {
                return Err(busy());
            }
            if state.mark.is_some() {
                self.wait(&mut state)?;
            }
        }
        if number != state.number + 1 {
            let why = format!("transaction {number} follows {}", state.number);
            return Err(state.fail(why));
        }
        if changes.is_large() && state.work + state.work_before > 0 {
            // So that a sync of the engine's own that fails loses nothing but what it is about to commit (LOG9).
            let synced = self.data.sync_data();
            synced.map_err(|error| self.shared.lose(&mut state, &error))?;
        }
        state.work += changes.work();
        match state.files.append(number, changes) {
            Ok(()) => Ok(()),
            Err(NotWritten::NoRoom(error)) => Err(WriteError::Refused(StoreError::Full(format!(
                "the log cannot be written, nothing was applied; make room on the disk: {error}"
            )))),
            Err(NotWritten::Failed(error)) => Err(state.fail_to_write(&error)),
        }
    }

    /// The engine refused what was appended last (LOG8). Of a large one a sync may be what failed: whether one did is told to each
    /// open file, so that it shows here too (LOG9).
    pub(crate) fn take_back(&self, is_large: bool) -> Result<(), WriteError> {
        let mut state = self.shared.state.lock();
        if is_large {
            let synced = self.data.sync_data();
            synced.map_err(|error| self.shared.lose(&mut state, &error))?;
        }
        let taken = state.files.take_back();
        taken.map_err(|error| state.fail_to_write(&error))
    }

    /// The engine failed, or is not where the log is.
    pub(crate) fn fail(&self, why: String) -> WriteError {
        self.shared.state.lock().fail(why)
    }

    /// The same, and a sync of the engine's file may be what failed (LOG9).
    pub(crate) fn lose(&self, why: String) -> WriteError {
        self.shared.is_unreadable.store(true, Ordering::Release);
        self.fail(why)
    }

    /// The engine has what was appended last. Begins a checkpoint where one is due.
    pub(crate) fn committed(
        &self,
        env: &Env<WithoutTls>,
        number: u64,
        is_large: bool,
    ) -> Result<(), WriteError> {
        let mut state = self.shared.state.lock();
        state.number = number;
        state.since.get_or_insert_with(Instant::now);
        if is_large {
            state.mark = Some(number);
        }
        let is_half_used = state.files.is_half_used();
        let is_due = is_half_used || state.work >= self.checkpoint_bytes || state.is_old();
        // Where one failed meanwhile this one is answered, since the log has it, and is the last (LOG9).
        if is_due && !state.is_under_way && state.failed.is_none() {
            self.begin(&mut state, env, false, is_half_used)?;
        }
        Ok(())
    }

    /// When a checkpoint is due for its age; `None` where there is nothing to make one of.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        let state = self.shared.state.lock();
        let age = state.since?.elapsed();
        match state.failed {
            Some(_) => None,
            None if state.is_under_way => Some(MOST_AGE.saturating_sub(age).max(NEXT_LOOK)),
            None => Some(MOST_AGE.saturating_sub(age)),
        }
    }

    /// Begins a checkpoint in the background, if one is due for its age.
    pub(crate) fn begin_if_old(&self, env: &Env<WithoutTls>) -> Result<(), WriteError> {
        let mut state = self.writable()?;
        if state.is_old() && !state.is_under_way && !self.begin(&mut state, env, false, false)? {
            // Another time: there may be nothing else to wake the committer for.
            state.since = Some(Instant::now());
        }
        Ok(())
    }

    /// Makes a checkpoint of everything, and waits for it. Nothing is pinned but the newest transaction then.
    pub(crate) fn checkpoint(&self, env: &Env<WithoutTls>) -> Result<(), WriteError> {
        let mut state = self.writable()?;
        self.wait(&mut state)?;
        if state.since.is_some() || state.work > 0 {
            if !self.begin(&mut state, env, false, false)? {
                return Err(busy());
            }
            self.wait(&mut state)?;
        }
        Ok(())
    }

    /// Ends: with a checkpoint that needs no log, unless something failed. Nothing is written afterwards.
    pub(crate) fn close(&mut self, env: &Env<WithoutTls>) {
        let closed = (|| {
            let mut state = self.writable()?;
            self.wait(&mut state)?;
            match self.begin(&mut state, env, true, false)? {
                true => self.wait(&mut state),
                false => Err(busy()),
            }
        })();
        // The next opening goes on from the log.
        match closed {
            Ok(()) => {}
            Err(WriteError::Medium(why)) => {
                tracing::warn!(why, "the store is not closed cleanly");
            }
            Err(WriteError::Refused(error)) => {
                tracing::warn!(%error, "the store is not closed cleanly");
            }
        }
        self.end();
    }

    /// Waits for the thread, and lets go of the engine.
    fn end(&mut self) {
        self.jobs = None;
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the thread of checkpoints panicked");
        }
        self.shared.state.lock().pin = None;
    }

    fn writable(&self) -> Result<MutexGuard<'_, State>, WriteError> {
        let state = self.shared.state.lock();
        state.check()?;
        Ok(state)
    }

    /// Until no checkpoint is under way.
    fn wait(&self, state: &mut MutexGuard<'_, State>) -> Result<(), WriteError> {
        while state.is_under_way {
            self.shared.ended.wait(state);
        }
        state.check()
    }

    /// Begins a checkpoint of the last transaction: between commits, where none is under way, and none failed. Answers whether: not where
    /// reads have all places that the engine has, one of which it takes to pin.
    fn begin(
        &self,
        state: &mut State,
        env: &Env<WithoutTls>,
        is_closed: bool,
        grow: bool,
    ) -> Result<bool, WriteError> {
        state.check()?;
        let pin = match env.clone().static_read_txn() {
            Ok(pin) => pin,
            Err(heed::Error::Mdb(MdbError::ReadersFull)) => return Ok(false),
            Err(error) => return Err(state.fail(format!("no checkpoint can be made: {error}"))),
        };
        let roots = Roots::read(&self.data, self.page_bytes);
        let roots = roots.map_err(|error| state.fail(format!("cannot read the roots: {error}")))?;
        let newest = roots.newest().map(|root| root.number);
        if newest != Some(state.number) || pin.id() as u64 != state.number {
            let why = format!("the log is at {}, the engine at {newest:?}", state.number);
            return Err(state.fail(why));
        }
        state.files.switch();
        let checkpoint = Checkpoint {
            number: state.number,
            run: state.files.run(),
            is_closed,
            file: state.files.file,
            previous: state.files.previous,
            lengths: state.files.lengths,
            roots,
        };
        let job = Job {
            checkpoint,
            pin: Pin(pin),
            grow,
        };
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(state.fail("the thread of checkpoints is gone".to_owned()));
        }
        state.is_under_way = true;
        state.since = None;
        state.work_before = std::mem::take(&mut state.work);
        Ok(true)
    }
}

/// Where an opening fails after the log was begun: nothing holds the engine's file afterwards.
impl Drop for Log {
    fn drop(&mut self) {
        self.end();
    }
}

fn busy() -> WriteError {
    WriteError::Refused(StoreError::Unavailable(
        "too many reads at the same time: nothing was applied".to_owned(),
    ))
}

impl State {
    /// Whether anything may be written (LOG9).
    fn check(&self) -> Result<(), WriteError> {
        match &self.failed {
            Some(why) => Err(WriteError::Medium(why.clone())),
            None => Ok(()),
        }
    }

    /// Nothing is written from now on (LOG9).
    fn fail(&mut self, why: String) -> WriteError {
        WriteError::Medium(self.failed.get_or_insert(why).clone())
    }

    fn fail_to_write(&mut self, error: &std::io::Error) -> WriteError {
        self.fail(format!("cannot write to the log: {error}"))
    }

    /// Whether a checkpoint is due for its age.
    fn is_old(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= MOST_AGE)
    }
}

impl Shared {
    /// A sync of the engine's file failed (LOG9).
    fn lose(&self, state: &mut State, error: &std::io::Error) -> WriteError {
        self.is_unreadable.store(true, Ordering::Release);
        state.fail(format!("cannot sync data.mdb: {error}"))
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("state", &self.state)
            .finish()
    }
}
