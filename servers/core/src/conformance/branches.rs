//! Rules V4 and V5: branches and restores.

use pagewire_proto::{CommitId, DatabaseId, Moment, PageSize, Version};

use super::fixture::{
    Bench, Db, SIZE, content, describe, ensure, ensure_not_found, numbers, page_count, part,
    restore, version, writes,
};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{Commit, CommitOutcome, DatabaseCommit, StoreError};

/// How deep branches from branches go.
const DEPTH: u64 = 24;
/// Pages of a restore that no store copies one by one without thinking.
const LARGE: u32 = 3000;

pub(super) async fn v04(context: Context<'_>) -> Outcome {
    let mut bench = Bench::open(context).await?;
    if !bench.store.capabilities().branches {
        return Ok(Verdict::NotTried("the store has no branches"));
    }
    let main = bench.database("main").await?;
    bench
        .commit(vec![part(main, 0, 4, &[(1, 1), (2, 1), (4, 1)])])
        .await?;
    bench.commit(vec![part(main, 1, 4, &[(1, 2)])]).await?;
    bench.commit(vec![part(main, 2, 2, &[(2, 3)])]).await?;
    let branch = bench.branch(main, 2, "branch").await?;
    let head = bench.store.head(branch.id).await?;
    ensure!(
        head.version.get() == 1 && head.page_count == page_count(4) && head.page_size == Some(SIZE),
        "the head of a branch is {head:?}"
    );
    // What it has from there is answered as written by version 1 (B1).
    let w = |stamp, version| Some((stamp, version));
    let first = [
        (1, w(2, 1)),
        (2, w(1, 1)),
        (3, None),
        (4, w(1, 1)),
        (5, None),
    ];
    bench.expect(branch, 1, &first).await?;
    let listed = bench.listed(branch).await?;
    ensure!(listed == [1], "versions of a branch: {listed:?}");
    // Both go on, neither shows in the other; the branch shrinks below what it has from its parent, and grows again.
    bench
        .commit(vec![
            part(branch, 1, 5, &[(2, 20), (5, 20)]),
            part(main, 3, 6, &[(1, 30), (3, 30)]),
        ])
        .await?;
    bench.commit(vec![part(branch, 2, 1, &[])]).await?;
    bench.commit(vec![part(branch, 3, 6, &[(3, 40)])]).await?;
    let second = [
        (1, w(2, 1)),
        (2, w(20, 2)),
        (3, None),
        (4, w(1, 1)),
        (5, w(20, 2)),
    ];
    let fourth = [
        (1, w(2, 1)),
        (2, None),
        (3, w(40, 4)),
        (4, None),
        (5, None),
        (6, None),
    ];
    let of_main = [(1, w(30, 4)), (2, w(3, 3)), (3, w(30, 4)), (4, None)];
    let all_stand = async |bench: &Bench| {
        bench.expect(branch, 1, &first).await?;
        bench.expect(branch, 2, &second).await?;
        bench.expect(branch, 4, &fourth).await
    };
    all_stand(&bench).await?;
    bench.expect(main, 4, &of_main).await?;
    dropped_pages_are_told(&bench, branch).await?;
    refusals(&bench, main, branch).await?;
    let inner = bench.branch(branch, 2, "inner").await?;
    deep_branches(&bench).await?;
    // The parent is removed, and its name given to another.
    bench.remove(&bench.name("main")?).await?;
    bench.database("main").await?;
    bench.collect(None).await?;
    all_stand(&bench).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        bench = bench.reopen(context).await?;
    }
    all_stand(&bench).await?;
    let epoch = bench.store.fence(branch.id).await?;
    let branch = Db { epoch, ..branch };
    bench.commit(vec![part(branch, 4, 6, &[(1, 50)])]).await?;
    bench.remove(&bench.name("branch")?).await?;
    bench.collect(None).await?;
    ensure_not_found("head", bench.store.head(branch.id).await)?;
    let inner_pages = [
        (1, w(2, 1)),
        (2, w(20, 1)),
        (3, None),
        (4, w(1, 1)),
        (5, w(20, 1)),
    ];
    bench.expect(inner, 1, &inner_pages).await?;
    // The call that made it comes once more, or one that looks like it: its id has had versions.
    let name = bench.name("branch")?;
    let first = version(1);
    let again = bench.store.branch(inner.id, &first, branch.id, &name).await;
    ensure!(
        matches!(again, Err(StoreError::NameTaken(_))),
        "a branch took the id of a removed one: {again:?}"
    );
    ensure_not_found("lookup", bench.store.lookup(&name, false).await)?;
    ensure_not_found("head", bench.store.head(branch.id).await)?;
    bench.expect(inner, 1, &inner_pages).await?;
    Ok(Verdict::Kept)
}

/// A page that a branch had from its parent and that went away is a change.
async fn dropped_pages_are_told(bench: &Bench, branch: Db) -> Result<(), Violation> {
    let all = numbers(1..=6)?;
    for since in 1..=4 {
        let since = Version::new(since);
        let (head, changes) = bench.store.changes(branch.id, since).await?;
        let pagewire_proto::Changes::Pages(changed) = changes else {
            continue;
        };
        let old = bench.store.read(branch.id, since, &all).await?;
        let new = bench.store.read(branch.id, head.version, &all).await?;
        for ((number, old), new) in all.iter().zip(old).zip(new) {
            ensure!(
                old == new || changed.contains(number),
                "page {number} of a branch differs between {since} and {}, told is {changed:?}",
                head.version
            );
        }
    }
    Ok(())
}

async fn refusals(bench: &Bench, main: Db, branch: Db) -> Result<(), Violation> {
    let store = &bench.store;
    let (id, name) = (DatabaseId::random()?, bench.name("again")?);
    let first = store.branch(main.id, &Moment::Age(0), id, &name).await?;
    bench.commit(vec![part(main, 4, 6, &[(1, 31)])]).await?;
    // Another version is the head by now: the answer is what it was.
    let again = store.branch(main.id, &Moment::Age(0), id, &name).await?;
    ensure!(
        first.snapshot == again.snapshot && first.snapshot.version.get() == 4,
        "repeated, a branch from {first:?} is one from {again:?}"
    );
    let taken = |answer: &Result<_, StoreError>| matches!(answer, Err(StoreError::NameTaken(_)));
    let other = DatabaseId::random()?;
    let answer = store.branch(main.id, &version(1), other, &name).await;
    ensure!(
        taken(&answer),
        "a branch took a name that is taken: {answer:?}"
    );
    let answer = store
        .branch(main.id, &version(1), id, &bench.name("elsewhere")?)
        .await;
    ensure!(
        taken(&answer),
        "a branch took an id that is taken: {answer:?}"
    );
    let answer = store.branch(branch.id, &version(1), id, &name).await;
    ensure!(
        taken(&answer),
        "a branch took an id that is taken: {answer:?}"
    );
    for gone in [0, 99] {
        let free = bench.name("free")?;
        let answer = store.branch(main.id, &version(gone), other, &free).await;
        ensure!(
            matches!(answer, Err(StoreError::VersionGone { .. })),
            "a branch from version {gone} answered {answer:?}"
        );
        ensure_not_found("lookup", store.lookup(&free, false).await)?;
    }
    let free = bench.name("free")?;
    let answer = store.branch(other, &version(1), other, &free).await;
    ensure_not_found("branch", answer)?;
    let described = store.describe(branch.id).await?;
    let parent = described.parent;
    ensure!(
        parent.as_ref().is_some_and(|p| p.database == main.id
            && p.version.get() == 2
            && p.name.as_ref() == bench.name("main").ok().as_ref()),
        "a branch is told to come from {parent:?}"
    );
    ensure!(
        store.describe(main.id).await?.parent.is_none(),
        "what is no branch has a parent"
    );
    Ok(())
}

/// Each of them writes a page of its own and is the parent of the next; the ones above go away.
async fn deep_branches(bench: &Bench) -> Result<(), Violation> {
    let count = DEPTH as u32 + 2;
    let mut db = bench.database("deep/0").await?;
    let pages: Vec<_> = (1..=count).map(|number| (number, 1)).collect();
    bench.commit(vec![part(db, 0, count, &pages)]).await?;
    for depth in 1..=DEPTH {
        let head = bench.store.head(db.id).await?.version.get();
        let next = bench.branch(db, head, &format!("deep/{depth}")).await?;
        if depth % 2 == 0 {
            let name = bench.name(&format!("deep/{}", depth - 1))?;
            bench.remove(&name).await?;
        }
        db = next;
        bench
            .commit(vec![part(db, 1, count, &[(depth as u32, 100 + depth)])])
            .await?;
        bench.collect(None).await?;
        let expected: Vec<_> = (1..=count)
            .map(|number| match u64::from(number) {
                page if page == depth => (number, Some((100 + page, 2))),
                page if page < depth => (number, Some((100 + page, 1))),
                _ => (number, Some((1, 1))),
            })
            .collect();
        bench.expect(db, 2, &expected).await?;
    }
    Ok(())
}

pub(super) async fn v05(context: Context<'_>) -> Outcome {
    let mut bench = Bench::open(context).await?;
    if !bench.store.capabilities().versions {
        return Ok(Verdict::NotTried("the store keeps no versions"));
    }
    let mut db = bench.database("a").await?;
    // 1: five pages; 2: two of them anew; 3: shrinks; 4: grows again; 5: another page size.
    let pages: Vec<_> = (1..=5).map(|number| (number, 1)).collect();
    bench.commit(vec![part(db, 0, 5, &pages)]).await?;
    bench
        .commit(vec![part(db, 1, 5, &[(1, 2), (2, 2)])])
        .await?;
    bench.commit(vec![part(db, 2, 2, &[(2, 3)])]).await?;
    bench.commit(vec![part(db, 3, 6, &[(6, 4)])]).await?;
    restores_right(&bench, db, 4, 2, 5).await?;
    restores_right(&bench, db, 5, 4, 6).await?;
    restores_right(&bench, db, 6, 6, 6).await?;
    let double = PageSize::try_from(SIZE.get() * 2)?;
    let mut other = part(db, 7, 3, &[]);
    other.page_size = double;
    other.pages = writes(double, &[(1, 8), (3, 8)]);
    bench.commit(vec![other]).await?;
    restores_right(&bench, db, 8, 1, 5).await?;
    let mut again = restore(db, 9, 8, 3);
    again.page_size = double;
    bench.commit(vec![again]).await?;
    same_pages(&bench, db, 8, 10).await?;
    restores_right(&bench, db, 10, 3, 2).await?;
    // What comes after a restore is written to the restored pages, and is history too.
    bench.commit(vec![part(db, 11, 4, &[(1, 12)])]).await?;
    bench
        .expect(db, 12, &[(1, Some((12, 12))), (3, None), (4, None)])
        .await?;
    restores_right(&bench, db, 12, 5, 5).await?;
    same_pages(&bench, db, 2, 13).await?;
    restore_is_a_commit(&bench, db, 13).await?;
    large_restores(&bench).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        bench = bench.reopen(context).await?;
        db.epoch = bench.store.fence(db.id).await?;
    }
    for (old, new) in [(2, 5), (4, 6), (6, 7), (1, 9), (8, 10), (3, 11), (5, 13)] {
        same_pages(&bench, db, old, new).await?;
    }
    bench.commit(vec![part(db, 14, 5, &[(2, 15)])]).await?;
    bench.expect(db, 15, &[(2, Some((15, 15)))]).await?;
    Ok(Verdict::Kept)
}

/// Restores a version of so many pages, and looks at everything that is said about it.
async fn restores_right(
    bench: &Bench,
    db: Db,
    base: u64,
    from: u64,
    count: u32,
) -> Result<(), Violation> {
    let store = &bench.store;
    bench.commit(vec![restore(db, base, from, count)]).await?;
    let version = base + 1;
    same_pages(bench, db, from, version).await?;
    let all = numbers(1..=count.max(8))?;
    let old = store.read(db.id, Version::new(base), &all).await?;
    let new = store.read(db.id, Version::new(version), &all).await?;
    let (_, changes) = store.changes(db.id, Version::new(base)).await?;
    for ((number, old), new) in all.iter().zip(old).zip(new) {
        ensure!(
            old.content == new.content || new.content.is_empty() || new.version.get() == version,
            "page {number}, restored by version {version}, is told to be of version {}",
            new.version
        );
        let told = match &changes {
            pagewire_proto::Changes::All => true,
            pagewire_proto::Changes::Pages(pages) => pages.contains(number),
        };
        ensure!(
            told || old.content == new.content,
            "page {number} was changed by a restore, which is not told"
        );
    }
    let entry = bench.find(db, super::fixture::version(version)).await?;
    ensure!(
        entry.restored_from == Some(Version::new(from)),
        "a restore of version {from} is told as {entry:?}"
    );
    Ok(())
}

/// Two versions have the same pages.
async fn same_pages(bench: &Bench, db: Db, old: u64, new: u64) -> Result<(), Violation> {
    let all = numbers(1..=8)?;
    let old_pages = bench.store.read(db.id, Version::new(old), &all).await?;
    let new_pages = bench.store.read(db.id, Version::new(new), &all).await?;
    for ((number, old_page), new_page) in all.iter().zip(old_pages).zip(new_pages) {
        ensure!(
            old_page.content == new_page.content,
            "page {number} of version {new}, which restored {old}: {} instead of {}",
            describe(&new_page.content),
            describe(&old_page.content)
        );
    }
    let find = async |number| bench.find(db, version(number)).await;
    let (old, new) = (find(old).await?.snapshot, find(new).await?.snapshot);
    ensure!(
        (old.page_size, old.page_count) == (new.page_size, new.page_count),
        "{new:?} restored {old:?}"
    );
    Ok(())
}

/// Conflicts, lost leases and repetitions are those of any commit.
async fn restore_is_a_commit(bench: &Bench, db: Db, head: u64) -> Result<(), Violation> {
    let outcome = bench.refused(vec![restore(db, head - 1, 2, 5)]).await?;
    ensure!(
        matches!(outcome, CommitOutcome::Conflict { .. }),
        "a restore on an old base answered {outcome:?}"
    );
    let stale = Db {
        epoch: pagewire_proto::Epoch::new(db.epoch.get() + 9),
        ..db
    };
    let outcome = bench.refused(vec![restore(stale, head, 2, 5)]).await?;
    ensure!(
        matches!(outcome, CommitOutcome::LeaseLost { .. }),
        "a restore of another epoch answered {outcome:?}"
    );
    let refused = async |part: DatabaseCommit| {
        let id = CommitId::random()?;
        let databases = vec![part];
        let answer = bench.store.commit(Commit { id, databases }).await;
        ensure!(
            answer.is_err() && bench.store.head(db.id).await?.version.get() == head,
            "a restore of what is not there answered {answer:?}"
        );
        Ok(())
    };
    refused(restore(db, head, head + 1, 5)).await?;
    refused(restore(db, head, 2, 4)).await?;
    let with_pages = DatabaseCommit {
        pages: writes(SIZE, &[(1, 9)]),
        ..restore(db, head, 2, 5)
    };
    refused(with_pages).await?;
    let id = CommitId::random()?;
    for _ in 0..2 {
        bench.commit_as(id, vec![restore(db, head, 2, 5)]).await?;
        let found = bench.store.head(db.id).await?.version.get();
        ensure!(found == head + 1, "a repeated restore made version {found}");
    }
    Ok(())
}

/// Back and forth between contents that differ in every page, then with little in between.
async fn large_restores(bench: &Bench) -> Result<(), Violation> {
    let db = bench.database("large").await?;
    let write = |stamp| (1..=LARGE).map(|n| (n, stamp)).collect::<Vec<_>>();
    bench.commit(vec![part(db, 0, LARGE, &write(1))]).await?;
    bench.commit(vec![part(db, 1, LARGE, &write(2))]).await?;
    let sample = numbers([1, 2, 1500, LARGE - 1, LARGE].into_iter())?;
    for base in 2..14 {
        // From the one before the last: the two contents take turns, each on top of the last restore.
        bench
            .commit(vec![restore(db, base, base - 1, LARGE)])
            .await?;
        bench.collect(Some(db.id)).await?;
        for version in [base, base + 1] {
            let stamp = 2 - version % 2;
            let pages = bench.store.read(db.id, Version::new(version), &sample);
            for (number, page) in sample.iter().zip(pages.await?) {
                ensure!(
                    page.content == content(SIZE, number.get(), stamp),
                    "page {number} of version {version}: {}",
                    describe(&page.content)
                );
            }
        }
    }
    Ok(())
}
