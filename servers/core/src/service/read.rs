//! BeginSnapshot and ReadPages: the head, strictly, and pages at a version.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::limits::{MAX_GRANT_PAGE_BYTES, MAX_READ_BYTES, MAX_READ_PAGES};
use pagewire_proto::status::Reason;
use pagewire_proto::{
    Changes, Invalid, LeaseGrant, Page, PageNumber, PageSize, Snapshot, Version, pb,
};
use prost::Message as _;
use tonic::Status;

use super::opened;
use crate::database::Database;
use crate::hub::Hub;
use crate::memory::{Account, AnswerCharge};
use crate::session::Session;

/// The largest page that is sent beside what was asked for: an eighth of what news of a connection may hold in any case.
pub(super) const MAX_PAGE_BESIDE: usize = 8 << 10;
/// How long the store may take for pages that go along with a grant: about what the client would need to ask for them on a near way.
const ALONG_WAIT: Duration = Duration::from_millis(10);
/// A page of an answer is held as it was read, and as it is sent.
const HELD_TIMES: usize = 2;
/// The rest of an answer: as many messages around pages as there may be.
const ANSWER_BYTES: usize = MAX_READ_PAGES * 16;

pub(super) async fn begin_snapshot(
    hub: &Arc<Hub>,
    account: &Arc<Account>,
    request: pb::BeginSnapshotRequest,
) -> Result<(pb::BeginSnapshotResponse, Option<AnswerCharge>), Status> {
    let session = hub.session(&request.session_id).await?;
    let open = opened(&session, &request.database_id)?;
    let known = Version::new(request.known_version);
    let (head, changes) = hub
        .bounded(hub.store.changes(open.database.id, known))
        .await?;
    open.database.note_page_size(head);
    let page_1 = match request.want_page_1 {
        true => page_1(hub, &open.database, head, &changes).await,
        false => None,
    };
    let mut answer = pb::BeginSnapshotResponse {
        head: Some(head.into()),
        changes: Some(changes.into()),
        page_1,
    };
    if answer.page_1.is_none() {
        return Ok((answer, None));
    }
    // Without memory for it the answer is what it would be without it.
    let charge = account.try_answer(HELD_TIMES * answer.encoded_len()).ok();
    if charge.is_none() {
        answer.page_1 = None;
    }
    Ok((answer, charge))
}

/// Page 1 of the head from the store, for one who will read it next: where it has changed and is small.
async fn page_1(
    hub: &Hub,
    database: &Database,
    head: Snapshot,
    changes: &Changes,
) -> Option<pb::PageContent> {
    let is_small = head
        .page_size
        .is_some_and(|size| size.bytes() <= MAX_PAGE_BESIDE);
    if !is_small || !has_changed(changes) {
        return None;
    }
    let pages = [PageNumber::FIRST];
    // A hint: what is wrong is found by whoever reads it.
    let stored = hub.bounded(hub.store.read(database.id, head.version, &pages));
    let page = stored.await.ok()?.into_iter().next()?;
    page_beside(head, changes, page.version, page.content)
}

/// Page 1, written by this version, as it is sent beside what was asked for; `None` where it is not that of the head, or not small.
pub(crate) fn page_beside(
    head: Snapshot,
    changes: &Changes,
    version: Version,
    content: Bytes,
) -> Option<pb::PageContent> {
    let fits = content.len() <= MAX_PAGE_BESIDE
        && version <= head.version
        && has_changed(changes)
        && head.page_count.has(PageNumber::FIRST)
        && head
            .page_size
            .is_some_and(|size| size.bytes() == content.len());
    let page = Page {
        number: PageNumber::FIRST,
        content,
        version,
    };
    fits.then(|| page.to_wire())
}

fn has_changed(changes: &Changes) -> bool {
    match changes {
        Changes::All => true,
        Changes::Pages(pages) => pages.contains(&PageNumber::FIRST),
    }
}

/// Pages that go along with an answer, and their memory.
pub(crate) struct Along {
    pub(crate) pages: Vec<pb::PageContent>,
    pub(crate) charge: AnswerCharge,
}

/// The first pages of the head of a grant that were written after `since`: what one who had everything of that version has to read next. The grant is for
/// one who knows of the changes up to `known`.
///
/// A hint: where there is no memory for them, or the store does not have them at hand, there are none. Somebody waits for the grant.
pub(crate) async fn pages_along(
    hub: &Hub,
    account: &Arc<Account>,
    session: &Session,
    database: &Database,
    (known, grant): (Version, &LeaseGrant),
    since: Version,
) -> Option<Along> {
    let pages = find_pages_along(hub, account, session, database, (known, grant), since);
    tokio::time::timeout(ALONG_WAIT, pages).await.ok()?
}

async fn find_pages_along(
    hub: &Hub,
    account: &Arc<Account>,
    session: &Session,
    database: &Database,
    (known, grant): (Version, &LeaseGrant),
    since: Version,
) -> Option<Along> {
    let head = grant.head;
    let page_bytes = head.page_size?.bytes();
    let changes = match since == known {
        true => grant.changes.clone(),
        false => {
            let news = hub.bounded(hub.store.changes(database.id, since)).await;
            let (newest, changes) = news.ok()?;
            (newest.version == head.version).then_some(changes)?
        }
    };
    let Changes::Pages(mut pages) = changes else {
        return None;
    };
    pages.retain(|page| head.page_count.has(*page));
    pages.sort_unstable();
    pages.truncate(MAX_GRANT_PAGE_BYTES / page_bytes);
    if pages.is_empty() {
        return None;
    }
    let bytes = HELD_TIMES * pages.len() * page_bytes + ANSWER_BYTES;
    let charge = account.try_answer(bytes).ok()?;
    let compressed = session.state.lock().wants_lz4;
    let pages = read_some(hub, database, head.version, &pages, compressed, &charge);
    let pages = pages.await.ok()?;
    Some(Along { pages, charge })
}

pub(super) async fn read_pages(
    hub: &Arc<Hub>,
    account: &Arc<Account>,
    request: pb::ReadPagesRequest,
) -> Result<(pb::ReadPagesResponse, AnswerCharge), Status> {
    if request.pages.is_empty() {
        return Err(Invalid::missing("pages").into());
    }
    if request.pages.len() > MAX_READ_PAGES {
        return Err(Reason::Limit.status(format!(
            "{} pages were asked for, at most {MAX_READ_PAGES} are allowed (max_read_pages)",
            request.pages.len()
        )));
    }
    let pages = request
        .pages
        .iter()
        .map(|&number| PageNumber::try_from(number))
        .collect::<Result<Vec<_>, _>>()?;
    let session = hub.session(&request.session_id).await?;
    let open = opened(&session, &request.database_id)?;
    let version = Version::new(request.version);
    let likely_bytes = pages.len() * open.database.likely_page_size().bytes();
    let charge = charge_pages(account, likely_bytes).await?;
    let compressed = session.state.lock().wants_lz4;
    let pages = read_some(hub, &open.database, version, &pages, compressed, &charge).await?;
    Ok((pb::ReadPagesResponse { pages }, charge))
}

/// Memory for pages with so many bytes, if there is so much, and for one page in any case.
pub(super) async fn charge_pages(
    account: &Arc<Account>,
    bytes: usize,
) -> Result<AnswerCharge, Status> {
    let held = |bytes: usize| HELD_TIMES * bytes + ANSWER_BYTES;
    account
        .answer(held(bytes.min(MAX_READ_BYTES)), held(PageSize::MAX.bytes()))
        .await
}

/// Reads as many of the pages as fit into an answer and into the memory that was taken for it, but at least one.
///
/// How large they are is known only when they have been read, so they are read in portions by the likely size.
pub(super) async fn read_some(
    hub: &Hub,
    database: &Database,
    version: Version,
    pages: &[PageNumber],
    compressed: bool,
    charge: &AnswerCharge,
) -> Result<Vec<pb::PageContent>, Status> {
    let most_bytes = charge.bytes().saturating_sub(ANSWER_BYTES) / HELD_TIMES;
    let mut answer = Vec::with_capacity(pages.len());
    let mut bytes: usize = 0;
    let mut likely_bytes = database.likely_page_size().bytes();
    while answer.len() < pages.len() {
        let room = most_bytes.saturating_sub(bytes) / likely_bytes;
        if room == 0 {
            break;
        }
        let portion = &pages[answer.len()..pages.len().min(answer.len() + room)];
        let stored = hub
            .bounded(hub.store.read(database.id, version, portion))
            .await?;
        if stored.len() != portion.len() {
            return Err(Reason::Internal.status("the store answered another number of pages"));
        }
        for (&number, page) in portion.iter().zip(stored) {
            let page_bytes = page.content.len();
            if bytes + page_bytes > most_bytes {
                // The version has larger pages than the head had.
                charge.shrink_to(HELD_TIMES * bytes + ANSWER_BYTES);
                return Ok(answer);
            }
            bytes += page_bytes;
            likely_bytes = likely_bytes.max(page_bytes);
            let page = Page {
                number,
                content: page.content,
                version: page.version,
            };
            answer.push(if compressed {
                page.to_compressed_wire()
            } else {
                page.to_wire()
            });
        }
    }
    charge.shrink_to(HELD_TIMES * bytes + ANSWER_BYTES);
    Ok(answer)
}
