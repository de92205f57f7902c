//! Rules C16 and C17: a medium that fails; and what is told of the trust in earlier processes.

use std::time::Duration;

use pagewire_proto::{CommitId, Version};

use super::fixture::{Bench, Db, ensure, number_of, part};
use super::{Context, Damage, Outcome, Verdict, Violation};
use crate::store::{Commit, StoreError};

pub(super) async fn c16(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let db = bench.database("a").await?;
    bench
        .commit(vec![part(db, 0, 3, &[(1, 1), (2, 1), (3, 1)])])
        .await?;
    let victim = Damage::FlipBit(db.id, number_of(2), Version::new(1));
    if !context.store.damage(&bench.store, victim).await? {
        return Ok(Verdict::NotTried("the content cannot be damaged here"));
    }
    let read = bench
        .store
        .read(db.id, Version::new(1), &[number_of(2)])
        .await;
    let Err(StoreError::Corrupt(message)) = read else {
        return Err(Violation(format!(
            "a damaged page was answered with {read:?}"
        )));
    };
    ensure!(
        message.contains("page 2") && message.contains("version 1"),
        "the message does not name the page and the version: {message}"
    );
    bench
        .expect(db, 1, &[(1, Some((1, 1))), (3, Some((1, 1)))])
        .await?;
    // A commit that replaces it heals the head.
    bench.commit(vec![part(db, 1, 3, &[(2, 2)])]).await?;
    bench.expect(db, 2, &[(2, Some((2, 2)))]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn c17(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let db = bench.database("a").await?;
    let other = bench.database("b").await?;
    bench.commit(vec![part(db, 0, 1, &[(1, 1)])]).await?;
    if !context
        .store
        .damage(&bench.store, Damage::FailNextCommit)
        .await?
    {
        return Ok(Verdict::NotTried("the medium cannot be made to fail here"));
    }
    for part in [
        part(db, 1, 1, &[(1, 2)]),
        part(db, 1, 1, &[(1, 3)]),
        part(other, 0, 1, &[(1, 3)]),
    ] {
        let commit = Commit {
            id: CommitId::random()?,
            databases: vec![part],
        };
        let answer = bench.store.commit(commit).await;
        ensure!(
            matches!(answer, Err(StoreError::Internal(_))),
            "a commit after a failure of the medium answered {answer:?}"
        );
    }
    bench.expect(db, 1, &[(1, Some((1, 1)))]).await?;
    if context.store.can_restart() {
        let bench = bench.reopen(context).await?;
        // What failed may be there or not, but then as a whole; after that everything works again.
        let head = bench.store.head(db.id).await?.version.get();
        ensure!(head == 1 || head == 2, "the head is {head} after a failure");
        bench.expect(db, head, &[(1, Some((head, head)))]).await?;
        let epoch = bench.store.fence(db.id).await?;
        let db = Db { epoch, ..db };
        bench
            .commit(vec![part(db, head, 1, &[(1, head + 1)])])
            .await?;
    }
    Ok(Verdict::Kept)
}

pub(super) async fn service(context: Context<'_>) -> Outcome {
    if context.store.behind_a_server() {
        return Ok(Verdict::NotTried(
            "the server begins its service itself: d01 tries what follows",
        ));
    }
    let bench = Bench::open(context).await?;
    let (short, long) = (Duration::from_secs(3), Duration::from_secs(7));
    let wait = bench.store.begin_service(long).await?;
    if !(context.store.can_restart() && bench.store.capabilities().durable) {
        return Ok(Verdict::NotTried("the store cannot be restarted here"));
    }
    ensure!(
        wait.is_zero(),
        "a store that was never served waits {wait:?}"
    );
    let db = bench.database("a").await?;
    bench.commit(vec![part(db, 0, 1, &[(1, 1)])]).await?;
    bench.store.end_service().await?;
    let bench = bench.reopen(context).await?;
    let wait = bench.store.begin_service(long).await?;
    ensure!(
        wait.is_zero(),
        "the last process ended its service, the wait is {wait:?}"
    );
    let bench = bench.reopen(context).await?;
    let wait = bench.store.begin_service(short).await?;
    ensure!(
        wait >= long,
        "the last process died while leases of {long:?} were trusted, the wait is {wait:?}"
    );
    // It died within that wait: the trust in the one before it may still last.
    let bench = bench.reopen(context).await?;
    let wait = bench.store.begin_service(short).await?;
    ensure!(
        wait >= long,
        "two processes died, the first with leases of {long:?}, the wait is {wait:?}"
    );
    bench.expect(db, 1, &[(1, Some((1, 1)))]).await?;
    Ok(Verdict::Kept)
}
