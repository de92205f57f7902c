//! Before and after: the tables, and what is in them at the end.

use std::collections::BTreeMap;

use super::{Failure, bank, heads, large, pages, sql, uri, versions};
use crate::blame;
use crate::content::{self, OF_ACCOUNTS, OF_LISTS, Of, PAD_BYTES};
use crate::finding::{Finding, Kind};
use crate::history::Key;
use crate::ledger;
use crate::machine;
use crate::plan;
use crate::sqlite;

/// How often the beginning is tried.
const TRIES: u32 = 60;
/// In each database.
pub const ACCOUNTS: u64 = 10;
/// Of each account at the beginning.
pub const BALANCE: i64 = 100;

/// Makes the databases. A page holds two lists, so that transactions meet in pages as well as in rows.
///
/// Tried again for a while: the medium may be unreliable from the beginning.
pub fn prepare() -> Result<(), Failure> {
    let plan = plan::get();
    let heads = plan.has_versions().then_some(heads::HEADS);
    for database in (0..plan.databases).chain(heads) {
        let mut tries = 0;
        while let Err(error) = {
            blame::forget();
            prepare_one(database)
        } {
            blame::judge("the beginning", &error);
            tries += 1;
            if tries == TRIES {
                return Err(error);
            }
            machine::sleep_ns(1_000_000_000);
        }
    }
    let mut tries = 0;
    while plan.has_pages()
        && let Err(error) = pages::prepare()
    {
        blame::judge_pages("the beginning", &error);
        tries += 1;
        if tries == TRIES {
            return Err(failure(error));
        }
        machine::sleep_ns(1_000_000_000);
    }
    Ok(())
}

/// What the library says itself, as SQLite would.
fn failure(error: pagewire::simulation::pages::Error) -> Failure {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    Failure::SqliteFailure(code, Some(error.message))
}

fn prepare_one(database: usize) -> Result<(), Failure> {
    let plan = plan::get();
    {
        let connection = sqlite::open(&uri(&[0], database, ""))?;
        let tables: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 {
            return Ok(());
        }
        connection.execute_batch(&format!(
            "BEGIN IMMEDIATE;
             CREATE TABLE home(number INTEGER NOT NULL);
             INSERT INTO home VALUES ({database});
             CREATE TABLE lists(k INTEGER PRIMARY KEY, pad BLOB NOT NULL, list TEXT NOT NULL);
             CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL, pad BLOB NOT NULL);
             CREATE TABLE bulk(writer INTEGER NOT NULL, n INTEGER NOT NULL, content BLOB NOT NULL);"
        ))?;
        for list in 0..plan.lists {
            let sql = "INSERT INTO lists VALUES (?1, content(?2, ?3, ?1, ?4), '')";
            connection.execute(sql, (list, database, OF_LISTS, PAD_BYTES))?;
        }
        for account in 0..ACCOUNTS {
            let sql = "INSERT INTO accounts VALUES (?1, ?2, content(?3, ?4, ?1, ?5))";
            let values = (account, BALANCE, database, OF_ACCOUNTS, PAD_BYTES);
            connection.execute(sql, values)?;
        }
        connection.execute_batch("COMMIT")?;
    }
    Ok(())
}

/// The lists as they are stored, with their pads looked at.
pub fn lists(connection: &rusqlite::Connection) -> Result<Vec<(i64, String)>, Failure> {
    let sql = "SELECT k, list, pad, (SELECT number FROM home) FROM lists ORDER BY k";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        let key: i64 = row.get(0)?;
        let of = Of {
            database: row.get(3)?,
            writer: OF_LISTS,
            n: key.cast_unsigned(),
        };
        content::check(of, PAD_BYTES, row.get_ref(2)?.as_blob()?, "all lists");
        Ok((key, row.get(1)?))
    })?;
    rows.collect()
}

/// What is in all lists.
pub type Lists = BTreeMap<Key, Vec<u64>>;

/// The lists as a process finds them that knows nothing, and what is wrong with the databases.
pub fn final_look() -> Result<(Lists, Vec<Finding>), Failure> {
    let plan = plan::get();
    let mut found = BTreeMap::new();
    let mut problems = Vec::new();
    for database in 0..plan.databases {
        let connection = sqlite::open(&uri(&[0], database, ""))?;
        let sound: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if sound != "ok" {
            problems.push(Kind::Damage.finding(format!("database {database} at the end: {sound}")));
        }
        let home: usize = connection.query_row("SELECT number FROM home", [], |row| row.get(0))?;
        if home != database {
            let what = format!("database {database} is {home} at the end");
            problems.push(Kind::Foreign.finding(what));
        }
        let sum: i64 =
            connection.query_row("SELECT sum(balance) FROM accounts", [], |row| row.get(0))?;
        if sum != ACCOUNTS.cast_signed() * BALANCE {
            problems.push(Kind::Content.finding(format!(
                "database {database}: the accounts have {sum} at the end"
            )));
        }
        for (key, text) in self::lists(&connection)? {
            let list = text
                .split_whitespace()
                .map(|value| value.parse().unwrap_or(0))
                .collect();
            found.insert((database, key), list);
        }
        bank::check_pads(&connection, "main", database, "the last look")?;
        let order = found.get(&(database, 0)).map_or(&[][..], Vec::as_slice);
        large::check(&connection, "main", database, order, "the last look")?;
    }
    let uri = |database: usize, more: &str| uri(&[0], database, more);
    problems.extend(sql::last_look(uri)?);
    if plan.has_versions() {
        problems.extend(versions::last_look(uri)?);
        heads::last_look(uri)?;
    }
    if plan.has_pages() {
        found.extend(pages::final_look().map_err(failure)?);
    }
    problems.extend(ledger::problems());
    Ok((found, problems))
}
