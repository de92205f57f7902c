//! What a receiver makes of the bytes of a message.

use std::fmt::Debug;

use pagewire_proto::codec::{Bounded, within_bounds};
use pagewire_proto::status::{REASON_KEY, Reason};
use pagewire_proto::{
    Changes, CommitChecksum, CommitHeader, DatabaseId, DatabaseName, EncodedPage, Invalid,
    LeaseGrant, Moment, Page, PageSize, ResolveCommit, SessionId, Snapshot, TagName, VersionEntry,
    limits, pb, version,
};
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataValue;

/// CommitRequest: the header and what its pages are checked against.
pub fn commit(bytes: &[u8]) {
    survives::<pb::CommitHeader, _>(bytes, CommitHeader::try_from, |header| header.into());
    let Ok(request) = pb::CommitRequest::decode(bytes) else {
        return;
    };
    let Some(Ok(header)) = request.header.map(CommitHeader::try_from) else {
        return;
    };
    assert!((1..=limits::MAX_COMMIT_DATABASES).contains(&header.databases.len()));
    let wire = pb::CommitHeader::from(&header).encode_to_vec();
    assert_eq!(
        survives::<pb::CommitHeader, _>(&wire, CommitHeader::try_from, |header| header.into()),
        Some(header.clone())
    );
    let mut checksum = CommitChecksum::default();
    for batch in request.batches {
        let Some(database) = header.databases.get(batch.database_index as usize) else {
            return;
        };
        for page in batch.pages {
            checksum.add(page.crc32);
            let page = Page::from_wire(page, Some(database.page_size));
            assert!(page.is_err() || page.is_ok_and(|page| page.number.get() > 0));
        }
    }
    let counted = checksum.clone().finish();
    assert_eq!(checksum.clone().check(&counted), Ok(()));
    if let Some(sent) = request.finish {
        assert_eq!(checksum.check(&sent).is_ok(), sent == counted);
    }
}

/// The look at the raw bytes that bounds lists before they are decoded. What it lets pass is the same message after another round; and no
/// message hides from it that more elements follow than are allowed.
pub fn codec(bytes: &[u8]) {
    passes::<pb::SessionRequest>(bytes);
    passes::<pb::SessionResponse>(bytes);
    passes::<pb::OpenDatabaseRequest>(bytes);
    passes::<pb::OpenDatabaseResponse>(bytes);
    passes::<pb::ReadPagesRequest>(bytes);
    passes::<pb::ReadPagesResponse>(bytes);
    passes::<pb::StagePagesRequest>(bytes);
    passes::<pb::CommitRequest>(bytes);
    passes::<pb::ListVersionsResponse>(bytes);
    passes::<pb::CreateBranchRequest>(bytes);
    // Empty elements of ResolveCommitRequest.participants, and of CommitRequest.header.databases: field 3 of either.
    let flood = [0x1a, 0x00].repeat(4 * limits::MAX_COMMIT_DATABASES + 1);
    let flooded = [bytes, &flood].concat();
    if pb::ResolveCommitRequest::decode(bytes).is_ok() {
        let seen = within_bounds(&flooded, pb::ResolveCommitRequest::FIELDS);
        assert!(seen.is_err());
    }
    if pb::CommitHeader::decode(bytes).is_ok() {
        let mut header = vec![0x0a];
        prost::encoding::encode_varint(flooded.len() as u64, &mut header);
        header.extend(flooded);
        assert!(within_bounds(&header, pb::CommitRequest::FIELDS).is_err());
    }
}

fn passes<M: Bounded + PartialEq>(bytes: &[u8]) {
    if within_bounds(bytes, M::FIELDS).is_err() {
        return;
    }
    if let Ok(message) = M::decode(bytes) {
        let sent = message.encode_to_vec();
        assert_eq!(within_bounds(&sent, M::FIELDS), Ok(()));
        assert!(M::decode(&sent[..]).is_ok_and(|again| again == message));
    }
}

/// Moments, tags and entries of versions, as messages and as people write them.
pub fn history(bytes: &[u8]) {
    survives::<pb::Moment, _>(bytes, Moment::try_from, |moment| moment.clone().into());
    survives::<pb::VersionEntry, _>(bytes, VersionEntry::try_from, |entry| entry.clone().into());
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let moment = text.parse::<Moment>();
    if let Ok(moment) = &moment {
        // What is shown is read as the same moment.
        assert_eq!(moment.as_written().parse().as_ref(), Ok(moment));
    }
    if let Ok(tag) = TagName::try_from(text) {
        assert_eq!(moment, Ok(Moment::Tag(tag)));
    }
}

/// LeaseGrant, and what it is made of: Snapshot and Changes.
pub fn lease_grant(bytes: &[u8]) {
    let grant =
        survives::<pb::LeaseGrant, _>(bytes, LeaseGrant::try_from, |grant| grant.clone().into());
    assert!(grant.is_none_or(|grant| grant.epoch.get() > 0));
    if let Some(snapshot) =
        survives::<pb::Snapshot, _>(bytes, Snapshot::try_from, |snapshot| (*snapshot).into())
    {
        assert_eq!(snapshot.page_size.is_none(), snapshot.page_count.get() == 0);
        assert!(snapshot.byte_size() <= 65_536 * u64::from(u32::MAX));
    }
    let changes = survives(
        bytes,
        |wire: pb::Changes| Changes::try_from(Some(wire)),
        |changes| changes.clone().into(),
    );
    if let Some(Changes::Pages(pages)) = changes {
        assert!(pages.len() <= limits::MAX_CHANGED_PAGES);
    }
}

/// Database names, as the protocol and the VFS take them.
pub fn name(bytes: &[u8]) {
    let Ok(name) = std::str::from_utf8(bytes) else {
        return;
    };
    let taken = DatabaseName::try_from(name);
    if let Ok(valid) = &taken {
        assert_eq!(valid.as_str(), name);
        assert!((1..=limits::MAX_NAME_BYTES).contains(&name.len()) && !name.contains('\0'));
        assert!(
            name.split('/')
                .all(|segment| !matches!(segment, "" | "." | ".."))
        );
    }
    // No name is a path to one side and a database to the other.
    assert_eq!(pagewire::fuzzing::check_name(name).is_ok(), taken.is_ok());
}

/// PageContent, against every page size and none; as it comes, and with a checksum that fits. In every encoding, with a base that the bytes
/// make: a page with the checksum that was sent, of a page size, or a refusal.
pub fn page(bytes: &[u8]) {
    let Ok(wire) = pb::PageContent::decode(bytes) else {
        return;
    };
    let fitting = pb::PageContent {
        crc32: crc32fast::hash(&wire.content),
        ..wire.clone()
    };
    let expected = page_sizes().into_iter().map(Some).chain([None]);
    for size in expected {
        let receive = |wire| Page::from_wire(wire, size);
        if let Some(page) = survives::<pb::PageContent, _>(bytes, receive, Page::to_wire) {
            assert!(
                page.content.is_empty()
                    || size.is_some_and(|size| size.bytes() == page.content.len())
            );
            assert_eq!(
                wire.crc32, fitting.crc32,
                "a page with a wrong checksum was taken"
            );
        }
        let length_fits =
            wire.content.is_empty() || size.is_some_and(|size| size.bytes() == wire.content.len());
        let number_fits = (1..u32::MAX).contains(&wire.number);
        assert_eq!(
            survives(&fitting.encode_to_vec(), receive, Page::to_wire).is_some(),
            length_fits && number_fits && wire.encoding == pb::PageEncoding::Raw as i32
        );
    }
    let base: Vec<u8> = bytes.iter().copied().cycle().take(65_536).collect();
    for size in page_sizes() {
        let Ok(encoded) = EncodedPage::try_from(wire.clone()) else {
            return;
        };
        for base in [None, base.get(..size.bytes()), base.get(1..size.bytes())] {
            if let Ok(page) = encoded.expand(size, base) {
                assert_eq!(page.content.len(), size.bytes());
                assert_eq!(crc32fast::hash(&page.content), wire.crc32);
                if let Some(base) = base {
                    let again = page.to_delta_wire(base);
                    let again =
                        EncodedPage::try_from(again).map(|page| page.expand(size, Some(base)));
                    assert!(again.is_err() || again == Ok(Ok(page)));
                }
            }
        }
    }
}

/// ResolveCommitRequest.
pub fn resolve_commit(bytes: &[u8]) {
    if let Some(resolve) =
        survives::<pb::ResolveCommitRequest, _>(bytes, ResolveCommit::try_from, |resolve| {
            resolve.into()
        })
    {
        assert!((1..=limits::MAX_COMMIT_DATABASES).contains(&resolve.participants.len()));
    }
}

/// The messages of the session stream, and the reason of a status.
pub fn session(bytes: &[u8]) {
    use pb::session_request::Message as Request;
    if let Ok(pb::SessionRequest {
        message: Some(Request::Hello(hello)),
    }) = pb::SessionRequest::decode(bytes)
    {
        let greeted = version::check("client", hello.protocol_major, hello.protocol_minor);
        assert_eq!(greeted.is_ok(), hello.protocol_major == version::MAJOR);
        let id = SessionId::try_from(&hello.session_id[..]);
        assert_eq!(id.is_ok(), hello.session_id.len() == 16);
        for refused in greeted.err().into_iter().chain(id.err()) {
            let status = Status::from(refused);
            assert!(Reason::is_explicit(&status) && Reason::of(&status).code() == status.code());
        }
    }
    use pb::session_response::Message as Response;
    if let Ok(pb::SessionResponse {
        message: Some(Response::LeaseGranted(granted)),
    }) = pb::SessionResponse::decode(bytes)
    {
        let _ = DatabaseId::try_from(&granted.database_id[..]);
        let _ = granted.grant.map(LeaseGrant::try_from);
    }
    if let Ok(value) = MetadataValue::try_from(bytes) {
        let mut status = Status::unknown("");
        status.metadata_mut().insert(REASON_KEY, value);
        let reason = Reason::of(&status);
        assert!(reason == Reason::Unavailable || reason.as_str().as_bytes() == bytes);
    }
}

/// All page sizes, smallest first.
fn page_sizes() -> Vec<PageSize> {
    (9..=16)
        .filter_map(|power| PageSize::try_from(1u32 << power).ok())
        .collect()
}

/// Bytes -> message -> value; a value that is valid gives the same value when it is sent, and a refusal says why.
fn survives<M, V>(
    bytes: &[u8],
    receive: impl Fn(M) -> Result<V, Invalid>,
    send: impl Fn(&V) -> M,
) -> Option<V>
where
    M: Message + Default,
    V: PartialEq + Debug,
{
    let value = match receive(M::decode(bytes).ok()?) {
        Ok(value) => value,
        Err(invalid) => {
            assert!(!invalid.field.is_empty() && !invalid.problem.is_empty());
            return None;
        }
    };
    let sent = send(&value).encode_to_vec();
    let again = M::decode(&sent[..]).expect("what was encoded decodes");
    assert_eq!(receive(again).as_ref(), Ok(&value));
    Some(value)
}
