//! Names of optional features, as Hello and Welcome list them. A peer ignores the names that it does not know.

/// The server has the call CommitEach.
pub const COMMIT_EACH: &str = "commit-each";

/// The client wants pages of answers compressed (`PAGE_ENCODING_LZ4`).
pub const LZ4: &str = "lz4";
