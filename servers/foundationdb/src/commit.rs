//! Commits: one transaction that reads the heads and the epochs, judges, and makes the versions.
//!
//! What does not fit into it is written ahead before (`staging.rs`), in transactions of its own; the one that makes the versions names the
//! attempts. It is the only one that anybody can see, and its conflict ranges are: read, the heads, the epochs, the attempts and
//! a restored record; written, the same and the new records. Page rows are written without any: only a head makes them count.
//!
//! * **M1** C4, C5 and C6 are decided on rows that the same transaction read firmly. A round that is repeated decides anew; so a
//!   commit whose answer was lost finds its own id in the record of its version.
//! * **M2** A head changes only in a commit, which writes the record of its version, and with its removal, which takes the epoch away; but for one
//!   without any version (REM2).
//! * **M3** Who made the newest version of a database some moments ago need not ask for it (`known.rs`): the transaction reads nothing. It has the
//!   epoch and the record of the version that it makes in its conflict ranges, from before the version of the cluster that made the newest one: by M2
//!   whoever has fenced, committed or removed since, through whatever server, makes it fail, and it is judged by M1 from its beginning. *From before*, since
//!   transactions of one batch have one version of the cluster: a fence that came right behind that commit has the same. What is
//!   known decides only that a version is made, never that none is.

mod apply;

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::future::try_join_all;
use pagewire_proto::{CommitId, DatabaseId, Epoch, PageCount, PageNumber, StagingId, Version};
use pagewire_server::store::{Commit, CommitOutcome, DatabaseCommit, StoreError};
use tokio::sync::OwnedMutexGuard;

use crate::Inner;
use crate::engine::{Fail, Read, Rounds, Txn, transact};
use crate::keys::{Key, layer_of};
use crate::known::Known;
use crate::staging::{Ahead, Pages, Staging, encode, weight};
use crate::values::Database;

/// Pages that are copied from one attempt to another together.
const COPIED_PAGES: usize = 256;

/// What a commit makes of a database.
struct Part {
    /// Without its pages.
    commit: DatabaseCommit,
    own: Pages,
    /// Pages that go into the transaction: its own, and staged ones that were not written ahead.
    pages: Pages,
    /// What was written ahead, in the order of the layers.
    layers: Vec<Ahead>,
    /// Serial numbers among them that only this commit knows of.
    made: Vec<u64>,
}

/// A staging in use, or its absence.
type Named = Result<OwnedMutexGuard<Staging>, StagingId>;

impl Inner {
    pub(crate) async fn commit(&self, commit: Commit) -> Result<CommitOutcome, StoreError> {
        let Commit { id, databases } = commit;
        let distinct: HashSet<_> = databases.iter().map(|part| part.database).collect();
        if distinct.len() != databases.len() || databases.is_empty() {
            let why = "a commit names no database, or one twice";
            return Err(StoreError::Limit(why.to_owned()));
        }
        let mut parts = Vec::with_capacity(databases.len());
        for mut commit in databases {
            let pages = std::mem::take(&mut commit.pages);
            let own = encode(pages, commit.page_size).await?;
            parts.push(Part {
                commit,
                own,
                pages: Pages::new(),
                layers: Vec::new(),
                made: Vec::new(),
            });
        }
        let named = self.named(&parts).await;
        let unknown = named
            .iter()
            .flatten()
            .find_map(|staging| staging.as_ref().err());
        let result = match unknown {
            Some(staging) => self.refuse(id, &parts, *staging).await,
            None => {
                let prepared = self.prepare(id, &mut parts, &named).await;
                match prepared {
                    Ok(None) => self.flip(id, &parts).await,
                    Ok(Some(outcome)) => Ok(outcome),
                    Err(error) => Err(error),
                }
            }
        };
        let committed = matches!(result, Ok(CommitOutcome::Committed(_)));
        for part in &parts {
            for serial in part.made.iter().filter(|_| !committed) {
                self.abandon(part.commit.database, *serial);
            }
        }
        if committed {
            for (part, mut stagings) in parts.iter().zip(named) {
                for staging in stagings.iter_mut().flatten() {
                    // What was written ahead and did not become part of the version.
                    if let Some(ahead) = staging.ahead.take()
                        && !part.layers.iter().any(|layer| layer.serial == ahead.serial)
                    {
                        self.abandon(part.commit.database, ahead.serial);
                    }
                }
                let mut known = self.stagings.lock();
                for id in &part.commit.stagings {
                    known.remove(id);
                }
            }
        }
        result
    }

    /// The stagings of each part, which nobody else may use meanwhile. One that is named twice is known once.
    async fn named(&self, parts: &[Part]) -> Vec<Vec<Named>> {
        let places = parts.iter().enumerate().flat_map(|(index, part)| {
            let ids = part.commit.stagings.iter().enumerate();
            ids.map(move |(place, id)| (*id, index, place))
        });
        // In one order, so that two commits never wait for each other.
        let mut places: Vec<_> = places.collect();
        places.sort_unstable_by_key(|(id, ..)| *id.as_bytes());
        let unknown = |part: &Part| part.commit.stagings.iter().map(|id| Err(*id)).collect();
        let mut named: Vec<Vec<Named>> = parts.iter().map(unknown).collect();
        let mut last = None;
        for (id, index, place) in places {
            let commit = &parts[index].commit;
            if last.replace(id) != Some(id)
                && let Some(staging) = self.staging(id, commit.database, commit.page_size).await
            {
                named[index][place] = Ok(staging);
            }
        }
        named
    }

    /// The answer where a staging is not known: what the heads and epochs say comes first.
    async fn refuse(
        &self,
        id: CommitId,
        parts: &[Part],
        staging: StagingId,
    ) -> Result<CommitOutcome, StoreError> {
        transact!(self.engine, |txn| {
            match txn.judge(id, parts).await?.1 {
                Some(outcome) => Ok(outcome),
                None => Err(StoreError::StagingUnknown(staging).into()),
            }
        })
    }

    /// Brings everything that does not fit into one transaction into the cluster; or an outcome that is certain before.
    async fn prepare(
        &self,
        id: CommitId,
        parts: &mut [Part],
        named: &[Vec<Named>],
    ) -> Result<Option<CommitOutcome>, StoreError> {
        let mut fits = true;
        let mut bytes = 0;
        for (part, stagings) in parts.iter_mut().zip(named) {
            part.collect(stagings);
            fits &= part.layers_fit();
            bytes += weight(&part.pages);
        }
        if fits && bytes <= self.options.commit_bytes {
            return Ok(None);
        }
        let outcome = transact!(self.engine, |txn| Ok(txn.judge(id, parts).await?.1))?;
        if outcome.is_some() {
            return Ok(outcome);
        }
        for part in parts {
            if !part.layers_fit() {
                self.copy_layers(part).await?;
            }
            if bytes > self.options.commit_bytes && !part.pages.is_empty() {
                let (database, version) = (part.commit.database, part.commit.base.next());
                let mut ahead = None;
                let pages = std::mem::take(&mut part.pages);
                let written = self
                    .write_ahead(database, &mut ahead, Some(version), &pages)
                    .await;
                if let Some(ahead) = ahead {
                    part.made.push(ahead.serial);
                    part.layers.push(ahead);
                }
                written?;
            }
        }
        Ok(None)
    }

    /// Writes ahead anew what was written ahead for another version, or in another order.
    async fn copy_layers(&self, part: &mut Part) -> Result<(), StoreError> {
        let (database, version) = (part.commit.database, part.commit.base.next());
        let mut ahead = None;
        let layers = std::mem::take(&mut part.layers);
        let count = part.commit.page_count;
        let copied = self.copy_all(database, &layers, count, &mut ahead, version);
        let copied = copied.await;
        // Whether all of it was copied or not: who fails gives up what was made.
        if let Some(ahead) = ahead {
            part.made.push(ahead.serial);
            part.layers.push(ahead);
        }
        copied
    }

    /// Copies what holds of some layers, up to the first error.
    async fn copy_all(
        &self,
        database: DatabaseId,
        layers: &[Ahead],
        count: PageCount,
        to: &mut Option<Ahead>,
        version: Version,
    ) -> Result<(), StoreError> {
        for (index, layer) in layers.iter().enumerate() {
            let later = &layers[index + 1..];
            let lasting = |page: &&PageNumber| {
                let again = later.iter().any(|layer| layer.pages.contains_key(page));
                !again && count.has(**page)
            };
            let pages: Vec<_> = layer.pages.keys().filter(lasting).copied().collect();
            for pages in pages.chunks(COPIED_PAGES) {
                self.copy_pages(database, layer, pages, to, version).await?;
            }
        }
        Ok(())
    }

    async fn copy_pages(
        &self,
        database: DatabaseId,
        from: &Ahead,
        pages: &[PageNumber],
        to: &mut Option<Ahead>,
        version: Version,
    ) -> Result<(), StoreError> {
        let bodies = transact!(self.engine, |txn| {
            let body = |page: &PageNumber| {
                let key = Key::Page(database, *page, from.version, layer_of(from.serial));
                async move { txn.get(&key, Read::Loose).await }
            };
            try_join_all(pages.iter().map(body)).await
        })?;
        let mut copied = Pages::new();
        for (page, body) in pages.iter().zip(bodies) {
            let lost = || StoreError::Unavailable("what was written ahead is gone".to_owned());
            copied.insert(*page, body.ok_or_else(lost)?);
        }
        self.write_ahead(database, to, Some(version), &copied).await
    }

    /// The transaction that makes the versions.
    async fn flip(&self, id: CommitId, parts: &[Part]) -> Result<CommitOutcome, StoreError> {
        let mut known = self.known_of(parts);
        let mut rounds = Rounds::new(&self.engine)?;
        let (outcome, made) = loop {
            // Only in the first round.
            let done = self.flip_once(rounds.txn(), id, parts, known.take()).await;
            if let Some(flipped) = rounds.settle(done).await {
                break flipped?;
            }
        };
        if let (Some((row, epoch)), Some(at)) = (made, rounds.committed())
            && let [part] = parts
        {
            self.known.put(part.commit.database, at, row, epoch);
        }
        Ok(outcome)
    }

    /// What is known of the database of a commit that has to ask for nothing else (M3).
    fn known_of(&self, parts: &[Part]) -> Option<Known> {
        let [part] = parts else { return None };
        let commit = &part.commit;
        let known = self.known.take(commit.database)?;
        let head = &known.row.head.snapshot;
        let fits = head.version == commit.base && known.epoch == commit.epoch;
        // What goes away with a shrink, and what was written ahead, may have to be asked for.
        let asks_nothing = commit.page_count >= head.page_count && part.layers.is_empty();
        (fits && asks_nothing && commit.restore.is_none()).then_some(known)
    }

    /// One round: the outcome, and, where it makes a version of one database, its row and epoch.
    async fn flip_once(
        &self,
        txn: &Txn,
        id: CommitId,
        parts: &[Part],
        known: Option<Known>,
    ) -> Result<(CommitOutcome, Option<(Database, Epoch)>), Fail> {
        let now_ms = self.options.clock.now_ms();
        let bases = match (known, parts) {
            (Some(known), [part]) => {
                txn.claims_since(known.at - 1);
                let (database, made) = (part.commit.database, part.commit.base.next());
                for key in [Key::Epoch(database), Key::Record(database, made)] {
                    txn.claim(&txn.space.encode(&key))?;
                }
                vec![known.row]
            }
            _ => {
                let (bases, outcome) = txn.judge(id, parts).await?;
                if let Some(outcome) = outcome {
                    return Ok((outcome, None));
                }
                bases
            }
        };
        for part in parts {
            let layers = part.layers.iter();
            let open = layers.map(|layer| layer.is_open(txn, part.commit.database));
            for open in try_join_all(open).await? {
                if !open {
                    let gone = "what was written ahead counted as abandoned".to_owned();
                    return Err(StoreError::Unavailable(gone).into());
                }
            }
        }
        let mut made = None;
        for (part, base) in parts.iter().zip(bases) {
            let restored = txn.restored(part).await?;
            let gone = txn.gone(part, &base.head).await?;
            let row = txn.apply(id, now_ms, part, base, restored, gone).await?;
            made = (parts.len() == 1).then_some((row, part.commit.epoch));
        }
        let versions = parts.iter().map(|part| part.commit.base.next());
        Ok((CommitOutcome::Committed(versions.collect()), made))
    }
}

impl Part {
    /// Puts together the pages that were not written ahead. The last one of a page holds.
    fn collect(&mut self, stagings: &[Named]) {
        for staging in stagings.iter().flatten() {
            if let Some(ahead) = &staging.ahead {
                self.pages.retain(|page, _| !ahead.pages.contains_key(page));
                self.layers.push(ahead.clone());
            }
            let buffered = staging.buffered.iter();
            let buffered = buffered.map(|(page, body)| (*page, Bytes::clone(body)));
            self.pages.extend(buffered);
        }
        self.pages.append(&mut self.own);
        let count = self.commit.page_count;
        self.pages.retain(|page, _| count.has(*page));
    }

    /// Whether the layers are of the version that is to be made, each above the one before.
    fn layers_fit(&self) -> bool {
        let version = self.commit.base.next();
        self.layers.iter().all(|layer| layer.version == version)
            && self.layers.is_sorted_by_key(|layer| layer.serial)
    }
}
