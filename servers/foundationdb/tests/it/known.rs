//! M3: a commit soon after another one asks the cluster for nothing, and whatever came in between is noticed all the same.

use std::time::Duration;

use pagewire_proto::{CommitId, Version};
use pagewire_server::store::{Commit, CommitOutcome, PageStore as _, StoreError};

use crate::servers::{begun, commit, name, part, stamp, with_two};

fn made(version: u64) -> CommitOutcome {
    CommitOutcome::Committed(vec![Version::new(version)])
}

#[test]
fn m3_a_commit_after_one_reads_nothing() {
    with_two(
        |options| options.collect_every = Duration::from_secs(3600),
        |one, _two| async move {
            let (database, epoch) = begun(&one, &[(1, 1)]).await;
            let before = one.reads();
            for base in 1..=20 {
                let part = part(database, base, epoch, &[(1, base as u8)]);
                assert_eq!(commit(&one, part).await, made(base + 1));
            }
            // A loaded machine may take longer than what is known lasts, once.
            let reads = one.reads() - before;
            assert!(reads <= 4, "{reads} reads for 20 commits");
            assert_eq!(stamp(&one, database, 21, 1).await, 20);
            assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}

/// As if it had been asked: a fence, a commit and a removal through the other server, each right after a commit through this one.
#[test]
fn m3_what_another_server_did_since_is_noticed() {
    with_two(
        |_| {},
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let first = one.fence(database).await.unwrap();
            for round in 0..10 {
                let base = 2 * round;
                let epoch = one.fence(database).await.unwrap();
                assert_eq!(
                    commit(&one, part(database, base, epoch, &[(1, 1)])).await,
                    made(base + 1)
                );
                let current = two.fence(database).await.unwrap();
                let late = commit(&one, part(database, base + 1, epoch, &[(1, 2)])).await;
                assert_eq!(late, CommitOutcome::LeaseLost { index: 0, current });
                // The other goes on, under the epoch that it has made.
                assert_eq!(
                    commit(&two, part(database, base + 1, current, &[(1, 3)])).await,
                    made(base + 2)
                );
                assert_eq!(stamp(&one, database, base + 2, 1).await, 3);
            }
            assert!(first < one.fence(database).await.unwrap());
            // Under one epoch, so that only the base decides.
            let epoch = one.fence(database).await.unwrap();
            assert_eq!(
                commit(&one, part(database, 20, epoch, &[(1, 4)])).await,
                made(21)
            );
            assert_eq!(
                commit(&two, part(database, 21, epoch, &[(1, 5)])).await,
                made(22)
            );
            let late = commit(&one, part(database, 21, epoch, &[(1, 6)])).await;
            let head = Version::new(22);
            assert_eq!(late, CommitOutcome::Conflict { index: 0, head });
            assert_eq!(stamp(&one, database, 22, 1).await, 5);
            assert_eq!(
                commit(&one, part(database, 22, epoch, &[(1, 7)])).await,
                made(23)
            );
            two.remove(&name("a")).await.unwrap();
            let id = CommitId::random().unwrap();
            let databases = vec![part(database, 23, epoch, &[(1, 8)])];
            let gone = one.commit(Commit { id, databases }).await;
            assert!(
                matches!(gone, Err(StoreError::DatabaseNotFound)),
                "{gone:?}"
            );
            while two.collect(None).await.unwrap().more {}
            assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
        },
    );
}

#[test]
fn m3_a_commit_that_is_repeated_answers_as_the_first_time() {
    with_two(
        |_| {},
        |one, two| async move {
            let (database, epoch) = begun(&one, &[(1, 1)]).await;
            let second = Commit {
                id: CommitId::random().unwrap(),
                databases: vec![part(database, 1, epoch, &[(1, 2)])],
            };
            assert_eq!(one.commit(second.clone()).await.unwrap(), made(2));
            assert_eq!(one.commit(second.clone()).await.unwrap(), made(2));
            assert_eq!(two.commit(second).await.unwrap(), made(2));
            assert_eq!(one.head(database).await.unwrap().version, Version::new(2));
        },
    );
}

/// Bug that was: transactions of one batch of the cluster have one version. A fence right behind a commit in its batch was taken for one before
/// it, and the fenced writer went on for ever.
#[test]
fn m3_a_fence_of_the_same_moment_ends_the_writer() {
    with_two(
        |_| {},
        |one, two| async move {
            let database = one.lookup(&name("a"), true).await.unwrap();
            let mut epoch = one.fence(database).await.unwrap();
            let mut base = 0;
            for _ in 0..40 {
                let writing = async {
                    loop {
                        match commit(&one, part(database, base, epoch, &[(1, 1)])).await {
                            CommitOutcome::Committed(_) => base += 1,
                            outcome => break outcome,
                        }
                    }
                };
                let (end, fenced) = tokio::join!(writing, two.fence(database));
                let current = fenced.unwrap();
                assert_eq!(end, CommitOutcome::LeaseLost { index: 0, current });
                assert_eq!(
                    two.head(database).await.unwrap().version,
                    Version::new(base)
                );
                epoch = current;
            }
        },
    );
}

/// A shrink may have to ask what goes away: it does, and at the newest version.
#[test]
fn m3_a_shrink_after_a_commit_is_right() {
    with_two(
        |_| {},
        |one, _two| async move {
            // Page 4 is never written: what goes away is not known without a question.
            let (database, epoch) = begun(&one, &[(1, 1), (2, 2), (3, 3)]).await;
            let less = pagewire_proto::PageCount::try_from(2).unwrap();
            let mut shrink = part(database, 1, epoch, &[(1, 9)]);
            shrink.page_count = less;
            assert_eq!(commit(&one, shrink).await, made(2));
            let changes = one.changes(database, Version::new(1)).await.unwrap().1;
            let changed = [1, 3].map(crate::servers::number);
            assert_eq!(changes, pagewire_proto::Changes::Pages(changed.to_vec()));
        },
    );
}

/// What is known is older than what the cluster lets anybody read at.
#[test]
fn m3_a_commit_long_after_another_asks_again() {
    with_two(
        |options| options.collect_every = Duration::from_secs(3600),
        |one, two| async move {
            let (database, epoch) = begun(&one, &[(1, 1)]).await;
            assert_eq!(
                commit(&two, part(database, 1, epoch, &[(1, 2)])).await,
                made(2)
            );
            tokio::time::sleep(Duration::from_secs(6)).await;
            let before = one.reads();
            assert_eq!(
                commit(&one, part(database, 2, epoch, &[(1, 3)])).await,
                made(3)
            );
            assert!(one.reads() > before);
            assert_eq!(stamp(&two, database, 3, 1).await, 3);
        },
    );
}
