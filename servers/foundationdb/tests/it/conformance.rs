//! The FoundationDB store keeps the store contract: as it is used, with everything written ahead, and through a page server.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pagewire_foundationdb::{FoundationDbOptions, FoundationDbStore};
use pagewire_server::clock::ManualClock;
use pagewire_server::conformance::endpoint::Served;
use pagewire_server::conformance::{Damage, StoreUnderTest};
use pagewire_server::store::{PageStore, StoreError};
use parking_lot::Mutex;

use crate::cluster::Cluster;

struct FoundationDb {
    cluster: Cluster,
    options: Mutex<FoundationDbOptions>,
    clock: ManualClock,
    opened: Mutex<Weak<FoundationDbStore>>,
}

impl FoundationDb {
    /// `None` where there is no cluster.
    fn new(change: impl FnOnce(&mut FoundationDbOptions)) -> Option<Self> {
        let cluster = Cluster::shared()?;
        let mut options = cluster.options();
        // What the sessions of a store read that was closed is not kept for longer: nobody else is there.
        options.dead_after = Duration::ZERO;
        change(&mut options);
        Some(Self {
            cluster,
            options: Mutex::new(options),
            clock: ManualClock::default(),
            opened: Mutex::default(),
        })
    }

    async fn store(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        let options = self.options.lock().clone();
        let store = Arc::new(self.cluster.open(&options).await?);
        *self.opened.lock() = Arc::downgrade(&store);
        Ok(store)
    }
}

#[async_trait]
impl StoreUnderTest for FoundationDb {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        self.store().await
    }

    async fn open_with_retention(
        &self,
        retention: Duration,
    ) -> Result<Option<Arc<dyn PageStore>>, StoreError> {
        let with_retention = FoundationDbOptions {
            retention: Some(retention),
            clock: self.clock.clock(),
            ..self.options.lock().clone()
        };
        *self.options.lock() = with_retention;
        self.store().await.map(Some)
    }

    async fn audit(&self, _store: &Arc<dyn PageStore>) -> Result<Vec<String>, StoreError> {
        let opened = self.opened.lock().upgrade();
        match opened {
            Some(store) => store.audit().await,
            None => Ok(Vec::new()),
        }
    }

    fn advance_clock(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn can_restart(&self) -> bool {
        true
    }

    async fn reopen(&self, store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        drop(store);
        self.store().await
    }

    async fn damage(
        &self,
        _store: &Arc<dyn PageStore>,
        damage: Damage,
    ) -> Result<bool, StoreError> {
        let opened = self.opened.lock().upgrade();
        match (damage, opened) {
            (Damage::FlipBit(database, page, version), Some(store)) => {
                store.damage(database, page, version).await
            }
            _ => Ok(false),
        }
    }
}

/// A test for each rule, which passes as not run where there is no cluster.
macro_rules! rules {
    (($change:expr, $under_test:expr) $($name:ident: $module:ident :: $function:ident;)*) => {$(
        #[test]
        fn $name() {
            if let Some(store) = FoundationDb::new($change).map($under_test) {
                pagewire_server::conformance::run_as_test(stringify!($name), &store);
            }
        }
    )*};
}

mod as_it_is_used {
    use super::FoundationDb;
    pagewire_server::for_each_conformance_rule!(rules, |_| {}, |store| store);
}

mod with_everything_written_ahead {
    use super::FoundationDb;
    pagewire_server::for_each_conformance_rule!(
        rules,
        |options| {
            options.commit_bytes = 0;
            options.staging_buffer_bytes = 0;
        },
        |store| store
    );
}

/// The rules of sessions and leases are tried by `tests/conformance.sh`, on the command itself.
mod through_a_server {
    use super::{FoundationDb, Served};
    use std::time::Duration;

    /// What a killed server had claimed is free after two of it.
    const LEASE_TTL: Duration = Duration::from_secs(4);
    /// It counts as dead when collections have seen it silent for two TTLs and a second; and this machine may be loaded.
    const DEATH: Duration = Duration::from_secs(60);

    pagewire_server::for_each_conformance_rule!(
        rules,
        |options| options.collect_every = Duration::from_secs(2),
        |store| Served::on_a_shared_store(store, LEASE_TTL, DEATH)
    );
}
