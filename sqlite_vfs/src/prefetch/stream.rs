//! One stream of pages: a plan, the pages of it that were not read yet, and how many those may be.

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use super::chains::Chains;
use super::lookups::Lookups;
use super::walk::Walk;
use super::{Asks, CALL_BYTES, Pages, Step};

/// By how much a window grows at a time, and how much larger it may be than what has been read (R3).
const GROWTH: usize = 4;
/// Up to here a window grows although nobody had to wait: the next wait is dearer than some pages.
const EASY_WINDOW: usize = 32;
/// SQLite may pass over so many pages of a plan that is not in the order of reading.
const SLACK: usize = 64;

/// A stream is over when so many pages in a row were read that it did not foresee: between two leaves lies perhaps a row of some
/// megabytes. A page that no other stream foresaw either counts for more.
const PATIENCE: u32 = 4096;
const MISS_WEIGHT: u32 = 64;

/// How often a plan looks into pages while a window is filled (R5): for each page that it gives, and besides, for rows that were put off.
const LOOKS_OF_A_PAGE: usize = 8;
const LOOKS: usize = 1536;

/// Where the pages of a stream come from.
#[derive(Debug)]
pub enum Plan {
    /// Leaves of a b-tree.
    Walk(Walk),
    /// Overflow pages.
    Chains(Chains),
    /// Leaves of a table by the rowids of an index.
    Lookups(Lookups),
    /// Pages by their numbers, this one next.
    Run(u32),
}

impl Plan {
    fn next(&mut self, window: usize, room: usize, pages: &impl Pages) -> Step {
        match self {
            Self::Walk(walk) => walk.next(pages),
            Self::Chains(chains) => chains.next(window, pages),
            Self::Lookups(lookups) => lookups.next(room, pages),
            Self::Run(next) if *next > pages.page_count() => Step::End,
            Self::Run(next) => {
                *next += 1;
                Step::Page(*next - 1)
            }
        }
    }

    /// Pages that it will give before all others, as soon as it knows them.
    fn put_off(&self) -> usize {
        match self {
            Self::Lookups(lookups) => lookups.put_off(),
            Self::Walk(_) | Self::Chains(_) | Self::Run(_) => 0,
        }
    }

    /// A window begins to be filled. Returns pages that it gave and that have turned out not to be what comes.
    fn begin(&mut self, pages: &impl Pages) -> Vec<u32> {
        match self {
            Self::Chains(chains) => chains.check(pages),
            Self::Lookups(lookups) => {
                lookups.begin();
                Vec::new()
            }
            Self::Walk(_) | Self::Run(_) => Vec::new(),
        }
    }

    /// Pages that name others, to be here before the window gets to what they name.
    fn interior_pages(&mut self, window: usize, pages: &impl Pages) -> Vec<u32> {
        match self {
            Self::Walk(walk) => walk.interior_pages(window, pages),
            Self::Chains(chains) => chains.interior_pages(window, pages),
            Self::Lookups(lookups) => lookups.interior_pages(pages),
            Self::Run(_) => Vec::new(),
        }
    }

    /// Whether pages are read in the order of the plan, apart from some that are left out.
    fn is_ordered(&self) -> bool {
        match self {
            Self::Walk(_) | Self::Run(_) => true,
            Self::Chains(_) | Self::Lookups(_) => false,
        }
    }
}

/// See the file's header.
#[derive(Debug)]
pub struct Stream {
    /// What comes.
    pub plan: Plan,
    first_window: usize,
    window: usize,
    /// Pages read, altogether and since the window grew.
    read_so_far: usize,
    confirmed: usize,
    /// Planned and not read; `order` may have some that were read.
    unread: HashSet<u32>,
    order: VecDeque<u32>,
    /// Asked for beside them: interior pages.
    beside: HashSet<u32>,
    /// Planned, and passed over by the reader.
    passed: usize,
    /// How long nobody has read of it, see [`Stream::is_over`].
    idle: u32,
}

impl Stream {
    /// A stream of which nothing was asked for yet.
    pub fn new(plan: Plan, window: usize) -> Self {
        Self {
            plan,
            first_window: window,
            window,
            read_so_far: 0,
            confirmed: 0,
            unread: HashSet::new(),
            order: VecDeque::new(),
            beside: HashSet::new(),
            passed: 0,
            idle: 0,
        }
    }

    /// SQLite reads a page; `true` if it is one of this stream.
    pub fn read(&mut self, pages: &impl Pages, page: u32, stalled: bool, asks: &mut Asks) -> bool {
        if !self.unread.remove(&page) {
            let is_beside = self.beside.remove(&page);
            if is_beside && self.plan.put_off() > 0 {
                self.fill(pages, asks);
            }
            return is_beside;
        }
        self.idle = 0;
        let passed = self.pass(page);
        if !passed.is_empty() {
            self.passed += passed.len();
            self.window = self.window.saturating_sub(passed.len()).max(1);
            asks.given_up.extend(passed);
        }
        self.read_so_far += 1;
        self.confirmed += 1;
        if stalled || (self.confirmed * 2 >= self.window && self.window < EASY_WINDOW) {
            self.grow(pages);
        }
        if self.unread.len() <= self.few(pages) {
            self.fill(pages, asks);
        }
        true
    }

    /// So many unread pages are few enough to ask for more: by whole calls, or by halves where the window has not two of them, since each call costs as
    /// much as some pages.
    fn few(&self, pages: &impl Pages) -> usize {
        if self.window < EASY_WINDOW {
            return self.window / 2;
        }
        let call = CALL_BYTES / pages.page_bytes().max(1);
        self.window - call.clamp(1, self.window / 2)
    }

    /// SQLite is about to wait for a page that is on its way; `true` if it is one of this stream. What the window has grown by goes out before the
    /// wait, not after it: a round trip earlier.
    pub fn stalls(&mut self, pages: &impl Pages, page: u32, asks: &mut Asks) -> bool {
        let is_ours = self.unread.contains(&page);
        if is_ours {
            self.grow(pages);
            // A small call besides those is worth it only where there is some room.
            let room = self.window.saturating_sub(self.unread.len());
            if room >= EASY_WINDOW || self.unread.len() <= self.few(pages) {
                self.fill(pages, asks);
            }
        }
        is_ours
    }

    /// Forgets what comes before a page in the order of the plan, or long before it. Returns what nobody has read.
    fn pass(&mut self, page: u32) -> Vec<u32> {
        let slack = if self.plan.is_ordered() { 0 } else { SLACK };
        let mut passed = Vec::new();
        if slack == 0 {
            while let Some(front) = self.order.pop_front()
                && front != page
            {
                if self.unread.remove(&front) {
                    passed.push(front);
                }
            }
            return passed;
        }
        while self
            .order
            .front()
            .is_some_and(|front| !self.unread.contains(front))
        {
            self.order.pop_front();
        }
        if self.order.len() > slack
            && let Some(place) = self.order.iter().position(|planned| *planned == page)
        {
            for _ in 0..place.saturating_sub(slack) {
                if let Some(front) = self.order.pop_front()
                    && self.unread.remove(&front)
                {
                    passed.push(front);
                }
            }
        }
        passed
    }

    /// R3, R4.
    fn grow(&mut self, pages: &impl Pages) {
        let most = (pages.window_limit() / pages.page_bytes().max(1) as u64) as usize;
        let earned = self.first_window
            + self
                .read_so_far
                .saturating_sub(self.passed)
                .saturating_mul(GROWTH);
        // What was asked for and passed over is of what all pages read were good for: a reader who leaves out most of it has soon used that up.
        let left = (self.first_window + self.read_so_far.saturating_mul(GROWTH))
            .saturating_sub(self.passed)
            .max(1);
        let grown = (self.window * GROWTH)
            .min(earned.min(left))
            .max(self.window);
        self.window = grown.min(most.max(1));
        self.confirmed = 0;
    }

    /// Plans up to the window (R5).
    pub fn fill(&mut self, pages: &impl Pages, asks: &mut Asks) {
        let pages = &Bounded {
            pages,
            looks: Cell::new(LOOKS_OF_A_PAGE * self.window + LOOKS),
        };
        let last = pages.page_count();
        let mut taken_back = self.plan.begin(pages);
        taken_back.retain(|page| self.unread.remove(page));
        asks.given_up.extend(taken_back);
        let mut steps = 2 * self.window + 16;
        // R4. Others have their wishes in `asks` already.
        let most_wanted = (pages.room() / pages.page_bytes().max(1) as u64) as usize;
        while self.unread.len() < self.window && asks.wanted.len() < most_wanted && steps > 0 {
            steps -= 1;
            let room = self.window - self.unread.len();
            match self.plan.next(self.window, room, pages) {
                Step::Page(page) if page == 0 || page > last => {}
                Step::Page(page) => {
                    let is_known = pages.is_known(page);
                    // Where the order is not that of reading, a page that is here may have been read already.
                    if (self.plan.is_ordered() || !is_known) && self.unread.insert(page) {
                        self.order.push_back(page);
                        if !is_known {
                            asks.wanted.push(page);
                        }
                    }
                }
                Step::Also(page) => self.ask_beside(page, pages, asks),
                Step::Needs(page) => {
                    self.ask_beside(page, pages, asks);
                    break;
                }
                Step::End => break,
            }
        }
        for page in self.plan.interior_pages(self.window, pages) {
            self.ask_beside(page, pages, asks);
        }
    }

    fn ask_beside(&mut self, page: u32, pages: &impl Pages, asks: &mut Asks) {
        let is_valid = page != 0 && page <= pages.page_count();
        if is_valid && !pages.is_known(page) && !asks.wanted.contains(&page) {
            self.beside.insert(page);
            asks.wanted.push(page);
        }
    }

    /// A page was read that it did not foresee; `missed` where no other stream did either.
    pub fn pass_over(&mut self, missed: bool) {
        self.idle += if missed { MISS_WEIGHT } else { 1 };
    }

    /// Whether its reader seems to have gone elsewhere.
    pub fn is_over(&self) -> bool {
        self.idle > PATIENCE
    }

    /// Whether it foresaw one of the last pages that had to be asked for.
    pub fn is_followed(&self) -> bool {
        self.idle < 4 * MISS_WEIGHT
    }

    /// How long nobody has read of it.
    pub fn idle(&self) -> u32 {
        self.idle
    }

    /// Another stream takes its place.
    pub fn retire(&mut self) {
        self.idle = PATIENCE + 1;
    }

    /// Whether the plan may know better by now: guesses were refuted, or what it waited for has come.
    pub fn may_revise(&self) -> bool {
        matches!(self.plan, Plan::Chains(_)) || self.plan.put_off() > 0
    }

    /// Pages of it that were read.
    pub fn read_so_far(&self) -> usize {
        self.read_so_far
    }

    /// Whether everything planned was read.
    pub fn is_read_out(&self) -> bool {
        self.unread.is_empty()
    }

    /// Whether a page was planned and not read yet.
    pub fn wants(&self, page: u32) -> bool {
        self.unread.contains(&page) || self.beside.contains(&page)
    }

    /// What was planned and not read yet.
    pub fn asked(&self) -> impl Iterator<Item = u32> {
        self.unread.iter().chain(&self.beside).copied()
    }

    /// What was planned and not read.
    pub fn unread(self) -> Vec<u32> {
        self.unread.into_iter().chain(self.beside).collect()
    }
}

/// Pages that can be looked into so many times and are not here any more after that: a plan waits for what is not here, and goes on when the
/// window is filled again. Pages that name one another over and over would keep it busy for ever.
struct Bounded<'a, P> {
    pages: &'a P,
    looks: Cell<usize>,
}

impl<P: Pages> Pages for Bounded<'_, P> {
    fn content(&self, page: u32) -> Option<Bytes> {
        self.looks.set(self.looks.get().checked_sub(1)?);
        self.pages.content(page)
    }

    fn is_known(&self, page: u32) -> bool {
        self.pages.is_known(page)
    }

    fn request(&self, pages: Vec<u32>) {
        self.pages.request(pages);
    }

    fn abandon(&self, pages: Vec<u32>) {
        self.pages.abandon(pages);
    }

    fn page_count(&self) -> u32 {
        self.pages.page_count()
    }

    fn page_bytes(&self) -> usize {
        self.pages.page_bytes()
    }

    fn reserved(&self) -> u8 {
        self.pages.reserved()
    }

    fn window_limit(&self) -> u64 {
        self.pages.window_limit()
    }

    fn room(&self) -> u64 {
        self.pages.room()
    }

    fn first_window(&self) -> u64 {
        self.pages.first_window()
    }
}
