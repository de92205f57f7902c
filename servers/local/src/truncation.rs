//! A file that was cut short, told before the engine maps it: a look at what is not there would end the process.
//!
//! The engine's root says up to which page the file was used. The last of those may be free and never written, so that a shorter
//! file may be whole: then the tree is gone through, as it lies in the file, and only where a page of it is missing the store is
//! refused. Nothing here is written, and of rows nothing is looked at but where long ones lie.
//!
//! Layout: a page has a header of 16 bytes (number, ..., flags at 10, end of the list of nodes at 12; pages of an overflow at 12), then offsets
//! of nodes. A node of an inner page has the number of its page in its first 6 bytes; one of a leaf has flags at 4, the length of its key
//! at 6, and where its row is too long for the page, behind the key the number of the first overflow page. `roots.rs` has that of roots.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::roots::{Roots, u16_at, u32_at, u64_at};

const LEAF: u16 = 0x02;
const BRANCH: u16 = 0x01;
const BIG: u16 = 0x01;
const HEADER_BYTES: usize = 16;

/// Why the file cannot be used with these roots, where it was cut short.
pub(crate) fn find(file: &File, roots: &Roots) -> std::io::Result<Option<String>> {
    let size = file.metadata()?.len();
    let Some(page) = roots.page_bytes() else {
        return Ok(Some("it does not begin with a root".to_owned()));
    };
    let pages = size / page;
    if pages < 2 {
        // It began with two roots, and was synced with them before anybody was told of it (DIR1).
        return Ok(Some(format!(
            "it was cut short: it has {size} bytes, and began with {}",
            2 * page
        )));
    }
    let Some(root) = roots.newest() else {
        return Ok(None);
    };
    let last = root.last_page;
    if last < pages {
        return Ok(None);
    }
    let missing = root.trees.into_iter().filter(|root| *root != u64::MAX);
    let mut next: Vec<u64> = missing.collect();
    let mut seen = 0;
    while let Some(number) = next.pop() {
        seen += 1;
        if number >= pages || seen > pages {
            return Ok(Some(format!(
                "it was cut short: it has {size} bytes, and what is in it needs {}",
                last.saturating_add(1).saturating_mul(page)
            )));
        }
        let bytes = read(file, number, page)?;
        let flags = u16_at(&bytes, 10);
        let nodes = usize::from(u16_at(&bytes, 12)).saturating_sub(HEADER_BYTES) / 2;
        for node in 0..nodes {
            let at = usize::from(u16_at(&bytes, HEADER_BYTES + 2 * node));
            if flags & BRANCH != 0 {
                let low = u64::from(u32_at(&bytes, at));
                next.push(low | u64::from(u16_at(&bytes, at + 4)) << 32);
            } else if flags & LEAF != 0 && u16_at(&bytes, at + 4) & BIG != 0 {
                let key = usize::from(u16_at(&bytes, at + 6));
                let first = u64_at(&bytes, at + 8 + key);
                let length = u64::from(u32_at(&bytes, at));
                let last = first.saturating_add((HEADER_BYTES as u64 + length).div_ceil(page)) - 1;
                // Not one to go through: it has no nodes.
                if last >= pages {
                    next.push(last);
                }
            }
        }
    }
    Ok(None)
}

fn read(file: &File, number: u64, page_bytes: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; page_bytes as usize];
    file.read_exact_at(&mut bytes, number.saturating_mul(page_bytes))?;
    Ok(bytes)
}
