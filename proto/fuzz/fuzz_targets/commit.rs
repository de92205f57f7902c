//! CommitRequest: the header and what its pages are checked against.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire_fuzz::survives;
use pagewire_proto::{CommitChecksum, CommitHeader, Page, limits, pb};
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    survives::<pb::CommitHeader, _>(bytes, CommitHeader::try_from, |header| header.into());
    let Ok(request) = pb::CommitRequest::decode(bytes) else {
        return;
    };
    let Some(Ok(header)) = request.header.map(CommitHeader::try_from) else {
        return;
    };
    assert!((1..=limits::MAX_COMMIT_DATABASES).contains(&header.databases.len()));
    let wire = pb::CommitHeader::from(&header).encode_to_vec();
    assert_eq!(
        survives::<pb::CommitHeader, _>(&wire, CommitHeader::try_from, |header| header.into()),
        Some(header.clone())
    );
    let mut checksum = CommitChecksum::default();
    for batch in request.batches {
        let Some(database) = header.databases.get(batch.database_index as usize) else {
            return;
        };
        for page in batch.pages {
            checksum.add(page.crc32);
            let page = Page::from_wire(page, Some(database.page_size));
            assert!(page.is_err() || page.is_ok_and(|page| page.number.get() > 0));
        }
    }
    let counted = checksum.clone().finish();
    assert_eq!(checksum.clone().check(&counted), Ok(()));
    if let Some(sent) = request.finish {
        assert_eq!(checksum.check(&sent).is_ok(), sent == counted);
    }
});
