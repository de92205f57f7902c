//! Directories and files that can't be used: the cache is off, with one warning, and no query fails.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Mutex;

use pagewire_tests::connection::{number, open_uri, register, uri};
use pagewire_tests::process::Guest;
use pagewire_tests::server::PageServer;

use super::{ALL, CacheDir, NAME, count, end, fill, guest, open, status, trips};

/// What is done to the bytes of a file.
type Harm<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Everything that SQLite's log was given in this process.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[expect(unsafe_code, reason = "SQLite is configured in C")]
fn keep_log() {
    unsafe extern "C" fn keep(_: *mut std::ffi::c_void, code: i32, text: *const std::ffi::c_char) {
        // SAFETY: SQLite passes a C string.
        let text = unsafe { std::ffi::CStr::from_ptr(text) };
        let line = format!("{code} {}", text.to_string_lossy());
        LOGGED.lock().expect("no panic").push(line);
    }
    let callback: unsafe extern "C" fn(*mut std::ffi::c_void, i32, *const std::ffi::c_char) = keep;
    // SAFETY: before the library is used, with the arguments that this option takes.
    let rc = unsafe {
        rusqlite::ffi::sqlite3_config(
            rusqlite::ffi::SQLITE_CONFIG_LOG,
            callback,
            std::ptr::null_mut::<std::ffi::c_void>(),
        )
    };
    assert_eq!(rc, 0);
}

#[test]
fn q6_a_directory_that_cannot_be_used_is_one_warning_and_no_failure() {
    keep_log();
    let server = PageServer::memory();
    register();
    for turn in 0..3 {
        let db = open_uri(&uri(
            &server.endpoint(),
            NAME,
            &["cache_dir=/dev/null/cache"],
        ))
        .expect("open");
        if turn == 0 {
            db.execute_batch("CREATE TABLE t(i); INSERT INTO t VALUES(1)")
                .expect("write");
        }
        assert_eq!(number(&db, "SELECT count(*) FROM t"), 1);
        let off: String = db
            .query_row(
                "SELECT value FROM pagewire_status WHERE key = 'disk_cache'",
                [],
                |row| row.get(0),
            )
            .expect("status");
        assert!(
            off.starts_with("off: can't make the directory /dev/null/cache"),
            "{off}"
        );
        let logged = std::mem::take(&mut *LOGGED.lock().expect("no panic"));
        let warnings = logged
            .iter()
            .filter(|line| line.starts_with("28 pagewire: the disk cache"));
        // One for each client: it goes with the last connection.
        assert_eq!(warnings.count(), 1, "{logged:?}");
    }
    let error = pagewire_tests::connection::last_error(&open_uri(":memory:").expect("open"));
    assert_eq!(error, "", "a warning is no error");
}

#[test]
fn wrong_settings_are_named_when_a_database_is_opened() {
    let server = PageServer::memory();
    let mut wrong = guest(&[
        ("PAGEWIRE_CACHE_DIR", "relative/path"),
        ("PAGEWIRE_CACHE_DIR_BYTES", "1024"),
    ]);
    let failure = wrong
        .open("main", &uri(&server.endpoint(), NAME, &[]))
        .and_then(|_| wrong.sql("main", "SELECT 1 FROM sqlite_schema"))
        .expect_err("opened");
    for named in ["PAGEWIRE_CACHE_DIR is", "PAGEWIRE_CACHE_DIR_BYTES is"] {
        assert!(failure.message.contains(named), "{failure:?}");
    }
    let mut wrong = guest(&[]);
    let failure = wrong
        .open("main", &uri(&server.endpoint(), NAME, &["cache_dir=x"]))
        .and_then(|_| wrong.sql("main", "SELECT 1 FROM sqlite_schema"))
        .expect_err("opened");
    assert!(failure.message.contains("cache_dir is"), "{failure:?}");
}

#[test]
fn q5_files_that_are_harmed_while_they_are_used_cost_a_read_each() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let settings = [("PAGEWIRE_CACHE_BYTES", "500000")];
    let mut maker = cache.guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, 10_000);
    let truth = maker.ok("main", ALL);
    end(maker);
    let harm = |how: Harm<'_>| {
        for path in cache.files("") {
            let mut bytes = fs::read(&path).expect("a file");
            how(&mut bytes);
            fs::write(&path, &bytes).expect("a file");
        }
    };
    let ways: [Harm<'_>; 6] = [
        &|bytes| bytes.iter_mut().step_by(3000).for_each(|byte| *byte ^= 4),
        &|bytes| bytes.truncate(bytes.len() / 2),
        &|bytes| {
            let slot = bytes.len().min(4136);
            bytes.rotate_left(slot);
        },
        &|bytes| bytes.truncate(0),
        &|bytes| bytes.fill(0xff),
        &|bytes| {
            bytes
                .iter_mut()
                .for_each(|byte| *byte = byte.wrapping_mul(3))
        },
    ];
    for (turn, how) in ways.into_iter().enumerate() {
        // One has it open, and one opens it.
        let mut reader = cache.guest(&settings);
        open(&mut reader, &server, &["mode=ro"]);
        assert_eq!(reader.ok("main", ALL), truth);
        harm(how);
        assert_eq!(reader.ok("main", ALL), truth, "way {turn}");
        end(reader);
        harm(how);
        let mut next = cache.guest(&settings);
        open(&mut next, &server, &[]);
        assert_eq!(next.ok("main", ALL), truth, "way {turn}");
        end(next);
    }
    // It has mended itself.
    let mut last = cache.guest(&[]);
    open(&mut last, &server, &[]);
    assert_eq!(last.ok("main", ALL), truth);
    assert_eq!(trips(&mut last), "open 1");
}

#[test]
fn h5_files_that_vanish_and_others_that_come_are_no_failure() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut reader = cache.guest(&[("PAGEWIRE_CACHE_BYTES", "0")]);
    open(&mut reader, &server, &[]);
    fill(&mut reader, 20_000);
    let truth = reader.ok("main", ALL);
    fs::remove_dir_all(cache.path()).expect("remove");
    assert_eq!(reader.ok("main", ALL), truth);
    reader.ok("main", "UPDATE t SET v = v || 'x' WHERE i = 1");
    reader.ok("main", "UPDATE t SET v = substr(v, 1, 100) WHERE i = 1");
    assert_eq!(reader.ok("main", ALL), truth);
    end(reader);
    let mut next = cache.guest(&[]);
    open(&mut next, &server, &[]);
    assert_eq!(next.ok("main", ALL), truth);
    assert!(cache.path().is_dir(), "it is made anew");
}

#[test]
fn q7_it_stays_within_its_limit_also_where_several_processes_fill_it() {
    const LIMIT: u64 = 16 << 20;
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let limit = LIMIT.to_string();
    let settings = [("PAGEWIRE_CACHE_DIR_BYTES", limit.as_str())];
    let mut maker = guest(&[]);
    let name = |number: usize| uri(&server.endpoint(), &format!("{number}.db"), &[]);
    for number in 0..2 {
        maker.open("main", &name(number)).expect("open");
        fill(&mut maker, 150_000);
    }
    let truth = maker.ok("main", ALL);
    end(maker);
    let taken = || -> u64 {
        let files = cache.files("").into_iter();
        files
            .filter_map(|path| fs::metadata(path).ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    };
    for turn in 0..3 {
        let mut guests: Vec<_> = (0..2).map(|_| cache.guest(&settings)).collect();
        for (number, guest) in guests.iter_mut().enumerate() {
            guest.open("main", &name(number)).expect("open");
            guest.begin_sql("main", ALL);
        }
        for guest in &mut guests {
            assert_eq!(guest.answer(), Ok(truth.clone()), "turn {turn}");
        }
        for mut guest in guests {
            assert!(status(&mut guest, "disk_cache").starts_with('/'));
            assert!(turn == 0 || count(&mut guest, "disk_hits") > 0);
            end(guest);
        }
        // Each process but one may be a step beyond it.
        let bytes = taken();
        assert!(bytes <= LIMIT + LIMIT / 64, "{bytes} bytes");
        assert!(bytes > LIMIT / 4, "{bytes} bytes");
    }
}

#[test]
fn q8_its_files_are_for_their_owner_alone() {
    let server = PageServer::versioned();
    let cache = CacheDir::new();
    let mut maker = cache.guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, 5_000);
    end(maker);
    let mode = |path: &std::path::Path| fs::metadata(path).expect("a file").mode() & 0o777;
    assert_eq!(mode(&cache.path()), 0o700);
    for path in cache.files("") {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    fs::set_permissions(cache.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let mut off = cache.guest(&[]);
    open(&mut off, &server, &[]);
    assert_eq!(off.ok("main", "SELECT count(*) FROM t"), ["5000"]);
    assert!(status(&mut off, "disk_cache").starts_with("off: others may write"));
}

/// Commands that become a program for which no more than a MiB can be written into the folder.
fn small_disks(folder: &str) -> Vec<Vec<String>> {
    let command = |script: &str| {
        let words = ["sh", "-c", script, folder];
        words.map(str::to_owned).to_vec()
    };
    // No file may be larger: EFBIG.
    let mut disks = vec![command("trap '' XFSZ; ulimit -f 2048; exec \"$@\"")];
    // A file system of its own: ENOSPC. Where a user may have none, the other one has to do.
    let mut own = vec!["unshare".to_owned(), "-Urm".to_owned()];
    own.extend(command(
        "mount -t tmpfs -o size=1m,mode=0700 tmpfs \"$0\" && exec \"$@\"",
    ));
    let may = std::process::Command::new("unshare")
        .args(["-Urm", "true"])
        .status();
    if may.is_ok_and(|status| status.success()) {
        disks.push(own);
    }
    disks
}

#[test]
fn q6_a_full_disk_is_no_failure_and_what_was_there_before_is_used() {
    let server = PageServer::versioned();
    let mut maker = guest(&[]);
    open(&mut maker, &server, &[]);
    fill(&mut maker, 20_000);
    let mut truth = maker.ok("main", ALL);
    end(maker);
    let folder = CacheDir::new();
    let path = folder.path();
    let path = path
        .parent()
        .and_then(|path| path.to_str())
        .expect("a path");
    for (turn, disk) in small_disks(path).into_iter().enumerate() {
        let under: Vec<&str> = disk.iter().map(String::as_str).collect();
        let cache = folder.path();
        // Files are sparse: the limit is above all that they will have, and only the disk is small.
        let settings = [
            ("PAGEWIRE_CACHE_DIR", cache.to_str().expect("a path")),
            ("PAGEWIRE_CACHE_DIR_BYTES", "1073741824"),
            ("PAGEWIRE_CACHE_BYTES", "500000"),
        ];
        let mut full = Guest::start_under(&under, &settings);
        full.open("probe", ":memory:").expect("open");
        for round in 0..2 {
            open(&mut full, &server, &[]);
            assert_eq!(full.ok("main", ALL), truth, "disk {turn}, round {round}");
            // Small: what a large one spills into a local file would be refused too.
            let change = format!("UPDATE t SET v = v || {turn} WHERE i = 1000 + {round}");
            full.ok("main", &change);
            truth = full.ok("main", ALL);
            let mut other = guest(&[]);
            open(&mut other, &server, &["mode=ro"]);
            assert_eq!(other.ok("main", ALL), truth, "disk {turn}, round {round}");
            end(other);
            let (state, hits) = (
                status(&mut full, "disk_cache"),
                count(&mut full, "disk_hits"),
            );
            println!("disk {turn}, round {round}: {state}, {hits} hits");
            assert!(round == 0 || hits > 0, "nothing came from the files");
            assert!(turn == 0 || state.contains("os error 28"), "{state}");
            full.close("main").expect("close");
        }
        drop(full);
        let _ = fs::remove_dir_all(&cache);
    }
}
