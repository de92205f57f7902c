//! `pagewire db` and `pagewire export` on a server that keeps versions: what scripts read.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{SHELL, command};

/// A server of its own, which ends with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) endpoint: String,
    directory: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let mut child = command(SHELL, directory.path())
            .args(["serve", "--store", "versioned-memory"])
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line
            .split_whitespace()
            .find_map(|word| word.find("127.0.0.1:").map(|at| word[at..].to_owned()))
            .unwrap_or_else(|| panic!("{line:?}"));
        Self {
            child,
            endpoint: format!("http://{address}"),
            directory,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn pagewire(&self, arguments: &[&str]) -> Command {
        let mut command = command(SHELL, self.path());
        command
            .args(arguments)
            .env("PAGEWIRE_ENDPOINT", &self.endpoint);
        command
    }

    /// Standard output of a command that has to succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.pagewire(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a command that has to fail.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.pagewire(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?} was not refused");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn sql(&self, name: &str, sql: &str) -> String {
        self.run(&["shell", name, sql])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The fields of each line.
fn fields(output: &str) -> Vec<Vec<&str>> {
    output
        .lines()
        .map(|line| line.split('\t').collect())
        .collect()
}

#[test]
fn the_history_of_a_database_is_listed_named_branched_compared_and_restored() {
    let server = Server::start();
    server.sql(
        "a.db",
        "CREATE TABLE t(x); CREATE TABLE other(y); CREATE INDEX by_x ON t(x)",
    );
    server.sql("a.db", "INSERT INTO t VALUES (1)");
    let listed = server.run(&["db", "log", "a.db"]);
    let newest: u64 = fields(&listed)[0][0].parse().unwrap();
    let before = newest.to_string();
    server.sql(
        "a.db",
        "INSERT INTO t VALUES (2); CREATE TABLE third(z); DROP TABLE other",
    );

    // log
    let listed = server.run(&["db", "log", "a.db", "-n", "2"]);
    let lines = fields(&listed);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].len(), 4, "{listed}");
    assert!(lines[0][1].ends_with('Z'), "{listed}");
    let head: u64 = lines[0][0].parse().unwrap();
    assert_eq!(lines[1][0], (head - 1).to_string());
    let older = server.run(&["db", "log", "a.db", "--before", &before]);
    assert_eq!(fields(&older).len() as u64, newest - 1);

    // tag
    let tagged = server.run(&["db", "tag", "a.db", "first", &before]);
    assert!(tagged.starts_with(&format!("{before}\t")), "{tagged}");
    assert!(tagged.contains("(tag: first)"));
    server.run(&["db", "tag", "a.db", "2026-11-01"]);
    let tags = server.run(&["db", "tag", "a.db"]);
    let tags = fields(&tags);
    assert_eq!(tags[0][..2], ["2026-11-01", &head.to_string()]);
    assert_eq!(tags[1][..2], ["first", &before]);
    let taken = server.refused(&["db", "tag", "a.db", "first"]);
    assert!(taken.contains("first"), "{taken}");
    server.run(&["db", "tag", "--delete", "a.db", "2026-11-01"]);
    server.refused(&["db", "tag", "--delete", "a.db", "2026-11-01"]);
    let missing = server.refused(&["db", "diff", "a.db", "2026-11-01"]);
    assert!(missing.contains("2026-11-01T00:00:00Z"), "{missing}");
    assert_eq!(
        fields(&server.run(&["db", "log", "a.db", "--tagged"])).len(),
        1
    );

    // diff
    let diff = server.run(&["db", "diff", "a.db", "first"]);
    let lines = fields(&diff);
    let tables: Vec<_> = lines.iter().map(|line| (line[0], line[1])).collect();
    assert!(tables.contains(&("M", "t")), "{diff}");
    assert!(tables.contains(&("A", "third")), "{diff}");
    assert!(tables.contains(&("D", "other")), "{diff}");
    assert!(tables.contains(&("M", "sqlite_schema")), "{diff}");
    assert_eq!(lines.last().unwrap()[0], "pages");
    assert_eq!(
        server.run(&["db", "diff", "a.db", "first", "first"]),
        "pages\t0\t\n"
    );
    let json = server.run(&["db", "diff", "a.db", "first", &head.to_string(), "--json"]);
    assert!(json.contains("\"change\": \"added\""), "{json}");

    // export at a moment
    server.run(&["export", "a.db@first", "old.db"]);
    assert_eq!(
        server.run(&["shell", "--vfs", "unix", "old.db", "SELECT count(*) FROM t"]),
        "1\n"
    );

    // branch
    server.run(&["db", "branch", "a.db", "b.db", "first"]);
    server.sql("b.db", "INSERT INTO other VALUES (7)");
    assert_eq!(server.sql("b.db", "SELECT count(*) FROM t"), "1\n");
    assert_eq!(server.sql("a.db", "SELECT count(*) FROM t"), "2\n");
    let info = server.run(&["db", "info", "b.db"]);
    assert!(
        info.contains(&format!("branched_from\ta.db\t{before}\n")),
        "{info}"
    );
    let taken = server.refused(&["db", "branch", "a.db", "b.db"]);
    assert!(taken.contains("b.db"), "{taken}");

    // restore
    let restored = server.run(&["db", "restore", "a.db", "first"]);
    assert_eq!(restored.trim(), (head + 1).to_string());
    assert_eq!(server.sql("a.db", "SELECT count(*) FROM t"), "1\n");
    let listed = server.run(&["db", "log", "a.db", "-n", "1"]);
    assert!(
        listed.contains(&format!("(restored from {before})")),
        "{listed}"
    );

    // gc
    let freed = server.run(&["db", "gc"]);
    assert!(
        freed.starts_with("freed 0 versions"),
        "kept for ever: {freed}"
    );
}

#[test]
fn a_moment_that_is_not_one_is_refused_with_what_would_be_right() {
    let server = Server::start();
    for (at, says) in [
        ("2026-11-01T12:00:00", "2026-11-01T12:00:00Z"),
        ("3 months ago", "no fixed length"),
    ] {
        let said = server.refused(&["db", "restore", "a.db", at]);
        assert!(said.contains(says), "{said}");
    }
    let said = server.refused(&["db", "log", "missing.db"]);
    assert!(said.contains("missing.db"), "{said}");
}
