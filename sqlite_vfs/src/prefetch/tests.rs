//! Whole reads, in the order in which SQLite makes them, over a file that SQLite has written: what is foreseen, and in how many
//! calls. Everything that is asked for is there at once, so the counts are exact.

mod bounds;
mod distance;
mod round_trips;
mod streams;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;

use bytes::Bytes;

use super::btree::{TreePage, successor};
use super::{Came, Pages, Prefetcher};

const PAGE: usize = 1024;

/// A file behind a server.
struct File {
    bytes: Vec<u8>,
    here: RefCell<HashSet<u32>>,
    calls: Cell<usize>,
    fetched: Cell<usize>,
    abandoned: Cell<usize>,
    /// In pages.
    first_window: Cell<usize>,
    /// In pages.
    room: Cell<usize>,
    /// At the contents of pages.
    looks: Cell<usize>,
}

impl File {
    fn new(sql: &str) -> (Self, Vec<(String, u32)>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!("PRAGMA page_size = {PAGE}; {sql}"))
            .unwrap();
        let mut statement = connection
            .prepare("SELECT name, rootpage FROM sqlite_schema")
            .unwrap();
        let roots = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        (Self::of(std::fs::read(&path).unwrap()), roots)
    }

    fn of(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            here: RefCell::default(),
            calls: Cell::new(0),
            fetched: Cell::new(0),
            abandoned: Cell::new(0),
            first_window: Cell::new(0),
            room: Cell::new(usize::MAX / PAGE),
            looks: Cell::new(0),
        }
    }

    fn page(&self, number: u32) -> &[u8] {
        let at = (number as usize - 1) * PAGE;
        &self.bytes[at..at + PAGE]
    }

    fn call(&self, pages: &[u32]) {
        self.calls.set(self.calls.get() + 1);
        for page in pages {
            assert!((1..=self.page_count()).contains(page), "page {page}");
            assert!(self.here.borrow_mut().insert(*page), "page {page} twice");
            self.fetched.set(self.fetched.get() + 1);
        }
    }

    /// Pages below a page in the order of a scan, each with the overflow pages of its rows where they are read too.
    fn scan(&self, number: u32, descending: bool, overflow: bool, order: &mut Vec<u32>) {
        order.push(number);
        let tree = TreePage::parse(number, self.page(number), 0).unwrap();
        let mut cells: Vec<usize> = (0..tree.cells()).collect();
        let mut children: Vec<usize> = (0..tree.children()).collect();
        if descending {
            cells.reverse();
            children.reverse();
        }
        for cell in cells {
            let mut next = tree.overflow(cell).map(|overflow| overflow.first);
            while let Some(page) = next.filter(|_| overflow) {
                order.push(page);
                next = successor(self.page(page));
            }
        }
        for child in children {
            self.scan(tree.child(child).unwrap(), descending, overflow, order);
        }
    }

    /// Reads pages as a connection does; returns the number of pages that had to be waited for.
    fn read(&self, prefetcher: &mut Prefetcher, order: &[u32]) -> usize {
        let mut misses = 0;
        for page in order {
            if self.is_known(*page) {
                prefetcher.read(self, *page, self.page(*page), Came::AtOnce);
            } else {
                misses += 1;
                let mut asked = vec![*page];
                asked.extend(prefetcher.miss(self, *page));
                self.call(&asked);
                prefetcher.came(*page, self.page(*page));
            }
        }
        misses
    }
}

impl Pages for File {
    fn content(&self, page: u32) -> Option<Bytes> {
        self.looks.set(self.looks.get() + 1);
        self.is_known(page)
            .then(|| Bytes::copy_from_slice(self.page(page)))
    }

    fn is_known(&self, page: u32) -> bool {
        self.here.borrow().contains(&page)
    }

    fn request(&self, pages: Vec<u32>) {
        self.call(&pages);
    }

    fn abandon(&self, pages: Vec<u32>) {
        self.abandoned.set(self.abandoned.get() + pages.len());
    }

    fn page_count(&self) -> u32 {
        (self.bytes.len() / PAGE) as u32
    }

    fn page_bytes(&self) -> usize {
        PAGE
    }

    fn reserved(&self) -> u8 {
        0
    }

    fn window_limit(&self) -> u64 {
        64 * PAGE as u64
    }

    fn room(&self) -> u64 {
        self.room.get() as u64 * PAGE as u64
    }

    fn first_window(&self) -> u64 {
        self.first_window.get() as u64 * PAGE as u64
    }
}

const ROWS: &str = "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT);
    WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
      INSERT INTO t SELECT (i * 2654435761) % 4294967296, printf('%064d', i) FROM n;";

#[test]
fn a_scan_waits_for_its_first_pages_only() {
    let (file, roots) = File::new(ROWS);
    for descending in [false, true] {
        file.here.borrow_mut().clear();
        file.calls.set(0);
        file.fetched.set(0);
        let mut order = Vec::new();
        file.scan(roots[0].1, descending, false, &mut order);
        assert!(order.len() > 1_500, "{}", order.len());
        let mut prefetcher = Prefetcher::default();
        let misses = file.read(&mut prefetcher, &order);
        // The path to the first leaf, and the second leaf, which shows the direction.
        assert_eq!(misses, 4, "descending {descending}");
        assert_eq!(file.fetched.get(), order.len());
        // A call for each quarter of the window, nearly.
        assert!(file.calls.get() < order.len() / 8, "{}", file.calls.get());
        assert_eq!(prefetcher.end(), Vec::<u32>::new());
    }
}

#[test]
fn a_scan_that_reads_overflow_chains_waits_for_two_of_them() {
    let (file, roots) = File::new(
        "CREATE TABLE t(i INTEGER PRIMARY KEY, v BLOB);
         WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 200)
           INSERT INTO t SELECT i, randomblob(20000) FROM n;",
    );
    for descending in [false, true] {
        file.here.borrow_mut().clear();
        file.fetched.set(0);
        let mut order = Vec::new();
        file.scan(roots[0].1, descending, true, &mut order);
        let misses = file.read(&mut Prefetcher::default(), &order);
        // The path down; the first two chains; the second leaf.
        assert!(misses <= 6, "{misses} of {}", order.len());
        assert!(file.fetched.get() <= order.len() + 8);
    }
}

#[test]
fn r2_point_reads_fetch_nothing_ahead() {
    let (file, roots) = File::new(ROWS);
    let mut prefetcher = Prefetcher::default();
    let mut state = 88_172_645_463_325_252u64;
    let mut read = HashSet::new();
    for _ in 0..300 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut at = roots[0].1;
        let mut path = vec![at];
        while let Some((_, child)) = TreePage::parse(at, file.page(at), 0)
            .unwrap()
            .child_for_rowid((state % 4_294_967_296) as i64)
        {
            at = child;
            path.push(at);
        }
        read.extend(path.iter().copied());
        file.read(&mut prefetcher, &path);
    }
    assert!(read.len() > 200);
    assert!(
        file.fetched.get() <= read.len() + read.len() / 10,
        "{} for {}",
        file.fetched.get(),
        read.len()
    );
}

#[test]
fn over_a_long_way_a_scan_begins_with_more() {
    let (file, roots) = File::new(ROWS);
    let mut order = Vec::new();
    file.scan(roots[0].1, false, false, &mut order);
    // The path to the first leaf, and the second leaf, with which the first window comes, and the interior page behind theirs.
    let fetched = [0, 32].map(|first| {
        file.first_window.set(first);
        file.here.borrow_mut().clear();
        file.fetched.set(0);
        file.read(&mut Prefetcher::default(), &order[..4]);
        file.fetched.get()
    });
    assert_eq!(fetched, [5 + super::FIRST_WINDOW, 5 + 32]);
}

#[test]
fn r3_a_scan_that_breaks_off_wastes_at_most_four_times_what_it_read() {
    let (file, roots) = File::new(ROWS);
    let mut order = Vec::new();
    file.scan(roots[0].1, false, false, &mut order);
    let lengths = [4, 5, 6, 8, 12, 20, 40, 100, 400];
    for (first, length) in [4, 32]
        .into_iter()
        .flat_map(|first| lengths.map(|length| (first, length)))
    {
        file.first_window.set(first);
        file.here.borrow_mut().clear();
        file.fetched.set(0);
        let mut prefetcher = Prefetcher::default();
        file.read(&mut prefetcher, &order[..length]);
        let most = length + (first + 4 * length).min(64) + 2;
        assert!(
            file.fetched.get() <= most,
            "{length}: {}",
            file.fetched.get()
        );
        let unread = prefetcher.end().len();
        assert!(file.fetched.get() - unread <= length, "{length}: {unread}");
    }
}

#[test]
fn rows_by_the_rowids_of_an_index_are_foreseen_in_either_direction() {
    let (file, roots) = File::new(
        "CREATE TABLE t(i INTEGER PRIMARY KEY, v TEXT, w INTEGER); CREATE INDEX t_w ON t(w);
         WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
           INSERT INTO t SELECT (i * 2654435761) % 4294967296, printf('%064d', i), i FROM n;",
    );
    let (table, index) = (roots[0].1, roots[1].1);
    for descending in [false, true] {
        file.here.borrow_mut().clear();
        file.fetched.set(0);
        // Two leaves of the index, and the way down to each row.
        let mut pages = Vec::new();
        file.scan(index, descending, false, &mut pages);
        let leaves: Vec<u32> = pages
            .iter()
            .copied()
            .filter(|page| {
                TreePage::parse(*page, file.page(*page), 0)
                    .unwrap()
                    .children()
                    == 0
            })
            .take(2)
            .collect();
        let mut order: Vec<u32> = pages
            .iter()
            .copied()
            .take_while(|page| *page != leaves[0])
            .collect();
        for leaf in leaves {
            order.push(leaf);
            let tree = TreePage::parse(leaf, file.page(leaf), 0).unwrap();
            let mut cells: Vec<usize> = (0..tree.cells()).collect();
            if descending {
                cells.reverse();
            }
            for cell in cells {
                let rowid = tree.rowid_of_entry(cell).unwrap();
                let mut at = table;
                order.push(at);
                while let Some((_, child)) = TreePage::parse(at, file.page(at), 0)
                    .unwrap()
                    .child_for_rowid(rowid)
                {
                    at = child;
                    order.push(at);
                }
            }
        }
        let needed: HashSet<u32> = order.iter().copied().collect();
        assert!(needed.len() > 80, "{}", needed.len());
        let misses = file.read(&mut Prefetcher::default(), &order);
        // Two paths down, the second row, and the leaf after the first one at the latest.
        assert!(misses <= 10, "{misses} of {}", needed.len());
        assert!(
            file.fetched.get() <= needed.len() + 64 + 16,
            "{} for {}",
            file.fetched.get(),
            needed.len()
        );
    }
}

#[test]
fn pages_by_their_numbers_are_foreseen_whatever_their_parents_say() {
    let (file, _) = File::new(ROWS);
    let order: Vec<u32> = (1..=file.page_count()).collect();
    let misses = file.read(&mut Prefetcher::default(), &order);
    assert!(misses <= 8, "{misses}");
    assert_eq!(file.fetched.get(), order.len());
}
