//! What a transaction has written: bytes in units of one page, in memory up to a limit, then in a local temporary file.
//!
//! The unit is the page size of the base, or that of the first write into an empty database. SQLite also writes other
//! lengths (VACUUM with a new page size, the backup API), so a unit is not a page until the commit says so.
//!
//! Each unit is "unsent" until its content was handed to a StagePages call (`staging.rs`), and again once it is replaced.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use pagewire_proto::PageSize;

use super::staging::Stager;
use crate::client::PageSource;
use crate::error::Result;
use crate::file::read_buffer::ReadBuffer;
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
    /// The unsent units in the order of their last write, each under the number of that write; also what is sent, gone or
    /// written again by now.
    unsent: VecDeque<(u32, u64)>,
    writes: u64,
    unsent_bytes: u64,
    /// What the server has of it already.
    pub(super) stager: Stager,
}

struct Slot {
    place: Place,
    sent: Sent,
    /// The number of its last write.
    written: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Never,
    /// Perhaps an older content, or this one without an answer.
    Before,
    /// This content.
    Now,
}

impl Slot {
    /// Whether this entry of the queue still says that it is to be sent.
    fn is_due(&self, written: u64) -> bool {
        self.written == written && self.sent != Sent::Now
    }
}

enum Place {
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
            unsent: VecDeque::new(),
            writes: 0,
            unsent_bytes: 0,
            stager: Stager::default(),
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

    /// Whether a unit was written.
    pub fn has(&self, index: u32) -> bool {
        self.slots.contains_key(&index)
    }

    /// Copies a part of a written unit; `false` if it was not written.
    pub fn read(&self, index: u32, within: usize, out: &mut [u8]) -> Result<bool> {
        match self.slots.get(&index).map(|slot| &slot.place) {
            None => return Ok(false),
            Some(Place::Memory(content)) => {
                out.copy_from_slice(&content[within..within + out.len()])
            }
            Some(Place::Spilled(offset)) => {
                if let Some(file) = &self.spill {
                    file.read_exact_at(out, offset + within as u64)
                        .map_err(local_error)?;
                }
            }
        }
        Ok(true)
    }

    /// The same, behind what the buffer has.
    pub fn read_into(
        &self,
        index: u32,
        within: usize,
        length: usize,
        out: &mut ReadBuffer<'_>,
    ) -> Result<bool> {
        if let Some(Place::Memory(content)) = self.slots.get(&index).map(|slot| &slot.place) {
            out.put(&content[within..within + length]);
            return Ok(true);
        }
        if !self.has(index) {
            return Ok(false);
        }
        // A file is read into what is initialised.
        let mut bytes = vec![0; length];
        self.read(index, within, &mut bytes)?;
        out.put(&bytes);
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
        let reusable = match &before {
            Some(slot) => {
                self.forget(slot, length);
                match slot.place {
                    Place::Memory(_) => None,
                    Place::Spilled(offset) => Some(offset),
                }
            }
            None => None,
        };
        let place = if self.memory + length <= self.memory_limit && reusable.is_none() {
            self.memory += length;
            Place::Memory(content)
        } else {
            Place::Spilled(self.spill_content(&content, reusable)?)
        };
        let sent = match before.map(|slot| slot.sent) {
            None | Some(Sent::Never) => Sent::Never,
            Some(Sent::Before | Sent::Now) => Sent::Before,
        };
        self.unsent_bytes += length;
        self.writes += 1;
        let written = self.writes;
        let slot = Slot {
            place,
            sent,
            written,
        };
        self.slots.insert(index, slot);
        self.enqueue(index, written);
        self.size = self.size.max((u64::from(index) + 1) * length);
        Ok(())
    }

    fn enqueue(&mut self, index: u32, written: u64) {
        if self.unsent.len() >= 2 * self.slots.len() + 1024 {
            // Units that are written again and again.
            let slots = &self.slots;
            self.unsent.retain(|(index, written)| {
                slots.get(index).is_some_and(|slot| slot.is_due(*written))
            });
        }
        self.unsent.push_back((index, written));
    }

    /// What a unit that goes away counted for.
    fn forget(&mut self, slot: &Slot, length: u64) {
        if matches!(slot.place, Place::Memory(_)) {
            self.memory -= length;
        }
        if slot.sent != Sent::Now {
            self.unsent_bytes -= length;
        }
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

    /// Sets the size; what lies beyond it is gone. Whether a unit was among it of which the server
    /// may have something, that must not come back.
    pub fn truncate(&mut self, size: u64) -> bool {
        let mut sent_is_gone = false;
        if let Some(unit) = self.unit {
            let kept = size.div_ceil(u64::from(unit.get()));
            if let Ok(first_gone) = u32::try_from(kept) {
                for slot in self.slots.split_off(&first_gone).into_values() {
                    self.forget(&slot, u64::from(unit.get()));
                    sent_is_gone |= slot.sent != Sent::Never;
                }
            }
        }
        self.size = size;
        sent_is_gone
    }

    /// Bytes of all units written.
    pub fn written_bytes(&self) -> u64 {
        self.slots.len() as u64 * self.unit.map_or(0, |unit| u64::from(unit.get()))
    }

    /// Bytes of the units that were not handed out by [`Overlay::take_unsent`] since they were written.
    pub fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes
    }

    /// Indexes of unsent units, those first that were left alone longest, of about so many bytes. They count as sent from here on.
    pub fn take_unsent(&mut self, bytes: u64) -> Vec<u32> {
        let Some(unit) = self.unit else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        let most = (bytes / u64::from(unit.get())).max(1);
        while (taken.len() as u64) < most
            && let Some((index, written)) = self.unsent.pop_front()
        {
            if let Some(slot) = self.slots.get_mut(&index)
                && slot.is_due(written)
            {
                slot.sent = Sent::Now;
                self.unsent_bytes -= u64::from(unit.get());
                taken.push(index);
            }
        }
        taken
    }

    /// Undoes [`Overlay::take_unsent`] for units that did not arrive.
    pub fn give_back(&mut self, indexes: &[u32]) {
        let length = self.unit.map_or(0, |unit| u64::from(unit.get()));
        for index in indexes {
            if let Some(slot) = self.slots.get_mut(index)
                && slot.sent == Sent::Now
            {
                slot.sent = Sent::Before;
                self.unsent_bytes += length;
                let written = slot.written;
                self.enqueue(*index, written);
            }
        }
    }

    /// The server has nothing of any unit.
    pub fn forget_sent(&mut self) {
        self.unsent_bytes = self.written_bytes();
        self.unsent.clear();
        for (index, slot) in &mut self.slots {
            slot.sent = Sent::Never;
            self.unsent.push_back((*index, slot.written));
        }
    }

    /// Whether the unit was handed out since it was written.
    pub fn is_sent(&self, index: u32) -> bool {
        self.slots
            .get(&index)
            .is_some_and(|slot| slot.sent == Sent::Now)
    }

    /// Where the content of a unit lies, for a commit.
    pub fn source(&self, index: u32) -> Option<PageSource> {
        Some(match &self.slots.get(&index)?.place {
            Place::Memory(content) => PageSource::Memory(content.clone()),
            Place::Spilled(offset) => PageSource::Spilled(*offset),
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
        assert!(!overlay.truncate(1024));
        assert_eq!(overlay.indexes().collect::<Vec<_>>(), [0, 1]);
        assert_eq!((overlay.size(), overlay.memory), (1024, 1024));
    }

    #[test]
    fn a_unit_is_unsent_until_it_is_taken_and_again_when_it_is_replaced_or_given_back() {
        for limit in [0, 1 << 20] {
            let mut overlay = Overlay::new(Some(PageSize::MIN), 0, limit);
            for index in [3, 1, 2] {
                overlay.put(index, bytes(1)).unwrap();
            }
            overlay.put(3, bytes(2)).unwrap();
            assert_eq!(
                (overlay.unsent_bytes(), overlay.written_bytes()),
                (1536, 1536)
            );
            assert_eq!(overlay.take_unsent(1024), [1, 2]);
            assert_eq!(overlay.unsent_bytes(), 512);
            overlay.put(1, bytes(3)).unwrap();
            assert_eq!(
                [1, 2, 3].map(|index| overlay.is_sent(index)),
                [false, true, false]
            );
            // What was replaced meanwhile is unsent already.
            overlay.give_back(&[2, 1, 9]);
            assert_eq!(overlay.unsent_bytes(), 1536);
            assert_eq!(overlay.take_unsent(1 << 20), [3, 1, 2]);
            assert!(overlay.take_unsent(1 << 20).is_empty());
            overlay.put(4, bytes(4)).unwrap();
            assert!(!overlay.truncate(4 * 512), "unit 4 was never sent");
            overlay.put(3, bytes(4)).unwrap();
            assert!(overlay.truncate(3 * 512), "of unit 3 an older content was");
            assert_eq!(overlay.unsent_bytes(), 0);
            overlay.forget_sent();
            assert!(!overlay.truncate(2 * 512));
            assert_eq!(overlay.unsent_bytes(), 512);
            assert_eq!(overlay.take_unsent(1 << 20), [1]);
        }
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
