//! A segment: pages, then an index of them in ascending order. Written once under a new key, never changed.
//!
//! ```text
//! page content, raw or lz4 ... | per page 24 bytes, little-endian: number u32, version u64, offset u32, length u32, crc32 u32
//! ```
//! The top bit of the length says lz4. A length of 0 is a page of zeros. Version 0 stands for the version that names the
//! segment: a staged page does not know it when it is written. The crc32 is of the bytes as stored, so that a page is moved to
//! another segment as it is: damage is noticed, not covered up.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use pagewire_proto::PageSize;
use pagewire_server::store::StoreError;

use crate::cells::Entry;
use crate::keys::SegmentId;

/// Bytes of an entry of the index.
pub(crate) const INDEX_ENTRY_BYTES: usize = 24;
/// Bytes of pages in one segment, but for the last page: bounds what one call moves.
pub(crate) const SEGMENT_BYTES: usize = 8 << 20;
const LZ4: u32 = 1 << 31;
/// Compression has to save this part of a page: what is saved pays for what reading costs.
const WORTH_IT: usize = 8;

/// A page as it is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredBlob {
    /// 0: the version that names the segment.
    pub version: u64,
    pub bytes: Bytes,
    lz4: bool,
    crc32: u32,
}

/// Pages of a segment to be.
pub(crate) type Blobs = BTreeMap<u32, StoredBlob>;

impl StoredBlob {
    /// A page that is written now; no content is a page of zeros.
    pub(crate) fn new(content: &Bytes) -> Self {
        let compressed = lz4_flex::block::compress(content);
        let lz4 = compressed.len() + content.len() / WORTH_IT <= content.len();
        let bytes = match lz4 {
            true => Bytes::from(compressed),
            // Of its own: what comes from the wire is a slice of a message.
            false => Bytes::copy_from_slice(content),
        };
        let (bytes, lz4) = match content.iter().all(|byte| *byte == 0) {
            true => (Bytes::new(), false),
            false => (bytes, lz4),
        };
        Self {
            version: 0,
            crc32: crc32fast::hash(&bytes),
            bytes,
            lz4,
        }
    }
}

/// Where a page is in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub page: u32,
    pub version: u64,
    pub offset: u32,
    length: u32,
    crc32: u32,
}

impl Place {
    pub(crate) fn length(&self) -> u32 {
        self.length & !LZ4
    }

    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        let offset = self.offset as usize;
        offset..offset + self.length() as usize
    }

    /// The bytes of the page as another segment takes them over.
    pub(crate) fn blob(&self, bytes: Bytes, written: u64) -> StoredBlob {
        StoredBlob {
            version: match self.version {
                0 => written,
                version => version,
            },
            bytes,
            lz4: self.length & LZ4 != 0,
            crc32: self.crc32,
        }
    }

    /// Adds it to an index.
    pub(crate) fn put(&self, index: &mut BytesMut) {
        index.put_u32_le(self.page);
        index.put_u64_le(self.version);
        index.put_u32_le(self.offset);
        index.put_u32_le(self.length);
        index.put_u32_le(self.crc32);
    }

    /// The place of these bytes.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn with_sum_of(&self, stored: &[u8]) -> Self {
        let crc32 = crc32fast::hash(stored);
        Self { crc32, ..*self }
    }

    /// The content of the page from its stored bytes; `None` if they are not what was written.
    pub(crate) fn content(&self, stored: &[u8], page_size: PageSize) -> Option<Bytes> {
        if crc32fast::hash(stored) != self.crc32 {
            return None;
        }
        let size = page_size.bytes();
        let content = match stored {
            [] => vec![0; size],
            stored if self.length & LZ4 != 0 => lz4_flex::block::decompress(stored, size).ok()?,
            stored => stored.to_vec(),
        };
        (content.len() == size).then(|| Bytes::from(content))
    }
}

/// Which pages a segment has, ascending.
#[derive(Debug, Default)]
pub(crate) struct Index(pub Vec<Place>);

impl Index {
    pub(crate) fn find(&self, page: u32) -> Option<Place> {
        let found = self.0.binary_search_by_key(&page, |place| place.page);
        found.ok().map(|at| self.0[at])
    }

    /// The pages from `first` to `last`.
    pub(crate) fn within(&self, first: u32, last: u32) -> &[Place] {
        let from = self.0.partition_point(|place| place.page < first);
        let to = self.0.partition_point(|place| place.page <= last);
        self.0.get(from..to).unwrap_or_default()
    }

    pub(crate) fn decode(mut bytes: &[u8], entry: &Entry) -> Result<Self, StoreError> {
        let id = entry.id();
        let right = bytes.len() == entry.pages as usize * INDEX_ENTRY_BYTES
            && crc32fast::hash(bytes) == entry.index_crc32;
        if !right {
            return Err(StoreError::Corrupt(format!(
                "the index of segment {:016x}-{:016x} is not what was written",
                id.generation, id.random
            )));
        }
        let mut places = Vec::with_capacity(entry.pages as usize);
        while bytes.has_remaining() {
            places.push(Place {
                page: bytes.get_u32_le(),
                version: bytes.get_u64_le(),
                offset: bytes.get_u32_le(),
                length: bytes.get_u32_le(),
                crc32: bytes.get_u32_le(),
            });
        }
        Ok(Self(places))
    }
}

/// A segment that is ready to be put.
#[derive(Debug)]
pub(crate) struct Built {
    /// Names it; `added` and `written` are the caller's.
    pub entry: Entry,
    pub bytes: Bytes,
    pub index: Index,
}

/// As many segments as the pages need, none with pages of another one between its own.
pub(crate) fn build(
    blobs: Blobs,
    page_size: PageSize,
    generation: u64,
) -> Result<Vec<Built>, StoreError> {
    let mut built = Vec::new();
    let mut body = BytesMut::new();
    let mut places = Vec::new();
    let mut newest = 0;
    let mut blobs = blobs.into_iter().peekable();
    while let Some((page, blob)) = blobs.next() {
        let length = u32::try_from(blob.bytes.len()).unwrap_or(u32::MAX);
        places.push(Place {
            page,
            version: blob.version,
            offset: u32::try_from(body.len()).unwrap_or(u32::MAX),
            length: length | if blob.lz4 { LZ4 } else { 0 },
            crc32: blob.crc32,
        });
        newest = newest.max(blob.version);
        body.put_slice(&blob.bytes);
        let full = body.len() + places.len() * INDEX_ENTRY_BYTES >= SEGMENT_BYTES;
        if full || blobs.peek().is_none() {
            let segment = finish(&mut body, std::mem::take(&mut places), generation)?;
            built.push(Built {
                entry: Entry {
                    newest: std::mem::take(&mut newest),
                    page_size: page_size.get(),
                    ..segment.entry
                },
                ..segment
            });
        }
    }
    Ok(built)
}

fn finish(body: &mut BytesMut, places: Vec<Place>, generation: u64) -> Result<Built, StoreError> {
    let bytes = body.len() as u64;
    let start = body.len();
    places.iter().for_each(|place| place.put(body));
    let entry = Entry {
        generation,
        random: random()?,
        first: places.first().map_or(0, |place| place.page),
        last: places.last().map_or(0, |place| place.page),
        bytes,
        pages: u32::try_from(places.len()).unwrap_or(u32::MAX),
        index_crc32: crc32fast::hash(&body[start..]),
        ..Entry::default()
    };
    Ok(Built {
        entry,
        bytes: body.split().freeze(),
        index: Index(places),
    })
}

/// A random number that nobody else has.
pub(crate) fn random() -> Result<u64, StoreError> {
    getrandom::u64().map_err(|error| StoreError::Unavailable(format!("no random numbers: {error}")))
}

impl Entry {
    pub(crate) fn id(&self) -> SegmentId {
        SegmentId {
            generation: self.generation,
            random: self.random,
        }
    }

    /// Bytes of the whole segment.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.bytes + u64::from(self.pages) * INDEX_ENTRY_BYTES as u64
    }

    pub(crate) fn is_live(&self) -> bool {
        self.removed == 0
    }

    pub(crate) fn is_of(&self, version: u64) -> bool {
        self.added <= version && (self.is_live() || version < self.removed)
    }

    pub(crate) fn has(&self, page: u32) -> bool {
        (self.first..=self.last).contains(&page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs(pages: impl Iterator<Item = u32>, size: usize) -> Blobs {
        pages
            .map(|page| {
                // Half of it random, so that some compress and some do not.
                let mut state = u64::from(page) + 1;
                let content: Vec<u8> = (0..size)
                    .map(|at| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        if page % 2 == 0 || at < size / 2 {
                            (state >> 33) as u8
                        } else {
                            0
                        }
                    })
                    .collect();
                (page, StoredBlob::new(&Bytes::from(content)))
            })
            .collect()
    }

    #[test]
    fn pages_of_every_size_come_back_from_a_segment() {
        for shift in 9..=16 {
            let size = PageSize::try_from(1 << shift).unwrap();
            let pages = blobs([1, 2, 7, 4_294_967_294].into_iter(), size.bytes());
            let built = build(pages.clone(), size, 5).unwrap();
            assert_eq!(built.len(), 1);
            let (entry, bytes) = (&built[0].entry, &built[0].bytes);
            let index = Index::decode(&bytes[entry.bytes as usize..], entry).unwrap();
            assert_eq!(index.0, built[0].index.0);
            for (page, blob) in pages {
                let place = index.find(page).unwrap();
                let stored = &bytes[place.range()];
                assert_eq!(stored, &blob.bytes[..]);
                let content = place.content(stored, size).unwrap();
                assert_eq!(content.len(), size.bytes());
                if !stored.is_empty() {
                    let mut wrong = stored.to_vec();
                    wrong[0] ^= 1;
                    assert!(place.content(&wrong, size).is_none());
                }
            }
            assert!(index.find(3).is_none());
        }
    }

    #[test]
    fn zeros_take_no_room_and_many_pages_take_several_segments() {
        let zeros = StoredBlob::new(&Bytes::from(vec![0; 65_536]));
        assert!(zeros.bytes.is_empty());
        let size = PageSize::MAX;
        let built = build(blobs((1..=300).map(|n| n * 2), size.bytes()), size, 1).unwrap();
        assert!(built.len() >= 2);
        for pair in built.windows(2) {
            assert!(pair[0].entry.last < pair[1].entry.first);
        }
        for segment in &built {
            assert!(segment.bytes.len() <= SEGMENT_BYTES + size.bytes() + INDEX_ENTRY_BYTES);
        }
    }
}
