//! How a call is made, with deadline and repetition, and the calls of a running transaction: begin, read, acquire.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::limits::MAX_GRANT_PAGE_BYTES;
use pagewire_proto::{
    Changes, DatabaseId, Epoch, LeaseGrant, Page, PageNumber, PageSize, Snapshot, Version, pb,
};
use prost::Message;
use tokio::time::Instant;
use tonic::{Response, Status};

use super::Core;
use super::connect::Stub;
use super::counters::{COUNTERS, CallKind};
use super::deadline::{before, moment_after};
use super::link::Sent;
use crate::error::CallError;

/// Largest pause between two attempts of a call.
const MAX_BACKOFF: Duration = Duration::from_millis(250);

/// How an AcquireLease ended.
pub enum Acquired {
    /// The lease is ours, and these pages of its head came along.
    Granted(LeaseGrant, Vec<Page>),
    /// Another session has it; our ticket is in the queue.
    Pending,
    /// It never comes: so many transactions wait for each other, and this one has to end.
    Deadlock(u32),
}

/// A request for the write lease.
pub struct LeaseRequest {
    /// The newest version about which the cache knows everything.
    pub known: Version,
    /// The newest epoch that was given back.
    pub released: Epoch,
    /// For a holder that does not answer.
    pub wait: Duration,
    /// For one that says that it is writing.
    pub kept_wait: Duration,
    /// Of a transaction that holds something already; 0 for none.
    pub transaction: u64,
    /// The pages written since are wanted along; version 0 for none.
    pub pages_since: Version,
}

impl Core {
    /// One attempt that somebody waits for, bounded by the deadline.
    pub(super) async fn once<Q, A, F, Fut>(
        &self,
        kind: CallKind,
        deadline: Instant,
        request: Q,
        call: F,
    ) -> std::result::Result<A, CallError>
    where
        Q: Message,
        A: Message,
        F: FnOnce(Stub, Q) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        COUNTERS.waited(kind);
        self.attempt(kind, deadline, request, call).await
    }

    pub(super) async fn attempt<Q, A, F, Fut>(
        &self,
        kind: CallKind,
        deadline: Instant,
        request: Q,
        call: F,
    ) -> std::result::Result<A, CallError>
    where
        Q: Message,
        A: Message,
        F: FnOnce(Stub, Q) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let begun = Instant::now();
        let sent = request.encoded_len();
        let mut chosen = self.way.choose();
        let call = before(deadline, call(chosen.server.stub.clone(), request));
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            left = chosen.left() => {
                COUNTERS.bytes(kind, sent, 0);
                return Err(left);
            }
        };
        match answer {
            Some(Ok(response)) => {
                let answer = response.into_inner();
                COUNTERS.bytes(kind, sent, answer.encoded_len());
                Ok(answer)
            }
            Some(Err(status)) => {
                COUNTERS.bytes(kind, sent, 0);
                let error = CallError::from_status(&status);
                Err(match kind.is_optional() {
                    true => {
                        let welcome = self.session.current_welcome();
                        let versions = welcome.map(|welcome| welcome.versions);
                        error.of_an_optional_call(status.code(), versions)
                    }
                    false => error,
                })
            }
            None => Err(CallError::timeout(begun.elapsed())),
        }
    }

    /// Repeats an idempotent call while the transport fails and time is left.
    pub(super) async fn repeat<Q, A, F, Fut>(
        &self,
        kind: CallKind,
        deadline: Instant,
        request: Q,
        call: F,
    ) -> std::result::Result<A, CallError>
    where
        Q: Message + Clone,
        A: Message,
        F: Fn(Stub, Q) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let at_once = || std::future::ready(());
        self.repeat_after(at_once, kind, deadline, request, call)
            .await
    }

    /// As [`Core::repeat`], each attempt after something that has to be waited for first.
    pub(super) async fn repeat_after<B, Before, Q, A, F, Fut>(
        &self,
        first: B,
        kind: CallKind,
        mut deadline: Instant,
        request: Q,
        call: F,
    ) -> std::result::Result<A, CallError>
    where
        B: Fn() -> Before,
        Before: Future<Output = ()>,
        Q: Message + Clone,
        A: Message,
        F: Fn(Stub, Q) -> Fut,
        Fut: Future<Output = std::result::Result<Response<A>, Status>>,
    {
        let mut backoff = Duration::from_millis(5);
        let mut was_held_up = false;
        let mut may_be_done = false;
        loop {
            first().await;
            let mut outcome = self.once(kind, deadline, request.clone(), &call).await;
            if let Err(error) = &mut outcome {
                // The last attempt tells nothing of those before it.
                error.may_be_done |= may_be_done;
                may_be_done = error.may_be_done;
            }
            match outcome {
                Err(error) if error.is_transient() && Instant::now() + backoff < deadline => {
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                // A connection that the process found broken when it went on.
                Err(error)
                    if error.is_transient()
                        && !was_held_up
                        && let Some(moment) = moment_after(deadline) =>
                {
                    (deadline, was_held_up) = (moment, true);
                }
                outcome => return outcome,
            }
        }
    }

    /// The newest version, what changed since one that is known, and page 1 if it did and the server had it at hand.
    pub async fn begin_snapshot(
        &self,
        id: DatabaseId,
        known: Version,
        deadline: Instant,
    ) -> std::result::Result<(Snapshot, Changes, Option<Page>), CallError> {
        let request = pb::BeginSnapshotRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            known_version: known.get(),
            want_page_1: true,
        };
        let answer = self
            .repeat(
                CallKind::Begin,
                deadline,
                request,
                |mut stub, request| async move { stub.begin_snapshot(request).await },
            )
            .await?;
        valid(answer.head.try_into().and_then(|head| {
            let page_1 = page_beside(answer.page_1, &head)?;
            Ok((head, answer.changes.try_into()?, page_1))
        }))
    }

    /// Pages at a version; at least the first one asked for, perhaps fewer than all.
    pub async fn read_pages(
        &self,
        id: DatabaseId,
        snapshot: Snapshot,
        pages: Vec<PageNumber>,
        deadline: Instant,
    ) -> std::result::Result<Vec<Page>, CallError> {
        let request = self.read_request(id, snapshot, &pages);
        // The first of them says how long the way is, before anything was read ahead. One that is repeated seems longer; the shortest
        // counts.
        let sent = self.link.sent(std::time::Instant::now());
        let answer = self
            .repeat(
                CallKind::Read,
                deadline,
                request,
                |mut stub, request| async move { stub.read_pages(request).await },
            )
            .await?;
        self.arrived(&sent, pages_of(answer, &pages, snapshot)?)
    }

    /// The same for pages that nobody waits for yet; not repeated, since whoever needs them asks himself.
    pub async fn read_pages_ahead(
        &self,
        id: DatabaseId,
        snapshot: Snapshot,
        pages: &[PageNumber],
        deadline: Instant,
    ) -> std::result::Result<Vec<Page>, CallError> {
        let request = self.read_request(id, snapshot, pages);
        COUNTERS.background(CallKind::Read);
        let sent = self.link.sent(std::time::Instant::now());
        let answer = self
            .attempt(
                CallKind::Read,
                deadline,
                request,
                |mut stub, request| async move { stub.read_pages(request).await },
            )
            .await?;
        self.arrived(&sent, pages_of(answer, pages, snapshot)?)
    }

    fn arrived(&self, sent: &Sent, pages: Vec<Page>) -> std::result::Result<Vec<Page>, CallError> {
        let bytes = pages.iter().map(|page| page.content.len() as u64).sum();
        self.link.arrived(sent, bytes, std::time::Instant::now());
        Ok(pages)
    }

    fn read_request(
        &self,
        id: DatabaseId,
        snapshot: Snapshot,
        pages: &[PageNumber],
    ) -> pb::ReadPagesRequest {
        pb::ReadPagesRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            version: snapshot.version.get(),
            pages: pages.iter().map(|page| page.get()).collect(),
        }
    }

    /// Asks for the write lease.
    pub async fn acquire_lease(
        &self,
        id: DatabaseId,
        asked: LeaseRequest,
        deadline: Instant,
    ) -> std::result::Result<Acquired, CallError> {
        let ms = |wait: Duration| u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let request = pb::AcquireLeaseRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            known_version: asked.known.get(),
            released_epoch: asked.released.get(),
            wait_ms: ms(asked.wait),
            transaction: asked.transaction,
            kept_wait_ms: ms(asked.kept_wait),
            pages_since: asked.pages_since.get(),
        };
        let answer = self
            .repeat(
                CallKind::Acquire,
                deadline,
                request,
                |mut stub, request| async move { stub.acquire_lease(request).await },
            )
            .await?;
        use pb::acquire_lease_response::Outcome;
        match answer.outcome {
            Some(Outcome::Granted(mut grant)) => {
                let pages = std::mem::take(&mut grant.pages);
                let grant = valid(LeaseGrant::try_from(grant))?;
                let pages = pages_along(pages, &grant.head);
                Ok(Acquired::Granted(grant, pages))
            }
            Some(Outcome::Pending(_)) => Ok(Acquired::Pending),
            Some(Outcome::Deadlock(deadlock)) => Ok(Acquired::Deadlock(deadlock.transactions)),
            None => valid(Err(pagewire_proto::Invalid::missing("outcome"))),
        }
    }
}

/// Pages as they come along with a grant, of its head. A hint: where one of them is wrong none is taken, and the grant is what it is without them.
pub(super) fn pages_along(wire: Vec<pb::PageContent>, head: &Snapshot) -> Vec<Page> {
    let page_bytes = head.page_size.map_or(0, |size| size.bytes());
    if wire.len() > 1 && wire.len() * page_bytes > MAX_GRANT_PAGE_BYTES {
        return Vec::new();
    }
    // They are copied by whoever keeps them.
    let pages = wire.into_iter().map(|page| {
        let page = Page::from_answer(page, head.page_size).ok()?;
        (head.page_count.has(page.number) && page.version <= head.version).then_some(page)
    });
    pages.collect::<Option<_>>().unwrap_or_default()
}

/// Page 1 as it comes along with the news of a version.
pub(super) fn page_beside(
    wire: Option<pb::PageContent>,
    head: &Snapshot,
) -> std::result::Result<Option<Page>, pagewire_proto::Invalid> {
    let Some(wire) = wire else { return Ok(None) };
    let page = Page::from_answer(wire, head.page_size)?;
    if page.number != PageNumber::FIRST || page.version > head.version {
        return Err(pagewire_proto::Invalid::new(
            "page_1",
            "is another page, or of a later version",
        ));
    }
    Ok(Some(page))
}

/// A page of a message that has so many, for the cache.
///
/// What came raw is a slice of the whole message, up to half a megabyte: one page that stays in the cache would keep all of that, and the cache would hold
/// much more than the bytes that it counts. So it is copied, but for a page that is all of its message: about 2 us for 4 KiB, into a cache of 64 MiB.
/// What came compressed has been expanded into a memory of its own.
pub(super) fn page_of_many(
    wire: pb::PageContent,
    page_size: Option<PageSize>,
    count: usize,
) -> std::result::Result<Page, pagewire_proto::Invalid> {
    let is_slice = wire.encoding == pb::PageEncoding::Raw as i32 && count > 1;
    let mut page = Page::from_answer(wire, page_size)?;
    if is_slice {
        page.content = Bytes::copy_from_slice(&page.content);
    }
    Ok(page)
}

/// The pages of an answer, which are the first of those asked for.
fn pages_of(
    answer: pb::ReadPagesResponse,
    pages: &[PageNumber],
    snapshot: Snapshot,
) -> std::result::Result<Vec<Page>, CallError> {
    if answer.pages.is_empty() || answer.pages.len() > pages.len() {
        return valid(Err(pagewire_proto::Invalid::new(
            "pages",
            format!("{} pages for {} asked", answer.pages.len(), pages.len()),
        )));
    }
    let count = answer.pages.len();
    let mut received = Vec::with_capacity(count);
    for (wire, asked) in answer.pages.into_iter().zip(pages) {
        let page = valid(page_of_many(wire, snapshot.page_size, count))?;
        if page.number != *asked || page.version > snapshot.version {
            return valid(Err(pagewire_proto::Invalid::new(
                "pages",
                format!(
                    "page {} of version {} for page {asked} at {}",
                    page.number, page.version, snapshot.version
                ),
            )));
        }
        received.push(page);
    }
    Ok(received)
}

/// An answer that breaks the protocol is an error that repeating does not mend.
pub(super) fn valid<T>(
    value: std::result::Result<T, pagewire_proto::Invalid>,
) -> std::result::Result<T, CallError> {
    value.map_err(|invalid| CallError {
        reason: pagewire_proto::status::Reason::Internal,
        explicit: false,
        may_be_done: true,
        message: format!("the server's answer is not valid: {invalid}"),
    })
}

#[cfg(test)]
mod tests {
    use pagewire_proto::PageCount;

    use super::*;

    const SIZE: usize = 4096;

    fn page(number: u32, version: u64) -> pb::PageContent {
        let content = Bytes::from(vec![number as u8; SIZE]);
        pb::PageContent {
            number,
            version,
            crc32: crc32fast::hash(&content),
            content,
            ..Default::default()
        }
    }

    /// A hint that is wrong ended the call, or the stream, in an error, while the server went on believing that this session had the lease.
    #[test]
    fn pages_along_that_are_wrong_are_left_out_and_the_grant_is_taken() {
        let head = Snapshot {
            version: Version::new(7),
            page_size: PageSize::try_from(SIZE as u32).ok(),
            page_count: PageCount::try_from(30).expect("a count"),
        };
        let numbers = |wire| -> Vec<u32> {
            let pages = pages_along(wire, &head);
            pages.iter().map(|page| page.number.get()).collect()
        };
        let most = MAX_GRANT_PAGE_BYTES / SIZE;
        let good: Vec<_> = (1..=most as u32).map(|number| page(number, 7)).collect();
        assert_eq!(numbers(good.clone()).len(), most);
        let mut more = good.clone();
        more.push(page(20, 7));
        assert_eq!(numbers(more), [0; 0], "too many");
        let changed = |change: &dyn Fn(&mut pb::PageContent)| {
            let mut pages = vec![page(1, 7), page(2, 7)];
            change(&mut pages[1]);
            numbers(pages)
        };
        assert_eq!(changed(&|_| {}), [1, 2]);
        assert_eq!(changed(&|page| page.number = 31), [0; 0], "beyond the end");
        assert_eq!(changed(&|page| page.number = 0), [0; 0], "no page");
        assert_eq!(
            changed(&|page| page.version = 8),
            [0; 0],
            "of a later version"
        );
        assert_eq!(changed(&|page| page.crc32 ^= 1), [0; 0], "damaged");
        let short = |page: &mut pb::PageContent| {
            page.content.truncate(SIZE / 2);
            page.crc32 = crc32fast::hash(&page.content);
        };
        assert_eq!(changed(&short), [0; 0], "of another size");
    }
}
