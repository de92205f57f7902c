//! `pagewire serve`: settings -> store -> server, until SIGTERM or SIGINT.
//!
//! Prints one line on standard output, when clients can connect; nothing else ever.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_local::{DEFAULT_CHECK_BYTES, DEFAULT_RETENTION, LocalOptions, LocalStore};
use pagewire_server::store::PageStore;
use pagewire_server::{Server, Settings, bind_tcp, bind_unix};
use pagewire_versioned_memory::{VersionedMemoryOptions, VersionedMemoryStore};
use tokio::signal::unix::{SignalKind, signal};

/// Arguments of `pagewire serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    /// Where the pages are kept: `memory`, `versioned-memory`, `local:DIR` or `fdb:CLUSTER_FILE`.
    #[arg(long, env = "PAGEWIRE_STORE", default_value = "local:./pagewire-data")]
    store: String,
    /// Where clients connect: `ADDR:PORT` (port 0 for any free one) or `unix:PATH`.
    #[arg(long, env = "PAGEWIRE_LISTEN", default_value = "127.0.0.1:7240")]
    listen: String,
    /// How long a session and its leases live without a heartbeat, in milliseconds.
    #[arg(long, env = "PAGEWIRE_LEASE_TTL_MS", default_value_t = 5000)]
    lease_ttl_ms: u64,
    /// How long old versions are kept: `24h`, `7days`, `forever`, or `0` for no longer than somebody has them open
    /// [default: 24h, forever in versioned-memory].
    #[arg(long, env = "PAGEWIRE_RETENTION")]
    retention: Option<String>,
    /// Goes through all of the tree of a local store before it serves, whatever its size, and says what is damaged; without it that is done up to
    /// 256 MiB. Takes about as long as reading the file.
    #[arg(long, env = "PAGEWIRE_CHECK", value_parser = clap::builder::FalseyValueParser::new())]
    check: bool,
    /// How many clients may be connected at a time.
    #[arg(long, env = "PAGEWIRE_MAX_CONNECTIONS", default_value_t = Settings::default().max_connections)]
    max_connections: usize,
    /// The client library of FoundationDB, libfdb_c.so, where the system does not find it by its name.
    #[arg(long, env = "PAGEWIRE_FDB_LIBRARY")]
    fdb_library: Option<PathBuf>,
    /// The directory of the FoundationDB cluster that has everything: one for each installation, its parts separated by `/`.
    #[arg(long, env = "PAGEWIRE_FDB_DIRECTORY", default_value = "pagewire")]
    fdb_directory: String,
    /// Memory for requests on their way in and answers on their way out, of all clients together, in MiB.
    #[arg(long, env = "PAGEWIRE_MEMORY_MIB", default_value_t = Settings::default().memory_bytes >> 20)]
    memory_mib: usize,
}

/// Where pages are kept.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreSetting {
    /// In memory, one version.
    Memory,
    /// In memory, all versions for this long; `None` for ever.
    VersionedMemory(Option<Duration>),
    /// On the local disk, with all versions for this long; `None` for ever. Whether all of it is checked first, whatever its size.
    Local(PathBuf, Option<Duration>, bool),
    /// In a FoundationDB cluster.
    FoundationDb(FoundationDbSetting),
}

/// A FoundationDB cluster.
#[derive(Debug, PartialEq, Eq)]
pub struct FoundationDbSetting {
    cluster_file: PathBuf,
    directory: Vec<String>,
    library: Option<PathBuf>,
    /// `None` for ever.
    retention: Option<Duration>,
}

/// Where clients connect.
#[derive(Debug, PartialEq, Eq)]
enum ListenSetting {
    Tcp(String),
    Unix(PathBuf),
}

/// What was asked for, checked.
#[derive(Debug)]
struct Checked {
    store: StoreSetting,
    listen: ListenSetting,
    settings: Settings,
}

/// Serves until a signal.
pub fn run(arguments: &ServeArguments) -> anyhow::Result<()> {
    let checked = check(arguments)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime could not start")?
        .block_on(serve(checked))
}

fn check(arguments: &ServeArguments) -> anyhow::Result<Checked> {
    let mut problems = Vec::new();
    let retention = arguments.retention.as_deref().map(parse_retention);
    let retention = retention.transpose().unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    let store = match arguments.store.as_str() {
        "memory" => Some(StoreSetting::Memory),
        "versioned-memory" => Some(StoreSetting::VersionedMemory(retention.flatten())),
        text => match text.split_once(':') {
            Some(("local", directory)) if !directory.is_empty() => {
                let retention = retention.unwrap_or(Some(DEFAULT_RETENTION));
                let directory = PathBuf::from(directory);
                Some(StoreSetting::Local(directory, retention, arguments.check))
            }
            Some(("fdb", file)) if !file.is_empty() => {
                let directory = arguments.fdb_directory.split('/').map(str::to_owned);
                let directory: Vec<_> = directory.collect();
                if directory.iter().any(String::is_empty) {
                    problems.push(format!(
                        "--fdb-directory {}: a part of it has no name",
                        arguments.fdb_directory
                    ));
                }
                Some(StoreSetting::FoundationDb(FoundationDbSetting {
                    cluster_file: PathBuf::from(file),
                    directory,
                    library: arguments.fdb_library.clone(),
                    retention: retention.unwrap_or(Some(DEFAULT_RETENTION)),
                }))
            }
            _ => {
                problems.push(format!(
                    "--store {text}: must be memory, versioned-memory, local:DIR or fdb:CLUSTER_FILE"
                ));
                None
            }
        },
    };
    if arguments.check && !matches!(store, None | Some(StoreSetting::Local(..))) {
        problems.push("--check: only the local store has a file to be checked".to_owned());
    }
    if retention.is_some() && store == Some(StoreSetting::Memory) {
        problems.push("--retention: the memory store keeps no old versions".to_owned());
    }
    let listen = match arguments.listen.strip_prefix("unix:") {
        Some("") => {
            problems.push("--listen unix: needs a path".to_owned());
            None
        }
        Some(path) => Some(ListenSetting::Unix(PathBuf::from(path))),
        None => {
            let port = arguments.listen.rsplit_once(':').map(|(_, port)| port);
            if port.is_some_and(|port| port.parse::<u16>().is_ok()) {
                Some(ListenSetting::Tcp(arguments.listen.clone()))
            } else {
                problems.push(format!(
                    "--listen {}: must be ADDR:PORT or unix:PATH",
                    arguments.listen
                ));
                None
            }
        }
    };
    let lease_ttl = Duration::from_millis(arguments.lease_ttl_ms);
    let settings = Settings {
        lease_ttl,
        // A session that says nothing more has lapsed by the end of it.
        grace: lease_ttl.max(Settings::default().grace),
        max_connections: arguments.max_connections,
        memory_bytes: arguments.memory_mib.saturating_mul(1 << 20),
        ..Settings::default()
    };
    problems.extend(settings.problems());
    match (store, listen) {
        (Some(store), Some(listen)) if problems.is_empty() => Ok(Checked {
            store,
            listen,
            settings,
        }),
        _ => bail!("{}", problems.join("\n")),
    }
}

/// A duration, or for ever.
fn parse_retention(text: &str) -> Result<Option<Duration>, String> {
    match text {
        "forever" => Ok(None),
        "0" => Ok(Some(Duration::ZERO)),
        _ => humantime::parse_duration(text)
            .map(Some)
            .map_err(|why| format!("--retention {text}: {why} (as in 24h, 7days, forever, 0)")),
    }
}

/// Opens a store.
pub async fn open(store: &StoreSetting) -> anyhow::Result<Arc<dyn PageStore>> {
    Ok(match store {
        StoreSetting::Memory => Arc::new(pagewire_memory::MemoryStore::new()?),
        StoreSetting::VersionedMemory(retention) => {
            let options = VersionedMemoryOptions {
                retention: *retention,
                ..VersionedMemoryOptions::default()
            };
            Arc::new(VersionedMemoryStore::with_options(options)?)
        }
        StoreSetting::Local(directory, retention, check) => {
            let check_bytes = match check {
                true => u64::MAX,
                false => DEFAULT_CHECK_BYTES,
            };
            let options = LocalOptions {
                retention: *retention,
                check_bytes,
                ..LocalOptions::default()
            };
            let store = LocalStore::open_with(directory, options);
            Arc::new(store.with_context(|| format!("store local:{}", directory.display()))?)
        }
        StoreSetting::FoundationDb(setting) => {
            let options = FoundationDbOptions {
                directory: setting.directory.clone(),
                library: setting.library.clone(),
                retention: setting.retention,
                ..FoundationDbOptions::default()
            };
            let file = &setting.cluster_file;
            let store = FoundationDbStore::open_with(file, options).await;
            Arc::new(store.with_context(|| format!("store fdb:{}", file.display()))?)
        }
    })
}

async fn serve(checked: Checked) -> anyhow::Result<()> {
    // Before anything is opened: a signal that comes early is not lost.
    let shutdown = termination()?;
    let store = open(&checked.store).await?;
    let name = store.capabilities().name;
    match checked.listen {
        ListenSetting::Tcp(address) => {
            let (listener, address) = bind_tcp(&address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?;
            let server = Server::builder(store)
                .settings(checked.settings)
                .build()
                .await?;
            announce(&address.to_string(), &name)?;
            server.serve_tcp(listener, shutdown).await?;
        }
        ListenSetting::Unix(path) => {
            let listener = bind_unix(&path)
                .await
                .with_context(|| format!("cannot listen on unix:{}", path.display()))?;
            let server = Server::builder(store)
                .settings(checked.settings)
                .build()
                .await?;
            announce(&format!("unix:{}", path.display()), &name)?;
            server.serve_unix(listener, shutdown).await?;
            // Only tidiness: the next server removes what is left.
            let _ = std::fs::remove_file(&path);
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Ends with the first SIGTERM or SIGINT.
fn termination() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: asks for the leases and lets commits end");
    })
}

fn announce(address: &str, store: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "pagewire listening on {address} store={store}")?;
    stdout.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(store: &str, listen: &str, lease_ttl_ms: u64) -> ServeArguments {
        ServeArguments {
            store: store.into(),
            listen: listen.into(),
            lease_ttl_ms,
            retention: None,
            check: false,
            max_connections: 1024,
            memory_mib: 1024,
            fdb_library: None,
            fdb_directory: "pagewire".into(),
        }
    }

    #[test]
    fn all_bad_settings_are_reported_together() {
        let arguments = ServeArguments {
            max_connections: 4096,
            ..arguments("disk", "nowhere", 1)
        };
        let error = check(&arguments).unwrap_err().to_string();
        assert!(error.contains("--store disk"), "{error}");
        assert!(error.contains("--listen nowhere"), "{error}");
        assert!(error.contains("lease_ttl"), "{error}");
        assert!(error.contains("memory_bytes"), "{error}");
    }

    #[test]
    fn retention_is_a_duration_or_for_ever() {
        let retention = |text: &str| {
            let arguments = ServeArguments {
                retention: Some(text.into()),
                ..arguments("versioned-memory", "[::1]:0", 1000)
            };
            check(&arguments).map(|checked| checked.store)
        };
        let kept = |retention| StoreSetting::VersionedMemory(retention);
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(retention("24h").unwrap(), kept(Some(day)));
        assert_eq!(retention("1day").unwrap(), kept(Some(day)));
        assert_eq!(retention("0").unwrap(), kept(Some(Duration::ZERO)));
        assert_eq!(retention("forever").unwrap(), kept(None));
        let forever = ServeArguments {
            retention: Some("forever".into()),
            ..arguments("local:/x", "[::1]:0", 1000)
        };
        let local = StoreSetting::Local("/x".into(), None, false);
        assert_eq!(check(&forever).unwrap().store, local);
        let memory = ServeArguments {
            store: "memory".into(),
            ..forever
        };
        let error = check(&memory).unwrap_err().to_string();
        assert!(error.contains("keeps no old versions"), "{error}");
        let error = retention("soon").unwrap_err().to_string();
        assert!(error.contains("--retention soon"), "{error}");
    }

    #[test]
    fn stores_and_listeners_are_told_apart() {
        let checked = check(&arguments("local:/x/y", "unix:/tmp/s", 1000)).unwrap();
        let day = Some(Duration::from_secs(24 * 3600));
        let local = |check| StoreSetting::Local("/x/y".into(), day, check);
        assert_eq!(checked.store, local(false));
        let checking = |store: &str| {
            let check = true;
            super::check(&ServeArguments {
                check,
                ..arguments(store, "unix:/tmp/s", 1000)
            })
        };
        assert_eq!(checking("local:/x/y").unwrap().store, local(true));
        let error = checking("memory").unwrap_err().to_string();
        assert!(error.contains("--check"), "{error}");
        assert_eq!(checked.listen, ListenSetting::Unix("/tmp/s".into()));
        let checked = check(&arguments("fdb:/etc/fdb.cluster", "[::1]:0", 1000)).unwrap();
        let cluster = FoundationDbSetting {
            cluster_file: "/etc/fdb.cluster".into(),
            directory: vec!["pagewire".into()],
            library: None,
            retention: day,
        };
        assert_eq!(checked.store, StoreSetting::FoundationDb(cluster));
        let checked = check(&arguments("memory", "[::1]:0", 1000)).unwrap();
        assert_eq!(checked.store, StoreSetting::Memory);
        assert_eq!(checked.listen, ListenSetting::Tcp("[::1]:0".into()));
    }
}
