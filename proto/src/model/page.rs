//! Pages: number, size, count and content.

use std::num::NonZeroU32;

use bytes::Bytes;

use super::{Invalid, Version};
use crate::pb;

/// The number of a page: 1 to 4,294,967,294 (SQLite file format, 1.3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber(NonZeroU32);

impl PageNumber {
    /// Page 1, which has the database header.
    pub const FIRST: PageNumber = PageNumber(NonZeroU32::MIN);
    /// The largest page number of SQLite.
    pub const MAX: u32 = u32::MAX - 1;

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for PageNumber {
    type Error = Invalid;

    fn try_from(number: u32) -> Result<Self, Invalid> {
        match NonZeroU32::new(number) {
            Some(value) if number <= Self::MAX => Ok(Self(value)),
            _ => Err(Invalid::new(
                "page number",
                format!("is {number}, must be from 1 to {}", Self::MAX),
            )),
        }
    }
}

impl std::fmt::Display for PageNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The size of a page in bytes: a power of two from 512 to 65,536.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize(u32);

impl PageSize {
    /// 512 bytes.
    pub const MIN: PageSize = PageSize(512);
    /// 65,536 bytes.
    pub const MAX: PageSize = PageSize(65_536);

    /// The size in bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes, for slices.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }
}

impl TryFrom<u32> for PageSize {
    type Error = Invalid;

    fn try_from(size: u32) -> Result<Self, Invalid> {
        if size.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&size) {
            Ok(Self(size))
        } else {
            Err(Invalid::new(
                "page_size",
                format!("is {size}, must be a power of two from 512 to 65536"),
            ))
        }
    }
}

/// How many pages a database has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageCount(u32);

impl PageCount {
    /// No pages.
    pub const ZERO: PageCount = PageCount(0);

    /// The count.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether the page lies within the database.
    pub const fn has(self, page: PageNumber) -> bool {
        page.get() <= self.0
    }
}

impl TryFrom<u32> for PageCount {
    type Error = Invalid;

    fn try_from(count: u32) -> Result<Self, Invalid> {
        if count <= PageNumber::MAX {
            Ok(Self(count))
        } else {
            Err(Invalid::new(
                "page_count",
                format!("is {count}, must be at most {}", PageNumber::MAX),
            ))
        }
    }
}

/// A page with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Which page.
    pub number: PageNumber,
    /// Exactly one page size of bytes, or none for a page that was never written and reads as zeros.
    pub content: Bytes,
    /// The version in which the page got this content; 0 in requests and for a page that was never written.
    pub version: Version,
}

impl Page {
    /// The message for it, with its checksum.
    pub fn to_wire(&self) -> pb::PageContent {
        pb::PageContent {
            number: self.number.get(),
            crc32: crc32fast::hash(&self.content),
            content: self.content.clone(),
            version: self.version.get(),
            encoding: pb::PageEncoding::Raw.into(),
        }
    }

    /// Checks a received page: number, length and checksum. `page_size` is `None` where only empty content can be right.
    pub fn from_wire(wire: pb::PageContent, page_size: Option<PageSize>) -> Result<Self, Invalid> {
        let number = PageNumber::try_from(wire.number)?;
        if wire.encoding != pb::PageEncoding::Raw as i32 {
            return Err(Invalid::new(
                "encoding",
                format!("is {}, must be PAGE_ENCODING_RAW here", wire.encoding),
            ));
        }
        let length_ok = wire.content.is_empty()
            || page_size.is_some_and(|size| size.bytes() == wire.content.len());
        if !length_ok {
            return Err(Invalid::new(
                "content",
                format!(
                    "page {number} has {} bytes, must have {}",
                    wire.content.len(),
                    page_size.map_or(0, PageSize::get)
                ),
            ));
        }
        if crc32fast::hash(&wire.content) != wire.crc32 {
            return Err(Invalid::new(
                "crc32",
                format!("page {number}: checksum differs"),
            ));
        }
        Ok(Self {
            number,
            content: wire.content,
            version: Version::new(wire.version),
        })
    }
}
