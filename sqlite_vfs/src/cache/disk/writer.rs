//! The thread that writes: pages that were offered, and change logs.
//!
//! One for each client that has a disk cache, from the first page on. Pages wait for a moment, so that one that is written again
//! and again is written once, and all of them in the order in which they lie in the file.
//!
//! A child of fork() has no such thread, and uses nothing of its parent's: see `process.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pagewire_proto::PageNumber;
use parking_lot::{Condvar, Mutex};

use super::slots::Found;
use super::{DiskFile, Entry, Trouble, log, room};
use crate::client::counters::DISK;
use crate::settings::DiskSettings;

/// Bytes of pages that may wait; more are left out (Q6).
const MAX_PENDING_BYTES: usize = 16 << 20;
/// How long pages wait for others.
const GATHER: Duration = Duration::from_millis(20);
/// Of most file systems.
const BLOCK_BYTES: u64 = 4096;
/// Of the pages that would take the place of another one so many do: who reads more than there is room for keeps most of what is there.
const REPLACE_ONE_OF: u32 = 8;

/// See the file's header.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    settings: DiskSettings,
    inner: Mutex<Inner>,
    /// Signalled when there is something to do.
    wake: Condvar,
    /// Signalled when the thread has ended.
    ended: Condvar,
    refusals: AtomicU32,
    trouble: Arc<Trouble>,
}

#[derive(Default)]
struct Inner {
    pages: BTreeMap<(u64, PageNumber), (Arc<DiskFile>, Entry)>,
    /// Of pages that wait or are being written.
    bytes: usize,
    /// Files whose log shall be saved.
    logs: BTreeMap<u64, Arc<DiskFile>>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// No thread yet.
    #[default]
    None,
    Running,
    /// It shall write what is there, and end.
    Stopping,
    Ended,
}

impl Writer {
    /// Without a thread as long as there is nothing to write.
    pub fn new(settings: DiskSettings, trouble: Arc<Trouble>) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                inner: Mutex::default(),
                wake: Condvar::new(),
                ended: Condvar::new(),
                refusals: AtomicU32::new(0),
                trouble,
            }),
        }
    }

    /// Takes a page to be written, unless too much waits already.
    pub fn offer(&self, file: &Arc<DiskFile>, page: PageNumber, entry: Entry) {
        let mut inner = self.shared.inner.lock();
        let place = (file.key.0, page);
        let length = entry.content.len();
        if let Some((_, waiting)) = inner.pages.get_mut(&place) {
            if waiting.upto <= entry.upto {
                *waiting = entry;
            }
            return;
        }
        if inner.bytes + length > MAX_PENDING_BYTES {
            DISK.dropped();
            return;
        }
        if !self.is_running(&mut inner) {
            return;
        }
        inner.bytes += length;
        let was_idle = inner.pages.is_empty();
        inner.pages.insert(place, (Arc::clone(file), entry));
        drop(inner);
        if was_idle {
            self.shared.wake.notify_one();
        }
    }

    /// Has the log of a file saved.
    pub fn save(&self, file: &Arc<DiskFile>) {
        let mut inner = self.shared.inner.lock();
        if self.is_running(&mut inner) {
            inner.logs.insert(file.key.0, Arc::clone(file));
            self.shared.wake.notify_one();
        }
    }

    /// Whether nothing waits and nothing is being written.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        let inner = self.shared.inner.lock();
        inner.bytes == 0 && inner.logs.is_empty()
    }

    /// Writes what waits, and ends the thread. It goes on by itself where that takes longer.
    pub fn stop(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut inner = self.shared.inner.lock();
        if inner.phase == Phase::Running {
            inner.phase = Phase::Stopping;
            self.shared.wake.notify_one();
        }
        while inner.phase == Phase::Stopping {
            if self
                .shared
                .ended
                .wait_until(&mut inner, deadline)
                .timed_out()
            {
                return;
            }
        }
    }

    /// Starts the thread where there is none yet.
    fn is_running(&self, inner: &mut Inner) -> bool {
        if inner.phase == Phase::None {
            let shared = Arc::clone(&self.shared);
            let started = std::thread::Builder::new()
                .name("pagewire-disk".to_owned())
                .spawn(move || shared.run());
            match started {
                Ok(_) => inner.phase = Phase::Running,
                Err(error) => {
                    inner.phase = Phase::Ended;
                    let reason = format!("can't start its thread: {error}");
                    self.shared.trouble.report(reason);
                }
            }
        }
        inner.phase == Phase::Running
    }
}

impl Shared {
    fn run(&self) {
        // However it ends, nobody waits for it in vain.
        let _end = End(self);
        let mut room = room::Room::new(&self.settings);
        loop {
            let mut inner = self.inner.lock();
            while inner.pages.is_empty() && inner.logs.is_empty() && inner.phase == Phase::Running {
                self.wake.wait(&mut inner);
            }
            if inner.phase == Phase::Running && inner.logs.is_empty() {
                let gathered = Instant::now() + GATHER;
                while inner.phase == Phase::Running
                    && inner.logs.is_empty()
                    && inner.bytes < MAX_PENDING_BYTES / 2
                    && !self.wake.wait_until(&mut inner, gathered).timed_out()
                {}
            }
            let is_last = inner.phase != Phase::Running;
            let pages = std::mem::take(&mut inner.pages);
            let logs = std::mem::take(&mut inner.logs);
            let bytes = inner.bytes;
            drop(inner);
            for ((_, page), (file, entry)) in pages {
                self.write(&mut room, &file, page, &entry);
            }
            for file in logs.into_values() {
                self.save(&mut room, &file);
            }
            // Until now they were in memory.
            self.inner.lock().bytes -= bytes;
            if is_last {
                return;
            }
        }
    }

    fn write(&self, room: &mut room::Room<'_>, file: &DiskFile, page: PageNumber, entry: &Entry) {
        if !file.takes_pages() {
            return;
        }
        let fills = match file.slots.read(page) {
            Found::Nothing => true,
            Found::Page(there) if !is_worth(&there, page, entry, file) => return,
            Found::Another(there) if !self.may_replace(&there, file) => return,
            Found::Page(_) | Found::Another(_) | Found::Damaged => false,
        };
        // Slots lie across the blocks of the file system.
        let bytes = file.slots.slot_bytes().next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES;
        if fills && let Err(reason) = room.take(bytes, file.slots.path()) {
            self.give_up(file, reason);
            return;
        }
        if !file.slots.is_there() {
            // Somebody has removed it, or made room. What is written to it now nobody else finds, and nobody counts.
            file.close();
            return;
        }
        match file.slots.write(page, entry) {
            Ok(()) => DISK.written(),
            Err(error) => {
                let path = file.slots.path().display();
                self.give_up(file, format!("can't write {path}: {error}"));
            }
        }
    }

    /// Whether what is in the slot may make way for another page: always where it is not that of the head.
    fn may_replace(&self, there: &Entry, file: &DiskFile) -> bool {
        let log = file.log.read();
        let is_current = there.upto >= log.since();
        drop(log);
        let turn = self.refusals.fetch_add(1, Ordering::Relaxed);
        !is_current || turn.is_multiple_of(REPLACE_ONE_OF)
    }

    fn save(&self, room: &mut room::Room<'_>, file: &DiskFile) {
        if !file.takes_pages() || !file.slots.is_there() {
            return;
        }
        let known = file.log.read().clone();
        let bytes = log::size(&known).next_multiple_of(BLOCK_BYTES);
        if bytes > room::most_for_log(self.settings.bytes) {
            return;
        }
        if let Err(reason) = room.take(bytes, file.slots.path()) {
            self.give_up(file, reason);
            return;
        }
        file.saved.fetch_max(known.head().get(), Ordering::Relaxed);
        let gap = match file.too_old.load(Ordering::Relaxed) {
            true => log::Gap::GiveUp,
            false => log::Gap::MayBeBridged,
        };
        if let Err(reason) = log::save(&file.log_path, &file.identity, known, gap) {
            self.give_up(file, reason);
        }
    }

    fn give_up(&self, file: &DiskFile, reason: String) {
        file.close();
        self.trouble.report(reason);
    }
}

/// Whether a page is better than what its slot has of it: newer, and not answered by it anyway.
fn is_worth(there: &Entry, page: PageNumber, entry: &Entry, file: &DiskFile) -> bool {
    entry.upto > there.upto && !there.holds(page, entry.upto, &file.log.read())
}

struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.inner.lock();
        inner.phase = Phase::Ended;
        inner.pages.clear();
        inner.logs.clear();
        drop(inner);
        self.0.ended.notify_all();
    }
}
