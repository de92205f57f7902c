//! The pages of a commit on their way in: checked one by one, kept in memory up to a bound, staged in the store beyond it.
//!
//! Whatever ends an upload early drops what it staged. Pages in another encoding than the raw one are paid for before they are expanded,
//! see `encoded.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pagewire_proto::codec::SURPLUS_BYTES;
use pagewire_proto::status::Reason;
use pagewire_proto::{
    CommitChecksum, CommitDatabase, CommitHeader, Invalid, Page, PageCount, PageNumber, StagingId,
    pb,
};
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use super::encoded::{self, Bases, Received};
use crate::hub::{Hub, spawn_detached};
use crate::memory::{Account, Charge};
use crate::store::PageWrite;

/// Bytes of pages that one upload keeps in memory: a commit of 1 GiB needs no more than this and a message.
const KEEP_BYTES: usize = 4 << 20;

/// What a message costs beside its pages: the decoder leaves no more of it than this.
const MESSAGE_BYTES: usize = SURPLUS_BYTES;

/// The next message of an upload, or an error where the client is too slow.
pub(super) async fn next<T>(hub: &Hub, inbound: &mut Streaming<T>) -> Result<Option<T>, Status> {
    match tokio::time::timeout(hub.settings.upload_idle, inbound.message()).await {
        Ok(message) => message,
        Err(_) => Err(Reason::Unavailable.status(format!(
            "the upload stood still for {} ms",
            hub.settings.upload_idle.as_millis()
        ))),
    }
}

/// The pages of a commit.
pub(super) struct Upload {
    hub: Arc<Hub>,
    account: Arc<Account>,
    header: CommitHeader,
    /// In the order of the databases of the header.
    parts: Vec<Part>,
    kept_bytes: usize,
    /// For them; without it they are staged at once.
    kept: Option<Charge>,
    /// A call to the store that outlives a client that goes away: what it stages is dropped after it.
    staging: Option<JoinHandle<Result<(), Status>>>,
    /// Nobody wants the stagings any more.
    dropped: Arc<AtomicBool>,
    checksum: CommitChecksum,
}

/// The pages of one database.
#[derive(Default)]
pub(super) struct Part {
    pub(super) staged: Option<StagingId>,
    pub(super) pages: Vec<PageWrite>,
    /// The base of its deltas is not kept, so the head is another: the commit can be a conflict, or the repetition of one that was
    /// applied, and nothing else.
    pub(super) base_is_gone: bool,
}

impl Upload {
    pub(super) fn new(hub: Arc<Hub>, account: Arc<Account>, header: CommitHeader) -> Self {
        let parts = header.databases.iter().map(|_| Part::default()).collect();
        Self {
            hub,
            account,
            header,
            parts,
            kept_bytes: 0,
            kept: None,
            staging: None,
            dropped: Arc::default(),
            checksum: CommitChecksum::default(),
        }
    }

    /// Reads the stream to its end and checks it against what the sender counted.
    pub(super) async fn receive(
        &mut self,
        first: pb::CommitRequest,
        inbound: &mut Streaming<pb::CommitRequest>,
    ) -> Result<(), Status> {
        let mut message = first;
        loop {
            self.take_over(std::mem::take(&mut message.batches)).await?;
            if let Some(finish) = message.finish {
                std::mem::take(&mut self.checksum).check(&finish)?;
                return match next(&self.hub, inbound).await? {
                    None => Ok(()),
                    Some(_) => Err(Invalid::new("finish", "is not in the last message").into()),
                };
            }
            message = next(&self.hub, inbound).await?.ok_or_else(|| {
                Status::from(Invalid::new(
                    "finish",
                    "is missing: the stream ended early, nothing was committed",
                ))
            })?;
            if message.header.is_some() {
                return Err(Invalid::new("header", "is not in the first message alone").into());
            }
        }
    }

    /// Takes a commit that is one message.
    pub(super) async fn receive_whole(&mut self, message: pb::CommitRequest) -> Result<(), Status> {
        self.take_over(message.batches).await?;
        let finish = message.finish.ok_or_else(|| {
            Invalid::new(
                "finish",
                "is missing: a commit is one message of CommitEach, larger ones are for Commit",
            )
        })?;
        std::mem::take(&mut self.checksum).check(&finish)?;
        Ok(())
    }

    /// The parts, which the commit takes over, and what they were charged: to be kept until the store has them.
    pub(super) fn take(mut self) -> (CommitHeader, Vec<Part>, Option<Charge>) {
        (
            self.header.clone(),
            std::mem::take(&mut self.parts),
            self.kept.take(),
        )
    }

    /// Everything of a message before anything is waited for: what is decoded and not checked is not charged.
    async fn take_over(&mut self, batches: Vec<pb::PageBatch>) -> Result<(), Status> {
        #[cfg(feature = "simulation")]
        let batches = {
            let mut batches = batches;
            for batch in &mut batches {
                self.hub.settings.older.pages(&mut batch.pages);
            }
            batches
        };
        if batches.is_empty() {
            return Ok(());
        }
        if !batches.iter().all(|batch| encoded::are_raw(&batch.pages)) {
            return self.take_over_encoded(batches).await;
        }
        let mut added = MESSAGE_BYTES;
        for batch in batches {
            added += self.add(batch)?;
        }
        self.kept_bytes += added;
        let room = self.account.try_keep_upload(added);
        let has_room = room.is_some();
        self.keep(room);
        if self.kept_bytes > KEEP_BYTES || !has_room {
            self.stage_all().await?;
        }
        Ok(())
    }

    fn keep(&mut self, room: Option<Charge>) {
        match (&mut self.kept, room) {
            (Some(kept), Some(room)) => kept.merge(room),
            (none @ None, room) => *none = room,
            (Some(_), None) => {}
        }
    }

    /// A message with pages that have to be expanded (M-9).
    async fn take_over_encoded(&mut self, batches: Vec<pb::PageBatch>) -> Result<(), Status> {
        let mut came = Vec::new();
        let mut cost = encoded::Cost::default();
        for batch in batches {
            let index = batch.database_index as usize;
            let database = self.database(index)?;
            let (page_size, page_count) = (database.page_size, database.page_count);
            for wire in batch.pages {
                self.checksum.add(wire.crc32);
                let page = Received::from_wire(wire, page_size)?;
                check_number(page.number(), page_count)?;
                cost.add(&page, page_size);
                came.push((index, page));
            }
        }
        // What came stays until it is expanded, and shares the memory of its message.
        let came_is_kept = self.account.try_keep_upload(cost.as_it_came());
        let came_is_kept = came_is_kept.ok_or_else(encoded::refused)?;
        let room = cost.expanded()?;
        if self.kept_bytes + room > KEEP_BYTES {
            self.stage_all().await?;
        }
        let mut kept = self.account.try_keep_upload(room);
        if kept.is_none() && self.kept_bytes > 0 {
            self.stage_all().await?;
            kept = self.account.try_keep_upload(room);
        }
        if kept.is_none() {
            return Err(encoded::refused());
        }
        self.keep(kept);
        self.kept_bytes += room;
        let mut came = came.into_iter().peekable();
        while let Some((index, first)) = came.next() {
            let mut portion = vec![first];
            while portion.len() < encoded::PORTION
                && let Some((_, page)) = came.next_if(|(next, _)| *next == index)
            {
                portion.push(page);
            }
            self.expand(index, portion).await?;
        }
        drop(came_is_kept);
        Ok(())
    }

    /// Pages of one database, which are paid for.
    async fn expand(&mut self, index: usize, portion: Vec<Received>) -> Result<(), Status> {
        let database = self.database(index)?;
        let (id, base, page_size) = (database.database, database.base, database.page_size);
        let bases = match Bases::read(&self.hub, &self.account, id, base, &portion).await? {
            Some(bases) => bases,
            None => {
                self.parts[index].base_is_gone = true;
                return Ok(());
            }
        };
        for page in portion {
            let page = page.expand(page_size, &bases)?;
            self.parts[index].pages.push(page);
        }
        Ok(())
    }

    fn database(&self, index: usize) -> Result<&CommitDatabase, Invalid> {
        self.header.databases.get(index).ok_or_else(|| {
            Invalid::new(
                "database_index",
                format!("is {index}, the commit has {}", self.parts.len()),
            )
        })
    }

    /// The bytes that it takes.
    fn add(&mut self, batch: pb::PageBatch) -> Result<usize, Status> {
        let index = batch.database_index as usize;
        let database = self.database(index)?;
        let (page_size, page_count) = (database.page_size, database.page_count);
        let mut added = 0;
        for wire in batch.pages {
            self.checksum.add(wire.crc32);
            let page = Page::from_wire(wire, Some(page_size))?;
            check_number(page.number, page_count)?;
            added += page.content.len() + size_of::<PageWrite>();
            self.parts[index].pages.push(PageWrite {
                number: page.number,
                content: page.content,
            });
        }
        Ok(added)
    }

    /// What was paid for the pages goes back when the store has them or has room for them (M-7), whoever still waits for that.
    async fn stage_all(&mut self) -> Result<(), Status> {
        let kept = self.kept.take().map(Arc::new);
        self.kept_bytes = 0;
        for (database, part) in self.header.databases.iter().zip(&mut self.parts) {
            if part.pages.is_empty() {
                continue;
            }
            let staging = match part.staged {
                Some(staging) => staging,
                None => *part.staged.insert(StagingId::random()?),
            };
            let pages = std::mem::take(&mut part.pages);
            let (hub, id, page_size) =
                (Arc::clone(&self.hub), database.database, database.page_size);
            let dropped = Arc::clone(&self.dropped);
            let is_there = move || !dropped.load(Ordering::Acquire);
            let kept = kept.clone();
            let call = self.staging.insert(tokio::spawn(async move {
                // Whoever dropped it does not wait for an answer.
                let staged = hub.stage(id, staging, page_size, pages, is_there).await;
                drop(kept);
                staged.map(|_| ())
            }));
            let staged = call.await;
            self.staging = None;
            staged.map_err(|_| Reason::Unavailable.status("staging broke off: commit again"))??;
        }
        Ok(())
    }
}

fn check_number(number: PageNumber, count: PageCount) -> Result<(), Invalid> {
    match count.has(number) {
        true => Ok(()),
        false => Err(Invalid::new(
            "page number",
            format!("is {number}, the version has {} pages", count.get()),
        )),
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.dropped.store(true, Ordering::Release);
        let staged: Vec<_> = self.parts.iter().filter_map(|part| part.staged).collect();
        match self.staging.take() {
            None => self.hub.discard(staged),
            Some(call) => {
                let hub = Arc::clone(&self.hub);
                spawn_detached(async move {
                    // However it ends, it has ended.
                    let _ = call.await;
                    hub.discard(staged);
                });
            }
        }
    }
}
