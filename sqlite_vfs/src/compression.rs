//! Whether pages come compressed from the server.
//!
//! LZ4 halves a page of ordinary rows and more, and costs time at both ends. Where the bytes travel through memory they cost less than that
//! (`docs/performance.md`), so it depends on the way.

use std::net::IpAddr;

/// `PAGEWIRE_COMPRESSION`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Compressed unless the server is on this machine.
    #[default]
    Auto,
    /// Always.
    Lz4,
    /// Never.
    Off,
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

    /// Whether pages from this server, one place of an endpoint, are wanted compressed.
    pub fn wants_lz4_from(self, server: &str) -> bool {
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
            assert!(!Compression::Auto.wants_lz4_from(near), "{near}");
            assert!(Compression::Lz4.wants_lz4_from(near), "{near}");
        }
        for far in [
            "http://10.0.0.7:7240",
            "http://localhost.example.com:7240",
            "http://[2001:db8::1]:7240",
            "http://pages:7240",
        ] {
            assert!(Compression::Auto.wants_lz4_from(far), "{far}");
            assert!(!Compression::Off.wants_lz4_from(far), "{far}");
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
