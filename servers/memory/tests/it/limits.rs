//! What the memory store gives up beyond its limits: old versions and old records, never right bytes.

use bytes::Bytes;
use pagewire_memory::{MemoryLimits, MemoryStore};
use pagewire_proto::{
    Changes, CommitId, DatabaseId, DatabaseName, Epoch, PageCount, PageNumber, PageSize, Version,
};
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseCommit, PageStore, PageWrite, Resolution, Resolve, StoreError,
};

async fn database(store: &MemoryStore, name: &str) -> (DatabaseId, Epoch) {
    let name = DatabaseName::try_from(name).unwrap();
    let id = store.lookup(&name, true).await.unwrap();
    (id, store.fence(id).await.unwrap())
}

/// Writes page 1 of 512 bytes, all of them the number of the version.
async fn commit(store: &MemoryStore, db: (DatabaseId, Epoch), base: u64) -> CommitId {
    let id = CommitId::random().unwrap();
    let page = PageWrite {
        number: PageNumber::FIRST,
        content: Bytes::from(vec![base as u8 + 1; 512]),
    };
    let part = DatabaseCommit {
        database: db.0,
        base: Version::new(base),
        epoch: db.1,
        page_size: PageSize::MIN,
        page_count: PageCount::try_from(1).unwrap(),
        stagings: Vec::new(),
        restore: None,
        pages: vec![page],
    };
    let databases = vec![part];
    let outcome = store.commit(Commit { id, databases }).await.unwrap();
    let made = CommitOutcome::Committed(vec![Version::new(base + 1)]);
    assert_eq!(outcome, made);
    id
}

async fn read(store: &MemoryStore, id: DatabaseId, version: u64) -> Result<u8, StoreError> {
    let pages = store.read(id, Version::new(version), &[PageNumber::FIRST]);
    Ok(pages.await?[0].content[0])
}

#[tokio::test]
async fn beyond_the_pre_image_limit_the_oldest_protected_versions_are_gone() {
    let limits = MemoryLimits {
        pre_image_bytes: 4 * 512,
        ..MemoryLimits::default()
    };
    let store = MemoryStore::with_limits(limits).unwrap();
    let db = database(&store, "a").await;
    commit(&store, db, 0).await;
    store
        .protect(db.0, Some(Version::new(1)), &[])
        .await
        .unwrap();
    for base in 1..10 {
        commit(&store, db, base).await;
    }
    for version in 1..=10 {
        match read(&store, db.0, version).await {
            Ok(byte) => assert!(byte == version as u8 && version >= 6, "version {version}"),
            Err(StoreError::VersionGone { .. }) => assert!(version < 6, "version {version}"),
            Err(error) => panic!("{error}"),
        }
    }
    // What is given back is there for others.
    store.protect(db.0, None, &[]).await.unwrap();
    let other = database(&store, "b").await;
    commit(&store, other, 0).await;
    store
        .protect(other.0, Some(Version::new(1)), &[])
        .await
        .unwrap();
    for base in 1..5 {
        commit(&store, other, base).await;
    }
    assert_eq!(read(&store, other.0, 1).await.unwrap(), 1);
    store
        .remove(&DatabaseName::try_from("b").unwrap())
        .await
        .unwrap();
    store
        .protect(db.0, Some(Version::new(10)), &[])
        .await
        .unwrap();
    for base in 10..14 {
        commit(&store, db, base).await;
    }
    assert_eq!(read(&store, db.0, 10).await.unwrap(), 10);
}

/// One tenant's reader that stays for long must not cost the readers of another their versions.
#[tokio::test]
async fn the_database_that_keeps_the_most_pays_for_the_limit_whoever_commits() {
    let limits = MemoryLimits {
        pre_image_bytes: 8 * 512,
        ..MemoryLimits::default()
    };
    let store = MemoryStore::with_limits(limits).unwrap();
    let greedy = database(&store, "greedy").await;
    let modest = database(&store, "modest").await;
    for db in [greedy, modest] {
        commit(&store, db, 0).await;
        store
            .protect(db.0, Some(Version::new(1)), &[])
            .await
            .unwrap();
    }
    for base in 1..9 {
        commit(&store, greedy, base).await;
    }
    for base in 1..4 {
        commit(&store, modest, base).await;
    }
    assert_eq!(read(&store, modest.0, 1).await.unwrap(), 1);
    let gone = read(&store, greedy.0, 1).await;
    assert!(matches!(gone, Err(StoreError::VersionGone { .. })));
    assert_eq!(read(&store, greedy.0, 9).await.unwrap(), 9);
}

#[tokio::test]
async fn beyond_the_record_limits_the_answer_is_unknown_or_all() {
    let limits = MemoryLimits {
        records: 6,
        changes: 2,
        ..MemoryLimits::default()
    };
    let store = MemoryStore::with_limits(limits).unwrap();
    let db = database(&store, "a").await;
    let mut ids = Vec::new();
    for base in 0..10 {
        ids.push(commit(&store, db, base).await);
    }
    for (base, id) in ids.iter().enumerate() {
        let participants = vec![(db.0, Version::new(base as u64), db.1)];
        let resolve = Resolve {
            id: *id,
            participants,
        };
        match store.resolve(resolve).await.unwrap() {
            Resolution::Unknown(_) => assert!(base < 4, "{base}"),
            answer => assert!(
                base >= 4 && matches!(answer, Resolution::Committed(_)),
                "{base}: {answer:?}"
            ),
        }
    }
    let changes = async |since| store.changes(db.0, Version::new(since)).await.unwrap().1;
    assert_eq!(changes(8).await, Changes::Pages(vec![PageNumber::FIRST]));
    assert_eq!(changes(7).await, Changes::All);
}

#[tokio::test(start_paused = true)]
async fn records_are_dropped_only_after_their_time() {
    let store = MemoryStore::new().unwrap();
    let db = database(&store, "a").await;
    let first = commit(&store, db, 0).await;
    let resolve = || Resolve {
        id: first,
        participants: vec![(db.0, Version::ZERO, db.1)],
    };
    tokio::time::advance(pagewire_server::store::COMMIT_RECORD_TTL).await;
    commit(&store, db, 1).await;
    let answer = store.resolve(resolve()).await.unwrap();
    assert_eq!(answer, Resolution::Committed(vec![Version::new(1)]));
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    commit(&store, db, 2).await;
    let answer = store.resolve(resolve()).await.unwrap();
    assert!(matches!(answer, Resolution::Unknown(_)), "{answer:?}");
}
