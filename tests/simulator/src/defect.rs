//! A store with one of its checks switched off, so that the simulator can be tested. Two more switches are in the server itself
//! (feature `defects` of `pagewire-server`), since no store could make them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{CommitId, DatabaseId, Epoch};
use pagewire_server::layer::Layer;
use pagewire_server::store::{Commit, CommitOutcome, PageStore, Resolution, Resolve, StoreError};
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
        Some(Defect::InvalidationWait) => Some(pagewire_server::defects::Defect::PrepareAnswers),
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
            Some(Defect::Fencing | Defect::InvalidationWait) | None => inner,
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

#[async_trait]
impl Layer for Defective {
    fn inner(&self) -> &dyn PageStore {
        &*self.inner
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let epoch = self.inner.fence(database).await?;
        self.epochs.lock().insert(database, epoch);
        Ok(epoch)
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
            Defect::StagingFlip | Defect::Fencing | Defect::InvalidationWait => {}
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
}
