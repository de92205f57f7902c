//! SQL literals: the insert mode, the quote mode and the rows of `.dump`.

use super::{RowSink, write};
use crate::shell::raw::{self, Class, Query};
use crate::shell::settings::Format;

/// Prints one row as an INSERT statement.
pub(super) fn print_insert(query: &mut Query<'_>, format: &Format, out: &mut dyn RowSink) {
    let count = query.column_count();
    let mut line = format!("INSERT INTO {}", format.insert_table).into_bytes();
    if format.headers {
        let names: Vec<String> = query
            .column_names()
            .iter()
            .map(|name| identifier(name))
            .collect();
        line.extend_from_slice(format!("({})", names.join(",")).as_bytes());
    }
    for column in 0..count {
        line.extend_from_slice(if column == 0 { b" VALUES(" } else { b"," });
        line.extend_from_slice(&insert_literal(query, column, format.raw_newlines));
    }
    line.extend_from_slice(b");\n");
    write(out, &line);
}

/// A cell as `.dump` and the insert mode write it: it reads back as the same value.
pub(in crate::shell) fn insert_literal(
    query: &mut Query<'_>,
    column: usize,
    raw_newlines: bool,
) -> Vec<u8> {
    match query.class(column) {
        Class::Real => lossless_real(query.real(column), true).into_bytes(),
        Class::Text if !raw_newlines => quoted_on_one_line(query.text(column).unwrap_or_default()),
        _ => sql_literal(query, column),
    }
}

/// A cell as the quote mode writes it.
pub(super) fn sql_literal(query: &mut Query<'_>, column: usize) -> Vec<u8> {
    match query.class(column) {
        Class::Null => b"NULL".to_vec(),
        Class::Integer => query.text(column).unwrap_or_default().to_vec(),
        Class::Real => lossless_real(query.real(column), false).into_bytes(),
        Class::Text => quoted(query.text(column).unwrap_or_default()),
        Class::Blob => {
            let hex: String = query
                .blob(column)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            format!("X'{hex}'").into_bytes()
        }
    }
}

/// `'...'` with quotation marks doubled.
pub(in crate::shell) fn quoted(text: &[u8]) -> Vec<u8> {
    let mut literal = vec![b'\''];
    for byte in text {
        literal.push(*byte);
        if *byte == b'\'' {
            literal.push(b'\'');
        }
    }
    literal.push(b'\'');
    literal
}

/// A literal without line ends: they are put back by `replace()`.
fn quoted_on_one_line(text: &[u8]) -> Vec<u8> {
    let line_feed = text.contains(&b'\n').then(|| unused(text, "\\n", "\\012"));
    let carriage_return = text.contains(&b'\r').then(|| unused(text, "\\r", "\\015"));
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text {
        match (*byte, &line_feed, &carriage_return) {
            (b'\n', Some(word), _) | (b'\r', _, Some(word)) => {
                escaped.extend_from_slice(word.as_bytes())
            }
            (byte, _, _) => escaped.push(byte),
        }
    }
    let mut literal = Vec::new();
    for _ in line_feed.iter().chain(&carriage_return) {
        literal.extend_from_slice(b"replace(");
    }
    literal.extend_from_slice(&quoted(&escaped));
    for (word, code) in [(carriage_return, 13), (line_feed, 10)] {
        if let Some(word) = word {
            literal.extend_from_slice(format!(",'{word}',char({code}))").as_bytes());
        }
    }
    literal
}

/// A word that does not occur in `text`: the first choice, the second, or a numbered one.
fn unused(text: &[u8], first: &str, second: &str) -> String {
    let occurs = |word: &str| text.windows(word.len()).any(|part| part == word.as_bytes());
    let numbered = (0u32..).map(|number| format!("({first}{number})"));
    [first.to_owned(), second.to_owned()]
        .into_iter()
        .chain(numbered)
        .find(|word| !occurs(word))
        .unwrap_or_default()
}

/// A real with 20 significant digits, enough to read back as the same number.
///
/// `as_sql` writes infinities and whole numbers as SQL can read them.
pub(in crate::shell) fn lossless_real(real: f64, as_sql: bool) -> String {
    if real.is_infinite() {
        let sign = if real < 0.0 { "-" } else { "" };
        return if as_sql {
            format!("{sign}1e999")
        } else {
            format!("{sign}Inf")
        };
    }
    // The exact decimal expansion, rounded to 20 digits. sqlite3 3.40 computes it in 80-bit floats,
    // so its last digits may differ; both read back as the same number.
    let text = format!("{:.19e}", real.abs());
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_end_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    let sign = if real < 0.0 { "-" } else { "" };
    // Where C's %g changes to the exponential form.
    if !(-4..20).contains(&exponent) {
        let (first, rest) = digits.split_at(1);
        let rest = if rest.is_empty() { "0" } else { rest };
        let mark = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{first}.{rest}e{mark}{:02}", exponent.abs());
    }
    if exponent < 0 {
        let zeros = "0".repeat(usize::try_from(-exponent - 1).unwrap_or(0));
        return format!("{sign}0.{zeros}{digits}");
    }
    let point = usize::try_from(exponent).unwrap_or(0) + 1;
    let whole = format!("{digits:0<point$}");
    let (whole, fraction) = whole.split_at(point);
    format!(
        "{sign}{whole}.{}",
        if fraction.is_empty() { "0" } else { fraction }
    )
}

/// An identifier, quoted if it is not a plain word or is a keyword.
pub(in crate::shell) fn identifier(name: &str) -> String {
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let keyword = raw::keywords()
        .iter()
        .any(|keyword| keyword.eq_ignore_ascii_case(name));
    if starts && plain && !keyword {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reals_keep_twenty_digits() {
        for (real, text) in [
            (0.1, "0.10000000000000000555"),
            (1.0, "1.0"),
            (0.0, "0.0"),
            (-2.5, "-2.5"),
            (1e20, "1.0e+20"),
            (1e19, "10000000000000000000.0"),
            (1.0 / 3.0, "0.33333333333333331483"),
            (1.5e-5, "1.500000000000000038e-05"),
            (f64::INFINITY, "1e999"),
        ] {
            assert_eq!(lossless_real(real, true), text);
        }
    }

    #[test]
    fn line_ends_become_replace_calls_with_an_unused_word() {
        assert_eq!(
            quoted_on_one_line(b"a\nb"),
            b"replace('a\\nb','\\n',char(10))"
        );
        assert_eq!(
            quoted_on_one_line(b"a\\n\r\n\\012"),
            b"replace(replace('a\\n\\r(\\n0)\\012','\\r',char(13)),'(\\n0)',char(10))"
        );
        assert_eq!(quoted_on_one_line(b"it's"), b"'it''s'");
    }

    #[test]
    fn identifiers_are_quoted_when_needed() {
        assert_eq!(identifier("plain_1"), "plain_1");
        assert_eq!(identifier("select"), "\"select\"");
        assert_eq!(identifier("1a"), "\"1a\"");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }
}
