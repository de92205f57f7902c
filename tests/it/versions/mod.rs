//! Old versions: looked at, named, branched from, restored, and kept for as long as somebody looks.

mod listing;
mod looking;
mod naming;
mod on_the_way;
mod restoring;

use pagewire_tests::connection::{open, open_uri, register, rows, uri};
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

const ERROR: i32 = 1;
const READONLY: i32 = 8;
const CANTOPEN: i32 = 14;

fn run(connection: &Connection, sql: &str) {
    connection
        .execute_batch(sql)
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

fn all(connection: &Connection, sql: &str) -> Vec<String> {
    rows(connection, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn text(connection: &Connection, sql: &str) -> String {
    all(connection, sql).join(";")
}

/// A database whose version n + 1 has the one row n, for n up to `last`.
fn counted(server: &PageServer, last: i64) -> Connection {
    let writer = open(&server.endpoint(), "t.db");
    run(&writer, "CREATE TABLE t(n INT)");
    for n in 1..=last {
        let sql = match n {
            1 => "INSERT INTO t VALUES(1)".to_owned(),
            _ => format!("UPDATE t SET n = {n}"),
        };
        run(&writer, &sql);
    }
    writer
}

fn at(server: &PageServer, moment: &str) -> Connection {
    register();
    let moment = format!("at={}", moment.replace(' ', "%20").replace('+', "%2B"));
    open_uri(&uri(&server.endpoint(), "t.db", &[&moment])).expect(&moment)
}
