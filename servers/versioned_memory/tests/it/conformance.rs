//! The versioned memory store keeps the store contract.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_server::clock::ManualClock;
use pagewire_server::conformance::StoreUnderTest;
use pagewire_server::conformance::endpoint::Served;
use pagewire_server::store::{PageStore, StoreError};
use pagewire_versioned_memory::{VersionedMemoryOptions, VersionedMemoryStore};

#[derive(Default)]
struct VersionedMemory(ManualClock);

#[async_trait]
impl StoreUnderTest for VersionedMemory {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        Ok(Arc::new(VersionedMemoryStore::new()?))
    }

    async fn open_with_retention(
        &self,
        retention: Duration,
    ) -> Result<Option<Arc<dyn PageStore>>, StoreError> {
        let options = VersionedMemoryOptions {
            retention: Some(retention),
            clock: self.0.clock(),
        };
        Ok(Some(Arc::new(VersionedMemoryStore::with_options(options)?)))
    }

    fn advance_clock(&self, by: Duration) {
        self.0.advance(by);
    }
}

pagewire_server::conformance_tests!(VersionedMemory::default());

mod through_a_server {
    use super::{Served, VersionedMemory};
    pagewire_server::conformance_tests!(Served::new(VersionedMemory::default()));
}
