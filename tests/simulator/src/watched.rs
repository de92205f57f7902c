//! A store that tells what is asked of it, for the table of what happened.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use pagewire_proto::{CommitId, DatabaseId, PageSize, StagingId};
use pagewire_server::layer::Layer;
use pagewire_server::store::{
    Commit, CommitOutcome, PageStore, PageWrite, Resolution, Resolve, StoreError,
};

use parking_lot::Mutex;

use crate::counts::{Event, count};

/// Commits of which somebody has asked what became of them, at any server.
static SETTLED: Mutex<BTreeSet<[u8; 16]>> = Mutex::new(BTreeSet::new());

fn number(id: CommitId) -> [u8; 16] {
    *id.as_bytes()
}

/// See the file's header.
#[derive(Debug)]
pub struct Watched {
    inner: Arc<dyn PageStore>,
}

impl Watched {
    /// The store, watched.
    pub fn around(inner: Arc<dyn PageStore>) -> Arc<dyn PageStore> {
        Arc::new(Self { inner })
    }
}

#[async_trait]
impl Layer for Watched {
    fn inner(&self) -> &dyn PageStore {
        &*self.inner
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        count(Event::Staged);
        self.inner.stage(database, staging, page_size, pages).await
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        if SETTLED.lock().contains(&number(commit.id)) {
            count(Event::LateCommit);
        }
        if commit.databases.len() > 1 {
            count(Event::CommittedTwo);
        }
        self.inner.commit(commit).await
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        let id = number(resolve.id);
        let resolution = self.inner.resolve(resolve).await?;
        SETTLED.lock().insert(id);
        count(match resolution {
            Resolution::Committed(_) => Event::ResolvedCommitted,
            Resolution::Aborted { .. } | Resolution::Unknown(_) => Event::Resolved,
        });
        Ok(resolution)
    }
}
