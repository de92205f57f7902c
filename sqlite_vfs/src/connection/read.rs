//! Byte ranges of a snapshot and of an overlay on it: what SQLite reads is put together from pages here.

use std::ops::Range;
use std::sync::Arc;

use pagewire_proto::{PageNumber, PageSize, Snapshot, Version};

use super::header::{self, derive_change_counter};
use super::overlay::Overlay;
use super::{Connection, OwnCookie, State};
use crate::database::Database;
use crate::error::{Error, Kind, Result};
use crate::file::read_buffer::ReadBuffer;
use crate::prefetch::Prefetcher;

/// The prefetcher of one reader. What it has asked for and nobody has read is given up with it.
pub struct ReadAhead {
    prefetcher: Prefetcher,
    database: Arc<Database>,
    /// The version that is read.
    version: Version,
    /// Roots that came along with what was asked for.
    roots: Vec<u32>,
}

impl ReadAhead {
    /// For a reader that has read nothing yet.
    pub fn new(database: &Arc<Database>) -> Self {
        Self {
            prefetcher: Prefetcher::default(),
            database: Arc::clone(database),
            version: Version::ZERO,
            roots: Vec::new(),
        }
    }

    /// The snapshot ends, or another takes its place while a statement goes on: what was fetched for it makes room (F6 of
    /// `cache/ahead.rs`).
    pub fn snapshot_ends(&mut self) {
        let mut unread = self.prefetcher.asked();
        unread.append(&mut self.roots);
        self.database.abandon_pages(unread);
    }

    fn read_at(&mut self, version: Version) {
        if self.version != version {
            self.version = version;
            self.snapshot_ends();
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        let mut unread = self.prefetcher.end();
        unread.append(&mut self.roots);
        self.database.abandon_pages(unread);
        self.database.note_hot_pages(self.prefetcher.hot());
    }
}

/// What a read found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// All bytes.
    Full,
    /// The file ends before; the rest is zero.
    Short,
}

impl Connection {
    /// xRead: any range, aligned or not. What it returns well has filled `out`.
    pub fn read(&mut self, out: &mut ReadBuffer<'_>, offset: u64) -> Result<ReadOutcome> {
        if offset >= header::LENGTH as u64 {
            return self.read_as_it_is(out, offset);
        }
        // What is looked at and changed on its way.
        let mut bytes = vec![0; out.room()];
        let outcome = self.read_header(&mut bytes, offset)?;
        out.put(&bytes);
        Ok(outcome)
    }

    fn read_header(&mut self, out: &mut [u8], offset: u64) -> Result<ReadOutcome> {
        let is_cache_check = header::is_cache_check(offset, out.len());
        if is_cache_check {
            self.transaction_begins();
        }
        let outcome = self.read_as_it_is(&mut (&mut *out).into(), offset)?;
        if offset == 0
            && let Some(base) = self.page_1_comes_from()
            && let Some(header) = header::Header::of(out)
        {
            self.schema = Some((base, header.schema_cookie()));
            self.own_cookie = OwnCookie {
                known: Some(header.schema_cookie()),
                if_applied: None,
            };
        }
        // Of an empty database SQLite takes none; what it has found out then says nothing of the next version (K8).
        let is_stale = self.cache_is_stale || self.has_seen_empty;
        if is_stale && is_cache_check && outcome == ReadOutcome::Full {
            // Any other counter makes SQLite drop its cache; the page itself it then reads with the true one.
            self.cache_is_stale = false;
            self.has_seen_empty = false;
            out[0] ^= 0xff;
        }
        Ok(outcome)
    }

    /// The version whose page 1 is read; `None` where it is one of the transaction's own.
    fn page_1_comes_from(&self) -> Option<Version> {
        match &self.state {
            State::Reading { base } => Some(base.snapshot().version),
            State::Writing { base, overlay, .. } if !overlay.has(0) => {
                Some(base.snapshot().version)
            }
            _ => None,
        }
    }

    fn read_as_it_is(&mut self, out: &mut ReadBuffer<'_>, offset: u64) -> Result<ReadOutcome> {
        let timeout = self.settings.timeout;
        if let State::Reading { base } = &self.state
            && let Some(size) = base.snapshot().page_size
            && offset >= u64::from(size.get())
            && self.habit.reads()
        {
            self.early_is_over();
        }
        match &self.state {
            State::Reading { base } | State::Failed { base, .. } => {
                let snapshot = base.snapshot();
                read_into(
                    &self.database,
                    &snapshot,
                    None,
                    &mut self.ahead,
                    out,
                    offset,
                    timeout,
                )
            }
            State::Writing { base, overlay, .. } => {
                let snapshot = base.snapshot();
                read_into(
                    &self.database,
                    &snapshot,
                    Some(overlay),
                    &mut self.ahead,
                    out,
                    offset,
                    timeout,
                )
            }
            State::Idle => {
                let mut bytes = vec![0; out.room()];
                let outcome = self.read_unlocked(&mut bytes, offset)?;
                out.put(&bytes);
                Ok(outcome)
            }
            State::Refusing { error, .. } => Err(error.clone()),
        }
    }

    /// SQLite reads the header once without a lock when it opens a database, and always where it was told not to lock.
    fn read_unlocked(&mut self, out: &mut [u8], offset: u64) -> Result<ReadOutcome> {
        let timeout = self.settings.timeout;
        if let Some(pin) = self.view.pin() {
            let snapshot = pin.snapshot();
            return read_range(
                &self.database,
                &snapshot,
                None,
                &mut self.ahead,
                out,
                offset,
                timeout,
            );
        }
        self.database.state.check()?;
        let known = self.database.state.pin_known_head();
        let outcome = read_range(
            &self.database,
            &known.snapshot(),
            None,
            &mut self.ahead,
            out,
            offset,
            timeout,
        );
        if outcome.is_ok() {
            return outcome;
        }
        // The version that was known is gone; there is a newer one.
        let pin = self.database.begin_read(&self.settings)?;
        read_range(
            &self.database,
            &pin.snapshot(),
            None,
            &mut self.ahead,
            out,
            offset,
            timeout,
        )
    }
}

/// Reads a range of a snapshot under an overlay.
pub fn read_range(
    database: &Arc<Database>,
    base: &Snapshot,
    overlay: Option<&Overlay>,
    ahead: &mut ReadAhead,
    out: &mut [u8],
    offset: u64,
    timeout: std::time::Duration,
) -> Result<ReadOutcome> {
    read_into(
        database,
        base,
        overlay,
        ahead,
        &mut out.into(),
        offset,
        timeout,
    )
}

/// Fills a buffer with a range. After an error it has some of it, and nobody may read on into the same.
fn read_into(
    database: &Arc<Database>,
    base: &Snapshot,
    overlay: Option<&Overlay>,
    ahead: &mut ReadAhead,
    out: &mut ReadBuffer<'_>,
    offset: u64,
    timeout: std::time::Duration,
) -> Result<ReadOutcome> {
    let (unit, size) = match overlay {
        Some(overlay) => (overlay.unit(), overlay.size()),
        None => (base.page_size, base.byte_size()),
    };
    let wanted = out.room();
    let Some(unit) = unit else {
        out.finish();
        return Ok(ReadOutcome::Short);
    };
    let there = size.saturating_sub(offset).min(wanted as u64) as usize;
    let mut rest = there;
    let mut at = offset;
    while rest > 0 {
        let (index, within) = split(at, unit)?;
        let length = rest.min(unit.bytes() - within);
        let written = match overlay {
            Some(overlay) => overlay.read_into(index, within, length, out)?,
            None => false,
        };
        if !written {
            let part = within..within + length;
            read_base(database, base, ahead, index, part, out, timeout)?;
        }
        rest -= length;
        at += length as u64;
    }
    out.finish();
    Ok(if there == wanted {
        ReadOutcome::Full
    } else {
        ReadOutcome::Short
    })
}

/// A part of one page of the base.
fn read_base(
    database: &Arc<Database>,
    base: &Snapshot,
    ahead: &mut ReadAhead,
    index: u32,
    part: Range<usize>,
    out: &mut ReadBuffer<'_>,
    timeout: std::time::Duration,
) -> Result<()> {
    let number = PageNumber::try_from(index + 1)?;
    let Some(page_size) = base.page_size.filter(|_| base.page_count.has(number)) else {
        out.put_zeros(part.len());
        return Ok(());
    };
    ahead.read_at(base.version);
    let view = database.view(base, page_size, timeout);
    let prefetcher = &mut ahead.prefetcher;
    let before_wait = || prefetcher.stalls(&view, number.get());
    let content = match view.page_at_hand(number, before_wait) {
        Some((content, came)) => {
            ahead.prefetcher.read(&view, number.get(), &content, came);
            content
        }
        None => {
            let mut along = ahead.prefetcher.miss(&view, number.get());
            if along.is_empty() {
                along = view.roots_along(number);
                if !along.is_empty() {
                    // Those that came before go to the cache, where whoever reads them finds them: they hold no room.
                    let before = std::mem::replace(&mut ahead.roots, along.clone());
                    database.abandon_pages(before);
                }
            }
            let content = view.fetch(number, along)?;
            ahead.prefetcher.came(number.get(), &content);
            content
        }
    };
    if content.is_empty() {
        out.put_zeros(part.len());
        return Ok(());
    }
    let Some(bytes) = content.get(part.clone()) else {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "page {number} of {} at version {}: has {} bytes instead of {}",
                database.describe(),
                base.version,
                content.len(),
                page_size.get()
            ),
        ));
    };
    if number == PageNumber::FIRST && base.version > Version::ZERO {
        let mut bytes = bytes.to_vec();
        derive_change_counter(&content, base.version, part.start, &mut bytes);
        out.put(&bytes);
    } else {
        out.put(bytes);
    }
    Ok(())
}

/// Writes a range into the overlay; the rest of a unit that is not covered comes from below.
pub fn write_through(
    database: &Arc<Database>,
    base: &Snapshot,
    overlay: &mut Overlay,
    bytes: &[u8],
    offset: u64,
    timeout: std::time::Duration,
) -> Result<()> {
    let unit = overlay.unit_for_write(offset, bytes.len());
    let end = offset.saturating_add(bytes.len() as u64);
    let size_before = overlay.size();
    let mut rest = bytes;
    let mut at = offset;
    while !rest.is_empty() {
        let (index, within) = split(at, unit)?;
        let length = rest.len().min(unit.bytes() - within);
        let (part, tail) = rest.split_at(length);
        let content = if length == unit.bytes() {
            bytes::Bytes::copy_from_slice(part)
        } else {
            let mut whole = vec![0; unit.bytes()];
            if !overlay.read(index, 0, &mut whole)? {
                read_base(
                    database,
                    base,
                    &mut ReadAhead::new(database),
                    index,
                    0..unit.bytes(),
                    &mut whole.as_mut_slice().into(),
                    timeout,
                )?;
            }
            whole[within..within + length].copy_from_slice(part);
            whole.into()
        };
        overlay.put(index, content)?;
        rest = tail;
        at += length as u64;
    }
    // A write that ends inside a unit does not make the file longer than it says.
    overlay.truncate(size_before.max(end));
    Ok(())
}

/// Index of the unit, and place within it.
fn split(at: u64, unit: PageSize) -> Result<(u32, usize)> {
    let unit = u64::from(unit.get());
    match u32::try_from(at / unit) {
        Ok(index) if index < PageNumber::MAX => Ok((index, (at % unit) as usize)),
        _ => Err(Error::new(
            Kind::Full,
            format!("byte {at} lies beyond the largest database"),
        )),
    }
}
