//! How long ago something was, where forgetting it too early would break a promise (C14, V4).
//!
//! The wall clock of a page server may be ahead of that of the one that wrote a time. The cluster has a clock of its own, the same for all of them: its
//! versions rise by a million a second, but leap by a hundred seconds whenever it recovers. So something is forgotten when both say that it
//! is long ago: one alone that is ahead makes nothing go early.
//!
//! The clock of the cluster is ahead by more than an hour after a forced recovery, which leaps by about a week, after `advanceversion`, and after a restore
//! of a backup or a switch to a copy, which raise the version above that of the other cluster. Then the wall clock decides alone about what was
//! noted before: a server that is an hour ahead forgets it at once.

use std::time::Duration;

use pagewire_server::store::COMMIT_RECORD_TTL;

use crate::FoundationDbOptions;
use crate::engine::{Fail, Txn};

/// By how much the version of the cluster rises in a millisecond.
const VERSIONS_A_MILLISECOND: u64 = 1000;
/// A transaction is committed within this time of the version that it reads, or not at all.
const TRANSACTION_LIFE: Duration = Duration::from_secs(5);
/// For how long something is remembered of which the transaction that wrote it has noted the version that it read.
pub(crate) const REMEMBERED: Duration = COMMIT_RECORD_TTL.saturating_add(TRANSACTION_LIFE);

/// The present, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// In milliseconds since 1970, by the wall clock of this server.
    pub(crate) time_ms: u64,
    /// The version of the cluster.
    pub(crate) cluster: u64,
    remembered: Duration,
}

impl Now {
    /// Whether what was done then need not be remembered any more.
    pub(crate) fn is_long_after(&self, time_ms: u64, cluster: u64) -> bool {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let versions = ms(self.remembered).saturating_mul(VERSIONS_A_MILLISECOND);
        time_ms.saturating_add(ms(COMMIT_RECORD_TTL)) < self.time_ms
            && cluster.saturating_add(versions) <= self.cluster
    }
}

impl Txn {
    /// The present. Costs nothing where something was read before.
    pub(crate) async fn now(&self, options: &FoundationDbOptions) -> Result<Now, Fail> {
        Ok(Now {
            time_ms: options.clock.now_ms(),
            cluster: self.cluster_version().await?,
            remembered: options.remembered,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_have_to_say_that_it_is_long_ago() {
        let hour_ms = 3_600_000;
        let now = |time_ms, cluster| Now {
            time_ms,
            cluster,
            remembered: REMEMBERED,
        };
        let versions = (hour_ms + 5000) * VERSIONS_A_MILLISECOND;
        assert!(now(hour_ms + 8, versions + 7).is_long_after(7, 7));
        assert!(!now(hour_ms + 7, u64::MAX).is_long_after(7, 7));
        assert!(!now(u64::MAX, versions + 6).is_long_after(7, 7));
    }
}
