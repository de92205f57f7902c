//! The roots of the engine's tree, as they lie in the first two pages of its file.
//!
//! Layout of such a page: a header of 16 bytes, then magic (4 bytes), version (4), address (8), largest size (8), two trees (48 each: 4 bytes, in the first one
//! the size of a page, flags (2), depth (2), inner pages, leaves, overflow pages, rows, page of the root, 8 each), last page (8), number of the transaction (8). All in the order of the
//! machine, which the engine requires to be the same; the size of a page is that of the machine on which the file was made. From the
//! largest size on it is written with each commit, within one sector.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

/// What a root takes at the beginning of its page, with some room.
pub(crate) const ROOT_BYTES: usize = 160;

const MAGIC: u32 = 0xBEEF_C0DE;
const META_AT: usize = 16;
const TREE_AT: usize = META_AT + 24;
const TREE_BYTES: usize = 48;
const LAST_PAGE_AT: usize = TREE_AT + 2 * TREE_BYTES;
/// Of the trees, as the engine makes them: keys of the first one are numbers (LMDB, `MDB_INTEGERKEY`); rows have no duplicates, and keys of any length.
const FLAGS: [u16; 2] = [0x08, 0];
/// LMDB, `CURSOR_STACK`.
pub(crate) const MOST_DEPTH: u16 = 32;
/// 16 TiB in pages of 4 KiB. It decides how much memory the pass over the tree takes, and how much the engine maps.
const MOST_PAGES: u64 = 1 << 32;

/// Size of a page of an engine's file.
pub(crate) fn page_bytes(file: &File) -> std::io::Result<u64> {
    let mut root = [0; ROOT_BYTES];
    file.read_exact_at(&mut root, 0)?;
    let no_root = || std::io::Error::new(ErrorKind::InvalidData, "it does not begin with a root");
    page_bytes_of(&root).ok_or_else(no_root)
}

/// As a root says; `None` where it is none.
fn page_bytes_of(root: &[u8; ROOT_BYTES]) -> Option<u64> {
    let bytes = u32_at(root, TREE_AT);
    let is_root = u32_at(root, META_AT) == MAGIC;
    // LMDB, `MAX_PAGESIZE`.
    let has_size = bytes.is_power_of_two() && (512..=32 << 10).contains(&bytes);
    (is_root && has_size).then(|| u64::from(bytes))
}

/// Both, as they are in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots(pub(crate) [[u8; ROOT_BYTES]; 2]);

/// What one says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    /// Of the transaction that wrote it.
    pub(crate) number: u64,
    pub(crate) last_page: u64,
    /// Pages of the trees; all ones for an empty one.
    pub(crate) trees: [u64; 2],
    /// What both have: that of free pages, and that of rows.
    pub(crate) stats: [Tree; 2],
}

/// What a root says of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) flags: u16,
    pub(crate) depth: u16,
    pub(crate) branch_pages: u64,
    pub(crate) leaf_pages: u64,
    pub(crate) overflow_pages: u64,
    pub(crate) entries: u64,
    /// All ones for an empty one.
    pub(crate) root: u64,
}

impl Tree {
    fn read(root: &[u8; ROOT_BYTES], tree: usize) -> Self {
        let at = TREE_AT + tree * TREE_BYTES;
        Self {
            flags: u16_at(root, at + 4),
            depth: u16_at(root, at + 6),
            branch_pages: u64_at(root, at + 8),
            leaf_pages: u64_at(root, at + 16),
            overflow_pages: u64_at(root, at + 24),
            entries: u64_at(root, at + 32),
            root: u64_at(root, at + 40),
        }
    }
}

impl Root {
    /// Whether it may be one (TREE6): what can be seen without a look at the trees. The engine believes all of it, and that of a marked transaction
    /// (LOG7) has no checksum.
    pub(crate) fn is_plausible(&self) -> bool {
        let used = self.stats.iter().fold(2_u64, |used, tree| {
            [tree.branch_pages, tree.leaf_pages, tree.overflow_pages]
                .iter()
                .fold(used, |used, pages| used.saturating_add(*pages))
        });
        let has_pages = (1..MOST_PAGES).contains(&self.last_page) && used <= self.last_page + 1;
        let are_trees = self.stats.iter().zip(FLAGS).all(|(tree, flags)| {
            let is_empty = tree.root == u64::MAX;
            let (depth, inner) = (u64::from(tree.depth), tree.branch_pages);
            let has_depth = match tree.depth {
                0 => is_empty && (inner, tree.leaf_pages, tree.entries) == (0, 0, 0),
                1 => !is_empty && (inner, tree.leaf_pages) == (0, 1),
                2..=MOST_DEPTH => inner >= depth - 1 && tree.leaf_pages > 0 && !is_empty,
                _ => false,
            };
            let is_page = is_empty || (2..=self.last_page).contains(&tree.root);
            tree.flags == flags && has_depth && is_page
        });
        has_pages && are_trees
    }
}

impl Roots {
    /// Of a file that has both pages, of this size.
    pub(crate) fn read(file: &File, page_bytes: u64) -> std::io::Result<Self> {
        let mut roots = [[0; ROOT_BYTES]; 2];
        for (place, root) in (0..).zip(&mut roots) {
            file.read_exact_at(root, place * page_bytes)?;
        }
        Ok(Self(roots))
    }

    /// Into their places, in a file whose pages have the size that they say.
    pub(crate) fn write(&self, file: &File) -> std::io::Result<()> {
        let no_root = || std::io::Error::new(ErrorKind::InvalidData, "there are no roots");
        let page_bytes = self.page_bytes().ok_or_else(no_root)?;
        for (place, root) in (0..).zip(&self.0) {
            file.write_all_at(root, place * page_bytes)?;
        }
        Ok(())
    }

    /// Size of a page; `None` where neither is one.
    pub(crate) fn page_bytes(&self) -> Option<u64> {
        self.0.iter().find_map(page_bytes_of)
    }

    /// Whether both are roots: one that was being written when the power went may be trash.
    pub(crate) fn are_whole(&self) -> bool {
        self.0.iter().all(|bytes| page_bytes_of(bytes).is_some())
    }

    /// Bug: a store was refused after a loss of power, for a commit that never was. Cause: of a root that was being written the sector was trash, and the
    /// number in it was believed, for the magic before it was whole. Fix: the size of pages, which is written with the number, has to be one.
    ///
    /// `None` where neither is one.
    pub(crate) fn newest(&self) -> Option<Root> {
        let bytes = &self.0[self.newest_place()?];
        Some(Root {
            number: u64_at(bytes, LAST_PAGE_AT + 8),
            last_page: u64_at(bytes, LAST_PAGE_AT),
            trees: [0, 1].map(|tree| Tree::read(bytes, tree).root),
            stats: [0, 1].map(|tree| Tree::read(bytes, tree)),
        })
    }

    fn newest_place(&self) -> Option<usize> {
        // A loss of power may leave anything in what is written with each commit: the magic alone tells nothing, for it is written once.
        let whole = [0, 1]
            .into_iter()
            .filter(|place| page_bytes_of(&self.0[*place]).is_some());
        whole.max_by_key(|place| u64_at(&self.0[*place], LAST_PAGE_AT + 8))
    }

    /// Bug: a store was refused after a loss of power while it was opened. Cause: both roots were being put back, which left that of a marked transaction
    /// and trash for the other one, and the next opening put back both as they were. Fix: of those in the file only the newest one is taken.
    pub(crate) fn with_newest_of(&self, in_file: &Self) -> Self {
        let mut roots = self.clone();
        if let Some(place) = in_file.newest_place() {
            roots.0[place] = in_file.0[place];
        }
        roots
    }
}

/// Numbers in a page; what would lie beyond it is 0.
fn at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.copied().unwrap_or([0; N])
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes(at(bytes, offset))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(at(bytes, offset))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(at(bytes, offset))
}
