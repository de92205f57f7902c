//! [`RemoteStore`]: an endpoint in the shape of a store, so that the suite of stores runs against it. Each call of the trait is the
//! calls of the protocol that mean it, raw: nothing is cached, retried or repaired here.
//!
//! `lookup` opens, `remove` closes and deletes, `fence` gives the lease back and takes it again, `protect` raises the floor of the
//! session (it never falls: a promise more than asked for). A staging that is discarded is never named again, which is all that the
//! protocol knows of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::limits::{BATCH_BYTES, MAX_LIST, MAX_READ_PAGES};
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::{
    Changes, CommitChecksum, DatabaseId, DatabaseName, Epoch, Incarnation, Page, PageNumber,
    PageSize, Snapshot, StagingId, Version, pb,
};
use parking_lot::Mutex;

use super::wire::Wire;
use crate::store::{
    Capabilities, Commit, CommitOutcome, DatabaseEntry, PageStore, PageWrite, Resolution, Resolve,
    StoreError, StoredPage,
};

/// How long a lease that nobody else wants may take.
const LEASE_PATIENCE: u32 = 40;

/// Names of databases by their ids, over restarts of the server.
pub(super) type Names = Arc<Mutex<HashMap<DatabaseId, DatabaseName>>>;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct RemoteStore {
    wire: Wire,
    incarnation: Incarnation,
    names: Names,
    opens: Mutex<HashMap<DatabaseId, u64>>,
    sequence: std::sync::atomic::AtomicU64,
    /// One at a time: a lease given back by one would be taken by the other.
    leases: tokio::sync::Mutex<HashMap<DatabaseId, u64>>,
    stagings: Mutex<HashMap<StagingId, (StagingId, DatabaseId)>>,
}

impl RemoteStore {
    pub(super) fn new(wire: Wire, names: Names) -> Result<Self, StoreError> {
        let incarnation = Incarnation::try_from(&wire.welcome.incarnation[..]);
        Ok(Self {
            incarnation: incarnation.map_err(wrong)?,
            wire,
            names,
            opens: Mutex::default(),
            sequence: std::sync::atomic::AtomicU64::new(0),
            leases: tokio::sync::Mutex::default(),
            stagings: Mutex::default(),
        })
    }

    async fn open(
        &self,
        name: &DatabaseName,
        mode: pb::OpenMode,
    ) -> Result<(DatabaseId, Snapshot), StoreError> {
        let sequence = 1 + self
            .sequence
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let request = pb::OpenDatabaseRequest {
            session_id: self.wire.id.to_wire(),
            name: name.as_str().to_owned(),
            mode: mode.into(),
            open_sequence: sequence,
            ..pb::OpenDatabaseRequest::default()
        };
        let answer = self.wire.calls.clone().open_database(request.clone()).await;
        let answer = self.wire.noted(&request, answer)?;
        let id = DatabaseId::try_from(&answer.database_id[..]).map_err(wrong)?;
        let head = Snapshot::try_from(answer.head).map_err(wrong)?;
        self.names.lock().insert(id, name.clone());
        let mut opens = self.opens.lock();
        let known = opens.entry(id).or_default();
        *known = (*known).max(sequence);
        Ok((id, head))
    }

    /// Opens the database in this session where an earlier one had it open.
    async fn ensure_open(&self, database: DatabaseId) -> Result<(), StoreError> {
        if self.opens.lock().contains_key(&database) {
            return Ok(());
        }
        let name = self.names.lock().get(&database).cloned();
        let name = name.ok_or(StoreError::DatabaseNotFound)?;
        // It may be without a commit yet, and then found by its maker alone.
        match self.open(&name, pb::OpenMode::Create).await? {
            (id, _) if id == database => Ok(()),
            _ => Err(StoreError::DatabaseNotFound),
        }
    }

    async fn begin(
        &self,
        database: DatabaseId,
        known: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        self.ensure_open(database).await?;
        let request = pb::BeginSnapshotRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
            known_version: known.get(),
            want_page_1: false,
        };
        let answer = self
            .wire
            .calls
            .clone()
            .begin_snapshot(request.clone())
            .await;
        let answer = self.wire.noted(&request, answer)?;
        let head = Snapshot::try_from(answer.head).map_err(wrong)?;
        let changes = answer.changes.unwrap_or_default();
        let changes = match changes.all {
            true => Changes::All,
            false => {
                let pages = changes.pages.into_iter().map(PageNumber::try_from);
                Changes::Pages(pages.collect::<Result<_, _>>().map_err(wrong)?)
            }
        };
        Ok((head, changes))
    }

    async fn read_some(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        let request = pb::ReadPagesRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
            version: version.get(),
            pages: pages.iter().map(|page| page.get()).collect(),
        };
        let answer = self.wire.calls.clone().read_pages(request.clone()).await;
        let answer = match self.wire.noted(&request, answer) {
            Err(StoreError::VersionGone { .. }) => return Err(StoreError::VersionGone { version }),
            answer => answer?,
        };
        if answer.pages.is_empty() || answer.pages.len() > pages.len() {
            return Err(StoreError::Internal(format!(
                "{} pages asked for, {} answered",
                pages.len(),
                answer.pages.len()
            )));
        }
        let mut read = Vec::with_capacity(answer.pages.len());
        for (number, page) in pages.iter().zip(answer.pages) {
            let size = u32::try_from(page.content.len()).unwrap_or(0);
            let page = Page::from_wire(page, PageSize::try_from(size).ok()).map_err(wrong)?;
            if page.number != *number {
                return Err(StoreError::Internal(format!(
                    "page {number} asked for, page {} answered",
                    page.number
                )));
            }
            read.push(StoredPage {
                content: page.content,
                version: page.version,
            });
        }
        Ok(read)
    }

    /// The staging as this session named it, or one that nobody knows.
    fn staging_on_the_wire(&self, id: StagingId) -> Result<StagingId, StoreError> {
        match self.stagings.lock().get(&id) {
            Some((wire, _)) => Ok(*wire),
            None => StagingId::random().map_err(wrong),
        }
    }

    fn commit_messages(&self, commit: &Commit) -> Result<Vec<pb::CommitRequest>, StoreError> {
        let mut databases = Vec::with_capacity(commit.databases.len());
        for part in &commit.databases {
            let stagings = part.stagings.iter();
            let stagings = stagings.map(|id| self.staging_on_the_wire(*id));
            let stagings = stagings.collect::<Result<Vec<_>, _>>()?;
            databases.push(pb::CommitDatabase {
                database_id: part.database.to_wire(),
                base_version: part.base.get(),
                epoch: part.epoch.get(),
                page_size: part.page_size.get(),
                page_count: part.page_count.get(),
                staging_ids: stagings.iter().map(|id| id.to_wire()).collect(),
                restore_version: part.restore.map_or(0, Version::get),
            });
        }
        let mut messages = vec![pb::CommitRequest {
            header: Some(pb::CommitHeader {
                session_id: self.wire.id.to_wire(),
                commit_id: commit.id.to_wire(),
                databases,
            }),
            ..pb::CommitRequest::default()
        }];
        let mut checksum = CommitChecksum::default();
        for (index, part) in commit.databases.iter().enumerate() {
            // A server may refuse a page beyond the page count, which the version would not have.
            let mut pages = part.pages.clone();
            pages.retain(|page| part.page_count.has(page.number));
            for portion in portions(&pages) {
                portion.iter().for_each(|page| checksum.add(page.crc32));
                messages.push(pb::CommitRequest {
                    batches: vec![pb::PageBatch {
                        database_index: u32::try_from(index).unwrap_or(u32::MAX),
                        pages: portion,
                    }],
                    ..pb::CommitRequest::default()
                });
            }
        }
        if let Some(last) = messages.last_mut() {
            last.finish = Some(checksum.finish());
        }
        Ok(messages)
    }
}

#[async_trait]
impl PageStore for RemoteStore {
    fn capabilities(&self) -> Capabilities {
        let store = self.wire.welcome.store.clone().unwrap_or_default();
        Capabilities {
            name: store.store_name,
            durable: store.durable,
            // The calls about old versions are not mapped here yet: their rules are tried on the stores themselves.
            versions: false,
            branches: false,
            exclusive: store.strict_push,
            retention: None,
        }
    }

    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    async fn begin_service(&self, _lease_ttl: Duration) -> Result<Duration, StoreError> {
        Err(StoreError::Unsupported("the server begins its own service"))
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        Err(StoreError::Unsupported("the server ends its own service"))
    }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        // A name without a commit is found by its maker alone.
        let known = {
            let opens = self.opens.lock();
            let names = self.names.lock();
            opens.keys().any(|id| names.get(id) == Some(name))
        };
        let mode = match create || known {
            true => pb::OpenMode::Create,
            false => pb::OpenMode::ReadWrite,
        };
        self.open(name, mode).await.map(|(id, _)| id)
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        let request = pb::ListDatabasesRequest {
            prefix: prefix.to_owned(),
            after: after.to_owned(),
            limit: limit.min(MAX_LIST) as u32,
        };
        let answer = self
            .wire
            .calls
            .clone()
            .list_databases(request.clone())
            .await;
        let answer = self.wire.noted(&request, answer)?;
        let entries = answer.databases.into_iter().map(|entry| {
            Ok(DatabaseEntry {
                name: DatabaseName::try_from(entry.name.as_str()).map_err(wrong)?,
                database: DatabaseId::try_from(&entry.database_id[..]).map_err(wrong)?,
                head: Snapshot::try_from(entry.head).map_err(wrong)?,
            })
        });
        entries.collect()
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        let opened = {
            let names = self.names.lock();
            let opens = self.opens.lock();
            let mut named = opens.iter().filter(|(id, _)| names.get(id) == Some(name));
            named.next().map(|(id, sequence)| (*id, *sequence))
        };
        let mut unborn = false;
        if let Some((id, sequence)) = opened {
            unborn = self.begin(id, Version::ZERO).await?.0.version == Version::ZERO;
            self.wire.send(Request::CloseDatabase(pb::CloseDatabase {
                database_id: id.to_wire(),
                open_sequence: sequence,
                ..pb::CloseDatabase::default()
            }));
            self.opens.lock().remove(&id);
            self.leases.lock().await.remove(&id);
            self.wire.floors().lock().remove(&id);
            self.stagings
                .lock()
                .retain(|_, (_, database)| *database != id);
            self.wire.settled().await?;
        }
        let request = pb::DeleteDatabaseRequest {
            name: name.as_str().to_owned(),
        };
        let answer = self
            .wire
            .calls
            .clone()
            .delete_database(request.clone())
            .await;
        let removed = match self.wire.noted(&request, answer) {
            Ok(answer) => DatabaseId::try_from(&answer.database_id[..]).map_err(wrong)?,
            // It went when the last session closed it.
            Err(StoreError::DatabaseNotFound) if unborn => {
                opened.ok_or(StoreError::DatabaseNotFound)?.0
            }
            Err(error) => return Err(error),
        };
        self.names.lock().remove(&removed);
        Ok(removed)
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        Ok(self.begin(database, Version::ZERO).await?.0)
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        self.begin(database, since).await
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        self.ensure_open(database).await?;
        let mut read = Vec::with_capacity(pages.len());
        while read.len() < pages.len() {
            let rest = &pages[read.len()..];
            let portion = &rest[..rest.len().min(MAX_READ_PAGES)];
            read.extend(self.read_some(database, version, portion).await?);
        }
        Ok(read)
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        if !pins.is_empty() {
            return Err(StoreError::Unsupported(
                "pins without the call that finds them",
            ));
        }
        self.ensure_open(database).await?;
        // Without a floor the server keeps what it was told last: more than has to be.
        let Some(floor) = floor else {
            return Ok(());
        };
        {
            let mut floors = self.wire.floors().lock();
            let known = floors.entry(database).or_default();
            *known = (*known).max(floor.get());
        }
        self.wire.settled().await
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        self.ensure_open(database).await?;
        let mut leases = self.leases.lock().await;
        let released = leases.remove(&database).unwrap_or(0);
        if released > 0 {
            self.wire.send(Request::ReleaseLease(pb::ReleaseLease {
                database_id: database.to_wire(),
                epoch: released,
                wants_back: false,
            }));
        }
        for _ in 0..LEASE_PATIENCE {
            let request = pb::AcquireLeaseRequest {
                session_id: self.wire.id.to_wire(),
                database_id: database.to_wire(),
                known_version: 0,
                released_epoch: released,
                wait_ms: 1000,
                transaction: 0,
            };
            let answer = self.wire.calls.clone().acquire_lease(request.clone()).await;
            let answer = self.wire.noted(&request, answer)?;
            match answer.outcome {
                Some(pb::acquire_lease_response::Outcome::Granted(grant)) => {
                    leases.insert(database, grant.epoch);
                    return Ok(Epoch::new(grant.epoch));
                }
                // Another session has it: one of a server before a restart, perhaps.
                Some(pb::acquire_lease_response::Outcome::Pending(_)) => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                // Of no transaction that holds anything.
                Some(pb::acquire_lease_response::Outcome::Deadlock(_)) => {
                    return Err(StoreError::Internal(
                        "a deadlock without a transaction".into(),
                    ));
                }
                None => return Err(StoreError::Internal("an answer without an outcome".into())),
            }
        }
        Err(StoreError::Unavailable(
            "the lease of a database that nobody else wants is not granted".to_owned(),
        ))
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        self.ensure_open(database).await?;
        let new = StagingId::random().map_err(wrong)?;
        let (id, _) = *self
            .stagings
            .lock()
            .entry(staging)
            .or_insert((new, database));
        let mut messages = vec![pb::StagePagesRequest {
            header: Some(pb::StagePagesHeader {
                session_id: self.wire.id.to_wire(),
                database_id: database.to_wire(),
                staging_id: id.to_wire(),
                page_size: page_size.get(),
                ..pb::StagePagesHeader::default()
            }),
            pages: Vec::new(),
        }];
        messages.extend(
            portions(&pages)
                .into_iter()
                .map(|pages| pb::StagePagesRequest {
                    header: None,
                    pages,
                }),
        );
        let shown = messages[0].clone();
        let stream = tokio_stream::iter(messages);
        let answer = self.wire.calls.clone().stage_pages(stream).await;
        self.wire.noted(&shown, answer).map(|_| ())
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        self.stagings.lock().remove(&staging);
        Ok(())
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        use pb::commit_response::Outcome;
        for part in &commit.databases {
            self.ensure_open(part.database).await?;
        }
        let messages = self.commit_messages(&commit)?;
        let shown = messages.first().and_then(|first| first.header.clone());
        let stream = tokio_stream::iter(messages);
        let answer = self.wire.calls.clone().commit(stream).await;
        let answer = self.wire.noted(&shown, answer)?;
        let index = |index: u32| usize::try_from(index).unwrap_or(usize::MAX);
        Ok(match answer.outcome {
            Some(Outcome::Committed(made)) => {
                CommitOutcome::Committed(made.versions.into_iter().map(Version::new).collect())
            }
            Some(Outcome::Conflict(conflict)) => CommitOutcome::Conflict {
                index: index(conflict.database_index),
                head: Version::new(conflict.head_version),
            },
            Some(Outcome::LeaseLost(lost)) => CommitOutcome::LeaseLost {
                index: index(lost.database_index),
                current: Epoch::new(lost.current_epoch),
            },
            None => return Err(StoreError::Internal("an answer without an outcome".into())),
        })
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        use pb::resolve_commit_response::Outcome;
        for (database, _, _) in &resolve.participants {
            self.ensure_open(*database).await?;
        }
        let participants = resolve.participants.iter();
        let request = pb::ResolveCommitRequest {
            session_id: self.wire.id.to_wire(),
            commit_id: resolve.id.to_wire(),
            participants: participants
                .map(|(database, base, epoch)| pb::CommitParticipant {
                    database_id: database.to_wire(),
                    base_version: base.get(),
                    epoch: epoch.get(),
                })
                .collect(),
        };
        let answer = self
            .wire
            .calls
            .clone()
            .resolve_commit(request.clone())
            .await;
        let answer = self.wire.noted(&request, answer)?;
        Ok(match answer.outcome {
            Some(Outcome::Committed(made)) => {
                Resolution::Committed(made.versions.into_iter().map(Version::new).collect())
            }
            Some(Outcome::Aborted(aborted)) => {
                let mut leases = self.leases.lock().await;
                for ((database, ..), epoch) in resolve.participants.iter().zip(&aborted.epochs) {
                    if *epoch > 0 {
                        leases.insert(*database, *epoch);
                    }
                }
                Resolution::Aborted {
                    current: aborted.epochs.into_iter().map(Epoch::new).collect(),
                }
            }
            Some(Outcome::Unknown(unknown)) => Resolution::Unknown(unknown.reason),
            None => return Err(StoreError::Internal("an answer without an outcome".into())),
        })
    }
}

/// Pages as messages have them: at most a batch of bytes each.
fn portions(pages: &[PageWrite]) -> Vec<Vec<pb::PageContent>> {
    let mut portions = Vec::new();
    let mut bytes = usize::MAX;
    for write in pages {
        let page = Page {
            number: write.number,
            content: write.content.clone(),
            version: Version::ZERO,
        };
        if bytes >= BATCH_BYTES {
            portions.push(Vec::new());
            bytes = 0;
        }
        bytes += page.content.len();
        if let Some(portion) = portions.last_mut() {
            portion.push(page.to_wire());
        }
    }
    portions
}

fn wrong(error: pagewire_proto::Invalid) -> StoreError {
    StoreError::Internal(format!("the answer is not valid: {error}"))
}
