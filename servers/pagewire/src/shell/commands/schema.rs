//! Commands that look at the schema: `.tables`, `.indexes`, `.schema`, `.databases`.

use rusqlite::{Connection, TransactionState};

use super::{Flow, Outcome, Session, sql_error, usage};
use crate::shell::dump;
use crate::shell::output::literal::{identifier, quoted};

/// What `.schema sqlite_schema` prints: the table that is in no table.
const SCHEMA_OF_SCHEMA: &str =
    "(\n  type text,\n  name text,\n  tbl_name text,\n  rootpage integer,\n  sql text\n);";

/// The names of the databases of a connection, in order.
fn databases_of(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut list = connection.prepare("PRAGMA database_list")?;
    list.query_map([], |row| row.get(1))?.collect()
}

fn schema_table(database: &str) -> String {
    format!("{}.sqlite_schema", identifier(database))
}

fn literal(text: &str) -> String {
    String::from_utf8_lossy(&quoted(text.as_bytes())).into_owned()
}

pub(super) fn tables(session: &mut Session, arguments: &[String]) -> Outcome {
    list(
        session,
        arguments,
        "type IN ('table','view') AND name NOT LIKE 'sqlite_%'",
        "name",
    )
}

pub(super) fn indexes(session: &mut Session, arguments: &[String]) -> Outcome {
    if arguments.len() > 1 {
        return usage(".indexes ?LIKE-PATTERN?");
    }
    list(session, arguments, "type='index'", "tbl_name")
}

fn list(session: &mut Session, arguments: &[String], which: &str, matched: &str) -> Outcome {
    let connection = session.db()?;
    let names = (|| -> rusqlite::Result<Vec<String>> {
        let selects: Vec<String> = databases_of(&connection)?
            .iter()
            .map(|database| {
                let prefix = if database == "main" {
                    String::new()
                } else {
                    format!("{database}.")
                };
                format!(
                    "SELECT {}||name FROM {} WHERE {which} AND {matched} LIKE ?1",
                    literal(&prefix),
                    schema_table(database)
                )
            })
            .collect();
        let sql = format!("{} ORDER BY 1", selects.join(" UNION ALL "));
        let pattern = arguments.first().map_or("%", String::as_str);
        connection
            .prepare(&sql)?
            .query_map([pattern], |row| row.get(0))?
            .collect()
    })()
    .map_err(|error| sql_error(&error))?;
    print_in_columns(session, &names);
    Ok(Flow::Continue)
}

/// As many columns as fit 80 characters, filled from top to bottom.
fn print_in_columns(session: &mut Session, names: &[String]) {
    if names.is_empty() {
        return;
    }
    let widest = names.iter().map(String::len).max().unwrap_or(0);
    let columns = (80 / (widest + 2)).max(1);
    let rows = names.len().div_ceil(columns);
    for row in 0..rows {
        let line: Vec<String> = names[row..]
            .iter()
            .step_by(rows)
            .map(|name| format!("{name:<widest$}"))
            .collect();
        session.print(&line.join("  "));
    }
}

pub(super) fn databases(session: &mut Session, _: &[String]) -> Outcome {
    let connection = session.db()?;
    let files = (|| -> rusqlite::Result<Vec<(String, String)>> {
        let mut list = connection.prepare("PRAGMA database_list")?;
        let rows = list.query_map([], |row| {
            Ok((
                row.get(1)?,
                row.get::<_, Option<String>>(2)?.unwrap_or_default(),
            ))
        })?;
        rows.collect()
    })()
    .map_err(|error| sql_error(&error))?;
    for (name, file) in files {
        let access = if connection.is_readonly(name.as_str()).unwrap_or(false) {
            "r/o"
        } else {
            "r/w"
        };
        let transaction = match connection.transaction_state(Some(name.as_str())) {
            Ok(TransactionState::Read) => " read-txn",
            Ok(TransactionState::Write) => " write-txn",
            _ => "",
        };
        let file = if file.is_empty() { "\"\"" } else { &file };
        session.print(&format!("{name}: {file} {access}{transaction}"));
    }
    Ok(Flow::Continue)
}

pub(super) fn schema(session: &mut Session, arguments: &[String]) -> Outcome {
    let (mut indent, mut no_system, mut pattern) = (false, false, None);
    for word in arguments {
        match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
            Some("indent") => indent = true,
            Some("nosys") => no_system = true,
            Some(_) => return Err(format!("Unknown option: \"{word}\"")),
            None if pattern.is_none() => pattern = Some(word.as_str()),
            None => return usage(".schema ?--indent? ?--nosys? ?LIKE-PATTERN?"),
        }
    }
    let connection = session.db()?;
    if let Some(pattern) = pattern {
        for name in [
            "sqlite_master",
            "sqlite_schema",
            "sqlite_temp_master",
            "sqlite_temp_schema",
        ] {
            if like(&connection, pattern, name) && !pattern.contains('%') {
                let temporary = if name.contains("temp") { "TEMP " } else { "" };
                session.print(&format!(
                    "CREATE {temporary}TABLE {name} {SCHEMA_OF_SCHEMA}"
                ));
                return Ok(Flow::Continue);
            }
        }
    }
    let statements =
        statements(&connection, pattern, no_system).map_err(|error| sql_error(&error))?;
    for statement in statements {
        let text = if indent {
            dump::indented(&statement)
        } else {
            format!("{};\n", dump::schema_line(&statement))
        };
        session.print_bytes(text.as_bytes());
    }
    Ok(Flow::Continue)
}

fn like(connection: &Connection, pattern: &str, name: &str) -> bool {
    connection
        .query_row("SELECT ?2 LIKE ?1", [pattern, name], |row| row.get(0))
        .unwrap_or(false)
}

/// The CREATE statements of all databases, with what SQLite does not store: the database's name,
/// and the columns of views and virtual tables.
fn statements(
    connection: &Connection,
    pattern: Option<&str>,
    no_system: bool,
) -> rusqlite::Result<Vec<String>> {
    let mut found = Vec::new();
    for database in databases_of(connection)? {
        let glob = pattern.is_some_and(|pattern| pattern.contains(['*', '?', '[']));
        let name = match pattern {
            Some(pattern) if pattern.contains('.') => {
                format!("lower({}||'.'||tbl_name)", literal(&database))
            }
            _ => "lower(tbl_name)".to_owned(),
        };
        let condition = match (pattern, glob) {
            (None, _) => "1".to_owned(),
            (Some(pattern), true) => format!("{name} GLOB {}", literal(&pattern.to_lowercase())),
            (Some(pattern), false) => format!("{name} LIKE {} ESCAPE '\\'", literal(pattern)),
        };
        let system = if no_system {
            " AND name NOT LIKE 'sqlite__%' ESCAPE '_'"
        } else {
            ""
        };
        let sql = format!(
            "SELECT sql, name FROM {} WHERE sql IS NOT NULL AND {condition}{system} ORDER BY rowid",
            schema_table(&database)
        );
        let mut select = connection.prepare(&sql)?;
        let rows: Vec<(String, String)> = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (sql, name) in rows {
            found.push(with_context(connection, &database, &sql, &name));
        }
    }
    Ok(found)
}

fn with_context(connection: &Connection, database: &str, sql: &str, name: &str) -> String {
    let mut text = sql.to_owned();
    let Some(rest) = sql.strip_prefix("CREATE ") else {
        return text;
    };
    for kind in [
        "TABLE ",
        "INDEX ",
        "UNIQUE INDEX ",
        "VIEW ",
        "TRIGGER ",
        "VIRTUAL TABLE ",
    ] {
        let Some(object) = rest.strip_prefix(kind) else {
            continue;
        };
        let prefix = match database {
            "main" => String::new(),
            // A keyword, but nobody quotes it.
            "temp" => "temp.".to_owned(),
            database => format!("{}.", identifier(database)),
        };
        text = format!("CREATE {kind}{prefix}{object}");
        if kind.starts_with('V')
            && let Some(columns) = columns(connection, database, name)
        {
            text.push_str(&format!("\n/* {prefix}{}({columns}) */", identifier(name)));
        }
        break;
    }
    text
}

fn columns(connection: &Connection, database: &str, table: &str) -> Option<String> {
    let sql = format!(
        "PRAGMA {}.table_info={}",
        identifier(database),
        identifier(table)
    );
    let mut info = connection.prepare(&sql).ok()?;
    let rows = info.query_map([], |row| row.get::<_, String>(1)).ok()?;
    let names: Vec<String> = rows.flatten().map(|name| identifier(&name)).collect();
    (!names.is_empty()).then(|| names.join(","))
}

pub(super) fn full_schema(session: &mut Session, arguments: &[String]) -> Outcome {
    let indent = match arguments {
        [] => false,
        [word] if word.trim_start_matches('-') == "indent" => true,
        _ => return usage(".fullschema ?--indent?"),
    };
    let connection = session.db()?;
    let query = |sql: &str| -> rusqlite::Result<Vec<String>> {
        connection
            .prepare(sql)?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    let statements = query(
        "SELECT sql FROM (SELECT sql, type, tbl_name, name, rowid x FROM sqlite_schema UNION ALL \
         SELECT sql, type, tbl_name, name, rowid FROM sqlite_temp_schema) \
         WHERE type!='meta' AND sql NOTNULL AND name NOT LIKE 'sqlite_%' ORDER BY x",
    )
    .map_err(|error| sql_error(&error))?;
    for statement in statements {
        let text = if indent {
            dump::indented(&statement)
        } else {
            format!("{};\n", dump::schema_line(&statement))
        };
        session.print_bytes(text.as_bytes());
    }
    let statistics = query("SELECT name FROM sqlite_schema WHERE name GLOB 'sqlite_stat[134]'")
        .map_err(|error| sql_error(&error))?;
    if statistics.is_empty() {
        session.print("/* No STAT tables available */");
        return Ok(Flow::Continue);
    }
    session.print("ANALYZE sqlite_schema;");
    for table in statistics {
        dump::rows(
            &connection,
            &table,
            &["*".to_owned()],
            &table,
            true,
            &mut session.out,
        )
        .map_err(|failure| format!("Error: {}", failure.message))?;
    }
    session.print("ANALYZE sqlite_schema;");
    Ok(Flow::Continue)
}
