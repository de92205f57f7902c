//! The operating system, as far as Pagewire, tokio, the standard library, SQLite and LMDB see it: time, randomness, waiting, threads, and what
//! is written to the disk.
//!
//! A program that has this linked in calls these functions instead of those of the C library. Until a simulation begins they
//! pass everything on.

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use libc::{clockid_t, epoll_event, pthread_attr_t, pthread_t, size_t, ssize_t, timespec};

use super::real::{self, Routine};
use super::{Clock, Waiting, disk, is_active};

const SECOND: u64 = 1_000_000_000;

fn fail(error: c_int) -> c_int {
    // SAFETY: the place of this thread's errno.
    unsafe { *libc::__errno_location() = error };
    -1
}

fn to_timespec(ns: u64) -> timespec {
    timespec {
        tv_sec: (ns / SECOND).cast_signed(),
        tv_nsec: (ns % SECOND).cast_signed(),
    }
}

/// # Safety
/// The time is null or valid.
unsafe fn to_ns(time: *const timespec) -> Option<u64> {
    // SAFETY: promised by the caller.
    let time = unsafe { time.as_ref() }?;
    Some(
        u64::try_from(time.tv_sec).unwrap_or(0) * SECOND + u64::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn simulated(clock: clockid_t) -> Option<Clock> {
    match clock {
        libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_MONOTONIC_RAW => {
            Some(Clock::Monotonic)
        }
        libc::CLOCK_BOOTTIME => Some(Clock::Boot),
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(Clock::Wall),
        _ => None,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let shown = simulated(clock).and_then(|clock| match clock {
        _ if is_active() => Some(super::clock(clock)),
        Clock::Wall => super::wall_before(),
        Clock::Monotonic | Clock::Boot => None,
    });
    match shown {
        Some(ns) => {
            // SAFETY: the caller passes a place for the time.
            unsafe { time.write(to_timespec(ns)) };
            0
        }
        // SAFETY: the caller's arguments.
        None => unsafe { real::clock_gettime(clock, time) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn gettimeofday(time: *mut libc::timeval, zone: *mut c_void) -> c_int {
    if !is_active() || time.is_null() {
        // SAFETY: the caller's arguments.
        return unsafe { real::gettimeofday(time, zone) };
    }
    let ns = super::clock(Clock::Wall);
    // SAFETY: the caller passes a place for the time.
    unsafe {
        time.write(libc::timeval {
            tv_sec: (ns / SECOND).cast_signed(),
            tv_usec: (ns % SECOND / 1000).cast_signed(),
        });
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(room: *mut c_void, bytes: size_t, flags: c_uint) -> ssize_t {
    if !is_active() {
        // SAFETY: the caller's arguments.
        return unsafe { real::getrandom(room, bytes, flags) };
    }
    // Asked for nothing, a caller may pass any pointer.
    if bytes > 0 {
        // SAFETY: the caller passes so many bytes of room.
        super::fill_random(unsafe { std::slice::from_raw_parts_mut(room.cast::<u8>(), bytes) });
    }
    ssize_t::try_from(bytes).unwrap_or(0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    if timeout != 0 && super::is_simulated_thread() {
        let deadline = u64::try_from(timeout)
            .ok()
            .map(|ms| super::after(ms * 1_000_000));
        super::wait_for_epoll(epoll, deadline);
    }
    let timeout = if is_active() { 0 } else { timeout };
    // SAFETY: the caller's arguments.
    unsafe { real::epoll_wait(epoll, events, most, timeout) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if is_active() {
        match number {
            libc::SYS_futex => {
                // SAFETY: the caller's arguments.
                if let Some(answer) = unsafe { futex(a, b as c_int, c as u32, d, e, f as u32) } {
                    return answer;
                }
            }
            libc::SYS_getrandom => {
                // SAFETY: the caller's arguments.
                return unsafe { getrandom(a as *mut c_void, b as size_t, c as c_uint) } as c_long;
            }
            _ => {}
        }
    }
    // SAFETY: the caller's arguments.
    unsafe { real::syscall(number, a, b, c, d, e, f) }
}

/// `None` for what is not simulated.
///
/// # Safety
/// The arguments are those of the system call.
unsafe fn futex(
    word: c_long,
    operation: c_int,
    value: u32,
    timeout: c_long,
    _second: c_long,
    _bits: u32,
) -> Option<c_long> {
    let address = word as usize;
    match operation & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) {
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let most = usize::try_from(value.cast_signed()).unwrap_or(usize::MAX);
            Some(super::wake_futex(address, most) as c_long)
        }
        wait @ (libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET) if super::is_simulated_thread() => {
            // SAFETY: the caller passes the address of an aligned word that others may change at any time.
            let now = unsafe { &*(address as *const std::sync::atomic::AtomicU32) };
            if now.load(std::sync::atomic::Ordering::SeqCst) != value {
                return Some(c_long::from(fail(libc::EAGAIN)));
            }
            // SAFETY: the caller passes null or a time.
            let deadline = unsafe { to_ns(timeout as *const timespec) }.map(|ns| match wait {
                libc::FUTEX_WAIT => super::after(ns),
                _ => super::after(ns.saturating_sub(super::clock(Clock::Monotonic))),
            });
            match super::wait(Waiting::Futex(address), deadline) {
                true => Some(0),
                false => Some(c_long::from(fail(libc::ETIMEDOUT))),
            }
        }
        _ => None,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    routine: Routine,
    argument: *mut c_void,
) -> c_int {
    if is_active() {
        // SAFETY: the caller's arguments.
        unsafe { super::create_thread(thread, attributes, routine, argument) }
    } else {
        // SAFETY: the caller's arguments.
        unsafe { real::pthread_create(thread, attributes, routine, argument) }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_join(thread: pthread_t, answer: *mut *mut c_void) -> c_int {
    super::wait_for_end(thread);
    // SAFETY: the caller's arguments.
    unsafe { real::pthread_join(thread, answer) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn usleep(microseconds: c_uint) -> c_int {
    if super::is_simulated_thread() {
        super::sleep_ns(u64::from(microseconds) * 1000);
        return 0;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::usleep(microseconds) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nanosleep(wanted: *const timespec, left: *mut timespec) -> c_int {
    if super::is_simulated_thread() {
        // SAFETY: the caller passes a time.
        super::sleep_ns(unsafe { to_ns(wanted) }.unwrap_or(0));
        return 0;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::nanosleep(wanted, left) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn clock_nanosleep(
    clock: clockid_t,
    flags: c_int,
    wanted: *const timespec,
    left: *mut timespec,
) -> c_int {
    if super::is_simulated_thread() {
        // SAFETY: the caller passes a time.
        let ns = unsafe { to_ns(wanted) }.unwrap_or(0);
        let from = match simulated(clock) {
            Some(clock) if flags & libc::TIMER_ABSTIME != 0 => super::clock(clock),
            _ => 0,
        };
        super::sleep_ns(ns.saturating_sub(from));
        return 0;
    }
    // SAFETY: the caller's arguments.
    unsafe { real::clock_nanosleep(clock, flags, wanted, left) }
}

/// What a call of the C library is to do with a file on the simulated disk.
fn on_disk(file: c_int) -> Option<PathBuf> {
    is_active().then(|| disk::path_of(file)).flatten()
}

/// The same of a path.
///
/// # Safety
/// A C string.
unsafe fn named_on_disk(path: *const c_char) -> Option<PathBuf> {
    if !is_active() {
        return None;
    }
    // SAFETY: promised by the caller.
    let path = unsafe { CStr::from_ptr(path) };
    disk::place_of(Path::new(OsStr::from_bytes(path.to_bytes())))
}

fn opened(file: c_int) -> c_int {
    if file >= 0
        && let Some(path) = on_disk(file)
    {
        disk::opened(file, &path);
    }
    file
}

// The mode, which is passed on only where there is one, lies where it would lie for a function with so many arguments.
#[unsafe(no_mangle)]
unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments.
    opened(unsafe { real::open(path, flags, mode) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's arguments.
    opened(unsafe { real::open64(path, flags, mode) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller passes a C string.
    let (done, place) = unsafe { (real::unlink(path), named_on_disk(path)) };
    if let (0, Some(place)) = (done, place) {
        disk::removed(&place);
    }
    done
}

fn is_synced(file: c_int) -> bool {
    // SAFETY: no pointers.
    unsafe { libc::fcntl(file, libc::F_GETFL) & libc::O_DSYNC != 0 }
}

/// # Safety
/// As for `pwrite`.
unsafe fn write_at(file: c_int, bytes: *const c_void, length: size_t, offset: i64) -> ssize_t {
    let path = on_disk(file);
    let synced = path.is_some() && is_synced(file);
    let end = usize::try_from(offset).unwrap_or(0) + length;
    if let Some(path) = &path
        && !synced
        && !disk::has_room(path, end)
    {
        return fail(libc::ENOSPC) as ssize_t;
    }
    // SAFETY: the caller's arguments.
    let done = unsafe { real::pwrite64(file, bytes, length, offset) };
    if let (Some(path), Ok(count @ 1..), Ok(offset)) =
        (path, usize::try_from(done), usize::try_from(offset))
    {
        // SAFETY: the caller passes so many bytes at least.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), count) };
        let write = disk::written(&path, offset, bytes);
        if synced {
            disk::sync_write(&path, write, offset + count);
        }
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(
    file: c_int,
    bytes: *const c_void,
    length: size_t,
    offset: i64,
) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { write_at(file, bytes, length, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(
    file: c_int,
    bytes: *const c_void,
    length: size_t,
    offset: i64,
) -> ssize_t {
    // SAFETY: the caller's arguments.
    unsafe { write_at(file, bytes, length, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn writev(file: c_int, parts: *const libc::iovec, count: c_int) -> ssize_t {
    let path = on_disk(file);
    // SAFETY: no pointers.
    let offset = unsafe { libc::lseek(file, 0, libc::SEEK_CUR) };
    if let (Some(path), Ok(offset)) = (&path, usize::try_from(offset)) {
        // SAFETY: the caller passes so many parts.
        let parts =
            unsafe { std::slice::from_raw_parts(parts, usize::try_from(count).unwrap_or(0)) };
        let length: usize = parts.iter().map(|part| part.iov_len).sum();
        if !disk::has_room(path, offset + length) {
            return fail(libc::ENOSPC) as ssize_t;
        }
    }
    // SAFETY: the caller's arguments.
    let done = unsafe { real::writev(file, parts, count) };
    if let (Some(path), Ok(mut left @ 1..), Ok(mut at)) =
        (path, usize::try_from(done), usize::try_from(offset))
    {
        let synced = is_synced(file);
        // SAFETY: the caller passes so many parts.
        let parts =
            unsafe { std::slice::from_raw_parts(parts, usize::try_from(count).unwrap_or(0)) };
        for part in parts {
            let length = part.iov_len.min(left);
            if length == 0 {
                continue;
            }
            // SAFETY: so many bytes of the part were written.
            let bytes = unsafe { std::slice::from_raw_parts(part.iov_base.cast::<u8>(), length) };
            let write = disk::written(&path, at, bytes);
            at += length;
            left -= length;
            if synced {
                disk::sync_write(&path, write, at);
            }
        }
    }
    done
}

fn truncate(file: c_int, length: i64) -> c_int {
    // SAFETY: no pointers.
    let done = unsafe { real::ftruncate64(file, length) };
    if done == 0
        && let (Some(path), Ok(length)) = (on_disk(file), usize::try_from(length))
    {
        disk::truncated(&path, length);
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(file: c_int, length: i64) -> c_int {
    truncate(file, length)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(file: c_int, length: i64) -> c_int {
    truncate(file, length)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(file: c_int) -> c_int {
    match on_disk(file) {
        Some(path) if disk::sync(file, &path) => 0,
        Some(_) => fail(libc::EIO),
        // SAFETY: the caller's arguments.
        None => unsafe { real::fdatasync(file) },
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(file: c_int) -> c_int {
    match on_disk(file) {
        Some(path) if disk::sync(file, &path) => 0,
        Some(_) => fail(libc::EIO),
        // SAFETY: the caller's arguments.
        None => unsafe { real::fsync(file) },
    }
}
