//! What the rows of versions have: how they were made, which pages they changed, what is left of dropped ones.

use pagewire_proto::{CommitId, PageNumber, Version};

use super::{Fields, Head};

/// Changed pages that a record has itself; longer lists are in rows of their own.
pub const INLINE_CHANGES: usize = 256;

/// Changed pages in one row.
pub const CHANGES_CHUNK: usize = 8192;

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
