//! Figures, not tests: run with `cargo test -p pagewire-local --test it measure -- --ignored --nocapture`, in the directory
//! that TMPDIR names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pagewire_local::LocalStore;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, PageCount, PageNumber, PageSize, StagingId, Version,
};
use pagewire_server::store::{Commit, DatabaseCommit, PageStore, PageWrite};

const SIZE: u32 = 4096;

/// Half of a page can be compressed away, the other half cannot.
fn page(number: u32, stamp: u64) -> PageWrite {
    let mut state = stamp * 0x9e37_79b9 + u64::from(number) * 7919 + 1;
    let mut content = vec![0x20; SIZE as usize];
    for chunk in content[..SIZE as usize / 2].chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    PageWrite {
        number: PageNumber::try_from(number).unwrap(),
        content: Bytes::from(content),
    }
}

fn part(database: DatabaseId, epoch: Epoch, base: u64, count: u32) -> DatabaseCommit {
    DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: PageSize::try_from(SIZE).unwrap(),
        page_count: PageCount::try_from(count).unwrap(),
        stagings: Vec::new(),
        restore: None,
        pages: Vec::new(),
    }
}

async fn database(store: &LocalStore, name: &str) -> (DatabaseId, Epoch) {
    let name = DatabaseName::try_from(name).unwrap();
    let id = store.lookup(&name, true).await.unwrap();
    (id, store.fence(id).await.unwrap())
}

async fn commit(store: &LocalStore, part: DatabaseCommit) {
    let id = CommitId::random().unwrap();
    let databases = vec![part];
    store.commit(Commit { id, databases }).await.unwrap();
}

fn kilobytes(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn commits_of_four_pages_and_reads() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalStore::open(directory.path()).unwrap());
    for writers in [1, 8, 64] {
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers {
            let store = Arc::clone(&store);
            tasks.spawn(async move {
                let (id, epoch) = database(&store, &format!("{writers}/{writer}")).await;
                let mut base = 0;
                while began.elapsed() < Duration::from_secs(4) {
                    let mut part = part(id, epoch, base, 1000);
                    let numbers = (0..4).map(|n| (base as u32 * 4 + n) % 1000 + 1);
                    part.pages = numbers.map(|number| page(number, base)).collect();
                    commit(&store, part).await;
                    base += 1;
                }
                base
            });
        }
        let commits: u64 = tasks.join_all().await.iter().sum();
        println!("{writers} writers: {} commits/s", commits / 4);
    }
    let (id, _) = database(&store, "1/0").await;
    let head = store.head(id).await.unwrap().version;
    let mut times = Vec::new();
    for number in (1..=1000).cycle().take(20_000) {
        let number = [PageNumber::try_from(number).unwrap()];
        let began = Instant::now();
        store.read(id, head, &number).await.unwrap();
        times.push(began.elapsed());
    }
    times.sort();
    println!(
        "read of a page at version {head}: p50 {:?}, p99 {:?}",
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn a_commit_of_a_gibibyte() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path()).unwrap();
    let (id, epoch) = database(&store, "large").await;
    let before = kilobytes("RssAnon");
    let (pages, batch) = (262_144_u32, 256);
    let staging = StagingId::random().unwrap();
    let size = PageSize::try_from(SIZE).unwrap();
    let mut largest = 0;
    let began = Instant::now();
    for first in (1..=pages).step_by(batch as usize) {
        let pages = (first..first + batch).map(|number| page(number, 1));
        let stage = store.stage(id, staging, size, pages.collect());
        stage.await.unwrap();
        largest = largest.max(kilobytes("RssAnon"));
    }
    println!("staged in {:?}", began.elapsed());
    let mut part = part(id, epoch, 0, pages);
    part.stagings.push(staging);
    let began = Instant::now();
    let watched = async {
        loop {
            largest = largest.max(kilobytes("RssAnon"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = commit(&store, part) => {}
        () = watched => {}
    }
    println!("committed in {:?}", began.elapsed());
    println!(
        "anonymous memory: {} MiB at most",
        (largest - before) / 1024
    );
    let numbers: Vec<_> = (1..=1024)
        .map(|n| PageNumber::try_from(n * 256).unwrap())
        .collect();
    let read = store.read(id, Version::new(1), &numbers).await.unwrap();
    for (number, read) in numbers.iter().zip(read) {
        assert_eq!(read.content, page(number.get(), 1).content, "page {number}");
    }
}

/// A shrink marks each row of a page that goes, in the transaction of its commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures"]
async fn a_shrink_by_a_gibibyte() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path()).unwrap();
    let (id, epoch) = database(&store, "large").await;
    let pages = 262_144_u32;
    let began = Instant::now();
    let mut base = 0;
    // The first version of a segment needs no marks for its pages.
    commit(&store, part(id, epoch, base, 1)).await;
    for first in (1..=pages).step_by(2048) {
        base += 1;
        let mut part = part(id, epoch, base, first + 2047);
        part.pages = (first..first + 2048)
            .map(|number| page(number, 1))
            .collect();
        commit(&store, part).await;
    }
    println!("{pages} pages written in {:?}", began.elapsed());
    let size = || {
        std::fs::metadata(directory.path().join("data.mdb"))
            .unwrap()
            .len()
    };
    let (before, began) = (size(), Instant::now());
    commit(&store, part(id, epoch, base + 1, 1)).await;
    println!(
        "shrunk in {:?}, the file grew by {} KiB",
        began.elapsed(),
        (size() - before) / 1024
    );
}
