//! The seam between the page server and what keeps the pages: trait [`PageStore`] and its contract.
//!
//! # Contract
//! A store is right if these hold; the conformance suite has a test for each, named after it.
//!
//! * **C1** Names are not identities: `lookup` with `create` gives an unknown name a new, random [`DatabaseId`] and
//!   version 0. A name removed and created again has another id. Two concurrent lookups of a name agree.
//! * **C2** `list` shows a database from its first commit on, in byte order of names.
//! * **C3** `commit` makes version base+1 of every named database, or changes nothing. No reader sees a part of it,
//!   at any moment, also after a crash.
//! * **C4** `commit` is refused with [`CommitOutcome::Conflict`] where a head is not the base.
//! * **C5** `commit` is refused with [`CommitOutcome::LeaseLost`] where the current epoch is not the one it names; the
//!   epoch is compared in the same transaction that makes the version. C4 and C5 hold for the first database at fault.
//! * **C6** A commit that was applied and is repeated (same id, same base) answers as the first time and changes nothing,
//!   as long as the record of version base+1 is kept; that comes before C4 and C5.
//! * **C7** When `commit` returns `Committed`, the versions are as durable as [`Capabilities::durable`] says.
//! * **C8** A version has exactly the pages of its base, except those that the commit names, those beyond `page_count`
//!   (gone for ever, also if a later version is larger again), and all of them where the page size differs.
//!   Where a page is named more than once the last one holds: stagings in their order, then the pages of the commit.
//!   A `page_count` of 0 makes a version without pages and without a page size. It counts as any other: it is the head, it is
//!   listed, its base stays readable by C10, and the next commit on it may have any page size.
//! * **C9** `read` answers pages as of the version asked, in the order asked, with the version that wrote each. A page never
//!   written, or beyond `page_count`, is empty with version 0. Its cost does not depend on the number of versions.
//! * **C10** A version is readable while it is the head; from the moment in which it was the head at some `protect` floor or
//!   above; while it is pinned by `protect`, from a moment in which it was readable; and for as long as V2 says. Any other may
//!   answer `VersionGone`, never other bytes.
//! * **C11** `changes` answers the head and the pages that differ from `since`, in one moment. `Changes::All` is always allowed.
//! * **C12** `fence` returns an epoch above every epoch ever returned for the database, also by earlier processes on the
//!   same store, and from then on every other epoch is refused.
//! * **C13** `resolve` says `Committed` if the first participant's version base+1 was made by this commit id. It says `Aborted` if
//!   version base+1 was made by another; or if it does not exist: then, in the same transaction, the current epoch is
//!   advanced if it is the one that the commit named, so that a delayed original is refused for ever by C5. It says `Unknown`
//!   if version base+1 existed and its record is gone.
//! * **C14** Records of versions (id, time) are kept for at least [`COMMIT_RECORD_TTL`], and over restarts where the store is durable.
//! * **C15** Staged pages are invisible until a commit names their staging, which consumes it. `discard` and a restart drop them.
//! * **C16** Content that differs from its checksum is answered with `Corrupt`, never returned.
//! * **C17** After an error of the medium (failed sync, failed write) the store refuses to commit until it is opened anew.
//!
//! A store with [`Capabilities::versions`] also has these, one with [`Capabilities::branches`] the ones on branches:
//!
//! * **V1** `find`, `versions` and `diff` tell of kept versions what the commits made: number, page size and count, times that never
//!   fall, tags, how many pages changed. A time means the newest version at or before it, kept or not: where that one is not
//!   kept any more the answer is `VersionGone`, never a neighbour.
//! * **V2** Kept are: the head; every version that was the head at some time within the retention; every version with a tag;
//!   every version that a branch, or a restored version, takes its pages from; every version protected. A kept version costs a read no more
//!   than the head.
//! * **V3** `set_tag` and `delete_tag` are durable as commits are, and repeatable. A tag names one version of its database.
//! * **V4** `branch` makes a database with the id it was given whose version 1 has exactly the pages of the version it is made from, at a
//!   cost that does not depend on their number. Commits to either, and the removal of either, do not show in the other, in whatever
//!   order. Repeating it with the same id, name and source gives the same answer; a name that another database has is `NameTaken`.
//!   So is the id of a database that was removed, for at least [`COMMIT_RECORD_TTL`], and while a branch stands on it: a call that comes once
//!   more after the removal would make versions that have the numbers of the removed ones and other pages.
//! * **V5** A commit with `restore` makes version base+1 with exactly the pages of that version; C3 to C7 hold for it. In `read`, the
//!   version that wrote a page is never below the restoring one where the content differs from that of its base. History
//!   goes on: nothing older is lost by it.
//! * **V6** `collect` drops only what V2 does not keep, in steps that take bounded time each; it may run beside anything and die at any
//!   step. When it says that nothing is left to do, what is not kept takes no room, and its versions answer `VersionGone`.
//! * **V7** Versions, times, tags and branches survive a restart where the store is durable. Versions that only `protect` kept may
//!   go with the process.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pagewire_proto::{
    Changes, CommitId, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, PageCount, PageNumber,
    PageSize, Snapshot, StagingId, TagName, UnixMillis, Version, VersionEntry,
};

use crate::peers::Peers;

/// How long a store keeps the record that settles a commit (C14).
pub const COMMIT_RECORD_TTL: Duration = Duration::from_secs(3600);

/// What a store can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// For people: `memory`, `local`, ...
    pub name: String,
    /// An acknowledged commit survives the process and the machine.
    pub durable: bool,
    /// Old versions stay readable for a retention time, not only while they are protected.
    pub versions: bool,
    /// Branches can be made.
    pub branches: bool,
    /// One server at a time serves the content: what it has not made visible nobody has. Without it no server can tell its
    /// subscribers of every version.
    pub exclusive: bool,
    /// How long a version is kept after the next one was made, where `versions` is set; `None` for ever.
    pub retention: Option<Duration>,
}

/// Why a store could not do it, named by what the caller does next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no database with this id or name.
    #[error("there is no such database")]
    DatabaseNotFound,
    /// The version is not kept any more.
    #[error("version {version} is not kept any more")]
    VersionGone {
        /// The version that was asked for.
        version: Version,
    },
    /// No version of the database has the tag.
    #[error("there is no tag {0}")]
    TagNotFound(TagName),
    /// Another database, or another version, has the name.
    #[error("{0}")]
    NameTaken(String),
    /// The staging was never begun, was consumed or dropped.
    #[error("staging {0} is not known")]
    StagingUnknown(StagingId),
    /// A limit of the store.
    #[error("{0}")]
    Limit(String),
    /// No room; nothing was applied.
    #[error("the store is full: {0}")]
    Full(String),
    /// Stored bytes differ from their checksum.
    #[error("{0}")]
    Corrupt(String),
    /// Could not be done now; nothing was applied; may be repeated.
    #[error("{0}")]
    Unavailable(String),
    /// The medium failed, or a bug: the outcome of a commit is not known.
    #[error("{0}")]
    Internal(String),
    /// The store does not offer it.
    #[error("not supported by this store: {0}")]
    Unsupported(&'static str),
}

/// A page as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPage {
    /// Empty for a page that was never written.
    pub content: Bytes,
    /// The version that wrote it, 0 for a page that was never written.
    pub version: Version,
}

/// A page to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageWrite {
    /// Which page.
    pub number: PageNumber,
    /// One page size of bytes; empty writes a page of zeros.
    pub content: Bytes,
}

/// A commit as a store gets it: complete and validated.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its identity.
    pub id: CommitId,
    /// At least one database, each once.
    pub databases: Vec<DatabaseCommit>,
}

/// What a commit makes of one database.
#[derive(Clone, Debug)]
pub struct DatabaseCommit {
    /// Which database.
    pub database: DatabaseId,
    /// The version on which it was made.
    pub base: Version,
    /// The epoch of the lease.
    pub epoch: Epoch,
    /// Of the new version.
    pub page_size: PageSize,
    /// Of the new version.
    pub page_count: PageCount,
    /// Staged pages, in the order in which they apply.
    pub stagings: Vec<StagingId>,
    /// Pages that came with the commit; they apply last.
    pub pages: Vec<PageWrite>,
    /// The version whose pages the new one has (V5). `page_size` and `page_count` are those of it, and there are no other pages.
    pub restore: Option<Version>,
}

/// How a commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitOutcome {
    /// Applied; one version for each database, in their order.
    Committed(Vec<Version>),
    /// Not applied: a head is not the base.
    Conflict {
        /// Index of the database.
        index: usize,
        /// Its head.
        head: Version,
    },
    /// Not applied: the epoch is not the current one.
    LeaseLost {
        /// Index of the database.
        index: usize,
        /// The current epoch.
        current: Epoch,
    },
}

/// The question what became of a commit; the participants as they were in it.
#[derive(Clone, Debug)]
pub struct Resolve {
    /// The commit in question.
    pub id: CommitId,
    /// Database, base and epoch of each participant.
    pub participants: Vec<(DatabaseId, Version, Epoch)>,
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It was applied and made these versions.
    Committed(Vec<Version>),
    /// It was not applied and never will be.
    Aborted {
        /// The current epoch of each participant after the answer.
        current: Vec<Epoch>,
    },
    /// The record is gone.
    Unknown(String),
}

/// A database in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseEntry {
    /// Its name.
    pub name: DatabaseName,
    /// Its identity.
    pub database: DatabaseId,
    /// Its newest version.
    pub head: Snapshot,
}

/// Where a database comes from, what is kept of it and what that takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The newest version.
    pub head: Snapshot,
    /// When version 1 was made.
    pub created: UnixMillis,
    /// For a branch.
    pub parent: Option<Parent>,
    /// The oldest version that is kept.
    pub oldest: Version,
    /// How many versions are kept.
    pub versions: u64,
    /// Pages kept under this database, over all of its versions; not those that it takes from its parent.
    pub pages: u64,
    /// Their bytes as stored.
    pub bytes: u64,
}

/// What a branch was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Which database.
    pub database: DatabaseId,
    /// Its name; `None` where it was removed.
    pub name: Option<DatabaseName>,
    /// The version.
    pub version: Version,
}

/// What one step of a collection freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Versions that are not readable any more.
    pub versions: u64,
    /// Pages dropped.
    pub pages: u64,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Another step would free more.
    pub more: bool,
}

/// What keeps the pages. See the contract at the top of this file.
#[async_trait]
pub trait PageStore: Send + Sync + std::fmt::Debug + 'static {
    /// What the store can do. Never changes.
    fn capabilities(&self) -> Capabilities;

    /// The identity of the content: a store that lost its content is another incarnation.
    fn incarnation(&self) -> Incarnation;

    /// Called once before anything else, with the largest time for which a lease of this server may be trusted.
    ///
    /// Returns how long nothing may become visible, because holders of leases of other processes may still trust them: the largest such
    /// time of those that have not called [`PageStore::end_service`], or zero. Where servers know of each other ([`PageStore::peers`])
    /// their claims say the same more exactly, and nobody waits.
    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError>;

    /// Called last, when no session trusts anything any more. Says nothing of other servers on the same store.
    async fn end_service(&self) -> Result<(), StoreError>;

    /// The database of a name (C1).
    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError>;

    /// Databases with names after `after` that begin with `prefix` (C2); at most `limit`.
    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError>;

    /// Removes the database and all of its versions.
    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError>;

    /// The newest version.
    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError>;

    /// The newest version and what differs from `since` (C11).
    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError>;

    /// Pages as of a version (C9). The caller has checked the number of pages against the limits.
    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError>;

    /// Sets the oldest version that somebody still reads, `None` for nobody, and single older ones (C10). Each call replaces the
    /// one before. A pinned version that is not readable any more is `VersionGone`, and nothing is replaced.
    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError>;

    /// Advances the epoch of the database and returns it (C12).
    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError>;

    /// Adds pages to a staging, which comes into being with the first call (C15).
    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError>;

    /// Drops a staging; unknown ones are ignored.
    async fn discard(&self, staging: StagingId) -> Result<(), StoreError>;

    /// Makes the next version of each database, or nothing (C3 to C8).
    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError>;

    /// Settles a commit whose answer was lost (C13).
    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError>;

    /// What is known of the version of a moment (V1).
    async fn find(
        &self,
        _database: DatabaseId,
        _moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        Err(StoreError::Unsupported("versions"))
    }

    /// Kept versions before `before`, or from the head on, newest first; at most `limit` (V1).
    async fn versions(
        &self,
        _database: DatabaseId,
        _before: Option<Version>,
        _tagged_only: bool,
        _limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        Err(StoreError::Unsupported("versions"))
    }

    /// Pages after `after` that differ between two kept versions, ascending; at most `limit` (V1).
    async fn diff(
        &self,
        _database: DatabaseId,
        _from: Version,
        _to: Version,
        _after: Option<PageNumber>,
        _limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        Err(StoreError::Unsupported("versions"))
    }

    /// Names the version of a moment, found in the same transaction (V3).
    async fn set_tag(
        &self,
        _database: DatabaseId,
        _tag: &TagName,
        _moment: &Moment,
        _replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        Err(StoreError::Unsupported("tags"))
    }

    /// Removes a tag; whether there was one (V3).
    async fn delete_tag(&self, _database: DatabaseId, _tag: &TagName) -> Result<bool, StoreError> {
        Err(StoreError::Unsupported("tags"))
    }

    /// Makes the database `branch` under `name` from the version of a moment of `source` (V4): what it was made from.
    async fn branch(
        &self,
        _source: DatabaseId,
        _moment: &Moment,
        _branch: DatabaseId,
        _name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        Err(StoreError::Unsupported("branches"))
    }

    /// Where a database comes from and what it takes.
    async fn describe(&self, _database: DatabaseId) -> Result<Description, StoreError> {
        Err(StoreError::Unsupported("versions"))
    }

    /// The other page servers on this store, where there can be any and they know of each other. Always the same.
    fn peers(&self) -> Option<Arc<dyn Peers>> {
        None
    }

    /// One bounded step of a collection, of one database or of all (V6).
    ///
    /// The server calls it where a client asks for it, and never by itself: a store drives its own collection, for it knows what
    /// became old and when its medium is idle.
    async fn collect(&self, _database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        Err(StoreError::Unsupported("versions"))
    }
}
