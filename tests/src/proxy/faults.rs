//! What a proxy can be told to do to calls, news and messages.

use std::time::Duration;

use pagewire_proto::pb;
use pagewire_proto::status::Reason;

/// Which call a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// OpenDatabase
    Open,
    /// BeginSnapshot
    Begin,
    /// ReadPages
    Read,
    /// AcquireLease
    Acquire,
    /// StagePages
    Stage,
    /// Commit
    Commit,
    /// ResolveCommit
    Resolve,
    /// The calls about old versions, tags and branches.
    History,
}

/// What a proxy passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// A call, to the server.
    Call(Call),
    /// The answer to a Hello, to the client.
    Welcome,
    /// One of these on the session stream.
    News(Lost),
}

/// What happens to the call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The server carries it out; the caller gets the error of a broken connection.
    AnswerBroken,
    /// The server carries it out; the caller never hears of it.
    AnswerSilent,
    /// The server never sees it; the caller gets the error of a broken connection.
    RequestBroken,
    /// The server never sees it, and the caller never hears of it.
    RequestSilent,
    /// The caller gets the error of a broken connection at once, and the server sees the call so much later.
    RequestLate(Duration),
    /// Passed on so much later.
    Delay(Duration),
    /// The server never sees it; the caller gets the status that a server sends for the reason.
    Refused(Reason),
    /// The server never sees it; the caller gets what a proxy says of a path that it does not know, and a server of an older release of a call.
    UnknownCall,
    /// ReadPages: one bit of the first page's content is another.
    FlippedBit,
    /// ReadPages: pages that nobody asked for, in the place of the right ones.
    WrongPages,
    /// AcquireLease: the lease comes with the first version, as of a store that was set back.
    SetBack,
    /// Any: an answer with nothing in it.
    Empty,
}

/// What passes in commits, and what is done to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Commits {
    /// Commits that came with their first message.
    pub calls: u64,
    /// Their raw pages.
    pub raw: u64,
    /// Their pages in LZ4.
    pub lz4: u64,
    /// Their pages as deltas.
    pub deltas: u64,
    /// Welcome names no capability: what a server says that is older, or does without.
    pub has_no_capabilities: bool,
    /// Welcome says that the server speaks protocol 1.0.
    pub is_1_0: bool,
    /// Messages DropStagings of sessions.
    pub drops: u64,
    /// Welcome says that the store keeps no old versions, as that of a server without the calls of history does.
    pub keeps_no_versions: bool,
    /// A delta is passed on as that of another base.
    pub spoils_deltas: bool,
}

impl Commits {
    pub(super) fn see(&mut self, message: &mut pb::CommitRequest) {
        self.calls += u64::from(message.header.is_some());
        for page in message
            .batches
            .iter_mut()
            .flat_map(|batch| &mut batch.pages)
        {
            match page.encoding() {
                pb::PageEncoding::Raw => self.raw += 1,
                pb::PageEncoding::Lz4 => self.lz4 += 1,
                pb::PageEncoding::Delta => self.deltas += 1,
            }
            if self.spoils_deltas && page.encoding() == pb::PageEncoding::Delta {
                // All of it a copy of the base: never the page, which differs from that.
                page.content = copy_of_base();
            }
        }
    }

    pub(super) fn see_session(&mut self, message: &pb::SessionRequest) {
        use pb::session_request::Message;
        let is_drop = matches!(message.message, Some(Message::DropStagings(_)));
        self.drops += u64::from(is_drop);
    }

    pub(super) fn see_answer(&self, answer: &mut pb::SessionResponse) {
        use pb::session_response::Message;
        let Some(Message::Welcome(welcome)) = &mut answer.message else {
            return;
        };
        if self.has_no_capabilities {
            welcome.capabilities.clear();
        }
        if self.is_1_0 {
            welcome.protocol_minor = 0;
        }
        if self.keeps_no_versions {
            let store = welcome.store.get_or_insert_default();
            (store.versions, store.branches) = (false, false);
        }
    }
}

/// A page of 4096 bytes that repeats its base: a match as far back as a page is long, and five literals.
fn copy_of_base() -> bytes::Bytes {
    let mut block = vec![0x0f, 0, 16];
    let rest: usize = 4096 - 5 - 19;
    block.extend(vec![255; rest / 255]);
    block.push((rest % 255) as u8);
    block.extend([0x50, 0, 0, 0, 0, 0]);
    block.into()
}

/// What happens to the news of subscriptions on all session streams, until it is set anew. Their order stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct News {
    /// Each message of the server, heartbeats included, waits so long before it is passed on.
    pub delay: Duration,
    /// News comes twice.
    pub twice: bool,
}

/// A message on the session stream. One that is lost takes the stream with it, as on any connection that breaks: the next one
/// resumes the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// CloseDatabase
    Close,
    /// ReleaseLease
    Release,
    /// LeaseGranted
    Granted,
    /// LeaseRecall
    Recall,
}

impl Lost {
    pub(super) fn of_request(message: &pb::SessionRequest) -> Option<Self> {
        use pb::session_request::Message;
        match &message.message {
            Some(Message::CloseDatabase(_)) => Some(Lost::Close),
            Some(Message::ReleaseLease(_)) => Some(Lost::Release),
            _ => None,
        }
    }

    pub(super) fn of_response(message: &pb::SessionResponse) -> Option<Self> {
        use pb::session_response::Message;
        match &message.message {
            Some(Message::LeaseGranted(_)) => Some(Lost::Granted),
            Some(Message::LeaseRecall(_)) => Some(Lost::Recall),
            _ => None,
        }
    }
}
