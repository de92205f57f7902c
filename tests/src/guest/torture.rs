//! The Rust client of the torture program: the twin of `torture_client.py`, which says what the lines mean.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pagewire_tests::connection::{code, last_error, open_uri, register, rows};
use rusqlite::{Connection, params};

const ACCOUNTS: u64 = 20;
const SLOTS: u64 = 300;
const BUSY: Duration = Duration::from_secs(8);
/// Errors in a row on one connection before it is opened anew.
const PATIENCE: u32 = 20;
const KINDS: [Kind; 13] = {
    use Kind::{Large, Read, Rollback, Small, Two};
    [
        Small, Small, Small, Small, Small, Two, Two, Two, Large, Large, Read, Read, Rollback,
    ]
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Small,
    Two,
    Large,
    Read,
    Rollback,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Small => "small",
            Kind::Two => "two",
            Kind::Large => "large",
            Kind::Read => "read",
            Kind::Rollback => "rollback",
        }
    }
}

/// Works until it is killed.
pub fn run(arguments: &[&str]) -> Result<()> {
    let (client, seed, journal, uri_a, uri_b, remote) = match arguments {
        [client, seed, journal, uri_a, uri_b] => (client, seed, journal, uri_a, uri_b, false),
        [client, seed, journal, uri_a, uri_b, _library] => {
            (client, seed, journal, uri_a, uri_b, true)
        }
        _ => bail!("usage: torture CLIENT SEED JOURNAL URI_A URI_B [LIBRARY]"),
    };
    if remote {
        register();
    }
    let mut client = Client {
        name: (*client).to_owned(),
        incarnation: std::process::id(),
        random: Random(seed.parse().context("SEED")?),
        journal: OpenOptions::new().append(true).create(true).open(journal)?,
        uri_a: (*uri_a).to_owned(),
        uri_b: (*uri_b).to_owned(),
        remote,
        connections: HashMap::new(),
        sequence: 0,
    };
    loop {
        let kind = KINDS[client.random.below(KINDS.len() as u64) as usize];
        client.transaction(kind)?;
    }
}

/// SplitMix64: a seed gives the same choices on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

struct Client {
    name: String,
    incarnation: u32,
    random: Random,
    journal: File,
    uri_a: String,
    uri_b: String,
    remote: bool,
    /// By whether the second database is attached; with the errors in a row.
    connections: HashMap<bool, (Connection, u32)>,
    sequence: u64,
}

impl Client {
    fn note(&mut self, line: &str) -> Result<()> {
        // One write: a kill leaves a whole line or none.
        self.journal
            .write_all(format!("{}\n", line.replace('\n', " ")).as_bytes())?;
        Ok(())
    }

    fn transaction(&mut self, kind: Kind) -> Result<()> {
        self.sequence += 1;
        let id = format!(
            "{}-{}x{:x}-{}",
            self.name,
            self.incarnation,
            self.random.next() & 0xffff,
            self.sequence
        );
        let both = kind == Kind::Two;
        self.note(&format!("begin {id} {}", kind.name()))?;
        let (connection, failures) = match self.connections.remove(&both) {
            Some(open) => open,
            None => match self.connect(both) {
                Ok(connection) => (connection, 0),
                Err(error) => {
                    return self
                        .note(&format!("err {id} body {} {error}", code(&error)))
                        .map(|()| pause());
                }
            },
        };
        let body = self.body(&connection, kind, &id);
        let (stage, ended) = match body {
            Ok(torn) => {
                if let Some(torn) = torn {
                    self.note(&format!("torn {id} {torn}"))?;
                }
                let end = if kind == Kind::Rollback {
                    "ROLLBACK"
                } else {
                    "COMMIT"
                };
                ("commit", connection.execute_batch(end))
            }
            Err(error) => ("body", Err(error)),
        };
        match ended {
            Ok(()) => {
                self.note(&format!(
                    "{} {id}",
                    if kind == Kind::Rollback {
                        "rolled"
                    } else {
                        "ok"
                    }
                ))?;
                self.connections.insert(both, (connection, 0));
            }
            Err(error) => {
                let said = if self.remote && stage == "commit" {
                    last_error(&connection)
                } else {
                    String::new()
                };
                self.note(&format!(
                    "err {id} {stage} {} {error}: {said}",
                    code(&error)
                ))?;
                if !connection.is_autocommit() {
                    // If this fails too, the connection is opened anew.
                    let _ = connection.execute_batch("ROLLBACK");
                }
                if connection.is_autocommit() && failures + 1 < PATIENCE {
                    self.connections.insert(both, (connection, failures + 1));
                }
                pause();
            }
        }
        Ok(())
    }

    fn connect(&self, both: bool) -> rusqlite::Result<Connection> {
        let connection = open_uri(&self.uri_a)?;
        connection.busy_timeout(BUSY)?;
        if both {
            connection.execute("ATTACH ?1 AS b", [&self.uri_b])?;
            rows(&connection, "PRAGMA b.cache_size = 10")?;
        }
        rows(&connection, "PRAGMA cache_size = 10")?;
        Ok(connection)
    }

    /// Everything up to the COMMIT; what a reader saw, if that can't be.
    fn body(
        &mut self,
        connection: &Connection,
        kind: Kind,
        id: &str,
    ) -> rusqlite::Result<Option<String>> {
        match kind {
            Kind::Small => {
                connection.execute_batch(if self.random.below(2) == 0 {
                    "BEGIN"
                } else {
                    "BEGIN IMMEDIATE"
                })?;
                connection.execute("INSERT INTO ledger VALUES(?1, 'small')", [id])?;
                self.shift(connection, "main", "main")?;
            }
            Kind::Two => {
                connection.execute_batch("BEGIN IMMEDIATE")?;
                connection.execute("INSERT INTO b.ledger VALUES(?1, 'two')", [id])?;
                if self.random.below(2) == 0 {
                    self.shift(connection, "main", "b")?;
                } else {
                    self.shift(connection, "b", "main")?;
                }
                connection.execute("INSERT INTO main.ledger VALUES(?1, 'two')", [id])?;
            }
            Kind::Large | Kind::Rollback => {
                connection.execute_batch("BEGIN IMMEDIATE")?;
                connection.execute("INSERT INTO ledger VALUES(?1, 'large')", [id])?;
                connection.execute(
                    &format!(
                        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {SLOTS})
                         INSERT OR REPLACE INTO slots SELECT ?1, i, ?2, printf('%0*d', 100 + ?3 + i % 200, i) FROM n"
                    ),
                    params![self.name, id, self.random.below(100) as i64],
                )?;
                self.shift(connection, "main", "main")?;
            }
            Kind::Read => {
                connection.execute_batch("BEGIN")?;
                return read_twice(connection);
            }
        }
        Ok(None)
    }

    fn shift(
        &mut self,
        connection: &Connection,
        source: &str,
        target: &str,
    ) -> rusqlite::Result<()> {
        let amount = 1 + self.random.below(49) as i64;
        for (schema, amount) in [(source, -amount), (target, amount)] {
            let account = 1 + self.random.below(ACCOUNTS) as i64;
            connection.execute(
                &format!("UPDATE {schema}.accounts SET balance = balance + ?1 WHERE id = ?2"),
                [amount, account],
            )?;
            connection.execute(&format!("UPDATE {schema}.total SET n = n + ?1"), [amount])?;
        }
        Ok(())
    }
}

fn read_twice(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let look = || -> rusqlite::Result<(i64, i64, i64, Option<i64>)> {
        connection.query_row(
            "SELECT (SELECT sum(balance) FROM accounts), (SELECT n FROM total), (SELECT count(*) FROM ledger),
                    (SELECT max(k) FROM (SELECT count(DISTINCT id) AS k FROM slots GROUP BY client))",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
        )
    };
    let (first, second) = (look()?, look()?);
    let sound = first == second && first.0 == first.1 && matches!(first.3, None | Some(1));
    Ok((!sound).then(|| format!("{first:?} {second:?}")))
}

#[expect(
    clippy::disallowed_methods,
    reason = "what fails at once would fill the journal while the server is away"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
