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
//! The calls of the C library are taken over at linking: the engine's code is linked into this binary, and finds these first.

#![allow(unsafe_code, reason = "takes the place of functions of the C library")]

use std::ffi::{c_int, c_long, c_void};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;

use parking_lot::Mutex;
pub(crate) use rustix::io::Errno;

const SECTOR: usize = 512;
/// The engine's first two pages have its roots.
const ROOTS_END: usize = 2 * 4096;

/// The files of a store.
pub(crate) const FILES: [&str; 4] = ["data.mdb", "checkpoint", "log.0", "log.1"];
pub(crate) const DATA: usize = 0;
pub(crate) const SLOTS: usize = 1;
pub(crate) const LOGS: [usize; 2] = [2, 3];

/// How much of what is not synced is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Nothing,
    Everything,
    /// The last write overtook all others.
    OnlyTheLast,
    /// Each sector with even odds, by this seed.
    Sectors(u64),
    /// Each sector is as before, written, torn within, or trash (as in SQLite's test6.c), by this seed.
    Trash(u64),
}

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

/// What the files are; `None` where there is none. And whether the store is being made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image(pub(crate) [Option<Vec<u8>>; 4], pub(crate) bool);

impl Image {
    /// As they are in a directory.
    pub(crate) fn read(directory: &Path) -> Self {
        Self(
            FILES.map(|name| std::fs::read(directory.join(name)).ok()),
            directory.join(MAKING).exists(),
        )
    }

    /// Makes a directory with them.
    pub(crate) fn write(&self, directory: &Path) {
        std::fs::create_dir(directory).unwrap();
        if self.1 {
            std::fs::write(directory.join(MAKING), []).unwrap();
        }
        for (name, bytes) in FILES.iter().zip(&self.0) {
            let Some(bytes) = bytes else { continue };
            let used = bytes.iter().rposition(|byte| *byte != 0);
            std::fs::write(directory.join(name), &bytes[..used.map_or(0, |at| at + 1)]).unwrap();
            let file = std::fs::File::options()
                .write(true)
                .open(directory.join(name));
            file.unwrap().set_len(bytes.len() as u64).unwrap();
        }
    }
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

    /// The files when so many events were over, the next one under way.
    pub(crate) fn image(&self, moment: usize, disk: Disk) -> Image {
        let events = self.events.lock();
        let over = &events[..moment];
        let ends = ends(over);
        let mut random = match disk {
            Disk::Sectors(seed) | Disk::Trash(seed) => Random::new(seed),
            _ => Random::new(1),
        };
        let last_name = over
            .iter()
            .rposition(|event| matches!(event, Event::Name(..)));
        let mut image = self.before.clone();
        // How often each name was that of a new file, and whether that one has it on the disk.
        let mut files = image.0.each_ref().map(|file| (0, file.is_some()));
        // Durable by the last sync, or by itself: in the order of the calls.
        let mut loose: Vec<(usize, usize, &Event)> = Vec::new();
        for (index, (end, event)) in ends.iter().zip(over).enumerate() {
            match event {
                Event::Name(name, is_there) => {
                    let is_done = *end == Some(true)
                        || match disk {
                            Disk::Nothing => false,
                            Disk::Everything => true,
                            Disk::OnlyTheLast => Some(index) == last_name,
                            Disk::Sectors(_) | Disk::Trash(_) => random.next() & 1 == 0,
                        };
                    let Some((made, has_it)) = files.get_mut(*name) else {
                        image.1 = if is_done { *is_there } else { image.1 };
                        continue;
                    };
                    *made += usize::from(*is_there);
                    *has_it = *is_there && is_done;
                    if is_done {
                        image.0[*name] = is_there.then(Vec::new);
                    }
                }
                Event::Write { file, synced, .. } => {
                    // What shows in the files is not held back from them.
                    if *end == Some(true) || *synced || disk == Disk::Everything {
                        if files[*file].1 {
                            put(&mut image, event);
                        }
                    } else if end.is_none() {
                        loose.push((*file, files[*file].0, event));
                    }
                }
                Event::Length(file, _) => {
                    if *end == Some(true) || disk == Disk::Everything {
                        if files[*file].1 {
                            put(&mut image, event);
                        }
                    } else if end.is_none() {
                        loose.push((*file, files[*file].0, event));
                    }
                }
                _ => {}
            }
        }
        // A write that has not returned may be there in part, be it one that is synced.
        if let Some(event @ (Event::Write { file, .. } | Event::Length(file, _))) =
            events.get(moment)
        {
            loose.push((*file, files[*file].0, event));
        }
        // What was written to a file of which the disk does not know is nowhere.
        loose.retain(|(file, made, _)| files[*file] == (*made, true));
        let loose: Vec<&Event> = loose.into_iter().map(|(_, _, event)| event).collect();
        match disk {
            Disk::Nothing => {}
            Disk::Everything => loose.iter().for_each(|event| put(&mut image, event)),
            Disk::OnlyTheLast => loose
                .last()
                .into_iter()
                .for_each(|event| put(&mut image, event)),
            Disk::Sectors(_) | Disk::Trash(_) => {
                let has_trash = matches!(disk, Disk::Trash(_));
                for event in loose {
                    put_in_part(&mut image, event, has_trash, &mut random);
                }
            }
        }
        image
    }
}

/// Of each event: whether a sync says that it is on the disk, or one that failed says that it is not.
fn ends(over: &[Event]) -> Vec<Option<bool>> {
    let mut ends = vec![None; over.len()];
    // Of each file, and of the directory.
    let mut pending: [Vec<usize>; NAMES] = Default::default();
    for (index, event) in over.iter().enumerate() {
        let (of, began, is_durable) = match event {
            Event::Write { file, .. } | Event::Length(file, _) => {
                pending[*file].push(index);
                continue;
            }
            Event::Name(..) => {
                pending[FILES.len()].push(index);
                continue;
            }
            Event::Names(began) => (FILES.len(), *began, true),
            Event::Sync(file, began) => (*file, *began, true),
            Event::Lost(file, began) => (*file, *began, false),
            Event::Acknowledged(..) => continue,
        };
        let of_it = pending[of].partition_point(|index| *index < began);
        for index in pending[of].drain(..of_it) {
            ends[index] = Some(is_durable);
        }
    }
    ends
}

/// Does all that a write, or a length that is set, does.
fn put(image: &mut Image, event: &Event) {
    match event {
        Event::Write {
            file,
            offset,
            bytes,
            ..
        } => put_bytes(image, *file, *offset, bytes),
        Event::Length(file, length) => image.0[*file].get_or_insert_default().resize(*length, 0),
        _ => {}
    }
}

fn put_bytes(image: &mut Image, file: usize, offset: usize, bytes: &[u8]) {
    let image = image.0[file].get_or_insert_default();
    image.resize(image.len().max(offset + bytes.len()), 0);
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Does some of it.
fn put_in_part(image: &mut Image, event: &Event, has_trash: bool, random: &mut Random) {
    let Event::Write {
        file,
        offset: at,
        bytes,
        ..
    } = event
    else {
        if random.next() & 1 == 0 {
            put(image, event);
        }
        return;
    };
    let is_root = *file == DATA && *at < ROOTS_END;
    let (mut from, end) = (*at, at + bytes.len());
    while from < end {
        let to = end.min((from / SECTOR + 1) * SECTOR);
        let mut piece = bytes[from - at..to - at].to_vec();
        let there = image.0[*file].as_ref();
        let there = there.and_then(|there| there.get(from..to));
        let is_same = there == Some(&piece[..]);
        match random.next() % if has_trash { 4 } else { 2 } {
            // As it was.
            0 => {}
            2 if !is_same => {
                piece
                    .iter_mut()
                    .for_each(|byte| *byte = random.next() as u8);
                put_bytes(image, *file, from, &piece);
            }
            3 if !is_same && !is_root => {
                // Its beginning, or its end.
                let cut = random.next() as usize % piece.len();
                match random.next() & 1 {
                    0 => put_bytes(image, *file, from, &piece[..cut]),
                    _ => put_bytes(image, *file, from + cut, &piece[cut..]),
                }
            }
            _ => put_bytes(image, *file, from, &piece),
        }
        from = to;
    }
}

/// Small and repeatable.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Spread over all bits (splitmix64): the first numbers of small seeds are alike otherwise.
        let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((bits ^ bits >> 31) | 1)
    }

    pub(crate) fn seed() -> u64 {
        let id = pagewire_proto::CommitId::random().unwrap();
        u64::from_be_bytes(*id.as_bytes().first_chunk().unwrap()) >> 1
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1
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

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(target_arch = "x86_64")]
const KCMP: c_long = 312;
#[cfg(not(target_arch = "x86_64"))]
const KCMP: c_long = 272;

/// Whether both are of one open file, which is told of an error once. Where the system does not say, only the same one is.
fn is_duplicate(one: c_int, other: c_int) -> bool {
    let this = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: `kcmp(pid, pid, KCMP_FILE, fd, fd)` looks at two numbers, and writes nothing.
    one == other || unsafe { syscall(KCMP, this, this, 0, one, other) } == 0
}

/// As the C library says that a call failed.
fn failed(error: Errno) -> c_int {
    // SAFETY: the C library gives each thread a place of its own, for its whole life.
    unsafe { *__errno_location() = error.raw_os_error() };
    -1
}

/// The path of an open file of a store, and which one it is, while anything is recorded.
fn file_of(fd: c_int) -> Option<(PathBuf, usize)> {
    if LIVE_COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let file = FILES.iter().position(|name| path.ends_with(name))?;
    Some((path, file))
}

fn written(fd: BorrowedFd<'_>, raw: c_int, offset: usize, bytes: &[u8]) {
    let Some((path, file)) = file_of(raw) else {
        return;
    };
    let flags = rustix::fs::fcntl_getfl(fd).unwrap();
    let synced = flags.intersects(rustix::fs::OFlags::DSYNC | rustix::fs::OFlags::SYNC);
    let bytes = bytes.to_vec();
    record(
        &path,
        Event::Write {
            file,
            offset,
            bytes,
            synced,
        },
    );
}

/// Syncs, and says so: of what was written when it began. Whether it failed is looked at in its end, as Linux does.
fn synced(raw: c_int, sync: impl FnOnce()) -> c_int {
    let file = file_of(raw);
    let began = file.as_ref().map_or(0, |(path, _)| events_over(path));
    sync();
    let Some((path, file)) = file else { return 0 };
    wait_while_held(&path, file);
    let error = error_of(raw, Call::Sync, 0);
    match error {
        None => record(&path, Event::Sync(file, began)),
        Some(_) => record(&path, Event::Lost(file, began)),
    }
    error.map_or(0, failed)
}

/// No error of the medium is expected in a test: it ends there.
fn done<T>(result: rustix::io::Result<T>, what: &str) -> T {
    result.unwrap_or_else(|error| {
        eprintln!("{what}: {error}");
        std::process::abort()
    })
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller holds the file open and the bytes readable for the time of the call, as for the function it means.
    let (file, bytes) = unsafe {
        (
            BorrowedFd::borrow_raw(fd),
            std::slice::from_raw_parts(bytes.cast::<u8>(), length),
        )
    };
    let error = error_of(fd, Call::Write, offset as usize + length);
    let bytes = match error {
        None => bytes,
        // Some of it is there.
        Some(_) => &bytes[..length / 2 / SECTOR * SECTOR],
    };
    let count = done(rustix::io::pwrite(file, bytes, offset as u64), "pwrite");
    written(file, fd, offset as usize, &bytes[..count]);
    error.map_or(count as isize, |error| failed(error) as isize)
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn pread64(fd: c_int, bytes: *mut c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller holds the file open and the bytes writable for the time of the call, and reads no more of them than are read.
    let (file, bytes) = unsafe {
        std::ptr::write_bytes(bytes.cast::<u8>(), 0, length);
        let bytes = std::slice::from_raw_parts_mut(bytes.cast::<u8>(), length);
        (BorrowedFd::borrow_raw(fd), bytes)
    };
    match error_of(fd, Call::Read, offset as usize + length) {
        Some(error) => failed(error) as isize,
        None => match rustix::io::pread(file, bytes, offset as u64) {
            Ok(count) => count as isize,
            Err(error) => failed(error) as isize,
        },
    }
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn pwrite64(
    fd: c_int,
    bytes: *const c_void,
    length: usize,
    offset: i64,
) -> isize {
    // SAFETY: the same function under its other name.
    unsafe { pwrite(fd, bytes, length, offset) }
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn writev(fd: c_int, parts: *const c_void, count: c_int) -> isize {
    // SAFETY: the caller holds the file open and the parts readable for the time of the call; `IoSlice` is an iovec by its contract.
    let (file, parts) = unsafe {
        let parts = std::slice::from_raw_parts(parts.cast::<IoSlice<'_>>(), count as usize);
        (BorrowedFd::borrow_raw(fd), parts)
    };
    let is_recorded = file_of(fd).is_some();
    let offset = match is_recorded {
        true => done(rustix::fs::tell(file), "lseek") as usize,
        false => 0,
    };
    if let Some(error) = error_of(fd, Call::Write, usize::MAX) {
        return failed(error) as isize;
    }
    let length = done(rustix::io::writev(file, parts), "writev");
    if is_recorded {
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        written(file, fd, offset, &all[..length]);
    }
    length as isize
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    // SAFETY: the caller holds the file open for the time of the call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    synced(fd, || done(rustix::fs::fdatasync(file), "fdatasync"))
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    // SAFETY: the caller holds the file open for the time of the call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    let directory = directory_of(fd);
    let began = directory.as_ref().map_or(0, |path| events_over(path));
    let result = synced(fd, || done(rustix::fs::fsync(file), "fsync"));
    if let Some(path) = directory {
        record(&path, Event::Names(began));
    }
    result
}

/// The path of an open directory of a store that is recorded.
fn directory_of(fd: c_int) -> Option<PathBuf> {
    if LIVE_COUNT.load(Ordering::SeqCst) == 0 {
        return None;
    }
    let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let live = LIVE.lock();
    live.iter()
        .any(|live| live.directory == path)
        .then_some(path)
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, length: i64) -> c_int {
    // SAFETY: the caller holds the file open for the time of the call.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    done(rustix::fs::ftruncate(file, length as u64), "ftruncate");
    if let Some((path, file)) = file_of(fd) {
        record(&path, Event::Length(file, length as usize));
    }
    0
}

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate(fd: c_int, length: i64) -> c_int {
    // SAFETY: the same function under its other name.
    unsafe { ftruncate64(fd, length) }
}
