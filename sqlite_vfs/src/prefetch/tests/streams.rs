//! Streams beside each other, and what others leave of the room: what is asked for, and what is given up.

use super::super::stream::{Plan, Stream};
use super::super::walk::Walk;
use super::super::{Asks, Came, Direction, Pages, Prefetcher};
use super::File;

/// A table whose leaves lie in the order of their numbers, the interior pages among them.
fn loaded() -> (File, u32) {
    let (file, roots) = File::new(
        "CREATE TABLE t(i INTEGER PRIMARY KEY, v BLOB);
         WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 12000)
           INSERT INTO t SELECT i, zeroblob(250) FROM n;",
    );
    (file, roots[0].1)
}

/// Bug: a page that two streams had asked for was given up when one of them had passed it. It went to the cache, unread, and was counted
/// as waste.
#[test]
fn what_one_stream_passes_stays_for_another_that_wants_it() {
    let (file, _) = loaded();
    let mut prefetcher = Prefetcher::default();
    // One goes by number, the other one comes to two of its pages later.
    let later = Walk::new(Direction::Ascending, 2, vec![[109, 105, 106].into()]);
    let mut asks = Asks::default();
    for (plan, window) in [(Plan::Run(100), 10), (Plan::Walk(later), 3)] {
        let mut stream = Stream::new(plan, window);
        stream.fill(&file, &mut asks);
        prefetcher.streams.push(stream);
    }
    prefetcher.settle(&file, asks);
    assert_eq!(file.fetched.get(), 10);
    prefetcher.read(&file, 109, file.page(109), Came::AtOnce);
    // 100 to 108 without those.
    assert_eq!(file.abandoned.get(), 7);
}

/// Bug: page 1 counted as one that follows another by its number, so that page 1 and the root of the first table made a run. A scan of that
/// table came upon its interior pages out of the order of their numbers, and each time what lay before them was given up: a third of all
/// pages went to the cache unread.
#[test]
fn page_1_and_the_root_behind_it_are_no_run() {
    let (file, root) = loaded();
    let mut order = vec![1];
    file.scan(root, false, false, &mut order);
    let mut prefetcher = Prefetcher::default();
    file.read(&mut prefetcher, &order[..2]);
    assert_eq!((root, file.fetched.get()), (2, 2));
    file.read(&mut prefetcher, &order[2..]);
    assert_eq!((file.fetched.get(), file.abandoned.get()), (order.len(), 0));
}

/// Bug: what found no room beside what others had asked for was planned all the same, and asked for page by page when its reader came to it.
#[test]
fn r4_nothing_is_planned_that_there_is_no_room_for() {
    let (file, root) = loaded();
    let mut order = Vec::new();
    file.scan(root, false, false, &mut order);
    let mut prefetcher = Prefetcher::default();
    file.read(&mut prefetcher, &order[..300]);
    let fetched = file.fetched.get();
    file.room.set(0);
    file.read(&mut prefetcher, &order[300..310]);
    assert_eq!(file.fetched.get(), fetched);
    let planned = prefetcher.asked();
    let known = planned.iter().filter(|page| file.is_known(**page)).count();
    assert_eq!(known, planned.len());
    // There is room again before the reader has come to the end of that.
    file.room.set(1000);
    assert_eq!(file.read(&mut prefetcher, &order[310..]), 0);
}

/// Bug: what a stream wanted was asked for though it had ended in the same read. It was given up before it was asked for, and never after: it held its room
/// as long as its snapshot.
#[test]
fn what_only_a_stream_wanted_that_has_ended_is_not_asked_for() {
    let (file, _) = loaded();
    let mut prefetcher = Prefetcher::default();
    let mut asks = Asks::default();
    for (first, has_ended) in [(100, true), (200, false)] {
        let mut stream = Stream::new(Plan::Run(first), 5);
        stream.fill(&file, &mut asks);
        if !has_ended {
            prefetcher.streams.push(stream);
        }
    }
    // Two streams may want the same page.
    asks.wanted.push(201);
    prefetcher.settle(&file, asks);
    assert_eq!(file.fetched.get(), 5);
    assert!((200..205).all(|page| file.is_known(page)));
    assert!(!file.is_known(100));
}
