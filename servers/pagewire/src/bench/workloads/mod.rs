//! What is measured: each workload is one row, ours against its floors and against local files.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rusqlite::Connection;

use super::delay;
use super::echo::{EchoClient, EchoRequest};
use super::report::{Floor, Row, Unit};
use super::rounds::{Contestant, Operation, Shape, Traffic, alternate, traffic_of};
use super::subjects::{Local, Remote, RowIds, SyncedFile, fill};

/// Bytes of a row of `t`, with what SQLite adds to it.
const ROW_BYTES: u64 = 110;
/// The text of a row of a commit.
const COMMIT_TEXT: &str = "a row of one hundred bytes of text, as a small application would write it into a log or an event table.";

/// Longer than the network runtime of the VFS waits for the next call.
const PAUSE: Duration = Duration::from_millis(5);

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
}

impl Sizes {
    /// Seconds instead of minutes.
    pub const QUICK: Self = Self {
        rounds: 7,
        operations: 50,
        long_rounds: 3,
        point_rows: 50_000,
        table_bytes: 8 << 20,
    };
    /// The usual.
    pub const FULL: Self = Self {
        rounds: 25,
        operations: 100,
        long_rounds: 7,
        point_rows: 1_000_000,
        table_bytes: 32 << 20,
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
    /// The same over links with added round trips of 5 and 20 ms.
    DistantScan,
    /// The same scan again.
    WarmScan,
    /// Many rows in one transaction.
    BulkLoad,
    /// CREATE INDEX.
    Index,
    /// DISTINCT and ORDER BY, by temporary files.
    Distinct,
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
            Workload::DistantScan => self.distant_scan()?,
            Workload::WarmScan => vec![self.warm_scan()?],
            Workload::BulkLoad => vec![self.bulk_load()?],
            Workload::Index => vec![self.index()?],
            Workload::Distinct => vec![self.distinct()?],
        };
        Ok(rows)
    }

    fn ours(&self) -> String {
        format!("pagewire, {} store", self.remote.store)
    }

    fn echo(&self, traffic: Traffic) -> anyhow::Result<Contestant> {
        let calls = traffic.calls.max(1);
        let request = EchoRequest::new(
            (traffic.sent / calls) as usize,
            (traffic.received / calls) as usize,
        );
        let mut client = EchoClient::new(self.echo)?;
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
        })
    }

    fn commit(&self) -> anyhow::Result<Row> {
        let mut ours = Insert::new(self.remote.open("commit")?)?;
        let traffic = traffic_of(&mut ours, 8)?;
        let directory = tempfile::tempdir_in(self.directory)?;
        let mut growing = SyncedFile::growing(directory.path(), traffic.sent as usize)?;
        let mut preallocated = SyncedFile::preallocated(directory.path(), traffic.sent as usize)?;
        let mut contestants = vec![
            Contestant::new(self.ours(), ours),
            self.echo(traffic)?,
            Contestant::new("append + fdatasync", move || growing.write()),
            Contestant::new("overwrite + fdatasync", move || preallocated.write()),
        ];
        for local in [Local::WalNormal, Local::WalFull, Local::Delete] {
            let connection = local.open(directory.path(), "commit")?;
            contestants.push(Contestant::new(local.name(), Insert::new(connection)?));
        }
        let aims: &[_] = if self.durable {
            &[]
        } else {
            &[("bare gRPC echo", 1.5)]
        };
        let mut row = self.row(
            format!("commit of one INSERT, {} store", self.remote.store),
            Unit::Microseconds,
            self.sizes.short(),
            contestants,
            aims,
        )?;
        row.calls_aim = Some(1.0);
        if self.durable {
            for (name, index) in [
                ("echo + append + fdatasync", 2),
                ("echo + overwrite + fdatasync", 3),
            ] {
                row.floors.push(Floor {
                    name: name.to_owned(),
                    parts: vec![(1, 1.0), (index, 1.0)],
                    aim: Some(1.5),
                });
            }
        }
        Ok(row)
    }

    /// Commits of a process that does something else in between: its network runtime sleeps, and so does the server's.
    fn commit_after_pause(&self) -> anyhow::Result<Row> {
        let mut ours = Insert::new(self.remote.open("pause")?)?;
        let traffic = traffic_of(&mut ours, 8)?;
        let calls = traffic.calls.max(1);
        let request = EchoRequest::new((traffic.sent / calls) as usize, traffic.received as usize);
        let mut client = EchoClient::new(self.echo)?;
        let directory = tempfile::tempdir_in(self.directory)?;
        let local = Local::WalNormal;
        let connection = local.open(directory.path(), "pause")?;
        let contestants = vec![
            Contestant::new(self.ours(), Paused(ours)),
            Contestant::new("bare gRPC echo", Paused(move || client.call(&request))),
            Contestant::new(local.name(), Paused(Insert::new(connection)?)),
        ];
        let shape = Shape {
            warm_up: 1,
            operations: 20,
            ..self.sizes.short()
        };
        let mut row = self.row(
            format!(
                "commit after a pause of {} ms, {} store",
                PAUSE.as_millis(),
                self.remote.store
            ),
            Unit::Microseconds,
            shape,
            contestants,
            &[("bare gRPC echo", 1.5)],
        )?;
        row.calls_aim = Some(1.0);
        Ok(row)
    }

    fn warm_read(&self) -> anyhow::Result<Vec<Row>> {
        // SQLite's own cache holds 2 MB: the small table stays in it, the larger one is read through the VFS.
        let sizes = [
            ("1 MB, within SQLite's cache", 10_000),
            ("11 MB, beyond it", 100_000),
        ];
        let mut rows = Vec::new();
        for (text, count) in sizes {
            let name = format!("warm-read-{count}");
            let remote = self.remote.open(&name)?;
            fill(&remote, count)?;
            let mut contestants = vec![Contestant::new(self.ours(), PointRead::new(remote, count))];
            for local in [Local::WalNormal, Local::Delete] {
                let connection = local.open(self.directory, &name)?;
                fill(&connection, count)?;
                let read = PointRead::new(connection, count);
                contestants.push(Contestant::new(local.name(), read));
            }
            let shape = Shape {
                warm_up: self.sizes.operations,
                operations: self.sizes.operations * 5,
                ..self.sizes.short()
            };
            let mut row = self.row(
                format!("warm point read, table of {text}"),
                Unit::Microseconds,
                shape,
                contestants,
                &[("local", 1.2)],
            )?;
            row.calls_aim = Some(0.0);
            rows.push(row);
        }
        Ok(rows)
    }

    fn cold_read(&self) -> anyhow::Result<Row> {
        let count = self.sizes.point_rows;
        self.fill_once("point", count)?;
        let mut ours = ColdRead::new(self.opener("point"), count);
        let traffic = traffic_of(&mut ours, 4)?;
        let local = Local::WalNormal;
        let contestants = vec![
            Contestant::new(self.ours(), ours),
            self.echo(traffic)?,
            Contestant::new(
                format!("{}, new connection", local.name()),
                ColdRead::new(self.local_opener(local, "point"), count),
            ),
        ];
        let mut row = self.row(
            format!("cold point read, {count} rows, schema loaded, new client"),
            Unit::Microseconds,
            self.sizes.connecting(),
            contestants,
            &[],
        )?;
        row.calls_aim = Some(3.0);
        Ok(row)
    }

    fn open(&self) -> anyhow::Result<Row> {
        self.fill_once("point", self.sizes.point_rows)?;
        let mut ours = OpenAndAsk::new(self.opener("point"));
        let traffic = traffic_of(&mut ours, 4)?;
        let (endpoint, calls) = (self.echo.to_owned(), traffic.calls.max(1));
        let request = EchoRequest::new(
            (traffic.sent / calls) as usize,
            (traffic.received / calls) as usize,
        );
        let local = Local::WalNormal;
        let contestants = vec![
            Contestant::new(self.ours(), ours),
            Contestant::new(
                format!("connect + bare gRPC echo, {calls} calls"),
                move || {
                    let mut client = EchoClient::new(&endpoint)?;
                    (0..calls).try_for_each(|_| client.call(&request))
                },
            ),
            Contestant::new(
                local.name(),
                OpenAndAsk::new(self.local_opener(local, "point")),
            ),
        ];
        let mut row = self.row(
            "open + first query, new client".to_owned(),
            Unit::Microseconds,
            self.sizes.connecting(),
            contestants,
            &[],
        )?;
        row.calls_aim = Some(3.0);
        Ok(row)
    }

    fn cold_scan(&self) -> anyhow::Result<Row> {
        let rows = self.sizes.table_rows();
        self.fill_once("scan", rows)?;
        let mut ours = ColdScan::new(self.opener("scan"));
        let traffic = traffic_of(&mut ours, 1)?;
        let local = Local::WalNormal;
        let contestants = vec![
            Contestant::new(self.ours(), ours),
            self.echo(traffic)?,
            Contestant::new(
                format!("{}, new connection", local.name()),
                ColdScan::new(self.local_opener(local, "scan")),
            ),
        ];
        self.row(
            self.of_table("cold scan, new client"),
            self.throughput(),
            self.sizes.long(),
            contestants,
            &[],
        )
    }

    /// A scan over a long way, against one over a shorter way: what a round trip costs beyond the first ones.
    fn distant_scan(&self) -> anyhow::Result<Vec<Row>> {
        if self.remote.endpoint.starts_with("unix:") {
            // There is no long way to a unix socket.
            return Ok(Vec::new());
        }
        let rows = self.sizes.table_rows();
        self.fill_once("scan", rows)?;
        let at = |ms: u64| -> anyhow::Result<Contestant> {
            let remote = Remote {
                store: self.remote.store,
                endpoint: delay::proxy(&self.remote.endpoint, Duration::from_millis(ms))?,
            };
            let opener = Opener::Remote(remote, "scan".to_owned());
            Ok(Contestant::new(
                format!("{}, {ms} ms added", self.ours()),
                ColdScan::new(opener),
            ))
        };
        let operation = |ms: u64| {
            let operation = format!("cold scan over {ms} ms, new client");
            self.of_table(&operation)
        };
        let near = self.row(
            operation(5),
            self.throughput(),
            self.sizes.long(),
            vec![at(5)?, at(0)?],
            &[],
        )?;
        let aim = format!("{}, 5 ms", self.ours());
        let far = self.row(
            operation(20),
            self.throughput(),
            self.sizes.long(),
            vec![at(20)?, at(5)?],
            &[(&aim, 1.5)],
        )?;
        Ok(vec![near, far])
    }

    fn warm_scan(&self) -> anyhow::Result<Row> {
        self.on_warm_table("warm scan", &[("local", 1.2)], |connection| {
            Contestant::new("", move || ask(&connection, "SELECT sum(length(v)) FROM t"))
        })
    }

    fn distinct(&self) -> anyhow::Result<Row> {
        let query = "SELECT count(*) FROM (SELECT DISTINCT v FROM t ORDER BY v DESC)";
        self.on_warm_table("DISTINCT and ORDER BY", &[], |connection| {
            Contestant::new("", move || ask(&connection, query))
        })
    }

    /// A query over the whole table by connections that have read all of it.
    fn on_warm_table(
        &self,
        operation: &str,
        aims: &[(&str, f64)],
        contestant: impl Fn(Connection) -> Contestant,
    ) -> anyhow::Result<Row> {
        self.fill_once("scan", self.sizes.table_rows())?;
        let local = Local::WalNormal;
        let mut contestants = Vec::new();
        for (name, connection) in [
            (self.ours(), self.remote.open("scan")?),
            (
                local.name().to_owned(),
                local.open(self.directory, &self.local_name("scan"))?,
            ),
        ] {
            ask(&connection, "SELECT sum(length(v)) FROM t")?;
            let mut one = contestant(connection);
            one.name = name;
            contestants.push(one);
        }
        let mut row = self.row(
            self.of_table(operation),
            self.throughput(),
            self.sizes.long(),
            contestants,
            aims,
        )?;
        row.calls_aim = Some(0.0);
        Ok(row)
    }

    fn bulk_load(&self) -> anyhow::Result<Row> {
        let bytes = self.sizes.table_bytes;
        let mut ours = BulkLoad::new(self.opener("bulk"), bytes);
        let traffic = traffic_of(&mut ours, 1)?;
        let mut contestants = vec![Contestant::new(self.ours(), ours)];
        // The bytes of one call, in messages of the size that the protocol uses.
        contestants.push(self.echo(Traffic {
            calls: traffic.sent.div_ceil(1 << 20).max(1),
            ..traffic
        })?);
        for local in [Local::WalNormal, Local::Delete] {
            let opener = self.local_opener(local, "bulk");
            contestants.push(Contestant::new(local.name(), BulkLoad::new(opener, bytes)));
        }
        let mut row = self.row(
            self.of_table("bulk load in one transaction"),
            self.throughput(),
            self.sizes.long(),
            contestants,
            &[],
        )?;
        row.calls_aim = Some(1.0);
        Ok(row)
    }

    fn index(&self) -> anyhow::Result<Row> {
        let rows = self.sizes.table_rows();
        let local = Local::WalNormal;
        let mut contestants = Vec::new();
        for (name, connection) in [
            (self.ours(), self.remote.open("index")?),
            (
                local.name().to_owned(),
                local.open(self.directory, &self.local_name("index"))?,
            ),
        ] {
            fill(&connection, rows)?;
            contestants.push(Contestant::new(name, BuildIndex(connection)));
        }
        self.row(
            self.of_table("index build"),
            self.throughput(),
            self.sizes.long(),
            contestants,
            &[],
        )
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

/// How an operation gets a connection that knows nothing yet.
enum Opener {
    Remote(Remote, String),
    Local(Local, PathBuf, String),
}

impl Opener {
    fn open(&self) -> anyhow::Result<Connection> {
        match self {
            Opener::Remote(remote, name) => remote.open_cold(name),
            Opener::Local(local, directory, name) => local.open(directory, name),
        }
    }

    /// Of a database that was never used.
    fn open_new(&self) -> anyhow::Result<Connection> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        match self {
            Opener::Remote(remote, name) => remote.open_cold(&format!("{name}-{number}")),
            Opener::Local(local, directory, name) => {
                local.open(directory, &format!("{name}-{number}"))
            }
        }
    }
}

fn ask(connection: &Connection, query: &str) -> anyhow::Result<()> {
    let answer: i64 = connection.query_row(query, [], |row| row.get(0))?;
    anyhow::ensure!(answer > 0, "{query} found nothing");
    Ok(())
}

struct Insert(Connection);

impl Insert {
    fn new(connection: Connection) -> anyhow::Result<Self> {
        connection.execute_batch(
            "CREATE TABLE IF NOT EXISTS t(id INTEGER PRIMARY KEY, v TEXT NOT NULL)",
        )?;
        Ok(Self(connection))
    }
}

impl Operation for Insert {
    fn run(&mut self) -> anyhow::Result<()> {
        let mut insert = self.0.prepare_cached("INSERT INTO t(v) VALUES(?1)")?;
        insert.execute([COMMIT_TEXT])?;
        Ok(())
    }
}

/// An operation with a pause before it.
struct Paused<T>(T);

impl<T: Operation> Operation for Paused<T> {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.0.prepare()?;
        let begun = Instant::now();
        while let Some(left) = PAUSE.checked_sub(begun.elapsed()) {
            // Somebody's unpark may end it early.
            std::thread::park_timeout(left);
        }
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        self.0.run()
    }
}

struct PointRead {
    connection: Connection,
    ids: RowIds,
}

impl PointRead {
    fn new(connection: Connection, rows: u64) -> Self {
        Self {
            connection,
            ids: RowIds::new(rows),
        }
    }
}

impl Operation for PointRead {
    fn run(&mut self) -> anyhow::Result<()> {
        read_row(&self.connection, self.ids.next())
    }
}

fn read_row(connection: &Connection, id: i64) -> anyhow::Result<()> {
    let mut select = connection.prepare_cached("SELECT length(v) FROM t WHERE id = ?1")?;
    let length: i64 = select.query_row([id], |row| row.get(0))?;
    anyhow::ensure!(length == 100, "row {id} has {length} characters");
    Ok(())
}

struct ColdRead {
    opener: Opener,
    ids: RowIds,
    connection: Option<Connection>,
}

impl ColdRead {
    fn new(opener: Opener, rows: u64) -> Self {
        Self {
            opener,
            ids: RowIds::new(rows),
            connection: None,
        }
    }
}

impl Operation for ColdRead {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.connection = None;
        let connection = self.opener.open()?;
        ask(&connection, "SELECT count(*) FROM sqlite_schema")?;
        connection.prepare_cached("SELECT length(v) FROM t WHERE id = ?1")?;
        self.connection = Some(connection);
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let connection = self.connection.as_ref().context("not prepared")?;
        read_row(connection, self.ids.next())
    }
}

struct OpenAndAsk {
    opener: Opener,
    connection: Option<Connection>,
}

impl OpenAndAsk {
    fn new(opener: Opener) -> Self {
        Self {
            opener,
            connection: None,
        }
    }
}

impl Operation for OpenAndAsk {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.connection = None;
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let connection = self.opener.open()?;
        ask(&connection, "SELECT id FROM t LIMIT 1")?;
        // Closed outside of the time: a goodbye is not part of an open.
        self.connection = Some(connection);
        Ok(())
    }
}

struct ColdScan {
    opener: Opener,
    connection: Option<Connection>,
}

impl ColdScan {
    fn new(opener: Opener) -> Self {
        Self {
            opener,
            connection: None,
        }
    }
}

impl Operation for ColdScan {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.connection = None;
        let connection = self.opener.open()?;
        ask(&connection, "SELECT count(*) FROM sqlite_schema")?;
        self.connection = Some(connection);
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let connection = self.connection.as_ref().context("not prepared")?;
        ask(connection, "SELECT sum(length(v)) FROM t")
    }
}

struct BulkLoad {
    opener: Opener,
    bytes: u64,
    connection: Option<Connection>,
}

impl BulkLoad {
    fn new(opener: Opener, bytes: u64) -> Self {
        Self {
            opener,
            bytes,
            connection: None,
        }
    }
}

impl Operation for BulkLoad {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.connection = None;
        let connection = self.opener.open_new()?;
        connection.execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB NOT NULL)")?;
        self.connection = Some(connection);
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let connection = self.connection.as_ref().context("not prepared")?;
        let rows = self.bytes / 1000;
        connection.execute_batch(&format!(
            "INSERT INTO t(v)
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
             SELECT randomblob(1000) FROM n"
        ))?;
        Ok(())
    }
}

struct BuildIndex(Connection);

impl Operation for BuildIndex {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.0.execute_batch("DROP INDEX IF EXISTS by_v")?;
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        self.0.execute_batch("CREATE INDEX by_v ON t(v)")?;
        Ok(())
    }
}
