//! Flattening: a segment that stands on too many others gets rows of its own in place of theirs (docs/versions.md, B2).
//!
//! ```text
//!           a segment begins with MAX_DEPTH below it       copy: some pages a transaction          switch
//!   shallow ---------------------------------------> Flatten ----------------------------> copied -------> shallow: stands on what is below those
//!              ^                                        | the segment went, or is not deep by now
//!              +----------------------------------------+
//! ```
//! What is copied is a row at the first version of the segment, in the layer [`FROM_BELOW`]: under everything that the segment wrote itself. So
//! whoever reads one sees what was there before, and it does not matter who writes beside it: no commit reads or writes what a step
//! reads firmly.
//!
//! * **FLAT1** A copy is of a page that the segment does not have at its first version itself and shows from below. It is right at any time: what a segment
//!   began with never changes (SEG2).
//! * **FLAT2** The switch reads firmly the row of each segment that it leaves behind. So what it stands on afterwards is what the last of them
//!   stood on when it was made, and was kept by that.
//! * **FLAT3** The row `Flatten` says how far it is, and is read firmly and written in the transaction of the copies: of two servers that flatten
//!   the same segment, or of a transaction of which the answer was lost, each page counts once in the sums.
//! * **FLAT4** No more is copied than the segments have that are left behind, and a larger one than all above it together is not among
//!   them while [`FLAT_DEPTH`] or fewer are left. The size of a segment is that of the rows of its database, which count for the lowest of its segments.
//! * **FLAT5** A step looks at a bounded number of rows and goes down a bounded number of segments; those that are deeper than that are flattened
//!   in several goes. The shallowest comes first: those above it need none by then.
//! * **FLAT6** Damage in what is to be copied leaves that segment as it is until this server is begun anew, and holds up no other.
//! * **FLAT7** A copy is of the links that were named when the first was made, and those stand on what they stood on then. Where one of them was
//!   flattened since, also the last, the copies of what it has got by that may be missing: it begins anew.
//! * **FLAT8** Where several stand on one segment that stands on more than [`FLAT_DEPTH`] others that one is flattened, by whoever looks at the first of them, and then none of
//!   them need be: a fan of branches costs one copy of what is below, not one for each. Who finds that begun, by another server or by itself, leaves it to its turn, which comes
//!   first; one that has none in this pass (it failed, FLAT6) does not hold them up.

use std::collections::BTreeSet;

use futures_util::future::{try_join, try_join_all};
use pagewire_proto::{DatabaseId, PageNumber, Version};
use pagewire_server::store::StoreError;
use tokio::time::Instant;

use crate::Inner;
use crate::collect::{Failures, Pass, STEP_ROWS, STEP_TIME, STEP_TRANSACTIONS, Steps};
use crate::engine::{Fail, Read, Txn, corrupt, transact};
use crate::keys::{FROM_BELOW, Key, Range, Sum, serial_of};
use crate::read::Found;
use crate::segments::{Links, MAX_DEPTH, child_of};
use crate::values::{Flattening, Segment};

/// Segments that are left below one that was flattened, at most.
const FLAT_DEPTH: usize = 4;
/// Segments below one that are looked at together. More than wait for flattening below one that is flattened in its turn.
const LOOK_DOWN: usize = 32;
/// Rows `Flatten` that one look takes.
const WAITING: usize = 16;

/// What is below a segment.
struct Chain {
    /// From its base downwards, as many as were asked for at most.
    links: Vec<Segment>,
    /// The last of them stands on others in turn.
    goes_on: bool,
}

impl Chain {
    /// Which ones they are.
    fn names(&self) -> Vec<(DatabaseId, Version)> {
        let name = |link: &Segment| (link.database, link.head.since);
        self.links.iter().map(name).collect()
    }
}

impl Flattening {
    /// Whether it was begun for this chain (FLAT7).
    fn is_of(&self, names: &[(DatabaseId, Version)]) -> bool {
        names.starts_with(&self.links) && names.get(self.links.len()).copied() == self.below
    }
}

impl Inner {
    /// Some transactions of flattening; whether anything was done.
    pub(crate) async fn flatten_some(
        &self,
        pass: &mut Pass,
        failures: &mut Failures,
    ) -> Result<bool, StoreError> {
        let begun = Instant::now();
        let mut any = false;
        for _ in 0..STEP_TRANSACTIONS {
            let Some((depth, database, first)) = self.next_to_flatten(pass).await? else {
                pass.flatten_after = None;
                break;
            };
            let has_turn = |mark: &Key| self.has_turn(pass, mark);
            let done = transact!(self.engine, |txn| {
                txn.flatten_step((depth, database, first), &has_turn, self.steps(txn))
                    .await
            });
            let done = self.paced(done.map(|()| true));
            if let Err(error) = &done {
                let key = Key::Flatten(depth, database, first);
                pass.flatten_after = Some(self.engine.space.encode(&key));
                if matches!(error, StoreError::Corrupt(_)) {
                    self.unflattened.lock().insert((database, first));
                }
            }
            let what = format_args!("the depth of database {database}");
            any |= failures.or_later(done, what)?;
            if begun.elapsed() >= STEP_TIME {
                break;
            }
        }
        Ok(any)
    }

    /// The shallowest segment that is to be flattened and can be (FLAT5, FLAT6), behind those of this pass that could not.
    async fn next_to_flatten(
        &self,
        pass: &Pass,
    ) -> Result<Option<(u32, DatabaseId, Version)>, StoreError> {
        let mut range = self.engine.space.flatten();
        if let Some(after) = &pass.flatten_after {
            range = range.after(after);
        }
        loop {
            let found = transact!(self.engine, |txn| {
                txn.keys(&range, WAITING, Read::Loose).await
            })?;
            let last = found.last().map(|key| self.engine.space.encode(key));
            let many = found.len();
            for key in found {
                if let Key::Flatten(depth, database, first) = key
                    && self.has_turn(pass, &key)
                {
                    return Ok(Some((depth, database, first)));
                }
            }
            match last {
                Some(last) if many == WAITING => range = range.after(&last),
                _ => return Ok(None),
            }
        }
    }

    /// Whether this pass comes to the segment of a mark: it is not behind the last one that failed, and not known to be damaged.
    fn has_turn(&self, pass: &Pass, mark: &Key) -> bool {
        let Key::Flatten(_, database, first) = mark else {
            return false;
        };
        let after = pass.flatten_after.as_ref();
        after.is_none_or(|after| self.engine.space.encode(mark) > *after)
            && !self.unflattened.lock().contains(&(*database, *first))
    }

    /// One step for the segment of the newest version of a database: to which of how many links it has come; `None` where it is not to be
    /// flattened, or is by now. For tests.
    pub(crate) async fn flatten_once(
        &self,
        database: DatabaseId,
    ) -> Result<Option<(u32, usize)>, StoreError> {
        transact!(self.engine, |txn| {
            let first = txn.database(database, Read::Loose).await?.head.since;
            let segment = Key::Segment(database, first);
            let segment = txn.row(&segment, Read::Loose, Segment::decode).await?;
            let Some(Segment { depth, .. }) = segment.flatten() else {
                return Ok(None);
            };
            txn.flatten_step((depth, database, first), &|_| true, self.steps(txn))
                .await?;
            let mark = Key::Flatten(depth, database, first);
            let work = txn.row(&mark, Read::Loose, Flattening::decode).await?;
            Ok(work.flatten().map(|work| (work.at, work.links.len())))
        })
    }

    /// In how many segments a page of the newest version of a database is looked for at most. For tests.
    pub(crate) async fn depth(&self, database: DatabaseId) -> Result<usize, StoreError> {
        let mut head = transact!(self.engine, |txn| {
            Ok(txn.database(database, Read::Loose).await?.head)
        })?;
        let (mut database, mut depth) = (database, 1);
        while let Some(below) = transact!(self.engine, |txn| txn.segment(database, &head).await)? {
            (database, head, depth) = (below.database, below.head, depth + 1);
        }
        Ok(depth)
    }
}

impl Txn {
    /// What is below a segment, down to a bound. Firmly: see FLAT2.
    async fn chain(&self, base: Segment, most: usize) -> Result<Chain, Fail> {
        let mut links = vec![base];
        loop {
            let below = match links.last() {
                Some(last) if last.head.based => {
                    let key = Key::Segment(last.database, last.head.since);
                    self.row(&key, Read::Firm, Segment::decode).await?.flatten()
                }
                _ => None,
            };
            let goes_on = below.is_some();
            match below {
                Some(below) if links.len() < most => links.push(below),
                _ => return Ok(Chain { links, goes_on }),
            }
        }
    }

    /// One step of one segment.
    async fn flatten_step(
        &self,
        (depth, database, first): (u32, DatabaseId, Version),
        has_turn: &(dyn Fn(&Key) -> bool + Sync),
        steps: Steps,
    ) -> Result<(), Fail> {
        let mark = Key::Flatten(depth, database, first);
        let key = Key::Segment(database, first);
        let work = self.row(&mark, Read::Firm, Flattening::decode);
        let segment = self.row(&key, Read::Firm, Segment::decode);
        let (work, segment) = try_join(work, segment).await?;
        let Some(work) = work else {
            // Another server was faster.
            return Ok(());
        };
        let Some(base) = segment.flatten() else {
            // The segment went, and what was copied with it.
            self.delete(&mark);
            return Ok(());
        };
        // Never fewer than were begun with, and one below.
        let begun = work.as_ref().map_or(0, |work| work.links.len() + 1);
        let most = steps.of(LOOK_DOWN).max(MAX_DEPTH as usize).max(begun);
        let chain = self.chain(base.clone(), most).await?;
        let names = chain.names();
        // One that was begun for others (FLAT8) is not as deep as the rest.
        let is_begun = work.as_ref().is_some_and(|work| work.is_of(&names));
        if !chain.goes_on && chain.links.len() < MAX_DEPTH as usize && !is_begun {
            // What is below was flattened meanwhile.
            let depth = chain.links.len() as u32;
            self.put(&key, &Segment { depth, ..base }.encode());
            self.delete(&mark);
            if work.is_some() {
                self.sweep(database);
            }
            return Ok(());
        }
        if work.is_none() && self.flatten_below(&mark, &chain, has_turn).await? {
            return Ok(());
        }
        let work = match work {
            Some(work) if is_begun => work,
            // The first step, or what is below is another chain by now (FLAT7).
            _ => self.begin_flattening(&chain).await?,
        };
        let merged = &chain.links[..work.links.len()];
        match self
            .copy_some((database, first), merged, work, steps)
            .await?
        {
            Some(work) => self.put(&mark, &work.encode()),
            None => {
                self.switch(&mark, (database, first), &chain, merged, steps)
                    .await?
            }
        }
        Ok(())
    }

    async fn begin_flattening(&self, chain: &Chain) -> Result<Flattening, Fail> {
        let (names, many) = (chain.names(), self.worth_merging(chain).await?);
        Ok(Flattening {
            links: names[..many].to_vec(),
            below: names.get(many).copied(),
            at: 0,
            after: 0,
        })
    }

    /// Begins with what a segment stands on in its place, where others stand on that too (FLAT8); whether that is begun with, here or by another server,
    /// and comes before it.
    async fn flatten_below(
        &self,
        own: &Key,
        chain: &Chain,
        has_turn: &(dyn Fn(&Key) -> bool + Sync),
    ) -> Result<bool, Fail> {
        let [base, under @ ..] = &chain.links[..] else {
            return Ok(false);
        };
        let [below, _, ..] = under else {
            return Ok(false);
        };
        // One that is deeper has its turn by itself, and before those that stand on it.
        if chain.goes_on || under.len() <= FLAT_DEPTH || under.len() >= MAX_DEPTH as usize {
            return Ok(false);
        }
        let (database, first) = (base.database, base.head.since);
        let mark = Key::Flatten(below.depth, database, first);
        let end = self.segment_end(database, first).await?;
        let standing = Range {
            begin: self.space.children_of(database, first).begin,
            end: self.space.children_of(database, end).begin,
        };
        let standing = self.keys(&standing, 2, Read::Loose);
        let (marked, standing) = try_join(self.get(&mark, Read::Firm), standing).await?;
        if marked.is_some() {
            // One that has no turn, or a later one, would be waited for in vain.
            let earlier = self.space.encode(&mark) < self.space.encode(own);
            return Ok(earlier && has_turn(&mark));
        }
        if standing.len() < 2 {
            return Ok(false);
        }
        let under = Chain {
            links: under.to_vec(),
            goes_on: false,
        };
        let work = self.begin_flattening(&under).await?;
        self.put(&mark, &work.encode());
        Ok(true)
    }

    /// How many links, from the top, are left behind (FLAT4): one at least, and not the last ones of a chain that goes on.
    async fn worth_merging(&self, chain: &Chain) -> Result<usize, Fail> {
        let kept = if chain.goes_on { FLAT_DEPTH } else { 0 };
        let most = chain.links.len().saturating_sub(kept);
        let sizes = chain.links.iter().take(most).enumerate();
        let sizes = sizes.map(|(index, link)| async move {
            let mut later = chain.links[index + 1..].iter();
            if later.any(|later| later.database == link.database) {
                return Ok(0);
            }
            let rows = self.sum(&Key::Sum(link.database, Sum::Pages)).await?;
            let visible = link.reach.min(link.head.snapshot.page_count).get();
            Ok::<_, Fail>(rows.clamp(0, i64::from(visible)))
        });
        let mut above = 0;
        for (index, size) in try_join_all(sizes).await?.into_iter().enumerate() {
            let few = !chain.goes_on && chain.links.len() - index <= FLAT_DEPTH;
            if index > 0 && size > above && few {
                return Ok(index);
            }
            above += size;
        }
        Ok(most.max(1))
    }

    /// Copies some pages of the links that are left behind. How far that has got; `None` where it is at its end.
    async fn copy_some(
        &self,
        (database, first): (DatabaseId, Version),
        merged: &[Segment],
        mut work: Flattening,
        steps: Steps,
    ) -> Result<Option<Flattening>, Fail> {
        let most = steps.of(STEP_ROWS);
        let (top, source) = loop {
            let at = work.at as usize;
            let (Some(top), Some(source)) = (merged.first(), merged.get(at)) else {
                return Ok(None);
            };
            // All pages of a database are gone through once.
            match merged[..at]
                .iter()
                .any(|above| above.database == source.database)
            {
                true => work.at += 1,
                false => break (top, source),
            }
        };
        let range = self
            .space
            .pages_from(source.database, work.after.saturating_add(1));
        let rows = self.scan(&range, most, false, Read::Loose).await?;
        let mut pages = BTreeSet::new();
        for row in &rows {
            let Key::Page(_, page, ..) = self.key(row)? else {
                return Err(corrupt(&self.space, &row.key, "not a page").into());
            };
            pages.insert(page);
            work.after = page.get();
        }
        if rows.len() < most {
            (work.at, work.after) = (work.at + 1, 0);
        }
        let reach = top.reach;
        let pages: Vec<_> = pages.into_iter().filter(|page| reach.has(*page)).collect();
        let wanted = self.without_own((database, first), pages).await?;
        let found = self.locate_within(top.database, top.head.clone(), &wanted, merged.len());
        let (mut copied, mut bytes) = (0, 0);
        for (page, found) in wanted.iter().zip(found.await?) {
            let Some(Found { row, .. }) = found else {
                continue;
            };
            let body = self.body(&row)?;
            self.put_quietly(&Key::Page(database, *page, first, FROM_BELOW), body)?;
            copied += 1;
            bytes += body.len() as i64;
        }
        self.add(&Key::Sum(database, Sum::Pages), copied);
        self.add(&Key::Sum(database, Sum::Bytes), bytes);
        Ok(Some(work))
    }

    /// Those pages of which the first version of a segment has no row that counts.
    async fn without_own(
        &self,
        (database, first): (DatabaseId, Version),
        pages: Vec<PageNumber>,
    ) -> Result<Vec<PageNumber>, Fail> {
        let attempts = self.attempts(database, Read::Loose);
        let own = pages.iter().map(|page| {
            let range = self.space.page(database, *page, first, first);
            async move { self.scan(&range, usize::MAX, false, Read::Loose).await }
        });
        let (attempts, own) = try_join(attempts, try_join_all(own)).await?;
        let mut without = Vec::with_capacity(pages.len());
        for (page, rows) in pages.into_iter().zip(own) {
            let mut has = false;
            for row in &rows {
                if let Key::Page(_, _, _, layer) = self.key(row)? {
                    has |= serial_of(layer).is_none_or(|serial| !attempts.contains_key(&serial));
                }
            }
            if !has {
                without.push(page);
            }
        }
        Ok(without)
    }

    /// The segment stands on what is below the links that are left behind.
    async fn switch(
        &self,
        mark: &Key,
        (database, first): (DatabaseId, Version),
        chain: &Chain,
        merged: &[Segment],
        steps: Steps,
    ) -> Result<(), Fail> {
        let [top, ..] = merged else { return Ok(()) };
        let rest = &chain.links[merged.len()..];
        // What those that are left behind did not let through is not let through now.
        let through = |reach, link: &Segment| link.head.lasting().min(link.reach).min(reach);
        let below = rest.first().map(|below| Segment {
            reach: merged.iter().fold(below.reach, through),
            depth: match chain.goes_on {
                true => below.depth,
                false => rest.len() as u32,
            },
            ..below.clone()
        });
        self.delete(&child_of(top, database, first));
        self.delete(mark);
        // Also that it is still deep, where it is.
        self.begin_segment(database, first, below.as_ref());
        // Copies that no version reads.
        self.sweep(database);
        self.sweep(top.database);
        let (stood_on, version) = (top.database, top.head.snapshot.version);
        let mut links = Links::of_a_transaction(steps);
        self.reader_gone(stood_on, version, &mut links).await
    }
}
