//! Openings: of files of another page size, of stores that are being made, and of damaged ones.

use pagewire_proto::DatabaseName;
use pagewire_server::store::PageStore as _;

use super::*;
use crate::LocalStore;
use crate::directory::{FILES, MAKING_FILE};

/// The roots of an empty file, whose pages have another size than those of the machine.
fn made_elsewhere(page_bytes: usize) -> Vec<u8> {
    let mut file = vec![0; 2 * page_bytes];
    for (number, page) in (0_u64..).zip(file.chunks_mut(page_bytes)) {
        page[..8].copy_from_slice(&number.to_ne_bytes());
        page[10..12].copy_from_slice(&8_u16.to_ne_bytes());
        let (magic, version) = (0xBEEF_C0DE_u32, heed_data_version());
        page[16..20].copy_from_slice(&magic.to_ne_bytes());
        page[20..24].copy_from_slice(&version.to_ne_bytes());
        page[32..40].copy_from_slice(&(1_u64 << 30).to_ne_bytes());
        page[40..44].copy_from_slice(&(page_bytes as u32).to_ne_bytes());
        page[44..46].copy_from_slice(&8_u16.to_ne_bytes());
        page[80..88].copy_from_slice(&u64::MAX.to_ne_bytes());
        page[128..136].copy_from_slice(&u64::MAX.to_ne_bytes());
        page[136..144].copy_from_slice(&1_u64.to_ne_bytes());
    }
    file
}

/// As the engine that is linked in writes it.
fn heed_data_version() -> u32 {
    let directory = tempfile::tempdir().unwrap();
    drop(map(directory.path(), 1 << 20).unwrap());
    let made = std::fs::read(directory.path().join(ROWS_FILE)).unwrap();
    u32::from_ne_bytes(made[20..24].try_into().unwrap())
}

/// A row with the checksum of its key, long enough for pages of its own.
fn row(key: &[u8; 8]) -> Vec<u8> {
    let sum = crc32fast::hash(key).to_be_bytes();
    [&[0; 4], &sum[..], &key.repeat(100)].concat()
}

/// LOG3, TREE1 to TREE6: the size of a page is that of the file, wherever it was made.
#[test]
fn log3_roots_are_put_back_where_the_pages_of_the_file_have_them() {
    let options = LocalOptions::default();
    for page_bytes in [512, 16 << 10] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join(ROWS_FILE), made_elsewhere(page_bytes)).unwrap();
        let held = File::open(path).unwrap();
        let opening = Opening::new(path, &held, true, &options).unwrap();
        let (env, rows, mut log) = opening.open(true).unwrap();
        assert_eq!(
            rows.stat(&env.read_txn().unwrap()).unwrap().page_size as usize,
            page_bytes
        );
        for number in 0..40_u64 {
            let mut txn = env.write_txn().unwrap();
            let mut changes = record::Changes::new();
            let key = number.to_be_bytes();
            rows.put(&mut txn, &key, &row(&key)).unwrap();
            changes.put(&key, &[], &row(&key));
            let id = txn.id() as u64;
            log.append(&env, id, changes).unwrap();
            txn.commit().unwrap();
            log.committed(&env, id, false).unwrap();
            if number == 20 {
                log.checkpoint(&env).unwrap();
            }
        }
        let copy = tempfile::tempdir().unwrap();
        for name in FILES {
            std::fs::copy(path.join(name), copy.path().join(name)).unwrap();
        }
        log.close(&env);
        let held = File::open(copy.path()).unwrap();
        let opening = Opening::new(copy.path(), &held, false, &options).unwrap();
        let (env, rows, mut log) = opening.open(false).unwrap();
        let txn = env.read_txn().unwrap();
        for number in 0..40_u64 {
            let key = number.to_be_bytes();
            assert_eq!(rows.get(&txn, &key).unwrap().unwrap(), row(&key));
        }
        drop(txn);
        log.close(&env);
    }
}

/// DIR3: what is made by one that goes on is not taken away by another, though the file that tells of it is gone.
#[test]
fn dir3_what_is_being_made_is_not_made_anew_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let engine = Engine::open(path, &LocalOptions::default()).unwrap();
    std::fs::remove_file(path.join("LOCK")).unwrap();
    let refused = Engine::open(path, &LocalOptions::default());
    assert!(
        matches!(&refused, Err(StoreError::Unavailable(why)) if why.contains("another process")),
        "{refused:?}"
    );
    assert!(FILES.iter().all(|name| path.join(name).exists()));
    engine.end_making(path).unwrap();
    drop(engine);
    drop(Engine::open(path, &LocalOptions::default()).unwrap());
}

/// A store with the names `a` and `b`, of which a bit of the second has flipped: in all copies of its row, in free pages or not.
fn with_a_damaged_name(path: &Path) -> [DatabaseName; 2] {
    let names = ["a", "b"].map(|name| DatabaseName::try_from(name).unwrap());
    let store = LocalStore::open(path).unwrap();
    for name in &names {
        block_on(store.lookup(name, true)).unwrap();
    }
    drop(store);
    let mut bytes = std::fs::read(path.join(ROWS_FILE)).unwrap();
    let key = Key::Name(names[1].clone()).encode();
    let sum = crc32fast::hash(&key).to_be_bytes();
    let places = (0..bytes.len() - 16).filter(|at| {
        let row = at + key.len();
        bytes[*at..].starts_with(&key) && bytes[row + 4..].starts_with(&sum)
    });
    let places: Vec<_> = places.map(|at| at + key.len() - 1).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at] ^= 1;
    }
    std::fs::write(path.join(ROWS_FILE), bytes).unwrap();
    names
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

/// [`LocalOptions::check_bytes`]: who must get at what is left can, and up to which size nobody has to ask for the pass.
#[test]
fn a_damaged_store_is_refused_up_to_a_size_and_opened_by_whoever_says_so() {
    assert_eq!(LocalOptions::default().check_bytes, 256 << 20);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let names = with_a_damaged_name(path);
    let open = |check_bytes| {
        let options = LocalOptions {
            check_bytes,
            ..LocalOptions::default()
        };
        LocalStore::open_with(path, options)
    };
    let is_refused = |opened: Result<LocalStore, StoreError>| matches!(opened, Err(StoreError::Corrupt(why)) if why.contains("checksum differs"));
    let length = std::fs::metadata(path.join(ROWS_FILE)).unwrap().len();
    assert!(is_refused(open(length)));
    assert!(is_refused(open(u64::MAX)));
    assert!(open(length - 1).is_ok());
    let store = open(0).unwrap();
    assert!(block_on(store.lookup(&names[0], false)).is_ok());
    let damaged = block_on(store.lookup(&names[1], false));
    assert!(
        matches!(damaged, Err(StoreError::Corrupt(_))),
        "{damaged:?}"
    );
    drop(store);
    // The size that holds unless somebody says otherwise; nothing of it has room on the disk.
    let file = File::options()
        .write(true)
        .open(path.join(ROWS_FILE))
        .unwrap();
    for (length, is_looked_at) in [(256 << 20, true), ((256 << 20) + 4096, false)] {
        file.set_len(length).unwrap();
        let opened = open(LocalOptions::default().check_bytes);
        assert_eq!(opened.is_err(), is_looked_at);
        assert!(!is_looked_at || is_refused(opened));
    }
}

/// TREE6: where the pass is off the engine is still given no root that can be none.
#[test]
fn tree6_a_root_is_looked_at_where_the_tree_is_not() {
    let options = LocalOptions {
        check_bytes: 0,
        ..LocalOptions::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(LocalStore::open(path).unwrap());
    let held = File::open(path).unwrap();
    let opening = Opening::new(path, &held, false, &options).unwrap();
    let mut roots = opening.roots().unwrap();
    assert!(opening.check_tree(&roots).is_ok());
    // The flags of the rows' tree: keys would be compared as numbers.
    for root in &mut roots.0 {
        root[92] ^= 0x08;
    }
    let refused = opening.check_tree(&roots);
    assert!(
        matches!(&refused, Err(StoreError::Corrupt(why)) if why.contains("its root")),
        "{refused:?}"
    );
}

/// LOG3: a file of other pages is another file, into which nothing is put.
#[test]
fn log3_a_file_of_other_pages_is_refused_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    drop(Engine::open(path, &LocalOptions::default()).unwrap());
    let mut other = made_elsewhere(16 << 10);
    other.resize(1 << 20, 0);
    std::fs::write(path.join(ROWS_FILE), &other).unwrap();
    // Of one that was not made to its end nothing is kept.
    std::fs::remove_file(path.join(MAKING_FILE)).unwrap();
    let refused = Engine::open(path, &LocalOptions::default());
    assert!(matches!(&refused, Err(StoreError::Corrupt(why)) if why.contains("16384")));
    assert!(std::fs::read(path.join(ROWS_FILE)).unwrap() == other);
}
