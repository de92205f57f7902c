//! The processes beside the one that measures: page servers and the echo, each this same binary.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

/// Settings of the caller's environment that must not reach a server that is measured.
const SETTINGS: [&str; 4] = [
    "PAGEWIRE_STORE",
    "PAGEWIRE_LISTEN",
    "PAGEWIRE_LEASE_TTL_MS",
    "PAGEWIRE_ENDPOINT",
];

/// A running server; ended when it is dropped.
pub struct ServerProcess {
    process: Child,
    /// Where clients connect.
    pub endpoint: String,
}

impl ServerProcess {
    /// `pagewire serve`, on loopback or on a unix socket in `sockets`.
    pub fn page_server(store: &str, name: &str, sockets: Option<&Path>) -> anyhow::Result<Self> {
        Self::start(
            &["serve", "--store", store, "--listen"],
            &listen(name, sockets),
        )
    }

    /// The echo service.
    pub fn echo(sockets: Option<&Path>) -> anyhow::Result<Self> {
        Self::start(&["bench", "--echo-at"], &listen("echo", sockets))
    }

    /// The echo service over loopback, whose sockets use Nagle's algorithm.
    pub fn echo_with_nagle() -> anyhow::Result<Self> {
        Self::start(
            &["bench", "--echo-nagle", "--echo-at"],
            &listen("echo", None),
        )
    }

    fn start(arguments: &[&str], listen: &OsString) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("this program's file is not known")?;
        let mut command = Command::new(program);
        for setting in SETTINGS {
            command.env_remove(setting);
        }
        let mut process = command
            .args(arguments)
            .arg(listen)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("a server process could not start")?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line
            .strip_prefix("pagewire listening on ")
            .and_then(|rest| rest.rsplit_once(" store="))
            .map(|(address, _)| address.to_owned());
        let mut server = Self {
            process,
            endpoint: String::new(),
        };
        let Some(address) = address else {
            bail!("a server process ended before it listened; its message is above");
        };
        server.endpoint = if address.starts_with("unix:") {
            address
        } else {
            format!("http://{address}")
        };
        Ok(server)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Nothing of it is kept: its store lies in a temporary directory, or in memory.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn listen(name: &str, sockets: Option<&Path>) -> OsString {
    match sockets {
        None => "127.0.0.1:0".into(),
        Some(directory) => {
            let mut listen = OsString::from("unix:");
            listen.push(directory.join(name));
            listen
        }
    }
}
