//! Commit and CommitEach: upload, its turn, then one future that passes the barriers, warns the subscribers and hands it to the store, and goes
//! on whether or not the client still waits. A commit whose client goes away before it was its turn is dropped: it never reaches the store.
//!
//! The store's check of the epoch is the authority. A commit without the lease of its own session, or with a staging that
//! the session does not have, or with deltas whose base is gone, is still passed on, with an epoch or a staging that cannot be: it may be the
//! repetition of one that was applied, and only the store knows.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use pagewire_proto::status::Reason;
use pagewire_proto::{CommitHeader, DatabaseId, Epoch, Invalid, PageNumber, StagingId, pb};
use tokio::sync::{OwnedMutexGuard, watch};
use tonic::{Status, Streaming};

use super::opened_for_writing;
use super::read::MAX_PAGE_BESIDE;
use super::upload::{Part, Upload, next};
use crate::database::Database;
use crate::hub::{Hub, spawn_detached};
use crate::memory::Account;
use crate::metered::AnswersSent;
use crate::session::Session;
use crate::status;
use crate::store::{Commit, CommitOutcome, DatabaseCommit};

/// Never given out: no store counts so far.
const NO_EPOCH: Epoch = Epoch::new(u64::MAX);
/// How long a client waits for the store after the barriers; the commit goes on behind it.
const STORE_COMMIT_WAIT: Duration = Duration::from_secs(120);

/// Commit: its messages are the whole stream.
pub(super) async fn commit(
    hub: &Arc<Hub>,
    account: &Arc<Account>,
    mut inbound: Streaming<pb::CommitRequest>,
) -> Result<pb::CommitResponse, Status> {
    let mut first = next(hub, &mut inbound)
        .await?
        .ok_or_else(|| Invalid::missing("header"))?;
    let mut accepted = accept(hub, account, &mut first)?;
    accepted.upload.receive(first, &mut inbound).await?;
    carry_out(hub, accepted).await
}

/// CommitEach: each message is a commit. The next one is read when the transport has the answer to this one, until the client ends the
/// stream, a commit fails, or the service ends.
pub(super) fn commit_each(
    hub: Arc<Hub>,
    account: Arc<Account>,
    sent: AnswersSent,
    inbound: Streaming<pb::CommitRequest>,
) -> impl Stream<Item = Result<pb::CommitResponse, Status>> {
    let commits = Commits {
        ended: hub.ended.subscribe(),
        hub,
        account,
        sent,
        inbound,
        answered: 0,
    };
    futures_util::stream::try_unfold(commits, |mut commits| async move {
        let answer = commits.next().await?;
        Ok(answer.map(|answer| (answer, commits)))
    })
}

/// A stream of CommitEach.
struct Commits {
    hub: Arc<Hub>,
    account: Arc<Account>,
    sent: AnswersSent,
    inbound: Streaming<pb::CommitRequest>,
    ended: watch::Receiver<bool>,
    answered: u64,
}

impl Commits {
    async fn next(&mut self) -> Result<Option<pb::CommitResponse>, Status> {
        self.sent.reach(self.answered).await;
        let message = tokio::select! {
            biased;
            message = self.inbound.message() => message?,
            _ = self.ended.wait_for(|ended| *ended) => None,
        };
        let Some(mut message) = message else {
            return Ok(None);
        };
        let mut accepted = accept(&self.hub, &self.account, &mut message)?;
        accepted.upload.receive_whole(message).await?;
        let response = carry_out(&self.hub, accepted).await?;
        self.answered += 1;
        Ok(Some(response))
    }
}

/// A commit whose header is right.
struct Accepted {
    session: Arc<Session>,
    databases: Vec<Arc<Database>>,
    upload: Upload,
}

/// By its first message.
fn accept(
    hub: &Arc<Hub>,
    account: &Arc<Account>,
    first: &mut pb::CommitRequest,
) -> Result<Accepted, Status> {
    let header = first
        .header
        .take()
        .ok_or_else(|| Invalid::missing("header"))?;
    let header = CommitHeader::try_from(header)?;
    // Not waited for: the pages that came along would be held meanwhile.
    let session = hub
        .calling_session(header.session)
        .ok_or_else(status::session_unknown)?;
    let databases = header
        .databases
        .iter()
        .map(|named| {
            opened_for_writing(&session, named.database.as_bytes()).map(|open| open.database)
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Accepted {
        session,
        databases,
        upload: Upload::new(Arc::clone(hub), Arc::clone(account), header),
    })
}

/// With all of its pages.
async fn carry_out(hub: &Arc<Hub>, accepted: Accepted) -> Result<pb::CommitResponse, Status> {
    let Accepted {
        session,
        databases,
        upload,
    } = accepted;
    let under_way = UnderWay::begin(hub);
    let applied = {
        let hub = Arc::clone(hub);
        let begun = Arc::new(AtomicBool::new(false));
        GoesOn::new(Arc::clone(&begun), async move {
            let _under_way = under_way;
            let order = lock_in_order(&databases).await;
            // Before it was its turn nothing of it was given to the store, nor ever is where its client has gone: what waits behind a commit
            // that does not end would keep its pages for as long.
            begun.store(true, Ordering::Release);
            apply(&hub, &session, &databases, upload, order).await
        })
    };
    let patience = hub.settings.lease_ttl * 2 + STORE_COMMIT_WAIT;
    match tokio::time::timeout(patience, applied).await {
        Ok(outcome) => outcome.map(response),
        Err(_) => {
            Err(Reason::Internal
                .status("the store takes very long to commit: ask what became of it"))
        }
    }
}

/// A future that whoever waits for it drives, and that goes on as a task of its own when nobody waits any more, if it has begun by then.
///
/// A task from the beginning would do as well, but is handed to another thread and back: longer than a commit in memory.
struct GoesOn<T: Send + 'static> {
    /// Said by the future.
    begun: Arc<AtomicBool>,
    future: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
}

impl<T: Send + 'static> GoesOn<T> {
    fn new(begun: Arc<AtomicBool>, future: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            begun,
            future: Some(Box::pin(future)),
        }
    }
}

impl<T: Send + 'static> Future for GoesOn<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(future) = &mut self.future else {
            // Ready was answered already; nobody asks again.
            return Poll::Pending;
        };
        let output = std::task::ready!(future.as_mut().poll(context));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<T: Send + 'static> Drop for GoesOn<T> {
    fn drop(&mut self) {
        // What has panicked can't go on.
        if let Some(future) = self.future.take()
            && self.begun.load(Ordering::Acquire)
            && !std::thread::panicking()
        {
            spawn_detached(async move { drop(future.await) });
        }
    }
}

async fn apply(
    hub: &Arc<Hub>,
    session: &Arc<Session>,
    databases: &[Arc<Database>],
    upload: Upload,
    _order: Vec<OwnedMutexGuard<()>>,
) -> Result<CommitOutcome, Status> {
    hub.pass_barriers(databases).await;
    let (header, parts, _kept) = upload.take();
    let stagings: Vec<_> = parts.iter().filter_map(|part| part.staged).collect();
    let commit = match to_store(session, databases, header, parts) {
        Ok(commit) => commit,
        Err(error) => {
            hub.discard(stagings);
            return Err(error);
        }
    };
    let bases: Vec<_> = commit
        .databases
        .iter()
        .map(|named| (named.base, named.epoch))
        .collect();
    // Each commit has one, as a rule, and readers of the next version begin with it.
    let pages_1 = databases
        .iter()
        .zip(&commit.databases)
        .map(|(database, commit)| page_1_of(database, commit))
        .collect();
    let can_apply = bases.iter().all(|(_, epoch)| *epoch != NO_EPOCH);
    let prepared = hub.prepare(databases, &bases, session.id, can_apply);
    prepared.answered().await;
    let outcome = hub.store.commit(commit).await;
    prepared.conclude(&outcome, pages_1).await;
    // Also after "committed": a repetition is answered so and consumes nothing. Consumed ones are not known any more.
    hub.discard(stagings);
    match &outcome {
        // Whatever else was staged belongs to a transaction that has been rolled back.
        Ok(CommitOutcome::Committed(_))
        // Nothing of it can be committed on this base, or under this epoch.
        | Ok(CommitOutcome::Conflict { .. } | CommitOutcome::LeaseLost { .. }) => {
            for database in databases {
                hub.discard(session.state.lock().take_stagings(Some(database.id)));
            }
        }
        Err(_) => {}
    }
    if let Ok(CommitOutcome::LeaseLost { index, .. }) = outcome
        && let (Some(database), Some(&(_, epoch))) = (databases.get(index), bases.get(index))
    {
        // Does nothing unless the table still believed in it: then the store knows of another server.
        hub.release(database, session, epoch, false);
    }
    outcome.map_err(status::of_store)
}

/// Page 1 of the version that the commit makes, if it is applied now: a repetition is answered like the first one, whatever it brings.
fn page_1_of(database: &Database, commit: &DatabaseCommit) -> Option<Bytes> {
    if commit.epoch == NO_EPOCH || !database.is_first_for(commit.base.next()) {
        return None;
    }
    // Where a page is named more than once the last one holds (C8).
    let mut pages = commit.pages.iter().rev();
    let first = pages.find(|page| page.number == PageNumber::FIRST)?;
    let is_wanted = first.content.len() <= MAX_PAGE_BESIDE && database.has_subscribers();
    // A copy: the content is a part of the message, all of which would be kept with it.
    is_wanted.then(|| Bytes::copy_from_slice(&first.content))
}

/// One after the other in the order of ids, so that no two commits wait for each other.
pub(super) async fn lock_in_order(databases: &[Arc<Database>]) -> Vec<OwnedMutexGuard<()>> {
    let mut in_order: Vec<_> = databases.iter().collect();
    in_order.sort_unstable_by_key(|database| database.id);
    let mut guards = Vec::with_capacity(in_order.len());
    for database in in_order {
        guards.push(Arc::clone(&database.commits).lock_owned().await);
    }
    guards
}

fn to_store(
    session: &Session,
    databases: &[Arc<Database>],
    header: CommitHeader,
    parts: Vec<Part>,
) -> Result<Commit, Status> {
    let mut commits = Vec::with_capacity(databases.len());
    for ((named, database), part) in header.databases.into_iter().zip(databases).zip(parts) {
        let has_lease = database.lease.lock().epoch_of(session.id) == Some(named.epoch);
        // E-2: what the pages would be nobody knows.
        let can_apply = has_lease && !part.base_is_gone;
        let mut stagings = Vec::with_capacity(named.stagings.len() + 1);
        for staging in named.stagings {
            stagings.push(match staging_of(session, named.database, staging) {
                Some(stored) => stored,
                None => StagingId::random()?,
            });
        }
        stagings.extend(part.staged);
        commits.push(DatabaseCommit {
            database: named.database,
            base: named.base,
            epoch: if can_apply { named.epoch } else { NO_EPOCH },
            page_size: named.page_size,
            page_count: named.page_count,
            stagings,
            pages: part.pages,
            restore: named.restore,
        });
    }
    Ok(Commit {
        id: header.id,
        databases: commits,
    })
}

fn staging_of(session: &Session, database: DatabaseId, staging: StagingId) -> Option<StagingId> {
    session
        .state
        .lock()
        .stagings
        .get(&staging)
        .filter(|staged| staged.database == database)
        .map(|staged| staged.stored)
}

fn response(outcome: CommitOutcome) -> pb::CommitResponse {
    use pb::commit_response::Outcome;
    let outcome = match outcome {
        CommitOutcome::Committed(versions) => Outcome::Committed(committed(&versions)),
        CommitOutcome::Conflict { index, head } => Outcome::Conflict(pb::CommitConflict {
            database_index: wire_index(index),
            head_version: head.get(),
        }),
        CommitOutcome::LeaseLost { index, current } => Outcome::LeaseLost(pb::CommitLeaseLost {
            database_index: wire_index(index),
            current_epoch: current.get(),
        }),
    };
    pb::CommitResponse {
        outcome: Some(outcome),
    }
}

pub(super) fn committed(versions: &[pagewire_proto::Version]) -> pb::Committed {
    pb::Committed {
        versions: versions.iter().map(|version| version.get()).collect(),
    }
}

fn wire_index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// A commit that the server has to end before it stops.
struct UnderWay(Arc<Hub>);

impl UnderWay {
    fn begin(hub: &Arc<Hub>) -> Self {
        hub.commits.send_modify(|count| *count += 1);
        Self(Arc::clone(hub))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.commits.send_modify(|count| *count -= 1);
    }
}
