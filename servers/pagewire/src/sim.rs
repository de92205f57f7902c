//! `pagewire sim`: the simulator of `tests/simulator`, in a build with the feature `simulation`, which no release has.

use std::process::ExitCode;

/// Which seeds, and how.
#[derive(clap::Args)]
pub struct SimArguments {
    #[command(flatten)]
    options: pagewire_simulator::cli::Options,
}

/// Runs them, before anything has started a thread.
pub fn run(arguments: &SimArguments) -> ExitCode {
    pagewire_simulator::cli::run_options(&arguments.options)
}
