//! A server of an older release, as far as its store can make it one: it has no uploads ahead of a commit (`StagePages`). Clients have learnt of
//! the server before it what it can do, and may be in the middle of an upload.

use std::sync::Arc;

use async_trait::async_trait;
use pagewire_proto::{DatabaseId, PageSize, StagingId};
use pagewire_server::layer::Layer;
use pagewire_server::store::{PageStore, PageWrite, StoreError};

/// See the file's header.
#[derive(Debug)]
pub struct Older {
    inner: Arc<dyn PageStore>,
}

impl Older {
    /// The store itself for a server of now.
    pub fn around(inner: Arc<dyn PageStore>, older: bool) -> Arc<dyn PageStore> {
        if older {
            Arc::new(Self { inner })
        } else {
            inner
        }
    }
}

#[async_trait]
impl Layer for Older {
    fn inner(&self) -> &dyn PageStore {
        &*self.inner
    }

    async fn stage(
        &self,
        _: DatabaseId,
        _: StagingId,
        _: PageSize,
        _: Vec<PageWrite>,
    ) -> Result<(), StoreError> {
        Err(StoreError::Unsupported("uploads ahead of a commit"))
    }
}
