//! A store with one of its checks switched off, so that the simulator can be tested. Two more switches are in the server itself
//! (feature `defects` of `pagewire-server`), since no store could make them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{
    Changes, CommitId, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, PageNumber, PageSize,
    Snapshot, StagingId, TagName, Version, VersionEntry,
};
use pagewire_server::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseEntry, Description, PageStore,
    PageWrite, Resolution, Resolve, StoreError, StoredPage,
};
use parking_lot::Mutex;

use crate::plan::Defect;

/// See the file's header.
#[derive(Debug)]
pub struct Defective {
    inner: Arc<dyn PageStore>,
    defect: Defect,
    /// The newest that were given out.
    epochs: Mutex<HashMap<DatabaseId, Epoch>>,
}

/// Switches off what is in the server.
pub fn switch_off(defect: Option<Defect>) {
    #[cfg(feature = "defects")]
    pagewire_server::defects::switch_off(match defect {
        Some(Defect::Fencing) => Some(pagewire_server::defects::Defect::Barriers),
        Some(Defect::PrepareAcks) => Some(pagewire_server::defects::Defect::PrepareAnswers),
        _ => None,
    });
    #[cfg(not(feature = "defects"))]
    let _ = defect;
}

impl Defective {
    /// The store itself if nothing is switched off in it.
    pub fn around(inner: Arc<dyn PageStore>, defect: Option<Defect>) -> Arc<dyn PageStore> {
        match defect {
            Some(defect @ (Defect::EpochCheck | Defect::CommitIds | Defect::StagingFlip)) => {
                Arc::new(Self {
                    inner,
                    defect,
                    epochs: Mutex::default(),
                })
            }
            Some(Defect::Fencing | Defect::PrepareAcks) | None => inner,
        }
    }

    /// What was staged becomes a version of its own, and the rest of the commit the next one.
    async fn commit_in_two(&self, mut commit: Commit) -> Result<CommitOutcome, StoreError> {
        let mut first = commit.clone();
        first.id = CommitId::random().map_err(|error| StoreError::Internal(error.to_string()))?;
        for (first, rest) in first.databases.iter_mut().zip(&mut commit.databases) {
            first.pages.clear();
            first.stagings = std::mem::take(&mut rest.stagings);
            rest.base = rest.base.next();
        }
        match self.inner.commit(first).await? {
            CommitOutcome::Committed(_) => {}
            refused => return Ok(refused),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        self.inner.commit(commit).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl PageStore for Defective {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn incarnation(&self) -> Incarnation {
        self.inner.incarnation()
    }

    fn peers(&self) -> Option<Arc<dyn pagewire_server::peers::Peers>> {
        self.inner.peers()
    }

    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        self.inner.begin_service(lease_ttl).await
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        self.inner.end_service().await
    }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        self.inner.lookup(name, create).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        self.inner.remove(name).await
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        self.inner.head(database).await
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        self.inner.changes(database, since).await
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        self.inner.read(database, version, pages).await
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        self.inner.protect(database, floor, pins).await
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let epoch = self.inner.fence(database).await?;
        self.epochs.lock().insert(database, epoch);
        Ok(epoch)
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        self.inner.stage(database, staging, page_size, pages).await
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        self.inner.discard(staging).await
    }

    async fn commit(&self, mut commit: Commit) -> Result<CommitOutcome, StoreError> {
        match self.defect {
            Defect::EpochCheck => {
                for part in &mut commit.databases {
                    if let Some(epoch) = self.epochs.lock().get(&part.database) {
                        part.epoch = *epoch;
                    }
                }
            }
            Defect::CommitIds => {
                commit.id =
                    CommitId::random().map_err(|error| StoreError::Internal(error.to_string()))?;
            }
            Defect::StagingFlip
                if commit
                    .databases
                    .iter()
                    .any(|part| !part.stagings.is_empty()) =>
            {
                return self.commit_in_two(commit).await;
            }
            Defect::StagingFlip | Defect::Fencing | Defect::PrepareAcks => {}
        }
        self.inner.commit(commit).await
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        let resolution = self.inner.resolve(resolve.clone()).await?;
        if let Resolution::Aborted { current } = &resolution {
            let mut epochs = self.epochs.lock();
            for ((database, ..), epoch) in resolve.participants.iter().zip(current) {
                epochs.insert(*database, *epoch);
            }
        }
        Ok(resolution)
    }

    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        self.inner.find(database, moment).await
    }

    async fn versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        self.inner
            .versions(database, before, tagged_only, limit)
            .await
    }

    async fn diff(
        &self,
        database: DatabaseId,
        from: Version,
        to: Version,
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        self.inner.diff(database, from, to, after, limit).await
    }

    async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        self.inner.set_tag(database, tag, moment, replace).await
    }

    async fn delete_tag(&self, database: DatabaseId, tag: &TagName) -> Result<bool, StoreError> {
        self.inner.delete_tag(database, tag).await
    }

    async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        self.inner.branch(source, moment, branch, name).await
    }

    async fn describe(&self, database: DatabaseId) -> Result<Description, StoreError> {
        self.inner.describe(database).await
    }

    async fn collect(&self, database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        self.inner.collect(database).await
    }
}
