//! What the crash tests commit and check: every version of a database writes all of its pages with its own number.
//!
//! Databases 0 and 1 are always committed together; 2 alone; 3 through stagings that do not fit into the buffer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pagewire_local::faults::Faults;
use pagewire_local::keys::Key;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, PageCount, PageNumber, PageSize, StagingId, Version,
};
use pagewire_server::store::{Commit, CommitOutcome, DatabaseCommit, PageStore, PageWrite};

/// Pages of every version.
pub(crate) const PAGES: u32 = 6;
/// Which databases a writer commits together.
pub(crate) const WRITERS: [&[usize]; 3] = [&[0, 1], &[2], &[3]];
/// The database that is committed through stagings.
pub(crate) const STAGED: usize = 3;

pub(crate) fn open(directory: &Path, faults: Option<Arc<Faults>>) -> LocalStore {
    let options = LocalOptions {
        // Many checkpoints.
        checkpoint_bytes: 256 << 10,
        staging_buffer_bytes: 4096,
        // So that collection takes transactions of its own between commits.
        collect_after_quiet: Some(Duration::ZERO),
        faults,
        ..LocalOptions::default()
    };
    LocalStore::open_with(directory, options).expect("the store opens")
}

pub(crate) async fn database(store: &LocalStore, index: usize) -> DatabaseId {
    let name = DatabaseName::try_from(format!("db{index}").as_str()).unwrap();
    store.lookup(&name, true).await.unwrap()
}

/// Bytes that cannot be compressed away, of one version and page.
pub(crate) fn content(index: usize, number: u32, version: u64) -> Bytes {
    let mut state = version * 1_000_003 + u64::from(number) * 101 + index as u64 + 1;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..PageSize::MIN.get()).map(byte).collect()
}

fn writes(index: usize, version: u64) -> Vec<PageWrite> {
    let write = |number| PageWrite {
        number: PageNumber::try_from(number).unwrap(),
        content: content(index, number, version),
    };
    (1..=PAGES).map(write).collect()
}

/// Commits the next version of the databases of a writer; an error is the store's.
pub(crate) async fn commit(
    store: &LocalStore,
    databases: &[(usize, DatabaseId, Epoch)],
    base: u64,
) -> Result<CommitOutcome, pagewire_server::store::StoreError> {
    let mut parts = Vec::new();
    for (index, id, epoch) in databases {
        let mut part = DatabaseCommit {
            database: *id,
            base: Version::new(base),
            epoch: *epoch,
            page_size: PageSize::MIN,
            page_count: PageCount::try_from(PAGES).unwrap(),
            stagings: Vec::new(),
            restore: None,
            pages: writes(*index, base + 1),
        };
        if *index == STAGED {
            // One that is given up, and two that overlap: what counts is in the later one.
            let dead = StagingId::random().unwrap();
            let pages = writes(*index, base + 900);
            store.stage(*id, dead, PageSize::MIN, pages).await?;
            for version in [base + 700, base + 1] {
                let staging = StagingId::random().unwrap();
                for page in writes(*index, version) {
                    store.stage(*id, staging, PageSize::MIN, vec![page]).await?;
                }
                part.stagings.push(staging);
            }
            store.discard(dead).await?;
            part.pages.clear();
        }
        parts.push(part);
    }
    let id = CommitId::random().unwrap();
    let databases = parts;
    store.commit(Commit { id, databases }).await
}

/// Every version up to the head is whole; answers the heads. What was committed together has the same.
pub(crate) async fn check(store: &LocalStore) -> Vec<u64> {
    let numbers: Vec<_> = (1..=PAGES)
        .map(|n| PageNumber::try_from(n).unwrap())
        .collect();
    let mut heads = Vec::new();
    for index in 0..4 {
        let id = database(store, index).await;
        let head = store.head(id).await.unwrap().version.get();
        for version in 1..=head {
            let pages = store
                .read(id, Version::new(version), &numbers)
                .await
                .unwrap();
            for (number, page) in numbers.iter().zip(pages) {
                let right = content(index, number.get(), version);
                assert!(
                    page.content == right && page.version.get() == version,
                    "page {number} of db{index} at version {version} of {head} is torn"
                );
            }
        }
        heads.push(head);
    }
    assert_eq!(heads[0], heads[1], "a commit of two databases is torn");
    heads
}

/// Where rows of this length follow this key: a node of the engine is length (4), flags (2), length of the key (2), key.
pub(crate) fn row_places(bytes: &[u8], key: &Key, length: usize) -> Vec<usize> {
    let key = key.encode();
    let mut node = (length as u32).to_le_bytes().to_vec();
    node.extend([0, 0]);
    node.extend((key.len() as u16).to_le_bytes());
    node.extend(&key);
    let starts = (0..bytes.len() - node.len()).filter(|at| bytes[*at..].starts_with(&node));
    starts.map(|at| at + node.len()).collect()
}

/// Flips a bit of the checksum of a row of this length wherever it is in the file.
pub(crate) fn damage(directory: &Path, key: &Key, length: usize) {
    let path = directory.join("data.mdb");
    let mut bytes = std::fs::read(&path).unwrap();
    let places = row_places(&bytes, key, length);
    assert!(!places.is_empty(), "{key} is not there");
    places.iter().for_each(|at| bytes[at + 3] ^= 1);
    std::fs::write(&path, bytes).unwrap();
}
