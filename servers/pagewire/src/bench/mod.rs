//! `pagewire bench`: what an operation costs here, beside what it would cost at the least, in the same run.
//!
//! The servers are processes of their own, made of this same binary, and every figure has its floor measured between its
//! own rounds: a bare gRPC call with the same bytes, an append and fdatasync of them, and local SQLite files. It prints aims
//! beside the ratios, and never fails because of one.

mod callers;
mod child;
mod delay;
mod echo;
mod report;
mod rounds;
mod subjects;
mod workloads;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum as _};

use crate::embedded::register_vfs;
use child::ServerProcess;
use report::Row;
use subjects::Remote;
use workloads::{Scene, Sizes, Workload};

/// Arguments of `pagewire bench`.
#[derive(Debug, Args)]
pub struct BenchArguments {
    /// Smaller tables and fewer rounds.
    #[arg(long)]
    quick: bool,
    /// Only these workloads.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Workload>,
    /// `memory`, or `local:DIR` for a store in a new folder within DIR, beside the local files. Without it what writes and what
    /// reads cold is measured on both, the rest on memory.
    #[arg(long)]
    store: Option<String>,
    /// Unix sockets instead of loopback TCP.
    #[arg(long)]
    unix: bool,
    /// A speedtest1 that is linked with SQLite and libpagewire.a, for the workload of that name.
    #[arg(long, value_name = "PROGRAM")]
    speedtest1: Option<PathBuf>,
    /// One JSON array instead of text.
    #[arg(long)]
    json: bool,
    /// The process that serves the echo.
    #[arg(long, hide = true)]
    echo_at: Option<String>,
    /// It leaves Nagle's algorithm on.
    #[arg(long, hide = true)]
    echo_nagle: bool,
}

/// Which stores, and where the files lie.
struct Checked {
    memory: bool,
    local: bool,
    /// Chosen with the local store; the system's place for temporary files otherwise.
    within: Option<PathBuf>,
}

/// Measures and prints.
pub fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    if let Some(listen) = &arguments.echo_at {
        return echo::serve(listen, !arguments.echo_nagle);
    }
    let checked = check(arguments.store.as_deref())?;
    register_vfs().context("the VFS can't be registered")?;
    let directory = match &checked.within {
        None => tempfile::Builder::new().prefix("pagewire-bench-").tempdir(),
        Some(within) => tempfile::Builder::new()
            .prefix("pagewire-bench-")
            .tempdir_in(within),
    }
    .context("no folder for the files of the benchmark")?;
    let rows = measure_all(arguments, &checked, directory.path())?;
    if arguments.json {
        let rows: Vec<String> = rows.iter().map(Row::json).collect();
        writeln!(io::stdout(), "[{}]", rows.join(",\n "))?;
    }
    Ok(())
}

fn check(store: Option<&str>) -> anyhow::Result<Checked> {
    let both = store.is_none();
    Ok(match store {
        None | Some("memory") => Checked {
            memory: true,
            local: both,
            within: None,
        },
        Some(text) => match text.strip_prefix("local:") {
            Some(directory) if !directory.is_empty() => Checked {
                memory: false,
                local: true,
                within: Some(directory.into()),
            },
            _ => bail!("--store {text}: must be memory or local:DIR"),
        },
    })
}

fn measure_all(
    arguments: &BenchArguments,
    checked: &Checked,
    directory: &Path,
) -> anyhow::Result<Vec<Row>> {
    let sockets = arguments.unix.then_some(directory);
    let echo = ServerProcess::echo(sockets)?;
    let mut servers = Vec::new();
    if checked.memory {
        let server = ServerProcess::page_server("memory", "memory", sockets)?;
        servers.push(("memory", server));
    }
    if checked.local {
        let store = format!("local:{}", directory.join("store").display());
        let server = ServerProcess::page_server(&store, "local", sockets)?;
        servers.push(("local", server));
    }
    let sizes = if arguments.quick {
        Sizes::QUICK
    } else {
        Sizes::FULL
    };
    let mut rows = Vec::new();
    for workload in Workload::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(workload) {
            continue;
        }
        let on_all = matches!(
            workload,
            Workload::Commit
                | Workload::ColdRead
                | Workload::Open
                | Workload::ColdScan
                | Workload::BulkLoad
                | Workload::Ycsb
                | Workload::NewOrder
                | Workload::HandOver
                | Workload::Tenants
                | Workload::Speedtest
        );
        for (name, server) in servers.iter().take(if on_all { servers.len() } else { 1 }) {
            let files = directory.join(format!("files-{name}"));
            std::fs::create_dir_all(&files)?;
            let remote = Remote {
                store: name,
                endpoint: server.endpoint.clone(),
            };
            let scene = Scene {
                remote: &remote,
                durable: *name == "local",
                echo: &echo.endpoint,
                directory: &files,
                speedtest: arguments.speedtest1.as_deref(),
                sizes,
            };
            for row in scene.measure(*workload)? {
                if !arguments.json {
                    writeln!(io::stdout(), "{}", row.text())?;
                }
                rows.push(row);
            }
        }
    }
    Ok(rows)
}
