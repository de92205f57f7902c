//! What goes wrong in a store, as a status of the protocol: the one map between the two.
//!
//! Logs what a client is not told; nothing else in the server logs an error of the store.

use pagewire_proto::status::Reason;
use tonic::Status;

use crate::store::StoreError;

/// The status of a store error.
pub(crate) fn of_store(error: StoreError) -> Status {
    let reason = match &error {
        StoreError::DatabaseNotFound => Reason::DatabaseNotFound,
        StoreError::VersionGone { .. } => Reason::VersionGone,
        StoreError::TagNotFound(_) => Reason::TagNotFound,
        StoreError::NameTaken(_) => Reason::NameTaken,
        StoreError::StagingUnknown(_) => Reason::StagingUnknown,
        StoreError::Limit(_) => Reason::Limit,
        StoreError::Full(_) => Reason::StoreFull,
        StoreError::Corrupt(_) => Reason::Corrupt,
        StoreError::Unavailable(_) => Reason::Unavailable,
        StoreError::Unsupported(_) => Reason::Unsupported,
        StoreError::Internal(cause) => {
            tracing::error!(%cause, "the store failed");
            return Reason::Internal
                .status("the store failed: the log of the server has the cause");
        }
    };
    if matches!(reason, Reason::Corrupt | Reason::StoreFull) {
        tracing::error!(%error, "the store refused");
    }
    if reason == Reason::StoreFull {
        // How large the disk is, and how much of it is free, is the operator's matter.
        return reason.status(
            "the store is full, nothing was applied: remove databases, branches or tags, or have its operator make room (the log of the server says where)",
        );
    }
    if let StoreError::TagNotFound(tag) = &error
        && let Some(meant) = tag.meant()
    {
        return reason.status(format!("{error}; {meant}"));
    }
    reason.status(error.to_string())
}

/// The session has no such database open.
pub(crate) fn not_open() -> Status {
    Reason::DatabaseNotOpen.status("the session did not open this database: open it again")
}

/// A write through a read-only open.
pub(crate) fn read_only() -> Status {
    Reason::DatabaseNotOpen
        .status("the session opened this database read-only: open it again to write")
}

/// No such session, or not any more.
pub(crate) fn session_unknown() -> Status {
    Reason::SessionUnknown.status("the session is not known or has lapsed: begin a new one")
}

/// The server is about to stop.
pub(crate) fn draining() -> Status {
    Reason::Draining.status("the server is about to stop: reconnect, here or elsewhere")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_an_internal_error_stays_in_the_log() {
        let status = of_store(StoreError::Internal("write to /secret/path failed".into()));
        assert_eq!(Reason::of(&status), Reason::Internal);
        assert!(!status.message().contains("secret"));
    }

    #[test]
    fn how_much_room_a_full_disk_has_stays_in_the_log() {
        let status = of_store(StoreError::Full("4711 bytes are free on the disk".into()));
        assert_eq!(Reason::of(&status), Reason::StoreFull);
        assert!(status.message().contains("full") && !status.message().contains("4711"));
    }
}
