//! The memory store keeps the store contract.

use std::sync::Arc;

use async_trait::async_trait;
use pagewire_memory::MemoryStore;
use pagewire_server::conformance::StoreUnderTest;
use pagewire_server::conformance::endpoint::Served;
use pagewire_server::store::{PageStore, StoreError};

struct Memory;

#[async_trait]
impl StoreUnderTest for Memory {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        Ok(Arc::new(MemoryStore::new()?))
    }
}

pagewire_server::conformance_tests!(Memory);

mod through_a_server {
    use super::{Memory, Served};
    pagewire_server::conformance_tests!(Served::new(Memory));
}

mod through_a_server_with_deltas {
    use super::{Memory, Served};
    pagewire_server::conformance_tests!(Served::with_encodings(Memory));
}
