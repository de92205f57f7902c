//! A simulation of everything: clients with real SQLite, a network, page servers and what keeps their pages, in one process, on
//! simulated time, from a seed. The same seed gives the same trace.
//!
//! What is real: SQLite, the VFS with its threads, tokio, hyper, tonic, the page server, the stores. What is not: the operating
//! system below them ([`machine`]), the network ([`net`]) and the medium. `docs/simulation.md` tells what it does and how to use it.

mod blame;
pub mod check;
pub mod cli;
mod client;
mod content;
mod counts;
mod defect;
pub mod finding;
mod history;
mod ledger;
#[allow(unsafe_code, reason = "it stands in for the operating system")]
mod machine;
mod nemesis;
mod net;
mod older;
mod plan;
mod random;
mod server;
mod sqlite;
mod watched;

pub use plan::{Blow, Defect, Plan, Store, Sweep, Workload};

use std::collections::BTreeMap;

use parking_lot::Mutex;

use finding::{Finding, Kind};
use plan::Caches;

use random::Random;

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything that is wrong; nothing, one hopes.
    pub problems: Vec<Finding>,
    /// A hash of everything that happened.
    pub trace: u64,
    /// Turns of threads.
    pub turns: u64,
    /// Transactions.
    pub transactions: usize,
    /// Of them, those that were committed.
    pub committed: usize,
    /// Of them, those whose outcome was told as unknown, or to nobody.
    pub unknown: usize,
    /// Simulated nanoseconds.
    pub ns: u64,
    /// Of those, the longest that a statement took.
    pub longest_ns: u64,
    /// What happened how often, in the order of [`counts::Event::ALL`].
    pub counts: Vec<u64>,
}

static PROBLEMS: Mutex<Vec<Finding>> = Mutex::new(Vec::new());
static COUNTS: Mutex<(usize, usize, usize)> = Mutex::new((0, 0, 0));

/// The server that each client process has connected to last.
static NODES: Mutex<BTreeMap<machine::ProcessId, usize>> = Mutex::new(BTreeMap::new());

struct Outside;

impl pagewire::simulation::World for Outside {
    fn process(&self) -> u64 {
        defect::panic_in_the_library();
        machine::process() as u64
    }

    fn is_older(&self) -> bool {
        client::is_older(machine::process())
    }

    fn connect(&self, authority: &str) -> pagewire::simulation::Connecting {
        let host = authority.split(':').next().unwrap_or("");
        let node = host
            .strip_prefix('s')
            .and_then(|node| node.parse().ok())
            .unwrap_or(usize::MAX);
        Box::pin(async move {
            let socket = net::connect(node).await?;
            let before = NODES.lock().insert(machine::process(), node);
            if before.is_some_and(|before| before != node) {
                counts::count(counts::Event::FailOver);
            }
            Ok(Box::new(socket) as Box<dyn pagewire::simulation::Stream>)
        })
    }

    fn failed(&self, kind: pagewire::simulation::Kind, message: &str) {
        blame::reported(kind, message);
    }

    fn leases_expired(&self, leases: usize) {
        counts::add(counts::Event::LeaseExpired, leases as u64);
    }

    fn sends_raw_again(&self) -> bool {
        defect::sends_raw_again()
    }

    fn withheld(&self) {
        counts::count(counts::Event::OlderMessage);
    }

    fn refused(&self, reason: pagewire_proto::status::Reason, message: &str) {
        blame::refused(reason, message);
    }
}

/// Panics that were caught, by tokio in a server or by the library, end nothing: they are known by this alone.
static PANICS: Mutex<Vec<Finding>> = Mutex::new(Vec::new());

fn hear_panics(seed: u64) {
    std::panic::set_hook(Box::new(move |panic| {
        let what = format!("p{}: {panic}", machine::process());
        eprintln!("seed {seed}: {what}");
        PANICS.lock().push(Kind::Panic.finding(what));
    }));
}

/// Simulates a seed. Once in an operating-system process, on its only thread, since much of what is left behind stays.
pub fn simulate(plan: Plan, tells: bool, fibers: bool) -> Report {
    machine::stop_wall_clock(plan.seed);
    let mut random = Random::new(plan.seed);
    sqlite::prepare(plan.seed);
    machine::set_environment("PAGEWIRE_STAGE_BYTES", "65536");
    machine::set_environment("PAGEWIRE_OVERLAY_BYTES", "65536");
    pagewire::simulation::install(&Outside);
    defect::switch_off(plan.defect);
    hear_panics(plan.seed);
    let (seed, store) = (plan.seed, plan.store);
    let begun = match (store, plan.caches) {
        (Store::Local, _) => machine::disk::begin(),
        (_, Caches::None) => Ok(()),
        (_, Caches::Each | Caches::One) => machine::disk::begin_folder().map(drop),
    };
    if let Err(error) = begun {
        return Report {
            problems: vec![Kind::Machine.finding(format!("no disk: {error}"))],
            ..Report::default()
        };
    }
    plan::set(plan);
    let ended = machine::run(seed, tells, fibers, || {
        net::begin(random.fork());
        machine::trace(format_args!("{:?}", plan::get()));
        nemesis::begin(random.fork());
        nemesis::last_client(|| match client::prepare() {
            Ok(()) => machine::at(machine::now(), nemesis::storm),
            Err(error) => machine::stop(Some(format!("no databases: {error}"))),
        });
    });
    let mut problems = std::mem::take(&mut *PROBLEMS.lock());
    problems.append(&mut PANICS.lock());
    // Where there was no last look.
    problems.extend(history::take().violations);
    problems.extend(ended.problem.map(|what| Kind::Machine.finding(what)));
    if store == Store::Local {
        problems.extend(machine::disk::unseen().map(|what| Kind::Machine.finding(what)));
    }
    problems.extend(older::count_met());
    let caches = pagewire::simulation::disk_cache();
    counts::add(counts::Event::CacheRead, caches.hits);
    counts::add(counts::Event::CacheRefused, caches.damaged);
    let (transactions, committed, unknown) = *COUNTS.lock();
    Report {
        problems,
        trace: ended.trace,
        turns: ended.turns,
        transactions,
        committed,
        unknown,
        ns: ended.ns,
        longest_ns: machine::longest(0),
        counts: counts::all(),
    }
}

/// Everybody has ended: looks at what there is, and whether it can be.
fn last_look() {
    nemesis::last_client(|| {
        let found = client::final_look();
        let history = history::take();
        let count = |outcome| {
            history
                .transactions
                .iter()
                .filter(|t| t.outcome == outcome)
                .count()
        };
        *COUNTS.lock() = (
            history.transactions.len(),
            count(history::Outcome::Ok),
            count(history::Outcome::Unknown),
        );
        let problems = match found {
            Ok((lists, mut problems)) => {
                problems.extend(check::problems(&history, &lists));
                problems
            }
            Err(error) => {
                let mut problems = history.violations;
                problems.push(Kind::Stuck.finding(format!("the last look failed: {error}")));
                problems
            }
        };
        *PROBLEMS.lock() = problems;
        machine::stop(None);
    });
}
