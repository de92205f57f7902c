//! Rules C9 and C10: pages as of a version, and which versions there are.

use std::sync::Arc;

use pagewire_proto::{PageNumber, Version};

use super::fixture::{Bench, SIZE, content, describe, ensure, numbers, part};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{PageStore, StoreError};

pub(super) async fn c09(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let db = bench.database("a").await?;
    let store = &bench.store;
    store.protect(db.id, Some(Version::ZERO), &[]).await?;
    bench
        .expect(db, 0, &[(1, None), (PageNumber::MAX, None)])
        .await?;
    bench
        .commit(vec![part(
            db,
            0,
            300,
            &[(1, 1), (2, 1), (255, 1), (256, 1), (300, 1)],
        )])
        .await?;
    bench
        .commit(vec![part(db, 1, 300, &[(2, 2), (256, 2)])])
        .await?;
    bench.commit(vec![part(db, 2, 300, &[(257, 3)])]).await?;
    let w = |stamp| Some((stamp, stamp));
    let asked = [
        (300, w(1)),
        (2, w(2)),
        (1, w(1)),
        (2, w(2)),
        (3, None),
        (255, w(1)),
        (256, w(2)),
        (257, w(3)),
        (301, None),
        (PageNumber::MAX, None),
    ];
    bench.expect(db, 3, &asked).await?;
    bench
        .expect(db, 2, &[(257, None), (256, w(2)), (255, w(1))])
        .await?;
    bench
        .expect(db, 1, &[(256, w(1)), (2, w(1)), (257, None)])
        .await?;
    bench.expect(db, 0, &[(1, None), (2, None)]).await?;
    bench.expect(db, 3, &[]).await?;
    neighbours_do_not_leak(&bench).await?;
    Ok(Verdict::Kept)
}

/// Databases with the same page numbers have their own pages.
async fn neighbours_do_not_leak(bench: &Bench) -> Result<(), Violation> {
    let mut dbs = Vec::new();
    for index in 0..8 {
        let db = bench.database(&format!("n{index}")).await?;
        let stamp = 100 + index;
        bench.commit(vec![part(db, 0, 2, &[(2, stamp)])]).await?;
        dbs.push((db, stamp));
    }
    for (db, stamp) in dbs {
        bench
            .expect(db, 1, &[(1, None), (2, Some((stamp, 1))), (3, None)])
            .await?;
    }
    Ok(())
}

pub(super) async fn c10(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let db = bench.database("a").await?;
    let store = &bench.store;
    commit_up_to(&bench, db, 0, 5).await?;
    expect_gone(store, db, 6).await?;
    expect_gone(store, db, u64::MAX).await?;
    // From here on version 5 and everything above it stays.
    store.protect(db.id, Some(Version::new(5)), &[]).await?;
    commit_up_to(&bench, db, 5, 9).await?;
    for version in 5..=9 {
        right(store, db, version, true).await?;
    }
    for version in 0..5 {
        right(store, db, version, false).await?;
    }
    // A floor below what is left promises nothing new, and takes nothing away.
    store.protect(db.id, Some(Version::new(2)), &[]).await?;
    commit_up_to(&bench, db, 9, 10).await?;
    for version in 0..=10 {
        right(store, db, version, version >= 5).await?;
    }
    store.protect(db.id, Some(Version::new(8)), &[]).await?;
    for version in 0..=10 {
        right(store, db, version, version >= 8).await?;
    }
    // A floor above the head protects what comes.
    store.protect(db.id, Some(Version::new(12)), &[]).await?;
    commit_up_to(&bench, db, 10, 14).await?;
    for version in 0..=14 {
        right(store, db, version, version >= 12).await?;
    }
    // Without a floor the head is still there, and so it is with a floor that is only then set on it.
    store.protect(db.id, None, &[]).await?;
    right(store, db, 14, true).await?;
    store.protect(db.id, Some(Version::new(14)), &[]).await?;
    commit_up_to(&bench, db, 14, 15).await?;
    store.protect(db.id, None, &[]).await?;
    commit_up_to(&bench, db, 15, 20).await?;
    for version in 0..=20 {
        right(store, db, version, version == 20).await?;
    }
    Ok(Verdict::Kept)
}

/// Version n of the trial: even ones have two pages, odd ones four. Page 1 is written by each; page 2 by every third, page 4
/// by the odd ones that 4 does not divide with a rest of 3.
fn expected(version: u64, number: u32) -> Option<(u64, u64)> {
    let written = match number {
        1 => version,
        2 => version / 3 * 3,
        4 if version % 4 == 1 => version,
        _ => 0,
    };
    (written > 0).then_some((written, written))
}

async fn commit_up_to(
    bench: &Bench,
    db: super::fixture::Db,
    head: u64,
    to: u64,
) -> Result<(), Violation> {
    for base in head..to {
        let version = base + 1;
        let count = if version % 2 == 0 { 2 } else { 4 };
        let pages: Vec<_> = (1..=4)
            .filter(|number| expected(version, *number) == Some((version, version)))
            .map(|number| (number, version))
            .collect();
        bench.commit(vec![part(db, base, count, &pages)]).await?;
    }
    Ok(())
}

/// The version reads as it was, or, unless it has to be there, is gone.
async fn right(
    store: &Arc<dyn PageStore>,
    db: super::fixture::Db,
    version: u64,
    must: bool,
) -> Result<(), Violation> {
    let pages = match store
        .read(db.id, Version::new(version), &numbers(1..=4)?)
        .await
    {
        Err(StoreError::VersionGone { version: said }) if !must => {
            ensure!(
                said.get() == version,
                "version {said} gone instead of {version}"
            );
            return Ok(());
        }
        Err(error) => {
            return Err(Violation(format!(
                "version {version} is protected and answered {error:?}"
            )));
        }
        Ok(pages) => pages,
    };
    for (number, page) in (1..).zip(pages) {
        let (right, written) = match expected(version, number) {
            Some((stamp, written)) => (content(SIZE, number, stamp), written),
            None => (Default::default(), 0),
        };
        ensure!(
            page.content == right && page.version.get() == written,
            "page {number} at version {version}: {} of version {}, must be {} of version {written}",
            describe(&page.content),
            page.version,
            describe(&right)
        );
    }
    Ok(())
}

async fn expect_gone(
    store: &Arc<dyn PageStore>,
    db: super::fixture::Db,
    version: u64,
) -> Result<(), Violation> {
    let version = Version::new(version);
    let answer = store.read(db.id, version, &[PageNumber::FIRST]).await;
    ensure!(
        matches!(answer, Err(StoreError::VersionGone { version: v }) if v == version),
        "version {version}, which was never made, answered {answer:?}"
    );
    Ok(())
}
