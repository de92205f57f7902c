//! The keys of everything on disk. One ordered space: a tag byte, then the parts of the key, numbers big-endian, so that
//! the order of bytes is the order of the parts.
//!
//! A change here is a new format: see `FORMAT` in `engine.rs`.

use pagewire_proto::{DatabaseId, DatabaseName, PageNumber, TagName, Version};

/// A key; the doc of each says what its row has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The version of the format: u32.
    Format,
    /// The incarnation: 16 bytes.
    Incarnation,
    /// How often the store was opened, the upper half of every epoch: u32.
    Generation,
    /// Which log goes with the rows: u64 (`log.rs`).
    Run,
    /// The lease time that was begun and not ended, in milliseconds: u64; 0 after a clean end.
    Service,
    /// A name: the id of its database.
    Name(DatabaseName),
    /// The newest version of a database: [`crate::values::Database`]. A database without it was removed.
    Head(DatabaseId),
    /// What the pages of a segment of a database, by its first version, take: [`crate::values::Usage`]. Stays for as long as there are
    /// any, and so tells of which segment a row is also when nobody reads that any more.
    Usage(DatabaseId, Version),
    /// What versions from this one on stand on, up to the next such row: [`crate::values::Segment`].
    Segment(DatabaseId, Version),
    /// A segment (database, first version) stands on this version: no body.
    Child(DatabaseId, Version, DatabaseId, Version),
    /// What a branch was made from: [`crate::values::Origin`].
    Origin(DatabaseId),
    /// How a version that is kept was made: [`crate::values::Record`]. A version without it is not readable.
    Record(DatabaseId, Version),
    /// A chunk of the changed pages of a version, where the record has no room for them: u32 each.
    Changed(DatabaseId, Version, u32),
    /// What is left of the record of a version that is not kept: [`crate::values::Past`].
    Past(DatabaseId, Version),
    /// A tag: its version, u64.
    Tag(DatabaseId, TagName),
    /// The same by version: no body.
    Tagged(DatabaseId, Version, TagName),
    /// A page as a version wrote it: [`crate::values::PageBody`].
    Page(DatabaseId, PageNumber, Version),
    /// A staging that no commit has named yet: the id of its database. Left by the dead, its pages are dropped.
    Staging(u64),
    /// A page of a staging, by the serial number of the staging: as in `Page`. Stays after the commit, which points to it.
    Staged(u64, PageNumber),
    /// A removed database of which rows may be left.
    Removed(DatabaseId),
    /// A version was dropped, and rows that only it read may be left: [`crate::values::Due`].
    Due(DatabaseId),
    /// Rows of pages of this database may be left that no version reads.
    Sweep(DatabaseId),
    /// A segment stands on too many others.
    Flatten(DatabaseId, Version),
}

impl Key {
    /// The bytes of the key.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        match self {
            Self::Format => out.push(0x01),
            Self::Incarnation => out.push(0x02),
            Self::Generation => out.push(0x03),
            Self::Run => out.push(0x05),
            Self::Service => out.push(0x04),
            Self::Name(name) => {
                out.push(0x10);
                out.extend(name.as_str().as_bytes());
            }
            Self::Head(database) => {
                out.push(0x11);
                out.extend(database.as_bytes());
            }
            Self::Usage(database, first) => {
                out.push(0x12);
                out.extend(database.as_bytes());
                out.extend(first.get().to_be_bytes());
            }
            Self::Segment(database, first) => {
                out.push(0x13);
                out.extend(database.as_bytes());
                out.extend(first.get().to_be_bytes());
            }
            Self::Child(database, version, child, first) => {
                out.push(0x14);
                out.extend(database.as_bytes());
                out.extend(version.get().to_be_bytes());
                out.extend(child.as_bytes());
                out.extend(first.get().to_be_bytes());
            }
            Self::Origin(database) => {
                out.push(0x15);
                out.extend(database.as_bytes());
            }
            Self::Record(database, version) => {
                out.push(0x20);
                out.extend(database.as_bytes());
                out.extend(version.get().to_be_bytes());
            }
            Self::Changed(database, version, chunk) => {
                out.push(0x21);
                out.extend(database.as_bytes());
                out.extend(version.get().to_be_bytes());
                out.extend(chunk.to_be_bytes());
            }
            Self::Past(database, version) => {
                out.push(0x22);
                out.extend(database.as_bytes());
                out.extend(version.get().to_be_bytes());
            }
            Self::Tag(database, tag) => {
                out.push(0x23);
                out.extend(database.as_bytes());
                out.extend(tag.as_str().as_bytes());
            }
            Self::Tagged(database, version, tag) => {
                out.push(0x24);
                out.extend(database.as_bytes());
                out.extend(version.get().to_be_bytes());
                out.extend(tag.as_str().as_bytes());
            }
            Self::Page(database, page, version) => {
                out.push(0x30);
                out.extend(database.as_bytes());
                out.extend(page.get().to_be_bytes());
                out.extend(version.get().to_be_bytes());
            }
            Self::Staging(serial) => {
                out.push(0x40);
                out.extend(serial.to_be_bytes());
            }
            Self::Staged(serial, page) => {
                out.push(0x41);
                out.extend(serial.to_be_bytes());
                out.extend(page.get().to_be_bytes());
            }
            Self::Removed(database) => {
                out.push(0x50);
                out.extend(database.as_bytes());
            }
            Self::Due(database) => {
                out.push(0x51);
                out.extend(database.as_bytes());
            }
            Self::Sweep(database) => {
                out.push(0x52);
                out.extend(database.as_bytes());
            }
            Self::Flatten(database, first) => {
                out.push(0x53);
                out.extend(database.as_bytes());
                out.extend(first.get().to_be_bytes());
            }
        }
        out
    }

    /// The key with these bytes, if there is one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        let mut parts = Parts(rest);
        let key = match tag {
            0x01 => Self::Format,
            0x02 => Self::Incarnation,
            0x03 => Self::Generation,
            0x05 => Self::Run,
            0x04 => Self::Service,
            0x10 => {
                let name = std::str::from_utf8(parts.rest()).ok()?;
                Self::Name(DatabaseName::try_from(name).ok()?)
            }
            0x11 => Self::Head(parts.database()?),
            0x12 => Self::Usage(parts.database()?, parts.version()?),
            0x13 => Self::Segment(parts.database()?, parts.version()?),
            0x14 => Self::Child(
                parts.database()?,
                parts.version()?,
                parts.database()?,
                parts.version()?,
            ),
            0x15 => Self::Origin(parts.database()?),
            0x20 => Self::Record(parts.database()?, parts.version()?),
            0x21 => Self::Changed(parts.database()?, parts.version()?, parts.u32()?),
            0x22 => Self::Past(parts.database()?, parts.version()?),
            0x23 => Self::Tag(parts.database()?, parts.tag()?),
            0x24 => Self::Tagged(parts.database()?, parts.version()?, parts.tag()?),
            0x30 => Self::Page(parts.database()?, parts.page()?, parts.version()?),
            0x40 => Self::Staging(parts.u64()?),
            0x41 => Self::Staged(parts.u64()?, parts.page()?),
            0x50 => Self::Removed(parts.database()?),
            0x51 => Self::Due(parts.database()?),
            0x52 => Self::Sweep(parts.database()?),
            0x53 => Self::Flatten(parts.database()?, parts.version()?),
            _ => return None,
        };
        parts.0.is_empty().then_some(key)
    }

    /// What all names have that begin with a text.
    pub fn names(prefix: &str) -> Vec<u8> {
        [&[0x10], prefix.as_bytes()].concat()
    }

    /// What all keys of live stagings begin with.
    pub fn stagings() -> Vec<u8> {
        vec![0x40]
    }

    /// What all pages of a staging begin with.
    pub fn staged(serial: u64) -> Vec<u8> {
        [&[0x41], &serial.to_be_bytes()[..]].concat()
    }

    /// What all keys begin with that say that something is to be done: removed, due, sweep, flatten.
    pub fn to_do() -> [Vec<u8>; 4] {
        [vec![0x50], vec![0x51], vec![0x52], vec![0x53]]
    }

    /// What the heads of all databases begin with.
    pub fn heads() -> Vec<u8> {
        vec![0x11]
    }

    /// What the pages of a database begin with.
    pub fn pages_of(database: DatabaseId) -> Vec<u8> {
        of(0x30, database)
    }

    /// What the sizes of the segments of a database begin with.
    pub fn usages_of(database: DatabaseId) -> Vec<u8> {
        of(0x12, database)
    }

    /// What the segments of a database begin with.
    pub fn segments_of(database: DatabaseId) -> Vec<u8> {
        of(0x13, database)
    }

    /// What the rows begin with that say what stands on a database.
    pub fn children_of(database: DatabaseId) -> Vec<u8> {
        of(0x14, database)
    }

    /// What the records of a database begin with.
    pub fn records_of(database: DatabaseId) -> Vec<u8> {
        of(0x20, database)
    }

    /// What the chunks of changed pages of a version begin with.
    pub fn changed_of(database: DatabaseId, version: Version) -> Vec<u8> {
        [of(0x21, database), version.get().to_be_bytes().to_vec()].concat()
    }

    /// What is left of dropped records of a database begins with.
    pub fn past_of(database: DatabaseId) -> Vec<u8> {
        of(0x22, database)
    }

    /// What the tags of a database begin with.
    pub fn tags_of(database: DatabaseId) -> Vec<u8> {
        of(0x23, database)
    }

    /// What the tags of a database by version begin with.
    pub fn tagged_of(database: DatabaseId) -> Vec<u8> {
        of(0x24, database)
    }

    /// What the tags of a version begin with.
    pub fn tagged(database: DatabaseId, version: Version) -> Vec<u8> {
        [of(0x24, database), version.get().to_be_bytes().to_vec()].concat()
    }

    /// What everything begins with that only the database itself reads, and that goes with its name.
    pub fn history_of(database: DatabaseId) -> [Vec<u8>; 7] {
        [0x15, 0x20, 0x21, 0x22, 0x23, 0x24, 0x51].map(|tag| of(tag, database))
    }
}

fn of(tag: u8, database: DatabaseId) -> Vec<u8> {
    [&[tag], &database.as_bytes()[..]].concat()
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Format => f.write_str("the format of the store"),
            Self::Incarnation => f.write_str("the incarnation of the store"),
            Self::Generation => f.write_str("the generation of the store"),
            Self::Run => f.write_str("the run of the log"),
            Self::Service => f.write_str("the lease time of the store"),
            Self::Name(name) => write!(f, "the name {name}"),
            Self::Head(database) => write!(f, "the head of database {database}"),
            Self::Usage(database, first) => write!(
                f,
                "the size of the segment of database {database} from version {first} on"
            ),
            Self::Segment(database, first) | Self::Flatten(database, first) => {
                write!(
                    f,
                    "the segment of database {database} from version {first} on"
                )
            }
            Self::Child(database, version, ..) => {
                write!(f, "what stands on version {version} of database {database}")
            }
            Self::Origin(database) => write!(f, "the origin of database {database}"),
            Self::Past(database, version) => {
                write!(
                    f,
                    "the old record of version {version} of database {database}"
                )
            }
            Self::Tag(database, tag) | Self::Tagged(database, _, tag) => {
                write!(f, "tag {tag} of database {database}")
            }
            Self::Due(database) | Self::Sweep(database) => {
                write!(f, "the garbage of database {database}")
            }
            Self::Record(database, version) => {
                write!(f, "the record of version {version} of database {database}")
            }
            Self::Changed(database, version, _) => write!(
                f,
                "the changed pages of version {version} of database {database}"
            ),
            Self::Page(database, page, version) => {
                write!(f, "page {page} of database {database} at version {version}")
            }
            Self::Staging(serial) => write!(f, "staging {serial}"),
            Self::Staged(serial, page) => write!(f, "page {page} of staging {serial}"),
            Self::Removed(database) => write!(f, "the removed database {database}"),
        }
    }
}

struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

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

    fn database(&mut self) -> Option<DatabaseId> {
        self.take().map(DatabaseId::from_bytes)
    }

    fn version(&mut self) -> Option<Version> {
        self.u64().map(Version::new)
    }

    fn tag(&mut self) -> Option<TagName> {
        TagName::try_from(std::str::from_utf8(self.rest()).ok()?).ok()
    }

    fn page(&mut self) -> Option<PageNumber> {
        PageNumber::try_from(self.u32()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn database() -> impl Strategy<Value = DatabaseId> {
        any::<[u8; 16]>().prop_map(DatabaseId::from_bytes)
    }

    fn version() -> impl Strategy<Value = Version> {
        any::<u64>().prop_map(Version::new)
    }

    fn page() -> impl Strategy<Value = PageNumber> {
        (1..=PageNumber::MAX).prop_map(|number| PageNumber::try_from(number).unwrap())
    }

    fn name() -> impl Strategy<Value = DatabaseName> {
        "[a-zé]{1,20}(/[a-z0-9.]{3,9}x)?".prop_map(|name| DatabaseName::try_from(&*name).unwrap())
    }

    fn tag() -> impl Strategy<Value = TagName> {
        "[a-zé]{1,40}".prop_map(|tag| TagName::try_from(&*tag).unwrap())
    }

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![
            Just(Key::Format),
            Just(Key::Incarnation),
            Just(Key::Generation),
            Just(Key::Run),
            Just(Key::Service),
            name().prop_map(Key::Name),
            database().prop_map(Key::Head),
            (database(), version()).prop_map(|(d, v)| Key::Record(d, v)),
            (database(), version(), any::<u32>()).prop_map(|(d, v, c)| Key::Changed(d, v, c)),
            (database(), page(), version()).prop_map(|(d, p, v)| Key::Page(d, p, v)),
            (database(), version()).prop_map(|(d, v)| Key::Usage(d, v)),
            (database(), version()).prop_map(|(d, v)| Key::Segment(d, v)),
            (database(), version(), database(), version())
                .prop_map(|(d, v, c, f)| Key::Child(d, v, c, f)),
            database().prop_map(Key::Origin),
            (database(), version()).prop_map(|(d, v)| Key::Past(d, v)),
            (database(), tag()).prop_map(|(d, t)| Key::Tag(d, t)),
            (database(), version(), tag()).prop_map(|(d, v, t)| Key::Tagged(d, v, t)),
            database().prop_map(Key::Due),
            database().prop_map(Key::Sweep),
            (database(), version()).prop_map(|(d, v)| Key::Flatten(d, v)),
            any::<u64>().prop_map(Key::Staging),
            (any::<u64>(), page()).prop_map(|(s, p)| Key::Staged(s, p)),
            database().prop_map(Key::Removed),
        ]
    }

    proptest! {
        #[test]
        fn every_key_comes_back(key in key()) {
            let bytes = key.encode();
            prop_assert!(bytes.len() <= 511, "longer than the engine allows");
            prop_assert_eq!(Key::decode(&bytes), Some(key));
        }

        #[test]
        fn other_bytes_are_no_key_or_encode_to_themselves(bytes in any::<Vec<u8>>()) {
            if let Some(key) = Key::decode(&bytes) {
                prop_assert_eq!(key.encode(), bytes);
            }
        }

        #[test]
        fn pages_are_in_the_order_of_number_and_version(
            d in database(), a in (page(), version()), b in (page(), version())
        ) {
            let (left, right) = (Key::Page(d, a.0, a.1).encode(), Key::Page(d, b.0, b.1).encode());
            prop_assert_eq!(a.cmp(&b), left.cmp(&right));
        }

        #[test]
        fn names_are_in_byte_order(a in name(), b in name()) {
            let (left, right) = (Key::Name(a.clone()).encode(), Key::Name(b.clone()).encode());
            prop_assert_eq!(a.as_str().cmp(b.as_str()), left.cmp(&right));
        }

        #[test]
        fn prefixes_hold_what_they_say(d in database(), v in version(), p in page(), s in any::<u64>()) {
            let tag = TagName::try_from("t").unwrap();
            let begins = |key: Key, prefix: Vec<u8>| key.encode().starts_with(&prefix);
            prop_assert!(begins(Key::Page(d, p, v), Key::pages_of(d)));
            prop_assert!(begins(Key::Segment(d, v), Key::segments_of(d)));
            prop_assert!(begins(Key::Child(d, v, d, v), Key::children_of(d)));
            prop_assert!(begins(Key::Record(d, v), Key::records_of(d)));
            prop_assert!(begins(Key::Changed(d, v, 7), Key::changed_of(d, v)));
            prop_assert!(begins(Key::Past(d, v), Key::past_of(d)));
            prop_assert!(begins(Key::Tag(d, tag.clone()), Key::tags_of(d)));
            prop_assert!(begins(Key::Tagged(d, v, tag.clone()), Key::tagged_of(d)));
            prop_assert!(begins(Key::Tagged(d, v, tag.clone()), Key::tagged(d, v)));
            prop_assert!(begins(Key::Head(d), Key::heads()));
            let history = [
                Key::Origin(d), Key::Record(d, v), Key::Changed(d, v, 7), Key::Past(d, v),
                Key::Tag(d, tag.clone()), Key::Tagged(d, v, tag), Key::Due(d),
            ];
            for (key, prefix) in history.into_iter().zip(Key::history_of(d)) {
                prop_assert!(begins(key, prefix));
            }
            let to_do = [Key::Removed(d), Key::Due(d), Key::Sweep(d), Key::Flatten(d, v)];
            for (key, prefix) in to_do.into_iter().zip(Key::to_do()) {
                prop_assert!(begins(key, prefix));
            }
            prop_assert!(Key::Staged(s, p).encode().starts_with(&Key::staged(s)));
            prop_assert!(Key::Staging(s).encode().starts_with(&Key::stagings()));
        }
    }

    /// A store written today has to be readable tomorrow.
    #[test]
    fn the_bytes_are_pinned() {
        let database = DatabaseId::from_bytes(*b"0123456789abcdef");
        let page = PageNumber::try_from(0x0102_0304).unwrap();
        let key = Key::Page(database, page, Version::new(5));
        let bytes = b"\x300123456789abcdef\x01\x02\x03\x04\0\0\0\0\0\0\0\x05";
        assert_eq!(key.encode(), bytes);
        let name = DatabaseName::try_from("a/b").unwrap();
        assert_eq!(Key::Name(name).encode(), b"\x10a/b");
    }
}
