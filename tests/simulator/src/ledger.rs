//! What was seen of the versions of databases, which may go back to what they were: a restore makes an old content the newest version.
//!
//! * **L1** A version has one content, wherever and whenever it is seen: at the head, by its number, by a tag, on a branch.
//! * **L2** Versions follow time: who begins after somebody has seen or made a version sees none before it, and makes one behind it.
//! * **L3** A version is made once.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::finding::{Finding, Kind};
use crate::history;

/// The lists of a database, as they are stored.
pub type Content = Vec<(i64, String)>;

/// What a transaction did with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It read it as the newest.
    Saw,
    /// It made it.
    Made,
}

/// One that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Before it began.
    pub begun: u64,
    /// After it had ended.
    pub ended: u64,
    /// See there.
    pub act: Act,
    /// See there.
    pub version: u64,
}

static SEEN: Mutex<BTreeMap<(usize, u64), Content>> = Mutex::new(BTreeMap::new());
static ENTRIES: Mutex<BTreeMap<usize, Vec<Entry>>> = Mutex::new(BTreeMap::new());

/// L1.
pub fn compare(database: usize, version: u64, content: &Content, place: &str) {
    let mut seen = SEEN.lock();
    let known = seen
        .entry((database, version))
        .or_insert_with(|| content.clone());
    if known != content {
        history::violation(
            Kind::Version,
            format!(
                "version {version} of database {database} is {content:?} {place}, and was {known:?}"
            ),
        );
    }
}

/// What a version has, if anybody has seen it.
pub fn content(database: usize, version: u64) -> Option<Content> {
    SEEN.lock().get(&(database, version)).cloned()
}

/// The versions that were seen, of the databases that are wanted.
pub fn seen(wanted: impl Fn(usize) -> bool) -> Vec<(usize, u64)> {
    let seen = SEEN.lock();
    let keys = seen.keys().copied();
    keys.filter(|(database, _)| wanted(*database)).collect()
}

/// A transaction has ended well.
pub fn note(database: usize, entry: Entry) {
    ENTRIES.lock().entry(database).or_default().push(entry);
}

/// L2 and L3 of everything that was noted.
pub fn problems() -> Vec<Finding> {
    let entries = std::mem::take(&mut *ENTRIES.lock());
    let of_each = entries
        .iter()
        .flat_map(|(database, entries)| problems_of(*database, entries));
    of_each.collect()
}

fn problems_of(database: usize, entries: &[Entry]) -> Vec<Finding> {
    let mut problems = Vec::new();
    for (number, first) in entries.iter().enumerate() {
        for second in &entries[number + 1..] {
            let twice =
                [first.act, second.act] == [Act::Made; 2] && first.version == second.version;
            let (early, late) = match first.ended < second.begun {
                true => (first, second),
                false => (second, first),
            };
            let back = early.ended < late.begun
                && match late.act {
                    Act::Saw => late.version < early.version,
                    Act::Made => late.version <= early.version,
                };
            if twice || back {
                problems.push(Kind::Version.finding(format!(
                    "versions of database {database} do not follow time: {early:?}, {late:?}"
                )));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(begun: u64, ended: u64, act: Act, version: u64) -> Entry {
        Entry {
            begun,
            ended,
            act,
            version,
        }
    }

    #[test]
    fn l2_who_begins_later_sees_no_older_version() {
        let made = entry(1, 2, Act::Made, 5);
        assert_eq!(problems_of(0, &[made, entry(3, 4, Act::Saw, 5)]), []);
        assert_eq!(problems_of(0, &[made, entry(3, 4, Act::Saw, 4)]).len(), 1);
        assert_eq!(problems_of(0, &[entry(3, 4, Act::Saw, 4), made]).len(), 1);
        // At the same time.
        assert_eq!(problems_of(0, &[made, entry(2, 4, Act::Saw, 4)]), []);
    }

    #[test]
    fn l2_who_begins_later_makes_a_newer_version() {
        let saw = entry(1, 2, Act::Saw, 5);
        assert_eq!(problems_of(0, &[saw, entry(3, 4, Act::Made, 6)]), []);
        assert_eq!(problems_of(0, &[saw, entry(3, 4, Act::Made, 5)]).len(), 1);
    }

    #[test]
    fn l3_a_version_is_made_once() {
        let twice = [entry(1, 4, Act::Made, 5), entry(2, 3, Act::Made, 5)];
        assert_eq!(problems_of(0, &twice).len(), 1);
    }
}
