//! `pagewire db`: databases of a running server, over the protocol.

use std::io::Write as _;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use pagewire_proto::pb::page_service_client::PageServiceClient;
use pagewire_proto::{limits, pb};
use tonic::transport::Endpoint;

/// Arguments of `pagewire db`.
#[derive(Debug, Args)]
pub struct DbArguments {
    /// The server.
    #[arg(
        long,
        env = "PAGEWIRE_ENDPOINT",
        default_value = "http://127.0.0.1:7240",
        global = true
    )]
    endpoint: String,
    #[command(subcommand)]
    command: DbCommand,
}

#[derive(Debug, Subcommand)]
enum DbCommand {
    /// One line for each database: name, version, bytes; separated by tabs.
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
}

type Client = PageServiceClient<tonic::transport::Channel>;

/// Does it and returns.
pub fn run(arguments: DbArguments) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime could not start")?
        .block_on(async {
            let endpoint = arguments.endpoint;
            let channel = Endpoint::from_shared(endpoint.clone())
                .with_context(|| format!("--endpoint {endpoint}"))?
                .connect_timeout(std::time::Duration::from_secs(5))
                .timeout(std::time::Duration::from_secs(60))
                .connect()
                .await
                .with_context(|| format!("no page server answers at {endpoint}"))?;
            let client = PageServiceClient::new(channel)
                .max_decoding_message_size(limits::MAX_MESSAGE_BYTES);
            match arguments.command {
                DbCommand::List { prefix } => list(client, prefix).await,
                DbCommand::Delete { name } => delete(client, name).await,
            }
        })
}

async fn list(mut client: Client, prefix: String) -> anyhow::Result<()> {
    let mut after = String::new();
    loop {
        let answer = client
            .list_databases(pb::ListDatabasesRequest {
                prefix: prefix.clone(),
                after: after.clone(),
                limit: limits::MAX_LIST as u32,
            })
            .await
            .map_err(refusal)?
            .into_inner();
        let mut stdout = std::io::stdout().lock();
        for entry in &answer.databases {
            let head = entry.head.unwrap_or_default();
            let bytes = u64::from(head.page_size) * u64::from(head.page_count);
            writeln!(stdout, "{}\t{}\t{bytes}", entry.name, head.version)?;
        }
        match answer.databases.last() {
            Some(last) if answer.more => after = last.name.clone(),
            _ => return Ok(()),
        }
    }
}

async fn delete(mut client: Client, name: String) -> anyhow::Result<()> {
    client
        .delete_database(pb::DeleteDatabaseRequest { name: name.clone() })
        .await
        .map_err(refusal)
        .with_context(|| format!("database {name}"))?;
    Ok(())
}

fn refusal(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message().to_owned())
}
