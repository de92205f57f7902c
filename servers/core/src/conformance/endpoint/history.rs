//! What a [`RemoteStore`] does about old versions: the calls of the protocol about history, and what it says that it reads.
//!
//! A session has a floor for each database that it has open, which only rises, and pins. It is told by heartbeats, as clients do it:
//!
//! * A floor of `protect` raises that of the session, and leaves it where it is higher.
//! * Pins are found by `FindVersion`, each in a call of its own; those that are not wanted any more are not named by the next heartbeat.
//! * No floor is: nobody reads but the head. The floor of the session rises to it before a collection, since that is when it matters.
//! * What a heartbeat says is taken to the store behind its acknowledgement. Before a collection the databases are opened again,
//!   which waits for it.

use std::sync::atomic::Ordering;

use pagewire_proto::limits::{MAX_DIFF_PAGES, MAX_LIST_VERSIONS};
use pagewire_proto::status::Reason;
use pagewire_proto::{
    DatabaseId, DatabaseName, Moment, PageNumber, Snapshot, TagName, UnixMillis, Version,
    VersionEntry, pb,
};
use tonic::{Response, Status};

use super::remote::{RemoteStore, wrong};
use crate::store::{Collected, Description, Parent, StoreError};

impl RemoteStore {
    /// With a `pin` above 0 the version stays readable: the number of the call.
    pub(super) async fn find_version(
        &self,
        database: DatabaseId,
        moment: &Moment,
        pin: u64,
    ) -> Result<VersionEntry, StoreError> {
        self.ensure_open(database).await?;
        let request = pb::FindVersionRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
            at: Some(moment.clone().into()),
            pin: pin > 0,
            pin_sequence: pin,
        };
        let answer = self.wire.calls.clone().find_version(request.clone()).await;
        let answer = self.noted_of(moment, &request, answer)?;
        VersionEntry::try_from(answer.found).map_err(wrong)
    }

    pub(super) async fn list_versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        if limit == 0 || before == Some(Version::ZERO) {
            return Ok(Vec::new());
        }
        self.ensure_open(database).await?;
        let request = pb::ListVersionsRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
            before_version: before.map_or(0, Version::get),
            limit: limit.min(MAX_LIST_VERSIONS) as u32,
            tagged_only,
        };
        let answer = self.wire.calls.clone().list_versions(request.clone()).await;
        let answer = self.wire.noted(&request, answer)?;
        if answer.more && answer.versions.len() < request.limit as usize {
            return Err(StoreError::Internal(format!(
                "{} versions of {} asked for, and there are said to be more",
                answer.versions.len(),
                request.limit
            )));
        }
        let entries = answer.versions.into_iter().map(VersionEntry::try_from);
        entries.collect::<Result<_, _>>().map_err(wrong)
    }

    pub(super) async fn diff_versions(
        &self,
        database: DatabaseId,
        (from, to): (Version, Version),
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        if limit == 0 {
            return Ok(Vec::new());
        }
        self.ensure_open(database).await?;
        let request = pb::DiffVersionsRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
            from_version: from.get(),
            to_version: to.get(),
            after_page: after.map_or(0, PageNumber::get),
            limit: limit.min(MAX_DIFF_PAGES) as u32,
        };
        let answer = self.wire.calls.clone().diff_versions(request.clone()).await;
        let answer = self.wire.noted(&request, answer)?;
        let pages = answer.pages.into_iter().map(PageNumber::try_from);
        pages.collect::<Result<_, _>>().map_err(wrong)
    }

    pub(super) async fn name_version(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        self.ensure_open(database).await?;
        let request = pb::SetTagRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
            tag: tag.as_str().to_owned(),
            at: Some(moment.clone().into()),
            replace,
        };
        let answer = self.wire.calls.clone().set_tag(request.clone()).await;
        let answer = self.noted_of(moment, &request, answer)?;
        VersionEntry::try_from(answer.found).map_err(wrong)
    }

    pub(super) async fn unname_version(
        &self,
        database: DatabaseId,
        tag: &TagName,
    ) -> Result<bool, StoreError> {
        self.ensure_open(database).await?;
        let request = pb::DeleteTagRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
            tag: tag.as_str().to_owned(),
        };
        let answer = self.wire.calls.clone().delete_tag(request.clone()).await;
        Ok(self.wire.noted(&request, answer)?.existed)
    }

    pub(super) async fn create_branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        self.ensure_open(source).await?;
        let request = pb::CreateBranchRequest {
            session_id: self.wire.id.to_wire(),
            database_id: source.to_wire(),
            at: Some(moment.clone().into()),
            name: name.as_str().to_owned(),
            branch_id: branch.to_wire(),
        };
        let answer = self.wire.calls.clone().create_branch(request.clone()).await;
        let answer = self.noted_of(moment, &request, answer)?;
        let found = VersionEntry::try_from(answer.found).map_err(wrong)?;
        let head = Snapshot::try_from(answer.head).map_err(wrong)?;
        let right = Snapshot {
            version: Version::new(1),
            ..found.snapshot
        };
        if head != right {
            return Err(StoreError::Internal(format!(
                "a branch from {found:?} is said to have the head {head:?}"
            )));
        }
        self.names.lock().insert(branch, name.clone());
        Ok(found)
    }

    pub(super) async fn describe_database(
        &self,
        database: DatabaseId,
    ) -> Result<Description, StoreError> {
        self.ensure_open(database).await?;
        let request = pb::DescribeDatabaseRequest {
            session_id: self.wire.id.to_wire(),
            database_id: database.to_wire(),
        };
        let mut calls = self.wire.calls.clone();
        let answer = calls.describe_database(request.clone()).await;
        let answer = self.wire.noted(&request, answer)?;
        let parent = match &answer.parent_database_id[..] {
            [] => None,
            id => Some(Parent {
                database: DatabaseId::try_from(id).map_err(wrong)?,
                name: match answer.parent_name.as_str() {
                    "" => None,
                    name => Some(DatabaseName::try_from(name).map_err(wrong)?),
                },
                version: Version::new(answer.parent_version),
            }),
        };
        Ok(Description {
            head: Snapshot::try_from(answer.head).map_err(wrong)?,
            created: UnixMillis(answer.created_unix_ms),
            parent,
            oldest: Version::new(answer.oldest_version),
            versions: answer.versions_kept,
            pages: answer.stored_pages,
            bytes: answer.stored_bytes,
        })
    }

    pub(super) async fn collect_garbage(
        &self,
        database: Option<DatabaseId>,
    ) -> Result<Collected, StoreError> {
        self.say_what_is_read().await?;
        let name = match database {
            None => String::new(),
            Some(database) => {
                let name = self.names.lock().get(&database).cloned();
                let name = name.ok_or(StoreError::DatabaseNotFound)?;
                name.as_str().to_owned()
            }
        };
        let request = pb::CollectGarbageRequest { name };
        let mut calls = self.wire.calls.clone();
        let answer = calls.collect_garbage(request.clone()).await;
        let answer = self.wire.noted(&request, answer)?;
        Ok(Collected {
            versions: answer.versions,
            pages: answer.pages,
            bytes: answer.bytes,
            more: answer.more,
        })
    }

    /// See the top of this file.
    pub(super) async fn protect_as_a_session_does(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        self.ensure_open(database).await?;
        for pin in pins {
            let call = 1 + self.pins.fetch_add(1, Ordering::Relaxed);
            let found = self
                .find_version(database, &Moment::Version(*pin), call)
                .await;
            let found = match found {
                Ok(found) => found.snapshot.version,
                Err(error) => {
                    // What this call has pinned is let go, what was pinned before stays: nothing is replaced.
                    self.let_go_up_to(database, call);
                    self.wire.settled().await?;
                    return Err(error);
                }
            };
            if found != *pin {
                return Err(StoreError::Internal(format!(
                    "version {pin} was to be pinned, and {found} was found"
                )));
            }
        }
        self.wanted.lock().insert(database, floor);
        {
            let mut readings = self.wire.readings().lock();
            let reading = readings.entry(database).or_default();
            reading.floor = reading.floor.max(floor.map_or(0, Version::get));
            reading.pins = pins.iter().map(|pin| pin.get()).collect();
            reading.pin_sequence = self.pins.load(Ordering::Relaxed);
        }
        self.wire.settled().await
    }

    fn let_go_up_to(&self, database: DatabaseId, call: u64) {
        let mut readings = self.wire.readings().lock();
        readings.entry(database).or_default().pin_sequence = call;
    }

    /// Where nobody asked for a floor it rises to the head; then the server has taken everything to its store.
    async fn say_what_is_read(&self) -> Result<(), StoreError> {
        let opened = self.opened();
        for (database, _) in &opened {
            let wanted = self.wanted.lock().get(database).copied().flatten();
            if wanted.is_none() {
                let (head, _) = match self.begin(*database, Version::ZERO).await {
                    // Removed meanwhile by another session.
                    Err(StoreError::DatabaseNotFound) => continue,
                    head => head?,
                };
                let mut readings = self.wire.readings().lock();
                let reading = readings.entry(*database).or_default();
                reading.floor = reading.floor.max(head.version.get());
            }
        }
        self.wire.settled().await?;
        for (_, name) in &opened {
            self.open(name, pb::OpenMode::Create).await?;
        }
        Ok(())
    }

    /// As `noted`, of a call that names a moment.
    fn noted_of<T: std::fmt::Debug>(
        &self,
        moment: &Moment,
        request: &dyn std::fmt::Debug,
        answer: Result<Response<T>, Status>,
    ) -> Result<T, StoreError> {
        let reason = answer.as_ref().err().map(Reason::of);
        let answer = self.wire.noted(request, answer);
        match (reason, moment) {
            (Some(Reason::TagNotFound), Moment::Tag(tag)) => {
                Err(StoreError::TagNotFound(tag.clone()))
            }
            _ => answer,
        }
    }
}
