//! One slot of a file of pages: its bytes, and what they say.

use bytes::Bytes;
use pagewire_proto::{PageNumber, PageSize, Version};
use twox_hash::XxHash3_128;

use super::Entry;

/// Bytes in front of the content: checksum (16), page (4), length (4), from (8), upto (8).
pub const HEADER_BYTES: usize = 40;
const SUM: std::ops::Range<usize> = 0..16;

/// The 128-bit checksum of everything that comes after it. A reader may meet a slot half written by another process, which is no rare
/// accident: the 32 bits of the wire would let one of them pass now and then.
pub fn checksum(seed: u64, bytes: &[u8]) -> [u8; 16] {
    XxHash3_128::oneshot_with_seed(seed, bytes).to_le_bytes()
}

/// Bytes of a slot.
pub fn size(page_size: PageSize) -> usize {
    HEADER_BYTES + page_size.bytes()
}

/// What lies in a slot.
pub enum Content {
    /// Nothing was ever written, or it was given back to the file system.
    Empty,
    /// Neither nothing nor a page.
    Damaged,
    /// This page.
    Page(PageNumber, Entry),
}

/// The bytes of a slot with a page; the content has the length of a page.
pub fn encode(seed: u64, page: PageNumber, entry: &Entry) -> Vec<u8> {
    let length = entry.content.len() as u32;
    let mut slot = Vec::with_capacity(HEADER_BYTES + entry.content.len());
    slot.extend_from_slice(&[0; 16]);
    slot.extend_from_slice(&page.get().to_le_bytes());
    slot.extend_from_slice(&length.to_le_bytes());
    slot.extend_from_slice(&entry.from.get().to_le_bytes());
    slot.extend_from_slice(&entry.upto.get().to_le_bytes());
    slot.extend_from_slice(&entry.content);
    let sum = checksum(seed, &slot[SUM.end..]);
    slot[SUM].copy_from_slice(&sum);
    slot
}

/// What the bytes of a slot say (Q5).
pub fn decode(seed: u64, page_size: PageSize, slot: Vec<u8>) -> Content {
    let slot = Bytes::from(slot);
    let Some(header) = slot.get(..HEADER_BYTES) else {
        return Content::Damaged;
    };
    if header.iter().all(|byte| *byte == 0) {
        return Content::Empty;
    }
    let number = |at: usize| u32::from_le_bytes(field(header, at));
    let version = |at: usize| Version::new(u64::from_le_bytes(field(header, at)));
    let (from, upto) = (version(24), version(32));
    let is_whole = slot.len() == size(page_size)
        && number(20) == page_size.get()
        && header[SUM] == checksum(seed, &slot[SUM.end..]);
    match PageNumber::try_from(number(16)) {
        Ok(page) if is_whole && Version::ZERO < from && from <= upto => {
            let content = slot.slice(HEADER_BYTES..);
            let entry = Entry {
                content,
                from,
                upto,
            };
            Content::Page(page, entry)
        }
        _ => Content::Damaged,
    }
}

/// Some bytes of a header that has them.
pub fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        field.copy_from_slice(found);
    }
    field
}
