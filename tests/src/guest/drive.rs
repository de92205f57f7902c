//! Statements from standard input, answers to standard output: the other end of `process::Guest`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use pagewire_tests::connection::{code, last_error, open_uri, register, rows};
use rusqlite::{Connection, ErrorCode};

/// Serves until standard input ends.
pub fn serve() -> Result<()> {
    register();
    let mut connections: BTreeMap<String, Connection> = BTreeMap::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.splitn(3, ' ');
        let (verb, name) = (
            words.next().unwrap_or_default(),
            words.next().context("a connection")?,
        );
        let rest = words.next().unwrap_or_default();
        let answer = match verb {
            "open" => open_uri(rest).map(|connection| {
                connections.insert(name.to_owned(), connection);
                Vec::new()
            }),
            "close" => match connections.remove(name) {
                Some(connection) => connection
                    .close()
                    .map(|()| Vec::new())
                    .map_err(|(_, error)| error),
                None => Ok(Vec::new()),
            },
            _ => rows(
                connections
                    .get(name)
                    .with_context(|| format!("{name} is not open"))?,
                rest,
            ),
        };
        let mut out = std::io::stdout().lock();
        match answer {
            Ok(rows) => {
                for row in rows {
                    writeln!(out, "row {}", row.replace('\n', " "))?;
                }
                writeln!(out, "ok")?;
            }
            Err(error) => {
                // The connection may be the one that failed to open: any tells what the library said.
                let said = Connection::open_in_memory()
                    .map(|any| last_error(&any))
                    .unwrap_or_default();
                writeln!(
                    out,
                    "err {} {error}: {}",
                    code(&error),
                    said.replace('\n', " ")
                )?;
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// Adds one to the row of `counter` so many times, each in a transaction of its own.
pub fn increment(uri: &str, times: u32) -> Result<()> {
    register();
    let connection = open_uri(uri)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    for turn in 0..times {
        let told = if turn % 2 == 0 {
            connection.execute_batch("UPDATE counter SET n = n + 1")
        } else {
            read_and_write(&connection)
        };
        told.with_context(|| format!("turn {turn}, pagewire says: {}", last_error(&connection)))?;
    }
    Ok(())
}

/// Reads, then writes what was read: a lost update shows here.
fn read_and_write(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let n: i64 = connection.query_row("SELECT n FROM counter", [], |row| row.get(0))?;
    connection.execute("UPDATE counter SET n = ?1", [n + 1])?;
    connection.execute_batch("COMMIT")
}

/// Inserts into `t` on so many threads for so long, each with a connection of its own. Prints `written COUNT`, and `busy MICROSECONDS` for each transaction that
/// was refused: after how long.
pub fn crowd(uri: &str, threads: usize, busy_timeout_ms: u64, ms: u64) -> Result<()> {
    register();
    let until = Instant::now() + Duration::from_millis(ms);
    let one = || -> Result<(u64, Vec<Duration>)> {
        let connection = open_uri(uri)?;
        connection.busy_timeout(Duration::from_millis(busy_timeout_ms))?;
        let (mut written, mut refused) = (0, Vec::new());
        while Instant::now() < until {
            let begun = Instant::now();
            match connection.execute("INSERT INTO t(who) VALUES('crowd')", []) {
                Ok(_) => written += 1,
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                    refused.push(begun.elapsed());
                }
                Err(error) => return Err(error).context(last_error(&connection)),
            }
        }
        Ok((written, refused))
    };
    let all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.collect::<Vec<_>>()
    });
    for told in all {
        let (written, refused) = told.map_err(|_| anyhow!("a thread panicked"))??;
        println!("written {written}");
        for after in refused {
            println!("busy {}", after.as_micros());
        }
    }
    Ok(())
}
