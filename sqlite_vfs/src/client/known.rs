//! Which databases this process has open at an endpoint: for whom a push is, and what the heartbeats say.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use pagewire_proto::{DatabaseId, Epoch};
use parking_lot::Mutex;

use super::{Client, Core};
use crate::database::DatabaseState;

/// Databases of a client, under one lock: a recall is either for a database that is open, or remembered for the open that it
/// has overtaken.
#[derive(Default)]
pub(super) struct Known {
    open: HashMap<DatabaseId, Weak<DatabaseState>>,
    /// The newest epoch released of each database that was ever open: its message may still be under way when the database is
    /// opened again.
    released: HashMap<DatabaseId, Epoch>,
    /// Opens so far.
    opens: u64,
    /// Of them, those that have not become an entry of `open` yet, and never may.
    under_way: BTreeSet<u64>,
    /// Databases that are open for one question.
    borrowed: usize,
}

impl Known {
    fn release(&mut self, id: DatabaseId, epoch: Epoch) {
        let newest = self.released.entry(id).or_default();
        *newest = epoch.max(*newest);
    }

    /// Up to which number opens have ended: a database that the server has open by one of them, and that is not in `open`, is one
    /// whose answer was lost. 0 while nothing can be said.
    fn settled_opens(&self) -> u64 {
        if self.borrowed > 0 {
            return 0;
        }
        self.under_way
            .first()
            .map_or(self.opens, |oldest| oldest - 1)
    }
}

/// An open whose database is not known to the heartbeats yet. It ends when this is dropped.
pub struct OpenUnderWay {
    known: Arc<Mutex<Known>>,
    /// `None` for an open beside all others.
    sequence: Option<u64>,
}

impl OpenUnderWay {
    pub(super) fn begin(core: &Core) -> Self {
        let known = Arc::clone(&core.known);
        let sequence = {
            let mut known = known.lock();
            known.opens += 1;
            let sequence = known.opens;
            known.under_way.insert(sequence);
            sequence
        };
        Self {
            known,
            sequence: Some(sequence),
        }
    }

    pub(super) fn borrow(core: &Core) -> Self {
        let known = Arc::clone(&core.known);
        known.lock().borrowed += 1;
        Self {
            known,
            sequence: None,
        }
    }

    pub(super) fn sequence(&self) -> u64 {
        self.sequence.unwrap_or(0)
    }
}

impl Drop for OpenUnderWay {
    fn drop(&mut self) {
        let mut known = self.known.lock();
        match self.sequence {
            Some(sequence) => {
                known.under_way.remove(&sequence);
            }
            None => known.borrowed -= 1,
        }
    }
}

impl Client {
    /// Makes pushes for a database reach it. Returns the newest epoch of it that this client has released.
    pub fn subscribe(&self, database: &Arc<DatabaseState>) -> Epoch {
        let mut known = self.core.known.lock();
        known.open.insert(database.id(), Arc::downgrade(database));
        known
            .released
            .get(&database.id())
            .copied()
            .unwrap_or_default()
    }

    /// The database has taken another identity: pushes for that one reach it from now on.
    pub fn resubscribe(&self, database: &Arc<DatabaseState>, before: DatabaseId) {
        let mut known = self.core.known.lock();
        let is_ours =
            |open: &Weak<DatabaseState>| std::ptr::eq(open.as_ptr(), Arc::as_ptr(database));
        if known.open.get(&before).is_some_and(is_ours) {
            known.open.remove(&before);
        }
        known.open.insert(database.id(), Arc::downgrade(database));
    }

    /// The opposite of [`Client::subscribe`]; tells the server that nobody here has the database open, and what the
    /// next one will want first.
    pub fn unsubscribe(
        &self,
        database: &Arc<DatabaseState>,
        open_sequence: u64,
        hot_pages: Vec<u32>,
    ) {
        let mut known = self.core.known.lock();
        known.release(database.id(), database.released());
        let is_ours =
            |open: &Weak<DatabaseState>| std::ptr::eq(open.as_ptr(), Arc::as_ptr(database));
        if known.open.get(&database.id()).is_some_and(is_ours) {
            known.open.remove(&database.id());
        }
        drop(known);
        self.core
            .session
            .close_database(database.id(), open_sequence, hot_pages);
    }
}

impl Core {
    /// The database that a push is for. If it is not open here, or not yet, its lease up to the epoch is given back: the answer to
    /// an open that brings the lease may have been overtaken by the recall, and must not be believed any more.
    pub(crate) fn database_or_release(
        &self,
        id: DatabaseId,
        epoch: Epoch,
    ) -> Option<Arc<DatabaseState>> {
        let mut known = self.known.lock();
        let open = known.open.get(&id).and_then(Weak::upgrade);
        if open.is_none() {
            known.release(id, epoch);
            drop(known);
            self.session.release_lease(id, epoch, false);
        }
        open
    }

    /// The database of the id, if it is open here.
    pub(crate) fn database_if_known(&self, id: DatabaseId) -> Option<Arc<DatabaseState>> {
        self.known.lock().open.get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn all_databases(&self) -> Vec<(DatabaseId, Arc<DatabaseState>)> {
        self.opens_for_heartbeat().0
    }

    /// Every database that is open here, and up to which number opens have ended ([`Known::settled_opens`]), at one moment.
    pub(crate) fn opens_for_heartbeat(&self) -> (Vec<(DatabaseId, Arc<DatabaseState>)>, u64) {
        let known = self.known.lock();
        let open = known
            .open
            .iter()
            .filter_map(|(id, weak)| Some((*id, weak.upgrade()?)))
            .collect();
        (open, known.settled_opens())
    }
}
