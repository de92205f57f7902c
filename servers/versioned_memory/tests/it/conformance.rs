//! The versioned memory store keeps the store contract.

use std::sync::Arc;

use async_trait::async_trait;
use pagewire_server::conformance::StoreUnderTest;
use pagewire_server::store::{PageStore, StoreError};
use pagewire_versioned_memory::VersionedMemoryStore;

struct VersionedMemory;

#[async_trait]
impl StoreUnderTest for VersionedMemory {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        Ok(Arc::new(VersionedMemoryStore::new()?))
    }
}

pagewire_server::conformance_tests!(VersionedMemory);
