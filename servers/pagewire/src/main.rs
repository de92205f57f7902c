//! The `pagewire` command.
//!
//! Reads the command line and the environment once; decides nothing else. Standard output is for what scripts read, logs go to
//! standard error (`RUST_LOG`).

mod bench;
mod conformance;
mod db;
mod doctor;
mod embedded;
mod serve;
mod shell;
#[cfg(feature = "simulation")]
mod sim;
mod transfer;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An unmodified SQLite whose pages live in a page server.
#[derive(Parser)]
#[command(name = "pagewire", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves databases from a store.
    Serve(serve::ServeArguments),
    /// Opens a database in an interactive SQL shell.
    #[command(disable_version_flag = true)]
    Shell(Box<shell::ShellArgs>),
    /// Databases and their history: list, delete, log, tag, branch, restore, diff, gc, info.
    Db(db::DbArguments),
    /// Copies a local SQLite file into a new database.
    Import(transfer::ImportArguments),
    /// Copies a database into a new local SQLite file.
    Export(transfer::ExportArguments),
    /// Tries the rules of the protocol on any server and says which tier it earns.
    Conformance(conformance::ConformanceArguments),
    /// Says whether a server can be used from here, and if not what to do.
    Doctor(doctor::DoctorArguments),
    /// Measures commits, reads and scans beside their floors.
    Bench(bench::BenchArguments),
    /// Simulates clients, network, servers and stores from a seed, and looks for what can't be.
    #[cfg(feature = "simulation")]
    Sim(sim::SimArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(shell::with_double_dashes(std::env::args_os()));
    let quiet = matches!(arguments.command, Command::Shell(_) | Command::Doctor(_));
    let level = if quiet {
        tracing::Level::ERROR
    } else {
        tracing::Level::INFO
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(level.into())
                .from_env_lossy(),
        )
        .init();
    let done = match arguments.command {
        Command::Serve(arguments) => serve::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Shell(arguments) => shell::run(*arguments, embedded::prepare),
        Command::Db(arguments) => db::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Import(arguments) => transfer::import(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Export(arguments) => transfer::export(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        #[cfg(feature = "simulation")]
        Command::Sim(arguments) => Ok(sim::run(&arguments)),
        Command::Bench(arguments) => bench::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            // What is printed is written without a context; with one it is another pipe that broke.
            let io = error.downcast_ref::<std::io::Error>();
            let io = io.filter(|_| error.chain().len() == 1);
            // Whoever read what is printed has seen enough (`| head`).
            if io.is_none_or(|io| io.kind() != std::io::ErrorKind::BrokenPipe) {
                eprintln!("pagewire: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
