//! Pages fetched ahead of their reader: on their way, or here and not read yet.
//!
//! They lie beside the cache so that a page can't be evicted before it was read, and so that what was fetched for nothing is
//! known exactly. Shared by all connections of a client: what one fetches ahead serves all.
//!
//! ```text
//!            begin             arrived            take
//!   nothing --------> UnderWay ---------> Here ---------> the cache (hit)
//!                        |                  |   abandon
//!                        | failed           +-----------> the cache (waste)
//!                        |                  |   the cache has it from elsewhere
//!                        +-----> nothing <--+             (waste)
//! ```
//! * **F1** A page taken from here is as right as one from the cache: it holds from the version that wrote it up to the one at
//!   which it was read, and later only if the change log says so.
//! * **F2** Bytes here and under way together stay within the limit: beyond it nothing is begun.
//! * **F3** Whoever waits for a page is woken when its call ends, well or badly, and by his deadline.
//! * **F4** Every page begun ends as a hit, as waste, or failed: `fetched = hits + waste + what lies here`.
//! * **F5** What the cache has got in another way does not lie here as well: its reader finds it there, and nobody would ever take
//!   it from here.
//! * **F6** Nothing lies here for a snapshot that has ended: its reader may never come back, and the room is everybody's. So what a
//!   connection has not read by then goes to the cache, where it is found as long as it holds.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use pagewire_proto::{PageNumber, Version};
use parking_lot::{Condvar, Mutex};
use quick_cache::DefaultHashBuilder;

use super::{CacheKey, ChangeLog, Entry};
use crate::client::counters::PREFETCH;

/// See the file's header.
pub struct Ahead {
    inner: Mutex<Inner>,
    call_ended: Condvar,
    limit: u64,
}

#[derive(Default)]
struct Inner {
    slots: HashMap<(CacheKey, PageNumber), Slot, DefaultHashBuilder>,
    bytes: u64,
}

struct Slot {
    /// Reserved, as long as the slot is there.
    bytes: u64,
    state: SlotState,
}

enum SlotState {
    UnderWay,
    /// Nobody wants it any more: it goes to the cache when it comes.
    Abandoned,
    Here(Entry),
}

/// What became of a wish for a page.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was here.
    Here(TakenPage),
    /// Its call is under way.
    UnderWay,
    /// Nobody has asked for it.
    Nothing,
}

/// A page that has come, with a memory of its own.
pub struct CamePage {
    /// Which.
    pub number: PageNumber,
    /// The version that wrote it.
    pub from: Version,
    /// Its bytes.
    pub content: Bytes,
}

/// A page on its way into the cache.
#[derive(Debug, PartialEq, Eq)]
pub struct TakenPage {
    /// The version that wrote it.
    pub from: Version,
    /// The version at which it was read.
    pub upto: Version,
    /// Its bytes.
    pub content: Bytes,
}

impl From<Entry> for TakenPage {
    fn from(entry: Entry) -> Self {
        Self {
            from: entry.from,
            upto: entry.upto,
            content: entry.content,
        }
    }
}

impl Ahead {
    /// At most so many bytes.
    pub fn new(limit: u64) -> Self {
        Self {
            inner: Mutex::default(),
            call_ended: Condvar::new(),
            limit,
        }
    }

    /// F2.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many of these bytes are left.
    pub fn room(&self) -> u64 {
        self.limit.saturating_sub(self.inner.lock().bytes)
    }

    /// Reserves room for pages that somebody is about to ask for. Returns those that may be asked for: not yet here or under way,
    /// and within the limit.
    pub fn begin(
        &self,
        key: CacheKey,
        pages: impl IntoIterator<Item = PageNumber>,
        page_bytes: u64,
    ) -> Vec<PageNumber> {
        let mut inner = self.inner.lock();
        let mut begun = Vec::new();
        for page in pages {
            if inner.bytes + page_bytes > self.limit {
                break;
            }
            if inner.slots.contains_key(&(key, page)) {
                continue;
            }
            inner.slots.insert(
                (key, page),
                Slot {
                    bytes: page_bytes,
                    state: SlotState::UnderWay,
                },
            );
            inner.bytes += page_bytes;
            begun.push(page);
        }
        begun
    }

    /// Pages that were begun have come. Returns those that nobody wants any more.
    pub(super) fn arrived(
        &self,
        key: CacheKey,
        upto: Version,
        came: impl IntoIterator<Item = CamePage>,
    ) -> Vec<(PageNumber, TakenPage)> {
        let mut unwanted = Vec::new();
        let (mut fetched, mut wasted) = (0, 0);
        let mut inner = self.inner.lock();
        for CamePage {
            number,
            from,
            content,
        } in came
        {
            fetched += 1;
            let entry = Entry::read(from, upto, content);
            match inner
                .slots
                .get_mut(&(key, number))
                .map(|slot| &mut slot.state)
            {
                Some(state @ SlotState::UnderWay) => *state = SlotState::Here(entry),
                Some(SlotState::Abandoned) => {
                    inner.remove(key, number);
                    wasted += 1;
                    unwanted.push((number, entry.into()));
                }
                // Its version came twice, or it was never begun: what is here already is as good.
                Some(SlotState::Here(_)) | None => wasted += 1,
            }
        }
        drop(inner);
        PREFETCH.fetched(fetched);
        PREFETCH.wasted(wasted);
        unwanted
    }

    /// A call has ended: those of its pages that have not come never will, and whoever waits looks again (F3).
    pub fn call_ended(&self, key: CacheKey, not_come: &[PageNumber]) {
        let mut inner = self.inner.lock();
        for page in not_come {
            let came = matches!(
                inner.slots.get(&(key, *page)),
                None | Some(Slot {
                    state: SlotState::Here(_),
                    ..
                })
            );
            if !came {
                inner.remove(key, *page);
            }
        }
        drop(inner);
        self.call_ended.notify_all();
    }

    /// Takes the page out, if it is here and holds at the version.
    pub fn take(&self, key: CacheKey, page: PageNumber, at: Version, log: &ChangeLog) -> Taken {
        let mut inner = self.inner.lock();
        match inner
            .slots
            .get_mut(&(key, page))
            .map(|slot| &mut slot.state)
        {
            None => Taken::Nothing,
            Some(SlotState::UnderWay) => Taken::UnderWay,
            Some(state @ SlotState::Abandoned) => {
                // Somebody wants it after all.
                *state = SlotState::UnderWay;
                Taken::UnderWay
            }
            Some(SlotState::Here(entry)) => {
                let holds = entry.holds(page, at, log);
                match inner.remove(key, page) {
                    Some(SlotState::Here(entry)) if holds => {
                        PREFETCH.hit();
                        Taken::Here(entry.into())
                    }
                    _ => {
                        PREFETCH.wasted(1);
                        Taken::Nothing
                    }
                }
            }
        }
    }

    /// F5: the cache has the page, of which `covers` says whether it is as good as one that holds at a version.
    pub(super) fn superseded(
        &self,
        key: CacheKey,
        page: PageNumber,
        covers: impl FnOnce(Version) -> bool,
    ) {
        let mut inner = self.inner.lock();
        let is_superseded = match inner.slots.get(&(key, page)).map(|slot| &slot.state) {
            Some(SlotState::Here(entry)) => covers(entry.upto),
            // It is looked at when it comes.
            Some(SlotState::UnderWay | SlotState::Abandoned) | None => false,
        };
        if is_superseded {
            inner.remove(key, page);
            PREFETCH.wasted(1);
        }
    }

    /// Waits until the call that brings the page has ended (F3). The caller looks again, or asks himself.
    pub fn wait(&self, key: CacheKey, page: PageNumber, deadline: Instant) {
        let mut inner = self.inner.lock();
        while matches!(
            inner.slots.get(&(key, page)),
            Some(Slot {
                state: SlotState::UnderWay | SlotState::Abandoned,
                ..
            })
        ) {
            if self.call_ended.wait_until(&mut inner, deadline).timed_out() {
                return;
            }
        }
    }

    /// The bytes of a page that is here, for whoever plans ahead: it stays here.
    pub fn peek(
        &self,
        key: CacheKey,
        page: PageNumber,
        at: Version,
        log: &ChangeLog,
    ) -> Option<Bytes> {
        match &self.inner.lock().slots.get(&(key, page))?.state {
            SlotState::Here(entry) if entry.holds(page, at, log) => Some(entry.content.clone()),
            SlotState::Here(_) | SlotState::UnderWay | SlotState::Abandoned => None,
        }
    }

    /// Whether the page is here or under way.
    pub fn has(&self, key: CacheKey, page: PageNumber) -> bool {
        self.inner.lock().slots.contains_key(&(key, page))
    }

    /// Nobody will read these pages: they make room. Returns those that were here, for the cache.
    pub fn abandon(
        &self,
        key: CacheKey,
        pages: impl IntoIterator<Item = PageNumber>,
    ) -> Vec<(PageNumber, TakenPage)> {
        let mut inner = self.inner.lock();
        let mut were_here = Vec::new();
        for page in pages {
            match inner
                .slots
                .get_mut(&(key, page))
                .map(|slot| &mut slot.state)
            {
                None => {}
                Some(state @ (SlotState::UnderWay | SlotState::Abandoned)) => {
                    *state = SlotState::Abandoned;
                }
                Some(SlotState::Here(_)) => {
                    if let Some(SlotState::Here(entry)) = inner.remove(key, page) {
                        PREFETCH.wasted(1);
                        were_here.push((page, entry.into()));
                    }
                }
            }
        }
        were_here
    }

    /// A database is closed: nothing of it is wanted any more.
    pub fn forget(&self, key: CacheKey) {
        let mut inner = self.inner.lock();
        let pages: Vec<_> = inner
            .slots
            .keys()
            .filter(|(of, _)| *of == key)
            .map(|(_, page)| *page)
            .collect();
        for page in pages {
            if let Some(SlotState::Here(_)) = inner.remove(key, page) {
                PREFETCH.wasted(1);
            }
        }
    }
}

impl Inner {
    fn remove(&mut self, key: CacheKey, page: PageNumber) -> Option<SlotState> {
        let slot = self.slots.remove(&(key, page))?;
        self.bytes -= slot.bytes;
        Some(slot.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagewire_proto::Changes;
    use std::time::Duration;

    const KEY: CacheKey = CacheKey(1);
    const AT: Version = Version::new(5);

    fn page(number: u32) -> PageNumber {
        PageNumber::try_from(number).unwrap()
    }

    fn pages(numbers: std::ops::Range<u32>) -> Vec<PageNumber> {
        numbers.map(page).collect()
    }

    fn arrive(ahead: &Ahead, number: u32) -> Option<TakenPage> {
        let came = CamePage {
            number: page(number),
            from: Version::new(3),
            content: Bytes::from(vec![number as u8; 16]),
        };
        let unwanted = ahead.arrived(KEY, AT, [came]).pop();
        unwanted.map(|(_, taken)| taken)
    }

    #[test]
    fn f1_a_page_that_was_changed_since_is_not_given() {
        let ahead = Ahead::new(1 << 20);
        let mut log = ChangeLog::new(AT);
        ahead.begin(KEY, pages(7..9), 16);
        arrive(&ahead, 7);
        arrive(&ahead, 8);
        log.advance(Version::new(6), &Changes::Pages(vec![page(7)]));
        assert_eq!(
            ahead.take(KEY, page(7), Version::new(6), &log),
            Taken::Nothing
        );
        let Taken::Here(taken) = ahead.take(KEY, page(8), Version::new(6), &log) else {
            panic!("page 8 did not change");
        };
        assert_eq!((taken.from, taken.upto), (Version::new(3), AT));
    }

    #[test]
    fn f2_nothing_is_begun_beyond_the_limit() {
        let ahead = Ahead::new(64);
        assert_eq!(ahead.begin(KEY, pages(1..10), 16), pages(1..5));
        assert!(ahead.begin(KEY, pages(20..21), 16).is_empty());
        arrive(&ahead, 1);
        assert!(ahead.begin(KEY, pages(20..21), 16).is_empty());
        assert!(matches!(
            ahead.take(KEY, page(1), AT, &ChangeLog::new(AT)),
            Taken::Here(_)
        ));
        assert_eq!(ahead.begin(KEY, pages(20..22), 16), pages(20..21));
        assert!(
            Ahead::new(0).begin(KEY, pages(1..2), 16).is_empty(),
            "a cache of no bytes fetches nothing ahead"
        );
    }

    #[test]
    fn a_page_is_asked_for_once() {
        let ahead = Ahead::new(1 << 20);
        assert_eq!(ahead.begin(KEY, pages(1..4), 16), pages(1..4));
        assert_eq!(ahead.begin(KEY, pages(2..6), 16), pages(4..6));
        assert_eq!(
            ahead.begin(CacheKey(2), pages(2..3), 16),
            pages(2..3),
            "of another database"
        );
    }

    #[test]
    fn f3_who_waits_is_woken_by_the_failure_of_the_call_too() {
        let ahead = Ahead::new(1 << 20);
        ahead.begin(KEY, pages(1..3), 16);
        let far = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                ahead.wait(KEY, page(2), far);
                ahead.take(KEY, page(2), AT, &ChangeLog::new(AT))
            });
            arrive(&ahead, 1);
            ahead.call_ended(KEY, &pages(1..3));
            assert_eq!(waiting.join().unwrap(), Taken::Nothing);
        });
        assert!(ahead.has(KEY, page(1)), "the one that came stays");
    }

    #[test]
    fn f3_who_waits_gives_up_at_his_deadline() {
        let ahead = Ahead::new(1 << 20);
        ahead.begin(KEY, pages(1..2), 16);
        ahead.wait(KEY, page(1), Instant::now() + Duration::from_millis(5));
        let log = ChangeLog::new(AT);
        assert_eq!(ahead.take(KEY, page(1), AT, &log), Taken::UnderWay);
    }

    #[test]
    fn f4_what_was_abandoned_on_its_way_goes_to_the_cache_when_it_comes() {
        let ahead = Ahead::new(1 << 20);
        ahead.begin(KEY, pages(1..4), 16);
        arrive(&ahead, 1);
        let here = ahead.abandon(KEY, pages(1..4));
        assert_eq!(here.len(), 1);
        assert!(arrive(&ahead, 2).is_some());
        // Wanted again before it came.
        assert_eq!(
            ahead.take(KEY, page(3), AT, &ChangeLog::new(AT)),
            Taken::UnderWay
        );
        assert!(arrive(&ahead, 3).is_none());
        assert!(matches!(
            ahead.take(KEY, page(3), AT, &ChangeLog::new(AT)),
            Taken::Here(_)
        ));
        assert_eq!(ahead.inner.lock().bytes, 0);
    }
}
