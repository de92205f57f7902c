//! The two files of the log: where the next record goes, and what is taken back.
//!
//! A file begins with a block that says of which run it is, and which of the two. Records follow, the first in the second block.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use super::record::{BLOCK, Changes, Header, part};

/// Of a file when it is made: room for some hundred small commits, and for the largest record.
pub(crate) const FIRST_LENGTH: u64 = 2 << 20;
/// Of a file that was found to be too short, at most.
pub(crate) const MOST_LENGTH: u64 = 16 << 20;

pub(crate) const NAMES: [&str; 2] = ["log.0", "log.1"];

const MAGIC: u64 = 0x3147_4F4C_4752_5750;
const HEADER_BYTES: usize = 24;
/// Zeros are written in such pieces.
const PIECE: usize = 256 << 10;

/// Both files, and the place in one of them.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) files: [File; 2],
    pub(crate) lengths: [u64; 2],
    run: u64,
    /// The one that is written to, and where.
    pub(crate) file: usize,
    at: u64,
    /// Of the header of the last record.
    pub(crate) previous: u32,
    /// Where the last record is, and what was before it: until the next one, it may be taken back.
    last: Option<(u64, u32)>,
}

impl Files {
    /// Makes both files those of a run, with nothing in them. What they have is not needed any more.
    pub(crate) fn begin(files: [File; 2], run: u64) -> std::io::Result<Self> {
        let mut lengths = [0; 2];
        for (index, file) in files.iter().enumerate() {
            extend(file, FIRST_LENGTH)?;
            lengths[index] = file.metadata()?.len() / BLOCK * BLOCK;
            let mut header = MAGIC.to_le_bytes().to_vec();
            header.extend(run.to_le_bytes());
            header.extend((index as u32).to_le_bytes());
            header.extend(crc32fast::hash(&header).to_le_bytes());
            file.write_all_at(&header, 0)?;
            file.sync_all()?;
        }
        Ok(Self {
            files,
            lengths,
            run,
            file: 0,
            at: BLOCK,
            previous: 0,
            last: None,
        })
    }

    pub(crate) fn run(&self) -> u64 {
        self.run
    }

    /// Whether a record of these changes has room in the file that is written to.
    pub(crate) fn has_room(&self, changes: &Changes) -> bool {
        self.at + changes.span() <= self.lengths[self.file]
    }

    /// Whether half of the file is used.
    pub(crate) fn is_half_used(&self) -> bool {
        self.at > self.lengths[self.file] / 2
    }

    /// Goes on in the other file, from its beginning.
    pub(crate) fn switch(&mut self) {
        self.file = 1 - self.file;
        self.at = BLOCK;
        self.last = None;
    }

    /// Writes a record behind the last one, and syncs it.
    pub(crate) fn append(&mut self, number: u64, changes: Changes) -> Result<(), NotWritten> {
        let record = changes.record(self.run, number, self.previous);
        let file = &self.files[self.file];
        if let Err(error) = file.write_all_at(&record.bytes, self.at) {
            // Where nothing is written in place (btrfs, ZFS) what is written again needs room too. The block may be there already.
            let is_full = is_no_room(error.kind());
            return Err(match is_full && blank(file, self.at).is_ok() {
                true => NotWritten::NoRoom(error),
                false => NotWritten::Failed(error),
            });
        }
        // Nobody knows what is there after one that failed, whatever for.
        file.sync_data().map_err(NotWritten::Failed)?;
        self.last = Some((self.at, self.previous));
        self.at += record.bytes.len() as u64;
        self.previous = record.sum;
        Ok(())
    }

    /// Makes the last record none, durably: the next one has its place (LOG8).
    pub(crate) fn take_back(&mut self) -> std::io::Result<()> {
        let Some((at, previous)) = self.last.take() else {
            return Ok(());
        };
        blank(&self.files[self.file], at)?;
        (self.at, self.previous) = (at, previous);
        Ok(())
    }
}

/// Why a record is not there.
#[derive(Debug)]
pub(crate) enum NotWritten {
    /// The disk is full, and durably nothing of it is left.
    NoRoom(std::io::Error),
    /// It may be there.
    Failed(std::io::Error),
}

/// Whether that is what a full disk says.
pub(crate) fn is_no_room(kind: ErrorKind) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(kind, StorageFull | QuotaExceeded | FileTooLarge)
}

/// Whether that is what a disk says of a sector that it cannot read.
pub(crate) fn is_unreadable(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Makes a record none, durably.
fn blank(file: &File, at: u64) -> std::io::Result<()> {
    file.write_all_at(&[0; BLOCK as usize], at)?;
    file.sync_data()
}

/// Whether a file is the one of these of a run.
pub(crate) fn is_of(file: &File, index: usize, run: u64) -> std::io::Result<bool> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let sum = u32::from_le_bytes(part(&header, 20));
    Ok(u64::from_le_bytes(part(&header, 0)) == MAGIC
        && u64::from_le_bytes(part(&header, 8)) == run
        && u32::from_le_bytes(part(&header, 16)) == index as u32
        && sum == crc32fast::hash(&header[..20]))
}

/// Makes a file as long as this by writing to it: what was only promised by the file system would be made true in the first sync of each
/// part. A file that is longer stays so. It is durable afterwards, whoever made it as long; where that fails it is as it was.
pub(crate) fn extend(file: &File, length: u64) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    let zeros = vec![0; PIECE];
    let extended = (|| {
        let mut at = before;
        while at < length {
            let piece = (length - at).min(PIECE as u64);
            file.write_all_at(&zeros[..piece as usize], at)?;
            at += piece;
        }
        file.sync_all()
    })();
    if extended.is_err() && before < length {
        // A part of it is of no use, and others may need the room.
        let _ = file.set_len(before);
    }
    extended
}

/// The header of a record at a place, if one begins there.
pub(crate) fn header_at(file: &File, at: u64) -> std::io::Result<Option<Header>> {
    let mut bytes = [0; super::record::HEADER];
    file.read_exact_at(&mut bytes, at)?;
    Ok(Header::parse(&bytes))
}
