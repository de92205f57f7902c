//! Commits of any size: visible at once, in bounded memory, and nothing of one that died.

use bytes::Bytes;
use pagewire_proto::{CommitId, PageCount, PageNumber, PageSize, StagingId, Version};
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseCommit, PageStore as _, PageWrite, StoreError,
};

use crate::cluster::Cluster;

/// A page that no compression makes smaller, and that says which it is.
fn noise(page: u32, round: u64, size: PageSize) -> Bytes {
    let mut state = u64::from(page) << 32 | round;
    let mut content = Vec::with_capacity(size.bytes());
    while content.len() < size.bytes() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        content.extend_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes());
    }
    Bytes::from(content)
}

fn write(page: u32, round: u64, size: PageSize) -> PageWrite {
    PageWrite {
        number: PageNumber::try_from(page).unwrap(),
        content: noise(page, round, size),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// Stages so many bytes and commits them: before that nobody sees anything, after it all of it.
fn staged_commit(cluster: &Cluster, bytes: usize) {
    runtime().block_on(async {
        let store = cluster.open(&cluster.options()).await.unwrap();
        let size = PageSize::try_from(16384).unwrap();
        let pages = u32::try_from(bytes / size.bytes()).unwrap();
        let name = "large".try_into().unwrap();
        let database = store.lookup(&name, true).await.unwrap();
        let epoch = store.fence(database).await.unwrap();
        let staging = StagingId::random().unwrap();
        let numbers: Vec<u32> = (1..=pages).collect();
        for some in numbers.chunks(64) {
            let writes = some.iter().map(|page| write(*page, 1, size)).collect();
            store.stage(database, staging, size, writes).await.unwrap();
        }
        assert_eq!(store.head(database).await.unwrap().version, Version::ZERO);
        let commit = Commit {
            id: CommitId::random().unwrap(),
            databases: vec![DatabaseCommit {
                database,
                base: Version::ZERO,
                epoch,
                page_size: size,
                page_count: PageCount::try_from(pages).unwrap(),
                stagings: vec![staging],
                pages: vec![write(1, 2, size)],
                restore: None,
            }],
        };
        let made = CommitOutcome::Committed(vec![Version::new(1)]);
        assert_eq!(store.commit(commit.clone()).await.unwrap(), made);
        assert_eq!(store.commit(commit).await.unwrap(), made);
        for some in numbers.chunks(128) {
            let asked: Vec<_> = some
                .iter()
                .map(|n| PageNumber::try_from(*n).unwrap())
                .collect();
            let read = store.read(database, Version::new(1), &asked).await.unwrap();
            for (page, read) in some.iter().zip(read) {
                let round = if *page == 1 { 2 } else { 1 };
                assert!(
                    read.content == noise(*page, round, size),
                    "page {page} is another"
                );
                assert_eq!(read.version, Version::new(1));
            }
        }
        // Page 1 was staged and then written by the commit: its first row is garbage.
        while store.collect(None).await.unwrap().more {}
        assert_eq!(store.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_transaction_far_larger_than_one_of_the_cluster_is_seen_at_once() {
    if let Some(cluster) = Cluster::shared() {
        staged_commit(&cluster, 48 << 20);
    }
}

/// A gibibyte takes minutes.
#[test]
#[ignore = "long: run it with --run-ignored"]
fn a_transaction_of_a_gibibyte_is_seen_at_once() {
    if let Some(cluster) = Cluster::own("gibibyte", "memory") {
        staged_commit(&cluster, 1 << 30);
    }
}

#[test]
fn a_commit_of_one_call_may_be_larger_than_a_transaction_of_the_cluster() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    runtime().block_on(async {
        let store = cluster.open(&cluster.options()).await.unwrap();
        let size = PageSize::MAX;
        let database = store
            .lookup(&"one".try_into().unwrap(), true)
            .await
            .unwrap();
        let epoch = store.fence(database).await.unwrap();
        let pages = 256;
        let commit = Commit {
            id: CommitId::random().unwrap(),
            databases: vec![DatabaseCommit {
                database,
                base: Version::ZERO,
                epoch,
                page_size: size,
                page_count: PageCount::try_from(pages).unwrap(),
                stagings: Vec::new(),
                pages: (1..=pages).map(|page| write(page, 1, size)).collect(),
                restore: None,
            }],
        };
        let made = CommitOutcome::Committed(vec![Version::new(1)]);
        assert_eq!(store.commit(commit).await.unwrap(), made);
        let last = PageNumber::try_from(pages).unwrap();
        let read = store
            .read(database, Version::new(1), &[last])
            .await
            .unwrap();
        assert!(read[0].content == noise(pages, 1, size));
        assert_eq!(store.audit().await.unwrap(), Vec::<String>::new());
    });
}

/// What was written ahead in another order than that of the commit is copied: the pages of the one staging cannot be, those of the
/// other can.
#[test]
fn a_layer_that_cannot_be_copied_is_never_left_out_of_a_version() {
    let Some(cluster) = Cluster::shared() else {
        return;
    };
    runtime().block_on(async {
        let mut options = cluster.options();
        options.staging_buffer_bytes = 0;
        let store = cluster.open(&options).await.unwrap();
        let size = PageSize::MIN;
        let database = store
            .lookup(&"copied".try_into().unwrap(), true)
            .await
            .unwrap();
        let epoch = store.fence(database).await.unwrap();
        let (second, first) = (StagingId::random().unwrap(), StagingId::random().unwrap());
        for (staging, page) in [(second, 2), (first, 1)] {
            let writes = vec![write(page, 1, size)];
            store.stage(database, staging, size, writes).await.unwrap();
        }
        let lost = PageNumber::try_from(1).unwrap();
        assert!(store.damage(database, lost, Version::new(1)).await.unwrap());
        let commit = Commit {
            id: CommitId::random().unwrap(),
            databases: vec![DatabaseCommit {
                database,
                base: Version::ZERO,
                epoch,
                page_size: size,
                page_count: PageCount::try_from(2).unwrap(),
                stagings: vec![first, second],
                pages: Vec::new(),
                restore: None,
            }],
        };
        let outcome = store.commit(commit).await;
        assert!(
            matches!(outcome, Err(StoreError::Corrupt(_))),
            "{outcome:?}"
        );
        assert_eq!(store.head(database).await.unwrap().version, Version::ZERO);
        for staging in [first, second] {
            store.discard(staging).await.unwrap();
        }
        while store.collect(None).await.unwrap().more {}
        assert_eq!(store.audit().await.unwrap(), Vec::<String>::new());
    });
}
