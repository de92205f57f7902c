//! `pagewire doctor`: what it says of a good server, of none, and of a wrong setting; and that it leaves nothing behind.

use crate::history::Server;

/// The first words of each line.
fn verdicts(said: &str) -> Vec<String> {
    let words = |line: &str| {
        let words: Vec<_> = line.split_whitespace().take(2).collect();
        words.join(" ")
    };
    said.lines().map(words).collect()
}

#[test]
fn a_good_server_passes_and_keeps_nothing_of_the_examination() {
    let server = Server::start();
    server.sql("app.db", "CREATE TABLE t(x); INSERT INTO t VALUES(1)");
    let said = server.run(&["doctor", "app.db", "--write"]);
    assert_eq!(
        verdicts(&said),
        [
            "ok settings",
            "ok connect",
            "ok session",
            "ok round",
            "note store",
            "ok sqlite",
            "ok database",
            "ok write"
        ],
        "{said}"
    );
    assert!(said.contains("21 commits in 21 calls"), "{said}");
    let names = server.run(&["db", "list"]);
    assert_eq!(names.lines().count(), 1, "{names}");
}

#[test]
fn what_fails_is_named_with_what_to_do() {
    let server = Server::start();
    let examine = |arguments: &[&str], variable: (&str, &str)| {
        let mut command = server.pagewire(&[&["doctor"], arguments].concat());
        let output = command.env(variable.0, variable.1).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = examine(&["--endpoint", "http://127.0.0.1:1"], ("A", ""));
    assert!(said.contains("FAILED  connect"), "{said}");
    assert!(said.contains("pagewire serve"), "{said}");
    let said = examine(&["missing.db"], ("PAGEWIRE_CACHE", "1"));
    assert!(said.contains("PAGEWIRE_CACHE is no setting"), "{said}");
    assert!(said.contains("no such database"), "{said}");
    let said = examine(&["missing.db"], ("PAGEWIRE_TIMEOUT_MS", "soon"));
    assert!(said.contains("PAGEWIRE_TIMEOUT_MS is \"soon\""), "{said}");
}
