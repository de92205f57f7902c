//! Transactions that SQLite spills and the library stages while they run.
//!
//! List 0 of the database tells in which order they were committed, and so which rows there have to be in the same snapshot; each row has what
//! follows from its writer, its number and how often its transaction has written it (`content.rs`).

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::{Client, Failure, in_time};
use crate::content::{self, Of};
use crate::counts::{Event, count};
use crate::finding::Kind;
use crate::history;
use crate::plan::Plan;

const ROWS: u64 = 48;
/// Of each row, and of one in so many, which has pages of overflow.
const ROW_BYTES: u64 = 3_000;
const LONG_ROW_BYTES: u64 = 20_000;
const LONG_EVERY: u64 = 12;
/// How much longer the rows of some writers are.
const MORE_BYTES: u64 = 200;
/// What tells rows that were written again from what they were, in the number of the content.
const AGAIN: u64 = 1_000;

/// What a transaction does, if it is committed.
#[derive(Clone, Copy, Debug)]
struct Large {
    /// It takes away the rows of all others first.
    deletes: bool,
    /// It writes its rows a second time.
    again: bool,
}

/// By the value that tells of it. Noted before it is tried.
static LARGE: Mutex<BTreeMap<u64, Large>> = Mutex::new(BTreeMap::new());

fn bytes_of(writer: u64, n: u64) -> u64 {
    let bytes = match n.is_multiple_of(LONG_EVERY) {
        true => LONG_ROW_BYTES,
        false => ROW_BYTES,
    };
    bytes + writer % MORE_BYTES
}

/// The rows that there are behind the transactions of a list.
fn rows_behind(order: &[u64]) -> Vec<(u64, u64)> {
    let known = LARGE.lock();
    let mut rows = Vec::new();
    for (writer, large) in order
        .iter()
        .filter_map(|value| Some((*value, known.get(value)?)))
    {
        if large.deletes {
            rows.clear();
        }
        rows.extend((1..=ROWS).map(|n| (writer, n)));
    }
    rows
}

/// Violations where the rows are not those of the transactions of the list, or have anything else than these wrote.
pub(super) fn check(
    connection: &Connection,
    schema: &str,
    database: usize,
    order: &[u64],
    reader: &str,
) -> Result<(), Failure> {
    let sql = format!("SELECT writer, n, content FROM {schema}.bulk ORDER BY rowid");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut found: Vec<(u64, u64)> = Vec::new();
    while let Some(row) = rows.next()? {
        let (writer, n) = (row.get(0)?, row.get(1)?);
        found.push((writer, n));
        let again = LARGE.lock().get(&writer).is_some_and(|large| large.again);
        let of = Of {
            database,
            writer,
            n: if again { n + AGAIN } else { n },
        };
        let length = usize::try_from(bytes_of(writer, n)).unwrap_or(usize::MAX);
        content::check(of, length, row.get_ref(2)?.as_blob()?, reader);
    }
    let expected = rows_behind(order);
    if found != expected {
        let writers = |rows: &[(u64, u64)]| {
            let mut of_each: BTreeMap<u64, usize> = BTreeMap::new();
            for (writer, _) in rows {
                *of_each.entry(*writer).or_default() += 1;
            }
            of_each
        };
        history::violation(
            Kind::Torn,
            format!(
                "{reader} saw the rows {:?} of large transactions in database {database}, and the list of the same snapshot has those of {:?}",
                writers(&found),
                writers(&expected)
            ),
        );
    }
    count(Event::LargeLooked);
    Ok(())
}

impl Client {
    pub(super) fn large(&mut self, plan: &Plan) -> Result<(), Failure> {
        let reading = self.random.percent(50);
        self.record(reading, |client, databases, transaction| {
            let database = client.random.below(plan.databases as u64) as usize;
            let schema = databases.schemas[database];
            let connection = &databases.connection;
            if !reading {
                let value = client.next_value();
                let large = Large {
                    deletes: client.random.percent(50),
                    again: client.random.percent(30),
                };
                LARGE.lock().insert(value, large);
                super::append::append(databases, transaction, (database, 0), value)?;
                if large.deletes {
                    in_time("DELETE", || {
                        connection.execute(&format!("DELETE FROM {schema}.bulk"), [])
                    })?;
                }
                let bytes = format!(
                    "iif(n % {LONG_EVERY} = 0, {LONG_ROW_BYTES}, {ROW_BYTES}) + ?1 % {MORE_BYTES}"
                );
                let sql = format!(
                    "WITH RECURSIVE rows(n) AS (VALUES(1) UNION ALL SELECT n + 1 FROM rows WHERE n < ?3)
                     INSERT INTO {schema}.bulk(writer, n, content) SELECT ?1, n, content(?2, ?1, n, {bytes}) FROM rows"
                );
                in_time("INSERT", || {
                    connection.execute(&sql, (value, database, ROWS))
                })?;
                if large.again {
                    let sql = format!(
                        "UPDATE {schema}.bulk SET content = content(?2, ?1, n + {AGAIN}, {bytes}) WHERE writer = ?1"
                    );
                    in_time("UPDATE", || connection.execute(&sql, (value, database)))?;
                }
            }
            let all = format!(
                "SELECT group_concat(writer || ' ' || n || ' ' || digest(content)) FROM {schema}.bulk"
            );
            client.ask_twice(databases, transaction, &all)?;
            let order = super::append::read(databases, transaction, (database, 0))?;
            let reader = format!("transaction {transaction}");
            in_time("SELECT", || {
                check(connection, schema, database, &order, &reader)
            })
        })
    }
}
