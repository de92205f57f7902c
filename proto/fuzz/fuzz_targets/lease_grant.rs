//! LeaseGrant, and what it is made of: Snapshot and Changes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire_fuzz::survives;
use pagewire_proto::{Changes, LeaseGrant, Snapshot, limits, pb};

fuzz_target!(|bytes: &[u8]| {
    let grant =
        survives::<pb::LeaseGrant, _>(bytes, LeaseGrant::try_from, |grant| grant.clone().into());
    assert!(grant.is_none_or(|grant| grant.epoch.get() > 0));
    if let Some(snapshot) =
        survives::<pb::Snapshot, _>(bytes, Snapshot::try_from, |snapshot| (*snapshot).into())
    {
        assert_eq!(snapshot.page_size.is_none(), snapshot.page_count.get() == 0);
        assert!(snapshot.byte_size() <= 65_536 * u64::from(u32::MAX));
    }
    let changes = survives(
        bytes,
        |wire: pb::Changes| Changes::try_from(Some(wire)),
        |changes| changes.clone().into(),
    );
    if let Some(Changes::Pages(pages)) = changes {
        assert!(pages.len() <= limits::MAX_CHANGED_PAGES);
    }
});
