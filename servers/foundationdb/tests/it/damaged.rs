//! Damage in one place of the cluster holds up the collection of that place only.

use std::time::Duration;

use pagewire_foundationdb::FoundationDbStore;
use pagewire_proto::{DatabaseId, Moment, Version};
use pagewire_server::clock::ManualClock;
use pagewire_server::store::PageStore as _;

use pagewire_server::peers::Claim;

use crate::servers::{TTL, commit, name, part, stamp, with_two};

const HOUR: Duration = Duration::from_secs(3600);

/// Steps to the end of a pass; with damage it has to have one all the same.
async fn collect_all(store: &FoundationDbStore) -> u64 {
    let mut versions = 0;
    for _ in 0..200 {
        let step = store.collect(None).await.unwrap();
        versions += step.versions;
        if !step.more {
            return versions;
        }
    }
    panic!("the collection does not end");
}

/// A branch with an id of one byte, so that it is known which row comes first.
async fn branch(store: &FoundationDbStore, main: DatabaseId, byte: u8) -> DatabaseId {
    let (id, label) = (
        DatabaseId::from_bytes([byte; 16]),
        name(&format!("b{byte}")),
    );
    let now = Moment::Age(0);
    store.branch(main, &now, id, &label).await.unwrap();
    id
}

/// Bug: a damaged row below a version that had lost a reader, or of a removed database, ended each pass before any database was looked at.
#[test]
fn damage_below_what_goes_holds_up_nothing_else() {
    let clock = ManualClock::default();
    let handle = clock.clock();
    with_two(
        |options| {
            options.clock = handle;
            options.collect_every = HOUR;
            options.remembered = Duration::ZERO;
            options.retention = Some(HOUR);
        },
        |one, two| async move {
            let main = one.lookup(&name("main"), true).await.unwrap();
            let epoch = one.fence(main).await.unwrap();
            for base in 0..3 {
                commit(&one, part(main, base, epoch, &[(1, base as u8 + 1)])).await;
            }
            let bad = branch(&one, main, 0x10).await;
            let removed_bad = branch(&one, main, 0x11).await;
            let removed_later = branch(&one, main, 0x12).await;
            let last = branch(&one, main, 0xf0).await;
            for byte in [0x11, 0x12] {
                one.remove(&name(&format!("b{byte}"))).await.unwrap();
            }
            assert!(one.damage_record(bad, Version::new(1)).await.unwrap());
            assert!(one.damage_removed(removed_bad).await.unwrap());
            // More than one look takes, and behind them one that can be looked at.
            for version in 1..=20 {
                one.lose_reader(bad, Version::new(version)).await.unwrap();
            }
            one.lose_reader(last, Version::new(1)).await.unwrap();
            clock.advance(2 * HOUR);
            assert_eq!(collect_all(&one).await, 2, "the other database");
            assert_eq!(one.to_do().await.unwrap(), (20, 0));
            assert!(
                !one.damage_removed(removed_later).await.unwrap(),
                "it went an hour after its removal"
            );
            assert_eq!(collect_all(&two).await, 0);
            assert_eq!(stamp(&two, main, 3, 1).await, 3);
            assert_eq!(stamp(&two, last, 1, 1).await, 3);
            // Mended, as from a backup: the next collection goes on with it.
            assert!(one.damage_record(bad, Version::new(1)).await.unwrap());
            assert!(one.damage_removed(removed_bad).await.unwrap());
            collect_all(&two).await;
            assert_eq!(one.to_do().await.unwrap(), (0, 0));
            assert_eq!(stamp(&two, bad, 1, 1).await, 3);
            assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}

/// Bug: the damaged row of a page server, which may be gone, ended each step of each collection, each begin of a server, and each wish for what it had
/// claimed. Whether it lives is not known, so it is taken for one that does, until it has been silent for long.
#[test]
fn a_damaged_row_of_a_server_holds_up_nothing_and_what_it_protects_is_kept() {
    let clock = ManualClock::default();
    let handle = clock.clock();
    with_two(
        |options| {
            options.clock = handle;
            options.collect_every = HOUR;
            options.retention = Some(HOUR);
            options.dead_after = Duration::ZERO;
        },
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            for base in 0..4 {
                commit(&one, part(database, base, epoch, &[(1, base as u8 + 1)])).await;
            }
            two.begin_service(TTL).await.unwrap();
            let claimed = two.peers().unwrap().claim(database).await.unwrap();
            assert_eq!(claimed, Claim::Claimed);
            two.protect(database, Some(Version::new(3)), &[])
                .await
                .unwrap();
            // As with kill -9.
            drop(two);
            clock.advance(2 * HOUR);
            // Its last beat may be on its way, and mends what is there.
            while one.damaged_servers().await.unwrap() == 0 {
                assert!(one.damage_servers().await.unwrap());
                tokio::time::sleep(Duration::from_millis(1500)).await;
            }
            one.begin_service(TTL).await.unwrap();
            assert_eq!(collect_all(&one).await, 2, "all but what is protected");
            assert_eq!(stamp(&one, database, 3, 1).await, 3);
            let peers = one.peers().unwrap();
            assert_eq!(peers.claim(database).await.unwrap(), Claim::Elsewhere);
            assert_eq!(peers.open_elsewhere(database).await.unwrap(), 1);
        },
    );
}

/// A server that lives mends its row, and nothing that it had is lost.
#[test]
fn a_server_that_lives_mends_its_row() {
    with_two(
        |options| options.collect_every = HOUR,
        |one, two| async move {
            assert!(one.damage_servers().await.unwrap());
            let mended = async {
                while one.damaged_servers().await.unwrap() > 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            let mended = tokio::time::timeout(Duration::from_secs(60), mended);
            mended.await.expect("a beat");
            assert_eq!(two.live_servers().await.unwrap(), 2);
        },
    );
}
