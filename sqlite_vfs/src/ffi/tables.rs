//! The rows of our table-valued functions. `SCHEMA` is the name of an attached database, `main` if it is left out.
//!
//! | table | rows |
//! |---|---|
//! | `pagewire_rpc` | calls of this process by kind; reading it costs none |
//! | `pagewire_status` | what the library knows of the main database and its server |
//! | `pagewire_versions([SCHEMA])` | versions that are kept, newest first; fetched as rows are taken |
//! | `pagewire_diff(A, B [, SCHEMA])` | the pages that differ between two moments, ascending |
//! | `pagewire_info([SCHEMA])` | where the database comes from, what is kept of it and what that takes |

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::{Version, VersionEntry};

use super::functions::{connection_of, main_connection};
use super::registration::Registration;
use super::table::{Arguments, Cell, Row, Rows, Table};
use super::types::Sqlite3;
use crate::client::counters::{COUNTERS, CallKind};
use crate::database::Database;
use crate::error::{Error, Kind, Result};

/// Versions in the first call for them, and in the others.
const FIRST_VERSIONS: usize = 100;
const MORE_VERSIONS: usize = 1000;

pub const TABLES: &[Table] = &[
    Table {
        name: c"pagewire_rpc",
        declaration: c"CREATE TABLE x(kind TEXT, count INTEGER, background INTEGER, bytes_sent INTEGER, bytes_received INTEGER)",
        columns: 5,
        arguments: 0,
        falls: false,
        rows: rpc_rows,
    },
    Table {
        name: c"pagewire_status",
        declaration: c"CREATE TABLE x(key TEXT, value TEXT)",
        columns: 2,
        arguments: 0,
        falls: false,
        rows: status_rows,
    },
    Table {
        name: c"pagewire_versions",
        declaration: c"CREATE TABLE x(version INTEGER, time TEXT, pages_changed INTEGER, page_count INTEGER, size INTEGER, tag TEXT, restored_from INTEGER, \"schema\" TEXT HIDDEN)",
        columns: 7,
        arguments: 1,
        falls: true,
        rows: version_rows,
    },
    Table {
        name: c"pagewire_diff",
        declaration: c"CREATE TABLE x(page INTEGER, a TEXT HIDDEN, b TEXT HIDDEN, \"schema\" TEXT HIDDEN)",
        columns: 1,
        arguments: 3,
        falls: false,
        rows: diff_rows,
    },
    Table {
        name: c"pagewire_info",
        declaration: c"CREATE TABLE x(key TEXT, value TEXT, \"schema\" TEXT HIDDEN)",
        columns: 2,
        arguments: 1,
        falls: false,
        rows: info_rows,
    },
];

fn fixed(rows: Vec<Row>) -> Rows {
    Box::new(rows.into_iter().map(Ok))
}

fn pairs(rows: Vec<(&'static str, String)>) -> Rows {
    let row = |(key, value): (&str, String)| vec![Cell::Text(key.to_owned()), Cell::Text(value)];
    fixed(rows.into_iter().map(row).collect())
}

/// # Safety
/// None: it touches no connection.
unsafe fn rpc_rows(_: &'static Registration, _: *mut Sqlite3, _: &Arguments) -> Result<Rows> {
    let row = |kind: &CallKind| {
        let count = COUNTERS.read(*kind);
        vec![
            Cell::Text(kind.name().to_owned()),
            Cell::Number(count.count),
            Cell::Number(count.background),
            Cell::Number(count.bytes_sent),
            Cell::Number(count.bytes_received),
        ]
    };
    Ok(fixed(CallKind::ALL.iter().map(row).collect()))
}

/// # Safety
/// `db` is a connection of the registration's library, whose mutex the caller holds.
unsafe fn status_rows(
    registration: &'static Registration,
    db: *mut Sqlite3,
    _: &Arguments,
) -> Result<Rows> {
    let mut rows = vec![(
        "library",
        format!("libpagewire {}", env!("CARGO_PKG_VERSION")),
    )];
    // SAFETY: promised by the caller.
    let connection = unsafe { main_connection(registration, db) };
    let client = match &connection {
        Some(connection) => {
            let connection = connection.lock();
            rows.extend(connection.status());
            Some(connection.settings().client())
        }
        None => {
            rows.push((
                "database",
                "the main database is not on Pagewire".to_owned(),
            ));
            None
        }
    };
    if let Some(error) = registration.last_error(client.as_ref()) {
        rows.push(("last_error", error));
    }
    Ok(pairs(rows))
}

/// The database behind a schema name, and the deadline of its calls.
///
/// # Safety
/// As for [`status_rows`].
unsafe fn database(
    registration: &'static Registration,
    db: *mut Sqlite3,
    schema: Option<&String>,
) -> Result<(Arc<Database>, Duration)> {
    // SAFETY: promised by the caller.
    let connection = unsafe { connection_of(registration, db, schema.map(String::as_str)) }?;
    let connection = connection.lock();
    Ok((
        Arc::clone(connection.database()),
        connection.settings().timeout,
    ))
}

/// # Safety
/// As for [`status_rows`].
unsafe fn version_rows(
    registration: &'static Registration,
    db: *mut Sqlite3,
    arguments: &Arguments,
) -> Result<Rows> {
    let schema = arguments.first().and_then(Option::as_ref);
    // SAFETY: promised by the caller.
    let (database, timeout) = unsafe { database(registration, db, schema) }?;
    // What is no number bounds nothing; SQLite compares for itself.
    let bound = |index: usize| arguments.get(index)?.as_ref()?.parse::<u64>().ok();
    Ok(Box::new(VersionRows {
        database,
        timeout,
        before: bound(1).map(|most| Version::new(most).next()),
        least: bound(2).map_or(Version::ZERO, Version::new),
        is_first: true,
        versions: Vec::new().into_iter(),
        more: true,
    }))
}

struct VersionRows {
    database: Arc<Database>,
    timeout: Duration,
    before: Option<Version>,
    least: Version,
    is_first: bool,
    versions: std::vec::IntoIter<VersionEntry>,
    more: bool,
}

impl Iterator for VersionRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.versions.next() {
                let version = entry.snapshot.version;
                if version < self.least {
                    self.more = false;
                    return None;
                }
                self.before = Some(version);
                return Some(Ok(version_row(&entry)));
            }
            if !self.more || self.before.is_some_and(|before| before <= self.least) {
                return None;
            }
            let most = match self.is_first {
                true => FIRST_VERSIONS,
                false => MORE_VERSIONS,
            };
            // At most so many are wanted.
            let wanted = self
                .before
                .map_or(u64::MAX, |before| before.get() - self.least.get());
            let limit = most.min(usize::try_from(wanted).unwrap_or(most));
            self.is_first = false;
            match self
                .database
                .list_versions(self.before, limit, self.timeout)
            {
                Ok(list) => {
                    self.versions = list.versions.into_iter();
                    self.more = list.more;
                }
                Err(error) => {
                    self.more = false;
                    return Some(Err(error));
                }
            }
        }
    }
}

fn version_row(entry: &VersionEntry) -> Row {
    let tags: Vec<&str> = entry.tags.iter().map(|tag| tag.as_str()).collect();
    vec![
        Cell::Number(entry.snapshot.version.get()),
        Cell::Text(entry.time.to_string()),
        Cell::Number(entry.pages_changed),
        Cell::Number(u64::from(entry.snapshot.page_count.get())),
        Cell::Number(entry.snapshot.byte_size()),
        match tags.is_empty() {
            true => Cell::Null,
            false => Cell::Text(tags.join(", ")),
        },
        entry
            .restored_from
            .map_or(Cell::Null, |version| Cell::Number(version.get())),
    ]
}

/// # Safety
/// As for [`status_rows`].
unsafe fn diff_rows(
    registration: &'static Registration,
    db: *mut Sqlite3,
    arguments: &Arguments,
) -> Result<Rows> {
    let [Some(from), Some(to), schema] = arguments else {
        return Err(Error::new(
            Kind::Refused,
            "pagewire_diff(A, B) needs two versions, times, ages or tags",
        ));
    };
    // SAFETY: promised by the caller.
    let connection = unsafe { connection_of(registration, db, schema.as_deref()) }?;
    let connection = connection.lock();
    let (from, to) = (connection.version_of(from)?, connection.version_of(to)?);
    let timeout = connection.settings().timeout;
    let pages = connection.database().diff(from, to, timeout);
    Ok(Box::new(pages.map(|page| {
        Ok(vec![Cell::Number(u64::from(page?.get()))])
    })))
}

/// # Safety
/// As for [`status_rows`].
unsafe fn info_rows(
    registration: &'static Registration,
    db: *mut Sqlite3,
    arguments: &Arguments,
) -> Result<Rows> {
    let schema = arguments.first().and_then(Option::as_ref);
    // SAFETY: promised by the caller.
    let (database, timeout) = unsafe { database(registration, db, schema) }?;
    let info = database.description(timeout)?;
    let page_size = info.head.page_size.map_or(0, |size| size.get());
    let mut rows = vec![
        ("database", database.state.name.to_string()),
        ("database_id", database.state.id().to_string()),
        ("created", info.created.to_string()),
        ("version", info.head.version.to_string()),
        ("page_size", page_size.to_string()),
        ("page_count", info.head.page_count.get().to_string()),
        ("oldest_version", info.oldest.to_string()),
        ("versions_kept", info.versions_kept.to_string()),
        ("stored_pages", info.stored_pages.to_string()),
        ("stored_bytes", info.stored_bytes.to_string()),
    ];
    if let Some((id, name, version)) = info.parent {
        rows.push(("parent", name.unwrap_or_else(|| "(deleted)".to_owned())));
        rows.push(("parent_database_id", id.to_string()));
        rows.push(("parent_version", version.to_string()));
    }
    Ok(pairs(rows))
}
