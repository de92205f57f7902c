//! What the swapped keys have: prost messages behind a magic number and a checksum. Fields are only ever added.
//!
//! Decoding gives `Corrupt` for bytes that were not written here; what the numbers mean is `state.rs`'s.

use bytes::{BufMut, Bytes, BytesMut};
use pagewire_server::store::StoreError;
use prost::Message;

const MAGIC: [u8; 4] = *b"PWS1";

/// A database. See the state machine in `lib.rs`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Root {
    /// Rises by one with each swap: no value is ever written twice.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// Segments of lower generations can't be named any more, unless they are named already.
    #[prost(uint64, tag = "2")]
    pub horizon: u64,
    /// Which generation there was when; ascending.
    #[prost(message, repeated, tag = "3")]
    pub marks: Vec<Mark>,
    #[prost(message, optional, tag = "4")]
    pub state: Option<State>,
    #[prost(message, optional, tag = "5")]
    pub intent: Option<Intent>,
    /// The server that may give the lease to its sessions, as it is in the list of servers; empty: none. See `peers.rs`.
    #[prost(bytes = "bytes", tag = "6")]
    pub claim: Bytes,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct Mark {
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    #[prost(int64, tag = "2")]
    pub time_ms: i64,
}

/// What a transaction over several databases makes of this one, if it commits.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Intent {
    #[prost(bytes = "bytes", tag = "1")]
    pub transaction: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub participants: Vec<Participant>,
    #[prost(message, optional, tag = "3")]
    pub state: Option<State>,
    #[prost(int64, tag = "4")]
    pub time_ms: i64,
}

/// A database of a transaction, and the generation of its root before the intent.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Participant {
    #[prost(bytes = "bytes", tag = "1")]
    pub database: Bytes,
    #[prost(uint64, tag = "2")]
    pub generation: u64,
}

/// How a transaction was decided; there is none before.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Decision {
    #[prost(bool, tag = "1")]
    pub committed: bool,
    #[prost(message, repeated, tag = "2")]
    pub participants: Vec<Participant>,
}

/// What is known of a database.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct State {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    #[prost(uint64, tag = "3")]
    pub version: u64,
    #[prost(uint32, tag = "4")]
    pub page_size: u32,
    #[prost(uint32, tag = "5")]
    pub page_count: u32,
    /// Older ones first: of two that have a page the later one holds.
    #[prost(message, repeated, tag = "6")]
    pub entries: Vec<Entry>,
    /// Of consecutive versions up to the head.
    #[prost(message, repeated, tag = "7")]
    pub records: Vec<Record>,
    /// Of the versions before them, ascending.
    #[prost(message, repeated, tag = "8")]
    pub history: Vec<HistoryPart>,
    /// Versions below it are not readable.
    #[prost(uint64, tag = "9")]
    pub oldest: u64,
    /// When the database was removed; 0 while it exists.
    #[prost(int64, tag = "10")]
    pub removed_ms: i64,
    #[prost(int64, tag = "11")]
    pub created_ms: i64,
    /// Of versions before `oldest` that are still read, ascending.
    #[prost(message, repeated, tag = "12")]
    pub archives: Vec<ArchivePart>,
    /// When the epoch was given out to a lease last; 0: never.
    #[prost(int64, tag = "13")]
    pub fenced_ms: i64,
}

/// Pages of a segment that versions have: those from `first` to `last`, in versions from `added` to before `removed`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    #[prost(fixed64, tag = "2")]
    pub random: u64,
    #[prost(uint64, tag = "3")]
    pub added: u64,
    /// 0: of the head too.
    #[prost(uint64, tag = "4")]
    pub removed: u64,
    #[prost(uint32, tag = "5")]
    pub first: u32,
    #[prost(uint32, tag = "6")]
    pub last: u32,
    /// The version that wrote pages whose index says none.
    #[prost(uint64, tag = "7")]
    pub written: u64,
    /// The newest version that wrote one of the pages.
    #[prost(uint64, tag = "8")]
    pub newest: u64,
    #[prost(uint32, tag = "9")]
    pub page_size: u32,
    /// Bytes of the pages before the index.
    #[prost(uint64, tag = "10")]
    pub bytes: u64,
    /// Pages in the index.
    #[prost(uint32, tag = "11")]
    pub pages: u32,
    #[prost(fixed32, tag = "12")]
    pub index_crc32: u32,
}

/// How a version was made.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Record {
    #[prost(bytes = "bytes", tag = "1")]
    pub commit: Bytes,
    #[prost(int64, tag = "2")]
    pub time_ms: i64,
    #[prost(uint32, tag = "3")]
    pub page_size: u32,
    #[prost(uint32, tag = "4")]
    pub page_count: u32,
}

/// Where records are that the root has no room for.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct HistoryPart {
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    #[prost(fixed64, tag = "2")]
    pub random: u64,
    #[prost(uint64, tag = "3")]
    pub first: u64,
    #[prost(uint64, tag = "4")]
    pub last: u64,
    /// Of the last one.
    #[prost(int64, tag = "5")]
    pub time_ms: i64,
}

/// Where the entries of consecutive versions are that the root has no room for.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ArchivePart {
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    #[prost(fixed64, tag = "2")]
    pub random: u64,
    #[prost(uint64, tag = "3")]
    pub first: u64,
    #[prost(uint64, tag = "4")]
    pub last: u64,
}

/// All entries of consecutive versions, in the order that they had in the root.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Archive {
    #[prost(message, repeated, tag = "1")]
    pub entries: Vec<Entry>,
}

/// Records of consecutive versions.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct History {
    #[prost(message, repeated, tag = "1")]
    pub records: Vec<Record>,
}

/// Which database has a name.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NameCell {
    /// Empty: none.
    #[prost(bytes = "bytes", tag = "1")]
    pub database: Bytes,
    /// Rises with each swap.
    #[prost(uint64, tag = "2")]
    pub serial: u64,
}

/// The installation.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Installation {
    #[prost(bytes = "bytes", tag = "1")]
    pub incarnation: Bytes,
    /// Rises with each swap.
    #[prost(uint64, tag = "2")]
    pub serial: u64,
    /// Servers that serve, or died while they did; see `peers.rs`.
    #[prost(message, repeated, tag = "3")]
    pub services: Vec<Service>,
    /// Who collects; see `upkeep.rs`.
    #[prost(message, optional, tag = "4")]
    pub collector: Option<Claim>,
}

/// A server collects, as long as it says so again and again.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Claim {
    #[prost(bytes = "bytes", tag = "1")]
    pub server: Bytes,
    /// The serial of the installation when it said so last.
    #[prost(uint64, tag = "2")]
    pub serial: u64,
}

/// A server that may have given out leases.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Service {
    /// New each time that it enters the list.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(uint64, tag = "2")]
    pub lease_ttl_ms: u64,
    /// Rises with each answer to those who ask.
    #[prost(uint64, tag = "3")]
    pub beat: u64,
    /// Somebody wants to know whether it lives.
    #[prost(bool, tag = "4")]
    pub asked: bool,
    /// Claims that others want.
    #[prost(message, repeated, tag = "5")]
    pub wishes: Vec<Wish>,
}

/// A server wants the claim of a database.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Wish {
    #[prost(bytes = "bytes", tag = "1")]
    pub database: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub server: Bytes,
}

pub(crate) fn encode(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + message.encoded_len());
    out.put_slice(&MAGIC);
    let body = message.encode_to_vec();
    out.put_u32_le(crc32fast::hash(&body));
    out.put_slice(&body);
    out.freeze()
}

pub(crate) fn decode<M: Message + Default>(key: &str, bytes: &[u8]) -> Result<M, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt(format!("key {key}: {what}"));
    let rest = bytes
        .strip_prefix(&MAGIC)
        .ok_or_else(|| corrupt("is not of this format"))?;
    let (crc, body) = rest
        .split_at_checked(4)
        .ok_or_else(|| corrupt("is too short"))?;
    if crc != crc32fast::hash(body).to_le_bytes() {
        return Err(corrupt("its checksum differs"));
    }
    M::decode(body).map_err(|error| corrupt(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_comes_back_and_every_flipped_bit_is_noticed() {
        let cell = NameCell {
            database: Bytes::from_static(&[7; 16]),
            serial: 300,
        };
        let bytes = encode(&cell);
        assert_eq!(decode::<NameCell>("n/61", &bytes).unwrap(), cell);
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.to_vec();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let answer = decode::<NameCell>("n/61", &wrong);
            assert!(matches!(answer, Err(StoreError::Corrupt(_))), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode::<NameCell>("n/61", &bytes[..length]).is_err());
        }
    }
}
