//! Names of optional features, as Hello and Welcome list them. A peer ignores the names that it does not know.

/// The server has the call CommitEach.
pub const COMMIT_EACH: &str = "commit-each";

/// The client wants pages of answers compressed (`PAGE_ENCODING_LZ4`).
pub const LZ4: &str = "lz4";

/// The server takes pages of requests compressed (`PAGE_ENCODING_LZ4`).
pub const REQUEST_LZ4: &str = "request-lz4";

/// The server takes pages of commits as deltas of their base (`PAGE_ENCODING_DELTA`).
pub const PAGE_DELTAS: &str = "page-deltas";
