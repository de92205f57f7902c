//! A commit to several databases: place an intent in each root (T2), decide (T3), finish (T5). The invariants are in `lib.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use pagewire_proto::DatabaseId;
use pagewire_server::store::{CommitOutcome, StoreError};

use crate::cells::{self, Decision, Intent, Participant, State};
use crate::commit::{Draft, Judged, Prepared, committed, existing};
use crate::keys::{self, TransactionId};
use crate::kv::{KeyValueError, Swap};
use crate::roots::{ATTEMPTS, Loaded, busy, next_root, wait};
use crate::slots::SlotInUse;
use crate::{Inner, no_randomness};

/// Whether a transaction is committed, as far as its owner knows.
enum Decided {
    Committed,
    /// Somebody has aborted it.
    Aborted,
    Unknown(String),
}

impl Inner {
    pub(crate) async fn commit_many(
        &self,
        draft: &Draft,
        slots: &BTreeMap<DatabaseId, SlotInUse>,
    ) -> Result<CommitOutcome, StoreError> {
        let mut prepared: Vec<Option<Prepared>> = draft.parts.iter().map(|_| None).collect();
        for attempt in 0..ATTEMPTS {
            wait(attempt.saturating_sub(1)).await;
            // I3: all of them, before the first intent.
            let loaded = join_all(draft.parts.iter().map(|part| async move {
                match attempt {
                    0 => self.known(part.commit.database).await,
                    _ => existing(self.fetch_settled(part.commit.database, false).await?),
                }
            }));
            let loaded: Vec<_> = loaded.await.into_iter().collect::<Result<_, _>>()?;
            let states: Vec<&Loaded> = loaded.iter().map(|loaded| &**loaded).collect();
            match self.judge(draft, &states).await? {
                Judged::Repeated => return Ok(committed(draft)),
                Judged::Refused(_) if attempt == 0 => continue,
                Judged::Refused(outcome) => return Ok(outcome),
                Judged::Open => {}
            }
            let puts = draft.parts.iter().zip(prepared.drain(..)).zip(&states);
            let puts = puts.map(|((part, ready), loaded)| async move {
                match ready.filter(|ready| ready.fits(loaded)) {
                    Some(ready) => Ok(ready),
                    None => self.prepare(part, loaded).await,
                }
            });
            let ready = join_all(puts).await;
            let ready: Vec<_> = ready.into_iter().collect::<Result<_, _>>()?;
            if let Some(outcome) = self.transact(draft, slots, &states, &ready).await? {
                return Ok(outcome);
            }
            prepared = ready.into_iter().map(Some).collect();
        }
        Err(busy(draft.parts[0].commit.database))
    }

    /// One transaction, under an id of its own; `None` where it was aborted.
    async fn transact(
        &self,
        draft: &Draft,
        slots: &BTreeMap<DatabaseId, SlotInUse>,
        states: &[&Loaded],
        prepared: &[Prepared],
    ) -> Result<Option<CommitOutcome>, StoreError> {
        let id = pagewire_proto::CommitId::random().map_err(no_randomness)?;
        let transaction: &TransactionId = id.as_bytes();
        let participants: Vec<_> = draft
            .parts
            .iter()
            .zip(states)
            .map(|(part, loaded)| Participant {
                database: part.commit.database.to_wire(),
                generation: loaded.root.generation,
            })
            .collect();
        let placed = draft.parts.iter().zip(states).zip(prepared);
        let placed = placed.map(|((part, loaded), ready)| {
            let mut state = State::clone(&loaded.state);
            self.apply(draft.id, part, ready, &mut state, slots);
            let mut root = next_root(&loaded.root);
            root.state = Some(State::clone(&loaded.state));
            root.intent = Some(Intent {
                transaction: id.to_wire(),
                participants: participants.clone(),
                state: Some(state),
                time_ms: self.now_ms(),
            });
            self.swap_root(part.commit.database, &loaded.tag, root)
        });
        let mut all_placed = true;
        let mut failure = None;
        for placed in join_all(placed).await {
            match placed {
                Ok(Some(_)) => {}
                Ok(None) => all_placed = false,
                Err(error) => failure = Some(error),
            }
        }
        if failure.is_some() || !all_placed {
            // Nobody else commits it, and from here on its owner does not either.
            let aborted = self.abort(transaction, &participants).await;
            match failure {
                Some(KeyValueError::Unavailable(_)) | None => aborted?,
                Some(error) => return Err(self.failure(error)),
            }
            // What was placed is in nobody's way any more; the decision goes when the roots have moved on.
            if let Err(error) = self.forget(transaction).await {
                tracing::debug!(%error, "an aborted transaction is left to the collection");
            }
            return Ok(None);
        }
        let unknown = match self.decide(transaction, &participants).await? {
            Decided::Aborted => return Ok(None),
            Decided::Committed => None,
            Decided::Unknown(why) => Some(why),
        };
        if let Some(why) = unknown {
            return Err(StoreError::Internal(format!(
                "the outcome is not known: {why}"
            )));
        }
        self.finish_all(draft, transaction).await
    }

    /// T3: the commit point.
    async fn decide(
        &self,
        transaction: &TransactionId,
        participants: &[Participant],
    ) -> Result<Decided, StoreError> {
        let key = keys::transaction(transaction);
        let decision = cells::encode(&Decision {
            committed: true,
            participants: participants.to_vec(),
        });
        let mut why = String::new();
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            match self.kv.swap(&key, None, decision.clone()).await {
                Ok(Swap::Done(_)) => return Ok(Decided::Committed),
                Ok(Swap::Lost) if attempt == 0 => return Ok(Decided::Aborted),
                // It may have been lost against its own first attempt.
                Ok(Swap::Lost) => match self.kv.get(&key).await {
                    Ok(Some(value)) => {
                        let found: Decision = cells::decode(&key, &value.content)?;
                        return Ok(match found.committed {
                            true => Decided::Committed,
                            false => Decided::Aborted,
                        });
                    }
                    // Decided, carried out and forgotten by others: the roots tell.
                    Ok(None) => return Ok(Decided::Committed),
                    Err(error) => why = error.to_string(),
                },
                // It was written perhaps, or will be (K4): from here on no answer but that of the key tells.
                Err(KeyValueError::Unavailable(error)) => why = error,
                // Nothing was written: it can still be aborted.
                Err(KeyValueError::Full(error)) if attempt == 0 => {
                    self.abort(transaction, participants).await.ok();
                    return Err(StoreError::Full(error));
                }
                Err(KeyValueError::Full(error)) => why = error,
                Err(error) => return Err(self.failure(error)),
            }
        }
        Ok(Decided::Unknown(why))
    }

    /// T5 in all roots. It committed if the roots say so: an owner that slept may have decided after all was over (I6).
    async fn finish_all(
        &self,
        draft: &Draft,
        transaction: &TransactionId,
    ) -> Result<Option<CommitOutcome>, StoreError> {
        let finished = draft.parts.iter().map(|part| {
            let version = part.commit.base.next().get();
            self.finish(part.commit.database, transaction, move |state| {
                if state.version < version {
                    return Some(false);
                }
                let record = state.record(version)?;
                Some(record.commit[..] == draft.id.as_bytes()[..])
            })
        });
        let finished = join_all(finished).await;
        let mut failure = None;
        let mut shown = None;
        for result in finished {
            match result {
                Ok(committed) => shown = Some(shown.unwrap_or(false) || committed),
                Err(error) => failure = Some(error),
            }
        }
        match (shown, failure) {
            (Some(true), None) => {
                // Each root was swapped without the intent: nobody needs the decision.
                let (kv, key) = (Arc::clone(&self.kv), keys::transaction(transaction));
                self.behind(async move {
                    if let Err(error) = kv.delete(&key).await {
                        tracing::debug!(%error, "a decision is left to the collection");
                    }
                });
                Ok(Some(committed(draft)))
            }
            (Some(true), Some(_)) => Ok(Some(committed(draft))),
            (Some(false), None) => Ok(None),
            (_, Some(error)) => {
                let why = format!("the outcome is not known: {error}");
                Err(StoreError::Internal(why))
            }
            (None, None) => Ok(None),
        }
    }
}
