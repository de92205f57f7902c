//! Counts of calls, by kind: what `pagewire_rpc` shows. A round trip is counted when it begins.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// What a call was for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CallKind {
            $($(#[$doc])* $variant,)*
        }

        impl CallKind {
            /// All kinds, in the order of their counters.
            pub const ALL: &[CallKind] = &[$(CallKind::$variant,)*];

            /// The name in `pagewire_rpc`.
            pub fn name(self) -> &'static str {
                match self {
                    $(CallKind::$variant => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// Hello and Welcome of a session.
    Session = "session";
    /// OpenDatabase.
    Open = "open";
    /// BeginSnapshot.
    Begin = "begin";
    /// ReadPages.
    Read = "read";
    /// AcquireLease.
    Acquire = "acquire";
    /// StagePages.
    Stage = "stage";
    /// Commit.
    Commit = "commit";
    /// ResolveCommit.
    Resolve = "resolve";
    /// CloseDatabase, where somebody waited until it was taken.
    Close = "close";
    /// DeleteDatabase.
    Delete = "delete";
    /// FindVersion.
    Find = "find";
    /// ListVersions, DiffVersions and DescribeDatabase.
    History = "history";
    /// SetTag and DeleteTag.
    Tag = "tag";
    /// CreateBranch.
    Branch = "branch";
    /// Heartbeat.
    Heartbeat = "heartbeat";
    /// ReleaseLease, KeepLease and DropStagings.
    Release = "release";
    /// Subscribe, Unsubscribe, and the news of a subscription with their answers.
    Push = "push";
}

impl CallKind {
    /// Whether there are servers without these calls, which everything else goes on without.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Find | Self::History | Self::Tag | Self::Branch)
    }
}

const KINDS: usize = CallKind::ALL.len();

/// One row of `pagewire_rpc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCount {
    /// Round trips that somebody waited for.
    pub count: u64,
    /// The others: heartbeats, pushes, prefetch.
    pub background: u64,
    /// Bytes of the messages sent, without framing.
    pub bytes_sent: u64,
    /// Bytes of the messages received, without framing.
    pub bytes_received: u64,
}

/// The counters of a process.
#[derive(Debug)]
pub struct Counters {
    rows: [[AtomicU64; 4]; KINDS],
}

impl Counters {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            rows: [const { [const { AtomicU64::new(0) }; 4] }; KINDS],
        }
    }

    /// A call that somebody waits for.
    pub fn waited(&self, kind: CallKind) {
        self.rows[kind as usize][0].fetch_add(1, Ordering::Relaxed);
    }

    /// Somebody waits, after all, for a call that was counted as one for which nobody does.
    pub fn waited_after_all(&self, kind: CallKind) {
        self.rows[kind as usize][1].fetch_sub(1, Ordering::Relaxed);
        self.waited(kind);
    }

    /// A call that nobody waits for.
    pub fn background(&self, kind: CallKind) {
        self.rows[kind as usize][1].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes of messages.
    pub fn bytes(&self, kind: CallKind, sent: usize, received: usize) {
        self.rows[kind as usize][2].fetch_add(sent as u64, Ordering::Relaxed);
        self.rows[kind as usize][3].fetch_add(received as u64, Ordering::Relaxed);
    }

    /// The counts of one kind.
    pub fn read(&self, kind: CallKind) -> CallCount {
        let [count, background, sent, received] = &self.rows[kind as usize];
        CallCount {
            count: count.load(Ordering::Relaxed),
            background: background.load(Ordering::Relaxed),
            bytes_sent: sent.load(Ordering::Relaxed),
            bytes_received: received.load(Ordering::Relaxed),
        }
    }
}

/// The counters of this process, over all endpoints.
pub static COUNTERS: Counters = Counters::new();

/// What reading ahead was worth, in pages: what `pagewire_status` shows.
#[derive(Debug)]
pub struct PrefetchCounters {
    fetched: AtomicU64,
    hits: AtomicU64,
    wasted: AtomicU64,
}

/// A reading of [`PrefetchCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefetchCount {
    /// Pages that came before anybody had asked for them.
    pub fetched: u64,
    /// Those that were read then.
    pub hits: u64,
    /// Those of which it is clear that they were fetched for nothing.
    pub wasted: u64,
}

impl PrefetchCounters {
    /// Pages have come.
    pub fn fetched(&self, pages: u64) {
        self.fetched.fetch_add(pages, Ordering::Relaxed);
    }

    /// One of them is read.
    pub fn hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody will read these.
    pub fn wasted(&self, pages: u64) {
        self.wasted.fetch_add(pages, Ordering::Relaxed);
    }

    /// The counts.
    pub fn read(&self) -> PrefetchCount {
        PrefetchCount {
            fetched: self.fetched.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
            wasted: self.wasted.load(Ordering::Relaxed),
        }
    }
}

/// The counters of this process, over all endpoints.
pub static PREFETCH: PrefetchCounters = PrefetchCounters {
    fetched: AtomicU64::new(0),
    hits: AtomicU64::new(0),
    wasted: AtomicU64::new(0),
};

/// What the disk cache was worth, in pages: what `pagewire_status` shows.
#[derive(Debug)]
pub struct DiskCounters {
    hits: AtomicU64,
    misses: AtomicU64,
    written: AtomicU64,
    dropped: AtomicU64,
    damaged: AtomicU64,
}

/// A reading of [`DiskCounters`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCount {
    /// Pages that were found.
    pub hits: u64,
    /// Pages that had to be asked for.
    pub misses: u64,
    /// Pages that were written.
    pub written: u64,
    /// Pages that were left out: too many waited.
    pub dropped: u64,
    /// Slots that were neither empty nor right.
    pub damaged: u64,
}

impl DiskCounters {
    /// A page was looked for.
    pub fn looked(&self, found: bool) {
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A page was written.
    pub fn written(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
    }

    /// A page was left out.
    pub fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A slot is damaged.
    pub fn damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts.
    pub fn read(&self) -> DiskCount {
        DiskCount {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            damaged: self.damaged.load(Ordering::Relaxed),
        }
    }
}

/// The counters of this process, over all directories.
pub static DISK: DiskCounters = DiskCounters {
    hits: AtomicU64::new(0),
    misses: AtomicU64::new(0),
    written: AtomicU64::new(0),
    dropped: AtomicU64::new(0),
    damaged: AtomicU64::new(0),
};
