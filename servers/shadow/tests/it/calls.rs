//! How many calls the store underneath gets: the table at the top of `lib.rs`, exactly.

use std::sync::Arc;

use pagewire_proto::{DatabaseId, Epoch, PageCount, PageSize, Version};
use pagewire_server::store::{DatabaseCommit, PageStore as _};
use pagewire_shadow::testing::{Calls, Medium};

use crate::scene::{Server, greedy, number, part, server, server_with, writes};

fn since(before: Calls, after: Calls) -> Calls {
    Calls {
        gets: after.gets - before.gets,
        ranges: after.ranges - before.ranges,
        puts: after.puts - before.puts,
        swaps: after.swaps - before.swaps,
        deletes: after.deletes - before.deletes,
        lists: after.lists - before.lists,
        bytes_written: after.bytes_written - before.bytes_written,
    }
}

/// Which of so many small commits had more than one put, and how many; everything else of each is what a small commit is.
async fn commits_with_more_puts(
    server: &Server,
    (database, epoch): (DatabaseId, Epoch),
    commits: u64,
) -> Vec<(u64, u64)> {
    let mut more = Vec::new();
    for base in 0..commits {
        let before = server.kv.calls();
        server.commits(&[(database, base, epoch)]).await;
        let calls = since(before, server.kv.calls());
        let expected = Calls {
            puts: calls.puts,
            swaps: 1,
            bytes_written: calls.bytes_written,
            ..Calls::default()
        };
        assert_eq!(calls, expected, "on version {base}");
        match calls.puts {
            0 => panic!("no put on version {base}"),
            1 => {}
            puts => more.push((base, puts)),
        }
    }
    more
}

#[tokio::test]
async fn a_small_commit_is_one_put_and_one_swap_and_once_in_128_one_put_more() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, greedy()).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    let more = commits_with_more_puts(&server, (a, epoch), 520).await;
    assert_eq!(more, [(256, 2), (384, 2), (512, 2)]);
    // Nothing of it is read again for the next reader of this server, apart from the question for the head.
    let before = server.kv.calls();
    server.check(a).await;
    let calls = since(before, server.kv.calls());
    assert_eq!((calls.gets, calls.ranges), (1, 0));
}

/// Where a reader keeps all versions, the root has room for the entries of twice 256 of them.
#[tokio::test]
async fn old_versions_that_are_read_cost_a_put_of_an_archive_once_in_some_256_commits() {
    let medium = Arc::new(Medium::default());
    let server = server_with(&medium, greedy()).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    server
        .store
        .protect(a, Some(Version::ZERO), &[])
        .await
        .unwrap();
    let more = commits_with_more_puts(&server, (a, epoch), 1200).await;
    let of_records = |base: &u64| *base >= 256 && base.is_multiple_of(128);
    let mut archives = Vec::new();
    for (base, puts) in &more {
        match puts - 1 - u64::from(of_records(base)) {
            0 => {}
            1 => archives.push(*base),
            _ => panic!("{puts} puts on version {base}"),
        }
    }
    let records = (0..1200).filter(of_records).count();
    assert_eq!(
        more.len(),
        records + archives.iter().filter(|b| !of_records(b)).count()
    );
    assert_eq!(archives.len(), 3, "{archives:?}");
    for pair in archives.windows(2) {
        let between = pair[1] - pair[0];
        assert!((250..=260).contains(&between), "{archives:?}");
    }
    server.check_at(a, 1).await.unwrap();
}

#[tokio::test]
async fn a_commit_without_pages_is_one_swap() {
    let medium = Arc::new(Medium::default());
    let server = server(&medium).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    server.commits(&[(a, 0, epoch)]).await;
    let before = server.kv.calls();
    let nothing = DatabaseCommit {
        pages: Vec::new(),
        ..part(a, 1, epoch)
    };
    server.commit(vec![nothing]).await.unwrap();
    let calls = since(before, server.kv.calls());
    assert_eq!((calls.gets, calls.puts, calls.swaps), (0, 0, 1));
}

#[tokio::test]
async fn a_commit_of_n_databases_is_3_n_and_2_calls() {
    let medium = Arc::new(Medium::default());
    let server = server(&medium).await;
    for n in 2..6_u64 {
        let mut parts = Vec::new();
        for index in 0..n {
            let id = server.database(&format!("{n}/{index}")).await;
            parts.push((id, 0, server.fence(id).await));
        }
        let before = server.kv.calls();
        server.commits(&parts).await;
        while !medium.keys("t/").is_empty() {
            tokio::task::yield_now().await;
        }
        let calls = since(before, server.kv.calls());
        // Segments; intents, the decision, their ends; the decision goes.
        assert_eq!((calls.puts, calls.swaps, calls.deletes), (n, 2 * n + 1, 1));
        assert_eq!((calls.gets, calls.ranges, calls.lists), (0, 0, 0));
        assert_eq!(calls.puts + calls.swaps + calls.deletes, 3 * n + 2);
    }
}

/// A commit of every `step`th of so many pages.
async fn large_commit(
    server: &crate::scene::Server,
    base: u64,
    epoch: Epoch,
    pages: u32,
    step: usize,
) -> Calls {
    let a = server.database("a").await;
    let size = PageSize::try_from(4096).unwrap();
    let part = DatabaseCommit {
        page_size: size,
        page_count: PageCount::try_from(pages).unwrap(),
        pages: writes(size, (1..=pages).step_by(step), base + 1),
        ..part(a, base, epoch)
    };
    let before = server.kv.calls();
    server.commit(vec![part]).await.unwrap();
    since(before, server.kv.calls())
}

#[tokio::test]
async fn a_large_commit_is_a_put_for_each_8_mib() {
    let medium = Arc::new(Medium::default());
    let server = server(&medium).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    let calls = large_commit(&server, 0, epoch, 10_000, 1).await;
    assert_eq!((calls.puts, calls.swaps, calls.gets), (5, 1, 0));
}

#[tokio::test]
async fn what_a_commit_writes_does_not_depend_on_the_size_of_the_database() {
    let medium = Arc::new(Medium::default());
    let server = server(&medium).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    large_commit(&server, 0, epoch, 10_000, 1).await;
    for base in 1..20 {
        let calls = large_commit(&server, base, epoch, 10_000, 5_000).await;
        assert_eq!((calls.puts, calls.swaps), (1, 1));
        // Two pages, those of a few commits before, and the root.
        assert!(
            calls.bytes_written < 300_000,
            "{} bytes",
            calls.bytes_written
        );
    }
}

#[tokio::test]
async fn a_cold_read_of_a_page_is_three_calls() {
    let medium = Arc::new(Medium::default());
    let writer = server(&medium).await;
    let a = writer.database("a").await;
    let epoch = writer.fence(a).await;
    large_commit(&writer, 0, epoch, 2_000, 1).await;
    let reader = server(&medium).await;
    let before = reader.kv.calls();
    let pages = reader
        .store
        .read(a, Version::new(1), &[number(1_234)])
        .await;
    assert_eq!(pages.unwrap()[0].content.len(), 4096);
    let calls = since(before, reader.kv.calls());
    // The root; the index of the segment; the page.
    assert_eq!((calls.gets, calls.ranges), (1, 2));
    let before = reader.kv.calls();
    let scan: Vec<_> = (1_000..1_500).map(number).collect();
    reader.store.read(a, Version::new(1), &scan).await.unwrap();
    let calls = since(before, reader.kv.calls());
    assert_eq!(
        (calls.gets, calls.ranges),
        (0, 1),
        "neighbours come in one call"
    );
}

#[tokio::test]
async fn readers_look_into_few_segments_however_many_commits_there_were() {
    let medium = Arc::new(Medium::default());
    let writer = server(&medium).await;
    let a = writer.database("a").await;
    let epoch = writer.fence(a).await;
    large_commit(&writer, 0, epoch, 3_000, 1).await;
    for base in 1..400 {
        // All over the database, so that no segment is spared by its bounds.
        large_commit(&writer, base, epoch, 3_000, 180 + base as usize % 7).await;
    }
    let reader = server(&medium).await;
    let before = reader.kv.calls();
    let all: Vec<_> = (1..=3_000).map(number).collect();
    let pages = reader.store.read(a, Version::new(400), &all).await.unwrap();
    let calls = since(before, reader.kv.calls());
    let size = PageSize::try_from(4096).unwrap();
    for (number, page) in all.iter().zip(pages) {
        let written = page.version.get();
        assert!(page.content == crate::scene::content(size, number.get(), written));
    }
    assert!(calls.gets + calls.ranges < 150, "{calls:?}");
}
