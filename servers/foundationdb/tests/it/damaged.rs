//! Damage in one place of the cluster holds up the collection of that place only.

use std::time::Duration;

use pagewire_foundationdb::FoundationDbStore;
use pagewire_proto::{DatabaseId, Moment, Version};
use pagewire_server::clock::ManualClock;
use pagewire_server::store::PageStore as _;

use crate::servers::{commit, name, part, stamp, with_two};

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
