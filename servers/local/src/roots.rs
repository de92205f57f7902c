//! The roots of the engine's tree, as they lie in the first two pages of its file.
//!
//! Layout of such a page: a header of 16 bytes, then magic (4 bytes), version (4), address (8), largest size (8), two trees (48 each, the last 8 bytes
//! the page of its root), last page (8), number of the transaction (8). All in the order of the machine, which the engine requires to
//! be the same. From the largest size on it is written with each commit, within one sector.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Size of a page of the engine: it takes that of the machine.
pub(crate) fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

/// What a root takes at the beginning of its page, with some room.
pub(crate) const ROOT_BYTES: usize = 160;

const MAGIC: u32 = 0xBEEF_C0DE;
const META_AT: usize = 16;
const TREE_AT: usize = META_AT + 24;
const TREE_BYTES: usize = 48;
const LAST_PAGE_AT: usize = TREE_AT + 2 * TREE_BYTES;

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
}

impl Roots {
    /// Of a file that has both pages.
    pub(crate) fn read(file: &File) -> std::io::Result<Self> {
        let mut roots = [[0; ROOT_BYTES]; 2];
        for (place, root) in (0..).zip(&mut roots) {
            file.read_exact_at(root, place * page_bytes())?;
        }
        Ok(Self(roots))
    }

    /// Into their places.
    pub(crate) fn write(&self, file: &File) -> std::io::Result<()> {
        for (place, root) in (0..).zip(&self.0) {
            file.write_all_at(root, place * page_bytes())?;
        }
        Ok(())
    }

    /// `None` where neither is one.
    pub(crate) fn newest(&self) -> Option<Root> {
        let whole = self
            .0
            .iter()
            .filter(|bytes| u32_at(*bytes, META_AT) == MAGIC);
        let roots = whole.map(|bytes| Root {
            number: u64_at(bytes, LAST_PAGE_AT + 8),
            last_page: u64_at(bytes, LAST_PAGE_AT),
            trees: [0, 1].map(|tree| u64_at(bytes, TREE_AT + tree * TREE_BYTES + 40)),
        });
        roots.max_by_key(|root| root.number)
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
