//! What the rows have: heads, records and pages. The checksum is `engine.rs`'s.
//!
//! Decoding answers `None` for bytes that no version of this format writes.

mod pages;
mod versions;

use pagewire_proto::{DatabaseId, DatabaseName, PageCount, PageSize, Snapshot, Version};

pub use pages::{GONE, PageBody, encode_page, encode_staged};
pub use versions::{
    CHANGES_CHUNK, Changed, Due, INLINE_CHANGES, Past, Record, decode_pages, encode_pages,
};

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

/// What the rows of pages of a segment take: those with content, over all versions.
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
mod tests;
