//! The local page store: durable on one disk, with old versions, tags and branches.
//!
//! `keys.rs` and `values.rs` say what is on disk, `engine.rs` how it gets there, `committer.rs` in which order. Reads take a
//! transaction of the engine in the thread that asks: they never wait for the committer, and see only what is durable.
//! README.md says what is promised, what is not, and why.

mod apply;
mod audit;
mod collect;
mod committer;
mod directory;
mod engine;
pub mod faults;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod garbage;
mod history;
pub mod keys;
mod log;
mod marks;
mod operations;
mod queue;
mod room;
mod roots;
mod rows;
mod segments;
mod stagings;
mod start;
mod transaction;
mod tree;
mod truncation;
pub mod values;

use std::collections::HashMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, PageNumber, PageSize, Snapshot,
    StagingId, TagName, Version, VersionEntry,
};
use pagewire_server::clock::Clock;
use pagewire_server::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseEntry, Description, PageStore,
    PageWrite, Resolution, Resolve, StoreError, StoredPage,
};
use tokio::sync::oneshot;

use collect::Collector;
use committer::{Command, Committer, EncodedCommit, Reply};
use engine::{Engine, FORMAT, check, corrupt, senseless};
use faults::Faults;
use garbage::Garbage;
use keys::Key;
use stagings::{Stagings, encode};
use start::other_format;

/// Bytes from which on work with pages leaves the thread of the caller: below, going elsewhere costs more than the work.
const HEAVY_BYTES: usize = 256 << 10;
/// Pages of a read from which on it leaves the thread of the caller, since each may have to come from the disk.
const HEAVY_PAGES: usize = 64;

/// How long versions are kept unless somebody says otherwise.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// How long nothing has to have been written before collection takes transactions of its own, unless somebody says otherwise:
/// longer than a writer takes from one commit to the next.
pub const DEFAULT_QUIET: Duration = Duration::from_millis(20);

/// [`LocalOptions::check_bytes`] unless set: a fraction of a second where the file is in the system's cache, and as long as the disk takes for
/// 65,536 pages one after the other where it is not.
pub const DEFAULT_CHECK_BYTES: u64 = 256 << 20;

/// How a [`LocalStore`] is opened.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// Largest size of the file. Address space, not memory; the file grows as it is used.
    pub map_bytes: usize,
    /// Bytes that are written, about, from one sync of the whole file to the next: in the background, beside the log of commits. As many
    /// cannot be used again before it, by which the file is larger.
    pub checkpoint_bytes: u64,
    /// Staged pages kept in memory before they are written to the disk.
    pub staging_buffer_bytes: usize,
    /// How long a version is kept after the next one was made; `None` for ever.
    pub retention: Option<Duration>,
    /// For the times of versions.
    pub clock: Clock,
    /// How long nothing has to have been written before collection takes transactions of its own. `None`: nothing is collected but what
    /// somebody asks for.
    pub collect_after_quiet: Option<Duration>,
    /// Largest size of the file up to which an opening goes through all of its tree before it uses it, so that bits that flipped are told
    /// (`tree.rs`): 0 for never, [`u64::MAX`] for always. It takes about as long as reading the file. Never is for whoever must get at what is left of a
    /// damaged store: it may hide rows, read older ones in their place, overwrite others, and end the process.
    pub check_bytes: u64,
    /// Where it becomes true that pass ends, and with it the opening, which can be begun again.
    pub stop: Option<Arc<AtomicBool>>,
    /// For tests.
    pub faults: Option<Arc<Faults>>,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self {
            map_bytes: 1 << 40,
            checkpoint_bytes: 16 << 20,
            staging_buffer_bytes: 8 << 20,
            retention: Some(DEFAULT_RETENTION),
            clock: Clock::wall(),
            collect_after_quiet: Some(DEFAULT_QUIET),
            check_bytes: DEFAULT_CHECK_BYTES,
            stop: None,
            faults: None,
        }
    }
}

/// A store in a directory. See the top of this file.
#[derive(Debug)]
pub struct LocalStore {
    incarnation: Incarnation,
    options: LocalOptions,
    commands: Option<Sender<Command>>,
    committer: Option<JoinHandle<()>>,
    engine: Arc<Engine>,
}

impl LocalStore {
    /// Opens the store in a directory, and makes one where there is none.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        Self::open_with(directory, LocalOptions::default())
    }

    /// As [`LocalStore::open`], with other options.
    pub fn open_with(directory: &Path, options: LocalOptions) -> Result<Self, StoreError> {
        let engine = Arc::new(Engine::open(directory, &options)?);
        let (incarnation, generation) = begin(&engine, directory)?;
        let garbage = Garbage::find(&engine, &*engine.read()?)?;
        let retention = options.retention;
        let retention_ms = retention.map(|r| u64::try_from(r.as_millis()).unwrap_or(u64::MAX));
        let committer = Committer {
            engine: Arc::clone(&engine),
            options: options.clone(),
            generation,
            fences: HashMap::new(),
            stagings: Stagings::default(),
            serials: 0,
            garbage,
            collector: Collector::new(retention_ms),
            owed: 0,
            busy_at: tokio::time::Instant::now(),
            short_of_room: false,
            buried: None,
            consumed: Vec::new(),
            doomed: Vec::new(),
            dirty: false,
            service: None,
            dead: None,
        };
        let (commands, received) = channel();
        let thread = std::thread::Builder::new()
            .name("pagewire-commit".to_owned())
            .spawn(move || committer.run(&received))
            .map_err(|e| StoreError::Unavailable(format!("cannot start a thread: {e}")))?;
        Ok(Self {
            incarnation,
            options,
            commands: Some(commands),
            committer: Some(thread),
            engine,
        })
    }

    /// Sends a command to the committer and waits for the answer.
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Internal("the committer is gone: open the store anew".to_owned());
        let commands = self.commands.as_ref().ok_or_else(gone)?;
        commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            tracing::error!("the committer panicked");
        }
    }
}

#[async_trait]
impl PageStore for LocalStore {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            name: "local".to_owned(),
            durable: true,
            versions: true,
            branches: true,
            exclusive: true,
            retention: self.options.retention,
        }
    }

    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        self.ask(|reply| Command::BeginService(lease_ttl, reply))
            .await
    }

    async fn end_service(&self) -> Result<(), StoreError> {
        self.ask(Command::EndService).await
    }

    async fn lookup(&self, name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError> {
        let found = self.engine.named(&*self.engine.read()?, name)?;
        match found {
            Some(id) => Ok(id),
            None if create => self.ask(|reply| Command::Create(name.clone(), reply)).await,
            None => Err(StoreError::DatabaseNotFound),
        }
    }

    async fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<DatabaseEntry>, StoreError> {
        let under = Key::names(prefix);
        let after = Key::names(after);
        let from = match after >= under {
            true => Bound::Excluded(&after[..]),
            false => Bound::Included(&under[..]),
        };
        let mut entries = Vec::new();
        let txn = self.engine.read()?;
        self.engine.scan(&txn, from, &under, |key, row| {
            if entries.len() >= limit {
                return Ok(false);
            }
            let Some(Key::Name(name)) = Key::decode(key) else {
                return Err(corrupt(key, "not a key of this store"));
            };
            let id = DatabaseId::try_from(check(key, row)?);
            let database = id.map_err(|_| corrupt(key, "not a database id"))?;
            let head = self.engine.head(&txn, database)?.snapshot;
            if head.version > Version::ZERO {
                entries.push(DatabaseEntry {
                    name,
                    database,
                    head,
                });
            }
            Ok(true)
        })?;
        Ok(entries)
    }

    async fn remove(&self, name: &DatabaseName) -> Result<DatabaseId, StoreError> {
        self.ask(|reply| Command::Remove(name.clone(), reply)).await
    }

    async fn head(&self, database: DatabaseId) -> Result<Snapshot, StoreError> {
        Ok(self.engine.head(&*self.engine.read()?, database)?.snapshot)
    }

    async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        // One transaction, so that both are of one moment.
        let txn = self.engine.read()?;
        let head = self.engine.head(&txn, database)?.snapshot;
        let changes = self.engine.changes(&txn, database, head.version, since)?;
        Ok((head, changes))
    }

    async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        if pages.len() < HEAVY_PAGES {
            return read(&self.engine, database, version, pages);
        }
        let (engine, pages) = (Arc::clone(&self.engine), pages.to_vec());
        elsewhere(move || read(&engine, database, version, &pages)).await?
    }

    async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        let pins = pins.to_vec();
        self.ask(|reply| Command::Protect(database, floor, pins, reply))
            .await
    }

    async fn fence(&self, database: DatabaseId) -> Result<Epoch, StoreError> {
        self.ask(|reply| Command::Fence(database, reply)).await
    }

    async fn stage(
        &self,
        database: DatabaseId,
        staging: StagingId,
        page_size: PageSize,
        pages: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        let pages = match weight(&pages) < HEAVY_BYTES {
            true => encode(pages, page_size),
            false => elsewhere(move || encode(pages, page_size)).await?,
        };
        self.ask(|reply| Command::Stage(database, staging, page_size, pages, reply))
            .await
    }

    async fn discard(&self, staging: StagingId) -> Result<(), StoreError> {
        self.ask(|reply| Command::Discard(staging, reply)).await
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let bytes: usize = commit
            .databases
            .iter()
            .map(|part| weight(&part.pages))
            .sum();
        let encode_all = move || EncodedCommit {
            id: commit.id,
            databases: commit
                .databases
                .into_iter()
                .map(|mut part| {
                    let pages = encode(std::mem::take(&mut part.pages), part.page_size);
                    (part, pages)
                })
                .collect(),
        };
        let encoded = match bytes < HEAVY_BYTES {
            true => encode_all(),
            false => elsewhere(encode_all).await?,
        };
        self.ask(|reply| Command::Commit(encoded, reply)).await
    }

    async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        self.ask(|reply| Command::Resolve(resolve, reply)).await
    }

    async fn find(
        &self,
        database: DatabaseId,
        moment: &Moment,
    ) -> Result<VersionEntry, StoreError> {
        let txn = self.engine.read()?;
        let now_ms = self.options.clock.now_ms();
        let record = self.engine.find(&txn, database, moment, now_ms)?;
        self.engine.entry(&txn, database, &record)
    }

    async fn versions(
        &self,
        database: DatabaseId,
        before: Option<Version>,
        tagged_only: bool,
        limit: usize,
    ) -> Result<Vec<VersionEntry>, StoreError> {
        let engine = Arc::clone(&self.engine);
        elsewhere(move || {
            let txn = engine.read()?;
            engine.entries(&txn, database, before, tagged_only, limit)
        })
        .await?
    }

    async fn diff(
        &self,
        database: DatabaseId,
        from: Version,
        to: Version,
        after: Option<PageNumber>,
        limit: usize,
    ) -> Result<Vec<PageNumber>, StoreError> {
        let engine = Arc::clone(&self.engine);
        elsewhere(move || {
            let txn = engine.read()?;
            engine.diff(&txn, database, [from, to], after, limit)
        })
        .await?
    }

    async fn set_tag(
        &self,
        database: DatabaseId,
        tag: &TagName,
        moment: &Moment,
        replace: bool,
    ) -> Result<VersionEntry, StoreError> {
        let (tag, moment) = (tag.clone(), moment.clone());
        self.ask(|reply| Command::SetTag(database, tag, moment, replace, reply))
            .await
    }

    async fn delete_tag(&self, database: DatabaseId, tag: &TagName) -> Result<bool, StoreError> {
        self.ask(|reply| Command::DeleteTag(database, tag.clone(), reply))
            .await
    }

    async fn branch(
        &self,
        source: DatabaseId,
        moment: &Moment,
        branch: DatabaseId,
        name: &DatabaseName,
    ) -> Result<VersionEntry, StoreError> {
        let (moment, name) = (moment.clone(), name.clone());
        self.ask(|reply| Command::Branch(source, moment, branch, name, reply))
            .await
    }

    async fn describe(&self, database: DatabaseId) -> Result<Description, StoreError> {
        self.engine.describe(&*self.engine.read()?, database)
    }

    async fn collect(&self, database: Option<DatabaseId>) -> Result<Collected, StoreError> {
        self.ask(|reply| Command::Collect(database, reply)).await
    }
}

/// Checks the format, and begins a new generation durably: everything of it is above everything of earlier ones.
fn begin(engine: &Engine, directory: &Path) -> Result<(Incarnation, u32), StoreError> {
    let number = |key: Key| -> Result<Option<u32>, StoreError> {
        let txn = engine.read()?;
        let body = engine.get(&txn, &key)?;
        let bytes = body.map(|body| body.try_into().map_err(|_| senseless(&key)));
        Ok(bytes.transpose()?.map(u32::from_be_bytes))
    };
    match number(Key::Format)? {
        None | Some(FORMAT) => {}
        Some(format) => return Err(other_format(directory, format)),
    }
    let incarnation = match engine.get(&*engine.read()?, &Key::Incarnation)? {
        Some(body) => Incarnation::try_from(body).map_err(|_| senseless(&Key::Incarnation))?,
        None => Incarnation::random().map_err(|e| StoreError::Unavailable(e.to_string()))?,
    };
    let generation = number(Key::Generation)?.unwrap_or(0).checked_add(1);
    let exhausted = || StoreError::Limit("the store was opened too often".to_owned());
    let generation = generation.ok_or_else(exhausted)?;
    let begun = (|| {
        let mut txn = engine.write()?;
        engine.put(&mut txn, &Key::Format, &FORMAT.to_be_bytes())?;
        engine.put(&mut txn, &Key::Incarnation, incarnation.as_bytes())?;
        engine.put(&mut txn, &Key::Generation, &generation.to_be_bytes())?;
        engine.commit(txn)
    })();
    let cannot = |why: String| {
        StoreError::Unavailable(format!("cannot write to {}: {why}", directory.display()))
    };
    match begun {
        Ok(()) => {
            let made = engine.end_making(directory);
            made.map_err(|error| cannot(error.to_string()))?;
            Ok((incarnation, generation))
        }
        Err(engine::WriteError::Refused(error)) => Err(error),
        Err(engine::WriteError::Medium(why)) => Err(cannot(why)),
    }
}

fn read(
    engine: &Engine,
    database: DatabaseId,
    version: Version,
    pages: &[PageNumber],
) -> Result<Vec<StoredPage>, StoreError> {
    let txn = engine.read()?;
    let at = engine.version(&txn, database, version)?;
    let chain = engine.chain(&txn, database, at)?;
    pages
        .iter()
        .map(|number| engine.page(&txn, &chain, *number))
        .collect()
}

fn weight(pages: &[PageWrite]) -> usize {
    pages.iter().map(|page| page.content.len()).sum()
}

/// Does work that takes long where it keeps nobody else waiting.
async fn elsewhere<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| StoreError::Internal(format!("work in another thread was lost: {e}")))
}
