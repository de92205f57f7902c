//! What happened in a run, by number: a fault that never comes up and a feature that always refuses would make every other check an empty one.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $variant,)*
        }

        impl Event {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As the table names it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

events! {
    /// A connection was cut, and both sides were told.
    CutTold = "connection cut, both told",
    /// Only the client was told.
    CutClientTold = "connection cut, client told",
    /// Only the server was told.
    CutServerTold = "connection cut, server told",
    /// Nobody was.
    CutQuiet = "connection cut, nobody told",
    /// A way was held back.
    Hold = "link held back",
    /// A piece took a hundred times as long.
    SlowPiece = "slow piece",
    /// A message arrived before one of another stream of its connection that was sent first.
    Reordered = "message before an earlier one",
    /// What a client had sent on a connection that was cut arrived behind what it sent on the next one.
    LateMessage = "message behind a newer connection",
    /// A commit arrived at the store when its client had asked already what became of it: behind its repetition, if it is repeated.
    LateCommit = "commit behind its settlement",
    /// A SYN got no answer.
    SynLost = "connecting, no answer",
    /// A SYN was refused.
    SynRefused = "connecting, refused",
    /// A client process was killed.
    ClientKilled = "client killed",
    /// A server process was killed.
    ServerKilled = "server killed",
    /// With its machine.
    ServerMachineKilled = "server machine killed",
    /// A server ended in order.
    ServerEnded = "server stopped in order",
    /// A server of an older release began.
    ServerOlder = "older server started",
    /// In the place of one of now, on what that has left.
    Downgraded = "server replaced by an older one",
    /// One of now took its place.
    Upgraded = "older server replaced by newer",
    /// A client staged at one that has no stagings.
    OlderStage = "older server: no StagePages",
    /// Or wanted versions of one that has none of those calls.
    OlderHistory = "older server: no history calls",
    /// Or sent it a page in an encoding that the server before it knew.
    OlderEncoding = "older server: encoding unknown",
    /// Or was not sent a message of the session that it may not know.
    OlderMessage = "older server: message not sent",
    /// A client of an older release began.
    ClientOlder = "older client started",
    /// A process stood still.
    Stopped = "process stopped",
    /// With its machine's clock.
    Slept = "machine slept",
    /// A wall clock jumped.
    WallClock = "wall clock turned",
    /// A write of the local store's disk found no room.
    DiskFull = "disk full",
    /// One in place did not either.
    DiskFullInPlace = "disk full, written in place",
    /// A sync of the local store's disk failed.
    SyncFailed = "sync failed",
    /// A loss of power took or tore what was not synced.
    PowerTore = "loss of power took something",
    /// The shadow store's medium had no room.
    MediumFull = "medium full",
    /// It failed otherwise.
    MediumFailed = "medium failed",
    /// A transaction was committed.
    Committed = "committed",
    /// One was refused, or failed before its commit.
    Aborted = "aborted",
    /// Nobody knows what became of a commit.
    Unknown = "outcome unknown",
    /// A server was asked what became of a commit, and had not seen it.
    Resolved = "outcome asked for: not applied",
    /// It had been applied.
    ResolvedCommitted = "outcome asked for: applied",
    /// A client that lives had a lease, and it was over before the server heard of the client again.
    LeaseExpired = "lease expired under its holder",
    /// A lock was waited for in vain.
    Busy = "busy",
    /// Pages were uploaded ahead of their commit.
    Staged = "staged",
    /// A commit over several databases.
    CommittedTwo = "commit over two databases",
    /// A transaction that may read what is a little old.
    Bounded = "bounded read",
    /// It read a version that was not the newest.
    Stale = "bounded read, stale",
    /// All rows of large transactions were compared with what their writers wrote.
    LargeLooked = "large: content compared",
    /// Random SQL came out as in a plain SQLite.
    SqlSame = "sql: statement the same",
    /// A database was made anew.
    SqlVacuum = "sql: VACUUM",
    /// Its database was found as it was before an unknown commit.
    SqlBefore = "sql: unknown commit, not there",
    /// Or as it is behind it.
    SqlBehind = "sql: unknown commit, there",
    /// An old version was read again.
    LookedBack = "at= read",
    /// Retention had taken it away.
    Gone = "at= refused, version gone",
    /// A branch was made.
    Branched = "branch made",
    /// And written to.
    BranchChanged = "branch changed",
    /// And restored.
    BranchRestored = "branch restored",
    /// A branch was looked at in the end.
    BranchFound = "branch found in the end",
    /// A database that others write to was restored.
    HeadRestored = "shared head restored",
    /// Somebody else wrote to such a database.
    HeadWritten = "shared head written",
    /// A version was named.
    Tagged = "tag set",
    /// A tag was moved to another version.
    TagMoved = "tag moved",
    /// A tag was taken away.
    Untagged = "tag removed",
    /// A version was read by its tag.
    TagRead = "at=TAG read",
    /// A transaction without SQLite was committed.
    PagesCommitted = "pages: committed",
    /// One was refused, failed before its commit or was rolled back.
    PagesAborted = "pages: aborted",
    /// Nobody knows what became of its commit.
    PagesUnknown = "pages: outcome unknown",
    /// It was rolled back since its client wanted that.
    PagesRolledBack = "pages: rolled back",
    /// A commit over both of its databases.
    PagesCommittedTwo = "pages: commit over two",
    /// It was larger than what is staged.
    PagesLarge = "pages: large transaction",
    /// A page was read.
    PagesRead = "pages: page read",
    /// One was written.
    PagesWritten = "pages: page written",
    /// A database became shorter.
    PagesCut = "pages: truncated",
    /// What was there was looked at behind the end of a transaction.
    PagesLookedBehind = "pages: read behind the end",
    /// A client process began with what others had left in its disk cache.
    CacheKept = "disk cache kept",
    /// A loss of power took a part of it.
    CacheTorn = "disk cache torn",
    /// Bits in it turned over.
    CacheDamaged = "disk cache damaged",
    /// A page was read from it.
    CacheRead = "disk cache: page found",
    /// What lay there was no page.
    CacheRefused = "disk cache: damage noticed",
    /// A client that knows two servers went from one to the other.
    FailOver = "client went to the other server",
}

static COUNTS: [AtomicU64; Event::ALL.len()] = [const { AtomicU64::new(0) }; Event::ALL.len()];

/// It happened once more.
pub fn count(event: Event) {
    add(event, 1);
}

/// It happened so many times more.
pub fn add(event: Event, times: u64) {
    COUNTS[event as usize].fetch_add(times, Ordering::SeqCst);
}

/// How often each has happened, in the order of [`Event::ALL`].
pub fn all() -> Vec<u64> {
    COUNTS
        .iter()
        .map(|count| count.load(Ordering::SeqCst))
        .collect()
}

/// The table, in three columns.
pub fn table(counts: &[u64]) -> String {
    let cells: Vec<String> = Event::ALL
        .iter()
        .zip(counts)
        .map(|(event, count)| format!("{count:>9}  {:<32}", event.name()))
        .collect();
    let rows = cells.len().div_ceil(3);
    let line = |row: usize| {
        let cells = (0..3).filter_map(|column| cells.get(column * rows + row));
        cells.cloned().collect::<String>().trim_end().to_owned()
    };
    (0..rows).map(line).collect::<Vec<_>>().join("\n")
}

/// What never happened.
pub fn missing(counts: &[u64]) -> Vec<&'static str> {
    let never = Event::ALL
        .iter()
        .zip(counts)
        .filter(|(_, count)| **count == 0);
    never.map(|(event, _)| event.name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_missed() {
        let mut counts = vec![1; Event::ALL.len()];
        assert_eq!(missing(&counts), [""; 0]);
        counts[Event::Branched as usize] = 0;
        assert_eq!(missing(&counts), ["branch made"]);
    }
}
