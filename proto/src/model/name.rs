//! Database names.

use super::Invalid;
use crate::limits::MAX_NAME_BYTES;

/// The name of a database, such as `tenant-7/app.db`: never a path, in no case made one by a store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseName(String);

impl DatabaseName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for DatabaseName {
    type Error = Invalid;

    fn try_from(name: &str) -> Result<Self, Invalid> {
        let bad = |problem: &str| Err(Invalid::new("name", problem.to_owned()));
        if name.is_empty() {
            return bad("is empty");
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(Invalid::new(
                "name",
                format!(
                    "has {} bytes, at most {MAX_NAME_BYTES} are allowed",
                    name.len()
                ),
            ));
        }
        if name.chars().any(char::is_control) {
            return bad("has a control character");
        }
        for segment in name.split('/') {
            match segment {
                "" => {
                    return bad(
                        "has an empty segment: it may not begin or end with '/' or have '//'",
                    );
                }
                "." | ".." => return bad("has a segment '.' or '..'"),
                _ => {}
            }
        }
        Ok(Self(name.to_owned()))
    }
}

impl std::fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for DatabaseName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_paths_are_taken() {
        for name in [
            "a",
            "app.db",
            "tenant/app.db",
            "ä/ö.db",
            "a b",
            "..a",
            "%s%n",
            &"x".repeat(400),
        ] {
            assert_eq!(DatabaseName::try_from(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn paths_and_junk_are_refused() {
        for name in [
            "",
            "/a",
            "a/",
            "a//b",
            "./a",
            "../a",
            "a/../b",
            "a\0b",
            "a\nb",
            &"x".repeat(401),
        ] {
            assert!(DatabaseName::try_from(name).is_err(), "{name:?}");
        }
    }
}
