//! Commits whose pages go as deltas of their base, or compressed: few bytes, one call, and the same pages whatever happens on the way.

use pagewire_proto::status::Reason;
use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::proxy::{Call, Fault, Proxy};
use pagewire_tests::random::Random;
use pagewire_tests::server::PageServer;

const FORCED: &[(&str, &str)] = &[("PAGEWIRE_COMPRESSION", "lz4")];
const FILL: &str = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
    INSERT INTO t SELECT i, printf('the row of number %d, with %x', i, i * i * i) FROM n";

/// A process with a filled table, everything cached and the lease held.
fn writer(endpoint: &str, settings: &[(&str, &str)]) -> Guest {
    let mut guest = Guest::start(settings);
    guest.open("probe", ":memory:").expect("open");
    guest.open("t", &uri(endpoint, "t.db", &[])).expect("open");
    guest.ok("t", "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT)");
    guest.ok("t", FILL);
    guest
}

/// What a statement costs: round trips, commits, and the bytes that went out with them.
fn cost(guest: &mut Guest, sql: &str) -> (i64, i64, i64) {
    let counters = |guest: &mut Guest| {
        let counters = "SELECT (SELECT sum(count) FROM pagewire_rpc), count, bytes_sent FROM pagewire_rpc WHERE kind = 'commit'";
        let row = guest.ok("probe", counters).remove(0);
        let numbers: Vec<i64> = row.split('|').map(|n| n.parse().unwrap()).collect();
        (numbers[0], numbers[1], numbers[2])
    };
    let before = counters(guest);
    guest.ok("t", sql);
    let after = counters(guest);
    (after.0 - before.0, after.1 - before.1, after.2 - before.2)
}

/// What a process that talks to the server itself sees.
fn seen(endpoint: &str, sql: &str) -> Vec<String> {
    let mut other = Guest::start(&[("PAGEWIRE_COMPRESSION", "off")]);
    other.open("t", &uri(endpoint, "t.db", &[])).expect("open");
    assert_eq!(other.ok("t", "PRAGMA integrity_check"), ["ok"]);
    other.ok("t", sql)
}

#[test]
fn a_commit_of_one_row_is_one_call_of_a_few_hundred_bytes() {
    let insert = "INSERT INTO t(v) VALUES('one more row')";
    let update = "UPDATE t SET v = v || ' and more' WHERE i = 2500";
    let delete = "DELETE FROM t WHERE i = (SELECT min(i) FROM t WHERE i > 1233)";
    let dir = tempfile::tempdir().expect("a folder");
    for server in [PageServer::memory(), PageServer::local(dir.path())] {
        let endpoint = server.endpoint();
        let mut raw = writer(&endpoint, &[("PAGEWIRE_COMPRESSION", "off")]);
        for sql in [insert, update, delete] {
            let (round_trips, commits, bytes) = cost(&mut raw, sql);
            assert_eq!((round_trips, commits), (1, 1), "{sql}");
            // Two pages, and at most 120 bytes about them.
            assert!((8192..8192 + 120).contains(&bytes), "{sql}: {bytes}");
        }
        // On one machine the bytes cost less than the work.
        drop(raw);
        let mut unset = Guest::start(&[]);
        unset.open("probe", ":memory:").expect("open");
        unset.open("t", &uri(&endpoint, "t.db", &[])).expect("open");
        unset.ok("t", insert);
        assert!(cost(&mut unset, insert).2 > 8192);
        drop(unset);
        let mut forced = Guest::start(FORCED);
        forced.open("probe", ":memory:").expect("open");
        forced
            .open("t", &uri(&endpoint, "t.db", &[]))
            .expect("open");
        forced.ok("t", "UPDATE t SET v = 'first' WHERE i IN (1, 1235, 2501)");
        for sql in [insert, update, delete] {
            let (round_trips, commits, bytes) = cost(&mut forced, sql);
            assert_eq!((round_trips, commits), (1, 1), "{sql}");
            assert!(bytes < 300, "{sql}: {bytes}");
        }
        drop(forced);
        let all = "SELECT count(*), sum(i), max(v), group_concat(v) FILTER (WHERE i IN (1, 2500, 2501, 5001)) FROM t";
        let there = seen(&endpoint, all);
        assert!(there[0].starts_with("5002|"), "{there:?}");
        assert!(there[0].contains("and more and more"), "{there:?}");
    }
}

#[test]
fn pages_whose_base_is_not_at_hand_go_compressed() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let few_pages = [
        ("PAGEWIRE_COMPRESSION", "lz4"),
        ("PAGEWIRE_CACHE_BYTES", "131072"),
    ];
    let mut guest = writer(&proxy.endpoint(), &few_pages);
    // New pages have none.
    let new = proxy.take_commits();
    assert!(new.lz4 > 30 && new.raw == 0, "{new:?}");
    guest.ok("t", "SELECT v FROM t WHERE i = 2500");
    // SQLite has the page, and the process has room for other things only.
    guest
        .open("b", &uri(&proxy.endpoint(), "b.db", &[]))
        .expect("open");
    guest.ok("b", "CREATE TABLE b(v)");
    for _ in 0..20 {
        guest.ok("b", "INSERT INTO b VALUES(randomblob(100000))");
        guest.ok("b", "SELECT sum(length(v)) FROM b");
    }
    proxy.take_commits();
    guest.ok("t", "UPDATE t SET v = 'changed' WHERE i = 2500");
    let sent = proxy.take_commits();
    assert_eq!((sent.calls, sent.raw), (1, 0), "{sent:?}");
    assert!(sent.lz4 >= 1, "the base was not driven out: {sent:?}");
    let changed = "SELECT i FROM t WHERE v = 'changed'";
    assert_eq!(seen(&server.endpoint(), changed), ["2500"]);
}

#[test]
fn a_commit_over_several_databases_is_one_call_of_deltas() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut guest = writer(&proxy.endpoint(), FORCED);
    for name in ["x", "y"] {
        let other = uri(&proxy.endpoint(), &format!("{name}.db"), &[]);
        guest.ok("t", &format!("ATTACH '{other}' AS {name}"));
        guest.ok("t", &format!("CREATE TABLE {name}.{name}(v)"));
        guest.ok("t", &format!("INSERT INTO {name} SELECT v FROM t"));
    }
    let all = [
        "BEGIN",
        "UPDATE t SET v = 'all' WHERE i = 77",
        "UPDATE x SET v = 'all' WHERE rowid = 77",
        "UPDATE y SET v = 'all' WHERE rowid = 77",
    ];
    for sql in all {
        guest.ok("t", sql);
    }
    proxy.take_commits();
    let (_, commits, bytes) = cost(&mut guest, "COMMIT");
    assert_eq!(commits, 1);
    assert!(bytes < 1000, "{bytes}");
    let sent = proxy.take_commits();
    assert_eq!((sent.calls, sent.raw, sent.lz4), (1, 0, 0), "{sent:?}");
    assert_eq!(sent.deltas, 6, "{sent:?}");
    assert_eq!(
        seen(&server.endpoint(), "SELECT v FROM t WHERE i = 77"),
        ["all"]
    );
    guest.close("t").expect("close");
    let mut other = Guest::start(&[]);
    for name in ["x", "y"] {
        other
            .open(name, &uri(&server.endpoint(), &format!("{name}.db"), &[]))
            .expect("open");
        let there = other.ok(name, &format!("SELECT v FROM {name} WHERE rowid = 77"));
        assert_eq!(there, ["all"]);
        assert_eq!(other.ok(name, "PRAGMA integrity_check"), ["ok"]);
    }
}

#[test]
fn a_server_without_the_capabilities_gets_raw_pages() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    proxy.set_commits(|commits| commits.has_no_capabilities = true);
    let mut guest = writer(&proxy.endpoint(), FORCED);
    let (round_trips, _, bytes) = cost(&mut guest, "INSERT INTO t(v) VALUES('raw')");
    assert_eq!(round_trips, 1);
    assert!(bytes > 8192);
    // Also where it spills and stages.
    guest.ok("t", "PRAGMA cache_size = 10");
    guest.ok(
        "t",
        "CREATE TABLE u AS SELECT a.* FROM t a, t b WHERE b.i < 20",
    );
    let sent = proxy.take_commits();
    assert_eq!((sent.lz4, sent.deltas), (0, 0), "{sent:?}");
    assert!(sent.raw > 100, "{sent:?}");
    assert_eq!(
        seen(&server.endpoint(), "SELECT count(*) FROM u"),
        ["95019"]
    );
}

#[test]
fn what_is_refused_for_its_encoding_goes_again_raw_and_once() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut guest = writer(&proxy.endpoint(), FORCED);
    guest.ok("t", "INSERT INTO t(v) VALUES('before')");
    // An older server behind a balancer calls it invalid.
    for reason in [Reason::EncodingRefused, Reason::Invalid] {
        proxy.take_commits();
        proxy.arm(Call::Commit, Fault::Refused(reason));
        let (round_trips, commits, _) = cost(&mut guest, "INSERT INTO t(v) VALUES('again')");
        assert_eq!((round_trips, commits), (2, 2), "{reason:?}");
        let sent = proxy.take_commits();
        assert_eq!((sent.deltas, sent.raw), (2, 2), "{reason:?} {sent:?}");
        // The next one is as if nothing had been.
        let (round_trips, _, bytes) = cost(&mut guest, "INSERT INTO t(v) VALUES('after')");
        assert_eq!(round_trips, 1);
        assert!(bytes < 300, "{bytes}");
    }
    // What is wrong with raw pages stays wrong.
    proxy.arm(Call::Commit, Fault::Refused(Reason::Invalid));
    proxy.arm(Call::Commit, Fault::Refused(Reason::Invalid));
    guest
        .sql("t", "INSERT INTO t(v) VALUES('never')")
        .expect_err("it was refused twice");
    assert!(proxy.is_disarmed());
    let count = "SELECT v, count(*) FROM t WHERE i > 5000 GROUP BY v ORDER BY v";
    let there = seen(&server.endpoint(), count);
    assert_eq!(there, ["after|2", "again|2", "before|1"]);
}

#[test]
fn a_delta_of_another_base_never_becomes_wrong_data() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut guest = writer(&proxy.endpoint(), FORCED);
    proxy.set_commits(|commits| commits.spoils_deltas = true);
    proxy.take_commits();
    for _ in 0..3 {
        let (round_trips, _, _) = cost(&mut guest, "INSERT INTO t(v) VALUES('right')");
        assert_eq!(round_trips, 2);
    }
    let sent = proxy.take_commits();
    assert_eq!((sent.deltas, sent.raw), (6, 6), "{sent:?}");
    let right = "SELECT count(*) FROM t WHERE v = 'right'";
    assert_eq!(seen(&server.endpoint(), right), ["3"]);
}

#[test]
fn lost_answers_and_requests_are_settled_with_deltas_as_without() {
    let server = PageServer::memory();
    let proxy = Proxy::new(&server.endpoint());
    let mut guest = writer(&proxy.endpoint(), FORCED);
    let faults = [
        Fault::AnswerBroken,
        Fault::RequestBroken,
        Fault::AnswerBroken,
    ];
    for (round, fault) in faults.into_iter().enumerate() {
        proxy.take_commits();
        proxy.arm(Call::Commit, fault);
        guest.ok(
            "t",
            &format!("UPDATE t SET v = 'lost {round}' WHERE i = 100 + {round}"),
        );
        assert!(proxy.is_disarmed());
        let sent = proxy.take_commits();
        assert_eq!((sent.raw, sent.lz4), (0, 0), "{sent:?}");
        assert!(sent.deltas >= 2, "{sent:?}");
        guest.ok(
            "t",
            &format!("UPDATE t SET v = v || '!' WHERE i = 100 + {round}"),
        );
    }
    let lost = "SELECT v FROM t WHERE v LIKE 'lost%' ORDER BY i";
    assert_eq!(
        seen(&server.endpoint(), lost),
        ["lost 0!", "lost 1!", "lost 2!"]
    );
}

#[test]
fn a_server_that_was_restarted_has_the_bases_that_its_clients_remember() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = PageServer::local(dir.path());
    let proxy = Proxy::new(&server.endpoint());
    let mut guest = writer(&proxy.endpoint(), FORCED);
    guest.ok("t", "PRAGMA busy_timeout = 30000");
    for round in 0..3 {
        server.kill();
        server.restart();
        // Its lease is gone with the session; what it reads is as it was.
        let update = format!("UPDATE t SET v = 'round {round}' WHERE i = {}", 10 + round);
        for tries in 0.. {
            match guest.sql("t", &update) {
                Ok(_) => break,
                Err(failure) => assert!(tries < 5, "{failure:?}"),
            }
        }
        proxy.take_commits();
        guest.ok(
            "t",
            &format!("UPDATE t SET v = v || '!' WHERE i = {}", 10 + round),
        );
        let sent = proxy.take_commits();
        assert_eq!((sent.raw, sent.lz4, sent.deltas), (0, 0, 2), "{sent:?}");
    }
    let there = seen(
        &server.endpoint(),
        "SELECT v FROM t WHERE v LIKE 'round%' ORDER BY i",
    );
    assert_eq!(there, ["round 0!", "round 1!", "round 2!"]);
}

/// A statement of which plain SQLite makes the same everywhere.
fn statement(random: &mut Random, step: u64) -> String {
    let row = 1 + random.below(3000);
    let text = match random.below(3) {
        0 => format!("'a short one {step}'"),
        1 => format!("printf('%0{}d', {step})", 1 + random.below(900)),
        _ => format!(
            "replace(hex(zeroblob({})), '00', 'row {step}, ')",
            random.below(200)
        ),
    };
    match random.below(12) {
        0..=2 => format!("INSERT OR REPLACE INTO t VALUES({row}, {text})"),
        3..=5 => format!("UPDATE t SET v = {text} WHERE i = {row}"),
        6 => format!("UPDATE t SET v = v || {text} WHERE i BETWEEN {row} AND {row} + 40"),
        7 => format!("DELETE FROM t WHERE i BETWEEN {row} AND {row} + 20"),
        8 => format!(
            "INSERT INTO t SELECT i + 100000 + {step} * 1000, v FROM t WHERE i BETWEEN {row} AND {row} + 60"
        ),
        9 => format!("DELETE FROM t WHERE i > 100000 + {row}"),
        10 => "REINDEX".to_owned(),
        _ if random.below(6) == 0 => "VACUUM".to_owned(),
        _ => format!("CREATE TABLE IF NOT EXISTS u{}(a, b)", random.below(4)),
    }
}

/// Two processes write in turn, each on the pages of the other, one with deltas and one raw; a plain file has to be the same all the while.
#[test]
fn random_histories_with_deltas_are_those_of_plain_sqlite() {
    let mut random = Random::start();
    let steps = match std::env::var_os("PAGEWIRE_LONG_TESTS") {
        Some(_) => 5000,
        None => 250,
    };
    let dir = tempfile::tempdir().expect("a folder");
    let server = PageServer::on(pagewire_tests::server::VersionedStore::Local, &[]);
    let proxy = Proxy::new(&server.endpoint());
    let mut guests = [FORCED, &[("PAGEWIRE_COMPRESSION", "off")]].map(Guest::start);
    let plain = format!("file:{}?vfs=unix", dir.path().join("plain.db").display());
    guests[0].open("plain", &plain).expect("open");
    for guest in &mut guests {
        guest
            .open("t", &uri(&proxy.endpoint(), "t.db", &[]))
            .expect("open");
        guest.ok("t", "PRAGMA busy_timeout = 30000");
    }
    for create in [
        "PRAGMA auto_vacuum = INCREMENTAL",
        "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT)",
        "CREATE INDEX x ON t(v)",
    ] {
        guests[0].ok("t", create);
        guests[0].ok("plain", create);
    }
    let all = "SELECT count(*), sum(i), sum(length(v)), max(v), min(v) FROM t";
    let sum = "SELECT i, v FROM t ORDER BY i";
    for step in 0..steps {
        let sql = statement(&mut random, step);
        let writer = usize::from(random.below(4) == 0);
        guests[writer].ok("t", &sql);
        guests[0].ok("plain", &sql);
        let query = if step % 25 == 0 { sum } else { all };
        let expected = guests[0].ok("plain", query);
        for guest in &mut guests {
            assert_eq!(guest.ok("t", query), expected, "{step}: {sql}");
        }
    }
    for guest in &mut guests {
        assert_eq!(guest.ok("t", "PRAGMA integrity_check"), ["ok"]);
    }
    let sent = proxy.take_commits();
    assert!(
        sent.deltas > 100 && sent.lz4 > 0 && sent.raw > 0,
        "{sent:?}"
    );
}
