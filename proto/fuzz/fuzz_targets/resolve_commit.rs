//! ResolveCommitRequest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pagewire_fuzz::survives;
use pagewire_proto::{ResolveCommit, limits, pb};

fuzz_target!(|bytes: &[u8]| {
    if let Some(resolve) =
        survives::<pb::ResolveCommitRequest, _>(bytes, ResolveCommit::try_from, |resolve| {
            resolve.into()
        })
    {
        assert!((1..=limits::MAX_COMMIT_DATABASES).contains(&resolve.participants.len()));
    }
});
