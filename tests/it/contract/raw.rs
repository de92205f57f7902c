//! A file of the VFS as C has it, in memory that held garbage before.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;

use pagewire_tests::connection::register;
use pagewire_tests::server::PageServer;
use rusqlite::ffi;

/// Bytes on both sides of a buffer that nobody may touch.
pub const GUARD: usize = 64;
const POISONS: [u8; 2] = [0xaa, 0x55];

pub fn vfs() -> *mut ffi::sqlite3_vfs {
    register();
    // SAFETY: the VFS is registered and lives for ever.
    unsafe { ffi::sqlite3_vfs_find(c"pagewire".as_ptr()) }
}

/// The name of a database as SQLite gives it to xOpen: its parameters and the name of its journal stand behind it.
pub struct Name(pub *const c_char);

impl Name {
    pub fn of(server: &PageServer, database: &CStr) -> Self {
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

    pub fn journal(&self) -> *const c_char {
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
pub struct RawFile {
    memory: Vec<u64>,
}

impl RawFile {
    /// The file, or the code with which xOpen refused it.
    pub fn open(name: *const c_char, flags: c_int) -> Result<Self, c_int> {
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

    pub fn file(&mut self) -> *mut ffi::sqlite3_file {
        self.memory.as_mut_ptr().cast()
    }

    pub fn methods(&mut self) -> &'static ffi::sqlite3_io_methods {
        // SAFETY: xOpen has set them; they are static.
        unsafe { &*(*self.file()).pMethods }
    }

    /// xRead into garbage, between guards: the code, and what was read.
    pub fn read_over(&mut self, poison: u8, amount: usize, offset: i64) -> (c_int, Vec<u8>) {
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
    pub fn read(&mut self, amount: usize, offset: i64) -> (c_int, Vec<u8>) {
        let [first, second] = POISONS.map(|poison| self.read_over(poison, amount, offset));
        assert!(
            first == second,
            "{amount} bytes at {offset}: garbage is left"
        );
        first
    }

    pub fn write(&mut self, bytes: &[u8], offset: i64) -> c_int {
        let write = self.methods().xWrite.expect("xWrite");
        let amount = c_int::try_from(bytes.len()).expect("an int");
        // SAFETY: the buffer has `amount` bytes.
        unsafe { write(self.file(), bytes.as_ptr().cast(), amount, offset) }
    }

    pub fn lock(&mut self, level: c_int) -> c_int {
        let lock = self.methods().xLock.expect("xLock");
        // SAFETY: the file is open.
        unsafe { lock(self.file(), level) }
    }

    pub fn unlock(&mut self, level: c_int) -> c_int {
        let unlock = self.methods().xUnlock.expect("xUnlock");
        // SAFETY: the file is open.
        unsafe { unlock(self.file(), level) }
    }

    pub fn truncate(&mut self, size: i64) -> c_int {
        let truncate = self.methods().xTruncate.expect("xTruncate");
        // SAFETY: the file is open.
        unsafe { truncate(self.file(), size) }
    }

    pub fn sync(&mut self) -> c_int {
        let sync = self.methods().xSync.expect("xSync");
        // SAFETY: the file is open.
        unsafe { sync(self.file(), ffi::SQLITE_SYNC_NORMAL) }
    }

    /// xFileSize into garbage.
    pub fn size(&mut self) -> (c_int, i64) {
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

    pub fn control(&mut self, op: c_int, argument: *mut c_void) -> c_int {
        let control = self.methods().xFileControl.expect("xFileControl");
        // SAFETY: the file is open; the argument is of the type of the operation, or null.
        unsafe { control(self.file(), op, argument) }
    }

    pub fn is_reserved(&mut self) -> (c_int, c_int) {
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
    pub fn commit(&mut self) -> c_int {
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
