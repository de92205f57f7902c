//! A cluster that dies in the middle of commits: what was acknowledged is there, each commit was applied once or not at all.

use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::{CommitId, PageCount, PageNumber, PageSize, Version};
use pagewire_server::store::{Commit, CommitOutcome, DatabaseCommit, PageStore as _, PageWrite};

use crate::cluster::Cluster;

const COMMITS: u64 = 60;
const PAGES: u32 = 3;

/// What all bytes of the pages of a version are.
fn stamp(version: u64) -> u8 {
    (version % 251) as u8
}

fn commit_on(template: &DatabaseCommit, base: u64) -> Commit {
    let pages = (1..=PAGES).map(|page| PageWrite {
        number: PageNumber::try_from(page).unwrap(),
        content: Bytes::from(vec![stamp(base + 1); PageSize::MIN.bytes()]),
    });
    Commit {
        id: CommitId::random().unwrap(),
        databases: vec![DatabaseCommit {
            base: Version::new(base),
            pages: pages.collect(),
            ..template.clone()
        }],
    }
}

/// Every commit is repeated by the store until the cluster is there again; with everything written ahead there are more moments to die at.
fn killed_while_committing(label: &str, commit_bytes: usize) {
    let Some(cluster) = Cluster::own(label, "memory") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut options = cluster.options();
        options.commit_bytes = commit_bytes;
        let store = cluster.open(&options).await.unwrap();
        let database = store.lookup(&"a".try_into().unwrap(), true).await.unwrap();
        let template = DatabaseCommit {
            database,
            base: Version::ZERO,
            epoch: store.fence(database).await.unwrap(),
            page_size: PageSize::MIN,
            page_count: PageCount::try_from(PAGES).unwrap(),
            stagings: Vec::new(),
            pages: Vec::new(),
            restore: None,
        };
        let killer = {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                for _ in 0..3 {
                    tokio::time::sleep(Duration::from_millis(700)).await;
                    cluster.kill_server();
                    // Until it is there again.
                    tokio::time::sleep(Duration::from_secs(4)).await;
                }
            })
        };
        let mut base = 0;
        while base < COMMITS || !killer.is_finished() {
            let outcome = store.commit(commit_on(&template, base)).await.unwrap();
            assert_eq!(
                outcome,
                CommitOutcome::Committed(vec![Version::new(base + 1)])
            );
            base += 1;
        }
        killer.await.unwrap();
        // Of commits, nearly always: the beat writes once a second. What became of them was found out by their ids, as in `unknown.rs`.
        let unknown = store.unknown_outcomes();
        println!("{base} commits, {unknown} answers of the cluster lost");
        assert!(
            unknown > 0,
            "no outcome was unknown: this has shown nothing"
        );
        assert_eq!(
            store.head(database).await.unwrap().version,
            Version::new(base)
        );
        for version in 1..=base {
            let all: Vec<_> = (1..=PAGES)
                .map(|n| PageNumber::try_from(n).unwrap())
                .collect();
            let read = store
                .read(database, Version::new(version), &all)
                .await
                .unwrap();
            for page in read {
                assert!(page.content.iter().all(|byte| *byte == stamp(version)));
                assert_eq!(page.version, Version::new(version));
            }
        }
        assert_eq!(store.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_cluster_that_is_killed_applies_each_commit_once() {
    killed_while_committing("killed", 4 << 20);
}

#[test]
fn a_cluster_that_is_killed_applies_each_large_commit_once() {
    killed_while_committing("killed-ahead", 0);
}
