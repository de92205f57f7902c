//! Databases that go: ids that are not given again, names that nobody ever committed to, and what is open elsewhere.

use std::time::Duration;

use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::{DatabaseId, Moment, Version};
use pagewire_server::clock::ManualClock;
use pagewire_server::store::{DatabaseCommit, PageStore as _, StoreError};

use crate::servers::{begun, commit, name, part, stamp, with_two};

const HOUR: Duration = Duration::from_secs(3600);

async fn collect_all(store: &FoundationDbStore) {
    while store.collect(None).await.unwrap().more {}
}

fn by_hand(clock: &ManualClock) -> impl FnOnce(&mut FoundationDbOptions) + use<> {
    let clock = clock.clock();
    move |options| {
        options.clock = clock;
        options.collect_every = Duration::from_secs(3600);
        // That of the cluster cannot be advanced.
        options.remembered = Duration::ZERO;
    }
}

/// REM1: a CreateBranch that comes once more after the removal of the branch would make versions with the numbers of the removed ones.
#[test]
fn v4_the_id_of_a_removed_branch_is_given_to_nobody_for_an_hour() {
    let clock = ManualClock::default();
    with_two(by_hand(&clock), |one, two| async move {
        let (main, _) = begun(&one, &[(1, 1)]).await;
        let (id, label) = (DatabaseId::random().unwrap(), name("branch"));
        let now = Moment::Age(0);
        one.branch(main, &now, id, &label).await.unwrap();
        one.remove(&label).await.unwrap();
        for step in 0..3 {
            let again = two.branch(main, &now, id, &label).await;
            assert!(
                matches!(again, Err(StoreError::NameTaken(_))),
                "{step}: {again:?}"
            );
            assert!(two.lookup(&label, false).await.is_err());
            // Nothing is left of it but that.
            collect_all(&two).await;
            assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
            clock.advance(HOUR / 4);
        }
        clock.advance(HOUR);
        collect_all(&one).await;
        two.branch(main, &now, id, &label).await.unwrap();
        assert_eq!(stamp(&two, id, 1, 1).await, 1);
    });
}

/// Bug: who forgot it did not look again whether it was still the removal that it had seen.
#[test]
fn rem1_a_removal_is_forgotten_only_as_it_was_seen() {
    let clock = ManualClock::default();
    with_two(by_hand(&clock), |one, two| async move {
        let (main, _) = begun(&one, &[(1, 1)]).await;
        let (id, label) = (DatabaseId::random().unwrap(), name("branch"));
        let now = Moment::Age(0);
        one.branch(main, &now, id, &label).await.unwrap();
        one.remove(&label).await.unwrap();
        collect_all(&one).await;
        let seen = one.removed(id).await.unwrap().unwrap();
        clock.advance(2 * HOUR);
        collect_all(&two).await;
        two.branch(main, &now, id, &label).await.unwrap();
        two.remove(&label).await.unwrap();
        collect_all(&two).await;
        // A look of the other server, from before all that.
        assert!(!one.forget_as_seen(id, seen).await.unwrap());
        let again = one.branch(main, &now, id, &label).await;
        assert!(matches!(again, Err(StoreError::NameTaken(_))), "{again:?}");
        let seen = one.removed(id).await.unwrap().unwrap();
        clock.advance(2 * HOUR);
        assert!(one.forget_as_seen(id, seen).await.unwrap());
        one.branch(main, &now, id, &label).await.unwrap();
    });
}

/// Bug: each saw the other's branch, and neither the end of what both stood on, which was never looked at again.
#[test]
fn seg5_the_last_two_readers_of_a_segment_may_go_at_once() {
    let clock = ManualClock::default();
    with_two(by_hand(&clock), |one, two| async move {
        let main = one.lookup(&name("main"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        for base in 0..2 {
            commit(&one, part(main, base, epoch, &[(1, base as u8 + 1)])).await;
        }
        let restore = DatabaseCommit {
            restore: Some(Version::new(1)),
            ..part(main, 2, epoch, &[])
        };
        commit(&one, restore).await;
        let mut ends = [(main, Version::new(3)); 2];
        for (text, end) in ["x", "y"].iter().zip(&mut ends) {
            end.0 = DatabaseId::random().unwrap();
            let now = Moment::Age(0);
            one.branch(main, &now, end.0, &name(text)).await.unwrap();
            assert_eq!(stamp(&two, end.0, 1, 1).await, 1);
            end.1 = Version::new(1);
        }
        one.remove(&name("main")).await.unwrap();
        collect_all(&one).await;
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
        for text in ["x", "y"] {
            one.remove(&name(text)).await.unwrap();
        }
        let repeated = one.end_together(ends).await.unwrap();
        assert!(
            repeated,
            "the second one saw the reader that the first took"
        );
        collect_all(&one).await;
        assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// Bug: a lease that was asked for behind the removal left the row of a claim, and nobody looked there again.
#[test]
fn rem1_nobody_claims_or_protects_what_was_removed() {
    let clock = ManualClock::default();
    with_two(by_hand(&clock), |one, two| async move {
        let (id, _) = begun(&one, &[(1, 1)]).await;
        one.remove(&name("a")).await.unwrap();
        collect_all(&one).await;
        for store in [&one, &two] {
            let claimed = store.peers().unwrap().claim(id).await;
            let gone = matches!(claimed, Err(StoreError::DatabaseNotFound));
            assert!(gone, "{claimed:?}");
            let protected = store.protect(id, Some(Version::ZERO), &[]).await;
            assert!(protected.is_err());
        }
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
        clock.advance(2 * HOUR);
        collect_all(&one).await;
        assert_eq!(one.removed(id).await.unwrap(), None);
    });
}

async fn is_there(store: &FoundationDbStore, text: &str, id: DatabaseId) -> bool {
    match store.lookup(&name(text), false).await {
        Ok(found) => found == id,
        Err(StoreError::DatabaseNotFound) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn rem2_a_name_without_a_commit_goes_when_nobody_wants_it_for_long() {
    let clock = ManualClock::default();
    with_two(by_hand(&clock), |one, two| async move {
        let names = ["idle", "leased", "open", "used"];
        let mut ids = Vec::new();
        for text in names {
            ids.push(one.lookup(&name(text), true).await.unwrap());
        }
        let [idle, leased, open, used] = ids[..] else {
            panic!("four names")
        };
        let epoch = one.fence(used).await.unwrap();
        commit(&one, part(used, 0, epoch, &[(1, 1)])).await;
        clock.advance(23 * HOUR);
        collect_all(&two).await;
        for (text, id) in names.iter().zip(&ids) {
            assert!(
                is_there(&two, text, *id).await,
                "{text} went before its time"
            );
        }
        two.fence(leased).await.unwrap();
        // Open at a server that lives.
        one.protect(open, Some(Version::ZERO), &[]).await.unwrap();
        clock.advance(2 * HOUR);
        collect_all(&two).await;
        assert!(
            !is_there(&two, "idle", idle).await,
            "nobody wanted it for a day"
        );
        for (text, id) in [("leased", leased), ("open", open), ("used", used)] {
            assert!(is_there(&two, text, id).await, "{text} is in use");
        }
        // The first commit of a lease that was granted in time.
        let epoch = one.fence(leased).await.unwrap();
        commit(&one, part(leased, 0, epoch, &[(1, 2)])).await;
        one.protect(open, None, &[]).await.unwrap();
        clock.advance(25 * HOUR);
        collect_all(&one).await;
        assert!(!is_there(&two, "open", open).await, "it was closed");
        assert!(is_there(&two, "leased", leased).await && is_there(&two, "used", used).await);
        assert_eq!(stamp(&one, leased, 1, 1).await, 2);
        // The name is free, and another database by now.
        assert_ne!(two.lookup(&name("idle"), true).await.unwrap(), idle);
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// `DeleteDatabase` asks for this beside the sessions of its own server.
#[test]
fn a_database_that_is_open_at_another_server_is_known_to_be() {
    with_two(
        |options| options.collect_every = Duration::from_secs(3600),
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let elsewhere = async |store: &FoundationDbStore| {
                let peers = store.peers().unwrap();
                peers.open_elsewhere(database).await.unwrap()
            };
            assert_eq!((elsewhere(&one).await, elsewhere(&two).await), (0, 0));
            one.protect(database, Some(Version::ZERO), &[])
                .await
                .unwrap();
            assert_eq!((elsewhere(&one).await, elsewhere(&two).await), (0, 1));
            one.protect(database, None, &[]).await.unwrap();
            assert_eq!(elsewhere(&two).await, 0);
            // A server that ends takes its word with it.
            one.protect(database, Some(Version::ZERO), &[])
                .await
                .unwrap();
            one.end_service().await.unwrap();
            assert_eq!(elsewhere(&two).await, 0);
        },
    );
}
