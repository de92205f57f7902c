//! Whether pages travel compressed, and how a page is encoded that goes to the server.
//!
//! LZ4 halves a page of ordinary rows and more, a delta of its base is a small part of it, and both cost time at both ends. Where the bytes
//! travel through memory they cost less than that (`docs/performance.md`), so it depends on the way.

use std::net::IpAddr;

use bytes::Bytes;
use pagewire_proto::{Page, pb};

/// `PAGEWIRE_COMPRESSION`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Compressed, and pages of commits as deltas of their base where it is at hand, unless the server is on this machine.
    #[default]
    Auto,
    /// Always.
    Lz4,
    /// Never.
    Off,
}

/// In what pages of requests may come beside their raw form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encodings {
    /// LZ4, each page for itself.
    pub lz4: bool,
    /// Deltas of their bases, in commits.
    pub deltas: bool,
}

impl Encodings {
    /// None beside the raw form.
    pub const NONE: Encodings = Encodings {
        lz4: false,
        deltas: false,
    };

    /// The message for a page, in the form that is the smallest as a rule. The base is asked for where it is of use.
    pub fn encode(self, page: &Page, base: impl FnOnce() -> Option<Bytes>) -> pb::PageContent {
        match (self.deltas.then(base).flatten(), self.lz4) {
            // Never larger than LZ4: what the page has twice is found too.
            (Some(base), _) if base.len() == page.content.len() => page.to_delta_wire(&base),
            (_, true) => page.to_compressed_wire(),
            (_, false) => page.to_wire(),
        }
    }
}

impl Compression {
    /// Reads `auto`, `lz4` or `off`; nothing stands for `auto`. The error says what it has to be.
    pub fn parse(text: Option<&str>) -> Result<Self, String> {
        match text.map(str::trim) {
            None | Some("" | "auto") => Ok(Self::Auto),
            Some("lz4") => Ok(Self::Lz4),
            Some("off") => Ok(Self::Off),
            Some(other) => Err(format!("is {other:?}, must be auto, lz4 or off")),
        }
    }

    /// Whether pages that travel between this process and this server, one place of an endpoint, are to be compressed.
    pub fn is_wanted_with(self, server: &str) -> bool {
        match self {
            Self::Auto => !is_on_this_machine(server),
            Self::Lz4 => true,
            Self::Off => false,
        }
    }
}

/// By its address alone: `unix:` and loopback. One that is here by another address is taken for a distant one.
fn is_on_this_machine(server: &str) -> bool {
    let Some((_, rest)) = server.split_once("://") else {
        return server.starts_with("unix:");
    };
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = match authority.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or(bracketed),
        None => authority
            .rsplit_once(':')
            .map_or(authority, |(host, _)| host),
    };
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_stay_on_the_machine_are_not_compressed() {
        for near in [
            "unix:/run/pagewire.sock",
            "http://127.0.0.1:7240",
            "http://127.9.9.9:1",
            "http://localhost:7240",
            "http://LOCALHOST",
            "http://[::1]:7240",
        ] {
            assert!(!Compression::Auto.is_wanted_with(near), "{near}");
            assert!(Compression::Lz4.is_wanted_with(near), "{near}");
        }
        for far in [
            "http://10.0.0.7:7240",
            "http://localhost.example.com:7240",
            "http://[2001:db8::1]:7240",
            "http://pages:7240",
        ] {
            assert!(Compression::Auto.is_wanted_with(far), "{far}");
            assert!(!Compression::Off.is_wanted_with(far), "{far}");
        }
    }

    #[test]
    fn what_is_no_setting_is_said() {
        assert_eq!(Compression::parse(None), Ok(Compression::Auto));
        assert_eq!(Compression::parse(Some(" lz4 ")), Ok(Compression::Lz4));
        let problem = Compression::parse(Some("zstd")).unwrap_err();
        assert_eq!(problem, "is \"zstd\", must be auto, lz4 or off");
    }
}
