//! The C interface without SQLite: the table of functions and the operating system's VFS are Rust here, so that miri can run through it
//! (`tests/sanitizers.sh miri`). What needs a server is in `tests/it/contract`.

use std::alloc::Layout;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::api::ApiRoutines;
use super::entry::pagewire_auto_init;
use super::functions;
use super::handle::PagewireFile;
use super::registration::{Caller, Registration, VFS_NAME};
use super::table;
use super::types::{
    Context, Destructor, File, IndexConstraint, IndexConstraintUsage, IndexInfo, IoMethods, Module,
    ScalarFunction, Sqlite3, Value, Vfs, VtabCursor, code, constraint, open_flag,
};

static API: AtomicPtr<ApiRoutines> = AtomicPtr::new(null_mut());
static OS: AtomicPtr<Vfs> = AtomicPtr::new(null_mut());
static OURS: AtomicPtr<Vfs> = AtomicPtr::new(null_mut());

unsafe extern "C" fn libversion_number() -> c_int {
    3_031_000
}

unsafe extern "C" fn vfs_find(name: *const c_char) -> *mut Vfs {
    if name.is_null() {
        return OS.load(Ordering::SeqCst);
    }
    // SAFETY: the caller passes a C string.
    assert_eq!(unsafe { CStr::from_ptr(name) }, VFS_NAME);
    OURS.load(Ordering::SeqCst)
}

unsafe extern "C" fn vfs_register(vfs: *mut Vfs, _: c_int) -> c_int {
    OURS.store(vfs, Ordering::SeqCst);
    code::OK
}

/// Parameters as SQLite keeps them: behind the name, each with its NUL, and an empty one at the end.
unsafe extern "C" fn uri_parameter(name: *const c_char, key: *const c_char) -> *const c_char {
    // SAFETY: the tests make names like that.
    unsafe {
        let key = CStr::from_ptr(key);
        let mut at = name.add(CStr::from_ptr(name).count_bytes() + 1);
        while *at != 0 {
            let value = at.add(CStr::from_ptr(at).count_bytes() + 1);
            if CStr::from_ptr(at) == key {
                return value;
            }
            at = value.add(CStr::from_ptr(value).count_bytes() + 1);
        }
    }
    null()
}

unsafe extern "C" fn filename_journal(name: *const c_char) -> *const c_char {
    name
}

unsafe extern "C" fn file_control(
    _: *mut Sqlite3,
    _: *const c_char,
    _: c_int,
    _: *mut c_void,
) -> c_int {
    code::NOTFOUND
}

/// What is allocated knows its length, as with any C library.
unsafe extern "C" fn malloc64(bytes: u64) -> *mut c_void {
    let layout = Layout::array::<u64>(bytes as usize / 8 + 2).expect("a size");
    // SAFETY: it is not of size zero, and the first word is within it.
    unsafe {
        let place = std::alloc::alloc(layout).cast::<u64>();
        place.write(layout.size() as u64);
        place.add(1).cast()
    }
}

unsafe extern "C" fn free(place: *mut c_void) {
    // SAFETY: the tests free what `malloc64` gave.
    unsafe {
        let place = place.cast::<u64>().sub(1);
        let words = place.read() as usize / 8;
        std::alloc::dealloc(place.cast(), Layout::array::<u64>(words).expect("a size"));
    }
}

/// What a function answered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    text: Option<String>,
    number: Option<i64>,
}

unsafe extern "C" fn result_text(
    said: *mut Context,
    text: *const c_char,
    length: c_int,
    _: Destructor,
) {
    // SAFETY: the tests pass their own place as the context, and the caller a text of that length.
    unsafe {
        let bytes = std::slice::from_raw_parts(text.cast::<u8>(), length as usize);
        (*said.cast::<Said>()).text = Some(String::from_utf8_lossy(bytes).into_owned());
    }
}

unsafe extern "C" fn result_int64(said: *mut Context, number: i64) {
    // SAFETY: as above.
    unsafe { (*said.cast::<Said>()).number = Some(number) };
}

unsafe extern "C" fn result_null(_: *mut Context) {}

unsafe extern "C" fn result_error(said: *mut Context, text: *const c_char, length: c_int) {
    // SAFETY: as above.
    unsafe { result_text(said, text, length, 0) };
}

unsafe extern "C" fn result_error_code(_: *mut Context, _: c_int) {}

unsafe extern "C" fn context_db_handle(_: *mut Context) -> *mut Sqlite3 {
    null_mut()
}

unsafe extern "C" fn get_autocommit(_: *mut Sqlite3) -> c_int {
    1
}

unsafe extern "C" fn value_text(value: *mut Value) -> *const c_char {
    value.cast_const().cast()
}

unsafe extern "C" fn declare_vtab(_: *mut Sqlite3, _: *const c_char) -> c_int {
    code::OK
}

/// A table or a function that was made known.
type Tables = Vec<(String, *const Module, *mut c_void, Destroy)>;
type Destroy = unsafe extern "C" fn(*mut c_void);
type Functions = Vec<(String, c_int, ScalarFunction)>;

unsafe extern "C" fn create_module(
    tables: *mut Sqlite3,
    name: *const c_char,
    module: *const Module,
    source: *mut c_void,
    destroy: Option<Destroy>,
) -> c_int {
    // SAFETY: the tests pass their own list as the connection, and the caller a C string.
    unsafe {
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        (*tables.cast::<Tables>()).push((name, module, source, destroy.expect("a destructor")));
    }
    code::OK
}

unsafe extern "C" fn create_function(
    functions: *mut Sqlite3,
    name: *const c_char,
    arguments: c_int,
    _: c_int,
    _: *mut c_void,
    body: Option<ScalarFunction>,
    _: Option<ScalarFunction>,
    _: Option<unsafe extern "C" fn(*mut Context)>,
    _: Option<unsafe extern "C" fn(*mut c_void)>,
) -> c_int {
    // A connection that has no memory left.
    if functions.is_null() {
        return code::NOMEM;
    }
    // SAFETY: as above.
    unsafe {
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        let body = body.expect("a function");
        (*functions.cast::<Functions>()).push((name, arguments, body));
    }
    code::OK
}

unsafe extern "C" fn open_temporary(
    _: *mut Vfs,
    name: *const c_char,
    _: *mut File,
    _: c_int,
    _: *mut c_int,
) -> c_int {
    assert!(name.is_null());
    code::CANTOPEN
}

/// The VFS, as this SQLite has it.
fn vfs() -> (&'static Registration, *mut Vfs) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: numbers, pointers and functions that may be missing: all of them may be zero.
        let (mut api, mut os): (ApiRoutines, Vfs) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        os.version = 3;
        os.os_file_size = 4;
        os.max_pathname = 100;
        os.open = Some(open_temporary);
        api.libversion_number = Some(libversion_number);
        api.vfs_find = Some(vfs_find);
        api.vfs_register = Some(vfs_register);
        api.uri_parameter = Some(uri_parameter);
        api.filename_journal = Some(filename_journal);
        api.file_control = Some(file_control);
        api.malloc64 = Some(malloc64);
        api.free = Some(free);
        api.result_text = Some(result_text);
        api.result_int64 = Some(result_int64);
        api.result_null = Some(result_null);
        api.result_error = Some(result_error);
        api.result_error_code = Some(result_error_code);
        api.context_db_handle = Some(context_db_handle);
        api.get_autocommit = Some(get_autocommit);
        api.value_text = Some(value_text);
        api.declare_vtab = Some(declare_vtab);
        api.create_module_v2 = Some(create_module);
        api.create_function_v2 = Some(create_function);
        OS.store(Box::into_raw(Box::new(os)), Ordering::SeqCst);
        API.store(Box::into_raw(Box::new(api)), Ordering::SeqCst);
    });
    // SAFETY: the table is complete and lives for ever.
    let registration = unsafe { Registration::ensure(API.load(Ordering::SeqCst), Caller::Load) };
    let registration = registration
        .map_err(|error| error.message)
        .expect("register");
    (registration, OURS.load(Ordering::SeqCst))
}

/// A name with parameters behind it.
fn name(parts: &[&str]) -> Vec<u8> {
    let mut bytes: Vec<u8> = parts
        .iter()
        .flat_map(|part| [part.as_bytes(), &[0]].concat())
        .collect();
    bytes.push(0);
    bytes
}

/// xOpen in memory of as many bytes as the VFS wants, none of them set.
fn open(name: &[u8], flags: c_int) -> (c_int, Box<[MaybeUninit<u64>]>) {
    let (_, vfs) = vfs();
    // SAFETY: the VFS lives for ever; the file has the size that it asks for, and the name is one of `name`.
    unsafe {
        let size = (*vfs).os_file_size as usize;
        assert!(size >= size_of::<PagewireFile>());
        let mut file = Box::new_uninit_slice(size / 8);
        let open = (*vfs).open.expect("xOpen");
        let mut given = -1;
        let rc = open(
            vfs,
            name.as_ptr().cast(),
            file.as_mut_ptr().cast(),
            flags,
            &mut given,
        );
        (rc, file)
    }
}

#[test]
fn a_file_lives_from_xopen_to_xclose_in_memory_that_nobody_has_set() {
    let journal = name(&["t/x.db-mj00A1B2C9F"]);
    let flags = open_flag::SUPER_JOURNAL | open_flag::READWRITE | open_flag::CREATE;
    let (rc, mut memory) = open(&journal, flags);
    assert_eq!(rc, code::OK);
    let file: *mut File = memory.as_mut_ptr().cast();
    // SAFETY: xOpen has filled the file; buffers are as long as said.
    unsafe {
        let methods: &IoMethods = &*(*file).methods;
        let mut size = -1;
        assert_eq!((methods.file_size)(file, &mut size), code::OK);
        assert_eq!(size, 0);
        // What is read is filled, however little there is of it.
        let mut buffer = [MaybeUninit::<u8>::uninit(); 24];
        let rc = (methods.read)(file, buffer.as_mut_ptr().cast(), 24, 8);
        assert_eq!(rc, code::IOERR_SHORT_READ);
        assert!(buffer.iter().all(|byte| byte.assume_init_read() == 0));
        // Names of journals that are not ours, and buffers that are none.
        let child = b"/somewhere/else.db-journal\0";
        let length = child.len() as c_int;
        assert_ne!(
            (methods.write)(file, child.as_ptr().cast(), length, 0),
            code::OK
        );
        assert_ne!((methods.write)(file, null(), 3, 0), code::OK);
        assert_ne!((methods.read)(file, null_mut(), 3, 0), code::OK);
        assert_ne!(
            (methods.read)(file, buffer.as_mut_ptr().cast(), -1, 0),
            code::OK
        );
        assert_ne!(
            (methods.read)(file, buffer.as_mut_ptr().cast(), 4, -1),
            code::OK
        );
        // Each of those was a bug of the caller, after which the file refuses; closing is always possible.
        assert_ne!((methods.truncate)(file, 0), code::OK);
        assert_ne!((methods.file_size)(file, null_mut()), code::OK);
        assert_eq!((methods.close)(file), code::OK);
        assert!((*file).methods.is_null());
    }
}

#[test]
fn the_other_methods_take_what_sqlite_passes_and_nothing() {
    let journal = name(&["t/y.db-mj00A1B2C9F"]);
    let flags = open_flag::SUPER_JOURNAL | open_flag::READWRITE | open_flag::CREATE;
    let (rc, mut memory) = open(&journal, flags);
    assert_eq!(rc, code::OK);
    let (_, vfs) = vfs();
    let file: *mut File = memory.as_mut_ptr().cast();
    // SAFETY: xOpen has filled the file.
    unsafe {
        let methods: &IoMethods = &*(*file).methods;
        assert_eq!((methods.truncate)(file, 0), code::OK);
        assert_eq!((methods.sync)(file, 2), code::OK);
        for level in 0..5 {
            assert_eq!((methods.lock)(file, level), code::OK);
        }
        assert_eq!((methods.unlock)(file, 0), code::OK);
        let mut answer = -1;
        assert_eq!((methods.check_reserved_lock)(file, &mut answer), code::OK);
        assert_eq!(answer, 0);
        (methods.check_reserved_lock)(file, null_mut());
        assert_eq!(
            (methods.file_control)(file, 4711, null_mut()),
            code::NOTFOUND
        );
        assert!((methods.sector_size)(file) > 0);
        (methods.device_characteristics)(file);
        let mut there = -1;
        let access = (*vfs).access.expect("xAccess");
        assert_eq!(
            access(vfs, journal.as_ptr().cast(), 0, &mut there),
            code::OK
        );
        assert_eq!(there, 1);
        assert_eq!(
            access(vfs, journal.as_ptr().cast(), 0, null_mut()),
            code::OK
        );
        assert_eq!((methods.close)(file), code::OK);
        let delete = (*vfs).delete.expect("xDelete");
        assert_eq!(delete(vfs, journal.as_ptr().cast(), 0), code::OK);
        let gone = delete(vfs, journal.as_ptr().cast(), 0);
        assert_eq!(gone, code::IOERR_DELETE_NOENT);
    }
}

#[test]
fn t18_a_file_that_was_not_opened_has_no_methods() {
    let wrong = name(&["x.db", "cache", "shared", "timeout_ms", "soon"]);
    let read_write = open_flag::READWRITE | open_flag::CREATE;
    let cases = [
        // Settings are read from behind the name, before any server is asked.
        (&wrong[..], open_flag::MAIN_DB | read_write),
        (b"\xff\xfe\0\0", open_flag::MAIN_DB | read_write),
        (b"x.db-journal\0\0", open_flag::MAIN_JOURNAL | read_write),
        (b"x.db-wal\0\0", open_flag::WAL | read_write),
        (b"x.db-mj012345678\0\0", open_flag::SUPER_JOURNAL),
    ];
    for (name, flags) in cases {
        let (rc, memory) = open(name, flags);
        assert_eq!(rc, code::CANTOPEN, "{name:?}");
        // SAFETY: xOpen sets the methods in any case.
        assert!(unsafe { (*memory.as_ptr().cast::<File>()).methods.is_null() });
    }
    let said = vfs().0.last_error(None).expect("an error was told");
    assert!(said.contains("x.db"), "{said}");
}

#[test]
fn a_full_pathname_fits_into_its_room_or_is_refused() {
    let (_, vfs) = vfs();
    for (given, room, expected) in [
        (&b"t/a.db\0"[..], 7, code::OK),
        (b"t/a.db\0", 6, code::CANTOPEN),
        (b"t/a.db\0", 0, code::CANTOPEN),
        (b"/tmp/a.db\0", 100, code::CANTOPEN),
        (b"\xff\0", 100, code::CANTOPEN),
    ] {
        let mut out = Box::<[u8]>::new_uninit_slice(room);
        // SAFETY: the name is a C string, and there is as much room as said.
        let rc = unsafe {
            let method = (*vfs).full_pathname.expect("xFullPathname");
            method(
                vfs,
                given.as_ptr().cast(),
                room as c_int,
                out.as_mut_ptr().cast(),
            )
        };
        assert_eq!(rc, expected, "{given:?} in {room}");
        if rc == code::OK {
            // SAFETY: all of it was written.
            let written = unsafe { out.assume_init() };
            assert_eq!(&*written, given);
        }
    }
}

#[test]
fn a_connection_without_memory_for_the_functions_is_not_opened_for_want_of_memory() {
    vfs();
    // SAFETY: the table is complete, and the stand-in takes a null connection for one without memory.
    let rc = unsafe { pagewire_auto_init(null_mut(), null_mut(), API.load(Ordering::SeqCst)) };
    assert_eq!(rc, code::NOMEM);
}

#[test]
fn functions_answer_in_the_context_that_they_were_called_with() {
    let (registration, _) = vfs();
    let mut known: Functions = Vec::new();
    // SAFETY: the stand-in takes the list for a connection.
    let made = unsafe { functions::register(registration, (&raw mut known).cast()) };
    assert!(made.is_ok());
    assert!(known.len() > 7);
    for (name, count, body) in known {
        let mut said = Said::default();
        let texts: Vec<_> = (0..count)
            .map(|_| CString::new("1").expect("text"))
            .collect();
        let mut values: Vec<*mut Value> =
            texts.iter().map(|t| t.as_ptr().cast_mut().cast()).collect();
        // SAFETY: as many values as said, each a text of the stand-in.
        unsafe { body((&raw mut said).cast(), count, values.as_mut_ptr()) };
        // There is no database of ours: those that need one say so.
        let needs_one = !["pagewire_last_error", "pagewire_version"].contains(&&*name);
        assert!(
            !needs_one || said.text.is_some_and(|text| text.contains("no database")),
            "{name}"
        );
    }
}

/// All rows of a table, with these values for its constraints, which are equalities with its last columns.
fn rows(wanted: &str, columns: c_int, values: &[&CStr]) -> Result<Vec<Said>, String> {
    let (registration, _) = vfs();
    let mut known: Tables = Vec::new();
    // SAFETY: the calls are those of SQLite, in its order; the stand-in takes the list for a connection.
    unsafe {
        assert!(table::register(registration, (&raw mut known).cast()).is_ok());
        let found = known.iter().find(|(name, ..)| name == wanted);
        let (_, module, source, _) = found.expect("a table");
        let module = &**module;
        let mut table = null_mut();
        let connect = module.connect.expect("xConnect");
        assert_eq!(
            connect(null_mut(), *source, 0, null(), &mut table, null_mut()),
            code::OK
        );
        let constraints: Vec<_> = (0..values.len())
            .map(|index| IndexConstraint {
                column: columns + index as c_int,
                op: constraint::EQ,
                usable: 1,
                term_offset: 0,
            })
            .collect();
        let mut usage: Vec<_> = (0..values.len())
            .map(|_| IndexConstraintUsage {
                argument: 0,
                omit: 0,
            })
            .collect();
        let mut info: IndexInfo = std::mem::zeroed();
        info.constraint_count = values.len() as c_int;
        info.constraints = constraints.as_ptr();
        info.constraint_usage = usage.as_mut_ptr();
        assert_eq!(
            module.best_index.expect("xBestIndex")(table, &mut info),
            code::OK
        );
        assert!(usage.iter().all(|usage| usage.argument > 0));
        let mut cursor: *mut VtabCursor = null_mut();
        assert_eq!(module.open.expect("xOpen")(table, &mut cursor), code::OK);
        (*cursor).vtab = table;
        let mut values: Vec<*mut Value> = values
            .iter()
            .map(|t| t.as_ptr().cast_mut().cast())
            .collect();
        let count = values.len() as c_int;
        let filter = module.filter.expect("xFilter");
        let rc = filter(
            cursor,
            info.index_number,
            null(),
            count,
            values.as_mut_ptr(),
        );
        let mut cells = Vec::new();
        while rc == code::OK && module.eof.expect("xEof")(cursor) == 0 {
            for column in 0..columns + 1 {
                let mut said = Said::default();
                module.column.expect("xColumn")(cursor, (&raw mut said).cast(), column);
                cells.push(said);
            }
            let mut rowid = 0;
            assert_eq!(module.rowid.expect("xRowid")(cursor, &mut rowid), code::OK);
            assert!(rowid > 0);
            assert_eq!(module.next.expect("xNext")(cursor), code::OK);
        }
        let message = (*table).error_message;
        let said =
            (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned());
        if !message.is_null() {
            free(message.cast());
        }
        assert_eq!(module.close.expect("xClose")(cursor), code::OK);
        assert_eq!(module.disconnect.expect("xDisconnect")(table), code::OK);
        for (.., source, destroy) in known {
            destroy(source);
        }
        match rc {
            code::OK => Ok(cells),
            _ => Err(said.unwrap_or_default()),
        }
    }
}

#[test]
fn tables_are_read_row_by_row_and_tell_what_is_wrong() {
    let calls = rows("pagewire_rpc", 5, &[]).expect("rows");
    assert!(calls.len() > 6 && calls.len().is_multiple_of(6));
    assert!(
        calls
            .iter()
            .any(|cell| cell.text.as_deref() == Some("acquire"))
    );
    assert_eq!(calls[5], Said::default(), "no such column");
    let status = rows("pagewire_status", 2, &[]).expect("rows");
    assert!(
        status
            .iter()
            .any(|cell| cell.text.as_deref() == Some("library"))
    );
    let wrong = rows("pagewire_diff", 1, &[c"1", c"2", c"elsewhere"]);
    assert!(wrong.is_err_and(|message| message.contains("elsewhere")));
}
