//! A cluster for the tests: one `fdbserver` on a free loopback port, with everything in memory and in a temporary directory.
//!
//! Shared by all tests of a run, each in a directory of its own in the cluster: the tests of one process, or, where nextest gives
//! each test a process, those of its run. A shell watches the owner and ends the server with it, however it ends.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::DatabaseId;
use pagewire_server::store::StoreError;

/// Which nextest sets in each test's process.
pub const RUN_ID: &str = "NEXTEST_RUN_ID";
/// No run takes longer.
const LONGEST: &str = "3600";

/// Ends the server with its owner, and starts it again whenever it dies before: `$1` the owner, `$2` the directory, then the command.
const WATCH: &str = r#"
owner=$1; directory=$2; shift 2
start() {
    "$@" >/dev/null 2>&1 &
    server=$!
    echo $server > "$directory/pid"
}
start "$@"
for _ in $(seq "$LONGEST"); do
    kill -0 "$owner" 2>/dev/null || break
    kill -0 "$server" 2>/dev/null || start "$@"
    sleep 1
done
kill -9 "$server" 2>/dev/null
rm -rf "$directory" "$directory.lock"
"#;

/// A running cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    directory: PathBuf,
}

#[expect(clippy::disallowed_methods, reason = "the settings of the tests")]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A program of FoundationDB: named by the environment, or on the path.
fn program(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(path) = setting(variable) {
        return Some(PathBuf::from(path)).filter(|path| path.is_file());
    }
    let paths = setting("PATH")?;
    let mut places = std::env::split_paths(&paths).map(|path| path.join(name));
    places.find(|path| path.is_file())
}

impl Cluster {
    /// The cluster of this run; `None`, and a line that says so, where it cannot be had.
    pub fn shared() -> Option<Self> {
        let owner = match setting(RUN_ID) {
            Some(_) => std::os::unix::process::parent_id(),
            None => std::process::id(),
        };
        let run = Self::run_id();
        let directory = std::env::temp_dir().join(format!("pagewire-fdb-{run}"));
        Self::start(directory, owner, "memory")
    }

    /// What tells this run's cluster from that of another, for a process of this one's: [`RUN_ID`] is to be that.
    pub fn run_id() -> String {
        setting(RUN_ID).unwrap_or_else(|| std::process::id().to_string())
    }

    /// A cluster of this test alone, which ends with its process at the latest.
    pub fn own(label: &str, engine: &str) -> Option<Self> {
        let owner = std::process::id();
        let directory = std::env::temp_dir().join(format!("pagewire-fdb-{owner}-{label}"));
        Self::start(directory, owner, engine)
    }

    fn start(directory: PathBuf, owner: u32, engine: &str) -> Option<Self> {
        let programs =
            program("fdbserver", "PAGEWIRE_FDBSERVER").zip(program("fdbcli", "PAGEWIRE_FDBCLI"));
        let Some((server, cli)) = programs else {
            println!(
                "not run: there is no fdbserver (on the path, or PAGEWIRE_FDBSERVER) or no fdbcli"
            );
            return None;
        };
        if let Err(why) = foundationdb_sys::load(library().as_deref()) {
            println!("not run: there is no FoundationDB client library: {why}");
            return None;
        }
        let cluster = Self { directory };
        // One process of a run starts it, the others wait.
        let lock = File::create(cluster.directory.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        if !cluster.directory.join("ready").exists() {
            std::fs::create_dir_all(cluster.directory.join("data")).unwrap();
            let port = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = port.local_addr().unwrap().to_string();
            drop(port);
            std::fs::write(cluster.file(), format!("test:test@{address}\n")).unwrap();
            cluster.run(&server, &address, owner);
            cluster.configure(&cli, engine);
            File::create(cluster.directory.join("ready")).unwrap();
        }
        Some(cluster)
    }

    /// Kills the server; it starts again by itself.
    pub fn kill_server(&self) {
        let pid = std::fs::read_to_string(self.directory.join("pid")).unwrap();
        let killed = Command::new("sh")
            .args(["-c", &format!("kill -9 {}", pid.trim())])
            .status();
        assert!(killed.expect("kill").success(), "there is no server {pid}");
    }

    /// Starts the server and what watches it.
    #[expect(clippy::zombie_processes, reason = "it ends after this process")]
    fn run(&self, server: &Path, address: &str, owner: u32) {
        let data = self.directory.join("data");
        Command::new("sh")
            .args(["-c", WATCH, "sh", &owner.to_string()])
            .arg(&self.directory)
            .arg(server)
            .args(["-p", address, "-C"])
            .arg(self.file())
            .arg("-d")
            .arg(&data)
            .arg("-L")
            .arg(&data)
            .args(["--storage-memory", "3GiB"])
            .env("LONGEST", LONGEST)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("a shell to watch the server");
    }

    fn configure(&self, cli: &Path, engine: &str) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let configured = Command::new(cli)
                .arg("-C")
                .arg(self.file())
                .args(["--timeout", "20", "--exec"])
                .arg(format!("configure new single {engine}"))
                .output()
                .expect("fdbcli");
            // Errors are on the other one: that the attempt before, which took too long, has done it.
            let said = [configured.stdout, configured.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            if said.contains("Database created") || said.contains("already exists") {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the cluster does not begin: {said}"
            );
        }
    }

    /// The cluster file.
    pub fn file(&self) -> PathBuf {
        self.directory.join("fdb.cluster")
    }

    /// Options of an installation of its own.
    pub fn options(&self) -> FoundationDbOptions {
        let id = DatabaseId::random().unwrap().to_string();
        FoundationDbOptions {
            directory: vec!["test".to_owned(), id],
            library: library(),
            patience: Duration::from_secs(60),
            ..FoundationDbOptions::default()
        }
    }

    /// A store of these options.
    pub async fn open(
        &self,
        options: &FoundationDbOptions,
    ) -> Result<FoundationDbStore, StoreError> {
        FoundationDbStore::open_with(&self.file(), options.clone()).await
    }
}

/// The client library, where the environment names one.
fn library() -> Option<PathBuf> {
    setting("PAGEWIRE_FDB_LIBRARY").map(PathBuf::from)
}
