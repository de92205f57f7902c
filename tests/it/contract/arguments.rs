//! Arguments and names that SQLite would not pass.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use pagewire_tests::connection::{assert_sound, open};
use pagewire_tests::server::PageServer;
use rusqlite::ffi;

use super::raw::{GUARD, Name, RawFile, vfs};
use super::{EXCLUSIVE, JOURNAL, MAIN, NONE, PAGE, filled, primary};

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
        let rc = full(vfs, c"db.db".as_ptr(), 100, ptr::null_mut());
        assert_eq!(primary(rc), ffi::SQLITE_CANTOPEN);
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
