//! Client processes: real SQLite on the real VFS, each with a thread of its own or two, which share what the library has once in a process.

mod append;
mod bank;
pub mod cache;
mod heads;
mod large;
mod pages;
mod setup;
mod sql;
mod versions;

use std::collections::BTreeSet;

use parking_lot::Mutex;
use rusqlite::Connection;

use crate::blame;
use crate::counts::{Event, count};
use crate::finding::Kind;
use crate::history::{self, Outcome, Step};
use crate::machine::{self, ProcessId};
use crate::net::{self, Break};
use crate::plan::{self, Phase, Plan, Workload};
use crate::random::Random;
use crate::sqlite;

pub use heads::HEADS;
pub use setup::{final_look, prepare};

/// How long a client may take for a few transactions once nothing goes wrong any more. Longer than the sum of what is allowed:
/// a keepalive of ten seconds finds a dead connection, leases and subscriptions of the dead run out.
const CALM_WITHIN_MS: u64 = 60_000;
/// Transactions that each client has to make in the calm.
const CALM_TRANSACTIONS: u64 = 3;
/// How long SQLite tries again for a lock.
const BUSY_MS: u64 = 200;
/// How often it does within that: its pauses are 1, 2, 5, 10, 15, 20, 25, 25, 25, 50 and 22 ms.
const BUSY_TRIES: u64 = 12;
/// Of which SQLite's handler does not know: each try may take so long without being counted.
const FREE_MS: u64 = 100;
/// How long the library waits in one try for a lease that is in use, and for a grant.
const TRY_MS: u64 = 1_000 + 25;
/// How long a lock waits at most: what was waited is counted before the next try begins.
const LOCK_MS: u64 = BUSY_MS + BUSY_TRIES * FREE_MS + TRY_MS;

/// One thread of a client process, with connections of its own.
pub struct Client {
    place: usize,
    thread: usize,
    process: ProcessId,
    random: Random,
    values: u64,
    writer: Option<Databases>,
    reader: Option<Databases>,
    pair: Option<sql::Pair>,
    heads: Option<Connection>,
    /// For writing, and for reading.
    files: [Option<pages::Files>; 2],
}

/// A connection to all databases.
struct Databases {
    connection: Connection,
    /// Under which name each of them is known.
    schemas: Vec<&'static str>,
    staleness: u64,
}

/// Why a transaction did not come to its end.
type Failure = rusqlite::Error;

/// Processes of an older release.
static OLDER: Mutex<BTreeSet<ProcessId>> = Mutex::new(BTreeSet::new());

/// Whether the process is a client of an older release.
pub fn is_older(process: ProcessId) -> bool {
    OLDER.lock().contains(&process)
}

/// Starts a client process at a place.
pub fn start(place: usize, random: &mut Random) -> ProcessId {
    let plan = plan::get();
    let drift = i64::try_from(random.below(2 * plan.drift_ppm + 1)).unwrap_or(0);
    let process = machine::new_process(random, drift - i64::try_from(plan.drift_ppm).unwrap_or(0));
    net::client_starts(process, place);
    cache::process_begins(place, random);
    let older = plan.older_clients_percent > 0 && random.percent(plan.older_clients_percent);
    machine::trace(format_args!(
        "client {place} starts as p{process}, older: {older}"
    ));
    if older {
        count(Event::ClientOlder);
        OLDER.lock().insert(process);
    }
    for thread in 0..plan.threads {
        let own = random.fork();
        machine::spawn(process, "client", move || {
            Client::new(place, thread, process, own).run()
        });
    }
    process
}

/// The URI of a database on the servers of these nodes.
fn uri(nodes: &[usize], database: usize, more: &str) -> String {
    let timeout = plan::get().timeout_ms;
    let endpoint = endpoint(nodes);
    format!("file:db{database}?vfs=pagewire&endpoint={endpoint}&timeout_ms={timeout}{more}")
}

/// The servers of these nodes, as a setting names them.
fn endpoint(nodes: &[usize]) -> String {
    let servers: Vec<_> = nodes
        .iter()
        .map(|node| format!("http://s{node}:7240"))
        .collect();
    servers.join(",")
}

/// Whether transactions may wait for each other's databases through two servers: only their busy timeouts end that.
fn waits_across_servers(plan: &Plan) -> bool {
    plan.servers > 1 && plan.databases > 1
}

/// How long the calm may last.
pub fn calm_within_ns(plan: &Plan) -> u64 {
    let mut ms = CALM_WITHIN_MS;
    if waits_across_servers(plan) {
        // Everybody may be the one who waits, once for each of his transactions.
        let waits = plan.client_threads() * plan.databases;
        ms += CALM_TRANSACTIONS * waits as u64 * LOCK_MS;
    }
    ms * 1_000_000
}

/// Does something that has to end in time, whatever it does.
fn in_time<T>(what: &str, body: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    timed(what, body)
}

/// The same, whatever its error is.
fn timed<T, E: std::fmt::Debug>(what: &str, body: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    let plan = plan::get();
    let (begun, stopped) = (machine::now(), machine::stopped_ns());
    let done = body();
    let took = (machine::now() - begun).saturating_sub(machine::stopped_ns() - stopped);
    // The deadline of an operation, once for each call that a statement makes of the VFS: a lock, a question about an earlier
    // commit, the commit, and that of its outcome.
    let mut most = 4 * plan.timeout_ms + 4 * plan.ttl_ms + BUSY_MS + 6_000;
    if waits_across_servers(plan) {
        most += plan.databases as u64 * LOCK_MS;
    }
    if took > most * 1_000_000 {
        history::violation(
            Kind::Slow,
            format!(
                "{what} took {} ms: {:?}",
                took / 1_000_000,
                done.as_ref().err()
            ),
        );
    }
    machine::longest(took);
    done
}

impl Client {
    fn new(place: usize, thread: usize, process: ProcessId, random: Random) -> Self {
        Self {
            place,
            thread,
            process,
            random,
            values: 0,
            writer: None,
            reader: None,
            pair: None,
            heads: None,
            files: [None, None],
        }
    }

    fn run(mut self) {
        let mut in_calm = 0;
        loop {
            let phase = plan::phase();
            if phase == Phase::Over {
                break;
            }
            let done = self.transaction(plan::get());
            plan::count_step();
            if done && phase == Phase::Calm {
                in_calm += 1;
                if in_calm == CALM_TRANSACTIONS {
                    plan::client_is_done();
                }
            }
            self.think();
        }
        drop(self.writer.take());
        drop(self.reader.take());
        drop(self.pair.take());
        drop(self.heads.take());
        self.files = [None, None];
        plan::count_end(1);
    }

    /// One transaction of any kind; whether it came to its end.
    fn transaction(&mut self, plan: &Plan) -> bool {
        let workload = match plan.workload {
            Workload::Mixed => {
                let all = [
                    Workload::Append,
                    Workload::Append,
                    Workload::Append,
                    Workload::Bank,
                    Workload::Large,
                    Workload::Sql,
                    Workload::Versions,
                    Workload::Pages,
                    Workload::Pages,
                ];
                *self.random.one_of(&all)
            }
            other => other,
        };
        blame::forget();
        if workload == Workload::Pages {
            return self.pages(plan);
        }
        let done = match workload {
            Workload::Bank => self.bank(plan),
            Workload::Large => self.large(plan),
            Workload::Sql => self.sql(plan),
            Workload::Versions if plan.store.keeps_versions() => self.versions(plan),
            _ => self.append(plan),
        };
        match done {
            Ok(()) => true,
            Err(error) => {
                machine::trace(format_args!("{workload:?} failed: {error}"));
                blame::judge(&format!("{workload:?}"), &error);
                // Some errors last as long as the connection does.
                if self.random.percent(40) {
                    self.writer = None;
                    self.reader = None;
                    self.pair = None;
                    self.heads = None;
                }
                false
            }
        }
    }

    fn think(&mut self) {
        let ms = if self.random.percent(5) { 500 } else { 20 };
        machine::sleep_ns(self.random.below(ms * 1_000_000));
    }

    /// The servers that it knows, in the order in which they are tried.
    fn nodes(&self) -> Vec<usize> {
        let plan = plan::get();
        let mut nodes = vec![self.place % plan.servers];
        if plan.knows_both(self.place) {
            nodes.push((self.place + 1) % plan.servers);
        }
        nodes
    }

    fn uri(&self, database: usize, more: &str) -> String {
        // The first connection of a process decides for all of them.
        let cache = cache::setting(self.place).map(|folder| format!("&cache_dir={folder}"));
        let more = format!("{}{more}", cache.unwrap_or_default());
        uri(&self.nodes(), database, &more)
    }

    fn next_value(&mut self) -> u64 {
        self.values += 1;
        (self.process * 2 + self.thread) as u64 * 1_000_000 + self.values
    }

    /// The connection for writing or, where there is another one, for reading.
    fn databases(&mut self, reading: bool) -> Result<Databases, Failure> {
        let kept = if reading {
            self.reader.take()
        } else {
            self.writer.take()
        };
        if let Some(kept) = kept
            && !self.random.percent(3)
        {
            return Ok(kept);
        }
        let plan = plan::get();
        let mut order: Vec<usize> = (0..plan.databases).collect();
        if self.random.percent(50) {
            order.reverse();
        }
        let mut more = String::new();
        let mut staleness = 0;
        // A read-only connection reads old versions.
        if reading && plan.store.keeps_versions() && self.random.percent(50) {
            more.push_str("&mode=ro");
        }
        if reading && self.random.percent(50) {
            let ms = self.random.between(1, 2 * plan.ttl_ms);
            staleness = ms * 1_000_000;
            more.push_str(&format!("&consistency=bounded&max_staleness_ms={ms}"));
        }
        let subscribe = self.random.one_of(&["auto", "always", "always", "never"]);
        more.push_str(&format!("&subscribe={subscribe}"));
        let mut schemas = vec!["main"; plan.databases];
        let connection = in_time("open", || sqlite::open(&self.uri(order[0], &more)))?;
        connection.busy_timeout(std::time::Duration::from_millis(BUSY_MS))?;
        for database in order.iter().skip(1) {
            schemas[*database] = "other";
            let attached = self.uri(*database, &more);
            in_time("ATTACH", || {
                connection.execute("ATTACH ?1 AS other", [&attached])
            })?;
        }
        if self.random.percent(50) {
            for schema in &schemas {
                connection.execute_batch(&format!("PRAGMA {schema}.cache_size = 10"))?;
            }
        }
        Ok(Databases {
            connection,
            schemas,
            staleness,
        })
    }

    fn give_back(&mut self, databases: Databases, reading: bool) {
        let place = if reading {
            &mut self.reader
        } else {
            &mut self.writer
        };
        *place = Some(databases);
    }

    /// The ambiguous commit is the fault that matters most, and too rare where it is left to chance: the connection breaks while
    /// it is on its way, while it is carried out, or while its answer is on its way.
    fn may_lose_the_commit(&mut self) {
        let plan = plan::get();
        if plan.fault_every_ms == 0 || plan::phase() != Phase::Faults || !self.random.percent(20) {
            return;
        }
        // Who knows two servers may be at either.
        let keys: Vec<_> = self
            .nodes()
            .into_iter()
            .map(|node| (self.place, node))
            .collect();
        // The original comes when its client has been told what became of it, before and after others have gone on.
        let latest = *self.random.one_of(&[15, 40, 100, 2 * plan.ttl_ms]);
        let later = self.random.below(latest * 1_000_000);
        let how = match self.random.below(8) {
            0 => Break::Told,
            1..5 => Break::ClientTold(later),
            5 | 6 => Break::ServerTold,
            _ => Break::Quiet,
        };
        let after = self.random.below(3 * net::one_way(keys[0]));
        machine::at(machine::now() + after, move || {
            for key in keys {
                net::cut(key, how);
            }
        });
    }

    /// A question that the transaction asks twice, with a pause between now and then.
    fn ask_twice(
        &mut self,
        databases: &Databases,
        transaction: usize,
        sql: &str,
    ) -> Result<(), Failure> {
        for _ in 0..2 {
            let answer: Option<String> = in_time("SELECT", || {
                databases.connection.query_row(sql, [], |row| row.get(0))
            })?;
            let answer = answer.unwrap_or_default();
            history::step(transaction, Step::Saw(sql.to_owned(), answer));
            if self.random.percent(30) {
                machine::sleep_ns(self.random.below(30_000_000));
            }
        }
        Ok(())
    }

    /// Runs a transaction and tells its history. The connection is given back unless it is of no use any more.
    fn record(
        &mut self,
        reading: bool,
        body: impl FnOnce(&mut Self, &Databases, usize) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let databases = self.databases(reading)?;
        let transaction = history::begin(self.process, machine::now(), databases.staleness);
        if databases.staleness > 0 {
            count(Event::Bounded);
        }
        machine::trace(format_args!(
            "transaction {transaction} begins, reading: {reading}"
        ));
        let immediate = !reading && self.random.percent(50);
        let begin = if immediate {
            "BEGIN IMMEDIATE"
        } else {
            "BEGIN"
        };
        let done = in_time(begin, || databases.connection.execute_batch(begin))
            .and_then(|()| body(self, &databases, transaction));
        let ended = match done {
            Ok(()) if self.random.percent(8) => {
                history::end(
                    transaction,
                    machine::now(),
                    Outcome::Aborted,
                    Some("rolled back".to_owned()),
                );
                Ok(())
            }
            Ok(()) => {
                if !reading {
                    self.may_lose_the_commit();
                }
                commit(&databases.connection, transaction)
            }
            Err(error) => {
                history::end(
                    transaction,
                    machine::now(),
                    Outcome::Aborted,
                    Some(error.to_string()),
                );
                Err(error)
            }
        };
        if !databases.connection.is_autocommit() {
            let done = in_time("ROLLBACK", || {
                databases.connection.execute_batch("ROLLBACK")
            });
            if let Err(error) = done {
                blame::judge("ROLLBACK", &error);
            }
        }
        if databases.connection.is_autocommit() {
            self.give_back(databases, reading);
        }
        ended
    }
}

fn commit(connection: &Connection, transaction: usize) -> Result<(), Failure> {
    sqlite::take_log();
    let done = in_time("COMMIT", || connection.execute_batch("COMMIT"));
    let logged = sqlite::take_log();
    let outcome = match &done {
        Ok(()) => Outcome::Ok,
        Err(_) if sqlite::says_unknown(&logged) => Outcome::Unknown,
        Err(_) => Outcome::Aborted,
    };
    let error = done
        .as_ref()
        .err()
        .map(|error| format!("{error}; {logged:?}"));
    machine::trace(format_args!(
        "transaction {transaction} {outcome:?} {error:?}"
    ));
    history::end(transaction, machine::now(), outcome, error);
    done
}
