//! `pagewire sim` as a program of its own.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    pagewire_simulator::cli::run(&pagewire_simulator::cli::Arguments::parse())
}
