//! Which page servers there are, how long their leases are trusted, and what their sessions read.
//!
//! A server has a row with a counter that rises all the time. That it is dead is concluded by watching: the counter did not change for
//! [`crate::FoundationDbOptions::dead_after`] by the observer's own clock. No wall clock of another machine decides anything.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::try_join_all;
use pagewire_proto::{DatabaseId, Version};
use pagewire_server::Settings;
use pagewire_server::store::StoreError;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Inner;
use crate::engine::{Fail, Read, Row, Txn, decode, transact};
use crate::keys::{Key, ServerId};
use crate::peers::{Peering, silence};
use crate::values::{MAX_PROTECTED_PINS, Protection, Server};

/// How often a server says that it lives.
const BEAT: Duration = Duration::from_secs(1);
/// New pins that one transaction looks at.
const NEW_PINS: usize = 1024;

/// When the row of a server was seen to change last.
pub(crate) type Seen = HashMap<ServerId, (Vec<u8>, Instant)>;

/// A page server that has a row.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) id: ServerId,
    /// `None` where the row is damaged. A server that lives mends it with its next beat, so this one is taken for one that lives until its row
    /// has not changed for as long as the longest lease TTL there is would ask for.
    pub(crate) server: Option<Server>,
    stored: Vec<u8>,
}

impl Listed {
    /// How long its row has to be unchanged before what its sessions did counts for nothing.
    fn silence(&self) -> Duration {
        let longest = Settings::MAX_LEASE_TTL.as_millis() as u64;
        let ttl_ms = self.server.map_or(longest, |server| server.lease_ttl_ms);
        silence(ttl_ms)
    }
}

/// What the cluster is known to have of what sessions here read.
#[derive(Debug, Default)]
pub(crate) struct Said {
    words: HashMap<DatabaseId, Word>,
    /// How often this server had been silent for too long when they were said.
    losses: u64,
    /// For databases of which something is being said: one after another.
    turns: HashMap<DatabaseId, Arc<tokio::sync::Mutex<()>>>,
}

/// What the cluster is known to have of what sessions here read of a database.
#[derive(Debug)]
enum Word {
    /// This, in these rows.
    Whole(Protection),
    /// These pins, and what else is not known: a call was cut, or failed. None of them has to be looked at again.
    AtLeast(Vec<Version>),
}

impl Word {
    fn pins(&self) -> &[Version] {
        match self {
            Self::Whole(protection) => &protection.pins,
            Self::AtLeast(pins) => pins,
        }
    }

    fn whole(self) -> Option<Protection> {
        match self {
            Self::Whole(protection) => Some(protection),
            Self::AtLeast(_) => None,
        }
    }
}

/// Something is said of a database, or waits to be.
struct Turn<'a> {
    said: &'a Mutex<Said>,
    database: DatabaseId,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl<'a> Turn<'a> {
    fn of(said: &'a Mutex<Said>, database: DatabaseId) -> Self {
        let turn = Arc::clone(said.lock().turns.entry(database).or_default());
        Self {
            said,
            database,
            turn,
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut said = self.said.lock();
        // Let go of under the lock, so that of two who end at the same time one is the last.
        self.turn = Arc::default();
        let turn = said.turns.get(&self.database);
        if turn.is_some_and(|turn| Arc::strong_count(turn) == 1) {
            said.turns.remove(&self.database);
        }
    }
}

impl Said {
    /// Who was silent for so long may have been taken for dead, and what it said may have been dropped.
    fn forget_losses(&mut self, losses: u64) {
        if std::mem::replace(&mut self.losses, losses) != losses {
            self.words.clear();
        }
    }

    /// What the cluster has now; nothing of it is known if what was said before a loss that was found meanwhile may be dropped.
    fn note(&mut self, database: DatabaseId, losses: u64, word: Word) {
        let is_empty = match &word {
            Word::Whole(protection) => *protection == Protection::default(),
            Word::AtLeast(pins) => pins.is_empty(),
        };
        match is_empty || self.losses != losses {
            true => self.words.remove(&database),
            false => self.words.insert(database, word),
        };
    }
}

/// Says that the server lives, for as long as it does.
pub(crate) async fn live(store: Weak<Inner>) {
    loop {
        let Some(ttl) = store.upgrade().map(|store| store.lease_ttl()) else {
            return;
        };
        let often = match ttl.is_zero() {
            true => BEAT,
            false => BEAT.min(ttl / 4),
        };
        tokio::time::sleep(often).await;
        let Some(store) = store.upgrade() else { return };
        if let Err(error) = store.beat().await {
            tracing::warn!(%error, "the cluster does not hear that this server lives");
        }
    }
}

impl Txn {
    async fn servers(&self, read: Read) -> Result<Vec<Listed>, Fail> {
        let range = self.space.servers();
        let rows = self.scan(&range, usize::MAX, false, read).await?;
        let mut servers = Vec::new();
        for row in rows {
            let Key::Server(id) = self.key(&row)? else {
                continue;
            };
            let server = decode(&self.space, &row, Server::decode);
            if let Err(error) = &server {
                tracing::warn!(%error, "a page server is taken for one that lives");
            }
            servers.push(Listed {
                id,
                server: server.ok(),
                stored: row.stored,
            });
        }
        Ok(servers)
    }

    /// One of them.
    pub(crate) async fn server(&self, id: ServerId, read: Read) -> Result<Option<Listed>, Fail> {
        let stored = self.stored(&Key::Server(id), read).await?;
        let listed = |row: Row| Listed {
            id,
            server: decode(&self.space, &row, Server::decode).ok(),
            stored: row.stored,
        };
        Ok(stored.map(listed))
    }
}

impl Txn {
    /// Whether all of these versions are readable. Firmly: a collection that drops one comes before, or sees the pin (K1, G1).
    async fn are_there(&self, database: DatabaseId, pins: &[Version]) -> Result<(), Fail> {
        let each = pins
            .iter()
            .map(|pin| self.version(database, *pin, Read::Firm));
        try_join_all(each).await?;
        Ok(())
    }

    /// What the cluster has of what sessions of a server read.
    async fn protected(&self, database: DatabaseId, server: ServerId) -> Result<Protection, Fail> {
        let range = self.space.protections_of(database, server, 0);
        let mut all = Protection::default();
        for row in self.scan(&range, usize::MAX, false, Read::Firm).await? {
            all = all.with(&self.decode(&row, Protection::decode)?);
        }
        Ok(all)
    }

    /// Writes what sessions of a server read: the rows that are another than those that are known to be there. Nobody else writes them, but an earlier
    /// word of which the outcome is not known may still be under way: behind this one it fails, since it claims them too.
    fn say(
        &self,
        database: DatabaseId,
        server: ServerId,
        known: Option<&Protection>,
        wanted: &Protection,
    ) -> Result<(), Fail> {
        self.claim_range(&self.space.protections_of(database, server, 0))?;
        let before = known.map(Protection::rows);
        let rows = wanted.rows();
        for (number, row) in (0..).zip(&rows) {
            let before = before.as_ref().and_then(|rows| rows.get(number as usize));
            if before != Some(row) {
                self.put(&Key::Protect(database, server, number), &row.encode());
            }
        }
        if before.is_none_or(|before| before.len() > rows.len()) {
            let rest = self
                .space
                .protections_of(database, server, rows.len() as u32);
            self.delete_range(&rest);
        }
        Ok(())
    }
}

impl Inner {
    fn own_row(&self) -> Server {
        Server {
            counter: self.beats.fetch_add(1, Ordering::Relaxed),
            lease_ttl_ms: self.lease_ttl_ms.load(Ordering::Relaxed),
        }
    }

    /// How many servers have a damaged row. For tests.
    pub(crate) async fn damaged_servers(&self) -> Result<usize, StoreError> {
        let servers = transact!(self.engine, |txn| txn.servers(Read::Loose).await)?;
        Ok(servers.iter().filter(|row| row.server.is_none()).count())
    }

    /// Says that this server lives.
    pub(crate) async fn beat(&self) -> Result<(), StoreError> {
        // Not between the end of the service and the last word about it.
        let ended = self.ended.lock().await;
        if *ended {
            return Ok(());
        }
        let row = self.own_row();
        let sent = Peering::beginning();
        transact!(self.engine, |txn| {
            txn.put(&Key::Server(self.server), &row.encode());
            Ok(())
        })?;
        self.peering.took(sent, self.lease_ttl());
        Ok(())
    }

    pub(crate) async fn begin_service(&self, lease_ttl: Duration) -> Result<Duration, StoreError> {
        let ttl_ms = u64::try_from(lease_ttl.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        self.lease_ttl_ms.store(ttl_ms, Ordering::Relaxed);
        let mut ended = self.ended.lock().await;
        *ended = false;
        let row = self.own_row();
        let sent = Peering::beginning();
        let others = transact!(self.engine, |txn| {
            let mut others = txn.servers(Read::Firm).await?;
            others.retain(|other| other.id != self.server);
            txn.put(&Key::Server(self.server), &row.encode());
            Ok(others)
        })?;
        self.peering.took(sent, Duration::ZERO);
        let others = others.iter().filter_map(|other| other.server);
        let wait_ms = others.map(|server| server.lease_ttl_ms).max();
        Ok(Duration::from_millis(wait_ms.unwrap_or(0)))
    }

    /// Says nothing of other servers, although this one may have waited for them: that they are dead is for [`Inner::living`] to see.
    pub(crate) async fn end_service(&self) -> Result<(), StoreError> {
        let mut ended = self.ended.lock().await;
        transact!(self.engine, |txn| {
            txn.delete(&Key::Server(self.server));
            txn.delete(&Key::Bell(self.server));
            txn.delete_range(&txn.space.mail(self.server));
            Ok(())
        })?;
        *ended = true;
        Ok(())
    }

    /// The servers that there are, without those that were seen to be dead: their rows are deleted.
    pub(crate) async fn living(&self) -> Result<HashSet<ServerId>, StoreError> {
        let servers = transact!(self.engine, |txn| txn.servers(Read::Loose).await)?;
        let now = Instant::now();
        let mut dead = Vec::new();
        let mut living = HashSet::from([self.server]);
        {
            let mut seen = self.seen.lock();
            seen.retain(|id, _| servers.iter().any(|server| server.id == *id));
            for server in servers {
                let new = || (server.stored.clone(), now);
                let (stored, since) = seen.entry(server.id).or_insert_with(new);
                if *stored != server.stored {
                    (*stored, *since) = new();
                }
                // Its leases have run out by then too.
                let after = self.options.dead_after.max(server.silence());
                match server.id != self.server && now >= *since + after {
                    true => dead.push(server),
                    false => drop(living.insert(server.id)),
                }
            }
        }
        for known in dead {
            let id = known.id;
            let gone = transact!(self.engine, |txn| {
                let row = txn.server(id, Read::Firm).await?;
                let gone = row.is_none_or(|row| row.stored == known.stored);
                if gone {
                    txn.delete(&Key::Server(id));
                    txn.delete(&Key::Bell(id));
                    txn.delete_range(&txn.space.mail(id));
                }
                Ok(gone)
            })?;
            if !gone {
                living.insert(id);
            }
        }
        Ok(living)
    }

    /// Sets what sessions here read of a database. Of many new pins some at a time are looked at, and added to what is protected already, before the
    /// rest goes: no transaction is larger than the cluster takes or lasts longer, and at each moment what was protected is. Where one
    /// of them is gone by then, what was protected before the call is put in the place of those that were added.
    pub(crate) async fn protect(
        &self,
        database: DatabaseId,
        floor: Option<Version>,
        pins: &[Version],
    ) -> Result<(), StoreError> {
        let mut pins = pins.to_vec();
        pins.sort_unstable();
        pins.dedup();
        if pins.len() > MAX_PROTECTED_PINS {
            return Err(StoreError::Limit(format!(
                "sessions of this server have {MAX_PROTECTED_PINS} old versions of database {database} open, no more are possible"
            )));
        }
        let protection = Protection { floor, pins };
        // One after another for each database: the last word is the one that stays.
        let turn = Turn::of(&self.said, database);
        let _turn = turn.turn.lock().await;
        let (losses, word) = {
            let mut said = self.said.lock();
            let losses = self.peering.losses();
            said.forget_losses(losses);
            (losses, said.words.remove(&database))
        };
        let is_in = |pins: &[Version], pin: &Version| pins.binary_search(pin).is_ok();
        let mut held = word
            .as_ref()
            .map_or(Vec::new(), |word| word.pins().to_vec());
        let mut known = word.and_then(Word::whole);
        let pins = protection.pins.iter().copied();
        let new: Vec<_> = pins.filter(|pin| !is_in(&held, pin)).collect();
        let mut new = &new[..];
        // Until the cluster has taken a word it is not known which one it has: what both have it has.
        let note = |word| self.said.lock().note(database, losses, word);
        let mut before = None;
        while new.len() > NEW_PINS {
            note(Word::AtLeast(held));
            let (some, rest) = new.split_at(NEW_PINS);
            let said = self.protect_too(database, known.as_ref(), &protection, some);
            let (was, now) = match said.await {
                Ok(said) => said,
                Err(error) => return self.refused(database, losses, before, error).await,
            };
            before.get_or_insert(was);
            held = now.pins.clone();
            known = Some(now);
            new = rest;
        }
        held.retain(|pin| is_in(&protection.pins, pin));
        note(Word::AtLeast(held));
        let said = transact!(self.engine, |txn| {
            txn.lasting(database).await?;
            txn.are_there(database, new).await?;
            txn.say(database, self.server, known.as_ref(), &protection)
        });
        if let Err(error) = said {
            return self.refused(database, losses, before, error).await;
        }
        note(Word::Whole(protection));
        Ok(())
    }

    /// Ends a call that failed. Where a pin is gone nothing is replaced (C10): what was there before its first transaction is put back.
    async fn refused(
        &self,
        database: DatabaseId,
        losses: u64,
        before: Option<Protection>,
        error: StoreError,
    ) -> Result<(), StoreError> {
        let (Some(before), StoreError::VersionGone { .. }) = (before, &error) else {
            return Err(error);
        };
        let note = |word| self.said.lock().note(database, losses, word);
        note(Word::AtLeast(before.pins.clone()));
        transact!(self.engine, |txn| {
            txn.lasting(database).await?;
            txn.say(database, self.server, None, &before)
        })?;
        note(Word::Whole(before));
        Err(error)
    }

    /// Protects some pins, and the floor, beside what was protected before: which is everything then. Answers that and what it was before.
    async fn protect_too(
        &self,
        database: DatabaseId,
        known: Option<&Protection>,
        wanted: &Protection,
        some: &[Version],
    ) -> Result<(Protection, Protection), StoreError> {
        let more = Protection {
            floor: wanted.floor,
            pins: some.to_vec(),
        };
        transact!(self.engine, |txn| {
            txn.lasting(database).await?;
            txn.are_there(database, some).await?;
            let before = match known {
                Some(known) => known.clone(),
                None => txn.protected(database, self.server).await?,
            };
            let now = before.with(&more);
            txn.say(database, self.server, known, &now)?;
            Ok((before, now))
        })
    }

    /// Forgets what is known here of a database that was removed.
    pub(crate) fn forget(&self, database: DatabaseId) {
        self.drop_stagings(database);
        self.said.lock().words.remove(&database);
    }
}
