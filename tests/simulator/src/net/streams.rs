//! The frames of HTTP/2 in one direction of a connection, so that messages of different streams can change their order on the way.
//!
//! What a sender writes first need not be what the other side deals with first: streams are independent of each other, and nothing in the
//! product may rest on the order in which messages of two of them were sent. A connection is one stream of bytes, though, and does not show
//! that by itself. So DATA frames are held while others pass, within what HTTP/2 leaves open:
//!
//! * frames of one stream keep their order;
//! * HEADERS keep theirs over all streams, with their CONTINUATIONs behind them, since the compression of headers has one state;
//! * GOAWAY and the end of a connection pass nothing.

use std::collections::BTreeMap;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Streams {
    /// Not a whole frame yet, or not a whole block of headers.
    part: Vec<u8>,
    /// Where the next frame begins in it: behind HEADERS that go on.
    looked_at: usize,
    has_begun: bool,
    /// By stream: until when, and what.
    held: BTreeMap<u32, (u64, Vec<u8>)>,
}

/// What comes of bytes that arrive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// What the other side reads now.
    pub bytes: Vec<u8>,
    /// When something that was held now is to be let go.
    pub held_until: Vec<u64>,
    /// Messages, or parts of them, that have passed one of another stream.
    pub passed: u64,
}

impl Streams {
    /// Takes in bytes. `hold` says of a DATA frame until when it is held, if it is.
    pub fn take(&mut self, bytes: &[u8], mut hold: impl FnMut() -> Option<u64>) -> Taken {
        self.part.extend_from_slice(bytes);
        let mut taken = Taken::default();
        if !self.has_begun {
            if PREFACE.starts_with(&self.part) && self.part.len() < PREFACE.len() {
                return taken;
            }
            self.has_begun = true;
            if self.part.starts_with(PREFACE) {
                taken.bytes.extend(self.part.drain(..PREFACE.len()));
            }
        }
        while let Some((end, kind, flags, stream)) = self.next_frame() {
            if matches!(kind, HEADERS | CONTINUATION) && flags & END_HEADERS == 0 {
                self.looked_at = end;
                continue;
            }
            self.looked_at = 0;
            let frame: Vec<u8> = self.part.drain(..end).collect();
            self.arrive(frame, kind, stream, &mut hold, &mut taken);
        }
        taken
    }

    fn next_frame(&self) -> Option<(usize, u8, u8, u32)> {
        let frame = self.part.get(self.looked_at..)?;
        let header = frame.get(..FRAME_HEADER)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let end = FRAME_HEADER + length;
        let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
        (frame.len() >= end).then_some((self.looked_at + end, header[3], header[4], stream))
    }

    fn arrive(
        &mut self,
        frame: Vec<u8>,
        kind: u8,
        stream: u32,
        hold: &mut impl FnMut() -> Option<u64>,
        taken: &mut Taken,
    ) {
        if kind == GOAWAY {
            taken.bytes.extend(self.let_go(u64::MAX));
        }
        if kind == DATA {
            if let Some((_, behind)) = self.held.get_mut(&stream) {
                behind.extend(frame);
                return;
            }
            if let Some(until) = hold() {
                self.held.insert(stream, (until, frame));
                taken.held_until.push(until);
                return;
            }
        } else if kind != WINDOW_UPDATE
            && let Some((_, before)) = self.held.remove(&stream)
        {
            taken.bytes.extend(before);
        }
        if matches!(kind, DATA | HEADERS) && !self.held.is_empty() {
            taken.passed += 1;
        }
        taken.bytes.extend(frame);
    }

    /// What has been held for long enough.
    pub fn let_go(&mut self, now: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.held.retain(|_, (until, frames)| {
            let stays = *until > now;
            if !stays {
                bytes.append(frames);
            }
            stays
        });
        bytes
    }

    /// Everything that is left: the connection ends.
    pub fn end(&mut self) -> Vec<u8> {
        let mut bytes = self.let_go(u64::MAX);
        bytes.append(&mut self.part);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u8, content: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, content.len() as u8, kind, flags, 0, 0, 0, stream];
        frame.extend_from_slice(content);
        frame
    }

    fn never() -> Option<u64> {
        None
    }

    #[test]
    fn what_is_not_held_arrives_as_it_was_sent_however_it_is_cut() {
        let mut sent = PREFACE.to_vec();
        sent.extend(frame(4, 0, 0, b"settings"));
        sent.extend(frame(HEADERS, END_HEADERS, 1, b"h"));
        sent.extend(frame(DATA, 0, 1, b"one"));
        for size in [1, 2, 7, 24, 1000] {
            let mut streams = Streams::default();
            let pieces = sent.chunks(size);
            let arrived: Vec<u8> = pieces
                .flat_map(|piece| streams.take(piece, never).bytes)
                .collect();
            assert_eq!(arrived, sent, "in pieces of {size}");
        }
    }

    #[test]
    fn a_message_of_another_stream_passes_one_that_is_held_and_its_own_wait_behind_it() {
        let mut streams = Streams::default();
        let (first, behind) = (frame(DATA, 0, 1, b"first"), frame(DATA, 1, 1, b"behind"));
        let other = frame(DATA, 1, 3, b"other");
        let taken = streams.take(&first, || Some(20));
        assert_eq!((taken.bytes, taken.held_until), (Vec::new(), vec![20]));
        let taken = streams.take(&[behind.clone(), other.clone()].concat(), never);
        assert_eq!((taken.bytes, taken.passed), (other, 1));
        assert_eq!(streams.let_go(19), []);
        assert_eq!(streams.let_go(20), [first, behind].concat());
        assert_eq!(streams.end(), []);
    }

    #[test]
    fn headers_pass_data_of_other_streams_and_neither_headers_nor_their_own_data() {
        let mut streams = Streams::default();
        let data = frame(DATA, 0, 1, b"data");
        streams.take(&data, || Some(9));
        let begun = frame(HEADERS, 0, 3, b"begin");
        let rest = frame(CONTINUATION, END_HEADERS, 3, b"rest");
        // A block of headers arrives as a whole: nothing that is let go comes in between.
        assert_eq!(streams.take(&begun, never), Taken::default());
        let taken = streams.take(&rest, never);
        assert_eq!(taken.bytes, [begun, rest].concat());
        let trailers = frame(HEADERS, END_HEADERS, 1, b"trailers");
        let taken = streams.take(&trailers, never);
        assert_eq!((taken.bytes, taken.passed), ([data, trailers].concat(), 0));
    }

    #[test]
    fn a_goodbye_and_the_end_pass_nothing() {
        let mut streams = Streams::default();
        let data = frame(DATA, 0, 1, b"data");
        streams.take(&data, || Some(9));
        let goodbye = frame(GOAWAY, 0, 0, b"bye");
        let taken = streams.take(&goodbye, never);
        assert_eq!(taken.bytes, [&data[..], &goodbye].concat());
        streams.take(&data, || Some(9));
        streams.take(&data[..5], never);
        assert_eq!(streams.end(), [&data[..], &data[..5]].concat());
    }
}
