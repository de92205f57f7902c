//! Pages of a database at one snapshot: out of the cache, from among those fetched ahead, or from the server.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::limits::{MAX_HOT_PAGES, MAX_READ_PAGES};
use pagewire_proto::{Page, PageNumber, PageSize, Snapshot, Version};
use tokio::time::Instant;

use super::{Database, DatabaseState};
use crate::cache::{CacheKey, CamePage, PageCache, Taken, TakenPage};
use crate::client::counters::{COUNTERS, CallKind};
use crate::error::{Error, Result};
use crate::prefetch::{self, CALL_BYTES, Came, HotPages, Pages};

/// Byte of page 1 that says how many bytes are reserved at the end of each page (SQLite file format, 1.3.4).
const RESERVED_BYTE: usize = 20;

/// See the file's header.
pub struct View<'a> {
    database: &'a Database,
    snapshot: &'a Snapshot,
    page_size: PageSize,
    timeout: Duration,
    /// Until when a page may be waited for, however that is done: set by the first wait.
    deadline: OnceCell<Instant>,
}

impl Database {
    /// The pages of a snapshot, for one read that may wait for so long.
    pub fn view<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        page_size: PageSize,
        timeout: Duration,
    ) -> View<'a> {
        View {
            database: self,
            snapshot,
            page_size,
            timeout,
            deadline: OnceCell::new(),
        }
    }

    /// Nobody will read these at the version for which they were asked for ahead.
    pub fn abandon_pages(&self, pages: Vec<u32>) {
        let cache = &self.client.cache;
        let pages = pages.into_iter().filter_map(number);
        for (page, taken) in cache.ahead.abandon(self.state.key, pages) {
            self.put(page, taken.from, taken.upto, taken.content);
        }
    }

    /// Remembers a page that was read at `upto` and written at `from`, here and on disk.
    pub(super) fn put(&self, page: PageNumber, from: Version, upto: Version, content: Bytes) {
        self.keep_on_disk(page, from, upto, &content);
        self.client
            .cache
            .put(self.state.key, page, from, upto, content);
    }
}

impl Database {
    /// What a connection has read.
    pub fn note_hot_pages(&self, hot: &HotPages) {
        self.hot.lock().merge(hot);
    }

    /// The hot list: the pages of a schema that is larger than page 1, and then interior pages.
    pub(super) fn hot_pages(&self) -> Vec<u32> {
        let mut hot = self.schema_pages();
        hot.extend(self.hot.lock().list(MAX_HOT_PAGES));
        hot.truncate(MAX_HOT_PAGES);
        hot
    }

    fn schema_pages(&self) -> Vec<u32> {
        let head = self.state.head();
        let Some(content) = self.cached_page(&head, PageNumber::FIRST) else {
            return Vec::new();
        };
        prefetch::children_of(PageNumber::FIRST.get(), &content)
    }
}

impl View<'_> {
    fn key(&self) -> CacheKey {
        self.database.state.key
    }

    fn cache(&self) -> &Arc<PageCache> {
        &self.database.client.cache
    }

    fn deadline(&self) -> Instant {
        *self.deadline.get_or_init(|| Instant::now() + self.timeout)
    }

    /// The page, if it does not have to be asked for: it may be waited for, and that counts as a round trip.
    pub fn page_at_hand(
        &self,
        page: PageNumber,
        before_wait: impl FnOnce(),
    ) -> Option<(Bytes, Came)> {
        self.page_in_memory(page, before_wait).or_else(|| {
            let content = self.page_on_disk(page)?;
            self.look_at(page, &content);
            Some((content, Came::AtOnce))
        })
    }

    /// The page out of a file of this machine; it is in the cache from then on.
    fn page_on_disk(&self, page: PageNumber) -> Option<Bytes> {
        let (database, snapshot) = (self.database, self.snapshot);
        // Without one nobody looks at a clock.
        database.client.disk.as_ref()?;
        database.page_on_disk(snapshot, self.page_size, page, self.deadline())
    }

    /// What does not have to be asked for, of pages that nobody waits for yet, is fetched from disk and left out.
    fn not_on_disk(&self, pages: Vec<u32>) -> Vec<PageNumber> {
        let most = self.cache().ahead.limit() / u64::from(self.page_size.get());
        // All at once: whoever takes them may hold a lock that putting a page into the cache needs.
        pages
            .into_iter()
            .filter_map(number)
            .take(usize::try_from(most).unwrap_or(usize::MAX))
            .filter(|page| self.page_on_disk(*page).is_none())
            .collect()
    }

    fn page_in_memory(
        &self,
        page: PageNumber,
        before_wait: impl FnOnce(),
    ) -> Option<(Bytes, Came)> {
        if let Some(content) = self.database.cached_page(self.snapshot, page) {
            return Some((content, Came::AtOnce));
        }
        let mut came = Came::AtOnce;
        let mut before_wait = Some(before_wait);
        let taken = loop {
            let taken = {
                let log = self.database.state.log.read();
                let ahead = &self.cache().ahead;
                ahead.take(self.key(), page, self.snapshot.version, &log)
            };
            match taken {
                Taken::Here(taken) => break taken,
                // While this reader waited it may have gone to the cache: given up by whoever had asked for it, or put there
                // by another.
                Taken::Nothing if came == Came::Late => {
                    let content = self.database.cached_page(self.snapshot, page)?;
                    return Some((content, came));
                }
                Taken::Nothing => return None,
                Taken::UnderWay if Instant::now() >= self.deadline() => return None,
                Taken::UnderWay => {
                    COUNTERS.waited(CallKind::Read);
                    came = Came::Late;
                    if let Some(before_wait) = before_wait.take() {
                        before_wait();
                    }
                    let deadline = self.deadline().into_std();
                    self.cache().ahead.wait(self.key(), page, deadline);
                }
            }
        };
        let content = taken.content.clone();
        self.put(page, taken);
        self.look_at(page, &content);
        Some((content, came))
    }

    /// The roots that shall come along with a page that is not here.
    pub fn roots_along(&self, page: PageNumber) -> Vec<u32> {
        self.database.roots.lock().miss(self, page.get())
    }

    /// The page from the server, and others along with it. Empty content is a page that was never written.
    pub fn fetch(&self, page: PageNumber, along: Vec<u32>) -> Result<Bytes> {
        let database = self.database;
        database.state.check()?;
        let mut along = self.not_on_disk(along);
        along.truncate(MAX_READ_PAGES - 1);
        let page_bytes = u64::from(self.page_size.get());
        let along = self.cache().ahead.begin(self.key(), along, page_bytes);
        let mut asked = vec![page];
        asked.extend_from_slice(&along);
        let ahead = PagesAhead {
            cache: Arc::clone(self.cache()),
            state: Arc::clone(&database.state),
            pages: along,
        };
        let deadline = self.deadline();
        let core = &database.client.core;
        let received = database.call(deadline, || {
            core.read_pages(database.state.id(), *self.snapshot, asked.clone(), deadline)
        })?;
        // A store that was replaced meanwhile may have answered with a version of its own.
        database.state.check()?;
        let mut received = received.into_iter();
        let Some(first) = received.next() else {
            return Err(Error::io(format!(
                "{}: the server sent no page",
                database.describe()
            )));
        };
        let taken = TakenPage {
            from: first.version,
            upto: self.snapshot.version,
            content: first.content,
        };
        let content = taken.content.clone();
        self.put(page, taken);
        ahead.arrived(received, self.snapshot);
        self.look_at(page, &content);
        Ok(content)
    }

    fn put(&self, page: PageNumber, taken: TakenPage) {
        self.database
            .put(page, taken.from, taken.upto, taken.content);
    }

    fn look_at(&self, page: PageNumber, content: &[u8]) {
        if page == PageNumber::FIRST
            && let Some(reserved) = content.get(RESERVED_BYTE)
        {
            self.database.reserved.store(*reserved, Ordering::Relaxed);
        }
    }

    /// Asks for pages without waiting for them.
    fn request_part(&self, pages: Vec<PageNumber>) {
        let database = self.database;
        let mut ahead = PagesAhead {
            cache: Arc::clone(self.cache()),
            state: Arc::clone(&database.state),
            pages,
        };
        let core = Arc::clone(&database.client.core);
        let snapshot = *self.snapshot;
        let timeout = self.timeout;
        database.client.spawn_urgent(async move {
            let deadline = Instant::now() + timeout;
            while !ahead.pages.is_empty() {
                let call =
                    core.read_pages_ahead(ahead.state.id(), snapshot, &ahead.pages, deadline);
                // Whoever needs them asks himself, and hears what is wrong.
                let Ok(received) = call.await else { return };
                if ahead.state.check().is_err() {
                    return;
                }
                let count = received.len();
                ahead.arrived(received.into_iter(), &snapshot);
                ahead.pages.drain(..count);
            }
        });
    }
}

impl Pages for View<'_> {
    fn content(&self, page: u32) -> Option<Bytes> {
        let page = number(page)?;
        self.database.cached_page(self.snapshot, page).or_else(|| {
            let log = self.database.state.log.read();
            let ahead = &self.cache().ahead;
            ahead.peek(self.key(), page, self.snapshot.version, &log)
        })
    }

    fn is_known(&self, page: u32) -> bool {
        number(page).is_some_and(|page| {
            self.cache().ahead.has(self.key(), page)
                || self.database.cached_page(self.snapshot, page).is_some()
        })
    }

    fn request(&self, pages: Vec<u32>) {
        let pages = self.not_on_disk(pages);
        let page_bytes = u64::from(self.page_size.get());
        let pages = self.cache().ahead.begin(self.key(), pages, page_bytes);
        let most = (CALL_BYTES / self.page_size.bytes()).clamp(1, MAX_READ_PAGES);
        // In parts of one size: an interior page beside a whole call would be a call by itself.
        let part = pages.len().div_ceil(pages.len().div_ceil(most).max(1));
        for part in pages.chunks(part.max(1)) {
            self.request_part(part.to_vec());
        }
    }

    fn abandon(&self, pages: Vec<u32>) {
        self.database.abandon_pages(pages);
    }

    fn page_count(&self) -> u32 {
        self.snapshot.page_count.get()
    }

    fn page_bytes(&self) -> usize {
        self.page_size.bytes()
    }

    fn reserved(&self) -> u8 {
        self.database.reserved.load(Ordering::Relaxed)
    }

    fn window_limit(&self) -> u64 {
        let link = &self.database.client.core.link;
        link.window(self.cache().ahead.limit())
    }

    fn room(&self) -> u64 {
        self.cache().ahead.room()
    }

    fn first_window(&self) -> u64 {
        self.database.client.core.link.first_window()
    }
}

/// Pages of a call; when it ends, those that have not come are given up.
struct PagesAhead {
    cache: Arc<PageCache>,
    state: Arc<DatabaseState>,
    pages: Vec<PageNumber>,
}

impl PagesAhead {
    fn arrived(&self, received: impl Iterator<Item = Page>, snapshot: &Snapshot) {
        let key = self.state.key;
        let came = received.map(|page| CamePage {
            number: page.number,
            from: page.version,
            content: page.content,
        });
        self.cache
            .arrived_ahead(key, snapshot.version, came.collect());
        self.cache.ahead.call_ended(key, &[]);
    }
}

impl Drop for PagesAhead {
    fn drop(&mut self) {
        self.cache.ahead.call_ended(self.state.key, &self.pages);
    }
}

fn number(page: u32) -> Option<PageNumber> {
    PageNumber::try_from(page).ok()
}
