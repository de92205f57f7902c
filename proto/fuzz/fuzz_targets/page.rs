//! PageContent, against every page size and none; as it comes, and with a checksum that fits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire_fuzz::{page_sizes, survives};
use pagewire_proto::{Page, pb};
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let Ok(wire) = pb::PageContent::decode(bytes) else {
        return;
    };
    let fitting = pb::PageContent {
        crc32: crc32fast::hash(&wire.content),
        ..wire.clone()
    };
    let expected = page_sizes().into_iter().map(Some).chain([None]);
    for size in expected {
        let receive = |wire| Page::from_wire(wire, size);
        if let Some(page) = survives::<pb::PageContent, _>(bytes, receive, Page::to_wire) {
            assert!(
                page.content.is_empty()
                    || size.is_some_and(|size| size.bytes() == page.content.len())
            );
            assert_eq!(
                wire.crc32, fitting.crc32,
                "a page with a wrong checksum was taken"
            );
        }
        let length_fits =
            wire.content.is_empty() || size.is_some_and(|size| size.bytes() == wire.content.len());
        let number_fits = (1..u32::MAX).contains(&wire.number);
        assert_eq!(
            survives(&fitting.encode_to_vec(), receive, Page::to_wire).is_some(),
            length_fits && number_fits
        );
    }
});
