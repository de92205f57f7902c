//! Random SQL, on a database of the client's own place and thread and on a plain SQLite beside it.
//!
//! What was committed outlives the processes of the place as a list of statements. A process that begins makes the plain database from it; where
//! the outcome of the last transaction is unknown the content tells, which must be that before it or that behind it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::{Client, Failure, in_time};
use crate::content;
use crate::counts::{Event, count};
use crate::finding::{Finding, Kind};
use crate::plan::Plan;
use crate::{history, machine, sqlite};

/// The databases of this workload, of which each thread of each place has one.
const FIRST: usize = 100;

/// What was committed at a place, and what nobody knows of.
type Statements = (Vec<String>, Option<Vec<String>>);

static STATEMENTS: Mutex<BTreeMap<usize, Statements>> = Mutex::new(BTreeMap::new());

/// The two that have to be the same.
pub(super) struct Pair {
    remote: Connection,
    plain: Connection,
}

impl Client {
    pub(super) fn sql(&mut self, _: &Plan) -> Result<(), Failure> {
        let pair = match self.pair.take() {
            Some(pair) => pair,
            None => self.open_pair()?,
        };
        let done = match self.random.percent(4) {
            true => vacuum(&pair),
            false => self.statements(&pair),
        };
        if done.is_ok() {
            self.pair = Some(pair);
        }
        done
    }

    /// Which of the databases that nobody else writes to.
    fn own(&self) -> usize {
        2 * self.place + self.thread
    }

    fn open_pair(&mut self) -> Result<Pair, Failure> {
        let database = FIRST + self.own();
        let remote = in_time("open", || sqlite::open(&self.uri(database, "")))?;
        remote.busy_timeout(std::time::Duration::from_millis(super::BUSY_MS))?;
        remote.execute_batch("PRAGMA cache_size = 20; PRAGMA temp_store = MEMORY")?;
        let plain = settle(self.own(), database, &remote)?;
        Ok(Pair { remote, plain })
    }

    fn statements(&mut self, pair: &Pair) -> Result<(), Failure> {
        // A savepoint is another thing where it begins the transaction.
        let mut made = vec!["BEGIN".to_owned()];
        pair.plain.execute_batch("BEGIN")?;
        let run = (|| {
            in_time("BEGIN", || pair.remote.execute_batch("BEGIN"))?;
            for _ in 0..self.random.between(1, 6) {
                let sql = self.statement();
                let there = in_time(&sql, || both(&pair.remote, &sql));
                let here = both(&pair.plain, &sql);
                match (&there, &here) {
                    (Ok(there), Ok(here)) if there == here => {
                        count(Event::SqlSame);
                        made.push(sql);
                    }
                    // No such table, a value that is there already: the same on both sides.
                    (Err(there), Err(here)) if there.to_string() == here.to_string() => {}
                    // Whether a fault explains it is judged with all other errors.
                    (Err(_), _) => return there.map(|_| ()),
                    _ => history::violation(
                        Kind::Content,
                        format!("{sql}: {there:?}, a plain database says {here:?}"),
                    ),
                }
            }
            Ok(())
        })();
        let keep = self.random.percent(85);
        if run.is_err() || !keep {
            pair.plain.execute_batch("ROLLBACK")?;
            let _ = in_time("ROLLBACK", || pair.remote.execute_batch("ROLLBACK"));
            return run;
        }
        made.push("COMMIT".to_owned());
        if let Some(state) = STATEMENTS.lock().get_mut(&self.own()) {
            state.1 = Some(made.clone());
        }
        sqlite::take_log();
        let committed = in_time("COMMIT", || pair.remote.execute_batch("COMMIT"));
        let unknown = sqlite::says_unknown(&sqlite::take_log());
        machine::trace(format_args!(
            "COMMIT of {} statements: {committed:?}, unknown: {unknown}",
            made.len()
        ));
        if let Some(state) = STATEMENTS.lock().get_mut(&self.own()) {
            match (&committed, unknown) {
                (Ok(()), _) => {
                    state.0.extend_from_slice(&made);
                    state.1 = None;
                }
                (Err(_), false) => state.1 = None,
                (Err(_), true) => {}
            }
        }
        pair.plain.execute_batch(if committed.is_ok() {
            "COMMIT"
        } else {
            "ROLLBACK"
        })?;
        committed?;
        compare(pair, &made)
    }

    fn statement(&mut self) -> String {
        let (own, writer) = (FIRST + self.own(), self.next_value());
        let random = &mut self.random;
        let table = random.below(3);
        let (low, high) = (random.below(200), random.below(200));
        let bytes = *random.one_of(&[5, 50, 900, 5_000]);
        let savepoint = table % 2;
        let other = (table + 1) % 3;
        match random.below(22) {
            0 => {
                let kind = *random.one_of(&["", "", " WITHOUT ROWID"]);
                format!("CREATE TABLE t{table}(a INTEGER PRIMARY KEY, b INTEGER, c TEXT, d BLOB){kind}")
            }
            1 => format!("CREATE INDEX i{table} ON t{table}(b, c)"),
            2 => format!("DROP INDEX i{table}"),
            3 if random.percent(30) => format!("DROP TABLE t{table}"),
            4..9 => format!(
                "WITH RECURSIVE n(i) AS (VALUES({low}) UNION ALL SELECT i + 1 FROM n WHERE i < {low} + {high} % 40)
                 INSERT OR REPLACE INTO t{table}(a, b, c, d) SELECT i, i * {high} % 17, 'text ' || i, content({own}, {writer}, i, {bytes}) FROM n"
            ),
            9 | 10 => format!("UPDATE t{table} SET b = b + {low}, d = content({own}, {writer}, a, {bytes}) WHERE a BETWEEN {high} AND {high} + 10"),
            11 => format!("DELETE FROM t{table} WHERE a % 7 = {low} % 7"),
            12 => format!("SAVEPOINT s{savepoint}"),
            13 => format!("ROLLBACK TO s{savepoint}"),
            14 => format!("RELEASE s{savepoint}"),
            15 => format!("ALTER TABLE t{table} ADD COLUMN e INTEGER DEFAULT {low}"),
            16 => format!("ALTER TABLE t{table} DROP COLUMN e"),
            17 if random.percent(30) => format!("ALTER TABLE t{table} RENAME TO t{other}"),
            18 => format!(
                "CREATE TRIGGER g{table} AFTER DELETE ON t{table} BEGIN
                 INSERT OR REPLACE INTO t{other}(a, b, c, d) VALUES (old.a, old.b, 'of a trigger', old.d); END"
            ),
            19 => format!("DROP TRIGGER g{table}"),
            _ => format!("SELECT count(*), sum(b), max(c), sum(length(d)), sum(digest(d)) FROM t{table} WHERE b > {low} % 17"),
        }
    }
}

/// The remote one is made anew, which changes nothing that is in it.
fn vacuum(pair: &Pair) -> Result<(), Failure> {
    in_time("VACUUM", || pair.remote.execute_batch("VACUUM"))?;
    count(Event::SqlVacuum);
    compare(pair, &["VACUUM".to_owned()])
}

fn compare(pair: &Pair, made: &[String]) -> Result<(), Failure> {
    let there = in_time("SELECT", || dump(&pair.remote))?;
    let here = dump(&pair.plain)?;
    if there != here {
        history::violation(
            Kind::Content,
            format!("after {made:?}: {there:?}, a plain database has {here:?}"),
        );
    }
    Ok(())
}

/// What a database has settles whether the last transaction, of which nobody knew, was committed. The plain one with the same.
///
/// Under the write lease: the commit of a process that was killed may still wait at a server, and be applied behind whoever merely reads. Behind a new
/// holder of the lease it never is.
fn settle(own: usize, database: usize, remote: &Connection) -> Result<Connection, Failure> {
    let found = in_time("SELECT", || dump_from("BEGIN IMMEDIATE", remote))?;
    let (committed, unknown) = STATEMENTS.lock().entry(own).or_default().clone();
    let plain = replay(&committed)?;
    let before = dump(&plain)?;
    if found == before {
        if unknown.is_some() {
            count(Event::SqlBefore);
        }
        STATEMENTS.lock().insert(own, (committed, None));
        return Ok(plain);
    }
    let mut all = committed;
    all.extend(unknown.clone().unwrap_or_default());
    let plain = replay(&all)?;
    let behind = dump(&plain)?;
    if unknown.is_none() || found != behind {
        history::violation(
            Kind::Content,
            format!(
                "database {database} is neither what it was before {unknown:?} nor what it is behind:\n{found:?}\n{before:?}\n{behind:?}"
            ),
        );
    }
    count(Event::SqlBehind);
    STATEMENTS.lock().insert(own, (all, None));
    Ok(plain)
}

/// In the end: every database is sound, and has what was committed to it.
pub fn last_look(uri: impl Fn(usize, &str) -> String) -> Result<Vec<Finding>, Failure> {
    let owners: Vec<usize> = STATEMENTS.lock().keys().copied().collect();
    let mut problems = Vec::new();
    for own in owners {
        let database = FIRST + own;
        let remote = sqlite::open(&uri(database, ""))?;
        // The lease of a process that was killed lasts for a while.
        remote.busy_timeout(std::time::Duration::from_secs(10))?;
        let sound: String = remote.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
        if sound != "ok" {
            problems.push(Kind::Damage.finding(format!("database {database} at the end: {sound}")));
        }
        settle(own, database, &remote)?;
    }
    Ok(problems)
}

/// Rows, and how many changed.
fn both(connection: &Connection, sql: &str) -> Result<(Vec<String>, u64), Failure> {
    let before = connection.total_changes();
    let mut statement = connection.prepare(sql)?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next()? {
        let values = (0..columns).map(|column| row.get_ref(column).map(told));
        lines.push(values.collect::<Result<Vec<_>, _>>()?.join("|"));
    }
    drop(rows);
    Ok((lines, connection.total_changes() - before))
}

/// A value, a blob by its length and a digest of all of it.
fn told(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Blob(bytes) => {
            format!("Blob({} bytes, {:x})", bytes.len(), content::digest(bytes))
        }
        other => format!("{other:?}"),
    }
}

fn replay(statements: &[String]) -> Result<Connection, Failure> {
    let plain = sqlite::open_plain()?;
    for statement in statements {
        both(&plain, statement)?;
    }
    Ok(plain)
}

/// Everything that is in a database, within one transaction.
fn dump(connection: &Connection) -> Result<Vec<String>, Failure> {
    dump_from("BEGIN", connection)
}

/// The same in a transaction that begins so.
fn dump_from(begin: &str, connection: &Connection) -> Result<Vec<String>, Failure> {
    connection.execute_batch(begin)?;
    let all: Result<Vec<String>, Failure> = (|| {
        let (mut all, _) = both(
            connection,
            "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name",
        )?;
        let tables = connection
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<Vec<String>, _>>()?;
        for table in tables {
            let sql = format!("SELECT * FROM {table} ORDER BY a");
            all.extend(both(connection, &sql)?.0);
        }
        Ok(all)
    })();
    let ended = connection.execute_batch("COMMIT");
    let all = all?;
    ended?;
    Ok(all)
}
