//! Runs: the newest rows of many pages by few range reads.
//!
//! Pages that follow each other have their rows beside each other, so a scan, and what is read ahead of one, costs one range read for up to
//! [`RUN`] pages and not one for each. Such a range read takes what is there, and a page has a row for each version that wrote it: it goes backwards, so
//! that the first row of a page at or before the version is the answer, it ends after as many rows as there are pages, and the next one begins
//! below the page at which it ended.
//!
//! * **RUN1** The answer for a page is the row that a range read of this page alone would find: the last one at or before the version.
//! * **RUN2** A run reads at most [`RANGES`] times as many rows as it has pages, each time at most one answer of a storage server (80 kB and a row), and
//!   of the pages that it has not come to by then one row each, at once. So long histories and large rows cost three waits instead of one, and
//!   no more bytes than those of the pages that were asked for and of [`RANGES`] such answers.

use futures_util::future::try_join_all;
use pagewire_proto::{DatabaseId, PageNumber, Version};

use crate::engine::{Fail, Row, Txn, corrupt};
use crate::keys::{Key, Range};

/// Pages of a run, at most. A storage server answers at most 80 kB at a time, 20 pages of 4 KiB that nothing makes smaller: what is left of longer runs
/// would be read page by page.
pub(crate) const RUN: usize = 32;
/// Range reads one after the other before the rest of a run is read page by page.
const RANGES: usize = 2;
/// Rows are large where an answer has room for fewer: what is left is read page by page then, without those that nobody asked for.
const FEW: usize = 8;
/// A run has at most one page that nobody asked for among so many.
const GAP_IN: usize = 8;

impl Txn {
    /// Of each page the newest row at or before a version, in the order of the pages.
    pub(crate) async fn newest_rows(
        &self,
        database: DatabaseId,
        pages: &[PageNumber],
        at: Version,
    ) -> Result<Vec<Option<Row>>, Fail> {
        let mut order: Vec<usize> = (0..pages.len()).collect();
        order.sort_unstable_by_key(|index| pages[*index]);
        let mut sorted: Vec<_> = order.iter().map(|index| pages[*index]).collect();
        sorted.dedup();
        let runs = runs(&sorted)
            .into_iter()
            .map(|run| self.newest_of_run(database, run, at));
        let found = try_join_all(runs).await?.into_iter().flatten();
        let mut rows = vec![None; pages.len()];
        let same = order.chunk_by(|one, other| pages[*one] == pages[*other]);
        for (same, row) in same.zip(found) {
            let Some((last, others)) = same.split_last() else {
                continue;
            };
            for index in others {
                rows[*index] = row.clone();
            }
            rows[*last] = row;
        }
        Ok(rows)
    }

    /// The same of one run.
    async fn newest_of_run(
        &self,
        database: DatabaseId,
        pages: &[PageNumber],
        at: Version,
    ) -> Result<Vec<Option<Row>>, Fail> {
        let rows_of = |page: &PageNumber| self.space.page(database, *page, Version::ZERO, at);
        let mut found = vec![None; pages.len()];
        // Pages of which it is not known yet which row is theirs: the first so many.
        let mut open = pages.len();
        for _ in 0..RANGES {
            let (Some(first), Some(last)) = (pages[..open].first(), pages[..open].last()) else {
                return Ok(found);
            };
            let range = Range {
                begin: rows_of(first).begin,
                end: rows_of(last).end,
            };
            let rows = self.last_rows(&range, length(pages)).await?;
            for row in &rows {
                let Some(Key::Page(_, page, written, _)) = self.space.decode(row.key()) else {
                    return Err(corrupt(&self.space, row.key(), "not a page").into());
                };
                // Those above it have none.
                open = pages[..open].partition_point(|open| *open <= page);
                if written <= at && open > 0 && pages[open - 1] == page {
                    open -= 1;
                    found[open] = Some(Row::of(row));
                }
            }
            if !rows.more() {
                return Ok(found);
            }
            if rows.len() < length(pages).min(FEW) {
                break;
            }
        }
        let alone = pages[..open].iter().map(|page| async move {
            let rows = self.last_rows(&rows_of(page), 1).await?;
            Ok::<_, Fail>(rows.first().map(Row::of))
        });
        for (row, alone) in found.iter_mut().zip(try_join_all(alone).await?) {
            *row = alone;
        }
        Ok(found)
    }
}

/// From the first page to the last, inclusive.
fn length(pages: &[PageNumber]) -> usize {
    match pages {
        [first, .., last] => (last.get() - first.get()) as usize + 1,
        rest => rest.len(),
    }
}

/// Cuts ascending pages into runs.
fn runs(pages: &[PageNumber]) -> Vec<&[PageNumber]> {
    let mut runs = Vec::new();
    let mut rest = pages;
    while !rest.is_empty() {
        let is_run = |many: &usize| length(&rest[..*many]) <= many + many / GAP_IN;
        let many = (2..=rest.len().min(RUN)).take_while(is_run).last();
        let (run, others) = rest.split_at(many.unwrap_or(1));
        runs.push(run);
        rest = others;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(pages: impl IntoIterator<Item = u32>) -> Vec<PageNumber> {
        let number = |page| PageNumber::try_from(page).unwrap();
        pages.into_iter().map(number).collect()
    }

    fn lengths(pages: impl IntoIterator<Item = u32>) -> Vec<usize> {
        let pages = numbers(pages);
        let runs = runs(&pages);
        assert_eq!(runs.concat(), pages, "each page is in one run");
        for run in &runs {
            assert!(run.len() <= RUN);
            assert!(length(run) <= run.len() + run.len() / GAP_IN);
        }
        runs.iter().map(|run| run.len()).collect()
    }

    #[test]
    fn consecutive_pages_are_runs_of_a_bounded_length() {
        assert_eq!(lengths([]), [0; 0]);
        assert_eq!(lengths([7]), [1]);
        assert_eq!(lengths(1..=3), [3]);
        assert_eq!(lengths(1..=80), [32, 32, 16]);
        assert_eq!(lengths([u32::MAX - 2, u32::MAX - 1]), [2]);
    }

    #[test]
    fn a_gap_is_read_along_where_it_is_a_small_part_of_a_run() {
        assert_eq!(lengths([1, 3]), [1, 1]);
        assert_eq!(lengths((1..=30).filter(|page| *page != 20)), [29]);
        // Every second page: nothing is read along but one page in eight.
        assert_eq!(lengths((1..=20).step_by(2)), [1; 10]);
        assert_eq!(lengths((1..=8).chain([10, 12, 14])), [9, 1, 1]);
    }
}
