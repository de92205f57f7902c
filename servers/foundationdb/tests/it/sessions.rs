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
    let epoch = epoch_of(peers.fence(database, S, guard).await.unwrap());
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
    epoch: Epoch,
) -> Option<Duration> {
    peers.take_over(database, session, epoch).await.unwrap()
}

#[test]
fn peer5_a_session_takes_its_lease_along_under_its_epoch_and_the_old_server_grants_nothing() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = granted(&one, &two, Duration::ZERO).await;
            let (a, b) = (one.peers().unwrap(), two.peers().unwrap());
            assert_eq!(
                taken(&*b, database, S, epoch).await,
                Some(Duration::ZERO),
                "while the other server lives, without a wait"
            );
            let made = commit(&two, part(database, 1, epoch, &[(1, 2)])).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(2)]));
            // The one that it left believes in its claim, until it would use it.
            assert_eq!(a.claim(database).await.unwrap(), Claim::Claimed);
            let fence = a.fence(database, T, Duration::ZERO).await.unwrap();
            assert_eq!(fence, Fence::Elsewhere);
            assert_eq!(a.claim(database).await.unwrap(), Claim::Elsewhere);
            let made = commit(&two, part(database, 2, epoch, &[(1, 3)])).await;
            assert_eq!(made, CommitOutcome::Committed(vec![Version::new(3)]));
            // And back again.
            assert_eq!(taken(&*a, database, S, epoch).await, Some(Duration::ZERO));
            assert_eq!(taken(&*a, database, S, epoch).await, Some(Duration::ZERO));
            let fence = b.fence(database, T, Duration::ZERO).await.unwrap();
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
            assert_eq!(taken(&*b, database, T, epoch).await, None);
            let other = Epoch::new(epoch.get() + 1);
            assert_eq!(taken(&*b, database, S, other).await, None);
            let unknown = DatabaseId::random().unwrap();
            assert_eq!(taken(&*b, unknown, S, epoch).await, None);
            // Granted to another since.
            let next = epoch_of(a.fence(database, T, Duration::ZERO).await.unwrap());
            assert!(next > epoch);
            assert_eq!(taken(&*b, database, S, epoch).await, None);
            assert_eq!(taken(&*b, database, S, next).await, None);
            // Fenced since, by whomever.
            two.fence(database).await.unwrap();
            assert_eq!(taken(&*b, database, T, next).await, None);
            // Removed since.
            let last = epoch_of(a.fence(database, T, Duration::ZERO).await.unwrap());
            one.remove(&name("a")).await.unwrap();
            assert_eq!(taken(&*b, database, T, last).await, None);
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
            assert_eq!(taken(&*a, database, S, epoch).await, None);
            assert_eq!(taken(&*b, database, S, epoch).await, None);
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
            let waited_for = taken(&*b, database, S, epoch).await;
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
            assert_eq!(taken(&*b, database, S, epoch).await, Some(Duration::ZERO));
            let question = Resolve {
                id: CommitId::random().unwrap(),
                participants: vec![(database, Version::new(1), epoch)],
            };
            let Resolution::Aborted { current } = two.resolve(question).await.unwrap() else {
                panic!("nobody made it");
            };
            assert_eq!(taken(&*a, database, S, epoch).await, None);
            assert_eq!(
                taken(&*a, database, S, current[0]).await,
                Some(Duration::ZERO)
            );
        },
    );
}
