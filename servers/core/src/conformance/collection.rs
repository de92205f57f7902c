//! Rules V2, V6 and V7: what is kept, what goes, and what survives.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pagewire_proto::{Moment, TagName, Version};

use super::fixture::{
    Bench, Db, SIZE, content, describe, ensure, numbers, part, restore, time, version,
};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{PageStore, StoreError};

const HOUR: Duration = Duration::from_secs(3600);
/// Pages of the databases of these trials.
const PAGES: u32 = 6;

/// Version n writes page n modulo [`PAGES`] plus 1, and version 1 all of them.
async fn commit_up_to(bench: &Bench, db: Db, from: u64, to: u64) -> Result<(), Violation> {
    for base in from..to {
        let pages: Vec<_> = (1..=PAGES)
            .filter(|number| written(base + 1, *number) == base + 1)
            .map(|number| (number, base + 1))
            .collect();
        bench.commit(vec![part(db, base, PAGES, &pages)]).await?;
    }
    Ok(())
}

/// The version that wrote a page last.
fn written(version: u64, number: u32) -> u64 {
    let writes = |version: &u64| version % u64::from(PAGES) == u64::from(number) - 1;
    (1..=version).rev().find(writes).unwrap_or(1)
}

/// Exactly these versions, of up to `head`, are kept; they read right, all others are gone.
async fn kept_are(bench: &Bench, db: Db, head: u64, kept: &[u64]) -> Result<(), Violation> {
    let all = numbers(1..=PAGES)?;
    for number in 1..=head {
        let read = bench.store.read(db.id, Version::new(number), &all).await;
        match read {
            Ok(pages) => {
                ensure!(
                    kept.contains(&number),
                    "version {number} is not to be kept, and is readable after a collection: only {kept:?} are"
                );
                for (page_number, page) in all.iter().zip(pages) {
                    let right =
                        content(SIZE, page_number.get(), written(number, page_number.get()));
                    ensure!(
                        page.content == right,
                        "page {page_number} of version {number}: {} instead of {}",
                        describe(&page.content),
                        describe(&right)
                    );
                }
            }
            Err(StoreError::VersionGone { .. }) if !kept.contains(&number) => {
                bench.ensure_gone(db, version(number)).await?;
            }
            Err(error) => {
                return Err(Violation(format!(
                    "version {number} has to be kept, with {kept:?}, and answered {error:?}"
                )));
            }
        }
    }
    let mut listed = bench.listed(db).await?;
    listed.reverse();
    ensure!(listed == kept, "kept are {kept:?}, listed {listed:?}");
    let described = bench.store.describe(db.id).await?;
    ensure!(
        described.versions == kept.len() as u64
            && described.oldest.get() == kept.first().copied().unwrap_or(0),
        "kept are {kept:?}, described is {described:?}"
    );
    Ok(())
}

pub(super) async fn v02(context: Context<'_>) -> Outcome {
    let Some(mut bench) = Bench::open_keeping(context, HOUR).await? else {
        return keeps_what_it_says(context).await;
    };
    let advance = |minutes: u64| {
        context
            .store
            .advance_clock(Duration::from_secs(60 * minutes))
    };
    let db = bench.database("a").await?;
    commit_up_to(&bench, db, 0, 5).await?;
    advance(1);
    commit_up_to(&bench, db, 5, 8).await?;
    bench.tag(db, "t", 2).await?;
    let branch = bench.branch(db, 4, "branch").await?;
    let pin = [Version::new(3)];
    bench.store.protect(db.id, None, &pin).await?;
    advance(31);
    bench.collect(None).await?;
    let all: Vec<_> = (1..=8).collect();
    kept_are(&bench, db, 8, &all).await?;
    let middle = bench.find(db, version(5)).await?;
    commit_up_to(&bench, db, 8, 9).await?;
    advance(31);
    // 8 was the head until 31 minutes ago, the ones before until 62 minutes ago.
    bench.collect(None).await?;
    kept_are(&bench, db, 9, &[2, 3, 4, 8, 9]).await?;
    // Where a time means a version that is gone its neighbours do not answer (K3).
    bench.ensure_gone(db, time(middle.time, 0)).await?;
    bench.expect(branch, 1, &[(1, Some((1, 1)))]).await?;
    let refused = bench.store.protect(db.id, None, &[Version::new(5)]).await;
    ensure!(
        matches!(refused, Err(StoreError::VersionGone { .. })),
        "a pin of a version that is gone answered {refused:?}"
    );
    let (id, late) = (pagewire_proto::DatabaseId::random()?, bench.name("late")?);
    let refused = bench.store.branch(db.id, &version(5), id, &late).await;
    ensure!(
        matches!(refused, Err(StoreError::VersionGone { .. })),
        "a branch from a version that is gone answered {refused:?}"
    );
    // The refused pin replaced nothing.
    bench.collect(None).await?;
    kept_are(&bench, db, 9, &[2, 3, 4, 8, 9]).await?;
    // What kept them goes, one after another, and they go with it.
    bench.store.protect(db.id, None, &[]).await?;
    bench.collect(Some(db.id)).await?;
    kept_are(&bench, db, 9, &[2, 4, 8, 9]).await?;
    bench.remove(&bench.name("branch")?).await?;
    bench.collect(None).await?;
    kept_are(&bench, db, 9, &[2, 8, 9]).await?;
    let tag = TagName::try_from("t")?;
    bench.store.set_tag(db.id, &tag, &version(8), true).await?;
    bench.collect(Some(db.id)).await?;
    kept_are(&bench, db, 9, &[8, 9]).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        bench = bench.reopen(context).await?;
    }
    advance(90);
    bench.collect(None).await?;
    kept_are(&bench, db, 9, &[8, 9]).await?;
    bench.store.delete_tag(db.id, &tag).await?;
    bench.collect(None).await?;
    kept_are(&bench, db, 9, &[9]).await?;
    let described = bench.store.describe(db.id).await?;
    ensure!(
        described.pages == u64::from(PAGES),
        "one version of {PAGES} pages is kept, and {described:?}"
    );
    Ok(Verdict::Kept)
}

/// V2 where the retention cannot be set: what goes by its age cannot be seen, what has to stay can.
async fn keeps_what_it_says(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let capabilities = bench.store.capabilities();
    if !capabilities.versions {
        return Ok(Verdict::NotTried("the store keeps no versions"));
    }
    let db = bench.database("a").await?;
    bench.store.protect(db.id, Some(Version::ZERO), &[]).await?;
    commit_up_to(&bench, db, 0, 9).await?;
    bench.tag(db, "t", 2).await?;
    bench.commit(vec![restore(db, 9, 5, PAGES)]).await?;
    let pin = [Version::new(3)];
    bench.store.protect(db.id, None, &pin).await?;
    bench.collect(None).await?;
    let mut kept = vec![2, 3, 5];
    if capabilities.branches {
        let branch = bench.branch(db, 2, "branch").await?;
        bench.expect(branch, 1, &[(1, Some((1, 1)))]).await?;
    }
    if super::model::keeps_for_a_while(&capabilities) {
        kept = (1..=9).collect();
    }
    for number in kept {
        bench.find(db, version(number)).await?;
        reads_right(&bench, db, number).await?;
    }
    let refused = bench.store.protect(db.id, None, &[Version::new(99)]).await;
    ensure!(
        matches!(refused, Err(StoreError::VersionGone { .. })),
        "a pin of a version that was never made answered {refused:?}"
    );
    // The refused pin replaced nothing.
    bench.collect(None).await?;
    reads_right(&bench, db, 3).await?;
    Ok(Verdict::Kept)
}

async fn reads_right(bench: &Bench, db: Db, number: u64) -> Result<(), Violation> {
    let all = numbers(1..=PAGES)?;
    let pages = bench.store.read(db.id, Version::new(number), &all).await?;
    for (page_number, page) in all.iter().zip(pages) {
        let right = content(SIZE, page_number.get(), written(number, page_number.get()));
        ensure!(
            page.content == right,
            "page {page_number} of version {number}, which has to be kept: {}",
            describe(&page.content)
        );
    }
    Ok(())
}

/// V6 where the retention cannot be set: a collection comes to its end, beside readers and writers, and takes nothing that is read.
async fn spares_what_is_read(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    if !bench.store.capabilities().versions {
        return Ok(Verdict::NotTried("the store keeps no versions"));
    }
    let db = bench.database("a").await?;
    bench.store.protect(db.id, Some(Version::ZERO), &[]).await?;
    commit_up_to(&bench, db, 0, 60).await?;
    for floor in [0, 31, 60] {
        let wanted = Some(Version::new(floor));
        bench.store.protect(db.id, wanted, &[]).await?;
        bench.collect(Some(db.id)).await?;
        bench.collect(None).await?;
        for number in floor.max(1)..=60 {
            reads_right(&bench, db, number).await?;
        }
        let described = bench.store.describe(db.id).await?;
        ensure!(
            described.versions >= 61 - floor.max(1) && described.pages >= u64::from(PAGES),
            "versions from {floor} to 60 are read, described is {described:?}"
        );
    }
    collects_beside_readers_and_writers(&bench).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn v06(context: Context<'_>) -> Outcome {
    let Some(bench) = Bench::open_keeping(context, Duration::ZERO).await? else {
        return spares_what_is_read(context).await;
    };
    let db = bench.database("a").await?;
    bench.store.protect(db.id, Some(Version::ZERO), &[]).await?;
    commit_up_to(&bench, db, 0, 60).await?;
    bench.collect(None).await?;
    let all: Vec<_> = (1..=60).collect();
    kept_are(&bench, db, 60, &all).await?;
    let full = bench.store.describe(db.id).await?;
    ensure!(
        full.pages == u64::from(PAGES) + 59,
        "{PAGES} pages were written, then 59 times one, and described is {full:?}"
    );
    // The floor rises, and what is below it goes.
    bench
        .store
        .protect(db.id, Some(Version::new(31)), &[])
        .await?;
    let freed = bench.collect(Some(db.id)).await?;
    let left: Vec<_> = (31..=60).collect();
    kept_are(&bench, db, 60, &left).await?;
    let described = bench.store.describe(db.id).await?;
    ensure!(
        described.pages == u64::from(PAGES) + 29 && described.bytes < full.bytes,
        "30 versions of {PAGES} pages, each with one anew: {described:?}"
    );
    ensure!(
        freed.versions <= 30 && freed.pages <= 30,
        "30 versions with a page each went, said is {freed:?}"
    );
    // A pin in the middle keeps what it reads and nothing more, and then goes too.
    bench
        .store
        .protect(db.id, None, &[Version::new(40)])
        .await?;
    bench.collect(None).await?;
    kept_are(&bench, db, 60, &[40, 60]).await?;
    let described = bench.store.describe(db.id).await?;
    ensure!(
        described.pages == 2 * u64::from(PAGES),
        "two versions without a page in common: {described:?}"
    );
    bench.store.protect(db.id, None, &[]).await?;
    bench.collect(None).await?;
    kept_are(&bench, db, 60, &[60]).await?;
    let described = bench.store.describe(db.id).await?;
    ensure!(
        described.pages == u64::from(PAGES),
        "one version: {described:?}"
    );
    of_shrunk_and_removed(&bench).await?;
    beside_readers_and_writers(&bench).await?;
    Ok(Verdict::Kept)
}

/// Pages that went away, other page sizes, restores and branches leave nothing behind.
async fn of_shrunk_and_removed(bench: &Bench) -> Result<(), Violation> {
    let db = bench.database("shrunk").await?;
    commit_up_to(bench, db, 0, 3).await?;
    let branch = bench.branch(db, 3, "shrunk/branch").await?;
    bench
        .commit(vec![part(branch, 1, PAGES, &[(1, 9)])])
        .await?;
    bench.commit(vec![part(db, 3, 2, &[])]).await?;
    bench.commit(vec![part(db, 4, PAGES, &[(5, 5)])]).await?;
    bench.collect(None).await?;
    let pages = async |db: Db| Ok::<_, Violation>(bench.store.describe(db.id).await?.pages);
    let (of_parent, of_branch) = (pages(db).await?, pages(branch).await?);
    ensure!(
        of_parent == u64::from(PAGES) + 1 && of_branch == 1,
        "{PAGES} pages for the branch, one anew, one of the branch: {of_parent} and {of_branch}"
    );
    bench.remove(&bench.name("shrunk/branch")?).await?;
    bench.collect(None).await?;
    ensure!(pages(db).await? == 3, "3 pages, kept {}", pages(db).await?);
    bench.commit(vec![restore(db, 5, 5, PAGES)]).await?;
    let mut double = part(db, 6, 2, &[]);
    double.page_size = pagewire_proto::PageSize::try_from(SIZE.get() * 2)?;
    double.pages = super::fixture::writes(double.page_size, &[(1, 7)]);
    bench.commit(vec![double]).await?;
    bench.collect(None).await?;
    ensure!(pages(db).await? == 1, "1 page, kept {}", pages(db).await?);
    Ok(())
}

/// The same, after which nothing is left but the head.
async fn beside_readers_and_writers(bench: &Bench) -> Result<(), Violation> {
    let db = collects_beside_readers_and_writers(bench).await?;
    bench.store.protect(db.id, None, &[]).await?;
    bench.collect(None).await?;
    kept_are(bench, db, 200, &[200]).await
}

/// Readers protect what they read, a writer commits, and a collection goes on all the time.
async fn collects_beside_readers_and_writers(bench: &Bench) -> Result<Db, Violation> {
    let db = bench.database("busy").await?;
    commit_up_to(bench, db, 0, 1).await?;
    let done = Arc::new(AtomicBool::new(false));
    let collector = {
        let (store, done) = (Arc::clone(&bench.store), Arc::clone(&done));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                store.collect(Some(db.id)).await?;
                tokio::task::yield_now().await;
            }
            Ok::<_, Violation>(())
        })
    };
    let reader = {
        let (store, done) = (Arc::clone(&bench.store), Arc::clone(&done));
        tokio::spawn(async move { read_on(&store, db, &done).await })
    };
    let mut result = Ok(());
    for head in 1..200 {
        result = commit_up_to(bench, db, head, head + 1).await;
        if result.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    done.store(true, Ordering::Relaxed);
    for task in [collector, reader] {
        task.await.map_err(|e| Violation(e.to_string()))??;
    }
    result?;
    Ok(db)
}

/// Protects the head, then reads it again and again while it becomes old.
async fn read_on(store: &Arc<dyn PageStore>, db: Db, done: &AtomicBool) -> Result<(), Violation> {
    let all = numbers(1..=PAGES)?;
    while !done.load(Ordering::Relaxed) {
        let floor = store.head(db.id).await?.version;
        store.protect(db.id, Some(floor), &[]).await?;
        let head = store.head(db.id).await?.version;
        for _ in 0..20 {
            let pages = store.read(db.id, head, &all).await;
            let pages = pages.map_err(|e| Violation(format!("protected from {floor} on: {e}")))?;
            for (number, page) in all.iter().zip(pages) {
                let right = content(SIZE, number.get(), written(head.get(), number.get()));
                ensure!(
                    page.content == right,
                    "page {number} of version {head} under a collection: {}",
                    describe(&page.content)
                );
            }
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

pub(super) async fn v07(context: Context<'_>) -> Outcome {
    let mut bench = Bench::open(context).await?;
    let capabilities = bench.store.capabilities();
    if !(capabilities.versions && capabilities.durable && context.store.can_restart()) {
        return Ok(Verdict::NotTried(
            "the store keeps no versions over a restart that can be made here",
        ));
    }
    let db = bench.database("a").await?;
    commit_up_to(&bench, db, 0, 20).await?;
    bench.tag(db, "t", 7).await?;
    bench.commit(vec![restore(db, 20, 9, PAGES)]).await?;
    let branch = bench.branch(db, 9, "branch").await?;
    let mut before = Vec::new();
    for round in 0..2 {
        let list = bench.store.versions(db.id, None, false, 100).await?;
        let described = bench.store.describe(branch.id).await?;
        let tagged = bench.find(db, Moment::Tag(TagName::try_from("t")?)).await?;
        let now = (list, described, tagged, bench.store.describe(db.id).await?);
        before.push(now);
        if round == 0 {
            bench = bench.reopen(context).await?;
        }
    }
    ensure!(
        before[0] == before[1],
        "before a restart {:?}, after it {:?}",
        before[0],
        before[1]
    );
    let all = numbers(1..=PAGES)?;
    for (db, number, of) in [(db, 7, 7), (db, 21, 9), (branch, 1, 9)] {
        let pages = bench.store.read(db.id, Version::new(number), &all).await?;
        for (page_number, page) in all.iter().zip(pages) {
            let right = content(SIZE, page_number.get(), written(of, page_number.get()));
            ensure!(
                page.content == right,
                "page {page_number} of version {number} after a restart: {}",
                describe(&page.content)
            );
        }
    }
    Ok(Verdict::Kept)
}
