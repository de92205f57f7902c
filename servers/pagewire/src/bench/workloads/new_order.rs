//! New orders in the manner of TPC-C (its specification, revision 5.11, clause 2.4): one warehouse, ten districts, five to fifteen lines
//! an order, every hundredth order rolled back. Sizes are smaller than the specification's, and its other transactions are left out:
//! the figures are not to be compared with those of others.

use rusqlite::{Connection, params};

use super::*;
use crate::bench::rounds::Operation;
use crate::bench::subjects::RowIds;

const ITEMS: u64 = 10_000;
const CUSTOMERS: u64 = 300;
const DISTRICTS: u64 = 10;

impl Scene<'_> {
    /// One row.
    pub(super) fn new_order(&self) -> anyhow::Result<Row> {
        let mut ours = NewOrder::new(self.remote.open("new-order")?)?;
        let echo = self.echo_of(&mut ours, 16)?;
        let mut contestants = vec![Contestant::new(self.ours(), ours), echo];
        for local in self.journal_modes() {
            let connection = local.open(self.directory, &self.local_name("new-order"))?;
            contestants.push(Contestant::new(local.name(), NewOrder::new(connection)?));
        }
        let mut row = self.row(
            format!("new order of TPC-C, {} store", self.remote.store),
            Unit::Microseconds,
            self.sizes.short(),
            contestants,
            &[],
        )?;
        row.calls_aim = Some(1.0);
        Ok(row)
    }
}

/// A warehouse, and orders at it one by one.
pub struct NewOrder {
    connection: Connection,
    dice: RowIds,
    orders: u64,
}

impl NewOrder {
    /// Makes the warehouse.
    pub fn new(connection: Connection) -> anyhow::Result<Self> {
        connection.execute_batch(&format!(
            "BEGIN;
             CREATE TABLE warehouse(id INTEGER PRIMARY KEY, name TEXT, tax REAL);
             CREATE TABLE district(id INTEGER PRIMARY KEY, name TEXT, tax REAL, next_order INTEGER NOT NULL);
             CREATE TABLE customer(district INTEGER, id INTEGER, last TEXT, credit TEXT, discount REAL, data TEXT,
               PRIMARY KEY(district, id)) WITHOUT ROWID;
             CREATE TABLE item(id INTEGER PRIMARY KEY, name TEXT, price REAL, data TEXT);
             CREATE TABLE stock(item INTEGER PRIMARY KEY, quantity INTEGER, district_info TEXT, ytd INTEGER, order_count INTEGER, data TEXT);
             CREATE TABLE orders(district INTEGER, id INTEGER, customer INTEGER, entered TEXT, line_count INTEGER,
               PRIMARY KEY(district, id)) WITHOUT ROWID;
             CREATE INDEX orders_by_customer ON orders(district, customer, id);
             CREATE TABLE new_order(district INTEGER, id INTEGER, PRIMARY KEY(district, id)) WITHOUT ROWID;
             CREATE TABLE order_line(district INTEGER, orders INTEGER, number INTEGER, item INTEGER, quantity INTEGER, amount REAL,
               district_info TEXT, PRIMARY KEY(district, orders, number)) WITHOUT ROWID;
             INSERT INTO warehouse VALUES(1, 'the warehouse', 0.1);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {DISTRICTS})
               INSERT INTO district SELECT i, 'district ' || i, 0.1, 1 FROM n;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {CUSTOMERS})
               INSERT INTO customer SELECT district.id, i, 'name ' || i, 'GC', 0.1, hex(randomblob(200)) FROM n, district;
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ITEMS})
               INSERT INTO item SELECT i, 'item ' || i, i % 100 + 1.0, hex(randomblob(20)) FROM n;
             INSERT INTO stock SELECT id, 50, hex(randomblob(12)), 0, 0, hex(randomblob(20)) FROM item;
             COMMIT;"
        ))?;
        Ok(Self {
            connection,
            dice: RowIds::new(u64::MAX),
            orders: 0,
        })
    }

    /// From 1.
    fn one_of(&mut self, count: u64) -> i64 {
        (self.dice.next() as u64 % count) as i64 + 1
    }

    fn order(&mut self) -> anyhow::Result<()> {
        let district = self.one_of(DISTRICTS);
        let customer = self.one_of(CUSTOMERS);
        let lines = self.one_of(11) + 4;
        let picked: Vec<(i64, i64)> = (0..lines)
            .map(|_| (self.one_of(ITEMS), self.one_of(10)))
            .collect();
        let database = &self.connection;
        let warehouse_tax: f64 = database
            .prepare_cached("SELECT tax FROM warehouse WHERE id = 1")?
            .query_row([], |row| row.get(0))?;
        let (tax, order): (f64, i64) = database
            .prepare_cached("SELECT tax, next_order FROM district WHERE id = ?1")?
            .query_row([district], |row| Ok((row.get(0)?, row.get(1)?)))?;
        database
            .prepare_cached("UPDATE district SET next_order = next_order + 1 WHERE id = ?1")?
            .execute([district])?;
        let discount: f64 = database
            .prepare_cached("SELECT discount FROM customer WHERE district = ?1 AND id = ?2")?
            .query_row([district, customer], |row| row.get(0))?;
        database
            .prepare_cached("INSERT INTO orders VALUES(?1, ?2, ?3, datetime(), ?4)")?
            .execute([district, order, customer, lines])?;
        database
            .prepare_cached("INSERT INTO new_order VALUES(?1, ?2)")?
            .execute([district, order])?;
        for (number, (item, quantity)) in picked.into_iter().enumerate() {
            let price: f64 = database
                .prepare_cached("SELECT price FROM item WHERE id = ?1")?
                .query_row([item], |row| row.get(0))?;
            let (stock, info): (i64, String) = database
                .prepare_cached("SELECT quantity, district_info FROM stock WHERE item = ?1")?
                .query_row([item], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let left = stock - quantity;
            database
                .prepare_cached(
                    "UPDATE stock SET quantity = ?2, ytd = ytd + ?3, order_count = order_count + 1 WHERE item = ?1",
                )?
                .execute([item, if left < 10 { left + 91 } else { left }, quantity])?;
            let amount = quantity as f64 * price * (1.0 + warehouse_tax + tax) * (1.0 - discount);
            database
                .prepare_cached("INSERT INTO order_line VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
                .execute(params![
                    district,
                    order,
                    number as i64 + 1,
                    item,
                    quantity,
                    amount,
                    info
                ])?;
        }
        Ok(())
    }
}

impl Operation for NewOrder {
    fn run(&mut self) -> anyhow::Result<()> {
        self.orders += 1;
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        self.order()?;
        // An item number that is not there, clause 2.4.1.4.
        let rolled_back = self.orders.is_multiple_of(100);
        let end = if rolled_back { "ROLLBACK" } else { "COMMIT" };
        self.connection.execute_batch(end)?;
        Ok(())
    }
}
