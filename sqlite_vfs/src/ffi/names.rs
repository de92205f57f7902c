//! What is a database name, and what was meant as a local path: one rule, applied by xFullPathname.
//!
//! A name that begins with `/`, `./` or `../` is a local path. It is never turned into a remote database in silence: the
//! error says how to open it. Everything else has to be a valid database name.

use pagewire_proto::DatabaseName;

use crate::error::{Error, Kind, Result};

/// Largest name with a suffix such as `-journal` or `-mj01234567`.
pub const MAX_PATHNAME: usize = 512;

/// Checks a name as SQLite got it from the application.
pub fn check(name: &str) -> Result<DatabaseName> {
    let is_path = ["/", "./", "../"]
        .iter()
        .any(|start| name.starts_with(start));
    if is_path {
        return Err(Error::new(
            Kind::CantOpen,
            format!(
                "{name:?} is a local path and pagewire is the default VFS: open 'file:{name}?vfs=unix' for the local file, \
                 or leave out what stands before the name for a Pagewire database"
            ),
        ));
    }
    DatabaseName::try_from(name).map_err(|invalid| {
        Error::new(
            Kind::CantOpen,
            format!("the database name {name:?} {}", invalid.problem),
        )
    })
}

/// Whether SQLite gives this name to what it keeps beside a database: a journal, a WAL or a super-journal.
pub fn is_beside_a_database(name: &str) -> bool {
    let is_super_journal = name.rsplit_once("-mj").is_some_and(|(_, number)| {
        number.len() == 9 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    is_super_journal
        || ["-journal", "-wal", "-shm"]
            .iter()
            .any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqlite_keeps_beside_a_database_is_told_from_databases() {
        for name in ["a.db-journal", "a.db-wal", "a.db-shm", "t/a.db-mj00A1B2C9F"] {
            assert!(is_beside_a_database(name), "{name}");
        }
        for name in ["a.db", "a-journal.db", "a-mj", "a-mjxyz", "journal"] {
            assert!(!is_beside_a_database(name), "{name}");
        }
    }

    #[test]
    fn local_paths_are_refused_with_the_way_out() {
        for path in ["/tmp/x.db", "./x.db", "../x.db"] {
            let error = check(path).unwrap_err();
            assert!(error.message.contains("?vfs=unix"), "{error}");
        }
    }

    #[test]
    fn u4_names_with_directories_are_names() {
        for name in ["x.db", "tenant/x.db", ".hidden", "a b/c"] {
            check(name).unwrap();
        }
    }
}
