//! Roots: load one, learn what it means, swap it. The transitions T1 to T6 of `lib.rs` are here, and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::DatabaseId;
use pagewire_server::store::StoreError;

use crate::Inner;
use crate::cells::{self, Decision, Intent, Participant, Root, State};
use crate::keys::{self, TransactionId};
use crate::kv::{KeyValueError, Swap, Tag, Unchanged, Value};
use crate::state::END;

/// How often a swap is tried against others. Each loss means that somebody else got on.
pub(crate) const ATTEMPTS: u32 = 24;
/// Waits between attempts grow up to this.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// An intent so old is in the way of a collection; before, the collection waits for it.
const INTENT_PATIENCE_MS: i64 = 60_000;

/// A root as it was read, and what it meant at that moment.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub tag: Tag,
    pub root: Root,
    /// What is known of the database, with the intent if that was decided to be.
    pub state: Arc<State>,
    /// The transaction of an intent that nobody had decided.
    pub pending: Option<Intent>,
}

/// What a change makes of a root.
pub(crate) enum Change<T> {
    /// The root has to be swapped.
    Swap(T),
    /// Nothing to do.
    Keep(T),
}

pub(crate) fn transaction_id(bytes: &[u8]) -> Result<TransactionId, StoreError> {
    bytes
        .try_into()
        .map_err(|_| StoreError::Corrupt("a transaction without an id".to_owned()))
}

pub(crate) fn database_id(bytes: &[u8]) -> Result<DatabaseId, StoreError> {
    DatabaseId::try_from(bytes).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// The error of a call that changes nothing, or whose effect nobody can see.
pub(crate) fn harmless(error: KeyValueError) -> StoreError {
    match error {
        KeyValueError::Unavailable(why) => StoreError::Unavailable(why),
        KeyValueError::Full(why) => StoreError::Full(why),
        KeyValueError::Failed(why) => StoreError::Internal(why),
    }
}

/// Before the next attempt: short at first, longer and less regular later, so that two that meet do not meet again.
pub(crate) async fn wait(attempt: u32) {
    if attempt == 0 {
        return;
    }
    let most = LONGEST_WAIT.min(Duration::from_millis(1) * 2_u32.saturating_pow(attempt.min(16)));
    let part = getrandom::u32().unwrap_or(u32::MAX / 2) / (u32::MAX / 1000);
    tokio::time::sleep(most * part / 1000).await;
}

impl Inner {
    /// The root as this server knew it last, or as it is; a removed database does not exist.
    pub(crate) async fn known(&self, database: DatabaseId) -> Result<Arc<Loaded>, StoreError> {
        match self.roots.get(&database) {
            Some(loaded) if loaded.pending.is_none() && !loaded.state.is_removed() => Ok(loaded),
            _ => self.fetch(database).await,
        }
    }

    /// The root as it is; a removed database does not exist.
    pub(crate) async fn fetch(&self, database: DatabaseId) -> Result<Arc<Loaded>, StoreError> {
        let loaded = self.fetch_any(database).await?;
        match loaded.state.is_removed() {
            true => Err(StoreError::DatabaseNotFound),
            false => Ok(loaded),
        }
    }

    /// The root as it is, also that of a removed database.
    pub(crate) async fn fetch_any(&self, database: DatabaseId) -> Result<Arc<Loaded>, StoreError> {
        let key = keys::root(database);
        let known = self.roots.get(&database);
        let mut value = match &known {
            None => self.kv.get(&key).await.map_err(harmless)?,
            Some(known) => match self.kv.get_if_changed(&key, &known.tag).await {
                // What was not decided then may be by now.
                Ok(Err(Unchanged)) if known.pending.is_none() => return Ok(Arc::clone(known)),
                Ok(Err(Unchanged)) => self.kv.get(&key).await.map_err(harmless)?,
                Ok(Ok(value)) => value,
                Err(error) => return Err(harmless(error)),
            },
        };
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            let Some(Value { content, tag }) = value else {
                self.roots.remove(&database);
                return Err(StoreError::DatabaseNotFound);
            };
            let root: Root = cells::decode(&key, &content)?;
            check(&key, &root)?;
            let decided = match &root.intent {
                None => Some(false),
                Some(intent) => self.decision(intent).await?,
            };
            if root.intent.is_some() {
                // I2: the decision may have been made, carried out and forgotten since the root was read, and what is found then
                // may be no more than a late call of one that was decided otherwise (K4). In all these cases the root is another one.
                match self.kv.get_if_changed(&key, &tag).await.map_err(harmless)? {
                    Err(Unchanged) => {}
                    Ok(changed) => {
                        value = changed;
                        continue;
                    }
                }
            }
            let state = match (decided, &root.intent) {
                (Some(true), Some(intent)) => intent.state.clone(),
                _ => root.state.clone(),
            };
            let state = state
                .ok_or_else(|| StoreError::Corrupt(format!("key {key}: there is no state")))?;
            let pending = decided.is_none().then(|| root.intent.clone()).flatten();
            let loaded = Loaded {
                tag,
                root,
                state: Arc::new(state),
                pending,
            };
            return Ok(self.remember(database, loaded));
        }
        Err(busy(database))
    }

    /// How the transaction of an intent was decided, if it was.
    async fn decision(&self, intent: &Intent) -> Result<Option<bool>, StoreError> {
        let key = keys::transaction(&transaction_id(&intent.transaction)?);
        let value = self.kv.get(&key).await.map_err(harmless)?;
        value
            .map(|value| cells::decode::<Decision>(&key, &value.content).map(|d| d.committed))
            .transpose()
    }

    /// T4: decides that a transaction does not commit, unless it has been decided.
    pub(crate) async fn abort(
        &self,
        transaction: &TransactionId,
        participants: &[Participant],
    ) -> Result<(), StoreError> {
        let decision = Decision {
            committed: false,
            participants: participants.to_vec(),
        };
        let key = keys::transaction(transaction);
        let mut last_error = None;
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            match self.kv.swap(&key, None, cells::encode(&decision)).await {
                // Done or Lost: it is decided.
                Ok(_) => return Ok(()),
                Err(KeyValueError::Unavailable(why)) => last_error = Some(why),
                Err(error) => return Err(self.failure(error)),
            }
        }
        Err(StoreError::Unavailable(last_error.unwrap_or_default()))
    }

    /// The root without an undecided intent in it: one that is there is aborted, unless that has to wait.
    pub(crate) async fn fetch_settled(
        &self,
        database: DatabaseId,
        patient: bool,
    ) -> Result<Arc<Loaded>, StoreError> {
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            let loaded = self.fetch_any(database).await?;
            let Some(intent) = &loaded.pending else {
                return Ok(loaded);
            };
            if patient && self.now_ms().saturating_sub(intent.time_ms) < INTENT_PATIENCE_MS {
                return Err(StoreError::Unavailable(format!(
                    "database {database} is part of a commit that is under way"
                )));
            }
            let id = transaction_id(&intent.transaction)?;
            self.abort(&id, &intent.participants).await?;
        }
        Err(busy(database))
    }

    /// T1, T3, T6: reads the root, changes it, swaps it; again where somebody was faster. What the change says in the end holds.
    ///
    /// The change may have happened although this is an error, and is then called again on a root that has it.
    pub(crate) async fn update<T: Send>(
        &self,
        database: DatabaseId,
        patient: bool,
        mut change: impl FnMut(&Loaded, &mut Root, &mut State) -> Result<Change<T>, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let mut last_error = None;
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            let loaded = self.fetch_settled(database, patient).await?;
            let mut root = next_root(&loaded.root);
            let mut state = State::clone(&loaded.state);
            let said = match change(&loaded, &mut root, &mut state)? {
                Change::Keep(said) => return Ok(said),
                Change::Swap(said) => said,
            };
            root.state = Some(state);
            match self.swap_root(database, &loaded.tag, root).await {
                Ok(Some(_)) => return Ok(said),
                Ok(None) => {}
                Err(KeyValueError::Unavailable(why)) => last_error = Some(why),
                Err(error) => return Err(self.failure(error)),
            }
        }
        Err(last_error.map_or_else(|| busy(database), StoreError::Unavailable))
    }

    /// Swaps a root and remembers it; `None` where somebody was faster.
    pub(crate) async fn swap_root(
        &self,
        database: DatabaseId,
        expected: &Tag,
        root: Root,
    ) -> Result<Option<Arc<Loaded>>, KeyValueError> {
        let key = keys::root(database);
        let content = cells::encode(&root);
        match self.kv.swap(&key, Some(expected), content).await? {
            Swap::Lost => Ok(None),
            Swap::Done(tag) => {
                let loaded = Loaded {
                    tag,
                    state: Arc::new(root.state.clone().unwrap_or_default()),
                    pending: root.intent.clone(),
                    root,
                };
                Ok(Some(self.remember(database, loaded)))
            }
        }
    }

    /// Keeps the newer of two: reads overtake each other.
    fn remember(&self, database: DatabaseId, loaded: Loaded) -> Arc<Loaded> {
        let loaded = Arc::new(loaded);
        let known = self.roots.get(&database);
        let newer = known.is_none_or(|known| {
            (known.root.generation, known.state.version)
                <= (loaded.root.generation, loaded.state.version)
        });
        if newer {
            self.roots.insert(database, Arc::clone(&loaded));
        }
        loaded
    }

    /// T5: carries out the decision that an intent commits. Whether the transaction committed: where the intent is gone, the
    /// state tells by the version that it made, if its record is still there.
    pub(crate) async fn finish(
        &self,
        database: DatabaseId,
        transaction: &TransactionId,
        made: impl Fn(&State) -> Option<bool> + Send,
    ) -> Result<bool, StoreError> {
        let mut last_error = None;
        for attempt in 0..ATTEMPTS {
            wait(attempt).await;
            let loaded = match self.roots.get(&database) {
                Some(known) if attempt == 0 => known,
                _ => self.fetch_any(database).await?,
            };
            let intent = loaded.root.intent.as_ref();
            let Some(intent) = intent.filter(|i| i.transaction[..] == transaction[..]) else {
                if attempt == 0 {
                    continue;
                }
                return made(&loaded.state).ok_or_else(|| {
                    StoreError::Internal("the record of the commit is gone".to_owned())
                });
            };
            // I6: as long as the intent is here its decision is not forgotten, so it is the one that the caller has seen.
            let mut root = next_root(&loaded.root);
            root.state = intent.state.clone();
            match self.swap_root(database, &loaded.tag, root).await {
                Ok(Some(_)) => return Ok(true),
                Ok(None) => {}
                Err(KeyValueError::Unavailable(why)) => last_error = Some(why),
                Err(error) => return Err(self.failure(error)),
            }
        }
        Err(last_error.map_or_else(|| busy(database), StoreError::Unavailable))
    }

    /// T6: forgets a decision that no root needs any more, and none ever can.
    pub(crate) async fn forget(&self, transaction: &TransactionId) -> Result<(), StoreError> {
        let key = keys::transaction(transaction);
        let Some(value) = self.kv.get(&key).await.map_err(harmless)? else {
            return Ok(());
        };
        let decision: Decision = cells::decode(&key, &value.content)?;
        for participant in &decision.participants {
            let database = database_id(&participant.database)?;
            let moved = self.update(database, false, |loaded, _, _| {
                let intent = loaded.root.intent.as_ref();
                let ours = intent.is_some_and(|i| i.transaction[..] == transaction[..]);
                Ok(
                    match loaded.root.generation > participant.generation && !ours {
                        true => Change::Keep(()),
                        false => Change::Swap(()),
                    },
                )
            });
            match moved.await {
                Ok(()) | Err(StoreError::DatabaseNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        self.kv
            .delete(&key)
            .await
            .map_err(|error| self.failure(error))
    }
}

/// Numbers that no root has are found here, not where they do harm: a checksum is right too where somebody has written something else on purpose.
pub(crate) fn check(key: &str, root: &Root) -> Result<(), StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt(format!("key {key}: {what}"));
    let marks = root.marks.iter().map(|mark| mark.generation);
    let mut generations = marks.chain([root.generation, root.horizon]);
    if generations.any(|generation| generation >= END) {
        return Err(corrupt("a generation that no root comes to"));
    }
    let intended = root.intent.iter().filter_map(|it| it.state.as_ref());
    let mut states = root.state.iter().chain(intended);
    states
        .try_for_each(State::check)
        .map_err(|error| match error {
            StoreError::Corrupt(what) => corrupt(&what),
            other => other,
        })
}

/// The root after this one: a generation on, without an intent.
pub(crate) fn next_root(root: &Root) -> Root {
    Root {
        generation: root.generation + 1,
        intent: None,
        ..root.clone()
    }
}

pub(crate) fn busy(database: DatabaseId) -> StoreError {
    StoreError::Unavailable(format!("others change database {database} all the time"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::{ArchivePart, Entry, HistoryPart, Mark, Record};

    fn right() -> Root {
        let state = State {
            version: 3,
            epoch: 2,
            page_size: 512,
            page_count: 1,
            records: vec![Record::default(); 3],
            entries: vec![Entry::default()],
            ..State::default()
        };
        Root {
            generation: 9,
            marks: vec![Mark::default()],
            state: Some(state),
            ..Root::default()
        }
    }

    /// Bug: such a root, with a checksum that is right, was read: what counted on from it panicked, or began at 0 again, so that "removed in version 0" was
    /// "not removed".
    #[test]
    fn numbers_that_no_root_has_are_refused() {
        check("k", &right()).unwrap();
        let mut with_intent = right();
        with_intent.intent = Some(Intent {
            state: with_intent.state.clone(),
            ..Intent::default()
        });
        check("k", &with_intent).unwrap();
        type Damage = fn(&mut State);
        let damages: [Damage; 9] = [
            |state| state.version = u64::MAX,
            |state| state.epoch = u64::MAX,
            |state| state.oldest = END,
            |state| state.page_size = 513,
            |state| state.records.push(Record::default()),
            |state| state.entries[0].bytes = u64::MAX,
            |state| {
                state.history.push(HistoryPart {
                    first: 2,
                    last: 1,
                    ..HistoryPart::default()
                })
            },
            |state| {
                state.archives.push(ArchivePart {
                    last: u64::MAX,
                    ..ArchivePart::default()
                })
            },
            |state| {
                state.archives.push(ArchivePart {
                    first: 1,
                    ..ArchivePart::default()
                })
            },
        ];
        let refused = |root: &Root| {
            let error = check("k", root).unwrap_err();
            assert!(
                matches!(&error, StoreError::Corrupt(why) if why.starts_with("key k: ")),
                "{error:?}"
            );
        };
        for damage in damages {
            let mut root = right();
            damage(root.state.as_mut().unwrap());
            refused(&root);
            let mut root = with_intent.clone();
            let intended = root.intent.as_mut().and_then(|it| it.state.as_mut());
            damage(intended.unwrap());
            refused(&root);
        }
        for damage in [
            |root: &mut Root| root.generation = u64::MAX,
            |root: &mut Root| root.horizon = END,
            |root: &mut Root| root.marks[0].generation = END,
        ] {
            let mut root = right();
            damage(&mut root);
            refused(&root);
        }
    }
}
