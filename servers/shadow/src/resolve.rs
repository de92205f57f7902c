//! What became of a commit (C6, C13): by the record of the version that it made, or never made from here on.

use pagewire_proto::{CommitId, DatabaseId, Version};
use pagewire_server::store::{Resolution, Resolve, StoreError};

use crate::Inner;
use crate::cells::{self, History, Record, State};
use crate::commit::check_exists;
use crate::keys;
use crate::roots::{Change, harmless};

impl Inner {
    /// The commit that made a version of which the record is kept.
    pub(crate) async fn maker(
        &self,
        database: DatabaseId,
        state: &State,
        version: Version,
    ) -> Result<Option<CommitId>, StoreError> {
        let version = version.get();
        let id = |record: &Record| CommitId::try_from(&record.commit[..]).ok();
        if let Some(record) = state.record(version) {
            return Ok(id(record));
        }
        let mut parts = state.history.iter();
        let Some(part) = parts.find(|part| (part.first..=part.last).contains(&version)) else {
            return Ok(None);
        };
        let key = keys::segment(database, part.id());
        let bytes = match self.segments.get(&part.id()) {
            Some(bytes) => bytes,
            None => match self.kv.get(&key).await.map_err(harmless)? {
                // The state was not the newest: what is collected was out of its time.
                None => return Ok(None),
                Some(value) => value.content,
            },
        };
        let history: History = cells::decode(&key, &bytes)?;
        self.segments.insert(part.id(), bytes);
        let index = usize::try_from(version - part.first).unwrap_or(usize::MAX);
        Ok(history.records.get(index).and_then(id))
    }

    pub(crate) async fn resolve(&self, resolve: Resolve) -> Result<Resolution, StoreError> {
        let Some((first, base, epoch)) = resolve.participants.first().copied() else {
            return Err(StoreError::Limit("a commit names no database".to_owned()));
        };
        let slot = self.slot(first);
        let writing = slot.writing.lock().await;
        let made = base.next();
        // Whether the epoch was advanced; an epoch that this call has advanced is another one when it looks again.
        let exists = self
            .update(first, false, |_, _, state| {
                check_exists(state)?;
                if made.get() <= state.version {
                    return Ok(Change::Keep(true));
                }
                if state.epoch() != epoch {
                    return Ok(Change::Keep(false));
                }
                state.epoch += 1;
                Ok(Change::Swap(false))
            })
            .await?;
        drop(writing);
        if exists {
            let loaded = self.fetch(first).await?;
            match self.maker(first, &loaded.state, made).await? {
                None => {
                    return Ok(Resolution::Unknown(format!(
                        "the record of version {made} is not kept any more"
                    )));
                }
                Some(id) if id == resolve.id => {
                    let versions = resolve.participants.iter().map(|(_, base, _)| base.next());
                    return Ok(Resolution::Committed(versions.collect()));
                }
                Some(_) => {}
            }
        }
        let mut current = Vec::with_capacity(resolve.participants.len());
        for (id, _, _) in &resolve.participants {
            current.push(match self.fetch(*id).await {
                Ok(loaded) => loaded.state.epoch(),
                Err(StoreError::DatabaseNotFound) => pagewire_proto::Epoch::NONE,
                Err(error) => return Err(error),
            });
        }
        Ok(Resolution::Aborted { current })
    }
}
