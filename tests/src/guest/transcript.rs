//! Plays a transcript through rusqlite's bundled SQLite; the twin of `transcript_client.py`.

use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pagewire_tests::connection::{open_uri, register, rows};
use rusqlite::Connection;
use rusqlite::backup::Backup;

/// Plays the steps of a file and prints the answers; errors of SQLite are printed and the next step follows.
pub fn play(remote: bool, steps: &Path) -> Result<()> {
    if remote {
        register();
    }
    let steps = std::fs::read_to_string(steps).context("the steps")?;
    let mut player = Player {
        remote,
        current: "0".to_owned(),
        connections: BTreeMap::new(),
        names: BTreeMap::new(),
    };
    for step in steps.split('\0') {
        match player.step(step) {
            Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
            Err(error) if error.is::<rusqlite::Error>() => println!("error: {error}"),
            Err(error) => return Err(error.context(step.to_owned())),
        }
    }
    Ok(())
}

struct Player {
    remote: bool,
    current: String,
    connections: BTreeMap<String, Connection>,
    names: BTreeMap<String, String>,
}

impl Player {
    fn step(&mut self, step: &str) -> Result<Vec<String>> {
        let words: Vec<&str> = step.split(' ').collect();
        match words.as_slice() {
            ["@open", name] => self.open(name)?,
            ["@reopen"] => {
                let name = self
                    .names
                    .get(&self.current)
                    .context("nothing is open")?
                    .clone();
                self.open(&name)?;
            }
            ["@connection", number] => self.current = (*number).to_owned(),
            ["@backup", name] => {
                let mut other = self.connect(name)?;
                Backup::new(self.connection()?, &mut other)?.run_to_completion(
                    7,
                    Duration::ZERO,
                    None,
                )?;
            }
            ["@restore", name] => {
                let other = self.connect(name)?;
                let own = self
                    .connections
                    .get_mut(&self.current)
                    .context("nothing is open")?;
                Backup::new(&other, own)?.run_to_completion(7, Duration::ZERO, None)?;
            }
            ["@blob_write", table, column, rowid, offset, content] => {
                let mut blob =
                    self.connection()?
                        .blob_open("main", *table, *column, rowid.parse()?, false)?;
                blob.seek(SeekFrom::Start(offset.parse()?))?;
                blob.write_all(&bytes_of(content)?)?;
                blob.close()?;
            }
            ["@blob_read", table, column, rowid, offset, length] => {
                let mut blob =
                    self.connection()?
                        .blob_open("main", *table, *column, rowid.parse()?, true)?;
                blob.seek(SeekFrom::Start(offset.parse()?))?;
                let mut content = vec![0; length.parse()?];
                blob.read_exact(&mut content)?;
                return Ok(vec![
                    content.iter().map(|byte| format!("{byte:02x}")).collect(),
                ]);
            }
            _ if step.starts_with('@') => bail!("no such directive"),
            _ => return Ok(rows(self.connection()?, step)?),
        }
        Ok(Vec::new())
    }

    fn connection(&self) -> Result<&Connection> {
        self.connections
            .get(&self.current)
            .context("nothing is open")
    }

    fn open(&mut self, name: &str) -> Result<()> {
        self.connections.remove(&self.current);
        let connection = self.connect(name)?;
        self.connections.insert(self.current.clone(), connection);
        self.names.insert(self.current.clone(), name.to_owned());
        Ok(())
    }

    fn connect(&self, name: &str) -> rusqlite::Result<Connection> {
        if self.remote {
            open_uri(&format!("file:{name}?vfs=pagewire"))
        } else {
            open_uri(name)
        }
    }
}

fn bytes_of(hex: &str) -> Result<Vec<u8>> {
    (0..hex.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?))
        .collect()
}
