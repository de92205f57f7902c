//! The shadow-paging adapter: [`ShadowStore`] is a [`PageStore`](pagewire_server::store::PageStore) out of any [`KeyValue`], a store
//! that changes one key at a time. Pages go into immutable segments under new keys; one small root of each database is swapped.
//!
//! # Calls of a commit
//! | commit | calls, one after the other | in all |
//! |---|---|---|
//! | of one database, up to 8 MiB | put the segment, swap the root | 2 |
//! | without pages | swap the root | 1 |
//! | larger | put segments of 8 MiB, four at a time; swap the root | 1 for each 8 MiB, and 1 |
//! | of n databases | put, place intents, decide, finish; the decision is deleted behind it | 3 n + 2 |
//!
//! A fence is a look at the root and a swap, and so is the claim before the first one of a server; while a lease stays at a server its claim
//! costs nothing. Once in 128 commits one call more: a put of old records. Where readers keep thousands of old versions, one more in some 256: a put
//! of an archive (`state.rs`). A small commit takes the pages of smaller ones before it along (`commit.rs`), so
//! that a reader has few indexes to look into; larger segments are merged behind the commits (`merge.rs`). What a root says is known from the
//! last swap, so nothing is read before a commit; if another server has swapped since, the swap is lost and the root read.
//!
//! # States of a root
//! A root has a generation, a state of the database, and perhaps an *intent*: the state that a transaction over several
//! databases makes of it. A transaction is decided by the first value of its key: committed, written by its owner alone, or aborted,
//! written by anybody whom its intent is in the way of. That swap is the commit point.
//!
//! ```text
//!        T1 swap: the next state                        T2 place an intent (tag of the read on which the next state stands)
//!      +------------+                     settled ------------------------------------------------> intended
//!      |            v                        ^                                                       |   |
//!      +-------- settled                     | T6 forget: all participants are beyond it             |   | T3 T4 decide once:
//!                                            |    and without it; only then the decision goes        |   |  nothing -> committed
//!                                            +--- T5 carry out what was decided <--------------------+   |  nothing -> aborted
//!                                                 (committed: the intent's state; aborted: the old one)  +--> decided
//! ```
//! * **I1** Every swap of a root raises its generation by one and names the tag of the read that it stands on. So no value is written
//!   twice, and what a swap was decided on is what it replaces.
//! * **I2** The state of a root without an intent, or with one that is not committed, is its state; with a committed one it is that of the
//!   intent. A reader who finds an intent looks for the decision and then reads the root once more: only if it is the same one was what
//!   he found, a decision or none, that of this intent at the time of that look (I6). Where the roots have moved on and the decision was
//!   forgotten, a late call (K4) may write another one, that nobody goes by.
//! * **I3** A transaction reads all of its roots before it places its first intent, places each by the tag of that read, at most once, and
//!   never again under the same id. It decides to commit only when all have been placed.
//! * **I4** Whoever wants to change a root with an undecided intent decides first: it is aborted. Then the change carries the decision out in
//!   the same swap.
//! * **I5** The epoch, the base and the commit id are looked at in the state that the swap replaces (C4, C5, C6, C12, C13): a fence, or a
//!   resolve, in between changes the tag.
//! * **I6** A decision is deleted only when each participant's root has a generation above the one that its intent was to be placed on, and
//!   no intent of it. By I1 and I3 none can be placed any more, however long its owner slept; and while one is there the
//!   decision is not forgotten. An owner that wakes up and decides after that has decided nothing: it believes in its commit only where a
//!   root shows it (T5).
//! * **I7** The key of a segment has the generation of the root that its maker knew. A swap names a new segment only if that is not below the
//!   root's *horizon*. A collection raises the horizon, by a swap, and deletes what is below it and not named by the root: whoever
//!   wanted to name it cannot any more, be it an hour later, and writes it again. It deletes nothing by age alone: age only decides
//!   how far the horizon is raised.
//! * **I8** A state says everything about every version from `oldest` to the head; what it says of older ones that are still read is in
//!   archives that it names. A segment that any of them reads is named by the state or by such an archive.
//! * **I9** A database exists when its root does, a name when its key says so. A root comes first and is removed first (a state, not a
//!   deletion), so that a name may lead to a removed root, which counts as none, and a lost root to no name, which is collected. So is a
//!   database that was never committed to and not leased for a day. Both are judged in the state that the removing swap replaces (I5).
//!
//! # What several servers on one installation have
//! All of the contract: any of them may commit to any database, a fence by one ends the leases of all others (C5, C12). And claims: the
//! lease of a database is given out by one of them at a time, and moves between them as their sessions want it (`peers.rs`, S1 to S8), so
//! that what a holder reads without asking is what the newest commit of any of them made. Floors are each server's own: a version that only
//! a session of another server reads is kept for [`ShadowOptions::keep_replaced`] after it was replaced.
//!
//! What a server does without being asked, and which of them does it, is in `upkeep.rs` (U1 to U4).
//!
//! Absent on purpose: locks in the store, clocks that decide whether something is right, lists in the path of a commit or a read.

mod cells;
mod collect;
mod commit;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod keys;
mod kv;
mod merge;
mod patient;
mod peers;
mod read;
mod resolve;
mod roots;
mod segment;
mod slots;
mod staging;
mod state;
mod store;
pub mod testing;
mod transaction;
mod upkeep;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pagewire_proto::{DatabaseId, Incarnation, UnixMillis, Version};
use pagewire_server::store::StoreError;
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use cells::{Archive, Installation};
use keys::SegmentId;
pub use kv::{KeyValue, KeyValueError, Swap, Tag, Unchanged, Value};
use patient::Patient;
use peers::Peering;
use roots::{ATTEMPTS, Loaded, harmless, wait};
use segment::Index;
use slots::{SlotInUse, Slots};
use staging::Stagings;
use tokio::task::JoinSet;
use upkeep::Collecting;

/// What time it is.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// How a [`ShadowStore`] keeps.
#[derive(Clone)]
pub struct ShadowOptions {
    /// How long a version is kept after it was replaced, for sessions of other servers on the same installation. Those of this
    /// one are known by their floors.
    pub keep_replaced: Duration,
    /// Segments that nobody has named for so long are collected. A commit that is slower, or a staging that is older, is refused or
    /// writes its pages again; it never does harm.
    pub abandoned_after: Duration,
    /// From the end of a pass that collects everything abandoned to the beginning of the next one. One server of an
    /// installation is about one at a time.
    pub collect_every: Duration,
    /// Replaced segments that a root names itself, for readers of old versions; of more than twice as many the older half go to
    /// a value of their own, once in so many commits.
    pub root_entries: usize,
    /// Bytes of roots, indexes, small segments and entries of old versions that are kept in memory.
    pub cache_bytes: u64,
    /// Bytes of stagings that are kept in memory, of all clients together; beyond it the largest becomes a segment. At most twice as much
    /// while segments are put: what comes then is refused for the moment.
    pub staging_bytes: usize,
    /// A name that was never committed to is taken back when no lease of it was given out for so long. Who has it open all that time finds
    /// with its first commit that there is no such database.
    pub unborn_after: Duration,
    /// For records and retention; never for what is right.
    pub clock: Clock,
    /// For what the servers of an installation know of each other: a clock of this machine alone, which counts the time in which
    /// it slept.
    pub since_boot: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Default for ShadowOptions {
    fn default() -> Self {
        Self {
            keep_replaced: Duration::from_secs(60),
            abandoned_after: Duration::from_secs(3600),
            collect_every: Duration::from_secs(900),
            root_entries: 256,
            cache_bytes: 128 << 20,
            staging_bytes: 256 << 20,
            unborn_after: Duration::from_secs(24 * 3600),
            clock: Arc::new(wall_clock),
            since_boot: Arc::new(pagewire_server::clock::since_boot),
        }
    }
}

impl std::fmt::Debug for ShadowOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShadowOptions")
            .field("keep_replaced", &self.keep_replaced)
            .field("abandoned_after", &self.abandoned_after)
            .field("collect_every", &self.collect_every)
            .field("root_entries", &self.root_entries)
            .field("cache_bytes", &self.cache_bytes)
            .field("staging_bytes", &self.staging_bytes)
            .field("unborn_after", &self.unborn_after)
            .finish_non_exhaustive()
    }
}

/// Pages in a store that changes one key at a time. See the top of this file.
#[derive(Debug)]
pub struct ShadowStore(Arc<Inner>);

/// What the calls share.
#[derive(Debug)]
pub(crate) struct Inner {
    /// For what goes on behind a call.
    this: Weak<Inner>,
    kv: Arc<dyn KeyValue>,
    options: ShadowOptions,
    incarnation: Incarnation,
    /// Of this process, where it collects.
    collector: [u8; 16],
    /// The other servers, and what this one has of the claims.
    peering: Peering,
    slots: Slots,
    roots: Cache<DatabaseId, Arc<Loaded>, RootWeight>,
    indexes: Cache<SegmentId, Arc<Index>, IndexWeight>,
    /// Small segments as they are.
    segments: Cache<SegmentId, Bytes, BytesWeight>,
    /// Entries of old versions.
    archives: Cache<SegmentId, Arc<Archive>, ArchiveWeight>,
    stagings: Mutex<Stagings>,
    /// The medium has failed (C17).
    failed: AtomicBool,
    collecting: tokio::sync::Mutex<Collecting>,
    /// What goes on behind the calls (U1).
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Clone, Debug)]
struct RootWeight;

impl Weighter<DatabaseId, Arc<Loaded>> for RootWeight {
    fn weight(&self, _: &DatabaseId, loaded: &Arc<Loaded>) -> u64 {
        let state = &loaded.state;
        // Twice: in the root and as what it means.
        2 * (200 + 128 * state.entries.len() + 96 * state.records.len()) as u64
    }
}

#[derive(Clone, Debug)]
struct IndexWeight;

impl Weighter<SegmentId, Arc<Index>> for IndexWeight {
    fn weight(&self, _: &SegmentId, index: &Arc<Index>) -> u64 {
        64 + size_of_val(&index.0[..]) as u64
    }
}

#[derive(Clone, Debug)]
struct BytesWeight;

impl Weighter<SegmentId, Bytes> for BytesWeight {
    fn weight(&self, _: &SegmentId, bytes: &Bytes) -> u64 {
        64 + bytes.len() as u64
    }
}

#[derive(Clone, Debug)]
struct ArchiveWeight;

impl Weighter<SegmentId, Arc<Archive>> for ArchiveWeight {
    fn weight(&self, _: &SegmentId, archive: &Arc<Archive>) -> u64 {
        64 + size_of_val(&archive.entries[..]) as u64
    }
}

impl Drop for ShadowStore {
    fn drop(&mut self) {
        self.0.tasks.lock().abort_all();
    }
}

impl ShadowStore {
    /// Opens an installation with the usual options, or makes it.
    pub async fn open(kv: Arc<dyn KeyValue>) -> Result<Self, StoreError> {
        Self::open_with(kv, ShadowOptions::default()).await
    }

    /// Opens an installation, or makes it.
    pub async fn open_with(
        kv: Arc<dyn KeyValue>,
        options: ShadowOptions,
    ) -> Result<Self, StoreError> {
        let kv: Arc<dyn KeyValue> = Arc::new(Patient(kv));
        let incarnation = incarnation(&*kv).await?;
        let part = options.cache_bytes / 4;
        let collector = *Incarnation::random().map_err(no_randomness)?.as_bytes();
        let store = Self(Arc::new_cyclic(|this| Inner {
            this: Weak::clone(this),
            kv,
            incarnation,
            collector,
            peering: Peering::default(),
            slots: Slots::default(),
            roots: Cache::with_weighter(10_000, part, RootWeight),
            indexes: Cache::with_weighter(10_000, part, IndexWeight),
            segments: Cache::with_weighter(1_000, part, BytesWeight),
            archives: Cache::with_weighter(1_000, part, ArchiveWeight),
            stagings: Mutex::new(Stagings::new(options.staging_bytes)),
            failed: AtomicBool::new(false),
            collecting: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
            options,
        }));
        store.0.begin_upkeep();
        store.0.begin_looking();
        store.0.begin_wishing();
        Ok(store)
    }

    /// Forgets what is cached, so that everything is read from the store again.
    pub fn drop_caches(&self) {
        self.0.roots.clear();
        self.0.indexes.clear();
        self.0.segments.clear();
        self.0.archives.clear();
    }

    /// Databases of which something is kept beside the store, for tests.
    #[doc(hidden)]
    pub fn slots_in_memory(&self) -> usize {
        self.0.slots.len()
    }

    /// Where the content of a page is, for tests that damage it: a key and a byte in its value.
    #[doc(hidden)]
    pub async fn locate(
        &self,
        database: DatabaseId,
        page: pagewire_proto::PageNumber,
        version: Version,
    ) -> Result<Option<(String, usize)>, StoreError> {
        self.0.locate(database, page, version).await
    }
}

/// The identity of the installation, which comes into being with the first call.
async fn incarnation(kv: &dyn KeyValue) -> Result<Incarnation, StoreError> {
    let mut last_error = None;
    for attempt in 0..ATTEMPTS {
        wait(attempt).await;
        if let Some(value) = kv.get(keys::INSTALLATION).await.map_err(harmless)? {
            let found: Installation = cells::decode(keys::INSTALLATION, &value.content)?;
            return Incarnation::try_from(&found.incarnation[..])
                .map_err(|error| StoreError::Corrupt(error.to_string()));
        }
        let new = Installation {
            incarnation: Incarnation::random().map_err(no_randomness)?.to_wire(),
            serial: 1,
            ..Installation::default()
        };
        let swap = kv.swap(keys::INSTALLATION, None, cells::encode(&new));
        // Done or not, the next look tells whose it is.
        last_error = swap.await.err();
    }
    Err(last_error.map_or_else(
        || StoreError::Unavailable("others make the installation all the time".to_owned()),
        harmless,
    ))
}

impl Inner {
    pub(crate) fn now_ms(&self) -> i64 {
        (self.options.clock)().0
    }

    /// The slot of a database, for as long as the answer is kept.
    pub(crate) fn slot(&self, database: DatabaseId) -> SlotInUse {
        self.slots.of(database)
    }
}

pub(crate) fn no_randomness(error: pagewire_proto::Invalid) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn wall_clock() -> UnixMillis {
    #[expect(
        clippy::disallowed_methods,
        reason = "the clock that others can replace"
    )]
    let now = SystemTime::now();
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    UnixMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
