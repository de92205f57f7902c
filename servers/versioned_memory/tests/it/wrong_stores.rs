//! Stores with versions that are wrong in one way each: the suite has to say so, by the rule that the fault breaks. As
//! `servers/memory/tests/it/wrong_stores.rs` for the rules without versions.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{
    DatabaseId, DatabaseName, Moment, PageNumber, TagName, UnixMillis, Version, VersionEntry,
};
use pagewire_server::clock::ManualClock;
use pagewire_server::conformance::endpoint::Served;
use pagewire_server::conformance::{Context, RULES, Rule, StoreUnderTest, rule};
use pagewire_server::layer::Layer;
use pagewire_server::store::{Collected, Commit, CommitOutcome, PageStore, StoreError, StoredPage};
use pagewire_versioned_memory::{VersionedMemoryOptions, VersionedMemoryStore};
use parking_lot::Mutex;

use crate::wrong_processes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// As a store does that searches forward from the time.
    TimeMeansTheNextVersion,
    /// What peers do whose snapshots are times: the neighbour answers for the version that is gone.
    GoneTimesAreOfTheNeighbour,
    ListRepeatsTheLastOne,
    DiffForgetsTheLastPage,
    /// Tags do not keep.
    PinsAreForgotten,
    TagsMoveUnasked,
    DeletedTagsComeAgain,
    BranchIsOfTheHead,
    BranchTakesAnyName,
    /// As a store does that looks only for what is there.
    BranchTakesTheIdOfARemovedOne,
    RestoreIsOfTheVersionBefore,
    RestoredPagesKeepTheirVersion,
    NothingIsEverCollected,
    CollectionIsNeverAtItsEnd,
    /// A floor protects nothing.
    FloorsAreForgotten,
    /// What was restored once stays, also when nothing stands on it any more.
    RestoredVersionsStay,
}

/// The rules that have to notice.
const NOTICED_BY: &[(Fault, &[&str])] = &[
    (Fault::TimeMeansTheNextVersion, &["v01"]),
    (Fault::GoneTimesAreOfTheNeighbour, &["v02"]),
    (Fault::ListRepeatsTheLastOne, &["v01"]),
    (Fault::DiffForgetsTheLastPage, &["v01"]),
    (Fault::PinsAreForgotten, &["v02", "v06", "random"]),
    (Fault::TagsMoveUnasked, &["v03", "random"]),
    (Fault::DeletedTagsComeAgain, &["v03", "random"]),
    (Fault::BranchIsOfTheHead, &["v04", "random"]),
    (Fault::BranchTakesAnyName, &["v04"]),
    (Fault::BranchTakesTheIdOfARemovedOne, &["v04"]),
    (Fault::RestoreIsOfTheVersionBefore, &["v05", "random"]),
    (Fault::RestoredPagesKeepTheirVersion, &["v05", "random"]),
    (Fault::NothingIsEverCollected, &["v02", "v06", "random"]),
    (Fault::CollectionIsNeverAtItsEnd, &["v06"]),
    (Fault::FloorsAreForgotten, &["v06", "random"]),
    (Fault::RestoredVersionsStay, &["random"]),
];

#[derive(Debug)]
struct WrongStore {
    right: VersionedMemoryStore,
    fault: Fault,
    /// For a fault that keeps versions: what was restored, and what is protected besides.
    kept: Mutex<HashMap<DatabaseId, Kept>>,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    restored: BTreeSet<Version>,
    floor: Option<Version>,
    pins: BTreeSet<Version>,
}

impl WrongStore {
    async fn keep(&self, database: DatabaseId, kept: Kept) -> Result<(), StoreError> {
        let pins: Vec<_> = kept.restored.union(&kept.pins).copied().collect();
        self.right.protect(database, kept.floor, &pins).await?;
        self.kept.lock().insert(database, kept);
        Ok(())
    }

    fn kept(&self, database: DatabaseId) -> Kept {
        let kept = self.kept.lock();
        kept.get(&database).cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Layer for WrongStore {
    fn inner(&self) -> &dyn PageStore {
        &self.right
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        let mut read = self.right.read(database, version, pages).await?;
        if self.fault == Fault::RestoredPagesKeepTheirVersion && version > Version::ZERO {
            let entry = self.right.find(database, &Moment::Version(version)).await?;
            if let Some(from) = entry.restored_from {
                for page in &mut read {
                    page.version = page.version.min(from);
                }
            }
        }
        Ok(read)
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        if self.fault == Fault::RestoredVersionsStay {
            let pins = pins.iter().copied().collect();
            let kept = self.kept(database);
            return self
                .keep(
                    database,
                    Kept {
                        floor,
                        pins,
                        ..kept
                    },
                )
                .await;
        }
        self.right.protect(database, floor, pins).await?;
        match self.fault {
            Fault::PinsAreForgotten => self.right.protect(database, floor, &[]).await,
            Fault::FloorsAreForgotten => self.right.protect(database, None, pins).await,
            _ => Ok(()),
        }
    }

    async fn commit(&self, mut commit: Commit) -> Result<CommitOutcome, StoreError> {
        if self.fault == Fault::RestoreIsOfTheVersionBefore {
            for part in &mut commit.databases {
                let before = part.restore.and_then(|from| from.get().checked_sub(1));
                let Some(before) = before.filter(|before| *before > 0).map(Version::new) else {
                    continue;
                };
                let moment = Moment::Version(before);
                if let Ok(before) = self.right.find(part.database, &moment).await {
                    part.restore = Some(before.snapshot.version);
                    part.page_count = before.snapshot.page_count;
                    part.page_size = before.snapshot.page_size.unwrap_or(part.page_size);
                }
            }
        }
        if self.fault == Fault::RestoredVersionsStay {
            for part in &commit.databases {
                let mut kept = self.kept(part.database);
                kept.restored.extend(part.restore);
                // A restore of what is gone is refused by itself.
                let _ = self.keep(part.database, kept).await;
            }
        }
        self.right.commit(commit).await
    }

    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        let found = self.right.find(database, moment).await;
        let Moment::Time(UnixMillis(time)) = moment else {
            return found;
        };
        match (self.fault, found) {
            (Fault::TimeMeansTheNextVersion, Ok(found)) if found.time.0 < *time => {
                let next = Moment::Version(found.snapshot.version.next());
                Ok(self.right.find(database, &next).await.unwrap_or(found))
            }
            (Fault::GoneTimesAreOfTheNeighbour, Err(StoreError::VersionGone { .. })) => {
                let all = self.right.versions(database, None, false, 1000).await?;
                let oldest = all.into_iter().next_back();
                oldest.ok_or(StoreError::VersionGone {
                    version: Version::ZERO,
                })
            }
            (_, found) => found,
        }
    }

    async fn versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        let before = match self.fault {
            Fault::ListRepeatsTheLastOne => before.map(Version::next),
            _ => before,
        };
        self.right
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
        let mut pages = self.right.diff(database, from, to, after, limit).await?;
        if self.fault == Fault::DiffForgetsTheLastPage {
            pages.pop();
        }
        Ok(pages)
    }

    async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        let replace = replace || self.fault == Fault::TagsMoveUnasked;
        self.right.set_tag(database, tag, moment, replace).await
    }

    async fn delete_tag(&self, database: DatabaseId, tag: &TagName) -> Result<bool, StoreError> {
        let moment = Moment::Tag(tag.clone());
        let found = self.right.find(database, &moment).await;
        let existed = self.right.delete_tag(database, tag).await?;
        if let (Fault::DeletedTagsComeAgain, Ok(found)) = (self.fault, found) {
            let moment = Moment::Version(found.snapshot.version);
            self.right.set_tag(database, tag, &moment, true).await?;
        }
        Ok(existed)
    }

    async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        let found = self.right.find(source, moment).await;
        if self.fault == Fault::BranchIsOfTheHead && found.is_ok() {
            self.right
                .branch(source, &Moment::Age(0), branch, name)
                .await?;
            return found;
        }
        match self.right.branch(source, moment, branch, name).await {
            Err(StoreError::NameTaken(_)) if self.fault == Fault::BranchTakesAnyName => {
                self.right.remove(name).await?;
                self.right.branch(source, moment, branch, name).await
            }
            Err(StoreError::NameTaken(_))
                if self.fault == Fault::BranchTakesTheIdOfARemovedOne
                    && self.right.head(branch).await.is_err()
                    && self.right.lookup(name, false).await.is_err() =>
            {
                let made = DatabaseId::random().unwrap();
                self.right.branch(source, moment, made, name).await
            }
            answer => answer,
        }
    }

    async fn collect(&self, database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        match self.fault {
            Fault::NothingIsEverCollected => Ok(Collected::default()),
            Fault::CollectionIsNeverAtItsEnd => Ok(Collected {
                more: true,
                ..self.right.collect(database).await?
            }),
            _ => self.right.collect(database).await,
        }
    }
}

struct Wrong(Fault, ManualClock);

impl Wrong {
    fn store(&self, retention: Option<Duration>) -> Result<Arc<dyn PageStore>, StoreError> {
        let options = VersionedMemoryOptions {
            // The right one drops versions by time too.
            retention: retention.filter(|_| self.0 != Fault::NothingIsEverCollected),
            clock: self.1.clock(),
        };
        Ok(Arc::new(WrongStore {
            right: VersionedMemoryStore::with_options(options)?,
            fault: self.0,
            kept: Mutex::default(),
        }))
    }
}

#[async_trait]
impl StoreUnderTest for Wrong {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        self.store(None)
    }

    async fn open_with_retention(
        &self,
        retention: Duration,
    ) -> Result<Option<Arc<dyn PageStore>>, StoreError> {
        self.store(Some(retention)).map(Some)
    }

    fn advance_clock(&self, by: Duration) {
        self.1.advance(by);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_noticed_by_the_rule_that_it_breaks() {
    for (fault, rules) in NOTICED_BY {
        for name in *rules {
            let rule = rule(name).unwrap();
            let store = &Wrong(*fault, ManualClock::default());
            let outcome = (rule.run)(Context { store, seed: 1 }).await;
            let violation = outcome.expect_err(&format!("{fault:?} passed {name}"));
            println!("{fault:?} by {name}: {violation}");
        }
    }
}

/// The same rules notice the same faults where the store is behind a page server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_noticed_through_a_server_by_the_same_rule() {
    for (fault, rules) in NOTICED_BY {
        // A collection without an end is told by the ten thousandth step, and histories take long.
        let skipped = |name: &str| *fault == Fault::CollectionIsNeverAtItsEnd || name == "random";
        for name in rules.iter().filter(|name| !skipped(name)) {
            let rule = rule(name).unwrap();
            let store = &Served::new(Wrong(*fault, ManualClock::default()));
            let outcome = (rule.run)(Context { store, seed: 1 }).await;
            let violation = outcome.expect_err(&format!("{fault:?} passed {name}"));
            println!("{fault:?} by {name} through a server: {violation}");
        }
    }
}

/// Rules on versions, and those on restarts and on the medium, each notice at least one of the faults here or in `wrong_processes.rs`. The others
/// are for the wrong stores of `servers/memory`.
#[test]
fn every_rule_that_is_left_has_a_fault_that_it_notices() {
    let left = ["c07", "c16", "c17", "v0", "trust"];
    let is_left = |rule: &&Rule| left.iter().any(|name| rule.name.starts_with(name));
    for rule in RULES.iter().filter(is_left) {
        let here = NOTICED_BY.iter().flat_map(|(_, rules)| rules.iter());
        let there = wrong_processes::NOTICED_BY.iter().map(|(_, name)| name);
        let noticed = here.chain(there).any(|name| rule.name.starts_with(name));
        assert!(noticed, "{}", rule.name);
    }
}
