//! Rule C8: which pages a version has.

use bytes::Bytes;
use pagewire_proto::{Changes, PageSize, Snapshot, StagingId, Version};

use super::fixture::{
    Bench, Db, SIZE, content, describe, ensure, number_of, numbers, page_count, part, staged,
    writes,
};
use super::{Context, Outcome, Verdict, Violation};
use crate::store::PageWrite;

pub(super) async fn c08(context: Context<'_>) -> Outcome {
    let bench = Bench::open(context).await?;
    let db = bench.database("a").await?;
    let store = &bench.store;
    store.protect(db.id, Some(Version::ZERO), &[]).await?;
    // 1: four pages; the last of two writes holds; what is beyond the count is not kept.
    let pages = [(1, 9), (1, 1), (2, 1), (3, 1), (4, 1), (7, 1)];
    bench.commit(vec![part(db, 0, 4, &pages)]).await?;
    // 2: shrinks; 3: grows again without writing what came back; 4: writes one of them.
    bench
        .commit(vec![part(db, 1, 2, &[(2, 2), (3, 2)])])
        .await?;
    bench.commit(vec![part(db, 2, 5, &[(5, 3)])]).await?;
    bench.commit(vec![part(db, 3, 7, &[(4, 4)])]).await?;
    // 5: stagings apply in their order, then the pages of the commit.
    let (first, second) = (StagingId::random()?, StagingId::random()?);
    let pages = writes(SIZE, &[(1, 50), (2, 50), (3, 50)]);
    store.stage(db.id, first, SIZE, pages).await?;
    let pages = writes(SIZE, &[(2, 51), (3, 51), (8, 51)]);
    store.stage(db.id, second, SIZE, pages).await?;
    bench
        .commit(vec![staged(db, 4, 7, &[first, second], &[(3, 52)])])
        .await?;

    let w = |stamp, version| Some((stamp, version));
    bench
        .expect(
            db,
            1,
            &[
                (1, w(1, 1)),
                (2, w(1, 1)),
                (3, w(1, 1)),
                (4, w(1, 1)),
                (5, None),
                (7, None),
            ],
        )
        .await?;
    bench
        .expect(db, 2, &[(1, w(1, 1)), (2, w(2, 2)), (3, None), (4, None)])
        .await?;
    bench
        .expect(
            db,
            3,
            &[
                (1, w(1, 1)),
                (2, w(2, 2)),
                (3, None),
                (4, None),
                (5, w(3, 3)),
            ],
        )
        .await?;
    bench
        .expect(
            db,
            4,
            &[(3, None), (4, w(4, 4)), (5, w(3, 3)), (6, None), (7, None)],
        )
        .await?;
    bench
        .expect(
            db,
            5,
            &[
                (1, w(50, 5)),
                (2, w(51, 5)),
                (3, w(52, 5)),
                (4, w(4, 4)),
                (8, None),
            ],
        )
        .await?;
    another_page_size_keeps_nothing(&bench, db).await?;
    let head = store.head(db.id).await?;
    ensure!(
        head.page_count == page_count(3) && head.page_size == Some(PageSize::MIN),
        "the head is {head:?}"
    );
    a_version_may_have_no_pages(&bench, db).await?;
    Ok(Verdict::Kept)
}

/// Version 8 has no pages, and neither has version 9; version 10 has another page size, version 11 the first one again.
async fn a_version_may_have_no_pages(bench: &Bench, db: Db) -> Result<(), Violation> {
    let store = &bench.store;
    let staging = StagingId::random()?;
    let pages = writes(SIZE, &[(1, 80)]);
    store.stage(db.id, staging, SIZE, pages).await?;
    bench
        .commit(vec![staged(db, 7, 0, &[staging], &[(2, 81)])])
        .await?;
    bench.commit(vec![part(db, 8, 0, &[])]).await?;
    for version in [8, 9] {
        bench
            .expect(db, version, &[(1, None), (2, None), (3, None)])
            .await?;
    }
    let head = store.head(db.id).await?;
    let empty = Snapshot {
        version: Version::new(9),
        ..Snapshot::EMPTY
    };
    ensure!(head == empty, "the head after it was emptied is {head:?}");
    let listed = store.list(bench.prefix(), "", 10).await?;
    ensure!(
        listed.iter().any(|entry| entry.head == empty),
        "an empty version is not listed: {listed:?}"
    );
    let (_, changes) = store.changes(db.id, Version::new(7)).await?;
    ensure!(
        match &changes {
            Changes::All => true,
            Changes::Pages(pages) => [1, 3].iter().all(|page| pages.contains(&number_of(*page))),
        },
        "pages 1 and 3 are gone, changed {changes:?}"
    );
    let mut larger = part(db, 9, 2, &[]);
    larger.page_size = PageSize::try_from(SIZE.get() * 2)?;
    larger.pages = writes(larger.page_size, &[(1, 100)]);
    bench.commit(vec![larger]).await?;
    bench.commit(vec![part(db, 10, 3, &[(2, 110)])]).await?;
    bench
        .expect(db, 11, &[(1, None), (2, Some((110, 11))), (3, None)])
        .await?;
    // What was there before is there still for whoever reads it.
    bench.expect(db, 7, &[(3, Some((7, 7)))]).await
}

/// Version 6 has the double page size, version 7 the old one again, with three pages.
async fn another_page_size_keeps_nothing(bench: &Bench, db: Db) -> Result<(), Violation> {
    let store = &bench.store;
    let double = PageSize::try_from(SIZE.get() * 2)?;
    let mut larger = part(db, 5, 7, &[]);
    larger.page_size = double;
    larger.pages = writes(double, &[(2, 6)]);
    bench.commit(vec![larger]).await?;
    let pages = store.read(db.id, Version::new(6), &numbers(1..=7)?).await?;
    for (index, page) in pages.iter().enumerate() {
        let (right, version) = match index {
            1 => (content(double, 2, 6), 6),
            _ => (Bytes::new(), 0),
        };
        ensure!(
            page.content == right && page.version.get() == version,
            "page {} after a change of the page size: {} of version {}",
            index + 1,
            describe(&page.content),
            page.version
        );
    }
    let head = store.head(db.id).await?;
    ensure!(
        head.page_size == Some(double) && head.page_count == page_count(7),
        "the head after a change of the page size is {head:?}"
    );
    let mut smaller = part(db, 6, 3, &[(3, 7)]);
    // No content is a page of zeros.
    smaller.pages.push(PageWrite {
        number: number_of(1),
        content: Bytes::new(),
    });
    bench.commit(vec![smaller]).await?;
    let tail = [(2, None), (3, Some((7, 7))), (4, None)];
    bench.expect(db, 7, &tail).await?;
    let zeros = store.read(db.id, Version::new(7), &numbers(1..=1)?).await?;
    ensure!(
        zeros.len() == 1
            && zeros[0].version.get() == 7
            && zeros[0].content.len() == SIZE.bytes()
            && zeros[0].content.iter().all(|byte| *byte == 0),
        "a page written without content reads as {} instead of zeros",
        zeros
            .first()
            .map_or_else(String::new, |page| describe(&page.content))
    );
    bench
        .expect(db, 5, &[(1, Some((50, 5))), (4, Some((4, 4)))])
        .await
}
