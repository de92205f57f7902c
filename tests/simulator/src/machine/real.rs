//! The functions of the C library behind those of [`super::symbols`].

use std::ffi::{CStr, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use libc::{clockid_t, epoll_event, pthread_attr_t, pthread_t, size_t, ssize_t, timespec};

/// A function of the C library, found when it is first needed.
struct Found {
    name: &'static CStr,
    at: AtomicPtr<c_void>,
}

impl Found {
    const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            at: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    fn get(&self) -> *mut c_void {
        let mut at = self.at.load(Ordering::Acquire);
        if at.is_null() {
            // SAFETY: the name is a C string; the answer is null or the next definition after this program's own.
            at = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            assert!(!at.is_null(), "the C library has no {:?}", self.name);
            self.at.store(at, Ordering::Release);
        }
        at
    }
}

macro_rules! real {
    ($($symbol:literal $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        /// # Safety
        /// As for the function of the C library.
        pub unsafe fn $name($($argument: $type),*) -> $answer {
            static FOUND: Found = Found::new($symbol);
            // SAFETY: the symbol has this type in every C library for Linux; the arguments are the caller's.
            unsafe {
                let function: unsafe extern "C" fn($($type),*) -> $answer = std::mem::transmute(FOUND.get());
                function($($argument),*)
            }
        }
    )*};
}

pub type Routine = extern "C" fn(*mut c_void) -> *mut c_void;

real! {
    c"clock_gettime" clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int;
    c"gettimeofday" gettimeofday(time: *mut libc::timeval, zone: *mut c_void) -> c_int;
    c"getrandom" getrandom(room: *mut c_void, bytes: size_t, flags: c_uint) -> ssize_t;
    c"epoll_wait" epoll_wait(epoll: c_int, events: *mut epoll_event, most: c_int, timeout: c_int) -> c_int;
    c"syscall" syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long;
    c"pthread_create" pthread_create(thread: *mut pthread_t, attributes: *const pthread_attr_t, routine: Routine, argument: *mut c_void) -> c_int;
    c"pthread_join" pthread_join(thread: pthread_t, answer: *mut *mut c_void) -> c_int;
    c"open" open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    c"open64" open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int;
    c"unlink" unlink(path: *const c_char) -> c_int;
    c"pwrite64" pwrite64(file: c_int, bytes: *const c_void, length: size_t, offset: i64) -> ssize_t;
    c"writev" writev(file: c_int, parts: *const libc::iovec, count: c_int) -> ssize_t;
    c"ftruncate64" ftruncate64(file: c_int, length: i64) -> c_int;
    c"fdatasync" fdatasync(file: c_int) -> c_int;
    c"fsync" fsync(file: c_int) -> c_int;
    c"usleep" usleep(microseconds: c_uint) -> c_int;
    c"nanosleep" nanosleep(wanted: *const timespec, left: *mut timespec) -> c_int;
    c"clock_nanosleep" clock_nanosleep(clock: clockid_t, flags: c_int, wanted: *const timespec, left: *mut timespec) -> c_int;
}

/// Waits in the kernel as long as the word has the value.
pub fn futex_wait(word: &AtomicU32, value: u32) {
    // SAFETY: the word lives for the duration of the call.
    unsafe {
        syscall(
            libc::SYS_futex,
            word.as_ptr() as c_long,
            c_long::from(libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG),
            c_long::from(value),
            0,
            0,
            0,
        );
    }
}

/// Wakes one who waits for the word.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: as above.
    unsafe {
        syscall(
            libc::SYS_futex,
            word.as_ptr() as c_long,
            c_long::from(libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG),
            1,
            0,
            0,
            0,
        );
    }
}
