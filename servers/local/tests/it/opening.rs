//! What is refused, and how it is said.

use std::process::Command;

use pagewire_local::keys::Key;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{CommitId, PageCount, PageNumber, PageSize, StagingId, Version};
use pagewire_server::store::{
    Commit, CommitOutcome, DatabaseCommit, PageStore, PageWrite, StoreError,
};

use crate::scene::{self, row_places};

#[test]
fn a_directory_that_another_process_has_open_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalStore::open(directory.path()).unwrap();
    let output = elsewhere(directory.path());
    assert!(output.contains("is open in another process"), "{output}");
    // Twice in one process is no better.
    let error = LocalStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
    drop(store);
    let output = elsewhere(directory.path());
    assert!(output.contains("opened"), "{output}");
}

fn elsewhere(directory: &std::path::Path) -> String {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["opening::child", "--exact", "--ignored", "--nocapture"])
        .env("PAGEWIRE_TEST_DIRECTORY", directory)
        .output()
        .unwrap();
    String::from_utf8_lossy(&child.stdout).into_owned()
}

#[test]
#[ignore = "the other process of a test"]
fn child() {
    #[expect(clippy::disallowed_methods, reason = "how the test says where")]
    let directory = std::env::var("PAGEWIRE_TEST_DIRECTORY").unwrap();
    match LocalStore::open(directory.as_ref()) {
        Ok(_) => println!("opened"),
        Err(error) => println!("{error}"),
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    drop(LocalStore::open(directory.path()).unwrap());
    rewrite_row(directory.path(), &Key::Format, &5_u32.to_be_bytes());
    let error = LocalStore::open(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("has format 5, this program reads format 4: use the program that wrote it"),
        "{error}"
    );
}

/// One of before there was a log has none of its files, and is no store that lost them.
#[test]
fn a_store_of_an_older_format_is_refused_with_a_sentence_and_not_written() {
    let directory = tempfile::tempdir().unwrap();
    drop(LocalStore::open(directory.path()).unwrap());
    let remove = |name: &str| std::fs::remove_file(directory.path().join(name)).unwrap();
    remove("checkpoint");
    let error = LocalStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    assert!(error.to_string().contains("it is missing"), "{error}");
    ["log.0", "log.1"].into_iter().for_each(remove);
    rewrite_row(directory.path(), &Key::Format, &3_u32.to_be_bytes());
    let before = std::fs::read(directory.path().join("data.mdb")).unwrap();
    let error = LocalStore::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    let told = error.to_string();
    assert!(
        told.contains("has format 3, this program reads format 4: use the program that wrote it"),
        "{told}"
    );
    assert!(std::fs::read(directory.path().join("data.mdb")).unwrap() == before);
}

#[test]
fn a_damaged_row_of_the_store_itself_is_said_to_be_damaged() {
    let directory = tempfile::tempdir().unwrap();
    drop(LocalStore::open(directory.path()).unwrap());
    let path = directory.path().join("data.mdb");
    let mut bytes = std::fs::read(&path).unwrap();
    let incarnation = row_places(&bytes, &Key::Incarnation, 24);
    assert!(!incarnation.is_empty());
    incarnation.iter().for_each(|at| bytes[at + 13] ^= 1);
    std::fs::write(&path, bytes).unwrap();
    let error = LocalStore::open(directory.path()).unwrap_err();
    let StoreError::Corrupt(message) = error else {
        panic!("{error:?}");
    };
    assert_eq!(message, "the incarnation of the store: checksum differs");
}

/// Writes another body, with its checksum, where the row is in the file.
fn rewrite_row(directory: &std::path::Path, key: &Key, body: &[u8]) {
    let path = directory.join("data.mdb");
    let mut bytes = std::fs::read(&path).unwrap();
    let places = row_places(&bytes, key, body.len() + 8);
    assert!(!places.is_empty());
    let mut sum = crc32fast::Hasher::new();
    sum.update(body);
    sum.update(&key.encode());
    let key_sum = crc32fast::hash(&key.encode()).to_be_bytes();
    let row = [&sum.finalize().to_be_bytes()[..], &key_sum, body].concat();
    for at in places {
        bytes[at..at + row.len()].copy_from_slice(&row);
    }
    std::fs::write(&path, bytes).unwrap();
}

#[tokio::test]
async fn a_full_store_refuses_a_commit_and_works_on() {
    let directory = tempfile::tempdir().unwrap();
    let options = LocalOptions {
        map_bytes: 1 << 20,
        ..LocalOptions::default()
    };
    let store = LocalStore::open_with(directory.path(), options).unwrap();
    let id = scene::database(&store, 0).await;
    let epoch = store.fence(id).await.unwrap();
    let commit = |base, pages: u32| Commit {
        id: CommitId::random().unwrap(),
        databases: vec![DatabaseCommit {
            database: id,
            base: Version::new(base),
            epoch,
            page_size: PageSize::MIN,
            page_count: PageCount::try_from(4096).unwrap(),
            stagings: Vec::new(),
            restore: None,
            pages: (1..=pages)
                .map(|number| PageWrite {
                    number: PageNumber::try_from(number).unwrap(),
                    content: scene::content(0, number, base + 1),
                })
                .collect(),
        }],
    };
    assert_eq!(
        store.commit(commit(0, 4)).await.unwrap(),
        CommitOutcome::Committed(vec![Version::new(1)])
    );
    let full = store.commit(commit(1, 4000)).await;
    assert!(matches!(full, Err(StoreError::Full(_))), "{full:?}");
    assert_eq!(store.head(id).await.unwrap().version, Version::new(1));
    assert_eq!(
        store.commit(commit(1, 4)).await.unwrap(),
        CommitOutcome::Committed(vec![Version::new(2)])
    );
    // A staging of a commit that found no room is still there for another try.
    let staging = StagingId::random().unwrap();
    let page = PageWrite {
        number: PageNumber::FIRST,
        content: scene::content(0, 1, 77),
    };
    store
        .stage(id, staging, PageSize::MIN, vec![page])
        .await
        .unwrap();
    let mut large = commit(2, 4000);
    large.databases[0].stagings.push(staging);
    let full = store.commit(large).await;
    assert!(matches!(full, Err(StoreError::Full(_))), "{full:?}");
    let mut small = commit(2, 0);
    small.databases[0].stagings.push(staging);
    assert_eq!(
        store.commit(small).await.unwrap(),
        CommitOutcome::Committed(vec![Version::new(3)])
    );
    let page = store.read(id, Version::new(3), &[PageNumber::FIRST]).await;
    assert_eq!(page.unwrap()[0].content, scene::content(0, 1, 77));
}
