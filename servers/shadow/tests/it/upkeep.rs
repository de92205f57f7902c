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

/// A name that was given out, perhaps leased, and never committed to is taken back when nobody has leased it for long; one that is leased meanwhile
/// stays.
#[tokio::test(start_paused = true)]
async fn a_name_that_was_never_committed_to_is_taken_back_in_the_end() {
    let hours = Arc::new(std::sync::atomic::AtomicI64::new(1));
    let now = Arc::clone(&hours);
    let options = ShadowOptions {
        clock: Arc::new(move || {
            pagewire_proto::UnixMillis(now.load(std::sync::atomic::Ordering::Relaxed) * 3_600_000)
        }),
        ..ShadowOptions::default()
    };
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, options).await;
    let set = |to| hours.store(to, std::sync::atomic::Ordering::Relaxed);
    let (opened, leased) = (server.database("a").await, server.database("b").await);
    let (kept, born) = (server.database("c").await, server.database("d").await);
    server.fence(leased).await;
    let epoch = server.fence(born).await;
    server.commits(&[(born, 0, epoch)]).await;
    set(20);
    server.fence(kept).await;
    server.collect_all().await;
    for database in [opened, leased, kept, born] {
        server.head(database).await;
    }
    set(26);
    server.collect_all().await;
    for database in [opened, leased] {
        let head = server.store.head(database).await;
        assert!(
            matches!(head, Err(StoreError::DatabaseNotFound)),
            "{head:?}"
        );
    }
    assert_eq!((server.head(kept).await, server.check(born).await), (0, 1));
    assert_eq!(server.database("c").await, kept);
    assert_ne!(server.database("a").await, opened);
    // Roots go when no late call can come any more.
    set(30);
    server.collect_all().await;
    assert_eq!(medium.keys(&format!("r/{leased}")), Vec::<String>::new());
}

/// The lease that is given out while the collection takes the name back.
#[tokio::test]
async fn a_name_that_is_leased_and_committed_to_meanwhile_is_not_taken_back() {
    let medium = Arc::new(Medium::default());
    let options = ShadowOptions {
        unborn_after: Duration::ZERO,
        ..ShadowOptions::default()
    };
    let one = server_with(&medium, ShadowOptions::default()).await;
    let collector = server_with(&medium, options).await;
    for (name, commits) in [("a", true), ("b", false)] {
        let id = one.database(name).await;
        one.fence(id).await;
        collector.kv.hold(Kind::Swap, &format!("r/{id}"));
        let collecting = tokio::spawn({
            let store = Arc::clone(&collector.store);
            async move { while store.collect(None).await.unwrap().more {} }
        });
        collector.kv.held().await;
        let epoch = one.fence(id).await;
        if commits {
            one.commits(&[(id, 0, epoch)]).await;
        }
        collector.kv.let_go();
        collecting.await.unwrap();
        assert_eq!(one.check(id).await, u64::from(commits));
        if !commits {
            one.commits(&[(id, 0, epoch)]).await;
        }
        assert_eq!(collector.check(id).await, 1);
    }
}

/// Slots are there while they are used or protect something.
#[tokio::test]
async fn nothing_is_kept_of_databases_that_nobody_uses() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, ShadowOptions::default()).await;
    server
        .store
        .begin_service(Duration::from_secs(5))
        .await
        .unwrap();
    let peers = server.store.peers().unwrap();
    let mut ids = Vec::new();
    for index in 0..20 {
        let id = server.database(&index.to_string()).await;
        peers.claim(id).await.unwrap();
        let epoch = server.fence(id).await;
        server.commits(&[(id, 0, epoch)]).await;
        let resolve = pagewire_server::store::Resolve {
            id: pagewire_proto::CommitId::random().unwrap(),
            participants: vec![(id, Version::new(1), epoch)],
        };
        server.store.resolve(resolve).await.unwrap();
        peers.give_back(id).await.unwrap();
        ids.push((id, server.fence(id).await));
    }
    server.store.collect(Some(ids[0].0)).await.unwrap();
    assert_eq!(server.store.slots_in_memory(), 0);
    let floor = Some(Version::new(1));
    for (id, _) in &ids[..5] {
        server.store.protect(*id, floor, &[]).await.unwrap();
    }
    let parts: Vec<_> = ids.iter().map(|(id, epoch)| (*id, 1, *epoch)).collect();
    server.commits(&parts).await;
    assert_eq!(server.store.slots_in_memory(), 5);
    for (id, _) in &ids[..5] {
        server.store.protect(*id, None, &[]).await.unwrap();
    }
    assert_eq!(server.store.slots_in_memory(), 0);
}
