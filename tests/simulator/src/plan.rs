//! What is simulated: everything that a seed decides beforehand.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use clap::ValueEnum;

use crate::machine;
use crate::random::Random;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Any of the others, as the seed says.
    Mixed,
    /// Transactions that read and append to lists, over one database or two.
    Append,
    /// Transfers between accounts; the sum stays.
    Bank,
    /// Transactions larger than SQLite's page cache, staged while they run.
    Large,
    /// Branches, tags, restores and looks at old versions.
    Versions,
    /// Random SQL on one database each, compared with a plain SQLite.
    Sql,
    /// Transactions on raw pages, by the core of the library without SQLite.
    Pages,
}

/// What keeps the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Store {
    /// One version; gone with its server, which is therefore not killed.
    Memory,
    /// All versions; the same.
    Versioned,
    /// Durable: the adapter over a medium that survives, with several servers.
    Shadow,
    /// Durable: files on a disk that survives, and may lose its power.
    Local,
}

impl Store {
    /// Whether it outlives its servers.
    pub fn is_durable(self) -> bool {
        match self {
            Self::Shadow | Self::Local => true,
            Self::Memory | Self::Versioned => false,
        }
    }

    /// Whether it keeps old versions for those who ask for them.
    pub fn keeps_versions(self) -> bool {
        match self {
            Self::Versioned | Self::Local => true,
            Self::Memory | Self::Shadow => false,
        }
    }
}

/// Parts that can be switched off, to see whether the simulator finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Defect {
    /// A new holder's commit does not wait until the old one's trust is over.
    Fencing,
    /// The store does not compare the epoch of a commit.
    EpochCheck,
    /// The store does not know which commits it has seen.
    CommitIds,
    /// A commit does not wait for the answers of those that it warns (S2).
    InvalidationWait,
    /// What was staged and what came with the commit become visible one after the other.
    StagingFlip,
    /// The store panics in a commit now and then, which ends a task of the server and nothing else.
    ServerPanic,
    /// The library panics in a callback of SQLite now and then, where it is caught.
    LibraryPanic,
    /// The store finds a page damaged now and then, and says so.
    Refusal,
    /// The store answers zeros for a page now and then.
    Damage,
    /// The store answers the page of another database now and then.
    Foreign,
    /// The store answers pages of overflow now and then with their link and zeros, of which SQLite notices nothing.
    ZeroedOverflow,
    /// The store answers the newest content of a page, whichever version is asked for, as that version's.
    NewestPages,
    /// A page that is staged a second time stays what it was the first time.
    StaleStage,
    /// No sync of the local store's disk makes anything durable, and each says that it has.
    LyingSync,
    /// The library does not send pages again raw that a server of an older release calls invalid in their encoding.
    NoRawAgain,
    /// The store refuses old versions, branches, tags and restores, as one does that cannot do it now.
    NoVersions,
}

/// Which disk caches the clients have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caches {
    /// None.
    None,
    /// Those of each place their own.
    Each,
    /// All the same.
    One,
}

/// What happens to a client at a certain turn, for as long as two lifetimes of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Blow {
    /// Its process stands still.
    Stop,
    /// Its machine sleeps, and its clock with it.
    Sleep,
    /// What it sends is held back.
    HoldUp,
    /// What it is sent is held back.
    HoldDown,
    /// The server stands still.
    StopServer,
}

/// The only fault of a plan: a blow to a place behind so many turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Behind which turn.
    pub turn: u64,
    /// Of the client.
    pub place: usize,
    /// See there.
    pub blow: Blow,
}

/// See the file's header.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of everything.
    pub seed: u64,
    /// As chosen, never `Mixed`... unless the seed says that each transaction is another one.
    pub workload: Workload,
    /// See there.
    pub store: Store,
    /// Server processes at a time.
    pub servers: usize,
    /// Client processes at a time.
    pub clients: usize,
    /// Threads of each of them, which have connections of their own.
    pub threads: usize,
    /// Databases.
    pub databases: usize,
    /// Lists in each.
    pub lists: u64,
    /// Of sessions and leases.
    pub ttl_ms: u64,
    /// Of an operation of the library.
    pub timeout_ms: u64,
    /// Transactions before it becomes calm.
    pub steps: u64,
    /// Mean simulated time between two faults; none at all if it is 0.
    pub fault_every_ms: u64,
    /// Clocks go wrong by up to so many millionths.
    pub drift_ppm: u64,
    /// Of a hundred calls of the medium, those that go wrong in each way.
    pub weather_percent: u64,
    /// How long the local store keeps versions that nobody uses; `None` for ever.
    pub retention_ms: Option<u64>,
    /// Whether the disk of the local store writes nothing in place.
    pub copies_on_write: bool,
    /// Of a hundred servers that start, those of an older release, without the calls that are optional.
    pub older_percent: u64,
    /// Of a hundred client processes that start, those of an older release.
    pub older_clients_percent: u64,
    /// Of a hundred parts of messages, those that messages of other streams pass on the way.
    pub reorder_percent: u64,
    /// See there.
    pub caches: Caches,
    /// What is switched off.
    pub defect: Option<Defect>,
    /// Instead of the storm.
    pub sweep: Option<Sweep>,
}

impl Plan {
    /// What the seed says, as far as the caller does not.
    pub fn new(
        seed: u64,
        workload: Workload,
        store: Option<Store>,
        steps: Option<u64>,
        defect: Option<Defect>,
    ) -> Self {
        let mut random = Random::new(seed ^ 0x91a4);
        let drawn = *random.one_of(&[
            Store::Memory,
            Store::Versioned,
            Store::Shadow,
            Store::Shadow,
        ]);
        let is_given = store.is_some();
        let mut store = store.unwrap_or(drawn);
        if workload == Workload::Versions && !store.keeps_versions() {
            store = Store::Versioned;
        }
        let mut servers = match store {
            Store::Shadow if random.percent(50) => 2,
            Store::Shadow | Store::Local | Store::Memory | Store::Versioned => 1,
        };
        // Drawn beside the others, so that these stay what they were.
        let mut later = Random::new(seed ^ 0x7d3e);
        let mut latest = Random::new(seed ^ 0x10ca1);
        if latest.percent(30) && !is_given {
            store = Store::Local;
            servers = 1;
        }
        let ttl_ms = *random.one_of(&[300, 500, 1000, 2000]);
        Self {
            seed,
            workload,
            store,
            servers,
            clients: usize::try_from(random.between(1, 4)).unwrap_or(1),
            databases: usize::try_from(random.between(1, 2)).unwrap_or(1),
            threads: *later.one_of(&[1, 1, 2]),
            older_percent: *later.one_of(&[0, 0, 40]),
            older_clients_percent: *Random::new(seed ^ 0x01de5).one_of(&[0, 0, 0, 50]),
            lists: random.between(1, 5),
            ttl_ms,
            timeout_ms: random.between(ttl_ms, 3 * ttl_ms),
            steps: steps.unwrap_or_else(|| random.between(20, 60)),
            fault_every_ms: *random.one_of(&[0, 100, 300, 300, 1000, 1000, 3000]),
            drift_ppm: *random.one_of(&[0, 1_000, 30_000]),
            weather_percent: *random.one_of(&[0, 0, 1, 3]),
            retention_ms: *latest.one_of(&[None, Some(0), Some(1_000), Some(10_000)]),
            copies_on_write: latest.percent(30),
            caches: *Random::new(seed ^ 0xcac4e).one_of(&[
                Caches::None,
                Caches::None,
                Caches::Each,
                Caches::Each,
                Caches::One,
            ]),
            reorder_percent: *Random::new(seed ^ 0x57e4).one_of(&[0, 0, 3, 20]),
            defect,
            sweep: None,
        }
    }

    /// The same without disk caches.
    pub fn without_caches(self) -> Self {
        Self {
            caches: Caches::None,
            ..self
        }
    }

    /// A small one without a storm, so that every turn can have its blow.
    ///
    /// Appends on the versioned store unless something else is asked for.
    pub fn small(
        seed: u64,
        workload: Workload,
        store: Option<Store>,
        defect: Option<Defect>,
        sweep: Option<Sweep>,
    ) -> Self {
        let store = Some(store.unwrap_or(Store::Versioned));
        let workload = match workload {
            Workload::Mixed => Workload::Append,
            other => other,
        };
        Self {
            servers: 1,
            clients: SWEPT_CLIENTS,
            databases: 1,
            threads: 1,
            older_percent: 0,
            older_clients_percent: 0,
            lists: 2,
            ttl_ms: 500,
            timeout_ms: 1_000,
            fault_every_ms: 0,
            drift_ppm: 0,
            weather_percent: 0,
            retention_ms: None,
            copies_on_write: false,
            caches: Caches::None,
            reorder_percent: 0,
            sweep,
            ..Self::new(seed, workload, store, Some(4), defect)
        }
    }
}

/// Clients of a small plan.
pub const SWEPT_CLIENTS: usize = 2;

impl Plan {
    /// Whether versions that nobody uses are taken away.
    pub fn forgets_versions(&self) -> bool {
        self.store == Store::Local && self.retention_ms.is_some()
    }

    /// Whether there are versions, branches and restores.
    pub fn has_versions(&self) -> bool {
        self.store.keeps_versions() && matches!(self.workload, Workload::Mixed | Workload::Versions)
    }

    /// Whether there are transactions without SQLite.
    pub fn has_pages(&self) -> bool {
        matches!(self.workload, Workload::Mixed | Workload::Pages)
    }

    /// Whether the clients at a place know both servers, and go to the other one when theirs does not answer.
    pub fn knows_both(&self, place: usize) -> bool {
        self.servers > 1 && (place as u64 + self.seed).is_multiple_of(2)
    }

    /// For how long a part of a message is held at most. Without faults that is so short that nobody may notice.
    pub fn longest_reordering_ms(&self) -> u64 {
        match self.fault_every_ms {
            0 => 20,
            _ => 200,
        }
    }

    /// A plan in which nothing fails: what is an error then has no excuse.
    pub fn without_faults(self) -> Self {
        Self {
            fault_every_ms: 0,
            drift_ppm: 0,
            weather_percent: 0,
            older_percent: 0,
            ..self
        }
    }

    /// Whether a server of an older release may lack the calls of history: another one has to take its place before the calm.
    pub fn may_lack_history(&self) -> bool {
        // On a store that keeps one version no client may ask for them.
        self.older_percent > 0
            && self.fault_every_ms > 0
            && self.store.is_durable()
            && self.store.keeps_versions()
    }

    /// Threads of clients at a time.
    pub fn client_threads(&self) -> usize {
        self.clients * self.threads
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Things go wrong.
    Faults,
    /// Nothing goes wrong any more; everybody has to get on.
    Calm,
    /// The clients end.
    Over,
}

static PLAN: OnceLock<Plan> = OnceLock::new();
static PHASE: AtomicU8 = AtomicU8::new(0);
static CALM_SINCE: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Once in a process.
pub fn set(plan: Plan) {
    let _ = PLAN.set(plan);
}

/// The plan.
pub fn get() -> &'static Plan {
    match PLAN.get() {
        Some(plan) => plan,
        None => unreachable!("set before the simulation begins"),
    }
}

/// The plan, if there is one yet.
pub fn chosen() -> Option<&'static Plan> {
    PLAN.get()
}

/// Where we are.
pub fn phase() -> Phase {
    match PHASE.load(Ordering::SeqCst) {
        0 => Phase::Faults,
        1 => Phase::Calm,
        _ => Phase::Over,
    }
}

/// Goes on to the next.
pub fn set_phase(phase: Phase) {
    if phase == Phase::Calm {
        CALM_SINCE.store(machine::now(), Ordering::SeqCst);
    }
    PHASE.store(phase as u8, Ordering::SeqCst);
}

/// For how long there have been no faults any more; 0 as long as there are.
pub fn calm_ns() -> u64 {
    match phase() {
        Phase::Faults => 0,
        Phase::Calm | Phase::Over => machine::now() - CALM_SINCE.load(Ordering::SeqCst),
    }
}

/// A transaction has ended.
pub fn count_step() {
    STEPS.fetch_add(1, Ordering::SeqCst);
}

/// Transactions that have ended.
pub fn steps() -> u64 {
    STEPS.load(Ordering::SeqCst)
}

/// A thread of a client has ended; those that have ended.
pub fn count_end(more: usize) -> usize {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    ENDED.fetch_add(more, Ordering::SeqCst) + more
}

/// A thread of a client has done what it had to do in the calm.
pub fn client_is_done() {
    RUNNING.fetch_add(1, Ordering::SeqCst);
}

/// How many have.
pub fn clients_done() -> usize {
    RUNNING.load(Ordering::SeqCst)
}
