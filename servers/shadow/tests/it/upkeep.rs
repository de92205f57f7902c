//! What a server does without being asked (U1 to U4 of `upkeep.rs`), and old versions that hold however many commits follow (C10).

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::Version;
use pagewire_server::store::{PageStore, StoreError};
use pagewire_shadow::ShadowOptions;
use pagewire_shadow::testing::{Kind, Medium};

use crate::scene::{Server, greedy, server_with};

/// Passes come often, and nothing is spared because it is young.
fn busy() -> ShadowOptions {
    ShadowOptions {
        collect_every: Duration::from_secs(5),
        ..greedy()
    }
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// A database with some commits, and so with segments that nobody names any more.
async fn with_garbage(server: &Server, medium: &Medium) -> pagewire_proto::DatabaseId {
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    for base in 0..20 {
        server.commits(&[(a, base, epoch)]).await;
    }
    assert!(medium.keys("d/").len() >= 20);
    a
}

#[tokio::test(start_paused = true)]
async fn what_is_abandoned_goes_although_nobody_asks_for_it() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, busy()).await;
    let a = with_garbage(&server, &medium).await;
    server.store.protect(a, None, &[]).await.unwrap();
    seconds(60).await;
    let left = medium.keys("d/").len();
    assert!(left <= 2, "{left} segments are left");
    assert_eq!(server.check(a).await, 20);
}

/// U1: also in the middle of a pass, and of a merge.
#[tokio::test(start_paused = true)]
async fn no_task_outlives_the_store() {
    let medium = Arc::new(Medium::default());
    let before = tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks();
    let server = server_with(&medium, busy()).await;
    with_garbage(&server, &medium).await;
    server.kv.hold(Kind::Delete, "d/");
    server.kv.held().await;
    let alive = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    assert!(alive() > before);
    let Server { kv, store } = server;
    drop(store);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(alive(), before);
    assert_eq!(Arc::strong_count(&kv), 1, "nobody calls it any more");
}

/// U2: the other one waits, takes over from one that sleeps, and that one gives up when it wakes.
#[tokio::test(start_paused = true)]
async fn one_server_of_an_installation_collects_at_a_time() {
    let medium = Arc::new(Medium::default());
    let one = server_with(&medium, busy()).await;
    let a = with_garbage(&one, &medium).await;
    one.kv.hold(Kind::Delete, "d/");
    one.kv.held().await;
    let other = server_with(&medium, busy()).await;
    seconds(50).await;
    let calls = other.kv.calls();
    assert_eq!((calls.lists, calls.deletes, calls.swaps), (0, 0, 0));
    other.kv.hold(Kind::Delete, "d/");
    other.kv.held().await;
    // The first one wakes up in a pass that is not its own any more: what was under way happens, and nothing after it.
    let before = one.kv.calls();
    one.kv.let_go();
    seconds(1).await;
    let calls = one.kv.calls();
    assert_eq!(calls.lists, before.lists);
    assert!(calls.deletes <= before.deletes + 16, "{calls:?}");
    assert!(medium.keys("d/").len() > 2);
    other.kv.let_go();
    seconds(1).await;
    assert!(medium.keys("d/").len() <= 2);
    assert_eq!((one.check(a).await, other.check(a).await), (20, 20));
}

/// U2: a caller waits for the pass of another server instead of being told that nothing is left.
#[tokio::test(start_paused = true)]
async fn a_caller_waits_for_the_pass_of_another_server() {
    let medium = Arc::new(Medium::default());
    let one = server_with(&medium, busy()).await;
    with_garbage(&one, &medium).await;
    one.kv.hold(Kind::Delete, "d/");
    one.kv.held().await;
    let other = server_with(&medium, greedy()).await;
    let asked = tokio::time::Instant::now();
    other.collect_all().await;
    assert!(asked.elapsed() >= Duration::from_secs(55));
    assert!(medium.keys("d/").len() <= 2);
}

/// U3
#[tokio::test(start_paused = true)]
async fn a_database_that_nobody_changes_costs_a_pass_three_calls_and_no_write() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, busy()).await;
    for index in 0..10 {
        let id = server.database(&index.to_string()).await;
        let epoch = server.fence(id).await;
        for base in 0..10 {
            server.commits(&[(id, base, epoch)]).await;
        }
    }
    seconds(60).await;
    let before = server.kv.calls();
    seconds(5).await;
    let calls = server.kv.calls();
    // Of the pass itself: the claim is taken and given back, the roots are listed to their end, then the decisions.
    assert_eq!(calls.swaps - before.swaps, 2);
    assert_eq!((calls.puts, calls.deletes), (before.puts, before.deletes));
    assert_eq!(calls.lists - before.lists, 10 + 3);
    assert_eq!(calls.gets - before.gets, 2 * 10 + 2);
    assert_eq!(calls.ranges, before.ranges);
}

/// U4
#[tokio::test(start_paused = true)]
async fn a_damaged_database_holds_no_collection_up() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, busy()).await;
    let mut ids = Vec::new();
    for index in 0..8 {
        let id = server.database(&index.to_string()).await;
        let epoch = server.fence(id).await;
        for base in 0..10 {
            server.commits(&[(id, base, epoch)]).await;
        }
        ids.push(id);
    }
    let damaged = ids[3];
    medium.damage(&format!("r/{damaged}"), 20);
    server.store.drop_caches();
    seconds(60).await;
    for id in ids {
        let left = medium.keys(&format!("d/{id}/")).len();
        assert_eq!(left > 2, id == damaged, "{left} segments of {id}");
    }
}

/// C10: far more replaced segments than a root has room for; a collector of another process is about all the time.
#[tokio::test(start_paused = true)]
async fn a_floor_holds_however_many_commits_follow() {
    const COMMITS: u64 = 1500;
    let medium = Arc::new(Medium::default());
    let mut options = greedy();
    options.collect_every = Duration::from_secs(3600);
    options.root_entries = 16;
    let server = server_with(&medium, options).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    server.commits(&[(a, 0, epoch)]).await;
    let floor = Some(Version::new(1));
    server.store.protect(a, floor, &[]).await.unwrap();
    for base in 1..COMMITS {
        server.commits(&[(a, base, epoch)]).await;
        if base % 300 == 0 {
            server.store.collect(Some(a)).await.unwrap();
        }
    }
    server.store.collect(Some(a)).await.unwrap();
    for version in (1..=COMMITS).step_by(7).chain([COMMITS]) {
        server.check_at(a, version).await.unwrap();
    }
    // A root stays small, whatever is read.
    let before = server.kv.calls().bytes_written;
    server.commits(&[(a, COMMITS, epoch)]).await;
    let written = server.kv.calls().bytes_written - before;
    assert!(written < 40_000, "{written} bytes");
    // The reader has gone: so has what it read.
    server.store.protect(a, None, &[]).await.unwrap();
    for _ in 0..3 {
        server.store.collect(Some(a)).await.unwrap();
    }
    // Records are kept for an hour, 128 in a value.
    let left = medium.keys("d/").len() as u64;
    assert!(left <= COMMITS / 128 + 20, "{left} are left");
    let gone = server.check_at(a, 1).await;
    assert!(matches!(gone, Err(StoreError::VersionGone { .. })));
    server.check(a).await;
}

/// C10: a pin keeps its own version, and not everything since.
#[tokio::test(start_paused = true)]
async fn a_pin_holds_and_keeps_little_beside_its_version() {
    const COMMITS: u64 = 1500;
    let medium = Arc::new(Medium::default());
    let mut options = greedy();
    options.collect_every = Duration::from_secs(3600);
    options.root_entries = 16;
    let server = server_with(&medium, options).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    for base in 0..10 {
        server.commits(&[(a, base, epoch)]).await;
    }
    // The head is at this floor, so it may be pinned; then the floor rises with the head.
    for base in 10..COMMITS {
        let (floor, pin) = (Some(Version::new(base)), Version::new(10));
        if base % 50 == 0 || base == 10 {
            server.store.protect(a, floor, &[pin]).await.unwrap();
        }
        server.commits(&[(a, base, epoch)]).await;
    }
    for _ in 0..3 {
        server.store.collect(Some(a)).await.unwrap();
    }
    server.check_at(a, 10).await.unwrap();
    server.check(a).await;
    let kept = medium.keys("d/").len();
    assert!(kept < 100, "{kept} segments are kept for one version");
    let gone = server.check_at(a, COMMITS / 2).await;
    assert!(matches!(gone, Err(StoreError::VersionGone { .. })));
}
