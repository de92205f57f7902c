//! What the collector remembers beside rows: what is to be looked at, and when (COL5).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use pagewire_proto::{DatabaseId, Version};
use pagewire_server::store::StoreError;
use tokio::time::Instant;

use crate::segments::Flattening;

/// How long is waited where there was no room.
const AGAIN: Duration = Duration::from_secs(1);
/// How long is waited where damage is of no database.
const AFTER_DAMAGE: Duration = Duration::from_secs(60);
/// How often the rows of a step are halved before that.
const MOST_HALVED: u32 = 6;
/// Rows of a step, at least.
const LEAST_ROWS: usize = 8;

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
    pub(crate) current: Option<DatabaseId>,
    damaged: HashMap<DatabaseId, StoreError>,
    /// Nothing is done before, and why.
    paused: Option<(Instant, StoreError)>,
    /// Nothing is done beside anything else before: its transaction is not to find no room.
    apart_until: Option<Instant>,
    /// How often the rows of a step are halved, since there was no room for more.
    halved: u32,
    /// Why flattening waits, and until when it is not asked again.
    flattening_waits: Option<(StoreError, Instant)>,
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
            current: self.current,
            paused: self.paused.take(),
            apart_until: self.apart_until,
            halved: self.halved,
            flattening_waits: self.flattening_waits.take(),
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
        if self.is_damaged(database) {
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

    pub(super) fn is_flattened(&self, database: DatabaseId) -> bool {
        let mut flattenings = self.flattenings.iter();
        !self.is_flattening_waiting() && flattenings.any(|work| work.database == database)
    }

    /// Milliseconds until there is something to do; `None` for never.
    pub(crate) fn idle_ms(&self, now_ms: u64) -> Option<u64> {
        let flattens = !self.flattenings.is_empty();
        if self.forgotten || !self.sweeps.is_empty() || (flattens && !self.is_flattening_waiting())
        {
            return Some(0);
        }
        let due = self.by_time.first();
        let due = due.map(|(time_ms, _)| time_ms.saturating_sub(now_ms));
        let room = flattens.then_some(AGAIN.as_millis() as u64);
        due.into_iter().chain(room).min()
    }

    /// Milliseconds for which nothing is done, since there was no room.
    pub(crate) fn paused_ms(&self) -> u64 {
        let now = Instant::now();
        let left = self
            .paused
            .as_ref()
            .map(|(until, _)| until.duration_since(now));
        // A part of a millisecond is one, so that nobody spins.
        left.map_or(0, |left| left.as_micros().div_ceil(1000) as u64)
    }

    /// A step found no room: the next one looks at fewer rows, and where they are few already it comes later (ROOM4).
    pub(crate) fn found_no_room(&mut self, full: StoreError) {
        self.apart_until = Some(Instant::now() + AGAIN);
        match self.halved < MOST_HALVED {
            true => self.halved += 1,
            false => self.paused = Some((Instant::now() + AGAIN, full)),
        }
    }

    /// A step found room.
    pub(crate) fn found_room(&mut self) {
        self.halved = self.halved.saturating_sub(1);
        self.paused = None;
    }

    /// Whether a transaction found no room a moment ago.
    pub(crate) fn is_kept_apart(&self) -> bool {
        self.apart_until.is_some_and(|until| until > Instant::now())
    }

    /// Why nothing is done for a while, if that is so.
    pub(crate) fn no_room(&self) -> Result<(), StoreError> {
        match &self.paused {
            Some((until, full)) if *until > Instant::now() => Err(full.clone()),
            _ => Ok(()),
        }
    }

    /// Whether the last step came to nothing, and the next one may not.
    pub(crate) fn forgotten(&self) -> bool {
        self.forgotten
    }

    /// So many rows, or fewer where there was no room for them.
    pub(crate) fn fitting(&self, rows: usize) -> usize {
        (rows >> self.halved).max(LEAST_ROWS)
    }

    /// Whether there is room for a step of flattening: asked again after a while.
    pub(super) fn flattening_waits(&mut self, full: Option<StoreError>) {
        self.flattening_waits = full.map(|full| (full, Instant::now() + AGAIN));
    }

    pub(super) fn is_flattening_waiting(&self) -> bool {
        let waits = self.flattening_waits.as_ref();
        waits.is_some_and(|(_, until)| *until > Instant::now())
    }

    /// Leaves a database alone for what was met there; where that is of none, everything for a while.
    pub(crate) fn set_aside(&mut self, database: Option<DatabaseId>, error: StoreError) {
        match database {
            Some(database) => {
                self.damaged.insert(database, error);
            }
            None => self.paused = Some((Instant::now() + AFTER_DAMAGE, error)),
        }
    }

    pub(super) fn is_damaged(&self, database: DatabaseId) -> bool {
        self.damaged.contains_key(&database)
    }

    /// What keeps something from being collected, in a database or in all of them.
    pub(crate) fn hindrance(&self, database: Option<DatabaseId>) -> Result<(), StoreError> {
        let damage = match database {
            Some(database) => self.damaged.get(&database),
            None => self.damaged.values().next(),
        };
        let mut flattenings = self.flattenings.iter();
        let flattens = flattenings.any(|work| database.is_none_or(|only| only == work.database));
        let full = self.flattening_waits.as_ref().filter(|_| flattens);
        match damage.or(full.map(|(full, _)| full)) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}
