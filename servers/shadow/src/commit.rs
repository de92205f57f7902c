//! Commit: judge, put the segments, swap (T1). Several databases: `transaction.rs`.
//!
//! A small commit takes along the pages of the newest segments that are no larger than what it has so far: sizes double towards
//! the older ones, so there are few of them, and each page is written again once for each doubling at most. That costs no call: the
//! bytes are in memory since they were written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use pagewire_proto::{CommitId, DatabaseId, PageSize, Version};
use pagewire_server::store::{Commit, CommitOutcome, DatabaseCommit, PageWrite, StoreError};

use crate::Inner;
use crate::cells::{self, Archive, ArchivePart, Entry, History, HistoryPart, Record, State};
use crate::keys::{self, SegmentId};
use crate::kv::KeyValueError;
use crate::roots::{ATTEMPTS, Loaded, busy, harmless, next_root, wait};
use crate::segment::{self, Blobs, Built, Index, StoredBlob};
use crate::slots::{Slot, SlotInUse};
use crate::staging::Staging;
use crate::state::{Keep, NextVersion};

/// Pages of a commit and those that it takes along have so many bytes at most.
const ABSORBED_BYTES: u64 = 1 << 20;
/// Segments so small are kept in memory as a whole.
pub(crate) const WHOLE_BYTES: u64 = ABSORBED_BYTES + (256 << 10);
/// Segments that are put at a time.
const PUTS: usize = 4;

/// What is known about a commit in the states of its databases.
pub(crate) enum Judged {
    /// It can be applied.
    Open,
    /// It was applied.
    Repeated,
    /// It is refused, if the states are the newest.
    Refused(CommitOutcome),
}

/// What a commit has put for a database, to be named by a swap.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Of the root that was known when it was put (I7).
    generation: u64,
    entries: Vec<Entry>,
    absorbed: Vec<SegmentId>,
    history: Option<HistoryPart>,
    archive: Option<ArchivePart>,
}

/// A commit with its pages as they will be stored.
pub(crate) struct Draft {
    pub id: CommitId,
    pub parts: Vec<PartDraft>,
}

/// What a commit makes of one database.
pub(crate) struct PartDraft {
    pub commit: DatabaseCommit,
    pub pages: Vec<PageWrite>,
}

/// The error of a commit, of which an attempt before may have been applied or be applied later (K4): what stopped the next one says
/// nothing about that.
fn told(unknown: Option<&str>, error: StoreError) -> StoreError {
    match unknown {
        None => error,
        Some(why) => {
            StoreError::Internal(format!("the outcome is not known: {why}; then: {error}"))
        }
    }
}

impl Inner {
    pub(crate) async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let draft = draft(commit)?;
        let slots = self.slots_of(&draft);
        // In the order of ids, so that two commits never wait for each other.
        let mut writing = Vec::with_capacity(slots.len());
        for slot in slots.values() {
            writing.push(slot.writing.lock().await);
        }
        if self.has_failed() {
            return Err(has_failed());
        }
        let outcome = match draft.parts.len() {
            1 => self.commit_one(&draft, &slots).await,
            _ => self.commit_many(&draft, &slots).await,
        };
        drop(writing);
        if let Ok(CommitOutcome::Committed(_)) = &outcome {
            let mut stagings = self.stagings.lock();
            for part in &draft.parts {
                part.commit
                    .stagings
                    .iter()
                    .for_each(|id| stagings.forget(*id));
            }
        }
        outcome
    }

    fn slots_of(&self, draft: &Draft) -> BTreeMap<DatabaseId, SlotInUse> {
        let ids = draft.parts.iter().map(|part| part.commit.database);
        ids.map(|id| (id, self.slot(id))).collect()
    }

    async fn commit_one(
        &self,
        draft: &Draft,
        slots: &BTreeMap<DatabaseId, SlotInUse>,
    ) -> Result<CommitOutcome, StoreError> {
        let [part] = &draft.parts[..] else {
            return Err(StoreError::Internal("not one database".to_owned()));
        };
        let database = part.commit.database;
        let mut prepared = None;
        let mut unknown = None;
        for attempt in 0..ATTEMPTS {
            wait(attempt.saturating_sub(1)).await;
            let loaded = match attempt {
                0 => self.known(database).await,
                _ => self.fetch_settled(database, false).await.and_then(existing),
            };
            let loaded = match loaded {
                Err(StoreError::Unavailable(why)) if unknown.is_some() => {
                    unknown = Some(why);
                    continue;
                }
                loaded => loaded.map_err(|error| told(unknown.as_deref(), error))?,
            };
            let judged = self.judge(draft, &[&*loaded]).await;
            match judged.map_err(|error| told(unknown.as_deref(), error))? {
                Judged::Repeated => return Ok(committed(draft)),
                Judged::Refused(_) if attempt == 0 => continue,
                Judged::Refused(outcome) => return Ok(outcome),
                Judged::Open => {}
            }
            let fits = prepared.take().filter(|p: &Prepared| p.fits(&loaded));
            let ready = match fits {
                Some(prepared) => prepared,
                None => {
                    let prepared = self.prepare(part, &loaded).await;
                    prepared.map_err(|error| told(unknown.as_deref(), error))?
                }
            };
            let mut root = next_root(&loaded.root);
            let mut state = State::clone(&loaded.state);
            self.apply(draft.id, part, &ready, &mut state, slots);
            root.state = Some(state);
            match self.swap_root(database, &loaded.tag, root).await {
                Ok(Some(loaded)) => {
                    self.tidy_behind(database, &loaded.state);
                    return Ok(committed(draft));
                }
                Ok(None) => {}
                // It may have been applied: the next look tells, or the same again settles it.
                Err(KeyValueError::Unavailable(why)) => unknown = Some(why),
                Err(error) => return Err(told(unknown.as_deref(), self.failure(error))),
            }
            prepared = Some(ready);
        }
        Err(match unknown {
            Some(why) => StoreError::Internal(format!("the outcome is not known: {why}")),
            None => busy(database),
        })
    }

    /// C6, then C4 and C5 of the first database at fault.
    pub(crate) async fn judge(
        &self,
        draft: &Draft,
        states: &[&Loaded],
    ) -> Result<Judged, StoreError> {
        let mut repeated = true;
        for (part, loaded) in draft.parts.iter().zip(states) {
            let made = part.commit.base.next();
            repeated = repeated
                && made.get() <= loaded.state.version
                && self
                    .maker(part.commit.database, &loaded.state, made)
                    .await?
                    == Some(draft.id);
        }
        if repeated {
            return Ok(Judged::Repeated);
        }
        for (index, (part, loaded)) in draft.parts.iter().zip(states).enumerate() {
            let head = Version::new(loaded.state.version);
            if head != part.commit.base {
                return Ok(Judged::Refused(CommitOutcome::Conflict { index, head }));
            }
            let current = loaded.state.epoch();
            if current != part.commit.epoch {
                return Ok(Judged::Refused(CommitOutcome::LeaseLost { index, current }));
            }
        }
        Ok(Judged::Open)
    }

    /// Puts everything that a swap of this root will name.
    pub(crate) async fn prepare(
        &self,
        part: &PartDraft,
        loaded: &Loaded,
    ) -> Result<Prepared, StoreError> {
        let (commit, state) = (&part.commit, &*loaded.state);
        let generation = loaded.root.generation;
        let count = commit.page_count.get();
        let stagings =
            self.stagings
                .lock()
                .named(&commit.stagings, commit.database, commit.page_size)?;
        if let (Some(id), true) = (
            commit.stagings.first(),
            stagings
                .iter()
                .flat_map(|s| &s.segments)
                .any(|(e, _)| e.generation < loaded.root.horizon),
        ) {
            // So old that it counted as abandoned.
            return Err(StoreError::StagingUnknown(*id));
        }
        let mut blobs = unsegmented(&stagings);
        let own = part.pages.iter();
        blobs.extend(own.map(|page| (page.number.get(), StoredBlob::new(&page.content))));
        blobs.retain(|page, _| *page <= count);
        let mut entries = Vec::new();
        for (entry, index) in stagings.iter().flat_map(|staging| &staging.segments) {
            if entry.first <= count {
                self.indexes.insert(entry.id(), Arc::clone(index));
                entries.push(entry.clone());
            }
        }
        let mut absorbed = Vec::new();
        if entries.is_empty() && !blobs.is_empty() && state.page_size == commit.page_size.get() {
            absorbed = self.absorb(state, count, &mut blobs);
        }
        let built = segment::build(blobs, commit.page_size, generation)?;
        entries.extend(self.put_segments(commit.database, built).await?);
        let history = match state.overflowing_records() {
            None => None,
            Some(records) => Some(
                self.put_history(commit.database, state, records, generation)
                    .await?,
            ),
        };
        let keep = self.keep(Some(&self.slot(commit.database)));
        let archive = match state.overflowing_entries(&keep, self.options.root_entries)? {
            None => None,
            Some((first, last, archive)) => {
                let part = ArchivePart {
                    generation,
                    random: segment::random()?,
                    first,
                    last,
                };
                self.put_archive(commit.database, &part, archive).await?;
                Some(part)
            }
        };
        Ok(Prepared {
            generation,
            entries,
            absorbed,
            history,
            archive,
        })
    }

    /// Adds pages of the newest segments that are no larger than what there is, and names those segments.
    fn absorb(&self, state: &State, count: u32, blobs: &mut Blobs) -> Vec<SegmentId> {
        let mut absorbed = Vec::new();
        let mut bytes: u64 = blobs.values().map(weight).sum();
        for entry in state.entries_of(state.version) {
            let fits =
                entry.total_bytes() <= bytes && bytes + entry.total_bytes() <= ABSORBED_BYTES;
            // Where two entries are of one segment neither is of all of it.
            let once = state
                .entries
                .iter()
                .filter(|e| e.is_live() && e.id() == entry.id())
                .count()
                == 1;
            let (Some(segment), Some(index)) = (
                self.segments.get(&entry.id()).filter(|_| fits && once),
                self.indexes.get(&entry.id()),
            ) else {
                break;
            };
            for place in index.within(entry.first, entry.last.min(count)) {
                let Some(stored) = segment.get(place.range()) else {
                    return absorbed;
                };
                let blob = place.blob(segment.slice_ref(stored), entry.written);
                blobs.entry(place.page).or_insert(blob);
            }
            bytes = blobs.values().map(weight).sum();
            absorbed.push(entry.id());
        }
        absorbed
    }

    /// Puts segments; what they are named by.
    pub(crate) async fn put_segments(
        &self,
        database: DatabaseId,
        built: Vec<Built>,
    ) -> Result<Vec<Entry>, StoreError> {
        let put = |segment: Built| async move {
            let id = segment.entry.id();
            let key = keys::segment(database, id);
            let put = self.kv.put(&key, segment.bytes.clone());
            put.await.map_err(|error| self.failure(error))?;
            self.indexes.insert(id, Arc::new(segment.index));
            if segment.entry.total_bytes() <= WHOLE_BYTES {
                self.segments.insert(id, segment.bytes);
            }
            Ok::<_, StoreError>(segment.entry)
        };
        let puts: Vec<_> = built.into_iter().map(put).collect();
        stream::iter(puts).buffered(PUTS).try_collect().await
    }

    async fn put_history(
        &self,
        database: DatabaseId,
        state: &State,
        records: &[Record],
        generation: u64,
    ) -> Result<HistoryPart, StoreError> {
        let first = state.first_record();
        let part = HistoryPart {
            generation,
            random: segment::random()?,
            first,
            last: first + records.len() as u64 - 1,
            time_ms: records.last().map_or(0, |record| record.time_ms),
        };
        let history = History {
            records: records.to_vec(),
        };
        let key = keys::segment(database, part.id());
        let put = self.kv.put(&key, cells::encode(&history));
        put.await.map_err(|error| self.failure(error))?;
        Ok(part)
    }

    async fn put_archive(
        &self,
        database: DatabaseId,
        part: &ArchivePart,
        archive: Archive,
    ) -> Result<(), StoreError> {
        let key = keys::segment(database, part.id());
        let put = self.kv.put(&key, cells::encode(&archive));
        put.await.map_err(|error| self.failure(error))?;
        self.archives.insert(part.id(), Arc::new(archive));
        Ok(())
    }

    /// Makes the next version in a copy of the state.
    pub(crate) fn apply(
        &self,
        id: CommitId,
        part: &PartDraft,
        prepared: &Prepared,
        state: &mut State,
        slots: &BTreeMap<DatabaseId, SlotInUse>,
    ) {
        let next = NextVersion {
            commit: id,
            page_size: part.commit.page_size,
            page_count: part.commit.page_count,
            entries: prepared.entries.clone(),
            absorbed: prepared.absorbed.clone(),
            history: prepared.history.clone(),
            archive: prepared.archive.clone(),
            time_ms: self.now_ms(),
        };
        let slot = slots.get(&part.commit.database);
        state.apply(next, &self.keep(slot.map(|slot| &**slot)));
    }

    /// What has to stay of a database beside its head.
    pub(crate) fn keep(&self, slot: Option<&Slot>) -> Keep {
        let replaced = i64::try_from(self.options.keep_replaced.as_millis()).unwrap_or(i64::MAX);
        let (floor, pins) = slot.map_or((None, Vec::new()), |slot| {
            let protection = slot.protection.lock();
            let pins = protection.pins.iter().map(|pin| pin.get()).collect();
            (protection.floor.map(Version::get), pins)
        });
        Keep {
            floor,
            pins,
            replaced_after_ms: self.now_ms().saturating_sub(replaced),
        }
    }

    /// The error of a call that writes, be it for a collection: a medium that failed is not trusted any more (C17).
    pub(crate) fn failure(&self, error: KeyValueError) -> StoreError {
        if let KeyValueError::Failed(why) = &error {
            tracing::error!(%why, "the medium failed: nothing is committed before the store is opened anew");
            self.failed.store(true, Ordering::Release);
        }
        harmless(error)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

impl Prepared {
    /// Whether a swap of this root may name it as it is.
    pub(crate) fn fits(&self, loaded: &Loaded) -> bool {
        let state = &loaded.state;
        let is_live = |id: &SegmentId| state.entries.iter().any(|e| e.is_live() && e.id() == *id);
        let part = state.overflowing_records().map(|_| state.first_record());
        let horizon = loaded.root.horizon;
        self.generation >= horizon
            // Staged segments may be older than the root that was known when the commit was prepared (I7).
            && self.entries.iter().all(|entry| entry.generation >= horizon)
            && self.absorbed.iter().all(is_live)
            && self.history.as_ref().map(|part| part.first) == part
            // None of its versions was given up meanwhile, so what it names is named.
            && self.archive.as_ref().is_none_or(|part| part.first >= state.oldest)
    }
}

/// Staged pages that are in no segment: the last of each holds, unless a segment of a later staging has it.
fn unsegmented(stagings: &[Staging]) -> Blobs {
    let mut blobs = Blobs::new();
    for staging in stagings {
        let later: Vec<&Index> = staging.segments.iter().map(|(_, index)| &**index).collect();
        blobs.retain(|page, _| later.iter().all(|index| index.find(*page).is_none()));
        blobs.extend(staging.pages.clone());
    }
    blobs
}

fn draft(commit: Commit) -> Result<Draft, StoreError> {
    if commit.databases.is_empty() {
        return Err(StoreError::Limit("a commit names no database".to_owned()));
    }
    let mut seen = std::collections::HashSet::new();
    let mut parts = Vec::with_capacity(commit.databases.len());
    for mut part in commit.databases {
        if !seen.insert(part.database) {
            return Err(StoreError::Limit(
                "a commit names a database twice".to_owned(),
            ));
        }
        if part.restore.is_some() {
            return Err(StoreError::Unsupported("restores"));
        }
        let pages = std::mem::take(&mut part.pages);
        parts.push(PartDraft {
            commit: part,
            pages,
        });
    }
    Ok(Draft {
        id: commit.id,
        parts,
    })
}

fn weight(blob: &StoredBlob) -> u64 {
    (blob.bytes.len() + segment::INDEX_ENTRY_BYTES) as u64
}

pub(crate) fn committed(draft: &Draft) -> CommitOutcome {
    let versions = draft.parts.iter().map(|part| part.commit.base.next());
    CommitOutcome::Committed(versions.collect())
}

pub(crate) fn existing(loaded: Arc<Loaded>) -> Result<Arc<Loaded>, StoreError> {
    check_exists(&loaded.state).map(|()| loaded)
}

pub(crate) fn check_exists(state: &State) -> Result<(), StoreError> {
    match state.is_removed() {
        true => Err(StoreError::DatabaseNotFound),
        false => Ok(()),
    }
}

fn has_failed() -> StoreError {
    StoreError::Internal("the medium has failed: the store has to be opened anew".to_owned())
}

/// The page size of an entry; `Corrupt` where it can't be one.
pub(crate) fn page_size_of(entry: &Entry) -> Result<PageSize, StoreError> {
    PageSize::try_from(entry.page_size).map_err(|error| StoreError::Corrupt(error.to_string()))
}
