//! What the rules are written with: databases of a trial, commits in one line, pages whose content says what they are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageCount, PageNumber, PageSize, StagingId,
    TagName, UnixMillis, Version, VersionEntry,
};
use tokio::time::Instant;

use super::{Context, Violation};
use crate::store::{
    Collected, Commit, CommitOutcome, DatabaseCommit, PageStore, PageWrite, StoreError,
};

/// Ends a rule with what the store did, unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Violation(format!($($message)+)));
        }
    };
}
pub(super) use ensure;

/// The page size of trials that are not about page sizes: the smallest.
pub(super) const SIZE: PageSize = PageSize::MIN;

/// How often it is looked whether a server that was killed counts as dead.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A store with a name space of its own.
pub(super) struct Bench {
    pub(super) store: Arc<dyn PageStore>,
    prefix: String,
    /// Until then a server that was killed may be taken for one that lives.
    pub(super) killed_until: Option<Instant>,
}

/// A database of a trial, with the epoch that may commit to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Db {
    pub(super) id: DatabaseId,
    pub(super) epoch: Epoch,
}

impl Bench {
    pub(super) async fn open(context: Context<'_>) -> Result<Self, Violation> {
        Ok(Self {
            store: context.store.open().await?,
            prefix: format!("conformance/{}/", DatabaseId::random()?),
            killed_until: None,
        })
    }

    /// A store that keeps versions for so long; `None` where that cannot be had.
    pub(super) async fn open_keeping(
        context: Context<'_>,
        retention: Duration,
    ) -> Result<Option<Self>, Violation> {
        let store = context.store.open_with_retention(retention).await?;
        let prefix = format!("conformance/{}/", DatabaseId::random()?);
        Ok(store.map(|store| Self {
            store,
            prefix,
            killed_until: None,
        }))
    }

    /// As after the death of the process; call only where `can_restart`.
    pub(super) async fn reopen(self, context: Context<'_>) -> Result<Self, Violation> {
        Ok(Self {
            store: context.store.reopen(self.store).await?,
            prefix: self.prefix,
            killed_until: Some(Instant::now() + context.store.killed_is_believed_for()),
        })
    }

    /// Removes a database; of sessions that ended with their server it may be said for a while that they have it open, and no longer.
    pub(super) async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, Violation> {
        loop {
            match self.store.remove(name).await {
                Err(StoreError::Limit(_)) if self.a_killed_server_may_count() => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                removed => return Ok(removed?),
            }
        }
    }

    /// See [`super::StoreUnderTest::killed_is_believed_for`].
    pub(super) fn a_killed_server_may_count(&self) -> bool {
        self.killed_until
            .is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn name(&self, label: &str) -> Result<DatabaseName, Violation> {
        Ok(DatabaseName::try_from(
            format!("{}{label}", self.prefix).as_str(),
        )?)
    }

    /// A new database, fenced.
    pub(super) async fn database(&self, label: &str) -> Result<Db, Violation> {
        let id = self.store.lookup(&self.name(label)?, true).await?;
        let epoch = self.store.fence(id).await?;
        Ok(Db { id, epoch })
    }

    /// Commits under a new id, which has to succeed with the next versions.
    pub(super) async fn commit(&self, parts: Vec<DatabaseCommit>) -> Result<CommitId, Violation> {
        let id = CommitId::random()?;
        self.commit_as(id, parts).await?;
        Ok(id)
    }

    /// As [`Bench::commit`], under a given id.
    pub(super) async fn commit_as(
        &self,
        id: CommitId,
        parts: Vec<DatabaseCommit>,
    ) -> Result<(), Violation> {
        let expected: Vec<_> = parts.iter().map(|part| part.base.next()).collect();
        let ids: Vec<_> = parts.iter().map(|part| part.database).collect();
        let outcome = self.outcome(id, parts).await?;
        ensure!(
            outcome == CommitOutcome::Committed(expected.clone()),
            "a commit that has to succeed with versions {expected:?} answered {outcome:?}"
        );
        for (id, version) in ids.into_iter().zip(expected) {
            let head = self.store.head(id).await?.version;
            ensure!(
                head >= version,
                "version {version} was acknowledged, and then the head was {head}"
            );
        }
        Ok(())
    }

    /// What a commit answers.
    pub(super) async fn outcome(
        &self,
        id: CommitId,
        databases: Vec<DatabaseCommit>,
    ) -> Result<CommitOutcome, Violation> {
        Ok(self.store.commit(Commit { id, databases }).await?)
    }

    /// A commit that has to change nothing, and what it answered.
    pub(super) async fn refused(
        &self,
        parts: Vec<DatabaseCommit>,
    ) -> Result<CommitOutcome, Violation> {
        let mut before = Vec::new();
        for part in &parts {
            before.push((part.database, self.store.head(part.database).await?));
        }
        let outcome = self.outcome(CommitId::random()?, parts).await?;
        ensure!(
            !matches!(outcome, CommitOutcome::Committed(_)),
            "a commit that has to be refused answered {outcome:?}"
        );
        for (id, head) in before {
            let after = self.store.head(id).await?;
            ensure!(
                after == head,
                "a refused commit took a head from {head:?} to {after:?}"
            );
        }
        Ok(outcome)
    }

    /// A page has to have the content made by [`page`] with this stamp, written by this version; `None`: never written.
    pub(super) async fn expect(
        &self,
        db: Db,
        version: u64,
        pages: &[(u32, Option<(u64, u64)>)],
    ) -> Result<(), Violation> {
        let numbers = numbers(pages.iter().map(|(number, _)| *number))?;
        let read = self.store.read(db.id, Version::new(version), &numbers);
        let read = read.await?;
        ensure!(
            read.len() == pages.len(),
            "{} pages asked for, {} answered",
            pages.len(),
            read.len()
        );
        for ((number, expected), got) in pages.iter().zip(read) {
            let (content, written) = match expected {
                Some((stamp, written)) => (content(SIZE, *number, *stamp), *written),
                None => (Bytes::new(), 0),
            };
            ensure!(
                got.content == content && got.version.get() == written,
                "page {number} at version {version}: has {} of version {}, must have {} of version {written}",
                describe(&got.content),
                got.version,
                describe(&content),
            );
        }
        Ok(())
    }
}

/// Questions about the history of a database.
impl Bench {
    pub(super) async fn find(&self, db: Db, moment: Moment) -> Result<VersionEntry, Violation> {
        let found = self.store.find(db.id, &moment).await;
        found.map_err(|error| Violation(format!("find of {moment} answered {error:?}")))
    }

    /// The moment has to be of a version that is gone.
    pub(super) async fn ensure_gone(&self, db: Db, moment: Moment) -> Result<(), Violation> {
        let found = self.store.find(db.id, &moment).await;
        ensure!(
            matches!(found, Err(StoreError::VersionGone { .. })),
            "find of {moment}, which has to be gone, answered {found:?}"
        );
        Ok(())
    }

    /// Numbers of the versions that are listed, newest first.
    pub(super) async fn listed(&self, db: Db) -> Result<Vec<u64>, Violation> {
        let versions = self.store.versions(db.id, None, false, 1000).await?;
        Ok(versions.iter().map(|v| v.snapshot.version.get()).collect())
    }

    /// A branch under a label, which has to succeed, fenced.
    pub(super) async fn branch(&self, source: Db, at: u64, label: &str) -> Result<Db, Violation> {
        let (id, name) = (DatabaseId::random()?, self.name(label)?);
        let moment = version(at);
        let found = self.store.branch(source.id, &moment, id, &name).await?;
        ensure!(
            found.snapshot.version.get() == at,
            "a branch from version {at} said that it is from {found:?}"
        );
        let epoch = self.store.fence(id).await?;
        Ok(Db { id, epoch })
    }

    /// A tag that has to be set.
    pub(super) async fn tag(&self, db: Db, tag: &str, at: u64) -> Result<VersionEntry, Violation> {
        let (tag, moment) = (TagName::try_from(tag)?, version(at));
        Ok(self.store.set_tag(db.id, &tag, &moment, false).await?)
    }

    /// Steps until nothing is left to do, and what they freed.
    pub(super) async fn collect(
        &self,
        database: Option<DatabaseId>,
    ) -> Result<Collected, Violation> {
        let mut all = Collected::default();
        for _ in 0..10_000 {
            let step = self.store.collect(database).await?;
            all.versions += step.versions;
            all.pages += step.pages;
            all.bytes += step.bytes;
            if !step.more {
                return Ok(all);
            }
        }
        Err(Violation("a collection does not come to an end".to_owned()))
    }
}

/// The moment of a version.
pub(super) fn version(number: u64) -> Moment {
    Moment::Version(Version::new(number))
}

/// The moment of a time.
pub(super) fn time(time: UnixMillis, plus_ms: i64) -> Moment {
    Moment::Time(UnixMillis(time.0 + plus_ms))
}

/// The restore of a version that has so many pages of the smallest size.
pub(super) fn restore(db: Db, base: u64, from: u64, count: u32) -> DatabaseCommit {
    DatabaseCommit {
        restore: Some(Version::new(from)),
        ..part(db, base, count, &[])
    }
}

/// The commit of a database, of pages (number, stamp) of the smallest size.
pub(super) fn part(db: Db, base: u64, count: u32, pages: &[(u32, u64)]) -> DatabaseCommit {
    DatabaseCommit {
        database: db.id,
        base: Version::new(base),
        epoch: db.epoch,
        page_size: SIZE,
        page_count: page_count(count),
        stagings: Vec::new(),
        pages: writes(SIZE, pages),
        restore: None,
    }
}

/// As [`part`], with stagings.
pub(super) fn staged(
    db: Db,
    base: u64,
    count: u32,
    stagings: &[StagingId],
    pages: &[(u32, u64)],
) -> DatabaseCommit {
    DatabaseCommit {
        stagings: stagings.to_vec(),
        ..part(db, base, count, pages)
    }
}

pub(super) fn writes(size: PageSize, pages: &[(u32, u64)]) -> Vec<PageWrite> {
    let write = |(number, stamp): &(u32, u64)| PageWrite {
        number: number_of(*number),
        content: content(size, *number, *stamp),
    };
    pages.iter().map(write).collect()
}

/// The content of a page that carries its number and a stamp in every 16 bytes.
pub(super) fn content(size: PageSize, number: u32, stamp: u64) -> Bytes {
    let mut pattern = [0; 16];
    pattern[..8].copy_from_slice(&stamp.to_le_bytes());
    pattern[8..12].copy_from_slice(&number.to_le_bytes());
    pattern[12..].copy_from_slice(b"page");
    Bytes::from(pattern.repeat(size.bytes() / pattern.len()))
}

/// What a content made by [`content`] is.
pub(super) fn describe(content: &[u8]) -> String {
    match content {
        [] => "nothing".to_owned(),
        [
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            i,
            j,
            k,
            l,
            b'p',
            b'a',
            b'g',
            b'e',
            ..,
        ] => format!(
            "{} bytes of page {} with stamp {}",
            content.len(),
            u32::from_le_bytes([*i, *j, *k, *l]),
            u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h])
        ),
        _ if content.iter().all(|byte| *byte == 0) => format!("{} zeros", content.len()),
        _ => format!("{} other bytes", content.len()),
    }
}

pub(super) fn number_of(number: u32) -> PageNumber {
    PageNumber::try_from(number).unwrap_or(PageNumber::FIRST)
}

pub(super) fn numbers(numbers: impl Iterator<Item = u32>) -> Result<Vec<PageNumber>, Violation> {
    Ok(numbers
        .map(PageNumber::try_from)
        .collect::<Result<_, _>>()?)
}

pub(super) fn page_count(count: u32) -> PageCount {
    PageCount::try_from(count).unwrap_or_default()
}

/// The call has to fail because the database does not exist.
pub(super) fn ensure_not_found<T: std::fmt::Debug>(
    call: &str,
    result: Result<T, StoreError>,
) -> Result<(), Violation> {
    ensure!(
        matches!(result, Err(StoreError::DatabaseNotFound)),
        "{call} on a database that does not exist answered {result:?}"
    );
    Ok(())
}

/// A seed that nobody chose.
pub(super) fn random_seed() -> Result<u64, Violation> {
    let id = DatabaseId::random()?;
    let (half, _) = id.as_bytes().split_at(8);
    // Short enough to be typed.
    Ok(half
        .iter()
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
        & 0xffff_ffff)
}

/// The same numbers for the same seed, for ever (SplitMix64).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `bound`, exclusive.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// With a probability in percent.
    pub(super) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}
