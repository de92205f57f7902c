//! FCNTL_SYNC: what was written becomes the next version, or turns out to be a rollback.

use std::sync::Arc;

use pagewire_proto::{PageCount, PageNumber, PageSize, Snapshot};

use super::header::{self, Header};
use super::overlay::Overlay;
use super::read::{ReadAhead, read_range};
use super::staging::Stager;
use super::{Connection, Progress, State};
use crate::client::{CommitPage, CommitPart};
use crate::database::{CommitMember, commit};
use crate::error::{Error, Kind, Result};

/// What a transaction is, seen at its commit point.
enum Prepared {
    /// Nothing differs from the base: SQLite has rolled back, or wrote what was there.
    Nothing,
    /// A new version.
    Version(CommitPart),
}

impl Connection {
    /// FCNTL_SYNC without a super-journal: commits this database alone.
    pub fn sync(&mut self) -> Result<()> {
        commit_locked(&mut [self], true)
    }

    /// Whether there is anything that FCNTL_SYNC would look at.
    pub fn has_written(&self) -> bool {
        match &self.state {
            State::Writing { base, overlay, .. } => {
                !overlay.is_empty() || overlay.size() != base.snapshot().byte_size()
            }
            State::Idle | State::Reading { .. } | State::Failed { .. } | State::Refusing { .. } => {
                false
            }
        }
    }

    fn prepare(&mut self) -> Result<Prepared> {
        if !self.has_written() {
            let is_made = matches!(
                self.state,
                State::Writing {
                    progress: Progress::Durable { .. },
                    ..
                }
            );
            if is_made {
                // K6. The second FCNTL_SYNC of a transaction is the end of its rollback.
                return Err(Error::io(
                    "SQLite found nothing to roll it back with, as where the main database is a local file",
                ));
            }
            return Ok(Prepared::Nothing);
        }
        let State::Writing {
            base,
            overlay,
            counter,
            ..
        } = &mut self.state
        else {
            return Ok(Prepared::Nothing);
        };
        let base = base.snapshot();
        let page_1 = first_bytes(overlay)?;
        let header = page_1.as_deref().and_then(Header::of);
        let page_size = header
            .and_then(Header::page_size)
            .or(base.page_size)
            .or(overlay.unit());
        let Some(page_size) = page_size else {
            return Ok(Prepared::Nothing);
        };
        let by_size =
            u32::try_from(overlay.size().div_ceil(u64::from(page_size.get()))).unwrap_or(u32::MAX);
        let count = header.and_then(Header::page_count).unwrap_or(by_size);
        let page_count = PageCount::try_from(count)?;
        if page_count == PageCount::ZERO && base.page_count == PageCount::ZERO {
            return Ok(Prepared::Nothing);
        }
        let is_wal = header.is_some_and(Header::is_wal);
        let same_shape = base.page_size == Some(page_size) && base.page_count == page_count;
        let counter_moved = header.is_some_and(|header| header.change_counter() != *counter);
        if is_wal {
            self.refuse_or_reset_wal(&base)?;
        }
        if same_shape && !counter_moved && self.equals_base(&base)? {
            return Ok(Prepared::Nothing);
        }
        self.derive_schema_cookie(&base)?;
        self.part(base, page_size, page_count)
            .map(Prepared::Version)
    }

    /// A page 1 that asks for WAL: refused where it is a switch of the journal mode (it would brick the database), and reset
    /// where it came with the content of another database, by the backup API.
    fn refuse_or_reset_wal(&mut self, base: &Snapshot) -> Result<()> {
        let name = self.database.describe();
        let State::Writing { overlay, .. } = &mut self.state else {
            return Ok(());
        };
        let Some(unit) = overlay.unit() else {
            return Ok(());
        };
        let mut page_1 = vec![0; unit.bytes()];
        overlay.read(0, 0, &mut page_1)?;
        let only_page_1 = overlay.indexes().eq([0]);
        if only_page_1 && base.page_size == Some(unit) {
            let mut before = vec![0; unit.bytes()];
            let mut ahead = ReadAhead::new(&self.database);
            read_range(
                &self.database,
                base,
                None,
                &mut ahead,
                &mut before,
                0,
                self.settings.timeout,
            )?;
            if !header::differ_beyond_journal_mode(&before, &page_1) {
                return Err(Error::io(format!(
                    "{name}: journal_mode=WAL is not possible on remote pages; set locking_mode=NORMAL and journal_mode=DELETE"
                )));
            }
        }
        header::without_wal(&mut page_1);
        self.cache_is_stale = true;
        overlay.put(0, page_1.into())
    }

    fn part(
        &mut self,
        base: Snapshot,
        page_size: PageSize,
        page_count: PageCount,
    ) -> Result<CommitPart> {
        let limits = self.stage_limits();
        let State::Writing { overlay, .. } = &mut self.state else {
            return Err(Error::new(
                Kind::Bug,
                "a commit outside of a write transaction",
            ));
        };
        if overlay.unit() != Some(page_size) {
            let mut whole = Overlay::new(Some(page_size), 0, self.settings.overlay_bytes);
            let mut ahead = ReadAhead::new(&self.database);
            let mut page = vec![0; page_size.bytes()];
            for index in 0..page_count.get() {
                let offset = u64::from(index) * u64::from(page_size.get());
                read_range(
                    &self.database,
                    &base,
                    Some(overlay),
                    &mut ahead,
                    &mut page,
                    offset,
                    self.settings.timeout,
                )?;
                // Nothing of the base is kept where the page size differs, so zeros need not be sent.
                if page.iter().any(|byte| *byte != 0) {
                    whole.put(index, bytes::Bytes::copy_from_slice(&page))?;
                    Stager::go_on(&mut whole, &self.database, limits);
                }
            }
            **overlay = whole;
        }
        Stager::settle(overlay, &self.database);
        let mut pages = Vec::new();
        for index in overlay.indexes() {
            let number = PageNumber::try_from(index + 1)?;
            if page_count.has(number)
                && let Some(source) = overlay.source(index)
            {
                pages.push(CommitPage {
                    number,
                    source,
                    staged: overlay.is_sent(index),
                });
            }
        }
        Ok(CommitPart {
            id: self.database.state.id(),
            base: base.version,
            page_size,
            page_count,
            pages,
            spill: overlay.spill_file(),
            restore: None,
            stagings: overlay.stager.stagings().to_vec(),
        })
    }

    /// A schema cookie must never stand for two schemas (B5). SQLite counts it up from the one before; after a restore it would
    /// count through values that were used already, and connections that remember one of them would take their schema for the
    /// one that is there now. So a new cookie is derived from the version that brings it.
    fn derive_schema_cookie(&mut self, base: &Snapshot) -> Result<()> {
        let before = self.schema_cookie_of(base)?;
        let next = base.version.next();
        let State::Writing { overlay, .. } = &mut self.state else {
            return Ok(());
        };
        let page_1 = first_bytes(overlay)?;
        let ours = page_1.as_deref().and_then(Header::of);
        let Some(cookie) = ours.map(Header::schema_cookie) else {
            return Ok(());
        };
        let own = &mut self.own_cookie;
        // By what SQLite counted from, which is not always the cookie of the base: see [`OwnCookie`].
        let stored = if cookie == own.at(base.version).unwrap_or(before) {
            before
        } else {
            header::next_schema_cookie(self.database.state.id(), base.version, before, cookie)
        };
        let is_repeated = own.if_applied.is_some_and(|(version, _)| version == next)
            && self.schema == Some((next, cookie));
        if !is_repeated {
            own.if_applied = Some((next, cookie));
        }
        // Of what will be the base of the next transaction, if this one is applied.
        self.schema = Some((next, stored));
        let Some(unit) = overlay.unit().filter(|_| cookie != stored) else {
            return Ok(());
        };
        let mut page_1 = vec![0; unit.bytes()];
        overlay.read(0, 0, &mut page_1)?;
        header::set_schema_cookie(&mut page_1, stored);
        // SQLite has its own cookie in its cache.
        self.cache_is_stale = true;
        overlay.put(0, page_1.into())
    }

    /// Mostly known, so that it costs no read at the end of a transaction that has driven page 1 out of the cache.
    fn schema_cookie_of(&self, base: &Snapshot) -> Result<u32> {
        if let Some((version, cookie)) = self.schema
            && version == base.version
        {
            return Ok(cookie);
        }
        let mut page_1 = vec![0; header::LENGTH];
        read_range(
            &self.database,
            base,
            None,
            &mut ReadAhead::new(&self.database),
            &mut page_1,
            0,
            self.settings.timeout,
        )?;
        Ok(Header::of(&page_1).map_or(0, Header::schema_cookie))
    }

    /// `may_fail`: SQLite may still roll it back (K6). It does so once; what it restores is not rolled back again.
    fn commit_succeeded(&mut self, head: Snapshot, may_fail: bool) {
        // T8: the connection may go on without a new xLock(SHARED), at the version that it has made.
        let new_base = self.database.state.pin(head);
        let new_overlay = self.overlay_on(&head);
        let State::Writing {
            base,
            overlay,
            progress,
            counter,
            ..
        } = &mut self.state
        else {
            return;
        };
        overlay.stager.consumed();
        // A page that could be sent a moment ago can be read now; if not, comparing bytes finds the truth all the same.
        let page_1 = first_bytes(overlay).ok().flatten();
        let written = page_1
            .as_deref()
            .and_then(Header::of)
            .map(Header::change_counter);
        *counter = written.unwrap_or(*counter);
        // K8. It is an older one in exclusive locking mode, and where this was a rollback (K6): then SQLite reads anew in any case.
        self.cache_is_stale |= *counter != head.version.get() as u32;
        let before = std::mem::replace(base, new_base);
        *progress = match progress {
            Progress::Durable { .. } => Progress::Over,
            Progress::Open | Progress::Grouped | Progress::Over if may_fail => {
                Progress::durable(&head, before)
            }
            Progress::Open | Progress::Grouped | Progress::Over => Progress::Grouped,
        };
        *overlay = new_overlay;
    }

    fn forget_writes(&mut self) {
        let State::Writing { base, overlay, .. } = &mut self.state else {
            return;
        };
        let base = base.snapshot();
        **overlay = Overlay::new(
            base.page_size,
            base.byte_size(),
            self.settings.overlay_bytes,
        );
    }

    fn commit_failed(&mut self, error: &Error) {
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Writing {
                level,
                progress: Progress::Durable { version, .. },
                ..
            } => State::Refusing {
                level,
                error: self.stays_committed(version, Some(error)),
            },
            State::Writing {
                base,
                level,
                counter,
                ..
            } => State::Failed {
                base,
                level,
                error: error.clone(),
                rolled_back: false,
                counter,
            },
            other => other,
        };
    }

    /// SQLite looks whether its cache is still right: it does so only when no transaction is open. In exclusive locking mode,
    /// where nothing is ever unlocked, this is how an abandoned transaction ends: SQLite's pager may give one up after an
    /// error without playing its journal back.
    pub(super) fn transaction_begins(&mut self) {
        match &self.state {
            State::Writing {
                level,
                progress: Progress::Durable { version, .. },
                ..
            } => {
                self.state = State::Refusing {
                    level: *level,
                    error: self.stays_committed(*version, None),
                };
            }
            State::Writing { .. } => self.forget_writes(),
            State::Failed { .. } => self.failure_is_over(),
            State::Idle | State::Reading { .. } | State::Refusing { .. } => {}
        }
    }

    /// FCNTL_BEGIN_ATOMIC_WRITE: SQLite is about to write a commit.
    pub fn batch_begins(&mut self) {
        self.batch_began_clean = !self.has_written();
        if matches!(self.state, State::Failed { .. }) {
            self.failure_is_over();
        }
    }

    /// FCNTL_ROLLBACK_ATOMIC_WRITE: nothing of the batch counts. Without a spill before it that is everything; with one SQLite
    /// writes the same pages again by way of its journal, or plays that back.
    pub fn batch_is_rolled_back(&mut self) {
        if self.batch_began_clean {
            self.forget_writes();
        }
    }

    /// What comes now belongs to another transaction than the one that failed (K4). It may go on if the lease is still there
    /// and the outcome is known; if not, it is refused until the connection unlocks.
    pub(super) fn failure_is_over(&mut self) {
        let lease_is_there = self.database.state.writer_epoch(self.writer).is_some();
        self.state = match std::mem::replace(&mut self.state, State::Idle) {
            State::Failed {
                base,
                level,
                error,
                counter,
                ..
            } => {
                let is_settled =
                    error.kind != Kind::OutcomeUnknown && error.kind != Kind::BusySnapshot;
                if lease_is_there && is_settled {
                    let overlay = self.overlay_on(&base.snapshot());
                    State::Writing {
                        base,
                        level,
                        overlay,
                        progress: Progress::Open,
                        counter,
                    }
                } else {
                    State::Failed {
                        base,
                        level,
                        error,
                        rolled_back: true,
                        counter,
                    }
                }
            }
            other => other,
        };
    }

    /// FCNTL_SYNC after a failed commit: the end of SQLite's rollback, once. A second one would be a commit of what was dropped.
    fn rollback_ends(&mut self) -> Result<()> {
        if let State::Failed {
            error,
            rolled_back: true,
            ..
        } = &self.state
        {
            return Err(error.clone());
        }
        self.failure_is_over();
        Ok(())
    }
}

/// Commits the connections of a super-journal, all or none.
pub fn commit_group(members: &[Arc<parking_lot::Mutex<Connection>>]) -> Result<()> {
    let mut guards: Vec<_> = members.iter().map(|member| member.lock()).collect();
    let mut connections: Vec<&mut Connection> =
        guards.iter_mut().map(|guard| &mut **guard).collect();
    // After the deletion of a super-journal SQLite ignores errors.
    commit_locked(&mut connections, false)
}

/// `may_fail`: SQLite may roll back what is made here.
fn commit_locked(connections: &mut [&mut Connection], may_fail: bool) -> Result<()> {
    let mut members = Vec::with_capacity(connections.len());
    let mut who = Vec::with_capacity(connections.len());
    let mut timeout = std::time::Duration::ZERO;
    let is_alone = connections.len() == 1;
    let outcome = (|| {
        for (index, connection) in connections.iter_mut().enumerate() {
            connection.check_not_refusing()?;
            if let State::Failed { error, .. } = &connection.state {
                if !is_alone {
                    return Err(error.clone());
                }
                connection.rollback_ends()?;
                continue;
            }
            match connection.prepare()? {
                Prepared::Nothing => {
                    connection.forget_writes();
                    connection.transaction_is_over();
                }
                Prepared::Version(part) => {
                    timeout = timeout.max(connection.settings.timeout);
                    let Some(base) = connection.snapshot() else {
                        continue;
                    };
                    members.push(CommitMember {
                        database: Arc::clone(&connection.database),
                        writer: connection.writer,
                        base,
                        part,
                    });
                    who.push(index);
                }
            }
        }
        commit(std::mem::take(&mut members), timeout)
    })();
    match outcome {
        Ok(heads) => {
            for (index, head) in who.into_iter().zip(heads) {
                connections[index].commit_succeeded(head, may_fail);
            }
            Ok(())
        }
        Err(error) => {
            for connection in connections {
                connection.commit_failed(&error);
            }
            Err(error)
        }
    }
}

fn first_bytes(overlay: &Overlay) -> Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; header::LENGTH];
    Ok(overlay.read(0, 0, &mut bytes)?.then_some(bytes))
}
