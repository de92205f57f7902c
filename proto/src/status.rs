//! The reasons that a status carries in its trailing metadata (`pagewire-reason`), named by what the caller does next.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::model::Invalid;

/// Trailing metadata key of the reason.
pub const REASON_KEY: &str = "pagewire-reason";

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $code:ident;)*) => {
        /// Why a call failed; the table is in `pagewire.proto`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason, for tests that go through all of them.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The text on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$variant => $text,)*
                }
            }

            /// The gRPC status code that goes with it.
            pub fn code(self) -> Code {
                match self {
                    $(Reason::$variant => Code::$code,)*
                }
            }

            fn parse(text: &str) -> Option<Reason> {
                match text {
                    $($text => Some(Reason::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    /// The other side has another major version.
    ProtocolVersion = "PROTOCOL_VERSION", FailedPrecondition;
    /// The session is not known, or has lapsed.
    SessionUnknown = "SESSION_UNKNOWN", FailedPrecondition;
    /// There is no such database for this caller.
    DatabaseNotFound = "DATABASE_NOT_FOUND", NotFound;
    /// The session did not open the database.
    DatabaseNotOpen = "DATABASE_NOT_OPEN", FailedPrecondition;
    /// The version is not kept any more.
    VersionGone = "VERSION_GONE", OutOfRange;
    /// The database has no such tag.
    TagNotFound = "TAG_NOT_FOUND", NotFound;
    /// Another database, or another version, has the name.
    NameTaken = "NAME_TAKEN", AlreadyExists;
    /// The staging is not known, or was dropped.
    StagingUnknown = "STAGING_UNKNOWN", FailedPrecondition;
    /// The pages can't be taken in their encoding; nothing was done. Raw they can.
    EncodingRefused = "ENCODING_REFUSED", FailedPrecondition;
    /// A field is wrong.
    Invalid = "INVALID", InvalidArgument;
    /// A limit would be exceeded.
    Limit = "LIMIT", ResourceExhausted;
    /// The server has no memory for the call now; nothing was done.
    Overloaded = "OVERLOADED", ResourceExhausted;
    /// Stored bytes do not have their checksum.
    Corrupt = "CORRUPT", DataLoss;
    /// The store has no room.
    StoreFull = "STORE_FULL", ResourceExhausted;
    /// The server does not offer it.
    Unsupported = "UNSUPPORTED", Unimplemented;
    /// The server is about to stop.
    Draining = "DRAINING", Unavailable;
    /// Could not be done now; may be repeated if the call may be repeated.
    Unavailable = "UNAVAILABLE", Unavailable;
    /// A bug or a broken store.
    Internal = "INTERNAL", Internal;
}

impl Reason {
    /// A status with this reason and a message that says what to do next.
    pub fn status(self, message: impl Into<String>) -> Status {
        let mut status = Status::new(self.code(), message);
        status
            .metadata_mut()
            .insert(REASON_KEY, MetadataValue::from_static(self.as_str()));
        status
    }

    /// The reason of a status. One without a reason comes from the transport: `Unavailable`.
    pub fn of(status: &Status) -> Reason {
        status
            .metadata()
            .get(REASON_KEY)
            .and_then(|value| value.to_str().ok())
            .and_then(Reason::parse)
            .unwrap_or(Reason::Unavailable)
    }

    /// Whether a status came from a Pagewire server at all, rather than from the transport or a proxy.
    pub fn is_explicit(status: &Status) -> bool {
        status.metadata().contains_key(REASON_KEY)
    }
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Status {
        let reason = if invalid.field == "protocol_major" {
            Reason::ProtocolVersion
        } else {
            Reason::Invalid
        };
        reason.status(invalid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for &reason in Reason::ALL {
            let status = reason.status("text");
            assert_eq!(Reason::of(&status), reason);
            assert_eq!(status.code(), reason.code());
            assert!(Reason::is_explicit(&status));
        }
    }

    #[test]
    fn a_status_of_the_transport_is_unavailable() {
        assert_eq!(Reason::of(&Status::internal("h2")), Reason::Unavailable);
        assert!(!Reason::is_explicit(&Status::internal("h2")));
    }
}
