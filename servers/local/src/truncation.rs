//! A file that was cut short, told before the engine maps it: a look at what is not there would end the process.
//!
//! The engine's root says up to which page the file was used. The last of those may be free and never written, so that a shorter
//! file may be whole: then the tree is gone through, as it lies in the file, and only where a page of it is missing the store is
//! refused. Nothing here is written, and of rows nothing is looked at but where long ones lie.
//!
//! Layout: a page has a header of 16 bytes (number, ..., flags at 10, end of the list of nodes at 12; pages of an overflow at 12), then offsets
//! of nodes. A node of an inner page has the number of its page in its first 6 bytes; one of a leaf has flags at 4, the length of its key
//! at 6, and where its row is too long for the page, behind the key the number of the first overflow page. All in the order of the
//! machine, which the engine requires to be the same.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Size of a page of the engine: it takes that of the machine.
fn page_bytes() -> u64 {
    rustix::param::page_size() as u64
}

const MAGIC: u32 = 0xBEEF_C0DE;
const LEAF: u16 = 0x02;
const BRANCH: u16 = 0x01;
const BIG: u16 = 0x01;
/// Where a root is in its page, and what it has after its magic number.
const META_AT: usize = 16;
const TREE_AT: usize = META_AT + 24;
const TREE_BYTES: usize = 48;
const LAST_PAGE_AT: usize = TREE_AT + 2 * TREE_BYTES;

/// Why the file cannot be used, where it was cut short.
pub(crate) fn find(file: &File) -> std::io::Result<Option<String>> {
    let size = file.metadata()?.len();
    let page = page_bytes();
    let pages = size / page;
    if pages < 2 {
        // It began with two roots, and was synced with them before anybody was told of it (DIR1).
        return Ok(Some(format!(
            "it was cut short: it has {size} bytes, and began with {}",
            2 * page
        )));
    }
    let mut newest: Option<(u64, u64, [u64; 2])> = None;
    for number in 0..2 {
        let bytes = read(file, number)?;
        let root = |tree: usize| u64_at(&bytes, TREE_AT + tree * TREE_BYTES + 40);
        let transaction = u64_at(&bytes, LAST_PAGE_AT + 8);
        if u32_at(&bytes, META_AT) == MAGIC && newest.is_none_or(|n| n.0 < transaction) {
            let last = u64_at(&bytes, LAST_PAGE_AT);
            newest = Some((transaction, last, [root(0), root(1)]));
        }
    }
    let Some((_, last, roots)) = newest else {
        return Ok(None);
    };
    if last < pages {
        return Ok(None);
    }
    let missing = roots.into_iter().filter(|root| *root != u64::MAX);
    let mut next: Vec<u64> = missing.collect();
    let mut seen = 0;
    while let Some(number) = next.pop() {
        seen += 1;
        if number >= pages || seen > pages {
            return Ok(Some(format!(
                "it was cut short: it has {size} bytes, and what is in it needs {}",
                (last + 1) * page
            )));
        }
        let bytes = read(file, number)?;
        let flags = u16_at(&bytes, 10);
        let nodes = usize::from(u16_at(&bytes, 12)).saturating_sub(META_AT) / 2;
        for node in 0..nodes {
            let at = usize::from(u16_at(&bytes, META_AT + 2 * node));
            if flags & BRANCH != 0 {
                let low = u64::from(u32_at(&bytes, at));
                next.push(low | u64::from(u16_at(&bytes, at + 4)) << 32);
            } else if flags & LEAF != 0 && u16_at(&bytes, at + 4) & BIG != 0 {
                let key = usize::from(u16_at(&bytes, at + 6));
                let first = u64_at(&bytes, at + 8 + key);
                let length = u64::from(u32_at(&bytes, at));
                let last = first.saturating_add((META_AT as u64 + length).div_ceil(page)) - 1;
                // Not one to go through: it has no nodes.
                if last >= pages {
                    next.push(last);
                }
            }
        }
    }
    Ok(None)
}

fn read(file: &File, number: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; page_bytes() as usize];
    file.read_exact_at(&mut bytes, number.saturating_mul(page_bytes()))?;
    Ok(bytes)
}

/// Numbers in a page; what would lie beyond it is 0.
fn at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk());
    part.copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_ne_bytes(at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(at(bytes, offset))
}
