//! What the fuzz target `stored` reaches: everything that is made from bytes of the store's files but for the engine's own pages
//! (`tree.rs`). Only with the feature `fuzzing`, which nothing that is shipped has.
//!
//! Each decoder takes any bytes. It panics where something is answered that would not be written so, or where what is answered takes more
//! room than the bytes it was made from, or a page, do.

use pagewire_proto::PageSize;

use crate::engine::{SUM_LEN, check, check_key, sums};
use crate::keys::Key;
use crate::log::record::{BLOCK, Changes, HEADER, Header, Kind, next_change};
use crate::log::slots;
use crate::roots::{ROOT_BYTES, Roots};
use crate::values::{
    Database, Due, Origin, PageBody, Past, Record, Segment, Usage, decode_pages, encode_page,
    encode_pages, encode_staged,
};

/// A decoder, and what it decodes.
pub type Decoder = (&'static str, fn(&[u8]));

/// All of them. An input names one by its place: new ones are added at the end.
pub const DECODERS: [Decoder; 14] = [
    ("key", key),
    ("database", |bytes| {
        same(bytes, Database::decode(bytes).map(|row| row.encode()));
    }),
    ("usage", |bytes| {
        same(bytes, Usage::decode(bytes).map(|row| row.encode()));
    }),
    ("segment", |bytes| {
        same(bytes, Segment::decode(bytes).map(|row| row.encode()));
    }),
    ("origin", |bytes| {
        same(bytes, Origin::decode(bytes).map(|row| row.encode()));
    }),
    ("record", |bytes| {
        same(bytes, Record::decode(bytes).map(|row| row.encode()));
    }),
    ("past", |bytes| {
        same(bytes, Past::decode(bytes).map(|row| row.encode()));
    }),
    ("due", |bytes| {
        same(bytes, Due::decode(bytes).map(|row| row.encode()));
    }),
    ("pages", |bytes| {
        let pages = decode_pages(bytes);
        // A list that grows has room for twice what is in it.
        assert!(
            pages
                .as_ref()
                .is_none_or(|pages| pages.capacity() <= bytes.len() / 2 + 4)
        );
        same(bytes, pages.map(|pages| encode_pages(&pages)));
    }),
    ("page", page),
    ("row", row),
    ("log record", log_record),
    ("slot", slots::look_at),
    ("roots", roots),
];

fn same(bytes: &[u8], again: Option<Vec<u8>>) {
    assert!(again.is_none_or(|again| again == bytes), "{bytes:02x?}");
}

fn key(bytes: &[u8]) {
    let key = Key::decode(bytes);
    let _ = key.as_ref().map(Key::to_string);
    same(bytes, key.map(|key| key.encode()));
}

/// One content has many compressed forms: what is decoded comes back from what is written of it.
fn page(bytes: &[u8]) {
    let Some(body) = PageBody::decode(bytes) else {
        return;
    };
    match body {
        PageBody::Staged(serial) => assert_eq!(encode_staged(serial), bytes),
        PageBody::Raw(content) => assert_eq!(content, &bytes[1..]),
        PageBody::Gone | PageBody::Zeros(_) | PageBody::Lz4(..) => {}
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

/// The first byte is the length of the key; the row follows, as it is and with the checksums that it would have.
fn row(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first() else {
        return;
    };
    let (key, row) = rest.split_at(usize::from(*length).min(rest.len()));
    let _ = (check(key, row).is_ok(), check_key(key, row).is_ok());
    let Some((_, body)) = row.split_at_checked(SUM_LEN) else {
        return;
    };
    let whole = [&sums(key, crc32fast::hash(body), body.len()), body].concat();
    assert_eq!(check(key, &whole).ok(), Some(body));
    assert!(check_key(key, &whole).is_ok());
}

/// The bytes as a record, and as the body of one with the right checksums.
fn log_record(bytes: &[u8]) {
    if let Some(header) = Header::parse(bytes) {
        assert!(header.span() >= HEADER as u64 && header.span().is_multiple_of(BLOCK));
        let body = bytes.get(HEADER..HEADER + header.body_bytes);
        if let Some(body) = body.filter(|body| header.is_of(body)) {
            changes(body);
        }
    }
    changes(bytes);
}

/// Deleted rows and others: what is read of a body is what it was written of.
fn changes(body: &[u8]) {
    let (mut rest, mut changes) = (body, Changes::new());
    let is_whole = loop {
        match next_change(&mut rest) {
            Ok(Some((key, Some(row)))) => changes.put(key, &[], row),
            Ok(Some((key, None))) => changes.delete(key),
            Ok(None) => break true,
            Err(()) => break false,
        }
    };
    if is_whole && !changes.is_large() {
        let record = changes.record(1, 2, 3);
        let header = Header::parse(&record.bytes).expect("a header");
        assert_eq!((header.kind, header.sum), (Kind::Changes, record.sum));
        assert_eq!((header.run, header.number, header.previous), (1, 2, 3));
        assert_eq!(&record.bytes[HEADER..HEADER + header.body_bytes], body);
        assert!(header.is_of(body));
    }
}

/// Both roots, one after the other, and then those of another file.
fn roots(bytes: &[u8]) {
    let (chunks, _) = bytes.as_chunks::<ROOT_BYTES>();
    let [a, b, rest @ ..] = chunks else {
        return;
    };
    let roots = Roots([*a, *b]);
    let newest = roots.newest();
    assert_eq!(newest.is_some(), roots.page_bytes().is_some());
    assert!(!roots.are_whole() || newest.is_some());
    if let Some(root) = newest {
        // What is allocated for the pass over the tree is decided by it.
        assert!(!root.is_plausible() || root.last_page < 1 << 32);
    }
    if let [c, d, ..] = rest {
        let other = Roots([*c, *d]);
        let both = roots.with_newest_of(&other);
        assert!(
            both.0
                .iter()
                .all(|root| { roots.0.contains(root) || other.0.contains(root) })
        );
    }
}

/// The rows of a log file, checksums and all, for the corpus: what real transactions put.
pub fn rows_in_log(log: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for at in (0..log.len()).step_by(BLOCK as usize) {
        let header = Header::parse(&log[at..]);
        let body = header.and_then(|header| log[at + HEADER..].get(..header.body_bytes));
        let mut body = body.unwrap_or_default();
        while let Ok(Some((key, row))) = next_change(&mut body) {
            rows.extend(row.map(|row| (key.to_vec(), row.to_vec())));
        }
    }
    rows
}
