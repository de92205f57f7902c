//! What the collector remembers beside rows: what is to be looked at, and when (COL5).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use pagewire_proto::{DatabaseId, Version};

use crate::segments::Flattening;

/// What sessions read: never on disk (V7).
#[derive(Debug, Default)]
pub(crate) struct Protected {
    pub(crate) floor: Option<Version>,
    pub(crate) pins: BTreeSet<Version>,
}

/// A sweep under way.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) database: DatabaseId,
    /// The last row that was looked at.
    pub(super) after: Option<Vec<u8>>,
    /// More became garbage behind it.
    pub(super) again: bool,
}

/// What the collector remembers. See COL5.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    pub(crate) protected: HashMap<DatabaseId, Protected>,
    /// Versions up to this one are dropped, or kept for a reason of their own.
    pub(super) passed: HashMap<DatabaseId, Version>,
    /// Pages of a `Due` that were looked at.
    pub(super) due: HashMap<DatabaseId, usize>,
    /// When there may be something to drop in a database.
    pub(super) times: HashMap<DatabaseId, u64>,
    pub(super) by_time: BTreeSet<(u64, DatabaseId)>,
    pub(super) sweeps: VecDeque<Sweep>,
    pub(super) flattenings: VecDeque<Flattening>,
    /// The rows have to be asked what is to be done.
    pub(super) forgotten: bool,
    pub(super) retention_ms: Option<u64>,
    /// What the step under way works on, and what is left alone because that came to an error.
    pub(super) current: Option<DatabaseId>,
    pub(super) damaged: HashSet<DatabaseId>,
}

impl Collector {
    pub(crate) fn new(retention_ms: Option<u64>) -> Self {
        Self {
            forgotten: true,
            retention_ms,
            ..Self::default()
        }
    }

    /// Forgets everything that rows say.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            protected: std::mem::take(&mut self.protected),
            damaged: std::mem::take(&mut self.damaged),
            ..Self::new(self.retention_ms)
        };
    }

    /// Nothing can be written any more.
    pub(crate) fn stop(&mut self) {
        self.reset();
        self.forgotten = false;
    }

    /// A database got a version at a time: the one before goes when that is over.
    pub(crate) fn committed(&mut self, database: DatabaseId, time_ms: u64) {
        if let Some(retention_ms) = self.retention_ms {
            self.schedule(database, time_ms.saturating_add(retention_ms));
        }
    }

    /// Something that kept a version of a database does not any more.
    pub(crate) fn look_again(&mut self, database: DatabaseId) {
        self.passed.remove(&database);
        if self.retention_ms.is_some() {
            self.schedule(database, 0);
        }
    }

    /// Sessions read other versions of a database than before.
    pub(crate) fn protect(&mut self, database: DatabaseId, protected: Protected) {
        let keeps_none = protected.floor.is_none() && protected.pins.is_empty();
        let before = match keeps_none {
            true => self.protected.remove(&database),
            false => self.protected.insert(database, protected),
        };
        let before = before.unwrap_or_default();
        let pins = self.protected.get(&database).map(|now| &now.pins);
        let unpinned = |pin: &Version| pins.is_none_or(|pins| !pins.contains(pin));
        if before.pins.iter().any(unpinned) {
            self.look_again(database);
        } else if self.retention_ms.is_some() {
            // The floor may be higher: what comes next after those that were passed is to be looked at.
            self.schedule(database, 0);
        }
    }

    pub(crate) fn removed(&mut self, database: DatabaseId) {
        self.unschedule(database);
        self.protected.remove(&database);
        self.passed.remove(&database);
        self.due.remove(&database);
    }

    pub(super) fn schedule(&mut self, database: DatabaseId, time_ms: u64) {
        if self.damaged.contains(&database) {
            return;
        }
        match self.times.get(&database) {
            Some(earlier) if *earlier <= time_ms => return,
            Some(later) => self.by_time.remove(&(*later, database)),
            None => false,
        };
        self.times.insert(database, time_ms);
        self.by_time.insert((time_ms, database));
    }

    pub(super) fn unschedule(&mut self, database: DatabaseId) {
        if let Some(time_ms) = self.times.remove(&database) {
            self.by_time.remove(&(time_ms, database));
        }
    }

    pub(super) fn is_due(&self, database: DatabaseId, now_ms: u64) -> bool {
        self.times
            .get(&database)
            .is_some_and(|time| *time <= now_ms)
    }

    pub(crate) fn flatten(&mut self, database: DatabaseId, first: Version) {
        let flattening = Flattening::new(database, first);
        self.flattenings.push_back(flattening);
    }

    pub(super) fn is_swept(&self, database: DatabaseId) -> bool {
        self.sweeps.iter().any(|sweep| sweep.database == database)
    }

    /// Milliseconds until there is something to do; `None` for never.
    pub(crate) fn idle_ms(&self, now_ms: u64) -> Option<u64> {
        if self.forgotten || !self.sweeps.is_empty() || !self.flattenings.is_empty() {
            return Some(0);
        }
        let (time_ms, _) = self.by_time.first()?;
        Some(time_ms.saturating_sub(now_ms))
    }
}
