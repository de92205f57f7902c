//! The keys of an installation, all of them. A codec in one direction: only segments, roots, names and transactions are
//! ever read back from a list.
//!
//! ```text
//! installation              incarnation, the servers, what they wish of each other, who collects     swapped
//! n/NAME                    which database has the name: NAME in hexadecimal                      swapped
//! r/DATABASE                the root of a database                                                swapped
//! d/DATABASE/GEN-RANDOM     a segment, or a page of the history of records                        put
//! t/TRANSACTION             how a transaction over several databases was decided                  swapped in once
//! ```

use std::fmt::Write as _;

use pagewire_proto::{DatabaseId, DatabaseName};

/// Characters of a part of a key; a longer name is cut into parts. Cutting keeps the byte order of names.
const PART: usize = 128;

pub(crate) const INSTALLATION: &str = "installation";
pub(crate) const NAMES: &str = "n/";
pub(crate) const ROOTS: &str = "r/";
pub(crate) const TRANSACTIONS: &str = "t/";

/// Which segment: the generation of the root that its maker knew, and a random number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// What the horizon of a root is compared with.
    pub generation: u64,
    /// Nobody else has it.
    pub random: u64,
}

/// A transaction over several databases.
pub(crate) type TransactionId = [u8; 16];

pub(crate) fn root(database: DatabaseId) -> String {
    format!("{ROOTS}{database}")
}

/// Of all segments of a database.
pub(crate) fn segments(database: DatabaseId) -> String {
    format!("d/{database}/")
}

/// The key of a segment.
pub fn segment(database: DatabaseId, id: SegmentId) -> String {
    format!("d/{database}/{:016x}-{:016x}", id.generation, id.random)
}

pub(crate) fn transaction(id: &TransactionId) -> String {
    let mut key = TRANSACTIONS.to_owned();
    push_hex(&mut key, id);
    key
}

pub(crate) fn name(name: &DatabaseName) -> String {
    name_prefix(name.as_str())
}

/// The beginning of the keys of all names that begin so.
pub(crate) fn name_prefix(prefix: &str) -> String {
    let mut hex = String::with_capacity(prefix.len() * 2);
    push_hex(&mut hex, prefix.as_bytes());
    let mut key = NAMES.to_owned();
    for (index, character) in hex.chars().enumerate() {
        if index > 0 && index % PART == 0 {
            key.push('/');
        }
        key.push(character);
    }
    key
}

// Bug: a key that nothing here writes was read as one of ours, and a collection deleted it. Cause: numbers were taken with fewer digits, with a sign and in
// capitals. Fix: a key is what would be written, here and below.

/// The name of a key that [`name`] made.
pub(crate) fn name_of(key: &str) -> Option<DatabaseName> {
    let hex = key.strip_prefix(NAMES)?.replace('/', "");
    let text = String::from_utf8(bytes_of(&hex)?).ok()?;
    let found = DatabaseName::try_from(text.as_str()).ok()?;
    (name(&found) == key).then_some(found)
}

pub(crate) fn database_of(key: &str) -> Option<DatabaseId> {
    let bytes = bytes_of(key.strip_prefix(ROOTS)?)?;
    let database = DatabaseId::try_from(&bytes[..]).ok()?;
    (root(database) == key).then_some(database)
}

pub(crate) fn transaction_of(key: &str) -> Option<TransactionId> {
    let id = bytes_of(key.strip_prefix(TRANSACTIONS)?)?.try_into().ok()?;
    (transaction(&id) == key).then_some(id)
}

pub(crate) fn segment_of(database: DatabaseId, key: &str) -> Option<SegmentId> {
    let rest = key.strip_prefix(segments(database).as_str())?;
    let (generation, random) = rest.split_once('-')?;
    let id = SegmentId {
        generation: u64::from_str_radix(generation, 16).ok()?,
        random: u64::from_str_radix(random, 16).ok()?,
    };
    (segment(database, id) == key).then_some(id)
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.is_ascii() {
        return None;
    }
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_keep_their_order_and_come_back(a in "[a-zé-]{1,60}(/[a-z]{1,60}){0,2}", b in "[a-zé-]{1,60}(/[a-z]{1,60}){0,2}") {
            let (a, b) = (DatabaseName::try_from(a.as_str()).unwrap(), DatabaseName::try_from(b.as_str()).unwrap());
            prop_assert_eq!(name(&a).cmp(&name(&b)), a.as_str().cmp(b.as_str()));
            prop_assert_eq!(name_of(&name(&a)), Some(a.clone()));
            prop_assert!(name(&a).split('/').all(|part| part.len() <= PART));
            let half = a.as_str().char_indices().nth(a.as_str().chars().count() / 2).map_or(0, |(at, _)| at);
            prop_assert!(name(&a).starts_with(&name_prefix(&a.as_str()[..half])));
        }

        #[test]
        fn ids_come_back(bytes: [u8; 16], generation: u64, random: u64) {
            let database = DatabaseId::from_bytes(bytes);
            let id = SegmentId { generation, random };
            prop_assert_eq!(database_of(&root(database)), Some(database));
            prop_assert_eq!(transaction_of(&transaction(&bytes)), Some(bytes));
            prop_assert_eq!(segment_of(database, &segment(database, id)), Some(id));
        }
    }

    /// See [`name_of`].
    #[test]
    fn what_nothing_here_writes_is_no_key() {
        let database = DatabaseId::from_bytes([0xab; 16]);
        let (root, segments) = (root(database), segments(database));
        let right = format!("{segments}{:016x}-{:016x}", 1, 0xab);
        assert!(segment_of(database, &right).is_some() && database_of(&root).is_some());
        for id in [
            "1-ab",
            "+000000000000001-00000000000000ab",
            "0000000000000001-00000000000000AB",
            "0000000000000001-00000000000000000ab",
        ] {
            assert_eq!(segment_of(database, &format!("{segments}{id}")), None);
        }
        assert_eq!(database_of(&root.replace('a', "A")), None);
        assert_eq!(name_of("n/6/1"), None);
        assert_eq!(name_of("n/+a6b"), None);
        assert_eq!(transaction_of("t/+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1"), None);
    }

    #[test]
    fn the_longest_name_fits_into_a_key() {
        let longest = DatabaseName::try_from("x".repeat(400).as_str()).unwrap();
        assert!(name(&longest).len() <= 900);
    }
}
