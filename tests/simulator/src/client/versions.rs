//! Old versions, branches and restores: a version never has two contents, wherever it is seen, and a branch has what was made of it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::setup::lists;
use super::{Client, Failure, in_time};
use crate::counts::{Event, count};
use crate::finding::{Finding, Kind};
use crate::history;
use crate::ledger::{self, Content};
use crate::plan::{self, Plan};
use crate::{machine, sqlite};

/// What each branch may have: one content where all that was done to it was acknowledged, or `None` where it may not be there at all.
static BRANCHES: Mutex<BTreeMap<String, Vec<Option<Content>>>> = Mutex::new(BTreeMap::new());

/// Versions that are read once more in the end.
const READ_AGAIN: usize = 8;

const CHANGE: &str = "of the branch";

impl Client {
    pub(super) fn versions(&mut self, plan: &Plan) -> Result<(), Failure> {
        match self.random.below(14) {
            0..3 => self.append(plan),
            3..6 => self.remember(plan),
            6 => self.look_back(),
            7 | 8 => self.branch(),
            _ => self.heads(plan),
        }
    }

    fn remember(&mut self, plan: &Plan) -> Result<(), Failure> {
        let database = self.random.below(plan.databases as u64) as usize;
        let uri = self.uri(database, "");
        let connection = in_time("open", || sqlite::open(&uri))?;
        connection.execute_batch("BEGIN")?;
        let content = in_time("SELECT", || lists(&connection))?;
        let version = version_of(&connection)?;
        ledger::compare(database, version, &content, "at the head");
        in_time("COMMIT", || connection.execute_batch("COMMIT"))
    }

    pub(super) fn chosen(&mut self, wanted: impl Fn(usize) -> bool) -> Option<(usize, u64)> {
        let keys = ledger::seen(wanted);
        (!keys.is_empty()).then(|| *self.random.one_of(&keys))
    }

    fn look_back(&mut self) -> Result<(), Failure> {
        let Some((database, version)) = self.chosen(|_| true) else {
            return Ok(());
        };
        look_back(
            &self.uri(database, &format!("&at={version}")),
            database,
            version,
        )
    }

    fn branch(&mut self) -> Result<(), Failure> {
        let Some((database, version)) = self.chosen(|_| true) else {
            return Ok(());
        };
        let name = format!("branch-{}", self.next_value());
        let connection = in_time("open", || sqlite::open(&self.uri(database, "")))?;
        let Some(before) = ledger::content(database, version) else {
            return Ok(());
        };
        may_be(&name, vec![None, Some(before.clone())]);
        in_time("branch", || {
            connection.query_row(
                "SELECT pagewire_branch(?1, ?2)",
                (&name, version.to_string()),
                |_| Ok(()),
            )
        })?;
        may_be(&name, vec![Some(before.clone())]);
        count(Event::Branched);
        let branch = in_time("open", || sqlite::open(&self.branch_uri(&name)))?;
        branch.busy_timeout(std::time::Duration::from_millis(super::BUSY_MS))?;
        in_time("BEGIN", || branch.execute_batch("BEGIN"))?;
        let found = in_time("SELECT", || lists(&branch))?;
        ledger::compare(database, version, &found, "on a branch");
        let first = version_of(&branch)?;
        in_time("COMMIT", || branch.execute_batch("COMMIT"))?;
        let changed: Content = before
            .iter()
            .map(|(key, _)| (*key, CHANGE.to_owned()))
            .collect();
        let either = vec![Some(before.clone()), Some(changed.clone())];
        may_be(&name, either.clone());
        in_time("UPDATE", || {
            branch.execute("UPDATE lists SET list = ?1", [CHANGE])
        })?;
        may_be(&name, vec![Some(changed)]);
        count(Event::BranchChanged);
        may_be(&name, either);
        in_time("restore", || {
            branch.query_row("SELECT pagewire_restore(?1)", [first.to_string()], |_| {
                Ok(())
            })
        })?;
        may_be(&name, vec![Some(before.clone())]);
        count(Event::BranchRestored);
        let restored = in_time("SELECT", || lists(&branch))?;
        if restored != before {
            history::violation(
                Kind::Version,
                format!("{name} restored to version {first}: {restored:?}, not {before:?}"),
            );
        }
        machine::trace(format_args!(
            "{name} of version {version} of {database} was made, changed and restored"
        ));
        Ok(())
    }

    fn branch_uri(&self, name: &str) -> String {
        named(&self.uri(0, ""), name)
    }
}

/// The version that the transaction reads; the function answers a text.
pub(super) fn version_of(connection: &Connection) -> Result<u64, Failure> {
    in_time("SELECT", || {
        let sql = "SELECT CAST(pagewire_version() AS INTEGER)";
        connection.query_row(sql, [], |row| row.get(0))
    })
}

/// The URI of a database with another name.
fn named(uri: &str, name: &str) -> String {
    uri.replacen("db0", name, 1)
}

fn may_be(name: &str, contents: Vec<Option<Content>>) {
    BRANCHES.lock().insert(name.to_owned(), contents);
}

fn look_back(uri: &str, database: usize, version: u64) -> Result<(), Failure> {
    let content = in_time("open", || lists(&sqlite::open(uri)?))?;
    ledger::compare(database, version, &content, "at itself");
    count(Event::LookedBack);
    Ok(())
}

/// In the end: every branch is there, sound, and has what was made of it; so have old versions.
pub fn last_look(uri: impl Fn(usize, &str) -> String) -> Result<Vec<Finding>, Failure> {
    let mut problems = Vec::new();
    let branches = std::mem::take(&mut *BRANCHES.lock());
    for (name, possible) in branches {
        let opened = sqlite::open(&named(&uri(0, "&mode=ro"), &name));
        let found = opened.and_then(|branch| {
            let sound: String = branch.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
            if sound != "ok" {
                problems.push(Kind::Damage.finding(format!("{name} at the end: {sound}")));
            }
            lists(&branch)
        });
        let found = match found {
            Ok(found) => Some(found),
            Err(_) if possible.contains(&None) => None,
            Err(error) => {
                problems.push(Kind::Lost.finding(format!("{name} at the end: {error}")));
                continue;
            }
        };
        if !possible.contains(&found) {
            problems.push(Kind::Content.finding(format!(
                "{name} is {found:?} at the end, and may be {possible:?}"
            )));
        }
        if found.is_some() {
            count(Event::BranchFound);
        }
    }
    let seen = ledger::seen(|_| true);
    let every = seen.len().div_ceil(READ_AGAIN).max(1);
    for (database, version) in seen.into_iter().step_by(every) {
        match look_back(&uri(database, &format!("&at={version}")), database, version) {
            Ok(()) => {}
            Err(_) if plan::get().forgets_versions() => count(Event::Gone),
            Err(error) => problems.push(Kind::Lost.finding(format!(
                "version {version} of database {database} at the end: {error}"
            ))),
        }
    }
    Ok(problems)
}
