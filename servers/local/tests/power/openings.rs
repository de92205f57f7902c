//! Openings that fail, or are cut off, one after the other: none of them makes the next one refuse what is whole, or lose what was
//! acknowledged (LOG5, LOG6 in `src/log.rs`).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pagewire_local::faults::{Fault, Faults, Place};
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_server::store::StoreError;

use crate::bench::{SIZE, commit_part, database, part};
use crate::log::until;
use crate::recorder::{DATA, Disk, Image, LOGS, Recording, SLOTS};
use crate::{at_each_moment, check, goes_on, home, is_long, open, open_keeping, options, random};

/// Where an opening can fail, and how often it passes there before.
const PLACES: [(Place, u32); 6] = [
    (Place::AfterReplay, 0),
    (Place::BeforeSlots, 0),
    (Place::BetweenSlots, 0),
    (Place::AfterRun, 0),
    (Place::BeforeSlots, 1),
    (Place::BetweenSlots, 1),
];

/// Opens it with a medium that fails at a place.
fn fail_at(path: &Path, (place, after): (Place, u32)) -> Result<LocalStore, StoreError> {
    let faults = Arc::new(Faults::default());
    faults.arm(place, Fault::Fail, after);
    let options = LocalOptions {
        faults: Some(faults),
        ..options(None, 300 << 10)
    };
    LocalStore::open_with(path, options)
}

/// Openings that fail, one at each place, from the first to the last and the other way round, and then one that does not.
async fn after_failed_openings(image: &Image, path: &Path, acknowledged: &[(&'static str, u64)]) {
    let mut places = PLACES;
    for _ in 0..2 {
        image.write(path);
        for at in places {
            // A closed store passes the slots once.
            if let Err(error) = fail_at(path, at) {
                let is_told =
                    matches!(&error, StoreError::Unavailable(why) if why.contains("armed"));
                assert!(is_told, "{at:?} of {places:?}: {error:?}");
            }
        }
        let store = open_keeping(path, None);
        let store = store.unwrap_or_else(|e| panic!("after {places:?}: {e:?}"));
        check(&store, acknowledged).await;
        drop(store);
        std::fs::remove_dir_all(path).unwrap();
        places.reverse();
    }
}

/// Small commits, and two large ones, one after the other: the mark of the second is the first record of its file.
async fn with_large_commits(directory: &Path) -> Recording {
    drop(open(directory).unwrap());
    let recording = Recording::begin(directory);
    let store = open(directory).unwrap();
    let a = database(&store, "a").await;
    let (first, large) = (
        database(&store, "first").await,
        database(&store, "large").await,
    );
    until(&store, a, 0, 2, &recording).await;
    commit_part(&store, part(first, SIZE, 0, 3000, 1..=3000)).await;
    recording.acknowledge("first", 1);
    commit_part(&store, part(large, SIZE, 0, 3000, 1..=3000)).await;
    recording.acknowledge("large", 1);
    until(&store, a, 2, 4, &recording).await;
    recording.end();
    drop(store);
    recording
}

/// LOG5: a mark of what never was, and a record of which nobody was told, are no sign that the log is newer than what is beside it.
#[tokio::test]
async fn log5_what_was_never_acknowledged_does_not_refuse_a_store_whose_opening_failed() {
    let home = home();
    let recording = with_large_commits(&home.path().join("store")).await;
    let path = home.path().join("again");
    let is_there = |moment: usize, what: &str| {
        let acknowledged = recording.acknowledged(moment);
        acknowledged.iter().any(|(label, _)| *label == what)
    };
    let moments = 0..=recording.len();
    let of_large: Vec<_> = moments
        .filter(|moment| is_there(*moment, "first") && !is_there(*moment, "large"))
        .collect();
    // The mark, what follows it, and the end.
    let last = of_large.len() - 1;
    let picked = [1, 2, last / 2, last - 8, last - 4, last - 2, last];
    for moment in picked.map(|at| of_large[at]) {
        println!("moment {moment} of {}", recording.len());
        let image = recording.image(moment, Disk::Everything);
        after_failed_openings(&image, &path, &recording.acknowledged(moment)).await;
    }
    // A record that is torn behind its header, at the beginning of a file: that of the commit that follows.
    let mut torn = 0;
    for log in LOGS {
        for moment in recording.unsynced(log) {
            let of_a = recording.acknowledged(moment);
            let is_next = is_there(moment, "large") && of_a.iter().all(|entry| *entry != ("a", 3));
            if is_next {
                let mut image = recording.image(moment, Disk::Everything);
                image.0[log].as_mut().unwrap()[4096 + 60] ^= 1;
                after_failed_openings(&image, &path, &of_a).await;
                torn += 1;
            }
        }
    }
    assert!(torn > 0);
}

/// LOG6: an opening that is cut off, and the one after it, and the one after that.
#[tokio::test]
async fn log6_openings_that_are_cut_off_again_and_again_lose_nothing() {
    let home = home();
    let recording = with_large_commits(&home.path().join("store")).await;
    let mut random = random();
    let mut below = |most: usize| random.next() as usize % most;
    let path = home.path().join("again");
    // Five openings each, some with a commit of 1.5 MiB.
    for turn in 0..if is_long() { 200 } else { 12 } {
        println!("turn {turn}");
        let states = |seed| {
            [
                Disk::Everything,
                Disk::Nothing,
                Disk::OnlyTheLast,
                Disk::Sectors(seed),
            ]
        };
        // More often where something small is under way.
        let moment = match turn % 2 {
            0 => below(recording.len() + 1),
            _ => recording.len() - below(recording.len() / 2),
        };
        let acknowledged = recording.acknowledged(moment);
        let mut image = recording.image(moment, states(turn)[below(4)]);
        for depth in 0..3 {
            image.write(&path);
            let opening = Recording::begin(&path);
            let store = open_keeping(&path, None);
            let store = store.unwrap_or_else(|e| panic!("moment {moment}, depth {depth}: {e:?}"));
            if below(2) == 0 {
                let more = database(&store, "more").await;
                let head = pagewire_server::store::PageStore::head(&store, more.0).await;
                let head = head.unwrap().version.get();
                commit_part(&store, part(more, SIZE, head, 3000, 1..=3000)).await;
            }
            opening.end();
            drop(store);
            std::fs::remove_dir_all(&path).unwrap();
            image = opening.image(below(opening.len() + 1), states(turn)[below(4)]);
        }
        image.write(&path);
        let store = open_keeping(&path, None);
        let store = store.unwrap_or_else(|e| panic!("moment {moment}: {e:?}"));
        check(&store, &acknowledged).await;
        drop(store);
        std::fs::remove_dir_all(&path).unwrap();
    }
}

/// LOG6: the sync of a slot failed, and commits went on beside it. Whoever opens sees the slot, the disk does not have it: nothing that the older
/// one needs is written before it has.
#[tokio::test]
async fn log6_a_slot_in_the_cache_alone_is_durable_before_what_the_other_needs_is_written() {
    let home = home();
    let directory = home.path().join("store");
    let store = open(&directory).unwrap();
    let a = database(&store, "a").await;
    for base in 0..3 {
        crate::bench::commit(&store, a, base, crate::PAGES, 1..=crate::PAGES).await;
    }
    drop(store);
    let recording = Recording::begin(&directory);
    let store = open(&directory).unwrap();
    let a = database(&store, "a").await;
    recording.hold(Some(SLOTS));
    let mut head = 3;
    while !recording.is_held() {
        until(&store, a, head, head + 1, &recording).await;
        head += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until(&store, a, head, head + 8, &recording).await;
    let moment = recording.moment();
    recording.hold(None);
    recording.end();
    drop(store);
    let again = home.path().join("again");
    recording.image(moment, Disk::Everything).write(&again);
    let opening = Recording::begin(&again).began_with(recording.image(moment, Disk::Nothing));
    opening.acknowledge("a", head + 8);
    let store = open(&again).unwrap();
    opening.end();
    drop(store);
    std::fs::remove_dir_all(&again).unwrap();
    let mut random = random();
    let moments = 1..=opening.len();
    let tried = at_each_moment(&opening, home.path(), moments, &mut random, |_| {}).await;
    println!("{tried} states of the disk");
    assert!(tried > 20);
}

/// LOG6, LOG7: the root of a large commit is in the cache alone, whose sync was cut off by an error. What is made of it is durable first.
#[tokio::test]
async fn log6_a_root_in_the_cache_alone_is_written_again() {
    let home = home();
    let recording = with_large_commits(&home.path().join("store")).await;
    let mut random = random();
    let moments = recording.synced_writes(DATA);
    assert!(moments.len() >= 2);
    for moment in moments {
        let again = home.path().join("again");
        recording.image(moment, Disk::Everything).write(&again);
        // The image of everything has the write that is under way.
        let opening = Recording::begin(&again).began_with(recording.image(moment, Disk::Nothing));
        for (what, number) in recording.acknowledged(moment) {
            opening.acknowledge(what, number);
        }
        let first = recording.acknowledged(moment).len();
        let store = open(&again).unwrap();
        opening.end();
        drop(store);
        std::fs::remove_dir_all(&again).unwrap();
        let step = if is_long() { 1 } else { 4 };
        let moments = (first..=opening.len()).step_by(step);
        at_each_moment(&opening, home.path(), moments, &mut random, |_| {}).await;
    }
}

/// LOG6, LOG7. Bug: the pages of a marked transaction were written over while the disk had its root. Cause: where the write of that root fails the disk
/// may have it, and the engine puts the old one back in the cache alone; roots were put back at an opening, and not synced. Damage: the
/// opening after a loss of power takes the overwritten tree for whole, and drops the records before the mark. Fix: they are synced before
/// the engine is opened.
#[tokio::test]
async fn log7_a_root_that_the_disk_alone_has_is_gone_before_its_pages_are_written() {
    let home = home();
    let directory = home.path().join("store");
    let faults = Arc::new(Faults::default());
    let store = LocalStore::open_with(
        &directory,
        LocalOptions {
            faults: Some(Arc::clone(&faults)),
            ..options(None, 300 << 10)
        },
    );
    let store = store.unwrap();
    let (a, large) = (database(&store, "a").await, database(&store, "large").await);
    let recording = Recording::begin(&directory);
    // While this one is under way nothing is used again that was freed since the one before it; an opening uses it from the first
    // record on, and so does the large transaction.
    let before = faults.passed(Place::AfterSlots);
    recording.hold(Some(SLOTS));
    let mut head = 0;
    while !recording.is_held() {
        until(&store, a, head, head + 1, &recording).await;
        head += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    until(&store, a, head, head + 4, &recording).await;
    recording.hold(None);
    while faults.passed(Place::AfterSlots) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    commit_part(&store, part(large, SIZE, 0, 3000, 1..=3000)).await;
    recording.acknowledge("large", 1);
    recording.end();
    drop(store);
    let root = *recording.synced_writes(DATA).last().unwrap();
    assert!(recording.acknowledged(root).contains(&("a", head + 4)));
    assert!(!recording.acknowledged(root).contains(&("large", 1)));
    let again = home.path().join("again");
    // The data is synced, and the root is not written, as far as the cache goes.
    recording.image(root - 1, Disk::Everything).write(&again);
    let disk = recording.image(root + 1, Disk::Nothing);
    let opening = Recording::begin(&again).began_with(disk);
    opening.acknowledge("a", head + 4);
    let store = open_keeping(&again, None).unwrap();
    opening.end();
    drop(store);
    std::fs::remove_dir_all(&again).unwrap();
    let mut random = random();
    let moments = 1..=opening.len();
    let tried = at_each_moment(&opening, home.path(), moments, &mut random, |_| {}).await;
    println!("{tried} states of the disk");
    assert!(tried > 20);
    // Both roots are put back at once, and either may be trash while the other one is that of the marked transaction.
    let put_back = opening.unsynced(DATA)[0];
    for seed in 0..if is_long() { 400 } else { 64 } {
        println!("moment {put_back} of {}, trash {seed}", opening.len());
        opening.image(put_back, Disk::Trash(seed)).write(&again);
        goes_on(&again, &opening.acknowledged(put_back)).await;
    }
}
