//! What versions, branches and collection take on the disk and at reading: space that comes back, depth that is bounded,
//! branches that cost the same at any size.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{Moment, PageNumber, PageSize, TagName, UnixMillis, Version};
use pagewire_server::clock::ManualClock;
use pagewire_server::store::PageStore;

use crate::bench::{
    SIZE, branch, collect, commit, commit_part, content, database, name, part, read, restore,
};

fn open(directory: &Path, retention: Option<Duration>, clock: &ManualClock) -> LocalStore {
    let options = LocalOptions {
        retention,
        clock: clock.clock(),
        ..LocalOptions::default()
    };
    LocalStore::open_with(directory, options).unwrap()
}

fn file_bytes(directory: &Path) -> u64 {
    std::fs::metadata(directory.join("data.mdb")).unwrap().len()
}

/// Without anybody asking for a collection.
#[tokio::test]
async fn v6_endless_overwriting_does_not_let_the_file_grow() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = open(directory.path(), Some(Duration::ZERO), &clock);
    let db = database(&store, "a").await;
    for base in 0..200 {
        commit(&store, db, base, 100, 1..=100).await;
    }
    let early = file_bytes(directory.path());
    for base in 200..2000 {
        commit(&store, db, base, 100, 1..=100).await;
    }
    let late = file_bytes(directory.path());
    println!("{early} bytes after 200 commits, {late} after 2000");
    // The records of an hour stay, some 100 bytes each, and what a checkpoint pins that takes long (LOG10); the pages would be 90 MiB.
    assert!(late < early + (30 << 20), "{early} bytes became {late}");
    collect(&store).await;
    let described = store.describe(db.0).await.unwrap();
    assert_eq!((described.versions, described.pages), (1, 100));
}

/// An agent that goes on from its last branch, and drops the one before, for ever.
#[tokio::test]
async fn b2_depth_is_bounded_and_what_nobody_stands_on_goes() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = open(directory.path(), Some(Duration::ZERO), &clock);
    let main = database(&store, "main").await;
    commit(&store, main, 0, 200, 1..=200).await;
    let (mut last, mut label) = (main.0, "main".to_owned());
    for step in 1..=300_u32 {
        let next = branch(&store, last, &format!("b{step}")).await;
        commit(&store, next, 1, 200, [step % 200 + 1, 7].into_iter()).await;
        if step > 1 {
            store.remove(&name(&label)).await.unwrap();
        }
        (last, label) = (next.0, format!("b{step}"));
    }
    collect(&store).await;
    let depth = store.depth(last).unwrap();
    assert!(depth <= 8, "a page is looked for in {depth} places");
    let all: Vec<_> = (1..=200)
        .map(|n| PageNumber::try_from(n).unwrap())
        .collect();
    let pages = store.read(last, Version::new(2), &all).await.unwrap();
    for (number, page) in (1..).zip(pages) {
        // 300 steps wrote each of the pages once at least, as version 2 of some branch.
        assert_eq!(page.content, content(SIZE, number, 2), "page {number}");
    }
    // What is left of 300 branches is what one of them has.
    store.remove(&name("main")).await.unwrap();
    collect(&store).await;
    store.remove(&name(&label)).await.unwrap();
    collect(&store).await;
    let described = store.list("", "", 10).await.unwrap();
    assert!(described.is_empty());
}

/// Each restore of many pages begins a segment of the same database: what they have is counted by segment (SEG5).
#[tokio::test]
async fn seg5_flattening_copies_what_small_segments_have_not_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), None, &ManualClock::default());
    let db = database(&store, "a").await;
    let (pages, rounds) = (8000, 12);
    commit(&store, db, 0, pages, 1..=pages).await;
    let mut head = 1;
    for _ in 0..rounds {
        commit(&store, db, head, pages, 1..=300).await;
        restore(&store, db, head + 1, head, pages).await;
        head += 2;
    }
    collect(&store).await;
    let depth = store.depth(db.0).unwrap();
    assert!(depth <= 8, "a page is looked for in {depth} places");
    let described = store.describe(db.0).await.unwrap();
    let written = u64::from(pages + rounds * 300);
    assert_eq!(described.pages, written, "nothing is copied that is there");
}

fn given(name: &str, otherwise: u64) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "how long the test may take")]
    let given = std::env::var(name);
    given.map_or(otherwise, |number| number.parse().unwrap())
}

/// The file grows by less than a few pages of the engine, however large the source is. As many pages of 4096 bytes as the variable
/// `PAGEWIRE_TEST_BRANCH_PAGES` says: 262144 are 1 GiB.
#[tokio::test]
async fn v4_a_branch_takes_the_same_at_any_size() {
    let large = given("PAGEWIRE_TEST_BRANCH_PAGES", 8192) as u32;
    let size = PageSize::try_from(4096).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = open(directory.path(), None, &clock);
    let mut grown = Vec::new();
    for (label, pages) in [("small", 256), ("large", large)] {
        let db = database(&store, label).await;
        let mut base = 0;
        for from in (1..=pages).step_by(2048) {
            let to = pages.min(from + 2047);
            commit_part(&store, part(db, size, base, to, from..=to)).await;
            base += 1;
        }
        let before = file_bytes(directory.path());
        let began = std::time::Instant::now();
        let made = branch(&store, db.0, &format!("{label}/branch")).await;
        println!("branch of {pages} pages: {:?}", began.elapsed());
        grown.push(file_bytes(directory.path()) - before);
        let usage = store.describe(made.0).await.unwrap();
        assert_eq!((usage.pages, usage.bytes), (0, 0));
        // Both go on, and the parent goes.
        commit_part(&store, part(made, size, 1, pages, [pages].into_iter())).await;
        commit_part(&store, part(db, size, base, pages, [1].into_iter())).await;
        let head = read(&store, db, base + 1, 1).await;
        assert_eq!(head, content(size, 1, base + 1));
        store.remove(&name(label)).await.unwrap();
        assert_eq!(read(&store, made, 2, 1).await, content(size, 1, 1));
        assert_eq!(read(&store, made, 2, pages).await, content(size, pages, 2));
    }
    println!("the file grew by {grown:?} bytes");
    assert!(grown.iter().all(|bytes| *bytes <= 256 << 10), "{grown:?}");
}

/// A read of an old version is the seek that one of the head is. As many versions as `PAGEWIRE_TEST_VERSIONS` says.
#[tokio::test]
async fn v2_a_read_of_any_version_costs_what_one_of_the_head_costs() {
    let versions = given("PAGEWIRE_TEST_VERSIONS", 1500);
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path(), None, &ManualClock::default());
    let db = database(&store, "a").await;
    for base in 0..versions {
        let number = base as u32 % 3 + 1;
        commit(&store, db, base, 3, [number].into_iter()).await;
    }
    // In turns, so that what else the machine does concerns all of them.
    let asked = [versions, versions / 2, 3];
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..2001 {
        for (version, times) in asked.iter().zip(&mut times) {
            let began = std::time::Instant::now();
            let page = read(&store, db, *version, 1).await;
            times.push(began.elapsed());
            let written = (1..=*version).rev().find(|v| v % 3 == 1).unwrap();
            assert_eq!(page, content(SIZE, 1, written));
        }
    }
    let medians = times.map(|mut times| {
        times.sort();
        times[times.len() / 2]
    });
    println!("{versions} versions, {asked:?} read in {medians:?}");
    let [head, middle, old] = medians;
    assert!(middle < head * 3 && old < head * 3, "{medians:?}");
}

#[tokio::test]
async fn v7_numbers_times_and_tags_are_the_same_after_any_number_of_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let mut told = Vec::new();
    for restart in 0..given("PAGEWIRE_TEST_RESTARTS", 12) {
        let store = open(directory.path(), None, &clock);
        let db = database(&store, "a").await;
        let now = store.versions(db.0, None, false, 100_000).await.unwrap();
        assert_eq!(now, told, "restart {restart}");
        let head = now
            .first()
            .map_or(0, |newest| newest.snapshot.version.get());
        for base in head..head + 5 {
            match restart % 3 {
                0 => clock.advance(Duration::from_secs(7)),
                // A clock that is set back makes no time fall (K4), over a restart too.
                _ => clock.turn_back(Duration::from_secs(3)),
            }
            commit(&store, db, base, 3, [base as u32 % 3 + 1].into_iter()).await;
        }
        let tag = TagName::try_from(format!("t{}", restart % 4).as_str()).unwrap();
        let moment = Moment::Version(Version::new(head + 2));
        store.set_tag(db.0, &tag, &moment, true).await.unwrap();
        told = store.versions(db.0, None, false, 100_000).await.unwrap();
        assert_eq!(told[0].snapshot.version.get(), head + 5);
        assert!(told.is_sorted_by(|newer, older| newer.time >= older.time));
    }
}

/// Neither find nor read has to look at the versions in between.
#[tokio::test]
async fn v1_a_time_is_found_among_many_versions() {
    let directory = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = Arc::new(open(directory.path(), None, &clock));
    let db = database(&store, "a").await;
    for base in 0..600 {
        clock.advance(Duration::from_millis(10));
        commit(&store, db, base, 3, [base as u32 % 3 + 1].into_iter()).await;
    }
    let first = store.find(db.0, &Moment::Version(Version::new(1))).await;
    let first = first.unwrap().time.0;
    for version in [1, 2, 3, 300, 301, 512, 599, 600] {
        for plus in [0, 9] {
            let time = first + (version - 1) * 10 + plus;
            let found = store.find(db.0, &Moment::Time(UnixMillis(time))).await;
            assert_eq!(found.unwrap().snapshot.version.get() as i64, version);
        }
    }
    // A clock that is set back makes no time fall (K4).
    clock.turn_back(Duration::from_secs(3600));
    commit(&store, db, 600, 3, [1].into_iter()).await;
    let head = store.find(db.0, &Moment::Age(0)).await.unwrap();
    assert_eq!(head.snapshot.version.get(), 601);
    assert_eq!(head.time.0, first + 599 * 10);
}
