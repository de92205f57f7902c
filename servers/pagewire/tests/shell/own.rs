//! What `pagewire shell` does beyond `sqlite3`, or otherwise than it.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use tempfile::TempDir;

use super::{SHELL, command, pagewire, run};

fn stdout(directory: &TempDir, arguments: &[&str], input: &str) -> String {
    let output = run(pagewire(directory.path(), arguments), input.as_bytes());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_uri_that_names_its_vfs_needs_no_page_server() {
    let directory = TempDir::new().unwrap();
    let mut shell = command(SHELL, directory.path());
    shell.args([
        "shell",
        "file:a%20b.db?vfs=unix",
        "create table t(x); select count(*) from t",
    ]);
    let output = run(shell, b"");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n");
    assert!(directory.path().join("a b.db").exists());
    assert!(!directory.path().join("pagewire-data").exists());
}

#[test]
fn a_full_dump_loads_into_an_equal_database() {
    let directory = TempDir::new().unwrap();
    stdout(
        &directory,
        &["one.db"],
        include_str!("cases/dump.sql")
            .split(".dump")
            .next()
            .unwrap(),
    );
    let dump = stdout(&directory, &["one.db", ".dump"], "");
    for part in [
        "CREATE VIEW v",
        "CREATE TRIGGER tr",
        "DELETE FROM sqlite_sequence",
        "ANALYZE",
        "fts5",
    ] {
        assert!(dump.contains(part), "{part} is missing");
    }
    stdout(&directory, &["two.db"], &dump);
    assert_eq!(stdout(&directory, &["two.db", ".dump"], ""), dump);
    let check = "pragma integrity_check; select * from words where words match 'hello'; \
                 select id from boxes; select total from parent";
    assert_eq!(
        stdout(&directory, &["two.db", check], ""),
        "ok\nhello world\n1\n2\n4\n6\n"
    );
}

#[test]
fn bytes_that_are_not_utf8_survive_dump_and_load() {
    let directory = TempDir::new().unwrap();
    stdout(
        &directory,
        &[
            "one.db",
            "create table t(x); insert into t values(cast(x'61ff62' as text))",
        ],
        "",
    );
    let dump = run(pagewire(directory.path(), &["one.db", ".dump"]), b"").stdout;
    assert!(
        run(pagewire(directory.path(), &["two.db"]), &dump)
            .status
            .success()
    );
    assert_eq!(
        stdout(
            &directory,
            &["two.db", "select hex(x), typeof(x) from t"],
            ""
        ),
        "61FF62|text\n"
    );
}

#[test]
fn a_clone_has_the_same_dump() {
    let directory = TempDir::new().unwrap();
    let make = include_str!("cases/dump.sql")
        .split(".dump")
        .next()
        .unwrap();
    stdout(&directory, &["one.db"], &format!("{make}\n.clone two.db\n"));
    assert_eq!(
        stdout(&directory, &["two.db", ".dump"], ""),
        stdout(&directory, &["one.db", ".dump"], "")
    );
}

#[test]
fn after_a_failed_open_statements_reach_no_other_database() {
    let directory = TempDir::new().unwrap();
    let input = ".open /nonexistent/place/x.db\ncreate table t(x);\n.tables\n";
    let output = run(pagewire(directory.path(), &["one.db"]), input.as_bytes());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors.contains("unable to open database \"/nonexistent/place/x.db\""),
        "{errors}"
    );
    assert!(
        errors.contains("Error near line 2: no database is open"),
        "{errors}"
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
}

#[test]
fn an_unknown_vfs_is_named() {
    let directory = TempDir::new().unwrap();
    let mut shell = command(SHELL, directory.path());
    shell.args(["shell", "file:x.db?vfs=nosuch", "select 1"]);
    let output = run(shell, b"");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Error: unable to open database \"file:x.db?vfs=nosuch\": no such vfs: nosuch\n"
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_vfs_is_what_the_file_control_says() {
    let directory = TempDir::new().unwrap();
    let text = stdout(&directory, &["x.db"], ".vfsname\n.vfsinfo\n");
    assert!(
        text.starts_with("unix\nvfs.zName      = \"unix\"\nvfs.iVersion   = "),
        "{text}"
    );
}

#[test]
fn help_lists_every_command_and_explains_one() {
    let directory = TempDir::new().unwrap();
    let all = stdout(&directory, &[":memory:", ".help"], "");
    assert!(
        all.contains(".tables ?TABLE?          List names of tables matching LIKE pattern TABLE\n")
    );
    let one = stdout(&directory, &[":memory:", ".help mode"], "");
    assert!(
        one.starts_with(
            ".mode MODE ?OPTIONS?     Set output mode\n   MODE is one of:\n     ascii "
        )
    );
    assert_eq!(
        stdout(&directory, &[":memory:", ".help nosuch"], ""),
        "Nothing matches 'nosuch'\n"
    );
}

#[test]
fn a_file_that_reads_itself_ends() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("loop.sql"), ".read loop.sql\n").unwrap();
    let output = run(
        pagewire(directory.path(), &[":memory:"]),
        b".read loop.sql\n",
    );
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("nesting limit"), "{errors}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_initial_file_runs_first() {
    let directory = TempDir::new().unwrap();
    std::fs::write(
        directory.path().join(".sqliterc"),
        ".headers on\nselect 0 as z;\n",
    )
    .unwrap();
    std::fs::write(directory.path().join("other.sql"), ".mode csv\n").unwrap();
    assert_eq!(
        stdout(&directory, &[":memory:", "select 1 as a"], ""),
        "z\n0\na\n1\n"
    );
    assert_eq!(
        stdout(
            &directory,
            &["-init", "other.sql", ":memory:", "select 1, 'x y'"],
            ""
        ),
        "1,\"x y\"\r\n"
    );
}

#[test]
fn timer_and_stats_print_their_lines() {
    let directory = TempDir::new().unwrap();
    let text = stdout(
        &directory,
        &[":memory:"],
        ".timer on\n.stats on\nselect 1;\n",
    );
    assert!(text.contains("Run Time: real 0."), "{text}");
    assert!(text.contains("Virtual Machine Steps:"), "{text}");
}

#[test]
fn ctrl_c_interrupts_the_statement_and_the_shell_reports_it() {
    let directory = TempDir::new().unwrap();
    let endless = "with recursive n(x) as (select 1 union all select x+1 from n) select x from n";
    let mut child = pagewire(directory.path(), &[":memory:", endless])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut rows = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    // The first row says that the statement is running.
    rows.read_line(&mut first).unwrap();
    assert_eq!(first, "1\n");
    // The shell's own: a small machine may have no program of this name.
    let killed = std::process::Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status();
    assert!(killed.unwrap().success());
    std::io::copy(&mut rows, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Error: stepping, interrupted (9)\n"
    );
    assert_eq!(output.status.code(), Some(9));
}

#[test]
fn a_reader_that_goes_away_ends_an_endless_query() {
    let directory = TempDir::new().unwrap();
    let endless = "with recursive n(x) as (select 1 union all select x+1 from n) select x from n";
    let mut child = pagewire(directory.path(), &[":memory:", endless])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut rows = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    rows.read_line(&mut first).unwrap();
    drop(rows);
    assert!(!child.wait().unwrap().success());
}
