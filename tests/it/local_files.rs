//! What the library keeps on the local disk: unlinked temporary files and nothing else, so that nothing of it can vanish.

use pagewire_tests::connection::uri;
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;

const IOERR: i32 = 10;

/// Rows of 1 kB, so that the pages of a transaction go to a file.
fn insert(rows: u32) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
           INSERT INTO t SELECT randomblob(1000) FROM n"
    )
}

#[test]
fn h5_a_folder_for_temporary_files_that_vanishes_is_an_error_and_no_crash() {
    let server = PageServer::memory();
    let dir = tempfile::tempdir().expect("a folder");
    let scratch = dir.path().join("scratch");
    std::fs::create_dir(&scratch).expect("make");
    let settings = [
        ("TMPDIR", scratch.to_str().expect("UTF-8")),
        ("PAGEWIRE_OVERLAY_BYTES", "65536"),
    ];
    let mut guest = Guest::start(&settings);
    guest
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    guest.ok("main", "PRAGMA cache_size = 10");
    guest.ok("main", "CREATE TABLE t(v)");
    // A transaction has its pages in a file that has no name: it does not mind.
    guest.ok("main", "BEGIN");
    guest.ok("main", &insert(1000));
    let names: Vec<_> = std::fs::read_dir(&scratch)
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert!(names.is_empty(), "{names:?}");
    std::fs::remove_dir(&scratch).expect("remove");
    guest.ok("main", &insert(1000));
    guest.ok("main", "COMMIT");
    assert_eq!(guest.ok("main", "SELECT count(*) FROM t"), ["2000"]);
    // The next one finds no folder: it fails as on a disk that fails, and says where to look.
    guest.ok("main", "BEGIN");
    let failure = guest.sql("main", &insert(1000)).expect_err("no folder");
    assert_eq!(failure.code & 0xff, IOERR, "{failure:?}");
    assert!(failure.message.contains("TMPDIR"), "{failure:?}");
    // SQLite has rolled it back, or leaves that to the application.
    let _ = guest.sql("main", "ROLLBACK");
    assert_eq!(guest.ok("main", "SELECT count(*) FROM t"), ["2000"]);
    // What fits into memory goes on, and everything does when the folder is back.
    guest.ok("main", "INSERT INTO t VALUES('small')");
    std::fs::create_dir(&scratch).expect("make");
    guest.ok("main", &insert(1000));
    assert_eq!(guest.ok("main", "SELECT count(*) FROM t"), ["3001"]);
    assert_eq!(guest.ok("main", "PRAGMA integrity_check"), ["ok"]);
}

/// SQLite asks the connection's VFS whether the folder can be written to; we said no to every path of this machine.
#[test]
fn temp_store_directory_takes_a_folder_of_this_machine() {
    let server = PageServer::memory();
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path().to_str().expect("UTF-8");
    let mut guest = Guest::start(&[]);
    guest
        .open("main", &uri(&server.endpoint(), "t.db", &[]))
        .expect("open");
    guest.ok("main", &format!("PRAGMA temp_store_directory = '{folder}'"));
    assert_eq!(guest.ok("main", "PRAGMA temp_store_directory"), [folder]);
    let failure = guest
        .sql("main", "PRAGMA temp_store_directory = '/is/not/there'")
        .expect_err("no folder");
    assert!(
        failure.message.contains("not a writable directory"),
        "{failure:?}"
    );
}
