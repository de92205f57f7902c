//! Names: a lock for each that is being opened or removed, and what becomes of those that were never committed to.
//!
//! ```text
//!            open                          delete, or the last session has closed a database without a commit
//!   free ──────────▶ being opened (many)        free ──────────▶ being removed (one), until the store has answered
//! ```
//! * **N-1** A database is not removed between the lookup of its name and the entry of the open into the table.
//! * **N-2** A name whose removal was begun is not looked up before the store has said what became of it, however long that
//!   takes: a removal that was given up would strike the next open.
//! * **N-3** Nobody waits longer than `store_wait` for it, and nobody who wants another name waits at all.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, DatabaseName, Version};
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tonic::Status;

use super::{Hub, spawn_detached};
use crate::status;

/// Names without a commit that are removed at the same time: a store that hangs holds no more tasks than this.
const REMOVALS_AT_A_TIME: usize = 16;

/// The names that are being opened or removed now.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<HashMap<DatabaseName, Arc<RwLock<()>>>>);

/// A name in use; `Guard` says for what.
#[derive(Debug)]
pub(crate) struct NameInUse<Guard> {
    hub: Arc<Hub>,
    name: DatabaseName,
    /// `None` while it is dropped.
    guard: Option<Guard>,
}

pub(crate) type BeingOpened = NameInUse<OwnedRwLockReadGuard<()>>;
pub(crate) type BeingRemoved = NameInUse<OwnedRwLockWriteGuard<()>>;

impl Names {
    fn lock_of(&self, name: &DatabaseName) -> Arc<RwLock<()>> {
        Arc::clone(self.0.lock().entry(name.clone()).or_default())
    }

    /// Forgets the lock of a name that nobody uses.
    fn forget(&self, name: &DatabaseName) {
        let mut names = self.0.lock();
        if names
            .get(name)
            .is_some_and(|lock| Arc::strong_count(lock) == 1)
        {
            names.remove(name);
        }
    }
}

impl<Guard> Drop for NameInUse<Guard> {
    fn drop(&mut self) {
        // It holds the lock, and so a reference to it.
        self.guard = None;
        self.hub.names.forget(&self.name);
    }
}

impl Hub {
    /// Waits until the name is not being removed.
    pub(crate) async fn open_name(
        self: &Arc<Self>,
        name: &DatabaseName,
    ) -> Result<BeingOpened, Status> {
        self.use_name(name, self.names.lock_of(name).read_owned())
            .await
    }

    /// Waits until nobody is opening or removing the name.
    pub(crate) async fn remove_name(
        self: &Arc<Self>,
        name: &DatabaseName,
    ) -> Result<BeingRemoved, Status> {
        self.use_name(name, self.names.lock_of(name).write_owned())
            .await
    }

    async fn use_name<Guard>(
        self: &Arc<Self>,
        name: &DatabaseName,
        lock: impl Future<Output = Guard>,
    ) -> Result<NameInUse<Guard>, Status> {
        let mut in_use = NameInUse {
            hub: Arc::clone(self),
            name: name.clone(),
            guard: None,
        };
        match tokio::time::timeout(self.settings.store_wait, lock).await {
            Ok(guard) => {
                in_use.guard = Some(guard);
                Ok(in_use)
            }
            Err(_) => Err(Reason::Unavailable
                .status("the database of this name is still being opened or removed: try again")),
        }
    }

    /// Removes names that were given out and never committed to, unless somebody has opened them again.
    ///
    /// Not in a store with several servers: none of them knows who has the name open at another, where its first commit may be under way.
    /// The name stays there, and is neither found nor listed before its first commit.
    pub(crate) fn drop_unborn(self: &Arc<Self>, unborn: Vec<(DatabaseName, DatabaseId)>) {
        if !self.store.capabilities().exclusive {
            return;
        }
        let hub = Arc::clone(self);
        spawn_detached(async move {
            futures_util::stream::iter(unborn)
                .for_each_concurrent(REMOVALS_AT_A_TIME, async |(name, id)| {
                    if let Err(error) = hub.drop_if_unborn(&name, id).await {
                        tracing::debug!(
                            error = error.message(),
                            "a name without a commit was not dropped"
                        );
                    }
                })
                .await;
        });
    }

    async fn drop_if_unborn(
        self: &Arc<Self>,
        name: &DatabaseName,
        id: DatabaseId,
    ) -> Result<(), Status> {
        let _removing = self.remove_name(name).await?;
        // A call under way keeps the table's entry.
        if self.is_known(id) || self.bounded(self.store.lookup(name, false)).await? != id {
            return Ok(());
        }
        let head = self.bounded(self.store.head(id)).await?;
        if head.version == Version::ZERO {
            // Not bounded (N-2): nobody waits for this task.
            self.store.remove(name).await.map_err(status::of_store)?;
        }
        Ok(())
    }
}
