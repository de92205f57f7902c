//! Commits: atomic, once, checked, and settled when their answer was lost.

use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::pb;
use pagewire_proto::pb::resolve_commit_response::Outcome as Resolved;
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;
use pagewire_server::store::PageStore as _;
use tokio::time::Instant;

use crate::gate::GatedStore;
use crate::harness::{
    Client, CommitAnswer, LONG_TTL, Opened, PAGE_SIZE, PATIENCE, TestCommit, TestServer, committed,
    page, page_of, reason,
};

/// A client with a database open and its lease.
async fn writer(server: &TestServer, name: &str) -> (Client, Opened, u64) {
    let mut client = server.client().await;
    let database = client.open(name).await;
    let epoch = client.acquire(&database).await;
    (client, database, epoch)
}

#[tokio::test]
async fn what_was_committed_is_read_by_another_client() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut writer, database, epoch) = writer(&server, "a.db").await;
    assert_eq!(database.head, 0);
    let commit = TestCommit::new(&database, 0, epoch, 7);
    assert_eq!(writer.commit(&commit).await.unwrap(), committed(&[1]));

    let mut reader = server.client().await;
    let mut request = reader.open_request("a.db", pb::OpenMode::ReadOnly);
    request.want_page_bytes = 4096;
    let opened = reader.open_with(request).await.unwrap();
    assert_eq!(opened.head, 1);
    assert_eq!(opened.answer.pages.len(), 1);
    assert_eq!(opened.answer.pages[0].content, page(1, 7).content);
    let pages = reader.read(&opened, 1, &[1, 2]).await.unwrap();
    assert_eq!(pages[0].version, 1);
    assert!(pages[1].content.is_empty(), "beyond the end reads as zeros");
}

#[tokio::test]
async fn a_repeated_commit_answers_as_the_first_time_also_after_the_lease_has_moved() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let commit = TestCommit::new(&database, 0, epoch, 1);
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    client.release(&database, epoch, false);
    let mut other = server.client().await;
    other.open("a.db").await;
    let epoch = other.acquire(&database).await;
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    let next = TestCommit::new(&database, 1, epoch, 2);
    assert_eq!(other.commit(&next).await.unwrap(), committed(&[2]));
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    assert_eq!(client.head(&database).await.unwrap(), 2);
}

#[tokio::test]
async fn a_base_that_is_not_the_head_is_a_conflict() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    client
        .commit(&TestCommit::new(&database, 0, epoch, 1))
        .await
        .unwrap();
    for base in [0, 2, u64::MAX] {
        let answer = client
            .commit(&TestCommit::new(&database, base, epoch, 2))
            .await;
        let conflict = pb::CommitConflict {
            database_index: 0,
            head_version: 1,
        };
        assert_eq!(
            answer.unwrap(),
            CommitAnswer::Conflict(conflict),
            "base {base}"
        );
    }
}

#[tokio::test]
async fn the_epoch_of_another_session_opens_no_door() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let mut thief = server.client().await;
    thief.open("a.db").await;
    for guess in [epoch, 0, epoch + 1, u64::MAX] {
        let answer = thief
            .commit(&TestCommit::new(&database, 0, guess, 1))
            .await
            .unwrap();
        let lost = pb::CommitLeaseLost {
            database_index: 0,
            current_epoch: epoch,
        };
        assert_eq!(answer, CommitAnswer::LeaseLost(lost), "epoch {guess}");
    }
    assert_eq!(client.head(&database).await.unwrap(), 0);
}

#[tokio::test]
async fn databases_of_one_commit_change_together_or_not_at_all() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, first, first_epoch) = writer(&server, "a.db").await;
    let second = client.open("b.db").await;
    let second_epoch = client.acquire(&second).await;
    let both = |bases: [u64; 2], fill| {
        let mut commit = TestCommit::new(&first, bases[0], first_epoch, fill);
        let other = TestCommit::new(&second, bases[1], second_epoch, fill);
        commit.databases.extend(other.databases);
        commit.batches.push(pb::PageBatch {
            database_index: 1,
            pages: vec![page(1, fill)],
        });
        commit
    };
    assert_eq!(
        client.commit(&both([0, 0], 1)).await.unwrap(),
        committed(&[1, 1])
    );
    let conflict = pb::CommitConflict {
        database_index: 1,
        head_version: 1,
    };
    assert_eq!(
        client.commit(&both([1, 0], 2)).await.unwrap(),
        CommitAnswer::Conflict(conflict)
    );
    assert_eq!(client.head(&first).await.unwrap(), 1);
    let pages = client.read(&first, 1, &[1]).await.unwrap();
    assert_eq!(pages[0].content, page(1, 1).content);
}

/// A torn stream, a wrong sum, a wrong page: each commits nothing and says what is wrong.
#[tokio::test]
async fn a_commit_stream_that_is_not_whole_commits_nothing() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let good = TestCommit::new(&database, 0, epoch, 1);
    let whole = good.messages(client.session);
    let last = whole.len() - 1;
    let changed = |change: &dyn Fn(&mut Vec<pb::CommitRequest>)| {
        let mut messages = whole.clone();
        change(&mut messages);
        messages
    };
    let streams = [
        ("nothing", Vec::new()),
        ("no finish", changed(&|all| all[last].finish = None)),
        ("no header", changed(&|all| all[0].header = None)),
        (
            "header again",
            changed(&|all| all[last].header = all[0].header.clone()),
        ),
        ("page left out", changed(&|all| all[last].batches.clear())),
        (
            "page twice",
            changed(&|all| {
                let again = all[last].batches.clone();
                all[last].batches.extend(again);
            }),
        ),
        (
            "after the end",
            changed(&|all| all.push(pb::CommitRequest::default())),
        ),
        (
            "other sum",
            changed(&|all| {
                all[last].finish.as_mut().unwrap().crc32 ^= 1;
            }),
        ),
        (
            "torn page",
            changed(&|all| {
                all[last].batches[0].pages[0].content = Bytes::from(vec![2; PAGE_SIZE as usize]);
            }),
        ),
        (
            "other database",
            changed(&|all| all[last].batches[0].database_index = 1),
        ),
    ];
    for (what, messages) in streams {
        assert_eq!(
            reason(client.commit_stream(messages).await),
            Reason::Invalid,
            "{what}"
        );
    }
    let pages = [
        (
            "short",
            page_of(1, Bytes::from(vec![0; PAGE_SIZE as usize - 1])),
        ),
        (
            "long",
            page_of(1, Bytes::from(vec![0; PAGE_SIZE as usize * 2])),
        ),
        ("beyond the end", page(2, 1)),
        (
            "number 0",
            pb::PageContent {
                number: 0,
                ..page(1, 1)
            },
        ),
        (
            "number too large",
            pb::PageContent {
                number: u32::MAX,
                ..page(1, 1)
            },
        ),
    ];
    for (what, page) in pages {
        let mut commit = good.clone();
        commit.batches[0].pages = vec![page];
        assert_eq!(
            reason(client.commit(&commit).await),
            Reason::Invalid,
            "{what}"
        );
    }
    assert_eq!(client.head(&database).await.unwrap(), 0);
    assert_eq!(client.commit(&good).await.unwrap(), committed(&[1]));
}

#[tokio::test]
async fn a_commit_larger_than_the_memory_of_an_upload_is_whole() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let page_size = 65_536;
    let page_count = 400;
    let content = |number: u32| Bytes::from(vec![number as u8; page_size]);
    let mut commit = TestCommit::new(&database, 0, epoch, 0);
    commit.databases[0].page_size = page_size as u32;
    commit.databases[0].page_count = page_count;
    commit.batches = (1..=page_count)
        .map(|number| pb::PageBatch {
            database_index: 0,
            pages: vec![page_of(number, content(number))],
        })
        .collect();
    // The last one sent holds, on whichever side of the bound the first one fell.
    commit.batches.push(pb::PageBatch {
        database_index: 0,
        pages: vec![page_of(1, content(99))],
    });
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    let mut seen = 0;
    while seen < page_count {
        let wanted: Vec<_> = (seen + 1..=page_count).collect();
        let pages = client.read(&database, 1, &wanted).await.unwrap();
        assert!(!pages.is_empty() && pages.len() <= 64, "4 MiB at most");
        for page in pages {
            seen += 1;
            assert_eq!(page.number, seen);
            assert_eq!(page.content, content(if seen == 1 { 99 } else { seen }));
        }
    }
}

/// A repetition is answered like the first time and consumes nothing: pages that it uploaded stayed in the store for ever.
#[tokio::test]
async fn a_repeated_large_commit_leaves_no_staged_pages() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let mut commit = TestCommit::new(&database, 0, epoch, 1);
    let batch = pb::PageBatch {
        database_index: 0,
        pages: vec![page(1, 1); 1024],
    };
    // More than one upload keeps in memory.
    commit.batches = vec![batch; 10];
    for _ in 0..2 {
        assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    }
    let dropped = tokio::time::timeout(PATIENCE, store.dropped.acquire_many(2));
    dropped
        .await
        .expect("staged pages are left")
        .unwrap()
        .forget();
    assert!(store.stagings.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_goes_away_neither_stops_nor_tears_its_commit() {
    let store = GatedStore::new(Duration::ZERO, false);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let commit = TestCommit::new(&database, 0, epoch, 1);
    let mut calls = client.calls.clone();
    let messages = commit.messages(client.session);
    let call = tokio::spawn(async move { calls.commit(tokio_stream::iter(messages)).await });
    store.arrived.acquire().await.unwrap().forget();
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    // The question comes after the commit, though nobody waits for the commit any more.
    let (resolved, ()) = tokio::join!(client.resolve(&commit), async {
        tokio::task::yield_now().await;
        store.gate.add_permits(1);
    });
    assert_eq!(
        resolved,
        Resolved::Committed(pb::Committed { versions: vec![1] })
    );
    assert_eq!(client.head(&database).await.unwrap(), 1);
}

/// A store that hangs in a commit: what waits behind it keeps its pages no longer than its client is there.
#[tokio::test(start_paused = true)]
async fn a_commit_that_waits_for_its_turn_ends_with_its_client() {
    let store = GatedStore::new(Duration::ZERO, false);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let send = |commit: &TestCommit| {
        let (mut calls, messages) = (client.calls.clone(), commit.messages(client.session));
        tokio::spawn(async move { calls.commit(tokio_stream::iter(messages)).await })
    };
    let first = TestCommit::new(&database, 0, epoch, 1);
    let hangs = send(&first);
    store.arrived.acquire().await.unwrap().forget();
    let mut second = TestCommit::new(&database, 0, epoch, 2);
    let batch = pb::PageBatch {
        database_index: 0,
        pages: vec![page(1, 2); 1024],
    };
    // More than one upload keeps in memory.
    second.batches = vec![batch; 10];
    let waits = send(&second);
    // Nobody has anything to do any more.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(store.stagings.lock().unwrap().len(), 1);
    waits.abort();
    let dropped = tokio::time::timeout(PATIENCE, store.dropped.acquire());
    dropped
        .await
        .expect("it waits without its client")
        .unwrap()
        .forget();
    assert!(store.stagings.lock().unwrap().is_empty());
    store.gate.add_permits(2);
    hangs.await.unwrap().unwrap();
    assert_eq!(client.head(&database).await.unwrap(), 1);
    assert_eq!(store.arrived.available_permits(), 0, "it came after all");
    let Resolved::Aborted(_) = client.resolve(&second).await else {
        panic!("it was committed");
    };
}

/// P5: after "aborted" the original is refused for ever, and the session goes on with a new epoch.
#[tokio::test]
async fn a_commit_that_was_resolved_as_aborted_cannot_arrive_later() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let delayed = TestCommit::new(&database, 0, epoch, 1);
    let Resolved::Aborted(aborted) = client.resolve(&delayed).await else {
        panic!("not aborted");
    };
    let new = aborted.epochs[0];
    assert!(new > epoch);
    let lost = pb::CommitLeaseLost {
        database_index: 0,
        current_epoch: new,
    };
    assert_eq!(
        client.commit(&delayed).await.unwrap(),
        CommitAnswer::LeaseLost(lost)
    );
    assert_eq!(
        client.resolve(&delayed).await,
        Resolved::Aborted(pb::CommitAborted { epochs: vec![new] }),
        "idempotent"
    );
    assert_eq!(client.acquire(&database).await, new);
    let next = TestCommit::new(&database, 0, new, 2);
    assert_eq!(client.commit(&next).await.unwrap(), committed(&[1]));
    assert_eq!(
        client.resolve(&next).await,
        Resolved::Committed(pb::Committed { versions: vec![1] })
    );
}

#[tokio::test]
async fn resolving_without_the_lease_aborts_and_gives_no_epoch() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let delayed = TestCommit::new(&database, 0, epoch, 1);
    client.release(&database, epoch, false);
    client.heartbeat(Vec::new()).await;
    let mut other = server.client().await;
    other.open("a.db").await;
    let other_epoch = other.acquire(&database).await;
    assert_eq!(
        client.resolve(&delayed).await,
        Resolved::Aborted(pb::CommitAborted { epochs: vec![0] })
    );
    let next = TestCommit::new(&database, 0, other_epoch, 2);
    assert_eq!(other.commit(&next).await.unwrap(), committed(&[1]));
}

fn staging(
    client: &Client,
    database: &Opened,
    id: u8,
    pages: Vec<pb::PageContent>,
) -> pb::StagePagesRequest {
    pb::StagePagesRequest {
        header: Some(pb::StagePagesHeader {
            session_id: client.session.to_wire(),
            database_id: database.id.clone(),
            staging_id: Bytes::from(vec![id; 16]),
            page_size: PAGE_SIZE,
            continues: false,
        }),
        pages,
    }
}

async fn stage(client: &mut Client, database: &Opened, id: u8, pages: Vec<pb::PageContent>) -> u64 {
    let request = staging(client, database, id, pages);
    let answer = client
        .calls
        .stage_pages(tokio_stream::iter([request]))
        .await;
    answer.unwrap().into_inner().page_count
}

#[tokio::test]
async fn staged_pages_appear_with_their_commit_and_only_for_their_session() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    assert_eq!(
        stage(&mut client, &database, 1, vec![page(1, 1), page(2, 1)]).await,
        2
    );
    assert_eq!(stage(&mut client, &database, 1, vec![page(2, 2)]).await, 1);
    assert_eq!(
        stage(&mut client, &database, 2, vec![page(3, 3), page(9, 9)]).await,
        2
    );
    assert_eq!(client.head(&database).await.unwrap(), 0);
    let mut commit = TestCommit::new(&database, 0, epoch, 7);
    commit.databases[0].page_count = 3;
    commit.databases[0].staging_ids = vec![Bytes::from(vec![1; 16]), Bytes::from(vec![2; 16])];
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    let pages = client.read(&database, 1, &[1, 2, 3]).await.unwrap();
    let fills: Vec<_> = pages.iter().map(|page| page.content[0]).collect();
    assert_eq!(fills, [7, 2, 3]);
    assert_eq!(
        client.commit(&commit).await.unwrap(),
        committed(&[1]),
        "repeated although its stagings are gone"
    );

    stage(&mut client, &database, 3, vec![page(1, 3)]).await;
    client.release(&database, epoch, false);
    let (mut thief, _, epoch) = writer(&server, "a.db").await;
    let mut commit = TestCommit::new(&database, 1, epoch, 0);
    commit.databases[0].staging_ids = vec![Bytes::from(vec![3; 16])];
    assert_eq!(reason(thief.commit(&commit).await), Reason::StagingUnknown);
    assert_eq!(thief.head(&database).await.unwrap(), 1);
}

/// A later call of a staging that the server has dropped must not begin it anew: the commit would lack what it had.
#[tokio::test]
async fn a_staging_that_is_gone_is_not_continued() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let goes_on = |client: &Client, id| {
        let mut request = staging(client, &database, id, vec![page(2, 2)]);
        request.header.as_mut().unwrap().continues = true;
        tokio_stream::iter([request])
    };
    let refused = goes_on(&client, 1);
    let refused = client.calls.stage_pages(refused).await;
    assert_eq!(reason(refused), Reason::StagingUnknown, "it never was");
    stage(&mut client, &database, 1, vec![page(1, 1)]).await;
    stage(&mut client, &database, 2, vec![page(1, 1)]).await;
    let continued = goes_on(&client, 1);
    client.calls.stage_pages(continued).await.unwrap();

    client.send(Request::DropStagings(pb::DropStagings {
        staging_ids: vec![Bytes::from(vec![1; 16]), Bytes::from(vec![9; 16])],
    }));
    client.heartbeat(Vec::new()).await;
    let refused = goes_on(&client, 1);
    let refused = client.calls.stage_pages(refused).await;
    assert_eq!(reason(refused), Reason::StagingUnknown, "it was dropped");
    let mut commit = TestCommit::new(&database, 0, epoch, 7);
    commit.databases[0].page_count = 2;
    commit.databases[0].staging_ids = vec![Bytes::from(vec![1; 16])];
    assert_eq!(reason(client.commit(&commit).await), Reason::StagingUnknown);
    commit.databases[0].staging_ids = vec![Bytes::from(vec![2; 16])];
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
}

#[tokio::test]
async fn a_staging_is_for_one_database_and_page_size() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, first, _) = writer(&server, "a.db").await;
    let second = client.open("b.db").await;
    stage(&mut client, &first, 1, vec![page(1, 1)]).await;
    let request = staging(&client, &second, 1, vec![page(1, 1)]);
    let refused = client
        .calls
        .stage_pages(tokio_stream::iter([request]))
        .await;
    assert_eq!(reason(refused), Reason::Invalid);
    let mut request = staging(&client, &first, 1, Vec::new());
    request.header.as_mut().unwrap().page_size = 1024;
    let refused = client
        .calls
        .stage_pages(tokio_stream::iter([request]))
        .await;
    assert_eq!(reason(refused), Reason::Invalid);
}

/// Otherwise its holder would be given the dead epoch again and again.
#[tokio::test]
async fn a_lease_that_the_store_gave_to_another_server_is_lost_here_too() {
    let store = GatedStore::new(Duration::ZERO, true);
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    let id = pagewire_proto::DatabaseId::try_from(&database.id[..]).unwrap();
    let elsewhere = store.inner.fence(id).await.unwrap().get();
    let lost = pb::CommitLeaseLost {
        database_index: 0,
        current_epoch: elsewhere,
    };
    let commit = TestCommit::new(&database, 0, epoch, 1);
    assert_eq!(
        client.commit(&commit).await.unwrap(),
        CommitAnswer::LeaseLost(lost)
    );
    let epoch = client.acquire(&database).await;
    assert!(epoch > elsewhere);
    let commit = TestCommit::new(&database, 0, epoch, 1);
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
}

/// Holders of leases of the server before may still trust them.
#[tokio::test(start_paused = true)]
async fn after_a_start_reads_go_on_and_commits_wait_for_the_leases_of_the_server_before() {
    let quarantine = Duration::from_secs(3);
    let store = GatedStore::new(quarantine, true);
    let begun = Instant::now();
    let server = TestServer::in_process_over(store.clone(), LONG_TTL).await;
    let (mut client, database, epoch) = writer(&server, "a.db").await;
    assert_eq!(client.head(&database).await.unwrap(), 0);
    assert!(begun.elapsed() < Duration::from_millis(100));
    let commit = TestCommit::new(&database, 0, epoch, 1);
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[1]));
    assert!(begun.elapsed() >= quarantine);
    let next = TestCommit::new(&database, 1, epoch, 2);
    let begun = Instant::now();
    assert_eq!(client.commit(&next).await.unwrap(), committed(&[2]));
    assert!(begun.elapsed() < Duration::from_millis(100));
    client.send(Request::Goodbye(pb::Goodbye {}));
}
