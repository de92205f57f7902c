//! Steps of random histories that only a store with versions and branches has: restores, branches, tags, pins, time and
//! collections; and what is told of versions after each step.

use std::collections::BTreeSet;
use std::time::Duration;

use pagewire_proto::{CommitId, DatabaseId, Epoch, Moment, PageSize, TagName, Version};

use tokio::time::Instant;

use super::Violation;
use super::fixture::{LOOK_AGAIN, ensure, version};
use super::model::History;
use super::oracle::Model;
use crate::store::{Commit, CommitOutcome, DatabaseCommit, StoreError};

impl History<'_> {
    pub(super) async fn step_of_versions(&mut self) -> Result<(), Violation> {
        match self.random.below(100) {
            0..25 => self.restore().await,
            25..40 => self.branch().await,
            40..55 => self.tag().await,
            55..60 => self.untag().await,
            60..72 => self.pin().await,
            72..84 => self.collect().await,
            _ => {
                self.wait();
                Ok(())
            }
        }
    }

    /// A database and one of its versions, if it has any.
    fn any_version(&mut self) -> Option<(usize, u64)> {
        let index = self.random.below(self.models.len());
        let head = self.models[index].head();
        let version = match self.random.percent(50) {
            true => head.saturating_sub(self.random.below(4) as u64).max(1),
            false => self.random.below(head as usize) as u64 + 1,
        };
        (head > 0).then_some((index, version))
    }

    /// Whether it was done; only for what need not be kept the answer may be that it is gone.
    fn done<T>(
        &mut self,
        (index, version): (usize, u64),
        answer: Result<T, StoreError>,
    ) -> Result<Option<T>, Violation> {
        let copy = &mut self.models[index].versions[version as usize];
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(StoreError::VersionGone { .. }) if copy.loose => Ok(None),
            Err(error) => Err(Violation(format!(
                "version {version} of database {index} answered {error:?}"
            ))),
        }
    }

    async fn restore(&mut self) -> Result<(), Violation> {
        let Some((index, from)) = self.any_version() else {
            return Ok(());
        };
        if self.models[index].epoch.is_none() {
            self.fence_one(index).await?;
        }
        let model = &self.models[index];
        let restored = model.versions[from as usize].head;
        let part = DatabaseCommit {
            database: model.id,
            base: Version::new(model.head()),
            epoch: model.epoch.unwrap_or(Epoch::NONE),
            page_size: restored.page_size.unwrap_or(PageSize::MIN),
            page_count: restored.page_count,
            stagings: Vec::new(),
            pages: Vec::new(),
            restore: Some(Version::new(from)),
        };
        let expected = CommitOutcome::Committed(vec![part.base.next()]);
        let (id, databases) = (CommitId::random()?, vec![part]);
        let commit = Commit { id, databases };
        let answer = self.bench.store.commit(commit.clone()).await;
        if let Some(outcome) = self.done((index, from), answer)? {
            ensure!(outcome == expected, "{outcome:?} instead of {expected:?}");
            self.made(commit);
        }
        Ok(())
    }

    /// A branch in place of another database, which may be the parent of others, or its own source.
    async fn branch(&mut self) -> Result<(), Violation> {
        let Some((source, from)) = self.any_version() else {
            return Ok(());
        };
        let target = self.random.below(self.models.len());
        if target == source {
            return Ok(());
        }
        let name = self.bench.name(&target.to_string())?;
        let old = self.models[target].id;
        self.bench.remove(&name).await?;
        self.drop_stagings(old);
        let id = DatabaseId::random()?;
        let (store, moment) = (&self.bench.store, version(from));
        let answer = store.branch(self.models[source].id, &moment, id, &name);
        let answer = answer.await;
        match self.done((source, from), answer)? {
            Some(entry) => {
                ensure!(
                    entry.snapshot == self.models[source].versions[from as usize].head,
                    "a branch from version {from} is from {entry:?}"
                );
                let maker = CommitId::random()?;
                self.models[target] = self.models[source].branch(from, id, maker, self.now);
                self.origins.insert(id, (self.models[source].id, from));
            }
            None => {
                let id = self.bench.store.lookup(&name, true).await?;
                self.models[target] = Model::new(id);
            }
        }
        Ok(())
    }

    async fn tag(&mut self) -> Result<(), Violation> {
        let Some((index, at)) = self.any_version() else {
            return Ok(());
        };
        let tag = TagName::try_from(format!("tag-{}", self.random.below(4)).as_str())?;
        let replace = self.random.percent(60);
        let model = &self.models[index];
        let store = &self.bench.store;
        let answer = store.set_tag(model.id, &tag, &version(at), replace).await;
        let taken = model.tags.get(&tag).is_some_and(|named| *named != at);
        if let (true, false, Err(StoreError::NameTaken(_))) = (taken, replace, &answer) {
            return Ok(());
        }
        if self.done((index, at), answer)?.is_some() {
            ensure!(!taken || replace, "a tag was moved without a word");
            self.models[index].tags.insert(tag, at);
            self.models[index].versions[at as usize].loose = false;
        }
        Ok(())
    }

    async fn untag(&mut self) -> Result<(), Violation> {
        let index = self.random.below(self.models.len());
        let tag = TagName::try_from(format!("tag-{}", self.random.below(4)).as_str())?;
        let model = &mut self.models[index];
        let existed = self.bench.store.delete_tag(model.id, &tag).await?;
        let right = model.tags.remove(&tag).is_some();
        ensure!(existed == right, "delete_tag of {tag} answered {existed}");
        Ok(())
    }

    /// Pins, with no floor: the head and what is pinned.
    async fn pin(&mut self) -> Result<(), Violation> {
        let Some((index, at)) = self.any_version() else {
            return Ok(());
        };
        let pins = match self.random.percent(30) {
            true => Vec::new(),
            false => vec![Version::new(at)],
        };
        let id = self.models[index].id;
        let answer = self.bench.store.protect(id, None, &pins).await;
        if self.done((index, at), answer)?.is_some() {
            let model = &mut self.models[index];
            model.protect(None);
            model.pins = pins.iter().map(|pin| pin.get()).collect();
            for pin in &pins {
                model.versions[pin.get() as usize].loose = false;
            }
        }
        Ok(())
    }

    fn wait(&mut self) {
        // No multiple of it is the retention: which of the two moments came first is never the question.
        let minutes = 7 * (self.random.below(4) as u64 + 1);
        if self.minutes.is_some() {
            self.context
                .store
                .advance_clock(Duration::from_secs(60 * minutes));
            self.now += minutes;
        }
    }

    /// To its end, after which what nothing keeps is gone. A server that was killed keeps what it protected until it counts as dead: then that goes too.
    async fn collect(&mut self) -> Result<(), Violation> {
        if self.random.percent(30) {
            let id = self.models[self.random.below(self.models.len())].id;
            self.bench.collect(Some(id)).await?;
            self.models.iter_mut().for_each(Model::tell);
            return Ok(());
        }
        for model in &mut self.models {
            model.loosen(self.now, self.minutes);
            model.tell();
        }
        while self.collect_all().await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// Whether anything is there only because a server that was killed, and may be taken for one that lives, protected it.
    async fn collect_all(&mut self) -> Result<bool, Violation> {
        let begun = Instant::now();
        self.left.retain(|(until, _)| begun < *until);
        self.bench.collect(None).await?;
        let problems = self.context.store.audit(&self.bench.store).await?;
        ensure!(problems.is_empty(), "after a collection: {problems:#?}");
        // What branches that are there stand on, through others that may have been removed.
        let mut origins = BTreeSet::new();
        for model in &self.models {
            let mut id = model.id;
            while let Some(origin) = self.origins.get(&id) {
                origins.insert(*origin);
                id = origin.0;
            }
        }
        let mut is_left = false;
        for (index, model) in self.models.iter().enumerate() {
            let mut readable = BTreeSet::new();
            for number in 1..=model.head() {
                let read = self.bench.store.read(model.id, Version::new(number), &[]);
                match read.await {
                    Ok(_) => readable.insert(number),
                    Err(StoreError::VersionGone { .. }) => continue,
                    Err(error) => return Err(error.into()),
                };
            }
            let by_itself = |number: &u64| {
                model.has_to_keep(*number, self.now, self.minutes)
                    || model.floor.is_some_and(|floor| floor <= *number)
                    || origins.contains(&(model.id, *number))
            };
            // What is readable without a reason keeps nothing: so one that leaks excuses no other.
            let with_reason: BTreeSet<_> = readable.iter().copied().filter(by_itself).collect();
            let stood_on = model.stood_on(&with_reason);
            let protected = |number: &u64| {
                self.left
                    .iter()
                    .any(|(_, left)| left.has(model.id, *number))
            };
            let left: BTreeSet<_> = readable.iter().copied().filter(protected).collect();
            let stood_on_by_left = model.stood_on(&left);
            for number in &readable {
                if by_itself(number) || stood_on.contains(number) {
                    continue;
                }
                is_left = true;
                ensure!(
                    left.contains(number) || stood_on_by_left.contains(number),
                    "version {number} of database {index} is there after a collection, nothing keeps it"
                );
            }
            if is_left {
                // It goes at any time, between the two too. The last look finds nothing of the kind.
                continue;
            }
            let described = self.bench.store.describe(model.id).await?;
            ensure!(
                described.versions == readable.len() as u64 && described.head == model.newest(),
                "{readable:?} of database {index} are readable, described is {described:?}"
            );
        }
        Ok(is_left)
    }

    /// What is told of versions is what the model knows.
    pub(super) async fn check_list(&self, index: usize) -> Result<(), Violation> {
        let model = &self.models[index];
        let list = self.bench.store.versions(model.id, None, false, 1000);
        let list = list.await?;
        let numbers: Vec<_> = list.iter().map(|v| v.snapshot.version.get()).collect();
        ensure!(
            numbers.is_sorted_by(|newer, older| newer > older),
            "listed in this order: {numbers:?}"
        );
        ensure!(
            list.is_sorted_by(|newer, older| newer.time >= older.time),
            "times fall: {list:?}"
        );
        for (number, copy) in (1..).zip(model.versions.iter().skip(1)) {
            ensure!(
                copy.loose || numbers.contains(&number),
                "version {number} of database {index} is not listed: {numbers:?}"
            );
        }
        for entry in &list {
            let number = entry.snapshot.version.get();
            let copy = model.versions.get(number as usize);
            let tags = model.tags.iter().filter(|(_, named)| **named == number);
            let tags: Vec<_> = tags.map(|(tag, _)| tag.clone()).collect();
            ensure!(
                copy.is_some_and(|copy| copy.head == entry.snapshot
                    && copy.restored_from == entry.restored_from.map(Version::get))
                    && entry.tags == tags,
                "version {number} of database {index}, with tags {tags:?}, is told as {entry:?}"
            );
        }
        if let Some((tag, number)) = model.tags.first_key_value() {
            let moment = Moment::Tag(tag.clone());
            let found = self.bench.store.find(model.id, &moment).await?;
            let found = found.snapshot.version.get();
            ensure!(found == *number, "tag {tag} of {number} finds {found}");
        }
        Ok(())
    }
}
