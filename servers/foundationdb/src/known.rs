//! Heads that this server has made some moments ago, for the commits that come next: see M3 in `commit.rs`.
//!
//! Nothing here is true for longer than until somebody else changes it, and nobody is told. So it is only ever used by a transaction
//! that fails where that has happened.

use std::collections::HashMap;
use std::time::Duration;

use pagewire_proto::{DatabaseId, Epoch};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::values::Database;

/// For how long one is of use: the cluster refuses a transaction with conflict ranges from a version that is more than 5 s old.
const LASTS: Duration = Duration::from_secs(3);
/// Most that are remembered: as many databases are written through one server in that time, or it asks again.
const MOST: usize = 4096;

/// A head that this server has made.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The version of the cluster that made it, with whatever else was in the same batch.
    pub(crate) at: i64,
    /// The row.
    pub(crate) row: Database,
    /// The epoch under which it was made, which was the newest one.
    pub(crate) epoch: Epoch,
    made: Instant,
}

/// Those that this server remembers.
#[derive(Debug, Default)]
pub(crate) struct KnownHeads(Mutex<HashMap<DatabaseId, Known>>);

impl KnownHeads {
    /// The newest one of a database, which is forgotten here.
    pub(crate) fn take(&self, database: DatabaseId) -> Option<Known> {
        let known = self.0.lock().remove(&database);
        known.filter(|known| known.made.elapsed() < LASTS)
    }

    pub(crate) fn put(&self, database: DatabaseId, at: i64, row: Database, epoch: Epoch) {
        let mut heads = self.0.lock();
        if heads.len() >= MOST {
            heads.retain(|_, known| known.made.elapsed() < LASTS);
        }
        if heads.len() < MOST {
            let made = Instant::now();
            let known = Known {
                at,
                row,
                epoch,
                made,
            };
            heads.insert(database, known);
        }
    }
}
