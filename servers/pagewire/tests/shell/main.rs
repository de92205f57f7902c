//! Golden transcripts: the same input goes through `sqlite3` and through `pagewire shell`, and
//! both must print the same bytes.
//!
//! `sqlite3` is the judge; where it is not installed the comparisons say so and stop. What only
//! Pagewire's shell does is in `own.rs`.

mod doctor;
mod history;
mod own;
mod serve;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const SHELL: &str = env!("CARGO_BIN_EXE_pagewire");
/// The version whose output is the reference.
const REFERENCE: &str = "3.40.";

/// A command that sees none of the user's own settings.
fn command(program: &str, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("HOME", directory);
    for name in ["PAGEWIRE_ENDPOINT", "PAGEWIRE_HISTORY"] {
        command.env_remove(name);
    }
    command
}

fn pagewire(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = command(SHELL, directory);
    command.args(["shell", "--vfs", "unix"]).args(arguments);
    command
}

fn run(mut command: Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the shell starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A shell that ends early does not read it all.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("the shell ends");
    writer.join().expect("the input was written");
    output
}

/// Whether the reference is installed; says so if not.
fn has_reference() -> bool {
    let version = Command::new("sqlite3").arg("--version").output();
    let found = version
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    if !found.starts_with(REFERENCE) {
        println!(
            "skipped: sqlite3 {REFERENCE}x is not installed (found \"{}\")",
            found.trim()
        );
    }
    found.starts_with(REFERENCE)
}

/// Text with the directory of the run taken out.
fn text(bytes: &[u8], directory: &Path) -> String {
    String::from_utf8_lossy(bytes).replace(&*directory.to_string_lossy(), "DIRECTORY")
}

/// Runs both shells with the same arguments and input in directories of their own.
fn compare(arguments: &[&str], input: &[u8]) {
    if !has_reference() {
        return;
    }
    let (theirs, ours) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut reference = command("sqlite3", theirs.path());
    reference.args(arguments);
    let expected = run(reference, input);
    let actual = run(pagewire(ours.path(), arguments), input);
    let show = |output: &Output, directory: &Path| {
        format!(
            "{}--- stderr\n{}--- exit {:?}\n",
            text(&output.stdout, directory),
            text(&output.stderr, directory),
            output.status.code()
        )
    };
    let (expected, actual) = (show(&expected, theirs.path()), show(&actual, ours.path()));
    if expected != actual {
        let different = expected
            .lines()
            .zip(actual.lines())
            .position(|(left, right)| left != right);
        let at = different.unwrap_or(expected.lines().count().min(actual.lines().count()));
        let around = |text: &str| {
            text.lines()
                .skip(at.saturating_sub(3))
                .take(8)
                .collect::<Vec<_>>()
                .join("\n")
        };
        panic!(
            "{arguments:?}: differs from line {}\n=== sqlite3\n{}\n=== pagewire shell\n{}",
            at + 1,
            around(&expected),
            around(&actual)
        );
    }
}

/// One test a transcript.
macro_rules! transcripts {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                compare(&["x.db"], include_bytes!(concat!("cases/", stringify!($name), ".sql")));
            }
        )*

        const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

transcripts!(
    modes, columns, errors, statements, settings, schema, dump, parameters, files, import,
);

#[test]
fn every_transcript_in_the_folder_is_a_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shell/cases");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            NAMES.contains(&name.as_str()),
            "{name} is not in transcripts!"
        );
    }
}

#[test]
fn command_lines_answer_as_sqlite3_does() {
    const QUERY: &str = "select 1 as a, 'x,y' as b, null as c union all select 2.5, 'é', x'41'";
    for mode in [
        "-list",
        "-column",
        "-box",
        "-table",
        "-markdown",
        "-csv",
        "-json",
        "-line",
        "-html",
        "-quote",
        "-tabs",
        "-ascii",
    ] {
        compare(&[mode, ":memory:", QUERY], b"");
        compare(&[":memory:", "-header", mode, QUERY], b"");
        compare(
            &["-nullvalue", "NIL", mode, "-noheader", ":memory:", QUERY],
            b"",
        );
        compare(
            &[
                mode,
                "-separator",
                "-;-",
                "-newline",
                "END",
                ":memory:",
                QUERY,
            ],
            b"",
        );
        compare(
            &["--header", mode, "x.db"],
            format!("{QUERY};\n.show\n").as_bytes(),
        );
    }
    compare(&["-csv", "-box", ":memory:", QUERY], b"");
}

#[test]
fn exit_codes_are_those_of_sqlite3() {
    for arguments in [
        &[":memory:", "select 1", "select * from nothing", "select 2"][..],
        &[":memory:", "selec 1"],
        &[
            ":memory:",
            "create table t(a unique); insert into t values(1),(1)",
            "select 2",
        ],
        &[":memory:", ".nosuch", "select 1"],
        &[":memory:", ".exit 7", "select 1"],
        &[":memory:", ".quit", "select 1"],
        &["-bail", ":memory:", "select 1; selec; select 2"],
        &[
            "-cmd",
            ".mode box",
            "-cmd",
            "select 0 as zero",
            ":memory:",
            "select 1 as one",
        ],
        &["-cmd", "selec", ":memory:", "select 1"],
        &["-bail", "-cmd", "selec", ":memory:", "select 1"],
        &["-cmd", ".nosuch", ":memory:", "select 1"],
        &["-bail", "-cmd", ".nosuch", ":memory:", "select 1"],
        &["-readonly", "missing.db", "select 1"],
        &["-init", "missing.sql", ":memory:", "select 1"],
        &["-echo", ":memory:", "select 1"],
        &["/nonexistent/place/x.db", "create table t(x)"],
    ] {
        compare(arguments, b"");
    }
    for (arguments, input) in [
        (&["x.db"][..], "select 1;\nselec;\nselect 2;\n"),
        (&["-bail", "x.db"], "select 1;\nselec;\nselect 2;\n"),
        (&["x.db"], ".bail on\n.nosuch\nselect 2;\n"),
        (&["x.db"], "select 1;\n.exit 5\nselect 2;\n"),
        (&["x.db"], "selec;\n.quit\nselect 2;\n"),
        (&["x.db"], "select 1;\n.quit\nselect 2;\n"),
        (&["x.db"], ""),
        (
            &["-echo", "x.db"],
            "select 1;\n-- c\n\n.print x\nselect\n2;\n",
        ),
        (&[], "select 1;\n"),
    ] {
        compare(arguments, input.as_bytes());
    }
}
