//! Branches of branches, and restores of restores: a page is looked for in a bounded number of places (B2), and what is below goes when
//! nobody needs it.

use std::time::Duration;

use pagewire_foundationdb::values::Left;
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_proto::{DatabaseId, Epoch, Moment, PageCount, Version};
use pagewire_server::store::{CommitOutcome, DatabaseCommit, PageStore as _};

use crate::servers::{commit, name, number, part, with_two};

/// Segments below a segment that was flattened, and itself.
const PLACES: usize = 8;

fn by_hand(options: &mut FoundationDbOptions) {
    options.collect_every = Duration::from_secs(3600);
}

async fn collect_all(store: &FoundationDbStore) {
    while store.collect(None).await.unwrap().more {}
}

async fn branch(store: &FoundationDbStore, source: DatabaseId, text: &str) -> (DatabaseId, Epoch) {
    let id = DatabaseId::random().unwrap();
    let now = Moment::Age(0);
    store.branch(source, &now, id, &name(text)).await.unwrap();
    (id, store.fence(id).await.unwrap())
}

fn with_count(part: DatabaseCommit, count: u32) -> DatabaseCommit {
    let page_count = PageCount::try_from(count).unwrap();
    DatabaseCommit { page_count, ..part }
}

async fn make(store: &FoundationDbStore, part: DatabaseCommit) {
    let made = CommitOutcome::Committed(vec![part.base.next()]);
    assert_eq!(commit(store, part).await, made);
}

/// The stamps of the first pages of a version; 0 for one that is not there.
async fn stamps(store: &FoundationDbStore, id: DatabaseId, version: u64, pages: u32) -> Vec<u8> {
    let asked: Vec<_> = (1..=pages).map(number).collect();
    let read = store.read(id, Version::new(version), &asked).await.unwrap();
    let stamp = |page: &pagewire_server::store::StoredPage| page.content.first().copied();
    read.iter().map(|page| stamp(page).unwrap_or(0)).collect()
}

async fn audited(store: &FoundationDbStore) {
    assert_eq!(store.audit().await.unwrap(), Vec::<String>::new());
}

/// Every branch of a line of them stays, with commits of its own; another server commits to all of them meanwhile and is never refused.
#[test]
fn b2_the_depth_of_branches_of_branches_is_bounded() {
    with_two(by_hand, |one, two| async move {
        let main = one.lookup(&name("main"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        let pages: Vec<_> = (1..=12).map(|page| (page, 200)).collect();
        make(&one, with_count(part(main, 0, epoch, &pages), 12)).await;
        let mut line = vec![(main, epoch, vec![200; 12])];
        for step in 1..=40_u8 {
            let (below, _, mut stamps) = line.last().unwrap().clone();
            let (id, epoch) = branch(&one, below, &format!("b{step}")).await;
            let page = u32::from(step) % 11 + 1;
            make(&one, with_count(part(id, 1, epoch, &[(page, step)]), 12)).await;
            stamps[page as usize - 1] = step;
            line.push((id, epoch, stamps));
        }
        let (last, ..) = line.last().unwrap();
        assert_eq!(
            one.depth(*last).await.unwrap(),
            41,
            "nothing was flattened yet"
        );
        let flattening = async {
            let mut steps = 0;
            while one.collect(None).await.unwrap().more {
                steps += 1;
            }
            steps
        };
        let committing = async {
            for (index, (id, epoch, stamps)) in line.iter_mut().enumerate().skip(1) {
                // Whatever is flattened beside it.
                make(
                    &two,
                    with_count(part(*id, 2, *epoch, &[(12, index as u8)]), 12),
                )
                .await;
                stamps[11] = index as u8;
            }
        };
        tokio::join!(flattening, committing);
        collect_all(&one).await;
        assert_eq!(one.to_do().await.unwrap(), (0, 0));
        for (index, (id, _, expected)) in line.iter().enumerate() {
            let depth = two.depth(*id).await.unwrap();
            assert!(depth <= PLACES, "{depth} places for branch {index}");
            let head = two.head(*id).await.unwrap().version.get();
            assert_eq!(
                stamps(&two, *id, head, 12).await,
                *expected,
                "branch {index}"
            );
        }
        audited(&one).await;
        // Removed in the order in which they were made: each is stood on for a while.
        for index in 0..line.len() {
            let text = if index == 0 {
                "main".to_owned()
            } else {
                format!("b{index}")
            };
            one.remove(&name(&text)).await.unwrap();
        }
        collect_all(&one).await;
        audited(&one).await;
    });
}

/// An agent that goes on from its last branch, and drops the one before, for ever.
#[test]
fn b2_what_nobody_stands_on_goes() {
    with_two(by_hand, |one, _two| async move {
        let main = one.lookup(&name("main"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        let pages: Vec<_> = (1..=20).map(|page| (page, 200)).collect();
        make(&one, with_count(part(main, 0, epoch, &pages), 20)).await;
        let (mut last, mut label) = (main, "main".to_owned());
        for step in 1..=60_u8 {
            let (next, epoch) = branch(&one, last, &format!("b{step}")).await;
            let page = u32::from(step) % 20 + 1;
            make(&one, with_count(part(next, 1, epoch, &[(page, step)]), 20)).await;
            if step > 1 {
                one.remove(&name(&label)).await.unwrap();
            }
            (last, label) = (next, format!("b{step}"));
            if step % 20 == 0 {
                collect_all(&one).await;
                audited(&one).await;
            }
        }
        let depth = one.depth(last).await.unwrap();
        assert!(depth <= PLACES, "a page is looked for in {depth} places");
        let expected: Vec<_> = (1..=20)
            .map(|page| if page == 1 { 60 } else { 39 + page })
            .collect();
        assert_eq!(stamps(&one, last, 2, 20).await, expected);
        one.remove(&name("main")).await.unwrap();
        one.remove(&name(&label)).await.unwrap();
        collect_all(&one).await;
        // Their ids are remembered, and nothing else: the audit looks at each.
        audited(&one).await;
        assert!(one.list("", "", 10).await.unwrap().is_empty());
    });
}

/// A large database below many small branches is not copied.
#[test]
fn flat4_no_more_is_copied_than_small_segments_have() {
    with_two(by_hand, |one, _two| async move {
        let main = one.lookup(&name("main"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        let pages: Vec<_> = (1..=400).map(|page| (page, 200)).collect();
        make(&one, with_count(part(main, 0, epoch, &pages), 400)).await;
        let mut last = main;
        let mut of_a_branch = Vec::new();
        for step in 1..=30_u8 {
            let (next, epoch) = branch(&one, last, &format!("b{step}")).await;
            make(
                &one,
                with_count(part(next, 1, epoch, &[(u32::from(step), step)]), 400),
            )
            .await;
            of_a_branch.push(next);
            last = next;
        }
        collect_all(&one).await;
        let depth = one.depth(last).await.unwrap();
        assert!(depth <= PLACES, "a page is looked for in {depth} places");
        let mut copied = 0;
        for id in of_a_branch {
            copied += one.describe(id).await.unwrap().pages - 1;
        }
        assert!(copied > 0, "nothing was copied: this has shown nothing");
        assert!(
            copied <= 30 * 29,
            "{copied} pages were copied of 30 branches of one page each"
        );
        let stamps = stamps(&one, last, 2, 400).await;
        assert!(stamps.iter().zip(1..=400).all(|(stamp, page)| match page {
            ..=30 => *stamp == page as u8,
            _ => *stamp == 200,
        }));
        audited(&one).await;
    });
}

/// A line of branches, the last of it, a fan of branches that stand on that, and what 30 pages of them are but for the last page, which has the number of the finger.
async fn fan_of(one: &FoundationDbStore, fingers: u8) -> (DatabaseId, Vec<DatabaseId>, Vec<u8>) {
    let main = one.lookup(&name("main"), true).await.unwrap();
    let epoch = one.fence(main).await.unwrap();
    let all: Vec<_> = (1..=30).map(|page| (page, 200)).collect();
    make(one, with_count(part(main, 0, epoch, &all), 30)).await;
    let (mut last, mut expected) = (main, vec![200; 30]);
    for step in 1..=7_u8 {
        let (next, epoch) = branch(one, last, &format!("b{step}")).await;
        let own: Vec<_> = (1..=4)
            .map(|n| (4 * u32::from(step) - n + 1, step))
            .collect();
        for (page, stamp) in &own {
            expected[*page as usize - 1] = *stamp;
        }
        make(one, with_count(part(next, 1, epoch, &own), 30)).await;
        last = next;
    }
    let mut fan = Vec::new();
    for finger in 0..fingers {
        let (next, epoch) = branch(one, last, &format!("f{finger}")).await;
        make(one, with_count(part(next, 1, epoch, &[(30, finger)]), 30)).await;
        fan.push(next);
    }
    (last, fan, expected)
}

/// Many branches of one deep version: what is below is copied once, and not for each of them.
#[test]
fn flat8_a_fan_of_branches_costs_one_copy() {
    with_two(by_hand, |one, two| async move {
        let (last, fan, mut expected) = fan_of(&one, 12).await;
        assert_eq!(one.to_do().await.unwrap(), (0, 12));
        let before = one.describe(last).await.unwrap().pages;
        // Both at once: the copies count once.
        tokio::join!(collect_all(&one), collect_all(&two));
        assert_eq!(one.to_do().await.unwrap(), (0, 0));
        assert!(one.describe(last).await.unwrap().pages > before);
        for (finger, id) in (0..).zip(&fan) {
            let copied = one.describe(*id).await.unwrap().pages - 1;
            assert_eq!(copied, 0, "pages copied for branch {finger} of the fan");
            assert!(two.depth(*id).await.unwrap() <= PLACES);
            expected[29] = finger;
            assert_eq!(stamps(&two, *id, 2, 30).await, expected);
        }
        expected[29] = 200;
        assert_eq!(stamps(&one, last, 2, 30).await, expected);
        audited(&one).await;
    });
}

/// Cause: who found that another server had begun with what a fan stands on flattened its branch itself. Damage: that branch kept copies for ever.
#[test]
fn flat8_of_two_servers_that_look_at_once_neither_copies_into_the_fan() {
    with_two(by_hand, |one, two| async move {
        let (_, fan, _) = fan_of(&one, 3).await;
        // The first begins with what the fan stands on, the second comes to it as who listed it before.
        for (server, store) in [&one, &two].into_iter().enumerate() {
            let step = store.flatten_once(fan[0]).await.unwrap();
            assert_eq!(
                step, None,
                "server {server} has begun with a branch of the fan"
            );
        }
        tokio::join!(collect_all(&one), collect_all(&two));
        assert_eq!(one.to_do().await.unwrap(), (0, 0));
        for id in &fan {
            assert_eq!(one.describe(*id).await.unwrap().pages, 1);
        }
        audited(&one).await;
    });
}

/// What a fan stands on is begun with and cannot be flattened: nobody waits for it.
#[test]
fn flat8_damage_below_a_fan_is_not_waited_for() {
    with_two(by_hand, |one, two| async move {
        let (last, fan, mut expected) = fan_of(&one, 3).await;
        let link = one.lookup(&name("b6"), false).await.unwrap();
        let own = Version::new(2);
        assert!(one.damage(link, number(24), own).await.unwrap());
        for store in [&one, &two] {
            let end = tokio::time::timeout(Duration::from_secs(60), collect_all(store));
            end.await.expect("an end of the collection");
        }
        // Each of them would copy that page, and stays as it is.
        assert_eq!(one.to_do().await.unwrap(), (0, 4));
        expected.truncate(20);
        for id in [&last].into_iter().chain(&fan) {
            assert_eq!(stamps(&two, *id, 2, 20).await, expected);
        }
    });
}

/// Each restore begins a segment of the same database, and a cut in one of them hides what is below it for good.
#[test]
fn flat1_what_a_segment_did_not_show_is_not_shown_afterwards() {
    with_two(by_hand, |one, two| async move {
        let id = one.lookup(&name("a"), true).await.unwrap();
        let epoch = one.fence(id).await.unwrap();
        let mut expected: Vec<Vec<u8>> = vec![Vec::new()];
        let all: Vec<_> = (1..=8).map(|page| (page, 100)).collect();
        make(&one, with_count(part(id, 0, epoch, &all), 8)).await;
        expected.push(vec![100; 8]);
        for round in 0..14_u8 {
            let head = one.head(id).await.unwrap();
            let base = head.version.get();
            let now = expected[base as usize].clone();
            // Shrinks below what it has from there, grows again, writes one page, and is restored: the segment before is stood on.
            let less = 8 - u32::from(round % 3);
            make(&one, with_count(part(id, base, epoch, &[]), less)).await;
            let mut shrunk = now.clone();
            shrunk[less as usize..].fill(0);
            expected.push(shrunk.clone());
            make(
                &one,
                with_count(part(id, base + 1, epoch, &[(1, round)]), 8),
            )
            .await;
            shrunk[0] = round;
            expected.push(shrunk.clone());
            let restore = DatabaseCommit {
                restore: Some(Version::new(base + 2)),
                ..with_count(part(id, base + 2, epoch, &[]), 8)
            };
            make(&one, restore).await;
            expected.push(shrunk);
        }
        let versions = expected.len() as u64 - 1;
        let before: Vec<_> = {
            let mut diffs = Vec::new();
            for version in 1..versions {
                let (from, to) = (Version::new(version), Version::new(version + 1));
                diffs.push(one.diff(id, from, to, None, 100).await.unwrap());
            }
            diffs
        };
        assert!(
            one.depth(id).await.unwrap() > PLACES,
            "there is something to flatten"
        );
        assert!(one.to_do().await.unwrap().1 > 0);
        // Both at once: each page counts once (FLAT3).
        tokio::join!(collect_all(&one), collect_all(&two));
        let depth = one.depth(id).await.unwrap();
        assert!(depth <= PLACES, "a page is looked for in {depth} places");
        for version in 1..=versions {
            let found = stamps(&two, id, version, 8).await;
            assert_eq!(found, expected[version as usize], "version {version}");
        }
        for (version, before) in (1..versions).zip(before) {
            let (from, to) = (Version::new(version), Version::new(version + 1));
            let after = two.diff(id, from, to, None, 100).await.unwrap();
            assert_eq!(after, before, "between {from} and {to}");
        }
        audited(&one).await;
    });
}

/// Two servers, and one of them given up in the middle of many steps.
#[test]
fn flat3_a_step_that_is_given_up_or_made_twice_counts_its_pages_once() {
    with_two(by_hand, |one, two| async move {
        let main = one.lookup(&name("main"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        let pages: Vec<_> = (1..=30).map(|page| (page, 200)).collect();
        make(&one, with_count(part(main, 0, epoch, &pages), 30)).await;
        let mut last = main;
        for step in 1..=24_u8 {
            let (next, epoch) = branch(&one, last, &format!("b{step}")).await;
            let every = 1 + usize::from(step % 3);
            let own: Vec<_> = (1..=30).step_by(every).map(|page| (page, step)).collect();
            make(&one, with_count(part(next, 1, epoch, &own), 30)).await;
            last = next;
        }
        let expected = stamps(&one, last, 2, 30).await;
        let mut given_up = 0;
        for step in 0..60 {
            let patience = Duration::from_millis(2 + step);
            let steps = async { tokio::join!(one.collect(None), two.collect(None)) };
            given_up += u32::from(tokio::time::timeout(patience, steps).await.is_err());
        }
        assert!(given_up > 0, "nothing was given up: this has shown nothing");
        tokio::join!(collect_all(&one), collect_all(&two));
        assert!(two.depth(last).await.unwrap() <= PLACES);
        assert_eq!(stamps(&two, last, 2, 30).await, expected);
        audited(&one).await;
    });
}

/// Damage in what is to be copied is not copied, is told to who reads it, and holds up nobody else.
#[test]
fn flat6_damage_leaves_a_segment_as_it_is_and_holds_up_no_other() {
    with_two(by_hand, |one, _two| async move {
        let mut ends = Vec::new();
        for line in ["x", "y"] {
            let main = one.lookup(&name(line), true).await.unwrap();
            let epoch = one.fence(main).await.unwrap();
            make(&one, part(main, 0, epoch, &[(1, 1), (2, 1)])).await;
            let mut last = main;
            for step in 1..=9 {
                let (next, epoch) = branch(&one, last, &format!("{line}{step}")).await;
                make(&one, part(next, 1, epoch, &[(2, step)])).await;
                if line == "x" && step == 7 {
                    assert!(one.damage(next, number(2), Version::new(2)).await.unwrap());
                }
                last = next;
            }
            ends.push(last);
        }
        let eighth = one.lookup(&name("x8"), false).await.unwrap();
        collect_all(&one).await;
        assert_eq!(one.to_do().await.unwrap(), (0, 1));
        assert!(
            one.depth(eighth).await.unwrap() > PLACES,
            "it would have copied damage"
        );
        for (end, line) in ends.into_iter().zip(["the line", "the other line"]) {
            assert!(one.depth(end).await.unwrap() <= PLACES, "{line}");
            assert_eq!(stamps(&one, end, 1, 2).await, [1, 8], "{line}");
        }
        assert_eq!(stamps(&one, eighth, 2, 2).await, [1, 8]);
        assert!(
            one.read(eighth, Version::new(1), &[number(2)])
                .await
                .is_err()
        );
    });
}

/// A line of a hundred branches of which only the last is left: dropping that ends all of them, in bounded transactions.
#[test]
fn seg3_the_end_of_a_deep_line_takes_bounded_transactions() {
    with_two(by_hand, |one, _two| async move {
        let main = one.lookup(&name("b0"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        make(&one, part(main, 0, epoch, &[(1, 1), (2, 1)])).await;
        let (mut last, mut line) = (main, Vec::new());
        for step in 1..=100 {
            line.push(last);
            (last, _) = branch(&one, last, &format!("b{step}")).await;
        }
        for step in 0..100 {
            one.remove(&name(&format!("b{step}"))).await.unwrap();
        }
        // Nothing is kept of those but what is stood on, and little was flattened: one step, or some on a loaded machine.
        for id in line {
            let is_stood_on = async || match one.removed(id).await.unwrap() {
                Some(removed) => matches!(removed.left, Left::Segments(_)),
                None => true,
            };
            while !is_stood_on().await {
                assert!(one.collect(None).await.unwrap().more);
            }
        }
        let depth = one.depth(last).await.unwrap();
        assert!(depth > 40, "{depth} places");
        one.remove(&name("b100")).await.unwrap();
        let mut waited = 0;
        loop {
            let more = one.collect(None).await.unwrap().more;
            waited = waited.max(one.to_do().await.unwrap().0);
            if !more {
                break;
            }
        }
        assert!(waited > 0, "one transaction ended all of {depth} segments");
        assert_eq!(one.to_do().await.unwrap(), (0, 0));
        audited(&one).await;
    });
}

/// As on a cluster that does next to nothing within its 5 s: a deep line is flattened, and ends, in the smallest of steps.
#[test]
fn a_deep_line_is_flattened_and_ends_in_small_steps() {
    with_two(by_hand, |one, _two| async move {
        let main = one.lookup(&name("b0"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        make(&one, part(main, 0, epoch, &[(1, 1), (2, 1)])).await;
        let mut last = main;
        for step in 1..=40_u8 {
            let (next, epoch) = branch(&one, last, &format!("b{step}")).await;
            make(&one, part(next, 1, epoch, &[(2, step)])).await;
            last = next;
        }
        let in_small_steps = async || {
            let mut most = 0;
            loop {
                one.smallest_steps();
                let more = one.collect(None).await.unwrap().more;
                most = most.max(one.to_do().await.unwrap().0);
                if !more {
                    return most;
                }
            }
        };
        in_small_steps().await;
        assert_eq!(one.to_do().await.unwrap(), (0, 0));
        assert!(one.depth(last).await.unwrap() <= PLACES);
        assert_eq!(stamps(&one, last, 2, 2).await, [1, 40]);
        assert_eq!(stamps(&one, last, 1, 2).await, [1, 39]);
        // Restores of a removed database that is stood on are looked at one by one.
        let epoch = one.fence(last).await.unwrap();
        for base in 2..50 {
            let restore = DatabaseCommit {
                restore: Some(Version::new(1 + base % 2)),
                ..part(last, base, epoch, &[])
            };
            make(&one, restore).await;
        }
        let (end, _) = branch(&one, last, "end").await;
        for step in 0..=40 {
            one.remove(&name(&format!("b{step}"))).await.unwrap();
        }
        in_small_steps().await;
        assert_eq!(stamps(&one, end, 1, 2).await, [1, 40]);
        audited(&one).await;
        one.remove(&name("end")).await.unwrap();
        in_small_steps().await;
        assert_eq!(one.to_do().await.unwrap(), (0, 0));
        audited(&one).await;
    });
}

/// Bug: the last of the segments that were copied had been flattened in between, and stood on less than when it was gone through.
#[test]
fn flat7_a_link_that_is_flattened_in_between_is_gone_through_again() {
    with_two(by_hand, |one, two| async move {
        let main = one.lookup(&name("b0"), true).await.unwrap();
        let epoch = one.fence(main).await.unwrap();
        make(&one, part(main, 0, epoch, &[(1, 200), (2, 200)])).await;
        let (mut line, mut expected) = (vec![main], vec![200, 200, 0, 0]);
        for step in 1..=40_u8 {
            let below = line.last().copied().unwrap();
            let (next, epoch) = branch(&one, below, &format!("b{step}")).await;
            // Each has a page that no other has written.
            let own = 4 + u32::from(step);
            make(&one, with_count(part(next, 1, epoch, &[(own, step)]), 60)).await;
            expected.push(step);
            line.push(next);
        }
        let top = line.pop().unwrap();
        let many = loop {
            let (at, many) = one.flatten_once(top).await.unwrap().unwrap();
            if at as usize == many {
                break many;
            }
        };
        // Nothing is left to be done but the switch. The last of those segments, and there are others below it:
        let last = line[line.len() - many];
        assert!(one.depth(last).await.unwrap() > PLACES);
        while two.flatten_once(last).await.unwrap().is_some() {}
        assert!(two.depth(last).await.unwrap() <= PLACES);
        let (at, many) = one
            .flatten_once(top)
            .await
            .unwrap()
            .expect("it begins anew");
        assert!((at as usize) < many);
        while one.flatten_once(top).await.unwrap().is_some() {}
        assert_eq!(stamps(&two, top, 2, 44).await, expected);
        collect_all(&one).await;
        assert_eq!(stamps(&two, top, 2, 44).await, expected);
        audited(&one).await;
    });
}

/// Bug: both waited for the end of a look at all databases of the installation.
#[test]
fn what_waits_is_done_in_the_middle_of_a_look_at_many_databases() {
    with_two(by_hand, |one, two| async move {
        for many in 0..160 {
            one.lookup(&name(&format!("n{many}")), true).await.unwrap();
        }
        // The look at all of them takes five steps at least.
        assert!(one.collect(None).await.unwrap().more);
        let main = two.lookup(&name("b0"), true).await.unwrap();
        let epoch = two.fence(main).await.unwrap();
        make(&two, part(main, 0, epoch, &[(1, 1)])).await;
        let mut last = main;
        for step in 1..=9 {
            (last, _) = branch(&two, last, &format!("b{step}")).await;
        }
        two.lose_reader(last, Version::new(1)).await.unwrap();
        let (unread, flatten) = two.to_do().await.unwrap();
        assert!((unread, flatten > 0) == (1, true), "{unread} {flatten}");
        for _ in 0..3 {
            assert!(one.collect(None).await.unwrap().more, "in the middle");
        }
        assert_eq!(one.to_do().await.unwrap(), (0, 0));
        assert_eq!(stamps(&two, last, 1, 1).await, [1]);
        collect_all(&one).await;
        audited(&one).await;
    });
}
