//! ResolveCommit: what became of a commit whose answer was lost. A write, so it runs in a task of its own too.

use std::sync::Arc;

use pagewire_proto::status::Reason;
use pagewire_proto::{DatabaseId, Epoch, ResolveCommit, pb};
use tonic::Status;

use super::commit::{committed, lock_in_order};
use super::opened_for_writing;
use crate::database::Database;
use crate::hub::Hub;
use crate::session::Session;
use crate::status;
use crate::store::{Resolution, Resolve, StoreError};

pub(super) async fn resolve_commit(
    hub: &Arc<Hub>,
    request: pb::ResolveCommitRequest,
) -> Result<pb::ResolveCommitResponse, Status> {
    let question = ResolveCommit::try_from(request)?;
    let session = hub.session(question.session.as_bytes()).await?;
    let mut databases = Vec::with_capacity(question.participants.len());
    for named in &question.participants {
        databases.push(participant(hub, &session, named.database).await?);
    }
    if databases.iter().all(Option::is_none) {
        return Err(status::not_open());
    }
    let task = {
        let hub = Arc::clone(hub);
        tokio::spawn(async move { settle(&hub, &session, &databases, question).await })
    };
    let patience = hub.settings.lease_ttl * 2 + hub.settings.store_wait * 2;
    match tokio::time::timeout(patience, task).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(Reason::Internal.status("the question broke off: ask again")),
        Err(_) => Err(Reason::Unavailable.status("a commit is still under way: ask again")),
    }
}

/// The database of a participant, which the session has open; `None` where there is no such database any more.
///
/// A commit that names a removed database is refused for ever, for no other database ever gets its id. So whether it was
/// applied before is all that is left to settle, and every other participant knows it.
async fn participant(
    hub: &Arc<Hub>,
    session: &Session,
    id: DatabaseId,
) -> Result<Option<Arc<Database>>, Status> {
    let not_open = match opened_for_writing(session, id.as_bytes()) {
        Ok(open) => return Ok(Some(open.database)),
        Err(not_open) => not_open,
    };
    let head = tokio::time::timeout(hub.settings.store_wait, hub.store.head(id));
    match head.await {
        Ok(Err(StoreError::DatabaseNotFound)) => Ok(None),
        Ok(_) | Err(_) => Err(not_open),
    }
}

/// `all` are the databases of the participants, without those that were removed.
async fn settle(
    hub: &Arc<Hub>,
    session: &Session,
    all: &[Option<Arc<Database>>],
    question: ResolveCommit,
) -> Result<pb::ResolveCommitResponse, Status> {
    use pb::resolve_commit_response::Outcome;
    let databases: Vec<_> = all.iter().flatten().cloned().collect();
    // After a commit that waits at a barrier or is with the store.
    let _order = lock_in_order(&databases).await;
    let Some(first) = databases.first() else {
        return Err(Reason::Invalid.status("participants: is missing"));
    };
    // The store may advance the epoch of the first participant: the table follows before anybody else fences.
    let _turn = first.turn.lock().await;
    let participants: Vec<_> = question
        .participants
        .iter()
        .zip(all)
        .filter(|(_, database)| database.is_some())
        .map(|(named, _)| (named.database, named.base, named.epoch))
        .collect();
    let named_epoch = participants.first().map_or(Epoch::NONE, |first| first.2);
    if let Some((holder, epoch)) = first.lease.lock().holder()
        && holder != session.id
        && epoch == named_epoch
    {
        // To advance it would take the lease from a session that did nothing; it can be settled when that one has ended.
        return Err(Reason::Unavailable.status(
            "another session holds the lease with this epoch: ask again when it has ended",
        ));
    }
    let resolution = hub
        .store
        .resolve(Resolve {
            id: question.id,
            participants,
        })
        .await
        .map_err(status::of_store)?;
    let outcome = match resolution {
        Resolution::Committed(versions) => {
            // The answer is the first to show them, where the outcome was not known before.
            for (database, version) in databases.iter().zip(&versions) {
                hub.publish(database, *version, None).await;
            }
            // The next version of each, also of those that were removed since.
            let made = question.participants.iter().map(|named| named.base.next());
            Outcome::Committed(committed(&made.collect::<Vec<_>>()))
        }
        Resolution::Unknown(reason) => Outcome::Unknown(pb::CommitUnknown { reason }),
        Resolution::Aborted { current } => {
            for (database, epoch) in databases.iter().zip(&current) {
                database.subscriptions.lock().fenced(*epoch);
            }
            let current = current.first().copied().unwrap_or(Epoch::NONE);
            take_over(first, session, named_epoch, current);
            Outcome::Aborted(pb::CommitAborted {
                epochs: all
                    .iter()
                    .map(|database| {
                        let lease = database.as_ref()?.lease.lock();
                        lease.epoch_of(session.id)
                    })
                    .map(|epoch| epoch.map_or(0, Epoch::get))
                    .collect(),
            })
        }
    };
    Ok(pb::ResolveCommitResponse {
        outcome: Some(outcome),
    })
}

/// The session goes on with the epoch to which the store has advanced.
fn take_over(database: &Database, session: &Session, from: Epoch, to: Epoch) {
    let mut lease = database.lease.lock();
    let mut state = session.state.lock();
    if !state.ended && lease.advance_epoch(session.id, from, to) {
        state.leases.insert(database.id, to);
    }
}
