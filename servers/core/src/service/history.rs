//! The calls about old versions: find, list, diff, tags, branches, and what is kept.

use std::sync::Arc;

use pagewire_proto::limits::{MAX_DIFF_PAGES, MAX_LIST_VERSIONS};
use pagewire_proto::status::Reason;
use pagewire_proto::{
    DatabaseId, DatabaseName, Invalid, Moment, PageNumber, Snapshot, TagName, Version, pb,
};
use tonic::Status;

use super::{opened, opened_for_writing};
use crate::hub::Hub;

pub(super) async fn find_version(
    hub: &Arc<Hub>,
    request: pb::FindVersionRequest,
) -> Result<pb::FindVersionResponse, Status> {
    let moment = Moment::try_from(request.at)?;
    let session = hub.session(&request.session_id).await?;
    let open = opened(&session, &request.database_id)?;
    let found = match request.pin {
        true => {
            let call = pinning(request.pin_sequence)?;
            hub.pin(&session, &open.database, &moment, call).await?
        }
        false => {
            hub.bounded(hub.store.find(open.database.id, &moment))
                .await?
        }
    };
    Ok(pb::FindVersionResponse {
        found: Some(found.into()),
    })
}

/// The number of a call that pins: a heartbeat with 0 says nothing about pins.
pub(super) fn pinning(sequence: u64) -> Result<u64, Invalid> {
    match sequence {
        0 => Err(Invalid::new("pin_sequence", "is 0, must be at least 1")),
        sequence => Ok(sequence),
    }
}

pub(super) async fn list_versions(
    hub: &Arc<Hub>,
    request: pb::ListVersionsRequest,
) -> Result<pb::ListVersionsResponse, Status> {
    let limit = limited(request.limit, MAX_LIST_VERSIONS)?;
    let before = match request.before_version {
        0 => None,
        version => Some(Version::new(version)),
    };
    let session = hub.session(&request.session_id).await?;
    let id = opened(&session, &request.database_id)?.database.id;
    let versions = hub
        .store
        .versions(id, before, request.tagged_only, limit + 1);
    let mut entries = hub.bounded(versions).await?;
    let more = entries.len() > limit;
    entries.truncate(limit);
    Ok(pb::ListVersionsResponse {
        versions: entries.into_iter().map(Into::into).collect(),
        more,
    })
}

pub(super) async fn diff_versions(
    hub: &Arc<Hub>,
    request: pb::DiffVersionsRequest,
) -> Result<pb::DiffVersionsResponse, Status> {
    let limit = limited(request.limit, MAX_DIFF_PAGES)?;
    let after = match request.after_page {
        0 => None,
        page => Some(PageNumber::try_from(page)?),
    };
    let (from, to) = (
        Version::new(request.from_version),
        Version::new(request.to_version),
    );
    let session = hub.session(&request.session_id).await?;
    let id = opened(&session, &request.database_id)?.database.id;
    let mut pages = hub
        .bounded(hub.store.diff(id, from, to, after, limit + 1))
        .await?;
    let more = pages.len() > limit;
    pages.truncate(limit);
    Ok(pb::DiffVersionsResponse {
        pages: pages.into_iter().map(PageNumber::get).collect(),
        more,
    })
}

pub(super) async fn set_tag(
    hub: &Arc<Hub>,
    request: pb::SetTagRequest,
) -> Result<pb::SetTagResponse, Status> {
    let tag = TagName::try_from(request.tag.as_str())?;
    let moment = Moment::try_from(request.at)?;
    let session = hub.session(&request.session_id).await?;
    let id = opened_for_writing(&session, &request.database_id)?
        .database
        .id;
    let found = hub
        .bounded(hub.store.set_tag(id, &tag, &moment, request.replace))
        .await?;
    Ok(pb::SetTagResponse {
        found: Some(found.into()),
    })
}

pub(super) async fn delete_tag(
    hub: &Arc<Hub>,
    request: pb::DeleteTagRequest,
) -> Result<pb::DeleteTagResponse, Status> {
    let tag = TagName::try_from(request.tag.as_str())?;
    let session = hub.session(&request.session_id).await?;
    let id = opened_for_writing(&session, &request.database_id)?
        .database
        .id;
    let existed = hub.bounded(hub.store.delete_tag(id, &tag)).await?;
    Ok(pb::DeleteTagResponse { existed })
}

pub(super) async fn create_branch(
    hub: &Arc<Hub>,
    request: pb::CreateBranchRequest,
) -> Result<pb::CreateBranchResponse, Status> {
    let moment = Moment::try_from(request.at)?;
    let name = DatabaseName::try_from(request.name.as_str())?;
    let branch = DatabaseId::try_from(&request.branch_id[..])?;
    let session = hub.session(&request.session_id).await?;
    let source = opened(&session, &request.database_id)?.database;
    let found = {
        // In the order of opens and removals of the name, and not given up half-way by a client that goes away.
        let (hub, source) = (Arc::clone(hub), Arc::clone(&source));
        let task = tokio::spawn(async move {
            let _opening = hub.open_name(&name).await?;
            hub.bounded(hub.store.branch(source.id, &moment, branch, &name))
                .await
        });
        task.await
            .map_err(|_| Reason::Internal.status("the branch broke off: make it again"))??
    };
    let head = Snapshot {
        version: Version::new(1),
        ..found.snapshot
    };
    Ok(pb::CreateBranchResponse {
        head: Some(head.into()),
        found: Some(found.into()),
    })
}

pub(super) async fn describe_database(
    hub: &Arc<Hub>,
    request: pb::DescribeDatabaseRequest,
) -> Result<pb::DescribeDatabaseResponse, Status> {
    let session = hub.session(&request.session_id).await?;
    let id = opened(&session, &request.database_id)?.database.id;
    let described = hub.bounded(hub.store.describe(id)).await?;
    let (parent_name, parent_database_id, parent_version) = match described.parent {
        None => Default::default(),
        Some(parent) => (
            parent
                .name
                .map(|name| name.as_str().to_owned())
                .unwrap_or_default(),
            parent.database.to_wire(),
            parent.version.get(),
        ),
    };
    Ok(pb::DescribeDatabaseResponse {
        head: Some(described.head.into()),
        created_unix_ms: described.created.0,
        parent_name,
        parent_database_id,
        parent_version,
        oldest_version: described.oldest.get(),
        versions_kept: described.versions,
        stored_pages: described.pages,
        stored_bytes: described.bytes,
    })
}

pub(super) async fn collect_garbage(
    hub: &Arc<Hub>,
    request: pb::CollectGarbageRequest,
) -> Result<pb::CollectGarbageResponse, Status> {
    let database = match request.name.as_str() {
        "" => None,
        name => {
            let name = DatabaseName::try_from(name)?;
            Some(hub.bounded(hub.store.lookup(&name, false)).await?)
        }
    };
    let freed = hub.bounded(hub.store.collect(database)).await?;
    Ok(pb::CollectGarbageResponse {
        versions: freed.versions,
        pages: freed.pages,
        bytes: freed.bytes,
        more: freed.more,
    })
}

/// How many elements the caller wants, from 1 to `most`.
fn limited(limit: u32, most: usize) -> Result<usize, Invalid> {
    let limit = limit as usize;
    if (1..=most).contains(&limit) {
        Ok(limit)
    } else {
        Err(Invalid::new(
            "limit",
            format!("is {limit}, must be from 1 to {most}"),
        ))
    }
}
