//! `.dump`: the whole database as SQL that makes it again.
//!
//! All of it is read in one read transaction; nothing is changed.

use std::io::Write;

use rusqlite::{Connection, params_from_iter};

use super::output::literal::{identifier, insert_literal, quoted};
use super::output::{RowSink, write};
use super::raw::{self, SqlFailure};

/// Options of `.dump`.
#[derive(Debug, Clone, Default)]
pub(super) struct DumpOptions {
    pub data_only: bool,
    pub raw_newlines: bool,
    pub no_system: bool,
    pub preserve_rowids: bool,
    /// LIKE patterns of names; none means everything.
    pub patterns: Vec<String>,
}

/// Writes the dump; returns the number of tables that could not be read to their end.
pub(super) fn dump(
    connection: &Connection,
    options: &DumpOptions,
    out: &mut dyn RowSink,
) -> rusqlite::Result<usize> {
    if !options.data_only {
        write(out, b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n");
    }
    connection.execute_batch("SAVEPOINT dump")?;
    let mut dumping = Dump {
        connection,
        options,
        writable_schema: false,
        failures: 0,
    };
    let outcome = dumping.objects(out);
    if dumping.writable_schema {
        write(out, b"PRAGMA writable_schema=OFF;\n");
    }
    connection.execute_batch("RELEASE dump")?;
    outcome?;
    if !options.data_only {
        let end: &[u8] = if dumping.failures == 0 {
            b"COMMIT;\n"
        } else {
            b"ROLLBACK; -- due to errors\n"
        };
        write(out, end);
    }
    Ok(dumping.failures)
}

struct Dump<'c> {
    connection: &'c Connection,
    options: &'c DumpOptions,
    /// `PRAGMA writable_schema=ON` was written.
    writable_schema: bool,
    failures: usize,
}

impl Dump<'_> {
    fn objects(&mut self, out: &mut dyn RowSink) -> rusqlite::Result<()> {
        let mut condition = self.patterns();
        if self.options.no_system {
            condition.push_str(" AND name NOT LIKE 'sqlite__%' ESCAPE '_'");
        }
        let select = |what: &str| -> rusqlite::Result<Vec<(String, String)>> {
            let sql = format!(
                "SELECT name, sql FROM sqlite_schema AS o WHERE ({condition}) AND sql NOT NULL AND {what}"
            );
            let mut select = self.connection.prepare(&sql)?;
            let patterns = params_from_iter(&self.options.patterns);
            select
                .query_map(patterns, |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        };
        let tables = select("type=='table' ORDER BY tbl_name='sqlite_sequence', rowid")?;
        let others =
            select("type IN ('index','trigger','view') ORDER BY type COLLATE NOCASE DESC")?;
        for (name, sql) in tables {
            self.table(&name, &sql, out);
        }
        if !self.options.data_only {
            for (_, sql) in others {
                write(out, format!("{};\n", schema_line(&sql)).as_bytes());
            }
        }
        Ok(())
    }

    /// A pattern takes a virtual table's shadow tables with it.
    fn patterns(&self) -> String {
        if self.options.patterns.is_empty() {
            return "1".to_owned();
        }
        let each: Vec<String> = (1..=self.options.patterns.len())
            .map(|number| {
                format!(
                    "name LIKE ?{number} ESCAPE '\\' OR EXISTS (SELECT 1 FROM sqlite_schema WHERE \
                     name LIKE ?{number} ESCAPE '\\' AND sql LIKE 'CREATE VIRTUAL TABLE%' AND \
                     substr(o.name, 1, length(name)+1) == (name||'_'))"
                )
            })
            .collect();
        format!("({})", each.join(" OR "))
    }

    fn table(&mut self, name: &str, sql: &str, out: &mut dyn RowSink) {
        let structure = !self.options.data_only;
        let is_statistics = matches!(name, "sqlite_stat1" | "sqlite_stat3" | "sqlite_stat4");
        if name == "sqlite_sequence" {
            if structure {
                write(out, b"DELETE FROM sqlite_sequence;\n");
            }
        } else if is_statistics && !self.options.no_system {
            if structure {
                write(out, b"ANALYZE sqlite_schema;\n");
            }
        } else if name.starts_with("sqlite_") {
            return;
        } else if structure && sql.starts_with("CREATE VIRTUAL TABLE") {
            if !self.writable_schema {
                write(out, b"PRAGMA writable_schema=ON;\n");
                self.writable_schema = true;
            }
            let (name, sql) = (literal(name), literal(sql));
            let insert = format!(
                "INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql)VALUES('table',{name},{name},0,{sql});\n"
            );
            write(out, insert.as_bytes());
            return;
        } else if sql.starts_with("CREATE VIRTUAL TABLE") {
            return;
        } else if structure {
            write(out, format!("{};\n", schema_line(sql)).as_bytes());
        }
        if let Err(failure) = self.table_rows(name, out) {
            self.failures += 1;
            write(
                out,
                format!("/****** ERROR: {} ******/\n", failure.message).as_bytes(),
            );
        }
    }

    fn table_rows(&self, name: &str, out: &mut dyn RowSink) -> Result<(), SqlFailure> {
        let names = column_names(self.connection, name)?;
        if names.is_empty() {
            return Ok(());
        }
        let mut columns: Vec<String> = names.iter().map(|name| identifier(name)).collect();
        let mut into = identifier(name);
        if self.options.preserve_rowids
            && let Some(rowid) = rowid_alias(self.connection, name, &names)
        {
            columns.insert(0, rowid.to_owned());
            into.push_str(&format!("({})", columns.join(",")));
        }
        rows(
            self.connection,
            name,
            &columns,
            &into,
            self.options.raw_newlines,
            out,
        )
    }
}

/// Writes the rows of a table as INSERT statements.
pub(super) fn rows(
    connection: &Connection,
    table: &str,
    columns: &[String],
    into: &str,
    raw_newlines: bool,
    out: &mut dyn RowSink,
) -> Result<(), SqlFailure> {
    let sql = format!("SELECT {} FROM {}", columns.join(","), identifier(table));
    let (Some(mut query), _) = raw::prepare(connection, sql.as_bytes())? else {
        return Ok(());
    };
    while query.step()? {
        let mut line = format!("INSERT INTO {into} VALUES(").into_bytes();
        for column in 0..query.column_count() {
            if column > 0 {
                line.push(b',');
            }
            line.extend_from_slice(&insert_literal(&mut query, column, raw_newlines));
        }
        line.extend_from_slice(b");\n");
        write(out, &line);
        if out.is_broken() {
            break;
        }
    }
    Ok(())
}

/// The columns that can be inserted: no generated and no hidden ones.
fn column_names(connection: &Connection, table: &str) -> Result<Vec<String>, SqlFailure> {
    let sql = format!("PRAGMA table_info={}", identifier(table));
    let (Some(mut query), _) = raw::prepare(connection, sql.as_bytes())? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    while query.step()? {
        names.push(String::from_utf8_lossy(query.text(1).unwrap_or_default()).into_owned());
    }
    Ok(names)
}

/// A name of the rowid that no column hides; none when a column is the rowid or there is no rowid.
fn rowid_alias(connection: &Connection, table: &str, columns: &[String]) -> Option<&'static str> {
    let table_name = identifier(table);
    let alias = ["rowid", "_rowid_", "oid"].into_iter().find(|alias| {
        !columns
            .iter()
            .any(|column| column.eq_ignore_ascii_case(alias))
    })?;
    connection
        .prepare(&format!("SELECT {alias} FROM {table_name}"))
        .ok()?;
    // An INTEGER PRIMARY KEY is the rowid: it has no index of its own.
    let mut info = connection
        .prepare(&format!("PRAGMA table_info={table_name}"))
        .ok()?;
    let keys: Vec<String> = info
        .query_map([], |row| {
            Ok((row.get::<_, i64>(5)? > 0)
                .then(|| row.get::<_, String>(2))
                .transpose())
        })
        .ok()?
        .flatten()
        .filter_map(|key| key.ok().flatten())
        .collect();
    let is_rowid = matches!(&keys[..], [key] if key.eq_ignore_ascii_case("integer"));
    (!is_rowid).then_some(alias)
}

fn literal(text: &str) -> String {
    String::from_utf8_lossy(&quoted(text.as_bytes())).into_owned()
}

/// A CREATE statement as it is shown: a table whose name is quoted may exist already, since
/// shadow tables are made by their virtual table.
pub(super) fn schema_line(sql: &str) -> String {
    match sql.strip_prefix("CREATE TABLE ") {
        Some(rest) if rest.starts_with(['\'', '"']) => format!("CREATE TABLE IF NOT EXISTS {rest}"),
        _ => sql.to_owned(),
    }
}

/// A CREATE TABLE with one column a line.
pub(super) fn indented(sql: &str) -> String {
    // A comment ends with its line, so a statement with one keeps its lines.
    let has_comment = sql.contains("--") || sql.contains("/*");
    if has_comment || !sql.starts_with("CREATE TABLE") && !sql.starts_with("CREATE VIRTUAL TABLE") {
        return format!("{sql};\n");
    }
    let text = schema_line(sql);
    let squeezed = squeeze(&text);
    let (mut out, mut depth, mut lines, mut quote) = (String::new(), 0_i32, 0, None);
    let mut line = String::new();
    let mut letters = squeezed.chars().peekable();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(end), letter) if letter == end => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'' | '`') => quote = Some(letter),
            (None, '[') => quote = Some(']'),
            (None, '(') => depth += 1,
            (None, ')') => {
                depth -= 1;
                if lines > 0 && depth == 0 && !line.is_empty() {
                    out.push_str(line.trim_end());
                    out.push('\n');
                    line.clear();
                }
            }
            _ => {}
        }
        line.push(letter);
        if depth == 1 && quote.is_none() && matches!(letter, '(' | ',') {
            out.push_str(&line);
            out.push_str("\n  ");
            line.clear();
            lines += 1;
            while letters.next_if(|next| next.is_whitespace()).is_some() {}
        }
    }
    out.push_str(&line);
    format!("{};\n", out.trim_end())
}

/// White space outside quotations becomes one blank, and none beside a parenthesis.
fn squeeze(sql: &str) -> String {
    let (mut out, mut quote) = (String::new(), None);
    for letter in sql.chars() {
        match quote {
            Some(end) => {
                if letter == end {
                    quote = None;
                }
            }
            None if letter.is_whitespace() => {
                if !out.is_empty() && !out.ends_with([' ', '(']) {
                    out.push(' ');
                }
                continue;
            }
            None => {
                quote = match letter {
                    '"' | '\'' | '`' => Some(letter),
                    '[' => Some(']'),
                    _ => None,
                };
                if matches!(letter, '(' | ')') && out.ends_with(' ') {
                    out.pop();
                }
            }
        }
        out.push(letter);
    }
    out
}

/// A dump in memory, to run it elsewhere.
pub(super) fn to_sql(connection: &Connection) -> rusqlite::Result<Vec<u8>> {
    let mut sql = Vec::new();
    dump(connection, &DumpOptions::default(), &mut sql)?;
    sql.flush()
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    Ok(sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indented_schema_has_a_column_a_line() {
        assert_eq!(
            indented("CREATE TABLE g(a integer   primary key, b default 'x,(y', c as (a+1))"),
            "CREATE TABLE g(\n  a integer primary key,\n  b default 'x,(y',\n  c as(a+1)\n);\n"
        );
        assert_eq!(
            indented("CREATE VIEW v AS SELECT (1),\n 2"),
            "CREATE VIEW v AS SELECT (1),\n 2;\n"
        );
    }

    #[test]
    fn rowids_are_kept_unless_a_column_is_the_rowid() {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch(
                "create table a(x); insert into a(rowid,x) values(7,'v');
                 create table b(id integer primary key); insert into b values(3);
                 create table c(k primary key) without rowid; insert into c values('z');",
            )
            .unwrap();
        let options = DumpOptions {
            preserve_rowids: true,
            data_only: true,
            ..DumpOptions::default()
        };
        let mut out = Vec::new();
        assert_eq!(dump(&connection, &options, &mut out).unwrap(), 0);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "INSERT INTO a(rowid,x) VALUES(7,'v');\nINSERT INTO b VALUES(3);\nINSERT INTO c VALUES('z');\n"
        );
    }
}
