//! Limits of the protocol. Each is checked by the receiver before anything is allocated.

/// Largest gRPC message of a server: an answer to ReadPages plus its frame.
pub const MAX_MESSAGE_BYTES: usize = 8 << 20;
/// Largest gRPC message of a client: a batch of pages plus one page, or the floors of [`MAX_OPEN_DATABASES`] databases (31
/// bytes each). No larger, for an empty element of a list costs two bytes on the wire and up to 88 in memory.
pub const MAX_REQUEST_BYTES: usize = 2 << 20;
/// Sum of page contents that a sender puts into one message; leaves half of a message for everything else.
pub const BATCH_BYTES: usize = 1 << 20;
/// Largest number of pages in one ReadPages: 1,024 pages of 4 KiB are 4 MiB.
pub const MAX_READ_PAGES: usize = 1024;
/// Sum of page contents in one ReadPages answer; the server answers fewer pages where they would be more.
pub const MAX_READ_BYTES: usize = 4 << 20;
/// Largest number of databases in one Commit: SQLite attaches at most 125, plus main.
pub const MAX_COMMIT_DATABASES: usize = 126;
/// Longest database name in bytes. With `-journal` and a directory it stays below SQLite's path limit of 512.
pub const MAX_NAME_BYTES: usize = 400;
/// Databases that one session may have open: thousands of tenants in one process.
pub const MAX_OPEN_DATABASES: usize = 65_536;
/// Longest client or server name in a handshake.
pub const MAX_PEER_NAME_BYTES: usize = 128;
/// Pages that a client may name for the next open of a database; more are not kept.
pub const MAX_HOT_PAGES: usize = 1024;
/// Longest list of changed pages in an answer; beyond it the receiver forgets its cache.
pub const MAX_CHANGED_PAGES: usize = 65_536;
/// Longest list of changed pages in Published; beyond it the receiver asks, or forgets its cache. As many messages as wait for a slow
/// client at most take 16 MiB with it.
pub const MAX_PUSHED_PAGES: usize = 4096;
/// Stagings that one commit may name for one database.
pub const MAX_STAGINGS: usize = 64;
/// Longest wait in one AcquireLease: SQLite's busy handler is asked in between.
pub const MAX_ACQUIRE_WAIT_MS: u32 = 1000;
/// Bytes of pages that come along with a grant, expanded: what small transactions write. Of larger ones the next writer reads little.
pub const MAX_GRANT_PAGE_BYTES: usize = 64 << 10;
/// A ticket that was not renewed for so long is dropped. SQLite's own busy handler sleeps at most 100 ms at a time.
pub const TICKET_TTL_MS: u64 = 2000;
/// Databases listed by one ListDatabases.
pub const MAX_LIST: usize = 1000;
/// Versions listed by one ListVersions.
pub const MAX_LIST_VERSIONS: usize = 1000;
/// Pages listed by one DiffVersions: as many as one answer of changes may have.
pub const MAX_DIFF_PAGES: usize = MAX_CHANGED_PAGES;
/// Longest tag in bytes: a label, not a document.
pub const MAX_TAG_BYTES: usize = 128;
/// Tags that one database may have.
pub const MAX_TAGS: usize = 4096;
/// Leases that a Hello may name: a client that comes from another server asks for no more in one go.
pub const MAX_BELIEVED_LEASES: usize = 64;
/// Versions that one session may have pinned apart from its floors.
pub const MAX_PINS: usize = 1024;
