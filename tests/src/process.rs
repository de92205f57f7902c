//! A guest in a process of its own, driven statement by statement: what two machines would do, in an order that the
//! test chooses.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::server::{send_signal, stop, target_dir};

/// Longer than any deadline of the library: a guest that needs more hangs.
const ANSWER: Duration = Duration::from_secs(60);

/// How a statement failed in the other process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// SQLite's extended result code.
    pub code: i32,
    /// SQLite's message, and what the library says.
    pub message: String,
}

/// What a statement gave.
pub type Answer = Result<Vec<String>, Failure>;

/// A process with SQLite and the VFS in it. Dropping it kills the process.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Guest {
    /// With settings in its environment.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_under(&[], settings)
    }

    /// The same by a command that becomes the program which it is given.
    pub fn start_under(command: &[&str], settings: &[(&str, &str)]) -> Self {
        let program = target_dir().join("pagewire-guest");
        let mut command: Vec<_> = command.iter().map(OsString::from).collect();
        command.push(program.into_os_string());
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .arg("drive")
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the guest");
        let stdin = child.stdin.take().expect("stdin");
        let stdout = child.stdout.take().expect("stdout");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
        }
    }

    /// Opens `uri` as connection `name`.
    pub fn open(&mut self, name: &str, uri: &str) -> Answer {
        self.send(&format!("open {name} {uri}"));
        self.answer()
    }

    /// Closes connection `name`.
    pub fn close(&mut self, name: &str) -> Answer {
        self.send(&format!("close {name}"));
        self.answer()
    }

    /// Runs one statement on connection `name`.
    pub fn sql(&mut self, name: &str, sql: &str) -> Answer {
        self.begin_sql(name, sql);
        self.answer()
    }

    /// Runs one statement that has to succeed.
    pub fn ok(&mut self, name: &str, sql: &str) -> Vec<String> {
        self.sql(name, sql)
            .unwrap_or_else(|failure| panic!("{sql}: {failure:?}"))
    }

    /// Sends a statement without waiting for [`Guest::answer`].
    pub fn begin_sql(&mut self, name: &str, sql: &str) {
        self.send(&format!("sql {name} {}", sql.replace('\n', " ")));
    }

    /// The answer to what was sent.
    pub fn answer(&mut self) -> Answer {
        let mut rows = Vec::new();
        loop {
            let line = self
                .lines
                .recv_timeout(ANSWER)
                .unwrap_or_else(|error| panic!("the guest hangs or died: {error}"));
            match line.split_once(' ') {
                Some(("row", row)) => rows.push(row.to_owned()),
                Some(("err", rest)) => {
                    let (code, message) = rest.split_once(' ').expect("code and message");
                    return Err(Failure {
                        code: code.parse().expect("a number"),
                        message: message.to_owned(),
                    });
                }
                _ if line == "ok" => return Ok(rows),
                _ => panic!("the guest said {line:?}"),
            }
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// SIGSTOP.
    pub fn pause(&self) {
        stop(self.child.id());
    }

    /// SIGCONT.
    pub fn resume(&self) {
        send_signal(self.child.id(), "-CONT");
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    fn send(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("write to the guest");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be dead already: that is what some tests are about.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
