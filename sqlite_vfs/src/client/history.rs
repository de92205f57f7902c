//! The calls about old versions: find and pin, list, diff, tags, branches, what is kept.

use pagewire_proto::limits::{MAX_DIFF_PAGES, MAX_LIST_VERSIONS};
use pagewire_proto::{
    DatabaseId, DatabaseName, Invalid, Moment, PageNumber, Snapshot, TagName, UnixMillis, Version,
    VersionEntry, pb,
};
use tokio::time::Instant;

use super::counters::CallKind;
use super::session::PinCall;
use super::{Core, valid};
use crate::error::CallError;

type Answer<T> = std::result::Result<T, CallError>;

/// What happens to a tag that names another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfTaken {
    /// It stays, and that is an error.
    Refuse,
    /// It is moved.
    Move,
}

/// Some of the versions that are kept.
pub struct VersionList {
    /// Newest first.
    pub versions: Vec<VersionEntry>,
    /// Older ones follow after the last one.
    pub more: bool,
}

/// Where a database comes from, what is kept of it and what that takes.
pub struct Description {
    /// The newest version.
    pub head: Snapshot,
    /// When version 1 was made.
    pub created: UnixMillis,
    /// For a branch: the database it came from, with its name where it still has one, and the version.
    pub parent: Option<(DatabaseId, Option<String>, Version)>,
    /// The oldest version that is kept.
    pub oldest: Version,
    /// How many versions are kept.
    pub versions_kept: u64,
    /// Pages kept under this database, over all of its versions.
    pub stored_pages: u64,
    /// Their bytes as stored.
    pub stored_bytes: u64,
}

impl Core {
    /// The version of a moment; pinned where a pin goes with the call (K1).
    pub async fn find_version(
        &self,
        id: DatabaseId,
        at: &Moment,
        pin: Option<&PinCall<'_>>,
        deadline: Instant,
    ) -> Answer<VersionEntry> {
        let request = pb::FindVersionRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            at: Some(at.clone().into()),
            pin: pin.is_some(),
            pin_sequence: pin.map_or(0, |pin| pin.sequence),
        };
        let answer = self
            .repeat(
                CallKind::Find,
                deadline,
                request,
                |mut stub, request| async move { stub.find_version(request).await },
            )
            .await?;
        let found: VersionEntry = valid(answer.found.try_into())?;
        match at {
            Moment::Version(version) if *version != found.snapshot.version => {
                valid(Err(Invalid::new(
                    "found",
                    format!("version {} for {version}", found.snapshot.version),
                )))
            }
            _ => Ok(found),
        }
    }

    /// Kept versions before `before`, or from the newest one on.
    pub async fn list_versions(
        &self,
        id: DatabaseId,
        before: Option<Version>,
        limit: usize,
        deadline: Instant,
    ) -> Answer<VersionList> {
        let limit = limit.clamp(1, MAX_LIST_VERSIONS);
        let request = pb::ListVersionsRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            before_version: before.map_or(0, Version::get),
            limit: limit as u32,
            tagged_only: false,
        };
        let answer = self
            .repeat(
                CallKind::History,
                deadline,
                request,
                |mut stub, request| async move { stub.list_versions(request).await },
            )
            .await?;
        if answer.versions.len() > limit {
            return valid(Err(Invalid::new("versions", "more than were asked for")));
        }
        let mut versions: Vec<VersionEntry> = Vec::with_capacity(answer.versions.len());
        for entry in answer.versions {
            let entry = valid(VersionEntry::try_from(entry))?;
            let newest = versions
                .last()
                .map(|last| last.snapshot.version)
                .or(before)
                .unwrap_or(Version::new(u64::MAX));
            if entry.snapshot.version >= newest {
                // A list that does not go down may never end.
                return valid(Err(Invalid::new("versions", "are not newest first")));
            }
            versions.push(entry);
        }
        let more = answer.more && !versions.is_empty();
        Ok(VersionList { versions, more })
    }

    /// Pages after `after` that differ between two versions, and whether more follow.
    pub async fn diff_versions(
        &self,
        id: DatabaseId,
        from: Version,
        to: Version,
        after: Option<PageNumber>,
        deadline: Instant,
    ) -> Answer<(Vec<PageNumber>, bool)> {
        let request = pb::DiffVersionsRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            from_version: from.get(),
            to_version: to.get(),
            after_page: after.map_or(0, PageNumber::get),
            limit: MAX_DIFF_PAGES as u32,
        };
        let answer = self
            .repeat(
                CallKind::History,
                deadline,
                request,
                |mut stub, request| async move { stub.diff_versions(request).await },
            )
            .await?;
        if answer.pages.len() > MAX_DIFF_PAGES {
            return valid(Err(Invalid::new("pages", "more than were asked for")));
        }
        let mut pages = Vec::with_capacity(answer.pages.len());
        for page in answer.pages {
            let page = valid(PageNumber::try_from(page))?;
            if pages
                .last()
                .copied()
                .or(after)
                .is_some_and(|last| page <= last)
            {
                return valid(Err(Invalid::new("pages", "are not in ascending order")));
            }
            pages.push(page);
        }
        let more = answer.more && !pages.is_empty();
        Ok((pages, more))
    }

    /// Names the version of a moment.
    pub async fn set_tag(
        &self,
        id: DatabaseId,
        tag: &TagName,
        at: &Moment,
        if_taken: IfTaken,
        deadline: Instant,
    ) -> Answer<VersionEntry> {
        let request = pb::SetTagRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            tag: tag.as_str().to_owned(),
            at: Some(at.clone().into()),
            replace: if_taken == IfTaken::Move,
        };
        let answer = self
            .repeat(
                CallKind::Tag,
                deadline,
                request,
                |mut stub, request| async move { stub.set_tag(request).await },
            )
            .await?;
        valid(answer.found.try_into())
    }

    /// Removes a tag; whether there was one. An answer that was lost makes it say that there was none.
    pub async fn delete_tag(
        &self,
        id: DatabaseId,
        tag: &TagName,
        deadline: Instant,
    ) -> Answer<bool> {
        let request = pb::DeleteTagRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            tag: tag.as_str().to_owned(),
        };
        let answer = self
            .repeat(
                CallKind::Tag,
                deadline,
                request,
                |mut stub, request| async move { stub.delete_tag(request).await },
            )
            .await?;
        Ok(answer.existed)
    }

    /// Makes a database from the version of a moment of another: what it was made from.
    pub async fn create_branch(
        &self,
        id: DatabaseId,
        at: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
        deadline: Instant,
    ) -> Answer<VersionEntry> {
        let request = pb::CreateBranchRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
            at: Some(at.clone().into()),
            name: name.as_str().to_owned(),
            branch_id: branch.to_wire(),
        };
        let answer = self
            .repeat(
                CallKind::Branch,
                deadline,
                request,
                |mut stub, request| async move { stub.create_branch(request).await },
            )
            .await?;
        valid(answer.found.try_into())
    }

    /// Where a database comes from, what is kept of it and what that takes.
    pub async fn describe_database(
        &self,
        id: DatabaseId,
        deadline: Instant,
    ) -> Answer<Description> {
        let request = pb::DescribeDatabaseRequest {
            session_id: self.session.id().to_wire(),
            database_id: id.to_wire(),
        };
        let answer = self
            .repeat(
                CallKind::History,
                deadline,
                request,
                |mut stub, request| async move { stub.describe_database(request).await },
            )
            .await?;
        let parent = match &answer.parent_database_id[..] {
            [] => None,
            id => Some((
                valid(DatabaseId::try_from(id))?,
                Some(answer.parent_name).filter(|name| !name.is_empty()),
                Version::new(answer.parent_version),
            )),
        };
        Ok(Description {
            head: valid(answer.head.try_into())?,
            created: UnixMillis(answer.created_unix_ms),
            parent,
            oldest: Version::new(answer.oldest_version),
            versions_kept: answer.versions_kept,
            stored_pages: answer.stored_pages,
            stored_bytes: answer.stored_bytes,
        })
    }
}
