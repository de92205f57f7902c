//! The keys of everything in the cluster, under the directory prefix of the installation: packed by the tuple layer, so that the order of
//! bytes is the order of the parts. docs/foundationdb.md has the table of what each row is for.
//!
//! A change here is a new format: see `FORMAT` in `names.rs`.

use foundationdb::tuple::{self, Bytes, TuplePack, TupleUnpack};
use pagewire_proto::{DatabaseId, DatabaseName, PageNumber, TagName, Version};

/// The layer of a page row that its commit wrote in the transaction that made the version. Above all staged layers.
pub const OWN: i64 = 0;

/// Largest serial number of an attempt.
pub const MAX_SERIAL: u64 = 1 << 32;

/// The layer of the page rows that an attempt writes ahead: the later attempt above the earlier, all of them below [`OWN`].
pub fn layer_of(serial: u64) -> i64 {
    serial.min(MAX_SERIAL) as i64 - MAX_SERIAL as i64 - 1
}

/// The layer of the page rows that a segment has in place of those of the segments below it, at its first version: below whatever that version
/// wrote itself.
pub const FROM_BELOW: i64 = -(MAX_SERIAL as i64) - 2;

/// The attempt that wrote a layer; `None` for those of a commit itself, and from below.
pub fn serial_of(layer: i64) -> Option<u64> {
    u64::try_from(layer + MAX_SERIAL as i64 + 1)
        .ok()
        .filter(|_| layer < OWN)
}

/// A page server.
pub type ServerId = [u8; 16];

/// A key; the doc of each says what its row has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The version of the format: u32.
    Format,
    /// The incarnation: 16 bytes.
    Incarnation,
    /// A page server that began and has not ended: [`crate::values::Server`].
    Server(ServerId),
    /// Rises with each message for a server, which watches it: as [`Key::Sum`].
    Bell(ServerId),
    /// A message for a server (the first) about a database from another: no body.
    Mail(ServerId, Message, DatabaseId, ServerId),
    /// The server that may grant the lease of a database: 16 bytes.
    Claim(DatabaseId),
    /// For whom the newest epoch was made: [`crate::values::Grant`].
    Grant(DatabaseId),
    /// A name: the id of its database.
    Name(DatabaseName),
    /// The newest version of a database: [`crate::values::Database`]. A database without it was removed.
    Head(DatabaseId),
    /// The newest epoch that was granted: u64.
    Epoch(DatabaseId),
    /// A sum that transactions add to and none has to read: 8 bytes, little-endian, signed. See [`Sum`].
    Sum(DatabaseId, Sum),
    /// What versions from this one on stand on, up to the next such row: [`crate::values::Segment`], or no body.
    Segment(DatabaseId, Version),
    /// A segment (database, first version) stands on this version: no body.
    Child(DatabaseId, Version, DatabaseId, Version),
    /// What a branch was made from: [`crate::values::Origin`].
    Origin(DatabaseId),
    /// What the sessions of a server read: [`crate::values::Protection`]. The first of its rows has the floor; there are more, numbered
    /// from 1, where one has no room for all pins.
    Protect(DatabaseId, ServerId, u32),
    /// How a version that is kept was made: [`crate::values::Record`]. A version without it is not readable.
    Record(DatabaseId, Version),
    /// A chunk of the changed pages of a version, where the record has no room for them: u32 each.
    Changed(DatabaseId, Version, u32),
    /// What is left of the record of a version that is not kept: [`crate::values::Past`].
    Past(DatabaseId, Version),
    /// A version by its time, in milliseconds: no body. As long as there is a `Record` or a `Past`.
    Made(DatabaseId, u64, Version),
    /// A tag: its version, u64.
    Tag(DatabaseId, TagName),
    /// The same by version: no body.
    Tagged(DatabaseId, Version, TagName),
    /// A page as a version wrote it, in a layer ([`OWN`], [`layer_of`]): [`crate::values::PageBody`].
    Page(DatabaseId, PageNumber, Version, i64),
    /// Page rows that are written ahead, by serial number: [`crate::values::Attempt`]. As long as it is there they count for nothing.
    Attempt(DatabaseId, u64),
    /// The newest serial number of an attempt: u64.
    Serial(DatabaseId),
    /// A chunk of the pages that an attempt wrote: u32 each.
    Written(DatabaseId, u64, u32),
    /// A database that was removed: [`crate::values::Removed`].
    Removed(DatabaseId),
    /// A version was dropped, and rows that only it read may be left: [`crate::values::Due`].
    Due(DatabaseId),
    /// Page rows of this database may be left that no version reads: the key from which on they are still to be looked at. Whoever makes
    /// garbage writes an empty one without a look.
    Sweep(DatabaseId),
    /// A version has lost a reader that may have been the last one of its segment: no body.
    Unread(DatabaseId, Version),
    /// A segment (database, first version) that stands on so many others is to get pages of its own: [`crate::values::Flattening`], or no
    /// body. In the order of their depth, so that what is below comes first.
    Flatten(u32, DatabaseId, Version),
}

/// What a page server tells another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// It wants the claim.
    Wanted,
    /// It has handed the claim over.
    Granted,
}

/// What is summed up of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// Versions that have a `Record`.
    Versions,
    /// Page rows with content.
    Pages,
    /// Their bodies.
    Bytes,
}

const FORMAT: u16 = 1;
const INCARNATION: u16 = 2;
const SERVER: u16 = 3;
const BELL: u16 = 4;
const MAIL: u16 = 5;
const NAME: u16 = 10;
const HEAD: u16 = 11;
const EPOCH: u16 = 12;
const SUM: u16 = 13;
const SEGMENT: u16 = 14;
const CHILD: u16 = 15;
const ORIGIN: u16 = 16;
const PROTECT: u16 = 17;
const CLAIM: u16 = 18;
const GRANT: u16 = 19;
const RECORD: u16 = 20;
const CHANGED: u16 = 21;
const PAST: u16 = 22;
const MADE: u16 = 23;
const TAG: u16 = 24;
const TAGGED: u16 = 25;
const PAGE: u16 = 30;
const ATTEMPT: u16 = 40;
const SERIAL: u16 = 41;
const WRITTEN: u16 = 42;
const REMOVED: u16 = 50;
const DUE: u16 = 51;
const SWEEP: u16 = 52;
const UNREAD: u16 = 53;
const FLATTEN: u16 = 54;

/// All kinds of rows of one database that only its own versions need: they go with its removal.
pub const OF_A_DATABASE: [u16; 20] = [
    CLAIM, GRANT, HEAD, EPOCH, SUM, SEGMENT, CHILD, ORIGIN, PROTECT, RECORD, CHANGED, PAST, MADE,
    TAG, TAGGED, PAGE, SERIAL, WRITTEN, DUE, SWEEP,
];

/// Those among them that go although branches stand on it.
pub const OF_ITS_VERSIONS: [u16; 9] = [
    EPOCH, PROTECT, RECORD, CHANGED, PAST, MADE, TAG, TAGGED, DUE,
];

/// Keys from `begin` up to `end`, exclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub begin: Vec<u8>,
    /// The first beyond.
    pub end: Vec<u8>,
}

/// The prefix of the installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space(Vec<u8>);

fn id(database: &DatabaseId) -> &[u8] {
    database.as_bytes()
}

impl Space {
    /// Everything under a prefix.
    pub fn new(prefix: &[u8]) -> Self {
        Self(prefix.to_vec())
    }

    fn pack(&self, parts: &impl TuplePack) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() + 48);
        out.extend_from_slice(&self.0);
        tuple::pack_into(parts, &mut out);
        out
    }

    fn under(&self, parts: &impl TuplePack) -> Range {
        let begin = self.pack(parts);
        let end = [&begin[..], &[0xff]].concat();
        Range { begin, end }
    }

    /// The bytes of a key.
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        match key {
            Key::Format => self.pack(&(FORMAT,)),
            Key::Incarnation => self.pack(&(INCARNATION,)),
            Key::Server(server) => self.pack(&(SERVER, &server[..])),
            Key::Bell(server) => self.pack(&(BELL, &server[..])),
            Key::Mail(to, message, d, from) => {
                self.pack(&(MAIL, &to[..], *message as u16, id(d), &from[..]))
            }
            Key::Claim(d) => self.pack(&(CLAIM, id(d))),
            Key::Grant(d) => self.pack(&(GRANT, id(d))),
            Key::Name(name) => self.pack(&(NAME, name.as_str())),
            Key::Head(d) => self.pack(&(HEAD, id(d))),
            Key::Epoch(d) => self.pack(&(EPOCH, id(d))),
            Key::Sum(d, sum) => self.pack(&(SUM, id(d), *sum as u16)),
            Key::Segment(d, first) => self.pack(&(SEGMENT, id(d), first.get())),
            Key::Child(d, version, child, first) => {
                self.pack(&(CHILD, id(d), version.get(), id(child), first.get()))
            }
            Key::Origin(d) => self.pack(&(ORIGIN, id(d))),
            Key::Protect(d, server, 0) => self.pack(&(PROTECT, id(d), &server[..])),
            Key::Protect(d, server, row) => self.pack(&(PROTECT, id(d), &server[..], *row)),
            Key::Record(d, version) => self.pack(&(RECORD, id(d), version.get())),
            Key::Changed(d, version, chunk) => self.pack(&(CHANGED, id(d), version.get(), *chunk)),
            Key::Past(d, version) => self.pack(&(PAST, id(d), version.get())),
            Key::Made(d, time_ms, version) => self.pack(&(MADE, id(d), *time_ms, version.get())),
            Key::Tag(d, tag) => self.pack(&(TAG, id(d), tag.as_str())),
            Key::Tagged(d, version, tag) => {
                self.pack(&(TAGGED, id(d), version.get(), tag.as_str()))
            }
            Key::Page(d, page, version, layer) => {
                self.pack(&(PAGE, id(d), page.get(), version.get(), *layer))
            }
            Key::Attempt(d, serial) => self.pack(&(ATTEMPT, id(d), *serial)),
            Key::Serial(d) => self.pack(&(SERIAL, id(d))),
            Key::Written(d, serial, chunk) => self.pack(&(WRITTEN, id(d), *serial, *chunk)),
            Key::Removed(d) => self.pack(&(REMOVED, id(d))),
            Key::Due(d) => self.pack(&(DUE, id(d))),
            Key::Sweep(d) => self.pack(&(SWEEP, id(d))),
            Key::Unread(d, version) => self.pack(&(UNREAD, id(d), version.get())),
            Key::Flatten(depth, d, first) => self.pack(&(FLATTEN, *depth, id(d), first.get())),
        }
    }

    /// The key with these bytes, if there is one.
    pub fn decode(&self, bytes: &[u8]) -> Option<Key> {
        let mut parts = Parts(bytes.strip_prefix(&self.0[..])?);
        let key = match u16::try_from(parts.u64()?).ok()? {
            FORMAT => Key::Format,
            INCARNATION => Key::Incarnation,
            SERVER => Key::Server(parts.id()?),
            BELL => Key::Bell(parts.id()?),
            MAIL => Key::Mail(
                parts.id()?,
                match parts.u64()? {
                    0 => Message::Wanted,
                    1 => Message::Granted,
                    _ => return None,
                },
                parts.database()?,
                parts.id()?,
            ),
            CLAIM => Key::Claim(parts.database()?),
            GRANT => Key::Grant(parts.database()?),
            NAME => Key::Name(DatabaseName::try_from(&*parts.text()?).ok()?),
            HEAD => Key::Head(parts.database()?),
            EPOCH => Key::Epoch(parts.database()?),
            SUM => Key::Sum(
                parts.database()?,
                match parts.u64()? {
                    0 => Sum::Versions,
                    1 => Sum::Pages,
                    2 => Sum::Bytes,
                    _ => return None,
                },
            ),
            SEGMENT => Key::Segment(parts.database()?, parts.version()?),
            CHILD => Key::Child(
                parts.database()?,
                parts.version()?,
                parts.database()?,
                parts.version()?,
            ),
            ORIGIN => Key::Origin(parts.database()?),
            PROTECT => Key::Protect(
                parts.database()?,
                parts.id()?,
                match parts.0 {
                    [] => 0,
                    _ => parts.u32().filter(|row| *row > 0)?,
                },
            ),
            RECORD => Key::Record(parts.database()?, parts.version()?),
            CHANGED => Key::Changed(parts.database()?, parts.version()?, parts.u32()?),
            PAST => Key::Past(parts.database()?, parts.version()?),
            MADE => Key::Made(parts.database()?, parts.u64()?, parts.version()?),
            TAG => Key::Tag(parts.database()?, parts.tag()?),
            TAGGED => Key::Tagged(parts.database()?, parts.version()?, parts.tag()?),
            PAGE => Key::Page(
                parts.database()?,
                PageNumber::try_from(parts.u32()?).ok()?,
                parts.version()?,
                parts.i64()?,
            ),
            ATTEMPT => Key::Attempt(parts.database()?, parts.u64()?),
            SERIAL => Key::Serial(parts.database()?),
            WRITTEN => Key::Written(parts.database()?, parts.u64()?, parts.u32()?),
            REMOVED => Key::Removed(parts.database()?),
            DUE => Key::Due(parts.database()?),
            SWEEP => Key::Sweep(parts.database()?),
            UNREAD => Key::Unread(parts.database()?, parts.version()?),
            FLATTEN => Key::Flatten(parts.u32()?, parts.database()?, parts.version()?),
            _ => return None,
        };
        parts.0.is_empty().then_some(key)
    }

    /// The names that begin with a text, after another one. Both may be empty.
    pub fn names(&self, prefix: &str, after: &str) -> Range {
        // Without the zero byte that ends a text.
        let open = |text: &str| {
            let mut key = self.pack(&(NAME, text));
            key.pop();
            key
        };
        let under = open(prefix);
        let begin = match after >= prefix && !after.is_empty() {
            true => [self.pack(&(NAME, after)), vec![0]].concat(),
            false => under.clone(),
        };
        let end = [under, vec![0xff]].concat();
        Range { begin, end }
    }

    /// All servers.
    pub fn servers(&self) -> Range {
        self.under(&(SERVER,))
    }

    /// The messages for a server.
    pub fn mail(&self, to: ServerId) -> Range {
        self.under(&(MAIL, &to[..]))
    }

    /// The bells of all servers, and all messages.
    pub fn post(&self) -> Range {
        Range {
            begin: self.under(&(BELL,)).begin,
            end: self.under(&(MAIL,)).end,
        }
    }

    /// The heads of all databases.
    pub fn heads(&self) -> Range {
        self.under(&(HEAD,))
    }

    /// All removed databases.
    pub fn removed(&self) -> Range {
        self.under(&(REMOVED,))
    }

    /// All versions that have lost a reader, and are to be looked at.
    pub fn unread(&self) -> Range {
        self.under(&(UNREAD,))
    }

    /// All segments that stand on too many others.
    pub fn flatten(&self) -> Range {
        self.under(&(FLATTEN,))
    }

    /// Rows of one kind of a database.
    pub fn of(&self, kind: u16, database: DatabaseId) -> Range {
        self.under(&(kind, id(&database)))
    }

    /// Its segments.
    pub fn segments(&self, database: DatabaseId) -> Range {
        self.of(SEGMENT, database)
    }

    /// What stands on its versions.
    pub fn children(&self, database: DatabaseId) -> Range {
        self.of(CHILD, database)
    }

    /// What stands on one of them.
    pub fn children_of(&self, database: DatabaseId, version: Version) -> Range {
        self.under(&(CHILD, id(&database), version.get()))
    }

    /// What a server protects of it, from one of the rows on.
    pub fn protections_of(&self, database: DatabaseId, server: ServerId, from: u32) -> Range {
        Range {
            begin: self.encode(&Key::Protect(database, server, from)),
            end: self.under(&(PROTECT, id(&database), &server[..])).end,
        }
    }

    /// What servers protect of it.
    pub fn protections(&self, database: DatabaseId) -> Range {
        self.of(PROTECT, database)
    }

    /// Its records.
    pub fn records(&self, database: DatabaseId) -> Range {
        self.of(RECORD, database)
    }

    /// Old records of it.
    pub fn past(&self, database: DatabaseId) -> Range {
        self.of(PAST, database)
    }

    /// The changed pages of a version.
    pub fn changed(&self, database: DatabaseId, version: Version) -> Range {
        self.under(&(CHANGED, id(&database), version.get()))
    }

    /// Versions made up to a time, inclusive.
    pub fn made_until(&self, database: DatabaseId, time_ms: u64) -> Range {
        Range {
            begin: self.of(MADE, database).begin,
            end: self.under(&(MADE, id(&database), time_ms)).end,
        }
    }

    /// Its tags.
    pub fn tags(&self, database: DatabaseId) -> Range {
        self.of(TAG, database)
    }

    /// Its tags by version.
    pub fn tagged(&self, database: DatabaseId) -> Range {
        self.of(TAGGED, database)
    }

    /// The tags of a version.
    pub fn tagged_of(&self, database: DatabaseId, version: Version) -> Range {
        self.under(&(TAGGED, id(&database), version.get()))
    }

    /// Its page rows.
    pub fn pages(&self, database: DatabaseId) -> Range {
        self.of(PAGE, database)
    }

    /// Its page rows from a page on.
    pub fn pages_from(&self, database: DatabaseId, page: u32) -> Range {
        Range {
            begin: self.pack(&(PAGE, id(&database), page)),
            end: self.pages(database).end,
        }
    }

    /// The rows of a page of versions from one to another, inclusive.
    pub fn page(
        &self,
        database: DatabaseId,
        page: PageNumber,
        from: Version,
        to: Version,
    ) -> Range {
        Range {
            begin: self.pack(&(PAGE, id(&database), page.get(), from.get())),
            end: self.under(&(PAGE, id(&database), page.get(), to.get())).end,
        }
    }

    /// Its attempts.
    pub fn attempts(&self, database: DatabaseId) -> Range {
        self.of(ATTEMPT, database)
    }

    /// The pages of an attempt.
    pub fn written(&self, database: DatabaseId, serial: u64) -> Range {
        self.under(&(WRITTEN, id(&database), serial))
    }
}

impl Range {
    /// Only keys after one.
    pub fn after(mut self, key: &[u8]) -> Self {
        self.begin = [key, &[0]].concat();
        self
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Format => f.write_str("the format of the store"),
            Self::Incarnation => f.write_str("the incarnation of the store"),
            Self::Server(_) | Self::Bell(_) | Self::Mail(..) => f.write_str("a page server"),
            Self::Claim(d) => write!(f, "the claim of database {d}"),
            Self::Grant(d) => write!(f, "the newest grant of database {d}"),
            Self::Name(name) => write!(f, "the name {name}"),
            Self::Head(d) => write!(f, "the head of database {d}"),
            Self::Epoch(d) => write!(f, "the epoch of database {d}"),
            Self::Sum(d, _) => write!(f, "the size of database {d}"),
            Self::Segment(d, first) => {
                write!(f, "the segment of database {d} from version {first} on")
            }
            Self::Child(d, version, ..) => {
                write!(f, "what stands on version {version} of database {d}")
            }
            Self::Origin(d) => write!(f, "the origin of database {d}"),
            Self::Protect(d, ..) => write!(f, "what a server reads of database {d}"),
            Self::Record(d, version) => {
                write!(f, "the record of version {version} of database {d}")
            }
            Self::Changed(d, version, _) => {
                write!(f, "the changed pages of version {version} of database {d}")
            }
            Self::Past(d, version) => {
                write!(f, "the old record of version {version} of database {d}")
            }
            Self::Made(d, _, version) => write!(f, "the time of version {version} of database {d}"),
            Self::Tag(d, tag) | Self::Tagged(d, _, tag) => write!(f, "tag {tag} of database {d}"),
            Self::Page(d, page, version, _) => {
                write!(f, "page {page} of database {d} at version {version}")
            }
            Self::Attempt(d, serial) | Self::Written(d, serial, _) => {
                write!(f, "attempt {serial} on database {d}")
            }
            Self::Serial(d) => write!(f, "the attempts on database {d}"),
            Self::Removed(d) => write!(f, "the removed database {d}"),
            Self::Due(d) | Self::Sweep(d) | Self::Unread(d, _) => {
                write!(f, "the garbage of database {d}")
            }
            Self::Flatten(_, d, first) => {
                write!(f, "the depth of database {d} from version {first} on")
            }
        }
    }
}

/// What is left of a key. Its parts are taken one by one as what they have to be.
///
/// Bug: a key of some thousand bytes ended the process. Cause: it was unpacked as whatever it had, and tuples within tuples are unpacked by a call
/// each, until the stack had no room. Fix: only numbers, bytes and texts are unpacked.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn next<T: TupleUnpack<'a>>(&mut self) -> Option<T> {
        /// The code of 0; the codes about it say how many bytes a number has.
        const ZERO: u8 = 0x14;
        let length = match self.0.first()? {
            // Bytes and texts end with a zero; those that they have are followed by 0xff.
            1 | 2 => {
                let is_end = |at: &usize| self.0[*at] == 0 && self.0.get(at + 1) != Some(&0xff);
                (1..self.0.len()).find(is_end)? + 1
            }
            code if code.abs_diff(ZERO) <= 8 => usize::from(code.abs_diff(ZERO)) + 1,
            _ => return None,
        };
        let (part, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        tuple::unpack(part).ok()
    }

    fn i64(&mut self) -> Option<i64> {
        self.next()
    }

    fn u64(&mut self) -> Option<u64> {
        self.i64().and_then(|number| u64::try_from(number).ok())
    }

    fn u32(&mut self) -> Option<u32> {
        self.u64().and_then(|number| u32::try_from(number).ok())
    }

    fn version(&mut self) -> Option<Version> {
        self.u64().map(Version::new)
    }

    fn id(&mut self) -> Option<[u8; 16]> {
        self.next::<Bytes<'_>>()?.0.as_ref().try_into().ok()
    }

    fn database(&mut self) -> Option<DatabaseId> {
        self.id().map(DatabaseId::from_bytes)
    }

    fn text(&mut self) -> Option<String> {
        self.next()
    }

    fn tag(&mut self) -> Option<TagName> {
        TagName::try_from(&*self.text()?).ok()
    }
}

#[cfg(test)]
mod tests;
