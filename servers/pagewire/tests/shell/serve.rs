//! `pagewire serve` where it cannot: it says what to do, and ends.

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
