//! Every row comes back from its bytes, and other bytes do no harm.

use proptest::prelude::*;

use pagewire_proto::{CommitId, PageNumber};

use super::*;

fn head() -> impl Strategy<Value = Head> {
    (
        any::<u64>(),
        0..9_u32,
        0..u32::MAX,
        any::<u64>(),
        0..u32::MAX,
    )
        .prop_map(|(version, size, count, since, lasting)| Head {
            snapshot: Snapshot {
                version: Version::new(version),
                page_size: PageSize::try_from(256 << size).ok(),
                page_count: PageCount::try_from(count).unwrap(),
            },
            since: Version::new(since),
            lasting: PageCount::try_from(lasting).unwrap(),
        })
}

fn pages() -> impl Strategy<Value = Vec<PageNumber>> {
    let page = (1..=PageNumber::MAX).prop_map(|n| PageNumber::try_from(n).unwrap());
    proptest::collection::vec(page, 0..20)
}

fn changed() -> impl Strategy<Value = Changed> {
    prop_oneof![
        Just(Changed::All),
        pages().prop_map(Changed::Inline),
        any::<u32>().prop_map(Changed::Chunks),
    ]
}

proptest! {
    #[test]
    fn databases_come_back(head in head(), numbers in any::<[u64; 3]>()) {
        let [time_ms, created_ms, versions] = numbers;
        let name = DatabaseName::try_from("a/é.db").unwrap();
        let database = Database { head, time_ms, created_ms, versions, name };
        prop_assert_eq!(Database::decode(&database.encode()), Some(database));
    }

    #[test]
    fn what_versions_stand_on_comes_back(
        id in any::<[u8; 16]>(), head in head(), reach in 0..u32::MAX, numbers in any::<[u64; 3]>()
    ) {
        let (database, reach) = (DatabaseId::from_bytes(id), PageCount::try_from(reach).unwrap());
        for base in [None, Some(Base { database, head, reach })] {
            let segment = Segment { base };
            prop_assert_eq!(Segment::decode(&segment.encode()), Some(segment));
        }
        let [time_ms, pages_changed, from] = numbers;
        let (snapshot, restored_from) = (head.snapshot, Version::new(from));
        let origin = Origin { database, snapshot, time_ms, pages_changed, restored_from };
        prop_assert_eq!(Origin::decode(&origin.encode()), Some(origin));
        let usage = Usage { pages: time_ms, bytes: from };
        prop_assert_eq!(Usage::decode(&usage.encode()), Some(usage));
    }

    #[test]
    fn records_come_back(
        id in any::<[u8; 16]>(), numbers in any::<[u64; 4]>(), head in head(), changed in changed()
    ) {
        let commit = CommitId::from_bytes(id);
        let [time_ms, ended_ms, from, pages_changed] = numbers;
        let restored_from = Version::new(from);
        let record = Record {
            commit, time_ms, ended_ms, restored_from, pages_changed, head, changed,
        };
        prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        let past = Past { commit, time_ms };
        prop_assert_eq!(Past::decode(&past.encode()), Some(past));
        let due = Due { dropped: restored_from };
        prop_assert_eq!(Due::decode(&due.encode()), Some(due));
    }

    #[test]
    fn lists_of_pages_come_back(pages in pages()) {
        prop_assert_eq!(decode_pages(&encode_pages(&pages)), Some(pages));
    }

    #[test]
    fn pages_come_back_shorter_where_they_can_and_never_much_longer(
        size in 0..8_u32, seed in any::<u8>(), noise in any::<[u8; 512]>(), kind in 0..3_u8
    ) {
        let size = PageSize::try_from(512 << size).unwrap();
        let content = match kind {
            0 => vec![0; size.bytes()],
            1 => vec![seed; size.bytes()],
            _ => noise.repeat(size.bytes() / 512),
        };
        let body = encode_page(&content, size);
        prop_assert!(body.len() <= content.len() + 1);
        // LZ4 makes 40 bytes of 512, and 1/250 of large ones.
        prop_assert!(kind == 2 || body.len() < content.len() / 8);
        let decoded = PageBody::decode(&body).unwrap().content().unwrap();
        prop_assert_eq!(decoded, content);
    }

    #[test]
    fn other_bytes_are_refused_or_decoded_without_harm(body in any::<Vec<u8>>()) {
        let _ = Database::decode(&body);
        let _ = Segment::decode(&body);
        let _ = Origin::decode(&body);
        let _ = (Usage::decode(&body), Past::decode(&body), Due::decode(&body));
        let _ = Record::decode(&body);
        if let Some(page) = PageBody::decode(&body) {
            let _ = page.content();
        }
    }
}
