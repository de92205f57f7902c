//! ResolveCommit: what became of a commit whose answer was lost. A write, so it runs in a task of its own too.

use std::sync::Arc;

use pagewire_proto::status::Reason;
use pagewire_proto::{Epoch, ResolveCommit, pb};
use tonic::Status;

use super::commit::{committed, lock_in_order};
use super::opened_for_writing;
use crate::database::Database;
use crate::hub::Hub;
use crate::session::Session;
use crate::status;
use crate::store::{Resolution, Resolve};

pub(super) async fn resolve_commit(
    hub: &Arc<Hub>,
    request: pb::ResolveCommitRequest,
) -> Result<pb::ResolveCommitResponse, Status> {
    let question = ResolveCommit::try_from(request)?;
    let session = hub.session(question.session.as_bytes()).await?;
    let databases = question
        .participants
        .iter()
        .map(|named| {
            opened_for_writing(&session, named.database.as_bytes()).map(|open| open.database)
        })
        .collect::<Result<Vec<_>, _>>()?;
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

async fn settle(
    hub: &Arc<Hub>,
    session: &Session,
    databases: &[Arc<Database>],
    question: ResolveCommit,
) -> Result<pb::ResolveCommitResponse, Status> {
    use pb::resolve_commit_response::Outcome;
    // After a commit that waits at a barrier or is with the store.
    let _order = lock_in_order(databases).await;
    let Some(first) = databases.first() else {
        return Err(Reason::Invalid.status("participants: is missing"));
    };
    // The store may advance the epoch of the first participant: the table follows before anybody else fences.
    let _turn = first.turn.lock().await;
    let participants: Vec<_> = question
        .participants
        .iter()
        .map(|named| (named.database, named.base, named.epoch))
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
                hub.publish(database, *version).await;
            }
            Outcome::Committed(committed(&versions))
        }
        Resolution::Unknown(reason) => Outcome::Unknown(pb::CommitUnknown { reason }),
        Resolution::Aborted { current } => {
            for (database, epoch) in databases.iter().zip(&current) {
                database.subscriptions.lock().fenced(*epoch);
            }
            let current = current.first().copied().unwrap_or(Epoch::NONE);
            take_over(first, session, named_epoch, current);
            Outcome::Aborted(pb::CommitAborted {
                epochs: databases
                    .iter()
                    .map(|database| {
                        let lease = database.lease.lock();
                        lease.epoch_of(session.id).map_or(0, Epoch::get)
                    })
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
