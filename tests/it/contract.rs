//! The VFS through its C interface, without SQLite above it: what every method does with buffers that hold garbage, in orders in
//! which SQLite would not call, and with arguments that it would not pass. Nothing crashes, nothing is written beside a buffer, and
//! no byte of a buffer stays what it was by chance.

#![expect(
    unsafe_code,
    reason = "the C interface is what is tested, called as C would"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use pagewire_tests::connection::{assert_sound, number, open, register, rows};
use pagewire_tests::random::Random;
use pagewire_tests::server::{PageServer, VersionedStore};
use rusqlite::ffi;

const PAGE: usize = 4096;
/// Bytes on both sides of a buffer that nobody may touch.
const GUARD: usize = 64;
const POISONS: [u8; 2] = [0xaa, 0x55];

const MAIN: c_int = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;
const JOURNAL: c_int =
    ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;

const NONE: c_int = ffi::SQLITE_LOCK_NONE;
const SHARED: c_int = ffi::SQLITE_LOCK_SHARED;
const RESERVED: c_int = ffi::SQLITE_LOCK_RESERVED;
const EXCLUSIVE: c_int = ffi::SQLITE_LOCK_EXCLUSIVE;

fn vfs() -> *mut ffi::sqlite3_vfs {
    register();
    // SAFETY: the VFS is registered and lives for ever.
    unsafe { ffi::sqlite3_vfs_find(c"pagewire".as_ptr()) }
}

/// The name of a database as SQLite gives it to xOpen: its parameters and the name of its journal stand behind it.
struct Name(*const c_char);

impl Name {
    fn of(server: &PageServer, database: &CStr) -> Self {
        let c = |text: &[u8]| CString::new(text).expect("no zero inside");
        let names =
            ["", "-journal", "-wal"].map(|end| c(&[database.to_bytes(), end.as_bytes()].concat()));
        let parameters = [c(b"endpoint"), c(server.endpoint().as_bytes())];
        let mut pointers: Vec<_> = parameters.iter().map(|text| text.as_ptr()).collect();
        let count = c_int::try_from(pointers.len() / 2).expect("a few");
        // SAFETY: all of them are C strings, which SQLite copies.
        Self(unsafe {
            ffi::sqlite3_create_filename(
                names[0].as_ptr(),
                names[1].as_ptr(),
                names[2].as_ptr(),
                count,
                pointers.as_mut_ptr(),
            )
        })
    }

    fn journal(&self) -> *const c_char {
        // SAFETY: made by sqlite3_create_filename.
        unsafe { ffi::sqlite3_filename_journal(self.0) }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        // SAFETY: made by sqlite3_create_filename, and no file has it any more.
        unsafe { ffi::sqlite3_free_filename(self.0) };
    }
}

/// An open file in memory that held garbage before. Closed when it is dropped.
struct RawFile {
    memory: Vec<u64>,
}

impl RawFile {
    /// The file, or the code with which xOpen refused it.
    fn open(name: *const c_char, flags: c_int) -> Result<Self, c_int> {
        let vfs = vfs();
        // SAFETY: the VFS lives for ever; the memory is as large and aligned as it asks for, and the name lives until the end of
        // the file.
        unsafe {
            let words = usize::try_from((*vfs).szOsFile)
                .expect("a size")
                .div_ceil(8);
            let mut memory = vec![0xaaaa_aaaa_aaaa_aaaa_u64; words];
            let file: *mut ffi::sqlite3_file = memory.as_mut_ptr().cast();
            let mut given = -1;
            let rc = (*vfs).xOpen.expect("xOpen")(vfs, name, file, flags, &mut given);
            if rc == ffi::SQLITE_OK {
                assert!(!(*file).pMethods.is_null());
                return Ok(Self { memory });
            }
            // T18: SQLite would call xClose of whatever is there.
            assert!(
                (*file).pMethods.is_null(),
                "refused with {rc}, and has methods"
            );
            Err(rc)
        }
    }

    fn file(&mut self) -> *mut ffi::sqlite3_file {
        self.memory.as_mut_ptr().cast()
    }

    fn methods(&mut self) -> &'static ffi::sqlite3_io_methods {
        // SAFETY: xOpen has set them; they are static.
        unsafe { &*(*self.file()).pMethods }
    }

    /// xRead into garbage, between guards: the code, and what was read.
    fn read_over(&mut self, poison: u8, amount: usize, offset: i64) -> (c_int, Vec<u8>) {
        let mut memory = vec![poison; GUARD + amount + GUARD];
        let read = self.methods().xRead.expect("xRead");
        // SAFETY: the buffer has `amount` bytes.
        let rc = unsafe {
            let buffer = memory.as_mut_ptr().add(GUARD).cast::<c_void>();
            let amount = c_int::try_from(amount).expect("an int");
            read(self.file(), buffer, amount, offset)
        };
        for guard in [&memory[..GUARD], &memory[GUARD + amount..]] {
            assert!(
                guard.iter().all(|byte| *byte == poison),
                "a guard at {offset}"
            );
        }
        (rc, memory[GUARD..GUARD + amount].to_vec())
    }

    /// The same over two kinds of garbage: none of it is left.
    fn read(&mut self, amount: usize, offset: i64) -> (c_int, Vec<u8>) {
        let [first, second] = POISONS.map(|poison| self.read_over(poison, amount, offset));
        assert!(
            first == second,
            "{amount} bytes at {offset}: garbage is left"
        );
        first
    }

    fn write(&mut self, bytes: &[u8], offset: i64) -> c_int {
        let write = self.methods().xWrite.expect("xWrite");
        let amount = c_int::try_from(bytes.len()).expect("an int");
        // SAFETY: the buffer has `amount` bytes.
        unsafe { write(self.file(), bytes.as_ptr().cast(), amount, offset) }
    }

    fn lock(&mut self, level: c_int) -> c_int {
        let lock = self.methods().xLock.expect("xLock");
        // SAFETY: the file is open.
        unsafe { lock(self.file(), level) }
    }

    fn unlock(&mut self, level: c_int) -> c_int {
        let unlock = self.methods().xUnlock.expect("xUnlock");
        // SAFETY: the file is open.
        unsafe { unlock(self.file(), level) }
    }

    fn truncate(&mut self, size: i64) -> c_int {
        let truncate = self.methods().xTruncate.expect("xTruncate");
        // SAFETY: the file is open.
        unsafe { truncate(self.file(), size) }
    }

    fn sync(&mut self) -> c_int {
        let sync = self.methods().xSync.expect("xSync");
        // SAFETY: the file is open.
        unsafe { sync(self.file(), ffi::SQLITE_SYNC_NORMAL) }
    }

    /// xFileSize into garbage.
    fn size(&mut self) -> (c_int, i64) {
        let file_size = self.methods().xFileSize.expect("xFileSize");
        let mut size = 0x5555_5555_5555_5555;
        // SAFETY: the file is open, and there is a place for the answer.
        let rc = unsafe { file_size(self.file(), &mut size) };
        assert_ne!(
            size, 0x5555_5555_5555_5555,
            "the size is garbage after {rc}"
        );
        (rc, size)
    }

    fn control(&mut self, op: c_int, argument: *mut c_void) -> c_int {
        let control = self.methods().xFileControl.expect("xFileControl");
        // SAFETY: the file is open; the argument is of the type of the operation, or null.
        unsafe { control(self.file(), op, argument) }
    }

    fn is_reserved(&mut self) -> (c_int, c_int) {
        let check = self
            .methods()
            .xCheckReservedLock
            .expect("xCheckReservedLock");
        let mut answer = 0x5555_5555;
        // SAFETY: the file is open, and there is a place for the answer.
        let rc = unsafe { check(self.file(), &mut answer) };
        assert!(answer == 0 || answer == 1, "{answer:x}");
        (rc, answer)
    }

    /// The commit point.
    fn commit(&mut self) -> c_int {
        self.control(ffi::SQLITE_FCNTL_SYNC, ptr::null_mut())
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        let close = self.methods().xClose.expect("xClose");
        // SAFETY: the file is open, and nobody calls anything after it.
        let rc = unsafe { close(self.file()) };
        assert_eq!(rc, ffi::SQLITE_OK);
    }
}

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

/// Each one is refused with an error of its own; after some the connection refuses work, so each has a file of its own.
#[test]
fn arguments_that_sqlite_does_not_pass_are_errors_and_no_crash() {
    let server = PageServer::memory();
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let fresh = || {
        let mut file = RawFile::open(name.0, MAIN).expect("open");
        assert_eq!(file.lock(EXCLUSIVE), ffi::SQLITE_OK);
        file
    };
    for offset in [-1, -4096, i64::MIN] {
        let (rc, read) = fresh().read(64, offset);
        assert_eq!(
            (primary(rc), read),
            (ffi::SQLITE_IOERR, vec![0; 64]),
            "{offset}"
        );
        assert_eq!(primary(fresh().write(b"x", offset)), ffi::SQLITE_IOERR);
        assert_eq!(primary(fresh().truncate(offset)), ffi::SQLITE_IOERR);
    }
    for amount in [-1, c_int::MIN, 1, c_int::MAX] {
        let mut file = fresh();
        let (read, write) = (file.methods().xRead, file.methods().xWrite);
        // SAFETY: the file is open. A null buffer, and a negative amount, of which no byte may be touched, are what is tried.
        unsafe {
            let rc = read.expect("xRead")(file.file(), ptr::null_mut(), amount, 0);
            assert_eq!(primary(rc), ffi::SQLITE_IOERR, "{amount}");
            drop(file);
            let mut file = fresh();
            let rc = write.expect("xWrite")(file.file(), ptr::null(), amount, 0);
            assert_eq!(primary(rc), ffi::SQLITE_IOERR, "{amount}");
        }
        if amount < 0 {
            let mut file = fresh();
            let mut guarded = [0xaa_u8; GUARD];
            // SAFETY: as above.
            let rc = unsafe {
                let buffer = guarded.as_mut_ptr().cast();
                read.expect("xRead")(file.file(), buffer, amount, 0)
            };
            assert_eq!((primary(rc), guarded), (ffi::SQLITE_IOERR, [0xaa; GUARD]));
        }
    }
    // No bytes at all are no error, wherever they are.
    let mut file = fresh();
    let (read, write) = (file.methods().xRead, file.methods().xWrite);
    // SAFETY: the file is open; no byte of the buffers may be touched.
    unsafe {
        let rc = read.expect("xRead")(file.file(), ptr::null_mut(), 0, 0);
        assert_eq!(rc, ffi::SQLITE_OK);
        let rc = write.expect("xWrite")(file.file(), ptr::null(), 0, 0);
        assert_eq!(rc, ffi::SQLITE_OK);
        drop(file);
        let mut file = fresh();
        let size = file.methods().xFileSize.expect("xFileSize");
        assert_eq!(
            primary(size(file.file(), ptr::null_mut())),
            ffi::SQLITE_IOERR
        );
    }
    for level in [-1, 5, c_int::MAX, c_int::MIN] {
        assert_eq!(primary(fresh().lock(level)), ffi::SQLITE_IOERR, "{level}");
        assert_eq!(primary(fresh().unlock(level)), ffi::SQLITE_IOERR, "{level}");
    }
    // What nobody can store is refused, and takes no memory.
    for offset in [1 << 45, i64::MAX - 1] {
        let rc = primary(fresh().write(&[1; PAGE], offset));
        assert!(
            [ffi::SQLITE_FULL, ffi::SQLITE_IOERR].contains(&rc),
            "{offset}: {rc}"
        );
    }
    assert_sound(&open(&server.endpoint(), "t.db"));
}

#[test]
fn file_controls_take_any_number_and_no_argument() {
    let server = PageServer::memory();
    filled(&server);
    let name = Name::of(&server, c"t.db");
    let mut main = RawFile::open(name.0, MAIN).expect("open");
    let mut journal = RawFile::open(name.journal(), JOURNAL).expect("open the journal");
    for op in (-2..120).chain([7239, 7240, 7241, c_int::MIN, c_int::MAX]) {
        for file in [&mut main, &mut journal] {
            let rc = file.control(op, ptr::null_mut());
            assert!(
                [ffi::SQLITE_OK, ffi::SQLITE_NOTFOUND].contains(&rc),
                "{op}: {rc}"
            );
        }
    }
    let mut answer: c_int = 0x5555_5555;
    let place: *mut c_void = ptr::from_mut(&mut answer).cast();
    for (op, wanted) in [
        (ffi::SQLITE_FCNTL_LOCKSTATE, NONE),
        (ffi::SQLITE_FCNTL_HAS_MOVED, 0),
        (ffi::SQLITE_FCNTL_LAST_ERRNO, 0),
    ] {
        assert_eq!(main.control(op, place), ffi::SQLITE_OK, "{op}");
        // SAFETY: it is the one above.
        assert_eq!(unsafe { place.cast::<c_int>().read() }, wanted, "{op}");
    }
    // A pragma without a name is not ours, and its answer stays what it was.
    let mut arguments: [*mut c_char; 4] = [ptr::null_mut(); 4];
    let rc = main.control(ffi::SQLITE_FCNTL_PRAGMA, arguments.as_mut_ptr().cast());
    assert_eq!((rc, arguments[0]), (ffi::SQLITE_NOTFOUND, ptr::null_mut()));
    for file in [&mut main, &mut journal] {
        let methods = file.methods();
        // SAFETY: the file is open.
        unsafe {
            assert_eq!(methods.xSectorSize.expect("xSectorSize")(file.file()), 4096);
            methods
                .xDeviceCharacteristics
                .expect("xDeviceCharacteristics")(file.file());
        }
    }
}

#[test]
fn names_of_any_kind_are_answered() {
    let server = PageServer::memory();
    filled(&server);
    let vfs = vfs();
    let long = CString::new("x".repeat(5000)).expect("no zero inside");
    let names = [
        c"",
        c"/tmp/x.db",
        c"./x.db",
        c"a//b",
        c"\xff\xfe.db",
        long.as_c_str(),
    ];
    // SAFETY: the VFS lives for ever; the arguments are C strings, places for answers, or null where that is tried.
    unsafe {
        let access = (*vfs).xAccess.expect("xAccess");
        let delete = (*vfs).xDelete.expect("xDelete");
        let full = (*vfs).xFullPathname.expect("xFullPathname");
        for name in names {
            let owned = Name::of(&server, name);
            assert!(RawFile::open(owned.0, MAIN).is_err(), "{name:?}");
            for flags in [ffi::SQLITE_ACCESS_EXISTS, ffi::SQLITE_ACCESS_READWRITE, -1] {
                let mut answer = 0x5555_5555;
                access(vfs, name.as_ptr(), flags, &mut answer);
                assert_eq!(answer, 0, "{name:?}");
                access(vfs, name.as_ptr(), flags, ptr::null_mut());
            }
            assert_ne!(delete(vfs, name.as_ptr(), 0), ffi::SQLITE_OK, "{name:?}");
            let mut out = [0xaa_u8; 6000];
            let rc = full(vfs, name.as_ptr(), 5990, out.as_mut_ptr().cast());
            assert_eq!(primary(rc), ffi::SQLITE_CANTOPEN, "{name:?}");
            assert_eq!(out[5990..], [0xaa; 10], "{name:?}");
        }
        assert_ne!(delete(vfs, ptr::null(), 0), ffi::SQLITE_OK);
        let mut answer = 1;
        assert_eq!(access(vfs, ptr::null(), 0, &mut answer), ffi::SQLITE_OK);
        assert_eq!(answer, 0);
        // No room, too little, and just enough.
        for room in [-1, 0, 1, 4, 5, 6] {
            let mut out = [0xaa_u8; 16];
            let rc = full(vfs, c"db.db".as_ptr(), room, out.as_mut_ptr().cast());
            if room < 6 {
                assert_eq!(primary(rc), ffi::SQLITE_CANTOPEN, "{room}");
                assert_eq!(out, [0xaa; 16], "{room}");
            } else {
                assert_eq!(rc, ffi::SQLITE_OK);
                assert_eq!(CStr::from_ptr(out.as_ptr().cast()), c"db.db");
                assert_eq!(out[6..], [0xaa; 10]);
            }
        }
    }
    // The journal of nobody, a WAL, and a super-journal that is not there.
    let name = Name::of(&server, c"t.db");
    for (of, flags) in [
        (name.journal(), JOURNAL),
        (name.0, ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_READWRITE),
        (
            name.0,
            ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_READONLY,
        ),
    ] {
        assert_eq!(
            RawFile::open(of, flags).err().map(primary),
            Some(ffi::SQLITE_CANTOPEN)
        );
    }
    // Without a name it is a temporary file of the operating system's.
    let flags = ffi::SQLITE_OPEN_TEMP_DB | ffi::SQLITE_OPEN_READWRITE | ffi::SQLITE_OPEN_CREATE;
    let flags = flags | ffi::SQLITE_OPEN_EXCLUSIVE | ffi::SQLITE_OPEN_DELETEONCLOSE;
    let mut temporary = RawFile::open(ptr::null(), flags).expect("a temporary file");
    assert_eq!(temporary.write(b"here", 0), ffi::SQLITE_OK);
    assert_eq!(temporary.read(4, 0), (ffi::SQLITE_OK, b"here".to_vec()));
}

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
    let of_newest = "SELECT restored_from, page_count FROM pagewire_versions LIMIT 1";
    assert_eq!(rows(&sql, of_newest).expect("rows"), [format!("{empty}|0")]);
    sql.execute_batch("PRAGMA page_size = 8192; CREATE TABLE u(x); INSERT INTO u VALUES(7)")
        .expect("write");
    let elsewhere = open(&server.endpoint(), "t.db");
    assert_eq!(number(&elsewhere, "SELECT x FROM u"), 7);
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
fn any_order_of_calls_leaves_the_database_what_its_commits_made_it() {
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
