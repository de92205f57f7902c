//! The disk cache as one database uses it: which files, what lies in them, and what has to be asked before that counts (Q4 and Q9
//! of `cache/disk/mod.rs`).

use std::sync::Arc;

use bytes::Bytes;
use pagewire_proto::{Changes, PageNumber, PageSize, Snapshot, Version};
use tokio::time::Instant;

use super::Database;
use crate::cache::ChangeLog;
use crate::cache::disk::{DiskFile, DiskPage};
use crate::client::counters::DISK;

/// What a question about the changes since the end of a log has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bridged {
    /// The log counts.
    Joined,
    /// It is too old.
    TooOld,
    /// The server has not come as far as the log: it has another history.
    OtherHistory,
}

impl Database {
    /// The files of the database, opened when they are wanted for the first time. A database that was never committed to has none, and
    /// one that takes another page size has none before it is opened again.
    fn disk(&self, page_size: PageSize) -> Option<&Arc<DiskFile>> {
        let cache = self.client.disk.as_ref()?;
        let incarnation = self.incarnation?;
        let file = self.state.disk.get_or_init(|| {
            let state = &self.state;
            state.check().ok()?;
            let log = Arc::clone(&state.log);
            let (file, found) = cache.attach(incarnation, state.id(), page_size, state.key, log)?;
            if let Some(found) = found {
                state.knows_of_earlier(found);
            }
            Some(file)
        });
        file.as_ref()
            .filter(|file| file.page_size() == page_size && self.state.check().is_ok())
    }

    /// The page at the snapshot, if it is on disk and holds there. May ask what has changed since the file was written.
    pub(super) fn page_on_disk(
        &self,
        snapshot: &Snapshot,
        page_size: PageSize,
        page: PageNumber,
        deadline: Instant,
    ) -> Option<Bytes> {
        let file = self.disk(page_size)?;
        let found = self.page_in_file(file, snapshot.version, page, deadline);
        DISK.looked(found.is_some());
        let (from, upto, content) = found?.into_parts();
        // It holds at the snapshot too, whatever is forgotten of the changes in between.
        let upto = upto.max(snapshot.version);
        self.client
            .cache
            .put(self.state.key, page, from, upto, content.clone());
        Some(content)
    }

    fn page_in_file(
        &self,
        file: &Arc<DiskFile>,
        at: Version,
        page: PageNumber,
        deadline: Instant,
    ) -> Option<DiskPage> {
        let found = file.read(page)?;
        if !self.is_of_this_history(file, found.upto(), deadline) {
            return None;
        }
        let holds = || found.holds(page, at, &self.state.log.read());
        if holds() || (found.may_hold(at) && self.bridge(file, deadline) && holds()) {
            return Some(found);
        }
        None
    }

    /// Q9: the server has come as far as the slot, and as the log. What another process was told of goes beyond what is known here
    /// now and then; then the server is asked.
    fn is_of_this_history(&self, file: &Arc<DiskFile>, upto: Version, deadline: Instant) -> bool {
        let head = self.state.head().version;
        if file.is_proven(upto, head) {
            return true;
        }
        let core = &self.client.core;
        let answer = self.call(deadline, || {
            core.begin_snapshot(self.state.id(), head, deadline)
        });
        let Ok((head, _, _)) = answer else {
            return false;
        };
        if self.state.check().is_err() {
            // It was the answer of another store.
            return false;
        }
        file.prove(head.version);
        let is_proven = file.is_proven(upto, head.version);
        if !is_proven {
            file.discard();
        }
        is_proven
    }

    /// Makes the log that was found count, if it can. Whoever comes while another asks reads from the server.
    fn bridge(&self, file: &Arc<DiskFile>, deadline: Instant) -> bool {
        let Some(earlier) = self.state.take_earlier() else {
            return false;
        };
        if self.state.join_if_known(&earlier) {
            return true;
        }
        let known = earlier.head();
        let core = &self.client.core;
        let answer = self.call(deadline, || {
            core.begin_snapshot(self.state.id(), known, deadline)
        });
        match answer {
            // A store that was replaced meanwhile may have answered with versions of its own.
            Ok(_) if self.state.check().is_err() => false,
            Ok((head, changes, _)) => self.bridged(file, earlier, head, &changes),
            Err(_) => {
                // Whoever wants a page hears what is wrong by asking for it.
                self.state.knows_of_earlier(earlier);
                false
            }
        }
    }

    fn bridged(
        &self,
        file: &Arc<DiskFile>,
        earlier: ChangeLog,
        head: Snapshot,
        changes: &Changes,
    ) -> bool {
        match self.state.join(earlier, head.version, changes) {
            Bridged::Joined => true,
            Bridged::TooOld => {
                file.log_is_too_old();
                false
            }
            Bridged::OtherHistory => {
                file.discard();
                false
            }
        }
    }

    /// The log whose end a BeginSnapshot shall name instead of the head known here: the answer bridges the gap by the way.
    pub(super) fn earlier_to_ask_with(&self, known: Version) -> Option<ChangeLog> {
        self.client.disk.as_ref()?;
        self.disk(self.state.head().page_size?)?;
        let earlier = self.state.take_earlier()?;
        if self.state.join_if_known(&earlier) {
            return None;
        }
        if earlier.head() > known {
            self.state.knows_of_earlier(earlier);
            return None;
        }
        Some(earlier)
    }

    /// What became of that question.
    pub(super) fn asked_with(
        &self,
        earlier: Option<ChangeLog>,
        answer: Option<(&Snapshot, &Changes)>,
    ) {
        let (Some(earlier), Some(Some(file))) = (earlier, self.state.disk.get()) else {
            return;
        };
        match answer {
            Some((head, changes)) => {
                self.bridged(file, earlier, *head, changes);
            }
            None => self.state.knows_of_earlier(earlier),
        }
    }

    /// Remembers a page on disk, some time soon.
    pub(super) fn keep_on_disk(
        &self,
        page: PageNumber,
        from: Version,
        upto: Version,
        content: &Bytes,
    ) {
        if self.client.disk.is_none() {
            return;
        }
        // What was never written reads as zeros; it has no size either.
        let Ok(page_size) = PageSize::try_from(content.len() as u32) else {
            return;
        };
        if let Some(file) = self.disk(page_size) {
            file.offer(page, from, upto, content);
        }
    }

    /// What `pagewire_status` shows of it.
    pub(super) fn disk_status(&self) -> Vec<(&'static str, String)> {
        let Some(cache) = &self.client.disk else {
            return vec![("disk_cache", "none".to_owned())];
        };
        let disk_cache = match self.state.disk.get() {
            // Nothing was read or written yet.
            None => cache.directory().display().to_string(),
            Some(file) => cache.describe(file.as_deref()),
        };
        let count = DISK.read();
        vec![
            ("disk_cache", disk_cache),
            ("disk_hits", count.hits.to_string()),
            ("disk_misses", count.misses.to_string()),
            ("disk_written", count.written.to_string()),
            ("disk_dropped", count.dropped.to_string()),
            ("disk_damaged", count.damaged.to_string()),
        ]
    }

    /// A warning about it that nobody was given yet.
    pub fn disk_warning(&self) -> Option<String> {
        self.client.disk.as_ref()?.warning()
    }
}
