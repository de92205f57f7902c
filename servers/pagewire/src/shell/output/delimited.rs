//! Modes with one row a line and separators: list, tabs, csv, quote, tcl, ascii.

use super::literal::{quoted, sql_literal};
use super::{RowSink, write};
use crate::shell::raw::Query;
use crate::shell::settings::{Format, Mode};

/// Prints one row, and the column names before the first.
pub(super) fn print(query: &mut Query<'_>, format: &Format, row: usize, out: &mut dyn RowSink) {
    let count = query.column_count();
    let mut line = Vec::new();
    if row == 0 && format.headers {
        let names = query.column_names();
        join(
            &mut line,
            format,
            names.iter().map(|name| header(name.as_bytes(), format)),
        );
    }
    let cells: Vec<Vec<u8>> = (0..count)
        .map(|column| cell(query, column, format))
        .collect();
    join(&mut line, format, cells.into_iter());
    write(out, &line);
}

fn join(line: &mut Vec<u8>, format: &Format, cells: impl Iterator<Item = Vec<u8>>) {
    for (number, cell) in cells.enumerate() {
        if number > 0 {
            line.extend_from_slice(format.column_separator.as_bytes());
        }
        line.extend_from_slice(&cell);
    }
    line.extend_from_slice(format.row_separator.as_bytes());
}

fn header(name: &[u8], format: &Format) -> Vec<u8> {
    match format.mode {
        Mode::Csv => csv_field(name, &format.column_separator),
        Mode::Tcl => c_string(name),
        Mode::Quote => quoted(name),
        _ => name.to_vec(),
    }
}

fn cell(query: &mut Query<'_>, column: usize, format: &Format) -> Vec<u8> {
    if format.mode == Mode::Quote {
        return sql_literal(query, column);
    }
    let text = query.text(column);
    match (format.mode, text) {
        (Mode::Csv, Some(text)) => csv_field(text, &format.column_separator),
        (Mode::Csv | Mode::List | Mode::Ascii, None) => format.null.clone().into_bytes(),
        (Mode::Tcl, text) => c_string(text.unwrap_or(format.null.as_bytes())),
        (_, text) => text.unwrap_or_default().to_vec(),
    }
}

/// A CSV field: quoted when it is empty or has anything but plain ASCII letters, digits and signs.
fn csv_field(text: &[u8], separator: &str) -> Vec<u8> {
    let special = |byte: &u8| *byte <= b' ' || *byte >= 0x7f || matches!(*byte, b'"' | b'\'');
    let separator = separator.as_bytes();
    let splits =
        separator.is_empty() || text.windows(separator.len()).any(|part| part == separator);
    if !text.is_empty() && !splits && !text.iter().any(special) {
        return text.to_vec();
    }
    let mut field = vec![b'"'];
    for byte in text {
        field.push(*byte);
        if *byte == b'"' {
            field.push(b'"');
        }
    }
    field.push(b'"');
    field
}

/// A string literal of C and Tcl.
pub(super) fn c_string(text: &[u8]) -> Vec<u8> {
    let mut literal = vec![b'"'];
    for byte in text {
        match *byte {
            b'\\' => literal.extend_from_slice(b"\\\\"),
            b'"' => literal.extend_from_slice(b"\\\""),
            b'\t' => literal.extend_from_slice(b"\\t"),
            b'\n' => literal.extend_from_slice(b"\\n"),
            b'\r' => literal.extend_from_slice(b"\\r"),
            byte @ 0x20..=0x7e => literal.push(byte),
            byte => literal.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
        }
    }
    literal.push(b'"');
    literal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_quotes_what_another_reader_could_misread() {
        assert_eq!(csv_field(b"plain-1.5", ","), b"plain-1.5");
        assert_eq!(csv_field(b"", ","), b"\"\"");
        assert_eq!(csv_field(b"a\"b", ","), b"\"a\"\"b\"");
        assert_eq!(csv_field("é".as_bytes(), ","), "\"é\"".as_bytes());
        assert_eq!(csv_field(b"a;b", ";"), b"\"a;b\"");
    }

    #[test]
    fn c_strings_escape_bytes_in_octal() {
        assert_eq!(c_string(b"a\"\\\n\x01\xff"), b"\"a\\\"\\\\\\n\\001\\377\"");
    }
}
