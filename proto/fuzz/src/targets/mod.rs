//! What each target does with its bytes: panics where a property does not hold. Run by libFuzzer (`fuzz_targets/`), and over the kept corpus
//! by the tests of the workspace (`tests/it/fuzz_corpus.rs`).

mod protocol;
mod server;
mod stored;
mod vfs;

pub use protocol::{codec, commit, history, lease_grant, name, page, resolve_commit, session};
pub use server::server;
pub use stored::{STORES, stored};
pub use vfs::{cache_file, database_header, prefetch, settings, tree_page};

/// All of them, as their folders of the corpus are called.
pub const TARGETS: [&str; 15] = [
    "cache_file",
    "codec",
    "commit",
    "database_header",
    "history",
    "lease_grant",
    "name",
    "page",
    "prefetch",
    "resolve_commit",
    "server",
    "session",
    "settings",
    "stored",
    "tree_page",
];
