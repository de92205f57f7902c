//! The `pagewire` command.
//!
//! Reads the command line and the environment once; decides nothing else. Standard output is for what scripts read, logs go to
//! standard error (`RUST_LOG`).

mod db;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An unmodified SQLite whose pages live in a page server.
#[derive(Debug, Parser)]
#[command(name = "pagewire", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves databases from a store.
    Serve(serve::ServeArguments),
    /// Lists and deletes databases.
    Db(db::DbArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::builder()
                .with_default_directive(tracing::Level::INFO.into())
                .from_env_lossy(),
        )
        .init();
    let done = match arguments.command {
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Db(arguments) => db::run(arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pagewire: {error:#}");
            ExitCode::FAILURE
        }
    }
}
