//! The methods of an open file: main database, journal, super-journal.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::boundary::{Op, code_of, guarded};
use super::busy::{BusyHandler, Owed, forget_refusal, note_refusal, series_ends};
use super::handle::{FileKind, Handle, PagewireFile};
use super::types::{File, IoMethods, code, fcntl, iocap};
use crate::client::Owner;
use crate::connection::{Connection, LockLevel};
use crate::error::{Error, Kind, Result};
use crate::file::journal::SuperJournal;
use crate::file::read_buffer::ReadBuffer;

/// The methods of every file of ours.
pub static METHODS: IoMethods = IoMethods {
    version: 1,
    close,
    read,
    write,
    truncate,
    sync,
    file_size,
    lock,
    unlock,
    check_reserved_lock,
    file_control,
    sector_size,
    device_characteristics,
};

/// Runs a method of a file.
///
/// # Safety
/// As for [`Handle::of`].
unsafe fn method(file: *mut File, op: Op, body: impl FnOnce(&Handle) -> Result<c_int>) -> c_int {
    // SAFETY: promised by the caller.
    let handle = unsafe { Handle::of(file) };
    guarded(
        handle.registration,
        op,
        |error| handle.note(error),
        || {
            handle.check()?;
            body(handle)
        },
    )
}

unsafe extern "C" fn close(file: *mut File) -> c_int {
    let ours = file.cast::<PagewireFile>();
    // SAFETY: `install` put the box there; SQLite calls xClose once and nothing after it.
    let handle = unsafe { Box::from_raw((*ours).handle) };
    // SAFETY: as above.
    unsafe { (*ours).base.methods = std::ptr::null() };
    let registration = handle.registration;
    guarded(
        registration,
        Op::Close,
        |_| None,
        move || {
            if handle.process.check_not_forked().is_err() {
                // The parent's threads, sockets and locks are not ours to touch (T16).
                std::mem::forget(handle);
                return Ok(code::OK);
            }
            match &handle.kind {
                FileKind::Main(_, address) => handle.process.journals.lock().unregister(*address),
                FileKind::Journal(connection) => connection.lock().close_journal(),
                FileKind::Super(_) => {}
            }
            drop(handle);
            Ok(code::OK)
        },
    )
}

/// How many bytes a buffer has; 0 where there is none, of which no slice may be made.
fn length_of<T>(buffer: *const T, amount: c_int) -> usize {
    if buffer.is_null() {
        return 0;
    }
    usize::try_from(amount).unwrap_or(0)
}

fn check_amount(amount: c_int, length: usize) -> Result<()> {
    if usize::try_from(amount) == Ok(length) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Bug,
        format!("SQLite gave a buffer of {amount} bytes, or none"),
    ))
}

fn no_place() -> Error {
    Error::new(Kind::Bug, "SQLite gave no place for an answer")
}

fn offset_of(offset: i64) -> Result<u64> {
    u64::try_from(offset)
        .map_err(|_| Error::new(Kind::Bug, format!("SQLite gave the offset {offset}")))
}

unsafe extern "C" fn read(
    file: *mut File,
    buffer: *mut c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    let length = length_of(buffer, amount);
    let memory = if length == 0 {
        &mut []
    } else {
        // SAFETY: SQLite passes a buffer of `amount` bytes, which may be uninitialised.
        unsafe { std::slice::from_raw_parts_mut(buffer.cast::<MaybeUninit<u8>>(), length) }
    };
    let mut out = ReadBuffer::from(memory);
    // SAFETY: SQLite passes a file that xOpen filled.
    let rc = unsafe {
        method(file, Op::Read, |handle| {
            check_amount(amount, length)?;
            let offset = offset_of(offset)?;
            let full = match &handle.kind {
                FileKind::Main(connection, _) => {
                    connection.lock().read(&mut out, offset)?
                        == crate::connection::ReadOutcome::Full
                }
                FileKind::Journal(connection) => {
                    let mut bytes = vec![0; length];
                    let read = connection.lock().read_journal(&mut bytes, offset)?;
                    out.put(&bytes);
                    read == Some(length)
                }
                FileKind::Super(journal) => {
                    let mut bytes = vec![0; length];
                    let read = journal.lock().content.read(&mut bytes, offset)?;
                    out.put(&bytes);
                    read == length
                }
            };
            Ok(if full {
                code::OK
            } else {
                code::IOERR_SHORT_READ
            })
        })
    };
    // After an error too, whatever had been read by then: nobody is shown what was in the memory.
    out.finish();
    rc
}

unsafe extern "C" fn write(
    file: *mut File,
    buffer: *const c_void,
    amount: c_int,
    offset: i64,
) -> c_int {
    let length = length_of(buffer, amount);
    let bytes = if length == 0 {
        &[]
    } else {
        // SAFETY: SQLite passes `amount` initialised bytes.
        unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) }
    };
    // SAFETY: SQLite passes a file that xOpen filled.
    unsafe {
        method(file, Op::Write, |handle| {
            check_amount(amount, length)?;
            let offset = offset_of(offset)?;
            match &handle.kind {
                FileKind::Main(connection, _) => connection.lock().write(bytes, offset)?,
                FileKind::Journal(connection) => {
                    connection.lock().write_journal(bytes, offset)?;
                }
                FileKind::Super(journal) => {
                    add_child(handle, buffer as usize, bytes, journal)?;
                    journal.lock().content.write(bytes, offset)?;
                }
            }
            Ok(code::OK)
        })
    }
}

/// SQLite writes the names of the child journals from where its pagers keep them. One that is not ours would be left out of
/// the atomic commit, and after a kill its own rollback would be skipped: refuse the transaction instead.
///
/// A VFS above this one may pass on a copy of the name. Its text is as good as long as one connection alone is writing under
/// it: the names of local files are absolute paths, which no database of ours has.
fn add_child(
    handle: &Handle,
    address: usize,
    name: &[u8],
    journal: &Mutex<SuperJournal>,
) -> Result<()> {
    let text = std::str::from_utf8(name.strip_suffix(&[0]).unwrap_or(name)).unwrap_or_default();
    let child = {
        let journals = handle.process.journals.lock();
        journals
            .child(address)
            .or_else(|| journals.writing_child_named(text))
    };
    let Some(child) = child else {
        return Err(Error::io(
            "a transaction over a Pagewire database and one of another VFS can't be atomic: \
             write to them in separate transactions",
        ));
    };
    let Some(connection) = child.connection() else {
        return Err(Error::new(
            Kind::Bug,
            "a journal of a closed connection takes part in a commit",
        ));
    };
    let endpoint = connection.lock().database().endpoint().to_owned();
    let mut journal = journal.lock();
    match &journal.endpoint {
        Some(known) if *known != endpoint => Err(Error::io(format!(
            "a transaction over {known} and {endpoint} can't be atomic: write to them in separate transactions"
        ))),
        _ => {
            journal.endpoint = Some(endpoint);
            journal.children.push(child);
            Ok(())
        }
    }
}

unsafe extern "C" fn truncate(file: *mut File, size: i64) -> c_int {
    // SAFETY: SQLite passes a file that xOpen filled.
    unsafe {
        method(file, Op::Truncate, |handle| {
            let size = offset_of(size)?;
            match &handle.kind {
                FileKind::Main(connection, _) => connection.lock().truncate(size)?,
                FileKind::Journal(connection) => {
                    if let Some(journal) = connection.lock().journal() {
                        journal.truncate(size)?;
                    }
                }
                FileKind::Super(journal) => journal.lock().content.truncate(size)?,
            }
            Ok(code::OK)
        })
    }
}

/// FCNTL_SYNC was the commit point; a journal has nowhere to be synced to.
unsafe extern "C" fn sync(file: *mut File, _flags: c_int) -> c_int {
    // SAFETY: SQLite passes a file that xOpen filled.
    unsafe { method(file, Op::Sync, |_| Ok(code::OK)) }
}

unsafe extern "C" fn file_size(file: *mut File, size: *mut i64) -> c_int {
    // SAFETY: SQLite passes a file that xOpen filled, and a place for the answer, which is defined after an error too.
    unsafe {
        if !size.is_null() {
            size.write(0);
        }
        method(file, Op::FileSize, |handle| {
            if size.is_null() {
                return Err(no_place());
            }
            let bytes = match &handle.kind {
                FileKind::Main(connection, _) => connection.lock().byte_size(),
                FileKind::Journal(connection) => connection
                    .lock()
                    .journal()
                    .map_or(0, |journal| journal.len()),
                FileKind::Super(journal) => journal.lock().content.len(),
            };
            size.write(i64::try_from(bytes).unwrap_or(i64::MAX));
            Ok(code::OK)
        })
    }
}

fn level(level: c_int) -> Result<LockLevel> {
    Ok(match level {
        0 => LockLevel::None,
        1 => LockLevel::Shared,
        2 => LockLevel::Reserved,
        3 => LockLevel::Pending,
        4 => LockLevel::Exclusive,
        other => {
            return Err(Error::new(
                Kind::Bug,
                format!("SQLite asked for the lock level {other}"),
            ));
        }
    })
}

/// Whether SQLite's busy handler gives up once it has counted what the last try for the write lock has waited.
///
/// # Safety
/// SQLite is in xLock of the file, which xOpen filled.
unsafe fn gives_up(file: *mut File, wanted: c_int) -> bool {
    // SAFETY: promised by the caller.
    let handle = unsafe { Handle::of(file) };
    // A try begins with the shared lock.
    if wanted <= LockLevel::Shared as c_int || handle.check().is_err() {
        return false;
    }
    match (handle.owed.take(), handle.busy.get()) {
        // SAFETY: promised by the caller. No lock of ours is held.
        (Some(owed), Some(busy)) => !unsafe { busy.makes_up_for(owed) },
        _ => false,
    }
}

unsafe extern "C" fn lock(file: *mut File, wanted: c_int) -> c_int {
    let mut busy = None;
    // SAFETY: SQLite passes a file that xOpen filled.
    let rc = unsafe {
        let gives_up = gives_up(file, wanted);
        method(file, Op::Lock, |handle| {
            if let FileKind::Main(connection, _) = &handle.kind {
                if gives_up {
                    return Err(Error::busy(
                        "the write lease was waited for as long as the busy timeout",
                    ));
                }
                let begun = Instant::now();
                let wanted = level(wanted)?;
                let mut connection = connection.lock();
                let locked = connection.lock(wanted);
                let file_s_place = std::ptr::from_ref(handle).addr();
                match &locked {
                    Err(error) if error.kind == Kind::Deadlock => {
                        series_ends();
                        busy = handle.busy.get();
                    }
                    Err(error) if matches!(error.kind, Kind::Busy | Kind::BusySnapshot) => {
                        // The try began where the transaction did, by asking for the lease.
                        let early = connection.take_waited_early();
                        let begun = begun.checked_sub(early).unwrap_or(begun);
                        if error.kind == Kind::Busy {
                            handle.owed.set(Owed::after(begun.elapsed()));
                        }
                        note_refusal(file_s_place, begun, connection.database(), handle.process);
                    }
                    // Each try begins with the shared lock.
                    Ok(()) if wanted <= LockLevel::Shared => forget_refusal(),
                    Ok(()) | Err(_) => {
                        forget_refusal();
                        series_ends();
                    }
                }
                locked?;
            }
            Ok(code::OK)
        })
    };
    if let Some(busy) = busy {
        // SAFETY: SQLite is in xLock of this file. No lock of ours is held.
        unsafe { busy.exhaust() };
    }
    rc
}

unsafe extern "C" fn unlock(file: *mut File, wanted: c_int) -> c_int {
    // SAFETY: SQLite passes a file that xOpen filled.
    unsafe {
        method(file, Op::Unlock, |handle| {
            if let FileKind::Main(connection, _) = &handle.kind {
                let mut connection = connection.lock();
                connection.unlock(level(wanted)?);
                // What went wrong beside the transaction, where no callback was waiting for it.
                if let Some(warning) = connection.database().disk_warning() {
                    handle.registration.warn(&warning);
                }
            }
            Ok(code::OK)
        })
    }
}

unsafe extern "C" fn check_reserved_lock(file: *mut File, answer: *mut c_int) -> c_int {
    // SAFETY: SQLite passes a file that xOpen filled; some callers pass no place for the answer (H6), which is defined after an
    // error too.
    unsafe {
        if !answer.is_null() {
            answer.write(0);
        }
        method(file, Op::CheckReservedLock, |handle| {
            let held = match &handle.kind {
                FileKind::Main(connection, _) => connection.lock().reserved_is_held(),
                FileKind::Journal(_) | FileKind::Super(_) => false,
            };
            if !answer.is_null() {
                answer.write(c_int::from(held));
            }
            Ok(code::OK)
        })
    }
}

unsafe extern "C" fn file_control(file: *mut File, op: c_int, argument: *mut c_void) -> c_int {
    let guard = if op == fcntl::SYNC {
        Op::Sync
    } else {
        Op::FileControl
    };
    // SAFETY: SQLite passes a file that xOpen filled, and the argument that belongs to the operation.
    unsafe {
        method(file, guard, |handle| match &handle.kind {
            FileKind::Main(connection, _) => main_control(handle, connection, op, argument),
            FileKind::Journal(_) | FileKind::Super(_) => Ok(code::NOTFOUND),
        })
    }
}

/// # Safety
/// `argument` is what SQLite documents for the operation.
unsafe fn main_control(
    handle: &Handle,
    connection: &Arc<Mutex<Connection>>,
    op: c_int,
    argument: *mut c_void,
) -> Result<c_int> {
    let takes_none = matches!(
        op,
        fcntl::SYNC
            | fcntl::SIZE_HINT
            | fcntl::CHUNK_SIZE
            | fcntl::OVERWRITE
            | fcntl::COMMIT_PHASETWO
            | fcntl::BEGIN_ATOMIC_WRITE
            | fcntl::COMMIT_ATOMIC_WRITE
            | fcntl::ROLLBACK_ATOMIC_WRITE
    );
    if argument.is_null() && !takes_none {
        // Applications reach this with sqlite3_file_control.
        return Ok(code::NOTFOUND);
    }
    // SAFETY: the types of the arguments are those of sqlite3.h, section "Standard File Control Opcodes".
    unsafe {
        match op {
            fcntl::SYNC => {
                let super_journal = argument.cast_const().cast::<c_char>();
                if !super_journal.is_null() {
                    let name = CStr::from_ptr(super_journal).to_string_lossy();
                    if let Some(group) = handle.process.journals.lock().super_journal(&name) {
                        group.lock().members.push(Arc::downgrade(connection));
                        return Ok(code::OK);
                    }
                    // The main database lives on another VFS: this database commits alone, here.
                }
                connection.lock().sync()?;
                Ok(code::OK)
            }
            fcntl::PDB if !argument.is_null() => {
                // The address is all that is wanted of it.
                let connection_of_sqlite = *argument.cast::<*const c_void>();
                connection
                    .lock()
                    .belongs_to(Owner(connection_of_sqlite.addr()));
                Ok(code::OK)
            }
            fcntl::BUSYHANDLER if !argument.is_null() => {
                let [call, argument] = *argument.cast::<[*mut c_void; 2]>();
                let call: Option<unsafe extern "C" fn(*mut c_void) -> c_int> =
                    std::mem::transmute(call);
                handle
                    .busy
                    .set(call.map(|call| BusyHandler { call, argument }));
                Ok(code::OK)
            }
            fcntl::PRAGMA => pragma(handle, connection, argument.cast()),
            fcntl::VFSNAME => {
                *argument.cast::<*mut c_char>() = handle.registration.allocate_text("pagewire");
                Ok(code::OK)
            }
            fcntl::LOCKSTATE => {
                // What `PRAGMA lock_status` of a debug build shows.
                argument
                    .cast::<c_int>()
                    .write(connection.lock().level() as c_int);
                Ok(code::OK)
            }
            fcntl::HAS_MOVED => {
                argument.cast::<c_int>().write(0);
                Ok(code::OK)
            }
            fcntl::LAST_ERRNO => {
                argument.cast::<c_int>().write(0);
                Ok(code::OK)
            }
            fcntl::POWERSAFE_OVERWRITE => {
                let flag = argument.cast::<c_int>();
                if flag.read() < 0 {
                    flag.write(1);
                }
                Ok(code::OK)
            }
            fcntl::PAGEWIRE_HANDLE => {
                *argument.cast::<*const Handle>() = std::ptr::from_ref(handle);
                Ok(code::OK)
            }
            // Hints. The end of a batch is no commit point (contract, section 1).
            fcntl::SIZE_HINT
            | fcntl::CHUNK_SIZE
            | fcntl::OVERWRITE
            | fcntl::COMMIT_ATOMIC_WRITE => Ok(code::OK),
            fcntl::COMMIT_PHASETWO => {
                connection.lock().transaction_is_over();
                Ok(code::OK)
            }
            fcntl::BEGIN_ATOMIC_WRITE => {
                connection.lock().batch_begins();
                Ok(code::OK)
            }
            fcntl::ROLLBACK_ATOMIC_WRITE => {
                connection.lock().batch_is_rolled_back();
                Ok(code::OK)
            }
            _ => Ok(code::NOTFOUND),
        }
    }
}

/// FCNTL_PRAGMA: the answer of a pragma, or NOTFOUND for SQLite's own.
///
/// # Safety
/// `arguments` points to the result, the name and the value.
unsafe fn pragma(
    handle: &Handle,
    connection: &Arc<Mutex<Connection>>,
    arguments: *mut *mut c_char,
) -> Result<c_int> {
    let text = |index: usize| {
        // SAFETY: promised by the caller: three pointers, the last two null or C strings.
        unsafe {
            let pointer = *arguments.add(index);
            (!pointer.is_null()).then(|| CStr::from_ptr(pointer).to_string_lossy().into_owned())
        }
    };
    let Some(name) = text(1).map(|name| name.to_ascii_lowercase()) else {
        return Ok(code::NOTFOUND);
    };
    let answer = connection.lock().pragma(&name, text(2).as_deref());
    let (rc, answer) = match answer {
        Ok(None) => return Ok(code::NOTFOUND),
        Ok(Some(answer)) => (code::OK, answer),
        Err(error) => {
            let rc = code_of(Op::Own, error.kind);
            let client = handle.note(&error);
            handle.registration.log(rc, &error.message, client);
            (rc, error.message)
        }
    };
    // SAFETY: the first of the three pointers takes the answer, or the message of the error.
    unsafe { *arguments = handle.registration.allocate_text(&answer) };
    Ok(rc)
}

/// 4096: above it SQLite would change its default page size.
unsafe extern "C" fn sector_size(_file: *mut File) -> c_int {
    4096
}

unsafe extern "C" fn device_characteristics(file: *mut File) -> c_int {
    // SAFETY: SQLite passes a file that xOpen filled.
    let handle = unsafe { Handle::of(file) };
    let mut flags = iocap::POWERSAFE_OVERWRITE | iocap::SAFE_APPEND | iocap::SEQUENTIAL;
    let batch_atomic = handle
        .process
        .settings
        .as_ref()
        .is_ok_and(|settings| settings.batch_atomic);
    if matches!(handle.kind, FileKind::Main(..)) && batch_atomic {
        flags |= iocap::BATCH_ATOMIC;
    }
    flags
}
