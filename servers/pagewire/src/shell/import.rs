//! `.import`: rows of a CSV or separated text file into a table.
//!
//! One transaction a file; rows that do not fit are reported with their line and the rest goes on.

use std::io::{BufRead, BufReader, Bytes, Read};
use std::process::{Command, Stdio};

use rusqlite::Connection;

use super::output::literal::identifier;
use super::raw::{self, Query};
use super::session::{Session, reason};
use super::settings::{Mode, RECORD_SEPARATOR, UNIT_SEPARATOR};

/// What `.import` was asked to do.
struct Request {
    file: String,
    table: String,
    schema: Option<String>,
    column_separator: u8,
    row_separator: u8,
    /// Fields are taken as they are, without quotations.
    plain: bool,
    skip: usize,
    verbose: bool,
}

/// Runs `.import` with its arguments; the error is the text to print.
pub(super) fn import(
    session: &mut Session,
    arguments: &[String],
    help: &str,
) -> Result<(), String> {
    let request = parse(session, arguments, help)?;
    let connection = session.db()?;
    let (name, input) = open(&request.file)?;
    let mut fields = Fields::new(name, input, &request);
    for _ in 0..request.skip {
        while fields.next(session).is_some() && fields.ended_by == Some(request.column_separator) {}
    }
    let table = match &request.schema {
        Some(schema) => format!("{}.{}", identifier(schema), identifier(&request.table)),
        None => identifier(&request.table),
    };
    let sql = format!("SELECT * FROM {table}");
    let mut columns = match raw::prepare(&connection, sql.as_bytes()) {
        Ok((query, _)) => query.map_or(0, |query| query.column_count()),
        Err(failure) if failure.message.starts_with("no such table: ") => 0,
        Err(failure) => return Err(format!("Error: {}", failure.message)),
    };
    if columns == 0 {
        columns = create_table(session, &connection, &mut fields, &request, &table)?;
    }
    let own_transaction = connection.is_autocommit();
    if own_transaction {
        connection
            .execute_batch("BEGIN")
            .map_err(|error| format!("Error: {}", reason(&error)))?;
    }
    let counts = insert_all(session, &connection, &mut fields, &table, columns);
    if own_transaction {
        connection
            .execute_batch("COMMIT")
            .map_err(|error| format!("Error: {}", reason(&error)))?;
    }
    let (rows, errors) = counts?;
    if request.verbose {
        session.print(&format!(
            "Added {rows} rows with {errors} errors using {} lines of input",
            fields.line - 1
        ));
    }
    Ok(())
}

fn parse(session: &Session, arguments: &[String], help: &str) -> Result<Request, String> {
    let (mut file, mut table, mut schema) = (None, None, None);
    let (mut csv, mut ascii, mut skip, mut verbose) = (false, false, 0, false);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
            None if file.is_none() => file = Some(word.clone()),
            None if table.is_none() => table = Some(word.clone()),
            None => {
                return Err(format!(
                    "ERROR: extra argument: \"{word}\".  Usage:\n{}",
                    help.trim_end()
                ));
            }
            Some("v") => verbose = true,
            Some("csv") => csv = true,
            Some("ascii") => ascii = true,
            Some("schema") => schema = words.next().cloned(),
            Some("skip") => {
                skip = words
                    .next()
                    .and_then(|number| number.parse().ok())
                    .unwrap_or(0)
            }
            Some(name) => {
                return Err(format!(
                    "ERROR: unknown option: \"-{name}\".  Usage:\n{}",
                    help.trim_end()
                ));
            }
        }
    }
    let (Some(file), Some(table)) = (&file, &table) else {
        let missing = if file.is_none() { "FILE" } else { "TABLE" };
        return Err(format!(
            "ERROR: missing {missing} argument. Usage:\n{}",
            help.trim_end()
        ));
    };
    let format = &session.format;
    let (column, row) = if csv {
        (",", "\n")
    } else if ascii {
        (UNIT_SEPARATOR, RECORD_SEPARATOR)
    } else {
        (
            format.column_separator.as_str(),
            format.row_separator.as_str(),
        )
    };
    let one_byte = |separator: &str, which: &str| match separator.as_bytes() {
        [byte] => Ok(*byte),
        [] => Err(format!(
            "Error: non-null {which} separator required for import"
        )),
        _ => Err(format!(
            "Error: multi-character {which} separators not allowed for import"
        )),
    };
    Ok(Request {
        file: file.clone(),
        table: table.clone(),
        schema,
        column_separator: one_byte(column, "column")?,
        row_separator: one_byte(row, "row")?,
        plain: ascii || (!csv && format.mode == Mode::Ascii),
        skip,
        verbose,
    })
}

fn open(file: &str) -> Result<(String, Box<dyn BufRead>), String> {
    let failed = |_| format!("Error: cannot open \"{file}\"");
    if let Some(command) = file.strip_prefix('|') {
        let output = Command::new("sh")
            .args(["-c", command])
            .stderr(Stdio::inherit())
            .output()
            .map_err(failed)?;
        return Ok((
            "<pipe>".to_owned(),
            Box::new(std::io::Cursor::new(output.stdout)),
        ));
    }
    let input = std::fs::File::open(file).map_err(failed)?;
    Ok((file.to_owned(), Box::new(BufReader::new(input))))
}

/// Makes the table with the names in the first row; returns how many there are.
fn create_table(
    session: &mut Session,
    connection: &Connection,
    fields: &mut Fields,
    request: &Request,
    table: &str,
) -> Result<usize, String> {
    let mut names = Vec::new();
    while let Some(field) = fields.next(session) {
        names.push(String::from_utf8_lossy(&field).into_owned());
        if fields.ended_by != Some(request.column_separator) {
            break;
        }
    }
    if names.is_empty() {
        return Err(format!("{}: empty file", fields.name));
    }
    let unique = unique_names(&names);
    let renamed: Vec<String> = names
        .iter()
        .zip(&unique)
        .filter(|(name, unique)| name != unique && !name.is_empty())
        .map(|(name, unique)| format!("\"{name}\" to \"{unique}\""))
        .collect();
    if !renamed.is_empty() {
        let message = format!(
            "Columns renamed during .import {} due to duplicates:\n{}",
            fields.name,
            renamed.join(",\n")
        );
        if session.interactive {
            session.print(&message);
        } else {
            session.complain(&message);
        }
    }
    let mut columns = String::new();
    for (position, name) in unique.iter().enumerate() {
        columns.push_str(match position {
            0 => "",
            // Four a line, as sqlite3 stores it.
            position if position % 4 == 0 => ",\n ",
            _ => ", ",
        });
        columns.push_str(&format!("\"{}\" TEXT", escape(name)));
    }
    // The name is quoted always, so that `.dump` says IF NOT EXISTS, as sqlite3 does.
    let target = match &request.schema {
        Some(schema) => format!("\"{}\".\"{}\"", escape(schema), escape(&request.table)),
        None => format!("\"{}\"", escape(&request.table)),
    };
    let sql = format!("CREATE TABLE {target}(\n{columns})");
    if request.verbose {
        session.print(&format!("{sql}\n"));
    }
    connection
        .execute_batch(&sql)
        .map_err(|error| format!("{sql} failed:\n{}", reason(&error)).replace(&target, table))?;
    Ok(unique.len())
}

fn escape(name: &str) -> String {
    name.replace('"', "\"\"")
}

/// Names that occur twice get their position as a suffix.
fn unique_names(names: &[String]) -> Vec<String> {
    let digits = names.len().to_string().len();
    let mut unique: Vec<String> = names
        .iter()
        .map(|name| {
            if name.is_empty() {
                "?".to_owned()
            } else {
                name.clone()
            }
        })
        .collect();
    let again = |at: usize, all: &[String]| {
        all.iter()
            .enumerate()
            .any(|(other, name)| other != at && name.eq_ignore_ascii_case(&all[at]))
    };
    let before = unique.clone();
    for (at, name) in unique.iter_mut().enumerate() {
        if again(at, &before) {
            name.push_str(&format!("_{:0digits$}", at + 1));
        }
    }
    // A suffix can meet a name that was there: then everything gets longer until it differs.
    while (0..unique.len()).any(|at| again(at, &unique)) {
        for (at, name) in unique.iter_mut().enumerate() {
            name.push_str(&format!("_{:0digits$}", at + 1));
        }
    }
    unique
}

fn insert_all(
    session: &mut Session,
    connection: &Connection,
    fields: &mut Fields,
    table: &str,
    columns: usize,
) -> Result<(usize, usize), String> {
    let marks = vec!["?"; columns].join(",");
    let sql = format!("INSERT INTO {table} VALUES({marks})");
    let (query, _) = raw::prepare(connection, sql.as_bytes())
        .map_err(|failure| format!("Error: {}", failure.message))?;
    let Some(mut query) = query else {
        return Ok((0, 0));
    };
    let (mut rows, mut errors) = (0, 0);
    while !session.interrupts.is_set() {
        let first_line = fields.line;
        if bind_row(session, fields, &mut query, columns, first_line) {
            match query.step() {
                Ok(_) => rows += 1,
                Err(failure) => {
                    errors += 1;
                    session.complain(&format!(
                        "{}:{first_line}: INSERT failed: {}",
                        fields.name, failure.message
                    ));
                }
            }
            query.reset();
        }
        if fields.ended_by.is_none() {
            break;
        }
    }
    Ok((rows, errors))
}

/// Binds one row of the file; false when there is none.
fn bind_row(
    session: &mut Session,
    fields: &mut Fields,
    query: &mut Query<'_>,
    columns: usize,
    line: usize,
) -> bool {
    let mut found = 0;
    while found < columns {
        let field = fields.next(session);
        if found == 0
            && (field.is_none() || (fields.plain && field.as_ref().is_some_and(Vec::is_empty)))
        {
            return false;
        }
        found += 1;
        let bound = match &field {
            Some(field) => query.bind_text(found, field),
            None => query.bind(found, &rusqlite::types::Value::Null),
        };
        if let Err(failure) = bound {
            session.complain(&format!("{}:{line}: {}", fields.name, failure.message));
        }
        if found < columns && fields.ended_by != Some(fields.column_separator) {
            session.complain(&format!(
                "{}:{line}: expected {columns} columns but found {found} - filling the rest with NULL",
                fields.name
            ));
            for missing in found + 1..=columns {
                let _ = query.bind(missing, &rusqlite::types::Value::Null);
            }
            return true;
        }
    }
    if fields.ended_by == Some(fields.column_separator) {
        while fields.ended_by == Some(fields.column_separator) {
            fields.next(session);
            found += 1;
        }
        session.complain(&format!(
            "{}:{line}: expected {columns} columns but found {found} - extras ignored",
            fields.name
        ));
    }
    true
}

/// Splits the input into fields.
struct Fields {
    name: String,
    bytes: Bytes<Box<dyn BufRead>>,
    column_separator: u8,
    row_separator: u8,
    plain: bool,
    /// The line that the next field is on, from 1.
    line: usize,
    /// What came after the last field; `None` is the end of the input.
    ended_by: Option<u8>,
    at_start: bool,
}

impl Fields {
    fn new(name: String, input: Box<dyn BufRead>, request: &Request) -> Self {
        Self {
            name,
            bytes: input.bytes(),
            column_separator: request.column_separator,
            row_separator: request.row_separator,
            plain: request.plain,
            line: 1,
            ended_by: Some(request.row_separator),
            at_start: true,
        }
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes.next()?.ok()
    }

    /// The next field; `None` at the end of the input.
    fn next(&mut self, session: &mut Session) -> Option<Vec<u8>> {
        self.ended_by = None;
        let first = self.byte()?;
        let field = if first == b'"' && !self.plain {
            self.quoted(session)
        } else {
            self.bare(first)
        };
        self.at_start = false;
        Some(field)
    }

    fn bare(&mut self, first: u8) -> Vec<u8> {
        let (mut field, mut current) = (Vec::new(), Some(first));
        while let Some(byte) =
            current.filter(|byte| ![self.column_separator, self.row_separator].contains(byte))
        {
            field.push(byte);
            current = self.byte();
        }
        self.ended_by = current;
        if current == Some(self.row_separator) {
            self.line += 1;
            if !self.plain && field.last() == Some(&b'\r') {
                field.pop();
            }
        }
        if self.at_start && !self.plain && field.starts_with(b"\xef\xbb\xbf") {
            field.drain(..3);
        }
        field
    }

    fn quoted(&mut self, session: &mut Session) -> Vec<u8> {
        let first_line = self.line;
        let mut field = Vec::new();
        loop {
            match self.byte() {
                None => {
                    session.complain(&format!(
                        "{}:{first_line}: unterminated \"-quoted field",
                        self.name
                    ));
                    return field;
                }
                Some(b'"') => {}
                Some(byte) => {
                    self.line += usize::from(byte == self.row_separator);
                    field.push(byte);
                    continue;
                }
            }
            // After a quotation mark: another one, the end of the field, or a mistake.
            let mut after = self.byte();
            if after == Some(b'\r') && self.row_separator == b'\n' {
                after = self.byte();
                if after != Some(b'\n') {
                    field.extend_from_slice(b"\"\r");
                }
            }
            match after {
                Some(b'"') => field.push(b'"'),
                Some(byte) if byte == self.column_separator || byte == self.row_separator => {
                    self.line += usize::from(byte == self.row_separator);
                    self.ended_by = Some(byte);
                    return field;
                }
                None => return field,
                Some(byte) => {
                    session.complain(&format!(
                        "{}:{}: unescaped \" character",
                        self.name, self.line
                    ));
                    field.extend_from_slice(&[b'"', byte]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_names_get_their_position() {
        let names = |list: &[&str]| {
            list.iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(unique_names(&names(&["a", "b", "A"])), ["a_1", "b", "A_3"]);
        assert_eq!(unique_names(&names(&["x", ""])), ["x", "?"]);
    }
}
