//! The file of pages of one database: its header, and a slot for each page.
//!
//! Sparse: what no page was written to takes no room. A slot is read by one system call, also where it has nothing.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use pagewire_proto::PageNumber;

use super::slot::{self, Content, checksum, field};
use super::{Entry, IDENTITY_BYTES, Identity, directory};

/// The header has the first block of the file.
pub const HEADER_BYTES: u64 = 4096;
const MAGIC: &[u8; 16] = b"pagewire pages\n\0";
/// Rises with every change of this layout.
const FORMAT: u32 = 1;
/// Where the fields of the header lie.
const FORMAT_AT: usize = 16;
const IDENTITY_AT: usize = 20;
const COUNT_AT: usize = IDENTITY_AT + IDENTITY_BYTES;
const SUM_AT: usize = COUNT_AT + 4;
const END: usize = SUM_AT + 16;
/// How often a file is made anew while others remove it.
const ATTEMPTS: usize = 4;

/// See the file's header.
pub struct SlotFile {
    file: File,
    path: PathBuf,
    seed: u64,
    identity: Identity,
    count: u32,
    /// A write beyond it would end the process by SIGXFSZ.
    largest_file: u64,
}

/// What is found where a page would lie.
pub enum Found {
    /// Nothing.
    Nothing,
    /// The page.
    Page(Entry),
    /// Another page.
    Another(Entry),
    /// Something else, or the file can't be read.
    Damaged,
}

/// What the first bytes of a file say.
pub(super) enum Header {
    /// Of this file.
    Right { count: u32 },
    /// Of another layout.
    OtherFormat(u32),
    /// Not of this file, or damaged.
    Wrong,
}

impl SlotFile {
    /// Opens the file, or makes a new one of at most so many bytes where there is none that can be used.
    pub fn open(path: &Path, identity: &Identity, most_bytes: u64) -> Result<Self, String> {
        let slot = slot::size(identity.page_size) as u64;
        let most_bytes = most_bytes.min(directory::largest_file());
        let most = (most_bytes.saturating_sub(HEADER_BYTES) / slot).min(u64::from(u32::MAX));
        let count = most as u32;
        if count == 0 {
            return Err("its limit is below the size of a page".to_owned());
        }
        for _ in 0..ATTEMPTS {
            match directory::open(path)? {
                None => Self::make(path, identity, count, false)?,
                Some(file) => match read_header(&file, identity) {
                    // One that is larger than the limit is from the time of another limit.
                    Header::Right { count: found } if found <= count => {
                        let opened = Self::new(file, path, identity, found);
                        opened.touch();
                        return Ok(opened);
                    }
                    Header::OtherFormat(format) => {
                        return Err(format!(
                            "{} has format {format}, this library has {FORMAT}: remove it, or choose another directory",
                            path.display()
                        ));
                    }
                    Header::Right { .. } | Header::Wrong => {
                        Self::make(path, identity, count, true)?;
                    }
                },
            }
        }
        Err(format!("{} is replaced all the time", path.display()))
    }

    fn new(file: File, path: &Path, identity: &Identity, count: u32) -> Self {
        Self {
            file,
            path: path.to_owned(),
            seed: identity.seed(),
            identity: *identity,
            count,
            largest_file: directory::largest_file(),
        }
    }

    /// Makes an empty file, in one step. Without `replace` one that another process has made meanwhile stays.
    fn make(path: &Path, identity: &Identity, count: u32, replace: bool) -> Result<(), String> {
        let cannot = |error: std::io::Error| format!("can't make {}: {error}", path.display());
        let mut fresh = directory::temporary(path)?;
        fresh.write_all(&header(identity, count)).map_err(cannot)?;
        if replace {
            return match fresh.persist(path) {
                Ok(_) => Ok(()),
                Err(error) => Err(cannot(error.error)),
            };
        }
        match fresh.persist_noclobber(path) {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(cannot(error.error)),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it the file used last (Q7).
    fn touch(&self) {
        // The same bytes again. Should it fail, the file makes room before others.
        let _ = self
            .file
            .write_all_at(&header(&self.identity, self.count), 0);
    }

    /// Whether it still is the file that others find.
    pub fn is_there(&self) -> bool {
        self.file
            .metadata()
            .is_ok_and(|metadata| metadata.nlink() > 0)
    }

    fn offset(&self, page: PageNumber) -> u64 {
        let index = u64::from((page.get() - 1) % self.count);
        HEADER_BYTES + index * slot::size(self.identity.page_size) as u64
    }

    /// What lies where the page would lie.
    pub fn read(&self, page: PageNumber) -> Found {
        let mut slot = vec![0; slot::size(self.identity.page_size)];
        let read = loop {
            match self.file.read_at(&mut slot, self.offset(page)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            // Behind the last slot that was ever written.
            Ok(0) => return Found::Nothing,
            Ok(length) => slot.truncate(length),
            Err(_) => return Found::Damaged,
        }
        match slot::decode(self.seed, self.identity.page_size, slot) {
            Content::Empty => Found::Nothing,
            Content::Page(found, entry) if found == page => Found::Page(entry),
            Content::Page(found, entry) if self.offset(found) == self.offset(page) => {
                Found::Another(entry)
            }
            Content::Page(..) | Content::Damaged => Found::Damaged,
        }
    }

    /// Puts the page into its slot, whatever is there.
    pub fn write(&self, page: PageNumber, entry: &Entry) -> std::io::Result<()> {
        let slot = slot::encode(self.seed, page, entry);
        let offset = self.offset(page);
        // One that another process made, with another limit, may be larger.
        if offset + slot.len() as u64 > self.largest_file {
            return Err(ErrorKind::FileTooLarge.into());
        }
        self.file.write_all_at(&slot, offset)
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> u64 {
        slot::size(self.identity.page_size) as u64
    }
}

fn header(identity: &Identity, count: u32) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&FORMAT.to_le_bytes());
    header.extend_from_slice(&identity.encode());
    header.extend_from_slice(&count.to_le_bytes());
    let sum = checksum(identity.seed(), &header);
    header.extend_from_slice(&sum);
    header.resize(HEADER_BYTES as usize, 0);
    header
}

fn read_header(file: &File, identity: &Identity) -> Header {
    let mut bytes = [0; END];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => decode_header(&bytes, identity),
        Err(_) => Header::Wrong,
    }
}

pub(super) fn decode_header(bytes: &[u8], identity: &Identity) -> Header {
    let Some(bytes) = bytes
        .get(..END)
        .filter(|bytes| &bytes[..FORMAT_AT] == MAGIC)
    else {
        return Header::Wrong;
    };
    let format = u32::from_le_bytes(field(bytes, FORMAT_AT));
    if format != FORMAT {
        return Header::OtherFormat(format);
    }
    let count = u32::from_le_bytes(field(bytes, COUNT_AT));
    let is_ours = bytes[IDENTITY_AT..COUNT_AT] == identity.encode()
        && bytes[SUM_AT..] == checksum(identity.seed(), &bytes[..SUM_AT]);
    match is_ours && count > 0 {
        true => Header::Right { count },
        false => Header::Wrong,
    }
}
