//! The clock by which leases are trusted: monotonic, and counting the time for which the machine was suspended.

use std::time::Duration;

/// A moment of `CLOCK_BOOTTIME` in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// Now. A laptop that was asleep finds its leases expired, which `CLOCK_MONOTONIC` would not tell it.
    #[expect(
        unsafe_code,
        reason = "the standard library has no clock that counts suspended time"
    )]
    pub fn now() -> Self {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is a valid place for the answer for the duration of the call.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) } != 0;
        if failed {
            // Far in the future: everything that could be trusted has expired.
            return Self(u64::MAX);
        }
        Self(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// This moment and a duration.
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// This moment less a duration.
    pub fn before(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}
