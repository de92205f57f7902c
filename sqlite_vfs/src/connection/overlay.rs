//! What a transaction has written: bytes in units of one page, in memory up to a limit, then in a local temporary file.
//!
//! The unit is the page size of the base, or that of the first write into an empty database. SQLite also writes other
//! lengths (VACUUM with a new page size, the backup API), so a unit is not a page until the commit says so.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use pagewire_proto::PageSize;

use crate::client::PageSource;
use crate::error::Result;
use crate::file::spool::{local_error, shared_temporary_file};

/// See the file's header.
pub struct Overlay {
    unit: Option<PageSize>,
    slots: BTreeMap<u32, Slot>,
    size: u64,
    memory: u64,
    memory_limit: u64,
    spill: Option<Arc<File>>,
    spill_end: u64,
}

enum Slot {
    Memory(Bytes),
    Spilled(u64),
}

impl Overlay {
    /// Nothing written yet, on a base of this page size and byte size.
    pub fn new(unit: Option<PageSize>, size: u64, memory_limit: u64) -> Self {
        Self {
            unit,
            slots: BTreeMap::new(),
            size,
            memory: 0,
            memory_limit,
            spill: None,
            spill_end: 0,
        }
    }

    /// The unit, once something was written or the base has pages.
    pub fn unit(&self) -> Option<PageSize> {
        self.unit
    }

    /// The size of the database in bytes, as the transaction sees it.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Indexes of the units written, ascending.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.keys().copied()
    }

    /// Copies a part of a written unit; `false` if it was not written.
    pub fn read(&self, index: u32, within: usize, out: &mut [u8]) -> Result<bool> {
        match self.slots.get(&index) {
            None => return Ok(false),
            Some(Slot::Memory(content)) => {
                out.copy_from_slice(&content[within..within + out.len()])
            }
            Some(Slot::Spilled(offset)) => {
                if let Some(file) = &self.spill {
                    file.read_exact_at(out, offset + within as u64)
                        .map_err(local_error)?;
                }
            }
        }
        Ok(true)
    }

    /// Fixes the unit by the first write into an empty database.
    pub fn unit_for_write(&mut self, offset: u64, length: usize) -> PageSize {
        *self.unit.get_or_insert_with(|| {
            let by_length = u32::try_from(length)
                .ok()
                .and_then(|length| PageSize::try_from(length).ok());
            match by_length {
                Some(size) if offset.is_multiple_of(u64::from(size.get())) => size,
                _ => PageSize::MIN,
            }
        })
    }

    /// Replaces a whole unit.
    pub fn put(&mut self, index: u32, content: Bytes) -> Result<()> {
        let length = content.len() as u64;
        let before = self.slots.remove(&index);
        let reusable = match before {
            Some(Slot::Memory(_)) => {
                self.memory -= length;
                None
            }
            Some(Slot::Spilled(offset)) => Some(offset),
            None => None,
        };
        let slot = if self.memory + length <= self.memory_limit && reusable.is_none() {
            self.memory += length;
            Slot::Memory(content)
        } else {
            Slot::Spilled(self.spill_content(&content, reusable)?)
        };
        self.slots.insert(index, slot);
        self.size = self.size.max((u64::from(index) + 1) * length);
        Ok(())
    }

    fn spill_content(&mut self, content: &[u8], reusable: Option<u64>) -> Result<u64> {
        let file = match &self.spill {
            Some(file) => file,
            None => self.spill.insert(shared_temporary_file()?),
        };
        let offset = reusable.unwrap_or(self.spill_end);
        file.write_all_at(content, offset).map_err(local_error)?;
        self.spill_end = self.spill_end.max(offset + content.len() as u64);
        Ok(offset)
    }

    /// Sets the size; what lies beyond it is gone.
    pub fn truncate(&mut self, size: u64) {
        if let Some(unit) = self.unit {
            let kept = size.div_ceil(u64::from(unit.get()));
            if let Ok(first_gone) = u32::try_from(kept) {
                for slot in self.slots.split_off(&first_gone).into_values() {
                    if let Slot::Memory(content) = slot {
                        self.memory -= content.len() as u64;
                    }
                }
            }
        }
        self.size = size;
    }

    /// Where the content of a unit lies, for a commit.
    pub fn source(&self, index: u32) -> Option<PageSource> {
        Some(match self.slots.get(&index)? {
            Slot::Memory(content) => PageSource::Memory(content.clone()),
            Slot::Spilled(offset) => PageSource::Spilled(*offset),
        })
    }

    /// The file of [`PageSource::Spilled`].
    pub fn spill_file(&self) -> Option<Arc<File>> {
        self.spill.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: u8) -> Bytes {
        Bytes::from(vec![value; 512])
    }

    #[test]
    fn what_does_not_fit_into_memory_is_read_back_from_the_spill_file() {
        let mut overlay = Overlay::new(Some(PageSize::MIN), 0, 1024);
        for index in 0..20 {
            overlay.put(index, bytes(index as u8)).unwrap();
        }
        for index in 0..20 {
            overlay.put(index, bytes(index as u8 + 100)).unwrap();
        }
        assert_eq!(overlay.size(), 20 * 512);
        assert!(overlay.memory <= 1024);
        for index in 0..20 {
            let mut out = [0; 4];
            assert!(overlay.read(index, 508, &mut out).unwrap());
            assert_eq!(out, [index as u8 + 100; 4]);
        }
        assert!(
            overlay.spill_end <= 20 * 512,
            "rewritten units reuse their place"
        );
    }

    #[test]
    fn truncation_forgets_what_lies_beyond() {
        let mut overlay = Overlay::new(Some(PageSize::MIN), 0, 1 << 20);
        for index in 0..4 {
            overlay.put(index, bytes(1)).unwrap();
        }
        overlay.truncate(1024);
        assert_eq!(overlay.indexes().collect::<Vec<_>>(), [0, 1]);
        assert_eq!((overlay.size(), overlay.memory), (1024, 1024));
    }

    #[test]
    fn the_unit_comes_from_the_first_write_into_an_empty_database() {
        assert_eq!(
            Overlay::new(None, 0, 0).unit_for_write(8192, 4096).get(),
            4096
        );
        assert_eq!(
            Overlay::new(None, 0, 0).unit_for_write(100, 4096).get(),
            512
        );
        assert_eq!(Overlay::new(None, 0, 0).unit_for_write(0, 100).get(), 512);
        assert_eq!(
            Overlay::new(Some(PageSize::MAX), 0, 0)
                .unit_for_write(0, 512)
                .get(),
            65_536
        );
    }
}
