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
    /// The server may have done what was asked for, by this attempt or by one before it.
    pub may_be_done: bool,
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
        let explicit = Reason::is_explicit(status);
        let may_be_done = match explicit {
            true => matches!(reason, Reason::Unavailable | Reason::Internal),
            // Who does not know a call does not carry it out either.
            false => status.code() != tonic::Code::Unimplemented && !was_never_sent(status),
        };
        let error = Self {
            reason,
            explicit,
            may_be_done,
            message,
        };
        #[cfg(feature = "simulation")]
        crate::simulation::refused(&error);
        error
    }

    /// Of a call that servers may not have. `versions` is what the Welcome says of the store, if the session stands.
    ///
    /// UNIMPLEMENTED without a reason is said by a server of an older release and by a proxy, and the answer does not tell which. The transport of a
    /// server (tonic) answers a method that it does not know with HTTP 200, `content-type: application/grpc` and `grpc-status: 12` in the headers;
    /// so does a proxy that knows gRPC and has no route (Envoy makes that of its own 404). Only the bare 404 of a proxy that does not know gRPC looks
    /// different, since there the transport of this side makes the code up. Welcome tells more: the server that sent it
    /// * names `store.versions` only where its store keeps versions for clients to ask for, and such servers have these calls: UNIMPLEMENTED is not its
    ///   own. A proxy said it, perhaps while a server is being replaced, or an older server that has just taken the place and will send a Welcome of its
    ///   own. It is a failure of the transport then, and asked again. (`versions` is older than the calls: for a day of its first week the local store
    ///   named it and nobody could ask. Such a server is asked until the deadline, and the message says what to do.)
    /// * names no versions: whoever said it, the call would be refused as UNSUPPORTED. To ask again changes nothing.
    ///
    /// The minor version of the protocol would not tell: it is 0 with and without these calls.
    pub fn of_an_optional_call(self, code: tonic::Code, versions: Option<bool>) -> Self {
        if code != tonic::Code::Unimplemented || self.explicit {
            return self;
        }
        match versions {
            Some(false) => Self {
                reason: Reason::Unsupported,
                ..self
            },
            Some(true) | None => Self {
                message: format!(
                    "no page server that keeps old versions answered this call, but UNIMPLEMENTED came{}: let the proxy in between pass on all calls \
                     of pagewire.v1.PageService, or update the server if it is of an older release",
                    match &*self.message {
                        "" => String::new(),
                        message => format!(" ({message})"),
                    }
                ),
                ..self
            },
        }
    }

    /// No answer before the deadline.
    pub fn timeout(waited: std::time::Duration) -> Self {
        Self {
            reason: Reason::Unavailable,
            explicit: false,
            may_be_done: true,
            message: format!("no answer within {} ms", waited.as_millis()),
        }
    }

    /// The server of the call was left for another one while the answer was waited for.
    pub fn left(endpoint: &str) -> Self {
        Self {
            reason: Reason::Unavailable,
            explicit: false,
            may_be_done: true,
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

    /// Whether the same pages may be taken raw. A server that does not know an encoding calls it invalid.
    pub fn may_be_of_an_encoding(&self) -> bool {
        #[cfg(feature = "simulation")]
        if self.reason == Reason::Invalid && !crate::simulation::sends_raw_again() {
            return false;
        }
        matches!(self.reason, Reason::EncodingRefused | Reason::Invalid)
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

/// Whether a call ended since there was no connection for it: no byte of it was sent to anybody.
pub fn was_never_sent(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
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
        assert!(!told.is_transient() && !told.explicit && !told.may_be_done);
        let broken = CallError::from_status(&tonic::Status::unavailable("reset"));
        let told = broken.of_an_optional_call(tonic::Code::Unavailable, Some(false));
        assert!(told.is_transient() && told.may_be_done);
    }

    /// Bug: what a proxy said to a call of history, a 404 while its server was replaced, was told at once as a store that keeps no old versions.
    #[test]
    fn an_optional_call_that_a_proxy_does_not_know_is_asked_again_and_says_what_was_seen() {
        for versions in [Some(true), None] {
            let seen = "grpc-status header missing, mapped from HTTP status code 404";
            let unknown = CallError::from_status(&tonic::Status::unimplemented(seen));
            let told = unknown.of_an_optional_call(tonic::Code::Unimplemented, versions);
            assert!(told.is_transient() && !told.may_be_done, "{told:?}");
            assert!(told.message.contains(seen), "{told:?}");
            assert!(told.message.contains("the proxy in between"), "{told:?}");
        }
        // What a server says of its store is believed.
        let own = CallError::from_status(&Reason::Unsupported.status("versions"));
        let told = own.of_an_optional_call(tonic::Code::Unimplemented, Some(true));
        assert_eq!(
            (told.reason, &*told.message),
            (Reason::Unsupported, "versions")
        );
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
