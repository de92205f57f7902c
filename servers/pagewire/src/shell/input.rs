//! What a line of input is: a dot-command, nothing, a part of a statement or its end.
//!
//! It looks at text only; it never runs anything and never opens a database.

use super::raw;

/// The place in which a line leaves the scanner: inside a quoted region or comment, or plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Region {
    #[default]
    Plain,
    /// Inside a quotation that this byte closes (`]` for `[`).
    Quote(u8),
    /// Inside `/* ... */`.
    Comment,
}

/// Follows quotations and comments across the lines of one statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Scanner {
    region: Region,
    /// Something other than blanks and comments was seen.
    dark: bool,
    /// The last thing that is not blank is a semicolon.
    ends: bool,
}

impl Scanner {
    /// Takes one line, without its newline, into account.
    pub(super) fn feed(&mut self, line: &[u8]) {
        let mut at = 0;
        while at < line.len() {
            match self.region {
                Region::Plain => at = self.feed_plain(line, at),
                Region::Comment => {
                    if line[at..].starts_with(b"*/") {
                        self.region = Region::Plain;
                        at += 1;
                    }
                    at += 1;
                }
                Region::Quote(close) => {
                    if line[at] == close {
                        // A doubled quotation mark stays inside; brackets have no escape.
                        if close != b']' && line.get(at + 1) == Some(&close) {
                            at += 1;
                        } else {
                            self.region = Region::Plain;
                        }
                    }
                    at += 1;
                }
            }
        }
    }

    fn feed_plain(&mut self, line: &[u8], at: usize) -> usize {
        let rest = &line[at..];
        if rest.starts_with(b"--") {
            return line.len();
        }
        if rest.starts_with(b"/*") {
            self.region = Region::Comment;
            return at + 2;
        }
        match rest[0] {
            byte if is_blank(byte) => {}
            b';' => (self.dark, self.ends) = (true, true),
            byte => {
                (self.dark, self.ends) = (true, false);
                match byte {
                    b'\'' | b'"' | b'`' => self.region = Region::Quote(byte),
                    b'[' => self.region = Region::Quote(b']'),
                    _ => {}
                }
            }
        }
        at + 1
    }

    /// Only blanks and comments so far, and none of them open.
    pub(super) fn is_blank(&self) -> bool {
        self.region == Region::Plain && !self.dark
    }

    /// Not inside a quotation or comment.
    pub(super) fn is_plain(&self) -> bool {
        self.region == Region::Plain
    }

    /// The text may end here: the last thing is a semicolon outside quotations.
    pub(super) fn ends_with_semicolon(&self) -> bool {
        self.region == Region::Plain && self.ends
    }
}

/// White space of C's `isspace`.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// Without leading white space.
pub(super) fn trim_start(text: &[u8]) -> &[u8] {
    let start = text
        .iter()
        .position(|byte| !is_blank(*byte))
        .unwrap_or(text.len());
    &text[start..]
}

/// A line that ends a statement in other systems: `/` or `go`.
pub(super) fn is_terminator_line(line: &[u8]) -> bool {
    let word: Vec<u8> = line.trim_ascii().to_ascii_lowercase();
    word == b"/" || word == b"go"
}

/// Whether the text is a complete statement once a semicolon is added.
pub(super) fn is_complete_with_semicolon(sql: &[u8]) -> bool {
    if sql.is_empty() {
        return true;
    }
    raw::is_complete(&[sql, b";"].concat())
}

/// Splits the words of a dot-command: blanks separate, `'...'` is literal, `"..."` and bare words
/// know backslash escapes.
pub(super) fn words(line: &str) -> Vec<String> {
    let bytes = line.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        while at < bytes.len() && is_blank(bytes[at]) {
            at += 1;
        }
        let Some(first) = bytes.get(at).copied() else {
            return found;
        };
        let quote = matches!(first, b'\'' | b'"').then_some(first);
        at += usize::from(quote.is_some());
        let start = at;
        while at < bytes.len() && quote.map_or(!is_blank(bytes[at]), |quote| bytes[at] != quote) {
            if quote == Some(b'"') && bytes[at] == b'\\' && at + 1 < bytes.len() {
                at += 1;
            }
            at += 1;
        }
        let word = &bytes[start..at.min(bytes.len())];
        at += 1;
        found.push(if quote == Some(b'\'') {
            String::from_utf8_lossy(word).into_owned()
        } else {
            unescape(word)
        });
    }
}

/// Resolves the backslash escapes of C in `text`.
pub(super) fn unescape(text: &[u8]) -> String {
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        if text[at] != b'\\' || at + 1 == text.len() {
            out.push(text[at]);
            at += 1;
            continue;
        }
        at += 2;
        out.push(match text[at - 1] {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 0x0b,
            b'f' => 0x0c,
            b'r' => b'\r',
            digit @ b'0'..=b'7' => {
                let mut code = u32::from(digit - b'0');
                for _ in 0..2 {
                    let Some(digit @ b'0'..=b'7') = text.get(at) else {
                        break;
                    };
                    code = code * 8 + u32::from(digit - b'0');
                    at += 1;
                }
                (code & 0xff) as u8
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(lines: &[&str]) -> Scanner {
        let mut scanner = Scanner::default();
        for line in lines {
            scanner.feed(line.as_bytes());
        }
        scanner
    }

    #[test]
    fn a_semicolon_in_a_quotation_does_not_end() {
        assert!(!scan(&["select ';"]).ends_with_semicolon());
        assert!(scan(&["select ';", "';"]).ends_with_semicolon());
        assert!(!scan(&["select \"a\"\";"]).ends_with_semicolon());
        assert!(scan(&["select [a;b] ; -- end;"]).ends_with_semicolon());
        assert!(!scan(&["/* a;", "b; */"]).ends_with_semicolon());
    }

    #[test]
    fn comments_and_blanks_are_blank() {
        assert!(scan(&["  -- x", "/* a", "b */"]).is_blank());
        assert!(!scan(&["/* a"]).is_blank());
        assert!(!scan(&[" ; "]).is_blank());
    }

    #[test]
    fn words_follow_quotes_and_escapes() {
        assert_eq!(
            words(r#"print a  'b\n c' "d\te\"" f\x"#),
            ["print", "a", r"b\n c", "d\te\"", "fx"]
        );
        assert_eq!(words(r"sep \t \101"), ["sep", "\t", "A"]);
        assert_eq!(words("a 'open"), ["a", "open"]);
        assert_eq!(words(r#"a "" b"#), ["a", "", "b"]);
    }

    #[test]
    fn a_trigger_is_complete_only_after_its_end() {
        let trigger = b"create trigger t after insert on a begin select 1;";
        assert!(!raw::is_complete(trigger));
        assert!(raw::is_complete(&[&trigger[..], b" end;"].concat()));
        assert!(is_complete_with_semicolon(b"select 1"));
    }
}
