//! Strict types of the protocol. A value of one of these types is valid; `TryFrom<pb::...>` names the bad field.

mod commit;
mod encoding;
mod history;
mod id;
mod name;
mod page;
#[cfg(test)]
mod properties;
mod snapshot;

pub use commit::{CommitChecksum, CommitDatabase, CommitHeader, CommitParticipant, ResolveCommit};
pub use encoding::{EncodedPage, Unfit};
pub use history::{Moment, TagName, UnixMillis, VersionEntry};
pub use id::{CommitId, DatabaseId, Incarnation, SessionId, StagingId};
pub use name::DatabaseName;
pub use page::{Page, PageCount, PageNumber, PageSize};
pub use snapshot::{Changes, Epoch, LeaseGrant, Snapshot, Version};

/// A field of a message, a setting or a name that is not what it has to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field as the protocol names it.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl Invalid {
    /// Names the field and the problem.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }

    /// A message field that has to be set is missing.
    pub fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}
