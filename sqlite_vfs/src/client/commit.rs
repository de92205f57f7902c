//! Commit and ResolveCommit: pages that were not staged ahead are streamed in bounded messages, straight from memory or from the spill file.

use std::fs::File;
use std::sync::Arc;

use pagewire_proto::limits::BATCH_BYTES;
use pagewire_proto::{
    CommitChecksum, CommitDatabase, CommitHeader, CommitId, CommitParticipant, DatabaseId, Epoch,
    Page, PageCount, PageNumber, PageSize, ResolveCommit, StagingId, Version, pb,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::Instant;

use super::counters::{COUNTERS, CallKind};
use super::deadline::before;
use super::{Core, PageSource, valid};
use crate::cache::PageCache;
use crate::compression::Encodings;
use crate::database::DatabaseState;
use crate::error::CallError;

/// A page of a commit.
#[derive(Clone, Debug)]
pub struct CommitPage {
    /// Which page.
    pub number: PageNumber,
    /// Its content.
    pub source: PageSource,
    /// One of the stagings has exactly this content, and no later one has another.
    pub staged: bool,
}

/// What a commit makes of one database.
#[derive(Clone, Debug)]
pub struct CommitPart {
    /// Which database.
    pub id: DatabaseId,
    /// The version on which the transaction was made.
    pub base: Version,
    /// Of the new version.
    pub page_size: PageSize,
    /// Of the new version.
    pub page_count: PageCount,
    /// Each page once, in ascending order.
    pub pages: Vec<CommitPage>,
    /// Where spilled pages lie.
    pub spill: Option<Arc<File>>,
    /// The version whose pages the new one has; there are no others then.
    pub restore: Option<Version>,
    /// What was staged ahead, in the order in which it applies.
    pub stagings: Vec<StagingId>,
}

/// A commit that may be sent.
#[derive(Clone)]
pub struct CommitAttempt {
    /// Its identity.
    pub id: CommitId,
    /// At least one database.
    pub parts: Arc<Vec<CommitPart>>,
    /// Of the write lease of each part.
    pub epochs: Vec<Epoch>,
    /// Whether it relies on what was staged ahead. Without, it carries all pages itself.
    pub with_stagings: bool,
    /// In what its pages may go.
    pub encodings: Encodings,
    /// Of each part: whose cached pages are the bases of deltas.
    pub states: Vec<Arc<DatabaseState>>,
}

/// How a commit ended, as far as the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// Applied; a version for each part.
    Committed(Vec<Version>),
    /// Not applied: the head of a part is not its base.
    Conflict {
        /// Which part.
        index: usize,
        /// Its head.
        head: Version,
    },
    /// Not applied: the lease of a part was lost.
    LeaseLost {
        /// Which part.
        index: usize,
    },
}

/// What became of a commit whose answer was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Applied.
    Committed(Vec<Version>),
    /// Never applied; the epochs of the leases that are still ours.
    Aborted(Vec<Epoch>),
    /// The record is gone.
    Unknown(String),
}

impl CommitAttempt {
    /// Bytes of pages, for the deadline.
    pub fn byte_size(&self) -> u64 {
        self.parts
            .iter()
            .map(|part| part.pages.len() as u64 * u64::from(part.page_size.get()))
            .sum()
    }

    /// The question what became of it.
    pub fn participants(&self) -> Vec<CommitParticipant> {
        self.parts
            .iter()
            .zip(&self.epochs)
            .map(|(part, epoch)| CommitParticipant {
                database: part.id,
                base: part.base,
                epoch: *epoch,
            })
            .collect()
    }
}

impl Core {
    /// Sends a commit once. After an error it may have been applied, unless the error is explicit and not `Internal`.
    pub async fn commit(
        &self,
        attempt: &CommitAttempt,
        deadline: Instant,
    ) -> Result<CommitResult, CallError> {
        let header = CommitHeader {
            session: self.session.id(),
            id: attempt.id,
            databases: attempt
                .parts
                .iter()
                .zip(&attempt.epochs)
                .map(|(part, epoch)| CommitDatabase {
                    database: part.id,
                    base: part.base,
                    epoch: *epoch,
                    page_size: part.page_size,
                    page_count: part.page_count,
                    stagings: match attempt.with_stagings {
                        true => part.stagings.clone(),
                        false => Vec::new(),
                    },
                    restore: part.restore,
                })
                .collect(),
        };
        let failure = Arc::new(Mutex::new(None));
        let mut messages = Messages {
            header: Some((&header).into()),
            parts: Arc::clone(&attempt.parts),
            with_stagings: attempt.with_stagings,
            encodings: attempt.encodings,
            states: attempt.states.clone(),
            cache: Arc::clone(&self.cache),
            part: 0,
            page: 0,
            checksum: Some(CommitChecksum::default()),
            failure: Arc::clone(&failure),
        };
        COUNTERS.waited(CallKind::Commit);
        let begun = Instant::now();
        let first = messages.next();
        let mut chosen = self.way.choose();
        let server = chosen.server;
        let call = async {
            match first {
                Some(whole) if messages.is_over() && self.has_commit_each() => {
                    server.lanes.commit(&server.stub, whole).await
                }
                first => {
                    let messages = tokio_stream::iter(first.into_iter().chain(messages));
                    let response = server.stub.clone().commit(messages).await?;
                    Ok(response.into_inner())
                }
            }
        };
        let outcome = tokio::select! {
            biased;
            answer = before(deadline, call) => match answer {
                Some(Ok(response)) => Ok(response),
                Some(Err(status)) => Err(CallError::from_status(&status)),
                None => Err(CallError::timeout(begun.elapsed())),
            },
            left = chosen.left() => Err(left),
        };
        if let Some(error) = failure.lock().take() {
            // The stream ended without its finish: nothing was applied.
            return Err(CallError {
                reason: pagewire_proto::status::Reason::Invalid,
                explicit: true,
                may_be_done: false,
                message: format!("the temporary file of the transaction can't be read: {error}"),
            });
        }
        let answer = outcome?;
        COUNTERS.bytes(CallKind::Commit, 0, answer.encoded_len());
        let count = attempt.parts.len();
        use pb::commit_response::Outcome;
        match answer.outcome {
            Some(Outcome::Committed(committed)) => Ok(CommitResult::Committed(valid(versions(
                &attempt.participants(),
                &committed,
            ))?)),
            Some(Outcome::Conflict(conflict)) => Ok(CommitResult::Conflict {
                index: (conflict.database_index as usize).min(count - 1),
                head: Version::new(conflict.head_version),
            }),
            Some(Outcome::LeaseLost(lost)) => Ok(CommitResult::LeaseLost {
                index: (lost.database_index as usize).min(count - 1),
            }),
            None => valid(Err(pagewire_proto::Invalid::missing("outcome"))),
        }
    }

    fn has_commit_each(&self) -> bool {
        let welcome = self.session.current_welcome();
        welcome.is_some_and(|welcome| welcome.commit_each)
    }

    /// Settles a commit; repeated until the deadline.
    pub async fn resolve(
        &self,
        id: CommitId,
        participants: &[CommitParticipant],
        deadline: Instant,
    ) -> Result<Settled, CallError> {
        let resolve = ResolveCommit {
            session: self.session.id(),
            id,
            participants: participants.to_vec(),
        };
        let request = pb::ResolveCommitRequest::from(&resolve);
        // A server that the session comes back to knows it still, and would settle the commit beside its Hello: the one advances the epoch,
        // the other lists the lease under the one before, and it would be lost with the transaction (PEER5).
        let behind_the_welcome = || async {
            if self.way.len() > 1 {
                // However it ends, the call finds out.
                let _ = self.session.welcome(deadline).await;
            }
        };
        let answer = self
            .repeat_after(
                behind_the_welcome,
                CallKind::Resolve,
                deadline,
                request,
                |mut stub, request| async move { stub.resolve_commit(request).await },
            )
            .await?;
        use pb::resolve_commit_response::Outcome;
        match answer.outcome {
            Some(Outcome::Committed(committed)) => Ok(Settled::Committed(valid(versions(
                participants,
                &committed,
            ))?)),
            Some(Outcome::Aborted(aborted)) if aborted.epochs.len() == participants.len() => Ok(
                Settled::Aborted(aborted.epochs.into_iter().map(Epoch::new).collect()),
            ),
            Some(Outcome::Unknown(unknown)) => Ok(Settled::Unknown(unknown.reason)),
            Some(Outcome::Aborted(_)) | None => {
                valid(Err(pagewire_proto::Invalid::missing("outcome")))
            }
        }
    }
}

fn versions(
    participants: &[CommitParticipant],
    committed: &pb::Committed,
) -> Result<Vec<Version>, pagewire_proto::Invalid> {
    let right = committed.versions.len() == participants.len()
        && committed
            .versions
            .iter()
            .zip(participants)
            .all(|(version, part)| *version == part.base.next().get());
    if right {
        Ok(committed
            .versions
            .iter()
            .copied()
            .map(Version::new)
            .collect())
    } else {
        Err(pagewire_proto::Invalid::new(
            "versions",
            format!("{:?} are not the next ones", committed.versions),
        ))
    }
}

/// The messages of a commit, made one by one as the network takes them.
struct Messages {
    header: Option<pb::CommitHeader>,
    parts: Arc<Vec<CommitPart>>,
    with_stagings: bool,
    encodings: Encodings,
    states: Vec<Arc<DatabaseState>>,
    cache: Arc<PageCache>,
    part: usize,
    page: usize,
    /// `None` after the last message.
    checksum: Option<CommitChecksum>,
    failure: Arc<Mutex<Option<std::io::Error>>>,
}

impl Messages {
    /// Nothing follows, be it for a failure.
    fn is_over(&self) -> bool {
        self.checksum.is_none()
    }
}

impl Iterator for Messages {
    type Item = pb::CommitRequest;

    fn next(&mut self) -> Option<pb::CommitRequest> {
        let mut checksum = self.checksum.take()?;
        let mut batches = Vec::new();
        let mut bytes = 0;
        while let Some(part) = self.parts.get(self.part)
            && bytes < BATCH_BYTES
        {
            let mut pages = Vec::new();
            while let Some(page) = part.pages.get(self.page)
                && bytes < BATCH_BYTES
            {
                self.page += 1;
                if page.staged && self.with_stagings {
                    continue;
                }
                let content = match page.source.read(part.page_size, part.spill.as_ref()) {
                    Ok(content) => content,
                    Err(error) => {
                        *self.failure.lock() = Some(error);
                        return None;
                    }
                };
                // As it is when it has been expanded: the server bounds a message by that.
                bytes += content.len();
                let wire = Page {
                    number: page.number,
                    content,
                    version: Version::ZERO,
                };
                let base = || {
                    let state = self.states.get(self.part)?;
                    let log = state.log.read();
                    self.cache.get(state.key, page.number, part.base, &log)
                };
                let wire = self.encodings.encode(&wire, base);
                checksum.add(wire.crc32);
                pages.push(wire);
            }
            if !pages.is_empty() {
                batches.push(pb::PageBatch {
                    database_index: self.part as u32,
                    pages,
                });
            }
            if self.page == part.pages.len() {
                self.part += 1;
                self.page = 0;
            }
        }
        let finish = if self.part == self.parts.len() {
            Some(checksum.finish())
        } else {
            self.checksum = Some(checksum);
            None
        };
        let message = pb::CommitRequest {
            header: self.header.take(),
            batches,
            finish,
        };
        COUNTERS.bytes(CallKind::Commit, message.encoded_len(), 0);
        Some(message)
    }
}
