//! Clocks that stores use, as parameters, so that tests drive them: the wall clock for the times of versions, and one that counts
//! suspended time for what is trusted and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Milliseconds since 1970. For times of versions and for retention, never for the order of anything.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The clock of the machine.
    pub fn wall() -> Self {
        Self(Arc::new(|| {
            #[expect(
                clippy::disallowed_methods,
                reason = "what everything else takes from here"
            )]
            let now = SystemTime::now();
            let since = now.duration_since(SystemTime::UNIX_EPOCH);
            since.map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            })
        }))
    }

    /// Another clock.
    pub fn new(now_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::wall()
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Clock({})", self.now_ms())
    }
}

/// Time since the machine started, with the time in which it slept: what somebody trusts runs out then too.
///
/// Where the system does not have such a clock, without that time.
pub fn since_boot() -> Duration {
    // Through the C library, whose functions the simulator defines.
    #[cfg(target_os = "linux")]
    const CLOCK: nix::time::ClockId = nix::time::ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: nix::time::ClockId = nix::time::ClockId::CLOCK_MONOTONIC;
    // It fails only for clocks that the system does not have.
    nix::time::clock_gettime(CLOCK).map_or(Duration::ZERO, Duration::from)
}

/// A clock that moves only when it is told to.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl Default for ManualClock {
    fn default() -> Self {
        // Some day in 2026: not so small that a retention reaches back before 1970.
        Self(Arc::new(AtomicU64::new(1_790_000_000_000)))
    }
}

impl ManualClock {
    /// Moves it.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_add(by, Ordering::SeqCst);
    }

    /// Moves it back, as the clocks of machines sometimes do.
    pub fn turn_back(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.fetch_sub(by, Ordering::SeqCst);
    }

    /// What a store is given.
    pub fn clock(&self) -> Clock {
        let now = Arc::clone(&self.0);
        Clock::new(move || now.load(Ordering::SeqCst))
    }
}
