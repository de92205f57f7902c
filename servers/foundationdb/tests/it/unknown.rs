//! Answers of the cluster that get lost (`commit_unknown_result`), each of a call in turn, applied and not applied: what became of it is found out by what
//! is there, a commit by its id, and never guessed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pagewire_foundationdb::hooks::{Lost, Trouble, in_trouble};
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::{CommitId, DatabaseId, Epoch, Moment, TagName, Version};
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseCommit, PageStore as _, Resolution, Resolve, StoreError,
};

use crate::servers::{begun, name, part, stamp, with_two};

fn by_hand(options: &mut FoundationDbOptions) {
    options.collect_every = Duration::from_secs(3600);
}

fn everything_ahead(options: &mut FoundationDbOptions) {
    by_hand(options);
    options.commit_bytes = 0;
}

fn commit_of(parts: Vec<DatabaseCommit>) -> Commit {
    Commit {
        id: CommitId::random().unwrap(),
        databases: parts,
    }
}

/// The commit that comes `nth`, the first is 0, loses its answer.
fn nth(nth: usize, lost: Lost) -> Arc<Trouble> {
    let mut answers = vec![None; nth];
    answers.push(Some(lost));
    Arc::new(Trouble::lost(&answers))
}

/// Each transaction of a commit has its answer lost once, in a commit of its own, until there are no more. Answers how many there are.
async fn each_answer_lost(
    store: &FoundationDbStore,
    (database, epoch): (DatabaseId, Epoch),
    lost: Lost,
) -> usize {
    let mut turn = 0;
    loop {
        let base = store.head(database).await.unwrap().version.get();
        let mark = (base % 250) as u8 + 1;
        let commit = commit_of(vec![part(database, base, epoch, &[(1, mark), (2, mark)])]);
        let trouble = nth(turn, lost);
        let before = store.unknown_outcomes();
        let made = in_trouble(&trouble, store.commit(commit.clone())).await;
        let made = made.unwrap();
        let expected = CommitOutcome::Committed(vec![Version::new(base + 1)]);
        assert_eq!(made, expected, "answer {turn} lost, {lost:?}");
        assert_eq!(store.head(database).await.unwrap().version.get(), base + 1);
        for page in [1, 2] {
            assert_eq!(stamp(store, database, base + 1, page).await, mark);
        }
        // Once more, as a client that lost the answer of the server.
        assert_eq!(store.commit(commit).await.unwrap(), expected);
        if trouble.left() > 0 {
            return turn;
        }
        assert_eq!(store.unknown_outcomes() - before, 1);
        turn += 1;
    }
}

#[test]
fn m1_a_commit_whose_answer_was_lost_finds_itself_by_its_id_or_is_made() {
    with_two(by_hand, |one, _two| async move {
        let a = begun(&one, &[(1, 1)]).await;
        for lost in [Lost::Applied, Lost::NotApplied] {
            // The first one that asks, and those that know (M3).
            for _ in 0..3 {
                assert_eq!(each_answer_lost(&one, a, lost).await, 1);
            }
        }
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn m1_so_does_each_transaction_of_a_large_commit() {
    with_two(everything_ahead, |one, _two| async move {
        let a = begun(&one, &[(1, 1)]).await;
        for lost in [Lost::Applied, Lost::NotApplied] {
            let transactions = each_answer_lost(&one, a, lost).await;
            assert!(transactions >= 3, "{transactions}: this has shown nothing");
        }
        while one.collect(None).await.unwrap().more {}
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn m1_a_commit_to_two_databases_is_there_in_both_or_in_none() {
    with_two(by_hand, |one, two| async move {
        let (a, of_a) = begun(&one, &[(1, 1)]).await;
        let b = one.lookup(&name("b"), true).await.unwrap();
        let of_b = one.fence(b).await.unwrap();
        for (turn, lost) in (0..).zip([Lost::Applied, Lost::NotApplied]) {
            let parts = vec![
                part(a, 1 + turn, of_a, &[(1, 7)]),
                part(b, turn, of_b, &[(1, 7)]),
            ];
            let trouble = nth(0, lost);
            let made = in_trouble(&trouble, one.commit(commit_of(parts))).await;
            let versions = vec![Version::new(2 + turn), Version::new(1 + turn)];
            assert_eq!(made.unwrap(), CommitOutcome::Committed(versions));
            assert_eq!(stamp(&two, a, 2 + turn, 1).await, 7);
            assert_eq!(stamp(&two, b, 1 + turn, 1).await, 7);
        }
        assert_eq!(one.unknown_outcomes(), 2);
    });
}

/// A fence that comes between the lost round and the next one: applied, the commit is there all the same; not applied, the lease is lost.
#[test]
fn m1_what_others_did_meanwhile_is_not_taken_for_its_own() {
    with_two(by_hand, |one, two| async move {
        let (database, epoch) = begun(&one, &[(1, 1)]).await;
        for lost in [Lost::Applied, Lost::NotApplied] {
            let base = one.head(database).await.unwrap().version.get();
            let current = one.fence(database).await.unwrap();
            assert!(current > epoch);
            let commit = commit_of(vec![part(database, base, current, &[(1, 9)])]);
            let trouble = Arc::new(Trouble::interrupted(lost));
            let before = one.unknown_outcomes();
            let call = in_trouble(&trouble, one.commit(commit.clone()));
            // Between its first round and the second.
            let (outcome, fenced) = tokio::join!(call, async {
                trouble.interruption().await;
                let there = one.head(database).await.unwrap().version.get();
                assert_eq!(there, base + u64::from(lost == Lost::Applied));
                let fenced = two.fence(database).await.unwrap();
                trouble.go_on();
                fenced
            });
            assert!(fenced > current);
            assert_eq!((one.unknown_outcomes() - before, trouble.left()), (1, 0));
            let right = match lost {
                Lost::Applied => CommitOutcome::Committed(vec![Version::new(base + 1)]),
                Lost::NotApplied => CommitOutcome::LeaseLost {
                    index: 0,
                    current: fenced,
                },
            };
            assert_eq!(outcome.unwrap(), right, "{lost:?}");
        }
    });
}

/// A cluster that never tells: the answer is that nobody knows, and `resolve` settles it for ever.
#[test]
fn m1_an_outcome_that_stays_unknown_is_said_to_be_and_is_settled_by_resolve() {
    let impatient = |options: &mut FoundationDbOptions| {
        by_hand(options);
        options.patience = Duration::from_secs(2);
    };
    with_two(impatient, |one, two| async move {
        let (database, epoch) = begun(&one, &[(1, 1)]).await;
        let commit = commit_of(vec![part(database, 1, epoch, &[(1, 9)])]);
        let silent = Arc::new(Trouble::lost(&vec![Some(Lost::NotApplied); 100_000]));
        let answer = in_trouble(&silent, one.commit(commit.clone())).await;
        let Err(StoreError::Internal(why)) = answer else {
            panic!("{answer:?}");
        };
        assert!(why.contains("the outcome is not known"), "{why}");
        let resolve = Resolve {
            id: commit.id,
            participants: vec![(database, Version::new(1), epoch)],
        };
        let Resolution::Aborted { current } = two.resolve(resolve).await.unwrap() else {
            panic!("it is there");
        };
        let late = CommitOutcome::LeaseLost {
            index: 0,
            current: current[0],
        };
        assert_eq!(one.commit(commit).await.unwrap(), late);
    });
}

/// Calls that are no commits: whatever became of the round that was lost, the answer is the right one.
#[test]
fn other_calls_whose_answer_was_lost_are_done_once() {
    with_two(by_hand, |one, two| async move {
        let (database, _) = begun(&one, &[(1, 1)]).await;
        let mut epochs = HashSet::new();
        let mut newest = Epoch::NONE;
        for (turn, lost) in (0..).zip([Lost::Applied, Lost::NotApplied]) {
            let lose = || nth(0, lost);
            let epoch = in_trouble(&lose(), one.fence(database)).await.unwrap();
            assert!(epoch > newest && epochs.insert(epoch), "C12");
            newest = epoch;
            let made = name(&format!("made{turn}"));
            let id = in_trouble(&lose(), one.lookup(&made, true)).await.unwrap();
            assert_eq!(two.lookup(&made, false).await.unwrap(), id);
            let tag = TagName::try_from(format!("t{turn}").as_str()).unwrap();
            let at = Moment::Version(Version::new(1));
            in_trouble(&lose(), one.set_tag(database, &tag, &at, false))
                .await
                .unwrap();
            let branch = (DatabaseId::random().unwrap(), name(&format!("b{turn}")));
            in_trouble(&lose(), one.branch(database, &at, branch.0, &branch.1))
                .await
                .unwrap();
            assert_eq!(stamp(&two, branch.0, 1, 1).await, 1);
            let existed = in_trouble(&lose(), one.delete_tag(database, &tag)).await;
            assert!(existed.unwrap(), "it was there, {lost:?}");
            let removed = in_trouble(&lose(), one.remove(&branch.1)).await.unwrap();
            assert_eq!(removed, branch.0);
            let gone = two.lookup(&branch.1, false).await;
            assert!(matches!(gone, Err(StoreError::DatabaseNotFound)));
            let floor = Some(Version::new(turn));
            in_trouble(&lose(), one.protect(database, floor, &[]))
                .await
                .unwrap();
        }
        assert_eq!(one.unknown_outcomes(), 14);
        while one.collect(None).await.unwrap().more {}
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}
