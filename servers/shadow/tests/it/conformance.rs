//! The adapter keeps the store contract: in fair weather, where answers get lost and calls happen twice or late, and where
//! everything that is not named is collected at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pagewire_server::conformance::endpoint::Served;
use pagewire_server::conformance::{Damage, StoreUnderTest};
use pagewire_server::store::{PageStore, StoreError};
use pagewire_shadow::testing::{Medium, TestKeyValue, Weather};
use pagewire_shadow::{ShadowOptions, ShadowStore};
use parking_lot::Mutex;

/// An installation whose server can be killed and started again.
pub(crate) struct Installation {
    medium: Arc<Medium>,
    weather: Weather,
    options: ShadowOptions,
    /// The newest process.
    now: Mutex<Option<(Arc<TestKeyValue>, Arc<ShadowStore>)>>,
}

impl Installation {
    pub(crate) fn new(weather: Weather, options: ShadowOptions) -> Self {
        Self {
            medium: Arc::default(),
            weather,
            options,
            now: Mutex::default(),
        }
    }

    fn fair() -> Self {
        Self::new(Weather::default(), ShadowOptions::default())
    }

    fn foul() -> Self {
        let weather = Weather {
            lost_answers: 4,
            late: 3,
            twice: 3,
            refused: 3,
            seed: 1,
        };
        Self::new(weather, ShadowOptions::default())
    }

    /// Nothing is kept for anybody, and nothing is spared because it is young.
    fn greedy() -> Self {
        let options = ShadowOptions {
            keep_replaced: Duration::ZERO,
            abandoned_after: Duration::ZERO,
            collect_every: Duration::ZERO,
            cache_bytes: 30_000,
            ..ShadowOptions::default()
        };
        Self::new(Weather::default(), options)
    }

    /// The same, and a root has no room for old versions: all of them are in archives.
    fn archiving() -> Self {
        let greedy = Self::greedy();
        let options = ShadowOptions {
            root_entries: 1,
            ..greedy.options
        };
        Self::new(Weather::default(), options)
    }

    async fn process(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        let kv = TestKeyValue::in_weather(&self.medium, self.weather);
        let store = ShadowStore::open_with(Arc::clone(&kv) as _, self.options.clone()).await?;
        let store = Arc::new(store);
        *self.now.lock() = Some((kv, Arc::clone(&store)));
        Ok(store)
    }
}

#[async_trait]
impl StoreUnderTest for Installation {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        self.process().await
    }

    fn can_restart(&self) -> bool {
        true
    }

    async fn reopen(&self, store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        drop(store);
        self.process().await
    }

    async fn damage(
        &self,
        _store: &Arc<dyn PageStore>,
        damage: Damage,
    ) -> Result<bool, StoreError> {
        let Some((kv, store)) = self.now.lock().clone() else {
            return Ok(false);
        };
        match damage {
            Damage::FlipBit(database, page, version) => {
                let found = store.locate(database, page, version).await?;
                let Some((key, byte)) = found else {
                    return Ok(false);
                };
                self.medium.damage(&key, byte);
                store.drop_caches();
            }
            Damage::FailNextCommit => kv.fail_next_put(),
        }
        Ok(true)
    }
}

mod in_fair_weather {
    use super::Installation;
    pagewire_server::conformance_tests!(Installation::fair());
}

mod in_foul_weather {
    use super::Installation;
    pagewire_server::conformance_tests!(Installation::foul());
}

mod while_everything_is_collected_at_once {
    use super::Installation;
    pagewire_server::conformance_tests!(Installation::greedy());
}

mod while_old_versions_are_in_archives {
    use super::Installation;
    pagewire_server::conformance_tests!(Installation::archiving());
}

mod through_a_server {
    use super::{Installation, Served};
    pagewire_server::conformance_tests!(Served::new(Installation::fair()));
}

mod through_a_server_in_foul_weather {
    use super::{Installation, Served};
    pagewire_server::conformance_tests!(Served::new(Installation::foul()));
}
