//! What the rows of pages have.

use bytes::Bytes;
use pagewire_proto::PageSize;

use super::Fields;

/// What a row of a page has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageBody<'a> {
    /// The page went away with a shrink.
    Gone,
    /// As many zeros.
    Zeros(u32),
    /// The content.
    Raw(&'a [u8]),
    /// The content, compressed, with its length.
    Lz4(u32, &'a [u8]),
    /// The content is the page of the staging with this serial number.
    Staged(u64),
}

/// The row of a page that went away.
pub const GONE: [u8; 1] = [0];

impl<'a> PageBody<'a> {
    /// The page with this body.
    pub fn decode(body: &'a [u8]) -> Option<Self> {
        let (kind, rest) = body.split_first()?;
        let mut fields = Fields(rest);
        let page = match kind {
            0 => Self::Gone,
            1 => Self::Zeros(fields.page_size()?),
            2 => Self::Raw(std::mem::take(&mut fields.0)),
            3 => Self::Lz4(fields.page_size()?, std::mem::take(&mut fields.0)),
            4 => Self::Staged(fields.u64()?),
            _ => return None,
        };
        fields.0.is_empty().then_some(page)
    }

    /// The content of the page; `None` where the compressed form is none, or where the content is elsewhere.
    pub fn content(&self) -> Option<Bytes> {
        match *self {
            Self::Gone => Some(Bytes::new()),
            Self::Zeros(size) => Some(Bytes::from(vec![0; size as usize])),
            Self::Raw(content) => Some(Bytes::copy_from_slice(content)),
            Self::Lz4(size, block) => {
                let mut content = vec![0; size as usize];
                let length = lz4_flex::block::decompress_into(block, &mut content).ok()?;
                (length == content.len()).then(|| Bytes::from(content))
            }
            Self::Staged(_) => None,
        }
    }
}

/// The body of a page of this content: compressed where that is smaller, no content for zeros.
pub fn encode_page(content: &[u8], size: PageSize) -> Vec<u8> {
    let mut out = vec![0; 5 + lz4_flex::block::get_maximum_output_size(content.len())];
    out[1..5].copy_from_slice(&size.get().to_be_bytes());
    if content.iter().all(|byte| *byte == 0) {
        out[0] = 1;
        out.truncate(5);
        return out;
    }
    match lz4_flex::block::compress_into(content, &mut out[5..]) {
        Ok(length) if length + 4 < content.len() => {
            out[0] = 3;
            out.truncate(5 + length);
            out.shrink_to_fit();
            out
        }
        _ => [&[2], content].concat(),
    }
}

/// The body of a page whose content is in a staging.
pub fn encode_staged(serial: u64) -> Vec<u8> {
    [&[4], &serial.to_be_bytes()[..]].concat()
}
