//! What the rows have: heads, records and pages. The checksum is `engine.rs`'s.
//!
//! Decoding answers `None` for bytes that no version of this format writes.

use bytes::Bytes;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, PageCount, PageNumber, PageSize, Snapshot, Version,
};

/// Changed pages that a record has itself; longer lists are in rows of their own.
pub const INLINE_CHANGES: usize = 256;
/// Changed pages in one row.
pub const CHANGES_CHUNK: usize = 8192;

/// A version, and what its pages need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The version.
    pub snapshot: Snapshot,
    /// The first version of its segment: rows of earlier ones are not part of it. A segment begins with a branch, with a
    /// restore of many pages, and where the page size is set (C8).
    pub since: Version,
    /// The smallest page count that there was since then: pages beyond it that the segment began with, or stands on, are gone.
    pub lasting: PageCount,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The newest version.
    pub head: Head,
    /// When it was made.
    pub time_ms: u64,
    /// When version 1 was made.
    pub created_ms: u64,
    /// How many versions are kept.
    pub versions: u64,
    /// Its name.
    pub name: DatabaseName,
}

/// What the rows of pages of a database take: those with content, over all versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many.
    pub pages: u64,
    /// Their bodies, in staged rows where they are there.
    pub bytes: u64,
}

/// What versions take their pages from that they have not written themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `None` where there is nothing.
    pub base: Option<Base>,
}

/// What a segment stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Which database; it may have been removed.
    pub database: DatabaseId,
    /// The version.
    pub head: Head,
    /// Pages beyond it do not come from there.
    pub reach: PageCount,
}

/// What a branch was made from: kept with the branch, since the source may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Which database.
    pub database: DatabaseId,
    /// The version.
    pub snapshot: Snapshot,
    /// When it was made.
    pub time_ms: u64,
    /// See [`Record`].
    pub pages_changed: u64,
    /// See [`Record`].
    pub restored_from: Version,
}

/// How a version was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The commit that made it.
    pub commit: CommitId,
    /// When, in milliseconds since 1970 by the wall clock, never before that of the version before.
    pub time_ms: u64,
    /// When the next version was made, where the record of that one may be gone; 0 where it is not.
    pub ended_ms: u64,
    /// The version whose pages it has, 0 for none.
    pub restored_from: Version,
    /// How many pages it wrote or dropped.
    pub pages_changed: u64,
    /// The version.
    pub head: Head,
    /// Which pages differ from the version before.
    pub changed: Changed,
}

/// What is left of the record of a dropped version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// The commit that made it.
    pub commit: CommitId,
    /// When.
    pub time_ms: u64,
}

/// A version was dropped: the rows that it read and the next one does not are to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The dropped version. The changed pages of the next one are in rows `Changed`.
    pub dropped: Version,
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
        lasting: PageCount::ZERO,
    };

    fn put(&self, out: &mut Vec<u8>) {
        put_snapshot(out, &self.snapshot);
        out.extend(self.since.get().to_be_bytes());
        out.extend(self.lasting.get().to_be_bytes());
    }
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    out.extend(snapshot.version.get().to_be_bytes());
    let size = snapshot.page_size.map_or(0, PageSize::get);
    out.extend(size.to_be_bytes());
    out.extend(snapshot.page_count.get().to_be_bytes());
}

impl Database {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.name.as_str().len());
        self.head.put(&mut out);
        for number in [self.time_ms, self.created_ms, self.versions] {
            out.extend(number.to_be_bytes());
        }
        out.extend(self.name.as_str().as_bytes());
        out
    }

    /// The database with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        Some(Self {
            head: fields.head()?,
            time_ms: fields.u64()?,
            created_ms: fields.u64()?,
            versions: fields.u64()?,
            name: DatabaseName::try_from(std::str::from_utf8(fields.0).ok()?).ok()?,
        })
    }
}

impl Usage {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        [self.pages.to_be_bytes(), self.bytes.to_be_bytes()].concat()
    }

    /// The usage with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (pages, bytes) = (fields.u64()?, fields.u64()?);
        fields.0.is_empty().then_some(Self { pages, bytes })
    }
}

impl Segment {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(base) = &self.base {
            out.extend(base.database.as_bytes());
            base.head.put(&mut out);
            out.extend(base.reach.get().to_be_bytes());
        }
        out
    }

    /// The segment with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        if body.is_empty() {
            return Some(Self { base: None });
        }
        let mut fields = Fields(body);
        let base = Base {
            database: fields.database()?,
            head: fields.head()?,
            reach: fields.page_count()?,
        };
        fields.0.is_empty().then_some(Self { base: Some(base) })
    }
}

impl Origin {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.database.as_bytes().to_vec();
        put_snapshot(&mut out, &self.snapshot);
        let from = self.restored_from.get();
        for number in [self.time_ms, self.pages_changed, from] {
            out.extend(number.to_be_bytes());
        }
        out
    }

    /// The origin with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let origin = Self {
            database: fields.database()?,
            snapshot: fields.snapshot()?,
            time_ms: fields.u64()?,
            pages_changed: fields.u64()?,
            restored_from: Version::new(fields.u64()?),
        };
        fields.0.is_empty().then_some(origin)
    }
}

impl Past {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.commit.as_bytes().to_vec();
        out.extend(self.time_ms.to_be_bytes());
        out
    }

    /// What is left with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let commit = CommitId::from_bytes(fields.take()?);
        let time_ms = fields.u64()?;
        fields.0.is_empty().then_some(Self { commit, time_ms })
    }
}

impl Due {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        self.dropped.get().to_be_bytes().to_vec()
    }

    /// What is due with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let dropped = Version::new(u64::from_be_bytes(body.try_into().ok()?));
        Some(Self { dropped })
    }
}

impl Record {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.commit.as_bytes().to_vec();
        let from = self.restored_from.get();
        for number in [self.time_ms, self.ended_ms, from, self.pages_changed] {
            out.extend(number.to_be_bytes());
        }
        self.head.put(&mut out);
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
        let (time_ms, ended_ms) = (fields.u64()?, fields.u64()?);
        let restored_from = Version::new(fields.u64()?);
        let pages_changed = fields.u64()?;
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
            ended_ms,
            restored_from,
            pages_changed,
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

    fn page_count(&mut self) -> Option<PageCount> {
        PageCount::try_from(self.u32()?).ok()
    }

    fn database(&mut self) -> Option<DatabaseId> {
        self.take().map(DatabaseId::from_bytes)
    }

    fn snapshot(&mut self) -> Option<Snapshot> {
        let version = Version::new(self.u64()?);
        let page_size = match self.u32()? {
            0 => None,
            size => Some(PageSize::try_from(size).ok()?),
        };
        let page_count = self.page_count()?;
        Some(Snapshot {
            version,
            page_size,
            page_count,
        })
    }

    fn head(&mut self) -> Option<Head> {
        Some(Head {
            snapshot: self.snapshot()?,
            since: Version::new(self.u64()?),
            lasting: self.page_count()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
}
