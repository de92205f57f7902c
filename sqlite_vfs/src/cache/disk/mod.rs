//! (database, page, version) -> bytes, on the local disk: what a process has read is warm for the next one.
//!
//! A database has two files in the directory of the setting `cache_dir`, shared without a lock by all processes that use it:
//!
//! ```text
//!   NAME.pages   a header, then slots; page p has slot (p - 1) mod count, and no other
//!                slot = checksum | page | length | from | upto | content
//!   NAME.changes the change log: for each page the newest version that changed it, complete from `since` up to `head`
//! ```
//! A database of this process on the way to its files:
//!
//! ```text
//!               files opened, log read             log.head is the head known here,
//!   (nothing) ------------------------> Apart ---- or BeginSnapshot(log.head) told the rest ----> Joined
//!       |                                 |  ^                                                      |
//!       | can't be used: one warning      |  +---- news of a version without its list of pages -----+
//!       v                                 |
//!      Off <--- the server's head is older than the log's: another history, the files are removed
//! ```
//! *Apart* a slot answers for the versions that it names itself; *Joined* also for later ones, up to the head.
//!
//! * **Q1** A file is for one endpoint and credential, one incarnation of a store, one database and one page size. All of them are in
//!   its header, and seed every checksum: what lies under the wrong name, or in the wrong file, is never answered. The endpoint is
//!   among them since a server says itself which store it has: none can plant pages for another, or learn what is cached of it.
//! * **Q2** A slot with the right checksum says what is true for ever: this was the content of this page in every version from
//!   `from` up to `upto`. Versions don't change, so it does not matter which of several writers won, what was lost in a crash, or
//!   what a crash brought back. For that reason nothing is locked, nothing is synced, and no order of writes has to be kept.
//! * **Q3** A log with the right checksum says what is true for ever, too. It is replaced as a whole, by a rename. A slot holds beyond
//!   its `upto` only up to where a log without a gap says that nothing has changed its page.
//! * **Q4** A log that ends before what is known here counts for nothing until one BeginSnapshot has told what changed since. That
//!   is asked by the first read that needs it, or rides in a BeginSnapshot that is made anyway. Too old: what needs it is read anew.
//! * **Q5** Whatever else is in a file is a page to be read from the server: nothing that can be in it makes a wrong answer, an error or a
//!   panic.
//! * **Q6** No query and no commit waits for a write to the cache: pages wait in bounded memory for a thread that writes them, and
//!   are left out where there are too many. What can't be used or written is done without, with one warning.
//! * **Q7** The files together take no more than their limit, but for [`room::STEP_SHARE`] of it for each further process that is just
//!   writing. The databases used longest ago make room first.
//! * **Q8** Files are made for their owner alone, links are not followed, and what somebody else could have written is not read.
//! * **Q9** Nothing is answered before the server is known to have come as far as the log and the slot: one that has not, has another
//!   history than the files, which are removed then.
//!
//! Assumed: a store whose content was set back is another incarnation (`proto/README.md`); Q9 notices only those that have not gone on
//! since. Pages lie here in the clear.
//!
//! Versions that are looked at (`at=`) are answered from slots and fill empty ones, but take no place of newer content. A branch is
//! another database. Of what another process has committed nothing is here before somebody reads it; what this process commits
//! is written as it is.

mod directory;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod log;
mod room;
mod slot;
mod slots;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::{DatabaseId, Incarnation, PageNumber, PageSize, Version};
use parking_lot::{Mutex, RwLock};
use sha2::{Digest, Sha256};

use super::{CacheKey, ChangeLog, Entry};
use crate::client::counters::DISK;
use crate::settings::DiskSettings;
use slots::{Found, SlotFile};
use writer::Writer;

/// A log is saved anew when the head has moved so far: stores tell what changed over some thousand versions.
const SAVE_EVERY: u64 = 1024;
/// How long the last connection waits for what is still to be written.
const CLOSE_PATIENCE: Duration = Duration::from_millis(500);

/// For whom a file is (Q1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    incarnation: Incarnation,
    database: DatabaseId,
    /// SHA-256 of the endpoint and the credential.
    scope: [u8; 32],
    page_size: PageSize,
}

impl Identity {
    fn encode(&self) -> [u8; IDENTITY_BYTES] {
        let mut bytes = [0; IDENTITY_BYTES];
        bytes[..16].copy_from_slice(self.incarnation.as_bytes());
        bytes[16..32].copy_from_slice(self.database.as_bytes());
        bytes[32..64].copy_from_slice(&self.scope);
        bytes[64..].copy_from_slice(&self.page_size.get().to_le_bytes());
        bytes
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.encode()).into()
    }

    /// Seeds the checksums.
    fn seed(&self) -> u64 {
        let mut seed = [0; 8];
        seed.copy_from_slice(&self.digest()[..8]);
        u64::from_le_bytes(seed)
    }

    /// What the names of its files begin with.
    fn file_name(&self) -> String {
        let digest = &self.digest()[8..16];
        let rest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{rest}", self.database)
    }
}

/// Whether a file may be ours by its name: nothing else in the directory is ever touched.
fn is_name_of_ours(name: &str) -> bool {
    let is_hex = |text: &str| {
        text.bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let stem = name
        .strip_suffix(".pages")
        .or_else(|| name.strip_suffix(".changes"));
    stem.and_then(|stem| stem.rsplit_once('-'))
        .is_some_and(|(database, rest)| {
            let database = database.replace('-', "");
            database.len() == 32 && is_hex(&database) && rest.len() == 16 && is_hex(rest)
        })
}

const IDENTITY_BYTES: usize = 68;

/// The disk cache of one client: of one endpoint and credential, in one directory.
pub struct DiskCache {
    settings: DiskSettings,
    scope: [u8; 32],
    writer: Writer,
    trouble: Arc<Trouble>,
}

impl DiskCache {
    /// For an endpoint and a credential. Nothing is touched before a database is opened.
    pub fn new(settings: DiskSettings, endpoint: &str, token: Option<&str>) -> Self {
        let mut scope = Sha256::new();
        scope.update((endpoint.len() as u64).to_le_bytes());
        scope.update(endpoint);
        // No credential is none, not an empty one.
        scope.update([u8::from(token.is_some())]);
        scope.update(token.unwrap_or_default());
        let trouble = Arc::default();
        Self {
            scope: scope.finalize().into(),
            writer: Writer::new(settings.clone(), Arc::clone(&trouble)),
            settings,
            trouble,
        }
    }

    /// Opens or makes the files of a database. `None`, and one warning, if they can't be used.
    pub fn attach(
        &self,
        incarnation: Incarnation,
        database: DatabaseId,
        page_size: PageSize,
        key: CacheKey,
        log: Arc<RwLock<ChangeLog>>,
    ) -> Option<(Arc<DiskFile>, Option<ChangeLog>)> {
        let identity = Identity {
            incarnation,
            database,
            scope: self.scope,
            page_size,
        };
        match DiskFile::open(&self.settings, identity, key, log, self.writer.clone()) {
            Ok((file, found)) => {
                if found.is_none() {
                    // From now on it can be told what has changed, however this process ends.
                    self.writer.save(&file);
                }
                Some((file, found))
            }
            Err(reason) => {
                self.trouble.report(reason);
                None
            }
        }
    }

    /// Where the files of all databases lie.
    pub fn directory(&self) -> &Path {
        &self.settings.directory
    }

    /// For people: where the files of a database lie, or why there are none.
    pub fn describe(&self, file: Option<&DiskFile>) -> String {
        match file {
            Some(file) if file.takes_pages() => self.settings.directory.display().to_string(),
            Some(file) if !file.is_off() => {
                let directory = self.settings.directory.display();
                format!("{directory}, only read: {}", self.trouble.reason())
            }
            _ => format!("off: {}", self.trouble.reason()),
        }
    }

    /// A warning that nobody was given yet.
    pub fn warning(&self) -> Option<String> {
        self.trouble.take()
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        self.writer.stop(CLOSE_PATIENCE);
    }
}

/// What went wrong first: said once.
#[derive(Default)]
struct Trouble {
    reason: Mutex<Option<String>>,
    is_new: AtomicBool,
}

impl Trouble {
    fn report(&self, reason: String) {
        let mut first = self.reason.lock();
        if first.is_none() {
            *first = Some(reason);
            self.is_new.store(true, Ordering::Release);
        }
    }

    fn reason(&self) -> String {
        let reason = self.reason.lock().clone();
        reason.unwrap_or_else(|| "its files were removed".to_owned())
    }

    fn take(&self) -> Option<String> {
        // Looked at after each transaction: first without a write to memory that all threads share.
        let is_new =
            self.is_new.load(Ordering::Acquire) && self.is_new.swap(false, Ordering::AcqRel);
        is_new.then(|| {
            format!(
                "the disk cache is not used for all it could be: {}",
                self.reason()
            )
        })
    }
}

/// The files of one database.
pub struct DiskFile {
    identity: Identity,
    key: CacheKey,
    slots: SlotFile,
    log_path: PathBuf,
    /// As the database of this process has it.
    log: Arc<RwLock<ChangeLog>>,
    /// The head of the log when it was saved last.
    saved: AtomicU64,
    writer: Writer,
    /// The head of the log that was found.
    found_head: Version,
    /// The server has come as far as this version.
    proven: AtomicU64,
    /// The log that was found can't be bridged: it makes way for the one that is known here.
    too_old: AtomicBool,
    /// Nothing is read from it.
    off: AtomicBool,
    /// Nothing is written to it.
    closed: AtomicBool,
}

impl DiskFile {
    /// The files, and the log that was found.
    fn open(
        settings: &DiskSettings,
        identity: Identity,
        key: CacheKey,
        log: Arc<RwLock<ChangeLog>>,
        writer: Writer,
    ) -> Result<(Arc<Self>, Option<ChangeLog>), String> {
        directory::prepare(&settings.directory)?;
        let name = identity.file_name();
        let pages = settings.directory.join(format!("{name}.pages"));
        let log_path = settings.directory.join(format!("{name}.changes"));
        let slots = SlotFile::open(&pages, &identity, room::most_for_one(settings.bytes))?;
        let found = log::load(&log_path, &identity);
        let known = found.as_ref().map_or(Version::ZERO, ChangeLog::head);
        let saved = known.max(log.read().head());
        let file = Self {
            identity,
            key,
            slots,
            log_path,
            log,
            saved: AtomicU64::new(saved.get()),
            writer,
            found_head: known,
            proven: AtomicU64::new(0),
            too_old: AtomicBool::new(false),
            off: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        };
        Ok((Arc::new(file), found))
    }

    /// Size of its pages.
    pub fn page_size(&self) -> PageSize {
        self.identity.page_size
    }

    /// What its slot has of the page: one read of the file.
    pub fn read(&self, page: PageNumber) -> Option<DiskPage> {
        if self.is_off() {
            return None;
        }
        match self.slots.read(page) {
            Found::Page(entry) => Some(DiskPage(entry)),
            Found::Damaged => {
                DISK.damaged();
                None
            }
            Found::Nothing | Found::Another(_) => None,
        }
    }

    /// Remembers a page that was read at `upto` and written at `from`, some time soon (Q6).
    pub fn offer(
        self: &Arc<Self>,
        page: PageNumber,
        from: Version,
        upto: Version,
        content: &Bytes,
    ) {
        if content.len() != self.identity.page_size.bytes() || !self.takes_pages() {
            return;
        }
        let entry = Entry::read(from, upto, content.clone());
        self.writer.offer(self, page, entry);
    }

    /// The newest version known has moved.
    pub fn head_moved(self: &Arc<Self>, head: Version) {
        let saved = self.saved.load(Ordering::Relaxed);
        if head.get() >= saved.saturating_add(SAVE_EVERY) && self.takes_pages() {
            self.saved.store(head.get(), Ordering::Relaxed);
            self.writer.save(self);
        }
    }

    /// The server does not know any more what has changed since the log that was found.
    pub fn log_is_too_old(&self) {
        self.too_old.store(true, Ordering::Relaxed);
    }

    /// No connection has the database any more.
    pub fn detach(self: &Arc<Self>) {
        self.writer.save(self);
    }

    fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    fn takes_pages(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) && !self.is_off()
    }

    /// Nothing is written to it any more.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether a server that has come as far as `head`, or was known to have come further, may have told what is in a slot up to
    /// a version, and what was in the log (Q9).
    pub fn is_proven(&self, upto: Version, head: Version) -> bool {
        let proven = head.get().max(self.proven.load(Ordering::Relaxed));
        upto.max(self.found_head).get() <= proven
    }

    /// The server has come as far as this version.
    pub fn prove(&self, head: Version) {
        self.proven.fetch_max(head.get(), Ordering::Relaxed);
    }

    /// It is of another history: Q9.
    pub fn discard(&self) {
        self.off.store(true, Ordering::Relaxed);
        // Where that fails the next process finds what this one has found.
        let _ = std::fs::remove_file(&self.log_path);
        let _ = std::fs::remove_file(self.slots.path());
    }
}

/// A page as it was found in its slot (Q2).
pub struct DiskPage(Entry);

impl DiskPage {
    /// Whether it is the page of the version, as far as the log knows.
    pub fn holds(&self, page: PageNumber, at: Version, log: &ChangeLog) -> bool {
        self.0.holds(page, at, log)
    }

    /// Whether more knowledge of what has changed could make it the page of the version.
    pub fn may_hold(&self, at: Version) -> bool {
        self.0.from <= at
    }

    /// The newest version for which its slot says that it holds.
    pub fn upto(&self) -> Version {
        self.0.upto
    }

    /// From which version on, up to which one, and what.
    pub fn into_parts(self) -> (Version, Version, Bytes) {
        (self.0.from, self.0.upto, self.0.content)
    }
}
