//! BeginSnapshot and ReadPages: the head, strictly, and pages at a version.

use std::sync::Arc;

use pagewire_proto::limits::{MAX_READ_BYTES, MAX_READ_PAGES};
use pagewire_proto::status::Reason;
use pagewire_proto::{Invalid, Page, PageNumber, Version, pb};
use tonic::Status;

use super::opened;
use crate::database::Database;
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
    open.database.note_page_size(head);
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
    let pages = read_some(hub, &open.database, version, &pages).await?;
    Ok(pb::ReadPagesResponse { pages })
}

/// Reads as many of the pages as fit into an answer.
///
/// How large they are is known only when they have been read, so they are read in portions by the likely size.
pub(super) async fn read_some(
    hub: &Arc<Hub>,
    database: &Database,
    version: Version,
    pages: &[PageNumber],
) -> Result<Vec<pb::PageContent>, Status> {
    let mut answer = Vec::with_capacity(pages.len());
    let mut bytes: usize = 0;
    let mut likely_bytes = database.likely_page_size().bytes();
    while answer.len() < pages.len() {
        let room = MAX_READ_BYTES.saturating_sub(bytes) / likely_bytes;
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
            if bytes + page_bytes > MAX_READ_BYTES {
                // The version has larger pages than the head had.
                return Ok(answer);
            }
            bytes += page_bytes;
            likely_bytes = likely_bytes.max(page_bytes);
            let page = Page {
                number,
                content: page.content,
                version: page.version,
            };
            answer.push(page.to_wire());
        }
    }
    Ok(answer)
}
