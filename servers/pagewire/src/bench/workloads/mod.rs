//! What is measured: each workload is one row, ours against its floors and against local files.

mod calls;
mod commits;
mod distance;
mod hand_over;
mod mixed;
mod new_order;
mod operations;
mod reads;
mod speedtest;
mod tenants;
mod writes;

use std::path::Path;
use std::time::Duration;

use super::callers::EchoClient;
use super::echo::EchoRequest;
use super::report::{Counted, Floor, Row, Unit};
use super::rounds::{Contestant, Operation, Shape, Traffic, alternate, traffic_of};
use super::subjects::{Local, Remote, fill};
use operations::Opener;

/// Bytes of a row of `t`, with what SQLite adds to it.
const ROW_BYTES: u64 = 110;
/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rounds of short operations.
    pub rounds: usize,
    /// Short operations of a turn.
    pub operations: usize,
    /// Rounds of operations over a whole table.
    pub long_rounds: usize,
    /// Rows of the table of point reads.
    pub point_rows: u64,
    /// Bytes of the tables that are scanned and loaded.
    pub table_bytes: u64,
    /// Bytes of the table that is read again: it has to fit into the cache as it is set by default, or it is no warm one.
    pub warm_bytes: u64,
    /// Records of the table of the YCSB mixes.
    pub records: u64,
    /// Commits of each tenant in a turn.
    pub tenant_commits: u64,
    /// Commits of each of two writers in a turn.
    pub hand_over_commits: u64,
    /// Large answers of a turn of calls.
    pub answers: usize,
    /// `--size` of speedtest1.
    pub speedtest_size: u32,
}

impl Sizes {
    /// Seconds instead of minutes.
    pub const QUICK: Self = Self {
        rounds: 7,
        operations: 50,
        long_rounds: 3,
        point_rows: 50_000,
        table_bytes: 8 << 20,
        warm_bytes: 8 << 20,
        records: 10_000,
        tenant_commits: 4,
        hand_over_commits: 50,
        answers: 16,
        speedtest_size: 5,
    };
    /// The usual.
    pub const FULL: Self = Self {
        rounds: 25,
        operations: 100,
        long_rounds: 7,
        point_rows: 1_000_000,
        table_bytes: 100_000_000,
        warm_bytes: 32 << 20,
        records: 100_000,
        tenant_commits: 16,
        hand_over_commits: 400,
        answers: 64,
        speedtest_size: 100,
    };

    fn short(self) -> Shape {
        Shape {
            rounds: self.rounds,
            warm_up: 5,
            operations: self.operations,
        }
    }

    /// For operations that begin with a connection of their own.
    fn connecting(self) -> Shape {
        Shape {
            rounds: self.rounds,
            warm_up: 1,
            operations: 5,
        }
    }

    /// For operations over a long way that write.
    fn distant(self) -> Shape {
        Shape {
            rounds: self.long_rounds,
            warm_up: 1,
            operations: 3,
        }
    }

    /// For batches of some milliseconds.
    fn batches(self) -> Shape {
        Shape {
            rounds: self.rounds,
            warm_up: 1,
            operations: 3,
        }
    }

    fn long(self) -> Shape {
        Shape {
            rounds: self.long_rounds,
            warm_up: 0,
            operations: 1,
        }
    }

    fn table_rows(self) -> u64 {
        self.table_bytes / ROW_BYTES
    }
}

/// Names for `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// An autocommit INSERT with the lease held.
    Commit,
    /// The same after a pause.
    PausedCommit,
    /// A point read by the holder of the lease.
    WarmRead,
    /// A point read by a new client.
    ColdRead,
    /// Open and first query by a new client.
    Open,
    /// A scan by a new client.
    ColdScan,
    /// Commits, point reads, opens, scans, loads, index builds, YCSB and new orders with added round trips of up to 100 ms.
    Distance,
    /// The same scan again.
    WarmScan,
    /// Many rows in one transaction.
    BulkLoad,
    /// CREATE INDEX.
    Index,
    /// DISTINCT, ORDER BY and temporary tables, by temporary files.
    Distinct,
    /// The mixes A to F of YCSB.
    Ycsb,
    /// New orders in the manner of TPC-C.
    NewOrder,
    /// Two clients that write to one database at once.
    HandOver,
    /// Many tenants that write at once.
    Tenants,
    /// Calls of a bare echo: by whom they are driven, over what, and HTTP/2's windows, each as it is and as it could be.
    Calls,
    /// SQLite's speedtest1, where a program of it is named.
    Speedtest,
}

/// Where a workload runs.
pub struct Scene<'a> {
    /// Ours.
    pub remote: &'a Remote,
    /// Whether its commits wait for a disk.
    pub durable: bool,
    /// The endpoint of the echo.
    pub echo: &'a str,
    /// Where local files lie.
    pub directory: &'a Path,
    /// A speedtest1 that is linked with Pagewire's static library.
    pub speedtest: Option<&'a Path>,
    /// How much is done.
    pub sizes: Sizes,
}

impl Scene<'_> {
    /// Measures a workload.
    pub fn measure(&self, workload: Workload) -> anyhow::Result<Vec<Row>> {
        let rows = match workload {
            Workload::Commit => vec![self.commit()?],
            Workload::PausedCommit => vec![self.commit_after_pause()?],
            Workload::WarmRead => self.warm_read()?,
            Workload::ColdRead => vec![self.cold_read()?],
            Workload::Open => vec![self.open()?],
            Workload::ColdScan => vec![self.cold_scan()?],
            Workload::Distance => self.distance()?,
            Workload::WarmScan => vec![self.warm_scan()?],
            Workload::BulkLoad => vec![self.bulk_load()?],
            Workload::Index => vec![self.index()?],
            Workload::Distinct => self.distinct()?,
            Workload::Ycsb => self.ycsb()?,
            Workload::NewOrder => vec![self.new_order()?],
            Workload::HandOver => vec![self.hand_over()?],
            Workload::Tenants => vec![self.tenants()?],
            Workload::Calls => self.calls()?,
            Workload::Speedtest => self.speedtest()?,
        };
        Ok(rows)
    }

    fn ours(&self) -> String {
        format!("pagewire, {} store", self.remote.store)
    }

    fn echo(&self, traffic: Traffic) -> anyhow::Result<Contestant> {
        self.echo_at(self.echo, traffic)
    }

    /// The same round trips and bytes without a store behind them.
    fn echo_at(&self, endpoint: &str, traffic: Traffic) -> anyhow::Result<Contestant> {
        let calls = traffic.calls.max(1);
        let request = EchoRequest::new(
            traffic.sent.div_ceil(calls) as usize,
            traffic.received.div_ceil(calls) as usize,
        );
        let mut client = EchoClient::new(endpoint)?;
        let name = if calls == 1 {
            "bare gRPC echo".to_owned()
        } else {
            format!("bare gRPC echo, {calls} calls")
        };
        Ok(Contestant::new(name, move || {
            (0..calls).try_for_each(|_| client.call(&request))
        }))
    }

    /// The row: ours is compared with each other contestant alone, and with the sums given.
    fn row(
        &self,
        operation: String,
        unit: Unit,
        shape: Shape,
        mut contestants: Vec<Contestant>,
        aims: &[(&str, f64)],
    ) -> anyhow::Result<Row> {
        let aim_of = |name: &str| {
            let found = aims.iter().find(|(prefix, _)| name.starts_with(prefix));
            found.map(|(_, aim)| *aim)
        };
        let series = alternate(shape, &mut contestants)?;
        let floors = (1..series.len())
            .map(|index| Floor {
                name: series[index].name.clone(),
                parts: vec![(index, 1.0)],
                aim: aim_of(&series[index].name),
            })
            .collect();
        Ok(Row {
            operation,
            unit,
            series,
            floors,
            calls_aim: None,
            throughput_aim: None,
            counted: Counted::Here,
        })
    }

    /// Local files that this store is compared with; the rollback journal, with its several syncs, only where the store waits for a disk too.
    fn journal_modes(&self) -> &'static [Local] {
        match self.durable {
            true => &[Local::WalNormal, Local::WalFull, Local::Delete],
            false => &[Local::WalNormal, Local::WalFull],
        }
    }

    /// An echo of the calls and bytes that an operation has, by some turns of it.
    fn echo_of(&self, operation: &mut dyn Operation, turns: u64) -> anyhow::Result<Contestant> {
        self.echo(traffic_of(operation, turns)?)
    }

    fn throughput(&self) -> Unit {
        Unit::Throughput {
            bytes: self.sizes.table_bytes,
        }
    }

    fn of_table(&self, operation: &str) -> String {
        format!(
            "{operation}, {} MiB, {} store",
            self.sizes.table_bytes >> 20,
            self.remote.store
        )
    }

    fn local_name(&self, name: &str) -> String {
        format!("{}-{name}", self.remote.store)
    }

    /// Makes the table in the database and in a local file, unless an earlier workload has.
    fn fill_once(&self, name: &str, rows: u64) -> anyhow::Result<()> {
        let local = Local::WalNormal.open(self.directory, &self.local_name(name))?;
        for connection in [self.remote.open(name)?, local] {
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            if tables == 0 {
                fill(&connection, rows)?;
            }
        }
        Ok(())
    }

    fn opener(&self, name: &str) -> Opener {
        Opener::Remote(self.remote.clone(), name.to_owned())
    }

    fn local_opener(&self, local: Local, name: &str) -> Opener {
        Opener::Local(local, self.directory.to_owned(), self.local_name(name))
    }
}
