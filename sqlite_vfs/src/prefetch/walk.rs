//! The pages of one level of a b-tree in the order of a scan, ascending or descending.
//!
//! Each level keeps a queue of the pages that come next; an interior page is replaced by its children when the level below
//! runs low and its bytes are here. Interior pages are asked for long before the scan comes to them, or a window could not
//! reach beyond the last child of its parent.

use std::collections::VecDeque;

use super::btree::TreePage;
use super::{Direction, Pages, Step};

/// See the file's header.
#[derive(Debug)]
pub struct Walk {
    direction: Direction,
    /// Upcoming pages, nearest first; level 0 is the one that is walked, each next one holds the parents of the one below.
    levels: Vec<VecDeque<u32>>,
    /// Children of the interior page that was opened last.
    fanout: usize,
    /// The parent of the pages of level 0.
    parent: u32,
}

impl Walk {
    /// A walk that goes on behind a child of `parent`: for each level the siblings to come, those of the child first.
    pub fn new(direction: Direction, parent: u32, levels: Vec<VecDeque<u32>>) -> Self {
        let fanout = levels.first().map_or(1, VecDeque::len).max(16);
        Self {
            direction,
            levels,
            fanout,
            parent,
        }
    }

    /// The direction of the walk.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The parent of the page that was given last.
    pub fn parent(&self) -> u32 {
        self.parent
    }

    /// The next page of the level.
    pub fn next(&mut self, pages: &impl Pages) -> Step {
        loop {
            let Some(level) = self.levels.first_mut() else {
                return Step::End;
            };
            if let Some(page) = level.pop_front() {
                return Step::Page(page);
            }
            match self.refill(0, pages) {
                Ok(true) => {}
                Ok(false) => return Step::End,
                Err(needed) => return Step::Needs(needed),
            }
        }
    }

    /// The next pages of the level, as far as they are known.
    pub fn upcoming(&self, count: usize) -> impl Iterator<Item = u32> {
        self.levels
            .first()
            .into_iter()
            .flatten()
            .take(count)
            .copied()
    }

    /// Interior pages to be asked for now if a window of so many pages shall never have to wait for one.
    pub fn interior_pages(&mut self, window: usize, pages: &impl Pages) -> Vec<u32> {
        let mut wanted = Vec::new();
        let mut covered = window;
        for level in 1..self.levels.len() {
            covered = covered / self.fanout + 1;
            while self.levels[level].len() < covered {
                // Where the level above is not here yet it is among those wanted.
                if !matches!(self.refill(level, pages), Ok(true)) {
                    break;
                }
            }
            wanted.extend(self.levels[level].iter().take(covered));
        }
        wanted
    }

    /// Puts the children of the next page of the level above at the end of this one. `Err` names a page whose bytes are needed.
    fn refill(&mut self, level: usize, pages: &impl Pages) -> Result<bool, u32> {
        if level + 1 >= self.levels.len() {
            return Ok(false);
        }
        if self.levels[level + 1].is_empty() && !self.refill(level + 1, pages)? {
            return Ok(false);
        }
        let Some(parent) = self.levels[level + 1].pop_front() else {
            return Ok(false);
        };
        let Some(content) = pages.content(parent) else {
            self.levels[level + 1].push_front(parent);
            return Err(parent);
        };
        // A page that is no interior page has nothing to say: the walk goes on behind it.
        let Some(tree) = TreePage::parse(parent, &content, pages.reserved()) else {
            return Ok(true);
        };
        self.fanout = tree.children().max(1);
        if level == 0 {
            self.parent = parent;
        }
        self.levels[level].extend(children(&tree, 0..tree.children(), self.direction));
        Ok(true)
    }
}

/// Some children of a page in the order of a walk.
pub fn children(
    tree: &TreePage<'_>,
    range: std::ops::Range<usize>,
    direction: Direction,
) -> VecDeque<u32> {
    let ascending = range.filter_map(|index| tree.child(index));
    match direction {
        Direction::Ascending => ascending.collect(),
        Direction::Descending => {
            let mut pages: VecDeque<u32> = ascending.collect();
            pages.make_contiguous().reverse();
            pages
        }
    }
}
