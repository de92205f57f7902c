//! The database header: the first 100 bytes of page 1, as far as a VFS has to understand them (SQLite file format, 1.3).
//!
//! The file change counter (bytes 24 to 27, and 92 to 95 beside it) is derived from the version on every read: it is what
//! SQLite compares to find out whether its own cache is still right, so it may never repeat for other content.

use std::ops::Range;

use pagewire_proto::{DatabaseId, PageSize, Version};

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const PAGE_SIZE: Range<usize> = 16..18;
const WRITE_VERSION: usize = 18;
const READ_VERSION: usize = 19;
const CHANGE_COUNTER: Range<usize> = 24..28;
const PAGE_COUNT: Range<usize> = 28..32;
const FIRST_TRUNK: Range<usize> = 32..36;
const FREE_PAGES: Range<usize> = 36..40;
const SCHEMA_COOKIE: Range<usize> = 40..44;
const VERSION_VALID_FOR: Range<usize> = 92..96;
/// Length of the header.
pub const LENGTH: usize = 100;
/// The file format version that stands for WAL.
const WAL_FORMAT: u8 = 2;

/// A database header, if the bytes are one.
#[derive(Clone, Copy)]
pub struct Header<'a>(&'a [u8]);

impl<'a> Header<'a> {
    /// The header at the beginning of page 1.
    pub fn of(page_1: &'a [u8]) -> Option<Self> {
        (page_1.len() >= LENGTH && page_1.starts_with(MAGIC)).then_some(Self(page_1))
    }

    /// The page size, if it is one.
    pub fn page_size(self) -> Option<PageSize> {
        let size = match u16::from_be_bytes([self.0[16], self.0[17]]) {
            1 => 65_536,
            size => u32::from(size),
        };
        debug_assert_eq!(PAGE_SIZE.len(), 2);
        PageSize::try_from(size).ok()
    }

    /// The size of the database in pages, if the header says it validly.
    pub fn page_count(self) -> Option<u32> {
        let count = number(&self.0[PAGE_COUNT]);
        (count > 0 && self.0[CHANGE_COUNTER] == self.0[VERSION_VALID_FOR]).then_some(count)
    }

    /// The file change counter.
    pub fn change_counter(self) -> u32 {
        number(&self.0[CHANGE_COUNTER])
    }

    /// The schema cookie: SQLite takes its schema for the one that is there as long as this is the same.
    pub fn schema_cookie(self) -> u32 {
        number(&self.0[SCHEMA_COOKIE])
    }

    /// The freelist: the number of its first trunk page, 0 for none, and how many pages it has, trunks and leaves.
    pub fn freelist(self) -> (u32, u32) {
        (number(&self.0[FIRST_TRUNK]), number(&self.0[FREE_PAGES]))
    }

    /// Whether the header asks for WAL.
    pub fn is_wal(self) -> bool {
        self.0[WRITE_VERSION] == WAL_FORMAT || self.0[READ_VERSION] == WAL_FORMAT
    }
}

/// A number as SQLite writes it, the highest byte first.
pub fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Puts the version in the place of the change counter into `out`, a copy of `page_1[within..]`.
pub fn derive_change_counter(page_1: &[u8], version: Version, within: usize, out: &mut [u8]) {
    let Some(header) = Header::of(page_1) else {
        return;
    };
    let counter = (version.get() as u32).to_be_bytes();
    overwrite(&counter, CHANGE_COUNTER, within, out);
    // Where they differed, the page count of the header is not valid, and has to stay so, also where the version happens to
    // be the number that stands there.
    if header.0[CHANGE_COUNTER] == header.0[VERSION_VALID_FOR] {
        overwrite(&counter, VERSION_VALID_FOR, within, out);
    } else if header.0[VERSION_VALID_FOR] == counter {
        overwrite(&counter.map(|byte| !byte), VERSION_VALID_FOR, within, out);
    }
}

/// The schema cookie that a version brings, made on a base with the cookie `before`, by a transaction that ends with `written`.
///
/// The number of the version, which no other version of the database has. A branch has one cookie that it did not make: that
/// of its version 1, which its parent counted. While the base has a cookie above its own number, the new one is taken from the
/// upper half of all numbers, from a place that the id of the database gives: it meets the one of version 1 only if that is the cookie
/// of a branch too, and then in one of 2^31 cases. The cookie of version 1 never lies among the numbers above such a base.
///
/// SQLite counts up from `before` with each change of the schema, and statements that it prepared in the middle of the transaction
/// remember such a count: `written` is the last of them. None of them may come back as the cookie of this or of a later
/// version, or a statement of a schema that was never committed would run. So a number below `written` is not taken either,
/// and in the upper half versions count down, away from what SQLite counts.
pub fn next_schema_cookie(database: DatabaseId, base: Version, before: u32, written: u32) -> u32 {
    const UPPER_HALF: u32 = 1 << 31;
    let number = base.next().get() as u32;
    if u64::from(before) <= base.get() && written <= number {
        return number;
    }
    let place = crc32fast::hash(database.as_bytes());
    UPPER_HALF | place.wrapping_sub(number)
}

/// Puts a schema cookie into page 1.
pub fn set_schema_cookie(page_1: &mut [u8], cookie: u32) {
    overwrite(&cookie.to_be_bytes(), SCHEMA_COOKIE, 0, page_1);
}

fn overwrite(bytes: &[u8], place: Range<usize>, within: usize, out: &mut [u8]) {
    for (index, byte) in place.zip(bytes) {
        if let Some(target) = index
            .checked_sub(within)
            .and_then(|index| out.get_mut(index))
        {
            *target = *byte;
        }
    }
}

/// Turns a header that asks for WAL into one that asks for a rollback journal.
pub fn without_wal(page_1: &mut [u8]) {
    page_1[WRITE_VERSION] = 1;
    page_1[READ_VERSION] = 1;
}

/// Whether a read is SQLite's look whether its cache is still right: 16 bytes at the change counter.
pub fn is_cache_check(offset: u64, length: usize) -> bool {
    offset == CHANGE_COUNTER.start as u64 && length == 16
}

/// Zeroes what the VFS derives from the version, so that two images of page 1 can be compared.
pub fn mask_change_counter(page_1: &mut [u8]) {
    if Header::of(page_1).is_some() {
        page_1[CHANGE_COUNTER].fill(0);
        page_1[VERSION_VALID_FOR].fill(0);
    }
}

/// Whether two images of page 1 differ in more than the change counter and the journal mode.
pub fn differ_beyond_journal_mode(a: &[u8], b: &[u8]) -> bool {
    let ignored = |index: &usize| {
        CHANGE_COUNTER.contains(index)
            || VERSION_VALID_FOR.contains(index)
            || (WRITE_VERSION..=READ_VERSION).contains(index)
            // The version number of the SQLite that wrote it last.
            || (96..100).contains(index)
    };
    a.len() != b.len() || (0..a.len()).any(|index| a[index] != b[index] && !ignored(&index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Vec<u8> {
        let mut page = vec![0; 512];
        page[..16].copy_from_slice(MAGIC);
        page[PAGE_SIZE].copy_from_slice(&512u16.to_be_bytes());
        page[CHANGE_COUNTER].copy_from_slice(&7u32.to_be_bytes());
        page[VERSION_VALID_FOR].copy_from_slice(&7u32.to_be_bytes());
        page[PAGE_COUNT].copy_from_slice(&3u32.to_be_bytes());
        page
    }

    #[test]
    fn the_counter_is_derived_in_any_part_that_is_read() {
        let page = page();
        let whole = {
            let mut out = page.clone();
            derive_change_counter(&page, Version::new(0x1_0000_0009), 0, &mut out);
            out
        };
        assert_eq!(Header::of(&whole).unwrap().change_counter(), 9);
        assert_eq!(Header::of(&whole).unwrap().page_count(), Some(3));
        for (within, length) in [(24, 16), (26, 1), (0, 100), (90, 5), (200, 8)] {
            let mut part = page[within..within + length].to_vec();
            derive_change_counter(&page, Version::new(0x1_0000_0009), within, &mut part);
            assert_eq!(part, whole[within..within + length], "{within}");
        }
    }

    #[test]
    fn an_invalid_page_count_stays_invalid() {
        let mut page = page();
        page[92] = 1;
        let mut out = page.clone();
        derive_change_counter(&page, Version::new(9), 0, &mut out);
        assert_eq!(Header::of(&out).unwrap().page_count(), None);
    }

    /// Found by the fuzz target `database_header`. A SQLite before 3.7.0 leaves the page count and the number beside it as they
    /// are; the version whose number that is made the old page count look valid, and SQLite took it for the size.
    #[test]
    fn an_invalid_page_count_stays_invalid_at_the_version_that_it_was_once_valid_for() {
        let mut page = page();
        page[VERSION_VALID_FOR].copy_from_slice(&5u32.to_be_bytes());
        assert_eq!(Header::of(&page).unwrap().page_count(), None);
        for version in [4, 5, 6, 0x1_0000_0005] {
            let mut whole = page.clone();
            derive_change_counter(&page, Version::new(version), 0, &mut whole);
            let header = Header::of(&whole).unwrap();
            assert_eq!(header.page_count(), None, "{version}");
            assert_eq!(header.change_counter(), version as u32);
        }
    }

    #[test]
    fn bytes_that_are_no_database_stay_as_they_are() {
        let page = vec![5; 512];
        let mut out = page.clone();
        derive_change_counter(&page, Version::new(9), 0, &mut out);
        assert_eq!(out, page);
        assert!(Header::of(&page).is_none());
    }

    #[test]
    fn b5_a_branch_brings_no_schema_cookie_that_it_began_with() {
        let branch = DatabaseId::from_bytes([7; 16]);
        for inherited in [0, 1, 5, 9, 1_000] {
            let mut seen = vec![inherited];
            let mut cookies = vec![inherited];
            for base in 1..40 {
                // Each commit has another schema, on the one before or on a restored one.
                let before = cookies[base as usize * 7 % cookies.len()];
                let next = next_schema_cookie(branch, Version::new(base), before, before + 1);
                assert!(!seen.contains(&next), "{inherited} {base}");
                seen.push(next);
                cookies.push(next);
            }
        }
        assert_eq!(next_schema_cookie(branch, Version::ZERO, 0, 1), 1);
        assert_eq!(next_schema_cookie(branch, Version::new(8), 3, 4), 9);
    }

    /// Found by SQLite's own trans.test. A statement that was prepared between two changes of the schema in one transaction
    /// remembers a cookie that was never committed; the version that brought this number ran it on the other schema:
    /// "database disk image is malformed", or the rows of a table that was dropped.
    #[test]
    fn b5_no_version_brings_a_schema_cookie_that_sqlite_had_within_a_transaction() {
        let database = DatabaseId::from_bytes([7; 16]);
        for changes in 1..6 {
            let mut within = Vec::new();
            let mut before = 0;
            for base in 0..200 {
                // A transaction that leaves the schema alone comes before some of them.
                if base % 3 == 1 {
                    continue;
                }
                let written = before + changes;
                within.extend(before + 1..written);
                let next = next_schema_cookie(database, Version::new(base), before, written);
                assert!(!within.contains(&next), "{changes} {base} {next}");
                before = next;
            }
        }
    }
}
