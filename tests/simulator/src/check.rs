//! Whether a history can have happened in a database that is strictly serializable, in the manner of Elle.
//!
//! A list tells the order of those who appended to it, and a read of it between which two it took place. So every transaction
//! stands before or behind others: who appended the value before mine, whose value I saw, whose I did not see; and whoever began
//! after I had ended. If these lead round in a circle there is no order in which they can have run one after the other.
//!
//! Snapshots are per database, so each database is looked at alone (P1); that what was written to several is there in all of them or in none is
//! looked at in the lists of the end. What a transaction read that failed counts as well: it read a snapshot.

use std::collections::{BTreeMap, BTreeSet};

use crate::counts::{Event, count};
use crate::finding::{Finding, Kind};
use crate::history::{History, Key, Outcome, Step, Transaction};

/// What is wrong with a history; `last` has the lists as they were found at the end.
pub fn problems(history: &History, last: &BTreeMap<Key, Vec<u64>>) -> Vec<Finding> {
    let mut problems = history.violations.clone();
    let all = &history.transactions;
    let mut writer: BTreeMap<u64, (usize, Key)> = BTreeMap::new();
    for (number, transaction) in all.iter().enumerate() {
        for step in &transaction.steps {
            if let Step::Append(key, value) = step {
                writer.insert(*value, (number, *key));
            }
        }
    }
    check_values(all, &writer, last, &mut problems);
    check_end(all, last, &mut problems);
    check_snapshots(all, &mut problems);
    let databases: BTreeSet<usize> = last.keys().map(|(database, _)| *database).collect();
    for database in databases {
        let mut graph = Graph::new(all.len());
        for (key, list) in last.iter().filter(|((of, _), _)| *of == database) {
            graph.add_list(all, *key, list, &writer, &mut problems);
        }
        graph.add_times(all, database);
        if let Some(circle) = graph.circle() {
            problems.push(Kind::Order.finding(describe(all, database, &circle)));
        }
    }
    problems
}

/// Values that nobody wrote, that failed, that are there twice or in the wrong list.
fn check_values(
    all: &[Transaction],
    writer: &BTreeMap<u64, (usize, Key)>,
    last: &BTreeMap<Key, Vec<u64>>,
    problems: &mut Vec<Finding>,
) {
    let reads = all.iter().enumerate().flat_map(|(number, transaction)| {
        let steps = transaction.steps.iter();
        steps.filter_map(move |step| match step {
            Step::Read(key, list) => Some((Some(number), *key, list)),
            Step::Append(..) | Step::Saw(..) => None,
        })
    });
    let reads = reads.chain(last.iter().map(|(key, list)| (None, *key, list)));
    for (reader, key, list) in reads {
        let mut seen = BTreeSet::new();
        for value in list {
            if !seen.insert(*value) {
                problems.push(Kind::Value.finding(format!(
                    "list {key:?} has {value} twice, read by {reader:?}: {list:?}"
                )));
            }
            match writer.get(value) {
                None => problems.push(Kind::Value.finding(format!(
                    "list {key:?} has {value}, which nobody wrote, read by {reader:?}"
                ))),
                Some((_, home)) if *home != key => problems.push(Kind::Value.finding(format!(
                    "list {key:?} has {value}, which belongs to {home:?}, read by {reader:?}"
                ))),
                Some((of, _)) if Some(*of) != reader && all[*of].outcome == Outcome::Aborted => {
                    problems.push(Kind::Value.finding(format!(
                        "list {key:?} has {value} of the aborted transaction {of} ({:?}), read by {reader:?}",
                        all[*of].error
                    )));
                }
                Some(_) => {}
            }
        }
    }
}

/// What was acknowledged is there; what is unknown is there everywhere or nowhere.
fn check_end(all: &[Transaction], last: &BTreeMap<Key, Vec<u64>>, problems: &mut Vec<Finding>) {
    for (number, transaction) in all.iter().enumerate() {
        let appends: Vec<_> = transaction
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Append(key, value) => Some((*key, *value)),
                Step::Read(..) | Step::Saw(..) => None,
            })
            .collect();
        let there = appends
            .iter()
            .filter(|(key, value)| last.get(key).is_some_and(|list| list.contains(value)));
        let there = there.count();
        let lost = transaction.outcome == Outcome::Ok && there < appends.len();
        if lost || (there > 0 && there < appends.len()) {
            let kind = if lost { Kind::Lost } else { Kind::Torn };
            problems.push(kind.finding(format!(
                "of the {} values of transaction {number} ({:?}) {there} are there at the end: {appends:?}",
                appends.len(),
                transaction.outcome
            )));
        }
    }
}

/// A transaction reads one snapshot, and what it has written itself: whatever it asks again is answered as before.
fn check_snapshots(all: &[Transaction], problems: &mut Vec<Finding>) {
    for (number, transaction) in all.iter().enumerate() {
        let mut own: BTreeMap<Key, usize> = BTreeMap::new();
        let mut lists: BTreeMap<Key, &[u64]> = BTreeMap::new();
        let mut answers: BTreeMap<&str, &str> = BTreeMap::new();
        let mut changed = |what: &dyn std::fmt::Debug,
                           before: &dyn std::fmt::Debug,
                           now: &dyn std::fmt::Debug| {
            problems.push(Kind::Snapshot.finding(format!(
                "transaction {number} (client {}) saw {what:?} twice: {before:?}, then {now:?}",
                transaction.client
            )));
        };
        for step in &transaction.steps {
            match step {
                Step::Append(key, _) => *own.entry(*key).or_default() += 1,
                Step::Read(key, list) => {
                    let mine = own.get(key).copied().unwrap_or(0);
                    let others = &list[..list.len().saturating_sub(mine)];
                    let before = *lists.entry(*key).or_insert(others);
                    if before != others {
                        changed(key, &before, &others);
                    }
                }
                Step::Saw(question, answer) => {
                    let before = *answers.entry(question).or_insert(answer);
                    if before != answer {
                        changed(question, &before, answer);
                    }
                }
            }
        }
    }
}

struct Graph {
    /// Behind whom each stands, and why.
    before: Vec<BTreeMap<usize, &'static str>>,
}

impl Graph {
    fn new(count: usize) -> Self {
        Self {
            before: vec![BTreeMap::new(); count],
        }
    }

    fn edge(&mut self, from: usize, to: usize, why: &'static str) {
        if from != to {
            self.before[to].entry(from).or_insert(why);
        }
    }

    fn add_list(
        &mut self,
        all: &[Transaction],
        key: Key,
        list: &[u64],
        writer: &BTreeMap<u64, (usize, Key)>,
        problems: &mut Vec<Finding>,
    ) {
        let by = |value: &u64| writer.get(value).map(|(number, _)| *number);
        for pair in list.windows(2) {
            if let (Some(first), Some(second)) = (by(&pair[0]), by(&pair[1])) {
                self.edge(first, second, "appended before");
            }
        }
        for (number, transaction) in all.iter().enumerate() {
            let mut own: Vec<u64> = Vec::new();
            for step in &transaction.steps {
                match step {
                    Step::Append(to, value) if *to == key => own.push(*value),
                    Step::Read(of, seen) if *of == key => {
                        let others = seen.len().saturating_sub(own.len());
                        let (others, mine) = seen.split_at(others);
                        if mine != own || !list.starts_with(others) {
                            problems.push(Kind::Order.finding(format!(
                                "transaction {number} ({:?}) read list {key:?} as {seen:?}, having appended {own:?}; at the end it is {list:?}",
                                transaction.outcome
                            )));
                            continue;
                        }
                        if let Some(before) = others.last().and_then(by) {
                            self.edge(before, number, "was read by");
                        }
                        if let Some(after) = list.get(others.len()).and_then(by) {
                            if all[after].ended.is_some_and(|at| at < transaction.begun) {
                                count(Event::Stale);
                            }
                            self.edge(number, after, "did not see");
                        }
                    }
                    Step::Append(..) | Step::Read(..) | Step::Saw(..) => {}
                }
            }
        }
    }

    /// Who had ended before another one began. Transactions that did nothing in the database stand nowhere.
    fn add_times(&mut self, all: &[Transaction], database: usize) {
        let here = |transaction: &Transaction| {
            transaction.steps.iter().any(|step| match step {
                Step::Read((of, _), _) | Step::Append((of, _), _) => *of == database,
                Step::Saw(..) => false,
            })
        };
        for (first, ended) in all.iter().enumerate().filter(|(_, first)| here(first)) {
            let Some(ended) = ended.ended else { continue };
            for (second, begun) in all.iter().enumerate().filter(|(_, second)| here(second)) {
                if ended < begun.begun.saturating_sub(begun.staleness) {
                    self.edge(first, second, "ended before the beginning of");
                }
            }
        }
    }

    /// A circle, as short as the search finds it.
    fn circle(&self) -> Option<Vec<(usize, &'static str)>> {
        // Who stands behind nobody that is left goes; who is left stands behind somebody in or behind a circle.
        let mut left: BTreeSet<usize> = (0..self.before.len()).collect();
        loop {
            let gone: Vec<_> = left
                .iter()
                .copied()
                .filter(|number| {
                    !self.before[*number]
                        .keys()
                        .any(|before| left.contains(before))
                })
                .collect();
            if gone.is_empty() {
                break;
            }
            for number in gone {
                left.remove(&number);
            }
        }
        left.iter()
            .filter_map(|start| self.shortest_from(*start, &left))
            .min_by_key(Vec::len)
    }

    fn shortest_from(
        &self,
        start: usize,
        left: &BTreeSet<usize>,
    ) -> Option<Vec<(usize, &'static str)>> {
        let mut came: BTreeMap<usize, usize> = BTreeMap::new();
        let mut row = vec![start];
        while !row.is_empty() {
            let mut next = Vec::new();
            for number in row {
                for before in self.before[number]
                    .keys()
                    .filter(|before| left.contains(before))
                {
                    if *before == start {
                        let mut circle = vec![(start, self.before[number][&start])];
                        let mut at = number;
                        while at != start {
                            let behind = came[&at];
                            circle.push((at, self.before[behind][&at]));
                            at = behind;
                        }
                        return Some(circle);
                    }
                    if !came.contains_key(before) {
                        came.insert(*before, number);
                        next.push(*before);
                    }
                }
            }
            row = next;
        }
        None
    }
}

fn describe(all: &[Transaction], database: usize, circle: &[(usize, &str)]) -> String {
    let mut text = format!("database {database} is not strictly serializable:");
    for (number, why) in circle {
        let transaction = &all[*number];
        text.push_str(&format!(
            "\n  {number} (client {}, {:?}, {:.6} to {:?} s, staleness {} ms, {:?}) {why}",
            transaction.client,
            transaction.outcome,
            transaction.begun as f64 / 1e9,
            transaction.ended.map(|ended| ended as f64 / 1e9),
            transaction.staleness / 1_000_000,
            transaction.steps
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (0, 1);
    const OTHER: Key = (0, 2);

    fn transaction(times: (u64, u64), outcome: Outcome, steps: &[Step]) -> Transaction {
        Transaction {
            client: 0,
            begun: times.0,
            ended: Some(times.1),
            outcome,
            steps: steps.to_vec(),
            staleness: 0,
            error: None,
        }
    }

    fn found(transactions: Vec<Transaction>, last: &[(Key, &[u64])]) -> Vec<Kind> {
        let history = History {
            transactions,
            violations: Vec::new(),
        };
        let last = last.iter().map(|(key, list)| (*key, list.to_vec()));
        let findings = problems(&history, &last.collect());
        findings.into_iter().map(|finding| finding.kind).collect()
    }

    fn append(key: Key, value: u64) -> Step {
        Step::Append(key, value)
    }

    fn read(key: Key, list: &[u64]) -> Step {
        Step::Read(key, list.to_vec())
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let history = vec![
            transaction((1, 2), Outcome::Ok, &[append(KEY, 1), read(KEY, &[1])]),
            transaction((3, 4), Outcome::Ok, &[read(KEY, &[1]), append(KEY, 2)]),
            transaction(
                (5, 6),
                Outcome::Aborted,
                &[append(KEY, 3), read(KEY, &[1, 2, 3])],
            ),
        ];
        assert_eq!(found(history, &[(KEY, &[1, 2])]), []);
    }

    #[test]
    fn a_stale_read_is_found() {
        let history = vec![
            transaction((1, 2), Outcome::Ok, &[append(KEY, 1)]),
            transaction((3, 4), Outcome::Ok, &[read(KEY, &[])]),
        ];
        assert_eq!(found(history, &[(KEY, &[1])]), [Kind::Order]);
    }

    #[test]
    fn a_snapshot_that_changes_is_found() {
        let seen = |answer: &str| Step::Saw("the sum".to_owned(), answer.to_owned());
        let stable = [
            read(KEY, &[]),
            seen("1"),
            append(KEY, 1),
            read(KEY, &[1]),
            seen("1"),
        ];
        let fine = vec![transaction((1, 2), Outcome::Ok, &stable)];
        assert_eq!(found(fine, &[(KEY, &[1])]), []);
        let other = transaction((1, 9), Outcome::Ok, &[append(KEY, 1)]);
        let twice = transaction((1, 9), Outcome::Ok, &[read(KEY, &[]), read(KEY, &[1])]);
        assert!(found(vec![other, twice], &[(KEY, &[1])]).contains(&Kind::Snapshot));
        let twice = vec![transaction((1, 2), Outcome::Ok, &[seen("1"), seen("2")])];
        assert_eq!(found(twice, &[]), [Kind::Snapshot]);
    }

    #[test]
    fn a_bounded_read_may_be_stale() {
        let mut history = vec![
            transaction((1, 2), Outcome::Ok, &[append(KEY, 1)]),
            transaction((3, 4), Outcome::Ok, &[read(KEY, &[])]),
        ];
        history[1].staleness = 2;
        assert_eq!(found(history, &[(KEY, &[1])]), []);
    }

    #[test]
    fn write_skew_is_found() {
        let history = vec![
            transaction((1, 9), Outcome::Ok, &[read(KEY, &[]), append(OTHER, 1)]),
            transaction((1, 9), Outcome::Ok, &[read(OTHER, &[]), append(KEY, 2)]),
        ];
        assert_eq!(found(history, &[(KEY, &[2]), (OTHER, &[1])]), [Kind::Order]);
    }

    #[test]
    fn a_torn_snapshot_is_found() {
        let history = vec![
            transaction((1, 9), Outcome::Ok, &[append(KEY, 1), append(OTHER, 2)]),
            transaction((1, 9), Outcome::Ok, &[read(KEY, &[1]), read(OTHER, &[])]),
        ];
        assert_eq!(found(history, &[(KEY, &[1]), (OTHER, &[2])]), [Kind::Order]);
    }

    #[test]
    fn lost_values_and_those_of_the_aborted_are_found() {
        let lost = vec![transaction((1, 2), Outcome::Ok, &[append(KEY, 1)])];
        assert_eq!(found(lost, &[(KEY, &[])]), [Kind::Lost]);
        let risen = vec![transaction((1, 2), Outcome::Aborted, &[append(KEY, 1)])];
        assert_eq!(found(risen, &[(KEY, &[1])]), [Kind::Value]);
    }

    #[test]
    fn half_of_an_unknown_transaction_is_found() {
        let half = vec![transaction(
            (1, 2),
            Outcome::Unknown,
            &[append(KEY, 1), append((1, 1), 2)],
        )];
        assert_eq!(found(half, &[(KEY, &[1]), ((1, 1), &[])]), [Kind::Torn]);
    }
}
