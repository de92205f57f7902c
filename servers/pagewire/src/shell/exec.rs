//! Runs SQL text statement by statement and prints what comes back.
//!
//! It decides nothing about input lines and prints no errors: the caller does.

use rusqlite::Connection;
use rusqlite::OptionalExtension as _;
use rusqlite::ffi;
use rusqlite::types::Value;

use super::input::{is_blank, trim_start};
use super::output::{self, RowSink as _};
use super::raw::{self, Explain, Query, SqlFailure};
use super::session::Session;
use super::settings::{ExplainLayout, Stats};

/// When a statement failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// SQLite could not compile it.
    Prepare,
    /// It failed while it ran.
    Step,
    /// There was nothing to run it on.
    Open,
}

/// Why SQL text was not run to its end.
#[derive(Debug, Clone)]
pub(super) struct ExecError {
    pub phase: Phase,
    pub code: i32,
    /// SQLite's message, its code if it is not the general one, and the place in the text.
    pub message: String,
}

impl ExecError {
    /// The text that an argument of the command line is answered with.
    pub(super) fn with_phase(&self) -> String {
        match self.phase {
            Phase::Prepare => format!("in prepare, {}", self.message),
            Phase::Step => format!("stepping, {}", self.message),
            Phase::Open => self.message.clone(),
        }
    }

    /// The kind that starts the message about a line of input.
    pub(super) fn kind(&self) -> &'static str {
        match self.phase {
            Phase::Prepare => "Parse error",
            Phase::Step => "Runtime error",
            Phase::Open => "Error",
        }
    }

    fn new(phase: Phase, failure: &SqlFailure, sql: &[u8]) -> Self {
        let mut message = failure.message.clone();
        if failure.code > 1 {
            message.push_str(&format!(" ({})", failure.code));
        }
        if phase == Phase::Prepare
            && let Some(offset) = failure.offset
        {
            message.push_str(&context(sql, offset));
        }
        Self {
            phase,
            code: failure.code,
            message,
        }
    }
}

/// Runs all statements of `sql`; stops at the first error.
pub(super) fn run_sql(session: &mut Session, sql: &[u8]) -> Result<(), ExecError> {
    let end = sql.iter().position(|byte| *byte == 0).unwrap_or(sql.len());
    let mut rest = trim_start(&sql[..end]);
    while !rest.is_empty() {
        let opening = |message: String| ExecError {
            phase: Phase::Open,
            code: 1,
            message,
        };
        if starts_with_attach(rest) {
            // What it names may be the first database that needs the page server.
            session
                .environment()
                .map_err(|error| opening(format!("{error:#}")))?;
        }
        let connection = session
            .db()
            .map_err(|message| opening(message.trim_start_matches("Error: ").to_owned()))?;
        let (query, used) = raw::prepare(&connection, rest)
            .map_err(|failure| ExecError::new(Phase::Prepare, &failure, rest))?;
        if let Some(mut query) = query {
            run_query(session, &connection, &mut query, &rest[..used])
                .map_err(|failure| ExecError::new(Phase::Step, &failure, rest))?;
        }
        rest = trim_start(&rest[used.max(1)..]);
    }
    Ok(())
}

fn run_query(
    session: &mut Session,
    connection: &Connection,
    query: &mut Query<'_>,
    sql: &[u8],
) -> Result<(), SqlFailure> {
    if session.switches.query_plan && query.explain() == Explain::No {
        let explained = [b"EXPLAIN QUERY PLAN ", sql].concat();
        if let Ok((Some(mut plan), _)) = raw::prepare(connection, &explained) {
            output::print_query_plan(&mut plan, &mut session.out)?;
        }
    }
    bind_parameters(connection, query)?;
    let explain = match session.switches.explain {
        ExplainLayout::Off => Explain::No,
        ExplainLayout::On | ExplainLayout::Auto => query.explain(),
    };
    let outcome = match explain {
        Explain::Bytecode => output::print_bytecode(query, &mut session.out),
        Explain::QueryPlan => output::print_query_plan(query, &mut session.out),
        Explain::No => output::print_rows(query, &mut session.format, &mut session.out),
    };
    print_stats(session, connection, query);
    outcome?;
    if session.out.is_broken() {
        return Err(SqlFailure {
            code: ffi::SQLITE_IOERR,
            message: "nobody reads the output".to_owned(),
            offset: None,
        });
    }
    Ok(())
}

/// Runs all statements of `sql` and drops their rows.
pub(super) fn run_quietly(connection: &Connection, sql: &[u8]) -> Result<(), SqlFailure> {
    let mut rest = trim_start(sql);
    while !rest.is_empty() {
        let (query, used) = raw::prepare(connection, rest)?;
        if let Some(mut query) = query {
            while query.step()? {}
        }
        rest = trim_start(&rest[used.max(1)..]);
    }
    Ok(())
}

/// Binds what `.parameter set` stored; everything else stays NULL.
fn bind_parameters(connection: &Connection, query: &mut Query<'_>) -> Result<(), SqlFailure> {
    let names = query.parameter_names();
    if names.is_empty() {
        return Ok(());
    }
    let Ok(mut lookup) =
        connection.prepare("SELECT value FROM temp.sqlite_parameters WHERE key=?1")
    else {
        return Ok(());
    };
    for (position, name) in names.iter().enumerate() {
        let value: Option<Value> = lookup
            .query_row([name], |row| row.get(0))
            .optional()
            .ok()
            .flatten();
        if let Some(value) = value {
            query.bind(position + 1, &value)?;
        }
    }
    Ok(())
}

fn print_stats(session: &mut Session, connection: &Connection, query: &Query<'_>) {
    let stats = session.switches.stats;
    let statement = [
        ("Fullscan Steps:", ffi::SQLITE_STMTSTATUS_FULLSCAN_STEP),
        ("Sort Operations:", ffi::SQLITE_STMTSTATUS_SORT),
        ("Autoindex Inserts:", ffi::SQLITE_STMTSTATUS_AUTOINDEX),
        ("Virtual Machine Steps:", ffi::SQLITE_STMTSTATUS_VM_STEP),
        ("Reprepare operations:", ffi::SQLITE_STMTSTATUS_REPREPARE),
        ("Number of times run:", ffi::SQLITE_STMTSTATUS_RUN),
        (
            "Memory used by prepared stmt:",
            ffi::SQLITE_STMTSTATUS_MEMUSED,
        ),
    ];
    match stats {
        Stats::Off => {}
        Stats::Steps => {
            let steps = query.counter(ffi::SQLITE_STMTSTATUS_VM_STEP);
            session.print(&format!("VM-steps: {steps}"));
        }
        Stats::On | Stats::Statement => {
            if stats == Stats::On {
                let (now, most) = raw::memory_bytes();
                session.print(&format!("{:<36} {now} (max {most}) bytes", "Memory Used:"));
                for (label, kind) in [
                    ("Pager Heap Usage:", ffi::SQLITE_DBSTATUS_CACHE_USED),
                    ("Page cache hits:", ffi::SQLITE_DBSTATUS_CACHE_HIT),
                    ("Page cache misses:", ffi::SQLITE_DBSTATUS_CACHE_MISS),
                    ("Page cache writes:", ffi::SQLITE_DBSTATUS_CACHE_WRITE),
                    ("Page cache spills:", ffi::SQLITE_DBSTATUS_CACHE_SPILL),
                    ("Schema Heap Usage:", ffi::SQLITE_DBSTATUS_SCHEMA_USED),
                ] {
                    let (value, _) = raw::connection_counter(connection, kind);
                    session.print(&format!("{label:<36} {value}"));
                }
            }
            for (label, kind) in statement {
                session.print(&format!("{label:<36} {}", query.counter(kind)));
            }
        }
    }
}

/// Whether the first word, after comments, is ATTACH.
fn starts_with_attach(sql: &[u8]) -> bool {
    let mut rest = trim_start(sql);
    loop {
        let comment_end = if rest.starts_with(b"--") {
            rest.iter().position(|byte| *byte == b'\n').map(|at| at + 1)
        } else if rest.starts_with(b"/*") {
            rest.windows(2)
                .skip(2)
                .position(|pair| pair == b"*/")
                .map(|at| at + 4)
        } else {
            break;
        };
        let Some(end) = comment_end else { return false };
        rest = trim_start(&rest[end.min(rest.len())..]);
    }
    rest.len() > 6 && rest[..6].eq_ignore_ascii_case(b"attach") && !rest[6].is_ascii_alphanumeric()
}

/// The line of the statement around `offset`, with a mark under the culprit.
fn context(sql: &[u8], offset: usize) -> String {
    /// What fits a terminal line, and how much of it is kept before the culprit.
    const LINE: usize = 78;
    const BEFORE: usize = 50;
    let (mut sql, mut offset) = (sql, offset.min(sql.len()));
    let continues = |byte: Option<&u8>| byte.is_some_and(|byte| byte & 0xc0 == 0x80);
    while offset > BEFORE {
        sql = &sql[1..];
        offset -= 1;
        while continues(sql.first()) {
            sql = &sql[1..];
            offset = offset.saturating_sub(1);
        }
    }
    let mut length = sql.len();
    if length > LINE {
        length = LINE;
        while continues(sql.get(length)) {
            length -= 1;
        }
    }
    let line: Vec<u8> = sql[..length]
        .iter()
        .map(|byte| if is_blank(*byte) { b' ' } else { *byte })
        .collect();
    let line = String::from_utf8_lossy(&line).into_owned();
    if offset < 25 {
        format!("\n  {line}\n  {}^--- error here", " ".repeat(offset))
    } else {
        format!("\n  {line}\n  {}error here ---^", " ".repeat(offset - 14))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_under_the_culprit() {
        assert_eq!(context(b"selec\n1", 0), "\n  selec 1\n  ^--- error here");
        let long = [b" ".repeat(60), b"x".to_vec(), b"y".repeat(40)].concat();
        let text = context(&long, 60);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].find('x').unwrap(), lines[2].find('^').unwrap());
        assert_eq!(lines[1].len(), 80);
    }

    #[test]
    fn attach_is_seen_behind_comments() {
        assert!(starts_with_attach(b" -- a\n/* b */ ATTACH 'x' as y"));
        assert!(!starts_with_attach(b"attachment"));
        assert!(!starts_with_attach(b"select 'attach '"));
    }
}
