//! SQLite's own speedtest1, as a program that is linked with SQLite and Pagewire's static library.
//!
//! Its calls and bytes are counted in its process. A program that knows the environment variable `PROOF_RPC`, as that of
//! `tests/sqlite/tools.sh` does, appends a line to the file of that name when it ends: calls, bytes sent and received.

use std::path::{Path, PathBuf};
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
        let calls = self.directory.join("speedtest-calls");
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
            calls: (vfs == "pagewire").then(|| calls.clone()),
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
        row.counted = counted(&calls)?;
        Ok(vec![row])
    }
}

/// The mean of the lines that the runs have left; the program may be one that leaves none.
fn counted(calls: &Path) -> anyhow::Result<Counted> {
    let text = match std::fs::read_to_string(calls) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Counted::Elsewhere);
        }
        Err(error) => return Err(error.into()),
    };
    let mut sum = Traffic::default();
    let mut runs = 0;
    for line in text.lines() {
        let numbers: Vec<u64> = line
            .split('\t')
            .map_while(|word| word.parse().ok())
            .collect();
        let [calls, sent, received] = numbers[..] else {
            anyhow::bail!("{} has a line that is no count: {line}", calls.display());
        };
        sum.calls += calls;
        sum.sent += sent;
        sum.received += received;
        runs += 1;
    }
    anyhow::ensure!(runs > 0, "{} has no line", calls.display());
    Ok(Counted::Known(Traffic {
        calls: sum.calls.div_ceil(runs),
        sent: sum.sent / runs,
        received: sum.received / runs,
    }))
}

struct Speedtest {
    program: PathBuf,
    arguments: Vec<String>,
    vfs: &'static str,
    size: u32,
    database: String,
    endpoint: String,
    /// Where it says what it counted.
    calls: Option<PathBuf>,
    number: u32,
}

impl Operation for Speedtest {
    fn run(&mut self) -> anyhow::Result<()> {
        self.number += 1;
        let mut command = Command::new(&self.program);
        match &self.calls {
            Some(file) => command.env("PROOF_RPC", file),
            None => command.env_remove("PROOF_RPC"),
        };
        let output = command
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_the_mean_of_the_runs_and_unknown_where_none_says_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("calls");
        assert!(matches!(counted(&file).unwrap(), Counted::Elsewhere));
        std::fs::write(&file, "10\t300\t40\n12\t500\t60\n").unwrap();
        let Counted::Known(traffic) = counted(&file).unwrap() else {
            panic!("the calls are there");
        };
        let expected = Traffic {
            calls: 11,
            sent: 400,
            received: 50,
        };
        assert_eq!(traffic, expected);
        std::fs::write(&file, "10\tmany\n").unwrap();
        assert!(counted(&file).is_err());
        std::fs::write(&file, "").unwrap();
        assert!(counted(&file).is_err());
    }
}
