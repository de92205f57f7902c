//! A Rust program with SQLite on Pagewire in it: rusqlite's own SQLite, the VFS as a library, and, unless it is given an endpoint, a
//! page server of its own in the same process, whose pages are in a directory.
//!
//! `cargo run -p pagewire-examples --bin embed -- DIRECTORY` or `... --bin embed -- http://HOST:PORT`: each run adds a visit, and says
//! how many there were.

use anyhow::Context as _;
use pagewire_local::LocalStore;
use pagewire_server::{Server, bind_tcp};
use rusqlite::Connection;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Makes the VFS `pagewire` known to the SQLite that rusqlite brings.
#[expect(
    unsafe_code,
    reason = "SQLite calls an extension by a C function pointer"
)]
fn register_vfs() -> rusqlite::Result<()> {
    // SAFETY: the two signatures differ only in the Rust names of SQLite's opaque types.
    let init: rusqlite::auto_extension::RawAutoExtension =
        unsafe { std::mem::transmute(pagewire::AUTO_EXTENSION) };
    // SAFETY: the entry point is made for this.
    unsafe { rusqlite::auto_extension::register_auto_extension(init)? };
    // An automatic extension runs when a connection is opened.
    Connection::open_in_memory().map(drop)
}

/// A page server on a runtime of its own: SQLite blocks the thread that calls it.
struct OwnServer {
    runtime: tokio::runtime::Runtime,
    endpoint: String,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), pagewire_server::ServeError>>,
}

impl OwnServer {
    fn start(directory: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Runtime::new()?;
        let store = LocalStore::open(std::path::Path::new(directory))?;
        let (stop, stopped) = oneshot::channel();
        let (endpoint, serving) = runtime.block_on(async {
            let (listener, address) = bind_tcp("127.0.0.1:0").await?;
            let server = Server::builder(std::sync::Arc::new(store)).build().await?;
            let stopped = async {
                let _ = stopped.await;
            };
            let serving = tokio::spawn(server.serve_tcp(listener, stopped));
            anyhow::Ok((format!("http://{address}"), serving))
        })?;
        Ok(Self {
            runtime,
            endpoint,
            stop,
            serving,
        })
    }

    /// In order, so that the next start need not wait for leases of this one.
    fn stop(self) -> anyhow::Result<()> {
        drop(self.stop);
        self.runtime.block_on(self.serving)??;
        Ok(())
    }
}

/// Anything that SQLite can do; here one transaction and one query.
fn visit(endpoint: &str) -> rusqlite::Result<(i64, i64)> {
    let mut db = Connection::open(format!("file:visits.db?vfs=pagewire&endpoint={endpoint}"))?;
    let transaction = db.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS visits(number INTEGER PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP);
         INSERT INTO visits DEFAULT VALUES;",
    )?;
    transaction.commit()?;
    db.query_row(
        "SELECT count(*), CAST(pagewire_version() AS INTEGER) FROM visits",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, place] = &arguments[..] else {
        anyhow::bail!("usage: embed DIRECTORY | http://HOST:PORT");
    };
    register_vfs().context("the VFS can't be registered")?;
    let own = match place.starts_with("http://") {
        true => None,
        false => Some(OwnServer::start(place)?),
    };
    let endpoint = own.as_ref().map_or(place, |server| &server.endpoint);
    let (visits, version) = visit(endpoint)?;
    println!("{visits} visits at version {version}");
    own.map_or(Ok(()), OwnServer::stop)
}
