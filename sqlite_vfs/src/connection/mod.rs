//! One open main database: which snapshot it reads, what it has written, and when that becomes a commit.
//!
//! The lock level of SQLite *is* the state, and what belongs to a level lives inside it:
//!
//! ```text
//!              xLock(SHARED)              xLock(RESERVED..EXCLUSIVE)
//!   Idle --------------------> Reading --------------------------------> Writing --+ FCNTL_SYNC: commit,
//!     ^                         |   ^                                    |  |  ^---+ goes on at the new version
//!     +---- xUnlock(NONE) ------+   +------------ xUnlock(SHARED) -------+  | a commit failed
//!     ^                             ^                                       v
//!     +-----------------------------+------- xUnlock ------------------- Failed
//!
//!   Writing, from FCNTL_SYNC to FCNTL_COMMIT_PHASETWO: SQLite may still fail and roll back
//!     | FCNTL_SYNC again: the rollback, a further version          --> Writing
//!     | that one failed, or SQLite gave up without a rollback      --> Refusing, until the connection is closed
//! ```
//! * **K1** A read transaction sees one version; a write transaction sees that version and what it wrote, nothing else.
//! * **K2** Nothing of a transaction leaves the process before FCNTL_SYNC (or the deletion of the super-journal).
//! * **K3** xUnlock and FCNTL_COMMIT_PHASETWO never commit and never fail.
//! * **K4** After a failed commit the writes of SQLite's rollback are dropped; nothing after that rollback is dropped in silence.
//! * **K5** Leaving Writing drops the overlay and the journal together: a journal never outlives its transaction.
//! * **K6** What SQLite rolls back after its commit point is rolled back: its second FCNTL_SYNC makes a further version with the
//!   content of the one before (none, if there was none). If that can't be done the connection refuses everything and says
//!   that the transaction is there, since the application was told that it had failed.
//!   The same where SQLite rolls back and finds nothing to do so with: with a main database on another VFS, whose super-journal is there.
//! * **K7** Which version a transaction begins with is the view's matter: the newest one, or one that was chosen. The view changes only
//!   while the state is Idle, and nothing is written through a chosen one.
//! * **K8** The counter by which SQLite recognises its cache is never that of a version which it has not read: that version would be taken for
//!   what is in the cache. SQLite remembers the counter that it writes, and its rollback restores the one before with page 1, from the
//!   journal. In the first transaction of a database there is no page 1 to restore: the counter of what was rolled back stays, and the
//!   next commit counts on from there. And whatever it remembers, SQLite puts an empty page 1 into its cache when it looks at an empty
//!   version. So whoever has looked at one finds another counter at his next look that finds pages, unless he has made these pages by a
//!   commit that SQLite does not roll back any more: then they are what is in his cache.

mod commit;
mod cut_off;
mod habit;
#[cfg(not(feature = "fuzzing"))]
mod header;
#[cfg(feature = "fuzzing")]
pub mod header;
mod journal;
mod overlay;
mod pragma;
mod read;
mod rollback;
mod staging;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pagewire_proto::{PageCount, Snapshot, Version};

use crate::client::Owner;
use crate::database::{Database, Early, Looked, Pin, WriterId};
use crate::error::{Error, Kind, Result};
use crate::settings::ConnectionSettings;
use habit::Habit;
use journal::Journal;
use overlay::Overlay;
use read::ReadAhead;
use staging::{StageLimits, Stager};
use view::View;

pub use commit::commit_group;
pub use read::ReadOutcome;

/// SQLite's lock levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockLevel {
    /// No lock.
    None,
    /// Reading.
    Shared,
    /// Going to write.
    Reserved,
    /// Waiting for readers to leave; here nobody has to.
    Pending,
    /// Writing.
    Exclusive,
}

/// See the file's header.
pub struct Connection {
    writer: WriterId,
    /// The connection of SQLite to which this one belongs, where SQLite has said so.
    owner: Option<Owner>,
    database: Arc<Database>,
    settings: ConnectionSettings,
    state: State,
    view: View,
    journal: Option<Journal>,
    journal_exists: Arc<AtomicBool>,
    ahead: ReadAhead,
    habit: Habit,
    /// What came of the lease that the transaction asked for early, until it writes or reads.
    early: Early,
    /// What the transaction has waited in vain for an early lease.
    waited_early: Duration,
    /// The next look at the change counter has to tell SQLite that its cache is stale: we have changed page 1 under it, or K8.
    cache_is_stale: bool,
    /// The same, since SQLite has looked at an empty version (K8), unless it has committed what it has in its cache since.
    has_seen_empty: bool,
    /// The schema cookie of a version: what SQLite read last, or what the last commit wrote.
    schema: Option<(Version, u32)>,
    /// The schema cookie in SQLite's own copy of page 1.
    own_cookie: OwnCookie,
    /// Whether nothing had been written when SQLite began its batch.
    batch_began_clean: bool,
    /// What `PRAGMA journal_mode` answers when a change is refused.
    pub journal_mode: &'static str,
    last_error: Option<Error>,
}

/// SQLite takes in the cookie that we derived at its next look at the change counter. In exclusive locking mode, and under a cursor that
/// stays open, it does not look: what it writes is counted from its own.
#[derive(Default)]
struct OwnCookie {
    /// What it read last, or wrote in a transaction that was applied.
    known: Option<u32>,
    /// What it wrote in the last transaction that was to be applied as this version.
    if_applied: Option<(Version, u32)>,
}

impl OwnCookie {
    /// What is in SQLite's copy when a transaction on this base begins; `None` where it is the base's.
    fn at(&mut self, base: Version) -> Option<u32> {
        if let Some((version, written)) = self.if_applied
            && version == base
        {
            self.known = Some(written);
        }
        self.known
    }
}

enum State {
    Idle,
    Reading {
        base: Pin,
    },
    Writing {
        base: Pin,
        level: LockLevel,
        overlay: Box<Overlay>,
        progress: Progress,
        /// The change counter that SQLite has in its page 1: it moves with each commit, except in exclusive locking mode.
        counter: u32,
    },
    Failed {
        base: Pin,
        level: LockLevel,
        error: Error,
        rolled_back: bool,
        counter: u32,
    },
    /// K6.
    Refusing {
        level: LockLevel,
        error: Error,
    },
}

/// How far a write transaction is.
enum Progress {
    /// Before its commit point.
    Open,
    /// FCNTL_SYNC has made this version, and SQLite has not yet said that it is done.
    Durable {
        version: Version,
        /// The version on which it was made, as long as its pages beyond the new size may be needed again (`cut_off.rs`).
        before: Option<Pin>,
    },
    /// The deletion of a super-journal has made it, which SQLite does not roll back, and SQLite has not yet said that it is done.
    Grouped,
    /// SQLite has said so, or it was a rollback.
    Over,
}

impl Connection {
    /// A connection to an open database, at the version of a moment if that was looked for.
    pub fn new(
        database: Arc<Database>,
        looked: Option<Looked>,
        settings: ConnectionSettings,
    ) -> Result<Self> {
        static NEXT_WRITER: AtomicU64 = AtomicU64::new(1);
        let view = View::of_new(&database, looked, &settings)?;
        let ahead = ReadAhead::new(&database);
        Ok(Self {
            writer: WriterId(NEXT_WRITER.fetch_add(1, Ordering::Relaxed)),
            owner: None,
            database,
            settings,
            state: State::Idle,
            view,
            journal: None,
            journal_exists: Arc::new(AtomicBool::new(false)),
            ahead,
            habit: Habit::default(),
            early: Early::NotAsked,
            waited_early: Duration::ZERO,
            cache_is_stale: false,
            has_seen_empty: false,
            schema: None,
            own_cookie: OwnCookie::default(),
            batch_began_clean: false,
            journal_mode: "delete",
            last_error: None,
        })
    }

    /// SQLite says to which of its connections this one belongs.
    pub fn belongs_to(&mut self, owner: Owner) {
        self.owner = Some(owner);
    }

    /// The database.
    pub fn database(&self) -> &Arc<Database> {
        &self.database
    }

    /// As set by the URI and the environment.
    pub fn settings(&self) -> &ConnectionSettings {
        &self.settings
    }

    /// The error of the last operation that failed.
    pub fn last_error(&self) -> Option<&Error> {
        self.last_error.as_ref()
    }

    /// Remembers an error for `pagewire_last_error()`.
    pub fn note_error(&mut self, error: &Error) {
        self.last_error = Some(error.clone());
    }

    /// The lock level that SQLite has.
    pub fn level(&self) -> LockLevel {
        match &self.state {
            State::Idle => LockLevel::None,
            State::Reading { .. } => LockLevel::Shared,
            State::Writing { level, .. }
            | State::Failed { level, .. }
            | State::Refusing { level, .. } => *level,
        }
    }

    /// The version that is read, if a transaction is open.
    pub fn snapshot(&self) -> Option<Snapshot> {
        match &self.state {
            State::Idle => self.view.pin().map(Pin::snapshot),
            State::Reading { base } | State::Writing { base, .. } | State::Failed { base, .. } => {
                Some(base.snapshot())
            }
            State::Refusing { .. } => None,
        }
    }

    /// xLock.
    pub fn lock(&mut self, wanted: LockLevel) -> Result<()> {
        self.check_not_refusing()?;
        if wanted <= self.level() {
            return Ok(());
        }
        if wanted > LockLevel::Shared {
            self.check_writable()?;
        }
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => {
                let base = self.begin()?;
                if base.snapshot().page_count == PageCount::ZERO {
                    self.has_seen_empty = true;
                    // There is no page 1 to read, and SQLite's own is empty.
                    self.schema = None;
                    self.own_cookie = OwnCookie {
                        known: Some(0),
                        if_applied: None,
                    };
                }
                self.state = State::Reading { base };
                self.lock(wanted)
            }
            State::Reading { base } => {
                let snapshot = base.snapshot();
                self.habit.wants_to_write();
                // From here on it wants the lease as any other that tries.
                let has_ticket = std::mem::take(&mut self.early) == Early::Waits;
                let outcome = self.database.begin_write(
                    self.writer,
                    self.owner,
                    snapshot.version,
                    has_ticket,
                    self.settings.timeout,
                );
                self.state = match outcome {
                    Err(error) => {
                        self.state = State::Reading { base };
                        return Err(error);
                    }
                    Ok(()) => {
                        self.habit.writes();
                        State::Writing {
                            overlay: self.overlay_on(&snapshot),
                            base,
                            level: wanted,
                            progress: Progress::Open,
                            counter: snapshot.version.get() as u32,
                        }
                    }
                };
                Ok(())
            }
            State::Writing {
                base,
                overlay,
                progress,
                counter,
                ..
            } => {
                self.state = State::Writing {
                    base,
                    overlay,
                    progress,
                    counter,
                    level: wanted,
                };
                Ok(())
            }
            State::Failed {
                base,
                level,
                error,
                rolled_back,
                counter,
            } => {
                let outcome = Err(error.clone());
                self.state = State::Failed {
                    base,
                    level,
                    error,
                    rolled_back,
                    counter,
                };
                outcome
            }
            State::Refusing { level, error } => {
                let outcome = Err(error.clone());
                self.state = State::Refusing { level, error };
                outcome
            }
        }
    }

    /// Begins a transaction, with the lease where it will probably write.
    fn begin(&mut self) -> Result<Pin> {
        self.habit.begins();
        self.waited_early = Duration::ZERO;
        if self.habit.is_to_write() && self.view.pin().is_none() && !self.settings.read_only {
            let begun = Instant::now();
            let database = &self.database;
            self.early = database.acquire_early(self.writer, self.owner, &self.settings);
            match self.early {
                Early::Waits => self.waited_early = begun.elapsed(),
                Early::Failed => {
                    self.waited_early = begun.elapsed();
                    self.habit.is_over();
                }
                Early::NotAsked | Early::Came => {}
            }
        }
        let begun = self.begin_read();
        if begun.is_err() {
            self.transaction_ends();
        }
        begun
    }

    /// No transaction is open any more.
    fn transaction_ends(&mut self) {
        self.habit.ends();
        self.early_is_over();
    }

    /// The transaction does not write, or not yet: nobody shall wait for it.
    fn early_is_over(&mut self) {
        match std::mem::take(&mut self.early) {
            Early::Came | Early::Waits => self.database.claim_ends(self.writer),
            Early::NotAsked | Early::Failed => {}
        }
    }

    /// What this transaction has waited in vain before it asked for the write lock. Told once.
    pub fn take_waited_early(&mut self) -> Duration {
        std::mem::take(&mut self.waited_early)
    }

    fn check_not_refusing(&self) -> Result<()> {
        match &self.state {
            State::Refusing { error, .. } => Err(error.clone()),
            State::Idle | State::Reading { .. } | State::Writing { .. } | State::Failed { .. } => {
                Ok(())
            }
        }
    }

    fn overlay_on(&self, base: &Snapshot) -> Box<Overlay> {
        Box::new(Overlay::new(
            base.page_size,
            base.byte_size(),
            self.settings.overlay_bytes,
        ))
    }

    /// xUnlock: K3, K5.
    pub fn unlock(&mut self, wanted: LockLevel) {
        if wanted >= self.level() {
            return;
        }
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => State::Idle,
            State::Reading { base } => match wanted {
                LockLevel::None => State::Idle,
                _ => State::Reading { base },
            },
            State::Writing {
                base,
                overlay,
                progress,
                counter,
                ..
            } if wanted >= LockLevel::Reserved => State::Writing {
                base,
                overlay,
                progress,
                counter,
                level: wanted,
            },
            State::Writing {
                progress: Progress::Durable { version, .. },
                ..
            } => {
                self.drop_journal();
                self.database.end_write(self.writer);
                State::Refusing {
                    level: wanted,
                    error: self.stays_committed(version, None),
                }
            }
            State::Writing { base, .. } | State::Failed { base, .. } => {
                self.drop_journal();
                self.leave_writing(base, wanted)
            }
            State::Refusing { error, .. } => {
                if wanted < LockLevel::Reserved {
                    self.drop_journal();
                    self.database.end_write(self.writer);
                }
                State::Refusing {
                    level: wanted,
                    error,
                }
            }
        };
        if matches!(self.state, State::Idle) {
            self.transaction_ends();
            self.ahead.snapshot_ends();
        }
    }

    /// K6: what a connection says that refuses.
    fn stays_committed(&self, version: Version, rollback: Option<&Error>) -> Error {
        let why = match rollback {
            Some(error) => format!("its rollback failed ({error})"),
            None => "did not roll back".to_owned(),
        };
        Error::new(
            Kind::OutcomeUnknown,
            format!(
                "{}: SQLite reported a transaction as failed after it had been committed as version {version}, and {why}: \
                 close the connection, and look whether the transaction is there before running it again",
                self.database.describe()
            ),
        )
    }

    fn leave_writing(&self, base: Pin, wanted: LockLevel) -> State {
        self.database.end_write(self.writer);
        match wanted {
            LockLevel::None => State::Idle,
            _ => State::Reading { base },
        }
    }

    /// xCheckReservedLock: whether a connection of this process is writing.
    pub fn reserved_is_held(&self) -> bool {
        self.database.state.has_writer()
    }

    /// xWrite.
    pub fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let limits = self.stage_limits();
        match &mut self.state {
            State::Failed {
                rolled_back: false, ..
            } => Ok(()),
            State::Failed { error, .. } => Err(error.clone()),
            State::Refusing { error, .. } => Err(error.clone()),
            State::Idle | State::Reading { .. } => Err(Error::new(
                Kind::ReadOnly,
                format!(
                    "{}: a write without a write lock is refused",
                    self.database.describe()
                ),
            )),
            State::Writing {
                base,
                overlay,
                progress,
                ..
            } => {
                progress.bring_back_cut_off(&self.database, overlay, self.settings.timeout)?;
                read::write_through(
                    &self.database,
                    &base.snapshot(),
                    overlay,
                    bytes,
                    offset,
                    self.settings.timeout,
                )?;
                Stager::go_on(overlay, &self.database, limits);
                Ok(())
            }
        }
    }

    fn stage_limits(&self) -> StageLimits {
        StageLimits {
            bound: self.settings.stage_bytes,
            timeout: self.settings.timeout,
        }
    }

    /// xTruncate. After a commit SQLite sets the size of the committed version, or of the one before if it rolls back.
    pub fn truncate(&mut self, size: u64) -> Result<()> {
        match &mut self.state {
            State::Writing {
                overlay, progress, ..
            } => {
                progress.file_is_cut(size);
                if overlay.truncate(size) {
                    Stager::start_again(overlay);
                }
            }
            State::Refusing { error, .. } => return Err(error.clone()),
            State::Idle | State::Reading { .. } | State::Failed { .. } => {}
        }
        Ok(())
    }

    /// FCNTL_COMMIT_PHASETWO: from here on SQLite does not roll the commit back.
    pub fn transaction_is_over(&mut self) {
        if let State::Writing { progress, .. } = &mut self.state
            && matches!(progress, Progress::Durable { .. } | Progress::Grouped)
        {
            *progress = Progress::Over;
            self.has_seen_empty = false;
        }
    }

    /// xFileSize.
    pub fn byte_size(&self) -> u64 {
        match &self.state {
            State::Writing {
                overlay, progress, ..
            } => overlay.size().max(progress.size_before()),
            State::Reading { base } | State::Failed { base, .. } => base.snapshot().byte_size(),
            State::Idle => match self.view.pin() {
                Some(pin) => pin.snapshot().byte_size(),
                None => self.database.state.head().byte_size(),
            },
            State::Refusing { .. } => self.database.state.head().byte_size(),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.unlock(LockLevel::None);
    }
}
