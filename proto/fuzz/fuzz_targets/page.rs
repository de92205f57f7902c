//! PageContent, against every page size and none; as it comes, and with a checksum that fits. In every encoding, with a base that the bytes
//! make: a page with the checksum that was sent, of a page size, or a refusal.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire_fuzz::{page_sizes, survives};
use pagewire_proto::{EncodedPage, Page, pb};
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
            length_fits && number_fits && wire.encoding == pb::PageEncoding::Raw as i32
        );
    }
    let base: Vec<u8> = bytes.iter().copied().cycle().take(65_536).collect();
    for size in page_sizes() {
        let Ok(encoded) = EncodedPage::try_from(wire.clone()) else {
            return;
        };
        for base in [None, base.get(..size.bytes()), base.get(1..size.bytes())] {
            if let Ok(page) = encoded.expand(size, base) {
                assert_eq!(page.content.len(), size.bytes());
                assert_eq!(crc32fast::hash(&page.content), wire.crc32);
                if let Some(base) = base {
                    let again = page.to_delta_wire(base);
                    let again =
                        EncodedPage::try_from(again).map(|page| page.expand(size, Some(base)));
                    assert!(again.is_err() || again == Ok(Ok(page)));
                }
            }
        }
    }
});
