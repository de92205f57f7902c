//! The modes that align columns: column, table, box, markdown.
//!
//! All rows are kept until the last one has come, since any may widen a column.

use super::literal::sql_literal;
use super::{RowSink, width, write};
use crate::shell::raw::{Class, Query, SqlFailure};
use crate::shell::settings::{Format, Mode};

/// Lines of text that share a row of the table.
struct Grid {
    /// Display lines; a row of the result may take several.
    lines: Vec<Vec<Vec<u8>>>,
    /// For each display line, whether it is the last of its row.
    ends_row: Vec<bool>,
}

/// Runs the query and prints its rows; prints those that came before an error as well.
pub(super) fn print(
    query: &mut Query<'_>,
    format: &mut Format,
    out: &mut dyn RowSink,
) -> Result<(), SqlFailure> {
    if !query.step()? {
        return Ok(());
    }
    let count = query.column_count();
    if format.widths.len() < count {
        format.widths.resize(count, 0);
    }
    let limits: Vec<usize> = format.widths[..count]
        .iter()
        .map(|width| match width {
            0 => format.wrapping.width,
            width => width.unsigned_abs() as usize,
        })
        .collect();
    let names: Vec<Vec<u8>> = query
        .column_names()
        .iter()
        .zip(&limits)
        .map(|(name, limit)| next_line(name.as_bytes(), *limit, format.wrapping.at_words).0)
        .collect();
    let mut grid = Grid {
        lines: Vec::new(),
        ends_row: Vec::new(),
    };
    let outcome = loop {
        grid.push_row(query, &limits, format);
        match query.step() {
            Ok(true) => {}
            Ok(false) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    let mut widths: Vec<usize> = format.widths[..count]
        .iter()
        .map(|width| width.unsigned_abs() as usize)
        .collect();
    for line in std::iter::once(&names).chain(&grid.lines) {
        for (column, cell) in line.iter().enumerate() {
            widths[column] = widths[column].max(width(cell));
        }
    }
    let layout = Layout { format, widths };
    layout.print(&names, &grid, out);
    outcome
}

impl Grid {
    fn push_row(&mut self, query: &mut Query<'_>, limits: &[usize], format: &Format) {
        let mut rest: Vec<Option<Vec<u8>>> = (0..limits.len())
            .map(|column| {
                Some(if format.wrapping.quote {
                    lowercase_blob(query, column)
                } else {
                    query
                        .text(column)
                        .unwrap_or(format.null.as_bytes())
                        .to_vec()
                })
            })
            .collect();
        while rest.iter().any(Option::is_some) {
            let mut line = Vec::with_capacity(limits.len());
            for (text, limit) in rest.iter_mut().zip(limits) {
                let current = text.take().unwrap_or_default();
                let (cell, tail) = next_line(&current, *limit, format.wrapping.at_words);
                line.push(cell);
                *text = tail.map(|at| current[at..].to_vec());
            }
            self.lines.push(line);
            self.ends_row.push(rest.iter().all(Option::is_none));
        }
    }
}

/// A literal as the columnar modes quote it: blobs begin with a small x.
fn lowercase_blob(query: &mut Query<'_>, column: usize) -> Vec<u8> {
    let mut literal = sql_literal(query, column);
    if query.class(column) == Class::Blob {
        literal[0] = b'x';
    }
    literal
}

/// The first display line of `text` within `limit` code points (0: no limit) with its tabs
/// expanded, and where the next line begins.
fn next_line(text: &[u8], limit: usize, at_words: bool) -> (Vec<u8>, Option<usize>) {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let (mut end, mut columns) = (0, 0);
    while let Some(byte) = text.get(end).copied() {
        if columns >= limit {
            break;
        }
        match byte {
            b' '.. => {
                columns += 1;
                end += 1;
                while text.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
                    end += 1;
                }
            }
            b'\t' => {
                columns = (columns / 8 * 8 + 8).min(limit);
                end += 1;
            }
            _ => break,
        }
    }
    let mut cut = end;
    if columns >= limit && at_words {
        cut = word_break(text, end);
        if cut < end {
            end = cut;
            while text.get(end) == Some(&b' ') {
                end += 1;
            }
        }
    }
    let next = match text.get(end) {
        None => None,
        Some(b' '..) if columns >= limit => Some(end),
        Some(b'\r') if text.get(end + 1) == Some(&b'\n') => {
            (end + 2 < text.len()).then_some(end + 2)
        }
        Some(_) if end + 1 == text.len() => None,
        Some(b' '..) => Some(end),
        Some(_) => Some(end + 1),
    };
    (expand_tabs(&text[..cut], limit), next)
}

/// A better place than `end` to break: after a blank, else between a word and a sign, not before
/// the middle of the line.
fn word_break(text: &[u8], end: usize) -> usize {
    let candidates = || (end / 2 + 1..=end).rev();
    candidates()
        .find(|at| text[at - 1].is_ascii_whitespace())
        .or_else(|| {
            candidates().find(|at| {
                let (left, right) = (text[at - 1], text.get(*at).copied().unwrap_or(0));
                left.is_ascii_alphanumeric() != right.is_ascii_alphanumeric()
                    && right & 0xc0 != 0x80
            })
        })
        .unwrap_or(end)
}

fn expand_tabs(text: &[u8], limit: usize) -> Vec<u8> {
    let (mut out, mut columns) = (Vec::with_capacity(text.len()), 0);
    for byte in text {
        if *byte != b'\t' {
            out.push(*byte);
            columns += usize::from(byte & 0xc0 != 0x80);
            continue;
        }
        loop {
            out.push(b' ');
            columns += 1;
            if columns % 8 == 0 || columns >= limit {
                break;
            }
        }
    }
    out
}

struct Layout<'f> {
    format: &'f Format,
    widths: Vec<usize>,
}

impl Layout<'_> {
    fn print(&self, names: &[Vec<u8>], grid: &Grid, out: &mut dyn RowSink) {
        let mode = self.format.mode;
        let (first, between, last) = match mode {
            Mode::Column => ("", "  ", "\n"),
            Mode::Box => ("│ ", " │ ", " │\n"),
            _ => ("| ", " | ", " |\n"),
        };
        self.print_header(names, (first, between, last), out);
        let several_lines = grid.ends_row.iter().any(|ends| !ends);
        let total = grid.lines.len();
        for (number, line) in grid.lines.iter().enumerate() {
            let mut text = first.as_bytes().to_vec();
            for (column, cell) in line.iter().enumerate() {
                if column > 0 {
                    text.extend_from_slice(between.as_bytes());
                }
                self.push_padded(&mut text, column, cell);
            }
            text.extend_from_slice(last.as_bytes());
            write(out, &text);
            if several_lines && grid.ends_row[number] && number + 1 < total {
                match mode {
                    Mode::Table => self.print_rule("+", "+", "+", "-", out),
                    Mode::Box => self.print_rule("├", "┼", "┤", "─", out),
                    Mode::Column => write(out, b"\n"),
                    _ => {}
                }
            }
        }
        match mode {
            Mode::Table => self.print_rule("+", "+", "+", "-", out),
            Mode::Box => self.print_rule("└", "┴", "┘", "─", out),
            _ => {}
        }
    }

    fn print_header(&self, names: &[Vec<u8>], edges: (&str, &str, &str), out: &mut dyn RowSink) {
        let mode = self.format.mode;
        if mode == Mode::Column && !self.format.headers {
            return;
        }
        match mode {
            Mode::Table => self.print_rule("+", "+", "+", "-", out),
            Mode::Box => self.print_rule("┌", "┬", "┐", "─", out),
            _ => {}
        }
        let mut text = edges.0.as_bytes().to_vec();
        for (column, name) in names.iter().enumerate() {
            if column > 0 {
                text.extend_from_slice(edges.1.as_bytes());
            }
            if mode == Mode::Column {
                self.push_padded(&mut text, column, name);
            } else {
                let free = self.widths[column].saturating_sub(width(name));
                text.extend(std::iter::repeat_n(b' ', free / 2));
                text.extend_from_slice(name);
                text.extend(std::iter::repeat_n(b' ', free.div_ceil(2)));
            }
        }
        text.extend_from_slice(edges.2.as_bytes());
        write(out, &text);
        match mode {
            Mode::Column => {
                let dashes: Vec<String> =
                    self.widths.iter().map(|width| "-".repeat(*width)).collect();
                write(out, format!("{}\n", dashes.join("  ")).as_bytes());
            }
            Mode::Box => self.print_rule("├", "┼", "┤", "─", out),
            Mode::Markdown => self.print_rule("|", "|", "|", "-", out),
            _ => self.print_rule("+", "+", "+", "-", out),
        }
    }

    /// A horizontal line across the table.
    fn print_rule(&self, left: &str, cross: &str, right: &str, dash: &str, out: &mut dyn RowSink) {
        let parts: Vec<String> = self
            .widths
            .iter()
            .map(|width| dash.repeat(width + 2))
            .collect();
        write(
            out,
            format!("{left}{}{right}\n", parts.join(cross)).as_bytes(),
        );
    }

    fn push_padded(&self, text: &mut Vec<u8>, column: usize, cell: &[u8]) {
        let free = self.widths[column].saturating_sub(width(cell));
        let right_aligned = self.format.widths[column] < 0;
        if right_aligned {
            text.extend(std::iter::repeat_n(b' ', free));
        }
        text.extend_from_slice(cell);
        if !right_aligned {
            text.extend(std::iter::repeat_n(b' ', free));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, limit: usize, at_words: bool) -> Vec<String> {
        let (mut found, mut rest) = (Vec::new(), text.as_bytes());
        loop {
            let (line, next) = next_line(rest, limit, at_words);
            found.push(String::from_utf8(line).unwrap());
            match next {
                Some(at) => rest = &rest[at..],
                None => return found,
            }
        }
    }

    #[test]
    fn long_text_wraps_at_the_limit_or_between_words() {
        assert_eq!(lines("abcdefgh", 3, false), ["abc", "def", "gh"]);
        assert_eq!(lines("ab cdef gh", 6, true), ["ab cde", "f gh"]);
        assert_eq!(lines("ééé", 2, false), ["éé", "é"]);
    }

    #[test]
    fn line_ends_break_and_a_final_one_adds_nothing() {
        assert_eq!(lines("a\r\nb\n", 0, false), ["a", "b"]);
        assert_eq!(lines("a\n\nb", 0, false), ["a", "", "b"]);
    }

    #[test]
    fn tabs_go_to_the_next_multiple_of_eight() {
        assert_eq!(lines("a\tb", 0, false), ["a       b"]);
    }
}
