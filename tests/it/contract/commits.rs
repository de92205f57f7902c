//! Transactions through the C interface, their calls in random orders, beside a model of the bytes: what reaches the commit point is what everybody reads
//! from then on, and nothing else is.
//!
//! Two files of one database take turns. Each transaction writes and cuts as it likes, with batches that are begun, rolled back and
//! ended wherever, and ends in any way: committed with the change counter moved or not, at once or after hints and syncs, with
//! and without COMMIT_PHASETWO, rolled back before the commit point or behind it, or left. What a file reads is its own view at
//! any time, and what a third one reads, opened for it, is what was committed last.

use std::ffi::c_int;
use std::ptr;

use pagewire_tests::connection::{assert_sound, number, open};
use pagewire_tests::random::Random;
use pagewire_tests::server::PageServer;
use rusqlite::ffi;

use super::raw::{Name, RawFile};
use super::{EXCLUSIVE, MAIN, NONE, PAGE, RESERVED, SHARED, filled, length, primary};

const COUNTER: usize = 24;
const COUNT: usize = 28;
const VALID_FOR: usize = 92;
const MOST: usize = 24 * PAGE;

/// Bytes of a database, but for the change counter, which is derived from the version.
#[derive(Clone, PartialEq, Eq)]
struct Content(Vec<u8>);

impl Content {
    fn of(mut bytes: Vec<u8>) -> Self {
        for at in [COUNTER, VALID_FOR] {
            if bytes.len() >= at + 4 {
                bytes[at..at + 4].fill(0);
            }
        }
        Self(bytes)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    #[track_caller]
    fn assert_is(&self, other: &Self) {
        assert_eq!(self.len(), other.len(), "the size");
        let differs = self.0.iter().zip(&other.0).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the place of the first byte that differs");
    }
}

/// What a file has to have.
enum State {
    Idle,
    Reading(Version),
    Writing(Transaction),
    /// Beyond the commit point; SQLite could still roll it back.
    Durable {
        before: Version,
        now: Version,
    },
    /// Left without a COMMIT_PHASETWO: it refuses until it is closed.
    Refusing,
}

#[derive(Clone)]
struct Version {
    number: usize,
    content: Content,
}

struct Transaction {
    base: Version,
    now: Content,
    has_written: bool,
    is_cut: bool,
    /// Whether a batch began before anything was written, where one has begun.
    batch: Option<bool>,
}

impl Transaction {
    fn on(base: Version) -> Self {
        Self {
            now: base.content.clone(),
            base,
            has_written: false,
            is_cut: false,
            batch: None,
        }
    }
}

fn offset(at: usize) -> i64 {
    i64::try_from(at).expect("an offset")
}

fn control(file: &mut RawFile, op: c_int) {
    assert_eq!(file.control(op, ptr::null_mut()), ffi::SQLITE_OK, "{op}");
}

/// Reads all of it, from no memory of this connection.
fn whole(name: &Name) -> Content {
    let mut file = RawFile::open(name.0, MAIN).expect("open");
    assert_eq!(file.lock(SHARED), ffi::SQLITE_OK);
    let size = length(&mut file);
    let (rc, bytes) = file.read(size, 0);
    assert_eq!(rc, ffi::SQLITE_OK);
    Content::of(bytes)
}

struct Bench<'a> {
    random: Random,
    names: [&'a Name; 3],
    files: Vec<RawFile>,
    states: [State; 2],
    newest: Version,
    /// How often what happened.
    commits: usize,
    rollbacks: usize,
    batches_rolled_back: usize,
    refusals: usize,
    busy: usize,
}

impl Bench<'_> {
    fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit as u64) as usize
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }

    fn take(&mut self, who: usize) -> State {
        std::mem::replace(&mut self.states[who], State::Idle)
    }

    /// Some bytes of what it has to see.
    fn read(&mut self, who: usize, content: &Content) {
        let at = self.below(content.len());
        let amount = self.below(2 * PAGE) + 1;
        let there = amount.min(content.len() - at);
        let file = &mut self.files[who];
        // Whole pages, so that the counter is where it can be left out.
        let start = at / PAGE * PAGE;
        let end = (at + there).next_multiple_of(PAGE).min(content.len());
        let (rc, bytes) = file.read(end - start, offset(start));
        assert_eq!(rc, ffi::SQLITE_OK);
        let wanted = content.0[start..end].to_vec();
        let bytes = match start {
            0 => Content::of(bytes).0,
            _ => bytes,
        };
        assert!(bytes == wanted, "{start}..{end} of {}", content.len());
    }

    fn step(&mut self, who: usize) {
        self.states[who] = match self.take(who) {
            State::Idle => self.idle(who),
            State::Reading(version) => self.reading(who, version),
            State::Writing(transaction) => self.writing(who, transaction),
            State::Durable { before, now } => self.durable(who, before, now),
            State::Refusing => self.refusing(who),
        };
    }

    fn idle(&mut self, who: usize) -> State {
        if self.one_in(3) {
            let file = &mut self.files[who];
            assert_eq!(file.commit(), ffi::SQLITE_OK);
            assert_eq!(file.sync(), ffi::SQLITE_OK);
            assert_ne!(file.write(&[1; PAGE], 0), ffi::SQLITE_OK);
            control(file, ffi::SQLITE_FCNTL_COMMIT_PHASETWO);
            assert_eq!(file.unlock(NONE), ffi::SQLITE_OK);
            return State::Idle;
        }
        assert_eq!(self.files[who].lock(SHARED), ffi::SQLITE_OK);
        State::Reading(self.newest.clone())
    }

    fn reading(&mut self, who: usize, version: Version) -> State {
        match self.below(6) {
            0 => self.read(who, &version.content),
            1 => {
                assert_eq!(self.files[who].commit(), ffi::SQLITE_OK);
                assert_ne!(self.files[who].write(&[1; 9], 0), ffi::SQLITE_OK);
            }
            2 => {
                assert_eq!(self.files[who].unlock(NONE), ffi::SQLITE_OK);
                return State::Idle;
            }
            _ => {
                let level = [RESERVED, EXCLUSIVE][self.below(2)];
                let rc = self.files[who].lock(level);
                let is_held = matches!(
                    self.states[1 - who],
                    State::Writing(_) | State::Durable { .. }
                );
                if is_held || version.number != self.newest.number {
                    assert_eq!(primary(rc), ffi::SQLITE_BUSY, "{rc}");
                    self.busy += 1;
                    assert_eq!(self.files[who].unlock(NONE), ffi::SQLITE_OK);
                    return State::Idle;
                }
                assert_eq!(rc, ffi::SQLITE_OK);
                let mut of = Transaction::on(version);
                if self.one_in(3) {
                    let op = ffi::SQLITE_FCNTL_BEGIN_ATOMIC_WRITE;
                    control(&mut self.files[who], op);
                    of.batch = Some(true);
                }
                return State::Writing(of);
            }
        }
        State::Reading(version)
    }

    fn put(&mut self, who: usize, now: &mut Content, bytes: &[u8], at: usize) {
        assert_eq!(self.files[who].write(bytes, offset(at)), ffi::SQLITE_OK);
        if now.len() < at + bytes.len() {
            now.0.resize(at + bytes.len(), 0);
        }
        now.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn writing(&mut self, who: usize, mut of: Transaction) -> State {
        match self.below(16) {
            0..5 => {
                // Anywhere but in the header; beyond the end only where nothing was cut off, for what comes between are zeros.
                let beyond = if of.is_cut { 1 } else { 2 * PAGE };
                let at = 100 + self.below(of.now.len() + beyond - 100);
                let amount = match self.one_in(2) {
                    true => self.below(PAGE / 2) + 1,
                    false => PAGE,
                };
                if at + amount <= MOST {
                    let bytes = vec![self.random.number() as u8; amount];
                    self.put(who, &mut of.now, &bytes, at);
                    of.has_written = true;
                }
            }
            5 | 6 => self.read(who, &of.now),
            7 => assert_eq!(length(&mut self.files[who]), of.now.len()),
            8 => {
                let pages = of.now.len() / PAGE;
                let size = (1 + self.below(pages)) * PAGE;
                if self.one_in(2) && size < of.now.len() {
                    assert_eq!(self.files[who].truncate(offset(size)), ffi::SQLITE_OK);
                    of.now.0.truncate(size);
                    of.has_written = true;
                    of.is_cut = true;
                }
            }
            9 => {
                control(&mut self.files[who], ffi::SQLITE_FCNTL_BEGIN_ATOMIC_WRITE);
                of.batch = (!of.is_cut).then_some(!of.has_written);
            }
            10 => control(&mut self.files[who], ffi::SQLITE_FCNTL_COMMIT_ATOMIC_WRITE),
            11 => {
                // Nothing of a batch that began the transaction counts; else SQLite writes its pages again.
                if let Some(was_clean) = of.batch {
                    let op = ffi::SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE;
                    control(&mut self.files[who], op);
                    if was_clean {
                        self.batches_rolled_back += usize::from(of.has_written);
                        of = Transaction::on(of.base);
                    }
                }
            }
            12 => {
                // Left before its commit point.
                let down_to = [NONE, SHARED][self.below(2)];
                assert_eq!(self.files[who].sync(), ffi::SQLITE_OK);
                assert_eq!(self.files[who].unlock(down_to), ffi::SQLITE_OK);
                return match down_to {
                    SHARED => State::Reading(of.base),
                    _ => State::Idle,
                };
            }
            _ => return self.commit(who, of),
        }
        State::Writing(of)
    }

    /// To the commit point, as SQLite goes there: whole pages, and a page 1 that says how many.
    fn commit(&mut self, who: usize, mut of: Transaction) -> State {
        let rest = of.now.len().next_multiple_of(PAGE) - of.now.len();
        if rest > 0 {
            let end = of.now.len();
            self.put(who, &mut of.now, &vec![0; rest], end);
        }
        let is_resized = of.now.len() != of.base.content.len();
        // In exclusive locking mode the counter stands still.
        let is_counted = is_resized || self.one_in(2);
        if is_counted {
            let (rc, header) = self.files[who].read(100, 0);
            assert_eq!(rc, ffi::SQLITE_OK);
            let counter: [u8; 4] = *header[COUNTER..].first_chunk().expect("a header");
            let counter = (u32::from_be_bytes(counter) + 1).to_be_bytes();
            let pages = u32::try_from(of.now.len() / PAGE).expect("a few");
            assert_eq!(
                self.files[who].write(&counter, offset(COUNTER)),
                ffi::SQLITE_OK
            );
            assert_eq!(
                self.files[who].write(&counter, offset(VALID_FOR)),
                ffi::SQLITE_OK
            );
            self.put(who, &mut of.now, &pages.to_be_bytes(), COUNT);
        }
        if self.one_in(2) {
            control(&mut self.files[who], ffi::SQLITE_FCNTL_COMMIT_ATOMIC_WRITE);
        }
        assert_eq!(self.files[who].commit(), ffi::SQLITE_OK);
        if self.one_in(2) {
            assert_eq!(self.files[who].sync(), ffi::SQLITE_OK);
        }
        if !is_counted && of.now == of.base.content {
            // As a rollback that was written back: there is no new version.
            self.look();
            return State::Writing(of);
        }
        let now = self.made(of.now);
        State::Durable {
            before: of.base,
            now,
        }
    }

    /// There is a new version, for everybody.
    fn made(&mut self, content: Content) -> Version {
        self.commits += 1;
        self.newest = Version {
            number: self.newest.number + 1,
            content,
        };
        self.look();
        self.newest.clone()
    }

    #[track_caller]
    fn look(&self) {
        whole(self.names[2]).assert_is(&self.newest.content);
    }

    fn durable(&mut self, who: usize, before: Version, now: Version) -> State {
        match self.below(8) {
            0 => {
                self.read(who, &now.content);
                State::Durable { before, now }
            }
            1 => {
                assert_eq!(self.files[who].unlock(NONE), ffi::SQLITE_OK);
                State::Refusing
            }
            2 if before.content.len() == now.content.len() => {
                // It failed behind the commit point: the pages as they were are written back.
                let same = before.content.clone();
                for (index, page) in same.0.chunks(PAGE).enumerate() {
                    let at = index * PAGE;
                    if index == 0 || *page != now.content.0[at..at + PAGE] {
                        let rc = self.files[who].write(page, offset(at));
                        assert_eq!(rc, ffi::SQLITE_OK);
                    }
                }
                assert_eq!(self.files[who].commit(), ffi::SQLITE_OK);
                self.rollbacks += 1;
                let now = self.made(same);
                State::Writing(Transaction::on(now))
            }
            _ => {
                if now.content.len() < before.content.len() {
                    let size = offset(now.content.len());
                    assert_eq!(self.files[who].truncate(size), ffi::SQLITE_OK);
                }
                let op = ffi::SQLITE_FCNTL_COMMIT_PHASETWO;
                control(&mut self.files[who], op);
                assert_eq!(length(&mut self.files[who]), now.content.len());
                match self.below(3) {
                    // In exclusive locking mode it goes on.
                    0 => State::Writing(Transaction::on(now)),
                    1 => {
                        assert_eq!(self.files[who].unlock(SHARED), ffi::SQLITE_OK);
                        State::Reading(now)
                    }
                    _ => {
                        assert_eq!(self.files[who].unlock(NONE), ffi::SQLITE_OK);
                        State::Idle
                    }
                }
            }
        }
    }

    fn refusing(&mut self, who: usize) -> State {
        self.refusals += 1;
        let file = &mut self.files[who];
        assert_ne!(file.lock(SHARED), ffi::SQLITE_OK);
        assert_ne!(file.write(&[1; PAGE], 0), ffi::SQLITE_OK);
        assert_eq!(file.unlock(NONE), ffi::SQLITE_OK);
        self.look();
        self.files[who] = RawFile::open(self.names[who].0, MAIN).expect("open");
        State::Idle
    }
}

#[test]
fn any_order_of_calls_leaves_the_database_what_its_commits_made_it() {
    let server = PageServer::versioned();
    filled(&server);
    let names = [(); 3].map(|()| Name::of(&server, c"t.db"));
    let first = whole(&names[0]);
    let mut bench = Bench {
        random: Random::start(),
        files: (0..2)
            .map(|who: usize| RawFile::open(names[who].0, MAIN).expect("open"))
            .collect(),
        names: [&names[0], &names[1], &names[2]],
        states: [State::Idle, State::Idle],
        newest: Version {
            number: 0,
            content: first.clone(),
        },
        commits: 0,
        rollbacks: 0,
        batches_rolled_back: 0,
        refusals: 0,
        busy: 0,
    };
    for _ in 0..3000 {
        let who = bench.below(2);
        bench.step(who);
    }
    let Bench {
        newest,
        commits,
        rollbacks,
        batches_rolled_back,
        refusals,
        busy,
        files,
        ..
    } = bench;
    println!(
        "{commits} commits, {rollbacks} of them back, {batches_rolled_back} batches rolled back, {refusals} refusals, {busy} busy"
    );
    assert!(commits > 50 && rollbacks > 0 && batches_rolled_back > 0 && refusals > 0 && busy > 10);
    drop(files);
    whole(&names[2]).assert_is(&newest.content);
    // SQLite reads it again once it is as it was.
    let mut main = RawFile::open(names[0].0, MAIN).expect("open");
    assert_eq!(main.lock(EXCLUSIVE), ffi::SQLITE_OK);
    let mut bytes = first.0;
    bytes[COUNTER..COUNTER + 4].fill(0xee);
    bytes[VALID_FOR..VALID_FOR + 4].fill(0xee);
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        assert_eq!(main.write(page, offset(index * PAGE)), ffi::SQLITE_OK);
    }
    assert_eq!(main.commit(), ffi::SQLITE_OK);
    control(&mut main, ffi::SQLITE_FCNTL_COMMIT_PHASETWO);
    drop(main);
    let looks = open(&server.endpoint(), "t.db");
    assert_eq!(number(&looks, "SELECT count(*) FROM t"), 300);
    assert_sound(&looks);
}
