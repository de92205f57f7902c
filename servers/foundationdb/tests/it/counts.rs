//! What a call costs, in transactions of the cluster (docs/foundationdb.md): the budget is kept by count, which no load changes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::{
    CommitId, DatabaseId, Epoch, PageCount, PageNumber, PageSize, StagingId, Version,
};
use pagewire_server::store::{Commit, CommitOutcome, DatabaseCommit, PageStore as _, PageWrite};

use crate::cluster::Cluster;
use crate::servers::with_two;

const SIZE: u32 = 4096;
/// So often that one transaction more or less of the beat cannot hide one of a call.
const TIMES: u64 = 10;

/// Runs with a store that collects nothing by itself, unless there is no cluster.
fn with_store<F: Future<Output = ()>>(test: impl FnOnce(FoundationDbStore) -> F) {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut options = cluster.options();
        options.collect_every = Duration::from_secs(3600);
        test(cluster.open(&options).await.unwrap()).await;
    });
}

/// How many transactions the calls took, without those by which the server says that it lives.
async fn counted<F: Future<Output = ()>>(store: &FoundationDbStore, calls: F) -> u64 {
    let (begun, beats) = store.transactions();
    calls.await;
    let (begun_now, beats_now) = store.transactions();
    (begun_now - begun) - (beats_now - beats)
}

/// Each of so many calls took as many: the beat counts its transactions and itself one after the other.
fn assert_each(counted: u64, each: u64, what: &str) {
    let all = TIMES * each;
    assert!(
        (all - 1..=all + 1).contains(&counted),
        "{counted} transactions for {TIMES} times {what}, not {each} each"
    );
}

fn pages(count: u32, stamp: u64) -> Vec<PageWrite> {
    let page = |page: u32| {
        // Nothing makes it smaller.
        let mut state = stamp << 32 | u64::from(page);
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed ^ (mixed >> 27)).to_le_bytes()
        });
        PageWrite {
            number: PageNumber::try_from(page).unwrap(),
            content: Bytes::from_iter(words.take(SIZE as usize / 8).flatten()),
        }
    };
    (1..=count).map(page).collect()
}

fn part(database: DatabaseId, base: u64, epoch: Epoch, pages: Vec<PageWrite>) -> DatabaseCommit {
    DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: PageSize::try_from(SIZE).unwrap(),
        page_count: PageCount::try_from(4096).unwrap(),
        stagings: Vec::new(),
        pages,
        restore: None,
    }
}

async fn commit(store: &FoundationDbStore, databases: Vec<DatabaseCommit>) {
    let id = CommitId::random().unwrap();
    let made = databases.iter().map(|part| part.base.next()).collect();
    let outcome = store.commit(Commit { id, databases }).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed(made));
}

async fn database(store: &FoundationDbStore, name: &str) -> (DatabaseId, Epoch) {
    let database = store.lookup(&name.try_into().unwrap(), true).await.unwrap();
    (database, store.fence(database).await.unwrap())
}

#[test]
fn a_commit_that_fits_is_one_transaction_also_of_several_databases() {
    with_store(|store| async move {
        let (a, epoch) = database(&store, "a").await;
        let spent = counted(&store, async {
            for base in 0..TIMES {
                commit(&store, vec![part(a, base, epoch, pages(3, base))]).await;
            }
        });
        assert_each(spent.await, 1, "a commit of three pages");
        // About as much as fits.
        let spent = counted(&store, async {
            for base in TIMES..2 * TIMES {
                commit(&store, vec![part(a, base, epoch, pages(900, base))]).await;
            }
        });
        assert_each(spent.await, 1, "a commit of 3.5 MiB");
        let (b, other) = database(&store, "b").await;
        let spent = counted(&store, async {
            for base in 0..TIMES {
                let first = part(a, 2 * TIMES + base, epoch, pages(1, base));
                let second = part(b, base, other, pages(1, base));
                commit(&store, vec![first, second]).await;
            }
        });
        assert_each(spent.await, 1, "a commit to two databases");
    });
}

/// A collection that never pauses, through another server, drops each version as soon as there is a newer one: no commit is repeated for it, whether it reads
/// what it stands on (those to two databases) or knows it (M3).
#[test]
fn a_collection_never_conflicts_with_a_writer() {
    const COMMITS: u64 = 50;
    let nothing_is_kept = |options: &mut FoundationDbOptions| {
        options.collect_every = Duration::from_secs(3600);
        options.retention = Some(Duration::ZERO);
    };
    with_two(nothing_is_kept, |one, two| async move {
        let (a, epoch) = database(&one, "a").await;
        let (b, other) = database(&one, "b").await;
        let over = AtomicBool::new(false);
        let writes = async {
            let spent = counted(&one, async {
                for base in 0..COMMITS {
                    let first = part(a, 2 * base, epoch, pages(3, base));
                    let second = part(b, base, other, pages(3, base));
                    commit(&one, vec![first, second]).await;
                    commit(&one, vec![part(a, 2 * base + 1, epoch, pages(2, base))]).await;
                }
            });
            let spent = spent.await;
            over.store(true, Ordering::Relaxed);
            spent
        };
        let collects = async {
            let (mut dropped, mut rows) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                let step = two.collect(None).await.unwrap();
                dropped += step.versions;
                rows += step.pages;
            }
            (dropped, rows)
        };
        let (spent, (dropped, rows)) = tokio::join!(writes, collects);
        assert!(
            dropped > COMMITS / 2 && rows > COMMITS / 2,
            "{dropped} versions and {rows} rows were dropped meanwhile: this has shown nothing"
        );
        let all = 2 * COMMITS;
        assert!(
            (all - 1..=all + 1).contains(&spent),
            "{spent} transactions for {all} commits"
        );
        while two.collect(None).await.unwrap().more {}
        assert_eq!(two.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn what_is_larger_is_written_ahead_and_seen_by_one_transaction() {
    with_store(|store| async move {
        let (a, epoch) = database(&store, "a").await;
        // 8 MiB by 8 transactions, or 9 where the pages do not fill them; two for the attempt, one that makes the version.
        let spent = counted(&store, async {
            for base in 0..TIMES {
                commit(&store, vec![part(a, base, epoch, pages(2048, base))]).await;
            }
        });
        let spent = spent.await;
        let each = 8 + 2 + 1..=9 + 2 + 1;
        assert!(
            (each.start() * TIMES - 1..=each.end() * TIMES + 1).contains(&spent),
            "{spent} for {TIMES} commits"
        );
    });
}

#[test]
fn what_was_staged_costs_its_commit_one_transaction() {
    with_store(|store| async move {
        let (a, epoch) = database(&store, "a").await;
        let size = PageSize::try_from(SIZE).unwrap();
        let mut spent = 0;
        for base in 0..TIMES {
            let staging = StagingId::random().unwrap();
            // More than waits in the memory of the server, all of which was written ahead.
            store
                .stage(a, staging, size, pages(512, base))
                .await
                .unwrap();
            let staged = DatabaseCommit {
                stagings: vec![staging],
                ..part(a, base, epoch, Vec::new())
            };
            spent += counted(&store, commit(&store, vec![staged])).await;
        }
        // The beat may fall into any of them.
        assert!(
            (TIMES - 2..=TIMES + 2).contains(&spent),
            "{spent} transactions for {TIMES} commits of what was staged"
        );
    });
}

#[test]
fn a_read_a_question_and_a_fence_are_one_transaction_each() {
    with_store(|store| async move {
        let (a, epoch) = database(&store, "a").await;
        commit(&store, vec![part(a, 0, epoch, pages(100, 1))]).await;
        let asked: Vec<_> = (1..=100)
            .map(|page| PageNumber::try_from(page).unwrap())
            .collect();
        let spent = counted(&store, async {
            for _ in 0..TIMES {
                store.read(a, Version::new(1), &asked).await.unwrap();
            }
        });
        assert_each(spent.await, 1, "a read of 100 pages");
        let spent = counted(&store, async {
            for _ in 0..TIMES {
                store.changes(a, Version::ZERO).await.unwrap();
            }
        });
        assert_each(spent.await, 1, "the question at BEGIN");
        let spent = counted(&store, async {
            for _ in 0..TIMES {
                store.fence(a).await.unwrap();
            }
        });
        assert_each(spent.await, 1, "a fence");
    });
}
