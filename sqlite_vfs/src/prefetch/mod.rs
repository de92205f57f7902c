//! Reading ahead of SQLite, by what its pages say: which pages are next is known, not guessed, however scattered they lie.
//!
//! A connection has a [`Prefetcher`]. It sees each page that SQLite reads, recognises what is going on, and keeps a window of
//! reads in flight for each *stream* of pages that it has recognised:
//!
//! ```text
//!   what SQLite reads                                         stream
//!   two neighbouring children of an interior page             walk: the leaves that follow, in either direction
//!   the overflow page that a cell or an overflow page names   chains: the rest of it; from the second row on, those of the
//!                                                              rows that follow
//!   two leaves of a table for rowids of one index leaf        lookups: the leaves for the rowids that follow
//!   page n + 1 after page n                                   run: the pages that follow (backup)
//! ```
//! Beside the streams, the second root of a table or an index brings others along (`roots.rs`).
//! So table and index scans, `PRAGMA integrity_check` (which descends), `CREATE INDEX` and `VACUUM` are walks, with chains where
//! rows overflow.
//!
//! * **R1** Nothing here decides what SQLite reads: a wrong plan costs pages fetched for nothing, never a wrong answer.
//! * **R2** Nothing is fetched ahead before two reads have shown a pattern, so that point reads fetch what they need. The second root of a
//!   schema is such a pattern.
//! * **R3** A window grows only while its pages are read, at most by a factor of four at a time: what a stream has fetched for
//!   nothing when it ends is at most four times what it was good for, plus its first window. That one is larger the longer the way is: what
//!   comes in the time of a round trip anyway ([`Pages::first_window`]).
//!   It grows when the reader stalls, before he waits and again when that wait is over: what he reads in one round trip earns what is asked for in
//!   the same.
//! * **R4** A window is at most what the link needs (twice the bandwidth-delay product, four times as long as the rate rises, at least 1 MiB) and three
//!   quarters of what may lie ahead. It asks for no more than there is room for: what is planned and not asked for would be asked for page by page.
//! * **R5** Work is bounded, whatever the pages say: a read plans at most three windows, looks into some pages for each page planned, and looks for a
//!   pattern in at most `MAX_INTERIOR` pages.
//! * **R6** A page that is in the cache and in no stream costs some ten nanoseconds, and some forty where every second one is an interior page:
//!   11 and 36 ns of a processor by `cost.rs`, in the release profile.

#[cfg(not(feature = "fuzzing"))]
mod btree;
#[cfg(feature = "fuzzing")]
pub mod btree;
mod chains;
#[cfg(test)]
mod cost;
mod hot;
mod lookups;
mod patterns;
mod roots;
mod stream;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::HashSet;

use bytes::Bytes;

pub use hot::HotPages;
use patterns::Patterns;
pub use roots::Roots;
use stream::Stream;

/// Streams of a connection: cursors that SQLite moves in turn, as in a join.
const MAX_STREAMS: usize = 8;
/// The least first window of a stream, in pages.
const FIRST_WINDOW: usize = 4;
/// Bytes that may come along with a page that is waited for; what is more comes by calls of its own.
const ALONG_BYTES: usize = 128 << 10;

/// Bytes of pages in one call ahead. Pages of a call come together, so a reader that has to wait waits for all of them; and a call costs about as
/// much as ten pages do.
pub const CALL_BYTES: usize = 512 << 10;

/// What the prefetcher knows of the database and may ask of it, at one version.
pub trait Pages {
    /// The bytes of a page, if they are here.
    fn content(&self, page: u32) -> Option<Bytes>;
    /// Whether the page is here or on its way.
    fn is_known(&self, page: u32) -> bool;
    /// Asks for pages; returns at once.
    fn request(&self, pages: Vec<u32>);
    /// These will not be read.
    fn abandon(&self, pages: Vec<u32>);
    /// Number of the last page.
    fn page_count(&self) -> u32;
    /// Bytes of a page.
    fn page_bytes(&self) -> usize;
    /// Bytes reserved at the end of each page: byte 20 of page 1.
    fn reserved(&self) -> u8;
    /// Largest window in bytes (R4).
    fn window_limit(&self) -> u64;
    /// Bytes that may be asked for now: what others have asked for takes room too.
    fn room(&self) -> u64;
    /// Bytes that cost no more than a wait for one page more does, R3.
    fn first_window(&self) -> u64;
}

/// Which way a cursor goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards larger keys.
    Ascending,
    /// Towards smaller keys.
    Descending,
}

/// What a plan says when it is asked for the next page.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// SQLite will read this page.
    Page(u32),
    /// The plan needs this page beside those that it gives.
    Also(u32),
    /// The plan can't go on before the bytes of this page are here.
    Needs(u32),
    /// Nothing more.
    End,
}

/// How a page came to its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was in the cache, or had been fetched ahead and was here.
    AtOnce,
    /// Its call was under way, and the reader waited.
    Late,
}

/// What comes out of a read.
#[derive(Default)]
struct Asks {
    /// To be asked for.
    wanted: Vec<u32>,
    /// Asked for, and not wanted any more by the stream that did.
    given_up: Vec<u32>,
}

/// See the file's header.
#[derive(Default)]
pub struct Prefetcher {
    patterns: Patterns,
    streams: Vec<Stream>,
    /// Something was asked for since the last [`Prefetcher::asked`].
    has_asked: bool,
}

impl Prefetcher {
    /// SQLite reads a page that did not have to be asked for.
    pub fn read(&mut self, pages: &impl Pages, page: u32, content: &[u8], came: Came) {
        if !self.streams.is_empty() {
            let mut asks = Asks::default();
            self.advance(pages, page, came == Came::Late, &mut asks);
            self.settle(pages, asks);
        }
        self.patterns.note(page, content);
    }

    /// SQLite is about to wait for a page that is on its way; [`Prefetcher::read`] follows when it has come.
    pub fn stalls(&mut self, pages: &impl Pages, page: u32) {
        let mut asks = Asks::default();
        for stream in &mut self.streams {
            if stream.stalls(pages, page, &mut asks) {
                break;
            }
        }
        self.settle(pages, asks);
    }

    /// SQLite reads a page that has to be asked for now. Returns the pages that shall come along with it; more may have been asked
    /// for by the way.
    pub fn miss(&mut self, pages: &impl Pages, page: u32) -> Vec<u32> {
        let mut asks = Asks::default();
        let mut foreseen = self.advance(pages, page, true, &mut asks);
        if !foreseen && self.streams.iter().any(Stream::may_revise) {
            let revised = self.streams.iter_mut().filter(|stream| stream.may_revise());
            revised.for_each(|stream| stream.fill(pages, &mut asks));
            foreseen = self.advance(pages, page, true, &mut asks);
        }
        if !foreseen {
            for stream in &mut self.streams {
                stream.pass_over(true);
            }
            let (over, going_on) = std::mem::take(&mut self.streams)
                .into_iter()
                .partition(Stream::is_over);
            self.streams = going_on;
            self.give_up(pages, over.into_iter().flat_map(Stream::unread).collect());
            if let Some(plan) = self.patterns.recognise(pages, page, &mut self.streams) {
                if self.streams.len() >= MAX_STREAMS {
                    let idlest = (0..self.streams.len())
                        .max_by_key(|index| self.streams[*index].idle())
                        .unwrap_or(0);
                    let idlest = self.streams.remove(idlest);
                    self.give_up(pages, idlest.unread());
                }
                let first = pages.first_window().min(ALONG_BYTES as u64) as usize;
                let first = (first / pages.page_bytes().max(1)).max(FIRST_WINDOW);
                let mut stream = Stream::new(plan, first);
                stream.fill(pages, &mut asks);
                self.streams.push(stream);
            }
        }
        self.give_up(pages, asks.given_up);
        let mut wanted = asks.wanted;
        wanted.retain(|wanted| *wanted != page);
        self.once_and_still(&mut wanted);
        self.has_asked |= !wanted.is_empty();
        let along = wanted.len().min(ALONG_BYTES / pages.page_bytes().max(1));
        let rest = wanted.split_off(along);
        if !rest.is_empty() {
            pages.request(rest);
        }
        wanted
    }

    /// The page of the last [`Prefetcher::miss`] has come.
    pub fn came(&mut self, page: u32, content: &[u8]) {
        self.patterns.note(page, content);
    }

    /// Whether a stream had foreseen the page.
    fn advance(&mut self, pages: &impl Pages, page: u32, stalled: bool, asks: &mut Asks) -> bool {
        let mut foreseen = false;
        for stream in &mut self.streams {
            if stream.read(pages, page, stalled, asks) {
                foreseen = true;
            } else {
                stream.pass_over(false);
            }
        }
        foreseen
    }

    fn settle(&mut self, pages: &impl Pages, asks: Asks) {
        self.give_up(pages, asks.given_up);
        let mut wanted = asks.wanted;
        self.once_and_still(&mut wanted);
        if !wanted.is_empty() {
            self.has_asked = true;
            pages.request(wanted);
        }
    }

    /// Each once, and not what only a stream wanted that has ended meanwhile: nobody would give it up.
    fn once_and_still(&self, wanted: &mut Vec<u32>) {
        wanted.retain(|page| self.streams.iter().any(|stream| stream.wants(*page)));
        once(wanted);
    }

    /// What one stream has passed may be what another one waits for.
    fn give_up(&self, pages: &impl Pages, mut given_up: Vec<u32>) {
        given_up.retain(|page| !self.streams.iter().any(|stream| stream.wants(*page)));
        if !given_up.is_empty() {
            pages.abandon(given_up);
        }
    }

    /// The interior pages that were read.
    pub fn hot(&self) -> &HotPages {
        &self.patterns.hot
    }

    /// Returns what was asked for and not read, unless nothing was since the last time. The streams go on.
    pub fn asked(&mut self) -> Vec<u32> {
        if !std::mem::take(&mut self.has_asked) {
            return Vec::new();
        }
        self.streams.iter().flat_map(Stream::asked).collect()
    }

    /// Nobody reads on. Returns what was asked for and not read.
    pub fn end(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.streams)
            .into_iter()
            .flat_map(Stream::unread)
            .collect()
    }
}

/// Two streams may want the same page, and a plan a page that another one has named.
fn once(wanted: &mut Vec<u32>) {
    let mut seen = HashSet::with_capacity(wanted.len());
    wanted.retain(|page| seen.insert(*page));
}

/// The children of a page, if it is an interior page.
pub fn children_of(page: u32, content: &[u8]) -> Vec<u32> {
    match btree::TreePage::parse(page, content, 0) {
        Some(tree) => walk::children(&tree, 0..tree.children(), Direction::Ascending).into(),
        None => Vec::new(),
    }
}
