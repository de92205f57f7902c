//! Old versions, branches and restores: a version never has two contents, wherever it is seen.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::setup::lists;
use super::{Client, Failure, in_time};
use crate::plan::Plan;
use crate::{history, machine, sqlite};

type Content = Vec<(i64, String)>;

/// What each version was seen to have.
static SEEN: Mutex<BTreeMap<(usize, u64), Content>> = Mutex::new(BTreeMap::new());

impl Client {
    pub(super) fn versions(&mut self, plan: &Plan) -> Result<(), Failure> {
        match self.random.below(10) {
            0..4 => self.append(plan),
            4..7 => self.remember(plan),
            7 => self.look_back(),
            _ => self.branch(),
        }
    }

    fn remember(&mut self, plan: &Plan) -> Result<(), Failure> {
        let database = self.random.below(plan.databases as u64) as usize;
        let uri = super::uri(self.node(), database, "");
        let connection = in_time("open", || sqlite::open(&uri))?;
        connection.execute_batch("BEGIN")?;
        let content = in_time("SELECT", || lists(&connection))?;
        let version: u64 = in_time("SELECT", || {
            connection.query_row("SELECT pagewire_version()", [], |row| row.get(0))
        })?;
        compare(database, version, content, "at the head");
        in_time("COMMIT", || connection.execute_batch("COMMIT"))
    }

    fn chosen(&mut self) -> Option<(usize, u64)> {
        let keys: Vec<_> = SEEN.lock().keys().copied().collect();
        (!keys.is_empty()).then(|| *self.random.one_of(&keys))
    }

    fn look_back(&mut self) -> Result<(), Failure> {
        let Some((database, version)) = self.chosen() else {
            return Ok(());
        };
        let uri = super::uri(self.node(), database, &format!("&at={version}"));
        let connection = in_time("open", || sqlite::open(&uri))?;
        let content = in_time("SELECT", || lists(&connection))?;
        compare(database, version, content, "at itself");
        Ok(())
    }

    fn branch(&mut self) -> Result<(), Failure> {
        let Some((database, version)) = self.chosen() else {
            return Ok(());
        };
        let name = format!("branch-{}", self.next_value());
        let connection = in_time("open", || {
            sqlite::open(&super::uri(self.node(), database, ""))
        })?;
        in_time("branch", || {
            connection.query_row(
                "SELECT pagewire_branch(?1, ?2)",
                (&name, version.to_string()),
                |_| Ok(()),
            )
        })?;
        let uri =
            super::uri(self.node(), database, "").replacen(&format!("db{database}"), &name, 1);
        let branch = in_time("open", || sqlite::open(&uri))?;
        branch.busy_timeout(std::time::Duration::from_millis(super::BUSY_MS))?;
        let before = in_time("SELECT", || lists(&branch))?;
        compare(database, version, before.clone(), "on a branch");
        let count = |connection: &Connection| {
            in_time("SELECT", || {
                connection.query_row("SELECT pagewire_version()", [], |row| row.get::<_, u64>(0))
            })
        };
        let first = count(&branch)?;
        in_time("UPDATE", || {
            branch.execute("UPDATE lists SET list = 'of the branch'", [])
        })?;
        in_time("restore", || {
            branch.query_row("SELECT pagewire_restore(?1)", [first.to_string()], |_| {
                Ok(())
            })
        })?;
        let restored = in_time("SELECT", || lists(&branch))?;
        if restored != before {
            history::violation(format!(
                "{name} restored to version {first}: {restored:?}, not {before:?}"
            ));
        }
        machine::trace(format_args!(
            "{name} of version {version} of {database} was made, changed and restored"
        ));
        Ok(())
    }
}

fn compare(database: usize, version: u64, content: Content, place: &str) {
    let mut seen = SEEN.lock();
    let known = seen
        .entry((database, version))
        .or_insert_with(|| content.clone());
    if *known != content {
        history::violation(format!(
            "version {version} of database {database} is {content:?} {place}, and was {known:?}"
        ));
    }
}
