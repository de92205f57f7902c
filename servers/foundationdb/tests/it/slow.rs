//! A cluster that does less within its 5 s than usual: every call comes to its end, in smaller transactions or by repeating one.

use std::sync::Arc;
use std::time::Duration;

use pagewire_foundationdb::hooks::{Trouble, in_trouble};
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::{DatabaseId, Moment, PageCount, PageSize, StagingId, TagName, Version};
use pagewire_server::store::{
    CommitOutcome, DatabaseCommit, PageStore as _, PageWrite, StoreError,
};

use crate::servers::{SIZE, begun, commit, content, name, number, part, stamp, with_two};

fn nothing_is_kept(options: &mut FoundationDbOptions) {
    options.collect_every = Duration::from_secs(3600);
    options.retention = Some(Duration::ZERO);
    options.staging_buffer_bytes = 0;
    options.patience = Duration::from_secs(5);
}

fn by_hand(options: &mut FoundationDbOptions) {
    options.collect_every = Duration::from_secs(3600);
}

/// A cluster that reads at most so many rows within its time.
fn slow(most_rows: u64) -> Arc<Trouble> {
    Arc::new(Trouble::slow(most_rows))
}

/// Each call of this cluster is too late twice.
fn late() -> Arc<Trouble> {
    Arc::new(Trouble::too_old(2))
}

#[test]
fn a_long_list_is_put_together_of_short_transactions() {
    with_two(by_hand, |one, two| async move {
        let (source, _) = begun(&one, &[(1, 1)]).await;
        for index in 0..200 {
            let branch = name(&format!("list/{index:03}"));
            let id = DatabaseId::random().unwrap();
            let at = Moment::Version(Version::new(1));
            one.branch(source, &at, id, &branch).await.unwrap();
        }
        let found = in_trouble(&slow(150), two.list("list/", "", 1000)).await;
        assert_eq!(found.unwrap().len(), 200);
    });
}

#[test]
fn so_is_a_long_history_and_one_of_tagged_versions() {
    with_two(by_hand, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        one.make_versions(database, 399).await.unwrap();
        let all = in_trouble(&slow(150), two.versions(database, None, false, 1000));
        let all: Vec<_> = all.await.unwrap();
        let numbers = |entries: &[pagewire_proto::VersionEntry]| -> Vec<u64> {
            let numbers = entries.iter().map(|entry| entry.snapshot.version.get());
            numbers.collect()
        };
        assert_eq!(numbers(&all), (1..=400).rev().collect::<Vec<_>>());
        let before = Some(Version::new(300));
        let some = in_trouble(&slow(150), two.versions(database, before, false, 200));
        let some = some.await.unwrap();
        assert_eq!(numbers(&some), (100..300).rev().collect::<Vec<_>>());
        for version in (1..=400).step_by(2) {
            let tag = TagName::try_from(format!("t{version}").as_str()).unwrap();
            let at = Moment::Version(Version::new(version));
            one.set_tag(database, &tag, &at, false).await.unwrap();
        }
        // The names of 200 tags, and not as many records beside them.
        let tagged = in_trouble(&slow(300), two.versions(database, None, true, 1000));
        let tagged = tagged.await.unwrap();
        assert_eq!(
            numbers(&tagged),
            (1..=399).rev().step_by(2).collect::<Vec<_>>()
        );
        assert!(tagged.iter().all(|entry| entry.tags.len() == 1));
        let some = two.versions(database, before, true, 7).await.unwrap();
        assert_eq!(
            numbers(&some),
            (287..300).rev().step_by(2).collect::<Vec<_>>()
        );
    });
}

/// Versions with pages that nothing keeps, a list of changed pages too long for its record among them.
async fn garbage(store: &FoundationDbStore) -> DatabaseId {
    let (database, epoch) = begun(store, &[(1, 1)]).await;
    for base in 1..60 {
        let pages: Vec<_> = (1..=40).map(|page| (page, base as u8)).collect();
        let made = DatabaseCommit {
            page_count: PageCount::try_from(40_u32).unwrap(),
            ..part(database, base, epoch, &pages)
        };
        let made = commit(store, made).await;
        assert_eq!(made, CommitOutcome::Committed(vec![Version::new(base + 1)]));
    }
    database
}

/// A step that the cluster cannot do in time is smaller the next time.
#[test]
fn collections_take_the_steps_that_the_cluster_can_do() {
    with_two(nothing_is_kept, |one, _two| async move {
        let database = garbage(&one).await;
        let trouble = slow(60);
        while in_trouble(&trouble, one.collect(Some(database)))
            .await
            .unwrap()
            .more
        {}
        assert_few_too_late(&trouble);
        let left = one.describe(database).await.unwrap();
        assert_eq!((left.versions, left.pages), (1, 40));
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// Each takes the 5 s of a cluster, and a larger step is tried again after some that could be done.
fn assert_few_too_late(trouble: &Trouble) {
    let too_late = trouble.too_late();
    assert!(too_late > 0, "all steps were small: this has shown nothing");
    assert!(too_late < 16, "{too_late} steps were too large");
}

/// What a version changed may be more than one transaction can look at: then parts of it are looked at (STEP3).
#[test]
fn no_version_is_too_large_to_be_collected() {
    with_two(nothing_is_kept, |one, two| async move {
        let (database, epoch) = begun(&one, &[(1, 1)]).await;
        // In the record, in rows of their own, and in several of those.
        for (base, many) in [(1, 200), (2, 300), (3, 1500), (4, 1500), (5, 300), (6, 200)] {
            let pages: Vec<_> = (1..=many).map(|page| (page, base as u8)).collect();
            let made = DatabaseCommit {
                page_count: PageCount::try_from(1500_u32).unwrap(),
                ..part(database, base, epoch, &pages)
            };
            let made = commit(&one, made).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(base + 1)]));
        }
        let trouble = slow(40);
        while in_trouble(&trouble, one.collect(Some(database)))
            .await
            .unwrap()
            .more
        {}
        assert_few_too_late(&trouble);
        let left = one.describe(database).await.unwrap();
        assert_eq!((left.versions, left.pages), (1, 1500));
        for (page, stamped) in [(1, 6), (200, 6), (201, 5), (300, 5), (301, 4), (1500, 4)] {
            assert_eq!(stamp(&two, database, 7, page).await, stamped);
        }
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn so_do_sweeps_and_removals() {
    with_two(nothing_is_kept, |one, two| async move {
        let database = garbage(&one).await;
        // All rows of it are to be looked at.
        let epoch = one.fence(database).await.unwrap();
        let other_size = DatabaseCommit {
            page_size: PageSize::try_from(1024_u32).unwrap(),
            pages: vec![PageWrite {
                number: number(1),
                content: vec![1; 1024].into(),
            }],
            page_count: PageCount::try_from(1_u32).unwrap(),
            ..part(database, 60, epoch, &[])
        };
        commit(&one, other_size).await;
        let branch = DatabaseId::random().unwrap();
        let at = Moment::Version(Version::new(61));
        one.branch(database, &at, branch, &name("b")).await.unwrap();
        in_trouble(&late(), one.remove(&name("a"))).await.unwrap();
        let trouble = slow(60);
        while in_trouble(&trouble, one.collect(None)).await.unwrap().more {}
        assert_few_too_late(&trouble);
        assert_eq!(stamp(&two, branch, 1, 1).await, 1);
        assert_eq!(two.describe(branch).await.unwrap().versions, 1);
        one.remove(&name("b")).await.unwrap();
        while one.collect(None).await.unwrap().more {}
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// The last transaction of a commit of as many stagings as there may be looks at each of them.
#[test]
fn a_staged_commit_and_every_other_call_is_repeated_where_it_was_too_late() {
    with_two(nothing_is_kept, |one, two| async move {
        let (database, epoch) = begun(&one, &[(1, 1)]).await;
        let mut stagings = Vec::new();
        for page in 1..=64 {
            let staging = StagingId::random().unwrap();
            let write = PageWrite {
                number: number(page),
                content: content(page as u8),
            };
            let stage = one.stage(database, staging, SIZE, vec![write]);
            in_trouble(&late(), stage).await.unwrap();
            stagings.push(staging);
        }
        let staged = DatabaseCommit {
            stagings,
            page_count: PageCount::try_from(64_u32).unwrap(),
            ..part(database, 1, epoch, &[])
        };
        let made = in_trouble(&late(), commit(&one, staged)).await;
        assert_eq!(made, CommitOutcome::Committed(vec![Version::new(2)]));
        for page in 1..=64 {
            assert_eq!(stamp(&two, database, 2, page).await, page as u8);
        }
        let plain = commit(&one, part(database, 2, epoch, &[(1, 5)]));
        let made = in_trouble(&late(), plain).await;
        assert_eq!(made, CommitOutcome::Committed(vec![Version::new(3)]));
        let (tag, at) = (TagName::try_from("t").unwrap(), Moment::Age(0));
        let head = Version::new(3);
        in_trouble(&late(), one.protect(database, Some(head), &[]))
            .await
            .unwrap();
        in_trouble(&late(), one.set_tag(database, &tag, &at, false))
            .await
            .unwrap();
        in_trouble(&late(), one.find(database, &at)).await.unwrap();
        in_trouble(&late(), one.describe(database)).await.unwrap();
        let (from, to) = (Version::new(2), head);
        in_trouble(&late(), two.diff(database, from, to, None, 9))
            .await
            .unwrap();
        in_trouble(&late(), one.changes(database, head))
            .await
            .unwrap();
        in_trouble(&late(), one.fence(database)).await.unwrap();
        in_trouble(&late(), one.list("", "", 9)).await.unwrap();
        in_trouble(&late(), one.versions(database, None, false, 9))
            .await
            .unwrap();
        while in_trouble(&late(), one.collect(None)).await.unwrap().more {}
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// A database with so many pinned versions, and one before and one behind them that nothing keeps.
async fn many_pinned(store: &FoundationDbStore, pinned: u64) -> DatabaseId {
    let (database, _) = begun(store, &[(1, 1)]).await;
    store.make_versions(database, pinned + 2).await.unwrap();
    let pins: Vec<_> = (2..pinned + 2).map(Version::new).collect();
    store.protect(database, None, &pins).await.unwrap();
    database
}

/// Cause: steps grew only after something was dropped. Damage: on a server whose versions are all pinned they stayed as small as they get, and each look at 65,536
/// of them was 32,768 transactions.
#[test]
fn step2_a_look_at_versions_that_are_kept_makes_steps_larger_too() {
    with_two(nothing_is_kept, |one, _two| async move {
        let database = many_pinned(&one, 2100).await;
        one.smallest_steps();
        let begun = one.transactions();
        while one.collect(Some(database)).await.unwrap().more {}
        let now = one.transactions();
        let spent = (now.0 - begun.0) - (now.1 - begun.1);
        assert_eq!(one.describe(database).await.unwrap().versions, 2101);
        assert!(spent < 500, "{spent} transactions");
    });
}

/// Cause: a step looked at all versions that are kept for themselves, however long that took, and again after each that it dropped. Damage: other databases waited for
/// one with thousands of pins.
#[test]
fn a_look_at_versions_that_are_kept_is_left_for_later_and_goes_on_there() {
    with_two(nothing_is_kept, |one, _two| async move {
        let database = many_pinned(&one, 3000).await;
        let pausing = Arc::new(Trouble::pausing(Duration::from_millis(100)));
        let mut steps = Vec::new();
        loop {
            let reads = pausing.pauses();
            let step = in_trouble(&pausing, one.collect(Some(database)));
            let step = step.await.unwrap();
            steps.push(pausing.pauses() - reads);
            if !step.more {
                break;
            }
            assert!(steps.len() < 20, "it comes to no end: {steps:?}");
        }
        // The first one and the last but one are gone.
        assert_eq!(one.describe(database).await.unwrap().versions, 3001);
        let most = steps.iter().max();
        assert!(most.is_some_and(|most| *most < 60), "{steps:?}");
    });
}

/// Cause: a list of versions is put together of several transactions, and only the first looked whether the database is there. Damage: of one that was removed
/// meanwhile a part of it was given as all of it.
#[test]
fn a_list_of_versions_of_a_database_that_is_removed_meanwhile_is_no_short_one() {
    with_two(nothing_is_kept, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        one.make_versions(database, 999).await.unwrap();
        let pausing = Arc::new(Trouble::pausing(Duration::from_millis(300)));
        let list = in_trouble(&pausing, one.versions(database, None, false, 2000));
        let (list, ()) = tokio::join!(list, async {
            // The tags, and the first pieces.
            while pausing.pauses() < 3 {
                tokio::task::yield_now().await;
            }
            two.remove(&name("a")).await.unwrap();
            while two.collect(None).await.unwrap().more {}
        });
        assert!(
            matches!(list, Err(StoreError::DatabaseNotFound)),
            "{list:?}"
        );
    });
}
