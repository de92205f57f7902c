//! The pages of a commit on their way in: checked one by one, kept in memory up to a bound, staged in the store beyond it.
//!
//! Whatever ends an upload early drops what it staged.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagewire_proto::status::Reason;
use pagewire_proto::{CommitChecksum, CommitHeader, Invalid, Page, StagingId, pb};
use tonic::{Status, Streaming};

use crate::hub::Hub;
use crate::store::PageWrite;

/// Bytes of pages that one upload keeps in memory: a commit of 1 GiB needs no more than this and a message.
const KEEP_BYTES: usize = 4 << 20;

/// The same for all uploads together: beyond it each stages what it has at once.
const KEEP_BYTES_IN_TOTAL: usize = 256 << 20;

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
    header: CommitHeader,
    /// In the order of the databases of the header.
    parts: Vec<Part>,
    kept_bytes: usize,
    checksum: CommitChecksum,
}

/// The pages of one database.
#[derive(Default)]
pub(super) struct Part {
    pub(super) staged: Option<StagingId>,
    pub(super) pages: Vec<PageWrite>,
}

impl Upload {
    pub(super) fn new(hub: Arc<Hub>, header: CommitHeader) -> Self {
        let parts = header.databases.iter().map(|_| Part::default()).collect();
        Self {
            hub,
            header,
            parts,
            kept_bytes: 0,
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
            for batch in std::mem::take(&mut message.batches) {
                self.add(batch).await?;
            }
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

    /// The parts, which the commit takes over.
    pub(super) fn take(mut self) -> (CommitHeader, Vec<Part>) {
        (self.header.clone(), std::mem::take(&mut self.parts))
    }

    async fn add(&mut self, batch: pb::PageBatch) -> Result<(), Status> {
        let index = batch.database_index as usize;
        let (Some(database), Some(part)) =
            (self.header.databases.get(index), self.parts.get_mut(index))
        else {
            return Err(Invalid::new(
                "database_index",
                format!("is {index}, the commit has {}", self.parts.len()),
            )
            .into());
        };
        let mut added = 0;
        for wire in batch.pages {
            self.checksum.add(wire.crc32);
            let page = Page::from_wire(wire, Some(database.page_size))?;
            if !database.page_count.has(page.number) {
                return Err(Invalid::new(
                    "page number",
                    format!(
                        "is {}, the version has {} pages",
                        page.number,
                        database.page_count.get()
                    ),
                )
                .into());
            }
            added += page.content.len() + size_of::<PageWrite>();
            part.pages.push(PageWrite {
                number: page.number,
                content: page.content,
            });
        }
        let before = self.hub.upload_bytes.fetch_add(added, Ordering::Relaxed);
        self.kept_bytes += added;
        if self.kept_bytes > KEEP_BYTES || before + added > KEEP_BYTES_IN_TOTAL {
            self.stage_all().await?;
        }
        Ok(())
    }

    fn forget_kept_bytes(&mut self) {
        let kept = std::mem::take(&mut self.kept_bytes);
        self.hub.upload_bytes.fetch_sub(kept, Ordering::Relaxed);
    }

    async fn stage_all(&mut self) -> Result<(), Status> {
        for (database, part) in self.header.databases.iter().zip(&mut self.parts) {
            if part.pages.is_empty() {
                continue;
            }
            let staging = match part.staged {
                Some(staging) => staging,
                None => *part.staged.insert(StagingId::random()?),
            };
            let pages = std::mem::take(&mut part.pages);
            let store = &self.hub.store;
            self.hub
                .bounded(store.stage(database.database, staging, database.page_size, pages))
                .await?;
        }
        self.forget_kept_bytes();
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.forget_kept_bytes();
        let staged = self.parts.iter().filter_map(|part| part.staged).collect();
        self.hub.discard(staged);
    }
}
