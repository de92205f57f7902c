//! Rules V1 and V3: what is told of old versions, and their tags.

use pagewire_proto::{Moment, PageNumber, PageSize, TagName, UnixMillis, Version, VersionEntry};

use super::fixture::{
    Bench, Db, SIZE, ensure, number_of, numbers, page_count, part, time, version, writes,
};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::StoreError;

/// Pages that the databases of the trial have at most.
const PAGES: u32 = 9;

/// Page count and written pages of each version, all of which differ from the version before.
const HISTORY: [(u32, &[u32]); 7] = [
    (4, &[1, 2, 3, 4]),
    (4, &[2]),
    (6, &[1, 6]),
    (2, &[1]),
    (5, &[]),
    (9, &[4, 9]),
    (9, &[1]),
];
/// How many pages each of them wrote or dropped.
const CHANGED: [u64; 7] = [4, 1, 2, 4, 0, 2, 1];

async fn commit_history(bench: &Bench, db: Db) -> Result<(), Violation> {
    for (base, (count, pages)) in (0..).zip(HISTORY) {
        let pages: Vec<_> = pages.iter().map(|number| (*number, base + 1)).collect();
        bench.commit(vec![part(db, base, count, &pages)]).await?;
    }
    Ok(())
}

pub(super) async fn v01(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    if !bench.store.capabilities().versions {
        return Ok(Verdict::NotTried("the store keeps no versions"));
    }
    let db = bench.database("a").await?;
    for moment in [version(0), version(1), Moment::Age(0)] {
        bench.ensure_gone(db, moment).await?;
    }
    ensure!(bench.listed(db).await?.is_empty(), "version 0 is listed");
    commit_history(&bench, db).await?;
    let listed = bench.store.versions(db.id, None, false, 100).await?;
    let order: Vec<_> = listed.iter().map(|v| v.snapshot.version.get()).collect();
    ensure!(order == [7, 6, 5, 4, 3, 2, 1], "listed are {order:?}");
    for ((number, (count, _)), changed) in (1..).zip(HISTORY).zip(CHANGED) {
        let found = bench.find(db, version(number)).await?;
        let VersionEntry { snapshot, .. } = &found;
        ensure!(
            snapshot.version.get() == number
                && snapshot.page_count == page_count(count)
                && snapshot.page_size == Some(SIZE)
                && found.pages_changed == changed
                && found.tags.is_empty()
                && found.restored_from.is_none(),
            "version {number} is told as {found:?}"
        );
        ensure!(
            listed[7 - number as usize] == found,
            "listed is another than found: {found:?}"
        );
    }
    ensure!(
        listed.windows(2).all(|pair| pair[0].time >= pair[1].time),
        "times fall: {listed:?}"
    );
    lists_go_on_where_they_ended(&bench, db).await?;
    for moment in [version(0), version(8), version(u64::MAX)] {
        bench.ensure_gone(db, moment).await?;
    }
    let head = bench.find(db, Moment::Age(0)).await?;
    ensure!(head == listed[0], "an age of 0 is {head:?}");
    bench.ensure_gone(db, time(listed[6].time, -1)).await?;
    bench
        .ensure_gone(db, Moment::Time(UnixMillis(i64::MIN)))
        .await?;
    bench.ensure_gone(db, Moment::Age(u64::MAX)).await?;
    let last = bench.find(db, Moment::Time(UnixMillis(i64::MAX))).await?;
    ensure!(last == listed[0], "the end of all time is {last:?}");
    differences_are_named(&bench, db, 7).await?;
    let mut double = part(db, 7, 3, &[]);
    double.page_size = PageSize::try_from(SIZE.get() * 2)?;
    double.pages = writes(double.page_size, &[(2, 8)]);
    bench.commit(vec![double]).await?;
    differences_are_named(&bench, db, 8).await?;
    drop(bench);
    times_are_of_their_versions(context).await
}

async fn lists_go_on_where_they_ended(bench: &Bench, db: Db) -> Result<(), Violation> {
    let cases: [(u64, usize, &[u64]); 5] = [
        (8, 2, &[7, 6]),
        (6, 3, &[5, 4, 3]),
        (2, 9, &[1]),
        (1, 9, &[]),
        (100, 1, &[7]),
    ];
    for (before, limit, expected) in cases {
        let before = Some(Version::new(before));
        let list = bench.store.versions(db.id, before, false, limit).await?;
        let list: Vec<_> = list.iter().map(|v| v.snapshot.version.get()).collect();
        ensure!(
            list == expected,
            "listed before {before:?}, at most {limit}: {list:?} instead of {expected:?}"
        );
    }
    Ok(())
}

/// Of each pair: at least the pages whose content differs, at most those written in between and those beyond a page count.
async fn differences_are_named(bench: &Bench, db: Db, head: u64) -> Result<(), Violation> {
    let all = numbers(1..=PAGES)?;
    let store = &bench.store;
    let mut contents = Vec::new();
    for number in 1..=head {
        contents.push(store.read(db.id, Version::new(number), &all).await?);
    }
    for (from, old) in (1..).zip(&contents) {
        for (to, new) in (1..).zip(&contents) {
            let (first, second) = (Version::new(from), Version::new(to));
            let diff = store.diff(db.id, first, second, None, 100).await?;
            ensure!(diff.is_sorted(), "from {from} to {to}: {diff:?}");
            for ((number, old), new) in all.iter().zip(old).zip(new) {
                let named = diff.contains(number);
                ensure!(
                    named || old.content == new.content,
                    "page {number} differs between {from} and {to}, which is not told: {diff:?}"
                );
                ensure!(
                    !named || old.version != new.version,
                    "page {number} is the same in {from} and {to}, told is {diff:?}"
                );
            }
            let mut parts: Vec<PageNumber> = Vec::new();
            loop {
                let after = parts.last().copied();
                let next = store.diff(db.id, first, second, after, 2).await?;
                parts.extend(&next);
                if next.is_empty() || parts.len() > diff.len() {
                    break;
                }
            }
            ensure!(parts == diff, "in parts {parts:?}, as a whole {diff:?}");
        }
    }
    for gone in [head + 1, 99] {
        let answer = store.diff(db.id, Version::new(1), Version::new(gone), None, 1);
        let answer = answer.await;
        ensure!(
            matches!(answer, Err(StoreError::VersionGone { .. })),
            "a difference to version {gone} is {answer:?}"
        );
    }
    Ok(())
}

/// With a clock that is known.
async fn times_are_of_their_versions(context: Context<'_>) -> Outcome {
    let day = std::time::Duration::from_secs(24 * 3600);
    let Some(bench) = Bench::open_keeping(context, day).await? else {
        return Ok(Verdict::Kept);
    };
    let db = bench.database("timed").await?;
    let second = std::time::Duration::from_secs(1);
    for base in 0..40 {
        bench.commit(vec![part(db, base, 1, &[(1, base)])]).await?;
        // Two versions have each time.
        if base % 2 == 1 {
            context.store.advance_clock(second);
        }
    }
    let list = bench.store.versions(db.id, None, false, 100).await?;
    for entry in &list {
        let number = entry.snapshot.version.get();
        let newest = number + number % 2;
        for plus in [0, 1, 500, 999] {
            let found = bench.find(db, time(entry.time, plus)).await?;
            ensure!(
                found.snapshot.version.get() == newest,
                "{plus} ms after version {number} it is {found:?} instead of {newest}"
            );
        }
    }
    let found = bench.find(db, Moment::Age(1)).await?;
    ensure!(
        found.snapshot.version.get() == 40,
        "a millisecond ago, and a second after the head, it was {found:?}"
    );
    let found = bench.find(db, Moment::Age(1001)).await?;
    ensure!(
        found.snapshot.version.get() == 38,
        "1001 ms ago, and a second after the head, it was {found:?}"
    );
    Ok(Verdict::Kept)
}

pub(super) async fn v03(context: Context<'_>) -> Outcome {
    let mut bench = Bench::open(context).await?;
    if !bench.store.capabilities().versions {
        return Ok(Verdict::NotTried("the store keeps no versions"));
    }
    let db = bench.database("a").await?;
    commit_history(&bench, db).await?;
    let (one, two) = (TagName::try_from("v1")?, TagName::try_from("älter")?);
    let unknown = bench.store.find(db.id, &Moment::Tag(one.clone())).await;
    ensure!(
        matches!(&unknown, Err(StoreError::TagNotFound(tag)) if *tag == one),
        "a tag that was never set answered {unknown:?}"
    );
    for _ in 0..2 {
        let found = bench.tag(db, "v1", 3).await?;
        ensure!(
            found.snapshot.version.get() == 3 && found.tags == [one.clone()],
            "a tag answered {found:?}"
        );
    }
    bench.tag(db, "älter", 3).await?;
    bench.tag(db, "z", 5).await?;
    let moment = Moment::Tag(two.clone());
    let found = bench.find(db, moment.clone()).await?;
    ensure!(
        found.snapshot.version.get() == 3 && found.tags == [one.clone(), two.clone()],
        "a version with two tags is told as {found:?}"
    );
    let taken = bench.store.set_tag(db.id, &one, &version(4), false).await;
    ensure!(
        matches!(taken, Err(StoreError::NameTaken(_))),
        "a tag of another version was set, which answered {taken:?}"
    );
    let gone = bench.store.set_tag(db.id, &one, &version(9), true).await;
    ensure!(
        matches!(gone, Err(StoreError::VersionGone { .. })),
        "a tag was set on a version that was never made: {gone:?}"
    );
    let found = bench.find(db, Moment::Tag(one.clone())).await?;
    ensure!(
        found.snapshot.version.get() == 3,
        "a refused tag moved to {found:?}"
    );
    bench.store.set_tag(db.id, &one, &version(4), true).await?;
    // By another tag, which is a moment like any other.
    let third = TagName::try_from("third")?;
    bench.store.set_tag(db.id, &third, &moment, false).await?;
    let tagged = async |bench: &Bench| -> Result<Vec<(u64, usize)>, Violation> {
        let list = bench.store.versions(db.id, None, true, 100).await?;
        let list = list.iter();
        Ok(list
            .map(|v| (v.snapshot.version.get(), v.tags.len()))
            .collect())
    };
    ensure!(
        tagged(&bench).await? == [(5, 1), (4, 1), (3, 2)],
        "tagged are {:?}",
        tagged(&bench).await?
    );
    let (five, rest) = (Some(Version::new(5)), 1);
    let list = bench.store.versions(db.id, five, true, rest).await?;
    ensure!(
        list.len() == 1 && list[0].snapshot.version.get() == 4,
        "tagged before 5 is {list:?}"
    );
    for existed in [true, false] {
        let answer = bench.store.delete_tag(db.id, &two).await?;
        ensure!(answer == existed, "delete_tag answered {answer}");
    }
    // Tags are of their database.
    let other = bench.database("b").await?;
    commit_history(&bench, other).await?;
    ensure!(
        bench
            .store
            .versions(other.id, None, true, 9)
            .await?
            .is_empty(),
        "a tag of one database is one of another"
    );
    bench.tag(other, "v1", 1).await?;
    if context.store.can_restart() && bench.store.capabilities().durable {
        bench = bench.reopen(context).await?;
    }
    ensure!(
        tagged(&bench).await? == [(5, 1), (4, 1), (3, 1)],
        "after all of it tagged are {:?}",
        tagged(&bench).await?
    );
    let second = [number_of(2)];
    let pages = bench.store.read(db.id, Version::new(4), &second).await?;
    ensure!(
        pages[0].version.get() == 2,
        "a tagged version has other pages"
    );
    Ok(Verdict::Kept)
}
