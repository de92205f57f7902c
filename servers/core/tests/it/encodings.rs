//! Pages of requests that are not raw: M-9, M-10, E-1 and E-2 of `service/encoded.rs` as a peer sees them.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use pagewire_memory::MemoryStore;
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, Page, PageNumber, StagingId, Version, capability, pb};
use pagewire_server::Settings;
use pagewire_server::layer::Layer;
use pagewire_server::store::{Capabilities, PageStore, StoreError, StoredPage};

use crate::harness::{
    Client, CommitAnswer, LONG_TTL, Opened, PAGE_SIZE, TestCommit, TestServer, committed, page,
    page_of, reason,
};

const MIB: usize = 1 << 20;

/// Nothing makes it smaller.
fn noise(length: usize, seed: u32) -> Bytes {
    let mut state = seed | 1;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..length).map(|_| byte()).collect()
}

/// The same with one byte changed.
fn edited(base: &Bytes, at: usize) -> Bytes {
    let mut content = base.to_vec();
    content[at] ^= 0xff;
    content.into()
}

fn delta(number: u32, content: &Bytes, base: &Bytes) -> pb::PageContent {
    let page = Page {
        number: PageNumber::try_from(number).unwrap(),
        content: content.clone(),
        version: Version::ZERO,
    };
    let wire = page.to_delta_wire(base);
    assert_eq!(wire.encoding(), pb::PageEncoding::Delta);
    wire
}

fn lz4(number: u32, content: Bytes) -> pb::PageContent {
    let number = PageNumber::try_from(number).unwrap();
    let version = Version::ZERO;
    let wire = Page {
        number,
        content,
        version,
    };
    let wire = wire.to_compressed_wire();
    assert_eq!(wire.encoding(), pb::PageEncoding::Lz4);
    wire
}

fn with_pages(database: &Opened, base: u64, epoch: u64, pages: Vec<pb::PageContent>) -> TestCommit {
    let mut commit = TestCommit::new(database, base, epoch, 0);
    commit.databases[0].page_count = pages.iter().map(|page| page.number).max().unwrap();
    commit.batches[0].pages = pages;
    commit
}

/// A client with a database of pages of noise at version 1.
async fn writer(server: &TestServer, pages: u32) -> (Client, Opened, u64, Vec<Bytes>) {
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    let contents: Vec<_> = (1..=pages)
        .map(|number| noise(PAGE_SIZE as usize, number))
        .collect();
    let raw = (1..).zip(&contents);
    let raw = raw.map(|(number, content)| page_of(number, content.clone()));
    let first = with_pages(&database, 0, epoch, raw.collect());
    assert_eq!(client.commit(&first).await.unwrap(), committed(&[1]));
    (client, database, epoch, contents)
}

#[tokio::test]
async fn pages_in_every_encoding_are_the_same_pages_in_their_order() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch, contents) = writer(&server, 20).await;
    // More than are read together, page 3 three times, and the rest raw or compressed.
    let mut pages: Vec<_> = (1..=17)
        .map(|number| {
            let base = &contents[number as usize - 1];
            delta(number, &edited(base, 7), base)
        })
        .collect();
    pages.push(page(3, 1));
    pages.push(lz4(3, vec![2; PAGE_SIZE as usize].into()));
    pages.push(delta(3, &edited(&contents[2], 9), &contents[2]));
    pages.push(lz4(18, vec![3; PAGE_SIZE as usize].into()));
    pages.push(page_of(19, Bytes::new()));
    let commit = with_pages(&database, 1, epoch, pages);
    let mut commit = commit;
    commit.databases[0].page_count = 20;
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[2]));
    let numbers: Vec<_> = (1..=20).collect();
    let read = client.read(&database, 2, &numbers).await.unwrap();
    for (content, read) in contents.iter().zip(&read) {
        let expected = match read.number {
            3 => edited(content, 9),
            1..=17 => edited(content, 7),
            18 => vec![3; PAGE_SIZE as usize].into(),
            19 => Bytes::new(),
            _ => content.clone(),
        };
        assert!(
            read.content == expected
                || (read.number == 19 && read.content == vec![0; PAGE_SIZE as usize]),
            "page {}",
            read.number
        );
        assert_eq!(read.encoding(), pb::PageEncoding::Raw);
    }
}

#[tokio::test]
async fn e1_a_wrong_base_is_refused_and_the_pages_go_raw() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch, contents) = writer(&server, 2).await;
    let other = edited(&contents[0], 300);
    let content = edited(&other, 7);
    let wrong = [
        // What it takes over from there the base here does not have.
        ("another content", delta(1, &content, &other)),
        ("another page", delta(2, &content, &contents[0])),
        (
            "a page that was never written",
            delta(3, &content, &contents[0]),
        ),
    ];
    for (what, page) in wrong {
        let commit = with_pages(&database, 1, epoch, vec![page]);
        let refused = reason(client.commit(&commit).await);
        assert_eq!(refused, Reason::EncodingRefused, "{what}");
        assert_eq!(client.head(&database).await.unwrap(), 1, "{what}");
    }
    // Of another page size than the base has.
    let content = noise(1024, 5);
    let mut commit = with_pages(&database, 1, epoch, vec![delta(1, &content, &content)]);
    commit.databases[0].page_size = 1024;
    let refused = reason(client.commit(&commit).await);
    assert_eq!(refused, Reason::EncodingRefused);
    // On nothing.
    let empty = client.open("b.db").await;
    let lease = client.acquire(&empty).await;
    let on_nothing = delta(1, &contents[0], &contents[0]);
    let commit = with_pages(&empty, 0, lease, vec![on_nothing]);
    let refused = reason(client.commit(&commit).await);
    assert_eq!(refused, Reason::EncodingRefused);
    let raw = with_pages(&database, 1, epoch, vec![page(1, 1)]);
    assert_eq!(client.commit(&raw).await.unwrap(), committed(&[2]));
}

#[tokio::test]
async fn e2_a_delta_of_a_version_that_is_gone_is_answered_as_any_other_commit() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch, contents) = writer(&server, 1).await;
    let first = with_pages(
        &database,
        1,
        epoch,
        vec![delta(1, &edited(&contents[0], 7), &contents[0])],
    );
    let mut late = first.clone();
    late.id = pagewire_proto::CommitId::random().unwrap();
    let ahead = with_pages(
        &database,
        9,
        epoch,
        vec![delta(1, &edited(&contents[0], 8), &contents[0])],
    );
    assert_eq!(client.commit(&first).await.unwrap(), committed(&[2]));
    // The only reader of version 1 has left it: this store keeps one version.
    client
        .heartbeat(vec![pb::DatabaseFloor {
            database_id: database.id.clone(),
            oldest_open_version: 2,
            ..pb::DatabaseFloor::default()
        }])
        .await;
    while client.read(&database, 1, &[1]).await.is_ok() {
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        // Its answer was lost, and it comes again.
        assert_eq!(client.commit(&first).await.unwrap(), committed(&[2]));
        for other in [&late, &ahead] {
            let answer = client.commit(other).await.unwrap();
            assert!(
                matches!(&answer, CommitAnswer::Conflict(conflict) if conflict.head_version == 2),
                "{answer:?}"
            );
        }
    }
    let read = client.read(&database, 2, &[1]).await.unwrap();
    assert_eq!(read[0].content, edited(&contents[0], 7));
}

#[tokio::test]
async fn blocks_of_strangers_are_refused_by_name_and_nothing_is_applied() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch, contents) = writer(&server, 1).await;
    let right = delta(1, &edited(&contents[0], 7), &contents[0]);
    let with = |change: &dyn Fn(&mut pb::PageContent)| {
        let mut page = right.clone();
        change(&mut page);
        page
    };
    let lz4_encoding = i32::from(pb::PageEncoding::Lz4);
    let pages = [
        ("an unknown encoding", with(&|page| page.encoding = 3)),
        ("no block", with(&|page| page.content = Bytes::new())),
        (
            "an end too early",
            with(&|page| page.content = page.content.slice(..5)),
        ),
        (
            // A match of more than a page can have.
            "too long",
            with(&|page| {
                page.content = [&[0x1f, 7, 1, 0][..], &[255; 4000], &[0, 0]]
                    .concat()
                    .into()
            }),
        ),
        (
            "before the base",
            with(&|page| {
                page.content = [&[0x1f, 7, 0xff, 0xff][..], &[255, 200, 0x50, 1, 2, 3, 4, 5]]
                    .concat()
                    .into();
            }),
        ),
        ("page 0", with(&|page| page.number = 0)),
        ("beyond the version", with(&|page| page.number = 2)),
        (
            "a block that needs a base",
            with(&|page| page.encoding = lz4_encoding),
        ),
        (
            "another checksum",
            pb::PageContent {
                crc32: 1,
                ..lz4(1, vec![1; PAGE_SIZE as usize].into())
            },
        ),
    ];
    for (what, page) in pages {
        let mut commit = with_pages(&database, 1, epoch, vec![page]);
        commit.databases[0].page_count = 1;
        assert_eq!(
            reason(client.commit(&commit).await),
            Reason::Invalid,
            "{what}"
        );
        assert_eq!(client.head(&database).await.unwrap(), 1, "{what}");
    }
}

#[tokio::test]
async fn staged_pages_may_be_compressed_and_have_no_base() {
    let server = TestServer::start(LONG_TTL).await;
    let (mut client, database, epoch, contents) = writer(&server, 1).await;
    let staging = StagingId::random().unwrap().to_wire();
    let stage = |page: pb::PageContent| pb::StagePagesRequest {
        header: Some(pb::StagePagesHeader {
            session_id: client.session.to_wire(),
            database_id: database.id.clone(),
            staging_id: staging.clone(),
            page_size: PAGE_SIZE,
            continues: false,
        }),
        pages: vec![page],
    };
    let compressed = stage(lz4(2, vec![5; PAGE_SIZE as usize].into()));
    let of_a_base = stage(delta(1, &edited(&contents[0], 7), &contents[0]));
    let mut calls = client.calls.clone();
    let staged = calls.stage_pages(tokio_stream::iter([compressed])).await;
    assert_eq!(staged.unwrap().into_inner().page_count, 1);
    let refused = calls.stage_pages(tokio_stream::iter([of_a_base])).await;
    assert_eq!(reason(refused), Reason::Invalid);
    let mut commit = with_pages(
        &database,
        1,
        epoch,
        vec![delta(1, &edited(&contents[0], 7), &contents[0])],
    );
    commit.databases[0].page_count = 2;
    commit.databases[0].staging_ids = vec![staging.clone()];
    assert_eq!(client.commit(&commit).await.unwrap(), committed(&[2]));
    let read = client.read(&database, 2, &[1, 2]).await.unwrap();
    assert_eq!(read[0].content, edited(&contents[0], 7));
    assert_eq!(read[1].content, vec![5; PAGE_SIZE as usize]);
}

/// Messages of some kilobytes that stand for almost as much as one may.
fn zeros(first: u32) -> Vec<pb::PageContent> {
    let page = lz4(first, vec![0; 65_536].into());
    (first..first + 31)
        .map(|number| pb::PageContent {
            number,
            ..page.clone()
        })
        .collect()
}

fn large(database: &Opened, base: u64, epoch: u64, pages: Vec<pb::PageContent>) -> TestCommit {
    let mut commit = with_pages(database, base, epoch, pages);
    commit.databases[0].page_size = 65_536;
    commit
}

#[tokio::test]
async fn m9_one_message_stands_for_no_more_than_a_raw_one_could() {
    let server = TestServer::start(LONG_TTL).await;
    let mut client = server.client().await;
    let database = client.open("a.db").await;
    let epoch = client.acquire(&database).await;
    let mut pages = zeros(1);
    pages.push(lz4(32, vec![0; 65_536].into()));
    let exactly = large(&database, 0, epoch, pages.clone());
    pages.push(lz4(33, vec![0; 65_536].into()));
    let too_many = large(&database, 0, epoch, pages);
    assert_eq!(reason(client.commit(&too_many).await), Reason::Invalid);
    assert_eq!(client.commit(&exactly).await.unwrap(), committed(&[1]));
}

/// Four pools of 8 MiB: what was accepted and not yet committed never stands for more, however little was sent for it. All that is
/// refused can be committed raw at once, and everything comes back in the end.
#[tokio::test]
async fn m9_what_peers_make_the_server_hold_is_bounded_by_the_budget_whatever_they_send() {
    let settings = Settings {
        lease_ttl: LONG_TTL,
        max_connections: 64,
        memory_bytes: 64 * Settings::CONNECTION_BYTES + 32 * MIB,
        ..Settings::default()
    };
    let server = TestServer::with(settings).await;
    for round in 0..3 {
        let mut open_ends = Vec::new();
        let mut refused = Vec::new();
        for index in 0..12 {
            let mut client = server.client().await;
            let database = client.open(&format!("{round}-{index}.db")).await;
            let epoch = client.acquire(&database).await;
            let commit = large(&database, 0, epoch, zeros(1));
            let messages = commit.messages(client.session);
            let wire: usize = messages.iter().map(prost::Message::encoded_len).sum();
            assert!(wire < 16 << 10, "{wire}");
            let (send, outbound) = tokio::sync::mpsc::channel(4);
            for mut message in messages {
                message.finish = None;
                send.send(message).await.unwrap();
            }
            let mut calls = client.calls.clone();
            let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
            let mut call = tokio::spawn(async move { calls.commit(outbound).await });
            // The end is not sent: what was accepted is held.
            let early = std::time::Duration::from_millis(200);
            match tokio::time::timeout(early, &mut call).await {
                Ok(answer) => {
                    assert_eq!(reason(answer.unwrap()), Reason::EncodingRefused, "{index}");
                    refused.push((client, database, epoch));
                }
                Err(_) => open_ends.push((client, send, call)),
            }
        }
        // A session is the cost of its pages and a few of the message: 31 pages of 64 KiB each, four would not fit into 8 MiB.
        let held = open_ends.len() * 31 * 65_536;
        assert!(held <= 8 * MIB && open_ends.len() >= 3, "{held}");
        assert_eq!(refused.len(), 12 - open_ends.len());
        for (client, database, epoch) in &mut refused {
            let raw = TestCommit::new(database, 0, *epoch, 1);
            assert_eq!(client.commit(&raw).await.unwrap(), committed(&[1]));
        }
        for (_, send, call) in open_ends {
            drop(send);
            assert_eq!(reason(call.await.unwrap()), Reason::Invalid);
        }
    }
}

/// Several servers have its content.
#[derive(Debug)]
struct Shared(Arc<dyn PageStore>);

#[async_trait]
impl Layer for Shared {
    fn inner(&self) -> &dyn PageStore {
        &*self.0
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            exclusive: false,
            ..self.0.capabilities()
        }
    }
}

#[tokio::test]
async fn deltas_are_asked_for_only_where_a_base_is_near() {
    let mut named = Vec::new();
    let store = || Arc::new(MemoryStore::new().unwrap()) as Arc<dyn PageStore>;
    for store in [store(), Arc::new(Shared(store()))] {
        let server = TestServer::in_process_over(store, LONG_TTL).await;
        let mut client = server.client().await;
        let capabilities = client.connect().await.capabilities;
        named.push(
            [capability::REQUEST_LZ4, capability::PAGE_DELTAS]
                .map(|name| capabilities.iter().any(|known| known == name)),
        );
    }
    assert_eq!(named, [[true, true], [true, false]]);
}

/// What it keeps is damaged.
#[derive(Debug)]
struct Damaged(MemoryStore);

#[async_trait]
impl Layer for Damaged {
    fn inner(&self) -> &dyn PageStore {
        &self.0
    }

    async fn read(
        &self,
        _: DatabaseId,
        _: Version,
        _: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        Err(StoreError::Corrupt("page 1: checksum differs".into()))
    }
}

#[tokio::test]
async fn a_damaged_base_is_written_anew_by_a_raw_page() {
    let damaged = Arc::new(Damaged(MemoryStore::new().unwrap()));
    let server = TestServer::in_process_over(damaged, LONG_TTL).await;
    let (mut client, database, epoch, contents) = writer(&server, 1).await;
    let of_a_base = delta(1, &edited(&contents[0], 7), &contents[0]);
    let commit = with_pages(&database, 1, epoch, vec![of_a_base]);
    assert_eq!(
        reason(client.commit(&commit).await),
        Reason::EncodingRefused
    );
    let raw = with_pages(&database, 1, epoch, vec![page(1, 1)]);
    assert_eq!(client.commit(&raw).await.unwrap(), committed(&[2]));
}
