//! The line, html and json modes.

use super::literal::lossless_real;
use super::{RowSink, write};
use crate::shell::raw::{Class, Query};
use crate::shell::settings::Format;

/// One `name = value` a line.
pub(super) fn print_line(
    query: &mut Query<'_>,
    format: &Format,
    row: usize,
    out: &mut dyn RowSink,
) {
    let names = query.column_names();
    let width = names.iter().map(String::len).max().unwrap_or(0).max(5);
    let mut text = Vec::new();
    if row > 0 {
        text.extend_from_slice(format.row_separator.as_bytes());
    }
    for (column, name) in names.iter().enumerate() {
        text.extend(std::iter::repeat_n(b' ', width - name.len()));
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b" = ");
        text.extend_from_slice(query.text(column).unwrap_or(format.null.as_bytes()));
        text.extend_from_slice(format.row_separator.as_bytes());
    }
    write(out, &text);
}

/// A table row of HTML.
pub(super) fn print_html(
    query: &mut Query<'_>,
    format: &Format,
    row: usize,
    out: &mut dyn RowSink,
) {
    let mut text = Vec::new();
    if row == 0 && format.headers {
        text.extend_from_slice(b"<TR>");
        for name in query.column_names() {
            push_html(&mut text, "TH", name.as_bytes());
        }
        text.extend_from_slice(b"</TR>\n");
    }
    text.extend_from_slice(b"<TR>");
    for column in 0..query.column_count() {
        push_html(
            &mut text,
            "TD",
            query.text(column).unwrap_or(format.null.as_bytes()),
        );
    }
    text.extend_from_slice(b"</TR>\n");
    write(out, &text);
}

fn push_html(text: &mut Vec<u8>, tag: &str, cell: &[u8]) {
    text.extend_from_slice(format!("<{tag}>").as_bytes());
    for byte in cell {
        match byte {
            b'<' => text.extend_from_slice(b"&lt;"),
            b'>' => text.extend_from_slice(b"&gt;"),
            b'&' => text.extend_from_slice(b"&amp;"),
            b'"' => text.extend_from_slice(b"&quot;"),
            b'\'' => text.extend_from_slice(b"&#39;"),
            byte => text.push(*byte),
        }
    }
    text.extend_from_slice(format!("</{tag}>\n").as_bytes());
}

/// An object of the array; the caller closes the array.
pub(super) fn print_json(query: &mut Query<'_>, row: usize, out: &mut dyn RowSink) {
    let mut text = if row == 0 {
        b"[{".to_vec()
    } else {
        b",\n{".to_vec()
    };
    for column in 0..query.column_count() {
        if column > 0 {
            text.push(b',');
        }
        push_json_string(&mut text, query.column_name(column).as_bytes());
        text.push(b':');
        match query.class(column) {
            Class::Null => text.extend_from_slice(b"null"),
            Class::Real => {
                text.extend_from_slice(lossless_real(query.real(column), true).as_bytes())
            }
            Class::Integer => text.extend_from_slice(query.text(column).unwrap_or_default()),
            Class::Text => push_json_string(&mut text, query.text(column).unwrap_or_default()),
            Class::Blob => push_json_string(&mut text, query.blob(column)),
        }
    }
    text.push(b'}');
    write(out, &text);
}

fn push_json_string(text: &mut Vec<u8>, string: &[u8]) {
    text.push(b'"');
    for byte in string {
        match *byte {
            b'"' => text.extend_from_slice(b"\\\""),
            b'\\' => text.extend_from_slice(b"\\\\"),
            0x08 => text.extend_from_slice(b"\\b"),
            0x0c => text.extend_from_slice(b"\\f"),
            b'\n' => text.extend_from_slice(b"\\n"),
            b'\r' => text.extend_from_slice(b"\\r"),
            b'\t' => text.extend_from_slice(b"\\t"),
            byte @ 0..=0x1f => text.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            byte => text.push(byte),
        }
    }
    text.push(b'"');
}
