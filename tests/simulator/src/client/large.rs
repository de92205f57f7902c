//! Transactions that SQLite spills and the library stages while they run.

use super::{Client, Failure, in_time};
use crate::finding::Kind;
use crate::history;
use crate::plan::Plan;

const ROWS: u64 = 60;
const ROW_BYTES: u64 = 3_000;

impl Client {
    pub(super) fn large(&mut self, plan: &Plan) -> Result<(), Failure> {
        let reading = self.random.percent(50);
        self.record(reading, |client, databases, transaction| {
            let database = client.random.below(plan.databases as u64) as usize;
            let schema = databases.schemas[database];
            let connection = &databases.connection;
            if !reading {
                let value = client.next_value();
                super::append::append(databases, transaction, (database, 0), value)?;
                if client.random.percent(50) {
                    in_time("DELETE", || connection.execute(&format!("DELETE FROM {schema}.bulk"), []))?;
                }
                let sql = format!(
                    "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < ?2)
                     INSERT INTO {schema}.bulk(writer, n, content) SELECT ?1, i, zeroblob(?3) FROM n"
                );
                let bytes = ROW_BYTES + client.random.below(200);
                in_time("INSERT", || connection.execute(&sql, (value, ROWS, bytes)))?;
            }
            let writers = format!("SELECT group_concat(writer || ' ' || n) FROM {schema}.bulk");
            client.ask_twice(databases, transaction, &writers)?;
            let sql = format!("SELECT writer, count(*), sum(n) FROM {schema}.bulk GROUP BY writer");
            let rows: Vec<(u64, u64, u64)> = in_time("SELECT", || {
                let mut statement = connection.prepare(&sql)?;
                let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
                rows.collect()
            })?;
            for (writer, count, sum) in rows {
                if (count, sum) != (ROWS, ROWS * (ROWS + 1) / 2) {
                    history::violation(Kind::Torn, format!(
                        "transaction {transaction} saw {count} rows of the large one that wrote {writer}"
                    ));
                }
            }
            Ok(())
        })
    }
}
