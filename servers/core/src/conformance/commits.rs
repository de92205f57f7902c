//! Rules C3 to C7: a commit is whole, once, on its base, of its epoch, and stays.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use pagewire_proto::{CommitId, Epoch, Snapshot, StagingId, Version};

use super::fixture::{Bench, Db, SIZE, content, describe, ensure, numbers, part, staged, writes};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{Commit, CommitOutcome, PageStore, StoreError};

/// Pages of each database while readers watch.
const WATCHED_PAGES: u32 = 8;
/// Commits while readers watch.
const WATCHED_COMMITS: u64 = 150;

pub(super) async fn c03(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let (a, b) = (bench.database("a").await?, bench.database("b").await?);
    bench.commit(vec![part(a, 0, 1, &[(1, 1)])]).await?;
    // The fault is in the first, in the last, and is a staging that does not exist.
    let wrong = part(b, 5, 1, &[(1, 9)]);
    bench
        .refused(vec![part(a, 1, 2, &[(1, 9)]), wrong.clone()])
        .await?;
    bench.refused(vec![wrong, part(a, 1, 2, &[(1, 9)])]).await?;
    let unknown = staged(b, 0, 1, &[StagingId::random()?], &[(1, 9)]);
    let databases = vec![part(a, 1, 2, &[(1, 9)]), unknown];
    let id = CommitId::random()?;
    let outcome = bench.store.commit(Commit { id, databases }).await;
    ensure!(
        matches!(outcome, Err(StoreError::StagingUnknown(_))),
        "a commit with an unknown staging answered {outcome:?}"
    );
    bench.expect(a, 1, &[(1, Some((1, 1))), (2, None)]).await?;
    ensure!(
        bench.store.head(b.id).await? == Snapshot::EMPTY,
        "a failed commit made a version"
    );
    ensure!(
        bench.store.head(a.id).await?.version == Version::new(1),
        "a failed commit made a version"
    );
    bench
        .commit(vec![part(b, 0, 1, &[(1, 1)]), part(a, 1, 1, &[(1, 2)])])
        .await?;

    let (x, y) = (bench.database("x").await?, bench.database("y").await?);
    watched_commits(&bench, x, y).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        let bench = bench.reopen(context).await?;
        for db in [x, y] {
            let head = bench.store.head(db.id).await?.version.get();
            ensure!(
                head == WATCHED_COMMITS,
                "version {WATCHED_COMMITS} was acknowledged, after a restart there is {head}"
            );
            whole(&bench.store, db, head).await?;
        }
    }
    Ok(Verdict::Kept)
}

/// Commits to two databases, all pages each time, while readers look whether they ever see a part.
async fn watched_commits(bench: &Bench, x: Db, y: Db) -> Result<(), Violation> {
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (store, done) = (Arc::clone(&bench.store), Arc::clone(&done));
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let first = store.head(x.id).await?.version.get();
                    let second = store.head(y.id).await?.version.get();
                    ensure!(
                        second >= first,
                        "the first database of a commit was seen at version {first}, then the second at {second}"
                    );
                    for db in [x, y] {
                        whole(&store, db, store.head(db.id).await?.version.get()).await?;
                    }
                    tokio::task::yield_now().await;
                }
                Ok(())
            })
        })
        .collect();
    let pages = |stamp| (1..=WATCHED_PAGES).map(move |n| (n, stamp));
    let mut result = Ok(());
    for base in 0..WATCHED_COMMITS {
        let pages: Vec<_> = pages(base + 1).collect();
        let parts = vec![
            part(x, base, WATCHED_PAGES, &pages),
            part(y, base, WATCHED_PAGES, &pages),
        ];
        result = bench.commit(parts).await.map(|_| ());
        if result.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.map_err(|e| Violation(e.to_string()))??;
    }
    result
}

/// All pages of a version carry its number, or the version is gone.
async fn whole(store: &Arc<dyn PageStore>, db: Db, version: u64) -> Result<(), Violation> {
    let numbers = numbers(1..=WATCHED_PAGES)?;
    let pages = match store.read(db.id, Version::new(version), &numbers).await {
        Err(StoreError::VersionGone { .. }) => return Ok(()),
        pages => pages?,
    };
    for (number, page) in numbers.iter().zip(pages) {
        let right = match version {
            0 => Bytes::new(),
            _ => content(SIZE, number.get(), version),
        };
        ensure!(
            page.content == right,
            "page {number} at version {version} has {}",
            describe(&page.content)
        );
    }
    Ok(())
}

pub(super) async fn c04(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let (a, b) = (bench.database("a").await?, bench.database("b").await?);
    for base in 0..3 {
        bench
            .commit(vec![part(a, base, 1, &[(1, base + 1)])])
            .await?;
    }
    for base in [0, 2, 4, u64::MAX - 1] {
        let outcome = bench.refused(vec![part(a, base, 1, &[(1, 9)])]).await?;
        expect_conflict(outcome, 0, 3)?;
    }
    let parts = vec![part(b, 0, 1, &[(1, 9)]), part(a, 2, 1, &[(1, 9)])];
    expect_conflict(bench.refused(parts).await?, 1, 3)?;
    // Both at fault: the first one counts.
    let parts = vec![part(b, 1, 1, &[(1, 9)]), part(a, 2, 1, &[(1, 9)])];
    expect_conflict(bench.refused(parts).await?, 0, 0)?;
    bench.expect(a, 3, &[(1, Some((3, 3)))]).await?;
    racing_commits_have_one_winner(&bench, b).await?;
    Ok(Verdict::Kept)
}

fn expect_conflict(outcome: CommitOutcome, index: usize, head: u64) -> Result<(), Violation> {
    let expected = CommitOutcome::Conflict {
        index,
        head: Version::new(head),
    };
    ensure!(
        outcome == expected,
        "answered {outcome:?} instead of {expected:?}"
    );
    Ok(())
}

async fn racing_commits_have_one_winner(bench: &Bench, db: Db) -> Result<(), Violation> {
    for base in 0..10 {
        let mut racers = Vec::new();
        for racer in 0..4 {
            let store = Arc::clone(&bench.store);
            let id = CommitId::random()?;
            let databases = vec![part(db, base, 1, &[(1, racer)])];
            racers.push(tokio::spawn(async move {
                store.commit(Commit { id, databases }).await
            }));
        }
        let mut winners = Vec::new();
        for (racer, task) in racers.into_iter().enumerate() {
            let outcome = task.await.map_err(|e| Violation(e.to_string()))??;
            if let CommitOutcome::Committed(_) = outcome {
                winners.push(racer as u64);
            }
        }
        let [winner] = winners[..] else {
            return Err(Violation(format!(
                "{} of four racing commits on one base succeeded",
                winners.len()
            )));
        };
        bench
            .expect(db, base + 1, &[(1, Some((winner, base + 1)))])
            .await?;
    }
    Ok(())
}

pub(super) async fn c05(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let (old, b) = (bench.database("a").await?, bench.database("b").await?);
    bench.commit(vec![part(old, 0, 1, &[(1, 1)])]).await?;
    let epoch = bench.store.fence(old.id).await?;
    let new = Db { epoch, ..old };
    let above = Db {
        epoch: Epoch::new(epoch.get() + 1),
        ..old
    };
    let lost = |index| CommitOutcome::LeaseLost {
        index,
        current: epoch,
    };
    for stale in [old, above] {
        let outcome = bench.refused(vec![part(stale, 1, 1, &[(1, 9)])]).await?;
        ensure!(
            outcome == lost(0),
            "epoch {} where {epoch} is the current one: {outcome:?}",
            stale.epoch
        );
    }
    let parts = vec![part(b, 0, 1, &[(1, 9)]), part(old, 1, 1, &[(1, 9)])];
    let outcome = bench.refused(parts).await?;
    ensure!(
        outcome == lost(1),
        "the second database has lost its lease: {outcome:?}"
    );
    bench.commit(vec![part(new, 1, 1, &[(1, 2)])]).await?;
    bench.commit(vec![part(b, 0, 1, &[(1, 1)])]).await?;
    a_fence_ends_a_running_writer(&bench, b).await?;
    Ok(Verdict::Kept)
}

/// A writer commits as fast as it can: from the moment in which `fence` has answered nothing of it may get through.
async fn a_fence_ends_a_running_writer(bench: &Bench, db: Db) -> Result<(), Violation> {
    let mut epoch = db.epoch;
    for _ in 0..10 {
        let writer = {
            let store = Arc::clone(&bench.store);
            let db = Db { epoch, ..db };
            let mut base = store.head(db.id).await?.version.get();
            tokio::spawn(async move {
                loop {
                    let id = CommitId::random()?;
                    let databases = vec![part(db, base, 1, &[(1, base)])];
                    match store.commit(Commit { id, databases }).await? {
                        CommitOutcome::Committed(_) => base += 1,
                        _ => return Ok::<_, Violation>(base),
                    }
                    tokio::task::yield_now().await;
                }
            })
        };
        tokio::task::yield_now().await;
        epoch = bench.store.fence(db.id).await?;
        let head = bench.store.head(db.id).await?.version;
        let last = writer.await.map_err(|e| Violation(e.to_string()))??;
        let after = bench.store.head(db.id).await?.version;
        ensure!(
            head == after && last == after.get(),
            "a fence answered at version {head}, the fenced writer got on to {after} and believes in {last}"
        );
    }
    Ok(())
}

pub(super) async fn c06(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let (a, b) = (bench.database("a").await?, bench.database("b").await?);
    let staging = StagingId::random()?;
    let pages = writes(SIZE, &[(2, 1)]);
    bench.store.stage(a.id, staging, SIZE, pages).await?;
    let parts = vec![
        staged(a, 0, 2, &[staging], &[(1, 1)]),
        part(b, 0, 1, &[(1, 1)]),
    ];
    let id = bench.commit(parts.clone()).await?;
    repeat(&bench, id, &parts).await?;
    // Other content under the same id is still the same commit.
    let altered = vec![part(a, 0, 1, &[(1, 9)]), part(b, 0, 1, &[(1, 9)])];
    bench.commit_as(id, altered).await?;
    bench
        .expect(a, 1, &[(1, Some((1, 1))), (2, Some((1, 1)))])
        .await?;
    // Neither later versions nor another epoch make it a conflict.
    bench.commit(vec![part(a, 1, 2, &[(1, 2)])]).await?;
    repeat(&bench, id, &parts).await?;
    let epoch = bench.store.fence(a.id).await?;
    repeat(&bench, id, &parts).await?;
    bench.expect(a, 2, &[(1, Some((2, 2)))]).await?;
    // On another base it is another commit.
    let outcome = bench.outcome(id, vec![part(a, 1, 2, &[(1, 9)])]).await?;
    ensure!(
        !matches!(outcome, CommitOutcome::Committed(_)),
        "a commit id is taken for a repetition on another base"
    );
    if context.store.can_restart() && bench.store.capabilities().durable {
        let bench = bench.reopen(context).await?;
        repeat(&bench, id, &parts).await?;
        bench.expect(a, 2, &[(1, Some((2, 2)))]).await?;
        let epoch = bench.store.fence(a.id).await?;
        let a = Db { epoch, ..a };
        bench.commit(vec![part(a, 2, 2, &[(1, 3)])]).await?;
        repeat(&bench, id, &parts).await?;
    } else {
        let a = Db { epoch, ..a };
        bench.commit(vec![part(a, 2, 2, &[(1, 3)])]).await?;
    }
    Ok(Verdict::Kept)
}

async fn repeat(
    bench: &Bench,
    id: CommitId,
    parts: &[crate::store::DatabaseCommit],
) -> Result<(), Violation> {
    let mut heads = Vec::new();
    for part in parts {
        heads.push(bench.store.head(part.database).await?);
    }
    bench.commit_as(id, parts.to_vec()).await?;
    for (part, head) in parts.iter().zip(heads) {
        let after = bench.store.head(part.database).await?;
        ensure!(
            after == head,
            "a repeated commit took a head from {head:?} to {after:?}"
        );
    }
    Ok(())
}

pub(super) async fn c07(context: Context<'_>) -> Outcome {
    let mut bench = Bench::open(context).await?;
    if !bench.store.capabilities().durable {
        return Ok(Verdict::NotTried("the store does not claim to be durable"));
    }
    if !context.store.can_restart() {
        return Ok(Verdict::NotTried("the store cannot be restarted here"));
    }
    let mut a = bench.database("a").await?;
    let mut b = bench.database("b").await?;
    for round in 0..5 {
        let (base, stamp) = (round * 2, round * 2 + 1);
        let parts = vec![
            part(a, base, 3, &[(1, stamp), (3, stamp)]),
            part(b, base, 1, &[(1, stamp)]),
        ];
        bench.commit(parts).await?;
        bench
            .commit(vec![
                part(a, base + 1, 3, &[(1, stamp + 1)]),
                part(b, base + 1, 1, &[(1, stamp + 1)]),
            ])
            .await?;
        bench = bench.reopen(context).await?;
        let head = base + 2;
        for db in [a, b] {
            let found = bench.store.head(db.id).await?.version.get();
            ensure!(
                found == head,
                "version {head} was acknowledged, {found} is left"
            );
            bench.expect(db, head, &[(1, Some((head, head)))]).await?;
        }
        bench
            .expect(a, head, &[(2, None), (3, Some((stamp, head - 1)))])
            .await?;
        a.epoch = bench.store.fence(a.id).await?;
        b.epoch = bench.store.fence(b.id).await?;
    }
    Ok(Verdict::Kept)
}
