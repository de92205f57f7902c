//! Rules C12 to C14: epochs, and what became of commits.

use std::sync::Arc;

use pagewire_proto::{CommitId, Epoch, Version};

use super::fixture::{Bench, Db, ensure, part};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{CommitOutcome, Resolution, Resolve};

/// Versions of which rule C14 wants the records.
const RECORDS: u64 = 400;

pub(super) async fn c12(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let mut db = bench.database("a").await?;
    let other = bench.database("b").await?;
    ensure!(db.epoch > Epoch::NONE, "epoch 0 was granted");
    let mut largest = db.epoch;
    let racers: Vec<_> = (0..16)
        .map(|_| {
            let store = Arc::clone(&bench.store);
            tokio::spawn(async move { store.fence(db.id).await })
        })
        .collect();
    let mut seen = vec![db.epoch];
    for racer in racers {
        let epoch = racer.await.map_err(|e| Violation(e.to_string()))??;
        ensure!(!seen.contains(&epoch), "epoch {epoch} was granted twice");
        seen.push(epoch);
        largest = largest.max(epoch);
    }
    for _ in 0..3 {
        let epoch = bench.store.fence(db.id).await?;
        ensure!(epoch > largest, "after epoch {largest} came {epoch}");
        seen.push(epoch);
        largest = epoch;
    }
    for epoch in seen.iter().filter(|epoch| **epoch != largest) {
        let stale = Db {
            epoch: *epoch,
            ..db
        };
        bench.refused(vec![part(stale, 0, 1, &[(1, 9)])]).await?;
    }
    // A fence of one database is none of another.
    bench.commit(vec![part(other, 0, 1, &[(1, 1)])]).await?;
    db.epoch = largest;
    bench.commit(vec![part(db, 0, 1, &[(1, 1)])]).await?;
    if !(context.store.can_restart() && bench.store.capabilities().durable) {
        return Ok(Verdict::Kept);
    }
    let mut bench = bench;
    for _ in 0..3 {
        bench = bench.reopen(context).await?;
        let epoch = bench.store.fence(db.id).await?;
        ensure!(
            epoch > largest,
            "epoch {largest} was granted before a restart, {epoch} after it"
        );
        bench.refused(vec![part(db, 1, 1, &[(1, 9)])]).await?;
        largest = epoch;
    }
    db.epoch = largest;
    bench.commit(vec![part(db, 1, 1, &[(1, 2)])]).await?;
    Ok(Verdict::Kept)
}

pub(super) async fn c13(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let (mut a, b) = (bench.database("a").await?, bench.database("b").await?);
    let both = vec![part(a, 0, 1, &[(1, 1)]), part(b, 0, 1, &[(1, 1)])];
    let made = bench.commit(both).await?;
    let second = bench.commit(vec![part(a, 1, 1, &[(1, 2)])]).await?;
    let versions = Resolution::Committed(vec![Version::new(1), Version::new(1)]);
    for _ in 0..2 {
        expect(&bench, made, &[(a, 0), (b, 0)], &versions).await?;
    }
    // Made by another: aborted, and nobody loses a lease by it.
    let lost = CommitId::random()?;
    let aborted = Resolution::Aborted {
        current: vec![a.epoch, b.epoch],
    };
    expect(&bench, lost, &[(a, 0), (b, 0)], &aborted).await?;
    expect(&bench, made, &[(a, 1), (b, 1)], &aborted).await?;
    bench.commit(vec![part(a, 2, 1, &[(1, 3)])]).await?;

    // Not made yet: aborted for ever, by an advanced epoch.
    let late = CommitId::random()?;
    let old = a;
    a.epoch = abort(&bench, late, &[(old, 3), (b, 1)]).await?;
    let delayed = vec![part(old, 3, 1, &[(1, 9)]), part(b, 1, 1, &[(1, 9)])];
    let outcome = bench.outcome(late, delayed).await?;
    ensure!(
        matches!(outcome, CommitOutcome::LeaseLost { index: 0, .. }),
        "a commit that was said to be aborted came late and answered {outcome:?}"
    );
    bench.expect(b, 1, &[(1, Some((1, 1)))]).await?;
    // Asking again takes nobody's lease.
    let current = vec![a.epoch, b.epoch];
    expect(
        &bench,
        late,
        &[(old, 3), (b, 1)],
        &Resolution::Aborted { current },
    )
    .await?;
    bench.commit(vec![part(a, 3, 1, &[(1, 4)])]).await?;
    // Nor can one that is based on a version to come get through later.
    let ahead = CommitId::random()?;
    let old = a;
    a.epoch = abort(&bench, ahead, &[(old, 5)]).await?;
    bench.commit(vec![part(a, 4, 1, &[(1, 5)])]).await?;
    let outcome = bench
        .outcome(ahead, vec![part(old, 5, 1, &[(1, 9)])])
        .await?;
    ensure!(
        matches!(outcome, CommitOutcome::LeaseLost { .. }),
        "a commit that was said to be aborted came late and answered {outcome:?}"
    );
    races_are_settled(&bench, b).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        let bench = bench.reopen(context).await?;
        expect(&bench, made, &[(a, 0), (b, 0)], &versions).await?;
        let versions = Resolution::Committed(vec![Version::new(2)]);
        expect(&bench, second, &[(a, 1)], &versions).await?;
        // An epoch of an earlier process is aborted, and stays so.
        let id = CommitId::random()?;
        let answer = ask(&bench, id, &[(a, 5)]).await?;
        ensure!(
            matches!(answer, Resolution::Aborted { .. }),
            "resolve after a restart answered {answer:?}"
        );
        let outcome = bench.outcome(id, vec![part(a, 5, 1, &[(1, 9)])]).await?;
        ensure!(
            matches!(outcome, CommitOutcome::LeaseLost { .. }),
            "a commit that was said to be aborted came late and answered {outcome:?}"
        );
    }
    Ok(Verdict::Kept)
}

/// A commit and the question what became of it, at once: the two never contradict each other.
async fn races_are_settled(bench: &Bench, mut db: Db) -> Result<(), Violation> {
    let mut head = bench.store.head(db.id).await?.version.get();
    for _ in 0..30 {
        let id = CommitId::random()?;
        let databases = vec![part(db, head, 1, &[(1, head + 1)])];
        let commit = {
            let store = Arc::clone(&bench.store);
            tokio::spawn(async move { store.commit(crate::store::Commit { id, databases }).await })
        };
        let resolution = ask(bench, id, &[(db, head)]).await?;
        let outcome = commit.await.map_err(|e| Violation(e.to_string()))??;
        let after = bench.store.head(db.id).await?.version.get();
        match (&resolution, &outcome) {
            (Resolution::Committed(_), CommitOutcome::Committed(_)) if after == head + 1 => {}
            (Resolution::Aborted { .. }, CommitOutcome::LeaseLost { .. }) if after == head => {}
            _ => {
                return Err(Violation(format!(
                    "resolve answered {resolution:?}, the commit {outcome:?}, the head went from {head} to {after}"
                )));
            }
        }
        head = after;
        db.epoch = bench.store.fence(db.id).await?;
    }
    Ok(())
}

/// Resolve has to abort and to advance the epoch of the first participant only, which is returned.
async fn abort(
    bench: &Bench,
    id: CommitId,
    participants: &[(Db, u64)],
) -> Result<Epoch, Violation> {
    let answer = ask(bench, id, participants).await?;
    let Resolution::Aborted { current } = &answer else {
        return Err(Violation(format!(
            "resolve of a commit that was never made answered {answer:?}"
        )));
    };
    let right = current.len() == participants.len()
        && current[0] > participants[0].0.epoch
        && participants[1..]
            .iter()
            .zip(&current[1..])
            .all(|((db, _), epoch)| db.epoch == *epoch);
    ensure!(
        right,
        "resolve of a commit that was never made left the epochs {current:?}, they were {participants:?}"
    );
    Ok(current[0])
}

async fn expect(
    bench: &Bench,
    id: CommitId,
    participants: &[(Db, u64)],
    expected: &Resolution,
) -> Result<(), Violation> {
    let answer = ask(bench, id, participants).await?;
    ensure!(
        answer == *expected,
        "resolve answered {answer:?} instead of {expected:?}"
    );
    Ok(())
}

async fn ask(
    bench: &Bench,
    id: CommitId,
    participants: &[(Db, u64)],
) -> Result<Resolution, Violation> {
    let participants = participants
        .iter()
        .map(|(db, base)| (db.id, Version::new(*base), db.epoch))
        .collect();
    Ok(bench.store.resolve(Resolve { id, participants }).await?)
}

pub(super) async fn c14(context: Context<'_>) -> Outcome {
    let mut bench = Bench::open(context).await?;
    let db = bench.database("a").await?;
    let mut ids = Vec::new();
    for base in 0..RECORDS {
        let pages = [((base % 3) as u32 + 1, base)];
        ids.push(bench.commit(vec![part(db, base, 3, &pages)]).await?);
    }
    let restarts = context.store.can_restart() && bench.store.capabilities().durable;
    for restarted in [false, true] {
        for (base, id) in (0..).zip(&ids) {
            let versions = Resolution::Committed(vec![Version::new(base + 1)]);
            expect(&bench, *id, &[(db, base)], &versions).await?;
        }
        bench
            .commit_as(ids[0], vec![part(db, 0, 3, &[(1, 9)])])
            .await?;
        if !restarts || restarted {
            break;
        }
        bench = bench.reopen(context).await?;
    }
    Ok(Verdict::Kept)
}
