//! e01: what a server announces about pages of requests that are not raw, it keeps. And [`encode`], which makes such pages of raw ones,
//! so that all rules of stores can be tried with them.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::pb::commit_response::Outcome as Answer;
use pagewire_proto::status::Reason;
use pagewire_proto::{
    CommitChecksum, CommitId, DatabaseId, DatabaseName, Page, PageNumber, Version, capability, pb,
};

use super::Endpoint;
use super::remote::RemoteStore;
use crate::conformance::fixture::{SIZE, content, ensure};
use crate::conformance::{Outcome, Verdict, Violation};
use crate::store::{PageStore as _, StoreError};

/// More than a server reads the bases of at a time, perhaps.
const PAGES: u32 = 40;
/// How often a server may have no memory for an encoding that it announces.
const PATIENCE: usize = 20;

/// What a server takes beside raw pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    pub(super) lz4: bool,
    pub(super) deltas: bool,
}

impl Announced {
    pub(super) fn by(welcome: &pb::Welcome) -> Self {
        let has = |name: &str| welcome.capabilities.iter().any(|known| known == name);
        Self {
            lz4: has(capability::REQUEST_LZ4),
            deltas: has(capability::PAGE_DELTAS),
        }
    }

    pub(super) fn any(self) -> bool {
        self.lz4 || self.deltas
    }
}

/// A raw page of a request in the smallest form that the server takes.
pub(super) fn encode(page: &mut pb::PageContent, announced: Announced, base: Option<&Bytes>) {
    let Ok(number) = PageNumber::try_from(page.number) else {
        return;
    };
    let raw = Page {
        number,
        content: page.content.clone(),
        version: Version::ZERO,
    };
    match base {
        Some(base) if announced.deltas && base.len() == raw.content.len() => {
            *page = raw.to_delta_wire(base);
        }
        _ if announced.lz4 => *page = raw.to_compressed_wire(),
        _ => {}
    }
}

struct Trial {
    store: RemoteStore,
    id: DatabaseId,
    epoch: u64,
    /// What the head has.
    pages: HashMap<u32, Bytes>,
    head: u64,
}

impl Trial {
    async fn begin(endpoint: &Endpoint) -> Result<Self, Violation> {
        let store = endpoint.store().await?;
        let name = format!("conformance/{}/encodings", DatabaseId::random()?);
        let id = store
            .lookup(&DatabaseName::try_from(name.as_str())?, true)
            .await?;
        let epoch = store.fence(id).await?.get();
        let mut trial = Self {
            store,
            id,
            epoch,
            pages: HashMap::new(),
            head: 0,
        };
        let raw = (1..=PAGES).map(|number| page(number, content(SIZE, number, 1)));
        let raw: Vec<_> = raw.map(|page| page.to_wire()).collect();
        let first = trial.request(CommitId::random()?, 0, raw);
        trial.takes(first, 1).await?;
        trial.pages = (1..=PAGES)
            .map(|number| (number, content(SIZE, number, 1)))
            .collect();
        Ok(trial)
    }

    fn request(&self, id: CommitId, base: u64, pages: Vec<pb::PageContent>) -> pb::CommitRequest {
        let mut checksum = CommitChecksum::default();
        pages.iter().for_each(|page| checksum.add(page.crc32));
        pb::CommitRequest {
            header: Some(pb::CommitHeader {
                session_id: self.store.wire.id.to_wire(),
                commit_id: id.to_wire(),
                databases: vec![pb::CommitDatabase {
                    database_id: self.id.to_wire(),
                    base_version: base,
                    epoch: self.epoch,
                    page_size: SIZE.get(),
                    page_count: PAGES,
                    ..pb::CommitDatabase::default()
                }],
            }),
            batches: vec![pb::PageBatch {
                database_index: 0,
                pages,
            }],
            finish: Some(checksum.finish()),
        }
    }

    /// The answer, or the reason of a refusal.
    async fn send(&self, request: pb::CommitRequest) -> Result<Result<Answer, Reason>, Violation> {
        let shown = request.header.clone();
        let mut calls = self.store.wire.calls.clone();
        let answer = calls.commit(tokio_stream::iter([request])).await;
        let reason = answer.as_ref().err().map(Reason::of);
        match (self.store.wire.noted(&shown, answer), reason) {
            (Ok(answer), _) => match answer.outcome {
                Some(outcome) => Ok(Ok(outcome)),
                None => Err(Violation("Commit answered without an outcome".to_owned())),
            },
            (Err(_), Some(reason)) => Ok(Err(reason)),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// What has to be taken, in the end.
    async fn takes(&mut self, request: pb::CommitRequest, version: u64) -> Result<(), Violation> {
        let mut answer = self.send(request.clone()).await?;
        for _ in 0..PATIENCE {
            if answer != Err(Reason::EncodingRefused) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer = self.send(request.clone()).await?;
        }
        ensure!(
            matches!(&answer, Ok(Answer::Committed(made)) if made.versions == [version]),
            "a right commit in an encoding that the server announces was answered {answer:?}, has to make version {version}"
        );
        self.head = self.head.max(version);
        Ok(())
    }

    /// The head and all of its pages are as they were told to be.
    async fn is_right(&self) -> Result<(), Violation> {
        let head = self.store.head(self.id).await?.version;
        ensure!(
            head == Version::new(self.head),
            "the head is {head}, has to be {}",
            self.head
        );
        let numbers = (1..=PAGES).map(PageNumber::try_from);
        let numbers = numbers.collect::<Result<Vec<_>, _>>()?;
        let read = self.store.read(self.id, head, &numbers).await?;
        for (number, read) in numbers.iter().zip(read) {
            ensure!(
                self.pages.get(&number.get()) == Some(&read.content),
                "page {number} of version {head} is not what was committed"
            );
        }
        Ok(())
    }

    /// A commit of these contents, raw but for those that can be otherwise.
    async fn takes_pages(
        &mut self,
        pages: &[(u32, Bytes)],
        announced: Announced,
    ) -> Result<pb::CommitRequest, Violation> {
        let wire = pages.iter().map(|(number, content)| {
            let mut wire = page(*number, content.clone()).to_wire();
            encode(&mut wire, announced, self.pages.get(number));
            wire
        });
        let mut wire: Vec<_> = wire.collect();
        // A raw one among them, which a later one of the same number replaces.
        if let Some((number, _)) = pages.first() {
            wire.insert(0, page(*number, content(SIZE, *number, 77)).to_wire());
        }
        let request = self.request(CommitId::random()?, self.head, wire);
        self.takes(request.clone(), self.head + 1).await?;
        self.pages.extend(pages.iter().cloned());
        self.is_right().await?;
        Ok(request)
    }
}

fn page(number: u32, content: Bytes) -> Page {
    Page {
        number: PageNumber::try_from(number).unwrap_or(PageNumber::FIRST),
        content,
        version: Version::ZERO,
    }
}

/// The same with its last bytes changed, so that all before them is taken from the base.
fn edited(content: &Bytes, by: u8) -> Bytes {
    let mut content = content.to_vec();
    for byte in content.iter_mut().rev().take(8) {
        *byte ^= by;
    }
    content.into()
}

pub(super) async fn e01(endpoint: &Endpoint) -> Outcome {
    let announced = Announced::by(&endpoint.welcome().await?);
    if !announced.any() {
        return Ok(Verdict::NotTried("the server announces no encoding"));
    }
    let mut trial = Trial::begin(endpoint).await?;
    if announced.lz4 {
        let only = Announced {
            deltas: false,
            ..announced
        };
        let pages: Vec<_> = (1..=PAGES / 2)
            .map(|number| (number, content(SIZE, number, 2)))
            .collect();
        trial.takes_pages(&pages, only).await?;
        let mut wrong = page(1, content(SIZE, 1, 3)).to_compressed_wire();
        wrong.crc32 ^= 1;
        refuses(&trial, wrong, Reason::Invalid, "a checksum of another page").await?;
    }
    if announced.deltas {
        let before = trial.pages.clone();
        let edits = before
            .iter()
            .filter(|(number, _)| **number > 2)
            .map(|(number, content)| (*number, edited(content, 0xff)));
        let request = trial
            .takes_pages(&edits.collect::<Vec<_>>(), announced)
            .await?;
        // On what it has just made: the base is the newest version, not an older one.
        let again = trial.pages.clone().into_iter();
        let again = again.map(|(number, content)| (number, edited(&content, 0x0f)));
        trial
            .takes_pages(&again.collect::<Vec<_>>(), announced)
            .await?;
        let version = trial.head - 1;
        trial.takes(request.clone(), version).await?;
        trial.is_right().await?;
        let mut late = request;
        if let Some(header) = &mut late.header {
            header.commit_id = CommitId::random()?.to_wire();
        }
        let answer = trial.send(late).await?;
        ensure!(
            matches!(&answer, Ok(Answer::Conflict(conflict)) if conflict.head_version == trial.head),
            "deltas on a base that is not the head were answered {answer:?}, has to be a conflict"
        );
        trial.is_right().await?;
        // Of a base that differs where everything is taken from it.
        let other = content(SIZE, 5, 99);
        let wrong = page(5, edited(&other, 0xff)).to_delta_wire(&other);
        refuses(
            &trial,
            wrong,
            Reason::EncodingRefused,
            "a delta of another base",
        )
        .await?;
    }
    Ok(Verdict::Kept)
}

async fn refuses(
    trial: &Trial,
    wrong: pb::PageContent,
    reason: Reason,
    what: &str,
) -> Result<(), Violation> {
    ensure!(
        wrong.encoding() != pb::PageEncoding::Raw,
        "{what} was not made"
    );
    let request = trial.request(CommitId::random()?, trial.head, vec![wrong]);
    let answer = trial.send(request).await?;
    let memory = Err(Reason::EncodingRefused);
    ensure!(
        answer == Err(reason) || answer == memory,
        "{what} was answered {answer:?}, has to be refused with {reason:?}"
    );
    trial.is_right().await
}

impl RemoteStore {
    /// The pages of the messages of a commit as a client sends them that has read what it changes.
    pub(super) async fn encode_messages(
        &self,
        messages: &mut [pb::CommitRequest],
    ) -> Result<(), StoreError> {
        let announced = Announced::by(&self.wire.welcome);
        let Some(header) = messages.first().and_then(|first| first.header.clone()) else {
            return Ok(());
        };
        for batch in messages.iter_mut().flat_map(|message| &mut message.batches) {
            let Some(named) = header.databases.get(batch.database_index as usize) else {
                continue;
            };
            let numbers = batch.pages.iter().map(|page| page.number);
            let numbers = numbers.filter_map(|number| PageNumber::try_from(number).ok());
            let numbers: Vec<_> = numbers.collect();
            let id = DatabaseId::try_from(&named.database_id[..]).map_err(super::remote::wrong)?;
            // Without them the pages are compressed.
            let base = Version::new(named.base_version);
            let bases = self.read(id, base, &numbers).await.unwrap_or_default();
            for (index, page) in batch.pages.iter_mut().enumerate() {
                encode(page, announced, bases.get(index).map(|base| &base.content));
            }
        }
        Ok(())
    }
}
