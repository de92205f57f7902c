//! What a receiver makes of bytes: any bytes are a value or a refusal, and a value survives being sent. The fuzz targets in
//! `proto/fuzz` look for the same for longer.

use std::fmt::Debug;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::limits::{MAX_NAME_BYTES, MAX_STAGINGS};
use crate::pb;
use crate::status::Reason;

/// Bytes -> message -> value, or an error at either step.
fn received<M: Message + Default, V>(
    bytes: &[u8],
    receive: impl Fn(M) -> Result<V, Invalid>,
) -> Option<V> {
    receive(M::decode(bytes).ok()?).ok()
}

/// A value that was taken from these bytes is taken again, the same, from what is sent for it.
fn survives<M: Message + Default, V: PartialEq + Debug>(
    bytes: &[u8],
    receive: impl Fn(M) -> Result<V, Invalid>,
    send: impl Fn(&V) -> M,
) {
    if let Some(value) = received(bytes, &receive) {
        let sent = send(&value).encode_to_vec();
        assert_eq!(received(&sent, &receive), Some(value));
    }
}

fn every_decoder(bytes: &[u8]) {
    survives::<pb::CommitHeader, _>(bytes, CommitHeader::try_from, |header| header.into());
    survives::<pb::ResolveCommitRequest, _>(bytes, ResolveCommit::try_from, |resolve| {
        resolve.into()
    });
    survives::<pb::LeaseGrant, _>(bytes, LeaseGrant::try_from, |grant| grant.clone().into());
    survives::<pb::Snapshot, _>(bytes, Snapshot::try_from, |snapshot| (*snapshot).into());
    survives(
        bytes,
        |wire: pb::Changes| Changes::try_from(Some(wire)),
        |changes| changes.clone().into(),
    );
    for size in page_sizes() {
        survives::<pb::PageContent, _>(bytes, |wire| Page::from_wire(wire, size), Page::to_wire);
        survives::<pb::PageContent, _>(
            bytes,
            |wire| Page::from_answer(wire, size),
            Page::to_compressed_wire,
        );
    }
    every_encoding(bytes);
    survives::<pb::VersionEntry, _>(bytes, VersionEntry::try_from, |entry| entry.clone().into());
    survives::<pb::Moment, _>(bytes, Moment::try_from, |moment| moment.clone().into());
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(tag) = TagName::try_from(text)
    {
        // A tag that was set can be asked for.
        assert_eq!(text.parse(), Ok(Moment::Tag(tag)));
    }
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Ok(valid) = DatabaseName::try_from(name)
    {
        assert_eq!(valid.as_str(), name);
    }
    if let Ok(id) = SessionId::try_from(bytes) {
        assert_eq!(id.to_wire(), bytes);
    }
}

/// As content of a page in every encoding: a page with the checksum that was sent, or a refusal; and what is sent for it is it again.
fn every_encoding(bytes: &[u8]) {
    let base: Vec<u8> = bytes.iter().copied().cycle().take(65_536).collect();
    for (size, encoding) in page_sizes()
        .flatten()
        .flat_map(|size| [(size, 1), (size, 2)])
    {
        let wire = pb::PageContent {
            number: 1,
            content: Bytes::copy_from_slice(bytes),
            encoding,
            ..pb::PageContent::default()
        };
        let Ok(encoded) = EncodedPage::try_from(wire.clone()) else {
            continue;
        };
        let base = base.get(..size.bytes()).unwrap_or_default();
        // The checksum is that of nothing, so no page fits.
        assert!(encoded.expand(size, Some(base)).is_err());
        let content = match encoding {
            1 => lz4_flex::block::decompress(bytes, size.bytes()),
            _ => {
                let dictionary = &base[..base.len().min(65_535)];
                lz4_flex::block::decompress_with_dict(bytes, size.bytes(), dictionary)
            }
        };
        let Some(content) = content.ok().filter(|content| content.len() == size.bytes()) else {
            continue;
        };
        let crc32 = crc32fast::hash(&content);
        let right = EncodedPage::try_from(pb::PageContent { crc32, ..wire }).unwrap();
        let page = right.expand(size, Some(base)).unwrap();
        assert_eq!(page.content, content);
        for again in [page.to_compressed_wire(), page.to_delta_wire(base)] {
            let taken = match again.encoding() {
                pb::PageEncoding::Raw => Page::from_wire(again, Some(size)).unwrap(),
                _ => EncodedPage::try_from(again)
                    .unwrap()
                    .expand(size, Some(base))
                    .unwrap(),
            };
            assert_eq!(taken, page);
        }
    }
}

/// Every page size, and none.
fn page_sizes() -> impl Iterator<Item = Option<PageSize>> {
    let sizes = (9..=16).map(|power| PageSize::try_from(1u32 << power).unwrap());
    sizes.map(Some).chain([None])
}

prop_compose! {
    fn snapshot()(version: u64, power in 9u32..=16, count in 0..=PageNumber::MAX) -> Snapshot {
        Snapshot {
            version: Version::new(version),
            page_size: (count > 0).then(|| PageSize::try_from(1 << power).unwrap()),
            page_count: PageCount::try_from(count).unwrap(),
        }
    }
}

fn changes() -> impl Strategy<Value = Changes> {
    let pages = vec(1..=PageNumber::MAX, 0..50);
    let pages = pages.prop_map(|pages| {
        let numbers = pages.into_iter().map(|page| page.try_into().unwrap());
        Changes::Pages(numbers.collect())
    });
    prop_oneof![Just(Changes::All), pages]
}

prop_compose! {
    fn commit_database()(
        id: [u8; 16],
        base: u64,
        epoch: u64,
        power in 9u32..=16,
        count in 1..=PageNumber::MAX,
        stagings in vec(any::<[u8; 16]>(), 0..=MAX_STAGINGS),
        restore in proptest::option::of(1..=u64::MAX),
    ) -> CommitDatabase {
        CommitDatabase {
            database: DatabaseId::from_bytes(id),
            base: Version::new(base),
            epoch: Epoch::new(epoch),
            page_size: PageSize::try_from(1 << power).unwrap(),
            page_count: PageCount::try_from(count).unwrap(),
            stagings: match restore {
                Some(_) => Vec::new(),
                None => stagings.into_iter().map(StagingId::from_bytes).collect(),
            },
            restore: restore.map(Version::new),
        }
    }
}

prop_compose! {
    fn commit_header()(
        session: [u8; 16],
        id: [u8; 16],
        mut databases in vec(commit_database(), 1..8),
    ) -> CommitHeader {
        databases.sort_by_key(|database| database.database);
        databases.dedup_by_key(|database| database.database);
        CommitHeader {
            session: SessionId::from_bytes(session),
            id: CommitId::from_bytes(id),
            databases,
        }
    }
}

proptest! {
    /// Edits of all kinds: the delta is the page again, and the damaged delta is another error than a panic, or the page.
    #[test]
    fn a_delta_is_its_page_again_and_a_damaged_one_is_refused(
        power in 9u32..=16,
        words in vec(any::<[u8; 8]>(), 1..200),
        edits in vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..300, any::<u8>()), 0..12),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let size = PageSize::try_from(1 << power).unwrap();
        let base: Vec<u8> = words.concat().into_iter().cycle().take(size.bytes()).collect();
        let mut content = base.clone();
        for (from, to, length, byte) in edits {
            // Moves a range, as SQLite does with its cells, and overwrites another.
            let (from, to) = (from.index(size.bytes()), to.index(size.bytes()));
            let length = length.min(size.bytes() - from.max(to));
            content.copy_within(from..from + length, to);
            content[from] = byte;
        }
        let page = Page { number: PageNumber::FIRST, content: content.into(), version: Version::ZERO };
        let wire = page.to_delta_wire(&base);
        if wire.encoding() == pb::PageEncoding::Delta {
            let encoded = EncodedPage::try_from(wire.clone()).unwrap();
            prop_assert_eq!(encoded.expand(size, Some(&base)), Ok(page.clone()));
            let mut block = wire.content.to_vec();
            for (at, byte) in damage {
                let at = at.index(block.len());
                block[at] = byte;
            }
            let damaged = EncodedPage::try_from(pb::PageContent { content: block.into(), ..wire }).unwrap();
            if let Ok(taken) = damaged.expand(size, Some(&base)) {
                prop_assert_eq!(taken, page);
            }
        } else {
            prop_assert_eq!(wire, page.to_wire());
        }
    }

    #[test]
    fn any_bytes_are_a_value_or_a_refusal(bytes in vec(any::<u8>(), 0..2000)) {
        every_decoder(&bytes);
    }

    #[test]
    fn damaged_messages_are_a_value_or_a_refusal(
        header in commit_header(),
        grant in (1u64.., snapshot(), changes()),
        cut: prop::sample::Index,
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let (epoch, head, changes) = grant;
        let grant = LeaseGrant { epoch: Epoch::new(epoch), head, changes };
        for mut bytes in [
            pb::CommitHeader::from(&header).encode_to_vec(),
            pb::LeaseGrant::from(grant).encode_to_vec(),
        ] {
            for (place, byte) in &flips {
                let place = place.index(bytes.len());
                bytes[place] ^= byte;
            }
            every_decoder(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            every_decoder(&bytes);
        }
    }

    #[test]
    fn a_valid_commit_survives_the_wire(header in commit_header()) {
        let sent = pb::CommitHeader::from(&header).encode_to_vec();
        prop_assert_eq!(received::<pb::CommitHeader, _>(&sent, CommitHeader::try_from), Some(header.clone()));
        let participants = header.databases.iter().map(|database| CommitParticipant {
            database: database.database,
            base: database.base,
            epoch: database.epoch,
        });
        let resolve = ResolveCommit {
            session: header.session,
            id: header.id,
            participants: participants.collect(),
        };
        let sent = pb::ResolveCommitRequest::from(&resolve).encode_to_vec();
        prop_assert_eq!(received::<pb::ResolveCommitRequest, _>(&sent, ResolveCommit::try_from), Some(resolve));
    }

    #[test]
    fn a_commit_that_names_a_database_twice_is_refused(header in commit_header()) {
        let mut wire = pb::CommitHeader::from(&header);
        wire.databases.push(wire.databases[0].clone());
        prop_assert_eq!(CommitHeader::try_from(wire).unwrap_err().field, "database_id");
    }

    #[test]
    fn a_valid_lease_grant_survives_the_wire(epoch in 1u64.., head in snapshot(), changes in changes()) {
        let grant = LeaseGrant { epoch: Epoch::new(epoch), head, changes };
        let sent = pb::LeaseGrant::from(grant.clone()).encode_to_vec();
        prop_assert_eq!(received::<pb::LeaseGrant, _>(&sent, LeaseGrant::try_from), Some(grant));
    }

    #[test]
    fn a_page_survives_the_wire_and_one_changed_byte_is_noticed(
        number in 1..=PageNumber::MAX,
        version: u64,
        power in 9u32..=16,
        fill: u8,
        place: prop::sample::Index,
        flip in 1u8..,
    ) {
        let size = PageSize::try_from(1 << power).unwrap();
        let mut content = vec![fill; size.bytes()];
        let page = Page {
            number: number.try_into().unwrap(),
            content: content.clone().into(),
            version: Version::new(version),
        };
        let sent = page.to_wire();
        for other in page_sizes() {
            let taken = Page::from_wire(sent.clone(), other);
            prop_assert_eq!(taken.is_ok(), other == Some(size));
        }
        content[place.index(size.bytes())] ^= flip;
        let damaged = pb::PageContent { content: Bytes::from(content), ..sent.clone() };
        prop_assert_eq!(Page::from_wire(damaged, Some(size)).unwrap_err().field, "crc32");
        prop_assert_eq!(Page::from_wire(sent, Some(size)), Ok(page));
    }

    #[test]
    fn a_compressed_page_survives_and_a_changed_one_is_noticed_and_takes_no_more_than_a_page(
        power in 9u32..=16,
        pattern in prop::collection::vec(any::<u8>(), 1..600),
        place: prop::sample::Index,
        flip in 1u8..,
    ) {
        let size = PageSize::try_from(1 << power).unwrap();
        let content: Vec<u8> = pattern.iter().copied().cycle().take(size.bytes()).collect();
        let page = Page {
            number: 7.try_into().unwrap(),
            content: content.into(),
            version: Version::new(3),
        };
        let sent = page.to_compressed_wire();
        let is_compressed = sent.encoding == pb::PageEncoding::Lz4 as i32;
        prop_assert_eq!(is_compressed, sent.content.len() < size.bytes());
        prop_assert_eq!(Page::from_answer(sent.clone(), Some(size)), Ok(page.clone()));
        for other in page_sizes() {
            prop_assert_eq!(Page::from_answer(sent.clone(), other).is_ok(), other == Some(size));
        }
        if is_compressed {
            let refused = Page::from_wire(sent.clone(), Some(size)).unwrap_err();
            prop_assert_eq!(refused.field, "encoding");
        }
        let mut content = sent.content.to_vec();
        let place = place.index(content.len());
        content[place] ^= flip;
        let damaged = pb::PageContent { content: content.into(), ..sent };
        // LZ4 has several forms of one page, and what comes out is all that counts.
        if let Ok(taken) = Page::from_answer(damaged, Some(size)) {
            prop_assert_eq!(taken, page);
        }
    }

    #[test]
    fn a_name_is_taken_if_and_only_if_it_is_no_path(name in "[a.\u{e4} /\n]{0,12}|[a-z/]{390,410}") {
        let right = (1..=MAX_NAME_BYTES).contains(&name.len())
            && !name.contains('\n')
            && name.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
        prop_assert_eq!(DatabaseName::try_from(&name[..]).is_ok(), right);
    }

    #[test]
    fn what_a_user_writes_is_a_moment_or_a_refusal_and_every_tag_is_reached(
        text in "[0-9]{1,22}|[-0-9:TZ+. ]{1,30}|-?[0-9]{1,12} ?[a-zA-Z]{1,8} ago|[a-z0-9: ]{0,12}|\\PC{0,20}",
    ) {
        let read = text.parse::<Moment>();
        if let Ok(tag) = TagName::try_from(&text[..]) {
            let _ = tag.meant();
            prop_assert_eq!(read, Ok(Moment::Tag(tag)));
        } else {
            prop_assert!(!matches!(read, Ok(Moment::Tag(_))));
        }
    }

    #[test]
    fn every_time_can_be_shown(time: i64) {
        prop_assert!(!UnixMillis(time).to_string().is_empty());
    }

    #[test]
    fn a_status_of_any_text_has_a_reason(text in vec(any::<u8>(), 0..40)) {
        if let Ok(value) = tonic::metadata::MetadataValue::try_from(&text[..]) {
            let mut status = tonic::Status::unknown("");
            status.metadata_mut().insert(crate::status::REASON_KEY, value);
            let reason = Reason::of(&status);
            prop_assert!(reason == Reason::Unavailable || reason.as_str().as_bytes() == text);
        }
    }
}
