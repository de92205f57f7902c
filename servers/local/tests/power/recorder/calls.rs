//! The calls of the C library, which are taken over at linking: the engine's code is linked into this binary, and finds these first.

#![allow(unsafe_code, reason = "takes the place of functions of the C library")]

use std::ffi::{c_int, c_long, c_void};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::{
    Call, Errno, Event, FILES, LIVE, LIVE_COUNT, error_of, events_over, record, wait_while_held,
};

/// Of a write that fails whole ones are done.
const SECTOR: usize = 512;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(target_arch = "x86_64")]
const KCMP: c_long = 312;
#[cfg(not(target_arch = "x86_64"))]
const KCMP: c_long = 272;

/// Whether both are of one open file, which is told of an error once. Where the system does not say, only the same one is.
pub(super) fn is_duplicate(one: c_int, other: c_int) -> bool {
    let this = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: `kcmp(pid, pid, KCMP_FILE, fd, fd)` looks at two numbers, and writes nothing.
    one == other || unsafe { syscall(KCMP, this, this, 0, one, other) } == 0
}

/// As the C library says that a call failed.
fn failed(error: Errno) -> c_int {
    // SAFETY: the C library gives each thread a place of its own, for its whole life.
    unsafe { *__errno_location() = error.raw_os_error() };
    -1
}

/// The path of an open file of a store, and which one it is, while anything is recorded.
pub(super) fn file_of(fd: c_int) -> Option<(PathBuf, usize)> {
    if LIVE_COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let file = FILES.iter().position(|name| path.ends_with(name))?;
    Some((path, file))
}

fn written(fd: BorrowedFd<'_>, raw: c_int, offset: usize, bytes: &[u8]) {
    let Some((path, file)) = file_of(raw) else {
        return;
    };
    let flags = rustix::fs::fcntl_getfl(fd).unwrap();
    let synced = flags.intersects(rustix::fs::OFlags::DSYNC | rustix::fs::OFlags::SYNC);
    let bytes = bytes.to_vec();
    record(
        &path,
        Event::Write {
            file,
            offset,
            bytes,
            synced,
        },
    );
}

/// Syncs, and says so: of what was written when it began. Whether it failed is looked at in its end, as Linux does.
fn synced(raw: c_int, sync: impl FnOnce()) -> c_int {
    let file = file_of(raw);
    let began = file.as_ref().map_or(0, |(path, _)| events_over(path));
    sync();
    let Some((path, file)) = file else { return 0 };
    wait_while_held(&path, file);
    let error = error_of(raw, Call::Sync, 0);
    match error {
        None => record(&path, Event::Sync(file, began)),
        Some(_) => record(&path, Event::Lost(file, began)),
    }
    error.map_or(0, failed)
}

/// No error of the medium is expected in a test: it ends there.
fn done<T>(result: rustix::io::Result<T>, what: &str) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("{what}: {error}");
        std::process::abort()
    })
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller holds the file open and the bytes readable for the time of the call, as for the function it means.
    let (file, bytes) = unsafe {
        (
            BorrowedFd::borrow_raw(fd),
            std::slice::from_raw_parts(bytes.cast::<u8>(), length),
        )
    };
    let error = error_of(fd, Call::Write, offset as usize + length);
    let bytes = match error {
        None => bytes,
        // Some of it is there.
        Some(_) => &bytes[..length / 2 / SECTOR * SECTOR],
    };
    let count = done(rustix::io::pwrite(file, bytes, offset as u64), "pwrite");
    written(file, fd, offset as usize, &bytes[..count]);
    error.map_or(count as isize, |error| failed(error) as isize)
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn pread64(fd: c_int, bytes: *mut c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller holds the file open and the bytes writable for the time of the call, and reads no more of them than are read.
    let (file, bytes) = unsafe {
        std::ptr::write_bytes(bytes.cast::<u8>(), 0, length);
        let bytes = std::slice::from_raw_parts_mut(bytes.cast::<u8>(), length);
        (BorrowedFd::borrow_raw(fd), bytes)
    };
    match error_of(fd, Call::Read, offset as usize + length) {
        Some(error) => failed(error) as isize,
        None => match rustix::io::pread(file, bytes, offset as u64) {
            Ok(count) => count as isize,
            Err(error) => failed(error) as isize,
        },
    }
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(
    fd: c_int,
    bytes: *const c_void,
    length: usize,
    offset: i64,
) -> isize {
    // SAFETY: the same function under its other name.
    unsafe { pwrite(fd, bytes, length, offset) }
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const c_void, count: c_int) -> isize {
    // SAFETY: the caller holds the file open and the parts readable for the time of the call; `IoSlice` is an iovec by its contract.
    let (file, parts) = unsafe {
        let parts = std::slice::from_raw_parts(parts.cast::<IoSlice<'_>>(), count as usize);
        (BorrowedFd::borrow_raw(fd), parts)
    };
    let is_recorded = file_of(fd).is_some();
    let offset = match is_recorded {
        true => done(rustix::fs::tell(file), "lseek") as usize,
        false => 0,
    };
    if let Some(error) = error_of(fd, Call::Write, usize::MAX) {
        return failed(error) as isize;
    }
    let length = done(rustix::io::writev(file, parts), "writev");
    if is_recorded {
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        written(file, fd, offset, &all[..length]);
    }
    length as isize
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the caller holds the file open for the time of the call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    synced(fd, || done(rustix::fs::fdatasync(file), "fdatasync"))
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the caller holds the file open for the time of the call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let directory = directory_of(fd);
    let began = directory.as_ref().map_or(0, |path| events_over(path));
    let result = synced(fd, || done(rustix::fs::fsync(file), "fsync"));
    if let Some(path) = directory {
        record(&path, Event::Names(began));
    }
    result
}

/// The path of an open directory of a store that is recorded.
fn directory_of(fd: c_int) -> Option<PathBuf> {
    if LIVE_COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let live = LIVE.lock();
    live.iter()
        .any(|live| live.directory == path)
        .then_some(path)
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    // SAFETY: the caller holds the file open for the time of the call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    done(rustix::fs::ftruncate(file, length as u64), "ftruncate");
    if let Some((path, file)) = file_of(fd) {
        record(&path, Event::Length(file, length as usize));
    }
    0
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    // SAFETY: the same function under its other name.
    unsafe { ftruncate64(fd, length) }
}
