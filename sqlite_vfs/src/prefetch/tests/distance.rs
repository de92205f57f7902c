//! Scans over a long way, in a time that is only counted: how many round trips go by before the window is as wide as the way is long.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::{CALL_BYTES, Came, Pages, Prefetcher};
use crate::client::link::{Link, Sent};

const PAGE: usize = 4096;
const AHEAD_LIMIT: u64 = 16 << 20;

/// Pages as they lie in the leaves of a table: its interior pages are made here, its leaves have no rows.
struct Table {
    pages: Vec<Vec<u8>>,
    /// Its pages as a scan reads them.
    order: Vec<u32>,
}

/// Children of an interior page, at most.
const FANOUT: usize = 400;

impl Table {
    fn new(leaves: usize) -> Self {
        // Page 1 has nothing here, and the root is page 2.
        let parents = leaves.div_ceil(FANOUT);
        let first_leaf = 3 + parents as u32;
        let mut pages = vec![vec![0; PAGE]];
        let parent_numbers: Vec<u32> = (3..first_leaf).collect();
        let leaf_numbers: Vec<u32> = (first_leaf..first_leaf + leaves as u32).collect();
        pages.push(interior(&parent_numbers));
        pages.extend(leaf_numbers.chunks(FANOUT).map(interior));
        let mut leaf = vec![0; PAGE];
        leaf[0] = 0x0d;
        pages.extend(std::iter::repeat_n(leaf, leaves));
        let mut order = vec![2];
        for (parent, children) in parent_numbers.iter().zip(leaf_numbers.chunks(FANOUT)) {
            order.push(*parent);
            order.extend(children);
        }
        Self { pages, order }
    }

    fn page(&self, number: u32) -> &[u8] {
        &self.pages[number as usize - 1]
    }

    fn interior_pages(&self) -> impl Iterator<Item = u32> {
        let is_interior = |page: &u32| self.page(*page)[0] == 0x05;
        self.order.iter().copied().filter(is_interior)
    }
}

/// An interior page of a table: SQLite file format, 1.6. Each key is one byte: no reader looks for one.
fn interior(children: &[u32]) -> Vec<u8> {
    let (last, rest) = children.split_last().unwrap();
    let mut page = vec![0; PAGE];
    page[0] = 0x05;
    page[3..5].copy_from_slice(&(rest.len() as u16).to_be_bytes());
    page[8..12].copy_from_slice(&last.to_be_bytes());
    for (cell, child) in rest.iter().enumerate() {
        let at = PAGE - (cell + 1) * 5;
        page[at..at + 4].copy_from_slice(&child.to_be_bytes());
        page[12 + 2 * cell..14 + 2 * cell].copy_from_slice(&(at as u16).to_be_bytes());
    }
    let content = PAGE - rest.len() * 5;
    page[5..7].copy_from_slice(&(content as u16).to_be_bytes());
    page
}

/// A call on its way.
struct Call {
    sent: Sent,
    bytes: u64,
    pages: Vec<u32>,
    arrives: Duration,
}

/// A way to a server that has the table.
struct Way<'a> {
    table: &'a Table,
    link: Link,
    round_trip: Duration,
    /// Bytes that it carries in a second.
    rate: f64,
    start: Instant,
    now: Cell<Duration>,
    /// When the last byte that was asked for has been sent.
    sent_until: Cell<Duration>,
    calls: RefCell<VecDeque<Call>>,
    here: RefCell<HashMap<u32, bool>>,
    asked: Cell<usize>,
    in_flight: Cell<u64>,
    most_in_flight: Cell<u64>,
}

impl<'a> Way<'a> {
    fn new(table: &'a Table, round_trip: Duration, rate: f64) -> Self {
        Self {
            table,
            link: Link::default(),
            round_trip,
            rate,
            start: Instant::now(),
            now: Cell::default(),
            sent_until: Cell::default(),
            calls: RefCell::default(),
            here: RefCell::default(),
            asked: Cell::new(0),
            in_flight: Cell::new(0),
            most_in_flight: Cell::new(0),
        }
    }

    fn call(&self, pages: &[u32]) {
        let bytes = (pages.len() * PAGE) as u64;
        let begin = (self.now.get() + self.round_trip / 2).max(self.sent_until.get());
        let end = begin + Duration::from_secs_f64(bytes as f64 / self.rate);
        self.sent_until.set(end);
        self.calls.borrow_mut().push_back(Call {
            sent: self.link.sent(self.start + self.now.get()),
            bytes,
            pages: pages.to_vec(),
            arrives: end + self.round_trip / 2,
        });
        self.here
            .borrow_mut()
            .extend(pages.iter().map(|page| (*page, false)));
        self.asked.set(self.asked.get() + pages.len());
        self.in_flight.set(self.in_flight.get() + bytes);
        self.most_in_flight
            .set(self.most_in_flight.get().max(self.in_flight.get()));
    }

    /// What has come by now.
    fn arrive(&self) {
        while let Some(call) = self
            .calls
            .borrow_mut()
            .pop_front_if(|call| call.arrives <= self.now.get())
        {
            self.link
                .arrived(&call.sent, call.bytes, self.start + call.arrives);
            self.in_flight.set(self.in_flight.get() - call.bytes);
            self.here
                .borrow_mut()
                .extend(call.pages.into_iter().map(|page| (page, true)));
        }
    }

    /// Waits for a page that was asked for.
    fn wait(&self, page: u32) {
        while self.here.borrow().get(&page) == Some(&false) {
            let next = self.calls.borrow().front().map(|call| call.arrives);
            self.now.set(next.expect("it was asked for"));
            self.arrive();
        }
    }

    /// Reads pages as a connection does, each in some time.
    fn read(&self, prefetcher: &mut Prefetcher, order: &[u32], each: Duration) {
        for page in order {
            self.arrive();
            let state = self.here.borrow().get(page).copied();
            let content = self.table.page(*page);
            match state {
                Some(true) => prefetcher.read(self, *page, content, Came::AtOnce),
                Some(false) => {
                    prefetcher.stalls(self, *page);
                    self.wait(*page);
                    prefetcher.read(self, *page, content, Came::Late);
                }
                None => {
                    let mut asked = vec![*page];
                    asked.extend(prefetcher.miss(self, *page));
                    self.call(&asked);
                    self.wait(*page);
                    prefetcher.came(*page, content);
                }
            }
            self.now.set(self.now.get() + each);
        }
    }
}

impl Pages for Way<'_> {
    fn content(&self, page: u32) -> Option<Bytes> {
        (self.here.borrow().get(&page) == Some(&true))
            .then(|| Bytes::copy_from_slice(self.table.page(page)))
    }

    fn is_known(&self, page: u32) -> bool {
        self.here.borrow().contains_key(&page)
    }

    fn request(&self, pages: Vec<u32>) {
        let most = CALL_BYTES / PAGE;
        let part = pages.len().div_ceil(pages.len().div_ceil(most).max(1));
        for part in pages.chunks(part.max(1)) {
            self.call(part);
        }
    }

    fn abandon(&self, _: Vec<u32>) {}

    fn page_count(&self) -> u32 {
        self.table.pages.len() as u32
    }

    fn page_bytes(&self) -> usize {
        PAGE
    }

    fn reserved(&self) -> u8 {
        0
    }

    fn window_limit(&self) -> u64 {
        self.link.window(AHEAD_LIMIT)
    }

    fn room(&self) -> u64 {
        AHEAD_LIMIT - self.in_flight.get().min(AHEAD_LIMIT)
    }

    fn first_window(&self) -> u64 {
        self.link.first_window()
    }
}

impl Way<'_> {
    /// A way over which an open has brought the hot list.
    fn with_interior_pages(self) -> Self {
        let interior = self.table.interior_pages().map(|page| (page, true));
        self.here.borrow_mut().extend(interior);
        self
    }

    /// How many round trips went by in which the way could have carried something and did not.
    fn round_trips_lost(&self) -> f64 {
        let carried = (self.asked.get() * PAGE) as f64 / self.rate;
        (self.now.get().as_secs_f64() - carried) / self.round_trip.as_secs_f64()
    }
}

const EACH: Duration = Duration::from_micros(5);

/// The first leaf, the second one with the first window, and then a window that is five times as wide with each round trip, up to the 8 MB that
/// are needed here. With two bandwidth-delay products from the beginning there were two more.
#[test]
fn a_scan_over_a_long_way_has_a_wide_window_after_five_round_trips() {
    let table = Table::new(12_000);
    let way = Way::new(&table, Duration::from_millis(20), 400e6).with_interior_pages();
    let mut prefetcher = Prefetcher::default();
    let mut widest = [0; 6];
    for page in &table.order {
        way.read(&mut prefetcher, &[*page], EACH);
        let round_trips = way.now.get().as_micros() / way.round_trip.as_micros();
        if let Some(widest) = widest.get_mut(round_trips as usize) {
            *widest = way.most_in_flight.get() >> 10;
        }
    }
    assert_eq!(way.asked.get(), 12_000);
    assert!(widest[5] > 6 << 10, "{widest:?} KiB");
    assert!(way.round_trips_lost() < 6.0, "{}", way.round_trips_lost());
}

/// See L2 of `client/link.rs`.
#[test]
fn over_a_slow_way_a_scan_never_has_more_than_the_least_window_in_flight() {
    let table = Table::new(8_000);
    for (megabytes, milliseconds) in [(1.25, 20), (1.25, 100), (12.5, 20)] {
        let round_trip = Duration::from_millis(milliseconds);
        let way = Way::new(&table, round_trip, megabytes * 1e6).with_interior_pages();
        way.read(&mut Prefetcher::default(), &table.order, EACH);
        let most = way.most_in_flight.get();
        assert!(most <= 1 << 20, "{megabytes} MB/s: {most} bytes");
        assert!(way.round_trips_lost() < 4.0, "{}", way.round_trips_lost());
    }
}

/// R3 where the way is long and wide.
#[test]
fn a_scan_over_a_long_way_that_breaks_off_wastes_at_most_four_times_what_it_read() {
    let table = Table::new(8_000);
    for length in [4, 5, 8, 20, 34, 35, 40, 100, 170, 400, 1000] {
        let way = Way::new(&table, Duration::from_millis(20), 400e6);
        way.read(&mut Prefetcher::default(), &table.order[..length], EACH);
        let first = way.first_window() as usize / PAGE;
        let most = length + first + 4 * length + 2;
        assert!(way.asked.get() <= most, "{length}: {}", way.asked.get());
    }
}
