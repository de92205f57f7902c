//! What sessions read of a database: their floors and pins, and what the store was told of them.
//!
//! The store keeps everything from the lowest floor on, and the pins below it. It is told under the lock `protected` of the database,
//! so what it was told last is what is wanted last.
//!
//! * **R-1** A pin is in the table only when the store has taken it: one that comes too late is refused and holds nothing up (K1).
//! * **R-2** A pin goes with a heartbeat that has seen its call and does not name it, with its open, or with its session.
//! * **R-3** Where the store did not say whether it took what it was told, or may have dropped it since because this server was
//!   silent for too long ([`PeerNews::Lost`](crate::peers::PeerNews::Lost)), it is told again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pagewire_proto::limits::MAX_PINS;
use pagewire_proto::status::Reason;
use pagewire_proto::{Moment, SessionId, Version, VersionEntry};
use tonic::Status;

use super::Hub;
use crate::database::Database;
use crate::session::{Session, SessionState};
use crate::status;

/// The versions of one database that sessions read.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    /// The oldest version that each session may begin to read.
    floors: HashMap<SessionId, Version>,
    /// Versions that each session has pinned, with the newest call that did.
    pins: HashMap<SessionId, BTreeMap<Version, u64>>,
}

/// What a store is to keep, as [`crate::store::PageStore::protect`] is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Protected {
    floor: Option<Version>,
    /// Below the floor.
    pins: BTreeSet<Version>,
}

impl Protected {
    /// Nobody reads anything.
    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    fn add(&mut self, pin: Version) {
        if self.floor.is_none_or(|floor| pin < floor) {
            self.pins.insert(pin);
        }
    }
}

/// What a store was told last.
#[derive(Debug)]
pub(crate) struct Told {
    /// `None` where it is not known what the store has taken.
    taken: Option<Protected>,
    /// How often this server had been silent for too long when it was told.
    losses: u64,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            taken: Some(Protected::default()),
            losses: 0,
        }
    }
}

impl Told {
    /// The store keeps nothing for anybody, and knows it.
    pub(crate) fn is_nothing(&self) -> bool {
        self.taken.as_ref().is_some_and(Protected::is_nothing)
    }
}

impl Readers {
    /// A session has opened the database.
    pub(crate) fn enter(&mut self, session: SessionId, floor: Version) {
        self.floors.insert(session, floor);
    }

    /// A session does not read any more. How many pins went.
    pub(crate) fn leave(&mut self, session: SessionId) -> usize {
        self.floors.remove(&session);
        self.pins.remove(&session).map_or(0, |pins| pins.len())
    }

    /// Raises the floor of a session; floors only rise. False where nothing changed.
    pub(crate) fn raise(&mut self, session: SessionId, floor: Version) -> bool {
        match self.floors.get_mut(&session) {
            Some(known) if *known < floor => {
                *known = floor;
                true
            }
            _ => false,
        }
    }

    /// Drops the pins of calls up to this one that the client does not name. How many.
    pub(crate) fn release(&mut self, session: SessionId, settled: u64, named: &[u64]) -> usize {
        let Some(pins) = self.pins.get_mut(&session) else {
            return 0;
        };
        let before = pins.len();
        let named: BTreeSet<_> = named.iter().copied().collect();
        pins.retain(|version, call| *call > settled || named.contains(&version.get()));
        let released = before - pins.len();
        if pins.is_empty() {
            self.pins.remove(&session);
        }
        released
    }

    fn has_pin(&self, session: SessionId, version: Version) -> bool {
        self.pins
            .get(&session)
            .is_some_and(|pins| pins.contains_key(&version))
    }

    fn pin(&mut self, session: SessionId, version: Version, call: u64) {
        let newest = self
            .pins
            .entry(session)
            .or_default()
            .entry(version)
            .or_default();
        *newest = call.max(*newest);
    }

    #[cfg(test)]
    pub(crate) fn has_floor(&self, session: SessionId) -> bool {
        self.floors.contains_key(&session)
    }

    fn wanted(&self) -> Protected {
        let mut wanted = Protected {
            floor: self.floors.values().min().copied(),
            pins: BTreeSet::new(),
        };
        for version in self.pins.values().flat_map(BTreeMap::keys) {
            wanted.add(*version);
        }
        wanted
    }
}

impl Hub {
    /// Tells the store what is read, where that has changed.
    pub(crate) async fn protect(&self, database: &Database) -> Result<(), Status> {
        let mut told = database.protected.lock().await;
        database.protect_scheduled.store(false, Ordering::Release);
        let wanted = database.readers.lock().wanted();
        self.tell(database, &mut told, wanted).await
    }

    async fn tell(
        &self,
        database: &Database,
        told: &mut Told,
        wanted: Protected,
    ) -> Result<(), Status> {
        let losses = self.losses.load(Ordering::Acquire);
        if std::mem::replace(&mut told.losses, losses) != losses {
            told.taken = None;
        }
        if told.taken.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let pins: Vec<_> = wanted.pins.iter().copied().collect();
        let before = told.taken.take();
        match self
            .bounded(self.store.protect(database.id, wanted.floor, &pins))
            .await
        {
            Ok(()) => {
                told.taken = Some(wanted);
                Ok(())
            }
            // Of a database that was removed nothing is kept, so a store without it has taken that. Or it would be asked for ever.
            Err(error) if wanted.is_nothing() && Reason::of(&error) == Reason::DatabaseNotFound => {
                told.taken = Some(wanted);
                Ok(())
            }
            Err(error) => {
                // "Nothing is replaced."
                if Reason::of(&error) == Reason::VersionGone {
                    told.taken = before;
                }
                Err(error)
            }
        }
    }

    /// The same as [`Hub::protect`] for floors that rise and pins that go: nobody waits for it.
    pub(crate) fn schedule_protect(self: &Arc<Self>, database: &Arc<Database>) {
        if database.protect_scheduled.swap(true, Ordering::AcqRel) {
            return;
        }
        let (hub, database) = (Arc::clone(self), Arc::clone(database));
        tokio::spawn(async move {
            if let Err(error) = hub.protect(&database).await {
                tracing::debug!(
                    error = error.message(),
                    "a floor was not taken by the store"
                );
            }
        });
    }

    /// Finds the version of a moment and pins it for the session, which has the database open.
    pub(crate) async fn pin(
        self: &Arc<Self>,
        session: &Session,
        database: &Arc<Database>,
        moment: &Moment,
        call: u64,
    ) -> Result<VersionEntry, Status> {
        // Also over the search: what is found because of a floor does not go before it is pinned.
        let mut told = database.protected.lock().await;
        let found = self.bounded(self.store.find(database.id, moment)).await?;
        let version = found.snapshot.version;
        self.room_for_pin(&session.state.lock(), session.id, database, version)?;
        let mut wanted = database.readers.lock().wanted();
        wanted.add(version);
        self.tell(database, &mut told, wanted).await?;
        let noted = self.note_pin(session, database, version, call);
        if noted.is_err() {
            self.schedule_protect(database);
        }
        noted.map(|()| found)
    }

    fn note_pin(
        &self,
        session: &Session,
        database: &Database,
        version: Version,
        call: u64,
    ) -> Result<(), Status> {
        let mut state = session.state.lock();
        if state.ended {
            return Err(status::session_unknown());
        }
        if !state.opens.contains_key(&database.id) {
            return Err(status::not_open());
        }
        state.pins += self.room_for_pin(&state, session.id, database, version)?;
        database.readers.lock().pin(session.id, version, call);
        Ok(())
    }

    /// How many places a pin takes: none where the session has it already.
    fn room_for_pin(
        &self,
        state: &SessionState,
        session: SessionId,
        database: &Database,
        version: Version,
    ) -> Result<usize, Status> {
        if database.readers.lock().has_pin(session, version) {
            return Ok(0);
        }
        if state.pins >= MAX_PINS {
            return Err(Reason::Limit.status(format!(
                "the session has {MAX_PINS} old versions open, no more are allowed"
            )));
        }
        Ok(1)
    }
}
