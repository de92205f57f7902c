//! What was, is: over random histories every past version is what a plain SQLite had at that moment, and a reader keeps its
//! snapshot through whatever comes after. `SEED=n` repeats a run, `PAGEWIRE_LONG_TESTS=1` makes it long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pagewire_tests::connection::{
    assert_sound, last_error, number, open, open_uri, register, rows, uri,
};
use pagewire_tests::random::Random;
use pagewire_tests::server::{PageServer, VersionedStore};
use rusqlite::Connection;

fn rounds(short: u64, long: u64) -> u64 {
    match std::env::var_os("PAGEWIRE_LONG_TESTS") {
        Some(_) => long,
        None => short,
    }
}

/// Everything that SQL can see of a database: the schema, and all rows of all tables.
fn content(connection: &Connection) -> Vec<String> {
    let schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name, type";
    let all_of = |sql: &str| {
        rows(connection, sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}: {}", last_error(connection)))
    };
    let mut content = all_of(schema);
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name";
    for table in all_of(tables) {
        let all = format!("SELECT rowid, * FROM \"{table}\" ORDER BY rowid");
        content.extend(all_of(&all));
    }
    content
}

/// A file of plain SQLite; the default is Pagewire.
fn plain(file: &Path) -> Connection {
    open_uri(&format!("file:{}?vfs=unix", file.display())).expect("a plain database")
}

/// A database on Pagewire beside a plain one to which the same was done, with a copy of that for each version.
struct Twin {
    name: String,
    ours: Connection,
    plain: Connection,
    file: PathBuf,
    /// The copy of version n at n - 1.
    copies: Vec<PathBuf>,
    /// The last one asked for: a connection remembers it for its next VACUUM.
    page_size: Option<String>,
}

impl Twin {
    fn begin(server: &PageServer, dir: &Path, name: &str, from: Option<&Path>) -> Self {
        let file = dir.join(format!("{name}.plain"));
        if let Some(from) = from {
            std::fs::copy(from, &file).expect("copy");
        }
        let plain = plain(&file);
        plain
            .execute_batch("PRAGMA synchronous = OFF")
            .expect("pragma");
        let mut twin = Self {
            name: name.to_owned(),
            ours: open(&server.endpoint(), name),
            plain,
            file,
            copies: Vec::new(),
            page_size: None,
        };
        if from.is_some() {
            twin.keep();
        }
        twin
    }

    /// The plain database is what the next version is.
    fn keep(&mut self) {
        let copy = self
            .file
            .with_extension(format!("{}", self.copies.len() + 1));
        std::fs::copy(&self.file, &copy).expect("copy");
        self.copies.push(copy);
    }

    fn run(&mut self, sql: &str) {
        for connection in [&self.ours, &self.plain] {
            connection
                .execute_batch(sql)
                .unwrap_or_else(|error| panic!("{sql}: {error}"));
        }
        if let Some((pragma, _)) = sql.split_once(';').filter(|_| sql.contains("page_size")) {
            self.page_size = Some(pragma.to_owned());
        }
        let newest = number(&self.ours, "SELECT max(version) FROM pagewire_versions");
        // A statement that changed nothing made no version.
        if newest as usize > self.copies.len() {
            self.keep();
        }
        assert_eq!(newest as usize, self.copies.len(), "{sql}");
    }

    fn restore(&mut self, version: usize) {
        let before = self.copies.len();
        let made: i64 = self
            .ours
            .query_row("SELECT pagewire_restore(?1)", [version as i64], |row| {
                row.get(0)
            })
            .expect("restore");
        let scratch = Connection::open_in_memory().expect("scratch");
        std::mem::replace(&mut self.plain, scratch)
            .close()
            .expect("close");
        std::fs::copy(&self.copies[version - 1], &self.file).expect("copy");
        self.plain = plain(&self.file);
        if let Some(pragma) = &self.page_size {
            self.plain.execute_batch(pragma).expect("page size");
        }
        if version != before {
            self.keep();
        }
        assert_eq!(made as usize, self.copies.len());
    }

    /// Opens a past version anew, and looks at it on a connection that has looked at others.
    fn check(&self, server: &PageServer, looking: &Connection, version: usize) {
        let plain = plain(&self.copies[version - 1]);
        let wanted = content(&plain);
        let at = format!("at={version}");
        let fresh = open_uri(&uri(&server.endpoint(), &self.name, &[&at])).expect("open");
        assert!(
            content(&fresh) == wanted,
            "{} at {version}, opened",
            self.name
        );
        rows(looking, &format!("PRAGMA pagewire_at = {version}")).expect("look");
        assert!(
            content(looking) == wanted,
            "{} at {version}, looked at",
            self.name
        );
        assert_eq!(
            number(&fresh, "PRAGMA page_size"),
            number(&plain, "PRAGMA page_size")
        );
        assert_sound(looking);
    }
}

fn statement(random: &mut Random) -> String {
    let table = ["a", "b", "c"][random.below(3) as usize];
    match random.below(16) {
        0..=5 => format!(
            "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {})
               INSERT INTO {table} SELECT {} + i, hex(zeroblob(i % 97)) FROM n",
            1 + random.below(300),
            random.below(1000)
        ),
        6 | 7 => format!("DELETE FROM {table} WHERE rowid % 3 = {}", random.below(3)),
        8 | 9 => format!(
            "UPDATE {table} SET v = v || 'x' WHERE rowid % 5 = {}",
            random.below(5)
        ),
        10 => format!("BEGIN; DROP TABLE {table}; CREATE TABLE {table}(k INT, v TEXT); COMMIT"),
        11 => format!("CREATE INDEX IF NOT EXISTS {table}_k ON {table}(k)"),
        12 => format!("DROP INDEX IF EXISTS {table}_k"),
        13 => format!("DELETE FROM {table}"),
        14 => "VACUUM".to_owned(),
        _ => format!(
            "PRAGMA page_size = {}; VACUUM",
            [1024, 4096, 8192][random.below(3) as usize]
        ),
    }
}

pagewire_tests::on_versioned_stores! {
    any_past_version_is_what_plain_sqlite_had_then_on_branches_ten_deep_too
    a_long_reader_keeps_its_snapshot_through_commits_a_vacuum_a_restore_and_collections
}

fn any_past_version_is_what_plain_sqlite_had_then_on_branches_ten_deep_too(store: VersionedStore) {
    let mut random = Random::start();
    let server = PageServer::on(store, &[]);
    let dir = tempfile::tempdir().expect("a folder");
    register();
    let mut twins: Vec<Twin> = vec![Twin::begin(&server, dir.path(), "0.db", None)];
    let mut looking = vec![open(&server.endpoint(), "0.db")];
    let tables = ["a", "b", "c"].map(|table| format!("CREATE TABLE {table}(k INT, v TEXT);"));
    twins[0].run(&format!("BEGIN; {} COMMIT", tables.concat()));
    let per_branch = rounds(18, 100);
    for depth in 0..=10 {
        for _ in 0..per_branch {
            // Mostly the deepest one goes on, sometimes one that it stands on.
            let who = match random.below(4) {
                0 => random.below(twins.len() as u64) as usize,
                _ => depth,
            };
            if random.below(12) == 0 {
                let version = 1 + random.below(twins[who].copies.len() as u64) as usize;
                twins[who].restore(version);
            } else {
                twins[who].run(&statement(&mut random));
            }
            let who = random.below(twins.len() as u64) as usize;
            let version = 1 + random.below(twins[who].copies.len() as u64) as usize;
            twins[who].check(&server, &looking[who], version);
        }
        if depth == 10 {
            break;
        }
        let version = 1 + random.below(twins[depth].copies.len() as u64) as usize;
        let name = format!("{}.db", depth + 1);
        twins[depth]
            .ours
            .query_row(
                "SELECT pagewire_branch(?1, ?2)",
                (&name, version as i64),
                |_| Ok(()),
            )
            .expect("branch");
        let from = twins[depth].copies[version - 1].clone();
        twins.push(Twin::begin(&server, dir.path(), &name, Some(&from)));
        looking.push(open(&server.endpoint(), &name));
    }
    for (twin, looking) in twins.iter().zip(&looking) {
        assert!(content(&twin.ours) == content(&twin.plain), "{}", twin.name);
        for version in [1, twin.copies.len()] {
            twin.check(&server, looking, version);
        }
    }
}

fn a_long_reader_keeps_its_snapshot_through_commits_a_vacuum_a_restore_and_collections(
    store: VersionedStore,
) {
    let commits = rounds(600, 10_000);
    let arguments = ["--retention", "50ms"];
    let server = PageServer::on(store, &arguments);
    let writer = open(&server.endpoint(), "t.db");
    writer
        .execute_batch(
            "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
             WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
               INSERT INTO t SELECT i, printf('%0300d', i) FROM n",
        )
        .expect("fill");
    let endpoint = server.endpoint();
    // Small caches, or nothing would be read after the beginning.
    let small = |parameters: &[&str]| {
        let reader = open_uri(&uri(&endpoint, "t.db", parameters)).expect("open");
        reader
            .execute_batch("PRAGMA cache_size = 5")
            .expect("pragma");
        reader
    };
    let reading = small(&["mode=ro"]);
    reading.execute_batch("BEGIN").expect("begin");
    let looking = small(&["at=2"]);
    let fixed = small(&["immutable=1"]);
    let readers = [&reading, &looking, &fixed];
    let wanted = content(&reading);
    assert_eq!(wanted.len(), 2001);
    for reader in readers {
        assert!(content(reader) == wanted);
    }
    for turn in 0..commits {
        let sql = match turn {
            100 => "VACUUM".to_owned(),
            200 => "SELECT pagewire_restore(2)".to_owned(),
            250 => "DROP TABLE t; CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT)".to_owned(),
            _ if turn % 3 == 0 => format!("INSERT INTO t(v) VALUES(printf('%0300d', {turn}))"),
            _ => format!("UPDATE t SET v = {turn} WHERE i % 37 = {}", turn % 37),
        };
        writer
            .execute_batch(&sql)
            .unwrap_or_else(|error| panic!("{sql}: {error}: {}", last_error(&writer)));
        if turn % (commits / 20) == 0 {
            for reader in readers {
                assert!(content(reader) == wanted, "after {turn} commits");
            }
        }
    }
    for (reader, who) in readers.into_iter().zip(["transaction", "at", "immutable"]) {
        assert!(content(reader) == wanted, "{who}");
        assert_sound(reader);
    }
    // Let go of by all of them it is collected.
    reading.execute_batch("COMMIT").expect("commit");
    drop((looking, fixed));
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while number(
        &writer,
        "SELECT count(*) FROM pagewire_versions WHERE version = 2",
    ) > 0
    {
        writer
            .execute_batch("UPDATE t SET v = v || 'x' WHERE i = 1; INSERT INTO t(v) VALUES(1)")
            .expect("write");
        assert!(
            std::time::Instant::now() < until,
            "version 2 is never dropped"
        );
    }
}
