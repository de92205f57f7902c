//! (database, page, version) -> bytes, in memory, bounded in bytes, shared by all connections of a client.
//!
//! An entry says for which versions it is known to hold: from the version that wrote the page up to the one at which it was
//! read. What happened after that is asked of the database's [`ChangeLog`], so that news of a commit touches no entry.
//! Beside it lies what a page was before, for those who look at an old version: they neither take the place of the newest
//! content nor go without. What does not fit, and what the next process wants, lies on disk: `disk/`, where it is set.
//!
//! A hit among 10,000 pages, the lock of the change log included, took 90 to 130 ns of a processor with one thread and 100 with each of two
//! (`threads.rs`, release profile, two busy cores).

mod ahead;
pub mod disk;
#[cfg(test)]
mod threads;

use std::collections::HashMap;

use bytes::Bytes;
use pagewire_proto::{Changes, PageNumber, Version};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

pub use ahead::{Ahead, CamePage, Taken, TakenPage};

/// Bytes that an entry costs beside its content.
const ENTRY_OVERHEAD: u64 = 96;
/// Pages that a change log remembers; beyond it everything cached is forgotten instead.
const MAX_LOGGED_PAGES: usize = 1 << 20;

/// Share of the limit for what is fetched ahead: 16 MiB of 64. A stream has half of it under way, which is 400 MB/s over a round trip of 20 ms.
const AHEAD_SHARE: u64 = 4;

/// Which database of this process; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey(pub u64);

impl CacheKey {
    /// Where older content of the same database lies.
    fn of_the_past(self) -> Self {
        Self(self.0 | 1 << 63)
    }
}

#[derive(Clone)]
struct Entry {
    content: Bytes,
    from: Version,
    upto: Version,
}

impl Entry {
    /// A page as it was read at `upto`.
    ///
    /// One that was never written (version 0) may have had content in an older version, before the database was cut off and grew
    /// again: what was read holds for the version read, and says nothing of earlier ones.
    fn read(from: Version, upto: Version, content: Bytes) -> Self {
        Self {
            from: if from == Version::ZERO { upto } else { from },
            upto,
            content,
        }
    }

    fn holds(&self, page: PageNumber, at: Version, log: &ChangeLog) -> bool {
        self.from <= at && (at <= self.upto || log.unchanged(page, self.upto, at))
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(CacheKey, PageNumber), Entry> for ByBytes {
    fn weight(&self, _: &(CacheKey, PageNumber), entry: &Entry) -> u64 {
        entry.content.len() as u64 + ENTRY_OVERHEAD
    }
}

/// The cache of one client.
pub struct PageCache {
    entries: Cache<(CacheKey, PageNumber), Entry, ByBytes>,
    /// Pages that nobody has read yet.
    pub ahead: Ahead,
}

impl PageCache {
    /// A cache of at most so many bytes.
    pub fn new(limit: u64) -> Self {
        let for_ahead = limit / AHEAD_SHARE;
        let limit = limit - for_ahead;
        let estimated = usize::try_from(limit / 4096)
            .unwrap_or(usize::MAX)
            .clamp(16, 1 << 20);
        Self {
            entries: Cache::with_weighter(estimated, limit, ByBytes),
            ahead: Ahead::new(for_ahead),
        }
    }

    /// The content of the page at the version, if it is known for sure.
    pub fn get(
        &self,
        key: CacheKey,
        page: PageNumber,
        at: Version,
        log: &ChangeLog,
    ) -> Option<Bytes> {
        let entry = self.entries.get(&(key, page))?;
        if entry.holds(page, at, log) {
            return Some(entry.content);
        }
        if at >= entry.from {
            return None;
        }
        let past = self.entries.get(&(key.of_the_past(), page))?;
        (past.from <= at && at <= past.upto).then_some(past.content)
    }

    /// Remembers a page that was read at `upto` and written at `from`, beside what is known of a later version.
    pub fn put(
        &self,
        key: CacheKey,
        page: PageNumber,
        from: Version,
        upto: Version,
        content: Bytes,
    ) {
        let entry = Entry::read(from, upto, content);
        match self.entries.peek(&(key, page)) {
            Some(known) if known.upto > upto && known.from <= upto => {}
            Some(known) if known.upto > upto => {
                self.entries.insert((key.of_the_past(), page), entry);
            }
            _ => self.entries.insert((key, page), entry),
        }
        self.supersede_ahead(key, page);
    }

    /// Takes in the pages of a call that was made ahead: they lie beside the cache, but for those that nobody wants any more or that are
    /// here by now.
    pub fn arrived_ahead(&self, key: CacheKey, upto: Version, came: Vec<CamePage>) {
        let numbers: Vec<_> = came.iter().map(|page| page.number).collect();
        for (page, taken) in self.ahead.arrived(key, upto, came) {
            self.put(key, page, taken.from, taken.upto, taken.content);
        }
        // Only now, or one that is put meanwhile would be missed. What is not in the cache is put there later, or never.
        for page in numbers {
            if self.entries.contains_key(&(key, page)) {
                self.supersede_ahead(key, page);
            }
        }
    }

    /// F5 of [`Ahead`].
    fn supersede_ahead(&self, key: CacheKey, page: PageNumber) {
        self.ahead.superseded(key, page, |at| {
            [key, key.of_the_past()].into_iter().any(|key| {
                let known = self.entries.peek(&(key, page));
                known.is_some_and(|known| known.from <= at && at <= known.upto)
            })
        });
    }
}

/// For each page the newest version known to have changed it, complete from `since` up to `head`.
#[derive(Clone, Debug, Default)]
pub struct ChangeLog {
    since: Version,
    head: Version,
    changed_at: HashMap<PageNumber, Version>,
}

impl ChangeLog {
    /// Knows nothing of versions up to `since`.
    pub fn new(since: Version) -> Self {
        Self {
            since,
            head: since,
            changed_at: HashMap::new(),
        }
    }

    /// Whether it is known that no version after `known` up to `at` has changed the page. A version may be looked at before
    /// anything else is known of it.
    pub fn unchanged(&self, page: PageNumber, known: Version, at: Version) -> bool {
        known >= self.since
            && at <= self.head
            && self
                .changed_at
                .get(&page)
                .is_none_or(|changed| *changed <= known)
    }

    /// From which version on it is complete.
    pub fn since(&self) -> Version {
        self.since
    }

    /// Up to which version it is complete.
    pub fn head(&self) -> Version {
        self.head
    }

    /// Takes over what changed up to a new head. Returns what was forgotten, where that is not known page by page.
    pub fn advance(&mut self, head: Version, changes: &Changes) -> Option<Self> {
        match changes {
            Changes::Pages(pages) if self.changed_at.len() + pages.len() <= MAX_LOGGED_PAGES => {
                // What is told late, of a version before the log's head, takes nothing back.
                for page in pages {
                    let changed = self.changed_at.entry(*page).or_default();
                    *changed = (*changed).max(head);
                }
                self.head = self.head.max(head);
                None
            }
            Changes::Pages(_) | Changes::All => Some(std::mem::replace(self, Self::new(head))),
        }
    }

    /// Adds what another log knows, if there is no gap between the two and it is not too much: then it is complete over both.
    pub fn join(&mut self, other: &Self) -> bool {
        let is_gap = self.since > other.head || other.since > self.head;
        if is_gap || self.changed_at.len() + other.changed_at.len() > MAX_LOGGED_PAGES {
            return false;
        }
        for (page, version) in &other.changed_at {
            // Each says only that nothing has changed the page after its version.
            let changed = self.changed_at.entry(*page).or_default();
            *changed = (*changed).max(*version);
        }
        self.since = self.since.min(other.since);
        self.head = self.head.max(other.head);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32) -> PageNumber {
        PageNumber::try_from(number).unwrap()
    }

    const KEY: CacheKey = CacheKey(1);

    fn version(number: u64) -> Version {
        Version::new(number)
    }

    #[test]
    fn an_entry_holds_until_its_page_changes() {
        let cache = PageCache::new(1 << 20);
        let mut log = ChangeLog::new(version(5));
        cache.put(
            KEY,
            page(7),
            version(3),
            version(5),
            Bytes::from_static(b"old"),
        );
        assert!(cache.get(KEY, page(7), version(2), &log).is_none());
        assert!(cache.get(KEY, page(7), version(4), &log).is_some());
        log.advance(version(6), &Changes::Pages(vec![page(8)]));
        assert!(cache.get(KEY, page(7), version(6), &log).is_some());
        log.advance(version(7), &Changes::Pages(vec![page(7)]));
        assert!(cache.get(KEY, page(7), version(7), &log).is_none());
        assert!(cache.get(KEY, page(7), version(5), &log).is_some());
    }

    #[test]
    fn of_a_version_beyond_the_known_head_nothing_is_known() {
        let cache = PageCache::new(1 << 20);
        let mut log = ChangeLog::new(version(5));
        let put = |upto, content| {
            let content = Bytes::from_static(content);
            cache.put(KEY, page(7), version(upto), version(upto), content);
        };
        put(5, b"of 5");
        // Another process has made it, and this one looks at it by its tag.
        assert!(cache.get(KEY, page(7), version(8), &log).is_none());
        put(8, b"of 8");
        assert_eq!(cache.get(KEY, page(7), version(8), &log).unwrap(), "of 8");
        log.advance(version(9), &Changes::Pages(vec![page(7)]));
        assert!(cache.get(KEY, page(7), version(9), &log).is_none());
        log.advance(version(10), &Changes::Pages(vec![page(8)]));
        put(9, b"of 9");
        assert_eq!(cache.get(KEY, page(7), version(10), &log).unwrap(), "of 9");
    }

    #[test]
    fn after_a_gap_in_the_log_nothing_older_holds() {
        let cache = PageCache::new(1 << 20);
        let mut log = ChangeLog::new(version(1));
        cache.put(
            KEY,
            page(1),
            version(1),
            version(1),
            Bytes::from_static(b"x"),
        );
        log.advance(version(9), &Changes::All);
        assert!(cache.get(KEY, page(1), version(9), &log).is_none());
        cache.put(
            KEY,
            page(1),
            version(1),
            version(9),
            Bytes::from_static(b"x"),
        );
        assert!(cache.get(KEY, page(1), version(9), &log).is_some());
    }

    #[test]
    fn a_hole_of_a_later_version_says_nothing_of_an_earlier_one() {
        let cache = PageCache::new(1 << 20);
        let log = ChangeLog::new(version(6));
        cache.put(KEY, page(10), Version::ZERO, version(6), Bytes::new());
        assert!(cache.get(KEY, page(10), version(6), &log).is_some());
        assert!(cache.get(KEY, page(10), version(4), &log).is_none());
    }

    #[test]
    fn what_a_page_was_is_kept_beside_what_it_is() {
        let cache = PageCache::new(1 << 20);
        let log = ChangeLog::new(version(1));
        let at = |number| cache.get(KEY, page(1), version(number), &log);
        let put = |from, upto, content| {
            let content = Bytes::from_static(content);
            cache.put(KEY, page(1), version(from), version(upto), content);
        };
        put(7, 9, b"new");
        put(3, 4, b"old");
        assert_eq!(at(8).unwrap(), "new");
        assert_eq!(at(3).unwrap(), "old");
        assert!(at(5).is_none() && at(2).is_none());
        // The newest is replaced; who looks at the past does not notice.
        put(10, 10, b"newer");
        assert_eq!(at(10).unwrap(), "newer");
        assert_eq!(at(4).unwrap(), "old");
        put(1, 1, b"oldest");
        assert_eq!(at(1).unwrap(), "oldest");
        assert!(at(4).is_none());
    }

    /// A page that was fetched ahead at version 5 and written by version 3.
    fn arrive_ahead(cache: &PageCache, number: u32) {
        let came = CamePage {
            number: page(number),
            from: version(3),
            content: Bytes::from_static(b"ahead"),
        };
        cache.arrived_ahead(KEY, version(5), vec![came]);
    }

    #[test]
    fn f5_what_the_cache_has_got_in_another_way_does_not_lie_ahead_as_well() {
        let cache = PageCache::new(1 << 20);
        let limit = cache.ahead.limit();
        let begin = |numbers: std::ops::Range<u32>, bytes| {
            cache.ahead.begin(KEY, numbers.map(page), bytes).len()
        };
        let put = |number, from, upto| {
            let content = Bytes::from_static(b"put");
            cache.put(KEY, page(number), version(from), version(upto), content);
        };
        assert_eq!(begin(1..5, limit / 4), 4, "the room is all taken");
        // Put after it has come, at the same version and at a later one.
        arrive_ahead(&cache, 1);
        put(1, 3, 5);
        assert!(!cache.ahead.has(KEY, page(1)));
        arrive_ahead(&cache, 2);
        put(2, 3, 6);
        assert!(!cache.ahead.has(KEY, page(2)));
        // Put before it comes; and beside the content of a later version.
        put(3, 3, 5);
        assert!(cache.ahead.has(KEY, page(3)), "somebody may wait for it");
        arrive_ahead(&cache, 3);
        assert!(!cache.ahead.has(KEY, page(3)));
        arrive_ahead(&cache, 4);
        put(4, 8, 9);
        assert!(
            cache.ahead.has(KEY, page(4)),
            "a snapshot of version 5 finds it nowhere else"
        );
        put(4, 3, 5);
        assert!(!cache.ahead.has(KEY, page(4)));
        assert_eq!(begin(11..15, limit / 4), 4, "there is all the room again");
    }

    #[test]
    fn f5_what_the_cache_knows_of_an_earlier_version_only_takes_nothing_away() {
        let cache = PageCache::new(1 << 20);
        cache.ahead.begin(KEY, [page(1)], 16);
        arrive_ahead(&cache, 1);
        let old = Bytes::from_static(b"old");
        cache.put(KEY, page(1), version(1), version(2), old);
        assert!(cache.ahead.has(KEY, page(1)));
    }

    #[test]
    fn another_database_never_answers() {
        let cache = PageCache::new(1 << 20);
        cache.put(
            KEY,
            page(1),
            version(1),
            version(1),
            Bytes::from_static(b"x"),
        );
        assert!(
            cache
                .get(CacheKey(2), page(1), version(1), &ChangeLog::default())
                .is_none()
        );
    }

    /// Puts pages that nobody asks for a second time, as a scan does.
    fn scan(cache: &PageCache, numbers: std::ops::Range<u32>) {
        for number in numbers {
            cache.put(
                KEY,
                page(number),
                version(1),
                version(1),
                Bytes::from(vec![0; 4096]),
            );
        }
    }

    #[test]
    fn a_hot_set_survives_a_scan_of_ten_times_the_cache() {
        let limit: u32 = 16 << 20;
        let cache = PageCache::new(u64::from(limit));
        let log = ChangeLog::new(version(1));
        let here = |number| cache.get(KEY, page(number), version(1), &log).is_some();
        let hot = 1..1_001;
        scan(&cache, hot.clone());
        // Asked for again, now and then: what makes it hot.
        for _ in 0..2 {
            assert!(hot.clone().all(here));
        }
        let mut missing = 0;
        let pages = 10 * limit / 4096;
        for part in 0..10 {
            scan(
                &cache,
                10_000 + part * pages / 10..10_000 + (part + 1) * pages / 10,
            );
            missing += hot.clone().filter(|number| !here(*number)).count();
        }
        assert!(
            missing <= 10,
            "{missing} of the hot pages went, of 10,000 looks"
        );
    }

    #[test]
    fn a_hot_set_survives_one_scan_during_which_nobody_looks_at_it() {
        let limit: u32 = 16 << 20;
        let cache = PageCache::new(u64::from(limit));
        let log = ChangeLog::new(version(1));
        let here = |number| cache.get(KEY, page(number), version(1), &log).is_some();
        let hot = 1..1_001;
        scan(&cache, hot.clone());
        for _ in 0..2 {
            assert!(hot.clone().all(here));
        }
        scan(&cache, 10_000..10_000 + 10 * limit / 4096);
        let left = hot.filter(|number| here(*number)).count();
        assert!(left >= 950, "{left} of 1,000 hot pages are left");
    }

    /// Found by reading: an answer that was on its way while the disk cache looked further ahead said of a page that it had changed last in an
    /// older version, and the old page was taken for the newest.
    #[test]
    fn what_is_told_late_takes_nothing_back() {
        let mut log = ChangeLog::new(version(10));
        let mut further = ChangeLog::new(version(10));
        assert!(
            further
                .advance(version(20), &Changes::Pages(vec![page(7)]))
                .is_none()
        );
        assert!(log.join(&further));
        assert!(
            log.advance(version(15), &Changes::Pages(vec![page(7), page(8)]))
                .is_none()
        );
        assert_eq!(log.head(), version(20));
        assert!(!log.unchanged(page(7), version(15), version(20)));
        assert!(log.unchanged(page(8), version(15), version(20)));
    }

    #[test]
    fn the_cache_stays_within_its_bytes() {
        let cache = PageCache::new(1 << 20);
        for number in 1..10_000 {
            cache.put(
                KEY,
                page(number),
                version(1),
                version(1),
                Bytes::from(vec![0; 4096]),
            );
        }
        assert!(cache.entries.weight() <= 1 << 20);
    }
}
