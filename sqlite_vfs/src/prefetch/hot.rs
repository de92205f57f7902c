//! The pages that the next process will want first: interior pages, by which every lookup goes.
//!
//! They are named to the server when the database is closed, and come back with the answer to the next open. Roots are read
//! before what lies below them and then stay in SQLite's own cache, so the pages that were read first go before those that
//! were read often.

use std::collections::HashMap;

/// Pages that are remembered for a connection; what is read once more than any of the rest is not lost.
const MAX_PAGES: usize = 2048;
/// Pages that stay at the head of the list for having been the first.
const FIRST: usize = 32;

/// See the file's header.
#[derive(Debug, Default)]
pub struct HotPages {
    reads: HashMap<u32, Reads>,
    /// The place that the next new page gets.
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Reads {
    place: u32,
    count: u32,
}

impl HotPages {
    /// An interior page is read.
    pub fn note(&mut self, page: u32) {
        self.add(page, 1);
    }

    /// What another connection has read, after what is known here.
    pub fn merge(&mut self, other: &Self) {
        for (page, reads) in other.by_place() {
            self.add(page, reads.count);
        }
    }

    fn add(&mut self, page: u32, count: u32) {
        if let Some(reads) = self.reads.get_mut(&page) {
            reads.count = reads.count.saturating_add(count);
            return;
        }
        if self.reads.len() >= MAX_PAGES {
            self.forget_half();
        }
        let place = self.next;
        self.next = self.next.saturating_add(1);
        self.reads.insert(page, Reads { place, count });
    }

    /// At most so many pages, the most wanted first.
    pub fn list(&self, most: usize) -> Vec<u32> {
        let mut pages = self.by_place();
        let first = pages.len().min(FIRST);
        // Stable: among those read equally often the earlier one goes first.
        pages[first..].sort_by_key(|(_, reads)| std::cmp::Reverse(reads.count));
        pages.truncate(most);
        pages.into_iter().map(|(page, _)| page).collect()
    }

    fn by_place(&self) -> Vec<(u32, Reads)> {
        let mut pages: Vec<_> = self
            .reads
            .iter()
            .map(|(page, reads)| (*page, *reads))
            .collect();
        pages.sort_unstable_by_key(|(_, reads)| reads.place);
        pages
    }

    fn forget_half(&mut self) {
        for page in self.list(usize::MAX).split_off(MAX_PAGES / 2) {
            self.reads.remove(&page);
        }
        for reads in self.reads.values_mut() {
            // What was wanted long ago makes way for what is wanted now.
            reads.count = reads.count.div_ceil(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pages_go_first_and_then_those_read_often() {
        let mut hot = HotPages::default();
        for page in 1..100 {
            hot.note(page);
        }
        for _ in 0..3 {
            hot.note(70);
        }
        hot.note(60);
        let list = hot.list(40);
        assert_eq!(list[..32], (1..33).collect::<Vec<u32>>());
        assert_eq!(list[32..36], [70, 60, 33, 34]);
        assert_eq!(list.len(), 40);
    }

    #[test]
    fn p7_the_pages_remembered_are_bounded_and_the_wanted_ones_stay() {
        let mut hot = HotPages::default();
        for page in 1..100_000 {
            hot.note(page);
            if page > 50 {
                hot.note(50);
            }
        }
        assert!(hot.reads.len() <= MAX_PAGES);
        let list = hot.list(33);
        assert_eq!((list[0], list[32]), (1, 50));
    }

    #[test]
    fn connections_are_added_up() {
        let (mut one, mut other) = (HotPages::default(), HotPages::default());
        one.note(3);
        other.note(4);
        other.note(3);
        one.merge(&other);
        assert_eq!(one.list(10), [3, 4]);
        assert_eq!(one.reads[&3].count, 2);
    }
}
