//! Where xRead puts what it has read: SQLite's own buffer, which may be uninitialised.

use std::mem::MaybeUninit;

use bytes::buf::UninitSlice;

/// A buffer that is filled from its beginning to its end. What lies in it before is never read.
pub struct ReadBuffer<'a> {
    bytes: &'a mut UninitSlice,
    filled: usize,
}

impl<'a> From<&'a mut [MaybeUninit<u8>]> for ReadBuffer<'a> {
    fn from(bytes: &'a mut [MaybeUninit<u8>]) -> Self {
        Self {
            bytes: UninitSlice::uninit(bytes),
            filled: 0,
        }
    }
}

impl<'a> From<&'a mut [u8]> for ReadBuffer<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes: UninitSlice::new(bytes),
            filled: 0,
        }
    }
}

impl ReadBuffer<'_> {
    /// How many bytes there is still room for.
    pub fn room(&self) -> usize {
        self.bytes.len() - self.filled
    }

    /// Copies bytes behind those that are there. Panics where there is no room for them.
    pub fn put(&mut self, bytes: &[u8]) {
        let end = self.filled + bytes.len();
        self.bytes[self.filled..end].copy_from_slice(bytes);
        self.filled = end;
    }

    /// Puts so many zeros behind what is there. Panics where there is no room for them.
    pub fn put_zeros(&mut self, count: usize) {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut left = count;
        while left > 0 {
            let part = left.min(ZEROS.len());
            self.put(&ZEROS[..part]);
            left -= part;
        }
    }

    /// Fills it up with zeros.
    pub fn finish(&mut self) {
        self.put_zeros(self.room());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_written_once_and_the_rest_is_zero() {
        let mut memory = [MaybeUninit::uninit(); 10_000];
        let mut buffer = ReadBuffer::from(&mut memory[..]);
        buffer.put(b"abc");
        buffer.put_zeros(2);
        buffer.put(b"de");
        assert_eq!(buffer.room(), 9_993);
        buffer.finish();
        assert_eq!(buffer.room(), 0);
        let mut there = [0xaa; 20];
        let mut buffer = ReadBuffer::from(&mut there[..]);
        buffer.put(b"abc");
        buffer.finish();
        assert_eq!(&there[..4], b"abc\0");
        assert_eq!(there[3..], [0; 17]);
    }

    #[test]
    #[should_panic]
    fn nothing_is_put_beyond_its_end() {
        ReadBuffer::from(&mut [0; 3][..]).put(b"abcd");
    }
}
