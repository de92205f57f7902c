//! Transfers between accounts, whose sum stays as it is.

use rusqlite::Connection;

use super::setup::{ACCOUNTS, BALANCE};
use super::{Client, Failure, in_time};
use crate::content::{self, OF_ACCOUNTS, Of, PAD_BYTES};
use crate::finding::Kind;
use crate::history;
use crate::plan::Plan;

impl Client {
    pub(super) fn bank(&mut self, plan: &Plan) -> Result<(), Failure> {
        let reading = self.random.percent(40);
        self.record(reading, |client, databases, transaction| {
            let database = client.random.below(plan.databases as u64) as usize;
            let schema = databases.schemas[database];
            let connection = &databases.connection;
            if !reading {
                let from = client.random.below(ACCOUNTS).cast_signed();
                let to = client.random.below(ACCOUNTS).cast_signed();
                let amount = client.random.below(50).cast_signed();
                let sql =
                    format!("UPDATE {schema}.accounts SET balance = balance + ?2 WHERE id = ?1");
                in_time("UPDATE", || connection.execute(&sql, (from, -amount)))?;
                in_time("UPDATE", || connection.execute(&sql, (to, amount)))?;
                // Tells in which order the transfers were made.
                let value = client.next_value();
                super::append::append(databases, transaction, (database, 0), value)?;
            }
            let sum = format!("SELECT sum(balance), count(*) FROM {schema}.accounts");
            let found: (i64, u64) = in_time("SELECT", || {
                connection.query_row(&sum, [], |row| Ok((row.get(0)?, row.get(1)?)))
            })?;
            let each = format!(
                "SELECT group_concat(balance || ' ' || digest(pad)) FROM {schema}.accounts"
            );
            client.ask_twice(databases, transaction, &each)?;
            let reader = format!("transaction {transaction}");
            in_time("SELECT", || {
                check_pads(connection, schema, database, &reader)
            })?;
            if found != (ACCOUNTS.cast_signed() * BALANCE, ACCOUNTS) {
                history::violation(
                    Kind::Content,
                    format!("transaction {transaction}: the accounts are {found:?}"),
                );
            }
            Ok(())
        })
    }
}

/// What accounts have beside their balances.
pub(super) fn check_pads(
    connection: &Connection,
    schema: &str,
    database: usize,
    reader: &str,
) -> Result<(), Failure> {
    let mut statement = connection.prepare(&format!("SELECT id, pad FROM {schema}.accounts"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let of = Of {
            database,
            writer: OF_ACCOUNTS,
            n: row.get(0)?,
        };
        let pad = row.get_ref(1)?.as_blob()?;
        content::check(of, PAD_BYTES, pad, reader);
    }
    Ok(())
}
