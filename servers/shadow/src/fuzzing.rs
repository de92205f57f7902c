//! What the fuzz target `stored` reaches: everything that is made from keys and values of the key-value store. Only with the feature
//! `fuzzing`, which nothing that is shipped has.
//!
//! Each decoder takes any bytes. It panics where what is answered would not be read as the same again.

use std::fmt::Debug;

use bytes::{BufMut, Bytes, BytesMut};
use pagewire_proto::{CommitId, DatabaseId, PageCount, PageSize, Version};
use prost::Message;

use crate::cells::{self, Archive, Decision, Entry, History, Installation, NameCell, Root, State};
use crate::collect::{raise_horizon, readable, segments};
use crate::keys;
use crate::merge;
use crate::roots;
use crate::segment::{INDEX_ENTRY_BYTES, Index, StoredBlob};
use crate::state::{Keep, NextVersion, entries_of};

/// A decoder, and what it decodes.
pub type Decoder = (&'static str, fn(&[u8]));

/// All of them. An input names one by its place: new ones are added at the end.
pub const DECODERS: [Decoder; 8] = [
    ("root", |bytes| cell(bytes, look_at_root)),
    ("decision", |bytes| cell(bytes, |_: &Decision| ())),
    ("archive", |bytes| {
        cell(bytes, |archive: &Archive| {
            let of_one = entries_of(&archive.entries, 1).count();
            assert!(of_one <= archive.entries.len());
        });
    }),
    ("history", |bytes| cell(bytes, |_: &History| ())),
    ("name", |bytes| cell(bytes, |_: &NameCell| ())),
    ("installation", |bytes| cell(bytes, |_: &Installation| ())),
    ("index", index),
    ("key", key),
];

/// The bytes as a cell, and as the message in one whose magic and checksum are right. A message has fields in any order, or twice, and
/// others that are not known: what is read is written again and read as the same.
fn cell<M: Message + Default + PartialEq + Debug>(bytes: &[u8], look_at: fn(&M)) {
    // As `cells::encode` does it.
    let mut right = BytesMut::from(&cells::encode(&())[..4]);
    right.put_u32_le(crc32fast::hash(bytes));
    right.put_slice(bytes);
    for bytes in [bytes, &right] {
        if let Ok(cell) = cells::decode::<M>("a", bytes) {
            look_at(&cell);
            let again = cells::decode::<M>("a", &cells::encode(&cell));
            assert!(again.as_ref().is_ok_and(|again| *again == cell), "{cell:?}");
        }
    }
}

/// What is asked of a root without another call, and made of it: of one that is let in.
fn look_at_root(root: &Root) {
    if roots::check("a", root).is_err() {
        return;
    }
    let mut next = roots::next_root(root);
    assert!(next.generation > root.generation);
    raise_horizon(&mut next, 1_000_000, 1000);
    let intended = root.intent.as_ref().and_then(|it| it.state.as_ref());
    for state in root.state.iter().chain(intended) {
        look_at_state(state);
    }
}

fn look_at_state(state: &State) {
    let _ = (state.snapshot().is_ok(), state.overflowing_records());
    let first = state.first_record();
    for version in [0, 1, first, state.oldest, state.version, u64::MAX] {
        assert!(state.entries_of(version).count() <= state.entries.len());
        let _ = state.check_readable(Version::new(version));
        let _ = (state.archive_of(version), state.size_of(version));
        assert!(version <= state.version || state.record(version).is_none());
    }
    assert!(state.named().count() >= state.entries.len());
    assert!(segments(state).len() <= state.entries.len());
    let _ = (readable(state), merge::plan(state).is_some());
    for (floor, page_count) in [(None, 0), (Some(1), 3), (Some(state.version), u32::MAX - 1)] {
        let keep = Keep {
            floor,
            pins: vec![state.oldest],
            replaced_after_ms: 5,
        };
        let mut next = state.clone();
        next.expire(&keep, 10);
        assert!(
            next.oldest <= state.version.max(state.oldest)
                && next.records.len() <= state.records.len()
        );
        let _ = next.overflowing_entries(&keep, 1);
        let (Ok(page_size), Ok(page_count)) =
            (PageSize::try_from(512), PageCount::try_from(page_count))
        else {
            continue;
        };
        let version = NextVersion {
            commit: CommitId::from_bytes([3; 16]),
            page_size,
            page_count,
            entries: state.entries.iter().take(1).cloned().collect(),
            absorbed: state
                .entries
                .iter()
                .skip(1)
                .take(1)
                .map(Entry::id)
                .collect(),
            history: None,
            archive: None,
            time_ms: 20,
        };
        next.apply(version, &keep);
        assert_eq!(next.version, state.version + 1);
    }
}

/// The first two bytes are the size of a page; an index follows, and then the pages.
fn index(bytes: &[u8]) {
    let Some(([size, count], rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let page_size = PageSize::try_from(512 << (size % 8)).expect("a size of pages");
    let length = (usize::from(*count) * INDEX_ENTRY_BYTES).min(rest.len());
    let (bytes, pages) = rest.split_at(length);
    let entry = |pages: usize| Entry {
        pages: pages as u32,
        index_crc32: crc32fast::hash(bytes),
        ..Entry::default()
    };
    let whole = length / INDEX_ENTRY_BYTES;
    // One of another length is none, however large it says that it is.
    for wrong in [whole + 1, u32::MAX as usize] {
        assert!(Index::decode(bytes, &entry(wrong)).is_err());
    }
    let Ok(index) = Index::decode(bytes, &entry(whole)) else {
        assert!(!length.is_multiple_of(INDEX_ENTRY_BYTES));
        return;
    };
    let mut again = BytesMut::new();
    index.0.iter().for_each(|place| place.put(&mut again));
    assert_eq!(again, bytes);
    assert!(index.within(1, u32::MAX).len() <= whole);
    for place in &index.0 {
        assert!(place.range().len() < 1 << 31);
        let _ = index.find(place.page);
        let stored = pages.get(place.range()).unwrap_or(pages);
        // As it is, and as if it had been written so.
        let right = place.with_sum_of(stored);
        assert!(place.content(stored, page_size).is_none() || *place == right);
        if let Some(content) = right.content(stored, page_size) {
            assert_eq!(content.len(), page_size.bytes());
        }
    }
    // Whatever is in a page comes back.
    if let Some(content) = pages.get(..page_size.bytes()) {
        let content = Bytes::copy_from_slice(content);
        let blobs = [(7, StoredBlob::new(&content))].into();
        let built = crate::segment::build(blobs, page_size, 1).expect("random numbers");
        let place = built[0].index.find(7).expect("the page");
        let stored = &built[0].bytes[place.range()];
        assert_eq!(place.content(stored, page_size), Some(content));
    }
}

/// A key is read as something only if that has this key: who collects goes by what he reads, and deletes by key.
fn key(bytes: &[u8]) {
    let Ok(key) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(name) = keys::name_of(key) {
        assert_eq!(keys::name(&name), key);
    }
    if let Some(database) = keys::database_of(key) {
        assert_eq!(keys::root(database), key);
    }
    if let Some(transaction) = keys::transaction_of(key) {
        assert_eq!(keys::transaction(&transaction), key);
    }
    let database = DatabaseId::from_bytes([7; 16]);
    for key in [key.to_owned(), keys::segments(database) + key] {
        if let Some(id) = keys::segment_of(database, &key) {
            assert_eq!(keys::segment(database, id), key);
        }
    }
}
