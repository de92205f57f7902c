//! What the store keeps beside the versions does not grow with the calls.

use pagewire_proto::PageCount;
use pagewire_server::clock::ManualClock;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn store(clock: &ManualClock) -> VersionedMemoryStore {
    VersionedMemoryStore::with_options(VersionedMemoryOptions {
        retention: Some(HOUR),
        clock: clock.clock(),
    })
    .unwrap()
}

async fn commit(store: &VersionedMemoryStore, (database, epoch): (DatabaseId, Epoch), base: u64) {
    let part = DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: PageSize::MIN,
        page_count: PageCount::try_from(1).unwrap(),
        stagings: Vec::new(),
        pages: Vec::new(),
        restore: None,
    };
    let (id, databases) = (CommitId::random().unwrap(), vec![part]);
    store.commit(Commit { id, databases }).await.unwrap();
}

async fn database(store: &VersionedMemoryStore, name: &str) -> (DatabaseId, Epoch) {
    let name = DatabaseName::try_from(name).unwrap();
    let id = store.lookup(&name, true).await.unwrap();
    (id, store.fence(id).await.unwrap())
}

/// OLD1: a server that does nothing but commit keeps one time for each database, and every version goes in its time all the same.
#[tokio::test]
async fn old1_commits_leave_one_due_time_for_each_database() {
    let clock = ManualClock::default();
    let store = store(&clock);
    let (a, b) = (database(&store, "a").await, database(&store, "b").await);
    for base in 0..500 {
        clock.advance(HOUR / 100);
        commit(&store, a, base).await;
        commit(&store, b, base).await;
    }
    assert_eq!(store.state.read().dues(), 2);
    let kept = async || store.versions(a.0, None, false, 1000).await.unwrap().len();
    // One due time after the other.
    for _ in 0..110 {
        let before = kept().await;
        clock.advance(HOUR / 100);
        store.head(b.0).await.unwrap();
        assert!(
            kept().await >= before.saturating_sub(2),
            "before their time"
        );
    }
    assert_eq!(kept().await, 1);
    assert_eq!(store.state.read().dues(), 0);
    store
        .remove(&DatabaseName::try_from("a").unwrap())
        .await
        .unwrap();
    assert_eq!(store.state.read().dues(), 0);
}

/// V4: an id that was removed is remembered for as long as a call that makes it may be under way, and not for ever.
#[tokio::test]
async fn v4_the_id_of_a_removed_branch_is_not_given_to_another() {
    let clock = ManualClock::default();
    let store = store(&clock);
    let a = database(&store, "a").await;
    commit(&store, a, 0).await;
    let (id, name) = (
        DatabaseId::random().unwrap(),
        DatabaseName::try_from("branch").unwrap(),
    );
    let branch = async || store.branch(a.0, &Moment::Age(0), id, &name).await;
    branch().await.unwrap();
    store.remove(&name).await.unwrap();
    let again = branch().await;
    assert!(matches!(again, Err(StoreError::NameTaken(_))), "{again:?}");
    assert!(store.lookup(&name, false).await.is_err());
    clock.advance(HOUR * 2);
    for _ in 0..2 {
        database(&store, "b").await;
        store
            .remove(&DatabaseName::try_from("b").unwrap())
            .await
            .unwrap();
    }
    assert!(!store.state.read().was_removed(id));
}

/// V4: and for as long as a branch stands on it.
#[tokio::test]
async fn v4_the_id_of_a_removed_database_is_kept_while_a_branch_stands_on_it() {
    let clock = ManualClock::default();
    let store = store(&clock);
    let a = database(&store, "a").await;
    commit(&store, a, 0).await;
    let branch = DatabaseName::try_from("branch").unwrap();
    let id = DatabaseId::random().unwrap();
    store
        .branch(a.0, &Moment::Age(0), id, &branch)
        .await
        .unwrap();
    let remove = async |name: &str| store.remove(&DatabaseName::try_from(name).unwrap()).await;
    remove("a").await.unwrap();
    for _ in 0..3 {
        clock.advance(HOUR * 2);
        database(&store, "b").await;
        remove("b").await.unwrap();
        assert!(store.state.read().was_removed(a.0));
    }
    remove("branch").await.unwrap();
    for _ in 0..2 {
        clock.advance(HOUR * 2);
        database(&store, "b").await;
        remove("b").await.unwrap();
    }
    assert!(!store.state.read().was_removed(a.0));
}
