//! Bytes in memory up to a limit, then in an unlinked temporary file. Never crosses the network, never outlives the process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};

/// A file of its own that nobody else can see.
#[derive(Debug, Default)]
pub enum Spool {
    /// Nothing, or not much.
    #[default]
    Empty,
    /// In memory.
    Memory(Vec<u8>),
    /// On the local disk, with its length.
    Disk(File, u64),
}

/// Bytes of a journal that are kept in memory.
const MEMORY_LIMIT: u64 = 1 << 20;

impl Spool {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Spool::Empty => 0,
            Spool::Memory(bytes) => bytes.len() as u64,
            Spool::Disk(_, len) => *len,
        }
    }

    /// Fills the buffer and returns how many bytes there were; the rest is zero.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let there = self.len().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (front, rest) = buffer.split_at_mut(there);
        rest.fill(0);
        if there > 0 {
            match self {
                Spool::Empty => {}
                Spool::Memory(bytes) => front.copy_from_slice(&bytes[offset as usize..][..there]),
                Spool::Disk(file, _) => file.read_exact_at(front, offset).map_err(local_error)?,
            }
        }
        Ok(there)
    }

    /// Writes the bytes; a gap before them reads as zeros.
    pub fn write(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        if matches!(self, Spool::Empty) {
            *self = Spool::Memory(Vec::new());
        }
        if let Spool::Memory(memory) = self {
            if end <= MEMORY_LIMIT {
                // A journal grows at its end: nothing is zeroed there that is written at once.
                let there = memory.len().clamp(offset as usize, end as usize);
                memory.resize(memory.len().max(offset as usize), 0);
                let (over, beyond) = bytes.split_at(there - offset as usize);
                memory[offset as usize..there].copy_from_slice(over);
                memory.extend_from_slice(beyond);
                return Ok(());
            }
            let file = temporary_file()?;
            file.write_all_at(memory, 0).map_err(local_error)?;
            *self = Spool::Disk(file, memory.len() as u64);
        }
        if let Spool::Disk(file, len) = self {
            file.write_all_at(bytes, offset).map_err(local_error)?;
            *len = (*len).max(end);
        }
        Ok(())
    }

    /// Makes it shorter, or longer with zeros.
    pub fn truncate(&mut self, length: u64) -> Result<()> {
        if length == 0 {
            *self = Spool::Empty;
            return Ok(());
        }
        match self {
            Spool::Memory(bytes) if length <= MEMORY_LIMIT => bytes.resize(length as usize, 0),
            Spool::Disk(file, len) => {
                file.set_len(length).map_err(local_error)?;
                *len = length;
            }
            Spool::Empty | Spool::Memory(_) => {
                let last = [0];
                if length > self.len() {
                    self.write(&last, length - 1)?;
                }
            }
        }
        Ok(())
    }
}

/// An unlinked file in the directory for temporary files.
pub fn temporary_file() -> Result<File> {
    tempfile::tempfile().map_err(local_error)
}

/// The same, shared with the stream of a commit.
pub fn shared_temporary_file() -> Result<Arc<File>> {
    temporary_file().map(Arc::new)
}

/// An error of the local disk.
pub fn local_error(error: std::io::Error) -> Error {
    let kind = if error.kind() == std::io::ErrorKind::StorageFull {
        Kind::Full
    } else {
        Kind::Io
    };
    Error::new(
        kind,
        format!("a local temporary file failed: {error}; free some room in TMPDIR"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_over_the_end_at_it_and_beyond_it() {
        let mut spool = Spool::default();
        for (bytes, offset, whole) in [
            (b"abcd".as_slice(), 0, b"abcd".as_slice()),
            (b"ef", 4, b"abcdef"),
            (b"XYZW", 4, b"abcdXYZW"),
            (b"--", 1, b"a--dXYZW"),
            (b"g", 10, b"a--dXYZW\0\0g"),
            (b"", 2, b"a--dXYZW\0\0g"),
        ] {
            spool.write(bytes, offset).unwrap();
            let mut buffer = vec![9; whole.len() + 2];
            assert_eq!(spool.read(&mut buffer, 0).unwrap(), whole.len());
            assert_eq!(&buffer[..whole.len()], whole);
        }
    }

    #[test]
    fn a_spool_behaves_like_a_file_on_both_sides_of_its_limit() {
        for start in [0, MEMORY_LIMIT - 3] {
            let mut spool = Spool::default();
            spool.write(b"hello", start + 2).unwrap();
            assert_eq!(spool.len(), start + 7);
            let mut buffer = [9; 10];
            assert_eq!(spool.read(&mut buffer, start).unwrap(), 7);
            assert_eq!(&buffer, b"\0\0hello\0\0\0");
            spool.truncate(start + 4).unwrap();
            assert_eq!(spool.read(&mut buffer, start).unwrap(), 4);
            assert_eq!(&buffer[..5], b"\0\0he\0");
            spool.truncate(start + 6).unwrap();
            assert_eq!(spool.read(&mut buffer, start).unwrap(), 6);
            assert_eq!(&buffer[..6], b"\0\0he\0\0");
            spool.truncate(0).unwrap();
            assert_eq!(spool.len(), 0);
        }
    }
}
