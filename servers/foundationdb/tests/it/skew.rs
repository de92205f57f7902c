//! Page servers whose clocks differ: times of versions never fall, nothing is collected that a right clock would keep, and leases and
//! claims know nothing of it.

use std::time::{Duration, Instant};

use pagewire_foundationdb::FoundationDbStore;
use pagewire_proto::{CommitId, DatabaseId, Moment, Version};
use pagewire_server::clock::ManualClock;
use pagewire_server::peers::{Claim, Fence};
use pagewire_server::store::{CommitOutcome, PageStore as _, Resolution, Resolve, StoreError};

use crate::cluster::Cluster;
use crate::servers::{begun, commit, name, part, stamp};

/// A loaded machine keeps a living server silent for less.
const TTL: Duration = Duration::from_secs(2);
const HOUR: Duration = Duration::from_secs(3600);
const SESSION: pagewire_proto::SessionId = pagewire_proto::SessionId::from_bytes([7; 16]);

/// Runs with a store whose clock is right and one whose clock is so many hours ahead, and their clocks.
fn with_skew<F: Future<Output = ()>>(
    hours: u32,
    retention: Duration,
    test: impl FnOnce(FoundationDbStore, FoundationDbStore, [ManualClock; 2]) -> F,
) {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (right, ahead) = (ManualClock::default(), ManualClock::default());
        ahead.advance(hours * HOUR);
        let mut options = cluster.options();
        options.retention = Some(retention);
        options.collect_every = 24 * HOUR;
        options.clock = right.clock();
        let one = cluster.open(&options).await.unwrap();
        options.clock = ahead.clock();
        let two = cluster.open(&options).await.unwrap();
        test(one, two, [right, ahead]).await;
    });
}

/// How many versions go.
async fn collect_all(store: &FoundationDbStore) -> u64 {
    let mut versions = 0;
    loop {
        let step = store.collect(None).await.unwrap();
        versions += step.versions;
        if !step.more {
            return versions;
        }
    }
}

#[test]
fn v1_times_of_versions_never_fall_whichever_server_makes_them() {
    with_skew(5, 24 * HOUR, |one, two, [right, ahead]| async move {
        let database = one.lookup(&name("a"), true).await.unwrap();
        let epoch = one.fence(database).await.unwrap();
        for base in 0..10 {
            let store = if base % 2 == 0 { &one } else { &two };
            let made = commit(store, part(database, base, epoch, &[(1, base as u8 + 1)])).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(base + 1)]));
            right.advance(Duration::from_millis(10));
            ahead.advance(Duration::from_millis(10));
        }
        for store in [&one, &two] {
            let versions = store.versions(database, None, false, 100).await.unwrap();
            assert_eq!(versions.len(), 10);
            assert!(versions.is_sorted_by(|newer, older| newer.time >= older.time));
            // By the time of each the same version is found, through either.
            for entry in &versions {
                let at = Moment::Time(entry.time);
                let found = store.find(database, &at).await.unwrap().snapshot.version;
                assert!(found >= entry.snapshot.version, "{found} by {entry:?}");
            }
        }
        assert_eq!(stamp(&one, database, 10, 1).await, 10);
        assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn v2_a_clock_that_is_ahead_takes_from_the_retention_no_more_than_it_is_ahead() {
    with_skew(1, 3 * HOUR, |one, two, [right, ahead]| async move {
        let database = one.lookup(&name("a"), true).await.unwrap();
        let epoch = one.fence(database).await.unwrap();
        for base in 0..3 {
            commit(&one, part(database, base, epoch, &[(1, base as u8 + 1)])).await;
        }
        let pass = |by: Duration| {
            right.advance(by);
            ahead.advance(by);
        };
        // 1 h 59 of three hours, and an hour of skew.
        pass(2 * HOUR - Duration::from_secs(60));
        assert_eq!(collect_all(&two).await, 0);
        assert_eq!(stamp(&one, database, 1, 1).await, 1);
        pass(Duration::from_secs(120));
        assert_eq!(
            collect_all(&one).await,
            0,
            "by a right clock nothing is due"
        );
        assert_eq!(collect_all(&two).await, 2);
        assert_eq!(stamp(&one, database, 3, 1).await, 3);
        assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// C14: a commit is settled through a server whose clock has passed the time for which records are kept.
#[test]
fn c13_a_commit_is_settled_by_a_server_whose_clock_is_far_ahead() {
    with_skew(48, 24 * HOUR, |one, two, _clocks| async move {
        let database = one.lookup(&name("a"), true).await.unwrap();
        let epoch = one.fence(database).await.unwrap();
        commit(&one, part(database, 0, epoch, &[(1, 1)])).await;
        let id = CommitId::random().unwrap();
        let made = pagewire_server::store::Commit {
            id,
            databases: vec![part(database, 1, epoch, &[(1, 2)])],
        };
        one.commit(made).await.unwrap();
        let question = Resolve {
            id,
            participants: vec![(database, Version::new(1), epoch)],
        };
        let settled = two.resolve(question).await.unwrap();
        assert_eq!(settled, Resolution::Committed(vec![Version::new(2)]));
    });
}

/// Bug: only the wall clock of whoever collected was asked, so one that was ahead forgot the id of a removed branch at once. A CreateBranch that came once
/// more then made versions with the numbers of the removed ones, which clients had in their caches.
#[test]
fn v4_a_clock_that_is_ahead_gives_away_no_id_of_a_removed_branch() {
    with_skew(48, 24 * HOUR, |one, two, [right, _]| async move {
        let (main, _) = begun(&one, &[(1, 1)]).await;
        let (id, label) = (DatabaseId::random().unwrap(), name("branch"));
        let now = Moment::Age(0);
        one.branch(main, &now, id, &label).await.unwrap();
        one.remove(&label).await.unwrap();
        collect_all(&two).await;
        right.advance(2 * HOUR);
        for store in [&one, &two] {
            collect_all(store).await;
            let again = store.branch(main, &now, id, &label).await;
            assert!(matches!(again, Err(StoreError::NameTaken(_))), "{again:?}");
        }
        assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// Bug: the same of the commit that made a version which was dropped: it was unknown at once.
#[test]
fn c14_a_clock_that_is_ahead_forgets_no_commit() {
    with_skew(48, HOUR, |one, two, _clocks| async move {
        let database = one.lookup(&name("a"), true).await.unwrap();
        let epoch = one.fence(database).await.unwrap();
        let id = CommitId::random().unwrap();
        let made = pagewire_server::store::Commit {
            id,
            databases: vec![part(database, 0, epoch, &[(1, 1)])],
        };
        one.commit(made).await.unwrap();
        for base in 1..4 {
            commit(&one, part(database, base, epoch, &[(1, base as u8)])).await;
        }
        assert_eq!(collect_all(&two).await, 3, "versions are dropped");
        let question = Resolve {
            id,
            participants: vec![(database, Version::ZERO, epoch)],
        };
        let settled = one.resolve(question).await.unwrap();
        assert_eq!(settled, Resolution::Committed(vec![Version::new(1)]));
        assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn peer3_a_clock_that_is_ahead_takes_no_claim_and_a_lease_moves_as_ever() {
    with_skew(100, 24 * HOUR, |one, two, [right, ahead]| async move {
        let database = one.lookup(&name("a"), true).await.unwrap();
        one.begin_service(TTL).await.unwrap();
        two.begin_service(TTL).await.unwrap();
        let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
        assert_eq!(a.claim(database).await.unwrap(), Claim::Claimed);
        let fence = a.fence(database, SESSION, 1, Duration::ZERO).await.unwrap();
        let Fence::Advanced(epoch) = fence else {
            panic!("{fence:?}");
        };
        commit(&one, part(database, 0, epoch, &[(1, 1)])).await;
        // Longer than a dead one would be waited for, while both clocks do what they like.
        let begun = Instant::now();
        while begun.elapsed() < 2 * TTL + Duration::from_millis(1500) {
            ahead.advance(HOUR);
            right.turn_back(Duration::from_secs(1));
            assert_eq!(b.claim(database).await.unwrap(), Claim::Elsewhere);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let taken = b.take_over(database, SESSION, 2, epoch).await.unwrap();
        assert_eq!(taken, Some(Duration::ZERO));
        let made = commit(&two, part(database, 1, epoch, &[(1, 2)])).await;
        assert_eq!(made, CommitOutcome::Committed(vec![Version::new(2)]));
    });
}
