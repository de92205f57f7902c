//! What the rows have: heads, records and pages. The checksum is `engine.rs`'s.
//!
//! Decoding answers `None` for bytes that no version of this format writes.

use bytes::Bytes;
use pagewire_proto::{CommitId, PageCount, PageNumber, PageSize, Snapshot, Version};

/// Changed pages that a record has itself; longer lists are in rows of their own.
pub const INLINE_CHANGES: usize = 256;
/// Changed pages in one row.
pub const CHANGES_CHUNK: usize = 8192;

/// The newest version of a database, and what its pages need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The version.
    pub snapshot: Snapshot,
    /// The version in which the page size was last set: pages of earlier ones are not part of it (C8).
    pub since: Version,
}

/// How a version was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The commit that made it.
    pub commit: CommitId,
    /// When, in milliseconds since 1970 by the wall clock: for people and retention, never for order.
    pub time_ms: u64,
    /// The version.
    pub head: Head,
    /// Which pages differ from the version before.
    pub changed: Changed,
}

/// The changed pages of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Any of them may.
    All,
    /// These.
    Inline(Vec<PageNumber>),
    /// As many as this, in rows of their own.
    Chunks(u32),
}

/// What a row of a page has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageBody<'a> {
    /// The page went away with a shrink.
    Gone,
    /// As many zeros.
    Zeros(u32),
    /// The content.
    Raw(&'a [u8]),
    /// The content, compressed, with its length.
    Lz4(u32, &'a [u8]),
    /// The content is the page of the staging with this serial number.
    Staged(u64),
}

/// The row of a page that went away.
pub const GONE: [u8; 1] = [0];

impl Head {
    /// A database to which nothing was ever committed.
    pub const EMPTY: Head = Head {
        snapshot: Snapshot::EMPTY,
        since: Version::ZERO,
    };

    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24);
        out.extend(self.snapshot.version.get().to_be_bytes());
        let size = self.snapshot.page_size.map_or(0, PageSize::get);
        out.extend(size.to_be_bytes());
        out.extend(self.snapshot.page_count.get().to_be_bytes());
        out.extend(self.since.get().to_be_bytes());
        out
    }

    /// The head with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let head = fields.head()?;
        fields.0.is_empty().then_some(head)
    }
}

impl Record {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.commit.as_bytes().to_vec();
        out.extend(self.time_ms.to_be_bytes());
        out.extend(self.head.encode());
        match &self.changed {
            Changed::All => out.push(0),
            Changed::Inline(pages) => {
                out.push(1);
                out.extend(pages.iter().flat_map(|page| page.get().to_be_bytes()));
            }
            Changed::Chunks(pages) => {
                out.push(2);
                out.extend(pages.to_be_bytes());
            }
        }
        out
    }

    /// The record with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let commit = CommitId::from_bytes(fields.take()?);
        let time_ms = fields.u64()?;
        let head = fields.head()?;
        let changed = match fields.take::<1>()? {
            [0] => Changed::All,
            [1] => Changed::Inline(decode_pages(std::mem::take(&mut fields.0))?),
            [2] => Changed::Chunks(fields.u32()?),
            _ => return None,
        };
        fields.0.is_empty().then_some(Self {
            commit,
            time_ms,
            head,
            changed,
        })
    }
}

/// The body of a row of changed pages.
pub fn encode_pages(pages: &[PageNumber]) -> Vec<u8> {
    pages.iter().flat_map(|p| p.get().to_be_bytes()).collect()
}

/// The pages of such a body.
pub fn decode_pages(body: &[u8]) -> Option<Vec<PageNumber>> {
    let (chunks, []) = body.as_chunks::<4>() else {
        return None;
    };
    let numbers = chunks.iter().map(|chunk| u32::from_be_bytes(*chunk));
    numbers.map(|n| PageNumber::try_from(n).ok()).collect()
}

impl<'a> PageBody<'a> {
    /// The page with this body.
    pub fn decode(body: &'a [u8]) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        let mut fields = Fields(rest);
        let page = match kind {
            0 => Self::Gone,
            1 => Self::Zeros(fields.page_size()?),
            2 => Self::Raw(std::mem::take(&mut fields.0)),
            3 => Self::Lz4(fields.page_size()?, std::mem::take(&mut fields.0)),
            4 => Self::Staged(fields.u64()?),
            _ => return None,
        };
        fields.0.is_empty().then_some(page)
    }

    /// The content of the page; `None` where the compressed form is none, or where the content is elsewhere.
    pub fn content(&self) -> Option<Bytes> {
        match *self {
            Self::Gone => Some(Bytes::new()),
            Self::Zeros(size) => Some(Bytes::from(vec![0; size as usize])),
            Self::Raw(content) => Some(Bytes::copy_from_slice(content)),
            Self::Lz4(size, block) => {
                let mut content = vec![0; size as usize];
                let length = lz4_flex::block::decompress_into(block, &mut content).ok()?;
                (length == content.len()).then(|| Bytes::from(content))
            }
            Self::Staged(_) => None,
        }
    }
}

/// The body of a page of this content: compressed where that is smaller, no content for zeros.
pub fn encode_page(content: &[u8], size: PageSize) -> Vec<u8> {
    let mut out = vec![0; 5 + lz4_flex::block::get_maximum_output_size(content.len())];
    out[1..5].copy_from_slice(&size.get().to_be_bytes());
    if content.iter().all(|byte| *byte == 0) {
        out[0] = 1;
        out.truncate(5);
        return out;
    }
    match lz4_flex::block::compress_into(content, &mut out[5..]) {
        Ok(length) if length + 4 < content.len() => {
            out[0] = 3;
            out.truncate(5 + length);
            out.shrink_to_fit();
            out
        }
        _ => [&[2], content].concat(),
    }
}

/// The body of a page whose content is in a staging.
pub fn encode_staged(serial: u64) -> Vec<u8> {
    [&[4], &serial.to_be_bytes()[..]].concat()
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*part)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    /// Checked, so that nothing is allocated that no page needs.
    fn page_size(&mut self) -> Option<u32> {
        PageSize::try_from(self.u32()?).ok().map(PageSize::get)
    }

    fn head(&mut self) -> Option<Head> {
        let version = Version::new(self.u64()?);
        let page_size = match self.u32()? {
            0 => None,
            size => Some(PageSize::try_from(size).ok()?),
        };
        let page_count = PageCount::try_from(self.u32()?).ok()?;
        let since = Version::new(self.u64()?);
        let snapshot = Snapshot {
            version,
            page_size,
            page_count,
        };
        Some(Head { snapshot, since })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head() -> impl Strategy<Value = Head> {
        (any::<u64>(), 0..9_u32, 0..u32::MAX, any::<u64>()).prop_map(
            |(version, size, count, since)| Head {
                snapshot: Snapshot {
                    version: Version::new(version),
                    page_size: PageSize::try_from(256 << size).ok(),
                    page_count: PageCount::try_from(count).unwrap(),
                },
                since: Version::new(since),
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
        fn heads_come_back(head in head()) {
            prop_assert_eq!(Head::decode(&head.encode()), Some(head));
        }

        #[test]
        fn records_come_back(
            id in any::<[u8; 16]>(), time_ms in any::<u64>(), head in head(), changed in changed()
        ) {
            let commit = CommitId::from_bytes(id);
            let record = Record { commit, time_ms, head, changed };
            prop_assert_eq!(Record::decode(&record.encode()), Some(record));
        }

        #[test]
        fn lists_of_pages_come_back(pages in pages()) {
            prop_assert_eq!(decode_pages(&encode_pages(&pages)), Some(pages));
        }

        #[test]
        fn pages_come_back_and_are_never_much_longer(
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
            let decoded = PageBody::decode(&body).unwrap().content().unwrap();
            prop_assert_eq!(decoded, content);
        }

        #[test]
        fn other_bytes_are_refused_or_decoded_without_harm(body in any::<Vec<u8>>()) {
            let _ = Head::decode(&body);
            let _ = Record::decode(&body);
            if let Some(page) = PageBody::decode(&body) {
                let _ = page.content();
            }
        }
    }
}
