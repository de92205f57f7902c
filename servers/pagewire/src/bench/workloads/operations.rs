//! The operations that are timed.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rusqlite::Connection;

use crate::bench::rounds::Operation;
use crate::bench::subjects::{Local, Remote, RowIds};

/// The text of a row of a commit.
const COMMIT_TEXT: &str = "a row of one hundred bytes of text, as a small application would write it into a log or an event table.";

/// Longer than the network runtime of the VFS waits for the next call.
pub const PAUSE: Duration = Duration::from_millis(5);

/// How an operation gets a connection that knows nothing yet.
pub enum Opener {
    Remote(Remote, String),
    Local(Local, PathBuf, String),
}

impl Opener {
    pub fn open(&self) -> anyhow::Result<Connection> {
        match self {
            Opener::Remote(remote, name) => remote.open_cold(name),
            Opener::Local(local, directory, name) => local.open(directory, name),
        }
    }

    /// Of a database that was never used.
    pub fn open_new(&self) -> anyhow::Result<Connection> {
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

pub fn ask(connection: &Connection, query: &str) -> anyhow::Result<()> {
    let answer: i64 = connection.query_row(query, [], |row| row.get(0))?;
    anyhow::ensure!(answer > 0, "{query} found nothing");
    Ok(())
}

pub struct Insert(Connection);

impl Insert {
    pub fn new(connection: Connection) -> anyhow::Result<Self> {
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
pub struct Paused<T>(pub T);

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

pub struct PointRead {
    connection: Connection,
    ids: RowIds,
}

impl PointRead {
    pub fn new(connection: Connection, rows: u64) -> Self {
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

pub fn read_row(connection: &Connection, id: i64) -> anyhow::Result<()> {
    let mut select = connection.prepare_cached("SELECT length(v) FROM t WHERE id = ?1")?;
    let length: i64 = select.query_row([id], |row| row.get(0))?;
    anyhow::ensure!(length == 100, "row {id} has {length} characters");
    Ok(())
}

pub struct ColdRead {
    opener: Opener,
    ids: RowIds,
    connection: Option<Connection>,
}

impl ColdRead {
    pub fn new(opener: Opener, rows: u64) -> Self {
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

pub struct OpenAndAsk {
    opener: Opener,
    connection: Option<Connection>,
}

impl OpenAndAsk {
    pub fn new(opener: Opener) -> Self {
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

pub struct ColdScan {
    opener: Opener,
    connection: Option<Connection>,
}

impl ColdScan {
    pub fn new(opener: Opener) -> Self {
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

pub struct BulkLoad {
    opener: Opener,
    bytes: u64,
    connection: Option<Connection>,
}

impl BulkLoad {
    pub fn new(opener: Opener, bytes: u64) -> Self {
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

/// A sorted copy of the table in a temporary one, with an index.
pub struct TemporaryTable(pub Connection);

impl Operation for TemporaryTable {
    fn prepare(&mut self) -> anyhow::Result<()> {
        self.0.execute_batch("DROP TABLE IF EXISTS temp.sorted")?;
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        self.0.execute_batch(
            "CREATE TEMP TABLE sorted AS SELECT id, v FROM t ORDER BY v;
             CREATE INDEX temp.sorted_by_id ON sorted(id)",
        )?;
        Ok(())
    }
}

/// An index build by a client that has nothing of the table yet.
pub struct ColdIndex {
    opener: Opener,
    connection: Option<Connection>,
}

impl ColdIndex {
    pub fn new(opener: Opener) -> Self {
        Self {
            opener,
            connection: None,
        }
    }
}

impl Operation for ColdIndex {
    fn prepare(&mut self) -> anyhow::Result<()> {
        if let Some(before) = self.connection.take() {
            // By the one that has made it: it has its pages.
            before.execute_batch("DROP INDEX by_v")?;
        }
        let connection = self.opener.open()?;
        ask(&connection, "SELECT count(*) FROM sqlite_schema")?;
        self.connection = Some(connection);
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let connection = self.connection.as_ref().context("not prepared")?;
        connection.execute_batch("CREATE INDEX by_v ON t(v)")?;
        Ok(())
    }
}

pub struct BuildIndex(pub Connection);

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
