//! The core of the library without SQLite: transactions on raw pages, with the faults that everybody has.
//!
//! Each page is a list that carries its database, its number and a checksum, so the checker of the lists (`check.rs`) is that of the pages:
//! strictly serializable for each database, acknowledged is there at the end, aborted never, unknown in all or none. Beside that, here:
//! * a page is the one that was asked for, whole, and of this database;
//! * page 1 says how long the database is, and what its last pages have: a size without its content, or the other way round, is half of a transaction;
//! * a rollback, and a commit that failed, leave what was there before in the same snapshot.

use std::collections::BTreeMap;

use pagewire::simulation::Kind as Reported;
use pagewire::simulation::pages::{Error, LockLevel, PageFile, ReadOutcome, commit_together};

use super::{Client, cache, timed};
use crate::blame;
use crate::counts::{Event, count};
use crate::finding::Kind;
use crate::history::{self, Key, Outcome, Step};
use crate::machine;
use crate::plan::{self, Phase, Plan};

/// The first of these databases, in histories and names.
pub const FIRST: usize = 100;
const DATABASES: usize = 2;
/// Pages with lists, in each: a transaction that writes to all of them is staged.
const PAGES: u32 = 20;
/// Further ones at most, as page 1 says.
const MOST_MORE: u64 = 4;
const PAGE_BYTES: usize = 8192;
const MAGIC: &[u8; 8] = b"pagelist";
const LENGTH: std::ops::Range<usize> = 16..24;
const CHECKSUM: std::ops::Range<usize> = 24..32;
const VALUES: usize = 32;
/// Values of a page.
const MOST_VALUES: usize = (PAGE_BYTES - VALUES) / 8;
/// How often a lock is tried.
const TRIES: u32 = 6;
const MS: u64 = 1_000_000;

/// Both databases, as one thread has them open.
pub struct Files {
    files: Vec<PageFile>,
    staleness: u64,
}

/// What a transaction found before it wrote.
#[derive(Default)]
struct Seen {
    /// The lists of the snapshot.
    before: BTreeMap<Key, Vec<u64>>,
    /// The same with what the transaction has written.
    now: BTreeMap<Key, Vec<u64>>,
}

/// What a page is that has such a list.
fn page(database: usize, number: u32, list: &[u64]) -> Vec<u8> {
    // What is behind the list is the same in all contents of a page, so that a list can be written in parts.
    let mut bytes = vec![(database as u32 + number) as u8; PAGE_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&(database as u32).to_le_bytes());
    bytes[12..16].copy_from_slice(&number.to_le_bytes());
    bytes[LENGTH].copy_from_slice(&(list.len() as u64).to_le_bytes());
    for (value, place) in list.iter().zip(bytes[VALUES..].chunks_exact_mut(8)) {
        place.copy_from_slice(&value.to_le_bytes());
    }
    let sum = list.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, value| {
        (sum ^ value).wrapping_mul(0x0100_0000_01b3)
    });
    bytes[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The list of a page, if it is that page in any of its contents.
fn list_of(database: usize, number: u32, bytes: &[u8]) -> Option<Vec<u64>> {
    let word = |place: &[u8]| place.try_into().map(u64::from_le_bytes).ok();
    let length = usize::try_from(word(bytes.get(LENGTH)?)?).ok()?;
    let values = bytes.get(VALUES..)?.chunks_exact(8).take(length);
    let list: Vec<u64> = values.filter_map(word).collect();
    (length <= MOST_VALUES && page(database, number, &list) == bytes).then_some(list)
}

fn offset(number: u32) -> u64 {
    u64::from(number - 1) * PAGE_BYTES as u64
}

/// Pages of a database whose page 1 has this list.
fn pages_by(first: &[u64]) -> u32 {
    PAGES + first.last().map_or(0, |last| last % (MOST_MORE + 1)) as u32
}

fn key(at: usize, number: u32) -> Key {
    (FIRST + at, i64::from(number))
}

fn open(
    nodes: &[usize],
    at: usize,
    more: &[(&str, String)],
    owner: usize,
) -> Result<PageFile, Error> {
    let read_only = more.iter().any(|(name, _)| *name == "mode");
    let mut parameters = vec![
        ("endpoint", super::endpoint(nodes)),
        ("timeout_ms", plan::get().timeout_ms.to_string()),
    ];
    parameters.extend_from_slice(more);
    PageFile::open(&format!("pages{at}"), &parameters, read_only, owner)
}

/// Reads a page that has to be there, and what is wrong with it.
fn read(file: &PageFile, at: usize, number: u32) -> Result<Vec<u64>, Error> {
    let mut bytes = vec![0xaa; PAGE_BYTES];
    let outcome = timed("reading a page", || file.read(&mut bytes, offset(number)))?;
    count(Event::PagesRead);
    let found = list_of(FIRST + at, number, &bytes).filter(|_| outcome == ReadOutcome::Full);
    Ok(found.unwrap_or_else(|| {
        let is_of = |other| list_of(FIRST + other, number, &bytes).is_some();
        let kind = match (0..DATABASES).any(is_of) {
            true => Kind::Foreign,
            false => Kind::Value,
        };
        history::violation(
            kind,
            format!(
                "page {number} of pages{at} at version {:?} is no content of it: {outcome:?}, {:?}",
                file.version(),
                bytes.get(..48)
            ),
        );
        Vec::new()
    }))
}

fn write(file: &PageFile, bytes: &[u8], offset: u64) -> Result<(), Error> {
    timed("writing a page", || file.write(bytes, offset))
}

/// That the size is what page 1 says, and the last pages too.
fn check_size(file: &PageFile, at: usize, first: &[u64]) -> Result<(), Error> {
    let pages = pages_by(first);
    let bytes = file.byte_size();
    if bytes != u64::from(pages) * PAGE_BYTES as u64 {
        history::violation(
            Kind::Torn,
            format!(
                "pages{at} at version {:?} has {bytes} bytes, page 1 says {pages} pages",
                file.version()
            ),
        );
        return Ok(());
    }
    for number in PAGES + 1..=pages {
        let list = read(file, at, number)?;
        if list != first[first.len() - 1..] {
            history::violation(
                Kind::Torn,
                format!(
                    "page {number} of pages{at} at version {:?} is of {list:?}, page 1 of {:?}",
                    file.version(),
                    first.last()
                ),
            );
        }
    }
    Ok(())
}

/// Makes the databases, each page with an empty list.
pub fn prepare() -> Result<(), Error> {
    for at in 0..DATABASES {
        let file = open(&[0], at, &[], 1)?;
        file.lock(LockLevel::Shared)?;
        if file.byte_size() == 0 {
            file.lock(LockLevel::Exclusive)?;
            for number in 1..=PAGES {
                file.write(&page(FIRST + at, number, &[]), offset(number))?;
            }
            file.commit()?;
            file.is_over();
        }
        file.unlock(LockLevel::None);
    }
    Ok(())
}

/// The lists as a process finds them that knows nothing.
pub fn final_look() -> Result<BTreeMap<Key, Vec<u64>>, Error> {
    let mut found = BTreeMap::new();
    for at in 0..DATABASES {
        let file = open(&[0], at, &[], 1)?;
        file.lock(LockLevel::Shared)?;
        for number in 1..=PAGES {
            found.insert(key(at, number), read(&file, at, number)?);
        }
        check_size(&file, at, &found[&key(at, 1)])?;
        file.unlock(LockLevel::None);
    }
    Ok(found)
}

/// What became of a commit that failed.
fn outcome_of(error: &Error) -> Outcome {
    match error.kind {
        Reported::OutcomeUnknown => Outcome::Unknown,
        _ => Outcome::Aborted,
    }
}

impl Client {
    /// A transaction of any kind; whether it came to its end.
    pub(super) fn pages(&mut self, plan: &Plan) -> bool {
        let reading = self.random.percent(35);
        let files = match self.pages_files(plan, reading) {
            Ok(files) => files,
            Err(error) => {
                blame::judge_pages("opening pages", &error);
                return false;
            }
        };
        let transaction = history::begin(self.process, machine::now(), files.staleness);
        if files.staleness > 0 {
            count(Event::Bounded);
        }
        machine::trace(format_args!(
            "transaction {transaction} on pages begins, reading: {reading}"
        ));
        let mut seen = Seen::default();
        let done = self
            .pages_steps(plan, &files, transaction, reading, &mut seen)
            .and_then(|is_wanted| match is_wanted {
                true => self.pages_commit(&files, transaction),
                false => Ok(Outcome::Aborted),
            });
        let outcome = match &done {
            Ok(outcome) => *outcome,
            Err(error) => outcome_of(error),
        };
        machine::trace(format_args!(
            "transaction {transaction} {outcome:?} {:?}",
            done.as_ref().err()
        ));
        let message = done.as_ref().err().map(ToString::to_string);
        history::end(transaction, machine::now(), outcome, message);
        count(match outcome {
            Outcome::Ok => Event::PagesCommitted,
            Outcome::Aborted => Event::PagesAborted,
            Outcome::Unknown => Event::PagesUnknown,
        });
        let is_fine = match &done {
            Ok(_) => true,
            Err(error) => {
                blame::judge_pages("a transaction on pages", error);
                false
            }
        };
        self.pages_aftermath(&files, outcome, &seen);
        for file in &files.files {
            file.unlock(LockLevel::None);
        }
        // Some errors last as long as the file is open.
        if is_fine || self.random.percent(60) {
            self.files[usize::from(reading)] = Some(files);
        }
        is_fine
    }

    /// Open files, of which there may be some already.
    fn pages_files(&mut self, plan: &Plan, reading: bool) -> Result<Files, Error> {
        if let Some(files) = self.files[usize::from(reading)].take()
            && !self.random.percent(10)
        {
            return Ok(files);
        }
        let mut more = Vec::new();
        let mut staleness = 0;
        if reading && plan.store.keeps_versions() && self.random.percent(50) {
            more.push(("mode", "ro".to_owned()));
        }
        if reading && self.random.percent(30) {
            let ms = self.random.between(1, 2 * plan.ttl_ms);
            staleness = ms * MS;
            more.push(("consistency", "bounded".to_owned()));
            more.push(("max_staleness_ms", ms.to_string()));
        }
        if let Some(folder) = cache::setting(self.place) {
            more.push(("cache_dir", folder));
        }
        let subscribe = *self.random.one_of(&["auto", "always", "always", "never"]);
        more.push(("subscribe", subscribe.to_owned()));
        let nodes = self.nodes();
        let mut files = Vec::new();
        for at in 0..DATABASES {
            let owner = self.thread + 1;
            files.push(timed("opening pages", || open(&nodes, at, &more, owner))?);
        }
        Ok(Files { files, staleness })
    }

    /// Tries for a lock for a while, as a busy handler does.
    fn pages_lock(&mut self, file: &PageFile, level: LockLevel) -> Result<(), Error> {
        for tried in 1.. {
            let done = timed("a lock", || file.lock(level));
            match done {
                Err(error) if error.kind == Reported::Busy && tried < TRIES => {
                    count(Event::Busy);
                    machine::sleep_ns(self.random.below(40 * MS));
                }
                done => {
                    done?;
                    break;
                }
            }
        }
        if file.level() < level {
            history::violation(
                Kind::Value,
                format!("a lock {level:?} was given, and it is {:?}", file.level()),
            );
        }
        Ok(())
    }

    /// What comes before the commit; whether it is wanted.
    fn pages_steps(
        &mut self,
        plan: &Plan,
        files: &Files,
        transaction: usize,
        reading: bool,
        seen: &mut Seen,
    ) -> Result<bool, Error> {
        let mut chosen: Vec<usize> = (0..DATABASES).collect();
        if self.random.percent(50) {
            chosen.reverse();
        }
        if self.random.percent(60) {
            chosen.truncate(1);
        }
        let is_immediate = !reading && self.random.percent(60);
        for at in &chosen {
            let file = &files.files[*at];
            self.pages_lock(file, LockLevel::Shared)?;
            if is_immediate {
                self.pages_lock(file, LockLevel::Reserved)?;
            }
        }
        let is_large = !reading && self.random.percent(15);
        for _ in 0..self.random.between(1, 5) {
            let at = *self.random.one_of(&chosen);
            let number = self.random.between(1, u64::from(PAGES)) as u32;
            let file = &files.files[at];
            if reading || self.random.percent(40) {
                self.pages_read(file, transaction, (at, number), seen)?;
            } else {
                self.pages_append(file, transaction, (at, number), seen)?;
            }
            if self.random.percent(30) {
                let most = if self.random.percent(10) {
                    3 * plan.ttl_ms
                } else {
                    30
                };
                machine::sleep_ns(self.random.below(most * MS));
            }
        }
        if is_large {
            let at = chosen[0];
            for number in 1..=PAGES {
                self.pages_append(&files.files[at], transaction, (at, number), seen)?;
            }
            count(Event::PagesLarge);
        }
        for at in &chosen {
            let file = &files.files[*at];
            let first = self.pages_read(file, transaction, (*at, 1), seen)?;
            check_size(file, *at, &first)?;
            if file.level() >= LockLevel::Reserved && self.random.percent(50) {
                let level = *self
                    .random
                    .one_of(&[LockLevel::Pending, LockLevel::Exclusive]);
                self.pages_lock(file, level)?;
            }
        }
        let is_wanted = reading || !self.random.percent(12);
        if !is_wanted {
            count(Event::PagesRolledBack);
        }
        Ok(is_wanted)
    }

    /// Reads a page and tells it.
    fn pages_read(
        &mut self,
        file: &PageFile,
        transaction: usize,
        (at, number): (usize, u32),
        seen: &mut Seen,
    ) -> Result<Vec<u64>, Error> {
        let list = read(file, at, number)?;
        history::step(transaction, Step::Read(key(at, number), list.clone()));
        seen.before
            .entry(key(at, number))
            .or_insert_with(|| list.clone());
        seen.now.insert(key(at, number), list.clone());
        Ok(list)
    }

    /// Adds a value to a page, and makes the database as long as page 1 says.
    fn pages_append(
        &mut self,
        file: &PageFile,
        transaction: usize,
        (at, number): (usize, u32),
        seen: &mut Seen,
    ) -> Result<(), Error> {
        self.pages_lock(file, LockLevel::Reserved)?;
        let mut list = self.pages_read(file, transaction, (at, number), seen)?;
        if list.len() == MOST_VALUES {
            return Ok(());
        }
        let value = self.next_value();
        history::step(transaction, Step::Append(key(at, number), value));
        let last = VALUES + 8 * list.len();
        list.push(value);
        let bytes = page(FIRST + at, number, &list);
        let begin = offset(number);
        if self.random.percent(70) {
            write(file, &bytes, begin)?;
        } else {
            // Parts of a page, the rest of which comes from below.
            write(file, &bytes[last..last + 8], begin + last as u64)?;
            write(
                file,
                &bytes[LENGTH.start..CHECKSUM.end],
                begin + LENGTH.start as u64,
            )?;
        }
        count(Event::PagesWritten);
        if number == 1 {
            let pages = pages_by(&list);
            let size = u64::from(pages) * PAGE_BYTES as u64;
            if size < file.byte_size() {
                timed("truncating", || file.truncate(size))?;
                count(Event::PagesCut);
            }
            for number in PAGES + 1..=pages {
                write(file, &page(FIRST + at, number, &[value]), offset(number))?;
            }
        }
        seen.now.insert(key(at, number), list);
        Ok(())
    }

    /// Commits what has been written.
    fn pages_commit(&mut self, files: &Files, transaction: usize) -> Result<Outcome, Error> {
        let writing = |file: &&PageFile| file.level() >= LockLevel::Reserved;
        let written: Vec<&PageFile> = files.files.iter().filter(writing).collect();
        if !written.is_empty() {
            self.may_lose_the_commit();
        }
        machine::trace(format_args!(
            "transaction {transaction} commits {} databases",
            written.len()
        ));
        match written[..] {
            [] => {}
            [file] => timed("a commit", || file.commit())?,
            _ => {
                timed("a commit over two", || commit_together(&written))?;
                count(Event::PagesCommittedTwo);
            }
        }
        for file in written {
            file.is_over();
        }
        Ok(Outcome::Ok)
    }

    /// What the same files say behind the end, before they are unlocked.
    fn pages_aftermath(&mut self, files: &Files, outcome: Outcome, seen: &Seen) {
        if !self.random.percent(40) || plan::phase() == Phase::Over {
            return;
        }
        for ((database, number), before) in &seen.before {
            let at = database - FIRST;
            let file = &files.files[at];
            let is_committed = outcome == Outcome::Ok;
            if !is_committed {
                // A rollback; behind a commit that failed there may be none.
                file.unlock(LockLevel::Shared);
            }
            if file.level() < LockLevel::Shared || self.random.percent(50) {
                continue;
            }
            let expected = match is_committed {
                true => &seen.now[&(*database, *number)],
                false => before,
            };
            match read(file, at, *number as u32) {
                Ok(list) if list == *expected => count(Event::PagesLookedBehind),
                Ok(list) => history::violation(
                    Kind::Snapshot,
                    format!(
                        "page {number} of pages{at} is {list:?} behind the end ({outcome:?}) of a transaction, and has to be {expected:?}"
                    ),
                ),
                Err(error) => blame::judge_pages("reading behind the end", &error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_database_its_number_and_every_byte() {
        let bytes = page(FIRST, 3, &[7, 8]);
        assert_eq!(list_of(FIRST, 3, &bytes), Some(vec![7, 8]));
        assert_eq!(list_of(FIRST + 1, 3, &bytes), None);
        assert_eq!(list_of(FIRST, 4, &bytes), None);
        for place in 0..PAGE_BYTES {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            assert_eq!(list_of(FIRST, 3, &damaged), None, "{place}");
        }
        let full: Vec<u64> = (0..MOST_VALUES as u64).collect();
        assert_eq!(list_of(FIRST, 1, &page(FIRST, 1, &full)), Some(full));
    }

    #[test]
    fn the_size_of_a_database_is_that_of_the_last_value_of_page_1() {
        assert_eq!(pages_by(&[]), PAGES);
        assert_eq!(pages_by(&[4, 7]), PAGES + 2);
        assert_eq!(pages_by(&[4]), PAGES + 4);
    }
}
