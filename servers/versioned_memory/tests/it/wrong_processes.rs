//! Stores that are wrong in what they do after a restart, or with a medium that fails: the suite has to say so, by the rule that the fault
//! breaks. The store in memory plays the medium, which outlives the processes that have it open.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pagewire_proto::{DatabaseId, Moment, PageNumber, Snapshot, Version};
use pagewire_server::conformance::{Context, Damage, StoreUnderTest, Verdict, rule};
use pagewire_server::layer::Layer;
use pagewire_server::store::{
    Capabilities, Commit, CommitOutcome, PageStore, StoreError, StoredPage,
};
use pagewire_versioned_memory::VersionedMemoryStore;
use parking_lot::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// What was acknowledged was in memory.
    EverythingIsLostByARestart,
    /// The last write was acknowledged before it was there.
    TheLastVersionIsLostByARestart,
    TagsAreLostByARestart,
    DamageIsReturned,
    DamageHasNoName,
    DamageTakesItsNeighbours,
    /// What failed once may have failed for what came before, too.
    CommitsGoOnAfterAFailure,
    ReadsEndWithAFailure,
    TrustIsForgotten,
    /// As if the process before had been the only one.
    TrustIsOfTheLastProcess,
    AnEndIsNotNoticed,
}

/// The rules that have to notice.
pub(crate) const NOTICED_BY: &[(Fault, &str)] = &[
    (Fault::EverythingIsLostByARestart, "c07"),
    (Fault::TheLastVersionIsLostByARestart, "c07"),
    (Fault::TagsAreLostByARestart, "v07"),
    (Fault::DamageIsReturned, "c16"),
    (Fault::DamageHasNoName, "c16"),
    (Fault::DamageTakesItsNeighbours, "c16"),
    (Fault::CommitsGoOnAfterAFailure, "c17"),
    (Fault::ReadsEndWithAFailure, "c17"),
    (Fault::TrustIsForgotten, "trust"),
    (Fault::TrustIsOfTheLastProcess, "trust"),
    (Fault::AnEndIsNotNoticed, "trust"),
];

/// What is left of a process.
#[derive(Debug)]
struct Medium {
    content: VersionedMemoryStore,
    damaged: Mutex<HashSet<(DatabaseId, PageNumber, Version)>>,
    fails_next: AtomicBool,
    /// For how long leases of earlier processes may be trusted.
    trusted: Mutex<Duration>,
}

impl Medium {
    fn new() -> Result<Arc<Self>, StoreError> {
        Ok(Arc::new(Self {
            content: VersionedMemoryStore::new()?,
            damaged: Mutex::default(),
            fails_next: AtomicBool::new(false),
            trusted: Mutex::default(),
        }))
    }
}

#[derive(Debug)]
struct Process {
    medium: Arc<Medium>,
    fault: Fault,
    failed: AtomicBool,
    committed: Arc<Mutex<HashSet<DatabaseId>>>,
    /// Databases whose last version was lost by the restart before this process.
    lost: Mutex<HashSet<DatabaseId>>,
}

#[async_trait]
impl Layer for Process {
    fn inner(&self) -> &dyn PageStore {
        &self.medium.content
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            durable: true,
            ..self.medium.content.capabilities()
        }
    }

    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        let mut trusted = self.medium.trusted.lock();
        let wait = *trusted;
        *trusted = match self.fault {
            Fault::TrustIsOfTheLastProcess => lease_ttl,
            _ => wait.max(lease_ttl),
        };
        Ok(match self.fault {
            Fault::TrustIsForgotten => Duration::ZERO,
            _ => wait,
        })
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        if self.fault != Fault::AnEndIsNotNoticed {
            *self.medium.trusted.lock() = Duration::ZERO;
        }
        Ok(())
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        let head = self.medium.content.head(database).await?;
        if !self.lost.lock().contains(&database) {
            return Ok(head);
        }
        let before = Moment::Version(Version::new(head.version.get() - 1));
        Ok(self.medium.content.find(database, &before).await?.snapshot)
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        if self.fault == Fault::ReadsEndWithAFailure && self.failed.load(Ordering::Relaxed) {
            return Err(StoreError::Internal("the medium failed".to_owned()));
        }
        let mut read = self.medium.content.read(database, version, pages).await?;
        let damaged = self.medium.damaged.lock();
        for (number, page) in pages.iter().zip(&mut read) {
            let beside = PageNumber::try_from(number.get() ^ 1).unwrap_or(*number);
            let is_beside = self.fault == Fault::DamageTakesItsNeighbours
                && damaged.contains(&(database, beside, page.version));
            if !damaged.contains(&(database, *number, page.version)) && !is_beside {
                continue;
            }
            match self.fault {
                Fault::DamageIsReturned => {
                    let mut content = page.content.to_vec();
                    content[0] ^= 1;
                    page.content = Bytes::from(content);
                }
                Fault::DamageHasNoName => {
                    return Err(StoreError::Corrupt("checksum differs".to_owned()));
                }
                _ => {
                    let version = page.version;
                    let what = format!("page {number} at version {version}: checksum differs");
                    return Err(StoreError::Corrupt(what));
                }
            }
        }
        Ok(read)
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let fails = self.medium.fails_next.swap(false, Ordering::Relaxed);
        let goes_on = self.fault == Fault::CommitsGoOnAfterAFailure;
        if fails || self.failed.load(Ordering::Relaxed) {
            self.failed.store(!goes_on, Ordering::Relaxed);
            return Err(StoreError::Internal("the medium failed".to_owned()));
        }
        for part in &commit.databases {
            self.committed.lock().insert(part.database);
            self.lost.lock().remove(&part.database);
        }
        self.medium.content.commit(commit).await
    }
}

struct Wrong {
    fault: Fault,
    medium: Mutex<Arc<Medium>>,
    committed: Arc<Mutex<HashSet<DatabaseId>>>,
}

impl Wrong {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            medium: Mutex::new(Medium::new().unwrap()),
            committed: Arc::default(),
        }
    }

    fn process(&self) -> Arc<dyn PageStore> {
        let lost = match self.fault {
            Fault::TheLastVersionIsLostByARestart => std::mem::take(&mut *self.committed.lock()),
            _ => HashSet::new(),
        };
        Arc::new(Process {
            medium: Arc::clone(&self.medium.lock()),
            fault: self.fault,
            failed: AtomicBool::new(false),
            committed: Arc::clone(&self.committed),
            lost: Mutex::new(lost),
        })
    }
}

#[async_trait]
impl StoreUnderTest for Wrong {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        Ok(self.process())
    }

    fn can_restart(&self) -> bool {
        true
    }

    async fn reopen(&self, store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        match self.fault {
            Fault::EverythingIsLostByARestart => *self.medium.lock() = Medium::new()?,
            Fault::TagsAreLostByARestart => {
                for entry in store.list("", "", 1000).await? {
                    let database = entry.database;
                    for version in store.versions(database, None, true, 1000).await? {
                        for tag in version.tags {
                            store.delete_tag(database, &tag).await?;
                        }
                    }
                }
            }
            _ => {}
        }
        drop(store);
        Ok(self.process())
    }

    async fn damage(
        &self,
        _store: &Arc<dyn PageStore>,
        damage: Damage,
    ) -> Result<bool, StoreError> {
        let medium = Arc::clone(&self.medium.lock());
        match damage {
            Damage::FlipBit(database, page, version) => {
                medium.damaged.lock().insert((database, page, version));
            }
            Damage::FailNextCommit => medium.fails_next.store(true, Ordering::Relaxed),
        }
        Ok(true)
    }
}

async fn trial(fault: Fault, name: &str) -> pagewire_server::conformance::Outcome {
    let store = &Wrong::new(fault);
    (rule(name).unwrap().run)(Context { store, seed: 1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_noticed_by_the_rule_that_it_breaks() {
    for (fault, name) in NOTICED_BY {
        let right = trial(Fault::None, name).await;
        assert!(matches!(right, Ok(Verdict::Kept)), "{name}: {right:?}");
        let violation = trial(*fault, name).await;
        let violation = violation.expect_err(&format!("{fault:?} passed {name}"));
        println!("{fault:?} by {name}: {violation}");
    }
}
