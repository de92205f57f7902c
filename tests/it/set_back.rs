//! A store that was set back to an old copy of itself, under a process that saw more.

use std::fs;
use std::path::Path;
use std::thread::park_timeout;
use std::time::Duration;

use pagewire_tests::connection::{assert_sound, last_error, number, open};
use pagewire_tests::server::PageServer;

const STEP: Duration = Duration::from_millis(100);

/// The incarnation is a file of the store, so an old copy of it has the same. Its next versions have numbers that are cached here.
#[test]
fn p3_a_store_that_was_set_back_to_an_old_copy_is_refused_by_who_saw_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let (store, copy) = (folder.path().join("store"), folder.path().join("copy"));
    let mut server = PageServer::local(&store);
    let connection = open(&server.endpoint(), "t.db");
    connection
        .execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(1)")
        .expect("fill");
    server.kill();
    copy_files(&store, &copy);
    server.restart();
    until_ok(|| connection.execute_batch("INSERT INTO t VALUES(2)"));
    until_ok(|| connection.execute_batch("INSERT INTO t VALUES(3)"));
    server.kill();
    fs::remove_dir_all(&store).expect("the store");
    copy_files(&copy, &store);
    server.restart();
    let mut refused = String::new();
    for _ in 0..200 {
        match connection.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0)) {
            Ok(count) => assert_eq!(count, 3, "what it saw before is gone in silence"),
            Err(_) => {
                refused = last_error(&connection);
                if refused.contains("set back") {
                    break;
                }
            }
        }
        park_timeout(STEP);
    }
    assert!(refused.contains("set back"), "{refused}");
    connection
        .execute_batch("INSERT INTO t VALUES(4)")
        .expect_err("it was written into another history");
    drop(connection);
    // Who opens it anew sees what is there.
    let anew = open(&server.endpoint(), "t.db");
    assert_eq!(number(&anew, "SELECT count(*) FROM t"), 1);
    assert_sound(&anew);
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(file.file_name());
        if file.file_type().expect("a type").is_dir() {
            copy_files(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).expect("a copy");
        }
    }
}

fn until_ok(mut statement: impl FnMut() -> rusqlite::Result<()>) {
    for _ in 0..200 {
        if statement().is_ok() {
            return;
        }
        park_timeout(STEP);
    }
    panic!("it did not get through");
}
