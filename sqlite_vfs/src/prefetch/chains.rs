//! Overflow chains: the one that is being read, and then those of the rows that follow.
//!
//! A page names only its successor, so a chain alone can't be fetched faster than one page a round trip, unless one guesses:
//! SQLite gives a chain consecutive pages where it can. The guess is checked when the page before has come; where guesses are
//! wrong too often, as in a database whose free pages lie scattered, there are none, and the chains of several rows are followed
//! side by side instead.

use std::collections::VecDeque;

use super::btree::{TreePage, successor};
use super::walk::Walk;
use super::{Direction, Pages, Step};

/// Chains of rows to come that are followed at once.
const MAX_CHAINS: usize = 64;
/// At least so many overflow pages belong to a leaf whose rows overflow.
const PAGES_OF_A_LEAF: usize = 8;

/// See the file's header.
#[derive(Debug)]
pub struct Chains {
    /// Where the next chain begins: the leaf, and the cell after the last one that was opened.
    leaf: u32,
    cell: Option<usize>,
    /// `None` while it is not known whether the rows that follow are read too.
    leaves: Option<Walk>,
    open: VecDeque<Chain>,
    /// How many pages of each chain are read.
    depth: u32,
    guesses_right: u32,
    guesses_wrong: u32,
    given_up: Vec<u32>,
}

#[derive(Debug)]
struct Chain {
    /// The last page that is known to belong to the chain.
    known: u32,
    /// Pages after it.
    left: u32,
    /// Guessed to follow it, and asked for.
    guessed: VecDeque<u32>,
    /// `known` was not given out yet.
    is_new: bool,
}

impl Chains {
    /// The chain that begins with a page, of which this is the cell.
    pub fn new(leaf: u32, cell: usize, first: u32, pages: u32) -> Self {
        let mut open = VecDeque::new();
        open.push_back(Chain::new(first, pages));
        Self {
            leaf,
            cell: Some(cell),
            leaves: None,
            open,
            depth: u32::MAX,
            guesses_right: 0,
            guesses_wrong: 0,
            given_up: Vec::new(),
        }
    }

    /// The rest of a chain of which nothing but a page is known.
    pub fn of_unknown_row(page: u32) -> Self {
        let mut chains = Self::new(0, 0, page, u32::MAX);
        chains.cell = None;
        chains
    }

    /// The leaf and the cell whose chain is read.
    pub fn row(&self) -> Option<(u32, usize)> {
        Some((self.leaf, self.cell?))
    }

    /// The rows that follow are read too, so many pages of each. The walk goes on behind the leaf.
    pub fn go_on(&mut self, leaves: Walk, depth: u32) {
        self.leaves = Some(leaves);
        self.read_to(depth);
        for chain in &mut self.open {
            chain.left = chain.left.min(depth.saturating_sub(1));
        }
    }

    /// Whether the rows that follow are read too.
    pub fn goes_on(&self) -> bool {
        self.leaves.is_some()
    }

    /// So many pages of each chain are read.
    pub fn read_to(&mut self, depth: u32) {
        self.depth = depth;
    }

    /// Checks the guesses whose pages have come. Returns the pages that were guessed wrongly.
    pub fn check(&mut self, pages: &impl Pages) -> Vec<u32> {
        for chain in &mut self.open {
            let right = chain.check(pages, &mut self.given_up);
            self.guesses_right = self.guesses_right.saturating_add(right);
        }
        let wrong = u32::try_from(self.given_up.len()).unwrap_or(u32::MAX);
        self.guesses_wrong = self.guesses_wrong.saturating_add(wrong);
        std::mem::take(&mut self.given_up)
    }

    /// The next page.
    ///
    /// No more chains are open than a window of so many pages can hold to their ends: the next row comes first.
    pub fn next(&mut self, window: usize, pages: &impl Pages) -> Step {
        let mut waits_for = None;
        let may_guess = self.guesses_wrong.saturating_mul(4) <= self.guesses_right;
        let mut index = 0;
        while let Some(chain) = self.open.get_mut(index) {
            if let Some(page) = chain.next(pages, may_guess) {
                return Step::Page(page);
            }
            if chain.is_over() {
                self.open.remove(index);
                continue;
            }
            waits_for.get_or_insert(chain.known);
            index += 1;
        }
        let planned: usize = self.open.iter().map(|chain| chain.left as usize).sum();
        if self.open.len() < MAX_CHAINS && planned < window {
            match self.open_next(pages) {
                Ok(true) => return self.next_of_last(pages),
                Ok(false) => {}
                Err(needed) => return Step::Needs(needed),
            }
        }
        waits_for.map_or(Step::End, Step::Needs)
    }

    fn next_of_last(&mut self, pages: &impl Pages) -> Step {
        match self
            .open
            .back_mut()
            .and_then(|chain| chain.next(pages, false))
        {
            Some(page) => Step::Page(page),
            None => Step::End,
        }
    }

    /// Opens the chain of the next row that has one.
    fn open_next(&mut self, pages: &impl Pages) -> Result<bool, u32> {
        let Some(leaves) = &mut self.leaves else {
            return Ok(false);
        };
        let direction = leaves.direction();
        // Rows without overflow are passed over; a leaf has at most some thousands of them.
        loop {
            let Some(content) = pages.content(self.leaf) else {
                return Err(self.leaf);
            };
            let leaf = TreePage::parse(self.leaf, &content, pages.reserved());
            let cells = leaf.as_ref().map_or(0, TreePage::cells);
            let mut cell = direction.after(self.cell, cells);
            while let (Some(index), Some(leaf)) = (cell, &leaf) {
                self.cell = cell;
                if let Some(overflow) = leaf.overflow(index) {
                    let length = overflow.pages.min(self.depth);
                    self.open.push_back(Chain::new(overflow.first, length));
                    return Ok(true);
                }
                cell = direction.after(cell, cells);
            }
            match leaves.next(pages) {
                Step::Page(next) => {
                    self.leaf = next;
                    self.cell = None;
                }
                Step::Needs(page) | Step::Also(page) => return Err(page),
                Step::End => {
                    self.leaves = None;
                    return Ok(false);
                }
            }
        }
    }

    /// Leaves to be asked for now.
    pub fn interior_pages(&mut self, window: usize, pages: &impl Pages) -> Vec<u32> {
        match &mut self.leaves {
            Some(leaves) => {
                let mut wanted = leaves.interior_pages(window, pages);
                wanted.extend(leaves.upcoming(window / PAGES_OF_A_LEAF + 2));
                wanted
            }
            None => Vec::new(),
        }
    }
}

impl Chain {
    fn new(first: u32, pages: u32) -> Self {
        Self {
            known: first,
            left: pages.saturating_sub(1),
            guessed: VecDeque::new(),
            is_new: true,
        }
    }

    /// Follows the chain as far as its guessed pages are here. Returns how many guesses were right, and adds the wrong ones.
    fn check(&mut self, pages: &impl Pages, wrong: &mut Vec<u32>) -> u32 {
        let mut right = 0;
        while let Some(guess) = self.guessed.front() {
            let Some(content) = pages.content(self.known) else {
                break;
            };
            if successor(&content) != Some(*guess) {
                wrong.extend(self.guessed.drain(..));
                break;
            }
            self.known = *guess;
            self.guessed.pop_front();
            self.left -= 1;
            right += 1;
        }
        right
    }

    fn next(&mut self, pages: &impl Pages, may_guess: bool) -> Option<u32> {
        if std::mem::take(&mut self.is_new) {
            return Some(self.known);
        }
        if self.guessed.len() as u64 >= u64::from(self.left) {
            return None;
        }
        if self.guessed.is_empty()
            && let Some(content) = pages.content(self.known)
        {
            match successor(&content) {
                Some(next) => {
                    self.known = next;
                    self.left -= 1;
                    return Some(next);
                }
                None => {
                    self.left = 0;
                    return None;
                }
            }
        }
        // Of an unknown row the length is not known either: nothing to guess by.
        if !may_guess || self.left > u32::MAX / 2 {
            return None;
        }
        let last = self.guessed.back().copied().unwrap_or(self.known);
        let guess = last.checked_add(1)?;
        self.guessed.push_back(guess);
        Some(guess)
    }

    fn is_over(&self) -> bool {
        self.left == 0 && self.guessed.is_empty() && !self.is_new
    }
}

impl Direction {
    /// The cell that follows one, or the first one.
    pub fn after(self, cell: Option<usize>, cells: usize) -> Option<usize> {
        let next = match (self, cell) {
            (Self::Ascending, None) => 0,
            (Self::Ascending, Some(cell)) => cell + 1,
            (Self::Descending, None) => cells.checked_sub(1)?,
            (Self::Descending, Some(cell)) => cell.checked_sub(1)?,
        };
        (next < cells).then_some(next)
    }
}
