//! The head of a commit, its checksum, and the question what became of it.

use super::{
    CommitId, DatabaseId, Epoch, Invalid, PageCount, PageSize, SessionId, StagingId, Version,
};
use crate::limits::{MAX_COMMIT_DATABASES, MAX_STAGINGS};
use crate::pb;

/// What a commit wants, before its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// The session that has the leases.
    pub session: SessionId,
    /// The identity of this commit.
    pub id: CommitId,
    /// At least one, each once.
    pub databases: Vec<CommitDatabase>,
}

/// What a commit makes of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitDatabase {
    /// Which database.
    pub database: DatabaseId,
    /// The version on which the transaction was made.
    pub base: Version,
    /// Of the write lease.
    pub epoch: Epoch,
    /// Of the new version.
    pub page_size: PageSize,
    /// Of the new version; at least 1.
    pub page_count: PageCount,
    /// Pages staged earlier, in the order in which they apply.
    pub stagings: Vec<StagingId>,
    /// The version whose pages the new version has, in place of the base's. Such a commit brings no pages.
    pub restore: Option<Version>,
}

impl From<&CommitHeader> for pb::CommitHeader {
    fn from(header: &CommitHeader) -> Self {
        Self {
            session_id: header.session.to_wire(),
            commit_id: header.id.to_wire(),
            databases: header
                .databases
                .iter()
                .map(|database| pb::CommitDatabase {
                    database_id: database.database.to_wire(),
                    base_version: database.base.get(),
                    epoch: database.epoch.get(),
                    page_size: database.page_size.get(),
                    page_count: database.page_count.get(),
                    staging_ids: database.stagings.iter().map(|id| id.to_wire()).collect(),
                    restore_version: database.restore.map_or(0, Version::get),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::CommitHeader> for CommitHeader {
    type Error = Invalid;

    fn try_from(wire: pb::CommitHeader) -> Result<Self, Invalid> {
        check_database_count(wire.databases.len())?;
        let databases = wire
            .databases
            .into_iter()
            .map(CommitDatabase::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        check_distinct(databases.iter().map(|database| database.database))?;
        Ok(Self {
            session: SessionId::try_from(&wire.session_id[..])?,
            id: CommitId::try_from(&wire.commit_id[..])?,
            databases,
        })
    }
}

impl TryFrom<pb::CommitDatabase> for CommitDatabase {
    type Error = Invalid;

    fn try_from(wire: pb::CommitDatabase) -> Result<Self, Invalid> {
        if wire.staging_ids.len() > MAX_STAGINGS {
            return Err(Invalid::new(
                "staging_ids",
                format!(
                    "{} stagings, at most {MAX_STAGINGS} are allowed",
                    wire.staging_ids.len()
                ),
            ));
        }
        if wire.restore_version != 0 && !wire.staging_ids.is_empty() {
            return Err(Invalid::new(
                "staging_ids",
                "must be empty where restore_version is set",
            ));
        }
        Ok(Self {
            database: DatabaseId::try_from(&wire.database_id[..])?,
            base: Version::new(wire.base_version),
            epoch: Epoch::new(wire.epoch),
            restore: match wire.restore_version {
                0 => None,
                version => Some(Version::new(version)),
            },
            page_size: PageSize::try_from(wire.page_size)?,
            page_count: PageCount::try_from(wire.page_count)?,
            stagings: wire
                .staging_ids
                .iter()
                .map(|id| StagingId::try_from(&id[..]))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The question what became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveCommit {
    /// The session that asks.
    pub session: SessionId,
    /// The commit in question.
    pub id: CommitId,
    /// As they were in the commit, in the same order; at least one.
    pub participants: Vec<CommitParticipant>,
}

/// One database of a commit in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitParticipant {
    /// Which database.
    pub database: DatabaseId,
    /// The version on which the transaction was made.
    pub base: Version,
    /// Of the write lease with which it was sent.
    pub epoch: Epoch,
}

impl From<&ResolveCommit> for pb::ResolveCommitRequest {
    fn from(resolve: &ResolveCommit) -> Self {
        Self {
            session_id: resolve.session.to_wire(),
            commit_id: resolve.id.to_wire(),
            participants: resolve
                .participants
                .iter()
                .map(|participant| pb::CommitParticipant {
                    database_id: participant.database.to_wire(),
                    base_version: participant.base.get(),
                    epoch: participant.epoch.get(),
                })
                .collect(),
        }
    }
}

impl TryFrom<pb::ResolveCommitRequest> for ResolveCommit {
    type Error = Invalid;

    fn try_from(wire: pb::ResolveCommitRequest) -> Result<Self, Invalid> {
        check_database_count(wire.participants.len())?;
        let participants = wire
            .participants
            .into_iter()
            .map(|participant| {
                Ok(CommitParticipant {
                    database: DatabaseId::try_from(&participant.database_id[..])?,
                    base: Version::new(participant.base_version),
                    epoch: Epoch::new(participant.epoch),
                })
            })
            .collect::<Result<Vec<_>, Invalid>>()?;
        check_distinct(participants.iter().map(|participant| participant.database))?;
        Ok(Self {
            session: SessionId::try_from(&wire.session_id[..])?,
            id: CommitId::try_from(&wire.commit_id[..])?,
            participants,
        })
    }
}

/// The checksum over all pages of a commit stream, built page by page.
#[derive(Clone, Debug, Default)]
pub struct CommitChecksum {
    hasher: crc32fast::Hasher,
    page_count: u64,
}

impl CommitChecksum {
    /// Adds a page by its own checksum.
    pub fn add(&mut self, page_crc32: u32) {
        self.hasher.update(&page_crc32.to_le_bytes());
        self.page_count += 1;
    }

    /// The closing message of the stream.
    pub fn finish(self) -> pb::CommitFinish {
        pb::CommitFinish {
            page_count: self.page_count,
            crc32: self.hasher.finalize(),
        }
    }

    /// Compares with what the sender counted.
    pub fn check(self, sent: &pb::CommitFinish) -> Result<(), Invalid> {
        let counted = self.finish();
        if counted == *sent {
            Ok(())
        } else {
            Err(Invalid::new(
                "finish",
                format!(
                    "{} pages with checksum {:08x} were received, {} with {:08x} were sent",
                    counted.page_count, counted.crc32, sent.page_count, sent.crc32
                ),
            ))
        }
    }
}

fn check_database_count(count: usize) -> Result<(), Invalid> {
    match count {
        0 => Err(Invalid::missing("databases")),
        1..=MAX_COMMIT_DATABASES => Ok(()),
        _ => Err(Invalid::new(
            "databases",
            format!("{count} databases, at most {MAX_COMMIT_DATABASES} are allowed"),
        )),
    }
}

fn check_distinct(ids: impl Iterator<Item = DatabaseId>) -> Result<(), Invalid> {
    let mut seen = std::collections::HashSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(Invalid::new("database_id", format!("{id} is named twice")));
        }
    }
    Ok(())
}
