//! Random histories of several databases against the model of `oracle.rs`, everything checked after every step.
//!
//! One task, so that the model always knows the only right answer. What runs at the same time is tried in the rules. What a
//! store with versions can do besides is in `model_versions.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::{
    Changes, CommitId, DatabaseId, Epoch, PageNumber, PageSize, StagingId, Version,
};
use tokio::time::Instant;

use super::fixture::{Bench, Random, content, describe, ensure, number_of, page_count};
use super::oracle::{Model, Protected, Staged, Stagings, was_applied};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{
    Capabilities, Commit, CommitOutcome, DatabaseCommit, PageWrite, Resolution, Resolve, StoreError,
};

/// Steps of a history.
const STEPS: usize = 500;
/// Databases of a history.
const DATABASES: usize = 3;
/// How long versions are kept, where that can be set.
pub(super) const RETENTION_MINUTES: u64 = 60;
/// No trial takes so long.
const LONG_RETENTION: Duration = Duration::from_secs(1200);
/// Page numbers that a history uses.
pub(super) const PAGES: u32 = 12;

pub(super) struct History<'a> {
    pub(super) bench: Bench,
    pub(super) context: Context<'a>,
    pub(super) random: Random,
    pub(super) models: Vec<Model>,
    stagings: Stagings,
    /// Commits that were sent, applied or not.
    pub(super) sent: Vec<Commit>,
    stamp: u64,
    /// What each branch was made from, also of those that were removed.
    pub(super) origins: BTreeMap<DatabaseId, (DatabaseId, u64)>,
    /// What sessions of servers that were killed protected, and until when those may be taken for ones that live.
    pub(super) left: Vec<(Instant, Protected)>,
    /// Whether versions, tags and branches are tried.
    pub(super) versions: bool,
    /// How long the store keeps versions; `None` for longer than any trial.
    pub(super) minutes: Option<u64>,
    /// Minutes by the clock of the store since the beginning.
    pub(super) now: u64,
}

pub(super) async fn random(context: Context<'_>) -> Outcome {
    let kept = Duration::from_secs(60 * RETENTION_MINUTES);
    let (bench, minutes) = match Bench::open_keeping(context, kept).await? {
        Some(bench) => (bench, Some(RETENTION_MINUTES)),
        None => (Bench::open(context).await?, None),
    };
    let capabilities = bench.store.capabilities();
    let mut history = History {
        bench,
        versions: capabilities.versions && capabilities.branches,
        // A store without versions keeps none for their age; nor does one whose retention a trial may outlast.
        minutes: minutes.or((!keeps_for_a_while(&capabilities)).then_some(0)),
        now: 0,
        origins: BTreeMap::new(),
        left: Vec::new(),
        context,
        random: Random::new(context.seed),
        models: Vec::new(),
        stagings: Stagings::new(),
        sent: Vec::new(),
        stamp: 0,
    };
    for index in 0..DATABASES {
        let name = history.bench.name(&index.to_string())?;
        let id = history.bench.store.lookup(&name, true).await?;
        history.models.push(Model::new(id));
    }
    let restarts = context.store.can_restart() && capabilities.durable;
    // Behind a server each costs the TTL of a lease.
    let restarts_per_1000 = if context.store.behind_a_server() {
        4
    } else {
        20
    };
    for step in 0..STEPS {
        if restarts && history.random.below(1000) < restarts_per_1000 {
            history = history.restart().await?;
        }
        let what = history.step().await;
        what.map_err(|Violation(what)| Violation(format!("step {step}: {what}")))?;
    }
    Ok(Verdict::Kept)
}

/// Whether versions are kept for longer than any trial takes.
pub(super) fn keeps_for_a_while(capabilities: &Capabilities) -> bool {
    let retention = capabilities.retention.unwrap_or(Duration::MAX);
    capabilities.versions && retention >= LONG_RETENTION
}

impl History<'_> {
    async fn step(&mut self) -> Result<(), Violation> {
        if self.versions && self.random.percent(40) {
            self.step_of_versions().await?;
            return self.check_all().await;
        }
        match self.random.below(100) {
            0..40 => self.commit().await?,
            40..46 => self.wrong_commit().await?,
            46..54 => self.repeat().await?,
            54..60 => self.fence().await?,
            60..66 => self.resolve().await?,
            66..80 => self.stage().await?,
            80..83 => self.discard().await?,
            83..92 => self.protect().await?,
            92..95 => self.remove().await?,
            _ => {}
        }
        self.check_all().await
    }

    async fn check_all(&mut self) -> Result<(), Violation> {
        let thorough = self.random.percent(8);
        for index in 0..self.models.len() {
            self.models[index].loosen(self.now, self.minutes);
            self.check_head(index).await?;
            self.check_versions(index, thorough).await?;
            self.check_changes(index).await?;
            if self.versions {
                self.check_list(index).await?;
            }
        }
        Ok(())
    }

    /// Stagings that a commit of this database and page size may name, oldest first.
    fn fitting(&self, database: DatabaseId, size: PageSize) -> Vec<StagingId> {
        let fits = |staged: &Staged| (staged.database, staged.page_size) == (database, size);
        let fitting = self.stagings.iter().filter(|(_, staged)| fits(staged));
        fitting.map(|(id, _)| *id).collect()
    }

    fn page(&mut self) -> PageNumber {
        number_of(self.random.below(PAGES as usize) as u32 + 1)
    }

    fn write(&mut self, size: PageSize) -> (PageNumber, Bytes) {
        let number = self.page();
        self.stamp += 1;
        let content = match self.random.percent(8) {
            true => Bytes::new(),
            false => content(size, number.get(), self.stamp),
        };
        (number, content)
    }

    /// Which databases a commit changes: mostly one, each once, in any order.
    fn choose(&mut self) -> Vec<usize> {
        let mut order: Vec<_> = (0..self.models.len()).collect();
        for index in (1..order.len()).rev() {
            order.swap(index, self.random.below(index + 1));
        }
        let count = match self.random.below(10) {
            0..6 => 1,
            6..9 => 2,
            _ => 3,
        };
        order.truncate(count);
        order
    }

    async fn draft(&mut self) -> Result<Commit, Violation> {
        let mut databases = Vec::new();
        for index in self.choose() {
            if self.models[index].epoch.is_none() {
                self.fence_one(index).await?;
            }
            let newest = self.models[index].newest();
            let size = match newest.page_size {
                Some(size) if !self.random.percent(10) => size,
                _ => PageSize::try_from(512 << self.random.below(3))?,
            };
            let count = match self.random.below(10) {
                0..5 => newest.page_count.get().max(1),
                // None at all, sometimes.
                _ => self.random.below(PAGES as usize + 1) as u32,
            };
            let id = self.models[index].id;
            let mut stagings = self.fitting(id, size);
            if self.random.percent(40) {
                stagings.clear();
            }
            let writes = self.random.below(6);
            let pages = (0..writes).map(|_| self.write(size)).collect::<Vec<_>>();
            let pages = pages.into_iter();
            databases.push(DatabaseCommit {
                database: id,
                base: Version::new(self.models[index].head()),
                epoch: self.models[index].epoch.unwrap_or(Epoch::NONE),
                page_size: size,
                page_count: page_count(count),
                stagings,
                pages: pages
                    .map(|(number, content)| PageWrite { number, content })
                    .collect(),
                restore: None,
            });
        }
        let id = CommitId::random()?;
        Ok(Commit { id, databases })
    }

    async fn commit(&mut self) -> Result<(), Violation> {
        let commit = self.draft().await?;
        let versions = commit.databases.iter().map(|part| part.base.next());
        let expected = CommitOutcome::Committed(versions.collect());
        let outcome = self.bench.store.commit(commit.clone()).await?;
        ensure!(outcome == expected, "{outcome:?} instead of {expected:?}");
        for part in &commit.databases {
            let model = self.models.iter_mut().find(|m| m.id == part.database);
            let model = model.ok_or_else(|| Violation("no such model".to_owned()))?;
            model.apply(commit.id, part, &self.stagings, self.now);
        }
        let named = |id: &StagingId| {
            commit
                .databases
                .iter()
                .any(|part| part.stagings.contains(id))
        };
        self.stagings.retain(|(id, _)| !named(id));
        self.end_stagings(&commit);
        self.sent.push(commit);
        Ok(())
    }

    /// One database of the commit is at fault.
    async fn wrong_commit(&mut self) -> Result<(), Violation> {
        let mut commit = self.draft().await?;
        let index = self.random.below(commit.databases.len());
        let fault = self.random.below(3);
        let part = &mut commit.databases[index];
        let head = part.base;
        let current = part.epoch;
        match fault {
            0 => part.base = Version::new(head.get() + 1),
            1 if head > Version::ZERO => part.base = Version::new(head.get() - 1),
            _ => part.epoch = Epoch::new(current.get() ^ 1),
        }
        let expected = match part.epoch == current {
            true => CommitOutcome::Conflict { index, head },
            false => CommitOutcome::LeaseLost { index, current },
        };
        let outcome = self.bench.store.commit(commit.clone()).await?;
        ensure!(outcome == expected, "{outcome:?} instead of {expected:?}");
        self.end_stagings(&commit);
        self.sent.push(commit);
        Ok(())
    }

    /// Where the end of a commit drops all stagings of its databases.
    fn end_stagings(&mut self, commit: &Commit) {
        if self.context.store.behind_a_server() {
            let of = |id| commit.databases.iter().any(|part| part.database == id);
            self.stagings.retain(|(_, staged)| !of(staged.database));
        }
    }

    /// A commit that was sent before: answered as then if it was applied, refused for ever if not.
    async fn repeat(&mut self) -> Result<(), Violation> {
        if self.sent.is_empty() {
            return Ok(());
        }
        let recent = self.sent.len().min(40);
        let index = self.sent.len() - 1 - self.random.below(recent);
        let commit = self.sent[index].clone();
        let exists = |part: &DatabaseCommit| self.models.iter().any(|m| m.id == part.database);
        let all_exist = commit.databases.iter().all(exists);
        let applied = was_applied(&commit, &self.models);
        if !applied && !commit.databases.iter().any(|part| self.is_stale(part)) {
            // It was refused for another part: it could succeed by now, and would be a commit like any other.
            return Ok(());
        }
        let versions = commit.databases.iter().map(|part| part.base.next());
        let committed = CommitOutcome::Committed(versions.collect());
        let forgotten = commit.databases.iter().any(|part| self.may_forget(part));
        let answer = self.bench.store.commit(commit.clone()).await;
        if answer.is_ok() {
            self.end_stagings(&commit);
        }
        let right = match &answer {
            Ok(outcome) if applied && !forgotten => *outcome == committed,
            Ok(outcome) if applied && *outcome == committed => true,
            Ok(CommitOutcome::Conflict { .. } | CommitOutcome::LeaseLost { .. }) => all_exist,
            // What a restore names may be gone by now.
            Err(StoreError::VersionGone { .. }) => forgotten,
            Err(StoreError::DatabaseNotFound) => !all_exist,
            Ok(CommitOutcome::Committed(_)) | Err(_) => false,
        };
        ensure!(
            right,
            "a repeated commit, {}, answered {answer:?}",
            if applied {
                "applied before"
            } else {
                "not applied before"
            }
        );
        Ok(())
    }

    /// Whether the record of the version that a commit made may be gone by age (C14).
    fn may_forget(&self, part: &DatabaseCommit) -> bool {
        let model = self.models.iter().find(|model| model.id == part.database);
        let made = model.and_then(|model| model.versions.get(part.base.get() as usize + 1));
        made.is_some_and(|made| made.loose && made.made + RETENTION_MINUTES <= self.now)
    }

    fn is_stale(&self, part: &DatabaseCommit) -> bool {
        let model = self.models.iter().find(|model| model.id == part.database);
        // An epoch that nobody was told of may be the one that was guessed.
        model.is_none_or(|m| {
            m.head() != part.base.get() || m.epoch.is_some_and(|epoch| epoch != part.epoch)
        })
    }

    async fn fence(&mut self) -> Result<(), Violation> {
        let index = self.random.below(self.models.len());
        self.fence_one(index).await
    }

    pub(super) async fn fence_one(&mut self, index: usize) -> Result<(), Violation> {
        let model = &mut self.models[index];
        let epoch = self.bench.store.fence(model.id).await?;
        ensure!(
            epoch > model.largest_epoch,
            "after epoch {} came {epoch}",
            model.largest_epoch
        );
        model.fenced(epoch);
        let id = model.id;
        if self.context.store.behind_a_server() {
            self.stagings.retain(|(_, staged)| staged.database != id);
        }
        Ok(())
    }

    async fn resolve(&mut self) -> Result<(), Violation> {
        let commit = match self.sent.is_empty() || self.random.percent(50) {
            true => self.draft().await?,
            false => self.sent[self.random.below(self.sent.len())].clone(),
        };
        let participants = commit.databases.iter();
        let participants = participants.map(|part| (part.database, part.base, part.epoch));
        let resolve = Resolve {
            id: commit.id,
            participants: participants.collect(),
        };
        let first = &commit.databases[0];
        let Some(index) = self.models.iter().position(|m| m.id == first.database) else {
            return Ok(());
        };
        let answer = self.bench.store.resolve(resolve).await?;
        let forgotten = self.may_forget(first);
        let model = &mut self.models[index];
        let maker = model.makers.get(first.base.get() as usize).copied();
        match &answer {
            Resolution::Committed(versions) => {
                let made = commit.databases.iter().map(|part| part.base.next());
                ensure!(
                    maker == Some(commit.id) && made.eq(versions.iter().copied()),
                    "{answer:?}, made by {maker:?}"
                );
            }
            Resolution::Aborted { current } => {
                ensure!(
                    maker != Some(commit.id) && current.len() == commit.databases.len(),
                    "{answer:?}, made by {maker:?}"
                );
                let advanced = maker.is_none() && model.epoch == Some(first.epoch);
                let right = match model.epoch {
                    Some(epoch) => (current[0] > epoch) == advanced && current[0] >= epoch,
                    None => true,
                };
                ensure!(right, "{answer:?}, the epoch was {:?}", model.epoch);
                // An endpoint does not tell the epoch of a lease that the session has not.
                if current[0] > Epoch::NONE {
                    model.fenced(current[0]);
                }
                self.sent.push(commit);
            }
            Resolution::Unknown(_) if forgotten => {}
            Resolution::Unknown(why) => {
                return Err(Violation(format!("resolve does not know: {why}")));
            }
        }
        Ok(())
    }

    async fn stage(&mut self) -> Result<(), Violation> {
        let model = &self.models[self.random.below(self.models.len())];
        let database = model.id;
        let size = model.newest().page_size.unwrap_or(PageSize::MIN);
        let id = match self.fitting(database, size).first() {
            Some(id) if self.random.percent(50) => *id,
            _ => StagingId::random()?,
        };
        let count = self.random.below(5) + 1;
        let pages: Vec<_> = (0..count).map(|_| self.write(size)).collect();
        let writes = pages.iter().map(|(number, content)| PageWrite {
            number: *number,
            content: content.clone(),
        });
        let stage = self.bench.store.stage(database, id, size, writes.collect());
        stage.await?;
        match self.stagings.iter_mut().find(|(other, _)| *other == id) {
            Some((_, staged)) => staged.pages.extend(pages),
            None => self.stagings.push((
                id,
                Staged {
                    database,
                    page_size: size,
                    pages,
                },
            )),
        }
        Ok(())
    }

    async fn discard(&mut self) -> Result<(), Violation> {
        if !self.stagings.is_empty() {
            let index = self.random.below(self.stagings.len());
            let (id, _) = self.stagings.remove(index);
            self.bench.store.discard(id).await?;
        }
        Ok(())
    }

    async fn protect(&mut self) -> Result<(), Violation> {
        let index = self.random.below(self.models.len());
        let head = self.models[index].head();
        let floor = match self.random.below(4) {
            0 => None,
            1 => Some(head),
            _ => Some(head.saturating_sub(self.random.below(6) as u64)),
        };
        let id = self.models[index].id;
        self.bench
            .store
            .protect(id, floor.map(Version::new), &[])
            .await?;
        self.models[index].protect(floor);
        self.models[index].pins.clear();
        Ok(())
    }

    async fn remove(&mut self) -> Result<(), Violation> {
        let index = self.random.below(self.models.len());
        let name = self.bench.name(&index.to_string())?;
        let old = self.models[index].id;
        let removed = self.bench.remove(&name).await?;
        ensure!(removed == old, "removed {removed} instead of {old}");
        let id = self.bench.store.lookup(&name, true).await?;
        let known = self.models.iter().any(|model| model.id == id);
        ensure!(!known, "a database created again has the id {id}");
        self.models[index] = Model::new(id);
        self.drop_stagings(old);
        Ok(())
    }

    pub(super) fn drop_stagings(&mut self, database: DatabaseId) {
        self.stagings
            .retain(|(_, staged)| staged.database != database);
    }

    /// A commit that succeeded.
    pub(super) fn made(&mut self, commit: Commit) {
        for part in &commit.databases {
            if let Some(model) = self.models.iter_mut().find(|m| m.id == part.database) {
                model.apply(commit.id, part, &self.stagings, self.now);
            }
        }
        self.end_stagings(&commit);
        self.sent.push(commit);
    }

    /// Takes itself apart, since nobody may hold the store while it is opened anew.
    async fn restart(mut self) -> Result<Self, Violation> {
        let bench = self.bench.reopen(self.context).await?;
        let until = bench.killed_until.unwrap_or_else(Instant::now);
        let left = self.models.iter_mut().map(Model::restart);
        self.left.extend(left.map(|left| (until, left)));
        self.stagings.clear();
        Ok(Self { bench, ..self })
    }

    async fn check_head(&self, index: usize) -> Result<(), Violation> {
        let model = &self.models[index];
        let head = self.bench.store.head(model.id).await?;
        let right = model.newest();
        ensure!(head == right, "the head is {head:?} instead of {right:?}");
        Ok(())
    }

    /// Versions read as the model has them; what need not be kept may be gone.
    async fn check_versions(&mut self, index: usize, thorough: bool) -> Result<(), Violation> {
        let head = self.models[index].head();
        let mut which: Vec<_> = match thorough {
            true => (0..=head).collect(),
            // Older ones were checked often enough.
            false => (head.saturating_sub(6)..=head).collect(),
        };
        which.push(self.random.below(head as usize + 1) as u64);
        let pages: Vec<_> = (1..=PAGES + 1).map(number_of).collect();
        for version in which {
            let model = &self.models[index];
            let right = &model.versions[version as usize];
            let store = &self.bench.store;
            let read = store.read(model.id, Version::new(version), &pages).await;
            let read = match read {
                Err(StoreError::VersionGone { .. }) if right.loose => continue,
                read => read.map_err(|error| {
                    Violation(format!("version {version} of database {index}: {error}"))
                })?,
            };
            ensure!(read.len() == pages.len(), "{} pages", read.len());
            for (number, page) in pages.iter().zip(read) {
                ensure!(
                    right.fits(*number, &page),
                    "page {number} of database {index} at version {version} of {head}: {} of version {}, must be {} of version {}",
                    describe(&page.content),
                    page.version,
                    describe(&right.page(*number).content),
                    right.page(*number).version
                );
            }
        }
        Ok(())
    }

    async fn check_changes(&mut self, index: usize) -> Result<(), Violation> {
        let model = &self.models[index];
        let since = self.random.below(model.head() as usize + 1);
        let answer = self
            .bench
            .store
            .changes(model.id, Version::new(since as u64));
        let (head, changes) = answer.await?;
        ensure!(head == model.newest(), "changes answered {head:?}");
        let Changes::Pages(changed) = changes else {
            return Ok(());
        };
        let (old, new) = (
            &model.versions[since],
            &model.versions[model.head() as usize],
        );
        let counts: BTreeMap<_, usize> =
            changed.iter().fold(BTreeMap::new(), |mut counts, page| {
                *counts.entry(*page).or_default() += 1;
                counts
            });
        ensure!(counts.values().all(|n| *n == 1), "changes: {changed:?}");
        for number in (1..=PAGES).map(number_of) {
            ensure!(
                old.page(number).content == new.page(number).content
                    || counts.contains_key(&number),
                "page {number} of database {index} differs between versions {since} and {}, changes: {changed:?}",
                model.head()
            );
        }
        Ok(())
    }
}
