//! `pagewire serve` where it cannot, or should not: it says what to do, and ends.

use tempfile::TempDir;

use super::{SHELL, command, run};

/// A machine without FoundationDB: nothing of it is needed before it is asked for, and then it is named.
#[test]
fn serve_on_foundationdb_without_its_client_library_says_what_to_install() {
    let directory = TempDir::new().unwrap();
    for set_by_name in [true, false] {
        let mut serve = command(SHELL, directory.path());
        serve.args(["serve", "--store", "fdb:/x", "--listen", "127.0.0.1:0"]);
        match set_by_name {
            true => serve.args(["--fdb-library", "/nonexistent/libfdb_c.so"]),
            false => serve.env("PAGEWIRE_FDB_LIBRARY", "/nonexistent/libfdb_c.so"),
        };
        let ended = run(serve, b"");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(ended.stdout.is_empty(), "it says that it listens");
        for words in [
            "the FoundationDB client library cannot be opened",
            "install the package foundationdb-clients 7.3",
            "libfdb_c.so in PAGEWIRE_FDB_LIBRARY",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(
            said.matches("install").count(),
            1,
            "one sentence, once: {said}"
        );
    }
}

/// `PAGEWIRE_CHECK` is for a file: what says no in it is as if it was not there, and any other word is refused.
#[test]
fn serve_takes_its_check_from_the_environment() {
    let directory = TempDir::new().unwrap();
    for (check, words) in [
        ("0", "must be ADDR:PORT"),
        ("false", "must be ADDR:PORT"),
        ("1", "--check: only the local store has a file"),
        ("never", "--check: only the local store has a file"),
        ("2", "must be always, auto or never"),
    ] {
        let mut serve = command(SHELL, directory.path());
        serve.args(["serve", "--store", "memory", "--listen", "nowhere"]);
        serve.env("PAGEWIRE_CHECK", check);
        let ended = run(serve, b"");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(
            !ended.status.success() && said.contains(words),
            "{check}: {said}"
        );
        let is_off = words.contains("ADDR");
        assert_eq!(said.contains("--check"), !is_off, "{check}: {said}");
    }
}

/// A damaged store is refused, but where it is told never to look; what may happen then is in the help, and in the log. What such a store has left is
/// tried in `start/tests.rs` of the local store.
#[test]
fn serve_refuses_a_damaged_store_and_says_so_where_it_does_not_look() {
    let directory = TempDir::new().unwrap();
    let mut help = command(SHELL, directory.path());
    help.args(["serve", "--help"]);
    let help = run(help, b"");
    let help = String::from_utf8_lossy(&help.stdout).replace('\n', " ");
    for words in ["rows may be missing,", "the process may end."] {
        let words: Vec<_> = words.split(' ').collect();
        let said: Vec<_> = help.split_whitespace().collect();
        assert!(
            said.windows(words.len()).any(|said| said == words),
            "{help}"
        );
    }
    // Opened, and no more: there is nothing to listen on.
    let serve = |check: &[&str]| {
        let mut serve = command(SHELL, directory.path());
        serve.args([
            "serve",
            "--store",
            "local:store",
            "--listen",
            "unix:/nonexistent/socket",
        ]);
        serve.args(check);
        let ended = run(serve, b"");
        String::from_utf8_lossy(&ended.stderr).into_owned()
    };
    let said = serve(&[]);
    assert!(
        said.contains("cannot listen on") && !said.contains("not checked"),
        "{said}"
    );
    let said = serve(&["--check", "never"]);
    assert!(
        said.contains("cannot listen on") && said.contains("not checked"),
        "{said}"
    );
    // The number of each page of the tree, in all of them.
    let path = directory.path().join("store/data.mdb");
    let mut bytes = std::fs::read(&path).unwrap();
    for page in bytes.chunks_mut(4096).skip(2) {
        page[4] ^= 1;
    }
    std::fs::write(&path, &bytes).unwrap();
    for check in [&[][..], &["--check"], &["--check", "auto"]] {
        let said = serve(check);
        assert!(said.contains("is damaged: its page"), "{said}");
    }
}
