//! Log, tags, branches, restores, collections, descriptions.

use std::io::Write as _;

use anyhow::Context as _;
use clap::Args;
use pagewire_proto::{
    DatabaseId, DatabaseName, Moment, TagName, UnixMillis, VersionEntry, limits, pb,
};
use serde_json::{Value, json};

use super::session::Session;
use super::{Client, byte_size, print_json, refusal, timely};
use crate::transfer::open_remote;

/// How long a restore waits for another writer.
const RESTORE_WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Arguments of `pagewire db log`.
#[derive(Debug, Args)]
pub struct LogArguments {
    /// The database.
    name: String,
    /// At most so many.
    #[arg(short = 'n', long, value_name = "COUNT")]
    limit: Option<u64>,
    /// Only versions before this one.
    #[arg(
        long,
        value_name = "VERSION",
        default_value_t = 0,
        hide_default_value = true
    )]
    before: u64,
    /// Only versions that have a tag.
    #[arg(long)]
    tagged: bool,
}

pub(super) async fn log(client: Client, arguments: LogArguments, json: bool) -> anyhow::Result<()> {
    let mut session = Session::open(client, &arguments.name, pb::OpenMode::ReadOnly).await?;
    let mut left = arguments.limit.unwrap_or(u64::MAX);
    let mut before = arguments.before;
    let mut objects = Vec::new();
    while left > 0 {
        let limit = left.min(limits::MAX_LIST_VERSIONS as u64);
        let (entries, more) = versions(&mut session, before, limit, arguments.tagged).await?;
        let mut stdout = std::io::stdout().lock();
        for entry in &entries {
            if json {
                objects.push(object(entry));
            } else {
                writeln!(stdout, "{}", line(entry))?;
            }
        }
        left -= limit;
        match entries.last() {
            Some(last) if more => before = last.snapshot.version.get(),
            _ => break,
        }
    }
    session.end().await;
    match json {
        true => print_json(&Value::Array(objects)),
        false => Ok(()),
    }
}

async fn versions(
    session: &mut Session,
    before: u64,
    limit: u64,
    tagged: bool,
) -> anyhow::Result<(Vec<VersionEntry>, bool)> {
    let request = pb::ListVersionsRequest {
        session_id: session.id.clone(),
        database_id: session.database.clone(),
        before_version: before,
        limit: u32::try_from(limit)?,
        tagged_only: tagged,
    };
    let answer = session.calls.list_versions(timely(request)).await;
    let answer = answer.map_err(refusal)?.into_inner();
    let entries = answer.versions.into_iter().map(VersionEntry::try_from);
    Ok((entries.collect::<Result<_, _>>()?, answer.more))
}

pub(super) async fn tags(client: Client, name: &str, json: bool) -> anyhow::Result<()> {
    let mut session = Session::open(client, name, pb::OpenMode::ReadOnly).await?;
    let mut tags = Vec::new();
    let mut before = 0;
    loop {
        let limit = limits::MAX_LIST_VERSIONS as u64;
        let (entries, more) = versions(&mut session, before, limit, true).await?;
        for entry in &entries {
            tags.extend(entry.tags.iter().map(|tag| (tag.clone(), entry.clone())));
        }
        match entries.last() {
            Some(last) if more => before = last.snapshot.version.get(),
            _ => break,
        }
    }
    session.end().await;
    tags.sort_by(|(one, _), (other, _)| one.cmp(other));
    if json {
        let objects = tags.iter().map(|(tag, entry)| {
            let version = entry.snapshot.version.get();
            json!({ "tag": tag.as_str(), "version": version, "time": entry.time.to_string() })
        });
        return print_json(&Value::Array(objects.collect()));
    }
    let mut stdout = std::io::stdout().lock();
    for (tag, entry) in &tags {
        writeln!(stdout, "{tag}\t{}\t{}", entry.snapshot.version, entry.time)?;
    }
    Ok(())
}

pub(super) async fn set_tag(
    client: Client,
    name: &str,
    tag: &TagName,
    at: Option<Moment>,
    force: bool,
    json: bool,
) -> anyhow::Result<()> {
    let mut session = Session::open(client, name, pb::OpenMode::ReadWrite).await?;
    let request = pb::SetTagRequest {
        session_id: session.id.clone(),
        database_id: session.database.clone(),
        tag: tag.as_str().to_owned(),
        at: session.moment(at),
        replace: force,
    };
    let answer = session.calls.set_tag(timely(request)).await;
    let found = VersionEntry::try_from(answer.map_err(refusal)?.into_inner().found)?;
    session.end().await;
    print_entry(&found, json)
}

pub(super) async fn delete_tag(client: Client, name: &str, tag: &TagName) -> anyhow::Result<()> {
    let mut session = Session::open(client, name, pb::OpenMode::ReadWrite).await?;
    let request = pb::DeleteTagRequest {
        session_id: session.id.clone(),
        database_id: session.database.clone(),
        tag: tag.as_str().to_owned(),
    };
    let answer = session.calls.delete_tag(timely(request)).await;
    let existed = answer.map_err(refusal)?.into_inner().existed;
    session.end().await;
    anyhow::ensure!(existed, "{name} has no tag {tag}");
    Ok(())
}

pub(super) async fn branch(
    client: Client,
    name: &str,
    new_name: &str,
    at: Option<Moment>,
    json: bool,
) -> anyhow::Result<()> {
    DatabaseName::try_from(new_name)?;
    let mut session = Session::open(client, name, pb::OpenMode::ReadOnly).await?;
    let request = pb::CreateBranchRequest {
        session_id: session.id.clone(),
        database_id: session.database.clone(),
        at: session.moment(at),
        name: new_name.to_owned(),
        branch_id: DatabaseId::random()?.to_wire(),
    };
    let answer = session.calls.create_branch(timely(request)).await;
    let found = VersionEntry::try_from(answer.map_err(refusal)?.into_inner().found)?;
    session.end().await;
    print_entry(&found, json)
}

/// Through SQLite and the VFS, as any writer: the lease, the wait for other writers and a lost answer are seen to there.
pub(super) fn restore(endpoint: &str, name: &str, at: &Moment, json: bool) -> anyhow::Result<()> {
    crate::embedded::register_vfs()?;
    let connection = open_remote(name, endpoint, "rw", None)?;
    connection.busy_timeout(RESTORE_WAIT)?;
    let version: i64 = connection
        .query_row("SELECT pagewire_restore(?1)", [at.as_written()], |row| {
            row.get(0)
        })
        .with_context(|| format!("{name} can't be restored to {at}"))?;
    match json {
        true => print_json(&json!({ "version": version })),
        false => Ok(writeln!(std::io::stdout(), "{version}")?),
    }
}

pub(super) async fn collect(mut client: Client, name: String, json: bool) -> anyhow::Result<()> {
    let mut freed = pb::CollectGarbageResponse::default();
    loop {
        let request = timely(pb::CollectGarbageRequest { name: name.clone() });
        let step = client.collect_garbage(request).await;
        let step = step.map_err(refusal)?.into_inner();
        freed.versions += step.versions;
        freed.pages += step.pages;
        freed.bytes += step.bytes;
        if !step.more {
            break;
        }
    }
    let pb::CollectGarbageResponse {
        versions,
        pages,
        bytes,
        ..
    } = freed;
    if json {
        return print_json(&json!({ "versions": versions, "pages": pages, "bytes": bytes }));
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "freed {versions} versions, {pages} pages, {bytes} bytes"
    )?;
    Ok(())
}

pub(super) async fn info(client: Client, name: &str, json: bool) -> anyhow::Result<()> {
    let mut session = Session::open(client, name, pb::OpenMode::ReadOnly).await?;
    let request = pb::DescribeDatabaseRequest {
        session_id: session.id.clone(),
        database_id: session.database.clone(),
    };
    let answer = session.calls.describe_database(timely(request)).await;
    let described = answer.map_err(refusal)?.into_inner();
    session.end().await;
    let head = described.head.unwrap_or_default();
    let parent = match (described.parent_version, described.parent_name.as_str()) {
        (0, _) => Value::Null,
        (version, "") => json!({ "name": null, "version": version }),
        (version, name) => json!({ "name": name, "version": version }),
    };
    let fields = [
        ("name", json!(name)),
        ("version", json!(head.version)),
        ("page_size", json!(head.page_size)),
        ("page_count", json!(head.page_count)),
        ("bytes", json!(byte_size(head))),
        (
            "created",
            json!(UnixMillis(described.created_unix_ms).to_string()),
        ),
        ("branched_from", parent),
        ("oldest_version", json!(described.oldest_version)),
        ("versions_kept", json!(described.versions_kept)),
        ("stored_pages", json!(described.stored_pages)),
        ("stored_bytes", json!(described.stored_bytes)),
    ];
    if json {
        let object = fields.map(|(key, value)| (key.to_owned(), value));
        return print_json(&Value::Object(object.into_iter().collect()));
    }
    let mut stdout = std::io::stdout().lock();
    for (key, value) in fields {
        match value {
            Value::Null => {}
            Value::String(text) => writeln!(stdout, "{key}\t{text}")?,
            Value::Object(parent) => {
                let name = parent["name"].as_str().unwrap_or("a deleted database");
                writeln!(stdout, "{key}\t{name}\t{}", parent["version"])?;
            }
            value => writeln!(stdout, "{key}\t{value}")?,
        }
    }
    Ok(())
}

fn print_entry(entry: &VersionEntry, json: bool) -> anyhow::Result<()> {
    match json {
        true => print_json(&object(entry)),
        false => Ok(writeln!(std::io::stdout(), "{}", line(entry))?),
    }
}

fn line(entry: &VersionEntry) -> String {
    let bytes = entry.snapshot.byte_size();
    let tags = entry.tags.iter().map(|tag| format!("tag: {tag}"));
    let restored = entry
        .restored_from
        .map(|from| format!("restored from {from}"));
    let notes: Vec<_> = tags.chain(restored).collect();
    let notes = match notes.is_empty() {
        true => String::new(),
        false => format!("\t({})", notes.join(", ")),
    };
    format!(
        "{}\t{}\t{}\t{bytes}{notes}",
        entry.snapshot.version, entry.time, entry.pages_changed
    )
}

fn object(entry: &VersionEntry) -> Value {
    json!({
        "version": entry.snapshot.version.get(),
        "time": entry.time.to_string(),
        "pages_changed": entry.pages_changed,
        "page_size": entry.snapshot.page_size.map_or(0, |size| size.get()),
        "page_count": entry.snapshot.page_count.get(),
        "bytes": entry.snapshot.byte_size(),
        "tags": entry.tags.iter().map(TagName::as_str).collect::<Vec<_>>(),
        "restored_from": entry.restored_from.map(|from| from.get()),
    })
}
