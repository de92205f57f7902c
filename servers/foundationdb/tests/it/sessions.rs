//! PEER5: a session goes from one page server to another, and its leases with it; nobody else's do.

use std::time::Duration;

use pagewire_foundationdb::FoundationDbStore;
use pagewire_proto::{CommitId, DatabaseId, Epoch, SessionId, Version};
use pagewire_server::peers::{Claim, Fence, Peers};
use pagewire_server::store::{CommitOutcome, PageStore as _, Resolution, Resolve};

use crate::servers::{TTL, commit, name, part, with_two};

const S: SessionId = SessionId::from_bytes([5; 16]);
const T: SessionId = SessionId::from_bytes([6; 16]);

/// A database whose lease the first server has granted to `S`.
async fn granted(
    one: &FoundationDbStore,
    two: &FoundationDbStore,
    guard: Duration,
) -> (DatabaseId, Epoch) {
    let database = one.lookup(&name("a"), true).await.unwrap();
    one.begin_service(TTL).await.unwrap();
    two.begin_service(TTL).await.unwrap();
    let peers = one.peers().unwrap();
    assert_eq!(peers.claim(database).await.unwrap(), Claim::Claimed);
    let epoch = epoch_of(peers.fence(database, S, 1, guard).await.unwrap());
    commit(one, part(database, 0, epoch, &[(1, 1)])).await;
    (database, epoch)
}

fn epoch_of(fence: Fence) -> Epoch {
    match fence {
        Fence::Advanced(epoch) => epoch,
        other => panic!("{other:?}"),
    }
}

async fn taken(
    peers: &dyn Peers,
    database: DatabaseId,
    session: SessionId,
    hello: u64,
    epoch: Epoch,
) -> Option<Duration> {
    let taken = peers.take_over(database, session, hello, epoch).await;
    taken.unwrap()
}

#[test]
fn peer5_a_session_takes_its_lease_along_under_its_epoch_and_the_old_server_grants_nothing() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = granted(&one, &two, Duration::ZERO).await;
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            assert_eq!(
                taken(&*b, database, S, 2, epoch).await,
                Some(Duration::ZERO),
                "while the other server lives, without a wait"
            );
            let made = commit(&two, part(database, 1, epoch, &[(1, 2)])).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(2)]));
            // The one that it left believes in its claim, until it would use it.
            assert_eq!(a.claim(database).await.unwrap(), Claim::Claimed);
            let fence = a.fence(database, T, 1, Duration::ZERO).await.unwrap();
            assert_eq!(fence, Fence::Elsewhere);
            assert_eq!(a.claim(database).await.unwrap(), Claim::Elsewhere);
            let made = commit(&two, part(database, 2, epoch, &[(1, 3)])).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(3)]));
            // And back again.
            let back = taken(&*a, database, S, 3, epoch).await;
            assert_eq!(back, Some(Duration::ZERO));
            let fence = b.fence(database, T, 1, Duration::ZERO).await.unwrap();
            assert_eq!(fence, Fence::Elsewhere);
        },
    );
}

#[test]
fn peer5_nobody_takes_a_lease_that_is_not_his_or_not_his_any_more() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = granted(&one, &two, Duration::ZERO).await;
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            assert_eq!(taken(&*b, database, T, 2, epoch).await, None);
            let other = Epoch::new(epoch.get() + 1);
            assert_eq!(taken(&*b, database, S, 2, other).await, None);
            let unknown = DatabaseId::random().unwrap();
            assert_eq!(taken(&*b, unknown, S, 2, epoch).await, None);
            // Granted to another since.
            let next = epoch_of(a.fence(database, T, 1, Duration::ZERO).await.unwrap());
            assert!(next > epoch);
            assert_eq!(taken(&*b, database, S, 2, epoch).await, None);
            assert_eq!(taken(&*b, database, S, 2, next).await, None);
            // Fenced since, by whomever.
            two.fence(database).await.unwrap();
            assert_eq!(taken(&*b, database, T, 2, next).await, None);
            // Removed since.
            let last = epoch_of(a.fence(database, T, 1, Duration::ZERO).await.unwrap());
            one.remove(&name("a")).await.unwrap();
            assert_eq!(taken(&*b, database, T, 2, last).await, None);
        },
    );
}

#[test]
fn peer5_a_claim_that_was_handed_over_does_not_come_back_with_a_session() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = granted(&one, &two, Duration::ZERO).await;
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            // S gave it back, so the server gives the claim to the other one, which has granted nothing yet.
            assert_eq!(b.claim(database).await.unwrap(), Claim::Elsewhere);
            while !a.is_wanted(database) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            a.give_back(database).await.unwrap();
            assert_eq!(taken(&*a, database, S, 3, epoch).await, None);
            assert_eq!(taken(&*b, database, S, 2, epoch).await, None);
            assert_eq!(b.claim(database).await.unwrap(), Claim::Claimed);
        },
    );
}

#[test]
fn peer5_what_an_earlier_holder_may_trust_goes_along() {
    with_two(
        |_| {},
        |one, two| async move {
            let guard = Duration::from_micros(123_400);
            let (database, epoch) = granted(&one, &two, guard).await;
            let b = two.peers().unwrap();
            let waited_for = taken(&*b, database, S, 2, epoch).await;
            assert_eq!(waited_for, Some(Duration::from_millis(124)));
        },
    );
}

#[test]
fn peer5_a_lease_whose_commit_was_settled_goes_along_under_the_new_epoch() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = granted(&one, &two, Duration::ZERO).await;
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            let moved = taken(&*b, database, S, 2, epoch).await;
            assert_eq!(moved, Some(Duration::ZERO));
            let question = Resolve {
                id: CommitId::random().unwrap(),
                participants: vec![(database, Version::new(1), epoch)],
            };
            let Resolution::Aborted { current } = two.resolve(question).await.unwrap() else {
                panic!("nobody made it");
            };
            assert_eq!(taken(&*a, database, S, 3, epoch).await, None);
            assert_eq!(
                taken(&*a, database, S, 3, current[0]).await,
                Some(Duration::ZERO)
            );
        },
    );
}

#[test]
fn peer7_the_store_confirms_only_a_larger_number_wherever_it_comes() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = granted(&one, &two, Duration::ZERO).await;
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            let yes = Some(Duration::ZERO);
            // That of the grant itself, and one that the client does not count.
            for hello in [0, 1] {
                assert_eq!(taken(&*b, database, S, hello, epoch).await, None);
                assert_eq!(taken(&*a, database, S, hello, epoch).await, None);
            }
            assert_eq!(taken(&*b, database, S, 4, epoch).await, yes);
            // Late, at the server that was left and at the one that has it.
            for hello in 1..=4 {
                assert_eq!(taken(&*a, database, S, hello, epoch).await, None);
                assert_eq!(taken(&*b, database, S, hello, epoch).await, None);
            }
            assert_eq!(
                b.fence(database, T, 1, Duration::ZERO).await.unwrap(),
                Fence::Advanced(Epoch::new(epoch.get() + 1))
            );
            assert_eq!(taken(&*a, database, S, 5, epoch).await, None);
        },
    );
}

/// Of two servers that a session reaches with two Hellos at once, the one with the larger number has the lease in the end, in whatever order they are served.
#[test]
fn peer7_of_two_hellos_at_once_the_newer_one_has_the_lease() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = granted(&one, &two, Duration::ZERO).await;
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            let mut hello = 2;
            for round in 0..20 {
                let (older, newer) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
                let (first, second) = tokio::join!(
                    older.take_over(database, S, hello, epoch),
                    newer.take_over(database, S, hello + 1, epoch),
                );
                // It may have to leave open whether it was first.
                drop(first);
                assert_eq!(second.unwrap(), Some(Duration::ZERO));
                let lost = older.fence(database, T, 1, Duration::ZERO).await.unwrap();
                assert_eq!(lost, Fence::Elsewhere);
                hello += 2;
            }
            // The one that has it in the end grants.
            let fence = a.fence(database, T, 1, Duration::ZERO).await.unwrap();
            assert_eq!(epoch_of(fence).get(), epoch.get() + 1);
        },
    );
}
