//! `pagewire db`: databases of a running server and their history, over the protocol.
//!
//! Lines of fields separated by tabs, for people and scripts alike; with `--json` an array of objects, or one object, in which nothing
//! is rounded or left out. Moments are written as everywhere: a version, a time, an age or a tag.

mod diff;
mod history;
pub(crate) mod session;

use std::io::Write as _;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::status::Reason;
use pagewire_proto::{Moment, TagName, limits, pb};
use serde_json::{Value, json};
use tonic::transport::Endpoint;

/// Arguments of `pagewire db`.
#[derive(Debug, Args)]
pub struct DbArguments {
    /// The server; of several, separated by commas, the first that answers.
    #[arg(
        long,
        env = "PAGEWIRE_ENDPOINT",
        default_value = "http://127.0.0.1:7240",
        global = true
    )]
    endpoint: String,
    /// JSON in place of lines.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: DbCommand,
}

/// AT is a version (`42`), a time (`2026-11-01T12:00:00Z`), an age (`'5 minutes ago'`, `'2h ago'`) or a tag.
#[derive(Debug, Subcommand)]
enum DbCommand {
    /// One line for each database: name, version, bytes.
    List {
        /// Only names that begin with it.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Removes a database and all of its versions.
    Delete {
        /// Its name.
        name: String,
    },
    /// The versions that are kept, newest first: version, time, pages changed, bytes, tags and what it was restored from.
    Log(history::LogArguments),
    /// Lists the tags of a database, names a version, or removes a tag.
    ///
    /// A tagged version is kept for as long as the tag exists.
    Tag {
        /// The database.
        name: String,
        /// The tag; all are listed without it.
        tag: Option<TagArgument>,
        /// The version to be named; the newest one without it.
        at: Option<Moment>,
        /// Moves a tag that names another version.
        #[arg(short, long, requires = "tag")]
        force: bool,
        /// Removes the tag.
        #[arg(short, long, requires = "tag", conflicts_with_all = ["at", "force"])]
        delete: bool,
    },
    /// Makes a database from a version of another, in no time at any size.
    Branch {
        /// The database that is branched from.
        name: String,
        /// The name of the new one.
        new_name: String,
        /// The version to begin with; the newest one without it.
        at: Option<Moment>,
    },
    /// Makes an old version the newest one, as a commit: nothing of the history is lost.
    Restore {
        /// The database.
        name: String,
        /// The version whose content the new one has.
        at: Moment,
    },
    /// Which tables and which pages differ between two versions.
    ///
    /// One line for each table: A (added), D (dropped) or M (modified), its name, and how many pages of it and its indexes differ.
    /// Then one line with `pages`, their number, and the numbers of those that differ. To find the owners of pages
    /// both versions are read whole, unless --pages is given; tables that only moved, as in a VACUUM, count as modified.
    Diff {
        /// The database.
        name: String,
        /// The version to begin with.
        from: Moment,
        /// The version to compare it with; the newest one without it.
        to: Option<Moment>,
        /// Pages alone, without opening the versions.
        #[arg(long)]
        pages: bool,
    },
    /// Frees what retention, tags, branches and open connections do not keep; the server does the same in the background.
    Gc {
        /// Only of this database.
        name: Option<String>,
    },
    /// Where a database comes from, what is kept of it and what that takes.
    Info {
        /// The database.
        name: String,
    },
}

/// A tag on the command line.
#[derive(Clone, Debug)]
struct TagArgument(TagName);

impl std::str::FromStr for TagArgument {
    type Err = pagewire_proto::Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        TagName::try_from(text).map(Self)
    }
}

pub(crate) type Client = PageServiceClient<tonic::transport::Channel>;

/// Does it and returns.
pub fn run(arguments: DbArguments) -> anyhow::Result<()> {
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime could not start")?
        .block_on(answer(arguments));
    match done {
        // `pagewire db log | head`
        Err(error) if is_broken_pipe(&error) => Ok(()),
        done => done,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

async fn answer(arguments: DbArguments) -> anyhow::Result<()> {
    let DbArguments {
        endpoint,
        json,
        command,
    } = arguments;
    let client = connect(&endpoint).await?;
    match command {
        DbCommand::List { prefix } => list(client, prefix, json).await,
        DbCommand::Delete { name } => delete(client, name).await,
        DbCommand::Log(arguments) => history::log(client, arguments, json).await,
        DbCommand::Tag {
            name, tag: None, ..
        } => history::tags(client, &name, json).await,
        DbCommand::Tag {
            name,
            tag: Some(TagArgument(tag)),
            delete: true,
            ..
        } => history::delete_tag(client, &name, &tag).await,
        DbCommand::Tag {
            name,
            tag: Some(TagArgument(tag)),
            at,
            force,
            delete: false,
        } => history::set_tag(client, &name, &tag, at, force, json).await,
        DbCommand::Branch { name, new_name, at } => {
            history::branch(client, &name, &new_name, at, json).await
        }
        DbCommand::Restore { name, at } => history::restore(&endpoint, &name, &at, json),
        DbCommand::Diff {
            name,
            from,
            to,
            pages,
        } => {
            let wanted = diff::Wanted {
                name,
                from,
                to,
                tables: !pages,
            };
            diff::diff(client, &endpoint, wanted, json).await
        }
        DbCommand::Gc { name } => history::collect(client, name.unwrap_or_default(), json).await,
        DbCommand::Info { name } => history::info(client, &name, json).await,
    }
}

/// Connects to a page server: to the first that answers, where the endpoint names several.
pub(crate) async fn connect(endpoint: &str) -> anyhow::Result<Client> {
    let mut failure = None;
    for one in endpoint.split(',').map(str::trim) {
        match connect_to(one).await {
            Ok(client) => return Ok(client),
            // The first one says most: the others are there for when it is not.
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    Err(failure.unwrap_or_else(|| anyhow::anyhow!("no endpoint was named")))
}

async fn connect_to(endpoint: &str) -> anyhow::Result<Client> {
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .with_context(|| format!("--endpoint {endpoint}"))?
        .connect_timeout(std::time::Duration::from_secs(5))
        .connect()
        .await
        .with_context(|| format!("no page server answers at {endpoint}"))?;
    Ok(PageServiceClient::new(channel).max_decoding_message_size(limits::MAX_MESSAGE_BYTES))
}

async fn list(mut client: Client, prefix: String, json: bool) -> anyhow::Result<()> {
    let mut after = String::new();
    let mut objects = Vec::new();
    loop {
        let answer = client
            .list_databases(timely(pb::ListDatabasesRequest {
                prefix: prefix.clone(),
                after: after.clone(),
                limit: limits::MAX_LIST as u32,
            }))
            .await
            .map_err(refusal)?
            .into_inner();
        let mut stdout = std::io::stdout().lock();
        for entry in &answer.databases {
            let head = entry.head.unwrap_or_default();
            let bytes = byte_size(head);
            if json {
                objects
                    .push(json!({ "name": entry.name, "version": head.version, "bytes": bytes }));
            } else {
                writeln!(stdout, "{}\t{}\t{bytes}", entry.name, head.version)?;
            }
        }
        match answer.databases.last() {
            Some(last) if answer.more => after = last.name.clone(),
            _ => break,
        }
    }
    if json {
        print_json(&Value::Array(objects))?;
    }
    Ok(())
}

async fn delete(mut client: Client, name: String) -> anyhow::Result<()> {
    client
        .delete_database(timely(pb::DeleteDatabaseRequest { name: name.clone() }))
        .await
        .map_err(refusal)
        .with_context(|| format!("database {name}"))?;
    Ok(())
}

/// A call that gives up after a minute.
pub(crate) fn timely<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(std::time::Duration::from_secs(60));
    request
}

pub(crate) fn refusal(status: tonic::Status) -> anyhow::Error {
    let code = status.code();
    if code == tonic::Code::Unimplemented && !Reason::is_explicit(&status) {
        return anyhow::anyhow!(
            "what answers has no such call ({}): a page server of an older release, which has to be updated, or a proxy, which has to pass all calls of \
             pagewire.v1.PageService on",
            status.message()
        );
    }
    match status.message() {
        "" => anyhow::anyhow!("{}", code.description()),
        message => anyhow::anyhow!("{}", message.to_owned()),
    }
}

fn byte_size(snapshot: pb::Snapshot) -> u64 {
    u64::from(snapshot.page_size) * u64::from(snapshot.page_count)
}

fn print_json(value: &Value) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value).map_err(std::io::Error::from)?;
    writeln!(stdout)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bug: of an older server, and of some proxies, nothing was told at all.
    #[test]
    fn a_refusal_without_words_is_told() {
        let told = |status| refusal(status).to_string();
        let unknown = told(tonic::Status::unimplemented(""));
        assert!(unknown.starts_with("what answers has no such call"));
        assert!(!told(tonic::Status::unavailable("")).is_empty());
        assert_eq!(told(tonic::Status::not_found("no tag x")), "no tag x");
    }
}
