//! `pagewire import` and `pagewire export`: a local SQLite file becomes a database, and a database a local file.
//!
//! Both go through SQLite's backup API and the VFS: one transaction, so that nobody sees a half of it.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use pagewire_proto::{DatabaseName, Moment};
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
    /// The database, or a version of it as NAME@AT: a version, a time, an age or a tag. What follows the last '@' is the moment; a
    /// name that has one itself is written with an '@' at its end.
    #[arg(value_name = "NAME[@AT]")]
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
    let mut target = open_remote(&arguments.name, &arguments.endpoint, "rwc", None)?;
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
    // It is done, whether somebody reads that or not.
    let _ = writeln!(
        io::stdout(),
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
    let (name, at) = name_and_moment(&arguments.name)?;
    let source = open_remote(name, &arguments.endpoint, "ro", at.as_ref())?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut target = open_local(&arguments.file, flags)?;
    copy(&source, &mut target)?;
    // It is done, whether somebody reads that or not.
    let _ = writeln!(
        io::stdout(),
        "exported {} into {}",
        arguments.name,
        arguments.file.display()
    );
    Ok(())
}

/// `NAME`, `NAME@AT`, or `NAME@` for a name that has an '@' itself.
fn name_and_moment(text: &str) -> anyhow::Result<(&str, Option<Moment>)> {
    match text.rsplit_once('@') {
        None => Ok((text, None)),
        Some((name, "")) => Ok((name, None)),
        Some((name, at)) => Ok((name, Some(at.parse()?))),
    }
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

/// Opens a database of a page server, at a moment or at its newest version. The VFS has to be registered.
pub(crate) fn open_remote(
    name: &str,
    endpoint: &str,
    mode: &str,
    at: Option<&Moment>,
) -> anyhow::Result<Connection> {
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
    let mut uri = format!(
        "file:{}?vfs=pagewire&mode={mode}&endpoint={}",
        escape(name.as_str()),
        escape(endpoint)
    );
    if let Some(at) = at {
        uri.push_str("&at=");
        uri.push_str(&escape(&at.as_written()));
    }
    let flags = OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE;
    let notes = Connection::open_in_memory()?;
    Connection::open_with_flags(uri, flags).map_err(explain(&notes))
}

/// SQLite's message says that something failed; ours says what, and what to do next.
pub(crate) fn explain(connection: &Connection) -> impl FnOnce(rusqlite::Error) -> anyhow::Error {
    let cause: Option<String> = connection
        .query_row("SELECT pagewire_last_error()", [], |row| row.get(0))
        .ok()
        .flatten();
    move |error| match cause {
        Some(cause) => anyhow::Error::new(error).context(cause),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_the_last_at_sign_is_the_moment() {
        let version = |number| Some(Moment::Version(pagewire_proto::Version::new(number)));
        for (text, name, at) in [
            ("a.db", "a.db", None),
            ("a.db@7", "a.db", version(7)),
            ("me@home.db@7", "me@home.db", version(7)),
            ("me@home.db@", "me@home.db", None),
            ("a.db@2h ago", "a.db", Some(Moment::Age(7_200_000))),
        ] {
            assert_eq!(name_and_moment(text).unwrap(), (name, at));
        }
        assert!(name_and_moment("a.db@2026-11-01T00:00").is_err());
    }
}
