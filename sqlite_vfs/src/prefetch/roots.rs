//! The roots of tables and indexes, which the schema names.
//!
//! A table that fits into one page is a root and nothing else: no interior page names it, so that no walk comes by it and no hot list
//! has it. An application that begins with many such tables would wait once for each.
//!
//! The second root that has to be asked for shows the pattern (R2): with it, and with each one after it, come those beside it in the
//! schema, where the indexes of a table stand behind it and are read before it. Each root comes along at most once, so that what is fetched for
//! nothing is at most [`MOST_ALONG`] pages for each root that somebody waited for, and less than all of them together.

use super::Pages;
use super::btree::{PageKind, TreePage};

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

/// What is left of the roots of a database: those that were neither waited for nor fetched along.
#[derive(Debug, Default)]
pub struct Roots {
    /// In the order of the schema; nothing as long as that has not been read.
    left: Option<Vec<u32>>,
    /// How many were waited for.
    waited: u32,
}

impl Roots {
    /// A page is asked for and waited for: the roots that shall come along with it.
    pub fn miss(&mut self, pages: &impl Pages, page: u32) -> Vec<u32> {
        if self.left.is_none() {
            self.left = named(pages);
        }
        let Some(left) = &mut self.left else {
            return Vec::new();
        };
        let Some(at) = left.iter().position(|root| *root == page) else {
            return Vec::new();
        };
        left.remove(at);
        self.waited += 1;
        if self.waited < 2 {
            return Vec::new();
        }
        // From some before this one on, and then from the beginning.
        left.rotate_left(at.saturating_sub(BEFORE));
        let most = MOST_ALONG.min(left.len());
        left.drain(..most)
            .filter(|root| *root <= pages.page_count() && !pages.is_known(*root))
            .collect()
    }
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
