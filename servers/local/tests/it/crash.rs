//! A process that commits is killed in the midst of it, again and again, on one directory: every acknowledged commit is
//! there, and none in part. What a kill cannot show is a loss of power: `tests/power` does.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use pagewire_local::faults::{Fault, Faults, Place};
use pagewire_server::store::{CommitOutcome, PageStore};

use crate::scene::{WRITERS, check, commit, database, open};

/// Kills in the short form that every run of the tests has.
const KILLS: usize = 6;
const PLACES: [Place; 11] = [
    Place::BeforeCommit,
    Place::AfterCommit,
    Place::BeforeSpill,
    Place::AfterSpill,
    Place::BeforeCollect,
    Place::AfterCollect,
    Place::AfterLog,
    Place::BeforeDataSync,
    Place::BeforeSlots,
    Place::BetweenSlots,
    Place::AfterSlots,
];

/// Runs a child, which commits until it dies, or until it is killed after so many acknowledgements. Answers the largest
/// acknowledged version of each writer.
fn run(directory: &Path, kill_after: Option<usize>, die: Option<(usize, u32)>) -> [u64; 3] {
    let (place, after) = die.map_or((String::new(), 0), |(place, after)| {
        (place.to_string(), after)
    });
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::child", "--exact", "--ignored", "--nocapture"])
        .env("PAGEWIRE_TEST_DIRECTORY", directory)
        .env("PAGEWIRE_TEST_PLACE", place)
        .env("PAGEWIRE_TEST_AFTER", after.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut acknowledged = [0; 3];
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(("acknowledged", rest)) = line.split_once(' ') else {
            continue;
        };
        let (writer, version) = rest.split_once(' ').unwrap();
        acknowledged[writer.parse::<usize>().unwrap()] = version.parse().unwrap();
        seen += 1;
        if Some(seen) == kill_after {
            child.kill().unwrap();
        }
    }
    assert!(!child.wait().unwrap().success(), "the child was to die");
    assert!(seen > 0, "the child died before it did anything");
    acknowledged
}

async fn nothing_acknowledged_is_lost(directory: &Path, acknowledged: [u64; 3]) {
    let store = open(directory, None);
    let heads = check(&store).await;
    for (writer, databases) in WRITERS.iter().enumerate() {
        for index in *databases {
            assert!(
                heads[*index] >= acknowledged[writer],
                "version {} of db{index} was acknowledged, {} is left",
                acknowledged[writer],
                heads[*index]
            );
        }
    }
}

#[tokio::test]
async fn a_killed_process_loses_no_acknowledged_commit_and_leaves_no_part_of_one() {
    let directory = tempfile::tempdir().unwrap();
    let id = pagewire_proto::CommitId::random().unwrap();
    println!("kills after, from {id}");
    for kill in 0..KILLS {
        let after = 5 + usize::from(id.as_bytes()[kill]);
        let acknowledged = run(directory.path(), Some(after), None);
        nothing_acknowledged_is_lost(directory.path(), acknowledged).await;
    }
}

#[tokio::test]
async fn a_process_that_dies_at_a_named_place_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    for (index, place) in PLACES.iter().enumerate() {
        println!("dies at {place:?}");
        // Rows are collected in a transaction of their own only when nobody commits, which is rare here.
        let after = match place {
            Place::BeforeCollect | Place::AfterCollect => 0,
            Place::BeforeDataSync | Place::BeforeSlots => 2,
            Place::BetweenSlots | Place::AfterSlots => 2,
            _ => 7,
        };
        let acknowledged = run(directory.path(), None, Some((index, after)));
        nothing_acknowledged_is_lost(directory.path(), acknowledged).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that the tests above kill"]
async fn child() {
    #[expect(clippy::disallowed_methods, reason = "how the test says where")]
    let given = |name: &str| std::env::var(name).unwrap();
    let faults = Arc::new(Faults::default());
    let directory = given("PAGEWIRE_TEST_DIRECTORY");
    let store = Arc::new(open(directory.as_ref(), Some(Arc::clone(&faults))));
    let mut death = given("PAGEWIRE_TEST_PLACE")
        .parse::<usize>()
        .ok()
        .map(|place| {
            let after = given("PAGEWIRE_TEST_AFTER").parse().unwrap();
            move || faults.arm(PLACES[place], Fault::Die, after)
        });
    let mut writers = tokio::task::JoinSet::new();
    for (writer, indexes) in WRITERS.into_iter().enumerate() {
        let store = Arc::clone(&store);
        // What a dead process left is collected as soon as the store is open: armed before the first acknowledgement, the
        // child could die without having done anything.
        let mut death = if writer == 0 { death.take() } else { None };
        writers.spawn(async move {
            let mut databases = Vec::new();
            for index in indexes {
                let id = database(&store, *index).await;
                databases.push((*index, id, store.fence(id).await.unwrap()));
            }
            let mut base = store.head(databases[0].1).await.unwrap().version.get();
            loop {
                let outcome = commit(&store, &databases, base).await.unwrap();
                assert!(
                    matches!(outcome, CommitOutcome::Committed(_)),
                    "{outcome:?}"
                );
                base += 1;
                let line = format!("acknowledged {writer} {base}\n");
                std::io::stdout().write_all(line.as_bytes()).unwrap();
                if let Some(arm) = death.take() {
                    arm();
                }
            }
        });
    }
    // None of them ends.
    writers.join_next().await;
    panic!("a writer ended");
}
