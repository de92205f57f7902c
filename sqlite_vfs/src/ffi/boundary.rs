//! The guard round every callback: no panic leaves, every error is logged once and becomes a code of SQLite here.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::registration::Registration;
use super::types::code;
use crate::error::{Error, Kind, Result};
use crate::process::ClientKey;

/// Which callback; decides which of SQLite's I/O error codes is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Open,
    Delete,
    Access,
    FullPathname,
    Close,
    Read,
    Write,
    Truncate,
    Sync,
    FileSize,
    Lock,
    Unlock,
    CheckReservedLock,
    FileControl,
    /// A pragma or a function of ours.
    Own,
}

/// The code of an error. The point of no return is `Lock`: after it nothing may be answered with SQLITE_BUSY, or SQLite
/// reports the next COMMIT as done (W16).
pub fn code_of(op: Op, kind: Kind) -> c_int {
    let io = match op {
        Op::Open | Op::FullPathname => code::CANTOPEN,
        Op::Delete => code::IOERR_DELETE,
        Op::Access => code::IOERR_ACCESS,
        Op::Close => code::IOERR_CLOSE,
        Op::Read => code::IOERR_READ,
        Op::Write => code::IOERR_WRITE,
        Op::Truncate => code::IOERR_TRUNCATE,
        Op::Sync | Op::FileControl => code::IOERR_FSYNC,
        Op::FileSize => code::IOERR_FSTAT,
        Op::Lock => code::IOERR_LOCK,
        Op::Unlock => code::IOERR_UNLOCK,
        Op::CheckReservedLock => code::IOERR_CHECKRESERVEDLOCK,
        Op::Own => code::IOERR,
    };
    match kind {
        Kind::Busy | Kind::Deadlock if matches!(op, Op::Lock | Op::Own) => code::BUSY,
        Kind::BusySnapshot if matches!(op, Op::Lock | Op::Sync | Op::Delete | Op::Own) => {
            code::BUSY_SNAPSHOT
        }
        Kind::Busy
        | Kind::Deadlock
        | Kind::BusySnapshot
        | Kind::Io
        | Kind::OutcomeUnknown
        | Kind::Bug => io,
        Kind::CantOpen if matches!(op, Op::Lock | Op::Own) => code::CANTOPEN,
        Kind::Refused if op == Op::Own => code::ERROR,
        Kind::CantOpen | Kind::Refused => io,
        Kind::ReadOnly => code::READONLY,
        Kind::Full => code::FULL,
        Kind::NoMemory => code::NOMEM,
        Kind::Corrupt if matches!(op, Op::Read | Op::Lock | Op::Write) => code::IOERR_DATA,
        Kind::Corrupt => io,
    }
}

/// Runs a callback. `failed` is told of the error before it becomes a number, and says whose it is.
pub fn guarded(
    registration: &Registration,
    op: Op,
    failed: impl FnOnce(&Error) -> Option<ClientKey>,
    callback: impl FnOnce() -> Result<c_int>,
) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(callback)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_default();
        Err(Error::new(
            Kind::Bug,
            format!("a bug in pagewire ({op:?}): {what}: close the connection"),
        ))
    });
    match outcome {
        Ok(rc) => rc,
        Err(error) => {
            let rc = code_of(op, error.kind);
            #[cfg(feature = "simulation")]
            crate::simulation::failed(&error);
            // The error path must not be able to panic out either.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let client = failed(&error);
                if !is_waiting(op, error.kind) {
                    registration.log(rc, &error.message, client);
                }
            }));
            rc
        }
    }
}

/// Waiting for a lock is no error; logging it would fill logs. The same for a snapshot that has become old when a statement wants
/// to write: SQLite begins it again, or tells the application.
fn is_waiting(op: Op, kind: Kind) -> bool {
    kind == Kind::Busy || (kind == Kind::BusySnapshot && op == Op::Lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by SQLite's mptest, which counts what is logged as errors: several writers logged hundreds of times that they wait.
    #[test]
    fn waiting_for_the_write_lock_is_not_logged() {
        assert!(is_waiting(Op::Lock, Kind::Busy));
        assert!(is_waiting(Op::Lock, Kind::BusySnapshot));
        assert!(!is_waiting(Op::Sync, Kind::BusySnapshot));
        assert!(!is_waiting(Op::Delete, Kind::BusySnapshot));
        assert!(!is_waiting(Op::Lock, Kind::Io));
    }

    #[test]
    fn w16_after_the_point_of_no_return_nothing_is_busy() {
        for op in [
            Op::Write,
            Op::Sync,
            Op::FileControl,
            Op::Truncate,
            Op::Unlock,
            Op::Delete,
        ] {
            assert_ne!(code_of(op, Kind::Busy) & 0xff, code::BUSY, "{op:?}");
        }
        assert_eq!(code_of(Op::Sync, Kind::BusySnapshot), code::BUSY_SNAPSHOT);
        assert_eq!(code_of(Op::Lock, Kind::Busy), code::BUSY);
        assert_eq!(code_of(Op::Sync, Kind::OutcomeUnknown) & 0xff, code::IOERR);
    }
}
