//! How many calls the store underneath gets: the table at the top of `lib.rs`, exactly.

use std::sync::Arc;

use pagewire_proto::{Epoch, PageCount, PageSize, Version};
use pagewire_server::store::{DatabaseCommit, PageStore};
use pagewire_shadow::testing::{Calls, Medium};

use crate::scene::{number, part, server, writes};

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

#[tokio::test]
async fn a_small_commit_is_one_put_and_one_swap() {
    let medium = Arc::new(Medium::default());
    let server = server(&medium).await;
    let a = server.database("a").await;
    let epoch = server.fence(a).await;
    for base in 0..255 {
        let before = server.kv.calls();
        server.commits(&[(a, base, epoch)]).await;
        let calls = since(before, server.kv.calls());
        let expected = Calls {
            puts: 1,
            swaps: 1,
            bytes_written: calls.bytes_written,
            ..Calls::default()
        };
        assert_eq!(calls, expected, "on version {base}");
    }
    // Nothing of it is read again for the next reader of this server, apart from the question for the head.
    let before = server.kv.calls();
    server.check(a).await;
    let calls = since(before, server.kv.calls());
    assert_eq!((calls.gets, calls.ranges), (1, 0));
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
