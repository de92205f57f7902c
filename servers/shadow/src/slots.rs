//! What this server has of a database beside the store: who changes it now, and what is protected of it.
//!
//! A slot is there while somebody uses it, or while it protects something, and not longer, however many databases were ever looked at.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use pagewire_proto::{DatabaseId, Version};
use parking_lot::Mutex;

/// What this server has of a database beside the store.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// One change at a time: those of one server do not lose against each other.
    pub writing: tokio::sync::Mutex<()>,
    /// The claim is asked for, or given back.
    pub claiming: tokio::sync::Mutex<()>,
    pub protection: Mutex<Protection>,
    /// A merge is under way behind the commits.
    pub tidying: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Protection {
    pub floor: Option<Version>,
    pub pins: Vec<Version>,
}

impl Protection {
    fn is_empty(&self) -> bool {
        self.floor.is_none() && self.pins.is_empty()
    }
}

/// All slots of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots(Arc<Mutex<HashMap<DatabaseId, Arc<Slot>>>>);

impl Slots {
    /// The slot of a database, for as long as the answer is kept.
    pub(crate) fn of(&self, database: DatabaseId) -> SlotInUse {
        let slot = Arc::clone(self.0.lock().entry(database).or_default());
        SlotInUse {
            slots: self.clone(),
            database,
            slot,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

/// A slot that somebody uses.
#[derive(Debug)]
pub(crate) struct SlotInUse {
    slots: Slots,
    database: DatabaseId,
    slot: Arc<Slot>,
}

impl Deref for SlotInUse {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl Drop for SlotInUse {
    fn drop(&mut self) {
        let mut slots = self.slots.0.lock();
        // Let go of under the lock, so that of two who end at the same time one is the last.
        self.slot = Arc::default();
        let idle = slots
            .get(&self.database)
            .is_some_and(|slot| Arc::strong_count(slot) == 1 && slot.protection.lock().is_empty());
        if idle {
            slots.remove(&self.database);
        }
    }
}
