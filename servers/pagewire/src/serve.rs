//! `pagewire serve`: settings -> store -> server, until SIGTERM or SIGINT.
//!
//! Prints one line on standard output, when clients can connect; nothing else ever.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Whether it goes through all of the tree of a local store before it serves, and refuses one that is damaged: `always` (also `--check`
    /// alone), `auto` (up to 256 MiB), or `never`. Takes about as long as reading the file.
    ///
    /// `never` is for whoever must get at what is left of a damaged store: rows may be missing, or older ones be read in their place, a commit may
    /// overwrite others, and the process may end. Nothing is collected then, but an opening writes some pages of its own: open a copy of the
    /// directory, never the only one, export what is needed, and write nothing.
    #[arg(long, env = "PAGEWIRE_CHECK", value_name = "WHEN", num_args = 0..=1, default_value = "auto", default_missing_value = "always", value_parser = parse_check)]
    check: Check,
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

/// When a local store is gone through before it is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// Whatever its size.
    Always,
    /// Where that takes a fraction of a second.
    #[default]
    Auto,
    /// Also where it is damaged.
    Never,
}

impl Check {
    /// [`LocalOptions::check_bytes`].
    fn bytes(self) -> u64 {
        match self {
            Self::Always => u64::MAX,
            Self::Auto => DEFAULT_CHECK_BYTES,
            Self::Never => 0,
        }
    }
}

/// Where pages are kept.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreSetting {
    /// In memory, one version.
    Memory,
    /// In memory, all versions for this long; `None` for ever.
    VersionedMemory(Option<Duration>),
    /// On the local disk, with all versions for this long; `None` for ever. And whether it is checked first.
    Local(PathBuf, Option<Duration>, Check),
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
    if arguments.check != Check::Auto && !matches!(store, None | Some(StoreSetting::Local(..))) {
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

/// As an environment says it too: what is off is no more than that nobody asked for it.
fn parse_check(text: &str) -> Result<Check, String> {
    match text.to_ascii_lowercase().as_str() {
        "always" | "1" | "true" | "yes" | "on" => Ok(Check::Always),
        "auto" | "" | "0" | "false" | "no" | "off" => Ok(Check::Auto),
        "never" => Ok(Check::Never),
        _ => Err("must be always, auto or never".to_owned()),
    }
}

/// Opens a store. A local one stops with an error where `stop` becomes true; that may be after this future was dropped.
async fn open(store: &StoreSetting, stop: &Arc<AtomicBool>) -> anyhow::Result<Arc<dyn PageStore>> {
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
            let options = LocalOptions {
                check_bytes: check.bytes(),
                stop: Some(Arc::clone(stop)),
                ..collecting(*retention, *check)
            };
            let path = directory.clone();
            // It may take minutes, in which a signal has to be heard.
            let opening =
                tokio::task::spawn_blocking(move || LocalStore::open_with(&path, options));
            let store = opening.await.context("the opening panicked")?;
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

/// Nothing goes from a store that may be damaged.
fn collecting(retention: Option<Duration>, check: Check) -> LocalOptions {
    match check {
        Check::Never => LocalOptions {
            retention: None,
            collect_after_quiet: None,
            ..LocalOptions::default()
        },
        Check::Always | Check::Auto => LocalOptions {
            retention,
            ..LocalOptions::default()
        },
    }
}

async fn serve(checked: Checked) -> anyhow::Result<()> {
    // Before anything is opened: a signal that comes early is not lost.
    let mut shutdown = Box::pin(termination()?);
    let stop = Arc::new(AtomicBool::new(false));
    let opening = open(&checked.store, &stop);
    let Some(store) = unless(&mut shutdown, &stop, opening).await? else {
        // The runtime waits for the opening, which ends soon, and lets go what it has.
        tracing::info!("stopped before it served");
        return Ok(());
    };
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

/// What an opening gives, unless a signal comes first: then it is told to stop.
async fn unless<T>(
    shutdown: &mut (impl Future<Output = ()> + Unpin),
    stop: &AtomicBool,
    opening: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    tokio::select! {
        biased;
        () = shutdown => {
            stop.store(true, Ordering::Relaxed);
            Ok(None)
        }
        opened = opening => opened.map(Some),
    }
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
            check: Check::Auto,
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
        let local = StoreSetting::Local("/x".into(), None, Check::Auto);
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
        assert_eq!(checked.store, local(Check::Auto));
        let checking = |store: &str, check| {
            super::check(&ServeArguments {
                check,
                ..arguments(store, "unix:/tmp/s", 1000)
            })
        };
        for check in [Check::Always, Check::Never] {
            assert_eq!(checking("local:/x/y", check).unwrap().store, local(check));
            let error = checking("memory", check).unwrap_err().to_string();
            assert!(error.contains("--check"), "{error}");
        }
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

    #[test]
    fn check_is_always_auto_or_never() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: ServeArguments,
        }
        let parsed = |arguments: &[&str]| {
            let line = <Line as clap::Parser>::try_parse_from([&["serve"], arguments].concat());
            line.map(|line| line.arguments.check)
        };
        for (arguments, check) in [
            (&[][..], Check::Auto),
            (&["--check"], Check::Always),
            (&["--check", "--store", "memory"], Check::Always),
            (&["--check", "always"], Check::Always),
            (&["--check=never"], Check::Never),
            (&["--check", "never", "--store", "memory"], Check::Never),
        ] {
            assert_eq!(parsed(arguments).unwrap(), check, "{arguments:?}");
        }
        assert!(parsed(&["--check", "sometimes"]).is_err());
        // As the environment has it. Bug: `PAGEWIRE_CHECK=0` was an error, and anything else than a word for no was yes.
        for (text, check) in [
            ("0", Some(Check::Auto)),
            ("", Some(Check::Auto)),
            ("1", Some(Check::Always)),
            ("nevr", None),
        ] {
            assert_eq!(parse_check(text).ok(), check, "{text}");
        }
        assert_eq!((Check::Always.bytes(), Check::Never.bytes()), (u64::MAX, 0));
        assert_eq!(Check::Auto.bytes(), LocalOptions::default().check_bytes);
    }

    /// What is opened with `--check never` is as it was an hour later.
    #[test]
    fn nothing_is_collected_from_a_store_that_is_not_checked() {
        let never = collecting(Some(Duration::ZERO), Check::Never);
        assert_eq!((never.retention, never.collect_after_quiet), (None, None));
        for check in [Check::Always, Check::Auto] {
            let checked = collecting(Some(Duration::ZERO), check);
            assert_eq!(checked.retention, Some(Duration::ZERO));
            let quiet = checked.collect_after_quiet;
            assert!(quiet.is_some_and(|quiet| quiet < Duration::from_secs(1)));
        }
    }

    /// The signal reaches the pass over the tree.
    #[test]
    fn an_opening_that_is_told_to_stop_stops() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let local = StoreSetting::Local(folder.path().join("store"), None, Check::Always);
        let opened = |stop: bool| {
            let stop = Arc::new(AtomicBool::new(stop));
            runtime.block_on(open(&local, &stop)).map(drop)
        };
        opened(false).unwrap();
        let stopped = format!("{:#}", opened(true).unwrap_err());
        assert!(stopped.contains("told to stop"), "{stopped}");
        opened(false).unwrap();
    }

    /// Bug: a signal that came while a large store was gone through was not heard before the end of that.
    #[test]
    fn a_signal_ends_an_opening() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let seen = Arc::clone(&stop);
        let (ended, has_ended) = std::sync::mpsc::channel();
        let stopped = runtime.block_on(async {
            let opening = async {
                let opening = tokio::task::spawn_blocking(move || {
                    begun.send(()).unwrap();
                    let begin = std::time::Instant::now();
                    while begin.elapsed() < Duration::from_secs(20) {
                        if seen.load(Ordering::Relaxed) {
                            ended.send(()).unwrap();
                            break;
                        }
                        std::thread::yield_now();
                    }
                });
                opening.await.context("it panicked")
            };
            // The signal comes when it is under way.
            let mut signal = Box::pin(async { has_begun.await.unwrap() });
            unless(&mut signal, &stop, opening).await
        });
        assert!(stopped.unwrap().is_none());
        drop(runtime);
        assert!(has_ended.try_recv().is_ok());
        // And none comes where it is opened.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut never = std::future::pending();
        let opened = unless(&mut never, &stop, async { Ok(1) });
        assert_eq!(runtime.block_on(opened).unwrap(), Some(1));
    }
}
