//! One database of this process: reads at a snapshot, the write lock, commits and what became of them.

mod commit;
mod disk;
mod history;
mod lease;
mod pages;
mod pins;
mod regain;
mod stage;
mod state;
mod subscription;
mod write;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::pb::OpenMode;
use pagewire_proto::{DatabaseName, Incarnation, Moment, PageNumber, Snapshot, Version};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::ChangeLog;
use crate::client::counters::PREFETCH;
use crate::client::{Client, OpenError, Opened, PinCall};
use crate::clock::Moment as Clock;
use crate::error::{CallError, Error, Kind, Result};
use crate::prefetch::{HotPages, Roots};
use crate::settings::ConnectionSettings;

pub use commit::{CommitMember, commit};
use history::Failure;
pub use history::Looked;
pub use lease::WriterId;
pub use pins::Pin;
pub use state::{Begin, DatabaseState};
pub use subscription::News;
pub use write::Early;

/// Slowest transfer that is waited for, in bytes per second.
const SLOWEST_TRANSFER: u64 = 1 << 20;
const REOPEN_PAUSE: Duration = Duration::from_millis(20);
/// How long a strict reader waits for the end of a Prepare: about the sync of a commit. After that it asks, since the commit may
/// be waiting for somebody else.
const AWAIT_NEWS: Duration = Duration::from_millis(10);

/// A database, open in this process. Shared by all connections to it.
pub struct Database {
    /// What tasks of the session may touch too.
    pub state: Arc<DatabaseState>,
    client: Arc<Client>,
    /// With which mode it was opened, and which open of the session that was.
    opened: Mutex<(OpenMode, u64)>,
    /// What its connections have read, to be named to the server with the close.
    hot: Mutex<HotPages>,
    /// The roots that nobody has asked for yet.
    roots: Mutex<Roots>,
    /// Byte 20 of page 1, as it was read last.
    reserved: AtomicU8,
    /// Of the store, where it is known to which one the open belonged: for files that outlive the session.
    incarnation: Option<Incarnation>,
}

impl Database {
    /// Opens the database by its name. With a moment it is opened for reading, and what was found is held (K1).
    pub fn open(
        client: Arc<Client>,
        name: &DatabaseName,
        mode: OpenMode,
        at: Option<&Moment>,
        timeout: Duration,
    ) -> Result<(Arc<Self>, Option<Looked>)> {
        let deadline = Instant::now() + timeout;
        let session = &client.core.session;
        let streams = session.streams();
        let lapses = session.lapses();
        let pin = at.map(|_| session.pin_begins());
        let look = at.zip(pin.as_ref());
        let opened = open_call(&client, name, mode, look, deadline)?;
        let state = Arc::new(DatabaseState::new(name.clone(), opened.id, opened.head));
        state.remember_released(client.subscribe(&state));
        drop(opened.under_way);
        let looked = opened.found.map(|found| Looked {
            pin: state.hold(found.snapshot, session.lapses_of_pin(lapses)),
            entry: found,
        });
        // Its version is among those held: heartbeats may say so.
        drop(pin);
        let read_at = looked
            .as_ref()
            .map_or(opened.head.version, |looked| looked.pin.snapshot().version);
        // Read first: a Welcome that comes from here on is noticed by them.
        let doubts = state.doubts();
        if let Some(grant) = opened
            .lease
            .as_ref()
            .filter(|_| client.core.session.is_same_stream(streams))
        {
            state.lease_acquired(grant, doubts, None)?;
        }
        let is_same_stream = session.is_same_stream(streams);
        let welcome = session.current_welcome().filter(|_| is_same_stream);
        let database = Arc::new(Self {
            incarnation: welcome.map(|welcome| welcome.incarnation),
            state,
            client,
            opened: Mutex::new((mode, opened.open_sequence)),
            hot: Mutex::default(),
            roots: Mutex::default(),
            reserved: AtomicU8::new(0),
        });
        for page in opened.pages {
            database.put(page.number, page.version, read_at, page.content);
        }
        Ok((database, looked))
    }

    /// The endpoint, for messages.
    pub fn endpoint(&self) -> &str {
        self.client.core.endpoint.as_str()
    }

    /// For messages: the name and the endpoint.
    pub fn describe(&self) -> String {
        format!("{} at {}", self.state.name, self.endpoint())
    }

    /// What `pagewire_status` shows of the session.
    pub fn session_status(&self) -> Vec<(&'static str, String)> {
        let session = &self.client.core.session;
        let prefetch = PREFETCH.read();
        let mut rows = vec![
            ("trusted", session.is_trusted().to_string()),
            (
                "endpoint_in_use",
                self.client.core.server_in_use().to_owned(),
            ),
            ("prefetched_pages", prefetch.fetched.to_string()),
            ("prefetch_hits", prefetch.hits.to_string()),
            ("prefetch_waste", prefetch.wasted.to_string()),
        ];
        rows.extend(self.disk_status());
        if let Some(welcome) = session.current_welcome() {
            rows.push(("server", welcome.server_name.clone()));
            rows.push(("store", welcome.store_name.clone()));
            rows.push(("incarnation", welcome.incarnation.to_string()));
            rows.push(("lease_ttl_ms", welcome.lease_ttl.as_millis().to_string()));
        }
        rows
    }

    /// Lets a moment pass.
    pub fn pause(&self, duration: Duration) {
        self.client.wait(tokio_sleep(duration));
    }

    /// Refuses what needs old versions where the server keeps none: the snapshot of a read-only connection has no bound in time.
    pub fn check_versions(&self) -> Result<()> {
        match self.client.core.session.current_welcome() {
            Some(welcome) if !welcome.versions => Err(Error::new(
                Kind::CantOpen,
                format!(
                    "{}: read-only connections need old versions, and {NO_VERSIONS}; mode=rw reads too",
                    self.describe()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Makes sure that the server lets this process do what the mode says.
    pub fn allow(&self, mode: OpenMode, timeout: Duration) -> Result<()> {
        self.state.check()?;
        let (had, _) = *self.opened.lock();
        if strength(mode) <= strength(had) {
            return Ok(());
        }
        self.reopen(mode, Instant::now() + timeout)
    }

    fn reopen(&self, mode: OpenMode, deadline: Instant) -> Result<()> {
        let wanted = match mode {
            // It exists: whoever removes it now shall not have it made again in silence.
            OpenMode::Create if self.state.head().version > Version::ZERO => OpenMode::ReadWrite,
            other => other,
        };
        let (doubts, before) = (self.state.doubts(), self.state.id());
        let seen = self.state.head().version;
        let opened = open_call(&self.client, &self.state.name, wanted, None, deadline);
        if let Ok(opened) = &opened
            && opened.id != before
            && self.state.adopt(opened.id, opened.head)
        {
            self.client.resubscribe(&self.state, before);
        }
        match opened {
            Ok(opened) if opened.id == self.state.id() => {
                if before == opened.id {
                    self.refuse_older(seen, opened.head.version)?;
                }
                let mut now = self.opened.lock();
                let (had, sequence) = *now;
                let strongest = if strength(mode) > strength(had) {
                    mode
                } else {
                    had
                };
                *now = (strongest, sequence.max(opened.open_sequence));
                drop(now);
                if let Some(grant) = &opened.lease {
                    // Not taken where a new stream overtook it: it is asked for when it is needed.
                    self.state.lease_acquired(grant, doubts, None)?;
                }
                Ok(())
            }
            Ok(_) => {
                self.state
                    .lose("the database was removed and created again");
                self.state.check()
            }
            Err(error) => Err(error),
        }
    }

    fn reopen_as_before(&self, deadline: Instant) -> Result<()> {
        let (mode, _) = *self.opened.lock();
        self.reopen(mode, deadline)?;
        self.hold_again(deadline)
    }

    /// Makes a call, opening the database anew where the server has forgotten the session.
    fn call<T: Send, F, Fut>(&self, deadline: Instant, call: F) -> Result<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = std::result::Result<T, CallError>> + Send,
    {
        self.try_call(deadline, call)
            .map_err(|failure| match failure {
                Failure::Call(error) => Error::from(error).within(&self.describe()),
                Failure::Before(error) => error,
            })
    }

    /// Begins a read transaction: the newest version, strictly (P4), or one that is new enough for the connection.
    pub fn begin_read(&self, settings: &ConnectionSettings) -> Result<Pin> {
        let deadline = Instant::now() + settings.timeout;
        let core = &self.client.core;
        let consistency = settings.consistency;
        let mut may_await = true;
        loop {
            let begin =
                self.state
                    .begin(&core.session, consistency, settings.read_only, may_await)?;
            match begin {
                Begin::Ready(pin) => return Ok(pin),
                Begin::Settle(unsettled) => self.settle(&unsettled, deadline)?,
                Begin::Await => {
                    let told = self.state.told.notified();
                    may_await = false;
                    // It may have been told before anybody listened.
                    let again =
                        self.state
                            .begin(&core.session, consistency, settings.read_only, true)?;
                    match again {
                        Begin::Ready(pin) => return Ok(pin),
                        Begin::Await => {
                            let _ = self.client.wait(tokio_timeout(AWAIT_NEWS, told));
                        }
                        Begin::Settle(_) | Begin::Ask(..) => {}
                    }
                }
                Begin::Ask(seen, doubts) => {
                    self.state
                        .asks(&core.session, consistency, settings.subscribe);
                    let asked_at = Cell::new(Clock::now());
                    let earlier = self.earlier_to_ask_with(seen);
                    let known = earlier.as_ref().map_or(seen, ChangeLog::head);
                    let answer = self.call(deadline, || {
                        asked_at.set(Clock::now());
                        core.begin_snapshot(self.state.id(), known, deadline)
                    });
                    let (head, changes, page_1) = match answer {
                        Ok(answer) => answer,
                        Err(error) => {
                            self.asked_with(earlier, None);
                            return Err(error);
                        }
                    };
                    if let Err(error) = self.refuse_older(seen, head.version) {
                        self.asked_with(earlier, None);
                        return Err(error);
                    }
                    let begun = self
                        .state
                        .begin_with(head, &changes, doubts, asked_at.get());
                    // Otherwise the database is another one, or lost: old snapshots of this one may go on.
                    if let Some(page) = page_1.filter(|_| begun.is_ok()) {
                        self.state.page_came(&self.client.cache, page, head.version);
                    }
                    if begun.is_ok() {
                        self.asked_with(earlier, Some((&head, &changes)));
                    }
                    return begun;
                }
            }
        }
    }

    /// A head below one that was seen before the question is of another history, whatever its identity: of an old copy of the store. Its next
    /// versions would have the numbers of those that are cached.
    fn refuse_older(&self, seen: Version, head: Version) -> Result<()> {
        if head < seen {
            self.state.lose(&format!(
                "the server has version {head} where it had version {seen} before: its store was set back, or is an old copy"
            ));
        }
        self.state.check()
    }

    /// The page at the snapshot if it is in the cache.
    pub fn cached_page(&self, snapshot: &Snapshot, page: PageNumber) -> Option<Bytes> {
        self.client.cache.get(
            self.state.key,
            page,
            snapshot.version,
            &self.state.log.read(),
        )
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(Some(file)) = self.state.disk.get() {
            file.detach();
        }
        let hot_pages = self.hot_pages();
        self.client.cache.ahead.forget(self.state.key);
        let (_, open_sequence) = *self.opened.lock();
        self.client
            .unsubscribe(&self.state, open_sequence, hot_pages);
    }
}

/// Why a server without old versions refuses to look at one, and read-only connections.
const NO_VERSIONS: &str = "the store of this server keeps no old versions (start it with --store local:DIR or \
                           versioned-memory)";

async fn tokio_sleep(duration: Duration) {
    // In an async block, so that the timer is made inside the runtime.
    tokio::time::sleep(duration).await;
}

async fn tokio_timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
    tokio::time::timeout(duration, future).await.ok()
}

fn strength(mode: OpenMode) -> u8 {
    match mode {
        OpenMode::Unknown => 0,
        OpenMode::ReadOnly => 1,
        OpenMode::ReadWrite => 2,
        OpenMode::Create => 3,
    }
}

/// Opens a database that no connection of this process has, without its lease. `None` if there is none.
fn open_for_question(
    client: &Client,
    name: &DatabaseName,
    deadline: Instant,
) -> Result<Option<Opened>> {
    use pagewire_proto::status::Reason;
    let core = &client.core;
    match client.wait(core.borrow_database(name, deadline)) {
        Ok(opened) => Ok(Some(opened)),
        Err(OpenError::Call(error)) if error.reason == Reason::DatabaseNotFound => Ok(None),
        Err(OpenError::Call(error)) => Err(cannot_open(name, core.endpoint.as_str(), error)),
        Err(OpenError::Refused(error)) => Err(error.within(name.as_str())),
    }
}

fn open_call(
    client: &Client,
    name: &DatabaseName,
    mode: OpenMode,
    look: Option<(&Moment, &PinCall<'_>)>,
    deadline: Instant,
) -> Result<Opened> {
    let want_lease = mode != OpenMode::ReadOnly;
    let core = &client.core;
    loop {
        return match client.wait(core.open_database(name, mode, want_lease, look, deadline)) {
            Ok(opened) => Ok(opened),
            Err(OpenError::Call(error))
                if error.wants_reopen() && Instant::now() + REOPEN_PAUSE < deadline =>
            {
                // The session is being made anew.
                client.wait(tokio_sleep(REOPEN_PAUSE));
                continue;
            }
            Err(OpenError::Call(error)) => Err(cannot_open(name, core.endpoint.as_str(), error)),
            Err(OpenError::Refused(error)) => Err(error.within(name.as_str())),
        };
    }
}

fn cannot_open(name: &DatabaseName, endpoint: &str, error: CallError) -> Error {
    use pagewire_proto::status::Reason;
    let next = match error.reason {
        Reason::Unsupported => NO_VERSIONS.to_owned(),
        Reason::DatabaseNotFound => {
            "there is no such database; open it with mode=rwc to make it".to_owned()
        }
        Reason::Unavailable | Reason::Draining => format!(
            "can't reach the page server ({}); start `pagewire serve`, or set endpoint= or PAGEWIRE_ENDPOINT",
            error.message
        ),
        _ => error.message,
    };
    Error::new(Kind::CantOpen, format!("{name} at {endpoint}: {next}"))
}
