//! Two page servers on one cluster, as their stores see it: what one does the other knows, and what a dead one left goes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageCount, PageNumber, PageSize, StagingId,
    Version,
};
use pagewire_server::clock::ManualClock;
use pagewire_server::peers::{Claim, PeerNews, Peers};
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseCommit, PageStore as _, PageWrite, StoreError,
};

use crate::cluster::Cluster;

pub const TTL: Duration = Duration::from_millis(600);
pub const SIZE: PageSize = PageSize::MIN;

/// Runs with two stores of one installation, unless there is no cluster.
pub fn with_two<F: Future<Output = ()>>(
    change: impl FnOnce(&mut FoundationDbOptions),
    test: impl FnOnce(FoundationDbStore, FoundationDbStore) -> F,
) {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let mut options = cluster.options();
    change(&mut options);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let one = cluster.open(&options).await.unwrap();
        let two = cluster.open(&options).await.unwrap();
        test(one, two).await;
    });
}

pub fn number(page: u32) -> PageNumber {
    PageNumber::try_from(page).unwrap()
}

pub fn content(stamp: u8) -> Bytes {
    Bytes::from(vec![stamp; SIZE.bytes()])
}

pub fn part(database: DatabaseId, base: u64, epoch: Epoch, pages: &[(u32, u8)]) -> DatabaseCommit {
    let write = |(page, stamp): &(u32, u8)| PageWrite {
        number: number(*page),
        content: content(*stamp),
    };
    DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: SIZE,
        page_count: PageCount::try_from(4).unwrap(),
        stagings: Vec::new(),
        pages: pages.iter().map(write).collect(),
        restore: None,
    }
}

pub async fn commit(store: &FoundationDbStore, part: DatabaseCommit) -> CommitOutcome {
    let commit = Commit {
        id: CommitId::random().unwrap(),
        databases: vec![part],
    };
    store.commit(commit).await.unwrap()
}

/// A database with a first version of these pages, and its epoch.
pub async fn begun(store: &FoundationDbStore, pages: &[(u32, u8)]) -> (DatabaseId, Epoch) {
    let database = store.lookup(&name("a"), true).await.unwrap();
    let epoch = store.fence(database).await.unwrap();
    let made = commit(store, part(database, 0, epoch, pages)).await;
    assert_eq!(made, CommitOutcome::Committed(vec![Version::new(1)]));
    (database, epoch)
}

pub async fn stamp(store: &FoundationDbStore, database: DatabaseId, version: u64, page: u32) -> u8 {
    let pages = [number(page)];
    let read = store.read(database, Version::new(version), &pages).await;
    read.unwrap()[0].content[0]
}

pub fn name(text: &str) -> DatabaseName {
    DatabaseName::try_from(text).unwrap()
}

/// The news of a server other than of wishes that were told before.
async fn hears(peers: &dyn Peers, news: PeerNews) {
    let heard = async { while peers.news().await != news {} };
    tokio::time::timeout(Duration::from_secs(20), heard)
        .await
        .expect("the news");
}

#[test]
fn a_version_of_one_server_is_that_of_the_other_and_a_fence_is_for_both() {
    with_two(
        |_| {},
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            assert_eq!(two.lookup(&name("a"), true).await.unwrap(), database);
            let first = one.fence(database).await.unwrap();
            let made = commit(&one, part(database, 0, first, &[(1, 1)])).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(1)]));
            assert_eq!(stamp(&two, database, 1, 1).await, 1);
            let second = two.fence(database).await.unwrap();
            assert!(second > first);
            let late = commit(&one, part(database, 1, first, &[(1, 2)])).await;
            let lost = CommitOutcome::LeaseLost {
                index: 0,
                current: second,
            };
            assert_eq!(late, lost);
            commit(&two, part(database, 1, second, &[(1, 3)])).await;
            assert_eq!(stamp(&one, database, 2, 1).await, 3);
            assert_eq!(stamp(&one, database, 1, 1).await, 1);
        },
    );
}

#[test]
fn many_commits_through_both_at_once_make_each_version_once() {
    with_two(
        |_| {},
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            // Both under one epoch: only the base decides.
            let work = async |store: &FoundationDbStore, mark: u8| {
                let mut made = Vec::new();
                while made.len() < 20 {
                    let base = store.head(database).await.unwrap().version.get();
                    let outcome = commit(store, part(database, base, epoch, &[(1, mark)])).await;
                    match outcome {
                        CommitOutcome::Committed(_) => made.push(base + 1),
                        CommitOutcome::Conflict { .. } => {}
                        CommitOutcome::LeaseLost { .. } => panic!("nobody fenced"),
                    }
                }
                made
            };
            let (a, b) = tokio::join!(work(&one, 1), work(&two, 2));
            for (made, mark) in [(&a, 1), (&b, 2)] {
                for version in made {
                    assert_eq!(stamp(&one, database, *version, 1).await, mark);
                }
            }
            let mut all = [a, b].concat();
            all.sort_unstable();
            assert_eq!(all, (1..=40).collect::<Vec<_>>());
        },
    );
}

#[test]
fn what_a_session_of_one_server_reads_the_other_does_not_collect() {
    with_two(
        |options| options.retention = Some(Duration::ZERO),
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            for base in 0..6 {
                let made = commit(&one, part(database, base, epoch, &[(1, base as u8 + 1)])).await;
                assert!(matches!(made, CommitOutcome::Committed(_)));
                if base == 2 {
                    let pin = [Version::new(2)];
                    one.protect(database, Some(Version::new(3)), &pin)
                        .await
                        .unwrap();
                }
            }
            while two.collect(None).await.unwrap().more {}
            for (version, kept) in [(1, false), (2, true), (3, true), (4, true), (6, true)] {
                let read = two
                    .read(database, Version::new(version), &[number(1)])
                    .await;
                match (read, kept) {
                    (Ok(pages), true) => assert_eq!(pages[0].content[0], version as u8),
                    (Err(StoreError::VersionGone { .. }), false) => {}
                    (other, _) => panic!("version {version}: {other:?}"),
                }
            }
            assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}

#[test]
fn what_a_dead_server_wrote_ahead_and_read_is_collected() {
    with_two(
        |options| {
            options.retention = Some(Duration::ZERO);
            options.staging_buffer_bytes = 0;
            options.dead_after = Duration::from_secs(3);
        },
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            commit(&one, part(database, 0, epoch, &[(1, 1)])).await;
            one.protect(database, Some(Version::new(1)), &[])
                .await
                .unwrap();
            let staging = StagingId::random().unwrap();
            let pages = vec![PageWrite {
                number: number(2),
                content: content(9),
            }];
            one.stage(database, staging, SIZE, pages).await.unwrap();
            drop(one);
            // Under the rows that are there, and on the version that they were for.
            let epoch = two.fence(database).await.unwrap();
            commit(&two, part(database, 1, epoch, &[(1, 2)])).await;
            let read = two
                .read(database, Version::new(2), &[number(2)])
                .await
                .unwrap();
            assert!(read[0].content.is_empty(), "a dead staging shines through");
            let begun = Instant::now();
            loop {
                let old = two.read(database, Version::new(1), &[number(1)]).await;
                match old {
                    Err(StoreError::VersionGone { .. }) => break,
                    Ok(_) => {}
                    Err(error) => panic!("{error}"),
                }
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "it is kept for ever"
                );
                two.collect(None).await.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(
                begun.elapsed() >= Duration::from_secs(2),
                "it was not watched"
            );
            while two.collect(None).await.unwrap().more {}
            assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}

#[test]
fn a_claim_is_handed_over_when_it_is_wanted() {
    with_two(
        |_| {},
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            one.begin_service(TTL).await.unwrap();
            two.begin_service(TTL).await.unwrap();
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            assert_eq!(a.claim(database).await.unwrap(), Claim::Claimed);
            assert_eq!(a.claim(database).await.unwrap(), Claim::Claimed);
            // Nobody wants it: it stays.
            a.give_back(database).await.unwrap();
            assert_eq!(b.claim(database).await.unwrap(), Claim::Elsewhere);
            hears(&*a, PeerNews::Wanted(database)).await;
            assert!(a.is_wanted(database));
            a.give_back(database).await.unwrap();
            hears(&*b, PeerNews::Granted(database)).await;
            assert_eq!(b.claim(database).await.unwrap(), Claim::Claimed);
            assert_eq!(a.claim(database).await.unwrap(), Claim::Elsewhere);
            assert!(a.may_acknowledge() && b.may_acknowledge());
        },
    );
}

#[test]
fn a_claim_of_a_dead_server_passes_on_when_nobody_can_trust_it() {
    with_two(
        |_| {},
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            one.begin_service(TTL).await.unwrap();
            two.begin_service(TTL).await.unwrap();
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            assert_eq!(a.claim(database).await.unwrap(), Claim::Claimed);
            // It lives, and keeps what it has for longer than a dead one would.
            let begun = Instant::now();
            while begun.elapsed() < 2 * TTL + Duration::from_millis(1500) {
                assert_eq!(b.claim(database).await.unwrap(), Claim::Elsewhere);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // As a killed process: its tasks go with it.
            drop((a, one));
            let died = Instant::now();
            while b.claim(database).await.unwrap() == Claim::Elsewhere {
                assert!(
                    died.elapsed() < Duration::from_secs(30),
                    "nobody ever gets it"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let waited = died.elapsed();
            assert!(waited >= 2 * TTL, "it was taken after {waited:?}");
        },
    );
}

#[test]
fn a_server_that_ended_in_order_keeps_nobody_waiting() {
    with_two(
        |_| {},
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            // Longer than any test waits.
            one.begin_service(Duration::from_secs(300)).await.unwrap();
            two.begin_service(TTL).await.unwrap();
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            assert_eq!(a.claim(database).await.unwrap(), Claim::Claimed);
            assert_eq!(b.claim(database).await.unwrap(), Claim::Elsewhere);
            one.end_service().await.unwrap();
            assert_eq!(b.claim(database).await.unwrap(), Claim::Claimed);
        },
    );
}

#[test]
fn what_a_server_reads_that_was_taken_for_dead_is_said_again() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let mut options = cluster.options();
    options.retention = Some(Duration::ZERO);
    options.dead_after = Duration::ZERO;
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    // Nothing of a server goes on while its runtime does not run.
    let (here, there) = (runtime(), runtime());
    let (one, database, epoch) = here.block_on(async {
        let one = cluster.open(&options).await.unwrap();
        one.begin_service(TTL).await.unwrap();
        let database = one.lookup(&name("a"), true).await.unwrap();
        let epoch = one.fence(database).await.unwrap();
        for base in 0..3 {
            commit(&one, part(database, base, epoch, &[(1, base as u8 + 1)])).await;
        }
        let floor = Some(Version::new(2));
        one.protect(database, floor, &[]).await.unwrap();
        (one, database, epoch)
    });
    let two = there.block_on(async {
        let two = cluster.open(&options).await.unwrap();
        let begun = Instant::now();
        // Kept by the word of the other server, until that is dropped.
        while stamp_or_gone(&two, database, 2).await.is_some() {
            let waited = begun.elapsed();
            assert!(waited < Duration::from_secs(60), "it is kept for ever");
            two.collect(None).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        two
    });
    here.block_on(async {
        let peers = one.peers().unwrap();
        hears(&*peers, PeerNews::Lost).await;
        // Should that have been of an earlier silence, on a slow machine.
        tokio::time::sleep(TTL).await;
        let floor = Some(Version::new(2));
        one.protect(database, floor, &[]).await.unwrap();
        // Collected before the server is silent again.
        commit(&one, part(database, 3, epoch, &[(1, 4)])).await;
        while one.collect(None).await.unwrap().more {}
    });
    there.block_on(async {
        assert_eq!(stamp_or_gone(&two, database, 3).await, Some(3));
    });
}

/// What page 1 is in a version, if that is kept.
async fn stamp_or_gone(
    store: &FoundationDbStore,
    database: DatabaseId,
    version: u64,
) -> Option<u8> {
    let pages = [number(1)];
    match store.read(database, Version::new(version), &pages).await {
        Ok(pages) => Some(pages[0].content[0]),
        Err(StoreError::VersionGone { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_end_of_one_server_says_nothing_of_another_that_is_silent() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let options = cluster.options();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let (here, there) = (runtime(), runtime());
    let one = here.block_on(async {
        let one = cluster.open(&options).await.unwrap();
        one.begin_service(TTL).await.unwrap();
        one
    });
    there.block_on(async {
        let two = cluster.open(&options).await.unwrap();
        let wait = two.begin_service(TTL).await.unwrap();
        assert!(wait >= TTL, "{wait:?}");
        tokio::time::sleep(wait).await;
        two.end_service().await.unwrap();
        // A lease that the silent one gave last may be trusted for two of its times.
        let three = cluster.open(&options).await.unwrap();
        let wait = three.begin_service(TTL).await.unwrap();
        assert!(wait >= TTL, "{wait:?}");
    });
    drop(one);
}

#[test]
fn what_a_server_left_that_is_not_listed_yet_is_not_collected() {
    with_two(
        |options| {
            options.retention = Some(Duration::ZERO);
            options.staging_buffer_bytes = 0;
        },
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            for base in 0..2 {
                commit(&one, part(database, base, epoch, &[(1, base as u8 + 1)])).await;
            }
            let pin = [Version::new(1)];
            one.protect(database, None, &pin).await.unwrap();
            let staging = StagingId::random().unwrap();
            let pages = vec![PageWrite {
                number: number(2),
                content: content(9),
            }];
            one.stage(database, staging, SIZE, pages).await.unwrap();
            assert!(!two.collect_unaware(database).await.unwrap());
            while two.collect(None).await.unwrap().more {}
            assert_eq!(stamp(&two, database, 1, 1).await, 1);
            let staged = DatabaseCommit {
                stagings: vec![staging],
                ..part(database, 2, epoch, &[])
            };
            let made = commit(&one, staged).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(3)]));
            assert_eq!(stamp(&two, database, 3, 2).await, 9);
            assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}

#[test]
fn a_removed_database_of_many_restores_is_collected_to_the_end() {
    let clock = ManualClock::default();
    let time = clock.clock();
    with_two(
        |options| {
            options.clock = time;
            // That of the cluster cannot be advanced.
            options.remembered = Duration::ZERO;
        },
        |one, _two| async move {
            let (database, other) = (name("a"), name("b"));
            let database = one.lookup(&database, true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            commit(&one, part(database, 0, epoch, &[(1, 1)])).await;
            // Each stands on version 1, and more of them than one step looks at.
            for base in 1..300 {
                let restore = DatabaseCommit {
                    restore: Some(Version::new(1)),
                    ..part(database, base, epoch, &[])
                };
                let made = commit(&one, restore).await;
                assert_eq!(made, CommitOutcome::Committed(vec![Version::new(base + 1)]));
            }
            let other = one.lookup(&other, true).await.unwrap();
            let epoch = one.fence(other).await.unwrap();
            commit(&one, part(other, 0, epoch, &[(1, 7)])).await;
            assert_eq!(one.remove(&name("a")).await.unwrap(), database);
            let mut pages = 0;
            for step in 0.. {
                assert!(step < 100, "it is never done");
                let freed = one.collect(None).await.unwrap();
                pages += freed.pages;
                if !freed.more {
                    break;
                }
            }
            assert_eq!(pages, 1);
            // An id of a removed database is taken for as long as anything of it is there, and for an hour (V4).
            clock.advance(Duration::from_secs(2 * 3600));
            while one.collect(None).await.unwrap().more {}
            let first = Moment::Version(Version::new(1));
            one.branch(other, &first, database, &name("a"))
                .await
                .unwrap();
            assert_eq!(stamp(&one, database, 1, 1).await, 7);
            assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}

/// A server of another format would take what is there for what it knows.
#[test]
fn an_installation_of_another_format_is_refused_by_name() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let options = cluster.options();
        let store = cluster.open(&options).await.unwrap();
        for (later, format) in [(-1, 5), (1, 7)] {
            store.set_format(later).await.unwrap();
            let refused = cluster.open(&options).await;
            let Err(StoreError::Unavailable(why)) = refused else {
                panic!("{refused:?}");
            };
            let says = format!("has format {format}, this program reads format 6");
            assert!(why.contains(&says), "{why}");
        }
        store.set_format(0).await.unwrap();
        cluster.open(&options).await.unwrap();
    });
}
