//! Versions that nothing keeps: they are dropped, and so are the rows that only they read where it is known which those are (COL1, COL2, COL4).

use futures_util::future::{try_join, try_join3};
use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::{Collected, StoreError};
use tokio::time::Instant;

use super::{STEP_PAGES, STEP_PAST, STEP_TIME, STEP_VERSIONS, Steps, add};
use crate::Inner;
use crate::age::Now;
use crate::engine::{Fail, Read, Txn, transact};
use crate::keys::{Key, Range, Sum};
use crate::segments::Links;
use crate::values::{CHANGES_CHUNK, Changed, Database, Due, Past, Protection, Record};

/// What keeps a version.
enum Keeps {
    Nothing,
    /// A tag, a pin, or what stands on it: says nothing of later ones.
    ForItself,
    /// As all later ones.
    AndLater,
}

/// How far one step of a database has come with its versions, the oldest first. Thousands may be kept for themselves: each is looked at once a step, and a
/// step that has lasted long enough leaves the rest to the next one.
pub(super) struct Walk {
    begun: Instant,
    after: Option<Vec<u8>>,
    is_over: bool,
}

impl Walk {
    /// From behind the last key that was looked at, in a step that has begun then.
    pub(super) fn begun_at(begun: Instant, after: Option<Vec<u8>>) -> Self {
        Self {
            begun,
            after,
            is_over: false,
        }
    }

    /// Where it was left; `None` at its beginning and at its end.
    pub(super) fn after(self) -> Option<Vec<u8>> {
        self.after.filter(|_| !self.is_over)
    }
}

impl Inner {
    /// Drops versions that nothing keeps, oldest first; whether any was, or there are more to look at.
    pub(super) async fn drop_versions(
        &self,
        database: DatabaseId,
        walk: &mut Walk,
        freed: &mut Collected,
    ) -> Result<bool, StoreError> {
        let Some(retention) = self.options.retention else {
            return Ok(false);
        };
        let retention_ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        // Past those that are kept for themselves.
        while !walk.is_over {
            let mut range = self.engine.space.records(database);
            if let Some(after) = &walk.after {
                range = range.after(after);
            }
            let (last, step) = transact!(self.engine, |txn| {
                let (steps, now) = (self.steps(txn), txn.now(&self.options).await?);
                txn.drop_some(database, &range, steps, now, retention_ms)
                    .await
            })?;
            if step.versions > 0 {
                add(freed, step);
                return Ok(true);
            }
            match last {
                Some(last) => {
                    // As many as it could look at (STEP2).
                    self.step_pace.done();
                    walk.after = Some(last);
                    if walk.begun.elapsed() >= STEP_TIME {
                        return Ok(true);
                    }
                }
                None => walk.is_over = true,
            }
        }
        Ok(false)
    }

    /// Looks at some pages of a list that was too long for the transaction that dropped the version before it (STEP3).
    pub(super) async fn look_at_due(
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
            let most = self.steps(txn).of(STEP_PAGES);
            let pages = txn.changed_from(database, of, due.after, most).await?;
            if pages.is_empty() {
                txn.delete(&key);
                return Ok(Some(step));
            }
            txn.examine(database, &pages, due.dropped, &mut step)
                .await?;
            let next = Due {
                after: due.after.saturating_add(pages.len() as u32),
                ..due
            };
            txn.put(&key, &next.encode());
            Ok(Some(step))
        })?;
        Ok(step.map(|step| add(freed, step)).is_some())
    }

    /// Drops what is left of records when it need not be known any more (C14).
    pub(super) async fn drop_past(&self, database: DatabaseId) -> Result<bool, StoreError> {
        transact!(self.engine, |txn| {
            let range = txn.space.past(database);
            let most = self.steps(txn).of(STEP_PAST);
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
}

impl Txn {
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
                    let most = steps.of(STEP_PAGES);
                    let (many, is_due) = match next.map(|next| &next.changed) {
                        Some(Changed::Inline(list)) => (list.len(), list.len() > most),
                        Some(Changed::Chunks(_)) => (0, true),
                        Some(Changed::All) | None => (0, false),
                    };
                    if !is_due && step.versions > 0 && pages + many > most {
                        return Ok((None, step));
                    }
                    pages += many + 1;
                    self.drop_version(database, record, next, is_due, now, &mut step, &mut links)
                        .await?;
                    if is_due {
                        return Ok((None, step));
                    }
                }
            }
        }
        let last = rows.last().filter(|_| rows.len() == most);
        Ok((last.map(|row| row.key.clone()), step))
    }

    /// Some of the changed pages of a version whose list is not gone, behind the first so many.
    async fn changed_from(
        &self,
        database: DatabaseId,
        version: Version,
        after: u32,
        most: usize,
    ) -> Result<Vec<PageNumber>, Fail> {
        let after = after as usize;
        let record = self.record(database, version, Read::Loose).await?;
        let (mut pages, skipped) = match record.map(|record| record.changed) {
            Some(Changed::Inline(pages)) => (pages, after),
            _ => {
                let chunk = (after / CHANGES_CHUNK) as u32;
                let pages = self.changed_chunks(database, version, chunk, 1).await?;
                (pages, after % CHANGES_CHUNK)
            }
        };
        pages.drain(..skipped.min(pages.len()));
        pages.truncate(most);
        Ok(pages)
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
        // Of thousands that are pinned nothing else has to be asked.
        if protections.iter().any(|p| p.pins.contains(&version)) {
            return Ok(Keeps::ForItself);
        }
        let tags = self.space.tagged_of(database, version);
        let children = self.space.children_of(database, version);
        let tags = self.first(&tags, Read::Firm);
        let children = self.first(&children, Read::Firm);
        let (tag, child) = try_join(tags, children).await?;
        Ok(match tag.is_some() || child.is_some() {
            true => Keeps::ForItself,
            false => Keeps::Nothing,
        })
    }

    /// Makes a version unreadable, and looks at the rows that it read (COL1, COL4), where they are not to be looked at later.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a step knows, and what it adds up"
    )]
    async fn drop_version(
        &self,
        database: DatabaseId,
        record: &Record,
        next: Option<&Record>,
        is_due: bool,
        now: Now,
        step: &mut Collected,
        links: &mut Links,
    ) -> Result<(), Fail> {
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
        match next.map(|next| &next.changed) {
            _ if is_due => {
                let due = Due {
                    dropped: version,
                    after: 0,
                };
                self.put(&Key::Due(database), &due.encode());
            }
            Some(Changed::Inline(pages)) => self.examine(database, pages, version, step).await?,
            Some(Changed::Chunks(_) | Changed::All) | None => self.sweep(database),
        }
        self.reader_gone(database, version, links).await
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
}
