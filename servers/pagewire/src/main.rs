//! The `pagewire` command.

mod shell;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "pagewire", version, about = "SQLite on remote pages")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open a database in an interactive SQL shell
    #[command(disable_version_flag = true)]
    Shell(shell::ShellArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse_from(shell::with_double_dashes(std::env::args_os()));
    match cli.command {
        Command::Shell(args) => shell::run(args, |args| {
            Ok(shell::ShellEnvironment {
                vfs: "pagewire".to_owned(),
                endpoint: args.endpoint.clone(),
                guard: None,
            })
        }),
    }
}
