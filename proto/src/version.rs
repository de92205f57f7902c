//! The version of the protocol. One line for each version that was ever released:
//!
//! * 1.0: sessions, leases, snapshots, atomic commits over several databases, staging, commit ids.
//! * 1.1: a message of the session that a server does not know is left out; before, it ended the stream.

use crate::model::Invalid;

/// A peer with another major version is refused.
pub const MAJOR: u32 = 1;
/// A peer with another minor version is welcome; each side uses what both know.
pub const MINOR: u32 = 1;
/// The minor version from which on servers leave out a message of the session that they do not know. An older one may take a message that came after
/// the first ones, which DropStagings did, for one that is not valid, and end the stream: none of these is sent to it. Clients have always left theirs out.
pub const LEAVES_OUT_UNKNOWN: u32 = 1;

/// Refuses a peer of another major version with a sentence that names both.
pub fn check(peer: &str, major: u32, minor: u32) -> Result<(), Invalid> {
    if major == MAJOR {
        return Ok(());
    }
    Err(Invalid::new(
        "protocol_major",
        format!(
            "the {peer} speaks Pagewire protocol {major}.{minor}, this side speaks {MAJOR}.{MINOR}: \
             update the older of the two"
        ),
    ))
}
