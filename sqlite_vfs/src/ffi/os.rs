//! What only the operating system's C interface gives: a clock that counts suspended time, the process id without a system
//! call, and a value for each process.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// `CLOCK_BOOTTIME` in nanoseconds; `u64::MAX` where there is none.
pub fn boot_time_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer for the duration of the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) } != 0;
    if failed {
        return u64::MAX;
    }
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The id of the running process, as [`std::process::id`].
///
/// Every callback of SQLite asks for it, some 25 times in a small commit, so it is remembered: in a page that the kernel
/// empties in the child of a fork (`MADV_WIPEONFORK`, Linux 4.14). Where that can't be had the kernel is asked each time.
/// Not for a child that shares the parent's memory (`vfork`), which must not use SQLite anyway.
pub fn process_id() -> u32 {
    static PAGE: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());
    // Which has no such page, nor a fork.
    if cfg!(miri) {
        return std::process::id();
    }
    let mut page = PAGE.load(Ordering::Acquire);
    if page.is_null() {
        let fresh = page_wiped_on_fork();
        page = match PAGE.compare_exchange(
            std::ptr::null_mut(),
            fresh,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => fresh,
            // Another thread was first: the page made here stays unused, once in the life of a process.
            Err(first) => first,
        };
    }
    // SAFETY: null, or a page of this process that is never unmapped and that is only used as this atomic number.
    let Some(known) = (unsafe { page.as_ref() }) else {
        return std::process::id();
    };
    match known.load(Ordering::Relaxed) {
        0 => {
            let id = std::process::id();
            known.store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

/// A page of zeros that a child finds as zeros again; null where the kernel has no such thing.
fn page_wiped_on_fork() -> *mut AtomicU32 {
    const PAGE_BYTES: usize = 4096;
    // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing else.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            PAGE_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    // SAFETY: the page was just mapped, and nobody has seen it.
    let wiped = unsafe { libc::madvise(page, PAGE_BYTES, libc::MADV_WIPEONFORK) } == 0;
    if !wiped {
        // SAFETY: as above.
        unsafe { libc::munmap(page, PAGE_BYTES) };
        return std::ptr::null_mut();
    }
    page.cast()
}

/// A value that is made once in each process. After fork() the child gets one of its own; the parent's is left alone, neither
/// used nor dropped, since its threads and the holders of its locks are not there.
///
/// There is no lock that a fork could leave locked: whoever makes a value too many drops it.
pub struct ForkLocal<T> {
    current: AtomicPtr<Made<T>>,
}

struct Made<T> {
    pid: u32,
    value: T,
}

impl<T: Send + Sync + 'static> ForkLocal<T> {
    /// Nothing made yet.
    pub const fn new() -> Self {
        Self {
            current: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// The value of this process.
    pub fn get(&self, make: impl Fn(u32) -> T) -> &'static T {
        let pid = process_id();
        let mut seen = self.current.load(Ordering::Acquire);
        loop {
            // SAFETY: a pointer in `current` is null or comes from `Box::into_raw` below and is never freed.
            if let Some(made) = unsafe { seen.as_ref() }
                && made.pid == pid
            {
                return &made.value;
            }
            let fresh = Box::into_raw(Box::new(Made {
                pid,
                value: make(pid),
            }));
            match self
                .current
                .compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire)
            {
                // SAFETY: it was just made, and is never freed.
                Ok(_) => return unsafe { &(*fresh).value },
                Err(other) => {
                    // SAFETY: nobody else has seen `fresh`.
                    drop(unsafe { Box::from_raw(fresh) });
                    seen = other;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_has_an_id_of_its_own() {
        assert_eq!(process_id(), std::process::id());
        // SAFETY: the child calls nothing that another thread's lock could be needed for, and ends at once.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: as above.
            let right = process_id() == unsafe { libc::getpid() }.cast_unsigned();
            // SAFETY: ends this process.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: `status` is a valid place for the answer.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(process_id(), std::process::id());
    }
}
