//! Restores of a database that others read and write, with their leases, caches and subscriptions; and tags. What was seen is in the ledger.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use rusqlite::Connection;

use super::setup::lists;
use super::versions::version_of;
use super::{Client, Failure, in_time};
use crate::counts::{Event, count};
use crate::ledger::{self, Act, Entry};
use crate::plan::Plan;
use crate::{machine, sqlite};

/// The database that is restored.
pub const HEADS: usize = 90;

/// What a tag names, which one thread of one place sets.
#[derive(Clone, Debug, Default)]
struct Tag {
    acknowledged: Option<u64>,
    /// Tried, and nobody was told what became of it: it may happen still, behind what was acknowledged later.
    unsettled: Vec<Option<u64>>,
}

impl Tag {
    fn may_be(&self, version: Option<u64>) -> bool {
        self.acknowledged == version || self.unsettled.contains(&version)
    }
}

static TAGS: Mutex<BTreeMap<String, Tag>> = Mutex::new(BTreeMap::new());

impl Client {
    pub(super) fn heads(&mut self, plan: &Plan) -> Result<(), Failure> {
        let connection = match self.heads.take() {
            Some(connection) => connection,
            None => self.open_heads()?,
        };
        let done = match self.random.below(10) {
            0..3 => self.write_head(plan, &connection),
            3 => see_head(&connection),
            4..6 => self.restore_head(&connection),
            6..8 => self.change_tag(&connection),
            _ => self.read_tag(),
        };
        if connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok() {
            self.heads = Some(connection);
        }
        done
    }

    fn open_heads(&self) -> Result<Connection, Failure> {
        let connection = in_time("open", || {
            sqlite::open(&self.uri(HEADS, "&subscribe=always"))
        })?;
        connection.busy_timeout(std::time::Duration::from_millis(super::BUSY_MS))?;
        Ok(connection)
    }

    fn write_head(&mut self, plan: &Plan, connection: &Connection) -> Result<(), Failure> {
        let begun = machine::now();
        in_time("BEGIN IMMEDIATE", || {
            connection.execute_batch("BEGIN IMMEDIATE")
        })?;
        let (version, mut content) = look(connection)?;
        let value = self.next_value();
        let key = self.random.below(plan.lists).cast_signed();
        in_time("UPDATE", || {
            let sql = "UPDATE lists SET list = list || ?2 || ' ' WHERE k = ?1";
            connection.execute(sql, (key, value.to_string()))
        })?;
        if let Some((_, list)) = content.iter_mut().find(|(of, _)| *of == key) {
            list.push_str(&format!("{value} "));
        }
        self.may_lose_the_commit();
        in_time("COMMIT", || connection.execute_batch("COMMIT"))?;
        // A commit makes the version behind its base.
        made(begun, version + 1, &content, "as it was written");
        count(Event::HeadWritten);
        Ok(())
    }

    fn restore_head(&mut self, connection: &Connection) -> Result<(), Failure> {
        let Some((_, version)) = self.chosen(|database| database == HEADS) else {
            return see_head(connection);
        };
        let begun = machine::now();
        self.may_lose_the_commit();
        let new = in_time("restore", || {
            let sql = "SELECT pagewire_restore(?1)";
            connection.query_row(sql, [version.to_string()], |row| row.get::<_, u64>(0))
        })?;
        machine::trace(format_args!("version {version} is {new} now"));
        if new == version {
            // It was the newest already.
            note(begun, Act::Saw, new);
            return Ok(());
        }
        if let Some(content) = ledger::content(HEADS, version) {
            made(begun, new, &content, "as it was restored");
        }
        count(Event::HeadRestored);
        see_head(connection)
    }

    fn tag_name(&self) -> String {
        format!("tag-{}-{}", self.place, self.thread)
    }

    fn change_tag(&mut self, connection: &Connection) -> Result<(), Failure> {
        let Some((_, version)) = self.chosen(|database| database == HEADS) else {
            return Ok(());
        };
        let tag = self.tag_name();
        let known = TAGS.lock().entry(tag.clone()).or_default().clone();
        let (sql, event, wanted) = match self.random.below(4) {
            0 => ("SELECT pagewire_untag(?1), ?2", Event::Untagged, None),
            _ if known.acknowledged.is_none() && known.unsettled.is_empty() => {
                ("SELECT pagewire_tag(?1, ?2)", Event::Tagged, Some(version))
            }
            _ => (
                "SELECT pagewire_move_tag(?1, ?2)",
                Event::TagMoved,
                Some(version),
            ),
        };
        // Before it is tried: the process may be killed meanwhile.
        change(&tag, |known| known.unsettled.push(wanted));
        let done = in_time("tag", || {
            connection.query_row(sql, (&tag, version.to_string()), |row| row.get::<_, u64>(0))
        });
        machine::trace(format_args!(
            "{sql} {tag} {version}: {done:?}, was {known:?}"
        ));
        done?;
        change(&tag, |known| {
            known.unsettled.pop();
            known.acknowledged = wanted;
        });
        count(event);
        Ok(())
    }

    fn read_tag(&mut self) -> Result<(), Failure> {
        let tag = self.tag_name();
        let uri = |more: &str| self.uri(HEADS, more);
        check_tag(&tag, uri)
    }
}

fn change(tag: &str, how: impl FnOnce(&mut Tag)) {
    how(TAGS.lock().entry(tag.to_owned()).or_default());
}

/// What a tag names has to be what its thread has said.
fn check_tag(tag: &str, uri: impl Fn(&str) -> String) -> Result<(), Failure> {
    let known = TAGS.lock().get(tag).cloned().unwrap_or_default();
    let found = in_time("open", || {
        let connection = sqlite::open(&uri(&format!("&at={tag}")))?;
        lists(&connection)
    });
    let content = match found {
        Ok(content) => content,
        // An answer: whatever else goes wrong, a tag is there or it is not.
        Err(_) if crate::blame::is_without_tag() => {
            if !known.may_be(None) {
                crate::history::violation(
                    crate::finding::Kind::Lost,
                    format!("{tag} is not there, and was set to {known:?}"),
                );
            }
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let possible = [known.acknowledged]
        .into_iter()
        .chain(known.unsettled.iter().copied());
    let possible: Vec<_> = possible
        .flatten()
        .map(|version| ledger::content(HEADS, version))
        .collect();
    if !possible.contains(&Some(content.clone())) {
        crate::history::violation(
            crate::finding::Kind::Version,
            format!("{tag} names {content:?}, and was set to {known:?}: {possible:?}"),
        );
    }
    count(Event::TagRead);
    Ok(())
}

/// The newest version, and what it has, within a transaction.
fn look(connection: &Connection) -> Result<(u64, ledger::Content), Failure> {
    let content = in_time("SELECT", || lists(connection))?;
    let version = version_of(connection)?;
    ledger::compare(HEADS, version, &content, "at the head");
    Ok((version, content))
}

fn see_head(connection: &Connection) -> Result<(), Failure> {
    let begun = machine::now();
    in_time("BEGIN", || connection.execute_batch("BEGIN"))?;
    let (version, _) = look(connection)?;
    in_time("COMMIT", || connection.execute_batch("COMMIT"))?;
    note(begun, Act::Saw, version);
    Ok(())
}

fn made(begun: u64, version: u64, content: &ledger::Content, place: &str) {
    ledger::compare(HEADS, version, content, place);
    note(begun, Act::Made, version);
}

fn note(begun: u64, act: Act, version: u64) {
    let entry = Entry {
        begun,
        ended: machine::now(),
        act,
        version,
    };
    ledger::note(HEADS, entry);
}

/// In the end: the newest version and all tags, seen by a process that knows nothing.
pub fn last_look(uri: impl Fn(usize, &str) -> String) -> Result<(), Failure> {
    see_head(&sqlite::open(&uri(HEADS, ""))?)?;
    let tags: Vec<String> = TAGS.lock().keys().cloned().collect();
    for tag in tags {
        check_tag(&tag, |more| uri(HEADS, more))?;
    }
    Ok(())
}
