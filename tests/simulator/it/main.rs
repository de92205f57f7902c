//! The simulator: that it is deterministic, that some seeds find nothing, and that it finds what is switched off.

use std::process::{Command, Output};

/// Runs the program; `SEEDS` sets how many seeds `some_seeds` has.
fn sim(arguments: &[&str]) -> (bool, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_pagewire-sim"))
        .args(arguments)
        .output()
        .expect("the program runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

fn traces(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.split_once(": trace "));
    lines.map(|(seed, rest)| format!("{seed} {rest}")).collect()
}

#[test]
fn the_same_seed_gives_the_same_trace_in_other_processes_and_with_threads_that_run_themselves() {
    let common = ["--seeds", "0..4", "--steps", "25", "--verbose"];
    let (fine, first) = sim(&common);
    assert!(fine, "{first}");
    let (_, second) = sim(&common);
    let (_, threads) = sim(&[&common[..], &["--threads"]].concat());
    assert_eq!(traces(&first).len(), 4, "{first}");
    assert_eq!(traces(&first), traces(&second));
    assert_eq!(traces(&first), traces(&threads));
}

#[test]
fn the_same_seed_gives_the_same_trace_on_the_local_store_with_its_threads_and_its_files() {
    let common = [
        "--seeds",
        "0..3",
        "--steps",
        "25",
        "--verbose",
        "--store",
        "local",
    ];
    let (fine, first) = sim(&common);
    assert!(fine, "{first}");
    let (_, second) = sim(&[&common[..], &["--twice"]].concat());
    let (_, threads) = sim(&[&common[..], &["--threads"]].concat());
    assert_eq!(traces(&first).len(), 3, "{first}");
    let mut twice = traces(&second);
    twice.dedup();
    assert_eq!(traces(&first), twice);
    assert_eq!(traces(&first), traces(&threads));
}

#[test]
fn other_seeds_give_other_traces() {
    let (_, text) = sim(&["--seeds", "0..3", "--steps", "5", "--verbose"]);
    let traces = traces(&text);
    assert_eq!(traces.len(), 3, "{text}");
    assert_ne!(traces[0], traces[1]);
}

#[test]
fn some_seeds() {
    #[expect(
        clippy::disallowed_methods,
        reason = "how long a test runs is said from outside"
    )]
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "1000..1040".to_owned());
    let (fine, text) = sim(&["--seeds", &seeds, "--keep-going"]);
    println!("{text}");
    assert!(fine, "{text}");
}

/// Seeds within which each switch is found.
#[cfg(feature = "defects")]
mod defects {
    use super::sim;

    fn is_found(defect: &str, seeds: &str, more: &[&str]) {
        let arguments = [&["--defect", defect, "--seeds", seeds][..], more].concat();
        let (fine, text) = sim(&arguments);
        println!("{text}");
        assert!(
            !fine && text.contains(" failed:\n"),
            "{defect} was not found: {text}"
        );
    }

    #[test]
    fn fencing() {
        is_found(
            "fencing",
            // One seed in a hundred or so has the faults for it.
            "0..1000",
            &["--workload", "append", "--store", "versioned"],
        );
    }

    #[test]
    fn epoch_check() {
        is_found(
            "epoch-check",
            "0..300",
            &["--workload", "append", "--store", "versioned"],
        );
    }

    #[test]
    fn commit_ids() {
        is_found(
            "commit-ids",
            "0..100",
            &["--workload", "append", "--store", "versioned"],
        );
    }

    #[test]
    fn invalidation_wait() {
        is_found(
            "invalidation-wait",
            "0..300",
            &["--workload", "append", "--store", "versioned"],
        );
    }

    #[test]
    fn staging_flip() {
        is_found(
            "staging-flip",
            "0..100",
            &["--workload", "large", "--store", "versioned"],
        );
    }
}
