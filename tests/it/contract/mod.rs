//! The VFS through its C interface, without SQLite above it: what every method does with buffers that hold garbage, in orders in
//! which SQLite would not call, and with arguments that it would not pass. Nothing crashes, nothing is written beside a buffer, and
//! no byte of a buffer stays what it was by chance.

#![expect(
    unsafe_code,
    reason = "the C interface is what is tested, called as C would"
)]

mod arguments;
mod commits;
mod orders;
mod raw;

use std::ffi::c_int;
use std::ptr;

use pagewire_tests::connection::open;
use pagewire_tests::server::PageServer;
use rusqlite::ffi;

use raw::{Name, RawFile, vfs};

const PAGE: usize = 4096;
const MAIN: c_int = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;
const JOURNAL: c_int =
    ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;

const NONE: c_int = ffi::SQLITE_LOCK_NONE;
const SHARED: c_int = ffi::SQLITE_LOCK_SHARED;
const RESERVED: c_int = ffi::SQLITE_LOCK_RESERVED;
const EXCLUSIVE: c_int = ffi::SQLITE_LOCK_EXCLUSIVE;

fn primary(rc: c_int) -> c_int {
    rc & 0xff
}

/// A database of some pages, on a server.
fn filled(server: &PageServer) {
    open(&server.endpoint(), "t.db")
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 300)
               INSERT INTO t SELECT i, printf('%0100d', i) FROM n",
        )
        .expect("fill");
}

fn length(file: &mut RawFile) -> usize {
    let (rc, size) = file.size();
    assert_eq!(rc, ffi::SQLITE_OK);
    usize::try_from(size).expect("a size")
}

#[test]
fn h6_check_reserved_lock_needs_no_place_for_its_answer() {
    let server = PageServer::memory();
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let mut main = RawFile::open(name.0, MAIN).expect("open");
    let mut journal = RawFile::open(name.journal(), JOURNAL).expect("open the journal");
    for level in [NONE, SHARED, RESERVED, EXCLUSIVE] {
        assert_eq!(main.lock(level), ffi::SQLITE_OK, "{level}");
        let held = c_int::from(level >= RESERVED);
        assert_eq!(main.is_reserved(), (ffi::SQLITE_OK, held), "{level}");
        assert_eq!(journal.is_reserved(), (ffi::SQLITE_OK, 0), "{level}");
        for file in [&mut main, &mut journal] {
            let check = file
                .methods()
                .xCheckReservedLock
                .expect("xCheckReservedLock");
            // SAFETY: the file is open; null is what is tried.
            let rc = unsafe { check(file.file(), ptr::null_mut()) };
            assert_eq!(rc, ffi::SQLITE_OK, "{level}");
        }
    }
}

#[test]
fn w20_a_short_read_zeroes_the_rest_of_the_buffer_and_says_so() {
    let server = PageServer::memory();
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let mut main = RawFile::open(name.0, MAIN).expect("open");
    assert_eq!(main.lock(SHARED), ffi::SQLITE_OK);
    let size = length(&mut main);
    let (rc, whole) = main.read(size, 0);
    assert_eq!(rc, ffi::SQLITE_OK);
    assert_eq!(&whole[..16], b"SQLite format 3\0");
    // Unaligned, across pages, across the end, beyond it, very large.
    for (amount, at) in [
        (100, 0),
        (16, 24),
        (PAGE - 1, 4 * PAGE),
        (3 * PAGE, PAGE / 2),
        (1, size - 1),
        (2, size - 1),
        (PAGE, size - PAGE / 2),
        (PAGE, size),
        (16 << 20, PAGE),
        (0, 0),
        (0, size + 1),
    ] {
        let (rc, read) = main.read(amount, i64::try_from(at).expect("an offset"));
        let there = size.saturating_sub(at).min(amount);
        let wanted = if there == amount {
            ffi::SQLITE_OK
        } else {
            ffi::SQLITE_IOERR_SHORT_READ
        };
        assert_eq!(rc, wanted, "{amount} at {at}");
        assert!(
            read[..there] == whole[at.min(size)..][..there],
            "{amount} at {at}"
        );
        assert!(
            read[there..].iter().all(|byte| *byte == 0),
            "{amount} at {at}"
        );
    }
    for at in [1 << 40, i64::MAX - 1, i64::MAX] {
        let (rc, read) = main.read(PAGE, at);
        assert_eq!(rc, ffi::SQLITE_IOERR_SHORT_READ, "at {at}");
        assert!(read.iter().all(|byte| *byte == 0), "at {at}");
    }
}

#[test]
fn a_journal_is_a_file_of_zeros_where_nothing_was_written() {
    let server = PageServer::memory();
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let _main = RawFile::open(name.0, MAIN).expect("open");
    let mut journal = RawFile::open(name.journal(), JOURNAL).expect("open the journal");
    let (rc, read) = journal.read(100, 0);
    assert_eq!((rc, read), (ffi::SQLITE_IOERR_SHORT_READ, vec![0; 100]));
    // In memory, and beyond what is kept there.
    for start in [0, 3 << 20] {
        assert_eq!(journal.write(b"hello", start + 10), ffi::SQLITE_OK);
        let (rc, read) = journal.read(20, start);
        assert_eq!(rc, ffi::SQLITE_IOERR_SHORT_READ);
        assert_eq!(read, *b"\0\0\0\0\0\0\0\0\0\0hello\0\0\0\0\0", "{start}");
        assert_eq!(journal.size(), (ffi::SQLITE_OK, start + 15));
    }
    assert_eq!(journal.truncate(12), ffi::SQLITE_OK);
    assert_eq!(
        journal.read(4, 10),
        (ffi::SQLITE_IOERR_SHORT_READ, b"he\0\0".to_vec())
    );
    // Deleted while it is open: it is empty, and what is written goes nowhere.
    let vfs = vfs();
    // SAFETY: the VFS lives for ever, the name as long as the file.
    let delete = || unsafe { (*vfs).xDelete.expect("xDelete")(vfs, name.journal(), 0) };
    assert_eq!(delete(), ffi::SQLITE_OK);
    assert_eq!(delete(), ffi::SQLITE_IOERR_DELETE_NOENT);
    assert_eq!(journal.write(b"lost", 0), ffi::SQLITE_OK);
    assert_eq!(journal.size(), (ffi::SQLITE_OK, 0));
    assert_eq!(
        journal.read(4, 0),
        (ffi::SQLITE_IOERR_SHORT_READ, vec![0; 4])
    );
    assert_eq!(journal.truncate(100), ffi::SQLITE_OK);
    assert_eq!(journal.sync(), ffi::SQLITE_OK);
}
