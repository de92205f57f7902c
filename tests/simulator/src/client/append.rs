//! Transactions that read lists and append to them.

use super::{Client, Databases, Failure, in_time};
use crate::content::{self, OF_LISTS, Of, PAD_BYTES};
use crate::finding::Kind;
use crate::history::{self, Key, Step};
use crate::machine;
use crate::plan::Plan;

impl Client {
    pub(super) fn append(&mut self, plan: &Plan) -> Result<(), Failure> {
        let reading = self.random.percent(35);
        self.record(reading, |client, databases, transaction| {
            for _ in 0..client.random.between(1, 4) {
                let database = client.random.below(plan.databases as u64) as usize;
                let key = (database, client.random.below(plan.lists).cast_signed());
                if !reading && client.random.percent(60) {
                    let value = client.next_value();
                    append(databases, transaction, key, value)?;
                } else {
                    read(databases, transaction, key)?;
                }
                if client.random.percent(30) {
                    let most = if client.random.percent(10) {
                        3 * plan.ttl_ms
                    } else {
                        30
                    };
                    machine::sleep_ns(client.random.below(most * 1_000_000));
                }
            }
            Ok(())
        })
    }
}

/// Adds a value, telling it before.
pub(super) fn append(
    databases: &Databases,
    transaction: usize,
    key: Key,
    value: u64,
) -> Result<(), Failure> {
    history::step(transaction, Step::Append(key, value));
    let schema = databases.schemas[key.0];
    let sql = format!("UPDATE {schema}.lists SET list = list || ?2 || ' ' WHERE k = ?1");
    in_time("UPDATE", || {
        databases
            .connection
            .execute(&sql, (key.1, value.to_string()))
    })?;
    Ok(())
}

/// Reads a list.
pub(super) fn read(
    databases: &Databases,
    transaction: usize,
    key: Key,
) -> Result<Vec<u64>, Failure> {
    let schema = databases.schemas[key.0];
    let sql = format!(
        "SELECT list, (SELECT number FROM {schema}.home), pad FROM {schema}.lists WHERE k = ?1"
    );
    let (text, home, pad): (String, usize, Vec<u8>) = in_time("SELECT", || {
        databases.connection.query_row(&sql, [key.1], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
    })?;
    let of = Of {
        database: key.0,
        writer: OF_LISTS,
        n: key.1.cast_unsigned(),
    };
    content::check(of, PAD_BYTES, &pad, &format!("transaction {transaction}"));
    if home != key.0 {
        history::violation(
            Kind::Foreign,
            format!(
                "transaction {transaction} read database {home} where {} is",
                key.0
            ),
        );
    }
    let list: Vec<u64> = text
        .split_whitespace()
        .map(|value| value.parse().unwrap_or(0))
        .collect();
    machine::trace(format_args!(
        "transaction {transaction} read {key:?}: {list:?}"
    ));
    history::step(transaction, Step::Read(key, list.clone()));
    Ok(list)
}
