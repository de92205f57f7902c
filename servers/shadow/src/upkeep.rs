//! What a server does without being asked: it collects. And who collects: one server of an installation at a time.
//!
//! # The claim
//! The installation names the server that collects, and the serial at which it said so last.
//!
//! ```text
//!           take: nobody has it, or its value has not changed for CLAIM_PATIENCE by the clock of the observer
//!   nobody ------------------------------------------------------> ours --+ renew: before each step of bounded size,
//!      ^                                                            |  ^  |  if the last time is RENEW_AFTER ago
//!      |   release: the pass, or the call, has ended                |  +--+
//!      +------------------------------------------------------------+
//!                       a renewal finds another server there, or is not heard of: the step is given up
//! ```
//! * **U1** Nothing that a store does behind its calls outlives it: all of it are tasks that the store has, and aborts when it is dropped.
//!   Each may die at any call, as a process may.
//! * **U2** One server of an installation collects at a time, and one task of it. That saves work and is never relied on: a collector that
//!   slept while another one took over deletes nothing but garbage (I7).
//! * **U3** A pass goes through everything there is, in steps of at most [`STEP_KEYS`](crate::collect) keys, and rests after each as long as
//!   the step took; the next pass comes [`ShadowOptions::collect_every`](crate::ShadowOptions) later. A database that
//!   nobody changes costs it three calls, none of which writes.
//! * **U4** A database that cannot be collected is passed over, and holds nothing up.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use pagewire_proto::DatabaseId;
use pagewire_server::store::{Collected, StoreError};
use tokio::time::Instant;

use crate::Inner;
use crate::cells::{self, Claim, Installation};
use crate::collect::Cursor;
use crate::keys;
use crate::kv::{KeyValueError, Swap};
use crate::peers::installation_is_gone;
use crate::roots::{ATTEMPTS, harmless, wait};

/// A claim that nobody renews for so long is taken over: longer than a step in which each call has to be repeated.
const CLAIM_PATIENCE: Duration = Duration::from_secs(60);
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// How often a caller looks whether another server has ended its pass.
const CLAIM_POLL: Duration = Duration::from_millis(500);
/// Between two passes at least, so that no setting makes it spin.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
/// Between two steps of a pass at most.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The claim as it was seen last.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    /// Ours: when it was renewed.
    renewed: Option<Instant>,
    /// Another server's, and since when it has been so.
    seen: Option<(Claim, Instant)>,
}

/// Collecting in this server: whoever has the lock.
#[derive(Debug, Default)]
pub(crate) struct Collecting {
    pub claimed: Claimed,
    /// Of the callers' pass through everything.
    pub cursor: Cursor,
}

impl Inner {
    /// Something that goes on behind the calls, and ends with the store (U1).
    pub(crate) fn behind(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        // Those that have ended are forgotten.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(work);
    }

    pub(crate) fn begin_upkeep(&self) {
        let collecting = self.this.clone();
        let every = self.options.collect_every.max(SHORTEST_PAUSE);
        self.behind(async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(inner) = collecting.upgrade() else {
                    return;
                };
                if let Err(error) = inner.collect_in_passing().await {
                    tracing::debug!(%error, "a collection broke off: the next one goes on");
                }
            }
        });
    }

    /// A pass through everything, unless another server is about one (U2, U3).
    async fn collect_in_passing(&self) -> Result<(), StoreError> {
        let mut cursor = Cursor::default();
        let mut passed = 0;
        loop {
            if self.has_failed() {
                return Ok(());
            }
            let began = Instant::now();
            let more = {
                let mut collecting = self.collecting.lock().await;
                if !self.claim(&mut collecting.claimed).await? {
                    return Ok(());
                }
                match self
                    .collect_next(&mut cursor, &mut collecting.claimed)
                    .await
                {
                    Ok(collected) => {
                        passed = 0;
                        collected.more
                    }
                    // U4; but where nothing gets through at all there is no next one either.
                    Err(error) if passed < ATTEMPTS && cursor.pass_over() => {
                        tracing::debug!(%error, "a database is not collected this time");
                        passed += 1;
                        true
                    }
                    Err(error) => {
                        self.release(&mut collecting.claimed).await;
                        return Err(error);
                    }
                }
            };
            if !more {
                self.release(&mut self.collecting.lock().await.claimed)
                    .await;
                return Ok(());
            }
            tokio::time::sleep(began.elapsed().min(LONGEST_REST)).await;
        }
    }

    /// A step for a caller, who waits where another server is about a pass.
    pub(crate) async fn collect(
        &self,
        database: Option<DatabaseId>,
    ) -> Result<Collected, StoreError> {
        let mut collecting = self.collecting.lock().await;
        let collecting = &mut *collecting;
        let deadline = Instant::now() + 2 * CLAIM_PATIENCE;
        while !self.claim(&mut collecting.claimed).await? {
            if Instant::now() > deadline {
                return Err(StoreError::Unavailable(
                    "another server collects".to_owned(),
                ));
            }
            tokio::time::sleep(CLAIM_POLL).await;
        }
        let collected = match database {
            Some(database) => {
                self.collect_database(database, &mut collecting.claimed)
                    .await
            }
            None => {
                let cursor = &mut collecting.cursor;
                self.collect_next(cursor, &mut collecting.claimed).await
            }
        };
        self.release(&mut collecting.claimed).await;
        collected
    }

    /// Takes the claim, or renews it. Whether this server has it.
    async fn claim(&self, claimed: &mut Claimed) -> Result<bool, StoreError> {
        if claimed.renewed.is_some_and(|at| at.elapsed() < RENEW_AFTER) {
            return Ok(true);
        }
        let own = self.collector;
        let mut seen = claimed.seen.take();
        let taken = self.update_installation(|cell| {
            let other = cell.collector.as_ref().filter(|c| c.server[..] != own);
            if let Some(other) = other {
                match &seen {
                    Some((known, since)) if known == other => {
                        if since.elapsed() < CLAIM_PATIENCE {
                            return false;
                        }
                    }
                    _ => {
                        seen = Some((other.clone(), Instant::now()));
                        return false;
                    }
                }
            }
            cell.collector = Some(Claim {
                server: Bytes::copy_from_slice(&own),
                serial: cell.serial,
            });
            true
        });
        let taken = taken.await;
        claimed.renewed = matches!(taken, Ok(true)).then(Instant::now);
        claimed.seen = seen.filter(|_| claimed.renewed.is_none());
        taken
    }

    /// Before anything of a step that writes: an error where the claim was lost.
    pub(crate) async fn still_claimed(&self, claimed: &mut Claimed) -> Result<(), StoreError> {
        match self.claim(claimed).await? {
            true => Ok(()),
            false => Err(StoreError::Unavailable(
                "another server has taken over the collection".to_owned(),
            )),
        }
    }

    /// Lets others collect at once; where it is not heard of they wait.
    async fn release(&self, claimed: &mut Claimed) {
        claimed.renewed = None;
        let own = self.collector;
        let released = self.update_installation(|cell| {
            let ours = cell.collector.as_ref().is_some_and(|c| c.server[..] == own);
            if ours {
                cell.collector = None;
            }
            ours
        });
        if let Err(error) = released.await {
            tracing::debug!(%error, "the claim of a collection is left to run out");
        }
    }

    /// Swaps the installation where the change says that there is one: what it said in the end. It may be called several times.
    pub(crate) async fn update_installation(
        &self,
        mut change: impl FnMut(&mut Installation) -> bool + Send,
    ) -> Result<bool, StoreError> {
        let mut last_error = None;
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            let found = self.kv.get(keys::INSTALLATION).await.map_err(harmless)?;
            let value = found.ok_or_else(installation_is_gone)?;
            let mut cell: Installation = cells::decode(keys::INSTALLATION, &value.content)?;
            cell.serial += 1;
            if !change(&mut cell) {
                return Ok(false);
            }
            let content = cells::encode(&cell);
            let swap = self.kv.swap(keys::INSTALLATION, Some(&value.tag), content);
            match swap.await {
                Ok(Swap::Done(_)) => return Ok(true),
                Ok(Swap::Lost) => {}
                Err(KeyValueError::Unavailable(why)) => last_error = Some(why),
                Err(error) => return Err(harmless(error)),
            }
        }
        Err(StoreError::Unavailable(last_error.unwrap_or_else(|| {
            "others change the installation all the time".to_owned()
        })))
    }
}
