//! What uploads take in memory, of all clients together (STG1 of `staging.rs`), and what is left of one that was dropped (STG2).

use std::sync::Arc;

use pagewire_proto::{DatabaseId, PageCount, PageSize, StagingId, Version};
use pagewire_server::store::{CommitOutcome, DatabaseCommit, PageStore, StoreError};
use pagewire_shadow::ShadowOptions;
use pagewire_shadow::testing::{Kind, Medium};

use crate::scene::{PAGES, part, server_with, writes};

/// Some ten uploads.
fn small() -> ShadowOptions {
    ShadowOptions {
        staging_bytes: 10 * PAGES as usize * 600,
        ..ShadowOptions::default()
    }
}

#[tokio::test]
async fn stg1_many_small_uploads_become_segments_and_can_be_committed() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, small()).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    let stagings: Vec<_> = (0..100).map(|_| StagingId::random().unwrap()).collect();
    for (index, staging) in stagings.iter().enumerate() {
        let pages = writes(PageSize::MIN, 1..=PAGES, index as u64 + 1);
        let staged = server.store.stage(a, *staging, PageSize::MIN, pages);
        staged.await.unwrap();
    }
    // At most eleven of them fit into memory.
    let puts = server.kv.calls().puts;
    assert!((89..100).contains(&puts), "{puts} became segments");
    for (base, staging) in stagings.into_iter().enumerate() {
        let commit = DatabaseCommit {
            stagings: vec![staging],
            pages: Vec::new(),
            ..part(a, base as u64, epoch)
        };
        let made = Version::new(base as u64 + 1);
        let outcome = server.commit(vec![commit]).await.unwrap();
        assert_eq!(outcome, CommitOutcome::Committed(vec![made]));
        server.check(a).await;
    }
}

#[tokio::test]
async fn stg1_uploads_are_refused_while_the_store_below_takes_none() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, small()).await;
    let a = server.database("a").await;
    server.kv.hold(Kind::Put, "d/");
    let stage = |index: u64| {
        let store = Arc::clone(&server.store);
        let pages = writes(PageSize::MIN, 1..=PAGES, index + 1);
        let staging = StagingId::random().unwrap();
        tokio::spawn(async move { store.stage(a, staging, PageSize::MIN, pages).await })
    };
    let mut calls: Vec<_> = (0..60).map(stage).collect();
    server.kv.held().await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    // At least a third is in memory or on its way, and some were refused.
    let ended = calls.extract_if(.., |call| call.is_finished());
    let ended: Vec<_> = ended.collect();
    let (mut taken, mut refused) = (0, 0);
    for call in ended {
        match call.await.unwrap() {
            Ok(()) => taken += 1,
            Err(StoreError::Unavailable(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        taken >= 9 && refused >= 30,
        "{taken} taken, {refused} refused"
    );
    server.kv.let_go();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    // There is room again.
    stage(99).await.unwrap().unwrap();
}

/// Has a large staging of `a`, lets something happen to `a`, and stages for `b` until it is the turn of the largest.
async fn nobody_is_kept_by(happens: impl AsyncFnOnce(&Arc<Medium>, DatabaseId)) {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, small()).await;
    let (a, b) = (server.database("a").await, server.database("b").await);
    let large = writes(PageSize::MIN, 1..=9 * PAGES, 1);
    let id = StagingId::random().unwrap();
    let staged = server.store.stage(a, id, PageSize::MIN, large);
    staged.await.unwrap();
    happens(&medium, a).await;
    server.store.drop_caches();
    for round in 0..30 {
        if round == 5 {
            assert_eq!(medium.keys("d/"), Vec::<String>::new());
        }
        let pages = writes(PageSize::MIN, 1..=PAGES, 1);
        let id = StagingId::random().unwrap();
        let staged = server.store.stage(b, id, PageSize::MIN, pages);
        staged.await.unwrap();
    }
}

/// A staging of a database that another server has removed is in nobody's way.
#[tokio::test]
async fn stg1_what_is_staged_for_a_removed_database_goes() {
    nobody_is_kept_by(async |medium, _| {
        let other = server_with(medium, small()).await;
        other.store.remove(&crate::scene::name("a")).await.unwrap();
    })
    .await;
}

/// And one of a database whose root is damaged: others are not told of it, and stage on.
#[tokio::test]
async fn stg1_what_is_staged_for_a_damaged_database_is_in_nobodys_way() {
    nobody_is_kept_by(async |medium, a| medium.damage(&format!("r/{a}"), 20)).await;
}

/// Nor is a part of it committed when the root can be read again.
#[tokio::test]
async fn stg2_what_was_dropped_in_part_is_not_committed_in_part() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, small()).await;
    let (a, b) = (server.database("a").await, server.database("b").await);
    let epoch = server.fence(a).await;
    let id = StagingId::random().unwrap();
    let stage = |database, id, pages| {
        let pages = writes(PageSize::MIN, pages, 1);
        server.store.stage(database, id, PageSize::MIN, pages)
    };
    stage(a, id, 1..=9 * PAGES).await.unwrap();
    medium.damage(&format!("r/{a}"), 20);
    server.store.drop_caches();
    for _ in 0..5 {
        let other = StagingId::random().unwrap();
        stage(b, other, 1..=PAGES).await.unwrap();
    }
    // The same bit once more: as it was.
    medium.damage(&format!("r/{a}"), 20);
    server.store.drop_caches();
    let second = stage(a, id, 9 * PAGES + 1..=10 * PAGES).await;
    assert!(
        matches!(second, Err(StoreError::StagingUnknown(_))),
        "{second:?}"
    );
    let commit = || {
        let commit = DatabaseCommit {
            stagings: vec![id],
            pages: Vec::new(),
            page_count: PageCount::try_from(10 * PAGES).unwrap(),
            ..part(a, 0, epoch)
        };
        server.commit(vec![commit])
    };
    let committed = commit().await;
    assert!(
        matches!(committed, Err(StoreError::StagingUnknown(_))),
        "{committed:?}"
    );
    // From the beginning, under the same id.
    server.store.discard(id).await.unwrap();
    stage(a, id, 1..=10 * PAGES).await.unwrap();
    commit().await.unwrap();
}
