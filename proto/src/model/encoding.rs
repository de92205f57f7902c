//! The encodings in which pages travel: LZ4, for each page by itself or with its base as the dictionary.
//!
//! Knows nothing of what a peer can do: whoever sends has looked at its capabilities.

use bytes::Bytes;

use super::{Invalid, Page, PageNumber, PageSize, Version};
use crate::pb;

/// How far back a match of LZ4 reaches at most: what of a base lies before that is of no use at the beginning of a page, and the last byte
/// of the largest one would put every other out of the reach of its own place.
const REACH: usize = 65_535;

/// The dictionary for pages whose base this is.
fn dictionary(base: &[u8]) -> &[u8] {
    &base[..base.len().min(REACH)]
}

/// Whether so many bytes are worth the work of expanding them: an eighth has to be saved.
fn is_worth_it(encoded: usize, raw: usize) -> bool {
    encoded <= raw / 8 * 7
}

impl Page {
    /// The message for it, compressed where that makes it smaller by an eighth.
    pub fn to_compressed_wire(&self) -> pb::PageContent {
        let mut wire = self.to_wire();
        if !self.content.is_empty() {
            let compressed = lz4_flex::block::compress(&self.content);
            if is_worth_it(compressed.len(), self.content.len()) {
                wire.content = compressed.into();
                wire.encoding = pb::PageEncoding::Lz4.into();
            }
        }
        wire
    }

    /// The message for it as a delta of its base, where there is one of the same size and that makes it smaller by an eighth.
    pub fn to_delta_wire(&self, base: &[u8]) -> pb::PageContent {
        let mut wire = self.to_wire();
        if !self.content.is_empty() && base.len() == self.content.len() {
            let delta = lz4_flex::block::compress_with_dict(&self.content, dictionary(base));
            if is_worth_it(delta.len(), self.content.len()) {
                wire.content = delta.into();
                wire.encoding = pb::PageEncoding::Delta.into();
            }
        }
        wire
    }

    /// Checks a page of an answer, which may be compressed where the client has said that it can take that.
    ///
    /// It takes no more than a page size of memory, whatever the content says.
    pub fn from_answer(
        wire: pb::PageContent,
        page_size: Option<PageSize>,
    ) -> Result<Self, Invalid> {
        if wire.encoding != pb::PageEncoding::Lz4 as i32 {
            return Self::from_wire(wire, page_size);
        }
        let version = Version::new(wire.version);
        let encoded = EncodedPage::try_from(wire)?;
        let size = page_size.ok_or_else(|| Invalid::new("content", "no page can be there"))?;
        match encoded.expand(size, None) {
            Ok(page) => Ok(Page { version, ..page }),
            Err(Unfit::Invalid(invalid)) => Err(invalid),
            Err(Unfit::Base(number)) => Err(Invalid::new(
                "encoding",
                format!("page {number}: a delta is no answer"),
            )),
        }
    }
}

/// A page that came in another encoding than the raw one, and was not expanded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPage {
    /// Which page.
    pub number: PageNumber,
    /// Of the page itself.
    crc32: u32,
    block: Bytes,
    is_delta: bool,
}

/// Why a page could not be expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The sender made a mistake.
    Invalid(Invalid),
    /// It was made from another base, or there is none.
    Base(PageNumber),
}

impl TryFrom<pb::PageContent> for EncodedPage {
    type Error = Invalid;

    fn try_from(wire: pb::PageContent) -> Result<Self, Invalid> {
        let number = PageNumber::try_from(wire.number)?;
        let is_delta = match wire.encoding() {
            // Also what a later version has, for which the number of the encoding is looked at.
            pb::PageEncoding::Raw => {
                return Err(Invalid::new(
                    "encoding",
                    format!("is {}, which is not known here", wire.encoding),
                ));
            }
            pb::PageEncoding::Lz4 => false,
            pb::PageEncoding::Delta => true,
        };
        if wire.content.is_empty() {
            return Err(Invalid::new(
                "content",
                format!("page {number}: is no LZ4 block: it is empty"),
            ));
        }
        Ok(Self {
            number,
            crc32: wire.crc32,
            block: wire.content,
            is_delta,
        })
    }
}

impl EncodedPage {
    /// Whether its base is needed.
    pub fn is_delta(&self) -> bool {
        self.is_delta
    }

    /// Bytes of what came.
    pub fn block_bytes(&self) -> usize {
        self.block.len()
    }

    /// The page; it takes exactly a page size of memory, whatever the block says.
    ///
    /// What is returned has the checksum that the sender counted, so a wrong base makes an error and never other content.
    pub fn expand(&self, page_size: PageSize, base: Option<&[u8]>) -> Result<Page, Unfit> {
        let dictionary = match (self.is_delta, base) {
            (false, _) => &[],
            (true, Some(base)) if base.len() == page_size.bytes() => dictionary(base),
            (true, _) => return Err(Unfit::Base(self.number)),
        };
        let mut content = vec![0; page_size.bytes()];
        let length = match self.is_delta {
            false => lz4_flex::block::decompress_into(&self.block, &mut content),
            true => {
                lz4_flex::block::decompress_into_with_dict(&self.block, &mut content, dictionary)
            }
        };
        if length.is_err() || length.is_ok_and(|length| length != content.len()) {
            return Err(Unfit::Invalid(Invalid::new(
                "content",
                format!(
                    "page {}: is no LZ4 block of {page_size} bytes",
                    self.number,
                    page_size = page_size.get()
                ),
            )));
        }
        match crc32fast::hash(&content) == self.crc32 {
            true => Ok(Page {
                number: self.number,
                content: content.into(),
                version: Version::ZERO,
            }),
            // The block is a right one for any base, so nothing tells the two apart.
            false if self.is_delta => Err(Unfit::Base(self.number)),
            false => Err(Unfit::Invalid(Invalid::new(
                "crc32",
                format!("page {}: checksum differs", self.number),
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize, seed: u32) -> Vec<u8> {
        let mut state = seed | 1;
        let mut byte = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        };
        (0..length).map(|_| byte()).collect()
    }

    fn page(content: &[u8]) -> Page {
        Page {
            number: PageNumber::FIRST,
            content: Bytes::copy_from_slice(content),
            version: Version::ZERO,
        }
    }

    fn sizes() -> impl Iterator<Item = PageSize> {
        (9..=16).map(|power| PageSize::try_from(1u32 << power).unwrap())
    }

    #[test]
    fn a_small_change_of_a_page_that_nothing_compresses_is_a_small_delta_for_every_page_size() {
        for size in sizes() {
            let base = noise(size.bytes(), 7);
            let mut content = base.clone();
            content[size.bytes() / 2] ^= 1;
            let wire = page(&content).to_delta_wire(&base);
            assert_eq!(wire.encoding(), pb::PageEncoding::Delta, "{size:?}");
            let most = 48 + size.bytes() / 255;
            assert!(wire.content.len() < most, "{size:?} {}", wire.content.len());
            let encoded = EncodedPage::try_from(wire).unwrap();
            let expanded = encoded.expand(size, Some(&base)).unwrap();
            assert_eq!(expanded, page(&content));
        }
    }

    #[test]
    fn what_no_encoding_makes_smaller_stays_raw() {
        for size in sizes() {
            let content = noise(size.bytes(), 7);
            let raw = page(&content).to_wire();
            assert_eq!(page(&content).to_compressed_wire(), raw);
            let base = noise(size.bytes(), 8);
            assert_eq!(page(&content).to_delta_wire(&base), raw);
            // Of another size, or of a page that was never written.
            assert_eq!(page(&content).to_delta_wire(&content[1..]), raw);
            assert_eq!(page(&content).to_delta_wire(&[]), raw);
        }
        assert_eq!(page(&[]).to_compressed_wire(), page(&[]).to_wire());
        assert_eq!(page(&[]).to_delta_wire(&[]), page(&[]).to_wire());
    }

    #[test]
    fn a_wrong_base_is_told_and_never_makes_other_content() {
        for size in sizes() {
            let base = noise(size.bytes(), 7);
            let mut content = base.clone();
            content[3] ^= 1;
            let wire = page(&content).to_delta_wire(&base);
            let encoded = EncodedPage::try_from(wire).unwrap();
            let unfit = Err(Unfit::Base(PageNumber::FIRST));
            assert_eq!(encoded.expand(size, None), unfit);
            assert_eq!(encoded.expand(size, Some(&[])), unfit);
            assert_eq!(encoded.expand(size, Some(&base[1..])), unfit);
            let mut other = base.clone();
            other[size.bytes() / 2] ^= 1;
            assert_eq!(encoded.expand(size, Some(&other)), unfit);
            // Where nothing was taken from the base that is not right.
            other[size.bytes() / 2] ^= 1;
            other[3] ^= 1;
            assert_eq!(encoded.expand(size, Some(&other)), Ok(page(&content)));
        }
    }

    #[test]
    fn blocks_that_are_none_are_the_senders_mistake() {
        let size = PageSize::MIN;
        let base = noise(512, 7);
        let block = |content: &[u8], encoding: pb::PageEncoding| pb::PageContent {
            number: 1,
            content: Bytes::copy_from_slice(content),
            crc32: 0,
            version: 0,
            encoding: encoding.into(),
        };
        // Literals of 100 bytes, a match of 255 * 255 bytes and more, one that reaches before the base, nothing, and an end too early.
        let literals = [&[0xf0, 85][..], &[7; 100]].concat();
        let long = [&[0x1f, 7, 1, 0][..], &[255; 255], &[0, 0x50, 1, 2, 3, 4, 5]].concat();
        let before = [&[0x1f, 7, 0xff, 0xff][..], &[200, 0x50, 1, 2, 3, 4, 5]].concat();
        for content in [&literals, &long, &before, &vec![0], &vec![0xff; 40]] {
            for encoding in [pb::PageEncoding::Lz4, pb::PageEncoding::Delta] {
                let encoded = EncodedPage::try_from(block(content, encoding)).unwrap();
                let refused = encoded.expand(size, Some(&base));
                let is_invalid =
                    matches!(&refused, Err(Unfit::Invalid(invalid)) if invalid.field == "content");
                assert!(is_invalid, "{content:?} {refused:?}");
            }
        }
        for encoding in [pb::PageEncoding::Lz4, pb::PageEncoding::Delta] {
            let refused = EncodedPage::try_from(block(&[], encoding)).unwrap_err();
            assert_eq!(refused.field, "content");
        }
        for encoding in [0, 3, -1, i32::MAX] {
            let mut wire = block(&literals, pb::PageEncoding::Raw);
            wire.encoding = encoding;
            assert_eq!(EncodedPage::try_from(wire).unwrap_err().field, "encoding");
        }
    }

    #[test]
    fn an_answer_is_no_delta() {
        let base = noise(512, 7);
        let wire = page(&base).to_delta_wire(&base);
        assert_eq!(wire.encoding(), pb::PageEncoding::Delta);
        let refused = Page::from_answer(wire, Some(PageSize::MIN)).unwrap_err();
        assert_eq!(refused.field, "encoding");
    }
}
