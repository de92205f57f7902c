//! [`RemoteStore`]: an endpoint in the shape of a store, so that the suite of stores runs against it. Each call of the trait is the
//! calls of the protocol that mean it, raw: nothing is cached, retried or repaired here.
//!
//! `lookup` opens, `remove` closes and deletes, `fence` gives the lease back and takes it again. What is about old versions, and what
//! of them is read, is in `history.rs`. Where the protocol says less than the contract of stores:
//!
//! * A staging that is discarded is dropped and never named again: a server may drop it late, or not at all before the commit.
//! * `resolve` leaves out participants that were removed, as the protocol wants it; they are told as having no epoch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::limits::{BATCH_BYTES, MAX_LIST, MAX_READ_PAGES};
use pagewire_proto::pb::session_request::Message as Request;
use pagewire_proto::status::Reason;
use pagewire_proto::{
    Changes, CommitChecksum, CommitId, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, Page,
    PageNumber, PageSize, Snapshot, StagingId, TagName, Version, VersionEntry, pb,
};
use parking_lot::Mutex;

use super::wire::Wire;
use crate::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseEntry, Description, PageStore,
    PageWrite, Resolution, Resolve, StoreError, StoredPage,
};

/// How long a lease that nobody else wants may take.
const LEASE_PATIENCE: u32 = 40;
/// Whoever repeats a commit does so soon.
const REMEMBERED_COMMITS: usize = 64;

/// Names of databases by their ids, over restarts of the server.
pub(super) type Names = Arc<Mutex<HashMap<DatabaseId, DatabaseName>>>;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct RemoteStore {
    pub(super) wire: Wire,
    incarnation: Incarnation,
    pub(super) names: Names,
    opens: Mutex<HashMap<DatabaseId, u64>>,
    /// What was asked to be protected of each database.
    pub(super) wanted: Mutex<HashMap<DatabaseId, Option<Version>>>,
    /// Of the newest call that pinned.
    pub(super) pins: std::sync::atomic::AtomicU64,
    sequence: std::sync::atomic::AtomicU64,
    /// One at a time: a lease given back by one would be taken by the other.
    leases: tokio::sync::Mutex<HashMap<DatabaseId, u64>>,
    stagings: Mutex<HashMap<StagingId, (StagingId, DatabaseId)>>,
    /// Pages of commits go as small as the server takes them.
    pub(super) encodes: bool,
    /// Those commits as they went, for when they are repeated.
    sent: Mutex<HashMap<CommitId, Vec<pb::CommitRequest>>>,
}

impl RemoteStore {
    pub(super) fn new(wire: Wire, names: Names) -> Result<Self, StoreError> {
        let incarnation = Incarnation::try_from(&wire.welcome.incarnation[..]);
        Ok(Self {
            incarnation: incarnation.map_err(wrong)?,
            wire,
            names,
            opens: Mutex::default(),
            wanted: Mutex::default(),
            pins: std::sync::atomic::AtomicU64::new(0),
            sequence: std::sync::atomic::AtomicU64::new(0),
            leases: tokio::sync::Mutex::default(),
            stagings: Mutex::default(),
            encodes: false,
            sent: Mutex::default(),
        })
    }

    pub(super) async fn open(
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
    pub(super) async fn ensure_open(&self, database: DatabaseId) -> Result<(), StoreError> {
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

    /// Databases that this session has open.
    pub(super) fn opened(&self) -> Vec<(DatabaseId, DatabaseName)> {
        let (opens, names) = (self.opens.lock(), self.names.lock());
        let named = opens
            .keys()
            .filter_map(|id| Some((*id, names.get(id)?.clone())));
        named.collect()
    }

    pub(super) async fn begin(
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

    async fn encoded(
        &self,
        id: CommitId,
        raw: &[pb::CommitRequest],
    ) -> Result<Vec<pb::CommitRequest>, StoreError> {
        let header = raw.first().map(|first| &first.header);
        let before = self.sent.lock().get(&id).cloned();
        if let Some(before) = before
            && before.first().map(|first| &first.header) == header
        {
            return Ok(before);
        }
        let mut messages = raw.to_vec();
        self.encode_messages(&mut messages).await?;
        let mut sent = self.sent.lock();
        if sent.len() >= REMEMBERED_COMMITS {
            sent.clear();
        }
        sent.insert(id, messages.clone());
        Ok(messages)
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
            versions: store.versions,
            branches: store.branches,
            exclusive: store.strict_push,
            retention: match store.retention_ms {
                0 => None,
                ms => Some(Duration::from_millis(ms)),
            },
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
            self.wire.readings().lock().remove(&id);
            self.wanted.lock().remove(&id);
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
        if pages.is_empty() {
            // Whether the version is there at all: the protocol has no reading of nothing.
            let first = [PageNumber::FIRST];
            self.read_some(database, version, &first).await?;
        }
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
        self.protect_as_a_session_does(database, floor, pins).await
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
                ..pb::AcquireLeaseRequest::default()
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
        let known = self.stagings.lock().remove(&staging);
        if let Some((id, _)) = known {
            self.wire.send(Request::DropStagings(pb::DropStagings {
                staging_ids: vec![id.to_wire()],
            }));
        }
        Ok(())
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        use pb::commit_response::Outcome;
        for part in &commit.databases {
            self.ensure_open(part.database).await?;
        }
        let raw = self.commit_messages(&commit)?;
        let shown = raw.first().and_then(|first| first.header.clone());
        let messages = match self.encodes {
            true => self.encoded(commit.id, &raw).await?,
            false => raw.clone(),
        };
        let mut calls = self.wire.calls.clone();
        let mut answer = calls.commit(tokio_stream::iter(messages)).await;
        if let Err(status) = &answer
            && Reason::of(status) == Reason::EncodingRefused
        {
            answer = calls.commit(tokio_stream::iter(raw)).await;
        }
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
        let mut left = Vec::with_capacity(resolve.participants.len());
        for participant in &resolve.participants {
            match self.ensure_open(participant.0).await {
                Ok(()) => left.push(*participant),
                // A commit that names it is never applied any more.
                Err(StoreError::DatabaseNotFound) if !left.is_empty() => {}
                Err(error) => return Err(error),
            }
        }
        let participants = left.iter();
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
                let told = left.iter().map(|(database, ..)| *database);
                let told: HashMap<_, _> = told.zip(made.versions).collect();
                let version = |(database, base, _): &(DatabaseId, Version, Epoch)| {
                    told.get(database).map_or(base.next(), |v| Version::new(*v))
                };
                Resolution::Committed(resolve.participants.iter().map(version).collect())
            }
            Some(Outcome::Aborted(aborted)) => {
                let told = left.iter().map(|(database, ..)| *database);
                let told: HashMap<_, _> = told.zip(aborted.epochs).collect();
                let mut leases = self.leases.lock().await;
                for (database, epoch) in told.iter().filter(|(_, epoch)| **epoch > 0) {
                    leases.insert(*database, *epoch);
                }
                let epoch = |(database, ..): &(DatabaseId, Version, Epoch)| {
                    told.get(database).map_or(Epoch::NONE, |e| Epoch::new(*e))
                };
                Resolution::Aborted {
                    current: resolve.participants.iter().map(epoch).collect(),
                }
            }
            Some(Outcome::Unknown(unknown)) => Resolution::Unknown(unknown.reason),
            None => return Err(StoreError::Internal("an answer without an outcome".into())),
        })
    }

    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        self.find_version(database, moment, 0).await
    }

    async fn versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        self.list_versions(database, before, tagged_only, limit)
            .await
    }

    async fn diff(
        &self,
        database: DatabaseId,
        from: Version,
        to: Version,
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        self.diff_versions(database, (from, to), after, limit).await
    }

    async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        self.name_version(database, tag, moment, replace).await
    }

    async fn delete_tag(&self, database: DatabaseId, tag: &TagName) -> Result<bool, StoreError> {
        self.unname_version(database, tag).await
    }

    async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        self.create_branch(source, moment, branch, name).await
    }

    async fn describe(&self, database: DatabaseId) -> Result<Description, StoreError> {
        self.describe_database(database).await
    }

    async fn collect(&self, database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        self.collect_garbage(database).await
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

pub(super) fn wrong(error: pagewire_proto::Invalid) -> StoreError {
    StoreError::Internal(format!("the answer is not valid: {error}"))
}
