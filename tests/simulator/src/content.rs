//! What blobs have: bytes that follow from what they are of, so that a page that is old, empty, of another row or of another database is seen wherever
//! they are read, also where SQLite looks at no structure (pages of overflow).

use rusqlite::Connection;
use rusqlite::functions::{Context, FunctionFlags};

use crate::client::HEADS;
use crate::finding::Kind;
use crate::history;

/// Instead of the writer, for what is there from the beginning.
pub const OF_LISTS: u64 = 0;
/// See there.
pub const OF_ACCOUNTS: u64 = 1;
/// Of both.
pub const PAD_BYTES: usize = 1_500;

/// Where `content` belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Of {
    /// Its number.
    pub database: usize,
    /// The value that its transaction appended.
    pub writer: u64,
    /// The row.
    pub n: u64,
}

/// A step of splitmix64: other inputs have other outputs.
fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The eight bytes at a position. Those of even rows can be compressed; the last one of these is never zero, as in a page that is cut off.
fn word(of: Of, at: u64) -> u64 {
    if of.n.is_multiple_of(2) {
        let (database, writer, n) = (of.database as u64, of.writer, of.n);
        return ((database + 1) << 56) ^ (writer << 28) ^ (n << 16) ^ at;
    }
    let seed = mix(of.writer ^ mix(of.n ^ mix(of.database as u64)));
    mix(seed.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// So many bytes.
pub fn bytes(of: Of, length: usize) -> Vec<u8> {
    let words = 0..length.div_ceil(8) as u64;
    let mut bytes: Vec<u8> = words.flat_map(|at| word(of, at).to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}

/// A number of all of the bytes, their order and their length.
pub fn digest(bytes: &[u8]) -> u64 {
    let start = mix(bytes.len() as u64);
    bytes.chunks(8).fold(start, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        mix(sum.rotate_left(5) ^ u64::from_le_bytes(word))
    })
}

/// What is wrong with bytes that have to be these.
pub fn problem(of: Of, length: usize, found: &[u8]) -> Option<(Kind, String)> {
    let expected = bytes(of, length);
    if expected == found {
        return None;
    }
    let differs = expected.iter().zip(found).position(|(a, b)| a != b);
    let at = differs.unwrap_or(length.min(found.len())) / 8;
    let there = found.get(at * 8..(at + 1) * 8).unwrap_or_default();
    let is_of = |database: &usize| {
        let other = Of {
            database: *database,
            ..of
        };
        *database != of.database && word(other, at as u64).to_le_bytes() == there
    };
    let kind = match (0..2).chain([HEADS]).find(is_of) {
        Some(_) => Kind::Foreign,
        None => Kind::Content,
    };
    let what = format!(
        "{of:?} has {} bytes, of {length}; byte {} and those behind it are {there:?}",
        found.len(),
        at * 8
    );
    Some((kind, what))
}

/// A violation where there is a problem.
pub fn check(of: Of, length: usize, found: &[u8], reader: &str) {
    if let Some((kind, what)) = problem(of, length, found) {
        history::violation(kind, format!("{reader}: {what}"));
    }
}

/// `content(database, writer, n, bytes)` and `digest(content)` in SQL.
pub fn register(connection: &Connection) -> rusqlite::Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    connection.create_scalar_function("content", 4, flags, |context: &Context<'_>| {
        let of = Of {
            database: context.get(0)?,
            writer: context.get(1)?,
            n: context.get(2)?,
        };
        Ok(bytes(of, context.get(3)?))
    })?;
    connection.create_scalar_function("digest", 1, flags, |context: &Context<'_>| {
        let bytes = context.get_raw(0).as_blob_or_null()?;
        // As SQLite counts, and as text it is the same in every sum.
        Ok(bytes.map(|bytes| (digest(bytes) >> 16).cast_signed()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Of = Of {
        database: 0,
        writer: 4_000_001,
        n: 7,
    };

    #[test]
    fn every_byte_and_the_length_count() {
        for n in [7, 8] {
            let of = Of { n, ..OF };
            let right = bytes(of, 100);
            assert_eq!(problem(of, 100, &right), None);
            assert!(problem(of, 99, &right).is_some());
            assert!(problem(of, 101, &right).is_some());
            for place in 0..100 {
                let mut wrong = right.clone();
                wrong[place] ^= 1;
                assert_ne!(digest(&wrong), digest(&right));
                let (kind, _) = problem(of, 100, &wrong).expect("seen");
                assert_eq!(kind, Kind::Content, "{place}");
            }
        }
    }

    #[test]
    fn no_two_positions_rows_writers_or_databases_have_the_same_words() {
        let mut seen = std::collections::BTreeSet::new();
        for (database, writer, n) in [
            (0, OF.writer, 7),
            (0, OF.writer, 8),
            (0, OF.writer, 10),
            (0, OF.writer + 1, 7),
            (0, OF.writer + 1, 8),
            (1, OF.writer, 7),
            (1, OF.writer, 8),
        ] {
            let of = Of {
                database,
                writer,
                n,
            };
            assert!((0..4_000).all(|at| seen.insert(word(of, at))), "{of:?}");
        }
    }

    #[test]
    fn what_another_database_has_there_is_told_as_foreign() {
        let mut found = bytes(OF, 4_096);
        let other = Of { database: 1, ..OF };
        found[2_048..].copy_from_slice(&bytes(other, 4_096)[2_048..]);
        let (kind, what) = problem(OF, 4_096, &found).expect("seen");
        assert_eq!(kind, Kind::Foreign, "{what}");
        assert!(what.contains("byte 2048"), "{what}");
    }

    #[test]
    fn sql_makes_the_same() {
        let connection = Connection::open_in_memory().expect("a connection");
        register(&connection).expect("functions");
        let sql = "SELECT content(0, 4000001, 7, 50), digest(content(0, 4000001, 7, 50))";
        let (made, sum): (Vec<u8>, u64) = connection
            .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("an answer");
        assert_eq!((made, sum), (bytes(OF, 50), digest(&bytes(OF, 50)) >> 16));
    }
}
