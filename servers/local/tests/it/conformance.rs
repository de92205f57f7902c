//! The local store keeps the store contract: as it is used, and with every staged page written to the disk at once.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pagewire_local::faults::{Fault, Faults, Place};
use pagewire_local::keys::Key;
use pagewire_local::{LocalOptions, LocalStore};
use pagewire_server::clock::ManualClock;
use pagewire_server::conformance::endpoint::Served;
use pagewire_server::conformance::{Damage, StoreUnderTest};
use pagewire_server::store::{PageStore, StoreError};
use parking_lot::Mutex;
use tempfile::TempDir;

struct Local {
    directory: TempDir,
    options: Mutex<LocalOptions>,
    faults: Arc<Faults>,
    clock: ManualClock,
    /// The store that is open.
    opened: Mutex<Weak<LocalStore>>,
}

impl Local {
    fn new(staging_buffer_bytes: usize) -> Self {
        let faults = Arc::new(Faults::default());
        Self {
            directory: tempfile::tempdir().unwrap(),
            options: Mutex::new(LocalOptions {
                staging_buffer_bytes,
                faults: Some(Arc::clone(&faults)),
                ..LocalOptions::default()
            }),
            faults,
            clock: ManualClock::default(),
            opened: Mutex::default(),
        }
    }

    fn store(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        let options = self.options.lock().clone();
        let store = Arc::new(LocalStore::open_with(self.directory.path(), options)?);
        *self.opened.lock() = Arc::downgrade(&store);
        Ok(store)
    }
}

#[async_trait]
impl StoreUnderTest for Local {
    async fn open(&self) -> Result<Arc<dyn PageStore>, StoreError> {
        self.store()
    }

    async fn open_with_retention(
        &self,
        retention: Duration,
    ) -> Result<Option<Arc<dyn PageStore>>, StoreError> {
        let with_retention = LocalOptions {
            retention: Some(retention),
            clock: self.clock.clock(),
            ..self.options.lock().clone()
        };
        *self.options.lock() = with_retention;
        self.store().map(Some)
    }

    async fn audit(&self, _store: &Arc<dyn PageStore>) -> Result<Vec<String>, StoreError> {
        let opened = self.opened.lock().upgrade();
        opened.map_or(Ok(Vec::new()), |store| store.audit(true))
    }

    fn advance_clock(&self, by: Duration) {
        self.clock.advance(by);
    }

    fn can_restart(&self) -> bool {
        true
    }

    async fn reopen(&self, store: Arc<dyn PageStore>) -> Result<Arc<dyn PageStore>, StoreError> {
        drop(store);
        self.store()
    }

    async fn damage(
        &self,
        _store: &Arc<dyn PageStore>,
        damage: Damage,
    ) -> Result<bool, StoreError> {
        match damage {
            Damage::FlipBit(database, page, version) => {
                let key = Key::Page(database, page, version).encode();
                Ok(flip_after(self.directory.path(), &key))
            }
            Damage::FailNextCommit => {
                self.faults.arm(Place::BeforeCommit, Fault::Fail, 0);
                Ok(true)
            }
        }
    }
}

/// Flips a bit of the row after each place in the file that has the key: small rows follow their key.
fn flip_after(directory: &Path, key: &[u8]) -> bool {
    let path = directory.join("data.mdb");
    let bytes = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let places = (0..bytes.len() - key.len()).filter(|at| bytes[*at..].starts_with(key));
    let mut found = false;
    for at in places {
        let victim = at + key.len() + 12;
        let flipped = bytes[victim] ^ 0x10;
        file.write_all_at(&[flipped], victim as u64).unwrap();
        found = true;
    }
    found
}

mod as_it_is_used {
    use super::Local;
    pagewire_server::conformance_tests!(Local::new(16 << 20));
}

mod with_every_staging_on_disk {
    use super::Local;
    pagewire_server::conformance_tests!(Local::new(0));
}

mod through_a_server {
    use super::{Local, Served};
    pagewire_server::conformance_tests!(Served::new(Local::new(16 << 20)));
}
