//! Names that were given out and never committed to: they go with the last session that has them open.

use std::sync::Arc;

use pagewire_proto::{DatabaseId, DatabaseName, Version};
use tonic::Status;

use super::{Hub, spawn_detached};
use crate::status;

impl Hub {
    /// Removes names that were given out and never committed to, unless somebody has opened them again.
    pub(crate) fn drop_unborn(self: &Arc<Self>, unborn: Vec<(DatabaseName, DatabaseId)>) {
        let hub = Arc::clone(self);
        spawn_detached(async move {
            for (name, id) in unborn {
                if let Err(error) = hub.drop_if_unborn(&name, id).await {
                    tracing::debug!(
                        error = error.message(),
                        "a name without a commit was not dropped"
                    );
                }
            }
        });
    }

    async fn drop_if_unborn(&self, name: &DatabaseName, id: DatabaseId) -> Result<(), Status> {
        // An open has the lock from its lookup until the table knows of it, and a call under way keeps the table's entry.
        let _names = self.names.write().await;
        let in_use = self.databases.lock().contains_key(&id);
        if in_use || self.bounded(self.store.lookup(name, false)).await? != id {
            return Ok(());
        }
        let head = self.bounded(self.store.head(id)).await?;
        if head.version == Version::ZERO {
            self.store.remove(name).await.map_err(status::of_store)?;
        }
        Ok(())
    }
}
