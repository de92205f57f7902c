//! `pagewire conformance`: the suite of `servers/core` against any server, through gRPC.
//!
//! One line for each rule on standard output; where one is broken what the server did and the last exchanges. The last line says
//! which tiers were earned. Exit code 0: the tier that was asked for is earned; 1: it is not; 2: no server answers.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use clap::{Args, ValueEnum};
use pagewire_proto::SessionId;
use pagewire_server::conformance::Verdict;
use pagewire_server::conformance::endpoint::{Endpoint, Restart, Tier, Trialled, earned};
use pagewire_server::store::StoreError;

/// Arguments of `pagewire conformance`.
#[derive(Debug, Args)]
pub struct ConformanceArguments {
    /// The server. Databases whose names begin with `conformance/` and a random number come and go; nothing else is touched.
    #[arg(env = "PAGEWIRE_ENDPOINT", default_value = "http://127.0.0.1:7240")]
    url: String,
    /// The tier that has to be earned.
    #[arg(long, value_enum, default_value = "minimal")]
    tier: TierName,
    /// A shell command that kills the server (`kill -9`) and starts it again on the same store: needed for `durable`.
    #[arg(long)]
    restart: Option<String>,
    /// For a store that several servers share: a server that was killed may count as one that lives for so many seconds, and deletions be refused and versions
    /// be kept because of its sessions.
    #[arg(long, default_value_t = 0)]
    dead_after_s: u32,
    /// Only rules whose names begin with one of these; no tier is earned then.
    #[arg(long)]
    rule: Vec<String>,
    /// Of everything that is random: repeats a run.
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
}

/// The tiers of `proto/README.md`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum TierName {
    Minimal,
    Leased,
    Durable,
    Versioned,
    Branching,
}

impl TierName {
    fn tier(self) -> Tier {
        match self {
            TierName::Minimal => Tier::Minimal,
            TierName::Leased => Tier::Leased,
            TierName::Durable => Tier::Durable,
            TierName::Versioned => Tier::Versioned,
            TierName::Branching => Tier::Branching,
        }
    }
}

struct Command(String);

#[async_trait]
impl Restart for Command {
    async fn restart(&self) -> Result<(), StoreError> {
        let command = self.0.clone();
        let run = tokio::task::spawn_blocking(move || {
            std::process::Command::new("sh")
                .arg("-c")
                .arg(command)
                .status()
        });
        let status = run
            .await
            .map_err(|error| StoreError::Internal(error.to_string()))?
            .map_err(|error| StoreError::Internal(format!("--restart: {error}")))?;
        match status.success() {
            true => Ok(()),
            false => Err(StoreError::Internal(format!("--restart: {status}"))),
        }
    }
}

/// Tries the rules.
pub fn run(arguments: &ConformanceArguments) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime could not start")?
        .block_on(try_all(arguments))
}

async fn try_all(arguments: &ConformanceArguments) -> anyhow::Result<ExitCode> {
    let restart = arguments.restart.clone();
    let restart = restart.map(|command| Box::new(Command(command)) as Box<dyn Restart>);
    let dead_after = Duration::from_secs(arguments.dead_after_s.into());
    let endpoint = Endpoint::new(&arguments.url, restart).on_a_shared_store(dead_after);
    let welcome = match endpoint.welcome().await {
        Ok(welcome) => welcome,
        Err(error) => {
            eprintln!("pagewire: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => {
            let id = SessionId::random()?;
            u64::from(u32::from_le_bytes(id.as_bytes()[..4].try_into()?))
        }
    };
    let store = welcome.store.clone().unwrap_or_default();
    say(&format!(
        "{} with store {} at {}, seed {seed}",
        welcome.server_name, store.store_name, arguments.url
    ))?;
    let mut trials = Vec::new();
    for name in Endpoint::rules() {
        let wanted = arguments.rule.iter();
        if !arguments.rule.is_empty() && !wanted.clone().any(|rule| name.starts_with(rule)) {
            continue;
        }
        let began = Instant::now();
        let trial = endpoint.try_rule(name, seed).await;
        report(&trial, began.elapsed().as_millis())?;
        trials.push(trial);
    }
    let cleaned = endpoint.finish().await;
    if let Err(error) = &cleaned {
        say(&format!(
            "what the rules made below conformance/ could not be deleted: {error}"
        ))?;
    }
    let earned = match arguments.rule.is_empty() {
        true => earned(&trials, &welcome),
        false => Vec::new(),
    };
    let names: Vec<_> = earned.iter().map(|tier| tier.name()).collect();
    let failed = trials.iter().filter(|trial| trial.outcome.is_err()).count();
    let kept = trials
        .iter()
        .filter(|trial| matches!(trial.outcome, Ok(Verdict::Kept)))
        .count();
    say(&format!(
        "{kept} kept, {failed} failed, {} not tried; tiers earned: {}",
        trials.len() - kept - failed,
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    ))?;
    let good = match arguments.rule.is_empty() {
        true => earned.contains(&arguments.tier.tier()),
        false => failed == 0 && kept > 0,
    };
    Ok(if good && cleaned.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn report(trial: &Trialled, millis: u128) -> anyhow::Result<()> {
    match &trial.outcome {
        Ok(Verdict::Kept) => say(&format!("kept       {} ({millis} ms)", trial.rule)),
        Ok(Verdict::NotTried(why)) => say(&format!("not tried  {}: {why}", trial.rule)),
        Err(violation) => {
            say(&format!("FAILED     {}: {violation}", trial.rule))?;
            for exchange in &trial.exchanges {
                say(&format!("             {exchange}"))?;
            }
            Ok(())
        }
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    Ok(())
}
