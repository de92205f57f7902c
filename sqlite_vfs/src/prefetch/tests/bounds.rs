//! R5: what is planned by pages that say anything.

use super::super::{Pages as _, Prefetcher};
use super::{File, PAGE, ROWS};

#[test]
fn r5_damaged_pages_are_planned_with_bounded_work_and_within_the_file() {
    let (mut file, roots) = File::new(ROWS);
    let mut order = Vec::new();
    file.scan(roots[0].1, false, false, &mut order);
    let mut state = 1_234_567_891_011u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for _ in 0..20 {
        for _ in 0..200 {
            // Interior pages come to point to each other, to themselves, and out of the file.
            let page = order[next() % order.len()] as usize - 1;
            file.bytes[page * PAGE + next() % 32] = next() as u8;
        }
        file.here.borrow_mut().clear();
        file.fetched.set(0);
        file.read(&mut Prefetcher::default(), &order);
        assert!(file.fetched.get() <= file.page_count() as usize);
    }
}

/// An interior page of a table with these children; those behind the first ones may all be the same page, named by one cell.
fn interior(first: &[u32], many: u32, count: usize) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let cells = first.len() + count;
    page[0] = 5;
    page[3..5].copy_from_slice(&u16::try_from(cells).unwrap().to_be_bytes());
    page[8..12].copy_from_slice(&many.to_be_bytes());
    let named = first
        .iter()
        .copied()
        .chain(std::iter::repeat_n(many, count));
    for (index, child) in named.enumerate() {
        let place = PAGE - 5 * (index.min(first.len()) + 1);
        page[place..place + 4].copy_from_slice(&child.to_be_bytes());
        page[12 + 2 * index..14 + 2 * index]
            .copy_from_slice(&u16::try_from(place).unwrap().to_be_bytes());
    }
    page
}

#[test]
fn r5_work_is_bounded_where_pages_name_the_same_pages_over_and_over() {
    const MANY: usize = 150;
    let leaf = {
        let mut page = vec![0; PAGE];
        page[0] = 13;
        page
    };
    // 2 > 3 > 4 > 5 > leaves 9 to 12, and beside each the same page many times: 6 at the level of 3, made of 7, made of 8, a leaf where
    // there should be interior pages.
    let mut pages = vec![leaf.clone(); 12];
    pages[1] = interior(&[3], 6, MANY);
    pages[2] = interior(&[4], 7, MANY);
    pages[3] = interior(&[5], 8, MANY);
    pages[4] = interior(&[9, 10, 11], 12, 0);
    pages[5] = interior(&[], 7, MANY);
    pages[6] = interior(&[], 8, MANY);
    let file = File::of(pages.concat());
    file.here.borrow_mut().extend([6, 7, 8]);
    let mut prefetcher = Prefetcher::default();
    for page in [2, 3, 4, 5, 9, 10, 11, 12, 9] {
        let before = file.looks.get();
        file.read(&mut prefetcher, &[page]);
        let looks = file.looks.get() - before;
        assert!(looks < 2000, "{looks} for page {page}");
    }
}
