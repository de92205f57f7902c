//! What only the operating system's C interface gives: a clock that counts suspended time, and a value for each process.

use std::sync::atomic::{AtomicPtr, Ordering};

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
        let pid = std::process::id();
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
