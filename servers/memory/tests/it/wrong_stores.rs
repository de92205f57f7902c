//! Stores that are wrong in one way each: the suite has to say so, by the rule that the fault breaks.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pagewire_memory::MemoryStore;
use pagewire_proto::{
    Changes, CommitId, DatabaseId, DatabaseName, Epoch, PageCount, PageNumber, PageSize, Snapshot,
    StagingId, Version,
};
use pagewire_server::conformance::endpoint::Served;
use pagewire_server::conformance::{Context, RULES, StoreUnderTest, Verdict, rule};
use pagewire_server::layer::Layer;
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseEntry, PageStore, PageWrite, Resolution, Resolve, StoreError,
    StoredPage,
};
use parking_lot::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    LookupCreatesUnasked,
    ListIsReversed,
    CommitIsTorn,
    HeadIsStale,
    ConflictNamesTheFirstDatabase,
    EpochIsIgnored,
    RepeatedCommitAppliesTwice,
    GrownPagesShowOldBytes,
    EmptiedDatabaseKeepsAPage,
    /// A version has as many pages as its base.
    SizeIsForgotten,
    /// Of several pages that a commit writes the last one is not there.
    LastPageIsLost,
    LastWriteDoesNotHold,
    PagesAreOffByOneFrom256,
    ProtectedVersionsShowTheHead,
    ChangesForgetTheLastPage,
    EpochsRepeat,
    ResolveIsNoWrite,
    CommitsAreNotRemembered,
    StagingIsNotConsumed,
}

/// The rules that have to notice.
const NOTICED_BY: &[(Fault, &[&str])] = &[
    (Fault::LookupCreatesUnasked, &["c01"]),
    (Fault::ListIsReversed, &["c02"]),
    (Fault::CommitIsTorn, &["c03", "random"]),
    (Fault::HeadIsStale, &["c03", "random"]),
    (Fault::ConflictNamesTheFirstDatabase, &["c04", "random"]),
    (Fault::EpochIsIgnored, &["c05", "c12", "c13", "random"]),
    (Fault::RepeatedCommitAppliesTwice, &["c06", "random"]),
    (Fault::GrownPagesShowOldBytes, &["c08", "random"]),
    (Fault::EmptiedDatabaseKeepsAPage, &["c08", "random"]),
    (Fault::SizeIsForgotten, &["c08", "random"]),
    (Fault::LastPageIsLost, &["c03", "c08", "random"]),
    (Fault::LastWriteDoesNotHold, &["c08", "random"]),
    (Fault::PagesAreOffByOneFrom256, &["c09"]),
    (Fault::ProtectedVersionsShowTheHead, &["c10", "random"]),
    (Fault::ChangesForgetTheLastPage, &["c11", "random"]),
    (Fault::EpochsRepeat, &["c12", "random"]),
    (Fault::ResolveIsNoWrite, &["c13", "random"]),
    (Fault::CommitsAreNotRemembered, &["c13", "c14", "random"]),
    (Fault::StagingIsNotConsumed, &["c15"]),
];

#[derive(Debug)]
struct WrongStore {
    right: MemoryStore,
    fault: Fault,
    memory: Mutex<Memory>,
}

/// What the faults need to know.
#[derive(Debug, Default)]
struct Memory {
    heads: HashMap<DatabaseId, Snapshot>,
    epochs: HashMap<DatabaseId, Epoch>,
    seen: HashMap<(DatabaseId, PageNumber), StoredPage>,
    committed: Vec<CommitId>,
    staged: HashMap<StagingId, (DatabaseId, PageSize, Vec<PageWrite>)>,
}

impl WrongStore {
    async fn torn(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let mut versions = Vec::new();
        for part in commit.databases {
            let one = Commit {
                id: commit.id,
                databases: vec![part],
            };
            match self.right.commit(one).await? {
                CommitOutcome::Committed(made) => versions.extend(made),
                refused => return Ok(refused),
            }
        }
        Ok(CommitOutcome::Committed(versions))
    }

    async fn twice(&self, mut commit: Commit) -> Result<CommitOutcome, StoreError> {
        let outcome = self.right.commit(commit.clone()).await?;
        let repeated = self.memory.lock().committed.contains(&commit.id);
        if let (CommitOutcome::Committed(_), true) = (&outcome, repeated) {
            for part in &mut commit.databases {
                part.base = self.right.head(part.database).await?.version;
                part.epoch = self.right.fence(part.database).await?;
                part.stagings.clear();
            }
            commit.id = CommitId::random().map_err(|e| StoreError::Internal(e.to_string()))?;
            self.right.commit(commit).await?;
        } else {
            self.memory.lock().committed.push(commit.id);
        }
        Ok(outcome)
    }

    async fn restage(&self, commit: &Commit) -> Result<(), StoreError> {
        for id in commit.databases.iter().flat_map(|part| &part.stagings) {
            let staged = self.memory.lock().staged.get(id).cloned();
            if let Some((database, size, pages)) = staged {
                self.right.stage(database, *id, size, pages).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Layer for WrongStore {
    fn inner(&self) -> &dyn PageStore {
        &self.right
    }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        let create = create || self.fault == Fault::LookupCreatesUnasked;
        self.right.lookup(name, create).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        let mut entries = self.right.list(prefix, after, limit).await?;
        if self.fault == Fault::ListIsReversed {
            entries.reverse();
        }
        Ok(entries)
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        let head = self.right.head(database).await?;
        if self.fault == Fault::HeadIsStale {
            // As a cache does that is refreshed by the question instead of by the commit.
            let known = self.memory.lock().heads.insert(database, head);
            return Ok(known.unwrap_or(head));
        }
        Ok(head)
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        let (head, mut changes) = self.right.changes(database, since).await?;
        if let (Fault::ChangesForgetTheLastPage, Changes::Pages(pages)) = (self.fault, &mut changes)
        {
            pages.pop();
        }
        Ok((head, changes))
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        let head = self.right.head(database).await?;
        let mut asked = pages.to_vec();
        if self.fault == Fault::PagesAreOffByOneFrom256 {
            for page in asked.iter_mut().filter(|page| page.get() >= 256) {
                *page = PageNumber::try_from(page.get() - 1).unwrap_or(*page);
            }
        }
        let version = match self.fault {
            Fault::ProtectedVersionsShowTheHead if version < head.version => head.version,
            _ => version,
        };
        let mut answer = self.right.read(database, version, &asked).await?;
        if self.fault == Fault::GrownPagesShowOldBytes {
            let memory = self.memory.lock();
            let within = |page: &PageNumber| head.page_count.has(*page);
            for (number, page) in pages.iter().zip(&mut answer) {
                if let (true, true, Some(seen)) = (
                    page.content.is_empty(),
                    within(number),
                    memory.seen.get(&(database, *number)),
                ) {
                    *page = seen.clone();
                }
            }
        }
        Ok(answer)
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        let known = self.memory.lock().epochs.get(&database).copied();
        if let (Fault::EpochsRepeat, Some(epoch)) = (self.fault, known) {
            return Ok(epoch);
        }
        let epoch = self.right.fence(database).await?;
        self.memory.lock().epochs.insert(database, epoch);
        Ok(epoch)
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        let stage = self
            .right
            .stage(database, staging, page_size, pages.clone());
        stage.await?;
        let mut memory = self.memory.lock();
        let staged = memory.staged.entry(staging);
        let staged = staged.or_insert_with(|| (database, page_size, Vec::new()));
        staged.2.extend(pages);
        Ok(())
    }

    async fn commit(&self, mut commit: Commit) -> Result<CommitOutcome, StoreError> {
        match self.fault {
            Fault::CommitIsTorn => return self.torn(commit).await,
            Fault::RepeatedCommitAppliesTwice => return self.twice(commit).await,
            Fault::EpochIsIgnored => {
                let memory = self.memory.lock();
                for part in &mut commit.databases {
                    if let Some(epoch) = memory.epochs.get(&part.database) {
                        part.epoch = *epoch;
                    }
                }
            }
            Fault::EmptiedDatabaseKeepsAPage => {
                for part in &mut commit.databases {
                    if part.page_count == PageCount::ZERO {
                        part.page_count = PageCount::try_from(1)
                            .map_err(|e| StoreError::Internal(e.to_string()))?;
                    }
                }
            }
            Fault::SizeIsForgotten => {
                for part in &mut commit.databases {
                    let base = self.right.head(part.database).await?;
                    if base.version > Version::ZERO {
                        part.page_count = base.page_count;
                    }
                }
            }
            Fault::LastPageIsLost => {
                for part in &mut commit.databases {
                    if part.pages.len() > 1 {
                        part.pages.pop();
                    }
                }
            }
            Fault::LastWriteDoesNotHold => {
                for part in &mut commit.databases {
                    part.pages.reverse();
                }
            }
            Fault::GrownPagesShowOldBytes => {
                let mut memory = self.memory.lock();
                for part in &commit.databases {
                    for page in &part.pages {
                        let stored = StoredPage {
                            content: Bytes::clone(&page.content),
                            version: part.base.next(),
                        };
                        memory.seen.insert((part.database, page.number), stored);
                    }
                }
            }
            _ => {}
        }
        let outcome = self.right.commit(commit.clone()).await?;
        match outcome {
            CommitOutcome::Committed(_) if self.fault == Fault::StagingIsNotConsumed => {
                self.restage(&commit).await?;
                Ok(outcome)
            }
            CommitOutcome::Conflict { head, .. }
                if self.fault == Fault::ConflictNamesTheFirstDatabase =>
            {
                Ok(CommitOutcome::Conflict { index: 0, head })
            }
            outcome => Ok(outcome),
        }
    }

    async fn resolve(&self, mut resolve: Resolve) -> Result<Resolution, StoreError> {
        match self.fault {
            Fault::ResolveIsNoWrite => {
                for participant in &mut resolve.participants {
                    participant.2 = Epoch::NONE;
                }
            }
            Fault::CommitsAreNotRemembered => {
                resolve.id = CommitId::from_bytes([0; 16]);
            }
            _ => {}
        }
        self.right.resolve(resolve).await
    }
}

/// A memory store with a fault.
pub(crate) fn wrong_store(fault: Fault) -> Arc<dyn PageStore> {
    Arc::new(WrongStore {
        right: MemoryStore::new().unwrap(),
        fault,
        memory: Mutex::default(),
    })
}

struct Wrong(Fault);

#[async_trait]
impl StoreUnderTest for Wrong {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        Ok(Arc::new(WrongStore {
            right: MemoryStore::new()?,
            fault: self.0,
            memory: Mutex::default(),
        }))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_noticed_by_the_rule_that_it_breaks() {
    for (fault, rules) in NOTICED_BY {
        for name in *rules {
            let rule = rule(name).unwrap();
            let store = &Wrong(*fault);
            let outcome = (rule.run)(Context { store, seed: 1 }).await;
            let violation = outcome.expect_err(&format!("{fault:?} passed {name}"));
            println!("{fault:?} by {name}: {violation}");
        }
    }
}

/// Faults that do not get through a page server: it takes the head from `changes`, in one moment with what differs; and it forgets
/// a staging with the commit itself.
const STOPPED_BY_THE_SERVER: &[Fault] = &[Fault::HeadIsStale, Fault::StagingIsNotConsumed];

/// The same rules notice the same faults where the store is behind a page server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_is_noticed_through_a_server_by_the_same_rule() {
    let mut passed = Vec::new();
    for (fault, rules) in NOTICED_BY {
        // Histories take long, and have nothing to add to the rule.
        for name in rules.iter().filter(|name| **name != "random") {
            let rule = rule(name).unwrap();
            let store = &Served::new(Wrong(*fault));
            match (rule.run)(Context { store, seed: 1 }).await {
                Err(violation) => println!("{fault:?} by {name} through a server: {violation}"),
                Ok(_) => passed.push(*fault),
            }
        }
    }
    assert_eq!(passed, STOPPED_BY_THE_SERVER);
}

/// Rules that can be tried on a store that never restarts each notice at least one of the faults. Those on versions, restarts and the
/// medium are for the wrong stores of `servers/versioned_memory`.
#[test]
fn every_rule_has_a_fault_that_it_notices() {
    let elsewhere = ["c07", "c16", "c17", "v0", "trust"];
    for rule in RULES {
        let noticed = NOTICED_BY
            .iter()
            .any(|(_, rules)| rules.iter().any(|name| rule.name.starts_with(name)));
        let excused = elsewhere.iter().any(|name| rule.name.starts_with(name));
        assert!(noticed != excused, "{}", rule.name);
    }
}

#[tokio::test]
async fn a_rule_that_cannot_be_tried_says_so() {
    struct Right;
    #[async_trait]
    impl StoreUnderTest for Right {
        async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
            Ok(Arc::new(MemoryStore::new()?))
        }
    }
    for name in [
        "c07", "c16", "c17", "trust", "v01", "v02", "v03", "v04", "v05", "v06", "v07",
    ] {
        let run = rule(name).unwrap().run;
        let outcome = run(Context {
            store: &Right,
            seed: 1,
        });
        assert!(matches!(outcome.await, Ok(Verdict::NotTried(_))), "{name}");
    }
}
