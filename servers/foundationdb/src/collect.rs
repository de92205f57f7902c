//! The collection: drops versions that nothing keeps, and the rows that only they read (docs/versions.md, K and G).
//!
//! Each step is a transaction of its own, bounded in what it reads and writes, and any server may make any step: what is under way is in
//! rows. It never disturbs a commit: what a commit reads firmly (heads, epochs, attempts that are open) is only read here, loosely.
//!
//! # States of a version
//! ```text
//!                    nothing keeps it              rows that it read looked at
//!   kept (Record) ------------------> past (Past) ---------------------------> past, its rows gone
//!                                        |                                       | an hour (C14, `age.rs`)
//!                                        +--------------------------------------> nothing
//! ```
//! * **COL1** A version is readable if and only if it has a row `Record` (or is 0); that goes in the transaction in which the first of its
//!   rows goes, or in an earlier one (G2).
//! * **COL2** What keeps a version is read firmly in the transaction that drops it, and what makes something keep a version reads its record
//!   firmly: of a tag, a branch, a restore or a pin and a collection the later one fails and looks again (G1).
//! * **COL3** The row of a page with version w, followed by one with version w', is read by the kept versions from w to w' exclusive, within
//!   its segment, that no cut keeps from it. Without one it goes. A loose look is enough: versions without a record never get one again,
//!   and rows that come meanwhile are of versions above all that are dropped.
//! * **COL4** What is garbage is found again: when version v is dropped, rows die only among those of pages that changed in v+1. If that has a
//!   list they are looked at at once, or from `Due` on; otherwise `Sweep` demands a look at all rows. Both go with the last look (G4).
//!   While `Due` is there no other version of the database is dropped: the list that it needs stays.
//! * **COL5** A row of a page is claimed before it is deleted: of two that delete it one fails, so that sums stay right.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{try_join, try_join3};
use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::{Collected, StoreError};
use tokio::time::Instant;

use crate::Inner;
use crate::age::Now;
use crate::engine::{Fail, Read, Row, Txn, corrupt, decode, transact};
use crate::keys::{Key, Range, ServerId, Sum, serial_of};
use crate::read::Attempts;
use crate::segments::{Links, Reader};
use crate::values::{Changed, Database, Due, Past, Protection, Record};

/// Databases that one step of all looks at.
const STEP_DATABASES: usize = 32;
/// Transactions that one step spends on a database.
pub(crate) const STEP_TRANSACTIONS: usize = 16;
/// Versions that one transaction looks at.
pub(crate) const STEP_VERSIONS: usize = 128;
/// Pages that one transaction looks at because a version was dropped.
const STEP_PAGES: usize = 512;
/// Rows that one transaction of a sweep looks at: of the largest pages 4 MiB.
pub(crate) const STEP_ROWS: usize = 64;
/// Old records that one transaction drops.
pub(crate) const STEP_PAST: usize = 512;

/// Time after which a step of several databases leaves the rest to the next one.
pub(crate) const STEP_TIME: Duration = Duration::from_secs(2);
/// Databases of one step that may be passed by because the cluster could not: with more of them it is the cluster that is the trouble.
const STEP_FAILURES: usize = 3;
/// How often steps are halved at most.
pub(crate) const MOST_HALVINGS: u32 = 6;

/// How much one transaction looks at: less where one could not be done within the time of the cluster, and more again with each that could.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    halvings: u32,
}

impl Steps {
    #[cfg(test)]
    pub(crate) fn halved(halvings: u32) -> Self {
        Self { halvings }
    }

    /// At least 2: the last row of a sweep is not judged.
    pub(crate) fn of(self, usual: usize) -> usize {
        (usual >> self.halvings).max(2)
    }
}

/// How far a look at all databases has come.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    /// The last key of a head that was looked at.
    after: Option<Vec<u8>>,
    /// The last key of a removed database that was looked at, where there are more.
    pub(crate) removed_after: Option<Vec<u8>>,
    /// The last key of a version that has lost a reader that was looked at, where there are more.
    pub(crate) unread_after: Option<Vec<u8>>,
    /// The last key of a segment that is to be flattened and could not be, where there may be more.
    pub(crate) flatten_after: Option<Vec<u8>>,
    /// Something was done since the first.
    did: bool,
}

/// What a step could not do. It has its turn again in a later one, and holds up nothing else.
#[derive(Debug, Default)]
pub(crate) struct Failures(usize);

impl Failures {
    /// Whether anything was done. An error of one thing is told and left to a later step, and is one of the step only where the cluster
    /// cannot do several: then it is the cluster that is the trouble.
    pub(crate) fn or_later(
        &mut self,
        done: Result<bool, StoreError>,
        what: impl std::fmt::Display,
    ) -> Result<bool, StoreError> {
        let error = match done {
            Ok(did) => return Ok(did),
            Err(error) => error,
        };
        tracing::warn!(%error, %what, "cannot be collected now");
        // Damage says nothing of the cluster.
        if !matches!(error, StoreError::Corrupt(_)) {
            self.0 += 1;
            if self.0 >= STEP_FAILURES {
                return Err(error);
            }
        }
        Ok(false)
    }
}

/// What keeps a version.
enum Keeps {
    Nothing,
    /// A tag, a pin, or what stands on it: says nothing of later ones.
    ForItself,
    /// As all later ones.
    AndLater,
}

/// The newest versions before another that read anything: remembered for the rows of one transaction.
type Readers = BTreeMap<Version, Option<Reader>>;

impl Inner {
    /// One step, of one database or of some.
    pub(crate) async fn collect_step(
        &self,
        only: Option<DatabaseId>,
        pass: &mut Pass,
    ) -> Result<Collected, StoreError> {
        let mut freed = Collected::default();
        let living = self.living().await?;
        let mut failures = Failures::default();
        let dropped = self.drop_abandoned().await;
        let dropped = failures.or_later(dropped, "what was written ahead")?;
        if let Some(database) = only {
            let row = transact!(self.engine, |txn| txn.database(database, Read::Loose).await)?;
            freed.more = self
                .collect_database(database, &row, &living, &mut freed)
                .await?;
            return Ok(freed);
        }
        pass.did |= dropped;
        if pass.after.is_none() {
            let dropped = self.drop_post(&living).await.map(|()| false);
            failures.or_later(dropped, "the post of servers that are gone")?;
        }
        // In each step: they must not wait for a look at all databases, which may be many.
        let ended = self.end_unread(pass, &mut failures).await;
        pass.did |= failures.or_later(ended, "segments that nobody reads")?;
        if pass.after.is_none() || pass.removed_after.is_some() {
            let removed = self
                .collect_removed(&living, pass, &mut freed, &mut failures)
                .await;
            pass.did |= failures.or_later(removed, "removed databases")?;
        }
        // After those that go, which need none.
        let flattened = self.flatten_some(pass, &mut failures).await;
        pass.did |= failures.or_later(flattened, "segments that are to be flattened")?;
        let mut range = self.engine.space.heads();
        if let Some(after) = &pass.after {
            range = range.after(after);
        }
        let rows = transact!(self.engine, |txn| {
            txn.scan(&range, STEP_DATABASES, false, Read::Loose).await
        })?;
        let begun = Instant::now();
        let mut looked_at = None;
        for (index, row) in rows.iter().enumerate() {
            if let Some(Key::Head(database)) = self.engine.space.decode(&row.key) {
                let space = &self.engine.space;
                let collected = match decode(space, row, Database::decode) {
                    Ok(head) => {
                        self.collect_database(database, &head, &living, &mut freed)
                            .await
                    }
                    Err(error) => Err(error),
                };
                let collected = failures.or_later(collected, database);
                if collected.is_err() {
                    // The next step goes on behind it: else as many as this one bears would hold up the others for ever.
                    pass.after = Some(row.key.clone());
                }
                pass.did |= collected?;
            }
            looked_at = Some(index);
            if begun.elapsed() >= STEP_TIME {
                break;
            }
        }
        let is_last = looked_at.is_none_or(|index| index + 1 == rows.len());
        pass.after = match looked_at.and_then(|index| rows.get(index)) {
            Some(last) if rows.len() == STEP_DATABASES || !is_last => Some(last.key.clone()),
            _ => None,
        };
        let goes_on = pass.after.is_some()
            || pass.removed_after.is_some()
            || pass.unread_after.is_some()
            || pass.flatten_after.is_some();
        freed.more = goes_on || std::mem::take(&mut pass.did);
        Ok(freed)
    }

    /// Some transactions for one database; whether anything was done.
    async fn collect_database(
        &self,
        database: DatabaseId,
        row: &Database,
        living: &HashSet<ServerId>,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let mut any = self.drop_of_the_dead(database, living).await?;
        if self.drop_unborn(database, row).await? {
            return Ok(true);
        }
        let begun = Instant::now();
        for _ in 0..STEP_TRANSACTIONS {
            let did = self.paced(self.collect_some(database, freed).await)?;
            any |= did;
            if !did {
                break;
            }
            if begun.elapsed() >= STEP_TIME {
                break;
            }
        }
        Ok(any)
    }

    /// What is most urgent; whether anything was done.
    async fn collect_some(
        &self,
        database: DatabaseId,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        Ok(self.look_at_due(database, freed).await?
            || self.drop_versions(database, freed).await?
            || self.drop_past(database).await?
            || self.sweep_some(database, freed).await?)
    }

    pub(crate) fn steps(&self) -> Steps {
        let halvings = self.steps.load(Ordering::Relaxed);
        Steps { halvings }
    }

    /// What came of a transaction: as it is, and as what it says of how much the next ones should look at.
    pub(crate) fn paced(&self, done: Result<bool, StoreError>) -> Result<bool, StoreError> {
        match &done {
            Ok(true) => self.change_steps(|halvings| halvings.saturating_sub(1)),
            Err(StoreError::Unavailable(_) | StoreError::Internal(_)) => {
                self.change_steps(|halvings| (halvings + 2).min(MOST_HALVINGS));
            }
            Ok(false) | Err(_) => {}
        }
        done
    }

    pub(crate) fn change_steps(&self, change: impl Fn(u32) -> u32) {
        // Another collection may do the same: it is a guess at what the cluster can do.
        let halvings = self.steps.load(Ordering::Relaxed);
        self.steps.store(change(halvings), Ordering::Relaxed);
    }

    /// Drops the bells and messages of servers that are gone.
    async fn drop_post(&self, living: &HashSet<ServerId>) -> Result<(), StoreError> {
        let post = transact!(self.engine, |txn| {
            let range = txn.space.post();
            txn.keys(&range, STEP_PAST, Read::Loose).await
        })?;
        let server = |key| match key {
            Key::Bell(server) | Key::Mail(server, ..) => Some(server),
            _ => None,
        };
        let servers: HashSet<_> = post.into_iter().filter_map(server).collect();
        for server in servers.difference(living).copied() {
            transact!(self.engine, |txn| {
                if txn.is_gone(server, living).await? {
                    txn.delete(&Key::Bell(server));
                    txn.delete_range(&txn.space.mail(server));
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Drops what servers left that are dead: what they wrote ahead, and what their sessions read.
    pub(crate) async fn drop_of_the_dead(
        &self,
        database: DatabaseId,
        living: &HashSet<ServerId>,
    ) -> Result<bool, StoreError> {
        let dead = transact!(self.engine, |txn| {
            let range = txn.space.protections(database);
            let protections = txn.scan(&range, usize::MAX, false, Read::Firm);
            let attempts = txn.attempts(database, Read::Loose);
            let (protections, attempts) = try_join(protections, attempts).await?;
            for row in protections {
                if let Key::Protect(_, server) = txn.key(&row)?
                    && txn.is_gone(server, living).await?
                {
                    txn.delete_encoded(&row.key);
                }
            }
            let mut dead = Vec::new();
            for (serial, attempt) in attempts {
                let own = attempt.server == self.server;
                let helped = attempt.doomed && !own;
                // A5. Its number was there before its row.
                let left = own && !self.begun_attempts.lock().contains(&attempt.number);
                if helped || left || txn.is_gone(attempt.server, living).await? {
                    dead.push(serial);
                }
            }
            Ok(dead)
        })?;
        for serial in &dead {
            self.drop_attempt(database, *serial).await?;
        }
        Ok(!dead.is_empty())
    }

    /// Drops versions that nothing keeps, oldest first.
    async fn drop_versions(
        &self,
        database: DatabaseId,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let Some(retention) = self.options.retention else {
            return Ok(false);
        };
        let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        let mut range = self.engine.space.records(database);
        // Past those that are kept for themselves.
        loop {
            let (last, step) = transact!(self.engine, |txn| {
                let (steps, now) = (self.steps(), txn.now(&self.options).await?);
                txn.drop_some(database, &range, steps, now, retention_ms)
                    .await
            })?;
            if step.versions > 0 {
                add(freed, step);
                return Ok(true);
            }
            match last {
                Some(last) => range = range.after(&last),
                None => return Ok(false),
            }
        }
    }

    /// Looks at the pages of a chunk of a list that was too long for the transaction that dropped the version before it.
    async fn look_at_due(
        &self,
        database: DatabaseId,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let step = transact!(self.engine, |txn| {
            let key = Key::Due(database);
            let Some(due) = txn.row(&key, Read::Firm, Due::decode).await? else {
                return Ok(None);
            };
            let mut step = Collected::default();
            let of = due.dropped.next();
            let pages = txn.changed_chunks(database, of, due.chunk, 1).await?;
            if pages.is_empty() {
                txn.delete(&key);
                return Ok(Some(step));
            }
            txn.examine(database, &pages, due.dropped, &mut step)
                .await?;
            let next = Due {
                chunk: due.chunk + 1,
                ..due
            };
            txn.put(&key, &next.encode());
            Ok(Some(step))
        })?;
        Ok(step.map(|step| add(freed, step)).is_some())
    }

    /// Drops what is left of records when it need not be known any more (C14).
    async fn drop_past(&self, database: DatabaseId) -> Result<bool, StoreError> {
        transact!(self.engine, |txn| {
            let range = txn.space.past(database);
            let most = self.steps().of(STEP_PAST);
            let rows = txn.scan(&range, most, false, Read::Loose);
            let (rows, now) = try_join(rows, txn.now(&self.options)).await?;
            let mut any = false;
            for row in rows {
                let past = txn.decode(&row, Past::decode)?;
                if !now.is_long_after(past.time_ms, past.dropped) {
                    break;
                }
                if let Key::Past(_, version) = txn.key(&row)? {
                    txn.delete(&Key::Made(database, past.time_ms, version));
                }
                txn.delete_encoded(&row.key);
                any = true;
            }
            Ok(any)
        })
    }

    /// Looks at some rows of a database whether any version reads them.
    pub(crate) async fn sweep_some(
        &self,
        database: DatabaseId,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let step = transact!(self.engine, |txn| {
            txn.sweep_some(database, self.steps()).await
        })?;
        Ok(step.map(|step| add(freed, step)).is_some())
    }
}

impl Txn {
    /// Whether a server that was not among the living has no row: one that has begun since they were listed, or has come back, has one.
    /// Firmly: it may be beginning now.
    async fn is_gone(&self, server: ServerId, living: &HashSet<ServerId>) -> Result<bool, Fail> {
        if living.contains(&server) {
            return Ok(false);
        }
        let row = self.server(server, Read::Firm).await?;
        Ok(row.is_none())
    }

    /// Drops versions among some records. Answers the last one that was looked at, if there are more to look at.
    async fn drop_some(
        &self,
        database: DatabaseId,
        range: &Range,
        steps: Steps,
        now: Now,
        retention_ms: u64,
    ) -> Result<(Option<Vec<u8>>, Collected), Fail> {
        let mut step = Collected::default();
        let due = self.get(&Key::Due(database), Read::Firm);
        let head = self.row(&Key::Head(database), Read::Loose, Database::decode);
        let most = steps.of(STEP_VERSIONS);
        let rows = self.scan(range, most, false, Read::Loose);
        let (due, head, rows) = try_join3(due, head, rows).await?;
        let (Some(head), None) = (head, due) else {
            // Removed: all of it is garbage, which is seen to elsewhere.
            return Ok((None, step));
        };
        let newest = head.head.snapshot.version;
        let now_ms = now.time_ms.max(head.time_ms);
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            records.push(self.decode(row, Record::decode)?);
        }
        let (mut pages, mut protections) = (0, None);
        let mut links = Links::of_a_transaction(steps);
        for (index, record) in records.iter().enumerate() {
            let version = record.head.snapshot.version;
            if version >= newest || pages >= steps.of(STEP_PAGES) {
                return Ok((None, step));
            }
            let next = records.get(index + 1);
            let next = match next.filter(|next| next.head.snapshot.version == version.next()) {
                Some(next) => Some(next.clone()),
                None => self.record(database, version.next(), Read::Loose).await?,
            };
            let ended_ms = match (&next, record.ended_ms) {
                (Some(next), _) => Some(next.time_ms),
                (None, 0) => {
                    let past = self.past(database, version.next(), Read::Loose).await?;
                    past.map(|past| past.time_ms)
                }
                (None, ended_ms) => Some(ended_ms),
            };
            if ended_ms.is_some_and(|ended| ended.saturating_add(retention_ms) > now_ms) {
                return Ok((None, step));
            }
            let protections = match &mut protections {
                Some(protections) => protections,
                none => none.insert(self.protections(database).await?),
            };
            match self.keeps(database, version, protections).await? {
                Keeps::AndLater => return Ok((None, step)),
                Keeps::ForItself => {}
                Keeps::Nothing => {
                    let next = next.as_ref();
                    pages += self
                        .drop_version(database, record, next, now, &mut step, &mut links)
                        .await?;
                    if matches!(next.map(|next| &next.changed), Some(Changed::Chunks(_))) {
                        return Ok((None, step));
                    }
                }
            }
        }
        let last = rows.last().filter(|_| rows.len() == most);
        Ok((last.map(|row| row.key.clone()), step))
    }

    /// What servers protect: firmly, see COL2.
    async fn protections(&self, database: DatabaseId) -> Result<Vec<Protection>, Fail> {
        let range = self.space.protections(database);
        let rows = self.scan(&range, usize::MAX, false, Read::Firm).await?;
        let each = rows.iter().map(|row| self.decode(row, Protection::decode));
        each.collect()
    }

    /// What keeps a version that is neither the head nor within the retention (V2).
    async fn keeps(
        &self,
        database: DatabaseId,
        version: Version,
        protections: &[Protection],
    ) -> Result<Keeps, Fail> {
        let mut floors = protections.iter().filter_map(|p| p.floor);
        if floors.any(|floor| floor <= version) {
            return Ok(Keeps::AndLater);
        }
        let tags = self.space.tagged_of(database, version);
        let children = self.space.children_of(database, version);
        let tags = self.first(&tags, Read::Firm);
        let children = self.first(&children, Read::Firm);
        let (tag, child) = try_join(tags, children).await?;
        let pinned = protections.iter().any(|p| p.pins.contains(&version));
        Ok(match pinned || tag.is_some() || child.is_some() {
            true => Keeps::ForItself,
            false => Keeps::Nothing,
        })
    }

    /// Makes a version unreadable, and looks at the rows that it read (COL1, COL4). Answers at how many pages.
    async fn drop_version(
        &self,
        database: DatabaseId,
        record: &Record,
        next: Option<&Record>,
        now: Now,
        step: &mut Collected,
        links: &mut Links,
    ) -> Result<usize, Fail> {
        let version = record.head.snapshot.version;
        let key = Key::Record(database, version);
        self.claim(&self.space.encode(&key))?;
        self.delete(&key);
        self.delete_range(&self.space.changed(database, version));
        // When it was made is known by a wall clock only, which may have been behind.
        let past = Past {
            commit: record.commit,
            time_ms: record.time_ms,
            dropped: now.cluster,
        };
        self.put(&Key::Past(database, version), &past.encode());
        let before = Version::new(version.get() - 1);
        if let Some(mut before_it) = self.record(database, before, Read::Firm).await? {
            before_it.ended_ms = record.time_ms;
            self.put(&Key::Record(database, before), &before_it.encode());
        }
        self.add(&Key::Sum(database, Sum::Versions), -1);
        step.versions += 1;
        let mut looked_at = 1;
        match next.map(|next| &next.changed) {
            Some(Changed::Inline(pages)) => {
                looked_at += pages.len();
                self.examine(database, pages, version, step).await?;
            }
            Some(Changed::Chunks(_)) => {
                let due = Due {
                    dropped: version,
                    chunk: 0,
                };
                self.put(&Key::Due(database), &due.encode());
            }
            Some(Changed::All) | None => self.sweep(database),
        }
        self.reader_gone(database, version, links).await?;
        Ok(looked_at)
    }

    /// Deletes the rows of pages that a dropped version read and no other: the next version has others.
    async fn examine(
        &self,
        database: DatabaseId,
        pages: &[PageNumber],
        dropped: Version,
        step: &mut Collected,
    ) -> Result<(), Fail> {
        let reader = self.newest_reader(database, dropped.next());
        let (reader, attempts) = try_join(reader, self.attempts(database, Read::Loose)).await?;
        let from = reader.map_or(Version::ZERO, |reader| reader.version.next());
        let rows = pages.iter().map(|page| {
            let range = self.space.page(database, *page, from, dropped);
            async move { self.scan(&range, usize::MAX, false, Read::Loose).await }
        });
        for row in futures_util::future::try_join_all(rows)
            .await?
            .iter()
            .flatten()
        {
            if !self.is_attempted(row, &attempts)? {
                self.drop_row(database, row, step)?;
            }
        }
        Ok(())
    }

    fn page_of(&self, row: &Row) -> Result<(PageNumber, Version, i64), Fail> {
        match self.key(row)? {
            Key::Page(_, page, version, layer) => Ok((page, version, layer)),
            _ => Err(corrupt(&self.space, &row.key, "not a page").into()),
        }
    }

    /// Whether a row belongs to an attempt, whoever sees to that.
    fn is_attempted(&self, row: &Row, attempts: &Attempts) -> Result<bool, Fail> {
        let (_, _, layer) = self.page_of(row)?;
        Ok(serial_of(layer).is_some_and(|serial| attempts.contains_key(&serial)))
    }

    /// Deletes a row of a page (COL5).
    fn drop_row(&self, database: DatabaseId, row: &Row, step: &mut Collected) -> Result<(), Fail> {
        self.claim(&row.key)?;
        self.delete_encoded(&row.key);
        let bytes = body_len(row);
        self.add(&Key::Sum(database, Sum::Pages), -1);
        self.add(&Key::Sum(database, Sum::Bytes), -(bytes as i64));
        step.pages += 1;
        step.bytes += bytes;
        Ok(())
    }

    /// Looks at some rows, from where the last look ended; `None` where none is demanded.
    async fn sweep_some(
        &self,
        database: DatabaseId,
        steps: Steps,
    ) -> Result<Option<Collected>, Fail> {
        let most = steps.of(STEP_ROWS);
        let sweep = Key::Sweep(database);
        let Some(from) = self.get(&sweep, Read::Firm).await? else {
            return Ok(None);
        };
        let mut range = self.space.pages(database);
        if !from.is_empty() {
            range.begin = from.to_vec();
        }
        let rows = self.scan(&range, most + 1, false, Read::Loose);
        let (rows, attempts) = try_join(rows, self.attempts(database, Read::Loose)).await?;
        let mut step = Collected::default();
        let mut readers = Readers::new();
        let at_end = rows.len() <= most;
        let looked_at = match at_end {
            true => rows.len(),
            // Of the last one the next is not known.
            false => rows.len() - 1,
        };
        for (index, row) in rows[..looked_at].iter().enumerate() {
            if self.is_attempted(row, &attempts)? {
                continue;
            }
            let (page, written, layer) = self.page_of(row)?;
            let mut next = None;
            for later in &rows[index + 1..] {
                let (of, version, _) = self.page_of(later)?;
                if of == page && self.is_attempted(later, &attempts)? {
                    continue;
                }
                next = (of == page).then_some(version);
                break;
            }
            let end = self.segment_of_row(database, written, next).await?;
            let read = self
                .is_read(database, (page, written, layer), end, &mut readers)
                .await?;
            if !read {
                self.drop_row(database, row, &mut step)?;
            }
        }
        match at_end {
            true => self.delete(&sweep),
            false => self.put(&sweep, &rows[looked_at].key),
        }
        Ok(Some(step))
    }

    /// The version before which a row is read: of the next row of its page, or of the next segment.
    async fn segment_of_row(
        &self,
        database: DatabaseId,
        written: Version,
        next: Option<Version>,
    ) -> Result<Version, Fail> {
        let end = self.segment_end(database, written).await?;
        Ok(next.map_or(end, |next| next.min(end)))
    }

    /// Whether a version that reads a row is kept or stood on.
    async fn is_read(
        &self,
        database: DatabaseId,
        row: (PageNumber, Version, i64),
        end: Version,
        readers: &mut Readers,
    ) -> Result<bool, Fail> {
        let (page, written, layer) = row;
        let mut end = end;
        while end > written {
            let reader = match readers.get(&end) {
                Some(reader) => reader.clone(),
                None => {
                    let reader = self.newest_reader(database, end).await?;
                    readers.insert(end, reader.clone());
                    reader
                }
            };
            let Some(reader) = reader.filter(|reader| reader.version >= written) else {
                return Ok(false);
            };
            let Reader { version, head, .. } = reader;
            if head.shows(page, written, layer) {
                return Ok(true);
            }
            // What that one does not see an older one may: from before it was cut, or had fewer pages.
            end = version.min(head.cut_of(page).unwrap_or(version));
        }
        Ok(false)
    }
}

pub(crate) fn add(freed: &mut Collected, step: Collected) {
    freed.versions += step.versions;
    freed.pages += step.pages;
    freed.bytes += step.bytes;
}

/// What the body of a row takes.
pub(crate) fn body_len(row: &Row) -> u64 {
    // After its checksum.
    row.stored.len().saturating_sub(4) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_get_smaller_and_never_too_small() {
        let of = |halvings, usual| Steps::halved(halvings).of(usual);
        assert_eq!(of(0, STEP_VERSIONS), STEP_VERSIONS);
        assert_eq!(of(2, STEP_VERSIONS), STEP_VERSIONS / 4);
        // A sweep that looks at one row judges none, and would never end.
        assert_eq!(of(MOST_HALVINGS, STEP_ROWS), 2);
    }
}
