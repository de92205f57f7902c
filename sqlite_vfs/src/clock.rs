//! The clock by which leases are trusted: monotonic, and counting the time for which the machine was suspended.

use std::time::Duration;

/// A moment of `CLOCK_BOOTTIME` in nanoseconds. The default one is before all others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Moment {
    /// Now. A laptop that was asleep finds its leases expired, which `CLOCK_MONOTONIC` would not tell it.
    pub fn now() -> Self {
        // Without such a clock everything that could be trusted has expired.
        Self(crate::ffi::boot_time_ns())
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
