//! Rule C15: pages that wait for their commit.

use pagewire_proto::{Changes, CommitId, PageSize, Snapshot, StagingId, Version};

use super::fixture::{Bench, Db, SIZE, ensure, part, staged, writes};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{Commit, DatabaseCommit, StoreError};

pub(super) async fn c15(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    if context.store.behind_a_server() {
        return within_a_transaction(&bench).await;
    }
    let (db, other) = (bench.database("a").await?, bench.database("b").await?);
    let store = &bench.store;
    let staging = stage(&bench, db, &[(1, 1), (2, 1)]).await?;
    ensure!(
        store.head(db.id).await? == Snapshot::EMPTY,
        "a staging made a version"
    );
    ensure!(
        store.list(bench.prefix(), "", 10).await?.is_empty(),
        "a staging lists its database"
    );
    bench.expect(db, 0, &[(1, None), (2, None)]).await?;
    bench.commit(vec![part(db, 0, 4, &[(1, 2)])]).await?;
    // Staged on version 0, and just as invisible in a version made by somebody else.
    bench.expect(db, 1, &[(1, Some((2, 1))), (2, None)]).await?;
    bench.commit(vec![part(db, 1, 4, &[(3, 3)])]).await?;
    bench.expect(db, 2, &[(1, Some((2, 1))), (2, None)]).await?;

    // Later calls add and replace; a refused commit leaves it.
    let pages = writes(SIZE, &[(2, 4), (4, 4)]);
    store.stage(db.id, staging, SIZE, pages).await?;
    bench
        .refused(vec![staged(db, 1, 4, &[staging], &[])])
        .await?;
    let stale = Db {
        epoch: pagewire_proto::Epoch::new(db.epoch.get() + 9),
        ..db
    };
    bench
        .refused(vec![staged(stale, 2, 4, &[staging], &[])])
        .await?;
    bench
        .commit(vec![staged(db, 2, 4, &[staging], &[])])
        .await?;
    let w = |stamp, version| Some((stamp, version));
    bench
        .expect(
            db,
            3,
            &[(1, w(1, 3)), (2, w(4, 3)), (3, w(3, 2)), (4, w(4, 3))],
        )
        .await?;
    let (_, changes) = store.changes(db.id, Version::new(2)).await?;
    if let Changes::Pages(mut pages) = changes {
        pages.sort();
        let pages: Vec<_> = pages.iter().map(|page| page.get()).collect();
        ensure!(
            pages == [1, 2, 4],
            "staged pages 1, 2 and 4, changed {pages:?}"
        );
    }
    // It is consumed; an unknown one is unknown; discarded ones are gone, also for those who add to them anew.
    expect_unknown(&bench, staged(db, 3, 4, &[staging], &[])).await?;
    expect_unknown(&bench, staged(db, 3, 4, &[StagingId::random()?], &[])).await?;
    let dropped = stage(&bench, db, &[(1, 9), (2, 9)]).await?;
    store.discard(dropped).await?;
    expect_unknown(&bench, staged(db, 3, 4, &[dropped], &[])).await?;
    store.discard(dropped).await?;
    store.discard(StagingId::random()?).await?;
    store
        .stage(db.id, dropped, SIZE, writes(SIZE, &[(2, 5)]))
        .await?;
    bench
        .commit(vec![staged(db, 3, 4, &[dropped], &[])])
        .await?;
    bench.expect(db, 4, &[(1, w(1, 3)), (2, w(5, 4))]).await?;
    only_where_it_belongs(&bench, db, other).await?;

    // Two stagings of one database do not mix, nor does a dead one shine through the commit of a living one.
    let dead = stage(&bench, db, &[(1, 90), (2, 90), (3, 90), (4, 90)]).await?;
    let living = stage(&bench, db, &[(3, 6)]).await?;
    store.discard(dead).await?;
    bench.commit(vec![staged(db, 4, 4, &[living], &[])]).await?;
    let now = [(1, w(1, 3)), (2, w(5, 4)), (3, w(6, 5)), (4, w(4, 3))];
    bench.expect(db, 5, &now).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        let lost = stage(&bench, db, &[(1, 91), (2, 91)]).await?;
        let bench = bench.reopen(context).await?;
        bench.expect(db, 5, &now).await?;
        let epoch = bench.store.fence(db.id).await?;
        let db = Db { epoch, ..db };
        expect_unknown(&bench, staged(db, 5, 4, &[lost], &[])).await?;
        bench.commit(vec![part(db, 5, 4, &[(2, 7)])]).await?;
        bench
            .expect(db, 6, &[(1, w(1, 3)), (2, w(7, 6)), (3, w(6, 5))])
            .await?;
    }
    Ok(Verdict::Kept)
}

/// What holds although a commit ends all stagings of its database.
async fn within_a_transaction(bench: &Bench) -> Outcome {
    let (db, other) = (bench.database("a").await?, bench.database("b").await?);
    let store = &bench.store;
    bench.commit(vec![part(db, 0, 4, &[(1, 1)])]).await?;
    let staging = stage(bench, db, &[(1, 2), (2, 2)]).await?;
    let foreign = stage(bench, other, &[(1, 9)]).await?;
    ensure!(
        store.head(db.id).await?.version == Version::new(1)
            && store.head(other.id).await? == Snapshot::EMPTY,
        "a staging made a version"
    );
    bench.expect(db, 1, &[(1, Some((1, 1))), (2, None)]).await?;
    let pages = writes(SIZE, &[(2, 3), (4, 3)]);
    store.stage(db.id, staging, SIZE, pages).await?;
    bench
        .commit(vec![staged(db, 1, 4, &[staging], &[(3, 4)])])
        .await?;
    let now = [
        (1, Some((2, 2))),
        (2, Some((3, 2))),
        (3, Some((4, 2))),
        (4, Some((3, 2))),
    ];
    bench.expect(db, 2, &now).await?;
    for wrong in [staging, foreign, StagingId::random()?] {
        expect_unknown(bench, staged(db, 2, 4, &[wrong], &[])).await?;
    }
    bench.expect(db, 2, &now).await?;
    bench.commit(vec![part(db, 2, 4, &[(1, 5)])]).await?;
    bench
        .expect(db, 3, &[(1, Some((5, 3))), (2, Some((3, 2)))])
        .await?;
    Ok(Verdict::Kept)
}

/// A staging of another database, or of another page size, is none.
async fn only_where_it_belongs(bench: &Bench, db: Db, other: Db) -> Result<(), Violation> {
    let foreign = stage(bench, other, &[(1, 9)]).await?;
    expect_unknown(bench, staged(db, 4, 4, &[foreign], &[])).await?;
    let parts = vec![staged(other, 0, 1, &[foreign], &[])];
    bench.commit(parts).await?;
    let staging = StagingId::random()?;
    let double = PageSize::try_from(SIZE.get() * 2)?;
    let pages = writes(double, &[(1, 9)]);
    bench.store.stage(db.id, staging, double, pages).await?;
    expect_unknown(bench, staged(db, 4, 4, &[staging], &[])).await?;
    bench.store.discard(staging).await?;
    Ok(())
}

async fn stage(bench: &Bench, db: Db, pages: &[(u32, u64)]) -> Result<StagingId, Violation> {
    let id = StagingId::random()?;
    let pages = writes(SIZE, pages);
    bench.store.stage(db.id, id, SIZE, pages).await?;
    Ok(id)
}

async fn expect_unknown(bench: &Bench, part: DatabaseCommit) -> Result<(), Violation> {
    let head = bench.store.head(part.database).await?;
    let database = part.database;
    let commit = Commit {
        id: CommitId::random()?,
        databases: vec![part],
    };
    let answer = bench.store.commit(commit).await;
    ensure!(
        matches!(answer, Err(StoreError::StagingUnknown(_))),
        "a commit with a staging that is not there answered {answer:?}"
    );
    ensure!(
        bench.store.head(database).await? == head,
        "a commit with a staging that is not there made a version"
    );
    Ok(())
}
