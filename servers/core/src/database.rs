//! What the server knows about one open database: its lease, what is read of it, who hears of it, the order of
//! its commits.
//!
//! Lives while a session has the database open, or a lease or barrier of it is alive; the content is the store's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pagewire_proto::{DatabaseId, DatabaseName, PageSize, Snapshot, Version};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::hub::readers::{Readers, Told};
use crate::lease::Lease;
use crate::subscription::{Subscriber, Subscriptions};

/// One open database.
///
/// Order of locks: `commits`, then `turn`, then `lease`, then the state of a session, then `readers` or `subscriptions`. The synchronous ones are
/// never held over an await.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) id: DatabaseId,
    /// Who may write.
    pub(crate) lease: Mutex<Lease>,
    /// Held over a fence and the change of the holder that goes with it: epochs reach the table in the order of the store.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// Held from the wait at a barrier to the answer of the store: a question about a commit comes after it.
    pub(crate) commits: Arc<tokio::sync::Mutex<()>>,
    /// What each session still reads.
    pub(crate) readers: Mutex<Readers>,
    /// Who hears of its versions.
    pub(crate) subscriptions: Mutex<Subscriptions>,
    /// A subscription that a commit may wait for has answered or ended. Only the one with `commits` waits for it.
    pub(crate) answered: Notify,
    /// What the store was told of it last; `None` where it did not answer.
    pub(crate) protected: tokio::sync::Mutex<Told>,
    /// A task that tells the store of a new floor is on its way.
    pub(crate) protect_scheduled: AtomicBool,
    /// Sessions that have it open.
    pub(crate) sessions: AtomicUsize,
    /// The page size of the newest head that was seen; a guess at the one of a version. 0 for none.
    page_size: AtomicU32,
    /// The name, where the database was opened before its first commit: with nobody left it is dropped.
    pub(crate) unborn: Mutex<Option<DatabaseName>>,
    /// The newest version that a commit of this server was to make; changed under `commits`.
    attempted: AtomicU64,
    /// Changes with the lease: what waiting calls watch.
    pub(crate) changed: watch::Sender<()>,
}

impl Database {
    pub(crate) fn new(id: DatabaseId) -> Self {
        Self {
            id,
            lease: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            commits: Arc::default(),
            readers: Mutex::default(),
            subscriptions: Mutex::default(),
            answered: Notify::new(),
            protected: tokio::sync::Mutex::default(),
            protect_scheduled: AtomicBool::new(false),
            sessions: AtomicUsize::new(0),
            page_size: AtomicU32::new(0),
            attempted: AtomicU64::new(0),
            unborn: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Everybody who hears of its versions now. Takes no memory where that is nobody.
    pub(crate) fn subscribers(&self) -> Vec<Subscriber> {
        self.subscriptions.lock().subscribers()
    }

    /// Whether anybody has asked to hear of its versions.
    pub(crate) fn has_subscribers(&self) -> bool {
        !self.subscriptions.lock().is_empty()
    }

    /// Remembers the page size for the next read.
    pub(crate) fn note_page_size(&self, head: Snapshot) {
        if let Some(page_size) = head.page_size {
            self.page_size.store(page_size.get(), Ordering::Relaxed);
        }
    }

    /// A commit is to make this version: whether it is the first one that may. The caller has the `commits` lock.
    pub(crate) fn is_first_for(&self, version: Version) -> bool {
        self.attempted.fetch_max(version.get(), Ordering::Relaxed) < version.get()
    }

    /// How large pages probably are; the largest where nothing is known.
    pub(crate) fn likely_page_size(&self) -> PageSize {
        PageSize::try_from(self.page_size.load(Ordering::Relaxed)).unwrap_or(PageSize::MAX)
    }

    /// Wakes the calls that wait for the lease.
    pub(crate) fn notify(&self) {
        self.changed.send_replace(());
    }
}
