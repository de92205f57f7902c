//! Runs of pages (RUN1, RUN2 in `runs.rs`): what many pages cost, by count, and that each is what it is when it is read alone. `SEED=n`
//! repeats a run.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::{DatabaseId, Epoch, Moment, PageCount, PageSize, StagingId, Version};
use pagewire_server::store::{CommitOutcome, DatabaseCommit, PageStore as _, PageWrite};

use crate::servers::{SIZE, commit, content, name, number, part, with_two};

/// Pages of a run, as in `runs.rs`.
const RUN: u64 = 32;
/// Beside the pages of a read: the head, the record of the version, and the attempts.
const BESIDE: u64 = 3;

fn by_hand(options: &mut FoundationDbOptions) {
    options.collect_every = Duration::from_secs(3600);
}

async fn make(store: &FoundationDbStore, part: DatabaseCommit) {
    let made = CommitOutcome::Committed(vec![part.base.next()]);
    assert_eq!(commit(store, part).await, made);
}

fn writes(
    (database, epoch): (DatabaseId, Epoch),
    base: u64,
    count: u32,
    pages: impl IntoIterator<Item = u32>,
    stamp: u8,
) -> DatabaseCommit {
    let pages: Vec<_> = pages.into_iter().map(|page| (page, stamp)).collect();
    DatabaseCommit {
        page_count: PageCount::try_from(count).unwrap(),
        ..part(database, base, epoch, &pages)
    }
}

async fn new(store: &FoundationDbStore) -> (DatabaseId, Epoch) {
    let database = store.lookup(&name("a"), true).await.unwrap();
    (database, store.fence(database).await.unwrap())
}

async fn read(
    store: &FoundationDbStore,
    database: DatabaseId,
    version: u64,
    pages: impl IntoIterator<Item = u32>,
) -> Vec<u8> {
    let pages: Vec<_> = pages.into_iter().map(number).collect();
    let read = store.read(database, Version::new(version), &pages).await;
    let stamp =
        |page: pagewire_server::store::StoredPage| page.content.first().copied().unwrap_or(0);
    read.unwrap().into_iter().map(stamp).collect()
}

/// Ranges and rows that a read of pages costs, without what the server reads beside it, once in a while, to say that it lives.
async fn cost(
    store: &FoundationDbStore,
    database: DatabaseId,
    version: u64,
    pages: RangeInclusive<u32>,
) -> (u64, u64) {
    let mut least = (u64::MAX, u64::MAX);
    for _ in 0..5 {
        let before = (store.reads(), store.rows_read());
        read(store, database, version, pages.clone()).await;
        let now = (store.reads(), store.rows_read());
        least = least.min((now.0 - before.0 - BESIDE, now.1 - before.1));
    }
    least
}

/// Pages of any size that nothing makes smaller, the first so many, as the next version.
async fn make_random(
    store: &FoundationDbStore,
    (database, epoch): (DatabaseId, Epoch),
    base: u64,
    count: u32,
    size: u32,
    random: &mut Random,
) -> Vec<Bytes> {
    let contents: Vec<_> = (0..count).map(|_| random.bytes(size as usize)).collect();
    let write = |(page, content): (u32, &Bytes)| PageWrite {
        number: number(page),
        content: content.clone(),
    };
    let version = DatabaseCommit {
        page_size: PageSize::try_from(size).unwrap(),
        page_count: PageCount::try_from(count).unwrap(),
        pages: (1..).zip(&contents).map(write).collect(),
        ..part(database, base, epoch, &[])
    };
    make(store, version).await;
    contents
}

/// What a read of the first pages is, in bytes of rows: all of them, and the largest answer.
async fn bytes_of(
    store: &FoundationDbStore,
    database: DatabaseId,
    version: u64,
    expected: &[Bytes],
) -> (u64, u64) {
    let pages: Vec<_> = (1..=expected.len() as u32).map(number).collect();
    let (before, _) = (store.bytes_read(), store.most_read());
    let read = store.read(database, Version::new(version), &pages).await;
    let contents: Vec<_> = read.unwrap().into_iter().map(|page| page.content).collect();
    assert!(contents == expected, "another content in version {version}");
    (store.bytes_read() - before, store.most_read().0)
}

/// What a storage server answers at most, with the row that goes beyond it, and what a key and a value have beside the page.
const ANSWER: u64 = 80_000 + 65_536 + 256;

/// Cause: runs were bounded in rows alone. Damage: rows of 64 KiB were fetched by the client one answer after the other, and of long histories three times
/// as many as asked for, in one transaction of 5 s.
#[test]
fn run2_large_rows_are_bounded_in_bytes() {
    with_two(by_hand, |one, two| async move {
        let mut random = random();
        let a = new(&one).await;
        let mut versions = Vec::new();
        for base in 0..3 {
            versions.push(make_random(&one, a, base, 32, 65_536, &mut random).await);
        }
        for (version, expected) in (1..).zip(&versions) {
            let (all, largest) = bytes_of(&two, a.0, version, expected).await;
            assert!(largest <= ANSWER, "{largest} bytes in one answer");
            let asked = 32 * (65_536 + 256);
            let most = asked + 2 * ANSWER;
            assert!(all <= most, "{all} bytes read for {asked} asked for");
        }
    });
}

/// Cause: rows of another page size lie between those of a version. Damage: a read of small pages fetched the large ones that were there before.
#[test]
fn run2_pages_that_were_larger_once_are_not_read_along() {
    with_two(by_hand, |one, two| async move {
        let mut random = random();
        let a = new(&one).await;
        let large = make_random(&one, a, 0, 48, 65_536, &mut random).await;
        let small = make_random(&one, a, 1, 48, 512, &mut random).await;
        let (all, largest) = bytes_of(&two, a.0, 2, &small).await;
        assert!(largest <= ANSWER, "{largest} bytes in one answer");
        // Of each of two runs one answer.
        let most = 48 * (512 + 256) + 2 * ANSWER;
        assert!(all <= most, "{all} bytes read for 48 pages of 512");
        bytes_of(&two, a.0, 1, &large).await;
    });
}

/// Cause: pages under what a dead transaction wrote ahead were looked for one after the other. Damage: a read of 1024 of them took as many waits,
/// and longer than a transaction may.
#[test]
fn run2_pages_under_an_abandoned_attempt_are_looked_for_at_once() {
    let ahead = |options: &mut FoundationDbOptions| {
        by_hand(options);
        options.staging_buffer_bytes = 0;
    };
    with_two(ahead, |one, two| async move {
        let a = new(&one).await;
        for version in 1..=10 {
            make(&one, writes(a, version - 1, 64, 1..=64, version as u8)).await;
        }
        // Twice for some of them.
        for pages in [1..=64, 60..=64] {
            let staging = StagingId::random().unwrap();
            let write = |page| PageWrite {
                number: number(page),
                content: content(200),
            };
            let pages = pages.map(write).collect();
            one.stage(a.0, staging, SIZE, pages).await.unwrap();
        }
        make(&two, writes(a, 10, 64, [1], 11)).await;
        two.most_read();
        let (_, rows) = cost(&two, a.0, 11, 1..=64).await;
        let (_, at_once) = two.most_read();
        assert!(at_once >= 64 - 1, "{at_once} pages were looked for at once");
        // Three for each page, one more under the attempt, and some under both.
        let most = (3 + 1) * 64 + 5 * 8;
        assert!(rows <= most, "{rows} rows for 64 pages");
        let mut expected = [10; 64];
        expected[0] = 11;
        assert_eq!(read(&two, a.0, 11, 1..=64).await, expected);
        assert_eq!(read(&two, a.0, 10, 1..=64).await, [10; 64]);
    });
}

/// Cause: all sizes of a read shared one patience of 10 s, and each call began with 1024 pages again. Damage: a cluster that did fewer within 5 s than half of them
/// never answered.
#[test]
fn pace_a_read_is_halved_as_often_as_it_takes_and_that_is_remembered() {
    const PATIENCE: Duration = Duration::from_secs(4);
    let impatient = |options: &mut FoundationDbOptions| {
        by_hand(options);
        options.patience = PATIENCE;
    };
    with_two(impatient, |one, _two| async move {
        let a = new(&one).await;
        make(&one, writes(a, 0, 1024, 1..=1024, 1)).await;
        let pages: Vec<_> = (1..=1024).map(number).collect();
        // Two of them are longer than the patience.
        let slow = (256, PATIENCE * 5 / 9);
        let read = one.read_slowly(a.0, Version::new(1), &pages, slow).await;
        let read = read.unwrap();
        assert_eq!(read.len(), 1024);
        assert!(read.iter().all(|page| page.content == content(1)));
        // A read of the next call begins with what was found out.
        let begun = async |calls: u32| {
            let before = one.transactions();
            for _ in 0..calls {
                read_all(&one, a.0, 1).await;
            }
            let now = one.transactions();
            (now.0 - before.0) - (now.1 - before.1)
        };
        let next = begun(1).await;
        assert!(next >= 3, "{next} transactions for 1024 pages");
        // And is as large as ever, by and by. The beat may fall into them.
        begun(20).await;
        let later = begun(10).await;
        assert!(
            (9..=11).contains(&later),
            "{later} transactions for 10 reads"
        );
    });
}

async fn read_all(store: &FoundationDbStore, database: DatabaseId, stamp: u8) {
    assert_eq!(read(store, database, 1, 1..=1024).await, [stamp; 1024]);
}

/// Cause: what is compared at once was bounded in pages alone, and so was what a shrink asks for. Damage: 64 MiB and more in one transaction.
#[test]
fn large_pages_are_compared_and_asked_for_in_bounded_transactions() {
    with_two(by_hand, |one, _two| async move {
        let mut random = random();
        let a = new(&one).await;
        let size = PageSize::MAX.bytes() as u32;
        make_random(&one, a, 0, 96, size, &mut random).await;
        make_random(&one, a, 1, 96, size, &mut random).await;
        let before = one.transactions();
        let differ = one.diff(a.0, Version::new(1), Version::new(2), None, 1000);
        assert_eq!(differ.await.unwrap().len(), 96);
        let now = one.transactions();
        let begun = (now.0 - before.0) - (now.1 - before.1);
        // 32 pages of 64 KiB are 2 MiB; one more asks which they are.
        assert!((3..=5).contains(&begun), "{begun} transactions");
        let resized = |base, count| DatabaseCommit {
            page_size: PageSize::MAX,
            ..writes(a, base, count, [], 0)
        };
        // Some were never written now.
        make(&one, resized(2, 100)).await;
        let before = one.bytes_read();
        make(&one, resized(3, 10)).await;
        let read = one.bytes_read() - before;
        assert!(read < 1 << 20, "{read} bytes read by a commit that shrinks");
        make(&one, resized(4, 96)).await;
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_scan_is_one_range_read_for_each_run() {
    with_two(by_hand, |one, _two| async move {
        let a = new(&one).await;
        make(&one, writes(a, 0, 1024, 1..=1024, 1)).await;
        assert_eq!(cost(&one, a.0, 1, 1..=1024).await, (1024 / RUN, 1024));
        assert_eq!(cost(&one, a.0, 1, 5..=5).await, (1, 1));
        assert_eq!(cost(&one, a.0, 1, 5..=36).await, (1, 32));
        assert_eq!(cost(&one, a.0, 1, 5..=37).await, (2, 33));
        // A branch has next to nothing of its own: a range read that finds nothing, and one below it.
        let id = DatabaseId::random().unwrap();
        let now = Moment::Age(0);
        one.branch(a.0, &now, id, &name("b")).await.unwrap();
        let (reads, rows) = cost(&one, id, 1, 1..=1024).await;
        // And for the segment: what it stands on, the attempts there, and what that stands on.
        assert!(reads <= 2 * 1024 / RUN + 3, "{reads} reads of a branch");
        assert_eq!(rows, 1024);
    });
}

#[test]
fn run2_what_a_page_was_before_costs_at_most_as_much_again() {
    with_two(by_hand, |one, _two| async move {
        let a = new(&one).await;
        make(&one, writes(a, 0, 64, 1..=64, 1)).await;
        // Two versions of each: a second range read, and no single one.
        make(&one, writes(a, 1, 64, 1..=64, 2)).await;
        let (reads, rows) = cost(&one, a.0, 2, 1..=64).await;
        assert_eq!(reads, 2 * 2);
        assert!(rows <= 128, "{rows} rows");
        assert_eq!(read(&one, a.0, 2, 1..=64).await, [2; 64]);
        assert_eq!(read(&one, a.0, 1, 1..=64).await, [1; 64]);
    });
}

/// One page that each transaction writes, as the first of a table does, is read beside its neighbours.
#[test]
fn run2_a_long_history_is_left_after_one_range_read() {
    with_two(by_hand, |one, _two| async move {
        let a = new(&one).await;
        make(&one, writes(a, 0, 32, 1..=32, 1)).await;
        for version in 2..=100 {
            make(&one, writes(a, version - 1, 32, [20], version as u8)).await;
        }
        let (reads, rows) = cost(&one, a.0, 100, 1..=32).await;
        assert_eq!(reads, 2);
        assert!(rows <= 2 * RUN, "{rows} rows for 32 pages");
        // And backwards in time, where what came later is passed by.
        let (reads, rows) = cost(&one, a.0, 3, 1..=32).await;
        assert_eq!(reads, 2);
        assert!(rows <= 2 * RUN, "{rows} rows for 32 pages");
        let mut expected = [1; 32];
        expected[19] = 3;
        assert_eq!(read(&one, a.0, 3, 1..=32).await, expected);
    });
}

/// Long histories of all pages: the rest is read page by page.
#[test]
fn run2_a_run_of_long_histories_falls_back_to_single_pages() {
    with_two(by_hand, |one, _two| async move {
        let a = new(&one).await;
        for version in 1..=40 {
            make(&one, writes(a, version - 1, 32, 1..=32, version as u8)).await;
        }
        for version in [40, 17, 1] {
            let (reads, rows) = cost(&one, a.0, version, 1..=32).await;
            assert!(reads <= 2 + RUN, "{reads} reads for 32 pages");
            assert!(rows <= 3 * RUN, "{rows} rows for 32 pages");
            let stamps = read(&one, a.0, version, 1..=32).await;
            assert_eq!(stamps, [version as u8; 32], "version {version}");
        }
    });
}

/// The numbers of a linear congruential generator; enough to choose pages by.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u32) -> u32 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        ((self.0 >> 33) % u64::from(most)) as u32
    }

    fn bytes(&mut self, many: usize) -> Bytes {
        (0..many).map(|_| self.below(256) as u8).collect()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the seed of one run, to see it again"
)]
fn random() -> Random {
    let seed = std::env::var("SEED").map_or_else(
        |_| {
            u64::from_be_bytes(
                DatabaseId::random().unwrap().as_bytes()[..8]
                    .try_into()
                    .unwrap(),
            )
        },
        |seed| seed.parse().unwrap(),
    );
    println!("SEED={seed}");
    Random(seed)
}

/// Random histories with growth, shrinkage, holes, restores and branches: many pages together, in any order and some of them twice, are what
/// was written; so is each alone.
#[test]
fn run1_pages_together_are_what_each_is_alone() {
    with_two(by_hand, |one, two| async move {
        let mut random = random();
        let mut id = new(&one).await;
        // What each version of the database is.
        let mut versions: Vec<Vec<u8>> = vec![Vec::new()];
        for round in 0..120_u32 {
            let base = versions.len() as u64 - 1;
            let mut now = versions[base as usize].clone();
            match random.below(12) {
                0 if base > 1 => {
                    let from = 1 + random.below(base as u32);
                    now = versions[from as usize].clone();
                    let restore = DatabaseCommit {
                        restore: Some(Version::new(u64::from(from))),
                        ..writes(id, base, now.len() as u32, [], 0)
                    };
                    make(&one, restore).await;
                }
                1 if base > 1 => {
                    let branch = DatabaseId::random().unwrap();
                    let text = format!("b{round}");
                    let at = Moment::Version(Version::new(base));
                    one.branch(id.0, &at, branch, &name(&text)).await.unwrap();
                    id = (branch, one.fence(branch).await.unwrap());
                    versions = vec![Vec::new(), now];
                    continue;
                }
                _ => {
                    let count = match random.below(4) {
                        0 => 1 + random.below(100),
                        _ => (now.len() as u32).max(60),
                    };
                    now.resize(count as usize, 0);
                    let first = 1 + random.below(count);
                    let step = 1 + random.below(3);
                    let last = count.min(first + random.below(50));
                    let stamp = 1 + random.below(255) as u8;
                    let pages = (first..=last).step_by(step as usize);
                    for page in pages.clone() {
                        now[page as usize - 1] = stamp;
                    }
                    make(&one, writes(id, base, count, pages, stamp)).await;
                }
            }
            versions.push(now);
            for _ in 0..3 {
                let version = random.below(versions.len() as u32) as usize;
                let mut expected = versions[version].clone();
                expected.resize(110, 0);
                let mut asked: Vec<_> = (1..=110).filter(|_| random.below(8) > 0).collect();
                for _ in 0..random.below(20) {
                    let (from, to) = (random.below(80) as usize, random.below(80) as usize);
                    asked.swap(from, to);
                    asked.push(asked[from]);
                }
                let stamps: Vec<_> = asked
                    .iter()
                    .map(|page| expected[*page as usize - 1])
                    .collect();
                let found = read(&two, id.0, version as u64, asked.iter().copied()).await;
                assert_eq!(
                    found, stamps,
                    "version {version} in round {round}: {asked:?}"
                );
                let page = 1 + random.below(110);
                let alone = read(&two, id.0, version as u64, [page]).await;
                assert_eq!(alone, [expected[page as usize - 1]], "page {page}");
            }
        }
        assert_eq!(one.audit().await.unwrap(), Vec::<String>::new());
    });
}
