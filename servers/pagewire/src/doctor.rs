//! `pagewire doctor`: says step by step whether a page server can be used from here, and at the first step that fails what to do.
//!
//! One line for each check on standard output: `ok`, `note` or `FAILED`, what was looked at, what was seen. Exit code 0: nothing
//! failed. Without `--write` nothing is changed on the server.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use pagewire::{CallKind, rpc_count};
use pagewire_proto::{pb, version};
use rusqlite::Connection;

use crate::db::{self, Client, refusal, session, timely};
use crate::embedded::register_vfs;
use crate::transfer::{explain, open_remote};

/// Calls of which the time is taken; the median of so few moves little.
const CALLS: u32 = 21;
/// Names of what `--write` makes begin so.
const SCRATCH: &str = "pagewire-doctor";

/// Arguments of `pagewire doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// A database to be opened and checked too: all of it is read.
    name: Option<String>,
    /// The server.
    #[arg(
        long,
        env = "PAGEWIRE_ENDPOINT",
        default_value = "http://127.0.0.1:7240"
    )]
    endpoint: String,
    /// Makes a database, commits to it, and deletes it again.
    #[arg(long)]
    write: bool,
}

/// Looks and says what it saw.
pub fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    match examine(arguments) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Failed { check, why }) => {
            say(format_args!("FAILED  {check:<12} {why:#}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

struct Failed {
    check: &'static str,
    why: anyhow::Error,
}

/// Prints what a check saw, or stops at it.
fn check<T>(check: &'static str, seen: anyhow::Result<(T, String)>) -> Result<T, Failed> {
    let (value, seen) = seen.map_err(|why| Failed { check, why })?;
    say(format_args!("ok      {check:<12} {seen}"));
    Ok(value)
}

fn note(about: &str, text: &str) {
    say(format_args!("note    {about:<12} {text}"));
}

/// Its reader may be gone (`| head`): what is looked at, and the exit status, are the same.
fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn examine(arguments: &DoctorArguments) -> Result<(), Failed> {
    check("settings", settings())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| Failed {
            check: "runtime",
            why: why.into(),
        })?;
    let store = runtime.block_on(server(&arguments.endpoint))?;
    drop(runtime);
    if !store.durable {
        note(
            "store",
            "nothing survives the end of this server: `--store local:DIR` keeps databases on disk",
        );
    }
    check("sqlite", sqlite())?;
    if let Some(name) = &arguments.name {
        check("database", database(name, &arguments.endpoint, &store))?;
    }
    if arguments.write {
        check("write", write(&arguments.endpoint))?;
    }
    Ok(())
}

/// The variables of the environment that begin like ours but are none of them are most likely misspelt.
fn settings() -> anyhow::Result<((), String)> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut set: Vec<_> = names.filter(|name| name.starts_with("PAGEWIRE_")).collect();
    set.sort();
    let (known, unknown): (Vec<_>, Vec<_>) = set.into_iter().partition(|name| {
        pagewire::VARIABLES.contains(&name.as_str()) || SERVER_SETTINGS.contains(&name.as_str())
    });
    if !unknown.is_empty() {
        note(
            "settings",
            &format!(
                "{} is no setting of Pagewire and is ignored",
                unknown.join(", ")
            ),
        );
    }
    let seen = match known.is_empty() {
        true => "none in the environment".to_owned(),
        false => known.join(", "),
    };
    Ok(((), seen))
}

/// What `pagewire serve` reads beside what the VFS reads.
const SERVER_SETTINGS: &[&str] = &[
    "PAGEWIRE_LEASE_TTL_MS",
    "PAGEWIRE_LISTEN",
    "PAGEWIRE_MAX_CONNECTIONS",
    "PAGEWIRE_MEMORY_MIB",
    "PAGEWIRE_RETENTION",
    "PAGEWIRE_STORE",
];

async fn server(endpoint: &str) -> Result<pb::StoreCapabilities, Failed> {
    let begun = Instant::now();
    let connected = db::connect(endpoint).await.map_err(|error| {
        anyhow::anyhow!(
            "{error:#}; start one with `pagewire serve`, or say where it is with --endpoint or PAGEWIRE_ENDPOINT"
        )
    });
    let mut calls = check(
        "connect",
        connected.map(|calls| (calls, format!("{endpoint} in {}", millis(begun.elapsed())))),
    )?;
    let (outbound, store) = check("session", greet(&mut calls).await)?;
    let seen = round_trip(&mut calls).await;
    session::end(&outbound).await;
    check("round trip", seen)?;
    Ok(store)
}

type Greeted = (
    tokio::sync::mpsc::UnboundedSender<pb::SessionRequest>,
    pb::StoreCapabilities,
);

async fn greet(calls: &mut Client) -> anyhow::Result<(Greeted, String)> {
    let (_, outbound, welcome) = session::begin(calls, "pagewire doctor").await?;
    let store = welcome.store.unwrap_or_default();
    let mut can = vec![match store.durable {
        true => "durable".to_owned(),
        false => "not durable".to_owned(),
    }];
    can.push(match (store.versions, store.retention_ms) {
        (false, _) => "one version".to_owned(),
        (true, 0) => "versions kept for ever".to_owned(),
        (true, kept) => format!(
            "versions kept for {}",
            humantime::format_duration(Duration::from_millis(kept))
        ),
    });
    if store.branches {
        can.push("branches".to_owned());
    }
    if store.strict_push {
        can.push("strict push".to_owned());
    }
    let seen = format!(
        "{}, protocol {}.{} (here {}.{}), lease TTL {} ms, store {}: {}",
        welcome.server_name,
        welcome.protocol_major,
        welcome.protocol_minor,
        version::MAJOR,
        version::MINOR,
        welcome.lease_ttl_ms,
        store.store_name,
        can.join(", "),
    );
    Ok(((outbound, store), seen))
}

async fn round_trip(calls: &mut Client) -> anyhow::Result<((), String)> {
    let mut times = Vec::with_capacity(CALLS as usize);
    for _ in 0..CALLS {
        let begun = Instant::now();
        let request = pb::ListDatabasesRequest {
            limit: 1,
            ..Default::default()
        };
        calls
            .list_databases(timely(request))
            .await
            .map_err(refusal)?;
        times.push(begun.elapsed());
    }
    times.sort();
    let [best, .., worst] = times.as_slice() else {
        bail!("no call was made");
    };
    let seen = format!(
        "median {} of {CALLS} calls, {} to {}",
        millis(median(&times)),
        millis(*best),
        millis(*worst)
    );
    Ok(((), seen))
}

fn sqlite() -> anyhow::Result<((), String)> {
    register_vfs().context("the VFS can't be registered")?;
    Ok((
        (),
        format!("{} with the VFS `pagewire`", rusqlite::version()),
    ))
}

fn database(
    name: &str,
    endpoint: &str,
    store: &pb::StoreCapabilities,
) -> anyhow::Result<((), String)> {
    // Where there are no versions a reader needs the lease, and `rw` makes no database that is not there.
    let mode = if store.versions { "ro" } else { "rw" };
    let db = open_remote(name, endpoint, mode, None)?;
    let begun = Instant::now();
    let before = rpc_count(CallKind::Read);
    let ask = |sql: &str| -> anyhow::Result<String> {
        db.query_row(sql, [], |row| row.get::<_, rusqlite::types::Value>(0))
            .map(|value| match value {
                rusqlite::types::Value::Integer(number) => number.to_string(),
                rusqlite::types::Value::Text(text) => text,
                other => format!("{other:?}"),
            })
            .map_err(explain(&db))
    };
    let verdict = ask("PRAGMA integrity_check(1)")?;
    let took = begun.elapsed();
    let after = rpc_count(CallKind::Read);
    if verdict != "ok" {
        bail!(
            "{name} is damaged: {verdict}. `pagewire db log {name}` lists older versions, `pagewire db restore` goes back to one"
        );
    }
    let reads = after.count + after.background - before.count - before.background;
    let seen = format!(
        "{name}: {} pages of {} bytes, integrity_check ok in {} and {reads} calls for pages",
        ask("PRAGMA page_count")?,
        ask("PRAGMA page_size")?,
        millis(took)
    );
    Ok(((), seen))
}

fn write(endpoint: &str) -> anyhow::Result<((), String)> {
    let number = pagewire_proto::SessionId::random()?;
    let name: String = number
        .to_wire()
        .iter()
        .take(8)
        .fold(format!("{SCRATCH}/"), |name, byte| {
            format!("{name}{byte:02x}")
        });
    let written = commits(&name, endpoint);
    let deleted = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(delete(&name, endpoint));
    let seen = written?;
    deleted.with_context(|| format!("{name} is left behind: `pagewire db delete {name}`"))?;
    Ok(((), seen))
}

async fn delete(name: &str, endpoint: &str) -> anyhow::Result<()> {
    let mut calls = db::connect(endpoint).await?;
    let request = pb::DeleteDatabaseRequest {
        name: name.to_owned(),
    };
    calls
        .delete_database(timely(request))
        .await
        .map_err(refusal)?;
    Ok(())
}

fn commits(name: &str, endpoint: &str) -> anyhow::Result<String> {
    let db: Connection = open_remote(name, endpoint, "rwc", None)?;
    db.execute_batch("CREATE TABLE t(n INTEGER)")
        .map_err(explain(&db))?;
    let before = rpc_count(CallKind::Commit).count;
    let mut times = Vec::with_capacity(CALLS as usize);
    for n in 0..CALLS {
        let begun = Instant::now();
        db.execute("INSERT INTO t VALUES(?1)", [n])
            .map_err(explain(&db))?;
        times.push(begun.elapsed());
    }
    times.sort();
    let calls = rpc_count(CallKind::Commit).count - before;
    let rows: u32 = db.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
    if rows != CALLS {
        bail!("{CALLS} rows were committed and {rows} are there: tell the authors");
    }
    drop(db);
    Ok(format!(
        "{CALLS} commits in {calls} calls, median {}",
        millis(median(&times))
    ))
}

/// Of sorted times.
fn median(times: &[Duration]) -> Duration {
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn millis(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
