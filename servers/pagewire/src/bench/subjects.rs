//! The databases that are compared: one on a page server, and local files in each journal mode.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use rusqlite::{Connection, OpenFlags};

/// A journal mode of a local file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// WAL, a sync with each commit.
    WalFull,
    /// WAL, no sync with a commit.
    WalNormal,
    /// A rollback journal, several syncs with each commit.
    Delete,
}

impl Local {
    /// For the report.
    pub fn name(self) -> &'static str {
        match self {
            Local::WalFull => "local WAL FULL",
            Local::WalNormal => "local WAL NORMAL",
            Local::Delete => "local DELETE FULL",
        }
    }

    fn file_name(self, name: &str) -> String {
        match self {
            Local::WalFull => format!("{name}-wal-full.db"),
            Local::WalNormal => format!("{name}-wal-normal.db"),
            Local::Delete => format!("{name}-delete.db"),
        }
    }

    /// Opens a file in the directory.
    pub fn open(self, directory: &Path, name: &str) -> anyhow::Result<Connection> {
        let path = directory.join(self.file_name(name));
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        // Pagewire may be the default VFS of the process.
        let connection = Connection::open_with_flags_and_vfs(&path, flags, c"unix")
            .with_context(|| format!("{} can't be opened", path.display()))?;
        let (mode, synchronous) = match self {
            Local::WalFull => ("WAL", "FULL"),
            Local::WalNormal => ("WAL", "NORMAL"),
            Local::Delete => ("DELETE", "FULL"),
        };
        connection.pragma_update(None, "journal_mode", mode)?;
        connection.pragma_update(None, "synchronous", synchronous)?;
        Ok(connection)
    }
}

/// Databases of one page server.
#[derive(Clone, Debug)]
pub struct Remote {
    /// For the report.
    pub store: &'static str,
    /// Where the server is.
    pub endpoint: String,
}

impl Remote {
    /// A connection that shares the client of the process: its session, cache and leases.
    pub fn open(&self, name: &str) -> anyhow::Result<Connection> {
        self.open_as("bench", name)
    }

    /// A connection with a client of its own, as a new process would have: a new credential, so a new connection to the
    /// server, a new session and an empty cache.
    pub fn open_cold(&self, name: &str) -> anyhow::Result<Connection> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.open_as(&format!("cold-{number}"), name)
    }

    fn open_as(&self, token: &str, name: &str) -> anyhow::Result<Connection> {
        let uri = format!(
            "file:{name}?vfs=pagewire&mode=rwc&token={token}&endpoint={}",
            self.endpoint.replace('/', "%2F")
        );
        let flags = OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE;
        Connection::open_with_flags(uri, flags)
            .with_context(|| format!("{name} can't be opened at {}", self.endpoint))
    }
}

/// Bytes of a file that is written over.
const PREALLOCATED_BYTES: u64 = 8 << 20;

/// The floor of a durable commit: the same bytes into a file, and fdatasync.
pub struct SyncedFile {
    file: File,
    record: Vec<u8>,
    /// Where the next record goes; never beyond the end of a file that is written over.
    offset: u64,
    end: Option<u64>,
}

impl SyncedFile {
    /// A file that grows: its size has to reach the disk with each record.
    pub fn growing(directory: &Path, record_bytes: usize) -> anyhow::Result<Self> {
        Self::create(directory, "growing", record_bytes, None)
    }

    /// A file whose place on the disk is there already, as that of a store or of a WAL in use is.
    pub fn preallocated(directory: &Path, record_bytes: usize) -> anyhow::Result<Self> {
        let end = PREALLOCATED_BYTES.max(record_bytes as u64);
        let synced = Self::create(directory, "preallocated", record_bytes, Some(end))?;
        synced.file.write_all_at(&vec![1; end as usize], 0)?;
        synced.file.sync_all()?;
        Ok(synced)
    }

    fn create(
        directory: &Path,
        name: &str,
        record_bytes: usize,
        end: Option<u64>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            file: File::create_new(directory.join(name))?,
            record: vec![0x3c; record_bytes],
            offset: 0,
            end,
        })
    }

    /// Writes a record and waits for the disk.
    pub fn write(&mut self) -> anyhow::Result<()> {
        let length = self.record.len() as u64;
        if self.end.is_some_and(|end| self.offset + length > end) {
            self.offset = 0;
        }
        self.file.write_all_at(&self.record, self.offset)?;
        self.offset += length;
        self.file.sync_data()?;
        Ok(())
    }
}

/// Fills a new table `t(id, v)` with rows of text.
pub fn fill(connection: &Connection, rows: u64) -> anyhow::Result<()> {
    connection.execute_batch(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT NOT NULL);
         INSERT INTO t(v)
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         SELECT hex(randomblob(50)) FROM n;"
    ))?;
    Ok(())
}

/// Numbers without a pattern that a read-ahead could learn, the same in every run.
pub struct RowIds {
    state: u64,
    rows: u64,
}

impl RowIds {
    /// Of a table of so many rows.
    pub fn new(rows: u64) -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
            rows,
        }
    }

    /// The next one.
    pub fn next(&mut self) -> i64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state % self.rows) as i64 + 1
    }
}
