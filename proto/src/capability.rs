//! Names of optional features, as Hello and Welcome list them. A peer ignores the names that it does not know.

/// The server has the call CommitEach.
pub const COMMIT_EACH: &str = "commit-each";
