//! Pages as of a version: which segment, by the indexes; then as few ranged gets as may be.
//!
//! What a root says of a version stays true, but a later one may have moved the pages, and what nobody names is collected: where
//! a segment is gone the root is read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use pagewire_proto::limits::MAX_CHANGED_PAGES;
use pagewire_proto::{Changes, DatabaseId, PageNumber, Snapshot, Version};
use pagewire_server::store::{StoreError, StoredPage};

use crate::Inner;
use crate::cells::{self, Archive, ArchivePart, Entry, State};
use crate::commit::page_size_of;
use crate::keys::{self, SegmentId};
use crate::roots::harmless;
use crate::segment::{INDEX_ENTRY_BYTES, Index, Place};
use crate::state::entries_of;

/// Segments so small are read as a whole: their other pages are likely to be asked for.
const SMALL_BYTES: u64 = 128 << 10;
/// Pages of a segment with less than this between them are read at once.
const GAP_BYTES: usize = 64 << 10;
/// Calls under way for one read.
const CALLS: usize = 16;
/// How often a root is read again because what it names is gone.
const ATTEMPTS: usize = 4;

/// Why a segment was not read.
enum Miss {
    /// It was collected.
    Gone(SegmentId),
    Failed(StoreError),
}

/// A page that was found in an entry.
#[derive(Clone, Copy)]
struct Found<'a> {
    entry: &'a Entry,
    place: Place,
}

impl Inner {
    pub(crate) async fn read(
        &self,
        database: DatabaseId,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, StoreError> {
        let mut gone = None;
        for attempt in 0..ATTEMPTS {
            let loaded = match attempt {
                0 => self.known(database).await?,
                _ => self.fetch(database).await?,
            };
            if attempt == 0 && version.get() > loaded.state.version {
                // Another server has made it.
                continue;
            }
            loaded.state.check_readable(version)?;
            match self.pages_of(database, &loaded.state, version, pages).await {
                Ok(pages) => return Ok(pages),
                Err(Miss::Failed(error)) => return Err(error),
                Err(Miss::Gone(id)) => gone = Some(id),
            }
        }
        Err(gone.map_or(StoreError::VersionGone { version }, |id| {
            StoreError::Corrupt(format!(
                "segment {:016x}-{:016x} of database {database} is named, but not there",
                id.generation, id.random
            ))
        }))
    }

    async fn pages_of(
        &self,
        database: DatabaseId,
        state: &State,
        version: Version,
        pages: &[PageNumber],
    ) -> Result<Vec<StoredPage>, Miss> {
        let archive = self.archive_of(database, state, version).await?;
        let entries = archive.as_ref().map_or(&state.entries, |a| &a.entries);
        let found = self.find(database, entries, version.get(), pages).await?;
        let mut wanted: BTreeMap<SegmentId, Vec<Found<'_>>> = BTreeMap::new();
        for found in found.values() {
            wanted.entry(found.entry.id()).or_default().push(*found);
        }
        let mut contents = Vec::with_capacity(wanted.len());
        for found in wanted.into_values() {
            contents.push(self.contents(database, version, found));
        }
        let contents: Vec<BTreeMap<u32, StoredPage>> =
            stream::iter(contents).buffered(CALLS).try_collect().await?;
        let contents: BTreeMap<_, _> = contents.into_iter().flatten().collect();
        let nothing = StoredPage {
            content: Bytes::new(),
            version: Version::ZERO,
        };
        let page = |page: &PageNumber| contents.get(&page.get()).unwrap_or(&nothing).clone();
        Ok(pages.iter().map(page).collect())
    }

    /// The archive that has the entries of a version; `None` where the root has them itself.
    async fn archive_of(
        &self,
        database: DatabaseId,
        state: &State,
        version: Version,
    ) -> Result<Option<Arc<Archive>>, Miss> {
        match state.archive_of(version.get()) {
            None => Ok(None),
            Some(part) => self.archive(database, part).await.map(Some),
        }
    }

    async fn archive(
        &self,
        database: DatabaseId,
        part: &ArchivePart,
    ) -> Result<Arc<Archive>, Miss> {
        let id = part.id();
        if let Some(archive) = self.archives.get(&id) {
            return Ok(archive);
        }
        let key = keys::segment(database, id);
        let value = self.kv.get(&key).await.map_err(harmless);
        let value = value.map_err(Miss::Failed)?.ok_or(Miss::Gone(id))?;
        let archive: Archive = cells::decode(&key, &value.content).map_err(Miss::Failed)?;
        let archive = Arc::new(archive);
        self.archives.insert(id, Arc::clone(&archive));
        Ok(archive)
    }

    pub(crate) async fn read_archive(
        &self,
        database: DatabaseId,
        part: &ArchivePart,
    ) -> Result<Arc<Archive>, StoreError> {
        let archive = self.archive(database, part).await;
        archive.map_err(Miss::into_error)
    }

    /// Which entry holds which page.
    async fn find<'a>(
        &self,
        database: DatabaseId,
        entries: &'a [Entry],
        version: u64,
        pages: &[PageNumber],
    ) -> Result<BTreeMap<u32, Found<'a>>, Miss> {
        // At once, although the first may have them all: a round trip costs more than an index.
        let mut indexes = Vec::new();
        for entry in entries_of(entries, version) {
            if pages.iter().any(|page| entry.has(page.get())) {
                indexes.push(async move {
                    let index = self.index(database, entry).await?;
                    Ok::<_, Miss>((entry, index))
                });
            }
        }
        let indexes: Vec<_> = stream::iter(indexes).buffered(CALLS).try_collect().await?;
        let mut found = BTreeMap::new();
        for page in pages {
            let mut holding = indexes.iter().filter(|(entry, _)| entry.has(page.get()));
            let place = holding.find_map(|(entry, index)| {
                let place = index.find(page.get())?;
                Some(Found { entry, place })
            });
            if let Some(place) = place {
                found.insert(page.get(), place);
            }
        }
        Ok(found)
    }

    pub(crate) async fn read_index(
        &self,
        database: DatabaseId,
        entry: &Entry,
    ) -> Result<Arc<Index>, StoreError> {
        self.index(database, entry).await.map_err(Miss::into_error)
    }

    async fn index(&self, database: DatabaseId, entry: &Entry) -> Result<Arc<Index>, Miss> {
        let id = entry.id();
        if let Some(index) = self.indexes.get(&id) {
            return Ok(index);
        }
        let bytes = if entry.total_bytes() <= SMALL_BYTES {
            let whole = self.whole(database, entry).await?;
            whole.slice(
                usize::try_from(entry.bytes)
                    .unwrap_or(whole.len())
                    .min(whole.len())..,
            )
        } else {
            let length = u64::from(entry.pages) * INDEX_ENTRY_BYTES as u64;
            self.range(database, id, entry.bytes, length).await?
        };
        let index = Arc::new(Index::decode(&bytes, entry).map_err(Miss::Failed)?);
        self.indexes.insert(id, Arc::clone(&index));
        Ok(index)
    }

    /// A small segment.
    async fn whole(&self, database: DatabaseId, entry: &Entry) -> Result<Bytes, Miss> {
        let id = entry.id();
        if let Some(bytes) = self.segments.get(&id) {
            return Ok(bytes);
        }
        let bytes = self.range(database, id, 0, entry.total_bytes()).await?;
        self.segments.insert(id, bytes.clone());
        Ok(bytes)
    }

    async fn range(
        &self,
        database: DatabaseId,
        id: SegmentId,
        offset: u64,
        length: u64,
    ) -> Result<Bytes, Miss> {
        let key = keys::segment(database, id);
        let bytes = self.kv.get_range(&key, offset, length).await;
        let bytes = bytes.map_err(|error| Miss::Failed(harmless(error)))?;
        bytes.ok_or(Miss::Gone(id))
    }

    /// The stored bytes of places of one segment, which are ascending.
    pub(crate) async fn stored(
        &self,
        database: DatabaseId,
        entry: &Entry,
        places: &[Place],
    ) -> Result<Vec<Bytes>, StoreError> {
        let stored = self.stored_bytes(database, entry, places).await;
        stored.map_err(Miss::into_error)
    }

    async fn stored_bytes(
        &self,
        database: DatabaseId,
        entry: &Entry,
        places: &[Place],
    ) -> Result<Vec<Bytes>, Miss> {
        if entry.total_bytes() <= SMALL_BYTES || self.segments.peek(&entry.id()).is_some() {
            let whole = self.whole(database, entry).await?;
            return Ok(places.iter().map(|place| cut(&whole, 0, *place)).collect());
        }
        let mut groups: Vec<Vec<Place>> = Vec::new();
        for place in places {
            match groups.last_mut() {
                Some(group)
                    if group.last().is_some_and(|last| {
                        place.range().start.saturating_sub(last.range().end) <= GAP_BYTES
                    }) =>
                {
                    group.push(*place);
                }
                _ => groups.push(vec![*place]),
            }
        }
        let read = |group: Vec<Place>| async move {
            let start = group.first().map_or(0, |place| place.range().start);
            let end = group.last().map_or(0, |place| place.range().end);
            let bytes = match end > start {
                true => {
                    let length = (end - start) as u64;
                    self.range(database, entry.id(), start as u64, length)
                        .await?
                }
                false => Bytes::new(),
            };
            let cut = |place: &Place| cut(&bytes, start, *place);
            Ok::<_, Miss>(group.iter().map(cut).collect::<Vec<_>>())
        };
        let reads: Vec<_> = groups.into_iter().map(read).collect();
        let parts: Vec<_> = stream::iter(reads).buffered(CALLS).try_collect().await?;
        Ok(parts.into_iter().flatten().collect())
    }

    async fn contents(
        &self,
        database: DatabaseId,
        version: Version,
        found: Vec<Found<'_>>,
    ) -> Result<BTreeMap<u32, StoredPage>, Miss> {
        let Some(entry) = found.first().map(|found| found.entry) else {
            return Ok(BTreeMap::new());
        };
        let page_size = page_size_of(entry).map_err(Miss::Failed)?;
        let places: Vec<_> = found.iter().map(|found| found.place).collect();
        let stored = self.stored_bytes(database, entry, &places).await?;
        let mut pages = BTreeMap::new();
        for (found, stored) in found.iter().zip(stored) {
            let place = found.place;
            let Some(content) = place.content(&stored, page_size) else {
                // Not to be found damaged for ever because of what is cached.
                self.segments.remove(&entry.id());
                return Err(Miss::Failed(StoreError::Corrupt(format!(
                    "page {} of database {database} at version {version}: its checksum differs",
                    place.page
                ))));
            };
            let written = match place.version {
                0 => found.entry.written,
                version => version,
            };
            let version = Version::new(written);
            pages.insert(place.page, StoredPage { content, version });
        }
        Ok(pages)
    }

    pub(crate) async fn changes(
        &self,
        database: DatabaseId,
        since: Version,
    ) -> Result<(Snapshot, Changes), StoreError> {
        let loaded = self.fetch(database).await?;
        let state = &loaded.state;
        let head = state.snapshot()?;
        let changes = self.changed(database, state, since.get()).await?;
        Ok((head, changes.map_or(Changes::All, Changes::Pages)))
    }

    /// Pages that may differ between a version and the head; `None` for all.
    async fn changed(
        &self,
        database: DatabaseId,
        state: &State,
        since: u64,
    ) -> Result<Option<Vec<PageNumber>>, StoreError> {
        if since == state.version {
            return Ok(Some(Vec::new()));
        }
        let (Some((page_size, mut most)), true) = (state.size_of(since), since < state.version)
        else {
            return Ok(None);
        };
        let mut fewest = most;
        for version in since + 1..=state.version {
            match state.size_of(version) {
                Some((size, count)) if size == page_size => {
                    fewest = fewest.min(count);
                    most = most.max(count);
                }
                _ => return Ok(None),
            }
        }
        let room = MAX_CHANGED_PAGES as u32;
        // Pages that went away and may have come back, and those beyond the end of one of the two.
        let mut pages: std::collections::BTreeSet<u32> = match most - fewest > room {
            true => return Ok(None),
            false => (fewest + 1..=most).collect(),
        };
        for entry in state.entries_of(state.version).filter(|e| e.newest > since) {
            let index = match self.index(database, entry).await {
                Ok(index) => index,
                Err(Miss::Gone(_)) => return Ok(None),
                Err(Miss::Failed(error)) => return Err(error),
            };
            let newer = |place: &&Place| match place.version {
                0 => entry.written > since,
                version => version > since,
            };
            let places = index.within(entry.first, entry.last).iter().filter(newer);
            pages.extend(places.map(|place| place.page));
            if pages.len() > MAX_CHANGED_PAGES {
                return Ok(None);
            }
        }
        let numbers = pages.into_iter().map(PageNumber::try_from);
        Ok(numbers.collect::<Result<_, _>>().ok())
    }

    pub(crate) async fn locate(
        &self,
        database: DatabaseId,
        page: PageNumber,
        version: Version,
    ) -> Result<Option<(String, usize)>, StoreError> {
        let loaded = self.fetch(database).await?;
        let pages = [page];
        let state = &loaded.state;
        let archive = self.archive_of(database, state, version).await;
        let archive = archive.map_err(Miss::into_error)?;
        let entries = archive.as_ref().map_or(&state.entries, |a| &a.entries);
        let found = self.find(database, entries, version.get(), &pages);
        let found = found.await.map_err(Miss::into_error)?;
        Ok(found.get(&page.get()).map(|found| {
            let key = keys::segment(database, found.entry.id());
            (key, found.place.range().start)
        }))
    }
}

impl Miss {
    fn into_error(self) -> StoreError {
        match self {
            Miss::Gone(_) => {
                StoreError::Unavailable("a segment was collected meanwhile".to_owned())
            }
            Miss::Failed(error) => error,
        }
    }
}

/// The bytes of a place; fewer, which its checksum tells, where the segment is too short.
fn cut(bytes: &Bytes, start: usize, place: Place) -> Bytes {
    let range = place.range();
    let from = range.start.saturating_sub(start).min(bytes.len());
    let to = range.end.saturating_sub(start).min(bytes.len());
    bytes.slice(from..to)
}
