//! Open snapshots: what the server has to keep for this process.
//!
//! Everything from the oldest snapshot of a transaction on is kept by the *floor* of the session; a version that a connection
//! looks at (`at`) is held by itself, so that it keeps nothing beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use pagewire_proto::{Snapshot, Version};

use super::DatabaseState;
use super::state::Inner;
use crate::client::Session;

/// The snapshots of one database that are open in this process.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// Of transactions, with their number.
    floor: BTreeMap<Version, usize>,
    /// Held one by one.
    held: BTreeMap<Version, Held>,
}

#[derive(Debug)]
struct Held {
    count: usize,
    /// In which session the server was told (K2).
    lapses: u64,
}

impl Inner {
    /// As [`DatabaseState::floor`].
    pub(super) fn floor(&self) -> Version {
        let oldest = self.pins.floor.keys().next().copied();
        oldest.map_or(self.head.version, |oldest| oldest.min(self.head.version))
    }
}

impl DatabaseState {
    /// The oldest version that must stay readable for this process, with everything after it (D4).
    pub fn floor(&self) -> Version {
        self.inner.lock().floor()
    }

    /// Versions held one by one, for a heartbeat.
    pub fn held_versions(&self) -> Vec<u64> {
        let inner = self.inner.lock();
        inner
            .pins
            .held
            .keys()
            .map(|version| version.get())
            .collect()
    }

    /// Versions held one by one that this session was not told of.
    pub(super) fn held_in_vain(&self, session: &Session) -> Vec<Version> {
        let inner = self.inner.lock();
        let told = session.lapses();
        let in_vain = inner
            .pins
            .held
            .iter()
            .filter(|(_, held)| held.lapses != told);
        in_vain.map(|(version, _)| *version).collect()
    }

    /// Pins the newest version known, for a connection that never locks.
    pub fn pin_known_head(self: &Arc<Self>) -> Pin {
        let mut inner = self.inner.lock();
        self.pin_head(&mut inner)
    }

    /// Pins a version that is the newest one or was so a moment ago, and that the floor still covers.
    pub fn pin(self: &Arc<Self>, snapshot: Snapshot) -> Pin {
        *self
            .inner
            .lock()
            .pins
            .floor
            .entry(snapshot.version)
            .or_default() += 1;
        Pin {
            state: Arc::clone(self),
            snapshot,
            alone: false,
        }
    }

    pub(super) fn pin_head(self: &Arc<Self>, inner: &mut Inner) -> Pin {
        *inner.pins.floor.entry(inner.head.version).or_default() += 1;
        Pin {
            state: Arc::clone(self),
            snapshot: inner.head,
            alone: false,
        }
    }

    /// Holds a version that a call has pinned in the session after so many lapses.
    pub fn hold(self: &Arc<Self>, snapshot: Snapshot, lapses: u64) -> Pin {
        let mut inner = self.inner.lock();
        let held = inner.pins.held.entry(snapshot.version);
        let held = held.or_insert(Held { count: 0, lapses });
        held.count += 1;
        held.lapses = held.lapses.max(lapses);
        Pin {
            state: Arc::clone(self),
            snapshot,
            alone: true,
        }
    }
}

/// An open snapshot: while it lives the server keeps the version.
pub struct Pin {
    state: Arc<DatabaseState>,
    snapshot: Snapshot,
    /// Held by itself, not by the floor.
    alone: bool,
}

impl Pin {
    /// The version and its size.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    /// Whether the session that is there now keeps the version.
    pub fn is_told(&self, session: &Session) -> bool {
        let inner = self.state.inner.lock();
        let held = inner.pins.held.get(&self.snapshot.version);
        !self.alone || held.is_some_and(|held| held.lapses == session.lapses())
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        let mut inner = self.state.inner.lock();
        let version = self.snapshot.version;
        if !self.alone {
            *inner.pins.floor.entry(version).or_default() += 1;
        } else if let Some(held) = inner.pins.held.get_mut(&version) {
            held.count += 1;
        }
        drop(inner);
        Self {
            state: Arc::clone(&self.state),
            snapshot: self.snapshot,
            alone: self.alone,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut inner = self.state.inner.lock();
        let version = self.snapshot.version;
        if self.alone {
            if let Some(held) = inner.pins.held.get_mut(&version) {
                held.count -= 1;
                if held.count == 0 {
                    inner.pins.held.remove(&version);
                }
            }
        } else if let Some(count) = inner.pins.floor.get_mut(&version) {
            *count -= 1;
            if *count == 0 {
                inner.pins.floor.remove(&version);
            }
        }
    }
}
