//! A store with one of its checks switched off, or that fails in a way no fault explains, so that the simulator can be tested. Two more switches are
//! in the server itself (feature `defects` of `pagewire-server`), since no store could make them, and what is in the library it asks the simulator for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageNumber, PageSize, StagingId, TagName,
    Version, VersionEntry,
};
use pagewire_server::layer::Layer;
use pagewire_server::store::{
    Commit, CommitOutcome, PageStore, PageWrite, Resolution, Resolve, StoreError, StoredPage,
};
use parking_lot::Mutex;

use crate::plan::{self, Defect};

/// What happens now and then happens once in so many times.
const NOW_AND_THEN: u64 = 20;
/// No database of the simulation has more pages.
const MOST_PAGES: u32 = 1 << 16;

/// Whether it is time for what happens now and then.
fn now_and_then() -> bool {
    static TIMES: AtomicU64 = AtomicU64::new(0);
    (TIMES.fetch_add(1, Ordering::SeqCst) + 1).is_multiple_of(NOW_AND_THEN)
}

/// See the file's header.
#[derive(Debug)]
pub struct Defective {
    inner: Arc<dyn PageStore>,
    defect: Defect,
    /// The newest that were given out.
    epochs: Mutex<HashMap<DatabaseId, Epoch>>,
    /// What was read last of each number, and of which database.
    pages: Mutex<HashMap<PageNumber, (DatabaseId, Bytes)>>,
    /// The newest version of each.
    heads: Mutex<HashMap<DatabaseId, Version>>,
    /// What was staged first.
    staged: Mutex<HashMap<(StagingId, PageNumber), Bytes>>,
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

/// Where the library asks which process it is in, within a callback of SQLite.
pub fn panic_in_the_library() {
    let is_wanted = plan::chosen().is_some_and(|plan| plan.defect == Some(Defect::LibraryPanic));
    if is_wanted && plan::steps() > 0 && now_and_then() {
        panic!("switched on by the defect");
    }
}

/// Whether the library sends pages again raw that a server calls invalid in their encoding.
pub fn sends_raw_again() -> bool {
    plan::chosen().is_none_or(|plan| plan.defect != Some(Defect::NoRawAgain))
}

/// Whether the simulated disk keeps what it is given in a memory of its own, whatever is synced, and loses all of that with its power.
pub fn disk_lies() -> bool {
    let is_wanted = plan::chosen().is_some_and(|plan| plan.defect == Some(Defect::LyingSync));
    is_wanted && plan::steps() > 0
}

/// Whether these are a link to the next page of overflow and a row's content: pages of trees begin with other bytes.
fn is_overflow(number: PageNumber, content: &[u8]) -> bool {
    let link = content.first_chunk().copied().map(u32::from_be_bytes);
    number.get() > 1 && link.is_some_and(|link| link < MOST_PAGES)
}

impl Defective {
    /// The pages of another database, where there was one of that number.
    fn mix_up(&self, database: DatabaseId, pages: &[PageNumber], found: &mut [StoredPage]) {
        let wanted = now_and_then();
        let mut known = self.pages.lock();
        for (number, page) in pages.iter().zip(found) {
            match known.get(number) {
                Some((other, content))
                    if wanted && *other != database && content.len() == page.content.len() =>
                {
                    page.content = content.clone();
                }
                _ => {
                    known.insert(*number, (database, page.content.clone()));
                }
            }
        }
    }

    /// The store itself if nothing is switched off in it.
    pub fn around(inner: Arc<dyn PageStore>, defect: Option<Defect>) -> Arc<dyn PageStore> {
        match defect {
            Some(
                defect @ (Defect::EpochCheck
                | Defect::CommitIds
                | Defect::StagingFlip
                | Defect::ServerPanic
                | Defect::Refusal
                | Defect::Damage
                | Defect::Foreign
                | Defect::ZeroedOverflow
                | Defect::NewestPages
                | Defect::StaleStage
                | Defect::NoVersions),
            ) => Arc::new(Self {
                inner,
                defect,
                epochs: Mutex::default(),
                pages: Mutex::default(),
                heads: Mutex::default(),
                staged: Mutex::default(),
            }),
            Some(
                Defect::Fencing
                | Defect::InvalidationWait
                | Defect::LibraryPanic
                | Defect::LyingSync
                | Defect::NoRawAgain,
            )
            | None => inner,
        }
    }

    fn check_versions(&self) -> Result<(), StoreError> {
        match self.defect {
            Defect::NoVersions => Err(StoreError::Unavailable("switched off".to_owned())),
            _ => Ok(()),
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
        let half = match self.inner.commit(first).await? {
            CommitOutcome::Committed(versions) => versions,
            refused => return Ok(refused),
        };
        tokio::time::sleep(Duration::from_millis(5)).await;
        match self.inner.commit(commit).await? {
            // A client takes no other version than the one behind its base; whoever reads it by itself reads half.
            CommitOutcome::Committed(_) => Ok(CommitOutcome::Committed(half)),
            refused => Ok(refused),
        }
    }
}

#[async_trait]
impl Layer for Defective {
    fn inner(&self) -> &dyn PageStore {
        &*self.inner
    }

    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        self.check_versions()?;
        self.inner.find(database, moment).await
    }

    async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        self.check_versions()?;
        self.inner.set_tag(database, tag, moment, replace).await
    }

    async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        self.check_versions()?;
        self.inner.branch(source, moment, branch, name).await
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let epoch = self.inner.fence(database).await?;
        self.epochs.lock().insert(database, epoch);
        Ok(epoch)
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        let head = match self.defect {
            Defect::NewestPages => self.heads.lock().get(&database).copied(),
            _ => None,
        };
        let head = head.unwrap_or(version).max(version);
        let mut found = self.inner.read(database, head, pages).await?;
        match self.defect {
            Defect::NewestPages => {
                for page in &mut found {
                    page.version = page.version.min(version);
                }
            }
            Defect::Refusal if now_and_then() => {
                return Err(StoreError::Corrupt("switched on by the defect".to_owned()));
            }
            Defect::Damage if now_and_then() => {
                for page in &mut found {
                    page.content = Bytes::new();
                }
            }
            Defect::Foreign => self.mix_up(database, pages, &mut found),
            Defect::ZeroedOverflow => {
                for (number, page) in pages.iter().zip(&mut found) {
                    if is_overflow(*number, &page.content) && now_and_then() {
                        let mut zeros = vec![0; page.content.len()];
                        zeros[..4].copy_from_slice(&page.content[..4]);
                        page.content = zeros.into();
                    }
                }
            }
            _ => {}
        }
        Ok(found)
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        mut pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        if self.defect == Defect::StaleStage {
            let mut staged = self.staged.lock();
            for page in &mut pages {
                let first = staged
                    .entry((staging, page.number))
                    .or_insert_with(|| page.content.clone());
                page.content = first.clone();
            }
        }
        self.inner.stage(database, staging, page_size, pages).await
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
            Defect::ServerPanic if now_and_then() => panic!("switched on by the defect"),
            _ => {}
        }
        let databases: Vec<_> = commit.databases.iter().map(|part| part.database).collect();
        let outcome = self.inner.commit(commit).await?;
        if let CommitOutcome::Committed(versions) = &outcome {
            let mut heads = self.heads.lock();
            for (database, version) in databases.into_iter().zip(versions) {
                let head = heads.entry(database).or_insert(*version);
                *head = (*head).max(*version);
            }
        }
        Ok(outcome)
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
