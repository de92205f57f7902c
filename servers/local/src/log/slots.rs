//! The slots: which transaction the store is opened from (LOG4).
//!
//! Layout of a slot, numbers little-endian: magic (8 bytes), format of the store (4), state (4), run (8), number of the transaction (8), which log
//! file has what is after it (4), CRC-32 of the header of the record before that (4), length of each log file (8 each), both roots,
//! CRC-32 of all that (4). It fits a sector; the other slot is far enough away to be in no block, page or sector with it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::files::is_unreadable;
use super::record::part;
use crate::roots::{ROOT_BYTES, Roots};

const MAGIC: u64 = 0x544E_494F_5043_5750;
/// From one slot to the other.
const STRIDE: u64 = 64 << 10;
const ROOTS_AT: usize = 56;
const SUM_AT: usize = ROOTS_AT + 2 * ROOT_BYTES;
const SLOT_BYTES: usize = SUM_AT + 4;

/// A transaction with which everything before it is in the engine's file, synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) number: u64,
    /// Of the log, and of the row in the engine as of this transaction.
    pub(crate) run: u64,
    /// Nothing is after it: the log is not needed.
    pub(crate) is_closed: bool,
    /// Which log file has what is after it, from its beginning on.
    pub(crate) file: usize,
    /// Of the header of the last record before.
    pub(crate) previous: u32,
    /// What the log files are at least.
    pub(crate) lengths: [u64; 2],
    pub(crate) roots: Roots,
}

/// What a slot has.
#[derive(Clone, Debug)]
pub(crate) enum Slot {
    Whole(Box<Checkpoint>),
    /// Whole, and of another format.
    Foreign(u32),
    /// Torn, damaged, or never written.
    Not,
}

/// The file of both.
#[derive(Debug)]
pub(crate) struct Slots {
    pub(crate) file: File,
    pub(crate) format: u32,
}

impl Slots {
    /// Both; what is beyond the end of the file is not there, nor what the disk cannot read: a write that was cut off may leave that. An error where
    /// that leaves none: a disk that fails for a while is no damage.
    pub(crate) fn read(&self) -> std::io::Result<[Slot; 2]> {
        let mut slots = [Slot::Not, Slot::Not];
        let length = self.file.metadata()?.len();
        let mut unreadable = None;
        for (at, slot) in (0..).step_by(STRIDE as usize).zip(&mut slots) {
            let mut bytes = [0; SLOT_BYTES];
            if at + SLOT_BYTES as u64 <= length {
                match self.file.read_exact_at(&mut bytes, at) {
                    Err(error) if is_unreadable(&error) => unreadable = Some(error),
                    read => {
                        read?;
                        *slot = parse(&bytes, self.format);
                    }
                }
            }
        }
        let has_one = slots.iter().any(|slot| !matches!(slot, Slot::Not));
        match unreadable {
            Some(error) if !has_one => Err(error),
            _ => Ok(slots),
        }
    }

    /// Writes a slot, and syncs it.
    pub(crate) fn write(&self, slot: usize, checkpoint: &Checkpoint) -> std::io::Result<()> {
        let bytes = encode(checkpoint, self.format);
        self.file.write_all_at(&bytes, slot as u64 * STRIDE)?;
        self.file.sync_data()
    }
}

fn encode(checkpoint: &Checkpoint, format: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SLOT_BYTES);
    bytes.extend(MAGIC.to_le_bytes());
    bytes.extend(format.to_le_bytes());
    bytes.extend(u32::from(checkpoint.is_closed).to_le_bytes());
    bytes.extend(checkpoint.run.to_le_bytes());
    bytes.extend(checkpoint.number.to_le_bytes());
    bytes.extend((checkpoint.file as u32).to_le_bytes());
    bytes.extend(checkpoint.previous.to_le_bytes());
    for length in checkpoint.lengths {
        bytes.extend(length.to_le_bytes());
    }
    checkpoint
        .roots
        .0
        .iter()
        .for_each(|root| bytes.extend(root));
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

fn parse(bytes: &[u8; SLOT_BYTES], format: u32) -> Slot {
    let four = |at: usize| u32::from_le_bytes(part(bytes, at));
    let eight = |at: usize| u64::from_le_bytes(part(bytes, at));
    if eight(0) != MAGIC || four(SUM_AT) != crc32fast::hash(&bytes[..SUM_AT]) {
        return Slot::Not;
    }
    if four(8) != format {
        return Slot::Foreign(four(8));
    }
    Slot::Whole(Box::new(Checkpoint {
        number: eight(24),
        run: eight(16),
        is_closed: four(12) == 1,
        file: (four(32) & 1) as usize,
        previous: four(36),
        lengths: [eight(40), eight(48)],
        roots: Roots([part(bytes, ROOTS_AT), part(bytes, ROOTS_AT + ROOT_BYTES)]),
    }))
}

/// What the fuzz target `stored` does: the bytes as a slot, and the same with the right magic and checksum. What is read is written again and read
/// as the same: "closed" and the log file are numbers of which one bit counts.
#[cfg(feature = "fuzzing")]
pub(crate) fn look_at(bytes: &[u8]) {
    let Some(slot) = bytes.first_chunk::<SLOT_BYTES>() else {
        return;
    };
    let mut right = *slot;
    right[..8].copy_from_slice(&MAGIC.to_le_bytes());
    let sum = crc32fast::hash(&right[..SUM_AT]);
    right[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    let format = u32::from_le_bytes(part(&right, 8));
    assert!(!matches!(parse(&right, format), Slot::Not));
    assert!(matches!(parse(&right, !format), Slot::Foreign(of) if of == format));
    for bytes in [slot, &right] {
        if let Slot::Whole(checkpoint) = parse(bytes, format) {
            let again = encode(&checkpoint, format);
            let again = again.first_chunk().map(|again| parse(again, format));
            assert!(matches!(again, Some(Slot::Whole(again)) if again == checkpoint));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(number: u64) -> Checkpoint {
        Checkpoint {
            number,
            run: 0x0123_4567_89AB_CDEF,
            is_closed: number % 2 == 1,
            file: 1,
            previous: 77,
            lengths: [1 << 21, 1 << 22],
            roots: Roots([[number as u8; ROOT_BYTES], [7; ROOT_BYTES]]),
        }
    }

    #[test]
    fn log4_each_slot_is_whole_by_itself_and_a_flipped_bit_is_told() {
        let slots = Slots {
            file: tempfile::tempfile().unwrap(),
            format: 4,
        };
        assert!(matches!(slots.read().unwrap(), [Slot::Not, Slot::Not]));
        slots.write(0, &checkpoint(4)).unwrap();
        slots.write(1, &checkpoint(5)).unwrap();
        let read = slots.read().unwrap();
        let [Slot::Whole(first), Slot::Whole(second)] = read else {
            panic!("{read:?}");
        };
        assert_eq!((*first, *second), (checkpoint(4), checkpoint(5)));
        let whole = encode(&checkpoint(4), 4);
        for bit in 0..SLOT_BYTES * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let slot = parse(bytes[..].try_into().unwrap(), 4);
            assert!(matches!(slot, Slot::Not), "bit {bit}");
        }
        let newer = Slots { format: 5, ..slots };
        let read = newer.read().unwrap();
        assert!(matches!(read, [Slot::Foreign(4), Slot::Foreign(4)]));
    }
}
