//! Moments, tags and what is known of old versions.

use std::str::FromStr;

use jiff::{SpanRelativeTo, Timestamp};

use super::{Invalid, Snapshot, Version};
use crate::limits::MAX_TAG_BYTES;
use crate::pb;

/// What ends an age, and so no tag.
const AGO: &str = " ago";

/// The name of a version.
///
/// 1 to 128 bytes without control characters. Never taken for a version number or a time: not only digits, not ending in
/// ` ago` in whatever case, and if it begins with a digit it has no ':'.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagName(String);

impl TagName {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the writer may have meant where there is no such tag: a date, a time or an age that is not written as one.
    pub fn meant(&self) -> Option<String> {
        let time = match self.0.parse::<jiff::civil::Date>() {
            Ok(date) => Some(format!("{date}T00:00:00Z")),
            Err(_) => self
                .0
                .parse::<Timestamp>()
                .ok()
                .map(|time| time.to_string()),
        };
        match time {
            Some(time) => Some(format!("a time is written {time}")),
            None => {
                let age = self.0.to_ascii_lowercase();
                let age = age.strip_suffix(AGO).unwrap_or(&age);
                age_ms(&format!("{age}{AGO}")).ok()?;
                Some(format!("an age is written '{age}{AGO}'"))
            }
        }
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
        if is_an_age(tag) {
            return bad("ends in ' ago', which would be a time");
        }
        if looks_like_a_time(tag) {
            return bad("begins with a digit and has a ':', which would be a time");
        }
        Ok(Self(tag.to_owned()))
    }
}

fn is_an_age(text: &str) -> bool {
    text.to_ascii_lowercase().ends_with(AGO)
}

fn looks_like_a_time(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit()) && text.contains(':')
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

impl std::fmt::Display for UnixMillis {
    /// RFC 3339, in UTC and to the millisecond; a number for years that have no four digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{} ms since 1970", self.0),
        }
    }
}

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
            Moment::Time(time) => write!(f, "time {time}"),
            Moment::Age(age) => write!(f, "{age} ms ago"),
            Moment::Tag(tag) => write!(f, "tag {tag}"),
        }
    }
}

impl Moment {
    /// As [`Moment::from_str`] reads it.
    pub fn as_written(&self) -> String {
        match self {
            Moment::Version(version) => version.to_string(),
            Moment::Time(time) => time.to_string(),
            Moment::Age(age) => format!("{age}ms{AGO}"),
            Moment::Tag(tag) => tag.0.clone(),
        }
    }
}

/// As people write it, the same in a URI, a pragma and on the command line:
///
/// * a version: `42`;
/// * a time, RFC 3339 with its offset: `2026-11-01T00:00:00Z`, `2026-11-01 02:00:00+02:00`. It begins with a digit and
///   has a ':';
/// * an age, by the clock of the server: `5 minutes ago`, `2h ago`, `1 day 6 hours ago`. A day is 24 hours; months and years, which
///   have no fixed length, are refused;
/// * everything else is a tag: `release 1.0`, and also `2026-11-01`, for a date is no moment.
impl FromStr for Moment {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = |problem: String| Invalid::new("at", problem);
        if text.is_empty() {
            return Err(bad(
                "is empty: write a version, a time (2026-11-01T00:00:00Z), an age ('5 minutes ago') or a tag".into(),
            ));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return match text.parse() {
                Ok(version) => Ok(Moment::Version(Version::new(version))),
                Err(_) => Err(bad(format!("{text} is too large for a version"))),
            };
        }
        if is_an_age(text) {
            return age_ms(text).map(Moment::Age).map_err(bad);
        }
        if looks_like_a_time(text) {
            return time_of(text).map(Moment::Time).map_err(bad);
        }
        TagName::try_from(text)
            .map(Moment::Tag)
            .map_err(|error| bad(format!("as a tag {}", error.problem)))
    }
}

/// Reads what [`looks_like_a_time`].
fn time_of(text: &str) -> Result<UnixMillis, String> {
    match text.parse::<Timestamp>() {
        // Downwards: a version made later in the same millisecond counts as made in it.
        Ok(time) => Ok(UnixMillis(time.as_nanosecond().div_euclid(1_000_000) as i64)),
        Err(_) if text.parse::<jiff::civil::DateTime>().is_ok() => Err(format!(
            "'{text}' has no offset from UTC: write it at the end, as in {text}Z or {text}+02:00"
        )),
        Err(error) => Err(format!(
            "'{text}' is no time: {error}; write it as in 2026-11-01T00:00:00Z"
        )),
    }
}

/// 10,000 years: what is longer jiff does not read as one number of milliseconds, as [`Moment::as_written`] has it.
const LONGEST_AGE_MS: u64 = 10_000 * 365 * 86_400_000;

/// Reads what [`is_an_age`].
fn age_ms(text: &str) -> Result<u64, String> {
    let example = "write it as in '5 minutes ago' or '2h ago'";
    let span = text
        .to_ascii_lowercase()
        .parse::<jiff::Span>()
        .map_err(|error| format!("'{text}' is no age: {error}; {example}"))?;
    if span.get_months() != 0 || span.get_years() != 0 {
        return Err(format!(
            "'{text}': months and years have no fixed length; write weeks, days, hours, minutes or seconds"
        ));
    }
    span.to_duration(SpanRelativeTo::days_are_24_hours())
        .ok()
        .and_then(|age| u64::try_from(age.abs().as_millis()).ok())
        .filter(|age| *age <= LONGEST_AGE_MS)
        .ok_or_else(|| format!("'{text}' is too long ago; {example}"))
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

    fn at(text: &str) -> Result<Moment, String> {
        text.parse().map_err(|error: Invalid| error.to_string())
    }

    #[test]
    fn a_moment_is_read_as_people_write_it() {
        let noon = Moment::Time(UnixMillis(1_793_534_400_000));
        let tag = |tag: &str| Moment::Tag(TagName::try_from(tag).unwrap());
        for (text, moment) in [
            ("42", Moment::Version(Version::new(42))),
            ("0", Moment::Version(Version::ZERO)),
            ("2026-11-01T12:00:00Z", noon.clone()),
            ("2026-11-01t12:00:00.0009z", noon.clone()),
            ("2026-11-01 14:00:00+02:00", noon.clone()),
            ("2026-11-01T12:00Z", noon),
            ("1969-12-31T23:59:59.9995Z", Moment::Time(UnixMillis(-1))),
            ("5 minutes ago", Moment::Age(300_000)),
            ("5 MIN Ago", Moment::Age(300_000)),
            ("2h ago", Moment::Age(7_200_000)),
            ("1 day ago", Moment::Age(86_400_000)),
            ("1 week 1 day 1h ago", Moment::Age(694_800_000)),
            ("0s ago", Moment::Age(0)),
            ("3650000 days ago", Moment::Age(LONGEST_AGE_MS)),
            ("release 1.0", tag("release 1.0")),
            ("2026-11-01", tag("2026-11-01")),
            ("5 minutes", tag("5 minutes")),
            ("ago", tag("ago")),
        ] {
            assert_eq!(at(text).as_ref(), Ok(&moment), "{text:?}");
            assert_eq!(at(&moment.as_written()), Ok(moment));
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_with_what_would_be_right() {
        for (text, says) in [
            ("", "is empty"),
            ("99999999999999999999", "too large"),
            ("2026-11-01T12:00:00", "no offset from UTC"),
            ("2026-11-01 12:00", "2026-11-01 12:00Z"),
            ("12:30", "2026-11-01T00:00:00Z"),
            ("2026-02-30T00:00:00Z", "no time"),
            ("-5 minutes ago", "'5 minutes ago'"),
            ("a while ago", "'5 minutes ago'"),
            ("3 months ago", "no fixed length"),
            ("999999999999 weeks ago", "no age"),
            // Bug: was read, and what was shown of it was not.
            ("3650000 days 1s ago", "too long ago"),
            ("4:33333333333:03030 ago", "too long ago"),
            ("a\nb", "control character"),
        ] {
            let problem = at(text).expect_err(text);
            assert!(problem.contains(says), "{text:?}: {problem}");
        }
    }

    #[test]
    fn a_tag_that_is_not_there_may_have_been_meant_as_a_time() {
        let meant = |tag: &str| TagName::try_from(tag).unwrap().meant();
        for (tag, says) in [
            ("2026-11-01", "2026-11-01T00:00:00Z"),
            ("2026-11-01T12Z", "2026-11-01T12:00:00Z"),
            ("5 minutes", "'5 minutes ago'"),
        ] {
            assert!(meant(tag).unwrap().contains(says), "{tag}");
        }
        assert_eq!(meant("release 1.0"), None);
    }

    #[test]
    fn a_time_is_shown_as_it_may_be_written() {
        for time in [0, 1_793_534_400_000, -1, 1_793_534_400_123] {
            let time = UnixMillis(time);
            assert_eq!(at(&time.to_string()), Ok(Moment::Time(time)));
        }
        assert_eq!(
            UnixMillis(1_793_534_400_120).to_string(),
            "2026-11-01T12:00:00.120Z"
        );
        assert!(UnixMillis(i64::MAX).to_string().contains("since 1970"));
    }

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
            "5 minutes AGO",
            "a\nb",
            &"x".repeat(129),
        ] {
            assert!(TagName::try_from(tag).is_err(), "{tag:?}");
        }
    }
}
