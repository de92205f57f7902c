//! Wrappers of stores: what a [`Layer`] does not say forwards to the store below it.
//!
//! A layer is a [`PageStore`] itself, of which no method is forgotten when the trait gets a new one: the compiler wants it here, and
//! here it is forwarded once, for all of them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_proto::{
    Changes, DatabaseId, DatabaseName, Epoch, Incarnation, Moment, PageNumber, PageSize, Snapshot,
    StagingId, TagName, Version, VersionEntry,
};

use crate::peers::Peers;
use crate::store::{
    Capabilities, Collected, Commit, CommitOutcome, DatabaseEntry, Description, PageStore,
    PageWrite, Resolution, Resolve, StoreError, StoredPage,
};

/// Makes the trait and the store that a layer is from one list of calls.
macro_rules! forwarded {
    ($(async fn $call:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        /// A store around another one. Every method does what the method of [`PageStore`] with its name does to the store below.
        #[async_trait]
        pub trait Layer: Send + Sync + std::fmt::Debug + 'static {
            /// The store below.
            fn inner(&self) -> &dyn PageStore;

            /// See [`PageStore::capabilities`].
            fn capabilities(&self) -> Capabilities {
                self.inner().capabilities()
            }

            /// See [`PageStore::incarnation`].
            fn incarnation(&self) -> Incarnation {
                self.inner().incarnation()
            }

            /// See [`PageStore::peers`].
            fn peers(&self) -> Option<Arc<dyn Peers>> {
                self.inner().peers()
            }

            $(
                #[doc = concat!("See [`PageStore::", stringify!($call), "`].")]
                async fn $call(&self, $($argument: $type),*) -> $answer {
                    self.inner().$call($($argument),*).await
                }
            )*
        }

        #[deny(clippy::missing_trait_methods)]
        #[async_trait]
        impl<L: Layer> PageStore for L {
            fn capabilities(&self) -> Capabilities {
                Layer::capabilities(self)
            }

            fn incarnation(&self) -> Incarnation {
                Layer::incarnation(self)
            }

            fn peers(&self) -> Option<Arc<dyn Peers>> {
                Layer::peers(self)
            }

            $(
                async fn $call(&self, $($argument: $type),*) -> $answer {
                    Layer::$call(self, $($argument),*).await
                }
            )*
        }
    };
}

forwarded! {
    async fn begin_service(lease_ttl: Duration) -> Result<Duration, StoreError>;
    async fn end_service() -> Result<(), StoreError>;
    async fn lookup(name: &DatabaseName, create: bool) -> Result<DatabaseId, StoreError>;
    async fn list(prefix: &str, after: &str, limit: usize) -> Result<Vec<DatabaseEntry>, StoreError>;
    async fn remove(name: &DatabaseName) -> Result<DatabaseId, StoreError>;
    async fn head(database: DatabaseId) -> Result<Snapshot, StoreError>;
    async fn changes(database: DatabaseId, since: Version) -> Result<(Snapshot, Changes), StoreError>;
    async fn read(database: DatabaseId, version: Version, pages: &[PageNumber]) -> Result<Vec<StoredPage>, StoreError>;
    async fn protect(database: DatabaseId, floor: Option<Version>, pins: &[Version]) -> Result<(), StoreError>;
    async fn fence(database: DatabaseId) -> Result<Epoch, StoreError>;
    async fn stage(database: DatabaseId, staging: StagingId, page_size: PageSize, pages: Vec<PageWrite>) -> Result<(), StoreError>;
    async fn discard(staging: StagingId) -> Result<(), StoreError>;
    async fn commit(commit: Commit) -> Result<CommitOutcome, StoreError>;
    async fn resolve(resolve: Resolve) -> Result<Resolution, StoreError>;
    async fn find(database: DatabaseId, moment: &Moment) -> Result<VersionEntry, StoreError>;
    async fn versions(database: DatabaseId, before: Option<Version>, tagged_only: bool, limit: usize) -> Result<Vec<VersionEntry>, StoreError>;
    async fn diff(database: DatabaseId, from: Version, to: Version, after: Option<PageNumber>, limit: usize) -> Result<Vec<PageNumber>, StoreError>;
    async fn set_tag(database: DatabaseId, tag: &TagName, moment: &Moment, replace: bool) -> Result<VersionEntry, StoreError>;
    async fn delete_tag(database: DatabaseId, tag: &TagName) -> Result<bool, StoreError>;
    async fn branch(source: DatabaseId, moment: &Moment, branch: DatabaseId, name: &DatabaseName) -> Result<VersionEntry, StoreError>;
    async fn describe(database: DatabaseId) -> Result<Description, StoreError>;
    async fn collect(database: Option<DatabaseId>) -> Result<Collected, StoreError>;
}
