//! TREE6: what a root says by itself, which nothing else may say of that of a marked transaction (LOG7).

use super::*;
use crate::roots::ROOT_BYTES;

/// Of the root's layout (`roots.rs`): where its trees, and its last page, are.
const TREES: [usize; 2] = [40, 88];
const LAST_PAGE: usize = 136;

/// The roots with a bit of the newest one changed.
fn flipped(roots: &Roots, at: usize, bit: usize) -> Roots {
    let newest = roots.newest().unwrap().number;
    let mut roots = roots.clone();
    roots.0[newest as usize & 1][at + bit / 8] ^= 1 << (bit % 8);
    roots
}

/// Bug: only the last page was looked at where the pass over the tree was off, and flags never. With flags of another kind of tree the engine compares
/// keys as numbers, or reads rows as trees; with another page it leaves the file.
#[test]
fn tree6_a_root_that_can_be_none_is_told_without_a_look_at_the_tree() {
    let (mut random, _) = random();
    let made = tempfile::tempdir().unwrap();
    fill(made.path(), 150, 3, &mut random, |_| {});
    let (_, roots) = roots_of(&made.path().join(ROWS_FILE));
    let root = roots.newest().unwrap();
    assert_eq!(find_in_roots(&roots), None);
    let is_told = |at, bit| find_in_roots(&flipped(&roots, at, bit)).is_some();
    for tree in TREES {
        // All flags, and depths that no tree has.
        assert!((0..16).all(|bit| is_told(tree + 4, bit)));
        assert!((6..16).all(|bit| is_told(tree + 6, bit)));
        // Its page: beyond the last one.
        let beyond = 64 - root.last_page.leading_zeros() as usize;
        assert!((beyond..64).all(|bit| is_told(tree + 40, bit)));
        // Numbers of pages: more than there are.
        for at in [8, 16, 24] {
            assert!((beyond..64).all(|bit| is_told(tree + at, bit)), "{at}");
        }
    }
    assert!((32..64).all(|bit| is_told(LAST_PAGE, bit)));
    for (tree, number) in [
        (TREES[0], 0_u64),
        (TREES[1], 1),
        (TREES[1], root.last_page + 1),
    ] {
        let mut other = roots.clone();
        let place = root.number as usize & 1;
        other.0[place][tree + 40..tree + 48].copy_from_slice(&number.to_ne_bytes());
        assert!(find_in_roots(&other).is_some(), "{number}");
    }
}

/// With the pass each bit of the trees is told.
#[test]
fn tree6_a_bit_of_a_root_that_flips_is_noticed_or_does_no_harm() {
    let (mut random, _) = random();
    let made = tempfile::tempdir().unwrap();
    fill(made.path(), 150, 3, &mut random, |_| {});
    let (file, roots) = roots_of(&made.path().join(ROWS_FILE));
    let (mut noticed, mut harmless) = (0, Vec::new());
    for at in TREES[0] + 4..LAST_PAGE + 8 {
        for bit in 0..8 {
            // The size of a page in the first tree, and nothing in the second.
            if (TREES[1]..TREES[1] + 4).contains(&at) {
                continue;
            }
            match find(&file, &flipped(&roots, at, bit), None).unwrap() {
                Some(_) => noticed += 1,
                None => harmless.push((at, bit)),
            }
        }
    }
    println!("{noticed} noticed, {} harmless", harmless.len());
    // A last page beyond what is used is room that nobody uses.
    assert!(
        harmless
            .iter()
            .all(|(at, _)| (LAST_PAGE..LAST_PAGE + 8).contains(at)),
        "{harmless:?}"
    );
    assert!(noticed > 700, "{noticed}");
    const { assert!(LAST_PAGE + 16 <= ROOT_BYTES) };
}
