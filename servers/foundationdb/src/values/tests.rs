//! Every value comes back, and other bytes do no harm.

use proptest::prelude::*;

use super::*;
use crate::keys::layer_of;

fn count() -> impl Strategy<Value = PageCount> {
    (0..u32::MAX).prop_map(|count| PageCount::try_from(count).unwrap())
}

fn version() -> impl Strategy<Value = Version> {
    any::<u64>().prop_map(Version::new)
}

fn head() -> impl Strategy<Value = Head> {
    let cuts = proptest::collection::vec((version(), count()), 0..9);
    (
        version(),
        0..9_u32,
        count(),
        version(),
        any::<[bool; 2]>(),
        cuts,
    )
        .prop_map(
            |(version, size, page_count, since, [based, dense], cuts)| Head {
                snapshot: Snapshot {
                    version,
                    page_size: PageSize::try_from(256 << size).ok(),
                    page_count,
                },
                since,
                based,
                dense,
                cuts,
            },
        )
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
    fn databases_and_what_they_stand_on_come_back(
        head in head(), id in any::<[u8; 16]>(), reach in count(), numbers in any::<[u64; 3]>()
    ) {
        let [time_ms, created_ms, from] = numbers;
        let name = DatabaseName::try_from("a/é.db").unwrap();
        let database = Database { head: head.clone(), time_ms, created_ms, name };
        prop_assert_eq!(Database::decode(&database.encode()), Some(database));
        let database = DatabaseId::from_bytes(id);
        let snapshot = head.snapshot;
        let depth = numbers[0] as u32;
        let segment = Segment { database, head, reach, depth };
        prop_assert_eq!(Segment::decode(&segment.encode()), Some(Some(segment)));
        let (pages_changed, restored_from) = (created_ms, Version::new(from));
        let origin = Origin { database, snapshot, time_ms, pages_changed, restored_from };
        prop_assert_eq!(Origin::decode(&origin.encode()), Some(origin));
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
        let past = Past { commit, time_ms, dropped: ended_ms };
        prop_assert_eq!(Past::decode(&past.encode()), Some(past));
    }

    #[test]
    fn small_rows_come_back(
        id in any::<[u8; 16]>(), one in any::<u64>(), two in any::<u32>(),
        floor in proptest::option::of(version()), pins in proptest::collection::vec(version(), 0..9)
    ) {
        let due = Due { dropped: Version::new(one), after: two };
        prop_assert_eq!(Due::decode(&due.encode()), Some(due));
        for left in [Left::All, Left::Segments(Version::new(one)), Left::Nothing] {
            let removed = Removed { time_ms: one, cluster: !one, left };
            prop_assert_eq!(Removed::decode(&removed.encode()), Some(removed));
        }
        let links: Vec<_> = pins.iter().map(|pin| (DatabaseId::from_bytes(id), *pin)).collect();
        for below in [None, Some((DatabaseId::from_bytes(id), Version::new(one)))] {
            let work = Flattening { links: Vec::clone(&links), below, at: two, after: !two };
            prop_assert_eq!(Flattening::decode(&work.encode()), Some(Some(work)));
        }
        let attempt = Attempt { version: Version::new(one), server: id, number: one, doomed: two % 2 == 0 };
        prop_assert_eq!(Attempt::decode(&attempt.encode()), Some(attempt));
        let grant = Grant {
            server: two.to_be_bytes().repeat(4).try_into().unwrap(),
            session: SessionId::from_bytes([one as u8; 16]),
            hello: !one,
            epoch: Epoch::new(one),
            guard_ms: u64::from(two),
        };
        prop_assert_eq!(Grant::decode(&grant.encode()), Some(grant));
        let server = Server { counter: one, lease_ttl_ms: u64::from(two) };
        prop_assert_eq!(Server::decode(&server.encode()), Some(server));
        let protection = Protection { floor, pins };
        prop_assert_eq!(Protection::decode(&protection.encode()), Some(protection));
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
        let _ = (Database::decode(&body), Segment::decode(&body), Origin::decode(&body));
        let _ = (Past::decode(&body), Grant::decode(&body), Due::decode(&body), Attempt::decode(&body));
        let _ = (Removed::decode(&body), Flattening::decode(&body));
        let _ = (Record::decode(&body), Server::decode(&body), Protection::decode(&body));
        if let Some(page) = PageBody::decode(&body) {
            let _ = page.content();
        }
    }
}

#[test]
fn a_cut_hides_what_was_written_before_it_and_ahead_for_it() {
    let count = |count: u32| PageCount::try_from(count).unwrap();
    let page = |number: u32| PageNumber::try_from(number).unwrap();
    let head = Head {
        snapshot: Snapshot {
            version: Version::new(9),
            page_size: Some(PageSize::MIN),
            page_count: count(100),
        },
        since: Version::new(2),
        based: true,
        dense: true,
        cuts: vec![(Version::new(4), count(10)), (Version::new(7), count(20))],
    };
    let shows = |number, version, layer| head.shows(page(number), Version::new(version), layer);
    assert!(shows(10, 2, OWN) && !shows(10, 1, OWN), "its segment only");
    assert!(!shows(11, 3, OWN) && shows(11, 4, OWN) && shows(11, 5, OWN));
    assert!(!shows(11, 4, layer_of(1)) && shows(11, 5, layer_of(1)));
    assert!(!shows(21, 6, OWN) && shows(21, 7, OWN));
    assert!(!shows(101, 9, OWN), "beyond its page count");
    assert!(head.shows_below(page(10)) && !head.shows_below(page(11)));
    assert_eq!(head.lasting(), count(10), "as far as `shows_below`");
}

/// What is in a cluster today has to mean the same tomorrow. Other bytes, or another meaning of the same ones, are another `FORMAT`.
#[test]
fn the_bytes_are_pinned() {
    let count = |count: u32| PageCount::try_from(count).unwrap();
    let page = |number: u32| PageNumber::try_from(number).unwrap();
    let version = Version::new;
    let database = DatabaseId::from_bytes(*b"0123456789abcdef");
    let commit = CommitId::from_bytes(*b"ABCDEF0123456789");
    let server = *b"ghijklmnopqrstuv";
    let snapshot = Snapshot {
        version: version(0x0102),
        page_size: Some(PageSize::MIN),
        page_count: count(0x0304),
    };
    let head = Head {
        snapshot,
        since: version(5),
        based: true,
        dense: false,
        cuts: vec![(version(6), count(7))],
    };
    let record = |changed| Record {
        commit,
        time_ms: 1,
        ended_ms: 2,
        restored_from: version(3),
        pages_changed: 4,
        head: head.clone(),
        changed,
    };
    let name = DatabaseName::try_from("a").unwrap();
    let removed = |left| Removed {
        time_ms: 1,
        cluster: 2,
        left,
    };
    let flattening = Flattening {
        links: vec![(database, version(1))],
        below: Some((database, version(2))),
        at: 3,
        after: 4,
    };
    let session = SessionId::from_bytes(*b"wxyz0123456789ab");
    let zeros = vec![0; PageSize::MIN.bytes()];
    // LZ4 may come to other bytes in another version of its library; these have to stay readable.
    let ones = b"\x03\x00\x00\x02\x00\x1f\x01\x01\x00\xff\xe7\x60\x01\x01\x01\x01\x01\x01";
    let ones = PageBody::decode(ones).unwrap().content().unwrap();
    assert_eq!(ones, vec![1; PageSize::MIN.bytes()]);
    // That LZ4 makes nothing of.
    let noise = |n: u32| (n + 1).wrapping_mul(2_654_435_761).wrapping_pow(3) >> 24;
    let noise: Vec<u8> = (0..512).map(|n| noise(n) as u8).collect();
    let raw = encode_page(&noise, PageSize::MIN);
    assert_eq!(raw[raw.len() - noise.len()..], noise);
    let kept = raw.len() - noise.len();
    let values: Vec<(&str, Vec<u8>)> = vec![
        (
            "database",
            Database {
                head: head.clone(),
                time_ms: 1,
                created_ms: 2,
                name,
            }
            .encode(),
        ),
        (
            "segment",
            Segment {
                database,
                head: head.clone(),
                reach: count(1),
                depth: 2,
            }
            .encode(),
        ),
        (
            "origin",
            Origin {
                database,
                snapshot,
                time_ms: 1,
                pages_changed: 2,
                restored_from: version(3),
            }
            .encode(),
        ),
        ("record, all changed", record(Changed::All).encode()),
        (
            "record with a list",
            record(Changed::Inline(vec![page(1), page(300)])).encode(),
        ),
        ("record with chunks", record(Changed::Chunks(9)).encode()),
        (
            "past",
            Past {
                commit,
                time_ms: 1,
                dropped: 2,
            }
            .encode(),
        ),
        (
            "due, pages of the list that were looked at",
            Due {
                dropped: version(1),
                after: 2,
            }
            .encode(),
        ),
        ("removed, all left", removed(Left::All).encode()),
        (
            "removed, segments left",
            removed(Left::Segments(version(3))).encode(),
        ),
        ("removed, nothing left", removed(Left::Nothing).encode()),
        ("flattening", flattening.encode()),
        (
            "attempt",
            Attempt {
                version: version(1),
                server,
                number: 2,
                doomed: true,
            }
            .encode(),
        ),
        (
            "grant",
            Grant {
                server,
                session,
                hello: 1,
                epoch: Epoch::new(2),
                guard_ms: 3,
            }
            .encode(),
        ),
        (
            "server",
            Server {
                counter: 1,
                lease_ttl_ms: 2,
            }
            .encode(),
        ),
        (
            "protection",
            Protection {
                floor: Some(version(1)),
                pins: vec![version(2)],
            }
            .encode(),
        ),
        (
            "protection without a floor",
            Protection {
                floor: None,
                pins: vec![version(2)],
            }
            .encode(),
        ),
        ("pages", encode_pages(&[page(1), page(300)])),
        ("zeros", encode_page(&zeros, PageSize::MIN)),
        ("noise, before its bytes", raw[..kept].to_vec()),
    ];
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let lines = values
        .iter()
        .map(|(what, bytes)| format!("{what}: {}\n", hex(bytes)));
    assert_eq!(lines.collect::<String>(), include_str!("pinned.txt"));
}
