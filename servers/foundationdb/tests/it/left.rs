//! What is left behind by calls that were given up and servers that died goes with the collection.

use std::time::{Duration, Instant};

use pagewire_foundationdb::FoundationDbStore;
use pagewire_proto::StagingId;
use pagewire_server::peers::Claim;
use pagewire_server::store::{PageStore as _, PageWrite};

use crate::servers::{SIZE, TTL, commit, content, name, number, part, with_two};

async fn collect_all(store: &FoundationDbStore) {
    while store.collect(None).await.unwrap().more {}
}

/// Bug: a call that was given up while it began to write ahead left an attempt that nobody ended for as long as its server lived.
#[test]
fn a5_an_attempt_of_a_call_that_was_given_up_is_ended_by_its_living_server() {
    with_two(
        |options| {
            options.staging_buffer_bytes = 0;
            options.collect_every = Duration::from_secs(3600);
        },
        |one, _two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            commit(&one, part(database, 0, epoch, &[(1, 1)])).await;
            let mut given_up = 0;
            for microseconds in (0..6000).step_by(100) {
                let staging = StagingId::random().unwrap();
                let pages = (1..=4).map(|page| PageWrite {
                    number: number(page),
                    content: content(9),
                });
                let stage = one.stage(database, staging, SIZE, pages.collect());
                let patience = Duration::from_micros(microseconds);
                given_up += u32::from(tokio::time::timeout(patience, stage).await.is_err());
                one.discard(staging).await.unwrap();
            }
            assert!(given_up > 0, "nothing was given up: this has shown nothing");
            // A transaction that was on its way may come after the call was given up.
            let begun = Instant::now();
            loop {
                collect_all(&one).await;
                let wrong = one.audit().await.unwrap();
                if wrong.is_empty() {
                    break;
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "{wrong:?}");
            }
        },
    );
}

#[test]
fn the_post_of_a_server_that_died_goes() {
    with_two(
        |options| {
            options.dead_after = Duration::from_secs(2);
            options.collect_every = Duration::from_secs(3600);
        },
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let epoch = one.fence(database).await.unwrap();
            commit(&one, part(database, 0, epoch, &[(1, 1)])).await;
            one.begin_service(TTL).await.unwrap();
            two.begin_service(TTL).await.unwrap();
            let claimed = one.peers().unwrap().claim(database).await.unwrap();
            assert_eq!(claimed, Claim::Claimed);
            // As a killed process.
            drop(one);
            // Tells the dead one, again and again, until it counts as dead.
            let b = two.peers().unwrap();
            let begun = Instant::now();
            while b.claim(database).await.unwrap() == Claim::Elsewhere {
                assert!(begun.elapsed() < Duration::from_secs(30), "never");
                // On a loaded machine it may have been silent for too long itself; it has no sessions that would have to end.
                b.resume();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // Until its row has gone, and with it what was for it.
            while two.live_servers().await.unwrap() > 1 {
                assert!(begun.elapsed() < Duration::from_secs(60), "never");
                collect_all(&two).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            collect_all(&two).await;
            assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}
