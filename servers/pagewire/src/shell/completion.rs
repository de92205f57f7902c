//! Tab completion: dot-commands at the start of a line, else keywords, tables and columns.
//!
//! It asks the open database only when Tab is pressed.

use rusqlite::Connection;
use rustyline::completion::{Completer, Pair};
use rustyline::{Context, Helper, Highlighter, Hinter, Validator};

use super::session::Slot;
use super::{commands, raw};

/// Names of all databases of the connection.
const DATABASES: &str = "SELECT name FROM pragma_database_list";

/// The helper of the line editor.
#[derive(Helper, Highlighter, Hinter, Validator)]
pub(super) struct SqlCompleter {
    slot: Slot,
}

impl SqlCompleter {
    /// Completes with the names in whatever database is open.
    pub(super) fn new(slot: Slot) -> Self {
        Self { slot }
    }

    fn candidates(&self, line: &str, word: &str) -> Vec<String> {
        if line.starts_with('.') && !line.contains(char::is_whitespace) {
            return commands::names().map(|name| format!(".{name}")).collect();
        }
        let mut candidates = Vec::new();
        if let Some(connection) = self.slot.borrow().as_deref() {
            candidates.extend(names(connection).unwrap_or_default());
        }
        if !line.starts_with('.') {
            // Keywords in the case that the user types.
            let lower = word.chars().all(|letter| !letter.is_ascii_uppercase());
            candidates.extend(raw::keywords().into_iter().map(|keyword| {
                if lower {
                    keyword.to_ascii_lowercase()
                } else {
                    keyword
                }
            }));
        }
        candidates
    }
}

fn names(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let column = |sql: &str| -> rusqlite::Result<Vec<String>> {
        connection
            .prepare(sql)?
            .query_map([], |row| row.get(0))?
            .collect()
    };
    let databases = column(DATABASES)?;
    let mut found = databases.clone();
    for database in databases {
        let schema = format!("\"{}\".sqlite_schema", database.replace('"', "\"\""));
        found.extend(column(&format!(
            "SELECT name FROM {schema} WHERE type IN ('table','view')"
        ))?);
        found.extend(column(&format!(
            "SELECT DISTINCT c.name FROM {schema} AS t, pragma_table_info(t.name) AS c \
             WHERE t.type IN ('table','view')"
        ))?);
    }
    Ok(found)
}

impl Completer for SqlCompleter {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..pos];
        let start = typed
            .char_indices()
            .rev()
            .take_while(|(at, letter)| {
                letter.is_alphanumeric() || *letter == '_' || (*at == 0 && *letter == '.')
            })
            .last()
            .map_or(pos, |(at, _)| at);
        let word = &typed[start..];
        let mut candidates: Vec<String> = self
            .candidates(typed, word)
            .into_iter()
            .filter(|name| {
                name.get(..word.len())
                    .is_some_and(|begin| begin.eq_ignore_ascii_case(word))
            })
            .collect();
        candidates.sort_unstable();
        candidates.dedup();
        let pairs = candidates
            .into_iter()
            .map(|name| Pair {
                display: name.clone(),
                replacement: name,
            })
            .collect();
        Ok((start, pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustyline::history::MemHistory;
    use std::rc::Rc;

    fn completed(line: &str) -> Vec<String> {
        let connection = Connection::open_in_memory().unwrap();
        connection
            .execute_batch("create table orders(order_total, selectivity)")
            .unwrap();
        let slot = Slot::default();
        *slot.borrow_mut() = Some(Rc::new(connection));
        let history = MemHistory::new();
        let (_, pairs) = SqlCompleter::new(slot)
            .complete(line, line.len(), &Context::new(&history))
            .unwrap();
        pairs.into_iter().map(|pair| pair.replacement).collect()
    }

    #[test]
    fn tables_columns_and_keywords_complete() {
        assert_eq!(
            completed("select * from ord"),
            ["order", "order_total", "orders"]
        );
        assert_eq!(completed("SELEC"), ["SELECT", "selectivity"]);
    }

    #[test]
    fn dot_commands_complete_only_at_the_start() {
        assert_eq!(completed(".tab"), [".tables"]);
        assert_eq!(completed("select 1 .tab"), ["table"]);
    }
}
