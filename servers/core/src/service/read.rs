//! BeginSnapshot and ReadPages: the head, strictly, and pages at a version.

use std::sync::Arc;

use pagewire_proto::limits::{MAX_READ_BYTES, MAX_READ_PAGES};
use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, Invalid, Page, PageNumber, PageSize, Version, pb};
use tonic::Status;

use super::opened;
use crate::hub::Hub;

pub(super) async fn begin_snapshot(
    hub: &Arc<Hub>,
    request: pb::BeginSnapshotRequest,
) -> Result<pb::BeginSnapshotResponse, Status> {
    let session = hub.session(&request.session_id).await?;
    let open = opened(&session, &request.database_id)?;
    let known = Version::new(request.known_version);
    let (head, changes) = hub
        .bounded(hub.store.changes(open.database.id, known))
        .await?;
    Ok(pb::BeginSnapshotResponse {
        head: Some(head.into()),
        changes: Some(changes.into()),
    })
}

pub(super) async fn read_pages(
    hub: &Arc<Hub>,
    request: pb::ReadPagesRequest,
) -> Result<pb::ReadPagesResponse, Status> {
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
    // A page is not larger than the largest: how large is known only when the first has been read.
    let pages = read_some(hub, open.database.id, version, &pages, PageSize::MAX).await?;
    Ok(pb::ReadPagesResponse { pages })
}

/// Reads as many of the pages as fit into an answer, in portions that fit whatever their size is.
pub(super) async fn read_some(
    hub: &Arc<Hub>,
    database: DatabaseId,
    version: Version,
    pages: &[PageNumber],
    page_size: PageSize,
) -> Result<Vec<pb::PageContent>, Status> {
    let mut answer = Vec::with_capacity(pages.len());
    let mut bytes = 0;
    let mut largest = page_size.bytes();
    while answer.len() < pages.len() {
        let room = (MAX_READ_BYTES - bytes) / largest;
        if room == 0 {
            break;
        }
        let portion = &pages[answer.len()..pages.len().min(answer.len() + room)];
        let stored = hub
            .bounded(hub.store.read(database, version, portion))
            .await?;
        if stored.len() != portion.len() {
            return Err(Reason::Internal.status("the store answered another number of pages"));
        }
        for (&number, page) in portion.iter().zip(stored) {
            bytes += page.content.len();
            answer.push(
                Page {
                    number,
                    content: page.content,
                    version: page.version,
                }
                .to_wire(),
            );
        }
        // All pages of a version have one size.
        if let Some(page) = answer.iter().find(|page| !page.content.is_empty()) {
            largest = page.content.len();
        }
    }
    Ok(answer)
}
