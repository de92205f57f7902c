//! What the stores make of what they find in their own files, keys and rows: after damage it is anything, and some of it has the
//! right checksum.

use pagewire_foundationdb::keys::Space;
use pagewire_foundationdb::values::{
    Attempt, Database, Due, Flattening, Grant, Origin, PageBody, Past, Protection, Record, Removed,
    Segment, Server, decode_pages, decode_u64, encode_page, encode_pages,
};
use pagewire_proto::PageSize;

/// The decoders of a store, with what they decode; the local one's and the adapter's have their own list, for most of them are private.
pub type Decoder = (&'static str, fn(&[u8]));

/// The stores, and their decoders.
pub const STORES: [(&str, &[Decoder]); 3] = [
    ("local", &pagewire_local::fuzzing::DECODERS),
    ("foundationdb", &FOUNDATIONDB),
    ("shadow", &pagewire_shadow::fuzzing::DECODERS),
];

/// The first byte says which decoder gets the rest: its two upper bits the store, the others the place in its list. Nothing panics; what
/// is decoded takes no more room than the bytes or a page, and is what would be written again, or is read as the same where one thing can be
/// written in several ways: compressed pages, integers in keys of FoundationDB, and messages.
pub fn stored(bytes: &[u8]) {
    let Some((what, bytes)) = bytes.split_first() else {
        return;
    };
    let (_, decoders) = STORES[usize::from(what >> 6) % STORES.len()];
    let (_, decode) = decoders[usize::from(what & 0x3f) % decoders.len()];
    decode(bytes);
}

/// Those of FoundationDB. An input names one by its place: new ones are added at the end.
const FOUNDATIONDB: [Decoder; 17] = [
    ("key", key),
    ("database", |bytes| {
        same(bytes, Database::decode(bytes).map(|row| row.encode()));
    }),
    ("segment", |bytes| {
        let row = Segment::decode(bytes);
        same(
            bytes,
            row.map(|row| row.map_or(Vec::new(), |row| row.encode())),
        );
    }),
    ("origin", |bytes| {
        same(bytes, Origin::decode(bytes).map(|row| row.encode()));
    }),
    ("past", |bytes| {
        same(bytes, Past::decode(bytes).map(|row| row.encode()));
    }),
    ("due", |bytes| {
        same(bytes, Due::decode(bytes).map(|row| row.encode()));
    }),
    ("removed", |bytes| {
        same(bytes, Removed::decode(bytes).map(|row| row.encode()));
    }),
    ("flattening", |bytes| {
        let row = Flattening::decode(bytes);
        same(
            bytes,
            row.map(|row| row.map_or(Vec::new(), |row| row.encode())),
        );
    }),
    ("attempt", |bytes| {
        same(bytes, Attempt::decode(bytes).map(|row| row.encode()));
    }),
    ("server", |bytes| {
        same(bytes, Server::decode(bytes).map(|row| row.encode()));
    }),
    ("grant", |bytes| {
        same(bytes, Grant::decode(bytes).map(|row| row.encode()));
    }),
    ("protection", |bytes| {
        same(bytes, Protection::decode(bytes).map(|row| row.encode()));
    }),
    ("record", |bytes| {
        same(bytes, Record::decode(bytes).map(|row| row.encode()));
    }),
    ("pages", |bytes| {
        same(bytes, decode_pages(bytes).map(|pages| encode_pages(&pages)));
    }),
    ("number", |bytes| {
        same(
            bytes,
            decode_u64(bytes).map(|number| number.to_be_bytes().to_vec()),
        );
    }),
    ("page", page),
    ("head", |bytes| {
        // What is asked of the head of a database: which cut a page was beyond.
        if let Some(Database { head, .. }) = Database::decode(bytes) {
            for page in [1, 2, u32::MAX - 1] {
                let page = page.try_into().expect("a page");
                let _ = (head.cut_of(page), head.shows_below(page));
                let _ = head.shows(page, head.since, 0);
            }
            assert!(head.lasting() <= head.snapshot.page_count);
        }
    }),
];

fn same(bytes: &[u8], again: Option<Vec<u8>>) {
    assert!(again.is_none_or(|again| again == bytes), "{bytes:02x?}");
}

/// As it is, and under the prefix. An integer can be written with zeros before it.
fn key(bytes: &[u8]) {
    let space = Space::new(b"prefix");
    for bytes in [bytes, &[b"prefix", bytes].concat()] {
        if let Some(key) = space.decode(bytes) {
            let _ = key.to_string();
            let written = space.encode(&key);
            assert!(written.len() <= bytes.len(), "{key:?}");
            assert_eq!(space.decode(&written), Some(key));
        }
    }
}

/// One content has many compressed forms.
fn page(bytes: &[u8]) {
    let Some(body) = PageBody::decode(bytes) else {
        return;
    };
    if let PageBody::Raw(content) = body {
        assert_eq!(content, &bytes[1..]);
    }
    let Some(content) = body.content() else {
        return;
    };
    assert!(content.len() <= bytes.len().max(PageSize::MAX.bytes()));
    let size = u32::try_from(content.len()).ok();
    if let Some(size) = size.and_then(|size| PageSize::try_from(size).ok()) {
        let written = encode_page(&content, size);
        let again = PageBody::decode(&written).and_then(|body| body.content());
        assert_eq!(again.as_ref(), Some(&content));
    }
}
