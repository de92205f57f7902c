//! Moments, tags and what is known of old versions.

use super::{Invalid, Snapshot, Version};
use crate::limits::MAX_TAG_BYTES;
use crate::pb;

/// The name of a version.
///
/// 1 to 128 bytes without control characters. Never taken for a version number or a time: not only digits, not ending in
/// ` ago`, and if it begins with a digit it has no ':'.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagName(String);

impl TagName {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for TagName {
    type Error = Invalid;

    fn try_from(tag: &str) -> Result<Self, Invalid> {
        let bad = |problem: &str| Err(Invalid::new("tag", problem.to_owned()));
        if tag.is_empty() {
            return bad("is empty");
        }
        if tag.len() > MAX_TAG_BYTES {
            return Err(Invalid::new(
                "tag",
                format!(
                    "has {} bytes, at most {MAX_TAG_BYTES} are allowed",
                    tag.len()
                ),
            ));
        }
        if tag.chars().any(char::is_control) {
            return bad("has a control character");
        }
        if tag.bytes().all(|byte| byte.is_ascii_digit()) {
            return bad("has only digits, which would be a version number");
        }
        if tag.ends_with(" ago") {
            return bad("ends in ' ago', which would be a time");
        }
        if tag.starts_with(|first: char| first.is_ascii_digit()) && tag.contains(':') {
            return bad("begins with a digit and has a ':', which would be a time");
        }
        Ok(Self(tag.to_owned()))
    }
}

impl std::fmt::Display for TagName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for TagName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A time by the clock of the server, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixMillis(pub i64);

/// A moment in the history of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This version.
    Version(Version),
    /// The newest version made at or before this time.
    Time(UnixMillis),
    /// The same, as many milliseconds before now by the clock of the server.
    Age(u64),
    /// The version that has this tag.
    Tag(TagName),
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Moment::Version(version) => write!(f, "version {version}"),
            Moment::Time(time) => write!(f, "time {} ms since 1970", time.0),
            Moment::Age(age) => write!(f, "{age} ms ago"),
            Moment::Tag(tag) => write!(f, "tag {tag}"),
        }
    }
}

impl From<Moment> for pb::Moment {
    fn from(moment: Moment) -> Self {
        use pb::moment::At;
        let at = match moment {
            Moment::Version(version) => At::Version(version.get()),
            Moment::Time(time) => At::TimeUnixMs(time.0),
            Moment::Age(age) => At::AgeMs(age),
            Moment::Tag(tag) => At::Tag(tag.0),
        };
        Self { at: Some(at) }
    }
}

impl TryFrom<pb::Moment> for Moment {
    type Error = Invalid;

    fn try_from(wire: pb::Moment) -> Result<Self, Invalid> {
        use pb::moment::At;
        Ok(match wire.at.ok_or_else(|| Invalid::missing("at"))? {
            At::Version(version) => Moment::Version(Version::new(version)),
            At::TimeUnixMs(time) => Moment::Time(UnixMillis(time)),
            At::AgeMs(age) => Moment::Age(age),
            At::Tag(tag) => Moment::Tag(TagName::try_from(tag.as_str())?),
        })
    }
}

impl TryFrom<Option<pb::Moment>> for Moment {
    type Error = Invalid;

    fn try_from(wire: Option<pb::Moment>) -> Result<Self, Invalid> {
        wire.ok_or_else(|| Invalid::missing("at"))?.try_into()
    }
}

/// A version with everything that is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionEntry {
    /// Its number, page size and page count.
    pub snapshot: Snapshot,
    /// When it was made, by the clock of the server; never smaller than that of the version before.
    pub time: UnixMillis,
    /// How many pages it wrote or dropped.
    pub pages_changed: u64,
    /// In byte order.
    pub tags: Vec<TagName>,
    /// The version of the same database whose content it took.
    pub restored_from: Option<Version>,
}

impl From<VersionEntry> for pb::VersionEntry {
    fn from(entry: VersionEntry) -> Self {
        Self {
            snapshot: Some(entry.snapshot.into()),
            time_unix_ms: entry.time.0,
            pages_changed: entry.pages_changed,
            tags: entry.tags.into_iter().map(|tag| tag.0).collect(),
            restored_from: entry.restored_from.map_or(0, Version::get),
        }
    }
}

impl TryFrom<pb::VersionEntry> for VersionEntry {
    type Error = Invalid;

    fn try_from(wire: pb::VersionEntry) -> Result<Self, Invalid> {
        Ok(Self {
            snapshot: Snapshot::try_from(wire.snapshot)?,
            time: UnixMillis(wire.time_unix_ms),
            pages_changed: wire.pages_changed,
            tags: wire
                .tags
                .iter()
                .map(|tag| TagName::try_from(tag.as_str()))
                .collect::<Result<_, _>>()?,
            restored_from: match wire.restored_from {
                0 => None,
                version => Some(Version::new(version)),
            },
        })
    }
}

impl TryFrom<Option<pb::VersionEntry>> for VersionEntry {
    type Error = Invalid;

    fn try_from(wire: Option<pb::VersionEntry>) -> Result<Self, Invalid> {
        wire.ok_or_else(|| Invalid::missing("found"))?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_never_taken_for_a_version_or_a_time() {
        for tag in [
            "v1",
            "release 1.0",
            "ä",
            "1.0",
            "2026-11-01",
            &"x".repeat(128),
        ] {
            assert_eq!(TagName::try_from(tag).unwrap().as_str(), tag);
        }
        for tag in [
            "",
            "17",
            "2026-11-01T00:00:00Z",
            "5 minutes ago",
            "a\nb",
            &"x".repeat(129),
        ] {
            assert!(TagName::try_from(tag).is_err(), "{tag:?}");
        }
    }
}
