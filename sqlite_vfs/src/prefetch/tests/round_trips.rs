//! Scans behind a long way, in round trips: how fast a window grows, and what that costs where little of it is read.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use bytes::Bytes;

use super::super::{Came, Pages, Prefetcher};
use super::{File, PAGE, ROWS};

/// A file behind a long way: what is asked for in one round trip is here in the next.
struct Distant {
    file: File,
    /// Round trips so far, and with which of them a page comes.
    round: Cell<usize>,
    comes: RefCell<HashMap<u32, usize>>,
}

impl Distant {
    /// Reads pages as a connection does, which takes no time beside that of the way; returns the round trips.
    fn read(&self, prefetcher: &mut Prefetcher, order: &[u32]) -> usize {
        let begun = self.round.get();
        for page in order {
            let comes = self.comes.borrow().get(page).copied();
            let content = self.file.page(*page);
            match comes {
                Some(round) if round <= self.round.get() => {
                    prefetcher.read(self, *page, content, Came::AtOnce);
                }
                Some(round) => {
                    prefetcher.stalls(self, *page);
                    self.round.set(round);
                    prefetcher.read(self, *page, content, Came::Late);
                }
                None => {
                    let along = prefetcher.miss(self, *page);
                    self.request(along);
                    self.request(vec![*page]);
                    self.round.set(self.round.get() + 1);
                    prefetcher.came(*page, content);
                }
            }
        }
        self.round.get() - begun
    }
}

impl Pages for Distant {
    fn content(&self, page: u32) -> Option<Bytes> {
        let comes = self.comes.borrow().get(&page).copied()?;
        (comes <= self.round.get()).then(|| Bytes::copy_from_slice(self.file.page(page)))
    }

    fn is_known(&self, page: u32) -> bool {
        self.comes.borrow().contains_key(&page)
    }

    fn request(&self, pages: Vec<u32>) {
        let comes = self.round.get() + 1;
        for page in pages {
            assert!(self.comes.borrow_mut().insert(page, comes).is_none());
        }
    }

    fn abandon(&self, pages: Vec<u32>) {
        self.file.abandon(pages);
    }

    fn page_count(&self) -> u32 {
        self.file.page_count()
    }

    fn page_bytes(&self) -> usize {
        PAGE
    }

    fn reserved(&self) -> u8 {
        0
    }

    fn window_limit(&self) -> u64 {
        1024 * PAGE as u64
    }

    fn room(&self) -> u64 {
        u64::MAX
    }

    fn first_window(&self) -> u64 {
        16 * PAGE as u64
    }
}

/// What has been read earns what is asked for before the reader waits. When a window grew only after that wait, this scan took 10 round trips.
#[test]
fn r3_a_window_grows_before_its_reader_waits_and_a_scan_over_a_long_way_opens_in_few_round_trips() {
    let (file, roots) = File::new(ROWS);
    let mut order = Vec::new();
    file.scan(roots[0].1, false, false, &mut order);
    assert!((1_500..2_500).contains(&order.len()), "{}", order.len());
    let distant = Distant {
        file,
        round: Cell::new(0),
        comes: RefCell::default(),
    };
    let mut prefetcher = Prefetcher::default();
    let path = 4;
    assert_eq!(distant.read(&mut prefetcher, &order[..path]), path);
    for read in path..order.len() {
        distant.read(&mut prefetcher, &order[read..=read]);
        let asked = distant.comes.borrow().len();
        // What it was good for four times, its first window, and the interior pages beside them.
        assert!(
            asked <= path + 5 * read + 16 + 8,
            "{asked} with {read} read"
        );
    }
    assert_eq!(distant.round.get(), 9);
}

/// A window that grew with each wait, whatever the reader had passed over, was asked for anew with each page that came.
#[test]
fn r3_a_reader_who_leaves_out_most_of_a_scan_soon_has_little_asked_for() {
    for step in [6, 10] {
        let (file, roots) = File::new(ROWS);
        let mut scan = Vec::new();
        file.scan(roots[0].1, false, false, &mut scan);
        let path = 4;
        let order: Vec<_> = scan[..path]
            .iter()
            .chain(scan[path..].iter().step_by(step))
            .copied()
            .collect();
        let distant = Distant {
            file,
            round: Cell::new(0),
            comes: RefCell::default(),
        };
        let mut prefetcher = Prefetcher::default();
        for read in 0..order.len() {
            distant.read(&mut prefetcher, &order[read..=read]);
            let asked = distant.comes.borrow().len();
            assert!(
                asked <= path + 5 * read + 16 + 8,
                "{asked} with {read} read of every {step}th"
            );
        }
    }
}
