//! Where the page servers of an installation listen: one place, or several that serve the same store.

use std::fmt;

/// Servers that one endpoint may name.
pub const MAX_SERVERS: usize = 16;

/// One or several places, in the order in which they are tried. Two that differ in anything are different endpoints: their
/// connections share neither session nor cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Separated by commas.
    text: String,
    first: String,
    others: Vec<String>,
}

impl Endpoint {
    /// Reads `http://HOST:PORT` or `unix:/PATH`, or several of them separated by commas. The error says what the text is and has to be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut servers = Vec::new();
        for server in text.split(',').map(str::trim) {
            check(server)?;
            if servers.iter().any(|known| known == server) {
                return Err(format!("names {server:?} twice"));
            }
            servers.push(server.to_owned());
        }
        if servers.len() > MAX_SERVERS {
            let count = servers.len();
            return Err(format!(
                "names {count} servers, at most {MAX_SERVERS} are allowed"
            ));
        }
        let text = servers.join(",");
        // There is one, for a text without a comma is one itself.
        let first = servers.remove(0);
        Ok(Self {
            text,
            first,
            others: servers,
        })
    }

    /// All of it, as people know it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The place that is tried first.
    pub fn first(&self) -> &str {
        &self.first
    }

    /// The places that are tried after it.
    pub fn others(&self) -> &[String] {
        &self.others
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn check(server: &str) -> Result<(), String> {
    if let Some(path) = server.strip_prefix("unix:") {
        return match path.is_empty() {
            true => Err("is \"unix:\" without a path".to_owned()),
            false => Ok(()),
        };
    }
    let right = server.strip_prefix("http://").is_some_and(|rest| {
        !rest.trim_end_matches('/').is_empty() && !rest.contains(char::is_whitespace)
    });
    if right && tonic::transport::Endpoint::from_shared(server.to_owned()).is_ok() {
        return Ok(());
    }
    Err(format!(
        "is {server:?}, must be http://HOST:PORT or unix:/PATH, or several of them separated by commas"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_or_several_in_their_order() {
        let one = Endpoint::parse("unix:/tmp/s").unwrap();
        assert_eq!(
            (one.as_str(), one.first(), one.others()),
            ("unix:/tmp/s", "unix:/tmp/s", &[][..])
        );
        let two = Endpoint::parse("http://a:1, http://b:2").unwrap();
        assert_eq!(two.to_string(), "http://a:1,http://b:2");
        assert_eq!(two.first(), "http://a:1");
        assert_eq!(two.others(), ["http://b:2"]);
        assert_ne!(two, Endpoint::parse("http://b:2,http://a:1").unwrap());
    }

    #[test]
    fn what_is_no_place_is_named() {
        for (text, problem) in [
            ("", "is \"\""),
            ("ftp://x", "is \"ftp://x\""),
            ("http://a:1,", "is \"\""),
            ("http://a:1,unix:", "without a path"),
            ("http://a:1,http://a:1", "twice"),
        ] {
            let said = Endpoint::parse(text).expect_err(text);
            assert!(said.contains(problem), "{text}: {said}");
        }
        let many: Vec<_> = (0..=MAX_SERVERS)
            .map(|port| format!("http://a:{}", port + 1))
            .collect();
        assert!(
            Endpoint::parse(&many.join(","))
                .expect_err("too many")
                .contains("at most")
        );
    }
}
