//! The log: what a commit costs, what damage to its files comes to, and an opening that is cut off (`src/log.rs`).

use std::path::Path;
use std::sync::Arc;

use pagewire_local::faults::{Faults, Place};
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{PageNumber, Version};
use pagewire_server::store::{PageStore, StoreError};

use crate::bench::{self, Db, SIZE, commit_part, database, part};
use crate::recorder::{Call, DATA, Disk, Errno, FILES, Failing, Image, LOGS, Recording, SLOTS};
use crate::{
    PAGES, at_each_moment, check, home, is_long, open, open_keeping, open_with, options, random,
};

/// Commits until the database has this version; says what was acknowledged.
pub(crate) async fn until(store: &LocalStore, db: Db, from: u64, to: u64, recording: &Recording) {
    for base in from..to {
        bench::commit(store, db, base, PAGES, 1..=PAGES).await;
        recording.acknowledge("a", base + 1);
    }
}

/// Of a store that was not closed, and of no checkpoint but that of its opening: the recording of the last `count` commits of `a`.
async fn commits(directory: &Path, count: u64) -> Recording {
    let recording = Recording::begin(directory);
    let store = open_with(directory, None, 1 << 40).unwrap();
    let db = database(&store, "a").await;
    let head = store_head(&store, db).await;
    until(&store, db, head, head + count, &recording).await;
    recording.end();
    drop(store);
    recording
}

async fn store_head(store: &LocalStore, db: Db) -> u64 {
    store.head(db.0).await.unwrap().version.get()
}

/// Opens it, or is refused. What is opened has all of it, except where the last commit may be missing.
async fn right_or_refused(image: &Image, path: &Path, acknowledged: u64) -> Result<(), StoreError> {
    image.write(path);
    let opened = open_keeping(path, None);
    let told = match opened {
        Ok(store) => {
            check(&store, &[("a", acknowledged)]).await;
            Ok(())
        }
        Err(error @ (StoreError::Corrupt(_) | StoreError::Unavailable(_))) => Err(error),
        Err(error) => panic!("{error:?}"),
    };
    std::fs::remove_dir_all(path).unwrap();
    told
}

/// GRP1 with LOG1: one write and one sync for a group, and of nothing but the log.
#[tokio::test]
async fn log1_a_commit_costs_one_write_and_one_sync_of_the_log() {
    let home = home();
    let directory = home.path().join("store");
    let store = open_with(&directory, None, 1 << 40).unwrap();
    let db = database(&store, "a").await;
    let recording = Recording::begin(&directory);
    let began = std::time::Instant::now();
    until(&store, db, 0, 50, &recording).await;
    recording.end();
    let seconds = began.elapsed().as_secs() as usize;
    let told = recording.told();
    println!("{told:?} in {seconds} s");
    let of_log = |counts: [usize; 4]| LOGS.iter().map(|log| counts[*log]).sum::<usize>();
    assert_eq!((of_log(told.writes), of_log(told.syncs)), (50, 50));
    assert_eq!(told.synced_writes, [0; 4]);
    // For its age, in the background.
    assert!(told.syncs[DATA] <= seconds / 2, "{told:?}");
    assert!(told.syncs[SLOTS] <= 2 * (seconds / 2), "{told:?}");
}

/// Q-4 in `src/queue.rs`: what many write at the same time goes through the log, though together it has no room in a record.
#[tokio::test]
async fn log1_a_group_of_commits_that_would_fit_no_record_costs_no_syncs_of_the_engine() {
    const COMMITS: usize = 20;
    let home = home();
    let directory = home.path().join("store");
    let faults = Arc::new(Faults::default());
    let options = LocalOptions {
        faults: Some(Arc::clone(&faults)),
        ..options(None, 1 << 40)
    };
    let store = Arc::new(LocalStore::open_with(&directory, options).unwrap());
    let size = pagewire_proto::PageSize::try_from(4096).unwrap();
    let mut databases = Vec::new();
    for number in 0..COMMITS {
        databases.push(database(&store, &format!("d{number}")).await);
    }
    let recording = Recording::begin(&directory);
    // The first one waits, the others behind it: 180 KiB each.
    faults.hold(Some(Place::BeforeCommit));
    let mut commits = tokio::task::JoinSet::new();
    for db in databases {
        let store = Arc::clone(&store);
        commits.spawn(async move { commit_part(&store, part(db, size, 0, 45, 1..=45)).await });
    }
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    faults.hold(None);
    commits.join_all().await;
    recording.end();
    let told = recording.told();
    println!("{told:?}");
    assert_eq!(told.synced_writes, [0; 4], "the engine synced by itself");
    let of_log: usize = LOGS.iter().map(|log| told.syncs[*log]).sum();
    // 3.6 MiB beside records of at most 1 MiB, and the first one by itself.
    assert!((2..8).contains(&of_log), "they were no group: {told:?}");
}

/// LOG6: what the disk cannot read is no harm where the other slot has it, or nothing is needed from there; else it is refused, by name, and nothing
/// is lost.
#[tokio::test]
async fn log6_what_cannot_be_read_is_not_needed_or_refused_by_its_name() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = commits(&directory, 12).await;
    let image = recording.image(last_acknowledged(&recording), Disk::Everything);
    let path = home.path().join("unreadable");
    let mut opened = [0; FILES.len()];
    let mut refused = [0; FILES.len()];
    for (file, files) in [
        (SLOTS, &[SLOTS][..]),
        (LOGS[0], &[LOGS[0]]),
        (LOGS[1], &[LOGS[1]]),
    ] {
        for after in 0.. {
            image.write(&path);
            let opening = Recording::begin(&path);
            opening.fail(Failing {
                after,
                ..Failing::next(files, Call::Read, Errno::IO)
            });
            let store = open_keeping(&path, None);
            let is_over = opening.left_to_fail() > 0;
            opening.end();
            match store {
                Ok(store) => {
                    check(&store, &[("a", 12)]).await;
                    opened[file] += usize::from(!is_over);
                }
                Err(error) => {
                    let why = error.to_string();
                    assert!(why.contains(FILES[file]), "{why}");
                    refused[file] += 1;
                    let store = open_keeping(&path, None).unwrap();
                    check(&store, &[("a", 12)]).await;
                }
            }
            std::fs::remove_dir_all(&path).unwrap();
            if is_over {
                break;
            }
        }
    }
    // Neither slot for a while: that is no damage, for which somebody would put back an old copy.
    image.write(&path);
    let opening = Recording::begin(&path);
    opening.fail(Failing {
        times: 2,
        ..Failing::next(&[SLOTS], Call::Read, Errno::IO)
    });
    let refusal = open_keeping(&path, None).unwrap_err();
    assert_eq!(opening.left_to_fail(), 0);
    opening.end();
    assert!(matches!(refusal, StoreError::Unavailable(_)), "{refusal}");
    check(&open_keeping(&path, None).unwrap(), &[("a", 12)]).await;
    println!("{opened:?} opened, {refused:?} refused");
    assert_eq!((opened[SLOTS], refused[SLOTS]), (2, 0));
    // Records are needed; of what is behind them it is looked for, and missed.
    assert!(LOGS.iter().all(|log| opened[*log] > 0), "{opened:?}");
    assert!(LOGS.iter().any(|log| refused[*log] > 12), "{refused:?}");
}

/// LOG2, LOG5: a record that is damaged is refused; the very last one can be told from one that was cut off by the engine's root alone.
#[tokio::test]
async fn log2_a_flipped_bit_in_the_log_is_refused_and_no_later_commit_is_dropped() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = commits(&directory, 12).await;
    let mut random = random();
    // As after a kill, and as after a loss of power in which the engine's file got nothing.
    let moment = last_acknowledged(&recording);
    for (disk, lost) in [(Disk::Everything, 0), (Disk::Nothing, 1)] {
        let image = recording.image(moment, disk);
        right_or_refused(&image, &home.path().join("whole"), 12)
            .await
            .unwrap();
        let (mut refused, mut opened) = (0, 0);
        for _ in 0..if is_long() { 600 } else { 40 } {
            let log = LOGS[random.next() as usize % 2];
            let mut flipped = image.clone();
            let bytes = flipped.0[log].as_mut().unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
            let at = random.next() as usize % used;
            bytes[at] ^= 1 << (random.next() % 8);
            println!("{disk:?}: a bit of {} at {at} of {used}", FILES[log]);
            let path = home.path().join("flipped");
            match right_or_refused(&flipped, &path, 12 - lost).await {
                Ok(()) => opened += 1,
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("log."), "{error}");
                }
            }
        }
        println!("{disk:?}: {refused} refused, {opened} opened");
        assert!(refused > 5);
    }
}

/// The moment after the last acknowledgement: before the store is closed.
pub(crate) fn last_acknowledged(recording: &Recording) -> usize {
    let all = recording.acknowledged(recording.len()).len();
    let moments = 0..=recording.len();
    let mut whole = moments.filter(|moment| recording.acknowledged(*moment).len() == all);
    whole.next().unwrap()
}

/// What is used of a slot of the checkpoint.
const SLOT_BITS: usize = 380 * 8;

/// LOG4: one slot is enough; of both nothing is guessed.
#[tokio::test]
async fn log4_one_damaged_slot_is_no_harm_and_two_are_refused() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = commits(&directory, 5).await;
    let image = recording.image(last_acknowledged(&recording), Disk::Everything);
    let path = home.path().join("flipped");
    let slots = [0, 64 << 10];
    let mut random = random();
    // All 6,080 that there are in the long form.
    let (count, all) = (200, SLOT_BITS * slots.len());
    for turn in 0..if is_long() { all } else { count } {
        let bit = match is_long() {
            true => turn / 2,
            false => random.next() as usize % SLOT_BITS,
        };
        let at = slots[turn % 2] + bit / 8;
        let mut flipped = image.clone();
        flipped.0[SLOTS].as_mut().unwrap()[at] ^= 1 << (bit % 8);
        let opened = right_or_refused(&flipped, &path, 5).await;
        opened.unwrap_or_else(|error| panic!("bit {} of byte {at}: {error}", bit % 8));
    }
    let mut both = image.clone();
    for at in slots {
        both.0[SLOTS].as_mut().unwrap()[at + 30] ^= 4;
    }
    let error = right_or_refused(&both, &path, 5).await.unwrap_err();
    assert!(
        error.to_string().contains("neither of its slots"),
        "{error}"
    );
}

/// Where a root has the number of its transaction.
const NUMBER_AT: usize = 144;

/// LOG4: the engine's roots have no checksum, the slots' copies of them have one. What a root says is put back, or the number in it is told to be
/// another one; nothing is read through it.
#[tokio::test]
async fn log4_a_root_that_rots_is_put_back_or_refused_and_never_read() {
    const ROOT_BYTES: usize = NUMBER_AT + 8;
    const LAST_PAGE_AT: usize = 136;
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = commits(&directory, 5).await;
    let killed = recording.image(last_acknowledged(&recording), Disk::Everything);
    let closed = Image::read(&directory);
    let path = home.path().join("flipped");
    let mut random = random();
    for (what, image) in [("killed", killed), ("closed", closed)] {
        let (mut put_back, mut refused) = (0, 0);
        // All 2,432 that there are in the long form.
        for turn in 0..if is_long() { 2 * ROOT_BYTES * 8 } else { 30 } {
            let bit = match is_long() {
                true => turn / 2,
                false => random.next() as usize % (ROOT_BYTES * 8),
            };
            let at = bit / 8;
            let mut flipped = image.clone();
            let root = 4096 * (turn % 2);
            flipped.0[DATA].as_mut().unwrap()[root + at] ^= 1 << (bit % 8);
            println!("{what}: root {}, bit {} of byte {at}", turn % 2, bit % 8);
            match right_or_refused(&flipped, &path, 5).await {
                Ok(()) => put_back += 1,
                Err(error) => {
                    // Its number and last page, its magic, and the size of pages say whether the files belong together.
                    let tells =
                        (16..20).contains(&at) || (40..44).contains(&at) || at >= LAST_PAGE_AT;
                    assert!(tells, "byte {at}: {error}");
                    let why = error.to_string();
                    assert!(why.contains("data.mdb") || why.contains("log."), "{why}");
                    refused += 1;
                }
            }
        }
        println!("{what}: {put_back} put back, {refused} refused");
        assert!(put_back > 10);
    }
}

/// LOG5: a file that is missing, cut short, or of another copy or store is refused, or is one that nothing needs.
#[tokio::test]
async fn log5_files_that_do_not_belong_together_are_refused() {
    let home = home();
    let (directory, other) = (home.path().join("store"), home.path().join("other"));
    commits(&directory, 3).await;
    commits(&other, 3).await;
    let older = Image::read(&directory);
    let recording = commits(&directory, 3).await;
    let moment = last_acknowledged(&recording);
    let killed = recording.image(moment, Disk::Everything);
    let powerless = recording.image(moment, Disk::Nothing);
    let closed = Image::read(&directory);
    let path = home.path().join("mixed");
    let stores = [
        ("closed", &closed),
        ("killed", &killed),
        ("powerless", &powerless),
    ];
    let others = [
        ("older", older.clone()),
        ("other", Image::read(&other)),
        ("closed", closed.clone()),
        ("killed", killed.clone()),
        ("powerless", powerless.clone()),
    ];
    let mut opened = Vec::new();
    for (name, store) in stores {
        right_or_refused(store, &path, 6).await.unwrap();
        for (file, label) in FILES.iter().enumerate() {
            let mut replacements: Vec<_> = others
                .iter()
                .filter(|(other, _)| *other != name)
                .map(|(other, image)| ((*other).to_owned(), image.0[file].clone()))
                .collect();
            replacements.push(("nothing".to_owned(), None));
            let whole = store.0[file].as_ref().unwrap();
            for length in [0, 4096, whole.len() / 2, whole.len() - 4096] {
                let cut = Some(whole[..length.min(whole.len() - 1)].to_vec());
                replacements.push((format!("its first {length} bytes"), cut));
            }
            for (what, bytes) in replacements {
                let mut mixed = store.clone();
                mixed.0[file] = bytes;
                println!("{name} with {label} from {what}");
                match right_or_refused(&mixed, &path, 6).await {
                    Ok(()) => opened.push(format!("{name} with {label} from {what}")),
                    Err(error) => assert!(error.to_string().len() > 40, "{error}"),
                }
            }
        }
    }
    // All others were refused.
    println!("{opened:#?}");
    let needless = |line: &&String| line.starts_with("closed with log.");
    assert!(opened.iter().any(|line| needless(&line)));
}

/// LOG6: an opening that is cut off at any write, and the one after it.
#[tokio::test]
async fn log6_an_opening_that_is_cut_off_anywhere_loses_nothing() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = commits(&directory, 8).await;
    let mut random = random();
    for disk in [Disk::Everything, Disk::Nothing] {
        let again = home.path().join("again");
        let image = recording.image(last_acknowledged(&recording), disk);
        image.write(&again);
        let opening = Recording::begin(&again);
        opening.acknowledge("a", 8);
        let store = open(&again).unwrap();
        opening.end();
        drop(store);
        std::fs::remove_dir_all(&again).unwrap();
        let step = if is_long() { 1 } else { 3 };
        let moments = (1..=opening.len()).step_by(step);
        let tried = at_each_moment(&opening, home.path(), moments, &mut random, |_| {}).await;
        println!("{disk:?}: {tried} states of the disk");
        assert!(tried > 20);
    }
}

/// LOG6: after a sync that failed the files show what the disk does not have. What is opened from that is made durable before anything is built on
/// it: the disk as it really is has all that was acknowledged, at each write of the opening.
#[tokio::test]
async fn log6_what_a_failed_sync_left_in_the_cache_alone_is_not_built_on() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = Recording::begin(&directory);
    let store = open(&directory).unwrap();
    let db = database(&store, "a").await;
    until(&store, db, 0, 9, &recording).await;
    recording.end();
    drop(store);
    let mut random = random();
    let most = if is_long() { 8 } else { 2 };
    let of_slots = recording.unsynced(SLOTS).into_iter().rev().take(most);
    let of_logs = LOGS.map(|log| recording.unsynced(log)).concat();
    let of_logs = of_logs.into_iter().rev().take(most / 2);
    let mut tried = 0;
    for moment in of_slots.chain(of_logs) {
        let again = home.path().join("again");
        recording.image(moment, Disk::Everything).write(&again);
        let opening = Recording::begin(&again).began_with(recording.image(moment, Disk::Nothing));
        for (what, number) in recording.acknowledged(moment) {
            opening.acknowledge(what, number);
        }
        let first = recording.acknowledged(moment).len();
        let store = open(&again).unwrap();
        bench::commit(&store, database(&store, "more").await, 0, 3, 1..=3).await;
        opening.end();
        drop(store);
        std::fs::remove_dir_all(&again).unwrap();
        let step = if is_long() { 1 } else { 2 };
        let moments = (first..=opening.len()).step_by(step);
        tried += at_each_moment(&opening, home.path(), moments, &mut random, |_| {}).await;
    }
    println!("{tried} states of the disk");
    assert!(tried > 60);
}

/// LOG7: what is too large for a record is there whole, or not at all, at each write of its commit.
#[tokio::test]
async fn log7_a_large_commit_that_is_cut_off_anywhere_is_whole_or_not_there() {
    let home = home();
    let directory = home.path().join("store");
    let store = open(&directory).unwrap();
    let (a, large) = (database(&store, "a").await, database(&store, "large").await);
    let recording = Recording::begin(&directory);
    until(&store, a, 0, 2, &recording).await;
    commit_part(&store, part(large, SIZE, 0, 3000, 1..=3000)).await;
    recording.acknowledge("large", 1);
    until(&store, a, 2, 4, &recording).await;
    recording.end();
    drop(store);
    let mut random = random();
    let events = recording.len();
    let step = if is_long() { 7 } else { 1 + events / 20 };
    // Each of the last, which are those of its end and of what follows.
    let moments = (0..events).step_by(step);
    let moments: std::collections::BTreeSet<_> = moments.chain(events - 30..=events).collect();
    let tried = at_each_moment(
        &recording,
        home.path(),
        moments.into_iter(),
        &mut random,
        |_| {},
    );
    println!("{} states of the disk", tried.await);
}

/// LOG7: where the log ends with a mark, an older root whose number has become that of the mark is not taken for what was marked.
#[tokio::test]
async fn log7_an_older_root_whose_number_rots_is_not_that_of_the_mark() {
    let home = home();
    let path = home.path().join("flipped");
    let mut refused = 0;
    // The lower ones: with a higher one it is beyond the log, which `log4_a_root_that_rots...` has.
    let bits = if is_long() { 8 } else { 3 };
    // So many that a bit of the number of the one before the last makes it that of the next.
    for count in 2..6 {
        let directory = home.path().join(format!("{count}"));
        let store = open(&directory).unwrap();
        let (a, large) = (database(&store, "a").await, database(&store, "large").await);
        let recording = Recording::begin(&directory);
        until(&store, a, 0, count, &recording).await;
        commit_part(&store, part(large, SIZE, 0, 3000, 1..=3000)).await;
        recording.acknowledge("large", 1);
        recording.end();
        drop(store);
        let all = recording.acknowledged(recording.len()).len();
        let moments: Vec<_> = (0..recording.len())
            .filter(|moment| recording.acknowledged(*moment).len() + 1 == all)
            .collect();
        let step = if is_long() { 1 } else { 1 + moments.len() / 12 };
        for moment in moments.into_iter().step_by(step) {
            let image = recording.image(moment, Disk::Everything);
            for (root, bit) in [0, 4096]
                .into_iter()
                .flat_map(|root| (0..bits).map(move |bit| (root, bit)))
            {
                let mut flipped = image.clone();
                flipped.0[DATA].as_mut().unwrap()[root + NUMBER_AT] ^= 1 << bit;
                println!("{count} commits, moment {moment}, root at {root}, bit {bit}");
                refused += usize::from(right_or_refused(&flipped, &path, count).await.is_err());
            }
        }
    }
    println!("{refused} refused");
    assert!(refused > 0);
}

/// What was acknowledged of the large commit is whole.
pub(crate) async fn check_large(store: &LocalStore, acknowledged: bool) {
    let Ok(id) = store.lookup(&bench::name("large"), false).await else {
        assert!(!acknowledged);
        return;
    };
    let head = store.head(id).await.unwrap().version;
    assert!(head == Version::new(1) || !acknowledged);
    if head == Version::new(1) {
        let numbers: Vec<_> = (1..=3000)
            .map(|number| PageNumber::try_from(number).unwrap())
            .collect();
        let pages = store.read(id, head, &numbers).await.unwrap();
        for (number, page) in numbers.iter().zip(pages) {
            let right = bench::content(SIZE, number.get(), 1);
            assert!(page.content == right, "page {number} of the large commit");
        }
    }
}
