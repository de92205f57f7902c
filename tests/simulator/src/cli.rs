//! `pagewire sim`: seeds, each in a process of its own, and what came of them.

use std::cell::Cell;
use std::ops::Range;
use std::process::ExitCode;

use clap::{Args, ValueEnum as _};

use crate::counts;
use crate::finding::{Finding, Kind};
use crate::machine::{self, Child};
use crate::plan;
use crate::{Blow, Defect, Plan, Report, Store, Sweep, Workload};

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
    /// Instead of storms, a small plan in which each client in turn stands still, sleeps or is held back for two lifetimes of a lease, behind every
    /// so many turns of each seed: of appends on the versioned store, unless --workload and --store say otherwise.
    #[arg(long, value_name = "TURNS", num_args = 0..=1, default_missing_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    sweep: Option<u64>,
    /// One of those: behind which turn, to which client, what.
    #[arg(long, value_name = "TURN:PLACE:BLOW", value_parser = sweep, conflicts_with = "sweep")]
    blow: Option<Sweep>,
    /// Takes the faults out of each plan: what fails then has no excuse.
    #[arg(long, conflicts_with_all = ["sweep", "blow"])]
    no_faults: bool,
    /// Without disk caches.
    #[arg(long)]
    no_disk_caches: bool,
    /// Fails if a fault or a feature of the table never happened in all the seeds.
    #[arg(long)]
    everything: bool,
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
    counts: Vec<u64>,
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
    // Of sweeps of which nobody knows how long they are.
    let not_swept = &Cell::new(0);
    let jobs: Box<dyn Iterator<Item = Job>> = match (options.sweep, options.blow) {
        (Some(every), _) => Box::new(seeds.flat_map(move |seed| {
            let (jobs, is_swept) = blows(seed, options, every);
            not_swept.set(not_swept.get() + u64::from(!is_swept));
            jobs
        })),
        (None, sweep) => Box::new(seeds.map(move |seed| Job { seed, sweep })),
    };
    run_jobs(jobs, options, &mut sums);
    sums.failed += not_swept.get();
    sums.counts.resize(counts::Event::ALL.len(), 0);
    println!("{}", counts::table(&sums.counts));
    let missing = counts::missing(&sums.counts);
    let is_empty = options.everything && !missing.is_empty();
    if is_empty {
        println!("never happened: {}", missing.join("; "));
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
    if sums.failed > 0 || is_empty {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// One process of the operating system.
#[derive(Clone, Copy, Debug)]
struct Job {
    seed: u64,
    sweep: Option<Sweep>,
}

impl std::fmt::Display for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.sweep {
            Some(sweep) => write!(f, "seed {} with {}", self.seed, told(sweep)),
            None => write!(f, "seed {}", self.seed),
        }
    }
}

fn run_jobs(mut jobs: impl Iterator<Item = Job>, options: &Options, sums: &mut Sums) {
    let mut running: Vec<(Job, Vec<Child>)> = Vec::new();
    let mut stopped = false;
    loop {
        while !stopped && running.len() < options.jobs.max(1) {
            let Some(job) = jobs.next() else { break };
            let times = if options.twice { 2 } else { 1 };
            let children =
                (0..times).map(|_| machine::fork(options.patience, || one(job, options)));
            running.push((job, children.collect()));
        }
        if running.is_empty() {
            break;
        }
        let (job, children) = running.remove(0);
        let answers: Vec<_> = children.into_iter().map(Child::answer).collect();
        if !judge(job, options, &answers, sums) {
            stopped = !options.keep_going;
        }
    }
}

/// Every blow to every client behind every so many turns of the small plan, of which a run without any tells how many there are. And whether it does.
fn blows(seed: u64, options: &Options, every: u64) -> (Vec<Job>, bool) {
    let quiet = Job { seed, sweep: None };
    let answer = machine::fork(options.patience, || one(quiet, options)).answer();
    let turns = answer.and_then(|text| turns_of(&text));
    if let Err(error) = &turns {
        println!("seed {seed} is not swept: {error}");
    }
    let is_swept = turns.is_ok();
    let mut jobs = vec![quiet];
    for turn in (0..turns.unwrap_or(0)).step_by(usize::try_from(every).unwrap_or(1).max(1)) {
        for blow in Blow::value_variants() {
            for place in 0..plan::SWEPT_CLIENTS {
                if *blow != Blow::StopServer || place == 0 {
                    let sweep = Some(Sweep {
                        turn,
                        place,
                        blow: *blow,
                    });
                    jobs.push(Job { seed, sweep });
                }
            }
        }
    }
    (jobs, is_swept)
}

/// How many turns a run had, by its answer.
fn turns_of(answer: &str) -> Result<u64, String> {
    let first = answer.lines().next().unwrap_or_default();
    match numbers_of(first)[..] {
        [_, _, _, _, turns, _, _] if turns > 0 => Ok(turns),
        _ => Err(format!("no turns are told by {first:?}")),
    }
}

fn numbers_of(line: &str) -> Vec<u64> {
    line.split(' ')
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// As the option takes it.
fn told(sweep: Sweep) -> String {
    let blow = sweep.blow.to_possible_value();
    let blow = blow.map(|value| value.get_name().to_owned());
    format!(
        "{}:{}:{}",
        sweep.turn,
        sweep.place,
        blow.unwrap_or_default()
    )
}

fn sweep(text: &str) -> Result<Sweep, String> {
    let wrong = || "must be TURN:PLACE:BLOW".to_owned();
    let mut parts = text.splitn(3, ':');
    let (Some(turn), Some(place), Some(blow)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(wrong());
    };
    Ok(Sweep {
        turn: turn.parse().map_err(|_| wrong())?,
        place: place.parse().map_err(|_| wrong())?,
        blow: Blow::from_str(blow, false)?,
    })
}

/// In the child: what a seed came to, as lines.
fn one(job: Job, options: &Options) -> String {
    let plan = match options.sweep.is_some() || options.blow.is_some() {
        true => Plan::small(
            job.seed,
            options.workload,
            options.store,
            options.defect,
            job.sweep,
        ),
        false => Plan::new(
            job.seed,
            options.workload,
            options.store,
            options.steps,
            options.defect,
        ),
    };
    let plan = match options.no_faults {
        true => plan.without_faults(),
        false => plan,
    };
    let plan = match options.no_disk_caches {
        true => plan.without_caches(),
        false => plan,
    };
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
    let counts: Vec<String> = report.counts.iter().map(ToString::to_string).collect();
    text.push_str(&format!("{}\n", counts.join(" ")));
    let more = report.problems.len().saturating_sub(MOST_PROBLEMS);
    let told = one_of_each_first(report.problems).into_iter();
    let told: Vec<String> = told.take(MOST_PROBLEMS).map(|it| it.to_string()).collect();
    text.push_str(&told.join("\n"));
    if more > 0 {
        text.push_str(&format!("\nand {more} more"));
    }
    text
}

/// So that no kind is hidden by many of another.
fn one_of_each_first(problems: Vec<Finding>) -> Vec<Finding> {
    let mut kinds: Vec<Kind> = Vec::new();
    let (mut firsts, mut rest) = (Vec::new(), Vec::new());
    for problem in problems {
        if kinds.contains(&problem.kind) {
            rest.push(problem);
        } else {
            kinds.push(problem.kind);
            firsts.push(problem);
        }
    }
    firsts.append(&mut rest);
    firsts
}

fn judge(job: Job, options: &Options, answers: &[Result<String, String>], sums: &mut Sums) -> bool {
    sums.seeds += 1;
    let mut problem = None;
    for answer in answers {
        match answer {
            Err(error) => problem = Some(error.clone()),
            Ok(text) => {
                let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
                let (second, problems) = rest.split_once('\n').unwrap_or((rest, ""));
                let numbers = numbers_of(first);
                sums.counts.resize(counts::Event::ALL.len(), 0);
                for (sum, more) in sums.counts.iter_mut().zip(numbers_of(second)) {
                    *sum += more;
                }
                if let [trace, transactions, committed, unknown, turns, ns, longest] = numbers[..] {
                    sums.transactions += transactions;
                    sums.committed += committed;
                    sums.unknown += unknown;
                    sums.turns += turns;
                    sums.seconds += ns as f64 / 1e9;
                    if options.verbose {
                        println!(
                            "{job}: trace {trace:016x}, {transactions} transactions, {committed} committed, {unknown} unknown, \
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
    println!("{job} failed:\n{problem}\nreplay: {}", replay(job, options));
    false
}

fn replay(job: Job, options: &Options) -> String {
    let seed = job.seed;
    let name = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    };
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
    if let Some(sweep) = job.sweep {
        command.push_str(&format!(" --blow {}", told(sweep)));
    }
    if options.no_faults {
        command.push_str(" --no-faults");
    }
    if options.no_disk_caches {
        command.push_str(" --no-disk-caches");
    }
    if options.twice {
        command.push_str(" --twice");
    }
    if options.threads {
        command.push_str(" --threads");
    }
    command.push_str(&format!(" --patience {} --trace", options.patience));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_not_hidden_by_many_of_another() {
        let slow = || Kind::Slow.finding("a statement");
        let order = one_of_each_first(vec![slow(), slow(), Kind::Torn.finding("half")]);
        let kinds: Vec<_> = order.iter().map(|finding| finding.kind).collect();
        assert_eq!(kinds, [Kind::Slow, Kind::Torn, Kind::Slow]);
    }

    /// Bug: where the turns of the run without a blow could not be read, the sweep was that one run, and passed.
    #[test]
    fn a_run_without_turns_is_not_swept() {
        assert_eq!(turns_of("9 3 2 1 17 5000 40\n0 0\n"), Ok(17));
        for answer in [
            "",
            "9 3 2 1 0 5000 40\n0 0\n",
            "9 3 2 1 x 5000 40\n",
            "9 3 2 1 17\n",
        ] {
            assert!(turns_of(answer).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn a_blow_is_read_as_it_is_told() {
        for blow in Blow::value_variants() {
            let of = Sweep {
                turn: 17,
                place: 1,
                blow: *blow,
            };
            assert_eq!(sweep(&told(of)), Ok(of));
        }
        assert!(sweep("17:1").is_err());
    }
}
