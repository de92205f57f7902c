//! `pagewire sim`: seeds, each in a process of its own, and what came of them.

use std::ops::Range;
use std::process::ExitCode;

use clap::Args;

use crate::machine::{self, Child};
use crate::{Defect, Plan, Report, Store, Workload};

/// Of a seed, that are told.
const MOST_PROBLEMS: usize = 6;

/// What to simulate.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A to before B.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<Range<u64>>,
    /// What the clients do.
    #[arg(long, value_enum, default_value_t = Workload::Mixed)]
    workload: Workload,
    /// What keeps the pages; what the seed says otherwise.
    #[arg(long, value_enum)]
    store: Option<Store>,
    /// Transactions of each seed before the calm; what the seed says otherwise.
    #[arg(long)]
    steps: Option<u64>,
    /// Processes at a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Tells everything that happens.
    #[arg(long)]
    trace: bool,
    /// Runs each seed twice and compares the traces.
    #[arg(long)]
    twice: bool,
    /// Lets every thread run by itself instead of on its stack only: slower, and the same.
    #[arg(long)]
    threads: bool,
    /// Goes on after a seed that failed.
    #[arg(long)]
    keep_going: bool,
    /// Says so of each seed.
    #[arg(long)]
    verbose: bool,
    /// Real seconds for a seed.
    #[arg(long, default_value_t = 120)]
    patience: u32,
    /// Switches a part of the product off; the simulation has to fail then.
    #[arg(long, value_enum)]
    defect: Option<Defect>,
}

/// The command line of the program of its own.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "pagewire-sim",
    about = "Simulates clients, network, servers and stores from a seed"
)]
pub struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text
        .split_once("..")
        .and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    parsed
        .filter(|range| !range.is_empty())
        .ok_or_else(|| "must be A..B with A below B".to_owned())
}

#[derive(Default)]
struct Sums {
    seeds: u64,
    failed: u64,
    transactions: u64,
    committed: u64,
    unknown: u64,
    turns: u64,
    seconds: f64,
}

/// Runs the seeds; fails if one of them does.
pub fn run(arguments: &Arguments) -> ExitCode {
    run_options(&arguments.options)
}

/// The same for the `pagewire` command.
pub fn run_options(options: &Options) -> ExitCode {
    if options.defect.is_some() && !cfg!(feature = "defects") {
        eprintln!("this program was built without the feature \"defects\"");
        return ExitCode::from(2);
    }
    if let Err(error) = machine::same_addresses_every_time() {
        eprintln!("addresses are not the same every time: {error}");
    }
    let seeds = match (options.seed, &options.seeds) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(seeds)) => seeds.clone(),
        (None, None) => 0..100,
    };
    let mut sums = Sums::default();
    let mut running: Vec<(u64, Vec<Child>)> = Vec::new();
    let mut next = seeds.clone();
    let mut stopped = false;
    loop {
        while !stopped && running.len() < options.jobs.max(1) {
            let Some(seed) = next.next() else { break };
            let times = if options.twice { 2 } else { 1 };
            let children =
                (0..times).map(|_| machine::fork(options.patience, || one(seed, options)));
            running.push((seed, children.collect()));
        }
        if running.is_empty() {
            break;
        }
        let (seed, children) = running.remove(0);
        let answers: Vec<_> = children.into_iter().map(Child::answer).collect();
        if !judge(seed, options, &answers, &mut sums) {
            stopped = !options.keep_going;
        }
    }
    println!(
        "{} seeds, {} failed; {} transactions, {} committed, {} unknown; {} turns, {:.0} simulated seconds",
        sums.seeds,
        sums.failed,
        sums.transactions,
        sums.committed,
        sums.unknown,
        sums.turns,
        sums.seconds
    );
    if sums.failed > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// In the child: what a seed came to, as lines.
fn one(seed: u64, options: &Options) -> String {
    let plan = Plan::new(
        seed,
        options.workload,
        options.store,
        options.steps,
        options.defect,
    );
    let report: Report = crate::simulate(plan, options.trace, !options.threads);
    let mut text = format!(
        "{} {} {} {} {} {} {}\n",
        report.trace,
        report.transactions,
        report.committed,
        report.unknown,
        report.turns,
        report.ns,
        report.longest_ns
    );
    let more = report.problems.len().saturating_sub(MOST_PROBLEMS);
    text.push_str(&report.problems[..report.problems.len() - more].join("\n"));
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    text
}

fn judge(
    seed: u64,
    options: &Options,
    answers: &[Result<String, String>],
    sums: &mut Sums,
) -> bool {
    sums.seeds += 1;
    let mut problem = None;
    for answer in answers {
        match answer {
            Err(error) => problem = Some(error.clone()),
            Ok(text) => {
                let (first, problems) = text.split_once('\n').unwrap_or((text, ""));
                let numbers: Vec<u64> = first
                    .split(' ')
                    .filter_map(|number| number.parse().ok())
                    .collect();
                if let [trace, transactions, committed, unknown, turns, ns, longest] = numbers[..] {
                    sums.transactions += transactions;
                    sums.committed += committed;
                    sums.unknown += unknown;
                    sums.turns += turns;
                    sums.seconds += ns as f64 / 1e9;
                    if options.verbose {
                        println!(
                            "seed {seed}: trace {trace:016x}, {transactions} transactions, {committed} committed, {unknown} unknown, \
                             {turns} turns, {:.3} s, longest statement {:.3} s",
                            ns as f64 / 1e9,
                            longest as f64 / 1e9
                        );
                    }
                }
                if !problems.is_empty() {
                    problem = Some(problems.to_owned());
                }
            }
        }
    }
    if problem.is_none() && answers.windows(2).any(|pair| pair[0] != pair[1]) {
        problem = Some("the same seed gave two traces".to_owned());
    }
    let Some(problem) = problem else { return true };
    sums.failed += 1;
    println!(
        "seed {seed} failed:\n{problem}\nreplay: {}",
        replay(seed, options)
    );
    false
}

fn replay(seed: u64, options: &Options) -> String {
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    };
    use clap::ValueEnum as _;
    let mut command = format!(
        "pagewire-sim --seed {seed} --workload {}",
        name(&|| options.workload.to_possible_value())
    );
    if let Some(store) = options.store {
        command.push_str(&format!(" --store {}", name(&|| store.to_possible_value())));
    }
    if let Some(steps) = options.steps {
        command.push_str(&format!(" --steps {steps}"));
    }
    if let Some(defect) = options.defect {
        command.push_str(&format!(
            " --defect {}",
            name(&|| defect.to_possible_value())
        ));
    }
    command.push_str(" --trace");
    command
}
