//! Errors of the VFS, named by what SQLite does next; the numbers of SQLite are chosen in `ffi/boundary.rs`.

use pagewire_proto::status::Reason;
use pagewire_proto::{Invalid, Version};

/// What SQLite does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Calls the busy handler and asks again.
    Busy,
    /// Ends the transaction: it waits for one that waits for it. The busy handler is not called: waiting would be in vain.
    Deadlock,
    /// Ends the transaction: its snapshot is not the newest version any more.
    BusySnapshot,
    /// Reports that the database can't be opened.
    CantOpen,
    /// Reports that the database is read-only.
    ReadOnly,
    /// Reports what is wrong with a request beside reading and writing: a moment that there is not, a name that is taken.
    Refused,
    /// Ends the transaction: no room.
    Full,
    /// Reports that SQLite's memory is short.
    NoMemory,
    /// Ends the transaction: stored bytes are damaged.
    Corrupt,
    /// Ends the transaction with an I/O error. Nothing was applied.
    Io,
    /// Ends the transaction with an I/O error. It is not known whether the commit was applied.
    OutcomeUnknown,
    /// A bug of ours, or a wrong use of the VFS.
    Bug,
}

/// An error with a message that names the object and what to do next.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What SQLite does next.
    pub kind: Kind,
    /// For people: lower case, no full stop.
    pub message: String,
}

/// Result of everything inside the VFS.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// Somebody else has the write lock.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Kind::Busy, message)
    }

    /// An I/O error after which nothing was applied.
    pub fn io(message: impl Into<String>) -> Self {
        Self::new(Kind::Io, message)
    }

    /// The snapshot of a transaction that wants to write is not the newest version.
    pub fn snapshot_is_old(name: &str, snapshot: Version, head: Version) -> Self {
        Self::new(
            Kind::BusySnapshot,
            format!(
                "{name}: the transaction reads version {snapshot}, the newest is {head}: end it and begin again"
            ),
        )
    }

    /// The same error with the object put in front.
    pub fn within(mut self, object: &str) -> Self {
        self.message = format!("{object}: {}", self.message);
        self
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::io(format!("the server's answer is not valid: {invalid}"))
    }
}

/// Why a call to the server did not give an answer.
#[derive(Clone, Debug)]
pub struct CallError {
    /// The reason that the server gave, or `Unavailable`.
    pub reason: Reason,
    /// The server itself said it, so the call was not and will not be carried out (unless the reason is `Internal`).
    pub explicit: bool,
    /// For people.
    pub message: String,
}

impl CallError {
    /// From the status of a call.
    pub fn from_status(status: &tonic::Status) -> Self {
        let reason = Reason::of(status);
        let mut message = status.message().to_owned();
        let mut source = std::error::Error::source(status);
        while let Some(cause) = source {
            // The transport says "transport error"; the cause says what it was.
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        let error = Self {
            reason,
            explicit: Reason::is_explicit(status),
            message,
        };
        #[cfg(feature = "simulation")]
        crate::simulation::refused(&error);
        error
    }

    /// Of a call that servers may not have: one of an older release answers as its transport does, without a reason, and its Welcome names no versions. To
    /// ask again changes nothing then. Where `has_versions`, or nobody knows, what answered is not the server of that Welcome: a proxy that knows no such
    /// call, or does not reach the server (HTTP 404 is UNIMPLEMENTED for gRPC), or a server that has just taken the place of that one.
    pub fn of_an_optional_call(self, code: tonic::Code, has_versions: Option<bool>) -> Self {
        match code {
            tonic::Code::Unimplemented if !self.explicit => match has_versions {
                Some(false) => Self {
                    reason: Reason::Unsupported,
                    ..self
                },
                _ => Self {
                    message: format!(
                        "UNIMPLEMENTED, but not from a page server ({}): a proxy has to pass all calls of pagewire.v1.PageService on",
                        self.message
                    ),
                    ..self
                },
            },
            _ => self,
        }
    }

    /// Of a call that changes something and whose attempt before got no answer: the server that is there now does not have it, and cannot tell.
    pub fn after_an_attempt(self, before: &Self) -> Self {
        match self.reason {
            Reason::Unsupported => Self {
                reason: Reason::Unavailable,
                explicit: false,
                message: format!(
                    "it is not known whether this was done: {}; and the server that is there now has no such call",
                    before.message
                ),
            },
            _ => self,
        }
    }

    /// No answer before the deadline.
    pub fn timeout(waited: std::time::Duration) -> Self {
        Self {
            reason: Reason::Unavailable,
            explicit: false,
            message: format!("no answer within {} ms", waited.as_millis()),
        }
    }

    /// The server of the call was left for another one while the answer was waited for.
    pub fn left(endpoint: &str) -> Self {
        Self {
            reason: Reason::Unavailable,
            explicit: false,
            message: format!("{endpoint} was left for another server"),
        }
    }

    /// Whether an idempotent call may be repeated.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.reason,
            Reason::Unavailable | Reason::Draining | Reason::Overloaded
        )
    }

    /// Whether the session or its opens have to be made anew before the call can succeed.
    pub fn wants_reopen(&self) -> bool {
        matches!(
            self.reason,
            Reason::SessionUnknown | Reason::DatabaseNotOpen
        )
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        let kind = match error.reason {
            Reason::DatabaseNotFound | Reason::ProtocolVersion => Kind::CantOpen,
            Reason::TagNotFound | Reason::NameTaken => Kind::Refused,
            Reason::StoreFull => Kind::Full,
            Reason::Corrupt => Kind::Corrupt,
            Reason::SessionUnknown
            | Reason::DatabaseNotOpen
            | Reason::VersionGone
            | Reason::StagingUnknown
            | Reason::EncodingRefused
            | Reason::Invalid
            | Reason::Limit
            | Reason::Unsupported
            | Reason::Draining
            | Reason::Overloaded
            | Reason::Unavailable
            | Reason::Internal => Kind::Io,
        };
        Self::new(kind, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::counters::CallKind;

    /// Bug: a call that a server of an older release has not was answered by its transport, and taken for one that got no answer: it was repeated until
    /// its deadline, and told as a server that is out of reach.
    #[test]
    fn an_optional_call_that_is_not_there_is_not_asked_for_again() {
        let unknown = CallError::from_status(&tonic::Status::unimplemented(""));
        assert!(unknown.is_transient());
        let told = unknown.of_an_optional_call(tonic::Code::Unimplemented, Some(false));
        assert_eq!(told.reason, Reason::Unsupported);
        assert!(!told.is_transient() && !told.explicit);
        let broken = CallError::from_status(&tonic::Status::unavailable("reset"));
        let told = broken.of_an_optional_call(tonic::Code::Unavailable, Some(false));
        assert!(told.is_transient());
    }

    /// Bug: a proxy's 404 was told as a store that keeps no old versions, at once.
    #[test]
    fn an_optional_call_that_a_proxy_does_not_know_is_repeated() {
        for has_versions in [Some(true), None] {
            let unknown = CallError::from_status(&tonic::Status::unimplemented("404"));
            let told = unknown.of_an_optional_call(tonic::Code::Unimplemented, has_versions);
            assert!(told.is_transient() && told.message.contains("(404): a proxy"));
        }
        // The store's own answer is believed.
        let mut status = tonic::Status::unimplemented("no");
        let reason = "UNSUPPORTED".parse().unwrap();
        status.metadata_mut().insert("pagewire-reason", reason);
        let own = CallError::from_status(&status);
        let told = own.of_an_optional_call(tonic::Code::Unimplemented, Some(true));
        assert_eq!((told.reason, &*told.message), (Reason::Unsupported, "no"));
    }

    /// Bug: a tag or a branch that may have been made was told as unsupported.
    #[test]
    fn what_may_have_been_done_is_not_told_as_unsupported() {
        let lost = CallError::from_status(&tonic::Status::unavailable("reset"));
        let unknown = CallError::from_status(&tonic::Status::unimplemented(""));
        let told = unknown.of_an_optional_call(tonic::Code::Unimplemented, Some(false));
        let told = told.after_an_attempt(&lost);
        assert_eq!(told.reason, Reason::Unavailable);
        assert!(
            told.message
                .starts_with("it is not known whether this was done: reset")
        );
        let refused = CallError::from_status(&tonic::Status::invalid_argument("name"));
        assert_eq!(refused.after_an_attempt(&lost).message, "name");
    }

    /// Without these nothing goes on: a proxy may say for a while that it knows no such call.
    #[test]
    fn calls_that_every_server_has_are_repeated() {
        use CallKind::{Acquire, Begin, Branch, Find, History, Open, Read, Resolve, Tag};
        assert!(
            [Find, History, Tag, Branch]
                .into_iter()
                .all(CallKind::is_optional)
        );
        let always = [Open, Begin, Read, Acquire, Resolve];
        assert!(!always.into_iter().any(CallKind::is_optional));
    }
}
