//! Claims: which server may give out the lease of a database (S5 to S8 of `peers.rs`).

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use pagewire_proto::DatabaseId;
use pagewire_server::peers::{Claim, PeerNews, Peers};
use pagewire_server::store::StoreError;

use super::{EAGER_FOR, Standing, Wished, entry_of};
use crate::Inner;
use crate::cells::Wish;
use crate::commit::check_exists;
use crate::roots::{ATTEMPTS, Change, wait};

/// How long a claim is tried for after somebody here wanted it last.
const WANTED_FOR: Duration = Duration::from_secs(10);
/// When a wish is told again that has come to nothing: a server that lives may have lost it.
const WISH_AGAIN: Duration = Duration::from_secs(2);
/// Wishes that are tried for at a time.
const TRIES: usize = 16;
/// Wishes that wait in an entry, so that the list stays small; whoever has more tells them later.
const MOST_WISHES: usize = 256;

impl Inner {
    /// Tells the claimant of a database that this server wants it. Whether it is in the list (S7).
    async fn wish(
        &self,
        own: &Bytes,
        of: &Bytes,
        database: DatabaseId,
    ) -> Result<bool, StoreError> {
        let now = self.since_boot();
        {
            let state = self.peering.state.lock();
            let wished = state.wishes.get(&database);
            let told = wished.is_some_and(|w| w.of == of && now < w.told + WISH_AGAIN);
            if told && state.others.contains_key(of) {
                return Ok(true);
            }
        }
        let wish = Wish {
            database: database.to_wire(),
            server: own.clone(),
        };
        let mut is_there = false;
        self.update_installation(|cell| {
            let claimant = entry_of(cell, of);
            is_there = claimant.is_some();
            match claimant {
                Some(claimant)
                    if claimant.wishes.len() < MOST_WISHES && !claimant.wishes.contains(&wish) =>
                {
                    claimant.wishes.push(wish.clone());
                    true
                }
                _ => false,
            }
        })
        .await?;
        let mut state = self.peering.state.lock();
        if is_there && state.id() == Some(own) {
            let of = of.clone();
            let wished = state.wishes.entry(database).or_insert(Wished {
                of: of.clone(),
                told: now,
                wanted: now,
            });
            (wished.of, wished.told) = (of, now);
        }
        Ok(is_there)
    }

    /// Looks whether claims that somebody here wants can be had, for as long as they are wanted.
    pub(super) async fn try_for_wishes(&self) {
        let now = self.since_boot();
        let wished: Vec<_> = {
            let mut state = self.peering.state.lock();
            state
                .wishes
                .retain(|_, wished| now < wished.wanted + WANTED_FOR);
            state.wishes.keys().copied().collect()
        };
        let tries = wished.into_iter().map(|database| async move {
            match self.try_to_claim(database).await {
                Ok(Claim::Claimed) => self.peering.tell(PeerNews::Granted(database)),
                Ok(Claim::Elsewhere) => {}
                Err(StoreError::DatabaseNotFound) => self.peering.forget(database),
                Err(error) => tracing::debug!(%error, "a claim has to wait"),
            }
        });
        let tries: Vec<_> = tries.collect();
        let tries = stream::iter(tries).buffer_unordered(TRIES);
        tries.for_each(|()| async {}).await;
    }

    async fn try_to_claim(&self, database: DatabaseId) -> Result<Claim, StoreError> {
        let own = {
            let state = self.peering.state.lock();
            let Some(own) = state.id() else {
                return match &state.standing {
                    Standing::Away => Err(StoreError::Unavailable(
                        "the service of the store has not begun, or has ended".to_owned(),
                    )),
                    _ => Ok(Claim::Elsewhere),
                };
            };
            if state.own.contains(&database) {
                return Ok(Claim::Claimed);
            }
            own.clone()
        };
        let slot = self.slot(database);
        let _claiming = slot.claiming.lock().await;
        let mut claimed = false;
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            let loaded = match attempt {
                // The swap tells if it is not so any more.
                0 => match self.known(database).await? {
                    known if known.root.claim.is_empty() => known,
                    _ => self.fetch(database).await?,
                },
                _ => self.fetch(database).await?,
            };
            let found = &loaded.root.claim;
            if !found.is_empty() && *found != own && self.wish(&own, found, database).await? {
                return Ok(Claim::Elsewhere);
            }
            claimed = self
                .update(database, false, |_, root, state| {
                    check_exists(state)?;
                    if root.claim == own {
                        return Ok(Change::Keep(true));
                    }
                    if root.claim != found {
                        return Ok(Change::Keep(false));
                    }
                    root.claim = own.clone();
                    Ok(Change::Swap(true))
                })
                .await?;
            if claimed {
                break;
            }
        }
        let mut state = self.peering.state.lock();
        if !claimed || state.id() != Some(&own) {
            return Ok(Claim::Elsewhere);
        }
        state.own.insert(database);
        state.wishes.remove(&database);
        Ok(Claim::Claimed)
    }

    /// S6: whether the claim in a root leaves room for a fence of this server.
    pub(crate) fn check_claim(&self, database: DatabaseId, claim: &[u8]) -> Result<(), StoreError> {
        let mut state = self.peering.state.lock();
        if claim.is_empty() || state.id().is_some_and(|own| own == claim) {
            return Ok(());
        }
        state.own.remove(&database);
        Err(StoreError::Unavailable(
            "another server has claimed the database".to_owned(),
        ))
    }
}

#[async_trait]
impl Peers for Inner {
    async fn claim(&self, database: DatabaseId) -> Result<Claim, StoreError> {
        let claim = self.try_to_claim(database).await?;
        if claim == Claim::Elsewhere {
            let now = self.since_boot();
            let mut state = self.peering.state.lock();
            if let Some(wished) = state.wishes.get_mut(&database) {
                wished.wanted = now;
            }
            state.eager_until = now + EAGER_FOR;
            drop(state);
            self.peering.wake.notify_one();
            self.peering.wished.notify_one();
        }
        Ok(claim)
    }

    fn is_wanted(&self, database: DatabaseId) -> bool {
        self.peering.state.lock().wanted.contains_key(&database)
    }

    async fn give_back(&self, database: DatabaseId) -> Result<(), StoreError> {
        let slot = self.slot(database);
        let _claiming = slot.claiming.lock().await;
        let (own, wishes) = {
            let mut state = self.peering.state.lock();
            let Some(own) = state.id().cloned() else {
                return Ok(());
            };
            let Some(wishes) = state.wanted.remove(&database) else {
                return Ok(());
            };
            // Before anybody can see it: nothing is granted on it any more.
            state.own.remove(&database);
            (own, wishes)
        };
        // The others find out by the root, and tell their wishes to the next one.
        let next = wishes.first().cloned().unwrap_or_default();
        let given = self.update(database, false, |_, root, _| {
            if root.claim != own {
                return Ok(Change::Keep(()));
            }
            root.claim = next.clone();
            Ok(Change::Swap(()))
        });
        match given.await {
            Ok(()) | Err(StoreError::DatabaseNotFound) => Ok(()),
            Err(error) => {
                let mut state = self.peering.state.lock();
                if state.id() == Some(&own) {
                    state.wanted.entry(database).or_insert(wishes);
                }
                Err(error)
            }
        }
    }

    async fn news(&self) -> PeerNews {
        let next = self.peering.receive.lock().await.recv().await;
        match next {
            Some(news) => news,
            None => std::future::pending().await,
        }
    }

    fn may_acknowledge(&self) -> bool {
        let state = self.peering.state.lock();
        match &state.standing {
            Standing::Listed { heard, .. } => self.since_boot() <= *heard + state.lease_ttl / 2,
            Standing::Away | Standing::Unlisted | Standing::Lost => false,
        }
    }

    fn resume(&self) {
        let mut state = self.peering.state.lock();
        if matches!(state.standing, Standing::Lost) {
            state.stand(Standing::Unlisted);
            drop(state);
            self.peering.wake.notify_one();
        }
    }
}
