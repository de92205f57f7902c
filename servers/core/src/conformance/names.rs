//! Rules C1 and C2: names, identities and the list.

use std::sync::Arc;

use pagewire_proto::{Snapshot, StagingId, Version};

use super::fixture::{Bench, SIZE, ensure, ensure_not_found, part, writes};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::{Commit, Resolve};

pub(super) async fn c01(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let name = bench.name("a")?;
    ensure_not_found("lookup", bench.store.lookup(&name, false).await)?;
    let first = bench.store.lookup(&name, true).await?;
    let head = bench.store.head(first).await?;
    ensure!(
        head == Snapshot::EMPTY,
        "a new database begins at {head:?}, not empty"
    );
    for create in [false, true] {
        let again = bench.store.lookup(&name, create).await?;
        ensure!(again == first, "a name had id {first} and then {again}");
    }
    let other = bench.store.lookup(&bench.name("b")?, true).await?;
    ensure!(other != first, "two names share the id {first}");
    concurrent_lookups_agree(&bench).await?;

    let db = bench.database("a").await?;
    bench.commit(vec![part(db, 0, 1, &[(1, 1)])]).await?;
    let removed = bench.remove(&name).await?;
    ensure!(
        removed == first,
        "remove answered {removed}, the name had {first}"
    );
    ensure_not_found("remove", bench.store.remove(&name).await)?;
    ensure_not_found("lookup", bench.store.lookup(&name, false).await)?;
    nothing_works_by_the_id(&bench, db).await?;
    let second = bench.store.lookup(&name, true).await?;
    ensure!(
        second != first,
        "a name removed and created again got its old id {first}"
    );
    let head = bench.store.head(second).await?;
    ensure!(
        head == Snapshot::EMPTY,
        "a database created again begins at {head:?}"
    );
    nothing_works_by_the_id(&bench, db).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        let db = bench.database("kept").await?;
        bench.commit(vec![part(db, 0, 1, &[(1, 1)])]).await?;
        let incarnation = bench.store.incarnation();
        let bench = bench.reopen(context).await?;
        let again = bench.store.lookup(&bench.name("kept")?, false).await?;
        ensure!(again == db.id, "a restart took {} to {again}", db.id);
        ensure!(
            bench.store.incarnation() == incarnation,
            "a restart of a durable store made another incarnation"
        );
        nothing_works_by_the_id(&bench, super::fixture::Db { id: first, ..db }).await?;
    }
    Ok(Verdict::Kept)
}

async fn concurrent_lookups_agree(bench: &Bench) -> Result<(), Violation> {
    let name = bench.name("race")?;
    let lookups: Vec<_> = (0..16)
        .map(|_| {
            let (store, name) = (Arc::clone(&bench.store), name.clone());
            tokio::spawn(async move { store.lookup(&name, true).await })
        })
        .collect();
    let mut ids = Vec::new();
    for lookup in lookups {
        ids.push(lookup.await.map_err(|e| Violation(e.to_string()))??);
    }
    ensure!(
        ids.windows(2).all(|pair| pair[0] == pair[1]),
        "concurrent lookups of a name gave {ids:?}"
    );
    Ok(())
}

async fn nothing_works_by_the_id(bench: &Bench, db: super::fixture::Db) -> Result<(), Violation> {
    let store = &bench.store;
    ensure_not_found("head", store.head(db.id).await)?;
    ensure_not_found("read", store.read(db.id, Version::new(1), &[]).await)?;
    ensure_not_found("changes", store.changes(db.id, Version::ZERO).await)?;
    ensure_not_found("fence", store.fence(db.id).await)?;
    ensure_not_found("protect", store.protect(db.id, None, &[]).await)?;
    let id = StagingId::random()?;
    let pages = writes(SIZE, &[(1, 1)]);
    ensure_not_found("stage", store.stage(db.id, id, SIZE, pages).await)?;
    let id = pagewire_proto::CommitId::random()?;
    let participants = vec![(db.id, Version::new(1), db.epoch)];
    let resolve = store.resolve(Resolve { id, participants });
    ensure_not_found("resolve", resolve.await)?;
    let databases = vec![part(db, 1, 1, &[(1, 2)])];
    ensure_not_found("commit", store.commit(Commit { id, databases }).await)
}

pub(super) async fn c02(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let mut dbs = Vec::new();
    // Byte order is neither the order of creation nor of any language; 'é' has bytes above all of ASCII.
    for label in ["b", "a/z", "Z", "é", "a", "a-", "b/a"] {
        dbs.push((label, bench.database(label).await?));
    }
    expect_list(&bench, "", "", 100, &[]).await?;
    for (index, (_, db)) in dbs.iter().enumerate() {
        let count = index as u32 + 1;
        bench.commit(vec![part(*db, 0, count, &[(1, 7)])]).await?;
    }
    let all = ["Z", "a", "a-", "a/z", "b", "b/a", "é"];
    expect_list(&bench, "", "", 100, &all).await?;
    expect_list(&bench, "", "", 3, &all[..3]).await?;
    expect_list(&bench, "", "a-", 2, &["a/z", "b"]).await?;
    expect_list(&bench, "", "a.", 2, &["a/z", "b"]).await?;
    expect_list(&bench, "a", "", 100, &["a", "a-", "a/z"]).await?;
    expect_list(&bench, "a", "a-", 100, &["a/z"]).await?;
    expect_list(&bench, "a", "Z", 100, &["a", "a-", "a/z"]).await?;
    expect_list(&bench, "a", "b", 100, &[]).await?;
    expect_list(&bench, "", "é", 100, &[]).await?;
    expect_list(&bench, "", "", 0, &[]).await?;

    let entries = bench.store.list(bench.prefix(), "", 100).await?;
    for entry in entries {
        let head = bench.store.head(entry.database).await?;
        ensure!(
            entry.head == head,
            "{} is listed at {:?}, its head is {head:?}",
            entry.name,
            entry.head
        );
        let id = bench.store.lookup(&entry.name, false).await?;
        ensure!(
            id == entry.database,
            "{} is listed with another id",
            entry.name
        );
    }
    bench.remove(&bench.name("a-")?).await?;
    expect_list(&bench, "a", "", 100, &["a", "a/z"]).await?;
    bench.database("a-").await?;
    expect_list(&bench, "a", "", 100, &["a", "a/z"]).await?;
    Ok(Verdict::Kept)
}

/// Prefix, after and the expected names without the prefix of the trial.
async fn expect_list(
    bench: &Bench,
    prefix: &str,
    after: &str,
    limit: usize,
    expected: &[&str],
) -> Result<(), Violation> {
    let under = |text: &str| format!("{}{text}", bench.prefix());
    let after_all = if after.is_empty() {
        String::new()
    } else {
        under(after)
    };
    let entries = bench.store.list(&under(prefix), &after_all, limit).await?;
    let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let expected: Vec<_> = expected.iter().map(|label| under(label)).collect();
    ensure!(
        names == expected,
        "list of {prefix:?} after {after:?}, at most {limit}: {names:?} instead of {expected:?}"
    );
    Ok(())
}
