//! Rows looked up by the entries of an index: the rowids of an index leaf tell which leaves of the table come next.

use super::btree::TreePage;
use super::walk::Walk;
use super::{Direction, Pages, Step};

/// Rowids whose way down through the table is not here yet.
const MAX_PUT_OFF: usize = 256;

/// See the file's header.
#[derive(Debug)]
pub struct Lookups {
    /// Leaves of the index behind the present one.
    leaves: Walk,
    /// The present leaf and the one after it, which is asked for as soon as the present one is begun.
    leaf: u32,
    cell: Option<usize>,
    next_leaf: Option<NextLeaf>,
    table: Table,
    put_off: Vec<i64>,
    /// So many of them were tried since the window began to be filled, and what one of those waits for.
    tried: usize,
    waits_for: Option<u32>,
}

/// A leaf of the index, and its parent, which has the entry between it and the leaf before.
#[derive(Clone, Copy, Debug)]
struct NextLeaf {
    page: u32,
    parent: u32,
}

/// The way down a table.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// The highest page that is known, the root as a rule.
    pub top: u32,
    /// Levels from there to the leaves.
    pub levels: usize,
}

impl Lookups {
    /// What comes after a cell of an index leaf. The walk goes on behind the leaf.
    pub fn new(leaf: u32, cell: usize, leaves: Walk, table: Table) -> Self {
        Self {
            leaves,
            leaf,
            cell: Some(cell),
            next_leaf: None,
            table,
            put_off: Vec::new(),
            tried: 0,
            waits_for: None,
        }
    }

    /// The leaf of the index whose entries are looked up.
    pub fn leaf(&self) -> u32 {
        self.leaf
    }

    /// Rows that wait for the way down to them.
    pub fn put_off(&self) -> usize {
        self.put_off.len()
    }

    fn direction(&self) -> Direction {
        self.leaves.direction()
    }

    /// A window begins to be filled: what rows were put off for may be here.
    pub fn begin(&mut self) {
        self.tried = 0;
        self.waits_for = None;
    }

    /// The next leaf of the table. Rows that were put off keep their place in a window that has room for so many more.
    pub fn next(&mut self, room: usize, pages: &impl Pages) -> Step {
        while let Some(rowid) = self.put_off.get(self.tried) {
            match self.table.leaf_of(*rowid, pages) {
                Ok(Some(page)) => {
                    self.put_off.swap_remove(self.tried);
                    return Step::Page(page);
                }
                Ok(None) => {
                    self.put_off.swap_remove(self.tried);
                    return Step::Also(self.table.top);
                }
                Err(needed) => {
                    self.waits_for = Some(needed);
                    self.tried += 1;
                }
            }
        }
        if let Some(needed) = self.waits_for
            && self.put_off.len() >= room.min(MAX_PUT_OFF)
        {
            return Step::Needs(needed);
        }
        match self.next_rowid(pages) {
            Ok(Some(rowid)) => match self.table.leaf_of(rowid, pages) {
                Ok(Some(page)) => Step::Page(page),
                Ok(None) => Step::Also(self.table.top),
                Err(needed) => {
                    self.put_off.push(rowid);
                    self.tried = self.put_off.len();
                    self.waits_for = Some(needed);
                    Step::Also(needed)
                }
            },
            Ok(None) => self.waits_for.map_or(Step::End, Step::Needs),
            Err(needed) => Step::Needs(needed),
        }
    }

    /// Index pages to be asked for now.
    pub fn interior_pages(&mut self, pages: &impl Pages) -> Vec<u32> {
        let mut wanted = self.leaves.interior_pages(1, pages);
        if self.next_leaf.is_none()
            && let Step::Page(leaf) = self.leaves.next(pages)
        {
            self.next_leaf = Some(NextLeaf {
                page: leaf,
                parent: self.leaves.parent(),
            });
        }
        wanted.extend(self.next_leaf.map(|leaf| leaf.page));
        wanted
    }

    fn next_rowid(&mut self, pages: &impl Pages) -> Result<Option<i64>, u32> {
        loop {
            let Some(content) = pages.content(self.leaf) else {
                return Err(self.leaf);
            };
            if let Some(leaf) = TreePage::parse(self.leaf, &content, pages.reserved()) {
                while let Some(cell) = self.direction().after(self.cell, leaf.cells()) {
                    self.cell = Some(cell);
                    if let Some(rowid) = leaf.rowid_of_entry(cell) {
                        return Ok(Some(rowid));
                    }
                }
            }
            let next = match self.next_leaf.take() {
                Some(leaf) => leaf,
                None => match self.leaves.next(pages) {
                    Step::Page(page) => NextLeaf {
                        page,
                        parent: self.leaves.parent(),
                    },
                    Step::Needs(page) | Step::Also(page) => return Err(page),
                    Step::End => return Ok(None),
                },
            };
            self.leaf = next.page;
            self.cell = None;
            if let Some(rowid) = self.rowid_before(next, pages) {
                return Ok(Some(rowid));
            }
        }
    }

    /// The rowid of the entry between a leaf and the one before it. It lies on their parent, or above where they have none in
    /// common: then it is one row that is not foreseen.
    fn rowid_before(&self, next: NextLeaf, pages: &impl Pages) -> Option<i64> {
        let content = pages.content(next.parent)?;
        let tree = TreePage::parse(next.parent, &content, pages.reserved())?;
        let child = tree.index_of_child(next.page)?;
        match self.direction() {
            Direction::Ascending => tree.rowid_of_entry(child.checked_sub(1)?),
            Direction::Descending => tree.rowid_of_entry(child),
        }
    }
}

impl Table {
    /// The leaf in which a row must lie. `Err` names a page whose bytes are needed, `None` says that the pages make no sense.
    fn leaf_of(&self, rowid: i64, pages: &impl Pages) -> Result<Option<u32>, u32> {
        let mut page = self.top;
        for _ in 0..self.levels {
            let Some(content) = pages.content(page) else {
                return Err(page);
            };
            let child = TreePage::parse(page, &content, pages.reserved())
                .and_then(|tree| tree.child_for_rowid(rowid));
            match child {
                Some((_, child)) => page = child,
                None => return Ok(None),
            }
        }
        Ok(Some(page))
    }
}
