//! Turns a NAME that the user typed into what SQLite opens.
//!
//! A name becomes a `file:` URI with the VFS and the endpoint in it; it is never a local file in
//! silence.

use super::ShellEnvironment;

/// Whether NAME is a database in memory, which no VFS keeps.
pub(super) fn is_transient(name: &str) -> bool {
    name.is_empty() || name == ":memory:"
}

/// The VFS that a `file:` URI asks for.
pub(super) fn vfs_of(name: &str) -> Option<&str> {
    parameter(name, "vfs")
}

fn parameter<'n>(name: &'n str, key: &str) -> Option<&'n str> {
    let (_, query) = name.strip_prefix("file:")?.split_once('?')?;
    let query = query.split('#').next()?;
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// The URI of NAME in this environment.
pub(super) fn uri(name: &str, environment: &ShellEnvironment) -> String {
    if is_transient(name) {
        return name.to_owned();
    }
    if !name.starts_with("file:") {
        // A leading `//` would be read as an authority.
        let root = if name.starts_with("//") { "//" } else { "" };
        let bare = format!("file:{root}{}", percent_encoded(name));
        return with_parameters(&bare, environment);
    }
    with_parameters(name, environment)
}

/// A local file by its path, whatever the default VFS is; a URI says its own.
pub(super) fn local_uri(name: &str) -> String {
    let environment = ShellEnvironment {
        vfs: "unix".to_owned(),
        endpoint: None,
        guard: None,
    };
    uri(name, &environment)
}

fn with_parameters(uri: &str, environment: &ShellEnvironment) -> String {
    let (body, fragment) = uri
        .split_once('#')
        .map_or((uri, None), |(body, rest)| (body, Some(rest)));
    let mut text = body.to_owned();
    let vfs = vfs_of(uri);
    let mut add = |key: &str, value: &str| {
        if parameter(uri, key).is_none() {
            text.push(if text.contains('?') { '&' } else { '?' });
            text.push_str(&format!("{key}={}", percent_encoded(value)));
        }
    };
    add("vfs", &environment.vfs);
    // The endpoint means nothing to another VFS.
    if let Some(endpoint) = &environment.endpoint
        && vfs.is_none_or(|vfs| vfs == environment.vfs)
    {
        add("endpoint", endpoint);
    }
    if let Some(fragment) = fragment {
        text.push('#');
        text.push_str(fragment);
    }
    text
}

/// Percent-encodes all but unreserved characters and `/`.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(endpoint: Option<&str>) -> ShellEnvironment {
        ShellEnvironment {
            vfs: "pagewire".to_owned(),
            endpoint: endpoint.map(str::to_owned),
            guard: None,
        }
    }

    #[test]
    fn a_bare_name_becomes_an_encoded_uri() {
        assert_eq!(
            uri("a b?#%.db", &environment(None)),
            "file:a%20b%3F%23%25.db?vfs=pagewire"
        );
        assert_eq!(
            uri("t/app.db", &environment(Some("http://h:7240"))),
            "file:t/app.db?vfs=pagewire&endpoint=http%3A//h%3A7240"
        );
        assert_eq!(uri("//x", &environment(None)), "file:////x?vfs=pagewire");
    }

    #[test]
    fn a_uri_keeps_what_it_says() {
        let here = environment(Some("http://h"));
        assert_eq!(uri("file:x.db?vfs=unix", &here), "file:x.db?vfs=unix");
        assert_eq!(
            uri("file:x.db?mode=ro#f", &here),
            "file:x.db?mode=ro&vfs=pagewire&endpoint=http%3A//h#f"
        );
        assert_eq!(
            uri("file:x?vfs=pagewire&endpoint=http://o", &here),
            "file:x?vfs=pagewire&endpoint=http://o"
        );
    }

    #[test]
    fn memory_is_left_alone() {
        assert_eq!(uri(":memory:", &environment(None)), ":memory:");
        assert_eq!(uri("", &environment(None)), "");
    }
}
