//! All databases of the store, their names, and what is to be dropped when. Never locks anything; the caller does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use pagewire_memory::staging::Stagings;
use pagewire_proto::{CommitId, DatabaseId, DatabaseName, UnixMillis, Version};
use pagewire_server::store::{COMMIT_RECORD_TTL, DatabaseCommit, StoreError};

use crate::database::{Content, Database, Kept, NextVersion};

#[derive(Debug, Default)]
pub(crate) struct State {
    /// By the text of the name.
    pub(crate) names: BTreeMap<String, DatabaseId>,
    pub(crate) databases: HashMap<DatabaseId, Database>,
    pub(crate) stagings: Stagings,
    /// Segments that were begun, in all databases.
    segments: u64,
    /// How many branches stand on which versions of a database.
    branch_points: HashMap<DatabaseId, BTreeMap<Version, usize>>,
    /// When a database may have versions that nothing keeps any more: one time for each, the earliest.
    due: BTreeSet<(UnixMillis, DatabaseId)>,
    /// The same by database.
    due_of: HashMap<DatabaseId, UnixMillis>,
    /// Databases that were removed, in the order of their removals: no branch gets their ids (V4).
    removed: VecDeque<(UnixMillis, DatabaseId)>,
    removed_ids: HashSet<DatabaseId>,
}

/// For how long at least no branch gets the id of a database that was removed: by then no call that makes it is under way.
const REMOVED_FOR: Duration = COMMIT_RECORD_TTL;

impl State {
    pub(crate) fn database(&self, id: DatabaseId) -> Result<&Database, StoreError> {
        self.databases.get(&id).ok_or(StoreError::DatabaseNotFound)
    }

    pub(crate) fn database_mut(&mut self, id: DatabaseId) -> Result<&mut Database, StoreError> {
        let database = self.databases.get_mut(&id);
        database.ok_or(StoreError::DatabaseNotFound)
    }

    pub(crate) fn new_segment(&mut self) -> u64 {
        self.segments += 1;
        self.segments
    }

    /// The version that a commit makes, checked against what it is made on.
    pub(crate) fn next_version(
        &mut self,
        id: CommitId,
        part: DatabaseCommit,
    ) -> Result<NextVersion, StoreError> {
        let (page_size, page_count) = (part.page_size, part.page_count);
        let content = match part.restore {
            Some(from) => {
                self.database(part.database)?.version(from)?;
                Content::Restore(from, self.new_segment())
            }
            None => Content::Pages(self.stagings.pages_of(part)),
        };
        Ok(NextVersion {
            id,
            page_size,
            page_count,
            content,
        })
    }

    /// A database became known under its name.
    pub(crate) fn add(&mut self, id: DatabaseId, database: Database) {
        if let Some(origin) = &database.origin {
            let points = self.branch_points.entry(origin.database).or_default();
            *points.entry(origin.entry.snapshot.version).or_default() += 1;
        }
        self.names.insert(database.name.as_str().to_owned(), id);
        self.databases.insert(id, database);
    }

    /// Takes out a database with its name; the caller drops it without the lock.
    pub(crate) fn remove(
        &mut self,
        name: &DatabaseName,
        now: UnixMillis,
    ) -> Result<(DatabaseId, Option<Database>), StoreError> {
        let id = self.names.remove(name.as_str());
        let id = id.ok_or(StoreError::DatabaseNotFound)?;
        let removed = self.databases.remove(&id);
        self.stagings.drop_database(id);
        if let Some(time) = self.due_of.remove(&id) {
            self.due.remove(&(time, id));
        }
        self.forget_removed(now);
        self.removed.push_back((now, id));
        self.removed_ids.insert(id);
        if let Some(origin) = removed.as_ref().and_then(|d| d.origin.as_ref()) {
            let version = origin.entry.snapshot.version;
            if let Some(points) = self.branch_points.get_mut(&origin.database)
                && let Some(branches) = points.get_mut(&version)
            {
                *branches -= 1;
                if *branches == 0 {
                    points.remove(&version);
                }
            }
        }
        Ok((id, removed))
    }

    /// Whether a database with this id was removed not long ago.
    pub(crate) fn was_removed(&self, id: DatabaseId) -> bool {
        self.removed_ids.contains(&id)
    }

    fn forget_removed(&mut self, now: UnixMillis) {
        let since = now.0.saturating_sub(REMOVED_FOR.as_millis() as i64);
        while let Some((time, id)) = self.removed.front().copied()
            && time.0 < since
        {
            self.removed.pop_front();
            if self
                .branch_points
                .get(&id)
                .is_some_and(|points| !points.is_empty())
            {
                // A branch stands on it (V4): looked at again as late as if it had been removed now.
                self.removed.push_back((now, id));
            } else {
                self.removed_ids.remove(&id);
            }
        }
    }

    /// Something that kept versions of a database may not from this time on.
    pub(crate) fn look_again(&mut self, id: DatabaseId, time: UnixMillis) {
        match self.due_of.get_mut(&id) {
            Some(due) if *due <= time => {}
            Some(due) => {
                self.due.remove(&(*due, id));
                self.due.insert((time, id));
                *due = time;
            }
            None => {
                self.due.insert((time, id));
                self.due_of.insert(id, time);
            }
        }
    }

    /// When there may be something to drop.
    pub(crate) fn next_due(&self) -> Option<UnixMillis> {
        self.due.first().map(|(time, _)| *time)
    }

    /// How many times are kept of when to look.
    #[cfg(test)]
    pub(crate) fn dues(&self) -> usize {
        self.due.len().max(self.due_of.len())
    }

    /// Takes out versions of a database that nothing keeps; the caller drops them without the lock.
    pub(crate) fn take_unkept(
        &mut self,
        id: DatabaseId,
        now: UnixMillis,
        retention: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<Kept>, bool), StoreError> {
        let points = self.branch_points.get(&id);
        let database = self.databases.get_mut(&id);
        let database = database.ok_or(StoreError::DatabaseNotFound)?;
        let stood_on = |version: &Version| points.is_some_and(|p| p.contains_key(version));
        Ok(database.take_unkept(now, retention, stood_on, limit))
    }

    /// Takes out versions of whatever database has some that are too old by now, at most as many.
    pub(crate) fn take_old(&mut self, now: UnixMillis, retention: i64, limit: usize) -> Vec<Kept> {
        let mut taken = Vec::new();
        for _ in 0..limit {
            let Some((time, id)) = self.due.first().copied() else {
                break;
            };
            let room = limit - taken.len();
            if time > now || room == 0 {
                break;
            }
            let more = match self.take_unkept(id, now, Some(retention), room) {
                Ok((unkept, more)) => {
                    taken.extend(unkept);
                    more
                }
                // Removed.
                Err(_) => false,
            };
            if !more {
                self.due.pop_first();
                self.due_of.remove(&id);
                let database = self.databases.get(&id);
                if let Some(next) = database.and_then(|d| d.next_old(now, retention)) {
                    self.look_again(id, next);
                }
            }
        }
        taken
    }
}
