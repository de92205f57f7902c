//! Domain request -> call: one client for each endpoint and credential of the process.
//!
//! A call has a deadline (`deadline.rs`). One that may be repeated is repeated while the transport fails and time is left. Everything that
//! comes back is validated here; nothing behind this folder sees a protocol message.

mod body;
mod calls;
mod commit;
mod connect;
pub mod counters;
mod deadline;
mod gather;
mod history;
mod known;
mod lane;
pub mod link;
mod news;
mod open;
mod runtime;
mod session;
mod stage;
mod transactions;
mod way;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::{DatabaseName, Moment};
use parking_lot::Mutex;
use tokio::time::Instant;

pub use calls::{Acquired, LeaseRequest};
use calls::{page_beside, valid};
pub use commit::{CommitAttempt, CommitPage, CommitPart, CommitResult, Settled};
pub use deadline::is_held_up;
pub use history::{Description, IfTaken, VersionList};
use known::Known;
pub use link::Link;
pub use open::{OpenError, Opened};
pub use runtime::Runtime;
pub use session::{PinCall, Session};
pub use stage::{PageSource, StagePages};
pub use transactions::{Membership, Owner, Transactions};
use way::{Server, Way};

use crate::cache::PageCache;
use crate::cache::disk::DiskCache;
use crate::compression::{Compression, Encodings};
use crate::database::{Database, Looked};
use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::settings::DiskSettings;

/// A client with the runtime that drives it. Dropping it says goodbye to the server.
pub struct Client {
    /// Everything that tasks of the runtime may hold too.
    pub core: Arc<Core>,
    /// Pages of all databases of the client. Tasks of the runtime may hold it too.
    pub cache: Arc<PageCache>,
    /// Beside it, where a directory for it is set.
    pub disk: Option<DiskCache>,
    runtime: Runtime,
    slots: Mutex<HashMap<DatabaseName, Arc<Slot>>>,
}

/// Where the one [`Database`] of a name lies; locked while it is being opened.
type Slot = Mutex<Weak<Database>>;

/// A client without its runtime.
pub struct Core {
    /// As it was set.
    pub endpoint: Endpoint,
    way: Way,
    /// Of pages from the server and to it.
    compression: Compression,
    /// The session of this process with the endpoint.
    pub session: Session,
    known: Arc<Mutex<Known>>,
    /// What is known of the way to the server.
    pub link: Link,
    /// Those that write.
    pub transactions: Arc<Transactions>,
    /// As of the client: for pages that come with news.
    cache: Arc<PageCache>,
}

impl Client {
    /// A client of the endpoint. Nothing is connected before the first call. Write transactions are those of the whole process.
    pub fn new(
        endpoint: &Endpoint,
        token: Option<&str>,
        cache_bytes: u64,
        compression: Compression,
        disk: Option<&DiskSettings>,
        transactions: &Arc<Transactions>,
    ) -> Result<Self> {
        let runtime = Runtime::start()?;
        let way = runtime.block_on(async {
            let server = |endpoint: &str| {
                Ok::<_, Error>(Server {
                    endpoint: endpoint.to_owned(),
                    stub: connect::stub(endpoint, token)?,
                    lanes: lane::Lanes::default(),
                })
            };
            let others = endpoint.others().iter().map(|other| server(other));
            let others = others.collect::<Result<_>>()?;
            Ok::<_, Error>(Way::new(server(endpoint.first())?, others))
        })?;
        let cache = Arc::new(PageCache::new(cache_bytes));
        let core = Arc::new(Core {
            cache: Arc::clone(&cache),
            endpoint: endpoint.clone(),
            way,
            compression,
            session: Session::new()?,
            known: Arc::default(),
            link: Link::default(),
            transactions: Arc::clone(transactions),
        });
        runtime.spawn(session::run(Arc::downgrade(&core)));
        Ok(Self {
            core,
            cache,
            disk: disk.map(|disk| DiskCache::new(disk.clone(), endpoint.as_str(), token)),
            runtime,
            slots: Mutex::new(HashMap::new()),
        })
    }

    /// The database of the name, opened if it is not open yet, and its version of the moment if there is one. Two connections of
    /// a process share one: its write lock and its knowledge of the lease are per process.
    pub fn database_named(
        self: &Arc<Self>,
        name: &DatabaseName,
        mode: pb::OpenMode,
        at: Option<&Moment>,
        timeout: Duration,
    ) -> Result<(Arc<Database>, Option<Looked>)> {
        let slot = {
            let mut slots = self.slots.lock();
            // A slot that only this map has is not locked by anybody.
            slots.retain(|_, slot| {
                Arc::strong_count(slot) > 1
                    || slot.try_lock().is_none_or(|open| open.strong_count() > 0)
            });
            Arc::clone(slots.entry(name.clone()).or_default())
        };
        let deadline = std::time::Instant::now() + timeout;
        let Some(mut open) = slot.try_lock_for(timeout) else {
            return Err(Error::new(
                Kind::CantOpen,
                format!(
                    "{name} at {}: another thread is still opening it",
                    self.core.endpoint
                ),
            ));
        };
        let timeout = deadline.saturating_duration_since(std::time::Instant::now());
        if let Some(database) = open.upgrade()
            && database.state.check().is_ok()
        {
            database.allow(mode, timeout)?;
            let looked = at.map(|at| database.look_at(at, timeout)).transpose()?;
            return Ok((database, looked));
        }
        let (database, looked) = Database::open(Arc::clone(self), name, mode, at, timeout)?;
        *open = Arc::downgrade(&database);
        Ok((database, looked))
    }

    /// Removes a database and all of its versions; `false` if there is none. Refused while anybody has it open.
    pub fn delete_database(&self, name: &DatabaseName, timeout: Duration) -> Result<bool> {
        let begun = Instant::now();
        let slot = self.slots.lock().get(name).cloned();
        // One that is being opened is locked for as long as that takes.
        let refusal = slot.and_then(|slot| match slot.try_lock_for(timeout) {
            None => Some("another thread is still opening it"),
            Some(open) if open.strong_count() > 0 => {
                Some("a connection of this process has it open; close it before deleting")
            }
            Some(_) => None,
        });
        if let Some(refusal) = refusal {
            let endpoint = &self.core.endpoint;
            return Err(Error::io(format!("{name} at {endpoint}: {refusal}")));
        }
        self.wait(self.core.delete_database(name, begun, begun + timeout))
            .map_err(|error| Error::from(error).within(name.as_str()))
    }

    /// Runs a call of [`Core`] to its end.
    pub fn wait<F>(&self, call: F) -> F::Output
    where
        F: Future + Send,
        F::Output: Send,
    {
        self.runtime.block_on(call)
    }

    /// Sends what the session has said so far.
    pub fn flush(&self) {
        self.runtime.flush();
    }

    /// Takes in what the server says next as soon as it comes, also between calls.
    pub fn listen(&self) {
        self.runtime.listen();
    }

    /// Starts a task beside the calls.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Starts a task that makes progress whether somebody calls or not: somebody will ask for its result soon.
    pub fn spawn_urgent(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn_urgent(task);
    }

    /// The database of the name, if a connection of this process has it open.
    pub fn database_if_open(&self, name: &DatabaseName) -> Option<Arc<Database>> {
        let slot = self.slots.lock().get(name).cloned()?;
        // Locked while it is being opened: then it is not open yet.
        slot.try_lock()?.upgrade()
    }
}

impl Core {
    /// In what the server in use takes pages, and is to get them.
    pub fn encodings(&self) -> Encodings {
        match self.session.current_welcome() {
            Some(welcome) if self.compression.is_wanted_with(self.server_in_use()) => {
                welcome.encodings
            }
            _ => Encodings::NONE,
        }
    }

    /// As of the client.
    pub fn cache(&self) -> &PageCache {
        &self.cache
    }

    /// The endpoint of the server in use.
    pub fn server_in_use(&self) -> &str {
        &self.way.server().endpoint
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.core.session.say_goodbye();
        if self.core.session.is_up() {
            // Bounded: a server that does not answer learns it by the broken stream.
            self.runtime
                .block_on(self.core.session.goodbye_taken(Duration::from_millis(250)));
        }
    }
}
