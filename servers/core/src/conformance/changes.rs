//! Rule C11: what differs between two versions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use pagewire_proto::{Changes, Version};

use super::fixture::{Bench, Db, ensure, number_of, numbers, part};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{PageStore, StoreError};

/// Pages that the databases of the trial have at most.
const PAGES: u32 = 9;

pub(super) async fn c11(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let db = bench.database("a").await?;
    let store = &bench.store;
    store.protect(db.id, Some(Version::ZERO), &[]).await?;
    let history: &[(u32, &[u32])] = &[
        (6, &[1, 2, 3, 4, 5, 6]),
        (6, &[2]),
        (6, &[2, 3]),
        (3, &[1]),
        (9, &[9]),
        (9, &[5]),
        (9, &[]),
    ];
    for (base, (count, pages)) in (0..).zip(history) {
        let pages: Vec<_> = pages.iter().map(|number| (*number, base + 1)).collect();
        bench.commit(vec![part(db, base, *count, &pages)]).await?;
        for since in 0..=base + 1 {
            names_every_difference(store, db, since, base + 1).await?;
        }
    }
    // Another page size changes everything, also pages that are named.
    let mut larger = part(db, 7, 2, &[]);
    larger.page_size = pagewire_proto::PageSize::MAX;
    bench.commit(vec![larger]).await?;
    for since in 0..=8 {
        names_every_difference(store, db, since, 8).await?;
    }
    let (_, changes) = store.changes(db.id, Version::new(8)).await?;
    ensure!(
        changes == Changes::Pages(Vec::new()) || changes == Changes::All,
        "between the head and itself {changes:?} differ"
    );
    while_commits_run(&bench).await?;
    Ok(Verdict::Kept)
}

async fn names_every_difference(
    store: &Arc<dyn PageStore>,
    db: Db,
    since: u64,
    head: u64,
) -> Result<(), Violation> {
    let (snapshot, changes) = store.changes(db.id, Version::new(since)).await?;
    ensure!(
        snapshot == store.head(db.id).await? && snapshot.version.get() == head,
        "changes answered the head {snapshot:?}"
    );
    let Changes::Pages(changed) = changes else {
        return Ok(());
    };
    let mut once = changed.clone();
    once.sort();
    once.dedup();
    ensure!(once.len() == changed.len(), "changes name a page twice");
    let pages = numbers(1..=PAGES)?;
    let old = store.read(db.id, Version::new(since), &pages).await?;
    let new = store.read(db.id, Version::new(head), &pages).await?;
    for ((number, old), new) in pages.iter().zip(old).zip(new) {
        ensure!(
            old == new || changed.contains(number),
            "page {number} differs between versions {since} and {head}, changes name {changed:?}"
        );
    }
    Ok(())
}

/// A mirror that takes only what changes name stays equal to the head, whatever is committed meanwhile.
async fn while_commits_run(bench: &Bench) -> Result<(), Violation> {
    let db = bench.database("mirrored").await?;
    let done = Arc::new(AtomicBool::new(false));
    bench.store.protect(db.id, Some(Version::ZERO), &[]).await?;
    let mirror = {
        let (store, done) = (Arc::clone(&bench.store), Arc::clone(&done));
        tokio::spawn(async move {
            let mut mirror: BTreeMap<u32, Bytes> = BTreeMap::new();
            let mut known = Version::ZERO;
            let mut last = false;
            loop {
                let (head, changes) = store.changes(db.id, known).await?;
                let pages = match changes {
                    Changes::All => numbers(1..=PAGES)?,
                    Changes::Pages(pages) => pages,
                };
                for (number, page) in pages
                    .iter()
                    .zip(store.read(db.id, head.version, &pages).await?)
                {
                    mirror.insert(number.get(), page.content);
                }
                known = head.version;
                let all = numbers(1..=PAGES)?;
                for (number, page) in all.iter().zip(store.read(db.id, known, &all).await?) {
                    let mirrored = mirror.get(&number.get()).cloned().unwrap_or_default();
                    ensure!(
                        mirrored == page.content,
                        "page {number} changed up to version {known} without being named"
                    );
                }
                if last {
                    return Ok(());
                }
                last = done.load(Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        })
    };
    let mut result: Result<_, Violation> = Ok(());
    for base in 0..120_u64 {
        let number = (base % 7) as u32 + 1;
        let count = if base % 5 == 4 { 3 } else { PAGES };
        result = bench
            .commit(vec![part(db, base, count, &[(number, base + 1)])])
            .await
            .map(|_| ());
        if result.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    done.store(true, Ordering::Relaxed);
    mirror.await.map_err(|e| Violation(e.to_string()))??;
    result?;
    too_far_back_is_all(bench, db).await
}

/// A version that was never made cannot be compared with.
async fn too_far_back_is_all(bench: &Bench, db: Db) -> Result<(), Violation> {
    match bench.store.changes(db.id, Version::new(9999)).await {
        Ok((_, Changes::All)) | Err(StoreError::VersionGone { .. }) => Ok(()),
        other => Err(Violation(format!(
            "the changes since a version that was never made are {other:?}, page {} among them",
            number_of(1)
        ))),
    }
}
