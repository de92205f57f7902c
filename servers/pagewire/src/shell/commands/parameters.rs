//! `.parameter`, limits, timeouts, versions and the VFS of the open database.

use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;

use super::{Flow, Outcome, Session, sql_error, table::COMMANDS};
use crate::shell::output::literal::quoted;
use crate::shell::raw;

/// The table that `.parameter` keeps bindings in, as `sqlite3` names it.
const CREATE_BINDINGS: &str = "CREATE TABLE IF NOT EXISTS temp.sqlite_parameters(\n  \
                               key TEXT PRIMARY KEY,\n  value\n) WITHOUT ROWID;";

const LIMITS: [(&str, Limit); 12] = [
    ("length", Limit::SQLITE_LIMIT_LENGTH),
    ("sql_length", Limit::SQLITE_LIMIT_SQL_LENGTH),
    ("column", Limit::SQLITE_LIMIT_COLUMN),
    ("expr_depth", Limit::SQLITE_LIMIT_EXPR_DEPTH),
    ("compound_select", Limit::SQLITE_LIMIT_COMPOUND_SELECT),
    ("vdbe_op", Limit::SQLITE_LIMIT_VDBE_OP),
    ("function_arg", Limit::SQLITE_LIMIT_FUNCTION_ARG),
    ("attached", Limit::SQLITE_LIMIT_ATTACHED),
    (
        "like_pattern_length",
        Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH,
    ),
    ("variable_number", Limit::SQLITE_LIMIT_VARIABLE_NUMBER),
    ("trigger_depth", Limit::SQLITE_LIMIT_TRIGGER_DEPTH),
    ("worker_threads", Limit::SQLITE_LIMIT_WORKER_THREADS),
];

pub(super) fn parameter(session: &mut Session, arguments: &[String]) -> Outcome {
    let connection = session.db()?;
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["clear"] => connection.execute_batch("DROP TABLE IF EXISTS temp.sqlite_parameters"),
        ["init"] => create_bindings(&connection),
        ["list"] => {
            let lines = bindings(&connection);
            let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
            for (key, value) in lines {
                session.print(&format!("{key:<width$} {value}"));
            }
            Ok(())
        }
        ["set", key, value] => set(&connection, key, value),
        ["unset", key] => connection
            .execute("DELETE FROM temp.sqlite_parameters WHERE key=?1", [key])
            .map(drop)
            // Without the table nothing is set.
            .or(Ok(())),
        _ => {
            let help = COMMANDS
                .iter()
                .find(|command| command.name == "parameter")
                .map(super::Command::help);
            session.print_bytes(help.unwrap_or_default().as_bytes());
            Ok(())
        }
    };
    outcome
        .map(|()| Flow::Continue)
        .map_err(|error| sql_error(&error))
}

fn bindings(connection: &rusqlite::Connection) -> Vec<(String, String)> {
    let Ok(mut select) = connection.prepare("SELECT key, quote(value) FROM temp.sqlite_parameters")
    else {
        return Vec::new();
    };
    let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.map(|rows| rows.flatten().collect())
        .unwrap_or_default()
}

/// The name is reserved for SQLite itself, which makes way for a writable schema.
fn create_bindings(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    let writable = DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA;
    let before = connection.db_config(writable)?;
    connection.set_db_config(writable, true)?;
    let outcome = connection.execute_batch(CREATE_BINDINGS);
    connection.set_db_config(writable, before)?;
    outcome
}

/// The value is an SQL expression, or else text.
fn set(connection: &rusqlite::Connection, key: &str, value: &str) -> rusqlite::Result<()> {
    create_bindings(connection)?;
    let insert = format!("REPLACE INTO temp.sqlite_parameters(key,value) VALUES(?1,{value})");
    if let Ok(mut statement) = connection.prepare(&insert)
        && statement.parameter_count() == 1
    {
        return statement.execute([key]).map(drop);
    }
    let text = String::from_utf8_lossy(&quoted(value.as_bytes())).into_owned();
    let insert = format!("REPLACE INTO temp.sqlite_parameters(key,value) VALUES(?1,{text})");
    connection.execute(&insert, [key]).map(drop)
}

pub(super) fn limit(session: &mut Session, arguments: &[String]) -> Outcome {
    let connection = session.db()?;
    let Some(word) = arguments.first() else {
        for (name, limit) in LIMITS {
            let value = connection.limit(limit).map_err(|error| sql_error(&error))?;
            session.print(&format!("{name:>20} {value}"));
        }
        return Ok(Flow::Continue);
    };
    let matching: Vec<_> = LIMITS
        .iter()
        .filter(|(name, _)| name.starts_with(word.as_str()))
        .collect();
    let exact = matching.iter().find(|(name, _)| name == word).copied();
    let found = match (exact, &matching[..]) {
        (Some(found), _) => found,
        (None, [found]) => *found,
        (None, []) => {
            return Err(format!(
                "unknown limit: \"{word}\"\nenter \".limits\" with no arguments for a list."
            ));
        }
        (None, _) => return Err(format!("ambiguous limit: \"{word}\"")),
    };
    if let Some(value) = arguments.get(1) {
        let value: i32 = value.parse().unwrap_or(0);
        connection
            .set_limit(found.1, value)
            .map_err(|error| sql_error(&error))?;
    }
    let value = connection
        .limit(found.1)
        .map_err(|error| sql_error(&error))?;
    session.print(&format!("{:>20} {value}", found.0));
    Ok(Flow::Continue)
}

pub(super) fn timeout(session: &mut Session, arguments: &[String]) -> Outcome {
    let milliseconds = arguments
        .first()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0);
    session
        .db()?
        .busy_timeout(Duration::from_millis(milliseconds))
        .map_err(|error| sql_error(&error))?;
    Ok(Flow::Continue)
}

pub(super) fn version(session: &mut Session, _: &[String]) -> Outcome {
    let line = super::version_line().map_err(|error| format!("Error: {error:#}"))?;
    session.print(&line);
    session.print(&format!("pagewire {}", env!("CARGO_PKG_VERSION")));
    Ok(Flow::Continue)
}

fn schema_name(arguments: &[String]) -> &str {
    arguments.first().map_or("main", String::as_str)
}

pub(super) fn vfs_name(session: &mut Session, arguments: &[String]) -> Outcome {
    let connection = session.db()?;
    if let Some(name) = raw::vfs_name(&connection, schema_name(arguments)) {
        session.print(&name);
    }
    Ok(Flow::Continue)
}

pub(super) fn vfs_info(session: &mut Session, arguments: &[String]) -> Outcome {
    let connection = session.db()?;
    if let Some(facts) = raw::vfs_facts(&connection, schema_name(arguments)) {
        session.print(&format!("vfs.zName      = \"{}\"", facts.name));
        session.print(&format!("vfs.iVersion   = {}", facts.version));
        session.print(&format!("vfs.szOsFile   = {}", facts.file_bytes));
        session.print(&format!("vfs.mxPathname = {}", facts.path_bytes));
    }
    Ok(Flow::Continue)
}
