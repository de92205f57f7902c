//! What a connection has read lately, and what that says about what it will read next.

use std::collections::VecDeque;

use super::btree::{PageKind, TreePage, successor};
use super::chains::Chains;
use super::hot::HotPages;
use super::lookups::{Lookups, Table};
use super::stream::{Plan, Stream};
use super::walk::{Walk, children};
use super::{Direction, Pages};

/// Interior pages that are remembered: the upper levels of several trees.
const MAX_INTERIOR: usize = 64;
/// Among the latest of these the parent of a page is looked for: SQLite has just read it, or is on a walk.
const LIKELY_PARENTS: usize = 16;
/// Leaves that are remembered, for their overflow chains.
const MAX_LEAVES: usize = 4;
/// Levels of a tree that are climbed: SQLite allows no more (BTCURSOR_MAX_DEPTH).
const MAX_LEVELS: usize = 20;
/// Entries of an index leaf that are considered for one row.
const MAX_CELLS: usize = 8;
/// Rows of entries that are no further apart are looked up one after the other: those between may be in the cache.
const NEAR: usize = 8;
/// Two neighbours belong together if no more pages than these had to be asked for from the one to the other: among many point
/// reads there are neighbours too.
const RECENT: u32 = 8;
/// So many pages that follow another by their numbers make a run, where the tree says nothing. The root of the first table follows
/// the schema in most databases.
const SHORT_RUN: u32 = 2;
/// So many make a run although the pages have parents that say otherwise: a backup.
const LONG_RUN: u32 = 4;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Patterns {
    /// The page read last, whether it was none of a b-tree, and how many before it were its predecessors by number.
    last: u32,
    last_is_no_tree_page: bool,
    run: u32,
    /// The latest first.
    interior: Vec<Interior>,
    leaves: VecDeque<u32>,
    index_leaf: Option<IndexLeaf>,
    /// The row whose overflow chain was read last.
    chain: Option<(u32, usize)>,
    /// Interior pages, for the next process.
    pub hot: HotPages,
    /// Pages that had to be asked for and that no stream had foreseen; wraps.
    asked: u32,
}

/// An interior page, and which of its children had to be asked for last.
#[derive(Clone, Copy, Debug)]
struct Interior {
    page: u32,
    last_child: Option<usize>,
    /// How many pages had been asked for then.
    asked_before: u32,
}

/// The leaf of an index that was read last.
#[derive(Clone, Copy, Debug)]
struct IndexLeaf {
    page: u32,
    /// The row that had to be asked for last.
    row: Option<Row>,
    /// Pages of tables asked for since, without such an entry.
    strangers: u32,
}

/// A row of a table that an index leaf names.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Entries whose row it may be, lying on the page asked for. Several, where neighbours in the table are so in the index too.
    cells: [Option<usize>; MAX_CELLS],
    /// The page that had to be asked for, and how it was found.
    page: u32,
    table: Table,
}

impl Patterns {
    /// A page is read (R6).
    pub fn note(&mut self, page: u32, content: &[u8]) {
        if self.follows_last(page) {
            self.run = self.run.saturating_add(1);
        } else if page != self.last {
            self.run = 0;
        }
        self.last = page;
        let kind = PageKind::of(page, content);
        self.last_is_no_tree_page = kind.is_none();
        match kind {
            Some(PageKind::InteriorIndex | PageKind::InteriorTable) => {
                self.hot.note(page);
                self.note_interior(page);
                self.no_row(page);
            }
            Some(PageKind::LeafIndex) => {
                self.note_leaf(page);
                if self.index_leaf.is_none_or(|leaf| leaf.page != page) {
                    self.index_leaf = Some(IndexLeaf {
                        page,
                        row: None,
                        strangers: 0,
                    });
                }
            }
            Some(PageKind::LeafTable) => self.note_leaf(page),
            None => {}
        }
    }

    /// Page 1 follows none.
    fn follows_last(&self, page: u32) -> bool {
        self.last != 0 && page == self.last.wrapping_add(1)
    }

    fn note_interior(&mut self, page: u32) {
        match self.interior.iter().position(|known| known.page == page) {
            Some(place) => self.interior[..=place].rotate_right(1),
            None => {
                self.interior.truncate(MAX_INTERIOR - 1);
                self.interior.insert(
                    0,
                    Interior {
                        page,
                        last_child: None,
                        asked_before: 0,
                    },
                );
            }
        }
    }

    fn note_leaf(&mut self, page: u32) {
        if self.leaves.front() != Some(&page) {
            self.leaves.retain(|leaf| *leaf != page);
            self.leaves.truncate(MAX_LEAVES - 1);
            self.leaves.push_front(page);
        }
    }

    /// What a page that has to be asked for now, and that no stream has foreseen, is the beginning of (R2).
    pub fn recognise(
        &mut self,
        pages: &impl Pages,
        page: u32,
        streams: &mut [Stream],
    ) -> Option<Plan> {
        let run = match self.follows_last(page) {
            true => self.run.saturating_add(1),
            false => 0,
        };
        self.asked = self.asked.wrapping_add(1);
        if let Some(plan) = self.chain_link(pages, page) {
            for stream in streams {
                if let Plan::Chains(chains) = &mut stream.plan
                    && chains.goes_on()
                {
                    // They are read deeper than they were.
                    chains.read_to(u32::MAX);
                }
            }
            return Some(plan);
        }
        if let Some(found) = self.find_parent(pages, page, LIKELY_PARENTS) {
            let plan = self.child(pages, &found, streams);
            if plan.is_some() || run < LONG_RUN {
                return plan;
            }
        } else if let Some(plan) = self.chain_of_a_row(pages, page, streams) {
            return Some(plan);
        }
        (run >= SHORT_RUN).then_some(Plan::Run(page + 1))
    }

    /// The page that the overflow page read last names.
    fn chain_link(&self, pages: &impl Pages, page: u32) -> Option<Plan> {
        if !self.last_is_no_tree_page {
            return None;
        }
        let content = pages.content(self.last)?;
        (successor(&content) == Some(page)).then(|| Plan::Chains(Chains::of_unknown_row(page)))
    }

    /// The first overflow page of a row on a leaf that was read lately. A stream that follows the chain of the row before goes on
    /// with the rows behind it.
    fn chain_of_a_row(
        &mut self,
        pages: &impl Pages,
        page: u32,
        streams: &mut [Stream],
    ) -> Option<Plan> {
        for leaf in self.leaves.iter().copied() {
            let Some(content) = pages.content(leaf) else {
                continue;
            };
            let Some(tree) = TreePage::parse(leaf, &content, pages.reserved()) else {
                continue;
            };
            let found = (0..tree.cells()).find_map(|cell| {
                let overflow = tree.overflow(cell)?;
                (overflow.first == page).then_some((cell, overflow))
            });
            let Some((cell, overflow)) = found else {
                continue;
            };
            let before = self.chain.replace((leaf, cell));
            let mut chains = Chains::new(leaf, cell, overflow.first, overflow.pages);
            let direction =
                before.and_then(|(at, cell_at)| self.row_direction(pages, at, cell_at, leaf, cell));
            if let Some(direction) = direction
                && let Some(walk) = self.walk_from(pages, leaf, direction)
            {
                let mut depth = u32::MAX;
                for stream in streams {
                    if let Plan::Chains(chains) = &stream.plan
                        && chains.row() == before
                    {
                        if !stream.is_read_out() {
                            depth = u32::try_from(stream.read_so_far() + 1).unwrap_or(u32::MAX);
                        }
                        // It has done its work: this one takes its place.
                        stream.retire();
                    }
                }
                chains.go_on(walk, depth);
            }
            return Some(Plan::Chains(chains));
        }
        None
    }

    /// Which way the rows of two overflow chains are read, if they are neighbours.
    fn row_direction(
        &self,
        pages: &impl Pages,
        leaf_before: u32,
        cell_before: usize,
        leaf: u32,
        cell: usize,
    ) -> Option<Direction> {
        if leaf_before == leaf {
            return match cell {
                _ if cell == cell_before + 1 => Some(Direction::Ascending),
                _ if cell + 1 == cell_before => Some(Direction::Descending),
                _ => None,
            };
        }
        let found = self.parent_of(pages, leaf, MAX_INTERIOR)?;
        let content = pages.content(found.page)?;
        let tree = TreePage::parse(found.page, &content, pages.reserved())?;
        neighbours(tree.index_of_child(leaf_before)?, found.child)
    }

    /// A child of an interior page.
    fn child(
        &mut self,
        pages: &impl Pages,
        found: &Parent,
        streams: &mut [Stream],
    ) -> Option<Plan> {
        let place = self
            .interior
            .iter()
            .position(|known| known.page == found.page)?;
        let interior = &mut self.interior[place];
        let before = interior.last_child.replace(found.child);
        let asked_before = std::mem::replace(&mut interior.asked_before, self.asked);
        if self.asked.wrapping_sub(asked_before) <= RECENT
            && let Some(before) = before
            && let Some(direction) = neighbours(before, found.child)
        {
            return Some(Plan::Walk(self.walk(pages, found, direction)?));
        }
        self.lookup(pages, found, streams)
    }

    /// The page asked for last has turned out to be on the way to a row, not the row's.
    fn no_row(&mut self, page: u32) {
        if let Some(leaf) = &mut self.index_leaf
            && leaf.row.is_some_and(|row| row.page == page)
        {
            leaf.row = None;
        }
    }

    /// A leaf of a table in which an entry of the index leaf read last has its row. The second row, if its entry is near that of the
    /// first one, shows the direction.
    fn lookup(
        &mut self,
        pages: &impl Pages,
        found: &Parent,
        streams: &mut [Stream],
    ) -> Option<Plan> {
        let index_leaf = self.index_leaf.as_ref()?;
        let (leaf_page, before) = (index_leaf.page, index_leaf.row);
        if found.kind != PageKind::InteriorTable || (before.is_none() && index_leaf.strangers > 1) {
            // What is read has nothing to do with that leaf.
            return None;
        }
        let table = self.table_above(pages, found.page);
        if before.is_some_and(|row| row.table.top == table.top && row.table.levels > table.levels) {
            // A page on the way to a row.
            return None;
        }
        let content = pages.content(leaf_page)?;
        let leaf = TreePage::parse(leaf_page, &content, pages.reserved())?;
        let mut holding = (0..leaf.cells()).filter(|cell| {
            leaf.rowid_of_entry(*cell)
                .is_some_and(|rowid| found.above < rowid && rowid <= found.upto)
        });
        let cells = [(); MAX_CELLS].map(|()| holding.next());
        let index_leaf = self.index_leaf.as_mut()?;
        if cells[0].is_none() {
            index_leaf.strangers = index_leaf.strangers.saturating_add(1);
            return None;
        }
        index_leaf.strangers = 0;
        index_leaf.row = Some(Row {
            cells,
            page: found.itself,
            table,
        });
        let (before, cell) = nearest(&before?.cells, &cells)?;
        let direction = match before < cell {
            true => Direction::Ascending,
            false => Direction::Descending,
        };
        for stream in streams {
            if matches!(&stream.plan, Plan::Lookups(lookups) if lookups.leaf() == leaf_page) {
                if stream.is_followed() {
                    return None;
                }
                // It was wrong.
                stream.retire();
            }
        }
        let leaves = self.walk_from(pages, leaf_page, direction)?;
        let lookups = Lookups::new(leaf_page, cell, leaves, table);
        Some(Plan::Lookups(lookups))
    }

    /// The way down from the highest page that is known to the children of an interior page.
    fn table_above(&self, pages: &impl Pages, page: u32) -> Table {
        let mut table = Table {
            top: page,
            levels: 1,
        };
        while table.levels < MAX_LEVELS
            && let Some(parent) = self.parent_of(pages, table.top, MAX_INTERIOR)
        {
            table.top = parent.page;
            table.levels += 1;
        }
        table
    }

    /// The walk that goes on behind a leaf; empty if its parent is not known.
    fn walk_from(&self, pages: &impl Pages, leaf: u32, direction: Direction) -> Option<Walk> {
        match self.parent_of(pages, leaf, MAX_INTERIOR) {
            Some(found) => self.walk(pages, &found, direction),
            None => Some(Walk::new(direction, 0, Vec::new())),
        }
    }

    /// The walk that goes on behind a child.
    fn walk(&self, pages: &impl Pages, found: &Parent, direction: Direction) -> Option<Walk> {
        let mut levels = vec![self.siblings(pages, found, direction)?];
        let mut below = found.page;
        while levels.len() < MAX_LEVELS
            && let Some(parent) = self.parent_of(pages, below, MAX_INTERIOR)
        {
            levels.push(self.siblings(pages, &parent, direction)?);
            below = parent.page;
        }
        Some(Walk::new(direction, found.page, levels))
    }

    fn siblings(
        &self,
        pages: &impl Pages,
        found: &Parent,
        direction: Direction,
    ) -> Option<VecDeque<u32>> {
        let content = pages.content(found.page)?;
        let tree = TreePage::parse(found.page, &content, pages.reserved())?;
        let range = match direction {
            Direction::Ascending => found.child + 1..tree.children(),
            Direction::Descending => 0..found.child,
        };
        Some(children(&tree, range, direction))
    }

    /// The parent of a page, which becomes the latest one.
    fn find_parent(&mut self, pages: &impl Pages, page: u32, among: usize) -> Option<Parent> {
        let found = self.parent_of(pages, page, among)?;
        self.note_interior(found.page);
        Some(found)
    }

    fn parent_of(&self, pages: &impl Pages, page: u32, among: usize) -> Option<Parent> {
        self.interior.iter().take(among).find_map(|interior| {
            let content = pages.content(interior.page)?;
            let tree = TreePage::parse(interior.page, &content, pages.reserved())?;
            let child = tree.index_of_child(page)?;
            Some(Parent {
                itself: page,
                page: interior.page,
                kind: tree.kind(),
                child,
                above: match child {
                    0 => i64::MIN,
                    _ => tree.largest_rowid(child - 1).unwrap_or(i64::MIN),
                },
                upto: tree.largest_rowid(child).unwrap_or(i64::MAX),
            })
        })
    }
}

/// Where a page was found.
struct Parent {
    /// The page that was looked for.
    itself: u32,
    /// Its parent.
    page: u32,
    kind: PageKind,
    /// Which child it is.
    child: usize,
    /// Rowids of a table's child: above this, at most that.
    above: i64,
    upto: i64,
}

/// The two entries, one of each row, that are nearest to each other, if they are near.
fn nearest(
    before: &[Option<usize>; MAX_CELLS],
    now: &[Option<usize>; MAX_CELLS],
) -> Option<(usize, usize)> {
    let pairs = before
        .iter()
        .flatten()
        .flat_map(|before| now.iter().flatten().map(move |now| (*before, *now)));
    pairs
        .filter(|(before, now)| (1..=NEAR).contains(&before.abs_diff(*now)))
        .min_by_key(|(before, now)| before.abs_diff(*now))
}

fn neighbours(before: usize, now: usize) -> Option<Direction> {
    if now == before + 1 {
        Some(Direction::Ascending)
    } else if now + 1 == before {
        Some(Direction::Descending)
    } else {
        None
    }
}
