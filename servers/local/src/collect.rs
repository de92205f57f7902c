//! The collector: drops versions that nothing keeps, and the rows that only they read (docs/versions.md, K and G).
//!
//! It runs on the committer's thread: in steps of a bounded number of rows, a small one within each transaction of something
//! else, larger ones of their own when nothing else is to be done. What it decides it decides on the rows that its own
//! transaction sees, and pins, tags and branches pass through the same thread: G1 is the order of that thread.
//!
//! # States
//! ```text
//!                    nothing keeps it              rows that it read looked at
//!   kept (Record) ------------------> past (Past) ---------------------------> past, its rows gone
//!                                        |                                       | COMMIT_RECORD_TTL
//!                                        +--------------------------------------> nothing
//! ```
//! * **COL1** A version is readable if and only if it has a row `Record` (or is 0). `Record` turns into `Past` in the same
//!   transaction in which the rows that it alone read become garbage, or in an earlier one than the one that drops them (G2).
//! * **COL2** The row of a page with version w, followed by one with version w' (or by the end of its segment), is read by the
//!   versions from w to w' exclusive that have a `Record` or a `Child`. It is dropped if there is none, whatever was believed
//!   before: [`Committer::examine`] is the only place that deletes a row of a page of a database (G3). A mark that a page went away
//!   is dropped also when no older row of the page is left in its segment: it hides nothing.
//! * **COL3** What is garbage is found again: when version v is dropped, rows die only among those of pages that changed after v
//!   up to the next version with a record. Where that is v+1 its list has them (`Due` where it is long); in all other
//!   cases, and where a list does not say, the row `Sweep` demands that all rows of the database are looked at. Both go in the
//!   transaction that finishes the work, and are looked for at the next opening (G4).
//! * **COL4** While `Due` is there no other version of the database is dropped: the list that it needs stays.
//! * **COL5** What is remembered here beside rows (cursors, queues) can be forgotten at any time: [`Collector::reset`].
//! * **COL6** A step is a transaction within the one of something else: an error undoes it alone. Damage is of the database that the step
//!   worked on, removed or not: it is left alone until the store is opened anew, who asks for its collection is told, and all others are
//!   collected. A full disk is no damage: the step is tried again (ROOM4).
mod drop;
mod examine;
mod schedule;

use std::ops::Bound;

use pagewire_proto::DatabaseId;
use pagewire_server::store::{Collected, StoreError};

use crate::committer::Committer;
use crate::engine::WriteError;
use crate::keys::Key;
use crate::segments::STEP_BYTES;
use crate::transaction::WriteTxn;
use schedule::Sweep;
pub(crate) use schedule::{Collector, Protected};

/// What a step did, for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    Nothing,
    Dropped,
    Swept,
    Flattened,
}

impl Committer {
    /// Demands that all rows of pages of a database are looked at.
    pub(crate) fn sweep(
        &mut self,
        txn: &mut WriteTxn<'_>,
        database: DatabaseId,
    ) -> Result<(), WriteError> {
        self.engine.put(txn, &Key::Sweep(database), &[])?;
        let mut sweeps = self.collector.sweeps.iter_mut();
        match sweeps.find(|sweep| sweep.database == database) {
            Some(sweep) => sweep.again = true,
            None => self.collector.sweeps.push_back(Sweep {
                database,
                after: None,
                again: false,
            }),
        }
        Ok(())
    }

    /// Asks the rows what is to be done (COL5).
    fn remember(&mut self, txn: &WriteTxn<'_>) -> Result<(), StoreError> {
        if !std::mem::take(&mut self.collector.forgotten) {
            return Ok(());
        }
        let engine = std::sync::Arc::clone(&self.engine);
        let mut found = Vec::new();
        let heads = Key::heads();
        let [_, due, sweep, flatten] = Key::to_do();
        for prefix in [heads, due, sweep, flatten] {
            engine.scan(txn, Bound::Included(&prefix), &prefix, |key, _| {
                found.extend(Key::decode(key));
                Ok(true)
            })?;
        }
        for key in found {
            match key {
                Key::Sweep(id) | Key::Flatten(id, _) if self.collector.is_damaged(id) => {}
                Key::Head(database) if self.collector.retention_ms.is_some() => {
                    self.collector.schedule(database, 0);
                }
                // Also where nothing is dropped any more.
                Key::Due(database) => self.collector.schedule(database, 0),
                Key::Sweep(database) => self.collector.sweeps.push_back(Sweep {
                    database,
                    after: None,
                    again: false,
                }),
                Key::Flatten(database, first) => self.collector.flatten(database, first),
                _ => {}
            }
        }
        Ok(())
    }

    /// One step, of one database or of whatever comes first, within a transaction of something else (COL6).
    pub(crate) fn collect_step(
        &mut self,
        txn: &mut WriteTxn<'_>,
        only: Option<DatabaseId>,
        rows: usize,
    ) -> Result<(Did, Collected), WriteError> {
        let done = self.guarded(txn, |this, txn| this.step(txn, only, rows))?;
        let done = done.unwrap_or((Did::Nothing, Collected::default()));
        self.dirty |= done.0 != Did::Nothing;
        Ok(done)
    }

    fn step(
        &mut self,
        txn: &mut WriteTxn<'_>,
        only: Option<DatabaseId>,
        rows: usize,
    ) -> Result<(Did, Collected), WriteError> {
        self.collector.current = None;
        self.remember(txn)?;
        let now_ms = self.options.clock.now_ms();
        let mut freed = Collected::default();
        let due = match only {
            Some(database) => self.collector.is_due(database, now_ms).then_some(database),
            None => {
                let first = self.collector.by_time.first();
                first.filter(|(time, _)| *time <= now_ms).map(|(_, id)| *id)
            }
        };
        let fits = |database| only.is_none_or(|only| only == database);
        let mut sweeps = self.collector.sweeps.iter();
        let sweep = sweeps.position(|sweep| fits(sweep.database));
        let mut flattenings = self.collector.flattenings.iter();
        let mut flattening = flattenings.position(|work| fits(work.database));
        if flattening.is_some() && due.is_none() && sweep.is_none() {
            // Takes room before it gives any (ROOM3).
            let faults = self.options.faults.as_deref();
            let room = self.engine.check_room(txn, STEP_BYTES as u64, faults);
            self.collector.flattening_waits(room.err());
            if self.collector.is_flattening_waiting() {
                flattening = None;
            }
        }
        self.collector.current = due;
        let did = if let Some(database) = due {
            self.drop_some(txn, database, now_ms, rows, &mut freed)?;
            Did::Dropped
        } else if let Some(index) = sweep {
            self.sweep_some(txn, index, rows, &mut freed)?;
            Did::Swept
        } else if let Some(index) = flattening {
            if let Some(mut work) = self.collector.flattenings.remove(index) {
                self.collector.current = Some(work.database);
                if !self.flatten_step(txn, &mut work, rows)? {
                    self.collector.flattenings.push_front(work);
                }
            }
            Did::Flattened
        } else {
            Did::Nothing
        };
        freed.more = match only {
            Some(database) => {
                self.collector.is_due(database, now_ms)
                    || self.collector.is_swept(database)
                    || self.collector.is_flattened(database)
            }
            None => self.collector.idle_ms(now_ms) == Some(0),
        };
        Ok((did, freed))
    }
}
