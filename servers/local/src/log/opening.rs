//! What is found at an opening: which checkpoint counts, which records are after it, and whether anything that was acknowledged is
//! missing (LOG2, LOG4, LOG5, LOG7). Nothing is written here but what is made durable again as it is (LOG6).

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pagewire_server::store::StoreError;

use super::files::{self, NAMES};
use super::record::{BLOCK, HEADER, Kind};
use super::slots::{Checkpoint, Slot, Slots};
use crate::roots::Roots;
use crate::start::other_format;
use crate::{tree, truncation};

/// Blocks are looked at for records in such pieces.
const PIECE: usize = 1 << 20;

/// What a store is made of again.
#[derive(Debug)]
pub(crate) struct Found {
    /// Roots to put back; of a marked transaction that was committed the one that it wrote.
    pub(crate) base: Checkpoint,
    /// In the order in which they are done again: file, place and length of a body.
    pub(crate) records: Vec<Body>,
    /// The slots do not name the base yet.
    pub(crate) is_marked: bool,
    /// Empty where the log is not needed.
    pub(crate) files: Vec<File>,
}

/// The body of a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body {
    pub(crate) number: u64,
    file: usize,
    at: u64,
    length: usize,
}

/// Why it was not found.
#[derive(Debug)]
pub(crate) enum NotFound {
    Io(std::io::Error),
    Refused(StoreError),
}

impl From<std::io::Error> for NotFound {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Says which file it was.
fn of<'n>(name: &'n str) -> impl Fn(std::io::Error) -> std::io::Error + 'n {
    move |error| std::io::Error::new(error.kind(), format!("{name}: {error}"))
}

fn damaged(what: &str) -> NotFound {
    NotFound::Refused(StoreError::Corrupt(format!(
        "{what}; put back a copy of the whole directory"
    )))
}

/// Looks at the directory of a store, and makes durable what the opening builds on.
pub(crate) fn find(directory: &Path, slots: &Slots, data: &File) -> Result<Found, NotFound> {
    let (slot, checkpoint) = choose(directory, slots)?;
    refuse_short(directory, data, &checkpoint.roots)?;
    let in_file = roots_in_file(directory, data, &checkpoint.roots)?;
    let reached = in_file.newest().map(|root| root.number);
    // Bug: a store was refused after a loss of power. Cause: a root is written over that of the checkpoint, and is trash where the power goes
    // meanwhile; the other one is older. Fix: it tells something only beside a whole one.
    if in_file.are_whole() && reached.is_some_and(|reached| reached < checkpoint.number) {
        return Err(damaged(&format!(
            "{} is older than the file `checkpoint` beside it: they are not of the same copy",
            directory.join("data.mdb").display()
        )));
    }
    let mut found = Found {
        base: checkpoint.clone(),
        records: Vec::new(),
        is_marked: false,
        files: Vec::new(),
    };
    if checkpoint.is_closed {
        // One transaction of the next run may have been begun.
        if reached.is_some_and(|reached| reached > checkpoint.number + 1) {
            return Err(damaged(&format!(
                "the files `checkpoint` and `log` in {} are older than `data.mdb` beside them: they are not of the same copy",
                directory.display()
            )));
        }
        refuse_newer_log(directory, &checkpoint)?;
        renew(slots, slot, &checkpoint)?;
        return Ok(found);
    }
    found.files = open_files(directory, &checkpoint)?;
    let end = read(&mut found)?;
    let mut last = found.records.last().map_or(checkpoint.number, |r| r.number);
    if let Some(mark) = end.mark
        && reached == Some(mark)
    {
        refuse_short(directory, data, &in_file)?;
        // Bug: all since the checkpoint was gone, without a word. Cause: a flipped bit had made the number of an older root that of a mark whose
        // transaction was not committed. Fix: what was freed says whose root it is (TREE8).
        if tree::newest_freed(data, &in_file).map_err(of("data.mdb"))? != Some(mark) {
            return Err(damaged(&format!(
                "{}: its root says that it is of transaction {mark}, and its tree is not",
                directory.join("data.mdb").display()
            )));
        }
        last = mark;
        found.is_marked = true;
        found.records.clear();
        found.base.number = mark;
        found.base.roots = checkpoint.roots.with_newest_of(&in_file);
    }
    if let Some(later) = later_record(&found.files, checkpoint.run, end.next)? {
        return Err(damaged(&format!(
            "{}: the record of transaction {} is damaged, and that of transaction {later} is behind it",
            directory.join(NAMES[end.file]).display(),
            end.next
        )));
    }
    if let Some(reached) = reached.filter(|reached| *reached > last) {
        return Err(damaged(&format!(
            "{}: transaction {reached} was committed, and the log ends with {last}: it is damaged, was cut short, or is of another copy",
            directory.join(NAMES[end.file]).display(),
        )));
    }
    renew(slots, slot, &checkpoint)?;
    end.renew(&found.files)?;
    Ok(found)
}

/// Those of the file, which are where the pages of the checkpoint have them: one of other pages is not the one that it is of, and nothing
/// is put into it.
fn roots_in_file(directory: &Path, data: &File, roots: &Roots) -> Result<Roots, NotFound> {
    let page_bytes = roots.page_bytes().ok_or_else(|| {
        let path = directory.join("checkpoint");
        damaged(&format!("{}: it has no roots", path.display()))
    })?;
    let in_file = Roots::read(data, page_bytes).map_err(of("data.mdb"))?;
    if let Some(other) = in_file.page_bytes().filter(|other| *other != page_bytes) {
        return Err(damaged(&format!(
            "{}: it has pages of {other} bytes, and those of the file `checkpoint` beside it have {page_bytes}: it is damaged, or they are not of the same copy",
            directory.join("data.mdb").display()
        )));
    }
    Ok(in_file)
}

/// DIR2, of the tree that is opened.
fn refuse_short(directory: &Path, data: &File, roots: &Roots) -> Result<(), NotFound> {
    match truncation::find(data, roots)? {
        None => Ok(()),
        Some(why) => {
            let path = directory.join("data.mdb");
            Err(damaged(&format!("{}: {why}", path.display())))
        }
    }
}

/// The newest whole slot (LOG4).
fn choose(directory: &Path, slots: &Slots) -> Result<(usize, Checkpoint), NotFound> {
    let mut newest: Option<(usize, Checkpoint)> = None;
    let read = slots.read().map_err(of("checkpoint"))?;
    for (index, slot) in read.into_iter().enumerate() {
        match slot {
            Slot::Whole(checkpoint) => {
                let order = |c: &Checkpoint| (c.number, c.is_closed);
                if newest
                    .as_ref()
                    .is_none_or(|(_, n)| order(n) < order(&checkpoint))
                {
                    newest = Some((index, *checkpoint));
                }
            }
            Slot::Foreign(format) => {
                return Err(NotFound::Refused(other_format(directory, format)));
            }
            Slot::Not => {}
        }
    }
    newest.ok_or_else(|| {
        let path = directory.join("checkpoint");
        damaged(&format!(
            "{}: neither of its slots is whole",
            path.display()
        ))
    })
}

/// Writes both slots as they are chosen, that one first: it may not be on the disk, and the other one may be all that is (LOG6).
fn renew(slots: &Slots, chosen: usize, checkpoint: &Checkpoint) -> std::io::Result<()> {
    slots.write(chosen, checkpoint)?;
    slots.write(1 - chosen, checkpoint)
}

fn open_files(directory: &Path, checkpoint: &Checkpoint) -> Result<Vec<File>, NotFound> {
    let mut opened = Vec::new();
    for (index, name) in NAMES.iter().enumerate() {
        let path = directory.join(name);
        let refuse = |why: &str| Err(damaged(&format!("{}: {why}", path.display())));
        let file = match File::options().read(true).write(true).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return refuse("it is missing, and has commits");
            }
            opened => opened?,
        };
        let length = file.metadata()?.len();
        if length < checkpoint.lengths[index].max(BLOCK) {
            return refuse(&format!(
                "it was cut short: it has {length} bytes, and had {}",
                checkpoint.lengths[index]
            ));
        }
        if !files::is_of(&file, index, checkpoint.run).map_err(of(name))? {
            return refuse(
                "it is damaged, or of another copy than the file `checkpoint` beside it",
            );
        }
        opened.push(file);
    }
    Ok(opened)
}

/// Of a closed store the log is not needed, and may be missing or be begun for the next run; but one that has records of another run,
/// which was begun in it, is of a later time than the slots: a run writes its first one when both slots name it.
fn refuse_newer_log(directory: &Path, checkpoint: &Checkpoint) -> Result<(), NotFound> {
    for (index, name) in NAMES.iter().enumerate() {
        let path = directory.join(name);
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if file.metadata()?.len() < 2 * BLOCK {
            continue;
        }
        // The first one of a run is there, and each lap begins there.
        let first = match files::header_at(&file, BLOCK) {
            // Of a log that is not needed: the root's number tells too (LOG5).
            Err(error) if files::is_unreadable(&error) => None,
            read => read.map_err(of(name))?,
        };
        let Some(first) = first else {
            continue;
        };
        // Of the run that is closed nothing was acknowledged after it: what is there is torn, or a mark of what never was.
        if first.run != checkpoint.run && files::is_of(&file, index, first.run).map_err(of(name))? {
            return Err(damaged(&format!(
                "{}: it is newer than the file `checkpoint` beside it: they are not of the same copy",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Where the whole records end.
struct End {
    /// The number that comes next, or that of the mark.
    next: u64,
    /// Of the last record, or where the first one would be.
    file: usize,
    mark: Option<u64>,
    /// Place and length of the last record, mark or not.
    last: Option<(usize, u64, u64)>,
}

impl End {
    /// Writes the last record again, as it is: its sync may have failed (LOG6).
    fn renew(&self, files: &[File]) -> std::io::Result<()> {
        let Some((file, at, span)) = self.last else {
            return Ok(());
        };
        let mut bytes = vec![0; span as usize];
        let read = files[file].read_exact_at(&mut bytes, at);
        read.map_err(of(NAMES[file]))?;
        files[file].write_all_at(&bytes, at)?;
        files[file].sync_data()
    }
}

/// Reads records from the checkpoint on, for as long as they are whole and each follows the one before.
fn read(found: &mut Found) -> std::io::Result<End> {
    let base = &found.base;
    let mut previous = base.previous;
    let mut end = End {
        next: base.number + 1,
        file: base.file,
        mark: None,
        last: None,
    };
    // A checkpoint that was begun, and not ended, goes on in the other file.
    for index in [base.file, 1 - base.file] {
        let (file, mut at) = (&found.files[index], BLOCK);
        let length = file.metadata()?.len();
        while end.mark.is_none() && at + BLOCK <= length {
            let Some(header) = files::header_at(file, at).map_err(of(NAMES[index]))? else {
                break;
            };
            let follows = header.run == base.run
                && header.number == end.next
                && header.previous == previous
                && at + header.span() <= length;
            let body = Body {
                number: header.number,
                file: index,
                at: at + HEADER as u64,
                length: header.body_bytes,
            };
            if !follows || !header.is_of(&bytes_of(file, &body).map_err(of(NAMES[index]))?) {
                break;
            }
            match header.kind {
                Kind::Changes => {
                    found.records.push(body);
                    end.next += 1;
                }
                // What it announces is in the file or nowhere, and nothing is behind it.
                Kind::Mark => end.mark = Some(header.number),
            }
            end.file = index;
            end.last = Some((index, at, header.span()));
            previous = header.sum;
            at += header.span();
        }
    }
    Ok(end)
}

fn bytes_of(file: &File, body: &Body) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; body.length];
    file.read_exact_at(&mut bytes, body.at)?;
    Ok(bytes)
}

impl Found {
    /// The body of a record.
    pub(crate) fn body(&self, body: &Body) -> std::io::Result<Vec<u8>> {
        bytes_of(&self.files[body.file], body).map_err(of(NAMES[body.file]))
    }
}

/// The number of a record behind the one that comes next, wherever one begins (LOG2): that one alone can be torn.
fn later_record(files: &[File], run: u64, next: u64) -> std::io::Result<Option<u64>> {
    let mut bytes = vec![0; PIECE];
    for (file, name) in files.iter().zip(NAMES) {
        let length = file.metadata()?.len() / BLOCK * BLOCK;
        let mut at = 0;
        while at < length {
            let piece = &mut bytes[..(length - at).min(PIECE as u64) as usize];
            read_readable(file, at, piece).map_err(of(name))?;
            for block in piece.chunks(BLOCK as usize) {
                let header = super::record::Header::parse(block);
                if let Some(header) = header.filter(|h| h.run == run && h.number > next) {
                    return Ok(Some(header.number));
                }
            }
            at += piece.len() as u64;
        }
    }
    Ok(None)
}

/// Reads blocks; zeros where one cannot be read. None is needed from here: of what is, the disk's error is answered (`read`), and a
/// record behind an unreadable one shows by its own block, or by the root of the engine (LOG5).
fn read_readable(file: &File, at: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    match file.read_exact_at(bytes, at) {
        Err(error) if files::is_unreadable(&error) => {}
        read => return read,
    }
    let places = (at..).step_by(BLOCK as usize);
    for (place, block) in places.zip(bytes.chunks_mut(BLOCK as usize)) {
        match file.read_exact_at(block, place) {
            Err(error) if files::is_unreadable(&error) => block.fill(0),
            read => read?,
        }
    }
    Ok(())
}
