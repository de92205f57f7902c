//! The codec of the protocol: prost, behind a look at the raw bytes that bounds every list before anything is allocated for it.
//! A message that goes out gets its memory at once, as much as it takes.
//!
//! An empty list element has two bytes on the wire and up to a hundred in memory, so the limit of a message's bytes alone would
//! let a peer claim fifty times as much memory. The elements are counted over the whole message: a field that is given
//! twice is merged. The bounds are a few times those of the protocol: what is wrong by little is told by the receiver, which names
//! the field.
//!
//! An error here carries no reason of the protocol: where an answer can't be decoded, nothing is known about the call.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::limits::{
    BATCH_BYTES, MAX_CHANGED_PAGES, MAX_COMMIT_DATABASES, MAX_DIFF_PAGES, MAX_HOT_PAGES, MAX_LIST,
    MAX_LIST_VERSIONS, MAX_OPEN_DATABASES, MAX_PINS, MAX_READ_PAGES, MAX_STAGINGS, MAX_TAGS,
};
use crate::pb;

/// Bytes of a message that may mean nothing here: fields of a later minor version, numbers given twice. The pages of a message are
/// slices of it and keep all of it in memory, so one with more is copied together.
pub const SURPLUS_BYTES: usize = 1 << 10;
/// How many times the limit of a request is decoded, so that the receiver can say what is wrong with it.
const LENIENT: usize = 4;
/// Longest list of names of capabilities.
const MAX_CAPABILITIES: usize = 256;
/// Most pages in one message: as many as fit into a batch, or an answer, with the smallest page size; empty ones count too.
const MAX_MESSAGE_PAGES: usize = 8 * BATCH_BYTES / 512;
/// A varint of 32 bits has at most so many bytes.
const MAX_VARINT_BYTES: usize = 5;

/// A field that is a list, or a message that has some.
#[derive(Debug)]
pub struct Field {
    number: u64,
    /// Most elements in a message.
    most: usize,
    /// Most bytes in a message, for lists of packed numbers.
    most_bytes: usize,
    within: &'static [Field],
}

const fn list(number: u64, most: usize, within: &'static [Field]) -> Field {
    Field {
        number,
        most,
        most_bytes: usize::MAX,
        within,
    }
}

const fn numbers(number: u64, most: usize) -> Field {
    Field {
        number,
        most,
        most_bytes: most * MAX_VARINT_BYTES,
        within: &[],
    }
}

/// One message, looked into.
const fn one(number: u64, within: &'static [Field]) -> Field {
    // Given a few times it is merged; each costs at least two bytes and no memory.
    list(number, 64, within)
}

/// A message of the protocol, with the lists that it can have.
pub trait Bounded: Message + Default {
    /// All lists, at any depth.
    const FIELDS: &'static [Field];
}

macro_rules! bounded {
    ($($message:ident: $fields:expr;)*) => {$(
        impl Bounded for pb::$message {
            const FIELDS: &'static [Field] = $fields;
        }
    )*};
}

const CHANGES: &[Field] = &[numbers(2, MAX_CHANGED_PAGES)];
const GRANT: &[Field] = &[one(3, CHANGES)];
/// The tags of a version.
const ENTRY: &[Field] = &[list(4, MAX_TAGS, &[])];
/// Versions are numbers of 64 bits: two of the bound for each.
const PINS: &[Field] = &[numbers(3, 2 * LENIENT * MAX_PINS)];

bounded! {
    SessionRequest: &[
        one(1, &[list(6, MAX_CAPABILITIES, &[])]),
        one(2, &[list(2, LENIENT * MAX_OPEN_DATABASES, PINS)]),
        one(5, &[numbers(3, LENIENT * MAX_HOT_PAGES)]),
    ];
    SessionResponse: &[
        one(1, &[list(6, MAX_OPEN_DATABASES, &[])]),
        one(3, &[one(2, GRANT)]),
        one(7, &[one(4, CHANGES)]),
        one(9, &[one(4, CHANGES)]),
    ];
    OpenDatabaseRequest: &[];
    OpenDatabaseResponse: &[one(3, GRANT), list(4, MAX_MESSAGE_PAGES, &[]), one(5, ENTRY)];
    BeginSnapshotRequest: &[];
    BeginSnapshotResponse: &[one(2, CHANGES)];
    ReadPagesRequest: &[numbers(4, LENIENT * MAX_READ_PAGES)];
    ReadPagesResponse: &[list(1, MAX_READ_PAGES, &[])];
    AcquireLeaseRequest: &[];
    AcquireLeaseResponse: &[one(1, GRANT)];
    StagePagesRequest: &[list(2, MAX_MESSAGE_PAGES, &[])];
    StagePagesResponse: &[];
    CommitRequest: &[
        one(1, &[list(3, LENIENT * MAX_COMMIT_DATABASES, &[list(6, LENIENT * MAX_COMMIT_DATABASES * MAX_STAGINGS, &[])])]),
        list(2, MAX_MESSAGE_PAGES, &[list(2, MAX_MESSAGE_PAGES, &[])]),
    ];
    CommitResponse: &[one(1, &[numbers(1, 2 * MAX_COMMIT_DATABASES)])];
    ResolveCommitRequest: &[list(3, LENIENT * MAX_COMMIT_DATABASES, &[])];
    ResolveCommitResponse: &[one(1, &[numbers(1, 2 * MAX_COMMIT_DATABASES)]), one(2, &[numbers(1, 2 * MAX_COMMIT_DATABASES)])];
    FindVersionRequest: &[];
    FindVersionResponse: &[one(1, ENTRY)];
    ListVersionsRequest: &[];
    ListVersionsResponse: &[list(1, MAX_LIST_VERSIONS, ENTRY)];
    DiffVersionsRequest: &[];
    DiffVersionsResponse: &[numbers(1, MAX_DIFF_PAGES)];
    SetTagRequest: &[];
    SetTagResponse: &[one(1, ENTRY)];
    DeleteTagRequest: &[];
    DeleteTagResponse: &[];
    CreateBranchRequest: &[];
    CreateBranchResponse: &[one(2, ENTRY)];
    DescribeDatabaseRequest: &[];
    DescribeDatabaseResponse: &[];
    CollectGarbageRequest: &[];
    CollectGarbageResponse: &[];
    ListDatabasesRequest: &[];
    ListDatabasesResponse: &[list(1, MAX_LIST, &[])];
    DeleteDatabaseRequest: &[];
    DeleteDatabaseResponse: &[];
}

/// See the file's header.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Bounded + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ExactEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ExactEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(PhantomData)
    }
}

/// Encodes into a buffer that never has to grow: half a megabyte of pages would be moved from one to the next, and the last be twice as large.
#[derive(Debug)]
pub struct ExactEncoder<T>(PhantomData<T>);

impl<T: Message> Encoder for ExactEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, message: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.encoded_len());
        let failed = |error| Status::internal(format!("the message can't be encoded: {error}"));
        message.encode(buffer).map_err(failed)
    }
}

/// Decodes messages whose lists are within their bounds.
#[derive(Debug)]
pub struct BoundedDecoder<U>(PhantomData<U>);

impl<U: Bounded> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if !U::FIELDS.is_empty() {
            check::<U>(source)?;
        }
        let length = source.remaining();
        let failed = |error| Status::internal(format!("the message can't be decoded: {error}"));
        let message = U::decode(source).map_err(failed)?;
        if length <= SURPLUS_BYTES || length - SURPLUS_BYTES <= message.encoded_len() {
            return Ok(Some(message));
        }
        let together = Bytes::from(message.encode_to_vec());
        U::decode(together).map(Some).map_err(failed)
    }
}

fn check<U: Bounded>(source: &DecodeBuf<'_>) -> Result<(), Status> {
    let bytes = source.chunk();
    if bytes.len() != source.remaining() {
        return Err(Status::internal("a message came in pieces"));
    }
    within_bounds(bytes, U::FIELDS).map_err(|field| {
        Status::resource_exhausted(format!(
            "field {field} of the message has more elements than are allowed"
        ))
    })
}

/// Whether all lists of a message are within their bounds; else the number of the field. Bytes that are no message are left to
/// the decoder.
pub fn within_bounds(bytes: &[u8], fields: &'static [Field]) -> Result<(), u64> {
    let mut counts = Counts::default();
    counts.add(bytes, fields)
}

/// Elements and bytes of each list so far, by the address of its description.
#[derive(Default)]
struct Counts(Vec<(*const Field, usize, usize)>);

impl Counts {
    fn add(&mut self, mut bytes: &[u8], fields: &'static [Field]) -> Result<(), u64> {
        while let Some(tag) = varint(&mut bytes) {
            let (number, wire) = (tag >> 3, tag & 7);
            let length = match wire {
                0 => match varint(&mut bytes) {
                    Some(_) => 0,
                    None => return Ok(()),
                },
                1 => 8,
                2 => match varint(&mut bytes).and_then(|length| usize::try_from(length).ok()) {
                    Some(length) => length,
                    None => return Ok(()),
                },
                5 => 4,
                // Groups: prost skips them without keeping anything, but what lies inside is not looked into here.
                3 | 4 => 0,
                _ => return Ok(()),
            };
            let Some((content, rest)) = bytes.split_at_checked(length) else {
                return Ok(());
            };
            bytes = rest;
            let Some(field) = fields.iter().find(|field| field.number == number) else {
                continue;
            };
            self.count(field, length)?;
            if wire == 2 && !field.within.is_empty() {
                self.add(content, field.within)?;
            }
        }
        Ok(())
    }

    fn count(&mut self, field: &'static Field, length: usize) -> Result<(), u64> {
        let key = std::ptr::from_ref(field);
        let place = match self.0.iter().position(|(known, _, _)| *known == key) {
            Some(place) => place,
            None => {
                self.0.push((key, 0, 0));
                self.0.len() - 1
            }
        };
        let (_, elements, bytes) = &mut self.0[place];
        *elements += 1;
        *bytes = bytes.saturating_add(length);
        if *elements > field.most || *bytes > field.most_bytes {
            Err(field.number)
        } else {
            Ok(())
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(7 * shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_message<M: Bounded>(message: &M) -> Result<(), u64> {
        within_bounds(&message.encode_to_vec(), M::FIELDS)
    }

    #[test]
    fn empty_elements_by_the_million_are_refused_before_they_are_decoded() {
        // CommitRequest.header.databases: field 1, then field 3 without content, again and again.
        let elements = [0x1a, 0x00].repeat(1_000_000);
        let mut message = vec![0x0a];
        prost::encoding::encode_varint(elements.len() as u64, &mut message);
        message.extend(elements);
        assert_eq!(within_bounds(&message, pb::CommitRequest::FIELDS), Err(3));
        let floors = [0x12, 0x00].repeat(LENIENT * MAX_OPEN_DATABASES + 1);
        let mut message = vec![0x12];
        prost::encoding::encode_varint(floors.len() as u64, &mut message);
        message.extend(floors);
        assert_eq!(within_bounds(&message, pb::SessionRequest::FIELDS), Err(2));
    }

    #[test]
    fn a_field_that_is_given_twice_is_counted_as_one() {
        let header = |count| pb::CommitRequest {
            header: Some(pb::CommitHeader {
                databases: vec![pb::CommitDatabase::default(); count],
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(check_message(&header(MAX_COMMIT_DATABASES)), Ok(()));
        let half = header(LENIENT * MAX_COMMIT_DATABASES / 2 + 1).encode_to_vec();
        assert_eq!(
            within_bounds(&half.repeat(2), pb::CommitRequest::FIELDS),
            Err(3)
        );
    }

    #[test]
    fn the_largest_honest_messages_pass() {
        let page = pb::PageContent {
            encoding: pb::PageEncoding::Raw.into(),
            number: 1,
            content: vec![7; 512].into(),
            crc32: 1,
            version: 1,
        };
        let commit = pb::CommitRequest {
            batches: vec![pb::PageBatch {
                database_index: 0,
                pages: vec![page.clone(); BATCH_BYTES / 512 + 1],
            }],
            ..Default::default()
        };
        assert_eq!(check_message(&commit), Ok(()));
        assert_eq!(
            check_message(&pb::ReadPagesResponse {
                pages: vec![page; MAX_READ_PAGES]
            }),
            Ok(())
        );
        let changes = pb::Changes {
            all: false,
            pages: vec![u32::MAX; MAX_CHANGED_PAGES],
        };
        assert_eq!(
            check_message(&pb::BeginSnapshotResponse {
                head: None,
                changes: Some(changes),
                page_1: None,
            }),
            Ok(())
        );
        assert_eq!(
            check_message(&pb::ReadPagesRequest {
                pages: vec![u32::MAX - 1; MAX_READ_PAGES],
                ..Default::default()
            }),
            Ok(())
        );
    }

    #[test]
    fn bytes_that_are_no_message_do_no_harm() {
        for length in 0..64 {
            for byte in [0x00, 0x0a, 0x12, 0x1a, 0x80, 0xff] {
                let _ = within_bounds(&vec![byte; length], pb::CommitRequest::FIELDS);
            }
        }
    }
}
