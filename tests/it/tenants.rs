//! Tenants in one process, each with a credential of his own: none sees what another's errors say.

use pagewire_proto::status::Reason;
use pagewire_tests::connection::{last_error, open_uri, register, uri};
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::server::PageServer;
use rusqlite::Connection;

#[test]
fn the_last_error_of_another_credential_is_not_seen() {
    let server = PageServer::versioned();
    let endpoint = server.endpoint();
    register();
    let of = |name: &str, credential: &str, more: &str| {
        open_uri(&uri(
            &endpoint,
            name,
            &[&format!("token={credential}"), more],
        ))
    };
    let said = |connection: &Connection| {
        connection
            .query_row("SELECT pagewire_last_error()", [], |row| {
                row.get::<_, Option<String>>(0)
            })
            .expect("it can always be asked")
            .unwrap_or_default()
    };
    let status = |connection: &Connection| -> String {
        connection
            .query_row(
                "SELECT group_concat(value) FROM pagewire_status",
                [],
                |row| row.get(0),
            )
            .expect("status")
    };
    let first = of("first.db", "one", "mode=rwc").expect("open");
    let beside = of("beside.db", "one", "mode=rwc").expect("open");
    let other = of("other.db", "two", "mode=rwc").expect("open");
    for connection in [&first, &beside, &other] {
        connection
            .execute_batch("CREATE TABLE t(n)")
            .expect("a table");
    }
    // That of an open, of a statement and of a function; each in the host's own connection too.
    let host = Connection::open_in_memory().expect("memory");
    let failures: [(&str, &dyn Fn()); 3] = [
        ("secret.db", &|| {
            let opened = of("secret.db", "one", "mode=rw");
            let read = opened.and_then(|c| c.query_row("SELECT n FROM t", [], |_| Ok(())));
            read.expect_err("there is none");
        }),
        ("version 77", &|| {
            let tag = first.query_row("SELECT pagewire_tag('x', 77)", [], |_| Ok(()));
            tag.expect_err("there is no such version");
        }),
        ("gone", &|| {
            let rows = first.query_row("SELECT * FROM pagewire_versions('gone')", [], |_| Ok(()));
            rows.expect_err("there is no such schema");
        }),
    ];
    for (name, fail) in failures {
        fail();
        assert!(last_error(&host).contains(name), "{}", last_error(&host));
        assert!(said(&beside).contains(name), "{name}: {}", said(&beside));
        assert!(!said(&other).contains(name), "{name}: {}", said(&other));
        assert!(status(&beside).contains(name), "{}", status(&beside));
        assert!(!status(&other).contains(name), "{}", status(&other));
    }
    // Another's error after it takes nothing away.
    other
        .query_row("SELECT pagewire_tag('x', 99)", [], |_| Ok(()))
        .expect_err("no such version");
    assert!(said(&beside).contains("gone"), "{}", said(&beside));
    // What is nobody's is seen by whoever is in the thread that it came up in.
    open_uri(&uri("nonsense:", "typed.db", &[])).expect_err("no endpoint");
    assert!(said(&beside).contains("nonsense"), "{}", said(&beside));
    let seen = std::thread::scope(|scope| {
        let elsewhere = scope.spawn(move || said(&other));
        elsewhere.join().expect("the thread")
    });
    assert!(!seen.contains("nonsense"), "{seen}");
}

/// The commit point of a transaction over several databases is the deletion of a file that is nobody's (SQLite's super-journal).
#[test]
fn the_error_of_a_transaction_over_two_databases_is_told_to_its_own_connection() {
    let server = PageServer::versioned();
    let proxy = Proxy::new(&server.endpoint());
    register();
    let of = |name: &str, credential: &str| {
        let more = [&*format!("token={credential}"), "timeout_ms=3000"];
        uri(&proxy.endpoint(), name, &more)
    };
    let first = open_uri(&of("first.db", "one")).expect("open");
    let other = open_uri(&of("other.db", "two")).expect("open");
    other.execute_batch("CREATE TABLE t(n)").expect("a table");
    let attach = format!("ATTACH '{}' AS second", of("secret.db", "one"));
    first.execute_batch(&attach).expect("attach");
    first
        .execute_batch("CREATE TABLE t(n); CREATE TABLE second.t(n)")
        .expect("tables");
    first
        .execute_batch("BEGIN; INSERT INTO t VALUES(1); INSERT INTO second.t VALUES(1)")
        .expect("a transaction");
    proxy.arm(Call::Commit, Fault::Refused(Reason::StoreFull));
    first.execute_batch("COMMIT").expect_err("it was refused");
    assert!(proxy.is_disarmed(), "the fault never struck");
    let said = |connection: &Connection| {
        let sql = "SELECT coalesce(pagewire_last_error(), '')";
        connection.query_row(sql, [], |row| row.get::<_, String>(0))
    };
    let seen = said(&other).expect("it can always be asked");
    assert!(
        !seen.contains("first.db") && !seen.contains("secret.db"),
        "{seen}"
    );
    std::thread::scope(|scope| {
        let own = scope
            .spawn(move || said(&first))
            .join()
            .expect("the thread");
        let own = own.expect("it can always be asked");
        assert!(own.contains("refused by the proxy"), "{own}");
    });
}
