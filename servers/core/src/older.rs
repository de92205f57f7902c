//! What a server of an older release lacks, so that tests/simulator can put one in the place of another. Not in what `cargo build --release` makes.
//!
//! It answers as such a server would: a call that it has not is one that the transport knows nothing of, a message of the session is one without
//! content, which ends the stream in 1.0, and a page in an encoding that it has not is read as if the field said nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use pagewire_proto::{capability, pb, version};

/// The calls of history, which came all at once.
pub const HISTORY: &[&str] = &[
    "FindVersion",
    "ListVersions",
    "DiffVersions",
    "SetTag",
    "DeleteTag",
    "CreateBranch",
    "DescribeDatabase",
    "CollectGarbage",
];

/// What a server lacks; a server of now lacks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Older {
    /// Of Hello and Welcome, with what they stand for.
    pub capabilities: Vec<&'static str>,
    /// By their names in `PageService`.
    pub calls: Vec<&'static str>,
    /// `SessionRequest.drop_stagings`.
    pub drop_stagings: bool,
    /// What protocol 1.1 brought: that a message of the session which is not known is left out.
    pub protocol_1_1: bool,
}

/// How often a client met what the servers of this process lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// StagePages.
    pub stage_pages: u64,
    /// CommitEach: never, since nobody asks for it but by the Welcome of a stream that is up, on the connection of that stream.
    pub commit_each: u64,
    /// One of [`HISTORY`].
    pub history: u64,
    /// A page in an encoding that is not known.
    pub encodings: u64,
    /// A message of the session, of which a client is told by the Welcome of the same stream: never.
    pub messages: u64,
}

static STAGE_PAGES: AtomicU64 = AtomicU64::new(0);
static COMMIT_EACH: AtomicU64 = AtomicU64::new(0);
static HISTORY_CALLS: AtomicU64 = AtomicU64::new(0);
static ENCODINGS: AtomicU64 = AtomicU64::new(0);
static MESSAGES: AtomicU64 = AtomicU64::new(0);

/// See [`Met`].
pub fn met() -> Met {
    Met {
        stage_pages: STAGE_PAGES.load(Ordering::Relaxed),
        commit_each: COMMIT_EACH.load(Ordering::Relaxed),
        history: HISTORY_CALLS.load(Ordering::Relaxed),
        encodings: ENCODINGS.load(Ordering::Relaxed),
        messages: MESSAGES.load(Ordering::Relaxed),
    }
}

impl Older {
    /// Whether it has no call of [`HISTORY`], and says so of its store.
    pub fn lacks_history(&self) -> bool {
        self.calls.contains(&HISTORY[0])
    }

    /// Of its protocol.
    pub(crate) fn minor(&self) -> u32 {
        match self.protocol_1_1 {
            true => 0,
            false => version::MINOR,
        }
    }

    /// Whether it does not name a capability.
    pub fn lacks_capability(&self, capability: &str) -> bool {
        self.capabilities.contains(&capability)
    }

    /// A call that it has not goes where those go that nobody knows.
    pub(crate) fn route<B>(&self, request: &mut http::Request<B>) {
        let path = request.uri().path();
        let Some(call) = self.calls.iter().find(|call| path.ends_with(**call)) else {
            return;
        };
        let counter = match *call {
            "StagePages" => &STAGE_PAGES,
            "CommitEach" => &COMMIT_EACH,
            _ => &HISTORY_CALLS,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        *request.uri_mut() = http::Uri::from_static("/pagewire.v1.PageService/NotThereYet");
    }

    /// A message of the session as it reads it.
    pub(crate) fn message(
        &self,
        message: Option<pb::session_request::Message>,
    ) -> Option<pb::session_request::Message> {
        let is_new = matches!(message, Some(pb::session_request::Message::DropStagings(_)));
        if is_new && self.drop_stagings {
            MESSAGES.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        message
    }

    /// Pages of a request as it reads them.
    pub(crate) fn pages(&self, pages: &mut [pb::PageContent]) {
        let (no_lz4, no_deltas) = (
            self.lacks_capability(capability::REQUEST_LZ4),
            self.lacks_capability(capability::PAGE_DELTAS),
        );
        for page in pages {
            let unknown = match page.encoding() {
                pb::PageEncoding::Raw => false,
                pb::PageEncoding::Lz4 => no_lz4,
                pb::PageEncoding::Delta => no_deltas,
            };
            if unknown {
                ENCODINGS.fetch_add(1, Ordering::Relaxed);
                page.encoding = match no_lz4 {
                    // The field came with LZ4.
                    true => 0,
                    false => i32::MAX,
                };
            }
        }
    }
}
