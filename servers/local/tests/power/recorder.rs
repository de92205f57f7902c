//! What the process writes and syncs under a directory, call by call, and the disk as it may be when the power goes in the midst of it.
//!
//! * A write that had returned when a sync of its file began, which has ended, is on the disk; one to a file that was opened to sync each write is
//!   when it returns.
//! * Any other write is there, or not, sector by sector, whatever came before or after it, in this file or another. With [`Disk::Trash`]
//!   sectors of it may also have bytes that nobody wrote, or be torn within, but for the engine's roots (README.md, "Medium"); what is beside the write in the same sector stays (SQLite
//!   calls that a powersafe overwrite), and so does a sector to which the bytes are written that it has.
//! * Names that were made or taken away are durable when a sync of the directory began afterwards, and has ended; before that they are as before, or
//!   not. A file whose name is lost is lost with what was synced in it. A length that was set is as durable as what is written.
//! * Files have what was written to them before the recording began.
//! * Where a sync failed, what it was for is in the cache, and on the disk only if it is written again ([`Recording::fail`]).
//!
//! `recorder/calls.rs` has the calls, `recorder/disk.rs` puts the disk together.

mod calls;
mod disk;

use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;

use calls::{file_of, is_duplicate};
pub(crate) use disk::{Disk, Image, Random};
use parking_lot::Mutex;
pub(crate) use rustix::io::Errno;

/// The files of a store.
pub(crate) const FILES: [&str; 4] = ["data.mdb", "checkpoint", "log.0", "log.1"];
pub(crate) const DATA: usize = 0;
pub(crate) const SLOTS: usize = 1;
pub(crate) const LOGS: [usize; 2] = [2, 3];

#[derive(Clone, Debug)]
enum Event {
    Write {
        file: usize,
        offset: usize,
        bytes: Vec<u8>,
        synced: bool,
    },
    /// A file has this length.
    Length(usize, usize),
    /// A name is there from now on, of an empty file; or is not there any more.
    Name(usize, bool),
    /// Of the directory; how many events were over when it began.
    Names(usize),
    /// Of a file; how many events were over when it began.
    Sync(usize, usize),
    /// The same of one that failed: the operating system takes for written what was not.
    Lost(usize, usize),
    Acknowledged(&'static str, u64),
}

/// Of one directory.
#[derive(Debug)]
pub(crate) struct Recording {
    directory: PathBuf,
    before: Image,
    events: Mutex<Vec<Event>>,
}

/// What a store that is being made has besides, empty; the name behind those of [`FILES`].
const MAKING: &str = "NEW";
const NAMES: usize = FILES.len() + 1;

/// What was recorded, by file.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) writes: [usize; 4],
    pub(crate) synced_writes: [usize; 4],
    pub(crate) syncs: [usize; 4],
    /// Lengths that were set.
    pub(crate) lengths: usize,
    /// Names that were made, and taken away; syncs of the directory.
    pub(crate) names: [usize; 2],
    pub(crate) directory_syncs: usize,
}

struct Live {
    directory: PathBuf,
    events: Vec<Event>,
    /// Which names are there, as far as was noticed.
    names: [bool; NAMES],
    failing: Option<Failing>,
    /// What was written back to a file in vain, and which open files were told.
    lost: Option<(usize, Errno, Vec<c_int>)>,
    /// Of this file the first sync does not end, which is of this thread.
    held: Option<usize>,
    holder: Option<ThreadId>,
}

impl Live {
    fn notice_names(&mut self) {
        let all = FILES.iter().chain([&MAKING]);
        for (name, (path, was_there)) in all.zip(&mut self.names).enumerate() {
            let is_there = self.directory.join(path).exists();
            if is_there != std::mem::replace(was_there, is_there) {
                self.events.push(Event::Name(name, is_there));
            }
        }
    }
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Of what is named only.
    Read,
    Write,
    Sync,
}

/// Calls that fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failing {
    /// Of these files; of all where there are none.
    pub(crate) files: &'static [usize],
    pub(crate) call: Option<Call>,
    /// Writes of what is before are done.
    pub(crate) from_offset: usize,
    /// So many are done, then so many fail.
    pub(crate) after: usize,
    pub(crate) times: usize,
    pub(crate) error: Errno,
}

impl Failing {
    /// The next call.
    pub(crate) fn next(files: &'static [usize], call: Call, error: Errno) -> Self {
        Self {
            files,
            call: Some(call),
            from_offset: 0,
            after: 0,
            times: 1,
            error,
        }
    }
}

/// All that are under way: tests run beside each other.
static LIVE: Mutex<Vec<Live>> = Mutex::new(Vec::new());
static LIVE_COUNT: AtomicUsize = AtomicUsize::new(0);

impl Recording {
    /// Records what is done under a directory from now on.
    pub(crate) fn begin(directory: &Path) -> Self {
        let parent = directory.parent().unwrap().canonicalize().unwrap();
        let directory = parent.join(directory.file_name().unwrap());
        LIVE.lock().push(Live {
            names: names_in(&directory),
            directory: directory.clone(),
            events: Vec::new(),
            failing: None,
            lost: None,
            held: None,
            holder: None,
        });
        LIVE_COUNT.fetch_add(1, Ordering::SeqCst);
        Self {
            before: Image::read(&directory),
            directory,
            events: Mutex::default(),
        }
    }

    pub(crate) fn end(&self) {
        let mut live = LIVE.lock();
        let index = live
            .iter()
            .position(|live| live.directory == self.directory);
        let mut live = live.remove(index.unwrap());
        live.notice_names();
        *self.events.lock() = live.events;
        LIVE_COUNT.fetch_sub(1, Ordering::SeqCst);
    }

    /// Somebody was told that something is durable.
    pub(crate) fn acknowledge(&self, what: &'static str, number: u64) {
        record(&self.directory, Event::Acknowledged(what, number));
    }

    fn live<T>(&self, of: impl FnOnce(&mut Live) -> T) -> T {
        let mut live = LIVE.lock();
        let mut all = live.iter_mut();
        of(all.find(|live| live.directory == self.directory).unwrap())
    }

    /// From now on calls fail.
    pub(crate) fn fail(&self, failing: Failing) {
        self.live(|live| live.failing = Some(failing));
    }

    /// How many calls that were to fail have not.
    pub(crate) fn left_to_fail(&self) -> usize {
        self.live(|live| live.failing.map_or(0, |failing| failing.times))
    }

    /// The operating system failed to write to a file in the background: the next sync of each open file answers that, once.
    pub(crate) fn lose(&self, file: usize, error: Errno) {
        self.live(|live| live.lost = Some((file, error, Vec::new())));
    }

    /// The next sync of a file does not end, nor does what the same thread syncs after it; `None` for all do.
    pub(crate) fn hold(&self, file: Option<usize>) {
        self.live(|live| (live.held, live.holder) = (file, None));
    }

    /// Whether a sync is held.
    pub(crate) fn is_held(&self) -> bool {
        self.live(|live| live.holder.is_some())
    }

    /// How many events are over, while it goes on.
    pub(crate) fn moment(&self) -> usize {
        self.live(|live| live.events.len())
    }

    /// The disk had something else than the files showed when the recording began: a sync had failed, and what it was for is in the
    /// cache of the operating system alone, which takes it for written.
    pub(crate) fn began_with(self, before: Image) -> Self {
        Self { before, ..self }
    }

    /// The moments in which a write to a file is over, and its sync is next.
    pub(crate) fn unsynced(&self, file: usize) -> Vec<usize> {
        let events = self.events.lock();
        let moments = (1..events.len()).filter(|moment| {
            matches!(&events[moment - 1], Event::Write { file: of, .. } if *of == file)
                && matches!(&events[*moment], Event::Sync(of, _) if *of == file)
        });
        moments.collect()
    }

    /// The moments in which a write that syncs is under way.
    pub(crate) fn synced_writes(&self, file: usize) -> Vec<usize> {
        let events = self.events.lock();
        let moments = (0..events.len()).filter(|moment| {
            matches!(&events[*moment], Event::Write { file: of, synced: true, .. } if *of == file)
        });
        moments.collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.events.lock().len()
    }

    pub(crate) fn told(&self) -> Told {
        let mut told = Told::default();
        for event in &*self.events.lock() {
            match event {
                Event::Write {
                    file, synced: true, ..
                } => told.synced_writes[*file] += 1,
                Event::Write { file, .. } => told.writes[*file] += 1,
                Event::Sync(file, _) => told.syncs[*file] += 1,
                Event::Length(..) => told.lengths += 1,
                Event::Name(_, is_there) => told.names[usize::from(!is_there)] += 1,
                Event::Names(_) => told.directory_syncs += 1,
                Event::Lost(..) | Event::Acknowledged(..) => {}
            }
        }
        told
    }

    /// The same on a disk that only says that it syncs.
    pub(crate) fn without_syncs(&self) -> Self {
        let events = self.events.lock().clone().into_iter();
        let lied = events
            .filter(|event| !matches!(event, Event::Sync(..)))
            .map(|event| match event {
                Event::Write {
                    file,
                    offset,
                    bytes,
                    ..
                } => Event::Write {
                    file,
                    offset,
                    bytes,
                    synced: false,
                },
                event => event,
            });
        Self {
            directory: self.directory.clone(),
            before: self.before.clone(),
            events: Mutex::new(lied.collect()),
        }
    }

    /// What was acknowledged when so many events were over.
    pub(crate) fn acknowledged(&self, moment: usize) -> Vec<(&'static str, u64)> {
        let events = self.events.lock();
        let acknowledged = events[..moment].iter().filter_map(|event| match event {
            Event::Acknowledged(what, number) => Some((*what, *number)),
            _ => None,
        });
        acknowledged.collect()
    }
}

/// Adds an event to the recording that a path is of, if there is one.
fn record(path: &Path, event: Event) {
    let mut live = LIVE.lock();
    if let Some(live) = live
        .iter_mut()
        .find(|live| path.starts_with(&live.directory))
    {
        live.notice_names();
        live.events.push(event);
    }
}

/// How many events are over of the recording that a path is of.
fn events_over(path: &Path) -> usize {
    let mut live = LIVE.lock();
    let mut all = live.iter_mut();
    let live = all.find(|live| path.starts_with(&live.directory));
    live.map_or(0, |live| {
        live.notice_names();
        live.events.len()
    })
}

fn names_in(directory: &Path) -> [bool; NAMES] {
    let mut names = FILES.iter().chain([&MAKING]);
    std::array::from_fn(|_| {
        names
            .next()
            .is_some_and(|name| directory.join(name).exists())
    })
}

/// The error that a call is to answer.
fn error_of(raw: c_int, call: Call, end: usize) -> Option<Errno> {
    let (path, file) = file_of(raw)?;
    let mut live = LIVE.lock();
    let mut all = live.iter_mut();
    let live = all.find(|live| path.starts_with(&live.directory))?;
    if call == Call::Sync
        && let Some((of, error, told)) = &mut live.lost
        && *of == file
        && !told.iter().any(|fd| is_duplicate(*fd, raw))
    {
        told.push(raw);
        return Some(*error);
    }
    let failing = live.failing.as_mut()?;
    let is_meant = (failing.files.is_empty() || failing.files.contains(&file))
        && failing.call.map_or(call != Call::Read, |of| of == call)
        && (call == Call::Sync || end > failing.from_offset);
    if !is_meant || failing.times == 0 {
        return None;
    }
    match failing.after {
        0 => {
            failing.times -= 1;
            Some(failing.error)
        }
        _ => {
            failing.after -= 1;
            None
        }
    }
}

/// Waits while syncs of this file by this thread are held.
fn wait_while_held(path: &Path, file: usize) {
    let this = std::thread::current().id();
    let is_held = || {
        let mut live = LIVE.lock();
        let mut all = live.iter_mut();
        let live = all.find(|live| path.starts_with(&live.directory) && live.held == Some(file));
        live.is_some_and(|live| *live.holder.get_or_insert(this) == this)
    };
    while is_held() {
        #[expect(clippy::disallowed_methods, reason = "its end is what is waited for")]
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
