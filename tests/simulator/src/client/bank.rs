//! Transfers between accounts, whose sum stays as it is.

use super::setup::{ACCOUNTS, BALANCE};
use super::{Client, Failure, in_time};
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
            let each = format!("SELECT group_concat(balance) FROM {schema}.accounts");
            client.ask_twice(databases, transaction, &each)?;
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
