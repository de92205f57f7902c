//! Whatever becomes of a connection's transactions, what it sees afterwards is what everybody sees: the pages that SQLite keeps in its own
//! cache never outlive the version that they belong to.
//!
//! Two clients do random things to a few small databases, so that they often make the same number of pages from the same version; commits of
//! the one are refused, or lost on their way, or SQLite fails after its commit point. `SEED=n` repeats the choices.

use std::time::Duration;

use pagewire_proto::status::Reason;
use pagewire_tests::connection::{code, last_error, open_uri, register, rows, uri};
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::random::Random;
use pagewire_tests::server::PageServer;
use pagewire_tests::shim::{self, Failing};
use rusqlite::Connection;

const DATABASES: u64 = 8;
const STEPS: u64 = 16;
const LONG_DATABASES: u64 = 400;
const TABLES: u64 = 2;
/// SQLITE_NOTADB, SQLITE_CORRUPT, and the mistakes of a program: nothing here can end in one of them.
const NEVER: [i32; 4] = [26, 11, 1, 21];

struct Scene {
    random: Random,
    server: PageServer,
    proxy: Proxy,
    database: String,
    /// Behind the proxy, by the VFS that fails on purpose.
    ours: Connection,
    /// Another client: another endpoint is another session, with caches of its own.
    other: Connection,
    /// Ours was in exclusive locking mode since it was unlocked last.
    is_exclusive: bool,
    /// And a transaction of it has failed then: SQLite goes on with what it has in its cache, without a call, and what became of the transaction may not be
    /// known. So it may look for a table that it does not see yet.
    may_be_behind: bool,
    /// What was done, for the message of a failure.
    story: Vec<String>,
}

fn connect(endpoint: &str, database: &str, vfs: &str) -> Connection {
    let uri = uri(endpoint, database, &["timeout_ms=5000"])
        .replace("vfs=pagewire", &format!("vfs={vfs}"));
    let connection = open_uri(&uri).expect("open");
    connection
        .busy_timeout(Duration::from_secs(20))
        .expect("busy timeout");
    connection
}

impl Scene {
    fn begin_database(&mut self, number: u64) {
        self.database = format!("{number}.db");
        self.ours = connect(&self.proxy.endpoint(), &self.database, "failing");
        (self.is_exclusive, self.may_be_behind) = (false, false);
        self.other = connect(&self.server.endpoint(), &self.database, "pagewire");
        self.story.clear();
    }

    /// A transaction that may be of use on any content.
    fn transaction(&mut self, connection: &Connection) -> String {
        let tables = rows(
            connection,
            "SELECT name FROM sqlite_schema WHERE type = 'table'",
        )
        .expect("tables");
        let mut sql = String::from("BEGIN;");
        for _ in 0..=self.random.below(3) {
            let table = format!("t{}", self.random.below(TABLES));
            let is_there = tables.contains(&table) || sql.contains(&format!("TABLE {table}("));
            let count = [1, 30, 300][self.random.below(3) as usize];
            let value = self.random.below(4);
            let fill = format!(
                "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {count})
                   INSERT INTO {table}(v) SELECT printf('%0300d', {value}) FROM n;"
            );
            sql += &match self.random.below(8) {
                _ if !is_there => {
                    format!("CREATE TABLE {table}(i INTEGER PRIMARY KEY, v TEXT); {fill}")
                }
                0 => format!("DELETE FROM {table} WHERE i % 2 = {};", value % 2),
                1 => format!("DELETE FROM {table};"),
                2 => format!("UPDATE {table} SET v = printf('%0300d', {value});"),
                3 => format!("CREATE INDEX IF NOT EXISTS {table}_v ON {table}(v);"),
                4 => format!("SAVEPOINT s; DELETE FROM {table}; {fill} ROLLBACK TO s; RELEASE s;"),
                5 => format!("PRAGMA user_version = {value};"),
                _ => fill,
            };
        }
        match self.random.below(12) {
            0 => "VACUUM".to_owned(),
            1 => format!(
                "PRAGMA page_size = {}; VACUUM",
                1024 << self.random.below(4)
            ),
            2 => sql + "ROLLBACK",
            _ => sql + "COMMIT",
        }
    }

    /// How the connection is to work from here on.
    fn set_up(&mut self) {
        let mode = ["DELETE", "TRUNCATE", "PERSIST", "MEMORY"][self.random.below(4) as usize];
        let cache = [10, 2000][self.random.below(2) as usize];
        let locking = ["NORMAL", "NORMAL", "EXCLUSIVE"][self.random.below(3) as usize];
        self.is_exclusive |= locking == "EXCLUSIVE";
        for pragma in [
            format!("PRAGMA journal_mode = {mode}"),
            format!("PRAGMA cache_size = {cache}"),
            format!("PRAGMA locking_mode = {locking}"),
        ] {
            // A connection that refuses everything refuses this.
            let _ = rows(&self.ours, &pragma);
            self.story.push(pragma);
        }
    }

    /// Lets the next transaction of ours fail, or not.
    fn arm(&mut self) {
        let commit = match self.random.below(7) {
            0 => Fault::Refused(Reason::StoreFull),
            1 => Fault::AnswerBroken,
            2 => Fault::RequestBroken,
            3 => {
                shim::arm(Failing::Sync);
                self.story.push("xSync fails".to_owned());
                return;
            }
            4 => {
                shim::arm(Failing::JournalDelete);
                self.story.push("the journal can't be deleted".to_owned());
                return;
            }
            _ => return,
        };
        self.story.push(format!("{commit:?}"));
        self.proxy.arm(Call::Commit, commit);
        if self.random.below(2) == 0 {
            self.story
                .push("and nobody says what became of it".to_owned());
            self.proxy
                .arm(Call::Resolve, Fault::Refused(Reason::Invalid));
        }
    }

    fn step(&mut self) {
        if self.random.below(4) == 0 {
            self.set_up();
        }
        let sql = self.transaction_of_ours();
        self.arm();
        let told = self.ours.execute_batch(&sql);
        let said = last_error(&memory());
        self.proxy.disarm();
        shim::disarm();
        self.story.push(format!("ours: {sql}: {told:?}"));
        if let Err(error) = &told {
            if !(self.may_be_behind && code(error) == 1) {
                self.assert_allowed(error);
            }
            self.may_be_behind |= self.is_exclusive;
            if !self.ours.is_autocommit() {
                let _ = self.ours.execute_batch("ROLLBACK");
            }
        }
        if self.random.below(4) > 0 {
            // In exclusive locking mode the first statement after it is the one that unlocks.
            let _ = rows(&self.ours, "PRAGMA locking_mode = NORMAL");
            let _ = rows(&self.ours, "SELECT count(*) FROM sqlite_schema");
            (self.is_exclusive, self.may_be_behind) = (false, false);
            if self.random.below(2) == 0 {
                self.compare(&said);
            }
            if self.random.below(2) == 0 {
                let other = std::mem::replace(&mut self.other, memory());
                let sql = self.transaction(&other);
                let told = other.execute_batch(&sql);
                self.story.push(format!("other: {sql}: {told:?}"));
                if let Err(error) = told {
                    panic!("{error}: {:#?}", self.story);
                }
                self.other = other;
            }
            self.compare(&said);
        }
    }

    fn transaction_of_ours(&mut self) -> String {
        let fresh = connect(&self.server.endpoint(), &self.database, "pagewire");
        self.transaction(&fresh)
    }

    fn assert_allowed(&self, error: &rusqlite::Error) {
        assert!(
            !NEVER.contains(&(code(error) & 0xff)),
            "{error}: {:#?}",
            self.story
        );
    }

    /// A connection that has nothing in its cache sees the same.
    fn compare(&mut self, said: &str) {
        let fresh = connect(&self.server.endpoint(), &self.database, "pagewire");
        let right = content(&fresh).expect("content");
        match content(&self.ours) {
            Ok(seen) => assert_eq!(seen, right, "{:#?}", self.story),
            Err(error) => {
                // It says what has happened, and that it has to be closed.
                self.assert_allowed(&error);
                let now = last_error(&memory());
                assert!(
                    now.contains("close the connection"),
                    "{error}, {now}, {said}: {:#?}",
                    self.story
                );
                self.story.push("opened anew".to_owned());
                self.ours = memory();
                self.ours = connect(&self.proxy.endpoint(), &self.database, "failing");
                assert_eq!(
                    content(&self.ours).expect("content"),
                    right,
                    "{:#?}",
                    self.story
                );
            }
        }
        assert_eq!(
            rows(&fresh, "PRAGMA integrity_check").expect("check"),
            ["ok"],
            "{:#?}",
            self.story
        );
    }
}

fn memory() -> Connection {
    Connection::open_in_memory().expect("memory")
}

/// Everything that can be seen.
fn content(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut all = rows(connection, "SELECT type, name, sql FROM sqlite_schema")?;
    all.extend(rows(connection, "PRAGMA user_version")?);
    for table in rows(
        connection,
        "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1",
    )? {
        all.push(table.clone());
        all.extend(rows(
            connection,
            &format!("SELECT i, CAST(v AS INT), length(v) FROM {table}"),
        )?);
    }
    Ok(all)
}

#[test]
fn after_any_failure_a_connection_sees_what_everybody_sees() {
    register();
    shim::register();
    let is_long = std::env::var_os("PAGEWIRE_LONG_TESTS").is_some();
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut scene = Scene {
        random: Random::start(),
        server,
        proxy,
        database: String::new(),
        ours: memory(),
        other: memory(),
        is_exclusive: false,
        may_be_behind: false,
        story: Vec::new(),
    };
    for number in 0..if is_long { LONG_DATABASES } else { DATABASES } {
        scene.begin_database(number);
        for _ in 0..STEPS {
            scene.step();
        }
    }
}
