//! StagePages: pages of a running transaction, ahead of its commit, in bounded messages.
//!
//! One call is sent once. What a lost answer means is decided by who called (`connection/staging.rs`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use pagewire_proto::limits::BATCH_BYTES;
use pagewire_proto::{DatabaseId, Invalid, Page, PageNumber, PageSize, StagingId, Version, pb};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::Instant;

use super::counters::{COUNTERS, CallKind};
use super::{Core, valid};
use crate::compression::Encodings;
use crate::error::CallError;

/// Where the content of a page to be sent lies.
#[derive(Clone, Debug)]
pub enum PageSource {
    /// In memory.
    Memory(Bytes),
    /// In the spill file of its transaction, at this byte offset.
    Spilled(u64),
}

impl PageSource {
    /// The content.
    pub(super) fn read(
        &self,
        page_size: PageSize,
        spill: Option<&Arc<File>>,
    ) -> std::io::Result<Bytes> {
        match self {
            PageSource::Memory(content) => Ok(content.clone()),
            PageSource::Spilled(offset) => {
                let file = spill.ok_or_else(|| std::io::Error::other("there is no spill file"))?;
                let mut content = vec![0; page_size.bytes()];
                file.read_exact_at(&mut content, *offset)?;
                Ok(content.into())
            }
        }
    }
}

/// What one call stages.
#[derive(Debug)]
pub struct StagePages {
    /// For which database.
    pub database: DatabaseId,
    /// Under which id.
    pub staging: StagingId,
    /// Whether the staging has pages of earlier calls.
    pub continues: bool,
    /// Of the pages.
    pub page_size: PageSize,
    /// Each page once.
    pub pages: Vec<(PageNumber, PageSource)>,
    /// Where spilled pages lie.
    pub spill: Option<Arc<File>>,
}

impl Core {
    /// Sends one call. Without an answer some of the pages may have been staged, now or later.
    ///
    /// But for its encoding: where the server refuses that, the pages go again, raw. What it has taken of them already they replace.
    pub async fn stage_pages(&self, call: StagePages, deadline: Instant) -> Result<(), CallError> {
        let call = Arc::new(call);
        let lz4 = self.encodings().lz4;
        let outcome = self.stage_pages_once(&call, lz4, deadline).await;
        match outcome {
            Err(error) if lz4 && error.explicit && error.may_be_of_an_encoding() => {
                COUNTERS.background(CallKind::Stage);
                self.stage_pages_once(&call, false, deadline).await
            }
            outcome => outcome,
        }
    }

    async fn stage_pages_once(
        &self,
        call: &Arc<StagePages>,
        lz4: bool,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let count = call.pages.len() as u64;
        let header = pb::StagePagesHeader {
            session_id: self.session.id().to_wire(),
            database_id: call.database.to_wire(),
            staging_id: call.staging.to_wire(),
            page_size: call.page_size.get(),
            continues: call.continues,
        };
        let failure = Arc::new(Mutex::new(None));
        let messages = Messages {
            header: Some(header),
            call: Arc::clone(call),
            encodings: Encodings { lz4, deltas: false },
            next: 0,
            failure: Arc::clone(&failure),
        };
        let begun = Instant::now();
        let mut chosen = self.way.choose();
        let mut stub = chosen.server.stub.clone();
        let call = stub.stage_pages(tokio_stream::iter(messages));
        let outcome = tokio::select! {
            biased;
            answer = tokio::time::timeout_at(deadline, call) => match answer {
                Ok(Ok(response)) => Ok(response.into_inner()),
                Ok(Err(status)) => Err(CallError::from_status(&status)),
                Err(_) => Err(CallError::timeout(begun.elapsed())),
            },
            left = chosen.left() => Err(left),
        };
        if let Some(error) = failure.lock().take() {
            let what = format!("the temporary file of the transaction can't be read: {error}");
            return valid(Err(Invalid::new("pages", what)));
        }
        let answer = outcome?;
        COUNTERS.bytes(CallKind::Stage, 0, answer.encoded_len());
        match answer.page_count == count {
            true => Ok(()),
            false => valid(Err(Invalid::new(
                "page_count",
                format!("is {}, {count} pages were sent", answer.page_count),
            ))),
        }
    }
}

/// The messages of a call, made one by one as the network takes them.
struct Messages {
    header: Option<pb::StagePagesHeader>,
    call: Arc<StagePages>,
    encodings: Encodings,
    next: usize,
    failure: Arc<Mutex<Option<std::io::Error>>>,
}

impl Iterator for Messages {
    type Item = pb::StagePagesRequest;

    fn next(&mut self) -> Option<pb::StagePagesRequest> {
        let mut pages = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some((number, source)) = self.call.pages.get(self.next)
        {
            let content = match source.read(self.call.page_size, self.call.spill.as_ref()) {
                Ok(content) => content,
                Err(error) => {
                    *self.failure.lock() = Some(error);
                    return None;
                }
            };
            bytes += content.len();
            let page = Page {
                number: *number,
                content,
                version: Version::ZERO,
            };
            pages.push(self.encodings.encode(&page, || None));
            self.next += 1;
        }
        let header = self.header.take();
        if header.is_none() && pages.is_empty() {
            return None;
        }
        let message = pb::StagePagesRequest { header, pages };
        COUNTERS.bytes(CallKind::Stage, message.encoded_len(), 0);
        Some(message)
    }
}
