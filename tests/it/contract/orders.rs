//! Calls in orders in which SQLite would not make them.

use std::ffi::c_int;
use std::ptr;

use pagewire_tests::connection::{assert_sound, number, open, rows};
use pagewire_tests::random::Random;
use pagewire_tests::server::{PageServer, VersionedStore};
use rusqlite::ffi;

use super::raw::{Name, RawFile};
use super::{EXCLUSIVE, JOURNAL, MAIN, NONE, PAGE, SHARED, filled, length};

pagewire_tests::on_versioned_stores! {
    an_empty_version_is_restored_like_any_other
}

/// SQLite itself never makes one after the first; a VFS above this one, and other clients, may.
fn an_empty_version_is_restored_like_any_other(store: VersionedStore) {
    let server = PageServer::on(store, &[]);
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let sql = open(&server.endpoint(), "t.db");
    let tables = "SELECT count(*) FROM sqlite_schema";
    let newest = "SELECT max(version) FROM pagewire_versions";
    let full = number(&sql, newest);
    let mut main = RawFile::open(name.0, MAIN).expect("open");
    assert_eq!(main.lock(EXCLUSIVE), ffi::SQLITE_OK);
    assert_eq!(main.truncate(0), ffi::SQLITE_OK);
    assert_eq!(main.commit(), ffi::SQLITE_OK);
    let phase_two = ffi::SQLITE_FCNTL_COMMIT_PHASETWO;
    assert_eq!(main.control(phase_two, ptr::null_mut()), ffi::SQLITE_OK);
    drop(main);
    assert_eq!(number(&sql, tables), 0);
    let empty = number(&sql, newest);
    assert_eq!(empty, full + 1);
    // From empty to full, to empty, and on from there with another page size.
    let restore = |version: i64| number(&sql, &format!("SELECT pagewire_restore({version})"));
    assert_eq!(restore(full), empty + 1);
    assert_eq!(number(&sql, "SELECT count(*) FROM t"), 300);
    assert_eq!(restore(empty), empty + 2);
    assert_eq!(number(&sql, tables), 0);
    // Who knows the empty schema finds the new one: its cookie is another one.
    let third = open(&server.endpoint(), "t.db");
    assert_eq!(number(&third, tables), 0);
    let of_newest = "SELECT restored_from, page_count FROM pagewire_versions LIMIT 1";
    assert_eq!(rows(&sql, of_newest).expect("rows"), [format!("{empty}|0")]);
    sql.execute_batch("PRAGMA page_size = 8192; CREATE TABLE u(x); INSERT INTO u VALUES(7)")
        .expect("write");
    let elsewhere = open(&server.endpoint(), "t.db");
    assert_eq!(number(&elsewhere, "SELECT x FROM u"), 7);
    assert_eq!(number(&third, "SELECT x FROM u"), 7);
    assert_sound(&elsewhere);
    assert_eq!(restore(full), number(&sql, newest));
    assert_eq!(number(&elsewhere, "SELECT count(*) FROM t"), 300);
    assert_sound(&elsewhere);
}

/// What a transaction does on the raw interface is one, and what never reached its commit point is nothing.
#[test]
fn odd_orders_neither_crash_nor_commit_what_was_not_to_be() {
    let server = PageServer::memory();
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let mut main = RawFile::open(name.0, MAIN).expect("open");
    // Everything before any lock.
    assert_eq!(main.unlock(NONE), ffi::SQLITE_OK);
    assert_eq!(main.unlock(SHARED), ffi::SQLITE_OK);
    assert_eq!(main.commit(), ffi::SQLITE_OK);
    assert_eq!(main.sync(), ffi::SQLITE_OK);
    assert_eq!(main.truncate(0), ffi::SQLITE_OK);
    assert_ne!(main.write(&[1; PAGE], 0), ffi::SQLITE_OK);
    assert_eq!(main.read(100, 0).0, ffi::SQLITE_OK);
    for op in [
        ffi::SQLITE_FCNTL_COMMIT_PHASETWO,
        ffi::SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE,
        ffi::SQLITE_FCNTL_COMMIT_ATOMIC_WRITE,
        ffi::SQLITE_FCNTL_BEGIN_ATOMIC_WRITE,
    ] {
        assert_eq!(main.control(op, ptr::null_mut()), ffi::SQLITE_OK, "{op}");
    }
    // All that SQLite has before a COMMIT, and then no commit: with and without a shared lock in between.
    for down_to in [NONE, SHARED] {
        assert_eq!(main.lock(EXCLUSIVE), ffi::SQLITE_OK);
        let size = length(&mut main);
        assert_eq!(main.write(&[7; PAGE], 0), ffi::SQLITE_OK);
        assert_eq!(
            main.write(&[7; 3], i64::try_from(size).expect("a size") - 1),
            ffi::SQLITE_OK
        );
        assert_eq!(length(&mut main), size + 2);
        assert_eq!(main.read(10, 0), (ffi::SQLITE_OK, vec![7; 10]));
        assert_eq!(main.truncate(10), ffi::SQLITE_OK);
        assert_eq!(main.read(12, 0).0, ffi::SQLITE_IOERR_SHORT_READ);
        assert_eq!(main.sync(), ffi::SQLITE_OK);
        let phase_two = ffi::SQLITE_FCNTL_COMMIT_PHASETWO;
        assert_eq!(main.control(phase_two, ptr::null_mut()), ffi::SQLITE_OK);
        assert_eq!(main.unlock(down_to), ffi::SQLITE_OK);
        assert_eq!(length(&mut main), size);
        assert_eq!(
            main.read(16, 0),
            (ffi::SQLITE_OK, b"SQLite format 3\0".to_vec())
        );
        assert_eq!(main.unlock(NONE), ffi::SQLITE_OK);
    }
    // A file that is closed in the middle.
    assert_eq!(main.lock(EXCLUSIVE), ffi::SQLITE_OK);
    assert_eq!(main.write(&[7; PAGE], 0), ffi::SQLITE_OK);
    drop(main);
    let looks = open(&server.endpoint(), "t.db");
    assert_eq!(number(&looks, "SELECT count(*) FROM t"), 300);
    assert_sound(&looks);
}

#[test]
fn any_order_of_calls_before_the_commit_point_leaves_the_database_as_it_was() {
    let mut random = Random::start();
    let server = PageServer::memory();
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let whole = {
        let mut main = RawFile::open(name.0, MAIN).expect("open");
        assert_eq!(main.lock(SHARED), ffi::SQLITE_OK);
        let size = length(&mut main);
        main.read(size, 0).1
    };
    for _ in 0..20 {
        let mut main = RawFile::open(name.0, MAIN).expect("open");
        let mut journal = None;
        for _ in 0..120 {
            let at = random.below(2 * whole.len() as u64) as i64;
            let amount = random.below(3 * PAGE as u64) as usize;
            match random.below(13) {
                0 => drop(main.lock(random.below(5) as c_int)),
                1 => assert_eq!(main.unlock(random.below(2) as c_int), ffi::SQLITE_OK),
                2..=4 => {
                    let (rc, read) = main.read(amount, at);
                    assert!(
                        rc == ffi::SQLITE_OK || rc == ffi::SQLITE_IOERR_SHORT_READ,
                        "{rc}"
                    );
                    assert_eq!(read.len(), amount);
                }
                5 | 6 => drop(main.write(&vec![9; amount], at)),
                7 => drop(main.truncate(at)),
                8 => drop(main.size()),
                9 => drop(main.is_reserved()),
                10 => assert_eq!(main.sync(), ffi::SQLITE_OK),
                11 => {
                    journal = match journal {
                        None => Some(RawFile::open(name.journal(), JOURNAL).expect("journal")),
                        Some(_) => None,
                    };
                }
                _ => {
                    if let Some(journal) = &mut journal {
                        assert_eq!(journal.write(&vec![9; amount], at), ffi::SQLITE_OK);
                        let (rc, read) = journal.read(amount, at);
                        assert_eq!((rc, read), (ffi::SQLITE_OK, vec![9; amount]));
                    }
                }
            }
        }
    }
    let mut main = RawFile::open(name.0, MAIN).expect("open");
    assert_eq!(main.lock(SHARED), ffi::SQLITE_OK);
    assert_eq!(main.read(whole.len(), 0), (ffi::SQLITE_OK, whole));
    drop(main);
    let looks = open(&server.endpoint(), "t.db");
    assert_sound(&looks);
    looks
        .execute("INSERT INTO t(v) VALUES('on')", [])
        .expect("write");
    assert_eq!(
        rows(&looks, "SELECT count(*) FROM t").expect("rows"),
        ["301"]
    );
}
