//! OpenDatabase: name -> identity, head, first pages, and the lease where nobody else wants it.

use std::sync::Arc;

use pagewire_proto::limits::BATCH_BYTES;
use pagewire_proto::{
    DatabaseName, Invalid, LeaseGrant, Moment, PageNumber, Snapshot, Version, pb,
};
use tonic::Status;

use super::history::pinning;
use super::read::{charge_pages, read_some};
use crate::database::Database;
use crate::hub::Hub;
use crate::memory::{Account, AnswerCharge};
use crate::session::{Open, Session};
use crate::store::StoreError;
use crate::{service, status};

pub(super) async fn open_database(
    hub: &Arc<Hub>,
    account: &Arc<Account>,
    request: pb::OpenDatabaseRequest,
) -> Result<(pb::OpenDatabaseResponse, AnswerCharge), Status> {
    let name = DatabaseName::try_from(request.name.as_str())?;
    let mode = mode(request.mode)?;
    let at = match request.at {
        None => None,
        Some(at) if mode == pb::OpenMode::ReadOnly => {
            Some((Moment::try_from(at)?, pinning(request.pin_sequence)?))
        }
        Some(_) => {
            return Err(Invalid::new("at", "only read-only opens can have it").into());
        }
    };
    let session = hub.session(&request.session_id).await?;
    let writable = mode != pb::OpenMode::ReadOnly;
    let open = find(hub, &session, &name, mode, request.open_sequence).await?;
    let want_lease = request.want_lease && writable && !hub.is_draining();
    let wanted = Wanted {
        lease: want_lease,
        at,
        page_bytes: BATCH_BYTES.min(request.want_page_bytes as usize),
    };
    let answer = async {
        let charge = charge_pages(account, wanted.page_bytes).await?;
        let answer = describe(hub, &session, &open.database, wanted, &charge);
        Ok((answer.await?, charge))
    };
    let answer = answer.await;
    if answer.is_err()
        && let Some(opened) = open.opened
    {
        // The client hears that nothing is open, so it will never close it.
        hub.undo_open(&session, open.database.id, opened);
    }
    answer
}

/// What the client wants beside the open.
struct Wanted {
    lease: bool,
    /// The moment to be pinned, and the number of the call that pins.
    at: Option<(Moment, u64)>,
    page_bytes: usize,
}

/// What the client is told of a database that it has open now.
async fn describe(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    database: &Arc<Database>,
    wanted: Wanted,
    charge: &AnswerCharge,
) -> Result<pb::OpenDatabaseResponse, Status> {
    // Before the head is read: the one that is answered is then the head under this floor, and so stays readable.
    hub.protect(database).await?;
    let lease = match wanted.lease {
        true => take_free_lease(hub, session, database).await?,
        false => None,
    };
    let head = match &lease {
        Some(grant) => grant.head,
        None => hub.bounded(hub.store.head(database.id)).await?,
    };
    let found = match wanted.at {
        Some((moment, call)) => Some(hub.pin(session, database, &moment, call).await?),
        None => None,
    };
    let shown = found.as_ref().map_or(head, |found| found.snapshot);
    let compressed = session.state.lock().wants_lz4;
    let pages = first_pages(hub, database, shown, wanted.page_bytes, compressed, charge).await?;
    Ok(pb::OpenDatabaseResponse {
        database_id: database.id.to_wire(),
        head: Some(head.into()),
        lease: lease.map(Into::into),
        pages,
        found: found.map(Into::into),
    })
}

fn mode(mode: i32) -> Result<pb::OpenMode, Status> {
    match pb::OpenMode::try_from(mode) {
        Ok(mode @ (pb::OpenMode::ReadOnly | pb::OpenMode::ReadWrite | pb::OpenMode::Create)) => {
            Ok(mode)
        }
        Ok(pb::OpenMode::Unknown) | Err(_) => {
            Err(Invalid::new("mode", format!("{mode} is no mode of opening a database")).into())
        }
    }
}

/// Finds the database and notes that the session has it open. A delete waits, or has happened before.
async fn find(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    name: &DatabaseName,
    mode: pb::OpenMode,
    sequence: u64,
) -> Result<Open, Status> {
    let _opening = hub.open_name(name).await?;
    let create = mode == pb::OpenMode::Create;
    let id = hub.bounded(hub.store.lookup(name, create)).await?;
    let head = hub.bounded(hub.store.head(id)).await?;
    if !create && head.version == Version::ZERO {
        // A name without a commit is nobody's business but its maker's.
        return Err(status::of_store(StoreError::DatabaseNotFound));
    }
    let writable = mode != pb::OpenMode::ReadOnly;
    let unborn = head.version == Version::ZERO;
    let open = match hub.register_open(session, id, writable, sequence, head.version) {
        Ok(open) => open,
        Err(error) => {
            if unborn {
                // The name came into being for nobody.
                hub.drop_unborn(vec![(name.clone(), id)]);
            }
            return Err(error);
        }
    };
    if unborn {
        *open.database.unborn.lock() = Some(name.clone());
    }
    Ok(open)
}

/// The lease, if nobody has it and nobody waits; never a place in the queue.
async fn take_free_lease(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    database: &Arc<Database>,
) -> Result<Option<LeaseGrant>, Status> {
    {
        let now = tokio::time::Instant::now();
        let mut lease = database.lease.lock();
        if lease.epoch_of(session.id).is_none() && !lease.is_free(now) {
            return Ok(None);
        }
    }
    let asking = service::lease::Asking {
        known: Version::ZERO,
        wait: std::time::Duration::ZERO,
        kept_wait: std::time::Duration::ZERO,
        transaction: 0,
        pages: None,
    };
    service::lease::acquire(hub, session, database, asking)
        .await
        .map(|outcome| match outcome {
            service::lease::Outcome::Granted(grant, _) => Some(grant),
            service::lease::Outcome::Pending { .. } | service::lease::Outcome::Deadlock { .. } => {
                database.lease.lock().drop_ticket(session.id);
                None
            }
        })
}

/// The whole database where it fits into what the client wants, otherwise page 1 and those that clients have named before.
async fn first_pages(
    hub: &Arc<Hub>,
    database: &Database,
    head: Snapshot,
    want_bytes: usize,
    compressed: bool,
    charge: &AnswerCharge,
) -> Result<Vec<pb::PageContent>, Status> {
    if head.page_size.is_none() || want_bytes == 0 {
        return Ok(Vec::new());
    }
    database.note_page_size(head);
    let want_bytes = want_bytes as u64;
    let pages: Vec<PageNumber> = if head.byte_size() <= want_bytes {
        (1..=head.page_count.get())
            .map(PageNumber::try_from)
            .collect::<Result<_, _>>()?
    } else {
        let page_bytes = u64::from(database.likely_page_size().get());
        let hot = hub.hot.of(database.id);
        let hot = hot
            .iter()
            .filter_map(|page| PageNumber::try_from(*page).ok())
            .filter(|page| *page != PageNumber::FIRST && head.page_count.has(*page));
        std::iter::once(PageNumber::FIRST)
            .chain(hot)
            .take((want_bytes / page_bytes).max(1) as usize)
            .collect()
    };
    read_some(hub, database, head.version, &pages, compressed, charge).await
}
