//! The engine's tree as it lies in its file, gone through before the engine maps it.
//!
//! LMDB has no checksums, and believes what it reads: a bit that flips in a page of its tree may hide rows, so that older ones are read in their
//! place, or lead it out of the file, which ends the process. But its file says most things twice, and the root, from which everything
//! is reached, has a checksum (in the file `checkpoint`, LOG4), but for the root of a transaction that did not fit the log (LOG7), until its
//! checkpoint. So an opening compares:
//!
//! * **TREE1** A page of the file is in one place: it is one of the two roots, or is reached once from the root, or is free once (in LMDB's list of
//!   free pages, which is a tree of its own, reached from the root too), or is lost: room that nothing leads to, which is told in the server's log. So a
//!   number of a page that became another one leads to a page that is reached twice, or that is free: also where that is an older state of the same
//!   page, which nothing else would tell. Where it leads to a lost page, nothing does; LMDB is not known to leave any.
//! * **TREE2** A page has its own number, and is of the kind that the depth of the tree says.
//! * **TREE3** The nodes of a page fill it from the end of the room between to the end of the page, without a gap and without an overlap.
//! * **TREE4** Keys rise from the first leaf to the last, and lie between those of the inner pages on the way to them.
//! * **TREE5** A row has the checksum of its key (KEY1). That of its body is looked at when it is read (C16).
//! * **TREE6** Depth, numbers of pages of each kind and of rows are those that the root has, and the root may be one: its flags are those of an engine's
//!   root, its pages in the file's range, as many as its depth needs. That is looked at before each opening, also where the rest is not.
//! * **TREE7** A record of free pages has the number of a transaction that was, 1 to that of the root, and numbers of pages that fall from each to the
//!   next, as the engine merges them.
//! * **TREE8** Of the transaction of the root there is such a record, for each frees the pages that it replaces. Looked at where nothing else says
//!   whose root it is: that of a marked transaction (LOG7), whether or not the rest is.
//!
//! With all of them every row is where a search finds it, no search leaves the file, and what is written next takes no page that is in use. What is
//! not looked at cannot do harm: the room between, free pages, padding, and the first key of an inner page, which no search looks at.
//! Nothing here is believed, and nothing is written.
//!
//! It reads the leaves and inner pages, and of long rows the first page. It is of what was in the file when it was opened: a bit that flips
//! later is noticed by the next opening.
//!
//! Layout, numbers in the order of the machine: `truncation.rs` has that of pages, `roots.rs` that of roots. The list of free pages has 8 bytes as a
//! key, and as a row how many pages follow, and their numbers, 8 bytes each.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::check_key;
use crate::roots::{MOST_DEPTH, Roots, Tree, u16_at, u32_at, u64_at};

const HEADER_BYTES: usize = 16;
const NODE_BYTES: usize = 8;
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const BIG: u16 = 0x01;

/// Why it was not gone through to its end.
enum Stop {
    Io(std::io::Error),
    Damaged(String),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

fn damaged<T>(number: u64, what: &str) -> Result<T, Stop> {
    Err(Stop::Damaged(format!("its page {number} {what}")))
}

/// Why the file cannot be used with these roots, where they show that by themselves (TREE6).
pub(crate) fn find_in_roots(roots: &Roots) -> Option<String> {
    let is_plausible = roots.newest().is_some_and(|root| root.is_plausible());
    (!is_plausible).then(|| "its root makes no sense".to_owned())
}

/// Why the file cannot be used with these roots, where it is damaged. It is an error where it was told to `stop`, which it looks at with each page.
pub(crate) fn find(
    file: &File,
    roots: &Roots,
    stop: Option<&AtomicBool>,
) -> std::io::Result<Option<String>> {
    match look(file, roots, stop) {
        Ok(_) => Ok(None),
        Err(Stop::Damaged(why)) => Ok(Some(why)),
        Err(Stop::Io(error)) => Err(error),
    }
}

/// The last transaction of which there is a record of free pages (TREE8); `None` where that cannot be said.
pub(crate) fn newest_freed(file: &File, roots: &Roots) -> std::io::Result<Option<u64>> {
    let (Some(page_bytes), Some(root)) = (roots.page_bytes(), roots.newest()) else {
        return Ok(None);
    };
    let [free, _] = root.stats;
    let mut number = free.root;
    for depth in (1..=free.depth.min(MOST_DEPTH)).rev() {
        if number > root.last_page {
            return Ok(None);
        }
        let mut page = vec![0; page_bytes as usize];
        match file.read_exact_at(&mut page, number.saturating_mul(page_bytes)) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let is_leaf = depth == 1;
        let kind = if is_leaf { LEAF } else { BRANCH };
        if u64_at(&page, 0) != number || u16_at(&page, 10) != kind {
            return Ok(None);
        }
        let last = nodes(number, &page, is_leaf).ok();
        let Some(last) = last.and_then(|nodes| nodes.into_iter().next_back()) else {
            return Ok(None);
        };
        if is_leaf {
            let key = &page[last.key.0..last.key.1];
            return Ok((key.len() == 8).then(|| u64_at(key, 0)));
        }
        number = child(&page, last.at);
    }
    Ok(None)
}

fn look<'f>(file: &'f File, roots: &Roots, stop: Option<&'f AtomicBool>) -> Result<Walk<'f>, Stop> {
    let (Some(page_bytes), Some(root)) = (roots.page_bytes(), roots.newest()) else {
        return Err(Stop::Damaged("it does not begin with a root".to_owned()));
    };
    let pages = usize::try_from(root.last_page).ok();
    let Some(pages) = pages.filter(|_| root.is_plausible()) else {
        return Err(Stop::Damaged("its root makes no sense".to_owned()));
    };
    let mut walk = Walk {
        file,
        page_bytes: page_bytes as usize,
        number: root.number,
        last_page: root.last_page,
        stop,
        taken: vec![0; pages / 64 + 1],
        free: Vec::new(),
    };
    walk.take(0)?;
    walk.take(1)?;
    let [free, rows] = root.stats;
    walk.tree(&free, Of::FreePages)?;
    for index in 0..walk.free.len() {
        walk.take(walk.free[index])?;
    }
    walk.tree(&rows, Of::Rows)?;
    // A page that is neither used nor free is lost room: nothing leads to it. LMDB is not known to leave any.
    let taken: u64 = walk
        .taken
        .iter()
        .map(|bits| u64::from(bits.count_ones()))
        .sum();
    let lost = (root.last_page + 1).saturating_sub(taken);
    if lost > 0 {
        tracing::warn!(lost, "pages of the store are neither used nor free");
    }
    Ok(walk)
}

/// What a tree has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Rows,
    FreePages,
}

struct Walk<'f> {
    file: &'f File,
    page_bytes: usize,
    /// Of the transaction that wrote the root.
    number: u64,
    last_page: u64,
    stop: Option<&'f AtomicBool>,
    /// A bit for each page that has its place (TREE1).
    taken: Vec<u64>,
    /// Pages that the list of free ones has.
    free: Vec<u64>,
}

/// Of one tree, on the way through it.
struct Seen {
    of: Of,
    /// But for its depth and root.
    found: Tree,
    last_key: Option<Vec<u8>>,
}

/// Keys of a page lie from the first one on and before the second.
type Bounds<'k> = (Option<&'k [u8]>, Option<&'k [u8]>);

/// A node: where it lies in its page, and what it has.
#[derive(Clone, Copy)]
struct Node {
    at: usize,
    end: usize,
    key: (usize, usize),
}

impl Walk<'_> {
    fn is_taken(&self, number: u64) -> bool {
        self.taken[(number / 64) as usize] & 1 << (number % 64) != 0
    }

    /// TREE1.
    fn take(&mut self, number: u64) -> Result<(), Stop> {
        if number > self.last_page {
            return damaged(number, "is needed, and the file never had it");
        }
        if self.is_taken(number) {
            return damaged(number, "has two places in the tree");
        }
        self.taken[(number / 64) as usize] |= 1 << (number % 64);
        Ok(())
    }

    fn read(&self, number: u64, count: usize) -> Result<Vec<u8>, Stop> {
        let mut bytes = vec![0; count];
        let at = number.saturating_mul(self.page_bytes as u64);
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                damaged(number, "is behind the end of the file")
            }
            Err(error) => Err(Stop::Io(error)),
        }
    }

    fn tree(&mut self, said: &Tree, of: Of) -> Result<(), Stop> {
        let mut seen = Seen {
            of,
            found: Tree {
                flags: said.flags,
                depth: said.depth,
                root: said.root,
                ..Tree::default()
            },
            last_key: None,
        };
        if said.root != u64::MAX {
            if !(1..=MOST_DEPTH).contains(&said.depth) {
                return damaged(said.root, "is the root of a tree without a depth");
            }
            self.page(said.root, said.depth, (None, None), &mut seen)?;
        } else if said.depth != 0 {
            return Err(Stop::Damaged("its root makes no sense".to_owned()));
        }
        // TREE6.
        match seen.found == *said {
            true => Ok(()),
            false => Err(Stop::Damaged(format!(
                "its tree has {:?}, and its root says {said:?}",
                seen.found
            ))),
        }
    }

    fn page(
        &mut self,
        number: u64,
        depth: u16,
        bounds: Bounds<'_>,
        seen: &mut Seen,
    ) -> Result<(), Stop> {
        if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            let why = "it was told to stop";
            return Err(Stop::Io(std::io::Error::new(ErrorKind::Interrupted, why)));
        }
        self.take(number)?;
        let page = self.read(number, self.page_bytes)?;
        let is_leaf = depth == 1;
        // TREE2.
        if u64_at(&page, 0) != number {
            return damaged(number, "has the number of another one");
        }
        if u16_at(&page, 10) != if is_leaf { LEAF } else { BRANCH } {
            return damaged(number, "is of another kind than its place");
        }
        let nodes = nodes(number, &page, is_leaf)?;
        if !is_leaf {
            seen.found.branch_pages += 1;
            for (index, node) in nodes.iter().enumerate() {
                let key = |node: &Node| &page[node.key.0..node.key.1];
                // The first key is not looked at by a search: what is below it begins where the page does.
                let from = if index == 0 {
                    bounds.0
                } else {
                    Some(key(node))
                };
                let to = nodes.get(index + 1).map(key).or(bounds.1);
                let is_between = |at| is_in(seen.of, at, bounds);
                if index > 0 && !is_between(key(node)) {
                    return damaged(number, "has keys out of order");
                }
                let child = child(&page, node.at);
                self.page(child, depth - 1, (from, to), seen)?;
            }
            return Ok(());
        }
        seen.found.leaf_pages += 1;
        for node in nodes {
            self.node(number, &page, node, bounds, seen)?;
        }
        Ok(())
    }

    /// A node of a leaf.
    fn node(
        &mut self,
        number: u64,
        page: &[u8],
        node: Node,
        bounds: Bounds<'_>,
        seen: &mut Seen,
    ) -> Result<(), Stop> {
        let key = &page[node.key.0..node.key.1];
        // TREE4.
        let last = seen.last_key.as_deref();
        let is_next = last.is_none_or(|last| is_less(seen.of, last, key));
        if !is_next || !is_in(seen.of, key, bounds) {
            return damaged(number, "has keys out of order");
        }
        let length = u32_at(page, node.at) as usize;
        let is_big = u16_at(page, node.at + 4) & BIG != 0;
        let row = match is_big {
            false => page[node.key.1..node.key.1 + length].to_vec(),
            true => self.overflow(u64_at(page, node.key.1), length, seen)?,
        };
        match seen.of {
            Of::Rows => {
                // TREE5.
                if check_key(key, &row).is_err() {
                    return damaged(number, "has a key whose checksum differs");
                }
            }
            Of::FreePages => {
                let count = u64_at(&row, 0);
                let listed = row.get(8..).unwrap_or_default().chunks_exact(8);
                // TREE7. With 0 LMDB would hand out the same pages again; those of a transaction that comes it would overwrite.
                let is_number = key.len() == 8 && (1..=self.number).contains(&u64_at(key, 0));
                let is_whole = count <= listed.len() as u64;
                let pages: Vec<_> = listed.take(count as usize).map(|p| u64_at(p, 0)).collect();
                if !is_number || !is_whole || !pages.is_sorted_by(|one, next| one > next) {
                    return damaged(number, "has a list of free pages that makes no sense");
                }
                self.free.extend(pages);
            }
        }
        seen.found.entries += 1;
        seen.last_key = Some(key.to_vec());
        Ok(())
    }

    /// A long row: of one of the tree its beginning, of the list of free pages all of it.
    fn overflow(&mut self, first: u64, length: usize, seen: &mut Seen) -> Result<Vec<u8>, Stop> {
        let needed = (HEADER_BYTES + length).div_ceil(self.page_bytes) as u64;
        let last = first.saturating_add(needed - 1);
        if last > self.last_page {
            return damaged(first, "is needed, and the file never had it");
        }
        let wanted = match seen.of {
            Of::Rows => self.page_bytes,
            Of::FreePages => HEADER_BYTES + length,
        };
        let mut bytes = self.read(first, wanted)?;
        // A row that became shorter keeps the pages that it had.
        let count = u64::from(u32_at(&bytes, 12));
        // TREE2.
        let is_right = u64_at(&bytes, 0) == first && u16_at(&bytes, 10) == OVERFLOW;
        if !is_right || count < needed {
            return damaged(
                first,
                "is not the one of a long row that is said to be there",
            );
        }
        for number in first..first.saturating_add(count) {
            self.take(number)?;
        }
        if seen.of == Of::Rows {
            // The last one is there too, for what reads the row.
            self.read(last, self.page_bytes)?;
        }
        seen.found.overflow_pages += count;
        Ok(bytes.split_off(HEADER_BYTES))
    }
}

/// The number of the page to which a node of an inner page leads.
fn child(page: &[u8], node: usize) -> u64 {
    u64::from(u32_at(page, node)) | u64::from(u16_at(page, node + 4)) << 32
}

fn is_less(of: Of, one: &[u8], other: &[u8]) -> bool {
    match of {
        Of::Rows => one < other,
        Of::FreePages => u64_at(one, 0) < u64_at(other, 0),
    }
}

fn is_in(of: Of, key: &[u8], (from, to): Bounds<'_>) -> bool {
    from.is_none_or(|from| !is_less(of, key, from)) && to.is_none_or(|to| is_less(of, key, to))
}

/// The nodes of a page, in their order, each within it (TREE3).
fn nodes(number: u64, page: &[u8], is_leaf: bool) -> Result<Vec<Node>, Stop> {
    let (lower, upper) = (usize::from(u16_at(page, 12)), usize::from(u16_at(page, 14)));
    let is_header = HEADER_BYTES < lower && lower <= upper && upper <= page.len();
    if !is_header || lower % 2 != 0 || upper % 2 != 0 {
        return damaged(number, "has a header that makes no sense");
    }
    let mut nodes = Vec::with_capacity((lower - HEADER_BYTES) / 2);
    for place in (HEADER_BYTES..lower).step_by(2) {
        let at = usize::from(u16_at(page, place));
        let key = at + NODE_BYTES;
        let key_end = key + usize::from(u16_at(page, at + 6));
        let row = match (is_leaf, u16_at(page, at + 4)) {
            (false, _) => 0,
            (true, 0) => u32_at(page, at) as usize,
            (true, BIG) => 8,
            (true, _) => return damaged(number, "has a node of no known kind"),
        };
        let end = key_end.saturating_add(row).saturating_add(1) & !1;
        if at < upper || end > page.len() {
            return damaged(number, "has a node that lies beyond it");
        }
        nodes.push(Node {
            at,
            end,
            key: (key, key_end),
        });
    }
    let mut spans: Vec<_> = nodes.iter().map(|node| (node.at, node.end)).collect();
    spans.sort_unstable();
    let mut next = upper;
    for (at, end) in spans {
        if at != next {
            return damaged(number, "has nodes with gaps, or over each other");
        }
        next = end;
    }
    match next == page.len() {
        true => Ok(nodes),
        false => damaged(number, "has nodes with gaps, or over each other"),
    }
}
