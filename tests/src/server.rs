//! A `pagewire serve` process that tests start, pause, kill and start again on the same port.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const START: Duration = Duration::from_secs(30);

/// The folder into which cargo put the built programs.
pub fn target_dir() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let dir = own.parent().expect("a folder");
    if dir.ends_with("deps") {
        dir.parent().expect("a folder").to_owned()
    } else {
        dir.to_owned()
    }
}

/// A store that keeps versions. What is promised of them holds on each: see [`on_versioned_stores`](crate::on_versioned_stores).
#[derive(Clone, Copy, Debug)]
pub enum VersionedStore {
    /// All versions in memory.
    Memory,
    /// On disk, in a folder that goes with the server.
    Local,
}

/// Makes two tests of each `fn name(store: VersionedStore)`: `versioned_memory::name` and `local::name`. One that is not listed is
/// unused, which the compiler says.
#[macro_export]
macro_rules! on_versioned_stores {
    ($($test:ident)*) => {
        mod versioned_memory {
            $(#[test]
            fn $test() {
                super::$test($crate::server::VersionedStore::Memory);
            })*
        }

        mod local {
            $(#[test]
            fn $test() {
                super::$test($crate::server::VersionedStore::Local);
            })*
        }
    };
}

/// A page server in a process of its own. Dropping it kills the process.
#[derive(Debug)]
pub struct PageServer {
    store: String,
    arguments: Vec<String>,
    address: String,
    child: Child,
    /// What the store has, where nobody else wants it.
    _own_folder: Option<tempfile::TempDir>,
}

impl PageServer {
    /// On the memory store.
    pub fn memory() -> Self {
        Self::start("memory", &[])
    }

    /// On the memory store that keeps all versions.
    pub fn versioned() -> Self {
        Self::start("versioned-memory", &[])
    }

    /// On the local store in `dir`.
    pub fn local(dir: &Path) -> Self {
        Self::start(&format!("local:{}", dir.display()), &[])
    }

    /// On a store that keeps versions, with more arguments.
    pub fn on(store: VersionedStore, arguments: &[&str]) -> Self {
        match store {
            VersionedStore::Memory => Self::start("versioned-memory", arguments),
            VersionedStore::Local => {
                let folder = tempfile::tempdir().expect("a folder");
                let mut server =
                    Self::start(&format!("local:{}", folder.path().display()), arguments);
                server._own_folder = Some(folder);
                server
            }
        }
    }

    /// On any store, with more arguments.
    pub fn start(store: &str, arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        let (child, address) = launch(store, &arguments, "127.0.0.1:0");
        Self {
            store: store.to_owned(),
            arguments,
            address,
            child,
            _own_folder: None,
        }
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `http://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Starts it again after [`PageServer::kill`], on the same port.
    pub fn restart(&mut self) {
        let (child, address) = launch(&self.store, &self.arguments, &self.address);
        assert_eq!(address, self.address);
        self.child = child;
    }

    /// SIGSTOP: the process is there and does nothing.
    pub fn pause(&self) {
        stop(self.child.id());
    }

    /// SIGCONT.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Deletes a database with `pagewire db delete`; otherwise what that said.
    pub fn delete(&self, name: &str) -> Result<(), String> {
        let output = Command::new(target_dir().join("pagewire"))
            .args(["db", "delete", name, "--endpoint", &self.endpoint()])
            .output()
            .expect("run");
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Bytes of memory that the process has resident.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("/proc");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("VmRSS");
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .expect("a number")
            .parse()
            .expect("a number");
        kib * 1024
    }

    fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }
}

impl Drop for PageServer {
    fn drop(&mut self) {
        // A server that ended by itself is the business of the test that looks.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal (`-STOP`, `-KILL`, ...) to a process by its id.
pub fn send_signal(pid: u32, signal: &str) {
    // The shell's own: a small machine may have no program of this name.
    let status = Command::new("sh")
        .args(["-c", &format!("kill {signal} {pid}")])
        .status()
        .expect("kill");
    assert!(status.success(), "kill {signal} {pid}");
}

/// SIGSTOP, and every thread has stopped: the signal arrives later than `kill` returns, and a thread on another core may answer once more.
pub fn stop(pid: u32) {
    send_signal(pid, "-STOP");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while !has_stopped(pid) {
        assert!(std::time::Instant::now() < deadline, "{pid} does not stop");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// proc_pid_stat(5): the state follows the name in parentheses.
fn has_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

fn launch(store: &str, arguments: &[String], listen: &str) -> (Child, String) {
    let program = target_dir().join("pagewire");
    assert!(
        program.exists(),
        "{} is missing: cargo build -p pagewire first",
        program.display()
    );
    let mut child = Command::new(program)
        .args(["serve", "--store", store, "--listen", listen])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the server");
    let stdout = child.stdout.take().expect("stdout");
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { return };
            // After the first line nobody listens; reading goes on so that the server never waits for us.
            let _ = sender.send(line);
        }
    });
    let line = match lines.recv_timeout(START) {
        Ok(line) => line,
        Err(error) => {
            let _ = child.kill();
            panic!("the server said nothing: {error}, exit {:?}", child.wait());
        }
    };
    let address = line
        .strip_prefix("pagewire listening on ")
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("the server said {line:?}"))
        .to_owned();
    (child, address)
}
