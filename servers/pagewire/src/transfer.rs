//! `pagewire import` and `pagewire export`: a local SQLite file becomes a database, and a database a local file.
//!
//! Both go through SQLite's backup API and the VFS: one transaction, so that nobody sees a half of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use pagewire_proto::DatabaseName;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use crate::embedded::register_vfs;

/// Where a page server is if nobody says otherwise.
const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:7240";

/// Arguments of `pagewire import`.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// The SQLite file. It may be in WAL mode; what it has not checkpointed yet is read too.
    file: PathBuf,
    /// The database to be made. It must not exist.
    name: String,
    /// The page server.
    #[arg(long, env = "PAGEWIRE_ENDPOINT", default_value = DEFAULT_ENDPOINT)]
    endpoint: String,
}

/// Arguments of `pagewire export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The database.
    name: String,
    /// The SQLite file to be made. It must not exist.
    file: PathBuf,
    /// The page server.
    #[arg(long, env = "PAGEWIRE_ENDPOINT", default_value = DEFAULT_ENDPOINT)]
    endpoint: String,
}

/// Copies a local file into a new database.
pub fn import(arguments: &ImportArguments) -> anyhow::Result<()> {
    register_vfs()?;
    let source = open_local(&arguments.file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut target = open_remote(&arguments.name, &arguments.endpoint, "rwc")?;
    let pages: i64 = target
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .map_err(explain(&target))?;
    if pages > 0 {
        bail!(
            "database {} exists already: delete it first, or choose another name",
            arguments.name
        );
    }
    copy(&source, &mut target)?;
    println!(
        "imported {} into {}",
        arguments.file.display(),
        arguments.name
    );
    Ok(())
}

/// Copies a database into a new local file.
pub fn export(arguments: &ExportArguments) -> anyhow::Result<()> {
    register_vfs()?;
    if arguments.file.exists() {
        bail!(
            "{} exists already: remove it first, or choose another name",
            arguments.file.display()
        );
    }
    let source = open_remote(&arguments.name, &arguments.endpoint, "ro")?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut target = open_local(&arguments.file, flags)?;
    copy(&source, &mut target)?;
    println!(
        "exported {} into {}",
        arguments.name,
        arguments.file.display()
    );
    Ok(())
}

fn copy(source: &Connection, target: &mut Connection) -> anyhow::Result<()> {
    {
        let backup = Backup::new(source, target)?;
        loop {
            match backup.step(-1)? {
                StepResult::Done => break,
                // Another writer of the local file.
                StepResult::Busy | StepResult::Locked | StepResult::More => {
                    std::thread::park_timeout(Duration::from_millis(50));
                }
                _ => {}
            }
        }
    }
    let check: String = target.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if check != "ok" {
        bail!("the copy is damaged as its source is: {check}");
    }
    Ok(())
}

fn open_local(file: &Path, flags: OpenFlags) -> anyhow::Result<Connection> {
    Connection::open_with_flags_and_vfs(file, flags, c"unix")
        .with_context(|| format!("{} can't be opened", file.display()))
}

fn open_remote(name: &str, endpoint: &str, mode: &str) -> anyhow::Result<Connection> {
    let name = DatabaseName::try_from(name)?;
    let escape = |text: &str| {
        let escaped = text.bytes().map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b':' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        });
        escaped.collect::<String>()
    };
    let uri = format!(
        "file:{}?vfs=pagewire&mode={mode}&endpoint={}",
        escape(name.as_str()),
        escape(endpoint)
    );
    let flags = OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE;
    let notes = Connection::open_in_memory()?;
    Connection::open_with_flags(uri, flags).map_err(explain(&notes))
}

/// SQLite's message says that something failed; ours says what, and what to do next.
fn explain(connection: &Connection) -> impl FnOnce(rusqlite::Error) -> anyhow::Error {
    let cause: Option<String> = connection
        .query_row("SELECT pagewire_last_error()", [], |row| row.get(0))
        .ok()
        .flatten();
    move |error| match cause {
        Some(cause) => anyhow::Error::new(error).context(cause),
        None => error.into(),
    }
}
