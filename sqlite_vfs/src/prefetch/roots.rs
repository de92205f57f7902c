//! The roots of tables and indexes, which the schema names.
//!
//! A table that fits into one page is a root and nothing else: no interior page names it, so that no walk comes by it and no hot list
//! has it. An application that begins with many such tables would wait once for each.
//!
//! The second root that has to be asked for shows the pattern (R2): with it, and with each one after it, come those beside it in the
//! schema, where the indexes of a table stand behind it and are read before it. Each root comes along at most once, so that what is fetched for
//! nothing is at most [`MOST_ALONG`] pages, and [`ALONG_BYTES`], for each root that somebody waited for, and less than all of them together.
//!
//! They are those of one schema, by its cookie. A later one is looked at again, so that a table that is gone has no root; beside a reader of an earlier
//! one nothing comes along. Views, triggers and virtual tables have none.

use std::collections::HashSet;

use super::btree::{PageKind, TreePage};
use super::{ALONG_BYTES, Pages};

/// Roots that come along with one that is waited for.
const MOST_ALONG: usize = 16;
/// How many of them stand before it.
const BEFORE: usize = 4;
/// Roots that are remembered of a schema.
const MAX_ROOTS: usize = 1024;
/// Pages of a schema that are looked at.
const MAX_SCHEMA_PAGES: usize = 64;
/// `sqlite_schema.rootpage`, counted from 0.
const ROOTPAGE: usize = 3;
/// The schema cookie in page 1, which each change of the schema raises by one (SQLite file format, 1.3.9).
const COOKIE: std::ops::Range<usize> = 40..44;

/// What is left of the roots of a database: those that were neither waited for nor fetched along.
#[derive(Debug, Default)]
pub struct Roots {
    /// In the order of the schema; nothing as long as that has not been read.
    left: Option<Vec<u32>>,
    /// Of the schema that has been read.
    cookie: u32,
    /// Roots of it that were waited for or came along.
    taken: HashSet<u32>,
    /// How many were waited for.
    waited: u32,
}

impl Roots {
    /// A page is asked for and waited for: the roots that shall come along with it.
    pub fn miss(&mut self, pages: &impl Pages, page: u32) -> Vec<u32> {
        if !self.is_current(pages) {
            return Vec::new();
        }
        let Some(left) = &mut self.left else {
            return Vec::new();
        };
        let Some(at) = left.iter().position(|root| *root == page) else {
            return Vec::new();
        };
        left.remove(at);
        self.taken.insert(page);
        self.waited += 1;
        if self.waited < 2 {
            return Vec::new();
        }
        // From some before this one on, and then from the beginning.
        left.rotate_left(at.saturating_sub(BEFORE));
        let most = MOST_ALONG.min(ALONG_BYTES / pages.page_bytes().max(1));
        let along: Vec<_> = left.drain(..most.min(left.len())).collect();
        self.taken.extend(&along);
        along
            .into_iter()
            .filter(|root| *root <= pages.page_count() && !pages.is_known(*root))
            .collect()
    }

    /// Whether what is left is of the schema that is read; that of a later one is looked at now.
    fn is_current(&mut self, pages: &impl Pages) -> bool {
        let Some(cookie) = pages.content(1).and_then(|page| cookie_of(&page)) else {
            return false;
        };
        // It may wrap.
        let is_later = cookie.wrapping_sub(self.cookie).cast_signed() > 0;
        if self.left.is_none() || is_later {
            self.cookie = cookie;
            self.left = named(pages).map(|mut named| {
                let all: HashSet<_> = named.iter().copied().collect();
                self.taken.retain(|root| all.contains(root));
                named.retain(|root| !self.taken.contains(root));
                named
            });
        }
        cookie == self.cookie
    }
}

fn cookie_of(page: &[u8]) -> Option<u32> {
    let bytes = page.get(COOKIE)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// The roots that the schema names. `None` as long as not all of its pages are here.
fn named(pages: &impl Pages) -> Option<Vec<u32>> {
    let mut roots = Vec::new();
    let mut schema = vec![1];
    let mut seen = 0;
    while let Some(number) = schema.pop() {
        seen += 1;
        if seen > MAX_SCHEMA_PAGES || roots.len() > MAX_ROOTS {
            break;
        }
        let content = pages.content(number)?;
        let Some(page) = TreePage::parse(number, &content, pages.reserved()) else {
            continue;
        };
        match page.kind() {
            PageKind::InteriorTable => {
                let children = (0..page.children()).rev();
                schema.extend(children.filter_map(|index| page.child(index)));
            }
            PageKind::LeafTable => {
                let rows = (0..page.cells()).filter_map(|row| page.integer_of_row(row, ROOTPAGE));
                // Views and triggers have 0.
                roots.extend(rows.filter_map(|root| u32::try_from(root).ok().filter(|r| *r > 1)));
            }
            PageKind::InteriorIndex | PageKind::LeafIndex => {}
        }
    }
    roots.truncate(MAX_ROOTS);
    Some(roots)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use bytes::Bytes;

    use super::*;

    /// A file of which everything is asked for by hand.
    struct File {
        bytes: Vec<u8>,
        page_bytes: usize,
        known: RefCell<HashSet<u32>>,
    }

    impl File {
        fn content_of(&self, page: u32) -> &[u8] {
            let at = (page as usize - 1) * self.page_bytes;
            &self.bytes[at..at + self.page_bytes]
        }

        /// The first page of a table or an index; all that come along are known from then on.
        fn miss(&self, roots: &mut Roots, page: u32) -> Vec<u32> {
            let along = roots.miss(self, page);
            self.known.borrow_mut().extend(&along);
            self.known.borrow_mut().insert(page);
            along
        }
    }

    impl Pages for File {
        fn content(&self, page: u32) -> Option<Bytes> {
            Some(Bytes::copy_from_slice(self.content_of(page)))
        }

        fn is_known(&self, page: u32) -> bool {
            self.known.borrow().contains(&page)
        }

        fn request(&self, _: Vec<u32>) {}

        fn abandon(&self, _: Vec<u32>) {}

        fn page_count(&self) -> u32 {
            (self.bytes.len() / self.page_bytes) as u32
        }

        fn page_bytes(&self) -> usize {
            self.page_bytes
        }

        fn reserved(&self) -> u8 {
            0
        }

        fn window_limit(&self) -> u64 {
            u64::MAX
        }

        fn room(&self) -> u64 {
            u64::MAX
        }

        fn first_window(&self) -> u64 {
            0
        }
    }

    /// A file in two states: after each of two scripts. And the roots in the first one, by name.
    fn files(page_bytes: usize, scripts: [&str; 2]) -> ([File; 2], impl Fn(&str) -> u32 + use<>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        let mut named = std::collections::HashMap::new();
        let files = scripts.map(|script| {
            connection
                .execute_batch(&format!("PRAGMA page_size = {page_bytes}; {script}"))
                .unwrap();
            let mut statement = connection
                .prepare("SELECT name, rootpage FROM sqlite_schema")
                .unwrap();
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            for row in rows.unwrap() {
                let (name, root): (String, u32) = row.unwrap();
                named.entry(name).or_insert(root);
            }
            File {
                bytes: std::fs::read(&path).unwrap(),
                page_bytes,
                known: RefCell::default(),
            }
        });
        (files, move |name| named[name])
    }

    fn tables(names: std::ops::Range<u32>) -> String {
        let create = |table| format!("CREATE TABLE t{table}(v); INSERT INTO t{table} VALUES(1);");
        names.map(create).collect()
    }

    /// Bug: sixteen roots came along whatever the size of a page: a megabyte beside one of 64 KiB.
    #[test]
    fn roots_that_come_along_are_bounded_in_bytes() {
        for (page_bytes, most) in [(4096, 16), (8192, 16), (16_384, 8), (65_536, 2)] {
            let ([file, _], root) = files(page_bytes, [&tables(0..40), ""]);
            let mut roots = Roots::default();
            assert!(file.miss(&mut roots, root("t0")).is_empty());
            let along = file.miss(&mut roots, root("t20"));
            assert_eq!(along.len(), most, "{page_bytes}");
            assert!(along.len() * page_bytes <= ALONG_BYTES);
        }
    }

    #[test]
    fn what_has_no_root_brings_nothing_along() {
        let script = "CREATE TABLE a(v); CREATE VIEW b AS SELECT 1; CREATE TABLE c(v);
            CREATE TRIGGER d AFTER INSERT ON a BEGIN SELECT 1; END; CREATE TABLE e(v);";
        let ([file, _], root) = files(4096, [script, ""]);
        let mut roots = Roots::default();
        assert!(file.miss(&mut roots, root("a")).is_empty());
        assert_eq!(file.miss(&mut roots, root("c")), [root("e")]);
    }

    /// Bug: the roots of the schema that was read first were asked for as long as the database was open: pages that had become free, or part of another
    /// table, and none of tables that were made since.
    #[test]
    fn roots_are_those_of_the_schema_that_is_read() {
        let drop: String = (2..20).map(|t| format!("DROP TABLE t{t};")).collect();
        let later = format!("{drop} CREATE TABLE large(v); {}", tables(30..32));
        let ([before, after], root) = files(4096, [&tables(0..20), &later]);
        let mut roots = Roots::default();
        before.miss(&mut roots, root("t0"));
        let mut along = after.miss(&mut roots, root("t1"));
        along.sort_unstable();
        let mut expected = ["large", "t30", "t31"].map(&root);
        expected.sort_unstable();
        assert_eq!(along, expected);
        // Nor do those of a later schema come along with what is of an earlier one.
        let mut roots = Roots::default();
        after.miss(&mut roots, root("t0"));
        assert!(before.miss(&mut roots, root("t1")).is_empty());
        after.known.borrow_mut().clear();
        assert_eq!(after.miss(&mut roots, root("t1")).len(), 3);
    }

    /// Each comes along once, whatever becomes of the schema.
    #[test]
    fn a_schema_that_changes_brings_no_root_a_second_time() {
        let ([before, after], root) = files(4096, [&tables(0..10), &tables(10..11)]);
        let mut roots = Roots::default();
        before.miss(&mut roots, root("t0"));
        assert_eq!(before.miss(&mut roots, root("t5")).len(), 8);
        assert!(after.miss(&mut roots, root("t5")).is_empty());
        assert!(after.miss(&mut roots, root("t10")).is_empty());
    }
}
