//! A replica: a read-only connection that is told of each new version and prints it as it arrives. It asks nobody: strict (the usual),
//! the server tells it of a commit before anybody else can see it; bounded, it lags behind by so many milliseconds at most, and no commit
//! waits for it.
//!
//! `cargo run -p pagewire-examples --bin replica -- http://HOST:PORT NAME [COUNT [MAX_STALENESS_MS]]`: ends after COUNT versions.

use std::time::Duration;

use anyhow::Context as _;
use rusqlite::Connection;

/// How often it looks at what it was told: that costs no round trip.
const LOOK: Duration = Duration::from_millis(5);

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

/// A transaction: the version that it sees, and how many tables there are.
fn look(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    let sql = "SELECT count(*), CAST(pagewire_version() AS INTEGER) FROM sqlite_schema WHERE type = 'table'";
    db.query_row(sql, [], |row| Ok((row.get(1)?, row.get(0)?)))
}

/// Round trips of this process that it waited for.
fn round_trips(db: &Connection) -> rusqlite::Result<i64> {
    db.query_row("SELECT sum(count) FROM pagewire_rpc", [], |row| row.get(0))
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, endpoint, name, rest @ ..] = &arguments[..] else {
        anyhow::bail!("usage: replica http://HOST:PORT NAME [COUNT [MAX_STALENESS_MS]]");
    };
    let count = rest
        .first()
        .map_or(Ok(u64::MAX), |count| count.parse())
        .context("COUNT")?;
    let consistency = rest.get(1).map_or(String::new(), |most| {
        format!("&consistency=bounded&max_staleness_ms={most}")
    });
    register_vfs().context("the VFS can't be registered")?;
    let db = Connection::open(format!(
        "file:{name}?vfs=pagewire&endpoint={endpoint}&mode=ro&subscribe=always{consistency}"
    ))?;
    let (mut known, tables) = look(&db)?;
    println!("replica of {name} at version {known}, {tables} tables");
    let mut told = 0;
    while told < count {
        #[expect(
            clippy::disallowed_methods,
            reason = "SQLite has no event for commits of others"
        )]
        std::thread::sleep(LOOK);
        let (version, tables) = look(&db)?;
        // Versions are consecutive: where several came between two looks none is left out.
        for version in known + 1..=version {
            println!(
                "version {version}, {tables} tables, {} round trips so far",
                round_trips(&db)?
            );
            told += 1;
        }
        known = version;
    }
    Ok(())
}
