//! What all calls share: the tables of sessions and databases, and what happens when a session ends.
//!
//! One file for each table and what keeps it true: `sessions.rs`, `opens.rs`, `readers.rs`, `names.rs`, `staging.rs`, and `sweep.rs` for what nobody sends
//! a message about. How a lease changes hands is in `handover.rs`. Every wait has a bound; nothing here is per call kind.

mod names;
mod opens;
pub(crate) mod readers;
mod sessions;
mod staging;
mod sweep;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, SessionId};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::database::Database;
use crate::hot::HotLists;
use crate::process::Host;
use crate::session::Session;
use crate::settings::Settings;
use crate::status;
use crate::store::{PageStore, StoreError};

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) store: Arc<dyn PageStore>,
    pub(crate) settings: Settings,
    pub(crate) host: Option<Host>,
    sessions: Mutex<HashMap<SessionId, Arc<Session>>>,
    /// Changes with each new session.
    arrivals: watch::Sender<()>,
    databases: Mutex<HashMap<DatabaseId, Arc<Database>>>,
    /// What clients would like with their next open.
    pub(crate) hot: HotLists,
    open_count: AtomicUsize,
    /// How often this server was silent for so long that other servers may have taken it for dead.
    pub(crate) losses: AtomicU64,
    /// A database is not removed while it is being opened.
    pub(crate) names: names::Names,
    /// Before it nothing may become visible: holders of leases of an earlier server may still trust them.
    pub(crate) visible_from: Instant,
    /// Changes when a barrier falls before its time.
    pub(crate) barriers: watch::Sender<()>,
    /// Set once.
    pub(crate) draining: AtomicBool,
    /// Set once, when all sessions have been ended: streams that wait for a next commit end too.
    pub(crate) ended: watch::Sender<bool>,
    /// For one staging of a session each.
    pub(crate) stagings: Arc<Semaphore>,
    /// KiB of pages that are on their way into stagings of the store: see `staging.rs`.
    staging: Arc<Semaphore>,
    /// Commits that were read completely and are not answered yet.
    pub(crate) commits: watch::Sender<usize>,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It said goodbye.
    Goodbye,
    /// Its process is dead.
    Dead,
    /// It was not heard for the lease TTL.
    Lapsed,
    /// The server stops.
    Drained,
}

/// Starts a task that nobody waits for, also from a `drop`: where the runtime has ended there is nothing left to do.
pub(crate) fn spawn_detached(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}

impl Hub {
    pub(crate) fn new(
        store: Arc<dyn PageStore>,
        settings: Settings,
        quarantine: Duration,
    ) -> Arc<Self> {
        let most_stagings = settings.max_stagings_in_total;
        let hub = Arc::new(Self {
            store,
            settings,
            host: Host::read(),
            sessions: Mutex::default(),
            arrivals: watch::Sender::new(()),
            databases: Mutex::default(),
            hot: HotLists::default(),
            open_count: AtomicUsize::new(0),
            losses: AtomicU64::new(0),
            names: names::Names::default(),
            visible_from: Instant::now() + quarantine,
            barriers: watch::Sender::new(()),
            draining: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            stagings: Arc::new(Semaphore::new(most_stagings.min(Semaphore::MAX_PERMITS))),
            staging: Arc::new(Semaphore::new(staging::MAX_KIB as usize)),
            commits: watch::Sender::new(0),
        });
        hub.spawn_sweeper();
        hub.listen_to_peers();
        hub
    }

    /// An answer of the store, or an error where it takes too long. Not for commits.
    pub(crate) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Status> {
        match tokio::time::timeout(self.settings.store_wait, call).await {
            Ok(result) => result.map_err(status::of_store),
            Err(_) => Err(Reason::Unavailable.status(format!(
                "the store did not answer within {} ms",
                self.settings.store_wait.as_millis()
            ))),
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
