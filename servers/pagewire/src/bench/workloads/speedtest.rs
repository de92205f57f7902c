//! SQLite's own speedtest1, as a program that is linked with SQLite and Pagewire's static library.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use super::*;
use crate::bench::rounds::Operation;

impl Scene<'_> {
    /// Ours against a local file of the same durability; no row where no program was named.
    pub(super) fn speedtest(&self) -> anyhow::Result<Vec<Row>> {
        let Some(program) = self.speedtest else {
            return Ok(Vec::new());
        };
        let run = |vfs: &'static str, arguments: &[&str], database: String| Speedtest {
            program: program.to_owned(),
            arguments: arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect(),
            vfs,
            size: self.sizes.speedtest_size,
            database,
            endpoint: self.remote.endpoint.clone(),
            number: 0,
        };
        let file = |name: &str| self.directory.join(name).display().to_string();
        // A memory store survives nothing: so does a file that is never synced.
        let unsynced: &[&str] = &["--journal", "wal", "--nosync"];
        let wal: &[&str] = if self.durable {
            &["--journal", "wal"]
        } else {
            unsynced
        };
        let rollback: &[&str] = if self.durable { &[] } else { &["--nosync"] };
        let contestants = vec![
            Contestant::new(self.ours(), run("pagewire", &[], "speedtest".to_owned())),
            Contestant::new("local, WAL", run("unix", wal, file("speedtest-wal"))),
            Contestant::new(
                "local, rollback journal",
                run("unix", rollback, file("speedtest-rollback")),
            ),
        ];
        let mut row = self.row(
            format!(
                "speedtest1 --size {}, {} store",
                self.sizes.speedtest_size, self.remote.store
            ),
            Unit::Microseconds,
            self.sizes.long(),
            contestants,
            &[("local", 1.3)],
        )?;
        row.counted = Counted::Elsewhere;
        Ok(vec![row])
    }
}

struct Speedtest {
    program: PathBuf,
    arguments: Vec<String>,
    vfs: &'static str,
    size: u32,
    database: String,
    endpoint: String,
    number: u32,
}

impl Operation for Speedtest {
    fn run(&mut self) -> anyhow::Result<()> {
        self.number += 1;
        let output = Command::new(&self.program)
            .args(&self.arguments)
            .args(["--vfs", self.vfs, "--size", &self.size.to_string()])
            .arg(format!("{}-{}.db", self.database, self.number))
            .env("PAGEWIRE_ENDPOINT", &self.endpoint)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{} can't be started", self.program.display()))?;
        anyhow::ensure!(
            output.status.success(),
            "{} ended with {}: {}",
            self.program.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }
}
