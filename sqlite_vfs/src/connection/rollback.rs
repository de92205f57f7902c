//! What tells a rollback from a commit at FCNTL_SYNC where the change counter stands still, as it does in exclusive locking mode too:
//! the bytes. A rollback after a spill writes the old images back.
//!
//! Not of every page. A leaf of the freelist (SQLite file format, 1.5) has no content that anybody reads, so SQLite takes it into use
//! without an entry in its journal, and what was spilled to it stays there after the rollback. So a transaction that differs from its
//! base in such pages only has changed nothing: a commit that used one would have changed the trunk that names it, or page 1. What is in
//! them is not compared, so it is not fetched either.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use pagewire_proto::{PageSize, Snapshot};

use super::header::{self, Header};
use super::journal::RollsBack;
use super::overlay::Overlay;
use super::read::{ReadAhead, read_range};
use super::{Connection, State};
use crate::database::Database;
use crate::error::Result;

/// What a trunk of the freelist has before the numbers of its leaves: that of the next trunk, and how many leaves there are.
const TRUNK_HEADER: usize = 8;

/// Trunks that are read where nothing says that it is a rollback: SQLite takes the leaves of the first ones first, and a commit in
/// exclusive locking mode should not read all of them, which may be a page for each thousand free ones.
const TRUNKS_ON_SUSPICION: u32 = 16;

impl Connection {
    /// Whether every unit written says what the base says.
    pub(super) fn equals_base(&mut self, base: &Snapshot) -> Result<bool> {
        let known = self.own_cookie.at(base.version);
        let trunks = match self.may_roll_back() {
            RollsBack::No => 0,
            RollsBack::Seen => u32::MAX,
            RollsBack::Unknown => TRUNKS_ON_SUSPICION,
        };
        let State::Writing { overlay, .. } = &self.state else {
            return Ok(true);
        };
        let Some(unit) = overlay.unit() else {
            return Ok(true);
        };
        let timeout = self.settings.timeout;
        let mut ahead = ReadAhead::new(&self.database);
        let mut ours = vec![0; unit.bytes()];
        let mut theirs = vec![0; unit.bytes()];
        let free = free_leaves(&self.database, base, overlay, unit, trunks, timeout)?;
        for index in overlay.indexes().filter(|index| !free.contains(index)) {
            overlay.read(index, 0, &mut ours)?;
            let offset = u64::from(index) * u64::from(unit.get());
            read_range(
                &self.database,
                base,
                None,
                &mut ahead,
                &mut theirs,
                offset,
                timeout,
            )?;
            if index == 0 {
                header::mask_change_counter(&mut ours);
                header::mask_change_counter(&mut theirs);
                // A rollback brings back what SQLite had, which is its own cookie.
                if let (Some(cookie), Some(own), Some(stored)) =
                    (known, Header::of(&ours), Header::of(&theirs))
                    && own.schema_cookie() == cookie
                {
                    let stored = stored.schema_cookie();
                    header::set_schema_cookie(&mut ours, stored);
                }
            }
            if ours != theirs {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Which of the units written are leaves of the first trunks of the base's freelist; none if that is not as it has to be.
fn free_leaves(
    database: &Arc<Database>,
    base: &Snapshot,
    overlay: &Overlay,
    unit: PageSize,
    mut trunks: u32,
    timeout: Duration,
) -> Result<HashSet<u32>> {
    let mut ahead = ReadAhead::new(database);
    let mut page = vec![0; unit.bytes()];
    let mut found = HashSet::new();
    if base.page_size != Some(unit) || trunks == 0 {
        return Ok(found);
    }
    read_range(database, base, None, &mut ahead, &mut page, 0, timeout)?;
    let Some((mut trunk, mut left)) = Header::of(&page).map(Header::freelist) else {
        return Ok(found);
    };
    while trunk != 0 && trunks > 0 {
        trunks -= 1;
        // A freelist that goes on for longer than page 1 says may go round in circles.
        if left == 0 || trunk > base.page_count.get() {
            return Ok(HashSet::new());
        }
        let offset = u64::from(trunk - 1) * u64::from(unit.get());
        read_range(database, base, None, &mut ahead, &mut page, offset, timeout)?;
        let leaves = header::number(&page[4..TRUNK_HEADER]);
        trunk = header::number(&page[..4]);
        left -= 1;
        if leaves > left || leaves as usize > (page.len() - TRUNK_HEADER) / 4 {
            return Ok(HashSet::new());
        }
        left -= leaves;
        found.extend(
            page[TRUNK_HEADER..]
                .chunks_exact(4)
                .take(leaves as usize)
                .filter_map(|leaf| header::number(leaf).checked_sub(1))
                .filter(|index| overlay.has(*index)),
        );
    }
    Ok(found)
}
