//! Pages of requests in another encoding than the raw one: paid for, then expanded.
//!
//! * **M-9** A message that has one takes nothing that was not paid for: first what came, for as long as any of it waits; then the pages as
//!   they will be, before the first is expanded; then, for a portion of deltas at a time, the largest pages that their bases can be,
//!   before these are read. Nobody waits for that memory: where it is not there the answer is `ENCODING_REFUSED`. The pages of one
//!   message have [`MAX_REQUEST_BYTES`] at most, as raw ones have by the size of the message. So what peers make the server hold
//!   is what was charged, whatever a block says that it stands for.
//! * **M-10** A page that was expanded has a memory of its own: none keeps the message that it came in.
//! * **E-1** A page has the checksum that its sender counted, or it is refused; so a wrong base is never more than a detour.
//! * **E-2** A commit with a delta whose base is gone reaches the store under an epoch that cannot be: its answer is what it would be
//!   without the pages, and nothing is applied.

use std::collections::HashMap;

use bytes::Bytes;
use pagewire_proto::codec::SURPLUS_BYTES;
use pagewire_proto::limits::MAX_REQUEST_BYTES;
use pagewire_proto::status::Reason;
use pagewire_proto::{
    DatabaseId, EncodedPage, Invalid, Page, PageNumber, PageSize, Unfit, Version, pb,
};
use tonic::Status;

use crate::hub::Hub;
use crate::memory::{Account, Charge};
use crate::store::PageWrite;

/// Pages whose bases are read together: more than most commits have, and 1 MiB of the largest pages.
pub(super) const PORTION: usize = 16;

/// The client sends it again as it can always be taken.
pub(super) fn refused() -> Status {
    Reason::EncodingRefused.status(
        "the server can't take the pages in this encoding now: send them with PAGE_ENCODING_RAW",
    )
}

/// Whether there is nothing to expand.
pub(super) fn are_raw(pages: &[pb::PageContent]) -> bool {
    let raw = pb::PageEncoding::Raw as i32;
    pages.iter().all(|page| page.encoding == raw)
}

/// A page as it came, checked as far as that goes.
#[derive(Debug)]
pub(super) enum Received {
    Raw(Page),
    Encoded(EncodedPage),
}

impl Received {
    pub(super) fn from_wire(wire: pb::PageContent, page_size: PageSize) -> Result<Self, Invalid> {
        match wire.encoding == pb::PageEncoding::Raw as i32 {
            true => Page::from_wire(wire, Some(page_size)).map(Self::Raw),
            false => EncodedPage::try_from(wire).map(Self::Encoded),
        }
    }

    pub(super) fn number(&self) -> PageNumber {
        match self {
            Self::Raw(page) => page.number,
            Self::Encoded(page) => page.number,
        }
    }

    pub(super) fn is_delta(&self) -> bool {
        matches!(self, Self::Encoded(page) if page.is_delta())
    }

    /// As the store takes it (M-10, E-1).
    pub(super) fn expand(self, page_size: PageSize, bases: &Bases) -> Result<PageWrite, Status> {
        let (number, content) = match self {
            Self::Raw(page) => (page.number, Bytes::copy_from_slice(&page.content)),
            Self::Encoded(page) => {
                let base = bases.pages.get(&page.number).map(|base| &base[..]);
                match page.expand(page_size, base) {
                    Ok(expanded) => (expanded.number, expanded.content),
                    Err(Unfit::Invalid(invalid)) => return Err(invalid.into()),
                    Err(Unfit::Base(_)) => return Err(refused()),
                }
            }
        };
        Ok(PageWrite { number, content })
    }
}

/// What the pages of a message take.
#[derive(Debug, Default)]
pub(super) struct Cost {
    pages: usize,
    came: usize,
    expanded: usize,
}

impl Cost {
    pub(super) fn add(&mut self, page: &Received, page_size: PageSize) {
        self.pages += 1;
        match page {
            Received::Raw(page) => {
                self.came += page.content.len();
                self.expanded += page.content.len();
            }
            Received::Encoded(page) => {
                self.came += page.block_bytes();
                self.expanded += page_size.bytes();
            }
        }
    }

    /// Until they are expanded.
    pub(super) fn as_it_came(&self) -> usize {
        // Both are there at times, where a list grows.
        SURPLUS_BYTES + self.came + 2 * self.pages * size_of::<(usize, Received)>()
    }

    /// Afterwards.
    pub(super) fn expanded(&self) -> Result<usize, Invalid> {
        if self.expanded > MAX_REQUEST_BYTES {
            return Err(Invalid::new(
                "pages",
                format!(
                    "have {} bytes in one message, at most {MAX_REQUEST_BYTES} are allowed (max_request_bytes)",
                    self.expanded
                ),
            ));
        }
        Ok(self.expanded + self.pages * size_of::<PageWrite>())
    }
}

/// The bases of deltas.
#[derive(Debug, Default)]
pub(super) struct Bases {
    pages: HashMap<PageNumber, Bytes>,
    _paid: Option<Charge>,
}

impl Bases {
    /// Of as many pages as a portion has; `None` where the version is not kept (E-2).
    pub(super) async fn read(
        hub: &Hub,
        account: &Account,
        database: DatabaseId,
        version: Version,
        portion: &[Received],
    ) -> Result<Option<Self>, Status> {
        let deltas = portion.iter().filter(|page| page.is_delta());
        let numbers: Vec<_> = deltas.map(Received::number).collect();
        if numbers.is_empty() {
            return Ok(Some(Self::default()));
        }
        // How large pages of that version are nobody knows before they are read.
        let most = numbers.len() * PageSize::MAX.bytes();
        let paid = account.try_keep_upload(most).ok_or_else(refused)?;
        let read = hub.store.read(database, version, &numbers);
        let stored = match hub.bounded(read).await {
            Ok(stored) => stored,
            Err(status) => {
                return match Reason::of(&status) {
                    // The store has the answer to such a commit.
                    Reason::VersionGone | Reason::DatabaseNotFound => Ok(None),
                    // Another content may take its place.
                    Reason::Corrupt => Err(refused()),
                    _ => Err(status),
                };
            }
        };
        let contents = stored.into_iter().map(|page| page.content);
        Ok(Some(Self {
            pages: numbers.into_iter().zip(contents).collect(),
            _paid: Some(paid),
        }))
    }
}
