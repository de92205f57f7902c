//! Prints the rows of a query in the chosen mode.
//!
//! The writers see rows and a format, never the session; each returns SQLite's error after
//! printing the rows that came before it.

mod columnar;
mod delimited;
mod explain;
pub(super) mod literal;
mod markup;
pub(super) mod sink;

use std::io::Write;

use super::raw::{Query, SqlFailure};
use super::settings::{Format, Mode};
pub(super) use explain::{print_bytecode, print_query_plan};

/// Where rows go; it says when nobody reads any more.
pub(super) trait RowSink: Write {
    /// The reader is gone, so more rows are pointless.
    fn is_broken(&self) -> bool {
        false
    }
}

impl RowSink for Vec<u8> {}

/// Runs `query` to its end and prints its rows.
pub(super) fn print_rows(
    query: &mut Query<'_>,
    format: &mut Format,
    out: &mut dyn RowSink,
) -> Result<(), SqlFailure> {
    if format.mode.is_columnar() {
        return columnar::print(query, format, out);
    }
    let mut row = 0;
    let mut json_open = false;
    while query.step()? {
        if query.column_count() == 0 {
            continue;
        }
        if out.is_broken() {
            break;
        }
        match format.mode {
            Mode::List | Mode::Csv | Mode::Tcl | Mode::Quote | Mode::Ascii => {
                delimited::print(query, format, row, out);
            }
            Mode::Line => markup::print_line(query, format, row, out),
            Mode::Html => markup::print_html(query, format, row, out),
            Mode::Insert => literal::print_insert(query, format, out),
            Mode::Json => {
                markup::print_json(query, row, out);
                json_open = true;
            }
            Mode::Column | Mode::Table | Mode::Box | Mode::Markdown => {}
        }
        row += 1;
    }
    if json_open {
        write(out, b"]\n");
    }
    Ok(())
}

/// Writes bytes; a sink remembers its own errors (see `sink.rs`).
pub(super) fn write(out: &mut (impl Write + ?Sized), bytes: &[u8]) {
    let _ = out.write_all(bytes);
}

/// Code points of a text, as `sqlite3` counts its width.
pub(super) fn width(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// A string literal of C.
pub(super) fn c_string(text: &str) -> Vec<u8> {
    delimited::c_string(text.as_bytes())
}
