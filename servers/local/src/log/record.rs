//! Records of the log: what a transaction puts and deletes, as it lies in the file.
//!
//! Header, numbers little-endian: magic (4 bytes), kind (1), zeros (3), run (8), number of the transaction (8), length of the body (4), CRC-32 of the
//! body (4), CRC-32 of the header before (4), CRC-32 of all that (4). Body: of each row the length of its key (2), of the row (4, all ones
//! where it is deleted), key, row.

/// Records begin at multiples of this: a record is never in a block with another one.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes from which on a transaction does not go through the log (LOG7): more than 64 commits of some pages, less than a log file has.
pub(crate) const MAX_RECORD: usize = 3 << 19;
/// Bytes before the body.
pub(crate) const HEADER: usize = 40;

const MAGIC: u32 = 0x4C52_5750;
const SUMMED: usize = HEADER - 4;
const DELETED: u32 = u32::MAX;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It has what its transaction changed.
    Changes,
    /// It says that a transaction follows which is not in the log.
    Mark,
}

/// What the header of a record says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) run: u64,
    pub(crate) number: u64,
    pub(crate) previous: u32,
    pub(crate) body_bytes: usize,
    pub(crate) sum: u32,
    body_sum: u32,
}

/// What a transaction changed so far.
#[derive(Debug)]
pub(crate) struct Changes {
    /// With room for a header before.
    bytes: Vec<u8>,
    rows: u64,
    /// More than a record has room for: not kept.
    is_large: bool,
}

/// Where [`Changes`] can be taken back to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Savepoint(usize, u64);

impl Changes {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; HEADER],
            rows: 0,
            is_large: false,
        }
    }

    /// A row is written, whose bytes are those of both parts.
    pub(crate) fn put(&mut self, key: &[u8], sums: &[u8], body: &[u8]) {
        self.add(key, (sums.len() + body.len()) as u32, &[sums, body]);
    }

    /// A row that was there is dropped.
    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.add(key, DELETED, &[]);
    }

    fn add(&mut self, key: &[u8], length: u32, parts: &[&[u8]]) {
        self.rows += 1;
        let row: usize = parts.iter().map(|part| part.len()).sum();
        if self.is_large || self.bytes.len() + 6 + key.len() + row > MAX_RECORD {
            self.is_large = true;
            self.bytes = Vec::new();
            return;
        }
        self.bytes.extend((key.len() as u16).to_le_bytes());
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend(key);
        parts.iter().for_each(|part| self.bytes.extend(*part));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn is_large(&self) -> bool {
        self.is_large
    }

    /// About as many bytes the engine writes for it: a row and the page that it is in.
    pub(crate) fn work(&self) -> u64 {
        self.rows * BLOCK + self.bytes.len() as u64
    }

    /// From the first block of its record to the end of the last.
    pub(crate) fn span(&self) -> u64 {
        (self.bytes.len().max(HEADER) as u64).next_multiple_of(BLOCK)
    }

    pub(crate) fn savepoint(&self) -> Savepoint {
        Savepoint(self.bytes.len(), self.rows)
    }

    /// Forgets what came after. What was large meanwhile stays so: nobody knows any more what was before.
    pub(crate) fn undo_to(&mut self, Savepoint(bytes, rows): Savepoint) {
        self.bytes.truncate(bytes);
        self.rows = rows;
    }

    /// The whole record, up to the end of its last block; of what is large the mark.
    pub(crate) fn record(mut self, run: u64, number: u64, previous: u32) -> Record {
        let kind = if self.is_large { 2 } else { 1 };
        self.bytes.resize(self.bytes.len().max(HEADER), 0);
        let body = &self.bytes[HEADER..];
        let (length, body_sum) = (body.len() as u32, crc32fast::hash(body));
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC.to_le_bytes());
        header.extend([kind, 0, 0, 0]);
        header.extend(run.to_le_bytes());
        header.extend(number.to_le_bytes());
        header.extend(length.to_le_bytes());
        header.extend(body_sum.to_le_bytes());
        header.extend(previous.to_le_bytes());
        let sum = crc32fast::hash(&header);
        header.extend(sum.to_le_bytes());
        self.bytes[..HEADER].copy_from_slice(&header);
        let blocks = self.bytes.len().next_multiple_of(BLOCK as usize);
        self.bytes.resize(blocks, 0);
        Record {
            bytes: self.bytes,
            sum,
        }
    }
}

/// As it is written.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) bytes: Vec<u8>,
    /// That of its header, which the next one has.
    pub(crate) sum: u32,
}

impl Header {
    /// `None` where no whole header begins.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let four = |at: usize| u32::from_le_bytes(part(header, at));
        let eight = |at: usize| u64::from_le_bytes(part(header, at));
        let sum = four(SUMMED);
        if four(0) != MAGIC || sum != crc32fast::hash(&header[..SUMMED]) {
            return None;
        }
        let kind = match header[4] {
            1 => Kind::Changes,
            2 => Kind::Mark,
            _ => return None,
        };
        Some(Self {
            kind,
            run: eight(8),
            number: eight(16),
            body_bytes: four(24) as usize,
            body_sum: four(28),
            previous: four(32),
            sum,
        })
    }

    /// From its first block to the end of its last.
    pub(crate) fn span(&self) -> u64 {
        ((HEADER + self.body_bytes) as u64).next_multiple_of(BLOCK)
    }

    pub(crate) fn is_of(&self, body: &[u8]) -> bool {
        body.len() == self.body_bytes && crc32fast::hash(body) == self.body_sum
    }
}

/// A row of a body: its key, and what it is; `None` where it is deleted.
pub(crate) type Change<'b> = (&'b [u8], Option<&'b [u8]>);

/// Takes the first row off a body; `None` at the end, and an error where it makes no sense.
pub(crate) fn next_change<'b>(body: &mut &'b [u8]) -> Result<Option<Change<'b>>, ()> {
    if body.is_empty() {
        return Ok(None);
    }
    let (lengths, rest) = body.split_first_chunk::<6>().ok_or(())?;
    let key = usize::from(u16::from_le_bytes(part(lengths, 0)));
    let row = u32::from_le_bytes(part(lengths, 2));
    let (key, rest) = rest.split_at_checked(key).ok_or(())?;
    if row == DELETED {
        *body = rest;
        return Ok(Some((key, None)));
    }
    let (row, rest) = rest.split_at_checked(row as usize).ok_or(())?;
    *body = rest;
    Ok(Some((key, Some(row))))
}

/// Bytes at a place that is known to be there.
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(record: &Record) -> &[u8] {
        let header = Header::parse(&record.bytes).unwrap();
        &record.bytes[HEADER..HEADER + header.body_bytes]
    }

    #[test]
    fn what_was_changed_is_read_back_in_its_order() {
        let mut changes = Changes::new();
        changes.put(b"a", b"12345678", b"body");
        let before = changes.savepoint();
        changes.put(b"undone", b"", b"x");
        changes.undo_to(before);
        changes.delete(b"b");
        changes.put(b"c", b"12345678", b"");
        let record = changes.record(7, 9, 11);
        assert_eq!(record.bytes.len() as u64, BLOCK);
        let header = Header::parse(&record.bytes).unwrap();
        assert_eq!((header.run, header.number, header.previous), (7, 9, 11));
        assert_eq!((header.kind, header.sum), (Kind::Changes, record.sum));
        let mut rest = body(&record);
        assert!(header.is_of(rest));
        let mut read = Vec::new();
        while let Some(change) = next_change(&mut rest).unwrap() {
            read.push(change);
        }
        let rows: [Change<'_>; 3] = [
            (b"a", Some(b"12345678body")),
            (b"b", None),
            (b"c", Some(b"12345678")),
        ];
        assert_eq!(read, rows);
    }

    #[test]
    fn a_bit_that_flips_anywhere_in_a_record_is_told() {
        let mut changes = Changes::new();
        changes.put(b"key", b"12345678", b"body");
        let record = changes.record(1, 2, 3);
        let used = HEADER + body(&record).len();
        for bit in 0..used * 8 {
            let mut bytes = record.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let whole = Header::parse(&bytes).is_some_and(|header| {
                let body = bytes.get(HEADER..HEADER + header.body_bytes);
                body.is_some_and(|body| header.is_of(body))
            });
            assert!(!whole, "bit {bit}");
        }
    }

    #[test]
    fn log7_what_is_too_large_leaves_a_mark_and_no_bytes() {
        let mut changes = Changes::new();
        for _ in 0..MAX_RECORD / 1024 + 1 {
            changes.put(b"key", b"", &[1; 1024]);
        }
        assert!(changes.is_large() && !changes.is_empty());
        let record = changes.record(1, 2, 3);
        assert_eq!(record.bytes.len() as u64, BLOCK);
        let header = Header::parse(&record.bytes).unwrap();
        assert_eq!((header.kind, header.body_bytes), (Kind::Mark, 0));
    }

    #[test]
    fn bodies_that_make_no_sense_are_no_panic() {
        for bytes in [&b"x"[..], &[255; 6], &[1, 0, 255, 0, 0, 0, 7]] {
            assert!(next_change(&mut &bytes[..]).is_err());
        }
    }
}
