//! Merges: bounds how many segments a reader has to look into, in steps of bounded size behind the commits.
//!
//! The entries of the head fall into *runs*: neighbours in the order of which none has a page number of the others, ascending. A
//! page is in one entry of a run at most. A step takes the newest runs of which there are enough of about one size, and writes the
//! pages of a window of them (up to a segment) anew into one; what is left of each stays. By and by the runs become one larger
//! run: each page is written once for each fourfold of size. Small neighbours within a run are written together too.
//!
//! A step knows what it has read: it names its segment only if the entries are still those (I7, and `cut_out` of `state.rs`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagewire_proto::DatabaseId;
use pagewire_server::store::StoreError;

use crate::Inner;
use crate::cells::{Entry, State};
use crate::commit::{check_exists, page_size_of};
use crate::roots::Change;
use crate::segment::{self, Blobs, SEGMENT_BYTES};

/// Runs of about one size before they are merged.
const RUNS: usize = 4;
/// The same for the smallest, which commits take along: there may be one for each doubling.
const SMALLEST_RUNS: usize = 12;
/// Sizes below it are about the same.
const SMALLEST_RUN_BYTES: u64 = 256 << 10;
/// Small neighbours in one run before they are written together, and what is small.
const NEIGHBOURS: usize = 8;
const SMALL_BYTES: u64 = (SEGMENT_BYTES / NEIGHBOURS) as u64;
/// Most bytes of a step in terms of stored bytes of the entries it reads.
const WINDOW_BYTES: u64 = SEGMENT_BYTES as u64;

/// Entries of the head by their place in the list, older first, and the first page of the window.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    entries: Vec<usize>,
    first: u32,
}

/// What a step should do; `None` where everything is in order.
pub(crate) fn plan(state: &State) -> Option<Plan> {
    let live: Vec<usize> = (0..state.entries.len())
        .filter(|index| state.entries[*index].is_live())
        .collect();
    let mut runs: Vec<Vec<usize>> = Vec::new();
    for index in live {
        let entry = &state.entries[index];
        match runs.last_mut() {
            Some(run)
                if run
                    .last()
                    .is_some_and(|last| state.entries[*last].last < entry.first) =>
            {
                run.push(index);
            }
            _ => runs.push(vec![index]),
        }
    }
    merge_of_runs(state, &runs).or_else(|| runs.iter().find_map(|run| neighbours(state, run)))
}

/// The newest runs, if there are enough that are no larger than the others together would be merged for.
fn merge_of_runs(state: &State, runs: &[Vec<usize>]) -> Option<Plan> {
    let sizes: Vec<u64> = runs
        .iter()
        .map(|run| {
            run.iter()
                .map(|index| state.entries[*index].total_bytes())
                .sum()
        })
        .collect();
    let mut best = None;
    let mut tier = 0;
    for (taken, size) in sizes.iter().rev().enumerate() {
        tier = tier.max(tier_of(*size));
        let same = sizes
            .iter()
            .rev()
            .take(taken + 1)
            .filter(|size| tier_of(**size) == tier);
        let enough = if tier == 0 { SMALLEST_RUNS } else { RUNS };
        if same.count() >= enough {
            best = Some(taken + 1);
        }
    }
    let from = runs.len() - best?;
    let entries: Vec<usize> = runs[from..].concat();
    let first = first_overlap(state, &entries)?;
    let entries = entries
        .into_iter()
        .filter(|index| state.entries[*index].last >= first)
        .collect();
    Some(Plan { entries, first })
}

fn tier_of(bytes: u64) -> u32 {
    (bytes / SMALLEST_RUN_BYTES + 1).ilog2() / 2
}

/// The lowest page number that two of the entries may have.
fn first_overlap(state: &State, entries: &[usize]) -> Option<u32> {
    let mut bounds: Vec<_> = entries
        .iter()
        .map(|index| (state.entries[*index].first, state.entries[*index].last))
        .collect();
    bounds.sort_unstable();
    let mut reach = 0;
    for (first, last) in bounds {
        if first <= reach {
            return Some(first);
        }
        reach = reach.max(last);
    }
    None
}

/// Small entries that follow each other in a run.
fn neighbours(state: &State, run: &[usize]) -> Option<Plan> {
    let small = |window: &&[usize]| {
        let mut sizes = window
            .iter()
            .map(|index| state.entries[*index].total_bytes());
        sizes.all(|bytes| bytes < SMALL_BYTES)
    };
    let window = run.windows(NEIGHBOURS).find(small)?;
    Some(Plan {
        entries: window.to_vec(),
        first: state.entries[window[0]].first,
    })
}

impl Inner {
    /// Starts what should be done behind a commit, unless it is under way.
    pub(crate) fn tidy_behind(&self, database: DatabaseId, state: &State) {
        let slot = self.slot(database);
        if plan(state).is_none() || slot.tidying.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(inner) = self.this.upgrade() else {
            return;
        };
        self.behind(async move {
            let done = inner.merge_step(database).await;
            slot.tidying.store(false, Ordering::Release);
            if let Err(error) = done {
                // Nothing depends on it; the next commit tries again.
                tracing::debug!(%database, %error, "merging broke off");
            }
        });
    }

    /// One step of a merge, of at most about a segment. Whether there was something to do.
    pub(crate) async fn merge_step(&self, database: DatabaseId) -> Result<bool, StoreError> {
        let loaded = self.known(database).await?;
        let state = Arc::clone(&loaded.state);
        let Some(plan) = plan(&state) else {
            return Ok(false);
        };
        let (blobs, last) = self.merged(database, &state, &plan).await?;
        let page_size = page_size_of(&state.entries[plan.entries[0]])?;
        let generation = loaded.root.generation;
        let built = segment::build(blobs, page_size, generation)?;
        let new = self.put_segments(database, built).await?;
        let read: Vec<Entry> = plan
            .entries
            .iter()
            .map(|i| state.entries[*i].clone())
            .collect();
        let slot = self.slot(database);
        let _writing = slot.writing.lock().await;
        self.update(database, true, |_, root, state| {
            check_exists(state)?;
            let places = places_of(state, &read);
            let (Some(places), true) = (places, generation >= root.horizon) else {
                return Ok(Change::Keep(true));
            };
            let Some(oldest) = places.iter().min().copied() else {
                return Ok(Change::Keep(true));
            };
            let head = state.version;
            let mut ordered = places;
            ordered.sort_unstable();
            for index in ordered.into_iter().rev() {
                state.cut_out(index, plan.first, last);
            }
            // In front of what is left of them: nothing that is left has a page of the window.
            let added = new.iter().map(|entry| Entry {
                added: head,
                ..entry.clone()
            });
            state.entries.splice(oldest..oldest, added);
            state.expire(&self.keep(Some(&slot)), self.now_ms());
            Ok(Change::Swap(true))
        })
        .await
    }

    /// The pages of a window that hold, and the last page number of the window.
    async fn merged(
        &self,
        database: DatabaseId,
        state: &State,
        plan: &Plan,
    ) -> Result<(Blobs, u32), StoreError> {
        let mut pages = std::collections::BTreeMap::new();
        for index in &plan.entries {
            let entry = &state.entries[*index];
            let places = self.read_index(database, entry).await?;
            // The newer ones come later and hold.
            for place in places.within(entry.first.max(plan.first), entry.last) {
                pages.insert(place.page, (*index, *place));
            }
        }
        let mut bytes = 0;
        let mut cut_at = None;
        for (page, (_, place)) in &pages {
            if bytes >= WINDOW_BYTES {
                cut_at = Some(*page);
                break;
            }
            bytes += u64::from(place.length()) + segment::INDEX_ENTRY_BYTES as u64;
        }
        let last = match cut_at {
            Some(page) => {
                pages.split_off(&page);
                page - 1
            }
            None => u32::MAX,
        };
        let mut blobs = Blobs::new();
        for index in &plan.entries {
            let entry = &state.entries[*index];
            let places: Vec<_> = pages
                .values()
                .filter(|(from, _)| from == index)
                .map(|(_, place)| *place)
                .collect();
            let stored = self.stored(database, entry, &places).await?;
            for (place, bytes) in places.into_iter().zip(stored) {
                blobs.insert(place.page, place.blob(bytes, entry.written));
            }
        }
        Ok((blobs, last))
    }
}

/// Where the entries are in the list now; `None` unless all are there as they were, live, in their order, and nothing else that has
/// their pages is between them.
fn places_of(state: &State, read: &[Entry]) -> Option<Vec<usize>> {
    let place = |entry: &Entry| state.entries.iter().position(|other| other == entry);
    let places: Vec<usize> = read.iter().map(place).collect::<Option<_>>()?;
    places.is_sorted().then_some(places)
}
