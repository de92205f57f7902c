//! Loss of power: what the store wrote and synced is recorded call by call, and the disk is put together as it may have been at each
//! moment of it (`recorder.rs`): what was not synced by then is there, or not, or in part, in any order. The store opens, has every
//! acknowledged commit, and nothing of it is half.
//!
//! A test binary of its own, because it takes the place of the calls of the C library that write, for everything in it.
//! `PAGEWIRE_TEST_POWER_CUTS=all` tries every moment, in many more states; `SEED` repeats a run.

#[path = "../it/bench.rs"]
mod bench;
mod failures;
mod log;
mod openings;
mod prefixes;
mod recorder;

use std::path::Path;
use std::time::Duration;

use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{Moment, PageNumber, StagingId, TagName, Version};
use pagewire_server::store::{PageStore, StoreError};

use bench::{SIZE, branch, collect, commit, commit_part, database, name, part, read, restore};
use recorder::{DATA, Disk, Image, LOGS, Random, Recording, SLOTS};

/// Every version of a database with this many pages writes all of them.
const PAGES: u32 = 12;
const LABELS: [&str; 3] = ["a", "b", "a/branch"];

/// A folder in memory, or where there is little of it, on a disk: what a disk does is put together here, and a real one only takes its time.
fn home() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let disk = rustix::fs::statvfs(memory);
    match disk.is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= 1 << 30) {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn open(directory: &Path) -> Result<LocalStore, StoreError> {
    open_keeping(directory, Some(Duration::ZERO))
}

fn open_keeping(directory: &Path, retention: Option<Duration>) -> Result<LocalStore, StoreError> {
    // As frequent as checkpoints can be, or nearly so.
    open_with(directory, retention, 300 << 10)
}

fn open_with(
    directory: &Path,
    retention: Option<Duration>,
    checkpoint_bytes: u64,
) -> Result<LocalStore, StoreError> {
    LocalStore::open_with(directory, options(retention, checkpoint_bytes))
}

fn options(retention: Option<Duration>, checkpoint_bytes: u64) -> LocalOptions {
    LocalOptions {
        map_bytes: 64 << 20,
        retention,
        // Stagings have rows, and collection its own transactions.
        checkpoint_bytes,
        staging_buffer_bytes: 2048,
        collect_after_quiet: Some(Duration::ZERO),
        ..LocalOptions::default()
    }
}

fn is_long() -> bool {
    #[expect(clippy::disallowed_methods, reason = "how long the test may take")]
    let cuts = std::env::var("PAGEWIRE_TEST_POWER_CUTS");
    cuts.is_ok_and(|cuts| cuts == "all")
}

fn random() -> Random {
    #[expect(clippy::disallowed_methods, reason = "repeats a run")]
    let seed = std::env::var("SEED").map_or_else(|_| Random::seed(), |seed| seed.parse().unwrap());
    println!("SEED={seed}");
    Random::new(seed)
}

/// Commits of one and of two databases, stagings, tags, branches, restores, removals and collections; says what was acknowledged.
async fn history(store: &LocalStore, recording: &Recording) {
    let (a, b) = (database(store, "a").await, database(store, "b").await);
    recording.acknowledge("created", 1);
    let mut head = 0;
    for round in 0..6_u64 {
        let both = [a, b].map(|db| part(db, SIZE, head, PAGES, 1..=PAGES));
        let id = pagewire_proto::CommitId::random().unwrap();
        let databases = both.to_vec();
        let commit = pagewire_server::store::Commit { id, databases };
        store.commit(commit).await.unwrap();
        head += 1;
        recording.acknowledge("a", head);
        recording.acknowledge("b", head);
        let mut staged = [a, b].map(|db| part(db, SIZE, head, PAGES, 1..=PAGES));
        for part in &mut staged {
            let staging = StagingId::random().unwrap();
            let pages = std::mem::take(&mut part.pages);
            let stage = store.stage(part.database, staging, SIZE, pages);
            stage.await.unwrap();
            part.stagings.push(staging);
        }
        let id = pagewire_proto::CommitId::random().unwrap();
        let databases = staged.to_vec();
        let commit = pagewire_server::store::Commit { id, databases };
        store.commit(commit).await.unwrap();
        head += 1;
        recording.acknowledge("a", head);
        recording.acknowledge("b", head);
        let tag = TagName::try_from(format!("t{round}").as_str()).unwrap();
        let tagged = store.set_tag(a.0, &tag, &Moment::Age(0), false).await;
        tagged.unwrap();
        recording.acknowledge("tag", round + 1);
        if round == 2 {
            let made = branch(store, a.0, "a/branch").await;
            recording.acknowledge("a/branch", 1);
            commit_part(store, part(made, SIZE, 1, PAGES, 1..=PAGES)).await;
            recording.acknowledge("a/branch", 2);
        }
        if round == 4 {
            for tag in 0..2 {
                let tag = TagName::try_from(format!("t{tag}").as_str()).unwrap();
                store.delete_tag(a.0, &tag).await.unwrap();
            }
            store.remove(&name("b")).await.unwrap();
            recording.acknowledge("removed", 1);
            while store.collect(None).await.unwrap().more {}
            let anew = database(store, "b").await;
            // As many versions as the other: they are committed together.
            for base in 0..head {
                bench::commit(store, anew, base, PAGES, 1..=PAGES).await;
            }
            recording.acknowledge("again", 1);
            break;
        }
    }
}

/// All that was acknowledged is there, all that is there is whole.
async fn check(store: &LocalStore, acknowledged: &[(&'static str, u64)]) {
    let newest = |what: &str| {
        let of_it = acknowledged.iter().filter(|(label, _)| *label == what);
        of_it.map(|(_, number)| *number).max().unwrap_or(0)
    };
    let problems = store.audit(false).unwrap();
    assert!(problems.is_empty(), "{problems:#?}");
    let numbers: Vec<_> = (1..=PAGES)
        .map(|n| PageNumber::try_from(n).unwrap())
        .collect();
    let (mut heads, mut there) = ([0; 3], [false; 3]);
    for (index, label) in LABELS.iter().enumerate() {
        let id = match store.lookup(&name(label), false).await {
            Ok(id) => id,
            Err(StoreError::DatabaseNotFound) => continue,
            Err(error) => panic!("{label}: {error}"),
        };
        let head = store.head(id).await.unwrap();
        (heads[index], there[index]) = (head.version.get(), true);
        let mut versions = vec![head.version];
        let listed = store.versions(id, None, false, 1000).await.unwrap();
        versions.extend(listed.iter().map(|entry| entry.snapshot.version));
        for version in versions {
            if version == Version::ZERO {
                continue;
            }
            // A branch was made from version 6, and has its pages.
            let stamp = match (*label, version.get()) {
                ("a/branch", 1) => 6,
                (_, version) => version,
            };
            let pages = store.read(id, version, &numbers).await.unwrap();
            for (number, page) in numbers.iter().zip(pages) {
                assert!(
                    page.content == bench::content(SIZE, number.get(), stamp),
                    "page {number} of {label} at version {version} of {head:?} is torn"
                );
            }
        }
    }
    let [a, b, of_branch] = heads;
    assert!(a >= newest("a"), "{a} of {}", newest("a"));
    assert!(of_branch >= newest("a/branch"), "{of_branch}");
    if a < 10 && (there[1] || newest("b") > 0) {
        assert_eq!(a, b, "a commit of two databases is torn");
    }
    log::check_large(store, newest("large") == 1).await;
    if newest("again") == 1 {
        assert_eq!(b, 10);
    }
    let id = store.lookup(&name("a"), false).await;
    if let (Ok(id), 1..) = (id, newest("tag")) {
        let tag = TagName::try_from(format!("t{}", newest("tag") - 1).as_str()).unwrap();
        let found = store.find(id, &Moment::Tag(tag)).await.unwrap();
        assert_eq!(found.snapshot.version.get(), 2 * newest("tag"));
    }
}

/// Goes through the moments of a recording; answers how many states were tried.
async fn at_each_moment(
    recording: &Recording,
    directory: &Path,
    moments: impl Iterator<Item = usize>,
    random: &mut Random,
    prepare: impl Fn(&Path),
) -> usize {
    let mut tried = 0;
    let more = if is_long() { 12 } else { 1 };
    for moment in moments {
        let mut states = vec![Disk::Nothing, Disk::Everything, Disk::OnlyTheLast];
        states.extend((0..more).map(|_| Disk::Sectors(random.next())));
        states.extend((0..more).map(|_| Disk::Trash(random.next())));
        let mut before = Vec::new();
        for state in states {
            let image = recording.image(moment, state);
            if before.contains(&image) {
                continue;
            }
            let path = directory.join(format!("{tried}"));
            image.write(&path);
            prepare(&path);
            before.push(image);
            println!("moment {moment} of {}, {state:?}", recording.len());
            goes_on(&path, &recording.acknowledged(moment)).await;
            tried += 1;
        }
    }
    tried
}

/// What is in a directory opens, has what was acknowledged, and takes a commit; then it is removed.
async fn goes_on(path: &Path, acknowledged: &[(&'static str, u64)]) {
    // No version goes while it is looked at.
    let store = open_keeping(path, None).unwrap();
    check(&store, acknowledged).await;
    drop(store);
    let store = open(path).unwrap();
    let db = database(&store, "after").await;
    bench::commit(&store, db, 0, 3, 1..=3).await;
    collect(&store).await;
    drop(store);
    std::fs::remove_dir_all(path).unwrap();
}

#[tokio::test]
async fn c07_after_a_loss_of_power_every_acknowledged_commit_is_there_and_nothing_is_half() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = Recording::begin(&directory);
    let store = open(&directory).unwrap();
    history(&store, &recording).await;
    drop(store);
    recording.end();
    let told = recording.told();
    println!("{told:?}");
    // Without syncs, or without anything to lose, this would show nothing.
    assert!(told.writes[DATA] > 100, "{told:?}");
    // Records in both log files, and checkpoints of them.
    assert!(LOGS.iter().all(|log| told.syncs[*log] > 10), "{told:?}");
    // Opening and closing have 3 and 6 of them; how many checkpoints there are besides is a matter of the machine's load.
    assert!(told.syncs[DATA] > 5 && told.syncs[SLOTS] > 10, "{told:?}");
    let mut random = random();
    let step = if is_long() {
        1
    } else {
        1 + recording.len() / 60
    };
    let first = random.next() as usize % step;
    let moments = (first..=recording.len()).step_by(step);
    let tried = at_each_moment(&recording, home.path(), moments, &mut random, |_| {}).await;
    println!("{tried} states of the disk");
    assert!(tried > 60);
}

/// DIR1: nothing was acknowledged yet, so that the store is made anew.
#[tokio::test]
async fn dir1_a_store_whose_making_is_cut_off_is_made_anew() {
    let home = home();
    let directory = home.path().join("store");
    let recording = Recording::begin(&directory);
    drop(open(&directory).unwrap());
    recording.end();
    let mut random = random();
    let all = 0..=recording.len();
    let told = recording.told();
    println!("{told:?}");
    // All four, and the mark, which goes in the end.
    assert_eq!(told.names, [5, 1]);
    let tried = at_each_moment(&recording, home.path(), all, &mut random, |_| {}).await;
    println!("{tried} states of the disk");
    assert!(tried > 8, "{tried}");
    assert!(!directory.join("NEW").exists());
}

/// Without the sync of the log the same states are found to be broken: the test can fail.
#[tokio::test]
async fn a_disk_that_does_not_sync_is_noticed() {
    let home = home();
    let directory = home.path().join("store");
    drop(open(&directory).unwrap());
    let recording = Recording::begin(&directory);
    let store = open(&directory).unwrap();
    let db = database(&store, "a").await;
    for base in 0..10 {
        bench::commit(&store, db, base, PAGES, 1..=PAGES).await;
        recording.acknowledge("a", base + 1);
    }
    drop(store);
    recording.end();
    let lying = recording.without_syncs();
    let image = lying.image(lying.len(), Disk::Nothing);
    let path = home.path().join("lost");
    image.write(&path);
    let store = open(&path).unwrap();
    let found = store.lookup(&name("a"), false).await;
    let lost = match found {
        Ok(id) => store.head(id).await.unwrap().version.get() < 10,
        Err(_) => true,
    };
    assert!(lost, "the recorder takes what was not synced for durable");
}

/// DIR2, and C16: a file that was cut off anywhere is refused, or has what it had. Seen to fail as the test in `prefixes.rs`.
#[tokio::test]
async fn dir2_a_file_cut_short_anywhere_is_refused_with_a_sentence_or_whole() {
    let home = home();
    let directory = home.path().join("store");
    let store = open(&directory).unwrap();
    let db = database(&store, "a").await;
    for base in 0..3 {
        let size = pagewire_proto::PageSize::try_from(8192).unwrap();
        commit_part(&store, part(db, size, base, PAGES, 1..=PAGES)).await;
    }
    let restored = database(&store, "b").await;
    commit(&store, restored, 0, 3, 1..=3).await;
    restore(&store, restored, 1, 1, 3).await;
    assert_eq!(read(&store, restored, 2, 2).await.len(), SIZE.bytes());
    collect(&store).await;
    drop(store);
    let image = Image::read(&directory);
    let whole = image.0[DATA].clone().unwrap();
    let (mut refused, mut opened) = (0, 0);
    for length in prefixes::places_in_data(whole.len(), 4096 - 512) {
        let path = home.path().join(format!("{length}"));
        let mut cut = image.clone();
        cut.0[DATA] = Some(whole[..length].to_vec());
        cut.write(&path);
        match open(&path) {
            Ok(store) => {
                opened += 1;
                let size = pagewire_proto::PageSize::try_from(8192).unwrap();
                let page = read(&store, db, 3, 5).await;
                assert!(page == bench::content(size, 5, 3), "at {length}");
                assert!(store.audit(false).unwrap().is_empty());
            }
            Err(StoreError::Corrupt(why)) => {
                assert!(
                    why.contains("data.mdb") || why.contains("cannot open the store"),
                    "{why}"
                );
                refused += 1;
            }
            Err(error) => panic!("cut to {length} of {}: {error:?}", whole.len()),
        }
        std::fs::remove_dir_all(&path).unwrap();
    }
    println!(
        "{refused} refused, {opened} opened, of {} bytes",
        whole.len()
    );
    assert!(refused > 10 && opened >= 1);
}

/// What a process that has the damaged store makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Made {
    Right,
    Refused,
    Died,
    Wrong,
}

fn reads(directory: &Path) -> Made {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["reader", "--exact", "--ignored", "--nocapture"])
        .env("PAGEWIRE_TEST_DIRECTORY", directory)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut told = String::new();
    let mut out = child.stdout.take().unwrap();
    std::io::Read::read_to_string(&mut out, &mut told).unwrap();
    child.wait().unwrap();
    match () {
        () if told.contains("<wrong>") => Made::Wrong,
        () if told.contains("<refused>") && told.contains("<end>") => Made::Refused,
        () if told.contains("<end>") => Made::Right,
        () => Made::Died,
    }
}

/// Reads every page of every version, and says which ones are neither right nor refused.
#[tokio::test]
#[ignore = "the process of the test below"]
async fn reader() {
    #[expect(clippy::disallowed_methods, reason = "how the test says where")]
    let directory = std::env::var("PAGEWIRE_TEST_DIRECTORY").unwrap();
    // A loop in a damaged tree must not keep the test.
    rustix::process::setrlimit(
        rustix::process::Resource::Cpu,
        rustix::process::Rlimit {
            current: Some(20),
            maximum: Some(20),
        },
    )
    .unwrap();
    let store = match open_keeping(directory.as_ref(), None) {
        Ok(store) => store,
        Err(error) => {
            println!("<refused> {error} <end>");
            return;
        }
    };
    let id = match store.lookup(&name("a"), false).await {
        Ok(id) => id,
        Err(StoreError::DatabaseNotFound) => {
            println!("<wrong> the database is not found <end>");
            return;
        }
        Err(error) => {
            println!("<refused> {error} <end>");
            return;
        }
    };
    for version in 1..=3 {
        for number in 1..=PAGES {
            let page = [PageNumber::try_from(number).unwrap()];
            match store.read(id, Version::new(version), &page).await {
                Ok(page) if page[0].content == bench::content(SIZE, number, version) => {}
                Ok(_) => println!("<wrong> page {number} of version {version}"),
                Err(error) => println!("<refused> {error}"),
            }
        }
    }
    println!("<end>");
}

/// Where the engine's tree says which page comes next, and where the headers of its pages and nodes lie, in bytes; free pages too.
fn tree_places(file: &[u8]) -> (Vec<usize>, Vec<usize>) {
    const PAGE: usize = 4096;
    let (mut children, mut headers) = (Vec::new(), Vec::new());
    for start in (2 * PAGE..file.len()).step_by(PAGE) {
        let page = &file[start..start + PAGE];
        let two = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
        let number = u64::from_le_bytes(*page.first_chunk().unwrap());
        if number as usize != start / PAGE || !matches!(two(10), 1 | 2) || two(12) > PAGE {
            continue;
        }
        headers.extend(start..start + two(12));
        for pointer in (16..two(12)).step_by(2) {
            let node = start + two(pointer);
            if two(pointer) + 8 > PAGE {
                continue;
            }
            headers.extend(node..node + 8);
            if two(10) == 1 {
                children.push(node);
            }
        }
    }
    (children, headers)
}

/// C16, TREE1 to TREE6: a bit that flips anywhere in `data.mdb` while nobody has it open: what was stored is returned as it was, or refused. The process does
/// not end.
#[tokio::test]
async fn c16_a_flipped_bit_in_what_was_stored_is_refused_and_never_returned() {
    let home = home();
    let directory = home.path().join("store");
    let store = open_keeping(&directory, None).unwrap();
    let db = database(&store, "a").await;
    for base in 0..3 {
        bench::commit(&store, db, base, PAGES, 1..=PAGES).await;
    }
    drop(store);
    let image = Image::read(&directory);
    let whole = image.0[DATA].clone().unwrap();
    // Content cannot be compressed, and is in the file as it is.
    let mut bodies = Vec::new();
    for (number, version) in (1..=PAGES).flat_map(|n| (1..=3).map(move |v| (n, v))) {
        let content = bench::content(SIZE, number, version);
        let place = whole
            .windows(content.len())
            .position(|bytes| bytes == content);
        bodies.push(place.unwrap()..place.unwrap() + content.len());
    }
    let (children, headers) = tree_places(&whole);
    let mut random = random();
    let mut bits = Vec::new();
    for _ in 0..if is_long() { 3000 } else { 60 } {
        let body = &bodies[random.next() as usize % bodies.len()];
        for at in [
            body.start + random.next() as usize % body.len(),
            random.next() as usize % whole.len(),
            headers[random.next() as usize % headers.len()],
        ] {
            bits.push((at, random.next() % 8));
        }
    }
    // What a row is: whether it says that there is no page.
    for body in &bodies {
        bits.extend((0..3).map(|bit| (body.start - 1, bit)));
    }
    // Each number of a page that is another page's in one bit: those lead to older rows. The long form has the higher bits too.
    let bytes = if is_long() { 6 } else { 1 };
    for child in &children {
        bits.extend((0..bytes * 8).map(|bit| (child + bit / 8, bit as u64 % 8)));
    }
    println!("{} bits, {} of inner pages", bits.len(), children.len());
    assert!(children.len() > 3);
    let mut counts = [
        std::collections::BTreeMap::new(),
        std::collections::BTreeMap::new(),
    ];
    for (at, bit) in bits {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << bit;
        let path = home.path().join("flipped");
        let mut flipped = image.clone();
        flipped.0[DATA] = Some(bytes);
        flipped.write(&path);
        let made = reads(&path);
        std::fs::remove_dir_all(&path).unwrap();
        let in_body = bodies.iter().any(|body| body.contains(&at));
        *counts[usize::from(!in_body)].entry(made).or_insert(0) += 1;
        // The file also has pages that are not used any more.
        assert!(
            matches!(made, Made::Refused | Made::Right),
            "{made:?}: bit {bit} of byte {at}"
        );
    }
    println!("in content: {:?}, elsewhere: {:?}", counts[0], counts[1]);
    assert!(counts.iter().all(|of| of.contains_key(&Made::Refused)));
}
