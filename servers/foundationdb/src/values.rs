//! What the rows have: heads, records, pages. The checksum before it is `engine.rs`'s.
//!
//! Decoding answers `None` for bytes that no version of this format writes.

use bytes::Bytes;
use pagewire_proto::{
    CommitId, DatabaseId, DatabaseName, Epoch, PageCount, PageNumber, PageSize, SessionId,
    Snapshot, Version,
};

use crate::keys::{OWN, ServerId};

/// Changed pages that a record has itself; longer lists are in rows of their own.
pub const INLINE_CHANGES: usize = 256;
/// Changed pages in one row: what a step of a collection looks at.
pub const CHANGES_CHUNK: usize = 1024;
/// Cuts of one segment: with more of them the next version begins a segment.
pub const MAX_CUTS: usize = 64;

/// Pins in one row of what a server protects: 64 KiB, of the 100,000 bytes that a value may have.
pub const PINS_OF_A_ROW: usize = 8192;
/// Old versions of one database that the sessions of one server may have open: half a MiB of rows, which one transaction can write anew.
pub const MAX_PROTECTED_PINS: usize = 8 * PINS_OF_A_ROW;

/// A version, and what its pages need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The version.
    pub snapshot: Snapshot,
    /// The first version of its segment: rows of earlier ones are not part of it. A segment begins with a branch, with a
    /// restore, and where the page size is set (C8).
    pub since: Version,
    /// Whether the segment stands on another.
    pub based: bool,
    /// Every page up to the page count was written, as in any database of SQLite up to 1 GiB: so what goes away with a cut is known.
    pub dense: bool,
    /// Where the segment was cut: versions that have fewer pages than the one before, each with its page count; both rise.
    /// One that a later and deeper cut makes superfluous is not there.
    pub cuts: Vec<(Version, PageCount)>,
}

/// A database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The newest version.
    pub head: Head,
    /// When it was made.
    pub time_ms: u64,
    /// When version 1 was made; before that, when the name or the lease was taken last.
    pub created_ms: u64,
    /// Its name.
    pub name: DatabaseName,
}

/// What versions take their pages from that they have not written themselves, if there is such a thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which database; it may have been removed.
    pub database: DatabaseId,
    /// The version.
    pub head: Head,
    /// Pages beyond it do not come from there.
    pub reach: PageCount,
    /// Segments below, at most: this one and what it stands on in turn.
    pub depth: u32,
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
    /// The version of the cluster in which it was dropped, or one shortly before; 0 where it was not.
    pub dropped: u64,
}

/// A version was dropped: rows of the changed pages of the next one are to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The dropped version. The changed pages of the next one are in its record, or in rows `Changed`.
    pub dropped: Version,
    /// How many of them were looked at, in their order.
    pub after: u32,
}

/// A database that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// When, by the wall clock of the server that did it.
    pub time_ms: u64,
    /// The version of the cluster in which it was done, or one shortly before.
    pub cluster: u64,
    /// What is left of it.
    pub left: Left,
}

/// What is left of a removed database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Everything may be.
    All,
    /// No version is kept for itself. The segments before this version were looked at since.
    Segments(Version),
    /// Nothing but the memory of its id, which no branch gets meanwhile (V4).
    Nothing,
}

/// How far a segment has got with pages of its own, in place of those of segments below (`flatten.rs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flattening {
    /// The segments that it gets the pages of, from the one that it stands on downwards; by database and first version.
    pub links: Vec<(DatabaseId, Version)>,
    /// What the last of them stood on.
    pub below: Option<(DatabaseId, Version)>,
    /// Which of their databases is gone through.
    pub at: u32,
    /// The last page of that which was looked at; 0 before the first.
    pub after: u32,
}

/// Pages written ahead of the version that will have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The version.
    pub version: Version,
    /// The server that writes them.
    pub server: ServerId,
    /// Which of that server's attempts it is, on whatever databases: so that it knows its own again.
    pub number: u64,
    /// Its rows are being deleted: no version will have them.
    pub doomed: bool,
}

/// A page server that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Rises all the time while it lives.
    pub counter: u64,
    /// For how long a lease of it may be trusted, in milliseconds; 0 before it serves.
    pub lease_ttl_ms: u64,
}

/// For whom the newest epoch of a lease was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The server that granted it, or has taken the session over since.
    pub server: ServerId,
    /// The session.
    pub session: SessionId,
    /// The number of the newest Hello of the session with which it was granted, or confirmed.
    pub hello: u64,
    /// The epoch.
    pub epoch: Epoch,
    /// For how long after the grant an earlier holder may trust the lease, in milliseconds.
    pub guard_ms: u64,
}

/// What the sessions of a server read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// Everything from here on.
    pub floor: Option<Version>,
    /// These, in their order.
    pub pins: Vec<Version>,
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
    /// As many zeros.
    Zeros(u32),
    /// The content.
    Raw(&'a [u8]),
    /// The content, compressed, with its length.
    Lz4(u32, &'a [u8]),
}

impl Head {
    /// A database to which nothing was ever committed.
    pub const EMPTY: Head = Head {
        snapshot: Snapshot::EMPTY,
        since: Version::ZERO,
        based: false,
        dense: true,
        cuts: Vec::new(),
    };

    /// Whether a row that a version of the segment wrote, in a layer, is part of this version.
    ///
    /// A cut hides what was written before it, and what was written ahead for its own version.
    pub fn shows(&self, page: PageNumber, written: Version, layer: i64) -> bool {
        written >= self.since
            && self.snapshot.page_count.has(page)
            && self.cut_of(page).is_none_or(|cut| match layer {
                OWN => written >= cut,
                _ => written > cut,
            })
    }

    /// Whether a page may come from what the segment stands on.
    pub fn shows_below(&self, page: PageNumber) -> bool {
        self.based && self.snapshot.page_count.has(page) && self.cut_of(page).is_none()
    }

    /// Pages beyond it do not come from what the segment stands on.
    pub fn lasting(&self) -> PageCount {
        let first = self.cuts.first().map(|(_, count)| *count);
        first.map_or(self.snapshot.page_count, |count| {
            count.min(self.snapshot.page_count)
        })
    }

    /// The last cut that a page was beyond.
    pub fn cut_of(&self, page: PageNumber) -> Option<Version> {
        let mut cuts = self.cuts.iter().rev();
        cuts.find(|(_, count)| !count.has(page))
            .map(|(version, _)| *version)
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_snapshot(out, &self.snapshot);
        out.extend(self.since.get().to_be_bytes());
        out.push(u8::from(self.based) | u8::from(self.dense) << 1);
        out.push(u8::try_from(self.cuts.len()).unwrap_or(u8::MAX));
        for (version, count) in &self.cuts {
            out.extend(version.get().to_be_bytes());
            out.extend(count.get().to_be_bytes());
        }
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
        for number in [self.time_ms, self.created_ms] {
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
            name: DatabaseName::try_from(std::str::from_utf8(fields.0).ok()?).ok()?,
        })
    }
}

impl Segment {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.database.as_bytes().to_vec();
        self.head.put(&mut out);
        out.extend(self.reach.get().to_be_bytes());
        out.extend(self.depth.to_be_bytes());
        out
    }

    /// The segment with this body; `Some(None)` where it stands on nothing.
    pub fn decode(body: &[u8]) -> Option<Option<Self>> {
        if body.is_empty() {
            return Some(None);
        }
        let mut fields = Fields(body);
        let segment = Self {
            database: fields.database()?,
            head: fields.head()?,
            reach: fields.page_count()?,
            depth: fields.u32()?,
        };
        fields.end(Some(segment))
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
        fields.end(origin)
    }
}

impl Past {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.commit.as_bytes().to_vec();
        out.extend(self.time_ms.to_be_bytes());
        out.extend(self.dropped.to_be_bytes());
        out
    }

    /// What is left with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let commit = CommitId::from_bytes(fields.take()?);
        let (time_ms, dropped) = (fields.u64()?, fields.u64()?);
        fields.end(Self {
            commit,
            time_ms,
            dropped,
        })
    }
}

impl Due {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.dropped.get().to_be_bytes().to_vec();
        out.extend(self.after.to_be_bytes());
        out
    }

    /// What is due with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let dropped = Version::new(fields.u64()?);
        let after = fields.u32()?;
        fields.end(Self { dropped, after })
    }
}

impl Removed {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [self.time_ms.to_be_bytes(), self.cluster.to_be_bytes()].concat();
        match self.left {
            Left::All => out.push(0),
            Left::Segments(next) => {
                out.push(1);
                out.extend(next.get().to_be_bytes());
            }
            Left::Nothing => out.push(2),
        }
        out
    }

    /// What is removed with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (time_ms, cluster) = (fields.u64()?, fields.u64()?);
        let left = match fields.take()? {
            [0] => Left::All,
            [1] => Left::Segments(Version::new(fields.u64()?)),
            [2] => Left::Nothing,
            _ => return None,
        };
        fields.end(Self {
            time_ms,
            cluster,
            left,
        })
    }
}

impl Flattening {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(9 + 24 * (self.links.len() + 1));
        out.extend(self.at.to_be_bytes());
        out.extend(self.after.to_be_bytes());
        out.push(u8::from(self.below.is_some()));
        for (database, first) in self.below.iter().chain(&self.links) {
            out.extend(database.as_bytes());
            out.extend(first.get().to_be_bytes());
        }
        out
    }

    /// How far it has got with this body; `Some(None)` where it has not begun.
    pub fn decode(body: &[u8]) -> Option<Option<Self>> {
        if body.is_empty() {
            return Some(None);
        }
        let mut fields = Fields(body);
        let (at, after) = (fields.u32()?, fields.u32()?);
        let [has_below @ 0..=1] = fields.take()? else {
            return None;
        };
        let mut links = Vec::new();
        while !fields.0.is_empty() {
            links.push((fields.database()?, Version::new(fields.u64()?)));
        }
        let below = match has_below {
            1 if links.is_empty() => return None,
            1 => Some(links.remove(0)),
            _ => None,
        };
        Some(Some(Self {
            links,
            below,
            at,
            after,
        }))
    }
}

impl Attempt {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.version.get().to_be_bytes().to_vec();
        out.extend(self.server);
        out.extend(self.number.to_be_bytes());
        out.push(u8::from(self.doomed));
        out
    }

    /// The attempt with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let version = Version::new(fields.u64()?);
        let server = fields.take()?;
        let number = fields.u64()?;
        let doomed = match fields.take()? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        fields.end(Self {
            version,
            server,
            number,
            doomed,
        })
    }
}

impl Server {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        [self.counter.to_be_bytes(), self.lease_ttl_ms.to_be_bytes()].concat()
    }

    /// The server with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (counter, lease_ttl_ms) = (fields.u64()?, fields.u64()?);
        fields.end(Self {
            counter,
            lease_ttl_ms,
        })
    }
}

impl Grant {
    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.server.to_vec();
        out.extend(self.session.as_bytes());
        out.extend(self.hello.to_be_bytes());
        out.extend(self.epoch.get().to_be_bytes());
        out.extend(self.guard_ms.to_be_bytes());
        out
    }

    /// The grant with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let (server, session) = (fields.take()?, SessionId::from_bytes(fields.take()?));
        let (hello, epoch) = (fields.u64()?, Epoch::new(fields.u64()?));
        let guard_ms = fields.u64()?;
        fields.end(Self {
            server,
            session,
            hello,
            epoch,
            guard_ms,
        })
    }
}

impl Protection {
    /// Row by row, the floor in the first one; none where nothing is protected.
    pub fn rows(&self) -> Vec<Self> {
        let mut rows: Vec<_> = self
            .pins
            .chunks(PINS_OF_A_ROW)
            .map(|pins| Self {
                floor: None,
                pins: pins.to_vec(),
            })
            .collect();
        if rows.is_empty() && self.floor.is_some() {
            rows.push(Self::default());
        }
        if let Some(first) = rows.first_mut() {
            first.floor = self.floor;
        }
        rows
    }

    /// Whatever either of them protects.
    pub fn with(&self, other: &Self) -> Self {
        let mut pins = [&self.pins[..], &other.pins].concat();
        pins.sort_unstable();
        pins.dedup();
        Self {
            floor: self.floor.into_iter().chain(other.floor).min(),
            pins,
        }
    }

    /// The body of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![u8::from(self.floor.is_some())];
        for version in self.floor.iter().chain(&self.pins) {
            out.extend(version.get().to_be_bytes());
        }
        out
    }

    /// The protection with this body.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let floor = match fields.take()? {
            [0] => None,
            [1] => Some(Version::new(fields.u64()?)),
            _ => return None,
        };
        let (pins, []) = fields.0.as_chunks::<8>() else {
            return None;
        };
        let pins = pins
            .iter()
            .map(|pin| Version::new(u64::from_be_bytes(*pin)));
        Some(Self {
            floor,
            pins: pins.collect(),
        })
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
                out.extend(encode_pages(pages));
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
        fields.end(Self {
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

/// The body of a row of pages.
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

/// A number in a row of its own.
pub fn decode_u64(body: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(body.try_into().ok()?))
}

impl<'a> PageBody<'a> {
    /// The page with this body.
    pub fn decode(body: &'a [u8]) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        let mut fields = Fields(rest);
        let page = match kind {
            1 => Self::Zeros(fields.page_size()?),
            2 => Self::Raw(std::mem::take(&mut fields.0)),
            3 => Self::Lz4(fields.page_size()?, std::mem::take(&mut fields.0)),
            _ => return None,
        };
        fields.end(page)
    }

    /// The content of the page; `None` where the compressed form is none.
    pub fn content(&self) -> Option<Bytes> {
        match *self {
            Self::Zeros(size) => Some(Bytes::from(vec![0; size as usize])),
            Self::Raw(content) => Some(Bytes::copy_from_slice(content)),
            Self::Lz4(size, block) => {
                let mut content = vec![0; size as usize];
                let length = lz4_flex::block::decompress_into(block, &mut content).ok()?;
                (length == content.len()).then(|| Bytes::from(content))
            }
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

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*part)
    }

    /// What was decoded, if nothing is left.
    fn end<T>(self, decoded: T) -> Option<T> {
        self.0.is_empty().then_some(decoded)
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
        let snapshot = self.snapshot()?;
        let since = Version::new(self.u64()?);
        let [flags @ 0..=3] = self.take()? else {
            return None;
        };
        let [cuts] = self.take()?;
        let cut = |_| Some((Version::new(self.u64()?), self.page_count()?));
        let cuts = (0..cuts).map(cut).collect::<Option<_>>()?;
        Some(Head {
            snapshot,
            since,
            based: flags & 1 != 0,
            dense: flags & 2 != 0,
            cuts,
        })
    }
}

#[cfg(test)]
mod tests;
