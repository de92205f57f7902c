//! Pages on their way into a staging of the store.
//!
//! * **M-7** All of them together take at most [`MAX_KIB`], whoever still waits for them: a client that cancels its call, or a wait that has
//!   come to its end, gives nothing back before the store has taken or refused the pages. What its call was charged for the message ends
//!   with the call.
//! * **M-8** Pages that the store took after their staging was dropped are dropped again: nobody else would.

use std::sync::Arc;

use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, PageSize, StagingId};
use tonic::Status;

use super::Hub;
use crate::store::{PageWrite, StoreError};

/// KiB of pages: some messages of the largest size for each of many tenants, and little beside the memory of a server.
pub(super) const MAX_KIB: u32 = 64 << 10;

impl Hub {
    /// Adds pages to a staging, and asks afterwards whether it is still there: false where it was dropped meanwhile.
    ///
    /// Waits for the pages of others before them, and for the store, each as long as for any answer of the store.
    pub(crate) async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
        is_there: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<bool, Status> {
        let bytes: usize = pages
            .iter()
            .map(|page| page.content.len() + size_of::<PageWrite>())
            .sum();
        let kib = u32::try_from(bytes.div_ceil(1024)).map_or(MAX_KIB, |kib| kib.clamp(1, MAX_KIB));
        let room = Arc::clone(&self.staging).acquire_many_owned(kib);
        let room = match tokio::time::timeout(self.settings.store_wait, room).await {
            Ok(Ok(room)) => room,
            _ => {
                return Err(Reason::Unavailable.status(format!(
                    "the store is busy with staged pages for more than {} ms: try again",
                    self.settings.store_wait.as_millis()
                )));
            }
        };
        let store = Arc::clone(&self.store);
        let taken = tokio::spawn(async move {
            let result = store.stage(database, staging, page_size, pages).await;
            drop(room);
            if is_there() {
                return result.map(|()| true);
            }
            if let Err(error) = store.discard(staging).await {
                tracing::warn!(%error, "a staging was not dropped");
            }
            Ok(false)
        });
        self.bounded(async move {
            taken.await.unwrap_or_else(|_| {
                let broke_off = "staging broke off: commit again".to_owned();
                Err(StoreError::Unavailable(broke_off))
            })
        })
        .await
    }
}
