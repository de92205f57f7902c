//! A process that makes versions, tags, branches and restores, and collects what is not kept, is killed in the midst of it: no
//! version that is kept has lost a page, and when the next process has collected nothing else is left (G1 to G4).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pagewire_local::faults::{Fault, Faults, Place};
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, Moment, PageCount, PageNumber, PageSize, TagName,
    Version,
};
use pagewire_server::store::{Commit, CommitOutcome, DatabaseCommit, PageStore, PageWrite};

use crate::scene::content;

const PLACES: [Place; 8] = [
    Place::BeforeCollect,
    Place::AfterCollect,
    Place::BeforeDrop,
    Place::AfterDrop,
    Place::BeforeSweep,
    Place::AfterSweep,
    Place::BeforeFlatten,
    Place::AfterFlatten,
];
/// Pages of the database that is tagged and branched from. Every version writes all of them.
const PAGES: u32 = 8;
/// Pages of the database that is restored: more than a restore copies.
const MANY: u32 = 300;

fn open(directory: &Path, faults: Option<Arc<Faults>>) -> LocalStore {
    let options = LocalOptions {
        retention: Some(Duration::ZERO),
        checkpoint_bytes: 256 << 10,
        staging_buffer_bytes: 4096,
        // So that collection takes transactions of its own between commits.
        collect_after_quiet: Some(Duration::ZERO),
        faults,
        ..LocalOptions::default()
    };
    LocalStore::open_with(directory, options).expect("the store opens")
}

fn name(name: &str) -> DatabaseName {
    DatabaseName::try_from(name).unwrap()
}

fn tag(version: u64) -> TagName {
    TagName::try_from(format!("t{version}").as_str()).unwrap()
}

async fn database(store: &LocalStore, label: &str) -> (DatabaseId, Epoch) {
    let id = store.lookup(&name(label), true).await.unwrap();
    (id, store.fence(id).await.unwrap())
}

fn part((database, epoch): (DatabaseId, Epoch), base: u64, count: u32) -> DatabaseCommit {
    DatabaseCommit {
        database,
        base: Version::new(base),
        epoch,
        page_size: PageSize::MIN,
        page_count: PageCount::try_from(count).unwrap(),
        stagings: Vec::new(),
        pages: Vec::new(),
        restore: None,
    }
}

fn writes(pages: impl Iterator<Item = u32>, stamp: u64) -> Vec<PageWrite> {
    let write = |number| PageWrite {
        number: PageNumber::try_from(number).unwrap(),
        content: content(0, number, stamp),
    };
    pages.map(write).collect()
}

async fn commit(store: &LocalStore, part: DatabaseCommit) {
    let id = CommitId::random().unwrap();
    let databases = vec![part];
    let outcome = store.commit(Commit { id, databases }).await.unwrap();
    assert!(
        matches!(outcome, CommitOutcome::Committed(_)),
        "{outcome:?}"
    );
}

/// One round of everything. Even versions of `restored` are restores of the even one before.
async fn round(store: &LocalStore) {
    let main = database(store, "main").await;
    let base = store.head(main.0).await.unwrap().version.get();
    let next = DatabaseCommit {
        pages: writes(1..=PAGES, base + 1),
        ..part(main, base, PAGES)
    };
    commit(store, next).await;
    let version = base + 1;
    if version.is_multiple_of(3) {
        let moment = Moment::Version(Version::new(version));
        let (id, new) = (main.0, tag(version));
        store.set_tag(id, &new, &moment, false).await.unwrap();
        let old = tag(version.saturating_sub(9));
        store.delete_tag(main.0, &old).await.unwrap();
    }
    if version.is_multiple_of(4) {
        let (id, label) = (DatabaseId::random().unwrap(), name(&format!("b{version}")));
        let made = store.branch(main.0, &Moment::Age(0), id, &label).await;
        made.unwrap();
        let epoch = store.fence(id).await.unwrap();
        let own = DatabaseCommit {
            pages: writes(1..=1, 1_000_000 + version),
            ..part((id, epoch), 1, PAGES)
        };
        commit(store, own).await;
        let old = name(&format!("b{}", version.saturating_sub(8)));
        // Not there in the first rounds, nor where a process died in between.
        let _ = store.remove(&old).await;
    }
    let restored = database(store, "restored").await;
    let base = store.head(restored.0).await.unwrap().version.get();
    let floor = Version::new(base.saturating_sub(1));
    store.protect(restored.0, Some(floor), &[]).await.unwrap();
    let mut next = part(restored, base, MANY);
    let from = Version::new(base.saturating_sub(1));
    // What is read by nobody after a restart may be gone: then this one is written anew.
    let there = store.read(restored.0, from, &[]).await.is_ok();
    match base % 2 == 1 && base > 1 && there {
        true => next.restore = Some(from),
        false => next.pages = writes(1..=MANY, if base % 2 == 1 { 1 } else { base + 1 }),
    }
    commit(store, next).await;
}

async fn check(store: &LocalStore, collected: bool) {
    let problems = store.audit(collected).unwrap();
    assert!(problems.is_empty(), "{problems:#?}");
    let all = async |id, version: Version, count: u32| {
        let numbers = (1..=count).map(|n| PageNumber::try_from(n).unwrap());
        let numbers: Vec<_> = numbers.collect();
        store.read(id, version, &numbers).await.unwrap()
    };
    for entry in store.list("", "", 1000).await.unwrap() {
        let (id, head) = (entry.database, entry.head.version);
        let label = entry.name.as_str();
        let (count, stamp) = match label.strip_prefix('b') {
            Some(version) => (PAGES, version.parse().unwrap()),
            None if label == "main" => (PAGES, head.get()),
            None if head.get() % 2 == 0 => (MANY, 1),
            None => (MANY, head.get()),
        };
        for (number, page) in (1..).zip(all(id, head, count).await) {
            let own = content(0, number, 1_000_000 + stamp);
            let branched = label.starts_with('b') && number == 1 && page.content == own;
            assert!(
                branched || page.content == content(0, number, stamp),
                "page {number} of {label} at version {head}"
            );
        }
        for entry in store.versions(id, None, true, 1000).await.unwrap() {
            let version = entry.snapshot.version;
            assert_eq!(entry.tags, [tag(version.get())]);
            for (number, page) in (1..).zip(all(id, version, count).await) {
                let right = content(0, number, version.get());
                assert!(page.content == right, "page {number} of tagged {version}");
            }
        }
    }
}

/// Runs a child until it dies.
fn run(directory: &Path, kill_after: Option<usize>, die: Option<(usize, u32)>) {
    let (place, after) = die.map_or((String::new(), 0), |(place, after)| {
        (place.to_string(), after)
    });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "crash_collect::child",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env("PAGEWIRE_TEST_DIRECTORY", directory)
        .env("PAGEWIRE_TEST_PLACE", place)
        .env("PAGEWIRE_TEST_AFTER", after.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut rounds = 0;
    for line in lines {
        rounds += usize::from(line.unwrap() == "round");
        if Some(rounds) == kill_after {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(!status.success() && rounds > 0, "{rounds} rounds, {status}");
}

#[tokio::test]
async fn g4_a_collection_that_dies_at_any_step_is_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    for (index, place) in PLACES.iter().enumerate() {
        for after in [0, 3] {
            println!("dies at {place:?} after {after}");
            run(directory.path(), None, Some((index, after)));
            let store = open(directory.path(), None);
            check(&store, false).await;
            if after > 0 {
                while store.collect(None).await.unwrap().more {}
                check(&store, true).await;
            }
        }
    }
    // In the midst of anything: as often as the variable says.
    #[expect(clippy::disallowed_methods, reason = "how long the test may take")]
    let kills = std::env::var("PAGEWIRE_TEST_KILLS");
    for kill in 1..=kills.map_or(3, |kills| kills.parse().unwrap()) {
        run(directory.path(), Some(1 + kill * 7 % 13), None);
        let store = open(directory.path(), None);
        check(&store, false).await;
    }
    let store = open(directory.path(), None);
    while store.collect(None).await.unwrap().more {}
    check(&store, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that the test above kills"]
async fn child() {
    #[expect(clippy::disallowed_methods, reason = "how the test says where")]
    let given = |name: &str| std::env::var(name).unwrap();
    let faults = Arc::new(Faults::default());
    let directory = given("PAGEWIRE_TEST_DIRECTORY");
    let store = open(directory.as_ref(), Some(Arc::clone(&faults)));
    let place = given("PAGEWIRE_TEST_PLACE").parse::<usize>().ok();
    let after = given("PAGEWIRE_TEST_AFTER").parse().unwrap();
    for done in 0.. {
        round(&store).await;
        std::io::stdout().write_all(b"round\n").unwrap();
        if let (0, Some(place)) = (done, place) {
            faults.arm(PLACES[place], Fault::Die, after);
        }
        assert!(done < 2000, "nothing is ever done at {place:?}");
    }
}
