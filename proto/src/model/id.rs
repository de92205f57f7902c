//! The 16-byte identities of the protocol, each a type of its own.

use super::Invalid;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $field:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The identity with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The bytes, as they are stored and compared.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// A new identity from the operating system's random numbers; an error where it has none.
            pub fn random() -> Result<Self, Invalid> {
                let mut bytes = [0; 16];
                getrandom::fill(&mut bytes)
                    .map_err(|error| Invalid::new($field, format!("no random numbers: {error}")))?;
                Ok(Self(bytes))
            }

            /// The bytes as a protocol field.
            pub fn to_wire(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(&self.0)
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = Invalid;

            fn try_from(bytes: &[u8]) -> Result<Self, Invalid> {
                bytes.try_into().map(Self).map_err(|_| {
                    Invalid::new($field, format!("has {} bytes, must have 16", bytes.len()))
                })
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    )*};
}

ids! {
    /// A database, apart from its name: one created again under the same name has another id.
    DatabaseId, "database_id";
    /// A session of one process; a secret of the client that chose it.
    SessionId, "session_id";
    /// A commit, so that it is neither lost nor applied twice.
    CommitId, "commit_id";
    /// Pages uploaded ahead of their commit.
    StagingId, "staging_id";
    /// The content of a store: one that lost its content is another incarnation.
    Incarnation, "incarnation";
}
